//! Tables against what kubectl is known to show.

use super::*;
use crate::registry::find_kind;
use expect_test::{Expect, expect};
use serde_json::json;

fn now() -> Timestamp {
    "2024-01-01T01:00:00Z".parse().expect("time")
}

fn check(group: &str, kind: &str, mut object: Value, expected: Expect) {
    let row = find_kind(group, "v1", kind).expect("row");
    crate::meta::set(&mut object, "name", "a");
    if crate::meta::created(&object).is_none() {
        crate::meta::set(&mut object, "creationTimestamp", "2024-01-01T00:55:00Z");
    }
    let t = render(row, [&object], json!({"resourceVersion": "5"}), now(), IncludeObject::Metadata, true);
    let columns: Vec<String> = t["columnDefinitions"]
        .as_array()
        .expect("columns")
        .iter()
        .map(|c| c["name"].as_str().expect("name").to_uppercase())
        .collect();
    let cells: Vec<String> = t["rows"][0]["cells"]
        .as_array()
        .expect("cells")
        .iter()
        .map(|c| c.as_str().map_or_else(|| c.to_string(), str::to_owned))
        .collect();
    assert_eq!(columns.len(), cells.len());
    expected.assert_eq(&format!("{}\n{}\n", columns.join("|"), cells.join("|")));
}

fn status(pod: Value) -> String {
    let s = pod_summary(&pod);
    format!("{}/{} {} {}", s.ready, s.total, s.status, s.restarts_text(now()))
}

#[test]
fn pod_columns() {
    check(
        "",
        "Pod",
        json!({"spec": {"nodeName": "n", "containers": [{}], "readinessGates": [{"conditionType": "x"}]}, "status": {"phase": "Running", "podIP": "10.1.0.2",
            "containerStatuses": [{"ready": true, "restartCount": 2, "state": {"running": {}}, "lastState": {"terminated": {"finishedAt": "2024-01-01T00:59:55Z"}}}]}}),
        expect![[r#"
            NAME|READY|STATUS|RESTARTS|AGE|IP|NODE|NOMINATED NODE|READINESS GATES
            a|1/1|Running|2 (5s ago)|5m|10.1.0.2|n|<none>|0/1
        "#]],
    );
}

#[test]
fn pod_words() {
    let with = |c: Value| json!({"spec": {"containers": [{}]}, "status": {"phase": "Running", "containerStatuses": [c]}});
    let init = |c: Value| {
        json!({"spec": {"initContainers": [{"name": "i"}, {"name": "j"}], "containers": [{}]}, "status": {"phase": "Pending",
        "initContainerStatuses": [c], "containerStatuses": [{"state": {"waiting": {"reason": "PodInitializing"}}}]}})
    };
    for (pod, expected) in [
        (json!({"spec": {"containers": [{}]}, "status": {"phase": "Pending"}}), "0/1 Pending 0"),
        (with(json!({"state": {"waiting": {"reason": "ContainerCreating"}}})), "0/1 ContainerCreating 0"),
        (
            with(json!({"restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}}})),
            "0/1 CrashLoopBackOff 3",
        ),
        (with(json!({"state": {"terminated": {"reason": "Completed", "exitCode": 0}}})), "0/1 Completed 0"),
        (with(json!({"state": {"terminated": {"reason": "Error", "exitCode": 1}}})), "0/1 Error 0"),
        (with(json!({"state": {"terminated": {"exitCode": 7}}})), "0/1 ExitCode:7 0"),
        (with(json!({"state": {"terminated": {"exitCode": 137, "signal": 9}}})), "0/1 Signal:9 0"),
        (with(json!({"state": {"running": {}}})), "0/1 Running 0"),
        (init(json!({"name": "i", "state": {"running": {}}})), "0/1 Init:0/2 0"),
        (init(json!({"name": "i", "state": {"terminated": {"exitCode": 1}}})), "0/1 Init:ExitCode:1 0"),
        (
            init(
                json!({"name": "i", "restartCount": 1, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}),
            ),
            "0/1 Init:CrashLoopBackOff 1",
        ),
        (init(json!({"name": "i", "state": {"terminated": {"exitCode": 0}}})), "0/1 PodInitializing 0"),
    ] {
        assert_eq!(status(pod.clone()), expected, "{pod}");
        let mut gone = pod;
        gone["metadata"] = json!({"deletionTimestamp": "2024-01-01T00:00:00Z"});
        assert!(status(gone).contains(" Terminating "));
    }
    let mut sidecar = init(
        json!({"name": "i", "started": true, "ready": true, "restartCount": 4, "state": {"running": {}}}),
    );
    sidecar["spec"]["initContainers"][0]["restartPolicy"] = json!("Always");
    sidecar["status"]["containerStatuses"] = json!([{"ready": true, "state": {"running": {}}}]);
    sidecar["status"]["phase"] = json!("Running");
    assert_eq!(status(sidecar), "2/2 Running 4");
    let two = json!({"spec": {"containers": [{}, {}]}, "status": {"phase": "Running", "containerStatuses": [
        {"state": {"terminated": {"reason": "Completed", "exitCode": 0}}}, {"ready": true, "state": {"running": {}}}]}});
    assert_eq!(status(two), "1/2 NotReady 0");
}

#[test]
fn other_kinds() {
    check(
        "apps",
        "Deployment",
        json!({"spec": {"replicas": 2, "selector": {"matchLabels": {"app": "a"}}, "template": {"spec": {"containers": [{"name": "c", "image": "i"}, {"name": "d", "image": "j"}]}}},
            "status": {"readyReplicas": 1, "updatedReplicas": 2}}),
        expect![[r#"
            NAME|READY|UP-TO-DATE|AVAILABLE|AGE|CONTAINERS|IMAGES|SELECTOR
            a|1/2|2|0|5m|c,d|i,j|app=a
        "#]],
    );
    check(
        "apps",
        "ReplicaSet",
        json!({"spec": {"replicas": 2, "selector": {"matchLabels": {"app": "a"}}, "template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}}, "status": {"replicas": 2}}),
        expect![[r#"
            NAME|DESIRED|CURRENT|READY|AGE|CONTAINERS|IMAGES|SELECTOR
            a|2|2|0|5m|c|i|app=a
        "#]],
    );
    check(
        "",
        "Service",
        json!({"spec": {"type": "NodePort", "clusterIP": "10.0.0.1", "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}}),
        expect![[r#"
            NAME|TYPE|CLUSTER-IP|EXTERNAL-IP|PORT(S)|AGE|SELECTOR
            a|NodePort|10.0.0.1|<none>|80:30080/TCP,53/UDP|5m|<none>
        "#]],
    );
    check(
        "",
        "Node",
        json!({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": "", "kubernetes.io/role": "x"}}, "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "1.2.3.4"}],
            "nodeInfo": {"kubeletVersion": "v1.36.0", "osImage": "Debian", "kernelVersion": "6.1", "containerRuntimeVersion": "orlop://0.1"}}}),
        expect![[r#"
            NAME|STATUS|ROLES|AGE|VERSION|INTERNAL-IP|EXTERNAL-IP|OS-IMAGE|KERNEL-VERSION|CONTAINER-RUNTIME
            a|Ready,SchedulingDisabled|control-plane,x|5m|v1.36.0|1.2.3.4|<none>|Debian|6.1|orlop://0.1
        "#]],
    );
    check(
        "",
        "Namespace",
        json!({"status": {"phase": "Active"}}),
        expect![[r#"
        NAME|STATUS|AGE
        a|Active|5m
    "#]],
    );
    check(
        "",
        "ConfigMap",
        json!({"data": {"a": "", "b": ""}, "binaryData": {"c": ""}}),
        expect![[r#"
        NAME|DATA|AGE
        a|3|5m
    "#]],
    );
    check(
        "",
        "Secret",
        json!({"type": "Opaque", "data": {"a": ""}}),
        expect![[r#"
        NAME|TYPE|DATA|AGE
        a|Opaque|1|5m
    "#]],
    );
    check(
        "",
        "ServiceAccount",
        json!({}),
        expect![[r#"
        NAME|SECRETS|AGE
        a|0|5m
    "#]],
    );
    check(
        "coordination.k8s.io",
        "Lease",
        json!({"spec": {"holderIdentity": "h"}}),
        expect![[r#"
        NAME|HOLDER|AGE
        a|h|5m
    "#]],
    );
    check(
        "node.k8s.io",
        "RuntimeClass",
        json!({"handler": "crun"}),
        expect![[r#"
        NAME|HANDLER|AGE
        a|crun|5m
    "#]],
    );
    check(
        "",
        "Event",
        json!({"type": "Normal", "reason": "Started", "message": "Started container\n", "involvedObject": {"kind": "Pod", "name": "p", "fieldPath": "spec.containers{c}"},
            "source": {"component": "kubelet", "host": "n"}, "firstTimestamp": "2024-01-01T00:59:00Z", "lastTimestamp": "2024-01-01T00:59:30Z", "count": 3}),
        expect![[r#"
            LAST SEEN|TYPE|REASON|OBJECT|SUBOBJECT|SOURCE|MESSAGE|FIRST SEEN|COUNT|NAME
            30s|Normal|Started|pod/p|spec.containers{c}|kubelet, n|Started container|60s|3|a
        "#]],
    );
}

#[test]
fn odd_shapes_do_not_fail() {
    for row in crate::registry::all() {
        for odd in [json!(null), json!({"spec": 5, "status": [], "metadata": "x"}), json!([])] {
            let t = render(row, [&odd], json!({}), now(), IncludeObject::Object, false);
            assert_eq!(t["columnDefinitions"], json!([]));
        }
    }
}
