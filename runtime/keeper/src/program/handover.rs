//! Taking over the containers of a keeper that died.
//!
//! Guarantees: a process is taken over only if it is the very one that was started (by its pidfd,
//! or by pid and start time); an exit code that nobody can know is `Unknown`.
//! Caveat: text that the dead keeper had read of an unfinished line is lost with it.

use std::os::fd::OwnedFd;

use rustix::event::epoll::EventFlags;
use rustix::fs::{Mode, OFlags};
use sys::{Errno, Result as SysResult};

use super::container::{Container, Output, set_nonblocking};
use super::log::{Lines, LogFile, Stream};
use super::requests::{os, take};
use super::server::{Server, now};
use crate::plan::{FdIndex, Stdio};
use crate::protocol::{Exit, ExitHow, Failure, FailureKind, HandoverContainer};

impl Server {
    /// Takes over what it can; the results are in the order of the containers.
    pub(super) fn take_over(
        &mut self,
        containers: Vec<HandoverContainer>,
        fds: Vec<OwnedFd>,
    ) -> Vec<Result<(), Failure>> {
        let mut fds: Vec<Option<OwnedFd>> = fds.into_iter().map(Some).collect();
        containers.into_iter().map(|container| self.take_one(container, &mut fds)).collect()
    }

    fn take_one(&mut self, from: HandoverContainer, fds: &mut [Option<OwnedFd>]) -> Result<(), Failure> {
        if self.find(&from.id).is_some() {
            let message = format!("take over {}: it is known already", from.id);
            return Err(Failure { kind: FailureKind::Exists, message });
        }
        let what = format!("take over {}", from.id);
        let failed = |errno| os(what.clone(), errno);
        let mut given = |index: Option<FdIndex>| index.map(|index| take(fds, index)).transpose();
        let (pidfd, stdin) = (given(from.pidfd)?, given(from.stdin)?);
        let (stdout, stderr) = (given(from.stdout)?, given(from.stderr)?);
        let (terminal, log, cgroup) = (given(from.terminal)?, given(from.log)?, given(from.cgroup)?);
        let pidfd = match pidfd {
            Some(pidfd) => Some(pidfd),
            None => self.find_process(&from).map_err(failed)?,
        };
        // Without a pidfd the process has gone; what the pipes still hold is taken up all the same.
        let alive = pidfd.is_some();
        let reopen = |given: Option<OwnedFd>, number: i32, flags: OFlags| match given {
            None if alive && matches!(from.stdio, Stdio::Pipes { .. }) => {
                self.open_pipe_of(from.process.pid, number, flags)
            }
            given => given,
        };
        let wants_stdin = matches!(from.stdio, Stdio::Pipes { stdin: true });
        let stdin = if wants_stdin { reopen(stdin, 0, OFlags::WRONLY) } else { None };
        let stdout = terminal.or_else(|| reopen(stdout, 1, OFlags::RDONLY));
        let stderr = reopen(stderr, 2, OFlags::RDONLY);
        for fd in [&stdin, &stdout, &stderr].into_iter().flatten() {
            set_nonblocking(fd).map_err(failed)?;
        }
        let output = |fd: Option<OwnedFd>, stream| fd.map(|fd| Output { fd, lines: Lines::new(stream) });
        let container = Container {
            id: from.id,
            init: from.init,
            process: from.process,
            started_at: from.started_at,
            pidfd,
            child: false,
            exit: (!alive).then(|| Exit { how: ExitHow::Unknown, oom_killed: false, at: now() }),
            stdio: from.stdio,
            stdin_once: from.stdin_once,
            stdin,
            stdout: output(stdout, Stream::Stdout),
            stderr: output(stderr, Stream::Stderr),
            log: log.map(|file| LogFile::new(file, 0)),
            cgroup: cgroup.map(sys::cgroup::Group::from_fd),
            attached: Vec::new(),
        };
        let key = self.new_key();
        self.watch_container(key, &container).map_err(failed)?;
        self.containers.insert(key, container);
        if !alive {
            // Tells it, after the last words.
            self.ended(key, ExitHow::Unknown);
        }
        Ok(())
    }

    /// A pidfd of the process that was started then, if it still is that one.
    fn find_process(&self, from: &HandoverContainer) -> SysResult<Option<OwnedFd>> {
        let pidfd = match sys::process::pidfd_open(from.process.pid) {
            Err(Errno::SRCH | Errno::INVAL) => return Ok(None),
            other => other?,
        };
        // Read after opening: the pidfd holds the process that this start time belongs to, or one
        // that has ended, whose number may be another's by now.
        match sys::process::start_time(self.proc.fd(), from.process.pid) {
            Ok(ticks) if ticks == from.process.start_ticks => {}
            Ok(_) | Err(Errno::NOENT | Errno::SRCH) => return Ok(None),
            Err(e) => return Err(e),
        }
        match sys::process::pidfd_signal(&pidfd, 0) {
            Ok(()) => Ok(Some(pidfd)),
            Err(_) => Ok(None),
        }
    }

    /// Opens the pipe that a process has at `number`; `None` when it is no pipe (any more).
    fn open_pipe_of(&self, pid: i32, number: i32, flags: OFlags) -> Option<OwnedFd> {
        let path = format!("{pid}/fd/{number}");
        let stat = rustix::fs::statat(self.proc.fd(), path.as_str(), rustix::fs::AtFlags::empty()).ok()?;
        if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_fifo() {
            return None;
        }
        let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::openat(self.proc.fd(), path.as_str(), flags, Mode::empty()).ok()
    }

    /// Kept for the resumed program: what a descriptor's owner must watch.
    pub(super) fn watch_exec(&self, key: u32, pidfd: &OwnedFd) -> SysResult<()> {
        self.watch(pidfd, super::server::Source::Exec(key), EventFlags::IN)
    }
}
