//! What is in memory: the index of live keys, the revisions, the watchers.
//!
//! Guarantees: all of it changes in one step under one lock, after the change is durable; so a
//! watcher registered under the lock knows exactly which revisions it will be sent.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::watch::Watcher;
use crate::Batch;

/// What is known of a live key without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) create_revision: u64,
    pub(crate) mod_revision: u64,
    pub(crate) version: u64,
}

#[derive(Default)]
pub(crate) struct State {
    index: BTreeMap<Bytes, Live>,
    revision: u64,
    compacted: u64,
    watchers: Vec<Watcher>,
    closed: bool,
}

impl State {
    pub(crate) fn new(index: BTreeMap<Bytes, Live>, revision: u64, compacted: u64) -> State {
        State { index, revision, compacted, watchers: Vec::new(), closed: false }
    }

    pub(crate) fn index(&self) -> &BTreeMap<Bytes, Live> {
        &self.index
    }

    /// The last durable revision.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// The oldest revision that can be read.
    pub(crate) fn compacted(&self) -> u64 {
        self.compacted
    }

    pub(crate) fn set_compacted(&mut self, revision: u64) {
        self.compacted = self.compacted.max(revision);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Makes durable changes visible, and hands them to the watchers.
    pub(crate) fn publish(&mut self, changes: Vec<(Bytes, Option<Live>)>, batches: &[Batch]) {
        for (key, live) in changes {
            match live {
                Some(live) => self.index.insert(key, live),
                None => self.index.remove(&key),
            };
        }
        if let Some(last) = batches.last() {
            self.revision = last.revision;
        }
        self.watchers.retain_mut(|watcher| watcher.offer(batches));
    }

    pub(crate) fn register(&mut self, watcher: Watcher) {
        self.watchers.push(watcher);
    }

    /// Ends all watches.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.watchers.clear();
    }
}
