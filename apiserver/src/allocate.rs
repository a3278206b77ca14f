//! Addresses and node ports of Services.
//!
//! Guarantees: two Services never hold the same cluster address or node port: each is a key of its
//! own in the store, made and removed in the transaction that writes the Service.
//! Caveat: which ones are free is looked up in the cache, so a race is found by the transaction,
//! and the request tries again.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
};

use api::{
    registry::Resource,
    status::{ErrorKind, Failure, FieldError},
};
use bytes::Bytes;
use ipnet::IpNet;
use rand::Rng;
use serde_json::{Value, json};

use crate::keys;

const NODE_PORTS: std::ops::RangeInclusive<u64> = 30000..=32767;

/// The store keys that a Service claims.
pub(crate) fn claims(service: &Value) -> BTreeSet<Bytes> {
    let ips = api::meta::at(service, &["spec", "clusterIPs"]).and_then(Value::as_array);
    let ips =
        ips.into_iter().flatten().filter_map(Value::as_str).filter(|ip| *ip != "None" && !ip.is_empty());
    let ports = node_ports(service).into_iter().map(|(protocol, port)| keys::node_port(&protocol, port));
    ips.map(keys::cluster_ip).chain(ports).collect()
}

fn node_ports(service: &Value) -> Vec<(String, u64)> {
    let ports = api::meta::at(service, &["spec", "ports"]).and_then(Value::as_array);
    let of = |p: &Value| Some((protocol(p), p.get("nodePort")?.as_u64().filter(|n| *n > 0)?));
    ports.into_iter().flatten().filter_map(of).collect()
}

fn protocol(port: &Value) -> String {
    port.get("protocol").and_then(Value::as_str).unwrap_or("TCP").to_owned()
}

/// The answer when a claim is somebody else's already.
pub(crate) fn taken(row: &Resource, name: &str, key: &Bytes) -> Failure {
    let key = String::from_utf8_lossy(key);
    let what = key.rsplit('/').next().unwrap_or("").to_owned();
    let error = if key.contains("-nodeports") {
        FieldError {
            kind: ErrorKind::Invalid,
            field: "spec.ports.nodePort".into(),
            value: Some(what.rsplit('-').next().unwrap_or("").to_owned()),
            detail: "provided port is already allocated".into(),
        }
    } else {
        FieldError {
            kind: ErrorKind::Invalid,
            field: "spec.clusterIPs".into(),
            value: Some(format!("[\"{what}\"]")),
            detail: format!("failed to allocate IP {what}: provided IP is already allocated"),
        }
    };
    Failure::invalid(row, name, &[error])
}

/// Fills in the addresses and node ports of a Service: keeps those of `old` (on an update), takes the
/// wanted ones, and chooses the rest among the free ones.
///
/// # Errors
/// A wanted address outside the network, or nothing free any more.
pub(crate) fn fill(
    row: &Resource,
    service: &mut Value,
    old: Option<&Value>,
    others: &HashSet<Bytes>,
    cidr: &IpNet,
    rng: &mut impl Rng,
) -> Result<(), Failure> {
    let name = api::meta::name(service).to_owned();
    let kind = api::meta::str_at(service, &["spec", "type"]).to_owned();
    let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
    if kind == "ExternalName" {
        for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            spec.remove(key);
        }
        return Ok(());
    }
    let text = |v: Option<&Value>| v.and_then(Value::as_str).unwrap_or("").to_owned();
    let first = |spec: &serde_json::Map<String, Value>| {
        let single = text(spec.get("clusterIP"));
        if single.is_empty() { text(spec.get("clusterIPs").and_then(|l| l.get(0))) } else { single }
    };
    let mut address = first(spec);
    if !address.is_empty() && others.contains(&keys::cluster_ip(&address)) {
        return Err(taken(row, &name, &keys::cluster_ip(&address)));
    }
    if address.is_empty()
        && let Some(old) = old.and_then(|o| o["spec"].as_object())
    {
        address = first(old);
    }
    if address.is_empty() {
        let free = free_address(cidr, others, rng);
        address = free.ok_or_else(|| Failure::internal(format!("no address is free in {cidr}")))?.to_string();
    } else if address != "None" && !address.parse::<IpAddr>().is_ok_and(|ip| cidr.contains(&ip)) {
        let detail = format!(
            "failed to allocate IP {address}: the provided IP is not in the valid range. The range of valid IPs is {cidr}"
        );
        let value = Some(format!("[\"{address}\"]"));
        let field = "spec.clusterIPs".to_owned();
        return Err(Failure::invalid(
            row,
            &name,
            &[FieldError { kind: ErrorKind::Invalid, field, value, detail }],
        ));
    }
    spec.insert("clusterIP".into(), json!(address));
    spec.insert("clusterIPs".into(), json!([address]));
    let family = if cidr.addr().is_ipv6() { "IPv6" } else { "IPv4" };
    spec.entry("ipFamilies").or_insert(json!([family]));
    spec.entry("ipFamilyPolicy").or_insert(json!("SingleStack"));

    let wants_ports = kind == "NodePort"
        || kind == "LoadBalancer" && spec.get("allocateLoadBalancerNodePorts") != Some(&Value::Bool(false));
    let old_ports = old.and_then(|o| api::meta::at(o, &["spec", "ports"])).and_then(Value::as_array).cloned();
    let mut used: HashSet<Bytes> = others.clone();
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if !wants_ports {
            if let (true, Some(port)) = (kind == "ClusterIP", port.as_object_mut()) {
                port.remove("nodePort");
            }
            continue;
        }
        let protocol = protocol(port);
        if let Some(wanted) = port.get("nodePort").and_then(Value::as_u64).filter(|p| *p > 0) {
            let claim = keys::node_port(&protocol, wanted);
            if others.contains(&claim) {
                return Err(taken(row, &name, &claim));
            }
            continue;
        }
        let same = |o: &&Value| o.get("port") == port.get("port") && self::protocol(o) == protocol;
        let kept = old_ports.iter().flatten().find(same).and_then(|o| o.get("nodePort")?.as_u64());
        let chosen = match kept.filter(|p| *p > 0) {
            Some(kept) => kept,
            None => {
                free_port(&protocol, &used, rng).ok_or_else(|| Failure::internal("no node port is free"))?
            }
        };
        used.insert(keys::node_port(&protocol, chosen));
        port["nodePort"] = json!(chosen);
    }
    Ok(())
}

fn free_address(cidr: &IpNet, taken: &HashSet<Bytes>, rng: &mut impl Rng) -> Option<IpAddr> {
    let is_free = |ip: &IpAddr| {
        *ip != crate::config::kubernetes_service_ip(cidr)
            && !taken.contains(&keys::cluster_ip(&ip.to_string()))
    };
    let bits = cidr.max_prefix_len() - cidr.prefix_len();
    let span = 1u64.checked_shl(u32::from(bits).min(20)).unwrap_or(1);
    // A random start, as upstream does: a freed address is not given to the next one at once.
    let start = rng.random_range(1..span.max(2));
    (0..span).filter_map(|n| nth(cidr, (start + n) % span)).find(is_free)
}

fn nth(cidr: &IpNet, n: u64) -> Option<IpAddr> {
    let ip = match cidr {
        IpNet::V4(net) => {
            let ip = u32::from(net.network()).checked_add(u32::try_from(n).ok()?)?;
            let ip = std::net::Ipv4Addr::from(ip);
            if n == 0 || ip == net.broadcast() {
                return None;
            }
            IpAddr::V4(ip)
        }
        IpNet::V6(net) => {
            if n == 0 {
                return None;
            }
            IpAddr::V6(u128::from(net.network()).checked_add(u128::from(n))?.into())
        }
    };
    cidr.contains(&ip).then_some(ip)
}

fn free_port(protocol: &str, taken: &HashSet<Bytes>, rng: &mut impl Rng) -> Option<u64> {
    let (low, span) = (*NODE_PORTS.start(), NODE_PORTS.end() - NODE_PORTS.start() + 1);
    let start = rng.random_range(0..span);
    (0..span).map(|n| low + (start + n) % span).find(|p| !taken.contains(&keys::node_port(protocol, *p)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> &'static Resource {
        api::registry::find("", "v1", "services").unwrap()
    }

    fn filled(mut service: Value, old: Option<&Value>, others: &[Bytes]) -> Result<Value, Failure> {
        let others = others.iter().cloned().collect();
        let cidr = "10.96.0.0/29".parse().unwrap();
        fill(row(), &mut service, old, &others, &cidr, &mut rand::rng()).map(|()| service)
    }

    #[test]
    fn an_address_is_free_inside_and_not_the_first() {
        let others: Vec<_> = (2..6).map(|n| keys::cluster_ip(&format!("10.96.0.{n}"))).collect();
        let service = json!({"metadata": {"name": "a"}, "spec": {"type": "ClusterIP"}});
        let out = filled(service.clone(), None, &others).unwrap();
        assert_eq!(out["spec"]["clusterIP"], "10.96.0.6");
        assert_eq!(out["spec"]["clusterIPs"], json!(["10.96.0.6"]));
        let full: Vec<_> = (2..7).map(|n| keys::cluster_ip(&format!("10.96.0.{n}"))).collect();
        assert!(filled(service, None, &full).is_err());
    }

    #[test]
    fn what_was_given_stays() {
        let old = json!({"spec": {"clusterIP": "10.96.0.3", "clusterIPs": ["10.96.0.3"],
            "ports": [{"port": 80, "nodePort": 30080}]}});
        let new = json!({"metadata": {"name": "a"}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
        let out = filled(new, Some(&old), &[]).unwrap();
        assert_eq!(out["spec"]["clusterIP"], "10.96.0.3");
        assert_eq!(out["spec"]["ports"][0]["nodePort"], 30080);
        assert_eq!(claims(&out).len(), 2);
    }

    #[test]
    fn headless_and_foreign_addresses() {
        let headless = json!({"metadata": {"name": "a"}, "spec": {"type": "ClusterIP", "clusterIP": "None"}});
        let out = filled(headless, None, &[]).unwrap();
        assert!(claims(&out).is_empty());
        let foreign =
            json!({"metadata": {"name": "a"}, "spec": {"type": "ClusterIP", "clusterIP": "1.2.3.4"}});
        assert_eq!(filled(foreign, None, &[]).unwrap_err().code, 422);
    }
}
