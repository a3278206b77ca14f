//! Being born into a user namespace.
//!
//! A pid namespace belongs to the user namespace of whoever makes it, so a child joins the user namespace first and
//! then makes another child, a sibling, that takes its place; the first one tells the keeper and ends. Before that
//! it does what only the node's root may do.
//!
//! Caveat: procfs and sysfs can be mounted in a user namespace only while another one of the kind is in sight, so
//! the mount namespace that is copied holds one of each; they go away with the old root.

use std::os::fd::AsFd;

use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, Gid, Uid};
use rustix::thread as thread_calls;
use sys::mount::{self, FsOption, attr};
use sys::process::Cloned;

use super::super::report::{At, Op, Severity, Stage, Trouble};
use super::{Job, Streams, is_fifo};
use crate::plan::UserNamespace;

type Result<T> = std::result::Result<T, Trouble>;

impl Job<'_> {
    /// Goes on as a new process, the root of the user namespace, in new namespaces that belong to it.
    pub(super) fn be_born_among(&self, user: &UserNamespace) -> Result<()> {
        self.use_node_rights(user.stream_owner)?;
        show_kernel_filesystems()?;
        sys::namespace::join(self.fd(user.fd)).at(Stage::Users, Op::Setns)?;
        be_born(self.flags, |trouble, pidfd| self.send(Severity::Born, trouble, Some(pidfd)))?;
        become_root()
    }

    /// Goes on as the root of the user namespace, in new namespaces that belong to it; but the pid namespace is one
    /// that others are in, and comes later.
    pub(super) fn move_among(&self, user: &UserNamespace) -> Result<()> {
        self.use_node_rights(user.stream_owner)?;
        show_kernel_filesystems()?;
        sys::namespace::join(self.fd(user.fd)).at(Stage::Users, Op::Setns)?;
        self.unshare_all()?;
        become_root()
    }

    /// What the node's root may do and the namespace's may not: give pipes away, raise limits.
    pub(super) fn use_node_rights(&self, stream_owner: u32) -> Result<()> {
        if let Streams::Given(given) = self.streams {
            for fd in given.into_iter().flatten().filter(|fd| is_fifo(*fd)) {
                let owner = Some(Uid::from_raw(stream_owner));
                rustix::fs::fchown(fd, owner, None).at(Stage::Stdio, Op::Chown)?;
            }
        }
        for limit in &self.process().rlimits {
            // A refusal comes back, with its place, when the limit itself is set.
            let _ = sys::process::raise_hard_limit(limit.resource, limit.hard);
        }
        Ok(())
    }
}

/// Makes a sibling that returns from this function, while the caller tells of it and ends.
pub fn be_born(flags: u64, tell: impl FnOnce(Trouble, std::os::fd::BorrowedFd<'_>) -> bool) -> Result<()> {
    // SAFETY: this process has one thread.
    match unsafe { sys::process::clone3(flags, None, true) }.at(Stage::Users, Op::Clone)? {
        Cloned::Child => Ok(()),
        Cloned::Parent { pidfd, .. } => {
            let place = Trouble { stage: Stage::Users, op: Op::Send, index: 0, errno: sys::Errno::PIPE };
            if !tell(place, pidfd.as_fd()) {
                // Nobody would ever know of it. If it has ended by itself, all the better.
                let _ = sys::process::pidfd_signal(&pidfd, libc::SIGKILL);
            }
            sys::process::exit_now(0)
        }
    }
}

/// Becomes the root of the user namespace that was joined: the node's root has no id in it.
pub fn become_root() -> Result<()> {
    sys::process::set_groups(&[]).at(Stage::Users, Op::Setgroups)?;
    thread_calls::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).at(Stage::Users, Op::Setgid)?;
    thread_calls::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).at(Stage::Users, Op::Setuid)?;
    // Changing the user made it what the system's setting says.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).at(Stage::Users, Op::Prctl)
}

/// Where a root filesystem is attached in the namespace that [`show_kernel_filesystems`] makes.
pub const STAGE: &std::ffi::CStr = c"/rootfs/root";

/// Makes a mount namespace that shows a procfs and a sysfs, and a place for the root filesystem.
pub(super) fn show_kernel_filesystems() -> Result<()> {
    sys::namespace::unshare(thread_calls::UnshareFlags::NEWNS).at(Stage::Namespace, Op::Unshare)?;
    let options = [FsOption::Value(c"mode", c"755"), FsOption::Value(c"size", c"64k")];
    let set = attr::NOSUID | attr::NODEV | attr::NOEXEC;
    let tmpfs = mount::create(c"tmpfs", None, &options, set).at(Stage::Rootfs, Op::Fsmount)?;
    for name in [c"root", c"proc", c"sys"] {
        rustix::fs::mkdirat(&tmpfs, name, Mode::from_raw_mode(0o755)).at(Stage::Rootfs, Op::Mkdir)?;
    }
    mount::attach_at(&tmpfs, super::super::isolate::ROOTFS).at(Stage::Rootfs, Op::MoveMount)?;
    for (kind, place) in [(c"proc", c"/rootfs/proc"), (c"sysfs", c"/rootfs/sys")] {
        let mounted = mount::create(kind, None, &[], set).at(Stage::Rootfs, Op::Fsmount)?;
        mount::attach_at(&mounted, place).at(Stage::Rootfs, Op::MoveMount)?;
    }
    Ok(())
}
