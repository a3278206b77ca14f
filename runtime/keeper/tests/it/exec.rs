//! Processes in running containers.

use std::io::Read;

use keeper::client::ClientError;
use keeper::plan::*;
use keeper::protocol::{ExitHow, FailureKind, SignalTarget};

use crate::common::{Fixture, c, process};
use crate::keeper_test;

fn exec_plan(container: &str, id: &str, args: &[&str]) -> ExecPlan {
    ExecPlan {
        container: container.to_owned(),
        id: id.to_owned(),
        process: process(args),
        stdio: ExecStdio::Streams { stdin: None, stdout: None, stderr: None },
        cgroup: None,
        oom_score_adj: None,
        stream_owner: None,
    }
}

/// Runs a script in a container; returns its exit code and standard output.
async fn run(f: &mut Fixture, container: &str, id: &str, script: &str) -> (i32, String) {
    let mut plan = exec_plan(container, id, &["sh", "-c", script]);
    let (ours, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let mut fds = Fds::default();
    let stdout = Some(fds.add(theirs));
    plan.stdio = ExecStdio::Streams { stdin: None, stdout, stderr: None };
    f.keeper.exec(plan, fds).await.unwrap();
    let (ended, exit) = f.exit().await;
    assert_eq!(ended, id);
    let mut text = String::new();
    std::fs::File::from(ours).read_to_string(&mut text).unwrap();
    (exit.how.shell_code(), text)
}

keeper_test!(an_exec_lives_in_the_container, f, {
    let plan = f.plan("box", "sleep 1000");
    f.start(plan).await;
    let script = "hostname; readlink /proc/1/exe; echo $(ls /proc/self/fd); cat /proc/self/cgroup | grep ^0::; \
                  grep NoNewPrivs /proc/self/status | tr '\\t' ' '; pwd; cat; exit 5";
    let (code, text) = run(&mut f, "box", "x", script).await;
    assert_eq!((code, text.as_str()), (5, "box\n/bin/busybox\n0 1 2 3\n0::/\nNoNewPrivs: 1\n/\n"));
    f.keeper.signal("box", 9, SignalTarget::Cgroup).await.unwrap();
    assert_eq!(f.exit().await.1.how, ExitHow::Signal(9));
});

keeper_test!(an_exec_with_a_terminal, f, {
    let plan = f.plan("box", "sleep 1000");
    f.start(plan).await;
    let mut plan = exec_plan("box", "t", &["sh", "-c", "tty; stty size; ls -l /proc/self/fd/0 | wc -l"]);
    plan.stdio = ExecStdio::Terminal { columns: 111, rows: 22 };
    plan.process.user.uid = 1000;
    let reply = f.keeper.exec(plan, Fds::default()).await.unwrap();
    let master = reply.terminal.unwrap();
    assert_eq!(f.exit().await.1.how, ExitHow::Code(0));
    let mut text = [0; 1000];
    let len = rustix::io::read(&master, &mut text).unwrap();
    let text = String::from_utf8_lossy(&text[..len]).replace("\r\n", " ");
    assert!(text.starts_with("/dev/pts/0 22 111"), "{text}");
});

keeper_test!(exec_failures_are_clear, f, {
    let plan = f.plan("box", "sleep 1000");
    f.start(plan).await;
    let message = |e: ClientError| match e {
        ClientError::Keeper(failure) => (failure.kind, failure.message),
        other => panic!("{other}"),
    };
    let (kind, text) =
        message(f.keeper.exec(exec_plan("box", "x", &["nope"]), Fds::default()).await.unwrap_err());
    assert_eq!(
        (kind, text.as_str()),
        (FailureKind::CommandNotFound, "exec \"nope\": executable file not found in $PATH")
    );
    let (kind, _) =
        message(f.keeper.exec(exec_plan("none", "x", &["sh"]), Fds::default()).await.unwrap_err());
    assert_eq!(kind, FailureKind::NotFound);
    let mut plan = exec_plan("box", "x", &["sh"]);
    plan.process.cwd = c("/proc/self/fd/5");
    message(f.keeper.exec(plan, Fds::default()).await.unwrap_err());
    f.keeper.signal("box", 9, SignalTarget::Main).await.unwrap();
    f.exit().await;
    let (kind, _) = message(f.keeper.exec(exec_plan("box", "x", &["sh"]), Fds::default()).await.unwrap_err());
    assert_eq!(kind, FailureKind::WrongState);
});

keeper_test!(many_at_once, f, {
    let plan = f.plan("box", "sleep 1000");
    f.start(plan).await;
    let plans: Vec<ExecPlan> = (0..20).map(|n| exec_plan("box", &format!("x{n}"), &["true"])).collect();
    let mut tasks = Vec::new();
    for plan in plans {
        let keeper = f.keeper.clone();
        tasks.push(tokio::spawn(async move { keeper.exec(plan, Fds::default()).await.unwrap().pid }));
    }
    for task in tasks {
        assert!(task.await.unwrap() > 0);
    }
    for _ in 0..20 {
        assert_eq!(f.exit().await.1.how, ExitHow::Code(0));
    }
});
