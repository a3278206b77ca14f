//! Watches.
//!
//! Guarantees: after the initial state every change is sent once and in order; a bookmark's revision
//! is never ahead of what was sent; an object that stops matching is reported as deleted, one
//! that starts to match as added.
//! Caveats: a start too far in the past is answered with an `ERROR` event (410 Expired), as
//! clients expect it, in a response of status 200.

use std::{sync::Arc, time::Duration};

use api::status::Failure;
use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use rand::Rng;
use serde_json::{Value, json};
use store::{StoreError, WatchStream};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior},
};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    app::App,
    cache::Subscription,
    dispatch::Call,
    entry::{Change, Entry},
    list::Selection,
    negotiate::Shape,
    objects::store_failure,
    read::{self, View},
    respond::{self, Answer},
};

const BOOKMARK_EVERY: Duration = Duration::from_secs(60);

/// How a watch begins.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Start {
    /// With all that is there, as of this revision or later.
    State { at_least: Option<u64>, mark_the_end: bool },
    /// With what follows this revision.
    After(u64),
    /// With what happens from now on.
    Now,
}

/// Decides from the query's parameters.
fn start(revision: Option<u64>, how: &str, initial: Option<bool>, bookmarks: bool) -> Result<Start, Failure> {
    match (initial, how) {
        (None, "") => {}
        (None, _) => {
            return Err(Failure::bad_request(
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents \
                 is provided",
            ));
        }
        (Some(_), "NotOlderThan") => {}
        (Some(_), "") => {
            return Err(Failure::bad_request(
                "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to \
                 NotOlderThan",
            ));
        }
        (Some(_), other) => {
            return Err(Failure::bad_request(format!(
                "resourceVersionMatch: Unsupported value: {other:?}: supported values: \"NotOlderThan\""
            )));
        }
    }
    Ok(match (initial, revision) {
        (Some(true), at_least) => Start::State { at_least, mark_the_end: bookmarks },
        (Some(false), None | Some(0)) => Start::Now,
        (None, None) => Start::State { at_least: None, mark_the_end: false },
        (None, Some(0)) => Start::State { at_least: Some(0), mark_the_end: false },
        (_, Some(after)) => Start::After(after),
    })
}

/// GET with `watch`.
pub(crate) async fn watch(app: &Arc<App>, call: &Call) -> Result<Answer, Failure> {
    let selection = Selection::of(call)?;
    let view = View::of(call)?;
    let bookmarks = call.query.flag("allowWatchBookmarks");
    let revision = read::revision(call.query.get("resourceVersion"))?;
    let initial = call.query.maybe("sendInitialEvents");
    let begin = start(revision, call.query.get("resourceVersionMatch"), initial, bookmarks)?;
    let limit = match call.query.number("timeoutSeconds")? {
        Some(seconds) if seconds > 0 => Duration::from_secs(seconds),
        // Spread, so that not all clients come back together.
        _ => Duration::from_secs(rand::rng().random_range(1800..3600)),
    };
    let (send, receive) = mpsc::channel(32);
    let mut watch = Watch {
        app: app.clone(),
        selection,
        view,
        send,
        bookmarks,
        sent: 0,
        columns: true,
        deadline: Instant::now() + limit,
    };
    match begin {
        Start::After(after) => {
            app.fresh().await?;
            let current = app.cache.revision();
            if after > current {
                // Only a store that was replaced can be behind its clients: they must begin anew.
                let text =
                    format!("resource version {after} is from another store; the newest here is {current}");
                return Ok(stream_answer(receive_one(error_event(&Failure::expired(text)))));
            }
        }
        Start::State { at_least: Some(r), .. } => app.at_least(r).await?,
        Start::State { at_least: None, .. } | Start::Now => app.fresh().await?,
    }
    let storage = watch.selection.row.storage;
    let prefix = watch.selection.prefix.clone();
    let mut first = Vec::new();
    let mut mark = false;
    let source = match begin {
        Start::State { mark_the_end, .. } => {
            let (snapshot, subscription) = app.cache.list_and_subscribe(storage, &prefix);
            (first, watch.sent, mark) = (snapshot.entries, snapshot.revision, mark_the_end);
            Source::Cache(subscription)
        }
        Start::Now => {
            let (snapshot, subscription) = app.cache.list_and_subscribe(storage, &prefix);
            watch.sent = snapshot.revision;
            Source::Cache(subscription)
        }
        Start::After(after) => {
            watch.sent = after;
            match app.cache.subscribe(storage, &prefix, after) {
                Some(subscription) => Source::Cache(subscription),
                None => match app.store.watch(prefix.as_bytes(), after + 1).await {
                    Ok(stream) => Source::Store(stream),
                    Err(StoreError::Compacted { oldest, .. }) => {
                        let text = format!("too old resource version: {after} ({oldest})");
                        return Ok(stream_answer(receive_one(error_event(&Failure::expired(text)))));
                    }
                    Err(err) => return Err(store_failure(err)),
                },
            }
        }
    };
    tokio::spawn(async move {
        if watch.initial(first, mark).await.is_some() {
            watch.run(source).await;
        }
    });
    Ok(stream_answer(receive))
}

fn receive_one(line: Bytes) -> mpsc::Receiver<Bytes> {
    let (send, receive) = mpsc::channel(1);
    // There is room for one.
    let _ = send.try_send(line);
    receive
}

fn stream_answer(lines: mpsc::Receiver<Bytes>) -> Answer {
    let frames = ReceiverStream::new(lines).map(|line| Ok(Frame::data(line)));
    respond::streamed(200, "application/json", StreamBody::new(frames).boxed_unsync())
}

/// Where changes come from.
enum Source {
    Cache(Subscription),
    /// The store itself, for what the cache does not remember.
    Store(WatchStream),
}

/// What comes next.
enum Next {
    Changes(Vec<Arc<Change>>),
    Tick,
    End,
}

/// One client's watch.
struct Watch {
    app: Arc<App>,
    selection: Selection,
    view: View,
    send: mpsc::Sender<Bytes>,
    bookmarks: bool,
    /// The revision up to which the client knows everything.
    sent: u64,
    /// Whether the next table still names its columns.
    columns: bool,
    deadline: Instant,
}

impl Watch {
    /// Sends the initial state; none when the client has gone.
    async fn initial(&mut self, entries: Vec<Arc<Entry>>, mark: bool) -> Option<()> {
        for entry in &entries {
            if !self.selection.matches(entry) {
                continue;
            }
            let line = self.line("ADDED", entry);
            self.send.send(line).await.ok()?;
        }
        if mark {
            let line = self.bookmark(true);
            self.send.send(line).await.ok()?;
        }
        Some(())
    }

    async fn run(&mut self, mut source: Source) {
        if let Source::Cache(subscription) = &mut source {
            let backlog = std::mem::take(&mut subscription.backlog);
            if self.changes(backlog).await.is_none() {
                return;
            }
        }
        let mut ticks = tokio::time::interval_at(Instant::now() + BOOKMARK_EVERY, BOOKMARK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stop = self.app.stop.clone();
        loop {
            // Cancel-safe: what was not taken stays in its channel, stream or timer.
            let next = tokio::select! {
                next = take(&mut source) => next,
                _ = ticks.tick(), if self.bookmarks => Next::Tick,
                () = tokio::time::sleep_until(self.deadline) => Next::End,
                () = stop.cancelled() => return,
                () = self.send.closed() => return,
            };
            let went_well = match next {
                Next::Changes(changes) => {
                    // The store's changes come as whole transactions, the cache's one by one.
                    let whole =
                        matches!(source, Source::Store(_)).then(|| changes.last().map(|c| c.revision));
                    let sent = self.changes(changes).await;
                    self.sent = self.sent.max(whole.flatten().unwrap_or(0));
                    sent
                }
                Next::Tick => self.progress(&mut source).await,
                Next::End if Instant::now() >= self.deadline && self.bookmarks => {
                    self.progress(&mut source).await;
                    None
                }
                Next::End => None,
            };
            if went_well.is_none() {
                return;
            }
        }
    }

    async fn changes(&mut self, changes: Vec<Arc<Change>>) -> Option<()> {
        for change in changes {
            if change.revision <= self.sent {
                continue;
            }
            if let Some((kind, entry)) = event(&self.selection, &change) {
                let line = self.line(kind, &entry);
                self.send.send(line).await.ok()?;
            }
        }
        Some(())
    }

    /// Sends a bookmark of all that has happened.
    async fn progress(&mut self, source: &mut Source) -> Option<()> {
        if let Source::Cache(subscription) = source {
            // All changes up to `seen` are in the channel already.
            let seen = self.app.cache.revision();
            let mut waiting = Vec::new();
            while let Ok(change) = subscription.live.try_recv() {
                waiting.push(change);
            }
            self.changes(waiting).await?;
            self.sent = self.sent.max(seen);
        }
        let line = self.bookmark(false);
        self.send.send(line).await.ok()
    }

    fn line(&mut self, kind: &str, entry: &Entry) -> Bytes {
        let columns = std::mem::replace(&mut self.columns, false);
        envelope(kind, &self.view.entry(entry, columns))
    }

    fn bookmark(&mut self, end_of_initial: bool) -> Bytes {
        let row = self.selection.row;
        let mut meta = json!({"resourceVersion": self.sent.to_string(), "creationTimestamp": null});
        if end_of_initial {
            meta["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = json!({"kind": row.kind, "apiVersion": row.api_version(), "metadata": meta});
        let object: Value = match self.view.accepted.shape {
            Shape::Object | Shape::Discovery => object,
            Shape::Metadata => read::partial(&object),
            Shape::Table => json!({
                "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"],
                "columnDefinitions": null, "rows": [],
            }),
        };
        envelope("BOOKMARK", &read::encode(&object))
    }
}

async fn take(source: &mut Source) -> Next {
    match source {
        Source::Cache(subscription) => match subscription.live.recv().await {
            Some(change) => Next::Changes(vec![change]),
            None => Next::End,
        },
        Source::Store(stream) => match stream.next().await {
            Some(Ok(batch)) => {
                Next::Changes(batch.events.iter().filter_map(|e| decode(batch.revision, e)).collect())
            }
            Some(Err(_)) | None => Next::End,
        },
    }
}

fn decode(revision: u64, event: &store::Event) -> Option<Arc<Change>> {
    let key: Arc<str> = std::str::from_utf8(&event.key).ok()?.into();
    let entry = |kv: &Option<store::KeyValue>| {
        let kv = kv.as_ref()?;
        Entry::decode(key.clone(), kv.mod_revision, &kv.value).map(Arc::new)
    };
    Some(Arc::new(Change::new(revision, key.clone(), entry(&event.kv), entry(&event.prev))))
}

/// What a change means to one who sees only a selection.
fn event(selection: &Selection, change: &Change) -> Option<(&'static str, Arc<Entry>)> {
    let new = change.new.as_ref().filter(|e| selection.matches(e));
    let old = change.old.as_ref().filter(|e| selection.matches(e));
    match (old, new) {
        (None, Some(new)) => Some(("ADDED", new.clone())),
        (Some(_), Some(new)) => Some(("MODIFIED", new.clone())),
        (Some(_), None) => Some(("DELETED", change.gone()?)),
        (None, None) => None,
    }
}

fn envelope(kind: &str, object: &[u8]) -> Bytes {
    let mut line = BytesMut::with_capacity(object.len() + 40);
    line.put_slice(b"{\"type\":\"");
    line.put_slice(kind.as_bytes());
    line.put_slice(b"\",\"object\":");
    line.put_slice(object);
    line.put_slice(b"}\n");
    line.freeze()
}

fn error_event(failure: &Failure) -> Bytes {
    envelope("ERROR", &read::encode(&failure.to_value()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_watches_begin() {
        let state = |at_least, mark_the_end| Ok(Start::State { at_least, mark_the_end });
        assert_eq!(start(None, "", None, true), state(None, false));
        assert_eq!(start(Some(0), "", None, true), state(Some(0), false));
        assert_eq!(start(Some(5), "", None, true), Ok(Start::After(5)));
        assert_eq!(start(None, "NotOlderThan", Some(true), true), state(None, true));
        assert_eq!(start(Some(5), "NotOlderThan", Some(true), true), state(Some(5), true));
        assert_eq!(start(None, "NotOlderThan", Some(false), true), Ok(Start::Now));
        assert_eq!(start(Some(5), "NotOlderThan", Some(false), true), Ok(Start::After(5)));
        assert!(start(None, "", Some(true), true).is_err());
        assert!(start(Some(5), "NotOlderThan", None, true).is_err());
        assert!(start(Some(5), "Exact", Some(true), true).is_err());
    }
}
