//! Asks the runtime about one pod.
//!
//! Guarantees: an error is an error, never "nothing runs".

use std::collections::BTreeMap;

use cri_api::v1 as cri;

use super::observed::{self, Observed, Seen};
use crate::labels;
use crate::pod::view::PodUid;
use crate::shared::Shared;

/// Statuses of ended containers: they don't change any more, so they are asked for once.
#[derive(Debug, Default)]
pub struct Ended(BTreeMap<String, Seen>);

/// One look at a pod.
pub async fn observe(shared: &Shared, uid: &PodUid, ended: &mut Ended) -> Result<Observed, tonic::Status> {
    let selector: BTreeMap<String, String> = [(labels::POD_UID.to_owned(), uid.to_string())].into();
    let filter = cri::PodSandboxFilter { label_selector: selector.clone(), ..Default::default() };
    let list = shared.cri.list_pod_sandbox(cri::ListPodSandboxRequest { filter: Some(filter) }).await?;
    let mut seen = Observed::default();
    for item in list.items {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: item.id.clone(), verbose: false };
        match shared.cri.pod_sandbox_status(request).await {
            Ok(answer) => seen.sandboxes.extend(answer.status.as_ref().map(observed::sandbox)),
            Err(err) if err.code() == tonic::Code::NotFound => {} // Removed since the list.
            Err(err) => return Err(err),
        }
    }
    let filter = cri::ContainerFilter { label_selector: selector, ..Default::default() };
    let list = shared.cri.list_containers(cri::ListContainersRequest { filter: Some(filter) }).await?;
    ended.0.retain(|id, _| list.containers.iter().any(|c| c.id == *id));
    for item in list.containers {
        if let Some(known) = ended.0.get(&item.id) {
            seen.containers.push(known.clone());
            continue;
        }
        let request = cri::ContainerStatusRequest { container_id: item.id.clone(), verbose: false };
        match shared.cri.container_status(request).await {
            Ok(answer) => {
                let Some(status) = answer.status else { continue };
                let container = observed::container(&status, &item.pod_sandbox_id);
                if container.exit().is_some() {
                    ended.0.insert(item.id.clone(), container.clone());
                }
                seen.containers.push(container);
            }
            Err(err) if err.code() == tonic::Code::NotFound => {}
            Err(err) => return Err(err),
        }
    }
    Ok(seen.sorted())
}
