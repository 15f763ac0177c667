//! Several instances of one group: every record exactly once through orderly rebalances, and what an instance that is lost
//! can repeat. All files of all instances together are compared with the oracle.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use std::{fs, mem};

use mtga::control::State;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::files::SmallDisk;
use crate::harness::fleet::{Fleet, Membership, Protocol, SESSION};
use crate::harness::topic::Load;
use crate::harness::{Codec, Home, Mix, SOON, Topic, events, holds, oracle, slow, tick, wait_until};

/// About 4,000 records a second: three instances under test keep up with it on a busy machine.
fn steady(topic: &Topic, mix: Mix) -> Load {
    topic.load_every(Duration::from_millis(50), Codec::Snappy, mix)
}

/// One to three instances and back to one, then two, with records coming in all the time.
fn assert_exactly_once_through_joins_and_leaves(protocol: Protocol) {
    let topic = Topic::create("members", 6);
    let mut fleet = Fleet::new(&topic, 3, protocol, Membership::Dynamic);
    let load = steady(&topic, Mix::Dirty);
    fleet.start(0);
    fleet.wait_shared(&[0]);
    fleet.wait_progress(0, 1000);
    fleet.start(1);
    fleet.wait_shared(&[0, 1]);
    fleet.start(2);
    fleet.wait_shared(&[0, 1, 2]);
    fleet.assert_answers();
    fleet.wait_progress(2, 1000);
    fleet.stop(0);
    fleet.wait_shared(&[1, 2]);
    fleet.stop(2);
    fleet.wait_shared(&[1]);
    fleet.wait_progress(1, 1000);
    // What it had went to another instance and comes back.
    fleet.start(0);
    fleet.wait_shared(&[0, 1]);
    fleet.wait_progress(0, 1000);
    let produced = load.stop();
    fleet.wait_done(&produced);
    fleet.assert_answers();
    fleet.assert_exactly(&produced);
    fleet.stop_all();
    fleet.assert_exactly(&produced);
}

#[test]
fn instances_join_and_leave_cooperatively_and_nothing_is_lost_or_repeated() {
    assert_exactly_once_through_joins_and_leaves(Protocol::Cooperative);
}

#[test]
fn instances_join_and_leave_eagerly_and_nothing_is_lost_or_repeated() {
    assert_exactly_once_through_joins_and_leaves(Protocol::Eager);
}

#[test]
fn instances_join_and_leave_in_the_new_protocol_and_nothing_is_lost_or_repeated() {
    assert_exactly_once_through_joins_and_leaves(Protocol::Consumer);
}

/// The short form of `scripts/slow-disks`.
#[test]
fn on_slow_disks_instances_join_and_leave_and_nothing_is_lost_or_repeated() {
    slow::on_slow_disks(Duration::from_millis(300), || {
        let topic = Topic::create("slow", 4);
        let mut fleet = Fleet::new(&topic, 2, Protocol::Cooperative, Membership::Dynamic);
        let load = steady(&topic, Mix::Dirty);
        fleet.start(0);
        fleet.start(1);
        fleet.wait_shared(&[0, 1]);
        fleet.wait_progress(0, 500);
        fleet.stop(0);
        fleet.wait_shared(&[1]);
        let produced = load.stop();
        fleet.wait_done(&produced);
        fleet.stop_all();
        fleet.assert_exactly(&produced);
    });
}

/// Each instance in turn is stopped and started again, with records coming in all the time.
fn assert_exactly_once_through_a_rolling_restart(protocol: Protocol, membership: Membership) {
    let topic = Topic::create("rolling", 6);
    let mut fleet = Fleet::new(&topic, 3, protocol, membership);
    let load = steady(&topic, Mix::Dirty);
    for number in 0..3 {
        fleet.start(number);
    }
    fleet.wait_shared(&[0, 1, 2]);
    for number in 0..3 {
        fleet.stop(number);
        fleet.start(number);
        fleet.wait_shared(&[0, 1, 2]);
        fleet.wait_progress(number, 500);
    }
    let produced = load.stop();
    fleet.wait_done(&produced);
    fleet.stop_all();
    fleet.assert_exactly(&produced);
}

#[test]
fn a_rolling_restart_loses_and_repeats_nothing() {
    assert_exactly_once_through_a_rolling_restart(Protocol::Cooperative, Membership::Dynamic);
}

#[test]
fn a_rolling_restart_of_static_members_loses_and_repeats_nothing() {
    assert_exactly_once_through_a_rolling_restart(Protocol::Cooperative, Membership::Static);
}

#[test]
fn a_rolling_restart_of_static_members_in_the_new_protocol_loses_and_repeats_nothing() {
    assert_exactly_once_through_a_rolling_restart(Protocol::Consumer, Membership::Static);
}

#[test]
fn a_static_member_that_is_killed_and_started_within_its_session_loses_and_repeats_nothing() {
    let topic = Topic::create("within", 6);
    let mut fleet = Fleet::new(&topic, 3, Protocol::Cooperative, Membership::Static);
    // Nobody is to take its partitions over, however slow this machine is. A start and its recovery wait for some 20 syncs.
    fleet.property("session.timeout.ms", &slow::millis(Duration::from_secs(30), 40));
    let load = steady(&topic, Mix::Dirty);
    for number in 0..3 {
        fleet.start(number);
    }
    fleet.wait_shared(&[0, 1, 2]);
    for number in [0, 1, 0] {
        fleet.wait_progress(number, 700);
        fleet.kill(number);
        fleet.start(number);
        fleet.wait_shared(&[0, 1, 2]);
    }
    let produced = load.stop();
    fleet.wait_done(&produced);
    fleet.stop_all();
    fleet.assert_exactly(&produced);
}

/// A static member is stopped or killed, and is back within its session with other topics; the coordinator would give it what it
/// had. Every topic gets records whether it is configured or not.
fn assert_reads_its_topics_when_they_changed_within_the_session(strategy: &str) {
    const PART: u64 = 60;
    let topics = ["kept", "dropped", "added"].map(|name| Topic::create(name, 2));
    let mut home = Home::new(&topics[0]);
    home.in_group();
    let session = slow::millis(Duration::from_secs(45), 40);
    let properties = json!({"session.timeout.ms": session, "partition.assignment.strategy": strategy});
    home.set("kafka.librdkafka", properties);
    let (mut produced, mut read) = (Vec::new(), [0; 3]);
    for (round, configured) in [&[0, 1][..], &[0, 2], &[0, 1, 2]].into_iter().enumerate() {
        for (number, topic) in (0..).zip(&topics) {
            produced.extend(topic.fill(Codec::None, Mix::Clean, (3 * round as u64 + number) * PART, PART));
        }
        for topic in configured {
            read[*topic] = (round as u64 + 1) * PART;
        }
        let names: Vec<_> = configured.iter().map(|topic| topics[*topic].name.clone()).collect();
        home.set("kafka.topics", names);
        let service = home.foreground();
        let expected: u64 = read.iter().sum();
        wait_until(&format!("{expected} records of {configured:?}"), SOON, || {
            let status = home.try_status()?;
            let has_its_share = status.partitions == 2 * configured.len() as u64;
            holds(has_its_share && status.counts.written == expected && status.lag == Some(0), status)
        });
        if round == 1 { service.kill() } else { service.terminate() }
    }
    let mut expected: Vec<_> = oracle::expect(&produced).lines.into_values().flatten().collect();
    let mut found: Vec<_> = home.events().into_iter().flat_map(|file| file.lines).collect();
    expected.sort();
    found.sort();
    events::assert_same("all topics", &expected, &found);
}

#[test]
fn a_static_member_whose_topics_change_within_its_session_reads_them_and_no_others() {
    assert_reads_its_topics_when_they_changed_within_the_session("cooperative-sticky");
}

#[test]
fn a_static_member_of_an_eager_group_whose_topics_change_within_its_session_reads_them_and_no_others() {
    assert_reads_its_topics_when_they_changed_within_the_session("range");
}

/// A static member that fails at a step of giving partitions up to another one, which has just begun.
fn gives_up_to_a_static_member(point: &str) -> (Fleet, Load) {
    let topic = Topic::create("givingup", 4);
    let mut fleet = Fleet::new(&topic, 2, Protocol::Cooperative, Membership::Static);
    fleet.property("session.timeout.ms", &slow::millis(Duration::from_secs(45), 40));
    let load = steady(&topic, Mix::Clean);
    fleet.start_to_fail(0, point);
    fleet.wait_shared(&[0]);
    fleet.wait_progress(0, 500);
    fleet.start(1);
    (fleet, load)
}

/// Between the two halves of a cooperative rebalance partitions have no owner, for as long as another member gives them up.
#[test]
fn a_static_member_that_the_group_does_not_know_yet_waits_for_what_others_give_up() {
    let (mut fleet, load) = gives_up_to_a_static_member("revoke.told:1:stop");
    fleet.wait_frozen(0);
    let frozen = Instant::now();
    wait_until("it takes long", SOON, || holds(frozen.elapsed() > Duration::from_secs(8), ()));
    fleet.signal(0, Signal::SIGCONT);
    fleet.wait_shared(&[0, 1]);
    fleet.wait_progress(1, 500);
    let produced = load.stop();
    fleet.wait_done(&produced);
    assert!(!fleet.homes[1].log().contains("joining the group again"), "{}", fleet.homes[1].log());
    fleet.stop_all();
    fleet.assert_exactly(&produced);
}

#[test]
fn what_a_static_member_was_giving_up_when_it_died_is_read_again_once_it_is_back() {
    let (mut fleet, load) = gives_up_to_a_static_member("revoke.released");
    fleet.wait_killed(0);
    fleet.start(0);
    fleet.wait_shared(&[0, 1]);
    let produced = load.stop();
    fleet.wait_done(&produced);
    fleet.stop_all();
    fleet.assert_exactly(&produced);
}

/// How an instance is lost.
#[derive(Clone, Copy, Debug)]
enum Loss {
    /// `kill -9`.
    Killed,
    /// SIGSTOP past its session; it is told to go on when others have its partitions.
    Frozen,
}

/// One of two instances is lost past its session, under load; the other takes over, and the lost one comes back. Returns how
/// many lines are there twice.
///
/// Of each partition they have to be a range that begins where the group's last acknowledged commit was, when the lost
/// instance wrote last.
fn assert_at_least_once_through_a_loss(protocol: Protocol, membership: Membership, loss: Loss) {
    let topic = Topic::create("lost", 6);
    let mut fleet = Fleet::new(&topic, 2, protocol, membership);
    if protocol == Protocol::Eager {
        // Who is frozen past its session is so past this, too. A third of it is for giving partitions up.
        fleet.property("max.poll.interval.ms", &slow::millis(SESSION, 24));
    }
    let load = steady(&topic, Mix::Clean);
    fleet.start(0);
    fleet.start(1);
    fleet.wait_shared(&[0, 1]);
    fleet.wait_progress(0, 1000);
    let lost: Vec<_> = fleet.homes[0].offsets().iter().map(|row| row.partition).collect();
    match loss {
        Loss::Killed => fleet.kill(0),
        Loss::Frozen => fleet.signal(0, Signal::SIGSTOP),
    }
    let begun = Instant::now();
    // Nothing moves these until the other instance has the partitions, but what was on its way.
    let of_lost = || fleet.committed().into_iter().filter(|(partition, _)| lost.contains(partition)).collect();
    let mut committed: BTreeMap<i32, i64> = of_lost();
    wait_until("what was on its way has arrived", SOON, || {
        tick();
        let before = mem::replace(&mut committed, of_lost());
        holds(before == committed, (before, &committed))
    });
    fleet.wait_shared(&[1]);
    let took = begun.elapsed();
    fleet.wait_progress(1, 1000);
    let taken_over = fleet.committed();
    match loss {
        Loss::Killed => fleet.start(0),
        Loss::Frozen => fleet.signal(0, Signal::SIGCONT),
    }
    fleet.wait_shared(&[0, 1]);
    fleet.wait_progress(0, 1000);
    for (partition, offset) in fleet.committed() {
        assert!(offset >= taken_over[&partition], "{partition}: the group was moved back from {taken_over:?}");
    }
    let produced = load.stop();
    fleet.wait_done(&produced);
    fleet.stop_all();
    let repeats = fleet.repeats(&produced);
    for (partition, offsets) in &repeats {
        assert!(lost.contains(partition), "partition {partition} was not lost: {offsets:?}");
        let range: Vec<_> = (committed[partition]..).take(offsets.len()).collect();
        assert_eq!(offsets, &range, "partition {partition} from its last acknowledged commit");
    }
    let count: usize = repeats.values().map(Vec::len).sum();
    eprintln!(
        "{protocol:?}, {membership:?}, {loss:?}: taken over after {took:?}, {count} of {} records repeated",
        produced.len()
    );
}

#[test]
fn a_killed_instance_is_replaced_and_repeats_only_what_it_had_not_committed() {
    assert_at_least_once_through_a_loss(Protocol::Cooperative, Membership::Dynamic, Loss::Killed);
}

#[test]
fn a_killed_static_member_of_the_new_protocol_waits_for_its_session_to_end() {
    assert_at_least_once_through_a_loss(Protocol::Consumer, Membership::Static, Loss::Killed);
}

#[test]
fn a_frozen_instance_moves_nothing_of_the_new_owner() {
    assert_at_least_once_through_a_loss(Protocol::Cooperative, Membership::Dynamic, Loss::Frozen);
}

#[test]
fn a_frozen_instance_of_an_eager_group_moves_nothing_of_the_new_owner() {
    assert_at_least_once_through_a_loss(Protocol::Eager, Membership::Dynamic, Loss::Frozen);
}

#[test]
fn a_frozen_static_member_of_the_new_protocol_moves_nothing_of_the_new_owner() {
    assert_at_least_once_through_a_loss(Protocol::Consumer, Membership::Static, Loss::Frozen);
}

#[test]
fn an_instance_that_cannot_write_gives_its_partitions_up_in_time() {
    let topic = Topic::create("stuck", 6);
    let mut fleet = Fleet::new(&topic, 2, Protocol::Cooperative, Membership::Dynamic);
    // The group replaces a member that has not answered by then.
    fleet.property("max.poll.interval.ms", &slow::millis(Duration::from_secs(15), 24));
    fleet.set("sink.batch.lines", &100);
    // What is produced until the end has room, also where that takes minutes.
    let size = if slow::sync().is_some() { 256 << 20 } else { 32 << 20 };
    let disk = SmallDisk::mount(fleet.homes[0].path("data"), &size.to_string());
    let load = steady(&topic, Mix::Clean);
    fleet.start(0);
    fleet.wait_shared(&[0]);
    fleet.wait_progress(0, 1000);
    fs::write(disk.0.join(".ballast"), vec![0; size]).expect_err("no room is left");
    wait_until("the disk is full", SOON, || {
        let status = fleet.ask(0)?;
        holds(status.state == State::Paused, status)
    });
    fleet.start(1);
    fleet.wait_shared(&[0, 1]);
    fleet.wait_progress(1, 1000);
    fs::remove_file(disk.0.join(".ballast")).expect("the ballast");
    fleet.wait_progress(0, 1000);
    let produced = load.stop();
    fleet.wait_done(&produced);
    assert!(!fleet.homes[0].log().contains("lost=true"), "the group did not have to replace it");
    fleet.stop_all();
    // The one block that was begun can only be completed.
    let repeats = fleet.repeats(&produced);
    assert!(repeats.len() <= 1 && repeats.values().all(|offsets| offsets.len() <= 100), "{repeats:?}");
}

#[test]
fn two_instances_of_one_name_do_not_drive_each_other_out() {
    let topic = Topic::create("namesake", 4);
    let mut fleet = Fleet::new(&topic, 2, Protocol::Cooperative, Membership::Dynamic);
    fleet.set("kafka.instance_id", &"both");
    let load = steady(&topic, Mix::Clean);
    fleet.start(0);
    fleet.wait_shared(&[0]);
    fleet.wait_progress(0, 500);
    fleet.start(1);
    // The later one has the name, as after a move to another host.
    fleet.wait_shared(&[1]);
    fleet.wait_reason(0, &["`both`", "instance_id"]);
    fleet.wait_progress(1, 10_000);
    assert_eq!(fleet.ask(0).expect("a status").partitions, 0, "it does not come back while the name is taken");
    fleet.give_name_back(load);
}

#[test]
fn a_name_that_is_taken_is_waited_for_in_the_new_protocol() {
    let topic = Topic::create("taken", 4);
    let mut fleet = Fleet::new(&topic, 2, Protocol::Consumer, Membership::Dynamic);
    fleet.set("kafka.instance_id", &"both");
    let load = steady(&topic, Mix::Dirty);
    fleet.start(0);
    fleet.wait_shared(&[0]);
    fleet.start(1);
    fleet.wait_reason(1, &["`both`", "instance_id"]);
    fleet.wait_progress(0, 1000);
    fleet.stop(0);
    fleet.wait_shared(&[1]);
    let produced = load.stop();
    fleet.wait_done(&produced);
    fleet.stop_all();
    fleet.assert_exactly(&produced);
}

#[test]
fn an_instance_without_partitions_says_so_and_has_no_lag() {
    let topic = Topic::create("spare", 1);
    let mut fleet = Fleet::new(&topic, 2, Protocol::Cooperative, Membership::Dynamic);
    let produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, 1000);
    fleet.start(0);
    fleet.wait_shared(&[0]);
    fleet.start(1);
    wait_until("the second instance says that it has nothing", SOON, || {
        let status = fleet.ask(1)?;
        let said = status.reason.as_deref() == Some("the group has no partition for this instance");
        holds(said && status.lag == Some(0) && status.state == State::Waiting, status)
    });
    fleet.wait_done(&produced);
    fleet.assert_answers();
    assert!(fleet.homes[1].offsets().is_empty(), "it shows what it has");
    fleet.stop_all();
    fleet.assert_exactly(&produced);
}

#[test]
fn latest_is_pinned_for_the_next_owner_too() {
    let topic = Topic::create("pinned", 3);
    topic.fill(Codec::Snappy, Mix::Clean, 0, 300);
    let mut fleet = Fleet::new(&topic, 2, Protocol::Cooperative, Membership::Dynamic);
    fleet.set("kafka.start", &"latest");
    fleet.start(0);
    fleet.wait_shared(&[0]);
    fleet.stop(0);
    // What comes while nobody reads is after the start, whoever reads it.
    let produced = topic.fill(Codec::Snappy, Mix::Clean, 300, 300);
    fleet.start(1);
    fleet.homes[1].wait_done(&produced);
    fleet.stop_all();
    fleet.homes[1].start();
    fleet.homes[1].assert_exactly(&produced);
    fleet.homes[1].stop();
}

#[test]
fn groups_and_an_instance_without_one_do_not_disturb_each_other() {
    let topic = Topic::create("apart", 3);
    let load = steady(&topic, Mix::Dirty);
    let mut homes: Vec<_> = (0..3).map(|_| Home::new(&topic)).collect();
    for (number, home) in homes.iter_mut().enumerate() {
        home.set("kafka.group_id", format!("apart_{number}_{}", topic.name));
        if number > 0 {
            home.set("kafka.assignment", "group");
        }
    }
    let services: Vec<_> = homes.iter().map(Home::foreground).collect();
    for home in &homes {
        home.wait_written(500);
    }
    let produced = load.stop();
    for (home, service) in homes.iter().zip(services) {
        home.wait_done(&produced);
        home.assert_exactly(&produced);
        service.terminate();
    }
}

#[test]
fn a_position_that_others_have_left_behind_is_told_when_the_group_has_none() {
    let topic = Topic::create("stale", 2);
    let mut fleet = Fleet::new(&topic, 2, Protocol::Cooperative, Membership::Dynamic);
    let mut produced = topic.fill(Codec::None, Mix::Clean, 0, 1000);
    for number in 0..2 {
        fleet.start(number);
        fleet.wait_done(&produced);
        fleet.stop(number);
        if number == 0 {
            produced.extend(topic.fill(Codec::None, Mix::Clean, 1000, 1000));
        }
    }
    fleet.assert_exactly(&produced);
    // As if its offsets had expired.
    fleet.set("kafka.group_id", &format!("h_{}", topic.name));
    fleet.start(0);
    fleet.homes[0].wait_for(State::Consuming);
    fleet.homes[0].wait_done(&produced);
    fleet.stop(0);
    let repeats: usize = fleet.repeats(&produced).values().map(Vec::len).sum();
    assert_eq!(repeats, 1000, "what the other instance has read");
    assert!(fleet.homes[0].log().contains("the group has no offset of this partition"), "it says so");
}
