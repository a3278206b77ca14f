//! Kernel parameters, written through a private procfs.
//!
//! Guarantees: the write reaches procfs itself and never another file, whatever is mounted or
//! linked at `/proc` (the procfs is a new detached mount, and the walk follows no links and
//! crosses no mounts).

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::path::Arg;

use crate::{Result, fs, mount};

/// A private, detached procfs of the calling thread's pid namespace.
#[derive(Debug)]
pub struct Procfs(OwnedFd);

impl Procfs {
    /// Mounts it.
    ///
    /// # Errors
    /// Those of fsopen(2), fsconfig(2) and fsmount(2).
    pub fn open() -> Result<Procfs> {
        mount::create(c"proc", None, &[], mount::attr::NOSUID | mount::attr::NODEV | mount::attr::NOEXEC)
            .map(Procfs)
    }

    /// Opens a file below it.
    ///
    /// # Errors
    /// Those of openat2(2).
    pub fn open_file(&self, path: impl Arg + Copy, flags: OFlags) -> Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
        fs::open_resolve(&self.0, path, flags, Mode::empty(), resolve)
    }

    /// Writes a parameter of the calling thread's namespaces. `path` is relative to `/proc/sys`,
    /// with slashes; give it as `sys/net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// `ENOENT` when there is no such parameter (here), `EINVAL` for a value that it refuses.
    pub fn write(&self, path: impl Arg + Copy, value: &[u8]) -> Result<()> {
        let file = self.open_file(path, OFlags::WRONLY)?;
        let written = rustix::io::write(&file, value)?;
        if written == value.len() { Ok(()) } else { Err(crate::Errno::IO) }
    }

    /// The procfs's root directory.
    pub fn fd(&self) -> &OwnedFd {
        &self.0
    }
}

/// Writes one kernel parameter, by its name with dots or slashes (`net.ipv4.ip_forward`), in the
/// calling thread's namespaces.
///
/// # Errors
/// As [`Procfs::open`] and [`Procfs::write`].
pub fn write(name: &str, value: &str) -> Result<()> {
    Procfs::open()?.write(path_of(name).as_str(), value.as_bytes())
}

/// The path below procfs of a parameter's name. A name with slashes is taken as it is; in one
/// with dots, dots become slashes.
pub fn path_of(name: &str) -> String {
    if name.contains('/') { format!("sys/{name}") } else { format!("sys/{}", name.replace('.', "/")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_paths() {
        assert_eq!(path_of("net.ipv4.ip_forward"), "sys/net/ipv4/ip_forward");
        assert_eq!(path_of("net/ipv4/conf/eth0.1/forwarding"), "sys/net/ipv4/conf/eth0.1/forwarding");
    }

    #[test]
    fn a_parameter_of_a_namespace_is_written_there_only() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let before = std::fs::read_to_string("/proc/sys/net/ipv4/ip_default_ttl").unwrap();
        let (_, inside) = crate::namespace::create(&[crate::namespace::Kind::Net], || {
            write("net.ipv4.ip_default_ttl", "77").unwrap();
            assert_eq!(write("net.no.such", "1").unwrap_err(), crate::Errno::NOENT);
            std::fs::read_to_string("/proc/sys/net/ipv4/ip_default_ttl").unwrap()
        })
        .unwrap();
        assert_eq!(inside.trim(), "77");
        assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_default_ttl").unwrap(), before);
    }
}
