//! Sandboxes and containers as answers show them. Pure.

use cri_api::v1::{
    Container as ContainerRow, ContainerResources, ContainerState as CriState, ContainerStatus,
    ContainerUser, ImageSpec, LinuxContainerUser, LinuxPodSandboxStatus, Namespace, PodIp, PodSandbox,
    PodSandboxNetworkStatus, PodSandboxState, PodSandboxStatus,
};
use jiff::Timestamp;
use runtime::{Brief, Container, ContainerState, Sandbox, SandboxBrief, SandboxState};

use crate::container_spec::signal_of;
use crate::filter::Traits;
use crate::meta::{ContainerMeta, SandboxMeta};

/// Nanoseconds since 1970, as CRI has its times.
pub fn nanos(at: Timestamp) -> i64 {
    i64::try_from(at.as_nanosecond()).unwrap_or(i64::MAX)
}

/// A sandbox is ready while the runtime says so and its network stands.
pub fn sandbox_state(state: SandboxState, meta: &SandboxMeta) -> PodSandboxState {
    match state {
        SandboxState::Ready if meta.connected => PodSandboxState::SandboxReady,
        SandboxState::Ready | SandboxState::NotReady => PodSandboxState::SandboxNotready,
    }
}

/// A sandbox's line in a list.
pub fn sandbox_row(sandbox: SandboxBrief<'_>, meta: &SandboxMeta) -> PodSandbox {
    PodSandbox {
        id: sandbox.id.to_string(),
        metadata: meta.config.metadata.clone(),
        state: sandbox_state(sandbox.state, meta) as i32,
        created_at: nanos(sandbox.created_at),
        labels: meta.config.labels.clone(),
        annotations: meta.config.annotations.clone(),
        runtime_handler: meta.handler.clone(),
    }
}

/// A sandbox in full.
pub fn sandbox_status(sandbox: &Sandbox, meta: &SandboxMeta) -> PodSandboxStatus {
    let mut ips = meta.ips.iter().map(ToString::to_string);
    PodSandboxStatus {
        id: sandbox.id().to_string(),
        metadata: meta.config.metadata.clone(),
        state: sandbox_state(sandbox.state, meta) as i32,
        created_at: nanos(sandbox.created_at),
        network: Some(PodSandboxNetworkStatus {
            ip: ips.next().unwrap_or_default(),
            additional_ips: ips.map(|ip| PodIp { ip }).collect(),
        }),
        linux: Some(LinuxPodSandboxStatus {
            namespaces: Some(Namespace { options: Some(crate::sandbox_spec::options(&meta.config)) }),
        }),
        labels: meta.config.labels.clone(),
        annotations: meta.config.annotations.clone(),
        runtime_handler: meta.handler.clone(),
    }
}

/// A container's state in CRI's words.
pub fn container_state(state: &ContainerState) -> CriState {
    match state {
        ContainerState::Created => CriState::ContainerCreated,
        ContainerState::Running { .. } => CriState::ContainerRunning,
        ContainerState::Exited(_) => CriState::ContainerExited,
        ContainerState::Unknown { .. } => CriState::ContainerUnknown,
    }
}

fn image_spec(meta: &ContainerMeta) -> ImageSpec {
    let spec = ImageSpec {
        image: meta.image_name.clone(),
        image_ref: meta.image_id.clone(),
        ..ImageSpec::default()
    };
    match &meta.config.image {
        Some(asked) => ImageSpec {
            annotations: asked.annotations.clone(),
            user_specified_image: asked.user_specified_image.clone(),
            runtime_handler: asked.runtime_handler.clone(),
            ..spec
        },
        None => spec,
    }
}

/// What filters look at.
pub fn traits<'a>(container: Brief<'a>, meta: &'a ContainerMeta) -> Traits<'a> {
    Traits {
        id: container.id().as_str(),
        sandbox: container.spec.sandbox.as_str(),
        state: container_state(container.state) as i32,
        labels: &meta.config.labels,
    }
}

/// A container's line in a list.
pub fn container_row(container: Brief<'_>, meta: &ContainerMeta) -> ContainerRow {
    ContainerRow {
        id: container.id().to_string(),
        pod_sandbox_id: container.spec.sandbox.to_string(),
        metadata: meta.config.metadata.clone(),
        image: Some(image_spec(meta)),
        image_ref: meta.image_id.clone(),
        state: container_state(container.state) as i32,
        created_at: nanos(container.created_at),
        labels: meta.config.labels.clone(),
        annotations: meta.config.annotations.clone(),
        image_id: meta.image_id.clone(),
    }
}

/// A container in full.
pub fn container_status(container: &Container, meta: &ContainerMeta) -> ContainerStatus {
    let (mut started_at, mut finished_at, mut exit_code) = (None, None, 0);
    let (mut reason, mut message) = (String::new(), String::new());
    match &container.state {
        ContainerState::Created => {}
        ContainerState::Running { started_at: at, .. } => started_at = Some(*at),
        ContainerState::Exited(exit) => {
            started_at = exit.started_at;
            finished_at = Some(exit.finished_at);
            exit_code = exit.status.code();
            reason = exit.reason.as_str().to_owned();
            message = exit.message.clone();
        }
        ContainerState::Unknown { started_at: at } => {
            started_at = *at;
            exit_code = 255;
            reason = "ContainerStatusUnknown".to_owned();
            message = "the process ended while nobody watched it; how is not known".to_owned();
        }
    }
    let linux = meta.config.linux.clone().unwrap_or_default();
    ContainerStatus {
        id: container.id().to_string(),
        metadata: meta.config.metadata.clone(),
        state: container_state(&container.state) as i32,
        created_at: nanos(container.created_at),
        started_at: started_at.map_or(0, nanos),
        finished_at: finished_at.map_or(0, nanos),
        exit_code,
        image: Some(image_spec(meta)),
        image_ref: meta.image_ref.clone(),
        reason,
        message,
        labels: meta.config.labels.clone(),
        annotations: meta.config.annotations.clone(),
        mounts: meta.config.mounts.clone(),
        log_path: meta.log_path.clone(),
        resources: linux.resources.map(|linux| ContainerResources { linux: Some(linux), windows: None }),
        image_id: meta.image_id.clone(),
        user: Some(ContainerUser {
            linux: Some(LinuxContainerUser {
                uid: container.user.uid.into(),
                gid: container.user.gid.into(),
                supplemental_groups: container.user.groups.iter().map(|gid| i64::from(*gid)).collect(),
            }),
        }),
        stop_signal: signal_of(container.spec.stop_signal.as_deref()),
    }
}
