//! The two-phase commit of hidden files: several homes with their own journals, files and stores, against a model of the
//! group's coordinator that takes, refuses, delays and forgets to answer commits, and takes partitions away unannounced.
//!
//! The test plays the part of the consumer with the program's own decisions. Whatever happened, below the offset that the
//! group has each record is one line in the published files of all homes together, one filtered count or one entry of one
//! failure queue, and above it there is none; manifests tile.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use proptest::prelude::*;

use super::pipeline::{Fate, Made, MemStore, PATIENCE, fate, line, sink_config, wait_until};
use super::*;
use crate::block::Source;
use crate::config::{self, Visibility};
use crate::delivery::recovery::queue_changes;
use crate::delivery::{self, Budget, CommitPoint, Delivery, Error, Finish, Gauges, Inbox, Parts, SealRequest, Verdict};
use crate::msink::file::{FileSink, Now};
use crate::msink::manifest::{self, Manifest};
use crate::msink::name::NameTemplate;
use crate::msource::assignment::{Decision, Held, Hidden, Known, Owner, decide, settle};
use crate::msource::journal::{self, FileState, Journal, Mark, MoveCause, QueueCause};
use crate::msource::native::GroupOffset;
use crate::msource::store::{Store, StoreChange};
use crate::msource::tracker::{Epoch, Tracker};

const HOMES: usize = 3;
const PARTITIONS: i32 = 2;

/// A commit after which a member is told that its assignment is lost, since none was taken.
const FENCED: u32 = 3;

/// What becomes of one commit request.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Taken,
    Refused,
    /// Taken, and nobody learns of it.
    Lost,
    /// On its way for some steps. Taken only if its generation is still the current one.
    Late,
    /// Taken for a part of the partitions.
    Part,
}

#[derive(Clone, Debug)]
struct Sent {
    partition: i32,
    generation: u64,
    offset: GroupOffset,
}

#[derive(Debug)]
struct Member {
    owner: usize,
    generation: u64,
    committed: Option<GroupOffset>,
}

/// The group's coordinator.
#[derive(Debug)]
struct Group {
    partitions: Vec<Member>,
    late: Vec<(usize, Vec<Sent>)>,
    answers: VecDeque<Answer>,
}

impl Group {
    fn new() -> Self {
        let member = |number: i32| Member { owner: number as usize % HOMES, generation: 1, committed: None };
        Self { partitions: (0..PARTITIONS).map(member).collect(), late: Vec::new(), answers: VecDeque::new() }
    }

    fn at(&self, number: i32) -> &Member {
        &self.partitions[number as usize]
    }

    fn assign(&mut self, number: i32, owner: usize) {
        let member = &mut self.partitions[number as usize];
        member.owner = owner;
        member.generation += 1;
    }

    fn is_current(&self, home: usize, sent: &Sent) -> bool {
        let member = self.at(sent.partition);
        (member.owner, member.generation) == (home, sent.generation)
    }

    fn take(&mut self, home: usize, sent: &Sent) -> bool {
        let current = self.is_current(home, sent);
        if current {
            self.partitions[sent.partition as usize].committed = Some(sent.offset.clone());
        }
        current
    }

    fn deliver(&mut self, of: impl Fn(usize) -> bool) {
        let (arrived, late): (Vec<_>, Vec<_>) = self.late.drain(..).partition(|(home, _)| of(*home));
        self.late = late;
        for (home, commits) in arrived {
            for sent in commits {
                self.take(home, &sent);
            }
        }
    }

    /// Takes a request; returns which partitions' offsets were acknowledged.
    fn commit(&mut self, home: usize, commits: Vec<Sent>) -> Vec<bool> {
        // One connection: what was sent earlier does not come later.
        self.deliver(|of| of == home);
        match self.answers.pop_front().unwrap_or(Answer::Taken) {
            Answer::Taken => commits.iter().map(|sent| self.take(home, sent)).collect(),
            Answer::Part => {
                let part = |(index, sent): (usize, &Sent)| index % 2 == 0 && self.take(home, sent);
                commits.iter().enumerate().map(part).collect()
            }
            answer => {
                let none = vec![false; commits.len()];
                match answer {
                    Answer::Lost => {
                        for sent in &commits {
                            self.take(home, sent);
                        }
                    }
                    Answer::Late => self.late.push((home, commits)),
                    _ => {}
                }
                none
            }
        }
    }
}

/// A seal that the group was asked to take.
struct Asked {
    number: u64,
    open: Vec<Position>,
    sent: bool,
}

/// What is left of a home while nothing runs.
struct Home {
    scratch: TempDir,
    store: Arc<MemStore>,
    name: String,
    cleared: BTreeSet<(i32, i64)>,
    run: Option<Run>,
}

/// A home that runs: its delivery, and what its consumer knows.
struct Run {
    inbox: Sender<Inbox>,
    seals: Receiver<SealRequest>,
    ended: Receiver<Result<(), Error>>,
    tracker: Arc<Tracker>,
    gauges: Arc<Gauges>,
    budget: Arc<Budget>,
    room: Arc<AtomicU64>,
    ticket: u64,
    done: Vec<Inbox>,
    slots: BTreeMap<i32, (Epoch, i64)>,
    pending: BTreeSet<i32>,
    /// The generation in which each partition was given to it.
    generations: BTreeMap<i32, u64>,
    previous: BTreeMap<i32, Vec<Mark>>,
    asked: Option<Asked>,
    /// Commits in a row of which one was fenced, and whether the member knows that its assignment is lost.
    fenced: u32,
    lost: bool,
    /// Commits sent.
    sends: u32,
}

impl Run {
    fn state(&self) -> State {
        self.gauges.durable().state.clone()
    }

    fn take(&mut self) -> u64 {
        self.ticket += 1;
        self.ticket - 1
    }

    fn send_done(&mut self, random: u64) {
        while !self.done.is_empty() {
            let next = (random.rotate_left(self.done.len() as u32) % self.done.len() as u64) as usize;
            self.inbox.send(self.done.remove(next)).unwrap();
        }
    }

    /// Ends assignments, as [`Consumer::release`](crate::msource::consumer) does.
    fn release(&mut self, number: i32) {
        self.tracker.end(&partition(number));
        self.inbox.send(Inbox::Refuse { partition: partition(number), reply: None }).unwrap();
        self.slots.remove(&number);
    }
}

/// A worker makes lines for files that hide what they belong to.
fn hidden(mut made: Made, number: Option<i32>) -> Made {
    for piece in &mut made.pieces {
        piece.key.retries = number.is_none();
        piece.key.topic = number.map(|_| "t".into());
        piece.key.partition = number;
    }
    made
}

impl Home {
    fn new(index: usize) -> Self {
        Self {
            scratch: TempDir::new().unwrap(),
            store: Arc::default(),
            name: format!("h{index}"),
            cleared: BTreeSet::new(),
            run: None,
        }
    }

    fn data(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    fn journal(&self) -> PathBuf {
        self.scratch.path().join("journal")
    }

    /// Recovers, as the application does.
    fn recover(&self) -> (State, Journal, EventDir) {
        let mut contents = journal::read(&self.journal()).unwrap();
        let mut number = self.store.last().state.map_or(0, |state| state.number);
        let fresh = || State { home: self.name.clone(), incarnation: 1, ..State::default() };
        let state = contents.state.get_or_insert_with(fresh).clone();
        if number < state.number {
            let (mut frames, mut change) = (Vec::new(), StoreChange::default());
            let wanted = |frame: &Frame| frame.number().is_some_and(|number| number <= state.number);
            journal::history(&self.journal(), |frame| frames.extend(Some(frame).filter(wanted))).unwrap();
            queue_changes(frames, number, &mut change);
            change.state = state.clone();
            self.store.apply(&change).unwrap();
            number = state.number;
        }
        let dir = EventDir::open(&self.data()).unwrap();
        let mut source = MemStore(Mutex::new(vec![self.store.last()]));
        let recovered = recover(&contents, &dir, &mut source).unwrap().unwrap();
        let mut change = StoreChange::default();
        queue_changes(contents.tail.iter().cloned(), number, &mut change);
        change.state = recovered.state;
        change.state.visibility = Visibility::Sealed;
        let journal = Journal::begin(&self.journal(), &contents, &change.state).unwrap();
        self.store.apply(&change).unwrap();
        self.store.sync().unwrap();
        (change.state, journal, dir)
    }

    fn start(&mut self) {
        let (requests, seals) = unbounded();
        self.start_with(CommitPoint::Group(requests), seals);
    }

    fn start_with(&mut self, commit_point: CommitPoint, seals: Receiver<SealRequest>) {
        let (state, journal, dir) = self.recover();
        let template = NameTemplate::parse("{log_name}.{seq}", 1, "", config::TimeZone::Named(chrono_tz::UTC)).unwrap();
        let config = config::Sink { visibility: Visibility::Sealed, ..sink_config(&self.data()) };
        let now = Now { wall: 0, tick: Instant::now() };
        let sink = FileSink::new(dir, template, &config, &state.files, state.next_file, now);
        let room = Arc::clone(&sink.room);
        let (inbox, received) = unbounded();
        let (tracker, gauges, budget) =
            (Arc::default(), Arc::new(Gauges::new(state.clone())), Arc::new(Budget::new(1)));
        let delivery = Delivery::new(Parts {
            inbox: received,
            inbox_sender: inbox.clone(),
            journal,
            journal_dir: self.journal(),
            store: Arc::clone(&self.store) as Arc<dyn Store>,
            sink,
            state,
            tracker: Arc::clone(&tracker),
            gauges: Arc::clone(&gauges),
            budget: Arc::clone(&budget),
            spare: bounded(1).0,
            interval: Duration::from_millis(5),
            fsync: true,
            history: Duration::from_hours(1),
            sink_dir: self.data(),
            rotate: config.rotate.clone(),
            commit_point,
            claimed: Arc::new(Mutex::new(u64::MAX)),
            queue_bound: None,
        });
        let ended = delivery::spawn(delivery.unwrap()).unwrap();
        self.run = Some(Run {
            inbox,
            seals,
            ended,
            tracker,
            gauges,
            budget,
            room,
            ticket: 0,
            done: Vec::new(),
            slots: BTreeMap::new(),
            pending: BTreeSet::new(),
            generations: BTreeMap::new(),
            previous: BTreeMap::new(),
            asked: None,
            fenced: 0,
            lost: false,
            sends: 0,
        });
    }

    fn kill(&mut self) {
        let Some(run) = self.run.take() else { return };
        run.inbox.send(Inbox::End).unwrap();
        run.ended.recv_timeout(PATIENCE).unwrap().unwrap();
        drop(run);
        let deadline = Instant::now() + PATIENCE;
        while Arc::strong_count(&self.store) > 1 {
            assert!(Instant::now() < deadline, "the checkpoint thread ends");
            std::thread::yield_now();
        }
    }

    /// Takes back what was not synced: the store's last changes, the journal's last frames, bytes of hidden files.
    fn cut_power(&self, random: u64, changes: usize) {
        self.store.forget(changes);
        let Some(path) = fs::read_dir(self.journal()).unwrap().map(|entry| entry.unwrap().path()).max() else { return };
        let whole = fs::read(&path).unwrap();
        let contents = journal::read(&self.journal()).unwrap();
        let synced = |contents: &Contents| {
            let unsynced = |frame: &Frame| matches!(frame, Frame::Dropped { .. } | Frame::End { .. });
            let tail: Vec<_> = contents.tail.iter().filter(|frame| !unsynced(frame)).cloned().collect();
            (contents.state.clone(), tail)
        };
        let (_, end) = contents.end.unwrap();
        let mut cut = whole.clone();
        cut[(end - random % end.min(700)) as usize..].fill(0);
        fs::write(&path, &cut).unwrap();
        if synced(&journal::read(&self.journal()).unwrap()) != synced(&contents) {
            fs::write(&path, &whole).unwrap();
        }
        for (id, file) in contents.state.iter().flat_map(|state| &state.files) {
            let path = self.data().join(file.path());
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
}

struct World {
    homes: Vec<Home>,
    group: Group,
}

impl World {
    fn new() -> Self {
        Self { homes: (0..HOMES).map(Home::new).collect(), group: Group::new() }
    }

    fn run(&mut self, home: usize) -> &mut Run {
        self.homes[home].run.as_mut().expect("it runs")
    }

    fn is_running(&self, home: usize) -> bool {
        self.homes[home].run.is_some()
    }

    fn start(&mut self, home: usize) {
        if self.is_running(home) {
            return;
        }
        self.homes[home].start();
        for number in 0..PARTITIONS {
            if self.group.at(number).owner == home {
                // It joins again, which is a generation of its own.
                self.group.assign(number, home);
                self.given(number, home);
            }
        }
    }

    /// The member is told of its partition.
    fn given(&mut self, number: i32, home: usize) {
        let generation = self.group.at(number).generation;
        if let Some(run) = &mut self.homes[home].run {
            run.pending.insert(number);
            run.generations.insert(number, generation);
        }
    }

    fn sent(&self, home: usize, at: &Position, seal: u64) -> Sent {
        let run = self.homes[home].run.as_ref().expect("it runs");
        let number = at.partition.partition;
        let owner = Owner {
            mark: Mark { home: self.homes[home].name.clone(), incarnation: 1, number: seal },
            topic_id: at.topic_id.clone(),
            partitions: None,
            previous: run.previous.get(&number).cloned().unwrap_or_default(),
        };
        let offset = GroupOffset { offset: at.next, leader_epoch: -1, metadata: owner.to_string() };
        Sent { partition: number, generation: run.generations[&number], offset }
    }

    fn commit(&mut self, home: usize, at: &[Position], seal: u64) -> Vec<bool> {
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
    fn serve(&mut self, home: usize) {
        let run = self.run(home);
        if run.asked.is_none() {
            let Ok(SealRequest { number, positions }) = run.seals.try_recv() else { return };
            run.asked = Some(Asked { number, open: positions, sent: false });
        }
        let Some(mut asked) = run.asked.take() else { return };
        let (number, partition_of) = (asked.number, |position: &Position| position.partition.partition);
        let is_ours = |position: &Position| !run.lost && run.slots.contains_key(&partition_of(position));
        let (ours, gone): (Vec<_>, Vec<_>) = asked.open.drain(..).partition(is_ours);
        let tell = |run: &Run, position: &Position, verdict| {
            let partition = position.partition.clone();
            run.inbox.send(Inbox::Decided { number, partition, verdict, reply: None }).unwrap();
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
    fn wait(&mut self, home: usize, answered: &Receiver<()>, commits: u32) -> bool {
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
            if let Ok(outcome) = self.run(home).ended.try_recv() {
                panic!("the delivery ended: {outcome:?}");
            }
            assert!(Instant::now() < deadline, "an answer");
        }
    }

    #[track_caller]
    fn barrier(&mut self, home: usize, finish: Finish, commits: u32) -> bool {
        let run = self.run(home);
        run.room.store(u64::MAX, Ordering::SeqCst);
        run.send_done(0);
        let (reply, answered) = bounded(1);
        run.inbox.send(Inbox::Checkpoint { before: run.ticket, finish, reply }).unwrap();
        self.wait(home, &answered, commits)
    }

    fn settled(&mut self, home: usize) {
        self.barrier(home, Finish::No, u32::MAX);
    }

    fn judge(&mut self, home: usize, state: &State, number: i32, held: Held) -> bool {
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
        self.run(home).inbox.send(message).unwrap();
        self.wait(home, &answered, u32::MAX)
    }

    /// Asks about what is hidden of partitions that are not ours.
    fn look(&mut self, home: usize) {
        let state = self.run(home).state();
        for number in 0..PARTITIONS {
            let run = self.run(home);
            let ours = run.pending.contains(&number) || run.slots.contains_key(&number);
            if !ours && state.is_hidden(&partition(number)) {
                self.judge(home, &state, number, Held::NotByUs);
            }
        }
    }

    /// Finds out where pending partitions begin, and begins to read them.
    fn resolve(&mut self, home: usize) {
        while !self.run(home).pending.is_empty() {
            self.settled(home);
            let state = self.run(home).state();
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
    fn begin(&mut self, home: usize, state: &State, number: i32) -> bool {
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
            added: false,
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
        let epoch = run.tracker.begin(partition(number), at.next);
        run.slots.insert(number, (epoch, at.next));
        true
    }

    fn note(&mut self, home: usize, frame: Frame) {
        let (reply, answered) = bounded(1);
        let run = self.run(home);
        let ticket = run.take();
        run.inbox.send(Inbox::Note { ticket, frame, reply }).unwrap();
        self.wait(home, &answered, u32::MAX);
    }

    fn block(&mut self, home: usize, number: i32, records: i64) {
        if self.run(home).pending.contains(&number) {
            self.resolve(home);
        }
        let run = self.run(home);
        let Some((epoch, from)) = run.slots.get(&number).copied() else { return };
        let to = from + records;
        run.slots.insert(number, (epoch, to));
        let ticket = run.take();
        run.gauges.consumed(records as u64);
        run.budget.take(10);
        let source = Source::Partition { epoch, from, to: position(number, to) };
        run.done.push(hidden(Made::records(number, from, to), Some(number)).block(ticket, source, records as u64));
    }

    /// The first entries of the failure queue that may be touched.
    fn entries(&mut self, home: usize, count: usize) -> Vec<(u64, QueueEntry)> {
        self.settled(home);
        let state = self.run(home).state();
        let entries = self.homes[home].store.last().entries.into_iter();
        entries.filter(|(_, entry)| !state.is_open(&entry.partition, entry.offset)).take(count).collect()
    }

    fn retry(&mut self, home: usize, count: usize) {
        let entries = self.entries(home, count);
        let taken = entries.iter().map(|(key, entry)| (*key, entry.size())).collect();
        let run = self.run(home);
        let ticket = run.take();
        run.gauges.retried(entries.len() as u64);
        let records = entries.len() as u64;
        run.done.push(hidden(Made::entries(&entries), None).block(ticket, Source::Queue(taken), records));
    }

    fn clear(&mut self, home: usize, count: usize) {
        let entries = self.entries(home, count);
        let (reply, answered) = bounded(1);
        let removed = entries.iter().map(|(key, entry)| (*key, entry.size())).collect();
        self.run(home).inbox.send(Inbox::Queue { removed, cause: QueueCause::Cleared, reply }).unwrap();
        self.wait(home, &answered, u32::MAX);
        let cleared = entries.iter().map(|(_, entry)| (entry.partition.partition, entry.offset));
        self.homes[home].cleared.extend(cleared);
    }

    /// The group takes a partition back, and the owner gives it up, after so many attempts to commit.
    fn revoke(&mut self, number: i32, commits: u32) {
        let home = self.group.at(number).owner;
        if !self.is_running(home) {
            return;
        }
        self.run(home).pending.remove(&number);
        if self.run(home).slots.contains_key(&number) {
            self.barrier(home, Finish::Hidden(vec![partition(number)]), commits);
            self.run(home).release(number);
        }
    }

    /// The member finds out what it has lost.
    fn learn(&mut self, home: usize) {
        let Some(run) = &mut self.homes[home].run else { return };
        let group = &self.group;
        let generations = &run.generations;
        let is_lost = |number: &i32| {
            let member = group.at(*number);
            (member.owner, member.generation) != (home, generations[number])
        };
        run.pending.retain(|number| !is_lost(number));
        let lost: Vec<_> = run.slots.keys().copied().filter(is_lost).collect();
        for number in lost {
            run.release(number);
        }
        (run.lost, run.fenced) = (false, 0);
    }

    fn give(&mut self, number: i32, home: usize) {
        self.learn(home);
        self.group.assign(number, home);
        self.given(number, home);
    }

    fn kill(&mut self, home: usize, crash: &Crash) {
        if !self.is_running(home) {
            return;
        }
        self.homes[home].kill();
        if let Crash::Power(random, changes) = *crash {
            self.homes[home].cut_power(random, changes);
        }
    }

    fn step(&mut self, step: &Step) {
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
            Step::Deliver => self.group.deliver(|_| true),
            Step::Answers(answers) => self.group.answers.extend(answers),
            Step::Crash(home, crash) => self.kill(*home, crash),
            Step::On(..) => unreachable!("done above"),
        }
    }

    fn act(&mut self, home: usize, act: &Act) {
        match *act {
            Act::Block(number, records) => self.block(home, number, records),
            Act::Send(random) => self.run(home).send_done(random),
            Act::Full(room) => self.run(home).room.store(room, Ordering::SeqCst),
            Act::Barrier => self.settled(home),
            Act::Seal(commits) => {
                let ours = self.run(home).slots.keys().map(|number| partition(*number)).collect();
                self.barrier(home, Finish::Hidden(ours), commits);
            }
            Act::Stop => {
                self.barrier(home, Finish::Files, u32::MAX);
                self.homes[home].kill();
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
    fn check(mut self) {
        self.group.answers.clear();
        for home in 0..HOMES {
            self.homes[home].kill();
        }
        self.group.deliver(|_| true);
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
        for home in &mut self.homes {
            home.kill();
            found.take_in(home);
        }
        found.check(&self.group);
    }
}

/// What all homes have in the end.
#[derive(Default)]
struct Found {
    lines: BTreeMap<Vec<u8>, u32>,
    queued: BTreeMap<(i32, i64), u32>,
    /// Of each partition: from, to, home and number of each seal.
    ranges: BTreeMap<i32, BTreeSet<(i64, i64, String, u64)>>,
    written: u64,
    filtered: u64,
    consumed: u64,
}

impl Found {
    fn take_in(&mut self, home: &Home) {
        let (state, ..) = home.recover();
        assert!(state.seals.is_empty(), "everything is decided");
        let entries = home.store.last().entries;
        let waiting = entries.values().map(|entry| (entry.partition.partition, entry.offset));
        for record in waiting.chain(home.cleared.iter().copied()) {
            *self.queued.entry(record).or_default() += 1;
        }
        let totals = &state.totals;
        self.written += totals.written;
        self.filtered += totals.filtered[0];
        self.consumed += totals.consumed;
        assert_eq!(totals.queue_records, entries.len() as u64);
        assert_eq!(totals.queue_bytes, entries.values().map(QueueEntry::size).sum::<u64>());
        assert_eq!(totals.cleared, home.cleared.len() as u64);
        assert_eq!(totals.gaps, 0);
        let empty: BTreeSet<_> = state.files.values().filter(|file| file.length == 0).map(FileState::path).collect();
        for entry in fs::read_dir(home.data()).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let bytes = fs::read(home.data().join(&name)).unwrap();
            if name.starts_with('.') {
                assert!(bytes.is_empty() && empty.contains(&name), "{}: {name} is hidden still", home.name);
            } else if name.ends_with(manifest::SUFFIX) {
                self.take_in_manifest(home, &Manifest::parse(&bytes).unwrap());
            } else {
                assert!(home.data().join(manifest::name_for(&name)).try_exists().unwrap(), "{name} has a manifest");
                for line in bytes.split_inclusive(|byte| *byte == b'\n') {
                    *self.lines.entry(line.to_vec()).or_default() += 1;
                }
            }
        }
    }

    fn take_in_manifest(&mut self, home: &Home, manifest: &Manifest) {
        assert_eq!(manifest.home, home.name);
        if let Some(file) = &manifest.file {
            let bytes = fs::read(home.data().join(file)).unwrap();
            let lines = bytes.split_inclusive(|byte| *byte == b'\n').count() as u64;
            let told = (manifest.lines, manifest.bytes, manifest.crc32c);
            assert_eq!(told, (lines, bytes.len() as u64, crc32c::crc32c(&bytes)), "{file}");
        }
        if let manifest::Source::Range(range) = &manifest.source {
            let seal = (range.from, range.to, manifest.home.clone(), manifest.number);
            self.ranges.entry(range.partition).or_default().insert(seal);
        }
    }

    fn check(mut self, group: &Group) {
        let (mut written, mut filtered, mut consumed) = (0, 0, 0);
        for number in 0..PARTITIONS {
            let next = group.at(number).committed.as_ref().expect("it was committed").offset;
            let mut at = 0;
            for (from, to, home, seal) in self.ranges.remove(&number).unwrap_or_default() {
                assert_eq!(from, at, "partition {number}: the range [{from}, {to}) of {home}/{seal} follows");
                at = to;
            }
            assert_eq!(at, next, "partition {number}: the ranges reach the group's offset");
            for offset in 0..next {
                let times = self.lines.remove(&line(number, offset)).unwrap_or(0);
                let waiting = self.queued.remove(&(number, offset)).unwrap_or(0);
                let right = match fate(number, offset) {
                    Fate::Line(_) => (times, waiting) == (1, 0),
                    Fate::Filtered => (times, waiting) == (0, 0),
                    Fate::Rejected { cured: true } => times + waiting == 1,
                    Fate::Rejected { cured: false } => (times, waiting) == (0, 1),
                };
                assert!(right, "{number}/{offset}: {times} lines, {waiting} times in a queue");
                written += u64::from(times);
                filtered += u64::from(fate(number, offset) == Fate::Filtered);
                consumed += 1;
            }
        }
        let text: Vec<_> = self.lines.keys().map(|line| String::from_utf8_lossy(line).into_owned()).collect();
        assert!(text.is_empty(), "lines of nowhere: {text:?}");
        assert!(self.queued.is_empty(), "entries of nowhere: {:?}", self.queued);
        assert_eq!((self.written, self.filtered, self.consumed), (written, filtered, consumed));
    }
}

#[derive(Clone, Debug)]
enum Step {
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
enum Act {
    Block(i32, i64),
    Send(u64),
    Full(u64),
    Barrier,
    Seal(u32),
    Stop,
    Retry(usize),
    Clear(usize),
    Learn,
    Turn,
}

#[derive(Clone, Debug)]
enum Crash {
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
        4 => prop_oneof![1..4u32, Just(u32::MAX)].prop_map(Act::Seal),
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

fn step() -> impl Strategy<Value = Step> {
    let homes = || 0..HOMES;
    let crash = prop_oneof![
        Just(Crash::Kill),
        (any::<u64>(), 0..4usize).prop_map(|(random, changes)| Crash::Power(random, changes))
    ];
    prop_oneof![
        16 => (homes(), act()).prop_map(|(home, act)| Step::On(home, act)),
        1 => (0..PARTITIONS, 0..5u32).prop_map(|(number, commits)| Step::Revoke { number, commits }),
        3 => (0..PARTITIONS, homes(), 0..5u32).prop_map(|(number, to, commits)| Step::Move { number, to, commits }),
        2 => (homes(), homes()).prop_map(|(home, to)| Step::Evict { home, to }),
        1 => Just(Step::Deliver),
        3 => prop::collection::vec(answer(), 1..5).prop_map(Step::Answers),
        2 => (homes(), crash).prop_map(|(home, crash)| Step::Crash(home, crash)),
    ]
}

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
    assert_eq!(world.run(0).state().partitions[&partition(0)].growth.as_ref().map(|growth| growth.from), Some(0));
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
        run.send_done(0);
        wait_until("the block is written", || run.gauges.counts().in_flight == 0);
        let before = run.ticket;
        run.inbox.send(Inbox::Checkpoint { before, finish: Finish::No, reply: first.0 }).unwrap();
        run.release(0);
        run.inbox.send(Inbox::Checkpoint { before, finish: Finish::No, reply: second.0 }).unwrap();
        wait_until("everything is taken in while a checkpoint is being made", || run.inbox.is_empty());
    }
    second.1.recv_timeout(PATIENCE).unwrap();
    let here = run.state().partitions[&partition(0)].clone();
    assert_eq!((here.next, here.growth), (0, None));
    drop(store);
    world.check();
}

#[test]
fn hidden_lines_are_published_before_their_partition_stands_elsewhere() {
    let mut home = Home::new(0);
    home.start_with(CommitPoint::Journal, unbounded().1);
    let mut world = World { homes: vec![home], group: Group::new() };
    world.note(0, Frame::Start(position(0, 0)));
    for (from, to) in [(0, 20), (40, 60)] {
        let run = world.run(0);
        let epoch = run.tracker.begin(partition(0), from);
        run.slots.insert(0, (epoch, from));
        world.block(0, 0, to - from);
        world.settled(0);
        // The topic was made anew.
        world.note(0, Frame::Move { to: position(0, 40), cause: MoveCause::Recreated });
    }
    world.homes[0].kill();
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
    let state = world.run(0).state();
    assert_eq!((state.partitions[&partition(0)].next, state.totals.consumed), (40, 0));
    assert!(state.files.is_empty());
    world.homes[0].kill();
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
