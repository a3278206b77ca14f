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
        patience: None,
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

keeper_test!(each_process_that_is_started_has_a_session_keyring_of_its_own, f, {
    if !std::path::Path::new("/proc/keys").exists() {
        println!("skipped: this kernel has no keyrings");
        return;
    }
    // Others of the same user see nothing of it, so what is listed is its own.
    let script = "grep '3f000000 .*keyring *_ses' /proc/keys";
    let mut found = Vec::new();
    for id in ["one", "two"] {
        let mut plan = f.plan(id, &format!("{script}; sleep 1000"));
        plan.0.masked_paths.clear();
        f.start(plan).await;
        crate::common::eventually("its keyring is listed", || !f.lines(id).is_empty()).await;
        found.extend(f.lines(id));
    }
    let (_, of_exec) = run(&mut f, "one", "x", script).await;
    found.extend(of_exec.lines().map(|line| format!("stdout F {line}")));
    assert_eq!(found.len(), 3, "{found:?}");
    let serials: std::collections::BTreeSet<_> = found.iter().map(|line| line.split(' ').nth(2)).collect();
    assert_eq!(serials.len(), 3, "{found:?}");
});

keeper_test!(a_filter_that_forbids_the_last_steps_is_in_force_and_does_not_hinder_them, f, {
    let plan = f.plan("box", "sleep 1000");
    f.start(plan).await;
    // setsid, clone3, ioctl and write give EPERM; the rest is allowed. The program's own writes are writev.
    let calls = [libc::SYS_setsid, libc::SYS_clone3, libc::SYS_ioctl, libc::SYS_write];
    let mut filter = vec![(0x20_u16, 0_u8, 0_u8, 0_u32)];
    for (at, call) in calls.into_iter().enumerate() {
        filter.push((0x15, (calls.len() - at) as u8, 0, call as u32));
    }
    filter.push((0x06, 0, 0, 0x7fff_0000));
    filter.push((0x06, 0, 0, 0x0005_0000 | 1));
    let mut program = Vec::new();
    for (code, yes, no, k) in filter {
        program.extend(code.to_ne_bytes());
        program.extend([yes, no]);
        program.extend(k.to_ne_bytes());
    }
    for no_new_privileges in [true, false] {
        let mut plan = exec_plan("box", "x", &["sh", "-c", "stty size; exit $(($? + 10))"]);
        plan.process.seccomp = Some(Seccomp { program: program.clone(), flags: 0 });
        plan.process.no_new_privileges = no_new_privileges;
        plan.stdio = ExecStdio::Terminal { columns: 80, rows: 24 };
        let reply = f.keeper.exec(plan, Fds::default()).await.unwrap();
        assert!(reply.terminal.is_some());
        let code = f.exit().await.1.how.shell_code();
        assert!(code > 10, "the filter is not in force: {code}");
        // What goes wrong after the filter is told, too.
        let mut plan = exec_plan("box", "y", &["nope"]);
        plan.process.seccomp = Some(Seccomp { program: program.clone(), flags: 0 });
        plan.process.no_new_privileges = no_new_privileges;
        let refused = f.keeper.exec(plan, Fds::default()).await.unwrap_err().to_string();
        assert!(refused.contains("not found in $PATH"), "{refused}");
    }
});

keeper_test!(an_usher_that_is_killed_is_replaced, f, {
    let plan = f.plan("box", "sleep 1000");
    f.start(plan).await;
    assert_eq!(run(&mut f, "box", "a", "exit 3").await.0, 3);
    let keeper = f.keeper_pid();
    let children = std::fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).unwrap();
    let usher = children
        .split_whitespace()
        .find(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "orlop-usher\n")
        })
        .expect("there is one");
    let pidfd = sys::process::pidfd_open(usher.parse().unwrap()).unwrap();
    sys::process::pidfd_signal(&pidfd, 9).unwrap();
    crate::common::eventually("its socket is closed", || {
        std::fs::read_to_string(format!("/proc/{usher}/stat")).is_ok_and(|stat| stat.contains(") Z "))
    })
    .await;
    assert_eq!(run(&mut f, "box", "b", "exit 4").await.0, 4);
});

keeper_test!(long_argument_lists_arrive_and_too_long_ones_are_refused, f, {
    let long = |count: usize| {
        let mut args =
            vec!["sh".to_owned(), "-c".to_owned(), "test $# = $0 && test ${#1} = 100000".to_owned()];
        args.push(count.to_string());
        args.extend(std::iter::repeat_n("x".repeat(100_000), count));
        args
    };
    // 1 MB of arguments and as much environment; then more than the kernel takes.
    let args = long(10);
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let (mut plan, fds) = f.plan_args("long", &words);
    plan.process.args[0] = c("/bin/sh");
    assert_eq!(f.run((plan, fds)).await.0, 0);
    let plan = f.plan("box", "sleep 1000");
    f.start(plan).await;
    f.keeper.exec(exec_plan("box", "x", &words), Fds::default()).await.unwrap();
    assert_eq!(f.exit().await.1.how, ExitHow::Code(0));
    let args = long(70);
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let refused = f.keeper.exec(exec_plan("box", "y", &words), Fds::default()).await.unwrap_err().to_string();
    assert!(refused.contains("exec \"sh\": argument list too long"), "{refused}");
    let (mut plan, fds) = f.plan_args("longer", &words);
    plan.process.args[0] = c("/bin/sh");
    let refused = f.keeper.launch(plan, fds).await.unwrap_err().to_string();
    assert!(refused.contains("argument list too long"), "{refused}");
});
