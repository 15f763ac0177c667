//! Things that happen one after the other: a configuration that changes between a crash and the next start, and commands that
//! are interrupted, with a start and new records before they are repeated.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;

use mtga::control::State;
use mtga::msource::journal;
use serde_json::json;

use crate::harness::process::Finished;
use crate::harness::{Codec, Home, Mix, Record, SOON, Topic, events, holds, oracle, wait_until};

/// How many cases run beside each other: most of their time they wait.
const BESIDE: usize = 4;

/// Runs every case, and fails with the names of those that failed.
fn for_each<T: Sync>(cases: &[T], name: impl Fn(&T) -> String + Sync, run: impl Fn(&T) + Sync) {
    let (next, failed) = (Mutex::new(cases.iter()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..BESIDE {
            scope.spawn(|| {
                while let Some(case) = { next.lock().expect("no panic").next() } {
                    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(case))) {
                        eprintln!("failed: {}", name(case));
                        failed.lock().expect("no panic").push((name(case), panic));
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().expect("no panic");
    let names: Vec<_> = failed.iter().map(|(name, _)| name.clone()).collect();
    if let Some((_, panic)) = failed.pop() {
        eprintln!("failed: {names:?}");
        resume_unwind(panic);
    }
}

/// What becomes of the records that come after the change.
#[derive(Clone, Copy, Debug)]
enum Later {
    /// The lines that they would have become before.
    Same,
    /// One line each, which is another one.
    Other,
    /// Those of this log are filtered, the others become the lines that they would have become before.
    Without(&'static str),
}

/// How a home is before a crash, and what that is called.
type Kind = (&'static str, fn(&mut Home));

/// A change of the configuration between a crash and the next start.
struct Change {
    what: &'static str,
    before: fn(&mut Home),
    make: fn(&mut Home),
    later: Later,
}

const fn change(what: &'static str, make: fn(&mut Home)) -> Change {
    Change { what, before: |_| (), make, later: Later::Same }
}

/// How many records there are in each part: what a checkpoint covers, what is torn, and what comes after the change.
const PART: u64 = 80;

/// Cuts the last event file, hidden or not, in the middle of a line: what a kill in the middle of a write leaves.
fn tear(home: &Home) {
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
    let mut produced = Vec::new();
    for (part, checkpoint) in [(0, "100ms"), (1, "1h")] {
        home.set("store.checkpoint", checkpoint);
        produced.extend(topic.fill(Codec::Snappy, Mix::Dirty, part * PART, PART));
        let service = home.foreground();
        let expected = oracle::expect(&produced).counts;
        wait_until("everything is written", SOON, || {
            let counts = home.try_status()?.counts;
            holds((counts.written, counts.rejected) == (expected.written, expected.rejected), counts)
        });
        if part == 0 {
            wait_until("a checkpoint covers everything", SOON, || {
                let state = journal::read(&home.path("tmp/store/journal")).map_err(|error| error.to_string())?.state;
                let consumed = state.map_or(0, |state| state.totals.consumed);
                holds(consumed == expected.consumed, consumed)
            });
        }
        service.kill();
    }
    tear(&home);
    home.set("store.checkpoint", "100ms");
    (home, produced)
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

/// Demands that a stopped home has each record once; those from `since` on as they become after the change.
fn assert_each_once(home: &Home, dirs: &[&str], produced: &[Record], since: u64, later: Later) {
    let is_old = |line: &String| events::origin(line).1 < since;
    let (old, new): (Vec<_>, Vec<_>) = lines(home, dirs).into_iter().partition(is_old);
    let (before, after) = produced.split_at(since as usize);
    assert_same("lines of before the change", expected_lines(before), old);
    let mut after = expected_lines(after);
    let all = after.len() as u64;
    if let Later::Without(name) = later {
        after.retain(|line| !line.contains(&format!(r##""#event_name":"t_{name}""##)));
        assert!((after.len() as u64) < all);
    }
    let dropped = all - after.len() as u64;
    if let Later::Other = later {
        let (known, found): (BTreeSet<_>, BTreeSet<_>) = (after.iter().collect(), new.iter().collect());
        assert!(known.intersection(&found).count() < known.len(), "the change is in force");
        let origins =
            |lines: &[String]| lines.iter().map(|line| format!("{:?}", events::origin(line))).collect::<Vec<_>>();
        assert_same("records after the change", origins(&after), origins(&new));
    } else {
        assert_same("lines after the change", after, new);
    }
    let (counts, expected) = (home.status().counts, oracle::expect(produced).counts);
    let sum = |counts: &[u64]| counts.iter().sum::<u64>();
    assert_eq!(counts.consumed, expected.consumed);
    assert_eq!(counts.written, expected.written - dropped);
    assert_eq!(sum(&counts.filtered), sum(&expected.filtered) + dropped);
    assert_eq!(counts.consumed + counts.retried, counts.written + sum(&counts.filtered) + sum(&counts.rejected));
    assert_eq!(home.integer("failure_queue_count"), sum(&expected.rejected) as i64);
    for dir in dirs {
        assert_eq!(events::hidden(&home.path(dir)), Vec::<std::path::PathBuf>::new());
    }
}

/// What no reader has seen and no checkpoint covers is read again after a crash, as the configuration says by then.
fn unchanged(home: &Home) -> u64 {
    let text = fs::read_to_string(home.path("config/mtga.local.yml")).expect("a file");
    if text.contains("sealed") { PART } else { 2 * PART }
}

fn survive(before: fn(&mut Home), case: &Change) {
    let topic = Topic::create("changed", 2);
    let (mut home, mut produced) = torn(&topic, |home| {
        before(home);
        (case.before)(home);
    });
    let since = unchanged(&home);
    (case.make)(&mut home);
    produced.extend(topic.fill(Codec::Snappy, Mix::Dirty, 2 * PART, PART));
    let service = home.foreground();
    home.wait_done(&produced);
    service.terminate();
    assert_each_once(&home, &["data"], &produced, since, case.later);
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

fn other_filter(home: &mut Home) {
    fs::write(home.path("settings/mthinkingdata:filter.24.json"), "[\"tbllog_*\", \"log_pay\"]\n").expect("a file");
}

fn other_mapping(home: &mut Home) {
    let mapping = r##"[{"log_name": "log_pay", "event_name": "paid", "event_type": "track", "metadata": {
        "#account_id": {"field": "role_id", "default": ""}, "#time": {"field": "mtime", "default": ""}}}]"##;
    fs::write(home.path("settings/mthinkingdata:metadata.24.json"), mapping).expect("a file");
}

fn moved_store(home: &mut Home) {
    fs::rename(home.path("tmp/store"), home.path("tmp/elsewhere")).expect("the store");
    home.set("store.path", "tmp/elsewhere");
}

/// Keys that mean the same for every kind of file.
const OF_ALL: [Change; 15] = [
    change("sink.file", |home| set(home, "sink.file", "p{partition}/later.{seq}.log")),
    change("sink.fsync", |home| set(home, "sink.fsync", false)),
    change("sink.batch", |home| set(home, "sink.batch", json!({"lines": 7, "linger": "10ms"}))),
    change("sink.mode", |home| set(home, "sink.mode", "stream")),
    change("memory", |home| set(home, "memory", "16MiB")),
    change("workers", |home| set(home, "workers", 3)),
    change("log.dir", |home| set(home, "log.dir", "tmp/logs")),
    change("kafka.start", |home| set(home, "kafka.start", "latest")),
    change("kafka.group_id", |home| {
        let id = format!("later_{}", home.path("").display()).replace('/', "_");
        set(home, "kafka.group_id", id);
    }),
    change("isolation.level", |home| {
        set(home, "kafka.librdkafka", json!({"isolation.level": "read_uncommitted", "session.timeout.ms": "6000"}));
    }),
    change("store.path", moved_store),
    Change { later: Later::Other, ..change("time_zone", |home| set(home, "time_zone", "Asia/Tokyo")) },
    Change {
        before: |home| home.with_tzdata("2099a"),
        later: Later::Other,
        ..change("the host's tzdata", |home| home.with_tzdata("2099b"))
    },
    Change { later: Later::Without("log_pay"), ..change("filter", other_filter) },
    Change { later: Later::Other, ..change("metadata", other_mapping) },
];

/// Those of them that could mean something else in a group, or for hidden files.
const OF_OTHERS: [&str; 6] = ["sink.file", "kafka.start", "kafka.group_id", "isolation.level", "store.path", "filter"];

fn assert_survived<'a>(before: fn(&mut Home), cases: impl IntoIterator<Item = &'a Change>) {
    let cases: Vec<_> = cases.into_iter().collect();
    for_each(&cases, |case| case.what.to_owned(), |case| survive(before, case));
}

fn assert_survived_by_others(before: fn(&mut Home)) {
    assert_survived(before, OF_ALL.iter().filter(|case| OF_OTHERS.contains(&case.what)));
}

#[test]
fn a_key_that_changes_after_a_crash_loses_and_repeats_nothing() {
    assert_survived(without_a_group, &OF_ALL);
}

#[test]
fn a_key_that_changes_after_a_crash_in_a_group_loses_and_repeats_nothing() {
    assert_survived_by_others(in_group);
}

#[test]
fn a_key_that_changes_after_a_crash_with_hidden_files_loses_and_repeats_nothing() {
    assert_survived_by_others(sealed);
}

#[test]
fn a_key_that_changes_after_a_crash_with_hidden_files_in_a_group_loses_and_repeats_nothing() {
    assert_survived_by_others(sealed_in_group);
}

#[test]
fn a_kind_that_changes_after_a_crash_loses_and_repeats_nothing() {
    let cases = [
        change("live, into a group", in_group),
        Change { before: in_group, ..change("live, out of a group", without_a_group) },
        change("live to sealed", sealed),
        Change { before: in_group, ..change("live to sealed in a group", sealed) },
        Change { before: sealed, ..change("sealed to live", |home| set(home, "sink.visibility", "live")) },
        Change { before: sealed, ..change("sealed, compression", |home| set(home, "sink.compression", "zstd")) },
    ];
    assert_survived(|_| (), &cases);
}

#[test]
fn another_event_directory_after_a_crash_is_refused_until_the_old_one_is_complete() {
    let cases: [Kind; 2] = [("live", without_a_group), ("live in a group", in_group)];
    for_each(
        &cases,
        |(what, _)| (*what).to_owned(),
        |(_, before)| {
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
            assert_each_once(&home, &["data", "other"], &produced, 4 * PART, Later::Same);
            assert!(!home.events().is_empty() && !events::read(&home.path("other")).is_empty());
        },
    );
}

#[test]
fn another_event_directory_after_a_crash_with_hidden_lines_gets_their_records() {
    let cases: [Kind; 2] = [("sealed", sealed), ("sealed in a group", sealed_in_group)];
    for_each(
        &cases,
        |(what, _)| (*what).to_owned(),
        |(_, before)| {
            let topic = Topic::create("changeddir", 2);
            let (mut home, mut produced) = torn(&topic, before);
            produced.extend(topic.fill(Codec::Snappy, Mix::Dirty, 2 * PART, PART));
            home.set("sink.dir", "other");
            let service = home.foreground();
            home.wait_done(&produced);
            service.terminate();
            assert_each_once(&home, &["other"], &produced, 3 * PART, Later::Same);
            assert!(home.events().is_empty(), "what is hidden in the old directory stays hidden");
        },
    );
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
fn nameless(n: u64) -> Record {
    let text = format!(
        r#"{{"headers":{{"app_id":24,"log_name":"log_chat"}},"logs":{{"sn":"0-{n}","nick":"p{n}","mtime":1608184243}}}}"#
    );
    Record { partition: 0, key: None, value: Some(text.into_bytes()), timestamp: 1_700_000_000_000 }
}

fn broken(n: u64) -> Record {
    Record { value: Some(format!("{{broken {n}").into_bytes()), ..nameless(n) }
}

const MENDED: &str = r##"[{"log_name": "log_chat", "event_name": "t_{log_name}", "event_type": "track", "metadata": {
    "#account_id": {"field": "nick", "default": ""}, "#time": {"field": "mtime", "default": ""}}}]"##;

fn map(home: &Home, mapping: &str) {
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
