//! Fuzz target: see `mcp_answer` in `../shim.rs`.
#![no_main]

#[path = "../shim.rs"]
#[allow(dead_code, reason = "each target uses one of the functions")]
mod shim;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    shim::mcp_answer(data);
});
