//! Who has which port of the node.
//!
//! Guarantees: two pods never hold ports that overlap; pure but for [`probe_free`].

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};

use crate::error::AddError;
use crate::model::{PodIps, PortMapping, Protocol};

/// The ports in use: by protocol and number, the mappings and their owners.
#[derive(Debug, Default)]
pub(crate) struct Ports {
    taken: HashMap<(Protocol, u16), Vec<(PortMapping, String)>>,
}

impl Ports {
    /// Gives the ports to the sandbox: all or none.
    pub(crate) fn take(&mut self, id: &str, ports: &[PortMapping]) -> Result<(), AddError> {
        for port in ports {
            let others = self.taken.get(&key(port)).into_iter().flatten();
            for (taken, owner) in others {
                if owner != id && overlap(taken.host_ip, port.host_ip) {
                    return Err(AddError::PortConflict { port: port.clone(), owner: owner.clone() });
                }
            }
        }
        self.free(id);
        for port in ports {
            self.taken.entry(key(port)).or_default().push((port.clone(), id.to_owned()));
        }
        Ok(())
    }

    /// Frees all ports of the sandbox.
    pub(crate) fn free(&mut self, id: &str) {
        self.taken.retain(|_, list| {
            list.retain(|(_, owner)| owner != id);
            !list.is_empty()
        });
    }
}

/// The ports as they are kept: without repetitions. `Err` for those that cannot be.
pub(crate) fn check(ports: &[PortMapping], ips: &PodIps) -> Result<Vec<PortMapping>, AddError> {
    let mut kept: Vec<PortMapping> = Vec::with_capacity(ports.len());
    for port in ports {
        let bad = |why| Err(AddError::BadPort { port: port.clone(), why });
        if port.host_port == 0 || port.container_port == 0 {
            return bad("port 0 is not a port");
        }
        let family = |ip: IpAddr| ips.iter().any(|pod| pod.is_ipv4() == ip.is_ipv4());
        match port.host_ip {
            Some(ip) if !family(ip) => {
                return bad("the pod has no address of that family; configure a pod CIDR of it");
            }
            Some(IpAddr::V6(ip)) if ip.is_loopback() => {
                return bad("the kernel cannot forward from ::1; use 127.0.0.1 or no host address");
            }
            _ => {}
        }
        if kept.contains(port) {
            continue;
        }
        if kept.iter().any(|other| key(other) == key(port) && overlap(other.host_ip, port.host_ip)) {
            return bad("the pod asks for it twice");
        }
        kept.push(port.clone());
    }
    Ok(kept)
}

fn key(port: &PortMapping) -> (Protocol, u16) {
    (port.protocol, port.host_port)
}

/// Whether a packet could be meant for both.
fn overlap(a: Option<IpAddr>, b: Option<IpAddr>) -> bool {
    match (a, b) {
        (None, _) | (_, None) => true,
        (Some(a), Some(b)) => {
            a.is_ipv4() == b.is_ipv4() && (a == b || a.is_unspecified() || b.is_unspecified())
        }
    }
}

/// Tries whether a process of the node listens on the port, in the namespace of the calling thread: it would
/// silently lose its connections to the pod. SCTP is not tried: few kernels have it.
pub(crate) fn probe_free(port: &PortMapping) -> Result<(), AddError> {
    let kind = match port.protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
        Protocol::Sctp => return Ok(()),
    };
    let everywhere: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let ips = port.host_ip.map_or(everywhere.to_vec(), |ip| vec![ip]);
    for ip in ips {
        match bind(kind, SocketAddr::new(ip, port.host_port)) {
            // An address that the node does not have (yet), or no IPv6: nobody listens there.
            Err(err) if err.kind() == io::ErrorKind::AddrInUse => {
                return Err(AddError::PortInUse { port: port.clone(), source: err });
            }
            _ => {}
        }
    }
    Ok(())
}

fn bind(kind: SocketType, address: SocketAddr) -> io::Result<()> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    if kind == SocketType::STREAM {
        // Connections that are closing do not matter, only listeners do.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    Ok(net::bind(&socket, &address)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(text: &str) -> PortMapping {
        let (host, rest) = text.split_once('@').map_or((None, text), |(rest, host)| (Some(host), rest));
        PortMapping {
            host_ip: host.map(|host| host.parse().unwrap()),
            host_port: rest.parse().unwrap(),
            container_port: 80,
            protocol: Protocol::Tcp,
        }
    }

    fn take(ports: &mut Ports, id: &str, wanted: &[&str]) -> String {
        let wanted: Vec<PortMapping> = wanted.iter().map(|text| port(text)).collect();
        ports.take(id, &wanted).map_or_else(|err| err.to_string(), |()| "ok".to_owned())
    }

    #[test]
    fn overlapping_ports_are_refused_and_named() {
        let mut ports = Ports::default();
        assert_eq!(take(&mut ports, "a", &["80", "443@10.0.0.1"]), "ok");
        assert_eq!(take(&mut ports, "a", &["80", "443@10.0.0.1"]), "ok");
        let conflict = "host port 80/tcp is already used by sandbox a";
        assert_eq!(take(&mut ports, "b", &["8080", "80"]), conflict);
        // The failed attempt took nothing.
        assert_eq!(take(&mut ports, "c", &["8080"]), "ok");
        assert_eq!(take(&mut ports, "d", &["443@10.0.0.2", "443@::"]), "ok");
        assert_eq!(
            take(&mut ports, "e", &["443@0.0.0.0"]).split(" is ").next(),
            Some("host port 0.0.0.0:443/tcp")
        );
        assert_eq!(
            take(&mut ports, "e", &["443@::1"]),
            "host port [::1]:443/tcp is already used by sandbox d"
        );
        ports.free("a");
        assert_eq!(take(&mut ports, "b", &["80"]), "ok");
    }

    #[test]
    fn impossible_ports_are_refused() {
        let ips = PodIps(vec!["10.42.0.2".parse().unwrap()]);
        let message = |texts: &[&str]| {
            let ports: Vec<PortMapping> = texts.iter().map(|text| port(text)).collect();
            check(&ports, &ips).map_or_else(|err| err.to_string(), |kept| kept.len().to_string())
        };
        assert_eq!(message(&["80", "80", "81"]), "2");
        assert_eq!(message(&["0"]), "host port 0/tcp: port 0 is not a port");
        assert_eq!(message(&["80", "80@10.0.0.1"]), "host port 10.0.0.1:80/tcp: the pod asks for it twice");
        assert!(message(&["80@fd00::1"]).contains("no address of that family"));
    }
}
