//! What happens to homes and their group, and what must have come of it in the end.

use proptest::prelude::*;

use super::found::Found;
use super::group::Answer;
use super::world::World;
use super::*;
use crate::delivery::Finish;
use crate::msource::journal;

#[derive(Clone, Debug)]
pub(super) enum Step {
    On(usize, Act),
    /// The owner may try so many commits before it gives up. Nobody has the partition yet: its commits are still taken.
    Revoke {
        number: i32,
        commits: u32,
    },
    /// The same, and another is given it.
    Move {
        number: i32,
        to: usize,
        commits: u32,
    },
    /// Its owner learns that it has lost it, and is given it again, perhaps while it is to be published.
    Regain {
        number: i32,
        wanted: bool,
    },
    /// Its session is over, and it does not know.
    Evict {
        home: usize,
        to: usize,
    },
    Deliver,
    Answers(Vec<Answer>),
    Crash(usize, Crash),
}

#[derive(Clone, Debug)]
pub(super) enum Act {
    Block(i32, i64),
    Send(u64),
    Full(u64),
    Barrier,
    /// Publication is due, and nobody waits for it.
    Want,
    Seal(u32),
    Stop,
    Retry(usize),
    Clear(usize),
    Learn,
    Turn,
}

#[derive(Clone, Debug)]
pub(super) enum Crash {
    Kill,
    /// With this much chance, and so many changes of the store taken back.
    Power(u64, usize),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        12 => (0..PARTITIONS, 1..30i64).prop_map(|(number, records)| Act::Block(number, records)),
        4 => any::<u64>().prop_map(Act::Send),
        1 => (0..600u64).prop_map(Act::Full),
        1 => Just(Act::Barrier),
        2 => Just(Act::Want),
        4 => prop_oneof![0..4u32, Just(u32::MAX)].prop_map(Act::Seal),
        1 => Just(Act::Stop),
        2 => (1..6usize).prop_map(Act::Retry),
        1 => (1..3usize).prop_map(Act::Clear),
        2 => Just(Act::Learn),
        3 => Just(Act::Turn),
    ]
}

fn answer() -> impl Strategy<Value = Answer> {
    prop::sample::select(vec![Answer::Taken, Answer::Refused, Answer::Lost, Answer::Late, Answer::Part])
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let homes = || 0..HOMES;
    let crash = prop_oneof![
        Just(Crash::Kill),
        (any::<u64>(), 0..4usize).prop_map(|(random, changes)| Crash::Power(random, changes))
    ];
    prop_oneof![
        16 => (homes(), act()).prop_map(|(home, act)| Step::On(home, act)),
        1 => (0..PARTITIONS, 0..5u32).prop_map(|(number, commits)| Step::Revoke { number, commits }),
        3 => (0..PARTITIONS, homes(), 0..5u32).prop_map(|(number, to, commits)| Step::Move { number, to, commits }),
        3 => (0..PARTITIONS, any::<bool>()).prop_map(|(number, wanted)| Step::Regain { number, wanted }),
        2 => (homes(), homes()).prop_map(|(home, to)| Step::Evict { home, to }),
        1 => Just(Step::Deliver),
        3 => prop::collection::vec(answer(), 1..5).prop_map(Step::Answers),
        2 => (homes(), crash).prop_map(|(home, crash)| Step::Crash(home, crash)),
    ]
}

/// Takes back what was not synced: the store's last changes, the journal's last frames, bytes of hidden files.
fn cut_power(home: &Home, random: u64, changes: usize) {
    home.store.forget(changes);
    let Some(path) = home.last_segment() else { return };
    let whole = fs::read(&path).unwrap();
    let contents = journal::read(&home.journal()).unwrap();
    let synced = |contents: &Contents| {
        let unsynced = |frame: &Frame| matches!(frame, Frame::Dropped { .. } | Frame::End { .. });
        let tail: Vec<_> = contents.tail.iter().filter(|frame| !unsynced(frame)).cloned().collect();
        (contents.state.clone(), tail)
    };
    let (_, end) = contents.end.unwrap();
    let mut cut = whole.clone();
    cut[(end - random % end.min(700)) as usize..].fill(0);
    fs::write(&path, &cut).unwrap();
    if synced(&journal::read(&home.journal()).unwrap()) != synced(&contents) {
        fs::write(&path, &whole).unwrap();
    }
    for (id, file) in contents.state.iter().flat_map(|state| &state.files) {
        let path = home.data().join(file.path());
        let Ok(mut content) = fs::read(&path) else { continue };
        let (durable, length) = (file.length as usize, content.len());
        if length > durable {
            let from = durable + random as usize % (length - durable);
            match (random >> (id % 60)) % 3 {
                0 => content.truncate(from),
                1 => content[from..].fill(0),
                _ => {}
            }
            fs::write(&path, content).unwrap();
        }
    }
}

impl World {
    pub(super) fn block(&mut self, home: usize, number: i32, records: i64) {
        if self.run(home).pending.contains(&number) {
            self.resolve(home);
        }
        let work = &mut self.run(home).work;
        if work.slots.contains_key(&number) {
            work.block(number, records);
        }
    }

    fn entries(&mut self, home: usize, count: usize) -> Vec<(u64, QueueEntry)> {
        self.settled(home);
        let state = self.run(home).work.state();
        self.homes[home].entries(&state, count)
    }

    fn retry(&mut self, home: usize, count: usize) {
        let entries = self.entries(home, count);
        self.run(home).work.retry(&entries);
    }

    fn clear(&mut self, home: usize, count: usize) {
        let entries = self.entries(home, count);
        let removed = entries.iter().map(|(key, entry)| (*key, entry.size())).collect();
        let answered = self.run(home).work.remove(removed);
        self.wait(home, &answered, u32::MAX);
        self.homes[home].clear(&entries);
    }

    /// The group takes a partition back, and the owner gives it up, after so many attempts to commit.
    fn revoke(&mut self, number: i32, commits: u32) {
        let home = self.group.at(number).owner;
        if !self.is_running(home) {
            return;
        }
        self.run(home).pending.remove(&number);
        if self.run(home).work.slots.contains_key(&number) {
            self.barrier(home, Finish::Hidden(vec![partition(number)]), commits);
            self.run(home).release(number);
        }
    }

    /// The member finds out what it has lost.
    fn learn(&mut self, home: usize) {
        let Some(run) = &mut self.runs[home] else { return };
        let group = &self.group;
        let generations = &run.generations;
        let is_lost = |number: &i32| {
            let member = group.at(*number);
            (member.owner, member.generation) != (home, generations[number])
        };
        run.pending.retain(|number| !is_lost(number));
        let lost: Vec<_> = run.work.slots.keys().copied().filter(is_lost).collect();
        for number in lost {
            run.release(number);
        }
        (run.lost, run.fenced) = (false, 0);
    }

    pub(super) fn give(&mut self, number: i32, home: usize) {
        self.learn(home);
        self.group.assign(number, home);
        self.given(number, home);
    }

    /// Its owner learns that it has lost a partition, and is given it again.
    pub(super) fn regain(&mut self, number: i32) {
        let owner = self.group.at(number).owner;
        self.group.assign(number, owner);
        self.learn(owner);
        self.given(number, owner);
    }

    /// Publication is due, and begun; nobody waits for it.
    fn want(&mut self, home: usize) {
        let work = &mut self.run(home).work;
        let ours = work.slots.keys().map(|number| partition(*number)).collect();
        let _unanswered = work.checkpoint(Finish::Hidden(ours));
        work.looked();
    }

    fn kill(&mut self, home: usize, crash: &Crash) {
        if self.is_running(home) {
            self.end(home);
            if let Crash::Power(random, changes) = *crash {
                cut_power(&self.homes[home], random, changes);
            }
        }
    }

    pub(super) fn step(&mut self, step: &Step) {
        if let Step::On(home, act) = step {
            self.start(*home);
            self.act(*home, act);
            return;
        }
        match step {
            Step::Revoke { number, commits } => self.revoke(*number, *commits),
            Step::Move { number, to, commits } => {
                self.revoke(*number, *commits);
                self.give(*number, *to);
            }
            Step::Evict { home, to } => {
                for number in 0..PARTITIONS {
                    if self.group.at(number).owner == *home && home != to {
                        self.give(number, *to);
                    }
                }
            }
            Step::Regain { number, wanted } => {
                let owner = self.group.at(*number).owner;
                if self.is_running(owner) {
                    if *wanted {
                        // What is to be synced first leaves time for the rest.
                        self.block(owner, *number, 5);
                        self.want(owner);
                    }
                    self.regain(*number);
                    self.resolve(owner);
                }
            }
            Step::Deliver => self.group.deliver(),
            Step::Answers(answers) => self.group.answers.extend(answers),
            Step::Crash(home, crash) => self.kill(*home, crash),
            Step::On(..) => unreachable!("done above"),
        }
    }

    fn act(&mut self, home: usize, act: &Act) {
        self.rejoin(home);
        match *act {
            Act::Block(number, records) => self.block(home, number, records),
            Act::Send(random) => self.run(home).work.send(random),
            Act::Full(room) => self.run(home).work.fill_disk(room),
            Act::Barrier => self.settled(home),
            Act::Want => self.want(home),
            Act::Seal(commits) => {
                let ours = self.run(home).work.slots.keys().map(|number| partition(*number)).collect();
                self.barrier(home, Finish::Hidden(ours), commits);
            }
            Act::Stop => {
                self.barrier(home, Finish::Files, u32::MAX);
                self.end(home);
            }
            Act::Retry(count) => self.retry(home, count),
            Act::Clear(count) => self.clear(home, count),
            Act::Learn => self.learn(home),
            Act::Turn => {
                self.serve(home);
                self.look(home);
                self.resolve(home);
            }
        }
    }

    /// Lets everything come to its end, and looks at what is there.
    pub(super) fn check(mut self) {
        self.group.answers.clear();
        for home in 0..HOMES {
            self.end(home);
        }
        self.group.deliver();
        for home in 0..HOMES {
            self.start(home);
        }
        for number in 0..PARTITIONS {
            let owner = self.group.at(number).owner;
            self.block(owner, number, 5);
        }
        // The others' commits are there in the second round; what was prepared is decided before what came after it.
        for home in (0..4).flat_map(|_| 0..HOMES) {
            self.settled(home);
            self.look(home);
            self.barrier(home, Finish::Files, u32::MAX);
        }
        let mut found = Found::default();
        for home in 0..HOMES {
            self.end(home);
            found.take_in(&self.homes[home]);
        }
        found.check(&self.group);
    }
}
