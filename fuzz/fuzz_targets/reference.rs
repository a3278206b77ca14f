//! libFuzzer's target `reference`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::reference(bytes));
