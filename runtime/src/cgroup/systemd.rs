//! systemd as the owner of the cgroup tree: slices of pods and scopes of containers, asked for over D-Bus.
//!
//! A scope can't begin without a process, but a container's process is born into its cgroup; and systemd removes a scope
//! with its last process, maybe before anybody has read in its cgroup that the process was killed for its memory. So a
//! placeholder, a process that does nothing, holds the scope from before the container's start until its end is known.
//! It outlives the daemon as containers do.
//!
//! Guarantees: a call returns when systemd has done its work or said why not. Blocks: call it from a blocking thread.

use std::collections::HashMap;
use std::io::Error as IoError;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures::StreamExt;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use zbus::Connection;
use zbus::zvariant::{OwnedObjectPath, Value};

use super::unit::Property;

/// How long systemd may take for one job.
const PATIENCE: Duration = Duration::from_secs(25);
/// Exists when systemd is the first process (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";
/// Who needs less memory than anybody else is no help when it is killed.
const OOM_SCORE: &str = "-998";

type Properties<'a> = Vec<(&'a str, Value<'a>)>;

/// A connection to systemd.
#[derive(Debug)]
pub struct Systemd {
    handle: Handle,
    /// Made anew when it broke: the bus may be restarted.
    connection: Mutex<Option<Connection>>,
    /// What placeholders run.
    program: OwnedFd,
    /// Those that this process started, by the scopes' names.
    placeholders: Mutex<HashMap<String, Placeholder>>,
}

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
    fn subscribe(&self) -> zbus::Result<()>;
    fn start_transient_unit(
        &self,
        name: &str,
        mode: &str,
        properties: &[(&str, Value<'_>)],
        auxiliary: &[(&str, Vec<(&str, Value<'_>)>)],
    ) -> zbus::Result<OwnedObjectPath>;
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;
    fn set_unit_properties(
        &self,
        name: &str,
        runtime: bool,
        properties: &[(&str, Value<'_>)],
    ) -> zbus::Result<()>;
    #[zbus(signal)]
    fn job_removed(&self, id: u32, job: OwnedObjectPath, unit: String, result: String) -> zbus::Result<()>;
}

impl Systemd {
    /// Connects. Must be called where tokio's runtime is known.
    pub fn connect() -> std::io::Result<Systemd> {
        if !Path::new(BOOTED).is_dir() {
            return Err(IoError::other(format!(
                "the cgroup driver is systemd, but systemd is not this machine's first process ({BOOTED} is not there): \
                 set cgroupDriver to cgroupfs"
            )));
        }
        let systemd = Systemd {
            handle: Handle::try_current().map_err(IoError::other)?,
            connection: Mutex::default(),
            program: sys::memfd::sealed(c"placeholder", crate::KEEPER_BINARY)?,
            placeholders: Mutex::default(),
        };
        systemd.block("connect to systemd over the system bus", |_| async { Ok(()) })?;
        Ok(systemd)
    }

    /// Starts a slice with limits. One that the administrator has described gets them as well.
    pub fn start_slice(&self, name: &str, limits: &[Property]) -> std::io::Result<()> {
        let mut properties = common("A pod of Orlop");
        properties.extend(limits.iter().map(value));
        match self.start(name, &properties) {
            Err(error) if is(&error, "UnitExists") => {
                self.block(&format!("start the unit {name}"), |connection| async move {
                    let manager = ManagerProxy::new(&connection).await?;
                    job(&manager, async || manager.start_unit(name, "replace").await).await
                })?;
                self.set(name, limits)
            }
            outcome => outcome,
        }
    }

    /// Starts a scope in a slice. Its placeholder is in it until [`Systemd::settle`]; tells its process id.
    pub fn start_scope(&self, name: &str, slice: &str, what: &str) -> std::io::Result<u32> {
        let placeholder = Placeholder::start(&self.program)?;
        let pid = placeholder.0.id();
        let mut properties = common(what);
        properties.push(("Slice", slice.into()));
        properties.push(("PIDs", vec![pid].into()));
        properties.push(("Delegate", true.into()));
        properties.push(("CollectMode", "inactive-or-failed".into()));
        // The pod's limit counts, not the default that services have.
        properties.push(("TasksMax", u64::MAX.into()));
        match self.start(name, &properties) {
            // The one before it has just ended, or a daemon that died left its placeholder.
            Err(error) if is(&error, "UnitExists") => {
                self.stop(name)?;
                self.start(name, &properties)?;
            }
            outcome => outcome?,
        }
        self.placeholders.lock().insert(name.to_owned(), placeholder);
        Ok(pid)
    }

    /// Ends the placeholder of a scope, if this process started it.
    pub fn settle(&self, name: &str) {
        let ended = self.placeholders.lock().remove(name);
        drop(ended);
    }

    /// Changes a slice's limits.
    pub fn set(&self, name: &str, limits: &[Property]) -> std::io::Result<()> {
        self.block(&format!("change the unit {name}"), |connection| async move {
            let properties: Properties<'_> = limits.iter().map(value).collect();
            ManagerProxy::new(&connection).await?.set_unit_properties(name, true, &properties).await
        })
    }

    /// Stops a unit; one that isn't there is fine.
    pub fn stop(&self, name: &str) -> std::io::Result<()> {
        self.settle(name);
        let stopped = self.block(&format!("stop the unit {name}"), |connection| async move {
            let manager = ManagerProxy::new(&connection).await?;
            let outcome = job(&manager, async || manager.stop_unit(name, "replace").await).await;
            // A unit that failed is remembered until told otherwise; others know no such state.
            let _ = manager.reset_failed_unit(name).await;
            outcome
        });
        match stopped {
            Err(error) if is(&error, "NoSuchUnit") => Ok(()),
            other => other,
        }
    }

    fn start(&self, name: &str, properties: &Properties<'_>) -> std::io::Result<()> {
        self.block(&format!("start the unit {name}"), |connection| async move {
            let manager = ManagerProxy::new(&connection).await?;
            job(&manager, async || manager.start_transient_unit(name, "fail", properties, &[]).await).await
        })
    }

    /// The connection that there is, or a new one. Of two that are made at once, the later stays.
    async fn connection(&self, fresh: bool) -> zbus::Result<Connection> {
        let known = self.connection.lock().clone();
        if let Some(known) = known.filter(|_| !fresh) {
            return Ok(known);
        }
        let made = Connection::system().await?;
        ManagerProxy::new(&made).await?.subscribe().await?;
        *self.connection.lock() = Some(made.clone());
        Ok(made)
    }

    /// Makes calls, on a new connection if the old one broke.
    fn block<T, F: Future<Output = zbus::Result<T>>>(
        &self,
        step: &str,
        calls: impl Fn(Connection) -> F,
    ) -> std::io::Result<T> {
        let told = |error: zbus::Error| IoError::other(format!("{step}: {error}"));
        let work = async {
            for fresh in [false, true] {
                let connection = self.connection(fresh).await.map_err(told)?;
                match calls(connection).await {
                    Err(zbus::Error::InputOutput(_)) if !fresh => {}
                    outcome => return outcome.map_err(told),
                }
            }
            Err(IoError::other(format!("{step}: the connection to the system bus broke twice")))
        };
        self.handle.block_on(async {
            let late =
                |_| IoError::new(std::io::ErrorKind::TimedOut, format!("{step}: systemd takes too long"));
            tokio::time::timeout(PATIENCE, work).await.map_err(late)?
        })
    }
}

/// Whether systemd refused with this error.
fn is(error: &IoError, name: &str) -> bool {
    error.to_string().contains(&format!("org.freedesktop.systemd1.{name}"))
}

/// What all of our units have.
fn common(what: &str) -> Properties<'_> {
    let mut properties: Properties<'_> = vec![
        ("Description", what.into()),
        // Nothing of the boot waits for it, nor it for anything.
        ("DefaultDependencies", false.into()),
    ];
    for accounting in ["CPUAccounting", "MemoryAccounting", "IOAccounting", "TasksAccounting"] {
        properties.push((accounting, true.into()));
    }
    properties
}

fn value(property: &Property) -> (&str, Value<'_>) {
    match property {
        Property::Number(name, number) => (name, (*number).into()),
        Property::Set(name, bits) => (name, bits.clone().into()),
    }
}

/// Asks for a job and waits for its end. Signals are listened to before, so that none is missed.
async fn job(
    manager: &ManagerProxy<'_>,
    ask: impl AsyncFnOnce() -> zbus::Result<OwnedObjectPath>,
) -> zbus::Result<()> {
    let mut removed = manager.receive_job_removed().await?;
    let asked = ask().await?;
    while let Some(signal) = removed.next().await {
        let ended = signal.args()?;
        if ended.job == asked {
            return match ended.result.as_str() {
                "done" | "skipped" => Ok(()),
                result => Err(zbus::Error::Failure(format!("the job for {} ended as {result}", ended.unit))),
            };
        }
    }
    Err(zbus::Error::Failure("the bus went away".to_owned()))
}

/// A process that does nothing.
#[derive(Debug)]
struct Placeholder(Child);

impl Placeholder {
    fn start(program: &OwnedFd) -> std::io::Result<Placeholder> {
        let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
        command.arg0("orlop-keeper").arg("hold").env_clear().current_dir("/");
        // What a terminal sends to the daemon is not for it.
        command.process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let placeholder = Placeholder(command.spawn()?);
        let score = format!("/proc/{}/oom_score_adj", placeholder.0.id());
        if let Err(error) = std::fs::write(score, OOM_SCORE) {
            tracing::debug!(%error, "spare a placeholder from the OOM killer, which would take its container first anyway");
        }
        Ok(placeholder)
    }
}

impl Drop for Placeholder {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
