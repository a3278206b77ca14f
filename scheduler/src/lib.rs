//! Gives every pod that has no node one.
//!
//! `place(pod, cluster) -> Placement` is pure: it filters the nodes by what the pod demands and scores
//! those that are left. The shell around it watches, binds, and says why a pod fits nowhere.
//!
//! Guarantees: a pod is bound at most once; two pods are never promised the same room, also before the
//! watch shows the first one's binding.
//! Assumes: one scheduler per cluster.
//! Caveat: no preemption; a pod that asks for inter-pod affinity or hard topology spreading is left
//! pending and told so.
#![forbid(unsafe_code)]

mod cluster;
mod filter;
mod place;
mod resources;
mod score;
mod selector;
mod shell;

pub use cluster::Cluster;
pub use place::{Placement, place};
pub use shell::run;

/// The scheduler that pods name when they name none.
pub const NAME: &str = "default-scheduler";
