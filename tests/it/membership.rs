//! Memberships that end between any two steps, of instances that get their own partitions back: frozen, behind a network that
//! carries nothing, removed by an administrator, replaced by another of the same name; on slow disks, where every race with a
//! checkpoint is likely. Nothing is lost or repeated, and the instance joins again by itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use mtga::config::Visibility;
use mtga::msource::journal;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::harness::cases::for_each;
use crate::harness::fleet::{Fleet, Membership, Protocol};
use crate::harness::proxy::{CONSUMER_GROUP_HEARTBEAT, HEARTBEAT, Loss};
use crate::harness::{Codec, Mix, Proxy, Record, SOON, Topic, broker, holds, wait_until};
use crate::sealed_group::{self, ASSIGN};

/// How soon the group forgets a member of the classic protocol here.
const SESSION: &str = "1500";

/// An instance without others, and what was produced for it.
struct Lone {
    fleet: Fleet,
    produced: Vec<Record>,
}

impl Lone {
    fn of(mut fleet: Fleet, protocol: Protocol) -> Self {
        if protocol != Protocol::Consumer {
            fleet.property("session.timeout.ms", SESSION);
        }
        Self { fleet, produced: Vec::new() }
    }

    fn live(protocol: Protocol, partitions: i32) -> Self {
        let topic = Topic::create("lonelive", partitions);
        Self::of(Fleet::new(&topic, 1, protocol, Membership::Dynamic), protocol)
    }

    fn sealed(protocol: Protocol, partitions: i32) -> Self {
        let topic = Topic::create("lonesealed", partitions);
        Self::of(sealed_group::sealed(&topic, 1, protocol), protocol)
    }

    /// One that shows its files and one that hides them, of one partition each.
    fn both(protocol: Protocol) -> [Self; 2] {
        [Self::live(protocol, 1), Self::sealed(protocol, 1)]
    }

    /// A partition that is added has a start of its own, which is noted and told to the group before it is read.
    fn add_partition(&mut self) {
        let partitions = self.fleet.topic.partitions + 1;
        self.fleet.topic.grow(partitions);
    }

    fn fill(&mut self, count: u64) {
        let first = self.produced.len() as u64;
        self.produced.extend(self.fleet.topic.fill(Codec::Snappy, Mix::Clean, first, count));
    }

    /// Ends it, and demands that every record is there once.
    fn assert_exactly_once(mut self) {
        if self.fleet.homes[0].hides() {
            sealed_group::assert_exactly_once(&mut self.fleet, &self.produced);
        } else {
            self.fleet.wait_done(&self.produced);
            self.fleet.stop_all();
            self.fleet.assert_exactly(&self.produced);
        }
    }

    /// Waits until it has its partitions back, and has read everything.
    fn wait_back(&self) {
        self.fleet.wait_shared(&[0]);
        self.fleet.wait_done(&self.produced);
    }
}

/// Ends everything, and demands that every record is there once.
fn assert_exactly_once(live: Lone, sealed: Lone) {
    live.assert_exactly_once();
    sealed.assert_exactly_once();
}

/// At each step of an assignment the instance is frozen until the group has forgotten it. One that hides its files is so, too,
/// before it asks the group once more to take what was prepared.
fn assert_a_membership_that_ends_within_an_assignment_begins_again(protocol: Protocol) {
    let mut both = Lone::both(protocol);
    for point in ASSIGN.into_iter().chain(["seal.commit"]) {
        for lone in &mut both {
            lone.add_partition();
            lone.fill(60);
        }
        let [_, sealed] = &mut both;
        if point == "seal.commit" {
            sealed.fleet.start_to_fail(0, "seal.prepared");
            sealed.fleet.wait_killed(0);
        }
        let places = if point == "seal.commit" { 1.. } else { 0.. };
        let frozen = &mut both[places];
        for lone in &mut *frozen {
            lone.fleet.start_to_fail(0, &format!("{point}:1:stop"));
        }
        for lone in &*frozen {
            lone.fleet.wait_frozen(0);
        }
        for lone in &*frozen {
            lone.fleet.wait_forgotten(&[]);
            lone.fleet.signal(0, Signal::SIGCONT);
        }
        for lone in &mut *frozen {
            lone.wait_back();
            lone.fleet.stop(0);
        }
    }
    let [mut live, sealed] = both;
    live.fleet.start(0);
    live.wait_back();
    assert_exactly_once(live, sealed);
}

#[test]
fn a_membership_that_ends_within_an_assignment_begins_again() {
    assert_a_membership_that_ends_within_an_assignment_begins_again(Protocol::Cooperative);
}

#[test]
fn a_membership_that_ends_within_an_assignment_of_an_eager_group_begins_again() {
    assert_a_membership_that_ends_within_an_assignment_begins_again(Protocol::Eager);
}

#[test]
fn a_membership_that_ends_within_an_assignment_of_the_new_protocol_begins_again() {
    assert_a_membership_that_ends_within_an_assignment_begins_again(Protocol::Consumer);
}

#[test]
fn a_network_that_carries_nothing_past_the_session_while_the_first_start_is_told_is_waited_for() {
    for protocol in [Protocol::Cooperative, Protocol::Eager, Protocol::Consumer] {
        let mut both = Lone::both(protocol);
        let proxies = [(); 2].map(|()| Proxy::new(broker::address()));
        for (lone, proxy) in both.iter_mut().zip(&proxies) {
            lone.fill(60);
            lone.fleet.homes[0].set("kafka.brokers", proxy.address());
            lone.fleet.start_to_fail(0, "assign.noted:1:stop");
        }
        for (lone, proxy) in both.iter_mut().zip(&proxies) {
            lone.fleet.wait_frozen(0);
            proxy.stall();
            lone.fleet.signal(0, Signal::SIGCONT);
        }
        for (lone, proxy) in both.iter_mut().zip(&proxies) {
            lone.fleet.wait_forgotten(&[]);
            proxy.heal();
        }
        both.iter().for_each(Lone::wait_back);
        let [live, sealed] = both;
        assert_exactly_once(live, sealed);
    }
}

/// Waits until the first instance has so many records in hidden files, and none of them can be lost.
fn wait_hidden_is_durable(fleet: &Fleet, records: u64) {
    wait_until("what it has hidden is durable", SOON, || {
        let state = journal::read(&fleet.homes[0].path("tmp/store/journal")).map_err(|error| error.to_string())?.state;
        let consumed = state.map_or(0, |state| state.totals.consumed);
        holds(consumed == records, consumed)
    });
}

/// Frozen past its session between the note that a range is refused and the removal of its files, twice: while it takes its
/// partitions, and again when it is back.
#[test]
fn an_instance_frozen_past_its_session_while_it_refuses_what_another_one_has_read_reads_nothing_twice() {
    let topic = Topic::create("frozenrefuse", 2);
    let mut fleet = Lone::of(sealed_group::sealed(&topic, 2, Protocol::Cooperative), Protocol::Cooperative).fleet;
    fleet.set("sink.rotate", &json!({"age": "1h", "idle": "1h"}));
    fleet.set("store.checkpoint", &"100ms");
    let mut produced = topic.fill(Codec::Snappy, Mix::Clean, 0, 200);
    fleet.start(0);
    wait_hidden_is_durable(&fleet, 200);
    fleet.kill(0);
    // Another one reads it, and publishes at its end.
    fleet.start(1);
    fleet.wait_answers(1);
    fleet.wait_progress(1, 200);
    fleet.stop(1);
    fleet.set("sink.rotate", &json!({"age": "1s", "idle": "500ms"}));
    fleet.start_to_fail(0, "refuse.noted:1:stop,refuse.noted:2:stop");
    for _ in 0..2 {
        fleet.wait_frozen(0);
        fleet.wait_forgotten(&[]);
        fleet.signal(0, Signal::SIGCONT);
    }
    fleet.start(1);
    fleet.wait_shared(&[0, 1]);
    produced.extend(topic.fill(Codec::Snappy, Mix::Clean, 200, 200));
    sealed_group::assert_exactly_once(&mut fleet, &produced);
}

/// A slow disk below an instance that hides its files for a second.
fn slow(topic: &Topic, protocol: Protocol, millis: [u64; 2]) -> Fleet {
    let mut fleet = Lone::of(sealed_group::sealed(topic, 1, protocol), protocol).fleet;
    let [from, to] = millis.map(Duration::from_millis);
    fleet.put_on_slow_disks(&(from..to));
    fleet.patience = 3 * SOON;
    fleet
}

/// Waits until the only instance was given both partitions so many times, and goes on with them.
fn wait_given_back(fleet: &Fleet, times: usize) {
    wait_until("it is given its partitions", fleet.patience, || {
        let found = fleet.homes[0].log().matches("the group assigned partitions count=2").count();
        holds(found >= times, found)
    });
    fleet.wait_shared(&[0]);
    fleet.wait_progress(0, 100);
}

fn assert_removals_at_any_moment_are_survived(protocol: Protocol, removals: usize) {
    let topic = Topic::create("removed", 2);
    let mut fleet = slow(&topic, protocol, [300, 700]);
    let load = topic.load_every(Duration::from_millis(50), Codec::Snappy, Mix::Dirty);
    fleet.start(0);
    for time in 1..=removals {
        wait_given_back(&fleet, time);
        fleet.remove_members();
    }
    wait_given_back(&fleet, removals + 1);
    let produced = load.stop();
    fleet.heal_disks();
    sealed_group::assert_exactly_once(&mut fleet, &produced);
}

#[test]
fn an_instance_that_is_removed_from_its_group_while_files_are_synced_publishes_every_record_once() {
    assert_removals_at_any_moment_are_survived(Protocol::Cooperative, 8);
}

#[test]
fn an_instance_that_is_removed_from_its_eager_group_while_files_are_synced_publishes_every_record_once() {
    assert_removals_at_any_moment_are_survived(Protocol::Eager, 4);
}

fn assert_freezes_at_each_step_of_a_seal_cost_nothing(protocol: Protocol) {
    let points = ["checkpoint.synced:3", "seal.synced:2", "seal.prepared:2", "seal.commit:3", "seal.answered:4"];
    let points: Vec<_> = points.into_iter().chain(["publish.begin:5", "publish.noted:6"]).collect();
    let topic = Topic::create("frozenseal", 2);
    let mut fleet = slow(&topic, protocol, [50, 300]);
    let load = topic.load_every(Duration::from_millis(100), Codec::Snappy, Mix::Dirty);
    fleet.start_to_fail(0, &points.iter().map(|point| format!("{point}:stop")).collect::<Vec<_>>().join(","));
    for _ in points {
        fleet.wait_frozen(0);
        fleet.wait_forgotten(&[]);
        fleet.signal(0, Signal::SIGCONT);
    }
    fleet.wait_shared(&[0]);
    let produced = load.stop();
    fleet.heal_disks();
    sealed_group::assert_exactly_once(&mut fleet, &produced);
}

/// Has guests come, each until it has every partition, and the last one when this is so.
fn visit_until(fleet: &Fleet, frozen: &AtomicBool) {
    wait_until("it is frozen", fleet.patience, || {
        fleet.wait_forgotten(&[]);
        holds(frozen.load(Ordering::Acquire), "not yet")
    });
}

#[test]
fn an_instance_frozen_past_its_session_at_each_step_of_a_seal_on_a_slow_disk_publishes_every_record_once() {
    let protocols = [Protocol::Cooperative, Protocol::Eager, Protocol::Consumer];
    for_each(3, &protocols, |protocol| assert_freezes_at_each_step_of_a_seal_cost_nothing(*protocol));
}

#[test]
fn an_instance_frozen_past_its_session_at_each_step_of_a_revocation_gets_back_what_it_had() {
    let points = ["revoke.told", "revoke.cut", "revoke.committed", "revoke.released", "revoke.answered"];
    let numbered = points.iter().zip(1..).map(|(point, time)| format!("{point}:{time}:stop"));
    let topic = Topic::create("frozenrevoke", 2);
    let mut fleet = slow(&topic, Protocol::Cooperative, [50, 300]);
    let load = topic.load_every(Duration::from_millis(100), Codec::Snappy, Mix::Dirty);
    fleet.start_to_fail(0, &numbered.collect::<Vec<_>>().join(","));
    for time in 1..=points.len() {
        wait_given_back(&fleet, time);
        // The guest's coming is what makes it give partitions up, unless a stall has ended its session just then.
        let frozen = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| visit_until(&fleet, &frozen));
            fleet.wait_frozen(0);
            frozen.store(true, Ordering::Release);
        });
        fleet.signal(0, Signal::SIGCONT);
    }
    wait_given_back(&fleet, points.len() + 1);
    let produced = load.stop();
    fleet.heal_disks();
    sealed_group::assert_exactly_once(&mut fleet, &produced);
}

#[test]
fn an_instance_whose_name_another_process_had_for_a_while_gets_back_what_it_had() {
    let topic = Topic::create("nameback", 2);
    let mut fleet = slow(&topic, Protocol::Cooperative, [50, 300]);
    fleet.set("kafka.instance_id", &"both");
    let load = topic.load_every(Duration::from_millis(100), Codec::Snappy, Mix::Dirty);
    fleet.start(0);
    for time in 1..=2 {
        wait_given_back(&fleet, time);
        fleet.wait_forgotten(&[("group.instance.id", "both"), ("session.timeout.ms", SESSION)]);
    }
    wait_given_back(&fleet, 3);
    let produced = load.stop();
    fleet.heal_disks();
    sealed_group::assert_exactly_once(&mut fleet, &produced);
}

/// Waits until the log of an instance has this.
fn says(fleet: &Fleet, number: usize, text: &str) {
    wait_until(&format!("instance {number} says {text:?}"), SOON, || {
        holds(fleet.homes[number].log().contains(text), "not yet")
    });
}

/// A heartbeat without an answer is sent again with what the member had before, so that the group gives the rest to others.
/// librdkafka goes on with what it was given first, and gives it up when it has begun it.
#[test]
fn what_the_group_gives_to_others_before_it_has_heard_that_it_is_taken_is_read_by_one_alone() {
    let topic = Topic::create("unheard", 6);
    let mut fleet = sealed_group::sealed(&topic, 2, Protocol::Consumer);
    let proxies = [(); 2].map(|()| Proxy::new(broker::address()));
    for (home, proxy) in fleet.homes.iter_mut().zip(&proxies) {
        home.set("kafka.brokers", proxy.address());
    }
    let load = topic.load_every(Duration::from_millis(20), Codec::Snappy, Mix::Dirty);
    // All but ready, so that it joins before the first one takes its partitions, on a busy machine too.
    fleet.start_to_fail(1, "start.noted:1:stop");
    fleet.wait_frozen(1);
    fleet.start_to_fail(0, "assign.told:1:10000");
    says(&fleet, 0, "the group assigned partitions count=6");
    fleet.signal(1, Signal::SIGCONT);
    wait_until("the other one is a member", SOON, || {
        let answered = proxies[1].answered(CONSUMER_GROUP_HEARTBEAT);
        holds(answered > 1, answered)
    });
    proxies[0].lose_answers(CONSUMER_GROUP_HEARTBEAT, 1, Loss::Cut);
    says(&fleet, 1, "the group assigned partitions count=3");
    // It takes what it was given, and cannot know that the group has heard of it.
    proxies[0].lose_answers(CONSUMER_GROUP_HEARTBEAT, u64::MAX, Loss::Swallowed);
    says(&fleet, 0, "it is not known whether the group agrees with what it gave: joining it again");
    proxies[0].lose_answers(CONSUMER_GROUP_HEARTBEAT, 0, Loss::Swallowed);
    fleet.wait_shared(&[0, 1]);
    for number in 0..2 {
        fleet.wait_progress(number, 500);
    }
    let produced = load.stop();
    sealed_group::assert_exactly_once(&mut fleet, &produced);
}

/// librdkafka goes on as if it was a member.
#[test]
fn an_instance_of_the_new_protocol_whose_name_was_taken_while_it_was_cut_off_gives_way() {
    let topic = Topic::create("cutname", 4);
    let mut fleet = Fleet::new(&topic, 2, Protocol::Consumer, Membership::Dynamic);
    fleet.set("kafka.instance_id", &"both");
    let proxy = Proxy::new(broker::address());
    fleet.homes[0].set("kafka.brokers", proxy.address());
    let load = topic.load_every(Duration::from_millis(100), Codec::Snappy, Mix::Dirty);
    fleet.start(0);
    fleet.wait_shared(&[0]);
    fleet.wait_progress(0, 100);
    // After one that failed, a heartbeat tells the name again.
    proxy.hold_requests(CONSUMER_GROUP_HEARTBEAT);
    wait_until("a heartbeat is on its way", SOON, || holds(proxy.held() > 0, "not yet"));
    proxy.cut();
    proxy.let_pass();
    fleet.start(1);
    wait_until("the other one has its partitions", SOON, || {
        let count = fleet.ask(1)?.partitions;
        holds(count == 4, count)
    });
    proxy.heal();
    fleet.wait_reason(0, &["`both`"]);
    let written = fleet.ask(0).expect("a status").counts.written;
    fleet.wait_progress(1, 200);
    assert_eq!(fleet.ask(0).expect("a status").counts.written, written, "it writes nothing while another has its name");
    fleet.give_name_back(load);
}

#[test]
fn an_instance_whose_name_is_taken_while_it_takes_its_partitions_waits_for_it_and_reads_on() {
    let mut both = Lone::both(Protocol::Cooperative);
    for lone in &mut both {
        lone.fleet.set("kafka.instance_id", &"both");
        // So the group knows the guest for longer than the pause, although that is gone: until the guest's first heartbeat
        // the session is that of the member whose name it took.
        lone.fleet.property("session.timeout.ms", "12000");
        lone.fill(60);
        lone.fleet.start_to_fail(0, "assign.noted:1:5000");
    }
    for lone in &both {
        says(&lone.fleet, 0, "the group assigned partitions count=1");
        lone.fleet.wait_forgotten(&[("group.instance.id", "both"), ("session.timeout.ms", "12000")]);
    }
    for lone in &mut both {
        says(&lone.fleet, 0, "another process joined the group as `both`");
        lone.fill(60);
        lone.wait_back();
        assert!(!lone.fleet.homes[0].log().contains("by its old id"), "it has not taken the name back");
    }
    let [live, sealed] = both;
    assert_exactly_once(live, sealed);
}

/// librdkafka goes on to speak for a member whose session it has given up, without the member's id, until the revocation is
/// answered; the group takes that for a process whose name another one has.
#[test]
fn an_instance_whose_session_ended_here_sooner_than_at_the_group_joins_again_at_once() {
    let topic = Topic::create("ownghost", 2);
    let mut fleet = Fleet::new(&topic, 1, Protocol::Cooperative, Membership::Static);
    // The group knows it for 22 s longer than it does itself. librdkafka speaks again 6 s after the end here, and the
    // revocation lasts for twelve: a machine that stalls for five seconds changes nothing of this order.
    fleet.property("session.timeout.ms", "38000");
    fleet.property("heartbeat.interval.ms", "22000");
    let proxy = Proxy::new(broker::address());
    fleet.homes[0].set("kafka.brokers", proxy.address());
    let load = topic.load_every(Duration::from_millis(100), Codec::Snappy, Mix::Dirty);
    fleet.start_to_fail(0, "revoke.lost:1:12000");
    fleet.wait_shared(&[0]);
    // The broker has its heartbeats in time, and it has the answers too late.
    proxy.delay_answers(HEARTBEAT, 2 * SOON);
    says(&fleet, 0, "lost=true");
    proxy.delay_answers(HEARTBEAT, Duration::ZERO);
    says(&fleet, 0, "the group still knows this member by its old id");
    fleet.wait_shared(&[0]);
    let produced = load.stop();
    fleet.wait_done(&produced);
    assert!(!fleet.homes[0].log().contains("another process joined the group"), "there is none");
    fleet.stop_all();
}

#[test]
fn an_instance_whose_disk_fails_while_it_takes_partitions_keeps_nobody_from_theirs() {
    let topic = Topic::create("failstaking", 2);
    let mut fleet = sealed_group::sealed(&topic, 2, Protocol::Cooperative);
    // Nothing is published before it stops.
    fleet.set("sink.rotate", &json!({"age": "1h", "idle": "1h"}));
    fleet.set("store.checkpoint", &"100ms");
    let mut produced = topic.fill(Codec::Snappy, Mix::Clean, 0, 200);
    fleet.put_on_layer(0);
    fleet.start(0);
    wait_hidden_is_durable(&fleet, 200);
    fleet.kill(0);
    // Another one has read what it had hidden: that is to be removed, which fails.
    fleet.start(1);
    fleet.wait_answers(1);
    fleet.wait_progress(1, 200);
    fleet.stop(1);
    fleet.start_to_fail(0, "refuse.noted:1:stop");
    fleet.wait_frozen(0);
    fleet.put_on_layer(0).fail_writes("data/.", Errno::EIO);
    fleet.signal(0, Signal::SIGCONT);
    wait_until("it pauses because of its disk", SOON, || {
        let status = fleet.ask(0)?;
        holds(status.reason.as_ref().is_some_and(|reason| reason.contains("cannot write")), status)
    });
    fleet.start(1);
    wait_until("the other one has its share", SOON, || {
        let status = fleet.ask(1)?;
        holds(status.partitions >= 1, status)
    });
    fleet.heal_disks();
    fleet.wait_shared(&[0, 1]);
    produced.extend(topic.fill(Codec::Snappy, Mix::Clean, 200, 200));
    fleet.set("sink.rotate", &json!({"age": "1s", "idle": "500ms"}));
    for number in 0..2 {
        fleet.stop(number);
        fleet.start(number);
    }
    sealed_group::assert_exactly_once(&mut fleet, &produced);
}

/// How a membership ends between two steps of an instance that goes on afterwards, and gets its partitions back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It is frozen past its session.
    Frozen,
    /// The network carries nothing past its session, and it goes on.
    CutOff,
    /// An administrator removes it.
    Removed,
}

/// Lets an instance that shows its files and one that hides them go through the same under load, side by side: mostly they
/// wait.
fn assert_both_have_every_record_once(protocol: Protocol, go_through: impl Fn(&mut Lone, &Proxy) + Sync) {
    for_each(2, &[Visibility::Live, Visibility::Sealed], |visibility| {
        let mut lone = match visibility {
            Visibility::Live => Lone::live(protocol, 2),
            Visibility::Sealed => Lone::sealed(protocol, 2),
        };
        // Files come and go.
        lone.fleet.set("sink.rotate", &json!({"age": "1s", "idle": "500ms"}));
        lone.fleet.set("store.checkpoint", &"300ms");
        let network = Proxy::new(broker::address());
        lone.fleet.set("kafka.brokers", &network.address());
        let load = lone.fleet.topic.load_every(Duration::from_millis(300), Codec::Snappy, Mix::Dirty);
        go_through(&mut lone, &network);
        lone.fleet.wait_shared(&[0]);
        lone.produced = load.stop();
        lone.fleet.heal_disks();
        lone.assert_exactly_once();
    });
}

impl Lone {
    /// Starts it, and has its membership end so at each of these steps.
    fn lose_membership(&mut self, network: &Proxy, end: End, points: &[&str]) {
        let given = |fleet: &Fleet| fleet.homes[0].log().matches("the group assigned partitions").count();
        let mut before = given(&self.fleet);
        let faults = points.iter().map(|point| format!("{point}:stop")).collect::<Vec<_>>().join(",");
        self.fleet.start_to_fail(0, &faults);
        let fleet = &self.fleet;
        // A guest gets everything when the group has forgotten it.
        let comes = || fleet.wait_forgotten(&[]);
        for point in points {
            let early = point.starts_with("revoke");
            if early {
                // What it says before it has noticed that its membership is over would mean nothing.
                wait_until("it is given its partitions", fleet.patience, || {
                    let now = given(fleet);
                    holds(now > before, now)
                });
                fleet.wait_shared(&[0]);
                fleet.wait_progress(0, 100);
            }
            let frozen = AtomicBool::new(false);
            thread::scope(|scope| {
                // The guest's coming is what makes it give partitions up.
                let guest = early.then(|| scope.spawn(|| visit_until(fleet, &frozen)));
                fleet.wait_frozen(0);
                frozen.store(true, Ordering::Release);
                before = given(fleet);
                match end {
                    End::Frozen => {}
                    End::CutOff => {
                        network.stall();
                        fleet.signal(0, Signal::SIGCONT);
                    }
                    End::Removed => fleet.remove_members(),
                }
                match guest {
                    Some(guest) => guest.join().expect("the guest is well"),
                    None if end != End::Removed => comes(),
                    None => {}
                }
                match end {
                    End::Frozen | End::Removed => fleet.signal(0, Signal::SIGCONT),
                    End::CutOff => network.heal(),
                }
            });
        }
    }
}

/// The same in several runs. The steps of a run are those of one thread: two threads could be frozen at once.
fn assert_lost_memberships_cost_nothing(protocol: Protocol, end: End, live: &[&[&str]], sealed: &[&[&str]]) {
    assert_both_have_every_record_once(protocol, |lone, network| {
        if end == End::Removed {
            // Else its session could end before it is removed.
            lone.fleet.property("session.timeout.ms", "30000");
            lone.fleet.property("max.poll.interval.ms", "60000");
        }
        let runs = if lone.fleet.homes[0].hides() { sealed } else { live };
        for (number, points) in runs.iter().enumerate() {
            if number > 0 {
                lone.fleet.wait_shared(&[0]);
                lone.fleet.wait_progress(0, 100);
                lone.fleet.stop(0);
            }
            lone.lose_membership(network, end, points);
        }
        if runs.is_empty() {
            lone.fleet.start(0);
        }
    });
}

/// A step of a checkpoint each.
const CHECKPOINT: [&str; 5] =
    ["checkpoint.begun:2", "checkpoint.synced:4", "checkpoint.noted:6", "checkpoint.durable:8", "checkpoint.saved:10"];

#[test]
fn a_membership_that_ends_at_each_step_of_a_checkpoint_costs_nothing() {
    assert_lost_memberships_cost_nothing(Protocol::Cooperative, End::Frozen, &[&CHECKPOINT], &[&CHECKPOINT]);
}

#[test]
fn a_membership_that_ends_at_each_step_of_a_file_or_its_publication_costs_nothing() {
    let live = ["note.start:1", "file.intended:3", "file.created:5", "file.made:7", "file.ended:9"];
    let sealed = ["note.start:1", "file.made:3", "publish.renamed:5", "publish.manifest:7", "publish.done:9"];
    assert_lost_memberships_cost_nothing(Protocol::Cooperative, End::Frozen, &[&live], &[&sealed]);
}

#[test]
fn a_membership_that_ends_at_each_step_of_a_live_revocation_costs_nothing() {
    let live = ["told:1", "cut:2", "durable:3", "committed:4", "released:5", "answered:6"];
    let live = live.map(|step| format!("revoke.{step}"));
    let live = live.each_ref().map(String::as_str);
    assert_lost_memberships_cost_nothing(Protocol::Cooperative, End::Frozen, &[&live], &[]);
}

#[test]
fn a_membership_of_an_eager_group_that_ends_at_a_step_of_a_seal_or_a_revocation_costs_nothing() {
    let live = ["revoke.told:1", "revoke.durable:2", "revoke.committed:3", "revoke.answered:4"];
    let sealed = ["seal.commit:2", "seal.answered:4", "revoke.cut:1", "revoke.committed:2"];
    assert_lost_memberships_cost_nothing(Protocol::Eager, End::Frozen, &[&live], &[&sealed]);
}

#[test]
fn a_membership_of_the_new_protocol_that_ends_at_a_step_of_a_seal_or_a_revocation_costs_nothing() {
    let live = ["revoke.durable:1", "revoke.committed:2"];
    let sealed = ["seal.commit:2", "seal.answered:4", "revoke.committed:1"];
    assert_lost_memberships_cost_nothing(Protocol::Consumer, End::Frozen, &[&live], &[&sealed]);
}

fn assert_cuts_at_steps_cost_nothing(protocol: Protocol) {
    let live: [&[&str]; 2] =
        [&["checkpoint.begun:2", "checkpoint.durable:5"], &["revoke.durable:1", "revoke.committed:2"]];
    let sealed: [&[&str]; 2] =
        [&["seal.prepared:2", "publish.renamed:5"], &["seal.commit:2", "seal.answered:4", "revoke.committed:1"]];
    assert_lost_memberships_cost_nothing(protocol, End::CutOff, &live, &sealed);
}

#[test]
fn an_instance_that_is_cut_off_at_a_step_of_a_checkpoint_a_seal_or_a_revocation_has_every_record_once() {
    assert_cuts_at_steps_cost_nothing(Protocol::Cooperative);
}

#[test]
fn an_instance_of_an_eager_group_that_is_cut_off_at_a_step_has_every_record_once() {
    assert_cuts_at_steps_cost_nothing(Protocol::Eager);
}

#[test]
fn an_instance_of_the_new_protocol_that_is_cut_off_at_a_step_has_every_record_once() {
    assert_cuts_at_steps_cost_nothing(Protocol::Consumer);
}

fn assert_removals_at_steps_cost_nothing(protocol: Protocol) {
    let live: [&[&str]; 2] = [&["checkpoint.durable:3"], &["assign.noted:1"]];
    let sealed: [&[&str]; 3] = [&["seal.prepared:2"], &["seal.commit:2"], &["publish.renamed:3"]];
    assert_lost_memberships_cost_nothing(protocol, End::Removed, &live, &sealed);
}

#[test]
fn a_member_that_is_removed_at_a_step_of_a_checkpoint_a_seal_or_a_rebalance_has_every_record_once() {
    assert_removals_at_steps_cost_nothing(Protocol::Cooperative);
}

#[test]
fn a_member_of_an_eager_group_that_is_removed_at_a_step_of_a_checkpoint_a_seal_or_a_rebalance_has_every_record_once() {
    assert_removals_at_steps_cost_nothing(Protocol::Eager);
}

/// Waits until the group has taken more of it.
fn wait_taken(fleet: &Fleet) {
    let taken = || fleet.committed().values().sum::<i64>();
    let before = taken();
    wait_until("the group takes more of it", fleet.patience, || {
        let now = taken();
        holds(now > before, now)
    });
}

/// librdkafka's own thread goes on with the heartbeats. An eager group also replaces who does not ask it for three syncs.
fn assert_syncs_that_outlast_the_session_are_waited_for(protocol: Protocol) {
    assert_both_have_every_record_once(protocol, |lone, _| {
        let fleet = &mut lone.fleet;
        fleet.patience = 3 * SOON;
        if protocol == Protocol::Eager {
            fleet.property("max.poll.interval.ms", "4000");
        }
        fleet.put_on_layer(0);
        fleet.start(0);
        fleet.wait_shared(&[0]);
        let sync = Duration::from_millis(1600);
        fleet.put_on_slow_disks(&(sync..sync));
        wait_taken(fleet);
        // Under load there is always a sync to wait for.
        fleet.signal(0, Signal::SIGSTOP);
        fleet.wait_forgotten(&[]);
        fleet.signal(0, Signal::SIGCONT);
        wait_taken(fleet);
    });
}

#[test]
fn an_instance_whose_every_sync_outlasts_its_session_goes_on_and_has_every_record_once() {
    assert_syncs_that_outlast_the_session_are_waited_for(Protocol::Cooperative);
}

#[test]
fn an_instance_of_an_eager_group_whose_every_sync_outlasts_its_session_goes_on_and_has_every_record_once() {
    assert_syncs_that_outlast_the_session_are_waited_for(Protocol::Eager);
}
