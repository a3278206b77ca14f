//! One container as the keeper holds it: process, streams, log.

use std::os::fd::{AsFd, OwnedFd};

use sys::cgroup::Group;
use sys::{Errno, Result};

use super::log::{Lines, LogFile, Stream};
use crate::plan::Stdio;
use crate::protocol::{ContainerState, Exit, ProcessId, UnixNanos};

/// Room asked for in an attached reader's pipe, in bytes. What does not fit cuts the reader off.
const ATTACHED_PIPE: usize = 1024 * 1024;

/// Most bytes read at once.
pub const CHUNK: usize = 64 * 1024;

/// A container or init.
#[derive(Debug)]
pub struct Container {
    /// Id.
    pub id: String,
    /// Whether it is an init.
    pub init: bool,
    /// Main process.
    pub process: ProcessId,
    /// When it was started.
    pub started_at: UnixNanos,
    /// The main process, until it has ended.
    pub pidfd: Option<OwnedFd>,
    /// Whether the main process is our child and can be reaped.
    pub child: bool,
    /// How it ended.
    pub exit: Option<Exit>,
    /// What its streams are.
    pub stdio: Stdio,
    /// Whether input ends with the first attached client.
    pub stdin_once: bool,
    /// Writing end of standard input.
    pub stdin: Option<OwnedFd>,
    /// Standard output, or the terminal's master.
    pub stdout: Option<Output>,
    /// Standard error.
    pub stderr: Option<Output>,
    /// The log.
    pub log: Option<LogFile>,
    /// The cgroup.
    pub cgroup: Option<Group>,
    /// Live copies.
    pub attached: Vec<Attached>,
}

/// One stream's reading end.
#[derive(Debug)]
pub struct Output {
    /// Non-blocking.
    pub fd: OwnedFd,
    /// The line that is being assembled.
    pub lines: Lines,
}

/// A reader of live output.
#[derive(Debug)]
pub struct Attached {
    /// Non-blocking writing end.
    pub fd: OwnedFd,
    /// What it reads.
    pub stream: Stream,
}

/// What reading a stream once brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Pumped {
    /// This many bytes.
    Bytes(usize),
    /// Nothing for now.
    Empty,
    /// The stream has ended; it was closed.
    Ended,
}

impl Container {
    /// Whether it has a terminal.
    pub fn has_terminal(&self) -> bool {
        matches!(self.stdio, Stdio::Terminal { .. })
    }

    /// As the protocol tells it.
    pub fn state(&self) -> ContainerState {
        ContainerState {
            id: self.id.clone(),
            init: self.init,
            process: self.process,
            started_at: self.started_at,
            exit: self.exit,
            terminal: self.has_terminal(),
            stdin_open: self.stdin.is_some() || (self.has_terminal() && self.stdout.is_some()),
            log_bytes_lost: self.log.as_ref().map_or(0, |log| log.lost),
        }
    }

    /// The stream's slot.
    pub fn output(&mut self, stream: Stream) -> &mut Option<Output> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    /// Reads a stream once: into the log and to the attached. Returns what came, and the log's
    /// error when it began to fail.
    pub fn pump(
        &mut self,
        stream: Stream,
        now: UnixNanos,
        buffer: &mut [u8],
        records: &mut Vec<u8>,
    ) -> (Pumped, Option<Errno>) {
        let Some(output) = self.output(stream) else { return (Pumped::Empty, None) };
        records.clear();
        let pumped = match rustix::io::read(&output.fd, &mut *buffer) {
            Ok(0) => Pumped::Ended,
            Ok(len) => {
                output.lines.feed(&buffer[..len], now, records);
                Pumped::Bytes(len)
            }
            Err(Errno::AGAIN | Errno::INTR) => return (Pumped::Empty, None),
            // EIO is how a terminal says that its other side is closed.
            Err(_) => Pumped::Ended,
        };
        if pumped == Pumped::Ended {
            output.lines.finish(now, records);
            *self.output(stream) = None;
        }
        let failed = match &mut self.log {
            Some(log) if !records.is_empty() => log.write(records),
            _ => None,
        };
        match pumped {
            Pumped::Bytes(len) => self.copy_to_attached(stream, &buffer[..len]),
            _ => self.attached.retain(|attached| attached.stream != stream),
        }
        (pumped, failed)
    }

    /// Reads a stream until it is empty or ended, at most `limit` bytes.
    pub fn drain(
        &mut self,
        stream: Stream,
        now: UnixNanos,
        buffer: &mut [u8],
        records: &mut Vec<u8>,
        limit: usize,
    ) -> Option<Errno> {
        let mut left = limit;
        let mut failure = None;
        while let (Pumped::Bytes(len), failed) = self.pump(stream, now, buffer, records) {
            failure = failure.or(failed);
            left = left.saturating_sub(len);
            if left == 0 {
                break;
            }
        }
        failure
    }

    /// Ends a stream without reading on: what is left of a line goes to the log.
    pub fn finish(&mut self, stream: Stream, now: UnixNanos, records: &mut Vec<u8>) {
        records.clear();
        if let Some(mut output) = self.output(stream).take() {
            output.lines.finish(now, records);
            if let Some(log) = &mut self.log {
                let _ = log.write(records);
            }
        }
        self.attached.retain(|attached| attached.stream != stream);
    }

    fn copy_to_attached(&mut self, stream: Stream, data: &[u8]) {
        // A reader that has gone (EPIPE) or does not read (a short write) is cut off: the
        // container must never wait for it, and a gap in the middle would be a lie.
        self.attached.retain(|attached| {
            attached.stream != stream
                || rustix::io::write(&attached.fd, data).is_ok_and(|len| len == data.len())
        });
    }

    /// Adds a reader of live output and returns its end.
    ///
    /// # Errors
    /// Those of pipe2(2).
    pub fn attach(&mut self, stream: Stream) -> Result<OwnedFd> {
        use rustix::pipe::PipeFlags;

        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Refused beyond the user's limit of pipe memory: the default size is fine as well.
        let _ = rustix::pipe::fcntl_setpipe_size(&writer, ATTACHED_PIPE);
        self.attached.push(Attached { fd: writer, stream });
        Ok(reader)
    }

    /// Cuts off readers that have gone.
    pub fn drop_gone(&mut self) {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};

        self.attached.retain(|attached| {
            let mut fds = [PollFd::new(&attached.fd, PollFlags::empty())];
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            poll(&mut fds, Some(&now)).is_err() || !fds[0].revents().contains(PollFlags::ERR)
        });
    }

    /// Whether the kernel's OOM killer struck in its cgroup.
    pub fn oom_killed(&self) -> bool {
        let killed = |group: &Group| group.keyed("memory.events", "oom_kill").ok().flatten();
        self.cgroup.as_ref().and_then(killed).is_some_and(|count| count > 0)
    }
}

/// Another descriptor of the same thing.
///
/// # Errors
/// Those of fcntl(F_DUPFD_CLOEXEC).
pub fn duplicate(fd: impl AsFd) -> Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(fd, 3)
}

/// Sets O_NONBLOCK.
///
/// # Errors
/// Those of fcntl(F_SETFL).
pub fn set_nonblocking(fd: impl AsFd) -> Result<()> {
    let fd = fd.as_fd();
    let flags = rustix::fs::fcntl_getfl(fd)?;
    rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)
}
