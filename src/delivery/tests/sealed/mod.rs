//! The two-phase commit of hidden files: several homes with their own journals, files and stores, against a model of the
//! group's coordinator that takes, refuses, delays and forgets to answer commits, and takes partitions away unannounced.
//!
//! The test plays the part of the consumer with the program's own decisions. Whatever happened, below the offset that the
//! group has each record is one line in the published files of all homes together, one filtered count or one entry of one
//! failure queue, and above it there is none; manifests tile.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::{bounded, unbounded};
use proptest::prelude::*;

use self::found::Found;
use self::group::Answer;
use self::steps::{Act, Step, step};
use self::world::World;
use super::home::{Home, Work};
use super::model::{Fate, PATIENCE, fate, line, wait_until};
use super::*;
use crate::delivery::{CommitPoint, Finish, Inbox, Prepared};
use crate::msource::journal::{Mark, MoveCause};

mod found;
mod group;
mod steps;
mod world;

const HOMES: usize = 3;
const PARTITIONS: i32 = 2;

/// Goes through steps from the beginning to the end.
fn play(steps: &[Step]) {
    let mut world = World::new();
    for step in steps {
        world.step(step);
    }
    world.check();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn every_record_is_published_once_whatever_the_group_does(steps in prop::collection::vec(step(), 0..50)) {
        play(&steps);
    }
}

/// A partition of a home that has grown by some blocks, and what is durable of them.
fn grown() -> World {
    let mut world = World::new();
    world.start(0);
    world.block(0, 0, 20);
    world.settled(0);
    assert_eq!(world.run(0).work.state().partitions[&partition(0)].growth.as_ref().map(|growth| growth.from), Some(0));
    world
}

#[test]
fn a_barrier_behind_a_refusal_is_answered_when_what_is_durable_tells_of_it() {
    let mut world = grown();
    world.block(0, 0, 5);
    let store = Arc::clone(&world.homes[0].store);
    let run = world.run(0);
    let (first, second) = (bounded(1), bounded(1));
    {
        let _busy = store.0.lock().unwrap();
        run.work.send(0);
        wait_until("the block is written", || run.work.gauges.counts().in_flight == 0);
        let before = run.work.ticket;
        run.work.inbox.send(Inbox::Checkpoint { before, finish: Finish::No, reply: first.0 }).unwrap();
        run.release(0);
        run.work.inbox.send(Inbox::Refuse { partition: partition(0), reply: None }).unwrap();
        run.work.inbox.send(Inbox::Checkpoint { before, finish: Finish::No, reply: second.0 }).unwrap();
        wait_until("everything is taken in while a checkpoint is being made", || run.work.inbox.is_empty());
    }
    second.1.recv_timeout(PATIENCE).unwrap();
    let here = run.work.state().partitions[&partition(0)].clone();
    assert_eq!((here.next, here.growth), (0, None));
    drop(store);
    world.check();
}

#[test]
fn hidden_lines_are_published_before_their_partition_stands_elsewhere() {
    let mut world = World::new();
    world.start_with(0, CommitPoint::Journal, unbounded().1);
    world.note(0, Frame::Start(position(0, 0)));
    for (from, to) in [(0, 20), (40, 60)] {
        world.run(0).work.begin(0, from);
        world.block(0, 0, to - from);
        world.settled(0);
        // The topic was made again.
        world.note(0, Frame::Move { to: position(0, 40), cause: MoveCause::Recreated });
    }
    world.end(0);
    let mut found = Found::default();
    found.take_in(&world.homes[0]);
    let ranges: Vec<_> = found.ranges[&0].iter().map(|(from, to, ..)| (*from, *to)).collect();
    assert_eq!(ranges, [(0, 20), (40, 60)]);
}

#[test]
fn what_is_not_committed_is_taken_back_before_its_partition_stands_elsewhere() {
    let mut world = grown();
    world.note(0, Frame::Move { to: position(0, 40), cause: MoveCause::Operator });
    world.settled(0);
    let state = world.run(0).work.state();
    assert_eq!((state.partitions[&partition(0)].next, state.totals.consumed), (40, 0));
    assert!(state.files.is_empty());
    world.end(0);
}

#[test]
fn a_gap_leaves_what_stands_beside_the_offset_of_the_group() {
    let mark = Mark { home: "x".into(), incarnation: 1, number: 4 };
    let mut state = State::default();
    state.apply(&Frame::Start(position(0, 0)));
    state.apply(&Frame::Base { partition: partition(0), mark: Some(mark.clone()) });
    let mut moved = |next, cause| {
        state.apply(&Frame::Move { to: position(0, next), cause });
        state.partitions[&partition(0)].mark.clone()
    };
    assert_eq!(moved(10, MoveCause::Gap { from: 0 }), Some(mark));
    assert_eq!(moved(20, MoveCause::Takeover), None);
}

#[test]
fn a_commit_that_arrives_after_its_owner_gave_up_is_published() {
    play(&[
        Step::On(0, Act::Block(0, 5)),
        Step::Answers(vec![Answer::Late]),
        Step::Revoke { number: 0, commits: 1 },
        Step::On(0, Act::Turn),
        Step::Deliver,
        Step::On(0, Act::Turn),
    ]);
}

#[test]
fn a_commit_whose_answer_was_lost_is_published_after_others_have_committed() {
    play(&[
        Step::On(0, Act::Block(0, 5)),
        Step::Answers(vec![Answer::Lost]),
        Step::Move { number: 0, to: 1, commits: 1 },
        Step::On(1, Act::Block(0, 5)),
        Step::On(1, Act::Seal(u32::MAX)),
        Step::Move { number: 0, to: 2, commits: 0 },
        Step::On(2, Act::Block(0, 5)),
        Step::On(2, Act::Seal(u32::MAX)),
        Step::On(0, Act::Turn),
    ]);
}

#[test]
fn what_is_lost_and_given_back_while_it_is_synced_for_its_publication_goes_on_and_loses_nothing() {
    let mut world = grown();
    let store = Arc::clone(&world.homes[0].store);
    {
        let _busy = store.0.lock().unwrap();
        world.block(0, 0, 5);
        let _unanswered = world.run(0).work.checkpoint(Finish::Hidden(vec![partition(0)]));
        world.run(0).work.looked();
        assert_eq!(world.run(0).work.gauges.counts().in_flight, 0, "it is written, and being synced");
        world.regain(0);
    }
    drop(store);
    world.resolve(0);
    let run = world.run(0);
    assert_eq!((run.work.state().seals.len(), run.seals.len()), (0, 0), "nothing was prepared of what was not ours");
    world.block(0, 0, 5);
    world.settled(0);
    let state = world.run(0).work.state();
    assert_eq!((state.partitions[&partition(0)].next, state.totals.consumed), (30, 30), "nothing is read again");
    world.check();
}

#[test]
fn what_is_lost_and_given_back_in_the_last_sync_before_it_is_prepared_is_not_prepared() {
    let mut world = grown();
    world.run(0).work.checkpoint(Finish::No).recv_timeout(PATIENCE).unwrap();
    let store = Arc::clone(&world.homes[0].store);
    let journal = world.homes[0].last_segment().unwrap();
    {
        let _busy = store.0.lock().unwrap();
        let before = fs::read(&journal).unwrap();
        let _unanswered = world.run(0).work.checkpoint(Finish::Hidden(vec![partition(0)]));
        // There is nothing else to be made durable: this is the checkpoint of the seal, by the thread that prepares it.
        wait_until("it is being synced", || fs::read(&journal).unwrap() != before);
        world.regain(0);
    }
    drop(store);
    let run = world.run(0);
    run.work.looked();
    assert_eq!(run.seals.len(), 0, "nothing was prepared of what was not ours");
    world.resolve(0);
    world.block(0, 0, 5);
    world.settled(0);
    world.check();
}

#[test]
fn what_was_prepared_for_one_assignment_is_not_committed_in_another_and_bars_it_until_it_is_judged() {
    let mut world = grown();
    let answered = world.run(0).work.checkpoint(Finish::Hidden(vec![partition(0)]));
    let run = world.run(0);
    wait_until("the group is to be asked", || !run.seals.is_empty());
    run.release(0);
    world.give(0, 0);
    // As if it had been found where it stood before the seal.
    let run = world.run(0);
    assert!(!run.work.begin(0, 20), "it is barred");
    world.resolve(0);
    drop(answered);
    world.settled(0);
    let state = world.run(0).work.state();
    assert_eq!(
        (state.partitions[&partition(0)].next, state.seals.len()),
        (20, 0),
        "it is judged, and nothing read again"
    );
    let left = world.run(0).seals.len();
    world.block(0, 0, 5);
    world.serve(0);
    world.settled(0);
    assert_eq!(world.run(0).work.state().partitions[&partition(0)].next, 25, "{left} old requests do no harm");
    world.check();
}

/// A home whose range was prepared, and refused by the group once before it was killed; with the number of its seal.
fn prepared() -> (World, u64) {
    let mut world = grown();
    world.group.answers.push_back(Answer::Refused);
    assert!(!world.barrier(0, Finish::Hidden(vec![partition(0)]), 1), "the group does not take it");
    world.end(0);
    world.start(0);
    let state = world.run(0).work.state();
    let (mark, _) = state.prepared(&partition(0)).next().expect("a prepared range");
    (world, mark.number)
}

#[test]
fn what_was_prepared_and_not_taken_is_committed_in_the_next_assignment() {
    let (mut world, number) = prepared();
    world.resolve(0);
    world.settled(0);
    let state = world.run(0).work.state();
    assert_eq!((state.partitions[&partition(0)].next, state.seals.len()), (20, 0), "nothing is read again");
    let committed = world.group.at(0).committed.clone().expect("a commit");
    assert_eq!((committed.offset, committed.metadata), (20, format!("h0/1/{number}/id since=0")));
    world.check();
}

#[test]
fn what_was_prepared_and_is_not_whole_any_more_is_refused_before_it_is_committed() {
    let (mut world, number) = prepared();
    let hidden = files(&world.homes[0].data());
    fs::remove_file(hidden.into_iter().next().expect("a hidden file")).unwrap();
    let (reply, answered) = bounded(1);
    world.run(0).work.inbox.send(Inbox::Check { number, partition: partition(0), reply }).unwrap();
    assert_eq!(world.wait(0, &answered, u32::MAX), Some(Prepared::Gone));
    world.settled(0);
    let state = world.run(0).work.state();
    assert_eq!((state.partitions[&partition(0)].next, state.seals.len()), (0, 0), "all of it is read again");
    world.check();
}

/// What is in the event directory of a home that is not hidden, manifests included.
fn visible(world: &World) -> Vec<String> {
    let names = fs::read_dir(world.homes[0].data()).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.into_string().unwrap()).filter(|name| !name.starts_with('.')).collect()
}

fn remove_hidden(world: &World) {
    for path in files(&world.homes[0].data()) {
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_range_whose_hidden_file_is_gone_is_refused_when_it_is_to_be_published() {
    type Ask = fn(&mut World);
    let asks: [(Ask, i64); 3] = [
        (|world| assert!(world.barrier(0, Finish::Files, 1)), 0),
        (|world| assert!(world.barrier(0, Finish::Hidden(vec![partition(0)]), 1)), 0),
        (|world| world.note(0, Frame::Move { to: position(0, 40), cause: MoveCause::Operator }), 40),
    ];
    for (ask, next) in asks {
        let mut world = World::new();
        world.start_with(0, CommitPoint::Journal, unbounded().1);
        world.note(0, Frame::Start(position(0, 0)));
        world.run(0).work.begin(0, 0);
        world.block(0, 0, 20);
        world.settled(0);
        world.end(0);
        remove_hidden(&world);
        world.start_with(0, CommitPoint::Journal, unbounded().1);
        // Those that are nobody's are published by a stop and for a move alone.
        ask(&mut world);
        world.barrier(0, Finish::Files, 1);
        world.settled(0);
        let state = world.run(0).work.state();
        assert_eq!((state.partitions[&partition(0)].next, state.totals.consumed), (next, 0), "it is read again");
        assert_eq!((state.totals.written, state.totals.queue_records), (0, 0));
        assert_eq!(visible(&world), Vec::<String>::new());
        world.end(0);
    }
}

#[test]
fn a_prepared_range_whose_file_is_gone_is_refused_where_the_journal_decides() {
    let (mut world, _) = prepared();
    world.end(0);
    remove_hidden(&world);
    world.start_with(0, CommitPoint::Journal, unbounded().1);
    world.settled(0);
    let state = world.run(0).work.state();
    assert_eq!((state.partitions[&partition(0)].next, state.seals.len(), state.totals.written), (0, 0, 0));
    assert_eq!(visible(&world), Vec::<String>::new());
    world.end(0);
}

#[test]
fn what_waits_behind_a_seal_whose_answer_was_lost_is_dropped_and_the_others_go_on() {
    let mut world = grown();
    world.give(1, 0);
    world.resolve(0);
    world.group.answers.push_back(Answer::Lost);
    let answered = world.run(0).work.checkpoint(Finish::Hidden(vec![partition(0)]));
    let run = world.run(0);
    wait_until("the group is asked", || !run.seals.is_empty());
    world.block(0, 0, 7);
    world.block(0, 1, 5);
    let run = world.run(0);
    run.work.send(0);
    assert_eq!(run.work.gauges.counts().in_flight, 12, "nothing is written while the group is asked");
    assert!(world.wait(0, &answered, u32::MAX).is_some());
    world.settled(0);
    let run = world.run(0);
    assert_eq!((run.work.gauges.counts().in_flight, run.work.budget.used()), (0, 0));
    let state = run.work.state();
    let next = |number| state.partitions[&partition(number)].next;
    assert_eq!((next(0), next(1), state.seals.len()), (20, 5, 1), "what was prepared stays as it is");
    world.rejoin(0);
    world.resolve(0);
    world.settled(0);
    assert_eq!(world.run(0).work.state().seals.len(), 0, "the group tells that it took it");
    world.check();
}

#[test]
fn blocks_are_written_on_while_what_is_to_be_published_is_synced() {
    let mut world = grown();
    let store = Arc::clone(&world.homes[0].store);
    let answered = {
        let _busy = store.0.lock().unwrap();
        world.block(0, 0, 5);
        let answered = world.run(0).work.checkpoint(Finish::Hidden(vec![partition(0)]));
        let work = &mut world.run(0).work;
        wait_until("it is asked for", || work.inbox.is_empty());
        work.block(0, 5);
        work.send(0);
        wait_until("what came behind it is written", || work.gauges.counts().in_flight == 0);
        answered
    };
    assert!(world.wait(0, &answered, u32::MAX).is_some());
    world.settled(0);
    assert_eq!(world.group.at(0).committed.as_ref().map(|found| found.offset), Some(30), "it is published with it");
    drop(store);
    world.check();
}

#[test]
fn a_queue_above_its_bound_is_looked_through_once_until_an_entry_may_be_dropped() {
    let mut world = World::new();
    world.homes[0].queue_bound = Some(0);
    world.start(0);
    world.block(0, 0, 20);
    world.settled(0);
    let work = &world.run(0).work;
    (0..2).for_each(|_| work.looked());
    let store = Arc::clone(&world.homes[0].store);
    let walks = store.1.load(Ordering::SeqCst);
    let work = &world.run(0).work;
    (0..100).for_each(|_| work.looked());
    assert_eq!(store.1.load(Ordering::SeqCst), walks);
    let answered = world.run(0).work.checkpoint(Finish::Hidden(vec![partition(0)]));
    assert!(world.wait(0, &answered, u32::MAX).is_some());
    let gauges = Arc::clone(&world.run(0).work.gauges);
    wait_until("they are dropped", || gauges.durable().state.totals.queue_records == 0);
    assert!(gauges.durable().state.totals.dropped > 0);
}
