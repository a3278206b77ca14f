//! Rules of pods and pod templates, and of what a pod's update may change.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::container::{self, Pod, Role};
use super::errors::{Errors, flag, items, number, text};
use super::{runtime_class, scheduling, volumes};
use crate::meta;
use crate::names;
use crate::registry::Resource;
use crate::status::Failure;

/// Checks a pod's `spec` alone, as for a pod from a file; `name` is for the message.
pub fn spec(row: &Resource, pod: &Value) -> Result<(), Failure> {
    let mut e = Errors::default();
    create(pod, &mut e);
    e.finish(row, pod)
}

pub(super) fn create(pod: &Value, e: &mut Errors) {
    let spec = &pod["spec"];
    spec_at(spec, "spec", e);
    apparmor_annotations(pod, e);
    if !items(spec, "", "ephemeralContainers").is_empty() {
        e.forbidden("spec.ephemeralContainers", "cannot be set on create");
    }
    if !items(spec, "", "schedulingGates").is_empty() && !text(spec, "nodeName").is_empty() {
        e.forbidden("spec.nodeName", "cannot be set until all schedulingGates have been cleared");
    }
}

/// The annotations that were there before the fields.
fn apparmor_annotations(pod: &Value, e: &mut Errors) {
    const PREFIX: &str = "container.apparmor.security.beta.kubernetes.io/";
    let annotations = pod.pointer("/metadata/annotations").and_then(Value::as_object);
    let lists = ["initContainers", "containers", "ephemeralContainers"];
    let named = |name: &str| {
        lists.iter().any(|list| items(&pod["spec"], "", list).iter().any(|(_, c)| text(c, "name") == name))
    };
    for (key, value) in annotations.into_iter().flatten() {
        let Some(container) = key.strip_prefix(PREFIX) else { continue };
        let (path, value) = (format!("metadata.annotations[{key}]"), value.as_str().unwrap_or_default());
        if !named(container) {
            e.invalid(&path, container, "container not found");
        }
        if !matches!(value, "" | "runtime/default" | "unconfined") && !value.starts_with("localhost/") {
            e.invalid(&path, value, &format!("invalid AppArmor profile name: {value:?}"));
        }
    }
}

/// A pod's or template's `spec`.
pub(super) fn spec_at(spec: &Value, path: &str, e: &mut Errors) {
    let host_network = flag(spec, "hostNetwork");
    let pod = Pod {
        volumes: volumes::volumes(spec, path, e),
        host_network,
        own_users: spec.get("hostUsers").and_then(Value::as_bool) == Some(false),
        os: text(&spec["os"], "name"),
    };
    containers(spec, path, &pod, e);
    e.one_of(spec, path, "restartPolicy", &["Always", "Never", "OnFailure"]);
    e.one_of(spec, path, "dnsPolicy", &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"]);
    e.one_of(spec, path, "preemptionPolicy", &["Never", "PreemptLowerPriority"]);
    e.not_negative(spec, path, "terminationGracePeriodSeconds");
    if let Some(n) = number(spec, "activeDeadlineSeconds")
        && !(1..=i64::from(i32::MAX)).contains(&n)
    {
        e.invalid(&format!("{path}.activeDeadlineSeconds"), n, "must be between 1 and 2147483647, inclusive");
    }
    for (key, check) in [
        ("nodeName", names::dns1123_subdomain as fn(&str) -> Vec<String>),
        ("serviceAccountName", names::dns1123_subdomain),
        ("schedulerName", names::dns1123_subdomain),
        ("priorityClassName", names::dns1123_subdomain),
        ("runtimeClassName", names::dns1123_subdomain),
        ("hostname", names::dns1123_label),
        ("subdomain", names::dns1123_label),
    ] {
        let value = text(spec, key);
        if !value.is_empty() {
            e.complain(&format!("{path}.{key}"), value, check(value));
        }
    }
    for (field, s) in items(spec, path, "imagePullSecrets") {
        if text(s, "name").is_empty() {
            e.required(&format!("{field}.name"), "");
        }
    }
    dns(spec, path, e);
    for (field, alias) in items(spec, path, "hostAliases") {
        let ip = text(alias, "ip");
        e.complain(&format!("{field}.ip"), ip, names::ip_address(ip));
        for (field, host) in items(alias, &field, "hostnames") {
            let host = host.as_str().unwrap_or("");
            e.complain(&field, host, names::dns1123_subdomain(host));
        }
    }
    for (field, gate) in items(spec, path, "readinessGates") {
        let ty = text(gate, "conditionType");
        e.complain(&format!("{field}.conditionType"), ty, names::qualified_name(ty));
    }
    security(spec, path, e);
    scheduling::pod(spec, path, e);
    if let Some(r) = spec.get("resources") {
        container::resources(r, &format!("{path}.resources"), e);
    }
    if let Some(overhead) = spec.get("overhead") {
        runtime_class::overhead_at(overhead, &format!("{path}.overhead"), e);
    }
    let os = spec.pointer("/os/name").and_then(Value::as_str);
    if let Some(os) = os.filter(|o| !matches!(*o, "linux" | "windows")) {
        e.not_supported(&format!("{path}.os.name"), os, &["linux", "windows"]);
    }
}

fn containers(spec: &Value, path: &str, pod: &Pod<'_>, e: &mut Errors) {
    if items(spec, path, "containers").is_empty() {
        e.required(&format!("{path}.containers"), "");
    }
    let mut seen = HashSet::new();
    let mut host_ports = HashSet::new();
    for (key, role) in
        [("containers", Role::App), ("initContainers", Role::Init), ("ephemeralContainers", Role::Ephemeral)]
    {
        for (field, c) in items(spec, path, key) {
            let name = text(c, "name");
            if name.is_empty() {
                e.required(&format!("{field}.name"), "");
            } else {
                let complaints = names::dns1123_label(name);
                if complaints.is_empty() && !seen.insert(name) {
                    e.duplicate(&format!("{field}.name"), name);
                }
                e.complain(&format!("{field}.name"), name, complaints);
            }
            container::container(c, &field, role, pod, e);
            if role != Role::App {
                continue;
            }
            for (field, p) in items(c, &field, "ports") {
                let port = number(p, "hostPort").unwrap_or(0);
                let ip = match text(p, "hostIP") {
                    "" => "0.0.0.0",
                    ip => ip,
                };
                if port != 0 && !host_ports.insert((port, text(p, "protocol"), ip)) {
                    e.duplicate(&format!("{field}.hostPort"), port);
                }
            }
        }
    }
    for (field, c) in items(spec, path, "ephemeralContainers") {
        let target = text(c, "targetContainerName");
        let known = ["containers", "initContainers"]
            .iter()
            .any(|k| items(spec, "", k).iter().any(|(_, c)| text(c, "name") == target));
        if !target.is_empty() && !known {
            e.not_found(&format!("{field}.targetContainerName"), target);
        }
    }
}

fn dns(spec: &Value, path: &str, e: &mut Errors) {
    let config = &spec["dnsConfig"];
    let path = format!("{path}.dnsConfig");
    let servers = items(config, &path, "nameservers");
    if text(spec, "dnsPolicy") == "None" && servers.is_empty() {
        let field = if config.is_null() { path.clone() } else { format!("{path}.nameservers") };
        let why = if config.is_null() {
            "must provide `dnsConfig` when `dnsPolicy` is None"
        } else {
            "must provide at least one DNS nameserver when `dnsPolicy` is None"
        };
        e.required(&field, why);
    }
    if servers.len() > 3 {
        e.invalid(
            &format!("{path}.nameservers"),
            config["nameservers"].clone(),
            "must not have more than 3 nameservers",
        );
    }
    for (field, ip) in servers {
        let ip = ip.as_str().unwrap_or("");
        e.complain(&field, ip, names::ip_address(ip));
    }
    for (field, s) in items(config, &path, "searches") {
        let s = s.as_str().unwrap_or("");
        if s != "." {
            e.complain(
                &field,
                s,
                names::dns1123_subdomain(&s.strip_suffix('.').unwrap_or(s).replace('_', "a")),
            );
        }
    }
    for (field, o) in items(config, &path, "options") {
        if text(o, "name").is_empty() {
            e.required(&format!("{field}.name"), "must not be empty");
        }
    }
}

fn security(spec: &Value, path: &str, e: &mut Errors) {
    let s = &spec["securityContext"];
    let path = format!("{path}.securityContext");
    for key in ["runAsUser", "runAsGroup", "fsGroup"] {
        container::id(s, key, &path, e);
    }
    for (field, g) in items(s, &path, "supplementalGroups") {
        let g = g.as_i64().unwrap_or(-1);
        if !(0..=i64::from(i32::MAX)).contains(&g) {
            e.invalid(&field, g, "must be between 0 and 2147483647, inclusive");
        }
    }
    e.one_of(s, &path, "fsGroupChangePolicy", &["Always", "OnRootMismatch"]);
    e.one_of(s, &path, "supplementalGroupsPolicy", &["Merge", "Strict"]);
    container::profiles(s, &path, e);
    if spec.get("hostUsers").and_then(Value::as_bool) == Some(false) {
        for key in ["hostNetwork", "hostPID", "hostIPC"].into_iter().filter(|key| flag(spec, key)) {
            let field = path.strip_suffix(".securityContext").unwrap_or(&path);
            e.forbidden(&format!("{field}.{key}"), "when `pod.Spec.HostUsers` is false");
        }
    }
    if flag(spec, "shareProcessNamespace") && flag(spec, "hostPID") {
        e.invalid(
            "spec.shareProcessNamespace",
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        );
    }
    let mut seen = HashSet::new();
    for (field, c) in items(s, &path, "sysctls") {
        let name = text(c, "name");
        let ok = !name.is_empty()
            && name.len() <= 253
            && name.split(['.', '/']).all(|p| {
                !p.is_empty()
                    && p.bytes()
                        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
            });
        if name.is_empty() {
            e.required(&format!("{field}.name"), "");
        } else if !ok {
            e.invalid(
                &format!("{field}.name"),
                name,
                "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
            );
        } else if !seen.insert(name) {
            e.duplicate(&format!("{field}.name"), name);
        }
    }
}

const UPDATE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// What a plain update may change of a pod.
pub(super) fn update(pod: &Value, stored: &Value, e: &mut Errors) {
    let (new, old) = (&pod["spec"], &stored["spec"]);
    let mut allowed = old.clone();
    for key in ["containers", "initContainers"] {
        let (now, before) = (items(new, "spec", key), items(old, "spec", key));
        if now.len() != before.len() {
            return e.forbidden(&format!("spec.{key}"), "pod updates may not add or remove containers");
        }
        for (i, (field, c)) in now.iter().enumerate() {
            let image = text(c, "image");
            if image.is_empty() {
                e.required(&format!("{field}.image"), "");
            } else if image.trim() != image {
                e.invalid(&format!("{field}.image"), image, "must not have leading or trailing whitespace");
            }
            allowed[key][i]["image"] = c["image"].clone();
        }
    }
    deadline(new, old, e);
    copy(&mut allowed, new, "activeDeadlineSeconds");
    let had: Vec<&Value> = items(old, "", "tolerations").into_iter().map(|(_, t)| t).collect();
    let has: Vec<&Value> = items(new, "", "tolerations").into_iter().map(|(_, t)| t).collect();
    if had.iter().all(|t| has.contains(t)) {
        copy(&mut allowed, new, "tolerations");
    }
    if number(old, "terminationGracePeriodSeconds").is_some_and(|g| g < 0)
        && number(new, "terminationGracePeriodSeconds") == Some(1)
    {
        copy(&mut allowed, new, "terminationGracePeriodSeconds");
    }
    gates(&mut allowed, new, old, e);
    if allowed != *new {
        e.forbidden("spec", &format!("{UPDATE}\n{}", difference(&allowed, new)));
    }
}

fn deadline(new: &Value, old: &Value, e: &mut Errors) {
    let key = "activeDeadlineSeconds";
    let field = "spec.activeDeadlineSeconds";
    match (number(old, key), number(new, key)) {
        (Some(before), Some(now)) if now > before => {
            e.invalid(field, now, &format!("must be less than or equal to previous value: {before}"));
        }
        (Some(_), None) => {
            e.invalid(field, Value::Null, "must not update from a positive integer to nil value")
        }
        (_, Some(now)) if now < 1 => e.invalid(field, now, "must be greater than 0"),
        _ => {}
    }
}

/// Scheduling gates may go, and never come.
fn gates(allowed: &mut Value, new: &Value, old: &Value, e: &mut Errors) {
    let names = |s: &Value| -> Vec<String> {
        items(s, "", "schedulingGates").iter().map(|(_, g)| text(g, "name").to_owned()).collect()
    };
    let had = names(old);
    if let Some(extra) = names(new).iter().find(|g| !had.contains(g)) {
        return e.forbidden(
            "spec.schedulingGates",
            &format!("only deletion is allowed, but found new scheduling gate '{extra}'"),
        );
    }
    copy(allowed, new, "schedulingGates");
    if !had.is_empty() {
        // A pod that is not yet to be scheduled may still be told where to.
        copy(allowed, new, "nodeSelector");
    }
}

fn copy(to: &mut Value, from: &Value, key: &str) {
    let to = meta::object_mut(to);
    match from.get(key) {
        Some(v) => drop(to.insert(key.to_owned(), v.clone())),
        None => drop(to.remove(key)),
    }
}

/// The top-level fields that differ, old and new.
fn difference(old: &Value, new: &Value) -> String {
    let empty = Map::new();
    let (a, b) = (old.as_object().unwrap_or(&empty), new.as_object().unwrap_or(&empty));
    let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let show = |v: Option<&Value>| v.map_or_else(|| "<unset>".to_owned(), Value::to_string);
    keys.into_iter()
        .filter(|k| a.get(*k) != b.get(*k))
        .map(|k| format!("-  {k}: {}\n+  {k}: {}", show(a.get(k)), show(b.get(k))))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Ephemeral containers are added, never changed or removed.
pub(super) fn ephemeral_update(pod: &Value, stored: &Value, e: &mut Errors) {
    spec_at(&pod["spec"], "spec", e);
    let now = items(&pod["spec"], "spec", "ephemeralContainers");
    for (_, before) in items(&stored["spec"], "spec", "ephemeralContainers") {
        let name = text(before, "name");
        match now.iter().find(|(_, c)| text(c, "name") == name) {
            None => e.forbidden(
                "spec.ephemeralContainers",
                &format!("existing ephemeral containers {name:?} may not be removed\n"),
            ),
            Some((_, c)) if *c != before => {
                e.forbidden(
                    "spec.ephemeralContainers",
                    &format!("existing ephemeral containers {name:?} may not be changed\n"),
                );
            }
            _ => {}
        }
    }
}

/// A resize keeps the QoS class and changes cpu and memory only.
pub(super) fn resize_update(pod: &Value, stored: &Value, e: &mut Errors) {
    spec_at(&pod["spec"], "spec", e);
    if crate::strategy::qos_class(&pod["spec"]) != crate::strategy::qos_class(&stored["spec"]) {
        e.invalid(
            "spec",
            crate::strategy::qos_class(&pod["spec"]),
            "Pod QOS Class may not change as a result of resizing",
        );
    }
}

/// A status write may not move a pod to another node, nor bring a terminated container back.
pub(super) fn status_update(pod: &Value, stored: &Value, e: &mut Errors) {
    if text(&pod["spec"], "nodeName") != text(&stored["spec"], "nodeName") {
        e.forbidden("status.nodeName", "may not be changed directly");
    }
    let nominated = text(&pod["status"], "nominatedNodeName");
    if !nominated.is_empty() {
        e.complain("status.nominatedNodeName", nominated, names::dns1123_subdomain(nominated));
    }
    if text(&pod["spec"], "restartPolicy") == "Always" {
        return;
    }
    let may_restart = text(&pod["spec"], "restartPolicy") == "OnFailure";
    for (field, before) in items(&stored["status"], "status", "containerStatuses") {
        let Some(ended) = before.pointer("/state/terminated") else { continue };
        if may_restart && number(ended, "exitCode") != Some(0) {
            continue;
        }
        let name = text(before, "name");
        let now = items(&pod["status"], "", "containerStatuses");
        let Some((_, now)) = now.iter().find(|(_, c)| text(c, "name") == name) else { continue };
        if now.pointer("/state/terminated").is_none() {
            e.forbidden(&format!("{field}.state"), "may not be transitioned to non-terminated state");
        }
    }
}
