//! A container runtime without containers. What a container does is its command:
//! `run` stays until it is stopped, `stubborn` until it is killed, `exit N [after S]` ends by itself.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cri_api::v1::*;
use cri_api::{Cri, ItemStream};
use futures::StreamExt;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::broadcast;
use tokio::time::Instant;
use tonic::Status;

use crate::clock::Clock;

#[derive(Default)]
struct Inside {
    sandboxes: BTreeMap<String, (PodSandbox, bool)>,
    containers: BTreeMap<String, Run>,
    calls: Vec<String>,
    next: u32,
    /// Images, and whether the runtime says that it needs them itself.
    images: BTreeMap<String, (Image, bool)>,
    /// An image that a container of somebody else uses.
    used: Option<String>,
}

struct Run {
    config: ContainerConfig,
    status: ContainerStatus,
    sandbox: String,
}

/// The fake.
pub struct FakeCri {
    inside: Mutex<Inside>,
    events: broadcast::Sender<ContainerEventResponse>,
    began: Instant,
    clock: Clock,
    /// What exec probes find.
    pub healthy: AtomicBool,
    /// Pulls fail.
    pub registry_down: AtomicBool,
}

impl FakeCri {
    pub fn new(clock: Clock) -> Arc<FakeCri> {
        let (events, _) = broadcast::channel(256);
        Arc::new(FakeCri {
            inside: Mutex::default(),
            events,
            began: Instant::now(),
            clock,
            healthy: AtomicBool::new(true),
            registry_down: AtomicBool::new(false),
        })
    }

    /// Puts an image there.
    pub fn put_image(&self, id: &str, size: u64, pinned: bool) {
        let image = Image { id: id.into(), size, pinned, ..Default::default() };
        self.inside.lock().images.insert(id.into(), (image, false));
    }

    /// A container uses the image.
    pub fn use_image(&self, id: &str) {
        self.inside.lock().used = Some(id.into());
    }

    /// The runtime needs the image for something that is no container.
    pub fn refuse_to_remove(&self, id: &str) {
        self.inside.lock().images.get_mut(id).expect("an image of that id").1 = true;
    }

    /// What images are there.
    pub fn image_ids(&self) -> Vec<String> {
        self.inside.lock().images.keys().cloned().collect()
    }

    /// What was asked so far, each line with the second it was asked in.
    pub fn calls(&self) -> String {
        self.inside.lock().calls.join("\n")
    }

    fn note(&self, what: String) {
        let line = format!("{}s {what}", self.began.elapsed().as_secs());
        self.inside.lock().calls.push(line);
    }

    fn now(&self) -> i64 {
        i64::try_from(self.clock.now().as_nanosecond()).expect("this century")
    }

    pub fn config_of(&self, name: &str) -> ContainerConfig {
        let inside = self.inside.lock();
        let mut found =
            inside.containers.values().filter(|c| c.config.metadata.as_ref().is_some_and(|m| m.name == name));
        found.next_back().expect("a container of that name").config.clone()
    }

    /// The container of that name ends.
    pub fn exit(&self, name: &str, code: i32) {
        let id = {
            let inside = self.inside.lock();
            let running = ContainerState::ContainerRunning as i32;
            let found = inside.containers.values().find(|c| {
                c.status.metadata.as_ref().is_some_and(|m| m.name == name) && c.status.state == running
            });
            found.expect("a running container of that name").status.id.clone()
        };
        self.end(&id, code);
    }

    fn end(&self, id: &str, code: i32) {
        let uid = {
            let mut inside = self.inside.lock();
            let now = self.now();
            let Some(c) = inside.containers.get_mut(id) else { return };
            if c.status.state != ContainerState::ContainerRunning as i32 {
                return;
            }
            c.status.state = ContainerState::ContainerExited as i32;
            c.status.exit_code = code;
            c.status.finished_at = now;
            let sandbox = c.sandbox.clone();
            inside.sandboxes.get(&sandbox).and_then(|(s, _)| s.metadata.clone())
        };
        let status = PodSandboxStatus { metadata: uid, ..Default::default() };
        let event = ContainerEventResponse {
            container_id: id.into(),
            container_event_type: ContainerEventType::ContainerStoppedEvent as i32,
            pod_sandbox_status: Some(status),
            ..Default::default()
        };
        let _nobody_listens = self.events.send(event);
    }

    fn name_of(&self, id: &str) -> String {
        let inside = self.inside.lock();
        let meta = inside.containers.get(id).and_then(|c| c.status.metadata.clone()).unwrap_or_default();
        format!("{}#{}", meta.name, meta.attempt)
    }
}

/// A fake runtime whose methods run on an `Arc`, so that a started container can end later.
pub struct Handle(pub Arc<FakeCri>);

fn fits(labels: &BTreeMap<String, String>, selector: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}

macro_rules! refused {
    ($($name:ident($request:ident) -> $answer:ident;)*) => {
        $(fn $name<'life0, 'async_trait>(
            &'life0 self,
            _request: $request,
        ) -> Pin<Box<dyn Future<Output = Result<$answer, Status>> + Send + 'async_trait>>
        where
            'life0: 'async_trait,
            Self: 'async_trait,
        {
            Box::pin(async { Err(Status::unimplemented(stringify!($name))) })
        })*
    };
}

#[async_trait::async_trait]
impl Cri for Handle {
    async fn version(&self, _: VersionRequest) -> Result<VersionResponse, Status> {
        Ok(VersionResponse { runtime_name: "fake".into(), runtime_version: "1".into(), ..Default::default() })
    }

    async fn run_pod_sandbox(&self, request: RunPodSandboxRequest) -> Result<RunPodSandboxResponse, Status> {
        let config = request.config.expect("a config");
        let meta = config.metadata.clone().expect("metadata");
        self.0.note(format!("run-sandbox {}#{}", meta.name, meta.attempt));
        let mut inside = self.0.inside.lock();
        inside.next += 1;
        let id = format!("s{}", inside.next);
        let sandbox = PodSandbox {
            id: id.clone(),
            metadata: Some(meta),
            created_at: self.0.now(),
            labels: config.labels,
            annotations: config.annotations,
            ..Default::default()
        };
        inside.sandboxes.insert(id.clone(), (sandbox, true));
        Ok(RunPodSandboxResponse { pod_sandbox_id: id })
    }

    async fn stop_pod_sandbox(
        &self,
        request: StopPodSandboxRequest,
    ) -> Result<StopPodSandboxResponse, Status> {
        self.0.note("stop-sandbox".into());
        if let Some(sandbox) = self.0.inside.lock().sandboxes.get_mut(&request.pod_sandbox_id) {
            sandbox.1 = false;
        }
        Ok(StopPodSandboxResponse {})
    }

    async fn remove_pod_sandbox(
        &self,
        request: RemovePodSandboxRequest,
    ) -> Result<RemovePodSandboxResponse, Status> {
        self.0.note("remove-sandbox".into());
        let mut inside = self.0.inside.lock();
        inside.sandboxes.remove(&request.pod_sandbox_id);
        inside.containers.retain(|_, c| c.sandbox != request.pod_sandbox_id);
        Ok(RemovePodSandboxResponse {})
    }

    async fn pod_sandbox_status(
        &self,
        request: PodSandboxStatusRequest,
    ) -> Result<PodSandboxStatusResponse, Status> {
        let inside = self.0.inside.lock();
        let (sandbox, ready) =
            inside.sandboxes.get(&request.pod_sandbox_id).ok_or_else(|| Status::not_found("sandbox"))?;
        let status = PodSandboxStatus {
            id: sandbox.id.clone(),
            metadata: sandbox.metadata.clone(),
            state: if *ready {
                PodSandboxState::SandboxReady as i32
            } else {
                PodSandboxState::SandboxNotready as i32
            },
            created_at: sandbox.created_at,
            network: ready
                .then(|| PodSandboxNetworkStatus { ip: "10.9.0.5".into(), additional_ips: Vec::new() }),
            ..Default::default()
        };
        Ok(PodSandboxStatusResponse { status: Some(status), ..Default::default() })
    }

    async fn list_pod_sandbox(
        &self,
        request: ListPodSandboxRequest,
    ) -> Result<ListPodSandboxResponse, Status> {
        let selector = request.filter.unwrap_or_default().label_selector;
        let inside = self.0.inside.lock();
        let items = inside
            .sandboxes
            .values()
            .map(|(s, _)| s)
            .filter(|s| fits(&s.labels, &selector))
            .map(|s| s.clone().into())
            .collect();
        Ok(ListPodSandboxResponse { items })
    }

    async fn create_container(
        &self,
        request: CreateContainerRequest,
    ) -> Result<CreateContainerResponse, Status> {
        let config = request.config.expect("a config");
        let mut inside = self.0.inside.lock();
        inside.next += 1;
        let id = format!("c{}", inside.next);
        let status = ContainerStatus {
            id: id.clone(),
            metadata: config.metadata.clone(),
            state: ContainerState::ContainerCreated as i32,
            created_at: self.0.now(),
            image: config.image.clone(),
            image_ref: "sha256:1234".into(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            mounts: config.mounts.clone(),
            ..Default::default()
        };
        inside.containers.insert(id.clone(), Run { config, status, sandbox: request.pod_sandbox_id });
        Ok(CreateContainerResponse { container_id: id })
    }

    async fn start_container(
        &self,
        request: StartContainerRequest,
    ) -> Result<StartContainerResponse, Status> {
        let id = request.container_id;
        self.0.note(format!("start {}", self.0.name_of(&id)));
        let now = self.0.now();
        let command = {
            let mut inside = self.0.inside.lock();
            let c = inside.containers.get_mut(&id).ok_or_else(|| Status::not_found("container"))?;
            c.status.state = ContainerState::ContainerRunning as i32;
            c.status.started_at = now;
            c.config.command.clone()
        };
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        if let ["exit", code, rest @ ..] = words.as_slice() {
            let code = code.parse().expect("an exit code");
            let after = rest.get(1).map_or(0, |s| s.parse().expect("seconds"));
            let fake = Arc::clone(&self.0);
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(after)).await;
                fake.end(&id, code);
            });
        }
        Ok(StartContainerResponse {})
    }

    async fn stop_container(&self, request: StopContainerRequest) -> Result<StopContainerResponse, Status> {
        let id = request.container_id;
        self.0.note(format!("stop {} within {}s", self.0.name_of(&id), request.timeout));
        let command =
            self.0.inside.lock().containers.get(&id).map(|c| c.config.command.clone()).unwrap_or_default();
        if command.first().is_some_and(|c| c == "stubborn") {
            tokio::time::sleep(Duration::from_secs(request.timeout.unsigned_abs())).await;
            self.0.end(&id, 137);
        } else {
            self.0.end(&id, if request.timeout == 0 { 137 } else { 0 });
        }
        Ok(StopContainerResponse {})
    }

    async fn remove_container(
        &self,
        request: RemoveContainerRequest,
    ) -> Result<RemoveContainerResponse, Status> {
        self.0.note(format!("remove {}", self.0.name_of(&request.container_id)));
        self.0.inside.lock().containers.remove(&request.container_id);
        Ok(RemoveContainerResponse {})
    }

    async fn list_containers(
        &self,
        request: ListContainersRequest,
    ) -> Result<ListContainersResponse, Status> {
        let selector = request.filter.unwrap_or_default().label_selector;
        let inside = self.0.inside.lock();
        let fitting = inside.containers.values().filter(|c| fits(&c.status.labels, &selector));
        let containers = fitting
            .map(|c| Container {
                id: c.status.id.clone(),
                pod_sandbox_id: c.sandbox.clone(),
                metadata: c.status.metadata.clone(),
                annotations: c.status.annotations.clone(),
                ..Default::default()
            })
            .chain(inside.used.iter().map(|id| Container { image_ref: id.clone(), ..Default::default() }))
            .map(cri_api::Row::from)
            .collect();
        Ok(ListContainersResponse { containers })
    }

    async fn container_status(
        &self,
        request: ContainerStatusRequest,
    ) -> Result<ContainerStatusResponse, Status> {
        let inside = self.0.inside.lock();
        let c = inside.containers.get(&request.container_id).ok_or_else(|| Status::not_found("container"))?;
        Ok(ContainerStatusResponse { status: Some(c.status.clone()), ..Default::default() })
    }

    async fn exec_sync(&self, request: ExecSyncRequest) -> Result<ExecSyncResponse, Status> {
        if request.cmd.first().is_some_and(|c| c == "hook") {
            self.0.note(format!("hook in {}", self.0.name_of(&request.container_id)));
            let seconds = request.cmd.get(1).map_or(0, |s| s.parse().expect("seconds"));
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            let exit_code = request.cmd.get(2).map_or(0, |c| c.parse().expect("a code"));
            return Ok(ExecSyncResponse { exit_code, ..Default::default() });
        }
        let exit_code = i32::from(!self.0.healthy.load(Ordering::SeqCst));
        Ok(ExecSyncResponse { exit_code, stdout: "sick".into(), ..Default::default() })
    }

    async fn list_images(&self, _: ListImagesRequest) -> Result<ListImagesResponse, Status> {
        let images = self.0.inside.lock().images.values().map(|(image, _)| image.clone()).collect();
        Ok(ListImagesResponse { images })
    }

    async fn remove_image(&self, request: RemoveImageRequest) -> Result<RemoveImageResponse, Status> {
        let name = request.image.unwrap_or_default().image;
        let mut inside = self.0.inside.lock();
        if inside.images.get(&name).is_some_and(|(_, refuses)| *refuses) {
            return Err(Status::failed_precondition("in use"));
        }
        inside.images.remove(&name);
        Ok(RemoveImageResponse {})
    }

    async fn image_status(&self, request: ImageStatusRequest) -> Result<ImageStatusResponse, Status> {
        let name = request.image.unwrap_or_default().image;
        let there = name != "absent" || !self.0.registry_down.load(Ordering::SeqCst);
        let image = there.then(|| Image { id: "sha256:1234".into(), size: 5, ..Default::default() });
        Ok(ImageStatusResponse { image, ..Default::default() })
    }

    async fn pull_image(&self, request: PullImageRequest) -> Result<PullImageResponse, Status> {
        self.0.note(format!("pull {}", request.image.unwrap_or_default().image));
        match self.0.registry_down.load(Ordering::SeqCst) {
            true => Err(Status::unavailable("the registry is down")),
            false => Ok(PullImageResponse { image_ref: "sha256:1234".into() }),
        }
    }

    async fn container_events(&self) -> Result<ItemStream<ContainerEventResponse>, Status> {
        let stream = tokio_stream::wrappers::BroadcastStream::new(self.0.events.subscribe());
        Ok(stream.map(|event| event.map_err(|_| Status::data_loss("too slow"))).boxed())
    }

    refused! {
        update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
        reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
        exec(ExecRequest) -> ExecResponse;
        attach(AttachRequest) -> AttachResponse;
        port_forward(PortForwardRequest) -> PortForwardResponse;
        container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
        list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
        pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
        list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
        update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
        status(StatusRequest) -> StatusResponse;
        runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse;
        image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse;
    }
}

/// The start of every test's time.
pub fn epoch() -> Timestamp {
    "2026-11-21T09:00:00Z".parse().expect("a time")
}
