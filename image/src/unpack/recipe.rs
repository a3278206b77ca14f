//! How a layer's archive is made again of its tree: all bytes that are no file's content, and where the
//! contents go between them. It lets a layer be verified against its diff id, and be exported, bit by bit,
//! without keeping its content twice.
//!
//! A recipe is a zstd stream of records: `0`, length (u32), bytes; or `1`, offset and length in the file
//! (u64 each), length of the path (u16), path. Numbers are little-endian.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fd::OwnedFd;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

/// Bytes of an archive that are no content are collected up to this many before they are written.
const PIECE: usize = 16 << 10;
/// A recipe that needs more bytes of disk is refused: what the archive has besides content is padding then.
pub(super) const LARGEST: u64 = 256 << 20;

/// Counts what is written.
struct Bounded {
    file: BufWriter<File>,
    bytes: u64,
}

impl Write for Bounded {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.bytes + data.len() as u64 > LARGEST {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let n = self.file.write(data)?;
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Written while a layer is unpacked.
pub(super) struct Recipe {
    out: zstd::stream::write::Encoder<'static, Bounded>,
    plain: Vec<u8>,
    /// Bytes that went into the file that is being written, if one is.
    content: Option<u64>,
}

impl Recipe {
    pub(super) fn create(path: &Path) -> io::Result<Recipe> {
        let file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
        let mut out = zstd::stream::write::Encoder::new(Bounded { file: BufWriter::new(file), bytes: 0 }, 1)?;
        // Headers repeat themselves nearby; a small window keeps many layers at a time small.
        out.window_log(17)?;
        Ok(Recipe { out, plain: Vec::with_capacity(PIECE), content: None })
    }

    /// Bytes of the archive go by.
    pub(super) fn pass(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(length) = &mut self.content {
            *length += bytes.len() as u64;
            return Ok(());
        }
        for part in bytes.chunks(PIECE) {
            if self.plain.len() + part.len() > PIECE {
                self.flush_plain()?;
            }
            self.plain.extend_from_slice(part);
        }
        Ok(())
    }

    /// What follows is a file's content.
    pub(super) fn begin(&mut self) {
        self.content = Some(0);
    }

    /// What followed went into this file, from this offset on.
    pub(super) fn end(&mut self, path: &[u8], offset: u64) -> io::Result<()> {
        let length = self.content.take().unwrap_or(0);
        if length == 0 {
            return Ok(());
        }
        self.flush_plain()?;
        let path_length = u16::try_from(path.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.out.write_all(&[1])?;
        self.out.write_all(&offset.to_le_bytes())?;
        self.out.write_all(&length.to_le_bytes())?;
        self.out.write_all(&path_length.to_le_bytes())?;
        self.out.write_all(path)
    }

    fn flush_plain(&mut self) -> io::Result<()> {
        if self.plain.is_empty() {
            return Ok(());
        }
        let length = u32::try_from(self.plain.len()).expect("no more than a piece");
        self.out.write_all(&[0])?;
        self.out.write_all(&length.to_le_bytes())?;
        self.out.write_all(&self.plain)?;
        self.plain.clear();
        Ok(())
    }

    /// Completes it; returns its bytes of disk.
    pub(super) fn finish(mut self) -> io::Result<u64> {
        self.flush_plain()?;
        let mut bounded = self.out.finish()?;
        bounded.file.flush()?;
        Ok(bounded.bytes)
    }
}

/// Makes the archive again.
pub(super) struct Replay {
    root: OwnedFd,
    records: zstd::stream::read::Decoder<'static, BufReader<File>>,
    part: Part,
}

enum Part {
    Between,
    Plain { left: usize },
    Content { file: File, path: String, at: u64, left: u64 },
    End,
}

impl Replay {
    /// Of a recipe and the tree that it speaks of.
    pub(super) fn open(recipe: &Path, tree: &Path) -> io::Result<Replay> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(tree, flags, Mode::empty())?;
        let records = zstd::stream::read::Decoder::new(File::open(recipe)?)?;
        Ok(Replay { root, records, part: Part::Between })
    }

    fn number<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.records.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn next(&mut self) -> io::Result<Part> {
        let mut tag = [0];
        if self.records.read(&mut tag)? == 0 {
            return Ok(Part::End);
        }
        if tag[0] == 0 {
            let left = u32::from_le_bytes(self.number()?) as usize;
            return Ok(Part::Plain { left });
        }
        let at = u64::from_le_bytes(self.number()?);
        let left = u64::from_le_bytes(self.number()?);
        let mut path = vec![0; usize::from(u16::from_le_bytes(self.number()?))];
        self.records.read_exact(&mut path)?;
        let shown = super::show(&path);
        let fail = |err: io::Error| io::Error::new(err.kind(), format!("`{shown}`: {err}"));
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let file = loop {
            match rustix::fs::openat2(&self.root, path.as_slice(), flags, Mode::empty(), resolve) {
                // A rename elsewhere on the machine disturbed the walk.
                Err(rustix::io::Errno::AGAIN) => (),
                other => break other.map_err(|err| fail(err.into()))?,
            }
        };
        let stat = rustix::fs::fstat(&file).map_err(|err| fail(err.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(fail(io::Error::other("it is no file any more")));
        }
        Ok(Part::Content { file: file.into(), path: shown, at, left })
    }
}

impl Read for Replay {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            match &mut self.part {
                Part::Plain { left } if *left > 0 => {
                    let most = buf.len().min(*left);
                    let n = self.records.read(&mut buf[..most])?;
                    if n == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    *left -= n;
                    return Ok(n);
                }
                Part::Content { file, path, at, left } if *left > 0 => {
                    let most = buf.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    let n = file.read_at(&mut buf[..most], *at)?;
                    if n == 0 {
                        return Err(io::Error::other(format!("`{path}` is shorter than it was")));
                    }
                    *at += n as u64;
                    *left -= n as u64;
                    return Ok(n);
                }
                Part::End => return Ok(0),
                _ => self.part = self.next()?,
            }
        }
    }
}
