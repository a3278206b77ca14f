//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

/// Makes and removes containers by libcontainer. A node of Orlop calls this; it is no program to use by hand.
#[derive(Debug, Parser)]
#[command(name = "orlop-libcontainer", version)]
pub struct Flags {
    /// Where the state of containers is kept.
    #[arg(long, default_value = "/run/orlop-libcontainer")]
    pub root: PathBuf,
    /// Where the error goes besides standard error.
    #[arg(long)]
    pub log: Option<PathBuf>,
    /// How the log is written.
    #[arg(long, value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Forms of the log.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a container whose program waits for `start`.
    Create {
        /// The directory with `config.json`.
        #[arg(long)]
        bundle: PathBuf,
        /// Where the process id is written.
        #[arg(long)]
        pid_file: Option<PathBuf>,
        /// The socket to which the terminal is sent.
        #[arg(long)]
        console_socket: Option<PathBuf>,
        /// Name of the container.
        id: String,
    },
    /// Let the program of a container run.
    Start {
        /// Name of the container.
        id: String,
    },
    /// Print a container's state as JSON.
    State {
        /// Name of the container.
        id: String,
    },
    /// Send a signal to a container's first process.
    Kill {
        /// Name of the container.
        id: String,
        /// Number or name of the signal.
        #[arg(default_value = "SIGTERM")]
        signal: String,
    },
    /// Forget a container that has ended.
    Delete {
        /// Kill it first if it runs; one that isn't there is fine.
        #[arg(long)]
        force: bool,
        /// Name of the container.
        id: String,
    },
    /// Print what this runtime can do as JSON (features.md of the OCI runtime spec).
    Features,
}
