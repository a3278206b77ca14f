//! A node's settings: as written in the file, as given by flags, as believed by everything else.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use cri_server::TlsFiles;
use ipnet::IpNet;
use runtime::handler::{Handler, Handlers, NATIVE, OciRuntime};
use runtime::options::CgroupDriver;
use serde::Deserialize;

use crate::flags::{Common, NodeFlags, ServerFlags};
use crate::paths::Paths;

/// The configuration file as written. Names follow KubeletConfiguration and kubeadm where they have one.
#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NodeFile {
    node_name: Option<String>,
    #[serde(rename = "nodeIPs")]
    node_ips: Vec<IpAddr>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<IpNet>,
    #[serde(rename = "serviceCIDR")]
    service_cidr: Option<IpNet>,
    bridge: Option<String>,
    mtu: Option<u32>,
    masquerade: Option<bool>,
    cri_socket: Option<PathBuf>,
    api_address: Option<SocketAddr>,
    kubelet_address: Option<SocketAddr>,
    cni_conf_dir: Option<PathBuf>,
    cni_bin_dirs: Vec<PathBuf>,
    registry_config_dir: Option<PathBuf>,
    max_pods: Option<u32>,
    cgroup_driver: CgroupDriver,
    container_log_max_size: Option<u64>,
    container_log_max_files: Option<u32>,
    crash_loop_back_off: CrashLoopBackOff,
    runtimes: BTreeMap<String, RuntimeFile>,
    default_runtime: String,
    streaming: StreamingFile,
    cdi_spec_dirs: Option<Vec<PathBuf>>,
    #[serde(flatten)]
    images: crate::image_config::ImageFile,
    #[serde(flatten)]
    resources: crate::resource_config::ResourceFile,
}

/// One runtime handler, by the names that CRI-O and containerd have for its settings.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RuntimeFile {
    #[serde(default)]
    runtime_type: RuntimeType,
    #[serde(default)]
    runtime_path: PathBuf,
    #[serde(default)]
    runtime_root: Option<PathBuf>,
    #[serde(default)]
    runtime_args: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum RuntimeType {
    /// The node's own launcher, by another name.
    Native,
    /// An OCI runtime by its path.
    #[default]
    Oci,
    /// libcontainer by the program `orlop-libcontainer`.
    Libcontainer,
}

/// The program of the runtime type `libcontainer`.
const LIBCONTAINER: &str = "orlop-libcontainer";

/// The server of exec, attach and port-forward, by the kubelet's names for a server's files.
#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct StreamingFile {
    tls_cert_file: Option<PathBuf>,
    tls_private_key_file: Option<PathBuf>,
}

impl StreamingFile {
    fn believe(self) -> anyhow::Result<Option<TlsFiles>> {
        match (self.tls_cert_file, self.tls_private_key_file) {
            (None, None) => Ok(None),
            (Some(certificate), Some(key)) => {
                ensure!(
                    certificate.is_absolute() && key.is_absolute(),
                    "streaming: tlsCertFile and tlsPrivateKeyFile must be absolute paths"
                );
                Ok(Some(TlsFiles { certificate, key }))
            }
            _ => bail!(
                "streaming: give both tlsCertFile and tlsPrivateKeyFile, or neither for plain HTTP on loopback"
            ),
        }
    }
}

#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct CrashLoopBackOff {
    /// Seconds.
    initial_container_restart_period: Option<u64>,
    /// Seconds.
    max_container_restart_period: Option<u64>,
}

/// The settings as believed.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    pub paths: Paths,
    pub node_name: String,
    pub node_ips: Vec<IpAddr>,
    pub pod_cidrs: Vec<IpNet>,
    pub service_cidr: IpNet,
    pub bridge: String,
    pub mtu: Option<u32>,
    pub masquerade: bool,
    pub cri_socket: PathBuf,
    pub api_address: SocketAddr,
    pub kubelet_address: SocketAddr,
    pub cni_conf_dir: PathBuf,
    pub cni_bin_dirs: Vec<PathBuf>,
    pub registry_config_dir: PathBuf,
    pub max_pods: Option<u32>,
    pub cgroup_driver: CgroupDriver,
    pub container_log_max_size: Option<u64>,
    pub container_log_max_files: Option<u32>,
    pub crash_loop_initial: Option<Duration>,
    pub crash_loop_max: Option<Duration>,
    pub images: crate::image_config::ImageConfig,
    pub resources: crate::resource_config::ResourceConfig,
    pub handlers: Handlers,
    pub streaming_tls: Option<TlsFiles>,
    pub cdi_spec_dirs: Option<Vec<PathBuf>>,
}

/// The longest name that Linux gives an interface (IFNAMSIZ less the final zero).
const LONGEST_INTERFACE: usize = 15;

impl NodeConfig {
    /// Reads the file, lets the flags override it, and fills in what neither says.
    pub fn load(common: &Common, flags: &NodeFlags) -> anyhow::Result<NodeConfig> {
        let root = common.root.as_deref().map(std::path::absolute).transpose().context("find --root")?;
        let paths = Paths::new(root.as_deref());
        let file = match &common.config {
            Some(path) => read(path)?,
            None if paths.config_file().exists() => read(&paths.config_file())?,
            None => NodeFile::default(),
        };
        let host = Host { name: host_name(), addresses: host_addresses() };
        merge(paths, file, flags, host)
    }
}

impl NodeConfig {
    /// Lets the server's own flags override the file.
    pub fn with_server_flags(mut self, flags: &ServerFlags) -> NodeConfig {
        self.api_address = flags.api_address.unwrap_or(self.api_address);
        self.kubelet_address = flags.kubelet_address.unwrap_or(self.kubelet_address);
        self.service_cidr = flags.service_cidr.unwrap_or(self.service_cidr);
        self
    }

    /// Name of the node's own cgroup: `orlop`, or one of its own for each `--root`.
    pub fn cgroup_parent(&self) -> String {
        if self.paths == Paths::new(None) {
            return "orlop".to_owned();
        }
        let root = self.paths.data.parent().unwrap_or(&self.paths.data);
        let name = root.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let plain: String =
            name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(40).collect();
        let mut hasher = std::hash::DefaultHasher::new();
        std::hash::Hash::hash(root, &mut hasher);
        format!("orlop-{plain}-{:08x}", std::hash::Hasher::finish(&hasher) as u32)
    }
}

/// What the machine says of itself.
struct Host {
    name: String,
    addresses: Vec<IpAddr>,
}

fn read(path: &Path) -> anyhow::Result<NodeFile> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    if text.trim().is_empty() {
        return Ok(NodeFile::default());
    }
    serde_yaml_ng::from_str(&text).with_context(|| format!("understand {}", path.display()))
}

fn merge(paths: Paths, file: NodeFile, flags: &NodeFlags, host: Host) -> anyhow::Result<NodeConfig> {
    let pick = |flag: &[IpNet], file: Vec<IpNet>| if flag.is_empty() { file } else { flag.to_vec() };
    let mut pod_cidrs = pick(&flags.pod_cidrs, file.pod_cidrs);
    if pod_cidrs.is_empty() {
        pod_cidrs.push("10.42.0.0/24".parse()?);
    }
    check_families("podCIDRs", &pod_cidrs)?;
    let mut node_ips = if flags.node_ips.is_empty() { file.node_ips } else { flags.node_ips.clone() };
    if node_ips.is_empty() {
        node_ips = host.addresses;
    }
    let node_name = flags.node_name.clone().or(file.node_name).unwrap_or(host.name).to_lowercase();
    let valid_label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    ensure!(
        !node_name.is_empty() && node_name.len() <= 253 && node_name.chars().all(valid_label),
        "{node_name:?} can't be the node's name: use lower-case letters, digits, '-' and '.' (--node-name)"
    );
    let bridge = flags.bridge.clone().or(file.bridge).unwrap_or_else(|| "orlop0".to_owned());
    ensure!(
        (1..=LONGEST_INTERFACE).contains(&bridge.len()) && !bridge.contains(['/', ' ']),
        "{bridge:?} can't be a bridge's name: at most {LONGEST_INTERFACE} characters, no '/' and no space (--bridge)"
    );
    Ok(NodeConfig {
        node_name,
        node_ips,
        pod_cidrs,
        service_cidr: file.service_cidr.unwrap_or("10.43.0.0/16".parse()?),
        bridge,
        mtu: file.mtu,
        masquerade: file.masquerade.unwrap_or(true),
        cri_socket: flags.cri_socket.clone().or(file.cri_socket).unwrap_or_else(|| paths.cri_socket()),
        api_address: file.api_address.unwrap_or(SocketAddr::from(([0, 0, 0, 0], 6443))),
        kubelet_address: file.kubelet_address.unwrap_or(SocketAddr::from(([0, 0, 0, 0], 10250))),
        cni_conf_dir: file.cni_conf_dir.unwrap_or_else(|| paths.etc.join("cni/net.d")),
        cni_bin_dirs: if file.cni_bin_dirs.is_empty() {
            vec!["/opt/cni/bin".into()]
        } else {
            file.cni_bin_dirs
        },
        registry_config_dir: file.registry_config_dir.unwrap_or_else(|| paths.etc.join("certs.d")),
        max_pods: file.max_pods,
        cgroup_driver: file.cgroup_driver,
        container_log_max_size: file.container_log_max_size,
        container_log_max_files: file.container_log_max_files,
        crash_loop_initial: file
            .crash_loop_back_off
            .initial_container_restart_period
            .map(Duration::from_secs),
        images: file.images.believe(&paths)?,
        resources: file.resources.believe()?,
        crash_loop_max: file.crash_loop_back_off.max_container_restart_period.map(Duration::from_secs),
        handlers: handlers(file.runtimes, file.default_runtime)?,
        streaming_tls: file.streaming.believe()?,
        cdi_spec_dirs: file.cdi_spec_dirs,
        paths,
    })
}

/// Runtime handlers as believed: names that Kubernetes takes, programs by absolute path.
fn handlers(file: BTreeMap<String, RuntimeFile>, default: String) -> anyhow::Result<Handlers> {
    let mut handlers = Handlers { default, ..Handlers::default() };
    for (name, runtime) in file {
        let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        ensure!(
            (1..=63).contains(&name.len())
                && name.chars().all(label)
                && !name.starts_with('-')
                && !name.ends_with('-'),
            "runtimes: {name:?} can't be a handler's name: use up to 63 lower-case letters, digits and '-'"
        );
        let path = &runtime.runtime_path;
        let oci = OciRuntime {
            path: path.clone(),
            root: runtime.runtime_root.clone(),
            args: runtime.runtime_args.clone(),
        };
        let handler = match runtime.runtime_type {
            RuntimeType::Native => {
                ensure!(
                    oci == OciRuntime::default(),
                    "runtimes.{name}: the native runtime has no path, root and arguments: leave them out"
                );
                Handler::Native
            }
            RuntimeType::Oci => {
                ensure!(
                    path.is_absolute() && name != NATIVE,
                    "runtimes.{name}: an OCI runtime needs runtimePath, an absolute path such as /usr/bin/crun, and a \
                     name other than {NATIVE}"
                );
                Handler::Oci(oci)
            }
            RuntimeType::Libcontainer => {
                ensure!(
                    (path.as_os_str().is_empty() || path.is_absolute()) && name != NATIVE,
                    "runtimes.{name}: the runtime type libcontainer needs a runtimePath that is absolute (without one it \
                     is {LIBCONTAINER} beside this program), and a name other than {NATIVE}"
                );
                let path = if path.is_absolute() { path.clone() } else { beside(LIBCONTAINER)? };
                Handler::Libcontainer(OciRuntime { path, ..oci })
            }
        };
        if let Some(root) = &runtime.runtime_root {
            ensure!(root.is_absolute(), "runtimes.{name}: runtimeRoot {} is not absolute", root.display());
        }
        handlers.named.insert(name, handler);
    }
    handlers.get("").map_err(|_| {
        anyhow::anyhow!(
            "defaultRuntime {:?} is not among runtimes: {}",
            handlers.default,
            handlers.names().join(", ")
        )
    })?;
    Ok(handlers)
}

/// A program in the directory of this one.
fn beside(name: &str) -> anyhow::Result<PathBuf> {
    let here = std::env::current_exe().with_context(|| format!("look for {name} beside this program"))?;
    Ok(here.with_file_name(name))
}

/// At most one range of each address family.
fn check_families(what: &str, cidrs: &[IpNet]) -> anyhow::Result<()> {
    let v4 = cidrs.iter().filter(|cidr| matches!(cidr, IpNet::V4(_))).count();
    if v4 > 1 || cidrs.len() - v4 > 1 {
        bail!("{what} has two ranges of one family: give at most one for IPv4 and one for IPv6");
    }
    Ok(())
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The address that packets to the outside would carry; loopback on a machine without a default route.
/// Nothing is sent: connecting a datagram socket only chooses a route.
fn host_addresses() -> Vec<IpAddr> {
    let source = |bind: &str, to: &str| -> Option<IpAddr> {
        let socket = std::net::UdpSocket::bind(bind).ok()?;
        socket.connect(to).ok()?;
        Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified())
    };
    let found: Vec<_> = [source("0.0.0.0:0", "192.0.2.1:9"), source("[::]:0", "[2001:db8::1]:9")]
        .into_iter()
        .flatten()
        .collect();
    if found.is_empty() { vec![IpAddr::from([127, 0, 0, 1])] } else { found }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(yaml: &str, flags: &NodeFlags) -> anyhow::Result<NodeConfig> {
        let file = if yaml.is_empty() { NodeFile::default() } else { serde_yaml_ng::from_str(yaml)? };
        let host = Host { name: "Box".into(), addresses: vec![IpAddr::from([10, 0, 0, 2])] };
        merge(Paths::new(None), file, flags, host)
    }

    #[test]
    fn silence_gives_the_defaults() {
        let config = load("", &NodeFlags::default()).unwrap();
        assert_eq!(config.node_name, "box");
        assert_eq!(config.pod_cidrs, ["10.42.0.0/24".parse().unwrap()]);
        assert_eq!(config.cri_socket, Path::new("/run/orlop/cri.sock"));
    }

    #[test]
    fn a_flag_overrides_the_file() {
        let flags = NodeFlags { node_name: Some("flag".into()), ..NodeFlags::default() };
        let config = load("nodeName: file\nbridge: br7\n", &flags).unwrap();
        assert_eq!((config.node_name.as_str(), config.bridge.as_str()), ("flag", "br7"));
    }

    #[test]
    fn runtimes_are_read() {
        let yaml = "defaultRuntime: crun\nruntimes:\n  crun:\n    runtimePath: /usr/bin/crun\n    \
                    runtimeRoot: /run/crun\n    runtimeArgs: [--debug]\n  plain: {runtimeType: native}\n  \
                    youki: {runtimeType: libcontainer}\n";
        let handlers = load(yaml, &NodeFlags::default()).unwrap().handlers;
        assert_eq!(handlers.get("plain").unwrap().1, &Handler::Native);
        let Handler::Libcontainer(helper) = handlers.get("youki").unwrap().1 else { panic!("{handlers:?}") };
        assert!(helper.path.is_absolute() && helper.path.ends_with(LIBCONTAINER), "{helper:?}");
        let crun = handlers.get("").unwrap().1.oci().unwrap();
        assert_eq!(
            (crun.path.to_str(), crun.args.as_slice()),
            (Some("/usr/bin/crun"), &["--debug".to_owned()][..])
        );
    }

    #[test]
    fn mistakes_are_named() {
        let wrong = |yaml| load(yaml, &NodeFlags::default()).unwrap_err().to_string();
        assert!(wrong("nodename: x").contains("unknown field `nodename`"));
        assert!(wrong("cgroupDriver: other").contains("unknown variant `other`"));
        assert!(wrong("podCIDRs: [10.0.0.0/24, 10.1.0.0/24]").contains("two ranges of one family"));
        assert!(wrong("nodeName: a_b").contains("--node-name"));
        assert!(wrong("runtimes: {crun: {runtimePath: bin/crun}}").contains("absolute path"));
        assert!(wrong("runtimes: {Kata: {runtimePath: /k}}").contains("handler's name"));
        assert!(wrong("runtimes: {orlop: {runtimePath: /k}}").contains("other than orlop"));
        assert!(wrong("runtimes: {lc: {runtimeType: libcontainer, runtimePath: k}}").contains("absolute"));
        assert!(wrong("defaultRuntime: kata").contains("not among runtimes: orlop"));
        assert!(wrong("streaming: {tlsCertFile: /a}").contains("both"));
        assert!(wrong("streaming: {tlsCertFile: a, tlsPrivateKeyFile: /b}").contains("absolute"));
        assert!(wrong("bridge: a-name-that-is-too-long").contains("--bridge"));
    }
}
