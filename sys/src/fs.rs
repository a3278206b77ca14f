//! Paths that cannot leave a directory, and closing descriptors.

use std::os::fd::{AsFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::path::Arg;

use crate::{Errno, Result, check};

/// Opens `path` as if `root` were `/`: symbolic links are followed inside it, magic links never.
///
/// # Errors
/// Those of openat2(2); `EAGAIN` (a rename raced with the walk) is retried.
pub fn open_in_root(root: impl AsFd, path: impl Arg + Copy, flags: OFlags) -> Result<OwnedFd> {
    open_resolve(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// Opens `path` below `dir`; `..` out of it, absolute and any symbolic links are errors
/// (`EXDEV`, `ELOOP`).
///
/// # Errors
/// Those of openat2(2).
pub fn open_beneath(dir: impl AsFd, path: impl Arg + Copy, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    open_resolve(dir, path, flags, mode, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
}

/// openat2(2) with close-on-exec and retries.
///
/// # Errors
/// Those of openat2(2).
pub fn open_resolve(
    dir: impl AsFd,
    path: impl Arg + Copy,
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> Result<OwnedFd> {
    let dir = dir.as_fd();
    for _ in 0..128 {
        match rustix::fs::openat2(dir, path, flags | OFlags::CLOEXEC, mode, resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// Closes every descriptor from `first` on.
///
/// # Safety
/// Nothing in this process may own or use a descriptor from `first` on afterwards; meant for a
/// child that is about to exec.
///
/// # Errors
/// Those of close_range(2).
pub unsafe fn close_from(first: RawFd) -> Result<()> {
    // SAFETY: takes integers only; the caller promises that nobody uses the descriptors.
    check(unsafe { libc::syscall(libc::SYS_close_range, first as libc::c_uint, libc::c_uint::MAX, 0) })
        .map(drop)
}

/// Closes every descriptor from 3 on but those in `keep`, which must be in ascending order.
///
/// # Safety
/// Nothing in this process may own or use another descriptor afterwards; meant for a child that
/// is about to exec.
///
/// # Errors
/// Those of close_range(2).
pub unsafe fn close_all_but(keep: &[RawFd]) -> Result<()> {
    let mut next = 3;
    for fd in keep.iter().copied().filter(|fd| *fd >= 3) {
        if fd > next {
            let (first, last) = (next as libc::c_uint, fd as libc::c_uint - 1);
            // SAFETY: takes integers only; the caller promises that nobody uses the descriptors.
            check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
        }
        next = next.max(fd + 1);
    }
    // SAFETY: as the caller promises.
    unsafe { close_from(next) }
}

/// Marks every descriptor from `first` on close-on-exec.
///
/// # Errors
/// Those of close_range(2); `EINVAL` before Linux 5.11.
pub fn cloexec_from(first: RawFd) -> Result<()> {
    // SAFETY: takes integers only; close-on-exec flags do not invalidate descriptors.
    check(unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first as libc::c_uint,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC as libc::c_uint,
        )
    })
    .map(drop)
}

/// Reads a small file (procfs, sysfs, cgroupfs) relative to `dir`, in one go.
///
/// # Errors
/// Those of openat(2) and read(2).
pub fn read_small(dir: impl AsFd, path: impl Arg) -> Result<String> {
    let fd = rustix::fs::openat(dir, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut content = Vec::with_capacity(512);
    let mut buffer = [0; 4096];
    loop {
        match rustix::io::read(&fd, &mut buffer) {
            Ok(0) => return Ok(String::from_utf8_lossy(&content).into_owned()),
            Ok(n) => content.extend_from_slice(&buffer[..n]),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}

/// Writes a small file (procfs, sysfs, cgroupfs) relative to `dir` with a single write.
///
/// # Errors
/// Those of openat(2) and write(2); a short write is `EIO`.
pub fn write_small(dir: impl AsFd, path: impl Arg, value: &[u8]) -> Result<()> {
    let fd = rustix::fs::openat(dir, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    if rustix::io::write(&fd, value)? == value.len() { Ok(()) } else { Err(Errno::IO) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_stay_in_the_root() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("out")).unwrap();
        let root = rustix::fs::open(dir.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        assert_eq!(open_in_root(&root, "out/passwd", OFlags::PATH).unwrap_err(), Errno::NOENT);
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/passwd"), "inside").unwrap();
        let inside = open_in_root(&root, "/out/passwd", OFlags::RDONLY).unwrap();
        assert_eq!(crate::memfd::read(&inside).unwrap(), b"inside");
        assert_eq!(open_beneath(&root, "out/passwd", OFlags::PATH, Mode::empty()).unwrap_err(), Errno::LOOP);
    }
}
