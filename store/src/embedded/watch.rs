//! Watches: history first, then what is committed from now on.
//!
//! Guarantees: no gap and no double, because the point where history ends and live changes begin
//! is taken under the state's lock. A watcher that does not keep up is dropped, and told where to
//! go on; it never slows the writer down.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Item, Shared, history};
use crate::{Batch, StoreError, WatchError, WatchStream};

/// The sending side of one watch.
pub(crate) struct Watcher {
    prefix: Bytes,
    from: u64,
    send: mpsc::Sender<Item>,
    /// The first revision that did not fit any more; zero while all is well.
    lagged_at: Arc<AtomicU64>,
}

impl Watcher {
    /// Sends what the watcher asked for; false once it is to be forgotten.
    pub(crate) fn offer(&mut self, batches: &[Batch]) -> bool {
        for batch in batches {
            if batch.revision < self.from {
                continue;
            }
            let Some(batch) = filter(batch, &self.prefix) else { continue };
            let revision = batch.revision;
            match self.send.try_send(Ok(batch)) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Closed(_)) => return false,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    self.lagged_at.store(revision, Ordering::Release);
                    return false;
                }
            }
        }
        !self.send.is_closed()
    }
}

/// The part of a batch that concerns keys with `prefix`.
fn filter(batch: &Batch, prefix: &[u8]) -> Option<Batch> {
    let events: Vec<_> = batch.events.iter().filter(|e| e.key.starts_with(prefix)).cloned().collect();
    (!events.is_empty()).then_some(Batch { revision: batch.revision, events })
}

/// Starts a watch; see [`crate::Store::watch`].
pub(crate) fn start(shared: &Arc<Shared>, prefix: Bytes, from: u64) -> Result<WatchStream, StoreError> {
    let capacity = shared.options.watch_capacity;
    let from = from.max(1);
    let (send, live) = mpsc::channel(capacity);
    let lagged_at = Arc::new(AtomicU64::new(0));
    let (until, snapshot) = {
        let mut state = shared.state.write();
        if state.is_closed() {
            return Err(StoreError::Closed);
        }
        if from <= state.compacted() {
            return Err(StoreError::Compacted { requested: from, oldest: state.compacted() });
        }
        let until = state.revision();
        state.register(Watcher { prefix: prefix.clone(), from, send, lagged_at: lagged_at.clone() });
        // The snapshot keeps the history readable, even if it is compacted meanwhile.
        (until, shared.tables.db.snapshot())
    };
    let end = stream::once(async move {
        match lagged_at.load(Ordering::Acquire) {
            0 => Err(WatchError::Closed),
            next => Err(WatchError::Lagged { capacity, next }),
        }
    });
    let live = ReceiverStream::new(live).chain(end);
    if from > until {
        return Ok(Box::pin(live));
    }
    let (send, past) = mpsc::channel(64);
    let reader = shared.clone();
    tokio::task::spawn_blocking(move || {
        let sent = history::replay(&reader.tables, &snapshot, &prefix, from, until, |batch| {
            send.blocking_send(Ok(batch)).is_ok()
        });
        if let Err(source) = sent {
            let _ = send.blocking_send(Err(WatchError::History { source: Box::new(source) }));
        }
    });
    let mut failed = false;
    let all = ReceiverStream::new(past).chain(live).take_while(move |item| {
        let go_on = !failed;
        failed |= item.is_err();
        futures::future::ready(go_on)
    });
    Ok(Box::pin(all))
}
