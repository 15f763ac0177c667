//! Which offsets of a partition the seals cover never, which twice, which without all of their lines, and what the manifests leave
//! open. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::msink::manifest::{self, Manifest, Range, Source};

/// One seal of a partition. The order is that of the sweep: by offsets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Seal {
    from: i64,
    to: i64,
    /// Home, incarnation and number: files with the same ones and the same range are of one seal.
    writer: (Arc<str>, u64, u64),
    /// One of its manifests.
    manifest: PathBuf,
    /// Lines in its files, by their manifests.
    lines: u64,
    /// What it amounts to, if its manifests tell.
    told: Option<manifest::Seal>,
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
    /// A seal whose files have other lines than it has, or whose counts do not add up: what exactly, with one of its manifests.
    Records(Range, String, PathBuf),
}

/// What the manifests do not tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Open {
    /// Where the lines are that the manifests of a seal lack: it is being published, or that was cut short.
    Publishing(Range, PathBuf),
    /// Whether offsets before the first seal here were ever to be covered, and what is known of it.
    Beginning(Range, String),
    /// Whether a range without a file had lines.
    Empty(Range, PathBuf),
    /// So many offsets of a seal had no record when they were read, by this manifest: only the brokers know why.
    WithoutRecord(Range, u64, PathBuf),
}

/// Everything that is said of the ranges.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Judgement {
    /// How many seals there are.
    pub(super) seals: u64,
    /// What is wrong, in the order of topics, partitions and offsets.
    pub(super) misfits: Vec<Misfit>,
    /// What cannot be known, in the same order.
    pub(super) open: Vec<Open>,
}

/// All seals, by topic, topic id and partition.
#[derive(Debug, Default)]
pub(super) struct Seals {
    partitions: BTreeMap<(String, String, i32), Vec<Seal>>,
    homes: BTreeSet<Arc<str>>,
    /// Publications that have not come to their end.
    begun: Vec<Begun>,
}

/// A seal whose publication has not come to its end.
#[derive(Debug)]
struct Begun {
    partition: (String, String, i32),
    seal: Seal,
    rest: Rest,
}

/// What is there of a seal beside the files that have their manifests.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rest {
    /// Files with so many lines.
    Lines(u64),
    /// More than can be seen: whoever publishes it is at work.
    Open,
}

impl Seals {
    /// Takes in what a manifest says. Each is to be taken in once: a copy would add its lines again.
    pub(super) fn add(&mut self, manifest: &Manifest, path: &Path) {
        if let Some((partition, seal)) = self.read(manifest, path) {
            self.partitions.entry(partition).or_default().push(seal);
        }
    }

    /// Takes in that the publication of the seal that this manifest is of has not come to its end, and what else is there of it.
    pub(super) fn begun(&mut self, manifest: &Manifest, path: &Path, rest: Rest) {
        if let Some((partition, seal)) = self.read(manifest, path) {
            self.begun.push(Begun { partition, seal, rest });
        }
    }

    /// Whether a manifest of the same seal was taken in.
    pub(super) fn knows(&mut self, manifest: &Manifest) -> bool {
        let Some((partition, seal)) = self.read(manifest, Path::new("")) else { return false };
        self.partitions.get(&partition).is_some_and(|seals| seals.iter().any(|known| known.is_of(&seal)))
    }

    /// Whether the manifests of a seal lack lines of it.
    pub(super) fn lack_lines(&mut self) -> bool {
        self.partitions.values_mut().any(|seals| {
            merge(seals);
            seals.iter().any(|seal| seal.lacks().is_some())
        })
    }

    /// The seal of a manifest, and its partition.
    fn read(&mut self, manifest: &Manifest, path: &Path) -> Option<((String, String, i32), Seal)> {
        let Source::Range(Range { topic, topic_id, partition, from, to }) = &manifest.source else { return None };
        let home = if let Some(known) = self.homes.get(manifest.home.as_str()) {
            Arc::clone(known)
        } else {
            let home: Arc<str> = manifest.home.as_str().into();
            self.homes.insert(Arc::clone(&home));
            home
        };
        let writer = (home, manifest.incarnation, manifest.number);
        let (lines, told) = (manifest.lines, manifest.seal.clone());
        let seal = Seal { from: *from, to: *to, writer, manifest: path.to_owned(), lines, told };
        Some(((topic.clone(), topic_id.clone(), *partition), seal))
    }

    /// How many partitions there are; of a topic that was made again, those of both.
    pub(super) fn partitions(&self) -> u64 {
        self.partitions.len() as u64
    }

    /// Lays the ranges side by side.
    pub(super) fn judge(mut self) -> Judgement {
        let mut judgement = Judgement::default();
        let Judgement { seals: count, misfits, open } = &mut judgement;
        for (key, seals) in &mut self.partitions {
            let (topic, topic_id, partition) = key;
            merge(seals);
            *count += seals.len() as u64;
            let range =
                |from, to| Range { topic: topic.clone(), topic_id: topic_id.clone(), partition: *partition, from, to };
            for seal in seals.iter() {
                let begun: Vec<_> =
                    self.begun.iter().filter(|begun| begun.is_of(key, seal)).map(|begun| begun.rest).collect();
                let wrong = seal.wrong().or_else(|| seal.lacks());
                if seal.wrong().is_none() && seal.lacks().is_some() && seal.comes_to_its_end_with(&begun) {
                    open.push(Open::Publishing(range(seal.from, seal.to), seal.manifest.clone()));
                } else if let Some(wrong) = wrong {
                    misfits.push(Misfit::Records(range(seal.from, seal.to), wrong, seal.manifest.clone()));
                } else if seal.told.is_none() && seal.lines == 0 && seal.from < seal.to {
                    open.push(Open::Empty(range(seal.from, seal.to), seal.manifest.clone()));
                }
                let without = seal.without_record();
                if without > 0 {
                    open.push(Open::WithoutRecord(range(seal.from, seal.to), without, seal.manifest.clone()));
                }
            }
            // An empty range covers nothing and touches nothing.
            let mut filled = seals.iter().filter(|seal| seal.from < seal.to);
            // Of the seals so far the one that reaches farthest: it has every offset from the next one's first to its end.
            let Some(mut farthest) = filled.next() else { continue };
            if let Some((from, unknown)) = farthest.beginning() {
                open.push(Open::Beginning(range(from, farthest.from), unknown));
            }
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
        judgement
    }
}

/// Brings what was taken in of a seal together, and the seals into their order.
fn merge(seals: &mut Vec<Seal>) {
    seals.sort();
    seals.dedup_by(|later, first| {
        let is_same = later.is_of(first);
        first.lines += if is_same { later.lines } else { 0 };
        is_same
    });
}

impl Begun {
    fn is_of(&self, partition: &(String, String, i32), seal: &Seal) -> bool {
        self.partition == *partition && self.seal.is_of(seal)
    }
}

impl Seal {
    fn offsets(&self) -> u64 {
        u64::try_from(self.to - self.from).unwrap_or(0)
    }

    /// Offsets that had no record when they were read.
    fn without_record(&self) -> u64 {
        self.told.as_ref().map_or(0, |told| self.offsets().saturating_sub(told.consumed))
    }

    /// What does not add up in it.
    fn wrong(&self) -> Option<String> {
        let manifest::Seal { consumed, written, filtered, rejected, .. } = self.told.as_ref()?;
        let sum = [written, filtered, rejected].into_iter().try_fold(0_u64, |sum, count| sum.checked_add(*count));
        if sum != Some(*consumed) || *consumed > self.offsets() {
            let offsets = self.offsets();
            return Some(format!(
                "{consumed} records in {offsets} offsets: {written} lines, {filtered} filtered, {rejected} rejected do not add up"
            ));
        }
        None
    }

    /// How many lines its manifests lack, or have too many.
    fn lacks(&self) -> Option<String> {
        let written = self.told.as_ref()?.written;
        (self.lines != written).then(|| {
            format!(
                "it has {written} lines, the manifests of its files have {}: files are gone with theirs",
                self.lines
            )
        })
    }

    /// Whether what is there of it beside its manifests can be all that they lack. Without a sign that its publication has not
    /// come to its end, nothing more comes.
    fn comes_to_its_end_with(&self, begun: &[Rest]) -> bool {
        let lines = begun.iter().try_fold(self.lines, |lines, rest| match rest {
            Rest::Lines(more) => Some(lines.saturating_add(*more)),
            Rest::Open => None,
        });
        let written = self.told.as_ref().map_or(0, |told| told.written);
        !begun.is_empty() && self.lines < written && lines.is_none_or(|lines| lines == written)
    }

    /// From which offset on it cannot be told what became of what lies before it, and why; `None` where nothing does. That no
    /// commit before it is known says nothing: a tool wipes what stands beside the group's offset, and a place of which the
    /// group was told may be one that the partition was moved to.
    fn beginning(&self) -> Option<(i64, String)> {
        let begun = self.told.as_ref().and_then(|told| told.begun);
        if self.from <= begun.unwrap_or(0) {
            return None;
        }
        let taken = "taken away, or in the directory of another instance";
        let why = match (begun, self.told.as_ref().map(|told| &told.after)) {
            (_, Some(Some(after))) if after.number > 0 => format!(
                "they were committed by {}/{}/{}, which has no manifest here: {taken}",
                after.home, after.incarnation, after.number
            ),
            (Some(begun), _) => {
                format!("the partition was begun at {begun}, and no manifest here has them: lost to retention, {taken}")
            }
            (None, Some(_)) => "its first manifest does not tell where the partition was begun: others have read before, it was moved there, or the manifest is of an earlier version".to_owned(),
            (None, None) => "its first manifest does not tell where the partition was begun: it is of an earlier version".to_owned(),
        };
        Some((begun.unwrap_or(0), why))
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
                seal: None,
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
        let tiled = seals(&[(0, 0, 5, 1), (0, 5, 9, 2), (0, 0, 5, 1), (0, 5, 9, 2)]).judge();
        assert_eq!(tiled, Judgement { seals: 2, ..Judgement::default() });
        let Judgement { seals: count, misfits, .. } = seals(&[(0, 0, 5, 1), (0, 0, 5, 2)]).judge();
        assert_eq!(count, 2);
        let [Misfit::Overlap(range, first, second)] = &misfits[..] else { panic!("{misfits:?}") };
        assert_eq!((range.from, range.to), (0, 5));
        assert_eq!((first.to_str(), second.to_str()), (Some("0"), Some("1")));
    }

    #[test]
    fn partitions_are_judged_apart_and_empty_ranges_touch_nothing() {
        let Judgement { seals: count, misfits, open } =
            seals(&[(0, 0, 5, 1), (1, 7, 9, 1), (0, 8, 9, 2), (1, 9, 9, 3), (1, 20, 20, 4)]).judge();
        assert_eq!((count, misfits), (5, vec![gap(0, 5, 8)]));
        let [Open::Beginning(before, _)] = &open[..] else { panic!("{open:?}") };
        assert_eq!((before.partition, before.from, before.to), (1, 0, 7));
    }

    proptest! {
        /// The model counts, for each offset, the seals that have it.
        #[test]
        fn gaps_and_overlaps_are_those_of_the_plain_count(all in prop::collection::vec((0..40_i64, 0..12_i64, 1..4_u64), 0..12)) {
            let mut distinct: Vec<_> = all.iter().map(|(from, length, number)| (0, *from, from + length, *number)).collect();
            let Judgement { seals: count, misfits, .. } = seals(&distinct).judge();
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
                    Misfit::Overlap(..) | Misfit::Records(..) => None,
                });
                let overlaps = said(|misfit| match misfit {
                    Misfit::Overlap(range, ..) => Some(range),
                    Misfit::Gap(_) | Misfit::Records(..) => None,
                });
                prop_assert_eq!(gaps, usize::from(times == 0 && (first..last).contains(&offset)));
                // Each further seal is told once.
                prop_assert_eq!(overlaps, times.saturating_sub(1));
            }
        }
    }
}
