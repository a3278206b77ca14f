//! What strangers' bytes reach first, as functions of bytes: each may refuse what it is given, but must not panic,
//! hang, take much memory, or leave anything beside the place it was given.
//!
//! `tests/bounded.rs` runs them for some seconds each, over mutations of [`seeds`]; libFuzzer runs them for as long as
//! you like (docs/SECURITY.md says how). What once failed lies in `regressions/`.

#![forbid(unsafe_code)]

pub mod mutate;
pub mod seeds;
mod targets;

pub use targets::{config, cri, keeper, layer, manifest, reference, seccomp, spdy, websocket};

/// A target: its name, the function, and what mutations start from.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, also that of its directory of regressions.
    pub name: &'static str,
    /// The function.
    pub run: fn(&[u8]),
    /// Inputs that are taken.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const TARGETS: [Target; 9] = [
    Target { name: "layer", run: layer, seeds: seeds::layer },
    Target { name: "manifest", run: manifest, seeds: seeds::manifest },
    Target { name: "config", run: config, seeds: seeds::config },
    Target { name: "reference", run: reference, seeds: seeds::reference },
    Target { name: "spdy", run: spdy, seeds: seeds::spdy },
    Target { name: "websocket", run: websocket, seeds: seeds::websocket },
    Target { name: "cri", run: cri, seeds: seeds::cri },
    Target { name: "seccomp", run: seccomp, seeds: seeds::seccomp },
    Target { name: "keeper", run: keeper, seeds: seeds::keeper },
];
