//! What commands ask the brokers: watermarks, positions, rights, and who is in the group.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::types::RDKafkaErrorCode as Code;

use crate::config::{Assignment, Config, Start};
use crate::control::{Failure, FailureKind, PartitionOffsets};
use crate::msource::TopicPartition;
use crate::msource::assignment::{Decision, Known, begun_with, decide, differ};
use crate::msource::consumer::{Meant, Weight, topic_names, unmatched_text};
use crate::msource::journal::State;
use crate::msource::native::{Client, Commit, Coordinator, GroupOffset, KafkaError, OffsetSpec};
use crate::msource::outlast::Outlast;
use crate::msource::properties;
use crate::msource::rights::{Missing, missing};

/// How long brokers may take to say who they are, after another question was not answered.
const BROKERS_TIMEOUT: Duration = Duration::from_millis(500);

/// Interval between two attempts.
pub(super) const PACE: Duration = Duration::from_millis(500);

/// Asks the brokers on behalf of commands.
pub(super) struct Asker {
    client: Client,
    /// Bound on one question.
    timeout: Duration,
    /// Bound on all of them together.
    deadline: Option<Instant>,
}

/// A partition with everything that decides where it stands. What is `None` is not known.
pub(super) struct Standing {
    pub(super) partition: TopicPartition,
    pub(super) topic_id: String,
    pub(super) low: Option<i64>,
    pub(super) high: Option<i64>,
    pub(super) current: Option<i64>,
    /// Why something is not known.
    pub(super) unknown: Option<KafkaError>,
    /// What the group has.
    pub(super) group: Option<GroupOffset>,
    /// How many partitions the topic had when it was begun, or has while nobody has begun it; `None` where that is not known.
    pub(super) begun: Option<i32>,
}

impl Standing {
    pub(super) fn row(&self) -> PartitionOffsets {
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
pub(super) enum Which<'a> {
    All,
    These(&'a BTreeSet<TopicPartition>),
}

impl Asker {
    /// A client of its own. It connects when it is first asked; each question is bounded by `timeout`.
    pub(super) fn new(config: &Config, timeout: Duration) -> Result<Self, Failure> {
        let client = Client::new(&properties::asking(&config.kafka))
            .map_err(|error| Failure::new(FailureKind::Config, format!("cannot make a Kafka client: {error}")))?;
        Ok(Self { client, timeout, deadline: None })
    }

    /// Drops it without waiting for its client to end.
    pub(super) fn abandon(self) {
        self.client.abandon();
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

    /// The watermarks, in the order asked. Both ends are asked for at the same time: a leader that does not answer takes all the
    /// time that there is.
    fn watermarks(&self, partitions: &[TopicPartition]) -> Vec<Watermarks> {
        let ask = |spec| {
            let queries: Vec<_> = partitions.iter().map(|partition| (partition.clone(), spec)).collect();
            self.client.list_offsets(&queries, self.left())
        };
        let (low, high) = std::thread::scope(|scope| {
            let low = std::thread::Builder::new().spawn_scoped(scope, || ask(OffsetSpec::Earliest));
            let high = ask(OffsetSpec::Latest);
            let low = low.ok().and_then(|low| low.join().ok());
            (low.unwrap_or_else(|| ask(OffsetSpec::Earliest)), high)
        });
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

    /// Waits until no commit of a member that has died can reach the group any more: it takes none of whoever is no member, and
    /// it knows a member that says nothing for the length of its session.
    pub(super) fn outlast_members(&self, config: &Config, progress: &dyn Fn(&str)) -> Result<(), Failure> {
        let group = &config.kafka.group_id;
        let coordinator = Coordinator::new(properties::asking(&config.kafka));
        let mut outlast = Outlast::since(Instant::now(), properties::session(&config.kafka));
        loop {
            let members = coordinator.members_besides(None, self.timeout).map_err(|error| self.unavailable(&error))?;
            let Some(left) = outlast.left(members, Instant::now()) else { return Ok(()) };
            progress(&format!(
                "waiting for the session of the instance that died, whose last commit the group {group} may still take: \
                 {members} members, {} s at most",
                left.as_secs() + 1
            ));
            std::thread::park_timeout(PACE.min(left));
        }
    }

    /// Commits from outside of the group, once.
    pub(super) fn commit(&self, commits: &[Commit]) -> Result<(), KafkaError> {
        self.client.commit(commits, self.left())?.into_iter().collect()
    }

    /// Where each partition that nobody reads stands, or would start.
    pub(super) fn standings(&self, config: &Config, state: &State, which: Which<'_>) -> Result<Vec<Standing>, Failure> {
        let topics = with_known(self.topics(&config.kafka.topics)?, state);
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
        let begun = |topic: &str, topic_id: &str| {
            let of_topic = || topics.iter().zip(&group).filter(|((other, _), _)| *other.topic == *topic);
            let offsets = of_topic().filter_map(|(_, group)| group.as_ref());
            let present = || i32::try_from(of_topic().count()).ok().filter(|_| !known[topic]);
            begun_with(topic_id, state.topics.get(topic), offsets).or_else(present)
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
            let begun = begun(&partition.topic, topic_id);
            let mut unknown = watermarks.error();
            let (low, high) = (watermarks.low.ok(), watermarks.high.ok());
            let local = state.partitions.get(partition);
            let decision = decide(&Known {
                home: (&state.home, state.incarnation),
                former: &state.former(&[]),
                number: state.number,
                local,
                group: group.as_ref(),
                topic_id,
                added: begun.is_none_or(|count| partition.partition >= count),
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
            standings.push(Standing { partition, topic_id, low, high, current, unknown, group, begun });
        }
        standings.sort_by(|a, b| a.partition.cmp(&b.partition));
        Ok(standings)
    }

    /// The first offset at or after a time; `high`, which was asked for before, where there is none.
    pub(super) fn at_time(&self, partition: &TopicPartition, time: i64, high: i64) -> Result<i64, KafkaError> {
        let partitions = [partition.clone()];
        let mut answers = self.client.offsets_at_time(&partitions, time, self.left());
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
                Standing { partition, topic_id: String::new(), low, high, current, unknown, group: None, begun: None }
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
                        begun: None,
                    });
                }
            }
            standings.append(&mut found);
        }
        self.rows(standings)
    }
}

/// The partitions that brokers have named, and those that they must have beside them: a broker may not have heard of one yet
/// that was read, or that its topic had when that was begun. A topic that was made again since may have fewer.
fn with_known(named: Vec<(TopicPartition, String)>, state: &State) -> Vec<(TopicPartition, String)> {
    let ids: BTreeMap<_, _> = named.iter().map(|(partition, id)| (Arc::clone(&partition.topic), id.clone())).collect();
    let read = state.partitions.iter().map(|(partition, here)| (partition.clone(), &here.topic_id));
    let begun = state.topics.iter().flat_map(|(topic, begun)| {
        let of = |partition| (TopicPartition { topic: Arc::clone(topic), partition }, &begun.topic_id);
        (0..begun.partitions).map(of)
    });
    let is_there =
        |(partition, id): &(TopicPartition, &String)| ids.get(&partition.topic).is_some_and(|now| !differ(now, id));
    let known = read.chain(begun).filter(is_there).map(|(partition, id)| (partition, id.clone()));
    let all: BTreeMap<_, _> = known.chain(named).collect();
    all.into_iter().collect()
}

pub(super) fn unavailable_text(text: String) -> Failure {
    Failure::new(FailureKind::Unavailable, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::msource::journal::{Begun, PartitionState};

    #[test]
    fn partitions_that_were_read_or_begun_are_there_although_brokers_do_not_name_them() {
        let of = |topic: &str, partition| TopicPartition { topic: topic.into(), partition };
        let named: Vec<_> = [("a", 0), ("a", 1), ("b", 0), ("c", 0)]
            .map(|(topic, partition)| (of(topic, partition), topic.to_uppercase()))
            .into();
        let mut state = State::default();
        // `c` was made again, and `d` is not configured any more.
        for (topic, partition, id) in [("a", 1, "A"), ("a", 4, "A"), ("c", 3, "another"), ("d", 0, "D")] {
            let here = PartitionState { topic_id: id.into(), ..PartitionState::default() };
            state.partitions.insert(of(topic, partition), here);
        }
        for (topic, id) in [("b", "B"), ("c", "another")] {
            state.topics.insert(topic.into(), Begun { topic_id: id.into(), partitions: 2 });
        }
        let all: Vec<_> = with_known(named, &state).into_iter().map(|(partition, _)| partition.to_string()).collect();
        assert_eq!(all, ["a[0]", "a[1]", "a[4]", "b[0]", "b[1]", "c[0]"]);
    }
}
