//! `fieldRef` and `resourceFieldRef`: what a pod may learn about itself.

use std::collections::BTreeMap;
use std::fmt::Write;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};

use crate::pod::view;
use crate::quantity;

/// What only the node knows about a pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeFacts {
    /// Name of the node.
    pub node_name: String,
    /// Its addresses, primary first.
    pub host_ips: Vec<String>,
    /// The pod's addresses, primary first; empty before its sandbox is up.
    pub pod_ips: Vec<String>,
    /// The node's allocatable CPU in thousandths: the limit of a container without one.
    pub cpu_milli: i64,
    /// The node's allocatable memory in bytes.
    pub memory: i64,
    /// The node's allocatable local storage in bytes.
    pub storage: i64,
}

/// Value of a `fieldRef`; the error says which field cannot be had.
pub fn field(pod: &Pod, node: &NodeFacts, path: &str) -> Result<String, String> {
    let meta = &pod.metadata;
    let spec = view::spec(pod);
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    if let Some((map, key)) = subscript(path) {
        let entries = match map {
            "metadata.labels" => meta.labels.as_ref(),
            "metadata.annotations" => meta.annotations.as_ref(),
            _ => return Err(format!("field {path} has no subscript")),
        };
        return Ok(entries.and_then(|e| e.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => text(&meta.name),
        "metadata.namespace" => text(&meta.namespace),
        "metadata.uid" => text(&meta.uid),
        "metadata.labels" => list(meta.labels.as_ref()),
        "metadata.annotations" => list(meta.annotations.as_ref()),
        "spec.nodeName" => node.node_name.clone(),
        "spec.serviceAccountName" => text(&spec.service_account_name),
        "spec.schedulerName" => text(&spec.scheduler_name),
        "spec.restartPolicy" => text(&spec.restart_policy),
        "status.hostIP" => node.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => node.host_ips.join(","),
        "status.podIP" => pod_ips(pod, node).first().cloned().unwrap_or_default(),
        "status.podIPs" => pod_ips(pod, node).join(","),
        "status.phase" => pod.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_default(),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

fn pod_ips(pod: &Pod, node: &NodeFacts) -> Vec<String> {
    if view::host_network(pod) { node.host_ips.clone() } else { node.pod_ips.clone() }
}

fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, key) = path.split_once('[')?;
    Some((map, key.strip_suffix(']')?.trim_matches(['\'', '"'])))
}

/// A map as files show it: `key="value"` lines in order.
fn list(map: Option<&BTreeMap<String, String>>) -> String {
    let mut out = String::new();
    for (n, (key, value)) in map.into_iter().flatten().enumerate() {
        let _ = write!(out, "{}{key}={}", if n > 0 { "\n" } else { "" }, quote(value));
    }
    out
}

/// Quotes as Go's `%q` does for the text that annotations hold.
fn quote(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Value of a `resourceFieldRef` about `container`, in units of the divisor, rounded up.
pub fn resource(
    container: &Container,
    node: &NodeFacts,
    selector: &ResourceFieldSelector,
) -> Result<String, String> {
    let what = selector.resource.as_str();
    let (side, kind) =
        what.split_once('.').ok_or_else(|| format!("unsupported container resource: {what}"))?;
    let resources = container.resources.as_ref();
    let of = |list: Option<&BTreeMap<String, _>>| {
        list.and_then(|l| l.get(kind))
            .and_then(|q: &k8s_openapi::apimachinery::pkg::api::resource::Quantity| quantity::milli(&q.0))
    };
    let limit = of(resources.and_then(|r| r.limits.as_ref())).filter(|l| *l > 0);
    let default = match kind {
        "cpu" => i128::from(node.cpu_milli),
        "memory" => i128::from(node.memory) * 1000,
        "ephemeral-storage" => i128::from(node.storage) * 1000,
        _ if kind.starts_with("hugepages-") => 0,
        _ => return Err(format!("unsupported container resource: {what}")),
    };
    let amount = match side {
        "limits" => limit.unwrap_or(default),
        "requests" => of(resources.and_then(|r| r.requests.as_ref())).unwrap_or(0),
        _ => return Err(format!("unsupported container resource: {what}")),
    };
    let divisor =
        selector.divisor.as_ref().and_then(|d| quantity::milli(&d.0)).filter(|d| *d > 0).unwrap_or(1000);
    Ok(((amount + divisor - 1) / divisor).to_string())
}
