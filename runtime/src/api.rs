//! The runtime as its callers see it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;

use crate::checkpoint::Checkpoint;
use crate::core::Inner;
use crate::error::{ExecError, OpenError, RuntimeError, StartError};
use crate::handler::{Features, NATIVE};
use crate::id::{ContainerId, SandboxId};
use crate::open;
use crate::options::{Capabilities, CgroupDriver, Options};
use crate::record::ContainerRecord;
use crate::session::{AttachSession, ExecOutput, ExecSession};
use crate::spec::{ContainerSpec, ExecSpec, Resources, SandboxSpec};
use crate::state::{Brief, Container, Event, Sandbox, SandboxBrief, Stats};

/// Handle to the one runtime of a node; cheap to clone. When the last clone is dropped the containers go on.
#[derive(Clone, Debug)]
pub struct Runtime {
    inner: Arc<Inner>,
}

impl Runtime {
    /// Starts or finds the keeper, reads the records, asks the keeper for the truth, removes what nobody owns.
    ///
    /// # Errors
    /// [`OpenError::Locked`] when another daemon works there; else what the system refused.
    pub async fn open(options: Options) -> Result<Runtime, OpenError> {
        Ok(Runtime { inner: open::open(options).await? })
    }

    /// What kernel and process can do.
    pub fn capabilities(&self) -> &Capabilities {
        &self.inner.capabilities
    }

    /// Who makes cgroups.
    pub fn cgroup_driver(&self) -> CgroupDriver {
        self.inner.options.cgroup_driver
    }

    /// Whether AppArmor's default profile is in force, or a sentence that says why not; `None` where the kernel has no
    /// AppArmor, and while the profile is being loaded.
    pub fn apparmor(&self) -> Option<Result<(), String>> {
        self.inner.modules.apparmor.outcome().cloned()
    }

    /// The names of the runtime handlers and what they can do; the default one first, by the empty name.
    pub async fn handlers(&self) -> Vec<(String, Features)> {
        let all = self.inner.handlers().await;
        let default = self.inner.options.handlers.get("").map_or(NATIVE, |(name, _)| name);
        let features = all.iter().find(|known| known.name == default).map(|known| known.features);
        let named = all.iter().map(|known| (known.name.clone(), known.features));
        std::iter::once((String::new(), features.unwrap_or_default())).chain(named).collect()
    }

    /// Makes a sandbox: namespaces, cgroup, `/dev/shm`, host name, sysctls, and an init if process ids are shared.
    ///
    /// # Errors
    /// `Exists`; `Invalid` for a specification that is refused; what the system refused.
    pub async fn create_sandbox(&self, spec: SandboxSpec) -> Result<Sandbox, RuntimeError> {
        self.inner.create_sandbox(spec).await
    }

    /// A snapshot of a sandbox.
    pub fn sandbox(&self, id: &SandboxId) -> Option<Sandbox> {
        let objects = self.inner.objects.lock();
        objects.sandboxes.get(id).map(|entry| self.inner.snapshot(&entry.record))
    }

    /// Snapshots of all sandboxes.
    pub fn sandboxes(&self) -> Vec<Sandbox> {
        let objects = self.inner.objects.lock();
        objects.sandboxes.values().map(|entry| self.inner.snapshot(&entry.record)).collect()
    }

    /// What `row` makes of all sandboxes; called as that of [`Runtime::container_rows`].
    pub fn sandbox_rows<T>(&self, row: impl FnMut(SandboxBrief<'_>) -> Option<T>) -> Vec<T> {
        let objects = self.inner.objects.lock();
        objects.sandboxes.values().map(|entry| entry.record.brief()).filter_map(row).collect()
    }

    /// Replaces the caller's data in a sandbox's record.
    ///
    /// # Errors
    /// `NoSandbox`; what writing the record gave.
    pub async fn set_sandbox_meta(
        &self,
        id: &SandboxId,
        meta: serde_json::Value,
    ) -> Result<(), RuntimeError> {
        self.inner.change_sandbox(id, |entry| entry.record.meta = Arc::new(meta))
    }

    /// Writes new limits to the pod's cgroup.
    ///
    /// # Errors
    /// `NoSandbox`; `Invalid` or `Io` for limits that are refused.
    pub async fn update_sandbox(&self, id: &SandboxId, resources: Resources) -> Result<(), RuntimeError> {
        self.inner.update_sandbox(id, resources).await
    }

    /// Kills the sandbox's containers and init. The network namespace stays until `remove_sandbox`. Idempotent: one
    /// that is stopped or does not exist is no error.
    ///
    /// # Errors
    /// `Timeout` when a process does not end; what the system refused.
    pub async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        self.inner.stop_sandbox(id).await
    }

    /// Removes a sandbox and its containers. Idempotent: one that does not exist is no error.
    ///
    /// # Errors
    /// As `stop_sandbox`; what is left can be removed by calling again.
    pub async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        self.inner.remove_sandbox(id).await
    }

    /// Records a container, makes its writable layer and cgroup, finds its user.
    ///
    /// # Errors
    /// `NoSandbox`, `SandboxNotReady`, `Exists`; `Invalid` for a specification that is refused.
    pub async fn create_container(&self, spec: ContainerSpec) -> Result<Container, RuntimeError> {
        self.inner.create_container(spec).await
    }

    /// Starts a created container. One whose start failed is exited, with the reason in its state.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start_container(&self, id: &ContainerId) -> Result<(), StartError> {
        self.inner.start_container(id).await
    }

    /// Sends the stop signal, after `grace` kills everything in its cgroup, waits for its end. Idempotent: one that
    /// does not run is no error.
    ///
    /// # Errors
    /// `NoContainer`; `Timeout` when it does not end after SIGKILL.
    pub async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError> {
        self.inner.stop_container(id, grace).await
    }

    /// Sends a signal to a container's process.
    ///
    /// # Errors
    /// `NoContainer`, `WrongState`.
    pub async fn signal_container(&self, id: &ContainerId, signal: i32) -> Result<(), RuntimeError> {
        self.inner.signal_container(id, signal).await
    }

    /// Removes a container, killing it if it runs. Its log file stays. Idempotent.
    ///
    /// # Errors
    /// As `stop_container`; what is left can be removed by calling again.
    pub async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.inner.remove_container(id).await
    }

    /// A snapshot of a container.
    pub fn container(&self, id: &ContainerId) -> Option<Container> {
        self.inner.objects.lock().containers.get(id).map(|entry| entry.record.snapshot())
    }

    /// Snapshots of all containers.
    pub fn containers(&self) -> Vec<Container> {
        self.inner.objects.lock().containers.values().map(|entry| entry.record.snapshot()).collect()
    }

    /// What `row` makes of all containers, or of those of one sandbox. `row` is called with the runtime locked: it must
    /// neither wait nor call the runtime.
    pub fn container_rows<T>(
        &self,
        sandbox: Option<&SandboxId>,
        row: impl FnMut(Brief<'_>) -> Option<T>,
    ) -> Vec<T> {
        let objects = self.inner.objects.lock();
        let records = objects.containers.values().map(|entry| &entry.record);
        let wanted = records.filter(|record| sandbox.is_none_or(|id| record.spec.sandbox == *id));
        wanted.map(ContainerRecord::brief).filter_map(row).collect()
    }

    /// Snapshots of a sandbox's containers.
    pub fn containers_of(&self, sandbox: &SandboxId) -> Vec<Container> {
        let objects = self.inner.objects.lock();
        let records = objects.containers.values().map(|entry| &entry.record);
        records.filter(|record| record.spec.sandbox == *sandbox).map(ContainerRecord::snapshot).collect()
    }

    /// Replaces the caller's data in a container's record.
    ///
    /// # Errors
    /// `NoContainer`; what writing the record gave.
    pub async fn set_container_meta(
        &self,
        id: &ContainerId,
        meta: serde_json::Value,
    ) -> Result<(), RuntimeError> {
        self.inner.change_container(id, |entry| entry.record.meta = Arc::new(meta))
    }

    /// Writes a running container's processes to files, by CRIU; it goes on running. The files are removed with the
    /// answer.
    ///
    /// # Errors
    /// `NoContainer`, `WrongState`; `NotNow` where CRIU is missing or can't do it; `Timeout` after `patience`; `Io` with
    /// CRIU's words.
    pub async fn checkpoint(&self, id: &ContainerId, patience: Duration) -> Result<Checkpoint, RuntimeError> {
        self.inner.checkpoint(id, patience).await
    }

    /// Writes new limits to a container's cgroup; what is not said stays.
    ///
    /// # Errors
    /// `NoContainer`, `WrongState`; `Invalid` or `Io` for limits that are refused.
    pub async fn update_container(&self, id: &ContainerId, resources: Resources) -> Result<(), RuntimeError> {
        self.inner.update_container(id, resources).await
    }

    /// Runs one more process in a container.
    ///
    /// # Errors
    /// See [`ExecError`].
    pub async fn exec(&self, id: &ContainerId, exec: ExecSpec) -> Result<ExecSession, ExecError> {
        self.inner.exec(id, exec).await
    }

    /// Runs one more process and collects its output; after `timeout` (`None` or zero: never) it is killed.
    ///
    /// # Errors
    /// See [`ExecError`]; a command that fails, or is killed for its time, is no error.
    pub async fn exec_sync(
        &self,
        id: &ContainerId,
        args: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, ExecError> {
        self.inner.exec_sync(id, args, timeout).await
    }

    /// Opens the streams of a running container.
    ///
    /// # Errors
    /// `NoContainer`, `WrongState`.
    pub async fn attach(&self, id: &ContainerId) -> Result<AttachSession, RuntimeError> {
        self.inner.attach(id).await
    }

    /// Ends a container's standard input (after the first attach, for `stdin_once`).
    ///
    /// # Errors
    /// `NoContainer`, `WrongState`.
    pub async fn close_stdin(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.inner.close_stdin(id).await
    }

    /// Sets the size of a container's terminal.
    ///
    /// # Errors
    /// `NoContainer`, `WrongState`; the keeper's refusal when it has no terminal.
    pub async fn resize(&self, id: &ContainerId, columns: u16, rows: u16) -> Result<(), RuntimeError> {
        self.inner.resize(id, columns, rows).await
    }

    /// Opens the log file anew, after rotation.
    ///
    /// # Errors
    /// `NoContainer`, `WrongState`; what opening the file gave.
    pub async fn reopen_log(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.inner.reopen_log(id).await
    }

    /// All events from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.inner.events.subscribe()
    }

    /// What a container uses.
    ///
    /// # Errors
    /// `NoContainer`; `WrongState` when it has exited.
    pub async fn stats(&self, id: &ContainerId) -> Result<Stats, RuntimeError> {
        self.inner.stats(id).await
    }

    /// Measures containers; those that have exited, are gone, or cannot be measured are left out.
    pub async fn stats_of(&self, ids: Vec<ContainerId>) -> Vec<(ContainerId, Stats)> {
        self.inner.stats_of(ids).await
    }

    /// Bytes and inodes of all writable layers together, at most some seconds old.
    pub async fn writable(&self) -> (u64, u64) {
        self.inner.all_writable().await
    }

    /// Whether a container's processes are stopped by the cgroup's freezer, by whomever. Such a container runs,
    /// and can be stopped.
    pub fn frozen(&self, id: &ContainerId) -> bool {
        self.inner.frozen(id)
    }

    /// Files of a cgroup (a container's or sandbox's `cgroup`), as the kernel writes them; those that are not there are
    /// left out.
    pub async fn cgroup_files(
        &self,
        cgroup: &str,
        names: &'static [&'static str],
    ) -> Vec<(&'static str, String)> {
        let (inner, cgroup) = (self.inner.clone(), cgroup.to_owned());
        crate::core::blocking(move || inner.files_of(&cgroup, names)).await
    }

    /// What a whole pod uses: processor time, memory, tasks, disk traffic; not its writable layers.
    ///
    /// # Errors
    /// `NoSandbox`.
    pub async fn sandbox_stats(&self, id: &SandboxId) -> Result<Stats, RuntimeError> {
        let cgroup = self.inner.sandbox_record(id)?.cgroup;
        let inner = self.inner.clone();
        crate::core::blocking(move || inner.usage_of(&cgroup)).await
    }
}

/// Stops everything of a runtime that is not open, and removes all traces of it: containers, keeper, pinned
/// namespaces, cgroups, writable layers, records. Log files stay.
///
/// # Errors
/// [`OpenError::Locked`] while a daemon works there; else what the system refused.
pub async fn destroy(options: Options) -> Result<(), OpenError> {
    open::destroy(options).await
}
