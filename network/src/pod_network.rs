//! The node's pod network as a whole.

use std::net::IpAddr;
use std::path::Path;

use crate::error::{AddError, OpenError, StatsError, TeardownErrors};
use crate::model::{Config, InterfaceStats, NetworkStatus, PodInfo, PodIps, PortMapping};

/// The node's pod network. Cheap to clone.
#[derive(Clone)]
pub struct PodNetwork {}

impl PodNetwork {
    /// Reads the leases and makes the bridge in the network namespace of the calling thread.
    ///
    /// # Errors
    /// See [`OpenError`]. A missing `nft` is no error here: see [`PodNetwork::status`].
    pub async fn open(config: Config) -> Result<PodNetwork, OpenError> {
        Err(OpenError::Config(format!("{} cannot be opened by this build", config.bridge)))
    }

    /// Connects the sandbox whose namespace is pinned at `netns`: loopback up, `eth0`, addresses, routes,
    /// host ports. Repeating it for a connected sandbox changes nothing and returns its addresses.
    ///
    /// # Errors
    /// See [`AddError`]; whatever had been made is taken down again.
    pub async fn add(
        &self,
        id: &str,
        _netns: &Path,
        _ports: &[PortMapping],
        _pod: &PodInfo,
    ) -> Result<PodIps, AddError> {
        Err(AddError::BadId(id.to_owned()))
    }

    /// Disconnects the sandbox: host ports are closed on return; the interface and then the address
    /// are freed a little later. An unknown id is success. `netns` is for CNI plugins.
    ///
    /// # Errors
    /// The steps that failed; call again to retry them.
    pub async fn remove(&self, _id: &str, _netns: Option<&Path>) -> Result<(), TeardownErrors> {
        Ok(())
    }

    /// Takes down everything that belongs to no id of `live`, and waits until it is gone. For the start
    /// of the daemon, and now and then.
    ///
    /// # Errors
    /// The steps that failed.
    pub async fn reconcile(&self, _live: &[String]) -> Result<(), TeardownErrors> {
        Ok(())
    }

    /// The addresses of a connected sandbox.
    pub fn ips(&self, _id: &str) -> Option<PodIps> {
        None
    }

    /// The pods' gateways: the bridge's addresses. Empty with CNI.
    pub fn gateways(&self) -> Vec<IpAddr> {
        Vec::new()
    }

    /// Whether pods can be connected.
    pub async fn status(&self) -> NetworkStatus {
        NetworkStatus {
            mode: crate::Mode::Bridge,
            ready: Err("not open".to_owned()),
            warnings: Vec::new(),
            addresses: Vec::new(),
            deleting: 0,
        }
    }

    /// The counters of every interface in the pod's namespace but loopback.
    ///
    /// # Errors
    /// See [`StatsError`].
    pub async fn stats(&self, _netns: &Path) -> Result<Vec<InterfaceStats>, StatsError> {
        Ok(Vec::new())
    }

    /// Waits until what `remove` left to the kernel is done. Pods stay connected. For the daemon's end.
    ///
    /// # Errors
    /// The interfaces that are still there.
    pub async fn close(&self) -> Result<(), TeardownErrors> {
        Ok(())
    }

    /// Disconnects every pod and removes bridge, rules and leases: for `orlop reset` and tests.
    ///
    /// # Errors
    /// The steps that failed.
    pub async fn destroy(&self) -> Result<(), TeardownErrors> {
        Ok(())
    }
}
