//! Which offsets of a partition the seals cover never, and which twice. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::msink::manifest::{Manifest, Range, Source};

/// One seal of a partition. The order is that of the sweep: by offsets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Seal {
    from: i64,
    to: i64,
    /// Home, incarnation and number: files with the same ones and the same range are of one seal.
    writer: (Arc<str>, u64, u64),
    /// One of its manifests.
    manifest: PathBuf,
}

impl Seal {
    fn is_of(&self, other: &Self) -> bool {
        (self.from, self.to, &self.writer) == (other.from, other.to, &other.writer)
    }
}

/// What does not tile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Misfit {
    /// Offsets that no seal has, although seals before and after them are there.
    Gap(Range),
    /// Offsets that two seals have, with a manifest of each.
    Overlap(Range, PathBuf, PathBuf),
}

/// All seals, by topic, topic id and partition.
#[derive(Debug, Default)]
pub(super) struct Seals {
    partitions: BTreeMap<(String, String, i32), Vec<Seal>>,
    homes: BTreeSet<Arc<str>>,
}

impl Seals {
    /// Takes in what a manifest says.
    pub(super) fn add(&mut self, manifest: &Manifest, path: &Path) {
        let Source::Range(Range { topic, topic_id, partition, from, to }) = &manifest.source else { return };
        let home = if let Some(known) = self.homes.get(manifest.home.as_str()) {
            Arc::clone(known)
        } else {
            let home: Arc<str> = manifest.home.as_str().into();
            self.homes.insert(Arc::clone(&home));
            home
        };
        let writer = (home, manifest.incarnation, manifest.number);
        let seal = Seal { from: *from, to: *to, writer, manifest: path.to_owned() };
        self.partitions.entry((topic.clone(), topic_id.clone(), *partition)).or_default().push(seal);
    }

    /// How many partitions there are; of a topic that was made anew, those of both.
    pub(super) fn partitions(&self) -> u64 {
        self.partitions.len() as u64
    }

    /// How many seals there are, and what does not tile, in the order of topics, partitions and offsets.
    pub(super) fn judge(mut self) -> (u64, Vec<Misfit>) {
        let mut count = 0;
        let mut misfits = Vec::new();
        for ((topic, topic_id, partition), seals) in &mut self.partitions {
            seals.sort();
            seals.dedup_by(|later, first| later.is_of(first));
            count += seals.len() as u64;
            let range =
                |from, to| Range { topic: topic.clone(), topic_id: topic_id.clone(), partition: *partition, from, to };
            // An empty range covers nothing and touches nothing.
            let mut filled = seals.iter().filter(|seal| seal.from < seal.to);
            // Of the seals so far the one that reaches farthest: it has every offset from the next one's first to its end.
            let Some(mut farthest) = filled.next() else { continue };
            for seal in filled {
                if seal.from > farthest.to {
                    misfits.push(Misfit::Gap(range(farthest.to, seal.from)));
                } else if seal.from < farthest.to {
                    let twice = range(seal.from, seal.to.min(farthest.to));
                    misfits.push(Misfit::Overlap(twice, farthest.manifest.clone(), seal.manifest.clone()));
                }
                if seal.to > farthest.to {
                    farthest = seal;
                }
            }
        }
        (count, misfits)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::Compression;

    fn seals(all: &[(i32, i64, i64, u64)]) -> Seals {
        let mut seals = Seals::default();
        for (index, (partition, from, to, number)) in all.iter().enumerate() {
            let source = Source::Range(Range {
                topic: "t".to_owned(),
                topic_id: "i".to_owned(),
                partition: *partition,
                from: *from,
                to: *to,
            });
            let manifest = Manifest {
                file: Some(format!("{index}.log")),
                lines: 1,
                bytes: 1,
                crc32c: 1,
                compression: Compression::None,
                source,
                home: "h".to_owned(),
                incarnation: 1,
                number: *number,
            };
            seals.add(&manifest, Path::new(&index.to_string()));
        }
        seals
    }

    fn gap(partition: i32, from: i64, to: i64) -> Misfit {
        Misfit::Gap(Range { topic: "t".to_owned(), topic_id: "i".to_owned(), partition, from, to })
    }

    #[test]
    fn files_of_one_seal_are_no_overlap_and_other_seals_with_the_same_range_are() {
        assert_eq!(seals(&[(0, 0, 5, 1), (0, 5, 9, 2), (0, 0, 5, 1), (0, 5, 9, 2)]).judge(), (2, Vec::new()));
        let (count, misfits) = seals(&[(0, 0, 5, 1), (0, 0, 5, 2)]).judge();
        assert_eq!(count, 2);
        let [Misfit::Overlap(range, first, second)] = &misfits[..] else { panic!("{misfits:?}") };
        assert_eq!((range.from, range.to), (0, 5));
        assert_eq!((first.to_str(), second.to_str()), (Some("0"), Some("1")));
    }

    #[test]
    fn partitions_are_judged_apart_and_empty_ranges_touch_nothing() {
        let (count, misfits) = seals(&[(0, 0, 5, 1), (1, 7, 9, 1), (0, 8, 9, 2), (1, 9, 9, 3), (1, 20, 20, 4)]).judge();
        assert_eq!((count, misfits), (5, vec![gap(0, 5, 8)]));
    }

    proptest! {
        /// The model counts, for each offset, the seals that have it.
        #[test]
        fn gaps_and_overlaps_are_those_of_the_plain_count(all in prop::collection::vec((0..40_i64, 0..12_i64, 1..4_u64), 0..12)) {
            let mut distinct: Vec<_> = all.iter().map(|(from, length, number)| (0, *from, from + length, *number)).collect();
            let (count, misfits) = seals(&distinct).judge();
            distinct.sort_unstable();
            distinct.dedup();
            prop_assert_eq!(count, distinct.len() as u64);
            let filled: Vec<_> = distinct.iter().filter(|(_, from, to, _)| from < to).collect();
            let first = filled.iter().map(|(_, from, ..)| *from).min().unwrap_or(0);
            let last = filled.iter().map(|(_, _, to, _)| *to).max().unwrap_or(0);
            for offset in -1..60 {
                let times = filled.iter().filter(|(_, from, to, _)| (*from..*to).contains(&offset)).count();
                let said = |wanted: fn(&Misfit) -> Option<&Range>| {
                    misfits.iter().filter_map(wanted).filter(|range| (range.from..range.to).contains(&offset)).count()
                };
                let gaps = said(|misfit| match misfit {
                    Misfit::Gap(range) => Some(range),
                    Misfit::Overlap(..) => None,
                });
                let overlaps = said(|misfit| match misfit {
                    Misfit::Overlap(range, ..) => Some(range),
                    Misfit::Gap(_) => None,
                });
                prop_assert_eq!(gaps, usize::from(times == 0 && (first..last).contains(&offset)));
                // Each further seal is told once.
                prop_assert_eq!(overlaps, times.saturating_sub(1));
            }
        }
    }
}
