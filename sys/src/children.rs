//! Children that a program did not start by itself: a subreaper gets the orphans of its descendants.
//!
//! Guarantees: nothing is reaped here; a child that was peeked at is still there.

use std::os::fd::{FromRawFd, OwnedFd};

use rustix::process::{WaitId, WaitIdOptions};

use crate::{Errno, Result, check};

/// Makes the calling process the parent of all orphans among its descendants.
///
/// # Errors
/// Those of prctl(PR_SET_CHILD_SUBREAPER).
pub fn become_subreaper() -> Result<()> {
    rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1))
}

/// Whether the calling process gets its descendants' orphans. The setting survives exec.
///
/// # Errors
/// Those of prctl(PR_GET_CHILD_SUBREAPER).
pub fn is_subreaper() -> Result<bool> {
    Ok(rustix::process::child_subreaper()?.is_some())
}

/// Blocks SIGCHLD in the calling thread and gives a non-blocking descriptor that is readable when one waits.
///
/// # Errors
/// Those of sigprocmask(2) and signalfd(2).
pub fn end_signals() -> Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before it is read; signalfd makes a new descriptor that
    // nothing else owns.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()).into())?;
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        check(fd.into())?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// The process id of a child that has ended and was not reaped, if there is one. With several it is always the same.
///
/// # Errors
/// Those of waitid(2); having no children at all is none.
pub fn ended() -> Result<Option<i32>> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    // SAFETY: an all-zero siginfo is valid; the kernel fills it in, and leaves the pid 0 when there is nobody.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let flags = options.bits() as libc::c_int;
        match check(libc::waitid(libc::P_ALL, 0, &raw mut info, flags).into()) {
            Err(Errno::CHILD) => Ok(None),
            Err(errno) => Err(errno),
            Ok(_) => Ok(Some(info.si_pid()).filter(|pid| *pid != 0)),
        }
    }
}

/// Reaps the child with this process id, if it has ended.
///
/// # Errors
/// `ECHILD` when it is no child of the caller.
pub fn reap(pid: i32) -> Result<()> {
    let pid = rustix::process::Pid::from_raw(pid).ok_or(Errno::INVAL)?;
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    rustix::process::waitid(WaitId::Pid(pid), options).map(drop)
}

/// Empties the descriptor of [`end_signals`].
pub fn take_signals(signals: &OwnedFd) {
    let mut buffer = [0; 128 * 4];
    while matches!(rustix::io::read(signals, &mut buffer), Ok(1..)) {}
}

/// Whether the process of a pidfd is a child of the caller, ended or not.
pub fn is_child(pidfd: impl std::os::fd::AsFd) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), options).is_ok()
}
