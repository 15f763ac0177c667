//! The failure queue: what is rejected waits there until it is mended, exported or cleared.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mtga::control::State;
use mtga::record::Reason;
use serde_json::Value;

use crate::harness::process::{Finished, Service, keeping_no_free_memory};
use crate::harness::{Codec, Home, Mix, Record, SOON, Topic, holds, wait_until};
use crate::sealed;

/// A record without ids under the built-in mapping; its name is in `nick`.
fn nameless(n: u64) -> Record {
    let text = format!(
        r#"{{"headers":{{"app_id":24,"log_name":"log_chat"}},"logs":{{"sn":"0-{n}","nick":"p{n}","mtime":1608184243}}}}"#
    );
    Record {
        partition: 0,
        key: Some(format!("k{n}").into_bytes()),
        value: Some(text.into_bytes()),
        timestamp: 1_700_000_000_000,
    }
}

fn broken(n: u64) -> Record {
    Record { value: Some(format!("{{broken {n}").into_bytes()), ..nameless(n) }
}

fn reasons(home: &Home) -> Vec<Reason> {
    home.failures().iter().map(|entry| entry.reason).collect()
}

#[test]
fn rejects_are_listed_in_order_with_reason_place_and_payload() {
    let topic = Topic::create("list", 1);
    let produced = [nameless(0), broken(1), nameless(2)];
    topic.produce(Codec::None, &produced);
    let home = Home::new(&topic);
    home.start();
    home.wait_done(&produced);
    assert_eq!(home.integer("failure_queue_count"), 3);
    let failures = home.failures();
    assert_eq!(reasons(&home), [Reason::NoId, Reason::BadJson, Reason::NoId]);
    for (entry, record) in failures.iter().zip(&produced) {
        let value = record.value.as_ref().expect("a value");
        assert_eq!((&entry.topic, entry.partition), (&topic.name, 0));
        assert_eq!(entry.size, value.len() as u64);
        assert_eq!(entry.attempts, 1);
        assert!(!entry.detail.is_empty());
    }
    assert_eq!(failures.iter().map(|entry| entry.offset).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(failures[1].head.starts_with("{broken 1"), "{:?}", failures[1].head);
    let text = home.mtga(["--json", "failure_queue_list", "--reason", "no_id", "--limit", "1"]).success();
    assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON").as_array().map(Vec::len), Some(1));
    home.stop();
}

#[test]
fn clearing_exports_what_it_removes_and_overwrites_no_file() {
    let topic = Topic::create("clear", 1);
    let produced: Vec<_> = (0..10).map(|n| if n % 2 == 0 { nameless(n) } else { broken(n) }).collect();
    topic.produce(Codec::None, &produced);
    let home = Home::new(&topic);
    home.start();
    home.wait_done(&produced);
    let export = home.path("export.jsonl");
    let file = export.to_str().expect("a path in UTF-8");

    let removed = home.mtga(["clear_failure_queue", "--older-than", "7d"]).success();
    assert_eq!(removed, "0", "nothing is that old");
    let removed = home.mtga(["clear_failure_queue", "--reason", "bad_json", "--export", file]).success();
    assert_eq!(removed, "5");
    let lines = fs::read_to_string(&export).expect("the export");
    assert_eq!(lines.lines().count(), 5);
    for line in lines.lines() {
        let entry: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("no JSON, {error}: {line}"));
        assert_eq!((&entry["topic"], &entry["reason"]), (&Value::from(topic.name.as_str()), &Value::from("bad_json")));
    }

    home.mtga(["clear_failure_queue", "--export", file]).code(73);
    assert_eq!(home.integer("failure_queue_count"), 5, "nothing goes that is not in the file");
    assert_eq!(fs::read_to_string(&export).expect("the export"), lines, "the file is as it was");

    home.stop();
    assert_eq!(home.mtga(["clear_failure_queue"]).success(), "5", "also without a service");
    assert_eq!(home.integer("failure_queue_count"), 0);
    home.start();
    assert_eq!(home.integer("failure_queue_count"), 0, "and it stays so");
    home.stop();
}

#[test]
fn entries_become_lines_when_the_settings_are_mended() {
    let topic = Topic::create("mend", 1);
    let produced: Vec<_> = (0..20).map(|n| if n < 15 { nameless(n) } else { broken(n) }).collect();
    topic.produce(Codec::None, &produced);
    let home = Home::new(&topic);
    home.start();
    home.wait_done(&produced);
    assert_eq!(home.integer("failure_queue_count"), 20);
    let retried: Value = serde_json::from_str(&home.mtga(["--json", "retry_failure_queue"]).success()).expect("JSON");
    assert_eq!((&retried["left"], &retried["stayed"]), (&Value::from(0), &Value::from(20)), "nothing was mended yet");

    let mapping = r##"[{"log_name": "log_chat", "event_name": "t_{log_name}", "event_type": "track", "metadata": {
        "#account_id": {"field": "nick", "default": ""}, "#time": {"field": "mtime", "default": ""}}}]"##;
    fs::write(home.path("settings/mthinkingdata:metadata.24.json"), mapping).expect("a file");
    home.mtga(["restart"]).success();
    // They may have been tried by themselves already, since the settings changed.
    home.mtga(["retry_failure_queue"]).success();
    wait_until("the mended entries leave", SOON, || {
        let count = home.integer("failure_queue_count");
        holds(count == 5, count)
    });
    assert_eq!(reasons(&home), [Reason::BadJson; 5]);
    let mut names: Vec<String> = Vec::new();
    for line in home.events().iter().flat_map(|file| &file.lines) {
        let event: Value = serde_json::from_str(line).expect("JSON");
        names.push(event["#account_id"].as_str().expect("an id").to_owned());
    }
    names.sort_by_key(|name| name[1..].parse::<u64>().expect("a number"));
    let expected: Vec<_> = (0..15).map(|n| format!("p{n}")).collect();
    assert_eq!(names, expected, "each once");
    let counts = home.status().counts;
    let outcomes = counts.written + counts.filtered.iter().sum::<u64>() + counts.rejected.iter().sum::<u64>();
    assert_eq!(counts.consumed + counts.retried, outcomes + counts.in_flight);
    home.stop();
}

#[test]
fn the_queue_survives_kill_9() {
    let topic = Topic::create("keep", 2);
    let produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, 3000);
    let home = Home::new(&topic);
    home.start();
    home.wait_done(&produced);
    let before: Vec<_> =
        home.failures().into_iter().map(|e| (e.partition, e.offset, e.reason, e.size, e.head)).collect();
    home.kill9();
    home.start();
    let after: Vec<_> =
        home.failures().into_iter().map(|e| (e.partition, e.offset, e.reason, e.size, e.head)).collect();
    assert_eq!(after, before);
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    home.stop();
}

#[test]
fn commands_of_root_leave_nothing_of_roots_in_a_stopped_home() {
    assert!(nix::unistd::geteuid().is_root(), "the tests run as root");
    let topic = Topic::create("owner", 1);
    let produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, 200);
    let home = Home::new(&topic);
    home.start();
    home.wait_done(&produced);
    home.stop();
    // Whoever that is, it is not root.
    let owner = nix::unistd::Uid::from_raw(65_534);
    let entries = everything_below(&home.path("."));
    for path in &entries {
        nix::unistd::chown(path, Some(owner), None).expect("root may give files away");
    }
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(home.path("..").canonicalize().expect("a path"), open).expect("permissions");
    assert!(home.integer("failure_queue_count") > 0);
    home.mtga(["failure_queue_list"]).code(0);
    home.mtga(["status"]).code(3);
    home.mtga(["clear_failure_queue"]).code(0);
    assert_eq!(home.integer("failure_queue_count"), 0);
    for path in everything_below(&home.path("tmp/store")) {
        let uid = std::os::unix::fs::MetadataExt::uid(&path.metadata().expect("a file"));
        assert_eq!(uid, owner.as_raw(), "{}", path.display());
    }
}

fn everything_below(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = vec![directory.to_owned()];
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(everything_below(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// Settings under which [`nameless`] records have an id.
fn mend(home: &Home) {
    mend_as(home, "t_{log_name}");
}

/// The same with another name of the events.
fn mend_as(home: &Home, event_name: &str) {
    let mapping = r##"[{"log_name": "*", "event_name": "NAME", "event_type": "track", "metadata": {
        "#account_id": {"field": "nick", "default": ""}, "#time": {"field": "mtime", "default": ""}}}]"##;
    let mapping = mapping.replace("NAME", event_name);
    fs::write(home.path("settings/mthinkingdata:metadata.24.json"), mapping).expect("a file");
}

fn wait_left(home: &Home, left: u64) {
    wait_until(&format!("{left} entries left"), 2 * SOON, || {
        let status = home.try_status()?;
        holds(status.failure_queue_records == left && status.counts.in_flight == 0, status)
    });
}

/// Demands one line for each of these [`nameless`] records, and no other.
fn assert_each_once(home: &Home, numbers: impl Iterator<Item = u64>) {
    let mut found: Vec<u64> = Vec::new();
    for line in home.events().iter().flat_map(|file| &file.lines) {
        let event: Value = serde_json::from_str(line).expect("JSON");
        found.push(event["#account_id"].as_str().expect("an id")[1..].parse().expect("a number"));
    }
    found.sort_unstable();
    let expected: Vec<u64> = numbers.collect();
    assert!(found == expected, "{} lines instead of {}", found.len(), expected.len());
    let counts = home.status().counts;
    let outcomes = counts.written + counts.filtered.iter().sum::<u64>() + counts.rejected.iter().sum::<u64>();
    assert_eq!(counts.consumed + counts.retried, outcomes + counts.in_flight);
}

#[test]
fn other_settings_try_the_queue_again_by_themselves_once() {
    let topic = Topic::create("itself", 1);
    let mut produced: Vec<_> = (0..700).map(|n| if n < 600 { nameless(n) } else { broken(n) }).collect();
    topic.produce(Codec::None, &produced);
    let home = Home::new(&topic);
    home.start();
    home.wait_done(&produced);
    mend(&home);
    home.mtga(["reload"]).success();
    wait_left(&home, 100);
    assert_each_once(&home, 0..600);
    assert!(home.failures().iter().all(|entry| entry.attempts == 2 && entry.parked));

    fs::write(home.path("settings/mthinkingdata:filter.24.json"), "[\"none\"]\n").expect("a file");
    home.mtga(["restart"]).success();
    wait_until("a third attempt", SOON, || {
        let attempts: Vec<_> = home.failures().iter().map(|entry| entry.attempts).collect();
        holds(attempts == [3; 100], attempts)
    });
    home.mtga(["restart"]).success();
    let new = [broken(700)];
    topic.produce(Codec::None, &new);
    produced.extend(new);
    home.wait_done(&produced);
    // The new entry is behind the others, so they were looked at before it.
    home.mtga(["retry_failure_queue", "--reason", "sink"]).success();
    let attempts: Vec<_> = home.failures().iter().map(|entry| entry.attempts).collect();
    assert!(attempts[..100] == [3; 100] && attempts[100] == 1, "nothing changed: {attempts:?}");
    home.stop();
}

#[test]
fn a_kill_while_the_queue_is_tried_again_loses_and_repeats_nothing() {
    let topic = Topic::create("retried", 1);
    let produced: Vec<_> = (0..1600).map(nameless).collect();
    topic.produce(Codec::None, &produced);
    let home = Home::new(&topic);
    home.start();
    home.wait_done(&produced);
    home.stop();
    mend(&home);
    // Each goes on where the one before it was cut short.
    for point in ["queue_framed", "queue_written:2", "queue_checkpointed"] {
        home.killed_at(point);
    }
    home.start();
    wait_left(&home, 0);
    assert_each_once(&home, 0..1600);
    home.stop();
    assert!(!home.log().contains("panicked"), "nothing panicked");
}

#[test]
fn a_kill_at_each_step_of_a_reload_loses_and_repeats_nothing() {
    let topic = Topic::create("reloaded", 1);
    let mut homes = [(); 3].map(|()| Home::new(&topic));
    for home in &mut homes {
        home.set("sink.batch", serde_json::json!({"lines": 20, "linger": "10ms"}));
    }
    for home in &mut homes[1..] {
        sealed::hide(home);
    }
    homes[2].in_group().set("kafka.group_id", format!("g_{}_sealed", topic.name));
    // `after`: it reloads, and is killed with lines of both settings on their way.
    for (round, point) in ["reload.kept", "reload.set", "after"].into_iter().enumerate() {
        let first = 1000 * round as u64;
        topic.produce(Codec::None, &(first..first + 500).map(nameless).collect::<Vec<_>>());
        let start = |home: &Home| home.foreground_with(|command| command.env("FAULT_POINT", point));
        let services = homes.each_ref().map(start);
        for home in &homes {
            home.wait_for(State::Consuming);
            mend_as(home, &format!("e{round}_{{log_name}}"));
        }
        topic.produce(Codec::None, &(first + 500..first + 1000).map(nameless).collect::<Vec<_>>());
        for (home, service) in homes.iter().zip(services) {
            let reload = home.mtga(["reload"]);
            if point == "after" {
                reload.success();
                service.kill();
            } else {
                service.wait_killed(point);
            }
        }
    }
    homes.iter().for_each(Home::start);
    for home in &homes {
        wait_until("all is read, and no entry is left", 2 * SOON, || {
            let status = home.try_status()?;
            let read = status.counts.consumed == 3000 && status.lag == Some(0);
            holds(read && status.counts.in_flight == 0 && status.failure_queue_records == 0, status)
        });
        sealed::wait_verified(home);
        assert_each_once(home, 0..3000);
        home.stop();
    }
}

#[test]
fn a_kill_between_export_and_removal_leaves_each_record_in_the_queue_or_in_the_file() {
    let topic = Topic::create("exported", 1);
    let produced: Vec<_> = (0..30).map(broken).collect();
    topic.produce(Codec::None, &produced);
    let home = Home::new(&topic);
    home.start();
    home.wait_done(&produced);
    home.stop();
    for (point, left) in [("queue_exported", 30), ("queue_removed", 0)] {
        let log = fs::File::create(home.path("logs/foreground.log")).expect("a file");
        let mut command = home.command();
        let service = Service::spawn(command.arg("start_not_daemon").env("FAULT_POINT", point), log);
        home.wait_for(State::Consuming);
        let export = home.path(format!("{point}.jsonl"));
        home.mtga(["clear_failure_queue".as_ref(), "--export".as_ref(), export.as_os_str()]);
        service.wait_killed(point);
        assert_eq!(fs::read_to_string(&export).expect("the export").lines().count(), 30);
        home.start();
        assert_eq!(home.integer("failure_queue_count"), left, "{point}");
        assert_eq!(home.failures().len() as i64, left, "{point}");
        home.stop();
    }
}

/// About 1 KB.
fn large(n: u64) -> Record {
    Record { value: Some(format!("{{broken {n} {}", "x".repeat(900)).into_bytes()), ..nameless(n) }
}

#[test]
fn a_full_queue_pauses_consuming_until_there_is_room() {
    let topic = Topic::create("full", 1);
    let mut produced: Vec<_> = (0..1500).map(large).collect();
    topic.produce(Codec::None, &produced);
    let mut home = Home::new(&topic);
    home.set("failure_queue.max_bytes", "1MiB");
    home.start();
    home.wait_for(State::Paused);
    home.mtga(["restart"]).success();
    home.wait_for(State::Paused);
    let consumed = home.status().counts.consumed;
    let more: Vec<_> = (1500..1600).map(broken).collect();
    topic.produce(Codec::None, &more);
    produced.extend(more);
    let lag = 1600 - consumed as i64;
    wait_until("the lag is seen", SOON, || {
        let found = home.lag()?;
        holds(found == lag, found)
    });
    let status = home.status();
    assert_eq!((status.counts.consumed, status.state), (consumed, State::Paused));
    assert!(status.reason.is_some_and(|reason| reason.contains("the failure queue is full")));
    assert_eq!(home.mtga(["clear_failure_queue"]).success(), consumed.to_string());
    home.wait_done(&produced);
    assert_eq!(home.integer("failure_queue_count"), lag);
    home.stop();
}

#[test]
fn the_oldest_entries_are_dropped_and_counted_through_kills() {
    let topic = Topic::create("oldest", 1);
    let mut produced: Vec<_> = (0..4000).map(large).collect();
    topic.produce(Codec::None, &produced);
    let mut home = Home::new(&topic);
    home.set("failure_queue.max_bytes", "1MiB").set("failure_queue.when_full", "drop_oldest");
    home.killed_at("queue_removed");
    produced.extend((4000..6000).map(large));
    topic.produce(Codec::None, &produced[4000..]);
    home.killed_at("queue_dropped");
    produced.extend((6000..8000).map(large));
    topic.produce(Codec::None, &produced[6000..]);
    home.start();
    home.wait_done(&produced);
    wait_until("the queue is within its bound", SOON, || {
        let status = home.try_status()?;
        holds(status.failure_queue_bytes <= 1 << 20, status)
    });
    let offsets: Vec<i64> = home.failures().iter().map(|entry| entry.offset).collect();
    assert_eq!(offsets, (8000 - offsets.len() as i64..8000).collect::<Vec<_>>(), "the newest ones, each once");
    assert!(offsets.len() > 900, "no more than needed: {}", offsets.len());
    assert_eq!(home.status().counts.rejected.iter().sum::<u64>(), 8000);
    home.wait_logged("its oldest entries were dropped");
    home.stop();
}

#[test]
fn entries_without_a_file_name_are_tried_some_times_and_then_parked() {
    let topic = Topic::create("parked", 1);
    let name = "n".repeat(300);
    let text = format!(
        r#"{{"headers":{{"app_id":24,"log_name":"{name}"}},"logs":{{"nick":"p1","role_id":1,"mtime":1608184243}}}}"#
    );
    let produced = [Record { value: Some(text.into_bytes()), ..nameless(1) }];
    topic.produce(Codec::None, &produced);
    let mut home = Home::new(&topic);
    home.set("sink.file", "{log_name}.{seq}.log").set("validation", "off");
    home.set("failure_queue.max_attempts", 2);
    home.set("failure_queue.backoff", serde_json::json!({"from": "200ms", "to": "300ms"}));
    home.start();
    home.wait_done(&produced);
    let attempts = |attempts: u32| {
        wait_until(&format!("{attempts} attempts"), SOON, || {
            let failures = home.failures();
            let entry = failures.first().ok_or("no entry")?;
            holds(entry.reason == Reason::Sink && entry.attempts == attempts && entry.parked, entry)
        });
    };
    attempts(3);
    home.mtga(["retry_failure_queue"]).success();
    attempts(4);
    home.set("sink.file", "events.{seq}.log");
    home.mtga(["restart"]).success();
    wait_left(&home, 0);
    assert_eq!(home.events().iter().map(|file| file.lines.len()).sum::<usize>(), 1);
    home.stop();
}

/// Fills the queue, and has it tried again by itself through a stop and a kill, beside new records.
fn a_long_queue(entries: u64) {
    let topic = Topic::create("long", 1);
    for first in (0..entries).step_by(50_000) {
        let produced: Vec<_> = (first..entries.min(first + 50_000)).map(nameless).collect();
        topic.produce(Codec::Lz4, &produced);
    }
    let home = Home::new(&topic);
    let timed = |what: &str, work: &dyn Fn()| {
        let since = std::time::Instant::now();
        work();
        println!("{entries} entries: {what} took {:?}", since.elapsed());
    };
    home.start();
    timed("rejecting", &|| {
        wait_until("all are rejected", 10 * SOON, || {
            let status = home.try_status()?;
            holds(status.failure_queue_records == entries, status)
        });
    });
    home.stop();
    timed("a start", &|| home.start());
    timed("a list", &|| drop(home.mtga(["failure_queue_list", "--limit", "1000"]).success()));
    timed("a list of a reason that is not there", &|| {
        drop(home.mtga(["failure_queue_list", "--reason", "no_id", "--limit", "1"]).success());
        drop(home.mtga(["failure_queue_list", "--reason", "bad_json"]).success());
    });
    timed("a retry that changes nothing", &|| {
        drop(Finished::run(home.command().arg("retry_failure_queue"), 20 * SOON).success());
    });
    assert_eq!(home.integer("failure_queue_count") as u64, entries);
    mend(&home);
    home.mtga(["reload"]).success();
    // Looked at late, it may have ended.
    let begun = || {
        let left = home.try_status()?.failure_queue_records;
        holds(left < entries, left)
    };
    wait_until("the retry has begun", SOON, begun);
    home.stop();
    home.start();
    let more: Vec<_> = (entries..entries + 500).map(nameless).collect();
    topic.produce(Codec::None, &more);
    wait_until("new records go on beside it", SOON, || {
        let status = home.try_status()?;
        holds(status.counts.consumed == entries + 500 && status.lag == Some(0), status)
    });
    home.kill9();
    home.start();
    timed("the rest of the retry", &|| {
        wait_until("no entries are left", 20 * SOON, || {
            let status = home.try_status()?;
            let left = status.failure_queue_records + status.counts.in_flight;
            // While it starts, which may take long, nothing is known yet.
            holds(status.state == State::Consuming && left == 0, status)
        });
    });
    assert_each_once(&home, 0..entries + 500);
    let memory = fs::read_to_string(format!("/proc/{}/status", home.pid())).expect("the service runs");
    let peak = memory.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
    println!("{entries} entries: peak {peak} KiB");
    assert!(peak < 400 << 10, "{peak} KiB");
    home.stop();
}

#[test]
fn a_long_queue_is_tried_again_beside_new_records_through_a_stop_and_a_kill() {
    a_long_queue(20_000);
}

#[test]
#[ignore = "takes minutes: for figures, and before a release"]
fn a_million_entries_are_tried_again_through_a_stop_and_a_kill() {
    a_long_queue(1_000_000);
}

/// The most memory that the process ever had, MiB.
fn peak(home: &Home) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", home.pid())).expect("a process");
    let line = text.lines().find(|line| line.starts_with("VmHWM")).expect("a line");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") / 1024
}

/// A value that is no JSON, and does not get shorter when it is compressed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    std::iter::repeat_with(|| next().to_le_bytes()).flatten().take(length).collect()
}

#[test]
fn memory_is_bounded_while_every_record_is_rejected_and_while_they_are_read_again() {
    let topic = Topic::create("rejectstorm", 4);
    let mut home = Home::new(&topic);
    home.set("memory", "32MiB");
    let sizes = [(900_000, 100), (5_000, 6000)];
    let mut produced = 0;
    for (length, count) in sizes {
        let record = |n: u64| Record {
            partition: (n % 4) as i32,
            key: None,
            value: Some(noise(produced + n + 1, length)),
            timestamp: 0,
        };
        topic.produce(Codec::None, &(0..count).map(record).collect::<Vec<_>>());
        produced += count;
    }
    home.start();
    wait_until("all rejected", 3 * SOON, || {
        let status = home.try_status()?;
        holds(status.counts.rejected.iter().sum::<u64>() == produced, (status.counts, peak(&home)))
    });
    let stored = peak(&home);
    home.stop();
    home.start();
    home.wait_for(State::Consuming);
    assert_eq!(home.integer("failure_queue_count"), produced.cast_signed());
    let read = peak(&home);
    eprintln!("{stored} MiB, started again {read} MiB");
    assert!(stored < 240 && read < 140, "{stored} MiB, started again {read} MiB, with a bound of 32 MiB");
    home.stop();
}

#[test]
fn the_queue_is_listed_in_time_while_many_large_rejects_arrive() {
    const RECORDS: u64 = 100;
    let topic = Topic::create("largelist", 1);
    let large = |n| Record { value: Some(vec![b'{'; (200 + n as usize % 300) << 10]), ..nameless(n) };
    let mut home = Home::new(&topic);
    // A list reads all that it tells of, with a program that is not optimised and beside other tests.
    home.set("memory", "64MiB").set("failure_queue.max_bytes", "1GiB").set("rpc.timeout", "30s");
    let service = home.foreground_with(keeping_no_free_memory);
    home.wait_for(State::Consuming);
    let (mut listed, mut longest, lists) = (Vec::new(), Duration::ZERO, AtomicU64::new(0));
    std::thread::scope(|scope| {
        let produces = scope.spawn(|| {
            for batch in 0..RECORDS / 10 {
                if batch % 3 == 2 {
                    // However long a list takes, three of them are made while records arrive.
                    let before = lists.load(Ordering::Acquire);
                    wait_until("some are listed beside those that arrive", 3 * SOON, || {
                        let now = lists.load(Ordering::Acquire);
                        holds(now > before, now)
                    });
                }
                let records: Vec<_> = (batch * 10..(batch + 1) * 10).map(large).collect();
                topic.produce(Codec::None, &records);
            }
        });
        wait_until("all are listed", 3 * SOON, || {
            let done = home.mtga(["--json", "failure_queue_list", "--limit", "1000000"]);
            longest = longest.max(done.took);
            let entries: Value = serde_json::from_str(&done.success()).expect("JSON");
            let count = entries.as_array().expect("a list").len() as u64;
            listed.push(count);
            lists.fetch_add(u64::from(count > 0), Ordering::AcqRel);
            holds(produces.is_finished() && count == RECORDS, count)
        });
    });
    assert!(listed.is_sorted(), "nothing that was listed is missing later: {listed:?}");
    let beside = listed.iter().filter(|count| (1..RECORDS).contains(count)).count();
    assert!(beside >= 3, "it is listed while they arrive: {listed:?}");
    let most = service.memory("VmHWM:") >> 20;
    service.terminate();
    eprintln!("listed {} times, {beside} of them beside new rejects, {longest:?} at most; {most} MiB", listed.len());
    assert!(most < 256, "{most} MiB with a bound of 64 MiB");
}
