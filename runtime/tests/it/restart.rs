//! The daemon dies, the keeper dies, both die: what becomes of containers.

use std::time::Duration;

use runtime::{ContainerId, ContainerState, ExitReason, ExitStatus, OpenError, Runtime};

use crate::node::{LONG, Node, processes};

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_dies_is_not_noticed() {
    let Some(mut node) = Node::open("daemon").await else { return };
    let sandbox = node.sandbox("pod-1").await;
    let counter = "i=0; while true; do i=$((i+1)); echo $i; usleep 1000; done";
    let counting = node.run(node.spec(&sandbox, "counting", counter)).await;
    let mut spec = node.spec(&sandbox, "ending", "echo ready; read x; exit 42");
    spec.stdin = true;
    let ending = node.run(spec).await;
    let stdin = node.runtime().attach(&ending).await.expect("attach").stdin.expect("stdin");
    let created = node.spec(&sandbox, "created", "echo late");
    let created_id = created.id.clone();
    node.runtime().create_container(created).await.expect("create");
    node.runtime().set_sandbox_meta(&sandbox, serde_json::json!({"ip": "10.0.0.1"})).await.expect("meta");
    let pid = node.container(&counting).pid();
    let lines = node.output("counting").lines().count();

    node.crash();
    rustix::io::write(&stdin, b"\n").expect("written");
    drop(stdin);
    let wait = async {
        while node.output("counting").lines().count() < lines + 50 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LONG, wait).await.expect("the log goes on without a daemon");
    node.reopen().await;

    assert_eq!(node.container(&counting).pid(), pid);
    assert_eq!(node.ended(&ending).await.status, ExitStatus::Code(42));
    let meta = node.runtime().sandbox(&sandbox).expect("known").meta;
    assert_eq!(*meta, serde_json::json!({"ip": "10.0.0.1"}));
    node.runtime().start_container(&created_id).await.expect("start what an earlier daemon created");
    node.ended(&created_id).await;
    assert_eq!(node.output("created"), "late\n");
    assert_eq!(node.exec(&counting, "echo still here").await.stdout, b"still here\n");
    node.runtime().stop_container(&counting, Duration::ZERO).await.expect("stop");
    no_gap(&node.output("counting"));
    node.close().await;
}

/// Every number once, in order.
fn no_gap(output: &str) {
    for (index, line) in output.lines().enumerate() {
        assert_eq!(line, (index + 1).to_string(), "a line is missing or doubled");
    }
    assert!(output.lines().count() > 10, "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_is_refused() {
    let Some(node) = Node::open("second").await else { return };
    let error = Runtime::open(node.options.clone()).await.expect_err("refused");
    assert!(matches!(error, OpenError::Locked { .. }), "{error:?}");
    assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
    node.close().await;
}

/// The process id of a node's keeper.
fn keeper(node: &Node) -> Option<i32> {
    let socket = node.options.run.join("keeper.sock").to_string_lossy().into_owned();
    let own = |line: &str| line.starts_with("orlop-keeper") && line.contains(&socket);
    processes().into_iter().find(|(_, line)| own(line)).and_then(|(pid, _)| pid.parse().ok())
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).expect("a process id");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
}

async fn until_exec_works(node: &Node, id: &ContainerId) {
    let wait = async {
        loop {
            let args = vec!["/bin/true".to_owned()];
            match node.runtime().exec_sync(id, args, Some(LONG)).await {
                Ok(output) if output.status == ExitStatus::Code(0) => return,
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    tokio::time::timeout(LONG, wait).await.expect("the new keeper works");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_that_dies_is_replaced() {
    let Some(node) = Node::open("keeper").await else { return };
    let sandbox = node.sandbox("pod-1").await;
    let counter = "i=0; while true; do i=$((i+1)); echo $i; usleep 1000; done";
    let counting = node.run(node.spec(&sandbox, "counting", counter)).await;
    let pid = node.container(&counting).pid();
    let old = keeper(&node).expect("a keeper runs");
    kill(old);
    until_exec_works(&node, &counting).await;
    assert_ne!(keeper(&node), Some(old));
    assert_eq!(node.container(&counting).pid(), pid);
    let lines = node.output("counting").lines().count();
    let wait = async {
        while node.output("counting").lines().count() < lines + 20 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LONG, wait).await.expect("the log goes on");
    node.runtime().stop_container(&counting, Duration::ZERO).await.expect("stop");
    let exit = node.ended(&counting).await;
    let known = node.runtime().capabilities().pidfd_exit_info;
    let want = if known { ExitStatus::Signal(9) } else { ExitStatus::Unknown };
    assert_eq!(exit.status, want);
    no_gap(&node.output("counting"));
    // And a new container is started by the new keeper.
    let (exit, _) = node.script(&sandbox, "c-2", "exit 3").await;
    assert_eq!(exit.status, ExitStatus::Code(3));
    node.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_die_and_the_node_recovers() {
    let Some(mut node) = Node::open("both").await else { return };
    let sandbox = node.sandbox("pod-1").await;
    let living = node.run(node.spec(&sandbox, "living", "while true; do echo x; sleep 0.05; done")).await;
    let dying = node.run(node.spec(&sandbox, "dying", "sleep 1000")).await;
    let pid = node.container(&living).pid();
    let victim = node.container(&dying).pid().expect("it runs");
    node.crash();
    kill(keeper(&node).expect("a keeper runs"));
    kill(i32::try_from(victim).expect("a process id"));
    node.reopen().await;
    assert_eq!(node.container(&living).pid(), pid);
    let exit = node.ended(&dying).await;
    // Whoever adopted it may not have reaped it yet, and then the kernel still knows its end.
    match exit.status {
        ExitStatus::Unknown => assert_eq!(exit.reason, ExitReason::Unknown),
        other => assert_eq!(other, ExitStatus::Signal(9)),
    }
    until_exec_works(&node, &living).await;
    node.runtime().stop_container(&living, Duration::ZERO).await.expect("stop");
    assert!(matches!(node.container(&living).state, ContainerState::Exited(_)));
    node.runtime().remove_sandbox(&sandbox).await.expect("remove");
    node.close().await;
}
