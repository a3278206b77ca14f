//! The pod network of one node.
//!
//! [`PodNetwork`] connects sandboxes: a bridge, a veth pair per pod, addresses, routes, masquerading
//! and host ports, made over netlink without executing anything for a pod that has no host ports.
//! Where the node has a CNI configuration, the plugins in it run instead.
//!
//! Guarantees: an address is never given to two live sandboxes, also across restarts of the daemon;
//! [`PodNetwork::add`] and [`PodNetwork::remove`] may be repeated.
//! Assumes: one `PodNetwork` per `state_dir` at a time, and network namespaces that exist until `remove`.
//! Caveat: the namespace that is current when [`PodNetwork::open`] is called is the node's side for good.

#![forbid(unsafe_code)]

mod pod_network;
pub use pod_network::PodNetwork;

mod model;
pub use model::{
    Config, InterfaceStats, InvalidPort, Mode, NetworkStatus, PodInfo, PodIps, PortMapping, Protocol,
};

mod error;
pub use error::{AddError, OpenError, StatsError, TeardownError, TeardownErrors};

pub mod files;
pub mod nft;

mod state;

mod lease;

mod hostport;

mod wire;

mod reaper;

mod table;

mod rules;

mod conntrack;

mod cni;
pub use cni::CniError;

mod link;

mod netlink;

mod netns;

mod locks;

mod work;
