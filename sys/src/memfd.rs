//! Anonymous files that nobody can change any more.

use std::ffi::CStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, SealFlags};

use crate::{Errno, Result};

/// An executable or data file in memory with `content`, sealed against every change.
///
/// # Errors
/// Those of memfd_create(2), write(2) and fcntl(F_ADD_SEALS).
pub fn sealed(name: &CStr, content: &[u8]) -> Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels from 6.3 want to be told that it will be executed; older ones refuse the flag.
    let fd = match rustix::fs::memfd_create(name, flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags)?,
        other => other?,
    };
    let mut file = File::from(fd);
    file.write_all(content).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    let fd = OwnedFd::from(file);
    rustix::fs::fcntl_add_seals(
        &fd,
        SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
    )?;
    Ok(fd)
}

/// Reads a whole memfd (or any regular file) from its beginning, without moving its offset.
///
/// # Errors
/// Those of fstat(2) and pread(2).
pub fn read(fd: &OwnedFd) -> Result<Vec<u8>> {
    let size = usize::try_from(rustix::fs::fstat(fd)?.st_size).map_err(|_| Errno::FBIG)?;
    let mut content = vec![0; size];
    let mut filled = 0;
    while filled < size {
        match rustix::io::pread(fd, &mut content[filled..], filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    content.truncate(filled);
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_file_cannot_change() {
        let fd = sealed(c"test", b"content").unwrap();
        assert_eq!(read(&fd).unwrap(), b"content");
        assert_eq!(rustix::io::pwrite(&fd, b"x", 0).unwrap_err(), Errno::PERM);
        assert_eq!(rustix::fs::ftruncate(&fd, 0).unwrap_err(), Errno::PERM);
    }
}
