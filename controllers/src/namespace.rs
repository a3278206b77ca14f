//! Empties namespaces that are being deleted, and lets them go when they are empty.

use std::time::Duration;

use api::k8s::core::Namespace;
use client::{Cache, describe};
use futures::future::select_all;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::{Client, ResourceExt};
use tracing::{info, warn};

use crate::metadata::Metadata;
use crate::write::dynamic;

const RESYNC: Duration = Duration::from_secs(30);
/// While a namespace isn't empty yet, look again after this long, should no change be seen.
const AGAIN: Duration = Duration::from_secs(1);

/// Ends namespaces for ever.
pub async fn run(client: &Client, namespaces: Cache<Namespace>, metadata: Metadata) {
    namespaces.synced().await;
    metadata.synced().await;
    let mut changed = metadata.changed();
    changed.push(namespaces.changed());
    loop {
        for version in &mut changed {
            version.mark_unchanged();
        }
        let mut waiting = false;
        for namespace in namespaces.list().iter().filter(|n| n.metadata.deletion_timestamp.is_some()) {
            let name = namespace.name_any();
            match end(client, namespace, &metadata).await {
                Ok(true) => info!(namespace = %name, "ended"),
                Ok(false) => waiting = true,
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => waiting = true,
                Err(err) => {
                    warn!(namespace = %name, err = %describe(&err), "end namespace");
                    waiting = true;
                }
            }
        }
        let any = select_all(changed.iter_mut().map(|version| Box::pin(version.changed())));
        tokio::select! {
            // Cancel-safe: an unobserved change stays marked as changed.
            _ = any => (),
            () = tokio::time::sleep(if waiting { AGAIN } else { RESYNC }) => (),
        }
    }
}

/// Deletes what is in the namespace; true once it was empty and has been let go.
async fn end(client: &Client, namespace: &Namespace, metadata: &Metadata) -> kube::Result<bool> {
    let name = namespace.name_any();
    let mut empty = true;
    // Our copy can be behind: only the apiserver's own lists decide.
    for kind in metadata.namespaced_kinds() {
        let api = dynamic(client, &kind, &name);
        let objects = api.list_metadata(&ListParams::default()).await?;
        empty &= objects.items.is_empty();
        for object in objects.items.iter().filter(|object| object.metadata.deletion_timestamp.is_none()) {
            match api.delete(&object.name_any(), &DeleteParams::background()).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(err) => return Err(err),
            }
        }
    }
    if !empty {
        return Ok(false);
    }
    let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.clone()).unwrap_or_default();
    let others: Vec<_> = finalizers.into_iter().filter(|finalizer| finalizer != "kubernetes").collect();
    let mut object = namespace.clone();
    object.spec.get_or_insert_default().finalizers = Some(others);
    let api: Api<Namespace> = Api::all(client.clone());
    api.replace_subresource("finalize", &name, &PostParams::default(), &object).await?;
    Ok(true)
}
