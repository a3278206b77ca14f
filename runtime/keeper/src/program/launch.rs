//! Starting containers, inits and execs: the parent's side.
//!
//! Everything is made ready, one clone3 makes the child, and the loop goes on; the end of the
//! child's report socket tells that its program runs.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::EventFlags;
use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;
use sys::process::{Cloned, Strings, ns};
use sys::{Errno, Result as SysResult};

use super::child::{Job, Streams as ChildStreams, Task as ChildTask, users};
use super::container::{Container, Output, duplicate, set_nonblocking};
use super::log::{Lines, LogFile, Stream};
use super::report::{self, Plan, Severity, Trouble};
use super::requests::{invalid, os, wrong_state};
use super::server::{Exec, Server, Source, now};
use crate::delegate::Task;
use crate::plan::{ExecPlan, ExecStdio, FdIndex, InitPlan, LaunchPlan, Namespace, Stdio, Step};
use crate::protocol::{Answer, Failure, FailureKind, Launched, ProcessId, Streams, UnixNanos};

/// A child whose program does not run yet.
#[derive(Debug)]
pub struct Pending {
    pub(super) number: u64,
    pub(super) serial: u32,
    pub(super) report: OwnedFd,
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    pub(super) started_at: UnixNanos,
    pub(super) plan: Plan,
    pub(super) ends: Ends,
    pub(super) log: Option<OwnedFd>,
    pub(super) cgroup: Option<OwnedFd>,
    pub(super) terminal: Option<OwnedFd>,
    pub(super) warnings: Vec<String>,
    pub(super) failure: Option<Trouble>,
    pub(super) ready: bool,
    /// Whether the process is our child, so that its end can be reaped.
    pub(super) child: bool,
    /// Where a delegated start's process id is written.
    pub(super) directory: Option<OwnedFd>,
    /// Whether the process is another than the one that was cloned: its number is not known yet.
    pub(super) born: bool,
}

/// The keeper's ends of a container's pipes.
#[derive(Debug, Default)]
pub(super) struct Ends {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

impl Server {
    /// Starts a container.
    pub(super) fn launch(
        &mut self,
        number: u64,
        plan: Box<LaunchPlan>,
        fds: Vec<OwnedFd>,
    ) -> Result<(), Failure> {
        self.check_new(&plan.id)?;
        check_indexes(launch_indexes(&plan), fds.len())?;
        let what = format!("start {}", plan.id);
        let failed = |errno| os(what.clone(), errno);
        let (ends, theirs) = self.pipes(plan.stdio).map_err(failed)?;
        let streams = match plan.stdio {
            Stdio::Terminal { columns, rows } => ChildStreams::Terminal(columns, rows),
            _ => ChildStreams::Given(theirs.each_ref().map(|fd| fd.as_ref().map(AsFd::as_fd))),
        };
        let borrow = |index: Option<FdIndex>| index.map(|i| fds[usize::from(i.0)].as_fd());
        let namespaces = &plan.namespaces;
        let join_pid = match namespaces.pid {
            Namespace::Join(index) => borrow(Some(index)),
            _ => None,
        };
        let flags = new_flags(plan.namespaces) | ns::MOUNT;
        // In a user namespace the child makes another, which is born into the others.
        let first = if plan.user_namespace.is_some() { 0 } else { flags };
        let (ours, report) = sys::socket::pair().map_err(failed)?;
        let job = Job {
            task: ChildTask::Launch(&plan),
            args: Strings::new(plan.process.args.clone()),
            env: Strings::new(plan.process.env.clone()),
            streams,
            report: Cell::new(report.as_fd()),
            proc: &self.proc,
            fds: &fds,
            descriptor_limit: self.descriptor_limit,
            keep: Vec::new(),
            flags,
        };
        let job = if namespaces.pid == Namespace::New { job } else { job.keep() };
        let started_at = now();
        let (pid, pidfd) =
            self.clone_child(first, borrow(plan.cgroup), join_pid, || job.run()).map_err(failed)?;
        drop((report, theirs));
        let mut fds: Vec<Option<OwnedFd>> = fds.into_iter().map(Some).collect();
        let mut keep = |index: Option<FdIndex>| index.and_then(|i| fds[usize::from(i.0)].take());
        let (log, cgroup) = (keep(plan.log), keep(plan.cgroup));
        let pending = Pending {
            number,
            serial: self.serial(),
            report: ours,
            pid,
            pidfd,
            started_at,
            plan: Plan::Launch(plan),
            ends,
            log,
            cgroup,
            terminal: None,
            warnings: Vec::new(),
            failure: None,
            ready: false,
            born: false,
            child: true,
            directory: None,
        };
        self.await_report(pending)
    }

    /// Starts the init of a shared pid namespace: this very program, with nothing in its hands.
    pub(super) fn launch_init(
        &mut self,
        number: u64,
        plan: InitPlan,
        fds: Vec<OwnedFd>,
    ) -> Result<(), Failure> {
        self.check_new(&plan.id)?;
        let joins = [plan.namespaces.net, plan.namespaces.ipc, plan.namespaces.uts];
        let indexes: Vec<FdIndex> = joins.into_iter().filter_map(joined).collect();
        let user = plan.user_namespace;
        check_indexes(indexes.iter().copied().chain(plan.cgroup).chain(user), fds.len())?;
        let what = format!("start the init {}", plan.id);
        let failed = |errno| os(what.clone(), errno);
        let args = Strings::new(vec![c"orlop-init".to_owned(), c"init".to_owned()]);
        let env = Strings::new(Vec::new());
        let (ours, report) = sys::socket::pair().map_err(failed)?;
        let program = self.program.as_fd();
        let child = || {
            sys::process::reset_signals();
            let place =
                |errno| Trouble { stage: report::Stage::Namespace, op: report::Op::Setns, index: 0, errno };
            let born = match user {
                Some(user) => sys::namespace::join(&fds[usize::from(user.0)])
                    .map_err(place)
                    .and_then(|()| {
                        let tell = |trouble, pidfd: BorrowedFd<'_>| {
                            let bytes = report::encode(Severity::Born, trouble);
                            sys::socket::send(&report, &bytes, &[pidfd]).is_ok()
                        };
                        users::be_born(ns::PID | ns::MOUNT, tell)
                    })
                    .and_then(|()| users::become_root()),
                None => Ok(()),
            };
            let joined = born.and_then(|()| {
                indexes.iter().try_for_each(|i| sys::namespace::join(&fds[usize::from(i.0)])).map_err(place)
            });
            let trouble = match joined.and_then(|()| rustix::process::setsid().map(drop).map_err(place)) {
                Ok(()) => {
                    // Standard error may be the daemon's log; the init says nothing.
                    // SAFETY: this process is about to exec and owns none of the numbers 0 to 2.
                    let _ = unsafe {
                        sys::process::place_fd(rustix::stdio::stdin(), 1)
                            .and_then(|()| sys::process::place_fd(rustix::stdio::stdin(), 2))
                    };
                    place(sys::process::exec_fd(program, &args, &env))
                }
                Err(trouble) => trouble,
            };
            let _ = sys::socket::send(&report, &report::encode(Severity::Failure, trouble), &[]);
        };
        let cgroup = plan.cgroup.map(|i| fds[usize::from(i.0)].as_fd());
        let started_at = now();
        let flags = if user.is_some() { 0 } else { ns::PID | ns::MOUNT };
        let (pid, pidfd) = self.clone_child(flags, cgroup, None, child).map_err(failed)?;
        drop(report);
        let cgroup = plan.cgroup.and_then(|i| fds.into_iter().nth(usize::from(i.0)));
        let pending = Pending {
            number,
            serial: self.serial(),
            report: ours,
            pid,
            pidfd,
            started_at,
            plan: Plan::Init(plan.id),
            ends: Ends::default(),
            log: None,
            cgroup,
            terminal: None,
            warnings: Vec::new(),
            failure: None,
            ready: true,
            born: false,
            child: true,
            directory: None,
        };
        self.await_report(pending)
    }

    /// Starts a process in a container.
    pub(super) fn exec(
        &mut self,
        number: u64,
        plan: Box<ExecPlan>,
        fds: Vec<OwnedFd>,
    ) -> Result<(), Failure> {
        check_indexes(exec_indexes(&plan), fds.len())?;
        let what = format!("exec in {}", plan.container);
        let failed = |errno| match errno {
            Errno::SRCH => wrong_state(format!("{what}: the container has exited")),
            errno => os(what.clone(), errno),
        };
        let busy = self.execs.values().any(|e| e.container == plan.container && e.id == plan.id);
        if busy {
            let message = format!("{what}: an exec {} runs already", plan.id);
            return Err(Failure { kind: FailureKind::Exists, message });
        }
        let own_cgroup = plan.cgroup.map(|i| fds[usize::from(i.0)].as_fd());
        let container = self.get(&plan.container)?;
        let Some(pidfd) = &container.pidfd else {
            return Err(wrong_state(format!("{what}: the container has exited")));
        };
        let target = duplicate(pidfd).map_err(failed)?;
        let cgroup = match (own_cgroup, &container.cgroup) {
            (Some(own), _) => Some(duplicate(own).map_err(failed)?),
            (None, Some(group)) => Some(duplicate(group.fd()).map_err(failed)?),
            (None, None) => None,
        };
        let borrow = |index: Option<FdIndex>| index.map(|i| fds[usize::from(i.0)].as_fd());
        let streams = match plan.stdio {
            ExecStdio::Streams { stdin, stdout, stderr } => {
                ChildStreams::Given([borrow(stdin), borrow(stdout), borrow(stderr)])
            }
            ExecStdio::Terminal { columns, rows } => ChildStreams::Terminal(columns, rows),
        };
        let (ours, report) = sys::socket::pair().map_err(failed)?;
        let job = Job {
            task: ChildTask::Exec { plan: &plan, target: target.as_fd() },
            args: Strings::new(plan.process.args.clone()),
            env: Strings::new(plan.process.env.clone()),
            streams,
            report: Cell::new(report.as_fd()),
            proc: &self.proc,
            fds: &fds,
            descriptor_limit: self.descriptor_limit,
            keep: Vec::new(),
            flags: 0,
        }
        .keep();
        let cgroup = cgroup.as_ref().map(AsFd::as_fd);
        let started_at = now();
        let (pid, pidfd) = self.clone_child(0, cgroup, Some(target.as_fd()), || job.run()).map_err(failed)?;
        drop(report);
        let pending = Pending {
            number,
            serial: self.serial(),
            report: ours,
            pid,
            pidfd,
            started_at,
            plan: Plan::Exec(plan),
            ends: Ends::default(),
            log: None,
            cgroup: None,
            terminal: None,
            warnings: Vec::new(),
            failure: None,
            ready: false,
            born: false,
            child: true,
            directory: None,
        };
        self.await_report(pending)
    }

    pub(super) fn check_new(&mut self, id: &str) -> Result<(), Failure> {
        let starts = self.pending.values().any(|p| match &p.plan {
            Plan::Launch(plan) => plan.id == id,
            Plan::Init(init) => init == id,
            Plan::Exec(_) => false,
            Plan::Delegate(plan) => {
                matches!(&plan.task, Task::Container { id: of_plan, .. } if of_plan == id)
            }
        });
        if starts || self.find(id).is_some() {
            let message = format!("start {id}: a container of that id is known; forget it first");
            return Err(Failure { kind: FailureKind::Exists, message });
        }
        Ok(())
    }

    pub(super) fn serial(&self) -> u32 {
        self.daemon.as_ref().map_or(0, |daemon| daemon.serial)
    }

    /// Makes the child. `pid` is the pid namespace it is born in: a namespace file or a pidfd.
    pub(super) fn clone_child(
        &self,
        flags: u64,
        cgroup: Option<BorrowedFd<'_>>,
        pid: Option<BorrowedFd<'_>>,
        child: impl FnOnce(),
    ) -> SysResult<(i32, OwnedFd)> {
        if let Some(pid) = pid {
            // A pidfd and a namespace file are told apart by what setns accepts.
            match sys::namespace::children_in(pid) {
                Err(Errno::INVAL) => sys::namespace::join_process(pid, ns::PID)?,
                other => other?,
            }
        }
        // SAFETY: this program has one thread, so the child may do whatever it could have done.
        let cloned = unsafe { sys::process::clone3(flags, cgroup, false) };
        if pid.is_some()
            && !matches!(cloned, Ok(Cloned::Child))
            && let Err(errno) = sys::namespace::children_in(&self.own_pid_namespace)
        {
            // The next container would be born in a stranger's namespace.
            panic!("return to the own pid namespace: {errno}");
        }
        match cloned? {
            Cloned::Child => {
                child();
                sys::process::exit_now(127)
            }
            Cloned::Parent { pid, pidfd } => Ok((pid, pidfd)),
        }
    }

    /// The pipes of a container: our ends, and theirs for 0, 1 and 2.
    pub(super) fn pipes(&self, stdio: Stdio) -> SysResult<(Ends, [Option<OwnedFd>; 3])> {
        let Stdio::Pipes { stdin } = stdio else { return Ok((Ends::default(), [None, None, None])) };
        let output = || {
            let (ours, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            set_nonblocking(&ours)?;
            // Open for reading as well, the container never gets SIGPIPE, even if keeper and
            // daemon both die.
            let both = self.reopen(&theirs, OFlags::RDWR)?;
            SysResult::Ok((ours, both))
        };
        let (stdout, their_stdout) = output()?;
        let (stderr, their_stderr) = output()?;
        let mut ends = Ends { stdin: None, stdout: Some(stdout), stderr: Some(stderr) };
        let mut their_stdin = None;
        if stdin {
            let (theirs, ours) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            set_nonblocking(&ours)?;
            ends.stdin = Some(ours);
            their_stdin = Some(theirs);
        }
        Ok((ends, [their_stdin, Some(their_stdout), Some(their_stderr)]))
    }

    /// Opens what a descriptor of ours is open on once more.
    fn reopen(&self, fd: &OwnedFd, flags: OFlags) -> SysResult<OwnedFd> {
        let path = format!("self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(fd));
        rustix::fs::openat(self.proc.fd(), path, flags | OFlags::CLOEXEC, Mode::empty())
    }

    pub(super) fn await_report(&mut self, pending: Pending) -> Result<(), Failure> {
        let key = self.new_key();
        let watched = self.watch(&pending.report, Source::Report(key), EventFlags::IN);
        self.pending.insert(key, pending);
        // Without epoll the child's end would never be seen: look at once, by waiting for it.
        watched.map_err(|errno| os("watch a starting child", errno))
    }

    /// Reads what a child reports; at the end of the socket its start is complete.
    pub(super) fn read_report(&mut self, key: u32) {
        let Some(pending) = self.pending.get_mut(&key) else { return };
        loop {
            let mut bytes = [0; report::LEN + 1];
            match sys::socket::receive(&pending.report, &mut bytes) {
                Ok((0, _)) => break,
                Ok((len, fds)) => match report::decode(&bytes[..len]) {
                    // The first is the cause.
                    Some((Severity::Failure, trouble)) => drop(pending.failure.get_or_insert(trouble)),
                    Some((Severity::Warning, trouble)) => {
                        pending.warnings.push(report::sentence(&pending.plan, trouble));
                    }
                    Some((Severity::Ready, _)) => pending.ready = true,
                    Some((Severity::Terminal, _)) => pending.terminal = fds.into_iter().next(),
                    Some((Severity::Born, _)) => {
                        if let Some(pidfd) = fds.into_iter().next() {
                            let first = std::mem::replace(&mut pending.pidfd, pidfd);
                            // It ends right after this report; nobody else reaps it.
                            let _ = sys::process::wait(&first);
                            pending.born = true;
                        }
                    }
                    None => {}
                },
                Err(Errno::AGAIN | Errno::INTR) => return,
                Err(_) => break,
            }
        }
        if let Some(pending) = self.pending.remove(&key) {
            self.complete(pending);
        }
    }

    fn complete(&mut self, mut pending: Pending) {
        let (number, serial) = (pending.number, pending.serial);
        let renumbered = if pending.born {
            sys::process::pid_of(self.proc.fd(), &pending.pidfd).map(|pid| pending.pid = pid)
        } else {
            Ok(())
        };
        let outcome = if matches!(pending.plan, Plan::Delegate(_)) {
            self.delegated(pending)
        } else if let Some(trouble) = pending.failure {
            // It said its last word and exits; nobody else reaps it.
            let _ = sys::process::wait(&pending.pidfd);
            Err(report::failure(&pending.plan, trouble))
        } else if !pending.ready {
            let how = match sys::process::wait(&pending.pidfd) {
                Ok(status) => super::server::exit_how(status).to_string(),
                Err(errno) => report::words(errno),
            };
            let message = format!("the child ended before it ran its program: {how}");
            Err(Failure { kind: FailureKind::Os(Errno::CHILD.raw_os_error()), message })
        } else if let Err(errno) = renumbered {
            // It may have ended already, but unseen it must not go on.
            let _ = sys::process::pidfd_signal(&pending.pidfd, libc::SIGKILL);
            let _ = sys::process::wait(&pending.pidfd);
            Err(os("find the process id of the child", errno))
        } else if let Plan::Exec(plan) = &pending.plan {
            let (container, id) = (plan.container.clone(), plan.id.clone());
            let warnings = std::mem::take(&mut pending.warnings);
            self.exec_started(pending, container, id).map(|fds| {
                let (pid, fds) = fds;
                (Answer::ExecStarted { pid, warnings }, fds)
            })
        } else {
            self.container_started(pending)
        };
        // A daemon that came meanwhile did not ask for this; it learns it from the state.
        if self.serial() == serial {
            self.reply(number, outcome);
        }
        // What was left alone because this start might have owned it.
        self.reap_strays();
    }

    pub(super) fn exec_started(
        &mut self,
        pending: Pending,
        container: String,
        id: String,
    ) -> Result<(i32, Vec<OwnedFd>), Failure> {
        let what = format!("exec in {container}");
        let failed = |errno| os(what.clone(), errno);
        let mut fds = vec![duplicate(&pending.pidfd).map_err(failed)?];
        if let Some(master) = pending.terminal {
            set_nonblocking(&master).map_err(failed)?;
            fds.push(master);
        }
        let key = self.new_key();
        self.watch(&pending.pidfd, Source::Exec(key), EventFlags::IN).map_err(failed)?;
        self.execs.insert(key, Exec { container, id, pidfd: pending.pidfd });
        Ok((pending.pid, fds))
    }

    pub(super) fn container_started(&mut self, pending: Pending) -> Result<(Answer, Vec<OwnedFd>), Failure> {
        let (id, init, stdio, stdin_once) = match pending.plan {
            Plan::Launch(plan) => (plan.id.clone(), false, plan.stdio, plan.stdin_once),
            Plan::Init(id) => (id, true, Stdio::Null, false),
            Plan::Delegate(plan) => match plan.task {
                Task::Container { id, stdio, stdin_once, .. } => (id, false, stdio, stdin_once),
                _ => return Err(invalid("a command is no container")),
            },
            Plan::Exec(_) => return Err(invalid("an exec is no container")),
        };
        let what = format!("start {id}");
        let failed = |errno| os(what.clone(), errno);
        let start_ticks = sys::process::start_time(self.proc.fd(), pending.pid).map_err(failed)?;
        let process = ProcessId { pid: pending.pid, start_ticks };
        let mut stdout = pending.ends.stdout;
        if let Some(master) = pending.terminal {
            set_nonblocking(&master).map_err(failed)?;
            stdout = Some(master);
        }
        let output = |fd: Option<OwnedFd>, stream| fd.map(|fd| Output { fd, lines: Lines::new(stream) });
        let container = Container {
            id,
            init,
            process,
            started_at: pending.started_at,
            pidfd: Some(pending.pidfd),
            child: pending.child,
            exit: None,
            stdio,
            stdin_once,
            stdin: pending.ends.stdin,
            stdout: output(stdout, Stream::Stdout),
            stderr: output(pending.ends.stderr, Stream::Stderr),
            log: pending.log.map(|file| LogFile::new(file, 0)),
            cgroup: pending.cgroup.map(sys::cgroup::Group::from_fd),
            attached: Vec::new(),
        };
        let (streams, fds) = duplicates(&container).map_err(failed)?;
        let key = self.new_key();
        self.watch_container(key, &container).map_err(failed)?;
        self.containers.insert(key, container);
        let launched =
            Launched { process, started_at: pending.started_at, warnings: pending.warnings, streams };
        Ok((Answer::Launched(launched), fds))
    }
}

/// The pidfd and duplicates of the keeper's ends.
fn duplicates(container: &Container) -> SysResult<(Streams, Vec<OwnedFd>)> {
    let mut fds = Vec::new();
    let mut add = |fd: Option<&OwnedFd>| -> SysResult<bool> {
        if let Some(fd) = fd {
            fds.push(duplicate(fd)?);
        }
        Ok(fd.is_some())
    };
    add(container.pidfd.as_ref())?;
    let terminal = container.has_terminal();
    let stdout = container.stdout.as_ref().map(|output| &output.fd);
    let streams = Streams {
        stdin: add(container.stdin.as_ref())?,
        stdout: add(stdout.filter(|_| !terminal))?,
        stderr: add(container.stderr.as_ref().map(|output| &output.fd))?,
        terminal: add(stdout.filter(|_| terminal))?,
    };
    Ok((streams, fds))
}

/// The `CLONE_NEW*` bits of namespaces that the clone itself makes.
fn new_flags(namespaces: crate::plan::Namespaces) -> u64 {
    let kinds = [
        (namespaces.pid, ns::PID),
        (namespaces.net, ns::NET),
        (namespaces.ipc, ns::IPC),
        (namespaces.uts, ns::UTS),
    ];
    kinds
        .into_iter()
        .filter(|(namespace, _)| *namespace == Namespace::New)
        .fold(0, |flags, (_, flag)| flags | flag)
}

fn joined(namespace: Namespace) -> Option<FdIndex> {
    match namespace {
        Namespace::Join(index) => Some(index),
        Namespace::Host | Namespace::New => None,
    }
}

fn launch_indexes(plan: &LaunchPlan) -> impl Iterator<Item = FdIndex> {
    let namespaces = &plan.namespaces;
    let joins = [namespaces.pid, namespaces.net, namespaces.ipc, namespaces.uts, namespaces.cgroup];
    let attached = plan.steps.iter().filter_map(|step| match step {
        Step::Attach { fd, .. } => Some(*fd),
        _ => None,
    });
    attached
        .chain(joins.into_iter().filter_map(joined))
        .chain([plan.rootfs.fd])
        .chain(plan.cgroup)
        .chain(plan.log)
        .chain(plan.user_namespace.map(|user| user.fd))
}

fn exec_indexes(plan: &ExecPlan) -> impl Iterator<Item = FdIndex> {
    let streams = match plan.stdio {
        ExecStdio::Streams { stdin, stdout, stderr } => [stdin, stdout, stderr],
        ExecStdio::Terminal { .. } => [None; 3],
    };
    streams.into_iter().flatten().chain(plan.cgroup)
}

/// The child and `launch` index without checking again.
pub(super) fn check_indexes(indexes: impl IntoIterator<Item = FdIndex>, count: usize) -> Result<(), Failure> {
    match indexes.into_iter().find(|index| usize::from(index.0) >= count) {
        Some(index) => {
            Err(invalid(format!("the plan names descriptor {}, but {count} came with it", index.0)))
        }
        None => Ok(()),
    }
}
