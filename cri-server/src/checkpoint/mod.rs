//! CheckpointContainer: a running container's processes, changed files and description in one archive.
//!
//! The archive has the names and forms that checkpointctl, containerd, CRI-O and Podman read: CRIU's images below
//! `checkpoint/`, `config.dump`, `spec.dump`, `status.dump`, `status`, `rootfs-diff.tar`, `deleted.files`, `dump.log`,
//! `stats-dump`, `container.log`.
//!
//! Guarantees: the archive is whole or not there, and only root may read it; the container goes on running.
//! Caveat: files are packed after the processes were dumped, while the container runs: what it writes meanwhile is in
//! the archive or not.

mod changes;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cri_api::v1::CheckpointContainerRequest;
use runtime::{Checkpoint, Container, ContainerState};
use serde_json::{Value, json};
use tokio::time::Instant;
use tonic::Status;

use crate::container::container_id;
use crate::error::{invalid, status};
use crate::meta::{ContainerMeta, SandboxMeta};
use crate::server::Inner;
use crate::{sandbox_spec, view};
use changes::Packer;

/// How long it may take when the client doesn't say: enough for some GiB of memory on a slow disk.
const PATIENCE: Duration = Duration::from_secs(120);
/// Longest that a client can ask for.
const LONGEST: i64 = 24 * 3600;

impl Inner {
    pub(crate) async fn checkpoint_container(
        &self,
        request: CheckpointContainerRequest,
    ) -> Result<(), Status> {
        let id = self.index.container_id(&request.container_id)?;
        let location = location(&request.location)?;
        let patience = patience(request.timeout)?;
        let deadline = Instant::now() + patience;
        let runtime_id = container_id(&id)?;
        let container = self.runtime.container(&runtime_id);
        let container = container.ok_or_else(|| Status::not_found(format!("no container {id}")))?;
        let meta =
            self.index.container(&id).ok_or_else(|| Status::not_found(format!("no container {id}")))?;
        let pod = self.index.sandbox(container.spec.sandbox.as_str()).unwrap_or_default();
        let checkpoint = self.runtime.checkpoint(&runtime_id, patience).await.map_err(status)?;

        let given_up = Arc::new(AtomicBool::new(false));
        let work = {
            let (given_up, name) = (given_up.clone(), id.clone());
            tokio::task::spawn_blocking(move || {
                let documents = documents(&container, &meta, &pod, &checkpoint.spec);
                pack(&location, &checkpoint, &documents, &container, &pod, &meta, &given_up).map_err(
                    |error| {
                        Status::internal(format!(
                            "write the checkpoint of container {name} to {}: {error}",
                            location.display()
                        ))
                    },
                )
            })
        };
        match tokio::time::timeout_at(deadline, work).await {
            Ok(Ok(packed)) => packed,
            Ok(Err(error)) => Err(Status::internal(format!("packing a checkpoint broke off: {error}"))),
            Err(_elapsed) => {
                given_up.store(true, Ordering::Relaxed);
                Err(Status::deadline_exceeded(format!(
                    "checkpoint container {id}: not packed after {} s; the container goes on running",
                    patience.as_secs()
                )))
            }
        }
    }
}

/// Where the archive goes.
fn location(text: &str) -> Result<PathBuf, Status> {
    let path = PathBuf::from(text);
    let is_file = path.is_absolute() && path.file_name().is_some() && !text.ends_with('/');
    if !is_file {
        return Err(invalid(format!(
            "the location {text:?} is no absolute path of a file: checkpoints are written to files, not to images"
        )));
    }
    Ok(path)
}

fn patience(seconds: i64) -> Result<Duration, Status> {
    match u64::try_from(seconds) {
        Ok(0) => Ok(PATIENCE),
        Ok(some) if seconds <= LONGEST => Ok(Duration::from_secs(some)),
        _ => Err(invalid(format!("a timeout of {seconds} s: 0 (the default) to {LONGEST} is wanted"))),
    }
}

/// Whether a layer is a checkpoint made into an image.
pub fn is_checkpoint(layer: &Path) -> bool {
    let seen = |name: &str| std::fs::symlink_metadata(layer.join(name));
    let file = |name: &str| seen(name).is_ok_and(|seen| seen.is_file());
    file("config.dump") && file("spec.dump") && seen("checkpoint").is_ok_and(|seen| seen.is_dir())
}

/// Why no container is made of a checkpoint.
pub fn no_restore(name: &str) -> Status {
    Status::unimplemented(format!(
        "{name:?} is a checkpoint, and restoring is not supported: make the container of the image that it was made of"
    ))
}

/// The documents of the archive, by name.
fn documents(
    container: &Container,
    meta: &ContainerMeta,
    pod: &SandboxMeta,
    spec: &Value,
) -> Vec<(&'static str, Value)> {
    let name = meta.config.metadata.clone().unwrap_or_default().name;
    let of_pod = pod.config.metadata.clone().unwrap_or_default();
    let started = match &container.state {
        ContainerState::Running { started_at, .. } => view::nanos(*started_at),
        _ => 0,
    };
    let runtime = if pod.handler.is_empty() { runtime::handler::NATIVE } else { &pod.handler };
    let mut spec = spec.clone();
    // By these, tools find the pod of a container.
    for (key, value) in [
        ("container-type", "container"),
        ("container-name", &name),
        ("image-name", &meta.image_name),
        ("sandbox-id", container.spec.sandbox.as_str()),
        ("sandbox-name", &of_pod.name),
        ("sandbox-namespace", &of_pod.namespace),
        ("sandbox-uid", &of_pod.uid),
    ] {
        spec["annotations"][format!("io.kubernetes.cri.{key}")] = value.into();
    }
    let config = json!({
        "id": container.id().as_str(),
        "name": name,
        "rootfsImage": meta.image_name,
        "rootfsImageRef": meta.image_ref,
        "rootfsImageName": meta.image_name,
        "runtime": runtime,
        "createdTime": container.created_at.to_string(),
        "checkpointedTime": jiff::Timestamp::now().to_string(),
        "restoredTime": "0001-01-01T00:00:00Z",
        "restored": false,
    });
    let short = json!({
        "CreatedAt": view::nanos(container.created_at),
        "StartedAt": started,
        "FinishedAt": 0,
        "ExitCode": 0,
        "Pid": container.pid().unwrap_or(0),
        "Reason": "",
        "Message": "",
    });
    let full = serde_json::to_value(view::container_status(container, meta)).unwrap_or_default();
    vec![("config.dump", config), ("spec.dump", spec), ("status.dump", full), ("status", short)]
}

/// A file beside its later place; gone unless it gets there.
struct Aside(PathBuf);

impl Drop for Aside {
    fn drop(&mut self) {
        match std::fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.0.display(), %error, "remove an unfinished checkpoint");
            }
            _ => {}
        }
    }
}

fn private(path: &Path) -> io::Result<File> {
    File::options().write(true).read(true).create_new(true).mode(0o600).open(path)
}

fn pack(
    location: &Path,
    checkpoint: &Checkpoint,
    documents: &[(&'static str, Value)],
    container: &Container,
    pod: &SandboxMeta,
    meta: &ContainerMeta,
    given_up: &AtomicBool,
) -> io::Result<()> {
    let ids = sandbox_spec::user_namespace(&sandbox_spec::options(&pod.config)).ok().flatten();
    let diff = checkpoint.directory.join("rootfs-diff.tar");
    let mut packer = Packer::new(BufWriter::new(private(&diff)?), &container.spec.rootfs, ids, given_up);
    packer.add_tree(&checkpoint.changes)?;
    let (mut written, deleted) = packer.finish()?;
    written.flush()?;

    let directory = location.parent().unwrap_or(Path::new("/"));
    let aside = Aside(directory.join(format!(".checkpoint-{}", uuid::Uuid::new_v4())));
    let mut archive = tar::Builder::new(BufWriter::new(private(&aside.0)?));
    for (name, document) in documents {
        add_bytes(&mut archive, name, &serde_json::to_vec_pretty(document)?)?;
    }
    if !deleted.is_empty() {
        add_bytes(&mut archive, "deleted.files", &serde_json::to_vec(&deleted)?)?;
    }
    for name in ["dump.log", "stats-dump", "rootfs-diff.tar"] {
        add_file(&mut archive, &checkpoint.directory.join(name), name)?;
    }
    if !meta.log_path.is_empty() {
        add_file(&mut archive, Path::new(&meta.log_path), "container.log")?;
    }
    let mut images: Vec<_> =
        std::fs::read_dir(checkpoint.directory.join("checkpoint"))?.collect::<io::Result<_>>()?;
    images.sort_by_key(std::fs::DirEntry::file_name);
    add_directory(&mut archive, "checkpoint/")?;
    for image in images {
        changes::go_on(given_up)?;
        add_file(
            &mut archive,
            &image.path(),
            &format!("checkpoint/{}", image.file_name().to_string_lossy()),
        )?;
    }
    let file = archive.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    std::fs::rename(&aside.0, location)
}

fn header(kind: tar::EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(if kind.is_dir() { 0o700 } else { 0o600 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0));
    header.set_size(size);
    header
}

fn add_bytes(archive: &mut tar::Builder<impl Write>, name: &str, bytes: &[u8]) -> io::Result<()> {
    archive.append_data(&mut header(tar::EntryType::Regular, bytes.len() as u64), name, bytes)
}

fn add_directory(archive: &mut tar::Builder<impl Write>, name: &str) -> io::Result<()> {
    archive.append_data(&mut header(tar::EntryType::Directory, 0), name, io::empty())
}

/// One that is not there (statistics of an older CRIU, a log that was rotated just now) is left out.
fn add_file(archive: &mut tar::Builder<impl Write>, path: &Path, name: &str) -> io::Result<()> {
    let file = match File::options()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
        .open(path)
    {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let size = file.metadata()?.len();
    archive.append_data(&mut header(tar::EntryType::Regular, size), name, changes::Exactly::new(file, size))
}

#[cfg(test)]
mod tests;
