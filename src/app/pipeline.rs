//! The pipeline: every thread of the data plane, started in order and ended front to back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::broken::{Broken, chain, failed};
use super::places::Opening;
use super::ready::{Feed, Ready, history};
use super::turns::Turns;
use crate::block::RawBlock;
use crate::config::{Assignment, Config, Mode, WhenFull};
use crate::control::{Failure, FailureKind, STOP_PATIENCE};
use crate::delivery::{self, Budget, CommitPoint, Delivery, Finish, Gauges, Inbox, SealRequest, Tickets};
use crate::fault;
use crate::lock::HomeLock;
use crate::logging::LAST_LINES;
use crate::msink::file::{FileSink, Now};
use crate::msource::TopicPartition;
use crate::msource::consumer::{self, Consumer, Cut, Desk};
use crate::msource::journal::{Begun, Frame, MoveCause, Position, State};
use crate::msource::properties;
use crate::msource::store::Store;
use crate::msource::tracker::Tracker;
use crate::settings::Settings;
use crate::transform::recipe::{Engine, Recipe};
use crate::transform::worker;

/// Blocks that may wait between two threads; the memory bound is what limits them.
const CHANNEL: usize = 1024;

/// Most buffers kept for the next blocks, and the share of `memory` that they may have.
const SPARE_BUFFERS: u64 = 32;
const SPARE_SHARE: u64 = 4;

/// How long a stop may take before what is in flight is left to the next start's recovery.
const STOP_DEADLINE: Duration = Duration::from_secs(25);

/// How long work on the failure queue may take to come to an end at a stop.
const QUEUE_DEADLINE: Duration = Duration::from_secs(5);

/// What a stop waits for at most, one after the other. The command that waits for it is not to give up before: `restart` would
/// leave no service.
const _: () = {
    // The drain, the queue, a delivery that hangs in the disk, the thread that retries, what the consumer does besides, and the log.
    let longest = 2 * STOP_DEADLINE.as_secs() + 2 * QUEUE_DEADLINE.as_secs() + consumer::LONGEST_END.as_secs();
    assert!(longest + LAST_LINES.as_secs() < STOP_PATIENCE.as_secs());
};

/// Share of `memory` for blocks in flight; librdkafka's queue has a quarter.
const BLOCKS_SHARE: u64 = 2;

/// A running pipeline.
pub(super) struct Pipeline {
    pub(super) store: Arc<dyn Store>,
    pub(super) home: (String, u64),
    /// The ranges that an earlier run has prepared, as their partitions and first offsets.
    pub(super) prepared: Vec<(TopicPartition, i64)>,
    pub(super) gauges: Arc<Gauges>,
    pub(super) budget: Arc<Budget>,
    pub(super) tickets: Arc<Tickets>,
    pub(super) desk: Arc<Desk>,
    pub(super) inbox: Sender<Inbox>,
    pub(super) tracker: Arc<Tracker>,
    pub(super) blocks: Mutex<Option<Sender<RawBlock>>>,
    pub(super) turns: Turns,
    /// Set when the end begins: no further work on the failure queue.
    ending: AtomicBool,
    /// Tries the failure queue by itself.
    retrier: Mutex<Option<JoinHandle<()>>>,
    ended: Receiver<Result<(), delivery::Error>>,
    consumer: Mutex<Option<JoinHandle<Result<(), consumer::Error>>>>,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

/// The recipe of a configuration, ready for work but not kept yet.
pub(super) fn engine(config: &Config) -> Result<Arc<Engine>, Failure> {
    let loaded = Settings::load(&config.settings, config.app_id).map_err(|mistakes| {
        let lines: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
        Failure::new(FailureKind::Config, lines.join("\n"))
    })?;
    // A container's host name changes each time it is made again: where no file name has it, it changes no line either.
    let instance = if config.sink.file.contains("{instance}") { instance(config) } else { String::new() };
    let recipe = Recipe::new(config, &instance, loaded.sources);
    let fingerprint = recipe.fingerprint().map_err(failed)?;
    let engine = recipe.engine(&fingerprint).map_err(|error| failed(chain(&error)))?;
    Ok(Arc::new(engine.for_sink(&config.sink)))
}

/// What `{instance}` in file names stands for.
pub(super) fn instance(config: &Config) -> String {
    if !config.kafka.instance_id.is_empty() {
        return config.kafka.instance_id.clone();
    }
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default()
}

/// The prepared ranges of every partition, each with its first offset.
fn prepared(state: &State) -> Vec<(TopicPartition, i64)> {
    let ranges = state.seals.values().flat_map(|seal| &seal.ranges).filter_map(|range| range.offsets.as_ref());
    ranges.map(|offsets| (offsets.to.partition.clone(), offsets.growth.from)).collect()
}

impl Pipeline {
    /// Opens the home, recovers, and starts every thread. Nothing of the home was looked at before it was locked.
    pub(super) fn start(
        config: &Config,
        lock: &HomeLock,
        desk: &Arc<Desk>,
        feed: Feed,
        opening: Opening,
    ) -> Result<Arc<Self>, Broken> {
        if !lock.covers(&config.store.path) {
            return Err(failed("the lock is that of another home; this is a bug").into());
        }
        let ready = Ready::new(config, desk, feed, opening)?;
        Ok(Self::spawn(config, desk, feed, ready)?)
    }

    /// Runs one that is fed by nothing, and ends it. What ended it tells more than who noticed.
    pub(super) fn run<T>(
        (config, lock): (&Config, &HomeLock),
        feed: Feed,
        act: impl FnOnce(&Self) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let desk = Arc::new(Desk::new(engine(config)?));
        let pipeline = Self::start(config, lock, &desk, feed, Opening::First)?;
        let outcome = act(&pipeline);
        pipeline.end()?;
        outcome
    }

    /// Has a thread that works with the pipeline waited for when that ends.
    pub(super) fn keep_retrier(&self, retrier: JoinHandle<()>) {
        *self.retrier.lock().unwrap_or_else(PoisonError::into_inner) = Some(retrier);
    }

    /// Asks for a checkpoint of everything sent so far, which finishes something before: where the answer will come, `None` when
    /// the delivery has ended.
    pub(super) fn ask_checkpoint(&self, finish: Finish) -> Option<Receiver<()>> {
        let (reply, answered) = bounded(1);
        let checkpoint = Inbox::Checkpoint { before: self.tickets.next(), finish, reply };
        self.inbox.send(checkpoint).ok().map(|()| answered)
    }

    /// Has a partition stand elsewhere; the same about the answer.
    pub(super) fn ask_move(&self, to: Position, cause: MoveCause) -> Option<Receiver<()>> {
        self.ask_note(Frame::Move { to, cause })
    }

    /// Has it noted what a topic had when it was begun, unless that is; the same about the answer.
    pub(super) fn ask_topic(&self, name: &Arc<str>, begun: Begun) -> Option<Receiver<()>> {
        let is_noted =
            self.gauges.durable().state.topics.get(name).is_some_and(|known| known.topic_id == begun.topic_id);
        if is_noted {
            let (reply, answered) = bounded(1);
            return reply.send(()).ok().map(|()| answered);
        }
        self.ask_note(Frame::Topic { name: Arc::clone(name), begun })
    }

    fn ask_note(&self, frame: Frame) -> Option<Receiver<()>> {
        let (reply, answered) = bounded(1);
        self.inbox.send(Inbox::Note { ticket: self.tickets.take(), frame, reply }).ok().map(|()| answered)
    }

    fn spawn(config: &Config, desk: &Arc<Desk>, feed: Feed, ready: Ready) -> Result<Arc<Self>, Failure> {
        let Ready { store, journal, journal_dir, dir, state, former, witness } = ready;
        let gauges = Arc::new(Gauges::new(state.clone()));
        let budget = Arc::new(Budget::new(config.memory / BLOCKS_SHARE));
        let (tracker, tickets) = (Arc::<Tracker>::default(), Arc::<Tickets>::default());
        let turns = Turns::new();
        let (inbox, received) = unbounded();
        let (requests, seals) = unbounded();
        let (spare, spares) = bounded(spare_buffers(config.memory));
        let (blocks, to_workers) = bounded(CHANNEL);
        let template = desk.engine().template.clone();
        let sink = FileSink::new(dir, template, &config.sink, &state.files, state.next_file, Now::current());
        let workers = workers(config.workers, &to_workers, &inbox, &spares, &budget)?;
        let (home, prepared) = ((state.home.clone(), state.incarnation), prepared(&state));
        let delivery = Delivery::new(delivery::Parts {
            inbox: received,
            inbox_sender: inbox.clone(),
            journal,
            journal_dir,
            store: Arc::clone(&store),
            sink,
            state,
            tracker: Arc::clone(&tracker),
            gauges: Arc::clone(&gauges),
            budget: Arc::clone(&budget),
            spare,
            interval: config.store.checkpoint,
            fsync: config.sink.fsync,
            history: history(config),
            sink_dir: config.sink.dir.clone(),
            rotate: config.sink.rotate.clone(),
            commit_point: commit_point(config, requests),
            claimed: turns.claimed(),
            queue_bound: queue_bound(config),
            witness,
        })
        .map_err(|error| failed(chain(&error)))?;
        let ended = delivery::spawn(delivery).map_err(|error| failed(chain(&error)))?;
        let consumer = match feed {
            Feed::Nothing | Feed::Adopted => None,
            Feed::Kafka => {
                let parts = consumer::Parts {
                    config: config.kafka.clone(),
                    properties: properties::consuming(config),
                    discovery: properties::discovery(&config.kafka),
                    max_poll_interval: properties::max_poll_interval(&config.kafka),
                    cut: cut(config),
                    queue: (config.failure_queue.max_bytes, config.failure_queue.when_full),
                    blocks: blocks.clone(),
                    inbox: inbox.clone(),
                    seals,
                    visibility: config.sink.visibility,
                    tickets: Arc::clone(&tickets),
                    tracker: Arc::clone(&tracker),
                    budget: Arc::clone(&budget),
                    gauges: Arc::clone(&gauges),
                    desk: Arc::clone(desk),
                    home: home.clone(),
                    former,
                };
                Some(consume(parts)?)
            }
        };
        Ok(Arc::new(Self {
            store,
            home,
            prepared,
            gauges,
            budget,
            tickets,
            desk: Arc::clone(desk),
            inbox,
            tracker,
            blocks: Mutex::new(Some(blocks)),
            turns,
            ending: AtomicBool::new(false),
            retrier: Mutex::default(),
            ended,
            consumer: Mutex::new(consumer),
            workers: Mutex::new(workers),
        }))
    }

    /// Whether it has made a checkpoint: the disk takes what is written.
    pub(super) fn has_saved(&self) -> bool {
        self.gauges.durable().version > 0
    }

    /// Whether a thread of the data plane has ended, which outside of a stop is a failure.
    pub(super) fn has_ended(&self) -> bool {
        let consumer = self.consumer.lock().unwrap_or_else(PoisonError::into_inner);
        let workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        // Without one worker, its block is missing for ever and everything waits behind it.
        consumer.as_ref().is_some_and(JoinHandle::is_finished)
            || workers.iter().any(JoinHandle::is_finished)
            || !self.ended.is_empty()
    }

    /// Whether no work on the failure queue may begin any more.
    pub(super) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire) || self.desk.stopping() || self.gauges.is_over()
    }

    /// Waits until nobody works on the failure queue, and finishes what they left behind the consumer's last barrier.
    fn end_queue(&self) {
        let deadline = Instant::now() + QUEUE_DEADLINE;
        let turn = loop {
            let turn = self.turns.try_take();
            if turn.is_some() || Instant::now() >= deadline {
                break turn;
            }
            std::thread::park_timeout(Duration::from_millis(20));
        };
        let is_done = |answered: Receiver<()>| answered.recv_deadline(deadline).is_ok();
        if turn.is_none() || !self.ask_checkpoint(Finish::Files).is_some_and(is_done) {
            tracing::warn!("work on the failure queue was cut short: the next start completes it");
        }
    }

    /// Ends every thread front to back and returns the first failure. When the service is to stop, this is called after the
    /// consumer has finished everything; else what is in flight is dropped.
    pub(super) fn end(&self) -> Result<(), Broken> {
        self.ending.store(true, Ordering::Release);
        if !self.desk.stopping() {
            self.gauges.end();
            self.budget.close();
        }
        let mut outcome = Ok(());
        if !self.ended.is_empty() {
            // The delivery failed: it is what the others failed of.
            outcome = self.delivery_outcome();
        }
        if let Some(consumer) = self.consumer.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let consumed = match consumer.join() {
                Ok(Ok(()) | Err(consumer::Error::Closed)) => Ok(()),
                Ok(Err(error)) => Err(failed(chain(&error)).into()),
                Err(_) => Err(failed("the kafka thread panicked; see the service log").into()),
            };
            outcome = outcome.and(consumed);
            if self.ended.is_empty() && self.desk.stopping() {
                self.end_queue();
            }
        }
        self.gauges.end();
        // No worker waits for room any more.
        self.budget.close();
        drop(self.blocks.lock().unwrap_or_else(PoisonError::into_inner).take());
        for worker in self.workers.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if worker.join().is_err() {
                outcome = outcome.and(Err(failed("a transform thread panicked; see the service log").into()));
            }
        }
        drop(self.inbox.send(Inbox::End));
        let outcome = outcome.and_then(|()| self.delivery_outcome());
        if let Some(retrier) = self.retrier.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // A restart opens the store again, which this thread may still hold; it has nothing left to wait for.
            let deadline = Instant::now() + QUEUE_DEADLINE;
            while !retrier.is_finished() && Instant::now() < deadline {
                std::thread::park_timeout(Duration::from_millis(20));
            }
        }
        outcome
    }

    fn delivery_outcome(&self) -> Result<(), Broken> {
        match self.ended.recv_timeout(stop_deadline()) {
            Ok(Ok(())) | Err(crossbeam_channel::RecvTimeoutError::Timeout) => Ok(()),
            Ok(Err(error)) => Err(Broken::new(error.cure(), &error)),
            Err(crossbeam_channel::RecvTimeoutError::Disconnected) => {
                Err(failed("the delivery thread panicked; see the service log").into())
            }
        }
    }
}

/// Starts the workers.
fn workers(
    count: usize,
    blocks: &Receiver<RawBlock>,
    inbox: &Sender<Inbox>,
    spares: &Receiver<Vec<u8>>,
    budget: &Arc<Budget>,
) -> Result<Vec<JoinHandle<()>>, Failure> {
    let room: Arc<dyn worker::Room> = Arc::<Budget>::clone(budget);
    worker::spawn(count, blocks, inbox, spares, &room).map_err(failed)
}

/// How many buffers are kept: they are nobody's while they wait, and in no other bound.
fn spare_buffers(memory: u64) -> usize {
    (memory / SPARE_SHARE / worker::SPARE_MAX as u64).clamp(1, SPARE_BUFFERS) as usize
}

/// Bytes of the failure queue above which its oldest entries are dropped.
fn queue_bound(config: &Config) -> Option<u64> {
    let queue = &config.failure_queue;
    (queue.when_full == WhenFull::DropOldest).then_some(queue.max_bytes)
}

/// Who decides that hidden files are published.
fn commit_point(config: &Config, requests: Sender<SealRequest>) -> CommitPoint {
    match config.kafka.assignment {
        Assignment::Group => CommitPoint::Group(requests),
        Assignment::All => CommitPoint::Journal,
    }
}

/// Starts the thread that takes records from Kafka.
fn consume(parts: consumer::Parts) -> Result<JoinHandle<Result<(), consumer::Error>>, Failure> {
    let consumer = Consumer::new(parts).map_err(|error| Failure::new(FailureKind::Config, chain(&error)))?;
    let thread = std::thread::Builder::new().name("kafka".into());
    thread.spawn(move || consumer.run(stop_deadline())).map_err(failed)
}

fn stop_deadline() -> Duration {
    fault::duration("FAULT_STOP_MS", STOP_DEADLINE)
}

/// How blocks are cut: in `stream` mode a block is whatever has arrived.
fn cut(config: &Config) -> Cut {
    let batch = &config.sink.batch;
    // A block is also the unit of memory: many of them must fit into the bound.
    let bytes = batch.bytes.min(config.memory / 16).max(1);
    match config.sink.mode {
        Mode::Batch => Cut { lines: batch.lines, bytes, linger: batch.linger },
        Mode::Stream => Cut { lines: 1000, bytes, linger: Duration::ZERO },
    }
}
