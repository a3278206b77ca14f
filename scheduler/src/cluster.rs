//! The cluster as one decision sees it: nodes, and what is promised on each.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::k8s::core::{Node, Pod};

use crate::resources::{Amounts, requests, requests_for_scoring};

/// A host port in use: protocol, address (`0.0.0.0` is any) and number.
pub type HostPort = (String, String, i32);

/// One node, and what the pods on it hold.
#[derive(Debug, Clone)]
pub struct NodeView {
    /// The node.
    pub node: Arc<Node>,
    /// What it has for pods.
    pub allocatable: Amounts,
    /// What its pods asked for.
    pub requested: Amounts,
    /// The same with modest amounts for pods that ask for nothing.
    pub requested_for_scoring: Amounts,
    /// How many pods it has.
    pub pods: i64,
    /// Host ports of its pods.
    pub ports: Vec<HostPort>,
}

impl NodeView {
    /// The node's name.
    pub fn name(&self) -> &str {
        self.node.metadata.name.as_deref().unwrap_or_default()
    }

    /// Counts a pod as being here.
    pub fn hold(&mut self, pod: &Pod) {
        self.requested.add(&requests(pod));
        self.requested_for_scoring.add(&requests_for_scoring(pod));
        self.pods += 1;
        self.ports.extend(host_ports(pod));
    }
}

/// All nodes, by name.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    nodes: BTreeMap<String, NodeView>,
}

impl Cluster {
    /// Takes stock: every pod that has a node and hasn't ended holds its requests there.
    pub fn new(nodes: &[Arc<Node>], pods: &[Arc<Pod>]) -> Cluster {
        let view = |node: &Arc<Node>| NodeView {
            node: Arc::clone(node),
            allocatable: Amounts::read(node.status.as_ref().and_then(|s| s.allocatable.as_ref())),
            requested: Amounts::default(),
            requested_for_scoring: Amounts::default(),
            pods: 0,
            ports: Vec::new(),
        };
        let named = nodes.iter().filter_map(|node| Some((node.metadata.name.clone()?, view(node))));
        let mut cluster = Cluster { nodes: named.collect() };
        for pod in pods.iter().filter(|pod| !has_ended(pod)) {
            if let Some(name) = node_of(pod) {
                cluster.hold(name, pod);
            }
        }
        cluster
    }

    /// Counts a pod as being on a node; a node that is gone holds nothing.
    pub fn hold(&mut self, node: &str, pod: &Pod) {
        if let Some(view) = self.nodes.get_mut(node) {
            view.hold(pod);
        }
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeView> {
        self.nodes.values()
    }
}

/// The node that the pod is bound to.
pub fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

/// Whether the pod runs no more and holds nothing.
pub fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The host ports that a pod takes.
pub fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let taken = ports.filter_map(|port| {
        let number = port.host_port.filter(|number| *number > 0)?;
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        let address =
            port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".to_owned());
        Some((protocol, address, number))
    });
    taken.collect()
}
