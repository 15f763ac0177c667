//! What waits for the delivery or for the group, and what becomes of the rest meanwhile.

use super::super::topic_ids::{Meaning, Said};
use super::*;

fn at(next: i64) -> Position {
    Position { partition: partition(), topic_id: String::new(), next, leader_epoch: -1 }
}

#[test]
fn a_seal_of_an_assignment_before_this_one_is_let_go_and_not_committed() {
    let mut bench = Bench::new(5, 0);
    bench.read(5);
    let seal = bench.seal();
    // It is lost and given to us again before the thread comes to it.
    bench.consumer.release(&[partition()]);
    bench.consumer.begin(vec![at(0)]);
    bench.seals.send(seal).expect("it is taken");
    bench.consumer.serve_seals().expect("it goes on");
    assert_eq!(verdict(&bench.inbox), Verdict::Open);
    let offsets = bench.consumer.client.committed(&[partition()], SOON).expect("an answer");
    assert_eq!(offsets, [Ok(None)]);
    assert!(bench.is_ours(), "the assignment that lasts goes on");
}

#[test]
fn what_partitions_stand_for_that_are_read_is_waited_for_over_several_passes() {
    let mut bench = Bench::new(0, 0);
    assert!(!bench.consumer.settled().expect("it goes on"), "nobody answers");
    let Ok(Inbox::Checkpoint { reply, finish: Finish::No, .. }) = bench.inbox.try_recv() else { panic!("a barrier") };
    reply.send(()).expect("it is waited for");
    assert!(bench.consumer.settled().expect("it goes on"), "it is answered");
    assert!(bench.inbox.is_empty(), "one was enough");
}

/// A topic of one partition, and the positions of two.
fn half_there(bench: &Bench) -> [Position; 2] {
    bench.brokers.create_topic("other", 1, 1).expect("a topic");
    [0, 1].map(|partition| Position { partition: TopicPartition { topic: "other".into(), partition }, ..at(5) })
}

#[test]
fn a_partition_of_which_the_group_does_not_say_what_it_took_holds_back_no_other_that_is_judged() {
    let mut bench = Bench::new(0, 0);
    let positions = half_there(&bench);
    let commit = bench.consumer.commit_of(&positions[0], 7);
    assert_eq!(bench.consumer.client.commit(&[commit], SOON), Ok(vec![Ok(())]));
    bench.consumer.parts.gauges = Arc::new(Gauges::new(prepared(&positions)));
    let inbox = bench.inbox.clone();
    let delivery = thread::spawn(move || match inbox.recv_timeout(SOON) {
        Ok(Inbox::Decided { partition, verdict, reply: Some(reply), .. }) => {
            reply.send(()).expect("it is waited for");
            (partition.partition, verdict)
        }
        other => panic!("no verdict: {other:?}"),
    });
    // The one that is not there comes first.
    let [there, missing] = positions.map(|position| position.partition);
    let judged = bench.consumer.judge_pending(&[missing.clone(), there]).expect("it goes on");
    assert_eq!(delivery.join().expect("no panic"), (0, Verdict::Committed));
    assert!(judged.has_changed);
    assert_eq!(judged.held.into_iter().map(|(partition, _)| partition).collect::<Vec<_>>(), [missing]);
}

#[test]
fn what_brokers_say_of_a_topic_lasts_although_the_next_question_is_put_off() {
    let mut bench = Bench::new(0, 0);
    // The question took ten seconds, so that the next one comes forty seconds after its end.
    let asked = Instant::now().checked_sub(Duration::from_secs(10)).expect("the machine runs for longer");
    let hear = |consumer: &mut Consumer, seconds| {
        let said = Said::Id("new".into());
        consumer.topics.hear(&partition(), &["old"], said, asked + Duration::from_secs(seconds))
    };
    assert!(matches!(hear(&mut bench.consumer, 0), Meaning::Doubtful(_)));
    bench.consumer.resolve_again(asked, RETRY);
    assert!(matches!(hear(&mut bench.consumer, 50), Meaning::Doubtful(_)));
    assert_eq!(hear(&mut bench.consumer, 80), Meaning::Lasting);
}

#[test]
fn a_seal_waits_while_a_revocation_may_be_older_than_an_assignment_of_our_own_accord() {
    let mut bench = Bench::new(5, 0);
    bench.read(5);
    bench.consumer.reassigned = Reassigned::Yes { queued: 1 };
    bench.seals.send(bench.seal()).expect("it is taken");
    bench.consumer.serve_seals().expect("it goes on");
    assert!(matches!(bench.inbox.try_recv(), Err(TryRecvError::Empty)), "neither asked nor let go of");
    assert!(bench.is_ours() && bench.consumer.asked.is_some());
    // The queue is behind it.
    bench.consumer.outlast_reassignment().expect("it goes on");
    bench.consumer.serve_seals().expect("it goes on");
    assert_eq!(verdict(&bench.inbox), Verdict::Committed);
}
