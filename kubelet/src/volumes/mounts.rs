//! The few mounts a kubelet makes itself: tmpfs for volumes, binds for sub-paths; and their end.
//!
//! Guarantees: a directory tree is only removed once nothing is mounted below it, and links are
//! never followed on the way.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
};

/// Mounts a tmpfs at `dir`, of at most `size` bytes if given. A second call finds it there.
pub fn tmpfs(dir: &Path, size: Option<u64>, mode: u32) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    if is_mounted(dir)? {
        return Ok(());
    }
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&fs, "source", "tmpfs")?;
    fsconfig_set_string(&fs, "mode", format!("{mode:o}"))?;
    if let Some(size) = size {
        fsconfig_set_string(&fs, "size", size.to_string())?;
    }
    fsconfig_create(&fs)?;
    let attrs = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
    let mount = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attrs)?;
    attach(&mount, dir)
}

/// Mounts huge pages of `size` bytes each at `dir`. A second call finds it there.
pub fn huge_pages(dir: &Path, size: i64) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    if is_mounted(dir)? {
        return Ok(());
    }
    let fs = fsopen("hugetlbfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&fs, "source", "hugetlbfs")?;
    fsconfig_set_string(&fs, "pagesize", size.to_string())?;
    fsconfig_create(&fs)?;
    let attrs = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
    let mount = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attrs)?;
    attach(&mount, dir)
}

/// Binds what `source` (opened `O_PATH`) refers to at `target`, which is made for it.
pub fn bind(source: &OwnedFd, target: &Path, is_dir: bool) -> io::Result<()> {
    if is_mounted(target)? {
        unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::symlink_metadata(target) {
        Ok(meta) if meta.is_dir() && !is_dir => fs::remove_dir(target)?,
        Ok(meta) if !meta.is_dir() && is_dir => fs::remove_file(target)?,
        _ => {}
    }
    if is_dir {
        fs::create_dir_all(target)?;
    } else if !target.exists() {
        fs::write(target, b"")?;
    }
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(source, "", flags)?;
    attach(&tree, target)
}

fn attach(mount: &OwnedFd, target: &Path) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(move_mount(mount, "", CWD, target, flags)?)
}

/// Opens `path` below `root` and nowhere else: links may lead around inside the volume, not out of it.
/// What is missing is made as directories, and those are not looked for through links.
pub fn open_beneath(root: &Path, path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let dir = rustix::fs::open(root, flags | OFlags::DIRECTORY, Mode::empty())?;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(&dir, path, flags, Mode::empty(), beneath) {
        Err(rustix::io::Errno::NOENT) => {}
        other => return Ok(other?),
    }
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&dir)?.st_mode & 0o777);
    let mut at = dir;
    for part in path.split('/').filter(|p| !p.is_empty() && *p != ".") {
        let safe = beneath | ResolveFlags::NO_SYMLINKS;
        at = match rustix::fs::openat2(&at, part, flags, Mode::empty(), safe) {
            Ok(next) => next,
            Err(rustix::io::Errno::NOENT) => {
                match rustix::fs::mkdirat(&at, part, mode) {
                    Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                    Err(err) => return Err(err.into()),
                }
                let made = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let made = rustix::fs::openat2(&at, part, made, Mode::empty(), safe)?;
                // The umask took bits away; the opened directory can't be exchanged any more.
                rustix::fs::fchmod(&made, mode)?;
                made
            }
            Err(err) => return Err(err.into()),
        };
    }
    Ok(at)
}

/// Whether something is mounted exactly here.
pub fn is_mounted(path: &Path) -> io::Result<bool> {
    Ok(below(path)?.iter().any(|m| m == path))
}

/// Mount points at or below `path`, deepest last mounted first.
pub fn below(path: &Path) -> io::Result<Vec<PathBuf>> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let mut found: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|field| PathBuf::from(unescape(field)))
        .filter(|m| m.starts_with(&path))
        .collect();
    found.reverse();
    Ok(found)
}

/// Takes `\040` and the like out of a field of mountinfo.
fn unescape(field: &str) -> String {
    let mut out = Vec::new();
    let bytes = field.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        let octal = bytes.get(i + 1..i + 4).and_then(|d| std::str::from_utf8(d).ok());
        match (bytes[i], octal.and_then(|d| u8::from_str_radix(d, 8).ok())) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                i += 4;
            }
            (byte, _) => {
                out.push(byte);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Unmounts everything at and below `dir`, then removes it. What is not there is fine.
pub fn remove_tree(dir: &Path) -> io::Result<()> {
    unmount_below(dir)?;
    match fs::remove_dir_all(dir) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
        _ => Ok(()),
    }
}

/// Unmounts everything at and below `dir`.
pub fn unmount_below(dir: &Path) -> io::Result<()> {
    for mount in below(dir)? {
        match unmount(&mount, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(err) => return Err(err.into()),
        }
    }
    match below(dir)?.first() {
        Some(left) => Err(io::Error::other(format!("{} is still mounted", left.display()))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn no_link_leads_out_of_a_volume() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (volume, outside) = (dir.path().join("v"), dir.path().join("o"));
        fs::create_dir_all(volume.join("real")).expect("mkdir");
        fs::create_dir_all(&outside).expect("mkdir");
        symlink(&outside, volume.join("abs")).expect("link");
        symlink("../o", volume.join("rel")).expect("link");
        symlink("real", volume.join("inner")).expect("link");
        for path in ["abs", "rel", "../o", "/etc", "abs/new", "rel/new"] {
            assert!(open_beneath(&volume, path).is_err(), "{path}");
        }
        for path in ["inner", "real", "new/deep", "inner/"] {
            assert!(open_beneath(&volume, path).is_ok(), "{path}");
        }
        assert_eq!(fs::read_dir(&outside).expect("list").count(), 0);
        assert!(volume.join("new/deep").is_dir());
        fs::set_permissions(&volume, PermissionsExt::from_mode(0o777)).expect("chmod");
        open_beneath(&volume, "open").expect("made");
        assert_eq!(fs::metadata(volume.join("open")).expect("made").permissions().mode() & 0o777, 0o777);
    }
}
