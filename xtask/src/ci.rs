//! What CI checks before it runs the tests.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail};

/// The program that has a workspace of its own.
const LIBCONTAINER: &str = "runtime/libcontainer/Cargo.toml";

/// Formatting, clippy, tidy and licences; stops at the first that fails.
pub fn run() -> anyhow::Result<()> {
    cargo("formatting", &["fmt", "--all", "--check"])?;
    cargo("formatting of orlop-libcontainer", &["fmt", "--manifest-path", LIBCONTAINER, "--check"])?;
    cargo("clippy", &["clippy", "--workspace", "--all-targets", "--quiet", "--", "--deny", "warnings"])?;
    cargo(
        "clippy of orlop-libcontainer",
        &["clippy", "--manifest-path", LIBCONTAINER, "--all-targets", "--quiet", "--", "--deny", "warnings"],
    )?;
    super::tidy()?;
    // Advisories need a database from the network; `cargo deny check` alone asks for them too.
    cargo(
        "licences, sources and bans",
        &["deny", "--log-level", "error", "check", "licenses", "sources", "bans"],
    )?;
    let manifest = ["--manifest-path", LIBCONTAINER, "--log-level", "error", "--config", "deny.toml"];
    let check = ["check", "licenses", "sources", "bans"];
    cargo("the same of orlop-libcontainer", &[&["deny"][..], &manifest, &check].concat())
}

fn cargo(what: &str, args: &[&str]) -> anyhow::Result<()> {
    let start = Instant::now();
    println!("ci: {what}");
    // Both workspaces build into one directory, as in the tests.
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let target = std::path::absolute(target).context("find the target directory")?;
    let status = Command::new("cargo").args(args).env("CARGO_TARGET_DIR", target).status();
    let status = status.with_context(|| format!("run cargo {}", args[0]))?;
    if !status.success() {
        bail!("{what}: `cargo {}` failed", args.join(" "));
    }
    println!("ci: {what} took {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}
