//! OCI runtime spec → launch plan, but for the descriptors. Pure.
//!
//! A `Draft` says which descriptors must be opened; `prepare` opens them and makes the plan of it.
//!
//! Guarantees: what the draft cannot express is an error, so that no option of a spec is dropped silently.

use std::collections::HashSet;
use std::ffi::CString;
use std::path::{Path, PathBuf};

use keeper::plan::{Capabilities, DeviceKind, FsOption, Label, ProcessPlan, Propagation, Rlimit, Step, User};
use oci_spec::runtime::{
    Capability, LinuxDevice, LinuxDeviceType, LinuxIdMapping, LinuxNamespaceType, Mount, PosixRlimitType,
    Process, Spec,
};
use sys::mount::attr;

use crate::caps;
use crate::error::RuntimeError;
use crate::oci::SUB_PATH;
use crate::spec::{IdRange, UserNamespace};

/// A launch plan whose descriptors are still names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// What runs, without its seccomp filter.
    pub process: ProcessPlan,
    /// Mounts, devices and links in order.
    pub actions: Vec<Action>,
    /// Hidden paths.
    pub masked_paths: Vec<CString>,
    /// Read-only paths.
    pub readonly_paths: Vec<CString>,
    /// Whether the root is read-only.
    pub readonly_root: bool,
    /// Propagation of the root; `None` is private.
    pub root_propagation: Option<Propagation>,
    /// Namespaces.
    pub namespaces: Namespaces,
    /// The user namespace: its file and its ids; `None` is the node's.
    pub user_namespace: Option<(PathBuf, UserNamespace)>,
    /// Score for the OOM killer.
    pub oom_score_adj: Option<i32>,
    /// SELinux context of the file systems that are made for it.
    pub context: Option<CString>,
}

/// Where the namespaces come from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// Process ids.
    pub pid: Origin,
    /// Network.
    pub net: Origin,
    /// Ipc.
    pub ipc: Origin,
    /// Host name.
    pub uts: Origin,
    /// Cgroup view.
    pub cgroup: Origin,
}

/// Where a namespace comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Origin {
    /// It is the node's.
    #[default]
    Host,
    /// A new one.
    New,
    /// The one whose file is here.
    Join(PathBuf),
}

/// One thing to do in the new root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Ready as it is.
    Step(Step),
    /// Attach a copy of a host directory or file.
    Bind(Bind),
    /// Attach a read-only overlay of image layers.
    Image {
        /// Layers, topmost first.
        lower: Vec<PathBuf>,
        /// Directory beneath the root of them.
        sub_path: Option<PathBuf>,
        /// Mount attributes besides read-only.
        set: u64,
        /// Where it goes.
        target: CString,
    },
}

/// A bind mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// What is shown.
    pub source: PathBuf,
    /// With the mounts below it.
    pub recursive: bool,
    /// Attributes of the topmost mount.
    pub set: u64,
    /// Attributes of all mounts.
    pub set_recursive: u64,
    /// Propagation of all mounts.
    pub propagation: Propagation,
    /// Other ids that its files are shown with.
    pub ids: Option<UserNamespace>,
    /// Where it goes.
    pub target: CString,
}

/// Makes the draft.
pub fn draft(spec: &Spec) -> Result<Draft, RuntimeError> {
    let process =
        spec.process().as_ref().ok_or_else(|| RuntimeError::invalid("the OCI spec has no process"))?;
    let linux =
        spec.linux().as_ref().ok_or_else(|| RuntimeError::invalid("the OCI spec is not for Linux"))?;
    let mut actions = Vec::with_capacity(32);
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    // Devices and links go in front of the first volume, so that nothing is made in a volume.
    let default_until = mounts.iter().position(is_volume).unwrap_or(mounts.len());
    for mount in &mounts[..default_until] {
        actions.push(action(mount)?);
    }
    let devices = linux.devices().as_deref().unwrap_or_default();
    for one in devices {
        actions.push(Action::Step(device(one)?));
    }
    if !devices.is_empty() {
        for (path, to) in LINKS {
            actions.push(Action::Step(Step::Symlink { path: path.to_owned(), to: to.to_owned() }));
        }
    }
    for mount in &mounts[default_until..] {
        actions.push(action(mount)?);
    }
    let paths = |paths: &Option<Vec<String>>| -> Result<Vec<CString>, RuntimeError> {
        paths.iter().flatten().map(|path| text(path.as_bytes())).collect()
    };
    let mut namespaces = Namespaces::default();
    let mut user_namespace = None;
    for namespace in linux.namespaces().iter().flatten() {
        let origin = match namespace.path() {
            Some(path) => Origin::Join(path.clone()),
            None => Origin::New,
        };
        match namespace.typ() {
            LinuxNamespaceType::Pid => namespaces.pid = origin,
            LinuxNamespaceType::Network => namespaces.net = origin,
            LinuxNamespaceType::Ipc => namespaces.ipc = origin,
            LinuxNamespaceType::Uts => namespaces.uts = origin,
            LinuxNamespaceType::Cgroup => namespaces.cgroup = origin,
            LinuxNamespaceType::Mount if origin == Origin::New => {}
            LinuxNamespaceType::User => match (origin, ids(linux.uid_mappings(), linux.gid_mappings())?) {
                (Origin::Join(path), Some(ids)) => user_namespace = Some((path, ids)),
                _ => return Err(RuntimeError::invalid("a user namespace needs a file and its ids")),
            },
            other => {
                return Err(RuntimeError::invalid(format!(
                    "namespace {other:?} of the OCI spec is not supported"
                )));
            }
        }
    }
    let context = linux.mount_label().as_ref().map(|label| text(label.as_bytes())).transpose()?;
    if let Some(context) = &context {
        actions.iter_mut().for_each(|action| label_files(action, context));
    }
    let process_plan = process_plan(process)?;
    if let Some((_, ids)) = &user_namespace {
        check_ids(&process_plan.user, ids)?;
    }
    Ok(Draft {
        process: process_plan,
        actions,
        masked_paths: paths(linux.masked_paths())?,
        readonly_paths: paths(linux.readonly_paths())?,
        readonly_root: spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false),
        root_propagation: match linux.rootfs_propagation().as_deref() {
            None | Some("" | "private" | "rprivate") => None,
            Some("slave" | "rslave") => Some(Propagation::Slave),
            Some("shared" | "rshared") => Some(Propagation::Shared),
            Some("unbindable" | "runbindable") => Some(Propagation::Unbindable),
            Some(other) => {
                return Err(RuntimeError::invalid(format!("root propagation {other:?} is not known")));
            }
        },
        namespaces,
        user_namespace,
        oom_score_adj: process.oom_score_adj(),
        context,
    })
}

/// Gives a file system that has files of its own a context.
fn label_files(action: &mut Action, context: &CString) {
    if let Action::Step(Step::Filesystem { fstype, options, .. }) = action
        && [c"tmpfs", c"devpts"].contains(&fstype.as_c_str())
    {
        options.push(FsOption { key: c"context".to_owned(), value: Some(context.clone()) });
    }
}

/// The ids of a mapping that has one range from 0 on; `None` when there is no mapping.
fn ids(
    users: &Option<Vec<LinuxIdMapping>>,
    groups: &Option<Vec<LinuxIdMapping>>,
) -> Result<Option<UserNamespace>, RuntimeError> {
    let range = |list: &Option<Vec<LinuxIdMapping>>| match list.as_deref().unwrap_or_default() {
        [one] if one.container_id() == 0 => Ok(Some(IdRange { host: one.host_id(), length: one.size() })),
        [] => Ok(None),
        _ => Err(RuntimeError::invalid("ids can be mapped in one range that begins with 0")),
    };
    match (range(users)?, range(groups)?) {
        (Some(users), Some(groups)) => Ok(Some(UserNamespace { users, groups })),
        (None, None) => Ok(None),
        _ => Err(RuntimeError::invalid("users and groups can be mapped together only")),
    }
}

/// Refuses a user that the pod has no id for.
pub fn check_ids(user: &User, ids: &UserNamespace) -> Result<(), RuntimeError> {
    let groups = user.groups.iter().chain([&user.gid]).map(|id| ("group", *id, ids.groups));
    for (what, id, range) in groups.chain([("user", user.uid, ids.users)]) {
        if range.to_host(id).is_none() {
            return Err(RuntimeError::invalid(format!(
                "{what} {id} is not among the pod's ids 0 to {}: choose a lower one, or set hostUsers to true",
                range.length - 1
            )));
        }
    }
    Ok(())
}

const LINKS: [(&std::ffi::CStr, &std::ffi::CStr); 6] = [
    (c"/dev/ptmx", c"pts/ptmx"),
    (c"/dev/fd", c"/proc/self/fd"),
    (c"/dev/stdin", c"/proc/self/fd/0"),
    (c"/dev/stdout", c"/proc/self/fd/1"),
    (c"/dev/stderr", c"/proc/self/fd/2"),
    (c"/dev/core", c"/proc/kcore"),
];

/// Whether a mount is a volume, not one of the default ones (which come first).
fn is_volume(mount: &Mount) -> bool {
    let kind = mount.typ().as_deref().unwrap_or("bind");
    match kind {
        "bind" | "overlay" => mount.destination() != Path::new("/dev/shm"),
        "tmpfs" => mount.destination() != Path::new("/dev"),
        _ => false,
    }
}

/// A process as the keeper starts it, for containers and for execs.
pub fn process_plan(process: &Process) -> Result<ProcessPlan, RuntimeError> {
    let texts = |list: &Option<Vec<String>>| -> Result<Vec<CString>, RuntimeError> {
        list.iter().flatten().map(|one| text(one.as_bytes())).collect()
    };
    let set = |set: Option<&HashSet<Capability>>| -> u64 {
        set.into_iter().flatten().fold(0, |bits, one| bits | caps::bit_of(&one.to_string()).unwrap_or(0))
    };
    let sets = process.capabilities().as_ref();
    Ok(ProcessPlan {
        args: texts(process.args())?,
        env: texts(process.env())?,
        cwd: path(process.cwd())?,
        user: User {
            uid: process.user().uid(),
            gid: process.user().gid(),
            groups: process.user().additional_gids().clone().unwrap_or_default(),
            umask: process.user().umask(),
        },
        capabilities: Capabilities {
            bounding: set(sets.and_then(|sets| sets.bounding().as_ref())),
            effective: set(sets.and_then(|sets| sets.effective().as_ref())),
            permitted: set(sets.and_then(|sets| sets.permitted().as_ref())),
            ambient: set(sets.and_then(|sets| sets.ambient().as_ref())),
        },
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        seccomp: None,
        label: label(process)?,
        rlimits: process
            .rlimits()
            .iter()
            .flatten()
            .map(|limit| Rlimit { resource: resource(limit.typ()), soft: limit.soft(), hard: limit.hard() })
            .collect(),
    })
}

/// What the kernel is told for the program's confinement.
fn label(process: &Process) -> Result<Option<Label>, RuntimeError> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    Ok(match (given(process.apparmor_profile()), given(process.selinux_label())) {
        (None, None) => None,
        (Some(profile), None) => Some(Label::AppArmor(text(format!("exec {profile}").as_bytes())?)),
        (None, Some(context)) => Some(Label::Selinux(text(context.as_bytes())?)),
        (Some(_), Some(_)) => {
            return Err(RuntimeError::invalid(
                "a process can't have an AppArmor profile and an SELinux label",
            ));
        }
    })
}

/// Mount options sorted by what they do.
#[derive(Debug, Default)]
struct Options {
    set: u64,
    set_recursive: u64,
    recursive_bind: bool,
    propagation: Option<Propagation>,
    rest: Vec<String>,
}

fn options(mount: &Mount) -> Options {
    let mut sorted = Options::default();
    for option in mount.options().iter().flatten() {
        match option.as_str() {
            "ro" => sorted.set |= attr::RDONLY,
            "rro" => sorted.set_recursive |= attr::RDONLY,
            "nosuid" => sorted.set |= attr::NOSUID,
            "nodev" => sorted.set |= attr::NODEV,
            "noexec" => sorted.set |= attr::NOEXEC,
            "noatime" => sorted.set |= attr::NOATIME,
            "nodiratime" => sorted.set |= attr::NODIRATIME,
            "strictatime" => sorted.set |= attr::STRICTATIME,
            "rw" | "suid" | "dev" | "exec" | "relatime" | "bind" | "defaults" => {}
            "rbind" => sorted.recursive_bind = true,
            // Whether ids are mapped is told by the mapping; it goes as deep as the bind.
            "idmap" | "ridmap" => {}
            "private" | "rprivate" => sorted.propagation = Some(Propagation::Private),
            "slave" | "rslave" => sorted.propagation = Some(Propagation::Slave),
            "shared" | "rshared" => sorted.propagation = Some(Propagation::Shared),
            "unbindable" | "runbindable" => sorted.propagation = Some(Propagation::Unbindable),
            other => sorted.rest.push(other.to_owned()),
        }
    }
    sorted
}

/// What a mount of the spec comes to.
pub fn action(mount: &Mount) -> Result<Action, RuntimeError> {
    let target = path(mount.destination())?;
    let sorted = options(mount);
    let source = mount.source().clone().unwrap_or_default();
    match mount.typ().as_deref().unwrap_or("bind") {
        "bind" => {
            if let Some(unknown) = sorted.rest.first() {
                return Err(RuntimeError::invalid(format!(
                    "mount {:?}: option {unknown:?} is not known for a bind mount",
                    mount.destination()
                )));
            }
            Ok(Action::Bind(Bind {
                source,
                recursive: sorted.recursive_bind,
                set: sorted.set,
                set_recursive: sorted.set_recursive,
                propagation: sorted.propagation.unwrap_or(Propagation::Private),
                ids: ids(mount.uid_mappings(), mount.gid_mappings())?,
                target,
            }))
        }
        "overlay" => {
            let mut lower = Vec::new();
            let mut sub_path = None;
            for option in &sorted.rest {
                if let Some(layer) = option.strip_prefix("lowerdir+=") {
                    lower.push(PathBuf::from(layer));
                } else if let Some(path) = option.strip_prefix(SUB_PATH) {
                    sub_path = Some(PathBuf::from(path));
                } else {
                    return Err(RuntimeError::invalid(format!(
                        "mount {:?}: option {option:?} is not known for an image",
                        mount.destination()
                    )));
                }
            }
            Ok(Action::Image { lower, sub_path, set: sorted.set, target })
        }
        kind => {
            let options = sorted
                .rest
                .iter()
                .map(|option| {
                    Ok(match option.split_once('=') {
                        Some((key, value)) => {
                            FsOption { key: text(key.as_bytes())?, value: Some(text(value.as_bytes())?) }
                        }
                        None => FsOption { key: text(option.as_bytes())?, value: None },
                    })
                })
                .collect::<Result<Vec<_>, RuntimeError>>()?;
            Ok(Action::Step(Step::Filesystem {
                fstype: text(kind.as_bytes())?,
                source: Some(path(&source)?),
                options,
                attributes: sorted.set | sorted.set_recursive,
                target,
            }))
        }
    }
}

fn device(device: &LinuxDevice) -> Result<Step, RuntimeError> {
    let number = |number: i64| {
        u32::try_from(number)
            .map_err(|_| RuntimeError::invalid(format!("device number {number} is not possible")))
    };
    Ok(Step::Device {
        path: path(device.path())?,
        kind: match device.typ() {
            LinuxDeviceType::B => DeviceKind::Block,
            LinuxDeviceType::P => DeviceKind::Fifo,
            _ => DeviceKind::Char,
        },
        major: number(device.major())?,
        minor: number(device.minor())?,
        mode: device.file_mode().unwrap_or(0o666),
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

fn resource(typ: PosixRlimitType) -> u32 {
    use PosixRlimitType as T;
    match typ {
        T::RlimitCpu => 0,
        T::RlimitFsize => 1,
        T::RlimitData => 2,
        T::RlimitStack => 3,
        T::RlimitCore => 4,
        T::RlimitRss => 5,
        T::RlimitNproc => 6,
        T::RlimitNofile => 7,
        T::RlimitMemlock => 8,
        T::RlimitAs => 9,
        T::RlimitLocks => 10,
        T::RlimitSigpending => 11,
        T::RlimitMsgqueue => 12,
        T::RlimitNice => 13,
        T::RlimitRtprio => 14,
        T::RlimitRttime => 15,
    }
}

/// Text for the kernel; a NUL byte in it is refused.
pub fn text(bytes: &[u8]) -> Result<CString, RuntimeError> {
    CString::new(bytes).map_err(|_| {
        RuntimeError::invalid(format!("{:?} has a NUL byte in it: remove it", String::from_utf8_lossy(bytes)))
    })
}

fn path(path: &Path) -> Result<CString, RuntimeError> {
    use std::os::unix::ffi::OsStrExt;
    text(path.as_os_str().as_bytes())
}
