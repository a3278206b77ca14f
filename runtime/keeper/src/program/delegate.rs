//! Delegated starts: the parent's side.
//!
//! One child (the stage) prepares the mounts and runs the runtime's commands. When it has ended, the process whose id
//! the runtime wrote is the keeper's child, because the keeper is the subreaper of its descendants.
//!
//! Guarantees: a container whose start failed half-way is killed and reaped; an orphan that nobody asked for is
//! reaped, but never one that a running start may own.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll::EventFlags;
use rustix::fs::{Mode, OFlags};
use sys::Errno;
use sys::process::Strings;

use super::child::stage::Staging;
use super::container::Container;
use super::indexes::check_indexes;
use super::launch::{Ends, Pending};
use super::report::{self, Op, Plan, Stage, Trouble};
use super::requests::{Outcome, done, os};
use super::server::{Server, Source, exit_how, now};
use crate::delegate::{DelegatePlan, Task};
use crate::plan::{ExecStdio, FdIndex};
use crate::protocol::{Answer, Failure, FailureKind};

/// Most bytes of a file with a process id.
const PID_FILE: usize = 32;

impl Server {
    /// Starts the commands of another runtime.
    pub(super) fn delegate(
        &mut self,
        number: u64,
        plan: Box<DelegatePlan>,
        fds: Vec<OwnedFd>,
    ) -> Result<(), Failure> {
        check_indexes(plan.indexes(), fds.len())?;
        let what = plan.what();
        let failed = |errno| os(what.clone(), errno);
        self.adopt_orphans().map_err(failed)?;
        let (mut ends, mut theirs) = (Ends::default(), [None, None, None]);
        match &plan.task {
            Task::Container { id, stdio, .. } => {
                self.check_new(id)?;
                (ends, theirs) = self.pipes(*stdio).map_err(failed)?;
            }
            Task::Exec { container, .. } => {
                self.get(container)?;
            }
            Task::Command { .. } => {}
        }
        let borrow = |index: Option<FdIndex>| index.map(|i| fds[usize::from(i.0)].as_fd());
        let streams = match &plan.task {
            Task::Exec { stdio: ExecStdio::Streams { stdin, stdout, stderr }, .. } => {
                [borrow(*stdin), borrow(*stdout), borrow(*stderr)]
            }
            Task::Command { output, .. } => [None, borrow(*output), borrow(*output)],
            _ => theirs.each_ref().map(|fd| fd.as_ref().map(AsFd::as_fd)),
        };
        let (ours, report) = sys::socket::pair().map_err(failed)?;
        let staging = Staging {
            plan: &plan,
            commands: plan.commands.iter().cloned().map(Strings::new).collect(),
            env: Strings::new(plan.env.clone()),
            streams,
            report: report.as_fd(),
            fds: &fds,
            keep: Vec::new(),
            descriptor_limit: self.descriptor_limit,
            parent: rustix::process::getpid(),
        }
        .keep();
        let started_at = now();
        let (pid, pidfd) = self.clone_child(0, None, || staging.run()).map_err(failed)?;
        drop((report, theirs));
        let mut fds: Vec<Option<OwnedFd>> = fds.into_iter().map(Some).collect();
        let mut keep = |index: Option<FdIndex>| index.and_then(|i| fds[usize::from(i.0)].take());
        let (log, cgroup) = match &plan.task {
            Task::Container { log, cgroup, .. } => (keep(*log), keep(*cgroup)),
            _ => (None, None),
        };
        let directory = keep(plan.pid_file.as_ref().map(|(fd, _)| *fd));
        let pending = Pending {
            number,
            serial: self.serial(),
            report: ours,
            pid,
            pidfd: Some(pidfd),
            note: None,
            deadline: None,
            started_at,
            plan: Plan::Delegate(plan),
            ends,
            log,
            cgroup,
            terminal: None,
            warnings: Vec::new(),
            failure: None,
            ready: false,
            born: false,
            child: true,
            directory,
        };
        self.await_report(pending)
    }

    /// The stage has ended: its work becomes a container or an exec.
    pub(super) fn delegated(&mut self, mut pending: Pending) -> Outcome {
        let ended = pending.pidfd.as_ref().map_or(Err(Errno::CHILD), sys::process::wait);
        let Plan::Delegate(plan) = &pending.plan else { return done() };
        let plan = plan.clone();
        let made = self.made(&plan, pending.directory.as_ref());
        let failure = match (pending.failure, pending.ready, ended) {
            (Some(trouble), ..) => Some(failure(&plan, trouble)),
            (None, true, _) => None,
            (None, false, Ok(status)) => Some(unfinished(&plan, &exit_how(status).to_string())),
            (None, false, Err(errno)) => Some(unfinished(&plan, &report::words(errno))),
        };
        if let Some(failure) = failure {
            // What was made so far must not run on.
            if let Ok(Some((_, pidfd, child))) = made {
                let _ = sys::process::pidfd_signal(&pidfd, libc::SIGKILL);
                if child {
                    let _ = sys::process::wait(&pidfd);
                }
            }
            return Err(failure);
        }
        let what = plan.what();
        let nobody = || Failure {
            kind: FailureKind::Command,
            message: format!("{what}: the runtime wrote no process id"),
        };
        let made =
            made.map_err(|errno| os(format!("{what}: find the process that the runtime made"), errno))?;
        match plan.task {
            Task::Command { .. } => done(),
            Task::Container { .. } => {
                let (pid, pidfd, child) = made.ok_or_else(nobody)?;
                (pending.pid, pending.pidfd, pending.child) = (pid, Some(pidfd), child);
                self.container_started(pending)
            }
            Task::Exec { container, id, .. } => {
                let (pid, pidfd, child) = made.ok_or_else(nobody)?;
                (pending.pid, pending.pidfd, pending.child) = (pid, Some(pidfd), child);
                let warnings = std::mem::take(&mut pending.warnings);
                let (pid, fds) = self.exec_started(pending, container, id)?;
                Ok((Answer::ExecStarted { pid, warnings }, fds))
            }
        }
    }

    /// The process that the runtime made: its id, a pidfd, and whether it is our child.
    fn made(
        &self,
        plan: &DelegatePlan,
        directory: Option<&OwnedFd>,
    ) -> sys::Result<Option<(i32, OwnedFd, bool)>> {
        let (Some((_, name)), Some(directory)) = (&plan.pid_file, directory) else { return Ok(None) };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(directory, name.as_c_str(), flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            other => other?,
        };
        let mut text = [0; PID_FILE];
        let len = rustix::io::read(&file, &mut text)?;
        let pid = std::str::from_utf8(&text[..len]).ok().and_then(|text| text.trim().parse::<i32>().ok());
        let pid = pid.filter(|pid| *pid > 1).ok_or(Errno::INVAL)?;
        let pidfd = sys::process::pidfd_open(pid)?;
        let child = sys::children::is_child(&pidfd);
        Ok(Some((pid, pidfd, child)))
    }

    /// Becomes the parent of what descendants leave behind.
    pub(super) fn adopt_orphans(&mut self) -> sys::Result<()> {
        if self.signals.is_some() {
            return Ok(());
        }
        let signals = sys::children::end_signals()?;
        self.watch(&signals, Source::Children, EventFlags::IN)?;
        sys::children::become_subreaper()?;
        self.signals = Some(signals);
        Ok(())
    }

    pub(super) fn children_ended(&mut self) {
        if let Some(signals) = &self.signals {
            sys::children::take_signals(signals);
        }
        self.reap_strays();
    }

    /// Reaps children that ended and that nobody here knows.
    pub(super) fn reap_strays(&mut self) {
        if self.signals.is_none() || !self.pending.is_empty() {
            // A running start may be about to find its process among them; it calls here when it is complete.
            return;
        }
        while let Ok(Some(pid)) = sys::children::ended() {
            // The kernel shows one at a time, so those that are known are taken up here as well.
            let known = |c: &Container| c.process.pid == pid && c.child && c.exit.is_none();
            let container = self.containers.iter().find(|(_, c)| known(c)).map(|(key, _)| *key);
            if let Some(key) = container {
                self.process_ready(key, EventFlags::IN);
                continue;
            }
            let execs: Vec<u32> = self.execs.keys().copied().collect();
            for key in execs {
                self.exec_ready(key);
            }
            if sys::children::ended() == Ok(Some(pid)) && sys::children::reap(pid).is_err() {
                return;
            }
        }
    }
}

/// The failure that a report of a stage means, in words.
pub fn failure(plan: &DelegatePlan, trouble: Trouble) -> Failure {
    let number = (trouble.index >> 16) as usize;
    let command = || {
        let words = plan.commands.get(number).map(Vec::as_slice).unwrap_or_default();
        let words: Vec<String> = words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        words.join(" ")
    };
    let what = plan.what();
    match (trouble.stage, trouble.op) {
        (Stage::Command, Op::Check) => {
            let how = exit_how(report::exit_of(trouble.index));
            Failure {
                kind: FailureKind::Command,
                message: format!("{what}: {:?} ended with {how}", command()),
            }
        }
        (Stage::Command, op) => {
            let message = format!("{what}: {}: {:?}: {}", op.word(), command(), report::words(trouble.errno));
            Failure { kind: FailureKind::Os(trouble.errno.raw_os_error()), message }
        }
        (stage, op) => {
            let message = format!(
                "{what}: {} ({}): {}: {}",
                stage.word(),
                trouble.index,
                op.word(),
                report::words(trouble.errno)
            );
            Failure { kind: FailureKind::Os(trouble.errno.raw_os_error()), message }
        }
    }
}

fn unfinished(plan: &DelegatePlan, how: &str) -> Failure {
    let message = format!("{}: the stage of the runtime broke off: {how}", plan.what());
    Failure { kind: FailureKind::Os(Errno::CHILD.raw_os_error()), message }
}
