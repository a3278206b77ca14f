//! CPU and memory of containers and pods as the kernel counts them.

use std::collections::BTreeMap;

use cri_api::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};

use crate::config::Config;
use crate::node::facts::{HUGE_PAGES, HugePages, Machine};
use crate::pod::view;
use crate::quantity;
use crate::status::qos;

mod memory;

const PERIOD: i64 = 100_000;

/// What a container asks for of a resource, in whole units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Asked {
    /// 0: nothing.
    request: i64,
    /// 0: no limit.
    limit: i64,
}

/// A container's limits.
pub fn container(
    pod: &Pod,
    container: &Container,
    config: &Config,
    machine: &Machine,
) -> cri::LinuxContainerResources {
    let memory = asked(container, "memory");
    let mut unified = memory::container(pod, memory, config, machine);
    if !config.resources.single_process_oom_kill {
        // A container that exceeds its memory ends as a whole, not one process of it.
        unified.insert("memory.oom.group".to_owned(), "1".to_owned());
    }
    cri::LinuxContainerResources {
        cpu_period: PERIOD,
        cpu_quota: quota(amount(container, "cpu", true, quantity::milli)),
        cpu_shares: shares(amount(container, "cpu", false, quantity::milli)),
        memory_limit_in_bytes: memory.limit,
        // Of both together.
        memory_swap_limit_in_bytes: match memory.limit {
            0 => 0,
            limit => limit.saturating_add(memory::swap(pod, memory, config, machine)),
        },
        oom_score_adj: memory::oom_score(pod, container, machine.memory),
        hugepage_limits: huge_pages(machine, |kind| asked(container, kind).limit),
        unified,
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

/// The sums of a pod's containers, and the limit of its processes. Its sandbox's cgroup gets them with the overhead.
pub fn pod(pod: &Pod, config: &Config, machine: &Machine) -> cri::LinuxContainerResources {
    let spec = view::spec(pod);
    let limited = |kind: &str| {
        let whole = qos::pod_level(spec, kind, true).is_some();
        whole
            || view::members(spec).filter(|m| m.role != view::Role::Init).all(|m| {
                m.spec
                    .resources
                    .as_ref()
                    .and_then(|r| r.limits.as_ref())
                    .is_some_and(|l| l.contains_key(kind))
            })
    };
    let total = |kind: &str, limits| i64::try_from(qos::pod_total(spec, kind, limits)).unwrap_or(i64::MAX);
    let memory = if limited("memory") { total("memory", true) / 1000 } else { 0 };
    let mut unified = memory::pod(pod, config);
    if let Some(limit) = config.resources.pod_pids_limit {
        unified.insert("pids.max".to_owned(), limit.to_string());
    }
    cri::LinuxContainerResources {
        cpu_period: PERIOD,
        cpu_quota: if limited("cpu") { quota(total("cpu", true)) } else { 0 },
        cpu_shares: shares(total("cpu", false)),
        memory_limit_in_bytes: memory,
        hugepage_limits: huge_pages(machine, |kind| total(kind, true) / 1000),
        unified,
        ..Default::default()
    }
}

/// Limits of each size of huge pages that the node has: who asks for none gets none.
fn huge_pages(machine: &Machine, limit: impl Fn(&str) -> i64) -> Vec<cri::HugepageLimit> {
    let one = |pages: &HugePages| cri::HugepageLimit {
        page_size: pages.cri_size(),
        limit: u64::try_from(limit(&pages.resource())).unwrap_or(0),
    };
    machine.huge_pages.iter().map(one).collect()
}

/// Huge pages that a pod asks for and the node has not, if any: the resource, what is asked for, what there is.
pub fn missing_huge_pages(pod: &Pod, machine: &Machine) -> Option<(String, i64, i64)> {
    let spec = view::spec(pod);
    let kinds: std::collections::BTreeSet<&String> = view::members(spec)
        .filter_map(|m| m.spec.resources.as_ref())
        .chain(&spec.resources)
        .flat_map(|r| r.limits.iter().chain(&r.requests).flat_map(|list| list.keys()))
        .filter(|kind| kind.starts_with(HUGE_PAGES))
        .collect();
    kinds.into_iter().find_map(|kind| {
        let wanted = i64::try_from(qos::pod_total(spec, kind, true) / 1000).unwrap_or(i64::MAX);
        let there = machine.huge_pages.iter().find(|p| p.resource() == *kind).map_or(0, |p| p.total());
        (wanted > there).then(|| (kind.clone(), wanted, there))
    })
}

fn asked(container: &Container, kind: &str) -> Asked {
    let whole = |text: &str| quantity::whole(text).map(i128::from);
    Asked { request: amount(container, kind, false, whole), limit: amount(container, kind, true, whole) }
}

/// A limit, or a request, which is the limit where there is none.
fn amount(container: &Container, kind: &str, limit: bool, read: impl Fn(&str) -> Option<i128>) -> i64 {
    let none = ResourceRequirements::default();
    let resources = container.resources.as_ref().unwrap_or(&none);
    let get = |list: &Option<BTreeMap<String, _>>| {
        let list = list.as_ref()?;
        list.get(kind).and_then(|q: &k8s_openapi::apimachinery::pkg::api::resource::Quantity| read(&q.0))
    };
    let found = if limit { None } else { get(&resources.requests) }.or_else(|| get(&resources.limits));
    found.map_or(0, |amount| i64::try_from(amount).unwrap_or(i64::MAX))
}

/// CFS quota per period for thousandths of a CPU; 0: no limit. Never below a millisecond.
fn quota(milli: i64) -> i64 {
    if milli <= 0 { 0 } else { (milli * PERIOD / 1000).max(1000) }
}

/// CPU shares: 1024 a CPU, at least 2.
pub fn shares(milli: i64) -> i64 {
    (milli.saturating_mul(1024) / 1000).clamp(2, 262_144)
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    pub fn pod_of(containers: &Value) -> Pod {
        serde_json::from_value(json!({ "spec": { "containers": containers } })).expect("a pod")
    }

    pub fn machine() -> Machine {
        let huge_pages = vec![HugePages { size: 2 << 20, count: 4 }];
        Machine { cpus: 2, memory: 1 << 30, swap: 1 << 29, huge_pages, ..Machine::default() }
    }

    fn only(pod: &Pod, config: &Config) -> cri::LinuxContainerResources {
        container(pod, &view::spec(pod).containers[0], config, &machine())
    }

    #[test]
    fn huge_pages_are_only_for_those_who_ask() {
        let config = Config::new("n", "/n");
        let asks = pod_of(&json!([
            { "name": "a", "resources": { "limits": { "hugepages-2Mi": "4Mi", "memory": "64Mi" } } },
            { "name": "b", "resources": { "limits": { "hugepages-2Mi": "2Mi", "memory": "64Mi" } } },
        ]));
        let limits = |limits: Vec<cri::HugepageLimit>| -> Vec<(String, u64)> {
            limits.into_iter().map(|l| (l.page_size, l.limit)).collect()
        };
        let two = |limit| vec![("2MB".to_owned(), limit)];
        assert_eq!(limits(only(&asks, &config).hugepage_limits), two(4 << 20));
        assert_eq!(limits(pod(&asks, &config, &machine()).hugepage_limits), two(6 << 20));
        assert_eq!(limits(only(&pod_of(&json!([{ "name": "a" }])), &config).hugepage_limits), two(0));
        assert_eq!(missing_huge_pages(&asks, &machine()), None);
        let more =
            |kind: &str| pod_of(&json!([{ "name": "a", "resources": { "limits": { kind: "10Mi" } } }]));
        assert_eq!(
            missing_huge_pages(&more("hugepages-2Mi"), &machine()),
            Some(("hugepages-2Mi".into(), 10 << 20, 8 << 20))
        );
        assert_eq!(
            missing_huge_pages(&more("hugepages-1Gi"), &machine()),
            Some(("hugepages-1Gi".into(), 10 << 20, 0))
        );
    }

    #[test]
    fn a_pod_can_be_limited_as_a_whole() {
        let config = Config::new("n", "/n");
        let asks = json!({ "requests": { "memory": "32Mi", "cpu": "100m" } });
        let mut whole = pod_of(&json!([{ "name": "a", "resources": asks }, { "name": "b" }]));
        let unlimited = pod(&whole, &config, &machine());
        assert_eq!((unlimited.memory_limit_in_bytes, unlimited.cpu_quota, unlimited.cpu_shares), (0, 0, 102));
        let level =
            json!({ "requests": { "memory": "64Mi" }, "limits": { "memory": "96Mi", "cpu": "200m" } });
        whole.spec.as_mut().expect("a spec").resources = serde_json::from_value(level).expect("resources");
        let limited = pod(&whole, &config, &machine());
        assert_eq!(
            (limited.memory_limit_in_bytes, limited.cpu_quota, limited.cpu_shares),
            (96 << 20, 20_000, 204)
        );
        // What no container asks for is divided among them: 32 MiB more for two.
        let score = |at: usize| container(&whole, &view::spec(&whole).containers[at], &config, &machine());
        assert_eq!((score(0).oom_score_adj, score(1).oom_score_adj), (954, 985));
    }

    #[test]
    fn a_pods_processes_are_limited_where_the_node_says_so() {
        let mut config = Config::new("n", "/n");
        let any = pod_of(&json!([{ "name": "a" }]));
        assert_eq!(pod(&any, &config, &machine()).unified, BTreeMap::new());
        config.resources.pod_pids_limit = Some(100);
        assert_eq!(pod(&any, &config, &machine()).unified["pids.max"], "100");
        assert_eq!(only(&any, &config).unified["memory.oom.group"], "1");
        config.resources.single_process_oom_kill = true;
        assert!(!only(&any, &config).unified.contains_key("memory.oom.group"));
    }
}
