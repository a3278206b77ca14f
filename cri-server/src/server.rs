//! The server as a whole: what it holds, how it starts, and its face towards the CRI.
//!
//! Guarantees: a call that changes something runs to its end even if its client gives up, so nothing is left
//! half-made.

use std::sync::Arc;

use cri_api::v1::*;
use cri_api::{Cri, ItemStream};
use network::PodNetwork;
use runtime::Runtime;
use tonic::Status;

use crate::config::Config;
use crate::exec::StreamBackend;
use crate::index::Index;
use crate::stats::Rates;
use crate::streaming::{StreamingServer, Tls, TlsError};

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The directory for sandboxes' files cannot be made.
    #[error("make the directory {path} for the files of sandboxes")]
    Directory {
        /// The directory.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The streaming server cannot listen.
    #[error("listen on {address} for exec, attach and port-forward")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The streaming server has no usable certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// What dead sandboxes left of the network could not be removed.
    #[error("clean up the network of sandboxes that are gone")]
    Network(#[from] network::TeardownErrors),
}

/// The CRI over our own crates. Cheap to clone; all clones are one server.
#[derive(Clone)]
pub struct CriServer {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub runtime: Runtime,
    pub images: image::Store,
    pub network: PodNetwork,
    pub config: Config,
    pub index: Index,
    pub rates: Rates,
    pub streaming: StreamingServer,
}

impl CriServer {
    /// Takes over what the runtime has, cleans up what belongs to nobody, starts the streaming server.
    pub async fn new(
        runtime: Runtime,
        images: image::Store,
        network: PodNetwork,
        config: Config,
    ) -> Result<CriServer, StartError> {
        let path = config.state_dir.clone();
        std::fs::create_dir_all(&path).map_err(|source| StartError::Directory { path, source })?;
        let backend = Arc::new(StreamBackend::new(runtime.clone()));
        let tls = config.streaming_tls.clone().map(Tls::open).transpose()?;
        let streaming = StreamingServer::bind(config.streaming_address, tls, backend)
            .await
            .map_err(|source| StartError::Listen { address: config.streaming_address, source })?;
        let index = Index::default();
        let rates = Rates::default();
        let inner = Arc::new(Inner { runtime, images, network, config, index, rates, streaming });
        inner.recover().await;
        Ok(CriServer { inner })
    }

    /// Where exec, attach and port-forward are served.
    pub fn streaming_address(&self) -> std::net::SocketAddr {
        self.inner.streaming.address()
    }

    /// Runs what changes something to its end, whatever becomes of the caller.
    async fn through<T, F>(&self, work: impl FnOnce(Arc<Inner>) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Status>> + Send + 'static,
        T: Send + 'static,
    {
        match tokio::spawn(work(self.inner.clone())).await {
            Ok(result) => result,
            Err(error) => Err(Status::internal(format!("a call broke off: {error}"))),
        }
    }
}

#[async_trait::async_trait]
impl Cri for CriServer {
    async fn version(&self, _: VersionRequest) -> Result<VersionResponse, Status> {
        Ok(self.inner.version())
    }
    async fn status(&self, request: StatusRequest) -> Result<StatusResponse, Status> {
        self.inner.status(request.verbose).await
    }
    async fn runtime_config(&self, _: RuntimeConfigRequest) -> Result<RuntimeConfigResponse, Status> {
        Ok(self.inner.runtime_config())
    }
    async fn update_runtime_config(
        &self,
        request: UpdateRuntimeConfigRequest,
    ) -> Result<UpdateRuntimeConfigResponse, Status> {
        self.inner.update_runtime_config(request)
    }

    async fn run_pod_sandbox(&self, request: RunPodSandboxRequest) -> Result<RunPodSandboxResponse, Status> {
        self.through(|inner| async move { inner.run_pod_sandbox(request).await }).await
    }
    async fn stop_pod_sandbox(
        &self,
        request: StopPodSandboxRequest,
    ) -> Result<StopPodSandboxResponse, Status> {
        self.through(|inner| async move { inner.stop_pod_sandbox(&request.pod_sandbox_id).await }).await?;
        Ok(StopPodSandboxResponse {})
    }
    async fn remove_pod_sandbox(
        &self,
        request: RemovePodSandboxRequest,
    ) -> Result<RemovePodSandboxResponse, Status> {
        self.through(|inner| async move { inner.remove_pod_sandbox(&request.pod_sandbox_id).await }).await?;
        Ok(RemovePodSandboxResponse {})
    }
    async fn pod_sandbox_status(
        &self,
        request: PodSandboxStatusRequest,
    ) -> Result<PodSandboxStatusResponse, Status> {
        self.inner.pod_sandbox_status(request)
    }
    async fn list_pod_sandbox(
        &self,
        request: ListPodSandboxRequest,
    ) -> Result<ListPodSandboxResponse, Status> {
        Ok(ListPodSandboxResponse { items: self.inner.list_sandboxes(request.filter.as_ref()) })
    }

    async fn create_container(
        &self,
        request: CreateContainerRequest,
    ) -> Result<CreateContainerResponse, Status> {
        self.through(|inner| async move { inner.create_container(request).await }).await
    }
    async fn start_container(
        &self,
        request: StartContainerRequest,
    ) -> Result<StartContainerResponse, Status> {
        self.through(|inner| async move { inner.start_container(&request.container_id).await }).await?;
        Ok(StartContainerResponse {})
    }
    async fn stop_container(&self, request: StopContainerRequest) -> Result<StopContainerResponse, Status> {
        self.through(
            |inner| async move { inner.stop_container(&request.container_id, request.timeout).await },
        )
        .await?;
        Ok(StopContainerResponse {})
    }
    async fn remove_container(
        &self,
        request: RemoveContainerRequest,
    ) -> Result<RemoveContainerResponse, Status> {
        self.through(|inner| async move { inner.remove_container(&request.container_id).await }).await?;
        Ok(RemoveContainerResponse {})
    }
    async fn list_containers(
        &self,
        request: ListContainersRequest,
    ) -> Result<ListContainersResponse, Status> {
        Ok(ListContainersResponse { containers: self.inner.list_containers(request.filter.as_ref()) })
    }
    async fn container_status(
        &self,
        request: ContainerStatusRequest,
    ) -> Result<ContainerStatusResponse, Status> {
        self.inner.container_status(request)
    }
    async fn update_container_resources(
        &self,
        request: UpdateContainerResourcesRequest,
    ) -> Result<UpdateContainerResourcesResponse, Status> {
        self.through(|inner| async move { inner.update_container_resources(request).await }).await?;
        Ok(UpdateContainerResourcesResponse {})
    }
    async fn update_pod_sandbox_resources(
        &self,
        request: UpdatePodSandboxResourcesRequest,
    ) -> Result<UpdatePodSandboxResourcesResponse, Status> {
        self.through(|inner| async move { inner.update_pod_sandbox_resources(request).await }).await?;
        Ok(UpdatePodSandboxResourcesResponse {})
    }
    async fn checkpoint_container(
        &self,
        request: CheckpointContainerRequest,
    ) -> Result<CheckpointContainerResponse, Status> {
        self.through(|inner| async move { inner.checkpoint_container(request).await }).await?;
        Ok(CheckpointContainerResponse {})
    }
    async fn reopen_container_log(
        &self,
        request: ReopenContainerLogRequest,
    ) -> Result<ReopenContainerLogResponse, Status> {
        self.inner.reopen_container_log(&request.container_id).await?;
        Ok(ReopenContainerLogResponse {})
    }

    async fn exec_sync(&self, request: ExecSyncRequest) -> Result<ExecSyncResponse, Status> {
        self.through(|inner| async move { inner.exec_sync(request).await }).await
    }
    async fn exec(&self, request: ExecRequest) -> Result<ExecResponse, Status> {
        self.inner.exec(request)
    }
    async fn attach(&self, request: AttachRequest) -> Result<AttachResponse, Status> {
        self.inner.attach(request)
    }
    async fn port_forward(&self, request: PortForwardRequest) -> Result<PortForwardResponse, Status> {
        self.inner.port_forward(request)
    }

    async fn container_stats(
        &self,
        request: ContainerStatsRequest,
    ) -> Result<ContainerStatsResponse, Status> {
        Ok(ContainerStatsResponse { stats: Some(self.inner.container_stats(&request.container_id).await?) })
    }
    async fn list_container_stats(
        &self,
        request: ListContainerStatsRequest,
    ) -> Result<ListContainerStatsResponse, Status> {
        Ok(ListContainerStatsResponse {
            stats: self.inner.list_container_stats(request.filter.as_ref()).await,
        })
    }
    async fn pod_sandbox_stats(
        &self,
        request: PodSandboxStatsRequest,
    ) -> Result<PodSandboxStatsResponse, Status> {
        Ok(PodSandboxStatsResponse { stats: Some(self.inner.sandbox_stats(&request.pod_sandbox_id).await?) })
    }
    async fn list_pod_sandbox_stats(
        &self,
        request: ListPodSandboxStatsRequest,
    ) -> Result<ListPodSandboxStatsResponse, Status> {
        Ok(ListPodSandboxStatsResponse {
            stats: self.inner.list_sandbox_stats(request.filter.as_ref()).await,
        })
    }

    async fn list_metric_descriptors(
        &self,
        _: ListMetricDescriptorsRequest,
    ) -> Result<ListMetricDescriptorsResponse, Status> {
        Ok(self.inner.list_metric_descriptors())
    }
    async fn list_pod_sandbox_metrics(
        &self,
        _: ListPodSandboxMetricsRequest,
    ) -> Result<ListPodSandboxMetricsResponse, Status> {
        Ok(ListPodSandboxMetricsResponse { pod_metrics: self.inner.list_sandbox_metrics().await })
    }

    async fn container_events(&self) -> Result<ItemStream<ContainerEventResponse>, Status> {
        Ok(crate::events::events(self.inner.clone()))
    }

    async fn list_images(&self, request: ListImagesRequest) -> Result<ListImagesResponse, Status> {
        Ok(self.inner.list_images(request))
    }
    async fn image_status(&self, request: ImageStatusRequest) -> Result<ImageStatusResponse, Status> {
        self.inner.image_status(request)
    }
    async fn pull_image(&self, request: PullImageRequest) -> Result<PullImageResponse, Status> {
        // Not run through: a client that gives up ends its download.
        self.inner.pull_image(request).await
    }
    async fn remove_image(&self, request: RemoveImageRequest) -> Result<RemoveImageResponse, Status> {
        self.through(|inner| async move { inner.remove_image(request).await }).await?;
        Ok(RemoveImageResponse {})
    }
    async fn image_fs_info(&self, _: ImageFsInfoRequest) -> Result<ImageFsInfoResponse, Status> {
        Ok(self.inner.image_fs_info().await)
    }
}
