//! The failure queue: what is rejected waits there until it is mended, exported or cleared.

use std::fs;

use mtga::record::Reason;
use serde_json::Value;

use crate::harness::{Codec, Home, Mix, Record, SOON, Topic, holds, wait_until};

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
