//! A draft's descriptors are opened, and it becomes a launch plan. Blocks: call it from a blocking thread.
//!
//! Guarantees: sources are opened without following magic links; what is mounted is what was opened, whatever
//! happens to the path meanwhile.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use keeper::plan::{
    Fds, LaunchPlan, Namespace, Namespaces, Propagation, Rootfs, Seccomp, Stdio, Step, TargetKind,
    UserNamespace,
};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use sys::mount::attr;

use crate::error::RuntimeError;
use crate::idmap;
use crate::overlay::{self, Look};
use crate::plan::{Action, Bind, Draft, Origin, text};
use crate::seccomp::{Filter, Instruction};

/// Most descriptors of a plan: the keeper sends them on with a few of its own.
const DESCRIPTORS: usize = keeper::protocol::MAX_FDS - 8;

/// What a plan needs besides the draft.
pub struct Parts<'a> {
    /// The container.
    pub id: &'a str,
    /// Its root file system, detached.
    pub rootfs: OwnedFd,
    /// Its cgroup.
    pub cgroup: OwnedFd,
    /// Its log file.
    pub log: Option<OwnedFd>,
    /// Its streams.
    pub stdio: Stdio,
    /// Whether input ends with the first attach.
    pub stdin_once: bool,
    /// Its filter.
    pub seccomp: Option<Filter>,
    /// For mounts of a moment.
    pub scratch: &'a Path,
}

/// Opens everything.
pub fn launch(draft: Draft, parts: Parts<'_>) -> Result<(LaunchPlan, Fds), RuntimeError> {
    let mut fds = Fds::default();
    let rootfs = fds.add(parts.rootfs);
    let cgroup = fds.add(parts.cgroup);
    let log = parts.log.map(|log| fds.add(log));
    let user = Users::open(draft.user_namespace)?;
    let mut actions = draft.actions;
    let mut dev = match &user {
        Some(user) => idmap::devices(&mut actions, user.ids)?,
        None => None,
    };
    let mut steps = Vec::with_capacity(actions.len() + 1);
    for (index, action) in actions.into_iter().enumerate() {
        if let Some((_, dev)) = dev.take_if(|(at, _)| *at == index) {
            let target = c"/dev".to_owned();
            steps.push(Step::Attach { fd: fds.add(dev), target, kind: TargetKind::Directory });
        }
        steps.push(match action {
            Action::Step(step) => step,
            Action::Bind(bind) => {
                let (fd, kind) = open_bind(&bind, user.as_ref())?;
                Step::Attach { fd: fds.add(fd), target: bind.target, kind }
            }
            Action::Image { lower, sub_path, set, target } => {
                let ids = user.as_ref().map(|user| user.fd.as_fd());
                let look = Look { ids, context: draft.context.as_deref() };
                let image = open_image(&lower, sub_path.as_deref(), set, look, parts.scratch)?;
                Step::Attach { fd: fds.add(image), target, kind: TargetKind::Directory }
            }
        });
    }
    let mut namespace = |origin: &Origin| -> Result<Namespace, RuntimeError> {
        Ok(match origin {
            Origin::Host => Namespace::Host,
            Origin::New => Namespace::New,
            Origin::Join(path) => {
                let fd = sys::namespace::open(path).map_err(|errno| {
                    RuntimeError::io(format!("open namespace {}", path.display()))(errno.into())
                })?;
                Namespace::Join(fds.add(fd))
            }
        })
    };
    // The one whose processes are shared shows them in its own /proc.
    let procfs_of = match &draft.namespaces.pid {
        Origin::Join(path) => match namespace(&Origin::Join(path.with_file_name("mnt")))? {
            Namespace::Join(index) => Some(index),
            Namespace::Host | Namespace::New => None,
        },
        Origin::Host | Origin::New => None,
    };
    let namespaces = Namespaces {
        pid: namespace(&draft.namespaces.pid)?,
        net: namespace(&draft.namespaces.net)?,
        ipc: namespace(&draft.namespaces.ipc)?,
        uts: namespace(&draft.namespaces.uts)?,
        cgroup: namespace(&draft.namespaces.cgroup)?,
    };
    if fds.len() > DESCRIPTORS {
        return Err(RuntimeError::invalid(format!(
            "container {} needs {} descriptors for its mounts, {} are possible: use fewer mounts",
            parts.id,
            fds.len(),
            DESCRIPTORS
        )));
    }
    let mut process = draft.process;
    let user_namespace = match user {
        Some(user) => Some(UserNamespace {
            stream_owner: user.ids.users.to_host(process.user.uid).unwrap_or(user.ids.users.host),
            fd: fds.add(user.fd),
        }),
        None => None,
    };
    process.seccomp = parts.seccomp.map(|filter| Seccomp { program: bytes(&filter), flags: 0 });
    let plan = LaunchPlan {
        id: parts.id.to_owned(),
        process,
        rootfs: Rootfs { fd: rootfs, readonly: draft.readonly_root, propagation: draft.root_propagation },
        steps,
        masked_paths: draft.masked_paths,
        readonly_paths: draft.readonly_paths,
        namespaces,
        procfs_of,
        user_namespace,
        cgroup: Some(cgroup),
        hostname: None,
        domainname: None,
        sysctls: Vec::new(),
        oom_score_adj: draft.oom_score_adj,
        stdio: parts.stdio,
        stdin_once: parts.stdin_once,
        log,
    };
    Ok((plan, fds))
}

/// The pod's user namespace.
struct Users {
    fd: OwnedFd,
    ids: crate::spec::UserNamespace,
}

impl Users {
    fn open(
        named: Option<(std::path::PathBuf, crate::spec::UserNamespace)>,
    ) -> Result<Option<Users>, RuntimeError> {
        named.map(|(path, ids)| Ok(Users { fd: idmap::open(&path)?, ids })).transpose()
    }
}

/// A filter as the kernel reads it.
pub fn bytes(filter: &[Instruction]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(filter.len() * 8);
    for one in filter {
        bytes.extend(one.code.to_ne_bytes());
        bytes.extend([one.jt, one.jf]);
        bytes.extend(one.k.to_ne_bytes());
    }
    bytes
}

fn open_bind(bind: &Bind, user: Option<&Users>) -> Result<(OwnedFd, TargetKind), RuntimeError> {
    let step = |what: &str| {
        format!("{what} {} for the mount at {}", bind.source.display(), bind.target.to_string_lossy())
    };
    let source = sys::fs::open_resolve(
        rustix::fs::CWD,
        bind.source.as_path(),
        OFlags::PATH,
        Mode::empty(),
        ResolveFlags::NO_MAGICLINKS,
    )
    .map_err(|errno| RuntimeError::io(step("open"))(errno.into()))?;
    let stat = rustix::fs::fstat(&source).map_err(|errno| RuntimeError::io(step("look at"))(errno.into()))?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => TargetKind::Directory,
        _ => TargetKind::File,
    };
    let tree =
        copy(&source, bind).map_err(|errno| RuntimeError::io(step("copy the mount of"))(errno.into()))?;
    if let Some(ids) = bind.ids {
        let what = bind.source.to_string_lossy();
        match user.filter(|user| user.ids == ids) {
            Some(user) => idmap::map(&tree, bind.recursive, &user.fd, &what)?,
            None => idmap::map(&tree, bind.recursive, &idmap::make(ids)?, &what)?,
        }
    }
    Ok((tree, kind))
}

fn copy(source: &OwnedFd, bind: &Bind) -> sys::Result<OwnedFd> {
    let tree = sys::mount::clone_tree(source, c"", bind.recursive)?;
    // A copy of a shared mount is a peer of it until told otherwise.
    sys::mount::set_attributes(&tree, true, bind.set_recursive, 0, Some(propagation(bind.propagation)))?;
    if bind.set != 0 {
        let atime = attr::ATIME_MASK;
        let clear = if bind.set & atime != 0 { atime } else { 0 };
        sys::mount::set_attributes(&tree, false, bind.set, clear, None)?;
    }
    Ok(tree)
}

fn propagation(wanted: Propagation) -> sys::mount::Propagation {
    match wanted {
        Propagation::Private => sys::mount::Propagation::Private,
        Propagation::Slave => sys::mount::Propagation::Slave,
        Propagation::Shared => sys::mount::Propagation::Shared,
        Propagation::Unbindable => sys::mount::Propagation::Unbindable,
    }
}

/// Mounts an image volume, detached.
pub fn open_image(
    lower: &[std::path::PathBuf],
    sub_path: Option<&Path>,
    set: u64,
    look: Look<'_>,
    scratch: &Path,
) -> Result<OwnedFd, RuntimeError> {
    let image = overlay::mount(lower, None, look, scratch)?;
    let step = |what: &str| RuntimeError::io(format!("{what} of an image volume"));
    let image = match sub_path {
        None => image,
        Some(path) => {
            // A directory of a detached mount cannot be copied before Linux 6.15, so mount, copy and unmount.
            let place = scratch.join(format!("image-{}", uuid::Uuid::new_v4()));
            std::fs::create_dir(&place).map_err(step("make a place for the root"))?;
            let copied = sys::mount::attach_at(&image, place.as_path()).and_then(|()| {
                let inner = text_path(path)
                    .and_then(|path| sys::fs::open_in_root(&image, path.as_c_str(), OFlags::PATH))
                    .and_then(|dir| sys::mount::clone_tree(&dir, c"", false));
                sys::mount::unmount(place.as_path(), sys::mount::UnmountFlags::DETACH)?;
                inner
            });
            let _ = std::fs::remove_dir(&place);
            copied.map_err(|errno| step(&format!("open {}", path.display()))(errno.into()))?
        }
    };
    sys::mount::set_attributes(&image, true, attr::RDONLY | set, 0, Some(sys::mount::Propagation::Private))
        .map_err(|errno| step("set the attributes")(errno.into()))?;
    Ok(image)
}

fn text_path(path: &Path) -> sys::Result<std::ffi::CString> {
    use std::os::unix::ffi::OsStrExt;
    text(path.as_os_str().as_bytes()).map_err(|_| sys::Errno::INVAL)
}

/// Opens a log file for appending; makes it and its directory when missing. A symbolic link there is refused.
pub fn open_log(path: &Path) -> Result<OwnedFd, RuntimeError> {
    let step = || format!("open log file {}", path.display());
    if !path.is_absolute() {
        return Err(RuntimeError::invalid(format!("log path {path:?} is not absolute")));
    }
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o640);
    let opened = match rustix::fs::open(path, flags, mode) {
        Err(sys::Errno::NOENT) => {
            let parent = path.parent().unwrap_or(Path::new("/"));
            std::fs::create_dir_all(parent).map_err(RuntimeError::io(step()))?;
            rustix::fs::open(path, flags, mode)
        }
        other => other,
    };
    let fd = opened.map_err(|errno| RuntimeError::io(step())(errno.into()))?;
    let stat = rustix::fs::fstat(fd.as_fd()).map_err(|errno| RuntimeError::io(step())(errno.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(RuntimeError::invalid(format!("log path {} is not a regular file", path.display())));
    }
    Ok(fd)
}
