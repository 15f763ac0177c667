//! Topics that are named by patterns: `check`, the lag and each protocol of the group mean the same ones.

use mtga::control::State;
use serde_json::json;

use crate::harness::{Codec, Home, Mix, SOON, Topic, holds, wait_until};

#[test]
fn a_pattern_means_the_same_topics_in_every_protocol_and_none_of_the_brokers_own() {
    let topics = [Topic::create("meant", 1), Topic::create("meant", 1)];
    // Its end is open: it means every topic that begins so.
    let pattern = format!("^(__consumer_offsets|__transaction_state|meant_{})", std::process::id());
    let mut produced = topics[0].fill(Codec::Snappy, Mix::Clean, 0, 100);
    produced.extend(topics[1].fill(Codec::Snappy, Mix::Clean, 100, 100));
    for protocol in ["none", "classic", "consumer"] {
        let mut home = Home::new(&topics[0]);
        home.set("kafka.topics", json!([pattern])).set("kafka.group_id", format!("g_{}_{protocol}", topics[0].name));
        if protocol != "none" {
            home.set("kafka.assignment", "group").set("kafka.librdkafka", json!({"group.protocol": protocol}));
        }
        home.mtga(["check"]).success();
        assert_eq!(home.integer("kafka_lag"), 200, "{protocol}: before the first start");
        home.start();
        home.wait_done(&produced);
        // Its own commits would come as records of `__consumer_offsets`.
        let status = home.status();
        assert_eq!((status.partitions, status.counts.written, status.failure_queue_records), (2, 200, 0), "{protocol}");
        assert_eq!(home.offsets().len(), 2, "{protocol}");
        home.stop();
        assert_eq!(home.integer("kafka_lag"), 0, "{protocol}");
    }
}

#[test]
fn a_pattern_that_matches_nothing_has_no_lag_and_one_that_is_read_in_several_ways_is_refused() {
    let topic = Topic::create("unmatched", 1);
    let mut home = Home::new(&topic);
    let told = "the brokers have no topic that matches `^no_such_topic_`";
    for (assignment, protocol) in [("group", "classic"), ("group", "consumer"), ("all", "classic")] {
        home.set("kafka.assignment", assignment).set("kafka.librdkafka", json!({"group.protocol": protocol}));
        home.set("kafka.topics", json!(["^no_such_topic_"]));
        for command in ["check", "kafka_lag", "offset_checker"] {
            let done = home.mtga([command]).code(69);
            assert!(done.stderr.contains(told), "{assignment}, {command}: {}", done.stderr);
        }
        home.start();
        wait_until("it waits for a topic", SOON, || {
            let status = home.try_status()?;
            let named = status.reason.as_ref().is_some_and(|reason| reason.contains("^no_such_topic_"));
            holds(status.state == State::Waiting && named && status.lag.is_none(), status)
        });
        home.mtga(["kafka_lag"]).code(69);
        home.stop();
    }
    home.set("kafka.topics", json!([r"^unmatched_\d+"]));
    let done = home.mtga(["check", "--offline"]).code(78);
    assert!(done.stderr.contains("write [0-9]"), "{}", done.stderr);
}

#[test]
fn a_start_before_1970_is_the_first_record() {
    let topic = Topic::create("old", 1);
    let produced = topic.fill(Codec::Snappy, Mix::Clean, 0, 100);
    let mut home = Home::new(&topic);
    home.set("kafka.start", "1969-12-31T23:59:59.999Z");
    assert_eq!(home.integer("kafka_lag"), 100);
    home.start();
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    home.stop();
    home.mtga(["set_offset", "all", "1969-12-31T23:59:59Z"]).success();
    assert_eq!(home.integer("kafka_lag"), 100);
}
