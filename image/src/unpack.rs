//! Unpacks one layer: a stream of bytes in, a directory tree for overlayfs out.
//!
//! Guarantees: nothing outside the tree is read or written, whatever the archive says; memory is bounded,
//! whatever the layer's size; a layer whose diff id is wrong is an error.
//! Assumes: nobody else touches the tree meanwhile, and we are root.
//! Caveat: on an error the tree is left half-done; the caller removes it.

mod archive;
mod compare;
mod recipe;
mod sparse;
mod stream;
mod tree;

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use crate::digest::{Digest, Hasher};
use crate::limits::Limits;
use crate::state::{LayerRecord, Origin};

/// Beside a layer's tree: how its archive is made again.
const RECIPE: &str = "recipe";
/// Beside a layer's tree, where a recipe is not enough: the layer as it came, compressed or not.
pub(crate) const SOURCE: &str = "source";

/// Why a layer cannot be unpacked. Entries are named as the archive names them.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The stream broke off, or its compression is corrupt.
    #[error("read layer: truncated or corrupt")]
    Read(#[source] io::Error),
    /// The archive's structure is wrong, or could be read in two ways.
    #[error("layer entry `{entry}`: malformed archive: {reason}")]
    Malformed {
        /// The entry, or where in the stream.
        entry: String,
        /// What is wrong.
        reason: String,
    },
    /// A name with `..`.
    #[error("layer entry `{entry}`: refused, its name has `..`")]
    Traversal {
        /// The entry.
        entry: String,
    },
    /// A name that starts with a slash.
    #[error("layer entry `{entry}`: refused, its name is absolute")]
    Absolute {
        /// The entry.
        entry: String,
    },
    /// A symbolic link on the way to the entry, or to a hard link's target, leads out of the layer.
    #[error("layer entry `{entry}`: refused, `{path}` goes through a symbolic link that leaves the layer")]
    Escape {
        /// The entry.
        entry: String,
        /// The path that was followed.
        path: String,
    },
    /// A hard link to something that the layer does not have.
    #[error(
        "layer entry `{entry}`: refused, its hard link target `{target}` is not a file of the same layer"
    )]
    HardLink {
        /// The entry.
        entry: String,
        /// The link's target.
        target: String,
    },
    /// A bound on what a layer may demand was exceeded.
    #[error("layer entry `{entry}`: refused, {what} exceeds the limit of {limit}")]
    Limit {
        /// The entry.
        entry: String,
        /// What there is too much of.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// The disk is full.
    #[error("no space left on the image disk while unpacking `{entry}`; free some, or remove images")]
    NoSpace {
        /// The entry.
        entry: String,
        /// The system's reason.
        source: io::Error,
    },
    /// Another system call failed.
    #[error("{step} of layer entry `{entry}`")]
    Write {
        /// What we tried.
        step: &'static str,
        /// The entry.
        entry: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The content is not what the configuration promises.
    #[error("layer unpacks to diff id {actual}, but the image's configuration says {expected}")]
    DiffId {
        /// From the configuration.
        expected: Digest,
        /// From the content.
        actual: Digest,
    },
}

impl UnpackError {
    /// Whether a stream that was damaged on its way could cause this.
    pub(crate) fn may_be_damage(&self) -> bool {
        matches!(self, UnpackError::Read(_) | UnpackError::Malformed { .. } | UnpackError::DiffId { .. })
    }

    fn write(step: &'static str, entry: &[u8], source: io::Error) -> UnpackError {
        let entry = show(entry);
        match source.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
            Some(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => {
                UnpackError::NoSpace { entry, source }
            }
            _ => UnpackError::Write { step, entry, source },
        }
    }

    fn malformed(entry: &[u8], reason: impl Into<String>) -> UnpackError {
        UnpackError::Malformed { entry: show(entry), reason: reason.into() }
    }
}

/// An entry's name for a message: bounded, and without control characters.
fn show(name: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(name).chars().flat_map(char::escape_debug).take(300).collect();
    text.replace("\\'", "'").replace("\\\"", "\"")
}

/// Unpacks a layer into `staging/d` and writes its record to `staging/meta`. `layer` is the layer as
/// stored, compressed or not; `compressed` is its size in bytes. With a diff id, it is verified.
pub(crate) fn unpack(
    layer: impl Read + Send,
    compressed: u64,
    staging: &Path,
    diff_id: Option<&Digest>,
    limits: &Limits,
) -> Result<LayerRecord, UnpackError> {
    let mut record = unpack_as(layer, limits.unpacked(compressed), staging, diff_id, limits, true)?;
    if record.origin != Origin::Recipe {
        // What is gone from the tree cannot be told by a recipe: the caller keeps the layer as it came.
        fs::remove_file(staging.join(RECIPE)).map_err(|err| UnpackError::write("clean up", b".", err))?;
        record.bytes += compressed;
    }
    write_record(staging, &record)?;
    Ok(record)
}

/// Unpacks a layer to `staging/d`; with contents, its recipe is written, too.
fn unpack_as(
    layer: impl Read + Send,
    limit: u64,
    staging: &Path,
    diff_id: Option<&Digest>,
    limits: &Limits,
    contents: bool,
) -> Result<LayerRecord, UnpackError> {
    let root = staging.join("d");
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&root)
        .map_err(|err| UnpackError::write("create the directory", b".", err))?;
    let recipe = contents.then(|| recipe::Recipe::create(&staging.join(RECIPE))).transpose();
    let recipe = recipe.map_err(|err| UnpackError::write("create the recipe", b".", err))?;
    let stream = stream::decompress(layer)?;
    let mut stream = stream::Counted::new(stream, limit, recipe);
    let mut tree = tree::Tree::open(&root, limits, contents)?;
    {
        let mut archive = archive::Archive::new(&mut stream, limits);
        while let Some(entry) = archive.next()? {
            tree.add(&entry, &mut archive)?;
        }
    }
    // What follows the archive's end belongs to the diff id, too.
    stream.drain()?;
    let (actual, tar_bytes, recipe_bytes) = stream.finish()?;
    if let Some(expected) = diff_id
        && *expected != actual
    {
        return Err(UnpackError::DiffId { expected: expected.clone(), actual });
    }
    let mut record = tree.finish(actual, tar_bytes)?;
    record.bytes += recipe_bytes;
    Ok(record)
}

/// The archive of an unpacked layer, made again from what lies in its directory. `None` if the layer comes
/// from a version that kept nothing to make it of.
pub(crate) fn archive_of(directory: &Path, record: &LayerRecord) -> io::Result<Option<Box<dyn Read + Send>>> {
    match record.origin {
        Origin::Recipe => {
            let replay = recipe::Replay::open(&directory.join(RECIPE), &directory.join("d"))?;
            Ok(Some(Box::new(replay)))
        }
        Origin::Source => {
            let source = fs::File::open(directory.join(SOURCE))?;
            Ok(Some(stream::decompress(source).map_err(io::Error::other)?))
        }
        Origin::Unknown | Origin::Correction | Origin::Artifact => Ok(None),
    }
}

/// What is wrong with an unpacked layer, a sentence each; empty if nothing is. Its archive is made again and
/// unpacked to `staging`: diff id, names, owners, modes, times, attributes and contents are compared.
pub(crate) fn examine(
    directory: &Path,
    record: &LayerRecord,
    staging: &Path,
    limits: &Limits,
) -> io::Result<Vec<String>> {
    let archive = match archive_of(directory, record) {
        Ok(Some(archive)) => archive,
        Ok(None) => return Ok(vec!["it comes from a version that kept nothing to verify it with".into()]),
        Err(err) => return Ok(vec![format!("its archive cannot be made again: {err}")]),
    };
    // A recipe takes the contents from the tree: the diff id vouches for them.
    let contents = record.origin == Origin::Source;
    let expected = Some(&record.diff_id);
    match unpack_as(archive, limits.layer_bytes, staging, expected, limits, contents) {
        Ok(again) => {
            let comparison = compare::Comparison { contents, timeless: again.implied.into_iter().collect() };
            comparison.differences(&staging.join("d"), &directory.join("d"))
        }
        Err(UnpackError::NoSpace { source, .. } | UnpackError::Write { source, .. }) => Err(source),
        Err(UnpackError::Read(source)) => Ok(vec![source.to_string()]),
        Err(other) => Ok(vec![other.to_string()]),
    }
}

/// Writes the record of a layer beside its tree; it becomes durable with the tree.
pub(crate) fn write_record(staging: &Path, record: &LayerRecord) -> Result<(), UnpackError> {
    let bytes = serde_json::to_vec(record).expect("a record is plain data");
    fs::write(staging.join("meta"), bytes).map_err(|err| UnpackError::write("write the record", b".", err))
}

/// Hashes what is read through it.
pub(crate) struct HashingReader<R> {
    inner: R,
    hasher: Hasher,
    bytes: u64,
}

impl<R: Read> HashingReader<R> {
    pub(crate) fn new(inner: R) -> HashingReader<R> {
        HashingReader { inner, hasher: Hasher::default(), bytes: 0 }
    }

    /// Reads what is left, then gives digest and size.
    pub(crate) fn finish(mut self) -> io::Result<(Digest, u64)> {
        io::copy(&mut self, &mut io::sink())?;
        Ok((self.hasher.finish(), self.bytes))
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hasher.update(&buf[..n]);
        self.bytes += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A small archive with one entry of most kinds.
    fn sample() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let pax = [("SCHILY.xattr.user.a", b"b".as_slice()), ("mtime", b"1.5")];
        builder.append_pax_extensions(pax).expect("written");
        for (name, kind, link) in [
            ("file", tar::EntryType::Regular, ""),
            ("dir/", tar::EntryType::Directory, ""),
            ("dir/link", tar::EntryType::Symlink, "../file"),
            ("hard", tar::EntryType::Link, "file"),
            ("dir/.wh.gone", tar::EntryType::Regular, ""),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(0);
            header.set_mode(0o755);
            if !link.is_empty() {
                header.set_link_name(link).expect("a link");
            }
            builder.append_data(&mut header, name, [].as_slice()).expect("written");
        }
        builder.into_inner().expect("written")
    }

    /// Sets the right checksum, so that more than the checksum is tested.
    fn repair(archive: &mut [u8]) {
        for block in archive.chunks_exact_mut(512).filter(|b| b.iter().any(|b| *b != 0)) {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Whatever the bytes are, the outcome is a tree in its place or an error.
        #[test]
        fn damaged_archives_do_no_harm(changes in prop::collection::vec((0..4608usize, any::<u8>()), 0..12), fix: bool) {
            let mut archive = sample();
            for (at, byte) in changes {
                let at = at % archive.len();
                archive[at] = byte;
            }
            if fix {
                repair(&mut archive);
            }
            let place = tempfile::tempdir().expect("a directory");
            let staging = place.path().join("staging");
            let limits = Limits { free_bytes: 1 << 20, ratio: 1, ..Limits::default() };
            let _ = unpack(archive.as_slice(), archive.len() as u64, &staging, None, &limits);
            prop_assert_eq!(fs::read_dir(place.path()).expect("readable").count(), 1);
        }
    }
}
