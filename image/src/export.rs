//! Writes images to an archive: an OCI layout, or what `docker load` takes.
//!
//! Guarantees: layers and configurations are written bit by bit as their digests say, so an image has the
//! same id where the archive is imported; an archive that cannot be completed is not left behind.
//! Caveat: the store keeps layers unpacked, so they are written uncompressed, with a manifest that says so.

mod plan;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::reference::Reference;
use crate::state::{ImageRecord, LayerRecord, Origin};
use crate::store::Store;
use crate::unpack::{HashingReader, archive_of};
use plan::{Plan, Source};

/// What kind of archive to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// An OCI layout; it has what `docker load` needs beside it, unless there are artifacts in it.
    Oci,
    /// What `docker save` writes.
    Docker,
}

/// Why images were not written to an archive.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// No such image.
    #[error("image `{0}` not found")]
    NotFound(String),
    /// Docker knows no artifacts.
    #[error("`{0}` is an OCI artifact, which `docker load` does not take; export it as an OCI archive")]
    Artifact(String),
    /// The layer's archive cannot be made again.
    #[error(
        "layer {0} was unpacked by a version that kept too little to export it; remove the image and pull it again"
    )]
    Unknown(Digest),
    /// What is stored is not what its digest says.
    #[error("{what} is damaged: it hashes to {actual}; `orlop image verify --repair` may help")]
    Damaged {
        /// Which blob or layer.
        what: Digest,
        /// What it hashes to.
        actual: Digest,
    },
    /// The store cannot be read.
    #[error("read {what} from the image store")]
    Read {
        /// Which blob or layer.
        what: Digest,
        /// The system's reason.
        source: io::Error,
    },
    /// The archive cannot be written.
    #[error("write {path}")]
    Write {
        /// The archive.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The node shuts down.
    #[error("the export was abandoned")]
    Abandoned,
}

/// An image that is to be written.
struct Chosen {
    record: ImageRecord,
    /// The tag by which it was named; all its tags if it was named otherwise.
    tags: BTreeSet<String>,
}

impl Store {
    /// Writes images to a new archive at `path`, which is compressed if its name ends in `.gz`, `.tgz` or
    /// `.zst`. One that is there already is replaced.
    ///
    /// # Errors
    /// The first image that cannot be written.
    pub async fn export(&self, names: &[String], path: &Path, form: Form) -> Result<(), ExportError> {
        let chosen = self.choose(names)?;
        if let Some(artifact) = chosen.iter().find(|c| c.record.artifact.is_some() && form == Form::Docker) {
            return Err(ExportError::Artifact(artifact.record.id.to_string()));
        }
        let layers: Vec<Digest> = chosen.iter().flat_map(|c| c.record.layers.clone()).collect();
        let hold = self.hold(&layers);
        let (store, path) = (self.clone(), path.to_owned());
        let work = move || {
            let written = store.export_now(&chosen, &path, form);
            drop(hold);
            written
        };
        tokio::task::spawn_blocking(work).await.unwrap_or(Err(ExportError::Abandoned))
    }

    fn choose(&self, names: &[String]) -> Result<Vec<Chosen>, ExportError> {
        let state = self.0.state.lock();
        let one = |name: &String| {
            let (id, _) = state.find(name).ok_or_else(|| ExportError::NotFound(name.clone()))?;
            let record = state.images[&id].record.clone();
            let named = name.parse::<Reference>().ok().map(|r| r.to_string());
            let tags = match named.filter(|tag| record.tags.contains(tag)) {
                Some(tag) => [tag].into(),
                None => record.tags.clone(),
            };
            Ok(Chosen { record, tags })
        };
        names.iter().map(one).collect()
    }

    fn export_now(&self, chosen: &[Chosen], path: &Path, form: Form) -> Result<(), ExportError> {
        let failed = |source| ExportError::Write { path: path.to_owned(), source };
        let plan = Plan::make(self, chosen, form)?;
        let mut name = OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(format!(".{}", std::process::id()));
        let temporary = path.with_file_name(name);
        let written = File::create(&temporary).map_err(failed).and_then(|file| {
            let file = self.write_all(&plan, BufWriter::with_capacity(256 << 10, file), path)?;
            file.sync_all().map_err(failed)?;
            fs::rename(&temporary, path).map_err(failed)
        });
        if written.is_err() {
            // It may be what filled the disk. If it cannot be removed, the error above says why, most likely.
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    /// Writes the archive, compressed as its name says.
    fn write_all(&self, plan: &Plan, out: BufWriter<File>, path: &Path) -> Result<File, ExportError> {
        let failed = |source| ExportError::Write { path: path.to_owned(), source };
        let end = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        let flushed = |out: BufWriter<File>| out.into_inner().map_err(|err| failed(err.into_error()));
        match end {
            "gz" | "tgz" => {
                let mut out = flate2::write::GzEncoder::new(out, flate2::Compression::default());
                self.write_plan(plan, &mut out, path)?;
                flushed(out.finish().map_err(failed)?)
            }
            "zst" => {
                let mut out = zstd::stream::write::Encoder::new(out, 3).map_err(failed)?;
                self.write_plan(plan, &mut out, path)?;
                flushed(out.finish().map_err(failed)?)
            }
            _ => {
                let mut out = out;
                self.write_plan(plan, &mut out, path)?;
                flushed(out)
            }
        }
    }

    fn write_plan(&self, plan: &Plan, out: &mut impl Write, path: &Path) -> Result<(), ExportError> {
        let failed = |source| ExportError::Write { path: path.to_owned(), source };
        let mut archive = tar::Builder::new(out);
        for (name, source) in &plan.entries {
            match source {
                Source::Bytes(bytes) => {
                    archive
                        .append_data(&mut header(bytes.len() as u64), name, bytes.as_slice())
                        .map_err(failed)?;
                }
                Source::File { path: file, digest, size } => {
                    let read = |source| ExportError::Read { what: digest.clone(), source };
                    let reader = File::open(file).map_err(read)?;
                    append(&mut archive, name, reader, digest, *size)
                        .map_err(|err| err.into_export(path, digest))?;
                }
                Source::Layer { directory, record } => {
                    let digest = &record.diff_id;
                    let read = |source| ExportError::Read { what: digest.clone(), source };
                    let reader = archive_of(directory, record).map_err(read)?;
                    let reader = reader.ok_or_else(|| ExportError::Unknown(digest.clone()))?;
                    append(&mut archive, name, reader, digest, record.tar_bytes)
                        .map_err(|err| err.into_export(path, digest))?;
                }
            }
        }
        archive.into_inner().map(|_| ()).map_err(failed)
    }

    /// Where a layer of an image is.
    fn find_layer(&self, digest: &Digest) -> Result<(PathBuf, LayerRecord), ExportError> {
        let state = self.0.state.lock();
        let layer = state.layers.get(digest).ok_or_else(|| ExportError::Unknown(digest.clone()))?;
        let known = !matches!(layer.record.origin, Origin::Unknown | Origin::Correction);
        if !known {
            return Err(ExportError::Unknown(digest.clone()));
        }
        Ok((self.0.layout.layer(layer.number), (*layer.record).clone()))
    }
}

enum AppendError {
    Read(io::Error),
    Write(io::Error),
    Damaged(Digest),
}

impl AppendError {
    fn into_export(self, path: &Path, digest: &Digest) -> ExportError {
        match self {
            AppendError::Read(source) => ExportError::Read { what: digest.clone(), source },
            AppendError::Write(source) => ExportError::Write { path: path.to_owned(), source },
            AppendError::Damaged(actual) => ExportError::Damaged { what: digest.clone(), actual },
        }
    }
}

/// Tells failures to read from failures to write.
struct Noting<R> {
    inner: R,
    failed: bool,
}

impl<R: Read> Read for Noting<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buf);
        self.failed |= read.as_ref().is_err_and(|err| err.kind() != io::ErrorKind::Interrupted);
        read
    }
}

/// Adds an entry whose size and digest are known, and compares both.
fn append(
    archive: &mut tar::Builder<impl Write>,
    name: &str,
    reader: impl Read,
    digest: &Digest,
    size: u64,
) -> Result<(), AppendError> {
    let mut reader = Noting { inner: HashingReader::new(reader), failed: false };
    let written = archive.append_data(&mut header(size), name, (&mut reader).take(size));
    if reader.failed {
        return Err(AppendError::Read(written.err().unwrap_or_else(|| io::ErrorKind::Other.into())));
    }
    written.map_err(AppendError::Write)?;
    let (actual, bytes) = reader.inner.finish().map_err(AppendError::Read)?;
    if actual != *digest || bytes != size {
        return Err(AppendError::Damaged(actual));
    }
    Ok(())
}

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(size);
    header
}
