//! Faults at every step of the CRI's calls, and many pods at once: the state is right afterwards, and nothing is left.

mod many;
mod pods;
mod points;
mod retries;
