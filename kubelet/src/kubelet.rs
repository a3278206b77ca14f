//! The kubelet as a whole: opens what it needs, then runs its few loops until shutdown.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cri_api::{Cri, v1 as cri};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::Api;
use kube::runtime::watcher;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::clock::Clock;
use crate::config::Config;
use crate::events::Recorder;
use crate::fleet::{Fleet, Wanted};
use crate::images::keyring::plugin::PluginError;
use crate::images::{Images, gc};
use crate::metrics::{Metrics, count};
use crate::node::{self, facts};
use crate::objects::{Files, Objects};
use crate::server;
use crate::shared::Shared;
use crate::source::files::{Directory, Manifests};
use crate::source::mirror;
use crate::volumes::mounts;

/// Why a kubelet cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A directory cannot be made.
    #[error("make directory {path}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The kubelet API's address is taken or not ours.
    #[error("listen on {addr} for the kubelet API: is another kubelet running?")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The kubelet API's certificates are not usable.
    #[error("set up TLS for the kubelet API")]
    Tls(#[source] server::TlsError),
    /// The container runtime does not answer.
    #[error("ask the container runtime for its version: {0}")]
    Runtime(String),
    /// The credential provider plugins are not usable.
    #[error("set up the credential providers for images")]
    Credentials(#[source] PluginError),
    /// Neither an apiserver nor a manifests directory: there is nothing to do.
    #[error("standalone mode needs a manifests directory: set staticPodPath")]
    NoSource,
}

/// One kubelet, opened and not yet running.
pub struct Kubelet {
    shared: Arc<Shared>,
    listener: Option<(TcpListener, server::Tls)>,
    machine: facts::Machine,
}

impl Kubelet {
    /// Takes the port, makes the directories, asks the runtime who it is. Nothing of a pod is touched yet.
    pub async fn new(
        config: Config,
        client: Option<kube::Client>,
        cri: Arc<dyn Cri>,
    ) -> Result<Kubelet, StartError> {
        let clock = Clock::Wall;
        if client.is_none() && config.manifests_dir.is_none() {
            return Err(StartError::NoSource);
        }
        for path in [&config.root_dir, &config.pod_logs_dir, &config.container_logs_dir] {
            let made = std::fs::create_dir_all(path);
            made.map_err(|source| StartError::Directory { path: path.clone(), source })?;
        }
        let listener = match &config.api {
            Some(api) => {
                let tls = server::Tls::new(api).map_err(StartError::Tls)?;
                let bound = TcpListener::bind(api.listen).await;
                Some((bound.map_err(|source| StartError::Listen { addr: api.listen, source })?, tls))
            }
            None => None,
        };
        let version = cri.version(cri::VersionRequest { version: "v1".into() }).await;
        let version = version.map_err(|err| StartError::Runtime(err.message().into()))?;
        let machine = facts::machine(&config.root_dir);
        let metrics = Arc::new(Metrics::default());
        let events = Recorder::start(client.clone(), config.node_name.clone(), clock, Arc::clone(&metrics));
        let shared = Shared {
            objects: Objects::new(client.clone()),
            services: None,
            runtime_classes: None,
            images: Arc::new(
                Images::open(&config.images, &config.root_dir).map_err(StartError::Credentials)?,
            ),
            events,
            clock,
            metrics,
            runtime_name: version.runtime_name,
            machine: machine.clone(),
            client,
            cri,
            config,
        };
        Ok(Kubelet { shared: Arc::new(shared), listener, machine })
    }

    /// The address of the kubelet API, if it serves one.
    pub fn api_addr(&self) -> Option<SocketAddr> {
        self.listener.as_ref().and_then(|(listener, _)| listener.local_addr().ok())
    }

    /// Runs until `shutdown`. Pods go on running; the next kubelet finds them.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let token = CancellationToken::new();
        let port = self.api_addr().map_or(0, |addr| i32::from(addr.port()));
        let Kubelet { shared, listener, machine } = self;
        let shared = Arc::new(with_watches(shared, &token));
        let fleet = Arc::new(Fleet::new(Arc::clone(&shared), token.clone()));
        let mut tasks = tokio::task::JoinSet::new();
        if let Some((listener, tls)) = listener {
            tasks.spawn(server::serve(Arc::clone(&shared), Arc::clone(&fleet), listener, tls));
        }
        if let Some(client) = shared.client.clone() {
            tasks.spawn(node::run(Arc::clone(&shared), client, machine, port));
        }
        tasks.spawn(follow_events(Arc::clone(&shared), Arc::clone(&fleet)));
        tasks.spawn(rotate_logs(Arc::clone(&shared)));
        tasks.spawn(gc::run(Arc::clone(&shared)));
        tasks.spawn(follow_sources(Arc::clone(&shared), Arc::clone(&fleet), token.clone()));
        info!(node = shared.config.node_name, runtime = shared.runtime_name, "kubelet is running");
        tokio::select! {
            () = shutdown => info!("kubelet stops; its pods go on"),
            // None of these loops ends but by a defect.
            Some(ended) = tasks.join_next() => warn!(?ended, "a loop of the kubelet ended"),
        }
        token.cancel();
        tasks.shutdown().await;
    }
}

/// Adds the watches of services and runtime classes, which outlive `new` only if the kubelet runs.
fn with_watches(shared: Arc<Shared>, token: &CancellationToken) -> Shared {
    let services = shared.client.clone().map(|client| {
        client::Cache::start(Api::<Service>::all(client), watcher::Config::default(), token.clone())
    });
    let runtime_classes = shared.client.clone().map(|client| {
        client::Cache::start(Api::<RuntimeClass>::all(client), watcher::Config::default(), token.clone())
    });
    Shared {
        services,
        runtime_classes,
        config: shared.config.clone(),
        client: shared.client.clone(),
        cri: Arc::clone(&shared.cri),
        objects: shared.objects.clone(),
        events: shared.events.clone(),
        images: Arc::clone(&shared.images),
        clock: shared.clock,
        metrics: Arc::clone(&shared.metrics),
        runtime_name: shared.runtime_name.clone(),
        machine: shared.machine.clone(),
    }
}

/// Wakes pods' tasks when the runtime tells of something.
pub(crate) async fn follow_events(shared: Arc<Shared>, fleet: Arc<Fleet>) {
    let mut patience = client::Patience::new(Duration::from_millis(50), Duration::from_secs(5));
    loop {
        match shared.cri.container_events().await {
            Ok(mut events) => {
                fleet.wake(None); // Whatever happened before the stream was open.
                while let Some(event) = events.next().await {
                    let Ok(event) = event else { break };
                    patience.reset();
                    count(&shared.metrics.container_events);
                    let uid = event.pod_sandbox_status.and_then(|s| s.metadata).map(|m| m.uid);
                    fleet.wake(uid.as_deref());
                }
            }
            Err(err) => warn!(err = err.message(), "open the runtime's event stream"),
        }
        count(&shared.metrics.event_stream_restarts);
        tokio::time::sleep(patience.wait()).await;
    }
}

async fn rotate_logs(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(shared.config.container_log_monitor_interval).await;
        crate::logs::rotate::rotate_all(&shared).await;
    }
}

/// Follows the apiserver and the manifests directory, and keeps mirror pods.
async fn follow_sources(shared: Arc<Shared>, fleet: Arc<Fleet>, token: CancellationToken) {
    let (files_tx, mut files) = watch::channel(Manifests::new());
    let mut readers = tokio::task::JoinSet::new();
    if let Some(dir) = shared.config.manifests_dir.clone() {
        let mut directory = Directory::new(dir, shared.config.node_name.clone(), shared.clock);
        files_tx.send_replace(directory.look());
        readers.spawn(directory.run(files_tx));
    }
    let pods = shared.client.clone().map(|client| {
        let mine = watcher::Config::default().fields(&format!("spec.nodeName={}", shared.config.node_name));
        client::Cache::start(Api::<Pod>::all(client), mine, token)
    });
    let mut changed = pods.as_ref().map(client::Cache::changed);
    let mut complete = false;
    let mut retry = false;
    loop {
        let manifests = files.borrow_and_update().clone();
        let synced = pods.as_ref().is_none_or(client::Cache::is_synced);
        let mut wanted = wanted(&manifests);
        if let (Some(pods), Some(changed)) = (&pods, &mut changed) {
            changed.borrow_and_update();
            wanted.from_api = pods.list();
        } else {
            shared.objects.set_files(objects(&manifests));
        }
        if synced {
            fleet.sync(&wanted);
            if !complete {
                complete = true;
                if let Err(err) = fleet.adopt_orphans().await {
                    warn!(err = err.message(), "look for orphaned pods");
                    complete = false;
                }
                sweep(&shared, &fleet).await;
            }
            if let Some(client) = &shared.client {
                let writes = mirror::plan(&wanted.from_files, &wanted.from_api);
                let applied = mirror::apply(client, &shared.config.node_name, writes).await;
                retry = applied.is_err();
                if let Err(err) = applied {
                    warn!(err = %client::describe(&err), "write mirror pods");
                }
            }
        }
        let again = Duration::from_secs(if retry || !complete { 1 } else { 3600 });
        // Every branch is cancel-safe: an unobserved change stays marked as changed.
        tokio::select! {
            Ok(()) = files.changed() => {}
            () = wait_for(&mut changed) => {}
            () = tokio::time::sleep(again) => {}
        }
    }
}

async fn wait_for(changed: &mut Option<watch::Receiver<u64>>) {
    let ended = match changed {
        Some(changed) => changed.changed().await.is_err(),
        None => true,
    };
    if ended {
        std::future::pending::<()>().await;
    }
}

fn wanted(manifests: &Manifests) -> Wanted {
    let from_files = manifests.values().flat_map(|m| m.pods.iter().cloned()).collect();
    Wanted { from_api: Vec::new(), from_files }
}

fn objects(manifests: &Manifests) -> Files {
    let name = |meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
        (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
    };
    let mut files = Files::default();
    for manifest in manifests.values() {
        files.config_maps.extend(manifest.config_maps.iter().map(|m| (name(&m.metadata), Arc::clone(m))));
        files.secrets.extend(manifest.secrets.iter().map(|s| (name(&s.metadata), Arc::clone(s))));
    }
    files
}

/// Removes directories of pods that nobody knows any more.
async fn sweep(shared: &Shared, fleet: &Fleet) {
    let (root, known) = (shared.config.root_dir.join("pods"), fleet.uids());
    let swept = tokio::task::spawn_blocking(move || {
        for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if known.contains(&name) {
                continue;
            }
            match mounts::remove_tree(&entry.path()) {
                Ok(()) => info!(pod = name, "removed the directory of an orphaned pod"),
                Err(err) => warn!(pod = name, %err, "remove the directory of an orphaned pod"),
            }
        }
    });
    if let Err(err) = swept.await {
        warn!(%err, "sweep orphaned pod directories");
    }
}
