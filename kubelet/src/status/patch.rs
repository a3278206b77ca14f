//! The smallest strategic merge patch from one status to another.
//!
//! Guarantees: only fields that the kubelet owns are mentioned; other writers' conditions survive a
//! write that races with theirs, because conditions are merged by their type.

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Map, Value, json};

/// Fields of a pod's status that are the kubelet's.
const OWNED: &[&str] = &[
    "phase",
    "reason",
    "message",
    "qosClass",
    "startTime",
    "hostIP",
    "hostIPs",
    "podIP",
    "podIPs",
    "conditions",
    "containerStatuses",
    "initContainerStatuses",
    "observedGeneration",
];

/// Lists that the apiserver merges by a key: list, key.
const KEYED: &[(&str, &str)] = &[("conditions", "type"), ("podIPs", "ip"), ("hostIPs", "ip")];

/// The patch that turns `old` into `new`; `None` if they are the same. `uid` guards against another
/// pod of the same name.
pub fn status(uid: &str, old: &PodStatus, new: &PodStatus) -> Option<Value> {
    let patch = diff(&to_map(old), &to_map(new));
    (!patch.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": patch}))
}

fn to_map(status: &PodStatus) -> Map<String, Value> {
    match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(), // A typed status is always an object.
    }
}

fn diff(old: &Map<String, Value>, new: &Map<String, Value>) -> Map<String, Value> {
    let mut patch = Map::new();
    for field in OWNED {
        match (old.get(*field), new.get(*field)) {
            (None, None) => {}
            (Some(_), None) => {
                patch.insert((*field).into(), Value::Null);
            }
            (before, Some(after)) if before != Some(after) => {
                let key = KEYED.iter().find(|(list, _)| list == field).map(|(_, key)| *key);
                let value = match key {
                    Some(key) => keyed(before, after, key, *field != "conditions"),
                    None => after.clone(),
                };
                if value != json!([]) {
                    patch.insert((*field).into(), value);
                }
            }
            _ => {}
        }
    }
    patch
}

/// The changed entries of a list with a merge key; those that are gone too, if `delete`.
fn keyed(before: Option<&Value>, after: &Value, key: &str, delete: bool) -> Value {
    let list = |v: Option<&Value>| v.and_then(Value::as_array).cloned().unwrap_or_default();
    let (old, new) = (list(before), list(Some(after)));
    let same_key = |a: &Value, b: &Value| a.get(key) == b.get(key);
    let mut patch = Vec::new();
    for entry in &new {
        let Some(was) = old.iter().find(|o| same_key(o, entry)) else {
            patch.push(entry.clone());
            continue;
        };
        if was == entry {
            continue;
        }
        let mut entry = entry.clone();
        if let (Some(fields), Some(was)) = (entry.as_object_mut(), was.as_object()) {
            for gone in was.keys() {
                fields.entry(gone.clone()).or_insert(Value::Null);
            }
        }
        patch.push(entry);
    }
    if delete {
        for gone in old.iter().filter(|o| !new.iter().any(|n| same_key(n, o))) {
            patch.push(json!({"$patch": "delete", key: gone.get(key)}));
        }
    }
    Value::Array(patch)
}
