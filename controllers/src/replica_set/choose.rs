//! Which pods go first when there are too many.

use api::k8s::core::Pod;
use jiff::Timestamp;
use kube::ResourceExt;

/// Annotation by which a user ranks pods for scale-down (KEP-2255); lower goes first.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Whether the pod's Ready condition is true, and since when.
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.as_ref()?.conditions.as_deref()?;
    let ready =
        conditions.iter().find(|condition| condition.type_ == "Ready" && condition.status == "True")?;
    Some(ready.last_transition_time.as_ref().map_or(Timestamp::MIN, |time| time.0))
}

/// Sorts so that the pods to delete first come first: without a node, pending, not ready, cheap by
/// annotation, ready or restarting more recently, younger.
pub fn first_to_go(pods: &mut [&Pod]) {
    pods.sort_by_key(|pod| {
        let has_node = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
        let phase = match pod.status.as_ref().and_then(|s| s.phase.as_deref()) {
            Some("Pending") => 0,
            Some("Unknown") | None => 1,
            _ => 2,
        };
        let ready = ready_since(pod);
        let cost =
            pod.annotations().get(DELETION_COST).and_then(|cost| cost.parse::<i32>().ok()).unwrap_or(0);
        let restarts = restarts(pod);
        let youth = std::cmp::Reverse(pod.creation_timestamp().map(|time| time.0));
        let youth_of_readiness = std::cmp::Reverse(ready);
        (
            has_node,
            phase,
            ready.is_some(),
            cost,
            youth_of_readiness,
            std::cmp::Reverse(restarts),
            youth,
            pod.name_any(),
        )
    });
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
    statuses.iter().map(|status| status.restart_count).max().unwrap_or(0)
}
