//! What one deployment needs done.

use std::sync::Arc;

use api::k8s::apps::{Deployment, ReplicaSet};
use api::k8s::core::Pod;
use api::selector::LabelSelector;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::revision::{DESIRED, MAX, REVISION, new_set, refreshed, revision, same_template};
use super::rollout::{self, Limits, Set};
use super::status::status;
use crate::shell::{Decide, Plan};
use crate::write::{Write, controller_ref, kind, reference};

const COMPONENT: &str = super::Controller::NAME;

/// Decides one round for one deployment.
pub fn plan(deployment: &Deployment, sets: &[Arc<ReplicaSet>], pods: &[Arc<Pod>], now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(spec) = deployment.spec.as_ref().filter(|_| deployment.metadata.deletion_timestamp.is_none())
    else {
        return plan;
    };
    let mut mine = owned(deployment, sets, &mut plan);
    mine.sort_by_key(|set| (revision(set), set.creation_timestamp(), set.name_any()));
    let limits = limits(deployment);
    let new = mine.iter().rev().copied().find(|set| same_template(deployment, set));
    let old: Vec<_> =
        mine.iter().copied().filter(|set| new.is_none_or(|new| new.uid() != set.uid())).collect();

    let paused = spec.paused.unwrap_or(false);
    if let Some(scaled) = rescaled(deployment, &mine, limits) {
        plan.writes.extend(scaled);
    } else if !paused {
        let last = old.iter().map(|set| revision(set)).max().unwrap_or(0);
        match new {
            None => plan.writes.extend(create(deployment, &old, pods, limits, last + 1)),
            Some(new) => {
                plan.writes.extend(renumber(deployment, new, last));
                plan.writes.extend(step(deployment, new, &old, pods, limits));
            }
        }
    }
    let (status, wake) = status(deployment, new, &mine, limits, now);
    if let Some(wake) = wake {
        plan.wake_in(wake);
    }
    if status["conditions"][1]["reason"] == "NewReplicaSetAvailable" {
        plan.writes.extend(clean_up(deployment, &old));
    }
    if changed(deployment, &status) {
        plan.writes.push(merge(deployment, json!({ "status": status }), Some("status")));
    }
    plan
}

/// The sets of this deployment; orphans that match are adopted.
fn owned<'a>(deployment: &Deployment, sets: &'a [Arc<ReplicaSet>], plan: &mut Plan) -> Vec<&'a ReplicaSet> {
    let uid = deployment.uid().unwrap_or_default();
    let selector = deployment.spec.as_ref().and_then(|s| LabelSelector::from_object(&json!(s.selector)).ok());
    let Some(selector) = selector else { return Vec::new() };
    let mut mine = Vec::new();
    for set in sets.iter().filter(|set| set.namespace() == deployment.namespace()) {
        match set.owner_references().iter().find(|owner| owner.controller == Some(true)) {
            Some(owner) if owner.uid == uid => mine.push(&**set),
            None if set.metadata.deletion_timestamp.is_none()
                && selector.matches_map(set.metadata.labels.as_ref()) =>
            {
                let mut owners: Vec<Value> =
                    set.owner_references().iter().map(|owner| json!(owner)).collect();
                owners.push(controller_ref(deployment));
                plan.writes.push(merge_set(set, json!({ "metadata": {
                    "uid": set.uid(), "resourceVersion": set.resource_version(), "ownerReferences": owners } })));
            }
            _ => {}
        }
    }
    mine.retain(|set| set.metadata.deletion_timestamp.is_none());
    mine
}

fn limits(deployment: &Deployment) -> Limits {
    let spec = deployment.spec.as_ref();
    let replicas = spec.and_then(|s| s.replicas).unwrap_or(1);
    if is_recreate(deployment) {
        return Limits { replicas, surge: 0, unavailable: replicas };
    }
    let rolling = spec.and_then(|s| s.strategy.as_ref()).and_then(|s| s.rolling_update.as_ref());
    let text = |value: Option<&IntOrString>| match value {
        Some(IntOrString::Int(number)) => number.to_string(),
        Some(IntOrString::String(text)) => text.clone(),
        None => "25%".to_owned(),
    };
    let surge = text(rolling.and_then(|r| r.max_surge.as_ref()));
    rollout::limits(replicas, &surge, &text(rolling.and_then(|r| r.max_unavailable.as_ref())))
}

fn is_recreate(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|s| s.strategy.as_ref());
    strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate")
}

fn wanted(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

fn view(set: &ReplicaSet) -> Set {
    let available = set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0);
    Set { wanted: wanted(set), available }
}

/// If the deployment's own `replicas` changed since its sets were last scaled: the writes that follow it.
fn rescaled(deployment: &Deployment, mine: &[&ReplicaSet], limits: Limits) -> Option<Vec<Write>> {
    let active: Vec<_> = mine.iter().copied().filter(|set| wanted(set) > 0).collect();
    let noted = |set: &ReplicaSet| set.annotations().get(DESIRED).and_then(|n| n.parse::<i32>().ok());
    if !active.iter().any(|set| noted(set).is_some_and(|desired| desired != limits.replicas)) {
        return None;
    }
    let next = match active.as_slice() {
        [_] => vec![limits.replicas],
        _ => rollout::rescale(limits, &active.iter().map(|set| wanted(set)).collect::<Vec<_>>()),
    };
    Some(
        active
            .iter()
            .zip(next)
            .flat_map(|(set, replicas)| scale(deployment, set, replicas, limits))
            .collect(),
    )
}

/// Makes the set of the new template, with as many replicas as there is room for.
fn create(
    deployment: &Deployment,
    old: &[&ReplicaSet],
    pods: &[Arc<Pod>],
    limits: Limits,
    revision: i64,
) -> Vec<Write> {
    if is_recreate(deployment) && old.iter().any(|set| wanted(set) > 0 || has_pods(set, pods)) {
        return old.iter().flat_map(|set| scale(deployment, set, 0, limits)).collect();
    }
    let old_wanted: i32 = old.iter().map(|set| wanted(set)).sum();
    let replicas = (limits.replicas + limits.surge - old_wanted).clamp(0, limits.replicas);
    let set = new_set(deployment, revision, replicas, limits.replicas + limits.surge);
    let message = format!("Scaled up replica set {} from 0 to {replicas}", api::meta::name(&set));
    let mut writes = vec![Write::Create { kind: kind::<ReplicaSet>(), object: set }];
    if replicas > 0 {
        writes.push(say(deployment, message));
    }
    writes.push(number(deployment, revision));
    writes
}

/// Gives the set of the current template the highest number, if another has it (after a rollback).
fn renumber(deployment: &Deployment, new: &ReplicaSet, last: i64) -> Vec<Write> {
    let newest = if revision(new) > last { revision(new) } else { last + 1 };
    let mut writes = Vec::new();
    if let Some(annotations) = refreshed(deployment, new, newest) {
        writes.push(merge_set(new, json!({ "metadata": { "annotations": annotations } })));
    }
    if deployment.annotations().get(REVISION) != Some(&newest.to_string()) {
        writes.push(number(deployment, newest));
    }
    writes
}

fn number(deployment: &Deployment, revision: i64) -> Write {
    merge(deployment, json!({ "metadata": { "annotations": { REVISION: revision.to_string() } } }), None)
}

/// One step of the rollout.
fn step(
    deployment: &Deployment,
    new: &ReplicaSet,
    old: &[&ReplicaSet],
    pods: &[Arc<Pod>],
    limits: Limits,
) -> Vec<Write> {
    let (grown, shrunk) = if is_recreate(deployment) {
        let old_gone = old.iter().all(|set| wanted(set) == 0 && !has_pods(set, pods));
        (if old_gone { limits.replicas } else { wanted(new) }, vec![0; old.len()])
    } else {
        let old: Vec<_> = old.iter().map(|set| view(set)).collect();
        rollout::roll(limits, &view(new), &old)
    };
    let mut writes = scale(deployment, new, grown, limits);
    for (set, replicas) in old.iter().zip(shrunk) {
        writes.extend(scale(deployment, set, replicas, limits));
    }
    writes
}

/// Whether pods of the set are still there, ended ones aside.
fn has_pods(set: &ReplicaSet, pods: &[Arc<Pod>]) -> bool {
    let uid = set.uid().unwrap_or_default();
    pods.iter().any(|pod| {
        let ended =
            matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"));
        !ended && pod.owner_references().iter().any(|owner| owner.uid == uid)
    })
}

fn scale(deployment: &Deployment, set: &ReplicaSet, replicas: i32, limits: Limits) -> Vec<Write> {
    let most = (limits.replicas + limits.surge).to_string();
    let desired = limits.replicas.to_string();
    let noted = set.annotations().get(DESIRED) == Some(&desired) && set.annotations().get(MAX) == Some(&most);
    let old = wanted(set);
    if old == replicas && (noted || replicas == 0) {
        return Vec::new();
    }
    let patch = json!({
        "metadata": { "resourceVersion": set.resource_version(), "annotations": { DESIRED: desired, MAX: most } },
        "spec": { "replicas": replicas },
    });
    let mut writes = vec![merge_set(set, patch)];
    if old != replicas {
        let direction = if replicas > old { "up" } else { "down" };
        writes.push(say(
            deployment,
            format!("Scaled {direction} replica set {} from {old} to {replicas}", set.name_any()),
        ));
    }
    writes
}

/// Old sets beyond `revisionHistoryLimit` go, oldest first.
fn clean_up(deployment: &Deployment, old: &[&ReplicaSet]) -> Vec<Write> {
    let limit = deployment.spec.as_ref().and_then(|s| s.revision_history_limit).unwrap_or(10);
    let idle = |set: &&&ReplicaSet| wanted(set) == 0 && set.status.as_ref().is_none_or(|s| s.replicas == 0);
    let idle: Vec<_> = old.iter().filter(idle).collect();
    let surplus = idle.len().saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
    let delete = |set: &&&ReplicaSet| Write::Delete {
        kind: kind::<ReplicaSet>(),
        namespace: set.namespace().unwrap_or_default(),
        name: set.name_any(),
        uid: set.uid().unwrap_or_default(),
    };
    idle[..surplus].iter().map(delete).collect()
}

fn say(deployment: &Deployment, message: String) -> Write {
    let reason = "ScalingReplicaSet".to_owned();
    Write::Event { about: reference(deployment), component: COMPONENT, kind: "Normal", reason, message }
}

fn merge(deployment: &Deployment, patch: Value, subresource: Option<&'static str>) -> Write {
    let (namespace, name) = (deployment.namespace().unwrap_or_default(), deployment.name_any());
    Write::Merge { kind: kind::<Deployment>(), namespace, name, patch, subresource }
}

fn merge_set(set: &ReplicaSet, patch: Value) -> Write {
    let (namespace, name) = (set.namespace().unwrap_or_default(), set.name_any());
    Write::Merge { kind: kind::<ReplicaSet>(), namespace, name, patch, subresource: None }
}

/// Whether writing `status` would change anything.
fn changed(deployment: &Deployment, status: &Value) -> bool {
    let old = json!(deployment.status.clone().unwrap_or_default());
    let zero = json!(0);
    status.as_object().into_iter().flatten().any(|(key, value)| {
        let there = if old[key].is_null() && value.is_number() { &zero } else { &old[key] };
        there != value
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(image: &str, extra: Value) -> Deployment {
        let mut object = json!({
            "metadata": { "name": "web", "namespace": "d", "uid": "d1", "generation": 1 },
            "spec": { "replicas": 2, "progressDeadlineSeconds": 600, "selector": { "matchLabels": { "app": "web" } },
                "template": { "metadata": { "labels": { "app": "web" } },
                    "spec": { "containers": [{ "name": "c", "image": image }] } } },
        });
        for (key, value) in extra.as_object().into_iter().flatten() {
            object["spec"][key] = value.clone();
        }
        serde_json::from_value(object).unwrap()
    }

    /// A set as the deployment would make it, with `available` of `wanted` pods.
    fn set(deployment: &Deployment, revision: i64, wanted: i32, available: i32) -> Arc<ReplicaSet> {
        let mut object = new_set(deployment, revision, wanted, 3);
        object["metadata"]["uid"] = format!("s{revision}").into();
        object["status"] =
            json!({ "replicas": wanted, "availableReplicas": available, "readyReplicas": available });
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn check(deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> String {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut words = Vec::new();
        for write in plan(deployment, sets, &[], now).writes {
            match write {
                Write::Create { object, .. } => words.push(format!("create {}", object["spec"]["replicas"])),
                Write::Merge { patch, kind, .. } if patch["spec"]["replicas"].is_number() => {
                    assert_eq!(kind.kind, "ReplicaSet");
                    words.push(format!("scale {}", patch["spec"]["replicas"]));
                }
                Write::Merge { patch, kind, .. } if patch["status"].is_null() => {
                    words.push(format!("{} {}", kind.kind, patch["metadata"]["annotations"][REVISION]));
                }
                Write::Merge { patch, .. } => {
                    let status = &patch["status"];
                    words.push(format!(
                        "status {} {}",
                        status["availableReplicas"], status["conditions"][1]["reason"]
                    ));
                }
                Write::Delete { name, .. } | Write::Force { name, .. } => {
                    words.push(format!("delete {name}"))
                }
                Write::Event { message, .. } => {
                    words.push(message.split(" replica set").next().unwrap_or_default().to_owned());
                }
            }
        }
        words.join("; ").replace('"', "")
    }

    #[test]
    fn a_new_deployment_makes_its_set() {
        assert_eq!(
            check(&deployment("a", json!({})), &[]),
            "create 2; Scaled up; Deployment 1; status 0 NewReplicaSetCreated"
        );
    }

    #[test]
    fn a_new_image_starts_a_rollout_and_the_old_set_shrinks_only_later() {
        let (old, new) = (deployment("a", json!({})), deployment("b", json!({})));
        let old_set = set(&old, 1, 2, 2);
        assert!(check(&new, std::slice::from_ref(&old_set)).starts_with("create 1; Scaled up; Deployment 2"));
        assert!(!check(&new, &[old_set.clone(), set(&new, 2, 1, 0)]).contains("scale"));
        assert!(check(&new, &[old_set, set(&new, 2, 1, 1)]).contains("scale 1; Scaled down"));
    }

    #[test]
    fn a_rollback_gives_the_old_set_a_new_number() {
        let (first, second) = (deployment("a", json!({})), deployment("b", json!({})));
        let said = check(&first, &[set(&first, 1, 0, 0), set(&second, 2, 2, 2)]);
        assert!(said.starts_with("ReplicaSet 3; Deployment 3; scale 1; Scaled up"), "{said}");
    }

    #[test]
    fn recreate_waits_until_the_old_are_gone() {
        let recreate = json!({ "strategy": { "type": "Recreate" } });
        let (old, new) = (deployment("a", recreate.clone()), deployment("b", recreate));
        assert!(check(&new, &[set(&old, 1, 2, 2)]).starts_with("scale 0; Scaled down"));
        assert!(check(&new, &[set(&old, 1, 0, 0)]).starts_with("create 2"));
    }

    #[test]
    fn scaling_is_no_rollout() {
        let one = deployment("a", json!({}));
        let sets = [set(&one, 1, 2, 2)];
        let three = deployment("a", json!({ "replicas": 3 }));
        assert!(check(&three, &sets).starts_with("scale 3; Scaled up"), "{}", check(&three, &sets));
    }

    #[test]
    fn a_paused_deployment_only_scales() {
        let (old, paused) = (deployment("a", json!({})), deployment("b", json!({ "paused": true })));
        assert_eq!(check(&paused, &[set(&old, 1, 2, 2)]), "status 2 DeploymentPaused");
    }
}
