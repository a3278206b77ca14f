//! What only a kernel of one's own shows: limits on full cgroup v2, and machines that go down.

mod apparmor;
mod checkpoint;
mod limits;
mod machines;
mod resize;
mod stats;
mod survival;

use std::process::ExitCode;

fn main() -> ExitCode {
    vm::suite::main(&[
        limits::CASES,
        resize::CASES,
        stats::CASES,
        survival::CASES,
        apparmor::CASES,
        machines::CASES,
        checkpoint::CASES,
    ])
}
