//! libFuzzer's target `seccomp`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::seccomp(bytes));
