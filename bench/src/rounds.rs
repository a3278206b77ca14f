//! One pod after the other: start, exec, stop; the runtimes take turns, so that both feel the machine's drift.

use anyhow::Context;

use crate::engine::Engine;
use crate::measure::Measure;
use crate::pods;
use crate::report::Report;
use crate::stats::median;

/// How often each pod is asked to run `true`.
const EXECS: usize = 3;
/// A progress line comes each so many rounds.
const SPEAK: usize = 10;

/// Runs `warm_up` rounds that count for nothing, then `rounds` that count.
pub async fn run(report: &mut Report, engines: &[Engine], warm_up: usize, rounds: usize) {
    for round in 0..warm_up + rounds {
        let counts = round >= warm_up;
        let mut unheard = Report::new();
        // Who goes first alternates: what the first leaves to the kernel is done while the second runs.
        let order: Vec<_> = match round % 2 {
            0 => engines.iter().collect(),
            _ => engines.iter().rev().collect(),
        };
        for engine in order {
            let heard = if counts { &mut *report } else { &mut unheard };
            let own = own_network(heard, engine).await.context("a pod with its own network");
            let measures = &[Measure::PodStart, Measure::PodEnd, Measure::Exec];
            heard.note(engine.who, measures, own);
            let host = host_network(heard, engine).await.context("a pod with host network");
            heard.note(engine.who, &[Measure::PodStartHost], host);
        }
        let number = round + 1 - warm_up.min(round);
        if !counts && round == 0 {
            report.say(&format!("single pods: {warm_up} rounds to warm up, {rounds} that count"));
        } else if counts && (number.is_multiple_of(SPEAK) || number == rounds) {
            let said = engines.iter().filter_map(|engine| {
                let middle = median(&report.series(engine.who, Measure::PodStart)?.values)?;
                Some(format!("{} {middle:.1} ms", engine.who.name()))
            });
            let said: Vec<_> = said.collect();
            report.say(&format!("single pods: round {number} of {rounds}, start p50 {}", said.join(", ")));
        }
    }
}

async fn own_network(report: &mut Report, engine: &Engine) -> anyhow::Result<()> {
    let (pod, times) = pods::start(&engine.cri, &engine.dir, false).await?;
    report.add_ms(engine.who, Measure::RunSandbox, times.sandbox);
    report.add_ms(engine.who, Measure::Create, times.create);
    report.add_ms(engine.who, Measure::Start, times.start);
    report.add_ms(engine.who, Measure::PodStart, times.sum());
    for _ in 0..EXECS {
        match pod.exec(&engine.cri).await {
            Ok(time) => report.add_ms(engine.who, Measure::Exec, time),
            Err(err) => report.fail(engine.who, &[Measure::Exec], &err),
        }
    }
    let times = pod.end(&engine.cri).await?;
    report.add_ms(engine.who, Measure::StopSandbox, times.stop);
    report.add_ms(engine.who, Measure::RemoveSandbox, times.remove);
    report.add_ms(engine.who, Measure::PodEnd, times.stop + times.remove);
    Ok(())
}

async fn host_network(report: &mut Report, engine: &Engine) -> anyhow::Result<()> {
    let (pod, times) = pods::start(&engine.cri, &engine.dir, true).await?;
    report.add_ms(engine.who, Measure::PodStartHost, times.sum());
    pod.end(&engine.cri).await.map(|_| ())
}
