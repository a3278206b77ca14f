//! Watches over a pull: says now and then how far it is, and ends one in which nothing moves.

use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior};
use tracing::info;

use super::bring::Flown;
use crate::layers::Flight;
use crate::reference::Reference;

/// A pull that takes longer is told in the log, this often.
const TELL: Duration = Duration::from_secs(30);

pub(super) struct Watch {
    timer: Interval,
    patience: Duration,
    what: String,
    bytes: u64,
    moved: u64,
    last_move: Instant,
    began: Instant,
    last_told: Instant,
}

impl Watch {
    pub(super) fn new(patience: Duration, reference: &Reference, bytes: u64) -> Watch {
        let now = Instant::now();
        let every = (patience / 8).clamp(Duration::from_millis(10), TELL / 2);
        let mut timer = tokio::time::interval(every);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let what = reference.to_string();
        Watch { timer, patience, what, bytes, moved: 0, last_move: now, began: now, last_told: now }
    }

    /// Waits until it is time to look.
    pub(super) async fn tick(&mut self) {
        self.timer.tick().await;
    }

    /// Looks how far all is. Tells for how long nothing moved if that is too long; waiting for one's turn
    /// does not count.
    pub(super) fn look(&mut self, flown: &Flown) -> Option<Duration> {
        let flights: Vec<_> = flown.lock().iter().filter_map(std::sync::Weak::upgrade).collect();
        let sights: Vec<_> = flights.iter().map(|flight| Flight::sight(flight)).collect();
        let (moved, working) =
            (sights.iter().map(|s| s.moved).sum::<u64>(), sights.iter().filter(|s| s.working).count());
        let now = Instant::now();
        if moved != self.moved || working == 0 {
            self.moved = moved;
            self.last_move = now;
        }
        if now - self.last_told >= TELL {
            self.last_told = now;
            let took = (now - self.began).as_secs();
            info!(
                image = self.what,
                seconds = took,
                layers = working,
                bytes = self.bytes,
                moved,
                "pull goes on"
            );
        }
        let still = now - self.last_move;
        (still >= self.patience).then_some(still)
    }
}
