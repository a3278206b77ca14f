//! Many pods at once: how long two clients need to start them, what questions cost then, and memory.
//!
//! Caveat: memory idle is that of a daemon that has imported its images and run nothing yet.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cri_api::Cri;
use cri_api::v1::{ContainerStatusRequest, ListContainersRequest};

use crate::engine::Engine;
use crate::measure::{Measure, OF_A_CROWD};
use crate::memory::{self, Memory};
use crate::pods::{self, Pod};
use crate::report::Report;

/// How often each question is asked in a round.
const QUESTIONS: usize = 100;
/// A daemon is left alone for so long before its memory counts.
const SETTLE: Duration = Duration::from_millis(1500);

/// A runtime's memory, and how many helper processes it has.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    daemon: Memory,
    helpers: Memory,
    count: usize,
}

fn usage(engine: &Engine) -> anyhow::Result<Usage> {
    let pid = engine.daemon.pid()?;
    let helpers = memory::helpers(&memory::processes(), &engine.dir, pid, &pods::own_line());
    Ok(Usage {
        daemon: memory::of(pid)?,
        helpers: helpers.iter().filter_map(|pid| memory::of(*pid).ok()).sum(),
        count: helpers.len(),
    })
}

/// Memory before any pod.
///
/// # Errors
/// The daemon has ended.
pub async fn idle(report: &mut Report, engine: &Engine) -> anyhow::Result<Usage> {
    tokio::time::sleep(SETTLE).await;
    let usage = usage(engine)?;
    report.add(engine.who, Measure::DaemonIdle, usage.daemon.rss_mb());
    report.add(engine.who, Measure::HelpersIdle, usage.helpers.rss_mb());
    Ok(usage)
}

/// Starts `size` pods by two clients, asks, weighs, and ends them.
pub async fn round(report: &mut Report, engine: &Engine, idle: Option<Usage>, size: usize) {
    let who = engine.who;
    let begin = Instant::now();
    let (one, two) = tokio::join!(start(engine, size.div_ceil(2)), start(engine, size / 2));
    let time = begin.elapsed().as_secs_f64();
    let mut pods = Vec::new();
    let mut failure = None;
    for (started, error) in [one, two] {
        pods.extend(started);
        failure = failure.or(error);
    }
    match failure {
        None => {
            report.add(who, Measure::Crowd, time);
            report.say(&format!("{size} pods: {} started them in {time:.2} s", who.name()));
            let asked = ask(report, engine, &pods).await;
            report.note(who, &[Measure::List, Measure::Status], asked);
            let weighed = weigh(report, engine, idle, pods.len()).await;
            let measures =
                [Measure::DaemonCrowd, Measure::HelpersCrowd, Measure::PodMemory, Measure::PodProcesses];
            report.note(who, &measures, weighed);
        }
        Some(why) => report.fail(who, OF_A_CROWD, &why),
    }
    for pod in pods {
        let ended = pod.end(&engine.cri).await.map(|_| ());
        report.note(who, &[Measure::PodEnd], ended.context("end one of many pods"));
    }
}

/// One client: starts pods until one fails. Returns what it started.
async fn start(engine: &Engine, count: usize) -> (Vec<Pod>, Option<anyhow::Error>) {
    let mut pods = Vec::with_capacity(count);
    for number in 0..count {
        match pods::start(&engine.cri, &engine.dir, false).await {
            Ok((pod, _)) => pods.push(pod),
            Err(err) => return (pods, Some(err.context(format!("start pod {number} of {count}")))),
        }
    }
    (pods, None)
}

async fn ask(report: &mut Report, engine: &Engine, pods: &[Pod]) -> anyhow::Result<()> {
    for number in 0..QUESTIONS {
        let begin = Instant::now();
        let answer = engine.cri.list_containers(ListContainersRequest::default()).await;
        let time = begin.elapsed();
        let count = answer.context("ListContainers")?.containers.len();
        ensure!(count == pods.len(), "ListContainers shows {count} containers, not {}", pods.len());
        report.add_ms(engine.who, Measure::List, time);

        let container_id = pods[number % pods.len()].container.clone();
        let request = ContainerStatusRequest { container_id, verbose: false };
        let begin = Instant::now();
        let answer = engine.cri.container_status(request).await;
        let time = begin.elapsed();
        let status = answer.context("ContainerStatus")?.status.context("ContainerStatus is empty")?;
        ensure!(
            status.state() == cri_api::v1::ContainerState::ContainerRunning,
            "a container is {:?}, not running",
            status.state()
        );
        report.add_ms(engine.who, Measure::Status, time);
    }
    Ok(())
}

async fn weigh(report: &mut Report, engine: &Engine, idle: Option<Usage>, pods: usize) -> anyhow::Result<()> {
    tokio::time::sleep(SETTLE).await;
    let usage = usage(engine)?;
    let who = engine.who;
    report.add(who, Measure::DaemonCrowd, usage.daemon.rss_mb());
    report.add(who, Measure::HelpersCrowd, usage.helpers.rss_mb());
    let idle = idle.context("memory idle is not known")?;
    let (more_kb, each) = (usage.helpers.pss_kb() - idle.helpers.pss_kb(), pods as f64);
    report.add(who, Measure::PodMemory, more_kb / each);
    report.add(who, Measure::PodProcesses, (usage.count as f64 - idle.count as f64) / each);
    Ok(())
}
