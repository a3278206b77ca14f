//! A runtime in a directory of its own, on an image made of busybox, that removes all its traces.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use runtime::{
    Container, ContainerId, ContainerSpec, ContainerState, ExecOutput, Exit, Options, Runtime, SandboxId,
    SandboxSpec,
};

/// How long anything may take; a time-out prints the last state.
pub const LONG: Duration = Duration::from_secs(20);

pub struct Node {
    pub dir: tempfile::TempDir,
    pub options: Options,
    pub image: PathBuf,
    runtime: Option<Runtime>,
    mounts: usize,
}

impl Node {
    /// Opens a runtime, or says why the test is skipped.
    pub async fn open(name: &str) -> Option<Node> {
        Node::open_with(name, |_| {}).await
    }

    /// Opens a runtime with other options.
    pub async fn open_with(name: &str, change: impl FnOnce(&mut Options)) -> Option<Node> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root");
            return None;
        }
        if !Path::new("/bin/busybox").exists() {
            println!("skipped: needs /bin/busybox (package busybox-static)");
            return None;
        }
        let dir = tempfile::Builder::new().prefix("orlop-test-").tempdir().expect("a directory");
        let mut options = Options::below(dir.path(), format!("orlop-test-{name}-{}", std::process::id()));
        change(&mut options);
        let image = image(dir.path());
        let mut node = Node { dir, options, image, runtime: None, mounts: mounts() };
        node.reopen().await;
        Some(node)
    }

    /// Opens the runtime anew.
    pub async fn reopen(&mut self) {
        self.runtime = None;
        self.runtime = Some(Runtime::open(self.options.clone()).await.expect("open the runtime"));
    }

    /// Drops the runtime as a crash would.
    pub fn crash(&mut self) {
        self.runtime = None;
    }

    pub fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("the runtime is open")
    }

    pub async fn sandbox(&self, id: &str) -> SandboxId {
        let id = SandboxId::new(id).expect("a good id");
        let made = self.runtime().create_sandbox(SandboxSpec::new(id.clone())).await;
        made.expect("create the sandbox");
        id
    }

    /// A spec of `sh -c script`.
    pub fn spec(&self, sandbox: &SandboxId, id: &str, script: &str) -> ContainerSpec {
        let args = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let id = ContainerId::new(id).expect("a good id");
        let mut spec = ContainerSpec::new(id, sandbox.clone(), vec![self.image.clone()], args);
        spec.log_path = Some(self.log(spec.id.as_str()));
        spec
    }

    pub fn log(&self, id: &str) -> PathBuf {
        self.dir.path().join("log").join(format!("{id}.log"))
    }

    /// Creates and starts.
    pub async fn run(&self, spec: ContainerSpec) -> ContainerId {
        let id = spec.id.clone();
        self.runtime().create_container(spec).await.expect("create the container");
        self.runtime().start_container(&id).await.expect("start the container");
        id
    }

    /// Creates and starts `sh -c script`, waits for its end, gives exit and output.
    pub async fn script(&self, sandbox: &SandboxId, id: &str, script: &str) -> (Exit, String) {
        let id = self.run(self.spec(sandbox, id, script)).await;
        let exit = self.ended(&id).await;
        (exit, self.output(id.as_str()))
    }

    /// A container's log without time stamps.
    pub fn output(&self, id: &str) -> String {
        let text = std::fs::read_to_string(self.log(id)).unwrap_or_default();
        let bare = |line: &str| line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned() + "\n";
        text.lines().map(bare).collect()
    }

    /// Waits for a container's end.
    pub async fn ended(&self, id: &ContainerId) -> Exit {
        let mut events = self.runtime().subscribe();
        let wait = async {
            loop {
                if let ContainerState::Exited(exit) = self.container(id).state {
                    return exit;
                }
                // Whatever happens, look again.
                let _ = events.recv().await;
            }
        };
        match tokio::time::timeout(LONG, wait).await {
            Ok(exit) => exit,
            Err(_) => panic!("container {id} has not ended: {:?}", self.container(id).state),
        }
    }

    pub fn container(&self, id: &ContainerId) -> Container {
        self.runtime().container(id).expect("the container is known")
    }

    pub async fn exec(&self, id: &ContainerId, script: &str) -> ExecOutput {
        let args = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        self.runtime().exec_sync(id, args, Some(LONG)).await.expect("exec")
    }

    /// Removes everything, and checks that nothing is left.
    pub async fn close(mut self) {
        self.runtime = None;
        runtime::destroy(self.options.clone()).await.expect("destroy");
        let cgroup = &self.options.cgroup_parent;
        let (root, _) = sys::cgroup::root().expect("cgroup2");
        assert!(root.open(cgroup).is_err(), "cgroup {cgroup} is left");
        let table = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let here = self.dir.path().to_string_lossy().into_owned();
        assert!(!table.contains(&here), "a mount is left:\n{table}");
        assert!(mounts() <= self.mounts || self.mounts == 0, "mounts are left");
        for (pid, line) in processes() {
            assert!(!line.contains(&here), "process {pid} is left: {line}");
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        // A failed test cleans up as well.
        self.runtime = None;
        let options = self.options.clone();
        let cleaner = std::thread::spawn(move || {
            let executor = tokio::runtime::Runtime::new().expect("an executor");
            if let Err(error) = executor.block_on(runtime::destroy(options)) {
                println!("clean up: {error:?}");
            }
        });
        let _ = cleaner.join();
    }
}

/// Command lines by process id.
pub fn processes() -> Vec<(String, String)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("procfs").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.bytes().all(|b| b.is_ascii_digit()) {
            let line = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            all.push((name, line.replace('\0', " ")));
        }
    }
    all
}

fn mounts() -> usize {
    // Other tests run at the same time in the same mount table, so only our own directory is counted.
    0
}

/// A root file system of busybox.
fn image(dir: &Path) -> PathBuf {
    let image = dir.join("image");
    for sub in ["bin", "etc", "tmp", "root", "srv", "usr/bin", "proc", "dev", "sys"] {
        std::fs::create_dir_all(image.join(sub)).expect("a directory");
    }
    std::fs::copy("/bin/busybox", image.join("bin/busybox")).expect("busybox");
    for applet in [
        "sh", "cat", "echo", "ls", "sleep", "true", "false", "id", "mount", "hostname", "kill", "env", "pwd",
        "mkdir", "touch", "grep", "ps", "readlink", "mknod", "dd", "stat", "head", "seq", "rm", "ln", "wc",
        "tr", "test", "date", "df", "chmod", "tty", "stty", "usleep", "awk", "cut", "sort", "od", "unshare",
        "chroot", "nc", "ip", "sysctl",
    ] {
        symlink("busybox", image.join("bin").join(applet)).expect("a link");
    }
    let write = |path: &str, text: &str| std::fs::write(image.join(path), text).expect("written");
    write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102:Web:/srv:/bin/sh\n");
    write("etc/group", "root:x:0:\nweb:x:102:\nlog:x:200:web\n");
    image
}
