//! Forgets old history.
//!
//! Guarantees: the state at the compacted revision and at every later one stays readable. The
//! mark is made before anything is removed, so a crash in between only leaves rubbish that the
//! next compaction never looks at twice and no reader ever sees.
//! Assumes: only the writer's thread compacts.

use std::{
    collections::{BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use fjall::PersistMode;

use super::{META_COMPACTED, Shared, codec, engine};
use crate::StoreError;

const CHUNK: usize = 1024;

/// How much history is kept: what happened within `age` and the last `revisions`, whichever is
/// more, but never more than `at_most` revisions.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    /// Keep what is younger than this.
    pub age: Duration,
    /// Keep at least so many revisions.
    pub revisions: u64,
    /// Keep no more revisions than this, however young.
    pub at_most: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Retention { age: Duration::from_secs(300), revisions: 1_000, at_most: 100_000 }
    }
}

/// Remembers when which revision was current.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    marks: VecDeque<(Instant, u64)>,
}

impl Clock {
    /// Notes the current revision.
    pub(crate) fn mark(&mut self, now: Instant, revision: u64) {
        if self.marks.back().is_none_or(|(at, _)| now.duration_since(*at) >= super::TICK / 2) {
            self.marks.push_back((now, revision));
        }
    }

    /// Decides up to where to compact, if at all.
    pub(crate) fn target(
        &mut self,
        now: Instant,
        current: u64,
        compacted: u64,
        keep: &Retention,
    ) -> Option<u64> {
        let mut aged = 0;
        while let Some((at, revision)) = self.marks.front()
            && now.duration_since(*at) >= keep.age
        {
            aged = *revision;
            self.marks.pop_front();
        }
        let by_age = aged.min(current.saturating_sub(keep.revisions));
        let target = by_age.max(current.saturating_sub(keep.at_most));
        // Not for a handful: each compaction costs a scan.
        (target > compacted + keep.revisions / 4).then_some(target)
    }
}

/// Compacts; see [`crate::Store::compact`].
pub(crate) fn compact(shared: &Shared, revision: u64) -> Result<(), StoreError> {
    let from = {
        let mut state = shared.state.write();
        if revision > state.revision() {
            return Err(StoreError::FutureRevision { requested: revision, current: state.revision() });
        }
        if revision <= state.compacted() {
            return Ok(());
        }
        state.set_compacted(revision);
        state.compacted()
    };
    let tables = &shared.tables;
    let fail = |e| engine("compact", e);
    let mut mark = tables.db.batch().durability(Some(PersistMode::SyncData));
    mark.insert(&tables.meta, META_COMPACTED, from.to_be_bytes().to_vec());
    mark.commit().map_err(fail)?;
    loop {
        let mut batch = tables.db.batch();
        let mut keys = BTreeSet::new();
        let mut seen = 0;
        for entry in tables.log.range(..(revision + 1).to_be_bytes().to_vec()).take(CHUNK) {
            let raw = entry.key().map_err(fail)?;
            if let Some((_, key)) = codec::split_log_key(&raw) {
                keys.insert(key.to_vec());
            }
            batch.remove(&tables.log, raw);
            seen += 1;
        }
        for key in keys {
            let versions = codec::kv_key(&key, 0)..=codec::kv_key(&key, revision);
            let mut last = None;
            for entry in tables.kv.range(versions) {
                let (raw_key, raw) = entry.into_inner().map_err(fail)?;
                if let Some((older, _)) = last.replace((raw_key, codec::decode_record(&raw))) {
                    batch.remove(&tables.kv, older);
                }
            }
            if let Some((raw_key, Some(codec::Record::Tombstone))) = last {
                batch.remove(&tables.kv, raw_key);
            }
        }
        batch.commit().map_err(fail)?;
        if seen < CHUNK {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Retention = Retention { age: Duration::from_secs(300), revisions: 100, at_most: 10_000 };

    fn check(marks: &[(u64, u64)], now: u64, current: u64, compacted: u64) -> Option<u64> {
        let start = Instant::now();
        let mut clock = Clock::default();
        for (at, revision) in marks {
            clock.mark(start + Duration::from_secs(*at), *revision);
        }
        clock.target(start + Duration::from_secs(now), current, compacted, &KEEP)
    }

    #[test]
    fn young_history_stays() {
        assert_eq!(check(&[(0, 500), (60, 900)], 200, 1000, 1), None);
    }

    #[test]
    fn old_history_goes_but_some_revisions_stay() {
        assert_eq!(check(&[(0, 500), (60, 900)], 330, 1000, 1), Some(500));
        assert_eq!(check(&[(0, 500), (60, 990)], 400, 1000, 1), Some(900));
    }

    #[test]
    fn a_flood_is_cut_however_young() {
        assert_eq!(check(&[(0, 1)], 1, 50_000, 1), Some(40_000));
    }

    #[test]
    fn not_for_a_handful() {
        assert_eq!(check(&[(0, 500)], 400, 1000, 490), None);
    }
}
