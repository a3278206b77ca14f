//! Whether two trees are the same: names, types, owners, modes, times, links, attributes; contents on demand.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::show;
use super::tree::name::keep_attribute;

/// No more differences than this are told.
const TOLD: usize = 10;

/// How to compare.
pub(super) struct Comparison {
    /// Contents of files, too.
    pub(super) contents: bool,
    /// Directories of which no archive tells the time: paths without a slash at their start.
    pub(super) timeless: BTreeSet<String>,
}

impl Comparison {
    /// Tells how `found` differs from `wanted`, a sentence each; empty if it does not.
    pub(super) fn differences(&self, wanted: &Path, found: &Path) -> io::Result<Vec<String>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = |path: &Path| rustix::fs::open(path, flags, Mode::empty());
        let mut told = Vec::new();
        let (wanted, found) = (open(wanted)?, open(found)?);
        same_stat("/", &fstat(&wanted)?, &fstat(&found)?, false, &mut told);
        self.directory("", &wanted, &found, &mut told)?;
        Ok(told)
    }

    fn directory(
        &self,
        path: &str,
        wanted: &OwnedFd,
        found: &OwnedFd,
        told: &mut Vec<String>,
    ) -> io::Result<()> {
        same_attributes(path, wanted, found, told)?;
        let (here, there) = (names(wanted)?, names(found)?);
        for gone in here.difference(&there).take(TOLD) {
            told.push(format!("`{path}/{}` is missing", show(gone)));
        }
        for more in there.difference(&here).take(TOLD) {
            told.push(format!("`{path}/{}` does not belong there", show(more)));
        }
        for name in here.intersection(&there) {
            if told.len() >= TOLD {
                break;
            }
            let below = format!("{path}/{}", show(name));
            self.one(&below, name, wanted, found, told)?;
        }
        told.truncate(TOLD);
        Ok(())
    }

    fn one(
        &self,
        path: &str,
        name: &[u8],
        wanted: &OwnedFd,
        found: &OwnedFd,
        told: &mut Vec<String>,
    ) -> io::Result<()> {
        let stat = |parent: &OwnedFd| rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
        let (a, b) = (stat(wanted)?, stat(found)?);
        let whiteout = FileType::from_raw_mode(a.st_mode) == FileType::CharacterDevice && a.st_rdev == 0;
        let timed = !whiteout && !self.timeless.contains(path.trim_start_matches('/'));
        if !same_stat(path, &a, &b, timed, told) {
            return Ok(());
        }
        let open = |parent: &OwnedFd, flags: OFlags| -> io::Result<OwnedFd> {
            let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
        };
        match FileType::from_raw_mode(a.st_mode) {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                self.directory(path, &open(wanted, flags)?, &open(found, flags)?, told)
            }
            FileType::Symlink => {
                let target = |parent: &OwnedFd| rustix::fs::readlinkat(parent, name, Vec::new());
                if target(wanted)? != target(found)? {
                    told.push(format!("`{path}` links elsewhere"));
                }
                Ok(())
            }
            FileType::RegularFile => {
                let (a, b) = (open(wanted, OFlags::RDONLY)?, open(found, OFlags::RDONLY)?);
                same_attributes(path, &a, &b, told)?;
                if self.contents && !same_content(a, b)? {
                    told.push(format!("`{path}` has another content"));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn fstat(fd: &OwnedFd) -> io::Result<Stat> {
    Ok(rustix::fs::fstat(fd)?)
}

fn names(directory: &OwnedFd) -> io::Result<BTreeSet<Vec<u8>>> {
    let mut names = BTreeSet::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.insert(name.to_vec());
        }
    }
    Ok(names)
}

/// What can be told without opening. `false` if it makes no sense to look further.
fn same_stat(path: &str, a: &Stat, b: &Stat, timed: bool, told: &mut Vec<String>) -> bool {
    let kind = |s: &Stat| FileType::from_raw_mode(s.st_mode);
    if kind(a) != kind(b) {
        told.push(format!("`{path}` is a {:?} instead of a {:?}", kind(b), kind(a)));
        return false;
    }
    let mut check = |what: &str, same: bool| {
        if !same {
            told.push(format!("`{path}` has another {what}"));
        }
    };
    check("mode", a.st_mode == b.st_mode);
    check("owner", (a.st_uid, a.st_gid) == (b.st_uid, b.st_gid));
    check("time", !timed || (a.st_mtime, a.st_mtime_nsec) == (b.st_mtime, b.st_mtime_nsec));
    check("device number", a.st_rdev == b.st_rdev);
    if kind(a) == FileType::RegularFile {
        check("size", a.st_size == b.st_size);
    }
    if kind(a) != FileType::Directory {
        check("number of hard links", a.st_nlink == b.st_nlink);
    }
    true
}

/// Those attributes that unpacking sets.
fn same_attributes(path: &str, a: &OwnedFd, b: &OwnedFd, told: &mut Vec<String>) -> io::Result<()> {
    if attributes(a)? != attributes(b)? {
        told.push(format!("`{path}` has other attributes"));
    }
    Ok(())
}

fn attributes(fd: &OwnedFd) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut list = Vec::with_capacity(1024);
    let names = loop {
        match rustix::fs::flistxattr(fd.as_fd(), rustix::buffer::spare_capacity(&mut list)) {
            Ok(_) => break list,
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(Errno::RANGE) => list.reserve(list.capacity() * 2),
            Err(err) => return Err(err.into()),
        }
    };
    let ours = |name: &&[u8]| keep_attribute(name) || *name == b"trusted.overlay.opaque";
    let mut found = Vec::new();
    for name in names.split(|b| *b == 0).filter(|name| !name.is_empty()).filter(ours) {
        let mut value = Vec::with_capacity(64 << 10);
        match rustix::fs::fgetxattr(fd.as_fd(), name, rustix::buffer::spare_capacity(&mut value)) {
            Ok(_) => found.push((name.to_vec(), value)),
            Err(Errno::NODATA) => (),
            Err(err) => return Err(err.into()),
        }
    }
    found.sort();
    Ok(found)
}

fn same_content(a: OwnedFd, b: OwnedFd) -> io::Result<bool> {
    let (mut a, mut b) = (File::from(a), File::from(b));
    let (mut left, mut right) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let n = a.read(&mut left)?;
        if n == 0 {
            return Ok(b.read(&mut right)? == 0);
        }
        if b.read_exact(&mut right[..n]).is_err() || left[..n] != right[..n] {
            return Ok(false);
        }
    }
}
