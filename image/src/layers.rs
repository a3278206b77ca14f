//! Layers on their way into the store: downloads, shared by all who want the same one.
//!
//! Guarantees: one download per digest at a time, whoever asks; it ends when the last one who asked gives
//! up; what was downloaded stays on disk for the next try; a `Staged` layer has its digest and diff id
//! verified.

mod download;
mod incoming;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::digest::Digest;
use crate::manifest::Descriptor;
use crate::progress::LayerProgress;
use crate::queue::{Claim, Priority, Queue};
use crate::registry::{RegistryError, Session};
use crate::state::LayerRecord;
use crate::store::{Store, remove_tree};
use crate::unpack::UnpackError;

/// Why a layer did not come in.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The registry does not deliver.
    #[error("download layer {digest}")]
    Download {
        /// The layer.
        digest: Digest,
        /// The last failure.
        source: RegistryError,
    },
    /// The registry's data is not what was asked for.
    #[error("layer {expected} has the wrong digest: the data hashes to {actual}")]
    WrongDigest {
        /// What was asked for.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// The layer cannot be unpacked.
    #[error("unpack layer {digest}")]
    Unpack {
        /// The layer.
        digest: Digest,
        /// Why.
        source: UnpackError,
    },
    /// The download cannot be kept on disk.
    #[error("store the download of layer {digest}")]
    Store {
        /// The layer.
        digest: Digest,
        /// The system's reason.
        source: io::Error,
    },
    /// Everybody who wanted it gave up, or the node shuts down.
    #[error("layer {0} was abandoned")]
    Abandoned(Digest),
}

/// A directory in staging, deleted in the background unless it is kept.
#[derive(Debug)]
pub(crate) struct Staging(Option<PathBuf>);

impl Staging {
    pub(crate) fn new(path: PathBuf) -> Staging {
        Staging(Some(path))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.as_deref().expect("there until it is taken")
    }

    /// Keeps it as an unpacked layer.
    pub(crate) fn keep(self, record: LayerRecord) -> Staged {
        Staged { record: Arc::new(record), place: Mutex::new(self) }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Some(path) = self.0.take().filter(|path| path.exists()) {
            // If no thread can be had, the next start deletes it.
            let sweep = move || remove_tree(&path);
            let _ = std::thread::Builder::new().name("image-sweep".into()).spawn(sweep);
        }
    }
}

/// An unpacked, verified layer in staging. Removed unless it is taken into the store.
#[derive(Debug)]
pub(crate) struct Staged {
    pub(crate) record: Arc<LayerRecord>,
    place: Mutex<Staging>,
}

impl Staged {
    /// The tree, while it is in staging.
    pub(crate) fn tree(&self) -> Option<PathBuf> {
        self.place.lock().0.as_ref().map(|path| path.join("d"))
    }

    /// Moves it to its place in the store.
    pub(crate) fn take(&self, target: &Path) -> io::Result<()> {
        let mut place = self.place.lock();
        let Some(from) = &place.0 else { return Err(io::ErrorKind::NotFound.into()) };
        fs::rename(from, target)?;
        place.0 = None;
        Ok(())
    }
}

/// What is to become of a download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// A layer with this diff id: it is unpacked.
    Layer(Digest),
    /// A blob of an artifact: it stays as it is.
    Blob,
}

/// A verified download.
#[derive(Debug, Clone)]
pub(crate) enum Arrived {
    Layer(Arc<Staged>),
    Blob(Arc<Landing>),
}

/// A verified blob in staging, deleted unless it is taken: by a hard link, so several may take it.
#[derive(Debug)]
pub(crate) struct Landing(pub(crate) Staging);

/// How far a layer is, for everybody who waits for it.
#[derive(Debug, Clone)]
pub(crate) enum Phase {
    Running(LayerProgress),
    Done(Result<Arrived, Arc<LayerError>>),
}

/// A running or finished download. Dropping the last handle ends it.
pub(crate) struct Flight {
    phase: watch::Receiver<Phase>,
    claim: Arc<Claim>,
    /// Bytes that went by, downloaded or unpacked: it grows as long as something happens.
    moved: Arc<AtomicU64>,
    _cancel: DropGuard,
}

/// How far a flight is, for who watches over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sight {
    /// Not in a queue and not at its end.
    pub(crate) working: bool,
    /// Grows as long as something happens.
    pub(crate) moved: u64,
}

impl Flight {
    /// How far it is now.
    pub(crate) fn sight(&self) -> Sight {
        let working = match &*self.phase.borrow() {
            Phase::Running(LayerProgress::Waiting) | Phase::Done(_) => false,
            Phase::Running(_) => true,
        };
        Sight { working, moved: self.moved.load(Ordering::Relaxed) }
    }

    /// Waits for the end, telling each change.
    pub(crate) async fn landed(
        &self,
        digest: &Digest,
        mut each: impl FnMut(LayerProgress),
    ) -> Result<Arrived, Arc<LayerError>> {
        let mut phase = self.phase.clone();
        loop {
            let now = phase.borrow_and_update().clone();
            match now {
                Phase::Running(progress) => each(progress),
                Phase::Done(result) => return result,
            }
            // Cancel-safe: an unseen change stays marked as changed.
            if phase.changed().await.is_err() {
                return Err(Arc::new(LayerError::Abandoned(digest.clone())));
            }
        }
    }
}

/// All downloads of a store.
pub(crate) struct Flights {
    /// Layers at a time. Bounds imports, too.
    pub(crate) slots: Queue,
    /// By digest, and whether it stays as it is.
    active: Mutex<HashMap<(Digest, bool), Weak<Flight>>>,
}

impl Flights {
    /// Brings in at most `parallel` layers at a time, and `per_pull` for one pull.
    pub(crate) fn new(parallel: usize, per_pull: usize) -> Flights {
        Flights { slots: Queue::new(parallel, per_pull), active: Mutex::default() }
    }

    pub(crate) fn is_active(&self, digest: &Digest) -> bool {
        let active = self.active.lock();
        let flies =
            |blob| active.get(&(digest.clone(), blob)).is_some_and(|f: &Weak<_>| f.strong_count() > 0);
        flies(false) || flies(true)
    }
}

/// On whose behalf a layer is brought in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Errand {
    /// How urgent it is.
    pub(crate) priority: Priority,
    /// The pull.
    pub(crate) pull: u64,
}

/// Where a layer is to be had.
pub(crate) enum Source {
    /// In the store already.
    There,
    /// A download that somebody else started.
    Joined(Arc<Flight>),
    /// A download that this call started.
    Started(Arc<Flight>),
}

impl Store {
    /// Finds a layer in the store, joins its download, or starts one. Keep the flight until the layer is
    /// in the store: then nobody downloads it twice.
    pub(crate) fn fly(
        &self,
        session: &Session,
        layer: &Descriptor,
        content: &Content,
        errand: Errand,
    ) -> Source {
        let key = (layer.digest.clone(), *content == Content::Blob);
        let mut active = self.0.flights.active.lock();
        active.retain(|_, flight| flight.strong_count() > 0);
        if let Some(flight) = active.get(&key).and_then(Weak::upgrade) {
            flight.claim.raise(errand.priority, errand.pull);
            return Source::Joined(flight);
        }
        // Looked up after the flights: one that has just ended is in the store before it is forgotten.
        if let Content::Layer(diff_id) = content
            && self.0.state.lock().layers.contains_key(diff_id)
        {
            return Source::There;
        }
        let token = CancellationToken::new();
        let (sender, phase) = watch::channel(Phase::Running(LayerProgress::Waiting));
        let claim = Claim::sized(errand.priority, errand.pull, layer.size);
        let moved = Arc::new(AtomicU64::new(0));
        let flight = Arc::new(Flight {
            phase,
            claim: claim.clone(),
            moved: moved.clone(),
            _cancel: token.clone().drop_guard(),
        });
        active.insert(key.clone(), Arc::downgrade(&flight));
        drop(active);
        let (store, session) = (self.clone(), session.clone());
        let (layer, content) = (layer.clone(), content.clone());
        tokio::spawn(async move {
            let result = {
                let (store, session) = (&store, &session);
                let job = download::Job {
                    store,
                    session,
                    layer: &layer,
                    content: &content,
                    phase: &sender,
                    token: &token,
                    moved: &moved,
                    found: 0,
                };
                let work = async {
                    let _slot = store.0.flights.slots.acquire(claim).await;
                    download::bring_in(job).await
                };
                tokio::select! {
                    result = work => result,
                    // Cancel-safe: nobody waits for the result any more; what is on disk stays for later.
                    () = token.cancelled() => Err(LayerError::Abandoned(layer.digest.clone())),
                }
            };
            if result.is_err() && !token.is_cancelled() {
                // Whoever asks from now on gets a new try.
                store.0.flights.active.lock().remove(&key);
            }
            sender.send_replace(Phase::Done(result.map_err(Arc::new)));
        });
        Source::Started(flight)
    }
}
