//! One pod: its desired state, what is seen of it, what follows, and the task that owns it.

pub mod view;
pub mod hash;
pub mod observed;
pub mod step;
pub mod plan;
pub mod ending;
pub mod admit;
pub mod observe;
pub mod probing;
pub mod hooks;
pub mod act;
pub mod lifecycle;
pub mod report;
pub mod message;
pub mod task;

#[cfg(test)]
mod plan_tests;
