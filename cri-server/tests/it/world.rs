//! A whole node side below a temporary root: image store with a busybox image, runtime, network, server,
//! socket and client. What it makes is removed when the test ends, also when it fails.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cri_api::v1::*;
use cri_api::{Cri, GrpcClient};
use cri_server::{Config, CriServer};
use tokio::task::JoinHandle;

/// The image's name in the store.
pub const IMAGE: &str = "docker.io/library/busybox:latest";
const BUSYBOX: &str = "/usr/bin/busybox";

/// Why the tests cannot run here, if they cannot.
pub fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("root is needed".to_owned());
    }
    let is_static = std::process::Command::new(BUSYBOX).arg("true").status().is_ok_and(|s| s.success());
    (!is_static).then(|| format!("{BUSYBOX} is needed: install busybox-static"))
}

/// Everything below one directory.
pub struct World {
    root: PathBuf,
    bridge: String,
    cidr: String,
    up: Option<Up>,
}

struct Up {
    network: network::PodNetwork,
    stop: tokio_util::sync::CancellationToken,
    serving: JoinHandle<()>,
}

impl World {
    /// Makes directories and the image. `number` tells worlds of one test run apart.
    pub async fn new(number: u8) -> World {
        let root = std::env::temp_dir().join(format!("orlop-cri-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(root.join("run")).expect("a directory");
        archive(&root.join("busybox.tar"));
        let bridge = format!("ocri{number}t{}", std::process::id() % 100_000);
        World { root, bridge, cidr: format!("10.97.{number}.0/24"), up: None }
    }

    fn options(&self) -> runtime::Options {
        runtime::Options::below(&self.root, format!("orlop-cri-test-{}", self.bridge))
    }

    fn network(&self) -> network::Config {
        let mut config = network::Config::new(self.root.join("run/network"));
        config.bridge = self.bridge.clone();
        config.pod_cidrs = vec![self.cidr.parse().expect("a range")];
        config
    }

    /// A path below the root.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// Starts the server; after `down` it takes over what runs.
    pub async fn up(&mut self) -> GrpcClient {
        let images =
            image::Store::open(self.path("data/images"), image::RegistryConfig::default()).expect("a store");
        if images.get(IMAGE).is_none() {
            images.import(&self.path("busybox.tar"), None).await.expect("imports");
        }
        let runtime = runtime::Runtime::open(self.options()).await.expect("a runtime");
        let network = network::PodNetwork::open(self.network()).await.expect("a network");
        let mut config = Config::new(self.path("run/cri"), self.path("data/containers"));
        config.cdi_directories = vec![self.path("cdi")];
        let server = CriServer::new(runtime, images, network.clone(), config).await.expect("a server");
        let socket = self.path("run/cri.sock");
        let _ = std::fs::remove_file(&socket);
        let listener = tokio::net::UnixListener::bind(&socket).expect("listens");
        let stop = tokio_util::sync::CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let serving = tokio::spawn(async move {
            cri_api::serve(Arc::new(server), listener, stopped).await.expect("serves");
        });
        self.up = Some(Up { network, stop, serving });
        GrpcClient::connect(&socket).await.expect("connects")
    }

    /// Ends the server as an upgrade would: what runs goes on.
    pub async fn down(&mut self) {
        if let Some(up) = self.up.take() {
            up.stop.cancel();
            let _ = up.serving.await;
            drop(up.network);
        }
    }

    /// Removes everything.
    pub async fn destroy(mut self) {
        if let Some(up) = &self.up {
            up.network.destroy().await.expect("removes the network");
        }
        self.down().await;
        // The last handles go with tasks that end on their own.
        eventually("the runtime's lock is free", async || runtime::destroy(self.options()).await.is_ok())
            .await;
        std::fs::remove_dir_all(&self.root).expect("removes the root");
    }
}

/// Runs a test in a world of its own; whatever happens the world is destroyed.
pub async fn in_world(number: u8, test: impl AsyncFnOnce(&mut World) + 'static) {
    if let Some(why) = missing() {
        println!("skipped: {why}");
        return;
    }
    let world = World::new(number).await;
    let local = tokio::task::LocalSet::new();
    let outcome = local
        .run_until(async move {
            let world = Arc::new(tokio::sync::Mutex::new(Some(world)));
            let ours = world.clone();
            let ran = tokio::task::spawn_local(async move {
                let mut held = ours.lock().await;
                test(held.as_mut().expect("not destroyed yet")).await;
            })
            .await;
            if let Some(world) = world.lock().await.take() {
                world.destroy().await;
            }
            ran
        })
        .await;
    if let Err(failure) = outcome {
        std::panic::resume_unwind(failure.into_panic());
    }
}

/// Waits for a condition.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Writes a docker-save archive with busybox and its applets.
fn archive(path: &Path) {
    let list = std::process::Command::new(BUSYBOX).arg("--list").output().expect("busybox runs");
    let mut layer = tar::Builder::new(Vec::new());
    let mut header = |name: &str, kind: tar::EntryType, mode: u32, data: &[u8], target: Option<&str>| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(data.len() as u64);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        match target {
            Some(target) => layer.append_link(&mut header, name, target),
            None => layer.append_data(&mut header, name, data),
        }
        .expect("writes into memory");
    };
    for (name, mode) in [("bin/", 0o755), ("etc/", 0o755), ("tmp/", 0o1777), ("root/", 0o700)] {
        header(name, tar::EntryType::Directory, mode, b"", None);
    }
    let busybox = std::fs::read(BUSYBOX).expect("busybox");
    header("bin/busybox", tar::EntryType::Regular, 0o755, &busybox, None);
    for applet in String::from_utf8_lossy(&list.stdout).lines().filter(|applet| *applet != "busybox") {
        header(&format!("bin/{applet}"), tar::EntryType::Symlink, 0o777, b"", Some("busybox"));
    }
    let passwd = b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/tmp:/bin/sh\n";
    header("etc/passwd", tar::EntryType::Regular, 0o644, passwd, None);
    header("etc/group", tar::EntryType::Regular, 0o644, b"root:x:0:\napp:x:1000:\nextra:x:7:app\n", None);
    let layer = layer.into_inner().expect("ends in memory");
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Env": ["PATH=/bin", "FROM=image"], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [image::Digest::of(&layer).as_str()]},
        "history": [],
    });
    let manifest =
        serde_json::json!([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]);
    let mut outer = tar::Builder::new(std::fs::File::create(path).expect("an archive"));
    let parts = [
        ("manifest.json", manifest.to_string().into_bytes()),
        ("config.json", config.to_string().into_bytes()),
        ("layer.tar", layer),
    ];
    for (name, data) in parts {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(data.len() as u64);
        outer.append_data(&mut header, name, &data[..]).expect("writes");
    }
    outer.finish().expect("writes");
}

/// A sandbox's configuration.
pub fn pod(world: &World, name: &str) -> PodSandboxConfig {
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            uid: format!("uid-{name}"),
            attempt: 0,
        }),
        hostname: name.to_owned(),
        log_directory: world.path("log").join(name).to_string_lossy().into_owned(),
        labels: [("pod".to_owned(), name.to_owned())].into(),
        dns_config: Some(DnsConfig {
            servers: vec!["10.43.0.10".to_owned()],
            searches: vec!["cluster.local".to_owned()],
            options: vec!["ndots:5".to_owned()],
        }),
        ..Default::default()
    }
}

/// A container's configuration: `script` run by sh.
pub fn container(name: &str, script: &str) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(ImageSpec { image: IMAGE.to_owned(), ..Default::default() }),
        command: vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()],
        log_path: format!("{name}/0.log"),
        labels: [("container".to_owned(), name.to_owned())].into(),
        ..Default::default()
    }
}

/// Calls with less ado.
pub struct Calls<'a>(pub &'a GrpcClient);

impl Calls<'_> {
    pub async fn run(&self, config: &PodSandboxConfig) -> String {
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        self.0.run_pod_sandbox(request).await.expect("runs").pod_sandbox_id
    }

    pub async fn create(&self, sandbox: &str, pod: &PodSandboxConfig, config: &ContainerConfig) -> String {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config.clone()),
            sandbox_config: Some(pod.clone()),
        };
        self.0.create_container(request).await.expect("creates").container_id
    }

    pub async fn start(&self, id: &str) {
        self.0.start_container(StartContainerRequest { container_id: id.to_owned() }).await.expect("starts");
    }

    pub async fn status(&self, id: &str) -> ContainerStatus {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        self.0.container_status(request).await.expect("a status").status.expect("a status")
    }

    pub async fn exec(&self, id: &str, script: &str) -> (String, i32) {
        let cmd = ["sh", "-c", script].map(str::to_owned).to_vec();
        let request = ExecSyncRequest { container_id: id.to_owned(), cmd, timeout: 10 };
        let answer = self.0.exec_sync(request).await.expect("executes");
        (String::from_utf8_lossy(&answer.stdout).into_owned(), answer.exit_code)
    }

    pub async fn wait(&self, id: &str, state: ContainerState) -> ContainerStatus {
        eventually("the state", async || self.status(id).await.state == state as i32).await;
        self.status(id).await
    }

    pub async fn remove(&self, sandbox: &str) {
        let request = RemovePodSandboxRequest { pod_sandbox_id: sandbox.to_owned() };
        self.0.remove_pod_sandbox(request).await.expect("removes");
    }
}
