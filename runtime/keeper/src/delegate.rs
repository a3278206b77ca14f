//! Delegated starts: another program (an OCI runtime) makes the container or exec, the keeper stays its parent.
//!
//! The commands run one after the other in a copy of a mount namespace that the daemon names (the keeper's own holds
//! nothing), with mounts that exist in that copy only. Orphans of the commands become the keeper's children; the
//! process id that they wrote says which of them is the container.
//!
//! Guarantees: whatever is mounted for the commands is gone with them, and reaches no other mount namespace.
//! Assumes: the paths of `private` are mount points in the daemon's namespace.

use std::ffi::CString;

use serde::{Deserialize, Serialize};

use crate::plan::{ExecStdio, FdIndex, Stdio};

/// What is to be run, and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DelegatePlan {
    /// What the commands make.
    pub task: Task,
    /// The program of all commands.
    pub program: Program,
    /// Arguments of each command, the name first. The first that fails is the last that runs.
    pub commands: Vec<Vec<CString>>,
    /// Their whole environment.
    pub env: Vec<CString>,
    /// The mount namespace that is copied for them.
    pub mounts: FdIndex,
    /// Mount points that are cut off from others before anything is attached beneath them.
    pub private: Vec<CString>,
    /// Detached mounts and where they go, in order.
    pub attach: Vec<(FdIndex, CString)>,
    /// Where the process id is written: a directory, and a plain name in it.
    pub pid_file: Option<(FdIndex, CString)>,
    /// A listening stream socket to which the first command sends the terminal's master.
    pub console: Option<FdIndex>,
}

/// A program to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Program {
    /// By path in the copied mount namespace.
    Path(CString),
    /// Open already.
    Open(FdIndex),
}

/// What the commands make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// A container; its streams are the first command's. Answered like a launch.
    Container {
        /// Its id.
        id: String,
        /// Standard streams.
        stdio: Stdio,
        /// See [`crate::plan::LaunchPlan::stdin_once`].
        stdin_once: bool,
        /// The CRI log file.
        log: Option<FdIndex>,
        /// The cgroup that it will be in, to tell an OOM kill.
        cgroup: Option<FdIndex>,
    },
    /// A process in a container; answered like an exec.
    Exec {
        /// The container.
        container: String,
        /// Name of the exec.
        id: String,
        /// Standard streams.
        stdio: ExecStdio,
    },
    /// Nothing that lives on.
    Command {
        /// What it is for, for messages.
        what: String,
        /// Where its output and errors go; `None` is the null device.
        output: Option<FdIndex>,
    },
}

impl DelegatePlan {
    /// All descriptors that the plan names.
    pub fn indexes(&self) -> impl Iterator<Item = FdIndex> {
        let of_task = match &self.task {
            Task::Container { log, cgroup, .. } => [*log, *cgroup, None],
            Task::Exec { stdio: ExecStdio::Streams { stdin, stdout, stderr }, .. } => {
                [*stdin, *stdout, *stderr]
            }
            Task::Exec { .. } => [None; 3],
            Task::Command { output, .. } => [*output, None, None],
        };
        let program = match self.program {
            Program::Open(fd) => Some(fd),
            Program::Path(_) => None,
        };
        let pid_file = self.pid_file.as_ref().map(|(fd, _)| *fd);
        let attach = self.attach.iter().map(|(fd, _)| *fd);
        of_task
            .into_iter()
            .flatten()
            .chain(program)
            .chain(pid_file)
            .chain(self.console)
            .chain(attach)
            .chain([self.mounts])
    }

    /// Whose work it is, for messages.
    pub fn what(&self) -> String {
        match &self.task {
            Task::Container { id, .. } => format!("start {id}"),
            Task::Exec { container, .. } => format!("exec in {container}"),
            Task::Command { what, .. } => what.clone(),
        }
    }
}
