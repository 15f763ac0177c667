//! Any bytes as the value of a record: no panic, and either one line of valid JSON or nothing.
//!
//! The same bytes are taken twice with one scratch, since the second time the shape and the frame of the first are met, and
//! once with a fresh one: all three give the same. What is taken as JSON is what `serde_json` takes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mtga::config::{TimeZone, Validation};
use mtga::record::{Discard, Reason};
use mtga::settings::{Pattern, Settings};
use mtga::transform::{Options, Record, Scratch, Transform};
use serde_json::value::RawValue;

fn transform(validation: Validation) -> Transform {
    let mut settings = Settings::default();
    settings.filter.omit = vec![(Pattern::new("omit_*"), vec!["imei".to_owned()])];
    let zone = chrono::FixedOffset::east_opt(8 * 3600).expect("eight hours are a valid offset");
    Transform::new(&settings, Options { app_id: 24, validation, uuid: true, time_zone: TimeZone::Fixed(zone) })
}

fn apply(transform: &Transform, scratch: &mut Scratch, value: &[u8]) -> (Result<(), Discard>, Vec<u8>) {
    let timestamp = Some(1_608_184_243_000);
    let record = Record { topic: "t", topic_id: "", partition: 0, offset: 0, timestamp, value: Some(value) };
    let mut out = Vec::new();
    (transform.apply(scratch, &record, &mut out), out)
}

fuzz_target!(|value: &[u8]| {
    for validation in [Validation::Off, Validation::Strict] {
        let transform = transform(validation);
        let mut scratch = Scratch::default();
        let first = apply(&transform, &mut scratch, value);
        assert_eq!(first, apply(&transform, &mut scratch, value));
        assert_eq!(first, apply(&transform, &mut Scratch::default(), value));
        let (result, line) = first;
        if result.is_ok() {
            assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1);
            assert!(serde_json::from_slice::<&RawValue>(&line).is_ok());
        } else {
            assert!(line.is_empty());
        }
        let bad = matches!(result, Err(Discard::Rejected(reject)) if reject.reason == Reason::BadJson);
        let taken = serde_json::from_slice::<&RawValue>(value).is_ok_and(|raw| raw.get().starts_with('{'));
        // Nesting is bounded here and not there.
        let deep = value.iter().filter(|byte| b"[{".contains(byte)).count() >= 127;
        assert!(bad != taken || deep);
    }
});
