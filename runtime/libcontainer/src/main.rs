//! `orlop-libcontainer`: libcontainer behind the command line that OCI runtimes share, as far as a node calls it.
//!
//! It is a program of its own, so that the daemon carries none of it: libcontainer forks and allocates in the child,
//! changes directory, and writes its caller's `oom_score_adj`. The node runs further processes in its containers by
//! itself (libcontainer 0.7 gives those no seccomp filter), limits and confines devices by itself, and reaps.
//!
//! Guarantees: a container never sees this program's file as `/proc/self/exe`, but a copy in memory that is sealed
//! (CVE-2019-5736); an error is the last line of the log, with its causes.
#![forbid(unsafe_code)]

mod commands;
mod executor;
mod flags;
mod log;
mod prepare;
mod sealed;

use std::process::ExitCode;

use clap::Parser;

use crate::flags::Flags;

fn main() -> ExitCode {
    let flags = Flags::parse();
    match commands::run(&flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error(flags.log.as_deref(), &error);
            ExitCode::FAILURE
        }
    }
}
