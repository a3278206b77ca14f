//! The life of one pod over CRI, step by step, with the time that each took.
//!
//! Guarantees: a pod whose start failed half-way is removed.
//! Assumes: the image is there; its containers sleep for ever and need not be asked to end.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cri_api::v1::security_profile::ProfileType;
use cri_api::v1::*;
use cri_api::{Cri, GrpcClient};

/// The image whose containers run [`SLEEP`].
pub const IMAGE: &str = "localhost/busybox:1";
/// What a container runs.
const SLEEP: [&str; 2] = ["sleep", "100000"];

/// The command line of a container's process, a space behind each word.
pub fn own_line() -> String {
    SLEEP.map(|word| format!("{word} ")).concat()
}

/// A started pod.
#[derive(Debug)]
pub struct Pod {
    sandbox: String,
    /// Id of its container.
    pub container: String,
}

/// How long the calls took that start a pod.
#[derive(Debug, Clone, Copy)]
pub struct StartTimes {
    /// RunPodSandbox.
    pub sandbox: Duration,
    /// CreateContainer.
    pub create: Duration,
    /// StartContainer.
    pub start: Duration,
}

impl StartTimes {
    /// The whole.
    pub fn sum(&self) -> Duration {
        self.sandbox + self.create + self.start
    }
}

/// How long the calls took that end a pod.
#[derive(Debug, Clone, Copy)]
pub struct EndTimes {
    /// StopPodSandbox.
    pub stop: Duration,
    /// RemovePodSandbox.
    pub remove: Duration,
}

/// Starts a pod of one container.
///
/// # Errors
/// Which call failed.
pub async fn start(cri: &GrpcClient, dir: &Path, host_network: bool) -> anyhow::Result<(Pod, StartTimes)> {
    let name = next_name();
    let sandbox_config = sandbox_config(&name, dir, host_network)?;
    let container_config = container_config(host_network);

    let begin = Instant::now();
    let request =
        RunPodSandboxRequest { config: Some(sandbox_config.clone()), runtime_handler: String::new() };
    let sandbox = cri.run_pod_sandbox(request).await.context("RunPodSandbox")?.pod_sandbox_id;
    let sandboxed = Instant::now();
    let request = CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(container_config),
        sandbox_config: Some(sandbox_config),
    };
    let rest = async {
        let container = cri.create_container(request).await.context("CreateContainer")?.container_id;
        let created = Instant::now();
        let request = StartContainerRequest { container_id: container.clone() };
        cri.start_container(request).await.context("StartContainer")?;
        anyhow::Ok((container, created, Instant::now()))
    };
    match rest.await {
        Ok((container, created, started)) => {
            let times = StartTimes {
                sandbox: sandboxed - begin,
                create: created - sandboxed,
                start: started - created,
            };
            Ok((Pod { sandbox, container }, times))
        }
        Err(err) => {
            let pod = Pod { sandbox, container: String::new() };
            pod.end(cri).await.with_context(|| format!("clean up after: {err:#}"))?;
            Err(err)
        }
    }
}

/// Makes a pod with `count` containers, labelled and annotated as a kubelet does, none of them started.
///
/// # Errors
/// Which call failed.
pub async fn make(cri: &GrpcClient, dir: &Path, count: usize) -> anyhow::Result<Pod> {
    let name = next_name();
    let sandbox_config = sandbox_config(&name, dir, false)?;
    let request =
        RunPodSandboxRequest { config: Some(sandbox_config.clone()), runtime_handler: String::new() };
    let sandbox = cri.run_pod_sandbox(request).await.context("RunPodSandbox")?.pod_sandbox_id;
    let mut pod = Pod { sandbox, container: String::new() };
    for number in 0..count {
        let mut config = container_config(false);
        let container = format!("c{number}");
        let pairs = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| (format!("io.kubernetes.{key}"), (*value).to_owned())).collect()
        };
        let uid = format!("{name}-uid");
        config.labels = pairs(&[
            ("pod.name", &name),
            ("pod.namespace", "default"),
            ("pod.uid", &uid),
            ("container.name", &container),
        ]);
        config.annotations = pairs(&[
            ("container.hash", "8a3c9f01"),
            ("container.restartCount", "0"),
            ("container.terminationMessagePath", "/dev/termination-log"),
            ("container.terminationMessagePolicy", "File"),
            ("pod.terminationGracePeriod", "30"),
        ]);
        config.log_path = format!("{container}.log");
        config.metadata = Some(ContainerMetadata { name: container, attempt: 0 });
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.sandbox.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox_config.clone()),
        };
        match cri.create_container(request).await.context("CreateContainer") {
            Ok(answer) => pod.container = answer.container_id,
            Err(err) => {
                pod.end(cri).await.with_context(|| format!("clean up after: {err:#}"))?;
                return Err(err);
            }
        }
    }
    Ok(pod)
}

fn next_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("bench-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

impl Pod {
    /// Stops and removes it.
    ///
    /// # Errors
    /// Which call failed.
    pub async fn end(self, cri: &GrpcClient) -> anyhow::Result<EndTimes> {
        let begin = Instant::now();
        let request = StopPodSandboxRequest { pod_sandbox_id: self.sandbox.clone() };
        cri.stop_pod_sandbox(request).await.context("StopPodSandbox")?;
        let stopped = Instant::now();
        let request = RemovePodSandboxRequest { pod_sandbox_id: self.sandbox };
        cri.remove_pod_sandbox(request).await.context("RemovePodSandbox")?;
        Ok(EndTimes { stop: stopped - begin, remove: stopped.elapsed() })
    }

    /// Runs `true` in it.
    ///
    /// # Errors
    /// The call failed, or the command did.
    pub async fn exec(&self, cri: &GrpcClient) -> anyhow::Result<Duration> {
        let begin = Instant::now();
        let request =
            ExecSyncRequest { container_id: self.container.clone(), cmd: vec!["true".into()], timeout: 10 };
        let answer = cri.exec_sync(request).await.context("ExecSync")?;
        let time = begin.elapsed();
        ensure!(answer.exit_code == 0, "`true` ended with {}", answer.exit_code);
        Ok(time)
    }
}

fn namespaces(host_network: bool) -> NamespaceOption {
    let network = if host_network { NamespaceMode::Node } else { NamespaceMode::Pod };
    NamespaceOption {
        network: network.into(),
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Pod.into(),
        ..Default::default()
    }
}

fn runtime_default() -> Option<SecurityProfile> {
    Some(SecurityProfile { profile_type: ProfileType::RuntimeDefault.into(), localhost_ref: String::new() })
}

fn sandbox_config(name: &str, dir: &Path, host_network: bool) -> anyhow::Result<PodSandboxConfig> {
    let logs = dir.join("logs").join(name);
    std::fs::create_dir_all(&logs).with_context(|| format!("make {}", logs.display()))?;
    let security = LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(host_network)),
        seccomp: runtime_default(),
        ..Default::default()
    };
    // Named after the run's directory, so that the script finds and removes what a v1 hierarchy keeps.
    let cgroup = dir.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    Ok(PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.into(),
            uid: format!("{name}-uid"),
            namespace: "default".into(),
            attempt: 0,
        }),
        hostname: if host_network { String::new() } else { name.into() },
        log_directory: logs.to_string_lossy().into_owned(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: format!("/{}", cgroup.unwrap_or_default()),
            security_context: Some(security),
            ..Default::default()
        }),
        ..Default::default()
    })
}

/// What a kubelet asks for a container without requests or limits.
fn container_config(host_network: bool) -> ContainerConfig {
    let linux = LinuxContainerConfig {
        resources: Some(LinuxContainerResources { cpu_shares: 2, oom_score_adj: 1000, ..Default::default() }),
        security_context: Some(LinuxContainerSecurityContext {
            namespace_options: Some(namespaces(host_network)),
            seccomp: runtime_default(),
            ..Default::default()
        }),
    };
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: "sleep".into(), attempt: 0 }),
        image: Some(ImageSpec { image: IMAGE.into(), ..Default::default() }),
        command: SLEEP.map(str::to_owned).to_vec(),
        log_path: "sleep.log".into(),
        linux: Some(linux),
        ..Default::default()
    }
}
