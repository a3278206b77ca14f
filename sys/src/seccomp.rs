//! Installing a seccomp filter.

use crate::{Errno, Result, check};

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
