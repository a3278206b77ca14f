//! Tests of the whole pod machinery against a fake runtime and a clock that tests move.

mod bench;
mod fake_cri;
mod lifecycle;
mod ending;
mod probing;
mod volumes;
