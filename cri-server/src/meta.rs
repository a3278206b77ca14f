//! What we keep of sandboxes and containers in the runtime's records.
//!
//! Guarantees: what an older version wrote is read; unknown fields are ignored.

use std::net::IpAddr;

use cri_api::v1::{ContainerConfig, PodSandboxConfig};
use serde::{Deserialize, Serialize};

/// A sandbox as it was asked for, and its network.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SandboxMeta {
    /// As the kubelet gave it.
    pub config: PodSandboxConfig,
    /// The runtime handler that was asked for.
    pub handler: String,
    /// Its addresses, the primary one first. Empty with the node's network.
    pub ips: Vec<IpAddr>,
    /// Whether its network stands; `false` while it is made and after it was stopped.
    pub connected: bool,
    /// Whether RunPodSandbox is at work on it: a daemon that finds this in a record takes it away.
    pub making: bool,
}

/// A container as it was asked for, and its image.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerMeta {
    /// As the kubelet gave it; `resources` as they are now.
    pub config: ContainerConfig,
    /// The image's name as people know it.
    pub image_name: String,
    /// The image's id.
    pub image_id: String,
    /// The image with its digest; the id for images that have none.
    pub image_ref: String,
    /// Absolute path of the log; empty without one.
    pub log_path: String,
}

/// The name under which a sandbox is reserved.
pub fn sandbox_name(config: &PodSandboxConfig) -> String {
    let m = config.metadata.clone().unwrap_or_default();
    // No part may hold a slash in Kubernetes, so that names cannot be mixed up.
    format!("{}/{}/{}/{}", m.namespace, m.name, m.uid, m.attempt)
}

/// The name under which a container is reserved.
pub fn container_name(sandbox: &str, config: &ContainerConfig) -> String {
    let m = config.metadata.clone().unwrap_or_default();
    format!("{sandbox}/{}/{}", m.name, m.attempt)
}
