//! Patches: JSON patch, merge patch, strategic merge patch; and the scale subresource.
//!
//! Guarantees: the original is never changed; a patch cannot make the result grow beyond what its own body and a few
//! megabytes of copies can.
//! Assumes: the body's size was bounded by who read it.
//! Caveat: results are unchecked: they go through [`crate::schema::check`] next.

mod scale;
mod strategic;

pub use scale::{scale_of, set_scale};
pub use strategic::merge as strategic_merge;

use serde_json::Value;

use crate::schema;
use crate::status::Failure;

/// How a patch is to be read; from the request's content type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    /// `application/json-patch+json`, RFC 6902.
    Json,
    /// `application/merge-patch+json`, RFC 7386.
    Merge,
    /// `application/strategic-merge-patch+json`.
    Strategic,
    /// `application/apply-patch+yaml`, server-side apply; not done by [`apply`].
    Apply,
}

/// The content types a PATCH may have.
pub const CONTENT_TYPES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

impl PatchType {
    /// From a content type, parameters ignored.
    pub fn from_content_type(text: &str) -> Option<PatchType> {
        match text.split(';').next().unwrap_or("").trim() {
            "application/json-patch+json" => Some(PatchType::Json),
            "application/merge-patch+json" => Some(PatchType::Merge),
            "application/strategic-merge-patch+json" => Some(PatchType::Strategic),
            "application/apply-patch+yaml" => Some(PatchType::Apply),
            _ => None,
        }
    }
}

/// More operations than this are refused, as upstream does.
const MOST_OPERATIONS: usize = 10_000;
/// What the `copy` operations of one patch may copy in all, bytes of JSON.
const MOST_COPIED: usize = 3 << 20;

/// Applies a patch body to an object of the named definition.
pub fn apply(definition: &str, kind: PatchType, original: &Value, patch: &[u8]) -> Result<Value, Failure> {
    let parse = || {
        serde_json::from_slice::<Value>(patch)
            .map_err(|e| Failure::bad_request(format!("error decoding patch: {e}")))
    };
    match kind {
        PatchType::Json => {
            let operations: json_patch::Patch = serde_json::from_slice(patch)
                .map_err(|e| Failure::bad_request(format!("error decoding patch: {e}")))?;
            json(original, &operations)
        }
        PatchType::Merge => {
            let patch = parse()?;
            if !patch.is_object() {
                return Err(Failure::bad_request("a merge patch must be a JSON object"));
            }
            let mut out = original.clone();
            json_patch::merge(&mut out, &patch);
            Ok(out)
        }
        PatchType::Strategic => {
            let Some(def) = schema::definition(definition) else {
                return Err(Failure::new(
                    415,
                    "UnsupportedMediaType",
                    format!(
                        "strategic merge patch is not supported for {definition}: nothing is known of its lists; use application/merge-patch+json"
                    ),
                ));
            };
            strategic::merge(def, original, parse()?)
        }
        PatchType::Apply => Err(Failure::internal("server-side apply is no plain patch")),
    }
}

fn json(original: &Value, patch: &json_patch::Patch) -> Result<Value, Failure> {
    if patch.0.len() > MOST_OPERATIONS {
        return Err(Failure::too_large(format!(
            "the allowed maximum operations in a JSON patch is {MOST_OPERATIONS}, got {}",
            patch.0.len()
        )));
    }
    let mut out = original.clone();
    let mut copied = 0;
    for operation in &patch.0 {
        if let json_patch::PatchOperation::Copy(copy) = operation {
            copied += copy.from.resolve(&out).map_or(0, |v| v.to_string().len());
            if copied > MOST_COPIED {
                return Err(Failure::too_large(format!(
                    "the copy operations of a JSON patch may copy at most {MOST_COPIED} bytes"
                )));
            }
        }
        json_patch::patch(&mut out, std::slice::from_ref(operation))
            .map_err(|e| unprocessable(e.to_string()))?;
    }
    Ok(out)
}

/// 422 for a patch that does not fit its object.
fn unprocessable(why: impl std::fmt::Display) -> Failure {
    Failure::new(
        422,
        "Invalid",
        format!(
            "the server rejected our request due to an error in our request: the patch cannot be applied: {why}"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(kind: PatchType, original: Value, patch: &str) -> Result<Value, Failure> {
        apply("io.k8s.api.core.v1.ConfigMap", kind, &original, patch.as_bytes())
    }

    #[test]
    fn json_patches_are_bounded() {
        let o = json!({"data": {"a": "1"}});
        let ok = run(
            PatchType::Json,
            o.clone(),
            r#"[{"op":"test","path":"/data/a","value":"1"},{"op":"add","path":"/data/b","value":"2"}]"#,
        );
        assert_eq!(ok.expect("applied"), json!({"data": {"a": "1", "b": "2"}}));
        let f = run(PatchType::Json, o.clone(), r#"[{"op":"test","path":"/data/a","value":"2"}]"#)
            .expect_err("test fails");
        assert_eq!(f.code, 422);
        let bomb: Vec<Value> =
            (0..40).map(|i| json!({"op": "copy", "from": "", "path": format!("/x{i}")})).collect();
        let f = run(PatchType::Json, o.clone(), &Value::from(bomb).to_string()).expect_err("too much");
        assert_eq!(f.code, 413);
        let many = vec![json!({"op": "test", "path": "", "value": 1}); MOST_OPERATIONS + 1];
        assert_eq!(run(PatchType::Json, o, &Value::from(many).to_string()).expect_err("too many").code, 413);
    }

    #[test]
    fn merge_patches() {
        let o = json!({"data": {"a": "1", "b": "2"}});
        assert_eq!(
            run(PatchType::Merge, o.clone(), r#"{"data":{"a":null,"c":"3"}}"#).expect("applied"),
            json!({"data": {"b": "2", "c": "3"}})
        );
        assert_eq!(run(PatchType::Merge, o.clone(), "[]").expect_err("no object").code, 400);
        assert_eq!(run(PatchType::Merge, o.clone(), "{").expect_err("no JSON").code, 400);
        let f = apply("io.example.Widget", PatchType::Strategic, &o, b"{}").expect_err("unknown kind");
        assert!(f.message.contains("merge-patch"), "{f}");
    }
}
