//! Pods and containers over CRI, as tests want them: one line to start one, one to ask about it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use cri_api::v1::*;
use cri_api::{Cri, GrpcClient};

use crate::eventually_within;
use crate::node::{BUSYBOX, Node};

/// A sandbox on a node.
pub struct Pod<'a> {
    /// The node.
    pub node: &'a Node,
    /// The sandbox's id.
    pub id: String,
    config: PodSandboxConfig,
}

/// A container on a node.
pub struct Container<'a> {
    /// The node.
    pub node: &'a Node,
    /// Its id.
    pub id: String,
}

/// A container to be.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// What it runs, by `sh -c`.
    pub script: String,
    /// Its limits.
    pub resources: LinuxContainerResources,
    /// Any other field.
    pub config: ContainerConfig,
}

impl Wanted {
    /// A container that runs a shell script.
    pub fn script(script: &str) -> Wanted {
        Wanted { script: script.into(), ..Wanted::default() }
    }

    /// The same with limits.
    pub fn limited(script: &str, resources: LinuxContainerResources) -> Wanted {
        Wanted { script: script.into(), resources, ..Wanted::default() }
    }
}

/// Entries of `unified`: files of cgroup v2 and what is written to them.
pub fn unified(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
    entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

impl<'a> Pod<'a> {
    /// Starts a sandbox with a network of its own.
    ///
    /// # Errors
    /// The runtime's words.
    pub async fn start(node: &'a Node) -> anyhow::Result<Pod<'a>> {
        Pod::start_with(node, |_| ()).await
    }

    /// The same; `change` may change what is asked for.
    ///
    /// # Errors
    /// The runtime's words.
    pub async fn start_with(
        node: &'a Node,
        change: impl FnOnce(&mut PodSandboxConfig),
    ) -> anyhow::Result<Pod<'a>> {
        Pod::start_by(node, "", change).await
    }

    /// The same by another runtime handler.
    ///
    /// # Errors
    /// The runtime's words.
    pub async fn start_by(
        node: &'a Node,
        handler: &str,
        change: impl FnOnce(&mut PodSandboxConfig),
    ) -> anyhow::Result<Pod<'a>> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("pod-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let options = NamespaceOption {
            network: NamespaceMode::Pod.into(),
            pid: NamespaceMode::Container.into(),
            ipc: NamespaceMode::Pod.into(),
            ..Default::default()
        };
        let mut config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.clone(),
                uid: format!("{name}-uid"),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: name.clone(),
            log_directory: format!("{}/log/{name}", node.root),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/vm-test/{name}"),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(options),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        change(&mut config);
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.into() };
        let id = node.cri().await?.run_pod_sandbox(request).await.context("RunPodSandbox")?.pod_sandbox_id;
        Ok(Pod { node, id, config })
    }

    /// Creates and starts a container in it.
    ///
    /// # Errors
    /// The runtime's words.
    pub async fn container(&self, wanted: Wanted) -> anyhow::Result<Container<'a>> {
        let container = self.create(wanted).await?;
        let request = StartContainerRequest { container_id: container.id.clone() };
        self.node.cri().await?.start_container(request).await.context("StartContainer")?;
        Ok(container)
    }

    /// Creates a container in it.
    ///
    /// # Errors
    /// The runtime's words.
    pub async fn create(&self, wanted: Wanted) -> anyhow::Result<Container<'a>> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("c{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let mut config = wanted.config;
        config.log_path = format!("{name}.log");
        config.metadata = Some(ContainerMetadata { name, attempt: 0 });
        config.image.get_or_insert_with(|| ImageSpec { image: BUSYBOX.into(), ..Default::default() });
        if config.command.is_empty() {
            config.command = vec!["sh".into(), "-c".into(), wanted.script];
        }
        config.linux.get_or_insert_default().resources = Some(wanted.resources);
        let request = CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        let id =
            self.node.cri().await?.create_container(request).await.context("CreateContainer")?.container_id;
        Ok(Container { node: self.node, id })
    }

    /// Stops and removes it with all its containers.
    ///
    /// # Errors
    /// The runtime's words.
    pub async fn remove(self) -> anyhow::Result<()> {
        let cri = self.node.cri().await?;
        let request = StopPodSandboxRequest { pod_sandbox_id: self.id.clone() };
        cri.stop_pod_sandbox(request).await.context("StopPodSandbox")?;
        let request = RemovePodSandboxRequest { pod_sandbox_id: self.id };
        cri.remove_pod_sandbox(request).await.context("RemovePodSandbox").map(|_| ())
    }
}

impl Container<'_> {
    /// ContainerStatus.
    ///
    /// # Errors
    /// The runtime's words.
    pub async fn status(&self) -> anyhow::Result<ContainerStatus> {
        let request = ContainerStatusRequest { container_id: self.id.clone(), verbose: true };
        let answer = self.cri().await?.container_status(request).await.context("ContainerStatus")?;
        answer.status.context("ContainerStatus says nothing")
    }

    /// Process id of its first process, in the guest.
    ///
    /// # Errors
    /// The runtime does not say.
    pub async fn pid(&self) -> anyhow::Result<u32> {
        let request = ContainerStatusRequest { container_id: self.id.clone(), verbose: true };
        let info = self.cri().await?.container_status(request).await.context("ContainerStatus")?.info;
        let info: serde_json::Value = serde_json::from_str(info.get("info").context("no verbose info")?)
            .context("read the verbose info")?;
        let pid = info["pid"].as_u64().with_context(|| format!("no pid in {info}"))?;
        u32::try_from(pid).context("a process id is too large")
    }

    /// The directory of its cgroup, in the guest.
    ///
    /// # Errors
    /// It does not run.
    pub async fn cgroup(&self) -> anyhow::Result<String> {
        let line = self.node.guest.ok(&format!("cat /proc/{}/cgroup", self.pid().await?)).await?;
        let path = line.strip_prefix("0::").with_context(|| format!("not cgroup v2 alone: {line}"))?;
        Ok(format!("/sys/fs/cgroup{path}"))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It still runs after `patience`.
    pub async fn ended(&self, patience: Duration) -> anyhow::Result<ContainerStatus> {
        eventually_within("the container's end", patience, || async {
            let status = self.status().await?;
            ensure!(status.state == ContainerState::ContainerExited as i32, "it runs: {status:?}");
            Ok(status)
        })
        .await
    }

    /// Whether it runs now.
    ///
    /// # Errors
    /// The runtime's words.
    pub async fn runs(&self) -> anyhow::Result<bool> {
        Ok(self.status().await?.state == ContainerState::ContainerRunning as i32)
    }

    /// Runs a shell script in it that has to end with 0; returns what it printed.
    ///
    /// # Errors
    /// It ended with another code; all that it printed.
    pub async fn exec(&self, script: &str) -> anyhow::Result<String> {
        let cmd = vec!["sh".into(), "-c".into(), script.into()];
        let request = ExecSyncRequest { container_id: self.id.clone(), cmd, timeout: 60 };
        let answer = self.cri().await?.exec_sync(request).await.context("ExecSync")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        let (stdout, stderr) = (text(&answer.stdout), text(&answer.stderr));
        ensure!(answer.exit_code == 0, "{script}: exit code {}: {stdout}{stderr}", answer.exit_code);
        Ok(stdout)
    }

    /// UpdateContainerResources.
    ///
    /// # Errors
    /// The runtime's words.
    pub async fn resize(&self, resources: LinuxContainerResources) -> anyhow::Result<()> {
        let request = UpdateContainerResourcesRequest {
            container_id: self.id.clone(),
            linux: Some(resources),
            ..Default::default()
        };
        self.cri()
            .await?
            .update_container_resources(request)
            .await
            .context("UpdateContainerResources")
            .map(|_| ())
    }

    /// ContainerStats.
    ///
    /// # Errors
    /// The runtime's words.
    pub async fn stats(&self) -> anyhow::Result<ContainerStats> {
        let request = ContainerStatsRequest { container_id: self.id.clone() };
        let answer = self.cri().await?.container_stats(request).await.context("ContainerStats")?;
        answer.stats.context("ContainerStats says nothing")
    }

    /// What it wrote to its log, without the CRI's prefix.
    ///
    /// # Errors
    /// There is no log.
    pub async fn log(&self) -> anyhow::Result<String> {
        let path = self.status().await?.log_path;
        self.node.guest.ok(&format!("cut -d' ' -f4- '{path}'")).await
    }

    /// Kills it and waits for its end.
    ///
    /// # Errors
    /// The runtime's words.
    pub async fn kill(&self) -> anyhow::Result<()> {
        let request = StopContainerRequest { container_id: self.id.clone(), timeout: 0 };
        self.cri().await?.stop_container(request).await.context("StopContainer").map(|_| ())
    }

    async fn cri(&self) -> anyhow::Result<GrpcClient> {
        self.node.cri().await
    }
}

/// Reads a file of `key value` lines, such as `memory.events`.
pub fn keyed(text: &str) -> BTreeMap<String, u64> {
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.filter_map(|(key, value)| Some((key.to_owned(), value.parse().ok()?))).collect()
}
