//! Gives the files of a volume a pod's SELinux context, and those of an image's layer the context that all may read.
//!
//! Guarantees: what is relabelled lies beneath the directory, on its file system, whatever links a container puts there
//! meanwhile: each step is opened beneath a held descriptor. The directory itself is the last, so that its context says
//! that the work is done.
//! Caveat: a file system without labels is left alone; what it has is the policy's to say.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, XattrFlags};

use crate::error::RuntimeError;

const ATTRIBUTE: &str = "security.selinux";

/// Deepest directory that is entered.
const DEEPEST: u32 = 128;

/// Relabels a file or directory with all that is in it.
pub fn relabel(path: &Path, context: &str) -> Result<(), RuntimeError> {
    // The machine's own directories; who asks for that can only err.
    if path.components().count() <= 2 {
        return Err(RuntimeError::invalid(format!(
            "{} is not relabelled for SELinux: use a directory deeper in the tree",
            path.display()
        )));
    }
    let step = || RuntimeError::io(format!("relabel {}", path.display()));
    // As the source of the mount is opened.
    let resolve = ResolveFlags::NO_MAGICLINKS;
    let top = sys::fs::open_resolve(rustix::fs::CWD, path, OFlags::PATH, Mode::empty(), resolve)
        .map_err(|errno| step()(errno.into()))?;
    match tree(top.as_fd(), context, DEEPEST) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOTSUP.raw_os_error()) => Ok(()),
        other => other.map_err(step()),
    }
}

/// The context of a file or directory; `None` where there is none.
pub fn label(path: &Path) -> Option<String> {
    let mut buffer = [0; 1024];
    let len = rustix::fs::lgetxattr(path, ATTRIBUTE, &mut buffer[..]).ok()?;
    Some(String::from_utf8_lossy(&buffer[..len]).trim_end_matches('\0').to_owned())
}

fn tree(top: BorrowedFd<'_>, context: &str, deep: u32) -> std::io::Result<()> {
    let kind = FileType::from_raw_mode(rustix::fs::fstat(top)?.st_mode);
    if kind != FileType::Directory {
        return set(top, context);
    }
    let deeper = deep.checked_sub(1).ok_or_else(|| std::io::Error::from(rustix::io::Errno::LOOP))?;
    let listed =
        rustix::fs::openat(top, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for entry in rustix::fs::Dir::read_from(&listed)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match child(top, OsStr::from_bytes(name.to_bytes())) {
            Ok(child) => tree(child.as_fd(), context, deeper)?,
            // Gone meanwhile, or the top of another file system.
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::XDEV) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    set(top, context)
}

fn child(dir: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV;
    sys::fs::open_resolve(dir, name, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty(), resolve)
}

/// The attribute of what a descriptor is open on, be it a link.
fn set(fd: BorrowedFd<'_>, context: &str) -> std::io::Result<()> {
    let name = format!("/proc/thread-self/fd/{}", fd.as_raw_fd());
    Ok(rustix::fs::setxattr(name, ATTRIBUTE, context.as_bytes(), XattrFlags::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_relabelled_and_nothing_beside_it() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        std::fs::create_dir_all(at.join("v/a/b")).unwrap();
        std::fs::write(at.join("v/a/b/file"), "").unwrap();
        std::fs::write(at.join("beside"), "").unwrap();
        std::os::unix::fs::symlink(at.join("beside"), at.join("v/link")).unwrap();
        relabel(&at.join("v"), "system_u:object_r:container_file_t:s0:c1,c2").unwrap();
        let label = |path: &str| label(&at.join(path));
        for path in ["v", "v/a", "v/a/b/file", "v/link"] {
            assert_eq!(label(path).as_deref(), Some("system_u:object_r:container_file_t:s0:c1,c2"), "{path}");
        }
        assert_ne!(label("beside").as_deref(), Some("system_u:object_r:container_file_t:s0:c1,c2"));
    }

    #[test]
    fn the_machines_own_directories_are_refused() {
        for path in ["/", "/etc", "/usr"] {
            assert!(relabel(Path::new(path), "x").is_err(), "{path}");
        }
    }
}
