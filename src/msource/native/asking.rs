//! What a client asks of the brokers: topics, partitions, offsets, and members of the group.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CString, c_char, c_int};
use std::ptr;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::bindings as rd;
use rdkafka::types::{RDKafkaErrorCode as Code, RDKafkaRespErr};

use super::borrowed::{slice, text};
use super::code::{self, raw};
use super::list::{NOT_ANSWERED, c_string, elements, millis};
use super::{Client, KafkaError, OffsetSpec, TopicInfo};
use crate::msource::TopicPartition;

/// What metadata are asked of.
#[derive(Clone, Copy)]
enum MetadataOf {
    /// Brokers, and the topics that the client works with.
    Brokers = 0,
    /// Also all topics of the cluster.
    Everything = 1,
}

/// What is asked for beside an operation's own question.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Beside {
    Nothing,
    /// Offsets as a reader of committed transactions has them.
    CommittedOnly,
    /// What whoever asks may do.
    Rights,
}

impl Beside {
    fn committed_only(committed_only: bool) -> Self {
        if committed_only { Self::CommittedOnly } else { Self::Nothing }
    }
}

/// What a broker answers in place of an offset when no record is as late as a time.
const NO_RECORD: i64 = -1;

/// Pause before a coordinator that is not ready is asked again.
const COORDINATOR_PAUSE: Duration = Duration::from_millis(100);

/// What librdkafka puts in place of an offset, with no error, for a partition whose leader did not answer.
const NO_ANSWER: i64 = rd::RD_KAFKA_OFFSET_INVALID as i64;

/// An offset that a broker told. Below zero there is none, whatever else the number means: it must not be taken for a place in
/// a log.
fn told(offset: i64) -> Result<i64, KafkaError> {
    if offset >= 0 {
        return Ok(offset);
    }
    let error = KafkaError::of(NOT_ANSWERED);
    Err(KafkaError { text: "the leader of the partition did not answer".into(), ..error })
}

/// librdkafka's own bound on a question about a group, which is the longest that it takes. It aborts the process when it finds the
/// coordinator after the bound, so that nobody waits for the answer here any more long before.
const OF_GROUP_TIMEOUT: Duration = Duration::from_hours(1);

impl Client {
    /// Asks the brokers where partitions begin or end, in the order asked; an error for each partition of which that is not
    /// known. What comes back without an error is an offset that a broker told.
    pub fn list_offsets(
        &self,
        queries: &[(TopicPartition, OffsetSpec)],
        committed_only: bool,
        timeout: Duration,
    ) -> Result<Vec<Result<i64, KafkaError>>, KafkaError> {
        let raw = |spec: &OffsetSpec| match spec {
            OffsetSpec::Earliest => -2,
            OffsetSpec::Latest => -1,
        };
        let queries: Vec<_> = queries.iter().map(|(partition, spec)| (partition.clone(), raw(spec))).collect();
        let answers = self.list_raw(&queries, committed_only, timeout)?;
        Ok(answers.into_iter().map(|answer| answer.and_then(told)).collect())
    }

    /// Asks the brokers for the first record at or after a time in milliseconds since 1970 UTC, in the order asked; `None` where
    /// a broker told that there is none, an error where that is not known.
    pub fn offsets_at_time(
        &self,
        partitions: &[TopicPartition],
        time: i64,
        committed_only: bool,
        timeout: Duration,
    ) -> Result<Vec<Result<Option<i64>, KafkaError>>, KafkaError> {
        // Numbers below zero ask for something else than a time.
        let queries: Vec<_> = partitions.iter().map(|partition| (partition.clone(), time.max(0))).collect();
        let answers = self.list_raw(&queries, committed_only, timeout)?;
        let read = |offset| if offset == NO_RECORD { Ok(None) } else { told(offset).map(Some) };
        Ok(answers.into_iter().map(|answer| answer.and_then(read)).collect())
    }

    /// librdkafka asks the leaders that it knows, for a minute and more after they have changed: unless it hears of the change
    /// for another reason, which a client that only asks does not. So it is told to look, and asked once more; also when an
    /// answer was lost with its connection, which librdkafka does not ask for again.
    fn list_raw(
        &self,
        queries: &[(TopicPartition, i64)],
        committed_only: bool,
        timeout: Duration,
    ) -> Result<Vec<Result<i64, KafkaError>>, KafkaError> {
        if queries.is_empty() {
            return Ok(Vec::new());
        }
        let begun = Instant::now();
        let answers = self.list_once(queries, committed_only, timeout);
        let again = match &answers {
            Ok(answers) => answers.iter().any(|answer| match answer {
                Ok(offset) => *offset == NO_ANSWER,
                Err(error) => is_of_old_leader(error),
            }),
            Err(error) => is_of_old_leader(error),
        };
        let left = || timeout.saturating_sub(begun.elapsed());
        if !again || left().is_zero() {
            return answers;
        }
        let asked_again = self
            .metadata(MetadataOf::Everything, left(), |_| ())
            .and_then(|()| self.list_once(queries, committed_only, left()));
        // What was answered the first time counts: it is not lost with the rest.
        if answers.is_ok() { asked_again.or(answers) } else { asked_again }
    }

    fn list_once(
        &self,
        queries: &[(TopicPartition, i64)],
        committed_only: bool,
        timeout: Duration,
    ) -> Result<Vec<Result<i64, KafkaError>>, KafkaError> {
        let mut list = TopicPartitionList::with_capacity(queries.len());
        for (partition, raw) in queries {
            list.add_partition(&partition.topic, partition.partition);
            // SAFETY: the element just added is the last one.
            unsafe {
                let native = list.ptr();
                (*(*native).elems.add((*native).cnt as usize - 1)).offset = *raw;
            }
        }
        let mut found = BTreeMap::new();
        let operation = rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS;
        self.admin(
            operation,
            Beside::committed_only(committed_only),
            timeout,
            |options, queue| {
                // SAFETY: all are live; the list is copied.
                unsafe { rd::rd_kafka_ListOffsets(self.rk, list.ptr(), options, queue) }
            },
            |event| {
                let mut count = 0;
                // SAFETY: the event is a ListOffsets result; what it holds is live until it is destroyed.
                unsafe {
                    let result = rd::rd_kafka_event_ListOffsets_result(event);
                    let infos = rd::rd_kafka_ListOffsets_result_infos(result, &raw mut count);
                    for index in 0..count {
                        let element = &*rd::rd_kafka_ListOffsetsResultInfo_topic_partition(*infos.add(index));
                        found.insert(
                            (text(element.topic), element.partition),
                            (raw(&raw const element.err), element.offset),
                        );
                    }
                }
            },
        )?;
        let answer = |(partition, _): &(TopicPartition, i64)| {
            let missing = (0, NO_ANSWER);
            let (err, offset) = *found.get(&(partition.topic.to_string(), partition.partition)).unwrap_or(&missing);
            KafkaError::check(err).map(|()| offset)
        };
        Ok(queries.iter().map(answer).collect())
    }

    /// What the brokers say of these topics, in the order asked.
    ///
    /// librdkafka asks the controller. While a cluster names one that is none of its brokers, this is an error: plain metadata
    /// have no ids, and would hide that a topic is another one. Only librdkafka's own mock cluster, which never has a
    /// controller, is asked for those.
    pub fn describe_topics(
        &self,
        topics: &[String],
        timeout: Duration,
    ) -> Result<Vec<Result<TopicInfo, KafkaError>>, KafkaError> {
        let unknown = || Err(KafkaError::of(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART));
        if !self.has_controller(timeout)? {
            if !self.is_mock(timeout) {
                let text = "the cluster names a controller that is none of its brokers".into();
                return Err(KafkaError { code: Code::Fail, text });
            }
            let mut all = self.metadata(MetadataOf::Everything, timeout, |metadata| {
                // SAFETY: the metadata are live.
                let topics = unsafe { slice(metadata.topics, metadata.topic_cnt) };
                // SAFETY: as above.
                topics.iter().map(|topic| unsafe { plain(topic) }).collect::<BTreeMap<_, _>>()
            })?;
            return Ok(topics.iter().map(|topic| all.remove(topic).unwrap_or_else(unknown)).collect());
        }
        let mut found = BTreeMap::new();
        self.each_description(topics, Beside::Nothing, timeout, |description| {
            // SAFETY: it is live.
            let (name, info) = unsafe { describe(description) };
            found.insert(name, info);
        })?;
        // A topic that is not there has an error of its own in the answer.
        let missing = || Err(KafkaError::of(NOT_ANSWERED));
        Ok(topics.iter().map(|topic| found.remove(topic).unwrap_or_else(missing)).collect())
    }

    /// Has the controller describe topics; each description is live while it is read.
    pub(super) fn each_description(
        &self,
        topics: &[String],
        beside: Beside,
        timeout: Duration,
        mut read: impl FnMut(*const rd::rd_kafka_TopicDescription_t),
    ) -> Result<(), KafkaError> {
        let names: Vec<CString> = topics.iter().map(|topic| c_string(topic)).collect::<Result<_, _>>()?;
        let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
        // SAFETY: the names are copied into the collection, which is destroyed below.
        let collection = unsafe { rd::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len()) };
        let operation = rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
        let result = self.admin(
            operation,
            beside,
            timeout,
            |options, queue| {
                // SAFETY: all are live.
                unsafe { rd::rd_kafka_DescribeTopics(self.rk, collection, options, queue) }
            },
            |event| {
                let mut count = 0;
                // SAFETY: the event is a DescribeTopics result; what it holds is live until it is destroyed.
                unsafe {
                    let result = rd::rd_kafka_event_DescribeTopics_result(event);
                    let descriptions = rd::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
                    (0..count).for_each(|index| read(*descriptions.add(index)));
                }
            },
        );
        // SAFETY: ours, and used by nobody any more.
        unsafe { rd::rd_kafka_TopicCollection_destroy(collection) };
        result
    }

    /// Whether this is librdkafka's own cluster for tests and demonstrations.
    fn is_mock(&self, timeout: Duration) -> bool {
        // SAFETY: the client is live; the string is ours, and freed after it was read.
        unsafe {
            let id = rd::rd_kafka_clusterid(self.rk, millis(timeout));
            let is_mock = text(id).starts_with("mockCluster");
            if !id.is_null() {
                rd::rd_kafka_mem_free(self.rk, id.cast());
            }
            is_mock
        }
    }

    /// Whether the group has a static member of this name.
    pub fn has_instance(&self, group: &str, instance: &str, timeout: Duration) -> Result<bool, KafkaError> {
        // SAFETY: the description is live.
        let found = self.of_group(group, Beside::Nothing, timeout, |group| unsafe { describes(group, instance) })?;
        Ok(found.unwrap_or(false))
    }

    /// The partitions that the group has given to its members; `None` while it is changing that.
    pub fn assigned_in(&self, group: &str, timeout: Duration) -> Result<Option<BTreeSet<TopicPartition>>, KafkaError> {
        // SAFETY: the description is live.
        let found = self.of_group(group, Beside::Nothing, timeout, |group| unsafe { assigned(group) })?;
        Ok(found.flatten())
    }

    /// How many members the group has at its coordinator, with those that are gone and whose session lasts.
    pub fn members(&self, group: &str, timeout: Duration) -> Result<usize, KafkaError> {
        self.of_group(group, Beside::Nothing, timeout, |description| {
            // SAFETY: it is live.
            unsafe { rd::rd_kafka_ConsumerGroupDescription_member_count(description) }
        })
        .map(Option::unwrap_or_default)
    }

    /// How many members the group has besides this client.
    pub fn other_members(&self, group: &str, timeout: Duration) -> Result<usize, KafkaError> {
        // SAFETY: the id is copied and given back.
        let own = unsafe {
            let id = rd::rd_kafka_memberid(self.rk);
            let own = text(id);
            if !id.is_null() {
                rd::rd_kafka_mem_free(self.rk, id.cast());
            }
            own
        };
        self.of_group(group, Beside::Nothing, timeout, |description| {
            // SAFETY: it is live, and so is what it returns.
            unsafe {
                let members = rd::rd_kafka_ConsumerGroupDescription_member_count(description);
                let id = |index| {
                    text(rd::rd_kafka_MemberDescription_consumer_id(rd::rd_kafka_ConsumerGroupDescription_member(
                        description,
                        index,
                    )))
                };
                (0..members).filter(|index| id(*index) != own).count()
            }
        })
        .map(Option::unwrap_or_default)
    }

    /// Has the coordinator describe a group; the description is live while it is read. `None` where there is no such group. A
    /// coordinator that is not ready yet is asked again.
    pub(super) fn of_group<T>(
        &self,
        group: &str,
        beside: Beside,
        timeout: Duration,
        read: impl Fn(*const rd::rd_kafka_ConsumerGroupDescription_t) -> T,
    ) -> Result<Option<T>, KafkaError> {
        let begun = Instant::now();
        loop {
            let left = timeout.saturating_sub(begun.elapsed()).max(Duration::from_millis(1));
            match self.of_group_once(group, beside, left, &read) {
                Err(error) if is_of_new_coordinator(&error) && begun.elapsed() + COORDINATOR_PAUSE < timeout => {
                    std::thread::park_timeout(COORDINATOR_PAUSE);
                }
                Err(error) if error.code == Code::GroupIdNotFound => return Ok(None),
                found => return found,
            }
        }
    }

    fn of_group_once<T>(
        &self,
        group: &str,
        beside: Beside,
        timeout: Duration,
        read: impl Fn(*const rd::rd_kafka_ConsumerGroupDescription_t) -> T,
    ) -> Result<Option<T>, KafkaError> {
        let name = c_string(group)?;
        let mut names = [name.as_ptr()];
        let mut found = Ok(None);
        let operation = rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS;
        self.admin(
            operation,
            beside,
            timeout,
            |options, queue| {
                // SAFETY: all are live; the name is copied.
                unsafe { rd::rd_kafka_DescribeConsumerGroups(self.rk, names.as_mut_ptr(), 1, options, queue) }
            },
            |event| {
                let mut count = 0;
                // SAFETY: the event is a DescribeConsumerGroups result; what it holds is live until it is destroyed.
                unsafe {
                    let result = rd::rd_kafka_event_DescribeConsumerGroups_result(event);
                    let groups = rd::rd_kafka_DescribeConsumerGroups_result_groups(result, &raw mut count);
                    if count == 1 {
                        let error = rd::rd_kafka_ConsumerGroupDescription_error(*groups);
                        let code = if error.is_null() { 0 } else { code::rd_kafka_error_code(error) };
                        found = KafkaError::check(code).map(|()| Some(read(*groups)));
                    }
                }
            },
        )?;
        found
    }

    /// The names of all topics of the cluster.
    pub fn topic_names(&self, timeout: Duration) -> Result<Vec<String>, KafkaError> {
        // SAFETY: the metadata are live, and so are the names in them.
        self.metadata(MetadataOf::Everything, timeout, |metadata| unsafe {
            slice(metadata.topics, metadata.topic_cnt).iter().map(|topic| text(topic.topic)).collect()
        })
    }

    /// The addresses of the cluster's brokers, as they give them.
    pub fn brokers(&self, timeout: Duration) -> Result<Vec<String>, KafkaError> {
        self.metadata(MetadataOf::Brokers, timeout, |metadata| {
            // SAFETY: the metadata are live, and so are the names in them.
            let brokers = unsafe { slice(metadata.brokers, metadata.broker_cnt) };
            // SAFETY: as above.
            brokers.iter().map(|broker| unsafe { format!("{}:{}", text(broker.host), broker.port) }).collect()
        })
    }

    /// Whether requests to the controller can be answered, as far as the cluster has said.
    fn has_controller(&self, timeout: Duration) -> Result<bool, KafkaError> {
        self.metadata(MetadataOf::Brokers, timeout, |metadata| {
            // SAFETY: both are live; without a timeout the answer is what the last metadata said.
            let (brokers, controller) =
                unsafe { (slice(metadata.brokers, metadata.broker_cnt), rd::rd_kafka_controllerid(self.rk, 0)) };
            controller < 0 || brokers.iter().any(|broker| broker.id == controller)
        })
    }

    fn metadata<T>(
        &self,
        of: MetadataOf,
        timeout: Duration,
        read: impl FnOnce(&rd::rd_kafka_metadata) -> T,
    ) -> Result<T, KafkaError> {
        let mut metadata = ptr::null();
        // SAFETY: the metadata object is ours once the call succeeded, and destroyed after it was read.
        unsafe {
            let none = ptr::null_mut();
            KafkaError::check(code::rd_kafka_metadata(self.rk, of as c_int, none, &raw mut metadata, millis(timeout)))?;
            let value = read(&*metadata);
            rd::rd_kafka_metadata_destroy(metadata);
            Ok(value)
        }
    }

    /// Runs one request of the admin interface and reads its result.
    fn admin(
        &self,
        operation: rd::rd_kafka_admin_op_t,
        beside: Beside,
        timeout: Duration,
        send: impl FnOnce(*mut rd::rd_kafka_AdminOptions_t, *mut rd::rd_kafka_queue_t),
        read: impl FnOnce(*mut rd::rd_kafka_event_t),
    ) -> Result<(), KafkaError> {
        let mut message = [0 as c_char; 512];
        // SAFETY: options, queue and event are made, used and destroyed here.
        unsafe {
            let options = rd::rd_kafka_AdminOptions_new(self.rk, operation);
            let (buffer, size) = (message.as_mut_ptr(), message.len());
            let is_of_group = operation == rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS;
            let bound = if is_of_group { OF_GROUP_TIMEOUT } else { timeout };
            rd::rd_kafka_AdminOptions_set_request_timeout(options, millis(bound), buffer, size);
            let error = match beside {
                Beside::Nothing => ptr::null_mut(),
                Beside::CommittedOnly => {
                    let level = rd::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_COMMITTED;
                    rd::rd_kafka_AdminOptions_set_isolation_level(options, level)
                }
                Beside::Rights => rd::rd_kafka_AdminOptions_set_include_authorized_operations(options, 1),
            };
            let _ = KafkaError::check_object(error);
            let queue = rd::rd_kafka_queue_new(self.rk);
            send(options, queue);
            let patience = timeout.saturating_add(Duration::from_millis(500));
            let event = rd::rd_kafka_queue_poll(queue, millis(patience));
            let result = if event.is_null() {
                Err(KafkaError::of(RDKafkaRespErr::RD_KAFKA_RESP_ERR__TIMED_OUT))
            } else {
                KafkaError::check(code::rd_kafka_event_error(event)).map(|()| read(event))
            };
            if !event.is_null() {
                rd::rd_kafka_event_destroy(event);
            }
            rd::rd_kafka_queue_destroy(queue);
            rd::rd_kafka_AdminOptions_destroy(options);
            result
        }
    }
}

/// Whether this is the answer of a broker that does not lead the partition any more, or of one that leads it again.
fn is_of_old_leader(error: &KafkaError) -> bool {
    matches!(
        error.code,
        Code::NotLeaderForPartition | Code::FencedLeaderEpoch | Code::UnknownLeaderEpoch | Code::LeaderNotAvailable
    )
}

/// # Safety
/// `group` is a live group description.
unsafe fn describes(group: *const rd::rd_kafka_ConsumerGroupDescription_t, instance: &str) -> bool {
    // SAFETY: by the contract above; what it returns lives as long as the description.
    unsafe {
        let members = rd::rd_kafka_ConsumerGroupDescription_member_count(group);
        (0..members).any(|index| {
            let member = rd::rd_kafka_ConsumerGroupDescription_member(group, index);
            text(rd::rd_kafka_MemberDescription_group_instance_id(member)) == instance
        })
    }
}

/// What the members have; `None` while that is changing.
///
/// # Safety
/// `group` is a live group description.
unsafe fn assigned(group: *const rd::rd_kafka_ConsumerGroupDescription_t) -> Option<BTreeSet<TopicPartition>> {
    // SAFETY: by the contract above; what it returns lives as long as the description.
    unsafe {
        let state = rd::rd_kafka_ConsumerGroupDescription_state(group);
        if state != rd::rd_kafka_consumer_group_state_t::RD_KAFKA_CONSUMER_GROUP_STATE_STABLE {
            return None;
        }
        let members = rd::rd_kafka_ConsumerGroupDescription_member_count(group);
        let of_member = |index| {
            let member = rd::rd_kafka_ConsumerGroupDescription_member(group, index);
            let assignment = rd::rd_kafka_MemberDescription_assignment(member);
            let list =
                if assignment.is_null() { ptr::null() } else { rd::rd_kafka_MemberAssignment_partitions(assignment) };
            elements(list.cast_mut())
        };
        let all = (0..members).flat_map(of_member);
        Some(
            all.map(|element| TopicPartition { topic: text(element.topic).into(), partition: element.partition })
                .collect(),
        )
    }
}

/// Whether this is the answer of a broker that is no coordinator any more, or not yet.
fn is_of_new_coordinator(error: &KafkaError) -> bool {
    matches!(error.code, Code::CoordinatorLoadInProgress | Code::CoordinatorNotAvailable | Code::NotCoordinator)
}

/// # Safety
/// `description` is a live topic description.
unsafe fn describe(description: *const rd::rd_kafka_TopicDescription_t) -> (String, Result<TopicInfo, KafkaError>) {
    // SAFETY: by the contract above; what it returns lives as long as the description.
    unsafe {
        let name = text(rd::rd_kafka_TopicDescription_name(description));
        let error = rd::rd_kafka_TopicDescription_error(description);
        if !error.is_null() {
            let code = code::rd_kafka_error_code(error);
            if KafkaError::check(code).is_err() {
                return (name, Err(KafkaError::from_code(code)));
            }
        }
        let mut partitions = 0;
        rd::rd_kafka_TopicDescription_partitions(description, &raw mut partitions);
        let id = rd::rd_kafka_TopicDescription_topic_id(description);
        let id = if id.is_null() { String::new() } else { text(rd::rd_kafka_Uuid_base64str(id)) };
        // Brokers before 2.8 have no topic ids and answer with the zero id.
        let id = if id.trim_start_matches('A').is_empty() { String::new() } else { id };
        (name.clone(), Ok(TopicInfo { name, id, partitions: partitions as i32 }))
    }
}

/// # Safety
/// `topic` is live.
unsafe fn plain(topic: &rd::rd_kafka_metadata_topic) -> (String, Result<TopicInfo, KafkaError>) {
    // SAFETY: by the contract above.
    let name = unsafe { text(topic.topic) };
    let info = TopicInfo { name: name.clone(), id: String::new(), partitions: topic.partition_cnt };
    // SAFETY: as above.
    (name, KafkaError::check(unsafe { raw(&raw const topic.err) }).map(|()| info))
}

#[cfg(test)]
mod tests {
    use rdkafka::mocking::MockCluster;

    use super::*;

    #[test]
    fn no_answer_is_an_error_and_no_offset() {
        assert_eq!(told(0), Ok(0));
        assert_eq!(told(i64::MAX), Ok(i64::MAX));
        for none in [-1, -2, -1000, NO_ANSWER, i64::MIN] {
            assert!(told(none).is_err(), "{none}");
        }
        let brokers = MockCluster::new(2).expect("brokers");
        brokers.create_topic("t", 2, 1).expect("a topic");
        let properties = [("bootstrap.servers", brokers.bootstrap_servers()), ("group.id", "g".to_owned())];
        let client = Client::new(&properties.map(|(key, value)| (key.to_owned(), value)).into()).expect("a client");
        brokers.partition_leader("t", 1, None).expect("no leader");
        let queries = [0, 1].map(|partition| (TopicPartition { topic: "t".into(), partition }, OffsetSpec::Earliest));
        let answers = client.list_offsets(&queries, false, Duration::from_secs(20)).expect("the others are answered");
        assert_eq!(answers[0], Ok(0));
        assert!(answers[1].is_err(), "{:?}", answers[1]);
    }

    #[test]
    fn offsets_are_answered_right_after_the_leader_has_changed() {
        let brokers = MockCluster::new(2).expect("brokers");
        brokers.create_topic("t", 1, 2).expect("a topic");
        let properties = [("bootstrap.servers", brokers.bootstrap_servers()), ("group.id", "g".to_owned())];
        let client = Client::new(&properties.map(|(key, value)| (key.to_owned(), value)).into()).expect("a client");
        let partition = TopicPartition { topic: "t".into(), partition: 0 };
        for leader in [1, 2, 1] {
            brokers.partition_leader("t", 0, Some(leader)).expect("a leader");
            let queries = [(partition.clone(), OffsetSpec::Latest)];
            let answers = client.list_offsets(&queries, false, Duration::from_secs(20));
            assert_eq!(answers, Ok(vec![Ok(0)]), "broker {leader} leads");
        }
    }
}
