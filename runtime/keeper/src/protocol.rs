//! What the daemon and the keeper say to each other.
//!
//! One unix seqpacket socket; every packet is one message, descriptors travel with it. A body
//! larger than [`INLINE_MAX`] goes in a sealed memfd that is the packet's first descriptor, so
//! messages have no size limit. Bodies are postcard.
//!
//! Guarantees: a reply carries the number of its request; events come in the order in which
//! things happened, after the log lines that were written before them.
//! Caveat: the format has no self-description: both sides compare [`VERSION`] in the hello.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::delegate::DelegatePlan;
use crate::plan::{ExecPlan, InitPlan, LaunchPlan};

/// Version of this protocol. A keeper of another version is upgraded by the daemon, so every
/// keeper understands `Hello` and `Upgrade` in the encoding of version 1.
pub const VERSION: u32 = 3;

/// Largest body that is sent in the packet itself, in bytes.
pub const INLINE_MAX: usize = 64 * 1024;

/// Most descriptors that the kernel passes in one message (`SCM_MAX_FD`).
pub const MAX_FDS: usize = 253;

/// A moment, in nanoseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct UnixNanos(pub i64);

/// A numbered request of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the daemon; the reply repeats it.
    pub number: u64,
    /// What is asked.
    pub op: Op,
}

/// What the daemon can ask. Descriptors that an operation brings are named with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// First message of a connection. Answer: [`Answer::Hello`].
    Hello {
        /// [`VERSION`] of the daemon.
        version: u32,
        /// Build id of the daemon's own keeper binary.
        build: String,
    },
    /// All that the keeper knows. Answer: [`Answer::State`].
    State,
    /// Starts a container. Descriptors: those of the plan. Answer: [`Answer::Launched`].
    Launch(Box<LaunchPlan>),
    /// Starts the init of a shared pid namespace. Answer: [`Answer::Launched`].
    LaunchInit(InitPlan),
    /// Starts a process in a container. Answer: [`Answer::ExecStarted`].
    Exec(Box<ExecPlan>),
    /// Sends a signal. Answer: [`Answer::Done`].
    Signal {
        /// The container (or init).
        id: String,
        /// Signal number.
        signal: i32,
        /// Who gets it.
        target: SignalTarget,
    },
    /// Writes the log to another file from now on. Descriptor 0: the file, open for appending.
    ReopenLog {
        /// The container.
        id: String,
    },
    /// Asks for live output and for the way in. Answer: [`Answer::Attached`].
    Attach {
        /// The container.
        id: String,
        /// Whether standard input is wanted.
        stdin: bool,
        /// Whether standard output is wanted.
        stdout: bool,
        /// Whether standard error is wanted.
        stderr: bool,
    },
    /// Changes the size of a terminal.
    Resize {
        /// The container.
        id: String,
        /// Columns.
        columns: u16,
        /// Rows.
        rows: u16,
    },
    /// Closes the keeper's way to the container's standard input.
    CloseStdin {
        /// The container.
        id: String,
    },
    /// Drops what is remembered of a container that has exited.
    Forget {
        /// The container.
        id: String,
    },
    /// Re-executes the keeper. Descriptor 0: sealed memfd with the new binary. Answer:
    /// [`Answer::Done`], by the new program.
    Upgrade,
    /// Takes over containers of a dead keeper. Answer: [`Answer::TakenOver`].
    Handover(Vec<HandoverContainer>),
    /// Ends the keeper; refused while containers run. Answer: [`Answer::Done`].
    Quit,
    /// Lets another runtime make a container or exec. Descriptors: those of the plan. Answer:
    /// [`Answer::Launched`], [`Answer::ExecStarted`] or, for a plain command, [`Answer::Done`].
    Delegate(Box<DelegatePlan>),
}

/// Who gets a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SignalTarget {
    /// The main process.
    Main,
    /// Every process in the container's cgroup (SIGKILL through `cgroup.kill`, which also
    /// reaches processes that are being forked).
    Cgroup,
}

/// A packet to the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToDaemon {
    /// The answer to a request.
    Reply {
        /// Number of the request.
        number: u64,
        /// What came of it.
        result: Result<Answer, Failure>,
    },
    /// Something happened.
    Event(Event),
}

/// A successful answer. Descriptors that it brings are named with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The keeper presents itself.
    Hello(Hello),
    /// The state.
    State(State),
    /// A container or init runs. Descriptors: the pidfd, then those that `streams` lists, in
    /// the order stdin, stdout, stderr, terminal.
    Launched(Launched),
    /// An exec runs. Descriptor 0: its pidfd; descriptor 1, if a terminal was asked for: the
    /// terminal's master, non-blocking.
    ExecStarted {
        /// Process id in the node's pid namespace.
        pid: i32,
        /// What did not go as asked.
        warnings: Vec<String>,
    },
    /// Live copies follow. Descriptors: those that the streams list, in the order stdin, stdout,
    /// stderr, terminal.
    Attached(Streams),
    /// Which of the containers were taken over, in the order asked; the message says why not.
    TakenOver(Vec<Result<(), Failure>>),
    /// It is done.
    Done,
}

/// Which descriptors come with an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streams {
    /// Writing end of standard input.
    pub stdin: bool,
    /// Reading end of standard output.
    pub stdout: bool,
    /// Reading end of standard error.
    pub stderr: bool,
    /// Master side of the terminal.
    pub terminal: bool,
}

/// The keeper presents itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`] of the keeper.
    pub version: u32,
    /// The keeper's build id ([`crate::build_id`]).
    pub build: String,
    /// The keeper's process id.
    pub pid: i32,
    /// What it knows.
    pub state: State,
}

/// Everything the keeper knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Containers and inits not yet forgotten.
    pub containers: Vec<ContainerState>,
}

/// One container as the keeper sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    /// Id.
    pub id: String,
    /// Whether it is the init of a shared pid namespace.
    pub init: bool,
    /// Main process and its identity.
    pub process: ProcessId,
    /// When it was started.
    pub started_at: UnixNanos,
    /// `None` while it runs.
    pub exit: Option<Exit>,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// Whether its standard input can be written to.
    pub stdin_open: bool,
    /// Bytes of output that could not be written to the log.
    pub log_bytes_lost: u64,
}

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process id in the node's pid namespace.
    pub pid: i32,
    /// Start time in clock ticks since boot (`/proc/PID/stat`, field 22).
    pub start_ticks: u64,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Code or signal.
    pub how: ExitHow,
    /// Whether the kernel's OOM killer struck in the container's cgroup.
    pub oom_killed: bool,
    /// When the keeper saw it.
    pub at: UnixNanos,
}

/// Code or signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitHow {
    /// It exited by itself.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
    /// The keeper was not its parent and the kernel does not tell.
    Unknown,
}

impl ExitHow {
    /// The number a shell would show: the code, or 128 plus the signal. Unknown is 255, as no
    /// better number exists; callers that can say "unknown" should.
    pub fn shell_code(self) -> i32 {
        match self {
            ExitHow::Code(code) => code,
            ExitHow::Signal(signal) => 128 + signal,
            ExitHow::Unknown => 255,
        }
    }
}

/// A started container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launched {
    /// Main process.
    pub process: ProcessId,
    /// When it was started.
    pub started_at: UnixNanos,
    /// What did not go as asked, in words.
    pub warnings: Vec<String>,
    /// Duplicates that the daemon keeps for the day the keeper dies. It must not read from them.
    pub streams: Streams,
}

/// One container of a dead keeper, as the daemon remembers it. Without a reading end the new
/// keeper opens the pipe again through the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandoverContainer {
    /// Id.
    pub id: String,
    /// Whether it is an init.
    pub init: bool,
    /// Main process.
    pub process: ProcessId,
    /// When it was started.
    pub started_at: UnixNanos,
    /// What its standard streams are.
    pub stdio: crate::plan::Stdio,
    /// See [`LaunchPlan::stdin_once`].
    pub stdin_once: bool,
    /// A pidfd.
    pub pidfd: Option<crate::plan::FdIndex>,
    /// Writing end of standard input.
    pub stdin: Option<crate::plan::FdIndex>,
    /// Reading end of standard output.
    pub stdout: Option<crate::plan::FdIndex>,
    /// Reading end of standard error.
    pub stderr: Option<crate::plan::FdIndex>,
    /// Master of the terminal.
    pub terminal: Option<crate::plan::FdIndex>,
    /// The log file, open for appending.
    pub log: Option<crate::plan::FdIndex>,
    /// The cgroup directory.
    pub cgroup: Option<crate::plan::FdIndex>,
}

/// Something happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A container's main process ended.
    Exited {
        /// The container.
        id: String,
        /// How.
        exit: Exit,
    },
    /// An exec ended.
    ExecExited {
        /// The container.
        container: String,
        /// The exec.
        id: String,
        /// How.
        exit: Exit,
    },
    /// Output could not be written to a log; told once until writing works again.
    LogFailed {
        /// The container.
        id: String,
        /// Why.
        message: String,
    },
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Kind, for programs.
    pub kind: FailureKind,
    /// What was tried, on what, and what the kernel said, for people.
    pub message: String,
}

/// Kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// No container of that id.
    NotFound,
    /// The id is in use.
    Exists,
    /// The container has exited, or still runs, so that the request makes no sense.
    WrongState,
    /// The request itself is not valid.
    Invalid,
    /// The program to run does not exist in the container.
    CommandNotFound,
    /// The program to run may not be executed (permission, directory, format).
    CommandNotExecutable,
    /// A kernel call failed with this error number.
    Os(i32),
    /// A command of another runtime failed; what it says is in its own log.
    Command,
    /// The program did not run within the time that it had.
    TimedOut,
}

impl fmt::Display for ExitHow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitHow::Code(code) => write!(f, "exit code {code}"),
            ExitHow::Signal(signal) => write!(f, "signal {signal}"),
            ExitHow::Unknown => f.write_str("unknown"),
        }
    }
}
