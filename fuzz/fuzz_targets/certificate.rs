#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kitfs_fuzz::certificate(data));
