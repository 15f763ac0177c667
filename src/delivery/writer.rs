//! The delivery thread: takes blocks in order, writes them, and decides when to make a checkpoint.

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::checkpoint::{Checkpointer, Finished, Job};
use super::seal::Sealing;
use super::{Budget, CommitPoint, Error, Finish, Gauges, Inbox};
use crate::block::{DoneBlock, Lines, Source};
use crate::config;
use crate::msink::dir::blames_name;
use crate::msink::file::{FileSink, HiddenGone, Ledger, Now, RotateReason, SyncFailed};
use crate::msource::journal::{
    Block, BlockSource, FileIntent, Frame, Journal, Piece, QueueCause, QueueChange, QueueEntry, State,
};
use crate::msource::store::{Store, StoreChange, Walk};
use crate::msource::tracker::{Refusal, Tracker};
use crate::transform::worker::recycle;

/// How often files are looked at for rotation.
const ROTATION_TICK: Duration = Duration::from_millis(250);

/// Entries of the failure queue dropped together: one frame of the journal.
const DROP_MAX: usize = 10_000;

/// How often the log tells of dropped entries.
const TELL_INTERVAL: Duration = Duration::from_secs(10);

/// How often old segments of the journal are looked for.
const PRUNE_INTERVAL: Duration = Duration::from_hours(1);

/// First and longest pause between attempts while the disk fails.
const STALL_PAUSES: (Duration, Duration) = if cfg!(test) {
    (Duration::from_millis(1), Duration::from_millis(5))
} else {
    (Duration::from_millis(100), Duration::from_secs(5))
};

/// What the delivery is made of.
#[expect(missing_debug_implementations, reason = "the store is a trait object")]
pub struct Parts {
    /// Where everything arrives.
    pub inbox: Receiver<Inbox>,
    /// The other end of it, for the checkpoint thread.
    pub inbox_sender: Sender<Inbox>,
    /// The journal, begun with `state`.
    pub journal: Journal,
    /// Its directory, for messages.
    pub journal_dir: PathBuf,
    /// The store.
    pub store: Arc<dyn Store>,
    /// The event files, going on with those of `state`.
    pub sink: FileSink,
    /// Where recovery ended: everything in it is durable.
    pub state: State,
    /// Who may write what.
    pub tracker: Arc<Tracker>,
    /// What is shown.
    pub gauges: Arc<Gauges>,
    /// The memory bound.
    pub budget: Arc<Budget>,
    /// Takes used buffers back to the workers.
    pub spare: Sender<Vec<u8>>,
    /// Interval of checkpoints.
    pub interval: Duration,
    /// Whether event files are synced.
    pub fsync: bool,
    /// How long old segments of the journal are kept.
    pub history: Duration,
    /// The directory of the event files, for messages.
    pub sink_dir: PathBuf,
    /// When files are finished.
    pub rotate: config::Rotate,
    /// What decides that hidden files are published.
    pub commit_point: CommitPoint,
    /// Keys of the failure queue from this one on are worked on; [`u64::MAX`] when none is. Nothing is dropped from there.
    pub claimed: Arc<Mutex<u64>>,
    /// Bytes of the failure queue above which its oldest entries are dropped, if they are.
    pub queue_bound: Option<u64>,
}

/// What waits for its place in the order.
enum Item {
    Block(Box<DoneBlock>),
    Note { frame: Frame, reply: Sender<()> },
}

/// See [`Inbox::Queue`].
type Removal = (Vec<(u64, u64)>, QueueCause, Sender<()>);

/// A block at work; what is done already is not done again after a stall.
struct Writing {
    block: Box<DoneBlock>,
    frame: Option<Box<Block>>,
    /// The piece being written, and how much of it is.
    piece: usize,
    done: usize,
}

/// The disk fails.
struct Stall {
    since: Instant,
    pause: Duration,
    again: Instant,
}

/// The delivery thread's own data.
pub struct Delivery {
    inbox: Receiver<Inbox>,
    pub(super) checkpointer: Arc<Checkpointer>,
    /// To the checkpoint thread, which ends without it.
    jobs: Option<Sender<Job>>,
    checkpoints: Option<JoinHandle<()>>,
    pub(super) sink: FileSink,
    pub(super) state: State,
    pub(super) tracker: Arc<Tracker>,
    pub(super) gauges: Arc<Gauges>,
    budget: Arc<Budget>,
    spare: Sender<Vec<u8>>,
    interval: Duration,
    fsync: bool,
    history: Duration,
    sink_dir: PathBuf,
    pub(super) rotate: config::Rotate,
    pub(super) commit_point: CommitPoint,
    claimed: Arc<Mutex<u64>>,
    queue_bound: Option<u64>,

    pub(super) seal: Sealing,
    waiting: BTreeMap<u64, Item>,
    next_ticket: u64,
    writing: Option<Writing>,
    stall: Option<Stall>,
    /// What the next checkpoint changes in the queue.
    insert: Vec<(u64, QueueEntry)>,
    pub(super) remove: Vec<u64>,
    /// Whether there is something that no checkpoint covers.
    dirty: bool,
    pub(super) in_checkpoint: bool,
    last_checkpoint: Instant,
    last_tick: Instant,
    last_prune: Instant,
    /// Dropped entries that were not told of yet, and when some were.
    untold: u64,
    told: Option<Instant>,
    /// Removals from the failure queue that wait until no block is half-written.
    removals: Vec<Removal>,
    /// Who waits until all before a ticket is durable.
    barriers: Vec<(u64, Finish, Sender<()>)>,
    /// Who waits for the checkpoint that is being made, and for the one after it.
    answers: Vec<Sender<()>>,
    next_answers: Vec<Sender<()>>,
}

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Delivery").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Delivery {
    /// Puts the parts together and starts the checkpoint thread.
    pub fn new(parts: Parts) -> Result<Self, Error> {
        let checkpointer = Arc::new(Checkpointer {
            journal: Arc::new(Mutex::new(parts.journal)),
            journal_dir: parts.journal_dir,
            store: parts.store,
            gauges: Arc::clone(&parts.gauges),
        });
        let (jobs, received) = bounded(1);
        let checkpoints = Arc::clone(&checkpointer)
            .spawn(received, parts.inbox_sender)
            .map_err(|error| Error::Thread(format!("cannot start the checkpoint thread: {error}")))?;
        let now = Instant::now();
        Ok(Self {
            inbox: parts.inbox,
            checkpointer,
            jobs: Some(jobs),
            checkpoints: Some(checkpoints),
            sink: parts.sink,
            state: parts.state,
            tracker: parts.tracker,
            gauges: parts.gauges,
            budget: parts.budget,
            spare: parts.spare,
            interval: parts.interval,
            fsync: parts.fsync,
            history: parts.history,
            sink_dir: parts.sink_dir,
            rotate: parts.rotate,
            commit_point: parts.commit_point,
            seal: Sealing::default(),
            claimed: parts.claimed,
            queue_bound: parts.queue_bound,
            waiting: BTreeMap::new(),
            next_ticket: 0,
            writing: None,
            stall: None,
            insert: Vec::new(),
            remove: Vec::new(),
            dirty: false,
            in_checkpoint: false,
            last_checkpoint: now,
            last_tick: now,
            last_prune: now,
            untold: 0,
            told: None,
            removals: Vec::new(),
            barriers: Vec::new(),
            answers: Vec::new(),
            next_answers: Vec::new(),
        })
    }

    /// Works until an error, or until it is told to end. Nothing of the home is open or locked any more when it returns.
    pub fn run(mut self) -> Result<(), Error> {
        let outcome = self.work();
        if let Err(error) = &outcome {
            // Nothing more is to be taken from Kafka, whoever is the first to notice.
            self.gauges.set_stalled(Some(error.to_string()));
        }
        self.gauges.end();
        drop(self.jobs.take());
        if let Some(checkpoints) = self.checkpoints.take() {
            checkpoints.thread().unpark();
            // What it did not do tells itself in the outcome, or is not needed any more.
            drop(checkpoints.join());
        }
        outcome
    }

    fn work(&mut self) -> Result<(), Error> {
        self.resume_seals();
        loop {
            match self.inbox.recv_timeout(self.patience()) {
                Ok(Inbox::End) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Ok(message) => self.receive(message)?,
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.tick()?;
            if self.seal.has_work() {
                self.drive_seals()?;
                if self.seal.is_busy() {
                    self.serve_barriers()?;
                } else {
                    self.advance()?;
                }
            }
        }
    }

    fn patience(&self) -> Duration {
        let now = Instant::now();
        let mut until = self.last_tick + ROTATION_TICK;
        if self.dirty && !self.in_checkpoint && !self.seal.is_removing() {
            until = until.min(self.last_checkpoint + self.interval);
        }
        if let Some(stall) = &self.stall {
            until = until.min(stall.again);
        }
        until.saturating_duration_since(now)
    }

    fn receive(&mut self, message: Inbox) -> Result<(), Error> {
        match message {
            Inbox::Block(block) => {
                self.waiting.insert(block.ticket, Item::Block(block));
                self.advance()
            }
            Inbox::Note { ticket, frame, reply } => {
                self.waiting.insert(ticket, Item::Note { frame, reply });
                self.advance()
            }
            Inbox::Checkpoint { before, finish, reply } => {
                self.barriers.push((before, finish, reply));
                self.serve_barriers()
            }
            Inbox::Queue { removed, cause, reply } => {
                self.removals.push((removed, cause, reply));
                self.serve_removals()
            }
            Inbox::Decided { number, partition, verdict, reply } => {
                self.decided(number, partition, verdict, reply);
                // When that leaves nothing to be carried out, nobody else would go on with what waits behind the seal.
                self.advance()
            }
            Inbox::Refuse { partition, reply } => {
                self.refused(partition, reply);
                Ok(())
            }
            Inbox::End => Ok(()),
            Inbox::Checkpointed(finished) => {
                let Finished { number, took } = finished?;
                tracing::debug!(number, ?took, "checkpoint");
                self.in_checkpoint = false;
                self.answers.drain(..).for_each(|reply| answer(&reply));
                if self.next_answers.is_empty() { self.turn_journal() } else { self.checkpoint() }
            }
        }
    }

    /// Takes entries out of the failure queue; when this returns, that is durable.
    fn remove_entries(&mut self, removed: Vec<(u64, u64)>, cause: QueueCause) -> Result<(), Error> {
        let keys: Vec<u64> = removed.iter().map(|(key, _)| *key).collect();
        let frame = Frame::Queue(QueueChange { number: self.state.number + 1, removed, cause });
        self.append(&frame)?;
        self.sync_journal()?;
        crate::fault::point("queue_removed");
        self.state.apply(&frame);
        self.remove.extend(keys);
        self.dirty = true;
        self.show_queue();
        Ok(())
    }

    /// Bytes of the failure queue beyond its bound, where the oldest entries may go.
    fn excess(&self) -> u64 {
        self.queue_bound.map_or(0, |bound| self.state.totals.queue_bytes.saturating_sub(bound))
    }

    /// Keeps the failure queue below its bound where the oldest entries may go. Looks only at what the store has, while no
    /// removal is on its way there, and takes nothing that somebody works on.
    fn drop_oldest(&mut self) -> Result<(), Error> {
        let mut excess = self.excess();
        if excess == 0 || self.in_checkpoint || !self.remove.is_empty() || self.is_halfway() {
            return Ok(());
        }
        let claimed = Arc::clone(&self.claimed);
        let claimed = claimed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut removed = Vec::new();
        self.checkpointer.store.entries(0, &mut |key, entry| {
            if excess == 0 || key >= *claimed || removed.len() >= DROP_MAX {
                return Walk::Stop;
            }
            if self.state.is_open(&entry.partition, entry.offset) {
                return Walk::On;
            }
            excess = excess.saturating_sub(entry.size());
            removed.push((key, entry.size()));
            Walk::On
        })?;
        if removed.is_empty() {
            return Ok(());
        }
        let dropped = removed.len() as u64;
        self.remove_entries(removed, QueueCause::Dropped)?;
        crate::fault::point("queue_dropped");
        self.untold += dropped;
        Ok(())
    }

    /// Drops until the queue is within its bound, and makes new entries droppable as fast as the disk lets it.
    fn keep_bound(&mut self) -> Result<(), Error> {
        self.drop_oldest()?;
        if self.dirty && self.excess() > 0 {
            self.checkpoint()?;
        }
        if self.untold > 0 && self.told.is_none_or(|told| told.elapsed() >= TELL_INTERVAL) {
            self.told = Some(Instant::now());
            let (dropped, ever) = (std::mem::take(&mut self.untold), self.state.totals.dropped);
            tracing::error!(dropped, ever, "the failure queue is full: its oldest entries were dropped");
        }
        Ok(())
    }

    fn tick(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        if self.stall.as_ref().is_some_and(|stall| now >= stall.again) {
            match self.sink.reopen_dir() {
                Ok(()) => self.advance()?,
                Err(error) => {
                    let error = self.may_pass(error)?;
                    self.stalled(&error);
                }
            }
        }
        if now >= self.last_tick + ROTATION_TICK {
            self.last_tick = now;
            if self.stall.is_none() {
                if self.is_sealed() && !self.seal.is_busy() {
                    self.want_due(now);
                }
                // Only the journal can fail here; what was not finished is due again at the next tick.
                if let Err(error) = self.with_sink(|sink, ledger, now| sink.rotate_due(now, ledger)) {
                    let error = self.may_pass(error)?;
                    tracing::error!(%error, "cannot finish a file yet");
                }
                self.gauges.open_files.store(self.sink.open_files(), Ordering::Relaxed);
            }
        }
        self.keep_bound()?;
        if self.dirty && now >= self.last_checkpoint + self.interval {
            self.checkpoint()?;
        }
        if now >= self.last_prune + PRUNE_INTERVAL {
            self.last_prune = now;
            // The store was synced when they ended.
            if let Err(error) = self.journal().prune(self.history, SystemTime::now()) {
                tracing::warn!(%error, "cannot remove old segments of the journal");
            }
        }
        Ok(())
    }

    /// Takes items in the order of their tickets, as far as they have come and the disk lets them.
    fn advance(&mut self) -> Result<(), Error> {
        if self.is_stalled() {
            return Ok(());
        }
        loop {
            // A seal needs the state to itself: only what is half-written is brought to its end before.
            if self.seal.is_busy() && !self.is_halfway() {
                break;
            }
            if let Some(mut writing) = self.writing.take() {
                match self.write(&mut writing)? {
                    Ok(()) => self.settle(writing),
                    Err(error) => {
                        self.writing = Some(writing);
                        let error = self.may_pass(error)?;
                        self.stalled(&error);
                        return Ok(());
                    }
                }
                self.recovered();
            }
            if self.seal.is_busy() {
                break;
            }
            if let Some(Item::Note { frame: Frame::Start(at) | Frame::Move { to: at, .. }, .. }) =
                self.waiting.get(&self.next_ticket)
                && self.is_sealed()
                && self.end_growth(&at.partition.clone())
            {
                break;
            }
            let Some(item) = self.waiting.remove(&self.next_ticket) else { break };
            self.next_ticket += 1;
            match item {
                Item::Block(block) => {
                    self.writing = Some(Writing { block, frame: None, piece: 0, done: 0 });
                }
                Item::Note { frame, reply } => {
                    self.append(&frame)?;
                    self.sync_journal()?;
                    self.state.apply(&frame);
                    if let Frame::Start(_) = &frame {
                        // Durable, and nothing of the partition can be written and not durable: shown at once.
                        self.gauges.durable().state.apply(&frame);
                    }
                    self.dirty = true;
                    answer(&reply);
                }
            }
        }
        self.serve_removals()?;
        self.serve_barriers()
    }

    /// Whether a block is half-written. It has the next number already, and a checkpoint of a later one would cover it too:
    /// nothing else may get a number until it is written.
    pub(super) fn is_halfway(&self) -> bool {
        self.writing.as_ref().is_some_and(|writing| writing.frame.is_some())
    }

    /// Takes out of the failure queue what was asked for.
    fn serve_removals(&mut self) -> Result<(), Error> {
        if self.is_halfway() {
            return Ok(());
        }
        for (removed, cause, reply) in std::mem::take(&mut self.removals) {
            self.remove_entries(removed, cause)?;
            self.answer_after_checkpoint(reply)?;
        }
        Ok(())
    }

    /// Writes a block, going on where a stall stopped it. The outer error ends the process, the inner one stalls.
    fn write(&mut self, writing: &mut Writing) -> Result<io::Result<()>, Error> {
        while writing.frame.is_none() {
            match self.targets(&writing.block) {
                Err((piece, error)) => {
                    if let Err(error) = refuse(&mut writing.block, piece, error) {
                        return Ok(Err(error));
                    }
                }
                Ok(targets) => match self.admit(&writing.block, &targets)? {
                    None => return Ok(Ok(())),
                    frame => writing.frame = frame,
                },
            }
        }
        let Some(frame) = &writing.frame else { return Ok(Ok(())) };
        let now = Now::current();
        while let (Some(piece), Some(lines)) =
            (frame.pieces.get(writing.piece), writing.block.pieces.get(writing.piece))
        {
            if let Err(error) = self.sink.write(piece.file, piece.position, &lines.bytes, &mut writing.done, now) {
                return Ok(Err(error));
            }
            writing.piece += 1;
            writing.done = 0;
        }
        if matches!(frame.source, BlockSource::Queue(_)) {
            crate::fault::point("queue_written");
        }
        Ok(Ok(()))
    }

    /// Decides where each piece goes: file and position. An error comes with the piece that it is about.
    fn targets(&mut self, block: &DoneBlock) -> Result<Vec<(u64, u64)>, (usize, io::Error)> {
        let target = |(piece, lines): (usize, &Lines)| {
            let target = self.with_sink(|sink, ledger, now| sink.target(&lines.key, now, ledger));
            target.map_err(|error| (piece, error))
        };
        block.pieces.iter().enumerate().map(target).collect()
    }

    /// Puts the block into the journal; `None` when its assignment is over.
    fn admit(&mut self, block: &DoneBlock, targets: &[(u64, u64)]) -> Result<Option<Box<Block>>, Error> {
        let piece = |(lines, (file, position)): (&Lines, &(u64, u64))| {
            let length = lines.bytes.len() as u64;
            Piece { file: *file, position: *position, length, crc: lines.crc, lines: lines.lines }
        };
        let pieces = block.pieces.iter().zip(targets).map(piece).collect();
        let mut next_key = self.state.next_key;
        let mut fresh = || {
            next_key += 1;
            next_key - 1
        };
        let rejects = block
            .rejects
            .iter()
            .map(|rejected| (rejected.key.unwrap_or_else(&mut fresh), rejected.entry.clone()))
            .collect();
        let source = match &block.source {
            Source::Partition { from, to, .. } => BlockSource::Offsets { from: *from, to: to.clone() },
            Source::Queue(taken) => BlockSource::Queue(taken.clone()),
        };
        let frame = Frame::Block(Box::new(Block {
            number: self.state.number + 1,
            source,
            recipe: block.recipe.to_string(),
            pieces,
            records: block.records,
            filtered: block.filtered,
            rejects,
        }));
        let append = || self.journal().append(&frame);
        let appended = match &block.source {
            Source::Queue(_) => append(),
            Source::Partition { epoch, from, to } => {
                match self.tracker.admit(&to.partition, *epoch, *from, to.next, append) {
                    Ok(appended) => appended,
                    Err(Refusal::Stale) => return Ok(None),
                    Err(Refusal::NotNext { expected }) => {
                        return Err(Error::NotNext { partition: to.partition.clone(), from: *from, expected });
                    }
                }
            }
        };
        appended.map_err(|error| Error::Journal(self.checkpointer.journal_dir.clone(), error))?;
        let Frame::Block(block) = frame else { unreachable!("made above") };
        if matches!(block.source, BlockSource::Queue(_)) {
            crate::fault::point("queue_framed");
        }
        Ok(Some(block))
    }

    /// A block is written, or dropped because its assignment is over.
    fn settle(&mut self, writing: Writing) {
        let Writing { block, frame, .. } = writing;
        if let Some(frame) = frame {
            let frame = Frame::Block(frame);
            self.state.apply(&frame);
            let Frame::Block(frame) = frame else { unreachable!("made above") };
            if let BlockSource::Queue(taken) = &frame.source {
                self.remove.extend(taken.iter().map(|(key, _)| key));
            }
            if self.is_sealed() {
                self.grew(&block, &frame);
            }
            self.insert.extend(frame.rejects);
            self.dirty = true;
            self.gauges.settled(&block);
            if matches!(block.source, Source::Queue(_)) {
                self.gauges.stayed.fetch_add(block.rejects.len() as u64, Ordering::Relaxed);
            }
            let bytes: u64 = frame.pieces.iter().map(|piece| piece.length).sum();
            self.gauges.written_bytes.fetch_add(bytes, Ordering::Relaxed);
            self.gauges.open_files.store(self.sink.open_files(), Ordering::Relaxed);
            self.show_queue();
        } else {
            self.gauges.returned(block.records);
        }
        self.budget.give_back(block.cost);
        for lines in block.pieces {
            recycle(&self.spare, lines.bytes);
        }
    }

    /// Notes that there is more to be published, and does it when a file has reached its size.
    fn grew(&mut self, block: &DoneBlock, frame: &Block) {
        let group = match &block.source {
            Source::Partition { to, .. } => Some(to.partition.clone()),
            Source::Queue(_) if frame.pieces.is_empty() => return,
            Source::Queue(_) => None,
        };
        self.seal.grew(group.clone(), Instant::now());
        if frame.pieces.iter().any(|piece| self.sink.is_over(piece.position + piece.length)) {
            self.want_group(group);
        }
    }

    pub(super) fn show_queue(&self) {
        self.gauges.queue_bytes.store(self.state.totals.queue_bytes, Ordering::Relaxed);
    }

    /// Whether the disk failed and is left alone for a moment.
    pub(super) fn is_stalled(&self) -> bool {
        self.stall.as_ref().is_some_and(|stall| Instant::now() < stall.again)
    }

    pub(super) fn stalled(&mut self, error: &io::Error) {
        let now = Instant::now();
        let stall = self.stall.get_or_insert_with(|| {
            tracing::error!(%error, "cannot write event files; consuming pauses until it works again");
            Stall { since: now, pause: STALL_PAUSES.0, again: now }
        });
        stall.again = now + stall.pause;
        stall.pause = (stall.pause * 2).min(STALL_PAUSES.1);
        self.gauges.set_stalled(Some(format!("cannot write to {}: {error}", self.sink_dir.display())));
    }

    pub(super) fn recovered(&mut self) {
        if let Some(stall) = self.stall.take() {
            tracing::info!(after = ?stall.since.elapsed(), "event files can be written again");
            self.gauges.set_stalled(None);
        }
    }

    fn serve_barriers(&mut self) -> Result<(), Error> {
        // Who asked after a decision was made looks at what is durable next, and must find it there.
        if self.seal.has_steps() {
            return Ok(());
        }
        // A block that is stalled was taken from the order, but is not written.
        let passed = if self.writing.is_some() { self.next_ticket - 1 } else { self.next_ticket };
        let (reached, waiting): (Vec<_>, Vec<_>) = self.barriers.drain(..).partition(|(before, ..)| *before <= passed);
        self.barriers = waiting;
        for (_, finish, reply) in reached {
            match finish {
                Finish::Files if self.is_sealed() => self.want_all(reply),
                Finish::Hidden(partitions) if self.is_sealed() => self.want_partitions(partitions, reply),
                Finish::Files => {
                    if let Err(error) = self.with_sink(|sink, ledger, _| sink.finish_all(RotateReason::Stop, ledger)) {
                        let error = self.may_pass(error)?;
                        return Err(Error::Journal(self.checkpointer.journal_dir.clone(), error));
                    }
                    self.dirty = true;
                    self.answer_after_checkpoint(reply)?;
                }
                Finish::No | Finish::Hidden(_) => self.answer_after_checkpoint(reply)?,
            }
        }
        Ok(())
    }

    /// Answers once everything that is written now is durable.
    pub(super) fn answer_after_checkpoint(&mut self, reply: Sender<()>) -> Result<(), Error> {
        if !self.dirty && !self.in_checkpoint {
            answer(&reply);
            return Ok(());
        }
        self.next_answers.push(reply);
        self.checkpoint()
    }

    /// Begins a checkpoint of what is written, unless one is being made, or must wait.
    fn checkpoint(&mut self) -> Result<(), Error> {
        if self.in_checkpoint || self.seal.is_removing() {
            return Ok(());
        }
        self.in_checkpoint = true;
        self.dirty = false;
        self.last_checkpoint = Instant::now();
        self.answers.append(&mut self.next_answers);
        let job = self.job();
        let sent = self.jobs.as_ref().and_then(|jobs| jobs.send(job).ok());
        sent.ok_or_else(|| Error::Thread("the checkpoint thread ended".into()))
    }

    /// Makes everything durable that is written, here and now. No checkpoint may be under way.
    pub(super) fn checkpoint_now(&mut self) -> Result<(), Error> {
        let job = self.job();
        self.checkpointer.run(job)?;
        self.dirty = false;
        Ok(())
    }

    /// Appends a frame, makes it durable, and takes it in.
    pub(super) fn note_durably(&mut self, frame: &Frame) -> Result<(), Error> {
        self.append(frame)?;
        self.sync_journal()?;
        self.state.apply(frame);
        self.dirty = true;
        Ok(())
    }

    fn job(&mut self) -> Job {
        let files = self.sink.take_dirty();
        let change = StoreChange {
            state: self.state.clone(),
            insert: std::mem::take(&mut self.insert),
            remove: std::mem::take(&mut self.remove),
        };
        Job { files: if self.fsync { files } else { Vec::new() }, change }
    }

    /// Begins a new segment of the journal when the old one has had its share. Nothing may be pending then, so this waits for
    /// a checkpoint of its own.
    fn turn_journal(&mut self) -> Result<(), Error> {
        if !self.journal().is_full() || self.writing.is_some() {
            return Ok(());
        }
        self.checkpoint_now()?;
        self.checkpointer.store.sync()?;
        let failed = |error| Error::Journal(self.checkpointer.journal_dir.clone(), error);
        let mut journal = self.journal();
        match journal.turn(&self.state) {
            // It goes on beyond its reserved room, and is tried again after the next checkpoint.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                tracing::warn!(%error, "no room for the next segment of the journal yet");
                return Ok(());
            }
            turned => turned.map_err(failed)?,
        }
        journal.prune(self.history, SystemTime::now()).map_err(failed)
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.checkpointer.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, frame: &Frame) -> Result<(), Error> {
        self.journal().append(frame).map_err(|error| Error::Journal(self.checkpointer.journal_dir.clone(), error))
    }

    fn sync_journal(&self) -> Result<(), Error> {
        let file = self.journal().file();
        file.sync_data().map_err(|error| Error::Sync("the journal".into(), error))
    }

    /// Tells what is tried again in place from a failed sync, after which nothing can be relied on, and from a journal that
    /// takes no frames.
    pub(super) fn may_pass(&self, error: io::Error) -> Result<io::Error, Error> {
        let error = match error.downcast::<SyncFailed>() {
            Ok(SyncFailed { what, source }) => return Err(Error::Sync(what, source)),
            Err(error) => error,
        };
        let error = match error.downcast::<HiddenGone>() {
            Ok(gone) => return Err(Error::Hidden(gone)),
            Err(error) => error,
        };
        match error.downcast::<JournalFailed>() {
            Ok(JournalFailed(source)) => Err(Error::Journal(self.checkpointer.journal_dir.clone(), source)),
            Err(error) => Ok(error),
        }
    }

    fn with_sink<T>(
        &mut self,
        act: impl FnOnce(&mut FileSink, &mut dyn Ledger, Now) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut ledger = JournalLedger { journal: &self.checkpointer.journal, state: &mut self.state };
        act(&mut self.sink, &mut ledger, Now::current())
    }
}

/// The journal failed. Comes inside an [`io::Error`].
#[derive(Debug, thiserror::Error)]
#[error("cannot write the journal")]
struct JournalFailed(#[source] io::Error);

/// Keeps account of files in the journal and the state.
struct JournalLedger<'a> {
    journal: &'a Mutex<Journal>,
    state: &'a mut State,
}

impl JournalLedger<'_> {
    fn note(&mut self, frame: &Frame, durable: bool) -> io::Result<()> {
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        journal.append(frame).map_err(|error| io::Error::other(JournalFailed(error)))?;
        if durable {
            journal.sync().map_err(|error| SyncFailed::io("the journal", error))?;
        }
        self.state.apply(frame);
        Ok(())
    }
}

impl Ledger for JournalLedger<'_> {
    fn intend(&mut self, intent: &FileIntent) -> io::Result<()> {
        self.note(&Frame::File(intent.clone()), true)
    }

    fn made(&mut self, id: u64, inode: u64) -> io::Result<()> {
        self.note(&Frame::Made { id, inode }, true)
    }

    fn end(&mut self, id: u64) -> io::Result<()> {
        self.note(&Frame::End { id }, false)
    }
}

/// Rejects the records of a piece that can have no file by the fault of their own names; any other error is returned.
fn refuse(block: &mut DoneBlock, piece: usize, error: io::Error) -> io::Result<()> {
    let is_theirs = block.pieces.get(piece).is_some_and(|lines| !lines.rejects.is_empty());
    if !is_theirs || !blames_name(&error) {
        return Err(error);
    }
    let lines = block.pieces.remove(piece);
    tracing::warn!(key = ?lines.key, %error, records = lines.lines, "no file can have the name that these records ask for");
    for mut rejected in lines.rejects {
        rejected.entry.reject.detail = format!("its file cannot be made: {error}").into();
        block.rejects.push(rejected);
    }
    block.rejects.sort_by_key(|rejected| (rejected.key, rejected.entry.offset));
    Ok(())
}

/// Answers; who asked may have given up waiting.
pub(super) fn answer(reply: &Sender<()>) {
    let _ = reply.send(());
}

/// Starts the delivery thread; its result comes through the channel that is returned.
pub fn spawn(delivery: Delivery) -> Result<Receiver<Result<(), Error>>, Error> {
    let (ended, result) = bounded(1);
    thread::Builder::new()
        .name("delivery".into())
        .spawn(move || {
            // A panic is told as what it is: nobody would learn of a thread that is just gone.
            let outcome = catch_unwind(AssertUnwindSafe(|| delivery.run()));
            let panicked = |_| Err(Error::Thread("the delivery thread panicked; see the service log".into()));
            drop(ended.send(outcome.unwrap_or_else(panicked)));
        })
        .map_err(|error| Error::Thread(format!("cannot start the delivery thread: {error}")))?;
    Ok(result)
}
