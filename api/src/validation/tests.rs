//! Tests of the rules, through the whole way of a write.

use super::*;
use crate::registry::find_kind;
use crate::{defaults, strategy};
use expect_test::{Expect, expect};
use serde_json::json;

fn ready(group: &str, kind: &str, mut object: Value) -> (&'static Resource, Value) {
    let row = find_kind(group, "v1", kind).expect("row");
    if meta::name(&object).is_empty() && meta::str_at(&object, &["metadata", "generateName"]).is_empty() {
        meta::set(&mut object, "name", "a");
    }
    if row.namespaced {
        meta::set(&mut object, "namespace", "n");
    }
    let mut object = crate::schema::check(row.schema, object, crate::schema::FieldValidation::Strict)
        .expect("types")
        .object;
    defaults::apply(row, &mut object);
    strategy::prepare_create(row, &mut object);
    (row, object)
}

fn check(group: &str, kind: &str, object: Value, expected: Expect) {
    let (row, object) = ready(group, kind, object);
    let text = match create(row, &object) {
        Ok(()) => "ok".to_owned(),
        Err(f) => {
            assert_eq!((f.code, f.reason), (422, "Invalid"));
            f.message
        }
    };
    expected.assert_eq(&text);
}

fn pod(spec: Value) -> Value {
    json!({"spec": spec})
}

#[test]
fn good_objects_pass() {
    check(
        "",
        "Pod",
        pod(
            json!({"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80, "name": "http"}],
        "volumeMounts": [{"name": "v", "mountPath": "/v"}], "readinessProbe": {"tcpSocket": {"port": "http"}},
        "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a/b']"}}}],
        "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "2", "example.com/gpu": "1"}}}], "volumes": [{"name": "v"}]}),
        ),
        expect!["ok"],
    );
    check(
        "apps",
        "Deployment",
        json!({"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}}),
        expect!["ok"],
    );
    check("", "Service", json!({"spec": {"ports": [{"port": 80}]}}), expect!["ok"]);
    check("", "Service", json!({"spec": {"clusterIP": "None"}}), expect!["ok"]);
    check("", "Namespace", json!({}), expect!["ok"]);
    check(
        "",
        "Node",
        json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}], "podCIDRs": ["10.0.0.0/24"]}}),
        expect!["ok"],
    );
    check("coordination.k8s.io", "Lease", json!({"spec": {"leaseDurationSeconds": 40}}), expect!["ok"]);
    check(
        "node.k8s.io",
        "RuntimeClass",
        json!({"handler": "crun", "overhead": {"podFixed": {"cpu": "250m"}},
            "scheduling": {"nodeSelector": {"a": "b"}, "tolerations": [{"key": "k", "operator": "Exists"}]}}),
        expect!["ok"],
    );
    check("", "ConfigMap", json!({"metadata": {"generateName": "x-"}, "data": {"a.b": "c"}}), expect!["ok"]);
    check("", "Event", json!({"involvedObject": {"namespace": "n"}}), expect!["ok"]);
}

#[test]
fn pods_are_refused_with_paths() {
    check("", "Pod", pod(json!({})), expect![[r#"Pod "a" is invalid: spec.containers: Required value"#]]);
    check(
        "",
        "Pod",
        pod(json!({"containers": [{"name": "c"}]})),
        expect![[r#"Pod "a" is invalid: spec.containers[0].image: Required value"#]],
    );
    check(
        "",
        "Pod",
        pod(
            json!({"containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/x"}], "ports": [{"containerPort": 70000}]}, {"name": "c", "image": " i", "imagePullPolicy": "Maybe"}]}),
        ),
        expect![[
            r#"Pod "a" is invalid: [spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive, spec.containers[0].volumeMounts[0].name: Not found: "v", spec.containers[1].name: Duplicate value: "c", spec.containers[1].image: Invalid value: " i": must not have leading or trailing whitespace, spec.containers[1].imagePullPolicy: Unsupported value: "Maybe": supported values: "Always", "IfNotPresent", "Never"]"#
        ]],
    );
    check(
        "",
        "Pod",
        pod(
            json!({"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}, "livenessProbe": {"successThreshold": 2}}]}),
        ),
        expect![[
            r#"Pod "a" is invalid: [spec.containers[0].resources.requests: Invalid value: "2": must be less than or equal to cpu limit of 1, spec.containers[0].livenessProbe: Required value: must specify a handler type, spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1]"#
        ]],
    );
    check(
        "",
        "Pod",
        pod(
            json!({"restartPolicy": "Sometimes", "containers": [{"name": "C", "image": "i"}], "volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/"}}, {"name": "w", "hostPath": {"path": "/a/../b"}}]}),
        ),
        expect![[
            r#"Pod "a" is invalid: [spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type, spec.volumes[1].hostPath.path: Invalid value: "/a/../b": must not contain '..', spec.containers[0].name: Invalid value: "C": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?'), spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "Never", "OnFailure"]"#
        ]],
    );
    check(
        "",
        "Pod",
        json!({"metadata": {"labels": {"a b": "c d"}}, "spec": {"containers": [{"name": "c", "image": "i", "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.x"}}}]}], "tolerations": [{"value": "x"}]}}),
        expect![[
            r#"Pod "a" is invalid: [metadata.labels: Invalid value: "a b": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]'), metadata.labels: Invalid value: "c d": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?'), spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Unsupported value: "spec.x": supported values: "metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs", spec.tolerations[0].operator: Invalid value: "": operator must be Exists when `key` is empty, which means "match all values and all keys"]"#
        ]],
    );
}

#[test]
fn profiles_and_namespaces_are_checked() {
    let with = |context: Value| {
        pod(json!({"securityContext": context, "containers": [{"name": "c", "image": "i"}]}))
    };
    let apparmor = |profile: Value| with(json!({"appArmorProfile": profile}));
    check("", "Pod", apparmor(json!({"type": "Localhost", "localhostProfile": "mine"})), expect!["ok"]);
    check("", "Pod", apparmor(json!({"type": "RuntimeDefault"})), expect!["ok"]);
    check(
        "",
        "Pod",
        apparmor(json!({"type": "Localhost"})),
        expect![[
            r#"Pod "a" is invalid: spec.securityContext.appArmorProfile.localhostProfile: Required value: must be set when AppArmor type is Localhost"#
        ]],
    );
    check(
        "",
        "Pod",
        apparmor(json!({"type": "Localhost", "localhostProfile": " x"})),
        expect![[
            r#"Pod "a" is invalid: spec.securityContext.appArmorProfile.localhostProfile: Invalid value: " x": must not be padded with whitespace"#
        ]],
    );
    check(
        "",
        "Pod",
        apparmor(json!({"type": "Unconfined", "localhostProfile": "x"})),
        expect![[
            r#"Pod "a" is invalid: spec.securityContext.appArmorProfile.localhostProfile: Invalid value: "x": can only be set when AppArmor type is Localhost"#
        ]],
    );
    check(
        "",
        "Pod",
        apparmor(json!({"type": "Other"})),
        expect![[
            r#"Pod "a" is invalid: spec.securityContext.appArmorProfile.type: Unsupported value: "Other": supported values: "Localhost", "RuntimeDefault", "Unconfined""#
        ]],
    );
    let noted = |key: &str, value: &str| {
        let mut pod = with(json!({}));
        pod["metadata"]["annotations"][format!("container.apparmor.security.beta.kubernetes.io/{key}")] =
            value.into();
        pod
    };
    check("", "Pod", noted("c", "localhost/mine"), expect!["ok"]);
    check(
        "",
        "Pod",
        noted("c", "mine"),
        expect![[
            r#"Pod "a" is invalid: metadata.annotations[container.apparmor.security.beta.kubernetes.io/c]: Invalid value: "mine": invalid AppArmor profile name: "mine""#
        ]],
    );
    check(
        "",
        "Pod",
        noted("d", "unconfined"),
        expect![[
            r#"Pod "a" is invalid: metadata.annotations[container.apparmor.security.beta.kubernetes.io/d]: Invalid value: "d": container not found"#
        ]],
    );
    let users = json!({"hostUsers": false, "hostPID": true, "hostNetwork": true,
        "containers": [{"name": "c", "image": "i"}]});
    check(
        "",
        "Pod",
        pod(users),
        expect![[
            r#"Pod "a" is invalid: [spec.hostNetwork: Forbidden: when `pod.Spec.HostUsers` is false, spec.hostPID: Forbidden: when `pod.Spec.HostUsers` is false]"#
        ]],
    );
}

#[test]
fn other_kinds_are_refused() {
    check(
        "apps",
        "Deployment",
        json!({"spec": {"replicas": -1, "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "c"}}, "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}}),
        expect![[
            r#"Deployment.apps "a" is invalid: [spec.replicas: Invalid value: -1: must be greater than or equal to 0, spec.template.metadata.labels: Invalid value: {"a":"c"}: `selector` does not match template `labels`, spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always"]"#
        ]],
    );
    check(
        "",
        "Service",
        json!({"spec": {"ports": [{"port": 80}, {"port": 80, "name": "X"}]}}),
        expect![[
            r#"Service "a" is invalid: [spec.ports[0].name: Required value, spec.ports[1].name: Invalid value: "X": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?'), spec.ports[1]: Duplicate value: {"port":80,"protocol":"TCP"}]"#
        ]],
    );
    check(
        "",
        "ConfigMap",
        json!({"data": {"a/b": ""}}),
        expect![[
            r#"ConfigMap "a" is invalid: data[a/b]: Invalid value: "a/b": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"#
        ]],
    );
    check(
        "",
        "Secret",
        json!({"type": "kubernetes.io/tls"}),
        expect![[r#"Secret "a" is invalid: [data[tls.crt]: Required value, data[tls.key]: Required value]"#]],
    );
    check(
        "",
        "Secret",
        json!({"type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": "x"}}),
        expect![[
            r#"Secret "a" is invalid: data[.dockerconfigjson]: Invalid value: "<secret contents redacted>": must be valid JSON"#
        ]],
    );
    check(
        "coordination.k8s.io",
        "Lease",
        json!({"spec": {"leaseDurationSeconds": 0}}),
        expect![[
            r#"Lease.coordination.k8s.io "a" is invalid: spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"#
        ]],
    );
    check(
        "node.k8s.io",
        "RuntimeClass",
        json!({"handler": "My Runtime", "overhead": {"podFixed": {"cpu": "-1"}},
            "scheduling": {"tolerations": [{"operator": "Exists"}, {"operator": "Exists"}]}}),
        expect![[
            r#"RuntimeClass.node.k8s.io "a" is invalid: [handler: Invalid value: "My Runtime": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?'), overhead.limits[cpu]: Invalid value: "-1": must be greater than or equal to 0, scheduling.tolerations[1]: Duplicate value: {"operator":"Exists"}]"#
        ]],
    );
    check(
        "",
        "Namespace",
        json!({"metadata": {"name": "A.b"}}),
        expect![[r#"
        Namespace "A.b" is invalid: metadata.name: Invalid value: "A.b": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"#]],
    );
}

fn change(group: &str, kind: &str, object: Value, f: impl FnOnce(&mut Value), expected: Expect) {
    let (row, stored) = ready(group, kind, object);
    let mut new = stored.clone();
    f(&mut new);
    strategy::prepare_update(row, &mut new, &stored);
    expected.assert_eq(&update(row, &new, &stored).map_or_else(|f| f.message, |()| "ok".to_owned()));
}

#[test]
fn updates_keep_what_is_fixed() {
    let p = || pod(json!({"containers": [{"name": "c", "image": "i"}]}));
    change("", "Pod", p(), |p| p["spec"]["containers"][0]["image"] = json!("j"), expect!["ok"]);
    change("", "Pod", p(), |p| p["metadata"]["labels"] = json!({"a": "b"}), expect!["ok"]);
    change(
        "",
        "Pod",
        p(),
        |p| p["spec"]["nodeName"] = json!("x"),
        expect![[r#"
        Pod "a" is invalid: spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)
        -  nodeName: <unset>
        +  nodeName: "x""#]],
    );
    change(
        "",
        "Pod",
        p(),
        |p| p["metadata"]["uid"] = json!("x"),
        expect![[r#"Pod "a" is invalid: metadata.uid: Invalid value: "x": field is immutable"#]],
    );
    let d = json!({"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b", "c": "d"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    change(
        "apps",
        "Deployment",
        d,
        |d| d["spec"]["selector"]["matchLabels"] = json!({"c": "d"}),
        expect![[
            r#"Deployment.apps "a" is invalid: spec.selector: Invalid value: {"matchLabels":{"c":"d"}}: field is immutable"#
        ]],
    );
    let c = json!({"data": {"a": "b"}, "immutable": true});
    change(
        "",
        "ConfigMap",
        c,
        |c| c["data"]["a"] = json!("c"),
        expect![[r#"ConfigMap "a" is invalid: data: Forbidden: field is immutable when `immutable` is set"#]],
    );
    let s = json!({"spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]}});
    change(
        "",
        "Service",
        s,
        |s| s["spec"]["clusterIP"] = json!("10.0.0.2"),
        expect![[
            r#"Service "a" is invalid: spec.clusterIPs[0]: Invalid value: "10.0.0.2": may not change once set"#
        ]],
    );
}

#[test]
fn bindings_need_a_node() {
    let row = find_kind("", "v1", "Binding").expect("row");
    assert!(binding(row, &json!({"target": {"name": "n"}})).is_ok());
    assert_eq!(
        binding(row, &json!({})).expect_err("no target").message,
        "Binding \"\" is invalid: target.name: Required value"
    );
}

#[test]
fn unmasked_needs_own_users_and_huge_pages_need_memory() {
    let with = |spec: Value, container: Value| {
        let mut spec = spec;
        let mut one = json!({"name": "c", "image": "i"});
        one.as_object_mut().expect("an object").extend(container.as_object().expect("an object").clone());
        spec["containers"] = json!([one]);
        pod(spec)
    };
    let unmasked = json!({"securityContext": {"procMount": "Unmasked"}});
    check("", "Pod", with(json!({"hostUsers": false}), unmasked.clone()), expect!["ok"]);
    check(
        "",
        "Pod",
        with(json!({}), unmasked),
        expect![[
            r#"Pod "a" is invalid: spec.containers[0].securityContext.procMount: Invalid value: "Unmasked": `hostUsers` must be false to use `Unmasked`"#
        ]],
    );
    let pages = json!({"resources": {"limits": {"hugepages-2Mi": "4Mi"}}});
    check(
        "",
        "Pod",
        with(json!({}), pages),
        expect![[
            r#"Pod "a" is invalid: spec.containers[0].resources: Forbidden: HugePages require cpu or memory"#
        ]],
    );
    let both = json!({"resources": {"limits": {"hugepages-2Mi": "4Mi", "memory": "4Mi"}}});
    check("", "Pod", with(json!({}), both), expect!["ok"]);
}

#[test]
fn stop_signals_are_of_the_pods_system() {
    let with = |os: Value, signal: &str| {
        let lifecycle = json!({"stopSignal": signal});
        pod(json!({"os": os, "containers": [{"name": "c", "image": "i", "lifecycle": lifecycle}]}))
    };
    let linux = || json!({"name": "linux"});
    check("", "Pod", with(linux(), "SIGUSR1"), expect!["ok"]);
    check("", "Pod", with(linux(), "SIGRTMIN+15"), expect!["ok"]);
    check(
        "",
        "Pod",
        with(Value::Null, "SIGUSR1"),
        expect![[
            r#"Pod "a" is invalid: spec.containers[0].lifecycle.stopSignal: Forbidden: may not be set for containers with empty `spec.os.name`"#
        ]],
    );
    check(
        "",
        "Pod",
        with(linux(), "SIGRTMAX-15"),
        expect![[
            r#"Pod "a" is invalid: spec.containers[0].lifecycle.stopSignal: Unsupported value: "SIGRTMAX-15": supported values: "SIGABRT", "SIGALRM", "SIGBUS", "SIGCHLD", "SIGCLD", "SIGCONT", "SIGFPE", "SIGHUP", "SIGILL", "SIGINT", "SIGIO", "SIGIOT", "SIGKILL", "SIGPIPE", "SIGPOLL", "SIGPROF", "SIGPWR", "SIGQUIT", "SIGRTMAX", "SIGRTMIN", "SIGSEGV", "SIGSTKFLT", "SIGSTOP", "SIGSYS", "SIGTERM", "SIGTRAP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGURG", "SIGUSR1", "SIGUSR2", "SIGVTALRM", "SIGWINCH", "SIGXCPU", "SIGXFSZ""#
        ]],
    );
}
