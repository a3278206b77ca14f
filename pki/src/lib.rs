//! The cluster's own certificate authority, and what it signs.
//!
//! Guarantees: a private key is on disk only with mode 0600 in a directory of mode 0700; a file is
//! either the old one whole or the new one whole; an authority that exists is never replaced.
//! Assumes: one daemon at a time owns the directory.
//! Caveat: leaf certificates live a year and are issued anew at every start; a daemon that runs
//! longer than that must be restarted (which no container notices).
#![forbid(unsafe_code)]

mod authority;
mod files;
mod kubeconfig;

pub use authority::{ClusterPki, Identity, PkiError};
pub use files::write_private;
pub use kubeconfig::{Kubeconfig, valid_for};
