//! A container runtime that serves the CRI: Orlop's, or containerd with runc, each below a directory of its own.
//!
//! Assumes: a network namespace of the run's own; `/run/containerd` and `/var/lib/cni` are private (the
//! script sees to both), because containerd's shims and the CNI plugins know no other place.
//! Caveat: containerd is configured as its documentation does (overlayfs, bridge plugin with
//! masquerading and port mapping); nothing is tuned for it or against it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use cri_api::v1::StatusRequest;
use cri_api::{Cri, GrpcClient};

use crate::process::{Daemon, find, run};
use crate::report::Who;

const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);
/// Where Debian keeps the CNI plugins, and where everybody else does.
const CNI_DIRS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// A running runtime.
#[derive(Debug)]
pub struct Engine {
    /// Whose values it gives.
    pub who: Who,
    /// Its CRI client.
    pub cri: GrpcClient,
    /// The directory that the command lines of all its processes name.
    pub dir: PathBuf,
    /// The process that serves.
    pub daemon: Daemon,
}

/// Starts `orlop cri` below `dir` and gives it the images.
///
/// # Errors
/// It does not serve, or an import fails.
pub async fn orlop(binary: &Path, dir: PathBuf, images: &[PathBuf]) -> anyhow::Result<Engine> {
    std::fs::create_dir_all(dir.join("etc"))?;
    std::fs::write(dir.join("etc/config.yaml"), "")?;
    let root = text(&dir)?;
    let mut daemon = Daemon::start("orlop cri", binary, &["--root", root, "cri"], &dir.join("daemon.log"))?;
    let cri = connect(&mut daemon, &dir.join("run/cri.sock")).await?;
    for image in images {
        run(binary, &["--root", root, "image", "import", text(image)?]).await?;
    }
    Ok(Engine { who: Who::Orlop, cri, dir, daemon })
}

/// The peer's programs, if all of them are installed; else which one is not.
///
/// # Errors
/// One is missing.
pub fn peer_installed() -> Result<(), String> {
    let missing =
        ["containerd", "containerd-shim-runc-v2", "ctr", "runc"].into_iter().find(|p| find(p).is_none());
    match (missing, cni_dir()) {
        (Some(program), _) => Err(format!("{program} is not installed")),
        (None, None) => Err("containernetworking-plugins is not installed".to_owned()),
        (None, Some(_)) => Ok(()),
    }
}

fn cni_dir() -> Option<&'static str> {
    CNI_DIRS.into_iter().find(|dir| Path::new(dir).join("bridge").is_file())
}

/// Starts containerd below `dir` and gives it the images.
///
/// # Errors
/// It does not serve, or an import fails.
pub async fn containerd(dir: PathBuf, images: &[PathBuf]) -> anyhow::Result<Engine> {
    let program = |name| find(name).with_context(|| format!("{name} is not installed"));
    let cni = cni_dir().context("containernetworking-plugins is not installed")?;
    std::fs::create_dir_all(dir.join("cni"))?;
    std::fs::write(dir.join("cni/10-bench.conflist"), network(text(&dir)?))?;
    let file = dir.join("config.toml");
    std::fs::write(&file, config(text(&dir)?, cni))?;
    let log = dir.join("daemon.log");
    let mut daemon = Daemon::start("containerd", &program("containerd")?, &["--config", text(&file)?], &log)?;
    let socket = dir.join("containerd.sock");
    let cri = connect(&mut daemon, &socket).await?;
    let ctr = program("ctr")?;
    for image in images {
        let words = ["--address", text(&socket)?, "--namespace", "k8s.io", "images", "import", text(image)?];
        run(&ctr, &words).await?;
    }
    Ok(Engine { who: Who::Peer, cri, dir, daemon })
}

/// Connects, and waits until runtime and network say that they are ready.
async fn connect(daemon: &mut Daemon, socket: &Path) -> anyhow::Result<GrpcClient> {
    let look = || async {
        let cri = GrpcClient::connect(socket).await?;
        let status = cri.status(StatusRequest::default()).await?.status.context("no status")?;
        match status.conditions.iter().find(|condition| !condition.status) {
            Some(bad) => bail!("{} is false: {}", bad.r#type, bad.message),
            None => Ok(cri),
        }
    };
    daemon.until("the CRI to serve", PATIENCE, LOOK, look).await
}

/// The CRI is version 1 with runc; OOM scores are not lowered, since the run may lack the right to.
fn config(dir: &str, cni: &str) -> String {
    format!(
        r#"version = 2
root = "{dir}/data"
state = "{dir}/run"
disabled_plugins = [
  "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{dir}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni}"
    conf_dir = "{dir}/cni"
"#
    )
}

fn network(dir: &str) -> String {
    format!(
        r#"{{
  "cniVersion": "0.4.0", "name": "bench",
  "plugins": [
    {{
      "type": "bridge", "bridge": "benchcni0", "isGateway": true, "ipMasq": true, "promiscMode": true,
      "ipam": {{
        "type": "host-local", "dataDir": "{dir}/leases",
        "ranges": [[{{"subnet": "10.88.0.0/16"}}]], "routes": [{{"dst": "0.0.0.0/0"}}]
      }}
    }},
    {{"type": "portmap", "capabilities": {{"portMappings": true}}}}
  ]
}}
"#
    )
}

/// A path as text.
///
/// # Errors
/// It is not UTF-8.
pub fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
