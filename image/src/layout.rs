//! Where things lie below the store's directory, and how files get there.
//!
//! ```text
//! lock        held while the store is open
//! b/<hex>     blobs kept: manifests and configurations
//! i/<hex>     one record per image (JSON), named by its id
//! l/<n>/      one layer: `meta` (JSON) and `d`, the tree; short, so that many fit into mount options
//! p/<hex>     partly downloaded layers
//! s/<owner>   one lease (JSON)
//! t/          staging and trash; emptied when the store is opened
//! ```
//! Guarantees: a file written by `write_durably` has its old or its new content, also after a power cut.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;

use crate::digest::Digest;

/// Ends the names of partly downloaded blobs that are no layers.
pub(crate) const BLOB: &str = "-blob";

/// The store's directories.
#[derive(Debug)]
pub(crate) struct Layout {
    root: PathBuf,
    /// Makes names below `t/` unique across restarts of the daemon.
    epoch: i128,
    next: AtomicU64,
}

impl Layout {
    /// Makes the directories, readable by their owner only.
    pub(crate) fn create(root: PathBuf) -> Result<Layout, (PathBuf, io::Error)> {
        for name in ["", "b", "i", "l", "p", "s", "t"] {
            let dir = root.join(name);
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|err| (dir, err))?;
        }
        Ok(Layout { root, epoch: Timestamp::now().as_nanosecond(), next: AtomicU64::new(0) })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("b")
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join("b").join(digest.hex())
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.root.join("i")
    }

    pub(crate) fn image(&self, id: &Digest) -> PathBuf {
        self.root.join("i").join(id.hex())
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("l")
    }

    pub(crate) fn layer(&self, number: u32) -> PathBuf {
        self.root.join("l").join(base36(number))
    }

    /// The layer's tree: what overlayfs gets.
    pub(crate) fn tree(&self, number: u32) -> PathBuf {
        self.layer(number).join("d")
    }

    pub(crate) fn partials(&self) -> PathBuf {
        self.root.join("p")
    }

    /// The download of a layer.
    pub(crate) fn partial(&self, digest: &Digest) -> PathBuf {
        self.root.join("p").join(digest.hex())
    }

    /// The download of the same content when it is not to be unpacked.
    pub(crate) fn partial_blob(&self, digest: &Digest) -> PathBuf {
        self.root.join("p").join(format!("{}{BLOB}", digest.hex()))
    }

    pub(crate) fn leases(&self) -> PathBuf {
        self.root.join("s")
    }

    pub(crate) fn lease(&self, owner: &str) -> PathBuf {
        self.root.join("s").join(owner)
    }

    pub(crate) fn staging(&self) -> PathBuf {
        self.root.join("t")
    }

    /// A path in `t/` that nobody else uses.
    pub(crate) fn temporary(&self) -> PathBuf {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        self.root.join("t").join(format!("{:x}-{n}", self.epoch))
    }

    /// Writes a file that is complete or absent after a crash of this process.
    pub(crate) fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.replace(path, bytes, false)
    }

    /// Writes a file that is complete or absent after a power cut, and there once this returns.
    pub(crate) fn write_durably(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.replace(path, bytes, true)
    }

    fn replace(&self, path: &Path, bytes: &[u8], durably: bool) -> io::Result<()> {
        let temporary = self.temporary();
        let written = (|| {
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&temporary)?;
            sys::fault::point("store: write a file")?;
            file.write_all(bytes)?;
            if durably {
                sys::fault::point("store: sync a file")?;
                file.sync_all()?;
            }
            sys::fault::point("store: put a file in place")?;
            fs::rename(&temporary, path)?;
            if durably { sync_dir(path.parent().unwrap_or(&self.root)) } else { Ok(()) }
        })();
        if written.is_err() {
            // Already renamed, or swept at the next start.
            let _ = fs::remove_file(&temporary);
        }
        written
    }
}

/// Makes renames and removals in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// The shortest spelling of a layer's number that needs no quoting.
fn base36(mut number: u32) -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut text = Vec::new();
    loop {
        text.push(DIGITS[(number % 36) as usize]);
        number /= 36;
        if number == 0 {
            break;
        }
    }
    text.reverse();
    String::from_utf8(text).expect("digits are ASCII")
}

/// Reads a layer's number back from its directory's name; `None` if it is not one of ours.
pub(crate) fn layer_number(name: &str) -> Option<u32> {
    let number = u32::from_str_radix(name, 36).ok()?;
    (base36(number) == name).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip() {
        for number in [0, 1, 35, 36, 1295, 1296, u32::MAX] {
            assert_eq!(layer_number(&base36(number)), Some(number));
        }
        assert_eq!(base36(1295), "zz");
        assert_eq!(layer_number("0z"), None);
        assert_eq!(layer_number("../x"), None);
    }
}
