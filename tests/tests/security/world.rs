//! A CRI node with hostile pods, and the host around it under watch.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use cri_api::v1::*;
use cri_api::{Cri, GrpcClient};
use serde_json::Value;
use tests::{Node, NodeOptions, eventually};
use tonic::Status;

use crate::archive::{Member, base, saved, tar};
use crate::host::Host;

/// How long one call or one container may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A node, its CRI, and the host as it was.
pub struct World {
    pub node: Node,
    pub cri: GrpcClient,
    pub host: Host,
    next: AtomicU32,
}

/// A sandbox.
#[derive(Clone)]
pub struct Pod {
    pub id: String,
    pub config: PodSandboxConfig,
}

/// How a container ended.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    /// What it printed.
    pub output: String,
}

impl Ended {
    /// The rest of the line that begins with `word` and a space or colon.
    pub fn line(&self, word: &str) -> &str {
        let of = |line: &'_ str| line.strip_prefix(word).is_some_and(|rest| rest.starts_with([' ', ':']));
        let line = self.output.lines().find(|line| of(line)).unwrap_or_default();
        line.get(word.len() + 1..).unwrap_or_default().trim()
    }

    /// The mount points that `where` printed.
    pub fn points(&self) -> impl Iterator<Item = &str> {
        self.output.lines().filter_map(|line| line.strip_prefix("at "))
    }

    /// Fails if it got hold of anything.
    pub fn no_loot(&self) -> anyhow::Result<()> {
        ensure!(!self.output.contains("LOOT"), "{}", self.output);
        Ok(())
    }

    /// Fails if anything but the three streams was open, or its directory is none.
    pub fn clean(&self) -> anyhow::Result<()> {
        self.no_loot()?;
        let open = self.output.lines().filter(|line| line.starts_with("fd "));
        let high: Vec<_> = open
            .filter(|line| !["fd 0 ", "fd 1 ", "fd 2 "].iter().any(|low| line.starts_with(low)))
            .collect();
        ensure!(high.is_empty(), "open descriptors: {high:?}\n{}", self.output);
        ensure!(self.line("cwd").starts_with('/'), "{}", self.output);
        Ok(())
    }
}

impl World {
    /// Starts `orlop cri` with the image `attack`.
    pub async fn start() -> anyhow::Result<World> {
        World::start_as("cri").await
    }

    /// Starts the node in another role; it has a CRI socket, too.
    pub async fn start_as(role: &str) -> anyhow::Result<World> {
        let node =
            Node::start_with(NodeOptions { role: vec![role.into()], ..NodeOptions::default() }).await?;
        let host = Host::watch(&node.root, &tests::binary())?;
        let cri = GrpcClient::connect(node.root.join("run/cri.sock")).await?;
        let world = World { node, cri, host, next: AtomicU32::new(0) };
        world.image("attack", Value::Null, Vec::new()).await?;
        Ok(world)
    }

    /// Imports an image: the base layer, and one with `members`. Returns its name.
    pub async fn image(&self, name: &str, config: Value, members: Vec<Member>) -> anyhow::Result<String> {
        let mut layers = vec![tar(&base()?)];
        if !members.is_empty() {
            layers.push(tar(&members));
        }
        let config = if config.is_null() { serde_json::json!({}) } else { config };
        let reference = format!("localhost/{name}:1");
        self.import(&saved(&reference, config, &layers))
            .await?
            .ok()
            .with_context(|| format!("import {name}"))?;
        Ok(reference)
    }

    /// Imports an archive, whatever comes of it.
    pub async fn import(&self, archive: &[u8]) -> anyhow::Result<tests::Ran> {
        let file = self.node.root.join(format!("archive{}.tar", self.number()));
        std::fs::write(&file, archive)?;
        let ran = self.node.orlop(&["image", "import", file.to_str().context("a path")?]).await;
        std::fs::remove_file(&file)?;
        ran
    }

    /// A number that no other container of this node has.
    pub fn number(&self) -> u32 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// A directory on the host that containers share.
    pub fn volume(&self, name: &str) -> anyhow::Result<PathBuf> {
        let dir = self.node.root.join("volumes").join(name);
        std::fs::create_dir_all(&dir)?;
        std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
        Ok(dir)
    }

    /// Runs a sandbox.
    pub async fn pod(&self, change: impl FnOnce(&mut PodSandboxConfig)) -> anyhow::Result<Pod> {
        self.try_pod(change).await?.map_err(Into::into)
    }

    /// Tries to run a sandbox.
    pub async fn try_pod(
        &self,
        change: impl FnOnce(&mut PodSandboxConfig),
    ) -> anyhow::Result<Result<Pod, Status>> {
        let name = format!("p{}", self.number());
        let mut config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                uid: format!("uid-{name}"),
                namespace: "hostile".into(),
                attempt: 0,
                name: name.clone(),
            }),
            log_directory: self.node.root.join("log").join(&name).to_string_lossy().into_owned(),
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(LinuxSandboxSecurityContext {
                    // One process namespace for each container, as the kubelet has it.
                    namespace_options: Some(pid_namespace(NamespaceMode::Container)),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            hostname: name,
            ..Default::default()
        };
        change(&mut config);
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let answer = tokio::time::timeout(PATIENCE, self.cri.run_pod_sandbox(request)).await?;
        Ok(answer.map(|answer| Pod { id: answer.pod_sandbox_id, config }))
    }

    /// Makes a container of the image `attack`; `change` makes it another.
    pub async fn create(
        &self,
        pod: &Pod,
        words: &[&str],
        change: impl FnOnce(&mut ContainerConfig),
    ) -> Result<String, Status> {
        let number = self.number();
        let mut config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: format!("c{number}"), attempt: 0 }),
            image: Some(ImageSpec { image: "localhost/attack:1".into(), ..Default::default() }),
            command: [&["/attack"], words].concat().into_iter().map(str::to_owned).collect(),
            log_path: format!("c{number}.log"),
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: pod
                        .config
                        .linux
                        .as_ref()
                        .and_then(|linux| linux.security_context.as_ref()?.namespace_options.clone()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        change(&mut config);
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        Ok(self.cri.create_container(request).await?.container_id)
    }

    /// Starts a container.
    pub async fn start_container(&self, id: &str) -> Result<(), Status> {
        self.cri.start_container(StartContainerRequest { container_id: id.to_owned() }).await.map(drop)
    }

    /// Makes and starts a container; if it can't be started it is removed again.
    pub async fn launch(
        &self,
        pod: &Pod,
        words: &[&str],
        change: impl FnOnce(&mut ContainerConfig),
    ) -> Result<String, Status> {
        let id = self.create(pod, words, change).await?;
        match self.start_container(&id).await {
            Ok(()) => Ok(id),
            Err(refused) => {
                self.remove(&id).await?;
                Err(refused)
            }
        }
    }

    /// Makes and starts a container that says `ready`, and waits for that.
    pub async fn serve(
        &self,
        pod: &Pod,
        words: &[&str],
        change: impl FnOnce(&mut ContainerConfig),
    ) -> anyhow::Result<String> {
        let id = self.launch(pod, words, change).await?;
        eventually("the attacker to be ready", || async {
            let output = self.output(&id).await?;
            ensure!(output.contains("ready"), "{output}");
            Ok(())
        })
        .await?;
        Ok(id)
    }

    /// Runs a container to its end and removes it.
    pub async fn run(
        &self,
        pod: &Pod,
        words: &[&str],
        change: impl FnOnce(&mut ContainerConfig),
    ) -> anyhow::Result<Result<Ended, Status>> {
        match self.launch(pod, words, change).await {
            Ok(id) => {
                let ended = self.wait(&id).await?;
                self.remove(&id).await?;
                Ok(Ok(ended))
            }
            Err(refused) => Ok(Err(refused)),
        }
    }

    /// Waits for a container's end.
    pub async fn wait(&self, id: &str) -> anyhow::Result<Ended> {
        let mut looks = tokio::time::interval(Duration::from_millis(8));
        let ends = async {
            loop {
                looks.tick().await;
                let status = self.status(id).await?;
                if status.state == ContainerState::ContainerExited as i32 {
                    return anyhow::Ok(status);
                }
            }
        };
        let status =
            tokio::time::timeout(PATIENCE, ends).await.with_context(|| format!("{id} does not end"))??;
        Ok(Ended { code: status.exit_code, output: printed(&status.log_path)? })
    }

    /// A container's status.
    pub async fn status(&self, id: &str) -> anyhow::Result<ContainerStatus> {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        self.cri.container_status(request).await?.status.context("no status")
    }

    /// The host's number of a running container's first process.
    pub async fn pid(&self, id: &str) -> anyhow::Result<u64> {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
        let info = self.cri.container_status(request).await?.info;
        let info: Value = serde_json::from_str(info.get("info").context("no info")?)?;
        info["pid"].as_u64().context("no pid")
    }

    /// What a container has printed so far.
    pub async fn output(&self, id: &str) -> anyhow::Result<String> {
        printed(&self.status(id).await?.log_path)
    }

    /// Runs a command in a container.
    pub async fn exec(&self, id: &str, words: &[&str]) -> Result<Ended, Status> {
        let request = ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: words.iter().map(|word| (*word).to_owned()).collect(),
            timeout: 20,
        };
        let answer = self.cri.exec_sync(request).await?;
        let output = [answer.stdout, answer.stderr].concat();
        Ok(Ended { code: answer.exit_code, output: String::from_utf8_lossy(&output).into_owned() })
    }

    /// Removes a container, running or not.
    pub async fn remove(&self, id: &str) -> Result<(), Status> {
        let request = RemoveContainerRequest { container_id: id.to_owned() };
        self.cri.remove_container(request).await.map(drop)
    }

    /// Removes a sandbox and all in it.
    pub async fn remove_pod(&self, pod: &Pod) -> Result<(), Status> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
        self.cri.remove_pod_sandbox(request).await.map(drop)
    }

    /// Compares the host, ends the node, and fails if it left anything.
    pub async fn end(self) -> anyhow::Result<()> {
        self.host.check()?;
        let pods = self.cri.list_pod_sandbox(ListPodSandboxRequest::default()).await?.items;
        for pod in pods {
            self.cri.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() }).await?;
        }
        self.host.check()?;
        self.node.end().await
    }
}

/// What a container's log says that it printed; nothing if there is no log yet.
fn printed(path: &str) -> anyhow::Result<String> {
    let log = match std::fs::read_to_string(path) {
        Ok(log) => log,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| path.to_owned()),
    };
    // `time stream F text`; P says that the line goes on.
    let mut text = String::new();
    for line in log.lines() {
        let mut fields = line.splitn(4, ' ').skip(2);
        let whole = fields.next() == Some("F");
        text.push_str(fields.next().unwrap_or_default());
        if whole {
            text.push('\n');
        }
    }
    Ok(text)
}

/// Namespace options with this pid namespace.
pub fn pid_namespace(mode: NamespaceMode) -> NamespaceOption {
    NamespaceOption { pid: mode as i32, ..Default::default() }
}

/// A bind mount.
pub fn bind(host: &Path, container: &str) -> Mount {
    Mount {
        host_path: host.to_string_lossy().into_owned(),
        container_path: container.to_owned(),
        ..Default::default()
    }
}

/// A container's security context.
pub fn context(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// A sandbox's security context.
pub fn pod_context(config: &mut PodSandboxConfig) -> &mut LinuxSandboxSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}
