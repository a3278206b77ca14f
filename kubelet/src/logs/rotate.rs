//! Rotates container logs by size.
//!
//! `0.log` becomes `0.log.20261121-090000`, and the runtime opens `0.log` anew. Parts beyond the limit
//! are removed, oldest first.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cri_api::v1 as cri;
use jiff::Timestamp;
use tracing::warn;

use super::reader::rotated;
use crate::metrics::count;
use crate::shared::Shared;

/// Looks at the logs of all running containers once.
pub async fn rotate_all(shared: &Arc<Shared>) {
    let filter = cri::ContainerFilter {
        state: Some(cri::ContainerStateValue { state: cri::ContainerState::ContainerRunning as i32 }),
        ..Default::default()
    };
    let list = match shared.cri.list_containers(cri::ListContainersRequest { filter: Some(filter) }).await {
        Ok(list) => list.containers,
        Err(err) => return warn!(err = err.message(), "list containers to rotate their logs"),
    };
    for container in list {
        let request = cri::ContainerStatusRequest { container_id: container.id.clone(), verbose: false };
        let Ok(answer) = shared.cri.container_status(request).await else { continue }; // Gone meanwhile.
        let Some(path) = answer.status.map(|s| PathBuf::from(s.log_path)).filter(|p| p.is_absolute()) else {
            continue;
        };
        if !fs::symlink_metadata(&path)
            .is_ok_and(|m| m.is_file() && m.len() > shared.config.container_log_max_size)
        {
            continue;
        }
        match rotate(shared, &container.id, &path).await {
            Ok(()) => count(&shared.metrics.log_rotations),
            Err(err) => warn!(log = %path.display(), %err, "rotate a log"),
        }
    }
}

async fn rotate(shared: &Shared, id: &str, path: &Path) -> io::Result<()> {
    prune(path, usize::try_from(shared.config.container_log_max_files).unwrap_or(5).saturating_sub(2))?;
    let moved = PathBuf::from(format!("{}.{}", path.display(), Timestamp::now().strftime("%Y%m%d-%H%M%S")));
    fs::rename(path, &moved)?;
    let request = cri::ReopenContainerLogRequest { container_id: id.into() };
    if let Err(err) = shared.cri.reopen_container_log(request).await {
        // The runtime still writes to the moved file: it keeps its name for the next attempt.
        fs::rename(&moved, path)?;
        return Err(io::Error::other(format!("reopen: {}", err.message())));
    }
    Ok(())
}

/// Keeps the newest `keep` rotated parts.
pub fn prune(path: &Path, keep: usize) -> io::Result<()> {
    let parts = rotated(path)?;
    for old in &parts[..parts.len().saturating_sub(keep)] {
        fs::remove_file(old)?;
    }
    Ok(())
}
