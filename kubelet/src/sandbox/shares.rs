//! How the classes of pods share the processors.
//!
//! A pod's weight counts only among its siblings, so the groups of the burstable and the best-effort pods need
//! weights too: what the burstable pods ask for together, and next to nothing. Guaranteed pods stand beside them.
//! The CRI has no call for this; it is done by whoever names the pods' cgroups.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use sys::Errno;
use sys::cgroup::{self, Group};
use tracing::warn;

use crate::config::Config;
use crate::container::resources;
use crate::pod::view;
use crate::status::qos;

/// Makes the classes' cgroups and sets their weights for these pods. Does nothing without a `cgroup_base`, or
/// where the node has no cpu controller.
pub fn apply(config: &Config, pods: &[Arc<Pod>]) {
    let Some(base) = &config.cgroup_base else { return };
    let top = format!("{base}/{}/kubepods", config.cgroup_root);
    for (class, weight) in [("burstable", burstable(pods)), ("besteffort", 1)] {
        match set(&format!("{top}/{class}"), weight) {
            // The runtime says once that the controller is missing.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => warn!(class, weight, error = %errno, "set the processor weight of a class of pods"),
        }
    }
}

/// The weight of what burstable pods that have not ended ask for together.
fn burstable(pods: &[Arc<Pod>]) -> u64 {
    let ended = |pod: &Pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    };
    let milli: i128 = pods
        .iter()
        .filter(|pod| !ended(pod) && qos::class(view::spec(pod)) == "Burstable")
        .map(|pod| qos::pod_total(view::spec(pod), "cpu", false) + qos::overhead(view::spec(pod), "cpu"))
        .sum();
    let shares = resources::shares(i64::try_from(milli).unwrap_or(i64::MAX));
    cgroup::weight_of_shares(shares.unsigned_abs())
}

fn set(path: &str, weight: u64) -> sys::Result<()> {
    let (mut group, _) = cgroup::root()?;
    for part in path.split('/').filter(|part| !part.is_empty()) {
        enable(&group);
        group = group.create(part)?;
    }
    let weight = weight.to_string();
    if group.read("cpu.weight")?.trim() == weight { Ok(()) } else { group.write("cpu.weight", &weight) }
}

/// The runtime enables all controllers when it makes a pod's group; this one is needed before.
fn enable(group: &Group) {
    let there = group.read("cgroup.subtree_control").unwrap_or_default();
    if !there.split_ascii_whitespace().any(|name| name == "cpu") {
        let _ = group.enable(&["cpu"]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(phase: &str, resources: &serde_json::Value) -> Arc<Pod> {
        let pod = json!({
            "spec": {"containers": [{"name": "c", "resources": resources}]},
            "status": {"phase": phase},
        });
        Arc::new(serde_json::from_value(pod).expect("a pod"))
    }

    #[test]
    fn burstable_pods_weigh_what_they_ask_for() {
        let asks = json!({"requests": {"cpu": "500m"}});
        let sure = json!({"limits": {"cpu": "1", "memory": "1Mi"}});
        assert_eq!(burstable(&[]), 1);
        assert_eq!(burstable(&[pod("Running", &json!({}))]), 1);
        let all =
            [pod("Running", &asks), pod("Pending", &asks), pod("Succeeded", &asks), pod("Running", &sure)];
        assert_eq!(burstable(&all), 100);
    }
}
