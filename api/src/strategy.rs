//! What the server decides about an object on its way into the store.
//!
//! Guarantees: a plain write never changes what a subresource owns, and a subresource's write nothing else; a change of
//! the spec moves `metadata.generation`.
//! Assumes: defaults were applied to both the new and the stored object. `uid`, `creationTimestamp`,
//! `resourceVersion` and `managedFields` are the caller's.

use serde_json::{Map, Value, json};

use crate::meta::{self, child_mut, object_mut};
use crate::quantity::Quantity;
use crate::registry::Resource;

/// Readies a new object for storing: drops what a client may not set (status), sets what every new object of the
/// kind has (phase, QoS class, finalizers, generation).
pub fn prepare_create(row: &Resource, object: &mut Value) {
    meta::set(object, "deletionTimestamp", Value::Null);
    meta::set(object, "deletionGracePeriodSeconds", Value::Null);
    meta::set(object, "selfLink", Value::Null);
    if row.has_status() && !matches!(row.kind, "Node") {
        object_mut(object).remove("status");
    }
    meta::set(object, "generation", if row.generation { Value::from(1) } else { Value::Null });
    match (row.group, row.kind) {
        ("", "Pod") => {
            let class = qos_class(&object["spec"]);
            object["status"] = json!({"phase": "Pending", "qosClass": class});
        }
        ("", "Namespace") => {
            object["status"] = json!({"phase": "Active"});
            let spec = object_mut(child_mut(object, "spec"));
            let list = spec.entry("finalizers").or_insert_with(|| json!([]));
            if let Some(list) = list.as_array_mut()
                && !list.iter().any(|f| f == "kubernetes")
            {
                list.push(Value::from("kubernetes"));
            }
        }
        ("", "Service") => object["status"] = json!({"loadBalancer": {}}),
        ("apps", "Deployment") => object["status"] = json!({}),
        ("apps", "ReplicaSet") => object["status"] = json!({"replicas": 0}),
        ("", "Node") => {
            // A kubelet may register with its status.
            object_mut(child_mut(object, "spec"));
            object_mut(child_mut(object, "status"));
        }
        _ => {}
    }
}

/// Metadata that no update changes.
const FIXED: &[&str] = &[
    "name",
    "namespace",
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generateName",
    "generation",
];

/// Readies an update: keeps the stored status where a status subresource exists, keeps immutable metadata where the
/// new object leaves it out, counts the generation.
pub fn prepare_update(row: &Resource, object: &mut Value, stored: &Value) {
    keep_metadata(object, stored);
    if row.has_status() {
        keep(object, stored, "status");
    }
    match (row.group, row.kind) {
        // Finalizers of the spec belong to the finalize subresource.
        ("", "Namespace") => keep(object, stored, "spec"),
        ("", "Pod") => {
            let class = qos_class(&object["spec"]);
            if !object["status"].is_null() {
                object["status"]["qosClass"] = Value::from(class);
            }
        }
        _ => {}
    }
    count_generation(row, object, stored);
}

/// Readies an update through a subresource (`status`, `ephemeralcontainers`, `resize`, `finalize`): everything but
/// what the subresource owns comes from the stored object.
pub fn prepare_subresource_update(row: &Resource, subresource: &str, object: &mut Value, stored: &Value) {
    let new = std::mem::replace(object, stored.clone());
    // The caller checks this one against the stored object.
    if let Some(rv) = meta::at(&new, &["metadata", "resourceVersion"]) {
        meta::set(object, "resourceVersion", rv.clone());
    }
    match (row.kind, subresource) {
        (_, "status") => {
            keep(object, &new, "status");
            // Conditions come with labels and annotations of controllers; upstream lets metadata pass but what is fixed.
            if let Some(metadata) = new.get("metadata") {
                let mut taken = metadata.clone();
                for key in FIXED {
                    object_mut(&mut taken).remove(*key);
                }
                for key in ["labels", "annotations", "finalizers", "managedFields"] {
                    if !row_keeps_metadata(row)
                        && let Some(v) = taken.get(key)
                    {
                        meta::set(object, key, v.clone());
                    }
                }
            }
            if row.kind == "Pod" {
                let class = qos_class(&object["spec"]);
                object_mut(child_mut(object, "status")).entry("qosClass").or_insert(Value::from(class));
            }
        }
        ("Pod", "ephemeralcontainers") => {
            let list = meta::at(&new, &["spec", "ephemeralContainers"]).cloned().unwrap_or(Value::Null);
            put(object, "spec", "ephemeralContainers", list);
        }
        ("Pod", "resize") => resize(object, &new),
        ("Namespace", "finalize") => {
            let list = meta::at(&new, &["spec", "finalizers"]).cloned().unwrap_or(Value::Null);
            put(object, "spec", "finalizers", list);
        }
        _ => *object = new,
    }
    count_generation(row, object, stored);
}

/// Deployments and replica sets take labels and annotations only through the object itself.
fn row_keeps_metadata(row: &Resource) -> bool {
    matches!(row.kind, "Deployment" | "ReplicaSet")
}

/// Takes the containers' resources and resize policies.
fn resize(object: &mut Value, new: &Value) {
    for list in ["containers", "initContainers"] {
        let wanted: Vec<Value> =
            meta::at(new, &["spec", list]).and_then(Value::as_array).cloned().unwrap_or_default();
        let Some(Value::Array(containers)) = object["spec"].get_mut(list) else { continue };
        for c in containers {
            let Some(w) = wanted.iter().find(|w| w["name"] == c["name"]) else { continue };
            for key in ["resources", "resizePolicy"] {
                if let Some(v) = w.get(key) {
                    c[key] = v.clone();
                }
            }
        }
    }
}

fn keep_metadata(object: &mut Value, stored: &Value) {
    let Some(old) = stored.get("metadata").and_then(Value::as_object) else { return };
    let metadata = meta::metadata_mut(object);
    for key in FIXED {
        let deletion = key.starts_with("deletion") || *key == "generation" || *key == "creationTimestamp";
        match old.get(*key) {
            // What names the object stays if the client left it out; a different value is for validation to refuse.
            Some(v) if deletion || !metadata.contains_key(*key) => {
                drop(metadata.insert((*key).to_owned(), v.clone()))
            }
            None if deletion => drop(metadata.remove(*key)),
            _ => {}
        }
    }
}

fn keep(object: &mut Value, from: &Value, key: &str) {
    match from.get(key) {
        Some(v) => object[key] = v.clone(),
        None => drop(object_mut(object).remove(key)),
    }
}

fn put(object: &mut Value, parent: &str, key: &str, value: Value) {
    let parent = object_mut(child_mut(object, parent));
    if value.is_null() {
        parent.remove(key);
    } else {
        parent.insert(key.to_owned(), value);
    }
}

/// The generation moves with the spec, and when deletion begins (the caller's part: [`begin_deletion`]).
fn count_generation(row: &Resource, object: &mut Value, stored: &Value) {
    let before = meta::generation(stored);
    if !row.generation {
        return;
    }
    let annotations = |o: &Value| meta::at(o, &["metadata", "annotations"]).cloned();
    let changed = object.get("spec") != stored.get("spec")
        // Revision and progress annotations are part of a deployment's desired state upstream.
        || (row.kind == "Deployment" && annotations(object) != annotations(stored));
    let now = if changed { before + 1 } else { before };
    meta::set(object, "generation", now.max(1));
}

/// Marks an object as being deleted, `grace` seconds from `now`.
pub fn begin_deletion(row: &Resource, object: &mut Value, now: jiff::Timestamp, grace: i64) {
    let at = now.saturating_add(jiff::SignedDuration::from_secs(grace)).unwrap_or(now);
    meta::set(object, "deletionTimestamp", meta::time(at));
    meta::set(object, "deletionGracePeriodSeconds", grace);
    if row.generation {
        let next = meta::generation(object) + 1;
        meta::set(object, "generation", next);
    }
    if row.kind == "Namespace" {
        object_mut(child_mut(object, "status")).insert("phase".to_owned(), Value::from("Terminating"));
    }
}

/// The grace period a delete of this object gets when the request names none, in seconds; `None` for kinds that
/// go at once.
pub fn default_grace(row: &Resource, object: &Value) -> Option<i64> {
    if (row.group, row.kind) != ("", "Pod") {
        return None;
    }
    // Nothing runs yet, or nothing any more: no reason to wait.
    let phase = meta::str_at(object, &["status", "phase"]);
    if meta::str_at(object, &["spec", "nodeName"]).is_empty() || matches!(phase, "Succeeded" | "Failed") {
        return Some(0);
    }
    Some(meta::at(object, &["spec", "terminationGracePeriodSeconds"]).and_then(Value::as_i64).unwrap_or(30))
}

/// `Guaranteed`, `Burstable` or `BestEffort`, from the requests and limits of cpu and memory.
pub fn qos_class(spec: &Value) -> &'static str {
    const COUNTED: [&str; 2] = ["cpu", "memory"];
    let amount = |c: &Value, part: &str, name: &str| {
        let q = Quantity::of(meta::at(c, &["resources", part, name]));
        (!q.is_zero()).then_some(q)
    };
    if spec.get("resources").is_some_and(|r| r.as_object().is_some_and(|r| !r.is_empty())) {
        return class_of(&[spec], amount, &COUNTED);
    }
    let containers: Vec<&Value> = ["containers", "initContainers"]
        .iter()
        .flat_map(|k| spec.get(*k).and_then(Value::as_array).into_iter().flatten())
        .collect();
    class_of(&containers, amount, &COUNTED)
}

fn class_of(
    parts: &[&Value],
    amount: impl Fn(&Value, &str, &str) -> Option<Quantity>,
    names: &[&str],
) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    for c in parts {
        for name in names {
            let (request, limit) = (amount(c, "requests", name), amount(c, "limits", name));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Sets `apiVersion` and `kind` as the row says, and translates between the two Event spellings when the stored
/// object is of the other one. To be called on everything read from storage.
pub fn present(row: &Resource, object: &mut Value) {
    if row.kind == "Event" {
        let core = object.get("involvedObject").is_some();
        match (row.group, core) {
            ("", false) => rename(object, CORE_TO_NEW, true),
            ("events.k8s.io", true) => rename(object, CORE_TO_NEW, false),
            _ => {}
        }
    }
    let fields = object_mut(object);
    fields.insert("apiVersion".to_owned(), Value::from(row.api_version()));
    fields.insert("kind".to_owned(), Value::from(row.kind));
}

/// Fields of `v1` Event and what `events.k8s.io/v1` calls them.
const CORE_TO_NEW: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

fn rename(object: &mut Value, names: &[(&str, &str)], backwards: bool) {
    let fields: &mut Map<String, Value> = object_mut(object);
    for (core, new) in names {
        let (from, to) = if backwards { (new, core) } else { (core, new) };
        if let Some(v) = fields.remove(*from) {
            fields.insert((*to).to_owned(), v);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::find_kind;

    #[test]
    fn plain_writes_keep_the_status() {
        let row = find_kind("apps", "v1", "Deployment").expect("row");
        let stored = json!({"metadata": {"name": "a", "uid": "u", "generation": 3}, "spec": {"replicas": 1}, "status": {"replicas": 1}});
        let mut new = json!({"metadata": {"name": "a", "generation": 9}, "spec": {"replicas": 2}, "status": {"replicas": 7}});
        prepare_update(row, &mut new, &stored);
        assert_eq!(
            new,
            json!({"metadata": {"name": "a", "uid": "u", "generation": 4}, "spec": {"replicas": 2}, "status": {"replicas": 1}})
        );
        let mut same = stored.clone();
        same["status"] = json!({});
        prepare_update(row, &mut same, &stored);
        assert_eq!(same, stored);
    }

    #[test]
    fn status_writes_keep_the_spec() {
        let row = find_kind("", "v1", "Pod").expect("row");
        let stored = json!({"metadata": {"name": "a", "generation": 1, "resourceVersion": "5"}, "spec": {"nodeName": "n"}, "status": {"phase": "Pending"}});
        let mut new = json!({"metadata": {"name": "b", "resourceVersion": "4"}, "spec": {"nodeName": "x"}, "status": {"phase": "Running"}});
        prepare_subresource_update(row, "status", &mut new, &stored);
        assert_eq!(
            new,
            json!({"metadata": {"name": "a", "generation": 1, "resourceVersion": "4"}, "spec": {"nodeName": "n"}, "status": {"phase": "Running", "qosClass": "BestEffort"}})
        );
    }

    #[test]
    fn new_pods_are_pending() {
        let row = find_kind("", "v1", "Pod").expect("row");
        let mut pod = json!({"metadata": {"name": "a"}, "status": {"phase": "Running"}, "spec": {"containers": [
            {"resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}}}]}});
        prepare_create(row, &mut pod);
        assert_eq!(pod["status"], json!({"phase": "Pending", "qosClass": "Guaranteed"}));
        pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!("500m");
        assert_eq!(qos_class(&pod["spec"]), "Burstable");
        assert_eq!(qos_class(&json!({"containers": [{}]})), "BestEffort");
    }

    #[test]
    fn events_have_two_spellings() {
        let new = find_kind("events.k8s.io", "v1", "Event").expect("row");
        let core = find_kind("", "v1", "Event").expect("row");
        let mut e = json!({"apiVersion": "v1", "involvedObject": {"name": "p"}, "message": "m", "count": 2});
        let before = e.clone();
        present(new, &mut e);
        assert_eq!(e["regarding"]["name"], "p");
        assert_eq!((&e["note"], &e["apiVersion"]), (&json!("m"), &json!("events.k8s.io/v1")));
        present(core, &mut e);
        assert_eq!(e["involvedObject"], before["involvedObject"]);
    }
}
