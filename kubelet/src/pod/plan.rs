//! Decides what to do next for one pod.
//!
//! Guarantees: a pure function. It looks at one observation, so the same code path serves a new
//! pod, a lost event and a restarted daemon. It never asks twice for a job that is under way.
//! Assumes: it is asked again after every step, exit, verdict and at the time of a [`Step::Wait`].

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::config::Backoff;
use crate::pod::ending;
use crate::pod::observed::{Observed, Seen, State};
use crate::pod::step::{Job, Memo, Step, Stop, StopReason, after};
use crate::pod::view::{self, Member, Role};

/// All that a decision is made from.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// The pod as desired.
    pub pod: &'a Pod,
    /// Set when the pod is to end.
    pub stop: Option<&'a Stop>,
    /// What the runtime says.
    pub seen: &'a Observed,
    /// What the task remembers.
    pub memo: &'a Memo,
    /// Delays between restarts.
    pub crash_loop: Backoff,
    /// The time.
    pub now: Timestamp,
}

/// Decides. An empty plan means: wait for something to happen.
pub fn plan(s: &Situation<'_>) -> Vec<Step> {
    let mut steps = if s.stop.is_some() || s.memo.ended.is_some() {
        ending::plan(s)
    } else {
        let mut steps = Vec::new();
        if sandbox(s, &mut steps) {
            containers(s, &mut steps);
            garbage(s, &mut steps);
        }
        steps
    };
    steps.retain(|step| step.job().is_none_or(|job| fresh(s, &job, step)));
    steps
}

/// Not under way already; a stop may be asked again if it must be over much sooner.
fn fresh(s: &Situation<'_>, job: &Job, step: &Step) -> bool {
    match (s.memo.jobs.get(job), step) {
        (None, _) => true,
        (Some(Some(end)), Step::Stop { grace, .. }) => after(s.now, *grace + Duration::from_secs(1)) < *end,
        (Some(_), _) => false,
    }
}

/// Adds a step, or the wait until it may be tried again.
pub(super) fn attempt(s: &Situation<'_>, steps: &mut Vec<Step>, what: &str, step: Step) {
    let failure = step.job().and_then(|job| s.memo.failures.get(&job));
    match failure.map(|f| f.retry_at()) {
        Some(at) if at > s.now => steps.push(Step::Wait { what: what.into(), at }),
        _ => steps.push(step),
    }
}

/// Sees to sandbox and volumes. True when there is a ready sandbox to work in.
fn sandbox(s: &Situation<'_>, steps: &mut Vec<Step>) -> bool {
    let newest = s.seen.sandbox();
    let ready = newest.filter(|x| x.ready);
    let stale = |c: &&Seen| c.alive() && ready.is_none_or(|r| r.id != c.sandbox) && !c.sandbox.is_empty();
    for c in s.seen.containers.iter().filter(stale) {
        let grace = pod_grace(s.pod);
        steps.push(Step::Stop {
            id: c.id.clone(),
            name: c.name.clone(),
            why: StopReason::SandboxGone,
            grace,
        });
    }
    if ready.is_some() {
        if !s.memo.mounted {
            attempt(s, steps, "pod", Step::SetUp { attempt: None });
        }
        return true;
    }
    if steps.is_empty() {
        let attempt_no = newest.map_or(0, |x| x.attempt + 1);
        attempt(s, steps, "pod", Step::SetUp { attempt: Some(attempt_no) });
    }
    false
}

/// Starts, restarts and stops containers in their order.
fn containers(s: &Situation<'_>, steps: &mut Vec<Step>) {
    let spec = view::spec(s.pod);
    let apps_began = initialized(s.pod, s.seen);
    let mut blocked = false;
    for member in view::members(spec) {
        let current = s.seen.current(member.name());
        match member.role {
            Role::Init if apps_began => {}
            _ if blocked => {}
            Role::Init => {
                blocked = current.and_then(Seen::exit) != Some(0);
                if blocked {
                    one(s, &member, current, steps);
                }
            }
            Role::Sidecar => {
                one(s, &member, current, steps);
                blocked = !apps_began && !started(s, &member);
            }
            Role::App => one(s, &member, current, steps),
        }
    }
}

/// What one container needs.
fn one(s: &Situation<'_>, member: &Member<'_>, current: Option<&Seen>, steps: &mut Vec<Step>) {
    let Some(c) = current else { return start(s, member, steps) };
    match &c.state {
        State::Created | State::Exited { .. } if s.memo.jobs.contains_key(&Job::Start(c.name.clone())) => {}
        State::Created => start(s, member, steps),
        State::Running { .. } => {
            if let Some((why, grace)) = unfit(s, member, c) {
                steps.push(Step::Stop { id: c.id.clone(), name: c.name.clone(), why, grace });
            }
        }
        State::Unknown => steps.push(Step::Stop {
            id: c.id.clone(),
            name: c.name.clone(),
            why: StopReason::Unknown,
            grace: pod_grace(s.pod),
        }),
        State::Exited { code, .. } => {
            if !view::restart_policy(view::spec(s.pod), member).again(*code) {
                return;
            }
            match restart_at(c, s.crash_loop) {
                Some(at) if at > s.now => steps.push(Step::Wait { what: c.name.clone(), at }),
                _ => start(s, member, steps),
            }
        }
    }
}

/// Why a running container has to be stopped, if it has to.
fn unfit(s: &Situation<'_>, member: &Member<'_>, c: &Seen) -> Option<(StopReason, Duration)> {
    let grace = pod_grace(s.pod);
    let verdict = s.memo.verdicts.get(&c.name).filter(|v| v.id == c.id);
    if let Some((kind, own)) = verdict.and_then(|v| v.failed) {
        return Some((StopReason::Unhealthy(kind), own.unwrap_or(grace)));
    }
    if s.memo.hook_failed.contains_key(&c.id) {
        return Some((StopReason::PostStartFailed, grace));
    }
    let changed = !c.hash.is_empty() && c.hash != crate::pod::hash::of(member.spec);
    changed.then_some((StopReason::Changed, grace))
}

fn start(s: &Situation<'_>, member: &Member<'_>, steps: &mut Vec<Step>) {
    if !s.memo.mounted {
        return;
    }
    let newest = s.seen.newest(member.name());
    let attempt_no = match newest {
        None => 0,
        // Made by a daemon that died before it could start it: it does not count as a run.
        Some(c) if c.state == State::Created && !failed(s, &c.name) => c.attempt,
        Some(c) => c.attempt + 1,
    };
    let backoff = newest.map_or(Duration::ZERO, |c| armed(c, s.crash_loop));
    let name = member.spec.name.clone();
    attempt(s, steps, member.name(), Step::Start { name, attempt: attempt_no, backoff });
}

fn failed(s: &Situation<'_>, name: &str) -> bool {
    s.memo.failures.contains_key(&Job::Start(name.into()))
}

/// When an ended container may start again; `None` for at once.
pub fn restart_at(c: &Seen, policy: Backoff) -> Option<Timestamp> {
    let State::Exited { finished, .. } = c.state else { return None };
    (!c.backoff.is_zero() && !ran_well(c, policy)).then(|| after(finished, c.backoff.min(policy.max)))
}

/// The delay to arm for the successor of `c`.
fn armed(c: &Seen, policy: Backoff) -> Duration {
    match c.state {
        State::Exited { .. } if ran_well(c, policy) => policy.next(Duration::ZERO),
        State::Exited { .. } | State::Running { .. } | State::Unknown => policy.next(c.backoff),
        State::Created => c.backoff,
    }
}

fn ran_well(c: &Seen, policy: Backoff) -> bool {
    match c.state {
        State::Exited { started, finished, .. } if started > Timestamp::UNIX_EPOCH => {
            super::step::until(started, finished) >= policy.reset_after
        }
        _ => false,
    }
}

/// The init containers are over: all succeeded, or an app container has begun in this sandbox.
pub fn initialized(pod: &Pod, seen: &Observed) -> bool {
    view::spec(pod).containers.iter().any(|c| seen.current(&c.name).is_some())
}

/// A sidecar that the next container may rely on.
fn started(s: &Situation<'_>, member: &Member<'_>) -> bool {
    let Some(c) = s.seen.current(member.name()) else { return false };
    let busy = s.memo.jobs.contains_key(&Job::Start(c.name.clone()));
    let verdict = s.memo.verdicts.get(&c.name).filter(|v| v.id == c.id);
    let probed = member.spec.startup_probe.is_none() || verdict.is_some_and(|v| v.started);
    matches!(c.state, State::Running { .. }) && !busy && probed
}

/// The time a pod's containers get to end when nobody says otherwise.
pub fn pod_grace(pod: &Pod) -> Duration {
    let seconds = view::spec(pod).termination_grace_period_seconds.unwrap_or(30);
    Duration::from_secs(u64::try_from(seconds).unwrap_or(1).max(1))
}

/// Forgets all but the newest and one ended container of each name, and empty old sandboxes.
fn garbage(s: &Situation<'_>, steps: &mut Vec<Step>) {
    let spec = view::spec(s.pod);
    for c in s.seen.containers.iter().filter(|c| !c.sandbox.is_empty()) {
        let wanted = view::member(spec, &c.name).is_some();
        if c.alive() {
            if !wanted {
                let (id, name) = (c.id.clone(), c.name.clone());
                let grace = pod_grace(s.pod);
                steps.push(Step::Stop { id, name, why: StopReason::Unwanted, grace });
            }
            continue;
        }
        let newest = s.seen.newest(&c.name).is_some_and(|n| n.id == c.id);
        let spare = s.seen.newest(&c.name).and_then(|n| s.seen.previous(&c.name, &n.id));
        if !wanted || (!newest && spare.is_none_or(|p| p.id != c.id)) {
            steps.push(Step::Remove { id: c.id.clone() });
        }
    }
    for old in s.seen.sandboxes.iter().skip(1) {
        if !s.seen.containers.iter().any(|c| c.sandbox == old.id) {
            steps.push(Step::RemoveSandbox { id: old.id.clone() });
        }
    }
}
