//! Processes that end without anybody waiting for them.
//!
//! A container may trace what runs in it, and a traced process that has ended stays until its tracer lets it go. So
//! nothing here waits for a process that a container ever saw: it is watched until it can be reaped.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use sys::process::ExitStatus;

use super::launch::Pending;
use super::server::{Server, Source};
use crate::protocol::{Failure, FailureKind};

/// How long a process that goes into a container may take until its program runs.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// A process that ends.
#[derive(Debug)]
pub struct Leaving {
    pidfd: OwnedFd,
    /// Tells whether it made another in its place before it ended.
    note: Option<OwnedFd>,
}

impl Server {
    /// Reaps a process when it has ended and nobody holds it. `note` tells of one that it made meanwhile, which is
    /// then killed.
    pub(super) fn leave(&mut self, pidfd: OwnedFd, note: Option<OwnedFd>) {
        let key = self.new_key();
        self.leaving.insert(key, Leaving { pidfd, note });
        self.left(key);
        if let Some(Leaving { pidfd, .. }) = self.leaving.get(&key) {
            self.unwatch(pidfd);
            // Told once for each change: one that is held by its tracer is ready, and yet cannot be reaped.
            let watched = self.watch(pidfd, Source::Leaving(key), EventFlags::IN | EventFlags::ET);
            if watched.is_err() {
                self.leaving.remove(&key);
            }
        }
    }

    /// Looks after a process that ends.
    pub(super) fn left(&mut self, key: u32) {
        let Some(leaving) = self.leaving.get(&key) else { return };
        if matches!(sys::process::reap(&leaving.pidfd), Ok(None)) {
            return;
        }
        let Some(Leaving { pidfd, note }) = self.leaving.remove(&key) else { return };
        self.unwatch(pidfd);
        let Some(note) = note else { return };
        if let Ok((_, second)) = sys::entry::read_note(&note) {
            self.kill_and_leave(second, None);
        }
    }

    /// Kills a child by its number; 0 is nobody.
    pub(super) fn kill_and_leave(&mut self, pid: i32, note: Option<OwnedFd>) {
        if pid > 0
            && let Ok(pidfd) = sys::process::pidfd_open(pid)
        {
            // One that has ended already is fine.
            let _ = sys::process::pidfd_signal(&pidfd, libc::SIGKILL);
            self.leave(pidfd, note);
        }
    }

    /// How a process ended that its tracer holds, so that it cannot be reaped. `None` while it runs.
    pub(super) fn held_status(&self, pidfd: impl AsFd) -> Option<ExitStatus> {
        let pid = sys::process::pid_of(self.proc.fd(), pidfd).ok()?;
        sys::process::unreaped_status(self.proc.fd(), pid).ok()?
    }

    /// How long until the first of the starts is overdue.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        let first = self.pending.values().filter_map(|pending| pending.deadline).min()?;
        Some(first.saturating_duration_since(Instant::now()))
    }

    /// Gives up starts that took too long: somebody holds the process, or the kernel does.
    pub(super) fn end_overdue(&mut self) {
        let now = Instant::now();
        let overdue = |pending: &Pending| pending.deadline.is_some_and(|deadline| deadline <= now);
        let keys: Vec<u32> = self.pending.iter().filter(|(_, p)| overdue(p)).map(|(key, _)| *key).collect();
        for key in keys {
            let Some(pending) = self.pending.remove(&key) else { continue };
            let mut numbers = pending.numbers();
            if numbers.0 == 0 {
                // The usher itself is stuck. When it has ended, the note is final.
                self.dismiss_usher();
                numbers = pending.numbers();
            }
            let message = "the program did not run in time: something in the container, or its filesystem, \
                           holds the process that was to run it"
                .to_owned();
            if pending.serial == self.serial() {
                self.reply(pending.number, Err(Failure { kind: FailureKind::TimedOut, message }));
            }
            self.kill_and_leave(numbers.1, None);
            self.kill_and_leave(numbers.0, pending.note);
        }
    }
}
