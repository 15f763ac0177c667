//! Hidden files through changes of the configuration, and the failure queue beside them.

use std::fs;
use std::path::PathBuf;

use mtga::control::{Counts, State};
use mtga::msource::journal;
use serde_json::{Value, json};

use crate::harness::{Codec, Home, Mix, Record, SOON, Topic, events, holds, oracle, wait_until};

fn rotate(home: &mut Home, age: &str, idle: &str) {
    home.set("sink.rotate", json!({"size": "1MiB", "age": age, "idle": idle}));
}

/// A sealed home that publishes only when it is told to stop.
fn sealed(topic: &Topic) -> Home {
    let mut home = Home::new(topic);
    home.set("sink.visibility", "sealed").set("store.checkpoint", "100ms");
    rotate(&mut home, "1h", "1h");
    home
}

/// Waits until a checkpoint covers everything that was produced.
fn wait_durable(home: &Home, produced: &[Record]) {
    wait_until("a checkpoint covers everything", SOON, || {
        let state = journal::read(&home.path("tmp/store/journal")).map_err(|error| error.to_string())?.state;
        let consumed = state.map_or(0, |state| state.totals.consumed);
        holds(consumed == produced.len() as u64, consumed)
    });
}

/// Publishes what is left, and demands that every record is there once.
fn assert_published(home: &Home, produced: &[Record]) {
    let service = home.foreground();
    home.wait_done(produced);
    // Other settings try the failure queue again, so what was tried is not counted.
    let (counts, expected) = (home.status().counts, oracle::expect(produced));
    let of = |counts: &Counts| (counts.consumed, counts.written, counts.filtered);
    assert_eq!(of(&counts), of(&expected.counts));
    service.terminate();
    assert_eq!(home.integer("failure_queue_count"), expected.counts.rejected.iter().sum::<u64>() as i64);
    assert_eq!(events::hidden(&home.path("data")), Vec::<PathBuf>::new());
    events::assert_exactly(&expected.lines, &home.events());
}

/// How a run ends.
#[derive(Clone, Copy, Debug)]
enum End {
    /// With hidden growth, all of it durable.
    Grown,
    /// With a range that was prepared and not committed.
    Prepared,
    /// With one that was committed and not published.
    Committed,
    Stop,
}

/// Runs a home once for each change, each time with something new to read.
fn assert_changes_are_survived(assignments: [&str; 2], changes: &[(End, &[(&str, &str)])]) -> Home {
    let topic = Topic::create("change", 2);
    let mut home = sealed(&topic);
    let mut produced = Vec::new();
    for (round, (end, change)) in changes.iter().enumerate() {
        if assignments[round % 2] == "group" {
            home.in_group();
        } else {
            home.set("kafka.assignment", "all");
        }
        for (key, value) in *change {
            home.set(key, *value);
        }
        produced.extend(topic.fill(Codec::Snappy, Mix::Dirty, produced.len() as u64, 150));
        let point = match end {
            End::Prepared => "seal.prepared",
            End::Committed => "publish.begin",
            End::Grown | End::Stop => "",
        };
        if point.is_empty() {
            let service = home.foreground();
            home.wait_done(&produced);
            wait_durable(&home, &produced);
            if let End::Stop = end { service.terminate() } else { service.kill() }
        } else {
            rotate(&mut home, "1s", "200ms");
            home.killed_at(point);
            rotate(&mut home, "1h", "1h");
        }
    }
    assert_published(&home, &produced);
    home
}

/// Visibility and compression, with whatever is left hidden of the one before.
const CHANGES: [(End, &[(&str, &str)]); 9] = [
    (End::Grown, &[]),
    (End::Prepared, &[("sink.compression", "gzip")]),
    (End::Grown, &[("sink.compression", "zstd"), ("sink.file", "other.{seq}.log")]),
    (End::Grown, &[("sink.compression", "none"), ("sink.visibility", "live")]),
    (End::Grown, &[("sink.visibility", "sealed"), ("sink.compression", "gzip")]),
    (End::Committed, &[("sink.compression", "zstd"), ("sink.file", "p{partition}/events.{seq}.log")]),
    (End::Stop, &[("sink.compression", "none"), ("sink.visibility", "live"), ("sink.file", "z.{seq}.log")]),
    (End::Committed, &[("sink.visibility", "sealed")]),
    (End::Grown, &[("sink.compression", "zstd")]),
];

#[test]
fn another_visibility_compression_or_name_loses_and_repeats_nothing_of_what_is_hidden() {
    assert_changes_are_survived(["all", "all"], &CHANGES);
}

#[test]
fn another_visibility_compression_or_name_in_a_group_loses_and_repeats_nothing_of_what_is_hidden() {
    assert_changes_are_survived(["group", "group"], &CHANGES);
}

#[test]
fn with_and_without_a_group_in_turn_loses_and_repeats_nothing_while_there_is_one_home() {
    let ends =
        [End::Grown, End::Grown, End::Prepared, End::Stop, End::Stop, End::Committed, End::Committed, End::Prepared];
    let changes: Vec<(End, &[(&str, &str)])> = ends.into_iter().map(|end| (end, &[][..])).collect();
    for turns in [["group", "all"], ["all", "group"]] {
        assert_changes_are_survived(turns, &changes).mtga(["verify"]).code(0);
    }
}

#[test]
fn offsets_that_are_set_in_a_group_take_back_what_is_hidden() {
    let topic = Topic::create("sealset", 2);
    let mut home = sealed(&topic);
    home.in_group();
    let produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, 200);
    let service = home.foreground();
    wait_durable(&home, &produced);
    service.kill();
    let refused = home.mtga(["set_offset", &topic.name, "latest"]).code(1);
    assert!(refused.stderr.contains("records from offset 0 on are in hidden files"), "{}", refused.stderr);
    assert_ne!(events::hidden(&home.path("data")), Vec::<PathBuf>::new(), "they are still there");
    home.mtga(["set_offset", &topic.name, "earliest"]).success();
    assert_eq!(events::hidden(&home.path("data")), Vec::<PathBuf>::new(), "nothing of it is left");
    rotate(&mut home, "1s", "200ms");
    home.killed_at("seal.prepared");
    rotate(&mut home, "1h", "1h");
    home.mtga(["set_offset", &topic.name, "earliest"]).success();
    assert_published(&home, &produced);
    home.mtga(["verify"]).code(0);
}

#[test]
fn offsets_that_are_set_without_a_group_publish_what_is_hidden() {
    let topic = Topic::create("sealset", 2);
    let home = sealed(&topic);
    let produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, 200);
    let service = home.foreground();
    wait_durable(&home, &produced);
    service.kill();
    // The journal has decided about it already: what is read again from there on is the operator's wish.
    home.mtga(["set_offset", &topic.name, "latest"]).success();
    assert_published(&home, &produced);
    home.mtga(["verify"]).code(0);
}

#[test]
fn a_topic_made_again_while_the_service_is_stopped_does_not_mix_with_what_was_hidden() {
    let topic = Topic::create("sealnew", 2);
    let home = sealed(&topic);
    let mut produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, 200);
    let service = home.foreground();
    wait_durable(&home, &produced);
    service.kill();
    topic.recreate();
    produced.extend(topic.fill(Codec::Snappy, Mix::Dirty, 200, 200));
    let service = home.foreground();
    wait_durable(&home, &produced);
    service.kill();
    // What is hidden now is of the new topic alone, so that it can be taken back.
    for path in events::hidden(&home.path("data")) {
        fs::remove_file(path).expect("a file");
    }
    assert_published(&home, &produced);
    home.mtga(["verify"]).code(0);
}

/// A record without ids under the built-in mapping; its name is in `nick`.
fn nameless(n: u64) -> Record {
    let text = format!(
        r#"{{"headers":{{"app_id":24,"log_name":"log_chat"}},"logs":{{"sn":"0-{n}","nick":"p{n}","mtime":1608184243}}}}"#
    );
    Record { partition: 0, key: None, value: Some(text.into_bytes()), timestamp: 1_700_000_000_000 }
}

/// Settings under which they have one.
fn mend(home: &Home) {
    let mapping = r##"[{"log_name": "log_chat", "event_name": "t_{log_name}", "event_type": "track", "metadata": {
        "#account_id": {"field": "nick", "default": ""}, "#time": {"field": "mtime", "default": ""}}}]"##;
    fs::write(home.path("settings/mthinkingdata:metadata.24.json"), mapping).expect("a file");
}

/// How often each record is there as a line, by its number.
fn lines(home: &Home) -> Vec<u64> {
    let lines = home.events().into_iter().flat_map(|file| file.lines);
    let mut numbers: Vec<_> = lines.map(|line| events::origin(&line).1).collect();
    numbers.sort_unstable();
    numbers
}

#[test]
fn rejects_of_what_is_hidden_are_left_alone_until_it_is_decided() {
    let topic = Topic::create("sealq", 1);
    let mut home = sealed(&topic);
    home.in_group();
    let produced: Vec<_> = (0..60).map(nameless).collect();
    topic.produce(Codec::None, &produced);
    let mut service = home.foreground();
    wait_durable(&home, &produced);
    // Undecided: neither tried nor cleared, by command or by itself, and still there after a kill.
    for _ in 0..2 {
        let retried: Value =
            serde_json::from_str(&home.mtga(["--json", "retry_failure_queue"]).success()).expect("JSON");
        assert_eq!((&retried["left"], &retried["stayed"]), (&json!(0), &json!(0)), "{retried}");
        assert_eq!(home.mtga(["clear_failure_queue"]).success(), "0");
        assert_eq!(home.integer("failure_queue_count"), 60);
        service.kill();
        mend(&home);
        service = home.foreground();
        home.wait_done(&produced);
        wait_durable(&home, &produced);
    }
    service.terminate();
    // The commit is their decision, and the settings have changed since.
    rotate(&mut home, "1s", "200ms");
    for point in ["queue_framed", "queue_written", "seal.prepared", "publish.renamed", "publish.noted"] {
        home.killed_at(point);
    }
    let service = home.foreground();
    home.wait_for(State::Consuming);
    wait_until("the mended entries are lines", SOON, || {
        let (count, hidden) = (home.integer("failure_queue_count"), events::hidden(&home.path("data")));
        holds(count == 0 && hidden.is_empty(), (count, hidden))
    });
    service.terminate();
    assert_eq!(lines(&home), (0..60).collect::<Vec<_>>());
    home.mtga(["verify"]).code(0);
}

#[test]
fn rejects_of_what_is_refused_leave_the_queue_and_come_back_with_their_records() {
    let topic = Topic::create("sealqr", 1);
    let mut home = sealed(&topic);
    home.in_group();
    let mut produced: Vec<_> = topic.fill(Codec::Snappy, Mix::Dirty, 0, 300);
    let service = home.foreground();
    wait_durable(&home, &produced);
    service.kill();
    let harm = |home: &Home| {
        for path in events::hidden(&home.path("data")) {
            fs::File::options().write(true).open(path).and_then(|file| file.set_len(0)).expect("a file");
        }
    };
    harm(&home);
    rotate(&mut home, "1s", "200ms");
    home.killed_at("refuse.noted");
    home.killed_at("seal.prepared");
    // What was prepared is refused too, with other entries.
    harm(&home);
    home.killed_at("refuse.noted");
    produced.extend(topic.fill(Codec::Snappy, Mix::Dirty, 300, 100));
    assert_published(&home, &produced);
    home.mtga(["verify"]).code(0);
}

#[test]
fn hidden_lines_of_retries_wait_for_their_disk_and_are_counted_when_they_are_gone() {
    let produced: Vec<_> = (0..60).map(nameless).collect();
    let hide = || {
        let topic = Topic::create("sealqgone", 1);
        let home = sealed(&topic);
        topic.produce(Codec::None, &produced);
        let service = home.foreground();
        home.wait_done(&produced);
        service.terminate();
        mend(&home);
        let service = home.foreground();
        wait_until("a checkpoint has the entries as lines", SOON, || {
            let contents = journal::read(&home.path("tmp/store/journal")).map_err(|error| error.to_string())?;
            let written = contents.state.map_or(0, |state| state.totals.written);
            holds(written == 60, written)
        });
        service.kill();
        home
    };
    // Not mounted, for a while.
    let home = hide();
    fs::rename(home.path("data"), home.path("away")).expect("a directory");
    fs::create_dir(home.path("data")).expect("a directory");
    let service = home.foreground();
    home.wait_for(State::Paused);
    let reason = home.status().reason.unwrap_or_default();
    assert!(reason.contains("should have unfinished files"), "{reason}");
    fs::remove_dir(home.path("data")).expect("an empty directory");
    fs::rename(home.path("away"), home.path("data")).expect("a directory");
    home.wait_for(State::Consuming);
    service.terminate();
    assert_eq!(lines(&home), (0..60).collect::<Vec<_>>());
    home.mtga(["verify"]).code(0);

    // Gone for good.
    let home = hide();
    for path in events::hidden(&home.path("data")) {
        fs::remove_file(path).expect("a hidden file");
    }
    let service = home.foreground();
    home.wait_for(State::Consuming);
    let status = home.status();
    assert_eq!((status.gap_records, status.counts.written), (60, 0));
    home.wait_logged("lines of the failure queue are gone with their hidden file");
    service.terminate();
}
