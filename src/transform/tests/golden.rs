//! Golden cases: `tests/golden/transform/<case>/` holds `records.jsonl`, one record a line, and `events.jsonl` with the line
//! that each becomes, or `filtered <reason>` or `rejected <reason>: <detail>`. A `rules.json` beside them changes options
//! and settings: `{"options": {"validation", "uuid", "time_zone" (IANA), "timestamp"}, "filter": {"drop", "keep", "omit"}, "metadata"}`.
//!
//! With `MTGA_BLESS=1` in the environment of the test the files of expected lines are written again, to be reviewed.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{Options, Record, Scratch, Transform, options, settings, template};
use crate::config::{TimeZone, Validation};
use crate::record::Discard;
use crate::settings::{Key, Mapping, Pattern, Settings};

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(|item| item.as_str().unwrap().to_owned()).collect()
}

fn patterns(value: &Value) -> Vec<Pattern> {
    strings(value).iter().map(|text| Pattern::new(text)).collect()
}

fn read_mapping(entry: &Value) -> Mapping {
    let keys = entry["metadata"].as_object().unwrap().iter().map(|(name, source)| Key {
        name: name.clone(),
        field: source["field"].as_str().map(str::to_owned),
        default: template(source["default"].as_str().unwrap_or_default()),
    });
    Mapping {
        log_name: entry["log_name"].as_str().unwrap().to_owned(),
        event_name: template(entry["event_name"].as_str().unwrap()),
        event_type: entry["event_type"].as_str().unwrap().to_owned(),
        keys: keys.collect(),
    }
}

/// What a case runs under: settings, options and Kafka's timestamp.
fn read_rules(rules: &Value) -> (Settings, Options, Option<i64>) {
    let mut settings = settings(rules["metadata"].as_array().into_iter().flatten().map(read_mapping).collect());
    let filter = &rules["filter"];
    settings.filter.drop = patterns(&filter["drop"]);
    settings.filter.keep = filter["keep"].is_array().then(|| patterns(&filter["keep"]));
    let omit = filter["omit"].as_object().into_iter().flatten();
    settings.filter.omit = omit.map(|(name, names)| (Pattern::new(name), strings(names))).collect();
    let mut options = options();
    let given = &rules["options"];
    match given["validation"].as_str() {
        Some("off") => options.validation = Validation::Off,
        Some("strict") => options.validation = Validation::Strict,
        _ => {}
    }
    options.uuid = given["uuid"] == true;
    if let Some(zone) = given["time_zone"].as_str() {
        options.time_zone = TimeZone::built_in(zone).unwrap();
    }
    (settings, options, given["timestamp"].as_i64())
}

fn run(case: &Path) -> String {
    let rules =
        fs::read_to_string(case.join("rules.json")).map_or(Value::Null, |text| serde_json::from_str(&text).unwrap());
    let (settings, options, timestamp) = read_rules(&rules);
    let transform = Transform::new(&settings, options);
    let mut scratch = Scratch::default();
    let mut out = Vec::new();
    for (offset, line) in fs::read_to_string(case.join("records.jsonl")).unwrap().lines().enumerate() {
        let value = Some(line.as_bytes());
        let record =
            Record { topic: "mulog_clean_24", topic_id: "", partition: 0, offset: offset as i64, timestamp, value };
        match transform.apply(&mut scratch, &record, &mut out) {
            Ok(()) => {}
            Err(Discard::Filtered(filter)) => out.extend(format!("filtered {filter}\n").bytes()),
            Err(Discard::Rejected(reject)) => {
                out.extend(format!("rejected {}: {}\n", reject.reason, reject.detail).bytes());
            }
        }
    }
    String::from_utf8(out).unwrap()
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the switch that writes the golden files again is the test's own")]
fn every_golden_case_gives_its_events() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/transform");
    let mut count = 0;
    for case in fs::read_dir(cases).unwrap() {
        let case = case.unwrap().path();
        let (got, expected) = (run(&case), case.join("events.jsonl"));
        if std::env::var("MTGA_BLESS").is_ok() {
            fs::write(&expected, &got).unwrap();
        }
        assert_eq!(got, fs::read_to_string(&expected).unwrap(), "{}", case.display());
        count += 1;
    }
    assert!(count >= 8, "only {count} golden cases were found");
}
