//! How long to wait before trying again, and how to say what went wrong.

use std::error::Error;
use std::time::Duration;

/// A back-off that doubles from `first` to `most` and starts over after a success.
#[derive(Debug, Clone)]
pub struct Patience {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Patience {
    /// A fresh back-off.
    pub fn new(first: Duration, most: Duration) -> Self {
        Patience { first, most, next: first }
    }

    /// How long to wait now; the next wait is twice that.
    pub fn wait(&mut self) -> Duration {
        let now = self.next;
        self.next = (now * 2).min(self.most);
        now
    }

    /// It worked: the next wait is the first again.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

/// An error with its causes, `: ` between them: the one place that prints a chain.
pub fn describe(err: &dyn Error) -> String {
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(err) = cause {
        let next = err.to_string();
        // Some libraries repeat the cause in their own message.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = err.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_bound_and_start_over() {
        let mut patience = Patience::new(Duration::from_secs(1), Duration::from_secs(5));
        let waits: Vec<_> = (0..4).map(|_| patience.wait().as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 5]);
        patience.reset();
        assert_eq!(patience.wait().as_secs(), 1);
    }

    #[test]
    fn a_cause_is_printed_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("open door")]
        struct Outer(#[source] std::io::Error);
        let err = Outer(std::io::Error::other("locked"));
        assert_eq!(describe(&err), "open door: locked");
    }
}
