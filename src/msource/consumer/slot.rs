//! A partition that is read, with its open block.
//!
//! **Promise.** `from..next` is what the open block covers, with or without records; `next` is where the partition is read
//! on. What is added is counted for what it costs until the block is cut.
//!
//! **Not here.** Who may add to it, and when it is cut: see `take`.

use std::time::Instant;

use crossbeam_channel::Receiver;

use crate::delivery::Asking;
use crate::msource::TopicPartition;
use crate::msource::doubt::SILENCE;
use crate::msource::journal::Position;
use crate::msource::native::Message;
use crate::msource::tracker::Epoch;

/// What a record costs besides its bytes: librdkafka's and our bookkeeping.
const RECORD_COST: u64 = 300;

/// A partition that is read.
pub(super) struct Slot {
    pub(super) partition: TopicPartition,
    pub(super) topic_id: String,
    pub(super) epoch: Epoch,
    /// The next offset to be taken from Kafka.
    pub(super) next: i64,
    /// The offset that the group has acknowledged or been sent.
    pub(super) committed: i64,
    pub(super) open: Vec<Message>,
    /// First offset of the open block.
    pub(super) from: i64,
    pub(super) bytes: u64,
    /// Bytes that its values become when they are decompressed; 0 while they are taken for plain, as the first one is.
    pub(super) unpacked: u64,
    pub(super) cost: u64,
    pub(super) since: Instant,
    pub(super) leader_epoch: i32,
    pub(super) fetch: Fetch,
    /// Whether the end of the partition was told since the last record. See [`Slot::skips`].
    pub(super) told: Told,
    /// Where it could not be read on.
    pub(super) attempts: Option<Attempts>,
    /// Where it goes on once that is durable, while it is [`Fetch::Moving`].
    pub(super) moving: Option<Moving>,
}

/// A move that is noted, and not known to be durable.
pub(super) struct Moving {
    pub(super) to: i64,
    /// Answered when it is.
    pub(super) noted: Receiver<()>,
}

/// Attempts to read on from one place.
#[derive(Clone, Copy)]
pub(super) struct Attempts {
    at: i64,
    /// How many there were.
    pub(super) tries: u32,
    /// When the first one failed of those that followed each other without a long silence.
    pub(super) since: Instant,
    /// When the last one did.
    last: Instant,
}

/// Whether what librdkafka hands out of a partition is taken.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fetch {
    /// It is.
    On,
    /// Not before it was told, at this time or later, to read from where the partition stands.
    Seek(Instant),
    /// The same, and the broker is to say first whether it still has the record before that place. Until then the partition
    /// is assigned at this offset.
    Check(Instant, i64),
    /// Not before it is durable that the partition stands elsewhere.
    Moving,
    /// Not before the group was told, at this time or later, that the partition has gone back.
    Tell(Instant),
    /// Not at all: it may be of another topic of the same name.
    Stale,
}

/// What librdkafka handed out last of a partition.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
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
    pub(super) fn skips(&self, offset: i64) -> bool {
        self.told == Told::End && offset > self.next
    }

    /// Whether the group is asked to take something of this assignment.
    pub(super) fn is_of(&self, asking: &Asking) -> bool {
        self.partition == asking.position.partition && asking.epoch == Some(self.epoch)
    }

    /// What librdkafka is told when it is given the partition.
    pub(super) fn assignment(&self) -> (TopicPartition, i64) {
        let place = if let Fetch::Check(_, at) = self.fetch { at } else { self.next };
        (self.partition.clone(), place)
    }

    /// Adds a record with so many bytes of headers to the open block; returns what it costs. `claimed` tells how long a value
    /// is when it is decompressed.
    #[inline]
    pub(super) fn add(&mut self, record: Message, headers: u64, now: Instant, claimed: impl Fn(&[u8]) -> u64) -> u64 {
        self.told = Told::Record;
        if !self.is_open() {
            self.since = now;
        }
        let size = record.size() as u64 + headers;
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

    /// Counts one more attempt to read on from where it stands.
    pub(super) fn attempt(&mut self, now: Instant) -> Attempts {
        let last = self.attempts.filter(|last| last.at == self.next);
        let first = Attempts { at: self.next, tries: 1, since: now, last: now };
        let attempts = last.map_or(first, |before| {
            // While brokers are away nothing lasts.
            let is_silent = now.duration_since(before.last) > SILENCE;
            let since = if is_silent { now } else { before.since };
            Attempts { tries: before.tries.saturating_add(1), since, ..first }
        });
        self.attempts = Some(attempts);
        attempts
    }

    /// Where it stands, as it is noted.
    pub(super) fn position(&self) -> Position {
        Position {
            partition: self.partition.clone(),
            topic_id: self.topic_id.clone(),
            next: self.next,
            leader_epoch: self.leader_epoch,
        }
    }

    /// Has the partition read once more from where it stands.
    pub(super) fn read_again(&mut self, at: Instant) {
        self.told = Told::Record;
        self.fetch = Fetch::Seek(at);
    }

    /// Whether anything waits to become a block: records, or offsets without any.
    pub(super) fn is_open(&self) -> bool {
        self.next > self.from
    }
}
