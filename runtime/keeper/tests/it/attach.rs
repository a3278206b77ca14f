//! Live output, input, terminals.

use std::os::fd::OwnedFd;

use keeper::client::ClientError;
use keeper::plan::*;
use keeper::protocol::{ExitHow, FailureKind};

use crate::common::eventually;
use crate::keeper_test;

/// What can be read at once from a non-blocking descriptor.
fn available(fd: &OwnedFd) -> String {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(len @ 1..) = rustix::io::read(fd, &mut buffer) {
        text.extend_from_slice(&buffer[..len]);
    }
    String::from_utf8_lossy(&text).into_owned()
}

keeper_test!(input_and_output_of_pipes, f, {
    let mut plan = f.plan("cat", "cat; echo done >&2");
    plan.0.stdio = Stdio::Pipes { stdin: true };
    let reply = f.start(plan).await;
    let streams = f.keeper.attach("cat", true, true, true).await.unwrap();
    let stdin = streams.stdin.unwrap();
    rustix::io::write(&stdin, b"hello\n").unwrap();
    let mut seen = String::new();
    eventually("the echo", || {
        seen += &available(streams.stdout.as_ref().unwrap());
        seen == "hello\n"
    })
    .await;
    // The daemon's own ends, then the keeper's: the container sees the end of its input.
    drop((stdin, reply.streams.stdin));
    f.keeper.close_stdin("cat").await.unwrap();
    assert_eq!(f.exit().await.1.how, ExitHow::Code(0));
    assert_eq!(available(&streams.stderr.unwrap()), "done\n");
    let mut lines = f.lines("cat");
    lines.sort();
    assert_eq!(lines, ["stderr F done", "stdout F hello"]);
    let gone = f.keeper.attach("cat", true, true, true).await.unwrap_err();
    assert!(matches!(gone, ClientError::Keeper(failure) if failure.kind == FailureKind::WrongState));
});

keeper_test!(a_terminal, f, {
    let mut plan = f.plan("tty", "tty; stty size; ls -l /dev/console | wc -l; test -c /dev/console && echo console > /dev/console; read x; echo got $x; stty size");
    plan.0.stdio = Stdio::Terminal { columns: 90, rows: 30 };
    f.start(plan).await;
    let streams = f.keeper.attach("tty", true, true, true).await.unwrap();
    assert!(streams.stderr.is_none());
    eventually("the prompt", || f.log("tty").contains("console")).await;
    f.keeper.resize("tty", 100, 40).await.unwrap();
    rustix::io::write(streams.terminal.unwrap(), b"word\n").unwrap();
    assert_eq!(f.exit().await.1.how, ExitHow::Code(0));
    let log = f.log("tty").replace('\r', "");
    for part in ["/dev/pts/0\n", "30 90\n", "F console\n", "got word\n", "40 100\n"] {
        assert!(log.contains(part), "{part:?} in {log}");
    }
    assert!(available(&streams.stdout.unwrap()).contains("got word"));
});

keeper_test!(a_reader_that_does_not_read_is_cut_off_and_the_container_goes_on, f, {
    let mut plan = f.plan("much", "read x; seq 1 400000; echo end");
    plan.0.stdio = Stdio::Pipes { stdin: true };
    let reply = f.start(plan).await;
    let streams = f.keeper.attach("much", false, true, false).await.unwrap();
    rustix::io::write(reply.streams.stdin.as_ref().unwrap(), b"go\n").unwrap();
    assert_eq!(f.exit().await.1.how, ExitHow::Code(0));
    let lines = f.lines("much");
    assert_eq!((lines.len(), lines.last().unwrap().as_str()), (400_001, "stdout F end"));
    let seen = available(&streams.stdout.unwrap());
    assert!(seen.starts_with("1\n2\n") && !seen.ends_with("end\n"));
});

keeper_test!(a_log_is_reopened_between_lines, f, {
    let mut plan = f.plan("log", "echo one; read x; echo two");
    plan.0.stdio = Stdio::Pipes { stdin: true };
    let reply = f.start(plan).await;
    eventually("the first line", || !f.lines("log").is_empty()).await;
    std::fs::rename(f.log_path("log"), f.log_path("old")).unwrap();
    let file = f.open_log("log");
    f.keeper.reopen_log("log", std::os::fd::AsFd::as_fd(&file)).await.unwrap();
    rustix::io::write(reply.streams.stdin.as_ref().unwrap(), b"\n").unwrap();
    f.exit().await;
    assert_eq!(
        (f.lines("old"), f.lines("log")),
        (vec!["stdout F one".to_owned()], vec!["stdout F two".to_owned()])
    );
});

keeper_test!(a_full_disk_does_not_stop_a_container, f, {
    let mut plan = f.plan("full", "seq 1 100000; exit 4");
    let full = rustix::fs::open("/dev/full", rustix::fs::OFlags::WRONLY, rustix::fs::Mode::empty()).unwrap();
    plan.0.log = Some(plan.1.add(full));
    f.start(plan).await;
    assert_eq!(f.exit().await.1.how, ExitHow::Code(4));
    assert!(f.keeper.state().await.unwrap().containers[0].log_bytes_lost > 500_000);
});

keeper_test!(readers_that_go_are_let_go, f, {
    let mut plan = f.plan("quiet", "read x");
    plan.0.stdio = Stdio::Pipes { stdin: true };
    let reply = f.start(plan).await;
    // It answers one after the other, so the copies that it sent with the last answer are closed by now.
    f.keeper.state().await.unwrap();
    let open = || std::fs::read_dir(format!("/proc/{}/fd", f.keeper_pid())).unwrap().count();
    let before = open();
    let kept = f.keeper.attach("quiet", true, true, true).await.unwrap();
    for _ in 0..50 {
        f.keeper.attach("quiet", true, true, true).await.unwrap();
    }
    // It writes nothing, so that nothing but their going tells of it.
    eventually("the readers' pipes to be closed", || open() == before + 2).await;
    drop((kept, reply.streams.stdin));
    eventually("the last one's, too", || open() == before).await;
    f.keeper.close_stdin("quiet").await.unwrap();
    f.exit().await;
});
