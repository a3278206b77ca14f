//! Reading and writing `metadata`.
//!
//! Guarantees: readers never panic, whatever the object's shape; an absent field reads as empty.

use serde_json::{Map, Value};

/// A string at a path of keys, or the empty string.
pub fn str_at<'a>(object: &'a Value, path: &[&str]) -> &'a str {
    at(object, path).and_then(Value::as_str).unwrap_or("")
}

/// The value at a path of keys.
pub fn at<'a>(object: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(object, |v, key| v.get(key))
}

/// `metadata.name`.
pub fn name(object: &Value) -> &str {
    str_at(object, &["metadata", "name"])
}

/// `metadata.namespace`.
pub fn namespace(object: &Value) -> &str {
    str_at(object, &["metadata", "namespace"])
}

/// `metadata.uid`.
pub fn uid(object: &Value) -> &str {
    str_at(object, &["metadata", "uid"])
}

/// `metadata.resourceVersion`.
pub fn resource_version(object: &Value) -> &str {
    str_at(object, &["metadata", "resourceVersion"])
}

/// `metadata.generation`, 0 when absent.
pub fn generation(object: &Value) -> i64 {
    at(object, &["metadata", "generation"]).and_then(Value::as_i64).unwrap_or(0)
}

/// `metadata.labels`, or null.
pub fn labels(object: &Value) -> &Value {
    at(object, &["metadata", "labels"]).unwrap_or(&Value::Null)
}

/// Whether `metadata.deletionTimestamp` is set.
pub fn is_deleting(object: &Value) -> bool {
    at(object, &["metadata", "deletionTimestamp"]).is_some_and(|v| !v.is_null())
}

/// `metadata.finalizers`.
pub fn finalizers(object: &Value) -> Vec<&str> {
    at(object, &["metadata", "finalizers"])
        .and_then(Value::as_array)
        .map(|a| a.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default()
}

/// One owner of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner<'a> {
    /// `apiVersion` of the owner.
    pub api_version: &'a str,
    /// Kind of the owner.
    pub kind: &'a str,
    /// Name of the owner, in the object's namespace or cluster-scoped.
    pub name: &'a str,
    /// UID of the owner.
    pub uid: &'a str,
    /// Whether it is the managing controller.
    pub controller: bool,
    /// Whether deleting the owner in the foreground waits for this object.
    pub blocks_deletion: bool,
}

/// `metadata.ownerReferences`.
pub fn owners(object: &Value) -> Vec<Owner<'_>> {
    let flag = |o: &Value, key| o.get(key).and_then(Value::as_bool).unwrap_or(false);
    at(object, &["metadata", "ownerReferences"])
        .and_then(Value::as_array)
        .map(|list| {
            list.iter()
                .map(|o| Owner {
                    api_version: str_at(o, &["apiVersion"]),
                    kind: str_at(o, &["kind"]),
                    name: str_at(o, &["name"]),
                    uid: str_at(o, &["uid"]),
                    controller: flag(o, "controller"),
                    blocks_deletion: flag(o, "blockOwnerDeletion"),
                })
                .collect()
        })
        .unwrap_or_default()
}

/// The owner that is the managing controller.
pub fn controller_of(object: &Value) -> Option<Owner<'_>> {
    owners(object).into_iter().find(|o| o.controller)
}

/// `metadata` for writing; made an object when it is absent or of another type.
pub fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    object_mut(child_mut(object, "metadata"))
}

/// The value as an object; anything else is replaced by an empty one.
pub fn object_mut(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("made an object above")
}

/// The child under `key`, made null when absent.
pub fn child_mut<'a>(value: &'a mut Value, key: &str) -> &'a mut Value {
    object_mut(value).entry(key).or_insert(Value::Null)
}

/// Sets `metadata.{key}`, or removes it when the value is null.
pub fn set(object: &mut Value, key: &str, value: impl Into<Value>) {
    let value = value.into();
    let meta = metadata_mut(object);
    if value.is_null() {
        meta.remove(key);
    } else {
        meta.insert(key.to_owned(), value);
    }
}

/// Adds a finalizer unless it is there; tells whether it was added.
pub fn add_finalizer(object: &mut Value, finalizer: &str) -> bool {
    if finalizers(object).contains(&finalizer) {
        return false;
    }
    let list = metadata_mut(object).entry("finalizers").or_insert_with(|| Value::Array(Vec::new()));
    match list {
        Value::Array(a) => a.push(Value::from(finalizer)),
        other => *other = Value::from(vec![finalizer]),
    }
    true
}

/// Removes a finalizer; tells whether it was there.
pub fn remove_finalizer(object: &mut Value, finalizer: &str) -> bool {
    let Some(Value::Array(list)) = metadata_mut(object).get_mut("finalizers") else { return false };
    let before = list.len();
    list.retain(|f| f.as_str() != Some(finalizer));
    let removed = list.len() != before;
    if list.is_empty() {
        metadata_mut(object).remove("finalizers");
    }
    removed
}

/// A time as metadata has it: UTC, whole seconds, `2006-01-02T15:04:05Z`.
pub fn time(t: jiff::Timestamp) -> String {
    t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A time with microseconds, as leases and events have it: `2006-01-02T15:04:05.000000Z`.
pub fn micro_time(t: jiff::Timestamp) -> String {
    t.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// `metadata.creationTimestamp`.
pub fn created(object: &Value) -> Option<jiff::Timestamp> {
    str_at(object, &["metadata", "creationTimestamp"]).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn odd_shapes_read_as_empty_and_become_objects() {
        let mut v = json!("text");
        assert_eq!(name(&v), "");
        set(&mut v, "name", "a");
        assert_eq!(v, json!({"metadata": {"name": "a"}}));
        assert!(add_finalizer(&mut v, "x/y"));
        assert!(!add_finalizer(&mut v, "x/y"));
        assert!(remove_finalizer(&mut v, "x/y"));
        assert_eq!(v, json!({"metadata": {"name": "a"}}));
    }
}
