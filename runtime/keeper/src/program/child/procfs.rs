//! The procfs of a pid namespace that others are in already.
//!
//! A procfs shows the pid namespace of whoever makes it, and who prepares a container is outside of that one. So a
//! container takes the procfs that a process in the namespace has at its `/proc`: the pod's init, or the container
//! whose processes it shares. Whatever that one did to its `/proc`, only the procfs itself is taken, nothing above it.
//!
//! Guarantees: what is taken is the root of a procfs, and it is that of the namespace.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags};
use sys::mount::{self, attr};
use sys::{Errno, Result};

use super::super::report::{At, Op, Stage, Trouble};
use super::{Job, open_root, paths};
use crate::plan::{LaunchPlan, Namespace};

/// The inode of a procfs's root.
const ROOT_INODE: u64 = 1;

impl Job<'_> {
    /// Takes the procfs that the plan names a mount namespace for.
    pub(super) fn find_procfs(&self, plan: &LaunchPlan) -> std::result::Result<Option<OwnedFd>, Trouble> {
        let (Namespace::Join(pids), Some(mounts), Some(_)) =
            (plan.namespaces.pid, plan.procfs_of, &self.entry)
        else {
            return Ok(None);
        };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let own = rustix::fs::openat(self.proc.fd(), c"self/ns/mnt", flags, Mode::empty())
            .at(Stage::Procfs, Op::Open)?;
        sys::namespace::join(self.fd(mounts)).at(Stage::Procfs, Op::Setns)?;
        let root = open_root()?;
        let place = paths::open(root.as_fd(), c"/proc", OFlags::PATH | OFlags::DIRECTORY, true)
            .at(Stage::Procfs, Op::Open)?;
        let stat = rustix::fs::fstat(&place).at(Stage::Procfs, Op::Check)?;
        let inode = |fd| rustix::fs::fstat(fd).map(|stat| stat.st_ino);
        let shown = rustix::fs::statat(&place, c"1/ns/pid", AtFlags::empty()).map(|stat| stat.st_ino);
        let right = paths::is_procfs(place.as_fd())
            && stat.st_ino == ROOT_INODE
            && shown.is_ok_and(|shown| inode(self.fd(pids)) == Ok(shown));
        if !right {
            return Err(Trouble { stage: Stage::Procfs, op: Op::Check, index: 0, errno: Errno::NODEV });
        }
        let copy = mount::clone_tree(&place, c"", false).at(Stage::Procfs, Op::OpenTree)?;
        sys::namespace::join(&own).at(Stage::Procfs, Op::Setns)?;
        Ok(Some(copy))
    }
}

/// Gives the copy the attributes that its step asks for.
pub fn adapt(copy: OwnedFd, attributes: u64) -> std::result::Result<OwnedFd, (Op, Errno)> {
    let all = attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC;
    mount::set_attributes(&copy, false, attributes, all & !attributes, None)
        .map_err(|errno| (Op::MountSetattr, errno))?;
    Ok(copy)
}

/// Makes a mount namespace show the procfs of the calling process's pid namespace at `/proc`, and nothing else.
/// `place` is a directory to build it on.
pub fn show_own(place: &std::ffi::CStr, inner: &std::ffi::CStr) -> Result<()> {
    let options = [mount::FsOption::Value(c"mode", c"755"), mount::FsOption::Value(c"size", c"64k")];
    let set = attr::NOSUID | attr::NODEV | attr::NOEXEC;
    let procfs = mount::create(c"proc", Some(c"proc"), &[], set)?;
    let tmpfs = mount::create(c"tmpfs", None, &options, set)?;
    rustix::fs::mkdirat(&tmpfs, c"proc", Mode::from_raw_mode(0o755))?;
    mount::set_attributes(&tmpfs, false, attr::RDONLY, 0, None)?;
    mount::attach_at(&tmpfs, place)?;
    mount::attach_at(&procfs, inner)?;
    mount::pivot(&tmpfs)
}
