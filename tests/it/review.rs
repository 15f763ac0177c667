//! Combinations of two misfortunes.

use std::fs;
use std::path::Path;
use std::process::Command;

use mtga::control::State;

use crate::harness::payload::Wrapping;
use crate::harness::process::Service;
use crate::harness::{Codec, Home, Mix, Record, SOON, Topic, events, holds, wait_until};

/// A record of this log name.
fn named(partition: i32, n: usize, log_name: &str, filler: &str) -> Record {
    let value = format!(
        r#"{{"headers":{{"app_id":24,"log_name":"{log_name}"}},"logs":{{"sn":"{partition}-{n}","role_id":7,"mtime":1608184243,"a":"{filler}"}}}}"#
    );
    Record { partition, key: None, value: Some(value.into_bytes()), timestamp: 1_700_000_000_000 }
}

/// Takes the last bytes of the last event file away: what a kill in the middle of a write leaves.
fn tear(home: &Home) {
    let path = events::paths(&home.path("data")).pop().expect("an event file");
    let file = fs::File::options().write(true).open(path).expect("a file");
    let length = file.metadata().expect("a file").len();
    file.set_len(length - 40).expect("a file");
}

fn limited(home: &Home, files: u32) -> Service {
    let log = fs::File::options().create(true).append(true).open(home.path("logs/foreground.log")).expect("a file");
    let mut command = Command::new("sh");
    let script = format!("ulimit -n {files}; exec {0}/bin/mtga --home {0} start_not_daemon", home.path("").display());
    Service::spawn(command.env_clear().env("PATH", "/usr/bin:/bin").args(["-c", &script]), log)
}

#[test]
fn many_unfinished_files_are_recovered_with_the_usual_limit_of_open_files() {
    let topic = Topic::create("manyfiles", 1);
    let mut home = Home::new(&topic);
    home.set("sink.file", "{log_name}.{seq}.log").set("sink.rotate.idle", "30m");
    let produced: Vec<_> = (0..1100).map(|n| named(0, n, &format!("log_{n}"), "")).collect();
    topic.produce(Codec::None, &produced);
    let service = limited(&home, 1024);
    wait_until("all written", 3 * SOON, || {
        let status = home.try_status()?;
        holds(status.counts.written == 1100 && status.counts.in_flight == 0, status)
    });
    service.kill();
    let service = limited(&home, 1024);
    home.wait_for(State::Consuming);
    home.assert_exactly(&produced);
    service.terminate();
}

#[test]
#[ignore = "open: recovery waits for the topic for ever"]
fn a_topic_that_was_deleted_after_a_crash_does_not_keep_the_others_waiting() {
    let (topic, gone) = (Topic::create("stays", 1), Topic::create("goes", 1));
    let mut home = Home::new(&topic);
    home.set("store.checkpoint", "1h").set("kafka.topics", vec![topic.name.clone(), gone.name.clone()]);
    home.start();
    let first = topic.fill(Codec::None, Mix::Clean, 0, 200);
    home.wait_written(first.len() as u64);
    let second = gone.fill(Codec::None, Mix::Clean, 0, 200);
    home.wait_written((first.len() + second.len()) as u64);
    home.kill9();
    tear(&home);
    gone.delete();
    home.set("kafka.topics", vec![topic.name.clone()]);
    home.mtga(["start"]);
    home.wait_for(State::Consuming);
}

#[test]
fn a_copy_of_a_home_that_was_killed_loses_no_record() {
    let topic = Topic::create("copied", 1);
    let mut home = Home::new(&topic);
    home.set("store.checkpoint", "1h");
    home.start();
    let produced = topic.fill(Codec::None, Mix::Clean, 0, 500);
    home.wait_written(500);
    home.kill9();
    tear(&home);
    let copy = {
        let mut copy = Home::new(&topic);
        copy.set("store.checkpoint", "1h");
        for part in ["tmp", "data"] {
            let from = home.path(part);
            let to = copy.path("");
            let status = Command::new("cp").arg("-a").arg(&from).arg(&to).status();
            assert!(status.is_ok_and(|status| status.success()), "{part} is copied");
        }
        drop(fs::remove_file(copy.path("tmp/mtga.sock")));
        copy
    };
    copy.start();
    copy.wait_done(&produced);
    copy.assert_exactly(&produced);
}

fn peak(home: &Home) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", home.pid())).expect("a process");
    let line = text.lines().find(|line| line.starts_with("VmHWM")).expect("a line");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") / 1024
}

#[test]
#[ignore = "open: a block counts what its values were before they were decompressed"]
fn memory_is_bounded_whatever_values_are_decompressed_to() {
    let topic = Topic::create("bombs", 1);
    let mut home = Home::new(&topic);
    home.set("memory", "32MiB");
    let filler = "x".repeat(7 << 20);
    let records: Vec<_> = (0..80)
        .map(|n| {
            let record = named(0, n, "log_item", &filler);
            Record { value: record.value.map(|value| Wrapping::Zstd.wrap(&value)), ..record }
        })
        .collect();
    topic.produce(Codec::None, &records);
    home.start();
    wait_until("all written", 3 * SOON, || {
        let status = home.try_status()?;
        holds(status.counts.written + status.counts.rejected.iter().sum::<u64>() == 80, (status.counts, peak(&home)))
    });
    let peak = peak(&home);
    eprintln!("peak {peak} MiB, {:?}", home.status().counts);
    assert!(peak < 200, "{peak} MiB with a bound of 32 MiB");
}

fn age(dir: &Path) {
    for entry in fs::read_dir(dir).expect("a directory") {
        let file = fs::File::options().write(true).open(entry.expect("an entry").path()).expect("a file");
        let then = std::time::SystemTime::now() - std::time::Duration::from_hours(1);
        file.set_modified(then).expect("a file's time");
    }
}

#[test]
fn a_command_between_a_rebuild_that_was_killed_and_the_next_start_costs_no_entry() {
    let topic = Topic::create("asked", 1);
    let mut home = Home::new(&topic);
    home.set("store.history", "1s");
    home.start();
    let produced = topic.fill(Codec::None, Mix::Dirty, 0, 500);
    home.wait_done(&produced);
    let before = home.integer("failure_queue_count");
    assert!(before > 0);
    for _ in 0..2 {
        home.stop();
        age(&home.path("tmp/store/journal"));
        home.start();
    }
    home.stop();
    fs::write(home.path("tmp/store/sled/snap.0000000000ffffff"), [7; 100]).expect("a file");
    home.killed_at("store_aside");
    // A monitor asks.
    eprintln!("{:?}", home.mtga(["failure_queue_count"]));
    home.start();
    assert_eq!(home.integer("failure_queue_count"), before);
    home.assert_exactly(&produced);
}
