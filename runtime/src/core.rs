//! The state of the runtime in memory, and how it changes.
//!
//! Every object has an operation lock (held across awaits, one operation at a time) and lives in a map behind a
//! short lock (never held across awaits). Exits are applied by the supervisor task, not by operations.
//!
//! Guarantees: a change is on disk before it is announced; an exit is applied once.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use keeper::client::{ClientError, Keeper, StreamFds};
use keeper::plan::ProcessPlan;
use keeper::protocol::{self, ExitHow, UnixNanos};
use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};

use crate::cgroup::Cgroups;
use crate::error::RuntimeError;
use crate::id::{ContainerId, SandboxId};
use crate::lsm::Modules;
use crate::options::{Capabilities, Options};
use crate::pins::Pins;
use crate::plan::Draft;
use crate::record::{self, ContainerRecord, SandboxRecord};
use crate::seccomp;
use crate::spec::NamespaceMode;
use crate::state::{ContainerState, Event, Exit, ExitReason, ExitStatus, Sandbox, SandboxState};

/// Prefix of the ids that inits have in the keeper; no id of ours has a dot.
const INIT: &str = "pod.";
/// How long an operation waits for a keeper that is being replaced.
const KEEPER_PATIENCE: Duration = Duration::from_secs(10);

/// Everything behind a `Runtime`.
#[derive(Debug)]
pub struct Inner {
    pub options: Options,
    pub paths: Paths,
    pub capabilities: Capabilities,
    /// Capabilities (of Linux) that this process can hand on.
    pub available: u64,
    pub cgroups: Cgroups,
    pub pins: Pins,
    pub modules: Modules,
    pub filters: seccomp::Cache,
    pub devices: crate::devices::Filters,
    pub events: broadcast::Sender<Event>,
    pub objects: Mutex<Objects>,
    /// The living connection; `None` while a keeper is being replaced.
    pub keeper: watch::Sender<Option<Keeper>>,
    /// Who waits for which exec.
    pub execs: Mutex<HashMap<String, watch::Sender<Option<ExitStatus>>>>,
    /// What handlers can do, once it was asked.
    pub handler_features: tokio::sync::OnceCell<Vec<crate::delegate::Known>>,
    /// Containers whose processes are being dumped.
    pub underway: crate::checkpoint::Underway,
    /// Held as long as this runtime lives.
    pub _lock: std::fs::File,
}

/// Directories and files.
#[derive(Debug, Clone)]
pub struct Paths {
    pub run: PathBuf,
    pub sandboxes: PathBuf,
    pub containers: PathBuf,
    pub layers: PathBuf,
    pub namespaces: PathBuf,
    pub socket: PathBuf,
    pub lock: PathBuf,
    pub boot: PathBuf,
    pub keeper_log: PathBuf,
    /// Bundles and state of other runtimes.
    pub bundles: PathBuf,
}

impl Paths {
    pub fn of(options: &Options) -> Paths {
        let run = options.run.clone();
        Paths {
            sandboxes: run.join("sandboxes"),
            containers: run.join("containers"),
            layers: options.data.join("containers"),
            namespaces: run.join("ns"),
            socket: run.join("keeper.sock"),
            lock: run.join("orlop.lock"),
            boot: run.join("boot-id"),
            keeper_log: run.join("keeper.log"),
            bundles: run.join("oci"),
            run,
        }
    }
}

/// All sandboxes and containers.
#[derive(Debug, Default)]
pub struct Objects {
    pub sandboxes: HashMap<SandboxId, SandboxEntry>,
    pub containers: HashMap<ContainerId, ContainerEntry>,
    /// Ids that are being made.
    pub reserved: HashSet<String>,
}

#[derive(Debug)]
pub struct SandboxEntry {
    pub record: SandboxRecord,
    pub operation: Arc<tokio::sync::Mutex<()>>,
    pub held: Option<Held>,
}

#[derive(Debug)]
pub struct ContainerEntry {
    pub record: ContainerRecord,
    pub operation: Arc<tokio::sync::Mutex<()>>,
    pub held: Option<Held>,
    /// Made by create for start.
    pub ready: Option<Ready>,
    /// An exit that was told before the launch was answered.
    pub early_exit: Option<protocol::Exit>,
    /// Becomes true when it has ended.
    pub ended: watch::Sender<bool>,
    /// Pattern of execs.
    pub process: Option<Arc<ProcessPlan>>,
    /// Use of the writable layer, and when it was measured.
    pub usage: Option<(Instant, u64, u64)>,
}

impl ContainerEntry {
    pub fn new(record: ContainerRecord) -> ContainerEntry {
        let ended = matches!(record.state, ContainerState::Exited(_));
        ContainerEntry {
            record,
            operation: Arc::default(),
            held: None,
            ready: None,
            early_exit: None,
            ended: watch::Sender::new(ended),
            process: None,
            usage: None,
        }
    }
}

impl SandboxEntry {
    pub fn new(record: SandboxRecord) -> SandboxEntry {
        SandboxEntry { record, operation: Arc::default(), held: None }
    }
}

/// What create prepared for start.
#[derive(Debug)]
pub struct Ready {
    pub rootfs: OwnedFd,
    pub draft: Draft,
}

/// Duplicates for the day the keeper dies.
#[derive(Debug)]
pub struct Held {
    pub pidfd: OwnedFd,
    pub streams: StreamFds,
}

impl Inner {
    /// The keeper, waiting a while if it is being replaced.
    pub async fn keeper(&self) -> Result<Keeper, RuntimeError> {
        let mut current = self.keeper.subscribe();
        let waited = tokio::time::timeout(KEEPER_PATIENCE, current.wait_for(Option::is_some)).await;
        match waited {
            Ok(Ok(keeper)) => keeper.clone().ok_or_else(no_keeper),
            _ => Err(no_keeper()),
        }
    }

    /// A sandbox's snapshot.
    pub fn snapshot(&self, record: &SandboxRecord) -> Sandbox {
        let netns = (record.spec.namespaces.net != NamespaceMode::Node)
            .then(|| self.pins.of(record.spec.id.as_str()).join("net"));
        record.snapshot(netns)
    }

    /// A sandbox's record.
    pub fn sandbox_record(&self, id: &SandboxId) -> Result<SandboxRecord, RuntimeError> {
        let objects = self.objects.lock();
        let entry = objects.sandboxes.get(id).ok_or_else(|| RuntimeError::NoSandbox { id: id.clone() })?;
        Ok(entry.record.clone())
    }

    /// A container's record.
    pub fn container_record(&self, id: &ContainerId) -> Result<ContainerRecord, RuntimeError> {
        let objects = self.objects.lock();
        let entry = objects.containers.get(id).ok_or_else(|| RuntimeError::NoContainer { id: id.clone() })?;
        Ok(entry.record.clone())
    }

    /// The operation lock of a sandbox.
    pub fn sandbox_operation(&self, id: &SandboxId) -> Result<Arc<tokio::sync::Mutex<()>>, RuntimeError> {
        let objects = self.objects.lock();
        let entry = objects.sandboxes.get(id).ok_or_else(|| RuntimeError::NoSandbox { id: id.clone() })?;
        Ok(entry.operation.clone())
    }

    /// The operation lock of a container.
    pub fn container_operation(&self, id: &ContainerId) -> Result<Arc<tokio::sync::Mutex<()>>, RuntimeError> {
        let objects = self.objects.lock();
        let entry = objects.containers.get(id).ok_or_else(|| RuntimeError::NoContainer { id: id.clone() })?;
        Ok(entry.operation.clone())
    }

    /// Changes a container's record in memory and on disk.
    pub fn change_container<T>(
        &self,
        id: &ContainerId,
        change: impl FnOnce(&mut ContainerEntry) -> T,
    ) -> Result<T, RuntimeError> {
        let mut objects = self.objects.lock();
        let entry =
            objects.containers.get_mut(id).ok_or_else(|| RuntimeError::NoContainer { id: id.clone() })?;
        let outcome = change(entry);
        // Written under the lock, so that the last change wins on disk too. It is a small file on a tmpfs.
        record::write(&self.paths.containers, id.as_str(), &entry.record)?;
        Ok(outcome)
    }

    /// Changes a sandbox's record in memory and on disk.
    pub fn change_sandbox<T>(
        &self,
        id: &SandboxId,
        change: impl FnOnce(&mut SandboxEntry) -> T,
    ) -> Result<T, RuntimeError> {
        let mut objects = self.objects.lock();
        let entry =
            objects.sandboxes.get_mut(id).ok_or_else(|| RuntimeError::NoSandbox { id: id.clone() })?;
        let outcome = change(entry);
        record::write(&self.paths.sandboxes, id.as_str(), &entry.record)?;
        Ok(outcome)
    }

    /// Tells all subscribers. Nobody listening is fine.
    pub fn announce(&self, event: Event) {
        let _ = self.events.send(event);
    }

    /// An end that the keeper told of. Returns whether the keeper may forget it.
    pub fn exited(&self, keeper_id: &str, exit: protocol::Exit) -> bool {
        if let Some(sandbox) = init_of(keeper_id) {
            return self.init_exited(&sandbox);
        }
        let Ok(id) = ContainerId::new(keeper_id) else { return true };
        let mut known = true;
        let mut applied = None;
        let written = self.change_container(&id, |entry| match entry.record.state {
            ContainerState::Running { started_at, .. } => {
                applied = Some((entry.apply(exit, Some(started_at)), entry.record.clone()));
            }
            ContainerState::Unknown { started_at } => {
                applied = Some((entry.apply(exit, started_at), entry.record.clone()));
            }
            ContainerState::Created => {
                // Its launch is being answered; start applies it then.
                entry.early_exit = Some(exit);
                known = false;
            }
            ContainerState::Exited(_) => {}
        });
        if let Err(error) = written
            && !error.is_not_found()
        {
            // The keeper goes on knowing it, for the next daemon.
            tracing::error!(container = %id, error = %chain(&error), "record an exit");
            known = false;
        }
        if let Some((exit, record)) = applied {
            self.after_exit(&record, exit);
        }
        known
    }

    /// What follows from an exit that was applied.
    pub fn after_exit(&self, record: &ContainerRecord, exit: Exit) {
        if record.spec.namespaces.pid != NamespaceMode::Container {
            // No process namespace of its own ended with it, so others of its processes may live on.
            if let Ok(group) = self.cgroups.open_path(&record.cgroup)
                && let Err(errno) = group.kill()
            {
                tracing::warn!(container = %record.spec.id, error = %errno, "kill what a container left behind");
            }
        }
        // The keeper has read why it ended.
        self.cgroups.settle(&record.cgroup);
        let (id, sandbox) = (record.spec.id.clone(), record.spec.sandbox.clone());
        self.announce(Event::ContainerStopped { id, sandbox, exit });
    }

    fn init_exited(&self, id: &SandboxId) -> bool {
        let mut was = SandboxState::NotReady;
        let written = self.change_sandbox(id, |entry| {
            entry.held = None;
            was = entry.record.state;
            entry.record.init = None;
            entry.record.state = SandboxState::NotReady;
        });
        if let Err(error) = written
            && !error.is_not_found()
        {
            tracing::error!(sandbox = %id, error = %chain(&error), "record the end of an init");
        }
        if was == SandboxState::Ready {
            self.announce(Event::SandboxStopped(id.clone()));
        }
        true
    }
}

impl ContainerEntry {
    /// Turns the state into exited.
    pub fn apply(&mut self, exit: protocol::Exit, started_at: Option<Timestamp>) -> Exit {
        let status = status(exit.how);
        let reason = match status {
            _ if exit.oom_killed => ExitReason::OomKilled,
            ExitStatus::Code(0) => ExitReason::Completed,
            ExitStatus::Unknown => ExitReason::Unknown,
            _ => ExitReason::Error,
        };
        self.end(Exit { status, reason, started_at, finished_at: timestamp(exit.at), message: String::new() })
    }

    /// Turns the state into exited, and wakes who waits for it.
    pub fn end(&mut self, exit: Exit) -> Exit {
        self.record.state = ContainerState::Exited(exit.clone());
        self.held = None;
        self.ready = None;
        self.process = None;
        self.ended.send_replace(true);
        exit
    }
}

/// The id of a sandbox's init in the keeper.
pub fn init_id(sandbox: &SandboxId) -> String {
    format!("{INIT}{sandbox}")
}

/// The sandbox whose init has this id in the keeper.
pub fn init_of(keeper_id: &str) -> Option<SandboxId> {
    keeper_id.strip_prefix(INIT).and_then(|id| SandboxId::new(id).ok())
}

/// The keeper's word for an end, in ours.
pub fn status(how: ExitHow) -> ExitStatus {
    match how {
        ExitHow::Code(code) => ExitStatus::Code(code),
        ExitHow::Signal(signal) => ExitStatus::Signal(signal),
        ExitHow::Unknown => ExitStatus::Unknown,
    }
}

/// The keeper's moments, in ours.
pub fn timestamp(at: UnixNanos) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(at.0)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Wraps a keeper's error with its step.
pub fn keeper_error(step: impl Into<String>) -> impl FnOnce(ClientError) -> RuntimeError {
    let step = step.into();
    move |error| RuntimeError::Keeper { step, source: Box::new(error) }
}

fn no_keeper() -> RuntimeError {
    RuntimeError::Keeper {
        step: "wait for the keeper".into(),
        source: "it died and could not be started again".into(),
    }
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text += ": ";
        text += &cause.to_string();
        next = cause.source();
    }
    text
}

/// Runs blocking work on a thread for it.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
