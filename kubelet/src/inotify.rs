//! Waits for changes in one directory, without polling.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

/// A watch of one directory.
pub struct Inotify {
    fd: AsyncFd<OwnedFd>,
}

impl Inotify {
    /// Watches `dir` for `what`. Must be called within a tokio runtime.
    pub fn new(dir: &Path, what: WatchFlags) -> io::Result<Inotify> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&fd, dir, what)?;
        #[expect(deprecated, reason = "sound for an OwnedFd; its successor is unsafe to call")]
        let fd = AsyncFd::new(fd)?;
        Ok(Inotify { fd })
    }

    /// Waits until something happened, and forgets it. Cancel-safe.
    pub async fn wait(&self) -> io::Result<()> {
        let mut ready = self.fd.readable().await?;
        let mut buffer = [0; 4096];
        while rustix::io::read(&self.fd, &mut buffer).is_ok_and(|n| n > 0) {}
        ready.clear_ready();
        Ok(())
    }
}
