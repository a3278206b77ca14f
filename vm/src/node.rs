//! An Orlop node in a guest, with a `--root` of its own, and its CRI on this side.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use cri_api::v1::*;
use cri_api::{Cri, GrpcClient, Row};
use tokio::sync::Mutex;

use crate::Guest;
use crate::ssh::Ran;

/// The image that tests start containers of.
pub const BUSYBOX: &str = "localhost/busybox:1";

/// Nodes on one guest have a bridge and a range of addresses each, so that they don't meet.
fn network_of(name: &str) -> String {
    static NEXT: AtomicU8 = AtomicU8::new(50);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("bridge: {name:.8}\npodCIDRs: [10.{number}.0.0/24]\n")
}

/// A node in a guest. Its daemon runs until it is ended or the guest is.
pub struct Node {
    /// Where it runs.
    pub guest: Arc<Guest>,
    /// What `--root` names, in the guest.
    pub root: String,
    role: String,
    daemon: Mutex<Option<u32>>,
    cri: Mutex<Option<GrpcClient>>,
}

impl Node {
    /// Starts `orlop cri` with the root `/nodes/NAME` and imports the busybox image.
    ///
    /// # Errors
    /// It does not come up; the end of its log is in the error.
    pub async fn start(guest: &Arc<Guest>, name: &str) -> anyhow::Result<Node> {
        Node::start_as(guest, &format!("/nodes/{name}"), "cri", &network_of(name)).await
    }

    /// Starts `orlop ROLE` with another root and configuration.
    ///
    /// # Errors
    /// As for [`Node::start`].
    pub async fn start_as(guest: &Arc<Guest>, root: &str, role: &str, config: &str) -> anyhow::Result<Node> {
        let node = Node {
            guest: Arc::clone(guest),
            root: root.to_owned(),
            role: role.to_owned(),
            daemon: Mutex::new(None),
            cri: Mutex::new(None),
        };
        guest.write(&format!("{root}/etc/config.yaml"), config.as_bytes()).await?;
        node.launch().await?;
        node.orlop("image import /share/images/busybox.tar").await?.ok().context("import busybox")?;
        Ok(node)
    }

    /// Starts the daemon (again) and waits until it serves.
    ///
    /// # Errors
    /// It does not come up; the end of its log is in the error.
    pub async fn launch(&self) -> anyhow::Result<()> {
        let (root, role) = (&self.root, &self.role);
        let script = format!(
            "setsid orlop --root {root} --log info,orlop=debug {role} < /dev/null >> {root}/daemon.log 2>&1 & echo $!; \
             for ((n = 0; n < 1000; n++)); do \
               kill -0 $! || break; \
               socat -u OPEN:/dev/null UNIX-CONNECT:{root}/run/cri.sock 2>/dev/null && exit 0; \
               sleep 0.1; \
             done; tail -n 40 {root}/daemon.log >&2; exit 1"
        );
        let said = self.guest.ok(&script).await.with_context(|| format!("start orlop {role}"))?;
        *self.daemon.lock().await = Some(said.parse().with_context(|| format!("read a process id: {said}"))?);
        let socket = self.guest.forward(&format!("{root}/run/cri.sock")).await?;
        *self.cri.lock().await = Some(GrpcClient::connect(socket).await?);
        Ok(())
    }

    /// Waits until the node of an `orlop server` is Ready.
    ///
    /// # Errors
    /// It is not, after three minutes.
    pub async fn wait_ready(&self) -> anyhow::Result<()> {
        let script = format!("orlop --root {} --log warn status --wait-ready --timeout 180", self.root);
        let ran = self.guest.ok_within(Duration::from_secs(200), &script).await;
        ran.map(|_| ()).context("wait until the node is Ready")
    }

    /// The ready pods that have the label `app=APP`, each with a container that runs.
    ///
    /// # Errors
    /// The runtime's words.
    pub async fn running(&self, app: &str) -> anyhow::Result<Vec<(Row<PodSandbox>, Row<Container>)>> {
        let cri = self.cri().await?;
        let ready = PodSandboxStateValue { state: PodSandboxState::SandboxReady.into() };
        let filter = PodSandboxFilter {
            state: Some(ready),
            label_selector: [("app".to_owned(), app.to_owned())].into(),
            ..Default::default()
        };
        let pods = cri.list_pod_sandbox(ListPodSandboxRequest { filter: Some(filter) }).await?.items;
        let running = ContainerStateValue { state: ContainerState::ContainerRunning.into() };
        let filter = ContainerFilter { state: Some(running), ..Default::default() };
        let containers =
            cri.list_containers(ListContainersRequest { filter: Some(filter) }).await?.containers;
        let pod =
            |container: &Row<Container>| pods.iter().find(|pod| pod.id == container.pod_sandbox_id).cloned();
        Ok(containers.into_iter().filter_map(|container| Some((pod(&container)?, container))).collect())
    }

    /// The node's CRI.
    ///
    /// # Errors
    /// The daemon was never started.
    pub async fn cri(&self) -> anyhow::Result<GrpcClient> {
        self.cri.lock().await.clone().context("the daemon was never started")
    }

    /// Process id of the daemon.
    ///
    /// # Errors
    /// It does not run.
    pub async fn daemon_pid(&self) -> anyhow::Result<u32> {
        self.daemon.lock().await.context("the daemon does not run")
    }

    /// Process id of the keeper.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub async fn keeper_pid(&self) -> anyhow::Result<u32> {
        let script = format!(
            "for p in $(pgrep -x orlop-keeper); do \
               tr '\\0' ' ' < /proc/$p/cmdline | grep -F '{}/' | grep -qv ' init' && echo $p; done; :",
            self.root
        );
        let found = self.guest.ok(&script).await?;
        found.parse().with_context(|| format!("the keeper of {}: {found:?}", self.root))
    }

    /// Kills processes at once, and waits until they are gone.
    ///
    /// # Errors
    /// They do not go.
    pub async fn kill(&self, pids: &[u32]) -> anyhow::Result<()> {
        let list = pids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
        let script = format!(
            "kill -KILL {list}; for p in {list}; do for ((n = 0; n < 1000; n++)); do \
             case $(cut -d' ' -f3 /proc/$p/stat 2>/dev/null) in Z|'') continue 2 ;; esac; sleep 0.05; done; exit 1; done"
        );
        self.guest.ok(&script).await.map(|_| ())
    }

    /// Asks the daemon to end and waits for it.
    ///
    /// # Errors
    /// It does not end within two minutes.
    pub async fn terminate(&self) -> anyhow::Result<()> {
        let pid = self.daemon.lock().await.take().context("the daemon does not run")?;
        let script = format!(
            "kill -TERM {pid}; for ((n = 0; n < 1000; n++)); do kill -0 {pid} || exit 0; sleep 0.1; done; exit 1"
        );
        self.guest.ok(&script).await.map(|_| ()).context("end the daemon")
    }

    /// Runs `orlop --root … WORDS`.
    ///
    /// # Errors
    /// The guest does not answer.
    pub async fn orlop(&self, words: &str) -> anyhow::Result<Ran> {
        self.guest.run(&format!("orlop --root {} --log warn {words}", self.root)).await
    }

    /// Ends the daemon and all pods, and sees to it that nothing of the node is left but its files.
    ///
    /// # Errors
    /// Something is left: processes, mounts or cgroups.
    pub async fn stop(self) -> anyhow::Result<()> {
        if self.daemon.lock().await.is_some() {
            self.terminate().await?;
        }
        let stopped = self.orlop("stop").await?;
        ensure!(stopped.code == 0, "orlop stop: {}{}", stopped.stdout, stopped.stderr);
        let left = self.left().await?;
        ensure!(left.is_empty(), "left behind by orlop stop:\n{left}");
        self.guest.ok(&format!("rm -rf '{}'", self.root)).await.map(|_| ())
    }

    /// What there is of a node: its processes, mounts, cgroups and interfaces, a line each.
    ///
    /// # Errors
    /// The guest does not answer.
    pub async fn left(&self) -> anyhow::Result<String> {
        let root = &self.root;
        let name = root.rsplit('/').next().unwrap_or_default();
        let script = format!(
            "pgrep -af -- '--root {root}( |$)|{root}/run' | grep -v pgrep; \
             grep -F ' {root}/' /proc/self/mountinfo; \
             find /sys/fs/cgroup -type d -path '*orlop-{name}-*'; \
             ip -br link show master {name:.8} 2>/dev/null; :"
        );
        self.guest.ok_within(Duration::from_secs(60), &script).await
    }
}
