//! Work inside a network namespace, on a thread that ends with it.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

/// The network namespace of the calling thread.
pub(crate) fn current() -> io::Result<OwnedFd> {
    open(Path::new("/proc/thread-self/ns/net"))
}

/// The network namespace pinned at `path`.
pub(crate) fn open(path: &Path) -> io::Result<OwnedFd> {
    Ok(sys::namespace::open(path)?)
}

/// Runs `work` in `netns`. Blocks.
pub(crate) fn within<T: Send>(
    netns: BorrowedFd<'_>,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    sys::namespace::in_netns(netns, work)?
}
