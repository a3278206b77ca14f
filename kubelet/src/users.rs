//! Ids of pods that have users of their own (`hostUsers: false`).
//!
//! Each such pod gets a range that no other pod of the node has. It is written into the pod's directory and given
//! back with it; nothing is remembered elsewhere, so a restarted kubelet knows the same.
//!
//! Where the node has a user `kubelet` with ids in `/etc/subuid` and `/etc/subgid`, pods get those and no others. Else
//! they get any but those below the first range, which are the node's own, and those that the files give to others.
//!
//! Guarantees: two pods never share an id, nor any pod with a user of the node.
//! Assumes: a pod's directory is removed only after its containers are gone; the files don't change while the kubelet
//! runs.

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

/// Whose ids in the files are meant for pods.
const OWNER: &str = "kubelet";

/// The ids that pods are given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserIds {
    /// `userNamespaces.idsPerPod`.
    per_pod: u32,
    /// Those of the user `kubelet`, if it has any.
    own: Option<Range>,
    /// Those of other users.
    others: Vec<Range>,
}

impl Default for UserIds {
    fn default() -> Self {
        UserIds { per_pod: IDS_PER_POD, own: None, others: Vec::new() }
    }
}

impl UserIds {
    /// Reads what the node has for pods. Blocks on file I/O.
    ///
    /// # Errors
    /// A sentence: `per_pod` is no multiple of 65536, or the node has too few ids for `max_pods`, or has them in a way
    /// in which they can't be used.
    pub fn of_node(per_pod: u32, max_pods: u32) -> Result<UserIds, String> {
        let read = |path: &str| match fs::read_to_string(path) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            other => other.map_err(|err| format!("read {path}: {err}")),
        };
        UserIds::from_files(per_pod, max_pods, &read("/etc/subuid")?, &read("/etc/subgid")?)
    }

    /// `userNamespaces.idsPerPod`.
    pub fn per_pod(&self) -> u32 {
        self.per_pod
    }

    fn from_files(per_pod: u32, max_pods: u32, users: &str, groups: &str) -> Result<UserIds, String> {
        if per_pod == 0 || !per_pod.is_multiple_of(IDS_PER_POD) {
            return Err(format!("userNamespaces.idsPerPod is {per_pod}: use a multiple of {IDS_PER_POD}"));
        }
        let of = |text: &str, own: bool| -> Vec<Range> {
            subordinate(text).filter(|(name, _)| (*name == OWNER) == own).map(|(_, range)| range).collect()
        };
        let own = match (of(users, true).as_slice(), of(groups, true).as_slice()) {
            ([], []) => None,
            ([user], [group]) if user == group => Some(*user),
            _ => {
                return Err(format!(
                    "/etc/subuid and /etc/subgid must give the user {OWNER} one and the same range: make it so, or remove its lines"
                ));
            }
        };
        if let Some(range) = own {
            let whole = |number: u32| number.is_multiple_of(IDS_PER_POD);
            if range.host == 0 || !whole(range.host) || !whole(range.length) {
                return Err(format!(
                    "/etc/subuid gives the user {OWNER} {} ids from {} on: both must be multiples of {IDS_PER_POD}, and the first not 0",
                    range.length, range.host
                ));
            }
            if u64::from(range.length) < u64::from(per_pod) * u64::from(max_pods) {
                return Err(format!(
                    "/etc/subuid gives the user {OWNER} {} ids, too few for {max_pods} pods of {per_pod} each: give it more, or lower \
                     maxPods or userNamespaces.idsPerPod",
                    range.length
                ));
            }
        }
        Ok(UserIds { per_pod, own, others: [of(users, false), of(groups, false)].concat() })
    }

    /// The lowest range that is nobody's.
    fn free(&self, taken: &[Range]) -> Option<Range> {
        let step = u64::from(self.per_pod);
        let (first, end) = match self.own {
            Some(own) => (u64::from(own.host), u64::from(own.host) + u64::from(own.length)),
            None => (step, u64::from(u32::MAX)),
        };
        // The user's own range is nobody else's business, whatever the files say.
        let others = self.others.iter().filter(|_| self.own.is_none());
        let taken: Vec<&Range> = taken.iter().chain(others).collect();
        let overlapped = |from: u64| {
            taken
                .iter()
                .any(|t| from < u64::from(t.host) + u64::from(t.length) && u64::from(t.host) < from + step)
        };
        let mut from = first;
        while from + step <= end {
            if !overlapped(from) {
                return Some(Range { host: u32::try_from(from).ok()?, length: self.per_pod });
            }
            from += step;
        }
        None
    }
}

/// The lines of `/etc/subuid` or `/etc/subgid`: whose, and which; those that are none are left out.
fn subordinate(text: &str) -> impl Iterator<Item = (&str, Range)> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let (host, length) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some((name, Range { host, length })).filter(|_| length > 0)
    })
}

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
pub fn allocate(pods: &Path, pod_dir: &Path, ids: &UserIds) -> Result<Range, String> {
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
    let range = ids.free(&taken).ok_or_else(|| {
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
        let ids = UserIds::default();
        let get = |name: &str| allocate(&pods, &dir(name), &ids).expect("a range");
        let (a, b) = (get("a"), get("b"));
        assert_eq!((a.host, b.host), (65_536, 131_072));
        assert_eq!(get("a"), a, "a pod keeps its range");
        fs::remove_dir_all(dir("a")).expect("removed");
        assert_eq!(get("c").host, 65_536);
        assert_eq!(find(&dir("none")).expect("no file"), None);
        fs::write(dir("bad").join(FILE), "{").expect("written");
        assert!(allocate(&pods, &dir("d"), &ids).is_err(), "a range that cannot be read may be anybody's");
    }

    #[test]
    fn longer_ranges_avoid_shorter_ones() {
        let ids = UserIds { per_pod: 131_072, ..UserIds::default() };
        let short = Range { host: 131_072, length: 65_536 };
        assert_eq!(ids.free(&[short]), Some(Range { host: 262_144, length: 131_072 }));
        let all = UserIds { per_pod: 0xffff_0000, ..UserIds::default() };
        assert_eq!(all.free(&[]), None);
    }

    #[test]
    fn ids_of_other_users_are_left_to_them() {
        let made = |users: &str, groups: &str| UserIds::from_files(IDS_PER_POD, 2, users, groups);
        let first = |users: &str, groups: &str| made(users, groups).map(|ids| ids.free(&[]).map(|r| r.host));
        assert_eq!(first("", ""), Ok(Some(65_536)));
        // 100000 to 165535 touch the first two ranges; groups count as well.
        assert_eq!(first("# who\nann:100000:65536\n", ""), Ok(Some(196_608)));
        assert_eq!(first("ann:100000:65536\n", "1001:196608:1\nnonsense\n"), Ok(Some(262_144)));
        // Those of the kubelet are for pods, and only those.
        let own = "ann:100000:65536\nkubelet:131072:131072\n";
        let ids = made(own, own).expect("good ranges");
        let one = ids.free(&[]).expect("a range");
        assert_eq!(one, Range { host: 131_072, length: 65_536 });
        let two = ids.free(&[one]).expect("another one");
        assert_eq!((two.host, ids.free(&[one, two])), (196_608, None));
    }

    #[test]
    fn ids_that_cannot_be_used_are_named() {
        let wrong = |per_pod: u32, users: &str, groups: &str| {
            UserIds::from_files(per_pod, 10, users, groups).expect_err("refused")
        };
        assert!(wrong(70_000, "", "").contains("multiple of 65536"));
        assert!(wrong(0, "", "").contains("idsPerPod is 0"));
        let own = "kubelet:65536:655360\n";
        assert!(wrong(65_536, own, "").contains("one and the same range"));
        assert!(wrong(65_536, own, "kubelet:131072:655360\n").contains("one and the same range"));
        assert!(wrong(131_072, own, own).contains("too few for 10 pods of 131072"));
        assert!(wrong(65_536, "kubelet:100000:655360\n", "kubelet:100000:655360\n").contains("multiples"));
    }
}
