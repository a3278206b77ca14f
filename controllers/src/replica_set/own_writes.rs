//! Pods that we made or deleted and that the watch hasn't shown so yet. Without this, a set would be
//! filled twice while its first pods are on their way back to us.

use std::collections::HashMap;
use std::sync::Arc;

use api::k8s::core::Pod;
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use kube::api::DynamicObject;

use crate::write::Write;

/// A watch that hasn't shown a write after this long has lost it, and so do we.
const PATIENCE: SignedDuration = SignedDuration::from_mins(5);

#[derive(Debug, Default)]
pub struct OwnWrites {
    /// Uid of the pod → uid of its set, and when.
    made: HashMap<String, (String, Timestamp)>,
    /// Uid of the pod, and when.
    deleted: HashMap<String, Timestamp>,
}

impl OwnWrites {
    /// Hears of a write that succeeded.
    pub fn note(&mut self, write: &Write, made: Option<&DynamicObject>, now: Timestamp) {
        match (write, made) {
            (Write::Create { .. }, Some(pod)) => {
                let owner = pod.owner_references().first().map(|owner| owner.uid.clone()).unwrap_or_default();
                self.made.insert(pod.uid().unwrap_or_default(), (owner, now));
            }
            (Write::Delete { uid, .. }, _) => {
                self.deleted.insert(uid.clone(), now);
            }
            _ => {}
        }
    }

    /// Forgets what the watch shows by now.
    pub fn forget_seen(&mut self, pods: &[Arc<Pod>], now: Timestamp) {
        let by_uid: HashMap<_, _> = pods.iter().filter_map(|pod| Some((pod.uid()?, pod))).collect();
        let recent = |at: Timestamp| now.duration_since(at) < PATIENCE;
        self.made.retain(|uid, (_, at)| !by_uid.contains_key(uid) && recent(*at));
        self.deleted.retain(|uid, at| {
            by_uid.get(uid).is_some_and(|pod| pod.metadata.deletion_timestamp.is_none()) && recent(*at)
        });
    }

    /// How many pods of the set are on their way.
    pub fn on_their_way(&self, set_uid: &str) -> usize {
        self.made.values().filter(|(owner, _)| owner == set_uid).count()
    }

    /// Whether we deleted this pod.
    pub fn is_deleted(&self, uid: &str) -> bool {
        self.deleted.contains_key(uid)
    }
}
