//! The one shell of most controllers: wait for a change, plan, write.

use std::time::Duration;

use client::describe;
use futures::future::select_all;
use jiff::Timestamp;
use kube::Client;
use kube::api::DynamicObject;
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::write::{Write, act};

/// A safety net: everything is planned again after this long, though nothing changed.
const RESYNC: Duration = Duration::from_secs(60);
/// After a failed write, wait this long before the next round.
const RETRY: Duration = Duration::from_millis(500);

/// What one round decided.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// What is to be done, in this order.
    pub writes: Vec<Write>,
    /// When time alone will change the decision.
    pub wake: Option<Duration>,
}

impl Plan {
    /// Wakes at the earlier of two times.
    pub fn wake_in(&mut self, wait: Duration) {
        self.wake = Some(self.wake.map_or(wait, |wake| wake.min(wait)));
    }
}

/// A controller, as the shell sees it.
pub trait Decide: Send {
    /// For logs.
    const NAME: &'static str;
    /// Wakes when what it looks at changes; their first values wait for the first lists.
    fn changed(&self) -> Vec<watch::Receiver<u64>>;
    /// Decides one round.
    fn plan(&mut self, now: Timestamp) -> Plan;
    /// Hears of a write that succeeded, so that it need not wait for the watch to know of it.
    fn wrote(&mut self, _write: &Write, _made: Option<&DynamicObject>) {}
}

/// Runs a controller for ever.
pub async fn run<D: Decide>(client: &Client, mut controller: D) {
    let mut changed = controller.changed();
    for version in &mut changed {
        // The senders live in the controller's caches.
        let _synced = version.wait_for(|v| *v > 0).await;
    }
    loop {
        for version in &mut changed {
            version.mark_unchanged();
        }
        let plan = controller.plan(Timestamp::now());
        let mut failed = false;
        // An event tells of the write before it: where that came to nothing, there is nothing to tell.
        let mut happened = true;
        for write in &plan.writes {
            if matches!(write, Write::Event { .. }) && !happened {
                continue;
            }
            debug!(controller = D::NAME, ?write, "write");
            match act(client, write).await {
                Ok(made) => {
                    happened = made.is_some() || !matches!(write, Write::Create { .. });
                    controller.wrote(write, made.as_ref());
                }
                // Changed or gone meanwhile: the watch will tell.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => happened = false,
                Err(err) => {
                    happened = false;
                    warn!(controller = D::NAME, err = %describe(&err), "write");
                    failed = true;
                }
            }
        }
        let wait = if failed { RETRY } else { plan.wake.unwrap_or(RESYNC).min(RESYNC) };
        let any = select_all(changed.iter_mut().map(|version| Box::pin(version.changed())));
        tokio::select! {
            // Cancel-safe: an unobserved change stays marked as changed.
            _ = any, if !failed => (),
            () = tokio::time::sleep(wait) => (),
        }
    }
}
