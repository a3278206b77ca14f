//! Containers made by other OCI runtimes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use runtime::handler::{Handler, OciRuntime};
use runtime::spec::{ExecSpec, Mount, MountSource};
use runtime::{ExitStatus, RuntimeError, SandboxId, SandboxSpec, StartError};
use tokio::io::AsyncReadExt;

use crate::node::{LONG, Node};

/// Name of the handler for libcontainer.
pub const LIBCONTAINER: &str = "libcontainer";

/// Runtimes of this machine, each once.
pub fn installed() -> Vec<(&'static str, PathBuf)> {
    let known = [("crun", "/usr/bin/crun"), ("runc", "/usr/sbin/runc"), ("runc", "/usr/bin/runc")];
    let mut found: Vec<_> = known.into_iter().map(|(name, path)| (name, PathBuf::from(path))).collect();
    found.push((LIBCONTAINER, libcontainer()));
    found.retain(|(_, path)| path.exists());
    found.dedup_by_key(|(name, _)| *name);
    found
}

/// The program `orlop-libcontainer`, a workspace of its own: `scripts/test.sh` builds it into the same directory.
fn libcontainer() -> PathBuf {
    let named = std::env::var_os("ORLOP_TEST_LIBCONTAINER").map(PathBuf::from);
    named.unwrap_or_else(|| {
        let here = std::env::current_exe().expect("this program's path");
        let target = here.ancestors().nth(2).expect("a test lies in target/debug/deps");
        target.join("orlop-libcontainer")
    })
}

/// Says what is not there to be tested.
pub fn say_missing(found: &[(&'static str, PathBuf)]) {
    for (name, from) in [
        ("crun", "package crun"),
        ("runc", "package runc"),
        (LIBCONTAINER, "cargo build --manifest-path runtime/libcontainer/Cargo.toml"),
    ] {
        if !found.iter().any(|(there, _)| *there == name) {
            println!("skipped: containers by {name}, which is not installed ({from})");
        }
    }
}

/// The handler of a runtime's name.
pub fn handler(name: &str, path: &Path) -> Handler {
    let runtime = OciRuntime { path: path.into(), ..OciRuntime::default() };
    if name == LIBCONTAINER { Handler::Libcontainer(runtime) } else { Handler::Oci(runtime) }
}

pub async fn open(test: &str, name: &str, path: &Path) -> Option<Node> {
    let handler = handler(name, path);
    Node::open_with(test, |options| {
        options.handlers.named.insert(name.to_owned(), handler);
    })
    .await
}

pub async fn sandbox(node: &Node, id: &str, handler: &str) -> SandboxId {
    let mut spec = SandboxSpec::new(SandboxId::new(id).expect("a good id"));
    spec.handler = handler.to_owned();
    node.runtime().create_sandbox(spec).await.expect("create the sandbox").spec.id.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_live_by_other_runtimes() {
    say_missing(&installed());
    for (name, path) in installed() {
        let Some(mut node) = open(&format!("life-{name}"), name, &path).await else { return };
        let pod = sandbox(&node, "pod-1", name).await;
        let (exit, output) = node.script(&pod, "c-1", "echo out; echo err >&2; exit 7").await;
        assert_eq!(exit.status, ExitStatus::Code(7), "{name}: {exit:?}");
        let mut lines: Vec<&str> = output.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["err", "out"], "{name}");

        // A volume, an image as a volume, a tmpfs; then execs, a signal, and the end.
        let volume = node.dir.path().join("volume");
        std::fs::create_dir(&volume).expect("a directory");
        std::fs::write(volume.join("hello"), "from the host\n").expect("written");
        let mut spec = node.spec(
            &pod,
            "c-2",
            "trap 'echo bye; exit 3' TERM; cat /vol/hello; echo ready; while :; do sleep 0.1; done",
        );
        let image = MountSource::Image { lower: vec![node.image.clone()], sub_path: Some("etc".into()) };
        spec.mounts = vec![
            Mount::bind(&volume, "/vol").readonly(),
            Mount { source: image, ..Mount::bind("", "/image") }.readonly(),
            Mount {
                source: MountSource::Tmpfs { size: Some(1 << 20), mode: None },
                ..Mount::bind("", "/tmpfs")
            },
        ];
        let id = node.run(spec).await;
        let done = node.exec(&id, "cat /image/passwd | head -1; echo oops >&2; id -u; exit 5").await;
        assert_eq!(String::from_utf8_lossy(&done.stdout), "root:x:0:0:root:/root:/bin/sh\n0\n", "{name}");
        assert_eq!(
            (String::from_utf8_lossy(&done.stderr).as_ref(), done.status),
            ("oops\n", ExitStatus::Code(5))
        );

        // The daemon dies; the container doesn't notice, and its exit code is known.
        let before = node.container(&id).pid();
        node.reopen().await;
        assert_eq!(node.container(&id).pid(), before, "{name}: the same process");
        let done = node.exec(&id, "echo again").await;
        assert_eq!(String::from_utf8_lossy(&done.stdout), "again\n");
        node.runtime().stop_container(&id, Duration::from_secs(10)).await.expect("stop");
        let exit = node.ended(&id).await;
        assert_eq!(exit.status, ExitStatus::Code(3), "{name}: {exit:?}");
        assert_eq!(node.output("c-2"), "from the host\nready\nbye\n", "{name}");

        // One that doesn't listen is killed.
        let spec = node.spec(&pod, "c-3", "trap '' TERM; while :; do sleep 0.1; done");
        let id = node.run(spec).await;
        node.runtime().stop_container(&id, Duration::from_millis(200)).await.expect("stop");
        assert_eq!(node.ended(&id).await.status, ExitStatus::Signal(9), "{name}");
        node.runtime().remove_sandbox(&pod).await.expect("remove");
        node.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn terminals_come_from_other_runtimes() {
    for (name, path) in installed() {
        let Some(node) = open(&format!("tty-{name}"), name, &path).await else { return };
        let pod = sandbox(&node, "pod-1", name).await;
        let mut spec = node.spec(&pod, "c-1", "tty; stty size; sleep 1000");
        spec.tty = true;
        let id = node.run(spec).await;
        let exec = ExecSpec {
            args: ["/bin/sh", "-c", "tty; stty size"].map(str::to_owned).to_vec(),
            tty: true,
            ..ExecSpec::default()
        };
        let mut session = node.runtime().exec(&id, exec).await.expect("exec");
        let master = std::fs::File::from(session.terminal.take().expect("a terminal"));
        let mut master = tokio::fs::File::from_std(blocking(master));
        let mut text = Vec::new();
        // Reading ends with EIO when the last user of the terminal has gone.
        let _ = tokio::time::timeout(LONG, master.read_to_end(&mut text)).await.expect("in time");
        let text = String::from_utf8_lossy(&text).replace('\r', "");
        let status = session.wait().await;
        assert!(text.starts_with("/dev/") && text.ends_with("24 80\n"), "{name}: {text:?}, {status:?}");
        assert_eq!(status, ExitStatus::Code(0));
        let deadline = tokio::time::Instant::now() + LONG;
        loop {
            let log = node.output("c-1").replace('\r', "");
            if log.contains("24 80") {
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "{name}: {log:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        node.close().await;
    }
}

fn blocking(file: std::fs::File) -> std::fs::File {
    let flags = rustix::fs::fcntl_getfl(&file).expect("flags");
    rustix::fs::fcntl_setfl(&file, flags - rustix::fs::OFlags::NONBLOCK).expect("set");
    file
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_is_said() {
    let Some(node) = open("wrong", "broken", Path::new("/bin/false")).await else { return };
    let mut spec = SandboxSpec::new(SandboxId::new("pod-0").expect("an id"));
    spec.handler = "kata".into();
    let error = node.runtime().create_sandbox(spec).await.expect_err("unknown");
    assert!(
        matches!(&error, RuntimeError::Invalid { what } if what.contains("kata") && what.contains("orlop, broken"))
    );
    let pod = sandbox(&node, "pod-1", "broken").await;
    let spec = node.spec(&pod, "c-1", "true");
    node.runtime().create_container(spec.clone()).await.expect("create");
    let error = node.runtime().start_container(&spec.id).await.expect_err("a broken runtime");
    let text = format!("{error:?}");
    assert!(text.contains("ended with exit code 1"), "{text}");
    node.close().await;

    for (name, path) in installed() {
        let Some(node) = open(&format!("wrong-{name}"), name, &path).await else { return };
        let pod = sandbox(&node, "pod-1", name).await;
        let mut spec = node.spec(&pod, "c-1", "");
        spec.args = vec!["/nowhere/at-all".into()];
        node.runtime().create_container(spec.clone()).await.expect("create");
        let error = node.runtime().start_container(&spec.id).await.expect_err("no program");
        assert!(matches!(error, StartError::NotFound { .. }), "{name}: {error:?}");
        let id = node.run(node.spec(&pod, "c-2", "sleep 1000")).await;
        let args = vec!["/nowhere/at-all".to_owned()];
        let error = node.runtime().exec_sync(&id, args, None).await.expect_err("no program");
        assert!(matches!(error, runtime::ExecError::NotFound { .. }), "{name}: {error:?}");
        node.close().await;
    }
}
