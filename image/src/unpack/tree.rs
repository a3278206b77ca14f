//! Writes entries beneath a directory descriptor, the way overlayfs wants a layer.
//!
//! Guarantees: each path is resolved by the kernel beneath the root (`openat2` with `RESOLVE_BENEATH`);
//! the last component is never followed.

pub(super) mod name;

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, UTIME_OMIT, Uid,
    XattrFlags,
};
use rustix::io::Errno;
use tracing::warn;

use super::archive::{Archive, Entry, Kind};
use super::{UnpackError, show};
use crate::digest::Digest;
use crate::limits::Limits;
use crate::state::{LayerRecord, Origin};
use name::{Special, TreePath};

/// Names of directories that we remember until the end, bytes in all.
const NAMES_MAX: usize = 64 << 20;

pub(super) struct Tree<'l> {
    root: OwnedFd,
    limits: &'l Limits,
    /// The directory that the last entry went into: the next one mostly goes there, too.
    last: Option<(Vec<u8>, OwnedFd)>,
    /// Times are set at the end: entries within a directory change them.
    times: HashMap<Vec<u8>, Timestamps>,
    implied: BTreeSet<Vec<u8>>,
    names: usize,
    bytes: u64,
    inodes: u64,
    /// Whether contents are written, not only the sizes of files set.
    contents: bool,
    /// Whether all that entries made is still there, no later entry of the layer having replaced it.
    whole: bool,
}

impl<'l> Tree<'l> {
    pub(super) fn open(root: &Path, limits: &'l Limits, contents: bool) -> Result<Tree<'l>, UnpackError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let root = rustix::fs::open(root, flags, Mode::empty())
            .map_err(|err| UnpackError::write("open the directory", b".", err.into()))?;
        Ok(Tree {
            root,
            limits,
            last: None,
            times: HashMap::new(),
            implied: BTreeSet::new(),
            names: 0,
            bytes: 4096,
            inodes: 1,
            contents,
            whole: true,
        })
    }

    /// Writes one entry; a file's content is read from the archive.
    pub(super) fn add(&mut self, entry: &Entry, archive: &mut Archive) -> Result<(), UnpackError> {
        let path = TreePath::parse(&entry.name, self.limits.absolute_names)?;
        let Some(name) = path.name() else {
            if !matches!(entry.kind, Kind::Directory) {
                return Err(UnpackError::malformed(&entry.name, "the layer's root is not a directory"));
            }
            let root = self.root.try_clone().map_err(|err| UnpackError::write("open", &entry.name, err))?;
            return self.dress_directory(&root, path.bytes(), entry);
        };
        if let Some(special) = name::special(name, &entry.name)? {
            return self.whiteout(&path, special, entry);
        }
        let parent = self.parent(&path, entry)?;
        let done = self.write(&parent, &path, name, entry, archive);
        self.last = Some((path.parent().to_vec(), parent));
        done?;
        if matches!(entry.kind, Kind::Directory) {
            self.implied.remove(path.bytes());
        } else {
            self.inodes += u64::from(!matches!(entry.kind, Kind::HardLink(_)));
        }
        Ok(())
    }

    fn write(
        &mut self,
        parent: &OwnedFd,
        path: &TreePath,
        name: &[u8],
        entry: &Entry,
        archive: &mut Archive,
    ) -> Result<(), UnpackError> {
        let fail = |step| move |err: Errno| UnpackError::write(step, &entry.name, err.into());
        let owner = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
        let times = timestamps(entry.mtime);
        match &entry.kind {
            Kind::File { size, sparse } => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = self
                    .replacing(parent, name, path, || rustix::fs::openat(parent, name, flags, Mode::RUSR))
                    .map_err(fail("create file"))?;
                let target = self.contents.then_some(&file);
                match sparse {
                    None => copy(target, path, archive, None, entry)?,
                    Some(segments) => {
                        for segment in segments {
                            let segment = Some((segment.offset, segment.length));
                            copy(target, path, archive, segment, entry)?;
                        }
                    }
                }
                if sparse.is_some() || !self.contents {
                    rustix::fs::ftruncate(&file, *size).map_err(fail("set the size"))?;
                }
                rustix::fs::fchown(&file, owner.0, owner.1).map_err(fail("change the owner"))?;
                rustix::fs::fchmod(&file, Mode::from_raw_mode(entry.mode))
                    .map_err(fail("change the mode"))?;
                self.attributes(file.as_fd(), entry)?;
                rustix::fs::futimens(&file, &times).map_err(fail("set the time"))?;
                let stored = sparse.as_ref().map_or(*size, |s| s.iter().map(|s| s.length).sum());
                self.bytes += stored.next_multiple_of(4096);
            }
            Kind::Directory => {
                let directory = self.make_directory(parent, name, path).map_err(fail("create directory"))?;
                self.dress_directory(&directory, path.bytes(), entry)?;
            }
            Kind::Symlink(target) => {
                self.replacing(parent, name, path, || rustix::fs::symlinkat(target.as_slice(), parent, name))
                    .map_err(fail("create symbolic link"))?;
                rustix::fs::chownat(parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(fail("change the owner"))?;
                rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(fail("set the time"))?;
            }
            Kind::HardLink(target) => self.hard_link(parent, name, path, target, entry)?,
            Kind::Character(..) | Kind::Block(..) | Kind::Fifo => {
                let (kind, device) = match entry.kind {
                    Kind::Character(major, minor) => {
                        (FileType::CharacterDevice, rustix::fs::makedev(major, minor))
                    }
                    Kind::Block(major, minor) => (FileType::BlockDevice, rustix::fs::makedev(major, minor)),
                    _ => (FileType::Fifo, 0),
                };
                self.replacing(parent, name, path, || {
                    rustix::fs::mknodat(parent, name, kind, Mode::RUSR, device)
                })
                .map_err(fail("create special file"))?;
                rustix::fs::chownat(parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(fail("change the owner"))?;
                // We have just made it, in a tree that is ours alone: it is no symbolic link.
                rustix::fs::chmodat(parent, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())
                    .map_err(fail("change the mode"))?;
                rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(fail("set the time"))?;
            }
        }
        Ok(())
    }

    /// Makes something whose name must be free; what has the name makes way.
    fn replacing<T>(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        path: &TreePath,
        make: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match make() {
            Err(Errno::EXIST) => {
                self.remove(parent, name, path)?;
                make()
            }
            other => other,
        }
    }

    /// Removes what an earlier entry of the same layer made.
    fn remove(&mut self, parent: &OwnedFd, name: &[u8], path: &TreePath) -> Result<(), Errno> {
        self.whole &=
            rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|s| is_whiteout(&s));
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => {
                remove_directory(parent.as_fd(), name)?;
                let mut below = path.bytes().to_vec();
                self.times.remove(&below);
                self.implied.remove(&below);
                below.push(b'/');
                self.times.retain(|dir, _| !dir.starts_with(&below));
                self.implied.retain(|dir| !dir.starts_with(&below));
                self.last = None;
                Ok(())
            }
            other => other,
        }
    }

    /// Makes or reuses a directory. One that replaces a whiteout hides what lies below it.
    fn make_directory(&mut self, parent: &OwnedFd, name: &[u8], path: &TreePath) -> Result<OwnedFd, Errno> {
        let mut opaque = false;
        match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
            Err(Errno::EXIST) => {
                let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                    opaque = is_whiteout(&stat);
                    self.remove(parent, name, path)?;
                    rustix::fs::mkdirat(parent, name, Mode::RWXU)?;
                    self.inodes += 1;
                    self.bytes += 4096;
                }
            }
            other => {
                other?;
                self.inodes += 1;
                self.bytes += 4096;
            }
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(parent, name, flags, Mode::empty())?;
        if opaque {
            set_opaque(&directory)?;
        }
        Ok(directory)
    }

    fn dress_directory(&mut self, fd: &OwnedFd, path: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        let fail = |step| move |err: Errno| UnpackError::write(step, &entry.name, err.into());
        rustix::fs::fchown(fd, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
            .map_err(fail("change the owner"))?;
        rustix::fs::fchmod(fd, Mode::from_raw_mode(entry.mode)).map_err(fail("change the mode"))?;
        self.attributes(fd.as_fd(), entry)?;
        self.remember(path.len(), &entry.name)?;
        self.times.insert(path.to_vec(), timestamps(entry.mtime));
        Ok(())
    }

    /// Counts names that stay in memory.
    fn remember(&mut self, bytes: usize, entry: &[u8]) -> Result<(), UnpackError> {
        self.names += bytes + 64;
        if self.names > NAMES_MAX {
            let limit = NAMES_MAX as u64;
            return Err(UnpackError::Limit {
                entry: show(entry),
                what: "the length of directory names",
                limit,
            });
        }
        Ok(())
    }

    fn hard_link(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        path: &TreePath,
        target: &[u8],
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        let missing = || UnpackError::HardLink { entry: show(&entry.name), target: show(target) };
        let refused = |err| match err {
            UnpackError::Traversal { .. } | UnpackError::Absolute { .. } | UnpackError::Malformed { .. } => {
                missing()
            }
            other => other,
        };
        let target_path = TreePath::parse(target, self.limits.absolute_names).map_err(refused)?;
        let Some(target_name) = target_path.name() else { return Err(missing()) };
        let from = match self.beneath(target_path.parent()) {
            Ok(from) => from,
            Err(Errno::XDEV | Errno::LOOP) => {
                return Err(UnpackError::Escape { entry: show(&entry.name), path: show(target) });
            }
            Err(_) => return Err(missing()),
        };
        let link = || rustix::fs::linkat(&from, target_name, parent, name, AtFlags::empty());
        let stat =
            rustix::fs::statat(&from, target_name, AtFlags::SYMLINK_NOFOLLOW).map_err(|_| missing())?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory || is_whiteout(&stat) {
            return Err(missing());
        }
        if let Ok(old) = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
            && (old.st_dev, old.st_ino) == (stat.st_dev, stat.st_ino)
        {
            return Ok(());
        }
        self.replacing(parent, name, path, link)
            .map_err(|err| UnpackError::write("create hard link", &entry.name, err.into()))
    }

    /// Hides something of the layers below. What this layer itself has stays: a whiteout says nothing
    /// about it.
    fn whiteout(&mut self, path: &TreePath, special: Special, entry: &Entry) -> Result<(), UnpackError> {
        let fail = |step| move |err: Errno| UnpackError::write(step, &entry.name, err.into());
        let parent = self.parent(path, entry)?;
        match special {
            Special::Ignored => (),
            Special::Opaque => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let directory =
                    rustix::fs::openat(&parent, ".", flags, Mode::empty()).map_err(fail("open directory"))?;
                set_opaque(&directory).map_err(fail("make opaque"))?;
            }
            Special::Whiteout(name) => {
                match rustix::fs::mknodat(&parent, name, FileType::CharacterDevice, Mode::empty(), 0) {
                    Ok(()) => self.inodes += 1,
                    Err(Errno::EXIST) => {
                        let stat = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)
                            .map_err(fail("look at"))?;
                        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                            let flags =
                                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                            let directory = rustix::fs::openat(&parent, name, flags, Mode::empty())
                                .map_err(fail("open directory"))?;
                            set_opaque(&directory).map_err(fail("make opaque"))?;
                        }
                    }
                    Err(err) => return Err(fail("create whiteout")(err)),
                }
            }
        }
        self.last = Some((path.parent().to_vec(), parent));
        Ok(())
    }

    /// Opens the directory that an entry goes into; makes it if no entry did.
    fn parent(&mut self, path: &TreePath, entry: &Entry) -> Result<OwnedFd, UnpackError> {
        if let Some((bytes, fd)) = self.last.take()
            && bytes == path.parent()
        {
            return Ok(fd);
        }
        match self.beneath(path.parent()) {
            Ok(fd) => Ok(fd),
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_parents(path, entry),
            Err(err) => Err(self.escape(err, path.parent(), entry)),
        }
    }

    fn make_parents(&mut self, path: &TreePath, entry: &Entry) -> Result<OwnedFd, UnpackError> {
        let mut parent = self.root.try_clone().map_err(|err| UnpackError::write("open", &entry.name, err))?;
        for prefix in path.prefixes() {
            let opened = match self.beneath(prefix.bytes()) {
                Err(Errno::NOENT | Errno::NOTDIR) => {
                    let name = prefix.name().unwrap_or_default();
                    let old = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW);
                    if old.is_ok_and(|stat| !is_whiteout(&stat)) {
                        let reason = format!("`{}` is not a directory", show(prefix.bytes()));
                        return Err(UnpackError::malformed(&entry.name, reason));
                    }
                    let made = self.make_directory(&parent, name, &prefix).and_then(|fd| {
                        rustix::fs::fchown(&fd, Some(Uid::ROOT), Some(Gid::ROOT))?;
                        rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o755))?;
                        Ok(fd)
                    });
                    let made =
                        made.map_err(|err| UnpackError::write("create the parent", &entry.name, err.into()))?;
                    self.remember(prefix.bytes().len(), &entry.name)?;
                    self.implied.insert(prefix.bytes().to_vec());
                    made
                }
                Err(err) => return Err(self.escape(err, prefix.bytes(), entry)),
                Ok(fd) => fd,
            };
            parent = opened;
        }
        Ok(parent)
    }

    fn escape(&self, err: Errno, path: &[u8], entry: &Entry) -> UnpackError {
        match err {
            Errno::XDEV | Errno::LOOP => UnpackError::Escape { entry: show(&entry.name), path: show(path) },
            err => UnpackError::write("open the parent", &entry.name, err.into()),
        }
    }

    /// Opens a directory of the tree. Symbolic links on the way are followed as long as they stay within
    /// it (as `lib -> usr/lib` does).
    fn beneath(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b".".as_slice() } else { path };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        loop {
            match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve) {
                // A rename elsewhere on the machine disturbed the walk.
                Err(Errno::AGAIN) => (),
                other => return other,
            }
        }
    }

    fn attributes(&self, fd: BorrowedFd, entry: &Entry) -> Result<(), UnpackError> {
        for (key, value) in entry.xattrs.iter().filter(|(key, _)| name::keep_attribute(key)) {
            match rustix::fs::fsetxattr(fd, key.as_slice(), value, XattrFlags::empty()) {
                Ok(()) => (),
                Err(Errno::OPNOTSUPP) => {
                    warn!(
                        entry = show(&entry.name),
                        key = show(key),
                        "the file system has no such attributes"
                    );
                }
                Err(err) => {
                    return Err(UnpackError::write("set an extended attribute", &entry.name, err.into()));
                }
            }
        }
        Ok(())
    }

    /// Sets the directories' times and says what the layer takes.
    pub(super) fn finish(self, diff_id: Digest, tar_bytes: u64) -> Result<LayerRecord, UnpackError> {
        for (path, times) in &self.times {
            let path = if path.is_empty() { b".".as_slice() } else { path };
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
            // One that was replaced meanwhile has no time to set.
            if let Ok(fd) = rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve) {
                rustix::fs::futimens(&fd, times)
                    .map_err(|err| UnpackError::write("set the time", path, err.into()))?;
            }
        }
        let implied = self.implied.into_iter().filter_map(|path| String::from_utf8(path).ok()).collect();
        let origin = if self.whole { Origin::Recipe } else { Origin::Source };
        Ok(LayerRecord { diff_id, bytes: self.bytes, inodes: self.inodes, implied, tar_bytes, origin })
    }
}

/// Writes content to a file, if there is one: all that is left, or a segment of a sparse file.
fn copy(
    file: Option<&OwnedFd>,
    path: &TreePath,
    archive: &mut Archive,
    segment: Option<(u64, u64)>,
    entry: &Entry,
) -> Result<(), UnpackError> {
    let fail = |err: Errno| UnpackError::write("write content", &entry.name, err.into());
    let (mut offset, mut left) = segment.unwrap_or((0, u64::MAX));
    let start = offset;
    archive.begin_content();
    loop {
        let part = archive.content(left)?;
        if part.is_empty() {
            archive.end_content(path.bytes(), start);
            return Ok(());
        }
        let n = match file.map(|file| rustix::io::pwrite(file, part, offset)) {
            None => part.len(),
            Some(Err(Errno::INTR)) => continue,
            Some(Ok(0)) => return Err(fail(Errno::IO)),
            Some(other) => other.map_err(fail)?,
        };
        archive.consume(n);
        offset += n as u64;
        left -= n as u64;
    }
}

fn timestamps((seconds, nanos): (i64, i64)) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanos as _ },
    }
}

/// Overlayfs takes a character device with number 0:0 for "not here".
fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn set_opaque(directory: &OwnedFd) -> Result<(), Errno> {
    rustix::fs::fsetxattr(directory, "trusted.overlay.opaque", b"y", XattrFlags::empty())
}

/// Removes a directory with all that is in it, without following anything.
fn remove_directory(parent: BorrowedFd, name: &[u8]) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    let mut children = Vec::new();
    for child in rustix::fs::Dir::read_from(&directory)? {
        let child = child?;
        let name = child.file_name().to_bytes();
        if name != b"." && name != b".." {
            children.push(name.to_vec());
        }
    }
    for child in children {
        match rustix::fs::unlinkat(&directory, child.as_slice(), AtFlags::empty()) {
            Err(Errno::ISDIR) => remove_directory(directory.as_fd(), &child)?,
            other => other?,
        }
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}
