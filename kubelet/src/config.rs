//! What a kubelet is told at start. Parsed and defaulted elsewhere; believed here.
//!
//! Names follow `KubeletConfiguration` where Kubernetes has one for the same thing.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Taint;

use crate::images::records::Verification;
use crate::users::UserIds;

/// Everything a [`crate::Kubelet`] needs to know. `Config::new` fills in the usual defaults.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the Node object; also the suffix of mirror pods' names.
    pub node_name: String,
    /// Host name shown in `kubernetes.io/hostname` and the node's addresses.
    pub hostname: String,
    /// The node's addresses, primary first. Becomes `status.hostIP(s)` of pods.
    pub node_ips: Vec<IpAddr>,
    /// Volumes and other files of pods: `<root>/pods/<uid>/…`. Made with mode 0711 at most.
    pub root_dir: PathBuf,
    /// `podLogsDir`: `<dir>/<namespace>_<name>_<uid>/<container>/<restart>.log`.
    pub pod_logs_dir: PathBuf,
    /// Symbolic links by container name into `pod_logs_dir`, as log collectors expect them.
    pub container_logs_dir: PathBuf,
    /// `staticPodPath`: manifests of static pods; in standalone mode ConfigMaps and Secrets too.
    pub manifests_dir: Option<PathBuf>,
    /// The kubelet's HTTPS API. `None` serves nothing.
    pub api: Option<ApiConfig>,
    /// Certificate of the streaming server, where this daemon is the runtime and has given it one: whoever shows it is
    /// believed. Without it the machine's authorities decide, as for other runtimes.
    pub streaming_certificate: Option<PathBuf>,
    /// `maxPods`.
    pub max_pods: u32,
    /// `clusterDNS`: addresses of the cluster's name server; empty while there is none.
    pub cluster_dns: Vec<IpAddr>,
    /// `clusterDomain`.
    pub cluster_domain: String,
    /// The host's resolver configuration that `dnsPolicy: Default` passes on.
    pub resolv_conf: PathBuf,
    /// The cgroup beneath which the runtime puts those that it is given, to set the weights of the classes of pods
    /// (`sandbox::shares`). `None` for a runtime that has its own idea of them.
    pub cgroup_base: Option<String>,
    /// Prefix of pods' cgroup parents; empty gives `/kubepods/…`.
    pub cgroup_root: String,
    /// `cgroupDriver` is systemd: pods' cgroup parents are names of slices, `<cgroup_root>-kubepods-….slice`.
    pub systemd_cgroups: bool,
    /// Labels to register the node with, besides the well-known ones.
    pub node_labels: BTreeMap<String, String>,
    /// `registerWithTaints`: taints of a node that is registered for the first time.
    pub register_with_taints: Vec<Taint>,
    /// Delays between restarts of a failing container.
    pub crash_loop: Backoff,
    /// Delays between attempts to pull a failing image.
    pub image_pull: Backoff,
    /// `nodeStatusReportFrequency`: how often an unchanged node status is written all the same.
    pub node_status_report_frequency: Duration,
    /// `nodeLeaseDurationSeconds`; the lease is renewed four times as often.
    pub node_lease_duration: Duration,
    /// How often every pod is looked at again although nothing was reported. Only a safety net.
    pub resync: Duration,
    /// `containerLogMaxSize`, in bytes.
    pub container_log_max_size: u64,
    /// `containerLogMaxFiles`, the current one included.
    pub container_log_max_files: u32,
    /// How often log files are measured for rotation (`containerLogMonitorInterval`).
    pub container_log_monitor_interval: Duration,
    /// What pods get of the machine, and what it keeps.
    pub resources: ResourceSettings,
    /// `allowedUnsafeSysctls`: exact names, or prefixes that end in `*`.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Whether the node's kernel has AppArmor; where it hasn't, pods that ask for its confinement are rejected.
    pub apparmor: bool,
    /// The ids that pods with `hostUsers: false` are given.
    pub user_ids: UserIds,
    /// Whether the node's kernel runs SELinux; where it doesn't, pods with labels are rejected.
    pub selinux: bool,
    /// The kubelet's version as the node reports it.
    pub kubelet_version: String,
    /// `providerID`, if a cloud gave the node one.
    pub provider_id: Option<String>,
    /// How images are pulled and removed.
    pub images: ImageSettings,
}

/// What pods get of the machine, and what it keeps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResourceSettings {
    /// `systemReserved`: taken off `allocatable` (`cpu`, `memory`, `ephemeral-storage`, `pid`).
    pub system_reserved: BTreeMap<String, String>,
    /// `kubeReserved`: likewise.
    pub kube_reserved: BTreeMap<String, String>,
    /// `enforceNodeAllocatable` names `pods`: all pods together get no more than what is not reserved.
    pub enforce_pods: bool,
    /// `podPidsLimit`: processes and threads of each pod; `None`: as many as the node has.
    pub pod_pids_limit: Option<i64>,
    /// `memoryThrottlingFactor`: from which part of the way from its request to its limit on a container is slowed
    /// down (`memory.high`), 0 to 1; `None`: never.
    pub memory_throttling_factor: Option<f64>,
    /// `memoryReservationPolicy` is `TieredReservation`: what pods request is protected (`memory.min`, `memory.low`).
    pub memory_reservation: bool,
    /// `memorySwap.swapBehavior` is `LimitedSwap`: burstable pods get swap in proportion to their requests.
    pub limited_swap: bool,
    /// `singleProcessOOMKill`: of a container that exceeds its memory one process is killed, and not all.
    pub single_process_oom_kill: bool,
}

/// How images are pulled and removed.
#[derive(Clone, Debug)]
pub struct ImageSettings {
    /// `maxParallelImagePulls`; 1 for `serializeImagePulls`; `None`: as many as pods want.
    pub max_parallel_pulls: Option<usize>,
    /// `imageGCHighThresholdPercent`: from this much of the disk on, unused images are removed; 100: never.
    pub gc_high_threshold_percent: u32,
    /// `imageGCLowThresholdPercent`: until so much of it is used.
    pub gc_low_threshold_percent: u32,
    /// `imageMinimumGCAge`: younger images stay.
    pub minimum_gc_age: Duration,
    /// `imageMaximumGCAge`: images that were unused for longer go; zero: never.
    pub maximum_gc_age: Duration,
    /// Docker configurations with the node's credentials; they need not exist.
    pub docker_configs: Vec<PathBuf>,
    /// `--image-credential-provider-config`: a file or a directory.
    pub credential_provider_config: Option<PathBuf>,
    /// `--image-credential-provider-bin-dir`.
    pub credential_provider_bin_dir: PathBuf,
    /// `imagePullCredentialsVerificationPolicy`.
    pub verification: Verification,
    /// `preloadedImagesVerificationAllowlist`.
    pub preloaded_allowlist: Vec<String>,
}

impl Default for ImageSettings {
    fn default() -> Self {
        ImageSettings {
            max_parallel_pulls: None,
            gc_high_threshold_percent: 85,
            gc_low_threshold_percent: 80,
            minimum_gc_age: Duration::from_secs(120),
            maximum_gc_age: Duration::ZERO,
            docker_configs: Vec::new(),
            credential_provider_config: None,
            credential_provider_bin_dir: "/usr/libexec/kubernetes/kubelet-plugins/credential-provider/exec"
                .into(),
            verification: Verification::default(),
            preloaded_allowlist: Vec::new(),
        }
    }
}

/// Where the kubelet API listens and whom it lets in.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// `address` and `port`; port 0 takes any free one and registers that.
    pub listen: SocketAddr,
    /// Serving certificate chain, PEM.
    pub tls_cert_pem: Vec<u8>,
    /// Its private key, PEM.
    pub tls_key_pem: Vec<u8>,
    /// The CA whose client certificates are accepted, PEM.
    pub client_ca_pem: Vec<u8>,
}

/// Exponential delays: `base`, doubled each time up to `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// First delay.
    pub base: Duration,
    /// `maxContainerRestartPeriod`: longest delay.
    pub max: Duration,
    /// A run at least this long makes the next failure count as the first again.
    pub reset_after: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff {
            base: Duration::from_secs(10),
            max: Duration::from_secs(300),
            reset_after: Duration::from_secs(600),
        }
    }
}

impl Backoff {
    /// The delay that follows `last`; zero counts as "none yet".
    pub fn next(&self, last: Duration) -> Duration {
        if last.is_zero() { self.base.min(self.max) } else { (last * 2).min(self.max) }
    }
}

impl Config {
    /// The usual settings for a node of this name whose files are all below `root`:
    /// `data/kubelet`, `log/pods`, `log/containers`, `etc/manifests`. No kubelet API.
    pub fn new(node_name: impl Into<String>, root: impl Into<PathBuf>) -> Config {
        let (name, root) = (node_name.into(), root.into());
        Config {
            hostname: name.clone(),
            node_name: name,
            node_ips: Vec::new(),
            root_dir: root.join("data/kubelet"),
            pod_logs_dir: root.join("log/pods"),
            container_logs_dir: root.join("log/containers"),
            manifests_dir: Some(root.join("etc/manifests")),
            api: None,
            streaming_certificate: None,
            max_pods: 110,
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            cgroup_base: None,
            cgroup_root: String::new(),
            systemd_cgroups: false,
            node_labels: BTreeMap::new(),
            register_with_taints: Vec::new(),
            crash_loop: Backoff::default(),
            image_pull: Backoff::default(),
            node_status_report_frequency: Duration::from_secs(300),
            node_lease_duration: Duration::from_secs(40),
            resync: Duration::from_secs(60),
            container_log_max_size: 10 << 20,
            container_log_max_files: 5,
            container_log_monitor_interval: Duration::from_secs(10),
            resources: ResourceSettings { enforce_pods: true, ..Default::default() },
            allowed_unsafe_sysctls: Vec::new(),
            selinux: std::path::Path::new("/sys/fs/selinux/enforce").exists(),
            apparmor: std::fs::read_to_string("/sys/module/apparmor/parameters/enabled")
                .is_ok_and(|text| text.trim() == "Y"),
            user_ids: UserIds::default(),
            kubelet_version: concat!("v1.36.0+orlop-", env!("CARGO_PKG_VERSION")).into(),
            provider_id: None,
            images: ImageSettings::default(),
        }
    }

    /// Directory of one pod's files.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root_dir.join("pods").join(uid)
    }
}
