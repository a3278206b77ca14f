//! Rules of what places a pod: node selectors, affinity, tolerations, spreading.

use serde_json::Value;

use super::errors::{Errors, items, number, text};
use super::metadata;
use crate::names;

pub(super) fn pod(spec: &Value, path: &str, e: &mut Errors) {
    metadata::labels(spec, "nodeSelector", path, e);
    for (field, t) in items(spec, path, "tolerations") {
        toleration(t, &field, e);
    }
    if let Some(affinity) = spec.get("affinity") {
        self::affinity(affinity, &format!("{path}.affinity"), e);
    }
    let mut seen = std::collections::HashSet::new();
    for (field, c) in items(spec, path, "topologySpreadConstraints") {
        if number(c, "maxSkew").unwrap_or(0) <= 0 {
            e.invalid(
                &format!("{field}.maxSkew"),
                number(c, "maxSkew").unwrap_or(0),
                "must be greater than zero",
            );
        }
        let key = text(c, "topologyKey");
        if key.is_empty() {
            e.required(&format!("{field}.topologyKey"), "can not be empty");
        } else {
            e.complain(&format!("{field}.topologyKey"), key, names::qualified_name(key));
        }
        let when = text(c, "whenUnsatisfiable");
        if !matches!(when, "DoNotSchedule" | "ScheduleAnyway") {
            e.not_supported(
                &format!("{field}.whenUnsatisfiable"),
                when,
                &["DoNotSchedule", "ScheduleAnyway"],
            );
        }
        if !seen.insert((key, when)) {
            e.duplicate(&format!("{field}.{{topologyKey, whenUnsatisfiable}}"), format!("{{{key}, {when}}}"));
        }
        if let Some(s) = c.get("labelSelector") {
            metadata::selector(s, &format!("{field}.labelSelector"), e);
        }
    }
}

pub(super) fn toleration(t: &Value, field: &str, e: &mut Errors) {
    let key = text(t, "key");
    if !key.is_empty() {
        e.complain(&format!("{field}.key"), key, names::qualified_name(key));
    } else if text(t, "operator") != "Exists" {
        e.invalid(
            &format!("{field}.operator"),
            text(t, "operator"),
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
        );
    }
    if number(t, "tolerationSeconds").is_some() && text(t, "effect") != "NoExecute" {
        e.invalid(
            &format!("{field}.effect"),
            text(t, "effect"),
            "effect must be 'NoExecute' when `tolerationSeconds` is set",
        );
    }
    let value = text(t, "value");
    match text(t, "operator") {
        "" | "Equal" => e.complain(&format!("{field}.operator"), value, names::label_value(value)),
        "Exists" if !value.is_empty() => {
            e.invalid(&format!("{field}.operator"), value, "value must be empty when `operator` is 'Exists'");
        }
        "Exists" | "Lt" | "Gt" => {}
        other => e.not_supported(&format!("{field}.operator"), other, &["Equal", "Exists"]),
    }
    e.one_of(t, field, "effect", &["NoExecute", "NoSchedule", "PreferNoSchedule"]);
}

pub(super) fn taint(t: &Value, field: &str, e: &mut Errors) {
    let (key, value) = (text(t, "key"), text(t, "value"));
    e.complain(&format!("{field}.key"), key, names::qualified_name(key));
    e.complain(&format!("{field}.value"), value, names::label_value(value));
    if text(t, "effect").is_empty() {
        e.required(&format!("{field}.effect"), "");
    }
    e.one_of(t, field, "effect", &["NoExecute", "NoSchedule", "PreferNoSchedule"]);
}

fn affinity(affinity: &Value, path: &str, e: &mut Errors) {
    const MUST: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const WOULD: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    if let Some(node) = affinity.get("nodeAffinity") {
        let path = format!("{path}.nodeAffinity");
        if let Some(must) = node.get(MUST) {
            let field = format!("{path}.{MUST}");
            let terms = items(must, &field, "nodeSelectorTerms");
            if terms.is_empty() {
                e.required(
                    &format!("{field}.nodeSelectorTerms"),
                    "must have at least one node selector term",
                );
            }
            for (field, term) in terms {
                node_term(term, &field, e);
            }
        }
        for (field, p) in items(node, &path, WOULD) {
            weight(p, &field, e);
            node_term(&p["preference"], &format!("{field}.preference"), e);
        }
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(pods) = affinity.get(kind) else { continue };
        let path = format!("{path}.{kind}");
        for (field, term) in items(pods, &path, MUST) {
            pod_term(term, &field, e);
        }
        for (field, p) in items(pods, &path, WOULD) {
            weight(p, &field, e);
            pod_term(&p["podAffinityTerm"], &format!("{field}.podAffinityTerm"), e);
        }
    }
}

fn weight(p: &Value, field: &str, e: &mut Errors) {
    let n = number(p, "weight").unwrap_or(0);
    if !(1..=100).contains(&n) {
        e.invalid(&format!("{field}.weight"), n, "must be in the range 1-100");
    }
}

fn node_term(term: &Value, path: &str, e: &mut Errors) {
    for key in ["matchExpressions", "matchFields"] {
        for (field, x) in items(term, path, key) {
            let values = items(x, &field, "values").len();
            let name = text(x, "key");
            if key == "matchExpressions" {
                e.complain(&format!("{field}.key"), name, names::qualified_name(name));
            } else if name != "metadata.name" {
                e.invalid(&format!("{field}.key"), name, "not a valid field selector key");
            }
            match text(x, "operator") {
                "In" | "NotIn" if values == 0 => {
                    e.required(
                        &format!("{field}.values"),
                        "must be specified when `operator` is 'In' or 'NotIn'",
                    );
                }
                "Exists" | "DoesNotExist" if values > 0 => e.forbidden(
                    &format!("{field}.values"),
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                ),
                "Gt" | "Lt" if values != 1 => e.required(
                    &format!("{field}.values"),
                    "must be specified single value when `operator` is 'Lt' or 'Gt'",
                ),
                "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
                other => e.invalid(&format!("{field}.operator"), other, "not a valid selector operator"),
            }
        }
    }
}

fn pod_term(term: &Value, path: &str, e: &mut Errors) {
    let key = text(term, "topologyKey");
    if key.is_empty() {
        e.required(&format!("{path}.topologyKey"), "can not be empty");
    } else {
        e.complain(&format!("{path}.topologyKey"), key, names::qualified_name(key));
    }
    for key in ["labelSelector", "namespaceSelector"] {
        if let Some(s) = term.get(key) {
            metadata::selector(s, &format!("{path}.{key}"), e);
        }
    }
    for (field, ns) in items(term, path, "namespaces") {
        let ns = ns.as_str().unwrap_or("");
        e.complain(&field, ns, names::dns1123_label(ns));
    }
}
