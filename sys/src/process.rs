//! Starting, identifying, signalling and reaping processes.
//!
//! Guarantees: a program that [`spawn`] starts gets the descriptors that were named and no others,
//! the environment that was named and no other.
//! Caveat: after [`clone3`] the child shares nothing with the parent's other threads: it must not
//! allocate or take locks unless the parent was single-threaded.

use std::ffi::{CStr, CString, c_char};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};

use crate::{Errno, Result, check};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

/// Flags of clone3(2) for new namespaces; the values of `CLONE_NEW*`.
pub mod ns {
    /// Mount namespace.
    pub const MOUNT: u64 = libc::CLONE_NEWNS as u64;
    /// Control group namespace.
    pub const CGROUP: u64 = libc::CLONE_NEWCGROUP as u64;
    /// Host name namespace.
    pub const UTS: u64 = libc::CLONE_NEWUTS as u64;
    /// IPC namespace.
    pub const IPC: u64 = libc::CLONE_NEWIPC as u64;
    /// Pid namespace.
    pub const PID: u64 = libc::CLONE_NEWPID as u64;
    /// Network namespace.
    pub const NET: u64 = libc::CLONE_NEWNET as u64;
    /// User namespace.
    pub const USER: u64 = libc::CLONE_NEWUSER as u64;
}

/// Bit 33; the constant in libc is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What [`clone3`] returns, twice.
#[derive(Debug)]
pub enum Cloned {
    /// In the child.
    Child,
    /// In the parent.
    Parent {
        /// The child's process id in the caller's pid namespace.
        pid: i32,
        /// The child.
        pidfd: OwnedFd,
    },
}

/// Makes a child process in new `namespaces` ([`ns`] bits) and, if given, directly in the cgroup
/// whose directory `cgroup` is. The child is a copy of the caller (no shared memory); SIGCHLD
/// announces its end. With `sibling` it becomes a child of the caller's parent.
///
/// # Safety
/// In the child only the calling thread exists. If the caller has other threads, the child may
/// only make system calls until it execs or exits.
///
/// # Errors
/// Those of clone3(2): `EBADF` or `EOPNOTSUPP` for the cgroup, `EUSERS`, `ENOSPC` for
/// namespaces, `EAGAIN` for process limits.
pub unsafe fn clone3(namespaces: u64, cgroup: Option<BorrowedFd<'_>>, sibling: bool) -> Result<Cloned> {
    let mut pidfd: RawFd = -1;
    // SAFETY: an all-zero clone_args is valid: it asks for nothing.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = namespaces | libc::CLONE_PIDFD as u64;
    args.pidfd = &raw mut pidfd as u64;
    if sibling {
        // With CLONE_PARENT the exit signal is the caller's own.
        args.flags |= libc::CLONE_PARENT as u64;
    } else {
        args.exit_signal = libc::SIGCHLD as u64;
    }
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: the kernel reads `args` of the size given and writes one int to `pidfd`, which lives
    // in this frame. No stack is given and CLONE_VM is not set, so the child runs on a copy.
    let ret =
        check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) })?;
    if ret == 0 {
        return Ok(Cloned::Child);
    }
    // SAFETY: clone3 just made this descriptor for us; nothing else owns it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Cloned::Parent { pid: ret as i32, pidfd })
}

/// Opens a pidfd.
///
/// # Errors
/// `ESRCH` when no such process exists, `EINVAL` for a number below 1.
pub fn pidfd_open(pid: i32) -> Result<OwnedFd> {
    let pid = Pid::from_raw(pid).filter(|p| !p.is_init() || pid == 1).ok_or(Errno::INVAL)?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty())
}

/// Sends a signal; 0 only checks whether the process is there.
///
/// # Errors
/// `ESRCH` when it has ended and was reaped, `EINVAL` for an unknown signal.
pub fn pidfd_signal(pidfd: impl AsFd, signal: i32) -> Result<()> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed; nothing of ours is touched.
    check(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_fd().as_raw_fd(), signal, no_info, 0)
    })
    .map(drop)
}

/// Reaps a child through its pidfd without waiting. `None` while it runs.
///
/// # Errors
/// `ECHILD` when it is not a child of the caller (any more).
pub fn reap(pidfd: impl AsFd) -> Result<Option<ExitStatus>> {
    wait_options(pidfd, WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
}

/// Waits for a child to end and reaps it. Blocks.
///
/// # Errors
/// `ECHILD` when it is not a child of the caller (any more).
pub fn wait(pidfd: impl AsFd) -> Result<ExitStatus> {
    let pidfd = pidfd.as_fd();
    loop {
        match wait_options(pidfd, WaitIdOptions::EXITED) {
            Ok(Some(status)) => return Ok(status),
            Ok(None) | Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}

fn wait_options(pidfd: impl AsFd, options: WaitIdOptions) -> Result<Option<ExitStatus>> {
    let status = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), options)?;
    Ok(status.and_then(|status| {
        let signal = status.terminating_signal().map(ExitStatus::Signal);
        status.exit_status().map(ExitStatus::Code).or(signal)
    }))
}

/// `struct pidfd_info` of Linux 6.15 (80 bytes in later ones; the kernel takes any size it knows).
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroupid: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    ids: [u32; 8],
    exit_code: i32,
}

const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// How a process that is no child of the caller ended: known from Linux 6.15 on, once it has been
/// reaped by its parent. `Ok(None)` means that the kernel does not (yet) tell.
///
/// # Errors
/// `ENOTTY` or `EINVAL` where the kernel lacks PIDFD_GET_INFO; `ESRCH` where it has it but keeps
/// no exit code of a reaped process.
pub fn exit_info(pidfd: impl AsFd) -> Result<Option<ExitStatus>> {
    const PIDFD_GET_INFO: libc::Ioctl =
        (3 << 30) | ((size_of::<PidfdInfo>() as libc::Ioctl) << 16) | (0xff << 8) | 11;
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the request encodes the size of `info`, which lives through the call; the kernel
    // writes at most that many bytes.
    let ret = unsafe { libc::ioctl(pidfd.as_fd().as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
    check(libc::c_long::from(ret))?;
    Ok((info.mask & PIDFD_INFO_EXIT != 0).then(|| decode_wait_status(info.exit_code)))
}

/// Decodes a status as wait(2) gives it.
fn decode_wait_status(status: i32) -> ExitStatus {
    if libc::WIFSIGNALED(status) {
        ExitStatus::Signal(libc::WTERMSIG(status))
    } else {
        ExitStatus::Code(libc::WEXITSTATUS(status))
    }
}

/// When a process was started, in clock ticks since boot (`/proc/PID/stat`, field 22). With the
/// pid it names a process for good. `proc` is a directory descriptor of a procfs.
///
/// # Errors
/// `ENOENT` or `ESRCH` when there is no such process; `EIO` when the file makes no sense.
pub fn start_time(proc: impl AsFd, pid: i32) -> Result<u64> {
    let stat = crate::fs::read_small(proc, format!("{pid}/stat"))?;
    start_time_of(&stat).ok_or(Errno::IO)
}

fn start_time_of(stat: &str) -> Option<u64> {
    // The command name (field 2) may contain spaces and parentheses: count from the last one.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// How a process ended that was not reaped yet; `None` while it runs. For one that somebody traces and that its
/// parent therefore cannot reap. `proc` is a directory descriptor of a procfs.
///
/// # Errors
/// As [`start_time`].
pub fn unreaped_status(proc: impl AsFd, pid: i32) -> Result<Option<ExitStatus>> {
    let stat = crate::fs::read_small(proc, format!("{pid}/stat"))?;
    unreaped_status_of(&stat).ok_or(Errno::IO)
}

fn unreaped_status_of(stat: &str) -> Option<Option<ExitStatus>> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    if fields.next()? != "Z" {
        return Some(None);
    }
    Some(Some(decode_wait_status(fields.nth(48)?.parse().ok()?)))
}

/// Argument and environment lists in the form that execve(2) wants, made before a fork.
#[derive(Debug)]
pub struct Strings {
    // The pointers point into the strings' heap buffers, which never move or change.
    pointers: Vec<*const c_char>,
    strings: Vec<CString>,
}

impl Strings {
    /// Prepares the list.
    pub fn new(strings: Vec<CString>) -> Strings {
        let pointers = strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect();
        Strings { pointers, strings }
    }

    /// The strings.
    pub fn as_slice(&self) -> &[CString] {
        &self.strings
    }
}

/// Replaces the program. Returns only on failure. Allocates nothing.
pub fn exec(path: &CStr, args: &Strings, env: &Strings) -> Errno {
    // SAFETY: all three are NUL-terminated (the lists end in a null pointer) and outlive the call.
    unsafe { libc::syscall(libc::SYS_execve, path.as_ptr(), args.pointers.as_ptr(), env.pointers.as_ptr()) };
    crate::last_errno()
}

/// Replaces the program by the one that `program` is open on. Returns only on failure.
pub fn exec_fd(program: impl AsFd, args: &Strings, env: &Strings) -> Errno {
    let fd = program.as_fd().as_raw_fd();
    let (args, env) = (args.pointers.as_ptr(), env.pointers.as_ptr());
    // SAFETY: as in `exec`; the empty path with AT_EMPTY_PATH means the descriptor itself.
    unsafe { libc::syscall(libc::SYS_execveat, fd, c"".as_ptr(), args, env, libc::AT_EMPTY_PATH) };
    crate::last_errno()
}

/// Restores default signal dispositions and an empty signal mask, in a child that will exec or in a program whose
/// children will. Uses system calls only.
pub fn reset_signals() {
    // SAFETY: an all-zero sigaction is SIG_DFL without flags; only dispositions of this process
    // change, and what it does by default needs nothing of this program.
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        for signal in 1..=64 {
            libc::sigaction(signal, &raw const default, std::ptr::null_mut());
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Ends the calling process at once: no destructors, no flushing. For children that cannot exec.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes an integer and does not return.
    unsafe { libc::_exit(code) }
}

/// Makes `fd` the descriptor `number`, inherited over exec.
///
/// # Safety
/// Nothing in this process may own `number`; what it was is closed. Meant for a child that is
/// about to exec.
///
/// # Errors
/// Those of dup3(2).
pub unsafe fn place_fd(fd: BorrowedFd<'_>, number: RawFd) -> Result<()> {
    if fd.as_raw_fd() == number {
        return rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty());
    }
    // SAFETY: takes integers only; the caller promises that nobody owns `number`.
    check(unsafe { libc::syscall(libc::SYS_dup3, fd.as_raw_fd(), number, 0) }).map(drop)
}

/// Sets a resource limit of the calling process; `u64::MAX` is infinity.
///
/// # Errors
/// Those of setrlimit(2): `EPERM` for raising a hard limit without CAP_SYS_RESOURCE.
pub fn set_limit(resource: u32, soft: u64, hard: u64) -> Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    let null = std::ptr::null_mut::<libc::rlimit64>();
    // SAFETY: the kernel reads one rlimit64, which lives through the call, and writes nothing.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, &raw const limit, null) }).map(drop)
}

/// Raises the hard limit of a resource to `hard`, and leaves the soft one. A higher one stays.
///
/// # Errors
/// Those of prlimit(2): `EPERM` without CAP_SYS_RESOURCE.
pub fn raise_hard_limit(resource: u32, hard: u64) -> Result<()> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    let null = std::ptr::null::<libc::rlimit64>();
    // SAFETY: the kernel writes one rlimit64, which lives through the call, and reads nothing.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, null, &raw mut limit) })?;
    if limit.rlim_max >= hard { Ok(()) } else { set_limit(resource, limit.rlim_cur, hard) }
}

/// The process that a pidfd stands for, by its number in the pid namespace of the procfs `proc`.
///
/// # Errors
/// `ESRCH` when it was reaped or is not seen there; those of reading `self/fdinfo`.
pub fn pid_of(proc: impl AsFd, pidfd: impl AsFd) -> Result<i32> {
    let info = crate::fs::read_small(proc, format!("self/fdinfo/{}", pidfd.as_fd().as_raw_fd()))?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    pid.filter(|pid| *pid > 0).ok_or(Errno::SRCH)
}

/// Sets the supplementary groups of the calling thread.
///
/// # Errors
/// Those of setgroups(2).
pub fn set_groups(groups: &[u32]) -> Result<()> {
    // SAFETY: the kernel reads `len` group ids from the slice.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

/// Takes a descriptor that this program inherited at a known number, and makes it close-on-exec.
///
/// # Safety
/// Nothing else in this process may own or use the number.
///
/// # Errors
/// `EBADF` when it is not open.
pub unsafe fn inherited(number: RawFd) -> Result<OwnedFd> {
    // SAFETY: the caller promises that nobody else owns it; `fcntl` tells whether it is open, and
    // on failure the number is not closed, because nothing owns it yet.
    unsafe {
        rustix::io::fcntl_setfd(BorrowedFd::borrow_raw(number), rustix::io::FdFlags::CLOEXEC)?;
        Ok(OwnedFd::from_raw_fd(number))
    }
}

/// The whole life of the first process of a pid namespace: children are reaped by the kernel, and
/// SIGTERM or SIGINT ends it.
pub fn reap_for_ever() -> ! {
    extern "C" fn end(_: libc::c_int) {
        exit_now(0)
    }
    let handler: extern "C" fn(libc::c_int) = end;
    // SAFETY: ignoring SIGCHLD makes the kernel reap; the handler makes one system call.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        libc::signal(libc::SIGTERM, handler as libc::sighandler_t);
        libc::signal(libc::SIGINT, handler as libc::sighandler_t);
    }
    loop {
        rustix::event::pause();
    }
}

/// Changes user and group of the calling thread alone, and keeps its capabilities in force. For threads that end
/// with the work that needs it.
///
/// # Errors
/// Those of setresgid(2), setresuid(2), prctl(2) and capset(2).
pub fn become_keeping_rights(uid: u32, gid: u32) -> Result<()> {
    let sets = crate::caps::get()?;
    crate::caps::keep_over_setuid(true)?;
    let gid = rustix::process::Gid::from_raw(gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    let uid = rustix::process::Uid::from_raw(uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    crate::caps::set(sets)
}

/// Makes the terminal on `fd` the controlling terminal of the calling session leader.
///
/// # Errors
/// Those of ioctl(TIOCSCTTY).
pub fn set_controlling_terminal(fd: impl AsFd) -> Result<()> {
    rustix::process::ioctl_tiocsctty(fd)
}

/// A program to start.
#[derive(Debug)]
pub struct Command<'a> {
    /// The program; a sealed memfd or a file opened for reading or with `O_PATH`.
    pub program: BorrowedFd<'a>,
    /// Arguments with the name first.
    pub args: Vec<CString>,
    /// The whole environment.
    pub env: Vec<CString>,
    /// Descriptors, which the program finds at the numbers 0, 1, 2, … in this order. Numbers 0 to
    /// 2 that are not given are the null device.
    pub fds: Vec<BorrowedFd<'a>>,
    /// Start in a session of its own.
    pub new_session: bool,
    /// The cgroup (directory) that it starts in; `None` is the caller's.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Detach: the program's parent is not the caller but whoever adopts orphans.
    pub detached: bool,
}

/// Starts a program. Returns a pidfd; unless detached the caller must reap it.
///
/// # Errors
/// Those of open(/dev/null), fork and execveat(2); a program that could not be executed is
/// reported here, not by a strange exit code.
pub fn spawn(command: Command<'_>) -> Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};

    let null = rustix::fs::open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let mut sources = command.fds;
    while sources.len() < 3 {
        sources.push(null.as_fd());
    }
    let (report_read, report_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let mut child = Child {
        copies: vec![-1; sources.len() + 2],
        sources,
        program: command.program,
        report: report_write.as_fd(),
        args: Strings::new(command.args),
        env: Strings::new(command.env),
        new_session: command.new_session,
        detached: command.detached,
    };
    // SAFETY: the child makes system calls only: all that it needs is allocated in `child`.
    let Cloned::Parent { pidfd, .. } = (unsafe { clone3(0, command.cgroup, false) })? else {
        let errno = child.run();
        report(child.report, REPORT_ERRNO, errno.raw_os_error());
        exit_now(127)
    };
    drop(report_write);
    let (mut pid, mut errno) = (None, None);
    let mut record = [0; 8];
    loop {
        match rustix::io::read(&report_read, &mut record) {
            Ok(8) => {
                let word = |at: usize| i32::from_ne_bytes(record[at..at + 4].try_into().expect("four bytes"));
                *(if word(0) == REPORT_PID { &mut pid } else { &mut errno }) = Some(word(4));
            }
            Err(Errno::INTR) => {}
            Ok(_) => break,
            Err(e) => return Err(e),
        }
    }
    if command.detached || errno.is_some() {
        wait(&pidfd)?;
    }
    match (errno, pid) {
        (Some(errno), _) => Err(Errno::from_raw_os_error(errno)),
        (None, Some(pid)) => pidfd_open(pid),
        (None, None) => Ok(pidfd),
    }
}

const REPORT_ERRNO: i32 = 1;
const REPORT_PID: i32 = 2;

fn report(pipe: BorrowedFd<'_>, kind: i32, value: i32) {
    let mut record = [0; 8];
    record[..4].copy_from_slice(&kind.to_ne_bytes());
    record[4..].copy_from_slice(&value.to_ne_bytes());
    // Eight bytes into an empty pipe are written whole; if the parent is gone nobody cares.
    let _ = rustix::io::write(pipe, &record);
}

/// All that the child of [`spawn`] needs, allocated before the fork.
struct Child<'a> {
    sources: Vec<BorrowedFd<'a>>,
    program: BorrowedFd<'a>,
    report: BorrowedFd<'a>,
    copies: Vec<RawFd>,
    args: Strings,
    env: Strings,
    new_session: bool,
    detached: bool,
}

impl Child<'_> {
    /// Runs in the child; returns only what went wrong.
    fn run(&mut self) -> Errno {
        match self.prepare() {
            Ok(program) => exec_fd(program, &self.args, &self.env),
            Err(e) => e,
        }
    }

    fn prepare(&mut self) -> Result<BorrowedFd<'static>> {
        reset_signals();
        if self.new_session {
            rustix::process::setsid()?;
        }
        if self.detached {
            // SAFETY: as for the first clone: the grandchild makes system calls only.
            match unsafe { clone3(0, None, false) }? {
                Cloned::Child => {}
                Cloned::Parent { pid, .. } => {
                    report(self.report, REPORT_PID, pid);
                    exit_now(0)
                }
            }
        }
        // First copy everything above all target numbers, so that no source is overwritten.
        let count = self.sources.len();
        let all = self.sources.iter().chain([&self.report, &self.program]);
        for (copy, source) in self.copies.iter_mut().zip(all) {
            // SAFETY: F_DUPFD_CLOEXEC takes integers only; the copies are placed or closed below.
            let fd = unsafe { libc::fcntl(source.as_raw_fd(), libc::F_DUPFD_CLOEXEC, count as RawFd + 2) };
            *copy = check(libc::c_long::from(fd))? as RawFd;
        }
        for (number, copy) in self.copies.iter().enumerate() {
            let number = number as RawFd;
            // SAFETY: this process is about to exec; its memory's owners of low descriptors never
            // run again, and the copies were just made.
            unsafe { place_fd(BorrowedFd::borrow_raw(*copy), number)? };
        }
        let (report, program) = (count as RawFd, count as RawFd + 1);
        // SAFETY: both numbers were placed above and stay open until exec; what lies higher
        // belongs to copies and to owners that never run again.
        unsafe {
            self.report = BorrowedFd::borrow_raw(report);
            rustix::io::fcntl_setfd(self.report, rustix::io::FdFlags::CLOEXEC)?;
            let program = BorrowedFd::borrow_raw(program);
            rustix::io::fcntl_setfd(program, rustix::io::FdFlags::CLOEXEC)?;
            crate::fs::close_from(count as RawFd + 2)?;
            Ok(program)
        }
    }
}

#[cfg(test)]
mod tests;
