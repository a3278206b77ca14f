//! Answering the daemon.

use std::os::fd::{AsFd, OwnedFd};

use sys::Errno;

use super::container::{Container, duplicate};
use super::log::Stream;
use super::report::words;
use super::server::Server;
use crate::plan::FdIndex;
use crate::protocol::{
    Answer, Failure, FailureKind, Hello, Op, Request, SignalTarget, State, Streams, ToDaemon, VERSION,
};

/// What a handler returns: the answer and its descriptors.
pub type Outcome = Result<(Answer, Vec<OwnedFd>), Failure>;

impl Server {
    /// Carries out one request. Some answer later: a start when its program runs, an upgrade from
    /// the new program.
    pub(super) fn handle_request(&mut self, request: Request, fds: Vec<OwnedFd>) {
        let number = request.number;
        let outcome = match request.op {
            Op::Hello { .. } => Some(Ok(self.hello())),
            Op::State => Some(Ok((Answer::State(self.state()), Vec::new()))),
            Op::Launch(plan) => self.launch(number, plan, fds).err().map(Err),
            Op::LaunchInit(plan) => self.launch_init(number, plan, fds).err().map(Err),
            Op::Exec(plan) => self.exec(number, plan, fds).err().map(Err),
            Op::Signal { id, signal, target } => Some(self.signal(&id, signal, target)),
            Op::ReopenLog { id } => Some(self.reopen_log(&id, fds)),
            Op::Attach { id, stdin, stdout, stderr } => Some(self.attach(&id, stdin, stdout, stderr)),
            Op::Resize { id, columns, rows } => Some(self.resize(&id, columns, rows)),
            Op::CloseStdin { id } => Some(self.close_stdin(&id)),
            Op::Forget { id } => Some(self.forget(&id)),
            Op::Upgrade => match fds.into_iter().next() {
                Some(binary) => {
                    self.upgrade = Some((number, binary));
                    None
                }
                None => Some(Err(invalid("upgrade: no binary came with the request"))),
            },
            Op::Handover(containers) => {
                Some(Ok((Answer::TakenOver(self.take_over(containers, fds)), Vec::new())))
            }
            Op::Quit => Some(self.quit()),
            Op::Delegate(plan) => self.delegate(number, plan, fds).err().map(Err),
        };
        if let Some(outcome) = outcome {
            self.reply(number, outcome);
        }
    }

    /// Sends an answer to the daemon that is connected now.
    pub(super) fn reply(&mut self, number: u64, outcome: Outcome) {
        let (result, fds) = match outcome {
            Ok((answer, fds)) => (Ok(answer), fds),
            Err(failure) => (Err(failure), Vec::new()),
        };
        self.send(&ToDaemon::Reply { number, result }, fds);
    }

    fn hello(&mut self) -> (Answer, Vec<OwnedFd>) {
        if let Some(daemon) = &mut self.daemon {
            daemon.greeted = true;
        }
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let build = crate::build_id().to_owned();
        (Answer::Hello(Hello { version: VERSION, build, pid, state: self.state() }), Vec::new())
    }

    fn state(&self) -> State {
        State { containers: self.containers.values().map(Container::state).collect() }
    }

    fn signal(&mut self, id: &str, signal: i32, target: SignalTarget) -> Outcome {
        let container = self.get(id)?;
        let sent = match (target, &container.cgroup) {
            (SignalTarget::Cgroup, Some(group)) if signal == libc::SIGKILL => match group.kill() {
                // cgroup.kill does not exist before Linux 5.14.
                Err(Errno::NOENT) => group.signal(signal),
                other => other,
            },
            (SignalTarget::Cgroup, Some(group)) => group.signal(signal),
            (SignalTarget::Cgroup, None) | (SignalTarget::Main, _) => match &container.pidfd {
                Some(pidfd) => sys::process::pidfd_signal(pidfd, signal),
                None => Err(Errno::SRCH),
            },
        };
        match sent {
            Ok(()) => done(),
            // The group of a container that has exited may be gone already: nobody is left in it.
            Err(Errno::NODEV | Errno::NOENT) if target == SignalTarget::Cgroup => done(),
            Err(Errno::SRCH) => Err(wrong_state(format!("signal {signal} to {id}: it has exited"))),
            Err(errno) => Err(os(format!("signal {signal} to {id}"), errno)),
        }
    }

    fn reopen_log(&mut self, id: &str, fds: Vec<OwnedFd>) -> Outcome {
        let file =
            fds.into_iter().next().ok_or_else(|| invalid("reopen the log: no file came with the request"))?;
        let container = self.get(id)?;
        match &mut container.log {
            Some(log) => log.reopen(file),
            None => container.log = Some(super::log::LogFile::new(file, 0)),
        }
        done()
    }

    fn attach(&mut self, id: &str, stdin: bool, stdout: bool, stderr: bool) -> Outcome {
        let container = self.get(id)?;
        if container.exit.is_some() {
            return Err(wrong_state(format!("attach to {id}: it has exited")));
        }
        let failed = |errno| os(format!("attach to {id}"), errno);
        let before = container.attached.len();
        let mut streams = Streams::default();
        let mut fds = Vec::new();
        if stdin && let Some(end) = &container.stdin {
            fds.push(duplicate(end).map_err(failed)?);
            streams.stdin = true;
        }
        // A terminal has one output.
        for (stream, wanted) in [(Stream::Stdout, stdout), (Stream::Stderr, stderr)] {
            if wanted && container.output(stream).is_some() {
                fds.push(container.attach(stream).map_err(failed)?);
                match stream {
                    Stream::Stdout => streams.stdout = true,
                    Stream::Stderr => streams.stderr = true,
                }
            }
        }
        if container.has_terminal()
            && let Some(master) = &container.stdout
        {
            fds.push(duplicate(&master.fd).map_err(failed)?);
            streams.terminal = true;
        }
        if let Some((key, container)) = self.containers.iter().find(|(_, container)| container.id == id) {
            for attached in &container.attached[before..] {
                self.watch_attached(*key, &attached.fd).map_err(failed)?;
            }
        }
        Ok((Answer::Attached(streams), fds))
    }

    fn resize(&mut self, id: &str, columns: u16, rows: u16) -> Outcome {
        let container = self.get(id)?;
        match &container.stdout {
            Some(master) if container.has_terminal() => {
                sys::pty::resize(master.fd.as_fd(), columns, rows)
                    .map_err(|errno| os(format!("resize the terminal of {id}"), errno))?;
                done()
            }
            _ => Err(wrong_state(format!("resize the terminal of {id}: it has none (any more)"))),
        }
    }

    fn close_stdin(&mut self, id: &str) -> Outcome {
        self.get(id)?.stdin = None;
        done()
    }

    fn forget(&mut self, id: &str) -> Outcome {
        match self.find(id) {
            Some((_, container)) if container.exit.is_none() => {
                Err(wrong_state(format!("forget {id}: it still runs")))
            }
            Some((key, _)) => {
                self.remove(key);
                done()
            }
            None => done(),
        }
    }

    fn quit(&mut self) -> Outcome {
        let running = self.containers.values().filter(|c| c.exit.is_none()).count();
        if running + self.pending.len() > 0 {
            return Err(wrong_state(format!("quit: {running} containers still run")));
        }
        self.quit = true;
        done()
    }

    pub(super) fn get(&mut self, id: &str) -> Result<&mut Container, Failure> {
        self.find(id).map(|(_, container)| container).ok_or_else(|| Failure {
            kind: FailureKind::NotFound,
            message: format!("the keeper knows no container {id}"),
        })
    }
}

/// The plain answer.
pub fn done() -> Outcome {
    Ok((Answer::Done, Vec::new()))
}

/// A request that cannot be understood.
pub fn invalid(message: impl Into<String>) -> Failure {
    Failure { kind: FailureKind::Invalid, message: message.into() }
}

/// A request that comes too early or too late.
pub fn wrong_state(message: impl Into<String>) -> Failure {
    Failure { kind: FailureKind::WrongState, message: message.into() }
}

/// A kernel call that failed.
pub fn os(what: impl Into<String>, errno: Errno) -> Failure {
    let message = format!("{}: {}", what.into(), words(errno));
    Failure { kind: FailureKind::Os(errno.raw_os_error()), message }
}

/// Takes a descriptor out of a request's array; each can be taken once.
pub fn take(fds: &mut [Option<OwnedFd>], index: FdIndex) -> Result<OwnedFd, Failure> {
    let slot = fds.get_mut(usize::from(index.0)).and_then(Option::take);
    slot.ok_or_else(|| invalid(format!("descriptor {} is missing or used twice", index.0)))
}
