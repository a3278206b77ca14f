//! What all pods together, and the classes of pods, get of the machine.
//!
//! A pod's weight counts only among its siblings, so the groups of the burstable and the best-effort pods need
//! weights too: what the burstable pods ask for together, and next to nothing. Guaranteed pods stand beside them.
//! All pods together get no more than what the node does not reserve (`enforceNodeAllocatable`).
//! The CRI has no call for this; it is done by whoever names the pods' cgroups.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use sys::Errno;
use sys::cgroup::{self, Group};
use tracing::warn;

use crate::config::Config;
use crate::container::resources;
use crate::node::allocatable;
use crate::node::facts::Machine;
use crate::pod::view;
use crate::status::qos;

/// Controllers whose files are written here.
const CONTROLLERS: [&str; 4] = ["cpu", "memory", "pids", "hugetlb"];
const PAGE: i64 = 4096;

/// A file of a group and what is to be in it.
#[derive(Debug, PartialEq, Eq)]
struct Value {
    /// Of the node's own cgroup, of that of all pods, or of a class of them.
    group: &'static str,
    file: String,
    value: String,
}

/// Makes the classes' cgroups and writes their limits and weights for these pods. Does nothing without a `cgroup_base`;
/// what the node has no controller for stays open.
pub fn apply(config: &Config, machine: &Machine, pods: &[Arc<Pod>]) {
    let Some(base) = &config.cgroup_base else { return };
    let root = match cgroup::root() {
        Ok((root, _)) => root,
        Err(errno) => return warn!(error = %errno, "open the control groups to limit all pods together"),
    };
    let values = values(config, machine, pods);
    for (name, path) in [
        (NODE, base.clone()),
        (ALL, format!("{base}/{}/kubepods", config.cgroup_root)),
        (BURSTABLE, format!("{base}/{}/kubepods/burstable", config.cgroup_root)),
        (BEST_EFFORT, format!("{base}/{}/kubepods/besteffort", config.cgroup_root)),
    ] {
        let group = match open(&root, &path) {
            Ok(group) => group,
            Err(errno) => return warn!(path, error = %errno, "make a control group of pods"),
        };
        for value in values.iter().filter(|value| value.group == name) {
            match set(&group, value) {
                // The runtime says once that the controller is missing.
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => {
                    warn!(path, file = value.file, value = value.value, error = %errno, "limit all pods together");
                }
            }
        }
    }
}

/// The node's own group, that of all pods, and those of two classes.
const NODE: &str = "node";
const ALL: &str = "all";
const BURSTABLE: &str = "burstable";
const BEST_EFFORT: &str = "besteffort";

/// What is to be written, parents first.
fn values(config: &Config, machine: &Machine, pods: &[Arc<Pod>]) -> Vec<Value> {
    let ended = |pod: &Pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    };
    let sum = |class: &str, kind: &str| -> i64 {
        let all = pods.iter().map(|pod| view::spec(pod)).zip(pods);
        let of_class = all.filter(|(spec, pod)| !ended(pod) && qos::class(spec) == class);
        let total: i128 =
            of_class.map(|(spec, _)| qos::pod_total(spec, kind, false) + qos::overhead(spec, kind)).sum();
        i64::try_from(total).unwrap_or(i64::MAX)
    };
    let weight = |milli: i64| cgroup::weight_of_shares(resources::shares(milli).unsigned_abs()).to_string();
    let limit = |limit: Option<i64>| limit.map_or_else(|| "max".to_owned(), |limit| limit.to_string());
    let mut values = Vec::new();
    let mut put =
        |group, file: &str, value: String| values.push(Value { group, file: file.to_owned(), value });
    if let Some(milli) = allocatable::cpu_of_all(config, machine) {
        // The keeper's processes are in the node's cgroup, too; they need next to nothing.
        put(NODE, "cpu.weight", weight(milli));
        put(ALL, "cpu.weight", weight(milli));
    }
    let memory = allocatable::memory_limit(config, machine).map(|limit| limit / PAGE * PAGE);
    put(ALL, "memory.max", limit(memory));
    put(ALL, "pids.max", limit(allocatable::pids_limit(config, machine)));
    for pages in &machine.huge_pages {
        let limit = limit(config.resources.enforce_pods.then_some(pages.total()));
        put(ALL, &format!("hugetlb.{}.max", pages.cri_size()), limit);
    }
    // A group's protection ends at that of its parent.
    let protected = |class| if config.resources.memory_reservation { sum(class, "memory") / 1000 } else { 0 };
    let (sure, some) = (protected("Guaranteed"), protected("Burstable"));
    for group in [NODE, ALL] {
        put(group, "memory.min", (sure / PAGE * PAGE).to_string());
        put(group, "memory.low", (some / PAGE * PAGE).to_string());
    }
    put(BURSTABLE, "memory.low", (some / PAGE * PAGE).to_string());
    put(BURSTABLE, "cpu.weight", weight(sum("Burstable", "cpu")));
    put(BEST_EFFORT, "cpu.weight", "1".to_owned());
    values
}

fn open(root: &Group, path: &str) -> sys::Result<Group> {
    let mut group = root.try_clone()?;
    for part in path.split('/').filter(|part| !part.is_empty()) {
        enable(&group);
        group = group.create(part)?;
    }
    Ok(group)
}

fn set(group: &Group, value: &Value) -> sys::Result<()> {
    if group.read(&value.file)?.trim() == value.value {
        Ok(())
    } else {
        group.write(&value.file, &value.value)
    }
}

/// The runtime enables all controllers when it makes a pod's group; these are needed before.
fn enable(group: &Group) {
    let there = group.read("cgroup.subtree_control").unwrap_or_default();
    let missing: Vec<&str> =
        CONTROLLERS.into_iter().filter(|name| !there.split_ascii_whitespace().any(|t| t == *name)).collect();
    if !missing.is_empty() {
        let _ = group.enable(&missing); // One that is not there is told by the runtime.
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::facts::HugePages;
    use serde_json::json;

    fn pod(phase: &str, resources: &serde_json::Value) -> Arc<Pod> {
        let pod = json!({
            "spec": {"containers": [{"name": "c", "resources": resources}]},
            "status": {"phase": phase},
        });
        Arc::new(serde_json::from_value(pod).expect("a pod"))
    }

    fn machine() -> Machine {
        let huge_pages = vec![HugePages { size: 2 << 20, count: 4 }];
        Machine { cpus: 2, memory: 1 << 30, pids: 1000, huge_pages, ..Machine::default() }
    }

    fn of(config: &Config, pods: &[Arc<Pod>], group: &str, file: &str) -> Option<String> {
        let all = values(config, &machine(), pods);
        all.into_iter().find(|value| value.group == group && value.file == file).map(|value| value.value)
    }

    #[test]
    fn burstable_pods_weigh_what_they_ask_for() {
        let config = Config::new("n", "/n");
        let burstable = |pods: &[Arc<Pod>]| of(&config, pods, "burstable", "cpu.weight").expect("a weight");
        let asks = json!({"requests": {"cpu": "500m"}});
        let sure = json!({"limits": {"cpu": "1", "memory": "1Mi"}});
        assert_eq!(burstable(&[]), "1");
        assert_eq!(burstable(&[pod("Running", &json!({}))]), "1");
        let all =
            [pod("Running", &asks), pod("Pending", &asks), pod("Succeeded", &asks), pod("Running", &sure)];
        assert_eq!(burstable(&all), "100");
    }

    #[test]
    fn all_pods_together_get_what_is_not_reserved() {
        let mut config = Config::new("n", "/n");
        let reserve = [("memory", "256Mi"), ("pid", "100"), ("cpu", "1")];
        config.resources.kube_reserved =
            reserve.iter().map(|(kind, amount)| ((*kind).to_owned(), (*amount).to_owned())).collect();
        let told = |config: &Config, file: &str| of(config, &[], ALL, file);
        assert_eq!(told(&config, "memory.max"), Some((768 << 20).to_string()));
        assert_eq!(told(&config, "pids.max").as_deref(), Some("900"));
        assert_eq!(told(&config, "hugetlb.2MB.max"), Some((8 << 20).to_string()));
        assert_eq!(told(&config, "cpu.weight").as_deref(), Some("100"));
        assert_eq!(of(&config, &[], NODE, "cpu.weight").as_deref(), Some("100"));
        config.resources.enforce_pods = false;
        assert_eq!(told(&config, "memory.max").as_deref(), Some("max"));
        assert_eq!(told(&config, "cpu.weight"), None);
    }

    #[test]
    fn what_pods_request_is_protected_up_to_the_node() {
        let mut config = Config::new("n", "/n");
        let sure = pod("Running", &json!({"limits": {"cpu": "1", "memory": "64Mi"}}));
        let some = pod("Running", &json!({"requests": {"memory": "32Mi"}}));
        let pods = [sure, some];
        assert_eq!(of(&config, &pods, ALL, "memory.min").as_deref(), Some("0"));
        config.resources.memory_reservation = true;
        for group in [NODE, ALL] {
            assert_eq!(of(&config, &pods, group, "memory.min"), Some((64 << 20).to_string()));
            assert_eq!(of(&config, &pods, group, "memory.low"), Some((32 << 20).to_string()));
        }
        assert_eq!(of(&config, &pods, "burstable", "memory.low"), Some((32 << 20).to_string()));
        assert_eq!(of(&config, &pods, "besteffort", "memory.low"), None);
    }
}
