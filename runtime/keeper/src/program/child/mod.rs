//! The child between clone and exec: system calls only, straight from the plan.
//!
//! A child in a new pid namespace, or in the node's, is the program's own process. One that is to run in a pid
//! namespace with others in it stays in the node's, out of their sight, and goes in last of all ([`Entry`]).
//!
//! Guarantees: nothing is allocated (but by a child of the usher) and no lock is taken; whatever fails is reported
//! with its place, and the child ends. When the program runs, every descriptor above 2 is closed.
//! Assumes: the parent is single-threaded and made everything ready in a [`Job`].

mod identity;
pub mod init;
mod label;
mod paths;
mod procfs;
mod root;
pub mod stage;
pub mod users;

use std::cell::Cell;
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::OFlags;
use sys::Errno;
use sys::entry::{self, Key, Note, Side};
use sys::process::Strings;
use sys::sysctl::Procfs;

use super::report::{self, At, Op, Severity, Stage, Trouble};
use crate::plan::{ExecPlan, FdIndex, LaunchPlan, Namespace, ProcessPlan, Stdio};

/// Where programs are looked up when the environment has no PATH.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What kind of child this is.
#[derive(Debug)]
pub enum Task<'a> {
    /// A container's main process.
    Launch(&'a LaunchPlan),
    /// Another process in a container.
    Exec {
        /// The plan.
        plan: &'a ExecPlan,
        /// The container's main process.
        target: BorrowedFd<'a>,
    },
}

/// The standard streams.
#[derive(Debug)]
pub enum Streams<'a> {
    /// Descriptors for 0, 1 and 2; `None` is the container's null device.
    Given([Option<BorrowedFd<'a>>; 3]),
    /// A new terminal in the container's devpts, with columns and rows.
    Terminal(u16, u16),
}

/// Everything the child needs, made by the parent before the clone.
#[derive(Debug)]
pub struct Job<'a> {
    /// What is to be done.
    pub task: Task<'a>,
    /// Arguments.
    pub args: Strings,
    /// Environment.
    pub env: Strings,
    /// Streams.
    pub streams: Streams<'a>,
    /// Where to report.
    pub report: Cell<BorrowedFd<'a>>,
    /// A procfs of the node's pid namespace.
    pub proc: &'a Procfs,
    /// Descriptors of the plan.
    pub fds: &'a [OwnedFd],
    /// `CLONE_NEW*` bits of what a child in a user namespace is born into.
    pub flags: u64,
    /// How the program gets into a pid namespace that others are in.
    pub entry: Option<Entry>,
    /// Soft and hard limit of open files, unless the plan says otherwise.
    pub descriptor_limit: (u64, u64),
}

/// The way into a pid namespace in which others may trace what comes.
#[derive(Debug)]
pub struct Entry {
    /// Tells the keeper who went in.
    pub note: Note,
    /// Passes the program's own filter.
    pub key: Key,
}

impl Job<'_> {
    /// Carries the job out. Never returns.
    pub fn run(self) -> ! {
        let ready = |rest| {
            // Sent before a filter could forbid it. A child that ends without it never ran its program.
            let place = Trouble { stage: Stage::Exec, op: Op::Send, index: 0, errno: Errno::PIPE };
            if !self.send(Severity::Ready, place, None) {
                // The keeper gave it up, so nobody would know of it.
                return Err(place);
            }
            self.restrict(rest)
        };
        let done = self.prepare().and_then(ready).and_then(|()| self.go_inside());
        let trouble = match done {
            Ok(()) => self.run_program(),
            Err(trouble) => trouble,
        };
        match &self.entry {
            // The filter is in force. If nobody listens any more, nobody waits.
            Some(Entry { key, .. }) => {
                let _ = entry::tell(self.report.get(), &report::encode(Severity::Failure, trouble), *key);
            }
            None => drop(self.send(Severity::Failure, trouble, None)),
        }
        sys::process::exit_now(127)
    }

    /// Goes on as a copy inside of the pid namespace. From here on a container may hold and change this process.
    fn go_inside(&self) -> Result<(), Trouble> {
        let Some(Entry { note, key }) = &self.entry else { return Ok(()) };
        // SAFETY: this process has one thread.
        match unsafe { entry::go_inside(note, *key) }.at(Stage::Enter, Op::Clone)? {
            Side::Outside => sys::process::exit_now(0),
            Side::Inside => {
                entry::start_session(*key).at(Stage::Session, Op::Setsid)?;
                match self.streams {
                    Streams::Terminal(..) => {
                        entry::take_terminal(rustix::stdio::stdin(), *key).at(Stage::Session, Op::Ioctl)
                    }
                    Streams::Given(_) => Ok(()),
                }
            }
        }
    }

    fn process(&self) -> &ProcessPlan {
        match &self.task {
            Task::Launch(plan) => &plan.process,
            Task::Exec { plan, .. } => &plan.process,
        }
    }

    fn fd(&self, index: FdIndex) -> BorrowedFd<'_> {
        // The parent checked every index before the clone.
        self.fds[usize::from(index.0)].as_fd()
    }

    fn prepare(&self) -> Result<identity::Restrictions, Trouble> {
        if self.entry.is_none() {
            // The usher did it for its children.
            sys::process::reset_signals();
        }
        // With the node's quota, not that of a pod's users.
        sys::keyring::own_session().at(Stage::Keyring, Op::Keyctl)?;
        rustix::process::umask(rustix::fs::Mode::empty());
        match &self.task {
            Task::Launch(plan) => {
                self.set_oom_score(plan.oom_score_adj)?;
                let procfs = self.find_procfs(plan)?;
                self.leave_the_nodes(plan)?;
                if self.entry.is_none() {
                    // Else the one that goes in does.
                    rustix::process::setsid().at(Stage::Session, Op::Setsid)?;
                }
                self.enter_namespaces(plan)?;
                let mut early = root::Early::make(plan, procfs)?;
                let root = root::enter(self, plan)?;
                root::write_sysctls(plan)?;
                root::carry_out_steps(self, plan, root.as_fd(), &mut early)?;
                self.connect_streams(root.as_fd(), matches!(plan.stdio, Stdio::Terminal { .. }))?;
                root::hide_paths(plan, root.as_fd())?;
                root::finish(plan, root.as_fd())?;
                self.become_user(root.as_fd())
            }
            Task::Exec { plan, target } => {
                self.set_oom_score(plan.oom_score_adj)?;
                use sys::process::ns;
                // The pid namespace is that of children only: see `go_inside`.
                let kinds = ns::MOUNT | ns::CGROUP | ns::UTS | ns::IPC | ns::NET | ns::PID;
                match plan.stream_owner {
                    None => sys::namespace::join_process(target, kinds).at(Stage::Namespace, Op::Setns)?,
                    Some(owner) => {
                        self.use_node_rights(owner)?;
                        sys::namespace::join_process(target, kinds | ns::USER)
                            .at(Stage::Namespace, Op::Setns)?;
                        users::become_root()?;
                    }
                }
                let root = open_root()?;
                self.connect_streams(root.as_fd(), false)?;
                self.become_user(root.as_fd())
            }
        }
    }

    /// Goes on in new namespaces, and in the user namespace if there is one.
    fn leave_the_nodes(&self, plan: &LaunchPlan) -> Result<(), Trouble> {
        if let (Namespace::Join(fd), Some(_)) = (plan.namespaces.pid, &self.entry) {
            // For children only: see `go_inside`.
            sys::namespace::children_in(self.fd(fd)).at(Stage::Namespace, Op::Setns)?;
        }
        match (&plan.user_namespace, &self.entry) {
            (Some(user), None) => self.be_born_among(user),
            (Some(user), Some(_)) => self.move_among(user),
            (None, Some(_)) => self.unshare_all(),
            // The clone did it.
            (None, None) => Ok(()),
        }
    }

    fn unshare_all(&self) -> Result<(), Trouble> {
        let flags = rustix::thread::UnshareFlags::from_bits_retain(self.flags as u32);
        sys::namespace::unshare(flags).at(Stage::Namespace, Op::Unshare)
    }

    fn set_oom_score(&self, score: Option<i32>) -> Result<(), Trouble> {
        let Some(score) = score else { return Ok(()) };
        let mut buffer = [0; 12];
        let path = c"self/oom_score_adj";
        match sys::fs::write_small(self.proc.fd(), path, decimal(score, &mut buffer)) {
            Err(errno @ (Errno::ACCESS | Errno::PERM)) => {
                let trouble = Trouble { stage: Stage::OomScore, op: Op::Write, index: 0, errno };
                self.send(Severity::Warning, trouble, None);
                Ok(())
            }
            other => other.at(Stage::OomScore, Op::Write),
        }
    }

    fn enter_namespaces(&self, plan: &LaunchPlan) -> Result<(), Trouble> {
        let namespaces = &plan.namespaces;
        // The pid namespace is decided by the clone.
        let joins = [namespaces.net, namespaces.ipc, namespaces.uts, namespaces.cgroup];
        for (index, namespace) in joins.into_iter().enumerate() {
            if let Namespace::Join(fd) = namespace {
                let index = index as u32 + 1;
                let place = |errno| Trouble { stage: Stage::Namespace, op: Op::Setns, index, errno };
                sys::namespace::join(self.fd(fd)).map_err(place)?;
            }
        }
        if namespaces.cgroup == Namespace::New {
            // Not by the clone: there its root would be the parent's cgroup.
            let place = |errno| Trouble { stage: Stage::Namespace, op: Op::Unshare, index: 4, errno };
            sys::namespace::unshare(rustix::thread::UnshareFlags::NEWCGROUP).map_err(place)?;
        }
        if namespaces.uts == Namespace::New {
            if let Some(name) = &plan.hostname {
                rustix::system::sethostname(name.to_bytes()).at(Stage::Hostname, Op::Sethostname)?;
            }
            if let Some(name) = &plan.domainname {
                rustix::system::setdomainname(name.to_bytes()).at(Stage::Hostname, Op::Setdomainname)?;
            }
        }
        Ok(())
    }

    /// Whether the program belongs to a user namespace of its own.
    fn mapped(&self) -> bool {
        match &self.task {
            Task::Launch(plan) => plan.user_namespace.is_some(),
            Task::Exec { plan, .. } => plan.stream_owner.is_some(),
        }
    }

    fn connect_streams(&self, root: BorrowedFd<'_>, bind_console: bool) -> Result<(), Trouble> {
        let uid = rustix::process::Uid::from_raw(self.process().user.uid);
        match self.streams {
            Streams::Given(given) => {
                let mut null = None;
                for (number, fd) in given.into_iter().enumerate() {
                    let fd = match fd {
                        Some(fd) => {
                            // So that the user can open /dev/stdout again: a pipe has an owner.
                            if !self.mapped() && is_fifo(fd) {
                                rustix::fs::fchown(fd, Some(uid), None).at(Stage::Stdio, Op::Chown)?;
                            }
                            fd
                        }
                        None => {
                            if null.is_none() {
                                let found = root::find_null(root)
                                    .and_then(|null| self.reopen(null.as_fd(), OFlags::RDWR));
                                null = Some(found.at(Stage::Stdio, Op::Open)?);
                            }
                            null.as_ref().expect("was just opened").as_fd()
                        }
                    };
                    place(fd, number as RawFd)?;
                }
                Ok(())
            }
            Streams::Terminal(columns, rows) => {
                let (master, slave) = root::make_terminal(root, columns, rows)?;
                rustix::fs::fchown(&slave, Some(uid), None).at(Stage::Console, Op::Chown)?;
                if bind_console {
                    root::bind_console(root, slave.as_fd())?;
                }
                for number in 0..3 {
                    place(slave.as_fd(), number)?;
                }
                if self.entry.is_none() {
                    sys::process::set_controlling_terminal(&slave).at(Stage::Session, Op::Ioctl)?;
                }
                let place = Trouble { stage: Stage::Console, op: Op::Send, index: 0, errno: Errno::PIPE };
                let sent = self.send(Severity::Terminal, place, Some(master.as_fd()));
                if sent { Ok(()) } else { Err(place) }
            }
        }
    }

    /// Opens what an `O_PATH` descriptor is open on, by the node's own procfs.
    fn reopen(&self, fd: BorrowedFd<'_>, flags: OFlags) -> sys::Result<OwnedFd> {
        let (mut digits, mut buffer) = ([0; 12], [0; paths::MAX]);
        let number = decimal(fd.as_raw_fd(), &mut digits);
        let path = paths::join(b"self/fd", number, &mut buffer).ok_or(Errno::NAMETOOLONG)?;
        rustix::fs::openat(self.proc.fd(), path, flags | OFlags::CLOEXEC, rustix::fs::Mode::empty())
    }

    /// Sends a report; tells whether it went out.
    fn send(&self, severity: Severity, trouble: Trouble, fd: Option<BorrowedFd<'_>>) -> bool {
        let bytes = report::encode(severity, trouble);
        match fd {
            Some(fd) => sys::socket::send(self.report.get(), &bytes, &[fd]).is_ok(),
            None => sys::socket::send(self.report.get(), &bytes, &[]).is_ok(),
        }
    }

    /// Executes the program; returns only what went wrong.
    fn run_program(&self) -> Trouble {
        let failed = |errno| Trouble { stage: Stage::Exec, op: Op::Execve, index: 0, errno };
        let Some(name) = self.args.as_slice().first() else { return failed(Errno::NOENT) };
        if name.to_bytes().is_empty() {
            return failed(Errno::NOENT);
        }
        if name.to_bytes().contains(&b'/') {
            return failed(explain(name, sys::process::exec(name, &self.args, &self.env)));
        }
        let env = self.env.as_slice();
        let path = env.iter().find_map(|e| e.to_bytes().strip_prefix(b"PATH=")).unwrap_or(DEFAULT_PATH);
        // Like execvpe: a file that may not be executed is passed over, but remembered.
        let mut result = Errno::NOENT;
        for dir in path.split(|b| *b == b':') {
            let mut buffer = [0; paths::MAX];
            let Some(candidate) =
                paths::join(if dir.is_empty() { b"." } else { dir }, name.to_bytes(), &mut buffer)
            else {
                continue;
            };
            match explain(candidate, sys::process::exec(candidate, &self.args, &self.env)) {
                Errno::NOENT | Errno::NOTDIR => {}
                errno @ (Errno::ACCESS | Errno::ISDIR) => result = errno,
                errno => return failed(errno),
            }
        }
        failed(result)
    }
}

/// Tells a directory from a missing permission, and a missing interpreter from a missing program.
fn explain(path: &CStr, errno: Errno) -> Errno {
    let stat = rustix::fs::stat(path);
    match (errno, stat) {
        (Errno::ACCESS, Ok(stat)) if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() => {
            Errno::ISDIR
        }
        (Errno::NOENT, Ok(_)) => Errno::LIBBAD,
        _ => errno,
    }
}

fn open_root() -> Result<OwnedFd, Trouble> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(c"/", flags, rustix::fs::Mode::empty()).at(Stage::Rootfs, Op::Open)
}

fn is_fifo(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|s| rustix::fs::FileType::from_raw_mode(s.st_mode).is_fifo())
}

fn place(fd: BorrowedFd<'_>, number: RawFd) -> Result<(), Trouble> {
    // SAFETY: nobody in this process owns the numbers 0 to 2: the keeper never puts them into an
    // `OwnedFd`, and all that it opens lies above.
    unsafe { sys::process::place_fd(fd, number) }.at(Stage::Stdio, Op::Dup)
}

/// Closes all descriptors but the standard streams and the report, which moves to 3.
fn close_all_but(report: BorrowedFd<'_>) -> Result<BorrowedFd<'static>, Trouble> {
    // SAFETY: from here on this process uses no descriptor but 0 to 3: its owners never run again
    // (the child ends by exec or _exit, without destructors).
    unsafe {
        if report.as_raw_fd() != 3 {
            sys::process::place_fd(report, 3).at(Stage::Descriptors, Op::Dup)?;
        }
        let report = BorrowedFd::borrow_raw(3);
        rustix::io::fcntl_setfd(report, rustix::io::FdFlags::CLOEXEC).at(Stage::Descriptors, Op::Dup)?;
        sys::fs::close_from(4).at(Stage::Descriptors, Op::CloseRange)?;
        Ok(report)
    }
}

/// Writes a number into `buffer` without allocating.
fn decimal(value: i32, buffer: &mut [u8; 12]) -> &[u8] {
    let mut rest = value.unsigned_abs();
    let mut at = buffer.len();
    loop {
        at -= 1;
        buffer[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        at -= 1;
        buffer[at] = b'-';
    }
    &buffer[at..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_without_allocating() {
        for value in [0, 7, -1, -1000, 1000, i32::MIN, i32::MAX] {
            assert_eq!(decimal(value, &mut [0; 12]), value.to_string().as_bytes());
        }
    }
}
