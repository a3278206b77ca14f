//! SPDY/3 header blocks: name-value lists, compressed with one zlib stream per direction.
//!
//! Guarantees: a block never expands to more than 64 KiB.
//! Assumes: blocks are handled in the order in which they stand on the wire, all of them.

use std::sync::LazyLock;

use bytes::{BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// The most that a block may hold when expanded.
const MAX_EXPANDED: usize = 64 << 10;

/// Header names (lower case) and values.
pub type Headers = Vec<(String, String)>;

/// A header block that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// zlib refused it.
    #[error("expand a SPDY header block")]
    Zlib(#[from] flate2::DecompressError),
    /// More than we take.
    #[error("a SPDY header block expands to more than {MAX_EXPANDED} bytes")]
    TooLong,
    /// Lengths that do not fit the block, or bytes that are no UTF-8.
    #[error("a SPDY header block is malformed")]
    Malformed,
}

/// Words of the preset dictionary that stand in it with their lengths (SPDY/3, section 2.6.10.1).
const WORDS: &[&str] = &[
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];

/// What follows them.
const TAIL: &str = concat!(
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-",
    "Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbid",
    "den404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr Ma",
    "y Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image",
    "/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,publicpriva",
    "temax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.",
);

static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut dictionary = Vec::with_capacity(1423);
    for word in WORDS {
        dictionary.put_u32(word.len() as u32);
        dictionary.put_slice(word.as_bytes());
    }
    dictionary.put_slice(TAIL.as_bytes());
    dictionary
});

/// Expands the header blocks of one direction.
pub struct Expander(Decompress);

impl Default for Expander {
    fn default() -> Self {
        Expander(Decompress::new(true))
    }
}

impl Expander {
    /// Reads one block.
    pub fn read(&mut self, block: &[u8]) -> Result<Headers, HeaderError> {
        parse(&self.expand(block)?)
    }

    fn expand(&mut self, mut block: &[u8]) -> Result<Vec<u8>, HeaderError> {
        let mut plain = Vec::with_capacity(1024);
        loop {
            if plain.len() == plain.capacity() {
                if plain.len() >= MAX_EXPANDED {
                    return Err(HeaderError::TooLong);
                }
                plain.reserve(plain.len());
            }
            let before = (self.0.total_in(), plain.len());
            let status = self.0.decompress_vec(block, &mut plain, FlushDecompress::Sync);
            block = &block[(self.0.total_in() - before.0) as usize..];
            match status {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&DICTIONARY)?;
                }
                Err(error) => return Err(error.into()),
                Ok(Status::StreamEnd) => return Ok(plain),
                // Room was left, so everything that can be expanded now was.
                Ok(_) if plain.len() < plain.capacity() && block.is_empty() => return Ok(plain),
                Ok(_) if plain.len() == before.1 && plain.len() < plain.capacity() => {
                    return Err(HeaderError::Malformed);
                }
                Ok(_) => {}
            }
        }
    }
}

fn parse(plain: &[u8]) -> Result<Headers, HeaderError> {
    let mut rest = plain;
    let count = take_word(&mut rest)?;
    let mut headers = Headers::new();
    for _ in 0..count {
        let name = take_text(&mut rest)?.to_ascii_lowercase();
        headers.push((name, take_text(&mut rest)?));
    }
    if rest.is_empty() { Ok(headers) } else { Err(HeaderError::Malformed) }
}

fn take_word(rest: &mut &[u8]) -> Result<usize, HeaderError> {
    let (word, after) = rest.split_first_chunk::<4>().ok_or(HeaderError::Malformed)?;
    *rest = after;
    Ok(u32::from_be_bytes(*word) as usize)
}

fn take_text(rest: &mut &[u8]) -> Result<String, HeaderError> {
    let length = take_word(rest)?;
    let (text, after) = rest.split_at_checked(length).ok_or(HeaderError::Malformed)?;
    *rest = after;
    String::from_utf8(text.to_vec()).map_err(|_| HeaderError::Malformed)
}

/// Compresses the header blocks of one direction.
pub struct Packer(Compress);

impl Default for Packer {
    fn default() -> Self {
        let mut zlib = Compress::new(Compression::best(), true);
        zlib.set_dictionary(&DICTIONARY).expect("a new stream takes a dictionary");
        Packer(zlib)
    }
}

impl Packer {
    /// Makes one block.
    pub fn write(&mut self, headers: &[(String, String)]) -> Bytes {
        let mut plain = BytesMut::new();
        plain.put_u32(headers.len() as u32);
        for (name, value) in headers {
            plain.put_u32(name.len() as u32);
            plain.put_slice(name.to_ascii_lowercase().as_bytes());
            plain.put_u32(value.len() as u32);
            plain.put_slice(value.as_bytes());
        }
        let mut block = Vec::with_capacity(plain.len() + 64);
        let mut rest = &plain[..];
        loop {
            let before = self.0.total_in();
            self.0
                .compress_vec(rest, &mut block, FlushCompress::Sync)
                .expect("deflate into memory cannot fail");
            rest = &rest[(self.0.total_in() - before) as usize..];
            if rest.is_empty() && block.len() < block.capacity() {
                return block.into();
            }
            block.reserve(block.len().max(64));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(list: &[(&str, &str)]) -> Headers {
        list.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn blocks_survive_the_round_trip_with_one_state() {
        let (mut packer, mut expander) = (Packer::default(), Expander::default());
        let first = pairs(&[("streamtype", "error"), ("port", "80"), ("requestid", "0")]);
        let sizes: Vec<usize> = (0..3)
            .map(|_| {
                let block = packer.write(&first);
                assert_eq!(expander.read(&block).expect("reads back"), first);
                block.len()
            })
            .collect();
        assert!(sizes[1] < sizes[0], "the second block refers to the first: {sizes:?}");
        let long = pairs(&[("x", &"abc ".repeat(8000)), ("y", "")]);
        assert_eq!(expander.read(&packer.write(&long)).expect("reads back"), long);
        assert_eq!(expander.read(&packer.write(&[])).expect("reads back"), pairs(&[]));
    }

    #[test]
    fn the_dictionary_is_the_published_one() {
        // Its length and Adler-32 are known; zlib writes the latter into the stream's head.
        assert_eq!(DICTIONARY.len(), 1423);
        let block = Packer::default().write(&[]);
        assert_eq!(block[..6], [0x78, 0xf9, 0xe3, 0xc6, 0xa7, 0xc2]);
    }

    #[test]
    fn hostile_blocks_are_refused() {
        let bomb = pairs(&[("x", &" ".repeat(MAX_EXPANDED * 4))]);
        let block = Packer::default().write(&bomb);
        assert!(matches!(Expander::default().read(&block), Err(HeaderError::TooLong)));
        assert!(Expander::default().read(b"not zlib").is_err());
        for plain in [&b"\0\0\0\x01"[..], b"\0\0\0\0x", b"\0\0\0\x01\xff\xff\xff\xff", b""] {
            assert!(matches!(parse(plain), Err(HeaderError::Malformed)), "{plain:?}");
        }
    }
}
