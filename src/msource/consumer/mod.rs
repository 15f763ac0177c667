//! The consumer thread: takes records from Kafka in batches, cuts them into blocks, and answers the group.
//!
//! **Promise.** No partition is fetched before its start is durable (and, in a group, acknowledged by the group). A block
//! begins where the one before it ended: offsets without a record of their own (control records, aborted and
//! compacted-away ones) belong to the block around them, so that lag reaches 0. When a partition is taken away, its blocks are
//! finished, checkpointed and committed first; when it was lost, what was read of it is dropped.
//!
//! **Memory.** Records are counted against the [`Budget`] from the moment they are taken, compressed values also for what
//! they become: when the first one of a block is compressed, each of its values is asked. Without room the thread takes
//! nothing; after five seconds of that it pauses its partitions, so that it can serve the group meanwhile.
//!
//! **How it fails.** What may pass (no broker, no topic yet, a coordinator that is loading) is shown and waited for. A fatal
//! error of the client, one that stands still, and a topic made anew get another client. Only `out_of_range: stop`, clients
//! that do not end, and a broken delivery end the thread.

mod gaps;
mod group;
mod seals;
mod starts;
#[cfg(test)]
mod tests;
mod topics;
mod watchdog;

pub(super) use gaps::is_damage;

pub use starts::topic_names;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender};
use rdkafka::types::RDKafkaErrorCode as Code;

use super::TopicPartition;
use super::journal::{Mark, Position};
use super::native::{Client, GroupOffset, KafkaError, Message, OffsetSpec, Remains};
use super::payload::claimed_size;
use super::tracker::{Epoch, Tracker};
use crate::block::{RawBlock, Records, Source};
use crate::config::{Assignment, Kafka, Visibility, WhenFull};
use crate::control;
use crate::delivery::{Budget, Finish, Gauges, Inbox, SealRequest, Tickets};
use crate::fault;
use crate::transform::recipe::Engine;
use watchdog::Watchdog;

/// How long the thread waits for room before it pauses its partitions.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest wait for records: how soon an idle thread notices anything else.
const IDLE_WAIT: Duration = Duration::from_millis(200);

/// Messages taken at once.
const BATCH: usize = 2048;

/// Bound on one request to a broker.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a service that stops waits for the group to take its offsets. They are saved here already.
const LAST_COMMIT: Duration = Duration::from_secs(5);

/// Pause after a request that failed, and between looks at what is waited for.
const RETRY: Duration = Duration::from_secs(1);

/// Longest pause before a client that failed is replaced.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// How long a revoked partition's blocks may take; less when `max.poll.interval.ms` is below its default of five minutes.
const REVOKE_DEADLINE: Duration = Duration::from_mins(1);

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
    /// `out_of_range: stop`, and the log was cut off.
    #[error(
        "{partition}: the broker's log was cut off at {end}, before the stored offset {offset}, and `kafka.out_of_range` is `stop`; move it with `set_offset`"
    )]
    Truncated {
        /// The partition.
        partition: TopicPartition,
        /// Where it stands.
        offset: i64,
        /// Where the log was cut off, as far as the broker knows.
        end: i64,
    },
    /// Clients that were replaced do not end.
    #[error(
        "{0} Kafka clients that stood still hang in their own end and keep what they hold; start the service again, which loses and repeats nothing"
    )]
    Left(usize),
    /// The delivery or the workers are gone; they tell why.
    #[error("the delivery ended")]
    Closed,
}

/// How blocks are cut.
#[derive(Clone, Debug)]
pub struct Cut {
    /// Most records in a block.
    pub lines: usize,
    /// Most bytes in a block, of compressed values as they are decompressed; one record may be larger.
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
    /// Whether the group has given every partition to others.
    pub without_share: AtomicBool,
    /// How often the client stood still and was made anew.
    pub client_restarts: AtomicU64,
    /// How many clients that were replaced have not ended yet.
    pub clients_left: AtomicUsize,
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
            without_share: AtomicBool::new(false),
            client_restarts: AtomicU64::new(0),
            clients_left: AtomicUsize::new(0),
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
    /// How often `assignment: all` looks for new partitions.
    pub discovery: Duration,
    /// How long the group waits for a member that gives partitions up.
    pub max_poll_interval: Duration,
    /// How blocks are cut.
    pub cut: Cut,
    /// `failure_queue.max_bytes` and `when_full`.
    pub queue: (u64, WhenFull),
    /// Takes blocks to the workers.
    pub blocks: Sender<RawBlock>,
    /// Takes notes and barriers to the delivery.
    pub inbox: Sender<Inbox>,
    /// Brings the offsets that the group must take before files can be published.
    pub seals: Receiver<SealRequest>,
    /// Whether files are hidden until the group has taken their offsets.
    pub visibility: Visibility,
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
    /// Incarnations of ours that ended here.
    pub former: Vec<u64>,
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
    /// Bytes that its values become when they are decompressed; 0 while they are taken for plain, as the first one is.
    unpacked: u64,
    cost: u64,
    since: Instant,
    leader_epoch: i32,
    fetch: Fetch,
    /// Whether the end of the partition was told since the last record. See [`Slot::skips`].
    told: Told,
    /// Where it could not be read on, and how often.
    attempts: Option<(i64, u32)>,
}

/// Whether what librdkafka hands out of a partition is taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fetch {
    /// It is.
    On,
    /// Not before it was told, at this time or later, to read from where the partition stands.
    Seek(Instant),
    /// The same, and the broker is to say first whether it still has the record before that place. Until then the partition
    /// is assigned at this offset.
    Check(Instant, i64),
    /// Not at all: it may be of another topic of the same name.
    Stale,
}

/// What librdkafka handed out last of a partition.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    /// A record, or nothing yet.
    Record,
    /// That its end was reached.
    End,
}

impl Slot {
    /// Whether what comes next, at this offset, may have skipped a record.
    ///
    /// librdkafka takes the end of a partition, when it hands it out within a batch, for a record at that offset: each time
    /// it resumes the partition after that (a rebalance is enough) it goes on one too far. A control record gives the same
    /// picture, and then reading once more from where we stand gives the same again.
    fn skips(&self, offset: i64) -> bool {
        self.told == Told::End && offset > self.next
    }

    /// What librdkafka is told when it is given the partition.
    fn assignment(&self) -> (TopicPartition, i64) {
        let place = if let Fetch::Check(_, at) = self.fetch { at } else { self.next };
        (self.partition.clone(), place)
    }

    /// Adds a record to the open block; returns what it costs. `claimed` tells how long a value is when it is decompressed.
    #[inline]
    fn add(&mut self, record: Message, now: Instant, claimed: impl Fn(&[u8]) -> u64) -> u64 {
        self.told = Told::Record;
        if !self.is_open() {
            self.since = now;
        }
        let size = record.size() as u64;
        let mut cost = size + RECORD_COST;
        if self.unpacked > 0 || self.open.is_empty() {
            let unpacked = claimed(record.value().unwrap_or_default());
            self.unpacked += unpacked;
            cost += unpacked;
        }
        self.next = record.offset() + 1;
        self.bytes += size;
        self.cost += cost;
        self.open.push(record);
        cost
    }

    /// Has the partition read once more from where it stands.
    fn read_again(&mut self, at: Instant) {
        self.told = Told::Record;
        self.fetch = Fetch::Seek(at);
    }

    /// Whether anything waits to become a block: records, or offsets without any.
    fn is_open(&self) -> bool {
        self.next > self.from
    }
}

/// Whether a commit is on its way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum InFlight {
    No,
    Yes,
}

/// Whether partitions were assigned again of our own accord.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reassigned {
    No,
    /// Since the queue was last seen empty. A revocation that comes now may be older than that: librdkafka takes the
    /// assignment for our answer to it, forgets that the old one is lost, and joins the next generation. What we
    /// commit may carry that one then, in which the partitions are another's.
    Yes,
}

/// Whether a warning was given.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Said {
    No,
    Yes,
}

/// A client that can do nothing any more.
struct Failed {
    code: Code,
    /// When it may be replaced.
    again: Instant,
}

/// See the module.
pub struct Consumer {
    parts: Parts,
    /// Bound on a decompressed value, bytes.
    payload_limit: usize,
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
    /// When commits may be sent again, after one was refused.
    commit_at: Instant,
    commit_in_flight: InFlight,
    /// Since when commits are sent and none is answered, and whether that was told.
    unanswered_since: Option<(Instant, Said)>,
    /// The seal that the group is asked to take.
    asked: Option<seals::Asked>,
    rejoin: seals::Rejoin,
    reassigned: Reassigned,
    /// Partitions that are being given up, for which the group is asked no longer than we are a member.
    leaving: Vec<TopicPartition>,
    /// When to ask again about what is hidden of partitions that are not ours.
    look_at: Instant,
    /// Since when that is not answered, and whether that was told.
    unknown_since: Option<(Instant, Said)>,
    /// What the group had for each partition when it was asked last.
    found: HashMap<TopicPartition, Option<GroupOffset>>,
    /// Ours of which the group has not taken a prepared range. It is told once more where they stand before they are read, so that
    /// our commit loses even if it comes to light later, in a log of the coordinator's that was thought to be cut off.
    refused: BTreeSet<TopicPartition>,
    /// The owners before us of each partition, carried on in every commit.
    previous: HashMap<TopicPartition, Vec<Mark>>,
    /// How many partitions each topic had when the group began to read it, as far as that is known.
    begun_with: HashMap<Arc<str>, i32>,
    /// Whether the client has to be replaced.
    failed: Option<Failed>,
    /// Pause before the next client that fails is replaced.
    retry_pause: Duration,
    /// How many changes of topic ids were looked at.
    ids_seen: u64,
    /// Ids of topics that are no more and of which something was hidden: nobody can decide about that.
    gone_topics: BTreeSet<String>,
    watchdog: Watchdog,
    /// Clients before this one that may not have ended yet.
    left: Vec<Remains>,
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
            payload_limit: parts.desk.engine().payload_limit,
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
            commit_at: now,
            commit_in_flight: InFlight::No,
            unanswered_since: None,
            asked: None,
            rejoin: seals::Rejoin::No,
            reassigned: Reassigned::No,
            leaving: Vec::new(),
            look_at: now,
            unknown_since: None,
            found: HashMap::new(),
            refused: BTreeSet::new(),
            previous: HashMap::new(),
            begun_with: HashMap::new(),
            failed: None,
            retry_pause: RETRY,
            ids_seen: 0,
            gone_topics: BTreeSet::new(),
            watchdog: Watchdog::new(now),
            left: Vec::new(),
        })
    }

    /// Works until it is told to stop; then finishes every block and file, commits, and leaves the group.
    pub fn run(mut self, stop_deadline: Duration) -> Result<(), Error> {
        self.join()?;
        while !self.parts.desk.stopping() {
            // Asked in this order: a delivery may also be over because the service stops.
            if self.parts.gauges.is_over() && !self.parts.desk.stopping() {
                return Err(Error::Closed);
            }
            self.events()?;
            self.serve_seals()?;
            self.rejoin()?;
            self.look_at_hidden()?;
            self.leave_old_topics()?;
            self.resolve()?;
            self.read_again();
            self.commit_durable();
            self.show();
            if self.has_room() {
                self.watch()?;
                self.take()?;
            } else {
                self.watchdog.excuse();
                self.wait_for_room()?;
            }
            self.cut_due(Instant::now())?;
        }
        self.parts.desk.show(control::State::Stopping, None);
        self.finish(stop_deadline)
    }

    fn join(&mut self) -> Result<(), Error> {
        self.parts.desk.show(control::State::Waiting, Some(format!("connecting to {}", self.parts.config.brokers)));
        self.subscribe()
    }

    fn subscribe(&self) -> Result<(), Error> {
        match self.parts.config.assignment {
            Assignment::Group => self.client.subscribe(&self.parts.config.topics).map_err(Error::Client),
            Assignment::All => Ok(()),
        }
    }

    fn take(&mut self) -> Result<(), Error> {
        if fault::happens("kafka.standstill") {
            tracing::info!("the fault kafka.standstill happens");
            drop(self.client.pause(&self.partitions()));
        }
        let mut batch = std::mem::take(&mut self.batch);
        self.client.consume(&mut batch, BATCH, Duration::ZERO);
        if batch.is_empty() {
            self.client.consume(&mut batch, 1, self.idle_wait());
            if !batch.is_empty() {
                self.client.consume(&mut batch, BATCH - 1, Duration::ZERO);
            }
        }
        if batch.len() < BATCH && !self.client.has_event() {
            self.reassigned = Reassigned::No;
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
        self.notice_new_topics();
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
            // Within a damaged answer, librdkafka may hand out a record once more.
            if offset < slot.next || slot.fetch != Fetch::On {
                continue;
            }
            if slot.skips(offset) {
                slot.read_again(now);
                continue;
            }
            let claimed = |value: &[u8]| claimed_size(self.parts.config.payload, self.payload_limit, value);
            cost += slot.add(message, now, claimed);
            records += 1;
            if slot.open.len() >= self.parts.cut.lines || slot.bytes.max(slot.unpacked) >= self.parts.cut.bytes {
                self.account(&mut records, &mut cost);
                self.cut(number)?;
                self.wait_within_batch()?;
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
        if self.slots[number].fetch != Fetch::On {
            return Ok(());
        }
        match error.code {
            Code::PartitionEOF => {
                self.trouble = None;
                let slot = &mut self.slots[number];
                if slot.skips(message.offset()) {
                    slot.read_again(now);
                    return Ok(());
                }
                slot.told = Told::End;
                if message.offset() > slot.next {
                    if !slot.is_open() {
                        slot.since = now;
                    }
                    slot.next = message.offset();
                }
            }
            Code::AutoOffsetReset | Code::OffsetOutOfRange => self.out_of_range(number, message)?,
            code if is_damage(code) => self.damaged(number, &error)?,
            _ => self.trouble(message),
        }
        Ok(())
    }

    fn trouble(&mut self, message: &Message) {
        let Some(error) = message.error() else { return };
        // The client is asked for what is fatal.
        if matches!(error.code, Code::PartitionEOF | Code::Fatal) {
            return;
        }
        let topic = message.topic();
        let text =
            if topic.is_empty() || error.text.contains(&topic) { error.text } else { format!("{topic}: {error}") };
        self.in_trouble(text);
    }

    fn in_trouble(&mut self, text: String) {
        if self.trouble.as_ref() != Some(&text) {
            tracing::warn!(reason = text, "Kafka gives no records");
            self.trouble = Some(text);
            self.probe_at = Instant::now() + RETRY;
        }
    }

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
        (slot.bytes, slot.unpacked) = (0, 0);
        slot.from = slot.next;
        self.parts.blocks.send(block).map_err(|_| Error::Closed)
    }

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
                self.rewind(&partitions);
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

    /// Waits for room before more of a batch is taken, since it may be many times the bound when it is decompressed. When that
    /// lasts, the rest of it is dropped, and read again when there is room.
    fn wait_within_batch(&mut self) -> Result<(), Error> {
        if self.paused || self.parts.budget.wait_for_room(Duration::ZERO) {
            return Ok(());
        }
        for number in 0..self.slots.len() {
            self.cut(number)?;
        }
        let until = Instant::now() + PATIENCE;
        while !self.parts.budget.wait_for_room(IDLE_WAIT) {
            let now = Instant::now();
            if now >= until || self.parts.desk.stopping() || self.parts.gauges.is_over() {
                self.slots.iter_mut().filter(|slot| slot.fetch == Fetch::On).for_each(|slot| slot.read_again(now));
                break;
            }
            self.serve_seals()?;
        }
        Ok(())
    }

    fn partitions(&self) -> Vec<TopicPartition> {
        self.slots.iter().map(|slot| slot.partition.clone()).collect()
    }

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
        } else if desk.state().0 == control::State::Consuming {
            desk.show(control::State::Waiting, Some("the group has taken the partitions back".into()));
        }
    }

    fn finish(mut self, deadline: Duration) -> Result<(), Error> {
        for number in 0..self.slots.len() {
            self.cut(number)?;
        }
        let ours = self.partitions();
        self.leaving.clone_from(&ours);
        if self.barrier(Finish::Files, deadline)? {
            if !ours.is_empty() && !self.hides() {
                self.commit_now(&ours, LAST_COMMIT);
            }
        } else {
            tracing::error!("the drain took too long: what is in flight is completed at the next start");
        }
        self.release(&ours);
        Ok(())
    }
}

/// Wall clock, milliseconds since 1970 UTC.
pub fn now_millis() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}
