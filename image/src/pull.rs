//! Pulls an image: from a reference to something that containers can run on.

mod artifact;
mod bring;
mod run;
mod watch;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::auth::Auth;
use crate::image::Image;
use crate::layers::{Errand, LayerError};
use crate::manifest::ManifestError;
use crate::progress::{Event, Progress};
use crate::queue::{Claim, Priority};
use crate::reference::Reference;
use crate::registry::RegistryError;
use crate::store::{CommitError, Store};
use crate::unpack::UnpackError;
pub(crate) use artifact::build as build_artifact;
use run::Pull;

/// How to pull.
#[derive(Debug, Clone, Default)]
pub struct PullOptions {
    /// Credentials for the registry.
    pub auth: Option<Auth>,
    /// Where to tell how far it is.
    pub progress: Option<Progress>,
    /// How urgent it is.
    pub priority: Priority,
}

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
    /// Nothing moved for too long.
    #[error("pull {reference}: nothing was downloaded or unpacked for {seconds} s, so it was given up")]
    Stalled {
        /// What was to be pulled.
        reference: String,
        /// How long we waited.
        seconds: u64,
    },
    /// The blobs of an artifact cannot be put together.
    #[error("put together the artifact {reference}")]
    Artifact {
        /// What was to be pulled.
        reference: String,
        /// The system's reason.
        source: std::io::Error,
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
            PullError::Stalled { .. } => ErrorKind::Unavailable,
            PullError::Artifact { source, .. } => io_kind(source),
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
        RegistryError::WrongDigest { .. } | RegistryError::TooLong { .. } | RegistryError::Foreign { .. } => {
            ErrorKind::Invalid
        }
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
    /// Pulls an image for somebody who waits for it: [`Store::pull_with`] with the default priority.
    ///
    /// # Errors
    /// See [`Store::pull_with`].
    pub async fn pull(
        &self,
        reference: &Reference,
        auth: Option<Auth>,
        progress: Option<Progress>,
    ) -> Result<Image, PullError> {
        self.pull_with(reference, PullOptions { auth, progress, ..PullOptions::default() }).await
    }

    /// Pulls an image, once it is its turn. If the registry says that the store has it already, nothing is
    /// downloaded, but the registry is asked: access is checked each time.
    ///
    /// Giving up (dropping the future) ends the downloads that nobody else waits for; what came is kept for
    /// the next try.
    ///
    /// # Errors
    /// The first step that fails; [`PullError::kind`] tells what to make of it.
    pub async fn pull_with(&self, reference: &Reference, options: PullOptions) -> Result<Image, PullError> {
        self.pull_as(reference, options, false).await
    }

    /// Pulls an image. With `afresh`, one that is there is not taken for an answer.
    pub(crate) async fn pull_as(
        &self,
        reference: &Reference,
        options: PullOptions,
        afresh: bool,
    ) -> Result<Image, PullError> {
        let progress = options.progress.unwrap_or_else(Progress::none);
        let errand =
            Errand { priority: options.priority, pull: self.0.next_pull.fetch_add(1, Ordering::Relaxed) };
        let mut turn = std::pin::pin!(self.0.pulls.acquire(Claim::new(errand.priority, errand.pull)));
        let _turn = tokio::select! {
            biased;
            // Cancel-safe: it is only looked at, and waited for below.
            turn = &mut turn => turn,
            () = std::future::ready(()) => {
                progress.send(Event::Queued);
                turn.await
            }
        };
        progress.send(Event::Resolving { what: reference.to_string() });
        let pull = Pull { store: self, reference, progress: &progress, errand, afresh };
        let image = pull.run(options.auth).await?;
        progress.send(Event::Done { id: image.id.clone() });
        Ok(image)
    }
}
