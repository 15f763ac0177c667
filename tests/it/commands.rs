//! `set_offset` and `adopt` that are killed at a step: the service runs and reads more, the command is repeated, and the effect
//! is that of one that was not interrupted.

use std::os::unix::process::ExitStatusExt as _;

use serde_json::{Value, json};

use crate::harness::cases::for_each;
use crate::harness::process::Finished;
use crate::harness::topic::committed;
use crate::harness::{Codec, Home, Mix, Record, SOON, Topic, events, holds, oracle, wait_until};

/// How a home is, and what that is called.
type Kind = (&'static str, fn(&mut Home));

fn live(_: &mut Home) {}

fn sealed(home: &mut Home) {
    home.set("sink.visibility", "sealed").set("sink.rotate", json!({"age": "1s", "idle": "300ms", "size": "1MiB"}));
}

/// With a short session, which is what commands wait for.
pub(crate) fn in_group(home: &mut Home) {
    let properties = json!({"session.timeout.ms": "3000", "heartbeat.interval.ms": "500"});
    home.in_group().set("kafka.librdkafka", properties);
}

pub(crate) fn sealed_in_group(home: &mut Home) {
    sealed(home);
    in_group(home);
}

/// How many cases run beside each other.
const BESIDE: usize = 6;

fn killed_at(home: &Home, point: &str, args: &[&str]) {
    let status = home.command().args(args).env("FAULT_POINT", point).status().expect("it runs");
    assert_eq!(status.signal(), Some(9), "{args:?} comes to {point}: {status}");
}

/// The numbers of the records that have a line a reader can see, in order, with those that have several.
pub(crate) fn numbers(home: &Home) -> Vec<u64> {
    let mut found: Vec<_> =
        home.events().iter().flat_map(|file| &file.lines).map(|line| events::origin(line).1).collect();
    found.sort_unstable();
    found
}

/// Runs the service until everything up to here is read, and published.
pub(crate) fn read_to_the_end(home: &Home) {
    let service = home.foreground();
    wait_until("no lag", SOON, || {
        let status = home.try_status()?;
        holds(status.lag == Some(0) && status.partitions > 0 && status.counts.in_flight == 0, status)?;
        // The lag in `status` may be older than what was produced just now.
        let lag = home.lag()?;
        holds(lag == 0, lag)?;
        // A session that ends while it stops, by a stall of the machine, leaves to the next start what is hidden.
        let hidden = events::hidden(&home.path("data"));
        holds(hidden.is_empty(), hidden)
    });
    service.terminate();
}

fn assert_stands(home: &Home, topic: &Topic, at: u64, is_in_group: bool) {
    assert_eq!(home.offsets()[0].current, Some(at as i64));
    if is_in_group {
        assert_eq!(committed(&format!("g_{}", topic.name), topic).get(&0), Some(&(at as i64)));
    }
}

#[test]
fn a_move_that_is_interrupted_at_each_step_and_repeated_after_a_start_is_the_move_that_was_asked_for() {
    let kinds: [(Kind, &[&str]); 4] = [
        (("live", live), &["start.applied", "set.settled", "set.committed", "set.noted", "set.saved"]),
        (("sealed", sealed), &["set.noted", "set.saved"]),
        (("live in a group", in_group), &["set.committed", "set.noted"]),
        (("sealed in a group", sealed_in_group), &["set.settled", "set.committed", "set.noted"]),
    ];
    let cases: Vec<_> =
        kinds.iter().flat_map(|(kind, points)| points.iter().map(move |point| (kind, *point))).collect();
    for_each(BESIDE, &cases, |((what, configure), point)| {
        let topic = Topic::create("setkilled", 1);
        let mut home = Home::new(&topic);
        home.set("store.checkpoint", "100ms");
        configure(&mut home);
        let (stood, to, end) = (10, 20, 40);
        topic.fill(Codec::None, Mix::Clean, 0, stood);
        read_to_the_end(&home);
        assert_eq!(numbers(&home), (0..stood).collect::<Vec<_>>());
        topic.fill(Codec::None, Mix::Clean, stood, 20);
        let (partition, offset) = (format!("{}:0", topic.name), to.to_string());
        let args = ["set_offset", &partition, &offset];
        killed_at(&home, point, &args);
        topic.fill(Codec::None, Mix::Clean, 30, 10);
        read_to_the_end(&home);
        let between = numbers(&home);
        let moved_or_not = [stood..end, to..end].map(|read| (0..stood).chain(read).collect::<Vec<_>>());
        assert!(moved_or_not.contains(&between), "{what}, {point}: {between:?}");
        home.mtga(args).code(0);
        assert_stands(&home, &topic, to, what.contains("group"));
        read_to_the_end(&home);
        let mut expected: Vec<_> = between.into_iter().chain(to..end).collect();
        expected.sort_unstable();
        assert_eq!(numbers(&home), expected, "{what}, {point}: as asked for");
    });
}

#[test]
fn a_move_that_gives_hidden_records_up_and_is_interrupted_loses_and_repeats_none() {
    let points = ["settle.decided", "refuse.noted", "set.settled", "set.committed", "set.noted"];
    for_each(BESIDE, &points, |point| {
        let topic = Topic::create("setgivenup", 1);
        let mut home = Home::new(&topic);
        sealed_in_group(&mut home);
        topic.fill(Codec::None, Mix::Clean, 0, 50);
        read_to_the_end(&home);
        topic.fill(Codec::None, Mix::Clean, 50, 50);
        home.killed_at("seal.prepared");
        assert_eq!(numbers(&home), (0..50).collect::<Vec<_>>());
        let partition = format!("{}:0", topic.name);
        let args = ["set_offset", &partition, "50"];
        killed_at(&home, point, &args);
        topic.fill(Codec::None, Mix::Clean, 100, 20);
        read_to_the_end(&home);
        assert_eq!(numbers(&home), (0..120).collect::<Vec<_>>(), "{point}: each once");
        home.mtga(args).code(0);
        assert_stands(&home, &topic, 50, true);
        read_to_the_end(&home);
        assert_eq!(numbers(&home).len(), 120 + 70, "{point}: as asked for");
    });
}

pub(crate) fn adopt(ours: &Home, lost: &Home) -> Value {
    let done = Finished::run(ours.command().args(["--json", "adopt"]).arg(lost.path("")), 2 * SOON);
    serde_json::from_str(&done.success()).expect("adopt prints JSON")
}

/// Has a home read 600 records, and be killed with the second half of them written and not committed, or prepared.
pub(crate) fn lose(home: &mut Home, topic: &Topic, kind: &str) -> Vec<Record> {
    let mut produced = topic.fill(Codec::None, Mix::Dirty, 0, 300);
    read_to_the_end(home);
    produced.extend(topic.fill(Codec::None, Mix::Dirty, 300, 300));
    if kind == "sealed" {
        home.killed_at("seal.prepared");
    } else {
        // However long it takes to see that they are written.
        home.set("store.checkpoint", "1h");
        let service = home.foreground();
        home.wait_written(oracle::expect(&produced).counts.written);
        service.kill();
    }
    produced
}

/// Demands that every record has its line, or its entry of a failure queue, once in one of these homes.
pub(crate) fn assert_each_once(what: &str, homes: [&Home; 2], produced: &[Record]) {
    let expected = oracle::expect(produced);
    let mut found: Vec<_> = homes.iter().flat_map(|home| home.events()).flat_map(|file| file.lines).collect();
    let mut lines: Vec<_> = expected.lines.into_values().flatten().collect();
    found.sort();
    lines.sort();
    events::assert_same(what, &lines, &found);
    let entries: i64 = homes.iter().map(|home| home.integer("failure_queue_count")).sum();
    assert_eq!(entries as u64, expected.counts.rejected.iter().sum::<u64>(), "{what}");
    for home in homes {
        assert_eq!(events::hidden(&home.path("data")), Vec::<std::path::PathBuf>::new(), "{what}");
    }
}

/// Without a group, the adopted home's topic is read by ours only once it was adopted.
#[test]
fn an_adoption_that_is_interrupted_at_each_step_and_repeated_after_a_start_loses_and_repeats_nothing() {
    let points = [
        ("live", "adopt.recovered"),
        ("live", "adopt.settled"),
        ("live", "adopt.added"),
        ("live", "adopt.removed"),
        ("live", "adopt.moved"),
        ("live", "adopt.done"),
        ("sealed", "adopt.recovered"),
        ("sealed", "publish.renamed"),
        ("sealed", "adopt.settled"),
        ("sealed", "adopt.moved"),
    ];
    for_each(BESIDE, &points, |(kind, point)| {
        let what = format!("{kind}, {point}");
        let (topic, other) = (Topic::create("adoptkilled", 1), Topic::create("adoptkilledother", 1));
        let (mut lost, mut ours) = (Home::new(&topic), Home::new(&topic));
        for home in [&mut lost, &mut ours] {
            home.set("store.checkpoint", "100ms");
            if *kind == "sealed" {
                sealed(home);
            }
        }
        ours.set("kafka.topics", vec![other.name.clone()]);
        let mut produced = lose(&mut lost, &topic, kind);
        produced.extend(other.fill(Codec::None, Mix::Dirty, 1000, 100));
        read_to_the_end(&ours);
        let place = lost.path("");
        killed_at(&ours, point, &["adopt", place.to_str().expect("a path")]);
        produced.extend(other.fill(Codec::None, Mix::Dirty, 1100, 100));
        read_to_the_end(&ours);
        adopt(&ours, &lost);
        ours.set("kafka.topics", vec![topic.name.clone(), other.name.clone()]);
        produced.extend(topic.fill(Codec::None, Mix::Dirty, 600, 100));
        read_to_the_end(&ours);
        assert_each_once(&what, [&lost, &ours], &produced);
    });
}

/// In a group, ours takes the partitions over meanwhile. What was written live and not committed would be repeated by that, so
/// live homes are interrupted once the group has their positions.
#[test]
fn an_adoption_in_a_group_that_is_interrupted_and_repeated_after_a_start_loses_and_repeats_nothing() {
    let points = [
        ("sealed", "adopt.recovered"),
        ("sealed", "settle.decided"),
        ("sealed", "refuse.noted"),
        ("sealed", "adopt.settled"),
        ("sealed", "adopt.added"),
        ("sealed", "adopt.removed"),
        ("sealed", "adopt.done"),
        ("live", "adopt.committed"),
        ("live", "adopt.done"),
    ];
    for_each(BESIDE, &points, |(kind, point)| {
        let what = format!("{kind}, {point}");
        let topic = Topic::create("adoptgroup", 1);
        let (mut lost, mut ours) = (Home::new(&topic), Home::new(&topic));
        for home in [&mut lost, &mut ours] {
            in_group(home);
            if *kind == "sealed" {
                sealed(home);
            }
        }
        ours.set("kafka.instance_id", "two");
        let mut produced = lose(&mut lost, &topic, kind);
        let place = lost.path("");
        killed_at(&ours, point, &["adopt", place.to_str().expect("a path")]);
        produced.extend(topic.fill(Codec::None, Mix::Dirty, 600, 100));
        read_to_the_end(&ours);
        adopt(&ours, &lost);
        produced.extend(topic.fill(Codec::None, Mix::Dirty, 700, 100));
        read_to_the_end(&ours);
        assert_each_once(&what, [&lost, &ours], &produced);
    });
}
