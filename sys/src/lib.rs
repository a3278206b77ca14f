//! The kernel, wrapped: the only crate (with the keeper's child) that may say `unsafe`.
//!
//! rustix is the base and is used directly wherever it has a call; here is what it lacks and
//! what several crates need in one piece.
//!
//! Guarantees: descriptors cross functions only as `OwnedFd` and `BorrowedFd`, and every new one
//! is close-on-exec. Thin wrappers return the kernel's [`Errno`]; it converts into
//! `std::io::Error`.
//! Assumes: Linux 5.15 or newer; what is newer than that is probed in [`features`].

pub mod caps;
pub mod cgroup;
pub mod children;
pub mod devices;
pub mod entry;
pub mod fault;
pub mod features;
pub mod fs;
pub mod keyring;
pub mod memfd;
pub mod memory;
pub mod mount;
pub mod mountinfo;
pub mod namespace;
pub mod process;
pub mod pty;
pub mod seccomp;
pub mod socket;
pub mod sysctl;

pub use rustix::io::Errno;

/// What a thin wrapper returns.
pub type Result<T> = std::result::Result<T, Errno>;

/// Turns the result of a raw system call into a `Result`.
pub(crate) fn check(ret: libc::c_long) -> Result<libc::c_long> {
    if ret < 0 { Err(last_errno()) } else { Ok(ret) }
}

/// The calling thread's `errno`.
pub(crate) fn last_errno() -> Errno {
    // SAFETY: __errno_location returns a valid pointer to this thread's own errno.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}
