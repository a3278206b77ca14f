//! `make bench`: what Orlop takes in time and memory, beside its budgets and beside containerd with runc.
//!
//! Guarantees: both runtimes are measured in one run, in turns; what can't be measured is in the table as
//! failed, with the reason below it, and then the program fails.
//! Assumes: `scripts/bench.sh` made the namespaces and the directory, and cleans up whatever happens.
//! Caveat: a budget that is missed is shown, and is no failure.
#![forbid(unsafe_code)]

mod cluster;
mod crowd;
mod engine;
mod measure;
mod memory;
mod pods;
mod process;
mod pull;
mod report;
mod rounds;
mod stats;
mod table;
mod thousand;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Parser;

use crate::engine::Engine;
use crate::measure::Measure;
use crate::report::{Report, Who};

/// Measures Orlop beside its budgets and beside containerd with runc; `make bench` runs it.
#[derive(Debug, Parser)]
struct Flags {
    /// The binary to measure
    #[arg(long)]
    orlop: PathBuf,
    /// Where the image archives are
    #[arg(long)]
    images: PathBuf,
    /// The script that pushes an archive to a registry
    #[arg(long)]
    push: PathBuf,
    /// An empty directory, below which everything happens
    #[arg(long)]
    root: PathBuf,
    /// Rounds of one pod that count
    #[arg(long, env = "BENCH_ROUNDS", default_value_t = 30)]
    rounds: usize,
    /// Rounds before, which don't
    #[arg(long, env = "BENCH_WARM_UP", default_value_t = 3)]
    warm_up: usize,
    /// How many "many pods" are
    #[arg(long, env = "BENCH_PODS", default_value_t = 50)]
    pods: usize,
    /// Rounds of many pods, of pulls and of server starts
    #[arg(long, env = "BENCH_LONG_ROUNDS", default_value_t = 3)]
    long_rounds: usize,
    /// Measure Orlop alone
    #[arg(long, env = "BENCH_ALONE")]
    alone: bool,
}

// One thread: the clients take as little of the machine as they can.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<ExitCode> {
    let flags = Flags::parse();
    ensure!(rustix::process::geteuid().is_root(), "needs root");
    ensure!(flags.rounds > 0 && flags.pods > 1, "needs at least one round, and two pods");
    let _first = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut report = Report::new();
    let peer = if flags.alone { Err("not wanted".to_owned()) } else { engine::peer_installed() };
    if let Err(why) = &peer {
        report.say(&format!("no figures of containerd and runc: {why}"));
    }

    let size =
        std::fs::metadata(&flags.orlop).with_context(|| format!("look at {}", flags.orlop.display()))?;
    report.add(Who::Orlop, Measure::Binary, size.len() as f64 / 1e6);
    runtimes(&mut report, &flags, peer.is_ok()).await;
    let size = cluster::Size { starts: flags.long_rounds, pods: flags.rounds, crowd: flags.pods };
    let image = flags.images.join("busybox.tar");
    cluster::run_all(&mut report, &flags.orlop, &flags.root, &image, size).await;

    println!("\n{}", table::render(&report, peer.is_ok()));
    println!(
        "{} rounds of one pod after {} to warm up; many pods: {}, {} rounds; took {:.0} s",
        flags.rounds,
        flags.warm_up,
        flags.pods,
        flags.long_rounds,
        report.elapsed()
    );
    Ok(if report.failures().is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Everything over CRI: both runtimes run at the same time and are asked in turns.
async fn runtimes(report: &mut Report, flags: &Flags, with_peer: bool) {
    let over_cri = measure::over_cri();
    let images = ["busybox", "pause"].map(|name| flags.images.join(format!("{name}.tar")));
    let mut engines: Vec<Engine> = Vec::new();
    report.say("starting orlop cri");
    match engine::orlop(&flags.orlop, flags.root.join("orlop-cri"), &images[..1]).await {
        Ok(engine) => engines.push(engine),
        Err(why) => report.fail(Who::Orlop, &over_cri, &why.context("start orlop cri")),
    }
    if with_peer {
        report.say("starting containerd");
        match engine::containerd(flags.root.join("containerd"), &images).await {
            Ok(engine) => engines.push(engine),
            Err(why) => report.fail(Who::Peer, &over_cri, &why.context("start containerd")),
        }
    }
    let mut idle = Vec::new();
    for engine in &engines {
        match crowd::idle(report, engine).await {
            Ok(usage) => idle.push(Some(usage)),
            Err(why) => {
                report.fail(engine.who, &[Measure::DaemonIdle], &why);
                idle.push(None);
            }
        }
    }
    rounds::run(report, &engines, flags.warm_up, flags.rounds).await;
    for _ in 0..flags.long_rounds {
        for (engine, idle) in engines.iter().zip(&idle) {
            crowd::round(report, engine, *idle, flags.pods).await;
        }
    }
    for engine in &engines {
        thousand::round(report, engine).await;
    }
    report.say("pushing an image of 460 MB to a registry");
    match pull::Registry::start(&flags.root.join("registry"), &flags.images.join("large.tar"), &flags.push)
        .await
    {
        Ok(registry) => {
            pull::run_rounds(report, &engines, flags.long_rounds).await;
            if let Err(why) = registry.end().await {
                report.say(&format!("the registry: {why:#}"));
            }
        }
        Err(why) => {
            engines.iter().for_each(|e| report.fail(e.who, &[Measure::Pull, Measure::PullPeak], &why));
        }
    }
    for engine in engines {
        if let Err(why) = engine.daemon.end().await {
            report.say(&format!("{}: {why:#}", engine.who.name()));
        }
        if engine.who == Who::Orlop {
            let root = engine.dir.to_string_lossy().into_owned();
            if let Err(why) = process::run(&flags.orlop, &["--root", &root, "stop"]).await {
                report.fail(Who::Orlop, &[Measure::PodEnd], &why);
            }
        }
    }
}
