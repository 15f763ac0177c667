//! A source that gives other records when it is read again: what a kill cut short is made again from a topic that compaction or
//! retention changed meanwhile, or under another isolation level.

use std::fs;

use mtga::control::State;
use serde_json::json;

use crate::harness::topic::Transaction;
use crate::harness::{Codec, Home, Mix, Record, SOON, Topic, events, holds, oracle, wait_until};
use crate::kafka::{damage, damaged_broker};

/// A home without a group of its own that makes no checkpoint by itself.
fn home(topic: &Topic, name: &str) -> Home {
    let mut home = Home::new(topic);
    home.set("kafka.group_id", format!("{name}_{}", topic.name)).set("store.checkpoint", "1h");
    home
}

/// Runs the service until it has written so many lines, kills it, and leaves of its file what a kill in the middle of the
/// write would: so many lines, and so many bytes of the next one (all but some, if negative).
fn tear(home: &mut Home, written: usize, lines: usize, bytes: isize) {
    let service = home.foreground();
    home.wait_written(written as u64);
    service.kill();
    let path = events::paths(&home.path("data")).pop().expect("an event file");
    let text = fs::read(&path).expect("an event file");
    let mut all = text.split_inclusive(|byte| *byte == b'\n');
    let whole: usize = all.by_ref().take(lines).map(<[u8]>::len).sum();
    let next = all.next().expect("more lines than are left").len();
    let torn = if bytes < 0 { next - bytes.unsigned_abs() } else { bytes.unsigned_abs() };
    let file = fs::File::options().write(true).open(&path).expect("an event file");
    file.set_len((whole + torn) as u64).expect("it is cut");
    home.set("store.checkpoint", "100ms");
}

/// Demands that each of these records has one line, in order, that no other has one, and that the counts say so. Returns how
/// many lines there are that are no events.
fn assert_lines(home: &Home, records: &[Record], gaps: u64) -> usize {
    let expected: Vec<String> = oracle::expect(records).lines.remove(&0).unwrap_or_default();
    let lines: Vec<String> = home.events().into_iter().flat_map(|file| file.lines).collect();
    let is_event = |line: &&String| serde_json::from_str::<serde_json::Value>(line).is_ok();
    let found: Vec<&String> = lines.iter().filter(is_event).collect();
    events::assert_same("the file", &expected, &found);
    let status = home.status();
    assert_eq!(status.counts.written, expected.len() as u64);
    assert_eq!(status.counts.consumed, expected.len() as u64, "every record consumed has an outcome");
    assert_eq!(status.gap_records, gaps);
    lines.len() - found.len()
}

/// Starts the home, and waits until it has gone on behind what was cut short.
fn finish(home: &Home, end: i64) {
    let service = home.foreground();
    wait_until("everything is read", 2 * SOON, || {
        let status = home.try_status()?;
        holds(status.state == State::Consuming && status.lag == Some(0), &status)?;
        let current = home.offsets()[0].current;
        holds(current == Some(end), current)
    });
    service.terminate();
}

#[test]
fn of_a_block_cut_short_only_what_compaction_removed_and_what_has_no_line_is_missing() {
    let config = [("cleanup.policy", "compact"), ("min.cleanable.dirty.ratio", "0.0"), ("segment.ms", "1000")];
    let topic = Topic::with_config("reread_compacted", 1, &config);
    let make = |n: u64, key: u64, hour: i64| {
        let record = Mix::Clean.record(n, 1);
        Record { key: Some(format!("k{key}").into_bytes()), timestamp: record.timestamp + hour * 3_600_000, ..record }
    };
    let produced: Vec<_> = (0..24).map(|n| make(n, n, 0)).collect();
    topic.produce(Codec::None, &produced);
    // Of the line that is torn there is too little to tell it from the next one, all but its end, and all but its newline.
    let mut homes = ["short", "long", "whole"].map(|name| home(&topic, name));
    for (home, torn) in homes.iter_mut().zip([3, -6, -1]) {
        tear(home, produced.len(), 12, torn);
    }
    // One that has its line, the one that is torn, and two that have none. What comes an hour later begins a segment.
    let newer: Vec<_> = [3, 12, 15, 20].into_iter().zip(24..).map(|(key, n)| make(n, key, 1)).collect();
    topic.produce(Codec::None, &newer);
    topic.produce(Codec::None, &[make(28, 28, 2)]);
    topic.produce(Codec::None, &[make(29, 29, 3)]);
    wait_until("the log is compacted", 2 * SOON, || {
        let left = topic.read().len();
        holds(left == produced.len() + 2, left)
    });
    let later = topic.read().split_off(produced.len() - 4);
    for (home, (torn_has_line, ended)) in homes.iter().zip([(false, 0), (false, 1), (true, 0)]) {
        finish(home, topic.end());
        let missing: &[usize] = if torn_has_line { &[15, 20] } else { &[12, 15, 20] };
        let mut expected = produced.clone();
        missing.iter().rev().for_each(|n| drop(expected.remove(*n)));
        expected.extend(later.clone());
        assert_eq!(assert_lines(home, &expected, missing.len() as u64), ended);
    }
}

#[test]
fn of_a_block_cut_short_only_what_retention_took_is_a_gap() {
    let topic = Topic::create("reread_retention", 1);
    let mut produced = topic.fill(Codec::None, Mix::Clean, 0, 24);
    let mut homes = ["before", "within", "all"].map(|name| home(&topic, name));
    for home in &mut homes {
        tear(home, produced.len(), 12, 40);
    }
    let expected = produced.clone();
    produced.extend(topic.fill(Codec::None, Mix::Clean, 24, 6));
    // All of those whose lines are there, some of the others, all.
    for (home, (low, lost)) in homes.iter().zip([(12, 0), (18, 6), (24, 12)]) {
        topic.delete_records(0, low);
        finish(home, topic.end());
        let mut expected = expected.clone();
        expected.drain(12..12 + lost);
        expected.extend_from_slice(&produced[24..]);
        let ended = assert_lines(home, &expected, lost as u64);
        assert_eq!(ended, usize::from(lost > 0), "a torn line without a record is ended, and is no event");
    }
}

#[test]
fn of_a_block_cut_short_only_what_is_damaged_on_the_broker_is_a_gap() {
    let topic = Topic::on(damaged_broker().address(), "reread_damaged", 1, &[]);
    let mut produced = Vec::new();
    for (first, count) in [(0, 16), (16, 5), (21, 9)] {
        produced.extend(topic.fill(Codec::None, Mix::Clean, first, count));
    }
    let mut home = home(&topic, "damaged");
    tear(&mut home, produced.len(), 12, 3);
    let batch = damage(&topic, |batches| batches.iter().find(|batch| batch.first >= 16));
    finish(&home, topic.end());
    let lost = produced.drain(batch.first as usize..batch.next as usize).count() as u64;
    assert!(lost > 0);
    assert_eq!(assert_lines(&home, &produced, lost), 0);
}

#[test]
fn a_block_cut_short_is_made_again_under_the_isolation_level_that_it_was_read_with() {
    let topic = Topic::create("reread_isolation", 1);
    let make = |first: u64, count: u64| (first..first + count).map(|n| Mix::Clean.record(n, 1)).collect::<Vec<_>>();
    let (before, aborted, behind) = (make(0, 6), make(6, 8), make(14, 6));
    topic.produce(Codec::None, &before);
    topic.transact(&aborted, Transaction::Aborted);
    topic.produce(Codec::None, &behind);
    let (committed, all) = ([before.clone(), behind.clone()].concat(), [before, aborted, behind].concat());
    let set = |home: &mut Home, level: &str| {
        home.set("kafka.librdkafka", json!({"isolation.level": level}));
    };
    let (mut strict, mut lax) = (home(&topic, "strict"), home(&topic, "lax"));
    set(&mut lax, "read_uncommitted");
    tear(&mut strict, committed.len(), 4, 40);
    tear(&mut lax, all.len(), 9, 40);
    set(&mut lax, "read_committed");
    set(&mut strict, "read_uncommitted");
    // What comes now is read as the configuration says now.
    let (late, dropped) = (make(20, 3), make(23, 4));
    topic.produce(Codec::None, &late);
    topic.transact(&dropped, Transaction::Aborted);
    for (home, expected) in [(&strict, [committed, late.clone(), dropped].concat()), (&lax, [all, late].concat())] {
        finish(home, topic.end());
        assert_eq!(assert_lines(home, &expected, 0), 0);
    }
}
