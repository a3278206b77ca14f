//! Installing a seccomp filter.

use crate::entry::{CALLS, Key};
use crate::{Errno, Result, check};

/// A filter that lets the calls of [`crate::entry`] pass if they carry the key, and is `program` for all else.
pub fn with_passage(program: &[u8], key: Key) -> Vec<u8> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const LOAD_NUMBER: u16 = (libc::BPF_LD | libc::BPF_IMM) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    const ARCH: u32 = 4;
    const SIXTH: u32 = 16 + 5 * 8;
    let (first, second) =
        if cfg!(target_endian = "little") { (SIXTH, SIXTH + 4) } else { (SIXTH + 4, SIXTH) };
    let (low, high) = key.halves();
    let count = CALLS.len() as u8;
    let mut passage = vec![(LOAD, 0, 0, 0)];
    // The number comes first, so that the kernel still knows in advance what it may do about the other calls.
    passage.extend(CALLS.iter().zip(0..).map(|(call, at)| (EQUAL, count - at, 0, *call as u32)));
    passage.extend([
        (JUMP, 0, 0, 7),
        (LOAD, 0, 0, ARCH),
        (EQUAL, 0, 5, NATIVE),
        (LOAD, 0, 0, first),
        (EQUAL, 0, 3, low),
        (LOAD, 0, 0, second),
        (EQUAL, 0, 1, high),
        (RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        // As the program expects it.
        (LOAD_NUMBER, 0, 0, 0),
    ]);
    let mut bytes = Vec::with_capacity(passage.len() * 8 + program.len());
    for (code, if_true, if_false, k) in passage {
        bytes.extend(code.to_ne_bytes());
        bytes.extend([if_true, if_false]);
        bytes.extend(k.to_ne_bytes());
    }
    bytes.extend(program);
    bytes
}

/// AUDIT_ARCH_* of this program.
#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xc000_00b7;

/// Installs a compiled filter for the calling thread. `program` is `struct sock_filter` after
/// `struct sock_filter`, 8 bytes each, in native byte order.
///
/// # Errors
/// `EINVAL` for a program that is empty, not whole, or too long; `EACCES` without
/// `no_new_privs` and CAP_SYS_ADMIN.
pub fn install(program: &[u8], flags: u32) -> Result<()> {
    let count = program.len() / size_of::<libc::sock_filter>();
    if count == 0 || !program.len().is_multiple_of(size_of::<libc::sock_filter>()) {
        return Err(Errno::INVAL);
    }
    let len = u16::try_from(count).map_err(|_| Errno::INVAL)?;
    let filter = libc::sock_fprog { len, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: `filter` points at `len` whole instructions that live through the call; the kernel
    // copies them byte-wise (no alignment needed) and never writes to them.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER as libc::c_ulong,
            libc::c_ulong::from(flags),
            &raw const filter,
        )
    })
    .map(drop)
}
