//! Memory that pods took, given back to the system when they are gone.

use std::time::Duration;

use runtime::Event;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

/// Removals come in bursts: so long after the first one, memory is given back for all of them.
const BURST: Duration = Duration::from_millis(500);

/// Calls `give_back`, which may block, a while after sandboxes or containers are removed. Ends with the runtime.
pub async fn tidy(mut events: Receiver<Event>, give_back: impl Fn() + Clone + Send + 'static) {
    loop {
        match events.recv().await {
            // Of many missed events, one is a removal.
            Ok(Event::SandboxRemoved(_) | Event::ContainerRemoved { .. }) | Err(RecvError::Lagged(_)) => {}
            Ok(_) => continue,
            Err(RecvError::Closed) => return,
        }
        tokio::time::sleep(BURST).await;
        events = events.resubscribe();
        // It can't fail but by a panic, which is no reason to end the node.
        let _ = tokio::task::spawn_blocking(give_back.clone()).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::broadcast;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_of_removals_gives_back_once() {
        let (sender, events) = broadcast::channel(16);
        let calls = Arc::new(AtomicU32::new(0));
        let counted = calls.clone();
        let tidy = tokio::spawn(tidy(events, move || {
            counted.fetch_add(1, Ordering::Relaxed);
        }));
        let id = || runtime::SandboxId::new("a").expect("an id");
        let mut expected = 0;
        for burst in [vec![Event::SandboxCreated(id())], vec![Event::SandboxRemoved(id()); 5]] {
            expected += u32::from(burst.len() > 1);
            for event in burst {
                sender.send(event).expect("somebody listens");
            }
            tokio::time::sleep(2 * BURST).await;
            // The thread that counts is none of the paused clock's.
            while calls.load(Ordering::Relaxed) < expected {
                tokio::task::yield_now().await;
            }
            assert_eq!(calls.load(Ordering::Relaxed), expected);
        }
        drop(sender);
        tidy.await.expect("it ends");
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }
}
