//! The kubelet: turns the pods of one node into calls on a container runtime, and reports back.
//!
//! It knows containers only through [`cri_api::Cri`]; it never enters a namespace or starts a process.
//! One task owns one pod (`pod::task`), decides with a pure function (`pod::plan`), and acts through thin
//! code. What happens to containers is pushed by the runtime; a slow resync is only a safety net.
#![forbid(unsafe_code)]

mod clock;
mod config;
mod kubelet;

mod fleet;
mod node;
mod server;
mod source;

mod pod;
mod status;

mod container;
mod images;
mod sandbox;
mod volumes;

mod events;
mod inotify;
mod labels;
mod logs;
mod metrics;
mod objects;
mod quantity;
mod shared;
mod users;

#[cfg(test)]
mod testing;

pub use config::{ApiConfig, Backoff, Config, ImageSettings, ResourceSettings};
pub use images::keyring::docker::lookup as docker_credentials;
pub use images::records::Verification;
pub use kubelet::{Kubelet, StartError};
pub use node::allocatable::check_reserved;
pub use users::{IDS_PER_POD, UserIds};
