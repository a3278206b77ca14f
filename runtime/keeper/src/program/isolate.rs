//! The keeper's own mount namespace: one empty tmpfs and nothing of the host.
//!
//! Why: a container's mount namespace is a copy of the keeper's, so copying is cheap, no host
//! mount is ever reachable from a child, and the keeper keeps no host filesystem busy.

use std::ffi::CStr;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::thread::UnshareFlags;
use sys::mount::{self, Propagation, attr};

/// The directory that root filesystems are attached on for a moment, in the child's namespace.
pub const ROOTFS: &CStr = c"/rootfs";

/// Moves this single-threaded program into a new mount namespace that holds only an empty,
/// read-only tmpfs with the directory [`ROOTFS`].
///
/// # Errors
/// Those of the mount calls; without CAP_SYS_ADMIN `EPERM`.
pub fn enter_empty_namespace() -> sys::Result<()> {
    sys::namespace::unshare(UnshareFlags::NEWNS)?;
    // Nothing that happens here may reach the host.
    let host_root = rustix::fs::open(c"/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    mount::set_attributes(&host_root, true, 0, 0, Some(Propagation::Private))?;
    drop(host_root);
    let options = [mount::FsOption::Value(c"mode", c"755"), mount::FsOption::Value(c"size", c"64k")];
    let tmpfs =
        mount::create(c"tmpfs", Some(c"orlop-keeper"), &options, attr::NOSUID | attr::NODEV | attr::NOEXEC)?;
    rustix::fs::mkdirat(&tmpfs, c"rootfs", Mode::from_raw_mode(0o700))?;
    mount::set_attributes(&tmpfs, false, attr::RDONLY, 0, None)?;
    mount::attach_at(&tmpfs, c"/")?;
    match mount::pivot(&tmpfs) {
        // The host's root is the initial ramfs, which cannot be pivoted away: hide it instead.
        Err(sys::Errno::INVAL) => {
            rustix::process::fchdir(&tmpfs)?;
            rustix::process::chroot(c".")?;
        }
        other => other?,
    }
    rustix::fs::statat(CWD, ROOTFS, rustix::fs::AtFlags::empty()).map(drop)
}
