//! The time, as an argument: the wall clock, or tokio's own clock in tests that pause it.

use jiff::Timestamp;
use tokio::time::Instant;

/// Where the time comes from.
#[derive(Clone, Copy, Debug, Default)]
pub enum Clock {
    /// The machine's wall clock.
    #[default]
    Wall,
    #[cfg(test)]
    /// A fixed start plus what tokio's clock has advanced since then.
    Tokio {
        /// The wall-clock time at `since`.
        base: Timestamp,
        /// When it began.
        since: Instant,
    },
}

impl Clock {
    /// The time now.
    pub fn now(&self) -> Timestamp {
        match self {
            Clock::Wall => Timestamp::now(),
            #[cfg(test)]
            Clock::Tokio { base, since } => crate::pod::step::after(*base, since.elapsed()),
        }
    }

    /// The moment of tokio's clock at which it will be `at`.
    pub fn instant(&self, at: Timestamp) -> Instant {
        Instant::now() + crate::pod::step::until(self.now(), at)
    }
}
