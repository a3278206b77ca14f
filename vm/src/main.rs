//! `vm`: guests by hand.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use vm::disk::Share;
use vm::guest::Init;
use vm::image::Image;
use vm::{Guest, GuestOptions, place};

/// Virtual machines for tests: build the image, open a shell, run a command
#[derive(Parser)]
#[command(name = "vm")]
struct Flags {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the guest's image, if it is not there, and say where it is
    Image,
    /// Boot a guest with a running node (`orlop server`) and open a shell in it
    Shell(Hardware),
    /// Boot a guest, run a bash script in it, and end with its exit code
    Run {
        #[command(flatten)]
        hardware: Hardware,
        /// The script; the built binary and the test images are in /share
        script: String,
    },
}

#[derive(clap::Args)]
struct Hardware {
    /// Boot with systemd
    #[arg(long)]
    systemd: bool,
    /// Memory, in MiB
    #[arg(long, default_value_t = 2048)]
    memory: u32,
    /// Processors
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Let the guest reach what this machine reaches
    #[arg(long)]
    outside: bool,
    /// Put a file or directory into the guest as /share/NAME; may be repeated
    #[arg(long, value_name = "HOST=NAME")]
    share: Vec<String>,
    /// More words for the kernel's command line
    #[arg(long, default_value = "")]
    kernel: String,
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.context("start tokio").and_then(|runtime| runtime.block_on(run(Flags::parse()))) {
        Ok(code) => code,
        Err(err) => {
            eprintln!("vm: {err:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(flags: Flags) -> anyhow::Result<ExitCode> {
    if let Some(why) = place::obstacle() {
        anyhow::bail!("no guest can run here: {why}");
    }
    let status = match flags.command {
        Command::Image => {
            let image = Image::ready()?;
            println!("{}", image.disk().display());
            return Ok(ExitCode::SUCCESS);
        }
        Command::Shell(hardware) => {
            let guest = boot(&hardware).await?;
            guest.ok(START).await.context("start the node")?;
            guest.shell(SHELL)?
        }
        Command::Run { hardware, script } => boot(&hardware).await?.shell(&script)?,
    };
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

async fn boot(hardware: &Hardware) -> anyhow::Result<Guest> {
    let mut share = Share::usual()?;
    for pair in &hardware.share {
        let (host, name) = pair.split_once('=').with_context(|| format!("--share {pair}: want HOST=NAME"))?;
        share = share.file(std::path::Path::new(host), name);
    }
    let disk = place::run_directory()?.join("share");
    share.make(&disk)?;
    eprintln!("vm: booting");
    Guest::boot(GuestOptions {
        init: if hardware.systemd { Init::Systemd } else { Init::Plain },
        memory_mib: hardware.memory,
        cpus: hardware.cpus,
        outside: hardware.outside,
        share: Some(disk),
        kernel: hardware.kernel.clone(),
        ..GuestOptions::named("guest")
    })
    .await
}

/// Starts a node as a person would.
const START: &str = "\
setsid orlop server < /dev/null > /var/log/orlop.log 2>&1 &
orlop status --wait-ready --timeout 90 > /dev/null && orlop image import /share/images/busybox.tar";

/// What the shell begins with.
const SHELL: &str = "\
orlop status
echo 'The node runs: its log is /var/log/orlop.log; try: orlop status, crictl ps. Leaving the shell ends the guest.'
export KUBECONFIG=/etc/orlop/admin.kubeconfig CONTAINER_RUNTIME_ENDPOINT=unix:///run/orlop/cri.sock
exec bash -i";
