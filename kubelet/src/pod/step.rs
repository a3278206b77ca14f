//! What `plan` can ask for, and what it needs to know besides the runtime's word.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;

/// One thing to do for a pod. Steps of one plan are independent of each other.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Mount the volumes and, if `attempt` is given, make a sandbox.
    SetUp {
        /// Attempt number of the new sandbox; `None` where the present one stays.
        attempt: Option<u32>,
    },
    /// Pull the image, make the container, start it, run its postStart hook.
    Start {
        /// Container name.
        name: String,
        /// Restart count of the new container.
        attempt: u32,
        /// What to wait should it end again.
        backoff: Duration,
    },
    /// Run the preStop hook and stop the container.
    Stop {
        /// Container id.
        id: String,
        /// Container name.
        name: String,
        /// Why.
        why: StopReason,
        /// Time for the hook and the container together.
        grace: Duration,
    },
    /// Forget an ended container and its log.
    Remove {
        /// Container id.
        id: String,
    },
    /// Forget a sandbox without containers.
    RemoveSandbox {
        /// Sandbox id.
        id: String,
    },
    /// Stop all sandboxes: the pod leaves the network.
    StopSandbox,
    /// Unmount the volumes of a pod that ended but is still an object.
    Release,
    /// Remove containers, sandboxes, volumes and cgroup of a deleted pod.
    CleanUp,
    /// Tell the apiserver that nothing is left of a deleted pod.
    Finish,
    /// Nothing to do for `what` before `at`.
    Wait {
        /// What waits: a container or `pod`.
        what: String,
        /// Until when.
        at: Timestamp,
    },
}

/// Why a container is stopped; the text goes into the event `Killing`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The pod is to end.
    PodEnds,
    /// A liveness or startup probe gave up on it.
    Unhealthy(ProbeKind),
    /// The pod's object asks for another image or command.
    Changed,
    /// Its sandbox is gone.
    SandboxGone,
    /// The runtime lost track of it.
    Unknown,
    /// The pod has no container of this name.
    Unwanted,
    /// Its postStart hook failed.
    PostStartFailed,
}

impl StopReason {
    /// The message of the event, worded as `kubectl describe` shows it everywhere.
    pub fn message(&self, name: &str) -> String {
        match self {
            StopReason::PodEnds | StopReason::Unwanted => format!("Stopping container {name}"),
            StopReason::Unhealthy(kind) => {
                format!("Container {name} failed {kind} probe, will be restarted")
            }
            StopReason::Changed => format!("Container {name} definition changed, will be restarted"),
            StopReason::SandboxGone => {
                format!("Pod sandbox changed, container {name} will be killed and re-created.")
            }
            StopReason::Unknown => format!("Container {name} is in unknown state, will be restarted"),
            StopReason::PostStartFailed => format!("FailedPostStartHook: container {name} will be restarted"),
        }
    }
}

/// The probes that can end a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProbeKind {
    /// Holds the other two back until it succeeded once.
    Startup,
    /// Restarts the container when it gives up.
    Liveness,
}

impl fmt::Display for ProbeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ProbeKind::Startup => "startup",
            ProbeKind::Liveness => "liveness",
        })
    }
}

/// A piece of work under way or failed. At most one of each runs at a time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Job {
    /// [`Step::SetUp`].
    SetUp,
    /// [`Step::Start`] of this container name.
    Start(String),
    /// [`Step::Stop`] of this container id.
    Stop(String),
    /// [`Step::Remove`] or [`Step::RemoveSandbox`] of this id.
    Remove(String),
    /// [`Step::StopSandbox`], [`Step::Release`] or [`Step::CleanUp`].
    TearDown,
    /// [`Step::Finish`].
    Finish,
    /// Writing the status; the task's own.
    Report,
    /// Bringing volumes up to date; the task's own.
    Refresh,
}

impl Step {
    /// The job that carries this step out; `None` for waiting.
    pub fn job(&self) -> Option<Job> {
        Some(match self {
            Step::SetUp { .. } => Job::SetUp,
            Step::Start { name, .. } => Job::Start(name.clone()),
            Step::Stop { id, .. } => Job::Stop(id.clone()),
            Step::Remove { id } | Step::RemoveSandbox { id } => Job::Remove(id.clone()),
            Step::StopSandbox | Step::Release | Step::CleanUp => Job::TearDown,
            Step::Finish => Job::Finish,
            Step::Wait { .. } => return None,
        })
    }
}

/// What the pod's task remembers: work under way, failures, what probes say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memo {
    /// Work under way; for a stop, the moment by which it will be over.
    pub jobs: BTreeMap<Job, Option<Timestamp>>,
    /// The last failure of a job that has not succeeded since.
    pub failures: BTreeMap<Job, Failure>,
    /// What the probes say, by container name.
    pub verdicts: BTreeMap<String, Verdict>,
    /// Containers (ids) that are to be stopped because their postStart hook failed.
    pub hook_failed: BTreeMap<String, String>,
    /// The volumes are mounted and kept up to date.
    pub mounted: bool,
    /// The volumes were unmounted after the pod's end.
    pub released: bool,
    /// Containers, sandboxes and files are gone.
    pub cleaned: bool,
    /// The apiserver was told.
    pub finished: bool,
    /// The pod reached its end, and how.
    pub ended: Option<Ended>,
}

/// How a pod ended for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// All containers ended with code 0.
    pub success: bool,
    /// `status.reason`, e.g. `DeadlineExceeded`.
    pub reason: Option<String>,
    /// `status.message`.
    pub message: Option<String>,
}

/// A job that failed and when it is tried again.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// `ErrImagePull`, `CreateContainerConfigError`, ….
    pub reason: String,
    /// Full text.
    pub message: String,
    /// When.
    pub at: Timestamp,
    /// How long it waits this time.
    pub delay: Duration,
}

impl Failure {
    /// When the job may be tried again.
    pub fn retry_at(&self) -> Timestamp {
        after(self.at, self.delay)
    }
}

/// What the probes of one container say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The container (id) that it is about.
    pub id: String,
    /// The startup probe succeeded, or there is none.
    pub started: bool,
    /// The readiness probe succeeds, or there is none.
    pub ready: bool,
    /// A probe gave up on it; its own grace period if it has one.
    pub failed: Option<(ProbeKind, Option<Duration>)>,
}

/// Why a pod is to be ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// What happened to it.
    pub why: StopWhy,
    /// Time its containers have.
    pub grace: Duration,
    /// Since when.
    pub since: Timestamp,
}

/// What happened to a pod that is to be ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopWhy {
    /// It has a deletion timestamp: report, then let the apiserver delete it.
    Deleted,
    /// The object is gone, or was never there: just clean up.
    Gone,
    /// It failed as a whole and stays as an object.
    Failed(Ended),
}

/// `at` plus `delay`; saturates.
pub fn after(at: Timestamp, delay: Duration) -> Timestamp {
    at.saturating_add(jiff::SignedDuration::try_from(delay).unwrap_or(jiff::SignedDuration::MAX))
        .unwrap_or(Timestamp::MAX)
}

/// Time from `from` until `to`; zero if `to` is past.
pub fn until(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or(Duration::ZERO)
}
