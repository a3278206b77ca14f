//! Feeds the cache from the store.
//!
//! Guarantees: every committed change reaches the cache once and in order; when history is lost
//! (we were too slow, or compaction overtook us) the cache is read anew as a whole.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::StreamExt;
use store::{Range, Store, StoreError, WatchError};
use tokio_util::sync::CancellationToken;

use crate::{cache::Cache, entry::Entry, keys};

/// Reads everything.
pub(crate) async fn load(cache: &Cache, store: &dyn Store) -> Result<(), StoreError> {
    let prefix = Bytes::from_static(keys::ROOT.as_bytes());
    let all = store.range(Range { prefix, ..Range::default() }).await?;
    let entries = all.kvs.iter().filter_map(|kv| decode(&kv.key, kv.mod_revision, &kv.value)).collect();
    cache.reload(all.revision, entries);
    Ok(())
}

/// Follows the store until it closes or `stop` is cancelled.
pub(crate) async fn follow(cache: &Cache, store: &dyn Store, stop: &CancellationToken) {
    while !stop.is_cancelled() {
        let from = cache.revision() + 1;
        let mut watch = match store.watch(keys::ROOT.as_bytes(), from).await {
            Ok(watch) => watch,
            Err(StoreError::Closed) => return,
            Err(err) => {
                tracing::warn!(from, error = ?err, "the cache lost the store's history; reading all anew");
                if let Err(err) = load(cache, store).await {
                    tracing::error!(error = ?err, "the store cannot be read; trying again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                continue;
            }
        };
        loop {
            // Cancel-safe: an event that was not taken stays in the stream.
            let item = tokio::select! {
                item = watch.next() => item,
                () = stop.cancelled() => return,
            };
            match item {
                Some(Ok(batch)) => {
                    let changes = batch.events.iter().filter_map(|event| {
                        let key: Arc<str> = std::str::from_utf8(&event.key).ok()?.into();
                        let new = match &event.kv {
                            Some(kv) => {
                                Some(Arc::new(Entry::decode(key.clone(), kv.mod_revision, &kv.value)?))
                            }
                            None => None,
                        };
                        Some((key, new))
                    });
                    cache.apply(batch.revision, changes.collect());
                }
                Some(Err(WatchError::Closed)) | None => return,
                Some(Err(err)) => {
                    tracing::warn!(error = ?err, "the cache's watch ended; watching again");
                    break;
                }
            }
        }
    }
}

/// An entry of a stored key; none, with a word in the log, for what is not an object.
fn decode(key: &[u8], revision: u64, value: &[u8]) -> Option<Arc<Entry>> {
    let key: Arc<str> = std::str::from_utf8(key).ok()?.into();
    if key.starts_with(concat!("/registry/", "-")) {
        return None;
    }
    let entry = Entry::decode(key.clone(), revision, value);
    if entry.is_none() {
        tracing::error!(%key, revision, "a stored object cannot be decoded; it is left out");
    }
    entry.map(Arc::new)
}
