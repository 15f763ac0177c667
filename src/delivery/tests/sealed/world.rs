//! Several homes and their group: the part of the consumer is played with the program's own decisions.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, unbounded};

use super::group::{FENCED, Group, Sent};
use super::*;
use crate::delivery::{CommitPoint, Finish, Inbox, SealRequest, Verdict};
use crate::msource::assignment::{Decision, Held, Hidden, Known, Owner, decide, settle};
use crate::msource::journal::Mark;
use crate::msource::native::GroupOffset;

/// A seal that the group was asked to take.
struct Asked {
    number: u64,
    open: Vec<Position>,
    sent: bool,
}

/// A home that runs: its delivery, and what its consumer knows.
pub(super) struct Run {
    pub(super) work: Work,
    seals: Receiver<SealRequest>,
    pub(super) pending: BTreeSet<i32>,
    /// The generation in which each partition was given to it.
    pub(super) generations: BTreeMap<i32, u64>,
    previous: BTreeMap<i32, Vec<Mark>>,
    asked: Option<Asked>,
    /// Commits in a row of which one was fenced, and whether the member knows that its assignment is lost.
    pub(super) fenced: u32,
    pub(super) lost: bool,
    /// Commits sent.
    sends: u32,
}

impl Run {
    /// Ends assignments, as [`Consumer::release`](crate::msource::consumer) does.
    pub(super) fn release(&mut self, number: i32) {
        self.work.tracker.end(&partition(number));
        self.work.inbox.send(Inbox::Refuse { partition: partition(number), reply: None }).unwrap();
        self.work.slots.remove(&number);
    }
}

/// Homes, their members of the group, and its coordinator.
pub(super) struct World {
    pub(super) homes: Vec<Home>,
    pub(super) runs: Vec<Option<Run>>,
    pub(super) group: Group,
}

impl World {
    pub(super) fn new() -> Self {
        let home = |number| Home::new(&format!("h{number}"), Visibility::Sealed);
        Self { homes: (0..HOMES).map(home).collect(), runs: (0..HOMES).map(|_| None).collect(), group: Group::new() }
    }

    pub(super) fn run(&mut self, home: usize) -> &mut Run {
        self.runs[home].as_mut().expect("it runs")
    }

    pub(super) fn is_running(&self, home: usize) -> bool {
        self.runs[home].is_some()
    }

    pub(super) fn start(&mut self, home: usize) {
        if self.is_running(home) {
            return;
        }
        let (requests, seals) = unbounded();
        self.start_with(home, CommitPoint::Group(requests), seals);
        for number in 0..PARTITIONS {
            if self.group.at(number).owner == home {
                // It joins again, which is a generation of its own.
                self.group.assign(number, home);
                self.given(number, home);
            }
        }
    }

    pub(super) fn start_with(&mut self, home: usize, commit_point: CommitPoint, seals: Receiver<SealRequest>) {
        self.runs[home] = Some(Run {
            work: self.homes[home].start(commit_point),
            seals,
            pending: BTreeSet::new(),
            generations: BTreeMap::new(),
            previous: BTreeMap::new(),
            asked: None,
            fenced: 0,
            lost: false,
            sends: 0,
        });
    }

    /// The member is told of its partition.
    pub(super) fn given(&mut self, number: i32, home: usize) {
        let generation = self.group.at(number).generation;
        if let Some(run) = &mut self.runs[home] {
            run.pending.insert(number);
            run.generations.insert(number, generation);
        }
    }

    pub(super) fn sent(&self, home: usize, at: &Position, seal: u64) -> Sent {
        let run = self.runs[home].as_ref().expect("it runs");
        let number = at.partition.partition;
        let owner = Owner {
            mark: Mark { home: self.homes[home].name.clone(), incarnation: 1, number: seal },
            topic_id: at.topic_id.clone(),
            previous: run.previous.get(&number).cloned().unwrap_or_default(),
        };
        let offset = GroupOffset { offset: at.next, leader_epoch: -1, metadata: owner.to_string() };
        Sent { partition: number, generation: run.generations[&number], offset }
    }

    pub(super) fn commit(&mut self, home: usize, at: &[Position], seal: u64) -> Vec<bool> {
        let commits: Vec<_> = at.iter().map(|at| self.sent(home, at, seal)).collect();
        let current = commits.iter().all(|sent| self.group.is_current(home, sent));
        let answers = self.group.commit(home, commits);
        let run = self.run(home);
        run.sends += 1;
        run.fenced = if current { 0 } else { run.fenced + 1 };
        run.lost |= run.fenced >= FENCED;
        answers
    }

    /// Sends the commit of a seal that was prepared.
    pub(super) fn serve(&mut self, home: usize) {
        let run = self.run(home);
        if run.asked.is_none() {
            let Ok(SealRequest { number, positions }) = run.seals.try_recv() else { return };
            run.asked = Some(Asked { number, open: positions, sent: false });
        }
        let Some(mut asked) = run.asked.take() else { return };
        let (number, partition_of) = (asked.number, |position: &Position| position.partition.partition);
        let is_ours = |position: &Position| !run.lost && run.work.slots.contains_key(&partition_of(position));
        let (ours, gone): (Vec<_>, Vec<_>) = asked.open.drain(..).partition(is_ours);
        let tell = |run: &Run, position: &Position, verdict| {
            let partition = position.partition.clone();
            run.work.inbox.send(Inbox::Decided { number, partition, verdict, reply: None }).unwrap();
        };
        for position in gone {
            tell(run, &position, if asked.sent { Verdict::Open } else { Verdict::Refused });
        }
        if ours.is_empty() {
            return;
        }
        asked.sent = true;
        let answers = self.commit(home, &ours, number);
        let run = self.run(home);
        for (position, taken) in ours.into_iter().zip(answers) {
            if taken {
                tell(run, &position, Verdict::Committed);
            } else {
                asked.open.push(position);
            }
        }
        run.asked = Some(asked).filter(|asked| !asked.open.is_empty());
    }

    /// Waits for an answer of the delivery, which may need the group's word; gives up after so many commits.
    #[track_caller]
    pub(super) fn wait(&mut self, home: usize, answered: &Receiver<()>, commits: u32) -> bool {
        let deadline = Instant::now() + PATIENCE;
        let until = self.run(home).sends.saturating_add(commits);
        loop {
            self.serve(home);
            if answered.recv_timeout(Duration::from_millis(1)).is_ok() {
                return true;
            }
            if self.run(home).sends >= until {
                return false;
            }
            if let Ok(outcome) = self.run(home).work.ended.try_recv() {
                panic!("the delivery ended: {outcome:?}");
            }
            assert!(Instant::now() < deadline, "an answer");
        }
    }

    #[track_caller]
    pub(super) fn barrier(&mut self, home: usize, finish: Finish, commits: u32) -> bool {
        let answered = self.run(home).work.checkpoint(finish);
        self.wait(home, &answered, commits)
    }

    pub(super) fn settled(&mut self, home: usize) {
        self.barrier(home, Finish::No, u32::MAX);
    }

    pub(super) fn judge(&mut self, home: usize, state: &State, number: i32, held: Held) -> bool {
        let (reply, answered) = bounded(1);
        let committed = self.group.at(number).committed.as_ref();
        let partition = partition(number);
        let message = match settle(state, &partition, committed, held, Visibility::Sealed) {
            Hidden::Stays => return false,
            Hidden::Refused => Inbox::Refuse { partition, reply: Some(reply) },
            Hidden::Decided(number, verdict) => {
                assert_ne!(verdict, Verdict::Undecided, "the group always tells");
                Inbox::Decided { number, partition, verdict, reply: Some(reply) }
            }
        };
        self.run(home).work.inbox.send(message).unwrap();
        self.wait(home, &answered, u32::MAX)
    }

    /// Asks about what is hidden of partitions that are not ours.
    pub(super) fn look(&mut self, home: usize) {
        let state = self.run(home).work.state();
        for number in 0..PARTITIONS {
            let run = self.run(home);
            let ours = run.pending.contains(&number) || run.work.slots.contains_key(&number);
            if !ours && state.is_hidden(&partition(number)) {
                self.judge(home, &state, number, Held::NotByUs);
            }
        }
    }

    /// Finds out where pending partitions begin, and begins to read them.
    pub(super) fn resolve(&mut self, home: usize) {
        while !self.run(home).pending.is_empty() {
            self.settled(home);
            let state = self.run(home).work.state();
            let pending = self.run(home).pending.clone();
            let hidden: Vec<_> =
                pending.iter().copied().filter(|number| state.is_hidden(&partition(*number))).collect();
            let changed = hidden
                .into_iter()
                .fold(false, |changed, number| changed | self.judge(home, &state, number, Held::ByUs));
            if changed {
                continue;
            }
            for number in pending {
                if !self.begin(home, &state, number) {
                    return;
                }
            }
        }
    }

    /// Begins to read a partition; false when the group does not take its start now.
    pub(super) fn begin(&mut self, home: usize, state: &State, number: i32) -> bool {
        let found = self.group.at(number).committed.clone();
        let owner: Option<Owner> = found.as_ref().and_then(|found| found.metadata.parse().ok());
        let name = self.homes[home].name.clone();
        let metadata = found.as_ref().map_or("", |found| &found.metadata);
        self.run(home).previous.insert(number, Owner::carried(metadata, (&name, 1)));
        let local = state.partitions.get(&partition(number));
        let decision = decide(&Known {
            home: (&name, 1),
            former: &[],
            local,
            group: found.as_ref(),
            topic_id: "id",
            topic_known: false,
            visibility: Visibility::Sealed,
        });
        let here = |next| position(number, next);
        let found_at = found.as_ref().map(|found| found.offset);
        let (at, frame) = match decision {
            Decision::Continue => {
                let local = local.expect("a local position");
                let at = here(local.next);
                let unknown = found_at.is_none() || local.growth.is_none() && found_at != Some(local.next);
                (at.clone(), unknown.then_some(Frame::Start(at)))
            }
            Decision::Move { to, cause } => (here(to), Some(Frame::Move { to: here(to), cause })),
            Decision::Adopt { at } => (here(at), Some(Frame::Start(here(at)))),
            Decision::New | Decision::Added | Decision::Recreated => (here(0), Some(Frame::Start(here(0)))),
        };
        let mut mark = owner.map(|owner| owner.mark);
        if let Some(frame) = frame {
            self.note(home, frame);
            if found_at != Some(at.next) {
                if !self.commit(home, std::slice::from_ref(&at), 0)[0] {
                    return false;
                }
                mark = Some(Mark { home: name, incarnation: 1, number: 0 });
            }
        }
        if !local.is_some_and(|here| here.growth.is_some() || here.mark == mark) {
            self.note(home, Frame::Base { partition: partition(number), mark });
        }
        self.settled(home);
        let run = self.run(home);
        run.pending.remove(&number);
        run.work.begin(number, at.next);
        true
    }

    pub(super) fn note(&mut self, home: usize, frame: Frame) {
        let answered = self.run(home).work.note(frame);
        self.wait(home, &answered, u32::MAX);
    }

    /// Ends it where it is, if it runs.
    pub(super) fn end(&mut self, home: usize) {
        if let Some(run) = self.runs[home].take() {
            self.homes[home].kill(run.work);
        }
    }
}
