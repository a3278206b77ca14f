//! libFuzzer's target `cri`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::cri(bytes));
