//! Scenarios: the built binary, driven by real clients, in a network namespace and a directory of its own.
//!
//! Guarantees: a test that ends, however it ends, leaves no process, mount, cgroup, namespace or file;
//! [`Node::end`] fails the test if it finds one.
//! Assumes: root, `ip` and `nsenter`; the binary and the images as `make test` names them.
#![forbid(unsafe_code)]

pub mod archive;
mod clients;
pub mod critest;
pub mod leaks;
mod node;
mod proxy;
mod registry;
mod wait;

pub use clients::{Ran, Running, program as clients_program};
pub use clients::{command, run};
pub use node::{Node, NodeOptions, condition, signal};
pub use proxy::{Proxy, Trouble};
pub use registry::Registry;
pub use wait::{eventually, eventually_within};

use std::path::PathBuf;

/// The binary under test (`ORLOP_TEST_BINARY`).
pub fn binary() -> PathBuf {
    let path = std::env::var_os("ORLOP_TEST_BINARY").map(PathBuf::from);
    path.unwrap_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/debug/orlop")))
}

/// An image archive that `tests/images/build.sh` made (`ORLOP_TEST_IMAGES`).
pub fn image(name: &str) -> PathBuf {
    let dir = std::env::var_os("ORLOP_TEST_IMAGES").map(PathBuf::from);
    let dir = dir.unwrap_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../out/images")));
    dir.join(format!("{name}.tar"))
}

/// Whether this process may run scenarios; says why not. CI fails on a skip that it did not expect.
pub fn can_run() -> bool {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return false;
    }
    if !binary().exists() {
        panic!("{} is missing: run `make test`, or set ORLOP_TEST_BINARY", binary().display());
    }
    true
}
