//! Rules of deployments, replica sets, nodes, leases and events.

use serde_json::Value;

use super::errors::{Errors, IMMUTABLE, NOT_NEGATIVE, items, number, text};
use super::{metadata, pod, scheduling};
use crate::meta;
use crate::names;
use crate::selector::LabelSelector;

pub(super) fn deployment(object: &Value, e: &mut Errors) {
    let spec = &object["spec"];
    for key in ["replicas", "minReadySeconds", "revisionHistoryLimit"] {
        e.not_negative(spec, "spec", key);
    }
    selector(spec, e);
    template(spec, e);
    strategy(spec, e);
    if let Some(deadline) = number(spec, "progressDeadlineSeconds") {
        e.not_negative(spec, "spec", "progressDeadlineSeconds");
        if deadline <= number(spec, "minReadySeconds").unwrap_or(0) {
            e.invalid("spec.progressDeadlineSeconds", deadline, "must be greater than minReadySeconds");
        }
    }
}

pub(super) fn replica_set(object: &Value, e: &mut Errors) {
    let spec = &object["spec"];
    e.not_negative(spec, "spec", "replicas");
    e.not_negative(spec, "spec", "minReadySeconds");
    selector(spec, e);
    template(spec, e);
}

fn selector(spec: &Value, e: &mut Errors) {
    let Some(selector) = spec.get("selector") else { return e.required("spec.selector", "") };
    metadata::selector(selector, "spec.selector", e);
    let empty = |key: &str| {
        items(selector, "", key).is_empty() && selector.get(key).and_then(Value::as_object).is_none()
    };
    if empty("matchLabels") && empty("matchExpressions") {
        e.invalid("spec.selector", selector.clone(), "empty selector is invalid for deployment");
        return;
    }
    let labels = meta::at(spec, &["template", "metadata", "labels"]).unwrap_or(&Value::Null);
    if let Ok(parsed) = LabelSelector::from_object(selector)
        && !parsed.matches(labels)
    {
        let shown = if labels.is_null() { Value::Object(Default::default()) } else { labels.clone() };
        e.invalid("spec.template.metadata.labels", shown, "`selector` does not match template `labels`");
    }
}

fn template(spec: &Value, e: &mut Errors) {
    let path = "spec.template";
    let template = &spec["template"];
    metadata::common(&template["metadata"], &format!("{path}.metadata"), e);
    pod::spec_at(&template["spec"], &format!("{path}.spec"), e);
    let policy = meta::str_at(template, &["spec", "restartPolicy"]);
    if !matches!(policy, "" | "Always") {
        e.not_supported(&format!("{path}.spec.restartPolicy"), policy, &["Always"]);
    }
    if template.pointer("/spec/activeDeadlineSeconds").is_some() {
        e.forbidden(
            &format!("{path}.spec.activeDeadlineSeconds"),
            "activeDeadlineSeconds in ReplicaSet is not Supported",
        );
    }
    if !items(&template["spec"], "", "ephemeralContainers").is_empty() {
        e.forbidden(
            &format!("{path}.spec.ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        );
    }
}

fn strategy(spec: &Value, e: &mut Errors) {
    let path = "spec.strategy";
    let strategy = &spec["strategy"];
    match text(strategy, "type") {
        "Recreate" => {
            if strategy.get("rollingUpdate").is_some() {
                e.forbidden(
                    &format!("{path}.rollingUpdate"),
                    "may not be specified when strategy `type` is 'Recreate'",
                );
            }
        }
        "RollingUpdate" => {
            let Some(rolling) = strategy.get("rollingUpdate") else {
                return e
                    .required(&format!("{path}.rollingUpdate"), "this should be defaulted and never be nil");
            };
            let unavailable = share(rolling, "maxUnavailable", path, e);
            let surge = share(rolling, "maxSurge", path, e);
            if unavailable == Some(0) && surge == Some(0) {
                e.invalid(
                    &format!("{path}.rollingUpdate.maxUnavailable"),
                    rolling["maxUnavailable"].clone(),
                    "may not be 0 when `maxSurge` is 0",
                );
            }
            if unavailable.is_some_and(|u| u > 100) && rolling["maxUnavailable"].is_string() {
                e.invalid(
                    &format!("{path}.rollingUpdate.maxUnavailable"),
                    rolling["maxUnavailable"].clone(),
                    "must not be greater than 100%",
                );
            }
        }
        other => e.not_supported(&format!("{path}.type"), other, &["Recreate", "RollingUpdate"]),
    }
}

/// A count or a percentage; the bare number of it.
fn share(rolling: &Value, key: &str, path: &str, e: &mut Errors) -> Option<i64> {
    let field = format!("{path}.rollingUpdate.{key}");
    match rolling.get(key)? {
        Value::String(s) => {
            let n = s.strip_suffix('%').and_then(|n| n.parse::<u32>().ok());
            if n.is_none() {
                e.invalid(
                    &field,
                    s.as_str(),
                    "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
                );
            }
            n.map(i64::from)
        }
        v => {
            let n = v.as_i64().unwrap_or(0);
            if n < 0 {
                e.invalid(&field, n, NOT_NEGATIVE);
            }
            Some(n)
        }
    }
}

pub(super) fn immutable_selector(object: &Value, stored: &Value, e: &mut Errors) {
    let (new, old) = (object.pointer("/spec/selector"), stored.pointer("/spec/selector"));
    if new != old {
        e.invalid("spec.selector", new.cloned().unwrap_or_default(), IMMUTABLE);
    }
}

pub(super) fn status(object: &Value, e: &mut Errors) {
    let status = &object["status"];
    for key in [
        "replicas",
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
        "unavailableReplicas",
        "fullyLabeledReplicas",
        "observedGeneration",
    ] {
        e.not_negative(status, "status", key);
    }
    let replicas = number(status, "replicas").unwrap_or(0);
    for key in ["updatedReplicas", "readyReplicas", "availableReplicas", "fullyLabeledReplicas"] {
        let n = number(status, key).unwrap_or(0);
        if n > replicas {
            e.invalid(&format!("status.{key}"), n, "cannot be greater than status.replicas");
        }
    }
}

pub(super) fn node(object: &Value, e: &mut Errors) {
    let spec = &object["spec"];
    let mut seen = std::collections::HashSet::new();
    for (field, taint) in items(spec, "spec", "taints") {
        scheduling::taint(taint, &field, e);
        if !seen.insert((text(taint, "key"), text(taint, "effect"))) {
            e.duplicate(&field, taint.clone());
        }
    }
    for (field, cidr) in items(spec, "spec", "podCIDRs") {
        let cidr = cidr.as_str().unwrap_or("");
        if !is_cidr(cidr) {
            e.invalid(&field, cidr, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)");
        }
    }
}

fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let most = match address.parse() {
        Ok(std::net::IpAddr::V4(_)) => 32,
        Ok(std::net::IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    bits.parse::<u8>().is_ok_and(|b| b <= most)
}

pub(super) fn node_update(object: &Value, stored: &Value, e: &mut Errors) {
    let at = |o: &Value, key: &str| o.pointer(&format!("/spec/{key}")).cloned().unwrap_or_default();
    let cidrs = at(stored, "podCIDRs");
    if !cidrs.is_null() && cidrs != at(object, "podCIDRs") {
        e.forbidden("spec.podCIDRs", "node updates may not change podCIDR except from \"\" to valid");
    }
    let id = at(stored, "providerID");
    if id.as_str().is_some_and(|s| !s.is_empty()) && id != at(object, "providerID") {
        e.forbidden("spec.providerID", "node updates may not change providerID except from \"\" to valid");
    }
}

pub(super) fn lease(object: &Value, e: &mut Errors) {
    let spec = &object["spec"];
    if let Some(n) = number(spec, "leaseDurationSeconds")
        && n <= 0
    {
        e.invalid("spec.leaseDurationSeconds", n, "must be greater than 0");
    }
    e.not_negative(spec, "spec", "leaseTransitions");
}

pub(super) fn event(object: &Value, e: &mut Errors) {
    let namespace = meta::namespace(object);
    let about = meta::str_at(object, &["involvedObject", "namespace"]);
    // Events about cluster-scoped objects live in the default namespace.
    let fits = if about.is_empty() {
        matches!(namespace, "default" | "kube-system" | "")
    } else {
        about == namespace
    };
    if !fits {
        e.invalid("involvedObject.namespace", about, "does not match event.namespace");
    }
    let key = text(object, "reportingComponent");
    if !key.is_empty() && !text(object, "eventTime").is_empty() {
        e.complain("reportingController", key, names::qualified_name(key));
    }
}
