//! The CRI server: pods and containers as a kubelet and crictl ask for them, over the crates `runtime`,
//! `image` and `network`.
//!
//! Each group of calls is one file: translate (pure), call, map the error. `streaming` is the server behind
//! the URLs of Exec, Attach and PortForward.
#![forbid(unsafe_code)]

mod descriptor;
mod streaming;
