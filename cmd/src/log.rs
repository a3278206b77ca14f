//! Where log lines go.

use std::io::IsTerminal;

use anyhow::Context;
use tracing_subscriber::EnvFilter;

/// Libraries that say more at `info` than an administrator wants to read.
const QUIET: &[&str] = &[
    "hyper=warn",
    "kube_client=warn",
    "kube_runtime=error",
    "h2=warn",
    "tower=warn",
    "rustls=warn",
    "fjall=warn",
    "lsm_tree=warn",
];

/// Starts logging to standard error. A daemon's lines carry the time; a command's lines only their text.
///
/// # Errors
/// The filter can't be understood.
pub fn start(filter: &str, json: bool, daemon: bool) -> anyhow::Result<()> {
    // A command talks to a person: its own output says what happened.
    let base = if daemon || filter != "info" { filter } else { "warn" };
    let directives = format!("{},{base}", QUIET.join(","));
    let filter =
        EnvFilter::try_new(directives).with_context(|| format!("understand the log filter {filter:?}"))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let colours = std::io::stderr().is_terminal();
    match (json, daemon) {
        (true, _) => lines.json().init(),
        (false, true) => lines.with_ansi(colours).with_target(true).compact().init(),
        (false, false) => lines.with_ansi(colours).without_time().with_target(false).compact().init(),
    }
    Ok(())
}
