//! Rules of runtime classes.

use serde_json::{Value, json};

use super::errors::{Errors, IMMUTABLE, items};
use super::{container, metadata, scheduling};
use crate::meta;
use crate::names;

pub(super) fn runtime_class(object: &Value, e: &mut Errors) {
    let handler = meta::str_at(object, &["handler"]);
    e.complain("handler", handler, names::dns1123_label(handler));
    if let Some(overhead) = object.get("overhead") {
        overhead_at(overhead.get("podFixed").unwrap_or(&Value::Null), "overhead", e);
    }
    if let Some(where_to) = object.get("scheduling") {
        metadata::labels(where_to, "nodeSelector", "scheduling", e);
        let mut seen: Vec<&Value> = Vec::new();
        for (field, toleration) in items(where_to, "scheduling", "tolerations") {
            scheduling::toleration(toleration, &field, e);
            if seen.contains(&toleration) {
                e.duplicate(&field, toleration.clone());
            }
            seen.push(toleration);
        }
    }
}

/// Amounts that a pod takes beside its containers.
pub(super) fn overhead_at(amounts: &Value, path: &str, e: &mut Errors) {
    container::resources(&json!({ "limits": amounts }), path, e);
}

pub(super) fn update(object: &Value, stored: &Value, e: &mut Errors) {
    let handler = meta::str_at(object, &["handler"]);
    if handler != meta::str_at(stored, &["handler"]) {
        e.invalid("handler", handler, IMMUTABLE);
    }
}
