//! What one replica set needs done.

use std::sync::Arc;
use std::time::Duration;

use api::k8s::apps::{ReplicaSet, ReplicaSetStatus};
use api::k8s::core::Pod;
use api::selector::LabelSelector;
use jiff::Timestamp;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::choose::{first_to_go, ready_since};
use super::own_writes::OwnWrites;
use crate::shell::{Decide, Plan};
use crate::write::{Write, controller_ref, kind, reference};

/// At most this many pods are made or deleted per set and round.
const BURST: usize = 500;
const COMPONENT: &str = super::Controller::NAME;

/// Decides one round for one set.
pub fn plan(set: &ReplicaSet, pods: &[Arc<Pod>], own: &OwnWrites, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(spec) = &set.spec else { return plan };
    let uid = set.uid().unwrap_or_default();
    let Ok(selector) = LabelSelector::from_object(&json!(spec.selector)) else { return plan };
    let deleting = set.metadata.deletion_timestamp.is_some();

    let mut mine: Vec<&Pod> = Vec::new();
    for pod in pods.iter().filter(|pod| pod.namespace() == set.namespace()) {
        let ended =
            matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"));
        let gone = ended || pod.metadata.deletion_timestamp.is_some();
        let matching = selector.matches_map(pod.metadata.labels.as_ref());
        match pod.owner_references().iter().find(|owner| owner.controller == Some(true)) {
            Some(owner) if owner.uid == uid && matching && !gone => mine.push(pod),
            // Its labels were changed: let it go.
            Some(owner) if owner.uid == uid && !matching && !gone => plan.writes.push(release(pod, &uid)),
            None if matching && !gone && !deleting => {
                plan.writes.push(adopt(pod, set));
                mine.push(pod);
            }
            _ => {}
        }
    }

    let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
    let on_their_way = own.on_their_way(&uid);
    mine.retain(|pod| !own.is_deleted(&pod.uid().unwrap_or_default()));
    if !deleting && mine.len() + on_their_way < wanted {
        let missing = (wanted - mine.len() - on_their_way).min(BURST);
        plan.writes.extend((0..missing).map(|_| create(set)));
    } else if !deleting && mine.len() > wanted {
        let mut candidates = mine.clone();
        first_to_go(&mut candidates);
        let surplus = (mine.len() - wanted).min(BURST);
        for pod in &candidates[..surplus] {
            plan.writes.push(delete(pod));
            plan.writes.push(say(set, "SuccessfulDelete", format!("Deleted pod: {}", pod.name_any())));
        }
    }
    status(set, &mine, now, &mut plan);
    plan
}

fn create(set: &ReplicaSet) -> Write {
    let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
    let meta = template.and_then(|template| template.metadata.as_ref());
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "generateName": format!("{}-", set.name_any()), "namespace": set.namespace(),
            "labels": meta.and_then(|m| m.labels.as_ref()), "annotations": meta.and_then(|m| m.annotations.as_ref()),
            "finalizers": meta.and_then(|m| m.finalizers.as_ref()),
            "ownerReferences": [controller_ref(set)],
        },
        "spec": template.and_then(|template| template.spec.as_ref()),
    });
    Write::Create { kind: kind::<Pod>(), object: without_nulls(pod) }
}

/// Empty optional fields are left out rather than sent as null.
fn without_nulls(mut object: Value) -> Value {
    if let Some(meta) = object["metadata"].as_object_mut() {
        meta.retain(|_, value| !value.is_null());
    }
    object
}

fn delete(pod: &Pod) -> Write {
    Write::Delete {
        kind: kind::<Pod>(),
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
    }
}

fn adopt(pod: &Pod, set: &ReplicaSet) -> Write {
    let mut owners: Vec<Value> = pod.owner_references().iter().map(|owner| json!(owner)).collect();
    owners.push(controller_ref(set));
    owners_patch(pod, owners)
}

fn release(pod: &Pod, uid: &str) -> Write {
    let owners =
        pod.owner_references().iter().filter(|owner| owner.uid != uid).map(|owner| json!(owner)).collect();
    owners_patch(pod, owners)
}

fn owners_patch(pod: &Pod, owners: Vec<Value>) -> Write {
    let patch = json!({ "metadata": {
        "uid": pod.uid(), "resourceVersion": pod.resource_version(), "ownerReferences": owners } });
    Write::Merge {
        kind: kind::<Pod>(),
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
        patch,
        subresource: None,
    }
}

fn say(set: &ReplicaSet, reason: &str, message: String) -> Write {
    Write::Event {
        about: reference(set),
        component: COMPONENT,
        kind: "Normal",
        reason: reason.to_owned(),
        message,
    }
}

/// Adds the status write, if the status changed, and the time at which another pod becomes available.
fn status(set: &ReplicaSet, mine: &[&Pod], now: Timestamp, plan: &mut Plan) {
    let spec = set.spec.as_ref();
    let template_labels = spec.and_then(|s| s.template.as_ref()).and_then(|t| t.metadata.as_ref());
    let template_labels = template_labels.and_then(|meta| meta.labels.clone()).unwrap_or_default();
    let least = i64::from(spec.and_then(|s| s.min_ready_seconds).unwrap_or(0));
    let (mut labelled, mut ready, mut available) = (0, 0, 0);
    for pod in mine {
        labelled +=
            i32::from(template_labels.iter().all(|(key, value)| pod.labels().get(key) == Some(value)));
        let Some(since) = ready_since(pod) else { continue };
        ready += 1;
        let age = now.duration_since(since).as_secs();
        if least == 0 || age >= least {
            available += 1;
        } else {
            plan.wake_in(Duration::from_secs((least - age).unsigned_abs()));
        }
    }
    let old = set.status.clone().unwrap_or_default();
    let count = i32::try_from(mine.len()).unwrap_or(i32::MAX);
    let new = ReplicaSetStatus {
        replicas: count,
        fully_labeled_replicas: Some(labelled),
        ready_replicas: Some(ready),
        available_replicas: Some(available),
        observed_generation: set.metadata.generation,
        ..old.clone()
    };
    let counted = |status: &ReplicaSetStatus| {
        let some = |n: Option<i32>| n.unwrap_or(0);
        (
            status.replicas,
            some(status.fully_labeled_replicas),
            some(status.ready_replicas),
            some(status.available_replicas),
            status.observed_generation,
        )
    };
    if counted(&old) != counted(&new) {
        plan.writes.push(Write::Merge {
            kind: kind::<ReplicaSet>(),
            namespace: set.namespace().unwrap_or_default(),
            name: set.name_any(),
            patch: json!({ "status": {
                "replicas": new.replicas, "fullyLabeledReplicas": labelled, "readyReplicas": ready,
                "availableReplicas": available, "observedGeneration": new.observed_generation } }),
            subresource: Some("status"),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(replicas: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": { "name": "web", "namespace": "d", "uid": "s1", "generation": 1 },
            "spec": { "replicas": replicas, "selector": { "matchLabels": { "app": "web" } },
                "template": { "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [] } } },
        }))
        .unwrap()
    }

    fn pod(name: &str, owner: Option<&str>, extra: Value) -> Arc<Pod> {
        let owners = owner.map(|uid| {
            json!([{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "x", "uid": uid,
            "controller": true }])
        });
        let mut pod = json!({
            "metadata": { "name": name, "namespace": "d", "uid": name, "labels": { "app": "web" },
                "ownerReferences": owners.unwrap_or(json!([])) },
            "spec": { "nodeName": "n", "containers": [] }, "status": { "phase": "Running" },
        });
        for (key, value) in extra.as_object().into_iter().flatten() {
            pod[key] = value.clone();
        }
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn ready() -> Value {
        json!({ "status": { "phase": "Running", "conditions": [
            { "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" }] } })
    }

    /// The writes, a word each.
    fn check(set: &ReplicaSet, pods: &[Arc<Pod>], own: &OwnWrites) -> String {
        let now = "2026-01-02T00:00:00Z".parse().unwrap();
        let words = plan(set, pods, own, now).writes.into_iter().map(|write| match write {
            Write::Create { .. } => "create".to_owned(),
            Write::Delete { name, .. } | Write::Force { name, .. } => format!("delete {name}"),
            Write::Merge { subresource: Some(_), patch, .. } => {
                format!("status {}/{}", patch["status"]["readyReplicas"], patch["status"]["replicas"])
            }
            Write::Merge { name, patch, .. } => {
                let owners = patch["metadata"]["ownerReferences"].as_array().map_or(0, Vec::len);
                format!("owners of {name}: {owners}")
            }
            Write::Event { .. } => "event".to_owned(),
        });
        words.collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn what_is_missing_is_made_once() {
        assert_eq!(
            check(&set(2), &[pod("a", Some("s1"), ready())], &OwnWrites::default()),
            "create, status 1/1"
        );
        let mut own = OwnWrites::default();
        let made = json!({ "metadata": { "name": "b", "uid": "b", "ownerReferences": [
            { "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "s1" }] } });
        let made: DynamicObject = serde_json::from_value(made).unwrap();
        own.note(&create(&set(2)), Some(&made), Timestamp::now());
        assert_eq!(check(&set(2), &[pod("a", Some("s1"), ready())], &own), "status 1/1");
    }

    use kube::api::DynamicObject;

    #[test]
    fn the_least_useful_pod_goes_first() {
        let pods = [pod("good", Some("s1"), ready()), pod("bad", Some("s1"), json!({}))];
        assert_eq!(check(&set(1), &pods, &OwnWrites::default()), "delete bad, event, status 1/2");
    }

    #[test]
    fn pods_that_ended_are_replaced_and_foreign_ones_left_alone() {
        let pods = [
            pod("done", Some("s1"), json!({ "status": { "phase": "Failed" } })),
            pod("other", Some("s2"), ready()),
        ];
        assert_eq!(check(&set(1), &pods, &OwnWrites::default()), "create, status 0/0");
    }

    #[test]
    fn orphans_are_adopted_and_relabelled_pods_released() {
        assert_eq!(
            check(&set(1), &[pod("a", None, ready())], &OwnWrites::default()),
            "owners of a: 1, status 1/1"
        );
        let mut strayed = (*pod("a", Some("s1"), ready())).clone();
        strayed.metadata.labels = None;
        assert_eq!(check(&set(0), &[Arc::new(strayed)], &OwnWrites::default()), "owners of a: 0, status 0/0");
    }
}
