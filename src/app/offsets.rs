//! Positions and watermarks: the rows of `offset_checker`, and `set_offset`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};

use super::home::failed;
use super::pipeline::Pipeline;
use crate::cli::{Moved, OffsetTarget, Selection};
use crate::config::{Assignment, Config, Start};
use crate::control::{Failure, FailureKind, PartitionOffsets};
use crate::delivery::{Finish, Inbox, Verdict};
use crate::msource::TopicPartition;
use crate::msource::assignment::{Decision, Held, Known, Owner, begun_with, decide, judge};
use crate::msource::consumer::topic_names;
use crate::msource::journal::{Frame, Mark, MoveCause, Position, SealedOffsets, State};
use crate::msource::native::{Client, Commit, GroupOffset, KafkaError, OffsetSpec};
use crate::msource::properties;

/// Asks the brokers on behalf of commands.
pub(super) struct Asker {
    client: Client,
    timeout: Duration,
    committed_only: bool,
}

fn unavailable(error: &KafkaError) -> Failure {
    Failure::new(FailureKind::Unavailable, format!("Kafka does not answer: {error}"))
}

/// A partition with everything that decides where it stands.
struct Standing {
    partition: TopicPartition,
    topic_id: String,
    low: i64,
    high: i64,
    current: i64,
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
            lag: (self.high - self.current).max(0),
        }
    }
}

impl Asker {
    /// A client of its own. It connects when it is first asked; every question is bounded by `timeout`.
    pub(super) fn new(config: &Config, timeout: Duration) -> Result<Self, Failure> {
        let client = Client::new(&properties::asking(&config.kafka))
            .map_err(|error| Failure::new(FailureKind::Config, format!("cannot make a Kafka client: {error}")))?;
        Ok(Self { client, timeout, committed_only: properties::committed_only(&config.kafka) })
    }

    /// The same client with another bound on its questions.
    pub(super) fn bounded(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Low and high watermarks, in the order asked.
    pub(super) fn watermarks(&self, partitions: &[TopicPartition]) -> Result<Vec<(i64, i64)>, Failure> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let ask = |spec, committed_only| {
            let queries: Vec<_> = partitions.iter().map(|partition| (partition.clone(), spec)).collect();
            let answers = self.client.list_offsets(&queries, committed_only, self.timeout);
            answers
                .and_then(|answers| answers.into_iter().collect::<Result<Vec<_>, _>>())
                .map_err(|error| unavailable(&error))
        };
        let low = ask(OffsetSpec::Earliest, false)?;
        let high = ask(OffsetSpec::Latest, self.committed_only)?;
        Ok(low.into_iter().zip(high).collect())
    }

    /// The configured topics with their ids and partitions; a missing one is a failure.
    pub(super) fn topics(&self, topics: &[String]) -> Result<Vec<(TopicPartition, String)>, Failure> {
        let names = topic_names(&self.client, topics, self.timeout).map_err(|error| unavailable(&error))?;
        let infos = self.client.describe_topics(&names, self.timeout).map_err(|error| unavailable(&error))?;
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

    /// What the group has of these partitions, in the order asked.
    pub(super) fn group_offsets(&self, partitions: &[TopicPartition]) -> Result<Vec<Option<GroupOffset>>, Failure> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let answers = self.client.committed(partitions, self.timeout);
        answers.and_then(|answers| answers.into_iter().collect()).map_err(|error| unavailable(&error))
    }

    /// The ids of those of these topics that are there.
    pub(super) fn topic_ids(&self, names: &[String]) -> Result<BTreeMap<String, String>, Failure> {
        let infos = self.client.describe_topics(names, self.timeout).map_err(|error| unavailable(&error))?;
        Ok(infos.into_iter().flatten().map(|info| (info.name, info.id)).collect())
    }

    /// Commits from outside of the group, once.
    pub(super) fn commit(&self, commits: &[Commit]) -> Result<(), KafkaError> {
        self.client.commit(commits, self.timeout)?.into_iter().collect()
    }

    /// Where each partition of a stopped service stands, or would start.
    fn standings(&self, config: &Config, state: &State) -> Result<Vec<Standing>, Failure> {
        let topics = self.topics(&config.kafka.topics)?;
        let partitions: Vec<_> = topics.iter().map(|(partition, _)| partition.clone()).collect();
        let watermarks = self.watermarks(&partitions)?;
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
        let mut standings = Vec::new();
        for (((partition, topic_id), (low, high)), group) in topics.iter().zip(watermarks).zip(&group) {
            let local = state.partitions.get(partition);
            let decision = decide(&Known {
                home: (&state.home, state.incarnation),
                former: &state.former,
                local,
                group: group.as_ref(),
                topic_id,
                added: added(partition, topic_id),
                visibility: config.sink.visibility,
            });
            let current = match decision {
                Decision::Continue => local.map_or(low, |local| local.next),
                Decision::Move { to, .. } => to,
                Decision::Adopt { at } => at,
                Decision::Added | Decision::Recreated => low,
                Decision::New => match config.kafka.start {
                    Start::Earliest => low,
                    Start::Latest => high,
                    Start::Time(time) => self.at_time(partition, time, high)?,
                },
            };
            let (partition, topic_id, group) = (partition.clone(), topic_id.clone(), group.clone());
            standings.push(Standing { partition, topic_id, low, high, current, group });
        }
        standings.sort_by(|a, b| a.partition.cmp(&b.partition));
        Ok(standings)
    }

    fn at_time(&self, partition: &TopicPartition, time: i64, high: i64) -> Result<i64, Failure> {
        let answer =
            self.client.list_offsets(&[(partition.clone(), OffsetSpec::Time(time))], self.committed_only, self.timeout);
        let offset = answer.and_then(|mut answers| answers.remove(0)).map_err(|error| unavailable(&error))?;
        Ok(if offset < 0 { high } else { offset })
    }

    /// The rows of a stopped service.
    pub(super) fn stopped_rows(&self, config: &Config, state: &State) -> Result<Vec<PartitionOffsets>, Failure> {
        Ok(self.standings(config, state)?.iter().map(Standing::row).collect())
    }

    /// The rows of a running service: the partitions that it has.
    pub(super) fn running_rows(
        &self,
        state: &State,
        ours: &[TopicPartition],
    ) -> Result<Vec<PartitionOffsets>, Failure> {
        let mut partitions: Vec<_> =
            ours.iter().filter(|partition| state.partitions.contains_key(partition)).cloned().collect();
        partitions.sort();
        let watermarks = self.watermarks(&partitions)?;
        Ok(partitions
            .into_iter()
            .zip(watermarks)
            .map(|(partition, (low, high))| {
                let current = state.partitions.get(&partition).map_or(low, |local| local.next);
                Standing { partition, topic_id: String::new(), low, high, current, group: None }.row()
            })
            .collect())
    }
}

/// Moves positions of a stopped service: in the group, and then in the journal.
pub(super) fn set(config: &Config, pipeline: &Pipeline, what: &Selection, to: OffsetTarget) -> Result<Moved, Failure> {
    let asker = Asker::new(config, config.rpc.timeout)?;
    let state = pipeline.gauges.durable().state.clone();
    let selected: Vec<_> = asker
        .standings(config, &state)?
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
        standing.current = match to {
            OffsetTarget::Earliest => standing.low,
            OffsetTarget::Latest => standing.high,
            OffsetTarget::Time(time) => asker.at_time(&standing.partition, time, standing.high)?,
            OffsetTarget::Offset(offset) if (standing.low..=standing.high).contains(&offset) => offset,
            OffsetTarget::Offset(offset) => {
                let Standing { partition, low, high, .. } = standing;
                let text = format!("{partition}: offset {offset} is not within {low}..{high}; nothing was moved");
                return Err(Failure::new(FailureKind::Usage, text));
            }
        };
        moved.push(standing);
    }
    let wait = |answered: &Receiver<()>| in_time(pipeline, answered, config.rpc.timeout);
    if config.kafka.assignment == Assignment::All {
        moved.iter().try_for_each(|standing| refuse_to_skip_missing(&state, standing))?;
    }
    if config.kafka.assignment == Assignment::Group {
        moved.iter().try_for_each(|standing| refuse_to_skip(&state, standing))?;
        for Standing { partition, group, .. } in &moved {
            // While the group still tells: after the move it can't be known any more.
            settle(pipeline, &state, partition, group.as_ref(), &wait)?;
        }
    }
    let commits = commits(pipeline, &moved);
    // In a group other instances go by the group's offsets, so the group comes first: what it refuses is not moved here.
    // Without a group they are there for monitors.
    if let Err(error) = commit(config, &asker, &commits) {
        if config.kafka.assignment == Assignment::Group {
            return Err(failed(format!(
                "nothing was moved: the group {} did not take the offsets: {error}; stop all its members first",
                config.kafka.group_id
            )));
        }
        tracing::warn!(%error, "the group was not told");
    }
    note(pipeline, &moved, &wait)?;
    let after = moved.iter().map(Standing::row).collect();
    Ok(Moved { before, after })
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

/// Refuses a place past records that are hidden here and would be taken back: nobody would read them again.
fn refuse_to_skip(state: &State, standing: &Standing) -> Result<(), Failure> {
    let Standing { partition, group, current, .. } = standing;
    let Some(here) = state.partitions.get(partition) else { return Ok(()) };
    let goes = |(mark, offsets): &(Mark, &SealedOffsets)| {
        judge(mark, offsets, here.mark.as_ref(), group.as_ref(), Held::ByUs) == Verdict::Refused
    };
    let prepared = state.prepared(partition).filter(goes).map(|(_, offsets)| offsets.growth.from);
    match prepared.chain(here.growth.as_ref().map(|growth| growth.from)).min() {
        Some(from) if from < *current => Err(failed(format!(
            "{partition}: records from offset {from} on are in hidden files that are not committed, and would be lost; \
             nothing was moved: start and stop the service, which publishes them, or give them up by moving to {from} first"
        ))),
        _ => Ok(()),
    }
}

/// The same without a group, where only what is not whole any more is taken back.
fn refuse_to_skip_missing(state: &State, standing: &Standing) -> Result<(), Failure> {
    let Standing { partition, current, .. } = standing;
    let growth = state.partitions.get(partition).and_then(|here| here.growth.as_ref());
    match growth.filter(|growth| growth.from < *current && !state.is_whole(partition, growth)) {
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

/// Commits, patiently: the group keeps a static member that has stopped until its session ends, and takes no offsets from
/// outside meanwhile.
fn commit(config: &Config, asker: &Asker, commits: &[Commit]) -> Result<(), KafkaError> {
    let patience = match config.kafka.assignment {
        Assignment::Group => session(config) + asker.timeout,
        Assignment::All => Duration::ZERO,
    };
    let deadline = Instant::now() + patience;
    loop {
        match asker.commit(commits) {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => std::thread::park_timeout(Duration::from_millis(500)),
        }
    }
}

/// How long the group keeps a member that says nothing.
pub(super) fn session(config: &Config) -> Duration {
    let set = config.kafka.librdkafka.get("session.timeout.ms").and_then(|text| text.parse().ok());
    Duration::from_millis(set.unwrap_or(45_000))
}

/// What the group is to be told.
fn commits(pipeline: &Pipeline, moved: &[Standing]) -> Vec<Commit> {
    let (home, incarnation) = &pipeline.home;
    let commit = |standing: &Standing| {
        let metadata = standing.group.as_ref().map_or("", |group| group.metadata.as_str());
        let owner = Owner {
            mark: Mark { home: home.clone(), incarnation: *incarnation, number: 0 },
            topic_id: standing.topic_id.clone(),
            partitions: begun_with(&standing.topic_id, standing.group.iter()),
            previous: Owner::carried(metadata, (home, *incarnation)),
        };
        Commit {
            partition: standing.partition.clone(),
            offset: standing.current,
            leader_epoch: -1,
            metadata: owner.to_string(),
        }
    };
    moved.iter().map(commit).collect()
}

/// Makes the moves durable here.
fn note(pipeline: &Pipeline, moved: &[Standing], wait: Wait<'_>) -> Result<(), Failure> {
    for Standing { partition, topic_id, current, .. } in moved {
        let position =
            Position { partition: partition.clone(), topic_id: topic_id.clone(), next: *current, leader_epoch: -1 };
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
