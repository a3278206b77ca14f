//! Calls of the CRI, as these tests make them.

use anyhow::Context;
use cri_api::v1::*;
use cri_api::{Cri, GrpcClient, Row};
use tests::Node;

/// The image of all containers here.
pub const BUSYBOX: &str = "localhost/busybox:1";

/// A client of the node.
pub async fn client(node: &Node) -> anyhow::Result<GrpcClient> {
    GrpcClient::connect(node.root.join("run/cri.sock")).await.context("connect to the node")
}

/// A pod with all that can be made for one: network, host port, an init for shared processes.
pub fn pod(node: &Node, name: &str, network: NamespaceMode, host_port: Option<i32>) -> PodSandboxConfig {
    let options = NamespaceOption {
        network: network.into(),
        pid: if host_port.is_some() { NamespaceMode::Pod.into() } else { NamespaceMode::Container.into() },
        ..Default::default()
    };
    let port = |host_port| PortMapping { container_port: 80, host_port, ..Default::default() };
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.into(),
            uid: format!("{name}-uid"),
            namespace: "default".into(),
            attempt: 0,
        }),
        hostname: if network == NamespaceMode::Node { String::new() } else { name.into() },
        log_directory: node.root.join("log").join(name).to_string_lossy().into_owned(),
        port_mappings: host_port.into_iter().map(port).collect(),
        linux: Some(LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(options),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A container that sleeps in such a pod.
pub fn container(pod: &PodSandboxConfig) -> ContainerConfig {
    let options = pod.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: "main".into(), attempt: 0 }),
        image: Some(ImageSpec { image: BUSYBOX.into(), ..Default::default() }),
        // As the first process of its namespace it needs a handler to heed the signal.
        command: vec!["sh".into(), "-c".into(), "trap 'exit 0' TERM; sleep 1000000 & wait".into()],
        log_path: "main.log".into(),
        linux: Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: options.and_then(|context| context.namespace_options.clone()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// RunPodSandbox.
pub async fn run_pod(cri: &GrpcClient, config: &PodSandboxConfig) -> anyhow::Result<String> {
    let request = RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
    Ok(cri.run_pod_sandbox(request).await.context("RunPodSandbox")?.pod_sandbox_id)
}

/// CreateContainer.
pub async fn create(cri: &GrpcClient, pod: &str, config: &PodSandboxConfig) -> anyhow::Result<String> {
    let request = CreateContainerRequest {
        pod_sandbox_id: pod.into(),
        config: Some(container(config)),
        sandbox_config: Some(config.clone()),
    };
    Ok(cri.create_container(request).await.context("CreateContainer")?.container_id)
}

/// StartContainer.
pub async fn start(cri: &GrpcClient, id: &str) -> anyhow::Result<()> {
    let request = StartContainerRequest { container_id: id.into() };
    cri.start_container(request).await.context("StartContainer").map(drop)
}

/// StopContainer.
pub async fn stop(cri: &GrpcClient, id: &str) -> anyhow::Result<()> {
    let request = StopContainerRequest { container_id: id.into(), timeout: 20 };
    cri.stop_container(request).await.context("StopContainer").map(drop)
}

/// RemoveContainer.
pub async fn remove(cri: &GrpcClient, id: &str) -> anyhow::Result<()> {
    let request = RemoveContainerRequest { container_id: id.into() };
    cri.remove_container(request).await.context("RemoveContainer").map(drop)
}

/// StopPodSandbox.
pub async fn stop_pod(cri: &GrpcClient, id: &str) -> anyhow::Result<()> {
    let request = StopPodSandboxRequest { pod_sandbox_id: id.into() };
    cri.stop_pod_sandbox(request).await.context("StopPodSandbox").map(drop)
}

/// RemovePodSandbox.
pub async fn remove_pod(cri: &GrpcClient, id: &str) -> anyhow::Result<()> {
    let request = RemovePodSandboxRequest { pod_sandbox_id: id.into() };
    cri.remove_pod_sandbox(request).await.context("RemovePodSandbox").map(drop)
}

/// All sandboxes.
pub async fn sandboxes(cri: &GrpcClient) -> anyhow::Result<Vec<Row<PodSandbox>>> {
    Ok(cri.list_pod_sandbox(ListPodSandboxRequest::default()).await.context("ListPodSandbox")?.items)
}

/// All containers.
pub async fn containers(cri: &GrpcClient) -> anyhow::Result<Vec<Row<Container>>> {
    Ok(cri.list_containers(ListContainersRequest::default()).await.context("ListContainers")?.containers)
}

/// What a node without pods must not have any more, looked at while it runs.
pub fn left(node: &Node) -> Vec<String> {
    let mut left = Vec::new();
    for place in
        ["run/sandboxes", "run/containers", "run/ns", "data/containers", "data/images/s", "data/images/t"]
    {
        for entry in std::fs::read_dir(node.root.join(place)).into_iter().flatten().flatten() {
            left.push(entry.path().display().to_string());
        }
    }
    left.extend(below(&node.root, "leases"));
    left
}

/// What is in directories called `name` anywhere in the node's own ones.
fn below(root: &std::path::Path, name: &str) -> Vec<String> {
    let mut found = Vec::new();
    for top in ["run", "data"] {
        for entry in std::fs::read_dir(root.join(top)).into_iter().flatten().flatten() {
            let dir = entry.path().join(name);
            let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
            found.extend(files.map(|file| file.path().display().to_string()));
        }
    }
    found
}
