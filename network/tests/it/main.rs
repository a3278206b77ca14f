//! The pod network against the kernel. Each test has a "machine" of its own: a private network namespace
//! that is the node's side, so nothing of the real machine is touched or needed.

mod bridge;
mod cni;
mod hostports;
mod lab;
mod restart;
