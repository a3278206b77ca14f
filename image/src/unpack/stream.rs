//! From the layer's bytes to the archive's: decompression, the diff id's hash, and the size bound.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

use super::UnpackError;
use super::recipe::Recipe;
use crate::digest::{Digest, Hasher};

const BUFFER: usize = 128 << 10;

/// Decompresses gzip and zstd, told by their first bytes, whatever the media type says.
pub(super) fn decompress<'a>(layer: impl Read + Send + 'a) -> Result<Box<dyn Read + Send + 'a>, UnpackError> {
    let mut layer = BufReader::with_capacity(BUFFER, layer);
    // One read may give less than four bytes; then look at a chain of what came and the rest.
    let mut magic = Vec::new();
    while magic.len() < 4 {
        let available = layer.fill_buf().map_err(UnpackError::Read)?;
        if available.is_empty() {
            break;
        }
        let take = available.len().min(4 - magic.len());
        magic.extend_from_slice(&available[..take]);
        layer.consume(take);
    }
    let gzip = magic.starts_with(&[0x1f, 0x8b]);
    // A zstd stream may begin with a frame to be skipped.
    let skippable = magic.len() == 4 && magic[0] & 0xf0 == 0x50 && magic[1..] == [0x2a, 0x4d, 0x18];
    let zstd = skippable || magic == [0x28, 0xb5, 0x2f, 0xfd];
    let whole = io::Cursor::new(magic).chain(layer);
    if gzip {
        Ok(Box::new(MultiGzDecoder::new(whole)))
    } else if zstd {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(whole).map_err(UnpackError::Read)?;
        // 128 MiB: what the strongest level uses, and the most that decoders must take.
        decoder.window_log_max(27).map_err(UnpackError::Read)?;
        Ok(Box::new(decoder))
    } else {
        Ok(Box::new(whole))
    }
}

/// Hashes and counts the archive's bytes, and buffers them.
pub(super) struct Counted<'a> {
    inner: Box<dyn Read + Send + 'a>,
    hasher: Hasher,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    read: u64,
    limit: u64,
    recipe: Option<Recipe>,
    /// What went wrong with the recipe.
    failed: Option<io::Error>,
}

impl<'a> Counted<'a> {
    /// Reads `inner`, at most `limit` bytes, and notes in `recipe` what goes by.
    pub(super) fn new(inner: Box<dyn Read + Send + 'a>, limit: u64, recipe: Option<Recipe>) -> Counted<'a> {
        Counted {
            recipe,
            failed: None,
            inner,
            hasher: Hasher::default(),
            buffer: vec![0; BUFFER],
            start: 0,
            end: 0,
            read: 0,
            limit,
        }
    }

    /// The bound on the unpacked size.
    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    fn too_large(&self) -> UnpackError {
        UnpackError::Limit { entry: ".".into(), what: "the unpacked size", limit: self.limit }
    }

    /// Bytes that are there, without consuming them; empty at the end.
    pub(super) fn fill(&mut self) -> Result<&[u8], UnpackError> {
        if let Some(err) = self.failed.take() {
            return Err(recipe_error(err));
        }
        if self.start == self.end {
            let n = loop {
                match self.inner.read(&mut self.buffer) {
                    Err(err) if err.kind() == io::ErrorKind::Interrupted => (),
                    other => break other.map_err(UnpackError::Read)?,
                }
            };
            self.hasher.update(&self.buffer[..n]);
            self.read += n as u64;
            if self.read > self.limit {
                return Err(self.too_large());
            }
            (self.start, self.end) = (0, n);
        }
        Ok(&self.buffer[self.start..self.end])
    }

    pub(super) fn consume(&mut self, n: usize) {
        if let Some(recipe) = &mut self.recipe
            && let Err(err) = recipe.pass(&self.buffer[self.start..self.start + n])
        {
            self.failed = Some(err);
        }
        self.start += n;
    }

    /// What is consumed from now on goes into a file.
    pub(super) fn begin_content(&mut self) {
        if let Some(recipe) = &mut self.recipe {
            recipe.begin();
        }
    }

    /// What was consumed went into this file of the tree, from `offset` on.
    pub(super) fn end_content(&mut self, path: &[u8], offset: u64) {
        if let Some(recipe) = &mut self.recipe
            && let Err(err) = recipe.end(path, offset)
        {
            self.failed = Some(err);
        }
    }

    /// Reads a block. `false` at a clean end.
    pub(super) fn block(&mut self, block: &mut [u8; 512]) -> Result<bool, UnpackError> {
        let mut filled = 0;
        while filled < block.len() {
            let available = self.fill()?;
            if available.is_empty() {
                if filled == 0 {
                    return Ok(false);
                }
                return Err(UnpackError::Read(io::ErrorKind::UnexpectedEof.into()));
            }
            let take = available.len().min(block.len() - filled);
            block[filled..filled + take].copy_from_slice(&available[..take]);
            self.consume(take);
            filled += take;
        }
        Ok(true)
    }

    pub(super) fn drain(&mut self) -> Result<(), UnpackError> {
        loop {
            let n = self.fill()?.len();
            if n == 0 {
                return Ok(());
            }
            self.consume(n);
        }
    }

    /// The diff id of what was read, its size, and the bytes of disk that the recipe takes.
    pub(super) fn finish(self) -> Result<(Digest, u64, u64), UnpackError> {
        if let Some(err) = self.failed {
            return Err(recipe_error(err));
        }
        let recipe = self.recipe.map_or(Ok(0), Recipe::finish).map_err(recipe_error)?;
        Ok((self.hasher.finish(), self.read, recipe))
    }
}

fn recipe_error(err: io::Error) -> UnpackError {
    if err.kind() == io::ErrorKind::FileTooLarge {
        let what = "the size of what is no content";
        return UnpackError::Limit { entry: ".".into(), what, limit: super::recipe::LARGEST };
    }
    UnpackError::write("write the recipe", b".", err)
}
