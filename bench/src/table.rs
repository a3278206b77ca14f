//! The report as a table. Pure.
//!
//! Guarantees: every measure has a row, also one that failed or has no peer; a budget counts as met only
//! if nothing of its measure failed.

use std::fmt::Write;

use crate::measure::{Budget, MEASURES, Row, Unit};
use crate::report::{Report, Series, Who};
use crate::stats::{median, percentile};

const HEADINGS: [&str; 6] =
    ["what", "budget", "orlop p50 (p99)", "containerd+runc p50 (p99)", "ratio", "met?"];

/// The table and, below it, the failures.
pub fn render(report: &Report, has_peer: bool) -> String {
    let mut rows = vec![HEADINGS.map(str::to_owned)];
    rows.extend(MEASURES.iter().map(|row| cells(row, report, has_peer)));
    let widths: Vec<usize> =
        (0..6).map(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let padded: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text += padded.join(" | ").trim_end();
        text.push('\n');
        if number == 0 {
            text += &widths.iter().map(|width| "-".repeat(*width)).collect::<Vec<_>>().join("-|-");
            text.push('\n');
        }
    }
    for ((who, why), (count, measures)) in report.failures() {
        let of = MEASURES.iter().filter(|row| measures.contains(&row.measure));
        let of: Vec<_> = of.map(|row| row.what).collect();
        // Writing to a string can't fail.
        let _ = writeln!(text, "FAILED {count} times, {}, {}: {}", who.name(), of.join("; "), why.trim());
    }
    text
}

fn cells(row: &Row, report: &Report, has_peer: bool) -> [String; 6] {
    let ours = report.series(Who::Orlop, row.measure);
    let peers = report.series(Who::Peer, row.measure);
    let middle = |series: Option<&Series>| series.and_then(|series| median(&series.values));
    let ratio = middle(ours).zip(middle(peers)).filter(|(_, peer)| *peer > 0.0).map(|(our, peer)| our / peer);
    let budget = match row.budget {
        Budget::AtMost(most) => format!("≤ {}", with_unit(most, row.unit)),
        Budget::OfPeer(part) => format!("≤ {part} × peer"),
        Budget::None => String::new(),
    };
    [
        row.what.to_owned(),
        budget,
        cell(ours, row.unit, "not measured"),
        cell(peers, row.unit, if has_peer { "-" } else { "not installed" }),
        ratio.map(|ratio| format!("{ratio:.3}")).unwrap_or_default(),
        verdict(row.budget, ours, middle(ours), ratio).to_owned(),
    ]
}

fn cell(series: Option<&Series>, unit: Unit, absent: &str) -> String {
    let Some(series) = series else { return absent.to_owned() };
    let failed = match series.failures.len() {
        0 => String::new(),
        count => format!(" {count} FAILED"),
    };
    match (median(&series.values), percentile(&series.values, 99.0)) {
        (Some(middle), Some(high)) if series.values.len() > 1 => {
            format!("{} ({}){failed}", with_unit(middle, unit), number(high))
        }
        (Some(only), _) => format!("{}{failed}", with_unit(only, unit)),
        _ => "FAILED".to_owned(),
    }
}

fn verdict(budget: Budget, ours: Option<&Series>, middle: Option<f64>, ratio: Option<f64>) -> &'static str {
    if budget == Budget::None {
        return "";
    }
    if ours.is_none_or(|series| !series.failures.is_empty()) {
        return "NO: failed";
    }
    let met = match budget {
        Budget::AtMost(most) => middle.map(|middle| middle <= most),
        Budget::OfPeer(part) => ratio.map(|ratio| ratio <= part),
        Budget::None => None,
    };
    match met {
        Some(true) => "yes",
        Some(false) => "NO",
        None => "no peer",
    }
}

fn with_unit(value: f64, unit: Unit) -> String {
    format!("{} {}", number(value), unit.name()).trim_end().to_owned()
}

/// Three digits that matter, more left of the point.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 100.0 || v == v.trunc() => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;
    use expect_test::{Expect, expect};

    use super::*;
    use crate::measure::Measure;

    /// Prints the rows of the measures named, from a report that `fill` fills.
    fn check(measures: &[Measure], has_peer: bool, fill: impl Fn(&mut Report), expected: Expect) {
        let mut report = Report::new();
        fill(&mut report);
        let rows = MEASURES.iter().filter(|row| measures.contains(&row.measure));
        let lines: Vec<_> = rows.map(|row| cells(row, &report, has_peer).join(" | ")).collect();
        expected.assert_eq(&lines.join("\n"));
    }

    #[test]
    fn a_row_says_median_percentile_ratio_and_verdict() {
        let fill = |report: &mut Report| {
            [3.0, 5.0, 4.0].iter().for_each(|v| report.add(Who::Orlop, Measure::PodStart, *v));
            [140.0, 160.0, 150.0].iter().for_each(|v| report.add(Who::Peer, Measure::PodStart, *v));
            report.add(Who::Orlop, Measure::Exec, 1.75);
            report.add(Who::Orlop, Measure::Create, 0.12345);
        };
        check(
            &[Measure::Create, Measure::PodStart, Measure::Exec],
            true,
            fill,
            expect![[r#"
                CreateContainer, cached image |  | 0.123 ms | - |  | 
                pod start: the sum of the three | ≤ 8 ms | 4 ms (5) | 150 ms (160) | 0.027 | yes
                ExecSync `true` | ≤ 1.50 ms | 1.75 ms | - |  | NO"#]],
        );
    }

    #[test]
    fn a_budget_of_the_peer_needs_the_peer() {
        let ours = |report: &mut Report| report.add(Who::Orlop, Measure::Pull, 1.5);
        check(
            &[Measure::Pull],
            false,
            ours,
            expect![
                "pull and unpack 35000 files from loopback | ≤ 0.6 × peer | 1.50 s | not installed |  | no peer"
            ],
        );
        let both = |report: &mut Report| {
            ours(report);
            report.add(Who::Peer, Measure::Pull, 3.0);
        };
        check(
            &[Measure::Pull],
            true,
            both,
            expect!["pull and unpack 35000 files from loopback | ≤ 0.6 × peer | 1.50 s | 3 s | 0.500 | yes"],
        );
    }

    #[test]
    fn what_failed_or_was_not_tried_is_not_met() {
        let fill = |report: &mut Report| {
            report.add(Who::Orlop, Measure::Exec, 1.0);
            report.fail(Who::Orlop, &[Measure::Exec, Measure::List], &anyhow!("no such file"));
        };
        check(
            &[Measure::Exec, Measure::List, Measure::Binary],
            true,
            fill,
            expect![[r#"
                ExecSync `true` | ≤ 1.50 ms | 1 ms 1 FAILED | - |  | NO: failed
                ListContainers with many pods | ≤ 0.150 ms | FAILED | - |  | NO: failed
                size of the binary | ≤ 40 MB | not measured | - |  | NO: failed"#]],
        );
    }
}
