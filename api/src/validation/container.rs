//! Rules of containers: images, environment, mounts, probes, resources.

use std::collections::HashSet;

use serde_json::Value;

use super::errors::{Errors, NOT_NEGATIVE, entries, flag, items, number, text};
use super::service::target;
use super::volumes::relative;
use crate::names;
use crate::quantity::Quantity;

/// What a container's rules must know of its pod.
pub(super) struct Pod<'a> {
    pub volumes: HashSet<&'a str>,
    pub host_network: bool,
    /// The pod has users of its own.
    pub own_users: bool,
    /// `os.name`, or empty.
    pub os: &'a str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    App,
    Init,
    Ephemeral,
}

pub(super) fn container(c: &Value, field: &str, role: Role, pod: &Pod<'_>, e: &mut Errors) {
    let image = text(c, "image");
    if image.is_empty() {
        e.required(&format!("{field}.image"), "");
    } else if image.trim() != image {
        e.invalid(&format!("{field}.image"), image, "must not have leading or trailing whitespace");
    }
    e.one_of(c, field, "imagePullPolicy", &["Always", "IfNotPresent", "Never"]);
    e.one_of(c, field, "terminationMessagePolicy", &["FallbackToLogsOnError", "File"]);
    ports(c, field, pod, e);
    env(c, field, e);
    mounts(c, field, pod, e);
    resources(&c["resources"], &format!("{field}.resources"), e);
    security(&c["securityContext"], &format!("{field}.securityContext"), pod, e);
    let sidecar = text(c, "restartPolicy") == "Always";
    let may_probe = role == Role::App || (role == Role::Init && sidecar);
    if !c["restartPolicy"].is_null() && role == Role::Init && !sidecar {
        e.one_of(c, field, "restartPolicy", &["Always", "Never", "OnFailure"]);
    }
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(p) = c.get(key) else { continue };
        let path = format!("{field}.{key}");
        match role {
            _ if may_probe => probe(p, &path, key, e),
            Role::Init => {
                e.forbidden(&path, "may not be set for init containers without restartPolicy=Always")
            }
            _ => e.forbidden(&path, "cannot be set for an Ephemeral Container"),
        }
    }
    if let Some(l) = c.get("lifecycle") {
        let path = format!("{field}.lifecycle");
        if !may_probe {
            let why = match role {
                Role::Init => "may not be set for init containers without restartPolicy=Always",
                _ => "cannot be set for an Ephemeral Container",
            };
            return e.forbidden(&path, why);
        }
        for key in ["postStart", "preStop"] {
            if let Some(h) = l.get(key) {
                handler(h, &format!("{path}.{key}"), &["exec", "httpGet", "tcpSocket", "sleep"], e);
            }
        }
        stop_signal(text(l, "stopSignal"), &format!("{path}.stopSignal"), pod, e);
    }
}

const SIGNALS: [&str; 36] = [
    "SIGABRT",
    "SIGALRM",
    "SIGBUS",
    "SIGCHLD",
    "SIGCLD",
    "SIGCONT",
    "SIGFPE",
    "SIGHUP",
    "SIGILL",
    "SIGINT",
    "SIGIO",
    "SIGIOT",
    "SIGKILL",
    "SIGPIPE",
    "SIGPOLL",
    "SIGPROF",
    "SIGPWR",
    "SIGQUIT",
    "SIGRTMAX",
    "SIGRTMIN",
    "SIGSEGV",
    "SIGSTKFLT",
    "SIGSTOP",
    "SIGSYS",
    "SIGTERM",
    "SIGTRAP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGUSR1",
    "SIGUSR2",
    "SIGVTALRM",
    "SIGWINCH",
    "SIGXCPU",
    "SIGXFSZ",
];

/// The signal that asks a container to end: one of Linux, in a pod that says it is for Linux.
fn stop_signal(name: &str, path: &str, pod: &Pod<'_>, e: &mut Errors) {
    if name.is_empty() {
        return;
    }
    if pod.os.is_empty() {
        return e.forbidden(path, "may not be set for containers with empty `spec.os.name`");
    }
    let counted = |start: &str, most: u32| {
        let number = name.strip_prefix(start).and_then(|number| number.parse::<u32>().ok());
        number.is_some_and(|number| (1..=most).contains(&number))
    };
    if !SIGNALS.contains(&name) && !counted("SIGRTMIN+", 15) && !counted("SIGRTMAX-", 14) {
        e.not_supported(path, name, &SIGNALS);
    }
}

fn ports(c: &Value, field: &str, pod: &Pod<'_>, e: &mut Errors) {
    let mut seen = HashSet::new();
    for (path, p) in items(c, field, "ports") {
        let name = text(p, "name");
        if !name.is_empty() {
            let complaints = names::port_name(name);
            if complaints.is_empty() && !seen.insert(name) {
                e.duplicate(&format!("{path}.name"), name);
            }
            e.complain(&format!("{path}.name"), name, complaints);
        }
        let (inner, outer) = (number(p, "containerPort").unwrap_or(0), number(p, "hostPort").unwrap_or(0));
        if inner == 0 {
            e.required(&format!("{path}.containerPort"), "");
        } else {
            for why in names::port_number(inner) {
                e.invalid(&format!("{path}.containerPort"), inner, &why);
            }
        }
        if outer != 0 {
            for why in names::port_number(outer) {
                e.invalid(&format!("{path}.hostPort"), outer, &why);
            }
        }
        if pod.host_network && outer != 0 && outer != inner {
            e.invalid(
                &format!("{path}.containerPort"),
                inner,
                "must match `hostPort` when `hostNetwork` is true",
            );
        }
        let ip = text(p, "hostIP");
        if !ip.is_empty() {
            e.complain(&format!("{path}.hostIP"), ip, names::ip_address(ip));
        }
        e.one_of(p, &path, "protocol", &["SCTP", "TCP", "UDP"]);
    }
}

fn env(c: &Value, field: &str, e: &mut Errors) {
    for (path, v) in items(c, field, "env") {
        let name = text(v, "name");
        if name.is_empty() {
            e.required(&format!("{path}.name"), "");
        } else {
            e.complain(&format!("{path}.name"), name, names::env_name(name));
        }
        let Some(from) = v.get("valueFrom") else { continue };
        let path = format!("{path}.valueFrom");
        let kinds: Vec<&str> =
            from.as_object().map(|o| o.keys().map(String::as_str).collect()).unwrap_or_default();
        if !text(v, "value").is_empty() && !kinds.is_empty() {
            e.invalid(&path, "", "may not be specified when `value` is not empty");
        } else if kinds.len() != 1 {
            let why = if kinds.is_empty() {
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"
            } else {
                "may not have more than one field specified at a time"
            };
            e.invalid(&path, "", why);
        }
        for kind in kinds {
            let (path, r) = (format!("{path}.{kind}"), &from[kind]);
            match kind {
                "fieldRef" => field_ref(r, &path, true, e),
                "resourceFieldRef" => resource_ref(r, &path, e),
                "configMapKeyRef" | "secretKeyRef" => {
                    if text(r, "name").is_empty() {
                        e.required(&format!("{path}.name"), "");
                    }
                    let key = text(r, "key");
                    if key.is_empty() {
                        e.required(&format!("{path}.key"), "");
                    } else {
                        e.complain(&format!("{path}.key"), key, names::config_key(key));
                    }
                }
                _ => {}
            }
        }
    }
    for (path, from) in items(c, field, "envFrom") {
        let prefix = text(from, "prefix");
        if !prefix.is_empty() {
            e.complain(&format!("{path}.prefix"), prefix, names::env_name(prefix));
        }
        let found: Vec<&str> =
            ["configMapRef", "secretRef"].into_iter().filter(|k| from.get(*k).is_some()).collect();
        match found.as_slice() {
            [] => e.invalid(&path, "", "must specify one of: `configMapRef` or `secretRef`"),
            [kind] => {
                if text(&from[*kind], "name").is_empty() {
                    e.required(&format!("{path}.{kind}.name"), "");
                }
            }
            _ => e.invalid(&path, "", "may not have more than one field specified at a time"),
        }
    }
}

/// A field of the pod; `env` knows more of them than files do.
pub(super) fn field_ref(r: &Value, path: &str, env: bool, e: &mut Errors) {
    const META: [&str; 3] = ["metadata.name", "metadata.namespace", "metadata.uid"];
    const ENV: [&str; 6] = [
        "spec.nodeName",
        "spec.serviceAccountName",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
        "status.podIPs",
    ];
    const FILES: [&str; 2] = ["metadata.annotations", "metadata.labels"];
    let field = text(r, "fieldPath");
    if field.is_empty() {
        return e.required(&format!("{path}.fieldPath"), "");
    }
    if let Some((map, key)) = field.strip_suffix("']").and_then(|f| f.split_once("['")) {
        if !FILES.contains(&map) {
            e.invalid(&format!("{path}.fieldPath"), field, "does not support subscript");
        } else {
            e.complain(&format!("{path}.fieldPath"), key, names::qualified_name(&key.to_lowercase()));
        }
        return;
    }
    let mut supported: Vec<&str> = META.to_vec();
    if env {
        supported.extend(ENV);
    } else {
        supported.extend(FILES);
    }
    supported.sort_unstable();
    if !supported.contains(&field) {
        e.not_supported(&format!("{path}.fieldPath"), field, &supported);
    }
}

/// A request or limit of a container.
pub(super) fn resource_ref(r: &Value, path: &str, e: &mut Errors) {
    const KNOWN: [&str; 6] = [
        "limits.cpu",
        "limits.ephemeral-storage",
        "limits.memory",
        "requests.cpu",
        "requests.ephemeral-storage",
        "requests.memory",
    ];
    let resource = text(r, "resource");
    if resource.is_empty() {
        return e.required(&format!("{path}.resource"), "");
    }
    let huge = resource.starts_with("limits.hugepages-") || resource.starts_with("requests.hugepages-");
    if !huge && !KNOWN.contains(&resource) {
        e.not_supported(&format!("{path}.resource"), resource, &KNOWN);
    }
    let divisor = r.get("divisor").map(|d| Quantity::of(Some(d)).to_string()).unwrap_or_default();
    let fits: &[&str] = match resource {
        _ if divisor.is_empty() || divisor == "0" => return,
        r if r.ends_with(".cpu") => &["1m", "1"],
        _ => &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei", "1024"],
    };
    if !fits.contains(&divisor.as_str()) {
        e.invalid(&format!("{path}.divisor"), divisor, "only divisor's values 1m and 1 are supported with the cpu resource; powers of 1000 and 1024 with the others");
    }
}

fn mounts(c: &Value, field: &str, pod: &Pod<'_>, e: &mut Errors) {
    let mut seen = HashSet::new();
    for (path, m) in items(c, field, "volumeMounts") {
        let (name, at) = (text(m, "name"), text(m, "mountPath"));
        if name.is_empty() {
            e.required(&format!("{path}.name"), "");
        } else if !pod.volumes.contains(name) {
            e.not_found(&format!("{path}.name"), name);
        }
        if at.is_empty() {
            e.required(&format!("{path}.mountPath"), "");
        } else if !seen.insert(at) {
            e.invalid(&format!("{path}.mountPath"), at, "must be unique");
        }
        let (sub, expression) = (text(m, "subPath"), text(m, "subPathExpr"));
        if !sub.is_empty() {
            relative(sub, &format!("{path}.subPath"), e);
        }
        if !expression.is_empty() {
            if !sub.is_empty() {
                e.invalid(
                    &format!("{path}.subPathExpr"),
                    expression,
                    "subPathExpr and subPath are mutually exclusive",
                );
            }
            relative(expression, &format!("{path}.subPathExpr"), e);
        }
        e.one_of(m, &path, "mountPropagation", &["Bidirectional", "HostToContainer", "None"]);
        if text(m, "mountPropagation") == "Bidirectional" && !flag(&c["securityContext"], "privileged") {
            e.forbidden(
                &format!("{path}.mountPropagation"),
                "Bidirectional mount propagation is available only to privileged containers",
            );
        }
        let recursive = text(m, "recursiveReadOnly");
        e.one_of(m, &path, "recursiveReadOnly", &["Disabled", "Enabled", "IfPossible"]);
        if matches!(recursive, "Enabled" | "IfPossible") && !flag(m, "readOnly") {
            e.forbidden(&format!("{path}.recursiveReadOnly"), "may only be specified when readOnly is true");
        }
    }
}

/// Requests and limits; also of a pod as a whole.
pub(super) fn resources(r: &Value, path: &str, e: &mut Errors) {
    for part in ["limits", "requests"] {
        for (name, amount) in entries(r, part) {
            let field = format!("{path}.{part}[{name}]");
            let at = format!("{path}.{part}");
            e.complain(&at, name, names::qualified_name(name));
            let standard =
                matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
            if !standard && !name.contains('/') {
                e.invalid(&at, name, "must be a standard resource type or fully qualified");
            }
            let amount = Quantity::of(Some(amount));
            if amount.is_negative() {
                e.invalid(&field, amount.to_string(), NOT_NEGATIVE);
            }
            if name.contains('/') && amount.is_fractional() {
                e.invalid(&field, amount.to_string(), "must be an integer");
            }
        }
    }
    let named = |of: &dyn Fn(&str) -> bool| {
        ["limits", "requests"].iter().any(|part| entries(r, part).any(|(name, _)| of(name)))
    };
    if named(&|name| name.starts_with("hugepages-")) && !named(&|name| matches!(name, "cpu" | "memory")) {
        e.forbidden(path, "HugePages require cpu or memory");
    }
    for (name, request) in entries(r, "requests") {
        let limit = r.pointer(&format!("/limits/{}", name.replace('~', "~0").replace('/', "~1")));
        let request = Quantity::of(Some(request));
        let field = format!("{path}.requests");
        let strict = name.starts_with("hugepages-") || name.contains('/');
        match limit.map(|l| Quantity::of(Some(l))) {
            Some(l) if strict && request != l => {
                e.invalid(&field, request.to_string(), &format!("must be equal to {name} limit of {l}"));
            }
            Some(l) if request > l => {
                e.invalid(
                    &field,
                    request.to_string(),
                    &format!("must be less than or equal to {name} limit of {l}"),
                );
            }
            None if strict => {
                e.required(&format!("{path}.limits"), "Limit must be set for non overcommitable resources")
            }
            _ => {}
        }
    }
}

fn security(s: &Value, path: &str, pod: &Pod<'_>, e: &mut Errors) {
    for key in ["runAsUser", "runAsGroup"] {
        id(s, key, path, e);
    }
    let escalation = s.get("allowPrivilegeEscalation").and_then(Value::as_bool);
    if escalation == Some(false) {
        if flag(s, "privileged") {
            e.invalid(
                path,
                s.clone(),
                "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            );
        }
        let admin = s.pointer("/capabilities/add").and_then(Value::as_array);
        if admin.into_iter().flatten().any(|c| matches!(c.as_str(), Some("CAP_SYS_ADMIN"))) {
            e.invalid(
                path,
                s.clone(),
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
            );
        }
    }
    e.one_of(s, path, "procMount", &["Default", "Unmasked"]);
    if text(s, "procMount") == "Unmasked" && !pod.own_users {
        e.invalid(&format!("{path}.procMount"), "Unmasked", "`hostUsers` must be false to use `Unmasked`");
    }
    profiles(s, path, e);
}

/// A user or group id.
pub(super) fn id(s: &Value, key: &str, path: &str, e: &mut Errors) {
    if let Some(n) = number(s, key)
        && !(0..=i64::from(i32::MAX)).contains(&n)
    {
        e.invalid(&format!("{path}.{key}"), n, "must be between 0 and 2147483647, inclusive");
    }
}

/// Seccomp and AppArmor profiles, of containers and pods.
pub(super) fn profiles(s: &Value, path: &str, e: &mut Errors) {
    for (kind, word) in [("seccompProfile", "seccomp"), ("appArmorProfile", "AppArmor")] {
        let Some(p) = s.get(kind) else { continue };
        let path = format!("{path}.{kind}");
        let (local, field) = (text(p, "localhostProfile"), format!("{path}.localhostProfile"));
        match text(p, "type") {
            "Localhost" if local.is_empty() => {
                e.required(&field, &format!("must be set when {word} type is Localhost"));
            }
            "Localhost" if kind == "seccompProfile" => relative(local, &field, e),
            "Localhost" if local.len() > LONGEST_PROFILE => {
                e.invalid(&field, local, &format!("may not be more than {LONGEST_PROFILE} bytes"));
            }
            "Localhost" if local.trim() != local => {
                e.invalid(&field, local, "must not be padded with whitespace");
            }
            "RuntimeDefault" | "Unconfined" if !local.is_empty() => {
                e.invalid(&field, local, &format!("can only be set when {word} type is Localhost"));
            }
            "Localhost" | "RuntimeDefault" | "Unconfined" => {}
            "" => e.required(&format!("{path}.type"), &format!("type is required when {kind} is set")),
            other => e.not_supported(
                &format!("{path}.type"),
                other,
                &["Localhost", "RuntimeDefault", "Unconfined"],
            ),
        }
    }
}

/// Longest name of an AppArmor profile: a path's, less its final zero.
const LONGEST_PROFILE: usize = 4095;

fn probe(p: &Value, path: &str, key: &str, e: &mut Errors) {
    handler(p, path, &["exec", "grpc", "httpGet", "tcpSocket"], e);
    for n in
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
    {
        e.not_negative(p, path, n);
    }
    let success = number(p, "successThreshold").unwrap_or(1);
    if key != "readinessProbe" && success != 1 {
        e.invalid(&format!("{path}.successThreshold"), success, "must be 1");
    }
    if let Some(grace) = number(p, "terminationGracePeriodSeconds") {
        let field = format!("{path}.terminationGracePeriodSeconds");
        if key == "readinessProbe" {
            e.invalid(&field, grace, "must not be set for readinessProbes");
        } else if grace <= 0 {
            e.invalid(&field, grace, "must be greater than 0");
        }
    }
}

fn handler(h: &Value, path: &str, kinds: &[&str], e: &mut Errors) {
    let found: Vec<&str> = kinds.iter().copied().filter(|k| h.get(*k).is_some()).collect();
    if found.is_empty() {
        e.required(path, "must specify a handler type");
    }
    for (i, kind) in found.iter().enumerate() {
        let (path, body) = (format!("{path}.{kind}"), &h[*kind]);
        if i > 0 {
            e.forbidden(&path, "may not specify more than 1 handler type");
            continue;
        }
        match *kind {
            "exec" if items(body, "", "command").is_empty() => e.required(&format!("{path}.command"), ""),
            "httpGet" => {
                if text(body, "path").is_empty() {
                    e.required(&format!("{path}.path"), "");
                }
                target(body, "port", &path, e);
                e.one_of(body, &path, "scheme", &["HTTP", "HTTPS"]);
                for (field, header) in items(body, &path, "httpHeaders") {
                    let name = text(header, "name");
                    let ok = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
                    if !ok {
                        e.invalid(
                            &format!("{field}.name"),
                            name,
                            "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')",
                        );
                    }
                }
            }
            "tcpSocket" => target(body, "port", &path, e),
            "grpc" => {
                let n = number(body, "port").unwrap_or(0);
                for why in names::port_number(n) {
                    e.invalid(&format!("{path}.port"), n, &why);
                }
            }
            "sleep" => e.not_negative(body, &path, "seconds"),
            _ => {}
        }
    }
}
