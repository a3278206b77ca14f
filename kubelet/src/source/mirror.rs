//! Mirror pods: how the apiserver shows static pods.
//!
//! Guarantees: deleting a mirror does not touch the static pod; it is made again. The mirror of a static
//! pod that is gone or changed is deleted.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};

use crate::labels;
use crate::pod::view::annotation;

/// The hash of the static pod that a mirror shows; `None` for any other pod.
pub fn hash(pod: &Pod) -> Option<&str> {
    Some(annotation(pod, labels::CONFIG_MIRROR)).filter(|h| !h.is_empty())
}

/// What to write so that the apiserver shows the static pods as they are.
#[derive(Debug, Default, PartialEq)]
pub struct Writes {
    /// Mirrors to create, by their static pod.
    pub create: Vec<Arc<Pod>>,
    /// Mirrors to delete.
    pub delete: Vec<Arc<Pod>>,
}

/// Decides. Pure.
pub fn plan(statics: &[Arc<Pod>], in_api: &[Arc<Pod>]) -> Writes {
    let mut writes = Writes::default();
    let name = |p: &Pod| (p.metadata.namespace.clone(), p.metadata.name.clone());
    for mirror in in_api.iter().filter(|p| hash(p).is_some()) {
        let fits =
            statics.iter().any(|s| name(s) == name(mirror) && s.metadata.uid.as_deref() == hash(mirror));
        if !fits || mirror.metadata.deletion_timestamp.is_some() {
            writes.delete.push(Arc::clone(mirror));
        }
    }
    for pod in statics {
        if !in_api.iter().any(|p| name(p) == name(pod)) {
            writes.create.push(Arc::clone(pod));
        }
    }
    writes
}

/// The mirror of a static pod.
pub fn object(pod: &Pod, node: Option<&Node>) -> Pod {
    let mut mirror = pod.clone();
    let meta = &mut mirror.metadata;
    let hash = meta.uid.take().unwrap_or_default();
    meta.annotations.get_or_insert_default().insert(labels::CONFIG_MIRROR.into(), hash);
    meta.owner_references = node.and_then(|node| {
        Some(vec![OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: node.metadata.name.clone()?,
            uid: node.metadata.uid.clone()?,
            controller: Some(true),
            ..OwnerReference::default()
        }])
    });
    mirror.status = None;
    mirror
}

/// Carries the writes out. Conflicts and what is gone already are fine: the next look decides again.
pub async fn apply(client: &kube::Client, node: &str, writes: Writes) -> Result<(), kube::Error> {
    for mirror in writes.delete {
        let api: Api<Pod> =
            Api::namespaced(client.clone(), mirror.metadata.namespace.as_deref().unwrap_or(""));
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: mirror.metadata.uid.clone(), resource_version: None }),
            ..DeleteParams::default()
        };
        match api.delete(mirror.metadata.name.as_deref().unwrap_or(""), &params).await {
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => {}
            other => drop(other?),
        }
    }
    if writes.create.is_empty() {
        return Ok(());
    }
    let nodes: Api<Node> = Api::all(client.clone());
    let node = nodes.get_opt(node).await?;
    for pod in writes.create {
        let api: Api<Pod> = Api::namespaced(client.clone(), pod.metadata.namespace.as_deref().unwrap_or(""));
        match api.create(&PostParams::default(), &object(&pod, node.as_ref())).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            other => drop(other?),
        }
    }
    Ok(())
}
