//! Refusals as `metav1.Status` objects: code, reason, message and details as client-go expects them.
//!
//! Guarantees: [`Failure::to_value`] is a complete `v1` Status object; `code` is a valid HTTP status.
//! Assumes: messages are for people and name what was refused; secrets never go into one.

use serde_json::{Value, json};

use crate::registry::Resource;

/// A request that was refused: what goes into the HTTP answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// HTTP status code.
    pub code: u16,
    /// Machine-readable reason, like `NotFound`.
    pub reason: &'static str,
    /// Text for people.
    pub message: String,
    /// What the refusal is about.
    pub details: Option<Box<Details>>,
}

/// `details` of a Status.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    /// Name of the object.
    pub name: String,
    /// Group of `kind`.
    pub group: String,
    /// Plural resource for most reasons, kind for `Invalid`; as upstream has it.
    pub kind: String,
    /// UID of the object.
    pub uid: String,
    /// Single causes, one per field.
    pub causes: Vec<Cause>,
    /// When to try again, in seconds; 0 when not stated.
    pub retry_after_seconds: u32,
}

/// One cause of a refusal.
#[derive(Clone, Debug, PartialEq)]
pub struct Cause {
    /// Like `FieldValueInvalid`.
    pub reason: &'static str,
    /// Text for people.
    pub message: String,
    /// Path of the field, like `spec.containers[0].name`.
    pub field: String,
}

/// What may be done with one field of an object, and why it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// A field that must be set is not.
    Required,
    /// A value is not as it must be.
    Invalid,
    /// A value is none of the supported ones.
    NotSupported,
    /// A value appears twice.
    Duplicate,
    /// A value may not be used here.
    Forbidden,
    /// A string has too many bytes.
    TooLong,
    /// A list has too many items.
    TooMany,
    /// A referenced thing does not exist.
    NotFound,
    /// The value's JSON type is wrong.
    TypeInvalid,
}

/// One refused field.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// What is wrong.
    pub kind: ErrorKind,
    /// Path of the field, like `spec.containers[0].name`.
    pub field: String,
    /// The refused value as the message shows it, where one is shown.
    pub value: Option<String>,
    /// Text for people; may be empty.
    pub detail: String,
}

impl FieldError {
    fn cause(&self) -> Cause {
        let reason = match self.kind {
            ErrorKind::Required => "FieldValueRequired",
            ErrorKind::Invalid => "FieldValueInvalid",
            ErrorKind::NotSupported => "FieldValueNotSupported",
            ErrorKind::Duplicate => "FieldValueDuplicate",
            ErrorKind::Forbidden => "FieldValueForbidden",
            ErrorKind::TooLong => "FieldValueTooLong",
            ErrorKind::TooMany => "FieldValueTooMany",
            ErrorKind::NotFound => "FieldValueNotFound",
            ErrorKind::TypeInvalid => "FieldValueTypeInvalid",
        };
        Cause { reason, message: self.body(), field: self.field.clone() }
    }

    /// The message without the field.
    fn body(&self) -> String {
        let head = match self.kind {
            ErrorKind::Required => "Required value",
            ErrorKind::Invalid | ErrorKind::TypeInvalid => "Invalid value",
            ErrorKind::NotSupported => "Unsupported value",
            ErrorKind::Duplicate => "Duplicate value",
            ErrorKind::Forbidden => "Forbidden",
            ErrorKind::TooLong => "Too long",
            ErrorKind::TooMany => "Too many",
            ErrorKind::NotFound => "Not found",
        };
        let mut out = head.to_owned();
        if let Some(v) = &self.value {
            out.push_str(": ");
            out.push_str(v);
        }
        if !self.detail.is_empty() {
            out.push_str(": ");
            out.push_str(&self.detail);
        }
        out
    }
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

impl Failure {
    /// A refusal with no details.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Failure {
        Failure { code, reason, message: message.into(), details: None }
    }

    fn about(mut self, row: &Resource, name: &str) -> Failure {
        self.details = Some(Box::new(Details {
            name: name.to_owned(),
            group: row.group.to_owned(),
            kind: row.plural.to_owned(),
            ..Details::default()
        }));
        self
    }

    /// 404: no such object.
    pub fn not_found(row: &Resource, name: &str) -> Failure {
        Failure::new(404, "NotFound", format!("{} \"{name}\" not found", row.qualified())).about(row, name)
    }

    /// 404: nothing is served at this path.
    pub fn no_such_path() -> Failure {
        let mut f = Failure::new(404, "NotFound", "the server could not find the requested resource");
        f.details = Some(Box::default());
        f
    }

    /// 409: an object of that name exists.
    pub fn already_exists(row: &Resource, name: &str) -> Failure {
        Failure::new(409, "AlreadyExists", format!("{} \"{name}\" already exists", row.qualified()))
            .about(row, name)
    }

    /// 409: the object changed, or a precondition does not hold; `why` is the whole explanation.
    pub fn conflict(row: &Resource, name: &str, why: &str) -> Failure {
        Failure::new(
            409,
            "Conflict",
            format!("Operation cannot be fulfilled on {} \"{name}\": {why}", row.qualified()),
        )
        .about(row, name)
    }

    /// 409: the usual lost race of an update with a stale resourceVersion.
    pub fn stale(row: &Resource, name: &str) -> Failure {
        Failure::conflict(
            row,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 422: fields that must not be stored, each as a cause.
    pub fn invalid(row: &Resource, name: &str, errors: &[FieldError]) -> Failure {
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let list = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let kind =
            if row.group.is_empty() { row.kind.to_owned() } else { format!("{}.{}", row.kind, row.group) };
        let mut f = Failure::new(422, "Invalid", format!("{kind} \"{name}\" is invalid: {list}"));
        f.details = Some(Box::new(Details {
            name: name.to_owned(),
            group: row.group.to_owned(),
            kind: row.kind.to_owned(),
            causes: errors.iter().map(FieldError::cause).collect(),
            ..Details::default()
        }));
        f
    }

    /// 400: the request itself makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Failure {
        Failure::new(400, "BadRequest", message)
    }

    /// 403: the user may not; `user` as in `system:node:a`, `why` may be empty.
    pub fn forbidden(row: &Resource, name: &str, why: &str) -> Failure {
        let what = if name.is_empty() { row.qualified() } else { format!("{} \"{name}\"", row.qualified()) };
        Failure::new(403, "Forbidden", format!("{what} is forbidden: {why}")).about(row, name)
    }

    /// 403 for a path that is no resource.
    pub fn forbidden_path(why: &str) -> Failure {
        let mut f = Failure::new(403, "Forbidden", format!("forbidden: {why}"));
        f.details = Some(Box::default());
        f
    }

    /// 401: who asks is not known.
    pub fn unauthorized() -> Failure {
        Failure::new(401, "Unauthorized", "Unauthorized")
    }

    /// 405: the resource has no such verb.
    pub fn method_not_allowed(row: &Resource, verb: &str) -> Failure {
        Failure::new(
            405,
            "MethodNotAllowed",
            format!("{verb} is not supported on resources of kind \"{}\"", row.qualified()),
        )
        .about(row, "")
    }

    /// 415: a body in a format that is not accepted here.
    pub fn unsupported_media_type(accepted: &[&str]) -> Failure {
        Failure::new(
            415,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: {}",
                accepted.join(", ")
            ),
        )
    }

    /// 406: none of the formats that the client accepts can be made.
    pub fn not_acceptable(accepted: &[&str]) -> Failure {
        Failure::new(
            406,
            "NotAcceptable",
            format!("only the following media types are accepted: {}", accepted.join(", ")),
        )
    }

    /// 410: the requested resourceVersion or continue token is too old to be served.
    pub fn expired(message: impl Into<String>) -> Failure {
        Failure::new(410, "Expired", message)
    }

    /// 504: the requested resourceVersion is not there yet; clients wait a second and ask again.
    pub fn too_large_resource_version(asked: u64, current: u64) -> Failure {
        let mut f = Failure::new(
            504,
            "Timeout",
            format!("Timeout: Too large resource version: {asked}, current: {current}"),
        );
        f.details = Some(Box::new(Details {
            causes: vec![Cause {
                reason: "ResourceVersionTooLarge",
                message: "Too large resource version".to_owned(),
                field: String::new(),
            }],
            retry_after_seconds: 1,
            ..Details::default()
        }));
        f
    }

    /// 504: the server gave up waiting.
    pub fn timeout(message: impl Into<String>) -> Failure {
        Failure::new(504, "Timeout", message)
    }

    /// 429: try again after so many seconds.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Failure {
        let mut f = Failure::new(429, "TooManyRequests", message);
        f.details = Some(Box::new(Details { retry_after_seconds, ..Details::default() }));
        f
    }

    /// 413: the body is over the limit.
    pub fn too_large(message: impl Into<String>) -> Failure {
        Failure::new(413, "RequestEntityTooLarge", message)
    }

    /// 503: something that is needed is not there now.
    pub fn unavailable(message: impl Into<String>) -> Failure {
        Failure::new(503, "ServiceUnavailable", message)
    }

    /// 500: ours is the fault.
    pub fn internal(message: impl Into<String>) -> Failure {
        let message = message.into();
        let mut f = Failure::new(500, "InternalError", format!("Internal error occurred: {message}"));
        f.details = Some(Box::new(Details {
            causes: vec![Cause { reason: "InternalError", message, field: String::new() }],
            ..Details::default()
        }));
        f
    }

    /// The whole `v1` Status object.
    pub fn to_value(&self) -> Value {
        let mut out = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if let Some(d) = &self.details {
            out["details"] = d.to_value();
        }
        out
    }
}

impl Details {
    fn to_value(&self) -> Value {
        let mut out = serde_json::Map::new();
        for (key, text) in
            [("name", &self.name), ("group", &self.group), ("kind", &self.kind), ("uid", &self.uid)]
        {
            if !text.is_empty() {
                out.insert(key.to_owned(), Value::from(text.as_str()));
            }
        }
        if !self.causes.is_empty() {
            let causes = self.causes.iter().map(|c| {
                let mut v = json!({"reason": c.reason, "message": c.message});
                if !c.field.is_empty() {
                    v["field"] = Value::from(c.field.as_str());
                }
                v
            });
            out.insert("causes".to_owned(), causes.collect());
        }
        if self.retry_after_seconds > 0 {
            out.insert("retryAfterSeconds".to_owned(), Value::from(self.retry_after_seconds));
        }
        Value::Object(out)
    }
}

/// The Status that answers a finished delete.
pub fn deleted(row: &Resource, name: &str, uid: &str) -> Value {
    let details = Details {
        name: name.to_owned(),
        group: row.group.to_owned(),
        kind: row.plural.to_owned(),
        uid: uid.to_owned(),
        ..Details::default()
    };
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details.to_value(),
    })
}

/// The Status that answers a create-only subresource, like a binding.
pub fn created() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::find;

    #[test]
    fn messages_are_as_clients_know_them() {
        let deploy = find("apps", "v1", "deployments").expect("row");
        assert_eq!(Failure::not_found(deploy, "web").message, "deployments.apps \"web\" not found");
        let e = FieldError {
            kind: ErrorKind::Required,
            field: "spec.selector".into(),
            value: None,
            detail: String::new(),
        };
        let f = Failure::invalid(deploy, "web", std::slice::from_ref(&e));
        assert_eq!(f.message, "Deployment.apps \"web\" is invalid: spec.selector: Required value");
        let two = Failure::invalid(deploy, "web", &[e.clone(), e]);
        assert!(two.message.contains("[spec.selector: Required value, spec.selector: Required value]"));
        let v = two.to_value();
        assert_eq!(v["details"]["causes"][0]["reason"], "FieldValueRequired");
        assert_eq!(v["code"], 422);
    }
}
