//! The consumer thread: takes records from Kafka in batches, cuts them into blocks, and answers the group.
//!
//! **Promise.** No partition is fetched before its start is durable (and, in a group, acknowledged by the group). A block
//! begins where the one before it ended: offsets without a record of their own (control records, aborted and
//! compacted-away ones) belong to the block around them, so that lag reaches 0. When a partition is taken away, its blocks are
//! finished, checkpointed and committed first; when it was lost, what was read of it is dropped.
//!
//! **Memory.** Records are counted against the [`Budget`] from the moment they are taken. Without room the thread takes
//! nothing; after [`PATIENCE`] of that it pauses its partitions, so that it can serve the group meanwhile.
//!
//! **How it fails.** What may pass (no broker, no topic yet, a coordinator that is loading) is shown and waited for. A fatal
//! error of the client makes a new one. Only `out_of_range: stop` and a broken delivery end the thread.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Sender, bounded};
use rdkafka::types::RDKafkaErrorCode as Code;

use super::TopicPartition;
use super::assignment::{Decision, Known, Owner, decide};
use super::journal::{Frame, MoveCause, PartitionState, Position};
use super::native::{Client, Commit, Event, KafkaError, Message, OffsetSpec, Protocol, TopicInfo};
use super::tracker::{Epoch, Tracker};
use crate::block::{RawBlock, Records, Source};
use crate::config::{Assignment, Kafka, OutOfRange, Start, WhenFull};
use crate::control;
use crate::delivery::{Budget, Finish, Gauges, Inbox, Tickets};
use crate::transform::recipe::Engine;

/// How long the thread waits for room before it pauses its partitions.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest wait for records: how soon an idle thread notices anything else.
const IDLE_WAIT: Duration = Duration::from_millis(200);

/// Messages taken at once.
const BATCH: usize = 2048;

/// Bound on one request to a broker.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause after a request that failed, and between looks at what is waited for.
const RETRY: Duration = Duration::from_secs(1);

/// How often `assignment: all` looks for new partitions.
const DISCOVERY: Duration = Duration::from_secs(30);

/// How long a revoked partition's blocks may take. Well below `max.poll.interval.ms`, whose default is five minutes.
const REVOKE_DEADLINE: Duration = Duration::from_secs(60);

/// What a record costs besides its bytes: librdkafka's and our bookkeeping.
const RECORD_COST: u64 = 300;

/// Why the consumer cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client cannot be made.
    #[error("cannot make a Kafka client; check `kafka.librdkafka`")]
    Client(#[source] KafkaError),
    /// `out_of_range: stop`.
    #[error(
        "{partition}: the stored offset {offset} is out of the range {low}..{high} that the broker has, and `kafka.out_of_range` is `stop`; move it with `set_offset`"
    )]
    OutOfRange {
        /// The partition.
        partition: TopicPartition,
        /// Where it stands.
        offset: i64,
        /// Low watermark.
        low: i64,
        /// High watermark.
        high: i64,
    },
    /// The delivery or the workers are gone; they tell why.
    #[error("the delivery ended")]
    Closed,
}

/// How blocks are cut.
#[derive(Clone, Debug)]
pub struct Cut {
    /// Most records in a block.
    pub lines: usize,
    /// Most bytes in a block; one record may be larger.
    pub bytes: u64,
    /// How long a block waits for company.
    pub linger: Duration,
}

/// What the thread shows and is told; shared with the control plane.
#[derive(Debug)]
pub struct Desk {
    /// What it is doing, and why it waits.
    state: Mutex<(control::State, Option<String>)>,
    /// Assigned partitions.
    pub partitions: AtomicUsize,
    /// Set once: to finish and end.
    stop: AtomicBool,
    /// What turns records into lines from now on.
    engine: RwLock<Arc<Engine>>,
}

impl Desk {
    /// A desk for a thread that is about to start.
    pub fn new(engine: Arc<Engine>) -> Self {
        Self {
            state: Mutex::new((control::State::Starting, None)),
            partitions: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            engine: RwLock::new(engine),
        }
    }

    /// What the thread is doing, and why it waits.
    pub fn state(&self) -> (control::State, Option<String>) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Shows what is being done.
    pub fn show(&self, state: control::State, reason: Option<String>) {
        let mut shown = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.0 != state || shown.1 != reason {
            tracing::info!(?state, reason = reason.as_deref().unwrap_or(""), "state");
            *shown = (state, reason);
        }
    }

    /// Asks the thread to finish and end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// Whether it was asked to.
    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// What turns records into lines now.
    pub fn engine(&self) -> Arc<Engine> {
        Arc::clone(&self.engine.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Blocks from now on are made by this engine.
    pub fn set_engine(&self, engine: Arc<Engine>) {
        *self.engine.write().unwrap_or_else(PoisonError::into_inner) = engine;
    }
}

/// What the thread works with.
#[derive(Debug)]
pub struct Parts {
    /// `kafka` of the configuration.
    pub config: Kafka,
    /// librdkafka's properties, complete.
    pub properties: BTreeMap<String, String>,
    /// How blocks are cut.
    pub cut: Cut,
    /// `failure_queue.max_bytes` and `when_full`.
    pub queue: (u64, WhenFull),
    /// Takes blocks to the workers.
    pub blocks: Sender<RawBlock>,
    /// Takes notes and barriers to the delivery.
    pub inbox: Sender<Inbox>,
    /// Order of blocks and notes.
    pub tickets: Arc<Tickets>,
    /// Whose partitions are whose.
    pub tracker: Arc<Tracker>,
    /// The memory bound.
    pub budget: Arc<Budget>,
    /// What the delivery shows.
    pub gauges: Arc<Gauges>,
    /// What we show.
    pub desk: Arc<Desk>,
    /// Our home and incarnation.
    pub home: (String, u64),
}

/// A partition that is read.
struct Slot {
    partition: TopicPartition,
    topic_id: String,
    epoch: Epoch,
    /// The next offset to be taken from Kafka.
    next: i64,
    /// The offset that the group has acknowledged or been sent.
    committed: i64,
    open: Vec<Message>,
    /// First offset of the open block.
    from: i64,
    bytes: u64,
    cost: u64,
    since: Instant,
    leader_epoch: i32,
}

impl Slot {
    /// Whether anything waits to become a block: records, or offsets without any.
    fn is_open(&self) -> bool {
        self.next > self.from
    }
}

/// See the module.
pub struct Consumer {
    parts: Parts,
    slots: Vec<Slot>,
    /// By topic key of the client and partition number; rebuilt when the assignment changes.
    index: HashMap<(usize, i32), Option<usize>>,
    /// Assigned, but their start is not known yet.
    pending: BTreeSet<TopicPartition>,
    retry_at: Instant,
    discover_at: Instant,
    batch: Vec<Message>,
    paused: bool,
    no_room_since: Option<Instant>,
    /// Why there are no records: shown until some come.
    trouble: Option<String>,
    probe_at: Instant,
    version: u64,
    commit_answered: Instant,
    commit_warned: bool,
    /// Last, so that it is dropped last: it waits until every message is gone.
    client: Client,
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer").field("slots", &self.slots.len()).finish_non_exhaustive()
    }
}

impl Consumer {
    /// Makes the client; it connects in the background.
    pub fn new(parts: Parts) -> Result<Self, Error> {
        let client = Client::new(&parts.properties).map_err(Error::Client)?;
        let now = Instant::now();
        Ok(Self {
            parts,
            client,
            slots: Vec::new(),
            index: HashMap::new(),
            pending: BTreeSet::new(),
            retry_at: now,
            discover_at: now,
            batch: Vec::with_capacity(BATCH),
            paused: false,
            no_room_since: None,
            trouble: None,
            probe_at: now,
            version: 0,
            commit_answered: now,
            commit_warned: false,
        })
    }

    /// Works until it is told to stop; then finishes every block and file, commits, and leaves the group.
    pub fn run(mut self, stop_deadline: Duration) -> Result<(), Error> {
        self.join()?;
        while !self.parts.desk.stopping() {
            self.events()?;
            self.resolve()?;
            self.commit_durable();
            self.show();
            if self.has_room() {
                self.take()?;
            } else {
                self.wait_for_room()?;
            }
            self.cut_due(Instant::now())?;
        }
        self.parts.desk.show(control::State::Stopping, None);
        self.finish(stop_deadline)
    }

    fn join(&mut self) -> Result<(), Error> {
        self.parts.desk.show(control::State::Waiting, Some(format!("connecting to {}", self.parts.config.brokers)));
        match self.parts.config.assignment {
            Assignment::Group => self.client.subscribe(&self.parts.config.topics).map_err(Error::Client),
            Assignment::All => Ok(()),
        }
    }

    // --- records ---

    fn take(&mut self) -> Result<(), Error> {
        let mut batch = std::mem::take(&mut self.batch);
        self.client.consume(&mut batch, BATCH, Duration::ZERO);
        if batch.is_empty() {
            self.client.consume(&mut batch, 1, self.idle_wait());
            if !batch.is_empty() {
                self.client.consume(&mut batch, BATCH - 1, Duration::ZERO);
            }
        }
        let routed = self.route(&mut batch);
        batch.clear();
        self.batch = batch;
        routed
    }

    fn idle_wait(&self) -> Duration {
        let linger = self.parts.cut.linger;
        let due = self.slots.iter().filter(|slot| slot.is_open()).map(|slot| slot.since + linger).min();
        let now = Instant::now();
        due.map_or(IDLE_WAIT, |due| due.saturating_duration_since(now).min(IDLE_WAIT))
    }

    /// Puts messages into the open blocks of their partitions; those of partitions that are not ours are dropped.
    fn route(&mut self, batch: &mut Vec<Message>) -> Result<(), Error> {
        let now = Instant::now();
        let (mut records, mut cost) = (0, 0);
        let mut current = ((0, -1), None);
        for message in batch.drain(..) {
            let key = (message.topic_key(), message.partition());
            if current.0 != key {
                current = (key, self.slot_of(key, &message));
            }
            let Some(number) = current.1 else {
                if !message.is_record() {
                    self.trouble(&message);
                }
                continue;
            };
            if !message.is_record() {
                self.account(&mut records, &mut cost);
                self.partition_event(number, &message, now)?;
                continue;
            }
            let slot = &mut self.slots[number];
            let offset = message.offset();
            // After a seek, librdkafka may still hand out a record from before it.
            if offset < slot.next {
                continue;
            }
            if !slot.is_open() {
                slot.since = now;
            }
            let size = message.size() as u64;
            slot.next = offset + 1;
            slot.bytes += size;
            slot.cost += size + RECORD_COST;
            slot.open.push(message);
            (records, cost) = (records + 1, cost + size + RECORD_COST);
            if slot.open.len() >= self.parts.cut.lines || slot.bytes >= self.parts.cut.bytes {
                self.account(&mut records, &mut cost);
                self.cut(number)?;
            }
        }
        if records > 0 {
            self.trouble = None;
        }
        self.account(&mut records, &mut cost);
        Ok(())
    }

    /// Counts what was taken, before it can be counted as anything else.
    fn account(&self, records: &mut u64, cost: &mut u64) {
        if *records > 0 {
            self.parts.gauges.consumed(std::mem::take(records));
            self.parts.budget.take(std::mem::take(cost));
        }
    }

    fn slot_of(&mut self, key: (usize, i32), message: &Message) -> Option<usize> {
        if let Some(known) = self.index.get(&key) {
            return *known;
        }
        let topic = message.topic();
        let found =
            self.slots.iter().position(|slot| slot.partition.partition == key.1 && *slot.partition.topic == *topic);
        self.index.insert(key, found);
        found
    }

    fn partition_event(&mut self, number: usize, message: &Message, now: Instant) -> Result<(), Error> {
        let Some(error) = message.error() else { return Ok(()) };
        match error.code {
            Code::PartitionEOF => {
                self.trouble = None;
                let slot = &mut self.slots[number];
                if message.offset() > slot.next {
                    if !slot.is_open() {
                        slot.since = now;
                    }
                    slot.next = message.offset();
                }
            }
            Code::AutoOffsetReset | Code::OffsetOutOfRange => self.out_of_range(number)?,
            _ => self.trouble(message),
        }
        Ok(())
    }

    fn trouble(&mut self, message: &Message) {
        let Some(error) = message.error() else { return };
        if error.code == Code::PartitionEOF {
            return;
        }
        let text = match message.topic() {
            topic if topic.is_empty() => error.to_string(),
            topic => format!("{topic}: {error}"),
        };
        self.in_trouble(text);
    }

    fn in_trouble(&mut self, text: String) {
        if self.trouble.as_ref() != Some(&text) {
            tracing::warn!(reason = text, "Kafka gives no records");
            self.trouble = Some(text);
            self.probe_at = Instant::now() + RETRY;
        }
    }

    // --- blocks ---

    fn cut_due(&mut self, now: Instant) -> Result<(), Error> {
        for number in 0..self.slots.len() {
            let slot = &self.slots[number];
            if slot.is_open() && now >= slot.since + self.parts.cut.linger {
                self.cut(number)?;
            }
        }
        Ok(())
    }

    /// Sends the open block of a partition to the workers.
    fn cut(&mut self, number: usize) -> Result<(), Error> {
        let slot = &mut self.slots[number];
        if !slot.is_open() {
            return Ok(());
        }
        let records = std::mem::replace(&mut slot.open, Vec::with_capacity(self.parts.cut.lines.min(BATCH)));
        if let Some(last) = records.last() {
            slot.leader_epoch = last.leader_epoch();
        }
        let to = Position {
            partition: slot.partition.clone(),
            topic_id: slot.topic_id.clone(),
            next: slot.next,
            leader_epoch: slot.leader_epoch,
        };
        let block = RawBlock {
            ticket: self.parts.tickets.take(),
            source: Source::Partition { epoch: slot.epoch, from: slot.from, to },
            records: Records::Kafka(records),
            engine: self.parts.desk.engine(),
            now: now_millis(),
            cost: std::mem::take(&mut slot.cost),
        };
        slot.bytes = 0;
        slot.from = slot.next;
        self.parts.blocks.send(block).map_err(|_| Error::Closed)
    }

    // --- room ---

    /// Whether records may be taken now.
    fn has_room(&mut self) -> bool {
        let blocked = self.parts.gauges.stalled().is_some() || self.queue_is_full();
        let room = !blocked && self.parts.budget.wait_for_room(Duration::ZERO);
        if room {
            self.no_room_since = None;
            if std::mem::take(&mut self.paused) {
                let partitions = self.partitions();
                if let Err(error) = self.client.resume(&partitions) {
                    tracing::warn!(%error, "cannot resume the partitions");
                }
            }
        }
        room
    }

    fn queue_is_full(&self) -> bool {
        let (most, when_full) = self.parts.queue;
        when_full == WhenFull::Pause && self.parts.gauges.queue_bytes.load(Ordering::Relaxed) >= most
    }

    /// Waits a moment for room. When that lasts, the partitions are paused, and the group is served by taking nothing.
    fn wait_for_room(&mut self) -> Result<(), Error> {
        let since = *self.no_room_since.get_or_insert_with(Instant::now);
        if !self.paused {
            // Blocks that wait for company would be the ones that are waited for.
            for number in 0..self.slots.len() {
                self.cut(number)?;
            }
            if since.elapsed() < PATIENCE {
                self.parts.budget.wait_for_room(IDLE_WAIT);
                if self.parts.gauges.stalled().is_some() || self.queue_is_full() {
                    std::thread::park_timeout(IDLE_WAIT);
                }
                return Ok(());
            }
            let partitions = self.partitions();
            match self.client.pause(&partitions) {
                Ok(()) => self.paused = true,
                Err(error) => tracing::warn!(%error, "cannot pause the partitions"),
            }
        }
        let mut batch = std::mem::take(&mut self.batch);
        self.client.consume(&mut batch, 1, IDLE_WAIT);
        let routed = self.route(&mut batch);
        self.batch = batch;
        routed
    }

    fn partitions(&self) -> Vec<TopicPartition> {
        self.slots.iter().map(|slot| slot.partition.clone()).collect()
    }

    // --- the group ---

    fn events(&mut self) -> Result<(), Error> {
        while let Some(event) = self.client.next_event() {
            match event {
                Event::Assign(partitions) => self.assigned(partitions),
                Event::Revoke(partitions) => self.revoked(&partitions)?,
                Event::Error { error, fatal: true } => self.replace_client(&error)?,
                Event::Error { error, fatal: false } => self.in_trouble(error.to_string()),
                Event::Committed(Ok(())) => {
                    self.commit_answered = Instant::now();
                    self.commit_warned = false;
                }
                Event::Committed(Err(error)) => {
                    tracing::debug!(%error, "the group refused a commit; it is sent again");
                    for slot in &mut self.slots {
                        slot.committed = -1;
                    }
                }
            }
        }
        if self.parts.config.assignment == Assignment::All && Instant::now() >= self.discover_at {
            self.discover();
        }
        Ok(())
    }

    fn assigned(&mut self, partitions: Vec<TopicPartition>) {
        tracing::info!(count = partitions.len(), "the group assigned partitions");
        let none = partitions.is_empty();
        self.pending.extend(partitions);
        self.retry_at = Instant::now();
        if none {
            let answer = match self.client.protocol() {
                Protocol::Cooperative => self.client.incremental_assign(&[]),
                Protocol::Eager => self.client.assign(&[]),
            };
            self.log_answer(answer);
            self.trouble = Some("the group has no partition for this instance".into());
        }
    }

    /// Gives partitions back: finished, checkpointed and committed, unless they were lost already.
    fn revoked(&mut self, partitions: &[TopicPartition]) -> Result<(), Error> {
        let lost = self.client.assignment_lost();
        tracing::info!(count = partitions.len(), lost, "the group revoked partitions");
        self.pending.retain(|partition| !partitions.contains(partition));
        let ours: Vec<_> = self.partitions().into_iter().filter(|partition| partitions.contains(partition)).collect();
        if lost {
            self.release(&ours);
        } else if !ours.is_empty() {
            for number in 0..self.slots.len() {
                self.cut(number)?;
            }
            if self.barrier(Finish::No, REVOKE_DEADLINE)? {
                self.commit_now(&ours);
            } else {
                tracing::error!(
                    "could not finish the revoked partitions' blocks in time; the next owner may repeat them"
                );
            }
            self.release(&ours);
        }
        let answer = match self.client.protocol() {
            Protocol::Cooperative => self.client.incremental_unassign(&ours),
            Protocol::Eager => self.client.unassign(),
        };
        self.log_answer(answer);
        Ok(())
    }

    fn log_answer(&self, answer: Result<(), KafkaError>) {
        if let Err(error) = answer {
            tracing::error!(%error, "librdkafka refused the answer to a rebalance");
        }
    }

    /// Ends the assignment of partitions; what is open of them is dropped.
    fn release(&mut self, partitions: &[TopicPartition]) {
        for partition in partitions {
            self.parts.tracker.end(partition);
        }
        let (gauges, budget) = (&self.parts.gauges, &self.parts.budget);
        self.slots.retain(|slot| {
            let goes = partitions.contains(&slot.partition);
            if goes {
                gauges.returned(slot.open.len() as u64);
                budget.give_back(slot.cost);
            }
            !goes
        });
        self.index.clear();
        self.parts.desk.partitions.store(self.slots.len(), Ordering::Relaxed);
    }

    /// Waits until everything sent so far is durable; returns whether it became so in time.
    fn barrier(&mut self, finish: Finish, deadline: Duration) -> Result<bool, Error> {
        let (reply, answered) = bounded(1);
        let before = self.parts.tickets.next();
        self.parts.inbox.send(Inbox::Checkpoint { before, finish, reply }).map_err(|_| Error::Closed)?;
        match answered.recv_timeout(deadline) {
            Ok(()) => Ok(true),
            Err(crossbeam_channel::RecvTimeoutError::Timeout) => Ok(false),
            Err(crossbeam_channel::RecvTimeoutError::Disconnected) => Err(Error::Closed),
        }
    }

    /// Replaces a client that can do nothing any more.
    fn replace_client(&mut self, error: &KafkaError) -> Result<(), Error> {
        tracing::error!(%error, "the Kafka client failed for good; making a new one");
        let ours = self.partitions();
        self.release(&ours);
        self.pending.clear();
        self.batch.clear();
        self.paused = false;
        self.client = Client::new(&self.parts.properties).map_err(Error::Client)?;
        self.discover_at = Instant::now();
        self.trouble = Some(error.to_string());
        self.join()
    }

    // --- commits ---

    /// Tells the group what became durable since the last time.
    fn commit_durable(&mut self) {
        let commits = {
            let durable = self.parts.gauges.durable();
            if durable.version == self.version && self.slots.iter().all(|slot| slot.committed >= 0) {
                return;
            }
            self.version = durable.version;
            self.commits(&durable.state, |slot, next| slot.committed < next)
        };
        if commits.is_empty() {
            return;
        }
        match self.client.commit_async(&commits) {
            Ok(()) => {
                for commit in commits {
                    if let Some(slot) = self.slots.iter_mut().find(|slot| slot.partition == commit.partition) {
                        slot.committed = commit.offset;
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "cannot send a commit; it is sent again"),
        }
        if !self.commit_warned && self.commit_answered.elapsed() > Duration::from_secs(60) {
            self.commit_warned = true;
            tracing::warn!(
                "the group has acknowledged no commit for a minute; another owner would repeat what was written since"
            );
        }
    }

    fn commits(&self, state: &super::journal::State, wanted: impl Fn(&Slot, i64) -> bool) -> Vec<Commit> {
        self.slots
            .iter()
            .filter_map(|slot| {
                let durable = state.partitions.get(&slot.partition)?;
                wanted(slot, durable.next).then(|| self.commit_of(&slot.partition, durable, state.number))
            })
            .collect()
    }

    fn commit_of(&self, partition: &TopicPartition, durable: &PartitionState, number: u64) -> Commit {
        let (home, incarnation) = self.parts.home.clone();
        let owner = Owner { home, incarnation, number, topic_id: durable.topic_id.clone() };
        Commit {
            partition: partition.clone(),
            offset: durable.next,
            leader_epoch: durable.leader_epoch,
            metadata: owner.to_string(),
        }
    }

    /// Commits the durable offsets of these partitions and waits for the answer, a few times if need be.
    fn commit_now(&mut self, partitions: &[TopicPartition]) {
        let commits = {
            let durable = self.parts.gauges.durable();
            self.commits(&durable.state, |slot, _| partitions.contains(&slot.partition))
        };
        for attempt in 1..=5 {
            match self.client.commit(&commits).and_then(|answers| answers.into_iter().collect::<Result<Vec<_>, _>>()) {
                Ok(_) => return,
                Err(error) if attempt == 5 => {
                    tracing::warn!(%error, "the group did not take the last commit; the next owner may repeat what was written since");
                }
                Err(error) => {
                    tracing::debug!(%error, attempt, "the group did not take a commit");
                    std::thread::park_timeout(Duration::from_millis(200));
                }
            }
        }
    }

    // --- starts ---

    /// Finds the partitions of the topics without the help of a group.
    fn discover(&mut self) {
        self.discover_at = Instant::now() + DISCOVERY;
        match self.all_partitions() {
            Ok(found) => {
                for partition in found {
                    if !self.slots.iter().any(|slot| slot.partition == partition) {
                        self.pending.insert(partition);
                    }
                }
            }
            Err(error) => {
                self.discover_at = Instant::now() + RETRY;
                self.in_trouble(error.to_string());
            }
        }
    }

    fn all_partitions(&self) -> Result<Vec<TopicPartition>, KafkaError> {
        let names = topic_names(&self.client, &self.parts.config.topics, REQUEST_TIMEOUT)?;
        let mut partitions = Vec::new();
        for info in self.client.describe_topics(&names, REQUEST_TIMEOUT)? {
            let info = info?;
            partitions.extend(
                (0..info.partitions).map(|partition| TopicPartition { topic: info.name.as_str().into(), partition }),
            );
        }
        Ok(partitions)
    }

    /// Finds out where pending partitions begin, makes that durable, and begins to read them.
    fn resolve(&mut self) -> Result<(), Error> {
        if self.pending.is_empty() || Instant::now() < self.retry_at {
            return Ok(());
        }
        // Where a partition goes on is read from the last checkpoint. What an assignment before this one wrote must be in it, or
        // it would be written again.
        if !self.settled()? {
            return Ok(());
        }
        let pending: Vec<_> = self.pending.iter().cloned().collect();
        match self.starts(&pending) {
            Ok(starts) => {
                let started = self.pin(starts)?;
                // The commits that follow come from the checkpoint too: one from before the starts would take them back.
                if self.settled()? {
                    self.begin(started);
                }
            }
            Err(error) => {
                self.retry_at = Instant::now() + RETRY;
                self.in_trouble(format!("cannot find out where to start: {error}"));
            }
        }
        Ok(())
    }

    /// Makes everything durable that was sent so far; if that takes long, it is tried again later.
    fn settled(&mut self) -> Result<bool, Error> {
        let settled = self.parts.gauges.stalled().is_none() && self.barrier(Finish::No, PATIENCE)?;
        if !settled {
            self.retry_at = Instant::now() + RETRY;
        }
        Ok(settled)
    }

    /// Asks brokers and group, and decides.
    fn starts(&self, pending: &[TopicPartition]) -> Result<Vec<(Position, Option<Frame>)>, KafkaError> {
        let topics: BTreeSet<String> = pending.iter().map(|partition| partition.topic.to_string()).collect();
        let topics: Vec<String> = topics.into_iter().collect();
        let infos: Vec<TopicInfo> =
            self.client.describe_topics(&topics, REQUEST_TIMEOUT)?.into_iter().collect::<Result<_, _>>()?;
        let infos: HashMap<&str, &TopicInfo> = infos.iter().map(|info| (info.name.as_str(), info)).collect();
        let local = self.parts.gauges.durable().state.partitions.clone();
        let group = self.group_offsets(&infos)?;
        let known = |topic: &str| {
            local.keys().any(|partition| &*partition.topic == topic)
                || group.iter().any(|(partition, offset)| &*partition.topic == topic && offset.is_some())
        };
        let (mut decided, mut open) = (Vec::new(), Vec::new());
        for partition in pending {
            let topic_id = infos.get(&*partition.topic).map_or("", |info| info.id.as_str());
            let decision = decide(&Known {
                home: (&self.parts.home.0, self.parts.home.1),
                local: local.get(partition),
                group: group.get(partition).and_then(Option::as_ref),
                topic_id,
                topic_known: known(&partition.topic),
            });
            let at = |next, leader_epoch| Position {
                partition: partition.clone(),
                topic_id: topic_id.to_owned(),
                next,
                leader_epoch,
            };
            let earliest = (partition.clone(), OffsetSpec::Earliest);
            match decision {
                Decision::Continue => {
                    let (next, leader_epoch) =
                        local.get(partition).map_or((0, -1), |local| (local.next, local.leader_epoch));
                    // Noted once more, it changes nothing here and is committed.
                    let position = at(next, leader_epoch);
                    let unknown = matches!(group.get(partition), Some(None));
                    let frame = unknown.then(|| Frame::Start(position.clone()));
                    decided.push((position, frame));
                }
                Decision::Move { to, cause } => {
                    tracing::warn!(%partition, to, "another instance has read on, or the group's offset was reset: going on there");
                    decided.push((at(to, -1), Some(Frame::Move { to: at(to, -1), cause })));
                }
                Decision::Adopt { at: next } => decided.push((at(next, -1), Some(Frame::Start(at(next, -1))))),
                Decision::Added => open.push((earliest, at(0, -1), None)),
                Decision::Recreated => open.push((earliest, at(0, -1), Some(MoveCause::Recreated))),
                Decision::New => {
                    let spec = match self.parts.config.start {
                        Start::Earliest => OffsetSpec::Earliest,
                        Start::Latest => OffsetSpec::Latest,
                        Start::Time(time) => OffsetSpec::Time(time),
                    };
                    open.push(((partition.clone(), spec), at(0, -1), None));
                }
            }
        }
        let queries: Vec<_> = open.iter().map(|(query, ..)| query.clone()).collect();
        for (offset, (query, mut position, cause)) in offsets_at(&self.client, &queries)?.into_iter().zip(open) {
            position.next = offset;
            tracing::info!(partition = %query.0, offset, from = ?query.1, "a partition starts");
            let frame = match cause {
                Some(cause) => Frame::Move { to: position.clone(), cause },
                None => Frame::Start(position.clone()),
            };
            decided.push((position, Some(frame)));
        }
        Ok(decided)
    }

    /// What the group has for every partition of these topics.
    fn group_offsets(
        &self,
        infos: &HashMap<&str, &TopicInfo>,
    ) -> Result<HashMap<TopicPartition, Option<super::native::GroupOffset>>, KafkaError> {
        if self.parts.config.assignment == Assignment::All {
            return Ok(HashMap::new());
        }
        let all: Vec<TopicPartition> = infos
            .values()
            .flat_map(|info| {
                (0..info.partitions).map(|partition| TopicPartition { topic: info.name.as_str().into(), partition })
            })
            .collect();
        let offsets = self.client.committed(&all, REQUEST_TIMEOUT)?;
        Ok(all.into_iter().zip(offsets).collect())
    }

    /// Makes starts durable here and known to the group; returns those that are.
    fn pin(&mut self, starts: Vec<(Position, Option<Frame>)>) -> Result<Vec<Position>, Error> {
        let mut answers = Vec::new();
        let mut fresh = Vec::new();
        for (position, frame) in &starts {
            let Some(frame) = frame else { continue };
            if let Frame::Move { to, cause: MoveCause::Recreated } = frame {
                tracing::error!(partition = %to.partition, at = to.next, "the topic was deleted and created anew: starting at its first record");
            }
            let (reply, answered) = bounded(1);
            let ticket = self.parts.tickets.take();
            let note = Inbox::Note { ticket, frame: frame.clone(), reply };
            self.parts.inbox.send(note).map_err(|_| Error::Closed)?;
            answers.push(answered);
            let durable = PartitionState {
                topic_id: position.topic_id.clone(),
                next: position.next,
                leader_epoch: position.leader_epoch,
            };
            fresh.push(self.commit_of(&position.partition, &durable, 0));
        }
        for answered in answers {
            answered.recv().map_err(|_| Error::Closed)?;
        }
        if self.parts.config.assignment == Assignment::Group && !fresh.is_empty() {
            // Unless the group knows the start, the next owner would resolve it once more and might find another one.
            let acknowledged =
                self.client.commit(&fresh).and_then(|answers| answers.into_iter().collect::<Result<Vec<_>, _>>());
            if let Err(error) = acknowledged {
                self.retry_at = Instant::now() + RETRY;
                self.in_trouble(format!("the group did not take the starts: {error}"));
                return Ok(Vec::new());
            }
        }
        Ok(starts.into_iter().map(|(position, _)| position).collect())
    }

    /// Begins to read partitions whose start is durable.
    fn begin(&mut self, started: Vec<Position>) {
        if started.is_empty() {
            return;
        }
        let now = Instant::now();
        let assigned: Vec<_> = started.iter().map(|position| (position.partition.clone(), position.next)).collect();
        for position in started {
            self.pending.remove(&position.partition);
            let epoch = self.parts.tracker.begin(position.partition.clone(), position.next);
            self.slots.push(Slot {
                partition: position.partition,
                topic_id: position.topic_id,
                epoch,
                next: position.next,
                committed: -1,
                open: Vec::new(),
                from: position.next,
                bytes: 0,
                cost: 0,
                since: now,
                leader_epoch: position.leader_epoch,
            });
        }
        self.index.clear();
        let answer = match self.client.protocol() {
            Protocol::Cooperative => self.client.incremental_assign(&assigned),
            Protocol::Eager => {
                let all: Vec<_> = self.slots.iter().map(|slot| (slot.partition.clone(), slot.next)).collect();
                self.client.assign(&all)
            }
        };
        self.log_answer(answer);
        if self.paused {
            // All of them are resumed together, when there is room.
            let all = self.partitions();
            if let Err(error) = self.client.pause(&all) {
                tracing::warn!(%error, "cannot pause the partitions");
            }
        }
        self.trouble = None;
        self.parts.desk.partitions.store(self.slots.len(), Ordering::Relaxed);
    }

    /// The broker does not have the offset at which a partition is to be read.
    fn out_of_range(&mut self, number: usize) -> Result<(), Error> {
        self.cut(number)?;
        let slot = &self.slots[number];
        let (partition, offset) = (slot.partition.clone(), slot.next);
        let queries = [(partition.clone(), OffsetSpec::Earliest), (partition.clone(), OffsetSpec::Latest)];
        let (low, high) = match offsets_at(&self.client, &queries).map(|found| (found[0], found[1])) {
            Ok(range) => range,
            Err(error) => {
                self.in_trouble(format!(
                    "{partition}: offset {offset} is out of range, and the watermarks are unknown: {error}"
                ));
                return Ok(());
            }
        };
        if (low..=high).contains(&offset) {
            // The broker that answered was behind for a moment: nothing is lost.
            tracing::warn!(%partition, offset, low, high, "the broker refused an offset that it has: reading it again");
            if let Err(error) = self.client.seek(&[(partition, offset)], REQUEST_TIMEOUT) {
                self.in_trouble(format!("cannot read on: {error}"));
            }
            return Ok(());
        }
        if self.parts.config.out_of_range == OutOfRange::Stop {
            return Err(Error::OutOfRange { partition, offset, low, high });
        }
        let below = offset < low;
        let to = match self.parts.config.out_of_range {
            OutOfRange::Earliest if below => low,
            // Past the end, the log was truncated: its end is where the records go on, not the whole retention again.
            _ => high,
        };
        let cause = if below { MoveCause::Gap { from: offset } } else { MoveCause::Reset };
        if below {
            tracing::error!(%partition, from = offset, to, lost = to - offset, "a gap: retention took records before they were read");
        } else {
            tracing::error!(%partition, from = offset, to, "the broker's log ends before the stored offset: it was truncated; going on at its end");
        }
        let slot = &self.slots[number];
        let position =
            Position { partition: partition.clone(), topic_id: slot.topic_id.clone(), next: to, leader_epoch: -1 };
        let frame = Frame::Move { to: position, cause };
        let (reply, answered) = bounded(1);
        let ticket = self.parts.tickets.take();
        self.parts.inbox.send(Inbox::Note { ticket, frame, reply }).map_err(|_| Error::Closed)?;
        answered.recv().map_err(|_| Error::Closed)?;
        let epoch = self.parts.tracker.begin(partition.clone(), to);
        let slot = &mut self.slots[number];
        (slot.epoch, slot.next, slot.from) = (epoch, to, to);
        if let Err(error) = self.client.seek(&[(partition, to)], REQUEST_TIMEOUT) {
            tracing::warn!(%error, "cannot seek past the gap yet");
        }
        Ok(())
    }

    // --- the rest ---

    fn show(&mut self) {
        if self.trouble.is_some() && !self.slots.is_empty() && Instant::now() >= self.probe_at {
            // No record comes from an idle topic after the brokers are back: ask them.
            self.probe_at = Instant::now() + RETRY * 5;
            let queries = [(self.slots[0].partition.clone(), OffsetSpec::Earliest)];
            if self.client.list_offsets(&queries, false, RETRY).is_ok_and(|found| found.iter().all(Result::is_ok)) {
                self.trouble = None;
            }
        }
        let desk = &self.parts.desk;
        if let Some(stalled) = self.parts.gauges.stalled() {
            desk.show(control::State::Paused, Some(stalled));
        } else if self.queue_is_full() {
            desk.show(control::State::Paused, Some("the failure queue is full: retry or clear it".into()));
        } else if let Some(trouble) = &self.trouble {
            desk.show(control::State::Waiting, Some(trouble.clone()));
        } else if !self.slots.is_empty() {
            desk.show(control::State::Consuming, None);
        }
    }

    fn finish(mut self, deadline: Duration) -> Result<(), Error> {
        for number in 0..self.slots.len() {
            self.cut(number)?;
        }
        if self.barrier(Finish::Files, deadline)? {
            let ours = self.partitions();
            if !ours.is_empty() {
                self.commit_now(&ours);
            }
        } else {
            tracing::error!("the drain took too long: what is in flight is completed at the next start");
        }
        let ours = self.partitions();
        self.release(&ours);
        Ok(())
    }
}

/// The topics that are meant: names as they are, regular expressions matched against all topics of the cluster.
pub fn topic_names(client: &Client, topics: &[String], timeout: Duration) -> Result<Vec<String>, KafkaError> {
    let (patterns, mut names): (Vec<&String>, Vec<String>) = {
        let (patterns, names): (Vec<_>, Vec<_>) = topics.iter().partition(|topic| topic.starts_with('^'));
        (patterns, names.into_iter().cloned().collect())
    };
    if !patterns.is_empty() {
        let invalid = |error: regex_lite::Error| KafkaError { code: Code::InvalidArgument, text: error.to_string() };
        let patterns = patterns.iter().map(|text| regex_lite::Regex::new(text)).collect::<Result<Vec<_>, _>>();
        let patterns = patterns.map_err(invalid)?;
        let all = client.topic_names(timeout)?;
        names.extend(all.into_iter().filter(|name| patterns.iter().any(|pattern| pattern.is_match(name))));
        names.sort();
        names.dedup();
    }
    Ok(names)
}

/// Asks the brokers for offsets; a time after the last record is the end.
fn offsets_at(client: &Client, queries: &[(TopicPartition, OffsetSpec)]) -> Result<Vec<i64>, KafkaError> {
    if queries.is_empty() {
        return Ok(Vec::new());
    }
    // One partition must not be asked about twice in a request, so each kind of question is a request of its own.
    let mut found = vec![-1; queries.len()];
    let kinds: Vec<OffsetSpec> = queries.iter().map(|(_, spec)| *spec).collect();
    let mut asked: Vec<OffsetSpec> = Vec::new();
    for kind in kinds {
        if asked.contains(&kind) {
            continue;
        }
        asked.push(kind);
        let which: Vec<usize> = (0..queries.len()).filter(|index| queries[*index].1 == kind).collect();
        let batch: Vec<_> = which.iter().map(|index| queries[*index].clone()).collect();
        for (index, offset) in which.into_iter().zip(client.list_offsets(&batch, true, REQUEST_TIMEOUT)?) {
            found[index] = offset?;
        }
    }
    let late: Vec<usize> = (0..queries.len()).filter(|index| found[*index] < 0).collect();
    let ends: Vec<_> = late.iter().map(|index| (queries[*index].0.clone(), OffsetSpec::Latest)).collect();
    if !ends.is_empty() {
        for (index, offset) in late.into_iter().zip(client.list_offsets(&ends, true, REQUEST_TIMEOUT)?) {
            found[index] = offset?;
        }
    }
    Ok(found)
}

/// Wall clock, milliseconds since 1970 UTC.
pub fn now_millis() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}
