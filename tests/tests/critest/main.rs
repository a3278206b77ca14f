//! cri-tools' critest against the built binary: no failure, and no skip but those that are named.

use anyhow::ensure;
use tests::critest::{EXEMPTIONS, SPECS, Suite, verdict};

#[tokio::test(flavor = "multi_thread")]
async fn critest() -> anyhow::Result<()> {
    if !tests::can_run() {
        return Ok(());
    }
    let start = std::time::Instant::now();
    let suite = Suite::start().await?;
    let outcomes = suite.validate().await?;
    let exempted: Vec<_> = EXEMPTIONS.iter().filter(|exemption| (exemption.holds)()).collect();
    let count = |state: &str| outcomes.iter().filter(|outcome| outcome.state == state).count();
    println!(
        "critest: {} passed, {} failed, {} skipped of {} specs, in {} s",
        count("passed"),
        outcomes.len() - count("passed") - count("skipped"),
        count("skipped"),
        outcomes.len(),
        start.elapsed().as_secs()
    );
    for exemption in &exempted {
        println!("skipped: {} specs {:?}: {}", exemption.count, exemption.specs, exemption.why);
    }
    let expected: Vec<_> = exempted.iter().map(|exemption| (exemption.specs, exemption.count)).collect();
    let wrong = verdict(&outcomes, &expected, SPECS);
    ensure!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    // That they run is what is tested; `make critest-bench` has figures of an optimized build.
    println!("critest's benchmarks, of this build:\n{}", suite.benchmark(20).await?);
    suite.end().await
}
