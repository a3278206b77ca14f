//! A pod in one word: the STATUS, READY and RESTARTS that kubectl shows.
//!
//! Guarantees: the same words upstream's printer finds, in the same order of precedence.

use jiff::Timestamp;
use serde_json::Value;

use crate::meta::{at, is_deleting, str_at};

/// What a table says of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSummary {
    /// Containers that are ready; restartable init containers count.
    pub ready: usize,
    /// Containers there are.
    pub total: usize,
    /// Like `Running`, `Init:0/1`, `CrashLoopBackOff`.
    pub status: String,
    /// Restarts of all containers that count now.
    pub restarts: i64,
    /// When the last of them ended.
    pub last_restart: Option<Timestamp>,
}

impl PodSummary {
    /// `3`, or `3 (5s ago)`.
    pub fn restarts_text(&self, now: Timestamp) -> String {
        match self.last_restart {
            Some(t) if self.restarts != 0 => format!("{} ({} ago)", self.restarts, super::age(Some(t), now)),
            _ => self.restarts.to_string(),
        }
    }
}

fn list<'a>(object: &'a Value, path: &[&str]) -> &'a [Value] {
    at(object, path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn number(object: &Value, path: &[&str]) -> i64 {
    at(object, path).and_then(Value::as_i64).unwrap_or(0)
}

fn flag(object: &Value, path: &[&str]) -> bool {
    at(object, path).and_then(Value::as_bool).unwrap_or(false)
}

/// Whether a condition of that type has the status `True`.
pub(super) fn has_condition(object: &Value, ty: &str) -> bool {
    list(object, &["status", "conditions"])
        .iter()
        .any(|c| str_at(c, &["type"]) == ty && str_at(c, &["status"]) == "True")
}

/// Restarts, and the end of the last run before the present one.
#[derive(Default)]
struct Restarts {
    count: i64,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += number(status, &["restartCount"]);
        let ended = str_at(status, &["lastState", "terminated", "finishedAt"]).parse().ok();
        self.last = self.last.max(ended);
    }
}

/// Why a terminated container ended: its reason, else its signal or code.
fn why(terminated: &Value) -> String {
    let reason = str_at(terminated, &["reason"]);
    let signal = number(terminated, &["signal"]);
    match (reason, signal) {
        ("", 0) => format!("ExitCode:{}", number(terminated, &["exitCode"])),
        ("", s) => format!("Signal:{s}"),
        (r, _) => r.to_owned(),
    }
}

/// Summarises a pod.
pub fn summary(pod: &Value) -> PodSummary {
    let phase = str_at(pod, &["status", "phase"]);
    let mut status = match str_at(pod, &["status", "reason"]) {
        "" => phase.to_owned(),
        reason => reason.to_owned(),
    };
    let gated = list(pod, &["status", "conditions"])
        .iter()
        .any(|c| str_at(c, &["type"]) == "PodScheduled" && str_at(c, &["reason"]) == "SchedulingGated");
    if gated {
        status = "SchedulingGated".to_owned();
    }
    let init = list(pod, &["spec", "initContainers"]);
    let restartable = |name: &str| {
        init.iter().any(|c| str_at(c, &["name"]) == name && str_at(c, &["restartPolicy"]) == "Always")
    };
    let total = list(pod, &["spec", "containers"]).len()
        + init.iter().filter(|c| str_at(c, &["restartPolicy"]) == "Always").count();
    let (mut ready, mut restarts, mut side) = (0, Restarts::default(), Restarts::default());

    let mut initializing = false;
    for (i, c) in list(pod, &["status", "initContainerStatuses"]).iter().enumerate() {
        let sidecar = restartable(str_at(c, &["name"]));
        restarts.add(c);
        if sidecar {
            side.add(c);
        }
        let terminated = at(c, &["state", "terminated"]);
        let waiting = str_at(c, &["state", "waiting", "reason"]);
        if terminated.is_some_and(|t| number(t, &["exitCode"]) == 0) {
            continue;
        }
        if sidecar && flag(c, &["started"]) {
            ready += usize::from(flag(c, &["ready"]));
            continue;
        }
        status = match terminated {
            Some(t) => format!("Init:{}", why(t)),
            None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
            None => format!("Init:{i}/{}", init.len()),
        };
        initializing = true;
        break;
    }

    if !initializing || has_condition(pod, "Initialized") {
        restarts = side;
        let mut running = false;
        for c in list(pod, &["status", "containerStatuses"]).iter().rev() {
            restarts.add(c);
            let waiting = str_at(c, &["state", "waiting", "reason"]);
            if !waiting.is_empty() {
                status = waiting.to_owned();
            } else if let Some(t) = at(c, &["state", "terminated"]) {
                status = why(t);
            } else if flag(c, &["ready"]) && at(c, &["state", "running"]).is_some() {
                running = true;
                ready += 1;
            }
        }
        if status == "Completed" && running {
            status = if has_condition(pod, "Ready") { "Running" } else { "NotReady" }.to_owned();
        }
    }

    if is_deleting(pod) {
        if str_at(pod, &["status", "reason"]) == "NodeLost" {
            status = "Unknown".to_owned();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            status = "Terminating".to_owned();
        }
    }
    PodSummary { ready, total, status, restarts: restarts.count, last_restart: restarts.last }
}
