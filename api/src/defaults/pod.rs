//! Defaults of pods and pod templates.

use serde_json::{Map, Value};

use super::{child, items, set, set_text};
use crate::meta;

/// Fills in a pod's `spec`.
pub fn pod_spec(spec: &mut Value) {
    template_spec(spec);
    let spec = meta::object_mut(spec);
    set(spec, "enableServiceLinks", true);
    let host_network = spec.get("hostNetwork").and_then(Value::as_bool).unwrap_or(false);
    for key in ["initContainers", "containers"] {
        for c in items(spec, key) {
            if let Some(resources) = child(c, "resources") {
                requests_from_limits(resources);
            }
            if host_network {
                host_ports(c);
            }
        }
    }
    if let Some(resources) = child(spec, "resources") {
        requests_from_limits(resources);
    }
}

/// A port in the host's network is the host's port.
fn host_ports(c: &mut Map<String, Value>) {
    for p in items(c, "ports") {
        if let Some(port) = p.get("containerPort").cloned()
            && p.get("hostPort").is_none_or(|h| *h == 0)
        {
            p.insert("hostPort".to_owned(), port);
        }
    }
}

/// Fills in the `spec` of a pod template: all that does not depend on the pod being one.
pub fn template_spec(spec: &mut Value) {
    let spec = meta::object_mut(spec);
    set_text(spec, "dnsPolicy", "ClusterFirst");
    set_text(spec, "restartPolicy", "Always");
    set_text(spec, "schedulerName", "default-scheduler");
    set(spec, "terminationGracePeriodSeconds", 30);
    set(spec, "securityContext", Map::new());
    // The old spelling and the new one are one field.
    let old = spec.get("serviceAccount").cloned();
    let new = spec.get("serviceAccountName").cloned();
    match (old, new) {
        (Some(o), None) => drop(spec.insert("serviceAccountName".to_owned(), o)),
        (None | Some(_), Some(n)) => drop(spec.insert("serviceAccount".to_owned(), n)),
        (None, None) => {}
    }
    for key in ["initContainers", "containers", "ephemeralContainers"] {
        for c in items(spec, key) {
            container(c);
        }
    }
    for v in items(spec, "volumes") {
        volume(v);
    }
    for t in items(spec, "topologySpreadConstraints") {
        set_text(t, "nodeAffinityPolicy", "Honor");
        set_text(t, "nodeTaintsPolicy", "Ignore");
    }
}

fn container(c: &mut Map<String, Value>) {
    let policy = pull_policy(c.get("image").and_then(Value::as_str).unwrap_or(""));
    set_text(c, "imagePullPolicy", policy);
    set_text(c, "terminationMessagePath", "/dev/termination-log");
    set_text(c, "terminationMessagePolicy", "File");
    for p in items(c, "ports") {
        set_text(p, "protocol", "TCP");
    }
    for e in items(c, "env") {
        let from = child(e, "valueFrom");
        if let Some(field) = from.and_then(|f| child(f, "fieldRef")) {
            set_text(field, "apiVersion", "v1");
        }
    }
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(p) = child(c, key) {
            probe(p);
        }
    }
    if let Some(lifecycle) = child(c, "lifecycle") {
        for key in ["postStart", "preStop"] {
            if let Some(http) = child(lifecycle, key).and_then(|h| child(h, "httpGet")) {
                http_get(http);
            }
        }
    }
    meta::object_mut(c.entry("resources").or_insert(Value::Null));
}

/// A limit without a request asks for all of it.
fn requests_from_limits(resources: &mut Map<String, Value>) {
    let Some(Value::Object(limits)) = resources.get("limits").cloned() else { return };
    let requests = meta::object_mut(resources.entry("requests").or_insert(Value::Null));
    for (name, amount) in limits {
        set(requests, &name, amount);
    }
}

/// `Always` for the tag `latest`, named or implied; a digest or another tag needs no second look.
fn pull_policy(image: &str) -> &'static str {
    let last = image.rsplit('/').next().unwrap_or(image);
    if image.contains('@') {
        return "IfNotPresent";
    }
    match last.split_once(':') {
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

fn probe(p: &mut Map<String, Value>) {
    for (key, value) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        if p.get(key).is_none_or(|v| *v == 0) {
            p.insert(key.to_owned(), Value::from(value));
        }
    }
    if let Some(http) = child(p, "httpGet") {
        http_get(http);
    }
    if let Some(grpc) = child(p, "grpc") {
        set(grpc, "service", "");
    }
}

fn http_get(http: &mut Map<String, Value>) {
    set_text(http, "path", "/");
    set_text(http, "scheme", "HTTP");
}

fn volume(v: &mut Map<String, Value>) {
    const MODE: i32 = 0o644;
    // A volume that names nothing is an empty directory.
    if v.keys().all(|k| k == "name") {
        v.insert("emptyDir".to_owned(), Value::Object(Map::new()));
    }
    for key in ["configMap", "secret", "downwardAPI", "projected"] {
        if let Some(source) = child(v, key) {
            set(source, "defaultMode", MODE);
        }
    }
    if let Some(downward) = child(v, "downwardAPI") {
        downward_items(downward);
    }
    if let Some(host) = child(v, "hostPath") {
        set(host, "type", "");
    }
    if let Some(image) = child(v, "image") {
        let policy = pull_policy(image.get("reference").and_then(Value::as_str).unwrap_or(""));
        set_text(image, "pullPolicy", policy);
    }
    if let Some(projected) = child(v, "projected") {
        for source in items(projected, "sources") {
            if let Some(token) = child(source, "serviceAccountToken") {
                set(token, "expirationSeconds", 3600);
            }
            if let Some(downward) = child(source, "downwardAPI") {
                downward_items(downward);
            }
        }
    }
    if let Some(spec) =
        child(v, "ephemeral").and_then(|e| child(e, "volumeClaimTemplate")).and_then(|t| child(t, "spec"))
    {
        set_text(spec, "volumeMode", "Filesystem");
    }
}

fn downward_items(source: &mut Map<String, Value>) {
    for item in items(source, "items") {
        if let Some(field) = child(item, "fieldRef") {
            set_text(field, "apiVersion", "v1");
        }
    }
}
