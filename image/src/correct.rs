//! Directories that a layer only implies.
//!
//! A layer may hold `tmp/x` without an entry for `tmp`. Unpacked on its own, its `tmp` gets plain
//! attributes, and overlayfs shows the topmost directory's: the `tmp` of a lower layer, with mode 1777,
//! would be hidden. Layers are shared by images, so they cannot take attributes from what lies below them
//! in one image. Instead an image for which it matters gets one layer more, on top, with nothing but
//! directories.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, Uid};
use rustix::io::Errno;
use serde::Serialize;

use crate::digest::Digest;
use crate::layers::{Staged, Staging};
use crate::state::{LayerRecord, Origin};
use crate::store::Store;
use crate::unpack::{UnpackError, write_record};

/// What a directory is to look like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Looks {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, i64),
}

/// One layer's tree, and what in it is only implied.
struct Level {
    tree: PathBuf,
    implied: BTreeSet<String>,
}

enum Found {
    /// Neither here nor hidden by what is here.
    Nothing,
    /// Something here hides what lies below.
    Hidden,
    Directory {
        looks: Looks,
        /// Hides what lies below, too.
        opaque: bool,
    },
}

impl Store {
    /// Adds a correcting layer to those in staging, if the image needs one.
    pub(crate) async fn correct(
        &self,
        layers: &[Digest],
        mut staged: Vec<Arc<Staged>>,
    ) -> Result<(Vec<Arc<Staged>>, Option<Digest>), UnpackError> {
        let levels: Vec<Level> = {
            let state = self.0.state.lock();
            let level = |digest: &Digest| {
                if let Some(layer) = state.layers.get(digest) {
                    let implied = layer.record.implied.iter().cloned().collect();
                    return Some(Level { tree: self.0.layout.tree(layer.number), implied });
                }
                let layer = staged.iter().find(|s| s.record.diff_id == *digest)?;
                Some(Level { tree: layer.tree()?, implied: layer.record.implied.iter().cloned().collect() })
            };
            layers.iter().rev().filter_map(level).collect()
        };
        if levels.iter().all(|level| level.implied.is_empty()) {
            return Ok((staged, None));
        }
        let staging = Staging::new(self.0.layout.temporary());
        let work = tokio::task::spawn_blocking(move || make(&levels, staging));
        let made =
            work.await.map_err(|err| fail("look for implied directories", std::io::Error::other(err)))??;
        let Some(layer) = made else { return Ok((staged, None)) };
        let digest = layer.record.diff_id.clone();
        if !self.0.state.lock().layers.contains_key(&digest) {
            staged.push(Arc::new(layer));
        }
        Ok((staged, Some(digest)))
    }
}

fn fail(step: &'static str, source: std::io::Error) -> UnpackError {
    UnpackError::Write { step, entry: "implied directories".into(), source }
}

/// Finds what to correct, and makes the layer. `levels` is topmost first.
fn make(levels: &[Level], staging: Staging) -> Result<Option<Staged>, UnpackError> {
    let implied: BTreeSet<&String> = levels.iter().flat_map(|level| &level.implied).collect();
    let mut wanted: BTreeMap<String, Looks> = BTreeMap::new();
    for path in implied {
        let looked = look_up(levels, path).map_err(|err| fail("look up", err.into()))?;
        if let Some((looks, true)) = looked {
            wanted.insert(path.clone(), looks);
        }
    }
    if wanted.is_empty() {
        return Ok(None);
    }
    // Directories on the way are seen, too: they must look as they do now.
    let ways: BTreeSet<String> = wanted
        .keys()
        .flat_map(|path| path.match_indices('/').map(|(at, _)| path[..at].to_owned()))
        .chain([String::new()])
        .collect();
    for path in ways {
        let looked = look_up(levels, &path).map_err(|err| fail("look up", err.into()))?;
        if let Some((looks, _)) = looked {
            wanted.entry(path).or_insert(looks);
        }
    }
    let diff_id = id_of(&wanted);
    build(&wanted, staging.path()).map_err(|err| fail("create", err))?;
    let inodes = wanted.len() as u64;
    let record = LayerRecord {
        diff_id,
        bytes: inodes * 4096,
        inodes,
        implied: Vec::new(),
        tar_bytes: 0,
        origin: Origin::Correction,
    };
    write_record(staging.path(), &record)?;
    Ok(Some(staging.keep(record)))
}

/// What a directory should look like, and whether that differs from what overlayfs would show.
fn look_up(levels: &[Level], path: &str) -> Result<Option<(Looks, bool)>, Errno> {
    let mut shown: Option<Looks> = None;
    for level in levels {
        match find(&level.tree, path)? {
            Found::Nothing => (),
            Found::Hidden => break,
            Found::Directory { looks, opaque } => {
                if !level.implied.contains(path) {
                    let differs =
                        shown.is_some_and(|s| (s.mode, s.uid, s.gid) != (looks.mode, looks.uid, looks.gid));
                    return Ok(Some((looks, differs)));
                }
                shown.get_or_insert(looks);
                if opaque {
                    break;
                }
            }
        }
    }
    Ok(shown.map(|looks| (looks, false)))
}

/// Looks at a path in one layer, part by part: anything but a plain directory on the way hides the rest.
fn find(tree: &Path, path: &str) -> Result<Found, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let mut directory = rustix::fs::open(tree, flags, Mode::empty())?;
    let mut hides = false;
    for part in path.split('/').filter(|part| !part.is_empty()) {
        directory = match rustix::fs::openat2(&directory, part, flags, Mode::empty(), resolve) {
            Ok(next) => next,
            Err(Errno::NOENT) if hides => return Ok(Found::Hidden),
            Err(Errno::NOENT) => return Ok(Found::Nothing),
            Err(Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return Ok(Found::Hidden),
            Err(err) => return Err(err),
        };
        let mut value = [0u8; 1];
        let opaque = rustix::fs::fgetxattr(&directory, "trusted.overlay.opaque", &mut value[..]);
        hides |= opaque.is_ok() && value == *b"y";
    }
    let stat = rustix::fs::statat(&directory, "", AtFlags::EMPTY_PATH)?;
    debug_assert_eq!(FileType::from_raw_mode(stat.st_mode), FileType::Directory);
    let looks = Looks {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (stat.st_mtime as i64, stat.st_mtime_nsec as i64),
    };
    Ok(Found::Directory { looks, opaque: hides })
}

/// What is wrong with a correcting layer, a sentence each: its directories must be those that its id tells.
pub(crate) fn examine(tree: &Path, id: &Digest) -> std::io::Result<Vec<String>> {
    let mut wanted: BTreeMap<String, Looks> = BTreeMap::new();
    let mut left = vec![String::new()];
    while let Some(path) = left.pop() {
        let place = tree.join(&path);
        let Found::Directory { looks, .. } = find(tree, &path)? else {
            return Ok(vec![format!("`/{path}` is no directory")]);
        };
        wanted.insert(path.clone(), looks);
        for entry in fs::read_dir(&place)? {
            let name = entry?.file_name();
            let Some(name) = name.to_str() else {
                return Ok(vec![format!("`/{path}/{}` does not belong there", name.display())]);
            };
            left.push(if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") });
        }
    }
    let same = id_of(&wanted) == *id;
    Ok(if same { Vec::new() } else { vec!["its directories are not as they were made".into()] })
}

fn id_of(wanted: &BTreeMap<String, Looks>) -> Digest {
    let description = serde_json::to_vec(wanted).expect("plain data");
    Digest::of(&[b"orlop correction ".as_slice(), &description].concat())
}

fn build(wanted: &BTreeMap<String, Looks>, staging: &Path) -> std::io::Result<()> {
    let root = staging.join("d");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&root)?;
    // Sorted: a directory comes before what lies in it. The names are those of real directories that our
    // own unpacking made, and the tree is new: no symbolic links here.
    for path in wanted.keys().filter(|path| !path.is_empty()) {
        fs::DirBuilder::new().mode(0o700).create(root.join(path))?;
    }
    for (path, looks) in wanted.iter().rev() {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::open(root.join(path), flags, Mode::empty())?;
        rustix::fs::fchown(&directory, Some(Uid::from_raw(looks.uid)), Some(Gid::from_raw(looks.gid)))?;
        rustix::fs::fchmod(&directory, Mode::from_raw_mode(looks.mode))?;
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ },
            last_modification: Timespec { tv_sec: looks.mtime.0, tv_nsec: looks.mtime.1 as _ },
        };
        rustix::fs::futimens(&directory, &times)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn implied_directories_look_as_below() {
        let temporary = tempfile::tempdir().expect("a directory");
        let level = |name: &str, paths: &[(&str, u32)], implied: &[&str]| {
            let tree = temporary.path().join(name);
            for (path, mode) in paths {
                fs::create_dir_all(tree.join(path)).expect("created");
                fs::set_permissions(tree.join(path), fs::Permissions::from_mode(*mode)).expect("set");
            }
            Level { tree, implied: implied.iter().map(|i| i.to_string()).collect() }
        };
        let levels = [
            level("top", &[("tmp", 0o755), ("etc", 0o755), ("home/a", 0o755)], &["tmp", "etc", "home/a"]),
            level("bottom", &[("tmp", 0o1777), ("etc", 0o755), ("home", 0o711), ("home/a", 0o700)], &[]),
        ];
        let staging = Staging::new(temporary.path().join("staging"));
        let made = make(&levels, staging).expect("made").expect("needed");
        let tree = made.tree().expect("staged");
        let mode = |path: &str| fs::metadata(tree.join(path)).expect("there").mode() & 0o7777;
        assert_eq!((mode("tmp"), mode("home/a")), (0o1777, 0o700));
        // `home` is on the way, and explicit in both: as the top has it.
        assert_eq!(mode("home"), fs::metadata(levels[0].tree.join("home")).expect("there").mode() & 0o7777);
        assert!(!tree.join("etc").exists());
    }
}
