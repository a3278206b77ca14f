//! Memory beyond the limit: swap, protection, slowing down, and who is killed first. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use super::{Asked, asked};
use crate::config::Config;
use crate::node::allocatable;
use crate::node::facts::Machine;
use crate::pod::view;
use crate::status::qos;

/// Files of cgroup v2 and what is written to them.
type Files = BTreeMap<String, String>;

const PAGE: i64 = 4096;
/// Score of what is to be killed last, and of what first.
const LAST: i64 = -997;
const FIRST: i64 = 1000;
/// Priority from which on a pod is critical to the cluster or the node.
const CRITICAL: i32 = 2_000_000_000;
/// Class of pods that are critical to their node.
const NODE_CRITICAL: &str = "system-node-critical";

/// A container's files.
pub(super) fn container(pod: &Pod, memory: Asked, config: &Config, machine: &Machine) -> Files {
    let class = qos::class(view::spec(pod));
    let mut files = reservation(class, memory.request, config);
    if memory.limit == 0 && machine.swap > 0 {
        files.insert("memory.swap.max".to_owned(), swap(pod, memory, config, machine).to_string());
    }
    if let Some(high) = throttled_from(pod, memory, config, machine) {
        files.insert("memory.high".to_owned(), high.to_string());
    }
    files
}

/// A pod's files.
pub(super) fn pod(pod: &Pod, config: &Config) -> Files {
    let spec = view::spec(pod);
    let total = qos::pod_total(spec, "memory", false) / 1000;
    reservation(qos::class(spec), i64::try_from(total).unwrap_or(i64::MAX), config)
}

/// What is requested stays in memory: for certain, or as long as there is other memory to take.
fn reservation(class: &str, request: i64, config: &Config) -> Files {
    let file = match class {
        "Guaranteed" => "memory.min",
        "Burstable" => "memory.low",
        _ => return Files::new(),
    };
    let wanted = config.resources.memory_reservation && request > 0;
    wanted.then(|| (file.to_owned(), request.to_string())).into_iter().collect()
}

/// From where on a container is slowed down, in bytes.
fn throttled_from(pod: &Pod, memory: Asked, config: &Config, machine: &Machine) -> Option<i64> {
    let factor = config.resources.memory_throttling_factor?;
    let whole =
        qos::pod_level(view::spec(pod), "memory", true).and_then(|milli| i64::try_from(milli / 1000).ok());
    let top = match (memory.limit, whole) {
        (0, None) => allocatable::memory(config, machine),
        (0, Some(whole)) => whole,
        (limit, _) => limit,
    };
    if qos::class(view::spec(pod)) == "Guaranteed" || top <= memory.request {
        return None;
    }
    let more = ((top - memory.request) as f64 * factor) as i64;
    let high = (memory.request + more) / PAGE * PAGE;
    (high > memory.request).then_some(high)
}

/// Swap in bytes. Only burstable pods get any, and none that are critical; a container whose request is its limit gets
/// what it asked for.
pub(super) fn swap(pod: &Pod, memory: Asked, config: &Config, machine: &Machine) -> i64 {
    let spec = view::spec(pod);
    let may = config.resources.limited_swap
        && qos::class(spec) == "Burstable"
        && spec.priority.unwrap_or(0) < CRITICAL
        && memory.request > 0
        && memory.request != memory.limit
        && machine.memory > 0;
    if !may {
        return 0;
    }
    let share = i128::from(memory.request) * i128::from(machine.swap) / i128::from(machine.memory);
    i64::try_from(share).unwrap_or(i64::MAX) / PAGE * PAGE
}

/// How readily the kernel kills it: guaranteed pods and those that the node can't be without last, best-effort ones
/// first; a sidecar no sooner than the containers that it serves.
pub(super) fn oom_score(pod: &Pod, container: &Container, node_memory: i64) -> i64 {
    let spec = view::spec(pod);
    match qos::class(spec) {
        _ if spec.priority_class_name.as_deref() == Some(NODE_CRITICAL) => return LAST,
        "Guaranteed" => return LAST,
        "BestEffort" => return FIRST,
        _ if node_memory <= 0 => return FIRST - 1,
        _ => {}
    }
    let unspoken = unspoken(spec);
    let of = |container: &Container| {
        let request = i128::from(asked(container, "memory").request) + unspoken;
        i64::try_from(i128::from(FIRST) * request / i128::from(node_memory)).unwrap_or(FIRST)
    };
    let mut score = FIRST - of(container);
    let inits = spec.init_containers.as_deref().unwrap_or_default();
    let sidecar = inits
        .iter()
        .any(|init| init.name == container.name && init.restart_policy.as_deref() == Some("Always"));
    if let Some(least) = spec.containers.iter().map(of).min().filter(|_| sidecar) {
        score = score.min(FIRST - least);
    }
    score.clamp(FIRST + LAST, FIRST - 1)
}

/// What a pod requests as a whole and no container of it, divided among them, in bytes.
fn unspoken(spec: &PodSpec) -> i128 {
    let Some(whole) = qos::pod_level(spec, "memory", false) else { return 0 };
    let rest = (whole - qos::sum(spec, "memory", false)).max(0) / 1000;
    let long = view::members(spec).filter(|member| member.role != view::Role::Init).count();
    rest / i128::try_from(long.max(1)).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::{Value, json};

    use super::super::tests::{machine, pod_of};
    use super::*;

    const MIB: i64 = 1 << 20;

    fn files(resources: &Value, change: impl FnOnce(&mut Config), want: Expect) {
        let pod = pod_of(&json!([{ "name": "a", "resources": resources }]));
        let mut config = Config::new("n", "/n");
        change(&mut config);
        let memory = asked(&view::spec(&pod).containers[0], "memory");
        let said =
            |files: Files| files.iter().map(|(file, value)| format!("{file}={value} ")).collect::<String>();
        let (one, all) = (container(&pod, memory, &config, &machine()), super::pod(&pod, &config));
        let swap = swap(&pod, memory, &config, &machine());
        want.assert_eq(&format!("{}swap {swap} | {}", said(one), said(all).trim_end()));
    }

    #[test]
    fn memory_is_protected_slowed_down_and_swapped_as_the_node_says() {
        let sure = json!({ "limits": { "cpu": "1", "memory": "64Mi" } });
        let some = json!({ "requests": { "memory": "64Mi" }, "limits": { "memory": "128Mi" } });
        let open = json!({ "requests": { "memory": "64Mi" } });
        let all = |config: &mut Config| {
            config.resources.memory_reservation = true;
            config.resources.memory_throttling_factor = Some(0.9);
            config.resources.limited_swap = true;
        };
        files(&sure, |_| {}, expect!["swap 0 | "]);
        files(&json!({}), |_| {}, expect!["memory.swap.max=0 swap 0 | "]);
        files(&sure, all, expect!["memory.min=67108864 swap 0 | memory.min=67108864"]);
        // 64 + 0.9 * 64 MiB in whole pages; swap: a sixteenth of the node's, as of its memory.
        files(
            &some,
            all,
            expect!["memory.high=127504384 memory.low=67108864 swap 33554432 | memory.low=67108864"],
        );
        // The node has 1 GiB, of which 8 MiB are huge pages.
        files(
            &open,
            all,
            expect![
                "memory.high=965525504 memory.low=67108864 memory.swap.max=33554432 swap 33554432 | memory.low=67108864"
            ],
        );
        files(&json!({}), all, expect!["memory.high=958816256 memory.swap.max=0 swap 0 | "]);
    }

    #[test]
    fn who_asks_for_more_is_killed_later() {
        let score = |pod: &Pod, name: &str| {
            let found = view::members(view::spec(pod)).find(|m| m.name() == name).expect("the container");
            oom_score(pod, found.spec, 1024 * MIB)
        };
        let asks = |memory: &str| json!({ "requests": { "memory": memory } });
        let pod = pod_of(&json!([
            { "name": "half", "resources": asks("512Mi") },
            { "name": "all", "resources": asks("1Gi") },
            { "name": "none" },
        ]));
        assert_eq!((score(&pod, "half"), score(&pod, "all"), score(&pod, "none")), (500, 3, 999));
        assert_eq!(score(&pod_of(&json!([{ "name": "a" }])), "a"), 1000);
        let sure = json!({ "limits": { "cpu": "1", "memory": "1Mi" } });
        assert_eq!(score(&pod_of(&json!([{ "name": "a", "resources": sure }])), "a"), -997);
        let mut served = pod_of(&json!([{ "name": "main", "resources": asks("512Mi") }]));
        let spec = served.spec.as_mut().expect("a spec");
        spec.init_containers = serde_json::from_value(json!([
            { "name": "side", "restartPolicy": "Always", "resources": asks("128Mi") },
            { "name": "init", "resources": asks("128Mi") },
        ]))
        .expect("containers");
        assert_eq!((score(&served, "main"), score(&served, "side"), score(&served, "init")), (500, 500, 875));
        served.spec.as_mut().expect("a spec").priority_class_name = Some(NODE_CRITICAL.into());
        assert_eq!(score(&served, "main"), LAST);
    }
}
