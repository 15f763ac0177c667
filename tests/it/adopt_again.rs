//! Adoptions beside copies of the same home, brokers that do not name a topic for a while, and foreign configurations.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::process::Finished;
use crate::harness::proxy::{METADATA, OFFSET_COMMIT, Proxy};
use crate::harness::topic::committed;
use crate::harness::{Codec, Home, Mix, Record, SOON, Topic, holds, wait_until};

fn adopt(ours: &Home, lost: &Home) -> Value {
    let done = Finished::run(ours.command().args(["--json", "adopt"]).arg(lost.path("")), 2 * SOON);
    serde_json::from_str(&done.success()).expect("adopt prints JSON")
}

/// Has a home read so many records of its topic that all go into its failure queue.
fn reject(home: &Home, topic: &Topic, numbers: std::ops::Range<u64>, queued: u64) {
    let broken = |n| Record { value: Some(format!("{{broken {n}").into_bytes()), ..record() };
    topic.produce(Codec::None, &numbers.map(broken).collect::<Vec<_>>());
    home.start();
    wait_until("all are in the failure queue", SOON, || {
        let status = home.try_status()?;
        holds(status.failure_queue_records == queued && status.lag == Some(0), status)
    });
    home.stop();
}

fn record() -> Record {
    Record { partition: 0, key: None, value: None, timestamp: 1_700_000_000_000 }
}

#[test]
fn entries_of_a_copy_that_went_on_are_not_taken_for_those_that_were_taken_over() {
    let (topic, other) = (Topic::create("copied", 1), Topic::create("copiedother", 1));
    let (lost, ours, mut copy) = (Home::new(&topic), Home::new(&topic), Home::new(&topic));
    reject(&lost, &topic, 0..20, 20);
    for part in ["tmp/store", "data"] {
        drop(fs::remove_dir_all(copy.path(part)));
        fs::create_dir_all(copy.path("tmp")).expect("a directory");
        let done = Command::new("cp").arg("--archive").arg(lost.path(part)).arg(copy.path(part)).status();
        assert!(done.is_ok_and(|done| done.success()));
    }
    reject(&lost, &topic, 20..30, 30);
    copy.set("kafka.topics", vec![other.name.clone()]);
    reject(&copy, &other, 0..15, 35);

    let report = adopt(&ours, &lost);
    assert_eq!((&report["entries"], &report["left_entries"]), (&json!(30), &json!(0)), "{report}");
    let report = adopt(&ours, &copy);
    // Of the copy's own, ten have numbers under which entries came from the other one.
    assert_eq!((&report["entries"], &report["known_entries"]), (&json!(5), &json!(20)), "{report}");
    assert_eq!(report["left_entries"], json!(10), "{report}");
    assert_eq!((ours.integer("failure_queue_count"), copy.integer("failure_queue_count")), (35, 10));
    let of_other = |home: &Home| home.failures().into_iter().filter(|entry| entry.topic == other.name).count();
    assert_eq!((of_other(&ours), of_other(&copy)), (5, 10), "each is in one of them");
    assert!(ours.log().contains("entries stay in the failure queue of the adopted home"), "{}", ours.log());
}

#[test]
fn positions_of_a_topic_that_brokers_do_not_name_for_a_while_are_not_given_up() {
    let topic = Topic::create("adoptaway", 1);
    let proxy = Proxy::new(&topic.brokers);
    let mut lost = Home::with_brokers(&topic, proxy.address());
    lost.in_group().set("store.checkpoint", "100ms");
    let service = lost.foreground();
    lost.wait_for(mtga::control::State::Consuming);
    // The group never learns how far it came.
    proxy.hold_requests(OFFSET_COMMIT);
    let produced = topic.fill(Codec::None, Mix::Clean, 0, 200);
    wait_until("everything is durable", SOON, || {
        let state = mtga::msource::journal::read(&lost.path("tmp/store/journal")).map_err(|error| error.to_string())?;
        let consumed = state.state.map_or(0, |state| state.totals.consumed);
        holds(consumed == produced.len() as u64, consumed)
    });
    service.kill();
    drop(proxy);
    let proxy = Proxy::new(&topic.brokers);
    lost.set("kafka.brokers", proxy.address());
    let mut ours = Home::new(&topic);
    ours.in_group().set("kafka.instance_id", "two");
    proxy.hide_topic(&topic.name);
    let report = std::thread::scope(|scope| {
        let command = scope.spawn(|| {
            let mut command = ours.command();
            command.env("FAULT_DOUBT_MS", "60000").args(["--json", "adopt"]).arg(lost.path(""));
            Finished::run(&mut command, 2 * SOON)
        });
        wait_until("it has asked for the topic again and again", SOON, || {
            holds(proxy.answered(METADATA) >= 12 || command.is_finished(), proxy.answered(METADATA))
        });
        proxy.pass_unchanged();
        command.join().expect("no panic")
    });
    let report: Value = serde_json::from_str(&report.success()).expect("JSON");
    assert_eq!(report["positions"][0]["outcome"], json!("committed"), "{report}");
    assert_eq!(committed(&format!("g_{}", topic.name), &topic).get(&0), Some(&200));
}

#[test]
fn the_configuration_of_another_home_gets_nothing_of_our_environment() {
    let topic = Topic::create("adoptenv", 1);
    let produced = topic.fill(Codec::None, Mix::Clean, 0, 10);
    let (mut lost, ours) = (Home::new(&topic), Home::new(&topic));
    lost.start();
    lost.wait_done(&produced);
    lost.stop();
    lost.set("kafka.librdkafka", json!({"client.rack": "${OUR_SECRET}"}));
    let adopt = || {
        Finished::run(ours.command().env("OUR_SECRET", "hush").args(["--json", "adopt"]).arg(lost.path("")), 2 * SOON)
    };
    let refused = adopt().code(78);
    for text in ["the variable OUR_SECRET is not set", "into its config/common.env"] {
        assert!(refused.stderr.contains(text) && !refused.stderr.contains("hush"), "{text}: {refused:?}");
    }
    fs::write(lost.path("config/common.env"), "OUR_SECRET=rack\n").expect("a file");
    adopt().code(0);
}
