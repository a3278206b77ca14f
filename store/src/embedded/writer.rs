//! The one thread that writes: group commit.
//!
//! Guarantees: transactions are decided one after the other, each seeing those before it; all
//! that wait share one fsync; nothing is acknowledged or visible before that fsync.
//! Assumes: callers bound how many requests wait; the queue itself does not.
//! Caveats: after a failed write the engine refuses all further ones: nobody knows any more what
//! the disk holds. The process must be restarted, and reads the truth then.

use std::{
    collections::HashMap,
    sync::{Arc, mpsc},
    time::Instant,
};

use bytes::Bytes;
use fjall::PersistMode;
use tokio::sync::oneshot;

use super::{
    Shared, TICK,
    codec::{self, Record},
    compaction::{self, Clock},
    engine, history,
    state::Live,
};
use crate::{Batch, Condition, Event, KeyValue, Op, StoreError, Txn, TxnOutcome};

const MAX_BATCH: usize = 512;
const MAX_BATCH_BYTES: usize = 8 << 20;

/// What the writer is asked.
pub(crate) enum Request {
    Txn { txn: Txn, reply: oneshot::Sender<Result<TxnOutcome, StoreError>> },
    Compact { revision: u64, reply: oneshot::Sender<Result<(), StoreError>> },
}

/// Starts the writer; it ends when the last sender is gone.
pub(crate) fn spawn(
    shared: Arc<Shared>,
    inbox: mpsc::Receiver<Request>,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name("store-writer".to_owned()).spawn(move || {
        let mut marks = Clock::default();
        loop {
            // A plain channel: waiting on an async timer here cost a millisecond per lone commit.
            match inbox.recv_timeout(TICK) {
                Ok(first) => serve(&shared, &inbox, first),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
            tidy(&shared, &mut marks);
        }
    })
}

fn tidy(shared: &Shared, marks: &mut Clock) {
    let now = Instant::now();
    let (current, compacted) = {
        let state = shared.state.read();
        (state.revision(), state.compacted())
    };
    marks.mark(now, current);
    if let Some(target) = marks.target(now, current, compacted, &shared.options.retention) {
        match compaction::compact(shared, target) {
            Ok(()) => tracing::debug!(revision = target, "compacted the store"),
            Err(err) => tracing::warn!(revision = target, error = ?err, "compaction failed"),
        }
    }
}

fn serve(shared: &Shared, inbox: &mpsc::Receiver<Request>, first: Request) {
    let mut waiting = Vec::new();
    let mut bytes = 0;
    let mut next = Some(first);
    while let Some(request) = next.take() {
        match request {
            Request::Txn { txn, reply } => {
                bytes += size(&txn);
                waiting.push((txn, reply));
            }
            Request::Compact { revision, reply } => {
                commit(shared, std::mem::take(&mut waiting));
                bytes = 0;
                let _ = reply.send(compaction::compact(shared, revision));
            }
        }
        if waiting.len() < MAX_BATCH && bytes < MAX_BATCH_BYTES {
            next = inbox.try_recv().ok();
        }
    }
    commit(shared, waiting);
}

fn size(txn: &Txn) -> usize {
    txn.ops.iter().map(|op| if let Op::Put { value, .. } = op { value.len() } else { 0 }).sum()
}

type Waiting = (Txn, oneshot::Sender<Result<TxnOutcome, StoreError>>);

/// Decides and commits many transactions with one fsync.
fn commit(shared: &Shared, waiting: Vec<Waiting>) {
    if waiting.is_empty() {
        return;
    }
    let mut group = Group::new(shared);
    let decided: Vec<_> = waiting.into_iter().map(|(txn, reply)| (group.decide(txn), reply)).collect();
    let written = group.write();
    for (outcome, reply) in decided {
        let outcome = match &written {
            Ok(()) => outcome,
            Err(err) => Err(err.clone()),
        };
        // Whoever gave up waiting does not want to know.
        let _ = reply.send(outcome);
    }
}

/// The transactions of one fsync.
struct Group<'a> {
    shared: &'a Shared,
    snapshot: fjall::Snapshot,
    revision: u64,
    /// What this group changed, and what it read before: the state each next one sees.
    overlay: HashMap<Bytes, Option<KeyValue>>,
    batches: Vec<Batch>,
}

impl<'a> Group<'a> {
    fn new(shared: &'a Shared) -> Self {
        let revision = shared.state.read().revision();
        let snapshot = shared.tables.db.snapshot();
        Group { shared, snapshot, revision, overlay: HashMap::new(), batches: Vec::new() }
    }

    fn current(&mut self, key: &Bytes) -> Result<Option<KeyValue>, StoreError> {
        if let Some(known) = self.overlay.get(key) {
            return Ok(known.clone());
        }
        let live = self.shared.state.read().index().get(key).copied();
        let kv = match live {
            Some(live) => Some(history::read_live(&self.shared.tables, &self.snapshot, key, live)?),
            None => None,
        };
        self.overlay.insert(key.clone(), kv.clone());
        Ok(kv)
    }

    fn decide(&mut self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        for compare in txn.compares {
            let current = self.current(&compare.key)?;
            let holds = match (compare.condition, &current) {
                (Condition::Absent, None) | (Condition::Exists, Some(_)) => true,
                (Condition::ModRevision(wanted), Some(kv)) => kv.mod_revision == wanted,
                _ => false,
            };
            if !holds {
                return Ok(TxnOutcome::Conflict { key: compare.key, current });
            }
        }
        let revision = self.revision + 1;
        let mut events = Vec::with_capacity(txn.ops.len());
        for op in txn.ops {
            let prev = self.current(op.key())?;
            let (key, kv) = match op {
                Op::Delete { key } if prev.is_none() => {
                    tracing::trace!(?key, "delete of an absent key");
                    continue;
                }
                Op::Delete { key } => (key, None),
                Op::Put { key, value } => {
                    let (create_revision, version) =
                        prev.as_ref().map_or((revision, 1), |p| (p.create_revision, p.version + 1));
                    let kv = KeyValue {
                        key: key.clone(),
                        value,
                        create_revision,
                        mod_revision: revision,
                        version,
                    };
                    (key, Some(kv))
                }
            };
            events.push(Event { key, kv, prev });
        }
        if events.is_empty() {
            return Ok(TxnOutcome::Committed { revision: self.revision });
        }
        for event in &events {
            self.overlay.insert(event.key.clone(), event.kv.clone());
        }
        self.revision = revision;
        self.batches.push(Batch { revision, events });
        Ok(TxnOutcome::Committed { revision })
    }

    fn write(self) -> Result<(), StoreError> {
        if self.batches.is_empty() {
            return Ok(());
        }
        let tables = &self.shared.tables;
        let mut batch = tables.db.batch().durability(Some(PersistMode::SyncData));
        let mut changes = Vec::new();
        for Batch { revision, events } in &self.batches {
            for event in events {
                let (record, live) = match &event.kv {
                    None => (Record::Tombstone, None),
                    Some(kv) => {
                        let (create_revision, version) = (kv.create_revision, kv.version);
                        let record = Record::Put { create_revision, version, value: kv.value.clone() };
                        (record, Some(Live { create_revision, mod_revision: *revision, version }))
                    }
                };
                let raw = codec::encode_record(&record);
                batch.insert(&tables.kv, codec::kv_key(&event.key, *revision), raw);
                batch.insert(&tables.log, codec::log_key(*revision, &event.key), Vec::new());
                changes.push((event.key.clone(), live));
            }
        }
        batch.commit().map_err(|e| engine("commit", e))?;
        self.shared.state.write().publish(changes, &self.batches);
        Ok(())
    }
}
