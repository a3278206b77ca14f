//! The program as it is called.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// CVE-2019-5736: what a container's first process is a copy of must not be the node's file.
#[test]
fn create_runs_from_a_sealed_copy() {
    let dir = tempfile::tempdir().expect("a directory");
    // Nobody writes to it, so that the program waits where it has sealed itself.
    let config = dir.path().join("config.json");
    rustix::fs::mkfifoat(rustix::fs::CWD, &config, rustix::fs::Mode::from_raw_mode(0o600)).expect("a fifo");
    let mut child = Command::new(env!("CARGO_BIN_EXE_orlop-libcontainer"))
        .args(["--root".as_ref(), dir.path().as_os_str(), "create".as_ref(), "--bundle".as_ref()])
        .args([dir.path().as_os_str(), "c-1".as_ref()])
        .stdin(Stdio::null())
        .spawn()
        .expect("starts");
    let place = format!("/proc/{}/exe", child.id());
    let deadline = Instant::now() + Duration::from_secs(20);
    let exe = loop {
        let exe = std::fs::read_link(&place).expect("it runs").display().to_string();
        if exe.starts_with("/memfd:") || Instant::now() > deadline {
            break exe;
        }
        std::thread::yield_now();
    };
    let written = std::fs::File::options().write(true).open(&place);
    child.kill().expect("killed");
    child.wait().expect("ended");
    assert!(exe.starts_with("/memfd:orlop-libcontainer"), "{exe}");
    assert!(written.is_err(), "a sealed file was opened for writing while it runs");
}

#[test]
fn what_goes_wrong_is_in_the_log() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = dir.path().join("log.json");
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_orlop-libcontainer"));
        command
            .arg("--root")
            .arg(dir.path())
            .arg("--log")
            .arg(&log)
            .args(["--log-format", "json"])
            .args(args);
        command.output().expect("runs")
    };
    assert!(run(&["delete", "--force", "nobody"]).status.success());
    assert!(!run(&["start", "nobody"]).status.success());
    assert!(!run(&["delete", "--force", ".."]).status.success());
    assert!(dir.path().exists(), "an id led out of the root");
    let text = std::fs::read_to_string(&log).expect("a log");
    assert!(text.contains("\"level\":\"error\"") && text.contains("there is no container nobody"), "{text}");
    let features = run(&["features"]);
    assert!(String::from_utf8_lossy(&features.stdout).contains("\"rro\""), "{features:?}");
}
