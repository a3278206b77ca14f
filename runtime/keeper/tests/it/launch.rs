//! Starting containers: what a program finds, and what a failure says.

use keeper::client::ClientError;
use keeper::plan::*;
use keeper::protocol::{ExitHow, FailureKind, SignalTarget};

use crate::common::{c, device, filesystem};
use crate::keeper_test;

keeper_test!(output_is_logged_and_the_exit_code_told, f, {
    let plan = f.plan("one", "echo out; echo err >&2; printf rest; exit 3");
    let (code, mut lines) = f.run(plan).await;
    lines.sort();
    assert_eq!(
        (code, lines),
        (3, ["stderr F err", "stdout F out", "stdout P rest"].map(str::to_owned).to_vec())
    );
    let state = f.keeper.state().await.unwrap();
    assert_eq!(state.containers[0].exit.unwrap().how, ExitHow::Code(3));
    f.keeper.forget("one").await.unwrap();
    assert!(f.keeper.state().await.unwrap().containers.is_empty());
});

keeper_test!(the_container_is_its_own_world, f, {
    let script = "hostname; echo pid $$; pwd; id -u; id -G; umask; cat /proc/self/cgroup | grep ^0::; \
                  ls /proc/self/fd | tr '\\n' ' '; echo; env | sort | tr '\\n' ' '; echo; \
                  grep -E 'Cap|NoNewPrivs|Seccomp:' /proc/self/status | tr '\\t\\n' '  '; echo; echo $(mount | wc -l); readlink /proc/1/exe";
    let mut plan = f.plan("world", script);
    plan.0.process.cwd = c("/work/dir");
    plan.0.process.user = User { uid: 1000, gid: 100, groups: vec![100, 2000], umask: Some(0o27) };
    plan.0.process.capabilities.effective = 0;
    plan.0.process.capabilities.permitted = 0;
    let (code, lines) = f.run(plan).await;
    let texts: Vec<&str> = lines.iter().map(|l| l.strip_prefix("stdout F ").unwrap_or(l)).collect();
    assert_eq!(code, 0, "{texts:#?}");
    assert_eq!(&texts[..6], ["box", "pid 1", "/work/dir", "1000", "100 2000", "0027"]);
    assert_eq!(texts[6], "0::/");
    // Descriptor 3 is the directory that ls reads.
    assert_eq!(texts[7].trim(), "0 1 2 3");
    assert_eq!(texts[8].trim(), "HOME=/root PATH=/bin PWD=/work/dir SHLVL=1");
    let caps = texts[9];
    assert!(caps.contains("CapInh: 0000000000000000") && caps.contains("CapEff: 0000000000000000"), "{caps}");
    assert!(caps.contains("CapBnd: 00000000a80425fb") && caps.contains("NoNewPrivs: 1"), "{caps}");
});

keeper_test!(root_has_the_capabilities_of_the_plan, f, {
    let mut plan = f.plan("caps", "grep -E 'Cap|NoNewPrivs' /proc/self/status | tr '\\t\\n' '  '");
    plan.0.process.no_new_privileges = false;
    let (_, lines) = f.run(plan).await;
    let line = lines.join("");
    for part in [
        "CapPrm: 00000000a80425fb",
        "CapEff: 00000000a80425fb",
        "CapBnd: 00000000a80425fb",
        "CapAmb: 0000000000000000",
        "NoNewPrivs: 0",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
    let mut plan = f.plan("ambient", "grep -E 'Cap' /proc/self/status | tr '\\t\\n' '  '");
    plan.0.process.user.uid = 7;
    plan.0.process.capabilities =
        Capabilities { bounding: 1 << 10, effective: 1 << 10, permitted: 1 << 10, ambient: 1 << 10 };
    let (_, lines) = f.run(plan).await;
    assert!(lines.join("").contains("CapEff: 0000000000000400"), "{lines:?}");
});

keeper_test!(masked_and_read_only_paths, f, {
    std::fs::create_dir(f.dir.path().join("lower/etc/hidden")).unwrap();
    std::fs::write(f.dir.path().join("lower/etc/hidden/file"), "text").unwrap();
    std::fs::write(f.dir.path().join("lower/etc/secret"), "text").unwrap();
    let script = "wc -c < /etc/secret; stat -c '%t:%T' /etc/secret; ls /etc/hidden | wc -l; ls /sys/firmware | wc -l; \
                  echo x > /proc/sys/kernel/domainname || echo ro; touch /etc/hidden/x || echo ro; touch /file && echo rw";
    let mut plan = f.plan("masks", script);
    plan.0.masked_paths.extend([c("/etc/secret"), c("/etc/hidden")]);
    let (_, lines) = f.run(plan).await;
    let out: Vec<&str> = lines.iter().filter_map(|l| l.strip_prefix("stdout F ")).collect();
    assert_eq!(out, ["0", "1:3", "0", "0", "ro", "ro", "rw"], "{lines:#?}");
});

keeper_test!(a_read_only_root_has_writable_mounts, f, {
    let mut plan = f.plan(
        "readonly",
        "touch /x || echo ro; touch /tmp/x && echo rw; cat /etc/given; touch /dev/shm/y && echo rw",
    );
    plan.0.rootfs.readonly = true;
    plan.0.steps.push(filesystem("tmpfs", &[], 0, "/tmp"));
    std::fs::write(f.dir.path().join("given"), "given text\n").unwrap();
    let path = c(f.dir.path().join("given").to_str().unwrap());
    let tree = sys::mount::clone_tree(rustix::fs::CWD, path.as_c_str(), false).unwrap();
    sys::mount::set_attributes(&tree, false, sys::mount::attr::RDONLY, 0, None).unwrap();
    let fd = plan.1.add(tree);
    plan.0.steps.push(Step::Attach { fd, target: c("/etc/given"), kind: TargetKind::File });
    let (_, lines) = f.run(plan).await;
    let out: Vec<&str> = lines.iter().filter_map(|l| l.strip_prefix("stdout F ")).collect();
    assert_eq!(out, ["ro", "rw", "given text", "rw"], "{lines:#?}");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(f.dir.path().to_str().unwrap()), "the host sees no mount of a container");
});

keeper_test!(a_seccomp_filter_is_in_force, f, {
    for (id, no_new_privileges) in [("seccomp", true), ("seccomp-priv", false)] {
        // Allow everything: load nothing, return SECCOMP_RET_ALLOW.
        let mut program = vec![0x06, 0, 0, 0];
        program.extend(0x7fff_0000u32.to_ne_bytes());
        let mut plan = f.plan(id, "grep Seccomp: /proc/self/status | tr '\\t' ' '");
        plan.0.process.seccomp = Some(Seccomp { program, flags: 0 });
        plan.0.process.no_new_privileges = no_new_privileges;
        let (_, lines) = f.run(plan).await;
        assert_eq!(lines, ["stdout F Seccomp: 2"]);
    }
});

keeper_test!(signals_reach_the_main_process_or_all, f, {
    let plan = f.plan("signal", "trap 'exit 9' TERM; echo ready; sleep 1000 & wait");
    f.start(plan).await;
    crate::common::eventually("the trap is set", || !f.lines("signal").is_empty()).await;
    f.keeper.signal("signal", libc::SIGTERM, SignalTarget::Main).await.unwrap();
    assert_eq!(f.exit().await.1.how, ExitHow::Code(9));
    let again = f.keeper.signal("signal", libc::SIGTERM, SignalTarget::Main).await.unwrap_err();
    assert!(
        matches!(&again, ClientError::Keeper(failure) if failure.kind == FailureKind::WrongState),
        "{again}"
    );

    let plan = f.plan("killed", "trap '' TERM; sleep 1000 & sleep 1000");
    f.start(plan).await;
    f.keeper.signal("killed", libc::SIGKILL, SignalTarget::Cgroup).await.unwrap();
    assert_eq!(f.exit().await.1.how, ExitHow::Signal(9));
    let unknown = f.keeper.signal("nobody", 9, SignalTarget::Main).await.unwrap_err();
    assert!(unknown.to_string().contains("nobody"), "{unknown}");
});

keeper_test!(sysctls_limits_and_umask, f, {
    let mut plan =
        f.plan("sysctl", "cat /proc/sys/net/ipv4/ip_default_ttl /proc/sys/kernel/msgmax; ulimit -n; umask");
    plan.0.sysctls = vec![
        Sysctl { path: c("net/ipv4/ip_default_ttl"), value: b"42".to_vec() },
        Sysctl { path: c("kernel/msgmax"), value: b"4242".to_vec() },
    ];
    plan.0.process.rlimits = vec![Rlimit { resource: 7, soft: 99, hard: 100 }];
    let (_, lines) = f.run(plan).await;
    assert_eq!(lines, ["stdout F 42", "stdout F 4242", "stdout F 99", "stdout F 0022"]);
});

keeper_test!(a_program_is_found_in_the_path_of_its_environment, f, {
    let mut plan = f.plan_args("path", &["echo", "found"]);
    plan.0.process.env = vec![c("PATH=/nowhere:/etc:/bin")];
    assert_eq!(f.run(plan).await.1, ["stdout F found"]);
    let mut plan = f.plan_args("default-path", &["echo", "found"]);
    plan.0.process.env = vec![];
    assert_eq!(f.run(plan).await.1, ["stdout F found"]);
});

async fn failure(f: &crate::common::Fixture, plan: (LaunchPlan, Fds)) -> (FailureKind, String) {
    match f.keeper.launch(plan.0, plan.1).await.unwrap_err() {
        ClientError::Keeper(failure) => (failure.kind, failure.message),
        other => panic!("{other}"),
    }
}

keeper_test!(a_program_that_cannot_run_says_why, f, {
    std::fs::write(f.dir.path().join("lower/bin/junk"), "no program").unwrap();
    std::fs::write(f.dir.path().join("lower/bin/script"), "#!/no/such/shell\n").unwrap();
    for (file, mode) in [("junk", 0o755), ("script", 0o755)] {
        use std::os::unix::fs::PermissionsExt;
        let path = f.dir.path().join("lower/bin").join(file);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    std::fs::write(f.dir.path().join("lower/bin/plain"), "").unwrap();
    let cases = [
        ("nothing", FailureKind::CommandNotFound, "executable file not found in $PATH"),
        ("/bin/nothing", FailureKind::CommandNotFound, "no such file or directory"),
        ("/bin/echo/x", FailureKind::CommandNotFound, "not a directory"),
        ("/etc", FailureKind::CommandNotExecutable, "is a directory"),
        ("/bin/plain", FailureKind::CommandNotExecutable, "permission denied"),
        ("plain", FailureKind::CommandNotExecutable, "permission denied"),
        ("/bin/junk", FailureKind::CommandNotExecutable, "exec format error"),
        ("/bin/script", FailureKind::CommandNotFound, "interpreter it names does not exist"),
    ];
    for (name, kind, words) in cases {
        let (got, message) = failure(&f, f.plan_args("bad", &[name])).await;
        assert_eq!(got, kind, "{message}");
        assert!(message.starts_with(&format!("exec {name:?}: ")) && message.contains(words), "{message}");
    }
    assert!(f.keeper.state().await.unwrap().containers.is_empty());
});

keeper_test!(a_failed_step_is_named, f, {
    let mut plan = f.plan("step", "true");
    plan.0.steps.push(filesystem("tmpfs", &[("no-such-option", "1")], 0, "/data"));
    assert_eq!(failure(&f, plan).await.1, "mount tmpfs on /data: fsconfig: invalid argument");

    std::fs::write(f.dir.path().join("lower/etc/file"), "").unwrap();
    let mut plan = f.plan("target", "true");
    plan.0.steps.push(filesystem("tmpfs", &[], 0, "/etc/file"));
    assert_eq!(failure(&f, plan).await.1, "mount tmpfs on /etc/file: open: not a directory");

    let mut plan = f.plan("label", "true");
    plan.0.process.label = Some(Label::AppArmor(c("exec no-such-profile")));
    let (_, said) = failure(&f, plan).await;
    assert!(said.starts_with("tell AppArmor \"exec no-such-profile\": write: "), "{said}");

    let mut plan = f.plan("cwd", "true");
    plan.0.process.cwd = c("/etc/file");
    assert_eq!(
        failure(&f, plan).await.1,
        "enter the working directory \"/etc/file\": fchdir: is not a directory"
    );

    let mut plan = f.plan("index", "true");
    plan.0.log = Some(FdIndex(99));
    let (kind, message) = failure(&f, plan).await;
    assert_eq!(kind, FailureKind::Invalid, "{message}");

    let mut plan = f.plan("sysctl", "true");
    plan.0.sysctls = vec![Sysctl { path: c("net/no/such"), value: b"1".to_vec() }];
    assert_eq!(failure(&f, plan).await.1, "set sysctl net/no/such: write: no such file or directory");
});

keeper_test!(hostile_images_reach_nothing_outside, f, {
    // A working directory that is somebody's descriptor.
    for number in 3..40 {
        let mut plan = f.plan(&format!("fd-{number}"), "true");
        plan.0.process.cwd = c(&format!("/proc/self/fd/{number}"));
        let (_, message) = failure(&f, plan).await;
        assert!(message.contains("working directory"), "{message}");
    }
    // /proc that leads elsewhere.
    let lower = f.dir.path().join("lower");
    std::fs::remove_dir(lower.join("proc")).unwrap();
    std::os::unix::fs::symlink("/tmp", lower.join("proc")).unwrap();
    let (_, message) = failure(&f, f.plan("proc", "true")).await;
    assert!(message.starts_with("mount proc on /proc: "), "{message}");
    std::fs::remove_file(lower.join("proc")).unwrap();
    // /dev that leads to the host: the devices are made in the image's own directory.
    let canary = f.dir.path().join("canary");
    std::fs::create_dir(&canary).unwrap();
    std::fs::remove_dir(lower.join("dev")).unwrap();
    std::os::unix::fs::symlink(&canary, lower.join("dev")).unwrap();
    let mut plan = f.plan("dev", "true");
    plan.0
        .steps
        .retain(|step| !matches!(step, Step::Filesystem { target, .. } if target.as_c_str() == c"/dev"));
    plan.0.steps.push(device("/dev/extra", 1, 3));
    let _ = f.keeper.launch(plan.0, plan.1).await;
    assert_eq!(std::fs::read_dir(&canary).unwrap().count(), 0);
});

keeper_test!(null_must_be_the_null_device, f, {
    let mut plan = f.plan("null", "true");
    plan.0.steps.retain(|step| !matches!(step, Step::Device { path, .. } if path.as_c_str() == c"/dev/null"));
    plan.0.steps.push(device("/dev/null", 1, 5));
    let (_, message) = failure(&f, plan).await;
    assert!(message.contains("null device"), "{message}");
});

keeper_test!(a_shared_pid_namespace_has_an_init, f, {
    let mut fds = Fds::default();
    let cgroup = Some(fds.add(rustix::io::dup(f.group("init").fd()).unwrap()));
    let init =
        InitPlan { id: "init".to_owned(), cgroup, namespaces: Namespaces::default(), user_namespace: None };
    let init = f.keeper.launch_init(init, fds).await.unwrap();
    let pid = init.launched.process.pid;
    // At once: nobody may come into its namespace before.
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for part in [
        "Name:\torlop-init",
        "CapPrm:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "Uid:\t65534\t65534",
        "NoNewPrivs:\t1",
    ] {
        assert!(status.contains(part), "{part}: {status}");
    }
    let join = |plan: &mut (LaunchPlan, Fds), pid: i32| {
        let open = |kind| sys::namespace::open(format!("/proc/{pid}/ns/{kind}").as_ref()).unwrap();
        plan.0.namespaces.pid = Namespace::Join(plan.1.add(open("pid")));
        plan.0.procfs_of = Some(plan.1.add(open("mnt")));
    };
    let mut plan =
        f.plan("member", "ps | grep -c orlop-init; echo pid $$; ls -d /proc/1; (sleep 0 & exec true)");
    join(&mut plan, pid);
    f.start(plan).await;
    assert_eq!(f.exit().await.0, "member");
    let lines = f.lines("member");
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert_ne!(lines[1], "stdout F pid 1", "{lines:?}");
    assert_eq!(lines[2], "stdout F /proc/1");

    // One that shares the processes of another container, with a terminal.
    let mut plan = f.plan("target", "sleep 1000");
    join(&mut plan, pid);
    let target = f.start(plan).await.launched.process.pid;
    let mut plan = f.plan("second", "ps | grep -c 'sleep 1000'; tty; grep Seccomp_filters /proc/self/status");
    join(&mut plan, target);
    plan.0.stdio = Stdio::Terminal { columns: 80, rows: 24 };
    assert_eq!(f.run(plan).await.0, 0);
    let lines = f.lines("second");
    assert!(
        lines.iter().any(|line| line.contains("/dev/pts/0") || line.contains("/dev/console")),
        "{lines:?}"
    );

    // A procfs of other processes is refused.
    let mut plan = f.plan("mixed", "true");
    plan.0.stdio = Stdio::Null;
    let alone = f.plan("alone", "sleep 1000");
    let alone = f.start(alone).await.launched.process.pid;
    join(&mut plan, pid);
    let other = sys::namespace::open(format!("/proc/{alone}/ns/mnt").as_ref()).unwrap();
    plan.0.procfs_of = Some(plan.1.add(other));
    let refused = f.keeper.launch(plan.0, plan.1).await.unwrap_err().to_string();
    assert!(refused.contains("their own /proc is hidden"), "{refused}");
    for id in ["target", "alone"] {
        f.keeper.signal(id, libc::SIGKILL, SignalTarget::Main).await.unwrap();
        f.exit().await;
    }
    f.keeper.signal("init", libc::SIGKILL, SignalTarget::Main).await.unwrap();
    assert_eq!(f.exit().await.0, "init");
});

keeper_test!(a_lowered_oom_score_is_set_or_warned_of, f, {
    let mut plan = f.plan("oom", "cat /proc/self/oom_score_adj");
    plan.0.oom_score_adj = Some(-500);
    let reply = f.start(plan).await;
    f.exit().await;
    let line = f.lines("oom").join("");
    assert!(
        line == "stdout F -500" || reply.launched.warnings[0].contains("oom_score_adj"),
        "{line} {reply:?}"
    );
    let mut plan = f.plan("oom-up", "cat /proc/self/oom_score_adj");
    plan.0.oom_score_adj = Some(700);
    assert_eq!(f.run(plan).await.1, ["stdout F 700"]);
});

keeper_test!(the_user_can_open_its_standard_streams_again, f, {
    let mut plan = f.plan("reopen", "echo again > /dev/stdout; echo proc > /proc/self/fd/2");
    plan.0.process.user.uid = 1000;
    plan.0.process.user.gid = 1000;
    let (code, mut lines) = f.run(plan).await;
    lines.sort();
    assert_eq!((code, lines), (0, ["stderr F proc", "stdout F again"].map(str::to_owned).to_vec()));
});
