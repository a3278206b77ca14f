//! The status of a pod, made from what the runtime says and what the pod's task remembers.
//!
//! Guarantees: pure; the same facts give the same status, so an unchanged pod writes nothing.
//! Conditions that are not the kubelet's are never touched.

mod conditions;
mod container;
pub mod patch;
pub mod qos;

pub(crate) use container::{FRESH_FAILURE, go_duration};

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, HostIP, Pod, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::config::Backoff;
use crate::pod::observed::{Observed, Seen, State};
use crate::pod::step::{Ended, Memo, Stop, StopWhy};
use crate::pod::view::{self, Restart};

/// All that a status is made from.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The pod as desired.
    pub pod: &'a Pod,
    /// The status that was reported last.
    pub previous: &'a PodStatus,
    /// Set when the pod is to end.
    pub stop: Option<&'a Stop>,
    /// What the runtime says.
    pub seen: &'a Observed,
    /// What the task remembers.
    pub memo: &'a Memo,
    /// Termination messages by container id.
    pub messages: &'a BTreeMap<String, String>,
    /// Delays between restarts.
    pub crash_loop: Backoff,
    /// The node's addresses, primary first.
    pub host_ips: &'a [String],
    /// `orlop` in `orlop://<container id>`.
    pub runtime: &'a str,
    /// The time.
    pub now: Timestamp,
}

/// Makes the status.
pub fn compute(f: &Facts<'_>) -> PodStatus {
    let spec = view::spec(f.pod);
    let ended = ended(f);
    let rejected =
        f.seen.containers.is_empty() && ended.as_ref().is_some_and(|e| e.reason.is_some() && !e.success);
    let (mut apps, mut inits) = (Vec::new(), Vec::new());
    if !rejected {
        for member in view::members(spec) {
            let status = container::status(f, &member);
            if member.role == view::Role::App { apps.push(status) } else { inits.push(status) }
        }
    }
    let alive = f.seen.containers.iter().any(Seen::alive);
    let phase = match &ended {
        Some(end) if !alive => {
            if end.success {
                "Succeeded"
            } else {
                "Failed"
            }
        }
        _ => phase(f, &apps),
    };
    let ips = ips(f);
    let mut status = PodStatus {
        phase: Some(phase.into()),
        qos_class: Some(qos::class(spec).into()),
        start_time: f.previous.start_time.clone().or(Some(Time(f.now))),
        observed_generation: f.pod.metadata.generation,
        reason: ended.as_ref().and_then(|e| e.reason.clone()),
        message: ended.as_ref().and_then(|e| e.message.clone()),
        host_ip: f.host_ips.first().cloned(),
        host_ips: some(f.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
        pod_ip: ips.first().cloned(),
        pod_ips: some(ips.iter().map(|ip| PodIP { ip: ip.clone() }).collect()),
        container_statuses: some(apps),
        init_container_statuses: some(inits),
        ..PodStatus::default()
    };
    status.conditions = some(conditions::all(f, &status));
    status
}

fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

/// How the pod ended, if it did: by itself, by our decision, or by deletion.
fn ended(f: &Facts<'_>) -> Option<Ended> {
    if let Some(end) = &f.memo.ended {
        return Some(end.clone());
    }
    match f.stop.map(|s| &s.why) {
        Some(StopWhy::Failed(end)) => Some(end.clone()),
        Some(StopWhy::Deleted | StopWhy::Gone) => {
            let began = f.seen.containers.iter().any(|c| c.exit().is_some());
            let apps = &view::spec(f.pod).containers;
            let fine = |name: &str| f.seen.newest(name).is_none_or(|c| c.exit() == Some(0));
            began.then(|| Ended { success: apps.iter().all(|c| fine(&c.name)), reason: None, message: None })
        }
        None => None,
    }
}

fn phase(f: &Facts<'_>, apps: &[ContainerStatus]) -> &'static str {
    if !conditions::initialized(f) {
        return "Pending";
    }
    let (mut running, mut waiting, mut stopped) = (0, 0, 0);
    for status in apps {
        let state = status.state.as_ref();
        let before = status.last_state.as_ref().is_some_and(|l| l.terminated.is_some());
        if state.is_some_and(|s| s.running.is_some()) {
            running += 1;
        } else if state.is_some_and(|s| s.terminated.is_some()) || before {
            stopped += 1;
        } else {
            waiting += 1;
        }
    }
    if waiting == 0 && running + stopped > 0 { "Running" } else { "Pending" }
}

fn ips(f: &Facts<'_>) -> Vec<String> {
    if view::host_network(f.pod) {
        return if f.seen.sandbox().is_some() { f.host_ips.to_vec() } else { Vec::new() };
    }
    match f.seen.sandbox() {
        Some(sandbox) if !sandbox.ips.is_empty() => sandbox.ips.clone(),
        // A stopped sandbox tells no addresses any more; kubectl goes on to show the last ones.
        _ => f.previous.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect(),
    }
}

/// Containers that an earlier status tells of and the runtime does not know (a reboot, a clean-up):
/// they are added to the observation as ended ones, so that counts and last states go on.
pub fn with_lost(mut seen: Observed, pod: &Pod, previous: &PodStatus) -> Observed {
    let all = previous.init_container_statuses.iter().chain(previous.container_statuses.iter()).flatten();
    for status in all {
        let Some(id) = status.container_id.as_deref().and_then(|id| id.split_once("://")) else { continue };
        if seen.newest(&status.name).is_some() || view::member(view::spec(pod), &status.name).is_none() {
            continue;
        }
        seen.containers.push(lost(status, id.1));
    }
    seen
}

fn lost(status: &ContainerStatus, id: &str) -> Seen {
    let state = status.state.as_ref();
    let ended = state.and_then(|s| s.terminated.as_ref());
    let last = status.last_state.as_ref().and_then(|s| s.terminated.as_ref());
    let time = |t: &Option<Time>| t.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0);
    let state = match (ended, state.and_then(|s| s.waiting.as_ref()).and(last)) {
        (Some(t), _) | (None, Some(t)) => State::Exited {
            started: time(&t.started_at),
            finished: time(&t.finished_at),
            code: t.exit_code,
            reason: t.reason.clone().unwrap_or_default(),
            message: t.message.clone().unwrap_or_default(),
        },
        (None, None) => State::Exited {
            started: Timestamp::UNIX_EPOCH,
            finished: Timestamp::UNIX_EPOCH,
            code: 137,
            reason: "ContainerStatusUnknown".into(),
            message: "The container could not be located when the pod was terminated".into(),
        },
    };
    Seen {
        id: id.into(),
        name: status.name.clone(),
        sandbox: String::new(),
        attempt: u32::try_from(status.restart_count).unwrap_or(0),
        created: Timestamp::UNIX_EPOCH,
        state,
        image: status.image.clone(),
        image_ref: status.image_id.clone(),
        hash: String::new(),
        backoff: std::time::Duration::ZERO,
        log_path: String::new(),
        message_file: None,
        grace: None,
        user: None,
        stop_signal: None,
    }
}

/// The pod reached its end as the status says it; for a task that starts with an old pod.
pub fn final_end(status: &PodStatus) -> Option<Ended> {
    let success = match status.phase.as_deref() {
        Some("Succeeded") => true,
        Some("Failed") => false,
        _ => return None,
    };
    Some(Ended { success, reason: status.reason.clone(), message: status.message.clone() })
}

/// Whether the member's container will be started again after an exit with this code.
fn again(f: &Facts<'_>, member: &view::Member<'_>, code: i32) -> bool {
    let ends = f.stop.is_some() || f.memo.ended.is_some();
    let policy = view::restart_policy(view::spec(f.pod), member);
    !ends && policy != Restart::Never && policy.again(code)
}

#[cfg(test)]
mod tests;
