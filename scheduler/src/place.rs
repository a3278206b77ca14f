//! The decision: one pod, one cluster, one answer.

use std::collections::BTreeMap;

use api::k8s::core::Pod;

use crate::cluster::{Cluster, NodeView};
use crate::filter::{reasons_against, unsupported};
use crate::score::scores;

/// Where a pod goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// Onto the node of this name.
    On(String),
    /// Nowhere; why, in the words that `kubectl describe pod` shows.
    Nowhere(String),
}

/// Decides where the pod goes. Equal scores fall to the node with fewer pods, then by name.
pub fn place(pod: &Pod, cluster: &Cluster) -> Placement {
    if let Some(reason) = pod.spec.as_ref().and_then(unsupported) {
        return Placement::Nowhere(reason);
    }
    let mut fitting: Vec<&NodeView> = Vec::new();
    let mut against: BTreeMap<String, usize> = BTreeMap::new();
    let mut nodes = 0;
    for view in cluster.nodes() {
        nodes += 1;
        let reasons = reasons_against(pod, view);
        if reasons.is_empty() {
            fitting.push(view);
        }
        for reason in reasons {
            *against.entry(reason).or_default() += 1;
        }
    }
    let scores = scores(pod, &fitting);
    let best =
        fitting.iter().zip(scores).min_by_key(|(view, score)| (-score, view.pods, view.name().to_owned()));
    match best {
        Some((view, _)) => Placement::On(view.name().to_owned()),
        None if nodes == 0 => Placement::Nowhere("no nodes available to schedule pods".to_owned()),
        None => {
            let reasons: Vec<_> = against.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
            Placement::Nowhere(format!("0/{nodes} nodes are available: {}.", reasons.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    fn node(name: &str, extra: Value) -> Value {
        let mut node = json!({
            "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
            "spec": {},
            "status": { "allocatable": { "cpu": "2", "memory": "4Gi", "pods": "10" } },
        });
        merge(&mut node, extra);
        node
    }

    fn pod(spec: Value) -> Value {
        let mut pod = json!({ "metadata": { "name": "p" }, "spec": { "containers": [{ "name": "c" }] } });
        merge(&mut pod["spec"], spec);
        pod
    }

    fn merge(into: &mut Value, from: Value) {
        match (into, from) {
            (Value::Object(into), Value::Object(from)) => {
                for (key, value) in from {
                    merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
            (into, from) => *into = from,
        }
    }

    /// Places `wanted` on `nodes` that already have `there`.
    fn check(nodes: &[Value], there: &[Value], wanted: Value, expected: &str) {
        let nodes: Vec<_> =
            nodes.iter().map(|n| Arc::new(serde_json::from_value(n.clone()).unwrap())).collect();
        let pods: Vec<_> =
            there.iter().map(|p| Arc::new(serde_json::from_value(p.clone()).unwrap())).collect();
        let answer = match place(&serde_json::from_value(wanted).unwrap(), &Cluster::new(&nodes, &pods)) {
            Placement::On(name) => format!("on {name}"),
            Placement::Nowhere(why) => why,
        };
        assert_eq!(answer, expected);
    }

    fn cpu(amount: &str) -> Value {
        json!({ "containers": [{ "name": "c", "resources": { "requests": { "cpu": amount } } }] })
    }

    #[test]
    fn the_emptier_node_wins() {
        let busy = pod(json!({ "nodeName": "a", "containers": cpu("1")["containers"] }));
        check(&[node("a", json!({})), node("b", json!({}))], &[busy], pod(cpu("500m")), "on b");
    }

    #[test]
    fn what_lacks_is_named_and_counted() {
        let small = json!({ "status": { "allocatable": { "cpu": "100m", "pods": "0" } } });
        check(
            &[node("a", json!({})), node("b", small)],
            &[],
            pod(cpu("3")),
            "0/2 nodes are available: 2 Insufficient cpu, 1 Too many pods.",
        );
        check(&[], &[], pod(json!({})), "no nodes available to schedule pods");
    }

    #[test]
    fn a_pod_that_ended_holds_nothing() {
        let mut done = pod(json!({ "nodeName": "a", "containers": cpu("2")["containers"] }));
        done["status"] = json!({ "phase": "Succeeded" });
        check(&[node("a", json!({}))], &[done], pod(cpu("2")), "on a");
    }

    #[test]
    fn taints_keep_pods_away_and_tolerations_let_them_in() {
        let tainted = node(
            "a",
            json!({ "spec": { "taints": [{ "key": "k", "value": "v", "effect": "NoSchedule" }] } }),
        );
        let why = "0/1 nodes are available: 1 node(s) had untolerated taint(s) {k: v}.";
        check(std::slice::from_ref(&tainted), &[], pod(json!({})), why);
        check(&[tainted], &[], pod(json!({ "tolerations": [{ "operator": "Exists" }] })), "on a");
        let cordoned = node("a", json!({ "spec": { "unschedulable": true } }));
        check(&[cordoned], &[], pod(json!({})), "0/1 nodes are available: 1 node(s) were unschedulable.");
    }

    #[test]
    fn selectors_and_affinity_choose() {
        let nodes = [node("a", json!({})), node("b", json!({ "metadata": { "labels": { "disk": "ssd" } } }))];
        check(&nodes, &[], pod(json!({ "nodeSelector": { "disk": "ssd" } })), "on b");
        let preferred = json!({ "affinity": { "nodeAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [
            { "weight": 50, "preference": { "matchExpressions": [{ "key": "disk", "operator": "Exists" }] } }] } } });
        check(&nodes, &[], pod(preferred), "on b");
        let why = "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.";
        check(&nodes, &[], pod(json!({ "nodeSelector": { "disk": "tape" } })), why);
    }

    #[test]
    fn a_host_port_is_given_once() {
        let port =
            json!({ "containers": [{ "name": "c", "ports": [{ "containerPort": 80, "hostPort": 80 }] }] });
        let mut there = pod(port.clone());
        there["spec"]["nodeName"] = "a".into();
        let why = "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.";
        check(&[node("a", json!({}))], &[there], pod(port), why);
    }

    #[test]
    fn what_is_not_supported_is_said() {
        let anti = json!({ "affinity": { "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [
            { "topologyKey": "kubernetes.io/hostname" }] } } });
        check(
            &[node("a", json!({}))],
            &[],
            pod(anti),
            "this scheduler does not support required pod anti-affinity: remove it, make it preferred, or set \
             spec.nodeName",
        );
    }
}
