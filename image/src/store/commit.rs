//! Makes a new image durable, then visible.
//!
//! The order: everything is written to staging; one `syncfs`; layers are renamed into place; the record is
//! written, synced and renamed. A crash before the last step leaves layers that nobody needs, which `open`
//! removes.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::sync::Arc;

use jiff::Timestamp;
use oci_spec::image::ImageConfiguration;
use tracing::warn;

use super::{Inner, Store};
use crate::digest::Digest;
use crate::image::Image;
use crate::layers::Staged;
use crate::layout::sync_dir;
use crate::state::{Entry, ImageRecord, Layer};

/// Why a complete image could not be added.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// A file of the store cannot be written.
    #[error("{step} in the image store")]
    Write {
        /// What we tried.
        step: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// A layer vanished between unpacking and now; a bug if it happens.
    #[error("layer {0} is gone from the image store")]
    LayerGone(Digest),
    /// The node shuts down.
    #[error("the commit was abandoned")]
    Abandoned,
}

/// An image, all of whose layers are unpacked.
pub(crate) struct NewImage {
    /// The digest of the configuration; of an artifact, of the manifest.
    pub(crate) id: Digest,
    pub(crate) config_bytes: Vec<u8>,
    pub(crate) config: ImageConfiguration,
    pub(crate) manifest_bytes: Vec<u8>,
    pub(crate) tags: BTreeSet<String>,
    pub(crate) digests: BTreeSet<String>,
    /// Diff ids, lowest first.
    pub(crate) layers: Vec<Digest>,
    /// Those of the layers that are not in the store yet, and the correction if there is one.
    pub(crate) staged: Vec<Arc<Staged>>,
    pub(crate) correction: Option<Digest>,
    /// The type, if it is an artifact.
    pub(crate) artifact: Option<String>,
}

/// Keeps layers in the store while a pull relies on them.
pub(crate) struct Hold {
    store: Store,
    layers: Vec<Digest>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        {
            let mut state = self.store.0.state.lock();
            for layer in &self.layers {
                if let Some(count) = state.holds.get_mut(layer) {
                    *count -= 1;
                    if *count == 0 {
                        state.holds.remove(layer);
                    }
                }
            }
        }
        self.store.collect_layers();
    }
}

impl Store {
    /// Keeps these layers from being collected, whether they are there already or come later.
    pub(crate) fn hold(&self, layers: &[Digest]) -> Hold {
        let mut state = self.0.state.lock();
        for layer in layers {
            *state.holds.entry(layer.clone()).or_insert(0) += 1;
        }
        drop(state);
        Hold { store: self.clone(), layers: layers.to_vec() }
    }

    /// Adds an image, or names to one that is there. Runs to its end even if the caller gives up.
    pub(crate) async fn commit(&self, new: NewImage) -> Result<Image, CommitError> {
        self.write(move |store| store.commit_now(new)).await.unwrap_or(Err(CommitError::Abandoned))
    }

    fn commit_now(&self, new: NewImage) -> Result<Image, CommitError> {
        let layout = &self.0.layout;
        let step = |step: &'static str| move |source: io::Error| CommitError::Write { step, source };
        let (id, manifest) = (new.id, Digest::of(&new.manifest_bytes));
        let new_id = id.clone();
        let config = Digest::of(&new.config_bytes);
        for (digest, bytes) in [(&config, &new.config_bytes), (&manifest, &new.manifest_bytes)] {
            layout.write(&layout.blob(digest), bytes).map_err(step("write a blob"))?;
        }
        let root = fs::File::open(layout.root()).map_err(step("open the directory"))?;
        sys::fault::point("pull: sync the file system").map_err(step("sync"))?;
        rustix::fs::syncfs(&root).map_err(|err| step("sync")(err.into()))?;
        self.place(&new.staged)?;
        let record = ImageRecord {
            id,
            manifest,
            config: (config != new_id).then_some(config),
            tags: new.tags,
            digests: new.digests,
            layers: new.layers,
            correction: new.correction,
            artifact: new.artifact,
            config_bytes: (new.config_bytes.len() + new.manifest_bytes.len()) as u64,
            pulled: Timestamp::now(),
            pinned: false,
            doomed: false,
        };
        sys::fault::point("pull: publish the image").map_err(step("publish the image"))?;
        self.publish(record, Arc::new(new.config))
    }

    /// Gives an image more names. `None` if it is gone.
    pub(crate) async fn add_names(
        &self,
        id: &Digest,
        tags: BTreeSet<String>,
        digests: BTreeSet<String>,
    ) -> Result<Option<Image>, CommitError> {
        let id = id.clone();
        let work = move |store: &Store| {
            let Some(Entry { mut record, config }) = store.0.state.lock().images.get(&id).cloned() else {
                return Ok(None);
            };
            if !record.doomed && tags.is_subset(&record.tags) && digests.is_subset(&record.digests) {
                return Ok(store.0.state.lock().image(&id));
            }
            record.tags.extend(tags);
            record.digests.extend(digests);
            record.doomed = false;
            record.pulled = Timestamp::now();
            store.publish(record, config).map(Some)
        };
        self.write(work).await.unwrap_or(Err(CommitError::Abandoned))
    }

    /// Writes an image's record, then shows it; its tags leave the images that had them.
    fn publish(
        &self,
        mut record: ImageRecord,
        config: Arc<ImageConfiguration>,
    ) -> Result<Image, CommitError> {
        let Inner { layout, state, .. } = &*self.0;
        let others: Vec<ImageRecord> = {
            let state = state.lock();
            if let Some(gone) = record.all_layers().find(|l| !state.layers.contains_key(*l)) {
                return Err(CommitError::LayerGone(gone.clone()));
            }
            if let Some(old) = state.images.get(&record.id) {
                record.tags.extend(old.record.tags.iter().cloned());
                record.digests.extend(old.record.digests.iter().cloned());
                record.pinned = old.record.pinned;
            }
            let others = state.images.values().map(|e| &e.record).filter(|r| r.id != record.id);
            others.filter(|r| !r.tags.is_disjoint(&record.tags)).cloned().collect()
        };
        let bytes = serde_json::to_vec(&record).expect("a record is plain data");
        layout
            .write_durably(&layout.image(&record.id), &bytes)
            .map_err(|source| CommitError::Write { step: "write the image's record", source })?;
        let (id, tags) = (record.id.clone(), record.tags.clone());
        let image = {
            let mut state = state.lock();
            for other in &others {
                if let Some(entry) = state.images.get_mut(&other.id) {
                    entry.record.tags.retain(|tag| !tags.contains(tag));
                }
            }
            state.images.insert(id.clone(), Entry { record, config });
            state.image(&id)
        };
        for mut old in others {
            old.tags.retain(|tag| !tags.contains(tag));
            // If this fails, the younger image keeps the tag at the next start.
            if let Err(err) = self.rewrite(old) {
                warn!(%err, "cannot take a tag from its old image on disk");
            }
        }
        image.ok_or(CommitError::Abandoned)
    }

    /// Moves layers from staging to where overlayfs finds them. They are durable already.
    fn place(&self, staged: &[Arc<Staged>]) -> Result<(), CommitError> {
        let Inner { layout, state, .. } = &*self.0;
        let step = |source| CommitError::Write { step: "move a layer into place", source };
        let mut placed = Vec::new();
        for layer in staged {
            let number = {
                let mut state = state.lock();
                if state.layers.contains_key(&layer.record.diff_id) {
                    continue;
                }
                state.next_layer += 1;
                state.next_layer - 1
            };
            sys::fault::point("pull: move a layer into place").map_err(step)?;
            layer.take(&layout.layer(number)).map_err(step)?;
            placed.push((number, layer.record.clone()));
        }
        if placed.is_empty() {
            return Ok(());
        }
        sys::fault::point("pull: sync the layers' directory").map_err(step)?;
        sync_dir(&layout.layers()).map_err(step)?;
        let mut state = state.lock();
        for (number, record) in placed {
            state.layers.insert(record.diff_id.clone(), Layer { number, record });
        }
        Ok(())
    }
}
