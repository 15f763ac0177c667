//! Any bytes as a line on the control socket, and as a line that a client reads: no panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mtga::control::protocol::{parse, parse_reply};

fuzz_target!(|line: &[u8]| {
    // Both outcomes are fine; what matters is that there is one.
    let _ = parse(line);
    let _ = parse_reply(line);
});
