//! Notices nodes that stopped reporting, and moves their pods away.
//!
//! A node is alive while its lease is renewed. One that isn't for [`GRACE`] gets its Ready condition set
//! to Unknown and the taints `node.kubernetes.io/unreachable`; one that says it isn't ready gets
//! `not-ready`. Pods that don't tolerate a NoExecute taint, or only for a while, are deleted.
//!
//! Caveat: time is counted from when this controller saw the last renewal, not from the renewal's own
//! time: a control plane that was down blames no node for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::k8s::coordination::Lease;
use api::k8s::core::{Node, Pod, Taint, Toleration};
use client::Cache;
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::shell::{Decide, Plan};
use crate::write::{Write, kind, reference};

/// `--node-monitor-grace-period` of kube-controller-manager.
const GRACE: SignedDuration = SignedDuration::from_secs(40);
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const LEASES: &str = "kube-node-lease";
const COMPONENT: &str = "node-controller";

pub struct Controller {
    nodes: Cache<Node>,
    leases: Cache<Lease>,
    pods: Cache<Pod>,
    /// The last renewal of each node's lease that we saw, and when we saw it.
    seen: HashMap<String, (String, Timestamp)>,
}

impl Controller {
    pub fn new(nodes: Cache<Node>, leases: Cache<Lease>, pods: Cache<Pod>) -> Self {
        Controller { nodes, leases, pods, seen: HashMap::new() }
    }

    /// How long the node has been silent.
    fn silence(&mut self, node: &str, now: Timestamp) -> SignedDuration {
        let lease = self.leases.get(LEASES, node);
        let renewed =
            lease.and_then(|l| l.spec.as_ref().and_then(|s| s.renew_time.as_ref()).map(|t| t.0.to_string()));
        let renewed = renewed.unwrap_or_default();
        match self.seen.get(node) {
            Some((last, at)) if *last == renewed => now.duration_since(*at),
            _ => {
                self.seen.insert(node.to_owned(), (renewed, now));
                SignedDuration::ZERO
            }
        }
    }
}

impl Decide for Controller {
    const NAME: &'static str = "node-lifecycle-controller";

    fn changed(&self) -> Vec<watch::Receiver<u64>> {
        vec![self.nodes.changed(), self.leases.changed(), self.pods.changed()]
    }

    fn plan(&mut self, now: Timestamp) -> Plan {
        let mut plan = Plan::default();
        let (nodes, pods) = (self.nodes.list(), self.pods.list());
        self.seen.retain(|name, _| nodes.iter().any(|node| node.name_any() == *name));
        for node in &nodes {
            let silent = self.silence(&node.name_any(), now);
            if silent < GRACE {
                plan.wake_in(Duration::try_from(GRACE - silent).unwrap_or_default());
            }
            plan.writes.extend(judge(node, silent >= GRACE, now));
            let theirs =
                pods.iter().filter(|pod| on(pod) == Some(node.metadata.name.as_deref().unwrap_or_default()));
            for pod in theirs {
                evict(node, pod, now, &mut plan);
            }
        }
        plan.writes.extend(pods.iter().filter_map(|pod| lost(pod, &nodes)));
        plan
    }
}

fn on(pod: &Arc<Pod>) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

fn ready(node: &Node) -> &str {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions
        .iter()
        .find(|condition| condition.type_ == "Ready")
        .map_or("Unknown", |condition| &condition.status)
}

/// The writes that make the node's Ready condition and taints say what is known of it.
fn judge(node: &Node, silent: bool, now: Timestamp) -> Vec<Write> {
    let mut writes = Vec::new();
    let state = if silent { "Unknown" } else { ready(node) };
    if silent && ready(node) != "Unknown" {
        writes.push(merge(node, unknown(node, now), Some("status")));
        writes.push(Write::Event {
            about: reference(node),
            component: COMPONENT,
            kind: "Normal",
            reason: "NodeNotReady".to_owned(),
            message: format!("Node {} status is now: NodeNotReady", node.name_any()),
        });
    }
    let wanted: &[(&str, &str)] = match state {
        "True" => &[],
        "False" => &[(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")],
        _ => &[(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")],
    };
    let there = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let ours = |taint: &&Taint| taint.key == NOT_READY || taint.key == UNREACHABLE;
    let same = there.iter().filter(ours).count() == wanted.len()
        && wanted.iter().all(|(key, effect)| there.iter().any(|t| t.key == *key && t.effect == *effect));
    if !same {
        let mut taints: Vec<Value> =
            there.iter().filter(|taint| !ours(taint)).map(|taint| json!(taint)).collect();
        for (key, effect) in wanted {
            let added = there
                .iter()
                .find(|t| t.key == *key && t.effect == *effect)
                .and_then(|t| t.time_added.clone());
            let added = added.map_or_else(|| json!(api::meta::time(now)), |time| json!(time));
            taints.push(json!({ "key": key, "effect": effect, "timeAdded": added }));
        }
        let patch = json!({ "metadata": { "resourceVersion": node.resource_version() }, "spec": { "taints": taints } });
        writes.push(merge(node, patch, None));
    }
    writes
}

/// All conditions become Unknown, as nobody reports them.
fn unknown(node: &Node, now: Timestamp) -> Value {
    let mut conditions = json!(node.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default());
    for condition in conditions.as_array_mut().into_iter().flatten() {
        condition["status"] = "Unknown".into();
        condition["reason"] = "NodeStatusUnknown".into();
        condition["message"] = "Kubelet stopped posting node status.".into();
        condition["lastTransitionTime"] = api::meta::time(now).into();
    }
    json!({ "metadata": { "resourceVersion": node.resource_version() }, "status": { "conditions": conditions } })
}

fn merge(node: &Node, patch: Value, subresource: Option<&'static str>) -> Write {
    Write::Merge { kind: kind::<Node>(), namespace: String::new(), name: node.name_any(), patch, subresource }
}

/// How long the pod may stay on a node with these taints: `None` for ever.
fn may_stay(node: &Node, pod: &Pod) -> Option<(SignedDuration, Timestamp)> {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let mut least = None;
    for taint in taints.iter().filter(|taint| taint.effect == "NoExecute") {
        let covering: Vec<_> = tolerations.iter().filter(|t| covers(t, taint)).collect();
        let since = taint.time_added.as_ref().map_or(Timestamp::MIN, |time| time.0);
        let seconds = if covering.is_empty() {
            Some(0)
        } else {
            covering.iter().filter_map(|t| t.toleration_seconds).map(|s| s.max(0)).min()
        };
        if let Some(seconds) = seconds {
            let stay = (SignedDuration::from_secs(seconds), since);
            let ends =
                |(stay, since): (SignedDuration, Timestamp)| since.saturating_add(stay).unwrap_or(since);
            least = Some(least.map_or(stay, |other| if ends(stay) < ends(other) { stay } else { other }));
        }
    }
    least
}

fn covers(toleration: &Toleration, taint: &Taint) -> bool {
    let set = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let effect = set(&toleration.effect).is_none_or(|effect| effect == taint.effect);
    let exists = toleration.operator.as_deref() == Some("Exists");
    let value =
        exists || toleration.value.clone().unwrap_or_default() == taint.value.clone().unwrap_or_default();
    effect && set(&toleration.key).map_or(exists, |key| key == taint.key && value)
}

fn evict(node: &Node, pod: &Pod, now: Timestamp, plan: &mut Plan) {
    if pod.metadata.deletion_timestamp.is_some()
        || pod.annotations().contains_key("kubernetes.io/config.mirror")
    {
        return;
    }
    let Some((stay, since)) = may_stay(node, pod) else { return };
    let left = stay.saturating_sub(now.duration_since(since));
    if let Ok(left) = Duration::try_from(left)
        && !left.is_zero()
    {
        plan.wake_in(left);
        return;
    }
    plan.writes.push(delete(pod));
    plan.writes.push(Write::Event {
        about: reference(pod),
        component: "taint-eviction-controller",
        kind: "Normal",
        reason: "TaintManagerEviction".to_owned(),
        message: format!(
            "Marking for deletion Pod {}/{}",
            pod.namespace().unwrap_or_default(),
            pod.name_any()
        ),
    });
}

/// A pod whose node is gone: nobody will ever finish its deletion, so it is forced.
fn lost(pod: &Arc<Pod>, nodes: &[Arc<Node>]) -> Option<Write> {
    let node = on(pod).filter(|name| !name.is_empty())?;
    let there = nodes.iter().any(|n| n.metadata.name.as_deref() == Some(node));
    (!there).then(|| Write::Force {
        kind: kind::<Pod>(),
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
    })
}

fn delete(pod: &Pod) -> Write {
    Write::Delete {
        kind: kind::<Pod>(),
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: &str, taints: Value) -> Node {
        serde_json::from_value(json!({ "metadata": { "name": "n" }, "spec": { "taints": taints },
            "status": { "conditions": [{ "type": "Ready", "status": ready }] } }))
        .unwrap()
    }

    fn pod(tolerations: Value) -> Pod {
        serde_json::from_value(json!({ "metadata": { "name": "p", "namespace": "d", "uid": "p" },
            "spec": { "nodeName": "n", "containers": [], "tolerations": tolerations } }))
        .unwrap()
    }

    fn now() -> Timestamp {
        "2026-01-01T00:10:00Z".parse().unwrap()
    }

    #[test]
    fn a_silent_node_is_marked_and_a_returned_one_cleared() {
        assert!(judge(&node("True", json!([])), false, now()).is_empty());
        assert_eq!(judge(&node("True", json!([])), true, now()).len(), 3);
        let marked = json!([{ "key": UNREACHABLE, "effect": "NoSchedule" }, { "key": UNREACHABLE, "effect": "NoExecute" }]);
        assert!(judge(&node("Unknown", marked.clone()), true, now()).is_empty());
        let cleared = judge(&node("True", marked), false, now());
        assert!(matches!(&cleared[..], [Write::Merge { patch, .. }] if patch["spec"]["taints"] == json!([])));
    }

    #[test]
    fn pods_go_when_their_toleration_ends() {
        let taints =
            json!([{ "key": NOT_READY, "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z" }]);
        let sick = node("False", taints);
        let fate = |tolerations: Value| {
            let mut plan = Plan::default();
            evict(&sick, &pod(tolerations), now(), &mut plan);
            (plan.writes.len(), plan.wake.map(|wake| wake.as_secs()))
        };
        assert_eq!(fate(json!([])), (2, None));
        let until =
            |seconds: i64| json!([{ "key": NOT_READY, "operator": "Exists", "tolerationSeconds": seconds }]);
        assert_eq!(fate(until(300)), (2, None));
        assert_eq!(fate(until(900)), (0, Some(300)));
        assert_eq!(fate(json!([{ "operator": "Exists" }])), (0, None));
    }
}
