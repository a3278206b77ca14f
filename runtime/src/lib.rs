//! Runs pods: sandboxes, containers, what happens inside them and what becomes of them.
//!
//! The way of a container: `ContainerSpec` → OCI runtime spec (pure, [`oci`]) → draft of a launch plan (pure,
//! [`plan`]) → launch plan with opened descriptors (`prepare`) → one launch message to the keeper, which is the
//! parent of every container and outlives this process.
//!
//! Guarantees: nothing of a container appears in the node's mount table; a record is on disk before the sandbox it
//! describes exists, so that a crash leaves nothing that nobody knows of; an exit code is never invented.
//! Assumes: root, a cgroup v2 file system, kernel 5.15.
//! Caveats: limits whose controller is missing are recorded in `unenforced`, not refused.
#![forbid(unsafe_code)]

pub mod error;
pub mod handler;
pub mod id;
pub mod options;
pub mod session;
pub mod spec;
pub mod state;

pub mod caps;
pub mod oci;
pub mod plan;
pub mod seccomp;
pub mod signal;
pub mod sysctl;
pub mod user;

mod api;
mod bundle;
mod cgroup;
mod checkpoint;
mod containers;
mod core;
mod delegate;
mod devices;
mod idmap;
mod keepers;
mod limits;
pub mod lsm;
mod make;
mod open;
mod overlay;
mod pins;
mod prepare;
mod processes;
mod record;
mod sandboxes;
mod stats;

pub use api::{Runtime, destroy};
pub use checkpoint::Checkpoint;
pub use error::{ExecError, OpenError, RuntimeError, StartError};
pub use id::{BadId, ContainerId, SandboxId};
pub use options::{Capabilities, Options};
pub use session::{AttachSession, ExecOutput, ExecSession};
pub use spec::{ContainerSpec, ExecSpec, Resources, SandboxSpec};
pub use state::{
    Brief, Container, ContainerState, Event, Exit, ExitReason, ExitStatus, Sandbox, SandboxBrief,
    SandboxState, Stats,
};

/// The keeper, a static program, started from memory. Not a constant: each use of one would have a copy of its own.
pub static KEEPER_BINARY: &[u8] = include_bytes!(env!("KEEPER_BINARY"));
