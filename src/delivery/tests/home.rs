//! A home whose delivery runs, is crashed, and recovers, as the application does it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::model::{Made, MemStore, PATIENCE, wait_until};
use super::*;
use crate::block::{Place, Source};
use crate::config;
use crate::delivery::behind::queue_changes;
use crate::delivery::{self, Budget, CommitPoint, Delivery, Error, Finish, Gauges, Inbox, Parts, Verdict};
use crate::msink::file::{FileSink, Now};
use crate::msink::name::NameTemplate;
use crate::msource::journal::{self, History, Journal, QueueCause};
use crate::msource::store::{Store, StoreChange};
use crate::msource::tracker::{Epoch, Tracker};

/// What is left of a home while nothing runs.
pub(super) struct Home {
    pub(super) scratch: TempDir,
    pub(super) store: Arc<MemStore>,
    pub(super) name: String,
    /// Whether it hides its files.
    pub(super) visibility: Visibility,
    /// Records that an operator cleared from the failure queue.
    pub(super) cleared: BTreeSet<(i32, i64)>,
    /// Bytes of the failure queue above which the oldest entries are dropped.
    pub(super) queue_bound: Option<u64>,
}

/// A delivery that runs.
pub(super) struct Work {
    pub(super) inbox: Sender<Inbox>,
    pub(super) ended: Receiver<Result<(), Error>>,
    pub(super) tracker: Arc<Tracker>,
    pub(super) gauges: Arc<Gauges>,
    pub(super) budget: Arc<Budget>,
    /// Bytes until the disk is full.
    pub(super) room: Arc<AtomicU64>,
    pub(super) ticket: u64,
    /// Sent by the workers in any order.
    pub(super) done: Vec<Inbox>,
    /// The assignments, and where the next block of each begins.
    pub(super) slots: BTreeMap<i32, (Epoch, i64)>,
    visibility: Visibility,
}

fn sink_config(dir: PathBuf, visibility: Visibility) -> config::Sink {
    config::Sink {
        mode: config::Mode::Batch,
        dir,
        file: "{log_name}.{seq}".into(),
        batch: config::Batch { lines: 1, bytes: 1, linger: Duration::ZERO },
        rotate: config::Rotate { size: 400, age: Duration::from_hours(1), idle: Duration::from_hours(1) },
        fsync: true,
        visibility,
        compression: config::Compression::None,
        keep_age: None,
        keep_bytes: None,
        max_open_files: 2,
        permissions: 0o640,
    }
}

impl Home {
    pub(super) fn new(name: &str, visibility: Visibility) -> Self {
        let (scratch, store) = (TempDir::new().unwrap(), Arc::default());
        Self { scratch, store, name: name.into(), visibility, cleared: BTreeSet::new(), queue_bound: None }
    }

    pub(super) fn data(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    pub(super) fn journal(&self) -> PathBuf {
        self.scratch.path().join("journal")
    }

    /// Recovers, as the application does.
    pub(super) fn recover(&self) -> (State, Journal, EventDir) {
        let mut contents = journal::read(&self.journal()).unwrap();
        let mut number = self.store.last().state.map_or(0, |state| state.number);
        let fresh = || State { home: self.name.clone(), incarnation: 1, ..State::default() };
        let state = contents.state.get_or_insert_with(fresh).clone();
        if number < state.number {
            let (mut frames, mut change) = (Vec::new(), StoreChange::default());
            let wanted = |frame: &Frame| frame.number().is_some_and(|number| number <= state.number);
            journal::history(&self.journal(), 0, |frame| frames.extend(Some(frame).filter(wanted))).unwrap();
            queue_changes(frames, number, &mut change);
            change.state = state.clone();
            self.store.apply(&change).unwrap();
            number = state.number;
        }
        let dir = EventDir::open(&self.data()).unwrap();
        let mut source = MemStore(Mutex::new(vec![self.store.last()]), AtomicU64::default());
        let recovered = recover(&contents, &dir, &mut source, Trust::Own).unwrap().unwrap();
        let mut change = StoreChange::default();
        queue_changes(contents.tail.iter().cloned(), number, &mut change);
        change.state = recovered.state;
        change.state.visibility = self.visibility;
        let journal = Journal::begin(&self.journal(), &contents, &change.state).unwrap();
        self.store.apply(&change).unwrap();
        self.store.sync().unwrap();
        (change.state, journal, dir)
    }

    pub(super) fn start(&self, commit_point: CommitPoint) -> Work {
        let (state, journal, dir) = self.recover();
        let template = NameTemplate::parse("{log_name}.{seq}", 1, "", config::TimeZone::UTC).unwrap();
        let config = sink_config(self.data(), self.visibility);
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
            history: History { age: Duration::from_hours(1), bytes: u64::MAX },
            sink_dir: self.data(),
            rotate: config.rotate,
            commit_point,
            claimed: Arc::new(Mutex::new(u64::MAX)),
            witness: None,
            queue_bound: self.queue_bound,
        });
        let ended = delivery::spawn(delivery.unwrap()).unwrap();
        let (slots, done, visibility) = (BTreeMap::new(), Vec::new(), self.visibility);
        Work { inbox, ended, tracker, gauges, budget, room, ticket: 0, done, slots, visibility }
    }

    /// Ends the delivery where it is, like a kill: what it has not been sent in order is lost with it.
    pub(super) fn kill(&self, work: Work) {
        work.inbox.send(Inbox::End).unwrap();
        work.ended.recv_timeout(PATIENCE).unwrap().unwrap();
        drop(work);
        wait_until("the checkpoint thread ends", || Arc::strong_count(&self.store) == 1);
    }

    /// The first entries of the failure queue that may be touched.
    pub(super) fn entries(&self, state: &State, count: usize) -> Vec<(u64, QueueEntry)> {
        let entries = self.store.last().entries.into_iter();
        entries.filter(|(key, entry)| !state.is_open(*key, entry)).take(count).collect()
    }

    pub(super) fn clear(&mut self, entries: &[(u64, QueueEntry)]) {
        self.cleared.extend(entries.iter().map(|(_, entry)| (entry.partition.partition, entry.offset)));
    }

    pub(super) fn last_segment(&self) -> Option<PathBuf> {
        fs::read_dir(self.journal()).unwrap().map(|entry| entry.unwrap().path()).max()
    }
}

impl Work {
    /// The state of the last checkpoint.
    pub(super) fn state(&self) -> State {
        self.gauges.durable().state.clone()
    }

    /// Begins an assignment; false while a range of the partition is not decided.
    pub(super) fn begin(&mut self, number: i32, next: i64) -> bool {
        let begun = self.tracker.begin(partition(number), next);
        begun.is_some_and(|epoch| self.slots.insert(number, (epoch, next)).is_none())
    }

    pub(super) fn take(&mut self) -> u64 {
        self.ticket += 1;
        self.ticket - 1
    }

    /// A worker makes a block of so many records, and hands on the first of them as a part when there are several.
    pub(super) fn block(&mut self, number: i32, records: i64) {
        let ticket = self.take();
        let (epoch, begin) = self.slots[&number];
        let end = begin + records;
        self.slots.insert(number, (epoch, end));
        self.gauges.consumed(records as u64);
        let middle = begin + if records > 2 { records / 2 } else { 0 };
        for (part, (from, to)) in
            [(begin, middle), (middle, end)].into_iter().filter(|(from, to)| from < to).enumerate()
        {
            self.budget.take(10);
            let source = Source::Partition { epoch, from, to: position(number, to) };
            let made = self.keyed(Made::records(number, from, to), Some(number));
            let place = Place { ticket, part: part as u32 };
            self.done.push(made.block(place, to == end, source, (to - from) as u64));
        }
    }

    /// A worker makes a block of entries of the failure queue.
    pub(super) fn retry(&mut self, entries: &[(u64, QueueEntry)]) {
        let taken = entries.iter().map(|(key, entry)| (*key, entry.size())).collect();
        let (ticket, records) = (self.take(), entries.len() as u64);
        self.gauges.retried(records);
        let made = self.keyed(Made::entries(entries), None);
        self.done.push(made.block(Place::of(ticket), true, Source::Queue(taken), records));
    }

    /// Hidden files do not mix what their lines belong to.
    fn keyed(&self, mut made: Made, number: Option<i32>) -> Made {
        if self.visibility == Visibility::Sealed {
            for piece in &mut made.pieces {
                piece.key.retries = number.is_none();
                piece.key.topic = number.map(|_| "t".into());
                piece.key.partition = number;
            }
        }
        made
    }

    /// Sends what is done, in an order of chance.
    pub(super) fn send(&mut self, random: u64) {
        while !self.done.is_empty() {
            let next = (random.rotate_left(self.done.len() as u32) % self.done.len() as u64) as usize;
            self.inbox.send(self.done.remove(next)).unwrap();
        }
    }

    pub(super) fn fill_disk(&self, room: u64) {
        self.room.store(room, Ordering::SeqCst);
    }

    /// Asks for everything to become durable, on a disk that has room again.
    pub(super) fn checkpoint(&mut self, finish: Finish) -> Receiver<()> {
        self.fill_disk(u64::MAX);
        self.send(0);
        let (reply, answered) = bounded(1);
        self.inbox.send(Inbox::Checkpoint { before: self.ticket, finish, reply }).unwrap();
        answered
    }

    /// Asks for a note in its place among the blocks.
    pub(super) fn note(&mut self, frame: Frame) -> Receiver<()> {
        let (reply, answered) = bounded(1);
        let ticket = self.take();
        self.inbox.send(Inbox::Note { ticket, frame, reply }).unwrap();
        answered
    }

    /// Asks for what is answered at once: everything sent before was looked at.
    pub(super) fn looked(&self) {
        let (reply, answered) = bounded(1);
        let (verdict, reply) = (Verdict::Open, Some(reply));
        self.inbox.send(Inbox::Decided { number: u64::MAX, partition: partition(0), verdict, reply }).unwrap();
        answered.recv_timeout(PATIENCE).unwrap();
    }

    /// Asks for entries to be taken out of the failure queue.
    pub(super) fn remove(&self, removed: Vec<(u64, u64)>) -> Receiver<()> {
        let (reply, answered) = bounded(1);
        self.inbox.send(Inbox::Queue { removed, cause: QueueCause::Cleared, reply }).unwrap();
        answered
    }
}
