//! The session keyring: where a process and its descendants keep keys.

use crate::{Errno, Result, check};

const JOIN_SESSION_KEYRING: libc::c_ulong = 1;
const SET_PERMISSIONS: libc::c_ulong = 5;
/// All that there is, for who possesses the keyring, and nothing for others of the same user.
const POSSESSOR_ONLY: libc::c_ulong = 0x3f00_0000;

/// Gives the calling process a new session keyring, which no other process reaches but its descendants. A kernel
/// without keyrings, or one that forbids the caller to use them, has none to protect.
///
/// # Errors
/// Those of keyctl(2), e.g. `EDQUOT` beyond the user's quota.
pub fn own_session() -> Result<()> {
    let none = 0 as libc::c_ulong;
    // SAFETY: a null name asks for a keyring without one; all other arguments are integers.
    let joined =
        check(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, none, none, none, none) });
    let serial = match joined {
        Err(Errno::NOSYS | Errno::PERM) => return Ok(()),
        other => other?,
    };
    // SAFETY: takes integers only.
    check(unsafe { libc::syscall(libc::SYS_keyctl, SET_PERMISSIONS, serial, POSSESSOR_ONLY, none, none) })
        .map(drop)
}
