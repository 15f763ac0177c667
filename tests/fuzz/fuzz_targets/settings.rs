//! Any text as a settings file: no panic; what is taken once is taken the same way again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mtga::settings::{Settings, Sources};

fuzz_target!(|text: &str| {
    let as_filter = Sources { filter: text.to_owned(), metadata: "[]".to_owned() };
    let as_metadata = Sources { filter: "[]".to_owned(), metadata: text.to_owned() };
    for sources in [as_filter, as_metadata] {
        assert_eq!(Settings::parse(&sources), Settings::parse(&sources));
    }
});
