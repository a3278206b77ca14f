//! The metadata of every object of every kind that can be deleted: what garbage collection and the end of
//! namespaces look at.

use std::sync::Arc;
use std::time::Duration;

use client::{Cache, Patience, describe};
use kube::api::{Api, ApiResource, DynamicObject};
use kube::core::{ObjectMeta, PartialObjectMeta};
use kube::discovery::{ApiCapabilities, Scope, verbs};
use kube::{Client, Discovery};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// One kind, and the metadata of its objects.
pub struct Watched {
    /// The kind.
    pub kind: ApiResource,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// The objects.
    pub objects: Cache<PartialObjectMeta<DynamicObject>>,
}

/// All kinds; clones share it.
#[derive(Clone)]
pub struct Metadata(Arc<Vec<Watched>>);

/// One object, as the planners see it.
#[derive(Debug, Clone)]
pub struct Item {
    /// Its kind.
    pub kind: ApiResource,
    /// Its metadata.
    pub meta: ObjectMeta,
}

impl Item {
    /// Its namespace; empty if it has none.
    pub fn namespace(&self) -> &str {
        self.meta.namespace.as_deref().unwrap_or_default()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.meta.name.as_deref().unwrap_or_default()
    }

    /// Its uid.
    pub fn uid(&self) -> &str {
        self.meta.uid.as_deref().unwrap_or_default()
    }
}

impl Metadata {
    /// Asks the apiserver for its kinds, until it answers, and watches them all.
    pub async fn start(client: &Client, shutdown: &CancellationToken) -> Metadata {
        let mut patience = Patience::new(Duration::from_millis(50), Duration::from_secs(5));
        let found = loop {
            match Discovery::new(client.clone()).run().await {
                Ok(found) => break found,
                Err(err) => {
                    warn!(err = %describe(&err), "ask for the kinds of objects");
                    tokio::time::sleep(patience.wait()).await;
                }
            }
        };
        let kinds = found.groups().flat_map(|group| group.recommended_resources());
        let watched = kinds.filter(|(kind, can)| wanted(kind, can)).map(|(kind, can)| Watched {
            objects: Cache::start_named(
                Api::all_with(client.clone(), &kind),
                kind.kind.clone(),
                shutdown.clone(),
            ),
            namespaced: can.scope == Scope::Namespaced,
            kind,
        });
        Metadata(Arc::new(watched.collect()))
    }

    /// Returns once every first list is complete.
    pub async fn synced(&self) {
        for watched in self.0.iter() {
            watched.objects.synced().await;
        }
    }

    /// Wakes at every change of any object.
    pub fn changed(&self) -> Vec<watch::Receiver<u64>> {
        self.0.iter().map(|watched| watched.objects.changed()).collect()
    }

    /// The kinds whose objects live in namespaces.
    pub fn namespaced_kinds(&self) -> Vec<ApiResource> {
        self.0.iter().filter(|watched| watched.namespaced).map(|watched| watched.kind.clone()).collect()
    }

    /// All objects of all kinds.
    pub fn items(&self) -> Vec<Item> {
        let of = |watched: &Watched| {
            let kind = watched.kind.clone();
            let item = move |object: Arc<PartialObjectMeta<DynamicObject>>| Item {
                kind: kind.clone(),
                meta: object.metadata.clone(),
            };
            watched.objects.list().into_iter().map(item).collect::<Vec<_>>()
        };
        self.0.iter().flat_map(of).collect()
    }
}

/// Events are many, own nothing and end by themselves; they come in two spellings of one thing.
fn wanted(kind: &ApiResource, can: &ApiCapabilities) -> bool {
    kind.kind != "Event"
        && [verbs::LIST, verbs::WATCH, verbs::DELETE].iter().all(|verb| can.supports_operation(verb))
}
