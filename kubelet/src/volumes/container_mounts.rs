//! What a container gets mounted: its volumes, `/etc/hosts`, its termination-message file.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use cri_api::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod, Volume, VolumeMount};

use super::{host_path_of, mounts, payload};
use crate::container::expand::{expand, unknown};
use crate::pod::view;

/// Makes the mounts of a container; `images` are the ids of its image volumes. Blocks on file I/O. The error is the message of
/// `CreateContainerConfigError`.
pub fn make(
    pod_dir: &Path,
    pod: &Pod,
    container: &Container,
    env: &[(String, Vec<u8>)],
    images: &BTreeMap<String, String>,
) -> Result<Vec<cri::Mount>, String> {
    let volumes = view::spec(pod).volumes.as_deref().unwrap_or_default();
    let mut list = Vec::new();
    for (n, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let volume = volumes
            .iter()
            .find(|v| v.name == mount.name)
            .ok_or_else(|| format!("volume \"{}\" of mount {} not found", mount.name, mount.mount_path))?;
        if let Some(id) = images.get(&volume.name) {
            list.push(image(id, mount, env)?);
            continue;
        }
        list.push(one(pod_dir, container, volume, mount, n, env)?);
    }
    Ok(list)
}

fn one(
    pod_dir: &Path,
    container: &Container,
    volume: &Volume,
    mount: &VolumeMount,
    n: usize,
    env: &[(String, Vec<u8>)],
) -> Result<cri::Mount, String> {
    let root = host_path_of(pod_dir, volume).ok_or("the kind of volume is not supported")?;
    if volume.host_path.as_ref().is_some_and(|h| h.type_.as_deref().unwrap_or("").is_empty())
        && !root.exists()
    {
        fs::create_dir_all(&root).map_err(|err| format!("make hostPath {}: {err}", root.display()))?;
    }
    let source = match sub_path(mount, env)? {
        Some(path) => {
            let target =
                pod_dir.join("volume-subpaths").join(&volume.name).join(&container.name).join(n.to_string());
            bind_sub_path(&root, &path, &target).map_err(|err| {
                format!(
                    "failed to prepare subPath for volumeMount \"{}\" of container \"{}\": {err}",
                    mount.name, container.name
                )
            })?
        }
        None => root,
    };
    let propagation = match mount.mount_propagation.as_deref() {
        Some("HostToContainer") => cri::MountPropagation::PropagationHostToContainer,
        Some("Bidirectional") => cri::MountPropagation::PropagationBidirectional,
        _ => cri::MountPropagation::PropagationPrivate,
    };
    // The kubelet rewrites these files: nobody else may.
    let readonly = mount.read_only.unwrap_or(false) || payload::is_payload(volume);
    Ok(cri::Mount {
        container_path: absolute(&mount.mount_path),
        host_path: source.display().to_string(),
        readonly,
        propagation: propagation as i32,
        recursive_read_only: readonly
            && matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible")),
        // The node's own files keep their labels.
        selinux_relabel: volume.host_path.is_none(),
        ..Default::default()
    })
}

/// A mount of an image, which is always read-only.
fn image(id: &str, mount: &VolumeMount, env: &[(String, Vec<u8>)]) -> Result<cri::Mount, String> {
    Ok(cri::Mount {
        container_path: absolute(&mount.mount_path),
        readonly: true,
        image: Some(cri::ImageSpec { image: id.to_owned(), ..Default::default() }),
        image_sub_path: sub_path(mount, env)?.unwrap_or_default(),
        ..Default::default()
    })
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.into() } else { format!("/{path}") }
}

/// The sub-path a mount asks for, with its references expanded.
fn sub_path(mount: &VolumeMount, env: &[(String, Vec<u8>)]) -> Result<Option<String>, String> {
    let lookup = |name: &str| {
        env.iter().find(|(n, _)| n == name).map(|(_, v)| String::from_utf8_lossy(v).into_owned())
    };
    let path = match (&mount.sub_path, &mount.sub_path_expr) {
        (_, Some(expr)) if !expr.is_empty() => {
            if let Some(missing) = unknown(expr, lookup) {
                return Err(format!("missing value for \"{missing}\" in subPathExpr \"{expr}\""));
            }
            expand(expr, lookup)
        }
        (Some(path), _) if !path.is_empty() => path.clone(),
        _ => return Ok(None),
    };
    if path.starts_with('/') || path.split('/').any(|part| part == "..") {
        return Err(format!("subPath \"{path}\" must be relative and must not contain '..'"));
    }
    Ok(Some(path))
}

/// Says in words what the kernel says in numbers of a path that leads out of the volume.
fn said(err: io::Error, path: &str) -> io::Error {
    if err.raw_os_error() == Some(rustix::io::Errno::XDEV.raw_os_error()) {
        return io::Error::other(format!(
            "subPath \"{path}\" leads out of the volume through a symbolic link"
        ));
    }
    err
}

/// Opens the sub-path without leaving the volume and binds what was opened, so that nobody can
/// exchange it between the check and the mount.
fn bind_sub_path(root: &Path, path: &str, target: &Path) -> io::Result<PathBuf> {
    let found: OwnedFd = mounts::open_beneath(root, path).map_err(|err| said(err, path))?;
    let mode = rustix::fs::fstat(&found)?.st_mode;
    let is_dir = rustix::fs::FileType::from_raw_mode(mode) == rustix::fs::FileType::Directory;
    mounts::bind(&found, target, is_dir)?;
    Ok(target.to_path_buf())
}

/// The pod's `/etc/hosts`, if the container doesn't mount one of its own.
pub fn hosts(pod_dir: &Path, container: &Container) -> Option<cri::Mount> {
    let own = container.volume_mounts.iter().flatten().any(|m| m.mount_path == "/etc/hosts");
    (!own).then(|| cri::Mount {
        container_path: "/etc/hosts".into(),
        host_path: pod_dir.join("etc-hosts").display().to_string(),
        selinux_relabel: true,
        ..Default::default()
    })
}

/// Makes an empty termination-message file for one run of a container.
pub fn termination_message(
    pod_dir: &Path,
    container: &Container,
    attempt: u32,
) -> io::Result<Option<cri::Mount>> {
    let path = container.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
    if path.is_empty() {
        return Ok(None);
    }
    let dir = pod_dir.join("containers").join(&container.name);
    fs::create_dir_all(&dir)?;
    let file = dir.join(attempt.to_string());
    fs::write(&file, b"")?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666))?; // Any user of the container may write.
    Ok(Some(cri::Mount {
        container_path: path.into(),
        host_path: file.display().to_string(),
        selinux_relabel: true,
        ..Default::default()
    }))
}
