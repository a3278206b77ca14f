//! The life of a container.
//!
//! Guarantees: create checks all that can be checked without running it; start is one message to the keeper; a
//! container that could not be started is exited with the reason, never half running.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use keeper::client::{ClientError, LaunchReply};
use keeper::plan::{Fds, LaunchPlan, Stdio};
use keeper::protocol::{FailureKind, SignalTarget};

use crate::core::{ContainerEntry, Held, Inner, Ready, blocking, chain, keeper_error, timestamp};
use crate::error::{RuntimeError, StartError};
use crate::id::ContainerId;
use crate::plan::Origin;
use crate::prepare::{self, Parts};
use crate::record::{self, ContainerRecord, SandboxRecord};
use crate::signal;
use crate::spec::{ContainerSpec, NamespaceMode, Resources};
use crate::state::{Container, ContainerState, Event, Exit, ExitReason, ExitStatus, SandboxState};

/// How long a killed container may take to end: the kernel can be busy with its disk.
const KILL_TIME: Duration = Duration::from_secs(30);
/// Exit code of a container that could not be started, as containerd has it.
const START_ERROR: i32 = 128;

impl Inner {
    /// Makes a container's record, writable layer and cgroup.
    pub async fn create_container(
        self: &Arc<Self>,
        mut spec: ContainerSpec,
    ) -> Result<Container, RuntimeError> {
        let id = spec.id.clone();
        let sandbox = self.sandbox_record(&spec.sandbox)?;
        if sandbox.state != SandboxState::Ready {
            return Err(RuntimeError::SandboxNotReady { id: spec.sandbox });
        }
        {
            let mut objects = self.objects.lock();
            if objects.containers.contains_key(&id) || !objects.reserved.insert(id.to_string()) {
                return Err(RuntimeError::Exists { what: format!("container {id}") });
            }
        }
        let meta = Arc::new(std::mem::take(&mut spec.meta));
        let inner = self.clone();
        let made = blocking(move || {
            let made = inner.make_container(&spec, &sandbox);
            let (user, cgroup, unenforced, ready) = match made {
                Ok(made) => made,
                Err(error) => {
                    let cgroup = inner.cgroups.container_path(&sandbox.cgroup, spec.id.as_str());
                    inner.unmake_container(&spec.id, &cgroup);
                    return Err(error);
                }
            };
            let record = ContainerRecord {
                spec: Arc::new(spec),
                meta,
                state: ContainerState::Created,
                created_at: Timestamp::now(),
                user,
                cgroup,
                process: None,
                unenforced,
            };
            if let Err(error) = record::write(&inner.paths.containers, record.spec.id.as_str(), &record) {
                drop(ready);
                inner.unmake_container(&record.spec.id, &record.cgroup);
                return Err(error);
            }
            Ok((record, ready))
        })
        .await;
        let mut objects = self.objects.lock();
        objects.reserved.remove(id.as_str());
        let (record, ready) = made?;
        let snapshot = record.snapshot();
        let mut entry = ContainerEntry::new(record);
        entry.ready = Some(ready);
        objects.containers.insert(id.clone(), entry);
        drop(objects);
        self.announce(Event::ContainerCreated { id, sandbox: snapshot.spec.sandbox.clone() });
        Ok(snapshot)
    }

    /// Starts a created container.
    pub async fn start_container(self: &Arc<Self>, id: &ContainerId) -> Result<(), StartError> {
        let operation = self.container_operation(id)?;
        let _guard = operation.lock_owned().await;
        let (record, ready) = {
            let mut objects = self.objects.lock();
            let entry =
                objects.containers.get_mut(id).ok_or_else(|| RuntimeError::NoContainer { id: id.clone() })?;
            if entry.record.state != ContainerState::Created {
                let is = word(&entry.record.state);
                return Err(RuntimeError::WrongState { id: id.clone(), is, wanted: "created" }.into());
            }
            (entry.record.clone(), entry.ready.take())
        };
        let sandbox = self.sandbox_record(&record.spec.sandbox)?;
        if sandbox.state != SandboxState::Ready {
            return Err(RuntimeError::SandboxNotReady { id: record.spec.sandbox.clone() }.into());
        }
        let inner = self.clone();
        let launched = {
            let copy = record.clone();
            if self.delegate_of(&sandbox)?.is_some() {
                self.delegate_launch(&record, sandbox, ready).await
            } else {
                match blocking(move || inner.prepare_start(&copy, &sandbox, ready)).await {
                    Ok((plan, fds)) => self.launch(&record, plan, fds).await,
                    Err(error) => Err(error.into()),
                }
            }
        };
        match launched {
            Ok(reply) => match self.started(id, reply) {
                Ok(()) => Ok(()),
                Err(error) => {
                    // It runs, but a next daemon would not know: let it not run.
                    self.end_unrecorded(&record).await;
                    Err(error.into())
                }
            },
            Err(error) => {
                self.cgroups.settle(&record.cgroup);
                self.start_failed(&record, &error);
                Err(error)
            }
        }
    }

    async fn launch(
        &self,
        record: &ContainerRecord,
        plan: LaunchPlan,
        fds: Fds,
    ) -> Result<LaunchReply, StartError> {
        let id = &record.spec.id;
        RuntimeError::fault("container: launch it")?;
        let error = match self.keeper().await?.launch(plan, fds).await {
            Ok(reply) => return Ok(reply),
            Err(error) => error,
        };
        let program = record.spec.args.first().cloned().unwrap_or_default();
        Err(match error {
            ClientError::Keeper(failure) => match failure.kind {
                FailureKind::CommandNotFound => {
                    StartError::NotFound { program, source: std::io::Error::other(failure.message) }
                }
                FailureKind::CommandNotExecutable => {
                    StartError::NotFound { program, source: std::io::Error::other(failure.message) }
                }
                FailureKind::Os(errno) => StartError::Child {
                    id: id.clone(),
                    step: failure.message,
                    source: std::io::Error::from_raw_os_error(errno),
                },
                _ => keeper_error(format!("start container {id}"))(ClientError::Keeper(failure)).into(),
            },
            other => {
                // Whether it runs is not known: let it not run.
                if let Ok(group) = self.cgroups.open_path(&record.cgroup) {
                    let _ = group.kill();
                }
                keeper_error(format!("start container {id}"))(other).into()
            }
        })
    }

    fn prepare_start(
        &self,
        record: &ContainerRecord,
        sandbox: &SandboxRecord,
        ready: Option<Ready>,
    ) -> Result<(LaunchPlan, Fds), RuntimeError> {
        let spec = &record.spec;
        let Ready { rootfs, mut draft } = match ready {
            Some(ready) => ready,
            // Created by a daemon before this one.
            None => Ready {
                rootfs: self.mount_root(spec, sandbox)?,
                draft: self.draft(spec, &record.user, &record.cgroup, sandbox)?,
            },
        };
        if let Origin::Join(path) = &mut draft.namespaces.pid {
            *path = self.pid_namespace(spec, sandbox)?;
        }
        let cgroup = self.cgroup_at_start(spec, &record.cgroup)?;
        let cgroup = cgroup
            .fd()
            .try_clone_to_owned()
            .map_err(RuntimeError::io(format!("copy the cgroup of container {}", spec.id)))?;
        RuntimeError::fault("container: open its log")?;
        let log = spec.log_path.as_deref().map(prepare::open_log).transpose()?;
        let stdio = match (spec.tty, spec.stdin) {
            (true, _) => Stdio::Terminal { columns: 80, rows: 24 },
            (false, stdin) => Stdio::Pipes { stdin },
        };
        let parts = Parts {
            id: spec.id.as_str(),
            rootfs,
            cgroup,
            log,
            stdio,
            stdin_once: spec.stdin_once,
            seccomp: self.filter(spec, sandbox)?,
            scratch: self.pins.scratch(),
        };
        prepare::launch(draft, parts)
    }

    /// The file of the process id namespace that a container joins.
    pub fn pid_namespace(
        &self,
        spec: &ContainerSpec,
        sandbox: &SandboxRecord,
    ) -> Result<PathBuf, RuntimeError> {
        let pid = match &spec.namespaces.pid {
            NamespaceMode::Target(target) => {
                let record = self.container_record(target)?;
                match record.state {
                    ContainerState::Running { pid, .. } if record.spec.sandbox == spec.sandbox => pid,
                    ContainerState::Running { .. } => {
                        return Err(RuntimeError::invalid(format!(
                            "container {target} is in another sandbox: a target must be in the same one"
                        )));
                    }
                    state => {
                        let is = word(&state);
                        return Err(RuntimeError::WrongState { id: target.clone(), is, wanted: "running" });
                    }
                }
            }
            _ => match sandbox.init {
                Some(init) => init.pid.unsigned_abs(),
                None => return Err(RuntimeError::SandboxNotReady { id: spec.sandbox.clone() }),
            },
        };
        Ok(PathBuf::from(format!("/proc/{pid}/ns/pid")))
    }

    fn started(&self, id: &ContainerId, reply: LaunchReply) -> Result<(), RuntimeError> {
        let LaunchReply { launched, pidfd, streams } = reply;
        let started_at = timestamp(launched.started_at);
        let mut done = None;
        let written = self.change_container(id, |entry| {
            entry.record.process = Some(launched.process);
            entry.record.unenforced.extend(launched.warnings);
            entry.record.state =
                ContainerState::Running { pid: launched.process.pid.unsigned_abs(), started_at };
            entry.held = Some(Held { pidfd, streams });
            let early = entry.early_exit.take().map(|exit| entry.apply(exit, Some(started_at)));
            done = Some((entry.record.clone(), early));
        });
        if let Some((record, early)) = done {
            self.announce(Event::ContainerStarted { id: id.clone(), sandbox: record.spec.sandbox.clone() });
            if let Some(exit) = early {
                self.after_exit(&record, exit);
                self.forget_later(id.to_string());
            }
        }
        written
    }

    /// Kills a container and waits a while until it is known to have ended.
    async fn end_unrecorded(&self, record: &ContainerRecord) {
        let id = &record.spec.id;
        let ended = self.objects.lock().containers.get(id).map(|entry| entry.ended.subscribe());
        if let Err(error) = self.kill(record) {
            tracing::error!(container = %id, error = %chain(&error), "end a container that cannot be recorded");
            return;
        }
        if let Some(mut ended) = ended
            && tokio::time::timeout(KILL_TIME, ended.wait_for(|ended| *ended)).await.is_err()
        {
            tracing::error!(container = %id, "a container that cannot be recorded has not ended yet");
        }
    }

    fn start_failed(&self, record: &ContainerRecord, error: &StartError) {
        let exit = Exit {
            status: ExitStatus::Code(START_ERROR),
            reason: ExitReason::StartError,
            started_at: None,
            finished_at: Timestamp::now(),
            message: chain(error),
        };
        let id = &record.spec.id;
        match self.change_container(id, |entry| entry.end(exit.clone())) {
            Ok(exit) => {
                let (id, sandbox) = (id.clone(), record.spec.sandbox.clone());
                self.announce(Event::ContainerStopped { id, sandbox, exit });
            }
            Err(error) => tracing::error!(container = %id, error = %chain(&error), "record a failed start"),
        }
    }

    /// Lets the keeper forget a container in the background.
    pub fn forget_later(&self, keeper_id: String) {
        if let Some(keeper) = self.keeper.borrow().clone() {
            tokio::spawn(async move {
                if let Err(error) = keeper.forget(&keeper_id).await {
                    tracing::debug!(id = keeper_id, error = %chain(&error), "let the keeper forget");
                }
            });
        }
    }

    /// Stops a container: signal, grace, kill, wait.
    pub async fn stop_container(
        self: &Arc<Self>,
        id: &ContainerId,
        grace: Duration,
    ) -> Result<(), RuntimeError> {
        // No operation lock: a stop with a shorter grace must overtake one with a longer.
        let (record, mut ended) = {
            let objects = self.objects.lock();
            let Some(entry) = objects.containers.get(id) else {
                return Err(RuntimeError::NoContainer { id: id.clone() });
            };
            (entry.record.clone(), entry.ended.subscribe())
        };
        match record.state {
            ContainerState::Created | ContainerState::Exited(_) => return Ok(()),
            ContainerState::Running { .. } | ContainerState::Unknown { .. } => {}
        }
        if !grace.is_zero() {
            let signal = record.spec.stop_signal.as_deref().map_or(Ok(signal::TERM), signal::parse)?;
            RuntimeError::fault("container: send its stop signal")?;
            match self.send_signal(&record, signal).await {
                Ok(()) => {
                    if tokio::time::timeout(grace, ended.wait_for(|ended| *ended)).await.is_ok() {
                        return Ok(());
                    }
                }
                // Gone already, or nobody knows: killing settles it.
                Err(error) => {
                    tracing::debug!(container = %id, error = %chain(&error), "send the stop signal")
                }
            }
        }
        if self.is_delegated(&record)
            && let Err(error) = self.delegate_kill(&record, signal::KILL).await
        {
            // It may have ended just now; the cgroup is killed in any case.
            tracing::debug!(container = %id, error = %chain(&error), "let the runtime kill a container");
        }
        RuntimeError::fault("container: kill it")?;
        self.kill(&record)?;
        RuntimeError::fault("container: wait for its end")?;
        if matches!(record.state, ContainerState::Unknown { .. }) {
            return self.give_up(id, &record).await;
        }
        match tokio::time::timeout(KILL_TIME, ended.wait_for(|ended| *ended)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(RuntimeError::Timeout {
                step: format!("wait for the end of container {id} after SIGKILL"),
                seconds: KILL_TIME.as_secs(),
            }),
        }
    }

    fn kill(&self, record: &ContainerRecord) -> Result<(), RuntimeError> {
        match self.cgroups.open_path(&record.cgroup).and_then(|group| group.kill()) {
            Ok(()) | Err(sys::Errno::NOENT | sys::Errno::NODEV) => Ok(()),
            Err(errno) => {
                Err(RuntimeError::io(format!("kill what is in cgroup {}", record.cgroup))(errno.into()))
            }
        }
    }

    /// A container that no keeper watches ended when its cgroup is empty.
    async fn give_up(
        self: &Arc<Self>,
        id: &ContainerId,
        record: &ContainerRecord,
    ) -> Result<(), RuntimeError> {
        let (inner, path) = (self.clone(), record.cgroup.clone());
        blocking(move || match inner.cgroups.open_path(&path) {
            Ok(group) => group.wait_empty(KILL_TIME).map(drop),
            Err(_) => Ok(()),
        })
        .await
        .map_err(|errno| RuntimeError::io(format!("wait for cgroup {}", record.cgroup))(errno.into()))?;
        self.lost(id, "it ended while nobody watched it")
    }

    /// Records the end of a container whose exit code nobody knows.
    pub fn lost(&self, id: &ContainerId, why: &str) -> Result<(), RuntimeError> {
        let (record, exit) = self.change_container(id, |entry| {
            let started_at = match entry.record.state {
                ContainerState::Running { started_at, .. } => Some(started_at),
                ContainerState::Unknown { started_at } => started_at,
                _ => None,
            };
            let exit = entry.end(Exit {
                status: ExitStatus::Unknown,
                reason: ExitReason::Unknown,
                started_at,
                finished_at: Timestamp::now(),
                message: why.to_owned(),
            });
            (entry.record.clone(), exit)
        })?;
        self.after_exit(&record, exit);
        Ok(())
    }

    /// Sends a signal to a container's process.
    pub async fn signal_container(
        self: &Arc<Self>,
        id: &ContainerId,
        signal: i32,
    ) -> Result<(), RuntimeError> {
        let record = self.container_record(id)?;
        if !matches!(record.state, ContainerState::Running { .. }) {
            let is = word(&record.state);
            return Err(RuntimeError::WrongState { id: id.clone(), is, wanted: "running" });
        }
        self.send_signal(&record, signal).await
    }

    async fn send_signal(
        self: &Arc<Self>,
        record: &ContainerRecord,
        signal: i32,
    ) -> Result<(), RuntimeError> {
        let id = &record.spec.id;
        if self.is_delegated(record) {
            return self.delegate_kill(record, signal).await;
        }
        let step = keeper_error(format!("send signal {signal} to container {id}"));
        self.keeper().await?.signal(id.as_str(), signal, SignalTarget::Main).await.map_err(step)
    }

    /// Whether another runtime made a container. One whose handler is gone from the configuration is treated natively.
    pub fn is_delegated(&self, record: &ContainerRecord) -> bool {
        let sandbox = self.sandbox_record(&record.spec.sandbox);
        sandbox.is_ok_and(|sandbox| matches!(self.delegate_of(&sandbox), Ok(Some(_))))
    }

    /// Whether another runtime runs further processes in a container.
    pub fn execs_by_runtime(&self, record: &ContainerRecord) -> bool {
        let Ok(sandbox) = self.sandbox_record(&record.spec.sandbox) else { return false };
        let handler = self.options.handlers.get(&sandbox.spec.handler);
        !sandbox.spec.handler.is_empty() && handler.is_ok_and(|(_, handler)| handler.execs().is_some())
    }

    /// Removes a container. One that does not exist is fine.
    pub async fn remove_container(self: &Arc<Self>, id: &ContainerId) -> Result<(), RuntimeError> {
        let Ok(operation) = self.container_operation(id) else { return Ok(()) };
        let _guard = operation.lock_owned().await;
        match self.stop_container(id, Duration::ZERO).await {
            Err(error) if error.is_not_found() => return Ok(()),
            other => other?,
        }
        let record = match self.container_record(id) {
            Ok(record) => record,
            Err(_) => return Ok(()),
        };
        if let Some(entry) = self.objects.lock().containers.get_mut(id) {
            entry.ready = None;
        }
        if record.process.is_some() && self.is_delegated(&record) {
            self.delegate_delete(&record).await;
        }
        let (inner, spec, cgroup) = (self.clone(), record.spec.clone(), record.cgroup.clone());
        blocking(move || {
            RuntimeError::fault("container: remove its cgroup")?;
            inner.cgroups.destroy(&cgroup)?;
            let bundle = inner.bundle(&spec.id);
            match std::fs::remove_dir_all(&bundle) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(RuntimeError::io(format!("remove {}", bundle.display()))(error));
                }
                _ => {}
            }
            RuntimeError::fault("container: remove its layer")?;
            let layer = inner.paths.layers.join(spec.id.as_str());
            match std::fs::remove_dir_all(&layer) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(RuntimeError::io(format!("remove {}", layer.display()))(error));
                }
                _ => {}
            }
            RuntimeError::fault("container: remove its record")?;
            // Together: an end that is told meanwhile would write the record anew.
            let mut objects = inner.objects.lock();
            record::remove(&inner.paths.containers, spec.id.as_str())?;
            objects.containers.remove(&spec.id);
            Ok::<_, RuntimeError>(())
        })
        .await?;
        self.announce(Event::ContainerRemoved { id: id.clone(), sandbox: record.spec.sandbox.clone() });
        Ok(())
    }

    /// Writes new limits.
    pub async fn update_container(
        self: &Arc<Self>,
        id: &ContainerId,
        resources: Resources,
    ) -> Result<(), RuntimeError> {
        let operation = self.container_operation(id)?;
        let _guard = operation.lock_owned().await;
        let record = self.container_record(id)?;
        if matches!(record.state, ContainerState::Exited(_)) {
            let is = word(&record.state);
            return Err(RuntimeError::WrongState { id: id.clone(), is, wanted: "created or running" });
        }
        let merged = merge(&record.spec.resources, resources);
        let inner = self.clone();
        let (merged, unenforced) = blocking(move || {
            let unenforced = match inner.cgroups.open_path(&record.cgroup) {
                Ok(group) => inner.cgroups.apply(&group, &merged)?,
                // It gets them when it is started.
                Err(sys::Errno::NOENT) if inner.cgroups.is_late() => inner.cgroups.unenforced(&merged)?,
                Err(errno) => {
                    return Err(RuntimeError::io(format!("open cgroup {}", record.cgroup))(errno.into()));
                }
            };
            Ok::<_, RuntimeError>((merged, unenforced))
        })
        .await?;
        self.change_container(id, |entry| {
            let spec = Arc::make_mut(&mut entry.record.spec);
            spec.resources = merged;
            entry.record.unenforced = unenforced;
        })
    }
}

/// New limits over old ones: what is not said stays.
fn merge(old: &Resources, new: Resources) -> Resources {
    let mut unified = old.unified.clone();
    unified.extend(new.unified);
    Resources {
        cpu_shares: new.cpu_shares.filter(|n| *n != 0).or(old.cpu_shares),
        cpu_quota: new.cpu_quota.filter(|n| *n != 0).or(old.cpu_quota),
        cpu_period: new.cpu_period.filter(|n| *n != 0).or(old.cpu_period),
        memory_limit: new.memory_limit.filter(|n| *n != 0).or(old.memory_limit),
        memory_swap_limit: new.memory_swap_limit.filter(|n| *n != 0).or(old.memory_swap_limit),
        pids_limit: new.pids_limit.filter(|n| *n != 0).or(old.pids_limit),
        cpuset_cpus: new.cpuset_cpus.filter(|s| !s.is_empty()).or_else(|| old.cpuset_cpus.clone()),
        cpuset_mems: new.cpuset_mems.filter(|s| !s.is_empty()).or_else(|| old.cpuset_mems.clone()),
        oom_score_adj: new.oom_score_adj.or(old.oom_score_adj),
        hugepages: if new.hugepages.is_empty() { old.hugepages.clone() } else { new.hugepages },
        blkio_weight: new.blkio_weight.or(old.blkio_weight),
        unified,
    }
}

/// A state in a word.
pub fn word(state: &ContainerState) -> &'static str {
    match state {
        ContainerState::Created => "created",
        ContainerState::Running { .. } => "running",
        ContainerState::Exited(_) => "exited",
        ContainerState::Unknown { .. } => "unknown",
    }
}
