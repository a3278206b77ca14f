//! The child's mounts: entering the root, steps, terminal, hidden paths.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use sys::mount::{self, attr};
use sys::{Errno, Result as SysResult};

use super::super::report::{At, Op, Stage, Trouble};
use super::{Job, paths};
use crate::plan::{DeviceKind, FsOption, LaunchPlan, Propagation, Step, TargetKind};

const DEVPTS_MAGIC: i64 = 0x1cd1;

type Result<T> = std::result::Result<T, Trouble>;

/// Attaches the root filesystem, makes it the root, and drops the old one. Returns the new root.
pub fn enter(job: &Job<'_>, plan: &LaunchPlan) -> Result<OwnedFd> {
    let rootfs = job.fd(plan.rootfs.fd);
    let place = match plan.user_namespace {
        None => super::super::isolate::ROOTFS,
        Some(_) => super::users::STAGE,
    };
    mount::attach_at(rootfs, place).at(Stage::Rootfs, Op::MoveMount)?;
    mount::pivot(rootfs).at(Stage::Rootfs, Op::PivotRoot)?;
    super::open_root()
}

/// Writes the kernel parameters through a procfs of the container's own namespaces.
pub fn write_sysctls(plan: &LaunchPlan) -> Result<()> {
    if plan.sysctls.is_empty() {
        return Ok(());
    }
    let procfs = sys::sysctl::Procfs::open().at(Stage::Sysctl, Op::Fsmount)?;
    for (index, sysctl) in plan.sysctls.iter().enumerate() {
        let place = |errno| Trouble { stage: Stage::Sysctl, op: Op::Write, index: index as u32, errno };
        let mut buffer = [0; paths::MAX];
        let path =
            paths::join(b"sys", sysctl.path.to_bytes(), &mut buffer).ok_or(place(Errno::NAMETOOLONG))?;
        procfs.write(path, &sysctl.value).map_err(place)?;
    }
    Ok(())
}

/// Carries out the plan's steps in order.
pub fn carry_out_steps(
    job: &Job<'_>,
    plan: &LaunchPlan,
    root: BorrowedFd<'_>,
    early: &mut Early,
) -> Result<()> {
    for (index, step) in plan.steps.iter().enumerate() {
        let made = early.take(index);
        carry_out(job, step, root, made).map_err(|(op, errno)| Trouble {
            stage: Stage::Step,
            op,
            index: index as u32,
            errno,
        })?;
    }
    Ok(())
}

/// Filesystems that a user namespace can mount only before the old root is gone, by the number of their step.
#[derive(Debug, Default)]
pub struct Early([Option<(usize, OwnedFd)>; 4]);

impl Early {
    /// Makes them, for a container with a user namespace. `procfs` is the one of a pid namespace that is joined.
    pub fn make(plan: &LaunchPlan, mut procfs: Option<OwnedFd>) -> Result<Early> {
        let mut early = Early::default();
        if plan.user_namespace.is_none() && procfs.is_none() {
            return Ok(early);
        }
        let mut places = early.0.iter_mut();
        for (index, step) in plan.steps.iter().enumerate() {
            let Step::Filesystem { fstype, source, options, attributes, .. } = step else { continue };
            if ![c"proc", c"sysfs"].contains(&fstype.as_c_str()) {
                continue;
            }
            let failed = |(op, errno)| Trouble { stage: Stage::Step, op, index: index as u32, errno };
            let place = places.next().ok_or((Op::Check, Errno::TOOBIG)).map_err(failed)?;
            let found = if fstype.as_c_str() == c"proc" { procfs.take() } else { None };
            let mounted = match found {
                Some(found) => super::procfs::adapt(found, *attributes).map_err(failed)?,
                None => filesystem(fstype, source.as_deref(), options, *attributes).map_err(failed)?,
            };
            *place = Some((index, mounted));
        }
        Ok(early)
    }

    fn take(&mut self, step: usize) -> Option<OwnedFd> {
        let found = self.0.iter_mut().find(|one| one.as_ref().is_some_and(|(index, _)| *index == step))?;
        found.take().map(|(_, mounted)| mounted)
    }
}

/// Names the call of an error; the step's number is added by the caller.
trait By<T> {
    fn by(self, op: Op) -> std::result::Result<T, (Op, Errno)>;
}

impl<T> By<T> for SysResult<T> {
    fn by(self, op: Op) -> std::result::Result<T, (Op, Errno)> {
        self.map_err(|errno| (op, errno))
    }
}

fn carry_out(
    job: &Job<'_>,
    step: &Step,
    root: BorrowedFd<'_>,
    made: Option<OwnedFd>,
) -> std::result::Result<(), (Op, Errno)> {
    match step {
        Step::Attach { fd, target, kind } => {
            let place = paths::ensure(root, target, *kind, false).by(Op::Open)?;
            may_cover(place.as_fd(), target, job.fd(*fd)).by(Op::Check)?;
            mount::attach(job.fd(*fd), &place).by(Op::MoveMount)
        }
        Step::Filesystem { fstype, source, options, attributes, target } => {
            let strict = [c"proc", c"sysfs", c"cgroup2"].contains(&fstype.as_c_str());
            let place = paths::ensure(root, target, TargetKind::Directory, strict).by(Op::Open)?;
            let mounted = match made {
                Some(mounted) => mounted,
                None => filesystem(fstype, source.as_deref(), options, *attributes)?,
            };
            may_cover(place.as_fd(), target, mounted.as_fd()).by(Op::Check)?;
            mount::attach(&mounted, &place).by(Op::MoveMount)
        }
        Step::Attributes { target, recursive, set, clear, propagation } => {
            let target = paths::open(root, target, OFlags::PATH, false).by(Op::Open)?;
            mount::set_attributes(&target, *recursive, *set, *clear, propagation.map(mount_propagation))
                .by(Op::MountSetattr)
        }
        Step::Directory { path, mode } => {
            paths::ensure_mode(root, path, TargetKind::Directory, false, *mode).map(drop).by(Op::Mkdir)
        }
        Step::Device { path, kind, major, minor, mode, uid, gid } => {
            let (parent, name) = paths::ensure_parent(root, path).by(Op::Open)?;
            device(parent.as_fd(), name, *kind, rustix::fs::makedev(*major, *minor), *mode, (*uid, *gid))
        }
        Step::Symlink { path, to } => {
            let (parent, name) = paths::ensure_parent(root, path).by(Op::Open)?;
            match paths::with_name(name, |name| rustix::fs::symlinkat(to.as_c_str(), &parent, name)) {
                Err(Errno::EXIST) => Ok(()),
                other => other.by(Op::Symlink),
            }
        }
    }
}

/// Files of procfs that a mount may cover, as lxcfs does it.
const PROC_FILES: [&CStr; 9] = [
    c"/proc/cpuinfo",
    c"/proc/diskstats",
    c"/proc/loadavg",
    c"/proc/meminfo",
    c"/proc/net/dev",
    c"/proc/slabinfo",
    c"/proc/stat",
    c"/proc/swaps",
    c"/proc/uptime",
];

/// Refuses (`EPERM`) to cover procfs, wherever a link of the image led: what looks like procfs must be procfs.
fn may_cover(place: BorrowedFd<'_>, target: &CStr, mount: BorrowedFd<'_>) -> SysResult<()> {
    let good = !paths::is_procfs(place) || PROC_FILES.contains(&target) || paths::is_procfs(mount);
    if good { Ok(()) } else { Err(Errno::PERM) }
}

fn filesystem(
    fstype: &CStr,
    source: Option<&CStr>,
    options: &[FsOption],
    attributes: u64,
) -> std::result::Result<OwnedFd, (Op, Errno)> {
    let context = mount::open_context(fstype).by(Op::Fsopen)?;
    mount::fill(&context, source, &[]).by(Op::Fsconfig)?;
    for option in options {
        match &option.value {
            Some(value) => {
                rustix::mount::fsconfig_set_string(&context, option.key.as_c_str(), value.as_c_str())
            }
            None => rustix::mount::fsconfig_set_flag(&context, option.key.as_c_str()),
        }
        .by(Op::Fsconfig)?;
    }
    mount::finish(&context, attributes).by(Op::Fsmount)
}

fn device(
    parent: BorrowedFd<'_>,
    name: &[u8],
    kind: DeviceKind,
    device: u64,
    mode: u32,
    owner: (u32, u32),
) -> std::result::Result<(), (Op, Errno)> {
    let file_type = match kind {
        DeviceKind::Char => FileType::CharacterDevice,
        DeviceKind::Block => FileType::BlockDevice,
        DeviceKind::Fifo => FileType::Fifo,
    };
    paths::with_name(name, |name| {
        match rustix::fs::mknodat(parent, name, file_type, Mode::from_raw_mode(mode), device) {
            Err(Errno::EXIST) => {
                let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
                let stat = rustix::fs::statat(parent, name, flags)?;
                let same = FileType::from_raw_mode(stat.st_mode) == file_type
                    && (kind == DeviceKind::Fifo || stat.st_rdev == device);
                if same { Ok(()) } else { Err(Errno::EXIST) }
            }
            other => other,
        }
    })
    .by(Op::Mknod)?;
    if owner == (0, 0) {
        return Ok(());
    }
    let (uid, gid) = (rustix::process::Uid::from_raw(owner.0), rustix::process::Gid::from_raw(owner.1));
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    paths::with_name(name, |name| rustix::fs::chownat(parent, name, Some(uid), Some(gid), flags))
        .by(Op::Chown)
}

pub(super) fn mount_propagation(propagation: Propagation) -> mount::Propagation {
    match propagation {
        Propagation::Private => mount::Propagation::Private,
        Propagation::Slave => mount::Propagation::Slave,
        Propagation::Shared => mount::Propagation::Shared,
        Propagation::Unbindable => mount::Propagation::Unbindable,
    }
}

/// Finds the container's `/dev/null` (`O_PATH`) if it is the null device, else fails with `ENODEV`.
/// Nothing else is ever opened: another device or a pipe might act or wait on it.
pub fn find_null(root: BorrowedFd<'_>) -> SysResult<OwnedFd> {
    let null = paths::open(root, c"/dev/null", OFlags::PATH | OFlags::NOFOLLOW, true)?;
    let stat = rustix::fs::fstat(&null)?;
    let real =
        FileType::from_raw_mode(stat.st_mode).is_char_device() && stat.st_rdev == rustix::fs::makedev(1, 3);
    if real { Ok(null) } else { Err(Errno::NODEV) }
}

/// Makes a terminal in the container's devpts, without trusting any name below it.
pub fn make_terminal(root: BorrowedFd<'_>, columns: u16, rows: u16) -> Result<(OwnedFd, OwnedFd)> {
    let devpts = paths::open(root, c"/dev/pts", OFlags::PATH | OFlags::DIRECTORY, true)
        .at(Stage::Console, Op::Open)?;
    #[expect(clippy::unnecessary_cast, reason = "the type differs between architectures")]
    let is_devpts = rustix::fs::fstatfs(&devpts).is_ok_and(|s| s.f_type as i64 == DEVPTS_MAGIC);
    if !is_devpts {
        return Err(Trouble { stage: Stage::Console, op: Op::Check, index: 0, errno: Errno::NODEV });
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let master = rustix::fs::openat(&devpts, c"ptmx", flags, Mode::empty()).at(Stage::Console, Op::Open)?;
    rustix::pty::unlockpt(&master).at(Stage::Console, Op::Ioctl)?;
    let slave = sys::pty::peer(&master).at(Stage::Console, Op::Ioctl)?;
    if (columns, rows) != (0, 0) {
        sys::pty::resize(&master, columns, rows).at(Stage::Console, Op::Ioctl)?;
    }
    Ok((master, slave))
}

/// Binds the terminal on `/dev/console`, by its descriptor.
pub fn bind_console(root: BorrowedFd<'_>, slave: BorrowedFd<'_>) -> Result<()> {
    let target = paths::ensure(root, c"/dev/console", TargetKind::File, true).at(Stage::Console, Op::Open)?;
    let bound = mount::clone_tree(slave, c"", false).at(Stage::Console, Op::OpenTree)?;
    mount::attach(&bound, &target).at(Stage::Console, Op::MoveMount)
}

/// Masks and write-protects paths; those that do not exist are skipped.
pub fn hide_paths(plan: &LaunchPlan, root: BorrowedFd<'_>) -> Result<()> {
    for (index, path) in plan.readonly_paths.iter().enumerate() {
        write_protect(root, path).map_err(|(op, errno)| Trouble {
            stage: Stage::Readonly,
            op,
            index: index as u32,
            errno,
        })?;
    }
    let mut empty = None;
    for (index, path) in plan.masked_paths.iter().enumerate() {
        mask(root, path, &mut empty).map_err(|(op, errno)| Trouble {
            stage: Stage::Masked,
            op,
            index: index as u32,
            errno,
        })?;
    }
    Ok(())
}

fn write_protect(root: BorrowedFd<'_>, path: &CStr) -> std::result::Result<(), (Op, Errno)> {
    let target = match paths::open(root, path, OFlags::PATH, false) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        other => other.by(Op::Open)?,
    };
    let bound = mount::clone_tree(&target, c"", true).by(Op::OpenTree)?;
    mount::set_attributes(&bound, true, attr::RDONLY, 0, None).by(Op::MountSetattr)?;
    mount::attach(&bound, &target).by(Op::MoveMount)
}

/// Hides a path. `empty` is the attached empty tmpfs of an earlier directory, which later ones share.
fn mask(
    root: BorrowedFd<'_>,
    path: &CStr,
    empty: &mut Option<OwnedFd>,
) -> std::result::Result<(), (Op, Errno)> {
    let target = match paths::open(root, path, OFlags::PATH, false) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        other => other.by(Op::Open)?,
    };
    let stat = rustix::fs::fstat(&target).by(Op::Open)?;
    if !FileType::from_raw_mode(stat.st_mode).is_dir() {
        let null = find_null(root).by(Op::Open)?;
        let bound = mount::clone_tree(&null, c"", false).by(Op::OpenTree)?;
        mount::set_attributes(&bound, false, attr::RDONLY, 0, None).by(Op::MountSetattr)?;
        return mount::attach(&bound, &target).by(Op::MoveMount);
    }
    match empty {
        Some(first) => {
            let copy = mount::clone_tree(&*first, c"", false).by(Op::OpenTree)?;
            mount::attach(&copy, &target).by(Op::MoveMount)
        }
        None => {
            let attributes = attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC;
            let context = mount::open_context(c"tmpfs").by(Op::Fsopen)?;
            for (key, value) in [(c"size", c"0"), (c"nr_inodes", c"1"), (c"mode", c"555")] {
                // Limits of a filesystem nobody can write to: welcome, not needed.
                let _ = rustix::mount::fsconfig_set_string(&context, key, value);
            }
            let mounted = mount::finish(&context, attributes).by(Op::Fsmount)?;
            mount::attach(&mounted, &target).by(Op::MoveMount)?;
            *empty = Some(mounted);
            Ok(())
        }
    }
}

/// What is done to the root mount when everything in it is in place.
pub fn finish(plan: &LaunchPlan, root: BorrowedFd<'_>) -> Result<()> {
    let propagation = plan.rootfs.propagation.map(mount_propagation);
    let set = if plan.rootfs.readonly { attr::RDONLY } else { 0 };
    if set == 0 && propagation.is_none() {
        return Ok(());
    }
    mount::set_attributes(root.as_fd(), false, set, 0, propagation).at(Stage::RootReadonly, Op::MountSetattr)
}
