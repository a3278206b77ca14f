//! The ready-made loop: one task that runs one probe of one container start.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use crate::model::{Kind, Outcome, Probe};
use crate::run::{Exec, Target, run};
use crate::tracker::{Step, Tracker};

/// What a worker tells the pod's task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Which probe.
    pub kind: Kind,
    /// What the last run said; failures, warnings and errors are worth an event.
    pub outcome: Outcome,
    /// What it leads to.
    pub step: Step,
    /// The verdict's meaning now (see [`Tracker::passed`]).
    pub passed: bool,
}

/// Runs one probe until it is dropped, or until nobody listens to `reports`.
///
/// `started_at` is the container's start; `started` says whether its startup probe has passed (a channel
/// that holds true, if it has none). Every outcome is reported but a success that changes nothing.
///
/// Cancel-safe: dropping it at any point abandons at most one running probe.
pub async fn worker(
    mut tracker: Tracker,
    probe: Probe,
    pod_ip: IpAddr,
    started_at: Instant,
    mut started: watch::Receiver<bool>,
    exec: Arc<dyn Exec>,
    reports: mpsc::Sender<Report>,
) {
    loop {
        let ready = *started.borrow_and_update();
        let Some(due) = tracker.due(ready) else {
            tokio::select! {
                () = reports.closed() => return,
                changed = started.changed() => match changed {
                    Ok(()) => continue,
                    // Nobody can start it any more.
                    Err(_) => return,
                },
            }
        };
        tokio::select! {
            () = reports.closed() => return,
            () = sleep_until(started_at + due) => {}
        }
        let at = started_at.elapsed();
        let outcome = run(&probe, Target { pod_ip }, exec.as_ref()).await;
        let step = tracker.step(&outcome, at);
        if step == Step::Same && matches!(outcome, Outcome::Success { .. }) {
            continue;
        }
        let report = Report { kind: tracker.kind(), outcome, step, passed: tracker.passed() };
        if reports.send(report).await.is_err() {
            return;
        }
    }
}

/// The time of a container's start as the worker counts it, from how long ago that was.
pub fn started_ago(ago: Duration) -> Instant {
    Instant::now().checked_sub(ago).unwrap_or_else(Instant::now)
}
