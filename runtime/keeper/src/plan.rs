//! The launch plan: everything a container needs, decided before it is started.
//!
//! The daemon makes a plan from an OCI spec and opens the descriptors; the keeper carries it
//! out without a choice of its own. Strings that reach the kernel are [`CString`]s, so a NUL
//! byte is refused while the plan is made.
//!
//! Guarantees: a plan refers to descriptors only by their place in the array sent with it.
//! Assumes: user names are resolved, paths inside the container are absolute.
//! Order in the child: session, namespaces, host name, root filesystem (pivot), sysctls, steps,
//! console, masked and read-only paths, root read-only, label, limits, capabilities and user,
//! working directory, seccomp, exec.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The place of a descriptor in the array that travels with a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdIndex(pub u16);

/// Collects the descriptors of one request and numbers them.
#[derive(Debug, Default)]
pub struct Fds(Vec<OwnedFd>);

impl Fds {
    /// Takes a descriptor and tells its place.
    pub fn add(&mut self, fd: OwnedFd) -> FdIndex {
        self.0.push(fd);
        FdIndex(u16::try_from(self.0.len() - 1).expect("far fewer descriptors than 65536"))
    }

    /// The descriptors in order.
    pub fn into_vec(self) -> Vec<OwnedFd> {
        self.0
    }

    /// How many there are; the kernel passes at most [`crate::protocol::MAX_FDS`] in one message.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none was added.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A complete container start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchPlan {
    /// The container's id, unique among all that the keeper remembers.
    pub id: String,
    /// What is run and as whom.
    pub process: ProcessPlan,
    /// The root filesystem.
    pub rootfs: Rootfs,
    /// Mounts, devices and links, carried out in order inside the new root.
    pub steps: Vec<Step>,
    /// Paths hidden by the null device (files) or an empty read-only tmpfs (directories).
    /// A missing path is skipped.
    pub masked_paths: Vec<CString>,
    /// Paths made read-only (recursively bound onto themselves). A missing path is skipped.
    pub readonly_paths: Vec<CString>,
    /// The namespaces. The mount namespace is always new.
    pub namespaces: Namespaces,
    /// With a pid namespace that is joined: the mount namespace of a process in it, whose `/proc` shows it. A procfs
    /// is that of its maker's pid namespace, and who prepares a container is outside of it.
    pub procfs_of: Option<FdIndex>,
    /// The user namespace it lives in; `None` is the node's. The other namespaces must belong to it.
    pub user_namespace: Option<UserNamespace>,
    /// Directory descriptor of the container's cgroup; `None` starts it in the keeper's.
    pub cgroup: Option<FdIndex>,
    /// Host name, set when `namespaces.uts` is `New`.
    pub hostname: Option<CString>,
    /// Domain name, set when `namespaces.uts` is `New`.
    pub domainname: Option<CString>,
    /// Kernel parameters, written in the container's namespaces.
    pub sysctls: Vec<Sysctl>,
    /// Score for the OOM killer. A refusal (`EACCES` for lowering it without CAP_SYS_RESOURCE)
    /// is a warning in the reply.
    pub oom_score_adj: Option<i32>,
    /// Standard streams.
    pub stdio: Stdio,
    /// Close the container's standard input when the first attached client goes away
    /// (the daemon asks by `CloseStdin`; the keeper only remembers it).
    pub stdin_once: bool,
    /// The CRI log file, opened for appending; `None` writes no log.
    pub log: Option<FdIndex>,
}

/// The program of a container or of an exec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessPlan {
    /// Arguments; the first names the program, looked up in the `PATH` of `env` when it
    /// contains no slash.
    pub args: Vec<CString>,
    /// The whole environment, `KEY=value`.
    pub env: Vec<CString>,
    /// Working directory (absolute). Made when missing; never followed out of the root.
    pub cwd: CString,
    /// User and groups.
    pub user: User,
    /// Capability sets.
    pub capabilities: Capabilities,
    /// Whether privileges can never grow again (set-user-id programs, file capabilities).
    pub no_new_privileges: bool,
    /// A compiled filter.
    pub seccomp: Option<Seccomp>,
    /// What the kernel's security modules make of the program.
    pub label: Option<Label>,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
}

/// What a security module shall confine the program as. In force from its exec on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Label {
    /// The command for AppArmor, such as `exec PROFILE`.
    AppArmor(CString),
    /// A context of SELinux: `user:role:type:level`.
    Selinux(CString),
}

/// User and groups, as numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// File mode mask; `None` is 022.
    pub umask: Option<u32>,
}

/// Capability sets as bit masks (bit n is capability n). The inheritable set is the ambient
/// one, because the kernel demands it; with no ambient capabilities it is empty.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// What can ever be gained.
    pub bounding: u64,
    /// What is in force.
    pub effective: u64,
    /// What may be put in force.
    pub permitted: u64,
    /// What a non-root program keeps over exec.
    pub ambient: u64,
}

/// A seccomp program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seccomp {
    /// `struct sock_filter` instructions in native byte order, 8 bytes each.
    pub program: Vec<u8>,
    /// Flags of `seccomp(2)`, e.g. `SECCOMP_FILTER_FLAG_LOG`.
    pub flags: u32,
}

/// One resource limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// Number of the resource (`RLIMIT_*`).
    pub resource: u32,
    /// Soft limit; `u64::MAX` is infinity.
    pub soft: u64,
    /// Hard limit; `u64::MAX` is infinity.
    pub hard: u64,
}

/// The root filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rootfs {
    /// A detached mount (`fsmount` or `open_tree` with `OPEN_TREE_CLONE`).
    pub fd: FdIndex,
    /// Whether the root is read-only in the end (mount targets are made before that).
    pub readonly: bool,
    /// Propagation of the root mount (OCI `rootfsPropagation`); `None` is private.
    pub propagation: Option<Propagation>,
}

/// Mount propagation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// No events in either direction.
    Private,
    /// Events come in.
    Slave,
    /// Events go both ways.
    Shared,
    /// Private, and cannot be bound elsewhere.
    Unbindable,
}

/// What a mount's target is made as when it is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TargetKind {
    /// A directory.
    Directory,
    /// An empty file.
    File,
}

/// One thing done inside the new root. Paths are absolute in the container and are resolved
/// beneath its root; symbolic links are followed inside it, magic links never.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Attaches a detached mount (flags and propagation were set on it by the daemon).
    Attach {
        /// The detached mount.
        fd: FdIndex,
        /// Where it goes.
        target: CString,
        /// What to make when nothing is there.
        kind: TargetKind,
    },
    /// Mounts a new filesystem that belongs to the container's namespaces: proc, sysfs, mqueue,
    /// cgroup2, devpts, tmpfs. The targets of proc, sysfs and cgroup2 may not lead through
    /// symbolic links.
    Filesystem {
        /// Type, e.g. `proc`.
        fstype: CString,
        /// Source as shown in mountinfo.
        source: Option<CString>,
        /// Options for the filesystem: `key` or `key=value`.
        options: Vec<FsOption>,
        /// Mount attributes (`MOUNT_ATTR_*`).
        attributes: u64,
        /// Where it goes.
        target: CString,
    },
    /// Changes an existing mount.
    Attributes {
        /// The mount (any path in it whose mount is meant; normally its top).
        target: CString,
        /// Whether mounts below it change as well.
        recursive: bool,
        /// Attributes to set.
        set: u64,
        /// Attributes to clear.
        clear: u64,
        /// Propagation to set.
        propagation: Option<Propagation>,
    },
    /// Makes a directory (and its parents) when it is missing.
    Directory {
        /// Path.
        path: CString,
        /// Permission bits of a new directory.
        mode: u32,
    },
    /// Makes a device node, replacing nothing: an existing path is an error unless it is the
    /// same device.
    Device {
        /// Path.
        path: CString,
        /// Kind of node.
        kind: DeviceKind,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// Makes a symbolic link; an existing path is left alone.
    Symlink {
        /// Path of the link.
        path: CString,
        /// What it says.
        to: CString,
    },
}

/// An option of a new filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsOption {
    /// Name.
    pub key: CString,
    /// Value; `None` is a flag.
    pub value: Option<CString>,
}

/// Kind of a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    /// Character device.
    Char,
    /// Block device.
    Block,
    /// Named pipe.
    Fifo,
}

/// Where a namespace comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Namespace {
    /// The node's own.
    #[default]
    Host,
    /// A new one for this container.
    New,
    /// An existing one, by a descriptor of its `nsfs` file.
    Join(FdIndex),
}

/// An existing user namespace that a container joins. Ids in its plan are those of the namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespace {
    /// Its `nsfs` file. Its 0 must be mapped.
    pub fd: FdIndex,
    /// The node's id of the program's user, who gets the pipes of the standard streams.
    pub stream_owner: u32,
}

/// The namespaces of a container besides mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    /// Process ids.
    pub pid: Namespace,
    /// Network.
    pub net: Namespace,
    /// System V IPC and POSIX message queues.
    pub ipc: Namespace,
    /// Host name.
    pub uts: Namespace,
    /// Cgroup view; a new one is rooted at the container's cgroup.
    pub cgroup: Namespace,
}

/// A kernel parameter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sysctl {
    /// Path below `/proc/sys`, e.g. `net/ipv4/ip_forward` (not with dots).
    pub path: CString,
    /// Value.
    pub value: Vec<u8>,
}

/// Standard streams of a container. The keeper makes the pipes or the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdio {
    /// Output through pipes into the log; input from a pipe, or empty.
    Pipes {
        /// Whether standard input is a pipe that stays open.
        stdin: bool,
    },
    /// A pseudo-terminal, with `/dev/console` bound to it.
    Terminal {
        /// Columns at the start.
        columns: u16,
        /// Rows at the start.
        rows: u16,
    },
    /// Everything on the null device.
    Null,
}

/// A process started in a running container. Its streams are the caller's own descriptors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecPlan {
    /// The container.
    pub container: String,
    /// Name of the exec, unique among the running ones; events carry it.
    pub id: String,
    /// What is run and as whom.
    pub process: ProcessPlan,
    /// Standard streams.
    pub stdio: ExecStdio,
    /// The exec's cgroup; `None` is the container's.
    pub cgroup: Option<FdIndex>,
    /// Score for the OOM killer, as in [`LaunchPlan`].
    pub oom_score_adj: Option<i32>,
    /// For a container with a user namespace of its own: the node's id of the program's user, who gets the pipes
    /// among the streams.
    pub stream_owner: Option<u32>,
    /// How long it may take until the program runs; `None` is a minute, and more is a minute.
    pub patience: Option<Duration>,
}

/// Standard streams of an exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecStdio {
    /// Three descriptors; `None` is the null device.
    Streams {
        /// Standard input.
        stdin: Option<FdIndex>,
        /// Standard output.
        stdout: Option<FdIndex>,
        /// Standard error.
        stderr: Option<FdIndex>,
    },
    /// A new pseudo-terminal of the container's own devpts; the reply carries its master.
    Terminal {
        /// Columns at the start.
        columns: u16,
        /// Rows at the start.
        rows: u16,
    },
}

/// The small first process of a shared pid namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitPlan {
    /// The id it is remembered by.
    pub id: String,
    /// Its cgroup.
    pub cgroup: Option<FdIndex>,
    /// Namespaces it joins beside the new pid namespace (`pid` is ignored).
    pub namespaces: Namespaces,
    /// The user namespace that it lives in and that the pid namespace belongs to.
    pub user_namespace: Option<FdIndex>,
}
