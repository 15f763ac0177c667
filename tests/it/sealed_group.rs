//! Hidden files of several instances: whoever is lost, frozen or unanswered, all published files together have every record
//! once. And kills at every step of a rebalance.

use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::fleet::{Fleet, Membership, Protocol};
use crate::harness::proxy::OFFSET_COMMIT;
use crate::harness::tail::Tail;
use crate::harness::topic::Load;
use crate::harness::{Codec, Mix, Proxy, Record, SOON, Topic, broker, events, holds, slow, wait_until};

/// About 2,000 records a second.
fn steady(topic: &Topic) -> Load {
    topic.load_every(Duration::from_millis(100), Codec::Snappy, Mix::Dirty)
}

/// How soon a lost member is replaced in the classic protocols: here, one that is lost by chance does no harm.
const LOST: Duration = Duration::from_secs(4);

/// Homes that hide their files for a second.
pub(crate) fn sealed(topic: &Topic, count: usize, protocol: Protocol) -> Fleet {
    let mut fleet = Fleet::new(topic, count, protocol, Membership::Dynamic);
    fleet.set("sink.visibility", &"sealed");
    fleet.set("sink.rotate", &json!({"age": "1s", "idle": "500ms"}));
    if protocol != Protocol::Consumer {
        fleet.property("session.timeout.ms", &LOST.as_millis().to_string());
    }
    if protocol == Protocol::Eager {
        // Who is frozen past its session is so past this, too.
        fleet.property("max.poll.interval.ms", &LOST.as_millis().to_string());
    }
    fleet
}

/// Files with a dot before their name, of all instances: hidden ones, and those that were set aside.
fn hidden(fleet: &Fleet) -> Vec<PathBuf> {
    fleet.homes.iter().flat_map(|home| events::hidden(&home.path("data"))).collect()
}

/// Ends everything and demands that all published files are exactly what must become of these records, nothing is left
/// hidden, and the ranges of all manifests tile.
pub(crate) fn assert_exactly_once(fleet: &mut Fleet, produced: &[Record]) {
    fleet.wait_done(produced);
    wait_until("nothing is hidden any more", SOON, || {
        let hidden = hidden(fleet);
        holds(hidden.is_empty(), hidden)
    });
    fleet.stop_all();
    fleet.assert_exactly(produced);
    let dirs = fleet.homes.iter().map(|home| home.path("data"));
    let args = ["--json", "verify"].map(PathBuf::from).into_iter().chain(dirs);
    let done = fleet.homes[0].mtga(args.map(PathBuf::into_os_string)).code(0);
    let report: Value = serde_json::from_str(&done.stdout).expect("verify prints JSON");
    assert!(report.to_string().contains("files"), "{report}");
}

/// Freezes instances at these fault points until the one that is left has their partitions and has gone on with them.
fn freeze_past_the_session(fleet: &mut Fleet, points: [&str; 2], left: usize) {
    let frozen: Vec<_> = fleet.running().into_iter().filter(|number| *number != left).collect();
    for (number, point) in frozen.iter().zip(points) {
        fleet.stop(*number);
        fleet.start_to_fail(*number, &format!("{point}:2:stop"));
    }
    for number in &frozen {
        fleet.wait_frozen(*number);
    }
    fleet.wait_shared(&[left]);
    fleet.wait_progress(left, 1000);
    for number in frozen {
        fleet.signal(number, Signal::SIGCONT);
    }
}

/// Three instances under load: joins, leaves, a rolling restart; then they are killed and frozen, two at a time, anywhere and
/// at the steps around the commit, and come back when another one has published what was theirs.
fn assert_exactly_once_through_everything(protocol: Protocol) {
    let topic = Topic::create("sealedgroup", 6);
    let mut fleet = sealed(&topic, 3, protocol);
    let load = steady(&topic);
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

    fleet.kill(0);
    fleet.signal(1, Signal::SIGSTOP);
    fleet.wait_shared(&[2]);
    fleet.wait_progress(2, 1000);
    fleet.signal(1, Signal::SIGCONT);
    fleet.start(0);
    fleet.wait_shared(&[0, 1, 2]);

    freeze_past_the_session(&mut fleet, ["seal.prepared", "seal.answered"], 2);
    fleet.wait_shared(&[0, 1, 2]);
    freeze_past_the_session(&mut fleet, ["seal.commit", "publish.begin"], 2);
    fleet.wait_shared(&[0, 1, 2]);

    // It wakes up in a group without members: nobody is there whose generation would be a later one.
    fleet.stop(2);
    fleet.start_to_fail(2, "seal.commit:2:stop");
    fleet.wait_frozen(2);
    fleet.wait_shared(&[0, 1]);
    fleet.wait_progress(0, 1000);
    fleet.stop(0);
    fleet.stop(1);
    fleet.signal(2, Signal::SIGCONT);
    fleet.wait_shared(&[2]);
    fleet.start(0);
    fleet.start(1);
    fleet.wait_shared(&[0, 1, 2]);
    let produced = load.stop();
    assert_exactly_once(&mut fleet, &produced);
}

#[test]
fn sealed_files_of_a_cooperative_group_have_every_record_once_whoever_is_lost() {
    assert_exactly_once_through_everything(Protocol::Cooperative);
}

#[test]
fn sealed_files_of_an_eager_group_have_every_record_once_whoever_is_lost() {
    assert_exactly_once_through_everything(Protocol::Eager);
}

#[test]
fn sealed_files_of_a_group_of_the_new_protocol_have_every_record_once_whoever_is_lost() {
    assert_exactly_once_through_everything(Protocol::Consumer);
}

/// The short form of `scripts/slow-disks`.
#[test]
fn on_a_slow_disk_files_are_published_under_load() {
    slow::on_slow_disks(Duration::from_millis(500), || {
        let topic = Topic::create("sealedslow", 1);
        let mut fleet = sealed(&topic, 1, Protocol::Cooperative);
        let load = steady(&topic);
        fleet.start(0);
        wait_until("a file is published under load", SOON, || {
            let published = events::paths(&fleet.homes[0].path("data"));
            holds(!published.is_empty(), published)
        });
        let produced = load.stop();
        assert_exactly_once(&mut fleet, &produced);
    });
}

/// One of two instances is behind a network that loses, holds back and changes the answers to its commits, and then is cut
/// off past its session with commits on their way.
fn assert_exactly_once_whatever_is_answered(protocol: Protocol) {
    let topic = Topic::create("unsure", 6);
    let proxy = Proxy::new(broker::address());
    let mut fleet = sealed(&topic, 2, protocol);
    fleet.homes[0].set("kafka.brokers", proxy.address());
    let load = steady(&topic);
    fleet.start(0);
    fleet.start(1);
    fleet.wait_shared(&[0, 1]);
    fleet.wait_progress(0, 1000);

    proxy.drop_answers(OFFSET_COMMIT, 3);
    wait_until("three answers are lost", SOON, || holds(proxy.dropped() >= 3, proxy.dropped()));
    fleet.wait_shared(&[0, 1]);
    fleet.wait_progress(0, 1000);

    proxy.refuse_last_partition(3);
    wait_until("three answers refuse a partition", SOON, || {
        holds(proxy.still_to_refuse() == 0, proxy.still_to_refuse())
    });
    fleet.wait_progress(0, 1000);

    // Longer than a commit is waited for. Heartbeats wait behind it, so that the session may end first.
    let unknown = |fleet: &Fleet| {
        let log = fleet.homes[0].log();
        ["the group does not take offsets", "is not known yet"].map(|text| log.matches(text).count())
    };
    let before = unknown(&fleet);
    proxy.delay_answers(OFFSET_COMMIT, Duration::from_millis(5300));
    wait_until("the service does not know what became of a commit", SOON, || {
        let now = unknown(&fleet);
        holds(now != before, now)
    });
    proxy.delay_answers(OFFSET_COMMIT, Duration::ZERO);
    fleet.wait_shared(&[0, 1]);
    fleet.wait_progress(0, 1000);

    for time in 0..2 {
        proxy.stall();
        fleet.wait_shared(&[1]);
        fleet.wait_progress(1, 1000);
        if time == 1 {
            // What was on its way is lost, and sent again by whoever keeps it.
            proxy.cut();
        }
        proxy.heal();
        fleet.wait_shared(&[0, 1]);
        fleet.wait_progress(0, 1000);
    }
    let produced = load.stop();
    assert_exactly_once(&mut fleet, &produced);
}

#[test]
fn commits_that_are_answered_late_wrongly_or_never_publish_every_record_once() {
    assert_exactly_once_whatever_is_answered(Protocol::Cooperative);
}

#[test]
fn commits_that_are_answered_late_wrongly_or_never_in_the_new_protocol_publish_every_record_once() {
    assert_exactly_once_whatever_is_answered(Protocol::Consumer);
}

/// The steps in which a partition is given up, in their order. A live one has one more.
const REVOKE: [&str; 5] = ["revoke.told", "revoke.cut", "revoke.committed", "revoke.released", "revoke.answered"];

/// The steps in which it is taken, in their order.
pub(crate) const ASSIGN: [&str; 7] =
    ["assign.told", "assign.settled", "assign.judged", "assign.noted", "assign.pinned", "assign.known", "assign.begun"];

/// The steps of opening and ending a live file, in their order; not all of them are steps of a hidden one.
const FILE: [&str; 4] = ["file.intended", "file.created", "file.made", "file.ended"];

/// One instance is killed and one frozen, each at its step of the same revocation; the third one takes over. Then the killed
/// one is killed once more while it takes partitions, and the frozen one goes on where it was.
fn assert_exactly_once_through_steps_of_a_rebalance(
    protocol: Protocol,
    killed: &[&str],
    frozen: &[&str],
    taken: &[&str],
) {
    let topic = Topic::create("sealedsteps", 6);
    let mut fleet = sealed(&topic, 3, protocol);
    if protocol != Protocol::Consumer {
        // Who is lost by chance and comes back makes the others give partitions up once more, which is counted here.
        fleet.property("session.timeout.ms", "8000");
    }
    let load = steady(&topic);
    for ((killed, frozen), taken) in killed.iter().zip(frozen).zip(taken) {
        // The first time is for the second one that joins.
        fleet.start_to_fail(0, &format!("{killed}:2"));
        fleet.wait_shared(&[0]);
        fleet.start_to_fail(2, &format!("{frozen}:1:stop"));
        fleet.wait_shared(&[0, 2]);
        fleet.wait_progress(0, 500);
        fleet.wait_progress(2, 500);
        fleet.start(1);
        fleet.wait_killed(0);
        fleet.wait_frozen(2);
        fleet.wait_shared(&[1]);
        fleet.wait_progress(1, 1000);
        fleet.start_to_fail(0, taken);
        fleet.signal(2, Signal::SIGCONT);
        fleet.wait_killed(0);
        fleet.stop(1);
        fleet.stop(2);
    }
    for number in 0..3 {
        fleet.start(number);
    }
    let produced = load.stop();
    assert_exactly_once(&mut fleet, &produced);
}

#[test]
fn kills_and_freezes_at_each_step_of_a_rebalance_publish_every_record_once() {
    let frozen = ["revoke.committed", "revoke.told", "revoke.cut"];
    assert_exactly_once_through_steps_of_a_rebalance(Protocol::Cooperative, &REVOKE[..3], &frozen, &ASSIGN[1..4]);
}

#[test]
fn kills_and_freezes_at_each_later_step_of_a_rebalance_publish_every_record_once() {
    let frozen = ["revoke.told", "revoke.released", "revoke.answered", "revoke.cut"];
    let killed = ["revoke.released", "revoke.answered", "revoke.cut", "revoke.told"];
    let taken = [&ASSIGN[..1], &ASSIGN[4..]].concat();
    assert_exactly_once_through_steps_of_a_rebalance(Protocol::Consumer, &killed, &frozen, &taken);
}

/// A static member is killed at each of these steps and started again within its session.
fn assert_exactly_once_when_started_again_within_the_session(visibility: &str, steps: &[String]) {
    let topic = Topic::create("withinsteps", 4);
    let mut fleet = sealed(&topic, 2, Protocol::Cooperative);
    fleet.set("sink.visibility", &visibility);
    fleet.property("session.timeout.ms", &slow::millis(Duration::from_secs(30), 40));
    for (number, home) in fleet.homes.iter_mut().enumerate() {
        home.set("kafka.instance_id", format!("member-{number}"));
    }
    let tails: Vec<_> = fleet.homes.iter().map(|home| Tail::follow(&home.path("data"))).collect();
    let load = steady(&topic);
    fleet.start(0);
    fleet.start(1);
    fleet.wait_shared(&[0, 1]);
    fleet.wait_progress(0, 1000);
    fleet.kill(0);
    for step in steps {
        fleet.start_to_fail(0, step);
        fleet.wait_killed(0);
    }
    fleet.start(0);
    fleet.wait_shared(&[0, 1]);
    fleet.wait_progress(0, 1000);
    let produced = load.stop();
    if visibility == "sealed" {
        assert_exactly_once(&mut fleet, &produced);
    } else {
        fleet.wait_done(&produced);
        fleet.stop_all();
        fleet.assert_exactly(&produced);
    }
    for tail in tails {
        tail.assert_nothing_was_taken_back();
    }
}

/// Files are opened and ended between any two assignments, so that each finds something that was begun.
fn files_and_assignments(files: &[&str]) -> Vec<String> {
    let file = |(index, step)| format!("{step}:{}", 2 + index % 2);
    let files = files.iter().cycle().enumerate().map(file);
    let pairs = files.zip(ASSIGN.iter().chain(&ASSIGN[..2]));
    pairs.flat_map(|(file, assign)| [file, (*assign).to_owned()]).collect()
}

#[test]
fn a_kill_at_each_step_of_an_assignment_or_of_a_live_file_within_the_session_loses_and_repeats_nothing() {
    assert_exactly_once_when_started_again_within_the_session("live", &files_and_assignments(&FILE));
}

#[test]
fn a_kill_at_each_step_of_an_assignment_or_of_a_hidden_file_within_the_session_publishes_every_record_once() {
    assert_exactly_once_when_started_again_within_the_session("sealed", &files_and_assignments(&FILE[..3]));
}

#[test]
fn a_live_instance_killed_at_each_step_of_a_revocation_loses_nothing_and_moves_the_group_never_back() {
    let topic = Topic::create("livesteps", 6);
    let mut fleet = Fleet::new(&topic, 2, Protocol::Cooperative, Membership::Dynamic);
    fleet.property("session.timeout.ms", "3000");
    let load = topic.load_every(Duration::from_millis(100), Codec::Snappy, Mix::Clean);
    for step in
        ["revoke.told", "revoke.cut", "revoke.durable", "revoke.committed", "revoke.released", "revoke.answered"]
    {
        fleet.start_to_fail(0, step);
        fleet.wait_shared(&[0]);
        fleet.wait_progress(0, 1000);
        fleet.start(1);
        fleet.wait_killed(0);
        let committed = fleet.committed();
        fleet.wait_shared(&[1]);
        fleet.start(0);
        fleet.wait_shared(&[0, 1]);
        for (partition, offset) in fleet.committed() {
            assert!(offset >= committed[&partition], "{step}, {partition}: the group was moved back");
        }
        fleet.wait_progress(0, 500);
        fleet.stop(1);
        fleet.stop(0);
    }
    fleet.start(0);
    let produced = load.stop();
    fleet.wait_done(&produced);
    fleet.stop_all();
    let repeats: usize = fleet.repeats(&produced).values().map(Vec::len).sum();
    eprintln!("{repeats} of {} records repeated", produced.len());
}

/// A file is made before it is known that its block is still wanted, which takes a while on a slow disk.
#[test]
fn a_hidden_file_in_which_nothing_was_written_goes_when_its_partition_is_anothers() {
    let topic = Topic::create("emptyfile", 1);
    let mut fleet = sealed(&topic, 2, Protocol::Cooperative);
    let proxy = Proxy::new(broker::address());
    fleet.homes[0].set("kafka.brokers", proxy.address());
    let mut produced = Vec::new();
    // The second time it is killed when all that it knows of the file is durable, and finds it when it is started again.
    for faults in ["file.made:1:15000", "file.made:1:15000,checkpoint.saved:2"] {
        let first = produced.len() as u64;
        produced.extend(topic.fill(Codec::Snappy, Mix::Clean, first, 100));
        fleet.start_to_fail(0, faults);
        wait_until("a file is made", SOON, || holds(!hidden(&fleet).is_empty(), "none is"));
        proxy.cut();
        fleet.start(1);
        fleet.wait_shared(&[1]);
        fleet.wait_done(&produced);
        proxy.heal();
        if faults.contains("checkpoint") {
            fleet.wait_killed(0);
            wait_until("it is left", SOON, || holds(hidden(&fleet).len() == 1, hidden(&fleet)));
            fleet.start(0);
        }
        wait_until("it goes", SOON, || holds(hidden(&fleet).is_empty(), hidden(&fleet)));
        fleet.set("store.checkpoint", &"1h");
        fleet.stop_all();
    }
    fleet.start(1);
    assert_exactly_once(&mut fleet, &produced);
}
