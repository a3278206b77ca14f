//! Events as `kubectl describe` shows them.
//!
//! Guarantees: recording never blocks and never fails its caller. The same event about the same object
//! is one object whose `count` grows. A flood is dropped and counted, not queued for ever.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use crate::clock::Clock;
use crate::metrics::{Metrics, count};

/// Whether something went as it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// As it should.
    Normal,
    /// Worth somebody's look.
    Warning,
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Level::Normal => "Normal",
            Level::Warning => "Warning",
        }
    }
}

/// One thing to tell.
#[derive(Clone, Debug)]
struct Told {
    about: ObjectReference,
    level: Level,
    reason: &'static str,
    message: String,
    at: Timestamp,
}

/// Takes events and writes them in the background.
#[derive(Clone, Debug)]
pub struct Recorder {
    queue: mpsc::Sender<Told>,
    clock: Clock,
    metrics: Arc<Metrics>,
}

/// How many events wait for the apiserver at most.
const QUEUE: usize = 1000;
/// After this long an event of the same kind is a new one.
const AGGREGATE: Duration = Duration::from_secs(600);

impl Recorder {
    /// Starts the writer; without a client events are only logged.
    pub fn start(
        client: Option<kube::Client>,
        node: String,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Recorder {
        let (queue, told) = mpsc::channel(QUEUE);
        tokio::spawn(write_all(client, node, told, Arc::clone(&metrics)));
        Recorder { queue, clock, metrics }
    }

    /// Tells of something that happened to a pod, or to one container of it (`field_path`).
    pub fn pod(
        &self,
        pod: &Pod,
        field_path: Option<String>,
        level: Level,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let meta = &pod.metadata;
        // A static pod is known to the apiserver by its mirror, which carries the hash as uid in references.
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
            field_path,
        };
        self.about(about, level, reason, message.into());
    }

    /// Tells of something that happened to the node.
    pub fn node(&self, name: &str, level: Level, reason: &'static str, message: impl Into<String>) {
        let about = ObjectReference {
            kind: Some("Node".into()),
            name: Some(name.into()),
            uid: Some(name.into()),
            ..ObjectReference::default()
        };
        self.about(about, level, reason, message.into());
    }

    fn about(&self, about: ObjectReference, level: Level, reason: &'static str, message: String) {
        let told = Told { about, level, reason, message, at: self.clock.now() };
        if self.queue.try_send(told).is_err() {
            count(&self.metrics.events_dropped);
        }
    }
}

/// What was written about one thing.
struct Written {
    name: String,
    count: i32,
    last: Timestamp,
}

async fn write_all(
    client: Option<kube::Client>,
    node: String,
    mut told: mpsc::Receiver<Told>,
    metrics: Arc<Metrics>,
) {
    let mut known: BTreeMap<String, Written> = BTreeMap::new();
    let mut serial = 0;
    while let Some(one) = told.recv().await {
        let name = one.about.name.as_deref().unwrap_or("");
        match one.level {
            Level::Normal => debug!(object = name, reason = one.reason, message = one.message, "event"),
            Level::Warning => info!(object = name, reason = one.reason, message = one.message, "event"),
        }
        let Some(client) = &client else { continue };
        known.retain(|_, w| crate::pod::step::until(w.last, one.at) < AGGREGATE);
        let namespace = one.about.namespace.clone().unwrap_or_else(|| "default".into());
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        let key = key(&one);
        serial = one.at.as_nanosecond().max(serial + 1);
        let result = match known.get_mut(&key) {
            Some(written) => again(&api, written, one.at).await,
            None => match api.create(&PostParams::default(), &event(&one, &node, &namespace, serial)).await {
                Ok(event) => {
                    let name = event.metadata.name.unwrap_or_default();
                    known.insert(key.clone(), Written { name, count: 1, last: one.at });
                    Ok(())
                }
                Err(err) => Err(err),
            },
        };
        if let Err(err) = result {
            known.remove(&key);
            count(&metrics.events_dropped);
            warn!(err = %client::describe(&err), reason = one.reason, "drop event");
        }
    }
}

async fn again(api: &Api<Event>, written: &mut Written, at: Timestamp) -> Result<(), kube::Error> {
    written.count += 1;
    written.last = at;
    let patch = serde_json::json!({"count": written.count, "lastTimestamp": Time(at)});
    api.patch(&written.name, &PatchParams::default(), &Patch::Merge(patch)).await.map(|_| ())
}

fn key(one: &Told) -> String {
    let about = &one.about;
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    format!(
        "{}/{}/{}/{}/{}/{}",
        text(&about.namespace),
        text(&about.name),
        text(&about.uid),
        text(&about.field_path),
        one.reason,
        one.message
    )
}

/// `serial` grows, so that events of one second are listed in the order they happened.
fn event(one: &Told, node: &str, namespace: &str, serial: i128) -> Event {
    let name = one.about.name.as_deref().unwrap_or("unknown");
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{serial:016x}")),
            namespace: Some(namespace.into()),
            ..ObjectMeta::default()
        },
        involved_object: one.about.clone(),
        type_: Some(one.level.as_str().into()),
        reason: Some(one.reason.into()),
        message: Some(one.message.chars().take(1024).collect()),
        source: Some(EventSource { component: Some("kubelet".into()), host: Some(node.into()) }),
        reporting_component: Some("kubelet".into()),
        reporting_instance: Some(node.into()),
        first_timestamp: Some(Time(one.at)),
        last_timestamp: Some(Time(one.at)),
        count: Some(1),
        ..Event::default()
    }
}
