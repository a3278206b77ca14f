//! The manifests directory: read at start and whenever inotify says that it changed.
//!
//! Guarantees: a file that cannot be read keeps its last good content; its error is logged once, not
//! once a look. Files that begin with a dot, and editors' backups (`~`), are no manifests.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify::WatchFlags;
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::parse::{Manifest, parse};
use crate::clock::Clock;
use crate::inotify::Inotify;

/// All files together.
pub type Manifests = BTreeMap<PathBuf, Manifest>;

/// One file as it was read last.
struct Read {
    text: String,
    good: Option<Manifest>,
}

/// Reads and watches one directory.
pub struct Directory {
    dir: PathBuf,
    node: String,
    clock: Clock,
    files: BTreeMap<PathBuf, Read>,
}

impl Directory {
    /// For this directory; it need not exist yet.
    pub fn new(dir: PathBuf, node: String, clock: Clock) -> Directory {
        Directory { dir, node, clock, files: BTreeMap::new() }
    }

    /// Looks at all files. Blocks on file I/O, for as long as a few small files take.
    pub fn look(&mut self) -> Manifests {
        let found = match list(&self.dir) {
            Ok(found) => found,
            Err(err) if err.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(err) => {
                warn!(dir = %self.dir.display(), %err, "read the manifests directory");
                return self.good();
            }
        };
        self.files.retain(|path, _| found.contains(path));
        for path in found {
            match fs::read_to_string(&path) {
                Ok(text) => self.read(path, text),
                Err(err) => warn!(file = %path.display(), %err, "read a manifest"),
            }
        }
        self.good()
    }

    fn read(&mut self, path: PathBuf, text: String) {
        let before = self.files.get(&path);
        if before.is_some_and(|b| b.text == text) {
            return;
        }
        let last_good = before.and_then(|b| b.good.clone());
        let good = match parse(&text, &path, &self.node, self.clock.now()) {
            Ok(manifest) => Some(manifest),
            Err(err) => {
                let kept = if last_good.is_some() {
                    "the last good content stays in force"
                } else {
                    "nothing runs from it"
                };
                error!(file = %path.display(), err = %client::describe(&err), kept, "bad manifest");
                last_good
            }
        };
        self.files.insert(path, Read { text, good });
    }

    fn good(&self) -> Manifests {
        self.files.iter().filter_map(|(path, read)| Some((path.clone(), read.good.clone()?))).collect()
    }

    /// Reads for ever, telling `out` of every change.
    pub async fn run(mut self, out: watch::Sender<Manifests>) {
        loop {
            let watcher = watch(&self.dir);
            let now = self.look();
            out.send_if_modified(|held| {
                let changed = *held != now;
                *held = now;
                changed
            });
            match watcher {
                Ok(fd) => {
                    // Cancel-safe: dropping it forgets nothing, the next look sees all.
                    if let Err(err) = settle(&fd).await {
                        warn!(dir = %self.dir.display(), %err, "watch the manifests directory");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
                Err(err) => {
                    // The directory may be made later.
                    if err.kind() != io::ErrorKind::NotFound {
                        warn!(dir = %self.dir.display(), %err, "watch the manifests directory");
                    }
                    tokio::time::sleep(Duration::from_secs(5)).await;
                }
            }
            info!(dir = %self.dir.display(), "manifests directory changed");
        }
    }
}

fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if !name.starts_with('.') && !name.ends_with('~') && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn watch(dir: &Path) -> io::Result<Inotify> {
    let what = WatchFlags::CLOSE_WRITE
        | WatchFlags::MOVED_TO
        | WatchFlags::MOVED_FROM
        | WatchFlags::DELETE
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF
        | WatchFlags::ONLYDIR;
    Inotify::new(dir, what)
}

/// Waits for something to happen, and then for a moment of silence.
async fn settle(watch: &Inotify) -> io::Result<()> {
    watch.wait().await?;
    tokio::time::sleep(Duration::from_millis(20)).await;
    Ok(())
}
