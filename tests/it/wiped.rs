//! A tool that sets the group's offset to where it is wipes what instances have left beside it: what the group took before is not
//! thrown away.

use mtga::msource::TopicPartition;
use mtga::msource::native::{Client, Commit};
use serde_json::json;

use crate::harness::topic::committed;
use crate::harness::{Codec, Home, Mix, SOON, Topic, events, holds, wait_until};

/// Records until the group is wiped.
const RECORDS: u64 = 500;

/// Sets the offset as a tool does, once the group has no member.
pub(crate) fn set(topic: &Topic, offset: i64) {
    let properties = [("bootstrap.servers", topic.brokers.clone()), ("group.id", format!("g_{}", topic.name))];
    let tool = Client::new(&properties.map(|(key, value)| (key.to_owned(), value)).into()).expect("a client");
    let partition = TopicPartition { topic: topic.name.as_str().into(), partition: 0 };
    let commit = Commit { partition, offset, leader_epoch: -1, metadata: String::new() };
    wait_until("the group has no member", SOON, || {
        let done = tool.commit(std::slice::from_ref(&commit), SOON);
        holds(done == Ok(vec![Ok(())]), done)
    });
}

fn homes(topic: &Topic) -> [Home; 2] {
    ["one", "two"].map(|name| {
        let mut home = Home::new(topic);
        home.in_group().set("kafka.instance_id", name).set("kafka.librdkafka", json!({"session.timeout.ms": "2000"}));
        home.set("sink.visibility", "sealed").set("sink.rotate", json!({"age": "1s", "idle": "300ms"}));
        home
    })
}

/// The group takes a seal of the first home, whose instance dies before it learns that. A tool wipes the text, the second home
/// reads on, and the first one comes back.
fn wipe_and_read_on(topic: &Topic, [first, second]: &[Home; 2], before: u64) {
    topic.fill(Codec::Snappy, Mix::Clean, before, RECORDS - before);
    first.killed_at("seal.answered");
    assert_eq!(
        committed(&format!("g_{}", topic.name), topic).get(&0),
        Some(&(RECORDS as i64)),
        "the group has taken it"
    );
    set(topic, RECORDS as i64);
    let later = topic.fill(Codec::Snappy, Mix::Clean, RECORDS, 100);
    let count = |home: &Home| home.events().iter().map(|file| file.lines.len()).sum::<usize>();
    let there = count(second);
    let service = second.foreground();
    wait_until("it has read on", SOON, || {
        let found = count(second);
        holds(found == there + later.len(), (found, second.try_status()))
    });
    service.terminate();
    let service = first.foreground();
    let mut aside = Vec::new();
    wait_until("what it had prepared is set aside", SOON, || {
        let hidden = events::hidden(&first.path("data"));
        aside = hidden.iter().filter(|path| path.to_string_lossy().ends_with(".undecided")).cloned().collect();
        holds(!aside.is_empty() && hidden.len() == aside.len(), (hidden, first.try_status()))
    });
    service.terminate();
    let lines: usize = aside.iter().map(|path| std::fs::read_to_string(path).expect("a file").lines().count()).sum();
    assert_eq!(lines as u64, RECORDS - before, "each line that the group took is there");
    assert_eq!(count(first), 0);
    assert!(first.log().contains("they are set aside"), "it is said");
}

#[test]
fn what_the_group_took_of_a_partition_that_a_tool_began_is_not_thrown_away_when_a_tool_wipes_its_text() {
    let topic = Topic::create("wiped", 1);
    set(&topic, 0);
    wipe_and_read_on(&topic, &homes(&topic), 0);
}

#[test]
fn what_the_group_took_between_two_turns_of_another_instance_is_not_thrown_away_when_a_tool_wipes_its_text() {
    let topic = Topic::create("wipedturns", 1);
    let homes = homes(&topic);
    let before = topic.fill(Codec::Snappy, Mix::Clean, 0, 200);
    let service = homes[1].foreground();
    homes[1].wait_done(&before);
    service.terminate();
    wipe_and_read_on(&topic, &homes, 200);
}
