//! The Node object, as this kubelet writes it.
//!
//! Guarantees: pure; labels, taints and conditions of others are left alone.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
    NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeSpec, NodeStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::allocatable;
use super::facts::Machine;
use crate::config::Config;

/// What the runtime says about itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Runtime {
    /// `orlop://0.1.0`.
    pub version: String,
    /// It can run pods; else why not.
    pub not_ready: Option<String>,
    /// What it cannot enforce on this machine, a sentence each; `None` if it doesn't tell.
    pub unenforced: Option<Vec<String>>,
    /// Images it has.
    pub images: Vec<ContainerImage>,
    /// Its handlers and what each can do.
    pub handlers: Vec<cri_api::v1::RuntimeHandler>,
    /// Whether it knows `supplementalGroupsPolicy`; `None` if it doesn't tell.
    pub groups_policy: Option<bool>,
}

/// Changing facts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pressure {
    /// Little memory is left.
    pub memory: bool,
    /// Little disk is left.
    pub disk: bool,
    /// Few process ids are left.
    pub pids: bool,
}

/// The object to create when the node isn't registered yet.
pub fn fresh(config: &Config, machine: &Machine) -> Node {
    Node {
        metadata: ObjectMeta {
            name: Some(config.node_name.clone()),
            labels: Some(labels(config, machine)),
            annotations: Some(
                [("volumes.kubernetes.io/controller-managed-attach-detach".to_owned(), "true".to_owned())]
                    .into(),
            ),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            taints: (!config.register_with_taints.is_empty()).then(|| config.register_with_taints.clone()),
            provider_id: config.provider_id.clone(),
            ..NodeSpec::default()
        }),
        status: None,
    }
}

/// The labels that a kubelet gives its node.
pub fn labels(config: &Config, machine: &Machine) -> BTreeMap<String, String> {
    let mut labels = config.node_labels.clone();
    let arch = machine.info.architecture.clone();
    for (key, value) in [
        ("kubernetes.io/hostname", config.hostname.clone()),
        ("kubernetes.io/os", "linux".into()),
        ("kubernetes.io/arch", arch.clone()),
        ("beta.kubernetes.io/os", "linux".into()),
        ("beta.kubernetes.io/arch", arch),
    ] {
        labels.insert(key.into(), value);
    }
    labels
}

/// The status; `before` keeps transition times.
pub fn status(
    config: &Config,
    machine: &Machine,
    runtime: &Runtime,
    pressure: &Pressure,
    port: i32,
    before: &NodeStatus,
    now: Timestamp,
) -> NodeStatus {
    let mut info = machine.info.clone();
    info.container_runtime_version = runtime.version.clone();
    info.kubelet_version = config.kubelet_version.clone();
    info.kube_proxy_version = String::new();
    let mut addresses: Vec<NodeAddress> = config
        .node_ips
        .iter()
        .map(|ip| NodeAddress { type_: "InternalIP".into(), address: ip.to_string() })
        .collect();
    addresses.push(NodeAddress { type_: "Hostname".into(), address: config.hostname.clone() });
    NodeStatus {
        allocatable: Some(allocatable::allocatable(config, machine)),
        capacity: Some(allocatable::capacity(config, machine)),
        conditions: Some(conditions(runtime, pressure, before, now)),
        addresses: Some(addresses),
        daemon_endpoints: Some(NodeDaemonEndpoints { kubelet_endpoint: Some(DaemonEndpoint { port }) }),
        node_info: Some(info),
        images: Some(runtime.images.clone()),
        runtime_handlers: Some(runtime.handlers.iter().map(handler).collect()),
        features: runtime.groups_policy.map(|known| NodeFeatures { supplemental_groups_policy: Some(known) }),
        ..NodeStatus::default()
    }
}

fn handler(handler: &cri_api::v1::RuntimeHandler) -> NodeRuntimeHandler {
    let features = handler.features.as_ref().map(|features| NodeRuntimeHandlerFeatures {
        recursive_read_only_mounts: Some(features.recursive_read_only_mounts),
        user_namespaces: Some(features.user_namespaces),
    });
    NodeRuntimeHandler { name: Some(handler.name.clone()), features }
}

fn conditions(
    runtime: &Runtime,
    pressure: &Pressure,
    before: &NodeStatus,
    now: Timestamp,
) -> Vec<NodeCondition> {
    let word = |bad: bool, kind: &str, yes: (&str, &str), no: (&str, &str)| {
        let (reason, message) = if bad { yes } else { no };
        (kind.to_owned(), bad, reason.to_owned(), message.to_owned())
    };
    let mut words = vec![
        word(
            pressure.memory,
            "MemoryPressure",
            ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
            ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ),
        word(
            pressure.disk,
            "DiskPressure",
            ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ),
        word(
            pressure.pids,
            "PIDPressure",
            ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
            ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ),
    ];
    words.push(match &runtime.not_ready {
        None => ("Ready".into(), true, "KubeletReady".into(), "kubelet is posting ready status".into()),
        Some(why) => ("Ready".into(), false, "KubeletNotReady".into(), why.clone()),
    });
    if let Some(sentences) = &runtime.unenforced {
        let all = ("EverythingEnforced", "everything a pod can ask for is enforced");
        let text = sentences.join("; ");
        words.push(word(!sentences.is_empty(), "LimitsNotEnforced", ("NotEnforced", &text), all));
    }
    let old = before.conditions.as_deref().unwrap_or_default();
    words
        .into_iter()
        .map(|(kind, holds, reason, message)| {
            let status = if holds { "True" } else { "False" };
            let same = old.iter().find(|c| c.type_ == kind && c.status == status);
            NodeCondition {
                last_transition_time: same.and_then(|c| c.last_transition_time.clone()).or(Some(Time(now))),
                last_heartbeat_time: Some(Time(now)),
                message: Some(message),
                reason: Some(reason),
                status: status.into(),
                type_: kind,
            }
        })
        .collect()
}

/// Whether two statuses differ in more than their heartbeats.
pub fn differs(a: &NodeStatus, b: &NodeStatus) -> bool {
    let strip = |s: &NodeStatus| {
        let mut s = s.clone();
        for c in s.conditions.iter_mut().flatten() {
            c.last_heartbeat_time = None;
            c.last_transition_time = None;
        }
        s
    };
    strip(a) != strip(b)
}
