//! How fast one core turns JSON into lines: bytes of input a second, by size and kind of record.
//!
//! `serde_json` reads the golden record for comparison: the envelope, then the members of `logs`, both without copying.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mtga::config::{TimeZone, Validation};
use mtga::settings::{Pattern, Settings};
use mtga::transform::{Options, Record, Scratch, Transform};
use serde::Deserialize;
use serde_json::value::RawValue;

const GOLDEN: &str = include_str!("../tests/golden/transform/golden_record/records.jsonl");

fn options(validation: Validation, uuid: bool) -> Options {
    let zone = chrono::FixedOffset::east_opt(8 * 3600).expect("eight hours are a valid offset");
    Options { app_id: 24, validation, uuid, time_zone: TimeZone::Fixed(zone) }
}

fn record(value: &str) -> Record<'_> {
    Record {
        topic: "mulog_clean_24",
        topic_id: "",
        partition: 0,
        offset: 6_171_720_626,
        timestamp: None,
        value: Some(value.as_bytes()),
    }
}

/// Records are taken in turn; the figure is for one pass over all of them.
fn measure(criterion: &mut Criterion, name: &str, transform: &Transform, records: &[String]) {
    let mut group = criterion.benchmark_group("transform");
    group.throughput(Throughput::Bytes(records.iter().map(|record| record.len() as u64).sum()));
    let (mut scratch, mut out) = (Scratch::default(), Vec::new());
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            out.clear();
            for value in records {
                transform.apply(&mut scratch, &record(black_box(value)), &mut out).expect("the record is good");
            }
            out.len()
        });
    });
    group.finish();
}

/// A record of about this many bytes with members of many kinds.
fn sized(bytes: usize) -> String {
    let mut logs = String::from(r#"{"role_id":6001310009300,"mtime":1608184243"#);
    let mut index = 0;
    while logs.len() + 70 < bytes {
        let _ = match index % 4 {
            0 => write!(logs, r#","name_{index}":"value of {index}""#),
            1 => write!(logs, r#","count_{index}":{}"#, index * 7919),
            2 => write!(logs, r#","text_{index}":"{}""#, "a longer text of some words ".repeat(3)),
            _ => write!(logs, r#","list_{index}":[{index},true,{{"a":null}}]"#),
        };
        index += 1;
    }
    format!(r#"{{"headers":{{"app_id":24,"log_name":"log_item"}},"logs":{logs}}}}}"#)
}

/// Records of twenty log names with values and members that differ from one to the next.
fn mixed() -> Vec<String> {
    (0..400_u64)
        .map(|i| {
            let noise = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut logs =
                format!(r#"{{"role_id":{},"mtime":{}"#, 6_001_310_000_000 + noise % 99_999, 1_608_184_243 + i / 40);
            for member in 0..20 + i % 20 {
                let draw = noise.rotate_left(member as u32 * 3);
                let _ = match (i % 20 * 7 + member) % 3 {
                    _ if draw % 16 == 0 => Ok(()),
                    0 => write!(logs, r#","name_{member}":"{}""#, &"abcdefghijklmnopqrstuvwxyz"[..draw as usize % 26]),
                    1 => write!(logs, r#","count_{member}":{}"#, draw % 10_u64.pow((draw >> 32) as u32 % 9 + 1)),
                    _ => write!(logs, r#","flag_{member}":{}"#, draw % 2),
                };
            }
            format!(r#"{{"headers":{{"app_id":24,"log_name":"log_{}"}},"logs":{logs}}}}}"#, i % 20)
        })
        .collect()
}

fn transform(criterion: &mut Criterion) {
    let standard = Transform::new(&Settings::default(), options(Validation::Standard, false));
    let golden = GOLDEN.trim_end().to_owned();
    measure(criterion, "golden", &standard, std::slice::from_ref(&golden));
    for bytes in [100, 4 << 10, 64 << 10] {
        measure(criterion, &format!("{bytes} bytes"), &standard, &[sized(bytes)]);
    }
    measure(criterion, "mixed", &standard, &mixed());

    let value: serde_json::Value = serde_json::from_str(&golden).expect("the golden record is JSON");
    let pretty = serde_json::to_string_pretty(&value).expect("a value can be written");
    measure(criterion, "white space", &standard, &[pretty]);
    let chat = r#"{"headers":{"app_id":24,"log_name":"log_chat"},"logs":{"role_id":6001310009300,"mtime":1608184243,"content":"TEXT"}}"#;
    measure(
        criterion,
        "escapes",
        &standard,
        &[chat.replace("TEXT", &r#"say \"hi\"\n\u4e2d\u6587 and on "#.repeat(20))],
    );
    measure(criterion, "chinese", &standard, &[chat.replace("TEXT", &"大家好，今天一起去打副本吗？ ok ".repeat(20))]);

    let mut settings = Settings::default();
    settings.filter.omit = vec![(Pattern::new("*"), vec!["imei".to_owned()])];
    let omit = Transform::new(&settings, options(Validation::Standard, false));
    measure(criterion, "omit", &omit, std::slice::from_ref(&golden));
    let uuid = Transform::new(&Settings::default(), options(Validation::Standard, true));
    measure(criterion, "uuid", &uuid, std::slice::from_ref(&golden));
    let strict = Transform::new(&Settings::default(), options(Validation::Strict, false));
    measure(criterion, "strict", &strict, std::slice::from_ref(&golden));
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    headers: HashMap<&'a str, &'a RawValue>,
    #[serde(borrow)]
    logs: &'a RawValue,
}

fn comparison(criterion: &mut Criterion) {
    let golden = GOLDEN.trim_end().as_bytes();
    let mut group = criterion.benchmark_group("serde_json");
    group.throughput(Throughput::Bytes(golden.len() as u64));
    group.bench_function("golden", |bencher| {
        bencher.iter(|| {
            let envelope: Envelope<'_> = serde_json::from_slice(black_box(golden)).expect("the record is good");
            let members: HashMap<&str, &RawValue> =
                serde_json::from_str(envelope.logs.get()).expect("the record is good");
            (envelope.headers.len(), members.len())
        });
    });
    group.finish();
}

criterion_group!(benches, transform, comparison);
criterion_main!(benches);
