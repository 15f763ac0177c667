//! What a client asks of the brokers about topics, and about themselves.

use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_int};
use std::ptr;
use std::time::Duration;

use rdkafka::bindings as rd;
use rdkafka::types::{RDKafkaErrorCode as Code, RDKafkaRespErr};

use super::borrowed::{slice, text};
use super::code::{self, raw};
use super::list::{NOT_ANSWERED, c_string, millis};
use super::{Client, KafkaError, TopicInfo};

/// What metadata are asked of.
#[derive(Clone, Copy)]
pub(super) enum MetadataOf {
    /// Brokers, and the topics that the client works with.
    Brokers = 0,
    /// Also all topics of the cluster.
    Everything = 1,
}

/// What is asked for beside an operation's own question.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Beside {
    Nothing,
    /// What whoever asks may do.
    Rights,
}

/// librdkafka's own bound on a question about a group, which is the longest that it takes. It aborts the process when it finds the
/// coordinator after the bound, so that nobody waits for the answer here any more long before.
const OF_GROUP_TIMEOUT: Duration = Duration::from_hours(1);

impl Client {
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

    pub(super) fn metadata<T>(
        &self,
        of: MetadataOf,
        timeout: Duration,
        read: impl FnOnce(&rd::rd_kafka_metadata) -> T,
    ) -> Result<T, KafkaError> {
        self.keep_brokers();
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
    pub(super) fn admin(
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
