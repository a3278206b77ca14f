//! What every component uses to talk to an apiserver: a connection, and a watched copy of some objects.
//!
//! Loops are level-triggered: a loop waits for [`Cache::changed`], takes snapshots, decides with a pure
//! function and acts. Nothing is passed from the watch to the loop but "something changed", so there is
//! one code path after a restart, a lost event or a retry.
#![forbid(unsafe_code)]

mod cache;
mod connect;
mod patience;

pub use cache::Cache;
pub use connect::{ConnectError, connect, connect_yaml};
pub use kube;
pub use patience::{Patience, describe};
