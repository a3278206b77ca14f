//! From a kubeconfig to a connection.

use std::path::{Path, PathBuf};

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// What can go wrong before the first request.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ConnectError {
    #[error("read kubeconfig {path}")]
    Read { path: PathBuf, source: kube::config::KubeconfigError },
    #[error("understand the kubeconfig")]
    Parse { source: kube::config::KubeconfigError },
    #[error("set up the connection to {server}")]
    Client { server: String, source: kube::Error },
}

/// A client of the cluster that the kubeconfig file's current context names.
///
/// Nothing is sent yet; a cluster that is down is found by the first request.
///
/// # Errors
/// The file can't be read, or what it says makes no connection.
pub async fn connect(kubeconfig: &Path) -> Result<Client, ConnectError> {
    let read = |source| ConnectError::Read { path: kubeconfig.to_owned(), source };
    client(Kubeconfig::read_from(kubeconfig).map_err(read)?).await
}

/// The same from a kubeconfig's text.
///
/// # Errors
/// As for [`connect`].
pub async fn connect_yaml(kubeconfig: &str) -> Result<Client, ConnectError> {
    client(Kubeconfig::from_yaml(kubeconfig).map_err(|source| ConnectError::Parse { source })?).await
}

async fn client(kubeconfig: Kubeconfig) -> Result<Client, ConnectError> {
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|source| ConnectError::Parse { source })?;
    // A watch is silent between bookmarks; the server ends it, not we.
    config.read_timeout = None;
    // A node's apiserver is never behind the proxy that images may need.
    config.proxy_url = None;
    let server = config.cluster_url.to_string();
    Client::try_from(config).map_err(|source| ConnectError::Client { server, source })
}
