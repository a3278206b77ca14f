//! Virtual machines for tests: a guest image from Debian's packages, QEMU, and tests that run in guests.
//!
//! [`Guest::boot`] starts one; [`suite::run`] runs a list of tests and shares a guest among them. [`Node`] is
//! an Orlop node in a guest, with a CRI client on this side.
//!
//! Guarantees: no guest outlives the process that booted it (the kernel ends QEMU with its parent).
//! Assumes: all guests are started on the main thread, as the kernel ties a child's end to the thread that
//! started it; so a single-threaded executor.
//! Caveat: the guest's file system is a layer above the image and is gone when the guest is dropped, but for
//! what the caller keeps (a [`disk::Data`]).
#![forbid(unsafe_code)]

pub mod accel;
pub mod disk;
pub mod guest;
pub mod image;
pub mod node;
pub mod outage;
pub mod place;
pub mod pods;
pub mod qemu;
pub mod qmp;
pub mod ssh;
pub mod suite;
pub mod wait;

pub use guest::{Guest, GuestOptions};
pub use node::Node;
pub use ssh::Ran;
pub use suite::{Case, Lab};
pub use wait::{eventually, eventually_within};
