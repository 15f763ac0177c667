//! Blocks on their way: what the source hands to the workers, and what the workers hand to the delivery.
//!
//! Everything moves in blocks: a range of offsets of one partition, or some entries of the failure queue, transformed
//! together. A block is the unit of batching, of order, of hand-over between threads and of recovery. Each carries a
//! ticket; the delivery takes blocks in the order of their tickets, whatever order the workers finished in.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::msink::FileKey;
use crate::msource::journal::{Position, QueueEntry};
use crate::msource::native::Message;
use crate::msource::tracker::Epoch;
use crate::record::Reject;
use crate::transform::recipe::Engine;

/// A place in the order of delivery.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The ticket of a block or a note.
    pub ticket: u64,
    /// Which part of the block, from 0: a block whose lines become too large is handed on in parts, each a block of its own
    /// to the delivery.
    pub part: u32,
}

impl Place {
    /// The first place of a ticket.
    pub const fn of(ticket: u64) -> Self {
        Self { ticket, part: 0 }
    }
}

/// A block of records that wait for their transform.
#[derive(Debug)]
pub struct RawBlock {
    /// Its place in the order of delivery.
    pub ticket: u64,
    /// Where it comes from.
    pub source: Source,
    /// Its records.
    pub records: Records,
    /// What turns them into lines.
    pub engine: Arc<Engine>,
    /// When it was put together, milliseconds since 1970 UTC: the time of the failures in it.
    pub now: i64,
    /// What it counts against the memory bound, bytes.
    pub cost: u64,
}

/// Where a block comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A partition.
    Partition {
        /// The assignment under which it was read.
        epoch: Epoch,
        /// The first offset.
        from: i64,
        /// Where the partition stands after it.
        to: Position,
    },
    /// The failure queue: the keys and sizes of the entries.
    Queue(Vec<(u64, u64)>),
    /// The failure queue of another home, which is adopted; see [`crate::msource::journal::BlockSource::Adopted`].
    Adopted {
        /// UUID of that home.
        home: String,
        /// The first key of its queue that is not taken over with this block.
        upto: u64,
    },
}

/// The records of a block.
#[derive(Debug)]
pub enum Records {
    /// From Kafka, read in place.
    Kafka(Vec<Message>),
    /// From the failure queue.
    Queue(Vec<(u64, QueueEntry)>),
}

impl Records {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Kafka(messages) => messages.len(),
            Self::Queue(entries) => entries.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A transformed block.
#[derive(Debug)]
pub struct DoneBlock {
    /// Its place in the order of delivery.
    pub place: Place,
    /// Whether no other part of the block follows.
    pub is_last: bool,
    /// Where it comes from.
    pub source: Source,
    /// The recipe that made it.
    pub recipe: Arc<str>,
    /// Its lines, one entry for each file they go to, in the order in which the files first appear.
    pub pieces: Vec<Lines>,
    /// Records that it took.
    pub records: u64,
    /// Records dropped on purpose, by reason.
    pub filtered: [u64; 3],
    /// Records that failed.
    pub rejects: Vec<Rejected>,
    /// What it counts against the memory bound, bytes.
    pub cost: u64,
}

/// The lines of a block that go to one file.
#[derive(Debug)]
pub struct Lines {
    /// Which file.
    pub key: FileKey,
    /// The lines, each with its `\n`; compressed when the files are.
    pub bytes: Vec<u8>,
    /// How many.
    pub lines: u64,
    /// CRC-32C of the bytes.
    pub crc: u32,
    /// Its records as rejects, in case that no file can have the name: kept only where names in records decide their file, and
    /// until the first one was made. Copies, since the client of Kafka cannot end before its own records are gone.
    pub rejects: Vec<Rejected>,
    /// Whether a file of the key was ever made.
    pub made: Made,
}

/// Whether a file of some name was ever made, so that its records cannot be to blame for a later fault: told by the delivery,
/// asked by the worker that began the name.
#[derive(Clone, Debug, Default)]
pub struct Made(Arc<AtomicBool>);

impl Made {
    /// A file was made.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether one was.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A record that failed.
#[derive(Debug)]
pub struct Rejected {
    /// Its key in the queue, when it came from there.
    pub key: Option<u64>,
    /// What the queue keeps of it.
    pub entry: QueueEntry,
}

impl Rejected {
    /// A record from Kafka that failed for the first time; `to` is where its block ends.
    pub fn first(message: &Message, to: &Position, reject: Reject, recipe: &Arc<str>, now: i64) -> Self {
        let entry = QueueEntry {
            partition: to.partition.clone(),
            topic_id: to.topic_id.clone(),
            offset: message.offset(),
            timestamp: message.timestamp(),
            key: message.key().map(<[u8]>::to_vec),
            headers: message.headers(),
            value: message.value().unwrap_or_default().to_vec(),
            reject,
            attempts: 1,
            first_failure: now,
            last_failure: now,
            recipe: Arc::clone(recipe),
        };
        Self { key: None, entry }
    }

    /// An entry of the queue that failed again.
    pub fn again(key: u64, mut entry: QueueEntry, reject: Reject, recipe: &Arc<str>, now: i64) -> Self {
        entry.reject = reject;
        entry.recipe = Arc::clone(recipe);
        entry.attempts = entry.attempts.saturating_add(1);
        entry.last_failure = now;
        Self { key: Some(key), entry }
    }
}
