//! Groups of hidden files whose members are killed, frozen, cut off from the brokers and restarted at random moments, on
//! disks of any speed. `scripts/group-loop` runs [`the_long_loop`]; the tests here are its short form.
//!
//! A group of one member is a case of its own: nobody takes over what it loses, so it gets its own partitions back, with
//! everything that it had begun.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::fleet::{Fleet, Protocol};
use crate::harness::proxy::{FETCH, OFFSET_COMMIT};
use crate::harness::records::Random;
use crate::harness::tally::Tally;
use crate::harness::{Codec, Mix, Proxy, Topic, broker};
use crate::sealed_group;

/// Sessions of the classic protocols.
const SESSION: Duration = Duration::from_secs(4);

/// Other requests whose answers are lost: `ListOffsets`, `OffsetFetch`, `FindCoordinator`, `JoinGroup`, `Heartbeat`,
/// `SyncGroup`, `OffsetForLeaderEpoch`, `ConsumerGroupHeartbeat`.
const ANSWERS: [i16; 8] = [2, 9, 10, 11, 12, 14, 23, 68];

/// What one run of the loop does.
#[derive(Clone, Copy, Debug)]
struct Plan {
    rounds: u64,
    /// What happens in each round; chosen at random when it is empty.
    faults: &'static [Fault],
    members: usize,
    protocol: Protocol,
    /// How long each sync takes, on a slow disk.
    sync: Option<Duration>,
    seed: u64,
}

/// What happens to a member.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Killed,
    Frozen,
    Restarted,
    /// The network carries nothing.
    Stalled,
    /// Every connection is closed, new ones too.
    CutOff,
    /// Some answers to one kind of request are lost with their connections.
    AnswersLost,
    /// Answers to commits come late.
    CommitsLate,
}

const FAULTS: [Fault; 7] = [
    Fault::Killed,
    Fault::Frozen,
    Fault::Restarted,
    Fault::Stalled,
    Fault::CutOff,
    Fault::AnswersLost,
    Fault::CommitsLate,
];

/// A fleet whose members reach the broker through a network of their own.
struct Rig {
    fleet: Fleet,
    networks: Vec<Proxy>,
    random: Random,
}

impl Rig {
    fn new(topic: &Topic, plan: Plan) -> Self {
        let mut fleet = sealed_group::sealed(topic, plan.members, plan.protocol);
        if plan.protocol != Protocol::Consumer {
            fleet.property("session.timeout.ms", &SESSION.as_millis().to_string());
        }
        let networks: Vec<_> = fleet.homes.iter().map(|_| Proxy::new(broker::address())).collect();
        for (home, network) in fleet.homes.iter_mut().zip(&networks) {
            home.set("kafka.brokers", network.address());
        }
        if let Some(sync) = plan.sync {
            fleet.put_on_slow_disks(&(sync..sync));
            // A partition that changes hands costs a dozen syncs.
            fleet.patience += 120 * sync;
        }
        Self { fleet, networks, random: Random(plan.seed) }
    }

    /// Lets some time pass: from nothing to twice the session. There is no condition to wait for; the moment is to be any
    /// one, on both sides of the session's end.
    fn pass_time(&mut self) {
        let millis = self.random.below(2 * SESSION.as_millis() as u64);
        std::thread::park_timeout(Duration::from_millis(millis));
    }

    /// What happens to the next member.
    fn choose(&mut self, plan: Plan, round: u64) -> Fault {
        match plan.faults {
            [] => FAULTS[self.random.below(FAULTS.len() as u64) as usize],
            faults => faults[(round - 1) as usize % faults.len()],
        }
    }

    fn begin(&mut self, member: usize, fault: Fault) {
        let network = &self.networks[member];
        match fault {
            Fault::Killed => self.fleet.kill(member),
            Fault::Frozen => self.fleet.signal(member, Signal::SIGSTOP),
            Fault::Restarted => self.fleet.stop(member),
            Fault::Stalled => network.stall(),
            Fault::CutOff => network.cut(),
            Fault::AnswersLost => {
                let other = ANSWERS[self.random.below(ANSWERS.len() as u64) as usize];
                for request in [OFFSET_COMMIT, FETCH, other] {
                    network.drop_answers(request, self.random.below(4));
                }
            }
            Fault::CommitsLate => {
                network.delay_answers(OFFSET_COMMIT, Duration::from_millis(self.random.below(6000)));
            }
        }
    }

    fn end(&mut self, member: usize, fault: Fault) {
        let network = &self.networks[member];
        match fault {
            Fault::Killed | Fault::Restarted => {
                self.fleet.start(member);
                self.fleet.wait_answers(member);
            }
            Fault::Frozen => self.fleet.signal(member, Signal::SIGCONT),
            Fault::Stalled | Fault::CutOff => network.heal(),
            Fault::AnswersLost => {}
            Fault::CommitsLate => network.delay_answers(OFFSET_COMMIT, Duration::ZERO),
        }
    }
}

/// Runs a plan under load, and demands that every record is published once.
fn assert_exactly_once(plan: Plan) -> Tally {
    // For whoever looks at a failure.
    println!("{plan:?}");
    let topic = Topic::create("loop", 6);
    let mut rig = Rig::new(&topic, plan);
    let everybody: Vec<_> = (0..plan.members).collect();
    let load = topic.load_every(Duration::from_millis(100), Codec::Snappy, Mix::Dirty);
    for member in 0..plan.members {
        rig.fleet.start(member);
    }
    rig.fleet.wait_shared(&everybody);
    for round in 1..=plan.rounds {
        // One member, or two at a time.
        let first = rig.random.below(plan.members as u64) as usize;
        let second = (first + 1) % plan.members;
        let members = if second != first && rig.random.below(2) == 0 { vec![first, second] } else { vec![first] };
        let faults: Vec<_> = members.into_iter().map(|member| (member, rig.choose(plan, round))).collect();
        println!("round {round}: {faults:?}");
        for (member, fault) in &faults {
            rig.begin(*member, *fault);
        }
        rig.pass_time();
        for (member, fault) in &faults {
            rig.end(*member, *fault);
        }
        // Sometimes the next fault comes before the group has settled.
        if rig.random.below(3) > 0 {
            rig.fleet.wait_shared(&everybody);
            rig.fleet.wait_progress(first, 1);
        }
    }
    let produced = load.stop();
    rig.fleet.heal_disks();
    rig.fleet.wait_done(&produced);
    let tally = Tally::new(&rig.fleet.homes, &produced);
    println!("{plan:?} {tally:?}");
    sealed_group::assert_exactly_once(&mut rig.fleet, &produced);
    Tally::new(&rig.fleet.homes, &produced)
}

/// What `scripts/group-loop` runs: `MTGA_GROUP_LOOP` has its arguments.
#[test]
#[ignore = "takes as long as it is told to; run by scripts/group-loop"]
fn the_long_loop() {
    #[expect(clippy::disallowed_methods, reason = "a test has no main through which the environment could enter")]
    let text = std::env::var("MTGA_GROUP_LOOP").expect("scripts/group-loop says what to do");
    let [rounds, members, protocol, sync, seed] = text.split(' ').collect::<Vec<_>>()[..] else { panic!("{text}") };
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let protocol = match protocol {
        "cooperative" => Protocol::Cooperative,
        "eager" => Protocol::Eager,
        _ => Protocol::Consumer,
    };
    let sync = Some(number(sync)).filter(|millis| *millis > 0).map(Duration::from_millis);
    let plan = Plan {
        rounds: number(rounds),
        faults: &[],
        members: number(members) as usize,
        protocol,
        sync,
        seed: number(seed),
    };
    let tally = assert_exactly_once(plan);
    println!("rounds={rounds} members={members} protocol={protocol:?} sync={sync:?} {tally} seed={seed}");
}

#[test]
fn a_lone_member_on_a_slow_disk_gets_its_own_partitions_back_and_publishes_every_record_once() {
    let faults = &[Fault::Frozen, Fault::Stalled];
    let sync = Some(Duration::from_millis(300));
    assert_exactly_once(Plan { rounds: 2, faults, members: 1, protocol: Protocol::Cooperative, sync, seed: 1 });
}

#[test]
fn members_on_slow_disks_that_fail_at_random_publish_every_record_once() {
    let sync = Some(Duration::from_millis(100));
    assert_exactly_once(Plan { rounds: 2, faults: &[], members: 2, protocol: Protocol::Consumer, sync, seed: 2 });
}
