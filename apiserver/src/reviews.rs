//! Reviews: who am I, may I, whose token is this. Answered and forgotten.

use std::sync::Arc;

use api::{meta, status::Failure};
use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::{
    app::App,
    authn,
    authz::{self, Action, Decision, User},
    dispatch::Call,
    read, respond,
    respond::Answer,
    write,
};

/// POST of a review.
pub(crate) async fn review(app: &Arc<App>, call: &Call, body: Bytes) -> Result<Answer, Failure> {
    let row = call.location.row;
    call.query.dry_run()?;
    let mut object = write::decode(call, row.schema, body)?;
    object["apiVersion"] = json!(row.api_version());
    object["kind"] = json!(row.kind);
    meta::metadata_mut(&mut object);
    let status = match row.kind {
        "SelfSubjectReview" => json!({"userInfo": user_info(&call.user)}),
        "TokenReview" => {
            app.fresh().await?;
            token(app, &object["spec"])?
        }
        "SelfSubjectAccessReview" => access(&call.user, &object["spec"])?,
        "SubjectAccessReview" | "LocalSubjectAccessReview" => {
            let namespace = meta::str_at(&object, &["spec", "resourceAttributes", "namespace"]);
            if row.kind.starts_with("Local") && namespace != call.location.namespace {
                return Err(Failure::bad_request(
                    "spec.resourceAttributes.namespace must match the namespace of the request",
                ));
            }
            access(&subject(&object["spec"])?, &object["spec"])?
        }
        "SelfSubjectRulesReview" => json!({
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
            "incomplete": false,
        }),
        _ => return Err(Failure::no_such_path()),
    };
    object["status"] = status;
    Ok(respond::object(201, read::encode(&object), call.accepted.format, call.gzip))
}

fn user_info(user: &User) -> Value {
    let mut out = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        out["uid"] = json!(user.uid);
    }
    if !user.extra.is_empty() {
        let extra: Map<String, Value> = user.extra.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
        out["extra"] = Value::Object(extra);
    }
    out
}

fn token(app: &App, spec: &Value) -> Result<Value, Failure> {
    let token = meta::str_at(spec, &["token"]);
    if token.is_empty() {
        return Err(Failure::bad_request("spec.token: Required value: a token to review"));
    }
    Ok(match authn::token_user(app, token, &strings(spec.get("audiences"))) {
        Ok((user, audiences)) => {
            json!({"authenticated": true, "user": user_info(&user), "audiences": audiences})
        }
        Err(why) => json!({"user": {}, "error": format!("the token does not count: {why}")}),
    })
}

fn subject(spec: &Value) -> Result<User, Failure> {
    let name = meta::str_at(spec, &["user"]).to_owned();
    let groups = strings(spec.get("groups"));
    if name.is_empty() && groups.is_empty() {
        return Err(Failure::bad_request(
            "spec.user: Invalid value: at least one of user or group must be specified",
        ));
    }
    Ok(User { name, groups, uid: meta::str_at(spec, &["uid"]).to_owned(), extra: Vec::new() })
}

fn strings(list: Option<&Value>) -> Vec<String> {
    let list = list.and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The same decision that requests meet.
fn access(user: &User, spec: &Value) -> Result<Value, Failure> {
    let text = |part: &str, key: &str| meta::str_at(spec, &[part, key]).to_owned();
    let verb = if spec.get("resourceAttributes").is_some() {
        text("resourceAttributes", "verb")
    } else {
        text("nonResourceAttributes", "verb")
    };
    let r = |key: &str| text("resourceAttributes", key);
    let (group, resource, subresource, namespace, name) =
        (r("group"), r("resource"), r("subresource"), r("namespace"), r("name"));
    let path = text("nonResourceAttributes", "path");
    let action = match (spec.get("resourceAttributes"), spec.get("nonResourceAttributes")) {
        (Some(_), None) => Action::Resource {
            verb: &verb,
            group: &group,
            resource: &resource,
            subresource: &subresource,
            namespace: &namespace,
            name: &name,
        },
        (None, Some(_)) => Action::Path { verb: &verb, path: &path },
        _ => {
            return Err(Failure::bad_request(
                "exactly one of nonResourceAttributes or resourceAttributes must be specified",
            ));
        }
    };
    Ok(match authz::authorize(user, &action) {
        Decision::Allow => {
            json!({"allowed": true, "reason": "whoever this cluster knows may do everything for now"})
        }
        Decision::Unauthenticated => {
            json!({"allowed": false, "reason": "the user is not in system:authenticated"})
        }
        Decision::Deny(why) => json!({"allowed": false, "reason": why}),
    })
}
