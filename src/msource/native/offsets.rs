//! Where partitions begin and end, and what offset they had at a time.
//!
//! Why not by librdkafka's `ListOffsets`: it begins its work on the thread that calls it, while librdkafka's main thread may
//! end the same work and free it, as soon as the leaders become known or the time is over. What the first thread does then
//! goes to freed memory. `rd_kafka_offsets_for_times` sends the same request, and does everything on the thread that calls it.
//!
//! It gives no answer at all when one partition has an error or one leader does not answer. So each leader is asked by itself,
//! all at the same time, and where a broker has an error, smaller and smaller parts of its partitions.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ffi::c_int;
use std::sync::PoisonError;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::bindings as rd;
use rdkafka::types::RDKafkaErrorCode as Code;

use super::asking::MetadataOf;
use super::borrowed::{slice, text};
use super::code::{self, raw};
use super::list::{NOT_ANSWERED, elements, millis};
use super::{Client, KafkaError, OffsetSpec};
use crate::msource::TopicPartition;

/// A partition, and what is asked of it: a time in milliseconds since 1970 UTC, or one of the numbers below zero that the protocol
/// has for its ends.
type Query = (TopicPartition, i64);

/// The number in a broker's answer, or why there is none.
type Answer = Result<i64, KafkaError>;

/// What a broker answers in place of an offset when no record is as late as a time.
const NO_RECORD: i64 = -1;

/// The leader epoch of a partition that was not answered. It is not sent, and an answer replaces it by its own.
const UNANSWERED_EPOCH: i32 = i32::MAX;

/// How many questions a leader may answer with an error before it is asked no smaller ones.
const MOST_ERRORS: usize = 128;

/// An offset that a broker told. Below zero there is none, whatever else the number means: it must not be taken for a place in
/// a log.
fn told(offset: i64) -> Answer {
    if offset >= 0 { Ok(offset) } else { Err(KafkaError::not_answered()) }
}

impl KafkaError {
    /// That nothing is known of a partition.
    pub fn not_answered() -> Self {
        Self { text: "the leader of the partition did not answer".into(), ..Self::of(NOT_ANSWERED) }
    }
}

impl Client {
    /// Asks the brokers where partitions begin or end, in the order asked; an error for each partition of which that is not
    /// known. What comes back without an error is an offset that a broker told. The end is what a consumer of the client's
    /// isolation level can reach.
    pub fn list_offsets(&self, queries: &[(TopicPartition, OffsetSpec)], timeout: Duration) -> Vec<Answer> {
        let raw = |spec: &OffsetSpec| match spec {
            OffsetSpec::Earliest => -2,
            OffsetSpec::Latest => -1,
        };
        let queries: Vec<_> = queries.iter().map(|(partition, spec)| (partition.clone(), raw(spec))).collect();
        self.ask_offsets(&queries, timeout).into_iter().map(|answer| answer.and_then(told)).collect()
    }

    /// Asks the brokers for the first record at or after a time in milliseconds since 1970 UTC, in the order asked; `None` where
    /// a broker told that there is none, an error where that is not known.
    pub fn offsets_at_time(
        &self,
        partitions: &[TopicPartition],
        time: i64,
        timeout: Duration,
    ) -> Vec<Result<Option<i64>, KafkaError>> {
        // Numbers below zero ask for something else than a time.
        let queries: Vec<_> = partitions.iter().map(|partition| (partition.clone(), time.max(0))).collect();
        let read = |offset| if offset == NO_RECORD { Ok(None) } else { told(offset).map(Some) };
        self.ask_offsets(&queries, timeout).into_iter().map(|answer| answer.and_then(read)).collect()
    }

    /// Asks each leader. What failed because leaders have changed since they were looked up is asked once more in what is left of
    /// the time: a client that only asks does not hear of new leaders for a minute and more.
    fn ask_offsets(&self, queries: &[Query], timeout: Duration) -> Vec<Answer> {
        if queries.is_empty() {
            return Vec::new();
        }
        self.keep_brokers();
        let deadline = Instant::now() + timeout;
        let left = || deadline.saturating_duration_since(Instant::now());
        let all: Vec<usize> = (0..queries.len()).collect();
        let mut answers = vec![Err(KafkaError::not_answered()); queries.len()];
        let known = self.knows_leaders(queries);
        if !known {
            self.learn_leaders(queries, left() / 2);
        }
        self.ask_leaders(queries, &all, deadline, &mut answers);
        let is_open = |index: &usize| answers[*index].as_ref().is_err_and(may_have_moved);
        let open: Vec<usize> = all.into_iter().filter(is_open).collect();
        if known && !open.is_empty() {
            if left().is_zero() {
                self.forget_leaders(open.iter().map(|index| &queries[*index].0));
            } else {
                self.learn_leaders(queries, left());
                self.ask_leaders(queries, &open, deadline, &mut answers);
            }
        }
        answers
    }

    /// Asks the leaders of these queries at the same time. Partitions without a known leader are asked for together: librdkafka
    /// looks for it.
    fn ask_leaders(&self, queries: &[Query], open: &[usize], deadline: Instant, answers: &mut [Answer]) {
        let mut led: BTreeMap<Option<i32>, Vec<usize>> = BTreeMap::new();
        {
            let leaders = self.leaders.lock().unwrap_or_else(PoisonError::into_inner);
            for index in open {
                led.entry(leaders.get(&queries[*index].0).copied()).or_default().push(*index);
            }
        }
        let ask = |indexes: Vec<usize>| self.ask_parts(queries, indexes, deadline);
        let mut led: Vec<_> = led.into_values().collect();
        let own = led.pop().unwrap_or_default();
        thread::scope(|scope| {
            let ask = &ask;
            let threads: Vec<_> = led
                .into_iter()
                .map(|indexes| thread::Builder::new().spawn_scoped(scope, move || ask(indexes)))
                .collect();
            let mut found = ask(own);
            found.extend(threads.into_iter().flatten().filter_map(|thread| thread.join().ok()).flatten());
            for (index, answer) in found {
                answers[index] = answer;
            }
        });
    }

    /// Asks one leader for all of these partitions. When it has an error, it is asked for each half of them.
    fn ask_parts(&self, queries: &[Query], indexes: Vec<usize>, deadline: Instant) -> Vec<(usize, Answer)> {
        let mut found = Vec::with_capacity(indexes.len());
        let (mut parts, mut errors) = (VecDeque::from([indexes]), 0);
        while let Some(mut indexes) = parts.pop_front() {
            let part: Vec<&Query> = indexes.iter().map(|index| &queries[*index]).collect();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                found.extend(indexes.into_iter().map(|index| (index, Err(KafkaError::not_answered()))));
                continue;
            }
            match self.ask_once(&part, left) {
                Ok(answers) => found.extend(indexes.into_iter().zip(answers)),
                // Codes below zero are librdkafka's, for lack of an answer.
                Err(code) if code > 0 && indexes.len() > 1 && errors < MOST_ERRORS => {
                    errors += 1;
                    let other = indexes.split_off(indexes.len() / 2);
                    parts.extend([indexes, other]);
                }
                Err(code) => found.extend(indexes.into_iter().map(|index| (index, Err(KafkaError::from_code(code))))),
            }
        }
        found
    }

    /// One question for all of these; the code of an error that leaves all of them without an answer.
    fn ask_once(&self, queries: &[&Query], timeout: Duration) -> Result<Vec<Answer>, c_int> {
        if queries.is_empty() {
            return Ok(Vec::new());
        }
        let mut list = TopicPartitionList::with_capacity(queries.len());
        for (partition, _) in queries {
            list.add_partition(&partition.topic, partition.partition);
        }
        for (index, (_, number)) in queries.iter().enumerate() {
            // SAFETY: the list has as many elements as there are queries, in their order.
            unsafe {
                let element = (*list.ptr()).elems.add(index);
                (*element).offset = *number;
                rd::rd_kafka_topic_partition_set_leader_epoch(element, UNANSWERED_EPOCH);
            }
        }
        // SAFETY: both are live; the answers are put into the list.
        let code = unsafe { code::rd_kafka_offsets_for_times(self.rk, list.ptr(), millis(timeout)) };
        if code != 0 {
            return Err(code);
        }
        let read = |element: &rd::rd_kafka_topic_partition_t| {
            // SAFETY: the element is live.
            KafkaError::check(unsafe { raw(&raw const element.err) })?;
            // SAFETY: the element is live.
            let epoch = unsafe { rd::rd_kafka_topic_partition_get_leader_epoch(element) };
            if epoch == UNANSWERED_EPOCH { Err(KafkaError::not_answered()) } else { Ok(element.offset) }
        };
        // SAFETY: the list is live.
        Ok(unsafe { elements(list.ptr()) }.iter().map(read).collect())
    }

    fn knows_leaders(&self, queries: &[Query]) -> bool {
        let leaders = self.leaders.lock().unwrap_or_else(PoisonError::into_inner);
        queries.iter().all(|(partition, _)| leaders.contains_key(partition))
    }

    /// Has the next question learn them first.
    fn forget_leaders<'a>(&self, partitions: impl Iterator<Item = &'a TopicPartition>) {
        let mut leaders = self.leaders.lock().unwrap_or_else(PoisonError::into_inner);
        for partition in partitions {
            leaders.remove(partition);
        }
    }

    /// Has the cluster say which broker leads each of these partitions. What it does not say is not known any more.
    fn learn_leaders(&self, queries: &[Query], timeout: Duration) {
        let names: BTreeSet<&str> = queries.iter().map(|(partition, _)| &*partition.topic).collect();
        let found = self.metadata(MetadataOf::Everything, timeout, |metadata| {
            // SAFETY: the metadata are live, and so is what they have.
            let topics = unsafe { slice(metadata.topics, metadata.topic_cnt) };
            // SAFETY: as above.
            let named = topics.iter().map(|topic| unsafe { (text(topic.topic), topic) });
            let leaders = named.filter(|(name, _)| names.contains(name.as_str())).flat_map(|(name, topic)| {
                // SAFETY: as above.
                let partitions = unsafe { slice(topic.partitions, topic.partition_cnt) };
                let led = partitions.iter().filter(|partition| partition.leader >= 0);
                led.map(move |partition| ((name.clone(), partition.id), partition.leader))
            });
            leaders.collect::<HashMap<_, _>>()
        });
        let Ok(found) = found else { return };
        let mut leaders = self.leaders.lock().unwrap_or_else(PoisonError::into_inner);
        for (partition, _) in queries {
            match found.get(&(partition.topic.to_string(), partition.partition)) {
                Some(leader) => drop(leaders.insert(partition.clone(), *leader)),
                None => drop(leaders.remove(partition)),
            }
        }
    }
}

/// Whether another leader may have an answer, or the same one when it is asked again.
fn may_have_moved(error: &KafkaError) -> bool {
    !matches!(
        error.code,
        Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed | Code::UnknownTopicOrPartition
    )
}

#[cfg(test)]
mod tests {
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::DefaultProducerContext;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    use super::*;

    type Brokers = MockCluster<'static, DefaultProducerContext>;

    /// Brokers with a topic `t`, and a client.
    fn brokers(count: i32, partitions: i32) -> (Brokers, Client) {
        let brokers = MockCluster::new(count).expect("brokers");
        brokers.create_topic("t", partitions, count).expect("a topic");
        let properties = [("bootstrap.servers", brokers.bootstrap_servers()), ("group.id", "g".to_owned())];
        let client = Client::new(&properties.map(|(key, value)| (key.to_owned(), value)).into()).expect("a client");
        (brokers, client)
    }

    fn begins(partitions: impl IntoIterator<Item = i32>) -> Vec<(TopicPartition, OffsetSpec)> {
        let query = |partition| (TopicPartition { topic: "t".into(), partition }, OffsetSpec::Earliest);
        partitions.into_iter().map(query).collect()
    }

    #[test]
    fn no_answer_is_an_error_and_no_offset() {
        assert_eq!(told(0), Ok(0));
        assert_eq!(told(i64::MAX), Ok(i64::MAX));
        for none in [-1, -2, -1000, -1001, i64::MIN] {
            assert!(told(none).is_err(), "{none}");
        }
        let (brokers, client) = brokers(2, 2);
        brokers.partition_leader("t", 1, None).expect("no leader");
        let answers = client.list_offsets(&begins(0..2), Duration::from_secs(20));
        assert_eq!(answers[0], Ok(0), "the others are answered");
        assert!(answers[1].is_err(), "{:?}", answers[1]);
    }

    #[test]
    fn partitions_and_topics_that_are_not_there_leave_the_others_their_answers() {
        let (_brokers, client) = brokers(3, 8);
        let mut queries = begins((0..8).chain([99]));
        queries.push((TopicPartition { topic: "other".into(), partition: 0 }, OffsetSpec::Latest));
        let answers = client.list_offsets(&queries, Duration::from_secs(20));
        assert_eq!(answers[..8], vec![Ok(0); 8]);
        assert!(answers[8..].iter().all(Result::is_err), "{answers:?}");
    }

    #[test]
    fn a_broker_that_is_away_leaves_the_others_their_answers() {
        let (brokers, client) = brokers(3, 3);
        for partition in 0..3 {
            brokers.partition_leader("t", partition, Some(partition + 1)).expect("a leader");
        }
        assert_eq!(client.list_offsets(&begins(0..3), Duration::from_secs(20)), vec![Ok(0); 3]);
        brokers.broker_down(2).expect("it goes");
        let answers = client.list_offsets(&begins(0..3), Duration::from_secs(4));
        assert_eq!((&answers[0], &answers[2]), (&Ok(0), &Ok(0)), "{answers:?}");
        assert!(answers[1].is_err(), "{answers:?}");
    }

    /// librdkafka has heard of the new leader, and asks it together with the old one.
    #[test]
    fn a_partition_whose_new_leader_is_away_keeps_no_other_without_an_answer_for_long() {
        let (brokers, client) = brokers(2, 2);
        for partition in 0..2 {
            brokers.partition_leader("t", partition, Some(1)).expect("a leader");
        }
        assert_eq!(client.list_offsets(&begins(0..2), Duration::from_secs(20)), vec![Ok(0); 2]);
        brokers.partition_leader("t", 0, Some(2)).expect("a leader");
        client.topic_names(Duration::from_secs(20)).expect("metadata");
        brokers.broker_down(2).expect("it goes");
        drop(client.list_offsets(&begins(0..2), Duration::from_secs(4)));
        let answers = client.list_offsets(&begins(0..2), Duration::from_secs(4));
        assert!(answers[0].is_err(), "{answers:?}");
        assert_eq!(answers[1], Ok(0));
    }

    #[test]
    fn an_error_of_a_broker_is_asked_again_in_parts() {
        let (brokers, client) = brokers(1, 8);
        let refused = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
        brokers.request_errors(RDKafkaApiKey::ListOffsets, &[refused; 3]);
        let answers = client.list_offsets(&begins(0..8), Duration::from_secs(20));
        assert_eq!(answers, vec![Ok(0); 8], "all eight and both halves were refused, and no quarter");
    }

    #[test]
    fn offsets_are_answered_right_after_the_leader_has_changed() {
        let (brokers, client) = brokers(2, 1);
        for leader in [1, 2, 1] {
            brokers.partition_leader("t", 0, Some(leader)).expect("a leader");
            let answers = client.list_offsets(&begins([0]), Duration::from_secs(20));
            assert_eq!(answers, vec![Ok(0)], "broker {leader} leads");
        }
    }

    /// What was asked is freed by one thread, whichever gets to it first.
    #[test]
    fn questions_whose_time_ends_while_they_are_asked_leave_the_process_whole() {
        let (brokers, client) = brokers(1, 400);
        assert_eq!(client.list_offsets(&begins([0]), Duration::from_secs(20)), vec![Ok(0)]);
        brokers.broker_round_trip_time(1, Duration::from_millis(10)).expect("a slow broker");
        let mut late = 0;
        for millis in 1..20 {
            // Most of these partitions do not exist, which takes librdkafka a while to find.
            let answers = client.list_offsets(&begins(0..3000), Duration::from_millis(millis));
            late += usize::from(answers[0].is_err());
        }
        assert!(late > 0, "none was late");
        assert_eq!(client.list_offsets(&begins([0]), Duration::from_secs(20)), vec![Ok(0)]);
    }

    #[test]
    fn a_time_after_the_last_record_is_told_from_no_answer() {
        let (brokers, client) = brokers(2, 2);
        brokers.partition_leader("t", 1, None).expect("no leader");
        let partitions = [0, 1].map(|partition| TopicPartition { topic: "t".into(), partition });
        let answers = client.offsets_at_time(&partitions, 4_000_000_000_000, Duration::from_secs(20));
        assert_eq!(answers[0], Ok(None));
        assert!(answers[1].is_err(), "{answers:?}");
    }
}
