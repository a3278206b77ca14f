//! A watched copy of the objects of one kind.
//!
//! Guarantees: a snapshot is never half an initial list; a change is visible in snapshots before
//! `changed` tells of it; the watch is taken up again after any error, for ever, with a back-off.
//! Assumes: readers copy what they need and don't hold a snapshot for long.
//! Caveat: a copy can be older than what a write of the reader's own returned.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, pin_mut};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource, ResourceExt};
use parking_lot::RwLock;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::patience::{Patience, describe};

/// Namespace (empty for objects without one) and name.
type Key = (String, String);

struct Shared<K> {
    objects: RwLock<Arc<BTreeMap<Key, Arc<K>>>>,
    /// Zero until the first list is complete; then it only grows.
    version: watch::Sender<u64>,
}

/// A watched copy of some objects; clones share it.
pub struct Cache<K> {
    shared: Arc<Shared<K>>,
}

impl<K> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Cache { shared: Arc::clone(&self.shared) }
    }
}

impl<K> Cache<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Default,
{
    /// Starts to watch what `api` and `config` select, until `shutdown`.
    pub fn start(api: Api<K>, config: watcher::Config, shutdown: CancellationToken) -> Cache<K> {
        let kind = K::kind(&K::DynamicType::default()).into_owned();
        Cache::follow(watcher(api, config), kind, shutdown)
    }
}

impl<K> Cache<K>
where
    K: Resource + Clone + Debug + Send + Sync + 'static,
{
    /// The same for a kind that is known only at run time; `kind` names it in messages.
    pub fn start_named(api: Api<K>, kind: String, shutdown: CancellationToken) -> Cache<K>
    where
        K: DeserializeOwned,
    {
        Cache::follow(watcher(api, watcher::Config::default()), kind, shutdown)
    }

    fn follow(
        events: impl Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
        kind: String,
        shutdown: CancellationToken,
    ) -> Cache<K> {
        let shared = Arc::new(Shared { objects: RwLock::default(), version: watch::Sender::new(0) });
        let cache = Cache { shared: Arc::clone(&shared) };
        tokio::spawn(async move {
            // Cancel-safe: nothing is written half.
            let _ended = shutdown.run_until_cancelled(follow(events, kind, shared)).await;
        });
        cache
    }

    /// The object of that name; `namespace` is empty for objects without one.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.shared.objects.read().get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// All objects, ordered by namespace and name.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.shared.objects.read().values().cloned().collect()
    }

    /// Wakes at every change; its value is zero until the first list is complete.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.version.subscribe()
    }

    /// Returns once the first list is complete.
    pub async fn synced(&self) {
        let mut version = self.changed();
        // The sender lives in `self`: it can't be gone.
        let _version = version.wait_for(|v| *v > 0).await;
    }

    /// Whether the first list is complete.
    pub fn is_synced(&self) -> bool {
        *self.shared.version.borrow() > 0
    }
}

impl<K> Shared<K> {
    fn edit(&self, change: impl FnOnce(&mut BTreeMap<Key, Arc<K>>)) {
        {
            let mut objects = self.objects.write();
            // Copies the map only while somebody else still reads the last one.
            change(Arc::make_mut(&mut objects));
        }
        self.version.send_modify(|v| *v += 1);
    }
}

async fn follow<K: Resource>(
    events: impl Stream<Item = watcher::Result<Event<K>>>,
    kind: String,
    shared: Arc<Shared<K>>,
) {
    let mut patience = Patience::new(Duration::from_millis(100), Duration::from_secs(10));
    let mut listed: HashMap<Key, Arc<K>> = HashMap::new();
    pin_mut!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                patience.reset();
                apply(event, &mut listed, &shared);
            }
            Err(err) => {
                let wait = patience.wait();
                warn!(%kind, err = %describe(&err), ?wait, "watch again");
                tokio::time::sleep(wait).await;
            }
        }
    }
}

fn apply<K: Resource>(event: Event<K>, listed: &mut HashMap<Key, Arc<K>>, shared: &Shared<K>) {
    match event {
        Event::Init => listed.clear(),
        Event::InitApply(object) => {
            listed.insert(key(&object), Arc::new(object));
        }
        Event::InitDone => {
            let objects = std::mem::take(listed);
            shared.edit(|map| *map = objects.into_iter().collect());
        }
        Event::Apply(object) => shared.edit(|map| {
            map.insert(key(&object), Arc::new(object));
        }),
        Event::Delete(object) => shared.edit(|map| {
            map.remove(&key(&object));
        }),
    }
}

fn key<K: Resource>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    fn map(name: &str) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.namespace = Some("ns".into());
        object.metadata.name = Some(name.into());
        object
    }

    fn names(shared: &Shared<ConfigMap>) -> Vec<String> {
        shared.objects.read().keys().map(|(_, name)| name.clone()).collect()
    }

    #[test]
    fn a_list_shows_only_when_complete_and_replaces_what_was_there() {
        let shared = Shared { objects: RwLock::default(), version: watch::Sender::new(0) };
        let mut listed = HashMap::new();
        let mut feed = |event| apply(event, &mut listed, &shared);
        feed(Event::Init);
        feed(Event::InitApply(map("a")));
        assert!(names(&shared).is_empty());
        feed(Event::InitDone);
        assert_eq!(names(&shared), ["a"]);
        feed(Event::Apply(map("b")));
        feed(Event::Delete(map("a")));
        assert_eq!(names(&shared), ["b"]);
        feed(Event::Init);
        feed(Event::InitApply(map("c")));
        assert_eq!(names(&shared), ["b"]);
        feed(Event::InitDone);
        assert_eq!(names(&shared), ["c"]);
        assert_eq!(*shared.version.borrow(), 4);
    }
}
