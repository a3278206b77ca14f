//! What a deployment says of itself: counts, and the conditions Available and Progressing.

use std::time::Duration;

use api::k8s::apps::{Deployment, ReplicaSet};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::rollout::Limits;

/// The status that follows from the sets, and when time alone will change it.
pub fn status(
    deployment: &Deployment,
    new: Option<&ReplicaSet>,
    all: &[&ReplicaSet],
    limits: Limits,
    now: Timestamp,
) -> (Value, Option<Duration>) {
    let of = |set: &ReplicaSet| set.status.clone().unwrap_or_default();
    let sum = |count: &dyn Fn(&ReplicaSet) -> i32| all.iter().map(|set| count(set)).sum::<i32>();
    let replicas = sum(&|set| of(set).replicas);
    let ready = sum(&|set| of(set).ready_replicas.unwrap_or(0));
    let available = sum(&|set| of(set).available_replicas.unwrap_or(0));
    let wanted = sum(&|set| set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0));
    let updated = new.map_or(0, |set| of(set).replicas);
    let mut status = json!({
        "observedGeneration": deployment.metadata.generation,
        "replicas": replicas, "updatedReplicas": updated, "readyReplicas": ready, "availableReplicas": available,
        "unavailableReplicas": (wanted - available).max(0),
    });
    let complete = updated == limits.replicas && replicas == limits.replicas && available == limits.replicas;
    let progress = Progress { deployment, new, complete, moved: moved(deployment, &status) };
    let (progressing, wake) = progress.condition(now);
    let mut conditions = vec![with_times(deployment, availability(available, limits), now)];
    conditions.extend(progressing.map(|condition| with_times(deployment, condition, now)));
    status["conditions"] = conditions.into();
    (status, wake)
}

fn availability(available: i32, limits: Limits) -> Value {
    let enough = available >= limits.replicas - limits.unavailable;
    let (status, reason, message) = if enough {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    json!({ "type": "Available", "status": status, "reason": reason, "message": message })
}

/// Whether the counts differ from those that the deployment shows: the rollout moved.
fn moved(deployment: &Deployment, status: &Value) -> bool {
    let old = json!(deployment.status);
    let number = |status: &Value, key: &str| status[key].as_i64().unwrap_or(0);
    let keys = ["updatedReplicas", "readyReplicas", "availableReplicas", "replicas"];
    keys.iter().any(|key| number(&old, key) != number(status, key))
}

struct Progress<'a> {
    deployment: &'a Deployment,
    new: Option<&'a ReplicaSet>,
    complete: bool,
    moved: bool,
}

impl Progress<'_> {
    fn condition(&self, now: Timestamp) -> (Option<Value>, Option<Duration>) {
        let spec = self.deployment.spec.as_ref();
        let say = |status: &str, reason: &str, message: String| json!({ "type": "Progressing", "status": status, "reason": reason, "message": message });
        let Some(deadline) = spec.and_then(|s| s.progress_deadline_seconds) else { return (None, None) };
        let old = find(self.deployment, "Progressing");
        let name = self.new.and_then(|set| set.metadata.name.clone()).unwrap_or_default();
        let quoted = format!("ReplicaSet \"{name}\"");
        if spec.and_then(|s| s.paused).unwrap_or(false) {
            return (Some(say("Unknown", "DeploymentPaused", "Deployment is paused".to_owned())), None);
        }
        if self.complete && self.new.is_some() {
            let message = format!("{quoted} has successfully progressed.");
            return (Some(say("True", "NewReplicaSetAvailable", message)), None);
        }
        let was_paused = old.as_ref().is_some_and(|c| c["reason"] == "DeploymentPaused");
        let was_done = old.as_ref().is_some_and(|c| c["reason"] == "NewReplicaSetAvailable");
        if old.is_none() || self.moved || was_paused || was_done {
            let (reason, message) = if self.new.is_some() {
                ("ReplicaSetUpdated", format!("{quoted} is progressing."))
            } else {
                ("NewReplicaSetCreated", "Created new replica set".to_owned())
            };
            let mut condition = say("True", reason, message);
            condition["lastUpdateTime"] = api::meta::time(now).into();
            return (Some(condition), Some(Duration::from_secs(u64::try_from(deadline).unwrap_or(600))));
        }
        let old = old.unwrap_or_default();
        let updated =
            old["lastUpdateTime"].as_str().and_then(|time| time.parse::<Timestamp>().ok()).unwrap_or(now);
        let left = SignedDuration::from_secs(i64::from(deadline)) - now.duration_since(updated);
        if left.is_negative() || left.is_zero() {
            let message = format!("{quoted} has timed out progressing.");
            return (Some(say("False", "ProgressDeadlineExceeded", message)), None);
        }
        (Some(old), Some(Duration::try_from(left).unwrap_or(Duration::from_secs(1))))
    }
}

fn find(deployment: &Deployment, name: &str) -> Option<Value> {
    let conditions = deployment.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == name).map(|condition| json!(condition))
}

/// Keeps the old times where nothing changed, so that an unchanged status is not written.
fn with_times(deployment: &Deployment, mut condition: Value, now: Timestamp) -> Value {
    let old = find(deployment, condition["type"].as_str().unwrap_or_default()).unwrap_or_default();
    let now = api::meta::time(now);
    let keep = |key: &str, same: bool| {
        if same && old[key].is_string() { old[key].clone() } else { now.clone().into() }
    };
    let same_status = old["status"] == condition["status"];
    let same = same_status && old["reason"] == condition["reason"] && old["message"] == condition["message"];
    condition["lastTransitionTime"] = keep("lastTransitionTime", same_status);
    if condition["lastUpdateTime"].is_null() {
        condition["lastUpdateTime"] = keep("lastUpdateTime", same);
    }
    condition
}
