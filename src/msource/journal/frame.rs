//! What the journal says: its frames and the parts they are made of.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Growth, State};
use crate::config::{Compression, Visibility};
use crate::msink::FileKey;
use crate::msink::name::hidden;
use crate::msource::TopicPartition;
use crate::record::Reject;

/// One entry of the journal. The order of the variants is the wire format: new ones go to the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Frame {
    /// First in each segment: where the journal went on from.
    Header(Header),
    /// Second in each segment: everything that was durable at that moment.
    Image(Box<State>),
    /// A partition's resolved start. Fsynced before its first fetch.
    Start(Position),
    /// A partition goes on elsewhere: moved by an operator, taken over from another owner, or past a gap. Fsynced before it
    /// is fetched from there.
    Move {
        /// Where it goes on.
        to: Position,
        /// Why.
        cause: MoveCause,
    },
    /// A file is about to be created. Fsynced before that.
    File(FileIntent),
    /// The file was created.
    Made {
        /// Which one.
        id: u64,
        /// Its inode.
        inode: u64,
    },
    /// A block, written before its pieces are.
    Block(Box<Block>),
    /// The file gets no further lines.
    End {
        /// Which one.
        id: u64,
    },
    /// Entries leave the failure queue without a line: cleared by an operator or dropped for room. Fsynced before the
    /// command is answered.
    Queue(QueueChange),
    /// Every block up to this number is durable.
    Checkpoint {
        /// The number.
        number: u64,
    },
    /// What stands beside the group's offset of a partition at the place from which it grows. Only for sealed files.
    Base {
        /// The partition.
        partition: TopicPartition,
        /// Who committed last, if one of us did.
        mark: Option<Mark>,
    },
    /// First step of publishing sealed files: they are complete and durable. Fsynced before the group is asked.
    Prepared(Box<Seal>),
    /// Last step: the files of a range have their names. `None`: those of retries.
    Published {
        /// The seal.
        number: u64,
        /// Which range of it.
        partition: Option<TopicPartition>,
    },
    /// What a partition has grown by does not count: its offset goes back. Fsynced before its files are removed.
    Refused {
        /// Its number, of the same count as the blocks'.
        number: u64,
        /// The seal in which it was prepared; `None` when it was not.
        seal: Option<u64>,
        /// The partition.
        partition: TopicPartition,
        /// Entries that leave the failure queue with it, with their sizes.
        removed: Vec<(u64, u64)>,
    },
    /// Nobody can tell whether the group took this range: its files were set aside.
    Undecided {
        /// The seal.
        number: u64,
        /// Which range of it.
        partition: TopicPartition,
    },
    /// Blocks of an earlier segment with these numbers never happened: a crash cut them off before a checkpoint covered
    /// them, in files that nobody had seen.
    Dropped {
        /// The first number.
        from: u64,
        /// The last number.
        to: u64,
    },
    /// A topic is begun here. Fsynced before the first `Start` of its partitions.
    Topic {
        /// Its name.
        name: Arc<str>,
        /// What it had then.
        begun: Begun,
    },
    /// A partition stands where it was begun: nothing before that was to be read. Behind its `Start`.
    Begun {
        /// The partition.
        partition: TopicPartition,
    },
}

impl Frame {
    /// The number of what is counted: blocks, changes of the queue, seals and refusals; the last of those dropped.
    pub fn number(&self) -> Option<u64> {
        match self {
            Self::Block(block) => Some(block.number),
            Self::Queue(change) => Some(change.number),
            Self::Prepared(seal) => Some(seal.number),
            Self::Refused { number, .. } => Some(*number),
            Self::Dropped { to, .. } => Some(*to),
            _ => None,
        }
    }
}

/// Who committed an offset: a home, and how far it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// UUID of the home.
    pub home: String,
    /// Its incarnation.
    pub incarnation: u64,
    /// The number it committed with; 0 for a pinned start.
    pub number: u64,
}

/// An incarnation of a home that ended here, and the last number that it had then: what has a higher one is of a copy that went
/// on with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Former {
    /// The incarnation.
    pub incarnation: u64,
    /// Its last number here.
    pub upto: u64,
}

/// See [`Frame::Prepared`]: what becomes visible together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// Its number, of the same count as the blocks'.
    pub number: u64,
    /// The incarnation that prepared it, and asked the group.
    pub incarnation: u64,
    /// Its ranges; a partition occurs once.
    pub ranges: Vec<SealedRange>,
}

/// The part of a seal that is decided as one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedRange {
    /// The offsets; `None` for lines of retries, which no commit decides.
    pub offsets: Option<SealedOffsets>,
    /// The files with its lines, none when there are no lines.
    pub files: Vec<SealedFile>,
}

impl SealedRange {
    /// The partition of its offsets.
    pub fn partition(&self) -> Option<&TopicPartition> {
        self.offsets.as_ref().map(|offsets| &offsets.to.partition)
    }
}

/// See [`SealedRange::offsets`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedOffsets {
    /// Where the range begins, and what it amounts to.
    pub growth: Growth,
    /// Where it ends.
    pub to: Position,
}

/// A complete file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedFile {
    /// Its id.
    pub id: u64,
    /// The name it gets, relative to the sink's directory.
    pub name: String,
    /// Its inode.
    pub inode: u64,
    /// Its lines.
    pub lines: u64,
    /// Its length, bytes.
    pub bytes: u64,
    /// CRC-32C of its bytes.
    pub crc: u32,
    /// How its lines are compressed.
    pub compression: Compression,
}

/// See [`Frame::Header`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Version of the format.
    pub version: u32,
    /// The number of this segment.
    pub segment: u64,
    /// The segment before it and the length up to which that one is valid; everything past it is void.
    pub previous: Option<(u64, u64)>,
}

/// Where a partition stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Which partition.
    pub partition: TopicPartition,
    /// The topic's id in base64, empty where the broker has none.
    pub topic_id: String,
    /// The next offset to be read.
    pub next: i64,
    /// Leader epoch of the record before it, -1 when unknown.
    pub leader_epoch: i32,
}

/// What a topic had when the first of its partitions was begun: those from there on were added later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// The topic's id, empty where the broker has none.
    pub topic_id: String,
    /// How many partitions it had.
    pub partitions: i32,
}

/// Why a partition's offset moved other than by reading on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MoveCause {
    /// `set_offset`.
    Operator,
    /// Another instance has read on in the meantime.
    Takeover,
    /// Records from `from` up to the new offset are gone.
    Gap {
        /// The first lost offset.
        from: i64,
    },
    /// The topic was deleted and created again: its offsets start again.
    Recreated,
    /// The group's offsets were reset by an administrator, or expired.
    Reset,
}

/// See [`Frame::File`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIntent {
    /// Its id, never used twice; also `{seq}` of its name.
    pub id: u64,
    /// Its name, relative to the sink's directory.
    pub name: String,
    /// What goes into it.
    pub key: FileKey,
    /// When it is opened, seconds since 1970 UTC.
    pub opened: i64,
    /// Whether it is hidden until complete.
    pub visibility: Visibility,
    /// How its lines are compressed.
    pub compression: Compression,
}

impl FileIntent {
    /// The name it is created with.
    pub fn path(&self) -> String {
        match self.visibility {
            Visibility::Live => self.name.clone(),
            Visibility::Sealed => hidden(&self.name),
        }
    }
}

/// A range of offsets of one partition (or some entries of the failure queue), transformed together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// Its number; rises by one with each block and each queue change.
    pub number: u64,
    /// Where its records come from.
    pub source: BlockSource,
    /// The recipe that made its lines.
    pub recipe: String,
    /// Its lines, one piece for each file.
    pub pieces: Vec<Piece>,
    /// Records that it took.
    pub records: u64,
    /// Records dropped on purpose, by reason.
    pub filtered: [u64; 3],
    /// Records that go into the failure queue, with their keys there.
    pub rejects: Vec<(u64, QueueEntry)>,
}

impl Block {
    /// Whether it has only lines that the block before it could not write, since their file went meanwhile: those at the end of
    /// what that one made for files of the same key. They are counted there, as all of its records are.
    pub fn is_rest(&self) -> bool {
        self.records == 0 && self.pieces.iter().any(|piece| piece.lines > 0)
    }
}

/// See [`Block::source`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlockSource {
    /// Offsets `[from, to.next)` of a partition.
    Offsets {
        /// The first offset.
        from: i64,
        /// Where the partition stands after the block.
        to: Position,
    },
    /// Entries of the failure queue, each with its key and its size in bytes. They leave the queue; those that failed again
    /// come back under the same key as rejects.
    Queue(Vec<(u64, u64)>),
    /// Entries of the failure queue of another home, which is adopted. Those that this one does not have are the block's
    /// rejects. What is said of them and the entries are durable together, so that none is taken over twice.
    Adopted {
        /// UUID of that home.
        home: String,
        /// The first key of its queue that is not taken over.
        upto: u64,
    },
}

/// The lines of a block that go to one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// The file's id.
    pub file: u64,
    /// Where in the file it begins, bytes.
    pub position: u64,
    /// Its length, bytes.
    pub length: u64,
    /// CRC-32C of its bytes.
    pub crc: u32,
    /// Its lines.
    pub lines: u64,
}

/// An entry of the failure queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueEntry {
    /// Where the record came from.
    pub partition: TopicPartition,
    /// The topic's id, empty where the broker has none.
    pub topic_id: String,
    /// Its offset.
    pub offset: i64,
    /// Its timestamp, milliseconds since 1970 UTC.
    pub timestamp: Option<i64>,
    /// The Kafka key.
    #[serde(with = "serde_bytes")]
    pub key: Option<Vec<u8>>,
    /// The Kafka headers, whose values may be null.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// The value as it came from Kafka.
    #[serde(with = "serde_bytes")]
    pub value: Vec<u8>,
    /// What was wrong, the last time it was tried.
    pub reject: Reject,
    /// How often it was tried.
    pub attempts: u32,
    /// When it failed first, milliseconds since 1970 UTC.
    pub first_failure: i64,
    /// When it failed last.
    pub last_failure: i64,
    /// The recipe with which it failed last: with another one it is tried again by itself.
    pub recipe: Arc<str>,
}

impl QueueEntry {
    /// What the entry counts against `failure_queue.max_bytes`: its contents and a fixed share for the rest.
    pub fn size(&self) -> u64 {
        let headers: usize =
            self.headers.iter().map(|(name, value)| name.len() + value.as_ref().map_or(0, Vec::len)).sum();
        (self.value.len() + self.key.as_ref().map_or(0, Vec::len) + headers + 100) as u64
    }
}

/// See [`Frame::Queue`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueChange {
    /// Its number, of the same count as the blocks'.
    pub number: u64,
    /// The entries that go, with their sizes.
    pub removed: Vec<(u64, u64)>,
    /// Why.
    pub cause: QueueCause,
}

/// Why entries leave the queue without becoming a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum QueueCause {
    /// `clear_failure_queue`.
    Cleared,
    /// `failure_queue.when_full: drop_oldest`.
    Dropped,
    /// `adopt`: another home has them now.
    Adopted,
}
