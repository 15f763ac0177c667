//! What the journal amounts to: a fold over its frames.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::frame::{
    Begun, Block, BlockSource, Former, Frame, Mark, MoveCause, Position, QueueCause, QueueChange, QueueEntry, Seal,
    SealedOffsets, SealedRange,
};
use crate::config::{Compression, Visibility};
use crate::msink::FileKey;
use crate::msink::name::hidden;
use crate::msource::TopicPartition;

/// Everything that a home knows about its progress. Small: what grows without bound (the failure queue's entries) is
/// elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Who we are, a UUID.
    pub home: String,
    /// Rises when the store is restored, rebuilt, or found to be a copy.
    pub incarnation: u64,
    /// Whether the run that writes this hides files until they are complete.
    pub visibility: Visibility,
    /// Number of the last block, queue change or seal in it.
    pub number: u64,
    /// Id of the next file.
    pub next_file: u64,
    /// Key of the next entry of the failure queue.
    pub next_key: u64,
    /// Where each partition stands.
    pub partitions: BTreeMap<TopicPartition, PartitionState>,
    /// Files that may get further lines, by id.
    pub files: BTreeMap<u64, FileState>,
    /// Sealed files that are complete and neither published nor refused yet, by the number of their seal.
    pub seals: BTreeMap<u64, Seal>,
    /// Counts over the store's life.
    pub totals: Totals,
    /// Incarnations before this one that ended here: what the group has of them is ours, up to where they ended.
    pub former: Vec<u64>,
    /// Where the store lies, so that a copy of it shows.
    pub place: Place,
    /// Each recipe with the number of the last block that it made: what recovery may still need.
    pub recipes: BTreeMap<String, u64>,
    /// How far the failure queues of other homes were taken over: which home, as whoever adopts it writes that, and the first key
    /// of its queue that was not.
    pub adopted: BTreeMap<String, u64>,
    /// What each topic had when it was begun here, by name, as far as that is known.
    pub topics: BTreeMap<Arc<str>, Begun>,
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionState {
    /// The topic's id.
    pub topic_id: String,
    /// The next offset to be read.
    pub next: i64,
    /// Leader epoch of the record before it.
    pub leader_epoch: i32,
    /// What stands beside the group's offset where its growth began.
    pub mark: Option<Mark>,
    /// What came since its last commit, while files are hidden until complete.
    pub growth: Option<Growth>,
    /// Where it was begun here: everything from there on is in what this home has made of it, but for gaps. `None` where others
    /// have read before, where it was moved since, and where nothing is known of it.
    pub begun: Option<i64>,
}

/// What a partition has that the group does not know of yet. If another owner reads it again, all of it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Growth {
    /// The offset where it began: the group's.
    pub from: i64,
    /// Leader epoch of the record before that.
    pub leader_epoch: i32,
    /// Key of the first entry that it may have in the failure queue.
    pub first_key: u64,
    /// What it added to the counts, those of the queue apart.
    pub totals: Totals,
}

/// A file that may get further lines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Whether it is hidden until complete.
    pub visibility: Visibility,
    /// How its lines are compressed.
    pub compression: Compression,
    /// Its lines, if it is hidden.
    pub lines: u64,
    /// CRC-32C of its bytes, if it is hidden.
    pub crc: u32,
}

impl FileState {
    /// The name it has now, relative to the sink's directory.
    pub fn path(&self) -> String {
        match self.visibility {
            Visibility::Live => self.name.clone(),
            Visibility::Sealed => hidden(&self.name),
        }
    }

    /// The partition that a hidden file belongs to; `None` for one with lines of retries, and for every other file.
    pub fn partition(&self) -> Option<TopicPartition> {
        (self.visibility == Visibility::Sealed).then(|| self.key.partition())?
    }
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

impl Totals {
    /// Takes back what a growth added.
    fn undo(&mut self, growth: &Self) {
        let take = |sum: &mut u64, count: u64| *sum = sum.saturating_sub(count);
        take(&mut self.consumed, growth.consumed);
        take(&mut self.written, growth.written);
        for (sum, count) in self.filtered.iter_mut().zip(growth.filtered) {
            take(sum, count);
        }
        for (sum, count) in self.rejected.iter_mut().zip(growth.rejected) {
            take(sum, count);
        }
    }
}

impl State {
    /// The ranges of a partition that wait for the group's word, oldest first, each with the mark that it was asked to take.
    /// There is more than one only when an assignment was lost, and not known to be, while the partition grew on.
    pub fn prepared(&self, partition: &TopicPartition) -> impl Iterator<Item = (Mark, &SealedOffsets)> {
        self.seals.values().flat_map(move |seal| {
            let offsets = seal.ranges.iter().filter_map(|range| range.offsets.as_ref());
            let ours = offsets.filter(move |offsets| offsets.to.partition == *partition);
            ours.map(|offsets| (self.mark_of(seal), offsets))
        })
    }

    /// The incarnations before this one that ended here. Those of which it is known where stand in `known`; the others lost what
    /// they had, and no copy.
    pub fn former(&self, known: &[Former]) -> Vec<Former> {
        let ended = |&incarnation: &u64| {
            let found = known.iter().find(|former| former.incarnation == incarnation);
            found.copied().unwrap_or(Former { incarnation, upto: u64::MAX })
        };
        self.former.iter().map(ended).collect()
    }

    fn mark_of(&self, seal: &Seal) -> Mark {
        Mark { home: self.home.clone(), incarnation: seal.incarnation, number: seal.number }
    }

    /// Whether the group's word on something of this partition is needed.
    pub fn is_hidden(&self, partition: &TopicPartition) -> bool {
        let grows = self.partitions.get(partition).is_some_and(|state| state.growth.is_some());
        grows || self.prepared(partition).next().is_some()
    }

    /// Whether the hidden files of a partition have all lines that it has grown by.
    pub fn is_whole(&self, partition: &TopicPartition, growth: &Growth) -> bool {
        let files = self.files.values().filter(|file| file.partition().as_ref() == Some(partition));
        files.map(|file| file.lines).sum::<u64>() == growth.totals.written
    }

    /// Whether this entry of the failure queue may still be taken back with what its partition has grown by: it is neither
    /// tried again nor removed before that is decided.
    pub fn is_open(&self, key: u64, entry: &QueueEntry) -> bool {
        self.opened_at(key, entry).is_some()
    }

    /// The same, with the key where the entries of that growth begin: see [`State::open`].
    pub fn opened_at(&self, key: u64, entry: &QueueEntry) -> Option<u64> {
        // The key too: another topic of the same name may have left entries of the same offsets.
        let grows = |growth: &&Growth| key >= growth.first_key && entry.offset >= growth.from;
        let growth = self.partitions.get(&entry.partition).and_then(|state| state.growth.as_ref());
        let before_end = |(_, offsets): &(_, &SealedOffsets)| entry.offset < offsets.to.next;
        let sealed = self.prepared(&entry.partition).filter(before_end).map(|(_, offsets)| &offsets.growth);
        growth.into_iter().chain(sealed).find(grows).map(|growth| growth.first_key)
    }

    /// Each growth that is not decided: its partition, and where its entries may begin. While that is the same, an entry that is
    /// open stays so.
    pub fn open(&self) -> Vec<(TopicPartition, u64)> {
        let growing =
            self.partitions.iter().filter_map(|(partition, state)| Some((partition, state.growth.as_ref()?.first_key)));
        let offsets = self.seals.values().flat_map(|seal| &seal.ranges).filter_map(|range| range.offsets.as_ref());
        let prepared = offsets.map(|offsets| (&offsets.to.partition, offsets.growth.first_key));
        let mut open: Vec<_> = growing.chain(prepared).map(|(partition, key)| (partition.clone(), key)).collect();
        open.sort();
        open
    }

    /// Forgets positions that are no offsets, and returns them. Earlier versions took an answer that was lost for an offset, and a
    /// partition that stands there is never read.
    pub fn forget_unknown(&mut self) -> Vec<(TopicPartition, i64)> {
        let is_unknown = |(_, state): &(&TopicPartition, &PartitionState)| state.next < 0;
        let unknown = self.partitions.iter().filter(is_unknown);
        let unknown: Vec<_> = unknown.map(|(partition, state)| (partition.clone(), state.next)).collect();
        for (partition, _) in &unknown {
            self.partitions.remove(partition);
        }
        unknown
    }

    /// Takes one frame in. Frames that only concern the journal itself change nothing.
    pub fn apply(&mut self, frame: &Frame) {
        match frame {
            Frame::Header(_) | Frame::Checkpoint { .. } => {}
            Frame::Image(state) => self.clone_from(state),
            Frame::Start(position) => self.move_to(position),
            Frame::Move { to, cause } => {
                if let MoveCause::Gap { from } = cause {
                    self.totals.gaps += u64::try_from(to.next - from).unwrap_or(0);
                }
                let before = self.partitions.get(&to.partition).cloned().unwrap_or_default();
                self.move_to(to);
                if let Some(state) = self.partitions.get_mut(&to.partition) {
                    match cause {
                        MoveCause::Gap { .. } | MoveCause::Reset => {
                            // The group was told nothing.
                            state.mark = before.mark;
                            state.begun = before.begun.filter(|begun| *begun <= to.next);
                        }
                        MoveCause::Recreated => state.begun = Some(to.next),
                        MoveCause::Operator | MoveCause::Takeover => {}
                    }
                }
            }
            Frame::File(intent) => {
                let state = FileState {
                    name: intent.name.clone(),
                    key: intent.key.clone(),
                    opened: intent.opened,
                    visibility: intent.visibility,
                    compression: intent.compression,
                    ..FileState::default()
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
            Frame::Base { partition, mark } => {
                if let Some(state) = self.partitions.get_mut(partition) {
                    state.mark.clone_from(mark);
                }
            }
            Frame::Prepared(seal) => self.apply_prepared(seal),
            Frame::Published { number, partition } => {
                let mark = self.seals.get(number).map(|seal| self.mark_of(seal));
                if self.take_range(*number, partition.as_ref()).is_some()
                    && let Some(state) = partition.as_ref().and_then(|partition| self.partitions.get_mut(partition))
                {
                    state.mark = mark;
                }
            }
            Frame::Refused { number, seal, partition, removed } => {
                self.number = self.number.max(*number);
                self.apply_refused(*seal, partition, removed);
            }
            Frame::Undecided { number, partition } => {
                self.take_range(*number, Some(partition));
            }
            Frame::Dropped { to, .. } => self.number = self.number.max(*to),
            Frame::Topic { name, begun } => drop(self.topics.insert(Arc::clone(name), begun.clone())),
            Frame::Begun { partition } => {
                if let Some(state) = self.partitions.get_mut(partition) {
                    state.begun = Some(state.next);
                }
            }
        }
    }

    /// A partition stands elsewhere, and nothing is known of a commit there.
    fn move_to(&mut self, position: &Position) {
        self.partitions.remove(&position.partition);
        self.place(position);
    }

    fn place(&mut self, position: &Position) {
        let state = self.partitions.entry(position.partition.clone()).or_default();
        state.topic_id.clone_from(&position.topic_id);
        state.next = position.next;
        state.leader_epoch = position.leader_epoch;
    }

    fn apply_prepared(&mut self, seal: &Seal) {
        self.number = self.number.max(seal.number);
        for range in &seal.ranges {
            for file in &range.files {
                self.files.remove(&file.id);
            }
            if let Some(state) = range.partition().and_then(|partition| self.partitions.get_mut(partition)) {
                state.growth = None;
            }
        }
        self.seals.insert(seal.number, seal.clone());
    }

    /// A range is decided.
    fn take_range(&mut self, number: u64, partition: Option<&TopicPartition>) -> Option<SealedRange> {
        let seal = self.seals.get_mut(&number)?;
        let index = seal.ranges.iter().position(|range| range.partition() == partition)?;
        let range = seal.ranges.remove(index);
        if seal.ranges.is_empty() {
            self.seals.remove(&number);
        }
        Some(range)
    }

    fn apply_refused(&mut self, seal: Option<u64>, partition: &TopicPartition, removed: &[(u64, u64)]) {
        let growth = if let Some(number) = seal {
            let offsets = self.take_range(number, Some(partition)).and_then(|range| range.offsets);
            offsets.map(|offsets| (offsets.growth, offsets.to.next))
        } else {
            self.files.retain(|_, file| file.partition().as_ref() != Some(partition));
            self.partitions.get_mut(partition).and_then(|state| Some((state.growth.take()?, state.next)))
        };
        let is_decided = seal.is_some() && self.prepared(partition).next().is_none();
        if let (Some((growth, to)), Some(state)) = (growth, self.partitions.get_mut(partition)) {
            if is_decided {
                // The group is told where it stands before it is read: until then nothing of ours stands beside the offset.
                state.mark = None;
            }
            // It may stand elsewhere by now: another owner has read on.
            if state.next == to {
                (state.next, state.leader_epoch) = (growth.from, growth.leader_epoch);
            }
            self.totals.undo(&growth.totals);
        }
        self.leave_queue(removed);
    }

    fn apply_block(&mut self, block: &Block) {
        self.number = self.number.max(block.number);
        match self.recipes.get_mut(&block.recipe) {
            Some(last) => *last = block.number,
            None => drop(self.recipes.insert(block.recipe.clone(), block.number)),
        }
        if self.visibility == Visibility::Sealed {
            self.grow(block);
        }
        let totals = &mut self.totals;
        match &block.source {
            _ if block.is_rest() => {}
            BlockSource::Offsets { .. } => totals.consumed += block.records,
            BlockSource::Adopted { home, upto } => {
                totals.retried += block.records;
                let taken = self.adopted.entry(home.clone()).or_default();
                *taken = (*taken).max(*upto);
            }
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
            totals.written += if block.is_rest() { 0 } else { piece.lines };
            if let Some(file) = self.files.get_mut(&piece.file) {
                file.length = piece.position + piece.length;
                if file.visibility == Visibility::Sealed {
                    file.lines += piece.lines;
                    file.crc = crc32c::crc32c_combine(file.crc, piece.crc, piece.length as usize);
                }
            }
        }
        if let BlockSource::Offsets { to, .. } = &block.source {
            self.place(to);
            if let (Visibility::Live, Some(state)) = (self.visibility, self.partitions.get_mut(&to.partition)) {
                // The group does not decide about what is visible at once.
                state.mark = None;
            }
        }
    }

    /// Notes what a block adds to its partition, so that it can be taken back.
    fn grow(&mut self, block: &Block) {
        let BlockSource::Offsets { from, to } = &block.source else { return };
        let next_key = self.next_key;
        let state = self.partitions.entry(to.partition.clone()).or_default();
        let leader_epoch = state.leader_epoch;
        let growth = state.growth.get_or_insert_with(|| Growth {
            from: *from,
            leader_epoch,
            first_key: next_key,
            totals: Totals::default(),
        });
        growth.totals.consumed += block.records;
        growth.totals.written += block.pieces.iter().map(|piece| piece.lines).sum::<u64>();
        for (sum, count) in growth.totals.filtered.iter_mut().zip(block.filtered) {
            *sum += count;
        }
        for (_, entry) in &block.rejects {
            growth.totals.rejected[entry.reject.reason.index()] += 1;
        }
    }

    fn leave_queue(&mut self, removed: &[(u64, u64)]) {
        self.totals.queue_records = self.totals.queue_records.saturating_sub(removed.len() as u64);
        let bytes = removed.iter().map(|(_, size)| size).sum();
        self.totals.queue_bytes = self.totals.queue_bytes.saturating_sub(bytes);
    }

    fn apply_queue(&mut self, change: &QueueChange) {
        self.number = self.number.max(change.number);
        self.leave_queue(&change.removed);
        let count = change.removed.len() as u64;
        match change.cause {
            QueueCause::Cleared => self.totals.cleared += count,
            QueueCause::Dropped => self.totals.dropped += count,
            QueueCause::Adopted => {}
        }
    }
}
