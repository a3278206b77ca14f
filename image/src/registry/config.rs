//! Settings of the registry client.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::proxy::Proxy;

/// How registries are reached.
#[derive(Debug, Clone)]
pub struct RegistryConfig {
    /// Directory with `<registry>/hosts.toml` and `_default/hosts.toml`, as containerd has it. Read anew
    /// for each pull; it need not exist.
    pub hosts: Option<PathBuf>,
    /// What we call ourselves.
    pub user_agent: String,
    /// The proxy for HTTPS, if there is one: see [`Proxy::from_env`].
    pub proxy: Option<Proxy>,
    /// How long a registry may send nothing.
    pub timeout: Duration,
}

impl Default for RegistryConfig {
    fn default() -> RegistryConfig {
        RegistryConfig {
            hosts: None,
            user_agent: concat!("orlop/", env!("CARGO_PKG_VERSION")).to_owned(),
            proxy: None,
            timeout: Duration::from_secs(30),
        }
    }
}

/// Why the registry client cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// TLS is unusable.
    #[error("set up TLS")]
    Tls(#[source] io::Error),
}
