//! Combinations of two misfortunes.

use std::fs;

use mtga::control::State;

use crate::harness::payload::Wrapping;
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
