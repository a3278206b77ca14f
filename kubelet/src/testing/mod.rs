//! Tests of the whole pod machinery against a fake runtime and a clock that tests move.

mod bench;
mod ending;
mod fake_cri;
mod lifecycle;
mod probing;
mod volumes;

pub use bench::Bench;
