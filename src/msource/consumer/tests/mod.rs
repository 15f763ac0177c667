//! The consumer against brokers in the process (librdkafka's mock cluster), with a delivery that the test plays.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::thread;

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded, unbounded};
use rdkafka::ClientConfig;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer as _};

use super::seals::Rejoin;
use super::slot::Fetch;
use super::watchdog::{MOST_LEFT, Old};
use super::*;

mod waits;

use crate::block::{RawBlock, Source};
use crate::config::{Kafka, OutOfRange, Payload, Start, TimeZone, Validation, Visibility, WhenFull};
use crate::delivery::{Asking, Budget, Gauges, Inbox, Prepared, SealRequest, Verdict};
use crate::msource::journal::{
    Frame, Growth, Mark, MoveCause, PartitionState, Position, Seal, SealedOffsets, SealedRange, State,
};
use crate::msource::native::Commit;
use crate::msource::properties;
use crate::transform::recipe::{Engine, Recipe};

/// How long a test waits for something that should come soon, on a busy machine.
const SOON: Duration = Duration::from_mins(1);

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < SOON, "waited {SOON:?} for: {what}");
        thread::park_timeout(Duration::from_millis(10));
    }
}

fn partition() -> TopicPartition {
    TopicPartition { topic: "t".into(), partition: 0 }
}

fn engine() -> Engine {
    let recipe = Recipe {
        transform: 1,
        app_id: 24,
        validation: Validation::Standard,
        uuid: false,
        zone: TimeZone::UTC.kept(),
        payload: Payload::None,
        payload_limit: 1 << 20,
        file: "{seq}".into(),
        instance: String::new(),
        filter: "[]".into(),
        metadata: "[]".into(),
        read_uncommitted: false,
    };
    recipe.engine("f").expect("a sound recipe")
}

/// A consumer with everything around it.
struct Bench {
    brokers: MockCluster<'static, DefaultProducerContext>,
    consumer: Consumer,
    /// What the delivery is sent.
    inbox: Receiver<Inbox>,
    /// What the delivery asks.
    seals: Sender<SealRequest>,
    /// What the workers would be sent.
    blocks: Receiver<RawBlock>,
}

impl Bench {
    /// A member of a group that hides its files, with one partition of so many records that is read from this offset.
    fn new(records: usize, next: i64) -> Self {
        Self::of(&vec![b"{}".to_vec(); records], next)
    }

    /// The same with records of these values.
    fn of(values: &[Vec<u8>], next: i64) -> Self {
        let brokers = MockCluster::new(1).expect("brokers");
        brokers.create_topic("t", 1, 1).expect("a topic");
        let producer: BaseProducer =
            ClientConfig::new().set("bootstrap.servers", brokers.bootstrap_servers()).create().expect("a producer");
        for value in values {
            producer.send(BaseRecord::<[u8], _>::to("t").partition(0).payload(value)).expect("room");
        }
        producer.flush(SOON).expect("the brokers take the records");
        let config = Kafka {
            brokers: brokers.bootstrap_servers(),
            topics: vec!["t".into()],
            group_id: "g".into(),
            assignment: Assignment::Group,
            start: Start::Earliest,
            out_of_range: OutOfRange::Earliest,
            instance_id: String::new(),
            payload: Payload::None,
            librdkafka: BTreeMap::new(),
        };
        let (blocks, to_workers) = unbounded();
        let (inbox_sender, inbox) = unbounded();
        let (seals, requests) = unbounded();
        let parts = Parts {
            properties: properties::asking(&config),
            config,
            discovery: SOON,
            max_poll_interval: SOON,
            cut: Cut { lines: 1000, bytes: 1 << 20, linger: SOON },
            queue: (u64::MAX, WhenFull::Pause),
            blocks,
            inbox: inbox_sender,
            seals: requests,
            visibility: Visibility::Sealed,
            tickets: Arc::default(),
            tracker: Arc::default(),
            budget: Arc::new(Budget::new(1 << 20)),
            gauges: Arc::new(Gauges::new(State::default())),
            desk: Arc::new(Desk::new(Arc::new(engine()))),
            home: ("me".into(), 1),
            former: Vec::new(),
        };
        let mut consumer = Consumer::new(parts).expect("a client");
        let position = Position { partition: partition(), topic_id: String::new(), next, leader_epoch: -1 };
        consumer.begin(vec![position]);
        // As after the first pass, in which the queue was empty.
        consumer.reassigned = Reassigned::No;
        Self { brokers, consumer, inbox, seals, blocks: to_workers }
    }

    /// Reads until the open block has so many records.
    fn read(&mut self, records: usize) {
        let consumer = &mut self.consumer;
        wait_until("the records are read", || {
            consumer.read_again();
            consumer.take().expect("it is taken");
            consumer.slots[0].open.len() == records
        });
    }

    /// The delivery has prepared what the partition has.
    fn seal(&self) -> SealRequest {
        let slot = &self.consumer.slots[0];
        let position = Position { partition: partition(), topic_id: String::new(), next: slot.next, leader_epoch: -1 };
        SealRequest { number: 7, asking: vec![Asking { position, epoch: Some(slot.epoch) }] }
    }

    fn is_ours(&self) -> bool {
        !self.consumer.parts.tracker.partitions().is_empty()
    }
}

/// What is prepared of partitions that stand here, in seal 7, from offset 0 on.
fn prepared(at: &[Position]) -> State {
    let here = PartitionState { next: 5, leader_epoch: -1, ..PartitionState::default() };
    let range = |to: &Position| SealedRange {
        offsets: Some(SealedOffsets { growth: Growth::default(), to: to.clone() }),
        files: Vec::new(),
    };
    let seal = Seal { number: 7, incarnation: 1, ranges: at.iter().map(range).collect() };
    State {
        home: "me".into(),
        incarnation: 1,
        partitions: at.iter().map(|at| (at.partition.clone(), here.clone())).collect(),
        seals: [(7, seal)].into(),
        ..State::default()
    }
}

/// The verdict on the partition, which is what the delivery was sent last.
fn verdict(inbox: &Receiver<Inbox>) -> Verdict {
    match inbox.recv_timeout(SOON) {
        Ok(Inbox::Decided { number: 7, verdict, .. }) => verdict,
        other => panic!("not a verdict: {other:?}"),
    }
}

#[test]
fn an_assignment_is_over_before_anyone_learns_that_its_seal_is_not_taken() {
    let mut bench = Bench::new(0, 0);
    // Nobody takes what is sent.
    let (full, inbox) = bounded(0);
    bench.consumer.parts.inbox = full;
    bench.seals.send(bench.seal()).expect("it is taken");
    bench.consumer.rejoin = Rejoin::Due;
    let tracker = Arc::clone(&bench.consumer.parts.tracker);
    let mut consumer = bench.consumer;
    let thread = thread::spawn(move || consumer.serve_seals().map(|()| consumer));
    wait_until("the assignment is over", || tracker.partitions().is_empty());
    assert_eq!(verdict(&inbox), Verdict::Open, "whether it is taken is found out later");
    drop(thread.join().expect("no panic").expect("it goes on"));
}

#[test]
fn whoever_waits_while_the_answer_to_a_commit_is_lost_keeps_slots_and_client_and_joins_again_afterwards() {
    let mut bench = Bench::new(5, 0);
    bench.read(5);
    let in_flight = |bench: &Bench| bench.consumer.parts.gauges.counts().in_flight;
    assert_eq!(in_flight(&bench), 5);
    assert!(bench.consumer.parts.budget.used() > 0);
    bench.brokers.broker_round_trip_time(1, SOON).expect("a broker");
    bench.seals.send(bench.seal()).expect("it is taken");
    let old = bench.consumer.client.remains();
    let answered = bench.consumer.barrier(Finish::No, Duration::ZERO).expect("it goes on");
    assert!(!answered, "nobody answers barriers here");
    assert!(matches!(bench.inbox.try_recv(), Ok(Inbox::Checkpoint { .. })));
    assert_eq!(verdict(&bench.inbox), Verdict::Open);
    assert!(!bench.is_ours());
    assert_eq!(bench.consumer.slots[0].open.len(), 5, "they may be looked at still");
    assert!(bench.consumer.rejoin == Rejoin::Due);
    bench.brokers.broker_round_trip_time(1, Duration::ZERO).expect("a broker");
    bench.consumer.rejoin().expect("it goes on");
    assert!(bench.consumer.slots.is_empty());
    assert!(bench.consumer.rejoin == Rejoin::No);
    assert_eq!((in_flight(&bench), bench.consumer.parts.budget.used()), (0, 0));
    wait_until("the old client is gone", || !old.are_left());
}

/// The brokers refuse a request of several topics, and take each by itself.
#[test]
fn what_is_refused_together_with_another_topic_is_asked_for_alone() {
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    let mut bench = Bench::new(0, 0);
    bench.brokers.create_topic("other", 1, 1).expect("a topic");
    let other = Position {
        partition: TopicPartition { topic: "other".into(), partition: 0 },
        ..bench.consumer.slots[0].position()
    };
    bench.consumer.begin(vec![other.clone()]);
    bench.consumer.reassigned = Reassigned::No;
    let mut seal = bench.seal();
    seal.asking.push(Asking { position: other, epoch: Some(bench.consumer.slots[1].epoch) });
    let denied = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    bench.brokers.request_errors(RDKafkaApiKey::OffsetCommit, &[denied]);
    bench.seals.send(seal).expect("it is taken");
    bench.consumer.serve_seals().expect("it goes on");
    assert_eq!([verdict(&bench.inbox), verdict(&bench.inbox)], [Verdict::Committed; 2]);
    assert!(bench.consumer.given_up.is_empty() && bench.is_ours());
}

/// Without a group, nobody has the other end of the channel for requests.
#[test]
fn without_a_group_a_wait_for_the_delivery_ends_at_its_deadline() {
    let Bench { brokers: _brokers, mut consumer, inbox: _inbox, seals, .. } = Bench::new(0, 0);
    consumer.parts.config.assignment = Assignment::All;
    drop(seals);
    let (ended, end) = bounded(1);
    thread::spawn(move || drop(ended.send(consumer.barrier(Finish::No, Duration::from_millis(50)))));
    let answered = end.recv_timeout(Duration::from_secs(10)).expect("the wait ends").expect("it goes on");
    assert!(!answered, "nobody answers barriers here");
}

#[test]
fn a_gap_behind_a_seal_that_is_not_decided_is_left_to_the_next_assignment() {
    for (sent_before, moves) in [(Rejoin::Due, 0), (Rejoin::No, 1)] {
        let mut bench = Bench::new(10, 10);
        bench.consumer.rejoin = sent_before;
        let (seal, seals, inbox) = (bench.seal(), bench.seals, bench.inbox);
        // A delivery that has something hidden, and asks the group before it answers the barrier.
        let delivery = thread::spawn(move || {
            let Ok(Inbox::Checkpoint { finish: Finish::Hidden(_), reply, .. }) = inbox.recv_timeout(SOON) else {
                panic!("no barrier")
            };
            seals.send(seal).expect("the consumer is there");
            let verdict = verdict(&inbox);
            reply.send(()).expect("it is waited for");
            let mut moves = 0;
            while let Ok(message) = inbox.recv_timeout(SOON) {
                let Inbox::Note { frame: Frame::Move { to, .. }, reply, .. } = message else {
                    panic!("neither a note nor the end: {message:?}")
                };
                assert_eq!(to.next, 50);
                moves += 1;
                reply.send(()).expect("it is waited for");
            }
            (verdict, moves)
        });
        bench.consumer.go_on_at(0, 50, MoveCause::Gap { from: 10 }).expect("it goes on");
        let is_ours = !bench.consumer.parts.tracker.partitions().is_empty();
        let next = bench.consumer.slots[0].next;
        drop(bench.consumer);
        let expected = if moves == 0 { (Verdict::Open, 0) } else { (Verdict::Committed, 1) };
        assert_eq!(delivery.join().expect("no panic"), expected);
        assert_eq!((is_ours, next), if moves == 0 { (false, 10) } else { (true, 50) });
    }
}

#[test]
fn a_partition_that_waits_for_a_seek_for_ever_is_noticed_and_one_at_its_end_is_not() {
    for (next, restarts) in [(3, 1), (5, 0)] {
        let mut bench = Bench::new(5, next);
        bench.consumer.slots[0].fetch = Fetch::Seek(Instant::now() + 10 * SOON);
        bench.consumer.watchdog.patience = Duration::from_millis(50);
        let until = Instant::now() + Duration::from_millis(200);
        let desk = Arc::clone(&bench.consumer.parts.desk);
        let restarted = || desk.client_restarts.load(Ordering::Relaxed);
        wait_until("the watchdog has looked", || {
            bench.consumer.watch().expect("it goes on");
            restarted() == 1 || restarts == 0 && Instant::now() > until
        });
        assert_eq!(restarted(), restarts, "at {next}");
        assert_eq!(bench.consumer.slots.is_empty(), restarts == 1);
        assert!(matches!(bench.inbox.try_recv(), Err(TryRecvError::Empty)), "nothing is moved");
    }
}

#[test]
fn of_a_batch_of_compressed_values_no_more_is_taken_than_there_is_room_for() {
    let value = zstd::bulk::compress(&vec![b' '; 100_000], 3).expect("it is compressed");
    let mut bench = Bench::of(&vec![value; 40], 0);
    bench.consumer.parts.config.payload = Payload::Auto;
    let budget = Arc::clone(&bench.consumer.parts.budget);
    // Whoever stops does not wait for room.
    bench.consumer.parts.desk.stop();
    let mut taken = Vec::new();
    wait_until("all are taken", || {
        bench.consumer.read_again();
        bench.consumer.take().expect("it goes on");
        assert!(budget.used() < 1_300_000, "{} bytes", budget.used());
        for block in bench.blocks.try_iter() {
            let Source::Partition { from, to, .. } = block.source else { panic!("no block of a partition") };
            taken.push((from, to.next));
            budget.give_back(block.cost);
        }
        bench.consumer.slots[0].next == 40
    });
    assert_eq!(taken, [(0, 11), (11, 22), (22, 33)], "each of about 1 MiB");
    assert!(budget.used() > 700_000, "the open block counts too");
}

#[test]
fn a_partition_that_its_first_owner_left_begins_where_the_configuration_says() {
    let mut bench = Bench::new(0, 0);
    bench.brokers.create_topic("two", 2, 1).expect("a topic");
    let of_two = [0, 1].map(|partition| TopicPartition { topic: "two".into(), partition });
    let servers = bench.brokers.bootstrap_servers();
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", servers).create().expect("a producer");
    for partition in [0, 1] {
        producer.send(BaseRecord::<[u8], _>::to("two").partition(partition).payload(b"{}")).expect("room");
    }
    producer.flush(SOON).expect("the brokers take the records");
    bench.consumer.parts.config.start = Start::Latest;
    let asking = Client::new(&properties::asking(&bench.consumer.parts.config)).expect("a client");
    let begin = |consumer: &mut Consumer, partition: usize| {
        let begun = consumer.starts(&of_two[partition..=partition]).expect("the brokers answer").known.remove(0);
        (begun.at.next, consumer.commit_of(&begun.at, 0))
    };
    let (next, commit) = begin(&mut bench.consumer, 0);
    assert_eq!(next, 1);
    let told = |commit: &Commit| asking.commit(std::slice::from_ref(commit), SOON).expect("an answer");
    assert_eq!(told(&commit), [Ok(())]);
    // Another instance has pinned the one; whoever had the other did not come to that.
    assert_eq!(begin(&mut bench.consumer, 1).0, 1);
    // An older version did not say how many there were.
    let metadata = commit.metadata.replace(" partitions=2", "");
    assert_eq!(told(&Commit { metadata, ..commit }), [Ok(())]);
    assert_eq!(begin(&mut bench.consumer, 1).0, 1, "what is known is not forgotten for that");
    bench.consumer.begun_with.clear();
    assert_eq!(begin(&mut bench.consumer, 1).0, 0);
}

#[test]
fn a_partition_that_the_group_cannot_tell_of_keeps_no_other_one_hidden() {
    let mut bench = Bench::new(0, 0);
    let other = |partition| TopicPartition { topic: "other".into(), partition };
    bench.brokers.create_topic("other", 1, 1).expect("a topic");
    let positions = [0, 1].map(|partition| Position {
        partition: other(partition),
        topic_id: String::new(),
        next: 5,
        leader_epoch: -1,
    });
    let commit = bench.consumer.commit_of(&positions[0], 7);
    assert_eq!(bench.consumer.client.commit(&[commit], SOON), Ok(vec![Ok(())]));
    let state = prepared(&positions);
    bench.consumer.parts.gauges = Arc::new(Gauges::new(state));
    let inbox = bench.inbox.clone();
    let delivery = thread::spawn(move || match inbox.recv_timeout(SOON) {
        Ok(Inbox::Decided { partition, verdict, reply: Some(reply), .. }) => {
            reply.send(()).expect("it is waited for");
            (partition.partition, verdict)
        }
        other => panic!("no verdict: {other:?}"),
    });
    // The topic has no second partition.
    bench.consumer.look_at_hidden().expect("it goes on");
    assert_eq!(delivery.join().expect("no panic"), (0, Verdict::Committed));
    assert!(matches!(bench.inbox.try_recv(), Err(TryRecvError::Empty)), "nothing is known of the other one");
    assert!(bench.consumer.unknown_since.is_some());
}

#[test]
fn the_group_is_told_once_more_where_a_partition_stands_of_which_it_did_not_take_a_range() {
    let mut bench = Bench::new(0, 0);
    let at = Position { partition: partition(), topic_id: String::new(), next: 0, leader_epoch: -1 };
    let metadata = || {
        let offsets = bench.consumer.client.committed(&[partition()], SOON).expect("an answer").remove(0);
        offsets.expect("it tells").map(|offset| (offset.offset, offset.metadata))
    };
    let pinned = Commit { metadata: "x/1/4/".into(), ..bench.consumer.commit_of(&at, 0) };
    assert_eq!(bench.consumer.client.commit(&[pinned], SOON), Ok(vec![Ok(())]));
    assert_eq!(metadata(), Some((0, "x/1/4/".into())));
    let ended = [partition()];
    bench.consumer.release(&ended);
    bench.consumer.pending.insert(partition());
    let mut state = prepared(&[Position { next: 5, ..at }]);
    let base = Mark { home: "x".into(), incarnation: 1, number: 4 };
    state.partitions.get_mut(&partition()).expect("it is there").mark = Some(base.clone());
    bench.consumer.parts.gauges = Arc::new(Gauges::new(state.clone()));
    let inbox = bench.inbox.clone();
    let delivery = thread::spawn(move || {
        let mut told = Vec::new();
        while let Ok(message) = inbox.recv_timeout(SOON) {
            let (reply, what) = match message {
                Inbox::Check { reply, .. } => {
                    reply.send(Prepared::Gone).expect("it is waited for");
                    continue;
                }
                Inbox::Decided { verdict, reply: Some(reply), .. } => (reply, format!("{verdict:?}")),
                // Nobody waits for it here.
                Inbox::Checkpoint { .. } => continue,
                Inbox::Note { frame: Frame::Base { mark, .. }, reply, .. } => (reply, format!("base {mark:?}")),
                other => panic!("not to be expected: {other:?}"),
            };
            reply.send(()).expect("it is waited for");
            told.push(what);
        }
        told
    });
    assert!(bench.consumer.judge_pending(&[partition()]).expect("it goes on").has_changed, "it is decided");
    state.seals.clear();
    let here = PartitionState { leader_epoch: -1, mark: Some(base), ..PartitionState::default() };
    state.partitions.insert(partition(), here);
    bench.consumer.parts.gauges = Arc::new(Gauges::new(state));
    for _ in 0..2 {
        let starts = bench.consumer.starts(&[partition()]).expect("the brokers answer").known;
        assert_eq!(bench.consumer.pin(starts).expect("it goes on").started.len(), 1);
        assert!(bench.consumer.refused.is_empty(), "once is enough");
    }
    let offsets = bench.consumer.client.committed(&[partition()], SOON).expect("an answer").remove(0);
    assert_eq!(offsets.expect("it tells").expect("it has one").metadata, "me/1/0/ x/1/4");
    drop(bench.consumer);
    let told = delivery.join().expect("no panic");
    assert!(told[0].starts_with("base"), "what stands beside the offset now is noted: {told:?}");
}

#[test]
fn the_group_is_told_once_more_also_when_the_service_was_killed_after_it_had_refused_the_range() {
    let mut bench = Bench::new(0, 0);
    let at = Position { partition: partition(), topic_id: String::new(), next: 0, leader_epoch: -1 };
    let pinned = Commit { partition: partition(), offset: 0, leader_epoch: -1, metadata: "x/1/4/".into() };
    assert_eq!(bench.consumer.client.commit(&[pinned], SOON), Ok(vec![Ok(())]));
    let ended = [partition()];
    bench.consumer.release(&ended);
    let mut state = prepared(&[Position { next: 5, ..at }]);
    let here = PartitionState { next: 5, leader_epoch: -1, ..PartitionState::default() };
    let mark = Some(Mark { home: "x".into(), incarnation: 1, number: 4 });
    state.partitions.insert(partition(), PartitionState { mark, ..here });
    let (number, seal) = (state.number + 1, state.seals.keys().next().copied());
    state.apply(&Frame::Refused { number, seal, partition: partition(), removed: Vec::new() });
    bench.consumer.parts.gauges = Arc::new(Gauges::new(state));
    let inbox = bench.inbox.clone();
    let delivery = thread::spawn(move || {
        while let Ok(message) = inbox.recv_timeout(SOON) {
            if let Inbox::Note { reply, .. } = message {
                reply.send(()).expect("it is waited for");
            }
        }
    });
    let starts = bench.consumer.starts(&ended).expect("the brokers answer").known;
    assert_eq!(bench.consumer.pin(starts).expect("it goes on").started.len(), 1);
    let offsets = bench.consumer.client.committed(&ended, SOON).expect("an answer").remove(0);
    let found = offsets.expect("it tells").expect("it has one");
    assert_eq!((found.offset, found.metadata.as_str()), (0, "me/1/0/ x/1/4"));
    drop(bench.consumer);
    delivery.join().expect("no panic");
}

#[test]
fn a_barrier_that_takes_longer_than_it_may_be_waited_for_is_waited_for_in_the_next_pass() {
    let mut bench = Bench::new(0, 0);
    assert!(!bench.consumer.settle().expect("it goes on"), "nobody answers");
    let Ok(Inbox::Checkpoint { reply, finish: Finish::No, .. }) = bench.inbox.try_recv() else { panic!("a barrier") };
    reply.send(()).expect("it is waited for");
    assert!(bench.consumer.settle().expect("it goes on"), "it is answered");
    assert!(bench.inbox.is_empty(), "one was enough");
    // What is given to us later stands for more than that.
    bench.consumer.settling = Some(bounded(1).1);
    bench.consumer.assigned(vec![partition()]);
    assert!(bench.consumer.settling.is_none());
}

#[test]
fn a_move_that_takes_longer_than_it_may_be_waited_for_takes_effect_when_it_is_durable() {
    let mut bench = Bench::new(5, 0);
    bench.consumer.parts.visibility = Visibility::Live;
    bench.consumer.go_on_at(0, 3, MoveCause::Gap { from: 0 }).expect("it goes on");
    let Ok(Inbox::Note { reply, .. }) = bench.inbox.try_recv() else { panic!("a note") };
    bench.consumer.finish_moves().expect("it goes on");
    bench.consumer.read_again();
    let slot = &bench.consumer.slots[0];
    assert!(slot.fetch == Fetch::Moving && slot.next == 0, "nothing is taken before that");
    let epoch = slot.epoch;
    reply.send(()).expect("it is waited for");
    bench.consumer.finish_moves().expect("it goes on");
    let slot = &bench.consumer.slots[0];
    assert!(slot.fetch != Fetch::Moving && slot.next == 3 && slot.epoch != epoch, "it stands there");
}

#[test]
fn an_assignment_that_waits_is_answered_when_the_group_knows_the_member_no_more() {
    let mut bench = Bench::new(0, 0);
    let refused = |code| KafkaError { code, text: String::new() };
    bench.consumer.unanswered.told(Instant::now());
    bench.consumer.note_refusal(&refused(Code::CoordinatorLoadInProgress));
    assert!(bench.consumer.unanswered.is_waiting(), "that passes");
    bench.consumer.commit_refused(InFlight::Outdated, &refused(Code::IllegalGeneration));
    assert!(bench.consumer.unanswered.is_waiting(), "that was sent before the assignment");
    bench.consumer.commit_refused(InFlight::Yes, &refused(Code::UnknownMemberId));
    assert!(!bench.consumer.unanswered.is_waiting());
}

#[test]
fn clients_that_do_not_end_are_counted_and_not_made_without_bound() {
    let mut bench = Bench::new(0, 0);
    let other = || Client::new(&properties::asking(&bench.consumer.parts.config)).expect("a client");
    let mut hanging: Vec<Client> = (0..MOST_LEFT).map(|_| other()).collect();
    bench.consumer.left = hanging.iter().map(Client::remains).collect();
    let outcome = bench.consumer.renew_client("a test", Old::Abandoned);
    assert!(matches!(outcome, Err(Error::Left(MOST_LEFT))), "{outcome:?}");
    assert_eq!(bench.consumer.parts.desk.clients_left.load(Ordering::Relaxed), MOST_LEFT);
    drop(hanging.pop());
    wait_until("one of them has ended", || bench.consumer.check_left().is_ok());
    bench.consumer.renew_client("a test", Old::Abandoned).expect("there is room for it");
}

#[test]
fn attempts_last_only_while_they_follow_each_other() {
    let mut bench = Bench::new(0, 0);
    let begun = Instant::now();
    let mut lasts = |at: u64| {
        let now = begun + Duration::from_secs(at);
        let attempts = bench.consumer.slots[0].attempt(now);
        (attempts.tries, now.duration_since(attempts.since).as_secs())
    };
    assert_eq!([0, 20, 40, 600, 620].map(&mut lasts), [(1, 0), (2, 20), (3, 40), (4, 0), (5, 20)]);
}

#[test]
fn questions_that_are_not_answered_leave_most_of_the_time_to_what_is_read() {
    let mut bench = Bench::new(5, 3);
    bench.consumer.slots[0].fetch = Fetch::Seek(Instant::now() + 10 * SOON);
    bench.consumer.watchdog.patience = Duration::from_millis(50);
    bench.brokers.broker_round_trip_time(1, SOON).expect("a broker");
    let mut took = Duration::ZERO;
    wait_until("the watchdog has asked a broker that does not answer", || {
        let asked = Instant::now();
        bench.consumer.watch().expect("it goes on");
        took = asked.elapsed();
        took > Duration::from_secs(1)
    });
    assert!(bench.consumer.watchdog.look_at > Instant::now() + took, "it took {took:?}");
    assert_eq!(bench.consumer.parts.desk.client_restarts.load(Ordering::Relaxed), 0, "nobody says that there is lag");
}

#[test]
fn a_revocation_behind_an_assignment_of_our_own_accord_counts_as_a_loss_until_the_queue_is_behind_it() {
    let mut bench = Bench::new(0, 0);
    let ended = [partition()];
    let at = || vec![Position { partition: partition(), topic_id: String::new(), next: 0, leader_epoch: -1 }];
    for (is_waiting, expected) in [(true, false), (false, true)] {
        bench.consumer.release(&ended);
        bench.consumer.reassigned = Reassigned::No;
        if is_waiting {
            bench.consumer.assigned(ended.to_vec());
        }
        bench.consumer.begin(at());
        assert_eq!(bench.consumer.reassigned != Reassigned::No, expected, "librdkafka waits: {is_waiting}");
    }
    // While records come faster than they are taken, the queue is never empty.
    let mut reassigned = Reassigned::Yes { queued: 3000 };
    let mut after = |count, is_empty, has_event| {
        reassigned.taken(count, is_empty, has_event);
        reassigned == Reassigned::No
    };
    assert!(!after(2048, false, false), "952 of them are still to come");
    assert!(!after(2048, false, true), "the revocation may be among them");
    assert!(after(0, false, false));
    let mut reassigned = Reassigned::Yes { queued: 3000 };
    reassigned.taken(10, true, false);
    assert!(reassigned == Reassigned::No);
}
