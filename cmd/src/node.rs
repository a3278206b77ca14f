//! The parts of a node that every role shares: runtime, images, network, and the CRI over them.

use std::sync::Arc;

use anyhow::Context;
use cri_api::Cri;
use cri_server::CriServer;
use image::Store;
use network::PodNetwork;
use runtime::Runtime;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::admin;
use crate::config::NodeConfig;
use crate::memory;

/// A node's lower half, ready to serve.
pub struct Node {
    /// The CRI, in process.
    pub cri: Arc<dyn Cri>,
    network: PodNetwork,
    images: Store,
    listener: tokio::net::UnixListener,
    admin: tokio::net::UnixListener,
    events: broadcast::Receiver<runtime::Event>,
}

/// The runtime's settings for this node.
pub fn runtime_options(config: &NodeConfig) -> runtime::Options {
    runtime::Options {
        data: config.paths.data.clone(),
        run: config.paths.run.clone(),
        cgroup_parent: config.cgroup_parent(),
        cgroup_driver: config.cgroup_driver,
        seccomp_profiles: config.paths.etc.join("seccomp"),
        handlers: config.handlers.clone(),
    }
}

/// The network's settings for this node.
pub fn network_config(config: &NodeConfig) -> network::Config {
    network::Config {
        bridge: config.bridge.clone(),
        pod_cidrs: config.pod_cidrs.clone(),
        masquerade: config.masquerade,
        mtu: config.mtu,
        cni_conf_dir: Some(config.cni_conf_dir.clone()),
        cni_bin_dirs: config.cni_bin_dirs.clone(),
        ..network::Config::new(config.paths.run.join("network"))
    }
}

/// The registries' settings for this node.
pub fn registry_config(config: &NodeConfig) -> image::RegistryConfig {
    image::RegistryConfig {
        hosts: Some(config.registry_config_dir.clone()),
        proxy: image::Proxy::from_env(),
        ..Default::default()
    }
}

/// Opens the image store of this node.
///
/// # Errors
/// See [`Store::open_with`].
pub fn open_images(config: &NodeConfig) -> Result<Store, image::OpenError> {
    Store::open_with(config.paths.data.join("images"), registry_config(config), config.images.store.clone())
}

impl Node {
    /// Opens everything and takes the sockets; containers that survived the last daemon are adopted.
    ///
    /// # Errors
    /// The first thing that can't be had, with what to do.
    pub async fn open(config: &NodeConfig) -> anyhow::Result<Node> {
        // The runtime's lock comes first: it tells of a second daemon on the same root.
        let runtime = Runtime::open(runtime_options(config)).await?;
        let images = open_images(config)?;
        let network = PodNetwork::open(network_config(config)).await?;
        for warning in network.status().await.warnings {
            warn!("{warning}");
        }
        let mut server = cri_server::Config::new(config.paths.run.join("cri"), config.paths.data.clone());
        server.streaming_tls = config.streaming_tls.clone();
        server.default_rlimits = config.resources.default_rlimits.clone();
        if let Some(directories) = &config.cdi_spec_dirs {
            server.cdi_directories = directories.clone();
        }
        let events = runtime.subscribe();
        let cri = CriServer::new(runtime, images.clone(), network.clone(), server).await?;
        let listener = listen(&config.cri_socket)?;
        let admin = listen(&config.paths.admin_socket())?;
        Ok(Node { cri: Arc::new(cri), network, images, listener, admin, events })
    }

    /// Serves the CRI and the admin socket until `shutdown`. Containers go on.
    ///
    /// # Errors
    /// A socket that fails.
    pub async fn serve(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        info!(socket = ?self.listener.local_addr().ok().and_then(|a| a.as_pathname().map(|p| p.to_owned())), "serve the CRI");
        let tidy = memory::tidy(self.events, sys::memory::give_back);
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(tidy));
        let cri = cri_api::serve(self.cri, self.listener, shutdown.clone().cancelled_owned());
        let admin = admin::serve(self.admin, self.images, shutdown);
        let (cri, ()) = tokio::join!(cri, admin);
        self.network.close().await.context("finish the network's deletions")?;
        cri.context("serve the CRI")
    }
}

/// Takes a unix socket that only root may use. One that a dead daemon left is replaced; one that
/// somebody still serves is not.
fn listen(path: &std::path::Path) -> anyhow::Result<tokio::net::UnixListener> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    let say = || format!("listen on {}", path.display());
    let dir = path.parent().context("the socket's path has no directory").with_context(say)?;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(say)?;
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        anyhow::bail!(
            "{} is served by another process: stop it, or choose another socket (--cri-socket)",
            path.display()
        );
    }
    match std::fs::remove_file(path) {
        Err(err) if err.kind() != std::io::ErrorKind::NotFound => return Err(err).with_context(say),
        _ => {}
    }
    let listener = tokio::net::UnixListener::bind(path).with_context(say)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).with_context(say)?;
    Ok(listener)
}
