//! Measures what the keeper adds to a container's start: `launch /bin/true` with the default
//! mounts, from the request until the program runs, and until its end is told.
//!
//! Run as root: `cargo run -p keeper --example launch_latency [rounds] [static keeper binary]`.
fn main() {}
