//! Which replica set has the deployment's template, and what the others are called.

use api::k8s::apps::{Deployment, ReplicaSet};
use kube::ResourceExt;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::write::controller_ref;

/// Label that tells one deployment's replica sets and their pods apart.
pub const HASH_LABEL: &str = "pod-template-hash";
/// Annotation with the number that `kubectl rollout history` shows.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// Annotation with how many replicas the deployment wanted when the set was last scaled.
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// Annotation with how many replicas the deployment allowed then.
pub const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Annotation with the numbers that the set had before a rollback.
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// Written by `kubectl apply` about the deployment itself, so never copied.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The revision number of a set; zero if it has none.
pub fn revision(set: &ReplicaSet) -> i64 {
    set.annotations().get(REVISION).and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Whether the set has the deployment's template, the hash label aside.
pub fn same_template(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let wanted = json!(deployment.spec.as_ref().map(|spec| &spec.template));
    let mut there = json!(set.spec.as_ref().and_then(|spec| spec.template.as_ref()));
    if let Some(labels) = there.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove(HASH_LABEL);
    }
    wanted == there
}

/// A short name for the template, made of letters that spell no words.
pub fn template_hash(deployment: &Deployment) -> String {
    const SAFE: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let template = json!(deployment.spec.as_ref().map(|spec| &spec.template));
    // The collision count sets apart two templates whose names would be the same.
    let collisions = deployment.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
    let digest = Sha256::digest(format!("{template}{collisions}"));
    digest.iter().take(10).map(|byte| char::from(SAFE[usize::from(*byte) % SAFE.len()])).collect()
}

/// The replica set for the deployment's template, with no replicas yet; the rollout scales it.
pub fn new_set(deployment: &Deployment, revision: i64, replicas: i32, most: i32) -> Value {
    let spec = deployment.spec.clone().unwrap_or_default();
    let hash = template_hash(deployment);
    let mut template = json!(spec.template);
    template["metadata"]["labels"][HASH_LABEL] = hash.clone().into();
    let mut selector = json!(spec.selector);
    selector["matchLabels"][HASH_LABEL] = hash.clone().into();
    json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": {
            "name": format!("{}-{hash}", deployment.name_any()), "namespace": deployment.namespace(),
            "labels": template["metadata"]["labels"], "ownerReferences": [controller_ref(deployment)],
            "annotations": annotations(deployment, revision, replicas, most),
        },
        "spec": { "replicas": replicas, "minReadySeconds": spec.min_ready_seconds.unwrap_or(0), "selector": selector,
            "template": template },
    })
}

fn annotations(deployment: &Deployment, revision: i64, desired: i32, most: i32) -> Value {
    let mut all = json!(deployment.annotations());
    if let Some(map) = all.as_object_mut() {
        map.remove(LAST_APPLIED);
    }
    all[REVISION] = revision.to_string().into();
    all[DESIRED] = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(desired).to_string().into();
    all[MAX] = most.to_string().into();
    all
}

/// What a set's annotations must become when it is the newest: its number, and the deployment's own
/// annotations (such as `kubernetes.io/change-cause`); `None` if nothing changes.
pub fn refreshed(deployment: &Deployment, set: &ReplicaSet, newest: i64) -> Option<Value> {
    let mut patch = json!({});
    let there = set.annotations();
    if revision(set) < newest {
        patch[REVISION] = newest.to_string().into();
        if revision(set) > 0 {
            let before = there.get(HISTORY).map(|history| format!("{history},")).unwrap_or_default();
            patch[HISTORY] = format!("{before}{}", revision(set)).into();
        }
    }
    let own = [LAST_APPLIED, REVISION, HISTORY, DESIRED, MAX];
    for (key, value) in deployment.annotations().iter().filter(|(key, _)| !own.contains(&key.as_str())) {
        if there.get(key) != Some(value) {
            patch[key] = value.clone().into();
        }
    }
    patch.as_object().filter(|map| !map.is_empty())?;
    Some(patch)
}
