//! Pods with users of their own.

use runtime::spec::{IdRange, Mount, MountSource, NamespaceMode, UserNamespace};
use runtime::{ContainerId, ExecSpec, SandboxId, SandboxSpec};

use crate::node::Node;

const HOST: u32 = 131_072;

fn ids() -> UserNamespace {
    let range = IdRange { host: HOST, length: 65_536 };
    UserNamespace { users: range, groups: range }
}

/// A node that can have such pods, and a sandbox of one.
async fn open(name: &str, change: impl FnOnce(&mut SandboxSpec)) -> Option<(Node, SandboxId)> {
    let node = Node::open(name).await?;
    if let Some(why) = &node.runtime().capabilities().user_namespaces {
        println!("skipped: {why}");
        node.close().await;
        return None;
    }
    let id = SandboxId::new("pod-1").expect("an id");
    let mut spec = SandboxSpec::new(id.clone());
    spec.user_namespace = Some(ids());
    change(&mut spec);
    node.runtime().create_sandbox(spec).await.expect("create the sandbox");
    Some((node, id))
}

#[tokio::test(flavor = "multi_thread")]
async fn root_in_a_pod_is_nobody_on_the_node() {
    let Some((node, sandbox)) = open("users", |_| {}).await else { return };
    let script = "id; cat /proc/self/uid_map /proc/self/gid_map | tr -s ' '; stat -c '%u:%g %n' /bin/busybox /tmp /dev /dev/null /dev/shm /proc/self/; \
                  touch /made && chmod 4755 /made && stat -c '%u %a' /made; mkdir /d && chown web:log /d && stat -c '%U:%G' /d; \
                  ls /sys/class/net; cat /sys/fs/cgroup/cgroup.controllers >/dev/null && echo cgroup; echo x > /dev/null; head -c 1 /dev/zero | wc -c; \
                  mknod /tmp/null c 1 3 2>&1; ls -d /dev/mqueue /dev/pts; echo hi > /dev/stdout; grep -c . /proc/self/mountinfo > /dev/null; \
                  cat /sys/kernel/security 2>/dev/null; echo 1 > /proc/sys/kernel/panic; mount -t tmpfs x /tmp 2>&1";
    let (_, output) = node.script(&sandbox, "c-1", script).await;
    let want = "uid=0(root) gid=0(root) groups=0(root)\n 0 131072 65536\n 0 131072 65536\n0:0 /bin/busybox\n0:0 /tmp\n0:0 /dev\n0:0 /dev/null\n0:0 /dev/shm\n0:0 /proc/self/\n\
                0 4755\nweb:log\nlo\ncgroup\n1\nmknod: /tmp/null: Operation not permitted\n/dev/mqueue\n/dev/pts\nhi\n";
    assert!(output.starts_with(want), "{output}\nwanted\n{want}");
    assert!(output.contains("mount: permission denied"), "{output}");
    // What it wrote belongs to nobody of the node.
    let made = node.dir.path().join("data/containers/c-1/upper/made");
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(made).expect("the file"));
    assert_eq!(owner, HOST);
    node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn execs_streams_and_terminals_live_in_the_namespace() {
    let Some((node, sandbox)) = open("users-exec", |_| {}).await else { return };
    let mut spec = node.spec(&sandbox, "c-1", "echo out > /dev/stdout; exec sleep 1000");
    spec.user.user = "web".into();
    let id = node.run(spec).await;
    let done = node
        .runtime()
        .exec_sync(&id, ["/bin/sh", "-c", "id -u; cut -c1-40 /proc/self/uid_map | tr -s ' '; (readlink /proc/self/ns/user; readlink /proc/1/ns/user) | sort -u | wc -l; echo again > /dev/stdout"].map(str::to_owned).to_vec(), None)
        .await
        .expect("exec");
    assert_eq!(
        String::from_utf8_lossy(&done.stdout),
        "101\n 0 131072 65536\n1\nagain\n",
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let exec = ExecSpec {
        args: ["/bin/sh", "-c", "tty; id -u; stat -c %u $(tty)"].map(str::to_owned).to_vec(),
        tty: true,
        stdin: true,
        stdout: true,
        ..ExecSpec::default()
    };
    let session = node.runtime().exec(&id, exec).await.expect("exec");
    assert_eq!(session.wait().await.code(), 0);
    let mut spec = node.spec(&sandbox, "c-2", "tty; stat -c %u /dev/console");
    spec.tty = true;
    let id = node.run(spec).await;
    node.ended(&id).await;
    assert_eq!(node.output("c-2").replace('\r', ""), "/dev/pts/0\n0\n");
    node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_of_a_pod_share_its_namespaces() {
    let Some((node, sandbox)) = open("users-shared", |spec| spec.namespaces.pid = NamespaceMode::Pod).await
    else {
        return;
    };
    let mut first = node.spec(&sandbox, "c-1", "exec sleep 1000");
    first.namespaces.pid = NamespaceMode::Pod;
    node.run(first).await;
    let mut second = node.spec(
        &sandbox,
        "c-2",
        "ps | grep -c '[s]leep 1000'; stat -c %u /proc/1; for n in user net ipc uts; do readlink /proc/self/ns/$n; done; nc -l -p 80 -w 1 -e true; echo $?",
    );
    second.namespaces.pid = NamespaceMode::Pod;
    let id = node.run(second).await;
    node.ended(&id).await;
    let output = node.output("c-2");
    assert!(output.starts_with("1\n"), "{output}");
    let own = |name: &str| {
        std::fs::read_link(format!("/proc/self/ns/{name}")).expect("a link").to_string_lossy().into_owned()
    };
    for name in ["user", "net", "ipc", "uts"] {
        assert!(output.contains(&format!("{name}:[")) && !output.contains(&own(name)), "{name}: {output}");
    }
    node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_shown_with_the_pods_ids() {
    let Some((node, sandbox)) = open("users-volumes", |spec| {
        spec.sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "0".into());
        spec.sysctls.insert("kernel.msgmax".into(), "4096".into());
    })
    .await
    else {
        return;
    };
    let volume = node.dir.path().join("volume");
    std::fs::create_dir(&volume).expect("a directory");
    std::fs::write(volume.join("of-root"), "").expect("a file");
    let mut spec = node.spec(
        &sandbox,
        "c-1",
        "stat -c '%u %n' /mapped/of-root /plain/of-root /image/bin; touch /mapped/made; touch /plain/made 2>&1; stat -c %u /tmpfs; \
         cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax",
    );
    let mapped = Mount { ids: Some(ids()), ..Mount::bind(&volume, "/mapped") };
    let image = MountSource::Image { lower: vec![node.image.clone()], sub_path: None };
    let tmpfs = MountSource::Tmpfs { size: None, mode: None };
    spec.mounts = vec![
        mapped,
        Mount::bind(&volume, "/plain"),
        Mount { source: image, ..Mount::bind("", "/image") },
        Mount { source: tmpfs, ..Mount::bind("", "/tmpfs") },
    ];
    let id = node.run(spec).await;
    node.ended(&id).await;
    assert_eq!(
        node.output("c-1"),
        "0 /mapped/of-root\n65534 /plain/of-root\n0 /image/bin\ntouch: /plain/made: Permission denied\n0\n0\n4096\n"
    );
    let owner =
        std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(volume.join("made")).expect("the file"));
    assert_eq!(owner, 0, "what the pod's root makes in a mapped volume belongs to root on the disk");
    // A user that the pod has no id for.
    let mut spec = node.spec(&sandbox, "c-2", "true");
    spec.user.user = "70000".into();
    let error = node.runtime().create_container(spec).await.expect_err("refused");
    assert!(error.to_string().contains("70000 is not among the pod's ids"), "{error}");
    node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_that_protect_nobody_are_refused() {
    let Some((node, _)) = open("users-bad", |_| {}).await else { return };
    let try_with = |ids: UserNamespace, host_net: bool| {
        let mut spec = SandboxSpec::new(SandboxId::new("pod-2").expect("an id"));
        spec.user_namespace = Some(ids);
        if host_net {
            spec.namespaces.net = NamespaceMode::Node;
        }
        node.runtime().create_sandbox(spec)
    };
    let range = |host, length| IdRange { host, length };
    for (users, host_net, part) in [
        (range(0, 65_536), false, "node's root"),
        (range(65_536, 1000), false, "65536"),
        (range(u32::MAX - 65_536, 65_537), false, "largest"),
        (range(65_536, 65_536), true, "network"),
    ] {
        let ids = UserNamespace { users, groups: range(65_536, 65_536) };
        let error = try_with(ids, host_net).await.expect_err("refused");
        assert!(error.to_string().contains(part), "{error}");
    }
    node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_daemon_goes_on_in_the_namespace() {
    let Some((mut node, sandbox)) = open("users-restart", |_| {}).await else { return };
    let first = node.run(node.spec(&sandbox, "c-1", "exec sleep 1000")).await;
    node.runtime()
        .create_container(node.spec(&sandbox, "c-2", "cut -c1-40 /proc/self/uid_map | tr -s ' '"))
        .await
        .expect("create");
    node.crash();
    node.reopen().await;
    let done =
        node.runtime().exec_sync(&first, vec!["/bin/id".into(), "-u".into()], None).await.expect("exec");
    assert_eq!(String::from_utf8_lossy(&done.stdout), "0\n");
    let second = ContainerId::new("c-2").expect("an id");
    node.runtime().start_container(&second).await.expect("start");
    node.ended(&second).await;
    assert_eq!(node.output("c-2"), " 0 131072 65536\n");
    node.close().await;
}
