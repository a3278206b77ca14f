//! ListMetricDescriptors, ListPodSandboxMetrics: what the kubelet shows under `/metrics/cadvisor`.
//!
//! Guarantees: every metric given has a descriptor, with as many labels as it.
//! Caveat: the CRI's values are whole numbers, so metrics in seconds are rounded down.

mod table;

use cri_api::Row;
use cri_api::v1::*;
use futures::StreamExt;

use crate::sandbox::sandbox_id;
use crate::server::Inner;
use crate::stats::AT_A_TIME;
use table::{Measured, Owner};

/// Files of a cgroup that metrics are made of.
const FILES: [&str; 15] = [
    "cpu.stat",
    "cpu.max",
    "cpu.weight",
    "cpu.pressure",
    "memory.stat",
    "memory.peak",
    "memory.max",
    "memory.low",
    "memory.swap.current",
    "memory.swap.max",
    "memory.events",
    "memory.pressure",
    "io.stat",
    "io.pressure",
    "pids.max",
];

impl Inner {
    pub(crate) fn list_metric_descriptors(&self) -> ListMetricDescriptorsResponse {
        ListMetricDescriptorsResponse { descriptors: table::descriptors() }
    }

    pub(crate) async fn list_sandbox_metrics(&self) -> Vec<PodSandboxMetrics> {
        let ready = PodSandboxState::SandboxReady as i32;
        let sandboxes = self.list_sandboxes(None).into_iter().filter(|row| row.state == ready);
        let containers = self.container_rows(None, |_| true);
        let all = futures::stream::iter(sandboxes.map(|row| self.metrics_of(row, &containers)));
        all.buffered(AT_A_TIME).collect().await
    }

    async fn metrics_of(&self, sandbox: Row<PodSandbox>, containers: &[Row<Container>]) -> PodSandboxMetrics {
        let metadata = sandbox.metadata.clone().unwrap_or_default();
        let owner = |name: &str, image: &str, container: &str, id: &str| Owner {
            id: id.to_owned(),
            name: name.to_owned(),
            image: image.to_owned(),
            container: container.to_owned(),
            namespace: metadata.namespace.clone(),
            pod: metadata.name.clone(),
        };
        let mut measured = Measured::default();
        let mut metrics = Vec::new();
        if let Some(found) = sandbox_id(&sandbox.id).ok().and_then(|id| self.runtime.sandbox(&id)) {
            measured.files = self.runtime.cgroup_files(&found.cgroup, &FILES).await;
            measured.stats = self.runtime.sandbox_stats(found.id()).await.unwrap_or_default();
            measured.started_at_ns = sandbox.created_at;
            if let Some(netns) = &found.netns {
                measured.interfaces = self.network.stats(netns).await.unwrap_or_default();
            }
            metrics = table::metrics(&owner("", "", "", &found.cgroup), &measured);
        }
        let running = ContainerState::ContainerRunning as i32;
        let mine = containers.iter().filter(|row| row.pod_sandbox_id == sandbox.id && row.state == running);
        let mut container_metrics = Vec::new();
        for row in mine {
            // One that ended meanwhile is left out.
            let Ok(id) = crate::container::container_id(&row.id) else { continue };
            let (Some(found), Ok(stats)) = (self.runtime.container(&id), self.runtime.stats(&id).await)
            else {
                continue;
            };
            let started_at_ns = match &found.state {
                runtime::ContainerState::Running { started_at, .. } => crate::view::nanos(*started_at),
                _ => continue,
            };
            let layers = rustix::fs::statvfs(&self.config.layers_dir).ok();
            let measured = Measured {
                files: self.runtime.cgroup_files(&found.cgroup, &FILES).await,
                stats,
                started_at_ns,
                interfaces: Vec::new(),
                layers: layers.map(|fs| (self.config.layers_dir.to_string_lossy().into_owned(), fs)),
            };
            let name = row.metadata.as_ref().map(|metadata| metadata.name.as_str()).unwrap_or_default();
            let image = row.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
            let owner = owner(&row.id, image, name, &found.cgroup);
            container_metrics.push(ContainerMetrics {
                container_id: row.id.clone(),
                metrics: table::metrics(&owner, &measured),
            });
        }
        PodSandboxMetrics { pod_sandbox_id: sandbox.id.clone(), metrics, container_metrics }
    }
}
