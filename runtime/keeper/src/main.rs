//! The keeper program: see the crate `keeper`.

use std::error::Error;
use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    match keeper::program::run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let mut message = format!("orlop-keeper: {e}");
            let mut source = e.source();
            while let Some(cause) = source {
                message = format!("{message}: {cause}");
                source = cause.source();
            }
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}
