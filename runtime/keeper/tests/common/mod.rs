//! A keeper for one test: a static binary, a root filesystem, a cgroup; all gone afterwards.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use keeper::client::Keeper;
use keeper::plan::*;
use keeper::protocol::{Event, Hello, State};
use rustix::fs::{Mode, OFlags};
use sys::cgroup::Group;
use tokio::sync::mpsc::UnboundedReceiver;

/// How long a condition may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn c(text: &str) -> CString {
    CString::new(text).unwrap()
}

/// The static program, built once; the same command as the daemon's build uses, unoptimised.
pub fn binary() -> &'static [u8] {
    static BINARY: OnceLock<Vec<u8>> = OnceLock::new();
    BINARY.get_or_init(|| {
        // The measurement names an optimised one.
        if let Some(path) = std::env::args().nth(2).filter(|path| path.ends_with("orlop-keeper")) {
            return std::fs::read(path).unwrap();
        }
        let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let dir = Path::new(option_env!("CARGO_TARGET_TMPDIR").unwrap_or("target")).join("static-keeper");
        let done = Command::new(env!("CARGO"))
            .args(["build", "-q", "-p", "keeper", "--bin", "orlop-keeper", "--no-default-features"])
            .args(["--target", &target, "--target-dir"])
            .arg(&dir)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .status()
            .unwrap();
        assert!(done.success(), "build the static keeper");
        std::fs::read(dir.join(target).join("debug/orlop-keeper")).unwrap()
    })
}

/// Why tests cannot run here, if they cannot.
pub fn obstacle() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root");
    }
    if !Path::new("/bin/busybox").exists() {
        return Some("needs a static busybox at /bin/busybox");
    }
    None
}

pub struct Fixture {
    pub dir: tempfile::TempDir,
    pub keeper: Keeper,
    pub hello: Hello,
    pub events: UnboundedReceiver<Event>,
    root: Group,
    name: String,
    keepers: Vec<OwnedFd>,
}

impl Fixture {
    pub async fn new() -> Fixture {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::tempdir().unwrap();
        make_rootfs(&dir.path().join("lower"));
        let name = format!("orlop-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let (root, _) = sys::cgroup::root().unwrap();
        let group = root.create(&format!("{name}/keeper")).unwrap();
        let socket = dir.path().join("keeper.sock");
        let log = std::fs::File::create(dir.path().join("keeper.err")).unwrap();
        let process =
            keeper::client::spawn_in(binary(), &socket, Some(log.as_fd()), Some(group.fd())).unwrap();
        let (keeper, hello, events) = Keeper::connect_patiently(&socket, PATIENCE).await.unwrap();
        Fixture { dir, keeper, hello, events, root, name, keepers: vec![process] }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("keeper.sock")
    }

    /// Drops the connection and makes a new one, as a restarted daemon does.
    pub async fn reconnect(&mut self) -> State {
        let (keeper, hello, events) = Keeper::connect_patiently(&self.socket(), PATIENCE).await.unwrap();
        (self.keeper, self.hello, self.events) = (keeper, hello, events);
        self.hello.state.clone()
    }

    /// Starts another keeper after [`Fixture::kill_keeper`].
    pub async fn replace_keeper_after_death(&mut self) {
        let group = self.root.open(&format!("{}/keeper", self.name)).unwrap();
        let log = std::fs::File::create(self.dir.path().join("keeper2.err")).unwrap();
        let process =
            keeper::client::spawn_in(binary(), &self.socket(), Some(log.as_fd()), Some(group.fd())).unwrap();
        self.keepers.push(process);
        self.reconnect().await;
    }

    pub async fn kill_keeper(&mut self) {
        sys::process::pidfd_signal(self.keepers.last().unwrap(), 9).unwrap();
        while self.events.recv().await.is_some() {}
        // Its connection closes before its listening socket does.
        use rustix::event::{PollFd, PollFlags, Timespec};
        let mut exit = [PollFd::new(self.keepers.last().unwrap(), PollFlags::IN)];
        let patience = Timespec { tv_sec: 10, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut exit, Some(&patience)).unwrap(), 1, "the keeper lives");
    }

    pub fn keeper_pid(&self) -> i32 {
        self.hello.pid
    }

    pub fn log_path(&self, id: &str) -> PathBuf {
        self.dir.path().join(format!("{id}.log"))
    }

    pub fn open_log(&self, id: &str) -> OwnedFd {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC;
        rustix::fs::open(self.log_path(id), flags, Mode::from_raw_mode(0o640)).unwrap()
    }

    pub fn log(&self, id: &str) -> String {
        std::fs::read_to_string(self.log_path(id)).unwrap()
    }

    /// The texts of the log's lines, `tag text`.
    pub fn lines(&self, id: &str) -> Vec<String> {
        self.log(id).lines().map(|l| l.splitn(4, ' ').skip(1).collect::<Vec<_>>().join(" ")).collect()
    }

    /// The container's cgroup.
    pub fn group(&self, id: &str) -> Group {
        self.root.create(&format!("{}/{id}", self.name)).unwrap()
    }

    /// A plan with the default mounts that runs a shell script.
    pub fn plan(&self, id: &str, script: &str) -> (LaunchPlan, Fds) {
        self.plan_args(id, &["/bin/sh", "-c", script])
    }

    pub fn plan_args(&self, id: &str, args: &[&str]) -> (LaunchPlan, Fds) {
        let mut fds = Fds::default();
        let upper = self.dir.path().join(format!("{id}-upper"));
        let work = self.dir.path().join(format!("{id}-work"));
        std::fs::create_dir_all(&upper).unwrap();
        std::fs::create_dir_all(&work).unwrap();
        let lower = c(self.dir.path().join("lower").to_str().unwrap());
        let (upper, work) = (c(upper.to_str().unwrap()), c(work.to_str().unwrap()));
        use sys::mount::FsOption::Value;
        let options = [Value(c"lowerdir", &lower), Value(c"upperdir", &upper), Value(c"workdir", &work)];
        let rootfs = match sys::mount::create_explained(c"overlay", None, &options, 0) {
            Ok(rootfs) => rootfs,
            // An overlay on an overlay may be refused: a tmpfs-less bind does for these tests.
            Err(_) => sys::mount::clone_tree(rustix::fs::CWD, lower.as_c_str(), false).unwrap(),
        };
        let rootfs = Rootfs { fd: fds.add(rootfs), readonly: false, propagation: None };
        let cgroup = fds.add(rustix::io::dup(self.group(id).fd()).unwrap());
        let log = fds.add(self.open_log(id));
        let plan = LaunchPlan {
            id: id.to_owned(),
            process: process(args),
            rootfs,
            steps: default_steps(),
            masked_paths: [
                "/proc/kcore",
                "/proc/keys",
                "/proc/timer_list",
                "/proc/scsi",
                "/sys/firmware",
                "/no/such",
            ]
            .map(c)
            .to_vec(),
            readonly_paths: ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq"].map(c).to_vec(),
            namespaces: Namespaces {
                pid: Namespace::New,
                net: Namespace::New,
                ipc: Namespace::New,
                uts: Namespace::New,
                cgroup: Namespace::New,
            },
            procfs_of: None,
            user_namespace: None,
            cgroup: Some(cgroup),
            hostname: Some(c("box")),
            domainname: None,
            sysctls: vec![],
            oom_score_adj: None,
            stdio: Stdio::Pipes { stdin: false },
            stdin_once: false,
            log: Some(log),
        };
        (plan, fds)
    }

    pub async fn start(&self, plan: (LaunchPlan, Fds)) -> keeper::client::LaunchReply {
        self.keeper.launch(plan.0, plan.1).await.unwrap()
    }

    /// The next exit event.
    pub async fn exit(&mut self) -> (String, keeper::protocol::Exit) {
        loop {
            let event = tokio::time::timeout(PATIENCE, self.events.recv()).await.expect("an exit in time");
            match event.expect("the connection stands") {
                Event::Exited { id, exit } => return (id, exit),
                Event::ExecExited { id, exit, .. } => return (id, exit),
                Event::LogFailed { .. } => {}
            }
        }
    }

    /// Starts a plan and waits for its end; returns the code a shell would show, and its log.
    pub async fn run(&mut self, plan: (LaunchPlan, Fds)) -> (i32, Vec<String>) {
        let id = plan.0.id.clone();
        self.start(plan).await;
        let (ended, exit) = self.exit().await;
        assert_eq!(ended, id);
        (exit.how.shell_code(), self.lines(&id))
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for file in ["keeper.err", "keeper2.err"] {
                let text = std::fs::read_to_string(self.dir.path().join(file)).unwrap_or_default();
                eprintln!("{file}: {text}");
            }
        }
        for process in &self.keepers {
            let _ = sys::process::pidfd_signal(process, 9);
        }
        let cleaned = self.root.destroy(&self.name, PATIENCE);
        if !std::thread::panicking() {
            cleaned.unwrap();
        }
    }
}

/// Waits until a condition holds.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn make_rootfs(dir: &Path) {
    for name in ["bin", "etc", "tmp", "root", "proc", "sys", "dev", "var"] {
        std::fs::create_dir_all(dir.join(name)).unwrap();
    }
    std::fs::copy("/bin/busybox", dir.join("bin/busybox")).unwrap();
    let tools = "sh ls cat echo true false sleep id env pwd mount ps seq tty stty kill head wc dd mknod \
                 hostname readlink test sort grep tr printf sysctl stat touch umask ulimit yes";
    for tool in tools.split_ascii_whitespace() {
        std::os::unix::fs::symlink("busybox", dir.join("bin").join(tool)).unwrap();
    }
    std::os::unix::fs::symlink("/run", dir.join("var/run")).unwrap();
}

pub const DEFAULT_CAPS: u64 = 0xa80425fb;

pub fn process(args: &[&str]) -> ProcessPlan {
    ProcessPlan {
        args: args.iter().map(|a| c(a)).collect(),
        env: vec![c("PATH=/bin"), c("HOME=/root")],
        cwd: c("/"),
        user: User::default(),
        capabilities: Capabilities {
            bounding: DEFAULT_CAPS,
            effective: DEFAULT_CAPS,
            permitted: DEFAULT_CAPS,
            ambient: 0,
        },
        no_new_privileges: true,
        label: None,
        seccomp: None,
        rlimits: vec![],
    }
}

pub fn filesystem(fstype: &str, options: &[(&str, &str)], attributes: u64, target: &str) -> Step {
    let option = |(key, value): &(&str, &str)| FsOption { key: c(key), value: Some(c(value)) };
    Step::Filesystem {
        fstype: c(fstype),
        source: Some(c(fstype)),
        options: options.iter().map(option).collect(),
        attributes,
        target: c(target),
    }
}

pub fn default_steps() -> Vec<Step> {
    use sys::mount::attr::{NODEV, NOEXEC, NOSUID, RDONLY};
    let mut steps = vec![
        filesystem("proc", &[], NOSUID | NODEV | NOEXEC, "/proc"),
        filesystem("tmpfs", &[("mode", "755"), ("size", "65536k")], NOSUID, "/dev"),
        filesystem(
            "devpts",
            &[("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")],
            NOSUID | NOEXEC,
            "/dev/pts",
        ),
        filesystem("tmpfs", &[("mode", "1777"), ("size", "65536k")], NOSUID | NODEV | NOEXEC, "/dev/shm"),
        filesystem("mqueue", &[], NOSUID | NODEV | NOEXEC, "/dev/mqueue"),
        filesystem("sysfs", &[], NOSUID | NODEV | NOEXEC | RDONLY, "/sys"),
        filesystem("cgroup2", &[], NOSUID | NODEV | NOEXEC | RDONLY, "/sys/fs/cgroup"),
    ];
    for (name, minor) in [("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)] {
        steps.push(device(&format!("/dev/{name}"), 1, minor));
    }
    steps.push(device("/dev/tty", 5, 0));
    let links = [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("ptmx", "pts/ptmx"),
    ];
    for (name, to) in links {
        steps.push(Step::Symlink { path: c(&format!("/dev/{name}")), to: c(to) });
    }
    steps
}

pub fn device(path: &str, major: u32, minor: u32) -> Step {
    Step::Device { path: c(path), kind: DeviceKind::Char, major, minor, mode: 0o666, uid: 0, gid: 0 }
}
