//! libFuzzer's target `websocket`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::websocket(bytes));
