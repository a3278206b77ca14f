//! `/stats/summary`: what the node, its pods and their containers use.

use cri_api::v1 as cri;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{Body, State, json_answer, text};
use crate::labels;
use crate::node::facts;
use crate::pod::observed::timestamp;

pub(super) async fn summary(state: &State) -> Response<Body> {
    let shared = &state.shared;
    let containers = shared.cri.list_container_stats(cri::ListContainerStatsRequest { filter: None }).await;
    let sandboxes = shared.cri.list_pod_sandbox_stats(cri::ListPodSandboxStatsRequest { filter: None }).await;
    let (containers, sandboxes) = match (containers, sandboxes) {
        (Ok(c), Ok(s)) => (c.stats, s.stats),
        (Err(err), _) | (_, Err(err)) => {
            let message = format!("ask the runtime for statistics: {}", err.message());
            return text(StatusCode::INTERNAL_SERVER_ERROR, message);
        }
    };
    let pods: Vec<Value> = sandboxes.iter().map(|s| pod(s, &containers)).collect();
    let total = facts::meminfo(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemTotal");
    let available = facts::memory_available();
    let node = json!({
        "nodeName": shared.config.node_name,
        "memory": {
            "time": shared.clock.now().to_string(),
            "availableBytes": available, "usageBytes": total - available, "workingSetBytes": total - available,
        },
    });
    json_answer(&json!({"node": node, "pods": pods}))
}

fn pod(stats: &cri::PodSandboxStats, containers: &[cri::ContainerStats]) -> Value {
    let attributes = stats.attributes.clone().unwrap_or_default();
    let meta = attributes.metadata.unwrap_or_default();
    let own = containers.iter().filter(|c| {
        c.attributes.as_ref().and_then(|a| a.labels.get(labels::POD_UID)).is_some_and(|uid| *uid == meta.uid)
    });
    let linux = stats.linux.clone().unwrap_or_default();
    let network = linux.network.and_then(|n| n.default_interface.map(|i| (n.timestamp, i)));
    json!({
        "podRef": {"name": meta.name, "namespace": meta.namespace, "uid": meta.uid},
        "containers": own.map(container).collect::<Vec<_>>(),
        "cpu": linux.cpu.as_ref().map(cpu),
        "memory": linux.memory.as_ref().map(memory),
        "network": network.map(|(at, i)| json!({
            "time": timestamp(at).to_string(), "name": i.name,
            "rxBytes": number(i.rx_bytes.as_ref()), "rxErrors": number(i.rx_errors.as_ref()),
            "txBytes": number(i.tx_bytes.as_ref()), "txErrors": number(i.tx_errors.as_ref()),
        })),
        "process_stats": linux.process.map(|p| json!({"process_count": number(p.process_count.as_ref())})),
    })
}

fn container(stats: &cri::ContainerStats) -> Value {
    let name = stats.attributes.as_ref().and_then(|a| a.metadata.as_ref()).map(|m| m.name.clone());
    json!({
        "name": name,
        "cpu": stats.cpu.as_ref().map(cpu),
        "memory": stats.memory.as_ref().map(memory),
        "rootfs": stats.writable_layer.as_ref().map(|w| json!({
            "time": timestamp(w.timestamp).to_string(),
            "usedBytes": number(w.used_bytes.as_ref()), "inodesUsed": number(w.inodes_used.as_ref()),
        })),
    })
}

fn cpu(c: &cri::CpuUsage) -> Value {
    json!({
        "time": timestamp(c.timestamp).to_string(),
        "usageNanoCores": number(c.usage_nano_cores.as_ref()),
        "usageCoreNanoSeconds": number(c.usage_core_nano_seconds.as_ref()),
    })
}

fn memory(m: &cri::MemoryUsage) -> Value {
    json!({
        "time": timestamp(m.timestamp).to_string(),
        "availableBytes": number(m.available_bytes.as_ref()), "usageBytes": number(m.usage_bytes.as_ref()),
        "workingSetBytes": number(m.working_set_bytes.as_ref()), "rssBytes": number(m.rss_bytes.as_ref()),
        "pageFaults": number(m.page_faults.as_ref()), "majorPageFaults": number(m.major_page_faults.as_ref()),
    })
}

fn number(value: Option<&cri::UInt64Value>) -> Option<u64> {
    value.map(|v| v.value)
}
