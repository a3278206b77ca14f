//! Where a runtime keeps its things, and what the kernel lets it do.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::handler::Handlers;

/// Where a runtime keeps its things.
#[derive(Debug, Clone)]
pub struct Options {
    /// Writable layers: `<data>/containers/<id>`.
    pub data: PathBuf,
    /// Records, pinned namespaces, keeper socket, lock; a tmpfs, so that it is empty after a reboot.
    pub run: PathBuf,
    /// The node's own cgroup, beneath which all pods' are made. Empty: the root of the cgroup2
    /// file system, for a kubelet that makes pod cgroups by itself.
    pub cgroup_parent: String,
    /// Who makes cgroups.
    pub cgroup_driver: CgroupDriver,
    /// Directory of `Localhost` seccomp profiles named by relative path.
    pub seccomp_profiles: PathBuf,
    /// Other programs that can make containers, by the name that pods know them by.
    pub handlers: Handlers,
}

impl Options {
    /// Everything below one directory: `<root>/data`, `<root>/run`, `<root>/etc/seccomp`.
    pub fn below(root: impl Into<PathBuf>, cgroup_parent: impl Into<String>) -> Options {
        let root = root.into();
        Options {
            data: root.join("data"),
            run: root.join("run"),
            seccomp_profiles: root.join("etc/seccomp"),
            cgroup_parent: cgroup_parent.into(),
            cgroup_driver: CgroupDriver::default(),
            handlers: Handlers::default(),
        }
    }
}

/// Who makes cgroups, as KubeletConfiguration names it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// This process, in the cgroup file system.
    #[default]
    Cgroupfs,
    /// systemd, over D-Bus: it must be the machine's first process.
    Systemd,
}

/// What this kernel and this process can do, probed once at start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Controllers that limits can be set with.
    pub controllers: Vec<String>,
    /// Controllers that a Kubernetes node wants and that are not there.
    pub missing_controllers: Vec<String>,
    /// Path at which the cgroup2 file system is mounted; `None` if only this process holds it.
    pub cgroup_mount: Option<PathBuf>,
    /// `cgroup.kill` exists (5.14).
    pub cgroup_kill: bool,
    /// overlayfs takes one lower layer per call (6.7), so that their number is not bounded by one option's length.
    pub overlay_lowerdir_append: bool,
    /// Exit codes can be asked of a pidfd (6.15).
    pub pidfd_exit_info: bool,
    /// Limits may be raised above this process' own, and `oom_score_adj` lowered.
    pub sys_resource: bool,
    /// Seccomp filters can be installed.
    pub seccomp: bool,
    /// Devices can be confined by cgroup (CONFIG_CGROUP_BPF).
    pub device_filter: bool,
    /// Why pods cannot have users of their own; `None`: they can.
    pub user_namespaces: Option<String>,
    /// The kernel has AppArmor.
    pub apparmor: bool,
    /// The kernel has SELinux: whether it is enforced.
    pub selinux: Option<bool>,
    /// Kernel release.
    pub kernel: String,
    /// One sentence per thing that cannot be enforced, for the log, `orlop check` and the node's condition.
    pub statements: Vec<String>,
}
