//! Leases: who needs which layers, beyond the life of the daemon.
//!
//! Guarantees: the layers of a leased image stay until the lease is released, whatever happens to the
//! image's names. A lease survives the daemon; it need not survive a reboot, as containers do not either.

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;

use tracing::warn;

use super::{Store, load, remove_file};
use crate::digest::Digest;
use crate::image::{Lease, Rootfs};
use crate::state::{LeaseRecord, State};

/// Why no lease was given.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// No such image.
    #[error("image {0} not found")]
    NotFound(Digest),
    /// It has no root file system.
    #[error(
        "image {id} is an OCI artifact of type `{kind}`: it has no root file system and cannot run; mount it as an image volume"
    )]
    Artifact {
        /// The image's id.
        id: Digest,
        /// What it says it is.
        kind: String,
    },
    /// The owner's name cannot be a file name.
    #[error("lease owner `{0}` is malformed; expected up to 128 letters, digits, `-`, `_` and `.`")]
    Owner(String),
    /// The lease cannot be recorded.
    #[error("record the lease of {owner}")]
    Write {
        /// The owner.
        owner: String,
        /// The system's reason.
        source: io::Error,
    },
}

impl Store {
    /// Makes `owner` hold the image's layers until `release`, and says where they are. An owner may hold
    /// several images; asking again is harmless. For the root of a container: artifacts are refused.
    pub fn lease(&self, id: &Digest, owner: &str) -> Result<Rootfs, LeaseError> {
        let artifact = self.0.state.lock().images.get(id).and_then(|entry| entry.record.artifact.clone());
        match artifact {
            Some(kind) => Err(LeaseError::Artifact { id: id.clone(), kind }),
            None => self.volume_lease(id, owner),
        }
    }

    /// The same for a volume, of an image or of an artifact. An artifact is one directory that has each
    /// of its blobs as a file, named by the blob's `org.opencontainers.image.title`, else by its digest's
    /// hex digits. Give the owner of the container that mounts it: one `release` gives up all it holds.
    pub fn volume_lease(&self, id: &Digest, owner: &str) -> Result<Rootfs, LeaseError> {
        if !is_owner(owner) {
            return Err(LeaseError::Owner(owner.to_owned()));
        }
        let (lease, lower) = {
            let mut state = self.0.state.lock();
            let entry = state.images.get(id).ok_or_else(|| LeaseError::NotFound(id.clone()))?;
            let layers: Vec<Digest> = entry.record.all_layers().cloned().collect();
            let lower = self.lower(&state, &layers);
            let lease = state.leases.entry(owner.to_owned()).or_default();
            lease.images.insert(id.clone(), layers);
            (lease.clone(), lower)
        };
        let bytes = serde_json::to_vec(&lease).expect("a lease is plain data");
        if let Err(source) = self.0.layout.write(&self.0.layout.lease(owner), &bytes) {
            let mut state = self.0.state.lock();
            if let Some(lease) = state.leases.get_mut(owner) {
                lease.images.remove(id);
            }
            return Err(LeaseError::Write { owner: owner.to_owned(), source });
        }
        Ok(Rootfs { lower })
    }

    /// Directories of the layers, topmost first; an empty directory if there are none. Overlayfs takes no
    /// directory twice; of a layer that comes twice, the upper one hides the lower one completely.
    fn lower(&self, state: &State, layers: &[Digest]) -> Vec<PathBuf> {
        let mut seen = HashSet::new();
        let mut lower: Vec<PathBuf> = layers
            .iter()
            .rev()
            .filter(|digest| seen.insert(*digest))
            .filter_map(|digest| state.layers.get(digest))
            .map(|layer| self.0.layout.tree(layer.number))
            .collect();
        if lower.is_empty() {
            lower.push(self.0.layout.tree(load::EMPTY_LAYER));
        }
        lower
    }

    /// Gives up all that `owner` holds. Harmless if it holds nothing. An image that lost its last name
    /// meanwhile is removed soon after.
    pub fn release(&self, owner: &str) {
        let doomed = {
            let mut state = self.0.state.lock();
            let Some(lease) = state.leases.remove(owner) else { return };
            let doomed = |id: &&Digest| {
                state.images.get(*id).is_some_and(|e| e.record.doomed) && state.owners(id).is_empty()
            };
            lease.images.keys().filter(doomed).cloned().collect::<Vec<_>>()
        };
        if let Err(err) = remove_file(&self.0.layout.lease(owner)) {
            warn!(owner, %err, "cannot remove a lease's record");
        }
        self.collect_layers();
        self.bury_soon(doomed);
    }

    /// Does `bury` on a thread of its own: a pull may be bringing the image back, and records are changed
    /// one at a time.
    pub(super) fn bury_soon(&self, doomed: Vec<Digest>) {
        if doomed.is_empty() {
            return;
        }
        let store = self.clone();
        let work = move || store.bury(&doomed);
        if let Err(err) = std::thread::Builder::new().name("image-sweep".into()).spawn(work) {
            warn!(%err, "cannot start a thread to remove an image after its last use");
        }
    }

    /// Deletes images that lost their names while they were in use, if that is still so. Blocks.
    fn bury(&self, doomed: &[Digest]) {
        let _writing = self.0.writing.blocking_lock();
        for id in doomed {
            let due = {
                let state = self.0.state.lock();
                state.images.get(id).is_some_and(|e| e.record.doomed) && state.owners(id).is_empty()
            };
            if due && let Err(err) = self.delete(id) {
                warn!(%id, %err, "cannot remove an image after its last use");
            }
        }
    }

    /// Who holds what: for reconciling after a restart.
    pub fn leases(&self) -> Vec<Lease> {
        let state = self.0.state.lock();
        let each = |(owner, lease): (&String, &LeaseRecord)| {
            let owner = owner.clone();
            let images: Vec<Digest> = lease.images.keys().cloned().collect();
            images.into_iter().map(move |image| Lease { owner: owner.clone(), image })
        };
        state.leases.iter().flat_map(each).collect()
    }
}

/// Owners name files.
fn is_owner(owner: &str) -> bool {
    (1..=128).contains(&owner.len())
        && !owner.starts_with('.')
        && owner.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}
