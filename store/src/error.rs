//! What can go wrong in a store.
//!
//! Guarantees: a message names the step that failed and, where a reader can act, what to do.
//! Caveats: the causes of engine errors are boxed, so that no engine's types leak out.

use std::{path::PathBuf, sync::Arc};

/// An engine's own error.
pub type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// Why a store could not be opened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// Another process holds it.
    #[error("the store in {path} is in use by another process; stop that process, or choose another --root")]
    Locked {
        /// The store's directory.
        path: PathBuf,
    },
    /// It was written by a newer version.
    #[error(
        "the store in {path} has format {found:?}, this version knows {known:?}; run the version that wrote it"
    )]
    Format {
        /// The store's directory.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What we can read.
        known: &'static str,
    },
    /// The engine could not read or make it.
    #[error("open the store in {path}")]
    Engine {
        /// The store's directory.
        path: PathBuf,
        /// What the engine says.
        source: Cause,
    },
}

/// Why a request to a store failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The revision's history is gone.
    #[error("revision {requested} has been compacted; the oldest kept is {oldest}")]
    Compacted {
        /// What was asked for.
        requested: u64,
        /// The oldest revision that can be read.
        oldest: u64,
    },
    /// The revision has not happened.
    #[error("revision {requested} is in the future; the current one is {current}")]
    FutureRevision {
        /// What was asked for.
        requested: u64,
        /// The newest revision.
        current: u64,
    },
    /// A key that cannot be stored.
    #[error("key {key:?} cannot be used: {why}")]
    BadKey {
        /// The key, made printable.
        key: String,
        /// Which rule it breaks.
        why: &'static str,
    },
    /// The engine failed.
    #[error("{step}")]
    Engine {
        /// What was being done.
        step: &'static str,
        /// What the engine says.
        source: Cause,
    },
    /// The store is closed, or closing.
    #[error("the store is closed")]
    Closed,
}

/// Why a watch ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WatchError {
    /// The reader was too slow; it may watch again from its last revision, while that is kept.
    #[error("the watcher fell {capacity} changes behind and was dropped; watch again from revision {next}")]
    Lagged {
        /// How many changes it may be behind.
        capacity: usize,
        /// Where to go on without a gap.
        next: u64,
    },
    /// Reading history failed.
    #[error("read the history for a watch")]
    History {
        /// Why.
        source: Box<StoreError>,
    },
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}
