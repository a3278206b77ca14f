//! Waiting for conditions.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::bail;

/// How often a condition is looked at again.
const LOOK: Duration = Duration::from_millis(100);

/// An emulated guest on a machine that has other work needs a multiple of what it needs on a quiet one.
const PATIENCE: Duration = Duration::from_secs(180);

/// Waits up to three minutes until `look` gives `Ok`; a time-out prints what it said last.
///
/// # Errors
/// The last answer of `look`, after three minutes.
pub async fn eventually<T, F>(what: &str, look: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<T>>,
{
    eventually_within(what, PATIENCE, look).await
}

/// The same with another patience.
///
/// # Errors
/// The last answer of `look`, after `patience`.
pub async fn eventually_within<T, F>(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> F,
) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<T>>,
{
    let start = Instant::now();
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        match look().await {
            Ok(found) => return Ok(found),
            Err(last) if start.elapsed() > patience => {
                bail!("waited {:.0} s for {what}; at last: {last:#}", patience.as_secs_f64())
            }
            Err(_) => {}
        }
    }
}
