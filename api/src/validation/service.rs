//! Rules of services.

use std::collections::HashSet;

use serde_json::Value;

use super::errors::{Errors, IMMUTABLE, items, number, text};
use super::metadata;
use crate::names;

pub(super) fn service(object: &Value, e: &mut Errors) {
    let spec = &object["spec"];
    let kind = text(spec, "type");
    e.one_of(spec, "spec", "type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    e.one_of(spec, "spec", "sessionAffinity", &["ClientIP", "None"]);
    e.one_of(spec, "spec", "internalTrafficPolicy", &["Cluster", "Local"]);
    e.one_of(spec, "spec", "externalTrafficPolicy", &["Cluster", "Local"]);
    e.one_of(spec, "spec", "ipFamilyPolicy", &["PreferDualStack", "RequireDualStack", "SingleStack"]);
    let headless = text(spec, "clusterIP") == "None";
    let ports = items(spec, "spec", "ports");
    if ports.is_empty() && !headless && kind != "ExternalName" {
        e.required("spec.ports", "");
    }
    match kind {
        "ExternalName" => {
            if !text(spec, "clusterIP").is_empty() {
                e.forbidden("spec.clusterIPs", "may not be set when `type` is 'ExternalName'");
            }
            let name = text(spec, "externalName");
            let bare = name.strip_suffix('.').unwrap_or(name);
            if name.is_empty() {
                e.required("spec.externalName", "");
            } else {
                e.complain("spec.externalName", name, names::dns1123_subdomain(bare));
            }
        }
        "NodePort" | "LoadBalancer" if headless => {
            e.invalid("spec.clusterIPs[0]", "None", &format!("may not be set to 'None' for {kind} services"));
        }
        _ => {}
    }
    for (field, ip) in items(spec, "spec", "clusterIPs") {
        let ip = ip.as_str().unwrap_or("");
        if ip != "None" {
            e.complain(&field, ip, names::ip_address(ip));
        }
    }
    for (field, ip) in items(spec, "spec", "externalIPs") {
        let ip = ip.as_str().unwrap_or("");
        e.complain(&field, ip, names::ip_address(ip));
    }
    for (field, family) in items(spec, "spec", "ipFamilies") {
        let family = family.as_str().unwrap_or("");
        if !matches!(family, "IPv4" | "IPv6") {
            e.not_supported(&field, family, &["IPv4", "IPv6"]);
        }
    }
    metadata::labels(spec, "selector", "spec", e);
    if let Some(t) = spec.pointer("/sessionAffinityConfig/clientIP/timeoutSeconds").and_then(Value::as_i64)
        && !(1..=86400).contains(&t)
    {
        e.invalid(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            t,
            "must be greater than 0 and less than 86400",
        );
    }
    let several = ports.len() > 1;
    let (mut seen_names, mut seen) = (HashSet::new(), HashSet::new());
    for (field, port) in &ports {
        one_port(port, field, several, kind, e);
        let name = text(port, "name");
        if !name.is_empty() && !seen_names.insert(name) {
            e.duplicate(&format!("{field}.name"), name);
        }
        let key = (number(port, "port"), text(port, "protocol"));
        if !seen.insert(key) {
            let shown = serde_json::json!({"port": port["port"], "protocol": port["protocol"]});
            e.duplicate(field, shown);
        }
    }
}

fn one_port(port: &Value, field: &str, several: bool, kind: &str, e: &mut Errors) {
    let name = text(port, "name");
    if several && name.is_empty() {
        e.required(&format!("{field}.name"), "");
    } else if !name.is_empty() {
        e.complain(&format!("{field}.name"), name, names::dns1123_label(name));
    }
    let n = number(port, "port").unwrap_or(0);
    for c in names::port_number(n) {
        e.invalid(&format!("{field}.port"), n, &c);
    }
    e.one_of(port, field, "protocol", &["SCTP", "TCP", "UDP"]);
    target(port, "targetPort", field, e);
    let node = number(port, "nodePort").unwrap_or(0);
    if node != 0 && kind == "ClusterIP" {
        e.forbidden(&format!("{field}.nodePort"), "may not be used when `type` is 'ClusterIP'");
    } else if node != 0 {
        for c in names::port_number(node) {
            e.invalid(&format!("{field}.nodePort"), node, &c);
        }
    }
    let protocol = text(port, "appProtocol");
    if !protocol.is_empty() {
        e.complain(&format!("{field}.appProtocol"), protocol, names::qualified_name(protocol));
    }
}

/// A port by number or name.
pub(super) fn target(object: &Value, key: &str, parent: &str, e: &mut Errors) {
    let field = format!("{parent}.{key}");
    match object.get(key) {
        Some(Value::String(name)) => e.complain(&field, name, names::port_name(name)),
        Some(v) => {
            let n = v.as_i64().unwrap_or(0);
            for c in names::port_number(n) {
                e.invalid(&field, n, &c);
            }
        }
        None => e.required(&field, ""),
    }
}

pub(super) fn update(object: &Value, stored: &Value, e: &mut Errors) {
    let (new, old) = (&object["spec"], &stored["spec"]);
    if text(new, "type") == "ExternalName" || text(old, "type") == "ExternalName" {
        return;
    }
    let (before, after) = (text(old, "clusterIP"), text(new, "clusterIP"));
    if !before.is_empty() && before != after {
        e.invalid("spec.clusterIPs[0]", after, "may not change once set");
    }
    if let (Some(a), Some(b)) = (old.get("ipFamilies"), new.get("ipFamilies"))
        && a.get(0) != b.get(0)
    {
        e.invalid("spec.ipFamilies[0]", b.clone(), IMMUTABLE);
    }
}
