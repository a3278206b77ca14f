//! Writes a pod's status to the apiserver.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Api, Patch, PatchParams};

use super::act::{Failed, failed};
use crate::metrics::count;
use crate::shared::Shared;
use crate::status::patch;

/// What the apiserver is known to hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    /// The status there.
    pub status: PodStatus,
    /// The version that it was read at.
    pub version: u64,
    /// The uid of the object: a static pod's mirror has its own.
    pub uid: String,
}

impl Known {
    /// Reads it off an object.
    pub fn of(pod: &Pod) -> Known {
        let meta = &pod.metadata;
        Known {
            status: pod.status.clone().unwrap_or_default(),
            version: meta.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0),
            uid: meta.uid.clone().unwrap_or_default(),
        }
    }
}

/// Writes the difference; returns what the apiserver holds then.
pub async fn write(
    shared: Arc<Shared>,
    object: Arc<Pod>,
    known: Known,
    status: PodStatus,
) -> Result<Known, Failed> {
    let Some(patch) = patch::status(&known.uid, &known.status, &status) else { return Ok(known) };
    let Some(client) = &shared.client else { return Ok(known) };
    let namespace = object.metadata.namespace.as_deref().unwrap_or("");
    let name = object.metadata.name.as_deref().unwrap_or("");
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    match api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
        Ok(pod) => {
            count(&shared.metrics.status_writes);
            let mut now = Known::of(&pod);
            // Seconds are all that the wire keeps: what was sent is what is known.
            now.status = status;
            Ok(now)
        }
        // Gone, or replaced by another of its name: the source of pods will tell.
        Err(kube::Error::Api(answer)) if answer.code == 404 || answer.code == 409 => {
            Ok(Known { status, ..known })
        }
        Err(err) => {
            count(&shared.metrics.status_write_errors);
            Err(failed("StatusWrite", client::describe(&err)))
        }
    }
}
