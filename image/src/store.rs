//! The store: images, layers and leases on disk.
//!
//! Guarantees: what `get` and `list` show is complete and durable; a crash or power cut at any moment
//! leaves either the old or the new state, and `open` removes the rest. A leased layer is never removed.
//! Assumes: nobody else writes below the store's directory while the lock is held.
//! Caveat: trees are deleted in the background; `remove` returns once they are out of the way.

mod commit;
mod lease;
mod load;
mod repair;
mod verify;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fd::OwnedFd;
use tracing::warn;

use crate::digest::Digest;
use crate::image::{Image, Removed, Usage};
use crate::layers::Flights;
use crate::layout::Layout;
use crate::limits::Limits;
use crate::queue::Queue;
use crate::registry::{Registries, RegistryConfig};
use crate::state::{ImageRecord, Named, State};

pub use commit::CommitError;
pub(crate) use commit::NewImage;
pub use lease::LeaseError;
pub use repair::{Fate, Repaired};
pub use verify::{Problem, Report, What};

/// The image store. Cheap to clone; all clones are one store.
#[derive(Clone)]
pub struct Store(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) layout: Layout,
    pub(crate) limits: Limits,
    /// Short sections only; never held while waiting or writing.
    pub(crate) state: Mutex<State>,
    /// One writer of images at a time.
    pub(crate) writing: Arc<tokio::sync::Mutex<()>>,
    pub(crate) flights: Flights,
    /// Pulls at a time.
    pub(crate) pulls: Queue,
    pub(crate) next_pull: AtomicU64,
    /// How long a pull may go without anything moving.
    pub(crate) stall: Duration,
    pub(crate) foreign: ForeignLayers,
    /// Names of images that are pinned by the node's configuration.
    pinned: Vec<String>,
    pub(crate) registries: Registries,
    damaged: Vec<Damaged>,
    _lock: OwnedFd,
}

/// Settings of a store.
#[derive(Debug, Clone)]
pub struct Options {
    /// Bounds on what images may demand.
    pub limits: Limits,
    /// Layers downloaded and unpacked at the same time, for all pulls together.
    pub parallel: usize,
    /// Of these, no more than this many for one pull.
    pub per_pull: usize,
    /// Pulls at the same time; the others wait, those that pods wait for first.
    pub pulls: usize,
    /// A pull in which nothing is downloaded or unpacked for this long is given up.
    pub stall: Duration,
    /// What to do with layers that are not in the registry, only at other places.
    pub foreign: ForeignLayers,
    /// Images that are never removed to free space: whole names (`docker.io/library/x:1`), or the start of
    /// one and `*`.
    pub pinned: Vec<String>,
}

/// What to do with layers that the registry does not have and whose manifest names other places (`urls`):
/// foreign, or non-distributable ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ForeignLayers {
    /// Fail, naming the places.
    #[default]
    Refuse,
    /// Ask there, without any credentials, by the rules that hold for redirects.
    Fetch,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            limits: Limits::default(),
            parallel: 4,
            per_pull: 3,
            pulls: usize::MAX >> 1,
            stall: Duration::from_secs(300),
            foreign: ForeignLayers::default(),
            pinned: Vec::new(),
        }
    }
}

/// Something on disk that could not be read back when the store was opened. It was skipped.
#[derive(Debug, Clone)]
pub struct Damaged {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A directory of the store cannot be made.
    #[error("create image directory {path}")]
    Create {
        /// The directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The lock file cannot be opened.
    #[error("open lock file {path}")]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Another process has the store open.
    #[error("image store {path} is in use by another process; stop it, or ask it over its CRI socket")]
    Busy {
        /// The store's directory.
        path: PathBuf,
    },
    /// A directory of the store cannot be read.
    #[error("read image directory {path}")]
    Read {
        /// The directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The registry client cannot be set up.
    #[error("set up the registry client")]
    Registry(#[source] crate::registry::ConfigError),
}

/// Why an image was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// No such image.
    #[error("image `{0}` not found")]
    NotFound(String),
    /// Containers use it.
    #[error("image `{name}` is in use by {}; remove them first", owners.join(", "))]
    InUse {
        /// How it was named.
        name: String,
        /// Who holds leases on it.
        owners: Vec<String>,
    },
    /// The record cannot be changed.
    #[error("update the record of image {id}")]
    Write {
        /// The image's id.
        id: Digest,
        /// The system's reason.
        source: io::Error,
    },
    /// The node shuts down.
    #[error("the removal was abandoned")]
    Abandoned,
}

impl Store {
    /// Opens the store in `data`, making it if there is none, and removes what a crash left behind.
    pub fn open(data: PathBuf, registries: RegistryConfig) -> Result<Store, OpenError> {
        Store::open_with(data, registries, Options::default())
    }

    /// Opens the store with settings of its own.
    pub fn open_with(
        data: PathBuf,
        registries: RegistryConfig,
        options: Options,
    ) -> Result<Store, OpenError> {
        let layout = Layout::create(data).map_err(|(path, source)| OpenError::Create { path, source })?;
        let lock = load::lock(&layout)?;
        let loaded = load::load(&layout, &options.limits)?;
        for Damaged { path, reason } in &loaded.damaged {
            warn!(path = %path.display(), reason, "skip a damaged entry of the image store");
        }
        let registries = Registries::new(registries).map_err(OpenError::Registry)?;
        let store = Store(Arc::new(Inner {
            layout,
            flights: Flights::new(options.parallel, options.per_pull),
            pulls: Queue::new(options.pulls, usize::MAX),
            next_pull: AtomicU64::new(1),
            stall: options.stall,
            foreign: options.foreign,
            pinned: options.pinned,
            limits: options.limits,
            state: Mutex::new(loaded.state),
            writing: Arc::default(),
            registries,
            damaged: loaded.damaged,
            _lock: lock,
        }));
        store.discard(loaded.trash);
        store.collect_layers();
        let doomed = {
            let state = store.0.state.lock();
            let images = state.images.values().map(|e| &e.record);
            images.filter(|r| r.doomed && state.owners(&r.id).is_empty()).map(|r| r.id.clone()).collect()
        };
        store.bury_soon(doomed);
        Ok(store)
    }

    /// What `open` could not read back and skipped.
    pub fn damaged(&self) -> &[Damaged] {
        &self.0.damaged
    }

    /// Finds an image by tag, repository digest, id, or the start of its id.
    pub fn get(&self, name_or_id: &str) -> Option<Image> {
        let state = self.0.state.lock();
        let (id, _) = state.find(name_or_id)?;
        state.image(&id).map(|image| self.pinned(image))
    }

    /// Marks an image that the node's configuration pins.
    fn pinned(&self, mut image: Image) -> Image {
        let fits = |pattern: &String| match pattern.strip_suffix('*') {
            Some(start) => image.repo_tags.iter().any(|tag| tag.starts_with(start)),
            None => image.repo_tags.contains(pattern) || image.repo_digests.contains(pattern),
        };
        image.pinned |= self.0.pinned.iter().any(fits);
        image
    }

    /// All images, by id.
    pub fn list(&self) -> Vec<Image> {
        let state = self.0.state.lock();
        state.images.keys().filter_map(|id| state.image(id)).map(|image| self.pinned(image)).collect()
    }

    /// The configuration of an image, byte by byte as its author wrote it.
    pub fn raw_config(&self, id: &Digest) -> io::Result<Vec<u8>> {
        let config = self.0.state.lock().images.get(id).map(|entry| entry.record.config().clone());
        fs::read(self.0.layout.blob(&config.ok_or(io::ErrorKind::NotFound)?))
    }

    /// The manifest of an image, byte by byte.
    pub fn raw_manifest(&self, image: &Image) -> io::Result<Vec<u8>> {
        fs::read(self.0.layout.blob(&image.manifest))
    }

    /// Removes a name, and the image with its last tag; or, by id, the image with all its names.
    ///
    /// An image in use loses the name but keeps its layers until its last lease is released; by id it is
    /// refused.
    pub async fn remove(&self, name_or_id: &str) -> Result<Removed, RemoveError> {
        let name = name_or_id.to_owned();
        self.write(move |store| store.remove_locked(&name)).await.unwrap_or(Err(RemoveError::Abandoned))
    }

    /// Does something that writes records: one at a time, on a thread that may block, and to its end even
    /// if the caller gives up. `None` if the runtime shuts down.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> T + Send + 'static,
    ) -> Option<T> {
        let store = self.clone();
        let writing = self.0.writing.clone().lock_owned().await;
        let work = move || {
            let _writing = writing;
            work(&store)
        };
        tokio::task::spawn_blocking(work).await.ok()
    }

    fn remove_locked(&self, name: &str) -> Result<Removed, RemoveError> {
        let (mut record, named, owners) = {
            let state = self.0.state.lock();
            let (id, named) = state.find(name).ok_or_else(|| RemoveError::NotFound(name.to_owned()))?;
            (state.images[&id].record.clone(), named, state.owners(&id))
        };
        let mut untagged = Vec::new();
        match &named {
            Named::Tag(tag) => {
                record.tags.remove(tag);
                untagged.push(tag.clone());
            }
            Named::Digest(digest) => {
                record.digests.remove(digest);
                untagged.push(digest.clone());
            }
            Named::Id if !owners.is_empty() => {
                return Err(RemoveError::InUse { name: name.to_owned(), owners });
            }
            Named::Id => {
                untagged.extend(record.tags.iter().chain(&record.digests).cloned());
            }
        }
        let keep = match named {
            Named::Tag(_) => !record.tags.is_empty(),
            Named::Digest(_) => !record.tags.is_empty() || !record.digests.is_empty(),
            Named::Id => false,
        };
        if keep || !owners.is_empty() {
            record.doomed = !keep;
            self.rewrite(record)?;
            return Ok(Removed { untagged, ..Removed::default() });
        }
        let bytes = self.delete(&record.id)?;
        Ok(Removed { untagged, deleted: vec![record.id], bytes })
    }

    /// Marks an image as never to be pruned, or takes the mark away.
    pub async fn pin(&self, name_or_id: &str, pinned: bool) -> Result<(), RemoveError> {
        let _writing = self.0.writing.lock().await;
        let mut record = {
            let state = self.0.state.lock();
            let (id, _) =
                state.find(name_or_id).ok_or_else(|| RemoveError::NotFound(name_or_id.to_owned()))?;
            state.images[&id].record.clone()
        };
        record.pinned = pinned;
        self.rewrite(record)
    }

    /// Writes a changed record, then shows it.
    fn rewrite(&self, record: ImageRecord) -> Result<(), RemoveError> {
        let bytes = serde_json::to_vec(&record).expect("a record is plain data");
        self.0
            .layout
            .write_durably(&self.0.layout.image(&record.id), &bytes)
            .map_err(|source| RemoveError::Write { id: record.id.clone(), source })?;
        let mut state = self.0.state.lock();
        if let Some(entry) = state.images.get_mut(&record.id) {
            entry.record = record;
        }
        Ok(())
    }

    /// Deletes an image and what only it needed. Returns the bytes freed. A lease taken meanwhile keeps
    /// the layers.
    fn delete(&self, id: &Digest) -> Result<u64, RemoveError> {
        let path = self.0.layout.image(id);
        let removed = remove_file(&path).and_then(|()| crate::layout::sync_dir(&self.0.layout.images()));
        removed.map_err(|source| RemoveError::Write { id: id.clone(), source })?;
        let (orphans, config_bytes) = {
            let mut state = self.0.state.lock();
            let Some(entry) = state.images.remove(id) else { return Ok(0) };
            let needed = state.needed_blobs();
            let record = entry.record;
            let orphans: Vec<Digest> = [record.config(), &record.manifest]
                .into_iter()
                .filter(|d| !needed.contains(d))
                .cloned()
                .collect();
            (orphans, record.config_bytes)
        };
        for blob in orphans {
            // A blob that stays behind is removed at the next start.
            let _ = remove_file(&self.0.layout.blob(&blob));
        }
        Ok(self.collect_layers() + config_bytes)
    }

    /// Takes the layers that nobody needs out of the store. Returns their bytes.
    fn collect_layers(&self) -> u64 {
        let unused: Vec<_> = {
            let mut state = self.0.state.lock();
            state.unused_layers().iter().filter_map(|digest| state.layers.remove(digest)).collect()
        };
        let mut trash = Vec::new();
        let mut bytes = 0;
        for layer in unused {
            let target = self.0.layout.temporary();
            match fs::rename(self.0.layout.layer(layer.number), &target) {
                Ok(()) => {
                    bytes += layer.record.bytes;
                    trash.push(target);
                }
                Err(err) => warn!(layer = layer.number, %err, "cannot move an unused layer away"),
            }
        }
        self.discard(trash);
        bytes
    }

    /// Deletes trees on a thread of its own.
    pub(crate) fn discard(&self, trash: Vec<PathBuf>) {
        if trash.is_empty() {
            return;
        }
        let sweep = move || trash.iter().for_each(|path| remove_tree(path));
        if let Err(err) = std::thread::Builder::new().name("image-sweep".into()).spawn(sweep) {
            warn!(%err, "cannot start a thread to delete unused layers; they go at the next start");
        }
    }

    /// What the store takes of the disk, from its records.
    pub fn usage(&self) -> Usage {
        let state = self.0.state.lock();
        let layers = state.layers.values().map(|l| &l.record);
        let (bytes, inodes) = layers.fold((0, 0), |(b, i), r| (b + r.bytes, i + r.inodes));
        let configs: u64 = state.images.values().map(|e| e.record.config_bytes).sum();
        Usage { bytes: bytes + configs, inodes, mountpoint: self.0.layout.root().to_owned() }
    }

    /// Removes images that nobody holds and that have no tag; with `all`, also those with tags. Pinned
    /// images stay. Interrupted downloads that no pull works on go, too.
    pub async fn prune(&self, all: bool) -> Result<Removed, RemoveError> {
        let work = move |store: &Store| {
            let mut ids = store.0.state.lock().prunable(all);
            ids.retain(|id| store.get(id.as_str()).is_some_and(|image| !image.pinned));
            let mut removed = Removed::default();
            for id in ids {
                let one = store.remove_locked(id.as_str())?;
                removed.untagged.extend(one.untagged);
                removed.deleted.extend(one.deleted);
                removed.bytes += one.bytes;
            }
            removed.bytes += store.collect_layers() + store.prune_partials();
            Ok(removed)
        };
        self.write(work).await.unwrap_or(Err(RemoveError::Abandoned))
    }

    fn prune_partials(&self) -> u64 {
        let Ok(entries) = fs::read_dir(self.0.layout.partials()) else { return 0 };
        let mut bytes = 0;
        for entry in entries.flatten() {
            let name = entry.file_name();
            let busy = name
                .to_str()
                .map(|name| name.strip_suffix(crate::layout::BLOB).unwrap_or(name))
                .and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok())
                .is_some_and(|digest| self.0.flights.is_active(&digest));
            if !busy {
                let size = entry.metadata().map_or(0, |m| m.len());
                bytes += fs::remove_file(entry.path()).map_or(0, |()| size);
            }
        }
        bytes
    }
}

/// Removes a file; one that is gone already is fine.
pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Removes a file or a tree, and says so if it cannot.
pub(crate) fn remove_tree(path: &Path) {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(err) => Err(err),
    };
    match removed {
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            warn!(path = %path.display(), %err, "cannot delete; it goes at the next start");
        }
        _ => (),
    }
}
