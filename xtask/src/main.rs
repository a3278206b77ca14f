//! The project's own checks: `cargo xtask tidy` and `cargo xtask ci`.
#![forbid(unsafe_code)]

mod arrows;
mod ci;
mod source;

use std::process::ExitCode;

const HELP: &str = "\
cargo xtask COMMAND

  tidy   the rules that no compiler knows: dependency arrows, where `unsafe` may stand,
         sizes of files, forbidden calls
  ci     everything that CI checks before the tests: formatting, clippy, tidy, licences
";

fn main() -> ExitCode {
    let command = std::env::args().nth(1).unwrap_or_default();
    let result = match command.as_str() {
        "tidy" => tidy(),
        "ci" => ci::run(),
        "" | "help" | "-h" | "--help" => {
            print!("{HELP}");
            Ok(())
        }
        other => Err(anyhow::anyhow!("there is no command {other:?}\n\n{HELP}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("xtask: {err:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs every check and reports all that is wrong at once.
fn tidy() -> anyhow::Result<()> {
    let mut wrong = arrows::check()?;
    wrong.extend(source::check()?);
    if wrong.is_empty() {
        println!("tidy: arrows, unsafe, sizes and calls are as they should be");
        return Ok(());
    }
    for line in &wrong {
        eprintln!("{line}");
    }
    anyhow::bail!("{} things to tidy", wrong.len())
}
