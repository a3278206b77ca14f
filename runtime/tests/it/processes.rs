//! Exec, attach, logs, stats, limits.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use runtime::{ExecError, ExecSpec, ExitStatus, Resources};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;

use crate::node::{LONG, Node};

#[tokio::test(flavor = "multi_thread")]
async fn exec_sync_collects_and_kills() {
    let Some(node) = Node::open("exec-sync").await else { return };
    let sandbox = node.sandbox("pod-1").await;
    let id = node.run(node.spec(&sandbox, "c-1", "sleep 1000")).await;
    let output = node.exec(&id, "echo out; echo err >&2; exit 5").await;
    assert_eq!((&*output.stdout, &*output.stderr), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!((output.status, output.timed_out), (ExitStatus::Code(5), false));
    let output =
        node.exec(&id, "grep -E 'Seccomp:|CapInh' /proc/self/status; ls /proc/self/fd | wc -l").await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "CapInh:\t0000000000000000\nSeccomp:\t2\n4\n");

    let args = ["/bin/sleep", "1000"].map(str::to_owned).to_vec();
    let started = Instant::now();
    let output = node.runtime().exec_sync(&id, args, Some(Duration::from_millis(100))).await.expect("exec");
    assert!(output.timed_out && started.elapsed() < LONG);
    assert_eq!(output.status, ExitStatus::Signal(9));

    // A process left behind with the pipe open does not hold the answer.
    let output = node.exec(&id, "sleep 1000 & echo done").await;
    assert_eq!(output.stdout, b"done\n");

    let output = node.exec(&id, "head -c 20000000 /dev/zero").await;
    assert_eq!((output.stdout.len(), output.status), (16 << 20, ExitStatus::Code(0)));

    let error = node.runtime().exec_sync(&id, vec!["nothing".into()], None).await.expect_err("refused");
    assert!(matches!(error, ExecError::NotFound { .. }), "{error:?}");
    node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_streams_and_terminals() {
    let Some(node) = Node::open("exec").await else { return };
    let sandbox = node.sandbox("pod-1").await;
    let id = node.run(node.spec(&sandbox, "c-1", "sleep 1000")).await;
    let exec = ExecSpec { args: vec!["cat".into()], stdin: true, stdout: true, ..ExecSpec::default() };
    let mut session = node.runtime().exec(&id, exec).await.expect("exec");
    let mut stdin = pipe::Sender::from_owned_fd(session.stdin.take().expect("stdin")).expect("a pipe");
    stdin.write_all(b"hello").await.expect("written");
    drop(stdin);
    let mut text = String::new();
    let mut stdout = pipe::Receiver::from_owned_fd(session.stdout.take().expect("stdout")).expect("a pipe");
    stdout.read_to_string(&mut text).await.expect("read");
    assert_eq!(text, "hello");
    assert_eq!(session.wait().await, ExitStatus::Code(0));

    let args = ["/bin/sh", "-c", "tty; stty size; echo $TERM; read x; stty size; exit 9"]
        .map(str::to_owned)
        .to_vec();
    let exec = ExecSpec { args, tty: true, stdin: true, stdout: true, ..ExecSpec::default() };
    let session = node.runtime().exec(&id, exec).await.expect("exec");
    let master = session.terminal.as_ref().expect("a terminal").try_clone().expect("a copy");
    let reading = tokio::task::spawn_blocking(move || read_until_closed(master));
    session.resize(123, 45).expect("resize");
    let master = session.terminal.as_ref().expect("a terminal");
    rustix::io::write(master, b"go\n").expect("written");
    assert_eq!(tokio::time::timeout(LONG, session.wait()).await.expect("in time"), ExitStatus::Code(9));
    drop(session);
    let text = reading.await.expect("read");
    assert!(text.contains("/dev/pts/") && text.contains("45 123") && text.contains("xterm"), "{text}");
    node.close().await;
}

/// Reads a non-blocking terminal until its other side is closed.
fn read_until_closed(master: OwnedFd) -> String {
    let mut text = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        let mut poll = [rustix::event::PollFd::new(&master, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut poll, None).expect("poll");
        match rustix::io::read(&master, &mut buffer) {
            Ok(0) | Err(rustix::io::Errno::IO) => return String::from_utf8_lossy(&text).into_owned(),
            Ok(len) => text.extend_from_slice(&buffer[..len]),
            Err(rustix::io::Errno::AGAIN) => {}
            Err(errno) => panic!("read a terminal: {errno}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attach_sees_and_feeds() {
    let Some(node) = Node::open("attach").await else { return };
    let sandbox = node.sandbox("pod-1").await;
    let mut spec = node.spec(&sandbox, "c-1", "while read line; do echo got $line; done; echo end");
    spec.stdin = true;
    spec.stdin_once = true;
    let id = node.run(spec).await;
    let session = node.runtime().attach(&id).await.expect("attach");
    assert!(!session.tty && session.stdin_once);
    let stdin = session.stdin.expect("stdin");
    rustix::io::write(&stdin, b"one\ntwo\n").expect("written");
    drop(stdin);
    node.runtime().close_stdin(&id).await.expect("close");
    let stdout = session.stdout.expect("stdout");
    let reading = tokio::task::spawn_blocking(move || read_until_closed(stdout));
    node.ended(&id).await;
    let text = tokio::time::timeout(LONG, reading).await.expect("in time").expect("read");
    assert_eq!(text, "got one\ngot two\nend\n");
    assert_eq!(node.output("c-1"), text);
    node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_reopened() {
    let Some(node) = Node::open("logs").await else { return };
    let sandbox = node.sandbox("pod-1").await;
    let mut spec = node.spec(&sandbox, "c-1", "read x; echo first; read x; echo second");
    spec.stdin = true;
    let id = node.run(spec).await;
    let stdin = node.runtime().attach(&id).await.expect("attach").stdin.expect("stdin");
    rustix::io::write(&stdin, b"\n").expect("written");
    let wait = async {
        while node.output("c-1") != "first\n" {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LONG, wait).await.expect("the first line is written");
    std::fs::rename(node.log("c-1"), node.log("c-1.old")).expect("rotated");
    node.runtime().reopen_log(&id).await.expect("reopen");
    rustix::io::write(&stdin, b"\n").expect("written");
    node.ended(&id).await;
    assert_eq!((node.output("c-1.old"), node.output("c-1")), ("first\n".into(), "second\n".into()));
    node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stats_and_limits_are_as_good_as_the_node() {
    let Some(node) = Node::open("stats").await else { return };
    let sandbox = node.sandbox("pod-1").await;
    let script = "head -c 100000 /dev/zero > /file; echo ready; sleep 1000 & while true; do :; done";
    let mut spec = node.spec(&sandbox, "c-1", script);
    spec.resources =
        Resources { memory_limit: Some(64 << 20), cpu_shares: Some(512), ..Resources::default() };
    let id = node.run(spec).await;
    crate::life::ready(&node, "c-1").await;
    let wait = async {
        loop {
            let stats = node.runtime().stats(&id).await.expect("stats");
            if stats.cpu_ns > 0 && stats.pids >= 2 && stats.memory_bytes > 0 {
                return stats;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let stats = tokio::time::timeout(LONG, wait).await.expect("the container uses something");
    assert!(stats.writable_inodes >= 1, "{stats:?}");
    let missing = &node.runtime().capabilities().missing_controllers;
    let unenforced = node.container(&id).unenforced;
    let says = |what: &str| unenforced.iter().any(|sentence| sentence.starts_with(what));
    assert_eq!(says("memory.max"), missing.iter().any(|name| name == "memory"), "{unenforced:?}");
    assert_eq!(says("cpu.weight"), missing.iter().any(|name| name == "cpu"), "{unenforced:?}");
    let more = Resources { memory_limit: Some(128 << 20), ..Resources::default() };
    node.runtime().update_container(&id, more).await.expect("update");
    let resources = node.container(&id).spec.resources.clone();
    assert_eq!((resources.memory_limit, resources.cpu_shares), (Some(128 << 20), Some(512)));
    node.close().await;
}
