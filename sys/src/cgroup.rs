//! Control groups, version 2, beneath held directory descriptors.
//!
//! Guarantees: the host's mount table is not touched: where no cgroup2 is mounted, a detached
//! mount is kept by its descriptor. Names are single path components, so nothing outside the held
//! directory is reached.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::time::Timespec;

use crate::{Errno, Result, fs, mount, mountinfo};

const CGROUP2_MAGIC: i64 = 0x6367_7270;

/// Where a [`root`] was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Mounted by the host.
    Mounted(PathBuf),
    /// Mounted by us, detached.
    Detached,
}

/// Opens the root of the cgroup2 hierarchy: an existing mount of the whole hierarchy, else a
/// detached one.
///
/// # Errors
/// Those of fsopen(2) and friends when it is neither mounted nor mountable.
pub fn root() -> Result<(Group, Found)> {
    let mounted = mountinfo::read().unwrap_or_default().into_iter().rev().find(|entry| {
        entry.fstype == "cgroup2"
            && entry.root == std::path::Path::new("/")
            && entry.options.split(',').any(|o| o == "rw")
    });
    if let Some(entry) = mounted
        && let Ok(dir) = rustix::fs::open(
            &entry.target,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        && is_cgroup2(&dir)
    {
        return Ok((Group { dir }, Found::Mounted(entry.target)));
    }
    let attributes = mount::attr::NOSUID | mount::attr::NODEV | mount::attr::NOEXEC;
    let detached = mount::create(c"cgroup2", None, &[], attributes)?;
    // The mount descriptor is O_PATH; cgroup operations want a real directory.
    let dir = rustix::fs::openat(
        &detached,
        c".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    Ok((Group { dir }, Found::Detached))
}

#[expect(clippy::unnecessary_cast, reason = "the type differs between architectures")]
fn is_cgroup2(dir: &OwnedFd) -> bool {
    rustix::fs::fstatfs(dir).is_ok_and(|s| s.f_type as i64 == CGROUP2_MAGIC)
}

/// One control group, by its directory.
#[derive(Debug)]
pub struct Group {
    dir: OwnedFd,
}

impl Group {
    /// Takes an already open cgroup directory.
    pub fn from_fd(dir: OwnedFd) -> Group {
        Group { dir }
    }

    /// The directory, e.g. for `CLONE_INTO_CGROUP`.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Another descriptor of the same group.
    ///
    /// # Errors
    /// Those of fcntl(F_DUPFD_CLOEXEC).
    pub fn try_clone(&self) -> Result<Group> {
        Ok(Group { dir: rustix::io::fcntl_dupfd_cloexec(&self.dir, 3)? })
    }

    /// Opens a child, which must exist. `name` may have several components.
    ///
    /// # Errors
    /// Those of openat2(2); `ENOENT` when it does not exist.
    pub fn open(&self, name: &str) -> Result<Group> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        fs::open_beneath(&self.dir, name, flags, Mode::empty()).map(|dir| Group { dir })
    }

    /// Makes a child (and what is missing above it) and opens it; an existing one is opened.
    ///
    /// # Errors
    /// Those of mkdirat(2) and openat2(2).
    pub fn create(&self, name: &str) -> Result<Group> {
        let mut group = None;
        for part in name.split('/').filter(|p| !p.is_empty()) {
            let parent = group.as_ref().unwrap_or(self);
            if part == ".." {
                return Err(Errno::INVAL);
            }
            match rustix::fs::mkdirat(&parent.dir, part, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(e),
            }
            group = Some(parent.open(part)?);
        }
        group.ok_or(Errno::INVAL)
    }

    /// Removes a child without processes; a missing one is fine.
    ///
    /// # Errors
    /// `EBUSY` while it has processes or children.
    pub fn remove(&self, name: &str) -> Result<()> {
        let (parent, last) = match name.rsplit_once('/') {
            Some((above, last)) => (self.open(above), last),
            None => (self.try_clone(), name),
        };
        let removed = parent.and_then(|parent| rustix::fs::unlinkat(&parent.dir, last, AtFlags::REMOVEDIR));
        match removed {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Removes a child with everything below it, killing the processes in it first and waiting
    /// for them up to `timeout`.
    ///
    /// # Errors
    /// `EBUSY` when processes are still there after the time.
    pub fn destroy(&self, name: &str, timeout: Duration) -> Result<()> {
        let group = match self.open(name) {
            Ok(group) => group,
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(e),
        };
        if group.populated()? {
            group.kill()?;
            if !group.wait_empty(timeout)? {
                return Err(Errno::BUSY);
            }
        }
        group.remove_children()?;
        drop(group);
        self.remove(name)
    }

    fn remove_children(&self) -> Result<()> {
        for child in self.children()? {
            self.open(&child)?.remove_children()?;
            self.remove(&child)?;
        }
        Ok(())
    }

    /// Names of the children.
    ///
    /// # Errors
    /// Those of getdents64(2).
    pub fn children(&self) -> Result<Vec<String>> {
        let dir = rustix::fs::Dir::read_from(&self.dir)?;
        let mut names = Vec::new();
        for entry in dir {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy();
            if entry.file_type().is_dir() && name != "." && name != ".." {
                names.push(name.into_owned());
            }
        }
        Ok(names)
    }

    /// Reads one of its files, e.g. `memory.events`.
    ///
    /// # Errors
    /// `ENOENT` when the controller is not enabled here; `ENODEV` when the group is gone.
    pub fn read(&self, file: &str) -> Result<String> {
        fs::read_small(&self.dir, file)
    }

    /// Writes one of its files.
    ///
    /// # Errors
    /// As [`Group::read`], and what the controller says to the value.
    pub fn write(&self, file: &str, value: &str) -> Result<()> {
        fs::write_small(&self.dir, file, value.as_bytes())
    }

    /// The controllers that can be enabled for children.
    ///
    /// # Errors
    /// Those of reading `cgroup.controllers`.
    pub fn controllers(&self) -> Result<Vec<String>> {
        Ok(self.read("cgroup.controllers")?.split_ascii_whitespace().map(str::to_owned).collect())
    }

    /// Enables controllers for the children, one by one; returns those that were refused.
    pub fn enable<'a>(&self, controllers: &[&'a str]) -> Vec<(&'a str, Errno)> {
        let enable = |name: &&'a str| {
            self.write("cgroup.subtree_control", &format!("+{name}")).err().map(|errno| (*name, errno))
        };
        controllers.iter().filter_map(enable).collect()
    }

    /// A value of a flat keyed file, e.g. `oom_kill` in `memory.events`.
    ///
    /// # Errors
    /// As [`Group::read`].
    pub fn keyed(&self, file: &str, key: &str) -> Result<Option<u64>> {
        Ok(keyed_value(&self.read(file)?, key))
    }

    /// Whether a process is in it or below it.
    ///
    /// # Errors
    /// Those of reading `cgroup.events`.
    pub fn populated(&self) -> Result<bool> {
        Ok(self.keyed("cgroup.events", "populated")? == Some(1))
    }

    /// Process ids in this very group, in the caller's pid namespace (0 for those outside it).
    ///
    /// # Errors
    /// Those of reading `cgroup.procs`.
    pub fn processes(&self) -> Result<Vec<i32>> {
        Ok(self.read("cgroup.procs")?.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Kills every process in it and below it, also those that are being forked.
    ///
    /// # Errors
    /// Those of writing `cgroup.kill`.
    pub fn kill(&self) -> Result<()> {
        self.write("cgroup.kill", "1")
    }

    /// Sends a signal to every process in it and below it.
    ///
    /// # Errors
    /// Those of reading the groups; processes that end meanwhile are fine.
    pub fn signal(&self, signal: i32) -> Result<()> {
        for pid in self.processes()?.into_iter().filter(|pid| *pid > 0) {
            if let Ok(pidfd) = crate::process::pidfd_open(pid)
                // The number may have been given to another process between listing and opening.
                && self.processes()?.contains(&pid)
            {
                match crate::process::pidfd_signal(&pidfd, signal) {
                    Ok(()) | Err(Errno::SRCH) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        for child in self.children()? {
            match self.open(&child).and_then(|child| child.signal(signal)) {
                Ok(()) | Err(Errno::NOENT | Errno::NODEV) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Waits until no process is left, at most `timeout`. Blocks. Tells whether it is empty.
    ///
    /// # Errors
    /// Those of reading or polling `cgroup.events`.
    pub fn wait_empty(&self, timeout: Duration) -> Result<bool> {
        let deadline = Instant::now() + timeout;
        let events = self.events_file()?;
        loop {
            let mut buffer = [0; 256];
            let len = rustix::io::pread(&events, &mut buffer, 0)?;
            if keyed_value(&String::from_utf8_lossy(&buffer[..len]), "populated") == Some(0) {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let left = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
            // Changes of the file are announced as POLLPRI.
            match rustix::event::poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&left)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Opens `cgroup.events`; it announces changes as POLLPRI (EPOLLPRI).
    ///
    /// # Errors
    /// Those of openat(2).
    pub fn events_file(&self) -> Result<OwnedFd> {
        rustix::fs::openat(&self.dir, c"cgroup.events", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    }
}

/// A value of a flat keyed file's text.
pub fn keyed_value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// `cpu.weight` of v1 shares: the curve through (2, 1), (1024, 100) and (262144, 10000) that runc, crun and
/// Kubernetes agreed on in 2025.
pub fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            // 10 to the power of (log² + 125 log) / 612 - 7/34, with the fractions joined so that 1024 is exact.
            let exponent = (log * (log + 125.0) - 126.0) / 612.0;
            10f64.powf(exponent).ceil().clamp(1.0, 10_000.0) as u64
        }
    }
}

/// The cgroup2 path of a process (`/proc/PID/cgroup`, the line `0::`), relative to the root of
/// the caller's cgroup namespace.
///
/// # Errors
/// Those of reading the file; `ENOENT` when the process is in no cgroup2 hierarchy.
pub fn path_of(pid: i32) -> Result<PathBuf> {
    let path = CString::new(format!("/proc/{pid}/cgroup")).map_err(|_| Errno::INVAL)?;
    let text = fs::read_small(rustix::fs::CWD, path.as_c_str())?;
    text.lines().find_map(|line| line.strip_prefix("0::")).map(PathBuf::from).ok_or(Errno::NOENT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Cloned, ExitStatus};

    #[test]
    fn keyed_files_are_read_by_whole_keys() {
        let text = "oom 1\noom_kill 3\noom_group_kill 0\n";
        assert_eq!(keyed_value(text, "oom_kill"), Some(3));
        assert_eq!(keyed_value(text, "oom"), Some(1));
        assert_eq!(keyed_value(text, "no"), None);
    }

    #[test]
    fn shares_follow_the_curve() {
        let weights: Vec<u64> =
            [0, 2, 3, 102, 256, 512, 1024, 2048, 4096, 65_536, 262_143, 262_144, u64::MAX]
                .into_iter()
                .map(weight_of_shares)
                .collect();
        assert_eq!(weights, [1, 1, 2, 17, 35, 59, 100, 174, 303, 3023, 10000, 10000, 10000]);
        let all: Vec<u64> = (0..300_000).step_by(7).map(weight_of_shares).collect();
        assert!(all.is_sorted(), "more shares never give less weight");
    }

    #[test]
    fn a_group_is_killed_and_removed() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let (root, _) = root().unwrap();
        let name = format!("orlop-test-sys-{}", std::process::id());
        let group = root.create(&format!("{name}/inner")).unwrap();
        // SAFETY: the child makes one system call only.
        let Cloned::Parent { pid, pidfd } =
            (unsafe { crate::process::clone3(0, Some(group.fd()), false) }).unwrap()
        else {
            loop {
                rustix::event::pause();
            }
        };
        assert!(group.populated().unwrap());
        assert_eq!(group.processes().unwrap(), [pid]);
        assert!(path_of(pid).unwrap().ends_with(format!("{name}/inner")));
        group.signal(libc::SIGTERM).unwrap();
        assert_eq!(crate::process::wait(&pidfd).unwrap(), ExitStatus::Signal(libc::SIGTERM));
        assert!(group.wait_empty(Duration::from_secs(5)).unwrap());
        root.destroy(&name, Duration::from_secs(5)).unwrap();
        assert_eq!(root.open(&name).unwrap_err(), Errno::NOENT);
    }
}
