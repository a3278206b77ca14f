//! The nftables table of one node's pod network: pure functions.
//!
//! The table is written as a whole when the network is opened, and by elements when a pod with host ports comes or
//! goes. Every map has `address` and `port` halves, because older `nft` cannot read maps to a pair as JSON.
//!
//! What the chains promise:
//! - `prerouting` and `output` lead packets for a host port, also those for 127.0.0.1, to the pod;
//! - `guard` drops packets from or to 127.0.0.0/8 that do not come from loopback: the bridge has
//!   `route_localnet`, and without this a pod or a neighbour could reach the node's loopback services
//!   (CVE-2020-8558);
//! - `postrouting` hides pods behind the node's address outside of the pod ranges, and makes answers come
//!   back through the node where a pod reaches itself or a process reaches a pod by 127.0.0.1.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::json;

use crate::model::{PodIps, PortMapping};
use crate::nft::{self, Batch, Expr, Hook};

const FAMILIES: [Family; 2] = [
    Family { suffix: "4", protocol: "ip", address: "ipv4_addr" },
    Family { suffix: "6", protocol: "ip6", address: "ipv6_addr" },
];

struct Family {
    suffix: &'static str,
    /// As nft names it in expressions.
    protocol: &'static str,
    address: &'static str,
}

impl Family {
    fn of(ip: IpAddr) -> &'static Family {
        if ip.is_ipv4() { &FAMILIES[0] } else { &FAMILIES[1] }
    }
}

/// The table's name for a bridge.
pub(crate) fn table(bridge: &str) -> String {
    format!("orlop-{bridge}")
}

/// What the rules depend on besides the pods.
pub(crate) struct Node<'a> {
    pub(crate) bridge: &'a str,
    pub(crate) pod_cidrs: &'a [IpNet],
    pub(crate) masquerade: bool,
}

/// The whole table, in place of what was there.
pub(crate) fn whole(node: &Node<'_>, pods: &[(&PodIps, &[PortMapping])]) -> Batch {
    let mut batch = Batch::new(&table(node.bridge));
    batch.add_table().delete_table().add_table();
    for family in &FAMILIES {
        let (suffix, address) = (family.suffix, family.address);
        for (map, value) in [("address", address), ("port", "inet_service")] {
            batch.add_map(&format!("any-{map}{suffix}"), &["inet_proto", "inet_service"], value);
            batch.add_map(&format!("one-{map}{suffix}"), &[address, "inet_proto", "inet_service"], value);
        }
        batch.add_set(&format!("self{suffix}"), &[address, address], &[]);
    }
    let hook = |kind, hook, priority| Some(Hook { kind, hook, priority });
    batch.add_chain("guard", hook("filter", "prerouting", -300));
    batch.add_chain("hostports", None);
    batch.add_chain("prerouting", hook("nat", "prerouting", -100));
    batch.add_chain("output", hook("nat", "output", -100));
    batch.add_chain("postrouting", hook("nat", "postrouting", 100));
    guard(&mut batch);
    hostports(&mut batch);
    postrouting(&mut batch, node);
    for (ips, ports) in pods {
        change(&mut batch, ips, ports, Change::Add);
    }
    batch
}

fn guard(batch: &mut Batch) {
    let loopback: IpNet = "127.0.0.0/8".parse().expect("the literal is a network");
    for field in ["daddr", "saddr"] {
        batch.add_rule(
            "guard",
            "loopback addresses only from loopback",
            vec![
                nft::differ(nft::meta("iifname"), json!("lo")),
                nft::equal(nft::payload("ip", field), nft::net(loopback)),
                nft::drop(),
            ],
        );
    }
}

fn hostports(batch: &mut Batch) {
    let to_node = nft::equal(json!({ "fib": { "result": "type", "flags": ["daddr"] } }), json!("local"));
    batch.add_rule("prerouting", "", vec![to_node.clone(), nft::jump("hostports")]);
    // The kernel cannot forward from ::1; a refused connection is better than one that hangs.
    let v6_loopback = nft::differ(nft::payload("ip6", "daddr"), json!("::1"));
    let (v4, v6) =
        (nft::equal(nft::meta("nfproto"), json!("ipv4")), nft::equal(nft::meta("nfproto"), json!("ipv6")));
    batch.add_rule("output", "", vec![v4, to_node.clone(), nft::jump("hostports")]);
    batch.add_rule("output", "", vec![v6, v6_loopback, to_node, nft::jump("hostports")]);
    for family in &FAMILIES {
        let port = || [nft::meta("l4proto"), nft::payload("th", "dport")];
        let any = || nft::concat(port().to_vec());
        let one = || {
            let [protocol, number] = port();
            nft::concat(vec![nft::payload(family.protocol, "daddr"), protocol, number])
        };
        for (scope, key) in [("one", &one as &dyn Fn() -> Expr), ("any", &any)] {
            let address = nft::lookup(key(), &format!("{scope}-address{}", family.suffix));
            let number = nft::lookup(key(), &format!("{scope}-port{}", family.suffix));
            batch.add_rule("hostports", "", vec![nft::dnat(family.protocol, address, Some(number))]);
        }
    }
}

fn postrouting(batch: &mut Batch, node: &Node<'_>) {
    for family in &FAMILIES {
        let field = |name| nft::payload(family.protocol, name);
        batch.add_rule(
            "postrouting",
            "a pod reaches itself by its host port",
            vec![
                nft::equal(
                    nft::concat(vec![field("saddr"), field("daddr")]),
                    nft::set(&format!("self{}", family.suffix)),
                ),
                nft::masquerade(),
            ],
        );
    }
    let loopback: IpNet = "127.0.0.0/8".parse().expect("the literal is a network");
    batch.add_rule(
        "postrouting",
        "a process reaches a pod by 127.0.0.1",
        vec![
            nft::equal(nft::payload("ip", "saddr"), nft::net(loopback)),
            nft::equal(nft::meta("oifname"), json!(node.bridge)),
            nft::masquerade(),
        ],
    );
    for cidr in node.pod_cidrs.iter().filter(|_| node.masquerade) {
        let field = |name| nft::payload(Family::of(cidr.addr()).protocol, name);
        batch.add_rule(
            "postrouting",
            "a pod reaches the world",
            vec![
                nft::equal(field("saddr"), nft::net(*cidr)),
                nft::differ(field("daddr"), nft::net(*cidr)),
                nft::differ(nft::meta("oifname"), json!(node.bridge)),
                nft::masquerade(),
            ],
        );
    }
}

/// Opens the host ports of a pod.
pub(crate) fn open(bridge: &str, ips: &PodIps, ports: &[PortMapping]) -> Batch {
    let mut batch = Batch::new(&table(bridge));
    change(&mut batch, ips, ports, Change::Add);
    batch
}

/// Closes the host ports of a pod, whether they are open or not.
pub(crate) fn close(bridge: &str, ips: &PodIps, ports: &[PortMapping]) -> Batch {
    let mut batch = Batch::new(&table(bridge));
    // Deleting what is not there would fail; adding it first makes sure that it is.
    change(&mut batch, ips, ports, Change::Add);
    change(&mut batch, ips, ports, Change::Delete);
    batch
}

/// Removes the table, whether it is there or not.
pub(crate) fn remove(bridge: &str) -> Batch {
    let mut batch = Batch::new(&table(bridge));
    batch.add_table().delete_table();
    batch
}

#[derive(Clone, Copy, PartialEq)]
enum Change {
    Add,
    Delete,
}

fn change(batch: &mut Batch, ips: &PodIps, ports: &[PortMapping], change: Change) {
    if ports.is_empty() {
        return;
    }
    for family in &FAMILIES {
        let Some(ip) = ips.iter().find(|ip| std::ptr::eq(Family::of(*ip), family)) else { continue };
        let mut element = |set: String, key: Expr, value: Option<Expr>| match change {
            Change::Add => {
                let element = value.map_or(key.clone(), |value| nft::pair(key, value));
                batch.add_elements(&set, vec![element]);
            }
            Change::Delete => {
                batch.delete_elements(&set, vec![key]);
            }
        };
        for port in ports {
            let mut key = vec![json!(port.protocol.as_str()), json!(port.host_port)];
            let scope = match port.host_ip {
                Some(host) if !std::ptr::eq(Family::of(host), family) => continue,
                Some(host) if !host.is_unspecified() => {
                    key.insert(0, nft::ip(host));
                    "one"
                }
                _ => "any",
            };
            let key = nft::concat(key);
            element(format!("{scope}-address{}", family.suffix), key.clone(), Some(nft::ip(ip)));
            element(format!("{scope}-port{}", family.suffix), key, Some(json!(port.container_port)));
        }
        element(format!("self{}", family.suffix), nft::concat(vec![nft::ip(ip), nft::ip(ip)]), None);
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::model::Protocol;

    fn lines(batch: &Batch) -> String {
        let json = batch.to_json();
        let commands = json["nftables"].as_array().unwrap();
        commands.iter().map(|command| format!("{command}\n")).collect()
    }

    #[test]
    fn a_pods_ports_are_elements() {
        let ips = PodIps(vec!["10.42.0.7".parse().unwrap(), "fd42::7".parse().unwrap()]);
        let port = |host_ip: Option<&str>, host_port, protocol| PortMapping {
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            host_port,
            container_port: 80,
            protocol,
        };
        let ports = [port(None, 8080, Protocol::Tcp), port(Some("127.0.0.1"), 53, Protocol::Udp)];
        expect![[r#"
            {"add":{"element":{"elem":[[{"concat":["tcp",8080]},"10.42.0.7"]],"family":"inet","name":"any-address4","table":"orlop-br"}}}
            {"add":{"element":{"elem":[[{"concat":["tcp",8080]},80]],"family":"inet","name":"any-port4","table":"orlop-br"}}}
            {"add":{"element":{"elem":[[{"concat":["127.0.0.1","udp",53]},"10.42.0.7"]],"family":"inet","name":"one-address4","table":"orlop-br"}}}
            {"add":{"element":{"elem":[[{"concat":["127.0.0.1","udp",53]},80]],"family":"inet","name":"one-port4","table":"orlop-br"}}}
            {"add":{"element":{"elem":[{"concat":["10.42.0.7","10.42.0.7"]}],"family":"inet","name":"self4","table":"orlop-br"}}}
            {"add":{"element":{"elem":[[{"concat":["tcp",8080]},"fd42::7"]],"family":"inet","name":"any-address6","table":"orlop-br"}}}
            {"add":{"element":{"elem":[[{"concat":["tcp",8080]},80]],"family":"inet","name":"any-port6","table":"orlop-br"}}}
            {"add":{"element":{"elem":[{"concat":["fd42::7","fd42::7"]}],"family":"inet","name":"self6","table":"orlop-br"}}}
        "#]]
        .assert_eq(&lines(&open("br", &ips, &ports)));
        assert!(open("br", &ips, &[]).is_empty());
    }
}
