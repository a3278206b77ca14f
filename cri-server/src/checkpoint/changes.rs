//! The changed files of a writable layer as an archive, and what was deleted of the layers below as a list.
//!
//! Guarantees: the container may change everything meanwhile: nothing is read outside the layer's directory, nothing
//! but regular files is opened, and each file has the size that its header says.
//! Caveat: sockets are left out; of attributes, `user.*` and `security.capability` are kept.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use runtime::spec::UserNamespace;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};

/// Mark of a directory that hides those below it.
const OPAQUE: &str = "trusted.overlay.opaque";
/// Most bytes of an attribute (the kernel's XATTR_SIZE_MAX), and of the list of their names.
const ATTRIBUTE: usize = 1 << 16;
/// Deepest nesting of directories that is followed: the kernel's PATH_MAX has no more.
const DEEPEST: usize = 2048;

/// Ends the work of a caller that was told that it took too long.
pub fn go_on(given_up: &AtomicBool) -> io::Result<()> {
    if given_up.load(Ordering::Relaxed) { Err(io::Error::other("it took too long")) } else { Ok(()) }
}

/// A reader of exactly so many bytes: what is missing is zeros.
pub struct Exactly<R> {
    inner: R,
    left: u64,
}

impl<R> Exactly<R> {
    /// Of `inner`, `size` bytes.
    pub fn new(inner: R, size: u64) -> Exactly<R> {
        Exactly { inner, left: size }
    }
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = &mut buffer[..most];
        let mut read = self.inner.read(buffer)?;
        if read == 0 {
            buffer.fill(0);
            read = most;
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// Packs a tree.
pub struct Packer<'a, W: Write> {
    archive: tar::Builder<W>,
    lower: &'a [PathBuf],
    ids: Option<UserNamespace>,
    given_up: &'a AtomicBool,
    deleted: BTreeSet<PathBuf>,
    /// Files with several names, by device and inode.
    linked: HashMap<(u64, u64), PathBuf>,
}

impl<'a, W: Write> Packer<'a, W> {
    /// Writes to `out`. `lower` are the layers below, `ids` those of the pod if it has its own.
    pub fn new(
        out: W,
        lower: &'a [PathBuf],
        ids: Option<UserNamespace>,
        given_up: &'a AtomicBool,
    ) -> Packer<'a, W> {
        let archive = tar::Builder::new(out);
        Packer { archive, lower, ids, given_up, deleted: BTreeSet::new(), linked: HashMap::new() }
    }

    /// Adds all below a directory.
    pub fn add_tree(&mut self, root: &Path) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(root, flags, Mode::empty())?;
        let hides = is_opaque(&root);
        self.directory(&root, Path::new(""), hides)
    }

    /// The written archive, and the paths of what was deleted.
    pub fn finish(self) -> io::Result<(W, Vec<String>)> {
        let deleted = self.deleted.iter().map(|path| format!("/{}", path.display())).collect();
        Ok((self.archive.into_inner()?, deleted))
    }

    fn directory(&mut self, fd: &OwnedFd, path: &Path, hides: bool) -> io::Result<()> {
        if path.components().count() > DEEPEST {
            return Err(io::Error::other(format!("{} is too deep", path.display())));
        }
        let mut names: BTreeSet<OsString> = BTreeSet::new();
        for entry in Dir::read_from(fd)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.insert(OsString::from_vec(name));
            }
        }
        if hides {
            self.deleted.extend(hidden(self.lower, path).difference(&names).map(|name| path.join(name)));
        }
        for name in &names {
            go_on(self.given_up)?;
            match self.entry(fd, name, &path.join(name), hides) {
                // Gone, or become something else, since it was listed.
                Err(error)
                    if matches!(
                        error.raw_os_error().map(rustix::io::Errno::from_raw_os_error),
                        Some(rustix::io::Errno::NOENT | rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR)
                    ) => {}
                done => done?,
            }
        }
        Ok(())
    }

    fn entry(&mut self, parent: &OwnedFd, name: &OsStr, path: &Path, hides: bool) -> io::Result<()> {
        let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let fd = rustix::fs::openat(parent, name, flags | OFlags::DIRECTORY, Mode::empty())?;
                let stat = rustix::fs::fstat(&fd)?;
                self.attributes(&fd)?;
                let mut header = self.header(&stat, tar::EntryType::Directory);
                self.archive.append_data(&mut header, path, io::empty())?;
                let hides = hides || is_opaque(&fd);
                self.directory(&fd, path, hides)
            }
            FileType::RegularFile => {
                let fd = rustix::fs::openat(parent, name, flags, Mode::empty())?;
                let stat = rustix::fs::fstat(&fd)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    return Ok(());
                }
                if self.is_known(&stat, path)? {
                    return Ok(());
                }
                self.attributes(&fd)?;
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                let mut header = self.header(&stat, tar::EntryType::Regular);
                header.set_size(size);
                self.archive.append_data(&mut header, path, Exactly::new(File::from(fd), size))
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(parent, name, Vec::new())?;
                let mut header = self.header(&stat, tar::EntryType::Symlink);
                self.archive.append_link(&mut header, path, OsStr::from_bytes(target.to_bytes()))
            }
            FileType::CharacterDevice if stat.st_rdev == 0 => {
                self.deleted.insert(path.to_owned());
                Ok(())
            }
            FileType::CharacterDevice => self.node(&stat, tar::EntryType::Char, path),
            FileType::BlockDevice => self.node(&stat, tar::EntryType::Block, path),
            FileType::Fifo => self.node(&stat, tar::EntryType::Fifo, path),
            FileType::Socket | FileType::Unknown => Ok(()),
        }
    }

    fn node(&mut self, stat: &Stat, kind: tar::EntryType, path: &Path) -> io::Result<()> {
        let mut header = self.header(stat, kind);
        header.set_device_major(rustix::fs::major(stat.st_rdev))?;
        header.set_device_minor(rustix::fs::minor(stat.st_rdev))?;
        self.archive.append_data(&mut header, path, io::empty())
    }

    /// Whether this file was packed by another name; if so, a link to that is.
    fn is_known(&mut self, stat: &Stat, path: &Path) -> io::Result<bool> {
        if stat.st_nlink < 2 {
            return Ok(false);
        }
        let key = (stat.st_dev, stat.st_ino);
        if let Some(first) = self.linked.get(&key).cloned() {
            let mut header = self.header(stat, tar::EntryType::Link);
            self.archive.append_link(&mut header, path, &first)?;
            return Ok(true);
        }
        self.linked.insert(key, path.to_owned());
        Ok(false)
    }

    fn header(&self, stat: &Stat, kind: tar::EntryType) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(stat.st_mode & 0o7777);
        let inside =
            |id: u32, first: Option<u32>| u64::from(id - first.filter(|first| *first <= id).unwrap_or(0));
        header.set_uid(inside(stat.st_uid, self.ids.map(|ids| ids.users.host)));
        header.set_gid(inside(stat.st_gid, self.ids.map(|ids| ids.groups.host)));
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
        header.set_size(0);
        header
    }

    /// The attributes that are kept, for the entry that follows.
    fn attributes(&mut self, fd: &OwnedFd) -> io::Result<()> {
        let mut names = vec![0; ATTRIBUTE];
        let length = match rustix::fs::flistxattr(fd, &mut names) {
            Err(rustix::io::Errno::NOTSUP) => return Ok(()),
            length => length?,
        };
        let mut kept = Vec::new();
        for name in names[..length].split(|byte| *byte == 0) {
            let Some(name) = std::str::from_utf8(name).ok().filter(|name| is_kept(name)) else { continue };
            let mut value = vec![0; ATTRIBUTE];
            let length = rustix::fs::fgetxattr(fd, name, &mut value)?;
            value.truncate(length);
            kept.push((format!("SCHILY.xattr.{name}"), value));
        }
        if kept.is_empty() {
            return Ok(());
        }
        self.archive.append_pax_extensions(kept.iter().map(|(name, value)| (name.as_str(), value.as_slice())))
    }
}

fn is_kept(name: &str) -> bool {
    name == "security.capability" || name.starts_with("user.")
}

fn is_opaque(fd: &OwnedFd) -> bool {
    let mut value = [0; 1];
    rustix::fs::fgetxattr(fd, OPAQUE, &mut value).is_ok() && value == *b"y"
}

/// Names that the layers below have in a directory. What they themselves hide is among them: it is not there anyway.
fn hidden(lower: &[PathBuf], path: &Path) -> BTreeSet<OsString> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut names = BTreeSet::new();
    for layer in lower {
        // Of an image: its links stay beneath its root.
        let opened = rustix::fs::open(layer, flags, Mode::empty()).and_then(|layer| {
            let below = if path.as_os_str().is_empty() { Path::new(".") } else { path };
            let resolve = rustix::fs::ResolveFlags::BENEATH | rustix::fs::ResolveFlags::NO_SYMLINKS;
            rustix::fs::openat2(&layer, below, flags, Mode::empty(), resolve)
        });
        let Ok(entries) = opened.and_then(|directory| Dir::read_from(&directory)) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.insert(OsString::from_vec(name));
            }
        }
    }
    names
}
