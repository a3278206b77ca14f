//! Defaults of services. Addresses and node ports are not defaults: the apiserver gives them out.

use serde_json::{Value, json};

use super::{items, set, set_text};
use crate::meta::{child_mut, object_mut};

pub(super) fn service(object: &mut Value) {
    let spec = object_mut(child_mut(object, "spec"));
    set_text(spec, "type", "ClusterIP");
    set_text(spec, "sessionAffinity", "None");
    let kind = spec["type"].as_str().unwrap_or("").to_owned();
    if spec["sessionAffinity"] == "ClientIP" {
        set(spec, "sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 10800}}));
    } else {
        spec.remove("sessionAffinityConfig");
    }
    for port in items(spec, "ports") {
        set_text(port, "protocol", "TCP");
        let number = port.get("port").cloned().unwrap_or(Value::from(0));
        let absent = port.get("targetPort").is_none_or(|t| *t == 0 || *t == "");
        if absent {
            port.insert("targetPort".to_owned(), number);
        }
    }
    if kind != "ExternalName" {
        set_text(spec, "internalTrafficPolicy", "Cluster");
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        set_text(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", true);
    }
}
