//! Several instances of one group: every record exactly once through orderly rebalances, and what an instance that is lost
//! can repeat. All files of all instances together are compared with the oracle.

use std::time::Duration;

use crate::harness::fleet::{Fleet, Membership, Protocol};
use crate::harness::topic::Load;
use crate::harness::{Codec, Mix, Topic};

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
