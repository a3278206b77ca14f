//! The words of this crate: what is configured, what a pod asks for, what it gets.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::files::DnsConfig;

/// How the node's pod network is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The bridge's name (1-15 bytes); the nftables table's name derives from it.
    pub bridge: String,
    /// The node's own pod ranges, at most one per family; the first is the primary one. The first
    /// usable address of each is the bridge's, and the pods' gateway.
    pub pod_cidrs: Vec<IpNet>,
    /// Where leases are kept; below the run directory, so that it is empty after a reboot.
    pub state_dir: PathBuf,
    /// Whether traffic from pods to addresses outside `pod_cidrs` leaves with the node's address.
    pub masquerade: bool,
    /// The pods' MTU; `None` takes that of the interface with the default route, else 1500.
    pub mtu: Option<u32>,
    /// Where a CNI configuration may be found; `None` never runs plugins.
    pub cni_conf_dir: Option<PathBuf>,
    /// Where CNI plugins are looked for, in this order.
    pub cni_bin_dirs: Vec<PathBuf>,
}

impl Config {
    /// The defaults with the given leases directory: bridge `orlop0`, pods in 10.42.0.0/24, masqueraded.
    pub fn new(state_dir: impl Into<PathBuf>) -> Config {
        Config {
            bridge: "orlop0".to_owned(),
            pod_cidrs: vec!["10.42.0.0/24".parse().expect("the literal is a network")],
            state_dir: state_dir.into(),
            masquerade: true,
            mtu: None,
            cni_conf_dir: None,
            cni_bin_dirs: vec![PathBuf::from("/opt/cni/bin")],
        }
    }
}

/// The transport protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The name in lower case, as nftables and CNI spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Protocol {
    type Err = InvalidPort;

    /// Accepts any case; an empty string is TCP, as in Kubernetes.
    fn from_str(text: &str) -> Result<Protocol, InvalidPort> {
        match text.to_ascii_lowercase().as_str() {
            "" | "tcp" => Ok(Protocol::Tcp),
            "udp" => Ok(Protocol::Udp),
            "sctp" => Ok(Protocol::Sctp),
            _ => Err(InvalidPort(text.to_owned())),
        }
    }
}

/// A protocol that is none of TCP, UDP and SCTP.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown protocol {0:?}; use TCP, UDP or SCTP")]
pub struct InvalidPort(pub String);

/// A port of the node that leads to a port of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortMapping {
    /// The node's address; `None` is every address, `0.0.0.0` or `::` every address of that family.
    pub host_ip: Option<IpAddr>,
    /// The node's port, not 0 (CRI sends 0 for "no host port": leave such a mapping out).
    pub host_port: u16,
    /// The pod's port, not 0.
    pub container_port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:")?,
            Some(ip) => write!(f, "{ip}:")?,
            None => {}
        }
        write!(f, "{}/{}", self.host_port, self.protocol)
    }
}

/// What is known about the pod besides its namespace: goes to CNI plugins and into messages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodInfo {
    /// The pod's Kubernetes namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's UID.
    pub uid: String,
    /// The pod's DNS settings, for plugins with the `dns` capability.
    #[serde(default)]
    pub dns: DnsConfig,
}

/// A pod's addresses, the primary one first; empty only with a CNI plugin that gives none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodIps(pub Vec<IpAddr>);

impl PodIps {
    /// The primary address.
    pub fn primary(&self) -> Option<IpAddr> {
        self.0.first().copied()
    }

    /// The others.
    pub fn additional(&self) -> &[IpAddr] {
        self.0.get(1..).unwrap_or_default()
    }

    /// All of them, the primary one first.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.0.iter().copied()
    }
}

/// Who makes the pods' interfaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// This crate, on its own bridge.
    Bridge,
    /// The plugins of the CNI network list with this name, read from this file.
    Cni {
        /// The list's name.
        name: String,
        /// The file that it stands in.
        file: PathBuf,
    },
}

/// Whether pods can be connected, and what is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkStatus {
    /// Who makes the pods' interfaces.
    pub mode: Mode,
    /// `Err` says why no pod can be connected now, and what to do.
    pub ready: Result<(), String>,
    /// What does not work although pods can be connected (no `nft`: no host ports, for example).
    pub warnings: Vec<String>,
    /// The addresses of each of `pod_cidrs`: (given out, all that can be).
    pub addresses: Vec<(u128, u128)>,
    /// Interfaces of removed pods that the kernel is still deleting.
    pub deleting: usize,
}

/// What went through one interface, as the pod sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the kernel's own")]
pub struct InterfaceStats {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}
