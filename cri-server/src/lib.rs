//! The CRI server: pods and containers as a kubelet and crictl ask for them, over the crates `runtime`,
//! `image` and `network`.
//!
//! Each group of calls is one file: translate (pure), call, map the error. `streaming` is the server behind
//! the URLs of Exec, Attach and PortForward.
//!
//! Guarantees: lists and statuses are answered from memory; a repeated RunPodSandbox or CreateContainer gives
//! the first one's id; what cannot be done is refused, never ignored.
//! Assumes: one server over one runtime, image store and network.
#![forbid(unsafe_code)]

mod config;
pub use config::Config;

mod server;
pub use server::{CriServer, StartError};

mod recover;

mod sandbox;
mod sandbox_spec;

mod cdi;
mod container;
mod container_spec;

mod checkpoint;

mod exec;
mod streaming;
pub use streaming::{TlsError, TlsFiles};

mod images;
mod metrics;
mod node;
mod stats;

mod events;

#[doc(hidden)]
pub mod fuzz;

mod descriptor;
mod error;
mod filter;
mod index;
mod meta;
mod view;
