//! Going into a pid namespace last of all.
//!
//! Whoever is in a pid namespace can trace what else is in it. So a process that is to run there is prepared outside,
//! down to its system call filter, and only then makes a copy of itself inside, which needs nothing but its exec.
//!
//! Guarantees: the calls here work under any filter that was made by [`crate::seccomp::with_passage`] with the same
//! [`Key`]; the note of the copy's number is not among the memory that the copy has.
//! Assumes: setns(2) named the pid namespace before.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::MemfdFlags;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::{Errno, Result, check};

/// A random number that calls carry as their sixth argument, which the kernel ignores, to pass a filter.
#[derive(Clone, Copy)]
pub struct Key(u64);

impl Key {
    /// Makes one up.
    ///
    /// # Errors
    /// Those of getrandom(2).
    pub fn new() -> Result<Key> {
        let mut bytes = [0; 8];
        let len = getrandom(&mut bytes, GetRandomFlags::empty())?;
        if len == bytes.len() { Ok(Key(u64::from_ne_bytes(bytes))) } else { Err(Errno::IO) }
    }

    /// Its two halves as a filter sees them: low, high.
    pub(crate) fn halves(self) -> (u32, u32) {
        (self.0 as u32, (self.0 >> 32) as u32)
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

/// The system calls that [`crate::seccomp::with_passage`] lets through with the key.
pub(crate) const CALLS: [libc::c_long; 4] =
    [libc::SYS_clone3, libc::SYS_setsid, libc::SYS_ioctl, libc::SYS_write];

/// Bytes at the beginning of a note that tell numbers of processes; what follows is the caller's.
pub const NOTE: usize = 8;
const SECOND: usize = 4;

/// Makes a file in memory that begins with an empty note and goes on with `rest`.
///
/// # Errors
/// Those of memfd_create(2) and write(2).
pub fn note(rest: &[u8]) -> Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC;
    // Kernels from 6.3 want to be told that it is never executed; older ones refuse the flag.
    let fd = match rustix::fs::memfd_create(c"orlop-entry", flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => rustix::fs::memfd_create(c"orlop-entry", flags)?,
        other => other?,
    };
    let mut done = 0;
    while done < rest.len() {
        done += rustix::io::pwrite(&fd, &rest[done..], (NOTE + done) as u64)?;
    }
    if rest.is_empty() {
        rustix::fs::ftruncate(&fd, NOTE as u64)?;
    }
    Ok(fd)
}

/// Notes the number of the process that goes in.
///
/// # Errors
/// Those of pwrite(2).
pub fn note_first(note: impl AsFd, pid: i32) -> Result<()> {
    rustix::io::pwrite(note, &pid.to_ne_bytes(), 0).map(drop)
}

/// The numbers of the process that goes in and of its copy inside, in the caller's pid namespace; 0 for one that was
/// not made (yet).
///
/// # Errors
/// Those of pread(2).
pub fn read_note(note: impl AsFd) -> Result<(i32, i32)> {
    let mut bytes = [0; NOTE];
    let len = rustix::io::pread(note, &mut bytes[..], 0)?;
    if len != NOTE {
        return Err(Errno::IO);
    }
    let word = |at: usize| i32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    Ok((word(0), word(SECOND)))
}

/// A note in memory, for the kernel to write the copy's number.
#[derive(Debug)]
pub struct Note(*mut libc::c_void);

impl Note {
    /// Maps a file that [`note`] made. The mapping stays until the program ends; children don't have it.
    ///
    /// # Errors
    /// Those of mmap(2) and madvise(2).
    pub fn map(file: impl AsFd) -> Result<Note> {
        let fd = file.as_fd().as_raw_fd();
        let (access, len) = (libc::PROT_READ | libc::PROT_WRITE, NOTE);
        // SAFETY: the kernel chooses an address that nothing uses; nothing in this program reads or writes there, and
        // madvise only says that children shall not have it.
        unsafe {
            let address = libc::mmap(std::ptr::null_mut(), len, access, libc::MAP_SHARED, fd, 0);
            if address == libc::MAP_FAILED {
                return Err(crate::last_errno());
            }
            check(libc::madvise(address, len, libc::MADV_DONTFORK).into())?;
            Ok(Note(address))
        }
    }
}

/// Which of the two a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one that was there before.
    Outside,
    /// The copy in the pid namespace.
    Inside,
}

/// Makes a copy of the calling process in the pid namespace that setns(2) named, as a child of its own parent, and
/// notes its number before it runs.
///
/// # Safety
/// The calling process has one thread.
///
/// # Errors
/// Those of clone3(2): `ENOMEM` when the namespace's first process has ended.
pub unsafe fn go_inside(note: &Note, key: Key) -> Result<Side> {
    // SAFETY: an all-zero clone_args is valid: it asks for nothing.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    // With CLONE_PARENT the exit signal is the caller's own.
    args.flags = (libc::CLONE_PARENT | libc::CLONE_PARENT_SETTID) as u64;
    args.parent_tid = note.0 as u64 + SECOND as u64;
    let (size, none) = (size_of::<libc::clone_args>(), 0_u64);
    // SAFETY: the kernel reads `args` of the size given, and writes one int into the note's mapping, which lives as
    // long as the program. No stack is given and CLONE_VM is not set, so the child runs on a copy.
    let ret =
        check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size, none, none, none, key.0) })?;
    Ok(if ret == 0 { Side::Inside } else { Side::Outside })
}

/// setsid(2).
///
/// # Errors
/// Its own.
pub fn start_session(key: Key) -> Result<()> {
    let none = 0_u64;
    // SAFETY: takes no arguments; what it gets here it ignores.
    check(unsafe { libc::syscall(libc::SYS_setsid, none, none, none, none, none, key.0) }).map(drop)
}

/// Makes the terminal on `fd` the controlling one of the session that the calling process leads.
///
/// # Errors
/// Those of ioctl(TIOCSCTTY).
pub fn take_terminal(fd: BorrowedFd<'_>, key: Key) -> Result<()> {
    let (fd, none) = (fd.as_raw_fd(), 0_u64);
    // SAFETY: takes integers only.
    check(unsafe { libc::syscall(libc::SYS_ioctl, fd, libc::TIOCSCTTY, none, none, none, key.0) }).map(drop)
}

/// Writes a few bytes to a descriptor.
///
/// # Errors
/// Those of write(2).
pub fn tell(fd: BorrowedFd<'_>, bytes: &[u8], key: Key) -> Result<()> {
    let (fd, none) = (fd.as_raw_fd(), 0_u64);
    // SAFETY: the kernel reads `len` bytes from the slice.
    check(unsafe { libc::syscall(libc::SYS_write, fd, bytes.as_ptr(), bytes.len(), none, none, key.0) })
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Cloned, ExitStatus, clone3, exit_now, wait};

    /// Runs `f` in a child, and tells the code it ends with.
    fn in_child(f: impl FnOnce() -> i32) -> ExitStatus {
        // SAFETY: the child makes system calls only.
        match unsafe { clone3(0, None, false) }.unwrap() {
            Cloned::Child => exit_now(f()),
            Cloned::Parent { pidfd, .. } => wait(&pidfd).unwrap(),
        }
    }

    #[test]
    fn a_note_tells_numbers_that_the_copy_cannot_change() {
        let file = note(b"the rest").unwrap();
        note_first(&file, 7).unwrap();
        let key = Key::new().unwrap();
        let ended = in_child(|| {
            let Ok(mapped) = Note::map(&file) else { return 2 };
            let address = mapped.0;
            // SAFETY: this process was just cloned, so it has one thread.
            match unsafe { go_inside(&mapped, key) } {
                Ok(Side::Outside) => 0,
                Ok(Side::Inside) => {
                    // SAFETY: mincore only looks at the mapping, and fails where there is none.
                    let there = unsafe { libc::mincore(address, 1, [0_u8; 1].as_mut_ptr()) } == 0;
                    exit_now(if there { 9 } else { 5 })
                }
                Err(_) => 1,
            }
        });
        assert_eq!(ended, ExitStatus::Code(0));
        let (first, second) = read_note(&file).unwrap();
        assert_eq!(first, 7);
        assert!(second > 0);
        let copy = crate::process::pidfd_open(second).unwrap();
        assert_eq!(wait(&copy).unwrap(), ExitStatus::Code(5));
        assert_eq!(&crate::memfd::read(&file).unwrap()[NOTE..], b"the rest");
    }

    #[test]
    fn the_key_passes_a_filter_that_forbids_the_calls() {
        // Every call of the four is forbidden: EPERM. All others are allowed.
        let instruction = |code: u16, jt: u8, jf: u8, k: u32| libc::sock_filter { code, jt, jf, k };
        let mut filter = vec![instruction(0x20, 0, 0, 0)];
        for (at, call) in CALLS.into_iter().enumerate() {
            filter.push(instruction(0x15, (CALLS.len() - at) as u8, 0, call as u32));
        }
        filter.push(instruction(0x06, 0, 0, libc::SECCOMP_RET_ALLOW));
        filter.push(instruction(0x06, 0, 0, libc::SECCOMP_RET_ERRNO | 1));
        let bytes: Vec<u8> = filter
            .iter()
            .flat_map(|one| {
                let [a, b] = one.code.to_ne_bytes();
                let [c, d, e, f] = one.k.to_ne_bytes();
                [a, b, one.jt, one.jf, c, d, e, f]
            })
            .collect();
        let key = Key::new().unwrap();
        let program = crate::seccomp::with_passage(&bytes, key);
        let ended = in_child(|| {
            if rustix::thread::set_no_new_privs(true).is_err()
                || crate::seccomp::install(&program, 0).is_err()
            {
                return 1;
            }
            let other = Key(key.0 ^ 1);
            let swapped = Key(key.0.rotate_left(32));
            for wrong in [other, swapped, Key(0)] {
                if start_session(wrong) != Err(Errno::PERM) {
                    return 2;
                }
            }
            if rustix::process::setsid() != Err(Errno::PERM) {
                return 3;
            }
            if start_session(key).is_err() {
                return 4;
            }
            // The filter of the others is in force as before.
            if rustix::process::getppid().is_none() { 5 } else { 0 }
        });
        assert_eq!(ended, ExitStatus::Code(0));
    }
}
