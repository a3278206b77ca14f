//! What critest's benchmarks measured, as a table.

use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::Value;

/// Reads the files of samples that critest wrote: a line for each benchmark's call.
pub(super) fn table(samples: &Path) -> anyhow::Result<String> {
    let mut files: Vec<_> = std::fs::read_dir(samples)?.collect::<Result<Vec<_>, _>>()?;
    ensure!(!files.is_empty(), "critest wrote no samples");
    files.sort_by_key(std::fs::DirEntry::file_name);
    let mut table = row(["benchmark", "call", "n", "p50 ms", "p99 ms", "max ms"].map(str::to_owned));
    for file in files {
        let name = file.file_name().to_string_lossy().replace("_benchmark_data.json", "");
        let text = std::fs::read(file.path())?;
        let rows =
            serde_json::from_slice(&text).map_err(anyhow::Error::from).and_then(|set| rows(&name, &set));
        table += &rows.with_context(|| format!("read {}", file.path().display()))?;
    }
    Ok(table)
}

fn rows(name: &str, set: &Value) -> anyhow::Result<String> {
    let calls = set["operationsNames"].as_array().context("no operationsNames")?;
    let points = set["datapoints"].as_array().context("no datapoints")?;
    let mut rows = String::new();
    for (at, call) in calls.iter().enumerate() {
        let durations = points.iter().filter_map(|point| point["operationsDurationsNs"][at].as_u64());
        let mut durations: Vec<u64> = durations.collect();
        durations.sort_unstable();
        let last = durations.last().context("no samples")?;
        #[expect(clippy::cast_precision_loss, reason = "milliseconds for people")]
        let ms = |ns: u64| format!("{:.2}", ns as f64 / 1e6);
        let quantile = |percent: usize| ms(durations[(durations.len() - 1) * percent / 100]);
        let call = call.as_str().unwrap_or_default().to_owned();
        rows +=
            &row([name.to_owned(), call, durations.len().to_string(), quantile(50), quantile(99), ms(*last)]);
    }
    Ok(rows)
}

fn row([benchmark, call, n, p50, p99, max]: [String; 6]) -> String {
    format!("{benchmark:<24} {call:<16} {n:>6} {p50:>9} {p99:>9} {max:>9}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_become_rows() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(table(dir.path()).is_err(), "nothing was measured");
        let set = r#"{"operationsNames": ["CreateContainer", "StartContainer"],
            "datapoints": [{"operationsDurationsNs": [1000000, 2500000]}, {"operationsDurationsNs": [3000000, 500000]}]}"#;
        std::fs::write(dir.path().join("container_benchmark_data.json"), set).expect("written");
        let table = table(dir.path()).expect("a table");
        let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[1], ["container", "CreateContainer", "2", "1.00", "1.00", "3.00"]);
        assert_eq!(rows[2], ["container", "StartContainer", "2", "0.50", "0.50", "2.50"]);
    }
}
