//! Opening a runtime after whatever came before, and removing all traces of one.
//!
//! Guarantees: at most one daemon works on a directory; what a crash left and nobody owns is removed; nothing that
//! lives is touched.

use std::collections::HashMap;
use std::fs::{DirBuilder, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use keeper::client::Keeper;
use keeper::protocol::SignalTarget;
use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};

use crate::cgroup::Cgroups;
use crate::core::{ContainerEntry, Inner, Objects, Paths, SandboxEntry, blocking, chain};
use crate::error::{OpenError, RuntimeError};
use crate::keepers;
use crate::lsm::Selinux;
use crate::lsm::{
    Modules,
    apparmor::{AppArmor, DEFAULT},
};
use crate::options::{Capabilities, Options};
use crate::pins::Pins;
use crate::record::{self, ContainerRecord, SandboxRecord};
use crate::seccomp;
use crate::state::SandboxState;

/// Events that a slow subscriber may lag behind.
const EVENTS: usize = 4096;
const OWN_PATIENCE: Duration = Duration::from_millis(500);
const QUIT_TIME: Duration = Duration::from_secs(10);

/// Opens a runtime.
pub async fn open(options: Options) -> Result<Arc<Inner>, OpenError> {
    let inner = prepare_patiently(options).await?;
    let (keeper, hello, events) = keepers::find_or_start(&inner).await?;
    inner.take_over(&keeper, &hello.state).await;
    inner.keeper.send_replace(Some(keeper));
    let cleaning = inner.clone();
    blocking(move || cleaning.clean()).await;
    keepers::watch(&inner, events);
    for statement in &inner.capabilities.statements {
        tracing::warn!("{statement}");
    }
    // It takes a second or two, and only containers wait for it.
    let loading = inner.clone();
    tokio::task::spawn_blocking(move || match loading.modules.apparmor.load_default() {
        Err(why) => tracing::warn!("{why}"),
        Ok(()) if loading.modules.apparmor.enabled() => {
            tracing::info!(profile = DEFAULT, "AppArmor profile loaded")
        }
        Ok(()) => {}
    });
    Ok(inner)
}

/// A runtime of this very process that was just dropped may be finishing its last event: wait for it.
async fn prepare_patiently(options: Options) -> Result<Arc<Inner>, OpenError> {
    let deadline = tokio::time::Instant::now() + OWN_PATIENCE;
    loop {
        let options = options.clone();
        match blocking(move || prepare(options)).await {
            Err(OpenError::Locked { pid, .. })
                if pid == std::process::id().to_string() && tokio::time::Instant::now() < deadline =>
            {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            other => return other,
        }
    }
}

fn prepare(options: Options) -> Result<Arc<Inner>, OpenError> {
    let paths = Paths::of(&options);
    let io = |step: String| move |source: std::io::Error| OpenError::Io { step, source };
    for (dir, mode) in [
        (&paths.run, 0o700),
        (&options.data, 0o700),
        (&paths.sandboxes, 0o700),
        (&paths.containers, 0o700),
        (&paths.layers, 0o700),
    ] {
        let made = DirBuilder::new().recursive(true).mode(mode).create(dir);
        made.map_err(io(format!("make directory {}", dir.display())))?;
    }
    let lock = lock(&paths.lock)?;
    forget_other_boot(&paths).map_err(io("clear what an earlier boot left".into()))?;
    let cgroups = Cgroups::open(&options.cgroup_parent, options.cgroup_driver)?;
    let pins = Pins::open(paths.namespaces.clone())
        .map_err(io(format!("prepare {}", paths.namespaces.display())))?;
    let available = sys::caps::bounding() & sys::caps::get().map(|sets| sets.permitted).unwrap_or(u64::MAX);
    let mut capabilities = capabilities(&cgroups, available);
    let modules = Modules { apparmor: AppArmor::find(&paths.run), selinux: Selinux::find() };
    capabilities.apparmor = modules.apparmor.enabled();
    capabilities.selinux = modules.selinux.as_ref().map(|selinux| selinux.enforcing);
    capabilities.statements.extend(modules.selinux.as_ref().and_then(Selinux::statement));
    capabilities.user_namespaces = crate::idmap::probe(&options.data, pins.scratch()).err();
    let mut objects = Objects::default();
    let sandboxes: Vec<SandboxRecord> =
        record::read_all(&paths.sandboxes).map_err(io("read the records of sandboxes".into()))?;
    let containers: Vec<ContainerRecord> =
        record::read_all(&paths.containers).map_err(io("read the records of containers".into()))?;
    for mut record in sandboxes {
        if record.state == SandboxState::Ready && !pins.stand(&record.spec) {
            // Somebody unmounted them, or they were in a mount namespace that is gone.
            tracing::warn!(sandbox = %record.spec.id, "its namespaces are gone: it is not ready any more");
            record.state = SandboxState::NotReady;
        }
        objects.sandboxes.insert(record.spec.id.clone(), SandboxEntry::new(record));
    }
    for record in containers {
        objects.containers.insert(record.spec.id.clone(), ContainerEntry::new(record));
    }
    Ok(Arc::new(Inner {
        options,
        paths,
        capabilities,
        available,
        cgroups,
        pins,
        modules,
        filters: seccomp::Cache::default(),
        devices: crate::devices::Filters::default(),
        events: broadcast::channel(EVENTS).0,
        objects: Mutex::new(objects),
        keeper: watch::Sender::new(None),
        execs: Mutex::new(HashMap::new()),
        handler_features: tokio::sync::OnceCell::new(),
        underway: crate::checkpoint::Underway::default(),
        _lock: lock,
    }))
}

/// Takes the lock, and writes our process id into it.
fn lock(path: &Path) -> Result<File, OpenError> {
    let io = |source| OpenError::Io { step: format!("lock {}", path.display()), source };
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let _ = (&mut file).take(32).read_to_string(&mut pid);
            let pid = if pid.trim().is_empty() { "unknown".to_owned() } else { pid.trim().to_owned() };
            return Err(OpenError::Locked { path: path.to_owned(), pid });
        }
        Err(TryLockError::Error(source)) => return Err(io(source)),
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(io)?;
    writeln!(file, "{}", std::process::id()).map_err(io)?;
    Ok(file)
}

/// Records of another boot describe nothing that exists; the run directory may be on a disk.
fn forget_other_boot(paths: &Paths) -> std::io::Result<()> {
    let now = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let then = match std::fs::read_to_string(&paths.boot) {
        Ok(then) => then,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    if now != then {
        for dir in [&paths.sandboxes, &paths.containers] {
            for entry in std::fs::read_dir(dir)? {
                std::fs::remove_file(entry?.path())?;
            }
        }
        std::fs::write(&paths.boot, now)?;
    }
    Ok(())
}

fn capabilities(cgroups: &Cgroups, available: u64) -> Capabilities {
    let features = sys::features::get();
    let missing = cgroups.missing();
    let sys_resource = available & (1 << sys::caps::number::SYS_RESOURCE) != 0;
    let seccomp = std::path::Path::new("/proc/sys/kernel/seccomp/actions_avail").exists();
    let mut statements: Vec<String> = missing.iter().map(|(_, sentence)| sentence.clone()).collect();
    if !sys_resource {
        statements.push(
            "CAP_SYS_RESOURCE is missing, so resource limits cannot be raised above the daemon's own and \
             oom_score_adj cannot be lowered: run the daemon with it"
                .to_owned(),
        );
    }
    if !seccomp {
        statements.push("this kernel has no seccomp filters, so system calls are not filtered".to_owned());
    }
    let device_filter = sys::devices::load(&crate::devices::rules(&[])).is_ok();
    if !device_filter {
        statements.push(
            "device access is not confined: the kernel lacks CONFIG_CGROUP_BPF, or this process CAP_BPF"
                .to_owned(),
        );
    }
    Capabilities {
        device_filter,
        controllers: cgroups.controllers.clone(),
        missing_controllers: missing.into_iter().map(|(name, _)| name).collect(),
        cgroup_mount: cgroups.mounted.clone(),
        cgroup_kill: features.cgroup_kill,
        overlay_lowerdir_append: features.overlay_lowerdir_append,
        pidfd_exit_info: features.pidfd_exit_info,
        sys_resource,
        seccomp,
        user_namespaces: None,
        apparmor: false,
        selinux: None,
        kernel: features.release.clone(),
        statements,
    }
}

impl Inner {
    /// Removes what no record names: pins, writable layers, cgroups. Errors are logged: they do no harm.
    fn clean(&self) {
        let report = |what: &str, name: &str, error: &dyn std::error::Error| {
            tracing::warn!(what, name, error = %chain(error), "remove what nobody owns");
        };
        let (sandboxes, containers, pods) = {
            let objects = self.objects.lock();
            let sandboxes: Vec<String> = objects.sandboxes.keys().map(ToString::to_string).collect();
            let containers: Vec<String> = objects.containers.keys().map(ToString::to_string).collect();
            let pods: Vec<String> =
                objects.sandboxes.values().map(|entry| entry.record.cgroup.clone()).collect();
            (sandboxes, containers, pods)
        };
        for name in self.pins.all().unwrap_or_default() {
            if !sandboxes.contains(&name)
                && let Err(error) = self.pins.drop(&name)
            {
                report("namespaces", &name, &error);
            }
        }
        for entry in std::fs::read_dir(&self.paths.layers).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !containers.contains(&name)
                && let Err(error) = std::fs::remove_dir_all(entry.path())
            {
                report("writable layer", &name, &error);
            }
        }
        let dumps = crate::checkpoint::place(&self.options.data);
        match std::fs::remove_dir_all(&dumps) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                report("checkpoints", &dumps.display().to_string(), &error);
            }
            _ => {}
        }
        for pod in &pods {
            for child in self.cgroups.children(pod) {
                // A kubelet may have groups of its own there; ours are named by ids.
                let name = self.cgroups.name_of(&child);
                let ours = crate::id::ContainerId::new(name).is_ok() && name.len() >= 32;
                let init = name.starts_with("init-");
                if ours
                    && !init
                    && !containers.iter().any(|container| container == name)
                    && let Err(error) = self.cgroups.destroy(&format!("{pod}/{child}"))
                {
                    report("cgroup", &child, &error);
                }
            }
        }
        let own = format!("{}/pods", self.cgroups.base());
        for child in self.cgroups.children(&own) {
            if !sandboxes.contains(&child)
                && let Err(error) = self.cgroups.destroy(&format!("{own}/{child}"))
            {
                report("cgroup", &child, &error);
            }
        }
    }
}

/// Stops everything of a runtime that is not open, and removes all traces of it.
pub async fn destroy(options: Options) -> Result<(), OpenError> {
    let paths = Paths::of(&options);
    if !paths.run.exists() && !paths.layers.exists() {
        return Ok(());
    }
    let inner = prepare_patiently(options).await?;
    let failed = |step: &str| {
        let step = step.to_owned();
        move |source: RuntimeError| OpenError::Keeper { step, source: Box::new(source) }
    };
    let connected = Keeper::connect(&paths.socket).await.ok();
    let killing = inner.clone();
    let known = connected.as_ref().map(|(_, hello, _)| hello.state.containers.clone()).unwrap_or_default();
    if let Some((keeper, _, _)) = &connected {
        for container in known.iter().filter(|container| container.exit.is_none()) {
            // One that has just ended needs no signal.
            let _ = keeper.signal(&container.id, crate::signal::KILL, SignalTarget::Cgroup).await;
        }
    }
    blocking(move || killing.remove_cgroups()).await.map_err(failed("remove the cgroups"))?;
    if let Some((keeper, hello, events)) = connected {
        quit(&keeper, &hello, events).await?;
    }
    let removing = inner.clone();
    blocking(move || removing.cgroups.destroy_all()).await.map_err(failed("remove the node's cgroup"))?;
    blocking(move || {
        let io = |step: String| move |source: std::io::Error| OpenError::Io { step, source };
        inner.pins.destroy().map_err(io(format!("remove {}", inner.paths.namespaces.display())))?;
        for dir in
            [&inner.paths.layers, &inner.paths.sandboxes, &inner.paths.containers, &inner.paths.bundles]
        {
            remove_dir(dir).map_err(io(format!("remove {}", dir.display())))?;
        }
        for file in [&inner.paths.socket, &inner.paths.boot, &inner.paths.keeper_log, &inner.paths.lock] {
            match std::fs::remove_file(file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(io(format!("remove {}", file.display()))(error));
                }
                _ => {}
            }
        }
        // Others may keep things there too.
        let _ = std::fs::remove_dir(&inner.paths.run);
        let _ = std::fs::remove_dir(&inner.options.data);
        Ok(())
    })
    .await
}

impl Inner {
    fn remove_cgroups(&self) -> Result<(), RuntimeError> {
        let (containers, sandboxes): (Vec<String>, Vec<(String, String, bool)>) = {
            let objects = self.objects.lock();
            (
                objects.containers.values().map(|entry| entry.record.cgroup.clone()).collect(),
                objects
                    .sandboxes
                    .values()
                    .map(|entry| {
                        let record = &entry.record;
                        (record.spec.id.to_string(), record.cgroup.clone(), record.cgroup_made)
                    })
                    .collect(),
            )
        };
        for cgroup in containers {
            self.cgroups.destroy(&cgroup)?;
        }
        for (id, cgroup, made) in sandboxes {
            let cgroup = if made { cgroup } else { self.cgroups.init_path(&cgroup, &id) };
            self.cgroups.destroy(&cgroup)?;
        }
        self.cgroups.destroy_pods()
    }
}

/// Ends a keeper whose containers were all killed.
async fn quit(
    keeper: &Keeper,
    hello: &keeper::protocol::Hello,
    mut events: tokio::sync::mpsc::UnboundedReceiver<keeper::protocol::Event>,
) -> Result<(), OpenError> {
    let deadline = tokio::time::Instant::now() + QUIT_TIME;
    let failed = |source: keeper::client::ClientError| OpenError::Keeper {
        step: format!("end the keeper (process id {})", hello.pid),
        source: Box::new(source),
    };
    loop {
        let state = keeper.state().await.map_err(failed)?;
        for container in state.containers.iter().filter(|container| container.exit.is_some()) {
            keeper.forget(&container.id).await.map_err(failed)?;
        }
        if state.containers.iter().all(|container| container.exit.is_some()) {
            break;
        }
        // An event tells of the next end.
        if tokio::time::timeout_at(deadline, events.recv()).await.is_err() {
            break;
        }
    }
    match keeper.quit().await {
        Ok(()) | Err(keeper::client::ClientError::Disconnected) => {}
        Err(error) => return Err(failed(error)),
    }
    // It has gone when the connection has.
    let gone = async { while events.recv().await.is_some() {} };
    let _ = tokio::time::timeout_at(deadline, gone).await;
    Ok(())
}

fn remove_dir(dir: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
