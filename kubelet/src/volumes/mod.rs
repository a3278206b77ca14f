//! The volumes of pods: set up, kept up to date, handed to containers, taken away.
//!
//! Layout below a pod's directory, the same as other kubelets':
//! `volumes/kubernetes.io~<plugin>/<volume>`, `volume-subpaths/<volume>/<container>/<n>`,
//! `containers/<name>/<attempt>` (termination messages), `etc-hosts`.
//!
//! Guarantees: setting up is idempotent, so a restarted kubelet does it again; taking away never
//! follows a link and never removes below a mount.
//! Caveats: the size limit of a disk-backed emptyDir is not enforced yet.

pub mod atomic;
pub mod container_mounts;
pub mod host_path;
pub mod mounts;
pub mod payload;
pub mod tokens;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod, Volume};

use crate::node::facts::HUGE_PAGES;
use crate::pod::view;
use crate::quantity;
use crate::users::Range;
use payload::Inputs;

/// Why a volume could not be set up. The text is what `kubectl describe` shows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume \"{volume}\" : {why}")]
pub struct SetUpError {
    /// The volume.
    pub volume: String,
    /// What went wrong.
    pub why: String,
}

/// Sets up all volumes of a pod below `pod_dir`, or brings them up to date. Blocks on file I/O.
/// Volumes that fail don't keep the others from being set up; the first failure is returned.
pub fn set_up(pod_dir: &Path, inputs: &Inputs<'_>, now: Timestamp) -> Result<(), SetUpError> {
    let mut first = Ok(());
    for volume in view::spec(inputs.pod).volumes.iter().flatten() {
        if let Err(why) = one(pod_dir, inputs, volume, now) {
            first = first.and(Err(SetUpError { volume: volume.name.clone(), why }));
        }
    }
    first
}

/// The host path behind a volume; `None` if its kind is not supported (admission refuses those).
pub fn host_path_of(pod_dir: &Path, volume: &Volume) -> Option<PathBuf> {
    if let Some(host) = &volume.host_path {
        return Some(PathBuf::from(&host.path));
    }
    let plugin = match () {
        () if volume.empty_dir.is_some() => "empty-dir",
        () if volume.config_map.is_some() => "configmap",
        () if volume.secret.is_some() => "secret",
        () if volume.downward_api.is_some() => "downward-api",
        () if volume.projected.is_some() => "projected",
        () => return None,
    };
    Some(pod_dir.join("volumes").join(format!("kubernetes.io~{plugin}")).join(&volume.name))
}

fn one(pod_dir: &Path, inputs: &Inputs<'_>, volume: &Volume, now: Timestamp) -> Result<(), String> {
    if volume.image.is_some() {
        return Ok(()); // Pulled and mounted with each container.
    }
    if let Some(host) = &volume.host_path {
        return host_path::check(&host.path, host.type_.as_deref().unwrap_or(""));
    }
    let unmapped =
        crate::users::unmapped(pod_dir).map_err(|err| format!("read the pod's user ids: {err}"))?;
    let dir = host_path_of(pod_dir, volume).ok_or("the kind of volume is not supported")?;
    let gid = fs_group(inputs.pod);
    if let Some(source) = &volume.empty_dir {
        let pages = page_size(inputs.pod, source)?;
        return empty_dir(&dir, source, pages, gid, unmapped).map_err(|err| format!("make emptyDir: {err}"));
    }
    let mut files = payload::make(inputs, volume)?;
    let on_disk = volume.config_map.is_some();
    let shift = unmapped.filter(|_| !on_disk);
    let (uid, gid) = owner(gid, shift);
    if let Some(range) = shift {
        for file in files.values_mut() {
            file.uid = Some(range.host.saturating_add(file.uid.unwrap_or(0)));
        }
    }
    let write = || -> io::Result<()> {
        if on_disk {
            fs::create_dir_all(&dir)?;
        } else {
            mounts::tmpfs(&dir, None, 0o755)?; // Secrets never touch a disk.
        }
        own(&dir, 0o755, uid, gid)?;
        atomic::write(&dir, &files, gid, now).map(|_| ())
    };
    write().map_err(|err| format!("write files: {err}"))
}

/// Owner and group of a volume, as they stand on its file system.
fn owner(gid: Option<u32>, shift: Option<Range>) -> (Option<u32>, Option<u32>) {
    match shift {
        None => (None, gid),
        Some(range) => (Some(range.host), Some(range.host.saturating_add(gid.unwrap_or(0)))),
    }
}

fn empty_dir(
    dir: &Path,
    source: &EmptyDirVolumeSource,
    pages: Option<i64>,
    gid: Option<u32>,
    unmapped: Option<Range>,
) -> io::Result<()> {
    let fresh = !dir.exists();
    if let Some(size) = pages {
        let mounted = dir.exists() && mounts::is_mounted(dir)?;
        mounts::huge_pages(dir, size)?;
        return if mounted { Ok(()) } else { own(dir, 0o777, None, gid) };
    }
    match source.medium.as_deref() {
        Some("Memory") => {
            let limit = source.size_limit.as_ref().and_then(|q| quantity::whole(&q.0));
            let size = limit.and_then(|l| u64::try_from(l).ok()).filter(|l| *l > 0);
            let mounted = dir.exists() && mounts::is_mounted(dir)?;
            mounts::tmpfs(dir, size, 0o777)?;
            let (uid, gid) = owner(gid, unmapped);
            if mounted { Ok(()) } else { own(dir, 0o777, uid, gid) }
        }
        _ => {
            fs::create_dir_all(dir)?;
            // What containers made of it since then is theirs.
            if fresh { own(dir, 0o777, None, gid) } else { Ok(()) }
        }
    }
}

/// The size in bytes of an emptyDir's huge pages, if it is made of such: the one that its medium names, or the only one
/// that the pod asks for.
fn page_size(pod: &Pod, source: &EmptyDirVolumeSource) -> Result<Option<i64>, String> {
    let Some(rest) = source.medium.as_deref().and_then(|medium| medium.strip_prefix("HugePages")) else {
        return Ok(None);
    };
    let sizes: BTreeSet<&str> = view::members(view::spec(pod))
        .filter_map(|member| member.spec.resources.as_ref())
        .flat_map(|resources| resources.limits.iter().flat_map(|list| list.keys()))
        .filter_map(|kind| kind.strip_prefix(HUGE_PAGES))
        .collect();
    let size = match (rest.strip_prefix('-'), sizes.len()) {
        (Some(named), _) if sizes.contains(named) => named,
        (Some(named), _) => {
            return Err(format!("medium HugePages-{named}: no container has a limit of {HUGE_PAGES}{named}"));
        }
        (None, 1) => sizes.first().copied().unwrap_or_default(),
        (None, 0) => return Err("medium HugePages: no container has a limit of huge pages".into()),
        (None, _) => {
            return Err("medium HugePages: the pod has several sizes: name one, as in HugePages-2Mi".into());
        }
    };
    quantity::whole(size).map(Some).ok_or_else(|| format!("medium HugePages: {size:?} is no size"))
}

fn own(dir: &Path, mode: u32, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    let setgid = if gid.is_some() { 0o2000 } else { 0 };
    if uid.is_some() || gid.is_some() {
        chown(dir, uid, gid)?;
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(mode | setgid))
}

/// The group that owns the pod's volumes.
pub fn fs_group(pod: &Pod) -> Option<u32> {
    let group = view::spec(pod).security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

/// Makes the directory of a pod: nobody else may look into `root/pods`, containers get mounts.
pub fn make_pod_dir(pod_dir: &Path) -> io::Result<()> {
    fs::create_dir_all(pod_dir)?;
    if let Some(pods) = pod_dir.parent() {
        fs::set_permissions(pods, fs::Permissions::from_mode(0o700))?;
    }
    fs::set_permissions(pod_dir, fs::Permissions::from_mode(0o750))
}

/// Unmounts what is mounted for a pod and removes its volumes; disk-backed emptyDirs are lost with it.
pub fn tear_down(pod_dir: &Path) -> io::Result<()> {
    mounts::remove_tree(pod_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_have_the_size_that_is_meant() {
        let size = |medium: &str, limits: serde_json::Value| {
            let resources = serde_json::json!({ "limits": limits });
            let pod =
                serde_json::json!({ "spec": { "containers": [{ "name": "c", "resources": resources }] } });
            let source = EmptyDirVolumeSource { medium: Some(medium.into()), ..Default::default() };
            page_size(&serde_json::from_value(pod).expect("a pod"), &source)
        };
        let small = || serde_json::json!({ "hugepages-2Mi": "4Mi" });
        let both = || serde_json::json!({ "hugepages-2Mi": "4Mi", "hugepages-1Gi": "1Gi" });
        assert_eq!(size("Memory", small()), Ok(None));
        assert_eq!(size("HugePages", small()), Ok(Some(2 << 20)));
        assert_eq!(size("HugePages-1Gi", both()), Ok(Some(1 << 30)));
        assert!(size("HugePages", both()).unwrap_err().contains("HugePages-2Mi"));
        assert!(size("HugePages-1Gi", small()).unwrap_err().contains("hugepages-1Gi"));
        assert!(size("HugePages", serde_json::json!({})).unwrap_err().contains("no container"));
    }

    #[test]
    fn a_tmpfs_that_cannot_be_mapped_has_the_pods_ids_itself() {
        let range = Range { host: 65_536, length: 65_536 };
        assert_eq!(owner(Some(5), None), (None, Some(5)));
        assert_eq!(owner(None, None), (None, None));
        assert_eq!(owner(Some(5), Some(range)), (Some(65_536), Some(65_541)));
        assert_eq!(owner(None, Some(range)), (Some(65_536), Some(65_536)));
    }
}
