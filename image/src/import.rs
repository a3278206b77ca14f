//! Imports images from an archive: an OCI layout or the output of `docker save`, plain or compressed.
//!
//! Guarantees: content named by a digest is verified against it; layers are verified against the
//! configuration's diff ids; only names and content are taken from an archive, no settings.
//! Assumes: nobody changes the archive meanwhile. If somebody does, digests do not match and we say so.

mod archive;
mod docker;
mod layout;

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use oci_spec::image::ImageConfiguration;
use tokio::task::JoinSet;

use crate::digest::Digest;
use crate::image::Image;
use crate::layers::{Staged, Staging};
use crate::manifest::{Artifact, ManifestError};
use crate::progress::{Event, LayerProgress, Progress};
use crate::pull::{ErrorKind, io_kind, unpack_kind};
use crate::queue::{Claim, Priority};
use crate::reference::ReferenceError;
use crate::state::Origin;
use crate::store::{CommitError, NewImage, Store};
use crate::unpack::{HashingReader, SOURCE, UnpackError, unpack};
use archive::{Archive, Piece};

/// Why an archive was not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The archive cannot be read.
    #[error("read archive")]
    Read(#[source] io::Error),
    /// It cannot be decompressed to the image disk.
    #[error("decompress archive")]
    Decompress(#[source] io::Error),
    /// It is neither an OCI layout nor from `docker save`.
    #[error(
        "the archive has neither `index.json` nor `manifest.json`; expected an OCI layout or the output of `docker save`"
    )]
    Unknown,
    /// It is no tar archive, or has too many entries.
    #[error("archive is malformed: {0}")]
    Malformed(String),
    /// Something that it refers to is not there.
    #[error("the archive has no `{0}`")]
    Missing(String),
    /// One of its documents is refused.
    #[error("`{name}` in the archive is refused")]
    Manifest {
        /// The document.
        name: String,
        /// Why.
        source: ManifestError,
    },
    /// Content is not what its digest says.
    #[error("`{name}` in the archive has the wrong digest: the data hashes to {actual}")]
    WrongDigest {
        /// The entry.
        name: String,
        /// What the content hashes to.
        actual: Digest,
    },
    /// A name in it is no image reference.
    #[error("the archive names an image `{name}`")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        source: ReferenceError,
    },
    /// A layer cannot be unpacked.
    #[error("unpack `{name}` of the archive")]
    Unpack {
        /// The layer.
        name: String,
        /// Why.
        source: UnpackError,
    },
    /// A layer that has to be kept as it came cannot be.
    #[error("keep a layer of the archive")]
    Keep(#[source] io::Error),
    /// There is no image for this machine in it.
    #[error("the archive has no image")]
    Empty,
    /// A complete image cannot be stored.
    #[error("store the imported image")]
    Commit(#[source] CommitError),
}

impl ImportError {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ImportError::Read(_) => ErrorKind::NotFound,
            ImportError::Decompress(err) | ImportError::Keep(err) => io_kind(err),
            ImportError::Unpack { source, .. } => unpack_kind(source),
            ImportError::Commit(CommitError::Write { source, .. }) => io_kind(source),
            ImportError::Commit(_) => ErrorKind::Internal,
            _ => ErrorKind::Invalid,
        }
    }
}

/// An image found in an archive.
struct Found {
    config_bytes: Vec<u8>,
    config: ImageConfiguration,
    manifest_bytes: Vec<u8>,
    tags: BTreeSet<String>,
    /// Lowest first; of an artifact, its blobs.
    layers: Vec<FoundLayer>,
    artifact: Option<Artifact>,
}

impl Found {
    fn id(&self) -> Digest {
        match self.artifact {
            None => Digest::of(&self.config_bytes),
            Some(_) => Digest::of(&self.manifest_bytes),
        }
    }
}

#[derive(Clone)]
struct FoundLayer {
    /// The entry's name, for messages.
    name: String,
    piece: Piece,
    /// Digest of the content as it lies in the archive, if the archive says so.
    digest: Option<Digest>,
    diff_id: Digest,
}

impl Store {
    /// Imports all images of an archive that fit this machine. Images without a usable name can be used by
    /// their id.
    pub async fn import(
        &self,
        archive: &Path,
        progress: Option<Progress>,
    ) -> Result<Vec<Image>, ImportError> {
        let progress = progress.unwrap_or_else(Progress::none);
        progress.send(Event::Resolving { what: archive.display().to_string() });
        let path = archive.to_owned();
        let store = self.clone();
        let opened = tokio::task::spawn_blocking(move || -> Result<_, ImportError> {
            let archive = Archive::open(&path, &store.0.layout)?;
            let found = find(&archive, &store)?;
            Ok((Arc::new(archive), found))
        });
        let (archive, found) = opened.await.map_err(|err| ImportError::Read(io::Error::other(err)))??;
        let mut images = Vec::new();
        for one in found {
            images.push(self.import_one(&archive, one, &progress).await?);
        }
        Ok(images)
    }

    async fn import_one(
        &self,
        archive: &Arc<Archive>,
        found: Found,
        progress: &Progress,
    ) -> Result<Image, ImportError> {
        let shown = |layer: &FoundLayer| layer.digest.clone().unwrap_or_else(|| layer.diff_id.clone());
        progress.send(Event::Resolved {
            manifest: Digest::of(&found.manifest_bytes),
            layers: found.layers.iter().map(|l| (shown(l), l.piece.size)).collect(),
            bytes: found.layers.iter().map(|l| l.piece.size).sum(),
        });
        let layers: Vec<Digest> = match &found.artifact {
            None => found.layers.iter().map(|l| l.diff_id.clone()).collect(),
            Some(artifact) => vec![artifact.directory_id()],
        };
        let _hold = self.hold(&layers);
        let import = self.0.next_pull.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut running = JoinSet::new();
        let mut seen = HashSet::new();
        if let Some(artifact) = &found.artifact
            && !self.0.state.lock().layers.contains_key(&layers[0])
        {
            let (store, archive) = (self.clone(), archive.clone());
            let (artifact, blobs) = (artifact.clone(), found.layers.clone());
            running.spawn(async move {
                let work = move || stage_artifact(&store, &archive, &artifact, &blobs);
                let staged = tokio::task::spawn_blocking(work).await;
                staged.map_err(|err| ImportError::Keep(io::Error::other(err)))?.map(Arc::new)
            });
        }
        let unpacked = found.layers.iter().filter(|_| found.artifact.is_none());
        for layer in unpacked.filter(|layer| seen.insert(&layer.diff_id)) {
            let digest = shown(layer);
            if self.0.state.lock().layers.contains_key(&layer.diff_id) {
                progress.send(Event::Layer { digest, state: LayerProgress::Exists });
                continue;
            }
            let (store, archive, layer) = (self.clone(), archive.clone(), layer.clone());
            let progress = progress.clone();
            running.spawn(async move {
                let claim = Claim::new(Priority::Prefetch, import);
                let _slot = store.0.flights.slots.acquire(claim).await;
                progress.send(Event::Layer { digest: digest.clone(), state: LayerProgress::Unpacking });
                let work = tokio::task::spawn_blocking(move || stage(&store, &archive, &layer));
                let staged = work.await.map_err(|err| ImportError::Read(io::Error::other(err)))??;
                progress.send(Event::Layer { digest, state: LayerProgress::Done });
                Ok::<_, ImportError>(Arc::new(staged))
            });
        }
        let mut staged = Vec::new();
        while let Some(done) = running.join_next().await {
            staged.push(done.map_err(|err| ImportError::Read(io::Error::other(err)))??);
        }
        let corrected = self.correct(&layers, staged).await;
        let (staged, correction) =
            corrected.map_err(|source| ImportError::Unpack { name: "directories".into(), source })?;
        progress.send(Event::Committing);
        let new = NewImage {
            id: found.id(),
            artifact: found.artifact.as_ref().map(|artifact| artifact.kind.clone()),
            config_bytes: found.config_bytes,
            config: found.config,
            manifest_bytes: found.manifest_bytes,
            tags: found.tags,
            digests: BTreeSet::new(),
            layers,
            staged,
            correction,
        };
        let image = self.commit(new).await.map_err(ImportError::Commit)?;
        progress.send(Event::Done { id: image.id.clone() });
        Ok(image)
    }
}

/// Finds the images, whichever format it is. Archives of newer dockers are both.
fn find(archive: &Archive, store: &Store) -> Result<Vec<Found>, ImportError> {
    let limits = &store.0.limits;
    let found = if archive.has("index.json") {
        layout::find(archive, limits)?
    } else if archive.has("manifest.json") {
        docker::find(archive, limits)?
    } else {
        return Err(ImportError::Unknown);
    };
    if found.is_empty() { Err(ImportError::Empty) } else { Ok(found) }
}

/// Unpacks and verifies one layer.
fn stage(store: &Store, archive: &Archive, layer: &FoundLayer) -> Result<Staged, ImportError> {
    let name = || layer.name.clone();
    let staging = Staging::new(store.0.layout.temporary());
    let mut reader = HashingReader::new(archive.reader(&layer.piece));
    let unpacked =
        unpack(&mut reader, layer.piece.size, staging.path(), Some(&layer.diff_id), &store.0.limits);
    let damage = unpacked.as_ref().err().is_none_or(UnpackError::may_be_damage);
    if let Some(expected) = layer.digest.as_ref().filter(|_| damage) {
        let (actual, _) = reader.finish().map_err(ImportError::Read)?;
        if actual != *expected {
            return Err(ImportError::WrongDigest { name: name(), actual });
        }
    }
    let record = unpacked.map_err(|source| ImportError::Unpack { name: name(), source })?;
    if record.origin == Origin::Source {
        let copied = std::fs::File::create_new(staging.path().join(SOURCE))
            .and_then(|mut file| io::copy(&mut archive.reader(&layer.piece), &mut file));
        copied.map_err(ImportError::Keep)?;
    }
    Ok(staging.keep(record))
}

/// Copies and verifies an artifact's blobs, and puts them together.
fn stage_artifact(
    store: &Store,
    archive: &Archive,
    artifact: &Artifact,
    blobs: &[FoundLayer],
) -> Result<Staged, ImportError> {
    let mut landed: Vec<(Staging, Digest)> = Vec::new();
    for blob in blobs {
        if landed.iter().any(|(_, digest)| *digest == blob.diff_id) {
            continue;
        }
        let staging = Staging::new(store.0.layout.temporary());
        let mut reader = HashingReader::new(archive.reader(&blob.piece));
        let copied = std::fs::File::create_new(staging.path())
            .and_then(|mut file| io::copy(&mut reader, &mut file))
            .and_then(|_| reader.finish());
        let (actual, _) = copied.map_err(ImportError::Keep)?;
        if actual != blob.diff_id {
            return Err(ImportError::WrongDigest { name: blob.name.clone(), actual });
        }
        landed.push((staging, actual));
    }
    let files: Vec<_> = landed.iter().map(|(s, digest)| (digest.clone(), s.path().to_owned())).collect();
    let staging = Staging::new(store.0.layout.temporary());
    crate::pull::build_artifact(artifact, &files, staging).map_err(ImportError::Keep)
}
