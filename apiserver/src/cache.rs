//! All objects, encoded, per kind of storage; and who watches them.
//!
//! Guarantees: a kind's objects, its recent changes and its watchers change together under one
//! lock. The cache's revision only ever says what every kind has already seen.
//! Assumes: one task feeds it, in revision order (`feed`).
//! Caveats: a watcher that does not keep up is cut off; clients watch again from where they were.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Bound,
    sync::Arc,
    time::Duration,
};

use api::{registry, status::Failure};
use parking_lot::RwLock;
use tokio::sync::{mpsc, watch};

use crate::entry::{Change, Entry};

/// How many changes of one kind are remembered for watches that start in the past.
const RING: usize = 1024;
/// How many bytes they may hold.
const RING_BYTES: usize = 1 << 20;
/// How many changes a watcher may be behind.
const BEHIND: usize = 2048;

/// The cache.
pub(crate) struct Cache {
    kinds: HashMap<&'static str, RwLock<Kind>>,
    revision: watch::Sender<u64>,
}

#[derive(Default)]
struct Kind {
    entries: BTreeMap<Arc<str>, Arc<Entry>>,
    /// The revision of the kind's last change.
    last: u64,
    ring: VecDeque<Arc<Change>>,
    ring_bytes: usize,
    /// Every change after this revision is in the ring.
    ring_after: u64,
    subscribers: Vec<Subscriber>,
}

struct Subscriber {
    prefix: String,
    send: mpsc::Sender<Arc<Change>>,
}

/// What a kind's collection looked like at a revision.
pub(crate) struct Snapshot {
    pub(crate) entries: Vec<Arc<Entry>>,
    pub(crate) revision: u64,
}

/// Changes from a known revision on.
pub(crate) struct Subscription {
    /// What has happened already.
    pub(crate) backlog: Vec<Arc<Change>>,
    /// What happens from now on. Ends when the watcher is too slow, or the cache was reloaded.
    pub(crate) live: mpsc::Receiver<Arc<Change>>,
}

impl Cache {
    pub(crate) fn new() -> Cache {
        let storages = registry::all().iter().filter(|r| r.stored()).map(|r| r.storage);
        Cache { kinds: storages.map(|s| (s, RwLock::default())).collect(), revision: watch::Sender::new(0) }
    }

    fn kind(&self, storage: &str) -> &RwLock<Kind> {
        self.kinds.get(storage).expect("every stored row has its kind")
    }

    /// Replaces everything, and cuts off all watchers: they cannot be told what happened between.
    pub(crate) fn reload(&self, revision: u64, entries: Vec<Arc<Entry>>) {
        let mut sorted: HashMap<&str, BTreeMap<Arc<str>, Arc<Entry>>> = HashMap::new();
        for entry in &entries {
            if let Some(storage) = crate::keys::storage_of(&entry.key) {
                sorted.entry(storage).or_default().insert(entry.key.clone(), entry.clone());
            }
        }
        for (storage, kind) in &self.kinds {
            let entries = sorted.remove(storage).unwrap_or_default();
            let last = entries.values().map(|e| e.revision).max().unwrap_or(0);
            *kind.write() = Kind { entries, last, ring_after: revision, ..Kind::default() };
        }
        self.advance(revision);
    }

    /// Applies the changes of one transaction.
    pub(crate) fn apply(&self, revision: u64, changes: Vec<(Arc<str>, Option<Arc<Entry>>)>) {
        for (storage, kind) in &self.kinds {
            let mine: Vec<_> =
                changes.iter().filter(|(key, _)| crate::keys::storage_of(key) == Some(storage)).collect();
            if !mine.is_empty() {
                let mut kind = kind.write();
                for (key, new) in mine {
                    kind.change(revision, key, new.clone());
                }
            }
        }
        self.advance(revision);
    }

    /// Notes that nothing else happened up to a revision.
    pub(crate) fn advance(&self, revision: u64) {
        self.revision.send_if_modified(|r| {
            let newer = revision > *r;
            *r = revision.max(*r);
            newer
        });
    }

    /// The revision that every kind has seen.
    pub(crate) fn revision(&self) -> u64 {
        *self.revision.borrow()
    }

    /// Waits until the cache has seen a revision; false if that takes longer than `limit`.
    pub(crate) async fn wait(&self, revision: u64, limit: Duration) -> bool {
        let mut seen = self.revision.subscribe();
        let reached = seen.wait_for(|r| *r >= revision);
        matches!(tokio::time::timeout(limit, reached).await, Ok(Ok(_)))
    }

    /// One object.
    pub(crate) fn get(&self, storage: &str, key: &str) -> Option<Arc<Entry>> {
        self.kind(storage).read().entries.get(key).cloned()
    }

    /// How many objects a kind has.
    pub(crate) fn count(&self, storage: &str) -> usize {
        self.kind(storage).read().entries.len()
    }

    /// The objects whose keys start with `prefix`.
    pub(crate) fn list(&self, storage: &str, prefix: &str) -> Snapshot {
        let seen = self.revision();
        let kind = self.kind(storage).read();
        Snapshot { entries: kind.range(prefix), revision: seen.max(kind.last) }
    }

    /// As [`Cache::list`], together with every change after it.
    pub(crate) fn list_and_subscribe(&self, storage: &str, prefix: &str) -> (Snapshot, Subscription) {
        let seen = self.revision();
        let mut kind = self.kind(storage).write();
        let snapshot = Snapshot { entries: kind.range(prefix), revision: seen.max(kind.last) };
        (snapshot, Subscription { backlog: Vec::new(), live: kind.subscribe(prefix) })
    }

    /// Every change after a revision; none if they are not all remembered.
    pub(crate) fn subscribe(&self, storage: &str, prefix: &str, after: u64) -> Option<Subscription> {
        let mut kind = self.kind(storage).write();
        if after < kind.ring_after {
            return None;
        }
        let newer = |c: &&Arc<Change>| c.revision > after && c.key.starts_with(prefix);
        let backlog = kind.ring.iter().filter(newer).cloned().collect();
        Some(Subscription { backlog, live: kind.subscribe(prefix) })
    }

    /// How many watchers there are.
    pub(crate) fn watchers(&self) -> usize {
        self.kinds.values().map(|k| k.read().subscribers.iter().filter(|s| !s.send.is_closed()).count()).sum()
    }
}

impl Kind {
    fn range(&self, prefix: &str) -> Vec<Arc<Entry>> {
        self.entries
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(_, entry)| entry.clone())
            .collect()
    }

    fn subscribe(&mut self, prefix: &str) -> mpsc::Receiver<Arc<Change>> {
        let (send, live) = mpsc::channel(BEHIND);
        self.subscribers.retain(|s| !s.send.is_closed());
        self.subscribers.push(Subscriber { prefix: prefix.to_owned(), send });
        live
    }

    fn change(&mut self, revision: u64, key: &Arc<str>, new: Option<Arc<Entry>>) {
        let old = match &new {
            Some(entry) => self.entries.insert(key.clone(), entry.clone()),
            None => self.entries.remove(key),
        };
        if new.is_none() && old.is_none() {
            return;
        }
        let change = Arc::new(Change::new(revision, key.clone(), new, old));
        self.last = revision;
        self.ring_bytes += weight(&change);
        self.ring.push_back(change.clone());
        while self.ring.len() > RING || self.ring_bytes > RING_BYTES && self.ring.len() > 16 {
            let Some(oldest) = self.ring.pop_front() else { break };
            self.ring_bytes -= weight(&oldest);
            self.ring_after = oldest.revision;
        }
        // A full or closed channel ends here: dropping the sender ends the watch.
        self.subscribers
            .retain(|s| !change.key.starts_with(&s.prefix) || s.send.try_send(change.clone()).is_ok());
    }
}

/// The bytes that only the ring keeps alive.
fn weight(change: &Change) -> usize {
    change.old.as_ref().map_or(0, |e| e.json.len()) + 200
}

/// The answer for a revision that never came.
pub(crate) fn too_new(asked: u64, current: u64) -> Failure {
    Failure::too_large_resource_version(asked, current)
}
