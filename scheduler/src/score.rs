//! Which of the nodes that a pod fits on is best. Each score is 0 to 100 and weighted as upstream's
//! default profile weighs it.

use api::k8s::core::{Pod, PodSpec, Taint};

use crate::cluster::NodeView;
use crate::resources::requests_for_scoring;
use crate::selector::{term_matches, tolerated};

const MOST: i64 = 100;

/// The weighted sum for each node, in the order given.
pub fn scores(pod: &Pod, fitting: &[&NodeView]) -> Vec<i64> {
    let spec = pod.spec.as_ref();
    let taints = normalised(fitting.iter().map(|v| soft_taints(spec, v)).collect(), true);
    let affinity = normalised(fitting.iter().map(|v| preferred_affinity(spec, v)).collect(), false);
    let rest = fitting
        .iter()
        .map(|view| least_allocated(pod, view) + balance(pod, view) + image_locality(spec, view));
    rest.zip(taints).zip(affinity).map(|((rest, taint), affinity)| rest + 3 * taint + 2 * affinity).collect()
}

/// Spreads raw scores over 0 to 100; `reverse` where less is better.
fn normalised(raw: Vec<i64>, reverse: bool) -> Vec<i64> {
    let most = raw.iter().copied().max().unwrap_or(0);
    let one = |score: i64| if most == 0 { 0 } else { score * MOST / most };
    raw.into_iter().map(|score| if reverse { MOST - one(score) } else { one(score) }).collect()
}

/// The free share of CPU and memory with the pod on the node.
fn least_allocated(pod: &Pod, view: &NodeView) -> i64 {
    let free = shares(pod, view).map(|used| ((1.0 - used) * MOST as f64) as i64);
    free.iter().sum::<i64>() / 2
}

/// How near to each other the used shares of CPU and memory are.
fn balance(pod: &Pod, view: &NodeView) -> i64 {
    let [cpu, memory] = shares(pod, view);
    ((1.0 - (cpu - memory).abs() / 2.0) * MOST as f64) as i64
}

/// The used shares of CPU and memory with the pod on the node, 0 to 1.
fn shares(pod: &Pod, view: &NodeView) -> [f64; 2] {
    let asked = requests_for_scoring(pod);
    ["cpu", "memory"].map(|name| {
        let total = view.allocatable.get(name);
        let used = view.requested_for_scoring.get(name) + asked.get(name);
        if total <= 0 { 1.0 } else { (used as f64 / total as f64).clamp(0.0, 1.0) }
    })
}

/// Taints of effect PreferNoSchedule that the pod does not tolerate: fewer is better.
fn soft_taints(spec: Option<&PodSpec>, view: &NodeView) -> i64 {
    let taints = view.node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let tolerations = spec.and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let against = |taint: &&Taint| taint.effect == "PreferNoSchedule" && !tolerated(taint, tolerations);
    taints.iter().filter(against).count() as i64
}

/// Sum of the weights of the preferred node affinities that the node satisfies.
fn preferred_affinity(spec: Option<&PodSpec>, view: &NodeView) -> i64 {
    let affinity = spec.and_then(|s| s.affinity.as_ref()).and_then(|a| a.node_affinity.as_ref());
    let terms = affinity.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref());
    let met = terms.unwrap_or_default().iter().filter(|term| term_matches(&term.preference, &view.node));
    met.map(|term| i64::from(term.weight)).sum()
}

/// Bytes of the pod's images that the node has already: from 23 MB on it counts, from 1 GB on fully.
fn image_locality(spec: Option<&PodSpec>, view: &NodeView) -> i64 {
    const LEAST: i64 = 23 << 20;
    const ENOUGH: i64 = 1000 << 20;
    let images = view.node.status.as_ref().and_then(|s| s.images.as_deref()).unwrap_or_default();
    let wanted = spec.into_iter().flat_map(|s| &s.containers).filter_map(|c| c.image.as_deref());
    let size = |name: &str| {
        let has = |names: &[String]| names.iter().any(|n| n == name);
        let image = images.iter().find(|image| image.names.as_deref().is_some_and(has));
        image.and_then(|image| image.size_bytes).unwrap_or(0)
    };
    let bytes: i64 = wanted.map(size).sum();
    (bytes.clamp(LEAST, ENOUGH) - LEAST) * MOST / (ENOUGH - LEAST)
}
