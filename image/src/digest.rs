//! Content digests.
//!
//! Guarantees: a `Digest` is `sha256:` and 64 lower-case hex digits, so it never names a path outside
//! the store.
//! Caveat: sha512 digests are refused; no registry in use hands them out.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The digest of some content, e.g. `sha256:9f86d0…`. Made only by parsing or by hashing.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

/// Why a string is no digest we accept.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DigestError {
    /// The algorithm is not sha256.
    #[error("digest `{0}` has an unsupported algorithm; only sha256 is supported")]
    Algorithm(String),
    /// The hash is not 64 lower-case hex digits.
    #[error("digest `{0}` is malformed; expected `sha256:` and 64 lower-case hex digits")]
    Malformed(String),
}

impl Digest {
    /// Hashes `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::default();
        hasher.update(bytes);
        hasher.finish()
    }

    /// The 64 hex digits, without the algorithm.
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }

    /// The whole digest, algorithm included.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(s: &str) -> Result<Digest, DigestError> {
        match s.split_once(':') {
            Some(("sha256", hex)) if is_hex64(hex) => Ok(Digest(s.to_owned())),
            Some(("sha256", _)) | None => Err(DigestError::Malformed(shorten(s))),
            Some(_) => Err(DigestError::Algorithm(shorten(s))),
        }
    }
}

/// Whether `s` is 64 lower-case hex digits.
pub(crate) fn is_hex64(s: &str) -> bool {
    s.len() == 64 && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Keeps hostile input out of messages: at most 100 characters of it.
fn shorten(s: &str) -> String {
    s.chars().take(100).collect()
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(s: String) -> Result<Digest, DigestError> {
        s.parse()
    }
}

impl From<Digest> for String {
    fn from(d: Digest) -> String {
        d.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Hashes a stream.
#[derive(Clone)]
pub(crate) struct Hasher(aws_lc_rs::digest::Context);

impl Default for Hasher {
    fn default() -> Hasher {
        Hasher(aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256))
    }
}

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> Digest {
        use fmt::Write;
        let mut text = String::with_capacity(71);
        text.push_str("sha256:");
        for byte in self.0.finish().as_ref() {
            write!(text, "{byte:02x}").expect("writing to a string cannot fail");
        }
        Digest(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_and_parses() {
        let digest = Digest::of(b"abc");
        assert_eq!(
            digest.as_str(),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(digest.as_str().parse(), Ok(digest));
    }

    #[test]
    fn refuses_paths_and_other_algorithms() {
        for bad in ["", "sha256:", "sha256:../../etc/passwd", "abc", &format!("sha256:{}", "A".repeat(64))] {
            assert!(matches!(bad.parse::<Digest>(), Err(DigestError::Malformed(_))), "{bad}");
        }
        assert!(matches!("sha512:00".parse::<Digest>(), Err(DigestError::Algorithm(_))));
    }
}
