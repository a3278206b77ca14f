//! The embedded engine: one directory, one process, one log-structured tree (fjall).
//!
//! Guarantees: one thread writes, so transactions have a total order; it gathers all that wait
//! into one batch and one fsync (group commit), and only then makes them visible and
//! acknowledges them. After a crash exactly the acknowledged transactions, and perhaps a few
//! that were about to be acknowledged, are there; never half of one.
//! Assumes: the file system keeps what fdatasync acknowledged.
//! Caveats: an index of the live keys (not the values) is held in memory.

mod codec;
mod compaction;
mod history;
mod state;
mod watch;
mod writer;

use std::{
    path::Path,
    sync::{Arc, mpsc},
    time::Duration,
};

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;

pub use compaction::Retention;

use crate::{
    Batch, Got, OpenError, Range, Ranged, Store, StoreError, Txn, TxnOutcome, WatchError, WatchStream,
    error::Cause,
};
use state::State;
use writer::Request;

const FORMAT: &str = "orlop-store-1";
const META_FORMAT: &str = "format";
const META_COMPACTED: &str = "compacted";

/// How an embedded store behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// How much history is kept.
    pub retention: Retention,
    /// How many batches a watcher may be behind before it is dropped.
    pub watch_capacity: usize,
    /// Bytes of block cache.
    pub cache_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { retention: Retention::default(), watch_capacity: 4096, cache_bytes: 4 << 20 }
    }
}

/// Opens, or makes, the store in the directory `path`, with the default options. Blocks while the
/// journal is read.
///
/// # Errors
/// See [`OpenError`].
pub fn open_embedded(path: &Path) -> Result<Arc<Embedded>, OpenError> {
    open_embedded_with(path, Options::default())
}

/// Opens, or makes, the store in the directory `path`. Blocks while the journal is read.
///
/// # Errors
/// See [`OpenError`].
pub fn open_embedded_with(path: &Path, options: Options) -> Result<Arc<Embedded>, OpenError> {
    let engine = |e: fjall::Error| match e {
        fjall::Error::Locked => OpenError::Locked { path: path.to_owned() },
        other => OpenError::Engine { path: path.to_owned(), source: Arc::new(other) },
    };
    let tables = Tables::open(path, &options).map_err(engine)?;
    match tables.meta.get(META_FORMAT).map_err(engine)? {
        Some(found) if found == FORMAT.as_bytes() => {}
        Some(found) => {
            return Err(OpenError::Format {
                path: path.to_owned(),
                found: String::from_utf8_lossy(&found).into_owned(),
                known: FORMAT,
            });
        }
        None => {
            tables.meta.insert(META_FORMAT, FORMAT).map_err(engine)?;
            tables.db.persist(PersistMode::SyncAll).map_err(engine)?;
        }
    }
    let state = history::load(&tables).map_err(engine)?;
    let shared = Arc::new(Shared { tables, state: RwLock::new(state), options });
    let (requests, inbox) = mpsc::channel();
    let writer = writer::spawn(shared.clone(), inbox)
        .map_err(|e| OpenError::Engine { path: path.to_owned(), source: Arc::new(e) })?;
    Ok(Arc::new(Embedded { shared, requests: Some(requests), writer: Mutex::new(Some(writer)) }))
}

/// The engine's three tables.
///
/// `kv` holds `key 0x00 revision` → record, `log` holds `revision key` → nothing, so that a
/// key's history and a revision's keys are both one scan; `meta` holds a few settings.
pub(crate) struct Tables {
    db: Database,
    kv: Keyspace,
    log: Keyspace,
    meta: Keyspace,
}

impl Tables {
    fn open(path: &Path, options: &Options) -> fjall::Result<Tables> {
        let db = Database::builder(path)
            .cache_size(options.cache_bytes)
            .worker_threads(1)
            .max_journaling_size(64 << 20)
            .open()?;
        let table = |memtable: u64| move || KeyspaceCreateOptions::default().max_memtable_size(memtable);
        let kv = db.keyspace("kv", table(4 << 20))?;
        let log = db.keyspace("log", table(1 << 20))?;
        let meta = db.keyspace("meta", table(1 << 20))?;
        Ok(Tables { db, kv, log, meta })
    }
}

/// What the handle, the writer and the readers share.
pub(crate) struct Shared {
    tables: Tables,
    state: RwLock<State>,
    options: Options,
}

/// The embedded engine; see [`open_embedded`]. Closes when the last handle is dropped.
pub struct Embedded {
    shared: Arc<Shared>,
    requests: Option<mpsc::Sender<Request>>,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.requests = None;
        // Whoever opens the directory next must find it unlocked, so wait for the writer's end.
        if let Some(writer) = self.writer.lock().take() {
            let _ = writer.join();
        }
        self.shared.state.write().close();
    }
}

impl Embedded {
    async fn ask<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let requests = self.requests.as_ref().ok_or(StoreError::Closed)?;
        requests.send(make(reply)).map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)
    }

    async fn read<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Shared) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = self.shared.clone();
        tokio::task::spawn_blocking(move || f(&shared)).await.map_err(|e| engine("run a read", e))?
    }
}

#[async_trait::async_trait]
impl Store for Embedded {
    async fn get(&self, key: &[u8], revision: Option<u64>) -> Result<Got, StoreError> {
        let key = Bytes::copy_from_slice(key);
        self.read(move |shared| history::get(shared, &key, revision)).await
    }

    async fn range(&self, range: Range) -> Result<Ranged, StoreError> {
        self.read(move |shared| history::range(shared, &range)).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        codec::check(&txn)?;
        self.ask(|reply| Request::Txn { txn, reply }).await?
    }

    async fn watch(&self, prefix: &[u8], from: u64) -> Result<WatchStream, StoreError> {
        watch::start(&self.shared, Bytes::copy_from_slice(prefix), from)
    }

    async fn compact(&self, revision: u64) -> Result<(), StoreError> {
        self.ask(|reply| Request::Compact { revision, reply }).await?
    }

    async fn current_revision(&self) -> Result<u64, StoreError> {
        Ok(self.shared.state.read().revision())
    }
}

/// Wraps an engine's error with the step that met it.
pub(crate) fn engine(
    step: &'static str,
    source: impl std::error::Error + Send + Sync + 'static,
) -> StoreError {
    let source: Cause = Arc::new(source);
    StoreError::Engine { step, source }
}

/// How long the writer waits before it looks at the clock for compaction.
pub(crate) const TICK: Duration = Duration::from_secs(15);

pub(crate) type Item = Result<Batch, WatchError>;
