//! How much may be sent on a stream before its receiver asks for more.
//!
//! Guarantees: a peer that does flow control is never sent more than it allowed, once it has shown that
//! it does.
//! Caveat: the clients in use (moby/spdystream) never send WINDOW_UPDATE, whatever they receive. So a window
//! holds only from the first WINDOW_UPDATE or initial-window setting of the connection on; until then it is
//! counted, not enforced.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// A stream's window when nothing was said, in bytes.
pub const INITIAL: i64 = 64 << 10;

/// Whether a connection's peer has shown that it does flow control.
#[derive(Default)]
pub struct Enforced(AtomicBool);

impl Enforced {
    /// From now on windows hold.
    pub fn begin(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn holds(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// One stream's window.
pub struct Window {
    left: Mutex<i64>,
    opened: Notify,
}

impl Window {
    /// A window of `bytes`.
    pub fn new(bytes: i64) -> Window {
        Window { left: Mutex::new(bytes), opened: Notify::new() }
    }

    /// The receiver takes `bytes` more (fewer, when negative). `Err` when it would hold more than 2^31-1.
    pub fn open(&self, bytes: i64) -> Result<(), ()> {
        let mut left = self.left.lock();
        *left += bytes;
        let fits = *left <= i64::from(i32::MAX);
        drop(left);
        self.opened.notify_one();
        if fits { Ok(()) } else { Err(()) }
    }

    /// Takes up to `wanted` bytes (more than 0) out of the window; waits until there is at least one.
    pub async fn take(&self, wanted: usize, enforced: &Enforced) -> usize {
        loop {
            {
                let mut left = self.left.lock();
                if !enforced.holds() {
                    *left = (*left - wanted as i64).max(0);
                    return wanted;
                }
                if *left > 0 {
                    let granted = wanted.min(*left as usize);
                    *left -= granted as i64;
                    return granted;
                }
            }
            self.opened.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn windows_hold_once_the_peer_uses_them() {
        let (window, enforced) = (Window::new(10), Enforced::default());
        assert_eq!(window.take(25, &enforced).await, 25, "not enforced yet");
        enforced.begin();
        assert!(window.take(1, &enforced).now_or_never().is_none(), "used up");
        window.open(5).expect("small");
        assert_eq!(window.take(9, &enforced).await, 5);
        let (taken, ()) = tokio::join!(window.take(3, &enforced), async {
            window.open(100).expect("small");
        });
        assert_eq!(taken, 3);
        assert!(window.open(i64::from(i32::MAX)).is_err());
    }
}
