//! Offsets that the group refuses for the lack of a right: those of one topic, while others are read.

use std::collections::BTreeSet;
use std::fs;
use std::sync::OnceLock;

use mtga::control::State;
use nix::sys::signal::{Signal, kill};
use serde_json::json;

use crate::harness::acl::{self, AUTHORIZER};
use crate::harness::{Codec, Home, Mix, OwnBroker, Record, SOON, Topic, holds, oracle, wait_until};

/// Records of each topic.
const RECORDS: u64 = 100;

/// A broker that the tests here share; it ends with this process.
fn address() -> &'static str {
    static BROKER: OnceLock<OwnBroker> = OnceLock::new();
    BROKER.get_or_init(|| OwnBroker::new(AUTHORIZER)).address()
}

/// A home that reads two topics in a group: the first one stays readable.
fn of_two(purpose: &str) -> (Home, [Topic; 2]) {
    let topics = ["allowed", "denied"].map(|name| Topic::on(address(), &format!("{purpose}{name}"), 1, &[]));
    let mut home = Home::new(&topics[0]);
    home.in_group().set("kafka.topics", json!([topics[0].name, topics[1].name]));
    (home, topics)
}

fn sealed(home: &mut Home) {
    home.set("sink.visibility", "sealed").set("sink.rotate", json!({"age": "1s", "idle": "300ms"}));
}

/// From now on the topic may be described and not be read: its offsets are not committed.
fn deny(topic: &Topic) {
    acl::restrict(address(), acl::TOPIC, &topic.name);
    acl::grant(address(), acl::TOPIC, &topic.name, acl::DESCRIBE);
    acl::grant(address(), acl::TOPIC, &topic.name, acl::WRITE);
}

fn fill(topic: &Topic, first: u64) -> Vec<Record> {
    topic.fill(Codec::Snappy, Mix::Clean, first, RECORDS)
}

fn lines(home: &Home) -> BTreeSet<String> {
    home.events().into_iter().flat_map(|file| file.lines).collect()
}

fn expected(records: &[Record]) -> BTreeSet<String> {
    oracle::expect(records).lines.into_values().flatten().collect()
}

/// Waits until the lines of these records can be read and the service says which right is missing. Then it is granted, and
/// the others come as well.
fn comes_first_and_the_others_when_granted(home: &Home, first: &[Record], denied: &Topic, others: &[Record]) {
    let wanted = expected(first);
    let right = format!("grant READ on Topic {}", denied.name);
    wait_until("the topic that may be read is there, and the reason is shown", SOON, || {
        let status = home.try_status()?;
        let is_said = status.reason.as_ref().is_some_and(|reason| reason.contains(&right));
        let found = lines(home);
        holds(found == wanted && is_said && status.state == State::Consuming, (found.len(), status))
    });
    acl::grant(address(), acl::TOPIC, &denied.name, acl::READ);
    let all: Vec<_> = first.iter().chain(others).cloned().collect();
    let wanted = expected(&all);
    wait_until("all is there", SOON, || {
        let found = lines(home);
        holds(found == wanted, (found.len(), home.try_status()))
    });
    let found: usize = home.events().iter().map(|file| file.lines.len()).sum();
    assert_eq!(found, all.len(), "each once");
}

#[test]
fn a_topic_that_may_not_be_read_holds_back_no_other() {
    let (home, [allowed, denied]) = of_two("start");
    let (first, others) = (fill(&allowed, 0), fill(&denied, RECORDS));
    deny(&denied);
    let service = home.foreground();
    comes_first_and_the_others_when_granted(&home, &first, &denied, &others);
    service.terminate();
}

#[test]
fn a_topic_that_may_not_be_read_any_more_does_not_keep_the_files_of_others_hidden() {
    let (mut home, [allowed, denied]) = of_two("running");
    sealed(&mut home);
    let others = fill(&denied, 0);
    // In the same seal, if the service gets both in time.
    let mut first = fill(&allowed, RECORDS);
    let service = home.foreground_with(|command| command.env("FAULT_POINT", "seal.commit:1:stop"));
    wait_until("it is about to commit", SOON, || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", service.pid())).map_err(|error| error.to_string())?;
        holds(stat.contains(") T "), stat)
    });
    deny(&denied);
    kill(service.pid(), Signal::SIGCONT).expect("it is stopped");
    first.extend(fill(&allowed, 2 * RECORDS));
    comes_first_and_the_others_when_granted(&home, &first, &denied, &others);
    service.terminate();
}

#[test]
fn a_prepared_range_that_the_group_refuses_holds_back_no_other_partition_at_a_start() {
    let (mut home, [allowed, denied]) = of_two("restart");
    sealed(&mut home);
    let others = fill(&denied, 0);
    home.killed_at("seal.prepared");
    deny(&denied);
    let first = fill(&allowed, RECORDS);
    let service = home.foreground();
    comes_first_and_the_others_when_granted(&home, &first, &denied, &others);
    service.terminate();
}
