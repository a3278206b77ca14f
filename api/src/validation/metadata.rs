//! Rules of `metadata`, the same for all kinds but for names.

use serde_json::Value;

use super::errors::{Errors, IMMUTABLE, entries, flag, items, text};
use crate::names::{self, Complaints};
use crate::registry::Resource;
use crate::status::Failure;

/// All annotations of an object together, bytes.
const MOST_ANNOTATIONS: usize = 256 << 10;

/// What is wrong with a name for this kind.
pub fn name_complaints(row: &Resource, name: &str) -> Complaints {
    match (row.group, row.kind) {
        ("", "Namespace") => names::dns1123_label(name),
        ("", "Service") => names::dns1035_label(name),
        _ => names::dns1123_subdomain(name),
    }
}

/// Refuses a name from a request's path that no object can have.
pub fn valid_name(name: &str) -> Result<(), Failure> {
    match names::path_segment(name).into_iter().next() {
        None => Ok(()),
        Some(why) => {
            Err(Failure::bad_request(format!("the name of the object {name:?} is not valid: {why}")))
        }
    }
}

pub(super) fn create(row: &Resource, object: &Value, e: &mut Errors) {
    let metadata = &object["metadata"];
    let name = text(metadata, "name");
    let base = text(metadata, "generateName");
    if !base.is_empty() {
        let tried = base.strip_suffix('-').unwrap_or(base);
        e.complain("metadata.generateName", base, name_complaints(row, tried));
    }
    if name.is_empty() {
        if base.is_empty() {
            e.required("metadata.name", "name or generateName is required");
        }
    } else {
        e.complain("metadata.name", name, name_complaints(row, name));
    }
    let namespace = text(metadata, "namespace");
    if !row.namespaced && !namespace.is_empty() {
        e.forbidden("metadata.namespace", "not allowed on this type");
    } else if row.namespaced {
        if namespace.is_empty() {
            e.required("metadata.namespace", "");
        } else {
            e.complain("metadata.namespace", namespace, names::dns1123_label(namespace));
        }
    }
    common(metadata, "metadata", e);
}

pub(super) fn update(row: &Resource, object: &Value, stored: &Value, e: &mut Errors) {
    let (new, old) = (&object["metadata"], &stored["metadata"]);
    for key in ["name", "namespace", "uid", "creationTimestamp"] {
        if new.get(key) != old.get(key) {
            e.invalid(&format!("metadata.{key}"), new.get(key).cloned().unwrap_or_default(), IMMUTABLE);
        }
    }
    // Nothing may hold on to an object that is already going away.
    if old.get("deletionTimestamp").is_some() {
        let had: Vec<&Value> = items(old, "", "finalizers").into_iter().map(|(_, v)| v).collect();
        let new_ones: Vec<&str> = items(new, "", "finalizers")
            .into_iter()
            .filter(|(_, v)| !had.contains(v))
            .filter_map(|(_, v)| v.as_str())
            .collect();
        if !new_ones.is_empty() {
            e.forbidden(
                "metadata.finalizers",
                &format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers {new_ones:?}"
                ),
            );
        }
    }
    let _ = row;
    common(new, "metadata", e);
}

/// Labels, annotations, finalizers and owners, also of templates.
pub(super) fn common(metadata: &Value, path: &str, e: &mut Errors) {
    labels(metadata, "labels", path, e);
    let field = format!("{path}.annotations");
    let mut size = 0;
    for (key, value) in entries(metadata, "annotations") {
        e.complain(&field, key, names::qualified_name(&key.to_lowercase()));
        size += key.len() + value.as_str().unwrap_or("").len();
    }
    if size > MOST_ANNOTATIONS {
        e.too_long(&field, MOST_ANNOTATIONS);
    }
    let field = format!("{path}.finalizers");
    for (_, f) in items(metadata, path, "finalizers") {
        let f = f.as_str().unwrap_or("");
        let complaints = names::qualified_name(f);
        let bare = complaints.is_empty() && !f.contains('/');
        e.complain(&field, f, complaints);
        if bare && !matches!(f, "orphan" | "foregroundDeletion" | "kubernetes") {
            e.invalid(&field, f, "name is neither a standard finalizer name nor is it fully qualified");
        }
    }
    owners(metadata, path, e);
}

fn owners(metadata: &Value, path: &str, e: &mut Errors) {
    let mut controllers = Vec::new();
    for (field, owner) in items(metadata, path, "ownerReferences") {
        for key in ["apiVersion", "kind", "name", "uid"] {
            if text(owner, key).is_empty() {
                e.invalid(&format!("{field}.{key}"), text(owner, key), "must not be empty");
            }
        }
        if text(owner, "kind") == "Event" {
            e.invalid(&field, "Event", "Event is disallowed from being an owner");
        }
        if flag(owner, "controller") {
            controllers.push(format!("{}/{}", text(owner, "kind"), text(owner, "name")));
        }
    }
    if let [first, second, ..] = controllers.as_slice() {
        e.invalid(
            &format!("{path}.ownerReferences"),
            Value::from(controllers.clone()),
            &format!(
                "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {second}"
            ),
        );
    }
}

/// A map of labels.
pub(super) fn labels(object: &Value, key: &str, path: &str, e: &mut Errors) {
    let field = format!("{path}.{key}");
    for (name, value) in entries(object, key) {
        e.complain(&field, name, names::qualified_name(name));
        let value = value.as_str().unwrap_or("");
        e.complain(&field, value, names::label_value(value));
    }
}

/// A `LabelSelector` object.
pub(super) fn selector(selector: &Value, path: &str, e: &mut Errors) {
    labels(selector, "matchLabels", path, e);
    for (field, x) in items(selector, path, "matchExpressions") {
        let key = text(x, "key");
        e.complain(&format!("{field}.key"), key, names::qualified_name(key));
        let values = items(x, &field, "values");
        match text(x, "operator") {
            "In" | "NotIn" if values.is_empty() => {
                e.required(
                    &format!("{field}.values"),
                    "must be specified when `operator` is 'In' or 'NotIn'",
                );
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                e.forbidden(
                    &format!("{field}.values"),
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                );
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => e.invalid(&format!("{field}.operator"), other, "not a valid selector operator"),
        }
        for (f, v) in values {
            let v = v.as_str().unwrap_or("");
            e.complain(&f, v, names::label_value(v));
        }
    }
}
