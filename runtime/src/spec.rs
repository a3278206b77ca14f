//! What a caller asks for: one sandbox, one container, one exec.
//!
//! Guarantees: plain data, serialisable; nothing here touches the system.
//! Assumes: CRI defaults were already applied by the caller where CRI has its own (masked paths).

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::id::{ContainerId, SandboxId};

/// A pod sandbox: what the containers of a pod share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxSpec {
    /// Its id.
    pub id: SandboxId,
    /// Host name in the sandbox's own uts namespace; not used when `namespaces.uts` is `Node`.
    #[serde(default)]
    pub hostname: String,
    /// The pod's cgroup, such as `/kubepods/burstable/pod<uid>`, beneath the node's own
    /// cgroup (`Options::cgroup_parent`). Made when missing. Without it: `/pods/<id>`.
    #[serde(default)]
    pub cgroup_parent: Option<String>,
    /// Which namespaces the pod has for itself.
    #[serde(default)]
    pub namespaces: Namespaces,
    /// The ids that the pod has for itself; `None`: it uses the node's.
    #[serde(default)]
    pub user_namespace: Option<UserNamespace>,
    /// Namespaced kernel settings (`net.*`, some of `kernel.*`, `fs.mqueue.*`).
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// Size of the pod's `/dev/shm` in bytes; 64 MiB when not given.
    #[serde(default)]
    pub shm_size: Option<u64>,
    /// Limits written to the pod's cgroup, if this runtime made it (a kubelet that made it wrote its own).
    #[serde(default)]
    pub resources: Resources,
    /// The pod may hold privileged containers: sysctls are then checked just as strictly.
    #[serde(default)]
    pub privileged: bool,
    /// SELinux label of its containers, unless they have one of their own.
    #[serde(default)]
    pub selinux: Option<SelinuxOptions>,
    /// Name of the runtime handler that makes its containers (`Options::handlers`); empty is the default one.
    #[serde(default)]
    pub handler: String,
    /// The caller's own data: kept in the record, never read here.
    #[serde(default)]
    pub meta: serde_json::Value,
}

/// The namespaces of a pod, or as one of its containers sees them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Namespaces {
    /// Network: `Pod` or `Node`.
    pub net: NamespaceMode,
    /// System V ipc, POSIX queues and `/dev/shm`: `Pod` or `Node`.
    pub ipc: NamespaceMode,
    /// Host name: `Pod` or `Node`.
    pub uts: NamespaceMode,
    /// Processes: `Container` (each its own), `Pod` (shared), `Node`, or `Target`.
    pub pid: NamespaceMode,
}

impl Default for Namespaces {
    fn default() -> Self {
        use NamespaceMode::{Container, Pod};
        Namespaces { net: Pod, ipc: Pod, uts: Pod, pid: Container }
    }
}

/// Whose namespace a process joins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceMode {
    /// The pod's, shared by its containers.
    Pod,
    /// A new one for this container (pid only).
    Container,
    /// The node's own.
    Node,
    /// That of another container (pid only: ephemeral containers).
    Target(ContainerId),
}

/// One container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerSpec {
    /// Its id.
    pub id: ContainerId,
    /// The sandbox that it lives in.
    pub sandbox: SandboxId,
    /// Image layers as directories, the topmost first.
    pub rootfs: Vec<PathBuf>,
    /// Command and arguments; at least one.
    pub args: Vec<String>,
    /// Environment as `NAME=value`; a later one wins. `PATH` and `HOSTNAME`/`HOME`/`TERM` are added when missing.
    #[serde(default)]
    pub env: Vec<String>,
    /// Working directory; `/` when empty; made when missing.
    #[serde(default)]
    pub cwd: String,
    /// Who runs it.
    #[serde(default)]
    pub user: User,
    /// Mounts besides the default ones, in the order given (parents are mounted before children).
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Host devices to show.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// Changes to the default capability set.
    #[serde(default)]
    pub capabilities: Capabilities,
    /// All capabilities, all devices, no masked paths, writable `/sys` and cgroups, no seccomp.
    #[serde(default)]
    pub privileged: bool,
    /// System call filter; not applied when privileged.
    #[serde(default)]
    pub seccomp: Seccomp,
    /// AppArmor profile; not applied when privileged.
    #[serde(default)]
    pub apparmor: AppArmorProfile,
    /// SELinux label; `None` is the pod's. Not applied when privileged.
    #[serde(default)]
    pub selinux: Option<SelinuxOptions>,
    /// Set-user-id programs gain nothing.
    #[serde(default)]
    pub no_new_privs: bool,
    /// Hidden paths; `None` means the default list, an empty list hides nothing. Not used when privileged.
    #[serde(default)]
    pub masked_paths: Option<Vec<String>>,
    /// Paths made read-only; `None` means the default list. Not used when privileged.
    #[serde(default)]
    pub readonly_paths: Option<Vec<String>>,
    /// The root file system is read-only.
    #[serde(default)]
    pub readonly_rootfs: bool,
    /// `/sys/fs/cgroup` is writable though the container is not privileged.
    #[serde(default)]
    pub writable_cgroup: bool,
    /// The process has a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Standard input stays open for attach; otherwise it is `/dev/null`.
    #[serde(default)]
    pub stdin: bool,
    /// Standard input ends with the first attach session.
    #[serde(default)]
    pub stdin_once: bool,
    /// Absolute path of the log file in CRI format; parents are made. `None`: output is dropped.
    #[serde(default)]
    pub log_path: Option<PathBuf>,
    /// Limits.
    #[serde(default)]
    pub resources: Resources,
    /// POSIX resource limits.
    #[serde(default)]
    pub rlimits: Vec<Rlimit>,
    /// Name (`SIGTERM`, `TERM`, `SIGRTMIN+3`) or number of the signal that asks it to stop; `SIGTERM` when `None`.
    #[serde(default)]
    pub stop_signal: Option<String>,
    /// As the pod's, but `pid` may be `Target`. `net`, `ipc`, `uts` follow the sandbox.
    #[serde(default)]
    pub namespaces: Namespaces,
    /// The caller's own data: kept in the record, never read here.
    #[serde(default)]
    pub meta: serde_json::Value,
}

impl ContainerSpec {
    /// A container with every default and the three things that have none.
    pub fn new(id: ContainerId, sandbox: SandboxId, rootfs: Vec<PathBuf>, args: Vec<String>) -> Self {
        ContainerSpec {
            id,
            sandbox,
            rootfs,
            args,
            env: Vec::new(),
            cwd: String::new(),
            user: User::default(),
            mounts: Vec::new(),
            devices: Vec::new(),
            capabilities: Capabilities::default(),
            privileged: false,
            seccomp: Seccomp::default(),
            apparmor: AppArmorProfile::default(),
            selinux: None,
            no_new_privs: false,
            masked_paths: None,
            readonly_paths: None,
            readonly_rootfs: false,
            writable_cgroup: false,
            tty: false,
            stdin: false,
            stdin_once: false,
            log_path: None,
            resources: Resources::default(),
            rlimits: Vec::new(),
            stop_signal: None,
            namespaces: Namespaces::default(),
            meta: serde_json::Value::Null,
        }
    }
}

impl SandboxSpec {
    /// A sandbox with every default.
    pub fn new(id: SandboxId) -> Self {
        SandboxSpec {
            hostname: id.as_str().chars().take(12).collect(),
            id,
            cgroup_parent: None,
            namespaces: Namespaces::default(),
            user_namespace: None,
            sysctls: BTreeMap::new(),
            shm_size: None,
            resources: Resources::default(),
            privileged: false,
            selinux: None,
            handler: String::new(),
            meta: serde_json::Value::Null,
        }
    }
}

/// The ids of a pod that has a user namespace of its own. Ids count from 0 in the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserNamespace {
    /// User ids.
    pub users: IdRange,
    /// Group ids.
    pub groups: IdRange,
}

/// A range of the node's ids that stand for 0 and up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdRange {
    /// The first one.
    pub host: u32,
    /// How many.
    pub length: u32,
}

impl IdRange {
    /// The node's id of a pod's id; `None` when the pod has no such id.
    pub fn to_host(self, id: u32) -> Option<u32> {
        if id < self.length { self.host.checked_add(id) } else { None }
    }
}

/// Who runs a container; names are looked up in the image's own `/etc/passwd` and `/etc/group`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// As in an image's config: empty (root), `uid`, `name`, `uid:gid`, `name:group`.
    #[serde(default)]
    pub user: String,
    /// Primary group that wins over the one found through `user` (CRI's `run_as_group`).
    #[serde(default)]
    pub group: Option<u32>,
    /// Further groups.
    #[serde(default)]
    pub supplementary: Vec<u32>,
    /// Whether groups that the image's `/etc/group` gives the user are added.
    #[serde(default)]
    pub policy: GroupsPolicy,
}

/// Kubernetes' `supplementalGroupsPolicy`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum GroupsPolicy {
    /// Add the groups of the image's `/etc/group`.
    #[default]
    Merge,
    /// Only the groups asked for.
    Strict,
}

/// Numbers found for a `User`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedUser {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids, sorted, with `gid` among them.
    pub groups: Vec<u32>,
    /// Home directory, for `HOME`.
    pub home: String,
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// What is mounted.
    pub source: MountSource,
    /// Absolute path in the container; made when missing.
    pub target: PathBuf,
    /// Read-only.
    #[serde(default)]
    pub readonly: bool,
    /// Mounts below the source are read-only as well; needs `readonly`.
    #[serde(default)]
    pub recursive_readonly: bool,
    /// How later mounts travel between node and container.
    #[serde(default)]
    pub propagation: Propagation,
    /// Refuse to run programs from it.
    #[serde(default)]
    pub noexec: bool,
    /// Ignore set-user-id bits on it.
    #[serde(default)]
    pub nosuid: bool,
    /// Ignore device nodes on it.
    #[serde(default)]
    pub nodev: bool,
    /// Show files with other ids: what belongs to 0 on the disk belongs to the first of these. For volumes of pods
    /// with a user namespace; the file system must have mapped mounts.
    #[serde(default)]
    pub ids: Option<UserNamespace>,
    /// Give its files the container's SELinux context, where there is one.
    #[serde(default)]
    pub relabel: bool,
}

impl Mount {
    /// A private writable bind mount.
    pub fn bind(source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Mount {
        Mount {
            source: MountSource::Path(source.into()),
            target: target.into(),
            readonly: false,
            recursive_readonly: false,
            propagation: Propagation::Private,
            noexec: false,
            nosuid: false,
            nodev: false,
            ids: None,
            relabel: false,
        }
    }

    /// The same mount, read-only.
    pub fn readonly(mut self) -> Mount {
        self.readonly = true;
        self
    }
}

/// Where a mount's content comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// A file or directory of the host, with everything mounted below it.
    Path(PathBuf),
    /// A new tmpfs.
    Tmpfs {
        /// Size limit in bytes; half of memory when not given.
        #[serde(default)]
        size: Option<u64>,
        /// Permission bits of its root; 0o1777 when not given.
        #[serde(default)]
        mode: Option<u32>,
    },
    /// An image's layers (topmost first), always read-only.
    Image {
        /// Layer directories.
        lower: Vec<PathBuf>,
        /// Directory of the image to mount instead of its root; resolved beneath it.
        #[serde(default)]
        sub_path: Option<PathBuf>,
    },
}

/// How mounts made later travel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// Not at all.
    #[default]
    Private,
    /// From node to container (`rslave`).
    HostToContainer,
    /// Both ways (`rshared`).
    Bidirectional,
}

/// One host device shown in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Device node, or directory of them, on the host.
    pub host_path: PathBuf,
    /// Where the container sees it.
    pub container_path: PathBuf,
    /// Of `r`, `w`, `m`.
    pub permissions: String,
    /// Permission bits in the container; the node's own when `None`.
    #[serde(default)]
    pub mode: Option<u32>,
    /// Owner in the container.
    #[serde(default)]
    pub uid: Option<u32>,
    /// Group in the container.
    #[serde(default)]
    pub gid: Option<u32>,
}

impl Device {
    /// A device as it is on the node.
    pub fn new(
        host_path: impl Into<PathBuf>,
        container_path: impl Into<PathBuf>,
        permissions: impl Into<String>,
    ) -> Device {
        Device {
            host_path: host_path.into(),
            container_path: container_path.into(),
            permissions: permissions.into(),
            mode: None,
            uid: None,
            gid: None,
        }
    }
}

/// Changes to the default capability set, as names with or without `CAP_`; `ALL` is known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capabilities {
    /// Added.
    #[serde(default)]
    pub add: Vec<String>,
    /// Taken away, after the additions; `ALL` leaves only what `add` names.
    #[serde(default)]
    pub drop: Vec<String>,
    /// Added to the ambient set too, so that a user other than root has them.
    #[serde(default)]
    pub add_ambient: Vec<String>,
}

/// System call filter of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// The runtime's default profile.
    #[default]
    RuntimeDefault,
    /// None.
    Unconfined,
    /// A profile file in the OCI format; absolute path.
    Localhost(PathBuf),
}

/// AppArmor profile of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AppArmorProfile {
    /// Nobody asked: the default profile where it can be had.
    #[default]
    Unspecified,
    /// The default profile; refused where the kernel has AppArmor and the profile could not be loaded.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// A loaded profile, by its name.
    Localhost(String),
}

/// Parts of an SELinux context; what is empty is the policy's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SelinuxOptions {
    /// User.
    pub user: String,
    /// Role.
    pub role: String,
    /// Type.
    pub kind: String,
    /// Level: sensitivity and categories.
    pub level: String,
}

impl SelinuxOptions {
    /// Whether all is the policy's.
    pub fn is_empty(&self) -> bool {
        *self == SelinuxOptions::default()
    }
}

/// Limits of a cgroup; a field that is `None` is left alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// Relative share of processor time, 2 to 262144 (cgroup v1 scale, as CRI gives it).
    pub cpu_shares: Option<u64>,
    /// Microseconds of processor time in each period; negative or 0: no limit.
    pub cpu_quota: Option<i64>,
    /// Period in microseconds; 100000 when `None`.
    pub cpu_period: Option<u64>,
    /// Bytes; 0 or negative: no limit.
    pub memory_limit: Option<i64>,
    /// Bytes of memory and swap together (CRI's meaning); -1: no limit.
    pub memory_swap_limit: Option<i64>,
    /// Tasks; 0 or negative: no limit.
    pub pids_limit: Option<i64>,
    /// Processors, such as `0-1,3`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes.
    pub cpuset_mems: Option<String>,
    /// -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// Page size (`2MB`, `1GB`) and bytes.
    pub hugepages: Vec<(String, u64)>,
    /// Weight of disk access, 10 to 1000 (blkio scale).
    pub blkio_weight: Option<u16>,
    /// Files of cgroup v2 and what is written to them; these win over the fields above.
    pub unified: BTreeMap<String, String>,
}

/// One POSIX limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rlimit {
    /// `RLIMIT_NOFILE`, or `nofile`.
    pub name: String,
    /// What applies.
    pub soft: u64,
    /// How far the process may raise it.
    pub hard: u64,
}

/// One more process in a running container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExecSpec {
    /// Command and arguments; at least one.
    pub args: Vec<String>,
    /// Added to the container's environment.
    pub env: Vec<String>,
    /// Working directory; the container's when `None`.
    pub cwd: Option<String>,
    /// Another user than the container's; same form as `User::user`.
    pub user: Option<User>,
    /// With a terminal; `stderr` then comes with `stdout`.
    pub tty: bool,
    /// Standard input is a pipe; otherwise `/dev/null`.
    pub stdin: bool,
    /// Standard output is a pipe; otherwise `/dev/null`.
    pub stdout: bool,
    /// Standard error is a pipe; otherwise `/dev/null`.
    pub stderr: bool,
}
