//! Forgets old events.
//!
//! Guarantees: an event lives at least [`LIFETIME`] after it was last seen.

use std::{sync::Arc, time::Duration};

use api::{meta, registry};
use jiff::Timestamp;
use serde_json::Value;
use store::Txn;

use crate::{app::App, keys};

/// How long an event is kept: upstream's default.
const LIFETIME: jiff::SignedDuration = jiff::SignedDuration::from_hours(1);
const EVERY: Duration = Duration::from_secs(60);

/// Sweeps until the server stops.
pub(crate) async fn run(app: Arc<App>) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        // Cancel-safe: a tick that was not taken comes again.
        tokio::select! {
            _ = ticks.tick() => {}
            () = app.stop.cancelled() => return,
        }
        let row = registry::find("", "v1", "events").expect("core resources are served");
        let now = Timestamp::now();
        for entry in app.cache.list(row.storage, &keys::collection(row, "")).entries {
            if !is_old(&entry.present(row), now) {
                continue;
            }
            let txn = Txn::delete(entry.key.as_bytes().to_vec(), entry.revision);
            if let Err(err) = app.store.txn(txn).await {
                tracing::warn!(key = %entry.key, error = ?err, "an old event cannot be deleted");
                break;
            }
        }
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
