//! One entry of `containerStatuses` or `initContainerStatuses`.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    ContainerUser, LinuxContainerUser, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Facts, again, conditions};
use crate::pod::observed::{Seen, State};
use crate::pod::plan::restart_at;
use crate::pod::step::{Failure, Job, until};
use crate::pod::view::{Member, Role};

/// How long a failed pull is shown as `ErrImagePull` before it becomes `ImagePullBackOff`.
pub const FRESH_FAILURE: std::time::Duration = std::time::Duration::from_secs(2);

pub(super) fn status(f: &Facts<'_>, member: &Member<'_>) -> ContainerStatus {
    let name = member.name();
    let newest = f.seen.newest(name);
    let (state, of) = state(f, member, newest);
    let last = match (&of, newest) {
        // The newest one is shown as "waiting for a restart": it is the last state.
        (Shown::Waiting, Some(c)) if c.exit().is_some() => Some(c),
        (_, Some(c)) => f.seen.previous(name, &c.id),
        (_, None) => None,
    };
    let running = matches!(of, Shown::Running);
    let (started, ready) = health(f, member, newest, running);
    ContainerStatus {
        name: name.into(),
        image: newest
            .map(|c| c.image.clone())
            .filter(|image| !image.is_empty())
            .or_else(|| member.spec.image.clone())
            .unwrap_or_default(),
        image_id: newest.map(|c| c.image_ref.clone()).unwrap_or_default(),
        container_id: newest.map(|c| format!("{}://{}", f.runtime, c.id)),
        restart_count: newest.map_or(0, |c| i32::try_from(c.attempt).unwrap_or(i32::MAX)),
        ready,
        started: Some(started),
        state: Some(state),
        last_state: Some(last.map_or_else(ContainerState::default, |c| ContainerState {
            terminated: terminated(f, c),
            ..ContainerState::default()
        })),
        resources: member.spec.resources.clone().filter(|_| running),
        user: newest.and_then(|c| c.user.as_ref()).map(|u| ContainerUser {
            linux: Some(LinuxContainerUser {
                uid: u.uid,
                gid: u.gid,
                supplemental_groups: Some(u.supplemental_groups.clone()),
            }),
        }),
        stop_signal: newest.and_then(|c| c.stop_signal.clone()),
        volume_mounts: mounts(member),
        ..ContainerStatus::default()
    }
}

/// Which kind of state is shown.
enum Shown {
    Waiting,
    Running,
    Terminated,
}

fn state(f: &Facts<'_>, member: &Member<'_>, newest: Option<&Seen>) -> (ContainerState, Shown) {
    let waits = |reason: &str, message: Option<String>| {
        let waiting = ContainerStateWaiting { reason: Some(reason.into()), message };
        (ContainerState { waiting: Some(waiting), ..ContainerState::default() }, Shown::Waiting)
    };
    let ends = f.stop.is_some() || f.memo.ended.is_some();
    let failure = f.memo.failures.get(&Job::Start(member.spec.name.clone())).filter(|_| !ends);
    let Some(c) = newest else {
        return match failure {
            Some(failure) => {
                let (reason, message) = shown_failure(failure, f.now);
                waits(&reason, Some(message))
            }
            None => waits(not_yet(f, member), None),
        };
    };
    match &c.state {
        State::Running { started } => {
            let running = ContainerStateRunning { started_at: Some(Time(*started)) };
            (ContainerState { running: Some(running), ..ContainerState::default() }, Shown::Running)
        }
        State::Created | State::Unknown => match failure {
            Some(failure) => {
                let (reason, message) = shown_failure(failure, f.now);
                waits(&reason, Some(message))
            }
            None => waits(not_yet(f, member), None),
        },
        State::Exited { code, .. } => {
            if again(f, member, *code) {
                if let Some(failure) = failure {
                    let (reason, message) = shown_failure(failure, f.now);
                    return waits(&reason, Some(message));
                }
                if restart_at(c, f.crash_loop).is_some_and(|at| at > f.now) {
                    return waits("CrashLoopBackOff", Some(back_off_message(f, c)));
                }
            }
            let state = ContainerState { terminated: terminated(f, c), ..ContainerState::default() };
            (state, Shown::Terminated)
        }
    }
}

/// `back-off 10s restarting failed container=app pod=web_default(uid)`.
pub(crate) fn back_off_message(f: &Facts<'_>, c: &Seen) -> String {
    let pod = crate::pod::view::PodKey::of(f.pod).map(|key| key.to_string()).unwrap_or_default();
    let delay = c.backoff.min(f.crash_loop.max);
    format!("back-off {} restarting failed container={} pod={pod}", go_duration(delay), c.name)
}

/// A duration as Go prints it: `10s`, `2m40s`, `5m0s`.
pub(crate) fn go_duration(d: std::time::Duration) -> String {
    let (secs, millis) = (d.as_secs(), d.subsec_millis());
    match (secs / 3600, secs % 3600 / 60, secs % 60) {
        (0, 0, 0) if millis > 0 => format!("{millis}ms"),
        (0, 0, s) if millis > 0 => {
            format!("{}s", format!("{s}.{millis:03}").trim_end_matches('0'))
        }
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

/// The reason to show for a failure: a failed pull turns into a back-off after a moment.
fn shown_failure(failure: &Failure, now: Timestamp) -> (String, String) {
    if failure.reason == "ErrImagePull" && until(failure.at, now) >= FRESH_FAILURE {
        let image = failure.message.split_once('\n').map_or("", |(image, _)| image);
        let text = message_of(failure);
        return (
            "ImagePullBackOff".into(),
            format!("Back-off pulling image \"{image}\": ErrImagePull: {text}"),
        );
    }
    (failure.reason.clone(), message_of(failure))
}

/// A pull failure carries the image's name in its first line; the rest is the message.
pub(crate) fn message_of(failure: &Failure) -> String {
    match failure.message.split_once('\n') {
        Some((_, text)) if failure.reason == "ErrImagePull" => text.into(),
        _ => failure.message.clone(),
    }
}

fn not_yet(f: &Facts<'_>, member: &Member<'_>) -> &'static str {
    let waits_for_init = member.role == Role::App && !conditions::initialized(f);
    let later_init = member.role != Role::App && f.seen.sandbox().is_some_and(|s| s.ready) && {
        let first = f.pod.spec.as_ref().and_then(|s| s.init_containers.as_ref()).and_then(|i| i.first());
        first.is_some_and(|c| c.name != member.spec.name)
    };
    if waits_for_init || later_init { "PodInitializing" } else { "ContainerCreating" }
}

fn terminated(f: &Facts<'_>, c: &Seen) -> Option<ContainerStateTerminated> {
    let State::Exited { started, finished, code, reason, message } = &c.state else { return None };
    let time = |t: &Timestamp| (*t > Timestamp::UNIX_EPOCH).then_some(Time(*t));
    let reason = match reason.as_str() {
        "" if *code == 0 => "Completed",
        "" => "Error",
        other => other,
    };
    let text = f.messages.get(&c.id).filter(|m| !m.is_empty()).unwrap_or(message);
    Some(ContainerStateTerminated {
        container_id: Some(format!("{}://{}", f.runtime, c.id)),
        exit_code: *code,
        reason: Some(reason.into()),
        message: (!text.is_empty()).then(|| text.clone()),
        started_at: time(started),
        finished_at: time(finished),
        signal: None,
    })
}

/// `started` and `ready`.
fn health(f: &Facts<'_>, member: &Member<'_>, newest: Option<&Seen>, running: bool) -> (bool, bool) {
    let Some(c) = newest else { return (false, false) };
    if member.role == Role::Init {
        return (running, c.exit() == Some(0));
    }
    let busy = f.memo.jobs.contains_key(&Job::Start(c.name.clone()));
    let verdict = f.memo.verdicts.get(&c.name).filter(|v| v.id == c.id);
    let probed = |has: bool, says: Option<bool>| if has { says.unwrap_or(false) } else { true };
    let started = running && !busy && probed(member.spec.startup_probe.is_some(), verdict.map(|v| v.started));
    let ready = started && probed(member.spec.readiness_probe.is_some(), verdict.map(|v| v.ready));
    (started, ready)
}

fn mounts(member: &Member<'_>) -> Option<Vec<VolumeMountStatus>> {
    let list: Vec<_> = member.spec.volume_mounts.iter().flatten().collect();
    (!list.is_empty()).then(|| {
        list.into_iter()
            .map(|m| VolumeMountStatus {
                name: m.name.clone(),
                mount_path: m.mount_path.clone(),
                read_only: m.read_only.filter(|ro| *ro),
                recursive_read_only: m
                    .recursive_read_only
                    .clone()
                    .or_else(|| m.read_only.filter(|ro| *ro).map(|_| "Disabled".into())),
                ..VolumeMountStatus::default()
            })
            .collect()
    })
}
