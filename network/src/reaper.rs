//! Deletes pods' interfaces behind the callers' backs: the kernel takes some 16 ms for it.
//!
//! Guarantees: whatever is doomed is tried until it is gone, together with what else is; every failure is logged.
//! Caveat: it ends with its [`State`]; what is left then is found by the next `reconcile`.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use crate::error::{TeardownError, TeardownErrors};
use crate::state::State;
use crate::wire::Wire;

/// The pause after a failed round, doubled up to six times.
const PAUSE: Duration = Duration::from_millis(100);
const MOST_DOUBLINGS: u32 = 6;

/// Starts the task, which ends when the state is dropped.
pub(crate) fn start(state: &Arc<State>, wire: Arc<Wire>) {
    tokio::spawn(run(Arc::downgrade(state), Arc::clone(&state.work), wire));
}

async fn run(state: Weak<State>, work: Arc<Notify>, wire: Arc<Wire>) {
    loop {
        let Some(now) = state.upgrade() else { return };
        let doomed = now.all_doomed();
        if doomed.is_empty() {
            drop(now);
            // Not keeping the state alive: its end is work, too.
            work.notified().await;
            continue;
        }
        let names: Vec<String> = doomed.iter().map(|(_, doomed)| doomed.host_if.clone()).collect();
        let outcome = delete(&wire, names).await;
        for (id, _) in &doomed {
            now.deleted(id, outcome.clone());
        }
        now.settled.notify_waiters();
        drop(now);
        if outcome.is_err() {
            let tries = doomed.iter().map(|(_, doomed)| doomed.tries).min().unwrap_or_default();
            tokio::time::sleep(PAUSE * 2_u32.pow(tries.min(MOST_DOUBLINGS))).await;
        }
    }
}

async fn delete(wire: &Arc<Wire>, names: Vec<String>) -> Result<(), String> {
    let wire = Arc::clone(wire);
    let outcome = tokio::task::spawn_blocking(move || {
        let together = wire.delete(&names);
        // One that cannot go must not keep the others.
        if together.is_err() && names.len() > 1 {
            for name in &names {
                wire.delete(std::slice::from_ref(name))?;
            }
            return Ok(());
        }
        together
    });
    match outcome.await {
        Ok(outcome) => outcome.map_err(|err| format!("{err}: {}", err.source)),
        Err(_) => Err("the runtime is ending".to_owned()),
    }
}

/// Waits until all that is doomed now is gone, or has failed again.
pub(crate) async fn settle(state: &State) -> Result<(), TeardownErrors> {
    let before = state.all_doomed();
    loop {
        let settled = state.settled.notified();
        tokio::pin!(settled);
        settled.as_mut().enable();
        let now = state.all_doomed();
        let left = now.into_iter().filter(|(id, doomed)| {
            let tries = before.iter().find(|(old, _)| old == id).map(|(_, old)| old.tries);
            tries.is_some_and(|tries| doomed.tries >= tries)
        });
        let left: Vec<_> = left.collect();
        let failed = |(id, doomed): &(String, crate::state::Doomed)| {
            before.iter().any(|(old, was)| old == id && doomed.tries > was.tries)
        };
        if left.iter().all(failed) {
            let errors = left.into_iter().map(|(id, doomed)| TeardownError {
                step: format!("delete interface {} of sandbox {id}", doomed.host_if),
                source: doomed.error.unwrap_or_default().into(),
            });
            let errors = TeardownErrors(errors.collect());
            return errors.into_result();
        }
        settled.await;
    }
}
