//! Where logs are, and their removal.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::pod::observed::Seen;
use crate::pod::view::PodKey;

/// Directory of a pod's logs.
pub fn pod_dir(config: &Config, key: &PodKey) -> PathBuf {
    config.pod_logs_dir.join(key.log_dir())
}

/// The log of one run of a container.
pub fn run(config: &Config, key: &PodKey, container: &str, attempt: u32) -> PathBuf {
    pod_dir(config, key).join(container).join(format!("{attempt}.log"))
}

/// Links the log under the name that log collectors look for.
pub fn link(config: &Config, key: &PodKey, container: &str, attempt: u32, id: &str) -> io::Result<()> {
    fs::create_dir_all(&config.container_logs_dir)?;
    let link = config.container_logs_dir.join(format!("{}_{}_{container}-{id}.log", key.name, key.namespace));
    remove_file(&link)?;
    symlink(run(config, key, container, attempt), link)
}

/// Removes the log of one run, its rotated parts and its link.
pub fn remove_run(config: &Config, key: &PodKey, c: &Seen) -> io::Result<()> {
    let log = run(config, key, &c.name, c.attempt);
    let prefix = format!("{}.log", c.attempt);
    if let Some(dir) = log.parent() {
        for entry in list(dir)? {
            let name = entry.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            if name == prefix || name.starts_with(&format!("{prefix}.")) {
                remove_file(&entry)?;
            }
        }
    }
    remove_file(
        &config.container_logs_dir.join(format!("{}_{}_{}-{}.log", key.name, key.namespace, c.name, c.id)),
    )
}

/// Removes all logs of a pod.
pub fn remove_pod(config: &Config, key: &PodKey) -> io::Result<()> {
    let dir = pod_dir(config, key);
    for link in list(&config.container_logs_dir)? {
        if fs::read_link(&link).is_ok_and(|target| target.starts_with(&dir)) {
            remove_file(&link)?;
        }
    }
    match fs::remove_dir_all(&dir) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
        _ => Ok(()),
    }
}

fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|e| e.map(|e| e.path())).collect(),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(err) => Err(err),
    }
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
        _ => Ok(()),
    }
}
