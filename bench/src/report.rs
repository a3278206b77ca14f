//! What was measured of whom, and what failed.
//!
//! Guarantees: a failed measurement is kept with its reason; it never looks like one that was not tried.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::measure::Measure;

/// Whom a value belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// The binary under test.
    Orlop,
    /// containerd with runc.
    Peer,
}

impl Who {
    /// How it is named in the table.
    pub fn name(self) -> &'static str {
        match self {
            Who::Orlop => "orlop",
            Who::Peer => "containerd+runc",
        }
    }
}

/// The values of one measure.
#[derive(Debug, Default, Clone)]
pub struct Series {
    /// In the measure's unit, in the order in which they came.
    pub values: Vec<f64>,
    /// Why the others are missing.
    pub failures: Vec<String>,
}

/// All series of a run.
#[derive(Debug)]
pub struct Report {
    series: BTreeMap<(Measure, Who), Series>,
    start: Instant,
}

impl Report {
    /// An empty report; the run's clock starts.
    pub fn new() -> Report {
        Report { series: BTreeMap::new(), start: Instant::now() }
    }

    /// Adds a value in the measure's unit.
    pub fn add(&mut self, who: Who, measure: Measure, value: f64) {
        self.series.entry((measure, who)).or_default().values.push(value);
    }

    /// Adds a time as milliseconds.
    pub fn add_ms(&mut self, who: Who, measure: Measure, time: Duration) {
        self.add(who, measure, time.as_secs_f64() * 1e3);
    }

    /// Notes that measuring failed.
    pub fn fail(&mut self, who: Who, measures: &[Measure], why: &anyhow::Error) {
        self.say(&format!("FAILED for {}: {why:#}", who.name()));
        for measure in measures {
            self.series.entry((*measure, who)).or_default().failures.push(format!("{why:#}"));
        }
    }

    /// Notes the error, if it is one, as the failure of these measures.
    pub fn note(&mut self, who: Who, measures: &[Measure], result: anyhow::Result<()>) {
        if let Err(why) = result {
            self.fail(who, measures, &why);
        }
    }

    /// What there is of one measure; `None` if it was never tried.
    pub fn series(&self, who: Who, measure: Measure) -> Option<&Series> {
        self.series.get(&(measure, who))
    }

    /// Every reason for a failure: whose, how often at most, why, and of which measures.
    pub fn failures(&self) -> BTreeMap<(Who, &str), (usize, Vec<Measure>)> {
        let mut all: BTreeMap<_, (usize, Vec<Measure>)> = BTreeMap::new();
        for ((measure, who), series) in &self.series {
            for why in &series.failures {
                let (count, measures) = all.entry((*who, why.as_str())).or_default();
                if measures.last() != Some(measure) {
                    measures.push(*measure);
                }
                *count = series.failures.iter().filter(|other| *other == why).count().max(*count);
            }
        }
        all
    }

    /// Seconds since the run began.
    pub fn elapsed(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// Prints a progress line.
    pub fn say(&self, text: &str) {
        eprintln!("bench: [{:5.1} s] {text}", self.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn failures_are_gathered_by_their_reason() {
        let mut report = Report::new();
        report.add(Who::Orlop, Measure::Exec, 1.0);
        report.fail(Who::Orlop, &[Measure::Exec, Measure::List], &anyhow!("broken"));
        report.fail(Who::Orlop, &[Measure::Exec], &anyhow!("broken"));
        report.fail(Who::Peer, &[Measure::Exec], &anyhow!("absent"));
        let all: Vec<_> = report.failures().into_iter().collect();
        let ours = ((Who::Orlop, "broken"), (2, vec![Measure::Exec, Measure::List]));
        assert_eq!(all, [ours, ((Who::Peer, "absent"), (1, vec![Measure::Exec]))]);
    }
}
