//! What was different in format 4. This never changes: journals and stores of that format are read by it for good.
//!
//! It was not known how many partitions a topic had when it was begun.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::frame::{self, FileIntent, Header, Mark, MoveCause, Position, QueueChange, Seal};
use super::state::{self, FileState, Place, Totals};
use super::v5::{self, PartitionState};
use crate::config::Visibility;
use crate::msource::TopicPartition;

#[derive(Deserialize)]
pub(super) enum Frame {
    Header(Header),
    Image(Box<State>),
    Start(Position),
    Move { to: Position, cause: MoveCause },
    File(FileIntent),
    Made { id: u64, inode: u64 },
    Block(Box<frame::Block>),
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
    adopted: BTreeMap<String, u64>,
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
            adopted: old.adopted,
            topics: BTreeMap::new(),
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
            Frame::Block(block) => Self::Block(block),
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
