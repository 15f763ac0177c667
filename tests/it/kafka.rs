//! Faults of Kafka: brokers that die, connections that are cut, logs that are cut off, damaged or made again, and a client that
//! stands still. Each test counts every record at the end.

use std::collections::HashMap;
use std::os::unix::fs::FileExt as _;
use std::sync::OnceLock;
use std::time::Duration;

use mtga::control::State;
use nix::sys::signal::{Signal, kill};
use serde_json::json;

use crate::harness::own_broker::{Batch, batches};
use crate::harness::process::{Service, keeping_no_free_memory};
use crate::harness::proxy::{FETCH, OFFSET_COMMIT};
use crate::harness::records::padded;
use crate::harness::tail::Tail;
use crate::harness::topic::{Group, Transaction};
use crate::harness::{Codec, Home, Mix, OwnBroker, Proxy, Record, SOON, Topic, broker, holds, wait_until};
use crate::sealed;

/// How a home takes its partitions.
#[derive(Clone, Copy, Debug)]
enum Mode {
    All,
    Group,
}

fn home(topic: &Topic, mode: Mode) -> Home {
    let mut home = Home::new(topic);
    home.set("kafka.group_id", format!("g_{}_{mode:?}", topic.name));
    if let Mode::Group = mode {
        home.in_group();
        // A request that gets no answer is given up sooner than after a minute.
        home.set("kafka.librdkafka", json!({"session.timeout.ms": "6000", "socket.timeout.ms": "10000"}));
    }
    home
}

/// The same, with hidden files.
fn sealed_home(topic: &Topic, mode: Mode) -> Home {
    let mut home = home(topic, mode);
    sealed::hide(&mut home).set("kafka.group_id", format!("g_{}_{mode:?}_sealed", topic.name));
    home
}

/// A home for each way to take partitions and to show files.
fn each_home(topic: &Topic) -> [Home; 4] {
    [home(topic, Mode::All), home(topic, Mode::Group), sealed_home(topic, Mode::All), sealed_home(topic, Mode::Group)]
}

/// Waits until each of these has written so many more records.
fn wait_progress(homes: &[Home], records: u64) {
    let written: Vec<_> = homes.iter().map(|home| home.status().counts.written).collect();
    for (home, written) in homes.iter().zip(written) {
        home.wait_written(written + records);
    }
}

/// Waits until the log of the service says this so many times.
fn wait_logged(home: &Home, text: &str, times: usize) {
    wait_until(&format!("the log says {text:?} {times} times"), SOON, || {
        let said = home.log().matches(text).count();
        holds(said >= times, said)
    });
}

/// All records of one partition, in order.
fn of_partition(records: &[Record], partition: i32) -> Vec<Record> {
    records.iter().filter(|record| record.partition == partition).cloned().collect()
}

fn assert_cuts_are_survived(mode: Mode) {
    let topic = Topic::create("cut", 4);
    let proxy = Proxy::new(broker::address());
    let mut homes = [home(&topic, mode), sealed_home(&topic, mode)];
    for home in &mut homes {
        home.set("kafka.brokers", proxy.address());
    }
    let tails = homes.each_ref().map(|home| Tail::follow(&home.path("data")));
    let load = topic.load_every(Duration::from_millis(40), Codec::Snappy, Mix::Dirty);
    let services = homes.each_ref().map(Home::foreground);
    for time in 0..3 {
        for home in &homes {
            home.wait_written(time * 6000 + 2500);
        }
        proxy.cut();
        for home in &homes {
            home.wait_for(State::Waiting);
        }
        proxy.heal();
        for home in &homes {
            home.wait_written(time * 6000 + 5000);
        }
        proxy.stall();
        let end = topic.end();
        wait_until("2000 records wait behind the stall", SOON, || holds(topic.end() > end + 2000, topic.end()));
        proxy.heal();
    }
    if let Mode::Group = mode {
        // Past the session: the group takes the partitions away, and gives them back.
        proxy.stall();
        wait_until("the partitions are lost", SOON, || {
            let partitions = homes.each_ref().map(|home| home.status().partitions);
            holds(partitions == [0, 0], partitions)
        });
        proxy.heal();
    }
    let produced = load.stop();
    for (home, service) in homes.iter().zip(services) {
        sealed::assert_exactly_once(home, service, &produced);
    }
    for tail in tails {
        tail.assert_nothing_was_taken_back();
    }
}

#[test]
fn a_network_that_is_cut_loses_and_repeats_nothing() {
    assert_cuts_are_survived(Mode::All);
}

#[test]
fn a_network_that_is_cut_in_a_group_loses_and_repeats_nothing() {
    assert_cuts_are_survived(Mode::Group);
}

#[test]
fn commits_whose_answers_are_lost_are_made_again() {
    let topic = Topic::create("unanswered", 2);
    let proxy = Proxy::new(broker::address());
    let mut home = home(&topic, Mode::Group);
    home.set("kafka.brokers", proxy.address()).set("store.checkpoint", "100ms");
    let service = home.foreground();
    home.wait_for(State::Consuming);
    proxy.drop_answers(OFFSET_COMMIT, 4);
    let load = topic.load(Codec::Snappy, Mix::Dirty);
    wait_until("four answers are lost", SOON, || holds(proxy.dropped() >= 4, proxy.dropped()));
    let produced = load.stop();
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    // While it runs: on a busy machine the lost answers cost the session, and it commits as a member that came back.
    let expected: HashMap<_, _> =
        (0..topic.partitions).map(|partition| (partition, of_partition(&produced, partition).len() as i64)).collect();
    wait_until("the group has all of them", SOON, || {
        let committed = crate::harness::topic::committed(&format!("g_{}_Group", topic.name), &topic);
        holds(committed == expected, committed)
    });
    service.terminate();
}

#[test]
fn a_batch_that_is_damaged_on_its_way_is_fetched_again() {
    let topic = Topic::create("flipped", 1);
    let produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, 5000);
    for mut home in [home(&topic, Mode::All), sealed_home(&topic, Mode::Group)] {
        let proxy = Proxy::new(broker::address());
        home.set("kafka.brokers", proxy.address());
        proxy.damage_answers(FETCH, 3);
        let service = home.foreground();
        home.wait_done(&produced);
        assert_eq!(proxy.damaged(), 3);
        home.wait_logged("a damaged batch");
        assert_eq!(home.status().gap_records, 0);
        sealed::assert_exactly_once(&home, service, &produced);
    }
}

/// What the service does while its topic is created again.
#[derive(Clone, Copy, Debug)]
enum Meanwhile {
    Runs,
    /// It sees the new topic only when that has grown past the old offset.
    IsFrozen,
    IsStopped,
}

fn assert_a_new_topic_is_read_from_its_start(mode: Mode, meanwhile: Meanwhile, again: u64) {
    let topic = Topic::create("again", 2);
    let mut produced = topic.fill(Codec::Snappy, Mix::Clean, 0, 1000);
    let home = home(&topic, mode);
    let mut service = home.foreground();
    home.wait_done(&produced);
    match meanwhile {
        Meanwhile::Runs => {}
        Meanwhile::IsFrozen => kill(service.pid(), Signal::SIGSTOP).expect("it runs"),
        Meanwhile::IsStopped => service.terminate_in_place(),
    }
    topic.recreate();
    produced.extend(topic.fill(Codec::Snappy, Mix::Clean, 1000, again));
    match meanwhile {
        Meanwhile::Runs => {}
        Meanwhile::IsFrozen => kill(service.pid(), Signal::SIGCONT).expect("it runs"),
        Meanwhile::IsStopped => service = home.foreground(),
    }
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    home.wait_logged("the topic was deleted and created again");
    service.terminate();
}

#[test]
fn a_topic_created_again_and_shorter_is_read_from_its_start() {
    assert_a_new_topic_is_read_from_its_start(Mode::All, Meanwhile::Runs, 300);
}

#[test]
fn a_topic_created_again_and_grown_past_the_old_offset_is_read_from_its_start() {
    assert_a_new_topic_is_read_from_its_start(Mode::All, Meanwhile::IsFrozen, 3000);
}

#[test]
fn a_topic_created_again_under_a_group_is_read_from_its_start() {
    assert_a_new_topic_is_read_from_its_start(Mode::Group, Meanwhile::Runs, 300);
    assert_a_new_topic_is_read_from_its_start(Mode::Group, Meanwhile::IsFrozen, 3000);
}

#[test]
fn a_topic_created_again_while_the_service_is_stopped_is_read_from_its_start() {
    assert_a_new_topic_is_read_from_its_start(Mode::All, Meanwhile::IsStopped, 3000);
    assert_a_new_topic_is_read_from_its_start(Mode::Group, Meanwhile::IsStopped, 300);
}

#[test]
fn a_topic_created_again_on_brokers_without_topic_ids_is_read_from_its_first_record() {
    // A session with its controller that outlasts a stall: when it ends, the new topic gets as late an epoch as the old
    // one had, and nothing tells them apart.
    let own = OwnBroker::new("broker.session.timeout.ms=10000");
    let topic = Topic::on(own.address(), "noids", 1, &[]);
    let proxy = Proxy::new(own.address());
    proxy.without_topic_ids();
    let mut home = Home::with_brokers(&topic, proxy.address());
    home.in_group();
    // librdkafka says nothing of such a topic.
    let service = home.foreground_with(|command| command.env("FAULT_WATCHDOG_MS", "5000"));
    let mut produced = topic.fill(Codec::Snappy, Mix::Clean, 0, 500);
    home.wait_done(&produced);
    // Records of a later leader epoch than those of a new topic have.
    own.stop();
    own.start();
    produced.extend(topic.fill(Codec::Snappy, Mix::Clean, 500, 500));
    home.wait_done(&produced);
    topic.recreate();
    produced.extend(topic.fill(Codec::Snappy, Mix::Clean, 1000, 300));
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    service.terminate();
    home.wait_logged("the leader epochs of the partition began again");
    assert!(!home.log().contains("was cut off"), "nothing was");
    let service = home.foreground();
    produced.extend(topic.fill(Codec::Snappy, Mix::Clean, 1300, 200));
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    service.terminate();
}

#[test]
fn what_was_hidden_of_a_topic_that_is_deleted_after_a_kill_is_set_aside_and_said() {
    let topic = Topic::create("gone", 2);
    let mut home = home(&topic, Mode::Group);
    home.set("sink.visibility", "sealed");
    let old = topic.fill(Codec::Snappy, Mix::Clean, 0, 500);
    let service = home.foreground();
    home.wait_done(&old);
    // In the last checkpoint, so that only the end of the topic stands against publishing it.
    wait_until("it is durable", SOON, || {
        let offsets = home.offsets();
        let done: i64 = offsets.iter().filter_map(|row| row.current).sum();
        holds(done == 500, offsets)
    });
    service.kill();
    topic.recreate();
    let new = topic.fill(Codec::Snappy, Mix::Clean, 500, 300);
    let service = home.foreground();
    wait_logged(&home, "the topic was deleted before the group took what was hidden of it", 2);
    wait_logged(&home, "the topic was deleted and created again", 2);
    home.wait_done(&[old.clone(), new.clone()].concat());
    service.terminate();
    let expected = |records: &[Record]| crate::harness::oracle::expect(records).lines;
    crate::harness::events::assert_exactly(&expected(&new), &home.events());
    let hidden =
        std::fs::read_dir(home.path("data")).expect("a directory").map(|entry| entry.expect("an entry").path());
    let aside: Vec<_> = hidden.filter(|path| path.extension().is_some_and(|end| end == "undecided")).collect();
    let lines: usize = aside.iter().map(|path| std::fs::read_to_string(path).expect("a file").lines().count()).sum();
    assert_eq!((aside.len(), lines), (2, 500));
}

#[test]
fn a_client_that_stands_still_is_made_again() {
    let topic = Topic::create("still", 2);
    let home = home(&topic, Mode::Group);
    let mut produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, 1000);
    let service = home.foreground_with(|command| {
        // Longer than a machine that stalls makes it look as if nothing came.
        command.envs([("FAULT_POINT", "kafka.standstill:40"), ("FAULT_WATCHDOG_MS", "8000")])
    });
    home.wait_done(&produced);
    // Nothing to read is no standstill.
    home.wait_logged("the fault kafka.standstill happens");
    produced.extend(topic.fill(Codec::Snappy, Mix::Dirty, 1000, 1000));
    home.wait_logged("no record came for 8 s although there are some");
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    assert_eq!(home.status().client_restarts, 1);
    service.terminate();
}

#[test]
fn a_broker_that_is_killed_and_restarted_under_load_loses_and_repeats_nothing() {
    let broker = OwnBroker::new("");
    let topic = Topic::on(broker.address(), "killed", 4, &[]);
    let homes = each_home(&topic);
    let load = topic.load_every(Duration::from_millis(50), Codec::Snappy, Mix::Dirty);
    let services = homes.each_ref().map(Home::foreground);
    for time in 0..3 {
        wait_progress(&homes, 2000);
        if time == 1 {
            broker.stop();
        } else {
            broker.kill();
        }
        broker.start();
    }
    let sent = load.stop();
    // A producer may repeat itself when its broker is killed: what counts is what the log has.
    let produced = topic.read();
    assert!(produced.len() >= sent.len(), "the broker has lost what it had taken");
    for (home, service) in homes.iter().zip(services) {
        sealed::assert_exactly_once(home, service, &produced);
    }
}

#[test]
fn leaders_that_change_between_brokers_under_load_lose_and_repeat_nothing() {
    // Leaders go back to the broker that had them as soon as it is in sync again.
    let properties = "offsets.topic.replication.factor=2\nauto.leader.rebalance.enable=true\n\
                      leader.imbalance.check.interval.seconds=1\nleader.imbalance.per.broker.percentage=0";
    let first = OwnBroker::new(properties);
    let second = first.second(properties);
    let brokers = format!("{},{}", first.address(), second.address());
    let topic = Topic::replicated(&brokers, 2, "leaders", 4);
    let homes = each_home(&topic);
    let load = topic.load_every(Duration::from_millis(50), Codec::Snappy, Mix::Dirty);
    let services = homes.each_ref().map(Home::foreground);
    let wait_led = |what: &str, by: &[i32]| {
        wait_until(&format!("{what}: brokers {by:?} lead, in sync"), SOON, || {
            let (leaders, in_sync) = topic.leaders();
            let led = leaders.len() == by.len() && by.iter().all(|id| leaders.contains_key(id));
            holds(led && (in_sync || by.len() == 1), (leaders, in_sync))
        });
    };
    wait_led("at first", &[1, 2]);
    wait_progress(&homes, 1000);
    second.kill();
    wait_led("without the second", &[1]);
    wait_progress(&homes, 1000);
    second.start();
    wait_led("with both again", &[1, 2]);
    wait_progress(&homes, 1000);
    load.stop();
    let produced = topic.read();
    for (home, service) in homes.iter().zip(services) {
        sealed::assert_exactly_once(home, service, &produced);
        assert_eq!(home.status().gap_records, 0);
    }
}

#[test]
fn a_name_that_another_process_had_is_taken_again_although_another_broker_coordinates_the_group_by_now() {
    let properties = "offsets.topic.replication.factor=2";
    let first = OwnBroker::new(properties);
    let second = first.second(properties);
    let brokers = format!("{},{}", first.address(), second.address());
    let topic = Topic::replicated(&brokers, 2, "coordinator", 4);
    let group = Group::coordinated_by(2, &brokers);
    let mut home = home(&topic, Mode::Group);
    home.set("kafka.group_id", group.as_str());
    // Longer than it takes the brokers to find another coordinator and the instance to find that: who has lost its session by
    // then joins as somebody new, and never hears of the guest.
    let session = "20000";
    home.set("kafka.librdkafka", json!({"session.timeout.ms": session, "socket.timeout.ms": "10000"}));
    let load = topic.load_every(Duration::from_millis(50), Codec::Snappy, Mix::Dirty);
    let service = home.foreground();
    // It has asked the second broker about the group when it joined.
    home.wait_written(100);
    second.kill();
    wait_until("only the first broker is left", SOON, || {
        let (leaders, _) = topic.leaders();
        holds(leaders.keys().eq(&[1]), leaders)
    });
    let guest = [
        ("group.instance.id", "one"),
        ("session.timeout.ms", session),
        ("partition.assignment.strategy", "cooperative-sticky"),
    ];
    Group::visit(&brokers, &group, &topic, &guest);
    home.wait_for(State::Waiting);
    let written = home.status().counts.written;
    home.wait_written(written + 1000);
    let produced = load.stop();
    home.wait_done(&produced);
    service.terminate();
    assert!(home.log().contains("another process joined the group as `one`"), "{}", home.log());
}

#[test]
fn a_compacted_topic_has_its_remaining_records_once_and_its_holes_are_no_gap() {
    let config = [("cleanup.policy", "compact"), ("min.cleanable.dirty.ratio", "0.0"), ("segment.ms", "1000")];
    let topic = Topic::with_config("compacted", 1, &config);
    // Every fourth record is the last one of its key, some of those are tombstones. What comes an hour later begins a
    // segment, and only those before the last one are compacted.
    let record = |n: u64| {
        let key = if n % 4 == 3 { format!("k{n}") } else { "k".to_owned() };
        let record = Mix::Clean.record(n, 1);
        let timestamp = record.timestamp + n as i64 / 500 * 3_600_000;
        let value = record.value.filter(|_| n % 8 != 7);
        Record { key: Some(key.into_bytes()), value, timestamp, ..record }
    };
    let produce = |first: u64, count: u64| {
        let records: Vec<_> = (first..first + count).map(record).collect();
        topic.produce(Codec::Snappy, &records);
        records
    };
    let mut done = produce(0, 500);
    let mut ahead = home(&topic, Mode::Group);
    ahead.set("kafka.start", "earliest");
    let service = ahead.foreground();
    ahead.wait_done(&done);
    service.terminate();
    produce(500, 700);
    produce(1500, 10);
    // Of what lies before the last segment the last record of each key. It may be compacted in several steps.
    let compacted = 1200 / 4 + 1 + 10;
    wait_until("the log is compacted", SOON, || {
        let left = topic.read().len();
        holds(left == compacted, left)
    });
    let left = topic.read();
    let tombstones = left.iter().filter(|record| record.value.is_none()).count();
    assert!(tombstones > 0);
    let behind = home(&topic, Mode::All);
    done.extend(left.iter().filter(|record| record.timestamp >= 1_700_000_000_000 + 3_600_000).cloned());
    let services = [&ahead, &behind].map(Home::foreground);
    for (home, produced) in [(&ahead, &done), (&behind, &left)] {
        home.wait_done(produced);
        home.assert_exactly(produced);
        assert_eq!(home.status().gap_records, 0);
        assert_eq!(home.offsets()[0].current, Some(topic.end()));
    }
    services.into_iter().for_each(Service::terminate);
}

/// How many bytes the service uses at most while it reads a backlog, above what it uses before it has a broker.
fn memory_for_a_backlog(topic: &Topic, produced: &[Record], memory: &str) -> u64 {
    let proxy = Proxy::new(broker::address());
    proxy.cut();
    let mut home = home(topic, Mode::All);
    home.set("kafka.brokers", proxy.address()).set("memory", memory);
    let service = home.foreground_with(keeping_no_free_memory);
    home.wait_for(State::Waiting);
    let used = |field| service.memory(field);
    let before = used("VmRSS:");
    proxy.heal();
    home.wait_done(produced);
    let peak = used("VmHWM:");
    assert_eq!(home.status().counts.written, produced.len() as u64);
    service.terminate();
    eprintln!("{memory}: {} MiB before, {} MiB at most", before >> 20, peak >> 20);
    peak - before
}

/// What the process has besides records: what the store and librdkafka's threads take under load.
const BESIDES: u64 = 16 << 20;

fn assert_a_backlog_stays_within_the_memory_bound(partitions: i32, count: u64, size: usize) {
    let topic = Topic::with_config("backlog", partitions, &[("max.message.bytes", "2097152")]);
    let records: Vec<_> = (0..count).map(|n| padded(n, partitions, size)).collect();
    topic.produce(Codec::None, &records);
    let (memory, fetch) = (16 << 20, 4 << 20);
    assert!(count * size as u64 > 2 * (memory + fetch + BESIDES), "a backlog that does not fit");
    let used = memory_for_a_backlog(&topic, &records, "16MiB");
    assert!(used < memory + fetch + BESIDES, "{} MiB", used >> 20);
}

#[test]
fn a_backlog_of_large_records_stays_within_the_memory_bound() {
    assert_a_backlog_stays_within_the_memory_bound(2, 96, 1 << 20);
}

#[test]
fn a_backlog_of_many_partitions_stays_within_the_memory_bound() {
    assert_a_backlog_stays_within_the_memory_bound(64, 6144, 16 << 10);
}

#[test]
fn a_log_cut_off_before_the_stored_offset_is_followed_from_there_even_when_it_has_grown_past_it() {
    let broker = OwnBroker::new("");
    // What the log has of other records when it is seen again; the first of the homes of each runs meanwhile.
    let cases = [(Mode::Group, 100), (Mode::All, 2000)].map(|(mode, others)| {
        let topic = Topic::on(broker.address(), "truncated", 1, &[]);
        let mut old = topic.fill(Codec::Snappy, Mix::Clean, 0, 600);
        old.extend(topic.fill(Codec::Snappy, Mix::Clean, 600, 400));
        let home = home(&topic, mode);
        let running = home.foreground();
        let mut stopped = Home::new(&topic);
        stopped.set("kafka.group_id", format!("g_stopped_{}", topic.name));
        let service = stopped.foreground();
        stopped.wait_done(&old);
        service.terminate();
        home.wait_done(&old);
        (topic, [home, stopped], running, old, others)
    });
    broker.stop();
    // The new leader has taken other records before the services see it.
    for (topic, _, running, ..) in &cases {
        broker.keep_batches(topic, 600);
        kill(running.pid(), Signal::SIGSTOP).expect("it runs");
    }
    broker.start();
    for (topic, homes, running, old, others) in cases {
        let new = topic.fill(Codec::Snappy, Mix::Clean, 1000, others);
        kill(running.pid(), Signal::SIGCONT).expect("it is stopped");
        let service = homes[1].foreground();
        let produced = [old, new].concat();
        for home in &homes {
            home.wait_logged("the broker's log was cut off");
            home.wait_done(&produced);
            home.assert_exactly(&produced);
            assert_eq!(home.status().gap_records, 0);
        }
        running.terminate();
        service.terminate();
    }
}

/// The broker of all tests that damage what is on its disk.
pub(crate) fn damaged_broker() -> &'static OwnBroker {
    static BROKER: OnceLock<OwnBroker> = OnceLock::new();
    BROKER.get_or_init(|| OwnBroker::new(broker::LASTING))
}

/// Damages one batch of the first partition, in place: a broker sends what lies there without a look at it.
pub(crate) fn damage(topic: &Topic, choose: impl FnOnce(&[Batch]) -> Option<&Batch>) -> Batch {
    let segment = damaged_broker().log(topic, 0).join("00000000000000000000.log");
    let bytes = std::fs::read(&segment).expect("a segment");
    let batch = *choose(&batches(&bytes)).expect("such a batch");
    let middle = batch.position + batch.length / 2;
    let file = std::fs::File::options().write(true).open(segment).expect("the segment");
    file.write_all_at(&[bytes[middle] ^ 1], middle as u64).expect("a byte can be written");
    batch
}

/// Fills a topic of one partition, and damages one of its batches on the broker's disk.
fn filled_and_damaged(topic: &Topic) -> (Vec<Record>, Batch) {
    let mut produced = Vec::new();
    for [first, next] in [[0, 500], [500, 537], [537, 1500]] {
        produced.extend(topic.fill(Codec::None, Mix::Clean, first, next - first));
    }
    (produced, damage(topic, |batches| batches.iter().find(|batch| batch.first >= 500)))
}

#[test]
fn a_batch_that_is_damaged_on_the_disk_is_a_gap_of_its_range() {
    let topic = Topic::on(damaged_broker().address(), "damaged", 1, &[]);
    let (produced, batch) = filled_and_damaged(&topic);
    let home = home(&topic, Mode::All);
    let service = home.foreground();
    let kept = [&produced[..batch.first as usize], &produced[batch.next as usize..]].concat();
    home.wait_done(&kept);
    home.assert_exactly(&kept);
    assert_eq!(home.status().gap_records, (batch.next - batch.first) as u64);
    home.wait_logged(&format!("from={} to={}", batch.first, batch.next));
    service.terminate();
}

#[test]
fn what_is_hidden_before_a_damaged_batch_is_read_again_when_the_session_ends_before_its_commit() {
    use rdkafka::consumer::Consumer as _;
    let topic = Topic::on(damaged_broker().address(), "damagedlost", 1, &[]);
    let (produced, batch) = filled_and_damaged(&topic);
    let mut home = home(&topic, Mode::All);
    home.set("kafka.assignment", "group")
        .set("kafka.librdkafka", json!({"session.timeout.ms": "3000", "heartbeat.interval.ms": "300"}));
    home.set("sink.visibility", "sealed").set("sink.rotate", json!({"age": "1h", "idle": "1h"}));
    let service = home.foreground_with(|command| command.env("FAULT_POINT", "seal.commit:1:stop"));
    let group: rdkafka::consumer::BaseConsumer =
        rdkafka::ClientConfig::new().set("bootstrap.servers", &topic.brokers).create().expect("a consumer");
    let name = format!("g_{}_{:?}", topic.name, Mode::All);
    let members = || {
        let list = group.fetch_group_list(Some(&name), SOON).map_err(|error| error.to_string())?;
        Ok::<_, String>(list.groups().first().map_or(0, |group| group.members().len()))
    };
    // So it has joined.
    service.wait_frozen();
    wait_until("the group has given it up", SOON, || holds(members()? == 0, "a member"));
    kill(service.pid(), Signal::SIGCONT).expect("it runs");
    let kept = [&produced[..batch.first as usize], &produced[batch.next as usize..]].concat();
    home.wait_done(&kept);
    service.terminate();
    crate::harness::events::assert_exactly(&crate::harness::oracle::expect(&kept).lines, &home.events());
    assert_eq!(home.status().gap_records, (batch.next - batch.first) as u64);
}

/// An instance is frozen while it goes past a damaged batch, until its session is over and another one has read everything.
/// What it begins then to read on must not be taken for the answer to a revocation that it has not seen yet.
fn assert_who_wakes_up_past_a_gap_moves_nothing(visibility: &str) -> [Home; 2] {
    let topic = Topic::on(damaged_broker().address(), "gaplost", 2, &[]);
    topic.fill(Codec::None, Mix::Clean, 0, 600);
    damage(&topic, <[Batch]>::last);
    let mut homes = [0, 1].map(|_| {
        let mut home = home(&topic, Mode::All);
        home.set("kafka.assignment", "group");
        home.set("kafka.librdkafka", json!({"session.timeout.ms": "3000", "heartbeat.interval.ms": "300"}));
        home.set("sink.visibility", visibility).set("sink.rotate", json!({"age": "1s", "idle": "300ms"}));
        home
    });
    homes[0].set("sink.rotate", json!({"age": "1h", "idle": "1h"}));
    let frozen = homes[0].foreground_with(|command| command.env("FAULT_POINT", "gap.noted:1:stop"));
    let group = format!("g_{}_{:?}", topic.name, Mode::All);
    let committed = || crate::harness::topic::committed(&group, &topic);
    wait_until("it has begun", SOON, || holds(committed().len() == 2, committed()));
    wait_until("it is frozen", SOON, || {
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", frozen.pid())).map_err(|error| error.to_string())?;
        holds(stat.contains(") T "), stat)
    });
    topic.fill(Codec::None, Mix::Clean, 600, 900);
    let all = topic.end();
    let other = homes[1].foreground();
    let all_done = || holds(committed().values().sum::<i64>() == all, committed());
    wait_until("the other one has read everything", 2 * SOON, all_done);
    kill(frozen.pid(), Signal::SIGCONT).expect("it runs");
    wait_until("each has its partition", SOON, || {
        let shares: Vec<_> =
            homes.iter().map(|home| home.try_status().map(|status| status.partitions)).collect::<Result<_, _>>()?;
        holds(shares == [1, 1] && homes[0].log().contains("the group revoked partitions"), shares)
    });
    all_done().expect("the group was not moved back");
    frozen.terminate();
    other.terminate();
    all_done().expect("the group was not moved back");
    homes
}

#[test]
fn who_wakes_up_past_a_gap_moves_the_group_nowhere() {
    assert_who_wakes_up_past_a_gap_moves_nothing("live");
}

#[test]
fn who_wakes_up_past_a_gap_publishes_nothing_of_the_next_owner() {
    let homes = assert_who_wakes_up_past_a_gap_moves_nothing("sealed");
    let mut lines: Vec<_> = homes.iter().flat_map(Home::events).flat_map(|file| file.lines).collect();
    let all = lines.len();
    lines.sort();
    lines.dedup();
    assert_eq!(lines.len(), all, "lines that are there twice");
}

/// A service with 300 records done, of a log that then has offsets 500 to 600 only: it could not read on meanwhile.
fn assert_retention_is_noticed(policy: &str, check: impl FnOnce(&Topic, &Home, Service, Vec<Record>)) {
    let topic = Topic::create("retention", 1);
    let proxy = Proxy::new(broker::address());
    let mut home = home(&topic, Mode::All);
    home.set("kafka.brokers", proxy.address()).set("kafka.out_of_range", policy);
    let mut produced = topic.fill(Codec::Snappy, Mix::Clean, 0, 300);
    let service = home.foreground();
    home.wait_done(&produced);
    proxy.cut();
    home.wait_for(State::Waiting);
    produced.extend(topic.fill(Codec::Snappy, Mix::Clean, 300, 300));
    topic.delete_records(0, 500);
    proxy.heal();
    check(&topic, &home, service, produced);
}

#[test]
fn records_that_retention_took_are_a_gap_of_their_range() {
    assert_retention_is_noticed("earliest", |topic, home, service, produced| {
        let mut kept = [&produced[..300], &produced[500..]].concat();
        home.wait_done(&kept);
        home.assert_exactly(&kept);
        assert_eq!(home.status().gap_records, 200);
        home.wait_logged("from=300 to=500 lost=200");
        service.terminate();
        // The same while it is stopped.
        topic.fill(Codec::Snappy, Mix::Clean, 600, 100);
        topic.delete_records(0, 700);
        kept.extend(topic.fill(Codec::Snappy, Mix::Clean, 700, 100));
        let service = home.foreground();
        home.wait_done(&kept);
        home.assert_exactly(&kept);
        assert_eq!(home.status().gap_records, 300);
        home.wait_logged("from=600 to=700 lost=100");
        service.terminate();
    });
}

#[test]
fn retention_with_the_policy_latest_goes_on_at_the_end() {
    assert_retention_is_noticed("latest", |topic, home, service, produced| {
        home.wait_logged("from=300 to=600 lost=300");
        let mut kept = produced[..300].to_vec();
        kept.extend(topic.fill(Codec::Snappy, Mix::Clean, 600, 100));
        home.wait_done(&kept);
        home.assert_exactly(&kept);
        assert_eq!(home.status().gap_records, 300);
        service.terminate();
    });
}

#[test]
fn retention_with_the_policy_stop_ends_the_service_and_moves_nothing() {
    assert_retention_is_noticed("stop", |topic, home, service, produced| {
        assert_eq!(service.ended(), Some(1));
        assert!(home.log().contains("move it with `set_offset`"), "it is said what to do");
        let offsets = home.offsets();
        assert_eq!((offsets[0].low, offsets[0].current), (Some(500), Some(300)));
        home.mtga(["set_offset", &topic.name, "500"]).success();
        let kept = [&produced[..300], &produced[500..]].concat();
        let service = home.foreground();
        home.wait_done(&kept);
        home.assert_exactly(&kept);
        service.terminate();
    });
}

#[test]
fn aborted_transactions_are_left_out_and_lag_reaches_0_behind_them() {
    let topic = Topic::create("transactions", 2);
    let make = |first: u64, count: u64, end| {
        let records: Vec<_> = (first..first + count).map(|n| Mix::Clean.record(n, 2)).collect();
        let open = topic.transact(&records, end);
        (records, open)
    };
    let (mut committed, _) = make(0, 200, Transaction::Committed);
    let (aborted, _) = make(200, 200, Transaction::Aborted);
    let mut all = [&committed[..], &aborted].concat();
    let mut strict = home(&topic, Mode::Group);
    // As librdkafka takes it, too.
    strict.set("kafka.librdkafka", json!({"session.timeout.ms": "6000", "isolation.level": "READ_COMMITTED"}));
    let mut lax = home(&topic, Mode::All);
    lax.set("kafka.librdkafka", json!({"isolation.level": "read_uncommitted"}));
    let services = [&strict, &lax].map(Home::foreground);
    strict.wait_done(&committed);
    lax.wait_done(&all);
    let (more, open) = make(400, 200, Transaction::Open);
    all.extend(more.clone());
    lax.wait_done(&all);
    lax.assert_exactly(&all);
    // What is open is no lag, and nothing of it is read.
    strict.wait_done(&committed);
    strict.assert_exactly(&committed);
    open.expect("it is open").commit();
    committed.extend(more);
    // Again from what is stored: an offset behind a control record.
    for (home, produced) in [(&strict, &committed), (&lax, &all)] {
        home.wait_done(produced);
        home.assert_exactly(produced);
    }
    for service in services {
        service.terminate();
    }
    let service = strict.foreground();
    strict.wait_done(&committed);
    strict.assert_exactly(&committed);
    service.terminate();
}

#[test]
fn a_record_larger_than_a_fetch_arrives_whole() {
    let topic = Topic::with_config("huge", 1, &[("max.message.bytes", "20971520")]);
    let mut produced = topic.fill(Codec::None, Mix::Clean, 0, 10);
    for n in 10..13 {
        let record = padded(n, 1, 5_000_000 + n as usize);
        topic.produce(Codec::None, std::slice::from_ref(&record));
        produced.push(record);
    }
    produced.extend(topic.fill(Codec::None, Mix::Clean, 13, 10));
    let mut home = home(&topic, Mode::All);
    // All partitions together are fetched a quarter of this at a time.
    home.set("memory", "16MiB");
    let service = home.foreground();
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    service.terminate();
}

fn assert_added_partitions_are_read(mode: Mode) {
    let mut topic = Topic::create("added", 2);
    let mut home = home(&topic, mode);
    home.set("kafka.librdkafka", json!({"topic.metadata.refresh.interval.ms": "500"})).set("kafka.start", "latest");
    let service = home.foreground();
    wait_until("both partitions have begun", SOON, || {
        let status = home.try_status()?;
        holds(status.partitions == 2, status)
    });
    let load = topic.load(Codec::Snappy, Mix::Dirty);
    home.wait_written(2000);
    // Each is an assignment that comes between records.
    for partitions in 3..=5 {
        topic.grow(partitions);
        wait_until("it is assigned", SOON, || {
            let assigned = home.status().partitions;
            holds(assigned == partitions as u64, assigned)
        });
    }
    // Read from the first one on, although the service starts at `latest`.
    let first = 1_000_000;
    let added: Vec<_> = (first..first + 500).map(|n| moved(Mix::Clean.record(n, 1), 2 + (n % 3) as i32)).collect();
    topic.produce(Codec::Snappy, &added);
    let mut produced = load.stop();
    produced.extend(added);
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    service.terminate();
}

/// The record in another partition than 0, which its line tells.
fn moved(record: Record, partition: i32) -> Record {
    let text = String::from_utf8(record.value.expect("a value")).expect("text");
    let value = text.replace(r#""sn":"0-"#, &format!(r#""sn":"{partition}-"#));
    Record { partition, value: Some(value.into_bytes()), ..record }
}

#[test]
fn partitions_added_under_load_are_read_from_their_first_record() {
    assert_added_partitions_are_read(Mode::All);
    assert_added_partitions_are_read(Mode::Group);
}
