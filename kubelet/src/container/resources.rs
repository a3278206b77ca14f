//! CPU and memory of containers and pods as the kernel counts them.

use cri_api::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};

use crate::config::Config;
use crate::pod::view;
use crate::quantity;
use crate::status::qos;

const PERIOD: i64 = 100_000;

/// A container's limits. `node_memory` in bytes scales the out-of-memory score of burstable pods.
pub fn container(pod: &Pod, container: &Container, node_memory: i64) -> cri::LinuxContainerResources {
    let none = ResourceRequirements::default();
    let resources = container.resources.as_ref().unwrap_or(&none);
    let get = |list: Option<&std::collections::BTreeMap<String, _>>, kind: &str| {
        list.and_then(|l| l.get(kind))
            .map(|q: &k8s_openapi::apimachinery::pkg::api::resource::Quantity| q.0.clone())
    };
    let limit = |kind: &str| get(resources.limits.as_ref(), kind);
    let request = |kind: &str| get(resources.requests.as_ref(), kind).or_else(|| limit(kind));
    let milli = |text: Option<String>| {
        text.and_then(|t| quantity::milli(&t)).map_or(0, |m| i64::try_from(m).unwrap_or(i64::MAX))
    };
    let memory = limit("memory").and_then(|t| quantity::whole(&t)).unwrap_or(0);
    cri::LinuxContainerResources {
        cpu_period: PERIOD,
        cpu_quota: quota(milli(limit("cpu"))),
        cpu_shares: shares(milli(request("cpu"))),
        memory_limit_in_bytes: memory,
        // No swap for containers with a limit: what they asked for is what they get.
        memory_swap_limit_in_bytes: memory,
        oom_score_adj: oom_score(
            qos::class(view::spec(pod)),
            request("memory").and_then(|t| quantity::whole(&t)).unwrap_or(0),
            node_memory,
        ),
        // A container that exceeds its memory ends as a whole, not one process of it: what
        // KubeletConfiguration calls `singleProcessOOMKill: false`, its default on cgroup v2.
        unified: std::collections::BTreeMap::from([("memory.oom.group".to_owned(), "1".to_owned())]),
        ..Default::default()
    }
}

/// What a pod's runtime class takes beside the containers; requests and limits are the same.
pub fn overhead(pod: &Pod) -> Option<cri::LinuxContainerResources> {
    let overhead = view::spec(pod).overhead.as_ref().filter(|overhead| !overhead.is_empty())?;
    let cpu = overhead.get("cpu").and_then(|q| quantity::milli(&q.0));
    let cpu = cpu.map_or(0, |milli| i64::try_from(milli).unwrap_or(i64::MAX));
    Some(cri::LinuxContainerResources {
        cpu_period: PERIOD,
        cpu_quota: quota(cpu),
        cpu_shares: shares(cpu),
        memory_limit_in_bytes: overhead.get("memory").and_then(|q| quantity::whole(&q.0)).unwrap_or(0),
        ..Default::default()
    })
}

/// The sums of a pod's containers. Its sandbox's cgroup gets them with the overhead.
pub fn pod(pod: &Pod) -> cri::LinuxContainerResources {
    let spec = view::spec(pod);
    let limited = |kind: &str| {
        view::members(spec).filter(|m| m.role != view::Role::Init).all(|m| {
            m.spec.resources.as_ref().and_then(|r| r.limits.as_ref()).is_some_and(|l| l.contains_key(kind))
        })
    };
    let total = |kind: &str, limits| i64::try_from(qos::pod_total(spec, kind, limits)).unwrap_or(i64::MAX);
    let memory = if limited("memory") { total("memory", true) / 1000 } else { 0 };
    cri::LinuxContainerResources {
        cpu_period: PERIOD,
        cpu_quota: if limited("cpu") { quota(total("cpu", true)) } else { 0 },
        cpu_shares: shares(total("cpu", false)),
        memory_limit_in_bytes: memory,
        ..Default::default()
    }
}

/// CFS quota per period for thousandths of a CPU; 0: no limit. Never below a millisecond.
fn quota(milli: i64) -> i64 {
    if milli <= 0 { 0 } else { (milli * PERIOD / 1000).max(1000) }
}

/// CPU shares: 1024 a CPU, at least 2.
pub fn shares(milli: i64) -> i64 {
    (milli.saturating_mul(1024) / 1000).clamp(2, 262_144)
}

/// How readily the kernel kills it: guaranteed pods last, best-effort ones first.
fn oom_score(class: &str, request: i64, node_memory: i64) -> i64 {
    match class {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ if node_memory <= 0 => 999,
        _ => (1000 - 1000 * request / node_memory).clamp(3, 999),
    }
}

/// The cgroup of a pod below the node's root: `/kubepods[/burstable|/besteffort]/pod<uid>`, or for systemd
/// `kubepods[-burstable|-besteffort]-pod<uid>.slice`.
pub fn cgroup_parent(config: &Config, pod: &Pod, uid: &str) -> String {
    let class = match qos::class(view::spec(pod)) {
        "Burstable" => "/burstable",
        "BestEffort" => "/besteffort",
        _ => "",
    };
    let root = config.cgroup_root.trim_end_matches('/');
    if config.systemd_cgroups {
        let prefix = if root.is_empty() { String::new() } else { format!("{root}-") };
        // A dash is a step in a slice's name.
        return format!("{prefix}kubepods{}-pod{}.slice", class.replace('/', "-"), uid.replace('-', "_"));
    }
    format!("{root}/kubepods{class}/pod{uid}")
}
