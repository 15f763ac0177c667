//! What was different in format 5. This never changes: journals and stores of that format are read by it for good.
//!
//! It was not known where a partition was begun.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use super::frame::{self, Begun, FileIntent, Header, Mark, MoveCause, Position, QueueChange, Seal};
use super::state::{self, FileState, Growth, Place, Totals};
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
    Topic { name: Arc<str>, begun: Begun },
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
    topics: BTreeMap<Arc<str>, Begun>,
}

/// Where a partition stood.
#[derive(Deserialize)]
pub(super) struct PartitionState {
    topic_id: String,
    next: i64,
    leader_epoch: i32,
    mark: Option<Mark>,
    growth: Option<Growth>,
}

/// The partitions of a home.
pub(super) fn partitions(
    old: BTreeMap<TopicPartition, PartitionState>,
) -> BTreeMap<TopicPartition, state::PartitionState> {
    old.into_iter().map(|(partition, here)| (partition, here.into())).collect()
}

impl From<PartitionState> for state::PartitionState {
    fn from(old: PartitionState) -> Self {
        Self {
            topic_id: old.topic_id,
            next: old.next,
            leader_epoch: old.leader_epoch,
            mark: old.mark,
            growth: old.growth,
            begun: None,
        }
    }
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
            partitions: partitions(old.partitions),
            files: old.files,
            seals: old.seals,
            totals: old.totals,
            former: old.former,
            place: old.place,
            recipes: old.recipes,
            adopted: old.adopted,
            topics: old.topics,
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
            Frame::Topic { name, begun } => Self::Topic { name, begun },
        }
    }
}
