//! The delivery thread: takes blocks and notes in the order of their tickets, and writes them.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::checkpoint::{Checkpointer, Finished, Job};
use super::queue::Removal;
use super::seal::Sealing;
use super::stall::Stall;
use super::writing::Writing;
use super::{Budget, CommitPoint, Error, Finish, Gauges, Inbox};
use crate::block::{DoneBlock, Place, Source};
use crate::config;
use crate::msink::file::{FileSink, Now};
use crate::msource::TopicPartition;
use crate::msource::journal::{Block, BlockSource, Frame, History, QueueEntry, State};
use crate::msource::tracker::Tracker;
use crate::transform::worker::recycle;

/// How often files are looked at for rotation.
const ROTATION_TICK: Duration = Duration::from_millis(250);

/// How often old segments of the journal are looked for.
const PRUNE_INTERVAL: Duration = Duration::from_hours(1);

/// What waits for its place in the order.
pub(super) enum Item {
    Block(Box<DoneBlock>),
    Note { frame: Frame, reply: Sender<()> },
}

/// The delivery thread's own data.
pub struct Delivery {
    pub(super) inbox: Receiver<Inbox>,
    pub(super) checkpointer: Arc<Checkpointer>,
    /// To the checkpoint thread, which ends without it.
    pub(super) jobs: Option<Sender<Job>>,
    pub(super) checkpoints: Option<JoinHandle<()>>,
    pub(super) sink: FileSink,
    pub(super) state: State,
    pub(super) tracker: Arc<Tracker>,
    pub(super) gauges: Arc<Gauges>,
    pub(super) budget: Arc<Budget>,
    pub(super) spare: Sender<Vec<u8>>,
    pub(super) interval: Duration,
    pub(super) fsync: bool,
    pub(super) history: History,
    pub(super) sink_dir: PathBuf,
    pub(super) rotate: config::Rotate,
    pub(super) commit_point: CommitPoint,
    pub(super) claimed: Arc<Mutex<u64>>,
    pub(super) queue_bound: Option<u64>,
    /// What was open when every entry of the failure queue turned out to be: none may be dropped until that changes.
    pub(super) all_open: Option<Vec<(TopicPartition, u64)>>,

    pub(super) seal: Sealing,
    pub(super) waiting: BTreeMap<Place, Item>,
    /// What is taken next.
    pub(super) next: Place,
    pub(super) writing: Option<Writing>,
    pub(super) stall: Option<Stall>,
    /// What the next checkpoint changes in the queue.
    pub(super) insert: Vec<(u64, QueueEntry)>,
    /// What that holds in memory, bytes: counted against the memory bound until the checkpoint is made.
    pub(super) held: u64,
    pub(super) remove: Vec<u64>,
    /// Whether there is something that no checkpoint covers.
    pub(super) dirty: bool,
    pub(super) in_checkpoint: bool,
    pub(super) last_checkpoint: Instant,
    pub(super) last_tick: Instant,
    pub(super) last_prune: Instant,
    /// Dropped entries that were not told of yet, and when some were.
    pub(super) untold: u64,
    pub(super) told: Option<Instant>,
    /// Removals from the failure queue that wait until no block is half-written.
    pub(super) removals: Vec<Removal>,
    /// Who waits until all before a ticket is durable.
    pub(super) barriers: Vec<(u64, Finish, Sender<()>)>,
    /// Who waits for the checkpoint that is being made, and for the one after it.
    pub(super) answers: Vec<Sender<()>>,
    pub(super) next_answers: Vec<Sender<()>>,
}

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Delivery").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Delivery {
    /// Works until an error, or until it is told to end. Nothing of the home is open or locked any more when it returns.
    pub fn run(mut self) -> Result<(), Error> {
        let outcome = self.work();
        if let Err(error) = &outcome {
            // Nothing more is to be taken from Kafka, whoever is the first to notice.
            self.gauges.set_stalled(Some(error.to_string()));
        }
        self.gauges.end();
        self.budget.close();
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
                self.waiting.insert(block.place, Item::Block(block));
                self.advance()
            }
            Inbox::Note { ticket, frame, reply } => {
                self.waiting.insert(Place::of(ticket), Item::Note { frame, reply });
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
            Inbox::Check { number, partition, reply } => {
                self.check_prepared(number, partition, reply);
                Ok(())
            }
            Inbox::Refuse { partition, reply } => {
                self.refused(partition, reply);
                Ok(())
            }
            Inbox::End => Ok(()),
            Inbox::Checkpointed(finished) => {
                let Finished { number, took, held } = finished?;
                tracing::debug!(number, ?took, "checkpoint");
                self.in_checkpoint = false;
                self.all_open = None;
                self.budget.give_back(held);
                self.answers.drain(..).for_each(|reply| answer(&reply));
                if self.next_answers.is_empty() {
                    self.turn_journal()?;
                } else {
                    self.checkpoint()?;
                }
                // Blocks may have waited for it. What a seal is at work on goes first.
                if self.seal.has_work() { Ok(()) } else { self.advance() }
            }
        }
    }

    fn tick(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        if let Some(stall) = self.stall.as_ref().filter(|stall| now >= stall.again) {
            self.sink.close_removed();
            let room = if stall.exhausted { self.sink.close_some(Now::current()).map(drop) } else { Ok(()) };
            match room.and_then(|()| self.sink.reopen_dir()) {
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
        if self.dirty && !self.is_seals_turn() && now >= self.last_checkpoint + self.interval {
            self.checkpoint()?;
        }
        if now >= self.last_prune + PRUNE_INTERVAL && !self.in_checkpoint {
            self.last_prune = now;
            if let Err(error) = self.prune_journal() {
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
            if self.holds_enough() && !self.let_go()? {
                break;
            }
            if let Some(Item::Note { frame: Frame::Start(at) | Frame::Move { to: at, .. }, .. }) =
                self.waiting.get(&self.next)
                && self.is_sealed()
                && self.end_growth(&at.partition.clone())
            {
                break;
            }
            let Some(item) = self.waiting.remove(&self.next) else { break };
            self.next = match &item {
                Item::Block(block) if !block.is_last => Place { part: self.next.part + 1, ..self.next },
                Item::Block(_) | Item::Note { .. } => Place::of(self.next.ticket + 1),
            };
            self.budget.reached(self.next);
            match item {
                Item::Block(block) => {
                    self.writing = Some(Writing::new(block));
                }
                Item::Note { frame, reply } => {
                    self.append(&frame)?;
                    self.sync_journal()?;
                    if let Frame::Start(_) = &frame {
                        crate::fault::point("note.start");
                    }
                    self.state.apply(&frame);
                    if let Frame::Start(_) | Frame::Topic { .. } = &frame {
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
        self.writing.as_ref().is_some_and(Writing::is_framed)
    }

    fn take_in(&mut self, frame: Block) -> Box<Block> {
        let frame = Frame::Block(Box::new(frame));
        self.state.apply(&frame);
        let Frame::Block(frame) = frame else { unreachable!("made above") };
        frame
    }

    /// A block is written, or dropped because its assignment is over.
    fn settle(&mut self, writing: Writing) {
        let Writing { block, frames, .. } = writing;
        let mut frames = frames.into_iter();
        let first = frames.next().map(|frame| self.take_in(frame));
        // What other files got was counted with it.
        frames.for_each(|frame| drop(self.take_in(frame)));
        if let Some(frame) = first {
            if let BlockSource::Queue(taken) = &frame.source {
                self.remove.extend(taken.iter().map(|(key, _)| key));
            }
            if self.is_sealed() {
                self.grew(&block, &frame);
            }
            self.dirty = true;
            self.gauges.settled(&block, &frame);
            if matches!(block.source, Source::Queue(_)) {
                self.gauges.stayed.fetch_add(frame.rejects.len() as u64, Ordering::Relaxed);
            }
            let bytes: u64 = frame.pieces.iter().map(|piece| piece.length).sum();
            self.gauges.written_bytes.fetch_add(bytes, Ordering::Relaxed);
            self.gauges.open_files.store(self.sink.open_files(), Ordering::Relaxed);
            self.hold(frame.rejects);
            self.show_queue();
        } else {
            self.gauges.returned(block.records);
            if let Source::Partition { to, .. } = &block.source {
                self.leave_nothing_empty(&to.partition);
            }
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
            Source::Queue(_) | Source::Adopted { .. } if frame.pieces.is_empty() => return,
            Source::Queue(_) | Source::Adopted { .. } => None,
        };
        self.seal.grew(group.clone(), Instant::now());
        if frame.pieces.iter().any(|piece| self.sink.is_over(piece.position + piece.length)) {
            self.want_group(group);
        }
    }
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
            // A panic ends a service at once (`logging`). Elsewhere it is told as what it is: nobody would learn of a thread that is
            // just gone.
            let outcome = catch_unwind(AssertUnwindSafe(|| delivery.run()));
            let panicked = |_| Err(Error::Thread("the delivery thread panicked; see the service log".into()));
            drop(ended.send(outcome.unwrap_or_else(panicked)));
        })
        .map_err(|error| Error::Thread(format!("cannot start the delivery thread: {error}")))?;
    Ok(result)
}
