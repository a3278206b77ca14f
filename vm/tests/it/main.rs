//! What only a kernel of one's own shows: limits on full cgroup v2, and machines that go down.

mod apparmor;
mod checkpoint;
mod critest;
mod limits;
mod machines;
mod power;
mod resize;
mod resources;
mod selinux;
mod stats;
mod survival;
mod systemd;
mod users;

use std::process::ExitCode;

fn main() -> ExitCode {
    let shared = &[
        limits::CASES,
        resize::CASES,
        resources::CASES,
        stats::CASES,
        survival::CASES,
        apparmor::CASES,
        systemd::CASES,
        selinux::CASES,
        users::CASES,
        checkpoint::CASES,
    ];
    vm::suite::main(&[shared, &[critest::CASES, machines::CASES, power::CASES]])
}
