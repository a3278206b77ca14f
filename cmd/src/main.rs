//! The program `orlop`: one binary, several roles.
#![forbid(unsafe_code)]

mod admin;
mod apply;
mod check;
mod cleanup;
mod config;
mod flags;
mod image_cli;
mod image_config;
mod log;
mod memory;
mod node;
mod paths;
mod resource_config;
mod roles;
mod status;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

use crate::config::NodeConfig;
use crate::flags::{Command, Flags};

fn main() -> ExitCode {
    let flags = Flags::parse();
    // Only the first call can win, and there is no earlier one.
    let _first = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match run(flags) {
        Ok(code) => code,
        Err(err) => {
            eprintln!("orlop: {}", chain(&err));
            ExitCode::FAILURE
        }
    }
}

fn run(flags: Flags) -> anyhow::Result<ExitCode> {
    let common = flags.common;
    let daemon = matches!(flags.command, Command::Server(_) | Command::Kubelet(_) | Command::Cri(_));
    log::start(&common.log, common.log_json, daemon)?;
    if daemon {
        check::refuse_to_start_without_root()?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("orlop")
        .build()
        .context("start the executor")?;
    let result = runtime.block_on(async {
        match flags.command {
            Command::Server(f) => {
                roles::server(NodeConfig::load(&common, &f.node)?.with_server_flags(&f)).await
            }
            Command::Kubelet(f) => roles::kubelet(NodeConfig::load(&common, &f.node)?, &f).await,
            Command::Cri(f) => roles::cri(NodeConfig::load(&common, &f)?).await,
            Command::Check => return check::run(&paths::Paths::new(common.root.as_deref())).await,
            Command::Image(command) => {
                image_cli::run(NodeConfig::load(&common, &Default::default())?, command).await
            }
            Command::Status(f) => status::run(&paths::Paths::new(common.root.as_deref()), &f).await,
            Command::Apply(f) => apply::run(&paths::Paths::new(common.root.as_deref()), &f).await,
            Command::Stop(f) => cleanup::stop(NodeConfig::load(&common, &f)?).await,
            Command::Reset(f) => cleanup::reset(NodeConfig::load(&common, &f.node)?, f.yes).await,
        }
        .map(|()| ExitCode::SUCCESS)
    });
    // A blocking task that hangs in the kernel must not keep the daemon from ending.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    result
}

/// An error with its causes, each printed once.
fn chain(err: &anyhow::Error) -> String {
    client::describe(err.as_ref())
}
