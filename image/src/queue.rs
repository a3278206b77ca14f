//! Who may work next: a bounded number of slots, handed out by priority and in turn.
//!
//! Guarantees: a claim of a higher priority goes first, but after [`PATIENCE`] such grants in a row one that
//! waits behind them is let in, so nothing waits for ever; of equal claims, the group with the fewest slots
//! goes first, then the one that waits longest; a claim that is given up keeps no slot.
//!
//! Within a group the largest goes first: the last large one would else go on alone when all others are done.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Grants in a row that pass over a waiting claim of lower priority.
const PATIENCE: u32 = 8;

/// How urgent a pull is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Priority {
    /// Nobody waits for it now: an image that is fetched ahead of its pods.
    Prefetch,
    /// A pod waits for it.
    #[default]
    Pod,
}

impl Priority {
    fn from_level(level: u8) -> Priority {
        if level == 0 { Priority::Prefetch } else { Priority::Pod }
    }
}

/// What somebody asks a slot for. It may become more urgent while it waits.
#[derive(Debug)]
pub(crate) struct Claim {
    priority: AtomicU8,
    group: AtomicU64,
    /// Bytes, to compare with others of the group.
    size: u64,
}

impl Claim {
    /// A claim of a group: all layers of one pull are one group.
    pub(crate) fn new(priority: Priority, group: u64) -> Arc<Claim> {
        Claim::sized(priority, group, 0)
    }

    /// A claim for work on so many bytes.
    pub(crate) fn sized(priority: Priority, group: u64, size: u64) -> Arc<Claim> {
        Arc::new(Claim { priority: AtomicU8::new(priority as u8), group: AtomicU64::new(group), size })
    }

    pub(crate) fn priority(&self) -> Priority {
        Priority::from_level(self.priority.load(Ordering::Relaxed))
    }

    fn group(&self) -> u64 {
        self.group.load(Ordering::Relaxed)
    }

    /// Somebody more urgent wants the same: the claim becomes theirs.
    pub(crate) fn raise(&self, priority: Priority, group: u64) {
        if priority > self.priority() {
            self.priority.store(priority as u8, Ordering::Relaxed);
            self.group.store(group, Ordering::Relaxed);
        }
    }
}

struct Waiter {
    ticket: u64,
    claim: Arc<Claim>,
    grant: oneshot::Sender<Slot>,
}

struct State {
    free: usize,
    /// Slots per group that has any.
    held: HashMap<u64, usize>,
    /// Oldest first.
    waiting: Vec<Waiter>,
    /// Grants in a row that passed over a lower priority.
    passed: u32,
    next: u64,
}

/// A bounded number of slots. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Queue {
    state: Arc<Mutex<State>>,
    per_group: usize,
}

/// A slot, until it is dropped.
pub(crate) struct Slot {
    queue: Queue,
    group: u64,
}

impl Drop for Slot {
    fn drop(&mut self) {
        {
            let mut state = self.queue.state.lock();
            state.free += 1;
            if let Some(held) = state.held.get_mut(&self.group) {
                *held -= 1;
                if *held == 0 {
                    state.held.remove(&self.group);
                }
            }
        }
        self.queue.hand_out();
    }
}

/// Takes a waiter out of the queue when it gives up.
struct Place<'a> {
    queue: &'a Queue,
    ticket: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.queue.state.lock().waiting.retain(|w| w.ticket != self.ticket);
    }
}

impl Queue {
    /// `slots` in all, and at most `per_group` of them for one group; at least one each.
    pub(crate) fn new(slots: usize, per_group: usize) -> Queue {
        let state =
            State { free: slots.max(1), held: HashMap::new(), waiting: Vec::new(), passed: 0, next: 0 };
        Queue { state: Arc::new(Mutex::new(state)), per_group: per_group.max(1) }
    }

    /// Waits for a slot. Cancel-safe: a dropped wait leaves the queue.
    pub(crate) async fn acquire(&self, claim: Arc<Claim>) -> Slot {
        loop {
            let (grant, granted) = oneshot::channel();
            let place = {
                let mut state = self.state.lock();
                let ticket = state.next;
                state.next += 1;
                state.waiting.push(Waiter { ticket, claim: claim.clone(), grant });
                Place { queue: self, ticket }
            };
            self.hand_out();
            // A slot that is granted while we give up is freed as the channel is dropped.
            let slot = granted.await;
            drop(place);
            if let Ok(slot) = slot {
                return slot;
            }
        }
    }

    /// Whether nobody would have to wait.
    #[cfg(test)]
    fn idle(&self) -> bool {
        let state = self.state.lock();
        state.waiting.is_empty() && state.held.is_empty()
    }

    /// Gives free slots to those whose turn it is.
    fn hand_out(&self) {
        loop {
            let (grant, slot) = {
                let mut state = self.state.lock();
                let Some(at) = state.turn(self.per_group) else { return };
                let waiter = state.waiting.remove(at);
                let group = waiter.claim.group();
                let lower = |w: &Waiter| w.claim.priority() < waiter.claim.priority();
                state.passed = if state.waiting.iter().any(lower) { state.passed + 1 } else { 0 };
                state.free -= 1;
                *state.held.entry(group).or_insert(0) += 1;
                (waiter.grant, Slot { queue: self.clone(), group })
            };
            // Whoever gave up meanwhile gives the slot back by dropping it, outside the lock.
            drop(grant.send(slot));
        }
    }
}

impl State {
    /// Whose turn it is. Pure.
    fn turn(&self, per_group: usize) -> Option<usize> {
        if self.free == 0 {
            return None;
        }
        let held = |w: &Waiter| self.held.get(&w.claim.group()).copied().unwrap_or(0);
        let fits = || self.waiting.iter().enumerate().filter(|(_, w)| held(w) < per_group);
        let highest = fits().map(|(_, w)| w.claim.priority()).max()?;
        let lowest = fits().map(|(_, w)| w.claim.priority()).min()?;
        let wanted = if self.passed >= PATIENCE { lowest } else { highest };
        let urgent = || fits().filter(|(_, w)| w.claim.priority() == wanted);
        let group = urgent().min_by_key(|(_, w)| (held(w), w.ticket)).map(|(_, w)| w.claim.group())?;
        let of_it = urgent().filter(|(_, w)| w.claim.group() == group);
        of_it.min_by_key(|(_, w)| (Reverse(w.claim.size), w.ticket)).map(|(at, _)| at)
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    struct Waits {
        name: &'static str,
        future: Pin<Box<dyn Future<Output = Slot>>>,
    }

    /// Who has been let in since, in the order of asking.
    fn let_in(waits: &mut Vec<Waits>) -> Vec<(&'static str, Slot)> {
        let mut context = Context::from_waker(Waker::noop());
        let mut done = Vec::new();
        waits.retain_mut(|w| match w.future.as_mut().poll(&mut context) {
            Poll::Ready(slot) => {
                done.push((w.name, slot));
                false
            }
            Poll::Pending => true,
        });
        done
    }

    fn ask(queue: &Queue, name: &'static str, claim: Arc<Claim>) -> Waits {
        let queue = queue.clone();
        Waits { name, future: Box::pin(async move { queue.acquire(claim).await }) }
    }

    /// Lets one in at a time, and tells the order.
    fn order(queue: &Queue, mut waits: Vec<Waits>) -> String {
        let mut names = Vec::new();
        while !waits.is_empty() {
            let slots = let_in(&mut waits);
            assert!(!slots.is_empty(), "nobody is let in: {names:?}");
            names.extend(slots.iter().map(|s| s.0));
        }
        assert!(queue.idle());
        names.join(" ")
    }

    #[test]
    fn pods_go_before_prefetch() {
        let queue = Queue::new(1, 1);
        let busy = let_in(&mut vec![ask(&queue, "first", Claim::new(Priority::Prefetch, 0))]);
        let mut waits = vec![
            ask(&queue, "ahead", Claim::new(Priority::Prefetch, 1)),
            ask(&queue, "pod", Claim::new(Priority::Pod, 2)),
            ask(&queue, "pod2", Claim::new(Priority::Pod, 3)),
        ];
        assert!(let_in(&mut waits).is_empty());
        drop(busy);
        assert_eq!(order(&queue, waits), "pod pod2 ahead");
    }

    #[test]
    fn small_pulls_are_not_stuck_behind_large_ones() {
        let queue = Queue::new(2, 2);
        let mut waits: Vec<Waits> =
            (0..4).map(|_| ask(&queue, "large", Claim::new(Priority::Pod, 1))).collect();
        let mut slots = let_in(&mut waits);
        assert_eq!(slots.len(), 2);
        waits.push(ask(&queue, "small", Claim::new(Priority::Pod, 2)));
        assert!(let_in(&mut waits).is_empty());
        slots.pop();
        assert_eq!(let_in(&mut waits).iter().map(|s| s.0).collect::<Vec<_>>(), ["small"]);
    }

    #[test]
    fn the_largest_of_a_group_goes_first_and_no_other_group_waits_for_it() {
        let queue = Queue::new(1, 1);
        let busy = let_in(&mut vec![ask(&queue, "first", Claim::new(Priority::Pod, 0))]);
        let layer = |name, group, size| ask(&queue, name, Claim::sized(Priority::Pod, group, size));
        let mut waits = vec![
            layer("a-small", 1, 1),
            layer("a-large", 1, 9),
            layer("b-larger", 2, 100),
            layer("a-also-large", 1, 9),
            layer("b-small", 2, 2),
        ];
        assert!(let_in(&mut waits).is_empty());
        drop(busy);
        assert_eq!(order(&queue, waits), "a-large a-also-large a-small b-larger b-small");
    }

    #[test]
    fn one_group_takes_no_more_than_its_share() {
        let queue = Queue::new(4, 3);
        let mut waits: Vec<Waits> = (0..9).map(|_| ask(&queue, "a", Claim::new(Priority::Pod, 1))).collect();
        assert_eq!(let_in(&mut waits).len(), 3);
    }

    #[test]
    fn nobody_waits_for_ever() {
        let queue = Queue::new(1, 1);
        let busy = let_in(&mut vec![ask(&queue, "first", Claim::new(Priority::Pod, 0))]);
        let mut waits = vec![ask(&queue, "ahead", Claim::new(Priority::Prefetch, 1))];
        waits.extend((0..12).map(|n| ask(&queue, "pod", Claim::new(Priority::Pod, 10 + n))));
        assert!(let_in(&mut waits).is_empty());
        drop(busy);
        let order = order(&queue, waits);
        let place = order.split(' ').position(|name| name == "ahead");
        assert_eq!(place, Some(PATIENCE as usize), "{order}");
    }

    #[test]
    fn a_joined_claim_becomes_urgent() {
        let queue = Queue::new(1, 1);
        let busy = let_in(&mut vec![ask(&queue, "first", Claim::new(Priority::Pod, 0))]);
        let claim = Claim::new(Priority::Prefetch, 1);
        let mut waits = vec![
            ask(&queue, "other", Claim::new(Priority::Prefetch, 2)),
            ask(&queue, "joined", claim.clone()),
        ];
        assert!(let_in(&mut waits).is_empty());
        claim.raise(Priority::Pod, 3);
        drop(busy);
        assert_eq!(order(&queue, waits), "joined other");
    }

    #[test]
    fn who_gives_up_keeps_nothing() {
        let queue = Queue::new(1, 1);
        let busy = let_in(&mut vec![ask(&queue, "first", Claim::new(Priority::Pod, 0))]);
        let mut waits = vec![
            ask(&queue, "gone", Claim::new(Priority::Pod, 1)),
            ask(&queue, "next", Claim::new(Priority::Pod, 2)),
        ];
        assert!(let_in(&mut waits).is_empty());
        // Granted, but never polled again.
        drop(busy);
        waits.remove(0);
        assert_eq!(order(&queue, waits), "next");
    }
}
