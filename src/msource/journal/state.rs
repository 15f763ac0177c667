//! What the journal amounts to: a fold over its frames.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::frame::{Block, BlockSource, Frame, MoveCause, Position, QueueCause, QueueChange};
use crate::msink::FileKey;
use crate::msource::TopicPartition;

/// Everything that a home knows about its progress. Small: what grows without bound (the failure queue's entries) is
/// elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Who we are, a UUID.
    pub home: String,
    /// Rises when the store is restored, rebuilt, or found to be a copy.
    pub incarnation: u64,
    /// Number of the last block or queue change in it.
    pub number: u64,
    /// Id of the next file.
    pub next_file: u64,
    /// Key of the next entry of the failure queue.
    pub next_key: u64,
    /// Where each partition stands.
    pub partitions: BTreeMap<TopicPartition, PartitionState>,
    /// Files that may get further lines, by id.
    pub files: BTreeMap<u64, FileState>,
    /// Counts over the store's life.
    pub totals: Totals,
    /// Incarnations before this one that ended here, so that nobody else can have gone on with them: what the group has of
    /// them is ours.
    pub former: Vec<u64>,
    /// Where the store lies, so that a copy of it shows.
    pub place: Place,
    /// Each recipe with the number of the last block that it made: what recovery may still need.
    pub recipes: BTreeMap<String, u64>,
}

/// What tells a store from a copy of it; zeros where nothing is known yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The store's directory: its inode, and when it was created (nanoseconds since 1970 UTC, 0 where the file system does
    /// not say).
    pub root: (u64, u64),
    /// The journal's directory in it.
    pub journal: (u64, u64),
}

/// Where a partition stands; see [`Position`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionState {
    /// The topic's id.
    pub topic_id: String,
    /// The next offset to be read.
    pub next: i64,
    /// Leader epoch of the record before it.
    pub leader_epoch: i32,
}

/// A file that may get further lines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileState {
    /// Its name, relative to the sink's directory.
    pub name: String,
    /// What goes into it.
    pub key: FileKey,
    /// When it was opened, seconds since 1970 UTC.
    pub opened: i64,
    /// Its inode; 0 until it was created.
    pub inode: u64,
    /// Its length, bytes.
    pub length: u64,
}

/// Counts over the store's life.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Records taken from Kafka.
    pub consumed: u64,
    /// Records taken from the failure queue.
    pub retried: u64,
    /// Lines.
    pub written: u64,
    /// Records dropped on purpose, by reason.
    pub filtered: [u64; 3],
    /// Records put into the failure queue, by reason.
    pub rejected: [u64; 12],
    /// Records lost to retention or truncation before they were read.
    pub gaps: u64,
    /// Entries in the failure queue.
    pub queue_records: u64,
    /// Their bytes.
    pub queue_bytes: u64,
    /// Entries that an operator cleared.
    pub cleared: u64,
    /// Entries dropped for room.
    pub dropped: u64,
    /// Entries that went with a damaged store.
    pub lost: u64,
}

impl State {
    /// Takes one frame in. Frames that only concern the journal itself change nothing.
    pub fn apply(&mut self, frame: &Frame) {
        match frame {
            Frame::Header(_) | Frame::Checkpoint { .. } => {}
            Frame::Image(state) => self.clone_from(state),
            Frame::Start(position) => self.place(position),
            Frame::Move { to, cause } => {
                if let MoveCause::Gap { from } = cause {
                    self.totals.gaps += u64::try_from(to.next - from).unwrap_or(0);
                }
                self.place(to);
            }
            Frame::File(intent) => {
                let state = FileState {
                    name: intent.name.clone(),
                    key: intent.key.clone(),
                    opened: intent.opened,
                    inode: 0,
                    length: 0,
                };
                self.files.insert(intent.id, state);
                self.next_file = self.next_file.max(intent.id + 1);
            }
            Frame::Made { id, inode } => {
                if let Some(file) = self.files.get_mut(id) {
                    file.inode = *inode;
                }
            }
            Frame::End { id } => {
                self.files.remove(id);
            }
            Frame::Block(block) => self.apply_block(block),
            Frame::Queue(change) => self.apply_queue(change),
        }
    }

    fn place(&mut self, position: &Position) {
        let state = PartitionState {
            topic_id: position.topic_id.clone(),
            next: position.next,
            leader_epoch: position.leader_epoch,
        };
        self.partitions.insert(position.partition.clone(), state);
    }

    fn apply_block(&mut self, block: &Block) {
        self.number = self.number.max(block.number);
        match self.recipes.get_mut(&block.recipe) {
            Some(last) => *last = block.number,
            None => drop(self.recipes.insert(block.recipe.clone(), block.number)),
        }
        let totals = &mut self.totals;
        match &block.source {
            BlockSource::Offsets { .. } => totals.consumed += block.records,
            BlockSource::Queue(taken) => {
                totals.retried += block.records;
                totals.queue_records = totals.queue_records.saturating_sub(taken.len() as u64);
                totals.queue_bytes = totals.queue_bytes.saturating_sub(taken.iter().map(|(_, size)| size).sum());
            }
        }
        for (sum, count) in totals.filtered.iter_mut().zip(block.filtered) {
            *sum += count;
        }
        for (key, entry) in &block.rejects {
            totals.rejected[entry.reject.reason.index()] += 1;
            totals.queue_records += 1;
            totals.queue_bytes += entry.size();
            self.next_key = self.next_key.max(key + 1);
        }
        for piece in &block.pieces {
            totals.written += piece.lines;
            if let Some(file) = self.files.get_mut(&piece.file) {
                file.length = piece.position + piece.length;
            }
        }
        if let BlockSource::Offsets { to, .. } = &block.source {
            self.place(to);
        }
    }

    fn apply_queue(&mut self, change: &QueueChange) {
        self.number = self.number.max(change.number);
        let count = change.removed.len() as u64;
        self.totals.queue_records = self.totals.queue_records.saturating_sub(count);
        let bytes = change.removed.iter().map(|(_, size)| size).sum();
        self.totals.queue_bytes = self.totals.queue_bytes.saturating_sub(bytes);
        match change.cause {
            QueueCause::Cleared => self.totals.cleared += count,
            QueueCause::Dropped => self.totals.dropped += count,
        }
    }
}
