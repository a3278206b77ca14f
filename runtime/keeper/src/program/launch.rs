//! Starting containers, inits and execs: the parent's side.
//!
//! Everything is made ready, one clone3 makes the child, and the loop goes on; the end of the
//! child's report socket tells that its program runs.

use std::cell::Cell;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;
use sys::process::{Cloned, ExitStatus, Strings, ns};
use sys::{Errno, Result as SysResult};

use super::child::init::Birth;
use super::child::{Job, Streams as ChildStreams, Task as ChildTask};
use super::container::{Container, Output, duplicate, set_nonblocking};
use super::indexes::{check_indexes, exec_indexes, joined, launch_indexes};
use super::leaving::PATIENCE;
use super::log::{Lines, LogFile, Stream};
use super::orders::Ordered;
use super::report::{self, Plan, Severity, Trouble};
use super::requests::{invalid, os, wrong_state};
use super::server::{Exec, Server, Source, now};
use super::usher::Plan as Order;
use crate::delegate::Task;
use crate::plan::{ExecPlan, FdIndex, InitPlan, LaunchPlan, Namespace, Stdio};
use crate::protocol::{Answer, Failure, FailureKind, Launched, ProcessId, Streams, UnixNanos};

/// Most reports that are read at once.
const REPORTS: u32 = 64;

/// A child whose program does not run yet.
#[derive(Debug)]
pub struct Pending {
    pub(super) number: u64,
    pub(super) serial: u32,
    pub(super) report: OwnedFd,
    pub(super) pid: i32,
    /// `None` while the process goes in: then the note knows it.
    pub(super) pidfd: Option<OwnedFd>,
    /// Tells the numbers of the processes of an order.
    pub(super) note: Option<OwnedFd>,
    /// When the start is given up.
    pub(super) deadline: Option<Instant>,
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

/// A start that was begun: who reports, and what is known of the process.
struct Begun {
    report: OwnedFd,
    pid: i32,
    pidfd: Option<OwnedFd>,
    note: Option<OwnedFd>,
    deadline: Option<Instant>,
}

impl Begun {
    /// One that goes into a pid namespace.
    fn inside(ordered: Ordered, patience: Duration) -> Begun {
        let deadline = Some(Instant::now() + patience);
        Begun { report: ordered.report, pid: 0, pidfd: None, note: Some(ordered.note), deadline }
    }
}

impl Pending {
    /// The numbers that the note tells: who goes in, and who is inside; 0 is nobody.
    pub(super) fn numbers(&self) -> (i32, i32) {
        let read = |note| sys::entry::read_note(note).unwrap_or_default();
        self.note.as_ref().map(read).unwrap_or_default()
    }
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
        let started_at = now();
        let begun = match plan.namespaces.pid {
            Namespace::Join(_) => self.begin_inside(&plan, &theirs, &fds),
            Namespace::New | Namespace::Host => self.begin(&plan, &theirs, &fds),
        }
        .map_err(failed)?;
        drop(theirs);
        let mut fds: Vec<Option<OwnedFd>> = fds.into_iter().map(Some).collect();
        let mut keep = |index: Option<FdIndex>| index.and_then(|i| fds[usize::from(i.0)].take());
        let (log, cgroup) = (keep(plan.log), keep(plan.cgroup));
        let pending =
            Pending { ends, log, cgroup, ..self.pending(number, begun, started_at, Plan::Launch(plan)) };
        self.await_report(pending)
    }

    /// Makes a container's process that nobody else sees before its program runs.
    fn begin(&self, plan: &LaunchPlan, theirs: &[Option<OwnedFd>; 3], fds: &[OwnedFd]) -> SysResult<Begun> {
        let streams = match plan.stdio {
            Stdio::Terminal { columns, rows } => ChildStreams::Terminal(columns, rows),
            _ => ChildStreams::Given(theirs.each_ref().map(|fd| fd.as_ref().map(AsFd::as_fd))),
        };
        let flags = new_flags(plan.namespaces) | ns::MOUNT;
        // In a user namespace the child makes another, which is born into the others.
        let first = if plan.user_namespace.is_some() { 0 } else { flags };
        let (ours, report) = sys::socket::pair()?;
        let job = Job {
            task: ChildTask::Launch(plan),
            args: Strings::new(plan.process.args.clone()),
            env: Strings::new(plan.process.env.clone()),
            streams,
            report: Cell::new(report.as_fd()),
            proc: &self.proc,
            fds,
            descriptor_limit: self.descriptor_limit,
            flags,
            entry: None,
        };
        let cgroup = plan.cgroup.map(|i| fds[usize::from(i.0)].as_fd());
        let (pid, pidfd) = self.clone_child(first, cgroup, || job.run())?;
        Ok(Begun { report: ours, pid, pidfd: Some(pidfd), note: None, deadline: None })
    }

    /// Makes a container's process for a pid namespace that others are in.
    fn begin_inside(
        &mut self,
        plan: &LaunchPlan,
        theirs: &[Option<OwnedFd>; 3],
        fds: &[OwnedFd],
    ) -> SysResult<Begun> {
        let cgroup = plan.cgroup.map(|i| fds[usize::from(i.0)].as_fd());
        let rest: Vec<BorrowedFd<'_>> = theirs.iter().flatten().chain(fds).map(AsFd::as_fd).collect();
        let ordered = self.order(Order::Launch(plan), cgroup, &rest)?;
        Ok(Begun::inside(ordered, PATIENCE))
    }

    fn pending(&self, number: u64, begun: Begun, started_at: UnixNanos, plan: Plan) -> Pending {
        let Begun { report, pid, pidfd, note, deadline } = begun;
        Pending {
            number,
            serial: self.serial(),
            report,
            pid,
            pidfd,
            note,
            deadline,
            started_at,
            ready: matches!(plan, Plan::Init(_)),
            plan,
            ends: Ends::default(),
            log: None,
            cgroup: None,
            terminal: None,
            warnings: Vec::new(),
            failure: None,
            born: false,
            child: true,
            directory: None,
        }
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
        let (ours, report) = sys::socket::pair().map_err(failed)?;
        let number_of_report = CString::new(report.as_raw_fd().to_string()).expect("digits hold no NUL");
        let args = Strings::new(vec![c"orlop-init".to_owned(), c"init".to_owned(), number_of_report]);
        let env = Strings::new(Vec::new());
        let program = self.program.as_fd();
        let joins: Vec<BorrowedFd<'_>> = indexes.iter().map(|i| fds[usize::from(i.0)].as_fd()).collect();
        let birth = Birth {
            user_namespace: user.map(|i| fds[usize::from(i.0)].as_fd()),
            joins,
            args,
            env,
            program,
            report: report.as_fd(),
        };
        let cgroup = plan.cgroup.map(|i| fds[usize::from(i.0)].as_fd());
        let started_at = now();
        let flags = if user.is_some() { 0 } else { ns::PID | ns::MOUNT };
        let (pid, pidfd) = self.clone_child(flags, cgroup, || birth.run()).map_err(failed)?;
        drop(report);
        let cgroup = plan.cgroup.and_then(|i| fds.into_iter().nth(usize::from(i.0)));
        let begun = Begun { report: ours, pid, pidfd: Some(pidfd), note: None, deadline: None };
        let pending = Pending { cgroup, ..self.pending(number, begun, started_at, Plan::Init(plan.id)) };
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
        let mut rest = vec![target.as_fd()];
        rest.extend(fds.iter().map(AsFd::as_fd));
        let started_at = now();
        let patience = plan.patience.map_or(PATIENCE, |patience| patience.min(PATIENCE));
        let cgroup = cgroup.as_ref().map(AsFd::as_fd);
        let ordered = self.order(Order::Exec(&plan), cgroup, &rest).map_err(failed)?;
        let begun = Begun::inside(ordered, patience);
        let pending = self.pending(number, begun, started_at, Plan::Exec(plan));
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

    /// Makes the child.
    pub(super) fn clone_child(
        &self,
        flags: u64,
        cgroup: Option<BorrowedFd<'_>>,
        child: impl FnOnce(),
    ) -> SysResult<(i32, OwnedFd)> {
        // SAFETY: this program has one thread, so the child may do whatever it could have done.
        match unsafe { sys::process::clone3(flags, cgroup, false) }? {
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
        let mut left = REPORTS;
        loop {
            if left == 0 {
                // What a container sends must not keep the keeper busy.
                return;
            }
            left -= 1;
            let mut bytes = [0; report::LEN + 1];
            match sys::socket::receive(&pending.report, &mut bytes) {
                Ok((0, _)) => break,
                Ok((len, fds)) => match report::decode(&bytes[..len]) {
                    // The first is the cause.
                    Some((Severity::Failure, trouble)) => {
                        pending.failure.get_or_insert(trouble);
                        // A container may have a hand in a process that is ready, and then its end is not awaited.
                        if pending.ready && pending.numbers().0 != 0 {
                            break;
                        }
                    }
                    Some(_) if pending.ready && pending.note.is_some() => {}
                    Some((Severity::Warning, trouble)) => {
                        pending.warnings.push(report::sentence(&pending.plan, trouble));
                    }
                    Some((Severity::Ready, _)) => pending.ready = true,
                    Some((Severity::Terminal, _)) => pending.terminal = fds.into_iter().next(),
                    Some((Severity::Born, _)) => {
                        if let Some(pidfd) = fds.into_iter().next() {
                            if let Some(first) = pending.pidfd.replace(pidfd) {
                                // It ends right after this report; nobody else reaps it.
                                let _ = sys::process::wait(&first);
                            }
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
        let ended = self.settle(&mut pending);
        let renumbered = match &pending.pidfd {
            Some(pidfd) if pending.born => {
                sys::process::pid_of(self.proc.fd(), pidfd).map(|pid| pending.pid = pid)
            }
            _ => Ok(()),
        };
        let outcome = if matches!(pending.plan, Plan::Delegate(_)) {
            self.delegated(pending)
        } else if let Some(trouble) = pending.failure {
            Err(report::failure(&pending.plan, trouble))
        } else if let Some(ended) = ended {
            let how = match ended {
                Ok(status) => super::server::exit_how(status).to_string(),
                Err(errno) => report::words(errno),
            };
            let message = format!("the child ended before it ran its program: {how}");
            Err(Failure { kind: FailureKind::Os(Errno::CHILD.raw_os_error()), message })
        } else if let Err(errno) = renumbered {
            // It may have ended already, but unseen it must not go on.
            if let Some(pidfd) = pending.pidfd {
                let _ = sys::process::pidfd_signal(&pidfd, libc::SIGKILL);
                self.leave(pidfd, None);
            }
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

    /// Finds out which process the start brought, and reaps who only prepared it. Tells how a process ended that
    /// was to run the program.
    fn settle(&mut self, pending: &mut Pending) -> Option<SysResult<ExitStatus>> {
        if matches!(pending.plan, Plan::Delegate(_)) {
            return None;
        }
        if pending.note.is_none() {
            // Either it said its last word and exits, or it has ended; nobody else reaps it.
            let over = pending.failure.is_some() || !pending.ready;
            return over.then(|| pending.pidfd.as_ref().map_or(Err(Errno::CHILD), sys::process::wait));
        }
        let (first, second) = pending.numbers();
        let note = pending.note.take();
        if pending.failure.is_some() {
            // It exits, unless somebody in the container holds it.
            self.kill_and_leave(second, None);
            self.kill_and_leave(first, note);
            return None;
        }
        // No container sees the first one, and it has closed its report.
        let ended = sys::process::pidfd_open(first).and_then(sys::process::wait);
        pending.pid = second;
        pending.pidfd = (second > 0).then(|| sys::process::pidfd_open(second).ok()).flatten();
        (!pending.ready || pending.pidfd.is_none()).then_some(ended)
    }

    pub(super) fn exec_started(
        &mut self,
        pending: Pending,
        container: String,
        id: String,
    ) -> Result<(i32, Vec<OwnedFd>), Failure> {
        let what = format!("exec in {container}");
        let failed = |errno| os(what.clone(), errno);
        let pidfd = pending.pidfd.ok_or_else(|| failed(Errno::CHILD))?;
        let mut fds = vec![duplicate(&pidfd).map_err(failed)?];
        if let Some(master) = pending.terminal {
            set_nonblocking(&master).map_err(failed)?;
            fds.push(master);
        }
        let key = self.new_key();
        self.watch(&pidfd, Source::Exec(key), EventFlags::IN).map_err(failed)?;
        self.execs.insert(key, Exec { container, id, pidfd });
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
            pidfd: pending.pidfd,
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
pub(super) fn new_flags(namespaces: crate::plan::Namespaces) -> u64 {
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
