//! The descriptor-based mount API.
//!
//! A mount made here is detached: it appears in no mount table until [`attach`] moves it, and
//! vanishes with its descriptor otherwise.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::CWD;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};
use rustix::path::Arg;

use crate::{Errno, Result, check};

pub use rustix::mount::{UnmountFlags, unmount};

/// `MOUNT_ATTR_*` bits.
pub mod attr {
    /// Read-only.
    pub const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
    /// Ignore set-user-id bits.
    pub const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
    /// No device nodes.
    pub const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
    /// No programs.
    pub const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
    /// Do not follow symbolic links.
    pub const NOSYMFOLLOW: u64 = libc::MOUNT_ATTR_NOSYMFOLLOW;
    /// Mask of the access time modes; goes into `clear` when one of them is set.
    pub const ATIME_MASK: u64 = libc::MOUNT_ATTR__ATIME;
    /// Relative access times (the default; value 0).
    pub const RELATIME: u64 = libc::MOUNT_ATTR_RELATIME;
    /// No access times.
    pub const NOATIME: u64 = libc::MOUNT_ATTR_NOATIME;
    /// Always access times.
    pub const STRICTATIME: u64 = libc::MOUNT_ATTR_STRICTATIME;
    /// No access times on directories.
    pub const NODIRATIME: u64 = libc::MOUNT_ATTR_NODIRATIME;
}

/// Mount propagation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

impl Propagation {
    fn bits(self) -> u64 {
        match self {
            Propagation::Private => libc::MS_PRIVATE,
            Propagation::Slave => libc::MS_SLAVE,
            Propagation::Shared => libc::MS_SHARED,
            Propagation::Unbindable => libc::MS_UNBINDABLE,
        }
    }
}

/// An option of a new filesystem.
#[derive(Debug, Clone, Copy)]
pub enum FsOption<'a> {
    /// `key`
    Flag(&'a CStr),
    /// `key=value`
    Value(&'a CStr, &'a CStr),
}

/// Makes a filesystem and a detached mount of it. `attributes` are [`attr`] bits.
///
/// # Errors
/// Those of fsopen(2), fsconfig(2) and fsmount(2); `ENODEV` for an unknown type, `EINVAL` for an
/// option it does not know (the filesystem's own words are lost with the context; see
/// [`create_explained`]).
pub fn create(
    fstype: &CStr,
    source: Option<&CStr>,
    options: &[FsOption<'_>],
    attributes: u64,
) -> Result<OwnedFd> {
    let context = open_context(fstype)?;
    fill(&context, source, options)?;
    finish(&context, attributes)
}

/// Like [`create`], with the kernel's explanation beside the error number where it gives one.
///
/// # Errors
/// As [`create`].
pub fn create_explained(
    fstype: &CStr,
    source: Option<&CStr>,
    options: &[FsOption<'_>],
    attributes: u64,
) -> std::result::Result<OwnedFd, (Errno, String)> {
    let context = open_context(fstype).map_err(|e| (e, String::new()))?;
    fill(&context, source, options)
        .and_then(|()| finish(&context, attributes))
        .map_err(|e| (e, explanation(&context)))
}

/// Opens a filesystem context.
///
/// # Errors
/// Those of fsopen(2).
pub fn open_context(fstype: &CStr) -> Result<OwnedFd> {
    rustix::mount::fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC)
}

/// Sets source and options in a context.
///
/// # Errors
/// Those of fsconfig(2).
pub fn fill(context: &OwnedFd, source: Option<&CStr>, options: &[FsOption<'_>]) -> Result<()> {
    if let Some(source) = source {
        rustix::mount::fsconfig_set_string(context, c"source", source)?;
    }
    for option in options {
        match option {
            FsOption::Flag(key) => rustix::mount::fsconfig_set_flag(context, *key)?,
            FsOption::Value(key, value) => rustix::mount::fsconfig_set_string(context, *key, *value)?,
        }
    }
    Ok(())
}

/// Makes the filesystem of a context and a detached mount of it.
///
/// # Errors
/// Those of fsconfig(2) and fsmount(2).
pub fn finish(context: &OwnedFd, attributes: u64) -> Result<OwnedFd> {
    rustix::mount::fsconfig_create(context)?;
    let attributes = MountAttrFlags::from_bits_retain(attributes as u32);
    rustix::mount::fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// What the kernel wrote into a context's log, lines joined by "; ".
pub fn explanation(context: &OwnedFd) -> String {
    let mut lines = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(len @ 1..) = rustix::io::read(context, &mut buffer) {
        lines.push(String::from_utf8_lossy(&buffer[..len]).trim().to_owned());
    }
    lines.join("; ")
}

/// A detached copy of the mount at `path` (a bind mount); with `recursive` also of those below it.
///
/// # Errors
/// Those of open_tree(2).
pub fn clone_tree(dir: impl AsFd, path: impl Arg, recursive: bool) -> Result<OwnedFd> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(dir, path, flags)
}

/// Attaches a detached mount on the directory or file that `target` is open on.
///
/// # Errors
/// Those of move_mount(2).
pub fn attach(mount: impl AsFd, target: impl AsFd) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, c"", target, c"", flags)
}

/// Attaches a detached mount at a path of the caller's mount namespace.
///
/// # Errors
/// Those of move_mount(2).
pub fn attach_at(mount: impl AsFd, path: impl Arg) -> Result<()> {
    rustix::mount::move_mount(mount, c"", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Changes the mount that `mount` is open on: attribute bits and propagation.
///
/// # Errors
/// Those of mount_setattr(2).
pub fn set_attributes(
    mount: impl AsFd,
    recursive: bool,
    set: u64,
    clear: u64,
    propagation: Option<Propagation>,
) -> Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: clear,
        propagation: propagation.map_or(0, Propagation::bits),
        userns_fd: 0,
    };
    setattr(mount, recursive, attributes)
}

/// Makes a detached mount show its files with the ids of a user namespace: what belongs to 0 on the disk belongs to
/// the namespace's root in the mount. Once set it stays.
///
/// # Errors
/// Those of mount_setattr(2): `EINVAL` when the filesystem has no mapped mounts, `EPERM` when it has a mapping
/// already or was attached before.
pub fn map_ids(mount: impl AsFd, recursive: bool, user_namespace: impl AsFd) -> Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: user_namespace.as_fd().as_raw_fd() as u64,
    };
    setattr(mount, recursive, attributes)
}

fn setattr(mount: impl AsFd, recursive: bool, attributes: libc::mount_attr) -> Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated literal, `attributes` lives through the call and its
    // exact size is passed; the kernel only reads them.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    check(ret).map(drop)
}

/// Makes `new_root`'s mount the root of the calling process's mount namespace and drops the old
/// one. The caller's root and working directory are the new root afterwards.
///
/// # Errors
/// Those of fchdir(2), pivot_root(2) (`EINVAL` when the old root is the initial ramfs) and umount2(2).
pub fn pivot(new_root: impl AsFd) -> Result<()> {
    rustix::process::fchdir(new_root)?;
    rustix::process::pivot_root(c".", c".")?;
    // The old root now lies over the new one at "."; nothing of it may propagate back when it goes.
    unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")
}
