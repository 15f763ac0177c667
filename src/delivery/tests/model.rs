//! What records become in these tests, and a store in memory.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::block::{DoneBlock, Lines, Place, Rejected, Source};
use crate::delivery::Inbox;
use crate::msource::store::{Store, StoreChange, StoreError, Walk};
use crate::record::{Reason, Reject};

pub(super) const PATIENCE: Duration = Duration::from_secs(20);

#[track_caller]
pub(super) fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

/// A store in memory that remembers what it was after each change: a crash takes the last ones back.
/// Counts the walks over its entries.
#[derive(Debug, Default)]
pub(super) struct MemStore(pub(super) Mutex<Vec<Kept>>, pub(super) AtomicU64);

#[derive(Clone, Debug, Default)]
pub(super) struct Kept {
    pub(super) state: Option<State>,
    pub(super) entries: BTreeMap<u64, QueueEntry>,
}

impl MemStore {
    pub(super) fn last(&self) -> Kept {
        self.0.lock().unwrap().last().cloned().unwrap_or_default()
    }

    pub(super) fn forget(&self, changes: usize) {
        let mut kept = self.0.lock().unwrap();
        let left = kept.len().saturating_sub(changes).max(1).min(kept.len());
        kept.truncate(left);
    }
}

impl Store for MemStore {
    fn state(&self) -> Result<Option<State>, StoreError> {
        Ok(self.last().state)
    }

    fn apply(&self, change: &StoreChange) -> Result<(), StoreError> {
        let mut kept = self.last();
        kept.state = Some(change.state.clone());
        for key in &change.remove {
            kept.entries.remove(key);
        }
        kept.entries.extend(change.insert.iter().cloned());
        self.0.lock().unwrap().push(kept);
        Ok(())
    }

    fn entry(&self, key: u64) -> Result<Option<QueueEntry>, StoreError> {
        Ok(self.last().entries.get(&key).cloned())
    }

    fn entries(&self, from: u64, each: &mut dyn FnMut(u64, QueueEntry) -> Walk) -> Result<(), StoreError> {
        self.1.fetch_add(1, Ordering::SeqCst);
        for (key, entry) in self.last().entries.range(from..) {
            if each(*key, entry.clone()) == Walk::Stop {
                break;
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        let mut kept = self.0.lock().unwrap();
        let last = kept.pop();
        *kept = last.into_iter().collect();
        Ok(())
    }
}

/// What a record becomes; its first line, and whether a retry cures it.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Fate {
    Line(i32),
    Filtered,
    Rejected { cured: bool },
}

pub(super) fn fate(partition: i32, offset: i64) -> Fate {
    match (offset * 7 + i64::from(partition) * 3) % 11 {
        0 => Fate::Filtered,
        1 => Fate::Rejected { cured: true },
        2 => Fate::Rejected { cured: false },
        other => Fate::Line((other % 3) as i32),
    }
}

pub(super) fn line(partition: i32, offset: i64) -> Vec<u8> {
    format!("{{\"p\":{partition},\"o\":{offset}}}\n").into_bytes()
}

/// What a worker would make of records.
#[derive(Default)]
pub(super) struct Made {
    pub(super) pieces: Vec<Lines>,
    pub(super) filtered: [u64; 3],
    pub(super) rejects: Vec<Rejected>,
}

impl Made {
    fn line(&mut self, file: i32, partition: i32, offset: i64) {
        let key = FileKey { log_name: Some(file.to_string()), ..FileKey::default() };
        let index = self.pieces.iter().position(|piece| piece.key == key).unwrap_or_else(|| {
            self.pieces.push(Lines {
                key,
                bytes: Vec::new(),
                lines: 0,
                crc: 0,
                rejects: Vec::new(),
                made: crate::block::Made::default(),
            });
            self.pieces.len() - 1
        });
        let piece = &mut self.pieces[index];
        piece.bytes.extend(line(partition, offset));
        piece.lines += 1;
        piece.crc = crc32c::crc32c(&piece.bytes);
    }

    pub(super) fn records(number: i32, from: i64, to: i64) -> Self {
        let mut made = Self::default();
        for offset in from..to {
            match fate(number, offset) {
                Fate::Line(file) => made.line(file, number, offset),
                Fate::Filtered => made.filtered[0] += 1,
                Fate::Rejected { .. } => made.rejects.push(Rejected { key: None, entry: entry(number, offset) }),
            }
        }
        made
    }

    pub(super) fn entries(entries: &[(u64, QueueEntry)]) -> Self {
        let mut made = Self::default();
        for (key, entry) in entries {
            match fate(entry.partition.partition, entry.offset) {
                Fate::Rejected { cured: true } => made.line(9, entry.partition.partition, entry.offset),
                _ => made.rejects.push(Rejected { key: Some(*key), entry: entry.clone() }),
            }
        }
        made
    }

    pub(super) fn block(self, place: Place, is_last: bool, source: Source, records: u64) -> Inbox {
        let Self { pieces, filtered, rejects } = self;
        let recipe = "r".into();
        DoneBlock { place, is_last, source, recipe, pieces, records, filtered, rejects, cost: 10 }.into()
    }
}

pub(super) fn entry(number: i32, offset: i64) -> QueueEntry {
    QueueEntry {
        partition: partition(number),
        topic_id: "id".into(),
        offset,
        timestamp: None,
        key: None,
        headers: Vec::new(),
        value: vec![b'x'; 300],
        reject: Reject::new(Reason::BadJson, "no object"),
        attempts: 1,
        first_failure: 0,
        last_failure: 0,
        recipe: "r".into(),
    }
}

impl Regenerate for MemStore {
    fn lines(&mut self, block: &Block) -> Result<Regenerated, RecoveryError> {
        let made = match &block.source {
            BlockSource::Offsets { from, to } => Made::records(to.partition.partition, *from, to.next),
            BlockSource::Adopted { .. } => unreachable!("it adopts nothing"),
            BlockSource::Queue(taken) => {
                let kept = self.last().entries;
                let entries: Option<Vec<_>> =
                    taken.iter().map(|(key, _)| Some((*key, kept.get(key)?.clone()))).collect();
                let Some(entries) = entries else { return Ok(Regenerated::gone("no entry")) };
                Made::entries(&entries)
            }
        };
        let lines = made.pieces.into_iter().map(|piece| (piece.key, piece.bytes)).collect();
        Ok(Regenerated { lines, gone: None })
    }
}
