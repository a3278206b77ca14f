//! Capability sets of the calling thread, as bit masks (bit n is capability n).

use crate::{Result, check};

/// CAP_SETPCAP and friends by number, where a caller needs one by name.
pub mod number {
    /// CAP_SYS_ADMIN.
    pub const SYS_ADMIN: u32 = 21;
    /// CAP_SYS_RESOURCE.
    pub const SYS_RESOURCE: u32 = 24;
    /// The newest one known here: CAP_CHECKPOINT_RESTORE.
    pub const LAST_KNOWN: u32 = 40;
}

/// The three sets of capset(2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sets {
    /// In force.
    pub effective: u64,
    /// May be put in force.
    pub permitted: u64,
    /// Kept over exec by files that say so.
    pub inheritable: u64,
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const VERSION_3: u32 = 0x2008_0522;

/// Reads the sets of the calling thread.
///
/// # Errors
/// Those of capget(2).
pub fn get() -> Result<Sets> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: version 3 reads one header and writes two data structs, which is what is passed.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) })?;
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    Ok(Sets {
        effective: join(data[0].effective, data[1].effective),
        permitted: join(data[0].permitted, data[1].permitted),
        inheritable: join(data[0].inheritable, data[1].inheritable),
    })
}

/// Sets the sets of the calling thread.
///
/// # Errors
/// Those of capset(2).
pub fn set(sets: Sets) -> Result<()> {
    let header = Header { version: VERSION_3, pid: 0 };
    let part = |shift: u32| Data {
        effective: (sets.effective >> shift) as u32,
        permitted: (sets.permitted >> shift) as u32,
        inheritable: (sets.inheritable >> shift) as u32,
    };
    let data = [part(0), part(32)];
    // SAFETY: version 3 reads one header and two data structs, which is what is passed.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

/// Drops everything outside `keep` from the bounding set, for ever.
///
/// # Errors
/// Those of prctl(PR_CAPBSET_DROP): `EPERM` without CAP_SETPCAP.
pub fn limit_bounding(keep: u64) -> Result<()> {
    for number in 0..64 {
        if keep >> number & 1 == 1 {
            continue;
        }
        match prctl(libc::PR_CAPBSET_DROP, number, 0) {
            Ok(()) => {}
            // The kernel knows no capability of this number, nor any above it.
            Err(rustix::io::Errno::INVAL) => break,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The bounding set of the calling thread.
pub fn bounding() -> u64 {
    let mut set = 0;
    for number in 0..64 {
        // SAFETY: PR_CAPBSET_READ takes integers only.
        match unsafe { libc::prctl(libc::PR_CAPBSET_READ, number as libc::c_ulong, 0, 0, 0) } {
            1 => set |= 1 << number,
            0 => {}
            _ => break,
        }
    }
    set
}

/// Makes the ambient set exactly `set` (each must be permitted and inheritable).
///
/// # Errors
/// Those of prctl(PR_CAP_AMBIENT).
pub fn set_ambient(set: u64) -> Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0)?;
    for number in (0..64).filter(|n| set >> n & 1 == 1) {
        prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, number)?;
    }
    Ok(())
}

/// Whether permitted capabilities survive the next change of user.
///
/// # Errors
/// Those of prctl(PR_SET_KEEPCAPS).
pub fn keep_over_setuid(keep: bool) -> Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, u64::from(keep), 0)
}

fn prctl(operation: libc::c_int, a: u64, b: u64) -> Result<()> {
    // SAFETY: the operations used in this module take integers only.
    let ret = unsafe { libc::prctl(operation, a as libc::c_ulong, b as libc::c_ulong, 0, 0) };
    check(libc::c_long::from(ret)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sets_are_readable() {
        let sets = get().unwrap();
        assert_eq!(sets.effective & !sets.permitted, 0);
        set(sets).unwrap();
        assert_eq!(get().unwrap(), sets);
    }
}
