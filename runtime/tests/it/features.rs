//! What Linux has for containers, at its edges: many layers, long arguments, rights, mounts that travel.

use std::path::Path;

use runtime::spec::{
    Capabilities, IdRange, Mount, MountSource, NamespaceMode, Propagation, User, UserNamespace,
};
use runtime::{ContainerId, ExitStatus, SandboxId, SandboxSpec, StartError};

use crate::life::ready;
use crate::node::Node;

/// Layers above the image of the node, each with a file of its own and all with one in common.
fn layers(node: &Node, count: usize) -> Vec<std::path::PathBuf> {
    let made = |number: usize| {
        let layer = node.dir.path().join(format!("layer-{number}"));
        std::fs::create_dir_all(layer.join("many")).expect("a directory");
        std::fs::write(layer.join(format!("many/{number}")), "").expect("written");
        std::fs::write(layer.join("top"), number.to_string()).expect("written");
        layer
    };
    let mut all: Vec<_> = (1..count).map(made).collect();
    all.reverse();
    all.push(node.image.clone());
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_many_layers_runs_or_is_refused_in_words() {
    let Some(node) = Node::open("layers").await else { return };
    let sandbox = node.sandbox("pod-1").await;
    // As many as images of builders have at most.
    let mut spec = node.spec(
        &sandbox,
        "c-128",
        "ls /many | wc -l; cat /top; echo; echo x > /many/new; ls /many | wc -l",
    );
    spec.rootfs = layers(&node, 128);
    let id = node.run(spec).await;
    node.ended(&id).await;
    assert_eq!(node.output("c-128"), "127\n127\n128\n");
    // The same as a volume.
    let lower = layers(&node, 128);
    let source = MountSource::Image { lower, sub_path: Some("many".into()) };
    let mut spec = node.spec(&sandbox, "c-volume", "ls /vol | wc -l");
    spec.mounts = vec![Mount { source, ..Mount::bind("", "/vol") }];
    let id = node.run(spec).await;
    node.ended(&id).await;
    assert_eq!(node.output("c-volume"), "127\n");
    // Each layer is an open file while it is mounted, and other tests run beside this one.
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    if files.is_some_and(|most| most < 4096) {
        println!("skipped: 500 layers need more open files than {files:?} (ulimit -n)");
    } else if node.runtime().capabilities().overlay_lowerdir_append {
        let mut spec = node.spec(&sandbox, "c-500", "ls /many | wc -l");
        spec.rootfs = layers(&node, 500);
        let id = node.run(spec).await;
        node.ended(&id).await;
        assert_eq!(node.output("c-500"), "499\n");
    }
    let mut spec = node.spec(&sandbox, "c-501", "true");
    spec.rootfs = layers(&node, 501);
    let id = spec.id.clone();
    let said = match node.runtime().create_container(spec).await {
        Err(error) => error.to_string(),
        Ok(_) => node.runtime().start_container(&id).await.expect_err("refused").to_string(),
    };
    assert!(said.contains("501 layers") && said.contains("squash"), "{said}");
    node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_have_the_capabilities_that_were_asked_for() {
    let Some(node) = Node::open("capabilities").await else { return };
    let sandbox = node.sandbox("pod-1").await;
    let available = runtime::caps::ALL & capabilities_of(Path::new("/proc/self/status"), "CapBnd");
    let bit = |name: &str| runtime::caps::bit_of(name).expect("a capability");
    let bind = bit("NET_BIND_SERVICE");
    let default = runtime::caps::sets(&Capabilities::default(), false, available).expect("good").effective;
    // User, added, dropped, ambient; bounding, effective and ambient sets.
    let rows: [Row; 9] = [
        ("", &[], &[], &[], [default, default, 0]),
        ("", &["ALL"], &[], &[], [available, available, 0]),
        ("", &[], &["ALL"], &[], [0, 0, 0]),
        ("", &["NET_BIND_SERVICE"], &["ALL"], &[], [bind, bind, 0]),
        // Another user gains nothing by what root would have, but through programs with file capabilities.
        ("1000", &["ALL"], &[], &[], [available, 0, 0]),
        ("1000", &[], &["ALL"], &[], [0, 0, 0]),
        ("1000", &["NET_BIND_SERVICE"], &["ALL"], &[], [bind, 0, 0]),
        ("1000", &[], &["ALL"], &["NET_BIND_SERVICE"], [bind, bind, bind]),
        ("", &[], &["ALL"], &["NET_BIND_SERVICE"], [bind, bind, bind]),
    ];
    for (index, (user, add, drop, ambient, want)) in rows.into_iter().enumerate() {
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let mut spec = node.spec(&sandbox, &format!("c-{index}"), "cat /proc/self/status; exec sleep 1000");
        spec.user = User { user: user.into(), ..User::default() };
        spec.capabilities = Capabilities { add: words(add), drop: words(drop), add_ambient: words(ambient) };
        let id = node.run(spec).await;
        let row = format!("{user:?} +{add:?} -{drop:?} ambient {ambient:?}");
        let done = node.exec(&id, "cat /proc/self/status").await;
        let output = node.dir.path().join(format!("exec-{index}"));
        std::fs::write(&output, &done.stdout).expect("written");
        let ran = node.dir.path().join(format!("run-{index}"));
        crate::life::said(&node, id.as_str(), "CapAmb").await;
        std::fs::write(&ran, node.output(id.as_str())).expect("written");
        for (what, file) in [("the container", ran), ("an exec", output)] {
            let got = ["CapBnd", "CapEff", "CapAmb"].map(|set| capabilities_of(&file, set));
            assert_eq!(got, want, "{what}: {row}");
        }
        node.runtime().remove_container(&id).await.expect("remove");
    }
    node.close().await;
}

type Row =
    (&'static str, &'static [&'static str], &'static [&'static str], &'static [&'static str], [u64; 3]);

fn capabilities_of(status: &Path, set: &str) -> u64 {
    let text = std::fs::read_to_string(status).expect("read");
    let line = text.lines().find(|line| line.starts_with(set)).expect("the set");
    u64::from_str_radix(line.split_whitespace().nth(1).expect("a number"), 16).expect("hexadecimal")
}

#[tokio::test(flavor = "multi_thread")]
async fn arguments_and_environments_up_to_the_kernels_edge() {
    let Some(node) = Node::open("long").await else { return };
    let sandbox = node.sandbox("pod-1").await;
    // The kernel takes 128 KiB for one string with its NUL byte, and a quarter of the stack limit for all.
    let longest = 128 * 1024 - 1;
    let one = |id: &str, length: usize| {
        let mut spec = node.spec(&sandbox, id, "echo ${#1}");
        spec.args.extend(["sh".to_owned(), "x".repeat(length)]);
        spec
    };
    let id = node.run(one("fits", longest)).await;
    node.ended(&id).await;
    assert_eq!(node.output("fits"), format!("{longest}\n"));
    let many = |id: &str, count: usize| {
        let mut spec = node.spec(&sandbox, id, "env | grep -c ^V; echo ${#V9}");
        spec.env = (0..count).map(|n| format!("V{n}={}", "y".repeat(100_000))).collect();
        spec.rlimits = vec![runtime::spec::Rlimit { name: "stack".into(), soft: 8 << 20, hard: 8 << 20 }];
        spec
    };
    let id = node.run(many("much", 20)).await;
    node.ended(&id).await;
    assert_eq!(node.output("much"), "20\n100000\n");
    let mut variable = node.spec(&sandbox, "variable", "true");
    variable.env = vec![format!("V={}", "z".repeat(longest))];
    for (what, spec) in
        [("an argument", one("long", longest + 1)), ("a variable", variable), ("all", many("many", 22))]
    {
        let id = spec.id.clone();
        node.runtime().create_container(spec).await.expect("create");
        let error = node.runtime().start_container(&id).await.expect_err("refused");
        let said = error.to_string();
        assert!(said.contains("argument list too long"), "{what}: {said}");
        assert!(!matches!(error, StartError::NotFound { .. }), "{what}: {said}");
        assert!(said.len() < 1000, "{what}: an error of {} characters", said.len());
    }
    node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_travel_as_far_as_asked() {
    let Some(node) = Node::open("propagation").await else { return };
    let sandbox = node.sandbox("pod-1").await;
    let volume = node.dir.path().join("volume");
    for sub in ["before", "after", "inside"] {
        std::fs::create_dir_all(volume.join(sub)).expect("a directory");
    }
    let shared = Shared::make(&volume);
    let tmpfs = |at: &str, file: &str| {
        let mount = sys::mount::create(c"tmpfs", Some(c"travels"), &[], 0).expect("a tmpfs");
        sys::mount::attach_at(&mount, volume.join(at).as_path()).expect("attached");
        std::fs::write(volume.join(at).join(file), "").expect("written");
    };
    tmpfs("before", "old");
    let kinds = [
        ("private", Propagation::Private),
        ("slave", Propagation::HostToContainer),
        ("shared", Propagation::Bidirectional),
    ];
    for (name, propagation) in kinds {
        let mut spec = node.spec(&sandbox, name, "echo ready; exec sleep 1000");
        spec.mounts = vec![Mount { propagation, ..Mount::bind(&volume, "/vol") }];
        spec.privileged = true;
        node.run(spec).await;
        ready(&node, name).await;
    }
    tmpfs("after", "new");
    for (name, _) in kinds {
        let id = ContainerId::new(name).expect("an id");
        let mount = "mount -t tmpfs inside /vol/inside && touch /vol/inside/made";
        let done = node.exec(&id, &format!("ls /vol/before /vol/after; {mount}")).await;
        let (seen, said) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        // What was there comes along; what comes later does where it was asked for.
        assert!(seen.contains("old"), "{name}: {seen} {said}");
        assert_eq!(seen.contains("new"), name != "private", "{name}: {seen} {said}");
        let back = volume.join("inside/made").exists();
        assert_eq!(back, name == "shared", "{name}: what the container mounted");
    }
    for (name, _) in kinds {
        node.runtime().remove_container(&ContainerId::new(name).expect("an id")).await.expect("remove");
    }
    drop(shared);
    node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn read_only_goes_down_to_the_mounts_below() {
    let Some(node) = Node::open("read-only").await else { return };
    let sandbox = node.sandbox("pod-1").await;
    let volume = node.dir.path().join("volume");
    std::fs::create_dir_all(volume.join("sub")).expect("a directory");
    let shared = Shared::make(&volume);
    let below = sys::mount::create(c"tmpfs", Some(c"below"), &[], 0).expect("a tmpfs");
    sys::mount::attach_at(&below, volume.join("sub").as_path()).expect("attached");
    let script =
        "touch /vol/a 2>&1; touch /vol/sub/b 2>&1 && echo written; grep -c ' /vol' /proc/self/mountinfo";
    for (name, recursive, want) in [
        ("flat", false, "touch: /vol/a: Read-only file system\nwritten\n2\n"),
        ("deep", true, "touch: /vol/a: Read-only file system\ntouch: /vol/sub/b: Read-only file system\n2\n"),
    ] {
        let mut spec = node.spec(&sandbox, name, script);
        let mount = Mount::bind(&volume, "/vol").readonly();
        spec.mounts = vec![Mount { recursive_readonly: recursive, ..mount }];
        let id = node.run(spec).await;
        node.ended(&id).await;
        assert_eq!(node.output(name), want, "{name}");
    }
    drop(shared);
    node.close().await;
}

/// A directory that is a shared mount of its own.
struct Shared(std::path::PathBuf);

impl Shared {
    fn make(place: &Path) -> Shared {
        let tree = sys::mount::clone_tree(rustix::fs::CWD, place, false).expect("copied");
        sys::mount::attach_at(&tree, place).expect("attached");
        for kind in [sys::mount::Propagation::Private, sys::mount::Propagation::Shared] {
            sys::mount::set_attributes(&tree, false, 0, 0, Some(kind)).expect("a kind of propagation");
        }
        Shared(place.to_owned())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let gone = sys::mount::unmount(self.0.as_path(), sys::mount::UnmountFlags::DETACH);
        if let Err(errno) = gone {
            println!("unmount {}: {errno}", self.0.display());
        }
    }
}

/// What an exec of the two namespaces together needs: the pod's users, and a process namespace that others are in
/// (decision 6).
#[tokio::test(flavor = "multi_thread")]
async fn execs_enter_a_shared_process_namespace_of_a_pod_with_users() {
    let Some(node) = Node::open("users-shared-exec").await else { return };
    if let Some(why) = &node.runtime().capabilities().user_namespaces {
        println!("skipped: {why}");
        return node.close().await;
    }
    let range = IdRange { host: 131_072, length: 65_536 };
    let mut spec = SandboxSpec::new(SandboxId::new("pod-1").expect("an id"));
    spec.user_namespace = Some(UserNamespace { users: range, groups: range });
    spec.namespaces.pid = NamespaceMode::Pod;
    let sandbox = node.runtime().create_sandbox(spec).await.expect("create the sandbox").spec.id.clone();
    let container = |name: &str, user: &str, script: &str| {
        let mut spec = node.spec(&sandbox, name, script);
        spec.namespaces.pid = NamespaceMode::Pod;
        spec.user.user = user.into();
        spec
    };
    let first = node.run(container("c-1", "", "echo ready; exec sleep 1001")).await;
    let second = node.run(container("c-2", "web", "echo ready; exec sleep 1002")).await;
    for name in ["c-1", "c-2"] {
        ready(&node, name).await;
    }
    let script = "id -u; tr -s ' ' < /proc/self/uid_map; ps | grep -c '[s]leep 100'; \
                  for n in user pid net; do readlink /proc/self/ns/$n; done; \
                  (readlink /proc/1/ns/user; readlink /proc/self/ns/user) | sort -u | wc -l; \
                  grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status; cat /proc/1/comm; echo written > /dev/stdout";
    let mut namespaces = Vec::new();
    for (id, user, users_seen) in [(&first, "0", "1"), (&second, "101", "2")] {
        let done = node.exec(id, script).await;
        let output = String::from_utf8_lossy(&done.stdout).into_owned();
        let said = String::from_utf8_lossy(&done.stderr);
        let lines: Vec<&str> = output.lines().collect();
        assert_eq!(lines[..3], [user, " 0 131072 65536", "2"], "{output}{said}");
        namespaces.push(lines[3..6].join(" "));
        // Another user may not look at what the pod's init has.
        assert!(lines[6] == users_seen || lines[6] == "1", "{output}{said}");
        assert!(output.contains("Seccomp:\t2") && output.ends_with("written\n"), "{output}{said}");
    }
    assert_eq!(namespaces[0], namespaces[1], "both execs are in the pod's namespaces");
    for name in ["user", "pid", "net"] {
        let own = std::fs::read_link(format!("/proc/self/ns/{name}")).expect("a link");
        assert!(!namespaces[0].contains(&*own.to_string_lossy()), "{name} is the node's: {namespaces:?}");
    }
    // It is nobody on the node, and can signal its neighbour in the pod.
    let done = node.exec(&first, "kill -9 $(ps | grep '[s]leep 1002' | tr -s ' ' | cut -d' ' -f2)").await;
    assert_eq!(done.status, ExitStatus::Code(0), "{}", String::from_utf8_lossy(&done.stderr));
    node.ended(&second).await;
    let tty = runtime::ExecSpec {
        args: ["/bin/sh", "-c", "tty; id -u; stat -c %u $(tty)"].map(str::to_owned).to_vec(),
        tty: true,
        stdin: true,
        stdout: true,
        ..runtime::ExecSpec::default()
    };
    let session = node.runtime().exec(&first, tty).await.expect("exec");
    assert_eq!(session.wait().await.code(), 0);
    let slow = ["/bin/sleep", "1000"].map(str::to_owned).to_vec();
    let limit = Some(std::time::Duration::from_millis(200));
    let late = node.runtime().exec_sync(&first, slow, limit).await.expect("exec");
    assert!(late.timed_out, "an exec beyond its time is ended: {late:?}");
    assert!(!node.exec(&first, "ps").await.stdout.windows(10).any(|w| w == b"sleep 1000"));
    node.close().await;
}
