//! A running container's processes written to files, by CRIU, while it goes on running.
//!
//! Guarantees: the container is left running, also when it can't be dumped; a dump that takes too long is told at once
//! and ends by itself, so that no process is left half-dumped, but for one that doesn't end even then.
//! Caveats: containers with a terminal, of other runtimes, or stopped by the freezer are refused. The files of the
//! writable layer are not CRIU's: who packs them does so while the container runs on.

mod command;

use std::collections::HashSet;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use keeper::protocol::ProcessId;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::containers::word;
use crate::core::{Inner, blocking, chain};
use crate::error::RuntimeError;
use crate::id::ContainerId;
use crate::record::ContainerRecord;
use crate::spec::NamespaceMode;
use crate::state::ContainerState;
use command::Seen;

/// How long a dump that nobody waits for any more may take: killing CRIU can leave its victim half-dumped.
const LAST_PATIENCE: Duration = Duration::from_secs(60);
/// Where programs are.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Most of a log that is read for a cause, in bytes.
const LOG: u64 = 4 << 20;

/// A container's processes in files. They are removed with this.
#[derive(Debug)]
pub struct Checkpoint {
    /// CRIU's images in `checkpoint/`, beside them `dump.log` and `stats-dump`.
    pub directory: PathBuf,
    /// The container as an OCI document.
    pub spec: Value,
    /// The writable layer's changed files, as overlayfs keeps them.
    pub changes: PathBuf,
}

impl Drop for Checkpoint {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.directory) {
            tracing::warn!(path = %self.directory.display(), %error, "remove the files of a checkpoint");
        }
    }
}

/// Containers that are being dumped.
#[derive(Debug, Default, Clone)]
pub struct Underway(Arc<Mutex<HashSet<ContainerId>>>);

/// One of them, until this is dropped.
struct Turn(Underway, ContainerId);

impl Underway {
    fn begin(&self, id: &ContainerId) -> Result<Turn, RuntimeError> {
        if self.0.lock().insert(id.clone()) {
            return Ok(Turn(self.clone(), id.clone()));
        }
        Err(RuntimeError::NotNow {
            what: format!("a checkpoint of container {id} is being made: try again later"),
        })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.0.lock().remove(&self.1);
    }
}

/// Where checkpoints are made.
pub fn place(data: &Path) -> PathBuf {
    data.join("checkpoints")
}

impl Inner {
    /// Dumps a running container. After `patience` the caller is told, and the dump goes on to its end without it.
    pub async fn checkpoint(
        self: &Arc<Self>,
        id: &ContainerId,
        patience: Duration,
    ) -> Result<Checkpoint, RuntimeError> {
        let record = self.container_record(id)?;
        let process = self.can_be_dumped(&record)?;
        let program = program(PATH).ok_or_else(|| RuntimeError::NotNow {
            what: "a checkpoint needs CRIU, and there is no program criu here: install the package criu"
                .into(),
        })?;
        let turn = self.underway.begin(id)?;
        let inner = self.clone();
        let work = tokio::spawn(async move {
            let _turn = turn;
            inner.dump(&program, &record, process, patience + LAST_PATIENCE).await
        });
        match tokio::time::timeout(patience, work).await {
            Ok(Ok(dumped)) => dumped,
            Ok(Err(error)) => {
                Err(RuntimeError::io(format!("checkpoint container {id}"))(std::io::Error::other(error)))
            }
            Err(_elapsed) => Err(RuntimeError::Timeout {
                step: format!("checkpoint container {id}"),
                seconds: patience.as_secs(),
            }),
        }
    }

    /// Refuses what CRIU would refuse in darker words, or leave in a bad state.
    fn can_be_dumped(&self, record: &ContainerRecord) -> Result<ProcessId, RuntimeError> {
        let id = &record.spec.id;
        let not_now = |what: &str| RuntimeError::NotNow { what: format!("container {id} {what}") };
        let (ContainerState::Running { .. }, Some(process)) = (&record.state, record.process) else {
            let is = word(&record.state);
            return Err(RuntimeError::WrongState { id: id.clone(), is, wanted: "running" });
        };
        if record.spec.tty {
            return Err(not_now("has a terminal, which can't be checkpointed: use one without tty"));
        }
        if self.is_delegated(record) {
            return Err(not_now("is run by another runtime: only the native one's can be checkpointed"));
        }
        if self.frozen(id) {
            return Err(not_now("is stopped by the freezer: thaw it to checkpoint it"));
        }
        Ok(process)
    }

    async fn dump(
        self: &Arc<Self>,
        program: &Path,
        record: &ContainerRecord,
        process: ProcessId,
        deadline: Duration,
    ) -> Result<Checkpoint, RuntimeError> {
        let (inner, copy) = (self.clone(), record.clone());
        let (checkpoint, arguments) = blocking(move || inner.prepare_dump(&copy, process)).await?;
        let id = &record.spec.id;
        let mut criu = Command::new(program);
        criu.args(arguments).env_clear().env("PATH", PATH).current_dir("/");
        criu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = criu.spawn().map_err(RuntimeError::io(format!("run {}", program.display())))?;
        let ended = wait(child, deadline).await;
        if ended.as_ref().is_ok_and(std::process::ExitStatus::success) {
            return Ok(checkpoint);
        }
        self.unlock_network(record).await;
        let log = checkpoint.directory.join("dump.log");
        let said = blocking(move || cause(&log)).await;
        let why = match (said, ended) {
            (Some(said), _) => std::io::Error::other(format!("CRIU says: {said}")),
            (None, Ok(status)) => std::io::Error::other(format!("CRIU ended with {status} and says nothing")),
            (None, Err(error)) => error,
        };
        Err(RuntimeError::io(format!("checkpoint container {id}, which goes on running"))(why))
    }

    /// Makes the directories, looks at the process, makes the arguments.
    fn prepare_dump(
        &self,
        record: &ContainerRecord,
        process: ProcessId,
    ) -> Result<(Checkpoint, Vec<String>), RuntimeError> {
        let id = &record.spec.id;
        let sandbox = self.sandbox_record(&record.spec.sandbox)?;
        let spec = self.oci_spec(&record.spec, &record.user, &record.cgroup, &sandbox)?;
        let spec = serde_json::to_value(&spec)
            .map_err(|error| RuntimeError::invalid(format!("OCI spec as JSON: {error}")))?;
        let pid = u32::try_from(process.pid).unwrap_or_default();
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let look = |file: &str| RuntimeError::io(format!("look at {}", proc.join(file).display()));
        let directory = place(&self.options.data).join(format!("{id}-{}", uuid::Uuid::new_v4()));
        let images = directory.join("checkpoint");
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&images)
            .map_err(RuntimeError::io(format!("make {}", images.display())))?;
        let changes = self.paths.layers.join(id.as_str()).join("upper");
        let checkpoint = Checkpoint { directory, spec, changes };

        let mounts = std::fs::read_to_string(proc.join("mountinfo")).map_err(look("mountinfo"))?;
        let node = sys::mountinfo::read().map_err(RuntimeError::io("read the node's mounts"))?;
        let inode = |name: &str| -> Result<u64, RuntimeError> {
            Ok(std::fs::metadata(proc.join("ns").join(name)).map_err(look(name))?.ino())
        };
        let own_pids = matches!(record.spec.namespaces.pid, NamespaceMode::Container | NamespaceMode::Node);
        let seen = Seen {
            pid,
            mounts: &sys::mountinfo::parse(&mounts),
            node: &node,
            net: match sandbox.spec.namespaces.net {
                NamespaceMode::Node => None,
                _ => Some(inode("net")?),
            },
            pids: if own_pids { None } else { Some(inode("pid")?) },
        };
        let arguments = command::arguments(&seen, &images, &checkpoint.directory)
            .map_err(|what| RuntimeError::NotNow { what: format!("container {id}: {what}") })?;
        write_descriptors(&proc, &images.join("descriptors.json"))?;
        // Between the record and now it may have ended, and its number may be another's.
        if crate::keepers::living(process).is_some() {
            return Ok((checkpoint, arguments));
        }
        Err(RuntimeError::WrongState { id: id.clone(), is: "exited", wanted: "running" })
    }

    /// Removes the table by which CRIU keeps a pod's network still, if one is left. Errors are logged: the caller has a
    /// better one.
    async fn unlock_network(self: &Arc<Self>, record: &ContainerRecord) {
        let netns = self.pins.of(record.spec.sandbox.as_str()).join("net");
        let id = record.spec.id.clone();
        let unlocked = blocking(move || {
            if !netns.exists() {
                return Ok(());
            }
            let netns = sys::namespace::open(&netns)?;
            sys::namespace::in_netns(std::os::fd::AsFd::as_fd(&netns), unlock)?
        })
        .await;
        if let Err(error) = unlocked {
            tracing::warn!(container = %id, error = %chain(&error), "let the network go on after a failed checkpoint");
        }
    }
}

/// In a pod's network namespace.
fn unlock() -> std::io::Result<()> {
    let nft = |words: &[&str]| {
        let mut nft = std::process::Command::new("nft");
        nft.args(words).env_clear().env("PATH", PATH).stdin(Stdio::null()).stderr(Stdio::null());
        nft.output()
    };
    let tables = nft(&["list", "tables"])?.stdout;
    for table in String::from_utf8_lossy(&tables).lines().filter_map(|line| line.strip_prefix("table inet "))
    {
        if table.starts_with("CRIU") && !nft(&["delete", "table", "inet", table])?.status.success() {
            return Err(std::io::Error::other(format!("the table {table} can't be deleted")));
        }
    }
    Ok(())
}

/// Waits for a child; kills it at the deadline.
async fn wait(mut child: Child, deadline: Duration) -> std::io::Result<std::process::ExitStatus> {
    match tokio::time::timeout(deadline, child.wait()).await {
        Ok(ended) => ended,
        Err(_elapsed) => {
            child.kill().await?;
            Err(std::io::Error::other("CRIU did not end and was killed"))
        }
    }
}

fn program(path: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    std::env::split_paths(path).map(|dir| dir.join("criu")).find(|file| {
        std::fs::metadata(file).is_ok_and(|seen| seen.is_file() && seen.permissions().mode() & 0o111 != 0)
    })
}

/// What standard input, output and error were: OCI runtimes ask for it when they restore.
fn write_descriptors(proc: &Path, file: &Path) -> Result<(), RuntimeError> {
    let step = || RuntimeError::io(format!("write {}", file.display()));
    let targets: Vec<String> = (0..3)
        .map(|number| std::fs::read_link(proc.join(format!("fd/{number}"))))
        .map(|target| target.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default())
        .collect();
    std::fs::write(file, json!(targets).to_string()).map_err(step())
}

fn cause(log: &Path) -> Option<String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(log).ok()?.take(LOG).read_to_end(&mut bytes).ok()?;
    command::cause(&String::from_utf8_lossy(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_dump_at_a_time() {
        let underway = Underway::default();
        let id: ContainerId = "c1".parse().expect("an id");
        let turn = underway.begin(&id).expect("nobody is there");
        let refused = underway.begin(&id).err().expect("refused");
        assert!(refused.to_string().contains("is being made"), "{refused}");
        drop(turn);
        underway.begin(&id).expect("free again");
    }

    #[test]
    fn a_program_is_a_file_that_runs() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a directory");
        let path = format!("/nowhere:{}", dir.path().display());
        assert_eq!(program(&path), None);
        let file = dir.path().join("criu");
        std::fs::write(&file, "#!/bin/sh\n").expect("written");
        assert_eq!(program(&path), None);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).expect("changed");
        assert_eq!(program(&path), Some(file));
    }

    #[tokio::test]
    async fn what_does_not_end_is_killed() {
        let child = Command::new("sleep").arg("1000").spawn().expect("starts");
        let error = wait(child, Duration::from_millis(50)).await.expect_err("killed");
        assert!(error.to_string().contains("killed"), "{error}");
    }
}
