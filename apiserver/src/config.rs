//! What the server is told, and why it may not start.
//!
//! Guarantees: a `Config` is plain data; nothing is read from files or the environment.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

/// A server's configuration. Certificates and keys are PEM texts.
#[derive(Clone)]
pub struct Config {
    /// Where to listen. Port 0 takes a free one; see [`crate::Server::local_addr`].
    pub listen: SocketAddr,
    /// The serving certificate (a chain is fine).
    pub cert_pem: String,
    /// The serving certificate's key.
    pub key_pem: String,
    /// The cluster's authority: client certificates and kubelets' serving certificates must be signed by it, and pods
    /// get it as the config map `kube-root-ca.crt`.
    pub ca_pem: String,
    /// The private key that signs service-account tokens (ES256, PKCS #8).
    pub service_account_key_pem: String,
    /// Its public half, which checks them.
    pub service_account_public_pem: String,
    /// `iss` of service-account tokens, and their audience when none is asked for.
    pub issuer: String,
    /// The client certificate with which kubelets are called.
    pub kubelet_client_cert_pem: String,
    /// That certificate's key.
    pub kubelet_client_key_pem: String,
    /// Where Services get their addresses from. The first one is the service `kubernetes`.
    pub service_cidr: IpNet,
    /// The address under which nodes and pods reach this server.
    pub advertise: SocketAddr,
}

impl Config {
    /// The issuer that Kubernetes clusters use by default.
    pub const DEFAULT_ISSUER: &'static str = "https://kubernetes.default.svc.cluster.local";

    /// The address of the service `kubernetes`: the first one of the service network.
    pub fn kubernetes_service_ip(&self) -> IpAddr {
        kubernetes_service_ip(&self.service_cidr)
    }
}

/// The address of the service `kubernetes` in a service network. The serving certificate must carry it.
pub fn kubernetes_service_ip(cidr: &IpNet) -> IpAddr {
    cidr.hosts().next().unwrap_or(cidr.addr())
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("listen on {address} for the API; choose another port, or stop who uses it")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the kernel says.
        source: std::io::Error,
    },
    /// A certificate or key is not usable.
    #[error("use {what}")]
    Tls {
        /// Which one.
        what: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store could not be read.
    #[error("read all objects from the store")]
    Load {
        /// Why.
        source: store::StoreError,
    },
    /// The objects that every cluster has could not be made.
    #[error("make the objects that every cluster has")]
    Bootstrap {
        /// Why.
        source: api::status::Failure,
    },
}
