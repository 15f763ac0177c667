//! The delivery thread, its checkpoints and its recovery together, fed by a source that never ends and crashed at random.
//!
//! The model knows what each record becomes. Whatever the crashes were, below the offset where a partition stands each record is
//! one line in the files, one filtered count or one entry of the failure queue, and above it there is none.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use proptest::prelude::*;

use super::*;
use crate::block::{DoneBlock, Lines, Rejected, Source};
use crate::config;
use crate::delivery::{self, Budget, Delivery, Error, Finish, Gauges, Inbox, Parts};
use crate::msink::file::{FileSink, Now};
use crate::msink::name::NameTemplate;
use crate::msource::journal::{self, Journal, QueueCause};
use crate::msource::store::{Store, StoreChange, StoreError, Walk};
use crate::msource::tracker::{Epoch, Tracker};
use crate::record::{Reason, Reject};

const PARTITIONS: i32 = 3;
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// A store in memory that remembers what it was after each change: a crash takes the last ones back.
#[derive(Debug, Default)]
pub(super) struct MemStore(pub(super) Mutex<Vec<Kept>>);

#[derive(Clone, Debug, Default)]
pub(super) struct Kept {
    pub(super) state: Option<State>,
    pub(super) entries: BTreeMap<u64, QueueEntry>,
}

impl MemStore {
    pub(super) fn last(&self) -> Kept {
        self.0.lock().unwrap().last().cloned().unwrap_or_default()
    }

    pub(super) fn forget(&self, changes: usize) {
        let mut kept = self.0.lock().unwrap();
        let left = kept.len().saturating_sub(changes).max(1).min(kept.len());
        kept.truncate(left);
    }
}

impl Store for MemStore {
    fn state(&self) -> Result<Option<State>, StoreError> {
        Ok(self.last().state)
    }

    fn apply(&self, change: &StoreChange) -> Result<(), StoreError> {
        let mut kept = self.last();
        kept.state = Some(change.state.clone());
        for key in &change.remove {
            kept.entries.remove(key);
        }
        kept.entries.extend(change.insert.iter().cloned());
        self.0.lock().unwrap().push(kept);
        Ok(())
    }

    fn entry(&self, key: u64) -> Result<Option<QueueEntry>, StoreError> {
        Ok(self.last().entries.get(&key).cloned())
    }

    fn entries(&self, from: u64, each: &mut dyn FnMut(u64, QueueEntry) -> Walk) -> Result<(), StoreError> {
        for (key, entry) in self.last().entries.range(from..) {
            if each(*key, entry.clone()) == Walk::Stop {
                break;
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        let mut kept = self.0.lock().unwrap();
        let last = kept.pop();
        *kept = last.into_iter().collect();
        Ok(())
    }
}

/// What a record becomes; its first line, and whether a retry cures it.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Fate {
    Line(i32),
    Filtered,
    Rejected { cured: bool },
}

pub(super) fn fate(partition: i32, offset: i64) -> Fate {
    match (offset * 7 + i64::from(partition) * 3) % 11 {
        0 => Fate::Filtered,
        1 => Fate::Rejected { cured: true },
        2 => Fate::Rejected { cured: false },
        other => Fate::Line((other % 3) as i32),
    }
}

pub(super) fn line(partition: i32, offset: i64) -> Vec<u8> {
    format!("{{\"p\":{partition},\"o\":{offset}}}\n").into_bytes()
}

/// What a worker would make of records.
#[derive(Default)]
pub(super) struct Made {
    pub(super) pieces: Vec<Lines>,
    filtered: [u64; 3],
    rejects: Vec<Rejected>,
}

impl Made {
    fn line(&mut self, file: i32, partition: i32, offset: i64) {
        let key = FileKey { log_name: Some(file.to_string()), ..FileKey::default() };
        let index = self.pieces.iter().position(|piece| piece.key == key).unwrap_or_else(|| {
            self.pieces.push(Lines { key, bytes: Vec::new(), lines: 0, crc: 0, rejects: Vec::new() });
            self.pieces.len() - 1
        });
        let piece = &mut self.pieces[index];
        piece.bytes.extend(line(partition, offset));
        piece.lines += 1;
        piece.crc = crc32c::crc32c(&piece.bytes);
    }

    pub(super) fn records(number: i32, from: i64, to: i64) -> Self {
        let mut made = Self::default();
        for offset in from..to {
            match fate(number, offset) {
                Fate::Line(file) => made.line(file, number, offset),
                Fate::Filtered => made.filtered[0] += 1,
                Fate::Rejected { .. } => made.rejects.push(Rejected { key: None, entry: entry(number, offset) }),
            }
        }
        made
    }

    pub(super) fn entries(entries: &[(u64, QueueEntry)]) -> Self {
        let mut made = Self::default();
        for (key, entry) in entries {
            match fate(entry.partition.partition, entry.offset) {
                Fate::Rejected { cured: true } => made.line(9, entry.partition.partition, entry.offset),
                _ => made.rejects.push(Rejected { key: Some(*key), entry: entry.clone() }),
            }
        }
        made
    }

    pub(super) fn block(self, ticket: u64, source: Source, records: u64) -> Inbox {
        let Self { pieces, filtered, rejects } = self;
        DoneBlock { ticket, source, recipe: "r".into(), pieces, records, filtered, rejects, cost: 10 }.into()
    }
}

pub(super) fn entry(number: i32, offset: i64) -> QueueEntry {
    QueueEntry {
        partition: partition(number),
        topic_id: "id".into(),
        offset,
        timestamp: None,
        key: None,
        headers: Vec::new(),
        value: vec![b'x'; 300],
        reject: Reject::new(Reason::BadJson, "no object"),
        attempts: 1,
        first_failure: 0,
        last_failure: 0,
        recipe: "r".into(),
    }
}

impl Regenerate for MemStore {
    fn lines(&mut self, block: &Block) -> Result<Regenerated, RecoveryError> {
        let made = match &block.source {
            BlockSource::Offsets { from, to } => Made::records(to.partition.partition, *from, to.next),
            BlockSource::Queue(taken) => {
                let kept = self.last().entries;
                let entries: Option<Vec<_>> =
                    taken.iter().map(|(key, _)| Some((*key, kept.get(key)?.clone()))).collect();
                let Some(entries) = entries else { return Ok(Regenerated::Gone("no entry".into())) };
                Made::entries(&entries)
            }
        };
        Ok(Regenerated::Lines(made.pieces.into_iter().map(|piece| piece.bytes).collect()))
    }
}

/// What is left of the home while nothing runs.
struct Home {
    scratch: TempDir,
    store: Arc<MemStore>,
    /// Keys of the queue that an operator cleared, and the records they were.
    cleared: BTreeSet<(i32, i64)>,
}

/// A delivery that runs.
struct Run {
    inbox: Sender<Inbox>,
    ended: Receiver<Result<(), Error>>,
    tracker: Arc<Tracker>,
    gauges: Arc<Gauges>,
    budget: Arc<Budget>,
    /// Bytes until the disk is full.
    room: Arc<AtomicU64>,
    ticket: u64,
    /// Sent by the workers in any order.
    done: Vec<Inbox>,
    epochs: HashMap<i32, (Epoch, i64)>,
}

pub(super) fn sink_config(dir: &std::path::Path) -> config::Sink {
    config::Sink {
        mode: config::Mode::Batch,
        dir: dir.to_owned(),
        file: "{log_name}.{seq}".into(),
        batch: config::Batch { lines: 1, bytes: 1, linger: Duration::ZERO },
        rotate: config::Rotate { size: 400, age: Duration::from_hours(1), idle: Duration::from_hours(1) },
        fsync: true,
        visibility: config::Visibility::Live,
        compression: config::Compression::None,
        keep_age: None,
        keep_bytes: None,
        max_open_files: 2,
        permissions: 0o640,
    }
}

impl Home {
    fn new() -> Self {
        Self { scratch: TempDir::new().unwrap(), store: Arc::default(), cleared: BTreeSet::new() }
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
        let state =
            contents.state.get_or_insert_with(|| State { home: "h".into(), incarnation: 1, ..State::default() });
        let numbered = |frame: &Frame| match frame {
            Frame::Block(block) => Some(block.number),
            Frame::Queue(change) => Some(change.number),
            _ => None,
        };
        if number < state.number {
            let (mut frames, mut change) = (Vec::new(), StoreChange::default());
            let durable = state.number;
            journal::history(&self.journal(), |frame| {
                frames.extend(Some(frame).filter(|frame| numbered(frame).is_some_and(|number| number <= durable)));
            })
            .unwrap();
            delivery::recovery::queue_changes(frames, number, &mut change);
            change.state = state.clone();
            self.store.apply(&change).unwrap();
            number = durable;
        }
        let dir = EventDir::open(&self.data()).unwrap();
        let mut source = MemStore(Mutex::new(vec![self.store.last()]));
        let recovered = recover(&contents, &dir, &mut source).unwrap().unwrap();
        let mut change = StoreChange::default();
        delivery::recovery::queue_changes(contents.tail.iter().cloned(), number, &mut change);
        change.state = recovered.state.clone();
        assert_eq!(change.state.totals.gaps, 0, "nothing is lost");
        let journal = Journal::begin(&self.journal(), &contents, &change.state).unwrap();
        self.store.apply(&change).unwrap();
        (change.state, journal, dir)
    }

    fn start(&self) -> Run {
        let (state, journal, dir) = self.recover();
        let template = NameTemplate::parse("{log_name}.{seq}", 1, "", config::TimeZone::Named(chrono_tz::UTC)).unwrap();
        let now = Now { wall: 0, tick: Instant::now() };
        let sink = FileSink::new(dir, template, &sink_config(&self.data()), &state.files, state.next_file, now);
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
            state: state.clone(),
            tracker: Arc::clone(&tracker),
            gauges: Arc::clone(&gauges),
            budget: Arc::clone(&budget),
            spare: bounded(1).0,
            interval: Duration::from_millis(5),
            fsync: true,
            history: Duration::from_hours(1),
            sink_dir: self.data(),
            rotate: sink_config(&self.data()).rotate,
            commit_point: delivery::CommitPoint::Journal,
            claimed: Arc::new(Mutex::new(u64::MAX)),
            queue_bound: None,
        });
        let ended = delivery::spawn(delivery.unwrap()).unwrap();
        let mut run =
            Run { inbox, ended, tracker, gauges, budget, room, ticket: 0, done: Vec::new(), epochs: HashMap::new() };
        for number in 0..PARTITIONS {
            let next = state.partitions.get(&partition(number)).map_or(0, |state| state.next);
            run.begin(number, next);
        }
        run
    }

    /// Ends the delivery where it is, like a kill: what it has not been sent in order is lost with it.
    fn kill(&self, run: Run) {
        run.inbox.send(Inbox::End).unwrap();
        run.ended.recv_timeout(PATIENCE).unwrap().unwrap();
        drop(run);
        let deadline = Instant::now() + PATIENCE;
        while Arc::strong_count(&self.store) > 1 {
            assert!(Instant::now() < deadline, "the checkpoint thread ends");
            std::thread::yield_now();
        }
    }

    /// Takes back what was not synced: bytes of files become holes or are missing, the journal ends earlier.
    fn cut_power(&self, random: u64) {
        let Some(path) = self.last_segment() else { return };
        let whole = fs::read(&path).unwrap();
        let contents = journal::read(&self.journal()).unwrap();
        let synced = |contents: &Contents| {
            let state = contents.state.clone();
            let last = contents.tail.iter().rposition(|frame| !matches!(frame, Frame::Block(_) | Frame::End { .. }));
            (state, contents.tail[..last.map_or(0, |last| last + 1)].to_vec())
        };
        let durable = contents.state.as_ref().map(|state| state.files.clone()).unwrap_or_default();
        let (_, end) = contents.end.unwrap();
        let mut cut = whole.clone();
        cut[(end - random % end.min(700)) as usize..].fill(0);
        fs::write(&path, &cut).unwrap();
        if synced(&journal::read(&self.journal()).unwrap()) != synced(&contents) {
            fs::write(&path, &whole).unwrap();
        }
        for frame in &contents.tail {
            let Frame::Block(block) = frame else { continue };
            for (index, piece) in block.pieces.iter().enumerate() {
                let name = contents.tail.iter().find_map(|frame| match frame {
                    Frame::File(intent) if intent.id == piece.file => Some(intent.name.clone()),
                    _ => None,
                });
                let Some(name) = durable.get(&piece.file).map(|file| file.name.clone()).or(name) else { continue };
                let mut content = fs::read(self.data().join(&name)).unwrap();
                let (from, to) = (piece.position as usize, (piece.position + piece.length) as usize);
                match (random >> ((block.number + index as u64) % 60)) % 4 {
                    0 => content.truncate(from + (random % piece.length) as usize),
                    1 if content.len() >= to => content[from + (random % piece.length) as usize..to].fill(0),
                    _ => {}
                }
                fs::write(self.data().join(name), content).unwrap();
            }
        }
    }

    fn last_segment(&self) -> Option<PathBuf> {
        fs::read_dir(self.journal()).unwrap().map(|entry| entry.unwrap().path()).max()
    }

    /// Every record below where its partition stands is accounted for once, and nothing else is there.
    fn check(&self) {
        let (state, ..) = self.recover();
        let mut lines: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
        for entry in fs::read_dir(self.data()).unwrap() {
            let content = fs::read(entry.unwrap().path()).unwrap();
            for line in content.split_inclusive(|byte| *byte == b'\n') {
                *lines.entry(line.to_vec()).or_default() += 1;
            }
        }
        let mut queued: BTreeMap<(i32, i64), u32> = BTreeMap::new();
        let entries = self.store.last().entries;
        for entry in entries.values() {
            *queued.entry((entry.partition.partition, entry.offset)).or_default() += 1;
        }
        let (mut written, mut filtered, mut consumed) = (0, 0, 0);
        for (of, standing) in &state.partitions {
            for offset in 0..standing.next {
                let record = (of.partition, offset);
                let times = lines.remove(&line(of.partition, offset)).unwrap_or(0);
                let waiting = queued.remove(&record).unwrap_or(0);
                let cleared = u32::from(self.cleared.contains(&record));
                let outcome = (times, waiting + cleared);
                let right = match fate(of.partition, offset) {
                    Fate::Line(_) => outcome == (1, 0),
                    Fate::Filtered => outcome == (0, 0),
                    Fate::Rejected { cured: true } => outcome == (1, 0) || outcome == (0, 1),
                    Fate::Rejected { cured: false } => outcome == (0, 1),
                };
                assert!(right, "{record:?}: {times} lines, {waiting} times in the queue, {cleared} times cleared");
                written += u64::from(times);
                filtered += u64::from(fate(of.partition, offset) == Fate::Filtered);
                consumed += 1;
            }
        }
        let text: Vec<_> = lines.keys().map(|line| String::from_utf8_lossy(line).into_owned()).collect();
        assert!(lines.is_empty(), "lines of nowhere: {text:?}");
        assert!(queued.is_empty(), "entries of nowhere: {queued:?}");
        let totals = &state.totals;
        assert_eq!((totals.written, totals.filtered[0], totals.consumed), (written, filtered, consumed));
        assert_eq!(totals.queue_records, entries.len() as u64);
        assert_eq!(totals.queue_bytes, entries.values().map(QueueEntry::size).sum::<u64>());
        assert_eq!(totals.cleared, self.cleared.len() as u64);
        for file in state.files.values() {
            assert_eq!(fs::metadata(self.data().join(&file.name)).unwrap().len(), file.length);
        }
    }
}

impl Run {
    fn begin(&mut self, number: i32, next: i64) {
        let epoch = self.tracker.begin(partition(number), next);
        self.epochs.insert(number, (epoch, next));
    }

    fn take(&mut self) -> u64 {
        self.ticket += 1;
        self.ticket - 1
    }

    fn block(&mut self, number: i32, records: i64) {
        let ticket = self.take();
        let (epoch, from) = self.epochs[&number];
        let to = from + records;
        self.epochs.insert(number, (epoch, to));
        self.gauges.consumed(records as u64);
        self.budget.take(10);
        let source = Source::Partition { epoch, from, to: position(number, to) };
        self.done.push(Made::records(number, from, to).block(ticket, source, records as u64));
    }

    /// Sends what is done, in an order of chance; keeps the last one back when told to.
    fn send(&mut self, random: u64) {
        while !self.done.is_empty() {
            let next = (random.rotate_left(self.done.len() as u32) % self.done.len() as u64) as usize;
            self.inbox.send(self.done.remove(next)).unwrap();
        }
    }

    #[track_caller]
    fn answered(reply: &Receiver<()>) {
        reply.recv_timeout(PATIENCE).expect("an answer");
    }

    fn fill_disk(&self, room: u64) {
        self.room.store(room, Ordering::SeqCst);
    }

    /// Makes everything durable, on a disk that has room again.
    fn barrier(&mut self, finish: Finish) {
        self.fill_disk(u64::MAX);
        self.send(0);
        let (reply, answered) = bounded(1);
        self.inbox.send(Inbox::Checkpoint { before: self.ticket, finish, reply }).unwrap();
        Self::answered(&answered);
    }

    fn step(&mut self, home: &mut Home, step: &Step) {
        match *step {
            Step::Block(number, records) => self.block(number, records),
            Step::Send(random) => self.send(random),
            Step::Full(room) => self.fill_disk(room),
            Step::Barrier => self.barrier(Finish::No),
            Step::Finish => self.barrier(Finish::Files),
            Step::Lose(number) => {
                // What is in flight belongs to an assignment that is over; the next one begins where it is durable.
                self.tracker.end(&partition(number));
                self.barrier(Finish::No);
                let next = self.gauges.durable().state.partitions.get(&partition(number)).map_or(0, |state| state.next);
                self.begin(number, next);
            }
            Step::Retry(count) => {
                self.barrier(Finish::No);
                let entries: Vec<_> = home.store.last().entries.into_iter().take(count).collect();
                let taken = entries.iter().map(|(key, entry)| (*key, entry.size())).collect();
                let ticket = self.take();
                self.gauges.retried(entries.len() as u64);
                let records = entries.len() as u64;
                self.done.push(Made::entries(&entries).block(ticket, Source::Queue(taken), records));
            }
            Step::Clear(count) => {
                self.barrier(Finish::No);
                let entries: Vec<_> = home.store.last().entries.into_iter().take(count).collect();
                let (reply, answered) = bounded(1);
                let removed = entries.iter().map(|(key, entry)| (*key, entry.size())).collect();
                self.inbox.send(Inbox::Queue { removed, cause: QueueCause::Cleared, reply }).unwrap();
                Self::answered(&answered);
                home.cleared.extend(entries.iter().map(|(_, entry)| (entry.partition.partition, entry.offset)));
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Block(i32, i64),
    Send(u64),
    Full(u64),
    Barrier,
    Finish,
    Lose(i32),
    Retry(usize),
    Clear(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0..PARTITIONS, 1..30i64).prop_map(|(number, records)| Step::Block(number, records)),
        4 => any::<u64>().prop_map(Step::Send),
        2 => (0..600u64).prop_map(Step::Full),
        1 => Just(Step::Barrier),
        1 => Just(Step::Finish),
        1 => (0..PARTITIONS).prop_map(Step::Lose),
        2 => (1..6usize).prop_map(Step::Retry),
        1 => (1..3usize).prop_map(Step::Clear),
    ]
}

#[derive(Clone, Debug)]
enum Crash {
    Kill,
    /// With this much chance, and so many changes of the store taken back.
    Power(u64, usize),
}

fn crash() -> impl Strategy<Value = Crash> {
    prop_oneof![
        Just(Crash::Kill),
        (any::<u64>(), 0..4usize).prop_map(|(random, changes)| Crash::Power(random, changes))
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn every_record_is_accounted_for_once_whatever_crashes(
        lives in prop::collection::vec((prop::collection::vec(step(), 0..25), crash()), 1..5)
    ) {
        let mut home = Home::new();
        for (steps, crash) in lives {
            let mut run = home.start();
            for step in &steps {
                run.step(&mut home, step);
            }
            home.kill(run);
            if let Crash::Power(random, changes) = crash {
                home.store.forget(changes);
                home.cut_power(random);
            }
            home.check();
        }
    }
}

#[track_caller]
pub(super) fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

/// A home with some entries in its failure queue, whose disk is full in the middle of a block.
fn stalled() -> (Home, Run, Vec<(u64, u64)>) {
    let home = Home::new();
    let mut run = home.start();
    run.block(0, 20);
    run.barrier(Finish::No);
    let entries = home.store.last().entries.iter().map(|(key, entry)| (*key, entry.size())).collect();
    run.fill_disk(30);
    run.block(0, 20);
    run.block(1, 20);
    run.send(0);
    wait_until("the delivery stalls", || run.gauges.stalled().is_some());
    (home, run, entries)
}

#[test]
fn a_removal_does_not_make_a_half_written_block_durable() {
    let (home, run, removed) = stalled();
    let (reply, answered) = bounded(1);
    run.inbox.send(Inbox::Queue { removed, cause: QueueCause::Cleared, reply }).unwrap();
    home.kill(run);
    assert!(answered.try_recv().is_err(), "nobody was told that they are removed");
    home.check();
}

#[test]
fn a_removal_during_a_stall_is_answered_when_the_disk_has_room_again() {
    let (mut home, run, removed) = stalled();
    let (reply, answered) = bounded(1);
    let entries = home.store.last().entries;
    home.cleared.extend(entries.values().map(|entry| (entry.partition.partition, entry.offset)));
    run.inbox.send(Inbox::Queue { removed, cause: QueueCause::Cleared, reply }).unwrap();
    run.fill_disk(u64::MAX);
    Run::answered(&answered);
    assert_eq!(run.gauges.stalled(), None);
    home.kill(run);
    home.check();
}

#[test]
fn a_note_and_a_barrier_wait_for_the_blocks_before_them() {
    let (home, mut run, _) = stalled();
    let (reply, halfway) = bounded(1);
    run.inbox.send(Inbox::Checkpoint { before: run.ticket - 1, finish: Finish::No, reply }).unwrap();
    let ticket = run.take();
    let (reply, noted) = bounded(1);
    run.inbox.send(Inbox::Note { ticket, frame: Frame::Start(position(7, 5)), reply }).unwrap();
    let (reply, durable) = bounded(1);
    run.inbox.send(Inbox::Checkpoint { before: run.ticket, finish: Finish::Files, reply }).unwrap();
    // An answer to a later message shows that the earlier ones were looked at.
    let (reply, early) = bounded(1);
    run.inbox.send(Inbox::Checkpoint { before: 0, finish: Finish::No, reply }).unwrap();
    Run::answered(&early);
    let unanswered = [&halfway, &noted, &durable].iter().all(|answer| answer.try_recv().is_err());
    assert!(unanswered, "the block before them is half-written");
    run.fill_disk(u64::MAX);
    for answer in [&halfway, &noted, &durable] {
        Run::answered(answer);
    }
    let state = run.gauges.durable().state.clone();
    assert_eq!((state.partitions[&partition(0)].next, state.partitions[&partition(7)].next), (40, 5));
    assert!(state.files.is_empty(), "every file was finished");
    let counts = run.gauges.counts();
    assert_eq!((counts.in_flight, run.budget.used()), (0, 0));
    assert_eq!(counts.consumed, counts.written + counts.filtered[0] + counts.rejected.iter().sum::<u64>());
    home.kill(run);
}

#[test]
fn work_of_an_assignment_that_is_over_is_dropped_and_given_back() {
    let home = Home::new();
    let mut run = home.start();
    run.block(0, 20);
    run.tracker.end(&partition(0));
    run.barrier(Finish::No);
    let counts = run.gauges.counts();
    assert_eq!((counts.consumed, counts.in_flight, run.budget.used()), (0, 0, 0));
    assert!(!run.gauges.durable().state.partitions.contains_key(&partition(0)));
    home.kill(run);
    home.check();
}

#[test]
fn a_block_that_leaves_a_hole_ends_the_delivery_before_anything_is_written() {
    let home = Home::new();
    let mut run = home.start();
    run.begin(0, 5);
    run.epochs.get_mut(&0).unwrap().1 = 6;
    run.block(0, 3);
    run.send(0);
    let error = run.ended.recv_timeout(PATIENCE).unwrap().unwrap_err();
    assert!(matches!(error, Error::NotNext { from: 6, expected: 5, .. }), "{error}");
    drop(run);
    wait_until("the checkpoint thread ends", || Arc::strong_count(&home.store) == 1);
    home.check();
}
