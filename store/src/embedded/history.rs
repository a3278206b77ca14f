//! Reads: from the tables, at the current revision or an older one.
//!
//! Guarantees: an answer is true for exactly the revision it names. The current state is found by
//! the index and a snapshot taken under the same lock; older ones by scanning versions.
//! Assumes: called on a thread that may block.

use std::{collections::BTreeMap, ops::Bound};

use bytes::Bytes;
use fjall::{Readable, Snapshot};

use super::{
    META_COMPACTED, Shared, Tables,
    codec::{self, Record},
    engine,
    state::{Live, State},
};
use crate::{Batch, Event, Got, KeyValue, Range, Ranged, StoreError};

/// An empty store is at revision 1, so that 0 can mean "none" to those who count.
const FIRST: u64 = 1;

/// Reads the index and the revisions from the tables.
pub(crate) fn load(tables: &Tables) -> fjall::Result<State> {
    let mut index = BTreeMap::new();
    for entry in tables.kv.iter() {
        let (raw_key, raw) = entry.into_inner()?;
        let Some((key, mod_revision)) = codec::split_kv_key(&raw_key) else { continue };
        // Later versions of a key come later, so the last one stays.
        match codec::decode_record(&raw) {
            Some(Record::Put { create_revision, version, .. }) => {
                index.insert(Bytes::copy_from_slice(key), Live { create_revision, mod_revision, version });
            }
            Some(Record::Tombstone) => {
                index.remove(key);
            }
            None => return Err(fjall::Error::Unrecoverable),
        }
    }
    let compacted = match tables.meta.get(META_COMPACTED)? {
        Some(raw) => codec::number(&raw).ok_or(fjall::Error::Unrecoverable)?,
        None => 0,
    };
    let last = match tables.log.last_key_value() {
        Some(entry) => codec::split_log_key(&entry.key()?).map_or(0, |(revision, _)| revision),
        None => 0,
    };
    Ok(State::new(index, last.max(compacted).max(FIRST), compacted))
}

/// See [`crate::Store::get`].
pub(crate) fn get(shared: &Shared, key: &Bytes, revision: Option<u64>) -> Result<Got, StoreError> {
    let (found, now, snapshot) = {
        let state = shared.state.read();
        check(&state, revision)?;
        (state.index().get(key).copied(), state.revision(), shared.tables.db.snapshot())
    };
    let at = revision.unwrap_or(now);
    let kv = match found {
        Some(live) if live.mod_revision <= at => Some(read_live(&shared.tables, &snapshot, key, live)?),
        _ if at == now => None,
        _ => version_at(&shared.tables, &snapshot, key, at)?,
    };
    Ok(Got { kv, revision: at })
}

/// See [`crate::Store::range`].
pub(crate) fn range(shared: &Shared, range: &Range) -> Result<Ranged, StoreError> {
    let limit = range.limit.unwrap_or(usize::MAX);
    let start = match &range.start {
        Some(start) if start > &range.prefix => start.clone(),
        _ => range.prefix.clone(),
    };
    let end = codec::prefix_end(&range.prefix).map_or(Bound::Unbounded, |e| Bound::Excluded(Bytes::from(e)));
    if matches!(&end, Bound::Excluded(end) if start >= *end) {
        let revision = shared.state.read().revision();
        return Ok(Ranged { kvs: Vec::new(), remaining: 0, revision: range.revision.unwrap_or(revision) });
    }
    let (chosen, total, now, snapshot) = {
        let state = shared.state.read();
        check(&state, range.revision)?;
        let now = state.revision();
        let old = range.revision.is_some_and(|r| r < now);
        let mut chosen = Vec::new();
        let mut total = 0;
        if !old {
            for (key, live) in state.index().range((Bound::Included(start.clone()), end.clone())) {
                total += 1;
                if chosen.len() < limit {
                    chosen.push((key.clone(), *live));
                }
            }
        }
        (chosen, total, now, shared.tables.db.snapshot())
    };
    let at = range.revision.unwrap_or(now);
    if at < now {
        return range_at(shared, &snapshot, (start, end), limit, at);
    }
    let kvs: Vec<KeyValue> = chosen
        .into_iter()
        .map(|(key, live)| read_live(&shared.tables, &snapshot, &key, live))
        .collect::<Result<_, _>>()?;
    Ok(Ranged { remaining: total - kvs.len(), kvs, revision: at })
}

/// Calls `send` with every batch of `from..=until` that touches `prefix`, until it says stop.
pub(crate) fn replay(
    tables: &Tables,
    snapshot: &Snapshot,
    prefix: &[u8],
    from: u64,
    until: u64,
    mut send: impl FnMut(Batch) -> bool,
) -> Result<(), StoreError> {
    let mut batch = Batch { revision: 0, events: Vec::new() };
    for entry in snapshot.range(&tables.log, from.to_be_bytes().to_vec()..) {
        let raw = entry.key().map_err(|e| engine("read the log", e))?;
        let Some((revision, key)) = codec::split_log_key(&raw) else { continue };
        if revision > until {
            break;
        }
        if !key.starts_with(prefix) {
            continue;
        }
        if revision != batch.revision {
            let done = std::mem::replace(&mut batch, Batch { revision, events: Vec::new() });
            if !done.events.is_empty() && !send(done) {
                return Ok(());
            }
        }
        let key = Bytes::copy_from_slice(key);
        let kv = version_at(tables, snapshot, &key, revision)?;
        let prev = version_at(tables, snapshot, &key, revision - 1)?;
        batch.events.push(Event { key, kv, prev });
    }
    if !batch.events.is_empty() {
        send(batch);
    }
    Ok(())
}

/// The state of `key` as of `revision`.
pub(crate) fn version_at(
    tables: &Tables,
    snapshot: &Snapshot,
    key: &Bytes,
    revision: u64,
) -> Result<Option<KeyValue>, StoreError> {
    let versions = codec::kv_key(key, 0)..=codec::kv_key(key, revision);
    let Some(entry) = snapshot.range(&tables.kv, versions).next_back() else { return Ok(None) };
    let (raw_key, raw) = entry.into_inner().map_err(|e| engine("read a version", e))?;
    let (_, mod_revision) = codec::split_kv_key(&raw_key).ok_or_else(damaged)?;
    Ok(codec::decode_record(&raw).ok_or_else(damaged)?.into_kv(key.clone(), mod_revision))
}

pub(crate) fn read_live(
    tables: &Tables,
    snapshot: &Snapshot,
    key: &Bytes,
    live: Live,
) -> Result<KeyValue, StoreError> {
    let raw = snapshot
        .get(&tables.kv, codec::kv_key(key, live.mod_revision))
        .map_err(|e| engine("read a value", e))?
        .ok_or_else(damaged)?;
    let record = codec::decode_record(&raw).ok_or_else(damaged)?;
    record.into_kv(key.clone(), live.mod_revision).ok_or_else(damaged)
}

fn range_at(
    shared: &Shared,
    snapshot: &Snapshot,
    (start, end): (Bytes, Bound<Bytes>),
    limit: usize,
    at: u64,
) -> Result<Ranged, StoreError> {
    let end = match end {
        Bound::Excluded(end) => Bound::Excluded(end.to_vec()),
        _ => Bound::Unbounded,
    };
    let mut found: Vec<KeyValue> = Vec::new();
    let mut remaining = 0;
    let mut latest: Option<KeyValue> = None;
    let mut keep = |kv: KeyValue| if found.len() < limit { found.push(kv) } else { remaining += 1 };
    for entry in snapshot.range(&shared.tables.kv, (Bound::Included(start.to_vec()), end)) {
        let (raw_key, raw) = entry.into_inner().map_err(|e| engine("read old versions", e))?;
        let (key, revision) = codec::split_kv_key(&raw_key).ok_or_else(damaged)?;
        if latest.as_ref().is_some_and(|l| l.key != key)
            && let Some(kv) = latest.take()
        {
            keep(kv);
        }
        if revision <= at {
            let record = codec::decode_record(&raw).ok_or_else(damaged)?;
            latest = record.into_kv(Bytes::copy_from_slice(key), revision);
        }
    }
    if let Some(kv) = latest.take() {
        keep(kv);
    }
    Ok(Ranged { kvs: found, remaining, revision: at })
}

fn check(state: &State, revision: Option<u64>) -> Result<(), StoreError> {
    match revision {
        Some(requested) if requested > state.revision() => {
            Err(StoreError::FutureRevision { requested, current: state.revision() })
        }
        Some(requested) if requested < state.compacted() => {
            Err(StoreError::Compacted { requested, oldest: state.compacted() })
        }
        _ => Ok(()),
    }
}

fn damaged() -> StoreError {
    engine("decode a record", std::io::Error::new(std::io::ErrorKind::InvalidData, "the record is damaged"))
}
