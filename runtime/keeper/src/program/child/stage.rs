//! The child that runs another runtime's commands: mounts in a namespace of its own, then one command after the other.
//!
//! It waits for each command and is no subreaper, so what a command leaves behind becomes the keeper's child. Its
//! mount namespace, and with it all that was mounted there, ends with it.
//!
//! Guarantees: every failure is reported with its place; the first report of a failure is the cause. It ends with the
//! keeper, and its command with it: nobody would know of what they make.
//! Assumes: the keeper has one thread, so this copy of it may do whatever the keeper could.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::{Pid, Resource, Rlimit, Signal};
use rustix::thread::UnshareFlags;
use sys::Errno;
use sys::process::{Cloned, ExitStatus, Strings};

use super::super::report::{self, At, Op, Severity, Stage, Trouble};
use crate::delegate::{DelegatePlan, Program};
use crate::plan::FdIndex;

/// Everything the child needs, made by the parent before the clone.
#[derive(Debug)]
pub struct Staging<'a> {
    /// The plan.
    pub plan: &'a DelegatePlan,
    /// Its commands, as execve wants them.
    pub commands: Vec<Strings>,
    /// Its environment.
    pub env: Strings,
    /// Standard streams of the first command; `None` is the null device.
    pub streams: [Option<BorrowedFd<'a>>; 3],
    /// Where to report.
    pub report: BorrowedFd<'a>,
    /// Descriptors of the plan.
    pub fds: &'a [OwnedFd],
    /// All descriptors that are used, ascending.
    pub keep: Vec<RawFd>,
    /// Soft and hard limit of open files.
    pub descriptor_limit: (u64, u64),
    /// The keeper.
    pub parent: Pid,
}

impl Staging<'_> {
    /// Fills in which descriptors are used.
    pub fn keep(mut self) -> Self {
        let streams = self.streams.iter().flatten().map(|fd| fd.as_raw_fd());
        let all = streams.chain(self.fds.iter().map(AsRawFd::as_raw_fd)).chain([self.report.as_raw_fd()]);
        self.keep = all.collect();
        self.keep.sort_unstable();
        self.keep.dedup();
        self
    }

    /// Carries it out. Never returns.
    pub fn run(self) -> ! {
        match self.carry_out() {
            Ok(()) => {
                let place = Trouble { stage: Stage::Command, op: Op::Send, index: 0, errno: Errno::PIPE };
                self.send(Severity::Ready, place, None);
                sys::process::exit_now(0)
            }
            Err(trouble) => {
                self.send(Severity::Failure, trouble, None);
                sys::process::exit_now(127)
            }
        }
    }

    fn fd(&self, index: FdIndex) -> BorrowedFd<'_> {
        // The parent checked every index before the clone.
        self.fds[usize::from(index.0)].as_fd()
    }

    fn carry_out(&self) -> Result<(), Trouble> {
        // SAFETY: what this child uses is in `keep`; other owners never run again here.
        unsafe { sys::fs::close_all_but(&self.keep) }.at(Stage::Descriptors, Op::CloseRange)?;
        sys::process::reset_signals();
        end_with(self.parent).at(Stage::Session, Op::Prctl)?;
        rustix::process::setsid().at(Stage::Session, Op::Setsid)?;
        rustix::process::umask(Mode::from_raw_mode(0o022));
        self.mount()?;
        let (soft, hard) = self.descriptor_limit;
        let limit = Rlimit { current: Some(soft), maximum: Some(hard) };
        rustix::process::setrlimit(Resource::Nofile, limit).at(Stage::Rlimit, Op::Setrlimit)?;
        let null = rustix::fs::open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .at(Stage::Stdio, Op::Open)?;
        for (number, command) in self.commands.iter().enumerate() {
            let streams = if number == 0 { self.streams } else { [None; 3] };
            let streams = streams.map(|fd| fd.unwrap_or(null.as_fd()));
            self.command(number as u32, command, streams)?;
            if number == 0 {
                self.fetch_terminal()?;
            }
        }
        Ok(())
    }

    fn mount(&self) -> Result<(), Trouble> {
        sys::namespace::join(self.fd(self.plan.mounts)).at(Stage::Mounts, Op::Setns)?;
        sys::namespace::unshare(UnshareFlags::NEWNS).at(Stage::Mounts, Op::Unshare)?;
        for (index, path) in self.plan.private.iter().enumerate() {
            let place = |op| move |errno| Trouble { stage: Stage::Mounts, op, index: index as u32, errno };
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let fd =
                rustix::fs::openat(CWD, path.as_c_str(), flags, Mode::empty()).map_err(place(Op::Open))?;
            let private = Some(sys::mount::Propagation::Private);
            sys::mount::set_attributes(&fd, false, 0, 0, private).map_err(place(Op::MountSetattr))?;
        }
        for (index, (fd, path)) in self.plan.attach.iter().enumerate() {
            let place =
                |errno| Trouble { stage: Stage::Mounts, op: Op::MoveMount, index: index as u32, errno };
            sys::mount::attach_at(self.fd(*fd), path.as_c_str()).map_err(place)?;
        }
        Ok(())
    }

    fn command(&self, number: u32, args: &Strings, streams: [BorrowedFd<'_>; 3]) -> Result<(), Trouble> {
        let failed = |op| move |errno| Trouble { stage: Stage::Command, op, index: number << 16, errno };
        let stage = rustix::process::getpid();
        // SAFETY: the keeper has one thread, and so has this copy of it.
        match unsafe { sys::process::clone3(0, None, false) }.map_err(failed(Op::Clone))? {
            Cloned::Child => {
                let errno = match end_with(stage) {
                    Ok(()) => self.execute(args, streams),
                    Err(errno) => errno,
                };
                self.send(Severity::Failure, failed(Op::Execve)(errno), None);
                sys::process::exit_now(127)
            }
            Cloned::Parent { pidfd, .. } => match sys::process::wait(&pidfd).map_err(failed(Op::Wait))? {
                ExitStatus::Code(0) => Ok(()),
                ended => {
                    let index = number << 16 | report::exit_bits(ended);
                    Err(Trouble { stage: Stage::Command, op: Op::Check, index, errno: Errno::IO })
                }
            },
        }
    }

    fn execute(&self, args: &Strings, streams: [BorrowedFd<'_>; 3]) -> Errno {
        for (number, fd) in streams.into_iter().enumerate() {
            // SAFETY: nobody in this process owns the numbers 0 to 2, and all that it opened lies above.
            if let Err(errno) = unsafe { sys::process::place_fd(fd, number as RawFd) } {
                return errno;
            }
        }
        match &self.plan.program {
            Program::Path(path) => sys::process::exec(path, args, &self.env),
            Program::Open(fd) => sys::process::exec_fd(self.fd(*fd), args, &self.env),
        }
    }

    /// Takes the terminal's master from the socket that the first command sent it to, and hands it on.
    fn fetch_terminal(&self) -> Result<(), Trouble> {
        let Some(console) = self.plan.console else { return Ok(()) };
        // The command has ended, so the master is there or never comes: the socket does not block.
        let socket = sys::socket::accept(self.fd(console)).at(Stage::Console, Op::Accept)?;
        let mut bytes = [0; 512];
        let (_, fds) = sys::socket::receive(&socket, &mut bytes).at(Stage::Console, Op::Accept)?;
        let place = Trouble { stage: Stage::Console, op: Op::Send, index: 0, errno: Errno::PIPE };
        let master = fds.first().ok_or(Trouble { errno: Errno::NOMSG, ..place })?;
        if self.send(Severity::Terminal, place, Some(master.as_fd())) { Ok(()) } else { Err(place) }
    }

    /// Sends a report; tells whether it went out.
    fn send(&self, severity: Severity, trouble: Trouble, fd: Option<BorrowedFd<'_>>) -> bool {
        let bytes = report::encode(severity, trouble);
        match fd {
            Some(fd) => sys::socket::send(self.report, &bytes, &[fd]).is_ok(),
            None => sys::socket::send(self.report, &bytes, &[]).is_ok(),
        }
    }
}

/// Lets the calling process be killed when its parent ends, also if that has ended already.
fn end_with(parent: Pid) -> sys::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(Errno::SRCH) }
}
