//! The commands: each a few calls of libcontainer.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::signal::Signal;
use libcontainer::syscall::syscall::SyscallType;
use serde_json::json;

use crate::executor::Program;
use crate::flags::{Command, Flags};
use crate::{prepare, sealed};

/// Does what the command line says.
///
/// # Errors
/// libcontainer's, with what was tried.
pub fn run(flags: &Flags) -> anyhow::Result<()> {
    match &flags.command {
        Command::Create { bundle, pid_file, console_socket, id } => {
            sealed::ensure()?;
            prepare::bundle(bundle)?;
            create(&flags.root, bundle, pid_file.as_deref(), console_socket.as_deref(), id)
                .with_context(|| format!("create container {id}"))
        }
        Command::Start { id } => {
            load(&flags.root, id)?.start().with_context(|| format!("start container {id}"))
        }
        Command::State { id } => {
            let container = load(&flags.root, id)?;
            println!("{}", serde_json::to_string_pretty(&container.state).context("state as JSON")?);
            Ok(())
        }
        Command::Kill { id, signal } => {
            let number = Signal::try_from(signal.as_str()).with_context(|| format!("signal {signal:?}"))?;
            load(&flags.root, id)?.kill(number, false).with_context(|| format!("kill container {id}"))
        }
        Command::Delete { force, id } => delete(&flags.root, id, *force),
        Command::Features => {
            println!("{}", features());
            Ok(())
        }
    }
}

fn create(
    root: &Path,
    bundle: &Path,
    pid_file: Option<&Path>,
    console_socket: Option<&Path>,
    id: &str,
) -> anyhow::Result<()> {
    let container = ContainerBuilder::new(id.to_owned(), SyscallType::default())
        .validate_id()?
        .with_executor(Program)
        .with_root_path(root)?
        .with_pid_file(pid_file)?
        .with_console_socket(console_socket)
        .as_init(bundle)
        .with_systemd(false)
        .with_detach(true)
        .build()?;
    match (console_socket, container.pid()) {
        (Some(_), Some(pid)) => {
            prepare::give_terminal(bundle, pid.as_raw()).context("give the terminal to the container's user")
        }
        _ => Ok(()),
    }
}

fn delete(root: &Path, id: &str, force: bool) -> anyhow::Result<()> {
    let directory = directory(root, id)?;
    if force && !directory.exists() {
        return Ok(());
    }
    let deleted = load(root, id)
        .and_then(|mut container| container.delete(force).with_context(|| format!("delete container {id}")));
    match deleted {
        // A `create` that was killed leaves half a state, which libcontainer can't read.
        Err(_) if force => {
            std::fs::remove_dir_all(&directory).with_context(|| format!("remove {}", directory.display()))
        }
        other => other,
    }
}

fn load(root: &Path, id: &str) -> anyhow::Result<Container> {
    let directory = directory(root, id)?;
    if !directory.exists() {
        bail!("there is no container {id}");
    }
    let mut container =
        Container::load(directory).with_context(|| format!("read the state of container {id}"))?;
    container.refresh_status().with_context(|| format!("refresh the state of container {id}"))?;
    Ok(container)
}

/// Where a container's state is.
fn directory(root: &Path, id: &str) -> anyhow::Result<PathBuf> {
    // The same rules as when it is made, so that no id leads out of the root.
    ContainerBuilder::new(id.to_owned(), SyscallType::default()).validate_id()?;
    Ok(root.join(id))
}

/// What libcontainer can do, of what its callers ask for.
fn features() -> serde_json::Value {
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.1",
        "mountOptions": [
            "bind", "rbind", "ro", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "relatime", "norelatime",
            "private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable",
            "rro", "rrw", "rnosuid", "rsuid", "rnodev", "rdev", "rnoexec", "rexec",
        ],
        "linux": { "cgroup": { "v1": false, "v2": true, "systemd": false }, "seccomp": { "enabled": true } },
    })
}
