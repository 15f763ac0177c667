//! What is decided about a range, carried out: published, set aside, refused.
//!
//! **Promise.** Each step may be repeated after any interruption, and done twice, it is done once. Files get their names before
//! `Published` is in the journal; they are removed only after `Refused` is, and before a checkpoint covers that. So are the
//! temporary names of manifests after `Published`.
//!
//! **How it fails.** A disk that fails stalls the step. What cannot be noted in the journal ends the pipeline. A prepared range
//! whose files are not whole any more is refused.

use std::io;

use crossbeam_channel::Sender;

use crate::config::Visibility;
use crate::delivery::writer::Delivery;
use crate::delivery::{Error, Prepared};
use crate::fault;
use crate::msink::file::{Group, HiddenGone, Remains, leftover};
use crate::msink::manifest::{self, Manifest, Range, Source};
use crate::msink::name::hidden;
use crate::msource::TopicPartition;
use crate::msource::journal::{FileState, Frame, Growth, Mark, SealedFile, SealedOffsets, SealedRange, Totals};
use crate::msource::store::Walk;
use crate::msource::tracker::Left;

/// A decision that is to be carried out.
#[derive(Debug)]
pub(super) enum Step {
    Publish {
        number: u64,
        group: Group,
    },
    SetAside {
        number: u64,
        partition: TopicPartition,
    },
    /// Whether it is whole, or else it is refused.
    Check {
        number: u64,
        partition: TopicPartition,
        reply: Sender<Prepared>,
    },
    /// `seal` is `None` for what was not prepared.
    Refuse {
        seal: Option<u64>,
        partition: TopicPartition,
    },
    /// Paths of files that no reader takes.
    Remove(Vec<String>),
}

/// A range that is being published.
struct Publication {
    files: Vec<(SealedFile, Manifest, Remains)>,
    /// Name and manifest of a range without a line.
    empty: Option<(String, Manifest)>,
}

impl Publication {
    /// Whether lines of it are missing, and none of its files has its name yet.
    fn is_lost_unseen(&self) -> bool {
        let remains = |wanted: &[Remains]| self.files.iter().any(|(.., remains)| wanted.contains(remains));
        remains(&[Remains::Short, Remains::Gone]) && !remains(&[Remains::Named])
    }
}

impl Delivery {
    /// Carries a decision out. The outer error ends the pipeline, the inner one stalls; done twice, it is done once.
    pub(super) fn step(&mut self, step: &Step) -> Result<io::Result<()>, Error> {
        match step {
            Step::Publish { number, group } => self.publish(*number, group),
            Step::Check { number, partition, reply } => self.check(*number, partition, reply),
            Step::SetAside { number, partition } => self.set_aside(*number, partition),
            Step::Refuse { seal, partition } => self.refuse(*seal, partition).map(Ok),
            Step::Remove(names) => Ok(names.iter().try_for_each(|name| self.sink.remove_hidden(name))),
        }
    }

    /// Lets a partition be begun again when nothing of it is left to be decided, and bars it while something is.
    pub(super) fn show_undecided(&self, partition: Option<&TopicPartition>) {
        let Some(partition) = partition else { return };
        let is_left = self.state.prepared(partition).next().is_some();
        self.tracker.decided(partition, if is_left { Left::Prepared } else { Left::Nothing });
    }

    /// The range of a seal, while it is not done.
    fn range(&self, number: u64, group: &Group) -> Option<SealedRange> {
        let ranges = &self.state.seals.get(&number)?.ranges;
        ranges.iter().find(|range| range.partition() == group.as_ref()).cloned()
    }

    /// Last step: the files of a range get their names.
    fn publish(&mut self, number: u64, group: &Group) -> Result<io::Result<()>, Error> {
        let Some(range) = self.range(number, group) else { return Ok(Ok(())) };
        fault::point("publish.begin");
        let publication = match self.publication(number, &range) {
            Ok(publication) => publication,
            Err(error) => return Ok(Err(error)),
        };
        if let (Some(partition), true, true) = (group, self.decides(group), publication.is_lost_unseen()) {
            // The journal alone has committed it, and no reader has seen a line of it.
            tracing::error!(%partition, number, "hidden lines are missing: the range is not published, and its records are read again");
            self.refusable(partition)?;
            return self.refuse(Some(number), partition).map(Ok);
        }
        if let Err(error) = self.publish_files(&publication) {
            return Ok(Err(error));
        }
        fault::point("publish.done");
        self.note_durably(&Frame::Published { number, partition: group.clone() })?;
        self.show_undecided(group.as_ref());
        fault::point("publish.noted");
        if let Some(partition) = group {
            self.leave_nothing_empty(partition);
        }
        let leftovers = range.files.iter().map(|file| leftover(&file.name)).collect();
        self.seal.steps.push_front((Step::Remove(leftovers), None));
        let files = range.files.len();
        if let Some(SealedOffsets { growth, to }) = &range.offsets {
            tracing::info!(partition = %to.partition, from = growth.from, to = to.next, number, files, "published");
        } else {
            tracing::info!(number, files, "published retries");
        }
        Ok(Ok(()))
    }

    /// Gives every file of a range its name. Files that are not whole any more were looked for before the first one gets it.
    fn publish_files(&self, range: &Publication) -> io::Result<()> {
        for (file, manifest, remains) in &range.files {
            match remains {
                Remains::Hidden | Remains::Named => self.sink.publish(file, manifest)?,
                Remains::Short | Remains::Gone => {
                    let aside = (*remains == Remains::Short).then(|| self.sink.set_aside(file)).transpose()?;
                    tracing::error!(
                        file = file.name,
                        lines = file.lines,
                        ?aside,
                        "a hidden file was removed or shortened after its offsets were committed: its lines are lost"
                    );
                    self.sink.publish_manifest(&manifest::name_for(&file.name), manifest)?;
                }
            }
        }
        if let Some((name, manifest)) = &range.empty {
            self.sink.publish_manifest(name, manifest)?;
        }
        Ok(())
    }

    /// What is to be published of a range, and what is there of it.
    fn publication(&self, number: u64, range: &SealedRange) -> io::Result<Publication> {
        let source = match &range.offsets {
            None => Source::Retries,
            Some(SealedOffsets { growth, to }) => Source::Range(Range {
                topic: to.partition.topic.to_string(),
                topic_id: to.topic_id.clone(),
                partition: to.partition.partition,
                from: growth.from,
                to: to.next,
            }),
        };
        let seal = range.offsets.as_ref().map(|offsets| self.told(offsets));
        let manifest = |file: Option<&SealedFile>| Manifest {
            file: file.map(|file| file.name.rsplit('/').next().unwrap_or(&file.name).to_owned()),
            lines: file.map_or(0, |file| file.lines),
            bytes: file.map_or(0, |file| file.bytes),
            crc32c: file.map_or(0, |file| file.crc),
            compression: file.map_or_else(Default::default, |file| file.compression),
            source: source.clone(),
            home: self.state.home.clone(),
            incarnation: self.state.seals.get(&number).map_or(self.state.incarnation, |seal| seal.incarnation),
            number,
            seal: seal.clone(),
        };
        let look = |file: &SealedFile| {
            let manifest = manifest(Some(file));
            let remains = self.sink.remains(file, &manifest)?;
            Ok((file.clone(), manifest, remains))
        };
        let files = range.files.iter().map(look).collect::<io::Result<Vec<_>>>()?;
        let empty = match &source {
            Source::Range(offsets) if files.is_empty() => {
                Some((manifest::name_of_empty(offsets, number), manifest(None)))
            }
            _ => None,
        };
        Ok(Publication { files, empty })
    }

    /// What manifests tell of a seal. What it follows stands beside the offset where it begins, until it is published.
    fn told(&self, SealedOffsets { growth, to }: &SealedOffsets) -> manifest::Seal {
        let Totals { consumed, written, filtered, rejected, .. } = &growth.totals;
        let here = self.state.partitions.get(&to.partition);
        let mark = here.and_then(|here| here.mark.clone());
        let after = mark.map(|Mark { home, incarnation, number }| manifest::After { home, incarnation, number });
        let begun = here.and_then(|here| here.begun).filter(|begun| *begun <= growth.from);
        let (filtered, rejected) = (filtered.iter().sum(), rejected.iter().sum());
        manifest::Seal { consumed: *consumed, written: *written, filtered, rejected, after, begun }
    }

    /// Tells whether a prepared range is whole; it is refused when it is not.
    fn check(
        &mut self,
        number: u64,
        partition: &TopicPartition,
        reply: &Sender<Prepared>,
    ) -> Result<io::Result<()>, Error> {
        let range = self.range(number, &Some(partition.clone()));
        let mut prepared = if range.is_some() { Prepared::Whole } else { Prepared::Gone };
        for SealedFile { name, inode, bytes, .. } in range.into_iter().flat_map(|range| range.files) {
            let visibility = Visibility::Sealed;
            let file = FileState { name, inode, length: bytes, visibility, ..FileState::default() };
            match self.sink.check_hidden(&file) {
                Ok(()) => {}
                Err(error) if error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<HiddenGone>) => {
                    tracing::error!(%partition, number, %error, "what was prepared is not whole any more");
                    self.refuse(Some(number), partition)?;
                    prepared = Prepared::Gone;
                    break;
                }
                Err(error) => return Ok(Err(error)),
            }
        }
        // Who asked may have given up waiting.
        let _ = reply.send(prepared);
        Ok(Ok(()))
    }

    /// Keeps files out of the way of which nobody can say whether they stand for records that another owner wrote too.
    fn set_aside(&mut self, number: u64, partition: &TopicPartition) -> Result<io::Result<()>, Error> {
        let Some(range) = self.range(number, &Some(partition.clone())) else { return Ok(Ok(())) };
        for file in &range.files {
            match self.sink.set_aside(file) {
                Ok(name) => tracing::error!(
                    %partition, file = name, lines = file.lines,
                    "the group's metadata does not tell whether it took these lines: they are set aside"
                ),
                Err(error) => return Ok(Err(error)),
            }
        }
        self.note_durably(&Frame::Undecided { number, partition: partition.clone() })?;
        self.show_undecided(Some(partition));
        if let Some(SealedOffsets { growth, to }) = &range.offsets {
            tracing::error!(%partition, from = growth.from, to = to.next, number, "undecided: if no other instance has published these offsets, publish the files by hand");
        }
        Ok(Ok(()))
    }

    /// Takes back what a partition has grown by: its offset, counts, entries of the failure queue, and hidden files.
    fn refuse(&mut self, seal: Option<u64>, partition: &TopicPartition) -> Result<(), Error> {
        let (growth, end, files) = if let Some(number) = seal {
            let Some(range) = self.range(number, &Some(partition.clone())) else { return Ok(()) };
            let Some(offsets) = range.offsets else { return Ok(()) };
            (offsets.growth, offsets.to.next, range.files.into_iter().map(|file| file.name).collect())
        } else {
            let files = self.state.files.values().filter(|file| file.partition().as_ref() == Some(partition));
            let files: Vec<_> = files.map(|file| file.name.clone()).collect();
            let growth = self.state.partitions.get(partition).and_then(|state| state.growth.clone());
            match growth {
                Some(growth) => (growth, i64::MAX, files),
                None if files.is_empty() => return Ok(()),
                None => (Growth::default(), i64::MAX, files),
            }
        };
        self.checkpoint_now()?;
        let removed = self.entries_of(partition, &growth, end)?;
        let keys: Vec<u64> = removed.iter().map(|(key, _)| *key).collect();
        let number = self.state.number + 1;
        self.note_durably(&Frame::Refused { number, seal, partition: partition.clone(), removed })?;
        self.show_undecided(Some(partition));
        fault::point("refuse.noted");
        self.gauges.undone(&growth);
        if seal.is_none() {
            self.sink.forget_partition(partition);
        } else {
            self.leave_nothing_empty(partition);
        }
        self.remove.extend(keys);
        self.show_queue();
        self.seal.grown.remove(&Some(partition.clone()));
        let records = growth.totals.consumed;
        if records > 0 {
            tracing::warn!(%partition, from = growth.from, records, "discarded unpublished records: they are read again, here or by their next owner, as far as the topic still has them");
        }
        let paths = files.iter().flat_map(|name| [hidden(name), leftover(name)]).collect();
        self.seal.steps.push_front((Step::Remove(paths), None));
        Ok(())
    }

    /// The entries of the failure queue that a growth has up to an offset, with their sizes.
    fn entries_of(&self, partition: &TopicPartition, growth: &Growth, end: i64) -> Result<Vec<(u64, u64)>, Error> {
        let mut found = Vec::new();
        if growth.totals.rejected.iter().sum::<u64>() > 0 {
            self.checkpointer.store.entries(growth.first_key, &mut |key, entry| {
                if entry.partition == *partition && (growth.from..end).contains(&entry.offset) {
                    found.push((key, entry.size()));
                }
                Walk::On
            })?;
        }
        Ok(found)
    }
}
