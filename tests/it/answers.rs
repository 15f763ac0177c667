//! Answers of brokers that are lost, failed or partial. What is not known is never taken for an offset, nor for no lag.

use std::collections::BTreeSet;
use std::time::Duration;

use mtga::control::{PartitionOffsets, State};
use mtga::msource::TopicPartition;
use mtga::msource::journal::{self, Journal, PartitionState};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::harness::cases::for_each;
use crate::harness::fleet::{Fleet, Membership, Protocol};
use crate::harness::process::Finished;
use crate::harness::proxy::{LIST_OFFSETS, Loss, OFFSET_COMMIT};
use crate::harness::topic::committed;
use crate::harness::{Codec, Home, Mix, Proxy, Record, SOON, Topic, broker, holds, wait_until};

/// The records of each partition.
const EACH: u64 = 100;

/// A home behind a proxy.
fn behind(proxy: &Proxy, topic: &Topic) -> Home {
    Home::with_brokers(topic, proxy.address())
}

/// How many of these records are of these partitions.
fn of_partitions(produced: &[Record], partitions: &[i32]) -> u64 {
    produced.iter().filter(|record| partitions.contains(&record.partition)).count() as u64
}

/// `kafka_lag` while the brokers do not answer. The service says so in time, unless the machine stalls for as long.
fn unknown_lag(home: &Home) -> Finished {
    let done = (0..3).map(|_| home.mtga(["kafka_lag"])).find(|done| done.stdout != "-1\n");
    let done = done.expect("it is said in time").code(69);
    assert_eq!(done.stdout, "", "no number is printed");
    done
}

fn assert_a_lost_start_skips_nothing(in_group: bool, count: u64, loss: Loss) {
    let topic = Topic::create("lost_start", 2);
    let produced = topic.fill(Codec::None, Mix::Clean, 0, 2 * EACH);
    let proxy = Proxy::new(broker::address());
    let mut home = behind(&proxy, &topic);
    if in_group {
        home.in_group();
    }
    proxy.lose_answers(LIST_OFFSETS, count, loss);
    let service = home.foreground();
    home.wait_done(&produced);
    assert!(proxy.dropped() as u64 >= count, "{count} answers are lost");
    home.assert_exactly(&produced);
    assert_eq!(home.status().gap_records, 0);
    service.terminate();
}

#[test]
fn a_lost_answer_where_a_partition_starts_skips_nothing() {
    // With the second, the question that is asked again is lost as well.
    let losses = [(1, Loss::Cut), (2, Loss::Cut), (1, Loss::Swallowed)];
    let cases: Vec<_> = [false, true].into_iter().flat_map(|in_group| losses.map(|lost| (in_group, lost))).collect();
    for_each(cases.len(), &cases, |(in_group, (count, loss))| {
        assert_a_lost_start_skips_nothing(*in_group, *count, *loss);
    });
}

#[test]
fn a_lost_answer_about_a_gap_makes_it_no_longer() {
    let topic = Topic::create("lost_gap", 1);
    let mut produced = topic.fill(Codec::None, Mix::Clean, 0, EACH);
    let proxy = Proxy::new(broker::address());
    let home = behind(&proxy, &topic);
    let service = home.foreground();
    home.wait_done(&produced);
    service.terminate();
    produced.extend(topic.fill(Codec::None, Mix::Clean, EACH, 3 * EACH));
    topic.delete_records(0, 2 * EACH as i64);
    produced.drain(EACH as usize..2 * EACH as usize);
    proxy.lose_answers(LIST_OFFSETS, 2, Loss::Cut);
    let service = home.foreground();
    home.wait_done(&produced);
    assert_eq!(home.status().gap_records, EACH);
    assert_eq!(proxy.dropped(), 2);
    home.assert_exactly(&produced);
    service.terminate();
}

#[test]
fn what_is_not_known_of_a_partition_is_no_lag_of_zero_and_holds_back_no_other() {
    let mut topic = Topic::create("leaderless", 2);
    let proxy = Proxy::new(broker::address());
    let mut home = behind(&proxy, &topic);
    home.set("kafka.librdkafka", serde_json::json!({"topic.metadata.refresh.interval.ms": "500"}));
    let mut produced = topic.fill(Codec::None, Mix::Clean, 0, 2 * EACH);
    proxy.without_leader(&topic.name, &[1]);
    let service = home.foreground();
    home.wait_written(of_partitions(&produced, &[0]));
    let name = topic.name.clone();
    let assert_unknown = |partitions: &[i32]| {
        wait_until(&format!("the lag of {partitions:?} is unknown"), SOON, || {
            let status = home.status();
            holds(status.lag.is_none() && status.reason.is_some(), (status.lag, status.reason))
        });
        let done = unknown_lag(&home);
        assert!(done.stderr.contains(&name), "it names the partition: {}", done.stderr);
        wait_until("everything else is done", SOON, || {
            let done = home.mtga(["--json", "offset_checker"]);
            let rows: Result<Vec<PartitionOffsets>, _> = serde_json::from_str(&done.stdout);
            let rows = rows.map_err(|error| format!("no rows, {error}: {done:?}"))?;
            done.code(69);
            let unknown: Vec<_> = rows.iter().filter(|row| row.lag.is_none()).map(|row| row.partition).collect();
            assert_eq!(unknown, partitions);
            holds(rows.iter().all(|row| row.lag.is_none_or(|lag| lag == 0)), rows)
        });
    };
    assert_unknown(&[1]);
    proxy.without_leader(&topic.name, &[]);
    home.wait_done(&produced);
    // Partitions that are added are in the same place, beside others that are read.
    proxy.without_leader(&topic.name, &[2, 3]);
    topic.grow(4);
    produced.extend(topic.fill(Codec::None, Mix::Clean, 2 * EACH, 4 * EACH));
    wait_until("the added partitions are noticed", SOON, || {
        let done = home.mtga(["kafka_lag"]);
        holds(done.stdout.is_empty(), &done.stdout)
    });
    home.wait_written(of_partitions(&produced, &[0, 1]));
    assert_unknown(&[2, 3]);
    proxy.without_leader(&topic.name, &[]);
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    service.terminate();
}

/// The last broker that is shut down in good order says so to whoever asks it at that moment. librdkafka lets go of every broker.
#[test]
fn a_cluster_that_says_for_a_moment_that_it_has_no_brokers_is_found_again() {
    let protocols = [Protocol::Cooperative, Protocol::Eager, Protocol::Consumer].map(Some);
    for_each(4, &[&[None], &protocols[..]].concat(), |protocol| {
        let topic = Topic::create("brokerless", 2);
        let mut produced = topic.fill(Codec::None, Mix::Clean, 0, 2 * EACH);
        let proxy = Proxy::new(broker::address());
        let mut properties = json!({"topic.metadata.refresh.interval.ms": "500"});
        let mut home = behind(&proxy, &topic);
        if let Some(protocol) = protocol {
            home.set("kafka.assignment", "group");
            match protocol {
                Protocol::Cooperative => {}
                Protocol::Eager => properties["partition.assignment.strategy"] = json!("range"),
                Protocol::Consumer => properties["group.protocol"] = json!("consumer"),
            }
        }
        home.set("kafka.librdkafka", properties);
        let service = home.foreground();
        home.wait_done(&produced);
        // The client that asks for the lag lasts, too.
        assert_eq!(home.integer("kafka_lag"), 0);
        for _ in 0..2 {
            let before = home.log().len();
            proxy.without_brokers();
            wait_until("neither client has a broker", SOON, || {
                home.mtga(["kafka_lag"]);
                let log = home.log();
                let told = log[before..].lines().filter(|line| line.contains("the cluster named no broker"));
                let clients: BTreeSet<_> =
                    told.filter_map(|line| line.split_once(" client=")).map(|(_, name)| name).collect();
                holds(clients.len() >= 2, clients)
            });
            proxy.pass_unchanged();
            produced.extend(topic.fill(Codec::None, Mix::Clean, produced.len() as u64, 2 * EACH));
            home.wait_done(&produced);
            wait_until("the lag is known", SOON, || {
                let done = home.mtga(["kafka_lag"]);
                holds(done.stdout == "0\n", done)
            });
        }
        home.assert_exactly(&produced);
        assert_eq!(home.status().client_restarts, 0);
        service.terminate();
    });
}

/// Whatever the reason is: here it is not given the configured brokers again when it has lost all. A member of a classic group has
/// no partition any more by then; in the new protocol it keeps its own, which has no lag.
#[test]
fn a_member_whose_client_is_cut_off_from_the_brokers_gets_another_client() {
    for_each(2, &[Protocol::Cooperative, Protocol::Consumer], |protocol| {
        let topic = Topic::create("cut_off", 1);
        let mut produced = topic.fill(Codec::None, Mix::Clean, 0, EACH);
        let proxy = Proxy::new(broker::address());
        let mut home = behind(&proxy, &topic);
        // It would be cured by librdkafka, which looks for brokers as soon as it has none and often, but not always, calls that off.
        let mut properties = json!({"topic.metadata.refresh.interval.ms": "500", "metadata.recovery.strategy": "none"});
        match protocol {
            Protocol::Consumer => properties["group.protocol"] = json!("consumer"),
            _ => properties["session.timeout.ms"] = json!("6000"),
        }
        home.set("kafka.assignment", "group").set("kafka.librdkafka", properties);
        let service = home.foreground_with(|command| {
            command.envs([("FAULT_POINT", "kafka.cut_off:*"), ("FAULT_WATCHDOG_MS", "6000")])
        });
        home.wait_written(EACH);
        proxy.without_brokers();
        home.wait_logged("the fault kafka.cut_off happens");
        if *protocol == Protocol::Cooperative {
            home.wait_logged("the group revoked partitions count=1 lost=true");
        }
        // By now it was the client of the consumer that was cut off.
        wait_until("the client reaches no broker", SOON, || {
            let status = home.try_status()?;
            holds(status.state == State::Waiting, status)
        });
        proxy.pass_unchanged();
        home.wait_logged("although another one has: replacing it");
        produced.extend(topic.fill(Codec::None, Mix::Clean, EACH, EACH));
        // The client that asks for the lag may be cut off, too.
        home.wait_done(&produced);
        home.assert_exactly(&produced);
        assert_eq!(home.status().client_restarts, 1);
        service.terminate();
    });
}

/// The same for members of a group: what can begin begins, and the rest follows when it can.
#[test]
fn a_partition_without_a_leader_holds_back_no_other_of_its_member_in_each_protocol() {
    let protocols = [Protocol::Cooperative, Protocol::Eager, Protocol::Consumer];
    for_each(3, &protocols, |protocol| {
        let topic = Topic::create("held_back", 3);
        let mut produced = topic.fill(Codec::None, Mix::Clean, 0, 3 * EACH);
        let proxy = Proxy::new(broker::address());
        let mut fleet = Fleet::new(&topic, 2, *protocol, Membership::Dynamic);
        fleet.homes[0].set("kafka.brokers", proxy.address());
        proxy.without_leader(&topic.name, &[1]);
        fleet.start(0);
        fleet.homes[0].wait_written(of_partitions(&produced, &[0, 2]));
        let answered = proxy.answered(LIST_OFFSETS);
        wait_until("it is asked again", SOON, || {
            let now = proxy.answered(LIST_OFFSETS);
            holds(now > answered, now)
        });
        proxy.without_leader(&topic.name, &[]);
        fleet.wait_done(&produced);
        // Each partition can be given up, too.
        fleet.start(1);
        fleet.wait_shared(&[0, 1]);
        produced.extend(topic.fill(Codec::None, Mix::Clean, 3 * EACH, 3 * EACH));
        fleet.wait_done(&produced);
        fleet.stop_all();
        fleet.assert_exactly(&produced);
    });
}

#[test]
fn a_topic_that_is_not_there_holds_back_no_other() {
    let topic = Topic::create("there", 1);
    let name = format!("{}_later", topic.name);
    let mut produced = topic.fill(Codec::None, Mix::Clean, 0, EACH);
    let mut home = Home::new(&topic);
    home.set("kafka.topics", vec![topic.name.clone(), name.clone()]);
    let service = home.foreground();
    home.wait_written(EACH);
    wait_until("it consumes, and names the topic that is not there", SOON, || {
        let status = home.try_status()?;
        let named = status.reason.as_ref().is_some_and(|reason| reason.contains(&name));
        holds(status.state == State::Consuming && named, status)
    });
    let later = Topic::named(&name, 1);
    let others = later.fill(Codec::None, Mix::Clean, EACH, EACH);
    home.wait_written(2 * EACH);
    produced.extend(others);
    home.wait_done(&produced);
    wait_until("no topic is missing", SOON, || {
        let status = home.try_status()?;
        holds(status.reason.is_none(), status)
    });
    assert_eq!(home.events().iter().map(|file| file.lines.len() as u64).sum::<u64>(), 2 * EACH);
    service.terminate();
}

#[test]
fn while_brokers_are_away_the_lag_is_unknown_and_nothing_is_said_to_be_consumed() {
    let topic = Topic::create("away", 2);
    let proxy = Proxy::new(broker::address());
    let mut home = behind(&proxy, &topic);
    home.set("rpc.timeout", "2s");
    let mut produced = topic.fill(Codec::None, Mix::Clean, 0, EACH);
    let service = home.foreground();
    home.wait_done(&produced);
    proxy.cut();
    home.wait_for(State::Waiting);
    produced.extend(topic.fill(Codec::None, Mix::Clean, EACH, EACH));
    for _ in 0..4 {
        unknown_lag(&home);
        let status = home.status();
        assert_eq!((status.lag, status.state), (None, State::Waiting), "{status:?}");
    }
    proxy.heal();
    home.wait_done(&produced);
    // The connections stay, so that nothing tells the consumer for a minute.
    proxy.stall();
    wait_until("status says that the brokers do not answer", SOON, || {
        let status = home.status();
        let said = status.reason.as_ref().is_some_and(|reason| reason.contains("Kafka does not answer"));
        holds(status.lag.is_none() && said, (status.lag, status.reason))
    });
    proxy.heal();
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    service.terminate();
}

#[test]
fn an_offset_is_moved_within_the_time_of_a_command_or_not_at_all() {
    let topic = Topic::create("unmoved", 1);
    let produced = topic.fill(Codec::None, Mix::Clean, 0, EACH);
    let proxy = Proxy::new(broker::address());
    let mut home = behind(&proxy, &topic);
    home.set("kafka.assignment", "group").set("rpc.timeout", "3s");
    let service = home.foreground();
    home.wait_done(&produced);
    service.terminate();
    let group = || committed(&format!("g_{}", topic.name), &topic).get(&0).copied();
    // Longer than the command's time, and shorter than the session of 45 s that a member which has left would be waited for.
    let most = Duration::from_secs(30);
    proxy.lose_answers(LIST_OFFSETS, 1000, Loss::Cut);
    let done = home.mtga(["set_offset", &topic.name, "earliest"]);
    assert!(done.took < most, "it took {:?}", done.took);
    assert!(done.stderr.contains("nothing was moved"), "{}", done.stderr);
    done.code(69);
    assert_eq!(group(), Some(EACH as i64));
    proxy.lose_answers(LIST_OFFSETS, 0, Loss::Cut);
    proxy.lose_answers(OFFSET_COMMIT, 1000, Loss::Swallowed);
    let done = home.mtga(["set_offset", &topic.name, "earliest"]);
    assert!(done.took < most, "it took {:?}", done.took);
    assert!(done.stderr.contains("not known whether the group"), "{}", done.stderr);
    done.code(69);
    proxy.lose_answers(OFFSET_COMMIT, 0, Loss::Swallowed);
    home.set("rpc.timeout", "20s");
    home.mtga(["set_offset", &topic.name, "42"]).success();
    assert_eq!(group(), Some(42));
    assert_eq!(home.offsets()[0].current, Some(42));
}

fn assert_no_offset_is_forgotten(in_group: bool) {
    let topic = Topic::create("healed", 2);
    let produced = topic.fill(Codec::None, Mix::Clean, 0, EACH);
    let proxy = Proxy::new(broker::address());
    proxy.cut();
    let mut home = behind(&proxy, &topic);
    if in_group {
        home.in_group();
    }
    let service = home.foreground();
    home.wait_for(State::Waiting);
    service.terminate();
    // As a version left it that took a lost answer for an offset.
    let dir = home.path("tmp/store/journal");
    let contents = journal::read(&dir).expect("a journal");
    let mut state = contents.state.clone().expect("a state");
    for partition in 0..topic.partitions {
        let here = PartitionState { next: -1001, leader_epoch: -1, ..PartitionState::default() };
        state.partitions.insert(TopicPartition { topic: topic.name.as_str().into(), partition }, here);
    }
    drop(Journal::begin(&dir, &contents, &state).expect("a segment"));
    proxy.heal();
    assert_eq!(home.integer("kafka_lag"), EACH as i64, "a stopped service shows where it would start");
    let service = home.foreground();
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    home.wait_logged("the stored position is no offset");
    service.terminate();
}

#[test]
fn a_position_that_is_no_offset_is_forgotten_and_said() {
    for_each(2, &[false, true], |in_group| assert_no_offset_is_forgotten(*in_group));
}

fn assert_known_partitions_are_not_left_out(in_group: bool) {
    let topic = Topic::create("left_out", 2);
    let produced = topic.fill(Codec::None, Mix::Clean, 0, 2 * EACH);
    let mut home = Home::new(&topic);
    home.set("rpc.timeout", "5s");
    if in_group {
        home.in_group();
        home.set("kafka.instance_id", "");
    }
    let service = home.foreground();
    home.wait_done(&produced);
    service.terminate();
    assert_eq!(home.integer("kafka_lag"), 0);
    // It has read a partition more than the brokers name.
    let of = |partition| TopicPartition { topic: topic.name.as_str().into(), partition };
    let note = |change: &dyn Fn(&mut PartitionState)| {
        let dir = home.path("tmp/store/journal");
        let contents = journal::read(&dir).expect("a journal");
        let mut state = contents.state.clone().expect("a state");
        let mut here = state.partitions[&of(1)].clone();
        change(&mut here);
        state.partitions.insert(of(2), here);
        drop(Journal::begin(&dir, &contents, &state).expect("a segment"));
    };
    note(&|_| {});
    let unknown = home.mtga(["kafka_lag"]);
    assert!(unknown.stderr.contains(&of(2).to_string()), "it names the partition: {unknown:?}");
    assert_eq!(unknown.code(69).stdout, "", "no number is printed");
    let shown = home.mtga(["--json", "offset_checker"]).code(69);
    let rows: Vec<PartitionOffsets> = serde_json::from_str(&shown.stdout).expect("rows");
    assert_eq!(rows.iter().map(|row| row.lag).collect::<Vec<_>>(), [Some(0), Some(0), None]);
    let refused = home.mtga(["set_offset", "all", "earliest"]);
    let text = format!("nothing was moved: the watermarks of {} are not known", of(2));
    assert!(refused.stderr.contains(&text), "{refused:?}");
    refused.code(69);
    let rows = home.mtga(["--json", "offset_checker"]).stdout;
    let rows: Vec<PartitionOffsets> = serde_json::from_str(&rows).expect("rows");
    assert_eq!(rows[0].lag, Some(0), "nothing was moved");
    // A topic that was made again may have fewer.
    note(&|here| here.topic_id = "another".into());
    assert_eq!(home.integer("kafka_lag"), 0);
    home.mtga(["set_offset", "all", "earliest"]).success();
    assert_eq!(home.integer("kafka_lag"), 2 * EACH as i64);
}

#[test]
fn a_partition_that_was_read_and_is_not_named_is_unknown_to_a_stopped_home() {
    for_each(2, &[false, true], |in_group| assert_known_partitions_are_not_left_out(*in_group));
}

fn assert_a_time_skips_nothing(in_group: bool) {
    let topic = Topic::create("time", 1);
    topic.fill(Codec::None, Mix::Clean, 0, EACH);
    let time = chrono::DateTime::from_timestamp_millis(1_700_000_000_000 + EACH as i64 * 7).expect("a time");
    let proxy = Proxy::new(broker::address());
    let mut home = behind(&proxy, &topic);
    home.set("kafka.start", time.to_rfc3339());
    if in_group {
        home.in_group();
    }
    proxy.delay_answers(LIST_OFFSETS, Duration::from_secs(2));
    let service = home.foreground();
    wait_until("the first question is answered", SOON, || {
        let answered = proxy.answered(LIST_OFFSETS);
        holds(answered > 0, answered)
    });
    let produced = topic.fill(Codec::None, Mix::Clean, EACH, EACH);
    proxy.delay_answers(LIST_OFFSETS, Duration::ZERO);
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    service.terminate();
}

#[test]
fn a_record_that_comes_while_the_brokers_are_asked_for_a_time_is_not_skipped() {
    for_each(2, &[false, true], |in_group| assert_a_time_skips_nothing(*in_group));
}

/// `start: latest`. At the first start the leaders of some partitions do not answer, and it may be killed there.
fn assert_latest_is_the_end_of_both(in_group: bool, silent: &[i32], killed_at: Option<&str>) {
    let topic = Topic::create("lateststart", 2);
    topic.fill(Codec::Snappy, Mix::Clean, 0, 2 * EACH);
    let proxy = Proxy::new(broker::address());
    let mut home = behind(&proxy, &topic);
    home.set("kafka.start", "latest");
    if in_group {
        home.in_group();
    }
    proxy.without_leader(&topic.name, silent);
    if let Some(point) = killed_at {
        home.killed_at(point);
        proxy.without_leader(&topic.name, &[]);
    }
    let service = home.foreground();
    wait_until("the first partition has begun", SOON, || {
        let status = home.try_status()?;
        holds(status.partitions >= 1, status)
    });
    proxy.without_leader(&topic.name, &[]);
    wait_until("both have begun", SOON, || {
        let status = home.try_status()?;
        holds(status.partitions == 2, status)
    });
    let produced = topic.fill(Codec::Snappy, Mix::Clean, 2 * EACH, EACH);
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    service.terminate();
}

#[test]
fn latest_is_the_end_of_every_partition_that_was_there_alone() {
    assert_latest_is_the_end_of_both(false, &[1], None);
}

/// The start of the first one is durable, and the group does not know it yet.
#[test]
fn latest_is_the_end_of_every_partition_that_was_there_in_a_group() {
    assert_latest_is_the_end_of_both(true, &[1], Some("assign.noted"));
}

#[test]
fn latest_is_the_end_of_every_partition_that_was_there_after_a_kill_between_two_starts() {
    assert_latest_is_the_end_of_both(false, &[], Some("note.start"));
}

/// Waits until the instance says that nobody knows what is behind, while nobody has its partitions.
fn assert_the_lag_is_unknown(home: &Home) {
    let status = home.status();
    let asked = home.mtga(["kafka_lag"]);
    assert_eq!(status.lag, None, "{status:?}");
    assert_ne!(asked.stdout.trim(), "0", "{status:?}");
    let reason = status.reason.unwrap_or_default();
    assert!(!reason.contains("has no partition"), "{reason}");
}

#[test]
fn while_the_group_cannot_be_reached_past_the_session_the_lag_is_unknown() {
    let topic = Topic::create("lostlag", 2);
    let proxy = Proxy::new(broker::address());
    let mut home = behind(&proxy, &topic);
    home.set("kafka.assignment", "group");
    home.set("kafka.librdkafka", json!({"session.timeout.ms": "2000", "heartbeat.interval.ms": "300"}));
    let mut produced = topic.fill(Codec::Snappy, Mix::Clean, 0, EACH);
    let service = home.foreground();
    home.wait_done(&produced);
    proxy.cut();
    produced.extend(topic.fill(Codec::Snappy, Mix::Clean, EACH, EACH));
    wait_until("the partitions are lost", SOON, || {
        let status = home.try_status()?;
        holds(status.partitions == 0, status)
    });
    for _ in 0..3 {
        assert_the_lag_is_unknown(&home);
        unknown_lag(&home);
    }
    proxy.heal();
    home.wait_done(&produced);
    service.terminate();
}

/// It waits for a member that is frozen: nobody has a partition meanwhile.
#[test]
fn while_an_eager_group_rebalances_the_lag_of_its_members_is_unknown() {
    let topic = Topic::create("eagerlag", 2);
    let mut fleet = Fleet::new(&topic, 4, Protocol::Eager, Membership::Dynamic);
    // The group waits for the one that is frozen until everybody was asked, however slow this machine is.
    fleet.property("session.timeout.ms", "45000");
    let mut produced = topic.fill(Codec::Snappy, Mix::Clean, 0, EACH);
    // The third one has no partition.
    for number in 0..3 {
        fleet.start(number);
    }
    let mut without = 0;
    wait_until("two have a partition, and the third one has none", SOON, || {
        let statuses: Vec<_> = (0..3).map(|number| fleet.ask(number)).collect::<Result<_, _>>()?;
        let has_none = |reason: Option<&str>| reason.is_some_and(|reason| reason.contains("has no partition"));
        let found = statuses.iter().position(|status| has_none(status.reason.as_deref()) && status.lag == Some(0));
        without = found.unwrap_or_default();
        let others = statuses.iter().filter(|status| status.partitions == 1).count();
        holds(found.is_some() && others == 2, statuses)
    });
    fleet.wait_done(&produced);
    let frozen = (0..3).find(|number| *number != without).expect("there are three");
    fleet.signal(frozen, Signal::SIGSTOP);
    produced.extend(topic.fill(Codec::Snappy, Mix::Clean, EACH, EACH));
    fleet.start(3);
    let others: Vec<_> = (0..3).filter(|number| *number != frozen).collect();
    for number in &others {
        wait_until("the group rebalances", SOON, || {
            let status = fleet.ask(*number)?;
            holds(status.reason.as_deref().is_some_and(|reason| reason.contains("JoinGroup")), status)
        });
    }
    for number in others {
        assert_the_lag_is_unknown(&fleet.homes[number]);
    }
    fleet.signal(frozen, Signal::SIGCONT);
    fleet.wait_done(&produced);
    fleet.stop_all();
    fleet.assert_exactly(&produced);
}
