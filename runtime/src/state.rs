//! What is known about sandboxes and containers, as snapshots, and the events between two of them.
//!
//! Guarantees: a state carries what belongs to it; an exit code that nobody knows is `Unknown`.

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::id::{ContainerId, SandboxId};
use crate::spec::{ContainerSpec, ResolvedUser, SandboxSpec};

/// A sandbox at one moment.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// As asked for (`spec.meta` is the caller's data as it was at creation; `meta` is current).
    pub spec: Arc<SandboxSpec>,
    /// The caller's data.
    pub meta: Arc<serde_json::Value>,
    /// Ready or not.
    pub state: SandboxState,
    /// When it was made.
    pub created_at: Timestamp,
    /// Its pinned network namespace; `None` with the node's.
    pub netns: Option<PathBuf>,
    /// Process id of the pod's init, in a pod with shared process ids.
    pub init_pid: Option<u32>,
    /// The pod's cgroup, relative to the root of the cgroup2 file system, with a leading `/`.
    pub cgroup: String,
    /// What was asked for and this node cannot enforce, as sentences.
    pub unenforced: Vec<String>,
}

impl Sandbox {
    /// Its id.
    pub fn id(&self) -> &SandboxId {
        &self.spec.id
    }
}

/// Whether containers can be made in a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SandboxState {
    /// Yes.
    Ready,
    /// It was stopped, or its init died.
    NotReady,
}

/// A container at one moment.
#[derive(Debug, Clone)]
pub struct Container {
    /// As asked for.
    pub spec: Arc<ContainerSpec>,
    /// The caller's data.
    pub meta: Arc<serde_json::Value>,
    /// Where in its life it is.
    pub state: ContainerState,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who it runs as.
    pub user: ResolvedUser,
    /// Its cgroup, relative to the root of the cgroup2 file system, with a leading `/`.
    pub cgroup: String,
    /// What was asked for and this node cannot enforce, as sentences.
    pub unenforced: Vec<String>,
}

impl Container {
    /// Its id.
    pub fn id(&self) -> &ContainerId {
        &self.spec.id
    }

    /// Process id on the node while it runs.
    pub fn pid(&self) -> Option<u32> {
        match self.state {
            ContainerState::Running { pid, .. } => Some(pid),
            _ => None,
        }
    }
}

/// A container as lists show it: nothing of it is copied, for there may be thousands.
#[derive(Debug, Clone, Copy)]
pub struct Brief<'a> {
    /// As asked for.
    pub spec: &'a ContainerSpec,
    /// Where in its life it is.
    pub state: &'a ContainerState,
    /// When it was made.
    pub created_at: Timestamp,
}

impl<'a> Brief<'a> {
    /// Its id.
    pub fn id(&self) -> &'a ContainerId {
        &self.spec.id
    }
}

/// A sandbox as lists show it.
#[derive(Debug, Clone, Copy)]
pub struct SandboxBrief<'a> {
    /// Its id.
    pub id: &'a SandboxId,
    /// Ready or not.
    pub state: SandboxState,
    /// When it was made.
    pub created_at: Timestamp,
}

/// Where in its life a container is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Made, never started.
    Created,
    /// Its process lives.
    Running {
        /// Process id on the node.
        pid: u32,
        /// When it was started.
        started_at: Timestamp,
    },
    /// Its process ended.
    Exited(Exit),
    /// It was running when it was last seen, and nobody can say what became of it.
    Unknown {
        /// When it was started, if that is known.
        started_at: Option<Timestamp>,
    },
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Code or signal.
    pub status: ExitStatus,
    /// Why, as CRI names it.
    pub reason: ExitReason,
    /// When it was started; `None` if it never was (its start failed).
    pub started_at: Option<Timestamp>,
    /// When it ended, or when that was noticed.
    pub finished_at: Timestamp,
    /// A sentence for people, such as the reason of a failed start; may be empty.
    pub message: String,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It called exit.
    Code(i32),
    /// A signal killed it.
    Signal(i32),
    /// Nobody was there to hear it.
    Unknown,
}

impl ExitStatus {
    /// The code as shells and CRI show it: 128 + n for signal n, 255 when unknown.
    pub fn code(self) -> i32 {
        match self {
            ExitStatus::Code(code) => code,
            ExitStatus::Signal(signal) => 128 + signal,
            ExitStatus::Unknown => 255,
        }
    }
}

/// Why a container ended, as CRI names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitReason {
    /// Code 0.
    Completed,
    /// Another code, or a signal.
    Error,
    /// The kernel killed it for memory.
    OomKilled,
    /// It could not be started.
    StartError,
    /// The code is not known.
    Unknown,
}

impl ExitReason {
    /// The word that CRI uses.
    pub fn as_str(self) -> &'static str {
        match self {
            ExitReason::Completed => "Completed",
            ExitReason::Error => "Error",
            ExitReason::OomKilled => "OOMKilled",
            ExitReason::StartError => "StartError",
            ExitReason::Unknown => "ContainerStatusUnknown",
        }
    }
}

/// Something that happened, pushed to all subscribers.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A sandbox is ready.
    SandboxCreated(SandboxId),
    /// A sandbox is no longer ready.
    SandboxStopped(SandboxId),
    /// A sandbox is gone.
    SandboxRemoved(SandboxId),
    /// A container was made.
    ContainerCreated {
        /// The container.
        id: ContainerId,
        /// Its sandbox.
        sandbox: SandboxId,
    },
    /// A container runs.
    ContainerStarted {
        /// The container.
        id: ContainerId,
        /// Its sandbox.
        sandbox: SandboxId,
    },
    /// A container ended.
    ContainerStopped {
        /// The container.
        id: ContainerId,
        /// Its sandbox.
        sandbox: SandboxId,
        /// How.
        exit: Exit,
    },
    /// A container is gone.
    ContainerRemoved {
        /// The container.
        id: ContainerId,
        /// Its sandbox.
        sandbox: SandboxId,
    },
}

/// What a container uses.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// When it was measured.
    pub at: Timestamp,
    /// Processor time in nanoseconds.
    pub cpu_ns: u64,
    /// Bytes of memory charged to it (or, without the controller, resident).
    pub memory_bytes: u64,
    /// The same without inactive file pages: what eviction looks at.
    pub memory_working_set_bytes: u64,
    /// Anonymous and swap-cache bytes resident.
    pub memory_rss_bytes: u64,
    /// Page faults.
    pub page_faults: u64,
    /// Major page faults.
    pub major_page_faults: u64,
    /// Limit in bytes, if there is one.
    pub memory_limit_bytes: Option<u64>,
    /// Swap in use, in bytes.
    pub swap_bytes: Option<u64>,
    /// Swap that it could still use: up to its own limit, and no more than the node has free.
    pub swap_available_bytes: Option<u64>,
    /// Tasks.
    pub pids: u64,
    /// Bytes read from disks, where the io controller is there.
    pub io_read_bytes: Option<u64>,
    /// Bytes written to disks.
    pub io_write_bytes: Option<u64>,
    /// Pressure of cpu, memory and io, as the kernel's text, where it is there.
    pub pressure: Vec<(String, String)>,
    /// Bytes of the writable layer.
    pub writable_bytes: u64,
    /// Files and directories of the writable layer.
    pub writable_inodes: u64,
}
