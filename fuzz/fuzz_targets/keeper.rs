//! libFuzzer's target `keeper`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::keeper(bytes));
