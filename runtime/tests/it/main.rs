//! Tests against the kernel: each has directories, a cgroup and a keeper of its own, and removes them.

mod differential;
mod features;
mod handlers;
mod life;
mod node;
mod processes;
mod pure;
mod restart;
mod security;
mod users;
