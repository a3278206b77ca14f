//! The life of a sandbox.
//!
//! Guarantees: its record is on disk before anything of it exists; whatever step fails, the earlier ones are undone.

use std::sync::Arc;

use jiff::Timestamp;
use keeper::plan::{Fds, InitPlan, Namespaces as KeeperNamespaces};

use crate::core::{Held, Inner, SandboxEntry, blocking, chain, init_id, keeper_error};
use crate::error::RuntimeError;
use crate::id::{ContainerId, SandboxId};
use crate::record::{self, SandboxRecord};
use crate::spec::{NamespaceMode, Resources, SandboxSpec};
use crate::state::{Event, Sandbox, SandboxState};
use crate::sysctl;
use crate::{idmap, pins};

impl Inner {
    /// Makes a sandbox.
    pub async fn create_sandbox(self: &Arc<Self>, mut spec: SandboxSpec) -> Result<Sandbox, RuntimeError> {
        let id = spec.id.clone();
        check(&spec)?;
        self.check_users(&spec)?;
        // Settled now: the record must not change its meaning with the configuration.
        let (handler, with) = self.options.handlers.get(&spec.handler)?;
        if spec.user_namespace.is_some() && with.oci().is_some() {
            return Err(RuntimeError::invalid(format!(
                "the runtime handler {handler} can't make pods with user namespaces: set hostUsers to true, or use the \
                 handler {}",
                crate::handler::NATIVE
            )));
        }
        spec.handler = handler.to_owned();
        let sysctls = sysctl::check(&spec.sysctls, &spec.namespaces)?;
        let cgroup = self.cgroups.pod_path(spec.cgroup_parent.as_deref(), id.as_str())?;
        let meta = Arc::new(std::mem::take(&mut spec.meta));
        let mut record = SandboxRecord {
            spec: Arc::new(spec),
            meta,
            state: SandboxState::NotReady,
            created_at: Timestamp::now(),
            cgroup,
            cgroup_made: false,
            init: None,
            level: None,
            unenforced: Vec::new(),
        };
        {
            let mut objects = self.objects.lock();
            if objects.sandboxes.contains_key(&id) {
                return Err(RuntimeError::Exists { what: format!("sandbox {id}") });
            }
            let others = objects.sandboxes.values();
            let taken = others.filter_map(|entry| entry.record.level.as_deref()).collect();
            record.level = self.level(record.spec.selinux.as_ref(), &taken);
            objects.sandboxes.insert(id.clone(), SandboxEntry::new(record.clone()));
        }
        let operation = self.sandbox_operation(&id)?;
        let guard = operation.lock_owned().await;
        let made = self.make_sandbox(record, sysctls).await;
        match made {
            Ok(sandbox) => {
                self.announce(Event::SandboxCreated(id));
                Ok(sandbox)
            }
            Err(error) => {
                drop(guard);
                if let Err(undo) = self.remove_sandbox(&id).await {
                    tracing::error!(sandbox = %id, error = %chain(&undo), "undo a sandbox that could not be made");
                }
                Err(error)
            }
        }
    }

    fn check_users(&self, spec: &SandboxSpec) -> Result<(), RuntimeError> {
        idmap::check(spec)?;
        match &self.capabilities.user_namespaces {
            Some(why) if spec.user_namespace.is_some() => Err(RuntimeError::invalid(format!(
                "sandbox {} cannot have users of its own on this node: {why}; set hostUsers to true",
                spec.id
            ))),
            _ => Ok(()),
        }
    }

    async fn make_sandbox(
        self: &Arc<Self>,
        mut record: SandboxRecord,
        sysctls: Vec<(String, String)>,
    ) -> Result<Sandbox, RuntimeError> {
        let (inner, spec, path) = (self.clone(), record.spec.clone(), record.cgroup.clone());
        let label = self.pod_label(&record)?;
        let init_path = self.cgroups.init_path(&path, spec.id.as_str());
        let shared_pid = spec.namespaces.pid == NamespaceMode::Pod;
        let (id, user) = (spec.id.clone(), spec.user_namespace);
        let (unenforced, init_cgroup) = blocking(move || {
            // Known before it is there, so that whoever undoes this removes the cgroup too, also after a crash.
            record.cgroup_made = inner.cgroups.open_path(&path).is_err();
            if let Some(entry) = inner.objects.lock().sandboxes.get_mut(&spec.id) {
                entry.record.cgroup_made = record.cgroup_made;
            }
            record::write(&inner.paths.sandboxes, spec.id.as_str(), &record)?;
            RuntimeError::fault("sandbox: make its cgroup")?;
            let unenforced = inner.cgroups.make_pod(&path, &spec.resources)?;
            RuntimeError::fault("sandbox: make its namespaces")?;
            inner.pins.make(&spec, &sysctls, label.as_deref())?;
            RuntimeError::fault("sandbox: make the cgroup of its init")?;
            let init = match shared_pid {
                true => Some(
                    inner
                        .cgroups
                        .make_container(
                            &inner.cgroups.init_path(&path, spec.id.as_str()),
                            &Resources::default(),
                        )?
                        .0,
                ),
                false => None,
            };
            Ok::<_, RuntimeError>((unenforced, init))
        })
        .await?;
        let init = match init_cgroup {
            Some(group) => {
                let mut fds = Fds::default();
                let fd = group
                    .fd()
                    .try_clone_to_owned()
                    .map_err(RuntimeError::io(format!("copy the cgroup of sandbox {id}")))?;
                let user_namespace = match user {
                    Some(_) => Some(fds.add(idmap::open(&self.pins.of(id.as_str()).join(pins::USER))?)),
                    None => None,
                };
                let plan = InitPlan {
                    id: init_id(&id),
                    cgroup: Some(fds.add(fd)),
                    namespaces: KeeperNamespaces::default(),
                    user_namespace,
                };
                RuntimeError::fault("sandbox: start its init")?;
                let started = match self.keeper().await {
                    Ok(keeper) => keeper
                        .launch_init(plan, fds)
                        .await
                        .map_err(keeper_error(format!("start the init of sandbox {id}"))),
                    Err(error) => Err(error),
                };
                self.cgroups.settle(&init_path);
                Some(started?)
            }
            None => None,
        };
        RuntimeError::fault("sandbox: note that it is ready")?;
        let snapshot = self.change_sandbox(&id, |entry| {
            entry.record.unenforced = unenforced;
            if let Some(reply) = init {
                entry.record.init = Some(reply.launched.process);
                entry.held = Some(Held { pidfd: reply.pidfd, streams: reply.streams });
            }
            entry.record.state = SandboxState::Ready;
            self.snapshot(&entry.record)
        })?;
        Ok(snapshot)
    }

    /// Writes new limits to a pod's cgroup.
    pub async fn update_sandbox(
        self: &Arc<Self>,
        id: &SandboxId,
        resources: Resources,
    ) -> Result<(), RuntimeError> {
        let operation = self.sandbox_operation(id)?;
        let _guard = operation.lock_owned().await;
        let record = self.sandbox_record(id)?;
        let inner = self.clone();
        let (resources, unenforced) = blocking(move || {
            let unenforced = inner.cgroups.apply_pod(&record.cgroup, &resources)?;
            Ok::<_, RuntimeError>((resources, unenforced))
        })
        .await?;
        self.change_sandbox(id, |entry| {
            Arc::make_mut(&mut entry.record.spec).resources = resources;
            entry.record.unenforced = unenforced;
        })
    }

    /// Kills what runs in a sandbox.
    pub async fn stop_sandbox(self: &Arc<Self>, id: &SandboxId) -> Result<(), RuntimeError> {
        let operation = match self.sandbox_operation(id) {
            Ok(operation) => operation,
            Err(_) => return Ok(()),
        };
        let _guard = operation.lock_owned().await;
        // First the state, so that no further container is started.
        let was = self
            .change_sandbox(id, |entry| std::mem::replace(&mut entry.record.state, SandboxState::NotReady))?;
        RuntimeError::fault("sandbox: end its containers")?;
        let ends = self.containers_of(id).into_iter().map(|container| {
            let inner = self.clone();
            async move { inner.stop_container(&container, std::time::Duration::ZERO).await }
        });
        let mut failed = None;
        for outcome in futures::future::join_all(ends).await {
            match outcome {
                Err(error) if !error.is_not_found() => failed = Some(error),
                _ => {}
            }
        }
        RuntimeError::fault("sandbox: end its init")?;
        self.stop_init(id).await?;
        if was == SandboxState::Ready {
            self.announce(Event::SandboxStopped(id.clone()));
        }
        failed.map_or(Ok(()), Err)
    }

    async fn stop_init(self: &Arc<Self>, id: &SandboxId) -> Result<(), RuntimeError> {
        let record = self.sandbox_record(id)?;
        if record.spec.namespaces.pid != NamespaceMode::Pod {
            return Ok(());
        }
        let inner = self.clone();
        blocking(move || {
            inner.cgroups.destroy(&inner.cgroups.init_path(&record.cgroup, record.spec.id.as_str()))
        })
        .await?;
        self.change_sandbox(id, |entry| {
            entry.record.init = None;
            entry.held = None;
        })
    }

    /// Removes a sandbox with its containers. One that does not exist is fine.
    pub async fn remove_sandbox(self: &Arc<Self>, id: &SandboxId) -> Result<(), RuntimeError> {
        if self.sandbox_operation(id).is_err() {
            return Ok(());
        }
        self.stop_sandbox(id).await?;
        for container in self.containers_of(id) {
            self.remove_container(&container).await?;
        }
        let operation = match self.sandbox_operation(id) {
            Ok(operation) => operation,
            Err(_) => return Ok(()),
        };
        let _guard = operation.lock_owned().await;
        let Ok(record) = self.sandbox_record(id) else { return Ok(()) };
        let inner = self.clone();
        let gone = id.clone();
        let aside = blocking(move || {
            RuntimeError::fault("sandbox: remove its cgroup")?;
            if record.cgroup_made {
                inner.cgroups.destroy(&record.cgroup)?;
            }
            RuntimeError::fault("sandbox: remove its record")?;
            // Together: the end of its init may be told meanwhile, which would write the record anew.
            let mut objects = inner.objects.lock();
            record::remove(&inner.paths.sandboxes, gone.as_str())?;
            // The last that can fail, since a second attempt would not know what was set aside.
            let aside = inner.pins.set_aside(gone.as_str())?;
            objects.sandboxes.remove(&gone);
            Ok::<_, RuntimeError>(aside)
        })
        .await?;
        self.announce(Event::SandboxRemoved(id.clone()));
        if let Some(aside) = aside {
            // Each unmount waits for the kernel's readers, milliseconds on a busy node: not on the caller's path.
            tokio::spawn(drop_pins(self.pins.clone(), aside));
        }
        Ok(())
    }

    /// Ids of a sandbox's containers.
    pub fn containers_of(&self, id: &SandboxId) -> Vec<ContainerId> {
        let objects = self.objects.lock();
        let of_it = objects.containers.values().filter(|entry| entry.record.spec.sandbox == *id);
        of_it.map(|entry| entry.record.spec.id.clone()).collect()
    }
}

/// Drops what was set aside, and tries again a few times. What is left then goes when a daemon starts.
async fn drop_pins(pins: pins::Pins, aside: String) {
    for pause in [100, 1_000, 10_000, 0] {
        let (pins, name) = (pins.clone(), aside.clone());
        let Err(error) = blocking(move || pins.drop(&name)).await else { return };
        tracing::warn!(aside, error = %chain(&error), "drop the namespaces of a removed sandbox");
        tokio::time::sleep(std::time::Duration::from_millis(pause)).await;
    }
}

fn check(spec: &SandboxSpec) -> Result<(), RuntimeError> {
    let namespaces = &spec.namespaces;
    for (name, mode) in [("network", &namespaces.net), ("ipc", &namespaces.ipc), ("uts", &namespaces.uts)] {
        if !matches!(mode, NamespaceMode::Pod | NamespaceMode::Node) {
            return Err(RuntimeError::invalid(format!(
                "the {name} namespace of a sandbox is the pod's or the node's: {mode:?} is not possible"
            )));
        }
    }
    if spec.hostname.len() > 64 || spec.hostname.bytes().any(|b| b == 0) {
        return Err(RuntimeError::invalid(format!(
            "host name {:?} has {} bytes: at most 64 are possible",
            spec.hostname,
            spec.hostname.len()
        )));
    }
    Ok(())
}
