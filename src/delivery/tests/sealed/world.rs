//! Several homes and their group: the part of the consumer is played with the program's own decisions.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, unbounded};

use super::group::{FENCED, Group, Sent, Told};
use super::*;
use crate::delivery::{Asking, CommitPoint, Finish, Inbox, Prepared, SealRequest, Verdict};
use crate::msource::assignment::{Carried, Decision, Held, Hidden, Known, Owner, decide, settle};
use crate::msource::journal::Mark;
use crate::msource::native::GroupOffset;

/// A seal that the group was asked to take.
struct Asked {
    number: u64,
    open: Vec<Asking>,
}

/// What became of the judgement of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judged {
    Same,
    Changed,
    /// The group is to be asked again.
    Waits,
}

/// A home that runs: its delivery, and what its consumer knows.
pub(super) struct Run {
    pub(super) work: Work,
    pub(super) seals: Receiver<SealRequest>,
    pub(super) pending: BTreeSet<i32>,
    /// The generation in which each partition was given to it.
    pub(super) generations: BTreeMap<i32, u64>,
    carried: BTreeMap<i32, Carried>,
    asked: Option<Asked>,
    /// Commits in a row of which one was fenced, and whether the member knows that its assignment is lost.
    pub(super) fenced: u32,
    pub(super) lost: bool,
    /// Whether an answer was lost, so that it joins the group again.
    rejoin: bool,
    /// Commits sent.
    sends: u32,
}

impl Run {
    /// Ends an assignment.
    pub(super) fn release(&mut self, number: i32) {
        self.work.tracker.end(&partition(number));
        self.work.slots.remove(&number);
    }

    /// Tells the delivery what became of a range. That of an assignment which is over ends first.
    fn tell(&self, seal: u64, asking: &Asking, verdict: Verdict) {
        let partition = asking.position.partition.clone();
        if let (true, Some(epoch)) = (verdict != Verdict::Committed, asking.epoch) {
            self.work.tracker.end_of(&partition, epoch);
        }
        self.work.inbox.send(Inbox::Decided { number: seal, partition, verdict, reply: None }).unwrap();
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
        self.join(home);
    }

    /// A member joins, which is a generation of its own.
    fn join(&mut self, home: usize) {
        for number in 0..PARTITIONS {
            if self.group.at(number).owner == home {
                self.group.assign(number, home);
                self.given(number, home);
            }
        }
    }

    /// Joins the group again when an answer was lost.
    pub(super) fn rejoin(&mut self, home: usize) {
        let run = self.run(home);
        if std::mem::take(&mut run.rejoin) {
            for number in 0..PARTITIONS {
                run.release(number);
            }
            run.pending.clear();
            (run.lost, run.fenced) = (false, 0);
            self.join(home);
        }
    }

    pub(super) fn start_with(&mut self, home: usize, commit_point: CommitPoint, seals: Receiver<SealRequest>) {
        self.runs[home] = Some(Run {
            work: self.homes[home].start(commit_point),
            seals,
            pending: BTreeSet::new(),
            generations: BTreeMap::new(),
            carried: BTreeMap::new(),
            asked: None,
            fenced: 0,
            lost: false,
            rejoin: false,
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
        let Carried { previous, since } = run.carried.get(&number).cloned().unwrap_or_default();
        let owner = Owner {
            mark: Mark { home: self.homes[home].name.clone(), incarnation: 1, number: seal },
            topic_id: at.topic_id.clone(),
            partitions: None,
            since,
            previous,
        };
        let offset = GroupOffset { offset: at.next, leader_epoch: -1, metadata: owner.to_string() };
        Sent { partition: number, generation: run.generations[&number], offset }
    }

    pub(super) fn commit(&mut self, home: usize, at: &[Position], seal: u64) -> Vec<Told> {
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
            let Ok(SealRequest { number, asking }) = run.seals.try_recv() else { return };
            run.asked = Some(Asked { number, open: asking });
        }
        let Some(mut asked) = run.asked.take() else { return };
        let number = asked.number;
        let lost = run.lost || run.rejoin;
        let slots = &run.work.slots;
        let is_ours = |asking: &Asking| {
            let slot = slots.get(&asking.position.partition.partition);
            !lost && slot.is_some_and(|(epoch, _)| asking.epoch == Some(*epoch))
        };
        let (ours, gone): (Vec<_>, Vec<_>) = asked.open.drain(..).partition(is_ours);
        for asking in gone {
            run.tell(number, &asking, Verdict::Open);
        }
        if ours.is_empty() {
            return;
        }
        asked.open = self.commit_seal(home, number, ours);
        self.run(home).asked = Some(asked).filter(|asked| !asked.open.is_empty());
    }

    /// Commits; returns what was refused.
    fn commit_seal(&mut self, home: usize, number: u64, open: Vec<Asking>) -> Vec<Asking> {
        let positions: Vec<_> = open.iter().map(|asking| asking.position.clone()).collect();
        let answers = self.commit(home, &positions, number);
        let run = self.run(home);
        run.rejoin |= answers.contains(&Told::Unknown);
        let mut refused = Vec::new();
        for (asking, answer) in open.into_iter().zip(answers) {
            match answer {
                Told::Taken => run.tell(number, &asking, Verdict::Committed),
                Told::Refused if !run.rejoin => refused.push(asking),
                Told::Refused | Told::Unknown => run.tell(number, &asking, Verdict::Open),
            }
        }
        refused
    }

    /// Waits for an answer of the delivery, which may need the group's word; gives up after so many commits.
    #[track_caller]
    pub(super) fn wait<T>(&mut self, home: usize, answered: &Receiver<T>, commits: u32) -> Option<T> {
        let deadline = Instant::now() + PATIENCE;
        let until = self.run(home).sends.saturating_add(commits);
        loop {
            self.serve(home);
            if let Ok(answer) = answered.recv_timeout(Duration::from_millis(1)) {
                return Some(answer);
            }
            if self.run(home).sends >= until {
                return None;
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
        self.wait(home, &answered, commits).is_some()
    }

    pub(super) fn settled(&mut self, home: usize) {
        self.barrier(home, Finish::No, u32::MAX);
    }

    pub(super) fn judge(&mut self, home: usize, state: &State, number: i32, held: Held) -> Judged {
        let (reply, answered) = bounded(1);
        let committed = self.group.at(number).committed.as_ref();
        let partition = partition(number);
        let message = match settle(state, &partition, committed, held, Visibility::Sealed) {
            Hidden::Stays => return Judged::Same,
            Hidden::Refused => Inbox::Refuse { partition, reply: Some(reply) },
            Hidden::Decided(number, verdict) => {
                assert_ne!(verdict, Verdict::Undecided, "the group always tells");
                Inbox::Decided { number, partition, verdict, reply: Some(reply) }
            }
            Hidden::Again(seal, position) => return self.ask_again(home, seal, position),
        };
        self.run(home).work.inbox.send(message).unwrap();
        self.wait(home, &answered, u32::MAX);
        Judged::Changed
    }

    /// Has the group take what was prepared in an assignment before this one.
    fn ask_again(&mut self, home: usize, seal: u64, position: Position) -> Judged {
        let (reply, answered) = bounded(1);
        let check = Inbox::Check { number: seal, partition: position.partition.clone(), reply };
        self.run(home).work.inbox.send(check).unwrap();
        assert_eq!(self.wait(home, &answered, u32::MAX), Some(Prepared::Whole), "nobody touches the files");
        if self.run(home).rejoin {
            return Judged::Waits;
        }
        self.carry_on(home, position.partition.partition);
        let refused = self.commit_seal(home, seal, vec![Asking { position, epoch: None }]);
        if refused.is_empty() && !self.run(home).rejoin { Judged::Changed } else { Judged::Waits }
    }

    /// Remembers the owners before us, to be carried on.
    fn carry_on(&mut self, home: usize, number: i32) {
        let found = self.group.at(number).committed.as_ref();
        let carried = Carried::of(found, "id", (&self.homes[home].name, 1));
        self.run(home).carried.insert(number, carried);
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
            let judged: Vec<_> =
                hidden.into_iter().map(|number| self.judge(home, &state, number, Held::ByUs)).collect();
            if judged.contains(&Judged::Waits) {
                return;
            }
            if judged.contains(&Judged::Changed) {
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
        self.carry_on(home, number);
        let local = state.partitions.get(&partition(number));
        let decision = decide(&Known {
            home: (&name, 1),
            former: &[],
            number: state.number,
            local,
            group: found.as_ref(),
            topic_id: "id",
            added: false,
            visibility: Visibility::Sealed,
        });
        let here = |next| position(number, next);
        let found_at = found.as_ref().map(|found| found.offset);
        let (at, frame, tells) = match decision {
            Decision::Continue => {
                let local = local.expect("a local position");
                let unknown = local.growth.is_none() && found_at != Some(local.next);
                (here(local.next), None, unknown)
            }
            Decision::Move { to, cause } => (here(to), Some(Frame::Move { to: here(to), cause }), true),
            Decision::Adopt { at } => (here(at), Some(Frame::Start(here(at))), true),
            Decision::New | Decision::Added | Decision::Recreated => (here(0), Some(Frame::Start(here(0))), true),
        };
        let mut mark = owner.map(|owner| owner.mark);
        let moved = frame.is_some();
        if let Some(frame) = frame {
            self.note(home, frame);
        }
        if tells && found_at != Some(at.next) {
            self.run(home).carried.entry(number).or_default().begins_at(at.next);
            let told = self.commit(home, std::slice::from_ref(&at), 0)[0];
            self.run(home).rejoin |= told == Told::Unknown;
            if told != Told::Taken {
                return false;
            }
            mark = Some(Mark { home: name, incarnation: 1, number: 0 });
        }
        if moved || !local.is_some_and(|here| here.growth.is_some() || here.mark == mark) {
            self.note(home, Frame::Base { partition: partition(number), mark });
        }
        self.settled(home);
        let run = self.run(home);
        run.pending.remove(&number);
        assert!(run.work.begin(number, at.next), "what was prepared of {number} is decided before it is begun");
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
