//! Holes of other runtimes that are shut here.

use std::os::unix::fs::symlink;

use runtime::spec::{Mount, Seccomp};
use runtime::{ExitStatus, RuntimeError};

use crate::node::Node;

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_was_not_given_cannot_be_used() {
    let Some(node) = Node::open("devices").await else { return };
    if !node.runtime().capabilities().device_filter {
        println!("skipped: the kernel cannot confine devices");
        return node.close().await;
    }
    let sandbox = node.sandbox("pod-1").await;
    // Kernel messages, by a node that the container makes by itself.
    let script = "mknod /tmp/kmsg c 1 11 && echo made; head -c 1 /tmp/kmsg 2>&1; mknod /tmp/null c 1 3; echo > /tmp/null && echo null";
    let (_, output) = node.script(&sandbox, "c-1", script).await;
    assert_eq!(output, "made\nhead: /tmp/kmsg: Operation not permitted\nnull\n");
    let mut spec = node.spec(
        &sandbox,
        "c-2",
        "ls /dev | wc -l; test -e /dev/kmsg && echo kmsg; grep CapEff /proc/self/status",
    );
    spec.privileged = true;
    let id = node.run(spec).await;
    node.ended(&id).await;
    assert!(node.output("c-2").contains("kmsg"), "{}", node.output("c-2"));
    node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_working_directory_in_a_descriptor_leads_nowhere() {
    let Some(node) = Node::open("cwd").await else { return };
    let sandbox = node.sandbox("pod-1").await;
    for fd in [3, 7, 9, 15] {
        let mut spec =
            node.spec(&sandbox, &format!("c-{fd}"), "pwd; ls ../../../../etc | wc -l; ls -l /proc/self/fd");
        spec.cwd = format!("/proc/self/fd/{fd}");
        let id = spec.id.clone();
        node.runtime().create_container(spec).await.expect("create");
        if node.runtime().start_container(&id).await.is_ok() {
            node.ended(&id).await;
            panic!("started in a descriptor: {}", node.output(id.as_str()));
        }
    }
    node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_with_links_in_strange_places_harms_nobody() {
    let Some(node) = Node::open("links").await else { return };
    let sandbox = node.sandbox("pod-1").await;
    let canary = node.dir.path().join("canary");
    std::fs::create_dir(&canary).expect("a directory");
    for (index, name) in ["dev", "proc", "sys"].into_iter().enumerate() {
        let layer = node.dir.path().join(format!("layer-{name}"));
        std::fs::create_dir(&layer).expect("a directory");
        symlink(&canary, layer.join(name)).expect("a link");
        let mut spec = node.spec(&sandbox, &format!("c-{index}"), "true");
        spec.rootfs.insert(0, layer);
        let id = spec.id.clone();
        node.runtime().create_container(spec).await.expect("create");
        // Refused or harmless.
        let _ = node.runtime().start_container(&id).await;
        let left = std::fs::read_dir(&canary).expect("the canary").count();
        assert_eq!(left, 0, "{name} led out of the root");
    }
    // The same through a volume's target.
    let layer = node.dir.path().join("layer-target");
    std::fs::create_dir(&layer).expect("a directory");
    symlink("../../../../../../../../tmp", layer.join("out")).expect("a link");
    let mut spec = node.spec(&sandbox, "c-target", "ls /tmp");
    spec.rootfs.insert(0, layer);
    spec.mounts = vec![Mount::bind(&node.image, "/out/orlop-test-escape")];
    let id = node.run(spec).await;
    node.ended(&id).await;
    assert_eq!(node.output("c-target"), "orlop-test-escape\n");
    assert!(!std::path::Path::new("/tmp/orlop-test-escape").exists());
    node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_are_in_force() {
    let Some(node) = Node::open("seccomp").await else { return };
    let sandbox = node.sandbox("pod-1").await;
    let (_, output) =
        node.script(&sandbox, "c-1", "unshare -m true 2>&1; grep Seccomp: /proc/self/status").await;
    assert!(output.contains("Operation not permitted") && output.contains("Seccomp:\t2"), "{output}");
    let mut spec = node.spec(&sandbox, "c-2", "grep Seccomp: /proc/self/status");
    spec.seccomp = Seccomp::Unconfined;
    let id = node.run(spec).await;
    node.ended(&id).await;
    assert_eq!(node.output("c-2"), "Seccomp:\t0\n");
    let profile = node.dir.path().join("profile.json");
    let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":28}]}"#;
    std::fs::write(&profile, text).expect("written");
    let mut spec = node.spec(&sandbox, "c-3", "mkdir /x 2>&1; exit 0");
    spec.seccomp = Seccomp::Localhost(profile);
    let id = node.run(spec).await;
    assert_eq!(node.ended(&id).await.status, ExitStatus::Code(0));
    assert!(node.output("c-3").contains("No space left"), "{}", node.output("c-3"));
    let mut spec = node.spec(&sandbox, "c-4", "true");
    spec.seccomp = Seccomp::Localhost("".into());
    let error = node.runtime().create_container(spec).await.expect_err("refused");
    assert!(matches!(error, RuntimeError::Invalid { .. }), "{error}");
    node.close().await;
}
