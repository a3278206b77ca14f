//! Containers that another OCI runtime makes: its commands, and what becomes of their errors.
//!
//! The keeper runs the commands and stays the containers' parent, so life and death, logs and exit codes are as with
//! the native launcher. The bundle is the OCI spec that the native launcher takes.
//!
//! Guarantees: what is mounted for a runtime is mounted in a namespace of its commands only; its view of the cgroup
//! file system is version 2, wherever the node has mounted it.

mod exec;
mod features;
mod launch;

pub use features::Known;

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keeper::client::ClientError;
use keeper::delegate::{DelegatePlan, Program, Task};
use keeper::plan::Fds;
use rustix::fs::{Mode, OFlags};
use serde_json::Value;

use crate::core::{Inner, blocking, chain};
use crate::error::RuntimeError;
use crate::handler::OciRuntime;
use crate::id::ContainerId;
use crate::plan::text;
use crate::record::{ContainerRecord, SandboxRecord};

/// Where runtimes look for the cgroup file system.
const CGROUPS: &str = "/sys/fs/cgroup";
/// Environment of a runtime, which may look up helpers of its own.
const ENVIRONMENT: &std::ffi::CStr = c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Most bytes of a runtime's log that are read.
const LOG: u64 = 1 << 20;

/// Commands of a runtime that are to be run, and what they need.
struct Commands {
    plan: DelegatePlan,
    fds: Fds,
    /// The runtime's log of errors.
    log: PathBuf,
    /// Files and directories that are of use only while the commands run.
    temporary: Vec<PathBuf>,
}

impl Inner {
    /// The OCI runtime that makes a sandbox's containers; `None` if that is done natively.
    pub fn delegate_of<'a>(
        &'a self,
        sandbox: &SandboxRecord,
    ) -> Result<Option<&'a OciRuntime>, RuntimeError> {
        if sandbox.spec.handler.is_empty() {
            return Ok(None);
        }
        Ok(self.options.handlers.get(&sandbox.spec.handler)?.1.oci())
    }

    /// As [`Inner::delegate_of`], for what only another runtime does.
    fn delegate<'a>(&'a self, sandbox: &SandboxRecord) -> Result<&'a OciRuntime, RuntimeError> {
        self.delegate_of(sandbox)?.ok_or_else(|| {
            RuntimeError::invalid(format!("sandbox {} has the native runtime handler", sandbox.spec.id))
        })
    }

    /// The directory of a container's bundle.
    pub fn bundle(&self, id: &ContainerId) -> PathBuf {
        self.paths.bundles.join("bundles").join(id.as_str())
    }

    /// What all commands of a runtime have in common; its one command has no verb yet.
    fn commands(
        &self,
        name: &str,
        runtime: &OciRuntime,
        log_in: &Path,
        task: Task,
    ) -> Result<Commands, RuntimeError> {
        let root = runtime.root.clone().unwrap_or_else(|| self.paths.bundles.join("state").join(name));
        make_private(&root)?;
        let log = log_in.join("log.json");
        remove(&log);
        let mut base = vec![text(name.as_bytes())?, c"--root".to_owned(), path(&root)?];
        base.extend([c"--log".to_owned(), path(&log)?, c"--log-format".to_owned(), c"json".to_owned()]);
        for one in &runtime.args {
            base.push(text(one.as_bytes())?);
        }
        let mut fds = Fds::default();
        let mounts = open("/proc/self/ns/mnt", OFlags::RDONLY)?;
        let mounts = fds.add(mounts);
        let mut private = vec![path(self.pins.scratch())?];
        let mut attach = Vec::new();
        if self.cgroups.mounted.as_deref() != Some(Path::new(CGROUPS)) {
            let table = sys::mountinfo::read().map_err(RuntimeError::io("read the node's mounts"))?;
            let Some(below) = sys::mountinfo::containing(&table, Path::new(CGROUPS)) else {
                return Err(RuntimeError::invalid(format!("the node has no {CGROUPS} to mount cgroups at")));
            };
            private.push(path(&below.target)?);
            let set = sys::mount::attr::NOSUID | sys::mount::attr::NODEV | sys::mount::attr::NOEXEC;
            let tree = sys::mount::create(c"cgroup2", Some(c"cgroup2"), &[], set).map_err(|errno| {
                RuntimeError::io("mount the cgroup v2 file system for a runtime")(errno.into())
            })?;
            attach.push((fds.add(tree), text(CGROUPS.as_bytes())?));
        }
        let plan = DelegatePlan {
            task,
            program: Program::Path(path(&runtime.path)?),
            commands: vec![base],
            env: vec![ENVIRONMENT.to_owned()],
            mounts,
            private,
            attach,
            pid_file: None,
            console: None,
        };
        Ok(Commands { plan, fds, log, temporary: Vec::new() })
    }

    /// Makes the socket to which a runtime sends a terminal; gives the arguments for it.
    fn console(&self, commands: &mut Commands) -> Result<[CString; 2], RuntimeError> {
        // A short path: the kernel takes 107 bytes.
        let short: String = uuid::Uuid::new_v4().simple().to_string().chars().take(8).collect();
        let socket = self.paths.run.join(format!("tty-{short}"));
        let listening = sys::socket::listen_stream(&socket)
            .map_err(|errno| RuntimeError::io(format!("listen at {}", socket.display()))(errno.into()))?;
        commands.plan.console = Some(commands.fds.add(listening));
        let arguments = [c"--console-socket".to_owned(), path(&socket)?];
        commands.temporary.push(socket);
        Ok(arguments)
    }

    /// Lowers POSIX limits of a process document to what this process can give.
    fn limit_document(&self, process: &mut Value) {
        if self.capabilities.sys_resource {
            return;
        }
        for limit in process["rlimits"].as_array_mut().into_iter().flatten() {
            let Some(ours) = limit["type"].as_str().and_then(crate::limits::hard) else { continue };
            for field in ["soft", "hard"] {
                if limit[field].as_u64().is_some_and(|value| value > ours) {
                    limit[field] = ours.into();
                }
            }
        }
    }

    /// Sends a signal to a container by the runtime that made it.
    pub async fn delegate_kill(
        self: &Arc<Self>,
        record: &ContainerRecord,
        signal: i32,
    ) -> Result<(), RuntimeError> {
        self.simple(record, ["kill", record.spec.id.as_str(), &signal.to_string()]).await
    }

    /// Lets the runtime that made a container forget it. Errors are logged: the kernel's part is removed anyway.
    pub async fn delegate_delete(self: &Arc<Self>, record: &ContainerRecord) {
        let id = &record.spec.id;
        if let Err(error) = self.simple(record, ["delete", "--force", id.as_str()]).await {
            tracing::warn!(container = %id, error = %chain(&error), "let the runtime delete a container");
        }
    }

    async fn simple<const N: usize>(
        self: &Arc<Self>,
        record: &ContainerRecord,
        verb: [&str; N],
    ) -> Result<(), RuntimeError> {
        let step = format!("{} container {}", verb[0], record.spec.id);
        let more = words(verb)?;
        let (inner, copy, what) = (self.clone(), record.clone(), step.clone());
        let Commands { plan, fds, log, .. } = blocking(move || {
            let sandbox = inner.sandbox_record(&copy.spec.sandbox)?;
            let runtime = inner.delegate(&sandbox)?;
            let bundle = inner.bundle(&copy.spec.id);
            make_private(&bundle)?;
            let task = Task::Command { what, output: None };
            let mut commands = inner.commands(&sandbox.spec.handler, runtime, &bundle, task)?;
            commands.plan.commands[0].extend(more);
            Ok::<_, RuntimeError>(commands)
        })
        .await?;
        match self.keeper().await?.delegate_command(plan, fds).await {
            Ok(()) => Ok(()),
            Err(error) => Err(failed(step, error, said(&log))),
        }
    }
}

/// A runtime's failure: in its own words, if it left any.
fn failed(step: String, error: ClientError, said: Option<String>) -> RuntimeError {
    let source = match said {
        Some(words) => words.into(),
        None => Box::new(error) as Box<dyn std::error::Error + Send + Sync>,
    };
    RuntimeError::Keeper { step, source }
}

/// The last error in a runtime's log.
fn said(log: &Path) -> Option<String> {
    use std::io::Read;
    let mut lines = String::new();
    std::fs::File::open(log).ok()?.take(LOG).read_to_string(&mut lines).ok()?;
    last_error(&lines)
}

fn last_error(lines: &str) -> Option<String> {
    let entries = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let errors = entries.filter(|entry| {
        entry["level"]
            .as_str()
            .is_none_or(|level| matches!(level.to_ascii_lowercase().as_str(), "error" | "fatal"))
    });
    let text =
        |entry: Value| entry["msg"].as_str().or(entry["fields"]["message"].as_str()).map(str::to_owned);
    errors.filter_map(text).next_back()
}

/// Whether a runtime's words mean that the program to run is not there or can't be run.
fn means_no_program(words: &str) -> bool {
    let words = words.to_ascii_lowercase();
    let about_program = ["executable file", "exec: \"", "open executable", "exec failed", "execve"];
    let missing = [
        "not found",
        "no such file",
        "permission denied",
        "operation not permitted",
        "is a directory",
        "exec format error",
    ];
    about_program.iter().any(|part| words.contains(part)) && missing.iter().any(|part| words.contains(part))
}

fn make_private(dir: &Path) -> Result<(), RuntimeError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(RuntimeError::io(format!("make {}", dir.display())))
}

/// Writes a document that only root may read: environments hold secrets.
fn write(file: &Path, document: &Value) -> Result<(), RuntimeError> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let step = || RuntimeError::io(format!("write {}", file.display()));
    let text = serde_json::to_vec(document).map_err(|error| step()(error.into()))?;
    let opened = std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(file);
    opened.and_then(|mut file| file.write_all(&text)).map_err(step())
}

fn open(path: impl AsRef<Path>, flags: OFlags) -> Result<OwnedFd, RuntimeError> {
    let path = path.as_ref();
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| RuntimeError::io(format!("open {}", path.display()))(errno.into()))
}

/// Removes a file or a directory with all in it; what is not there is fine.
fn remove(path: &Path) {
    let removed = match path.is_dir() {
        true => std::fs::remove_dir_all(path),
        false => std::fs::remove_file(path),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "remove a file for a runtime");
        }
        _ => {}
    }
}

fn words<const N: usize>(words: [&str; N]) -> Result<Vec<CString>, RuntimeError> {
    words.iter().map(|word| text(word.as_bytes())).collect()
}

fn path(path: &Path) -> Result<CString, RuntimeError> {
    use std::os::unix::ffi::OsStrExt;
    text(path.as_os_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_found_in_a_log() {
        let runc = concat!(
            r#"{"level":"warning","msg":"cgroup is not empty","time":"x"}"#,
            "\n",
            r#"{"level":"error","msg":"exec: \"nope\": executable file not found in $PATH","time":"x"}"#,
            "\n"
        );
        let words = last_error(runc).expect("an error");
        assert!(words.contains("nope") && means_no_program(&words), "{words}");
        assert_eq!(last_error("no json\n"), None);
        assert!(means_no_program("executable file `x` not found in $PATH: No such file or directory"));
        assert!(!means_no_program("mount `proc` to `proc`: Permission denied"));
    }
}
