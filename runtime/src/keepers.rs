//! The keeper's life as the daemon sees it: found or started, upgraded, watched, replaced when it dies.
//!
//! Guarantees: while a runtime lives there is a keeper, or one is being started; containers of a dead keeper are
//! handed to the next one with the descriptors that are still held.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::Duration;

use keeper::client::{self, ClientError, Keeper, StreamFds};
use keeper::plan::{FdIndex, Fds, Stdio};
use keeper::protocol::{self, Event, HandoverContainer, Hello, ProcessId, UnixNanos};
use rustix::fs::{Mode, OFlags};
use tokio::sync::mpsc;

use crate::cgroup::Cgroups;
use crate::core::{Held, Inner, blocking, chain, init_id, init_of, timestamp};
use crate::error::OpenError;
use crate::id::ContainerId;
use crate::prepare;
use crate::record::{ContainerRecord, SandboxRecord};
use crate::spec::NamespaceMode;
use crate::state::ContainerState;

/// How long a new keeper may take to listen.
const START: Duration = Duration::from_secs(5);
/// Containers that are handed over in one message: each may bring seven descriptors.
const BATCH: usize = 32;
/// Pause between attempts to start a keeper, so that a broken one does not take the whole machine.
const PAUSE: Duration = Duration::from_millis(500);

type Connection = (Keeper, Hello, mpsc::UnboundedReceiver<Event>);

/// Connects to the living keeper (upgrading one of another build), or starts one.
pub async fn find_or_start(inner: &Arc<Inner>) -> Result<Connection, OpenError> {
    let paths = &inner.paths;
    let failed = |step: &str| {
        let step = step.to_owned();
        move |error: ClientError| OpenError::Keeper { step, source: Box::new(error) }
    };
    match Keeper::connect(&paths.socket).await {
        Ok((keeper, hello, events)) => {
            if hello.build != keeper::build_id() {
                tracing::info!(from = hello.build, to = keeper::build_id(), "upgrade the keeper");
                keeper.upgrade(crate::KEEPER_BINARY).await.map_err(failed("upgrade the keeper"))?;
            }
            Ok((keeper, hello, events))
        }
        Err(ClientError::Connect { .. } | ClientError::Disconnected) => start(inner).await,
        Err(error) => Err(failed("connect to the keeper")(error)),
    }
}

/// Starts a keeper and connects to it.
async fn start(inner: &Arc<Inner>) -> Result<Connection, OpenError> {
    let paths = &inner.paths;
    let io = |step: String| move |errno: sys::Errno| OpenError::Io { step, source: errno.into() };
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let log = rustix::fs::open(&paths.keeper_log, flags, Mode::from_raw_mode(0o600))
        .map_err(io(format!("open {}", paths.keeper_log.display())))?;
    let socket = paths.socket.clone();
    let strong = inner.clone();
    blocking(move || {
        let made = strong.cgroups.make_keeper();
        let cgroup =
            made.map_err(|source| OpenError::Io { step: "make the keeper's cgroup".into(), source })?;
        let group = cgroup.as_ref().map(|group| group.fd());
        let started = client::spawn_in(crate::KEEPER_BINARY, &socket, Some(log.as_fd()), group);
        strong.cgroups.settle(&strong.cgroups.keeper_path());
        started.map_err(io("start the keeper".into()))
    })
    .await?;
    Keeper::connect_patiently(&paths.socket, START).await.map_err(|error| OpenError::Keeper {
        step: "connect to a new keeper".into(),
        source: Box::new(error),
    })
}

/// Listens to a keeper as long as the runtime lives, and replaces it when it dies.
pub async fn supervise(inner: Weak<Inner>, mut events: mpsc::UnboundedReceiver<Event>) {
    loop {
        while let Some(event) = events.recv().await {
            let Some(inner) = inner.upgrade() else { return };
            inner.heard(event);
        }
        let Some(strong) = inner.upgrade() else { return };
        tracing::warn!("the keeper died: start another and hand its containers over");
        strong.keeper.send_replace(None);
        strong.execs_lost();
        drop(strong);
        events = loop {
            let Some(strong) = inner.upgrade() else { return };
            match find_or_start(&strong).await {
                Ok((keeper, hello, events)) => {
                    strong.take_over(&keeper, &hello.state).await;
                    strong.keeper.send_replace(Some(keeper));
                    break events;
                }
                Err(error) => tracing::error!(error = %chain(&error), "start a keeper"),
            }
            drop(strong);
            tokio::time::sleep(PAUSE).await;
        };
    }
}

/// A container or init that may have to be handed to another keeper.
struct Orphan {
    keeper_id: String,
    init: bool,
    process: ProcessId,
    started_at: UnixNanos,
    stdio: Stdio,
    stdin_once: bool,
    cgroup: String,
    log: Option<std::path::PathBuf>,
}

impl Inner {
    fn heard(&self, event: Event) {
        match event {
            Event::Exited { id, exit } => {
                if self.exited(&id, exit) {
                    self.forget_later(id);
                }
            }
            Event::ExecExited { id, exit, .. } => self.exec_exited(&id, exit),
            Event::LogFailed { id, message } => {
                tracing::warn!(container = id, message, "a container's log cannot be written");
            }
        }
    }

    /// Makes the records and a keeper's state agree: what it knows is true; what it does not know is handed to it;
    /// what it knows and nobody else does is ended.
    pub async fn take_over(&self, keeper: &Keeper, state: &protocol::State) {
        for seen in &state.containers {
            if !self.adopt(seen) {
                self.end_stray(keeper, seen).await;
            } else if let Some(exit) = seen.exit
                && self.exited(&seen.id, exit)
            {
                self.forget(keeper, &seen.id).await;
            }
        }
        let orphans: Vec<Orphan> = self
            .orphans()
            .into_iter()
            .filter(|orphan| state.containers.iter().all(|seen| seen.id != orphan.keeper_id))
            .collect();
        for batch in orphans.chunks(BATCH) {
            self.hand_over(keeper, batch).await;
        }
    }

    async fn forget(&self, keeper: &Keeper, id: &str) {
        if let Err(error) = keeper.forget(id).await {
            tracing::debug!(id, error = %chain(&error), "let the keeper forget");
        }
    }

    /// Puts what a keeper says into the records. Tells whether there is a record.
    fn adopt(&self, seen: &protocol::ContainerState) -> bool {
        if let Some(sandbox) = init_of(&seen.id) {
            return self.change_sandbox(&sandbox, |entry| entry.record.init = Some(seen.process)).is_ok();
        }
        let Ok(id) = ContainerId::new(&seen.id) else { return false };
        self.change_container(&id, |entry| {
            if matches!(entry.record.state, ContainerState::Exited(_)) {
                return;
            }
            entry.record.process = Some(seen.process);
            entry.record.state = ContainerState::Running {
                pid: seen.process.pid.unsigned_abs(),
                started_at: timestamp(seen.started_at),
            };
        })
        .is_ok()
    }

    async fn end_stray(&self, keeper: &Keeper, seen: &protocol::ContainerState) {
        tracing::warn!(id = seen.id, pid = seen.process.pid, "end a container that nobody knows");
        if seen.exit.is_none()
            && let Err(error) = keeper.signal(&seen.id, 9, protocol::SignalTarget::Cgroup).await
        {
            tracing::warn!(id = seen.id, error = %chain(&error), "kill a container that nobody knows");
            return;
        }
        if seen.exit.is_some() {
            self.forget(keeper, &seen.id).await;
        }
        // The end of one that was killed comes as an event, and is forgotten then.
    }

    /// All that should be running, by the records.
    fn orphans(&self) -> Vec<Orphan> {
        let objects = self.objects.lock();
        let containers = objects.containers.values().filter_map(|entry| orphan_container(&entry.record));
        let inits = objects.sandboxes.values().filter_map(|entry| orphan_init(&entry.record, &self.cgroups));
        containers.chain(inits).collect()
    }

    async fn hand_over(&self, keeper: &Keeper, orphans: &[Orphan]) {
        let mut fds = Fds::default();
        let mut containers = Vec::new();
        for orphan in orphans {
            let (pidfd, streams) = self.duplicates(orphan);
            let Some(pidfd) = pidfd else {
                self.orphan_lost(orphan, "it ended while no keeper watched it");
                continue;
            };
            let mut add = |fd: Option<OwnedFd>| -> Option<FdIndex> { fd.map(|fd| fds.add(fd)) };
            let cgroup = self.cgroups.open_path(&orphan.cgroup).ok();
            containers.push(HandoverContainer {
                id: orphan.keeper_id.clone(),
                init: orphan.init,
                process: orphan.process,
                started_at: orphan.started_at,
                stdio: orphan.stdio,
                stdin_once: orphan.stdin_once,
                pidfd: add(Some(pidfd)),
                stdin: add(streams.stdin),
                stdout: add(streams.stdout),
                stderr: add(streams.stderr),
                terminal: add(streams.terminal),
                log: add(orphan.log.as_deref().and_then(|path| prepare::open_log(path).ok())),
                cgroup: add(cgroup.and_then(|group| group.fd().try_clone_to_owned().ok())),
            });
        }
        if containers.is_empty() {
            return;
        }
        let ids: Vec<String> = containers.iter().map(|container| container.id.clone()).collect();
        let results = match keeper.handover(containers, fds).await {
            Ok(results) => results,
            Err(error) => {
                tracing::error!(error = %chain(&error), "hand containers over to a new keeper");
                return;
            }
        };
        for (id, result) in ids.iter().zip(results) {
            if let Err(failure) = result {
                tracing::warn!(id, error = %failure, "hand a container over to a new keeper");
                if let Some(orphan) = orphans.iter().find(|orphan| orphan.keeper_id == *id) {
                    self.orphan_unwatched(orphan);
                }
            }
        }
    }

    /// A pidfd of the process if it is still that process, and duplicates of the streams that are held.
    fn duplicates(&self, orphan: &Orphan) -> (Option<OwnedFd>, StreamFds) {
        let copy = |fd: &Option<OwnedFd>| fd.as_ref().and_then(|fd| fd.try_clone().ok());
        let objects = self.objects.lock();
        let held: Option<&Held> = match init_of(&orphan.keeper_id) {
            Some(sandbox) => objects.sandboxes.get(&sandbox).and_then(|entry| entry.held.as_ref()),
            None => ContainerId::new(&orphan.keeper_id)
                .ok()
                .and_then(|id| objects.containers.get(&id))
                .and_then(|entry| entry.held.as_ref()),
        };
        match held {
            Some(held) => {
                let streams = StreamFds {
                    stdin: copy(&held.streams.stdin),
                    stdout: copy(&held.streams.stdout),
                    stderr: copy(&held.streams.stderr),
                    terminal: copy(&held.streams.terminal),
                };
                (held.pidfd.try_clone().ok(), streams)
            }
            None => (living(orphan.process), StreamFds::default()),
        }
    }

    fn orphan_lost(&self, orphan: &Orphan, why: &str) {
        let outcome = match (init_of(&orphan.keeper_id), ContainerId::new(&orphan.keeper_id)) {
            (Some(_), _) => {
                let how = protocol::ExitHow::Unknown;
                let exit = protocol::Exit { how, oom_killed: false, at: UnixNanos::default() };
                self.exited(&orphan.keeper_id, exit);
                Ok(())
            }
            (None, Ok(id)) => self.lost(&id, why),
            (None, Err(_)) => Ok(()),
        };
        if let Err(error) = outcome {
            tracing::error!(id = orphan.keeper_id, error = %chain(&error), "record a lost container");
        }
    }

    /// It lives, but no keeper could take it.
    fn orphan_unwatched(&self, orphan: &Orphan) {
        if living(orphan.process).is_none() {
            return self.orphan_lost(orphan, "it ended while no keeper watched it");
        }
        if let Ok(id) = ContainerId::new(&orphan.keeper_id) {
            let changed = self.change_container(&id, |entry| {
                entry.record.state =
                    ContainerState::Unknown { started_at: Some(timestamp(orphan.started_at)) };
            });
            if let Err(error) = changed {
                tracing::error!(container = %id, error = %chain(&error), "record an unwatched container");
            }
        }
    }
}

/// A pidfd of a process, if that number is still the same process.
pub fn living(process: ProcessId) -> Option<OwnedFd> {
    let pidfd = sys::process::pidfd_open(process.pid).ok()?;
    let proc = rustix::fs::open(c"/proc", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let same = sys::process::start_time(&proc, process.pid).ok()? == process.start_ticks;
    same.then_some(pidfd)
}

fn orphan_container(record: &ContainerRecord) -> Option<Orphan> {
    let (ContainerState::Running { started_at, .. }, Some(process)) = (&record.state, record.process) else {
        return None;
    };
    let spec = &record.spec;
    Some(Orphan {
        keeper_id: spec.id.to_string(),
        init: false,
        process,
        started_at: UnixNanos(i64::try_from(started_at.as_nanosecond()).unwrap_or_default()),
        stdio: match spec.tty {
            true => Stdio::Terminal { columns: 80, rows: 24 },
            false => Stdio::Pipes { stdin: spec.stdin },
        },
        stdin_once: spec.stdin_once,
        cgroup: record.cgroup.clone(),
        log: spec.log_path.clone(),
    })
}

fn orphan_init(record: &SandboxRecord, cgroups: &Cgroups) -> Option<Orphan> {
    if record.spec.namespaces.pid != NamespaceMode::Pod {
        return None;
    }
    Some(Orphan {
        keeper_id: init_id(&record.spec.id),
        init: true,
        process: record.init?,
        started_at: UnixNanos(i64::try_from(record.created_at.as_nanosecond()).unwrap_or_default()),
        stdio: Stdio::Null,
        stdin_once: false,
        cgroup: cgroups.init_path(&record.cgroup, record.spec.id.as_str()),
        log: None,
    })
}

/// Starts the supervision of a connection.
pub fn watch(inner: &Arc<Inner>, events: mpsc::UnboundedReceiver<Event>) {
    tokio::spawn(supervise(Arc::downgrade(inner), events));
}
