//! The loop: wait for a change, take stock, place what waits, bind.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::k8s::core::{Node, Pod};
use client::{Cache, describe};
use jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::NAME;
use crate::cluster::{Cluster, node_of};
use crate::place::{Placement, place};

/// A safety net: everything is looked at again after this long, though nothing changed.
const RESYNC: Duration = Duration::from_secs(60);
/// After a failed write, wait this long before the next round.
const RETRY: Duration = Duration::from_millis(500);

/// Schedules until `shutdown`.
pub async fn run(client: Client, shutdown: CancellationToken) {
    let nodes: Cache<Node> = Cache::start(Api::all(client.clone()), Default::default(), shutdown.clone());
    let pods: Cache<Pod> = Cache::start(Api::all(client.clone()), Default::default(), shutdown.clone());
    let mut shell = Shell { client, nodes, pods, promised: BTreeMap::new() };
    // Cancel-safe: a round that is dropped is made again from scratch by the next daemon.
    let _ended = shutdown.run_until_cancelled(shell.rounds()).await;
}

struct Shell {
    client: Client,
    nodes: Cache<Node>,
    pods: Cache<Pod>,
    /// Pods that we bound (by uid), until the watch shows it.
    promised: BTreeMap<String, String>,
}

impl Shell {
    async fn rounds(&mut self) {
        self.nodes.synced().await;
        self.pods.synced().await;
        let (mut nodes, mut pods) = (self.nodes.changed(), self.pods.changed());
        loop {
            nodes.mark_unchanged();
            pods.mark_unchanged();
            let all_written = self.round().await;
            let wait = if all_written { RESYNC } else { RETRY };
            tokio::select! {
                // Cancel-safe: an unobserved change stays marked as changed. The senders live in `self`.
                _ = nodes.changed(), if all_written => (),
                _ = pods.changed(), if all_written => (),
                () = tokio::time::sleep(wait) => (),
            }
        }
    }

    /// Places every pod that waits; false if a write failed and should be tried again.
    async fn round(&mut self) -> bool {
        let pods = self.pods.list();
        self.promised
            .retain(|uid, _| pods.iter().any(|p| p.uid().as_deref() == Some(uid) && node_of(p).is_none()));
        let mut cluster = Cluster::new(&self.nodes.list(), &pods);
        for pod in &pods {
            if let Some(node) = pod.uid().and_then(|uid| self.promised.get(&uid)) {
                cluster.hold(node, pod);
            }
        }
        let mut all_written = true;
        for pod in waiting(&pods) {
            if pod.uid().is_some_and(|uid| self.promised.contains_key(&uid)) {
                continue;
            }
            let placement = place(&pod, &cluster);
            debug!(pod = %pod.name_any(), ?placement, "placed");
            let written = match &placement {
                Placement::On(node) => self.bind(&pod, node).await,
                Placement::Nowhere(why) => self.refuse(&pod, why).await,
            };
            match (written, placement) {
                (Ok(()), Placement::On(node)) => {
                    cluster.hold(&node, &pod);
                    self.promised.insert(pod.uid().unwrap_or_default(), node);
                }
                (Ok(()), Placement::Nowhere(_)) => {}
                // Gone or bound meanwhile: the watch will tell.
                (Err(kube::Error::Api(status)), _) if matches!(status.code, 404 | 409) => {}
                (Err(err), _) => {
                    warn!(pod = %pod.name_any(), err = %describe(&err), "schedule pod");
                    all_written = false;
                }
            }
        }
        all_written
    }

    async fn bind(&self, pod: &Pod, node: &str) -> kube::Result<()> {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding",
            "metadata": { "name": name, "namespace": namespace, "uid": pod.uid() },
            "target": { "apiVersion": "v1", "kind": "Node", "name": node },
        });
        let _status: Value =
            api.create_subresource("binding", &name, &PostParams::default(), &binding).await?;
        let message = format!("Successfully assigned {namespace}/{name} to {node}");
        self.event(pod, "Normal", "Scheduled", &message).await;
        Ok(())
    }

    /// Says in the pod's status why it waits; once per reason.
    async fn refuse(&self, pod: &Pod, why: &str) -> kube::Result<()> {
        if said_already(pod, why) {
            return Ok(());
        }
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let status = json!({ "status": { "conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why,
            "lastTransitionTime": api::meta::time(Timestamp::now()),
        }] } });
        api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(status)).await?;
        self.event(pod, "Warning", "FailedScheduling", why).await;
        Ok(())
    }

    /// Records an event; one that can't be written is only logged, since nothing depends on it.
    async fn event(&self, pod: &Pod, kind: &str, reason: &str, message: &str) {
        let namespace = pod.namespace().unwrap_or_default();
        let now = Timestamp::now();
        let event = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": { "namespace": namespace, "name": format!("{}.{:x}", pod.name_any(), now.as_nanosecond()) },
            "involvedObject": { "apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": pod.name_any(),
                "uid": pod.uid(), "resourceVersion": pod.resource_version() },
            "type": kind, "reason": reason, "message": message, "action": "Binding",
            "source": { "component": NAME }, "reportingComponent": NAME, "reportingInstance": NAME,
            "firstTimestamp": api::meta::time(now), "lastTimestamp": api::meta::time(now), "count": 1,
        });
        let api: Api<api::k8s::core::Event> = Api::namespaced(self.client.clone(), &namespace);
        let written = match serde_json::from_value(event) {
            Ok(event) => api.create(&PostParams::default(), &event).await.map(|_| ()),
            Err(err) => Err(kube::Error::SerdeError(err)),
        };
        if let Err(err) = written {
            warn!(pod = %pod.name_any(), %reason, err = %describe(&err), "record event");
        }
    }
}

/// The pods that are ours to place: highest priority first, then oldest.
fn waiting(pods: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
    let ours = |pod: &&Arc<Pod>| {
        let spec = pod.spec.as_ref();
        let scheduler = spec.and_then(|s| s.scheduler_name.as_deref()).unwrap_or(NAME);
        let gated = spec.and_then(|s| s.scheduling_gates.as_ref()).is_some_and(|gates| !gates.is_empty());
        node_of(pod).is_none()
            && scheduler == NAME
            && !gated
            && pod.metadata.deletion_timestamp.is_none()
            && !crate::cluster::has_ended(pod)
    };
    let mut waiting: Vec<_> = pods.iter().filter(ours).cloned().collect();
    waiting.sort_by_key(|pod| {
        let priority = pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
        (std::cmp::Reverse(priority), pod.creation_timestamp(), pod.name_any())
    });
    waiting
}

fn said_already(pod: &Pod, why: &str) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let scheduled = conditions.iter().find(|condition| condition.type_ == "PodScheduled");
    scheduled.is_some_and(|c| c.status == "False" && c.message.as_deref() == Some(why))
}
