//! ConfigMaps and Secrets that pods of this node use: one watch for each object in use, none else.
//!
//! Guarantees: a change reaches the pods' tasks as fast as the watch delivers it. An object that no
//! pod uses any more is forgotten. Without an apiserver the objects come from the manifests directory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret};
use kube::runtime::watcher;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::container::env::Lookup;
use crate::pod::view;

/// Kind, namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    secret: bool,
    namespace: String,
    name: String,
}

/// The objects in use.
#[derive(Clone)]
pub struct Objects {
    inner: Arc<Inner>,
}

struct Inner {
    client: Option<kube::Client>,
    watched: Mutex<BTreeMap<Name, Watched>>,
    files: Mutex<Files>,
    version: watch::Sender<u64>,
}

/// Objects that were read from files.
#[derive(Default)]
pub struct Files {
    /// ConfigMaps by namespace and name.
    pub config_maps: BTreeMap<(String, String), Arc<ConfigMap>>,
    /// Secrets by namespace and name.
    pub secrets: BTreeMap<(String, String), Arc<Secret>>,
}

struct Watched {
    users: usize,
    cache: Cached,
    stop: CancellationToken,
}

#[derive(Clone)]
enum Cached {
    Map(client::Cache<ConfigMap>),
    Secret(client::Cache<Secret>),
}

impl Objects {
    /// An empty set.
    pub fn new(client: Option<kube::Client>) -> Objects {
        let inner = Inner {
            client,
            watched: Mutex::default(),
            files: Mutex::default(),
            version: watch::Sender::new(0),
        };
        Objects { inner: Arc::new(inner) }
    }

    /// Replaces what was read from files.
    pub fn set_files(&self, files: Files) {
        *self.inner.files.lock() = files;
        self.inner.version.send_modify(|v| *v += 1);
    }

    /// Wakes at every change of any object in use.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.inner.version.subscribe()
    }

    /// Begins to watch what `pod` names; the watches last as long as the returned guard.
    pub fn hold(&self, pod: &Pod) -> Held {
        let names = if self.inner.client.is_some() { names(pod) } else { BTreeSet::new() };
        for name in &names {
            let mut watched = self.inner.watched.lock();
            match watched.get_mut(name) {
                Some(w) => w.users += 1,
                None => {
                    if let Some(started) = self.start(name) {
                        watched.insert(name.clone(), started);
                    }
                }
            }
        }
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        Held { inner: Arc::clone(&self.inner), names, namespace }
    }

    fn start(&self, name: &Name) -> Option<Watched> {
        let client = self.inner.client.clone()?;
        let config = watcher::Config::default().fields(&format!("metadata.name={}", name.name));
        let stop = CancellationToken::new();
        let (cache, mut changed) = if name.secret {
            let cache =
                client::Cache::start(kube::Api::namespaced(client, &name.namespace), config, stop.clone());
            (Cached::Secret(cache.clone()), cache.changed())
        } else {
            let cache =
                client::Cache::start(kube::Api::namespaced(client, &name.namespace), config, stop.clone());
            (Cached::Map(cache.clone()), cache.changed())
        };
        let (inner, token) = (Arc::clone(&self.inner), stop.clone());
        tokio::spawn(async move {
            // Cancel-safe: an unobserved change is of no use to anybody once the watch ends.
            while let Some(Ok(())) = token.run_until_cancelled(changed.changed()).await {
                inner.version.send_modify(|v| *v += 1);
            }
        });
        Some(Watched { users: 1, cache, stop })
    }
}

/// The objects of one pod; dropping it ends the watches that nobody else needs.
pub struct Held {
    inner: Arc<Inner>,
    names: BTreeSet<Name>,
    namespace: String,
}

impl Held {
    /// Returns once every object is known to be there or not to be there.
    pub async fn synced(&self) {
        for name in &self.names {
            let cache = self.inner.watched.lock().get(name).map(|w| w.cache.clone());
            match cache {
                Some(Cached::Map(cache)) => cache.synced().await,
                Some(Cached::Secret(cache)) => cache.synced().await,
                None => {}
            }
        }
    }

    fn cached(&self, secret: bool, name: &str) -> Option<Cached> {
        let name = Name { secret, namespace: self.namespace.clone(), name: name.into() };
        self.inner.watched.lock().get(&name).map(|w| w.cache.clone())
    }
}

impl Lookup for Held {
    fn config_map(&self, name: &str) -> Option<Arc<ConfigMap>> {
        match self.cached(false, name) {
            Some(Cached::Map(cache)) => cache.get(&self.namespace, name),
            _ => self.inner.files.lock().config_maps.get(&(self.namespace.clone(), name.into())).cloned(),
        }
    }

    fn secret(&self, name: &str) -> Option<Arc<Secret>> {
        match self.cached(true, name) {
            Some(Cached::Secret(cache)) => cache.get(&self.namespace, name),
            _ => self.inner.files.lock().secrets.get(&(self.namespace.clone(), name.into())).cloned(),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut watched = self.inner.watched.lock();
        for name in &self.names {
            if let Some(w) = watched.get_mut(name) {
                w.users -= 1;
                if w.users == 0 {
                    w.stop.cancel();
                    watched.remove(name);
                }
            }
        }
    }
}

/// All ConfigMaps and Secrets that a pod names.
fn names(pod: &Pod) -> BTreeSet<Name> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let mut found = BTreeSet::new();
    let mut add = |secret: bool, name: Option<&str>| {
        if let Some(name) = name.filter(|n| !n.is_empty()) {
            found.insert(Name { secret, namespace: namespace.clone(), name: name.into() });
        }
    };
    let spec = view::spec(pod);
    for volume in spec.volumes.iter().flatten() {
        add(false, volume.config_map.as_ref().map(|s| s.name.as_str()));
        add(true, volume.secret.as_ref().and_then(|s| s.secret_name.as_deref()));
        for part in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            add(false, part.config_map.as_ref().map(|s| s.name.as_str()));
            add(true, part.secret.as_ref().map(|s| s.name.as_str()));
        }
    }
    for reference in spec.image_pull_secrets.iter().flatten() {
        add(true, Some(&reference.name));
    }
    for member in view::members(spec) {
        of_container(member.spec, &mut add);
    }
    found
}

fn of_container(container: &Container, add: &mut dyn FnMut(bool, Option<&str>)) {
    for from in container.env_from.iter().flatten() {
        add(false, from.config_map_ref.as_ref().map(|r| r.name.as_str()));
        add(true, from.secret_ref.as_ref().map(|r| r.name.as_str()));
    }
    for from in container.env.iter().flatten().filter_map(|v| v.value_from.as_ref()) {
        add(false, from.config_map_key_ref.as_ref().map(|r| r.name.as_str()));
        add(true, from.secret_key_ref.as_ref().map(|r| r.name.as_str()));
    }
}
