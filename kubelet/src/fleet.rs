//! All pods of the node: which there should be, and a task for each.
//!
//! Guarantees: every pod that the apiserver, the files or the runtime knows has exactly one task. Nothing
//! is stopped before the apiserver's list is complete, so a restart stops nothing by mistake.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cri_api::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::labels;
use crate::pod::step::Ended;
use crate::pod::task::{self, Desired, Handle};
use crate::pod::view::{PodKey, PodUid};
use crate::shared::Shared;
use crate::source::mirror;

/// The tasks by pod.
pub struct Fleet {
    shared: Arc<Shared>,
    shutdown: CancellationToken,
    pods: RwLock<BTreeMap<PodUid, (PodKey, Handle)>>,
    /// Grows with every event of the runtime.
    activity: watch::Sender<u64>,
}

/// What there should be.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Pods that the apiserver assigned to this node, mirrors among them.
    pub from_api: Vec<Arc<Pod>>,
    /// Static pods.
    pub from_files: Vec<Arc<Pod>>,
}

impl Fleet {
    /// Without any pod.
    pub fn new(shared: Arc<Shared>, shutdown: CancellationToken) -> Fleet {
        Fleet { shared, shutdown, pods: RwLock::default(), activity: watch::Sender::new(0) }
    }

    /// Brings the tasks in line with what there should be.
    pub fn sync(&self, wanted: &Wanted) {
        let all = desired(wanted);
        let objects: Vec<Arc<Pod>> = all.iter().map(|(_, desired)| Arc::clone(&desired.pod)).collect();
        crate::sandbox::shares::apply(&self.shared.config, &self.shared.machine, &objects);
        let mut pods = self.pods.write();
        pods.retain(|_, (_, handle)| !handle.done.is_cancelled());
        for (key, mut desired) in all.clone() {
            match pods.get(&key.uid) {
                Some((_, handle)) => {
                    handle.desired.send_if_modified(|held| {
                        let same = held.gone == desired.gone
                            && same_object(&held.pod, &desired.pod)
                            && same_option(&held.object, &desired.object);
                        if !same {
                            desired.refused = held.refused.take();
                            *held = desired;
                        }
                        !same
                    });
                }
                None => {
                    if active(&pods) >= self.shared.config.max_pods as usize {
                        desired.refused = Some(too_many());
                    }
                    info!(pod = %key, "take care of the pod");
                    let handle =
                        task::start(Arc::clone(&self.shared), key.clone(), desired, self.shutdown.clone());
                    pods.insert(key.uid.clone(), (key, handle));
                }
            }
        }
        let known: BTreeSet<&PodUid> = all.iter().map(|(key, _)| &key.uid).collect();
        for (uid, (_, handle)) in pods.iter().filter(|(uid, _)| !known.contains(uid)) {
            let _uid = uid;
            handle.desired.send_if_modified(|held| !std::mem::replace(&mut held.gone, true));
        }
        self.shared.metrics.pods.store(pods.len() as u64, std::sync::atomic::Ordering::Relaxed);
    }

    /// Starts tasks for sandboxes whose pods nobody wants any more: they stop and clean up.
    pub async fn adopt_orphans(&self) -> Result<(), tonic::Status> {
        let list = self.shared.cri.list_pod_sandbox(cri::ListPodSandboxRequest { filter: None }).await?;
        let containers = self.shared.cri.list_containers(cri::ListContainersRequest { filter: None }).await?;
        for sandbox in list.items {
            let Some(pod) = orphan(&sandbox, &containers.containers) else { continue };
            let Some(key) = PodKey::of(&pod) else { continue };
            let mut pods = self.pods.write();
            if pods.contains_key(&key.uid) {
                continue;
            }
            info!(pod = %key, "the pod was deleted while nobody looked: stop it");
            let desired = Desired { pod: Arc::new(pod), object: None, gone: true, refused: None };
            let handle = task::start(Arc::clone(&self.shared), key.clone(), desired, self.shutdown.clone());
            pods.insert(key.uid.clone(), (key, handle));
        }
        Ok(())
    }

    /// Makes the task of a pod look; all tasks if the pod is not known.
    pub fn wake(&self, uid: Option<&str>) {
        self.activity.send_modify(|n| *n += 1);
        let pods = self.pods.read();
        let one = uid.and_then(PodUid::parse).and_then(|uid| pods.get(&uid).map(|(_, handle)| handle));
        match one {
            Some(handle) => handle.wake.notify_one(),
            None if uid.is_none() => pods.values().for_each(|(_, handle)| handle.wake.notify_one()),
            None => {}
        }
    }

    /// Wakes at every event of the runtime.
    pub fn activity(&self) -> watch::Receiver<u64> {
        self.activity.subscribe()
    }

    /// The pods as they are, with their statuses.
    pub fn list(&self) -> Vec<Pod> {
        let pods = self.pods.read();
        let all = pods.values().filter(|(_, handle)| !handle.done.is_cancelled());
        all.map(|(_, handle)| {
            let mut pod = handle.desired.borrow().pod.as_ref().clone();
            pod.status = Some(handle.status.load().as_ref().clone());
            pod
        })
        .collect()
    }

    /// One pod with its status.
    pub fn find(&self, namespace: &str, name: &str) -> Option<(PodKey, Pod)> {
        let pods = self.pods.read();
        let mut fitting = pods.values().filter(|(key, handle)| {
            key.namespace == namespace && key.name == name && !handle.done.is_cancelled()
        });
        // While a deleted pod ends, its successor may have the same name already: the living one wins.
        let (key, handle) =
            fitting.clone().find(|(_, h)| !h.desired.borrow().gone).or_else(|| fitting.next())?;
        let mut pod = handle.desired.borrow().pod.as_ref().clone();
        pod.status = Some(handle.status.load().as_ref().clone());
        Some((key.clone(), pod))
    }

    /// The uids of all pods that have a task.
    pub fn uids(&self) -> BTreeSet<String> {
        self.pods.read().keys().map(|uid| uid.to_string()).collect()
    }
}

fn active(pods: &BTreeMap<PodUid, (PodKey, Handle)>) -> usize {
    let ended = |h: &Handle| matches!(h.status.load().phase.as_deref(), Some("Succeeded" | "Failed"));
    pods.values().filter(|(_, handle)| !ended(handle)).count()
}

fn too_many() -> Ended {
    Ended {
        success: false,
        reason: Some("OutOfpods".into()),
        message: Some("Pod was rejected: Node didn't have enough resource: pods, requested: 1".into()),
    }
}

/// What each pod's task is to be told.
fn desired(wanted: &Wanted) -> Vec<(PodKey, Desired)> {
    let mut all = Vec::new();
    for pod in wanted.from_api.iter().filter(|p| mirror::hash(p).is_none()) {
        if let Some(key) = PodKey::of(pod) {
            let object = Some(Arc::clone(pod));
            all.push((key, Desired { pod: Arc::clone(pod), object, gone: false, refused: None }));
        }
    }
    for pod in &wanted.from_files {
        let Some(key) = PodKey::of(pod) else { continue };
        let object = wanted.from_api.iter().find(|m| mirror::hash(m) == Some(key.uid.as_str())).cloned();
        all.push((key, Desired { pod: Arc::clone(pod), object, gone: false, refused: None }));
    }
    all
}

fn same_object(a: &Arc<Pod>, b: &Arc<Pod>) -> bool {
    Arc::ptr_eq(a, b)
        || (a.metadata.resource_version.is_some()
            && a.metadata.resource_version == b.metadata.resource_version)
        || (a.metadata.resource_version.is_none() && a == b)
}

fn same_option(a: &Option<Arc<Pod>>, b: &Option<Arc<Pod>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => same_object(a, b),
        (None, None) => true,
        _ => false,
    }
}

/// A pod pieced together from what its sandbox says, enough to stop and remove it properly.
fn orphan(sandbox: &cri::PodSandbox, containers: &[cri_api::Row<cri::Container>]) -> Option<Pod> {
    let label = |key: &str| sandbox.labels.get(key).cloned();
    let own = containers.iter().filter(|c| c.pod_sandbox_id == sandbox.id);
    let specs: BTreeMap<String, Container> = own
        .filter_map(|c| {
            let name = c.metadata.as_ref()?.name.clone();
            let hook = c.annotations.get(labels::PRE_STOP).and_then(|text| serde_json::from_str(text).ok());
            let lifecycle = k8s_openapi::api::core::v1::Lifecycle { pre_stop: hook, ..Default::default() };
            Some((name.clone(), Container { name, lifecycle: Some(lifecycle), ..Container::default() }))
        })
        .collect();
    Some(Pod {
        metadata: ObjectMeta {
            name: label(labels::POD_NAME),
            namespace: label(labels::POD_NAMESPACE),
            uid: Some(label(labels::POD_UID)?),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            containers: specs.into_values().collect(),
            termination_grace_period_seconds: sandbox
                .annotations
                .get(labels::TERMINATION_GRACE)
                .and_then(|s| s.parse().ok()),
            ..PodSpec::default()
        }),
        status: None,
    })
}
