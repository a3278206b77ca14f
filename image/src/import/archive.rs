//! An archive on disk, with an index of what lies where in it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::ImportError;
use crate::digest::Digest;
use crate::layout::Layout;
use crate::manifest::check_size;
use crate::store::remove_file;

/// Archives with more entries are refused.
const ENTRIES: usize = 100_000;

/// Where something lies in the archive, in bytes.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    offset: u64,
    pub(super) size: u64,
}

#[derive(Debug)]
pub(super) struct Archive {
    file: File,
    pieces: HashMap<String, Piece>,
    links: HashMap<String, String>,
}

impl Archive {
    /// Opens an archive and notes what is in it. A compressed one is decompressed to a file of ours that
    /// has no name any more.
    pub(super) fn open(path: &Path, layout: &Layout) -> Result<Archive, ImportError> {
        let mut file = File::open(path).map_err(ImportError::Read)?;
        let mut magic = [0; 4];
        let n = file.read_at(&mut magic, 0).map_err(ImportError::Read)?;
        let gzip = n >= 2 && magic[..2] == [0x1f, 0x8b];
        let zstd = n == 4 && magic == [0x28, 0xb5, 0x2f, 0xfd];
        if gzip || zstd {
            let source = BufReader::with_capacity(128 << 10, file);
            let mut reader: Box<dyn Read> = if gzip {
                Box::new(flate2::bufread::MultiGzDecoder::new(source))
            } else {
                Box::new(zstd::stream::read::Decoder::with_buffer(source).map_err(ImportError::Decompress)?)
            };
            let temporary = layout.temporary();
            let mut plain = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&temporary)
                .map_err(ImportError::Decompress)?;
            remove_file(&temporary).map_err(ImportError::Decompress)?;
            io::copy(&mut reader, &mut plain).map_err(ImportError::Decompress)?;
            plain.seek(SeekFrom::Start(0)).map_err(ImportError::Decompress)?;
            file = plain;
        }
        let malformed = |err: io::Error| ImportError::Malformed(err.to_string());
        let end = file.metadata().map_err(ImportError::Read)?.len();
        let mut pieces = HashMap::new();
        let mut links = HashMap::new();
        {
            let mut archive = tar::Archive::new(&file);
            for entry in archive.entries_with_seek().map_err(malformed)? {
                let entry = entry.map_err(malformed)?;
                let name = normal(&String::from_utf8_lossy(&entry.path_bytes()));
                let kind = entry.header().entry_type();
                if kind.is_symlink() || kind.is_hard_link() {
                    let target = entry.link_name_bytes().unwrap_or_default();
                    let target = String::from_utf8_lossy(&target).into_owned();
                    let target = if kind.is_symlink() { relative(&name, &target) } else { normal(&target) };
                    links.insert(name, target);
                } else if kind.is_file() {
                    let piece = Piece { offset: entry.raw_file_position(), size: entry.size() };
                    if piece.offset.checked_add(piece.size).is_none_or(|last| last > end) {
                        return Err(ImportError::Malformed(format!("it ends within `{name}`")));
                    }
                    pieces.insert(name, piece);
                }
                if pieces.len() + links.len() > ENTRIES {
                    return Err(ImportError::Malformed(format!("it has more than {ENTRIES} entries")));
                }
            }
        }
        Ok(Archive { file, pieces, links })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.piece(name).is_ok()
    }

    /// Finds an entry; links within the archive are followed, once.
    pub(super) fn piece(&self, name: &str) -> Result<Piece, ImportError> {
        let name = normal(name);
        let target = self.links.get(&name).unwrap_or(&name);
        self.pieces.get(target).cloned().ok_or(ImportError::Missing(name))
    }

    /// Reads a small entry as a whole.
    pub(super) fn small(&self, name: &str, what: &'static str, limit: u64) -> Result<Vec<u8>, ImportError> {
        let piece = self.piece(name)?;
        check_size(what, piece.size, limit)
            .map_err(|source| ImportError::Manifest { name: name.to_owned(), source })?;
        let mut bytes = Vec::new();
        self.reader(&piece).read_to_end(&mut bytes).map_err(ImportError::Read)?;
        Ok(bytes)
    }

    /// Reads a blob of an OCI layout as a whole, and verifies it. `None` if it is not there.
    pub(super) fn blob(
        &self,
        digest: &Digest,
        what: &'static str,
        limit: u64,
    ) -> Result<Option<Vec<u8>>, ImportError> {
        let name = blob_name(digest);
        if !self.has(&name) {
            return Ok(None);
        }
        let bytes = self.small(&name, what, limit)?;
        let actual = Digest::of(&bytes);
        if actual != *digest {
            return Err(ImportError::WrongDigest { name, actual });
        }
        Ok(Some(bytes))
    }

    pub(super) fn reader(&self, piece: &Piece) -> PieceReader<'_> {
        PieceReader { file: &self.file, at: piece.offset, left: piece.size }
    }
}

/// Where an OCI layout has a blob.
pub(super) fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Reads a piece of the archive. Several can read at the same time.
pub(super) struct PieceReader<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for PieceReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = buf.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = self.file.read_at(&mut buf[..most], self.at)?;
        self.at += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}

/// A name without `.`, `..` and empty parts: only for finding things within the archive.
fn normal(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => (),
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// A symbolic link's target as seen from the archive's root.
fn relative(link: &str, target: &str) -> String {
    let directory = link.rsplit_once('/').map_or("", |(directory, _)| directory);
    normal(&format!("{directory}/{target}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(normal("./a//b/../c"), "a/c");
        assert_eq!(normal("../../x"), "x");
        assert_eq!(relative("one/layer.tar", "../two/layer.tar"), "two/layer.tar");
    }
}
