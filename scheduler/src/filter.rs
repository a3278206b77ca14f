//! Why a pod can't be on a node. Each rule is one upstream plugin's; the texts are those that
//! users know from `kubectl describe pod`.

use api::k8s::core::{Node, Pod, PodSpec, Taint};

use crate::cluster::{HostPort, NodeView, host_ports};
use crate::resources::requests;
use crate::selector::{term_matches, tolerated};

/// All reasons against this node; none means that the pod fits.
pub fn reasons_against(pod: &Pod, view: &NodeView) -> Vec<String> {
    let Some(spec) = &pod.spec else { return vec!["pod has no spec".to_owned()] };
    // As upstream, the first plugin that objects speaks; resources name all that lack.
    let first = cordoned(spec, &view.node)
        .or_else(|| untolerated_taint(spec, &view.node))
        .or_else(|| affinity(spec, &view.node))
        .or_else(|| ports(pod, view));
    match first {
        Some(reason) => vec![reason],
        None => lacking(pod, view),
    }
}

/// What no node can change: features that this scheduler does not decide on.
pub fn unsupported(spec: &PodSpec) -> Option<String> {
    let affinity = spec.affinity.as_ref();
    let inter_pod = affinity.and_then(|a| a.pod_affinity.as_ref()).and_then(|a| {
        a.required_during_scheduling_ignored_during_execution.as_ref().filter(|terms| !terms.is_empty())
    });
    let anti = affinity.and_then(|a| a.pod_anti_affinity.as_ref()).and_then(|a| {
        a.required_during_scheduling_ignored_during_execution.as_ref().filter(|terms| !terms.is_empty())
    });
    let hard_spread =
        spec.topology_spread_constraints.iter().flatten().any(|c| c.when_unsatisfiable == "DoNotSchedule");
    let what = if inter_pod.is_some() {
        "required pod affinity"
    } else if anti.is_some() {
        "required pod anti-affinity"
    } else if hard_spread {
        "topology spread constraints with DoNotSchedule"
    } else if spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()) {
        "resource claims"
    } else {
        return None;
    };
    Some(format!(
        "this scheduler does not support {what}: remove it, make it preferred, or set spec.nodeName"
    ))
}

fn cordoned(spec: &PodSpec, node: &Node) -> Option<String> {
    let cordoned = node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false);
    let taint = Taint {
        key: "node.kubernetes.io/unschedulable".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    };
    let tolerated = tolerated(&taint, spec.tolerations.as_deref().unwrap_or_default());
    (cordoned && !tolerated).then(|| "node(s) were unschedulable".to_owned())
}

fn untolerated_taint(spec: &PodSpec, node: &Node) -> Option<String> {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let hard = |taint: &&Taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute");
    let taint = taints.iter().filter(hard).find(|taint| !tolerated(taint, tolerations))?;
    Some(format!(
        "node(s) had untolerated taint(s) {{{}: {}}}",
        taint.key,
        taint.value.clone().unwrap_or_default()
    ))
}

fn affinity(spec: &PodSpec, node: &Node) -> Option<String> {
    let labels = node.metadata.labels.as_ref();
    let selected = spec
        .node_selector
        .iter()
        .flatten()
        .all(|(key, value)| labels.and_then(|l| l.get(key)) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let allowed = required.is_none_or(|r| r.node_selector_terms.iter().any(|term| term_matches(term, node)));
    (!selected || !allowed).then(|| "node(s) didn't match Pod's node affinity/selector".to_owned())
}

fn ports(pod: &Pod, view: &NodeView) -> Option<String> {
    let wanted = host_ports(pod);
    let taken = wanted.iter().any(|port| view.ports.iter().any(|other| clash(port, other)));
    taken.then(|| "node(s) didn't have free ports for the requested pod ports".to_owned())
}

fn clash(a: &HostPort, b: &HostPort) -> bool {
    let any = |address: &str| matches!(address, "0.0.0.0" | "::");
    a.0 == b.0 && a.2 == b.2 && (a.1 == b.1 || any(&a.1) || any(&b.1))
}

fn lacking(pod: &Pod, view: &NodeView) -> Vec<String> {
    let mut reasons = Vec::new();
    if view.pods + 1 > view.allocatable.get("pods") {
        reasons.push("Too many pods".to_owned());
    }
    for (name, amount) in requests(pod).iter().filter(|(_, amount)| *amount > 0) {
        if view.requested.get(name) + amount > view.allocatable.get(name) {
            reasons.push(format!("Insufficient {name}"));
        }
    }
    reasons
}
