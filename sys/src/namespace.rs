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
    /// Users: made by [`create_user`] only.
    User,
}

impl Kind {
    fn unshare(self) -> UnshareFlags {
        match self {
            Kind::Net => UnshareFlags::NEWNET,
            Kind::Ipc => UnshareFlags::NEWIPC,
            Kind::Uts => UnshareFlags::NEWUTS,
            Kind::User => UnshareFlags::NEWUSER,
        }
    }

    fn file(self) -> &'static str {
        match self {
            Kind::Net => "/proc/thread-self/ns/net",
            Kind::Ipc => "/proc/thread-self/ns/ipc",
            Kind::Uts => "/proc/thread-self/ns/uts",
            Kind::User => "/proc/thread-self/ns/user",
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
    /// The ids of a new user namespace could not be set.
    #[error("set the ids of a new user namespace ({map:?})")]
    Map {
        /// What was written.
        map: String,
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

/// Which ids a user namespace has: those from 0 on stand for those of the caller's from `host` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// First id outside.
    pub host: u32,
    /// How many.
    pub length: u32,
}

impl IdRange {
    /// The line for `/proc/PID/uid_map`.
    fn line(self) -> String {
        format!("0 {} {}", self.host, self.length)
    }
}

/// Makes a new user namespace, and new namespaces of the given kinds that belong to it. Returns a descriptor of the
/// user namespace, then one for each kind, in order. They live as long as a descriptor, a pin or a process.
///
/// # Errors
/// See [`NamespaceError`].
pub fn create_user(
    users: IdRange,
    groups: IdRange,
    kinds: &[Kind],
) -> std::result::Result<(OwnedFd, Vec<OwnedFd>), NamespaceError> {
    let failed = |source| NamespaceError::Create { kinds: [&[Kind::User], kinds].concat(), source };
    let flags = kinds.iter().fold(UnshareFlags::NEWUSER, |flags, kind| flags | kind.unshare());
    // The namespaces need a process until their files are open. It ends with the writing end of this pipe.
    let (wait, hold) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(failed)?;
    // SAFETY: the child makes system calls only, and touches no memory but its own stack.
    let cloned = unsafe { crate::process::clone3(u64::from(flags.bits()), None, false) };
    let (pid, pidfd) = match cloned.map_err(failed)? {
        crate::process::Cloned::Parent { pid, pidfd } => (pid, pidfd),
        crate::process::Cloned::Child => {
            // SAFETY: the owner of this descriptor number is the parent's frame, which never runs again here.
            unsafe { libc::close(std::os::fd::AsRawFd::as_raw_fd(&hold)) };
            let mut byte = [0];
            while rustix::io::read(&wait, &mut byte) == Err(Errno::INTR) {}
            crate::process::exit_now(0)
        }
    };
    let made = map_and_open(pid, users, groups, kinds);
    drop(hold);
    // Its end is certain: nobody else holds the pipe for long.
    let ended =
        crate::process::pidfd_signal(&pidfd, libc::SIGKILL).and_then(|()| crate::process::wait(&pidfd));
    ended.map_err(failed)?;
    made
}

fn map_and_open(
    pid: i32,
    users: IdRange,
    groups: IdRange,
    kinds: &[Kind],
) -> std::result::Result<(OwnedFd, Vec<OwnedFd>), NamespaceError> {
    for (file, range) in [("gid_map", groups), ("uid_map", users)] {
        let map = range.line();
        let path = format!("/proc/{pid}/{file}");
        crate::fs::write_small(rustix::fs::CWD, path, map.as_bytes())
            .map_err(|source| NamespaceError::Map { map, source })?;
    }
    let open = |kind: Kind| {
        let path = kind.file().replace("thread-self", &pid.to_string());
        rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|source| NamespaceError::Open { kind, source })
    };
    Ok((open(Kind::User)?, kinds.iter().copied().map(open).collect::<std::result::Result<_, _>>()?))
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

    #[test]
    fn a_user_namespace_owns_its_siblings_and_maps_mounts() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let range = IdRange { host: 2_000_000, length: 65_536 };
        let (user, others) = match create_user(range, range, &[Kind::Net, Kind::Uts]) {
            Ok(made) => made,
            Err(error) => {
                println!("skipped: no user namespaces here: {error}");
                return;
            }
        };
        // NS_GET_USERNS tells the owner.
        for other in &others {
            // SAFETY: the request takes no argument and gives a new descriptor.
            let fd = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(other), 0xb701) };
            assert!(fd >= 0, "the owner can be asked for");
            // SAFETY: the kernel just made it.
            let owner = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) };
            assert_eq!(inode(&owner), inode(&user));
        }
        let name = in_namespaces(&[others[1].as_fd()], || {
            rustix::system::sethostname(b"mapped").unwrap();
            rustix::system::uname().nodename().to_owned()
        });
        assert_eq!(name.unwrap().to_str().unwrap(), "mapped");
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let mount = crate::mount::clone_tree(rustix::fs::CWD, dir.path(), false).unwrap();
        match crate::mount::map_ids(&mount, false, &user) {
            Err(Errno::INVAL) => {
                println!("skipped: the temporary directory's filesystem has no mapped mounts")
            }
            mapped => {
                mapped.unwrap();
                let file = rustix::fs::openat(&mount, c"file", OFlags::PATH, Mode::empty()).unwrap();
                assert_eq!(rustix::fs::fstat(&file).unwrap().st_uid, 2_000_000);
            }
        }
    }
}
