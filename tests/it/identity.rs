//! Whose records stand at a stored offset: leader epochs that fit nothing, logs that were cut off, topics created again, and
//! answers of brokers that pass; and batches that are whole and cannot be unpacked. Each test counts every record at the end.

use mtga::control::State;
use mtga::msource::TopicPartition;
use mtga::msource::native::{Client, Commit};
use nix::sys::signal::{Signal, kill};
use serde_json::json;

use crate::harness::process::Service;
use crate::harness::proxy::METADATA;
use crate::harness::records::padded;
use crate::harness::topic::{Transaction, committed};
use crate::harness::{Codec, Home, Mix, OwnBroker, Proxy, Record, SOON, Topic, events, holds, oracle, wait_until};

/// The id of the cluster, as `scripts/kafka` sets it.
const CLUSTER: &[u8] = b"bWdhLXRlc3QtY2x1c3Rlcgo";

fn in_group(topic: &Topic) -> Home {
    let mut home = Home::new(topic);
    home.in_group();
    home
}

/// A client that asks and commits from outside of the group.
fn tool(topic: &Topic) -> Client {
    let properties = [("bootstrap.servers", topic.brokers.clone()), ("group.id", format!("g_{}", topic.name))];
    Client::new(&properties.map(|(key, value)| (key.to_owned(), value)).into()).expect("a client")
}

fn id_of(topic: &Topic) -> Result<String, String> {
    let found = tool(topic).describe_topics(std::slice::from_ref(&topic.name), SOON).expect("an answer").remove(0);
    found.map(|topic| topic.id).map_err(|error| error.to_string())
}

/// The id of a topic that was created again, once the broker tells it.
fn new_id_of(topic: &Topic, old: &str) -> String {
    let mut id = String::new();
    wait_until("the topic has another id", SOON, || {
        id = id_of(topic)?;
        holds(id != old, &id)
    });
    id
}

/// What one partition has from an offset on.
fn from(records: &[Record], partition: i32, offset: usize) -> Vec<Record> {
    records.iter().filter(|record| record.partition == partition).skip(offset).cloned().collect()
}

#[test]
fn a_committed_leader_epoch_that_the_broker_does_not_know_skips_no_record() {
    let topic = Topic::create("epoch", 2);
    let produced = topic.fill(Codec::Snappy, Mix::Clean, 0, 1000);
    // A tool leaves no text beside the offset; another instance leaves its own.
    let commit = |partition, metadata: String| Commit {
        partition: TopicPartition { topic: topic.name.as_str().into(), partition },
        offset: 100,
        leader_epoch: 50,
        metadata,
    };
    let commits = [commit(0, String::new()), commit(1, format!("other/1/5/{}", id_of(&topic).expect("it is there")))];
    assert_eq!(tool(&topic).commit(&commits, SOON).expect("an answer"), [Ok(()), Ok(())]);
    let home = in_group(&topic);
    let service = home.foreground();
    let expected = [from(&produced, 0, 100), from(&produced, 1, 100)].concat();
    home.wait_done(&expected);
    home.assert_exactly(&expected);
    assert_eq!(home.status().gap_records, 0);
    service.terminate();
}

#[test]
fn a_place_behind_a_marker_is_no_cut_and_a_move_back_is_told_to_the_group_before_it_is_read_on() {
    let broker = OwnBroker::new("");
    let marked = Topic::on(broker.address(), "marked", 1, &[]);
    let records: Vec<_> = (0..100).map(|n| Mix::Clean.record(n, 1)).collect();
    let open = marked.transact(&records, Transaction::Open).expect("it is open");
    let cut = ["live", "sealed"].map(|visibility| {
        let topic = Topic::on(broker.address(), visibility, 1, &[]);
        let mut old = topic.fill(Codec::Snappy, Mix::Clean, 0, 600);
        old.extend(topic.fill(Codec::Snappy, Mix::Clean, 600, 400));
        let homes = [0, 1].map(|_| {
            let mut home = in_group(&topic);
            home.set("sink.visibility", visibility).set("sink.rotate", json!({"age": "1s", "idle": "300ms"}));
            home
        });
        let service = homes[0].foreground();
        homes[0].wait_done(&old);
        service.terminate();
        (topic, homes, old)
    });
    broker.stop();
    for (topic, ..) in &cut {
        broker.keep_batches(topic, 600);
    }
    broker.start();
    // The marker is of a later epoch than the records before it.
    open.commit();
    for visibility in ["live", "sealed"] {
        let mut home = in_group(&marked);
        home.set("kafka.group_id", format!("g_{}_{visibility}", marked.name))
            .set("kafka.out_of_range", "stop")
            .set("sink.visibility", visibility);
        for _ in 0..2 {
            let service = home.foreground();
            home.wait_done(&records);
            wait_until("it stands behind the marker", SOON, || {
                let offsets = home.offsets();
                holds(offsets[0].current == Some(101), offsets)
            });
            service.terminate();
            home.assert_exactly(&records);
        }
        assert!(!home.log().contains("was cut off"), "nothing was");
        if visibility == "sealed" {
            home.mtga(["verify"]).code(0);
        }
    }
    for (topic, homes, old) in cut {
        let group = format!("g_{}", topic.name);
        let first = [old, topic.fill(Codec::Snappy, Mix::Clean, 1000, 300)].concat();
        homes[0].killed_at("gap.noted");
        let service = homes[0].foreground();
        homes[0].wait_done(&first);
        wait_until("the group knows", SOON, || {
            let found = committed(&group, &topic);
            holds(found[&0] == 900, found)
        });
        // Hidden files get their names after that.
        wait_until("everything is published", SOON, || {
            let hidden = events::hidden(&homes[0].path("data"));
            holds(hidden.is_empty(), hidden)
        });
        service.kill();
        homes[0].assert_exactly(&first);
        // The next owner begins where the records go on.
        let next = topic.fill(Codec::Snappy, Mix::Clean, 1300, 200);
        let service = homes[1].foreground();
        homes[1].wait_done(&next);
        service.terminate();
        events::assert_exactly(&oracle::expect(&next).lines, &homes[1].events());
    }
}

#[test]
fn hidden_records_that_retention_overtook_leave_set_offset_a_way_out_of_the_policy_stop() {
    let topic = Topic::create("overtaken", 1);
    let mut produced = topic.fill(Codec::Snappy, Mix::Clean, 0, 300);
    let homes = ["started", "moved"].map(|name| {
        let mut home = in_group(&topic);
        home.set("kafka.group_id", format!("g_{}_{name}", topic.name)).set("kafka.out_of_range", "stop");
        home.set("sink.visibility", "sealed").set("sink.rotate", json!({"age": "1h", "idle": "1h"}));
        let service = home.foreground();
        home.wait_done(&produced);
        wait_until("it is durable", SOON, || {
            let offsets = home.offsets();
            holds(offsets[0].current == Some(300), offsets)
        });
        service.kill();
        home
    });
    produced.extend(topic.fill(Codec::Snappy, Mix::Clean, 300, 300));
    topic.delete_records(0, 500);
    let refused = homes[1].mtga(["set_offset", &topic.name, "500"]).code(1);
    assert!(refused.stderr.contains("by moving to 0 first"), "a way out is named: {}", refused.stderr);
    homes[1].mtga(["set_offset", &topic.name, "0"]).success();
    // A start publishes what is hidden, before it finds that it cannot go on.
    assert_eq!(homes[0].foreground().ended(), Some(1));
    let read = [&produced[..300], &[]];
    for (home, read) in homes.iter().zip(read) {
        home.mtga(["set_offset", &topic.name, "500"]).success();
        let kept = [read, &produced[500..]].concat();
        let service = home.foreground();
        home.wait_done(&kept);
        service.terminate();
        events::assert_exactly(&oracle::expect(&kept).lines, &home.events());
    }
}

#[test]
fn a_batch_that_becomes_fifteen_thousand_times_as_large_is_read_or_waited_before_and_is_never_a_gap() {
    let topic = Topic::create("packed", 1);
    let mut produced: Vec<_> = (0..100).map(|n| padded(n, 1, 550_000)).collect();
    topic.produce_one_batch(Codec::Zstd, &produced);
    produced.extend(topic.fill(Codec::Zstd, Mix::Clean, 100, 5));
    let read = |home: &Home| {
        let service = home.foreground();
        home.wait_done(&produced);
        home.assert_exactly(&produced);
        assert_eq!(home.status().gap_records, 0);
        service.terminate();
    };
    // As it comes out of the box.
    read(&Home::new(&topic));
    let mut small = Home::new(&topic);
    small.set("memory", "16MiB");
    let service = small.foreground_with(|command| command.env("FAULT_WATCHDOG_MS", "5000"));
    small.wait_for(State::Paused);
    let paused = small.status();
    wait_until("the watchdog has had time, and more than the tries of damage", SOON, || {
        let uptime = small.status().uptime_seconds;
        holds(uptime >= paused.uptime_seconds.map(|seconds| seconds + 10), uptime)
    });
    let status = small.status();
    assert!(status.reason.as_ref().is_some_and(|why| why.contains("receive.message.max.bytes")), "{status:?}");
    assert_eq!((status.state, status.gap_records, status.client_restarts), (State::Paused, 0, paused.client_restarts));
    assert_eq!(status.counts.consumed, 0);
    service.terminate();
    small.set("kafka.librdkafka", json!({"receive.message.max.bytes": "1000000000"}));
    read(&small);
}

/// Where a text stands in an answer.
fn places<'a>(frame: &[u8], text: &'a [u8]) -> impl Iterator<Item = usize> + use<'a> {
    let found: Vec<_> = (0..frame.len()).filter(|at| frame[*at..].starts_with(text)).collect();
    found.into_iter()
}

/// The bytes of a topic's id, which is base64.
fn raw(id: &str) -> [u8; 16] {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |byte: u8| {
        let byte = if byte == b'-' {
            b'+'
        } else if byte == b'_' {
            b'/'
        } else {
            byte
        };
        DIGITS.iter().position(|digit| *digit == byte).expect("a digit of base64") as u128
    };
    // 22 digits have 132 bits, of which the last four are none of the id's.
    let (last, digits) = id.as_bytes().split_last().expect("an id");
    let head = digits.iter().fold(0, |bits, byte| bits << 6 | digit(*byte));
    (head << 2 | digit(*last) >> 4).to_be_bytes()
}

/// A home of a group behind a proxy, which believes what may pass after so many milliseconds, stopped before it asks for topics.
fn asking(home: &Home, doubt: &str) -> Service {
    let service = home
        .foreground_with(|command| command.envs([("FAULT_DOUBT_MS", doubt), ("FAULT_POINT", "assign.settled:1:stop")]));
    wait_until("it is about to ask", SOON, || {
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", service.pid())).map_err(|error| error.to_string())?;
        holds(stat.contains(") T "), stat)
    });
    service
}

fn go_on(service: &Service) {
    kill(service.pid(), Signal::SIGCONT).expect("it is stopped");
}

#[test]
fn a_broker_that_does_not_know_a_topic_for_a_moment_sets_nothing_aside() {
    assert_what_is_hidden_waits_for(Proxy::hide_topic, |topic| format!("the brokers have no topic {topic} any more"));
}

#[test]
fn a_broker_that_leaves_a_topic_out_of_its_answer_for_a_moment_sets_nothing_aside() {
    assert_what_is_hidden_waits_for(Proxy::leave_out_topic, |topic| {
        format!("cannot find out whether the topic of {topic}[0] is still there")
    });
}

/// A home with hidden lines waits while brokers hide its topic so, and logs this of the topic.
fn assert_what_is_hidden_waits_for(hide: fn(&Proxy, &str), logged: impl Fn(&str) -> String) {
    let topic = Topic::create("unknown", 1);
    let proxy = Proxy::new(&topic.brokers);
    let mut home = Home::with_brokers(&topic, proxy.address());
    home.in_group().set("sink.visibility", "sealed").set("sink.rotate", json!({"age": "1h", "idle": "1h"}));
    let produced = topic.fill(Codec::Snappy, Mix::Clean, 0, 1000);
    let service = home.foreground();
    home.wait_done(&produced);
    wait_until("it is durable", SOON, || {
        let offsets = home.offsets();
        holds(offsets[0].current == Some(1000), offsets)
    });
    service.kill();
    let service = asking(&home, "60000");
    hide(&proxy, &topic.name);
    go_on(&service);
    home.wait_logged(&logged(&topic.name));
    proxy.pass_unchanged();
    home.wait_done(&produced);
    service.terminate();
    home.assert_exactly(&produced);
    assert_eq!(events::hidden(&home.path("data")), Vec::<std::path::PathBuf>::new());
}

#[test]
fn an_answer_without_a_controller_or_with_an_id_that_was_replaced_neither_skips_nor_repeats() {
    let topic = Topic::create("again", 1);
    let proxy = Proxy::new(&topic.brokers);
    let mut home = Home::with_brokers(&topic, proxy.address());
    home.in_group();
    let mut produced = topic.fill(Codec::Snappy, Mix::Clean, 0, 1000);
    let service = home.foreground();
    home.wait_done(&produced);
    service.terminate();
    let old = id_of(&topic).expect("it is there");
    topic.recreate();
    let [old, new] = [old.clone(), new_id_of(&topic, &old)].map(|id| raw(&id));
    produced.extend(topic.fill(Codec::Snappy, Mix::Clean, 1000, 3000));
    let service = asking(&home, "1500");
    proxy.rewrite(METADATA, |frame| {
        for at in places(frame, CLUSTER) {
            // The controller stands behind the cluster's id.
            let controller = at + CLUSTER.len();
            frame[controller..controller + 4].copy_from_slice(&77_i32.to_be_bytes());
        }
    });
    go_on(&service);
    home.wait_logged("the cluster names a controller that is none of its brokers");
    proxy.pass_unchanged();
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    service.terminate();
    // A broker that is behind tells the topic that is no more.
    let service = asking(&home, "60000");
    proxy.rewrite(METADATA, move |frame| {
        for at in places(frame, &new) {
            frame[at..at + 16].copy_from_slice(&old);
        }
    });
    go_on(&service);
    home.wait_logged(&format!("the brokers tell another id of topic {}", topic.name));
    proxy.pass_unchanged();
    produced.extend(topic.fill(Codec::Snappy, Mix::Clean, 4000, 100));
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    service.terminate();
}
