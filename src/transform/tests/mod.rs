//! Tests of the whole transform: golden files, the rules one by one, and the plain implementation as an oracle.

mod allocations;
mod golden;
mod grammar;
mod oracle;
mod properties;
mod rules;

use chrono::FixedOffset;

use super::{Options, Record, Scratch, Transform};
use crate::config::{TimeZone, Validation};
use crate::record::{Discard, Reason};
use crate::settings::{Key, Mapping, Part, Settings, Template};

fn options() -> Options {
    let zone = TimeZone::Fixed(FixedOffset::east_opt(8 * 3600).unwrap());
    Options { app_id: 24, validation: Validation::Standard, uuid: false, time_zone: zone }
}

fn record(value: &[u8]) -> Record<'_> {
    Record { topic: "mulog", topic_id: "", partition: 0, offset: 7, timestamp: None, value: Some(value) }
}

fn apply(transform: &Transform, value: &[u8]) -> Result<String, Discard> {
    let mut out = b"before".to_vec();
    let result = transform.apply(&mut Scratch::default(), &record(value), &mut out);
    assert!(out.starts_with(b"before"));
    let line = String::from_utf8(out.split_off(6)).unwrap();
    assert_eq!(result.is_err(), line.is_empty(), "a discard leaves nothing behind");
    result.map(|()| line)
}

/// The reason for which a record is rejected.
#[track_caller]
fn reason(result: Result<String, Discard>) -> Reason {
    match result {
        Err(Discard::Rejected(reject)) => reject.reason,
        other => panic!("expected a reject, got {other:?}"),
    }
}

/// A template written as in the settings files.
fn template(text: &str) -> Template {
    let mut parts = Vec::new();
    for (i, piece) in text.split('{').enumerate() {
        let (member, rest) =
            if i == 0 { (None, piece) } else { piece.split_once('}').map_or((None, piece), |(m, r)| (Some(m), r)) };
        parts.extend(member.map(|member| Part::Member(member.to_owned())));
        parts.extend((!rest.is_empty()).then(|| Part::Text(rest.to_owned())));
    }
    Template(parts)
}

/// A mapping of `(key, field, default)`; an empty field is none.
fn mapping(log_name: &str, event_name: &str, event_type: &str, keys: &[(&str, &str, &str)]) -> Mapping {
    let key = |&(name, field, default): &(&str, &str, &str)| Key {
        name: name.to_owned(),
        field: (!field.is_empty()).then(|| field.to_owned()),
        default: template(default),
    };
    Mapping {
        log_name: log_name.to_owned(),
        event_name: template(event_name),
        event_type: event_type.to_owned(),
        keys: keys.iter().map(key).collect(),
    }
}

fn settings(metadata: Vec<Mapping>) -> Settings {
    Settings { metadata, ..Settings::default() }
}
