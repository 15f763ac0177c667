//! Things that happen one after the other: a configuration that changes between a crash and the next start, and commands that
//! are interrupted, with a start and new records before they are repeated.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;

use mtga::control::{Counts, State};
use mtga::msource::journal;
use regex_lite::{Captures, Regex};
use serde_json::json;

use crate::harness::cases::for_each;
use crate::harness::oracle::Outcome;
use crate::harness::payload::Wrapping;
use crate::harness::process::Finished;
use crate::harness::{Codec, Home, Mix, Record, SOON, Topic, events, holds, oracle, wait_until};

/// How many cases run beside each other.
const BESIDE: usize = 4;

/// How a home is before a crash, and what that is called.
type Kind = (&'static str, fn(&mut Home));

/// A change of the configuration between a crash and the next start.
struct Change {
    what: &'static str,
    /// The keys that it changes, or whose meaning.
    keys: &'static [&'static str],
    before: fn(&mut Home),
    make: fn(&mut Home),
    /// What is produced after the change, made of a record of the mix.
    sent: fn(Record) -> Record,
    /// What the oracle has to be asked about, so that it tells what becomes of a record after the change.
    seen: fn(&Record) -> Record,
    /// Whether a line of after the change is what it must be; the first one is that which it would have been before.
    is_line: fn(&str, &str) -> bool,
}

impl fmt::Debug for Change {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.what)
    }
}

const fn change(what: &'static str, keys: &'static [&'static str], make: fn(&mut Home)) -> Change {
    let is_line = |before: &str, found: &str| found == before;
    Change { what, keys, before: |_| (), make, sent: |record| record, seen: Record::clone, is_line }
}

/// Records become after it what they became before.
const NONE: Change = change("none", &[], |_| ());

/// How many records there are in each part: what a checkpoint covers, what is torn, and what comes after the change.
const PART: u64 = 80;

/// Cuts the last event file, hidden or not, in the middle of a line: what a kill in the middle of a write leaves.
pub(crate) fn tear(home: &Home) {
    let data = home.path("data");
    let mut files = [events::paths(&data), events::hidden(&data)].concat();
    files.retain(|path| !path.to_string_lossy().ends_with(".manifest.json"));
    let age = |path: &std::path::PathBuf| path.metadata().and_then(|file| file.modified()).expect("a file");
    let path = files.into_iter().max_by_key(age).expect("an event file");
    let file = fs::File::options().write(true).open(path).expect("a file");
    let length = file.metadata().expect("a file").len();
    file.set_len(length - (length / 4).min(5_000)).expect("it is cut");
}

/// A home that has read two parts and was killed while it wrote the second, of which a part is missing. A checkpoint covers
/// the first.
fn torn(topic: &Topic, before: impl Fn(&mut Home)) -> (Home, Vec<Record>) {
    let mut home = Home::new(topic);
    home.set("sink.rotate", json!({"size": "1MiB", "age": "1h", "idle": "1h"}));
    before(&mut home);
    home.set("store.checkpoint", "100ms");
    let mut produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, PART);
    let expected = oracle::expect(&produced).counts;
    let service = home.foreground();
    wait_written(&home, &expected);
    wait_until("a checkpoint covers everything", SOON, || {
        let state = journal::read(&home.path("tmp/store/journal")).map_err(|error| error.to_string())?.state;
        let consumed = state.map_or(0, |state| state.totals.consumed);
        holds(consumed == expected.consumed, consumed)
    });
    service.kill();
    produced.extend(topic.fill(Codec::Snappy, Mix::Dirty, PART, PART));
    die_writing(&mut home, &oracle::expect(&produced).counts);
    (home, produced)
}

fn wait_written(home: &Home, expected: &Counts) {
    wait_until("everything is written", SOON, || {
        let counts = home.try_status()?.counts;
        holds((counts.consumed, counts.written) == (expected.consumed, expected.written), counts)
    });
}

/// Has a home read until it has these counts, and be killed while it writes. No checkpoint covers that.
fn die_writing(home: &mut Home, expected: &Counts) {
    home.set("store.checkpoint", "1h");
    let service = home.foreground();
    wait_written(home, expected);
    service.kill();
    tear(home);
    home.set("store.checkpoint", "100ms");
}

/// Every line below these directories, each file in the order of its partitions.
fn lines(home: &Home, dirs: &[&str]) -> Vec<String> {
    let files: Vec<_> = dirs.iter().flat_map(|dir| events::read(&home.path(dir))).collect();
    for file in &files {
        let mut last = std::collections::BTreeMap::new();
        for (partition, number) in file.lines.iter().map(|line| events::origin(line)) {
            let before = last.insert(partition, number);
            assert!(before < Some(number), "{}: {number} after {before:?} of partition {partition}", file.name);
        }
    }
    files.into_iter().flat_map(|file| file.lines).collect()
}

fn assert_same(what: &str, expected: impl IntoIterator<Item = String>, found: impl IntoIterator<Item = String>) {
    let sorted = |lines: Vec<String>| {
        let mut lines = lines;
        lines.sort();
        lines
    };
    let (expected, found) = (sorted(expected.into_iter().collect()), sorted(found.into_iter().collect()));
    events::assert_same(what, &expected, &found);
}

fn expected_lines(records: &[Record]) -> Vec<String> {
    oracle::expect(records).lines.into_values().flatten().collect()
}

fn by_origin(lines: Vec<String>) -> BTreeMap<(i32, u64), String> {
    let count = lines.len();
    let lines: BTreeMap<_, _> = lines.into_iter().map(|line| (events::origin(&line), line)).collect();
    assert_eq!(lines.len(), count, "no record has two lines");
    lines
}

/// What must become of all records: of those from `since` on as after the change.
struct Expected {
    before: Vec<String>,
    after: Vec<String>,
    written: u64,
    filtered: u64,
    queued: u64,
}

impl Expected {
    fn of(produced: &[Record], since: u64, case: &Change) -> Self {
        let sum = |counts: &[u64]| counts.iter().sum::<u64>();
        let (before, after) = produced.split_at(since as usize);
        let after: Vec<_> = after.iter().map(case.seen).collect();
        let [old, new] = [before, &after].map(|records| oracle::expect(records).counts);
        // Entries are tried again when what decides lines has changed.
        let is_entry = |record: &&Record| matches!(oracle::outcome(record), Outcome::Rejected(_));
        let tried = before.iter().filter(is_entry).map(|entry| oracle::outcome(&(case.seen)(entry)));
        let gone = tried.filter(|outcome| matches!(outcome, Outcome::Filtered(_))).count() as u64;
        Self {
            before: expected_lines(before),
            after: expected_lines(&after),
            written: old.written + new.written,
            filtered: sum(&old.filtered) + sum(&new.filtered) + gone,
            queued: sum(&old.rejected) + sum(&new.rejected) - gone,
        }
    }
}

/// Demands that a stopped home has each record once; those from `since` on as they become after the change.
fn assert_each_once(home: &Home, dirs: &[&str], produced: &[Record], since: u64, case: &Change) {
    let expected = Expected::of(produced, since, case);
    let is_old = |line: &String| events::origin(line).1 < since;
    let (old, new): (Vec<_>, Vec<_>) = lines(home, dirs).into_iter().partition(is_old);
    assert_same("lines of before the change", expected.before, old);
    let (after, new) = (by_origin(expected.after), by_origin(new));
    assert!(after.keys().eq(new.keys()), "records after the change: {:?} instead of {:?}", new.keys(), after.keys());
    for (before, found) in after.values().zip(new.values()) {
        assert!((case.is_line)(before, found), "{}: of {before} became {found}", case.what);
    }
    let counts = home.status().counts;
    let sum = |counts: &[u64]| counts.iter().sum::<u64>();
    assert_eq!(counts.consumed, produced.len() as u64);
    assert_eq!(counts.written, expected.written);
    assert_eq!(sum(&counts.filtered), expected.filtered);
    assert_eq!(counts.consumed + counts.retried, counts.written + sum(&counts.filtered) + sum(&counts.rejected));
    assert_eq!(home.integer("failure_queue_count"), expected.queued as i64);
    for dir in dirs {
        assert_eq!(events::hidden(&home.path(dir)), Vec::<std::path::PathBuf>::new());
    }
}

/// From which record on they are taken as after the change: what no reader has seen and no checkpoint covers is read again
/// after a crash, as the configuration says by then.
fn unchanged(home: &Home) -> u64 {
    let text = fs::read_to_string(home.path("config/mtga.local.yml")).expect("a file");
    if text.contains("sealed") { PART } else { 2 * PART }
}

/// Produces what comes after a change, and has it read to the end.
fn go_on(home: &Home, topic: &Topic, produced: &mut Vec<Record>, since: u64, case: &Change) {
    let first = produced.len() as u64;
    let later: Vec<_> = (first..first + PART).map(|n| (case.sent)(Mix::Dirty.record(n, topic.partitions))).collect();
    topic.produce(Codec::Snappy, &later);
    produced.extend(later);
    let queued = Expected::of(produced, since, case).queued;
    let service = home.foreground();
    home.wait_done(produced);
    wait_until("entries were tried again", SOON, || {
        let found = home.try_status()?.failure_queue_records;
        holds(found == queued, (found, queued))
    });
    service.terminate();
}

/// A change after a crash, in a home of its own.
fn survive(before: fn(&mut Home), case: &Change) {
    let topic = Topic::create("changed", 2);
    let (mut home, mut produced) = torn(&topic, |home| {
        before(home);
        (case.before)(home);
    });
    let since = unchanged(&home);
    (case.make)(&mut home);
    go_on(&home, &topic, &mut produced, since, case);
    assert_each_once(&home, &["data"], &produced, since, case);
}

/// Changes that decide no line, one after the other in one home, each after a crash of its own.
fn survive_all(before: fn(&mut Home), cases: &[Change]) {
    let topic = Topic::create("changing", 2);
    let mut home = Home::new(&topic);
    home.set("sink.rotate", json!({"size": "1MiB", "age": "1h", "idle": "1h"}));
    before(&mut home);
    let mut produced = Vec::new();
    for case in cases {
        produced.extend(topic.fill(Codec::Snappy, Mix::Dirty, produced.len() as u64, PART));
        die_writing(&mut home, &oracle::expect(&produced).counts);
        eprintln!("changed: {}", case.what);
        (case.make)(&mut home);
        let since = produced.len() as u64;
        go_on(&home, &topic, &mut produced, since, case);
        assert_each_once(&home, &["data"], &produced, since, case);
    }
}

fn set(home: &mut Home, key: &str, value: impl Into<serde_json::Value>) {
    home.set(key, value);
}

fn without_a_group(home: &mut Home) {
    home.set("kafka.assignment", "all");
}

fn in_group(home: &mut Home) {
    home.in_group();
}

fn sealed(home: &mut Home) {
    home.set("sink.visibility", "sealed");
}

fn sealed_in_group(home: &mut Home) {
    home.in_group().set("sink.visibility", "sealed");
}

const OTHER_FILTER: &str = "[\"tbllog_*\", \"log_pay\"]\n";

fn other_filter(home: &mut Home) {
    fs::write(home.path("settings/mthinkingdata:filter.24.json"), OTHER_FILTER).expect("a file");
}

/// A record of a log that the other filter drops, as one of a log that is dropped anyway.
fn by_other_filter(record: &Record) -> Record {
    edited(record, |text| text.replace(r#""log_name":"log_pay""#, r#""log_name":"tbllog_pay""#))
}

fn other_mapping(home: &mut Home) {
    let mapping = r##"[{"log_name": "log_pay", "event_name": "paid", "event_type": "track", "metadata": {
        "#account_id": {"field": "role_id", "default": ""}, "#time": {"field": "mtime", "default": ""}}}]"##;
    map(home, mapping);
}

/// The settings of an app, copied to a directory.
fn copy_settings(home: &Home, to: &str, app: u64) {
    fs::create_dir_all(home.path(to)).expect("a directory");
    for kind in ["filter", "metadata"] {
        let from = home.path(format!("settings/mthinkingdata:{kind}.24.json"));
        fs::copy(from, home.path(format!("{to}/mthinkingdata:{kind}.{app}.json"))).expect("a file");
    }
}

fn moved_settings(home: &mut Home) {
    copy_settings(home, "elsewhere", 24);
    fs::write(home.path("elsewhere/mthinkingdata:filter.24.json"), OTHER_FILTER).expect("a file");
    home.set("settings", "elsewhere");
}

fn moved_store(home: &mut Home) {
    fs::rename(home.path("tmp/store"), home.path("tmp/elsewhere")).expect("the store");
    home.set("store.path", "tmp/elsewhere");
}

fn moved_app(home: &mut Home) {
    copy_settings(home, "settings", 25);
    home.set("app_id", 25);
}

/// A record with another text, if it has any.
fn edited(record: &Record, edit: impl Fn(&str) -> String) -> Record {
    let edited = record.value.as_ref().map(|value| match std::str::from_utf8(value) {
        Ok(text) => edit(text).into_bytes(),
        Err(_) => value.clone(),
    });
    Record { value: edited, ..record.clone() }
}

/// The oracle knows one app: records of that are those of the other one, and the other way round.
fn of_other_app(record: &Record) -> Record {
    let app = Regex::new(r#"("app_id":"?)(24|25)\b"#).expect("a pattern");
    edited(record, |text| {
        let other = |found: &Captures<'_>| format!("{}{}", &found[1], if &found[2] == "24" { "25" } else { "24" });
        app.replace_all(text, other).into_owned()
    })
}

fn packed(record: Record) -> Record {
    Record { value: record.value.map(|value| Wrapping::Gzip.wrap(&value)), ..record }
}

/// A record as a service sees it that expects gzip: what is not packed is no JSON.
fn unpacked(record: &Record) -> Record {
    let value = record.value.as_ref().map(|value| {
        let mut text = Vec::new();
        match flate2::read::GzDecoder::new(&value[..]).read_to_end(&mut text) {
            Ok(_) => text,
            Err(_) => b"not packed".to_vec(),
        }
    });
    Record { value, ..record.clone() }
}

/// A record with a property that strict validation refuses, as one that is refused anyway.
fn by_strict_rules(record: &Record) -> Record {
    edited(record, |text| {
        let logs = text.rfind(r#""logs""#).map_or("", |at| &text[at..]);
        if logs.contains("null") || logs.contains("1e400") { "refused".to_owned() } else { text.to_owned() }
    })
}

/// A line whose time is text without a zone is the same in every zone.
fn has_other_time(before: &str, found: &str) -> bool {
    (found == before) == before.contains(r#""mtime":"2020-12-17 "#)
}

fn has_uuid(before: &str, found: &str) -> bool {
    let (start, rest) = found.split_once(r##""#uuid":""##).unwrap_or_default();
    let end = rest.split_once("\",").unwrap_or_default().1;
    format!("{start}{end}") == before
}

fn is_paid(before: &str, found: &str) -> bool {
    if before.contains(r##""#event_name":"t_log_pay""##) {
        found.contains(r##""#event_name":"paid""##)
    } else {
        found == before
    }
}

/// What decides a line, each with records of which that shows.
const DECIDING: [Change; 9] = [
    Change {
        is_line: has_other_time,
        ..change("time_zone", &["time_zone"], |home| set(home, "time_zone", "Asia/Tokyo"))
    },
    Change {
        before: |home| home.with_tzdata("2099a"),
        is_line: has_other_time,
        ..change("the host's tzdata", &[], |home| home.with_tzdata("2099b"))
    },
    Change { seen: by_other_filter, ..change("filter", &[], other_filter) },
    Change { is_line: is_paid, ..change("metadata", &[], other_mapping) },
    Change { seen: by_other_filter, ..change("settings", &["settings"], moved_settings) },
    Change { is_line: has_uuid, ..change("uuid", &["uuid"], |home| set(home, "uuid", true)) },
    Change { seen: by_strict_rules, ..change("validation", &["validation"], |home| set(home, "validation", "strict")) },
    Change { sent: |record| of_other_app(&record), seen: of_other_app, ..change("app_id", &["app_id"], moved_app) },
    Change {
        before: |home| set(home, "kafka.payload", "none"),
        sent: packed,
        seen: unpacked,
        ..change("kafka.payload", &["kafka.payload"], |home| set(home, "kafka.payload", "gzip"))
    },
];

/// What decides how lines are written and where, but not which.
const OF_FILES: [Change; 5] = [
    change("sink.file", &["sink.file"], |home| set(home, "sink.file", "p{partition}/later.{seq}.log")),
    change("sink.batch", &["sink.batch.lines", "sink.batch.bytes", "sink.batch.linger"], |home| {
        set(home, "sink.batch", json!({"lines": 7, "bytes": "2KiB", "linger": "10ms"}));
    }),
    change("sink.fsync, sink.mode", &["sink.fsync", "sink.mode"], |home| {
        set(home, "sink.fsync", false);
        set(home, "sink.mode", "stream");
    }),
    change("open files", &["sink.max_open_files", "sink.permissions"], |home| {
        set(home, "sink.max_open_files", 1);
        set(home, "sink.permissions", "0600");
    }),
    change("sink.rotate", &["sink.rotate.size", "sink.rotate.age", "sink.rotate.idle"], |home| {
        set(home, "sink.rotate", json!({"size": "8KiB", "age": "2h", "idle": "2h"}));
    }),
];

/// Where records come from, and who we are there.
const OF_KAFKA: [Change; 4] = [
    change("where a topic starts", &["kafka.start", "kafka.out_of_range"], |home| {
        set(home, "kafka.start", "latest");
        set(home, "kafka.out_of_range", "latest");
    }),
    change("isolation.level", &["kafka.librdkafka"], |home| {
        set(home, "kafka.librdkafka", json!({"isolation.level": "read_uncommitted", "session.timeout.ms": "6000"}));
    }),
    change("kafka.group_id", &["kafka.group_id"], |home| {
        let id = format!("later_{}", home.path("").display()).replace('/', "_");
        set(home, "kafka.group_id", id);
    }),
    change("kafka.instance_id", &["kafka.instance_id"], |home| set(home, "kafka.instance_id", "two")),
];

/// What is kept, and how much is used for it.
const OF_STORE: [Change; 4] = [
    change("memory, workers", &["memory", "workers"], |home| {
        set(home, "memory", "16MiB");
        set(home, "workers", 3);
    }),
    change("store.history", &["store.history", "store.history_bytes"], |home| {
        set(home, "store.history", "0s");
        set(home, "store.history_bytes", "1MiB");
    }),
    change(
        "failure_queue",
        &[
            "failure_queue.max_attempts",
            "failure_queue.backoff.from",
            "failure_queue.backoff.to",
            "failure_queue.max_bytes",
            "failure_queue.when_full",
        ],
        |home| {
            let backoff = json!({"from": "100ms", "to": "200ms"});
            let queue = json!({"max_attempts": 1, "backoff": backoff, "max_bytes": "1MiB", "when_full": "drop_oldest"});
            set(home, "failure_queue", queue);
        },
    ),
    change("store.path, log.dir", &["store.path", "log.dir"], |home| {
        moved_store(home);
        set(home, "log.dir", "tmp/logs");
    }),
];

/// Keys that other tests change after a crash.
const ELSEWHERE: [(&str, fn()); 6] = [
    ("kafka.topics", a_topic_that_is_taken_out_after_a_crash_is_complete_and_goes_on_when_it_is_back),
    ("kafka.assignment", a_kind_that_changes_after_a_crash_loses_and_repeats_nothing),
    ("sink.visibility", a_kind_that_changes_after_a_crash_loses_and_repeats_nothing),
    ("sink.compression", a_kind_that_changes_after_a_crash_loses_and_repeats_nothing),
    ("sink.dir", another_event_directory_after_a_crash_is_refused_until_the_old_one_is_complete),
    // Between the two parts of a torn home, and behind them.
    ("store.checkpoint", a_key_that_changes_after_a_crash_loses_and_repeats_nothing),
];

/// Keys, or sections of them, that can change nothing of what a crash left.
const WITHOUT_EFFECT: [(&str, &str); 6] = [
    ("kafka.brokers", "where to ask first: who has the records is told by the ids of their topics"),
    ("rpc", "how commands reach the service, which has nothing to do with records"),
    ("sink.keep", "refused by this version"),
    ("http", "not used by this version"),
    ("reporter", "not used by this version"),
    ("log", "what is logged, and for how long; but for log.dir, which is made beside the event files"),
];

fn assert_survived<'a>(before: fn(&mut Home), cases: impl IntoIterator<Item = &'a Change>) {
    let cases: Vec<_> = cases.into_iter().collect();
    for_each(BESIDE, &cases, |case| survive(before, case));
}

/// Every change that a crash may lie before.
fn assert_survives_each(before: fn(&mut Home)) {
    #[derive(Debug)]
    enum Case {
        Alone(&'static Change),
        InTurn(&'static [Change]),
    }
    let mut cases = vec![Case::InTurn(&OF_FILES), Case::InTurn(&OF_KAFKA), Case::InTurn(&OF_STORE)];
    cases.extend(DECIDING.iter().map(Case::Alone));
    for_each(BESIDE, &cases, |case| match case {
        Case::Alone(change) => survive(before, change),
        Case::InTurn(changes) => survive_all(before, changes),
    });
}

/// The paths of all keys, by `mtga config`, which prints them as YAML.
fn keys() -> Vec<String> {
    let text = Home::new(&Topic::unmade("keys", 1)).mtga(["config"]).success();
    let (mut keys, mut sections) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let (name, value) = line.trim_start().split_once(':').expect("a key");
        sections.truncate((line.len() - line.trim_start().len()) / 2);
        sections.push(name);
        if !value.is_empty() {
            keys.push(sections.join("."));
        }
    }
    keys
}

#[test]
fn every_key_changes_after_a_crash_in_some_test_or_has_no_effect() {
    let changed = [&DECIDING[..], &OF_FILES, &OF_KAFKA, &OF_STORE].into_iter().flatten().flat_map(|case| case.keys);
    let tested: Vec<_> = changed.copied().chain(ELSEWHERE.iter().map(|(key, _)| *key)).collect();
    let keys = keys();
    for key in &keys {
        let times = tested.iter().filter(|tested| *tested == key).count();
        let has_none = |(section, _): &&(&str, &str)| format!("{key}.").starts_with(&format!("{section}."));
        let skipped = WITHOUT_EFFECT.iter().find(has_none);
        let well = times == 1 || (times == 0 && skipped.is_some());
        assert!(well, "{key} changes in {times} tests; without effect: {skipped:?}");
    }
    for tested in tested {
        assert!(keys.iter().any(|key| key == tested), "{tested} is no key");
    }
}

#[test]
fn a_key_that_changes_after_a_crash_loses_and_repeats_nothing() {
    assert_survives_each(without_a_group);
}

#[test]
fn a_key_that_changes_after_a_crash_in_a_group_loses_and_repeats_nothing() {
    assert_survives_each(in_group);
}

#[test]
fn a_key_that_changes_after_a_crash_with_hidden_files_loses_and_repeats_nothing() {
    assert_survives_each(sealed);
}

#[test]
fn a_key_that_changes_after_a_crash_with_hidden_files_in_a_group_loses_and_repeats_nothing() {
    assert_survives_each(sealed_in_group);
}

#[test]
fn a_kind_that_changes_after_a_crash_loses_and_repeats_nothing() {
    let cases = [
        change("live, into a group", &[], in_group),
        Change { before: in_group, ..change("live, out of a group", &[], without_a_group) },
        change("live to sealed", &[], sealed),
        Change { before: in_group, ..change("live to sealed in a group", &[], sealed) },
        Change { before: sealed, ..change("sealed to live", &[], |home| set(home, "sink.visibility", "live")) },
        Change { before: sealed, ..change("sealed, compression", &[], |home| set(home, "sink.compression", "zstd")) },
    ];
    assert_survived(|_| (), &cases);
}

#[test]
fn another_event_directory_after_a_crash_is_refused_until_the_old_one_is_complete() {
    let cases: [Kind; 2] = [("live", without_a_group), ("live in a group", in_group)];
    for_each(BESIDE, &cases, |(_, before)| {
        let topic = Topic::create("changeddir", 2);
        let (mut home, mut produced) = torn(&topic, before);
        produced.extend(topic.fill(Codec::Snappy, Mix::Dirty, 2 * PART, PART));
        home.set("sink.dir", "other");
        let service = home.foreground();
        home.wait_for(State::Paused);
        let reason = home.status().reason.unwrap_or_default();
        assert!(reason.contains("if sink.dir was changed, start and stop once with the old one"), "{reason}");
        service.terminate();
        home.set("sink.dir", "data");
        let service = home.foreground();
        home.wait_done(&produced);
        service.terminate();
        home.set("sink.dir", "other");
        produced.extend(topic.fill(Codec::Snappy, Mix::Dirty, 3 * PART, PART));
        let service = home.foreground();
        home.wait_done(&produced);
        service.terminate();
        assert_each_once(&home, &["data", "other"], &produced, 4 * PART, &NONE);
        assert!(!home.events().is_empty() && !events::read(&home.path("other")).is_empty());
    });
}

#[test]
fn another_event_directory_after_a_crash_with_hidden_lines_gets_their_records() {
    let cases: [Kind; 2] = [("sealed", sealed), ("sealed in a group", sealed_in_group)];
    for_each(BESIDE, &cases, |(_, before)| {
        let topic = Topic::create("changeddir", 2);
        let (mut home, mut produced) = torn(&topic, before);
        produced.extend(topic.fill(Codec::Snappy, Mix::Dirty, 2 * PART, PART));
        home.set("sink.dir", "other");
        let service = home.foreground();
        home.wait_done(&produced);
        service.terminate();
        assert_each_once(&home, &["other"], &produced, 3 * PART, &NONE);
        assert!(home.events().is_empty(), "what is hidden in the old directory stays hidden");
    });
}

#[test]
fn a_topic_that_is_taken_out_after_a_crash_is_complete_and_goes_on_when_it_is_back() {
    let (topic, added) = (Topic::create("takenout", 2), Topic::create("added", 2));
    let (mut home, torn) = torn(&topic, without_a_group);
    let later = topic.fill(Codec::Snappy, Mix::Dirty, 2 * PART, PART);
    let others = added.fill(Codec::Snappy, Mix::Dirty, 3 * PART, PART);
    let both = vec![topic.name.clone(), added.name.clone()];
    let rounds = [(vec![added.name], [torn.clone(), others.clone()].concat()), (both, [torn, later, others].concat())];
    for (topics, produced) in rounds {
        home.set("kafka.topics", topics);
        let service = home.foreground();
        home.wait_done(&produced);
        service.terminate();
        assert_same("all lines", expected_lines(&produced), lines(&home, &["data"]));
        assert_eq!(home.status().counts.consumed, produced.len() as u64);
    }
}

/// A record without ids under the built-in mapping; its name is in `nick`.
pub(crate) fn nameless(n: u64) -> Record {
    let text = format!(
        r#"{{"headers":{{"app_id":24,"log_name":"log_chat"}},"logs":{{"sn":"0-{n}","nick":"p{n}","mtime":1608184243}}}}"#
    );
    Record { partition: 0, key: None, value: Some(text.into_bytes()), timestamp: 1_700_000_000_000 }
}

pub(crate) fn broken(n: u64) -> Record {
    Record { value: Some(format!("{{broken {n}").into_bytes()), ..nameless(n) }
}

pub(crate) const MENDED: &str = r##"[{"log_name": "log_chat", "event_name": "t_{log_name}", "event_type": "track", "metadata": {
    "#account_id": {"field": "nick", "default": ""}, "#time": {"field": "mtime", "default": ""}}}]"##;

pub(crate) fn map(home: &Home, mapping: &str) {
    fs::write(home.path("settings/mthinkingdata:metadata.24.json"), mapping).expect("a file");
}

/// Runs a command that is killed at this place.
fn command_killed_at(home: &Home, point: &str, args: &[&str]) {
    let status = home.command().args(args).env("FAULT_POINT", point).status().expect("it runs");
    assert_eq!(status.signal(), Some(9), "{args:?} comes to {point}: {status}");
}

/// Waits until so many records were consumed and so many entries are left.
fn wait_settled(home: &Home, consumed: u64, left: u64) {
    wait_until(&format!("{consumed} records and {left} entries"), SOON, || {
        let status = home.try_status()?;
        let counts = (status.counts.consumed, status.failure_queue_records, status.counts.in_flight);
        holds(status.state == State::Consuming && counts == (consumed, left, 0), status)
    });
}

/// Demands one line of each of these, and no other.
fn assert_numbers(home: &Home, numbers: impl Iterator<Item = u64>) {
    let mut found: Vec<_> =
        home.events().iter().flat_map(|file| &file.lines).map(|line| events::origin(line).1).collect();
    found.sort_unstable();
    assert_eq!(found, numbers.collect::<Vec<_>>());
}

#[test]
fn a_retry_that_is_interrupted_at_each_step_and_repeated_after_a_start_makes_one_line_of_each_entry() {
    let topic = Topic::create("seqretry", 1);
    let mut home = Home::new(&topic);
    home.set("store.checkpoint", "100ms");
    let mut count = 0;
    let produce =
        |from: u64, more: u64| topic.produce(Codec::None, &(from..from + more).map(nameless).collect::<Vec<_>>());
    for point in ["journal.named", "start.applied", "queue_framed", "queue_written", "queue_checkpointed"] {
        map(&home, "[]");
        produce(count, 20);
        home.start();
        wait_settled(&home, count + 20, 20);
        home.stop();
        map(&home, MENDED);
        command_killed_at(&home, point, &["retry_failure_queue"]);
        produce(count + 20, 10);
        home.start();
        // Other settings than the entries failed with: the service tries them by itself.
        wait_settled(&home, count + 30, 0);
        home.stop();
        home.mtga(["retry_failure_queue"]).success();
        count += 30;
        assert_numbers(&home, 0..count);
    }
}

#[test]
fn a_removal_that_is_interrupted_at_each_step_and_repeated_after_a_start_counts_each_entry_once() {
    let topic = Topic::create("seqclear", 1);
    let mut home = Home::new(&topic);
    home.set("store.checkpoint", "100ms");
    let (mut count, mut left) = (0, 0);
    for (point, removed) in
        [("journal.named", false), ("start.applied", false), ("queue_exported", false), ("queue_removed", true)]
    {
        let mut exported = BTreeSet::new();
        let read = |path: std::path::PathBuf, exported: &mut BTreeSet<String>| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let offset =
                |line: &str| serde_json::from_str::<serde_json::Value>(line).expect("JSON")["offset"].to_string();
            exported.extend(text.lines().map(offset));
        };
        for attempt in 0..2 {
            topic.produce(Codec::None, &(count..count + 10).map(broken).collect::<Vec<_>>());
            (count, left) = (count + 10, left + 10);
            home.start();
            wait_settled(&home, count, left);
            home.stop();
            let export = home.path(format!("{point}.{attempt}.jsonl"));
            let args = ["clear_failure_queue", "--export", export.to_str().expect("a path")];
            if attempt == 0 {
                command_killed_at(&home, point, &args);
                left = if removed { 0 } else { left };
            } else {
                assert_eq!(home.mtga(args).success(), left.to_string());
                left = 0;
            }
            read(export, &mut exported);
        }
        assert_eq!(exported.len(), 20, "{point}: each is in a file");
        assert_eq!(home.integer("failure_queue_count"), 0);
        assert_eq!(home.status().counts.rejected.iter().sum::<u64>(), count);
    }
}

#[test]
fn a_restart_whose_new_service_dies_at_each_step_and_is_repeated_loses_and_repeats_nothing() {
    let topic = Topic::create("seqrestart", 2);
    let home = Home::new(&topic);
    let mut produced = Vec::new();
    let points = [
        "run.locked",
        "start.recovered",
        "journal.begun",
        "journal.named",
        "start.begun",
        "start.applied",
        "start.noted",
    ];
    home.start();
    for point in points {
        produced.extend(topic.fill(Codec::Snappy, Mix::Dirty, produced.len() as u64, 50));
        Finished::run(home.command().arg("restart").env("FAULT_POINT", point), SOON);
        produced.extend(topic.fill(Codec::Snappy, Mix::Dirty, produced.len() as u64, 50));
        home.mtga(["status"]).code(3);
        home.start();
        home.mtga(["restart"]).success();
    }
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    home.stop();
}
