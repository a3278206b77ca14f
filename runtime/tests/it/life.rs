//! The life of sandboxes and containers.

use std::collections::BTreeMap;
use std::time::Duration;

use runtime::spec::{Mount, MountSource, NamespaceMode, User};
use runtime::{
    ContainerState, Event, ExitReason, ExitStatus, RuntimeError, SandboxId, SandboxSpec, SandboxState,
    StartError,
};

use crate::node::{LONG, Node};

#[tokio::test(flavor = "multi_thread")]
async fn a_container_lives_and_leaves_nothing() {
    let Some(node) = Node::open("life").await else { return };
    let mut events = node.runtime().subscribe();
    let sandbox = node.sandbox("pod-1").await;
    let (exit, output) = node.script(&sandbox, "c-1", "echo out; echo err >&2; exit 7").await;
    assert_eq!(exit.status, ExitStatus::Code(7));
    assert_eq!(exit.reason, ExitReason::Error);
    assert!(exit.started_at.is_some_and(|at| at <= exit.finished_at));
    let mut lines: Vec<&str> = output.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["err", "out"]);
    let log = std::fs::read_to_string(node.log("c-1")).expect("a log");
    assert!(log.contains(" stderr F err") && log.contains(" stdout F out"), "{log}");
    node.runtime().remove_sandbox(&sandbox).await.expect("remove");
    node.runtime().remove_sandbox(&sandbox).await.expect("remove again");
    let mut seen = Vec::new();
    while let Ok(event) = events.try_recv() {
        seen.push(match event {
            Event::SandboxCreated(_) => "sandbox created",
            Event::SandboxStopped(_) => "sandbox stopped",
            Event::SandboxRemoved(_) => "sandbox removed",
            Event::ContainerCreated { .. } => "created",
            Event::ContainerStarted { .. } => "started",
            Event::ContainerStopped { .. } => "stopped",
            Event::ContainerRemoved { .. } => "removed",
        });
    }
    let want =
        ["sandbox created", "created", "started", "stopped", "sandbox stopped", "removed", "sandbox removed"];
    assert_eq!(seen, want);
    assert!(node.runtime().sandboxes().is_empty() && node.runtime().containers().is_empty());
    node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_inside_looks_as_it_should() {
    let Some(node) = Node::open("inside").await else { return };
    let mut spec = SandboxSpec::new(SandboxId::new("pod-1").expect("an id"));
    spec.hostname = "web-0".into();
    spec.sysctls = BTreeMap::from([("net.ipv4.ip_default_ttl".to_owned(), "77".to_owned())]);
    let sandbox = node.runtime().create_sandbox(spec).await.expect("create").spec.id.clone();
    let volume = node.dir.path().join("volume");
    std::fs::create_dir(&volume).expect("a directory");
    std::fs::write(volume.join("hello"), "from the host\n").expect("written");
    let script = "
        hostname; echo $HOSTNAME $HOME $PATH $A; pwd; id
        cat /proc/sys/net/ipv4/ip_default_ttl
        cat /vol/hello; touch /vol/x 2>/dev/null || echo volume is read-only
        touch /new && echo root is writable
        ls /dev | tr '\\n' ' '; echo
        echo x > /dev/null && head -c 3 /dev/zero | od -An -tx1
        df /dev/shm | tail -1 | awk '{print $2}'
        touch /sys/x 2>/dev/null || echo sys is read-only
        touch /sys/fs/cgroup/x 2>/dev/null || echo cgroup is read-only
        ls /sys/fs/cgroup/cgroup.procs
        cat /proc/kcore 2>/dev/null | wc -c
        echo 1 2>/dev/null > /proc/sys/kernel/sysrq || echo proc sys is read-only
        grep -E 'Cap(Eff|Inh|Amb)|Seccomp:|NoNewPrivs' /proc/self/status | tr '\\t' ' '
        ls /proc | grep -c '^[0-9]'
        ls /tmpfs; df /tmpfs | tail -1 | awk '{print $2}'
        ls /proc/self/fd | tr '\\n' ' '";
    let mut spec = node.spec(&sandbox, "c-1", script);
    spec.cwd = "/work/dir".into();
    spec.env = vec!["A=1".into(), "A=2".into()];
    spec.mounts = vec![
        Mount::bind(&volume, "/vol").readonly(),
        Mount { source: MountSource::Tmpfs { size: Some(1 << 20), mode: None }, ..Mount::bind("", "/tmpfs") },
    ];
    let id = node.run(spec).await;
    let exit = node.ended(&id).await;
    expect_test::expect![[r#"
        web-0
        web-0 /root /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin 2
        /work/dir
        uid=0(root) gid=0(root) groups=0(root)
        77
        from the host
        volume is read-only
        root is writable
        core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero 
         00 00 00
        65536
        sys is read-only
        cgroup is read-only
        /sys/fs/cgroup/cgroup.procs
        0
        proc sys is read-only
        CapInh: 0000000000000000
        CapEff: 00000000a80425fb
        CapAmb: 0000000000000000
        NoNewPrivs: 0
        Seccomp: 2
        3
        1024
        0 1 2 3 
    "#]]
    .assert_eq(&node.output("c-1"));
    assert_eq!(exit.status, ExitStatus::Code(0));
    node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_run_as_themselves() {
    let Some(node) = Node::open("users").await else { return };
    let sandbox = node.sandbox("pod-1").await;
    for (index, (user, want)) in [
        ("", "uid=0(root) gid=0(root) groups=0(root)"),
        ("web", "uid=101(web) gid=102(web) groups=102(web),200(log)"),
        ("5000:6000", "uid=5000 gid=6000 groups=6000"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut spec = node.spec(&sandbox, &format!("c-{index}"), "id; grep CapEff /proc/self/status");
        spec.user = User { user: user.into(), ..User::default() };
        let id = node.run(spec).await;
        node.ended(&id).await;
        let output = node.output(id.as_str());
        assert!(output.starts_with(want), "{user:?}: {output}");
        assert_eq!(output.contains("CapEff:\t0000000000000000"), !user.is_empty(), "{user:?}: {output}");
    }
    let mut spec = node.spec(&sandbox, "c-x", "true");
    spec.user = User { user: "4294967296".into(), ..User::default() };
    let error = node.runtime().create_container(spec).await.expect_err("refused");
    assert!(error.to_string().contains("4294967296"), "{error}");
    assert!(!node.options.data.join("containers/c-x").exists(), "the layer of a refused container is left");
    node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_is_asking_then_killing() {
    let Some(node) = Node::open("stop").await else { return };
    let sandbox = node.sandbox("pod-1").await;
    let script = "trap 'echo bye; exit 3' TERM; echo ready; while true; do sleep 0.05; done";
    let polite = node.run(node.spec(&sandbox, "polite", script)).await;
    ready(&node, "polite").await;
    node.runtime().stop_container(&polite, LONG).await.expect("stop");
    assert_eq!(node.ended(&polite).await.status, ExitStatus::Code(3));
    assert!(node.output("polite").ends_with("bye\n"));

    let script = "trap '' TERM; echo ready; while true; do sleep 0.05; done";
    let deaf = node.run(node.spec(&sandbox, "deaf", script)).await;
    ready(&node, "deaf").await;
    node.runtime().stop_container(&deaf, Duration::from_millis(100)).await.expect("stop");
    assert_eq!(node.ended(&deaf).await.status, ExitStatus::Signal(9));

    let mut spec =
        node.spec(&sandbox, "other", "trap 'exit 4' USR1; echo ready; while true; do sleep 0.05; done");
    spec.stop_signal = Some("SIGUSR1".into());
    let other = node.run(spec).await;
    ready(&node, "other").await;
    node.runtime().stop_container(&other, LONG).await.expect("stop");
    assert_eq!(node.ended(&other).await.status, ExitStatus::Code(4));

    // A stop without patience overtakes one with.
    let script = "trap '' TERM; echo ready; while true; do sleep 0.05; done";
    let both = node.run(node.spec(&sandbox, "both", script)).await;
    ready(&node, "both").await;
    let patient = {
        let runtime = node.runtime().clone();
        let id = both.clone();
        tokio::spawn(async move { runtime.stop_container(&id, LONG * 10).await })
    };
    node.runtime().stop_container(&both, Duration::ZERO).await.expect("stop");
    patient.await.expect("joined").expect("stop");
    node.runtime().stop_container(&both, Duration::ZERO).await.expect("stopping again is fine");
    node.close().await;
}

pub async fn ready(node: &Node, id: &str) {
    said(node, id, "ready").await;
}

/// Waits until a container has printed a word.
pub async fn said(node: &Node, id: &str, word: &str) {
    let wait = async {
        while !node.output(id).contains(word) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LONG, wait).await.unwrap_or_else(|_| panic!("{id} said {:?}", node.output(id)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_process_namespace_has_an_init() {
    let Some(node) = Node::open("shared").await else { return };
    let mut spec = SandboxSpec::new(SandboxId::new("pod-1").expect("an id"));
    spec.namespaces.pid = NamespaceMode::Pod;
    let sandbox = node.runtime().create_sandbox(spec).await.expect("create");
    assert!(sandbox.init_pid.is_some());
    let sandbox = sandbox.spec.id.clone();
    let shared = |mut spec: runtime::ContainerSpec| {
        spec.namespaces.pid = NamespaceMode::Pod;
        spec
    };
    let first = node.run(shared(node.spec(&sandbox, "c-1", "echo ready; sleep 1000"))).await;
    ready(&node, "c-1").await;
    let second = node.run(shared(node.spec(&sandbox, "c-2", "ps | grep -c 'sleep 1000'; echo $$"))).await;
    node.ended(&second).await;
    let output = node.output("c-2");
    assert!(!output.starts_with('0') && !output.ends_with("\n1\n"), "{output}");
    // An ephemeral container joins another one's namespace.
    let mut spec = node.spec(&sandbox, "c-3", "ps");
    spec.namespaces.pid = NamespaceMode::Target(first.clone());
    let third = node.run(spec).await;
    node.ended(&third).await;
    assert!(node.output("c-3").contains("sleep 1000"), "{}", node.output("c-3"));
    node.runtime().stop_sandbox(&sandbox).await.expect("stop");
    assert!(matches!(node.container(&first).state, ContainerState::Exited(_)));
    assert_eq!(node.runtime().sandbox(&sandbox).expect("known").state, SandboxState::NotReady);
    let error =
        node.runtime().create_container(node.spec(&sandbox, "c-4", "true")).await.expect_err("refused");
    assert!(matches!(error, RuntimeError::SandboxNotReady { .. }), "{error}");
    node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_started_says_why() {
    let Some(node) = Node::open("wrong").await else { return };
    let sandbox = node.sandbox("pod-1").await;
    let mut spec = node.spec(&sandbox, "c-1", "");
    spec.args = vec!["/no/such/program".into()];
    let id = spec.id.clone();
    node.runtime().create_container(spec).await.expect("create");
    let error = node.runtime().start_container(&id).await.expect_err("refused");
    assert!(matches!(error, StartError::NotFound { .. }), "{error:?}");
    let ContainerState::Exited(exit) = node.container(&id).state else { panic!("not exited") };
    assert_eq!((exit.status, exit.reason), (ExitStatus::Code(128), ExitReason::StartError));
    assert!(exit.message.contains("/no/such/program"), "{}", exit.message);

    let mut spec = node.spec(&sandbox, "c-2", "true");
    spec.mounts = vec![Mount::bind("/no/such/source", "/vol")];
    let id = spec.id.clone();
    node.runtime().create_container(spec).await.expect("create");
    let error = node.runtime().start_container(&id).await.expect_err("refused");
    assert!(error.to_string().contains("/no/such/source"), "{error}");

    let spec = node.spec(&sandbox, "c-2", "true");
    let error = node.runtime().create_container(spec).await.expect_err("refused");
    assert!(matches!(error, RuntimeError::Exists { .. }), "{error}");
    node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_itself_can_be_shared() {
    let Some(node) = Node::open("host").await else { return };
    let mut spec = SandboxSpec::new(SandboxId::new("pod-1").expect("an id"));
    spec.namespaces = runtime::spec::Namespaces {
        net: NamespaceMode::Node,
        ipc: NamespaceMode::Node,
        uts: NamespaceMode::Node,
        pid: NamespaceMode::Node,
    };
    let sandbox = node.runtime().create_sandbox(spec).await.expect("create");
    assert_eq!(sandbox.netns, None);
    let script =
        "for kind in net ipc uts pid mnt cgroup; do readlink /proc/self/ns/$kind; done; sleep 1000 & true";
    let mut spec = node.spec(&sandbox.spec.id, "c-1", script);
    spec.namespaces.pid = NamespaceMode::Node;
    let id = node.run(spec).await;
    assert_eq!(node.ended(&id).await.status, ExitStatus::Code(0));
    let inside: Vec<String> = node.output("c-1").lines().map(str::to_owned).collect();
    for (index, kind) in ["net", "ipc", "uts", "pid", "mnt", "cgroup"].into_iter().enumerate() {
        let ours = std::fs::read_link(format!("/proc/self/ns/{kind}")).expect("a link");
        assert_eq!(inside[index] == ours.to_string_lossy(), index < 4, "{kind}: {inside:?}");
    }
    // What it left behind in the node's process namespace is killed with it: removing waits for an empty cgroup.
    node.runtime().remove_container(&id).await.expect("remove");
    node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn terminals_and_volumes() {
    let Some(node) = Node::open("tty").await else { return };
    let sandbox = node.sandbox("pod-1").await;
    let volume = node.dir.path().join("layer");
    std::fs::create_dir_all(volume.join("sub/dir")).expect("a directory");
    std::fs::write(volume.join("sub/file"), "x").expect("written");
    let script = "tty; stty size; ls /image; touch /image/x 2>&1; ls -l /dev/console | cut -c1; read line; echo got $line";
    let mut spec = node.spec(&sandbox, "c-1", script);
    spec.tty = true;
    spec.stdin = true;
    spec.readonly_rootfs = true;
    let source = MountSource::Image { lower: vec![volume], sub_path: Some("sub".into()) };
    spec.mounts = vec![Mount { source, ..Mount::bind("", "/image") }];
    spec.rlimits = vec![runtime::spec::Rlimit { name: "RLIMIT_CORE".into(), soft: 0, hard: u64::MAX }];
    let id = node.run(spec).await;
    let session = node.runtime().attach(&id).await.expect("attach");
    assert!(session.tty);
    session.resize(100, 50).expect("resize");
    // What is typed is echoed at once: only after everything else was printed is its place certain.
    let printed = async {
        let mut looks = tokio::time::interval(std::time::Duration::from_millis(10));
        while !node.output("c-1").replace('\r', "").contains("\nc\n") {
            looks.tick().await;
        }
    };
    tokio::time::timeout(LONG, printed).await.expect("the script prints before it reads");
    let terminal = session.terminal.as_ref().expect("a terminal");
    rustix::io::write(terminal, b"hello\n").expect("written");
    assert_eq!(node.ended(&id).await.status, ExitStatus::Code(0));
    let output = node.output("c-1").replace('\r', "");
    assert!(output.contains("/dev/pts/0\n") && output.contains("file\n"), "{output}");
    assert!(output.contains("touch: /image/x: Read-only file system\nc\n"), "{output}");
    assert!(output.ends_with("got hello\n"), "{output}");
    node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pods_at_once() {
    let Some(node) = Node::open("many").await else { return };
    let pods = (0..20).map(|index| {
        let node = &node;
        async move {
            let sandbox = node.sandbox(&format!("pod-{index}")).await;
            let (exit, output) = node.script(&sandbox, &format!("c-{index}"), &format!("echo {index}")).await;
            assert_eq!((exit.status, output), (ExitStatus::Code(0), format!("{index}\n")));
            node.runtime().remove_sandbox(&sandbox).await.expect("remove");
        }
    });
    tokio::time::timeout(LONG * 3, futures::future::join_all(pods)).await.expect("in time");
    node.close().await;
}
