//! Streams between a caller and a process in a container.
//!
//! Guarantees: an `ExecSession` that is dropped leaves the process to itself; `kill` ends it.
//! Caveat: the descriptors are non-blocking pipes or a pty master; wrap them in `AsyncFd` or `pipe::Receiver`.

use std::os::fd::OwnedFd;

use crate::error::RuntimeError;
use crate::state::ExitStatus;

/// A process started by `Runtime::exec`.
#[derive(Debug)]
pub struct ExecSession {
    /// Write end of its standard input, if asked for and without a terminal.
    pub stdin: Option<OwnedFd>,
    /// Read end of its standard output.
    pub stdout: Option<OwnedFd>,
    /// Read end of its standard error.
    pub stderr: Option<OwnedFd>,
    /// Master of its terminal, if it has one: input and output in one descriptor.
    pub terminal: Option<OwnedFd>,
    /// Process id on the node.
    pub pid: u32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) exit: tokio::sync::watch::Receiver<Option<ExitStatus>>,
}

impl ExecSession {
    /// Waits for its end. May be called again, and concurrently with everything else.
    pub async fn wait(&self) -> ExitStatus {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(status) => status.unwrap_or(ExitStatus::Unknown),
            Err(_) => ExitStatus::Unknown,
        }
    }

    /// Sets the size of its terminal, if it has one.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<(), RuntimeError> {
        match &self.terminal {
            Some(master) => resize(master, columns, rows),
            None => Ok(()),
        }
    }

    /// Kills it. A process that has ended is no error.
    pub fn kill(&self) -> Result<(), RuntimeError> {
        match rustix::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(RuntimeError::Io { step: "kill an exec".into(), source: errno.into() }),
        }
    }
}

/// The streams of a container's own process.
#[derive(Debug)]
pub struct AttachSession {
    /// Write end of its standard input, if the container has one and no terminal.
    pub stdin: Option<OwnedFd>,
    /// Live copy of its standard output, from now on. With a terminal: all output.
    pub stdout: Option<OwnedFd>,
    /// Live copy of its standard error.
    pub stderr: Option<OwnedFd>,
    /// Master of its terminal, for input and `resize`; output comes on `stdout`.
    pub terminal: Option<OwnedFd>,
    /// Whether it has a terminal.
    pub tty: bool,
    /// The container's `stdin_once`: after this session its standard input should end.
    pub stdin_once: bool,
}

impl AttachSession {
    /// Sets the size of the terminal, if there is one.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<(), RuntimeError> {
        match &self.terminal {
            Some(master) => resize(master, columns, rows),
            None => Ok(()),
        }
    }
}

/// What `Runtime::exec_sync` brings back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// Standard output, at most 16 MiB of it.
    pub stdout: Vec<u8>,
    /// Standard error, at most 16 MiB of it.
    pub stderr: Vec<u8>,
    /// How it ended.
    pub status: ExitStatus,
    /// It was killed because its time was over.
    pub timed_out: bool,
}

fn resize(master: &OwnedFd, columns: u16, rows: u16) -> Result<(), RuntimeError> {
    let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(master, size)
        .map_err(|errno| RuntimeError::Io { step: "set the size of a terminal".into(), source: errno.into() })
}
