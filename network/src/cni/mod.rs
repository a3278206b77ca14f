//! CNI 1.1: the node's network list, and its plugins by the book.
//!
//! Guarantees: a `DEL` is given the configuration and the result of its `ADD`, also after a restart and after the
//! configuration was replaced; a failed `ADD` is followed by `DEL`.
//! Assumes: plugins keep the specification's promises (`DEL` may be repeated).

mod conf;
mod exec;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

pub(crate) use conf::NetworkList;
use exec::{Plugins, Verb};

use crate::lease::replace;
use crate::model::{PodInfo, PodIps, PortMapping};

/// The only interface that Kubernetes asks for.
const IFNAME: &str = "eth0";

/// Why plugins could not do their work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CniError {
    /// A configuration that is none.
    #[error("CNI configuration {file}: {why}")]
    Config {
        /// Where it stands.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A file or directory that could not be read or written.
    #[error("{step} {path}")]
    File {
        /// What was tried.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A plugin that is nowhere.
    #[error("CNI plugin {plugin:?} is in none of {directories:?}")]
    NoPlugin {
        /// Its type.
        plugin: String,
        /// Where it was looked for.
        directories: Vec<PathBuf>,
    },
    /// A plugin that could not be run.
    #[error("run CNI plugin {plugin:?} ({command})")]
    Run {
        /// Its type.
        plugin: String,
        /// What it was to do.
        command: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A plugin that reported an error.
    #[error("CNI plugin {plugin:?} ({command}) failed with code {code}: {message}")]
    Plugin {
        /// Its type.
        plugin: String,
        /// What it was to do.
        command: &'static str,
        /// The code: below 100 by the specification, else the plugin's own.
        code: u64,
        /// The message, with its details.
        message: String,
    },
    /// A plugin whose output is no CNI result.
    #[error("read the result of CNI plugin {plugin:?} ({command})")]
    Result {
        /// Its type.
        plugin: String,
        /// What it was to do.
        command: &'static str,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A plugin that does not speak the list's version.
    #[error("CNI plugin {plugin:?} does not support CNI {wanted}, only {supported:?}")]
    Version {
        /// Its type.
        plugin: String,
        /// What the list asks for.
        wanted: String,
        /// What it can.
        supported: Vec<String>,
    },
}

/// A pod's connection, as plugins are told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attachment {
    pub(crate) id: String,
    pub(crate) netns: PathBuf,
    /// `CNI_ARGS`.
    pub(crate) args: String,
    /// What each capability is told, where a plugin has it.
    pub(crate) capabilities: Map<String, Value>,
}

impl Attachment {
    pub(crate) fn new(id: &str, netns: &Path, ports: &[PortMapping], pod: &PodInfo) -> Attachment {
        // A semicolon separates the arguments; no Kubernetes name contains one.
        let args = [
            ("IgnoreUnknown", "1"),
            ("K8S_POD_NAMESPACE", &pod.namespace),
            ("K8S_POD_NAME", &pod.name),
            ("K8S_POD_INFRA_CONTAINER_ID", id),
            ("K8S_POD_UID", &pod.uid),
        ];
        let args: Vec<String> =
            args.iter().map(|(key, value)| format!("{key}={}", value.replace(';', ""))).collect();
        let mut capabilities = Map::new();
        if !ports.is_empty() {
            let mappings = ports.iter().map(|port| {
                let host_ip = port.host_ip.map(|ip| ip.to_string()).unwrap_or_default();
                json!({
                    "hostPort": port.host_port, "containerPort": port.container_port,
                    "protocol": port.protocol.as_str(), "hostIP": host_ip,
                })
            });
            capabilities.insert("portMappings".to_owned(), mappings.collect());
        }
        if !pod.dns.is_empty() {
            let dns = json!({
                "servers": pod.dns.servers, "searches": pod.dns.searches, "options": pod.dns.options,
            });
            capabilities.insert("dns".to_owned(), dns);
        }
        Attachment { id: id.to_owned(), netns: netns.to_owned(), args: args.join(";"), capabilities }
    }
}

/// What is kept on disk of a connection, from before its `ADD` until after its `DEL`.
#[derive(Debug, Serialize, Deserialize)]
struct Cached {
    list: NetworkList,
    attachment: Attachment,
    /// Missing while `ADD` has not finished.
    result: Option<Value>,
}

/// The node's CNI plugins.
pub(crate) struct Cni {
    conf_dir: Option<PathBuf>,
    cache: PathBuf,
    plugins: Plugins,
    loaded: Mutex<Option<Loaded>>,
}

/// The list as it was read from the directory in that state.
struct Loaded {
    state: Vec<(PathBuf, SystemTime)>,
    list: Option<Arc<NetworkList>>,
}

impl Cni {
    /// Plugins that run in the given namespace.
    pub(crate) fn new(
        netns: Arc<OwnedFd>,
        conf_dir: Option<PathBuf>,
        bin_dirs: Vec<PathBuf>,
        state_dir: &Path,
    ) -> Cni {
        Cni {
            conf_dir,
            cache: state_dir.join("cni"),
            plugins: Plugins { netns, directories: bin_dirs },
            loaded: Mutex::new(None),
        }
    }

    /// The node's network list, read again when a file of the directory has changed; `None` without one.
    pub(crate) fn list(&self) -> Result<Option<Arc<NetworkList>>, CniError> {
        let Some(directory) = &self.conf_dir else { return Ok(None) };
        let state = conf::candidates(directory)?;
        let mut loaded = self.loaded.lock();
        if let Some(known) = loaded.as_ref().filter(|known| known.state == state) {
            return Ok(known.list.clone());
        }
        let list = conf::first_valid(state.iter().map(|(path, _)| path.as_path()))?.map(Arc::new);
        *loaded = Some(Loaded { state, list: list.clone() });
        Ok(list)
    }

    /// Runs `ADD` through the list. What it had begun is undone if it fails.
    pub(crate) async fn add(&self, list: &NetworkList, attachment: &Attachment) -> Result<PodIps, CniError> {
        // Kept first, so that a crash in the middle of ADD is followed by DEL.
        let mut cached = Cached { list: list.clone(), attachment: attachment.clone(), result: None };
        self.keep(&cached)?;
        let outcome = self.add_all(list, attachment).await;
        match outcome {
            Ok(result) => {
                let ips = conf::ips(&result);
                cached.result = Some(result);
                self.keep(&cached)?;
                Ok(ips)
            }
            Err(err) => {
                if let Err(second) = self.delete(&attachment.id).await {
                    tracing::warn!(sandbox = attachment.id, err = %second, "cannot undo a failed CNI ADD");
                }
                Err(err)
            }
        }
    }

    async fn add_all(&self, list: &NetworkList, attachment: &Attachment) -> Result<Value, CniError> {
        let mut result = None;
        for plugin in &list.plugins {
            let conf = list.stdin(plugin, &attachment.capabilities, result.as_ref());
            result = self.plugins.run(Verb::Add, plugin, &conf, Some(attachment)).await?;
        }
        // A list has a plugin, and ADD a result.
        Ok(result.unwrap_or(Value::Null))
    }

    /// Runs `DEL` through the list that the pod was connected by, last plugin first. No `ADD`: success.
    pub(crate) async fn delete(&self, id: &str) -> Result<(), CniError> {
        let Some(Cached { list, attachment, result }) = self.cached(id)? else { return Ok(()) };
        for plugin in list.plugins.iter().rev() {
            let conf = list.stdin(plugin, &attachment.capabilities, result.as_ref());
            self.plugins.run(Verb::Del, plugin, &conf, Some(&attachment)).await?;
        }
        let path = self.path(id);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(CniError::File { step: "delete", path, source })
            }
            _ => Ok(()),
        }
    }

    /// Runs `CHECK` through the list that the pod was connected by.
    pub(crate) async fn check(&self, id: &str) -> Result<(), CniError> {
        let Some(Cached { list, attachment, result: Some(result) }) = self.cached(id)? else { return Ok(()) };
        if list.disable_check || !list.at_least(0, 4) {
            return Ok(());
        }
        for plugin in &list.plugins {
            let conf = list.stdin(plugin, &attachment.capabilities, Some(&result));
            self.plugins.run(Verb::Check, plugin, &conf, Some(&attachment)).await?;
        }
        Ok(())
    }

    /// Tells the plugins which pods are connected, so that they drop all else. All are told, whoever fails.
    pub(crate) async fn collect(&self, list: &NetworkList, live: &[String]) -> Result<(), CniError> {
        if list.disable_gc || !list.at_least(1, 1) {
            return Ok(());
        }
        let valid: Vec<Value> =
            live.iter().map(|id| json!({ "containerID": id, "ifname": IFNAME })).collect();
        let mut outcome = Ok(());
        for plugin in &list.plugins {
            let mut conf = list.stdin(plugin, &Map::new(), None);
            conf["cni.dev/valid-attachments"] = json!(valid);
            outcome = outcome.and(self.plugins.run(Verb::Gc, plugin, &conf, None).await.map(drop));
        }
        outcome
    }

    /// Whether the plugins are there, speak the list's version and say that they can work.
    pub(crate) async fn status(&self, list: &NetworkList) -> Result<(), CniError> {
        for plugin in &list.plugins {
            let answer =
                self.plugins.run(Verb::Version, plugin, &json!({ "cniVersion": list.version }), None).await?;
            let supported = answer.as_ref().map(conf::supported_versions).unwrap_or_default();
            if !supported.contains(&list.version) {
                let (plugin, wanted) = (plugin.kind.clone(), list.version.clone());
                return Err(CniError::Version { plugin, wanted, supported });
            }
        }
        if !list.at_least(1, 1) {
            return Ok(());
        }
        for plugin in &list.plugins {
            let conf = list.stdin(plugin, &Map::new(), None);
            self.plugins.run(Verb::Status, plugin, &conf, None).await?;
        }
        Ok(())
    }

    /// The pods that were connected, or half connected, by plugins.
    pub(crate) fn attached(&self) -> Result<Vec<String>, CniError> {
        let error = |source| CniError::File { step: "read directory", path: self.cache.clone(), source };
        let entries = match fs::read_dir(&self.cache) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(error)?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let name = entry.map_err(error)?.file_name();
            ids.extend(name.to_str().and_then(|name| name.strip_suffix(".json")).map(str::to_owned));
        }
        Ok(ids)
    }

    fn keep(&self, cached: &Cached) -> Result<(), CniError> {
        let path = self.path(&cached.attachment.id);
        let text = serde_json::to_vec(cached).expect("JSON values are JSON");
        fs::create_dir_all(&self.cache)
            .and_then(|()| replace(&path, &text))
            .map_err(|source| CniError::File { step: "write", path, source })
    }

    fn cached(&self, id: &str) -> Result<Option<Cached>, CniError> {
        let path = self.path(id);
        match fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?)) {
            Ok(cached) => Ok(Some(cached)),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(CniError::File { step: "read", path, source }),
        }
    }

    fn path(&self, id: &str) -> PathBuf {
        self.cache.join(format!("{id}.json"))
    }
}
