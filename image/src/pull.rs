//! Pulls an image: from a reference to something that containers can run on.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::task::JoinSet;

use crate::auth::Auth;
use crate::digest::Digest;
use crate::image::Image;
use crate::layers::{Flight, LayerError, Source, Staged};
use crate::manifest::{
    Descriptor, Document, Manifest, ManifestError, check_platform, check_size, choose, diff_ids, parse,
    parse_config,
};
use crate::platform::Platform;
use crate::progress::{Event, LayerProgress, Progress};
use crate::reference::Reference;
use crate::registry::{RegistryError, Session};
use crate::store::{CommitError, NewImage, Store};
use crate::unpack::UnpackError;

/// Indexes within indexes: no more than this.
const NESTED: usize = 3;

/// Why an image was not pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry does not tell what the reference is.
    #[error("resolve {reference}")]
    Resolve {
        /// What was to be pulled.
        reference: String,
        /// Why.
        source: RegistryError,
    },
    /// The manifest, an index or the configuration is refused.
    #[error("pull {reference}")]
    Manifest {
        /// What was to be pulled.
        reference: String,
        /// Why.
        source: ManifestError,
    },
    /// A layer did not come in.
    #[error("pull {reference}")]
    Layer {
        /// What was to be pulled.
        reference: String,
        /// Why.
        source: Arc<LayerError>,
    },
    /// The complete image cannot be stored.
    #[error("store {reference}")]
    Commit {
        /// What was to be pulled.
        reference: String,
        /// Why.
        source: CommitError,
    },
    /// Directories cannot be corrected.
    #[error("complete the directories of {reference}")]
    Correct {
        /// What was to be pulled.
        reference: String,
        /// Why.
        source: UnpackError,
    },
}

/// What kind of failure it is: for status codes and retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// There is no such image, tag or digest.
    NotFound,
    /// Credentials are missing or not enough.
    Unauthorized,
    /// The registry cannot be reached, or fails; later it may work.
    Unavailable,
    /// The image is malformed, hostile, too large, or not for this machine.
    Invalid,
    /// The disk is full.
    NoSpace,
    /// Anything else.
    Internal,
}

impl PullError {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            PullError::Resolve { source, .. } => registry_kind(source),
            PullError::Manifest { .. } => ErrorKind::Invalid,
            PullError::Layer { source, .. } => match &**source {
                LayerError::Download { source, .. } => registry_kind(source),
                LayerError::WrongDigest { .. } => ErrorKind::Invalid,
                LayerError::Unpack { source, .. } => unpack_kind(source),
                LayerError::Store { source, .. } => io_kind(source),
                LayerError::Abandoned(_) => ErrorKind::Unavailable,
            },
            PullError::Commit { source: CommitError::Write { source, .. }, .. } => io_kind(source),
            PullError::Commit { .. } => ErrorKind::Internal,
            PullError::Correct { source, .. } => unpack_kind(source),
        }
    }
}

fn registry_kind(err: &RegistryError) -> ErrorKind {
    match err {
        RegistryError::NotFound { .. } => ErrorKind::NotFound,
        RegistryError::Unauthorized { .. } => ErrorKind::Unauthorized,
        RegistryError::WrongDigest { .. } | RegistryError::TooLong { .. } => ErrorKind::Invalid,
        RegistryError::Hosts(_) | RegistryError::Tls { .. } => ErrorKind::Internal,
        _ => ErrorKind::Unavailable,
    }
}

pub(crate) fn unpack_kind(err: &UnpackError) -> ErrorKind {
    match err {
        UnpackError::NoSpace { .. } => ErrorKind::NoSpace,
        UnpackError::Write { .. } => ErrorKind::Internal,
        _ => ErrorKind::Invalid,
    }
}

pub(crate) fn io_kind(err: &std::io::Error) -> ErrorKind {
    match err.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
        _ => ErrorKind::Internal,
    }
}

impl Store {
    /// Pulls an image. If the registry says that the store has it already, nothing is downloaded, but the
    /// registry is asked: access is checked each time.
    ///
    /// Giving up (dropping the future) ends the downloads that nobody else waits for; what came is kept for
    /// the next try.
    pub async fn pull(
        &self,
        reference: &Reference,
        auth: Option<Auth>,
        progress: Option<Progress>,
    ) -> Result<Image, PullError> {
        let progress = progress.unwrap_or_else(Progress::none);
        progress.send(Event::Resolving { what: reference.to_string() });
        let pull = Pull { store: self, reference, progress: &progress };
        let image = pull.run(auth).await?;
        progress.send(Event::Done { id: image.id.clone() });
        Ok(image)
    }
}

struct Pull<'a> {
    store: &'a Store,
    reference: &'a Reference,
    progress: &'a Progress,
}

impl Pull<'_> {
    fn unresolved(&self, source: RegistryError) -> PullError {
        PullError::Resolve { reference: self.reference.to_string(), source }
    }

    fn refused(&self, source: ManifestError) -> PullError {
        PullError::Manifest { reference: self.reference.to_string(), source }
    }

    async fn run(&self, auth: Option<Auth>) -> Result<Image, PullError> {
        let session =
            self.store.0.registries.session(self.reference, auth).map_err(|e| self.unresolved(e))?;
        if let Some(image) = self.already_there(&session).await? {
            return Ok(image);
        }
        let limits = &self.store.0.limits;
        let host = Platform::host();
        let mut name = self.reference.manifest_name().to_owned();
        let mut top = None;
        let (manifest, manifest_bytes) = 'found: {
            for _ in 0..NESTED {
                let served =
                    session.manifest(&name, limits.manifest_bytes).await.map_err(|e| self.unresolved(e))?;
                top.get_or_insert(served.digest);
                match parse(&served.bytes, &served.media_type, limits).map_err(|e| self.refused(e))? {
                    Document::Manifest(manifest) => break 'found (manifest, served.bytes),
                    Document::Index(entries) => {
                        let chosen = choose(&entries, &host).map_err(|e| self.refused(e))?;
                        check_size("manifest", chosen.size, limits.manifest_bytes)
                            .map_err(|e| self.refused(e))?;
                        name = chosen.digest.to_string();
                    }
                }
            }
            return Err(self.refused(ManifestError::Nested));
        };
        check_size("configuration", manifest.config.size, limits.config_bytes)
            .map_err(|e| self.refused(e))?;
        let config_bytes = session
            .small_blob(&manifest.config.digest, limits.config_bytes)
            .await
            .map_err(|e| self.unresolved(e))?;
        let config = parse_config(&config_bytes, limits).map_err(|e| self.refused(e))?;
        check_platform(&config, &host).map_err(|e| self.refused(e))?;
        let layers = diff_ids(&config, manifest.layers.len()).map_err(|e| self.refused(e))?;
        let _hold = self.store.hold(&layers);
        let landed = self.layers(&session, &manifest, &layers, Digest::of(&manifest_bytes)).await?;
        let staged = landed.iter().map(|landed| landed.staged.clone()).collect();
        let corrected = self.store.correct(&layers, staged).await;
        let (staged, correction) = corrected
            .map_err(|source| PullError::Correct { reference: self.reference.to_string(), source })?;
        self.progress.send(Event::Committing);
        let (tags, digests) = self.names(top.expect("set with the first answer"));
        let new =
            NewImage { config_bytes, config, manifest_bytes, tags, digests, layers, staged, correction, artifact: None };
        self.store
            .commit(new)
            .await
            .map_err(|source| PullError::Commit { reference: self.reference.to_string(), source })
    }

    /// The names that a pull of this reference gives the image.
    fn names(&self, top: Digest) -> (BTreeSet<String>, BTreeSet<String>) {
        let tag = match self.reference.digest() {
            None => Some(self.reference.to_string()),
            // A tag beside a digest was not asked for at the registry, so we do not vouch for it.
            Some(_) => None,
        };
        let digest = format!("{}@{top}", self.reference.name());
        (tag.into_iter().collect(), [digest].into())
    }

    /// Looks whether the registry means an image that we have.
    async fn already_there(&self, session: &Session) -> Result<Option<Image>, PullError> {
        let digests = format!("{}@", self.reference.name());
        let known = |image: &Image| image.repo_digests.iter().any(|d| d.starts_with(&digests));
        let candidates: Vec<Image> = self.store.list().into_iter().filter(known).collect();
        if candidates.is_empty() {
            return Ok(None);
        }
        let name = self.reference.manifest_name();
        let digest = match session.head(name).await {
            Ok(Some(digest)) => digest,
            // Some registries know no HEAD; a missing image is told by GET.
            Ok(None) | Err(RegistryError::Status { .. } | RegistryError::NotFound { .. }) => return Ok(None),
            Err(err) => return Err(self.unresolved(err)),
        };
        let wanted = format!("{digests}{digest}");
        let Some(image) = candidates.into_iter().find(|i| i.repo_digests.contains(&wanted)) else {
            return Ok(None);
        };
        let (tags, names) = self.names(digest);
        let named = self.store.add_names(&image.id, tags, names).await;
        named.map_err(|source| PullError::Commit { reference: self.reference.to_string(), source })
    }

    /// Brings in what is missing of the layers.
    async fn layers(
        &self,
        session: &Session,
        manifest: &Manifest,
        diff_ids: &[Digest],
        digest: Digest,
    ) -> Result<Vec<Landed>, PullError> {
        self.progress.send(Event::Resolved {
            manifest: digest,
            layers: manifest.layers.iter().map(|l| (l.digest.clone(), l.size)).collect(),
            bytes: manifest.layers.iter().map(|l| l.size).sum(),
        });
        // Dropping the set, as an error or a lost caller does, ends all of it.
        let mut running = JoinSet::new();
        let mut seen = BTreeSet::new();
        for (layer, diff_id) in manifest.layers.iter().zip(diff_ids) {
            if seen.insert(diff_id) {
                let (store, session, progress) = (self.store.clone(), session.clone(), self.progress.clone());
                let (layer, diff_id) = (layer.clone(), diff_id.clone());
                running.spawn(async move { bring(store, session, progress, layer, diff_id).await });
            }
        }
        let mut staged = Vec::new();
        while let Some(done) = running.join_next().await {
            let layer =
                done.unwrap_or_else(|_| Err(Arc::new(LayerError::Abandoned(manifest.config.digest.clone()))));
            let layer =
                layer.map_err(|source| PullError::Layer { reference: self.reference.to_string(), source })?;
            staged.extend(layer);
        }
        Ok(staged)
    }
}

/// A layer in staging, and the download it came from: kept until the layer is in the store.
struct Landed {
    _flight: Arc<Flight>,
    staged: Arc<Staged>,
}

/// Gets one layer: out of the store, by joining a download, or by starting one. `None` if it is there.
async fn bring(
    store: Store,
    session: Session,
    progress: Progress,
    layer: Descriptor,
    diff_id: Digest,
) -> Result<Option<Landed>, Arc<LayerError>> {
    let tell = |state| progress.send(Event::Layer { digest: layer.digest.clone(), state });
    loop {
        let (flight, ours) = match store.fly(&session, &layer, &diff_id) {
            Source::There => {
                tell(LayerProgress::Exists);
                return Ok(None);
            }
            Source::Joined(flight) => (flight, false),
            Source::Started(flight) => (flight, true),
        };
        match flight.landed(&layer.digest, tell).await {
            Ok(staged) if staged.record.diff_id == diff_id => {
                tell(LayerProgress::Done);
                return Ok(Some(Landed { _flight: flight, staged }));
            }
            Ok(staged) => {
                let actual = staged.record.diff_id.clone();
                let source = UnpackError::DiffId { expected: diff_id, actual };
                return Err(Arc::new(LayerError::Unpack { digest: layer.digest, source }));
            }
            // Somebody else's credentials or patience failed: try with our own.
            Err(_) if !ours => (),
            Err(err) => return Err(err),
        }
    }
}
