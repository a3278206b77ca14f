//! Making, pinning and entering namespaces, on threads that end with the work.
//!
//! Guarantees: no thread of the caller's is ever left in another namespace, even after a panic.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::{Errno, Result, check};

/// Kinds of namespace that can live without a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Network.
    Net,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Host name.
    Uts,
}

impl Kind {
    fn unshare(self) -> UnshareFlags {
        match self {
            Kind::Net => UnshareFlags::NEWNET,
            Kind::Ipc => UnshareFlags::NEWIPC,
            Kind::Uts => UnshareFlags::NEWUTS,
        }
    }

    fn file(self) -> &'static str {
        match self {
            Kind::Net => "/proc/thread-self/ns/net",
            Kind::Ipc => "/proc/thread-self/ns/ipc",
            Kind::Uts => "/proc/thread-self/ns/uts",
        }
    }
}

/// Why a namespace could not be made or pinned.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The thread could not be started.
    #[error("start a thread for the namespaces")]
    Thread(#[source] std::io::Error),
    /// unshare(2) failed.
    #[error("create namespaces {kinds:?}")]
    Create {
        /// Which.
        kinds: Vec<Kind>,
        /// Why.
        source: Errno,
    },
    /// The new namespace's file could not be opened.
    #[error("open the new {kind:?} namespace")]
    Open {
        /// Which.
        kind: Kind,
        /// Why.
        source: Errno,
    },
    /// The pin could not be made.
    #[error("pin a namespace at {path}")]
    Pin {
        /// Where.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
}

/// Makes new namespaces of the given kinds, together, and runs `setup` inside them (to set the
/// host name, write sysctls, bring up loopback). Returns one descriptor for each kind, in order,
/// and what `setup` returned. The namespaces live as long as a descriptor, a pin or a process.
///
/// # Errors
/// See [`NamespaceError`]; `setup`'s own errors are its result's.
pub fn create<T: Send>(
    kinds: &[Kind],
    setup: impl FnOnce() -> T + Send,
) -> std::result::Result<(Vec<OwnedFd>, T), NamespaceError> {
    on_thread(|| {
        let flags = kinds.iter().fold(UnshareFlags::empty(), |flags, kind| flags | kind.unshare());
        unshare(flags).map_err(|source| NamespaceError::Create { kinds: kinds.to_vec(), source })?;
        let open = |kind: &Kind| {
            rustix::fs::open(kind.file(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|source| NamespaceError::Open { kind: *kind, source })
        };
        let fds = kinds.iter().map(open).collect::<std::result::Result<Vec<_>, _>>()?;
        Ok((fds, setup()))
    })
    .map_err(NamespaceError::Thread)?
}

/// Pins a namespace by binding its file onto `path`, which is made when missing (mode 0).
///
/// # Errors
/// [`NamespaceError::Pin`].
pub fn pin(namespace: impl AsFd, path: &Path) -> std::result::Result<(), NamespaceError> {
    let err = |source| NamespaceError::Pin { path: path.to_owned(), source };
    let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    drop(rustix::fs::open(path, flags, Mode::RUSR).map_err(err)?);
    let mount = clone_namespace(namespace).map_err(err)?;
    crate::mount::attach_at(&mount, path).map_err(err)
}

/// A detached bind mount of a namespace file.
fn clone_namespace(namespace: impl AsFd) -> Result<OwnedFd> {
    // A descriptor of nsfs is a path of its own, which open_tree clones by the empty path.
    match crate::mount::clone_tree(namespace.as_fd(), c"", false) {
        // Before Linux 6.15 open_tree refuses mounts of no namespace, such as nsfs's own; the
        // magic link in procfs is the way that bind mounts always took.
        Err(Errno::INVAL) => {
            let link =
                format!("/proc/thread-self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&namespace.as_fd()));
            crate::mount::clone_tree(rustix::fs::CWD, link, false)
        }
        other => other,
    }
}

/// Removes a pin and its file. A missing one is fine.
///
/// # Errors
/// [`NamespaceError::Pin`] with the error of umount2(2) or unlink(2).
pub fn unpin(path: &Path) -> std::result::Result<(), NamespaceError> {
    let err = |source| NamespaceError::Pin { path: path.to_owned(), source };
    loop {
        match crate::mount::unmount(
            path,
            crate::mount::UnmountFlags::DETACH | crate::mount::UnmountFlags::NOFOLLOW,
        ) {
            // Pinned twice: once more.
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => break,
            Err(source) => return Err(err(source)),
        }
    }
    match rustix::fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(source) => Err(err(source)),
    }
}

/// Opens a namespace pinned at `path` (or a `/proc/PID/ns/*` file).
///
/// # Errors
/// Those of open(2); `EINVAL` when the file is no namespace (a pin whose mount is gone).
pub fn open(path: &Path) -> Result<OwnedFd> {
    let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    const NSFS_MAGIC: u64 = 0x6e73_6673;
    if rustix::fs::fstatfs(&fd)?.f_type as u64 == NSFS_MAGIC { Ok(fd) } else { Err(Errno::INVAL) }
}

/// Runs `f` in a network namespace, on a thread of its own. Blocks: call it from a blocking thread.
///
/// # Errors
/// When the thread could not be started or could not join the namespace.
pub fn in_netns<T: Send>(netns: BorrowedFd<'_>, f: impl FnOnce() -> T + Send) -> std::io::Result<T> {
    in_namespaces(&[netns], f)
}

/// Runs `f` on a thread that has joined all of the given namespaces (not mount, pid or user ones).
///
/// # Errors
/// When the thread could not be started or could not join a namespace.
pub fn in_namespaces<T: Send>(
    namespaces: &[BorrowedFd<'_>],
    f: impl FnOnce() -> T + Send,
) -> std::io::Result<T> {
    on_thread(|| {
        for namespace in namespaces {
            join(namespace)?;
        }
        Ok(f())
    })?
}

/// Moves the calling thread into the namespace that `namespace` is open on, of whatever kind.
/// For single-threaded programs and for children; everybody else uses [`in_netns`].
///
/// # Errors
/// Those of setns(2).
pub fn join(namespace: impl AsFd) -> Result<()> {
    rustix::thread::move_into_link_name_space(namespace.as_fd(), None)
}

/// Sets in which pid namespace the next children of the calling thread are born.
///
/// # Errors
/// Those of setns(2); `EINVAL` when it is not a pid namespace at or below the caller's own.
pub fn children_in(pid_namespace: impl AsFd) -> Result<()> {
    rustix::thread::move_into_link_name_space(pid_namespace.as_fd(), Some(LinkNameSpaceType::ProcessID))
}

/// Moves the calling thread into namespaces of a process; `kinds` are `CLONE_NEW*` bits
/// ([`crate::process::ns`]).
///
/// # Errors
/// Those of setns(2).
pub fn join_process(pidfd: impl AsFd, kinds: u64) -> Result<()> {
    let fd = std::os::fd::AsRawFd::as_raw_fd(&pidfd.as_fd());
    // SAFETY: setns takes integers only. Joining a mount namespace changes root and working
    // directory of this thread, which Rust's memory safety does not depend on.
    check(unsafe { libc::syscall(libc::SYS_setns, fd, kinds as libc::c_int) }).map(drop)
}

/// Moves the calling thread out of namespaces it shares, into new ones. For single-threaded
/// programs and for children.
///
/// # Errors
/// Those of unshare(2).
pub fn unshare(flags: UnshareFlags) -> Result<()> {
    // The descriptor table is not among the flags that callers here use, so no owned descriptor
    // becomes invalid for other threads.
    assert!(!flags.contains(UnshareFlags::FILES), "descriptors stay shared");
    let flags = flags.bits() as libc::c_int;
    // SAFETY: unshare takes an integer; without CLONE_FILES nothing that Rust owns changes.
    check(libc::c_long::from(unsafe { libc::unshare(flags) })).map(drop)
}

/// Runs `f` on a thread that ends with it.
fn on_thread<T: Send>(f: impl FnOnce() -> T + Send) -> std::io::Result<T> {
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("namespace".to_owned()).spawn_scoped(scope, f)?;
        Ok(worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inode(fd: impl AsFd) -> u64 {
        rustix::fs::fstat(fd).unwrap().st_ino
    }

    #[test]
    fn a_pinned_namespace_can_be_entered_and_unpinned() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net");
        let (fds, name) = create(&[Kind::Net, Kind::Uts], || {
            rustix::system::sethostname(b"inside").unwrap();
            rustix::system::uname().nodename().to_owned()
        })
        .unwrap();
        assert_eq!(name.to_str().unwrap(), "inside");
        assert_ne!(rustix::system::uname().nodename(), c"inside");
        pin(&fds[0], &path).unwrap();
        let number = inode(&fds[0]);
        drop(fds);
        let again = open(&path).unwrap();
        assert_eq!(inode(&again), number);
        let seen =
            in_netns(again.as_fd(), || inode(open(Path::new("/proc/thread-self/ns/net")).unwrap())).unwrap();
        assert_eq!(seen, number);
        drop(again);
        unpin(&path).unwrap();
        assert!(!path.exists());
        unpin(&path).unwrap();
    }
}
