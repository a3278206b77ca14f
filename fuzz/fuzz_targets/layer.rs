//! libFuzzer's target `layer`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::layer(bytes));
