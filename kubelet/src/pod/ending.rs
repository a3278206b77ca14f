//! How a pod ends: whether its containers are through, and the order in which the rest goes.
//!
//! ```text
//! apps stop ─► sidecars stop, last first ─► sandboxes stop ─┬─► volumes are released   (object stays)
//!                                                           └─► everything is removed ─► the object goes
//! ```
//!
//! Guarantees: nothing of a pod is removed while one of its containers lives, and the apiserver is
//! told last, so a pod that is gone from the apiserver has left nothing behind.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use crate::pod::observed::{Observed, Seen};
use crate::pod::plan::{Situation, attempt, pod_grace};
use crate::pod::step::{Ended, Job, Step, StopReason, StopWhy, after, until};
use crate::pod::view::{self, Restart, Role};

/// Whether the containers are through for good, and how it went.
pub fn outcome(pod: &Pod, seen: &Observed) -> Option<Ended> {
    let spec = view::spec(pod);
    let mut success = true;
    for member in view::members(spec) {
        let exit = seen.newest(member.name()).and_then(Seen::exit);
        let policy = view::restart_policy(spec, &member);
        match member.role {
            Role::Init => {
                let lost = seen.newest(member.name()).is_some_and(|c| c.sandbox.is_empty());
                if policy == Restart::Never && exit.is_some_and(|code| code != 0) && !lost {
                    return Some(Ended { success: false, reason: None, message: None });
                }
            }
            Role::Sidecar => {}
            Role::App => match exit {
                Some(code) if !policy.again(code) => success &= code == 0,
                _ => return None,
            },
        }
    }
    Some(Ended { success, reason: None, message: None })
}

/// The next steps of a pod that is to end or has ended.
pub(super) fn plan(s: &Situation<'_>) -> Vec<Step> {
    let mut steps = Vec::new();
    let live: Vec<&Seen> = s.seen.containers.iter().filter(|c| c.alive() && !c.sandbox.is_empty()).collect();
    if !live.is_empty() {
        for c in next_to_stop(s, &live) {
            let grace = grace_for(s, c);
            steps.push(Step::Stop {
                id: c.id.clone(),
                name: c.name.clone(),
                why: StopReason::PodEnds,
                grace,
            });
        }
        return steps;
    }
    let harmless = [Job::TearDown, Job::Finish, Job::Report];
    if s.memo.jobs.keys().any(|job| !harmless.contains(job)) {
        return steps; // What is being set up notices that the pod ends; its result is cleaned up then.
    }
    match s.stop.map(|stop| &stop.why) {
        Some(StopWhy::Deleted | StopWhy::Gone) => {
            if !s.memo.cleaned {
                attempt(s, &mut steps, "pod", Step::CleanUp);
            } else if !s.memo.finished {
                attempt(s, &mut steps, "pod", Step::Finish);
            }
        }
        Some(StopWhy::Failed(_)) | None => {
            if s.seen.sandboxes.iter().any(|x| x.ready) {
                attempt(s, &mut steps, "pod", Step::StopSandbox);
            } else if !s.memo.released {
                attempt(s, &mut steps, "pod", Step::Release);
            }
        }
    }
    steps
}

/// Apps and init containers at once; sidecars one by one after them, last first.
fn next_to_stop<'a>(s: &Situation<'_>, live: &[&'a Seen]) -> Vec<&'a Seen> {
    let spec = view::spec(s.pod);
    let sidecar = |c: &Seen| view::member(spec, &c.name).is_some_and(|m| m.role == Role::Sidecar);
    let (side, main): (Vec<_>, Vec<_>) = live.iter().copied().partition(|c| sidecar(c));
    let hurry = s.stop.is_some_and(|stop| after(stop.since, stop.grace) <= s.now);
    if hurry {
        return live.to_vec();
    }
    if !main.is_empty() {
        return main;
    }
    let order: Vec<&str> = view::members(spec).map(|m| m.spec.name.as_str()).collect();
    let last = side.into_iter().max_by_key(|c| order.iter().position(|n| *n == c.name));
    last.into_iter().collect()
}

/// What is left of the pod's time; what a container was promised if the pod's object is gone.
fn grace_for(s: &Situation<'_>, c: &Seen) -> Duration {
    match s.stop {
        Some(stop) => {
            let left = until(s.now, after(stop.since, stop.grace));
            let promised = c.grace.and_then(|g| u64::try_from(g).ok()).map(Duration::from_secs);
            match (&stop.why, promised) {
                (StopWhy::Gone, Some(promised)) => left.min(promised),
                _ => left,
            }
        }
        None => pod_grace(s.pod),
    }
}
