//! Revisioned keys and values: what the apiserver keeps its objects in.
//!
//! Guarantees: every committed transaction gets a revision of its own, greater than all before
//! it; a write is acknowledged only once it is durable; reads and watches see only durable
//! writes; a watch that starts at a revision sees each later change exactly once and in order.
//! Assumes: keys are non-empty and hold no zero byte; only one process opens an embedded store.
//! Caveats: history is kept for a while only. Older revisions answer [`StoreError::Compacted`].
//!
//! The store knows bytes, not pods. Two engines fit behind [`Store`]: the embedded one
//! ([`open_embedded`]) and, later, etcd.
#![forbid(unsafe_code)]

mod embedded;
mod error;

pub use embedded::{Embedded, Options, Retention, open_embedded, open_embedded_with};
pub use error::{OpenError, StoreError, WatchError};

use std::{pin::Pin, sync::Arc};

use bytes::Bytes;
use futures::Stream;

/// A shared handle to any engine.
pub type DynStore = Arc<dyn Store>;

/// A key with its value, as of one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// The value written by the transaction `mod_revision`.
    pub value: Bytes,
    /// Revision of the transaction that created the key (after its last deletion).
    pub create_revision: u64,
    /// Revision of the transaction that last wrote the key.
    pub mod_revision: u64,
    /// Number of writes since creation; the creation counts as one.
    pub version: u64,
}

/// The answer to [`Store::get`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Got {
    /// The key's state, or nothing if it did not exist at `revision`.
    pub kv: Option<KeyValue>,
    /// The revision the answer is true for.
    pub revision: u64,
}

/// What [`Store::range`] should return.
#[derive(Debug, Clone, Default)]
pub struct Range {
    /// Only keys that start with this. Empty means all keys.
    pub prefix: Bytes,
    /// Only keys greater than or equal to this, if given.
    pub start: Option<Bytes>,
    /// At most so many keys; none means no limit.
    pub limit: Option<usize>,
    /// As of this revision; none means the current one.
    pub revision: Option<u64>,
}

/// The answer to [`Store::range`], in key order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranged {
    /// The keys found.
    pub kvs: Vec<KeyValue>,
    /// How many keys follow that the limit cut off.
    pub remaining: usize,
    /// The revision the answer is true for.
    pub revision: u64,
}

/// What must hold for a transaction to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// The key does not exist.
    Absent,
    /// The key exists.
    Exists,
    /// The key exists and was last written at this revision.
    ModRevision(u64),
}

/// One condition of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// The key that is looked at.
    pub key: Bytes,
    /// What must hold for it.
    pub condition: Condition,
}

/// One change of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Sets the key.
    Put {
        /// The key.
        key: Bytes,
        /// Its new value.
        value: Bytes,
    },
    /// Removes the key; nothing happens if it does not exist.
    Delete {
        /// The key.
        key: Bytes,
    },
}

impl Op {
    /// The key that this changes.
    pub fn key(&self) -> &Bytes {
        match self {
            Op::Put { key, .. } | Op::Delete { key } => key,
        }
    }
}

/// Changes that happen all together, if every condition holds. A key may be changed only once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold.
    pub compares: Vec<Compare>,
    /// Done in one step, under one revision.
    pub ops: Vec<Op>,
}

impl Txn {
    /// A transaction that creates `key`, if it does not exist.
    pub fn create(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Txn {
        Txn::default().and_create(key, value)
    }

    /// A transaction that replaces `key`, if it was last written at `mod_revision`.
    pub fn update(key: impl Into<Bytes>, mod_revision: u64, value: impl Into<Bytes>) -> Txn {
        let key = key.into();
        Txn {
            compares: vec![Compare { key: key.clone(), condition: Condition::ModRevision(mod_revision) }],
            ops: vec![Op::Put { key, value: value.into() }],
        }
    }

    /// A transaction that deletes `key`, if it was last written at `mod_revision`.
    pub fn delete(key: impl Into<Bytes>, mod_revision: u64) -> Txn {
        let key = key.into();
        Txn {
            compares: vec![Compare { key: key.clone(), condition: Condition::ModRevision(mod_revision) }],
            ops: vec![Op::Delete { key }],
        }
    }

    /// This transaction, which also creates `key` and needs it to be absent.
    pub fn and_create(mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Txn {
        let key = key.into();
        self.compares.push(Compare { key: key.clone(), condition: Condition::Absent });
        self.ops.push(Op::Put { key, value: value.into() });
        self
    }

    /// This transaction, with one more condition.
    pub fn and_if(mut self, key: impl Into<Bytes>, condition: Condition) -> Txn {
        self.compares.push(Compare { key: key.into(), condition });
        self
    }
}

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TxnOutcome {
    /// It happened, durably.
    Committed {
        /// Its revision. A transaction that changed nothing reports the current revision.
        revision: u64,
    },
    /// A condition did not hold; nothing was changed.
    Conflict {
        /// The key of the first condition that did not hold.
        key: Bytes,
        /// That key's state at the time.
        current: Option<KeyValue>,
    },
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The key.
    pub key: Bytes,
    /// The state after the change; nothing if it was deleted.
    pub kv: Option<KeyValue>,
    /// The state before the change, if the key existed and that state has not been compacted.
    pub prev: Option<KeyValue>,
}

/// The changes of one transaction, as far as a watch asked for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The transaction's revision.
    pub revision: u64,
    /// Its changes. Never empty.
    pub events: Vec<Event>,
}

/// Changes in order. Ends after the first error.
pub type WatchStream = Pin<Box<dyn Stream<Item = Result<Batch, WatchError>> + Send>>;

/// A revisioned key-value store.
#[async_trait::async_trait]
pub trait Store: Send + Sync + 'static {
    /// Reads one key, now or as of `revision`.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] or [`StoreError::FutureRevision`] for a revision that is not kept
    /// any more or not there yet; [`StoreError::Engine`] when the disk fails.
    async fn get(&self, key: &[u8], revision: Option<u64>) -> Result<Got, StoreError>;

    /// Reads the keys with a prefix, in order.
    ///
    /// # Errors
    /// As [`Store::get`].
    async fn range(&self, range: Range) -> Result<Ranged, StoreError>;

    /// Commits a transaction, if its conditions hold; returns once it is durable.
    ///
    /// # Errors
    /// [`StoreError::BadKey`] for a key that is empty, holds a zero byte or is changed twice;
    /// [`StoreError::Engine`] when the disk fails: then it is not known whether it happened.
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError>;

    /// Streams every change with revision `from` or later of keys that start with `prefix`.
    /// `from` may be one past the current revision ("from now on") or further ahead.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when changes since `from` are not all kept any more.
    async fn watch(&self, prefix: &[u8], from: u64) -> Result<WatchStream, StoreError>;

    /// Forgets all history before `revision`: reads as of older revisions fail from now on.
    ///
    /// # Errors
    /// [`StoreError::FutureRevision`] when it is not there yet; [`StoreError::Engine`].
    async fn compact(&self, revision: u64) -> Result<(), StoreError>;

    /// The revision of the last committed transaction.
    ///
    /// # Errors
    /// [`StoreError::Engine`] when the engine cannot be asked.
    async fn current_revision(&self) -> Result<u64, StoreError>;
}
