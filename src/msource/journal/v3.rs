//! What was different in format 3. This never changes: journals, copies and stores of that format are read by it for good.
//!
//! A header of a record always had a value, and that of a header without one was empty.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use super::frame::{self, BlockSource, FileIntent, Header, Mark, MoveCause, Piece, Position, QueueChange, Seal};
use super::state::{self, FileState, Place, Totals};
use super::v5::{self, PartitionState};
use crate::config::Visibility;
use crate::msource::TopicPartition;
use crate::record::Reject;

#[derive(Deserialize)]
pub(super) enum Frame {
    Header(Header),
    Image(Box<State>),
    Start(Position),
    Move { to: Position, cause: MoveCause },
    File(FileIntent),
    Made { id: u64, inode: u64 },
    Block(Box<Block>),
    End { id: u64 },
    Queue(QueueChange),
    Checkpoint { number: u64 },
    Base { partition: TopicPartition, mark: Option<Mark> },
    Prepared(Box<Seal>),
    Published { number: u64, partition: Option<TopicPartition> },
    Refused { number: u64, seal: Option<u64>, partition: TopicPartition, removed: Vec<(u64, u64)> },
    Undecided { number: u64, partition: TopicPartition },
    Dropped { from: u64, to: u64 },
}

/// What a home knew.
#[derive(Deserialize)]
pub(super) struct State {
    home: String,
    incarnation: u64,
    visibility: Visibility,
    number: u64,
    next_file: u64,
    next_key: u64,
    partitions: BTreeMap<TopicPartition, PartitionState>,
    files: BTreeMap<u64, FileState>,
    seals: BTreeMap<u64, Seal>,
    totals: Totals,
    former: Vec<u64>,
    place: Place,
    recipes: BTreeMap<String, u64>,
}

impl From<State> for state::State {
    fn from(old: State) -> Self {
        Self {
            home: old.home,
            incarnation: old.incarnation,
            visibility: old.visibility,
            number: old.number,
            next_file: old.next_file,
            next_key: old.next_key,
            partitions: v5::partitions(old.partitions),
            files: old.files,
            seals: old.seals,
            totals: old.totals,
            former: old.former,
            place: old.place,
            recipes: old.recipes,
            adopted: BTreeMap::new(),
            topics: BTreeMap::new(),
        }
    }
}

#[derive(Deserialize)]
pub(super) struct Block {
    number: u64,
    source: BlockSource,
    recipe: String,
    pieces: Vec<Piece>,
    records: u64,
    filtered: [u64; 3],
    rejects: Vec<(u64, QueueEntry)>,
}

#[derive(Deserialize)]
pub(super) struct QueueEntry {
    partition: TopicPartition,
    topic_id: String,
    offset: i64,
    timestamp: Option<i64>,
    #[serde(with = "serde_bytes")]
    key: Option<Vec<u8>>,
    headers: Vec<(String, Vec<u8>)>,
    #[serde(with = "serde_bytes")]
    value: Vec<u8>,
    reject: Reject,
    attempts: u32,
    first_failure: i64,
    last_failure: i64,
    recipe: Arc<str>,
}

/// A list of keys and entries.
pub(super) fn entries(old: Vec<(u64, QueueEntry)>) -> Vec<(u64, frame::QueueEntry)> {
    old.into_iter().map(|(key, entry)| (key, entry.into())).collect()
}

impl From<QueueEntry> for frame::QueueEntry {
    fn from(old: QueueEntry) -> Self {
        Self {
            partition: old.partition,
            topic_id: old.topic_id,
            offset: old.offset,
            timestamp: old.timestamp,
            key: old.key,
            headers: old.headers.into_iter().map(|(name, value)| (name, Some(value))).collect(),
            value: old.value,
            reject: old.reject,
            attempts: old.attempts,
            first_failure: old.first_failure,
            last_failure: old.last_failure,
            recipe: old.recipe,
        }
    }
}

impl From<Block> for frame::Block {
    fn from(old: Block) -> Self {
        Self {
            number: old.number,
            source: old.source,
            recipe: old.recipe,
            pieces: old.pieces,
            records: old.records,
            filtered: old.filtered,
            rejects: entries(old.rejects),
        }
    }
}

impl From<Frame> for frame::Frame {
    fn from(old: Frame) -> Self {
        match old {
            Frame::Header(header) => Self::Header(header),
            Frame::Image(state) => Self::Image(Box::new((*state).into())),
            Frame::Start(position) => Self::Start(position),
            Frame::Move { to, cause } => Self::Move { to, cause },
            Frame::File(intent) => Self::File(intent),
            Frame::Made { id, inode } => Self::Made { id, inode },
            Frame::Block(block) => Self::Block(Box::new((*block).into())),
            Frame::End { id } => Self::End { id },
            Frame::Queue(change) => Self::Queue(change),
            Frame::Checkpoint { number } => Self::Checkpoint { number },
            Frame::Base { partition, mark } => Self::Base { partition, mark },
            Frame::Prepared(seal) => Self::Prepared(seal),
            Frame::Published { number, partition } => Self::Published { number, partition },
            Frame::Refused { number, seal, partition, removed } => Self::Refused { number, seal, partition, removed },
            Frame::Undecided { number, partition } => Self::Undecided { number, partition },
            Frame::Dropped { from, to } => Self::Dropped { from, to },
        }
    }
}
