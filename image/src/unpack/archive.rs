//! Reads tar archives: the frames ourselves, with bounds; the fields of a header with the `tar` crate.
//!
//! Guarantees: what two readers could understand differently is refused: sizes in conflict, global
//! headers that name or size entries, content behind entries that have none.

use std::collections::BTreeMap;
use std::io;

use tar::{EntryType, Header};

use super::sparse::{self, Segment};
use super::stream::Counted;
use super::{UnpackError, show};
use crate::limits::Limits;

const BLOCK: u64 = 512;
/// The largest size that the twelve octal digits of a header hold.
const OCTAL_MAX: u64 = 0o77_777_777_777;
const PATH_MAX: usize = 4096;

/// One entry of an archive, with all extended headers applied.
#[derive(Debug)]
pub(super) struct Entry {
    /// As the archive has it.
    pub(super) name: Vec<u8>,
    pub(super) kind: Kind,
    /// Without file type bits.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds and nanoseconds since the epoch.
    pub(super) mtime: (i64, i64),
    /// All of them, also those that we drop.
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Debug)]
pub(super) enum Kind {
    /// The size with holes, and where the content goes if there are any.
    File {
        size: u64,
        sparse: Option<Vec<Segment>>,
    },
    Directory,
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    Character(u32, u32),
    Block(u32, u32),
    Fifo,
}

pub(super) struct Archive<'r, 'a> {
    stream: &'r mut Counted<'a>,
    limits: &'r Limits,
    /// Content of the current entry that was not read yet, and the padding behind it.
    content: u64,
    padding: u64,
    entries: u64,
    /// Sum of the files' sizes, holes included.
    sizes: u64,
}

/// What extended headers say about the entry that follows.
#[derive(Default)]
struct Extended {
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: Option<BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl<'r, 'a> Archive<'r, 'a> {
    pub(super) fn new(stream: &'r mut Counted<'a>, limits: &'r Limits) -> Archive<'r, 'a> {
        Archive { stream, limits, content: 0, padding: 0, entries: 0, sizes: 0 }
    }

    /// The next entry; what was not read of the last one is skipped. `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, UnpackError> {
        let mut extended = Extended::default();
        let mut started = false;
        loop {
            self.skip()?;
            let mut block = [0; BLOCK as usize];
            let there = self.stream.block(&mut block)?;
            if !there || block.iter().all(|b| *b == 0) {
                if started {
                    return Err(UnpackError::malformed(b".", "it ends after an extended header"));
                }
                if there && self.stream.block(&mut block)? && block.iter().any(|b| *b != 0) {
                    return Err(UnpackError::malformed(b".", "data after the end mark"));
                }
                return Ok(None);
            }
            self.entries += 1;
            if self.entries > self.limits.entries {
                let limit = self.limits.entries;
                return Err(UnpackError::Limit { entry: ".".into(), what: "the number of entries", limit });
            }
            let header = Header::from_byte_slice(&block);
            let name = header.path_bytes().into_owned();
            check_sum(header, &block, &name)?;
            let size = header.entry_size().map_err(|err| field(&name, "size", &err))?;
            match header.entry_type() {
                EntryType::GNULongName => {
                    set_once(&mut extended.long_name, self.text(size, &name)?, &name)?;
                }
                EntryType::GNULongLink => {
                    set_once(&mut extended.long_link, self.text(size, &name)?, &name)?;
                }
                EntryType::XHeader => {
                    let records = parse_pax(&self.extension(size, &name)?, &name)?;
                    set_once(&mut extended.pax, records, &name)?;
                }
                EntryType::XGlobalHeader => {
                    let records = parse_pax(&self.extension(size, &name)?, &name)?;
                    for key in ["path", "linkpath", "size"] {
                        if records.contains_key(key.as_bytes()) {
                            let reason = format!("a global header sets `{key}`");
                            return Err(UnpackError::malformed(&name, reason));
                        }
                    }
                    continue;
                }
                _ => return self.entry(header, name, size, extended).map(Some),
            }
            started = true;
        }
    }

    /// Makes an entry of its header and its extended headers.
    fn entry(
        &mut self,
        header: &Header,
        name: Vec<u8>,
        header_size: u64,
        extended: Extended,
    ) -> Result<Entry, UnpackError> {
        let mut pax = extended.pax.unwrap_or_default();
        let sparse_name = pax.remove(b"GNU.sparse.name".as_slice());
        let name = sparse_name.or(pax.remove(b"path".as_slice())).or(extended.long_name).unwrap_or(name);
        if name.len() > PATH_MAX || name.contains(&0) {
            return Err(UnpackError::malformed(&name, "its name is too long or has a zero byte"));
        }
        let size = match number(&pax, "size", &name)? {
            Some(size) if size != header_size && size <= OCTAL_MAX => {
                let reason = format!("its size is {header_size} in the header and {size} in the extension");
                return Err(UnpackError::malformed(&name, reason));
            }
            Some(size) => size,
            None => header_size,
        };
        let link = || {
            let link = pax.get(b"linkpath".as_slice()).cloned().or(extended.long_link.clone());
            let link = link.or_else(|| header.link_name_bytes().map(|l| l.into_owned()));
            match link {
                Some(link) if !link.is_empty() && link.len() <= PATH_MAX && !link.contains(&0) => Ok(link),
                _ => Err(UnpackError::malformed(
                    &name,
                    "its link target is empty, too long or has a zero byte",
                )),
            }
        };
        let device = || {
            let major = header.device_major().map_err(|err| field(&name, "device", &err))?.unwrap_or(0);
            let minor = header.device_minor().map_err(|err| field(&name, "device", &err))?.unwrap_or(0);
            Ok((major, minor))
        };
        let kind = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous if name.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => Kind::File { size, sparse: None },
            EntryType::GNUSparse => Kind::File { size, sparse: None },
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink(link()?),
            EntryType::Link => Kind::HardLink(link()?),
            EntryType::Char => device().map(|(major, minor)| Kind::Character(major, minor))?,
            EntryType::Block => device().map(|(major, minor)| Kind::Block(major, minor))?,
            EntryType::Fifo => Kind::Fifo,
            other => {
                let reason = format!("unsupported entry type {:?}", char::from(other.as_byte()));
                return Err(UnpackError::malformed(&name, reason));
            }
        };
        match kind {
            Kind::File { .. } => self.expect_content(size),
            // Every reader takes a hard link's size for the size of its target.
            Kind::HardLink(_) => (),
            _ if size != 0 => {
                return Err(UnpackError::malformed(&name, "it has content, but its type has none"));
            }
            _ => (),
        }
        let kind = match kind {
            Kind::File { size, .. } => self.file(header, &name, size, &pax)?,
            other => other,
        };
        let id = |pax_key: &str, in_header: io::Result<u64>| -> Result<u32, UnpackError> {
            let id = match number(&pax, pax_key, &name)? {
                Some(id) => id,
                None => in_header.map_err(|err| field(&name, "owner", &err))?,
            };
            match u32::try_from(id) {
                Ok(id) if id != u32::MAX => Ok(id),
                _ => Err(UnpackError::malformed(&name, format!("its {pax_key} {id} is out of range"))),
            }
        };
        let uid = id("uid", header.uid())?;
        let gid = id("gid", header.gid())?;
        let mtime = match pax.get(b"mtime".as_slice()) {
            Some(text) => parse_time(text)
                .ok_or_else(|| UnpackError::malformed(&name, "its extension has a bad mtime"))?,
            None => (header.mtime().ok().and_then(|t| i64::try_from(t).ok()).unwrap_or(0), 0),
        };
        let mode = header.mode().map_err(|err| field(&name, "mode", &err))? & 0o7777;
        let xattrs: BTreeMap<Vec<u8>, Vec<u8>> = pax
            .into_iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(b"SCHILY.xattr.")?.to_vec(), value)))
            .collect();
        let bytes: usize = xattrs.iter().map(|(key, value)| key.len() + value.len()).sum();
        if bytes > self.limits.xattr_bytes {
            let limit = self.limits.xattr_bytes as u64;
            return Err(UnpackError::Limit { entry: show(&name), what: "the size of its attributes", limit });
        }
        Ok(Entry { name, kind, mode, uid, gid, mtime, xattrs })
    }

    /// Finds out where a file's content goes, and how large the file gets.
    fn file(
        &mut self,
        header: &Header,
        name: &[u8],
        stored: u64,
        pax: &BTreeMap<Vec<u8>, Vec<u8>>,
    ) -> Result<Kind, UnpackError> {
        let bad = |reason: &str| UnpackError::malformed(name, reason);
        let (size, segments) = if header.entry_type() == EntryType::GNUSparse {
            let gnu = header.as_gnu().ok_or_else(|| bad("sparse, but not in GNU format"))?;
            let size = gnu.real_size().map_err(|err| field(name, "real size", &err))?;
            // The map's continuation precedes the content and does not count as such.
            (self.content, self.padding) = (0, 0);
            let segments = sparse::read_gnu(gnu, |block| {
                if self.stream.block(block)? { Ok(()) } else { Err(bad("it ends within a sparse map")) }
            })?
            .map_err(bad)?;
            self.expect_content(stored);
            (size, Some(segments))
        } else if let Some(major) = pax.get(b"GNU.sparse.major".as_slice()) {
            let minor = pax.get(b"GNU.sparse.minor".as_slice()).map(Vec::as_slice);
            if major != b"1" || minor != Some(b"0") {
                return Err(bad("unknown sparse format"));
            }
            let size =
                number(pax, "GNU.sparse.realsize", name)?.ok_or_else(|| bad("sparse without a size"))?;
            (size, Some(self.sparse_map(name)?))
        } else if let Some(map) = pax.get(b"GNU.sparse.map".as_slice()) {
            let size = number(pax, "GNU.sparse.size", name)?.ok_or_else(|| bad("sparse without a size"))?;
            (size, Some(sparse::parse_list(map).map_err(bad)?))
        } else if pax.keys().any(|key| key.starts_with(b"GNU.sparse.")) {
            return Err(bad("unknown sparse format"));
        } else {
            (stored, None)
        };
        if let Some(segments) = &segments {
            sparse::check(segments, self.content, size).map_err(bad)?;
        }
        self.sizes = self.sizes.saturating_add(size);
        let limit = self.stream.limit();
        if self.sizes > limit {
            return Err(UnpackError::Limit { entry: show(name), what: "the unpacked size", limit });
        }
        Ok(Kind::File { size, sparse: segments })
    }

    /// Reads the sparse map at the start of the content: decimal numbers, one a line, in whole blocks.
    fn sparse_map(&mut self, name: &[u8]) -> Result<Vec<Segment>, UnpackError> {
        let mut reader = sparse::MapReader::default();
        loop {
            if self.content < BLOCK {
                return Err(UnpackError::malformed(name, "it ends within a sparse map"));
            }
            let mut block = [0; BLOCK as usize];
            if !self.stream.block(&mut block)? {
                return Err(UnpackError::Read(io::ErrorKind::UnexpectedEof.into()));
            }
            self.content -= BLOCK;
            if let Some(map) = reader.push(&block).map_err(|reason| UnpackError::malformed(name, reason))? {
                return Ok(map);
            }
        }
    }

    fn expect_content(&mut self, size: u64) {
        self.content = size;
        self.padding = (BLOCK - size % BLOCK) % BLOCK;
    }

    /// Up to `most` bytes of the current entry's content; empty at its end.
    pub(super) fn content(&mut self, most: u64) -> Result<&[u8], UnpackError> {
        let most = most.min(self.content);
        if most == 0 {
            return Ok(&[]);
        }
        let available = self.stream.fill()?;
        if available.is_empty() {
            return Err(UnpackError::Read(io::ErrorKind::UnexpectedEof.into()));
        }
        let n = available.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        Ok(&available[..n])
    }

    /// What is consumed until `end_content` goes into a file.
    pub(super) fn begin_content(&mut self) {
        self.stream.begin_content();
    }

    /// What was consumed went into this file of the tree, from `offset` on.
    pub(super) fn end_content(&mut self, path: &[u8], offset: u64) {
        self.stream.end_content(path, offset);
    }

    /// Marks bytes of the content as read.
    pub(super) fn consume(&mut self, n: usize) {
        self.stream.consume(n);
        self.content -= n as u64;
    }

    fn skip(&mut self) -> Result<(), UnpackError> {
        self.content += std::mem::take(&mut self.padding);
        while self.content > 0 {
            let n = self.content(u64::MAX)?.len();
            self.consume(n);
        }
        Ok(())
    }

    /// The whole content of an extended header.
    fn extension(&mut self, size: u64, name: &[u8]) -> Result<Vec<u8>, UnpackError> {
        let limit = self.limits.header_bytes;
        if size > limit {
            return Err(UnpackError::Limit { entry: show(name), what: "its extended header", limit });
        }
        self.expect_content(size);
        let mut data = Vec::new();
        while self.content > 0 {
            let part = self.content(u64::MAX)?;
            data.extend_from_slice(part);
            let n = part.len();
            self.consume(n);
        }
        Ok(data)
    }

    /// A long name: up to its zero byte.
    fn text(&mut self, size: u64, name: &[u8]) -> Result<Vec<u8>, UnpackError> {
        let mut data = self.extension(size, name)?;
        if let Some(end) = data.iter().position(|b| *b == 0) {
            data.truncate(end);
        }
        if data.is_empty() {
            return Err(UnpackError::malformed(name, "an empty long name"));
        }
        Ok(data)
    }
}

fn set_once<T>(slot: &mut Option<T>, value: T, name: &[u8]) -> Result<(), UnpackError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(UnpackError::malformed(name, "two extended headers of one kind in a row")),
    }
}

fn field(name: &[u8], what: &str, err: &io::Error) -> UnpackError {
    UnpackError::malformed(name, format!("bad {what}: {err}"))
}

fn check_sum(header: &Header, block: &[u8; 512], name: &[u8]) -> Result<(), UnpackError> {
    let sum: u32 = block
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
        .sum();
    match header.cksum() {
        Ok(told) if told == sum => Ok(()),
        _ => Err(UnpackError::malformed(name, "wrong checksum of its header")),
    }
}

/// Parses `length key=value\n` records; the length counts, so values may have any bytes in them.
fn parse_pax(mut data: &[u8], name: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, UnpackError> {
    let bad = || UnpackError::malformed(name, "bad record in an extended header");
    let mut records = BTreeMap::new();
    // Some writers pad with zero bytes.
    while !data.is_empty() && data.iter().any(|b| *b != 0) {
        let space = data.iter().take(20).position(|b| *b == b' ').ok_or_else(bad)?;
        let length = decimal(&data[..space]).and_then(|n| usize::try_from(n).ok()).ok_or_else(bad)?;
        if length <= space + 1 || length > data.len() || data[length - 1] != b'\n' {
            return Err(bad());
        }
        let record = &data[space + 1..length - 1];
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        if key.is_empty() || key.contains(&0) {
            return Err(bad());
        }
        // Some readers take it for none, others for 0, and GNU tar refuses it.
        if value.is_empty() && key == b"size" {
            return Err(UnpackError::malformed(name, "an extended header has an empty `size`"));
        }
        let xattr = key.starts_with(b"SCHILY.xattr.");
        // An empty value takes back an earlier record; an attribute may be empty.
        if value.is_empty() && !xattr {
            records.remove(key);
        } else if records.insert(key.to_vec(), value.to_vec()).is_some() && key.starts_with(b"GNU.sparse.") {
            return Err(UnpackError::malformed(name, "unknown sparse format"));
        }
        data = &data[length..];
    }
    Ok(records)
}

/// Digits only: no sign, no spaces.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn number(pax: &BTreeMap<Vec<u8>, Vec<u8>>, key: &str, name: &[u8]) -> Result<Option<u64>, UnpackError> {
    let Some(text) = pax.get(key.as_bytes()) else { return Ok(None) };
    match decimal(text) {
        Some(number) => Ok(Some(number)),
        None => Err(UnpackError::malformed(name, format!("its extension has a bad `{key}`"))),
    }
}

/// Parses `-12.345` into seconds and nanoseconds, the latter never negative.
fn parse_time(text: &[u8]) -> Option<(i64, i64)> {
    let text = std::str::from_utf8(text).ok()?;
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds = i64::try_from(decimal(seconds.as_bytes())?).ok()?;
    let mut nanos = 0;
    if !fraction.is_empty() {
        decimal(fraction.as_bytes().get(..fraction.len().min(18))?)?;
        let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
        nanos = digits.parse::<i64>().ok()?;
    }
    Some(match (negative, nanos) {
        (false, nanos) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, nanos) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(parse_time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(parse_time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(parse_time(b"1e9"), None);
        assert_eq!(parse_time(b"7"), Some((7, 0)));
    }

    #[test]
    fn pax_records() {
        let records = parse_pax(b"10 path=a\n10 gid=10\n", b"x").expect("two records");
        assert_eq!(records[b"gid".as_slice()], b"10");
        for bad in [&b"5 a=b"[..], b"99 a=b\n", b"0 a=b\n", b"6 ab\n\n", b"-6 a=b\n", b"6 =bc\n"] {
            assert!(parse_pax(bad, b"x").is_err(), "{}", show(bad));
        }
        let newline = parse_pax(b"9 k=a\nbc\n", b"x").expect("values may have newlines");
        assert_eq!(newline[b"k".as_slice()], b"a\nbc");
    }
}
