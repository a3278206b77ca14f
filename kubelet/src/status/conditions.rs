//! The pod conditions that are the kubelet's to say, in its own words.

use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::Facts;
use crate::pod::observed::{Seen, State};
use crate::pod::step::Job;
use crate::pod::view::{self, Role};

/// A condition's status, reason and message.
type Word = (bool, Option<&'static str>, Option<String>);

/// All conditions: the kubelet's anew, everybody else's as they were.
pub(super) fn all(f: &Facts<'_>, status: &PodStatus) -> Vec<PodCondition> {
    let containers = containers_ready(f, status);
    let own: [(&str, Word); 4] = [
        ("PodReadyToStartContainers", (ready_to_start(f), None, None)),
        ("Initialized", initialized_word(f, status)),
        ("Ready", ready(f, &containers)),
        ("ContainersReady", containers),
    ];
    let previous = f.previous.conditions.as_deref().unwrap_or_default();
    let mut list: Vec<PodCondition> =
        own.into_iter().map(|(kind, word)| make(f, previous, kind, word)).collect();
    for other in previous
        .iter()
        .filter(|c| !list.iter().any(|mine| mine.type_ == c.type_))
        .cloned()
        .collect::<Vec<_>>()
    {
        list.push(other);
    }
    if !list.iter().any(|c| c.type_ == "PodScheduled") {
        list.push(make(f, previous, "PodScheduled", (true, None, None)));
    }
    list
}

fn make(f: &Facts<'_>, previous: &[PodCondition], kind: &str, word: Word) -> PodCondition {
    let (holds, reason, message) = word;
    let status = if holds { "True" } else { "False" };
    let before = previous.iter().find(|c| c.type_ == kind && c.status == status);
    PodCondition {
        type_: kind.into(),
        status: status.into(),
        reason: reason.map(Into::into),
        message,
        last_transition_time: before.and_then(|c| c.last_transition_time.clone()).or(Some(Time(f.now))),
        last_probe_time: None,
        observed_generation: f.pod.metadata.generation,
    }
}

fn ready_to_start(f: &Facts<'_>) -> bool {
    let Some(sandbox) = f.seen.sandbox().filter(|s| s.ready) else { return false };
    view::host_network(f.pod) || !sandbox.ips.is_empty()
}

/// All init containers are through, all sidecars have started.
pub(super) fn initialized(f: &Facts<'_>) -> bool {
    let spec = view::spec(f.pod);
    if view::spec(f.pod).containers.iter().any(|c| f.seen.newest(&c.name).is_some()) {
        return true;
    }
    view::members(spec).all(|m| match m.role {
        Role::App => true,
        Role::Init => f.seen.newest(m.name()).and_then(Seen::exit) == Some(0),
        Role::Sidecar => f.seen.newest(m.name()).is_some_and(|c| {
            let verdict = f.memo.verdicts.get(&c.name).filter(|v| v.id == c.id);
            let busy = f.memo.jobs.contains_key(&Job::Start(c.name.clone()));
            let up = m.spec.startup_probe.is_none() || verdict.is_some_and(|v| v.started);
            matches!(c.state, State::Running { .. }) && !busy && up
        }),
    })
}

fn initialized_word(f: &Facts<'_>, status: &PodStatus) -> Word {
    if initialized(f) {
        let done = status.phase.as_deref() == Some("Succeeded");
        return (true, done.then_some("PodCompleted"), None);
    }
    let spec = view::spec(f.pod);
    let missing: Vec<&str> = view::members(spec)
        .filter(|m| match m.role {
            Role::App => false,
            Role::Init => f.seen.newest(m.name()).and_then(Seen::exit) != Some(0),
            Role::Sidecar => !status
                .init_container_statuses
                .iter()
                .flatten()
                .any(|s| s.name == m.spec.name && s.started == Some(true)),
        })
        .map(|m| m.spec.name.as_str())
        .collect();
    let message = format!("containers with incomplete status: [{}]", missing.join(" "));
    (false, Some("ContainersNotInitialized"), Some(message))
}

fn containers_ready(f: &Facts<'_>, status: &PodStatus) -> Word {
    match status.phase.as_deref() {
        Some("Succeeded") => return (false, Some("PodCompleted"), None),
        Some("Failed") => return (false, Some("PodFailed"), None),
        _ => {}
    }
    let all: Vec<&ContainerStatus> =
        status.init_container_statuses.iter().chain(&status.container_statuses).flatten().collect();
    let (mut unready, mut unknown) = (Vec::new(), Vec::new());
    for member in view::members(view::spec(f.pod)).filter(|m| m.role != Role::Init) {
        match all.iter().find(|s| s.name == member.spec.name) {
            Some(s) if s.ready => {}
            Some(_) => unready.push(member.spec.name.as_str()),
            None => unknown.push(member.spec.name.as_str()),
        }
    }
    let mut messages = Vec::new();
    if !unknown.is_empty() {
        messages.push(format!("containers with unknown status: [{}]", unknown.join(" ")));
    }
    if !unready.is_empty() {
        messages.push(format!("containers with unready status: [{}]", unready.join(" ")));
    }
    match messages.is_empty() {
        true => (true, None, None),
        false => (false, Some("ContainersNotReady"), Some(messages.join(", "))),
    }
}

fn ready(f: &Facts<'_>, containers: &Word) -> Word {
    if !containers.0 {
        return containers.clone();
    }
    let mut missing = Vec::new();
    let others = f.previous.conditions.as_deref().unwrap_or_default();
    for gate in view::spec(f.pod).readiness_gates.iter().flatten() {
        let kind = &gate.condition_type;
        match others.iter().find(|c| c.type_ == *kind) {
            None => missing
                .push(format!("corresponding condition of pod readiness gate \"{kind}\" does not exist.")),
            Some(c) if c.status != "True" => missing.push(format!(
                "the status of pod readiness gate \"{kind}\" is not \"True\", but {}",
                c.status
            )),
            Some(_) => {}
        }
    }
    match missing.is_empty() {
        true => (true, None, None),
        false => (false, Some("ReadinessGatesNotReady"), Some(missing.join(", "))),
    }
}
