//! The daemon dies, the keeper dies, the keeper is upgraded.

use std::os::fd::{AsFd, OwnedFd};

use keeper::client::LaunchReply;
use keeper::plan::*;
use keeper::protocol::{ExitHow, HandoverContainer, SignalTarget};

use crate::common::{Fixture, binary, eventually, process};
use crate::keeper_test;

/// A script that writes numbered lines until its standard input says stop.
const COUNT: &str = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; done; echo end";

fn assert_counted(lines: &[String], upto: usize) {
    for (at, line) in lines.iter().take(upto).enumerate() {
        assert_eq!(line, &format!("stdout F line {}", at + 1));
    }
}

keeper_test!(the_daemon_dies_and_nothing_is_lost, f, {
    let plan = f.plan("count", COUNT);
    let pid = f.start(plan).await.launched.process;
    let plan = f.plan("short", "exit 17");
    f.start(plan).await;
    let state = f.reconnect().await;
    assert_eq!(state.containers.iter().find(|c| c.id == "count").unwrap().process, pid);
    eventually("the end", || f.log("count").ends_with("end\n")).await;
    let lines = f.lines("count");
    assert_eq!(lines.len(), 3001);
    assert_counted(&lines, 3000);
    // An exit that happened meanwhile is in the state.
    loop {
        let state = f.reconnect().await;
        if let Some(exit) = state.containers.iter().find(|c| c.id == "short").unwrap().exit {
            assert_eq!(exit.how, ExitHow::Code(17));
            break;
        }
    }
});

keeper_test!(a_new_daemon_takes_over_from_a_connected_one, f, {
    let (second, _, _events) = keeper::client::Keeper::connect(&f.socket()).await.unwrap();
    assert!(f.events.recv().await.is_none());
    assert!(f.keeper.state().await.is_err());
    second.state().await.unwrap();
});

keeper_test!(an_upgrade_is_noticed_by_nobody, f, {
    let plan = f.plan("count", COUNT);
    f.start(plan).await;
    let mut plan = f.plan("cat", "printf half; read x; echo rest $x; exit 6");
    plan.0.stdio = Stdio::Pipes { stdin: true };
    let reply = f.start(plan).await;
    let plan = f.plan("idle", "sleep 1000");
    f.start(plan).await;
    let exec = ExecPlan {
        container: "idle".to_owned(),
        id: "x".to_owned(),
        process: process(&["sh", "-c", "sleep 0.2; exit 8"]),
        stdio: ExecStdio::Streams { stdin: None, stdout: None, stderr: None },
        cgroup: None,
        oom_score_adj: None,
        stream_owner: None,
        patience: None,
    };
    f.keeper.exec(exec, Fds::default()).await.unwrap();
    let streams = f.keeper.attach("cat", false, true, false).await.unwrap();
    let mut first = [0; 10];
    let _ = rustix::io::read(streams.stdout.as_ref().unwrap(), &mut first);
    for _ in 0..3 {
        f.keeper.upgrade(binary()).await.unwrap();
    }
    assert_eq!(f.keeper.state().await.unwrap().containers.len(), 3);
    rustix::io::write(reply.streams.stdin.as_ref().unwrap(), b"now\n").unwrap();
    let mut exits = Vec::new();
    for _ in 0..3 {
        let (id, exit) = f.exit().await;
        exits.push((id, exit.how));
    }
    exits.sort_by(|a, b| a.0.cmp(&b.0));
    let expected =
        [("cat", 6), ("count", 0), ("x", 8)].map(|(id, code)| (id.to_owned(), ExitHow::Code(code)));
    assert_eq!(exits, expected);
    assert_eq!(f.lines("cat"), ["stdout F halfrest now"]);
    let lines = f.lines("count");
    assert_eq!(lines.len(), 3001);
    assert_counted(&lines, 3000);
    // A binary that cannot run leaves the old keeper in place.
    let error = f.keeper.upgrade(b"junk").await.unwrap_err();
    assert!(error.to_string().contains("exec"), "{error}");
    f.keeper.state().await.unwrap();
});

fn handover(
    f: &Fixture,
    id: &str,
    reply: &LaunchReply,
    stdio: Stdio,
    fds: &mut Fds,
    with_fds: bool,
) -> HandoverContainer {
    let mut dup =
        |fd: Option<&OwnedFd>| fd.filter(|_| with_fds).map(|fd| fds.add(rustix::io::dup(fd).unwrap()));
    let pidfd = dup(Some(&reply.pidfd));
    let (stdin, stdout) = (dup(reply.streams.stdin.as_ref()), dup(reply.streams.stdout.as_ref()));
    let (stderr, terminal) = (dup(reply.streams.stderr.as_ref()), dup(reply.streams.terminal.as_ref()));
    HandoverContainer {
        id: id.to_owned(),
        init: false,
        process: reply.launched.process,
        started_at: reply.launched.started_at,
        stdio,
        stdin_once: false,
        pidfd,
        stdin,
        stdout,
        stderr,
        terminal,
        log: Some(fds.add(f.open_log(id))),
        cgroup: Some(fds.add(rustix::io::dup(f.group(id).fd()).unwrap())),
    }
}

keeper_test!(the_keeper_dies_and_another_takes_over, f, {
    let stdio = Stdio::Pipes { stdin: true };
    let script = "echo before; read x; echo after; echo errors >&2; read x; exit 11";
    let mut replies = Vec::new();
    for id in ["given", "reopened"] {
        let mut plan = f.plan(id, script);
        plan.0.stdio = stdio;
        replies.push(f.start(plan).await);
        eventually("the first line", || !f.lines(id).is_empty()).await;
    }
    let mut plan = f.plan("gone", "read x; exit 5");
    plan.0.stdio = stdio;
    let gone = f.start(plan).await;
    let mut plan = f.plan("tty", "echo t1; read x; echo t2; read x");
    plan.0.stdio = Stdio::Terminal { columns: 80, rows: 24 };
    let terminal = f.start(plan).await;
    eventually("the first line", || !f.lines("tty").is_empty()).await;

    f.kill_keeper().await;
    // One container writes and one ends while nobody is there.
    rustix::io::write(replies[0].streams.stdin.as_ref().unwrap(), b"go\n").unwrap();
    rustix::io::write(gone.streams.stdin.as_ref().unwrap(), b"go\n").unwrap();
    f.replace_keeper_after_death().await;

    let mut fds = Fds::default();
    let containers = vec![
        handover(&f, "given", &replies[0], stdio, &mut fds, true),
        handover(&f, "reopened", &replies[1], stdio, &mut fds, false),
        handover(&f, "gone", &gone, stdio, &mut fds, true),
        handover(&f, "tty", &terminal, Stdio::Terminal { columns: 80, rows: 24 }, &mut fds, true),
    ];
    let results = f.keeper.handover(containers, fds).await.unwrap();
    assert!(results.iter().all(Result::is_ok), "{results:?}");

    let (id, exit) = f.exit().await;
    assert_eq!(id, "gone");
    if sys::features::get().pidfd_exit_info {
        assert_eq!(exit.how, ExitHow::Code(5));
    } else {
        assert_eq!(exit.how, ExitHow::Unknown);
    }
    rustix::io::write(replies[1].streams.stdin.as_ref().unwrap(), b"go\n").unwrap();
    rustix::io::write(terminal.streams.terminal.as_ref().unwrap(), b"go\n").unwrap();
    for id in ["given", "reopened"] {
        eventually("the second line", || f.log(id).contains("errors")).await;
        let mut lines = f.lines(id);
        lines.sort();
        assert_eq!(lines, ["stderr F errors", "stdout F after", "stdout F before"], "{id}");
    }
    eventually("the terminal's second line", || f.log("tty").contains("t2")).await;
    for reply in &replies {
        rustix::io::write(reply.streams.stdin.as_ref().unwrap(), b"go\n").unwrap();
        let (id, exit) = f.exit().await;
        assert!(["given", "reopened"].contains(&id.as_str()));
        if sys::features::get().pidfd_exit_info {
            assert_eq!(exit.how, ExitHow::Code(11), "{id}");
        }
    }
    f.keeper.signal("tty", 9, SignalTarget::Cgroup).await.unwrap();
    assert_eq!(f.exit().await.0, "tty");
});

keeper_test!(a_number_that_belongs_to_another_process_is_not_taken_over, f, {
    let plan = f.plan("box", "sleep 1000");
    let mut reply = f.start(plan).await;
    f.kill_keeper().await;
    f.replace_keeper_after_death().await;
    reply.launched.process.start_ticks += 1;
    let mut fds = Fds::default();
    let container = handover(&f, "box", &reply, Stdio::Pipes { stdin: false }, &mut fds, false);
    f.keeper.handover(vec![container], fds).await.unwrap()[0].as_ref().unwrap();
    assert_eq!(f.exit().await.1.how, ExitHow::Unknown);
});

keeper_test!(the_keeper_is_small_and_holds_no_host_mounts, f, {
    for n in 0..100 {
        let plan = f.plan(&format!("c{n}"), "sleep 1000");
        f.start(plan).await;
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", f.keeper_pid())).unwrap();
    let rss = status.lines().find(|l| l.starts_with("VmRSS")).unwrap().to_owned();
    println!("keeper with 100 containers: {rss}");
    let kb: u64 = rss.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kb < 6 * 1024, "{rss} (unoptimised build)");
    let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", f.keeper_pid())).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    let (keeper, _, _) = keeper::client::Keeper::connect(&f.socket()).await.unwrap();
    let refused = keeper.quit().await.unwrap_err();
    assert!(refused.to_string().contains("100 containers"), "{refused}");
});

keeper_test!(a_second_keeper_does_not_start, f, {
    let log = std::fs::File::create(f.dir.path().join("second.err")).unwrap();
    let _second = keeper::client::spawn(binary(), &f.socket(), Some(log.as_fd())).unwrap();
    eventually("the refusal", || {
        std::fs::read_to_string(f.dir.path().join("second.err")).unwrap().contains("already listens")
    })
    .await;
    f.reconnect().await;
});
