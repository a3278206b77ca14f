//! The usher: a small process that leads others into containers that run already.
//!
//! Whoever is in a container may trace what enters it, with CAP_SYS_PTRACE even what cannot be dumped. So what enters
//! must have nothing of the node's: no right, no descriptor, no memory. The usher is this program executed afresh,
//! and never reads more of an order than which descriptors belong to it; for each order it makes a process of its
//! own kind, as a child of the keeper. That one reads the plan, prepares all in the node's pid namespace, where no
//! container sees it, and goes in last of all: see [`sys::entry`].
//!
//! Guarantees: a process's memory holds no other's plan; when the report's socket ends, the note tells the first
//! process's number.
//! Assumes: one thread; the keeper is the parent.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags};
use serde::{Deserialize, Serialize};
use sys::entry::{self, Key, Note};
use sys::process::{Cloned, Strings, ns};
use sys::sysctl::Procfs;
use sys::{Errno, Result};

use super::child::{Entry, Job, Streams, Task};
use super::launch::new_flags;
use super::report::{self, At, Op, Severity, Stage, Trouble};
use super::{ProgramError, step};
use crate::plan::{ExecPlan, ExecStdio, FdIndex, LaunchPlan, Stdio};

/// What is to be done, as the note goes on with it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order<P> {
    /// Soft and hard limit of open files, unless the plan says otherwise.
    pub descriptor_limit: (u64, u64),
    /// The plan.
    pub plan: P,
}

/// The plan of an order; by reference where it is written.
#[derive(Debug, Serialize, Deserialize)]
pub enum Plan<E, L> {
    /// A process in a container. Descriptors: the container's main process, then those of the plan.
    Exec(E),
    /// A container in a pid namespace that others are in. Descriptors: those for 0, 1 and 2 that there are, as the
    /// plan's streams say, then those of the plan.
    Launch(L),
}

/// Whether the first of an order's own descriptors is the cgroup to be born in: the order's only byte.
const IN_CGROUP: u8 = 1;

/// Sends an order: descriptors are the note, the socket to report to, the cgroup, and those of the plan.
///
/// # Errors
/// Those of sendmsg(2); `EPIPE` when the usher has ended.
pub fn send_order(
    usher: impl AsFd,
    note: &OwnedFd,
    report: &OwnedFd,
    cgroup: Option<std::os::fd::BorrowedFd<'_>>,
    rest: &[std::os::fd::BorrowedFd<'_>],
) -> Result<()> {
    let mut fds = vec![note.as_fd(), report.as_fd()];
    fds.extend(cgroup);
    fds.extend(rest);
    let byte = if cgroup.is_some() { IN_CGROUP } else { 0 };
    loop {
        match sys::socket::send(&usher, &[byte], &fds) {
            Err(Errno::AGAIN) => {
                // It takes an order in far less than a millisecond: many orders came at once.
                let usher = usher.as_fd();
                let patience = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
                if rustix::event::poll(&mut [PollFd::new(&usher, PollFlags::OUT)], Some(&patience))? == 0 {
                    return Err(Errno::AGAIN);
                }
            }
            other => return other,
        }
    }
}

/// Carries out orders until the keeper ends. `control` is the number of the socket that they come by.
///
/// # Errors
/// When the socket or procfs fail.
pub fn run(control: RawFd) -> std::result::Result<(), ProgramError> {
    // SAFETY: the keeper gave this program the number, and nothing else here has used it yet.
    let control = step("take the orders' socket", unsafe { sys::process::inherited(control) })?;
    let proc = step("mount a private procfs", Procfs::open())?;
    // Each process that it makes has this of it, and need not do it again.
    sys::process::reset_signals();
    loop {
        match rustix::event::poll(&mut [PollFd::new(&control, PollFlags::IN)], None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(source) => return Err(ProgramError::Os { step: "wait for orders", source }),
        }
        let mut byte = [0; 1];
        match sys::socket::receive(&control, &mut byte) {
            Ok((0, _)) => return Ok(()),
            Ok((_, fds)) => admit(byte[0], fds, &proc),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(source) => return Err(ProgramError::Os { step: "receive an order", source }),
        }
    }
}

/// Makes the process that an order is for. Whatever fails is reported to who waits for it.
fn admit(byte: u8, fds: Vec<OwnedFd>, proc: &Procfs) {
    let mut fds = fds.into_iter();
    let (Some(note), Some(report)) = (fds.next(), fds.next()) else { return };
    let cgroup = if byte == IN_CGROUP { fds.next() } else { None };
    // SAFETY: this program has one thread.
    let trouble = match unsafe { sys::process::clone3(0, cgroup.as_ref().map(AsFd::as_fd), true) } {
        Ok(Cloned::Child) => {
            drop(cgroup);
            carry_out(note, &report, fds.collect(), proc)
        }
        Ok(Cloned::Parent { pid, .. }) => match entry::note_first(&note, pid) {
            Ok(()) => return,
            Err(errno) => Trouble { stage: Stage::Enter, op: Op::Write, index: 0, errno },
        },
        Err(errno) => Trouble { stage: Stage::Enter, op: Op::Clone, index: 0, errno },
    };
    // If nobody listens any more, nobody waits.
    let _ = sys::socket::send(&report, &report::encode(Severity::Failure, trouble), &[]);
}

/// The first process of an order.
fn carry_out(note: OwnedFd, report: &OwnedFd, fds: Vec<OwnedFd>, proc: &Procfs) -> ! {
    let trouble = match read_order(note) {
        Ok((order, entry)) => match order.plan {
            Plan::Exec(plan) => exec(&plan, order.descriptor_limit, entry, report, &fds, proc),
            Plan::Launch(plan) => launch(&plan, order.descriptor_limit, entry, report, &fds, proc),
        },
        Err(trouble) => trouble,
    };
    // If nobody listens any more, nobody waits.
    let _ = sys::socket::send(report, &report::encode(Severity::Failure, trouble), &[]);
    sys::process::exit_now(127)
}

type Read = (Order<Plan<Box<ExecPlan>, Box<LaunchPlan>>>, Entry);

fn read_order(note: OwnedFd) -> std::result::Result<Read, Trouble> {
    let bytes = sys::memfd::read(&note).at(Stage::Enter, Op::Open)?;
    let unclear = Trouble { stage: Stage::Enter, op: Op::Check, index: 0, errno: Errno::INVAL };
    let order = postcard::from_bytes(bytes.get(entry::NOTE..).unwrap_or_default()).map_err(|_| unclear)?;
    let note = Note::map(&note).at(Stage::Enter, Op::Open)?;
    let key = Key::new().at(Stage::Enter, Op::Check)?;
    Ok((order, Entry { note, key }))
}

fn exec(
    plan: &ExecPlan,
    descriptor_limit: (u64, u64),
    entry: Entry,
    report: &OwnedFd,
    fds: &[OwnedFd],
    proc: &Procfs,
) -> Trouble {
    let missing = Trouble { stage: Stage::Enter, op: Op::Check, index: 0, errno: Errno::BADF };
    let Some((target, fds)) = fds.split_first() else { return missing };
    // The keeper checked every index before the order.
    let borrow = |index: Option<FdIndex>| index.map(|i| fds[usize::from(i.0)].as_fd());
    let streams = match plan.stdio {
        ExecStdio::Streams { stdin, stdout, stderr } => {
            Streams::Given([borrow(stdin), borrow(stdout), borrow(stderr)])
        }
        ExecStdio::Terminal { columns, rows } => Streams::Terminal(columns, rows),
    };
    Job {
        task: Task::Exec { plan, target: target.as_fd() },
        args: Strings::new(plan.process.args.clone()),
        env: Strings::new(plan.process.env.clone()),
        streams,
        report: Cell::new(report.as_fd()),
        proc,
        fds,
        flags: 0,
        entry: Some(entry),
        descriptor_limit,
    }
    .run()
}

fn launch(
    plan: &LaunchPlan,
    descriptor_limit: (u64, u64),
    entry: Entry,
    report: &OwnedFd,
    fds: &[OwnedFd],
    proc: &Procfs,
) -> Trouble {
    let (input, outputs) = match plan.stdio {
        Stdio::Pipes { stdin } => (stdin, true),
        Stdio::Terminal { .. } | Stdio::Null => (false, false),
    };
    let missing = Trouble { stage: Stage::Enter, op: Op::Check, index: 0, errno: Errno::BADF };
    let count = usize::from(input) + 2 * usize::from(outputs);
    let Some((theirs, fds)) = fds.split_at_checked(count) else { return missing };
    let mut theirs = theirs.iter().map(AsFd::as_fd);
    let mut next = |there: bool| if there { theirs.next() } else { None };
    let streams = match plan.stdio {
        Stdio::Terminal { columns, rows } => Streams::Terminal(columns, rows),
        _ => Streams::Given([next(input), next(outputs), next(outputs)]),
    };
    Job {
        task: Task::Launch(plan),
        args: Strings::new(plan.process.args.clone()),
        env: Strings::new(plan.process.env.clone()),
        streams,
        report: Cell::new(report.as_fd()),
        proc,
        fds,
        flags: new_flags(plan.namespaces) | ns::MOUNT,
        entry: Some(entry),
        descriptor_limit,
    }
    .run()
}
