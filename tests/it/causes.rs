//! What an operator is told when Kafka gives no records: the cause, and not what follows from it.

use std::time::Duration;

use mtga::control::State;
use serde_json::json;

use crate::harness::acl::{self, AUTHORIZER};
use crate::harness::proxy::{self, Proxy};
use crate::harness::{Codec, Home, Mix, OwnBroker, Record, SOON, Topic, holds, tick, wait_until};

/// Whether a text names a cause, in whatever case and with blanks or underscores.
fn names(text: &str, cause: &str) -> bool {
    let plain = |text: &str| text.to_lowercase().replace('_', " ");
    plain(text).contains(&plain(cause))
}

/// Waits until the service says why it waits, and demands that it says nothing else then for some looks.
fn waits_because(home: &Home, cause: &str) {
    let said = || {
        let status = home.try_status()?;
        let named = status.reason.as_ref().is_some_and(|reason| names(reason, cause));
        holds(status.state == State::Waiting && named, status)
    };
    wait_until(&format!("it says {cause}"), SOON, said);
    for _ in 0..50 {
        assert_eq!(said(), Ok(()), "it stays with that");
        tick();
    }
}

#[test]
fn a_tls_handshake_with_a_plain_port_and_an_address_that_is_dead_are_named() {
    let topic = Topic::create("cause", 1);
    let mut tls = Home::new(&topic);
    tls.set("kafka.librdkafka", json!({"security.protocol": "ssl"})).set("rpc.timeout", "3s");
    let nowhere = Proxy::to_nowhere(&topic.brokers);
    let mut dead = Home::with_brokers(&topic, nowhere.address());
    dead.set("rpc.timeout", "3s");
    let in_group = |home: &mut Home| {
        home.set("kafka.assignment", "group");
    };
    in_group(&mut tls);
    // librdkafka tells of the handshake itself, or of the connection in that state, by whichever it sees first.
    for (home, cause) in [(&mut tls, "ssl handshake"), (&mut dead, proxy::NOWHERE)] {
        for command in ["check", "kafka_lag"] {
            let done = home.mtga([command]).code(69);
            assert!(names(&done.stderr, cause), "{command}: {}", done.stderr);
        }
        home.start();
        waits_because(home, cause);
        // A stop may take its time.
        home.set("rpc.timeout", "20s");
        home.stop();
    }
}

#[test]
fn a_record_above_what_may_be_received_names_the_property() {
    let topic = Topic::with_config("oversize", 1, &[("max.message.bytes", "20000000")]);
    let mut home = Home::new(&topic);
    home.set("kafka.librdkafka", json!({"receive.message.max.bytes": "1000000"}));
    home.start();
    let before = topic.fill(Codec::None, Mix::Clean, 0, 10);
    home.wait_done(&before);
    let value = Some(vec![b'x'; 12_000_000]);
    topic.produce(Codec::None, &[Record { partition: 0, key: None, value, timestamp: 1_700_000_000_000 }]);
    waits_because(&home, "increase receive.message.max.bytes");
    home.set("kafka.librdkafka", json!({}));
    home.mtga(["restart"]).success();
    wait_until("the record is taken", SOON, || {
        let status = home.try_status()?;
        holds(status.counts.consumed == 11 && status.state == State::Consuming, status)
    });
    home.stop();
}

#[test]
fn the_answer_of_the_group_that_is_waited_for_is_named_with_the_time_it_takes() {
    let topic = Topic::create("joining", 1);
    let proxy = Proxy::new(&topic.brokers);
    let mut home = Home::with_brokers(&topic, proxy.address());
    home.set("kafka.assignment", "group");
    proxy.delay_answers(proxy::JOIN_GROUP, 2 * SOON);
    let service = home.foreground();
    wait_until("it says what it waits for, and for how long", SOON, || {
        let status = home.try_status()?;
        let named = status.reason.as_ref().is_some_and(|reason| reason.contains("to JoinGroup"));
        holds(named && status.reason_seconds >= Some(2), status)
    });
    let table = home.mtga(["status"]).success();
    assert!(table.contains("(for "), "{table}");
    proxy.delay_answers(proxy::JOIN_GROUP, Duration::ZERO);
    service.kill();
}

#[test]
fn a_right_that_is_missing_is_named_by_check_and_by_the_service_until_it_is_granted() {
    let broker = OwnBroker::new(AUTHORIZER);
    let address = broker.address();
    let topic = Topic::on(address, "rights", 1, &[]);
    let mut home = Home::new(&topic);
    home.set("kafka.assignment", "group").set("rpc.timeout", "20s");
    let group = format!("g_{}", topic.name);
    let (of_group, of_topic) = (format!("grant READ on Group {group}"), format!("grant READ on Topic {}", topic.name));
    let checked = |code, named: &str, unnamed: &str| {
        let done = home.mtga(["check"]).code(code);
        assert!(done.stderr.contains(named) && !done.stderr.contains(unnamed), "{done:?}");
    };
    assert_eq!(home.mtga(["check"]).success(), "ok");

    acl::restrict(address, acl::GROUP, &group);
    checked(78, &of_group, &of_topic);
    acl::grant(address, acl::GROUP, &group, acl::DESCRIBE);
    checked(78, &of_group, &of_topic);
    let service = home.foreground();
    waits_because(&home, &of_group);
    acl::grant(address, acl::GROUP, &group, acl::READ);
    home.wait_for(State::Consuming);
    let mut produced = topic.fill(Codec::None, Mix::Clean, 0, 10);
    home.wait_done(&produced);

    acl::restrict(address, acl::TOPIC, &topic.name);
    checked(78, &of_topic, &of_group);
    acl::grant(address, acl::TOPIC, &topic.name, acl::DESCRIBE);
    checked(78, &of_topic, &of_group);
    waits_because(&home, &of_topic);
    // That brokers answer what needs no such right does not end it; they are asked once a second.
    for _ in 0..2 {
        waits_because(&home, &of_topic);
    }
    acl::grant(address, acl::TOPIC, &topic.name, acl::WRITE);
    produced.extend(topic.fill(Codec::None, Mix::Clean, 10, 10));
    waits_because(&home, &of_topic);
    acl::grant(address, acl::TOPIC, &topic.name, acl::READ);
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    assert_eq!(home.mtga(["check"]).success(), "ok");
    service.terminate();
}
