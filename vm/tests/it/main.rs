//! What only a kernel of one's own shows: limits on full cgroup v2, and a machine that goes down.

mod limits;

use std::process::ExitCode;

fn main() -> ExitCode {
    vm::suite::main(&[limits::CASES])
}
