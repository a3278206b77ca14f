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
            own_network(heard, engine).await;
            host_network(heard, engine).await;
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

async fn own_network(report: &mut Report, engine: &Engine) {
    let who = engine.who;
    let (pod, times) = match pods::start(&engine.cri, &engine.dir, false).await {
        Ok(started) => started,
        Err(err) => {
            report.fail(who, &[Measure::PodStart, Measure::Exec, Measure::PodEnd], &err);
            return;
        }
    };
    report.add_ms(who, Measure::RunSandbox, times.sandbox);
    report.add_ms(who, Measure::Create, times.create);
    report.add_ms(who, Measure::Start, times.start);
    report.add_ms(who, Measure::PodStart, times.sum());
    for _ in 0..EXECS {
        match pod.exec(&engine.cri).await {
            Ok(time) => report.add_ms(who, Measure::Exec, time),
            Err(err) => report.fail(who, &[Measure::Exec], &err),
        }
    }
    match pod.end(&engine.cri).await {
        Ok(times) => {
            report.add_ms(who, Measure::StopSandbox, times.stop);
            report.add_ms(who, Measure::RemoveSandbox, times.remove);
            report.add_ms(who, Measure::PodEnd, times.stop + times.remove);
        }
        Err(err) => report.fail(who, &[Measure::PodEnd], &err),
    }
}

async fn host_network(report: &mut Report, engine: &Engine) {
    match pods::start(&engine.cri, &engine.dir, true).await {
        Ok((pod, times)) => {
            report.add_ms(engine.who, Measure::PodStartHost, times.sum());
            let ended = pod.end(&engine.cri).await.map(|_| ());
            report.note(engine.who, &[Measure::PodEnd], ended.context("end a pod with host network"));
        }
        Err(err) => report.fail(engine.who, &[Measure::PodStartHost], &err),
    }
}
