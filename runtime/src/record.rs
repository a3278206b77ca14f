//! What survives this process: one JSON file per sandbox and container, below the run directory.
//!
//! Guarantees: a file is whole or not there (written aside, then renamed). No fsync: the directory is a tmpfs, or is
//! emptied after a reboot anyway.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use keeper::protocol::ProcessId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::RuntimeError;
use crate::spec::{ContainerSpec, ResolvedUser, SandboxSpec};
use crate::state::{Brief, Container, ContainerState, Sandbox, SandboxBrief, SandboxState};

/// A sandbox on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// As asked for, without `meta`.
    pub spec: Arc<SandboxSpec>,
    /// The caller's data.
    pub meta: Arc<serde_json::Value>,
    /// Ready or not.
    pub state: SandboxState,
    /// When it was made.
    pub created_at: Timestamp,
    /// Its cgroup, from the root of the file system.
    pub cgroup: String,
    /// Whether this runtime made the cgroup, so that it also removes it.
    pub cgroup_made: bool,
    /// Its level of SELinux.
    #[serde(default)]
    pub level: Option<String>,
    /// Its init.
    pub init: Option<ProcessId>,
    /// What cannot be enforced.
    pub unenforced: Vec<String>,
}

impl SandboxRecord {
    /// What lists show of it.
    pub fn brief(&self) -> SandboxBrief<'_> {
        SandboxBrief { id: &self.spec.id, state: self.state, created_at: self.created_at }
    }

    /// A snapshot; `netns` is where the network namespace is pinned, if it has one.
    pub fn snapshot(&self, netns: Option<PathBuf>) -> Sandbox {
        Sandbox {
            spec: self.spec.clone(),
            meta: self.meta.clone(),
            state: self.state,
            created_at: self.created_at,
            netns,
            init_pid: self.init.and_then(|init| u32::try_from(init.pid).ok()),
            cgroup: self.cgroup.clone(),
            unenforced: self.unenforced.clone(),
        }
    }
}

/// A container on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// As asked for, without `meta`.
    pub spec: Arc<ContainerSpec>,
    /// The caller's data.
    pub meta: Arc<serde_json::Value>,
    /// Where in its life it is.
    pub state: ContainerState,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who it runs as.
    pub user: ResolvedUser,
    /// Its cgroup, from the root of the file system.
    pub cgroup: String,
    /// Its process, once it was started.
    pub process: Option<ProcessId>,
    /// What cannot be enforced.
    pub unenforced: Vec<String>,
}

impl ContainerRecord {
    /// What lists show of it.
    pub fn brief(&self) -> Brief<'_> {
        Brief { spec: &self.spec, state: &self.state, created_at: self.created_at }
    }

    /// A snapshot.
    pub fn snapshot(&self) -> Container {
        Container {
            spec: self.spec.clone(),
            meta: self.meta.clone(),
            state: self.state.clone(),
            created_at: self.created_at,
            user: self.user.clone(),
            cgroup: self.cgroup.clone(),
            unenforced: self.unenforced.clone(),
        }
    }
}

/// Writes a record.
pub fn write<T: Serialize>(dir: &Path, id: &str, record: &T) -> Result<(), RuntimeError> {
    let step = || format!("write the record of {id}");
    let json =
        serde_json::to_vec(record).map_err(|error| RuntimeError::io(step())(std::io::Error::other(error)))?;
    RuntimeError::fault("record: write it aside")?;
    let aside = dir.join(format!(".{id}.{}", uuid::Uuid::new_v4()));
    let written = std::fs::write(&aside, json)
        .and_then(|()| sys::fault::point("record: put it in place"))
        .and_then(|()| std::fs::rename(&aside, dir.join(format!("{id}.json"))));
    if written.is_err() {
        // If it is there at all; a next daemon would remove it, too.
        let _ = std::fs::remove_file(&aside);
    }
    written.map_err(RuntimeError::io(step()))
}

/// Removes a record; a missing one is fine.
pub fn remove(dir: &Path, id: &str) -> Result<(), RuntimeError> {
    match std::fs::remove_file(dir.join(format!("{id}.json"))) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(RuntimeError::io(format!("remove the record of {id}"))(error))
        }
        _ => Ok(()),
    }
}

/// Reads all records of a directory. One that cannot be read is logged, put aside and left out.
pub fn read_all<T: DeserializeOwned>(dir: &Path) -> std::io::Result<Vec<T>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
            // Left by a crash in the middle of `write`.
            let _ = std::fs::remove_file(&path);
            continue;
        }
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let parsed = std::fs::read(&path)
            .and_then(|bytes| serde_json::from_slice(&bytes).map_err(std::io::Error::other));
        match parsed {
            Ok(record) => all.push(record),
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "leave out a record that cannot be read");
                let _ = std::fs::rename(&path, path.with_extension("broken"));
            }
        }
    }
    Ok(all)
}
