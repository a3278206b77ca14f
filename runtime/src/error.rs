//! What can go wrong, one enum per kind of operation.
//!
//! Guarantees: a message names the step and the object; the cause is in `source`, never in the text.

use std::io;
use std::path::PathBuf;

use crate::id::{ContainerId, SandboxId};

/// Why the runtime could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another daemon works on the same directories.
    #[error("{path} is held by the daemon with process id {pid}: stop that one, or use another --root")]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// Who holds it; `unknown` if the file does not say.
        pid: String,
    },
    /// No cgroup v2 file system can be had.
    #[error("find or mount the cgroup v2 file system (`orlop check` tells what is missing)")]
    Cgroup {
        /// Why.
        source: io::Error,
    },
    /// A system call failed.
    #[error("{step}")]
    Io {
        /// What was tried, on what.
        step: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The keeper could not be started or spoken to.
    #[error("{step}")]
    Keeper {
        /// What was tried.
        step: String,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Why an operation on a sandbox or container failed.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// No such sandbox.
    #[error("no sandbox {id}")]
    NoSandbox {
        /// What was asked for.
        id: SandboxId,
    },
    /// No such container.
    #[error("no container {id}")]
    NoContainer {
        /// What was asked for.
        id: ContainerId,
    },
    /// The id is taken.
    #[error("{what} exists already")]
    Exists {
        /// Kind and id.
        what: String,
    },
    /// The sandbox takes no new containers.
    #[error("sandbox {id} was stopped: no container can be made or started in it")]
    SandboxNotReady {
        /// The sandbox.
        id: SandboxId,
    },
    /// The container is in another state than the operation needs.
    #[error("container {id} is {is}: {wanted} is needed")]
    WrongState {
        /// The container.
        id: ContainerId,
        /// Its state in a word.
        is: &'static str,
        /// What is needed, in a word or two.
        wanted: &'static str,
    },
    /// It can't be done here or now, though nothing is wrong with the request; the text says what, why, what to do.
    #[error("{what}")]
    NotNow {
        /// A whole sentence.
        what: String,
    },
    /// The specification asks for something impossible or refused; the text says what, why, what to do.
    #[error("{what}")]
    Invalid {
        /// A whole sentence.
        what: String,
    },
    /// A system call failed.
    #[error("{step}")]
    Io {
        /// What was tried, on what.
        step: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The keeper could not do it, or could not be reached.
    #[error("{step}")]
    Keeper {
        /// What was tried.
        step: String,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It did not happen in time.
    #[error("{step}: not done after {seconds} s")]
    Timeout {
        /// What was waited for.
        step: String,
        /// How long.
        seconds: u64,
    },
}

impl RuntimeError {
    /// Wraps an I/O error with its step.
    pub(crate) fn io(step: impl Into<String>) -> impl FnOnce(io::Error) -> RuntimeError {
        let step = step.into();
        move |source| RuntimeError::Io { step, source }
    }

    /// A step that a test may let fail.
    pub(crate) fn fault(step: &'static str) -> Result<(), RuntimeError> {
        sys::fault::point(step).map_err(RuntimeError::io(step))
    }

    /// Makes a refusal.
    pub(crate) fn invalid(what: impl Into<String>) -> RuntimeError {
        RuntimeError::Invalid { what: what.into() }
    }

    /// Whether the object asked for does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, RuntimeError::NoSandbox { .. } | RuntimeError::NoContainer { .. })
    }
}

/// Why a container did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The program does not exist in the image.
    #[error("{program:?} is not an executable file in the container's $PATH or root")]
    NotFound {
        /// First argument.
        program: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A step in the new process failed.
    #[error("start container {id}: {step}")]
    Child {
        /// The container.
        id: ContainerId,
        /// What the new process was doing.
        step: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Something before that.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

/// Why a process could not be run in a container.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The program does not exist in the container.
    #[error("{program:?} is not an executable file in the container's $PATH or root")]
    NotFound {
        /// First argument.
        program: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A step in the new process failed.
    #[error("exec in container {id}: {step}")]
    Child {
        /// The container.
        id: ContainerId,
        /// What the new process was doing.
        step: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The program did not run within the time that it had.
    #[error("exec in container {id}: {why}")]
    TimedOut {
        /// The container.
        id: ContainerId,
        /// What is known about it.
        why: String,
    },
    /// Something before that.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}
