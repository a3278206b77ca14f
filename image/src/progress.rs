//! What happens during a pull or an import, for progress bars and the CRI.

use std::fmt;
use std::sync::Arc;

use crate::digest::Digest;

/// One step of a pull or an import. Sizes are in bytes and compressed, as on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Waiting for its turn: other pulls are at it.
    Queued,
    /// Asking the registry, or reading the archive's index.
    Resolving {
        /// The reference or the archive.
        what: String,
    },
    /// The manifest is known: what follows will download at most `bytes`.
    Resolved {
        /// Digest of the platform's manifest.
        manifest: Digest,
        /// The layers, lowest first, with their sizes.
        layers: Vec<(Digest, u64)>,
        /// Sum of the layers' sizes.
        bytes: u64,
    },
    /// Something changed for one layer.
    Layer {
        /// Digest of the compressed layer.
        digest: Digest,
        /// How far it is.
        state: LayerProgress,
    },
    /// Verifying what is stored: the next blob or layer.
    Verifying {
        /// Which.
        digest: Digest,
        /// How many were done.
        done: usize,
        /// How many there are.
        total: usize,
    },
    /// All layers are there; they are being made durable.
    Committing,
    /// The image is usable.
    Done {
        /// The image's id.
        id: Digest,
    },
}

/// How far one layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerProgress {
    /// Waits for a free download slot.
    Waiting,
    /// The store has it already.
    Exists,
    /// Being downloaded, and unpacked meanwhile.
    Downloading {
        /// Bytes so far, those of an earlier, interrupted download included.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// Downloaded; the rest of it is being unpacked.
    Unpacking,
    /// Unpacked and verified.
    Done,
}

/// Where events go. Called often and from several threads: it must return quickly.
#[derive(Clone)]
pub struct Progress(Arc<dyn Fn(Event) + Send + Sync>);

impl Progress {
    /// Makes a progress sink of a function.
    pub fn new(sink: impl Fn(Event) + Send + Sync + 'static) -> Progress {
        Progress(Arc::new(sink))
    }

    /// Drops all events.
    pub(crate) fn none() -> Progress {
        Progress::new(|_| ())
    }

    pub(crate) fn send(&self, event: Event) {
        (self.0)(event);
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Progress")
    }
}
