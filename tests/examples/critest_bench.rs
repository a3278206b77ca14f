//! critest's benchmarks against the built binary, and a table of what they measured: `make critest-bench`.

use tests::critest::Suite;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    if !tests::can_run() {
        return Ok(());
    }
    let suite = Suite::start().await?;
    print!("{}", suite.benchmark(100).await?);
    suite.end().await
}
