//! What all homes have in the end.

use std::collections::BTreeSet;

use super::group::Group;
use super::*;
use crate::msink::manifest::{self, Manifest};
use crate::msource::journal::FileState;

/// What all homes have in the end.
#[derive(Default)]
pub(super) struct Found {
    lines: BTreeMap<Vec<u8>, u32>,
    queued: BTreeMap<(i32, i64), u32>,
    /// Of each partition: from, to, home and number of each seal.
    pub(super) ranges: BTreeMap<i32, BTreeSet<(i64, i64, String, u64)>>,
    written: u64,
    filtered: u64,
    consumed: u64,
}

impl Found {
    pub(super) fn take_in(&mut self, home: &Home) {
        let (state, ..) = home.recover();
        assert!(state.seals.is_empty(), "everything is decided");
        let entries = home.store.last().entries;
        let waiting = entries.values().map(|entry| (entry.partition.partition, entry.offset));
        for record in waiting.chain(home.cleared.iter().copied()) {
            *self.queued.entry(record).or_default() += 1;
        }
        let totals = &state.totals;
        self.written += totals.written;
        self.filtered += totals.filtered[0];
        self.consumed += totals.consumed;
        assert_eq!(totals.queue_records, entries.len() as u64);
        assert_eq!(totals.queue_bytes, entries.values().map(QueueEntry::size).sum::<u64>());
        assert_eq!(totals.cleared, home.cleared.len() as u64);
        assert_eq!(totals.gaps, 0);
        let empty: BTreeSet<_> = state.files.values().filter(|file| file.length == 0).map(FileState::path).collect();
        for path in files(&home.data()) {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let bytes = fs::read(home.data().join(&name)).unwrap();
            if name.starts_with('.') {
                assert!(bytes.is_empty() && empty.contains(&name), "{}: {name} is hidden still", home.name);
            } else if name.ends_with(manifest::SUFFIX) {
                self.take_in_manifest(home, &Manifest::parse(&bytes).unwrap());
            } else {
                assert!(home.data().join(manifest::name_for(&name)).try_exists().unwrap(), "{name} has a manifest");
                for line in bytes.split_inclusive(|byte| *byte == b'\n') {
                    *self.lines.entry(line.to_vec()).or_default() += 1;
                }
            }
        }
    }

    fn take_in_manifest(&mut self, home: &Home, manifest: &Manifest) {
        assert_eq!(manifest.home, home.name);
        if let Some(file) = &manifest.file {
            let bytes = fs::read(home.data().join(file)).unwrap();
            let lines = bytes.split_inclusive(|byte| *byte == b'\n').count() as u64;
            let told = (manifest.lines, manifest.bytes, manifest.crc32c);
            assert_eq!(told, (lines, bytes.len() as u64, crc32c::crc32c(&bytes)), "{file}");
        }
        if let manifest::Source::Range(range) = &manifest.source {
            let seal = (range.from, range.to, manifest.home.clone(), manifest.number);
            self.ranges.entry(range.partition).or_default().insert(seal);
        }
    }

    pub(super) fn check(mut self, group: &Group) {
        let (mut written, mut filtered, mut consumed) = (0, 0, 0);
        for number in 0..PARTITIONS {
            let next = group.at(number).committed.as_ref().expect("it was committed").offset;
            let mut at = 0;
            for (from, to, home, seal) in self.ranges.remove(&number).unwrap_or_default() {
                assert_eq!(from, at, "partition {number}: the range [{from}, {to}) of {home}/{seal} follows");
                at = to;
            }
            assert_eq!(at, next, "partition {number}: the ranges reach the group's offset");
            for offset in 0..next {
                let times = self.lines.remove(&line(number, offset)).unwrap_or(0);
                let waiting = self.queued.remove(&(number, offset)).unwrap_or(0);
                let right = match fate(number, offset) {
                    Fate::Line(_) => (times, waiting) == (1, 0),
                    Fate::Filtered => (times, waiting) == (0, 0),
                    Fate::Rejected { cured: true } => times + waiting == 1,
                    Fate::Rejected { cured: false } => (times, waiting) == (0, 1),
                };
                assert!(right, "{number}/{offset}: {times} lines, {waiting} times in a queue");
                written += u64::from(times);
                filtered += u64::from(fate(number, offset) == Fate::Filtered);
                consumed += 1;
            }
        }
        let text: Vec<_> = self.lines.keys().map(|line| String::from_utf8_lossy(line).into_owned()).collect();
        assert!(text.is_empty(), "lines of nowhere: {text:?}");
        assert!(self.queued.is_empty(), "entries of nowhere: {:?}", self.queued);
        assert_eq!((self.written, self.filtered, self.consumed), (written, filtered, consumed));
    }
}
