//! What the server is told by whoever starts it.

use std::net::SocketAddr;
use std::path::PathBuf;

use runtime::spec::Rlimit;

use crate::streaming::TlsFiles;

/// Settings of a [`crate::CriServer`].
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the streaming server listens; loopback, as its URLs' tokens are its only protection. Port 0: any.
    pub streaming_address: SocketAddr,
    /// The streaming server's certificate; without one it speaks plain HTTP.
    pub streaming_tls: Option<TlsFiles>,
    /// Files made for sandboxes (resolv.conf, hosts, hostname): below the run directory.
    pub state_dir: PathBuf,
    /// The node's resolver settings, for pods that bring none.
    pub resolv_conf: PathBuf,
    /// Our own version, told by `Version`.
    pub version: String,
    /// Where the files of CDI devices are; later directories win.
    pub cdi_directories: Vec<PathBuf>,
    /// POSIX limits of every container: the CRI has no field for them.
    pub default_rlimits: Vec<Rlimit>,
    /// A directory on the file system of the containers' writable layers.
    pub layers_dir: PathBuf,
}

impl Config {
    /// The defaults with the given directories.
    pub fn new(state_dir: impl Into<PathBuf>, layers_dir: impl Into<PathBuf>) -> Config {
        Config {
            streaming_address: SocketAddr::from(([127, 0, 0, 1], 0)),
            streaming_tls: None,
            state_dir: state_dir.into(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cdi_directories: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
            default_rlimits: Vec::new(),
            layers_dir: layers_dir.into(),
        }
    }
}
