//! What waits for the delivery or for the group, and what becomes of the rest meanwhile.

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
