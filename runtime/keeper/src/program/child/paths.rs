//! Paths in the new root, in buffers on the stack.
//!
//! Guarantees: whatever is opened or made lies beneath the root, whoever renames or links things
//! there meanwhile: each step is an openat2 beneath a held descriptor, or makes a single name in
//! one.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use sys::{Errno, Result};

use crate::plan::TargetKind;

/// Longest path, with its NUL.
pub const MAX: usize = 4096;

/// Most missing directories and links on one way.
const BUDGET: u32 = 48;

/// `dir/name` as a C string in `buffer`; `None` when it is too long.
pub fn join<'a>(dir: &[u8], name: &[u8], buffer: &'a mut [u8; MAX]) -> Option<&'a CStr> {
    let len = dir.len() + 1 + name.len();
    if len >= MAX {
        return None;
    }
    buffer[..dir.len()].copy_from_slice(dir);
    buffer[dir.len()] = b'/';
    buffer[dir.len() + 1..len].copy_from_slice(name);
    buffer[len] = 0;
    CStr::from_bytes_with_nul(&buffer[..=len]).ok()
}

/// A slice as a C string in `buffer`.
fn terminated<'a>(path: &[u8], buffer: &'a mut [u8; MAX]) -> Result<&'a CStr> {
    if path.len() >= MAX {
        return Err(Errno::NAMETOOLONG);
    }
    buffer[..path.len()].copy_from_slice(path);
    buffer[path.len()] = 0;
    CStr::from_bytes_with_nul(&buffer[..=path.len()]).map_err(|_| Errno::INVAL)
}

/// Opens a path in the root; `strict` allows no symbolic links.
pub fn open(root: BorrowedFd<'_>, path: &CStr, flags: OFlags, strict: bool) -> Result<OwnedFd> {
    let mut resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    if strict {
        resolve |= ResolveFlags::NO_SYMLINKS;
    }
    sys::fs::open_resolve(root, path, flags, Mode::empty(), resolve)
}

/// Opens a path (`O_PATH`), making it and what is missing above it.
pub fn ensure(root: BorrowedFd<'_>, path: &CStr, kind: TargetKind, strict: bool) -> Result<OwnedFd> {
    ensure_mode(root, path, kind, strict, 0o755)
}

/// As [`ensure`], with the permission bits of the last part.
pub fn ensure_mode(
    root: BorrowedFd<'_>,
    path: &CStr,
    kind: TargetKind,
    strict: bool,
    mode: u32,
) -> Result<OwnedFd> {
    Walk { root, strict, budget: BUDGET }.ensure(path.to_bytes(), kind, mode)
}

/// Opens the directory that a path's last part is in, making it, and tells the last part.
pub fn ensure_parent<'a>(root: BorrowedFd<'_>, path: &'a CStr) -> Result<(OwnedFd, &'a [u8])> {
    let (parent, last) = split(path.to_bytes());
    if last.is_empty() || last == b".." || last == b"." {
        return Err(Errno::INVAL);
    }
    let parent = Walk { root, strict: false, budget: BUDGET }.ensure(parent, TargetKind::Directory, 0o755)?;
    Ok((parent, last))
}

/// Calls `f` with a slice as a C string.
pub fn with_name<T>(name: &[u8], f: impl FnOnce(&CStr) -> Result<T>) -> Result<T> {
    f(terminated(name, &mut [0; MAX])?)
}

struct Walk<'a> {
    root: BorrowedFd<'a>,
    strict: bool,
    budget: u32,
}

impl Walk<'_> {
    fn ensure(&mut self, path: &[u8], kind: TargetKind, mode: u32) -> Result<OwnedFd> {
        match self.try_open(path, kind) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        self.budget = self.budget.checked_sub(1).ok_or(Errno::LOOP)?;
        let (parent_path, last) = split(path);
        if last == b".." || last.is_empty() {
            return Err(Errno::NOENT);
        }
        let parent = self.ensure(parent_path, TargetKind::Directory, 0o755)?;
        // Nothing can be made there, and its links are magic: `readlink` of /proc/self/fd/N would
        // lie about where they lead.
        if is_procfs(parent.as_fd()) {
            return Err(Errno::NOENT);
        }
        match make(parent.as_fd(), last, kind, mode) {
            Ok(()) => open_made(parent.as_fd(), last),
            Err(Errno::EXIST) => self.follow(parent_path, parent.as_fd(), last, kind, mode),
            Err(e) => Err(e),
        }
    }

    fn try_open(&self, path: &[u8], kind: TargetKind) -> Result<OwnedFd> {
        // The empty path is the root itself.
        let path = if path.is_empty() { b"/" } else { path };
        match kind {
            TargetKind::Directory => {
                with_name(path, |path| open(self.root, path, OFlags::PATH | OFlags::DIRECTORY, self.strict))
            }
            TargetKind::File => {
                let file = with_name(path, |path| open(self.root, path, OFlags::PATH, self.strict))?;
                let stat = rustix::fs::fstat(&file)?;
                if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
                    Err(Errno::ISDIR)
                } else {
                    Ok(file)
                }
            }
        }
    }

    /// The name exists but leads nowhere: a link whose target is missing (which is made then), or
    /// somebody was faster.
    fn follow(
        &mut self,
        dir: &[u8],
        parent: BorrowedFd<'_>,
        last: &[u8],
        kind: TargetKind,
        mode: u32,
    ) -> Result<OwnedFd> {
        if self.strict {
            return Err(Errno::LOOP);
        }
        let mut link = [0u8; MAX];
        let len = with_name(last, |last| match rustix::fs::readlinkat_raw(parent, last, &mut link[..]) {
            Ok(len) => Ok(Some(len)),
            Err(Errno::INVAL) => Ok(None),
            Err(e) => Err(e),
        })?;
        let Some(len) = len else { return open_made(parent, last) };
        if len >= MAX - 1 {
            return Err(Errno::NAMETOOLONG);
        }
        let target = &link[..len];
        if target.starts_with(b"/") {
            return self.ensure(target, kind, mode);
        }
        let mut buffer = [0; MAX];
        let path = join(dir, target, &mut buffer).ok_or(Errno::NAMETOOLONG)?;
        self.ensure(path.to_bytes(), kind, mode)
    }
}

/// Whether a descriptor is of a procfs.
#[expect(clippy::unnecessary_cast, reason = "the type differs between architectures")]
pub fn is_procfs(dir: BorrowedFd<'_>) -> bool {
    const PROC_SUPER_MAGIC: i64 = 0x9fa0;
    rustix::fs::fstatfs(dir).is_ok_and(|s| s.f_type as i64 == PROC_SUPER_MAGIC)
}

/// Makes one name in a directory.
fn make(parent: BorrowedFd<'_>, name: &[u8], kind: TargetKind, mode: u32) -> Result<()> {
    with_name(name, |name| match kind {
        TargetKind::Directory => rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(mode)),
        TargetKind::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
            rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(mode & 0o666)).map(drop)
        }
    })
}

fn open_made(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
    with_name(name, |name| {
        sys::fs::open_beneath(parent, name, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())
    })
}

/// A path's directory and last part; slashes at the end do not count.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let end = path.iter().rposition(|b| *b != b'/').map_or(0, |at| at + 1);
    let path = &path[..end];
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    fn root(dir: &Path) -> OwnedFd {
        rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    fn made(dir: &Path, path: &str, kind: TargetKind) -> Result<()> {
        ensure(root(dir).as_fd(), &CString::new(path).unwrap(), kind, false).map(drop)
    }

    #[test]
    fn missing_paths_are_made_inside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        made(at, "/a/b/c/", TargetKind::Directory).unwrap();
        made(at, "/a/b/c/file", TargetKind::File).unwrap();
        made(at, "/a/b/c/file", TargetKind::File).unwrap();
        assert!(at.join("a/b/c/file").is_file());
        made(at, "/", TargetKind::Directory).unwrap();
    }

    #[test]
    fn links_are_followed_in_the_root_and_their_targets_made() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        std::fs::create_dir(at.join("var")).unwrap();
        symlink("/run", at.join("var/run")).unwrap();
        symlink("../lock/deep", at.join("var/lock")).unwrap();
        symlink("/../../outside", at.join("up")).unwrap();
        symlink("me", at.join("me")).unwrap();
        made(at, "/var/run/secrets/x", TargetKind::Directory).unwrap();
        assert!(at.join("run/secrets/x").is_dir());
        made(at, "/var/lock/y", TargetKind::File).unwrap();
        assert!(at.join("lock/deep/y").is_file());
        made(at, "/up/z", TargetKind::File).unwrap();
        assert!(at.join("outside/z").is_file());
        assert_eq!(made(at, "/me/z", TargetKind::File), Err(Errno::LOOP));
    }

    #[test]
    fn strict_paths_follow_no_links() {
        let dir = tempfile::tempdir().unwrap();
        symlink("/elsewhere", dir.path().join("proc")).unwrap();
        let root = root(dir.path());
        let result = ensure(root.as_fd(), c"/proc", TargetKind::Directory, true);
        assert_eq!(result.unwrap_err(), Errno::LOOP);
        assert!(!dir.path().join("elsewhere").exists());
    }
}
