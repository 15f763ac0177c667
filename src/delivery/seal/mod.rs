//! Publishing hidden files: a two-phase commit whose commit point is the group's coordinator.
//!
//! A *seal* takes every hidden file of some partitions at once:
//!
//! 1. *prepare*: the files are synced (an ordinary checkpoint while blocks are written on, then one of the little that came
//!    meanwhile), `Prepared` is appended to the journal and synced;
//! 2. *commit*: the thread that serves the group commits the offsets with the seal's number beside them;
//! 3. *publish*: each file gets its name, its manifest is put beside it, `Published` is appended and synced.
//!
//! **Promise.** A file gets its name only after the group has taken its offsets, and a range whose offsets the group has
//! taken is published, now or after any crash. What the group will never take is refused: the offset goes back, counts and
//! entries of the failure queue are taken back, and the files are removed. So an instance that was frozen or lost
//! publishes nothing that the next owner publishes too.
//!
//! A range is prepared only of a partition whose assignment lasts, which is looked at under the lock of the
//! [tracker](crate::msource::tracker) just before `Prepared` is appended: it may have been lost, and even given to us again, since
//! its publication was requested. What it has grown by then stays as it is, for whoever judges it. And a partition is not
//! begun again while a range of it is not decided.
//!
//! Nothing else is taken from the inbox in order while a seal is decided: what came behind it would have to be undone with
//! it. That is a sync and a round trip to the coordinator, once a rotation.
//!
//! Lines of retries come from this home's own failure queue: the journal is their commit point, as it is for everything
//! when this instance has every partition.
//!
//! **How it fails.** A disk that fails stalls the step, which is repeated; each may be repeated after any interruption. An
//! unknown answer of the group leaves the range prepared.

mod decision;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Sender;

use super::writer::{Delivery, answer};
use super::{Asking, CommitPoint, Error, Prepared, SealRequest, Verdict};
use crate::config::Visibility;
use crate::fault;
use crate::msink::file::{Group, HiddenGone, Now, RotateReason};
use crate::msource::TopicPartition;
use crate::msource::journal::{FileState, Frame, Position, Seal, SealedFile, SealedOffsets, SealedRange};
use crate::msource::tracker::{Epoch, Lasting};
use decision::Step;

/// What is at work, and what comes next.
#[derive(Debug, Default)]
pub(super) struct Sealing {
    /// The groups whose files are taken next, and how far that is.
    wanted: BTreeMap<Group, RotateReason>,
    stage: Stage,
    /// The seal that the group was asked about, and the partitions of it that are not decided.
    asked: Option<(u64, BTreeSet<TopicPartition>)>,
    /// What is decided, and to be carried out.
    steps: VecDeque<(Step, Option<Sender<()>>)>,
    /// Who waits until all of it is done.
    answers: Vec<Sender<()>>,
    /// Since when, and until when, each group got blocks that are not published.
    grown: BTreeMap<Group, (Instant, Instant)>,
}

/// How far what is wanted has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Nothing is done for it.
    #[default]
    Wanted,
    /// A checkpoint syncs most of it, while blocks are written on.
    Synced,
    /// Nothing further is taken: the rest is little.
    Ready,
}

/// A seal whose `Prepared` is in the journal.
struct Appended {
    seal: Seal,
    /// What the group is to be asked.
    asking: Vec<Asking>,
}

impl Sealing {
    /// Whether blocks must wait.
    pub(super) fn is_busy(&self) -> bool {
        self.stage == Stage::Ready || self.asked.is_some() || !self.steps.is_empty()
    }

    /// Whether most of what is wanted was synced, or is being.
    pub(super) fn is_synced(&self) -> bool {
        self.stage == Stage::Synced
    }

    /// Whether a step comes next that needs the state to itself, or begins a checkpoint of its own: no other one may come first.
    /// Where a checkpoint takes longer than the time between two, one would always be under way, and nothing be published.
    fn is_next(&self) -> bool {
        let starts = self.asked.is_none() && self.steps.is_empty() && !self.wanted.is_empty();
        starts || self.is_synced()
    }

    /// Whether a decision is still to be carried out: what is durable does not tell of it yet.
    pub(super) fn has_steps(&self) -> bool {
        !self.steps.is_empty()
    }

    /// Whether anything is to be done or answered.
    pub(super) fn has_work(&self) -> bool {
        self.is_busy() || !self.wanted.is_empty() || !self.answers.is_empty()
    }

    /// Whether files are to be removed of which only the journal's last frames tell: no checkpoint may cover those before.
    pub(super) fn is_removing(&self) -> bool {
        self.steps.iter().any(|(step, _)| matches!(step, Step::Remove(_)))
    }

    /// A block of this group was written.
    pub(super) fn grew(&mut self, group: Group, now: Instant) {
        self.grown.entry(group).or_insert((now, now)).1 = now;
    }
}

impl Delivery {
    /// Takes up what an earlier run prepared and this one decides by itself.
    pub(super) fn resume_seals(&mut self) {
        let now = Instant::now();
        let grown = self.state.partitions.iter().filter(|(_, state)| state.growth.is_some());
        let grown: Vec<_> = grown.map(|(partition, _)| Some(partition.clone())).collect();
        for group in grown {
            self.seal.grew(group.clone(), now);
            if !self.is_sealed() && self.decides(&group) {
                // Another configuration hid it: no timer of this one would publish it.
                self.want_group(group);
            }
        }
        if self.state.files.values().any(|file| file.key.retries) {
            self.seal.grew(None, now);
            if !self.is_sealed() {
                // Another configuration hid them: no timer of this one would publish them.
                self.want_group(None);
            }
        }
        for seal in self.state.seals.values() {
            for range in &seal.ranges {
                let group = range.partition().cloned();
                if self.decides(&group) {
                    self.seal.steps.push_back((Step::Publish { number: seal.number, group }, None));
                }
            }
        }
    }

    /// Whether the journal alone decides about files of this group.
    fn decides(&self, group: &Group) -> bool {
        group.is_none() || matches!(self.commit_point, CommitPoint::Journal)
    }

    /// Publishes soon what is due.
    pub(super) fn want_due(&mut self, now: Instant) {
        let mut due = self.sink.due_groups(Now::current());
        for (group, (first, last)) in &self.seal.grown {
            if now.duration_since(*last) >= self.rotate.idle {
                due.entry(group.clone()).or_insert(RotateReason::Idle);
            } else if now.duration_since(*first) >= self.rotate.age {
                due.entry(group.clone()).or_insert(RotateReason::Age);
            }
        }
        self.want(due);
    }

    /// Publishes everything soon: the service stops.
    pub(super) fn want_all(&mut self, answer: Sender<()>) {
        let all = self.seal.grown.keys().map(|group| (group.clone(), RotateReason::Stop)).collect();
        self.want(all);
        self.seal.answers.push(answer);
    }

    /// Publishes soon what these partitions have.
    pub(super) fn want_partitions(&mut self, partitions: Vec<TopicPartition>, answer: Sender<()>) {
        self.want(partitions.into_iter().map(|partition| (Some(partition), RotateReason::Revoke)).collect());
        self.seal.answers.push(answer);
    }

    /// Publishes the files of a group soon, since one of them is over its size.
    pub(super) fn want_group(&mut self, group: Group) {
        self.want(BTreeMap::from([(group, RotateReason::Size)]));
    }

    fn want(&mut self, mut groups: BTreeMap<Group, RotateReason>) {
        if groups.is_empty() {
            return;
        }
        self.retain_ours(&mut groups);
        self.seal.wanted.extend(groups);
    }

    /// What is not ours now, and others decide about, waits until it is, or is refused.
    fn retain_ours(&self, groups: &mut BTreeMap<Group, RotateReason>) {
        let ours = self.tracker.partitions();
        groups.retain(|group, _| self.decides(group) || group.as_ref().is_some_and(|of| ours.contains(of)));
    }

    /// The group's word on a range.
    pub(super) fn decided(
        &mut self,
        number: u64,
        partition: TopicPartition,
        verdict: Verdict,
        reply: Option<Sender<()>>,
    ) {
        if let Some((asked, open)) = &mut self.seal.asked
            && *asked == number
        {
            open.remove(&partition);
            if open.is_empty() {
                self.seal.asked = None;
            }
        }
        let step = match verdict {
            Verdict::Committed => Step::Publish { number, group: Some(partition) },
            Verdict::Refused => Step::Refuse { seal: Some(number), partition },
            Verdict::Undecided => Step::SetAside { number, partition },
            Verdict::Open => {
                tracing::warn!(%partition, number, "whether the group has taken these offsets is not known yet: their files stay hidden");
                reply.iter().for_each(answer);
                return;
            }
        };
        self.seal.steps.push_back((step, reply));
    }

    /// Ends what a partition has grown by before it stands elsewhere: hidden files never hold what is before and after that.
    /// Returns whether there is anything to be ended.
    pub(super) fn end_growth(&mut self, partition: &TopicPartition) -> bool {
        if self.state.partitions.get(partition).is_none_or(|state| state.growth.is_none()) {
            return false;
        }
        let group = Some(partition.clone());
        if self.decides(&group) {
            self.seal.wanted.insert(group, RotateReason::Revoke);
        } else {
            self.refused(partition.clone(), None);
        }
        true
    }

    /// Takes back what a partition has grown by.
    pub(super) fn refused(&mut self, partition: TopicPartition, reply: Option<Sender<()>>) {
        self.seal.steps.push_back((Step::Refuse { seal: None, partition }, reply));
    }

    /// Removes soon the empty hidden files of a partition that has grown by nothing, made for a block whose assignment
    /// ended before the block was admitted. Nobody may ever write into them. After a crash, recovery does the same.
    pub(super) fn leave_nothing_empty(&mut self, partition: &TopicPartition) {
        let grows = self.state.partitions.get(partition).is_some_and(|state| state.growth.is_some());
        let of_it = |file: &&FileState| file.partition().as_ref() == Some(partition);
        let mut files = self.state.files.values().filter(of_it).peekable();
        // One that was moved while another configuration hides nothing leaves files with lines: those are published.
        if !grows && files.peek().is_some() && files.all(|file| file.length == 0) {
            self.refused(partition.clone(), None);
        }
    }

    /// Looks soon whether a prepared range is whole.
    pub(super) fn check_prepared(&mut self, number: u64, partition: TopicPartition, reply: Sender<Prepared>) {
        self.seal.steps.push_back((Step::Check { number, partition, reply }, None));
    }

    /// Whether a seal that waited for the last checkpoint to end goes on now.
    pub(super) fn is_seals_turn(&self) -> bool {
        self.seal.is_next() && self.has_state()
    }

    /// Whether a step can be taken: each needs the state to itself, no block half-written, no checkpoint under way.
    pub(super) fn has_state(&self) -> bool {
        !self.is_halfway() && !self.in_checkpoint && !self.is_stalled()
    }

    /// Goes on with what can be done now.
    pub(super) fn drive_seals(&mut self) -> Result<(), Error> {
        while self.has_state() {
            if let Some((step, reply)) = self.seal.steps.pop_front() {
                match self.step(&step)? {
                    Ok(()) => reply.iter().for_each(answer),
                    Err(error) => {
                        self.seal.steps.push_front((step, reply));
                        let error = self.may_pass(error)?;
                        self.stalled(&error);
                        break;
                    }
                }
                self.recovered();
            } else if self.seal.asked.is_some() {
                break;
            } else if !self.seal.wanted.is_empty() {
                if self.seal.stage == Stage::Wanted && self.dirty {
                    self.seal.stage = Stage::Synced;
                    self.checkpoint()?;
                } else {
                    self.seal.stage = Stage::Ready;
                    self.prepare()?;
                }
            } else {
                for reply in std::mem::take(&mut self.seal.answers) {
                    self.answer_after_checkpoint(reply)?;
                }
                break;
            }
        }
        Ok(())
    }

    /// First step: everything in the files of the wanted groups is complete and durable.
    fn prepare(&mut self) -> Result<(), Error> {
        let mut wanted = std::mem::take(&mut self.seal.wanted);
        self.retain_ours(&mut wanted);
        self.seal.wanted = wanted;
        if let Err(error) = self.check_wanted() {
            let error = self.may_pass(error)?;
            self.stalled(&error);
            return Ok(());
        }
        self.recovered();
        if self.refuse_wanted_that_is_not_whole()? {
            return Ok(());
        }
        self.checkpoint_now()?;
        fault::point("seal.synced");
        let wanted = std::mem::take(&mut self.seal.wanted);
        self.seal.stage = Stage::Wanted;
        let tracker = Arc::clone(&self.tracker);
        let is_alone = matches!(self.commit_point, CommitPoint::Journal);
        // It may have been wanted in another assignment: only one that lasts now is prepared, and committed in itself alone.
        let choose = |lasting: &Lasting<'_>| {
            let epoch = |group: &Group| group.as_ref().and_then(|partition| lasting.epoch(partition));
            let with_epoch = wanted.into_iter().map(|(group, reason)| (epoch(&group), group, reason));
            let ours: Vec<_> =
                with_epoch.filter(|(epoch, group, _)| is_alone || group.is_none() || epoch.is_some()).collect();
            let partitions = ours.iter().filter_map(|(_, group, _)| group.clone()).collect();
            (ours, partitions)
        };
        let Appended { seal, asking } = tracker.prepare(choose, |ours| {
            let appended = self.append_prepared(ours)?;
            let partitions = appended.seal.ranges.iter().filter_map(|range| range.partition().cloned()).collect();
            Ok::<_, Error>((appended, partitions))
        })?;
        if seal.ranges.is_empty() {
            return Ok(());
        }
        self.sync_journal()?;
        let number = seal.number;
        self.state.apply(&Frame::Prepared(Box::new(seal.clone())));
        self.dirty = true;
        fault::point("seal.prepared");
        for range in &seal.ranges {
            let group = range.partition().cloned();
            if range.offsets.is_none() || self.decides(&group) {
                self.seal.steps.push_back((Step::Publish { number, group }, None));
            }
        }
        if let (CommitPoint::Group(requests), false) = (&self.commit_point, asking.is_empty()) {
            let open = asking.iter().map(|asking| asking.position.partition.clone()).collect();
            self.seal.asked = Some((number, open));
            // Without the thread that serves the group, the service is about to end: the next start decides.
            drop(requests.send(SealRequest { number, asking }));
        }
        Ok(())
    }

    /// Appends `Prepared` for these groups, each with the assignment of its partition. Without ranges nothing is appended.
    fn append_prepared(&mut self, ours: Vec<(Option<Epoch>, Group, RotateReason)>) -> Result<Appended, Error> {
        let epochs: BTreeMap<_, _> = ours.iter().map(|(epoch, group, _)| (group.clone(), *epoch)).collect();
        let seal = self.seal_of(&ours.into_iter().map(|(_, group, reason)| (group, reason)).collect());
        let offsets = seal.ranges.iter().filter_map(|range| range.offsets.as_ref());
        let asked = offsets.filter(|offsets| !self.decides(&Some(offsets.to.partition.clone())));
        let asking: Vec<_> = asked
            .map(|SealedOffsets { to, .. }| {
                let epoch = epochs.get(&Some(to.partition.clone())).copied().flatten();
                Asking { position: to.clone(), epoch }
            })
            .collect();
        if !seal.ranges.is_empty() {
            self.append(&Frame::Prepared(Box::new(seal.clone())))?;
        }
        Ok(Appended { seal, asking })
    }

    /// Looks whether the files of the wanted groups are still what was written: once their offsets are committed, it is too late
    /// to read the records again.
    fn check_wanted(&self) -> io::Result<()> {
        let is_wanted = |file: &&FileState| {
            file.visibility == Visibility::Sealed && file.length > 0 && self.seal.wanted.contains_key(&file.partition())
        };
        self.state.files.values().filter(is_wanted).try_for_each(|file| self.sink.check_hidden(file))
    }

    /// Has every wanted range refused whose hidden files do not have all of its lines: a file that was gone at the start is not
    /// in the state any more, and without this the range would be published as if it had no line. Returns whether there is one.
    fn refuse_wanted_that_is_not_whole(&mut self) -> Result<bool, Error> {
        let is_short = |group: &Group| {
            let partition = group.as_ref()?;
            let growth = self.state.partitions.get(partition)?.growth.as_ref()?;
            (!self.state.is_whole(partition, growth)).then(|| (partition.clone(), growth.from))
        };
        let short: Vec<_> = self.seal.wanted.keys().filter_map(is_short).collect();
        for (partition, from) in &short {
            tracing::error!(%partition, from, "hidden lines are missing: the range is not published, and its records are read again");
            self.refusable(partition)?;
            self.seal.wanted.remove(&Some(partition.clone()));
            self.refused(partition.clone(), None);
        }
        if !short.is_empty() {
            self.seal.stage = Stage::Wanted;
        }
        Ok(!short.is_empty())
    }

    /// Fails when a partition is being read: whoever reads it would go on behind what is refused. The pipeline begins again then,
    /// and refuses it before the partition is read.
    fn refusable(&self, partition: &TopicPartition) -> Result<(), Error> {
        if self.tracker.partitions().contains(partition) {
            return Err(Error::Hidden(HiddenGone(format!("with lines of {partition}"))));
        }
        Ok(())
    }

    /// The complete files of these groups, and the offsets that they stand for.
    fn seal_of(&mut self, wanted: &BTreeMap<Group, RotateReason>) -> Seal {
        let mut ranges: BTreeMap<Group, SealedRange> = BTreeMap::new();
        for (group, growth) in wanted.keys().filter_map(|group| Some((group, self.growth(group.as_ref()?)?))) {
            ranges.insert(group.clone(), SealedRange { offsets: Some(growth), files: Vec::new() });
        }
        for (group, id) in self.sink.take(wanted) {
            let Some(file) = self.state.files.get(&id) else { continue };
            let file = SealedFile {
                id,
                name: file.name.clone(),
                inode: file.inode,
                lines: file.lines,
                bytes: file.length,
                crc: file.crc,
                compression: file.compression,
            };
            let range = ranges.entry(group).or_insert_with(|| SealedRange { offsets: None, files: Vec::new() });
            range.files.push(file);
        }
        self.seal.grown.retain(|group, _| !wanted.contains_key(group));
        let (number, incarnation) = (self.state.number + 1, self.state.incarnation);
        Seal { number, incarnation, ranges: ranges.into_values().collect() }
    }

    fn growth(&self, partition: &TopicPartition) -> Option<SealedOffsets> {
        let state = self.state.partitions.get(partition)?;
        let to = Position {
            partition: partition.clone(),
            topic_id: state.topic_id.clone(),
            next: state.next,
            leader_epoch: state.leader_epoch,
        };
        Some(SealedOffsets { growth: state.growth.clone()?, to })
    }

    /// Whether this run hides its files.
    pub(super) fn is_sealed(&self) -> bool {
        self.state.visibility == Visibility::Sealed
    }
}
