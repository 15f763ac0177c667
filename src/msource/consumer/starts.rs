//! Where partitions begin: found out, made durable, and then read.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};

use super::held::{Waiting, Why};
use super::outcome::is_answer;
use super::seals::{Rejoin, is_hiding};
use super::slot::{Fetch, Slot, Told};
use super::topic_ids::{Meaning, Said};
use super::topics::{Topics, is_other};
use super::{Code, Consumer, Error, PATIENCE, REQUEST_TIMEOUT, RETRY, Reassigned, next_question};
use crate::config::{Assignment, Start};
use crate::delivery::{Finish, Inbox};
use crate::fault;
use crate::msource::TopicPartition;
use crate::msource::assignment::{Decision, Known, Owner, decide};
use crate::msource::journal::{Frame, Mark, MoveCause, PartitionState, Position};
use crate::msource::native::{Client, Commit, GroupOffset, KafkaError, OffsetSpec, Protocol, TopicInfo};
use crate::msource::properties;

/// Where a partition begins.
pub(super) struct Begin {
    pub(super) at: Position,
    /// What is to be noted of it, if anything is new.
    frames: Vec<Frame>,
    /// Whether the group is to be told.
    tells: Tells,
}

/// Whether the group is told where a partition begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tells {
    No,
    Yes,
}

impl Begin {
    /// Noted here, and told to the group.
    fn noted(at: Position, frames: Vec<Frame>) -> Self {
        Self { at, frames, tells: Tells::Yes }
    }
}

/// Where assigned partitions begin, as far as brokers and group have answered.
#[derive(Default)]
pub(super) struct Starts {
    pub(super) known: Vec<Begin>,
    /// These wait for an answer, and hold back no other.
    pub(super) unknown: Vec<(TopicPartition, KafkaError)>,
}

/// Starts that were to be pinned.
#[derive(Default)]
pub(super) struct Pinned {
    /// Durable here and known to the group.
    pub(super) started: Vec<Position>,
    /// These the group has not taken.
    pub(super) refused: Vec<(TopicPartition, KafkaError)>,
}

/// A partition that nobody has read yet: its first record is to be found.
struct Open {
    at: Position,
    start: Start,
    cause: Option<MoveCause>,
}

/// What brokers and group say of the topics of some partitions.
struct Answers {
    topics: HashMap<String, TopicInfo>,
    /// The group's offsets of every partition of these topics; empty where no group is asked.
    group: HashMap<TopicPartition, Option<GroupOffset>>,
    /// Topics of which something is not known.
    unknown: HashMap<String, KafkaError>,
}

/// The partitions of the topics that are meant, as far as brokers have answered.
#[derive(Default)]
struct Discovered {
    partitions: Vec<TopicPartition>,
    unknown: Vec<(String, KafkaError)>,
}

impl Consumer {
    /// Finds the partitions of the topics without the help of a group.
    pub(super) fn discover(&mut self) {
        let asked = Instant::now();
        self.discover_at = asked + self.parts.discovery;
        let Discovered { partitions, unknown } = match self.all_partitions(REQUEST_TIMEOUT) {
            Ok(answers) => answers,
            Err(error) => {
                self.discover_at = self.resolve_again(asked, RETRY);
                self.in_trouble_by(
                    error.code,
                    format!("cannot ask {} for the topics: {error}", self.parts.config.brokers),
                );
                return;
            }
        };
        for (_, error) in &unknown {
            self.note_right(error.code);
        }
        self.held.note_topics(&unknown);
        if !unknown.is_empty() {
            let pause = if partitions.is_empty() { RETRY } else { RETRY * 5 };
            self.discover_at = self.resolve_again(asked, pause.min(self.parts.discovery));
        }
        for partition in partitions {
            if !self.slots.iter().any(|slot| slot.partition == partition) {
                self.pending.insert(partition);
            }
        }
    }

    /// The partitions of the topics that are meant, as far as brokers know them.
    pub(super) fn partitions_of_topics(&self, timeout: Duration) -> Result<Vec<TopicPartition>, KafkaError> {
        self.all_partitions(timeout).map(|found| found.partitions)
    }

    fn all_partitions(&self, timeout: Duration) -> Result<Discovered, KafkaError> {
        let Meant { names, unmatched } = topic_names(&self.client, &self.parts.config.topics, timeout)?;
        if names.is_empty() {
            let text = unmatched_text(&unmatched);
            return Err(KafkaError { code: Code::UnknownTopicOrPartition, text });
        }
        let mut found = Discovered::default();
        for (name, info) in names.iter().zip(self.client.describe_topics(&names, timeout)?) {
            match info {
                Ok(info) => found.partitions.extend(
                    (0..info.partitions)
                        .map(|partition| TopicPartition { topic: info.name.as_str().into(), partition }),
                ),
                Err(error) => found.unknown.push((name.clone(), error)),
            }
        }
        Ok(found)
    }

    /// Finds out where pending partitions begin, makes that durable, and begins to read them.
    pub(super) fn resolve(&mut self) -> Result<(), Error> {
        if self.pending.is_empty() || Instant::now() < self.retry_at || self.reassigned != Reassigned::No {
            return Ok(());
        }
        if !self.client.is_agreed() {
            self.join_again_for_agreement();
            return Ok(());
        }
        self.disagreed_since = None;
        self.parts.desk.set_pending(&self.pending);
        // Where a partition goes on is read from the last checkpoint. What an assignment before this one wrote must be in it, or
        // it would be written again. After it, nothing but what is asked for here moves a partition that is not begun.
        if !self.settle()? {
            return Ok(());
        }
        fault::point("assign.settled");
        let asked = Instant::now();
        let mut pending: Vec<_> = self.pending.iter().cloned().collect();
        let mut waiting = Vec::new();
        match self.set_aside_of_gone_topics(&pending)? {
            Topics::There => {}
            Topics::SetAside => {
                self.retry_at = self.resolve_again(asked, RETRY);
                return Ok(());
            }
            Topics::Unknown(unknown) => hold_back(&mut pending, &mut waiting, unknown, Why::Topic),
        }
        let judged = self.judge_pending(&pending)?;
        if judged.has_changed {
            return Ok(());
        }
        hold_back(&mut pending, &mut waiting, judged.held, Why::Hidden);
        fault::point("assign.judged");
        let starts = match self.starts(&pending) {
            Ok(starts) => starts,
            Err(error) => {
                self.note_refusal(&error);
                self.retry_at = self.resolve_again(asked, RETRY);
                self.in_trouble_by(error.code, format!("cannot find out where to start: {error}"));
                return Ok(());
            }
        };
        hold_back(&mut pending, &mut waiting, starts.unknown, Why::Start);
        if !starts.known.is_empty() {
            let Pinned { started, refused } = self.pin(starts.known)?;
            hold_back(&mut pending, &mut waiting, refused, Why::Pin);
            // The commits that follow come from the checkpoint too: one from before the starts would take them back. And what was
            // lost since is not begun: the revocation is on its way.
            let is_known = self.settling.is_none() || self.settle()?;
            if is_known && !self.client.assignment_lost() {
                fault::point("assign.known");
                self.begin(started);
                fault::point("assign.begun");
            }
        }
        for waiting in &waiting {
            self.note_refusal(&waiting.error);
        }
        self.held.note_partitions(&waiting);
        if !waiting.is_empty() {
            let least = if waiting.iter().all(Waiting::lasts) { RETRY * 5 } else { RETRY };
            self.retry_at = self.resolve_again(asked, least);
        }
        Ok(())
    }

    /// When brokers are asked again about what is not read yet: soon while nothing is read that the question would hold up.
    pub(super) fn resolve_again(&mut self, asked: Instant, least: Duration) -> Instant {
        let is_idle = self.slots.is_empty();
        let next = if is_idle { Instant::now() + least.min(RETRY) } else { next_question(asked, least) };
        self.topics.asks_next(asked, next);
        next
    }

    /// Makes everything durable that was sent before the pending partitions were given to us, and all that was noted of them
    /// since. When that takes long, the next pass waits on: a disk may need longer for one checkpoint than the group may wait.
    pub(super) fn settle(&mut self) -> Result<bool, Error> {
        if self.parts.gauges.stalled().is_some() {
            self.retry_at = Instant::now() + RETRY;
            return Ok(false);
        }
        let settling = match self.settling.take() {
            Some(settling) => settling,
            None => self.send_barrier(Finish::No)?,
        };
        let settled = self.answered_soon(&settling)?.is_some();
        if !settled {
            self.settling = Some(settling);
        }
        Ok(settled)
    }

    /// Makes everything durable that partitions stand for which are read. When that takes long, the next pass waits on.
    pub(super) fn settled(&mut self) -> Result<bool, Error> {
        if self.parts.gauges.stalled().is_some() {
            return Ok(false);
        }
        let standing = match self.standing.take() {
            Some(standing) => standing,
            None => self.send_barrier(Finish::No)?,
        };
        let settled = self.answered_soon(&standing)?.is_some();
        if !settled {
            self.standing = Some(standing);
        }
        Ok(settled)
    }

    /// Asks brokers and group, and decides.
    pub(super) fn starts(&mut self, pending: &[TopicPartition]) -> Result<Starts, KafkaError> {
        if pending.is_empty() {
            return Ok(Starts::default());
        }
        let Answers { topics, group, unknown } = self.ask(pending)?;
        let (local, last) = {
            let state = &self.parts.gauges.durable().state;
            (state.partitions.clone(), state.number)
        };
        self.carry_on_all(&topics, pending, &group);
        let mut starts = Starts::default();
        let mut open = Vec::new();
        for partition in pending {
            if let Some(error) = unknown.get(&*partition.topic) {
                starts.unknown.push((partition.clone(), error.clone()));
                continue;
            }
            let answered = topics.get(&*partition.topic).map_or("", |info| info.id.as_str());
            let theirs = group.get(partition).and_then(Option::as_ref);
            let topic_id = match self.topic_id(partition, answered, local.get(partition), theirs) {
                Ok(id) => id,
                Err(error) => {
                    starts.unknown.push((partition.clone(), error));
                    continue;
                }
            };
            let decision = decide(&Known {
                home: (&self.parts.home.0, self.parts.home.1),
                former: &self.parts.former,
                number: last,
                local: local.get(partition),
                group: theirs,
                topic_id: &topic_id,
                added: self.begun_with.get(&partition.topic).is_none_or(|count| partition.partition >= *count),
                visibility: self.parts.visibility,
            });
            let at = |next, leader_epoch| Position {
                partition: partition.clone(),
                topic_id: topic_id.clone(),
                next,
                leader_epoch,
            };
            // What a tool writes there need not be an epoch of this log.
            let epoch = theirs.filter(|group| group.has_owner()).map_or(-1, |group| group.leader_epoch);
            match decision {
                Decision::Continue => {
                    let here = local.get(partition);
                    let (next, leader_epoch) = here.map_or((0, -1), |here| (here.next, here.leader_epoch));
                    if let Some(None) = group.get(partition) {
                        tracing::warn!(%partition, offset = next, "the group has no offset of this partition: going on where this instance stood; what another one has read since is repeated");
                    }
                    let has_no_base = here.is_some_and(|here| here.growth.is_none() && here.mark.is_none());
                    if self.hides() && has_no_base && theirs.is_some_and(GroupOffset::has_owner) {
                        // As after a range that was refused before a kill.
                        self.refused.insert(partition.clone());
                    }
                    let tells = self.is_unknown(here, group.get(partition)) || self.refused.contains(partition);
                    let tells = if tells { Tells::Yes } else { Tells::No };
                    starts.known.push(Begin { at: at(next, leader_epoch), frames: Vec::new(), tells });
                }
                Decision::Move { to, cause } => {
                    say_moved(partition, local.get(partition), theirs, to);
                    let position = at(to, epoch);
                    let frames = vec![Frame::Move { to: position.clone(), cause }];
                    starts.known.push(Begin::noted(position, frames));
                }
                Decision::Adopt { at: next } => {
                    let position = at(next, epoch);
                    starts.known.push(Begin::noted(position.clone(), vec![Frame::Start(position)]));
                }
                Decision::Added => open.push(Open { at: at(0, -1), start: Start::Earliest, cause: None }),
                Decision::Recreated => {
                    open.push(Open { at: at(0, -1), start: Start::Earliest, cause: Some(MoveCause::Recreated) });
                }
                Decision::New => open.push(Open { at: at(0, -1), start: self.parts.config.start, cause: None }),
            }
        }
        self.find_first_records(open, &mut starts);
        self.found = group;
        Ok(starts)
    }

    /// Asks the brokers about topics and the group about their partitions. What one topic does not answer holds back no other.
    fn ask(&self, pending: &[TopicPartition]) -> Result<Answers, KafkaError> {
        let names: BTreeSet<String> = pending.iter().map(|partition| partition.topic.to_string()).collect();
        let names: Vec<String> = names.into_iter().collect();
        let mut answers = Answers { topics: HashMap::new(), group: HashMap::new(), unknown: HashMap::new() };
        let described = self.client.describe_topics(&names, REQUEST_TIMEOUT)?;
        for (name, info) in names.into_iter().zip(described) {
            match info {
                Ok(info) => drop(answers.topics.insert(name, info)),
                Err(error) => drop(answers.unknown.insert(name, error)),
            }
        }
        if self.parts.config.assignment == Assignment::All {
            return Ok(answers);
        }
        let all = partitions_of(&answers.topics, pending);
        if all.is_empty() {
            return Ok(answers);
        }
        let offsets = self.client.committed(&all, REQUEST_TIMEOUT)?;
        for (partition, offset) in all.into_iter().zip(offsets) {
            match offset {
                Ok(offset) => drop(answers.group.insert(partition, offset)),
                // Whether a partition is new is told from all of its topic.
                Err(error) => drop(answers.unknown.insert(partition.topic.to_string(), error)),
            }
        }
        answers.topics.retain(|name, _| !answers.unknown.contains_key(name));
        Ok(answers)
    }

    /// The id of a partition's topic by this answer, unless that is not what we know and may pass.
    fn topic_id(
        &mut self,
        partition: &TopicPartition,
        answered: &str,
        local: Option<&PartitionState>,
        group: Option<&GroupOffset>,
    ) -> Result<String, KafkaError> {
        let known = local.map_or("", |here| here.topic_id.as_str());
        let theirs = group.and_then(GroupOffset::topic_id).unwrap_or_default();
        match self.topics.hear(partition, &[known, &theirs], Said::Id(answered.to_owned()), Instant::now()) {
            Meaning::Doubtful(error) => return Err(error),
            Meaning::Lasting if !answered.is_empty() => {
                let others = [known, &theirs].into_iter().filter(|id| *id != answered);
                others.for_each(|id| self.topics.replace(id));
            }
            Meaning::Lasting | Meaning::Known => {}
        }
        // An id that was known once is not forgotten.
        Ok(if answered.is_empty() { known } else { answered }.to_owned())
    }

    /// Asks the brokers where partitions begin that nobody has read yet.
    fn find_first_records(&self, open: Vec<Open>, starts: &mut Starts) {
        let queries: Vec<_> = open.iter().map(|Open { at, start, .. }| (at.partition.clone(), *start)).collect();
        let found = offsets_at(&self.client, &queries);
        for (Open { mut at, start, cause }, offset) in open.into_iter().zip(found) {
            match offset {
                Ok(offset) => {
                    at.next = offset;
                    tracing::info!(partition = %at.partition, offset, from = ?start, "a partition starts");
                    let frames = match cause {
                        Some(cause) => vec![Frame::Move { to: at.clone(), cause }],
                        None => vec![Frame::Start(at.clone()), Frame::Begun { partition: at.partition.clone() }],
                    };
                    starts.known.push(Begin::noted(at, frames));
                }
                Err(error) => starts.unknown.push((at.partition, error)),
            }
        }
    }

    /// Whether the group is to be told where a partition goes on: what is hidden later can only follow what it knows, and the
    /// next owner of one that has gone back would go on too far.
    fn is_unknown(&self, local: Option<&PartitionState>, group: Option<&Option<GroupOffset>>) -> bool {
        match (local, group) {
            (Some(local), Some(Some(group))) => {
                let differs = if self.hides() { group.offset != local.next } else { group.offset > local.next };
                local.growth.is_none() && differs
            }
            (Some(local), _) if local.growth.is_some() => false,
            (_, group) => matches!(group, Some(None)),
        }
    }

    /// Makes starts durable here and known to the group; returns those that are, and lets [`Self::settle`] wait for what is
    /// noted of them. What the group refuses holds back no other.
    pub(super) fn pin(&mut self, mut starts: Vec<Begin>) -> Result<Pinned, Error> {
        // Before the first start: after a kill between two of them it is known what was there.
        let frames = starts.iter().flat_map(|start| &start.frames);
        let begun = self.begun_topics(frames).into_iter();
        let mut notes = begun.map(|frame| self.note(frame)).collect::<Result<Vec<_>, _>>()?;
        let mut fresh = Vec::new();
        for Begin { at, frames, tells } in &starts {
            for frame in frames {
                if let Frame::Move { to, cause: MoveCause::Recreated } = frame {
                    tracing::error!(partition = %to.partition, at = to.next, "the topic was deleted and created again: starting at its first record");
                }
                notes.push(self.note(frame.clone())?);
            }
            // Where files are hidden, a commit that says nothing new would only push older owners out of what it carries.
            let is_new = self.found_at(&at.partition) != Some(at.next) || self.refused.contains(&at.partition);
            if *tells == Tells::Yes && (!self.hides() || is_new) {
                fresh.push(self.commit_from(at));
            }
        }
        let mut noted = !notes.is_empty();
        let mut refused = Vec::new();
        if !self.all_noted(notes)? {
            return Ok(Pinned::default());
        }
        fault::point("assign.noted");
        if self.parts.config.assignment == Assignment::Group && !fresh.is_empty() {
            if self.client.assignment_lost() {
                return Ok(Pinned::default());
            }
            // Unless the group knows the start, the next owner would resolve it once more and might find another one.
            refused = self.refused_of(&fresh);
            if let Some((_, error)) = refused.iter().find(|(_, error)| !is_answer(error))
                && self.hides()
            {
                // It could arrive after the commit of a seal, and take that back.
                self.rejoin = Rejoin::Due;
                self.in_trouble_by(error.code, format!("the group did not take the starts: {error}"));
                return Ok(Pinned { started: Vec::new(), refused });
            }
            starts.retain(|start| refused.iter().all(|(partition, _)| *partition != start.at.partition));
            if let Some((_, error)) = refused.first()
                && starts.is_empty()
                && self.slots.is_empty()
            {
                self.in_trouble_by(error.code, format!("the group did not take the starts: {error}"));
            }
        }
        fault::point("assign.pinned");
        if self.hides() && self.parts.config.assignment == Assignment::Group {
            let mut bases = Vec::new();
            for Begin { at, frames, .. } in &starts {
                let ours = fresh.iter().any(|commit| commit.partition == at.partition);
                let mark = if ours { Some(self.mark(0)) } else { self.found_mark(&at.partition) };
                // Whatever stood beside the place is forgotten when the partition stands elsewhere.
                if !frames.is_empty() || !self.has_base(&at.partition, mark.as_ref()) {
                    bases.push(self.note(Frame::Base { partition: at.partition.clone(), mark })?);
                }
                self.refused.remove(&at.partition);
            }
            noted |= !bases.is_empty();
            if !self.all_noted(bases)? {
                return Ok(Pinned::default());
            }
        }
        if noted {
            self.settling = Some(self.send_barrier(Finish::No)?);
        }
        Ok(Pinned { started: starts.into_iter().map(|start| start.at).collect(), refused })
    }

    /// Commits starts; returns those that the group has not taken.
    fn refused_of(&self, commits: &[Commit]) -> Vec<(TopicPartition, KafkaError)> {
        let refused = self.commit_starts(commits);
        if !is_hiding(&refused) {
            return refused;
        }
        let mut topics: BTreeMap<&str, Vec<Commit>> = BTreeMap::new();
        for commit in commits.iter().filter(|commit| refused.iter().any(|(of, _)| *of == commit.partition)) {
            topics.entry(&commit.partition.topic).or_default().push(commit.clone());
        }
        topics.into_values().flat_map(|of_topic| self.commit_starts(&of_topic)).collect()
    }

    fn commit_starts(&self, commits: &[Commit]) -> Vec<(TopicPartition, KafkaError)> {
        let answers = self.client.commit(commits, REQUEST_TIMEOUT);
        let answers = answers.unwrap_or_else(|error| vec![Err(error); commits.len()]);
        let refused = commits.iter().zip(answers).filter_map(|(commit, answer)| Some((commit, answer.err()?)));
        refused.map(|(commit, error)| (commit.partition.clone(), error)).collect()
    }

    /// Has something noted in the journal, in its place among the blocks; the answer comes when it is durable.
    pub(super) fn note(&self, frame: Frame) -> Result<Receiver<()>, Error> {
        let (reply, answered) = bounded(1);
        let ticket = self.parts.tickets.take();
        self.parts.inbox.send(Inbox::Note { ticket, frame, reply }).map_err(|_| Error::Closed)?;
        Ok(answered)
    }

    /// Waits a while until all of it is noted. When that takes longer, the next pass comes behind it, and finds it there.
    fn all_noted(&mut self, notes: Vec<Receiver<()>>) -> Result<bool, Error> {
        let deadline = Instant::now() + PATIENCE;
        for noted in notes {
            if self.answered_by(&noted, deadline)?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The offset that the group had when it was asked last.
    fn found_at(&self, partition: &TopicPartition) -> Option<i64> {
        Some(self.found.get(partition)?.as_ref()?.offset)
    }

    /// Who had committed it.
    fn found_mark(&self, partition: &TopicPartition) -> Option<Mark> {
        let owner: Owner = self.found.get(partition)?.as_ref()?.metadata.parse().ok()?;
        Some(owner.mark)
    }

    /// Begins to read partitions whose start is durable.
    pub(super) fn begin(&mut self, mut started: Vec<Position>) {
        let found = started.len();
        started.retain(|position| !is_other(&self.client, &position.partition, &position.topic_id));
        if started.len() < found {
            // A topic is being created again, and the brokers do not agree yet.
            self.retry_at = Instant::now() + RETRY;
        }
        if started.is_empty() {
            return;
        }
        let of_our_own_accord = !self.unanswered.is_waiting();
        self.unanswered.end();
        let now = Instant::now();
        let kept = self.partitions();
        let begun = self.slots.len();
        for position in started {
            let Some(epoch) = self.parts.tracker.begin(position.partition.clone(), position.next) else {
                tracing::warn!(partition = %position.partition, "a range of the partition is not decided: judging it again");
                self.retry_at = now + RETRY;
                continue;
            };
            self.pending.remove(&position.partition);
            self.watchdog.forget(&position.partition);
            debug_assert!(kept.iter().all(|kept| *kept != position.partition), "{} has a slot", position.partition);
            self.slots.push(Slot {
                partition: position.partition,
                topic_id: position.topic_id,
                epoch,
                next: position.next,
                committed: -1,
                open: Vec::new(),
                from: position.next,
                bytes: 0,
                unpacked: 0,
                cost: 0,
                since: now,
                leader_epoch: position.leader_epoch,
                // The seek lets the broker check that it still has the record before this place.
                fetch: if position.leader_epoch < 0 { Fetch::On } else { Fetch::Check(now, position.next) },
                told: Told::Record,
                attempts: None,
                moving: None,
            });
        }
        self.index.clear();
        let assigned: Vec<_> = self.slots[begun..].iter().map(Slot::assignment).collect();
        let answer = match self.client.protocol() {
            Protocol::Cooperative => self.client.incremental_assign(&assigned),
            Protocol::Eager => self.assign_all(),
        };
        Self::log_answer(answer);
        if of_our_own_accord {
            self.reassigned = Reassigned::Yes { queued: self.client.queued() };
        }
        self.rewind(&kept);
        self.pause_new();
        self.trouble.over();
        self.parts.desk.partitions.store(self.slots.len(), Ordering::Relaxed);
    }
}

/// Takes partitions that have to wait out of those that may begin.
fn hold_back(
    pending: &mut Vec<TopicPartition>,
    waiting: &mut Vec<Waiting>,
    held: Vec<(TopicPartition, KafkaError)>,
    why: Why,
) {
    pending.retain(|partition| held.iter().all(|(waits, _)| waits != partition));
    waiting.extend(held.into_iter().map(|(partition, error)| Waiting { partition, why, error }));
}

/// Every partition of these topics that brokers or group have named: a broker may not have heard yet of one that the group has
/// given us.
fn partitions_of(topics: &HashMap<String, TopicInfo>, given: &[TopicPartition]) -> Vec<TopicPartition> {
    let told = topics.values().flat_map(|info| {
        (0..info.partitions).map(|partition| TopicPartition { topic: info.name.as_str().into(), partition })
    });
    let given = given.iter().filter(|partition| topics.contains_key(&*partition.topic)).cloned();
    told.chain(given).collect::<BTreeSet<_>>().into_iter().collect()
}

/// The topics that are meant by `kafka.topics`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Meant {
    /// Their names.
    pub names: Vec<String>,
    /// Patterns that match no topic of the cluster.
    pub unmatched: Vec<String>,
}

/// The topics that are meant: names as they are, regular expressions matched against all topics of the cluster but those
/// that are the brokers' own.
pub fn topic_names(client: &Client, topics: &[String], timeout: Duration) -> Result<Meant, KafkaError> {
    let (patterns, names): (Vec<_>, Vec<_>) = topics.iter().cloned().partition(|topic| topic.starts_with('^'));
    if patterns.is_empty() {
        return Ok(Meant { names, unmatched: Vec::new() });
    }
    meant(names, patterns, &client.topic_names(timeout)?)
}

fn meant(mut names: Vec<String>, patterns: Vec<String>, all: &[String]) -> Result<Meant, KafkaError> {
    let mut unmatched = Vec::new();
    for text in patterns {
        let pattern = regex_lite::Regex::new(&text)
            .map_err(|error| KafkaError { code: Code::InvalidArgument, text: format!("`{text}`: {error}") })?;
        let before = names.len();
        let matches = |name: &&String| !name.starts_with(properties::INTERNAL) && pattern.is_match(name);
        names.extend(all.iter().filter(matches).cloned());
        if names.len() == before {
            unmatched.push(text);
        }
    }
    names.sort();
    names.dedup();
    Ok(Meant { names, unmatched })
}

/// Whether a topic is one of those that are meant. One that a pattern may mean is: what cannot be read as a pattern here may be
/// one for the brokers.
pub(super) fn is_meant(topics: &[String], name: &str) -> bool {
    topics.iter().any(|topic| {
        topic == name
            || topic.starts_with('^') && regex_lite::Regex::new(topic).map_or(true, |pattern| pattern.is_match(name))
    })
}

/// Logs that the group's offset is elsewhere than where we stood.
fn say_moved(partition: &TopicPartition, local: Option<&PartitionState>, group: Option<&GroupOffset>, to: i64) {
    let local = local.map_or(-1, |local| local.next);
    if group.is_some_and(GroupOffset::has_owner) && to >= local {
        tracing::info!(%partition, local, to, "another instance has read on: going on there");
    } else {
        tracing::warn!(%partition, local, to, "the group's offset was moved by others: going on there");
    }
}

/// Asks the brokers for offsets, in the order asked. A time after the last record is the end as it was before the brokers were
/// asked for the time: a record that comes between the two questions is not skipped.
pub(super) fn offsets_at(client: &Client, queries: &[(TopicPartition, Start)]) -> Vec<Result<i64, KafkaError>> {
    let mut found: Vec<Option<Result<i64, KafkaError>>> = vec![None; queries.len()];
    // One partition must not be asked about twice in a request, so each kind of question is a request of its own.
    let mut kinds: Vec<Start> = Vec::new();
    for (_, start) in queries {
        if !kinds.contains(start) {
            kinds.push(*start);
        }
    }
    for kind in kinds {
        let which: Vec<usize> = (0..queries.len()).filter(|index| queries[*index].1 == kind).collect();
        let partitions: Vec<_> = which.iter().map(|index| queries[*index].0.clone()).collect();
        let ends = |end| {
            let queries: Vec<_> = partitions.iter().map(|partition| (partition.clone(), end)).collect();
            client.list_offsets(&queries, REQUEST_TIMEOUT)
        };
        let answers = match kind {
            Start::Earliest => ends(OffsetSpec::Earliest),
            Start::Latest => ends(OffsetSpec::Latest),
            Start::Time(time) => {
                let ends = ends(OffsetSpec::Latest);
                let times = client.offsets_at_time(&partitions, time, REQUEST_TIMEOUT);
                let at = |(time, end): (Result<Option<i64>, _>, Result<i64, _>)| time?.map_or(end, Ok);
                times.into_iter().zip(ends).map(at).collect()
            }
        };
        for (index, answer) in which.into_iter().zip(answers) {
            found[index] = Some(answer);
        }
    }
    // Each query is of one of the kinds.
    found.into_iter().flatten().collect()
}

/// Which patterns match nothing, for people.
pub fn unmatched_text(patterns: &[String]) -> String {
    let patterns: Vec<_> = patterns.iter().map(|pattern| format!("`{pattern}`")).collect();
    format!("the brokers have no topic that matches {}", patterns.join(" or "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_is_asked_about_a_partition_that_it_gave_although_a_broker_does_not_name_it() {
        let info = TopicInfo { name: "t".into(), id: String::new(), partitions: 2 };
        let topics = HashMap::from([("t".to_owned(), info)]);
        let of = |topic: &str, partition| TopicPartition { topic: topic.into(), partition };
        // Nothing is known of the other topic, whose partitions wait.
        let asked = partitions_of(&topics, &[of("t", 3), of("t", 0), of("other", 0)]);
        assert_eq!(asked, [of("t", 0), of("t", 1), of("t", 3)]);
    }

    #[test]
    fn patterns_take_no_topic_of_the_brokers_own_and_those_that_match_nothing_are_told() {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let all = texts(&["__consumer_offsets", "__own", "a1", "a2", "b"]);
        let found = meant(texts(&["b", "__own"]), texts(&["^a[0-9]$", "^.*", "^c"]), &all);
        assert_eq!(found, Ok(Meant { names: texts(&["__own", "a1", "a2", "b"]), unmatched: texts(&["^c"]) }));
    }
}
