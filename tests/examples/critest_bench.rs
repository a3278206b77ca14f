//! critest's benchmarks against the built binary, and a table of what they measured: `make critest-bench`.

use std::path::Path;

use anyhow::Context;
use serde_json::Value;
use tests::critest::Suite;

/// Samples of each benchmark, one at a time: the figures are of the runtime, not of a queue before it.
const PARAMS: &str = "containersNumber: 100\ncontainersNumberParallel: 1\npodsNumber: 100\npodsNumberParallel: 1\n\
                      imagesNumber: 50\nimagesNumberParallel: 1\n";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    if !tests::can_run() {
        return Ok(());
    }
    let suite = Suite::start().await?;
    let samples = suite.node.root.join("samples");
    suite.benchmark(PARAMS, &samples).await?;
    println!("{:<24} {:<16} {:>6} {:>9} {:>9} {:>9}", "benchmark", "call", "n", "p50 ms", "p99 ms", "max ms");
    let mut files: Vec<_> = std::fs::read_dir(&samples)?.collect::<Result<Vec<_>, _>>()?;
    files.sort_by_key(std::fs::DirEntry::file_name);
    anyhow::ensure!(!files.is_empty(), "critest wrote no samples");
    for file in files {
        print(&file.path()).with_context(|| format!("read {}", file.path().display()))?;
    }
    suite.end().await
}

fn print(path: &Path) -> anyhow::Result<()> {
    let set: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    let name = path.file_name().map(|name| name.to_string_lossy().replace("_benchmark_data.json", ""));
    let calls = set["operationsNames"].as_array().context("no operationsNames")?;
    let points = set["datapoints"].as_array().context("no datapoints")?;
    for (at, call) in calls.iter().enumerate() {
        let durations = points.iter().filter_map(|point| point["operationsDurationsNs"][at].as_u64());
        let mut durations: Vec<u64> = durations.collect();
        durations.sort_unstable();
        let last = durations.last().context("no samples")?;
        #[expect(clippy::cast_precision_loss, reason = "milliseconds for people")]
        let ms = |ns: u64| ns as f64 / 1e6;
        let quantile = |percent: usize| ms(durations[(durations.len() - 1) * percent / 100]);
        println!(
            "{:<24} {:<16} {:>6} {:>9.2} {:>9.2} {:>9.2}",
            name.as_deref().unwrap_or_default(),
            call.as_str().unwrap_or_default(),
            durations.len(),
            quantile(50),
            quantile(99),
            ms(*last)
        );
    }
    Ok(())
}
