//! Registers the node, reports its status, and renews its lease.
//!
//! Guarantees: the first status is written as soon as the apiserver and the runtime answer. What others
//! write to the Node (labels, taints, unknown conditions) stays.
//! Caveat: pressure is reported; nothing is evicted yet.

pub mod allocatable;
pub mod facts;
mod object;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cri_api::v1 as cri;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{ContainerImage, Node, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tracing::{info, warn};

use crate::events::Level;
use crate::metrics::count;
use crate::shared::Shared;
use facts::Machine;
use object::{Pressure, Runtime};

/// How often runtime and machine are looked at for changes worth a status write.
const LOOK: Duration = Duration::from_secs(10);

/// Keeps the Node object for ever; returns only by being dropped.
pub async fn run(shared: Arc<Shared>, client: kube::Client, machine: Machine, port: i32) {
    let nodes: Api<Node> = Api::all(client.clone());
    let mut patience = client::Patience::new(Duration::from_millis(50), Duration::from_secs(5));
    let uid = loop {
        match register(&shared, &nodes, &machine).await {
            Ok(node) => break node.metadata.uid.unwrap_or_default(),
            Err(err) => {
                let wait = patience.wait();
                warn!(err = %client::describe(&err), ?wait, "register the node again");
                tokio::time::sleep(wait).await;
            }
        }
    };
    info!(node = shared.config.node_name, "node is registered");
    let leases = lease_loop(Arc::clone(&shared), client.clone(), uid);
    // Neither ends.
    tokio::join!(leases, status_loop(&shared, &nodes, &machine, port));
}

/// Creates the node, or brings its labels up to date.
async fn register(shared: &Shared, nodes: &Api<Node>, machine: &Machine) -> Result<Node, kube::Error> {
    let fresh = object::fresh(&shared.config, machine);
    match nodes.create(&PostParams::default(), &fresh).await {
        Ok(node) => {
            let text = format!("Node {} is registered", shared.config.node_name);
            shared.events.node(&shared.config.node_name, Level::Normal, "RegisteredNode", text);
            Ok(node)
        }
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let patch = json!({"metadata": {"labels": object::labels(&shared.config, machine)}});
            nodes.patch(&shared.config.node_name, &PatchParams::default(), &Patch::Merge(patch)).await
        }
        Err(err) => Err(err),
    }
}

async fn status_loop(shared: &Shared, nodes: &Api<Node>, machine: &Machine, port: i32) {
    let mut written: Option<(NodeStatus, Timestamp)> = None;
    let mut patience = client::Patience::new(Duration::from_millis(100), Duration::from_secs(10));
    loop {
        let now = shared.clock.now();
        let runtime = runtime(shared).await;
        let pressure = pressure(shared);
        let before = match &written {
            Some((status, _)) => status.clone(),
            None => nodes
                .get_opt(&shared.config.node_name)
                .await
                .ok()
                .flatten()
                .and_then(|n| n.status)
                .unwrap_or_default(),
        };
        let status = object::status(&shared.config, machine, &runtime, &pressure, port, &before, now);
        let old = written.as_ref().is_none_or(|(_, at)| {
            crate::pod::step::until(*at, now) >= shared.config.node_status_report_frequency
        });
        let mut wait = LOOK;
        if old || object::differs(&status, &before) {
            match write(shared, nodes, &status).await {
                Ok(()) => {
                    if written.is_none() {
                        shared.events.node(
                            &shared.config.node_name,
                            Level::Normal,
                            "Starting",
                            "Starting kubelet.",
                        );
                    }
                    patience.reset();
                    written = Some((status, now));
                }
                Err(err) => {
                    wait = patience.wait();
                    warn!(err = %client::describe(&err), ?wait, "write the node's status again");
                    written = None;
                }
            }
        }
        if runtime.not_ready.is_some() {
            wait = wait.min(Duration::from_secs(1));
        }
        tokio::time::sleep(wait).await;
    }
}

async fn write(shared: &Shared, nodes: &Api<Node>, status: &NodeStatus) -> Result<(), kube::Error> {
    let mut patch = json!({"status": status});
    // Addresses are merged by their type, and a node can have several of one type: replace them all.
    if let Some(addresses) = patch.pointer_mut("/status/addresses").and_then(Value::as_array_mut) {
        addresses.push(json!({"$patch": "replace"}));
    }
    nodes
        .patch_status(&shared.config.node_name, &PatchParams::default(), &Patch::Strategic(patch))
        .await
        .map(|_| ())
}

/// Asks the runtime about itself.
async fn runtime(shared: &Shared) -> Runtime {
    let mut runtime = Runtime::default();
    match shared.cri.version(cri::VersionRequest { version: "v1".into() }).await {
        Ok(v) => runtime.version = format!("{}://{}", v.runtime_name, v.runtime_version),
        Err(err) => runtime.not_ready = Some(format!("container runtime is down: {}", err.message())),
    }
    match shared.cri.status(cri::StatusRequest { verbose: true }).await {
        Ok(answer) => {
            runtime.unenforced = unenforced(&answer.info);
            runtime.groups_policy = answer.features.as_ref().map(|f| f.supplemental_groups_policy);
            runtime.handlers = answer.runtime_handlers;
            let mut missing = Vec::new();
            for c in answer.status.map(|s| s.conditions).unwrap_or_default() {
                match c.r#type.as_str() {
                    "RuntimeReady" | "NetworkReady" if !c.status => missing.push(format!(
                        "container runtime {} not ready: {} {}",
                        if c.r#type == "NetworkReady" { "network" } else { "is" },
                        c.reason,
                        c.message
                    )),
                    _ => {}
                }
            }
            if !missing.is_empty() {
                runtime.not_ready = Some(missing.join("; "));
            }
        }
        Err(err) => runtime.not_ready = Some(format!("container runtime is down: {}", err.message())),
    }
    if let Ok(list) = shared.cri.list_images(cri::ListImagesRequest { filter: None }).await {
        let mut images: Vec<ContainerImage> = list
            .images
            .into_iter()
            .map(|i| ContainerImage {
                names: Some(i.repo_digests.into_iter().chain(i.repo_tags).collect()),
                size_bytes: i64::try_from(i.size).ok(),
            })
            .collect();
        images.sort_by_key(|i| std::cmp::Reverse(i.size_bytes));
        images.truncate(50); // `nodeStatusMaxImages`.
        runtime.images = images;
    }
    runtime
}

/// What our runtime says it cannot enforce here; another runtime says nothing of that kind.
fn unenforced(info: &BTreeMap<String, String>) -> Option<Vec<String>> {
    let capabilities: Value = serde_json::from_str(info.get("capabilities")?).ok()?;
    let sentences = capabilities.get("statements")?.as_array()?;
    Some(sentences.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

/// The usual hard-eviction thresholds: 100 MiB of memory, 10 % of the disk; process ids by the kernel's limit.
fn pressure(shared: &Shared) -> Pressure {
    let disk = rustix::fs::statvfs(&shared.config.root_dir);
    Pressure {
        memory: facts::memory_available() < 100 << 20,
        disk: disk.is_ok_and(|s| s.f_blocks > 0 && s.f_bavail < s.f_blocks / 10),
        pids: false,
    }
}

async fn lease_loop(shared: Arc<Shared>, client: kube::Client, uid: String) {
    let leases: Api<Lease> = Api::namespaced(client, "kube-node-lease");
    let duration = shared.config.node_lease_duration;
    let mut patience = client::Patience::new(Duration::from_millis(200), Duration::from_secs(7));
    loop {
        let wait = match renew(&shared, &leases, &uid).await {
            Ok(()) => {
                count(&shared.metrics.lease_renewals);
                patience.reset();
                duration / 4
            }
            Err(err) => {
                let wait = patience.wait();
                warn!(err = %client::describe(&err), ?wait, "renew the node's lease again");
                wait
            }
        };
        tokio::time::sleep(wait).await;
    }
}

async fn renew(shared: &Shared, leases: &Api<Lease>, uid: &str) -> Result<(), kube::Error> {
    let name = &shared.config.node_name;
    let now = MicroTime(shared.clock.now());
    let patch = json!({"spec": {"renewTime": now, "holderIdentity": name}});
    match leases.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        other => return other.map(|_| ()),
    }
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: name.clone(),
        uid: uid.into(),
        ..OwnerReference::default()
    };
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.clone()),
            lease_duration_seconds: i32::try_from(shared.config.node_lease_duration.as_secs()).ok(),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }),
    };
    leases.create(&PostParams::default(), &lease).await.map(|_| ())
}
