//! The cells of each kind, in the order of [`super::columns`].

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Row, age, pod};
use crate::meta::{at, created, name, str_at};
use crate::registry::Resource;
use crate::selector::LabelSelector;

const NONE: &str = "<none>";

pub(super) fn cells(row: &Resource, o: &Value, now: Timestamp) -> Row {
    let age = age(created(o), now);
    let cells = match (row.group, row.kind) {
        ("", "Pod") => return pod_row(o, now, age),
        ("apps", "Deployment") => deployment(o, age),
        ("apps", "ReplicaSet") => replica_set(o, age),
        ("", "Service") => service(o, age),
        ("", "Node") => node(o, age),
        ("", "Namespace") => vec![json!(name(o)), json!(str_at(o, &["status", "phase"])), json!(age)],
        ("", "ConfigMap") => {
            vec![json!(name(o)), json!(count(o, &["data"]) + count(o, &["binaryData"])), json!(age)]
        }
        ("", "Secret") => {
            vec![json!(name(o)), json!(str_at(o, &["type"])), json!(count(o, &["data"])), json!(age)]
        }
        ("", "ServiceAccount") => vec![json!(name(o)), json!(count(o, &["secrets"])), json!(age)],
        ("coordination.k8s.io", "Lease") => {
            vec![json!(name(o)), json!(str_at(o, &["spec", "holderIdentity"])), json!(age)]
        }
        ("node.k8s.io", "RuntimeClass") => {
            vec![json!(name(o)), json!(str_at(o, &["handler"])), json!(age)]
        }
        (_, "Event") => event(o, now),
        _ => vec![json!(name(o)), json!(age)],
    };
    cells.into()
}

fn list<'a>(object: &'a Value, path: &[&str]) -> &'a [Value] {
    at(object, path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn number(object: &Value, path: &[&str]) -> i64 {
    at(object, path).and_then(Value::as_i64).unwrap_or(0)
}

/// Entries of a map or list.
fn count(object: &Value, path: &[&str]) -> usize {
    match at(object, path) {
        Some(Value::Object(m)) => m.len(),
        Some(Value::Array(a)) => a.len(),
        _ => 0,
    }
}

fn or(text: &str, other: &str) -> String {
    if text.is_empty() { other.to_owned() } else { text.to_owned() }
}

fn joined<'a>(parts: impl Iterator<Item = &'a str>) -> String {
    or(&parts.filter(|p| !p.is_empty()).collect::<Vec<_>>().join(","), NONE)
}

fn pod_row(o: &Value, now: Timestamp, age: String) -> Row {
    let s = pod::summary(o);
    let address = match str_at(o, &["status", "podIP"]) {
        "" => list(o, &["status", "podIPs"]).first().map_or("", |ip| str_at(ip, &["ip"])),
        ip => ip,
    };
    let gates = list(o, &["spec", "readinessGates"]);
    let gates = if gates.is_empty() {
        NONE.to_owned()
    } else {
        let met = gates.iter().filter(|g| pod::has_condition(o, str_at(g, &["conditionType"]))).count();
        format!("{met}/{}", gates.len())
    };
    let cells = vec![
        json!(name(o)),
        json!(format!("{}/{}", s.ready, s.total)),
        json!(s.status),
        json!(s.restarts_text(now)),
        json!(age),
        json!(or(address, NONE)),
        json!(or(str_at(o, &["spec", "nodeName"]), NONE)),
        json!(or(str_at(o, &["status", "nominatedNodeName"]), NONE)),
        json!(gates),
    ];
    // kubectl hides finished pods by this condition where asked to.
    let finished = |reason: &str, message: &str| json!([{"type": "Completed", "status": "True", "reason": reason, "message": message}]);
    let conditions = match str_at(o, &["status", "phase"]) {
        "Succeeded" => Some(finished("Succeeded", "The pod has completed successfully.")),
        "Failed" => Some(finished("Failed", "The pod failed.")),
        _ => None,
    };
    Row { cells, conditions }
}

/// Containers, images and selector of a kind with a pod template.
fn template(o: &Value) -> [Value; 3] {
    let containers = list(o, &["spec", "template", "spec", "containers"]);
    let each = |key: &str| containers.iter().map(|c| str_at(c, &[key])).collect::<Vec<_>>().join(",");
    let selector = LabelSelector::from_object(at(o, &["spec", "selector"]).unwrap_or(&Value::Null));
    let selector = selector.map(|s| s.to_string()).unwrap_or_default();
    [json!(each("name")), json!(each("image")), json!(or(&selector, NONE))]
}

fn deployment(o: &Value, age: String) -> Vec<Value> {
    let ready = format!("{}/{}", number(o, &["status", "readyReplicas"]), number(o, &["spec", "replicas"]));
    let mut cells = vec![
        json!(name(o)),
        json!(ready),
        json!(number(o, &["status", "updatedReplicas"])),
        json!(number(o, &["status", "availableReplicas"])),
        json!(age),
    ];
    cells.extend(template(o));
    cells
}

fn replica_set(o: &Value, age: String) -> Vec<Value> {
    let mut cells = vec![
        json!(name(o)),
        json!(number(o, &["spec", "replicas"])),
        json!(number(o, &["status", "replicas"])),
        json!(number(o, &["status", "readyReplicas"])),
        json!(age),
    ];
    cells.extend(template(o));
    cells
}

fn service(o: &Value, age: String) -> Vec<Value> {
    let kind = str_at(o, &["spec", "type"]);
    let external: Vec<&str> = list(o, &["spec", "externalIPs"]).iter().filter_map(Value::as_str).collect();
    let external = match kind {
        "ExternalName" => str_at(o, &["spec", "externalName"]).to_owned(),
        "LoadBalancer" => {
            let given = list(o, &["status", "loadBalancer", "ingress"])
                .iter()
                .map(|i| match str_at(i, &["ip"]) {
                    "" => str_at(i, &["hostname"]),
                    ip => ip,
                })
                .chain(external.iter().copied());
            match joined(given) {
                none if none == NONE => "<pending>".to_owned(),
                some => some,
            }
        }
        _ => joined(external.into_iter()),
    };
    let ports: Vec<String> = list(o, &["spec", "ports"])
        .iter()
        .map(|p| {
            let (port, node) = (number(p, &["port"]), number(p, &["nodePort"]));
            let protocol = str_at(p, &["protocol"]);
            if node > 0 { format!("{port}:{node}/{protocol}") } else { format!("{port}/{protocol}") }
        })
        .collect();
    let selector = at(o, &["spec", "selector"]).and_then(Value::as_object).map(|m| {
        m.iter().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or(""))).collect::<Vec<_>>().join(",")
    });
    vec![
        json!(name(o)),
        json!(kind),
        json!(or(str_at(o, &["spec", "clusterIP"]), NONE)),
        json!(external),
        json!(or(&ports.join(","), NONE)),
        json!(age),
        json!(or(&selector.unwrap_or_default(), NONE)),
    ]
}

fn node(o: &Value, age: String) -> Vec<Value> {
    let ready = list(o, &["status", "conditions"]).iter().find(|c| str_at(c, &["type"]) == "Ready");
    let mut status = match ready.map(|c| str_at(c, &["status"])) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if at(o, &["spec", "unschedulable"]).and_then(Value::as_bool).unwrap_or(false) {
        status.push_str(",SchedulingDisabled");
    }
    let mut roles: Vec<&str> = Vec::new();
    for (key, value) in at(o, &["metadata", "labels"]).and_then(Value::as_object).into_iter().flatten() {
        match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => roles.push(role),
            None if key == "kubernetes.io/role" => roles.push(value.as_str().unwrap_or("")),
            None => {}
        }
    }
    roles.sort_unstable();
    roles.dedup();
    let address = |ty: &str| {
        let found = list(o, &["status", "addresses"]).iter().find(|a| str_at(a, &["type"]) == ty);
        or(found.map_or("", |a| str_at(a, &["address"])), NONE)
    };
    let info = |key: &str| str_at(o, &["status", "nodeInfo", key]);
    vec![
        json!(name(o)),
        json!(status),
        json!(joined(roles.into_iter())),
        json!(age),
        json!(info("kubeletVersion")),
        json!(address("InternalIP")),
        json!(address("ExternalIP")),
        json!(or(info("osImage"), "<unknown>")),
        json!(or(info("kernelVersion"), "<unknown>")),
        json!(or(info("containerRuntimeVersion"), "<unknown>")),
    ]
}

/// Both spellings of Event.
fn event(o: &Value, now: Timestamp) -> Vec<Value> {
    let text = |core: &[&str], new: &[&str]| match str_at(o, core) {
        "" => str_at(o, new).to_owned(),
        t => t.to_owned(),
    };
    let time = |path: &[&str]| str_at(o, path).parse::<Timestamp>().ok();
    let first = time(&["firstTimestamp"]).or(time(&["deprecatedFirstTimestamp"])).or(time(&["eventTime"]));
    let last = time(&["series", "lastObservedTime"])
        .or(time(&["lastTimestamp"]))
        .or(time(&["deprecatedLastTimestamp"]))
        .or(first);
    let number = |path: &[&str]| Some(number(o, path)).filter(|n| *n > 0);
    let seen =
        number(&["series", "count"]).or(number(&["count"])).or(number(&["deprecatedCount"])).unwrap_or(1);
    let about = |key: &str| text(&["involvedObject", key], &["regarding", key]);
    let component = match text(&["source", "component"], &["deprecatedSource", "component"]) {
        c if c.is_empty() => text(&["reportingComponent"], &["reportingController"]),
        c => c,
    };
    let host = match text(&["source", "host"], &["deprecatedSource", "host"]) {
        h if h.is_empty() => String::new(),
        h => format!(", {h}"),
    };
    let object = match about("name") {
        n if n.is_empty() => about("kind").to_lowercase(),
        n => format!("{}/{n}", about("kind").to_lowercase()),
    };
    vec![
        json!(age(last, now)),
        json!(str_at(o, &["type"])),
        json!(str_at(o, &["reason"])),
        json!(object),
        json!(about("fieldPath")),
        json!(format!("{component}{host}")),
        json!(text(&["message"], &["note"]).trim()),
        json!(age(first, now)),
        json!(seen),
        json!(name(o)),
    ]
}
