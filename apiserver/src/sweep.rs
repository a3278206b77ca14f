//! Housekeeping: forgets old events, and restores the objects that every cluster has.
//!
//! Guarantees: an event lives at least [`LIFETIME`] after it was last seen; the service
//! `kubernetes` is back seconds after somebody deleted it.

use std::{sync::Arc, time::Duration};

use api::{meta, registry};
use jiff::Timestamp;
use serde_json::Value;
use store::Txn;

use crate::{app::App, bootstrap, keys};

/// How long an event is kept: upstream's default.
const LIFETIME: jiff::SignedDuration = jiff::SignedDuration::from_hours(1);
const EVERY: Duration = Duration::from_secs(60);
const RESTORE_EVERY: Duration = Duration::from_secs(10);

/// Sweeps until the server stops.
pub(crate) async fn run(app: Arc<App>) {
    let every = |period| {
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ticks
    };
    let (mut sweeps, mut restores) = (every(EVERY), every(RESTORE_EVERY));
    loop {
        // Cancel-safe: a tick that was not taken comes again.
        tokio::select! {
            _ = sweeps.tick() => sweep(&app).await,
            _ = restores.tick() => restore(&app).await,
            () = app.stop.cancelled() => return,
        }
    }
}

async fn sweep(app: &App) {
    let row = registry::find("", "v1", "events").expect("core resources are served");
    let now = Timestamp::now();
    for entry in app.cache.list(row.storage, &keys::collection(row, "")).entries {
        if !is_old(&entry.present(row), now) {
            continue;
        }
        let txn = Txn::delete(entry.key.as_bytes().to_vec(), entry.revision);
        if let Err(err) = app.store.txn(txn).await {
            tracing::warn!(key = %entry.key, error = ?err, "an old event cannot be deleted");
            return;
        }
    }
}

async fn restore(app: &App) {
    let row = registry::find("", "v1", "services").expect("core resources are served");
    if app.cached(row, "default", "kubernetes").is_ok() {
        return;
    }
    if let Err(err) = bootstrap::run(&app.config, &*app.store).await {
        tracing::warn!(error = %err, "the objects that every cluster has cannot be restored");
    }
}

/// Decides whether a core event's time is over.
fn is_old(event: &Value, now: Timestamp) -> bool {
    let at = |path: &[&str]| meta::str_at(event, path).parse::<Timestamp>().ok();
    let seen = [
        at(&["lastTimestamp"]),
        at(&["series", "lastObservedTime"]),
        at(&["eventTime"]),
        at(&["metadata", "creationTimestamp"]),
    ];
    let last = seen.into_iter().flatten().max();
    last.is_some_and(|last| now.duration_since(last) > LIFETIME)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_live_an_hour_after_they_were_last_seen() {
        let now = "2026-01-01T12:00:00Z".parse().unwrap();
        let event = |last: &str| json!({"metadata": {"creationTimestamp": "2026-01-01T09:00:00Z"}, "lastTimestamp": last});
        assert!(is_old(&event("2026-01-01T10:59:59Z"), now));
        assert!(!is_old(&event("2026-01-01T11:00:01Z"), now));
        assert!(is_old(&json!({"metadata": {"creationTimestamp": "2026-01-01T09:00:00Z"}}), now));
        assert!(!is_old(&json!({"metadata": {}}), now));
    }
}
