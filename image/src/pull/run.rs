//! One pull: from what the registry says to an image in the store.

use std::collections::BTreeSet;

use crate::auth::Auth;
use crate::digest::Digest;
use crate::image::Image;
use crate::layers::{Arrived, Content, Errand, LayerError};
use crate::manifest::{
    Document, Manifest, ManifestError, check_platform, check_size, choose, diff_ids, parse, parse_config,
};
use crate::platform::Platform;
use crate::progress::Progress;
use crate::reference::Reference;
use crate::registry::{RegistryError, Session};
use crate::store::{CommitError, NewImage, Store};

use super::PullError;
use super::bring::Landed;

/// Indexes within indexes: no more than this.
const NESTED: usize = 3;

pub(super) struct Pull<'a> {
    pub(super) store: &'a Store,
    pub(super) reference: &'a Reference,
    pub(super) progress: &'a Progress,
    pub(super) errand: Errand,
    /// One that is there is not taken for an answer.
    pub(super) afresh: bool,
}

impl Pull<'_> {
    pub(super) fn unresolved(&self, source: RegistryError) -> PullError {
        PullError::Resolve { reference: self.reference.to_string(), source }
    }

    pub(super) fn refused(&self, source: ManifestError) -> PullError {
        PullError::Manifest { reference: self.reference.to_string(), source }
    }

    pub(super) async fn run(&self, auth: Option<Auth>) -> Result<Image, PullError> {
        let session =
            self.store.0.registries.session(self.reference, auth).map_err(|e| self.unresolved(e))?;
        if !self.afresh
            && let Some(image) = self.already_there(&session).await?
        {
            return Ok(image);
        }
        let limits = &self.store.0.limits;
        let mut name = self.reference.manifest_name().to_owned();
        let mut top = None;
        for _ in 0..NESTED {
            let served =
                session.manifest(&name, limits.manifest_bytes).await.map_err(|e| self.unresolved(e))?;
            let top = top.get_or_insert(served.digest).clone();
            match parse(&served.bytes, &served.media_type, limits).map_err(|e| self.refused(e))? {
                Document::Manifest(manifest) => {
                    return self.image(&session, manifest, served.bytes, top).await;
                }
                Document::Artifact(artifact) => {
                    return self.artifact(&session, artifact, served.bytes, top).await;
                }
                Document::Index(entries) => {
                    let chosen = choose(&entries, &Platform::host()).map_err(|e| self.refused(e))?;
                    check_size("manifest", chosen.size, limits.manifest_bytes)
                        .map_err(|e| self.refused(e))?;
                    name = chosen.digest.to_string();
                }
            }
        }
        Err(self.refused(ManifestError::Nested))
    }

    async fn image(
        &self,
        session: &Session,
        manifest: Manifest,
        manifest_bytes: Vec<u8>,
        top: Digest,
    ) -> Result<Image, PullError> {
        let limits = &self.store.0.limits;
        check_size("configuration", manifest.config.size, limits.config_bytes)
            .map_err(|e| self.refused(e))?;
        let config_bytes = session
            .small_blob(&manifest.config.digest, limits.config_bytes)
            .await
            .map_err(|e| self.unresolved(e))?;
        let config = parse_config(&config_bytes, limits).map_err(|e| self.refused(e))?;
        check_platform(&config, &Platform::host()).map_err(|e| self.refused(e))?;
        let layers = diff_ids(&config, manifest.layers.len()).map_err(|e| self.refused(e))?;
        let _hold = self.store.hold(&layers);
        let wanted = manifest.layers.iter().cloned().zip(layers.iter().cloned().map(Content::Layer));
        let landed = self.bring_all(session, wanted.collect(), Digest::of(&manifest_bytes)).await?;
        let store = |source| PullError::Commit {
            reference: self.reference.to_string(),
            source: CommitError::Write { step: "complete the layers", source },
        };
        sys::fault::point("pull: complete the layers' directories").map_err(store)?;
        let staged = landed.iter().filter_map(Landed::layer).collect();
        let corrected = self.store.correct(&layers, staged).await;
        let (staged, correction) = corrected
            .map_err(|source| PullError::Correct { reference: self.reference.to_string(), source })?;
        let (tags, digests) = self.names(&top);
        let new = NewImage {
            id: Digest::of(&config_bytes),
            config_bytes,
            config,
            manifest_bytes,
            tags,
            digests,
            layers,
            staged,
            correction,
            artifact: None,
        };
        self.commit(new).await
    }

    pub(super) async fn commit(&self, new: NewImage) -> Result<Image, PullError> {
        self.progress.send(crate::progress::Event::Committing);
        // What the unpacking took is free by now. Nobody waits for it.
        drop(tokio::task::spawn_blocking(sys::memory::give_back));
        self.store
            .commit(new)
            .await
            .map_err(|source| PullError::Commit { reference: self.reference.to_string(), source })
    }

    /// The names that a pull of this reference gives the image.
    pub(super) fn names(&self, top: &Digest) -> (BTreeSet<String>, BTreeSet<String>) {
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
        let (tags, names) = self.names(&digest);
        let named = self.store.add_names(&image.id, tags, names).await;
        named.map_err(|source| PullError::Commit { reference: self.reference.to_string(), source })
    }
}

impl Landed {
    fn layer(&self) -> Option<std::sync::Arc<crate::layers::Staged>> {
        match &self.arrived {
            Arrived::Layer(staged) => Some(staged.clone()),
            Arrived::Blob(_) => None,
        }
    }
}

/// For errors of downloads.
impl Pull<'_> {
    pub(super) fn failed(&self, source: std::sync::Arc<LayerError>) -> PullError {
        PullError::Layer { reference: self.reference.to_string(), source }
    }
}
