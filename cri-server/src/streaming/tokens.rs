//! What the streaming URLs stand for until they are used.
//!
//! Guarantees: a token is 16 random bytes, good for one use within one minute.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rand::RngCore;

/// How long a URL can be used.
pub const LIFETIME: Duration = Duration::from_secs(60);
/// How many may wait to be used.
const MAX_WAITING: usize = 1000;

/// Tokens and what they stand for. The caller tells the time.
pub struct Tokens<T>(HashMap<String, (T, Instant)>);

/// Too many URLs wait to be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{MAX_WAITING} streaming URLs wait to be used: try again in a minute")]
pub struct Full;

impl<T> Default for Tokens<T> {
    fn default() -> Self {
        Tokens(HashMap::new())
    }
}

impl<T> Tokens<T> {
    /// Keeps `what` under a new token.
    pub fn put(&mut self, what: T, now: Instant) -> Result<String, Full> {
        if self.0.len() >= MAX_WAITING {
            self.0.retain(|_, (_, end)| *end > now);
            if self.0.len() >= MAX_WAITING {
                return Err(Full);
            }
        }
        let mut bytes = [0; 16];
        rand::rng().fill_bytes(&mut bytes);
        let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        self.0.insert(token.clone(), (what, now + LIFETIME));
        Ok(token)
    }

    /// Uses a token up. `None` if it never was, was used, or is too old.
    pub fn take(&mut self, token: &str, now: Instant) -> Option<T> {
        let (what, end) = self.0.remove(token)?;
        (now < end).then_some(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_works_once_and_for_a_minute() {
        let (mut tokens, now) = (Tokens::default(), Instant::now());
        let first = tokens.put(1, now).expect("room");
        let second = tokens.put(2, now).expect("room");
        assert!(first != second && first.len() == 32);
        assert_eq!(tokens.take(&first, now), Some(1));
        assert_eq!(tokens.take(&first, now), None);
        assert_eq!(tokens.take(&second, now + LIFETIME), None);
        assert_eq!(tokens.take("x", now), None);
    }

    #[test]
    fn old_ones_make_room() {
        let (mut tokens, now) = (Tokens::default(), Instant::now());
        for n in 0..MAX_WAITING {
            tokens.put(n, now).expect("room");
        }
        assert_eq!(tokens.put(0, now), Err(Full));
        assert!(tokens.put(0, now + LIFETIME).is_ok());
    }
}
