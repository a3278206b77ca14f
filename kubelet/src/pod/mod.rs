//! One pod: its desired state, what is seen of it, what follows, and the task that owns it.

pub mod act;
pub mod admit;
pub mod ending;
pub mod hash;
pub mod hooks;
pub mod lifecycle;
pub mod message;
pub mod observe;
pub mod observed;
pub mod plan;
pub mod probing;
pub mod report;
pub mod step;
pub mod task;
pub mod view;

#[cfg(test)]
mod plan_tests;
