//! Any bytes as a manifest: no panic; what is taken is written and taken the same way again, and names no other directory.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mtga::msink::manifest::{Manifest, Source, name_of_empty};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(manifest) = Manifest::parse(bytes) {
        assert!(manifest.file.as_ref().is_none_or(|name| !name.contains('/') && !name.starts_with('.')));
        if let Source::Range(range) = &manifest.source {
            assert!(!name_of_empty(range, manifest.number).contains('/'));
        }
        assert_eq!(Manifest::parse(&manifest.to_json()), Ok(manifest));
    }
});
