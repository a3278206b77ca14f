//! What the container runtime says about one pod, in the terms `plan` thinks in.
//!
//! Guarantees: everything here was reported by the runtime in one look; nothing is remembered.

use std::time::Duration;

use cri_api::v1 as cri;
use jiff::Timestamp;

use crate::labels;

/// All sandboxes and containers of one pod, newest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// Sandboxes, newest (highest attempt) first.
    pub sandboxes: Vec<Sandbox>,
    /// Containers, newest (highest attempt) first.
    pub containers: Vec<Seen>,
}

/// A pod sandbox.
#[derive(Clone, Debug, PartialEq)]
pub struct Sandbox {
    /// Id given by the runtime.
    pub id: String,
    /// How many were made for this pod before it.
    pub attempt: u32,
    /// Its namespaces are there and its network is up.
    pub ready: bool,
    /// When it was made.
    pub created: Timestamp,
    /// Its addresses, primary first; empty on the host's network.
    pub ips: Vec<String>,
}

/// A container as the runtime knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// Id given by the runtime.
    pub id: String,
    /// Name in the pod.
    pub name: String,
    /// The sandbox it belongs to.
    pub sandbox: String,
    /// How many of this name were made before it: the restart count.
    pub attempt: u32,
    /// When it was made.
    pub created: Timestamp,
    /// What it does.
    pub state: State,
    /// The image's name as the runtime resolved it.
    pub image: String,
    /// The image's digest reference (`name@sha256:…`) or id.
    pub image_ref: String,
    /// Hash of what it was made from; another hash in the pod means it must be made anew.
    pub hash: String,
    /// What to wait before the next start, should this one end.
    pub backoff: Duration,
    /// Path of its log, as the runtime knows it.
    pub log_path: String,
    /// Host file of its termination message, if it has one.
    pub message_file: Option<String>,
    /// Seconds it was promised between the stop signal and the end.
    pub grace: Option<i64>,
    /// User and groups it runs as, where the runtime tells.
    pub user: Option<cri::LinuxContainerUser>,
    /// Name of the signal that asks it to end, where the runtime tells.
    pub stop_signal: Option<String>,
}

/// State of a container.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// Made and never started.
    Created,
    /// Running.
    Running {
        /// Since when.
        started: Timestamp,
    },
    /// Ended.
    Exited {
        /// When it began; the epoch where it never did.
        started: Timestamp,
        /// When it ended.
        finished: Timestamp,
        /// Exit code, 128 + signal for a killed one.
        code: i32,
        /// `Completed`, `Error`, `OOMKilled`, ….
        reason: String,
        /// The runtime's message.
        message: String,
    },
    /// The runtime lost track of it.
    Unknown,
}

impl Seen {
    /// Running, or possibly so.
    pub fn alive(&self) -> bool {
        matches!(self.state, State::Running { .. } | State::Unknown)
    }

    /// The exit code, if it ended.
    pub fn exit(&self) -> Option<i32> {
        match self.state {
            State::Exited { code, .. } => Some(code),
            _ => None,
        }
    }
}

impl Observed {
    /// The newest sandbox.
    pub fn sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first()
    }

    /// The newest container of this name in any sandbox.
    pub fn newest(&self, name: &str) -> Option<&Seen> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// The newest container of this name in the newest sandbox.
    pub fn current(&self, name: &str) -> Option<&Seen> {
        let sandbox = self.sandbox()?;
        self.newest(name).filter(|c| c.sandbox == sandbox.id)
    }

    /// The newest ended container of this name other than `than`.
    pub fn previous(&self, name: &str, than: &str) -> Option<&Seen> {
        self.containers.iter().find(|c| c.name == name && c.id != than && c.exit().is_some())
    }

    /// Puts newest first, as the other methods expect it.
    pub fn sorted(mut self) -> Observed {
        self.sandboxes.sort_by_key(|s| std::cmp::Reverse((s.attempt, s.created)));
        self.containers.sort_by_key(|c| std::cmp::Reverse((c.attempt, c.created)));
        self
    }
}

/// Nanoseconds since the epoch, as CRI counts; out of range becomes the epoch.
pub fn timestamp(nanos: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Translates a sandbox status.
pub fn sandbox(status: &cri::PodSandboxStatus) -> Sandbox {
    let network = status.network.as_ref();
    let first = network.map(|n| n.ip.clone()).filter(|ip| !ip.is_empty());
    let more = network.iter().flat_map(|n| n.additional_ips.iter().map(|ip| ip.ip.clone()));
    Sandbox {
        id: status.id.clone(),
        attempt: status.metadata.as_ref().map_or(0, |m| m.attempt),
        ready: status.state == cri::PodSandboxState::SandboxReady as i32,
        created: timestamp(status.created_at),
        ips: first.into_iter().chain(more).collect(),
    }
}

/// Translates a container status; `sandbox` is the id of its sandbox, which the status lacks.
pub fn container(status: &cri::ContainerStatus, sandbox: &str) -> Seen {
    let note = |key: &str| status.annotations.get(key).cloned().unwrap_or_default();
    let state = match cri::ContainerState::try_from(status.state) {
        Ok(cri::ContainerState::ContainerCreated) => State::Created,
        Ok(cri::ContainerState::ContainerRunning) => State::Running { started: timestamp(status.started_at) },
        Ok(cri::ContainerState::ContainerExited) => State::Exited {
            started: timestamp(status.started_at),
            finished: timestamp(status.finished_at),
            code: status.exit_code,
            reason: status.reason.clone(),
            message: status.message.clone(),
        },
        Ok(cri::ContainerState::ContainerUnknown) | Err(_) => State::Unknown,
    };
    let message_path = note(labels::TERMINATION_MESSAGE_PATH);
    let image = status.image.as_ref();
    let named = |i: &cri::ImageSpec| {
        if i.user_specified_image.is_empty() { i.image.clone() } else { i.user_specified_image.clone() }
    };
    Seen {
        id: status.id.clone(),
        name: status.metadata.as_ref().map(|m| m.name.clone()).unwrap_or_default(),
        sandbox: sandbox.into(),
        attempt: status.metadata.as_ref().map_or(0, |m| m.attempt),
        created: timestamp(status.created_at),
        state,
        image: image.map(named).unwrap_or_default(),
        image_ref: status.image_ref.clone(),
        hash: note(labels::CONTAINER_HASH),
        backoff: Duration::from_millis(note(labels::BACKOFF).parse().unwrap_or(0)),
        log_path: status.log_path.clone(),
        message_file: status
            .mounts
            .iter()
            .find(|m| !message_path.is_empty() && m.container_path == message_path)
            .map(|m| m.host_path.clone()),
        grace: note(labels::TERMINATION_GRACE).parse().ok(),
        user: status.user.as_ref().and_then(|u| u.linux.clone()),
        stop_signal: crate::container::signal_name(status.stop_signal()),
    }
}
