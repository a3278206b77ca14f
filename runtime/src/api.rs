//! The runtime as its callers see it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;

use crate::error::{ExecError, OpenError, RuntimeError, StartError};
use crate::id::{ContainerId, SandboxId};
use crate::options::{Capabilities, Options};
use crate::session::{AttachSession, ExecOutput, ExecSession};
use crate::spec::{ContainerSpec, ExecSpec, Resources, SandboxSpec};
use crate::state::{Container, Event, Sandbox, Stats};

/// Handle to the one runtime of a node; cheap to clone.
#[derive(Clone, Debug)]
pub struct Runtime {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    capabilities: Capabilities,
    events: broadcast::Sender<Event>,
}

fn missing() -> RuntimeError {
    RuntimeError::invalid("this build cannot launch containers yet")
}

impl Runtime {
    /// Starts or finds the keeper, reads the records, asks the keeper for the truth, cleans what nobody owns.
    pub async fn open(_options: Options) -> Result<Runtime, OpenError> {
        Ok(Runtime {
            inner: Arc::new(Inner { capabilities: Capabilities::default(), events: broadcast::channel(1024).0 }),
        })
    }

    /// What kernel and process can do.
    pub fn capabilities(&self) -> &Capabilities {
        &self.inner.capabilities
    }

    /// Makes a sandbox: namespaces, cgroup, `/dev/shm`, host name, sysctls, and an init if process ids are shared.
    pub async fn create_sandbox(&self, _spec: SandboxSpec) -> Result<Sandbox, RuntimeError> {
        Err(missing())
    }

    /// A snapshot of a sandbox.
    pub fn sandbox(&self, _id: &SandboxId) -> Option<Sandbox> {
        None
    }

    /// Snapshots of all sandboxes.
    pub fn sandboxes(&self) -> Vec<Sandbox> {
        Vec::new()
    }

    /// Replaces the caller's data in a sandbox's record.
    pub async fn set_sandbox_meta(&self, _id: &SandboxId, _meta: serde_json::Value) -> Result<(), RuntimeError> {
        Err(missing())
    }

    /// Writes new limits to the pod's cgroup.
    pub async fn update_sandbox(&self, _id: &SandboxId, _resources: Resources) -> Result<(), RuntimeError> {
        Err(missing())
    }

    /// Kills the sandbox's containers and init. The network namespace stays until `remove_sandbox`. Idempotent.
    pub async fn stop_sandbox(&self, _id: &SandboxId) -> Result<(), RuntimeError> {
        Err(missing())
    }

    /// Removes a sandbox and its containers. Idempotent: one that does not exist is no error.
    pub async fn remove_sandbox(&self, _id: &SandboxId) -> Result<(), RuntimeError> {
        Err(missing())
    }

    /// Records a container, makes its writable layer, finds its user.
    pub async fn create_container(&self, _spec: ContainerSpec) -> Result<Container, RuntimeError> {
        Err(missing())
    }

    /// Starts a created container.
    pub async fn start_container(&self, _id: &ContainerId) -> Result<(), StartError> {
        Err(missing().into())
    }

    /// Sends the stop signal, after `grace` kills everything in its cgroup, waits for its end. Idempotent.
    pub async fn stop_container(&self, _id: &ContainerId, _grace: Duration) -> Result<(), RuntimeError> {
        Err(missing())
    }

    /// Sends a signal to a container's process.
    pub async fn signal_container(&self, _id: &ContainerId, _signal: i32) -> Result<(), RuntimeError> {
        Err(missing())
    }

    /// Removes a container, killing it if it runs. Its log file stays. Idempotent.
    pub async fn remove_container(&self, _id: &ContainerId) -> Result<(), RuntimeError> {
        Err(missing())
    }

    /// A snapshot of a container.
    pub fn container(&self, _id: &ContainerId) -> Option<Container> {
        None
    }

    /// Snapshots of all containers.
    pub fn containers(&self) -> Vec<Container> {
        Vec::new()
    }

    /// Replaces the caller's data in a container's record.
    pub async fn set_container_meta(
        &self,
        _id: &ContainerId,
        _meta: serde_json::Value,
    ) -> Result<(), RuntimeError> {
        Err(missing())
    }

    /// Writes new limits to a container's cgroup.
    pub async fn update_container(&self, _id: &ContainerId, _resources: Resources) -> Result<(), RuntimeError> {
        Err(missing())
    }

    /// Runs one more process in a container.
    pub async fn exec(&self, _id: &ContainerId, _exec: ExecSpec) -> Result<ExecSession, ExecError> {
        Err(missing().into())
    }

    /// Runs one more process and collects its output; after `timeout` (`None` or zero: never) it is killed.
    pub async fn exec_sync(
        &self,
        _id: &ContainerId,
        _args: Vec<String>,
        _timeout: Option<Duration>,
    ) -> Result<ExecOutput, ExecError> {
        Err(missing().into())
    }

    /// Opens the streams of a running container.
    pub async fn attach(&self, _id: &ContainerId) -> Result<AttachSession, RuntimeError> {
        Err(missing())
    }

    /// Ends a container's standard input (after the first attach, for `stdin_once`).
    pub async fn close_stdin(&self, _id: &ContainerId) -> Result<(), RuntimeError> {
        Err(missing())
    }

    /// Opens the log file anew, after rotation.
    pub async fn reopen_log(&self, _id: &ContainerId) -> Result<(), RuntimeError> {
        Err(missing())
    }

    /// All events from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.inner.events.subscribe()
    }

    /// What a container uses.
    pub async fn stats(&self, _id: &ContainerId) -> Result<Stats, RuntimeError> {
        Err(missing())
    }
}
