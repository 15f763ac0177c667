//! Positions and watermarks: the rows of `offset_checker`, and `set_offset`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use rdkafka::types::RDKafkaErrorCode as Code;

use super::broken::failed;
use super::pipeline::Pipeline;
use crate::cli::{Moved, OffsetTarget, Selection};
use crate::config::{Assignment, Config, Start};
use crate::control::{Failure, FailureKind, PartitionOffsets};
use crate::delivery::{Finish, Inbox, Verdict};
use crate::msource::TopicPartition;
use crate::msource::assignment::{Decision, Held, Known, Owner, begun_with, decide, judge};
use crate::msource::consumer::{Meant, Weight, is_answer, topic_names, unmatched_text};
use crate::msource::journal::{Frame, Mark, MoveCause, Position, SealedOffsets, State};
use crate::msource::native::{Client, Commit, GroupOffset, KafkaError, OffsetSpec};
use crate::msource::properties;
use crate::msource::rights::{Missing, missing};

/// How long brokers may take to say who they are, after another question was not answered.
const BROKERS_TIMEOUT: Duration = Duration::from_millis(500);

/// Asks the brokers on behalf of commands.
pub(super) struct Asker {
    client: Client,
    /// Bound on one question.
    timeout: Duration,
    /// Bound on all of them together.
    deadline: Option<Instant>,
    committed_only: bool,
}

/// A partition with everything that decides where it stands. What is `None` is not known.
struct Standing {
    partition: TopicPartition,
    topic_id: String,
    low: Option<i64>,
    high: Option<i64>,
    current: Option<i64>,
    /// Why something is not known.
    unknown: Option<KafkaError>,
    /// What the group has.
    group: Option<GroupOffset>,
}

impl Standing {
    fn row(&self) -> PartitionOffsets {
        PartitionOffsets {
            topic: self.partition.topic.to_string(),
            partition: self.partition.partition,
            low: self.low,
            high: self.high,
            current: self.current,
            lag: self.high.zip(self.current).map(|(high, current)| (high - current).max(0)),
        }
    }
}

/// What the leader of a partition says of its log.
struct Watermarks {
    low: Result<i64, KafkaError>,
    high: Result<i64, KafkaError>,
}

impl Watermarks {
    fn error(&self) -> Option<KafkaError> {
        self.low.as_ref().err().or(self.high.as_ref().err()).cloned()
    }
}

/// Which partitions of the configured topics are meant.
#[derive(Clone, Copy)]
enum Which<'a> {
    All,
    These(&'a BTreeSet<TopicPartition>),
}

impl Asker {
    /// A client of its own. It connects when it is first asked; each question is bounded by `timeout`.
    pub(super) fn new(config: &Config, timeout: Duration) -> Result<Self, Failure> {
        let client = Client::new(&properties::asking(&config.kafka))
            .map_err(|error| Failure::new(FailureKind::Config, format!("cannot make a Kafka client: {error}")))?;
        Ok(Self { client, timeout, deadline: None, committed_only: properties::committed_only(&config.kafka) })
    }

    /// That a question was not answered, and why: a request only times out where a handshake failed or an address is dead.
    fn unavailable(&self, error: &KafkaError) -> Failure {
        let mut message = format!("Kafka does not answer: {error}");
        if Weight::of(error.code, &error.text) < Weight::Cause {
            let errors = self.client.connection_errors();
            let best = errors.iter().map(|error| Weight::of(error.code, &error.text)).max();
            if let Some(cause) = errors.iter().rfind(|error| Some(Weight::of(error.code, &error.text)) == best)
                && best > Some(Weight::Consequence)
            {
                message = format!("{message}: {cause}");
            }
            let brokers = self.client.brokers(BROKERS_TIMEOUT).unwrap_or_default();
            if !brokers.is_empty() {
                message = format!(
                    "{message}; the cluster's brokers say that they are {}: each must be reachable from here",
                    brokers.join(", ")
                );
            }
        }
        Failure::new(FailureKind::Unavailable, message)
    }

    /// The same client for the questions of one command, which end within this time together.
    pub(super) fn within(mut self, time: Duration) -> Self {
        (self.timeout, self.deadline) = (time, Some(Instant::now() + time));
        self
    }

    /// The rows of these partitions, unless nothing is known of any.
    fn rows(&self, mut standings: Vec<Standing>) -> Result<Vec<PartitionOffsets>, Failure> {
        let is_unknown = |standing: &Standing| standing.low.is_none() && standing.high.is_none();
        if let Some(Standing { unknown: Some(error), .. }) = standings.first()
            && standings.iter().all(is_unknown)
        {
            return Err(self.unavailable(error));
        }
        for Standing { partition, unknown, .. } in &standings {
            if let Some(error) = unknown {
                tracing::debug!(%partition, %error, "the watermarks are not known");
            }
        }
        standings.sort_by(|a, b| a.partition.cmp(&b.partition));
        Ok(standings.iter().map(Standing::row).collect())
    }

    /// How long the next question may take.
    fn left(&self) -> Duration {
        let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
        // librdkafka takes no time at all for its own bound.
        self.deadline.map_or(self.timeout, left).min(self.timeout).max(Duration::from_millis(1))
    }

    /// The watermarks, in the order asked.
    fn watermarks(&self, partitions: &[TopicPartition]) -> Vec<Watermarks> {
        let ask = |spec, committed_only| {
            let queries: Vec<_> = partitions.iter().map(|partition| (partition.clone(), spec)).collect();
            let answers = self.client.list_offsets(&queries, committed_only, self.left());
            answers.unwrap_or_else(|error| vec![Err(error); queries.len()])
        };
        let low = ask(OffsetSpec::Earliest, false);
        let high = ask(OffsetSpec::Latest, self.committed_only);
        low.into_iter().zip(high).map(|(low, high)| Watermarks { low, high }).collect()
    }

    /// The configured topics with their ids and partitions; a missing one is a failure.
    pub(super) fn topics(&self, topics: &[String]) -> Result<Vec<(TopicPartition, String)>, Failure> {
        let Meant { names, unmatched } =
            topic_names(&self.client, topics, self.left()).map_err(|error| self.unavailable(&error))?;
        if !unmatched.is_empty() {
            return Err(unavailable_text(unmatched_text(&unmatched)));
        }
        let infos = self.client.describe_topics(&names, self.left()).map_err(|error| self.unavailable(&error))?;
        let mut partitions = Vec::new();
        for (name, info) in names.iter().zip(infos) {
            let info = info.map_err(|error| {
                Failure::new(FailureKind::Unavailable, format!("the brokers do not have topic {name}: {error}"))
            })?;
            partitions
                .extend((0..info.partitions).map(|partition| {
                    (TopicPartition { topic: info.name.as_str().into(), partition }, info.id.clone())
                }));
        }
        Ok(partitions)
    }

    /// What the user of this configuration may not do that the service will.
    pub(super) fn missing_rights(&self, config: &Config) -> Result<Vec<Missing>, Failure> {
        let asked = topic_names(&self.client, &config.kafka.topics, self.left())
            .and_then(|meant| missing(&self.client, &config.kafka, &meant.names, self.left()));
        asked.map_err(|error| self.unavailable(&error))
    }

    /// What the group has of these partitions, in the order asked.
    pub(super) fn group_offsets(&self, partitions: &[TopicPartition]) -> Result<Vec<Option<GroupOffset>>, Failure> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let answers = self.client.committed(partitions, self.left());
        answers.and_then(|answers| answers.into_iter().collect()).map_err(|error| self.unavailable(&error))
    }

    /// The ids of those of these topics that are there.
    pub(super) fn topic_ids(&self, names: &[String]) -> Result<BTreeMap<String, String>, Failure> {
        let infos = self.client.describe_topics(names, self.left()).map_err(|error| self.unavailable(&error))?;
        let mut ids = BTreeMap::new();
        for info in infos {
            match info {
                Ok(info) => drop(ids.insert(info.name, info.id)),
                Err(error) if error.code == Code::UnknownTopicOrPartition => {}
                Err(error) => return Err(self.unavailable(&error)),
            }
        }
        Ok(ids)
    }

    /// Commits from outside of the group, once.
    pub(super) fn commit(&self, commits: &[Commit]) -> Result<(), KafkaError> {
        self.client.commit(commits, self.left())?.into_iter().collect()
    }

    /// Where each partition that nobody reads stands, or would start.
    fn standings(&self, config: &Config, state: &State, which: Which<'_>) -> Result<Vec<Standing>, Failure> {
        let topics = self.topics(&config.kafka.topics)?;
        let partitions: Vec<_> = topics.iter().map(|(partition, _)| partition.clone()).collect();
        let group = if config.kafka.assignment == Assignment::Group {
            self.group_offsets(&partitions)?
        } else {
            vec![None; partitions.len()]
        };
        let known: BTreeMap<&str, bool> =
            topics.iter().zip(&group).fold(BTreeMap::new(), |mut known, ((of, _), group)| {
                *known.entry(&*of.topic).or_default() |= group.is_some() || state.partitions.contains_key(of);
                known
            });
        let added = |partition: &TopicPartition, topic_id: &str| {
            let of_topic = topics.iter().zip(&group).filter(|((other, _), _)| other.topic == partition.topic);
            let begun = begun_with(topic_id, of_topic.filter_map(|(_, group)| group.as_ref()));
            begun.map_or(known[&*partition.topic], |count| partition.partition >= count)
        };
        let is_meant = |partition: &TopicPartition| match which {
            Which::All => true,
            Which::These(partitions) => partitions.contains(partition),
        };
        let meant: Vec<_> = partitions.iter().filter(|partition| is_meant(partition)).cloned().collect();
        let watermarks = self.watermarks(&meant);
        let meant = topics.iter().zip(&group).filter(|((partition, _), _)| is_meant(partition));
        let mut standings = Vec::new();
        for (((partition, topic_id), group), watermarks) in meant.zip(watermarks) {
            let mut unknown = watermarks.error();
            let (low, high) = (watermarks.low.ok(), watermarks.high.ok());
            let local = state.partitions.get(partition);
            let decision = decide(&Known {
                home: (&state.home, state.incarnation),
                former: &state.former,
                number: state.number,
                local,
                group: group.as_ref(),
                topic_id,
                added: added(partition, topic_id),
                visibility: config.sink.visibility,
            });
            let current = match decision {
                Decision::Continue => local.map_or(low, |local| Some(local.next)),
                Decision::Move { to, .. } => Some(to),
                Decision::Adopt { at } => Some(at),
                Decision::Added | Decision::Recreated => low,
                Decision::New => match config.kafka.start {
                    Start::Earliest => low,
                    Start::Latest => high,
                    Start::Time(time) => match high.map(|high| self.at_time(partition, time, high)) {
                        Some(Err(error)) => {
                            unknown = Some(error);
                            None
                        }
                        found => found.and_then(Result::ok),
                    },
                },
            };
            let (partition, topic_id, group) = (partition.clone(), topic_id.clone(), group.clone());
            standings.push(Standing { partition, topic_id, low, high, current, unknown, group });
        }
        standings.sort_by(|a, b| a.partition.cmp(&b.partition));
        Ok(standings)
    }

    /// The first offset at or after a time; `high`, which was asked for before, where there is none.
    fn at_time(&self, partition: &TopicPartition, time: i64, high: i64) -> Result<i64, KafkaError> {
        let partitions = [partition.clone()];
        let mut answers = self.client.offsets_at_time(&partitions, time, self.committed_only, self.left())?;
        Ok(answers.remove(0)?.unwrap_or(high))
    }

    /// The rows of a stopped service.
    pub(super) fn stopped_rows(&self, config: &Config, state: &State) -> Result<Vec<PartitionOffsets>, Failure> {
        self.rows(self.standings(config, state, Which::All)?)
    }

    /// The rows of a running service: the partitions that it reads, and those that it was given and does not read yet.
    pub(super) fn running_rows(
        &self,
        config: &Config,
        state: &State,
        ours: &[TopicPartition],
        pending: &BTreeSet<TopicPartition>,
    ) -> Result<Vec<PartitionOffsets>, Failure> {
        let read: Vec<_> = ours.iter().filter(|partition| state.partitions.contains_key(partition)).cloned().collect();
        let watermarks = self.watermarks(&read);
        let mut standings: Vec<_> = read
            .into_iter()
            .zip(watermarks)
            .map(|(partition, watermarks)| {
                let unknown = watermarks.error();
                let current = state.partitions.get(&partition).map(|local| local.next);
                let (low, high) = (watermarks.low.ok(), watermarks.high.ok());
                Standing { partition, topic_id: String::new(), low, high, current, unknown, group: None }
            })
            .collect();
        let waiting: BTreeSet<_> = pending.iter().filter(|partition| !ours.contains(partition)).cloned().collect();
        if !waiting.is_empty() {
            let found = self.standings(config, state, Which::These(&waiting));
            let mut found = found.unwrap_or_default();
            // Of those that the brokers do not name, nothing is known.
            for partition in waiting {
                if found.iter().all(|standing| standing.partition != partition) {
                    let (low, high, current, unknown) = (None, None, None, None);
                    found.push(Standing {
                        partition,
                        topic_id: String::new(),
                        low,
                        high,
                        current,
                        unknown,
                        group: None,
                    });
                }
            }
            standings.append(&mut found);
        }
        self.rows(standings)
    }
}

/// Moves positions of a stopped service: in the group, and then in the journal.
pub(super) fn set(config: &Config, pipeline: &Pipeline, what: &Selection, to: OffsetTarget) -> Result<Moved, Failure> {
    let asker = Asker::new(config, config.rpc.timeout)?.within(config.rpc.timeout);
    let state = pipeline.gauges.durable().state.clone();
    let selected: Vec<_> = asker
        .standings(config, &state, Which::All)?
        .into_iter()
        .filter(|standing| what.topic.as_deref().is_none_or(|topic| topic == &*standing.partition.topic))
        .filter(|standing| what.partition.is_none_or(|partition| partition == standing.partition.partition))
        .collect();
    if selected.is_empty() {
        return Err(Failure::new(
            FailureKind::Usage,
            "no partition of the configured topics is meant; see offset_checker",
        ));
    }
    let before: Vec<_> = selected.iter().map(Standing::row).collect();
    let mut moved = Vec::new();
    for mut standing in selected {
        let (Some(low), Some(high)) = (standing.low, standing.high) else { return Err(unmoved(&standing)) };
        let to = match to {
            OffsetTarget::Earliest => low,
            OffsetTarget::Latest => high,
            OffsetTarget::Time(time) => match asker.at_time(&standing.partition, time, high) {
                Ok(offset) => offset,
                Err(error) => return Err(unmoved(&Standing { unknown: Some(error), ..standing })),
            },
            OffsetTarget::Offset(offset) if (low..=high).contains(&offset) => offset,
            // Retention may be past it by now, and still it is the way out that `refuse_to_skip` names.
            OffsetTarget::Offset(offset) if Some(offset) == first_hidden(&state, &standing) => offset,
            OffsetTarget::Offset(offset) => {
                let partition = &standing.partition;
                let text = format!("{partition}: offset {offset} is not within {low}..{high}; nothing was moved");
                return Err(Failure::new(FailureKind::Usage, text));
            }
        };
        standing.current = Some(to);
        moved.push((standing, to));
    }
    let wait = |answered: &Receiver<()>| in_time(pipeline, answered, config.rpc.timeout);
    if config.kafka.assignment == Assignment::All {
        moved.iter().try_for_each(|(standing, to)| refuse_to_skip_missing(&state, standing, *to))?;
    }
    if config.kafka.assignment == Assignment::Group {
        moved.iter().try_for_each(|(standing, to)| refuse_to_skip(&state, standing, *to))?;
        for (Standing { partition, group, .. }, _) in &moved {
            // While the group still tells: after the move it can't be known any more.
            settle(pipeline, &state, partition, group.as_ref(), &wait)?;
        }
    }
    let commits = commits(pipeline, &moved);
    let asker = asker.within(config.rpc.timeout);
    // In a group other instances go by the group's offsets, so the group comes first: what it refuses is not moved here.
    // Without a group they are there for monitors.
    if let Err(error) = commit(config, asker, &commits) {
        if config.kafka.assignment == Assignment::Group {
            let group = &config.kafka.group_id;
            return Err(if is_answer(&error) {
                failed(format!(
                    "nothing was moved: the group {group} did not take the offsets: {error}; stop all its members first"
                ))
            } else {
                unavailable_text(format!(
                    "nothing was moved here, and it is not known whether the group {group} took the offsets: {error}; \
                     set the offset again"
                ))
            });
        }
        tracing::warn!(%error, "the group was not told");
    }
    note(pipeline, &moved, &wait)?;
    let after = moved.iter().map(|(standing, _)| standing.row()).collect();
    Ok(Moved { before, after })
}

/// Why nothing is moved while the log of a partition is not known.
fn unmoved(standing: &Standing) -> Failure {
    let why = standing.unknown.as_ref().map_or_else(String::new, |error| format!(": {error}"));
    unavailable_text(format!("nothing was moved: the watermarks of {} are not known{why}", standing.partition))
}

fn unavailable_text(text: String) -> Failure {
    Failure::new(FailureKind::Unavailable, text)
}

/// How an answer of the delivery is waited for.
type Wait<'a> = &'a dyn Fn(&Receiver<()>) -> Result<(), Failure>;

/// Waits for an answer of the delivery, which a disk that fails can hold up.
fn in_time(pipeline: &Pipeline, answered: &Receiver<()>, patience: Duration) -> Result<(), Failure> {
    answered.recv_timeout(patience).map_err(|_| {
        let reason = pipeline.gauges.stalled().unwrap_or_else(|| "nothing was saved in time".into());
        Failure::new(FailureKind::TimedOut, format!("{reason}; set the offset again when that works"))
    })
}

/// Where the records of a partition begin that are hidden here and would be taken back by a move.
fn first_hidden(state: &State, standing: &Standing) -> Option<i64> {
    let Standing { partition, group, .. } = standing;
    let here = state.partitions.get(partition)?;
    let goes = |(mark, offsets): &(Mark, &SealedOffsets)| {
        judge(mark, offsets, here.mark.as_ref(), group.as_ref(), Held::ByUs) == Verdict::Refused
    };
    let prepared = state.prepared(partition).filter(goes).map(|(_, offsets)| offsets.growth.from);
    prepared.chain(here.growth.as_ref().map(|growth| growth.from)).min()
}

/// Refuses a place past records that are hidden here and would be taken back: nobody would read them again.
fn refuse_to_skip(state: &State, standing: &Standing, to: i64) -> Result<(), Failure> {
    let partition = &standing.partition;
    match first_hidden(state, standing) {
        Some(from) if from < to => Err(failed(format!(
            "{partition}: records from offset {from} on are in hidden files that are not committed, and would be lost; \
             nothing was moved: start and stop the service, which publishes them, or give them up by moving to {from} first"
        ))),
        _ => Ok(()),
    }
}

/// The same without a group, where only what is not whole any more is taken back.
fn refuse_to_skip_missing(state: &State, standing: &Standing, to: i64) -> Result<(), Failure> {
    let Standing { partition, .. } = standing;
    let growth = state.partitions.get(partition).and_then(|here| here.growth.as_ref());
    match growth.filter(|growth| growth.from < to && !state.is_whole(partition, growth)) {
        Some(growth) => Err(failed(format!(
            "{partition}: hidden files with records from offset {from} on are gone, and those records would be skipped; \
             nothing was moved: start and stop the service, which reads them again, or give them up by moving to {from} first",
            from = growth.from
        ))),
        None => Ok(()),
    }
}

/// Decides about what a partition that can be nobody's has hidden, by what the group has of it: what was prepared is
/// published, refused or set aside, the rest is refused.
pub(super) fn settle(
    pipeline: &Pipeline,
    state: &State,
    partition: &TopicPartition,
    group: Option<&GroupOffset>,
    wait: Wait<'_>,
) -> Result<(), Failure> {
    let Some(here) = state.partitions.get(partition) else { return Ok(()) };
    for (mark, offsets) in state.prepared(partition) {
        let verdict = judge(&mark, offsets, here.mark.as_ref(), group, Held::ByUs);
        let number = mark.number;
        tracing::info!(%partition, number, ?verdict, "the group tells what became of a prepared range");
        let (reply, answered) = bounded(1);
        let decided = Inbox::Decided { number, partition: partition.clone(), verdict, reply: Some(reply) };
        pipeline.inbox.send(decided).map_err(failed)?;
        wait(&answered)?;
    }
    // Also without growth: files that were made for it may be there.
    refuse(pipeline, partition, wait)
}

/// Takes back what a partition has hidden and not prepared.
pub(super) fn refuse(pipeline: &Pipeline, partition: &TopicPartition, wait: Wait<'_>) -> Result<(), Failure> {
    let (reply, answered) = bounded(1);
    pipeline.inbox.send(Inbox::Refuse { partition: partition.clone(), reply: Some(reply) }).map_err(failed)?;
    wait(&answered)
}

/// Commits. The group keeps a static member that has stopped until its session ends, and takes no offsets from outside
/// meanwhile: that is waited for. Whatever else is wrong is tried again for the time that a command has.
fn commit(config: &Config, mut asker: Asker, commits: &[Commit]) -> Result<(), KafkaError> {
    let begun = Instant::now();
    loop {
        let error = match asker.commit(commits) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let patience = match config.kafka.assignment {
            Assignment::Group if has_members(&error) => session(config) + config.rpc.timeout,
            Assignment::Group => config.rpc.timeout,
            Assignment::All => Duration::ZERO,
        };
        if begun.elapsed() >= patience {
            return Err(error);
        }
        std::thread::park_timeout(Duration::from_millis(500));
        asker = asker.within(config.rpc.timeout.min((begun + patience).saturating_duration_since(Instant::now())));
    }
}

/// Whether a group refused a commit because it has members.
fn has_members(error: &KafkaError) -> bool {
    matches!(
        error.code,
        Code::UnknownMemberId | Code::IllegalGeneration | Code::RebalanceInProgress | Code::StaleMemberEpoch
    )
}

/// How long the group keeps a member that says nothing.
pub(super) fn session(config: &Config) -> Duration {
    let set = config.kafka.librdkafka.get("session.timeout.ms").and_then(|text| text.parse().ok());
    Duration::from_millis(set.unwrap_or(45_000))
}

/// What the group is to be told.
fn commits(pipeline: &Pipeline, moved: &[(Standing, i64)]) -> Vec<Commit> {
    let (home, incarnation) = &pipeline.home;
    let commit = |(standing, to): &(Standing, i64)| {
        let metadata = standing.group.as_ref().map_or("", |group| group.metadata.as_str());
        let owner = Owner {
            mark: Mark { home: home.clone(), incarnation: *incarnation, number: 0 },
            topic_id: standing.topic_id.clone(),
            partitions: begun_with(&standing.topic_id, standing.group.iter()),
            previous: Owner::carried(metadata, (home, *incarnation)),
        };
        Commit { partition: standing.partition.clone(), offset: *to, leader_epoch: -1, metadata: owner.to_string() }
    };
    moved.iter().map(commit).collect()
}

/// Makes the moves durable here.
fn note(pipeline: &Pipeline, moved: &[(Standing, i64)], wait: Wait<'_>) -> Result<(), Failure> {
    for (Standing { partition, topic_id, .. }, to) in moved {
        let position =
            Position { partition: partition.clone(), topic_id: topic_id.clone(), next: *to, leader_epoch: -1 };
        let (reply, answered) = bounded(1);
        let ticket = pipeline.tickets.take();
        let frame = Frame::Move { to: position, cause: MoveCause::Operator };
        pipeline.inbox.send(Inbox::Note { ticket, frame, reply }).map_err(failed)?;
        wait(&answered)?;
    }
    let (reply, answered) = bounded(1);
    let before = pipeline.tickets.next();
    pipeline.inbox.send(Inbox::Checkpoint { before, finish: Finish::No, reply }).map_err(failed)?;
    wait(&answered)
}
