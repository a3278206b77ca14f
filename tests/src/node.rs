//! One node under test.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::clients::{Ran, Running, command, program, run};
use crate::{binary, eventually, eventually_within, image, leaks};

/// The interface that a node's network namespace has before the node starts, with a default route.
pub const OUTSIDE: &str = "outside";
/// How the addresses on it begin, as `ip` prints them; two nodes can share one network.
pub const OUTSIDE_ADDRESSES: &str = " 10.99.0.";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// How a node is started.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// The subcommand: `server`, `cri`, `kubelet`.
    pub role: Vec<String>,
    /// The configuration file's text.
    pub config: String,
    /// Another build of the binary.
    pub binary: PathBuf,
    /// Whether faults can be armed, in [`Node::faults`] (docs of `sys::fault`).
    pub faults: bool,
}

impl Default for NodeOptions {
    fn default() -> Self {
        NodeOptions { role: vec!["server".into()], config: String::new(), binary: binary(), faults: false }
    }
}

/// A running node with a root and a network namespace of its own.
pub struct Node {
    /// What `--root` names.
    pub root: PathBuf,
    /// Name of its network namespace.
    pub netns: String,
    options: NodeOptions,
    daemon: Option<Child>,
    ended: bool,
}

impl Node {
    /// Starts `orlop server` and waits until the node is Ready.
    ///
    /// # Errors
    /// It does not come up; its log is in the error.
    pub async fn start() -> anyhow::Result<Node> {
        Node::start_with(NodeOptions::default()).await
    }

    /// The same with options.
    ///
    /// # Errors
    /// As for [`Node::start`].
    pub async fn start_with(options: NodeOptions) -> anyhow::Result<Node> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("orlop-t{}-{number}", std::process::id());
        let root = std::env::temp_dir().join(&name);
        std::fs::create_dir_all(root.join("etc"))?;
        std::fs::write(root.join("etc/config.yaml"), &options.config)?;
        let mut add = Command::new("ip");
        add.args(["netns", "add", &name]);
        ensure!(add.status().await?.success(), "ip netns add {name} failed");
        let mut node = Node { root, netns: name, options, daemon: None, ended: false };
        // A route to the outside gives the node an address; the packets go nowhere.
        for line in [
            "link set lo up".to_owned(),
            format!("link add {OUTSIDE} type bridge"),
            format!("addr add 10.99.0.2/24 dev {OUTSIDE}"),
            format!("link set {OUTSIDE} up"),
            "route add default via 10.99.0.1".to_owned(),
        ] {
            let mut ip = command(&node.netns, "ip");
            ip.args(line.split(' '));
            run(ip, None).await?.ok()?;
        }
        node.launch().await?;
        Ok(node)
    }

    /// Starts the daemon (again) and waits until it serves.
    ///
    /// # Errors
    /// It does not come up; its log is in the error.
    pub async fn launch(&mut self) -> anyhow::Result<()> {
        let log = std::fs::File::options().create(true).append(true).open(self.log())?;
        let mut daemon = command(&self.netns, &self.options.binary);
        daemon.arg("--root").arg(&self.root).args(["--log", "info,orlop=debug"]).args(&self.options.role);
        if self.options.faults {
            std::fs::create_dir_all(self.faults())?;
            daemon.env("ORLOP_FAULTS", self.faults());
        }
        daemon.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.daemon = Some(daemon.spawn().context("start the daemon")?);
        self.serving().await
    }

    async fn serving(&mut self) -> anyhow::Result<()> {
        let is_server = self.options.role[0] == "server";
        let deadline = Duration::from_secs(60);
        let this = &*self;
        let ready = eventually_within("the node to serve", deadline, || async {
            if is_server {
                this.orlop(&["status", "--wait-ready", "--timeout", "0"]).await?.ok()
            } else {
                let sock = this.root.join("run/cri.sock");
                tokio::net::UnixStream::connect(sock).await.map(|_| String::new()).map_err(Into::into)
            }
        });
        let ready = ready.await.map(|_| ());
        ready.with_context(|| format!("the daemon said:\n{}", self.log_text()))
    }

    /// Process id of the daemon.
    ///
    /// # Panics
    /// The daemon is not running.
    pub fn daemon_pid(&self) -> u32 {
        self.daemon.as_ref().and_then(Child::id).expect("the daemon runs")
    }

    /// Process id of the keeper.
    ///
    /// # Errors
    /// There is none.
    pub fn keeper_pid(&self) -> anyhow::Result<u32> {
        let root = self.root.to_string_lossy().into_owned();
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
            let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if name.trim() == "orlop-keeper" && line.contains(&root) && !line.contains(" init") {
                return Ok(pid);
            }
        }
        anyhow::bail!("no keeper of {root}")
    }

    /// SIGKILLs the daemon and waits for its end.
    ///
    /// # Errors
    /// It can't be waited for.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        let mut daemon = self.daemon.take().context("the daemon does not run")?;
        daemon.kill().await.context("kill the daemon")
    }

    /// Waits until the daemon has ended by itself, and tells how.
    ///
    /// # Errors
    /// It goes on for 20 s.
    pub async fn ended(&mut self) -> anyhow::Result<std::process::ExitStatus> {
        let daemon = self.daemon.as_mut().context("the daemon does not run")?;
        let status = tokio::time::timeout(Duration::from_secs(20), daemon.wait()).await;
        let status = status.context("the daemon did not end within 20 s")??;
        self.daemon = None;
        Ok(status)
    }

    /// Where faults are armed and told.
    pub fn faults(&self) -> PathBuf {
        self.root.join("faults")
    }

    /// Asks the daemon to end (SIGTERM), and waits until it has.
    ///
    /// # Errors
    /// It does not end within 20 s, or not with 0.
    pub async fn terminate(&mut self) -> anyhow::Result<()> {
        let mut daemon = self.daemon.take().context("the daemon does not run")?;
        signal(daemon.id().context("the daemon has ended")?, rustix::process::Signal::TERM)?;
        let status = tokio::time::timeout(Duration::from_secs(20), daemon.wait()).await;
        let status = status.context("the daemon did not end within 20 s of SIGTERM")??;
        ensure!(status.success(), "the daemon ended with {status}; it said:\n{}", self.log_text());
        Ok(())
    }

    /// Lets the next [`Node::launch`] start another build.
    pub fn use_binary(&mut self, binary: PathBuf) {
        self.options.binary = binary;
    }

    /// Runs `orlop --root … <words>`.
    ///
    /// # Errors
    /// It can't be started.
    pub async fn orlop(&self, words: &[&str]) -> anyhow::Result<Ran> {
        let mut orlop = command(&self.netns, &self.options.binary);
        orlop.arg("--root").arg(&self.root).args(words);
        run(orlop, None).await
    }

    /// A kubectl command line of this cluster, not yet started.
    pub fn kubectl_command(&self, words: &[&str]) -> Command {
        let mut kubectl = command(&self.netns, program("kubectl"));
        kubectl.env("KUBECONFIG", self.kubeconfig()).env("HOME", &self.root).args(words);
        kubectl
    }

    /// Runs kubectl.
    ///
    /// # Errors
    /// It can't be started.
    pub async fn kubectl(&self, words: &[&str]) -> anyhow::Result<Ran> {
        run(self.kubectl_command(words), None).await
    }

    /// Runs kubectl with `input` on its standard input.
    ///
    /// # Errors
    /// It can't be started.
    pub async fn kubectl_with(&self, words: &[&str], input: &str) -> anyhow::Result<Ran> {
        run(self.kubectl_command(words), Some(input.as_bytes())).await
    }

    /// Starts a kubectl that goes on.
    ///
    /// # Errors
    /// It can't be started.
    pub fn kubectl_running(&self, words: &[&str]) -> anyhow::Result<Running> {
        Running::start(self.kubectl_command(words))
    }

    /// `kubectl apply -f -`.
    ///
    /// # Errors
    /// What kubectl said.
    pub async fn apply(&self, yaml: &str) -> anyhow::Result<String> {
        self.kubectl_with(&["apply", "-f", "-"], yaml).await?.ok()
    }

    /// Waits until kubectl's JSON of an object satisfies `check`, and returns it.
    ///
    /// # Errors
    /// A minute passed; the object's last state.
    pub async fn wait_for(
        &self,
        object: &str,
        what: &str,
        check: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        eventually(&format!("{object} to be {what}"), || async {
            let value = self.kubectl(&["get", object, "-o", "json"]).await?.json()?;
            ensure!(check(&value), "{}", serde_json::to_string_pretty(&value["status"])?);
            Ok(value)
        })
        .await
    }

    /// Waits until the pod is Ready, and returns it.
    ///
    /// # Errors
    /// A minute passed; the pod's last status.
    pub async fn wait_ready(&self, pod: &str) -> anyhow::Result<Value> {
        self.wait_for(&format!("pod/{pod}"), "Ready", |pod| condition(pod, "Ready") == Some("True")).await
    }

    /// Runs crictl on the node's CRI socket.
    ///
    /// # Errors
    /// It can't be started.
    pub async fn crictl(&self, words: &[&str]) -> anyhow::Result<Ran> {
        let mut crictl = command(&self.netns, program("crictl"));
        crictl.arg("--runtime-endpoint").arg(format!("unix://{}", self.root.join("run/cri.sock").display()));
        crictl.args(words);
        run(crictl, None).await
    }

    /// Runs curl in the node's network namespace.
    ///
    /// # Errors
    /// What curl said.
    pub async fn curl(&self, words: &[&str]) -> anyhow::Result<String> {
        let mut curl = command(&self.netns, "curl");
        curl.args(["-sS", "-f", "--max-time", "10"]).args(words);
        run(curl, None).await?.ok()
    }

    /// Runs any program in the node's network namespace.
    ///
    /// # Errors
    /// It can't be started.
    pub async fn run(&self, name: &str, words: &[&str]) -> anyhow::Result<Ran> {
        let mut command = command(&self.netns, program(name));
        command.args(words);
        run(command, None).await
    }

    /// Imports one of the test images.
    ///
    /// # Errors
    /// What the import said.
    pub async fn import(&self, name: &str) -> anyhow::Result<()> {
        let archive = image(name);
        let archive = archive.to_str().context("the archive's path is not UTF-8")?;
        self.orlop(&["image", "import", archive]).await?.ok().map(|_| ())
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.root.join("etc/admin.kubeconfig")
    }

    fn log(&self) -> PathBuf {
        self.root.join("daemon.log")
    }

    /// What all daemons of this node logged.
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// Waits until nothing is left of pods that were deleted. The kubelet knows a static pod by a uid of its own.
    async fn pods_left_nothing(&self) -> anyhow::Result<()> {
        eventually("the kubelet to clean up after deleted pods", || async {
            let pods = self.kubectl(&["get", "pods", "-A", "-o", "json"]).await?.json()?;
            let uid = |pod: &Value| {
                let metadata = &pod["metadata"];
                let mirrored = &metadata["annotations"]["kubernetes.io/config.mirror"];
                mirrored.as_str().or(metadata["uid"].as_str()).map(str::to_owned)
            };
            let uids: Vec<_> = pods["items"].as_array().into_iter().flatten().filter_map(uid).collect();
            let left = leaks::of_pods(&self.root, &uids);
            ensure!(left.is_empty(), "{}", left.join("\n"));
            Ok(())
        })
        .await
    }

    /// Ends the node and fails if it left anything.
    ///
    /// # Errors
    /// The daemon or `orlop stop` failed, or something was left.
    pub async fn end(mut self) -> anyhow::Result<()> {
        if self.daemon.is_some() {
            if self.options.role[0] == "server" {
                self.pods_left_nothing().await?;
            }
            self.terminate().await?;
        }
        self.orlop(&["stop"]).await?.ok()?;
        let left = leaks::find(&self.root, &self.netns).await;
        ensure!(left.is_empty(), "the node left:\n{}\nIt said:\n{}", left.join("\n"), self.log_text());
        self.ended = true;
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            end_now(&mut daemon);
        }
        if !self.ended {
            eprintln!("---- log of {} ----\n{}", self.netns, tail(&self.log_text(), 120));
        }
        clean_up(&self.options.binary, &self.root, &self.netns);
    }
}

/// Kills the daemon and waits until it is gone, so that its lock is free.
fn end_now(daemon: &mut Child) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    let pid = daemon.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let pidfd = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    if let Err(err) = daemon.start_kill() {
        eprintln!("kill the daemon: {err}");
    }
    let Some(pidfd) = pidfd else { return };
    let patience = Timespec { tv_sec: 5, tv_nsec: 0 };
    loop {
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&patience)) {
            Err(rustix::io::Errno::INTR) => {}
            Err(err) => return eprintln!("wait for the daemon's end: {err}"),
            Ok(0) => return eprintln!("wait for the daemon's end: it lives after 5 seconds"),
            Ok(_) => return,
        }
    }
}

/// Takes everything down without looking at results: the test has its verdict already.
fn clean_up(binary: &Path, root: &Path, netns: &str) {
    let quiet = |program: &std::ffi::OsStr, args: &[&std::ffi::OsStr]| {
        let mut command = std::process::Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if let Err(err) = command.status() {
            eprintln!("{}: {err}", program.display());
        }
    };
    let net = format!("--net=/run/netns/{netns}");
    quiet(
        "nsenter".as_ref(),
        &[net.as_ref(), "--".as_ref(), binary.as_ref(), "--root".as_ref(), root.as_ref(), "stop".as_ref()],
    );
    quiet("ip".as_ref(), &["netns".as_ref(), "del".as_ref(), netns.as_ref()]);
    if let Err(err) = std::fs::remove_dir_all(root) {
        eprintln!("remove {}: {err}", root.display());
    }
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Sends a signal to a process.
///
/// # Errors
/// There is no such process.
pub fn signal(pid: u32, signal: rustix::process::Signal) -> anyhow::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).context("no process id")?;
    rustix::process::kill_process(pid, signal).with_context(|| format!("signal {}", pid.as_raw_nonzero()))
}

/// The status of one of an object's conditions.
pub fn condition<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == name)?["status"].as_str()
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Node({})", self.netns)
    }
}
