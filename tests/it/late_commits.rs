//! Commits of an instance that died which reach the group after it: nothing is decided before none can come any more.

use std::path::PathBuf;

use mtga::control::State;
use serde_json::{Value, json};

use crate::harness::broker::LASTING;
use crate::harness::process::Finished;
use crate::harness::proxy::{CONSUMER_GROUP_DESCRIBE, DESCRIBE_GROUPS, OFFSET_COMMIT, Proxy};
use crate::harness::topic::committed;
use crate::harness::{Codec, Home, Mix, OwnBroker, Record, SOON, Topic, events, holds, oracle, wait_until};

/// Records of the range whose commit is late.
const RECORDS: u64 = 500;

/// How long the group keeps the instance that died: enough for the commit to arrive within it on a busy machine.
const SESSION: &str = "12000";

fn classic() -> Value {
    json!({"session.timeout.ms": SESSION})
}

/// KIP-848, where brokers know how long sessions are.
fn by_brokers() -> Value {
    json!({"group.protocol": "consumer"})
}

fn sealed_in_group(home: &mut Home, properties: Value) {
    // The brokers would keep a static member from joining while its session of before lasts.
    let name = if properties == by_brokers() { "" } else { "one" };
    home.in_group().set("kafka.librdkafka", properties).set("kafka.instance_id", name);
    home.set("sink.visibility", "sealed").set("sink.rotate", json!({"age": "1s", "idle": "300ms", "size": "1MiB"}));
}

/// Produces them in one batch, so that one range has all of them, and one commit.
fn fill(topic: &Topic) -> Vec<Record> {
    let records: Vec<_> = (0..RECORDS).map(|n| Mix::Clean.record(n, 1)).collect();
    topic.produce_one_batch(Codec::None, &records);
    records
}

/// A home that was killed while the commit of what it had prepared was on its way: behind this proxy.
fn killed_before_its_commit_arrived(topic: &Topic, properties: Value) -> (Home, Proxy, Vec<Record>) {
    let proxy = Proxy::new(&topic.brokers);
    let mut home = Home::with_brokers(topic, proxy.address());
    sealed_in_group(&mut home, properties);
    let service = home.foreground();
    home.wait_for(State::Consuming);
    proxy.hold_requests(OFFSET_COMMIT);
    let produced = fill(topic);
    wait_until("the commit is on its way", SOON, || holds(proxy.held() > 0, ()));
    service.kill();
    (home, proxy, produced)
}

/// Runs a command on the home that was killed, and has the commit arrive as soon as the command has either asked who is in
/// the group, or decided about the hidden files.
fn beside_the_late_commit(
    topic: &Topic,
    home: &mut Home,
    late: &Proxy,
    run: impl FnOnce(&Home) -> Finished + Send,
) -> Finished {
    let asked = Proxy::new(&topic.brokers);
    home.set("kafka.brokers", asked.address());
    let (data, stopped) = (home.path("data"), &*home);
    let done = std::thread::scope(|scope| {
        let command = scope.spawn(|| run(stopped));
        wait_until("the command has come to the group", SOON, || {
            let is_decided = events::hidden(&data).is_empty();
            holds(asked.answered(DESCRIBE_GROUPS) > 0 || is_decided || command.is_finished(), ())
        });
        late.let_pass();
        wait_until("the group has taken it", SOON, || {
            let group = committed(&format!("g_{}", topic.name), topic);
            holds(group.get(&0) == Some(&(RECORDS as i64)), group)
        });
        command.join().expect("no panic")
    });
    home.set("kafka.brokers", topic.brokers.clone());
    done
}

fn lines(homes: &[&Home]) -> Vec<String> {
    let mut lines: Vec<_> = homes.iter().flat_map(|home| home.events()).flat_map(|file| file.lines).collect();
    lines.sort();
    lines
}

fn expected(records: &[Record]) -> Vec<String> {
    let mut lines: Vec<_> = oracle::expect(records).lines.into_values().flatten().collect();
    lines.sort();
    lines
}

/// Nobody may start it again.
#[test]
fn a_stop_publishes_what_the_group_takes_after_its_answer_counts_as_lost() {
    let topic = Topic::create("laststop", 1);
    let proxy = Proxy::new(&topic.brokers);
    let mut home = Home::with_brokers(&topic, proxy.address());
    // Long enough for the group to take the commit after the service has tried to join again, for which a static member's would
    // be refused.
    sealed_in_group(&mut home, json!({"session.timeout.ms": "45000"}));
    home.set("kafka.instance_id", "");
    let mut service = home.foreground();
    home.wait_for(State::Consuming);
    proxy.hold_requests(OFFSET_COMMIT);
    let produced = fill(&topic);
    wait_until("the commit is on its way", SOON, || holds(proxy.held() > 0, ()));
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| service.terminate_in_place());
        wait_until("the answer counts as lost, and the drain begins", SOON, || {
            let log = home.log();
            let is_lost = log.contains("it is not known whether the group took these offsets");
            holds(is_lost && log.contains("state=Stopping"), log)
        });
        proxy.let_pass();
        stop.join().expect("it stops");
    });
    assert_eq!(events::hidden(&home.path("data")), Vec::<PathBuf>::new());
    events::assert_same("the files", &expected(&produced), &lines(&[&home]));
}

#[test]
fn an_adoption_waits_until_no_commit_of_the_lost_home_can_come() {
    let topic = Topic::create("lateadopt", 1);
    let (mut lost, late, mut produced) = killed_before_its_commit_arrived(&topic, classic());
    let mut ours = Home::new(&topic);
    sealed_in_group(&mut ours, classic());
    ours.set("kafka.instance_id", "two");
    let done = beside_the_late_commit(&topic, &mut lost, &late, |lost| {
        Finished::run(ours.command().args(["--json", "adopt"]).arg(lost.path("")), 2 * SOON)
    });
    let report: Value = serde_json::from_str(&done.success()).expect("JSON");
    assert_eq!(report["files"][0]["outcome"], "published", "{report}");
    assert!(ours.log().contains("waiting until no commit of an instance that died"), "{}", ours.log());
    let service = ours.foreground();
    produced.extend(topic.fill(Codec::None, Mix::Clean, RECORDS, 100));
    wait_until("the later records are published", SOON, || holds(lines(&[&ours]).len() == 100, ()));
    service.terminate();
    events::assert_same("both homes", &expected(&produced), &lines(&[&lost, &ours]));
}

#[test]
fn an_offset_is_set_once_no_commit_of_the_killed_service_can_come() {
    let topic = Topic::create("lateset", 1);
    let (mut home, late, mut produced) = killed_before_its_commit_arrived(&topic, classic());
    let done = beside_the_late_commit(&topic, &mut home, &late, |home| {
        Finished::run(home.command().args(["set_offset", &topic.name, "latest"]), 2 * SOON)
    });
    done.code(0);
    events::assert_same("what the group had taken", &expected(&produced), &lines(&[&home]));
    let service = home.foreground();
    produced.extend(topic.fill(Codec::None, Mix::Clean, RECORDS, 100));
    wait_until("the later records are published", SOON, || {
        let found = lines(&[&home]).len();
        holds(found == produced.len(), found)
    });
    service.terminate();
    events::assert_same("the home", &expected(&produced), &lines(&[&home]));
}

/// With KIP-848 whoever joins ends nobody else's membership, also not that of its own earlier run.
#[test]
fn a_topic_that_is_taken_out_is_not_given_up_while_the_commit_of_the_killed_service_can_come() {
    let broker = OwnBroker::new(&format!("group.consumer.session.timeout.ms={SESSION}\n{LASTING}"));
    let [old, new] = ["lateold", "latenew"].map(|name| Topic::on(broker.address(), name, 1, &[]));
    let (mut home, late, mut produced) = killed_before_its_commit_arrived(&old, by_brokers());
    let asked = Proxy::new(broker.address());
    home.set("kafka.brokers", asked.address()).set("kafka.topics", json!([new.name]));
    let service = home.foreground();
    wait_until("it has asked who is in the group", SOON, || {
        let is_decided = events::hidden(&home.path("data")).is_empty();
        holds(asked.answered(CONSUMER_GROUP_DESCRIBE) > 0 || is_decided, home.try_status())
    });
    late.let_pass();
    wait_until("what the group has taken is published", SOON, || {
        let found = lines(&[&home]).len();
        holds(found == produced.len(), (found, events::hidden(&home.path("data"))))
    });
    service.terminate();
    // Another instance still has the topic.
    let mut other = Home::with_brokers(&old, broker.address());
    sealed_in_group(&mut other, by_brokers());
    let service = other.foreground();
    produced.extend(old.fill(Codec::None, Mix::Clean, RECORDS, 100));
    wait_until("the later records are published", SOON, || {
        let found = lines(&[&other]).len();
        holds(found == 100, found)
    });
    service.terminate();
    events::assert_same("both homes", &expected(&produced), &lines(&[&home, &other]));
}

#[test]
fn a_topic_that_is_taken_out_is_given_up_when_the_session_of_the_killed_service_is_over() {
    let [old, new] = ["lostold", "lostnew"].map(|name| Topic::create(name, 1));
    let (mut home, late, _) = killed_before_its_commit_arrived(&old, by_brokers());
    home.set("kafka.brokers", old.brokers.clone()).set("kafka.topics", json!([new.name]));
    let service = home.foreground();
    wait_until("the range is given up", SOON, || {
        let hidden = events::hidden(&home.path("data"));
        holds(hidden.is_empty() && home.log().contains("is not in kafka.topics any more"), hidden)
    });
    late.let_pass();
    service.terminate();
    assert_eq!(lines(&[&home]).len(), 0);
    let group = committed(&format!("g_{}", old.name), &old);
    assert_ne!(group.get(&0), Some(&(RECORDS as i64)), "the group takes no commit of it any more");
}
