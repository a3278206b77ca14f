//! Pods with users of their own: what is allowed, whether this kernel can, and `/dev` for them.
//!
//! Layers of an image and volumes are shown with the pod's ids by mapped mounts, so that nothing on the disk is
//! changed. The writable layer is not mapped: what a container writes has the pod's unprivileged ids on the disk.
//!
//! Guarantees: no id of a pod is the node's root; device nodes are the node's own, made by the daemon.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use keeper::plan::{DeviceKind, Step};
use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid};
use sys::mount::FsOption;
use sys::namespace::Kind;

use crate::error::RuntimeError;
use crate::overlay::{self, Look, Writable};
use crate::plan::Action;
use crate::spec::{IdRange, NamespaceMode, SandboxSpec, UserNamespace};

/// Fewest ids of a pod: images use those below 65536, nobody (65534) among them.
const FEWEST: u32 = 65_536;

impl From<IdRange> for sys::namespace::IdRange {
    fn from(range: IdRange) -> Self {
        sys::namespace::IdRange { host: range.host, length: range.length }
    }
}

/// Refuses what cannot be or would be no protection.
pub fn check(spec: &SandboxSpec) -> Result<(), RuntimeError> {
    let Some(ids) = &spec.user_namespace else { return Ok(()) };
    for (what, range) in [("user", ids.users), ("group", ids.groups)] {
        let refuse = |why: String| {
            Err(RuntimeError::invalid(format!(
                "{what} ids {} + {} of sandbox {} are refused: {why}",
                range.host, range.length, spec.id
            )))
        };
        if range.length < FEWEST {
            return refuse(format!("a pod needs {FEWEST} of them"));
        }
        if range.host == 0 {
            return refuse(
                "0 is the node's root, so there would be no protection: use a higher range".into(),
            );
        }
        if range.host.checked_add(range.length).is_none_or(|end| end == u32::MAX) {
            return refuse("they go beyond the largest id".into());
        }
    }
    let namespaces = &spec.namespaces;
    for (name, mode) in [
        ("network", &namespaces.net),
        ("ipc", &namespaces.ipc),
        ("uts", &namespaces.uts),
        ("pid", &namespaces.pid),
    ] {
        if *mode == NamespaceMode::Node {
            return Err(RuntimeError::invalid(format!(
                "sandbox {} has users of its own and the node's {name} namespace: a pod without hostUsers can use no \
                 other namespace of the node",
                spec.id
            )));
        }
    }
    Ok(())
}

/// A user namespace for these ids, for mounts that are mapped otherwise than their pod.
pub fn make(ids: UserNamespace) -> Result<OwnedFd, RuntimeError> {
    sys::namespace::create_user(ids.users.into(), ids.groups.into(), &[]).map(|(user, _)| user).map_err(
        |error| RuntimeError::io("make a user namespace for a mapped mount")(std::io::Error::other(error)),
    )
}

/// Whether pods with users of their own can be made: tries, with an overlay of mapped layers beneath `data`. The
/// error says what is missing.
pub fn probe(data: &Path, scratch: &Path) -> Result<(), String> {
    let range = sys::namespace::IdRange { host: 65_536, length: FEWEST };
    let (user, _) =
        sys::namespace::create_user(range, range, &[Kind::Net, Kind::Ipc, Kind::Uts]).map_err(|error| {
            format!(
                "user namespaces cannot be made ({}): see user.max_user_namespaces",
                crate::core::chain(&error)
            )
        })?;
    let place = data.join(format!(".probe-{}", uuid::Uuid::new_v4()));
    let tried = try_overlay(&place, &user, scratch);
    // Empty directories in a place of our own; a later start would clean up nothing worse.
    let _ = std::fs::remove_dir_all(&place);
    tried.map_err(|error| {
        format!(
            "layers cannot be mapped ({}): Linux 5.19 and a file system such as ext4 or xfs are needed",
            crate::core::chain(&error)
        )
    })
}

fn try_overlay(place: &Path, user: &OwnedFd, scratch: &Path) -> Result<(), RuntimeError> {
    let paths = ["one", "two", "upper", "work"].map(|name| place.join(name));
    for path in &paths {
        std::fs::create_dir_all(path).map_err(RuntimeError::io(format!("make {}", path.display())))?;
    }
    let [one, two, upper, work] = paths;
    std::fs::write(one.join("file"), "").map_err(RuntimeError::io("write a file"))?;
    let look = Look { ids: Some(user.as_fd()), context: None };
    let root = overlay::mount(&[one, two], Some(&Writable { upper, work }), look, scratch)?;
    let stat = rustix::fs::statat(&root, c"file", AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| RuntimeError::io("look at a file of the overlay")(errno.into()))?;
    if stat.st_uid == 65_536 { Ok(()) } else { Err(RuntimeError::invalid("its files keep their owner")) }
}

/// Takes `/dev` and its devices out of the actions and makes them: a user namespace's root may make no device
/// nodes. Gives the detached mount and its place among the actions that are left, if the container has a `/dev` of
/// its own. Default devices belong to the pod's
/// root; devices of the node keep their owner, so that only their mode opens them.
pub fn devices(
    actions: &mut Vec<Action>,
    ids: UserNamespace,
) -> Result<Option<(usize, OwnedFd)>, RuntimeError> {
    let dev = actions.iter().position(|action| {
        matches!(action, Action::Step(Step::Filesystem { fstype, target, .. })
            if fstype.as_c_str() == c"tmpfs" && target.as_c_str() == c"/dev")
    });
    let Some(at) = dev else { return Ok(None) };
    let Action::Step(Step::Filesystem { options, attributes, .. }) = actions.remove(at) else {
        return Ok(None);
    };
    let step = |what: String| move |errno: sys::Errno| RuntimeError::io(what)(errno.into());
    let owner = |id: u32| CString::new(id.to_string()).expect("a number has no NUL byte");
    let (uid, gid) = (owner(ids.users.host), owner(ids.groups.host));
    let mut all: Vec<FsOption<'_>> = options
        .iter()
        .map(|option| match &option.value {
            Some(value) => FsOption::Value(&option.key, value),
            None => FsOption::Flag(&option.key),
        })
        .collect();
    all.extend([FsOption::Value(c"uid", &uid), FsOption::Value(c"gid", &gid)]);
    let mount =
        sys::mount::create(c"tmpfs", Some(c"tmpfs"), &all, attributes).map_err(step("mount /dev".into()))?;
    let mut made = Ok(());
    actions.retain(|action| match action {
        Action::Step(device @ Step::Device { .. }) => {
            if made.is_ok() {
                made = node(&mount, device, ids);
            }
            false
        }
        _ => true,
    });
    made?;
    Ok(Some((at, mount)))
}

fn node(dev: &OwnedFd, device: &Step, ids: UserNamespace) -> Result<(), RuntimeError> {
    let Step::Device { path, kind, major, minor, mode, uid, gid } = device else { return Ok(()) };
    let text = path.to_string_lossy().into_owned();
    let full = Path::new(std::ffi::OsStr::from_bytes(path.to_bytes()));
    let Ok(below) = full.strip_prefix("/dev") else {
        return Err(RuntimeError::invalid(format!(
            "device {text} is refused: in a pod with users of its own devices are possible below /dev only"
        )));
    };
    let step = |errno: sys::Errno| RuntimeError::io(format!("make device {text}"))(errno.into());
    let root = (ids.users.host, ids.groups.host);
    if let Some(parent) = below.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        let mut at = std::path::PathBuf::new();
        for part in parent.components() {
            at.push(part);
            match rustix::fs::mkdirat(dev, &at, Mode::from_raw_mode(0o755)) {
                Ok(()) => own(dev, &at, 0o755, root).map_err(step)?,
                Err(sys::Errno::EXIST) => {}
                Err(errno) => return Err(step(errno)),
            }
        }
    }
    let file_type = match kind {
        DeviceKind::Char => FileType::CharacterDevice,
        DeviceKind::Block => FileType::BlockDevice,
        DeviceKind::Fifo => FileType::Fifo,
    };
    let owner = if crate::oci::is_default_device(full) { root } else { (*uid, *gid) };
    rustix::fs::mknodat(
        dev,
        below,
        file_type,
        Mode::from_raw_mode(*mode),
        rustix::fs::makedev(*major, *minor),
    )
    .and_then(|()| own(dev, below, *mode, owner))
    .map_err(step)
}

/// Owner and permissions, whatever this process' umask is.
fn own(dir: &OwnedFd, path: &Path, mode: u32, (uid, gid): (u32, u32)) -> sys::Result<()> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(dir, path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), flags)?;
    rustix::fs::chmodat(dir, path, Mode::from_raw_mode(mode & 0o7777), AtFlags::empty())
}

/// Lets a detached mount show its files with other ids.
pub fn map(mount: &OwnedFd, recursive: bool, user: impl AsFd, what: &str) -> Result<(), RuntimeError> {
    match sys::mount::map_ids(mount, recursive, user) {
        Ok(()) => Ok(()),
        Err(sys::Errno::INVAL) => Err(RuntimeError::invalid(format!(
            "{what} cannot be shown with the pod's ids: its file system (or one mounted below it) has no mapped mounts \
             in this kernel; use another file system or a newer kernel, or set hostUsers to true"
        ))),
        Err(errno) => Err(RuntimeError::io(format!("map the ids of {what}"))(errno.into())),
    }
}

/// Opens a pinned user namespace.
pub fn open(path: &Path) -> Result<OwnedFd, RuntimeError> {
    sys::namespace::open(path)
        .map_err(|errno| RuntimeError::io(format!("open namespace {}", path.display()))(errno.into()))
}
