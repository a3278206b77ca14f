//! Probes against servers on loopback.

mod actions;
mod servers;
mod worker;
