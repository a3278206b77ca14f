//! Ids of pods that have users of their own (`hostUsers: false`).
//!
//! Each such pod gets a range that no other pod of the node has. It is written into the pod's directory and given
//! back with it; nothing is remembered elsewhere, so a restarted kubelet knows the same.
//!
//! Guarantees: two pods never share an id, nor any pod with the node's own users below the first range.
//! Assumes: a pod's directory is removed only after its containers are gone.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Mutex;

use cri_api::v1 as cri;
use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};

use crate::pod::view;

/// Ids of each pod: `userNamespaces.idsPerPod`, whose default is also the least.
pub const IDS_PER_POD: u32 = 65_536;

/// The file in a pod's directory; the name and form are those of other kubelets.
const FILE: &str = "userns";

/// One allocation at a time.
static ALLOCATING: Mutex<()> = Mutex::new(());

/// The ids of one pod: its 0 is the node's `host`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First id on the node.
    pub host: u32,
    /// How many.
    pub length: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    uid_mappings: Vec<Mapping>,
    gid_mappings: Vec<Mapping>,
}

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    host_id: u32,
    container_id: u32,
    length: u32,
}

impl Range {
    /// For the runtime.
    pub fn mappings(self) -> Vec<cri::IdMapping> {
        vec![cri::IdMapping { host_id: self.host, container_id: 0, length: self.length }]
    }

    /// For a sandbox.
    pub fn namespace(self) -> cri::UserNamespace {
        let mode = cri::NamespaceMode::Pod as i32;
        cri::UserNamespace { mode, uids: self.mappings(), gids: self.mappings() }
    }
}

/// Whether a pod wants users of its own.
pub fn wanted(pod: &Pod) -> bool {
    view::spec(pod).host_users == Some(false)
}

/// The ids that a pod has, if it has any of its own. An unreadable file is an error: guessing would be unsafe.
pub fn find(pod_dir: &Path) -> io::Result<Option<Range>> {
    let text = match fs::read(pod_dir.join(FILE)) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let written: Written = serde_json::from_slice(&text).map_err(io::Error::other)?;
    match (written.uid_mappings.as_slice(), written.gid_mappings.as_slice()) {
        ([user], [group]) if user == group && user.container_id == 0 => {
            Ok(Some(Range { host: user.host_id, length: user.length }))
        }
        _ => Err(io::Error::other("one mapping from 0 on, the same for users and groups, is wanted")),
    }
}

/// Gives a pod its ids: those it has, or the lowest free range. Blocks on file I/O.
pub fn allocate(pods: &Path, pod_dir: &Path, ids_per_pod: u32) -> Result<Range, String> {
    let say = |what: &str, err: &dyn std::fmt::Display| format!("{what} the pod's user ids: {err}");
    // Nothing is half-done under this lock, so a poisoned one is as good.
    let _one = ALLOCATING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(range) = find(pod_dir).map_err(|err| say("read", &err))? {
        return Ok(range);
    }
    let mut taken = Vec::new();
    for entry in fs::read_dir(pods).map_err(|err| say("look for", &err))? {
        let dir = entry.map_err(|err| say("look for", &err))?.path();
        let found = find(&dir).map_err(|err| format!("read {}: {err}", dir.join(FILE).display()))?;
        taken.extend(found);
    }
    let range = free(&taken, ids_per_pod).ok_or_else(|| {
        "no range of user ids is left on this node: remove pods with hostUsers false".to_owned()
    })?;
    let mapping = vec![Mapping { host_id: range.host, container_id: 0, length: range.length }];
    let written = Written { uid_mappings: mapping.clone(), gid_mappings: mapping };
    let write = || -> io::Result<()> {
        let aside = pod_dir.join(".userns");
        fs::write(&aside, serde_json::to_vec(&written).map_err(io::Error::other)?)?;
        fs::File::open(&aside)?.sync_all()?;
        fs::rename(&aside, pod_dir.join(FILE))?;
        fs::File::open(pod_dir)?.sync_all()
    };
    write().map_err(|err| say("write", &err))?;
    Ok(range)
}

/// The lowest range that overlaps none of the others; those below the first belong to the node.
fn free(taken: &[Range], length: u32) -> Option<Range> {
    let overlapped = |from: u64| {
        let to = from + u64::from(length);
        taken.iter().any(|t| from < u64::from(t.host) + u64::from(t.length) && u64::from(t.host) < to)
    };
    // Candidates are multiples of the length, and no more of them can be taken than there are others.
    let skip: BTreeSet<u64> = (1..).take(2 * taken.len() + 1).collect();
    let place = skip.into_iter().map(|n| n * u64::from(length)).find(|from| !overlapped(*from))?;
    let host = u32::try_from(place).ok()?;
    host.checked_add(length).filter(|end| *end < u32::MAX).map(|_| Range { host, length })
}

/// Lets a container's mounts show the pod's ids. Images have them anyway; files on a tmpfs that this kernel cannot
/// map were made with them (see [`unmapped`]).
pub fn map(mounts: &mut [cri::Mount], range: Range) {
    let as_they_are = |path: &str| !sys::features::mapped_tmpfs() && on_tmpfs(Path::new(path));
    for mount in mounts.iter_mut().filter(|mount| mount.image.is_none() && !as_they_are(&mount.host_path)) {
        mount.uid_mappings = range.mappings();
        mount.gid_mappings = range.mappings();
    }
}

fn on_tmpfs(path: &Path) -> bool {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type as u64 == TMPFS_MAGIC)
}

/// The pod's ids, if its volumes on a tmpfs must have them on the file system itself, because this kernel (before
/// 6.3) maps no tmpfs.
pub fn unmapped(pod_dir: &Path) -> io::Result<Option<Range>> {
    match find(pod_dir)? {
        Some(range) if !sys::features::mapped_tmpfs() => Ok(Some(range)),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_never_overlap_and_come_back_with_their_pods() {
        let root = tempfile::tempdir().expect("a directory");
        let pods = root.path().join("pods");
        let dir = |name: &str| {
            let dir = pods.join(name);
            fs::create_dir_all(&dir).expect("a directory");
            dir
        };
        let get = |name: &str| allocate(&pods, &dir(name), IDS_PER_POD).expect("a range");
        let (a, b) = (get("a"), get("b"));
        assert_eq!((a.host, b.host), (65_536, 131_072));
        assert_eq!(get("a"), a, "a pod keeps its range");
        fs::remove_dir_all(dir("a")).expect("removed");
        assert_eq!(get("c").host, 65_536);
        assert_eq!(find(&dir("none")).expect("no file"), None);
        fs::write(dir("bad").join(FILE), "{").expect("written");
        assert!(
            allocate(&pods, &dir("d"), IDS_PER_POD).is_err(),
            "a range that cannot be read may be anybody's"
        );
    }

    #[test]
    fn longer_ranges_avoid_shorter_ones() {
        let short = Range { host: 131_072, length: 65_536 };
        assert_eq!(free(&[short], 131_072), Some(Range { host: 262_144, length: 131_072 }));
        assert_eq!(free(&[], u32::MAX), None);
    }
}
