//! Reads the store back from disk, and tells what a crash left behind.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use serde::de::DeserializeOwned;

use super::{Damaged, OpenError};
use crate::digest::Digest;
use crate::layout::{Layout, layer_number};
use crate::limits::Limits;
use crate::manifest::parse_config;
use crate::state::{Entry, ImageRecord, Layer, LayerRecord, LeaseRecord, State};

/// The number of a layer that is always there and has nothing in it, for images without layers.
pub(super) const EMPTY_LAYER: u32 = 0;

/// Interrupted downloads older than this are given up.
const PARTIAL_AGE: Duration = Duration::from_secs(24 * 3600);

pub(super) struct Loaded {
    pub(super) state: State,
    pub(super) damaged: Vec<Damaged>,
    /// What belongs to nobody.
    pub(super) trash: Vec<PathBuf>,
}

/// Takes the store's lock, for as long as the descriptor lives.
pub(super) fn lock(layout: &Layout) -> Result<OwnedFd, OpenError> {
    let path = layout.lock();
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let lock = open(&path, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|err| OpenError::Lock { path: path.clone(), source: err.into() })?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::Busy { path: layout.root().to_owned() }),
        Err(err) => Err(OpenError::Lock { path, source: err.into() }),
    }
}

/// Reads everything. What a crash left half-done becomes trash; what is damaged is told and skipped.
pub(super) fn load(layout: &Layout, limits: &Limits) -> Result<Loaded, OpenError> {
    let mut loaded = Loaded { state: State::default(), damaged: Vec::new(), trash: Vec::new() };
    loaded.trash.extend(children(&layout.staging())?.into_iter().map(|(_, path)| path));
    let empty = layout.tree(EMPTY_LAYER);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&empty)
        .map_err(|source| OpenError::Create { path: empty, source })?;
    loaded.layers(layout)?;
    loaded.images(layout, limits)?;
    loaded.leases(layout)?;
    let needed: HashSet<String> =
        loaded.state.needed_blobs().iter().map(|digest| digest.hex().to_owned()).collect();
    let blobs = children(&layout.blobs())?;
    loaded.trash.extend(blobs.into_iter().filter(|(name, _)| !needed.contains(name)).map(|b| b.1));
    for (_, path) in children(&layout.partials())? {
        let age = fs::metadata(&path).ok().and_then(|m| m.modified().ok()?.elapsed().ok());
        if age.is_none_or(|age| age > PARTIAL_AGE) {
            loaded.trash.push(path);
        }
    }
    Ok(loaded)
}

impl Loaded {
    fn layers(&mut self, layout: &Layout) -> Result<(), OpenError> {
        self.state.next_layer = EMPTY_LAYER + 1;
        for (name, path) in children(&layout.layers())? {
            let Some(number) = layer_number(&name) else {
                self.skip(path, "not a layer's number".into());
                continue;
            };
            self.state.next_layer = self.state.next_layer.max(number + 1);
            if number == EMPTY_LAYER {
                continue;
            }
            match read_json::<LayerRecord>(&path.join("meta")) {
                Ok(record) if path.join("d").is_dir() => {
                    let layer = Layer { number, record: Arc::new(record) };
                    if let Some(twin) = self.state.layers.insert(layer.record.diff_id.clone(), layer) {
                        self.trash.push(layout.layer(twin.number));
                    }
                }
                Ok(_) => self.skip(path, "the layer's tree is missing".into()),
                Err(reason) => self.skip(path, reason),
            }
        }
        Ok(())
    }

    fn images(&mut self, layout: &Layout, limits: &Limits) -> Result<(), OpenError> {
        let mut entries = Vec::new();
        for (name, path) in children(&layout.images())? {
            let entry =
                read_json::<ImageRecord>(&path).and_then(|record| self.check(layout, limits, &name, record));
            match entry {
                Ok(entry) => entries.push(entry),
                Err(reason) => self.skip(path, reason),
            }
        }
        // A crash between two records can leave a tag on both its old and its new image: the new one's.
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.record.pulled));
        let mut tags = HashSet::new();
        for mut entry in entries {
            entry.record.tags.retain(|tag| tags.insert(tag.clone()));
            self.state.images.insert(entry.record.id.clone(), entry);
        }
        Ok(())
    }

    fn check(
        &self,
        layout: &Layout,
        limits: &Limits,
        name: &str,
        record: ImageRecord,
    ) -> Result<Entry, String> {
        if record.id.hex() != name {
            return Err(format!("the record is of {}", record.id));
        }
        if let Some(missing) = record.all_layers().find(|l| !self.state.layers.contains_key(l)) {
            return Err(format!("layer {missing} is missing"));
        }
        let bytes = fs::read(layout.blob(record.config())).map_err(|err| format!("configuration: {err}"))?;
        if Digest::of(&bytes) != *record.config() {
            return Err("the configuration does not have the image's digest".into());
        }
        if record.artifact.is_some() {
            return Ok(Entry { record, config: Arc::default() });
        }
        let config = parse_config(&bytes, limits).map_err(|err| format!("configuration: {err}"))?;
        Ok(Entry { record, config: Arc::new(config) })
    }

    fn leases(&mut self, layout: &Layout) -> Result<(), OpenError> {
        for (name, path) in children(&layout.leases())? {
            match read_lease(&path) {
                Ok(Some(lease)) => {
                    self.state.leases.insert(name, lease);
                }
                Ok(None) => {}
                Err(reason) => self.skip(path, reason),
            }
        }
        Ok(())
    }

    fn skip(&mut self, path: PathBuf, reason: String) {
        self.damaged.push(Damaged { path, reason });
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, String> {
    let bytes = fs::read(path).map_err(|err| err.to_string())?;
    serde_json::from_slice(&bytes).map_err(|err| err.to_string())
}

/// Reads a lease. One without content is removed and is none: it was written aside and renamed without a sync, so only a
/// power cut can have emptied it, and that ended whoever held it.
fn read_lease(path: &Path) -> Result<Option<LeaseRecord>, String> {
    let bytes = fs::read(path).map_err(|err| err.to_string())?;
    if bytes.iter().all(|byte| *byte == 0) {
        return fs::remove_file(path).map(|()| None).map_err(|err| err.to_string());
    }
    serde_json::from_slice(&bytes).map(Some).map_err(|err| err.to_string())
}

/// Names and paths of what is in a directory, sorted.
fn children(dir: &Path) -> Result<Vec<(String, PathBuf)>, OpenError> {
    let read = || -> io::Result<Vec<(String, PathBuf)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            found.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
        }
        found.sort();
        Ok(found)
    };
    read().map_err(|source| OpenError::Read { path: dir.to_owned(), source })
}
