//! The thin safe layer over librdkafka's C interface: the only module of the source with `unsafe` in it.
//!
//! Why not `rdkafka`'s own consumers: they hand out one record a call through an event object each, and cannot answer a
//! rebalance at a moment of our choosing. Here records come in batches whose payloads are read in place
//! (`rd_kafka_consume_batch_queue`), and a rebalance is an [`Event`] that waits until it is answered.
//! Configuration and partition lists are `rdkafka`'s.
//!
//! Promises: a [`Message`] may be read and dropped on any thread, and keeps its bytes alive. Callbacks only put an
//! [`Event`] into a queue; none calls back into librdkafka, except that a rebalance which arrives while the consumer is
//! being closed is answered by giving everything up. Every call with a timeout returns by then.
#![expect(unsafe_code, reason = "calls librdkafka's C interface; each block says why it is sound")]

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt;
use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::bindings as rd;
use rdkafka::types::{RDKafkaErrorCode, RDKafkaRespErr};
use rdkafka::{ClientConfig, TopicPartitionList};

use super::TopicPartition;

/// An error of librdkafka or of a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KafkaError {
    /// The code, for decisions.
    pub code: RDKafkaErrorCode,
    /// The text, for people.
    pub text: String,
}

impl fmt::Display for KafkaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for KafkaError {}

impl KafkaError {
    fn from_code(code: RDKafkaRespErr) -> Self {
        // SAFETY: the function takes any code and returns a static string.
        let text = unsafe { text(rd::rd_kafka_err2str(code)) };
        Self { code: code.into(), text }
    }

    fn check(code: RDKafkaRespErr) -> Result<(), Self> {
        if code == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR { Ok(()) } else { Err(Self::from_code(code)) }
    }

    /// Takes ownership of an error object; null is success.
    ///
    /// # Safety
    /// `error` is null or an error object that nobody else destroys.
    unsafe fn check_object(error: *mut rd::rd_kafka_error_t) -> Result<(), Self> {
        if error.is_null() {
            return Ok(());
        }
        // SAFETY: not null, and ours to read and destroy.
        unsafe {
            let result =
                Self { code: rd::rd_kafka_error_code(error).into(), text: text(rd::rd_kafka_error_string(error)) };
            rd::rd_kafka_error_destroy(error);
            Err(result)
        }
    }
}

/// What librdkafka tells besides records.
#[derive(Clone, Debug)]
pub enum Event {
    /// The group gives us these partitions; to be answered with one of the `assign` calls.
    Assign(Vec<TopicPartition>),
    /// The group takes these partitions back; to be answered with one of the `unassign` calls.
    Revoke(Vec<TopicPartition>),
    /// A client-level error, such as an unreachable broker. `fatal`: this consumer can do nothing any more.
    Error {
        /// What happened.
        error: KafkaError,
        /// Whether the consumer has to be made anew.
        fatal: bool,
    },
    /// The answer to an asynchronous commit.
    Committed(Result<(), KafkaError>),
}

/// How changes of the assignment are told and answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Changes replace the whole assignment; also for manual assignment.
    Eager,
    /// Changes are increments.
    Cooperative,
}

/// An offset that the group holds for a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupOffset {
    /// The next offset to read.
    pub offset: i64,
    /// The text stored beside it; not ours when it is not UTF-8.
    pub metadata: String,
}

/// An offset to be committed.
#[derive(Clone, Debug)]
pub struct Commit {
    /// Of which partition.
    pub partition: TopicPartition,
    /// The next offset to read.
    pub offset: i64,
    /// Leader epoch of the record before it, -1 when unknown.
    pub leader_epoch: i32,
    /// Stored beside it, at most 4,096 bytes.
    pub metadata: String,
}

/// Where an offset query points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetSpec {
    /// The low watermark.
    Earliest,
    /// The high watermark; the last stable offset for `read_committed`.
    Latest,
    /// The first record at or after this time in milliseconds since 1970 UTC; -1 comes back when there is none.
    Time(i64),
}

/// What a broker says of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicInfo {
    /// The name.
    pub name: String,
    /// The id in base64; empty where the broker has none.
    pub id: String,
    /// Number of partitions.
    pub partitions: i32,
}

/// What metadata are asked of.
#[derive(Clone, Copy)]
enum MetadataOf {
    /// Brokers, and the topics that the client works with.
    Brokers = 0,
    /// Also all topics of the cluster.
    Everything = 1,
}

struct Shared {
    events: Mutex<VecDeque<Event>>,
    closing: AtomicBool,
}

impl Shared {
    fn push(&self, event: Event) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push_back(event);
    }
}

/// One librdkafka consumer. Calls may be made from any thread; [`Client::consume`] from one at a time.
pub struct Client {
    rk: *mut rd::rd_kafka_t,
    queue: *mut rd::rd_kafka_queue_t,
    shared: Arc<Shared>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

// SAFETY: librdkafka's handles are thread-safe by its documentation; `Shared` is behind locks.
unsafe impl Send for Client {}
// SAFETY: as above.
unsafe impl Sync for Client {}

impl Client {
    /// Makes a consumer. It connects in the background: an absent broker is no error here.
    pub fn new(properties: &BTreeMap<String, String>) -> Result<Self, KafkaError> {
        let mut config = ClientConfig::new();
        for (key, value) in properties {
            config.set(key, value);
        }
        let invalid = |text: String| KafkaError { code: RDKafkaErrorCode::InvalidArgument, text };
        let native = config.create_native_config().map_err(|error| invalid(error.to_string()))?;
        let shared = Arc::new(Shared { events: Mutex::default(), closing: AtomicBool::new(false) });
        let mut message = [0 as c_char; 512];
        // SAFETY: the configuration is valid and, on success, owned by the client, which is why it is not dropped then. The
        // opaque pointer stays valid until the client is destroyed, since `self.shared` is dropped after that.
        let rk = unsafe {
            rd::rd_kafka_conf_set_opaque(native.ptr(), Arc::as_ptr(&shared).cast_mut().cast());
            rd::rd_kafka_conf_set_rebalance_cb(native.ptr(), Some(on_rebalance));
            rd::rd_kafka_conf_set_error_cb(native.ptr(), Some(on_error));
            rd::rd_kafka_conf_set_offset_commit_cb(native.ptr(), Some(on_commit));
            rd::rd_kafka_conf_set_log_cb(native.ptr(), Some(on_log));
            let native = ManuallyDrop::new(native);
            let kind = rd::rd_kafka_type_t::RD_KAFKA_CONSUMER;
            let rk = rd::rd_kafka_new(kind, native.ptr(), message.as_mut_ptr(), message.len());
            if rk.is_null() {
                drop(ManuallyDrop::into_inner(native));
                return Err(invalid(text(message.as_ptr())));
            }
            rk
        };
        // SAFETY: `rk` is a live consumer; the queue reference is released in `drop`.
        let queue = unsafe {
            rd::rd_kafka_poll_set_consumer(rk);
            rd::rd_kafka_queue_get_consumer(rk)
        };
        Ok(Self { rk, queue, shared })
    }

    /// Joins the group for these topics (names, or regular expressions with a leading `^`).
    pub fn subscribe(&self, topics: &[String]) -> Result<(), KafkaError> {
        let mut list = TopicPartitionList::new();
        for topic in topics {
            list.add_topic_unassigned(topic);
        }
        // SAFETY: both are live; the list is copied.
        KafkaError::check(unsafe { rd::rd_kafka_subscribe(self.rk, list.ptr()) })
    }

    /// Leaves the group; the partitions come back as an [`Event::Revoke`].
    pub fn unsubscribe(&self) -> Result<(), KafkaError> {
        // SAFETY: the client is live.
        KafkaError::check(unsafe { rd::rd_kafka_unsubscribe(self.rk) })
    }

    /// Takes up to `most` messages, waiting up to `wait` for as many: a zero wait takes what is there. Records and
    /// partition errors both come as messages, in order within a partition. Serves callbacks, which become events.
    pub fn consume(&self, into: &mut Vec<Message>, most: usize, wait: Duration) {
        into.reserve(most);
        let spare = into.spare_capacity_mut();
        let wait = c_int::try_from(wait.as_millis()).unwrap_or(c_int::MAX);
        // SAFETY: `Message` is a transparent wrapper of the message pointer, there is room for `most` of them, and exactly the
        // returned number has been written, each owned by us.
        unsafe {
            let got =
                rd::rd_kafka_consume_batch_queue(self.queue, wait, spare.as_mut_ptr().cast(), most.min(spare.len()));
            into.set_len(into.len() + usize::try_from(got).unwrap_or(0));
        }
    }

    /// Ends a waiting [`Self::consume`] early; may be called from any thread.
    pub fn wake(&self) {
        // SAFETY: the queue is live.
        unsafe { rd::rd_kafka_queue_yield(self.queue) }
    }

    /// The next event, if any.
    pub fn next_event(&self) -> Option<Event> {
        self.shared.events.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// How the group changes assignments, once it has been joined.
    pub fn protocol(&self) -> Protocol {
        // SAFETY: returns null or a static string.
        match unsafe { text(rd::rd_kafka_rebalance_protocol(self.rk)) }.as_str() {
            "COOPERATIVE" => Protocol::Cooperative,
            _ => Protocol::Eager,
        }
    }

    /// Whether the partitions being revoked were lost, and belong to others already.
    pub fn assignment_lost(&self) -> bool {
        // SAFETY: the client is live.
        unsafe { rd::rd_kafka_assignment_lost(self.rk) != 0 }
    }

    /// Replaces the assignment; each partition is read from its offset.
    pub fn assign(&self, partitions: &[(TopicPartition, i64)]) -> Result<(), KafkaError> {
        let list = positions(partitions)?;
        // SAFETY: both are live; the list is copied.
        KafkaError::check(unsafe { rd::rd_kafka_assign(self.rk, list.ptr()) })
    }

    /// Gives up the whole assignment.
    pub fn unassign(&self) -> Result<(), KafkaError> {
        // SAFETY: a null list means none.
        KafkaError::check(unsafe { rd::rd_kafka_assign(self.rk, ptr::null()) })
    }

    /// Adds partitions to the assignment; each is read from its offset.
    pub fn incremental_assign(&self, partitions: &[(TopicPartition, i64)]) -> Result<(), KafkaError> {
        let list = positions(partitions)?;
        // SAFETY: both are live; the list is copied; the error object is ours.
        unsafe { KafkaError::check_object(rd::rd_kafka_incremental_assign(self.rk, list.ptr())) }
    }

    /// Takes partitions out of the assignment.
    pub fn incremental_unassign(&self, partitions: &[TopicPartition]) -> Result<(), KafkaError> {
        let list = names(partitions);
        // SAFETY: both are live; the list is copied; the error object is ours.
        unsafe { KafkaError::check_object(rd::rd_kafka_incremental_unassign(self.rk, list.ptr())) }
    }

    /// Stops fetching these partitions; what was fetched but not taken is dropped.
    pub fn pause(&self, partitions: &[TopicPartition]) -> Result<(), KafkaError> {
        let list = names(partitions);
        // SAFETY: both are live.
        KafkaError::check(unsafe { rd::rd_kafka_pause_partitions(self.rk, list.ptr()) })
    }

    /// Fetches them again, from the first record that was not taken.
    pub fn resume(&self, partitions: &[TopicPartition]) -> Result<(), KafkaError> {
        let list = names(partitions);
        // SAFETY: both are live.
        KafkaError::check(unsafe { rd::rd_kafka_resume_partitions(self.rk, list.ptr()) })
    }

    /// Reads assigned partitions from other offsets.
    pub fn seek(&self, partitions: &[(TopicPartition, i64)], timeout: Duration) -> Result<(), KafkaError> {
        let list = positions(partitions)?;
        // SAFETY: both are live; the error object is ours; results are in the list.
        unsafe { KafkaError::check_object(rd::rd_kafka_seek_partitions(self.rk, list.ptr(), millis(timeout)))? };
        first_error(&list)
    }

    /// Sends a commit; the answer comes as [`Event::Committed`].
    pub fn commit_async(&self, commits: &[Commit]) -> Result<(), KafkaError> {
        let list = commit_list(commits)?;
        // SAFETY: both are live; the list is copied.
        KafkaError::check(unsafe { rd::rd_kafka_commit(self.rk, list.ptr(), 1) })
    }

    /// Commits and waits for the group's answer, which is given for each partition in the order asked.
    pub fn commit(&self, commits: &[Commit], timeout: Duration) -> Result<Vec<Result<(), KafkaError>>, KafkaError> {
        type Answers = Mutex<Option<BTreeMap<(String, i32), RDKafkaRespErr>>>;
        unsafe extern "C" fn answered(
            _: *mut rd::rd_kafka_t,
            _: RDKafkaRespErr,
            offsets: *mut rd::rd_kafka_topic_partition_list_t,
            answers: *mut c_void,
        ) {
            // SAFETY: `answers` was made by `Arc::into_raw` below and is given to exactly one callback; the list is live
            // during the callback.
            unsafe {
                let answers = Arc::from_raw(answers.cast::<Answers>());
                let found =
                    elements(offsets).iter().map(|element| ((text(element.topic), element.partition), element.err));
                *answers.lock().unwrap_or_else(PoisonError::into_inner) = Some(found.collect());
            }
        }
        let list = commit_list(commits)?;
        let answers = Arc::new(Answers::default());
        let deadline = Instant::now() + timeout;
        // SAFETY: the callback owns a reference of its own. When no answer comes in time, the queue goes with the answer in it
        // unread, and that reference is never given back: some bytes for a commit that was lost.
        unsafe {
            let queue = rd::rd_kafka_queue_new(self.rk);
            let theirs = Arc::into_raw(Arc::clone(&answers)).cast_mut().cast();
            let sent = KafkaError::check(rd::rd_kafka_commit_queue(self.rk, list.ptr(), queue, Some(answered), theirs));
            if sent.is_err() {
                drop(Arc::from_raw(theirs.cast::<Answers>()));
            } else {
                while answers.lock().unwrap_or_else(PoisonError::into_inner).is_none() && Instant::now() < deadline {
                    rd::rd_kafka_queue_poll_callback(queue, millis(deadline.saturating_duration_since(Instant::now())));
                }
            }
            rd::rd_kafka_queue_destroy(queue);
            sent?;
        }
        let Some(answers) = answers.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return Err(KafkaError::from_code(RDKafkaRespErr::RD_KAFKA_RESP_ERR__TIMED_OUT));
        };
        let answer = |commit: &Commit| {
            let key = (commit.partition.topic.to_string(), commit.partition.partition);
            KafkaError::check(answers.get(&key).copied().unwrap_or(RDKafkaRespErr::RD_KAFKA_RESP_ERR__NO_OFFSET))
        };
        Ok(commits.iter().map(answer).collect())
    }

    /// The group's offsets, in the order asked; `None` where it has none.
    pub fn committed(
        &self,
        partitions: &[TopicPartition],
        timeout: Duration,
    ) -> Result<Vec<Option<GroupOffset>>, KafkaError> {
        let list = names(partitions);
        // SAFETY: both are live; results are put into the list.
        KafkaError::check(unsafe { rd::rd_kafka_committed(self.rk, list.ptr(), millis(timeout)) })?;
        first_error(&list)?;
        let read = |element: &rd::rd_kafka_topic_partition_t| {
            // SAFETY: librdkafka gives a pointer to so many bytes, or null.
            let metadata = unsafe { bytes(element.metadata, element.metadata_size) };
            let metadata = String::from_utf8_lossy(metadata).into_owned();
            (element.offset >= 0).then_some(GroupOffset { offset: element.offset, metadata })
        };
        // SAFETY: the list is live.
        Ok(unsafe { elements(list.ptr()) }.iter().map(read).collect())
    }

    /// Asks the brokers for offsets, in the order asked; an error for each partition that cannot be answered.
    pub fn list_offsets(
        &self,
        queries: &[(TopicPartition, OffsetSpec)],
        committed_only: bool,
        timeout: Duration,
    ) -> Result<Vec<Result<i64, KafkaError>>, KafkaError> {
        let mut list = TopicPartitionList::with_capacity(queries.len());
        for (partition, spec) in queries {
            let raw = match spec {
                OffsetSpec::Earliest => -2,
                OffsetSpec::Latest => -1,
                OffsetSpec::Time(time) => *time,
            };
            list.add_partition(&partition.topic, partition.partition);
            // SAFETY: the element just added is the last one.
            unsafe {
                let native = list.ptr();
                (*(*native).elems.add((*native).cnt as usize - 1)).offset = raw;
            }
        }
        let mut found = BTreeMap::new();
        let operation = rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS;
        self.admin(
            operation,
            committed_only,
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
                        found.insert((text(element.topic), element.partition), (element.err, element.offset));
                    }
                }
            },
        )?;
        let answer = |(partition, _): &(TopicPartition, OffsetSpec)| {
            let missing = (RDKafkaRespErr::RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION, -1);
            let (err, offset) = *found.get(&(partition.topic.to_string(), partition.partition)).unwrap_or(&missing);
            KafkaError::check(err).map(|()| offset)
        };
        Ok(queries.iter().map(answer).collect())
    }

    /// What the brokers say of these topics, in the order asked.
    ///
    /// librdkafka asks the controller. A cluster that names one which is none of its brokers never answers that, and is
    /// asked for plain metadata, which have no ids: librdkafka's own mock cluster.
    pub fn describe_topics(
        &self,
        topics: &[String],
        timeout: Duration,
    ) -> Result<Vec<Result<TopicInfo, KafkaError>>, KafkaError> {
        let unknown = || Err(KafkaError::from_code(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART));
        if !self.has_controller(timeout)? {
            let mut all = self.metadata(MetadataOf::Everything, timeout, |metadata| {
                // SAFETY: the metadata are live.
                let topics = unsafe { slice(metadata.topics, metadata.topic_cnt) };
                // SAFETY: as above.
                topics.iter().map(|topic| unsafe { plain(topic) }).collect::<BTreeMap<_, _>>()
            })?;
            return Ok(topics.iter().map(|topic| all.remove(topic).unwrap_or_else(unknown)).collect());
        }
        let names: Vec<CString> = topics.iter().map(|topic| c_string(topic)).collect::<Result<_, _>>()?;
        let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
        // SAFETY: the names are copied into the collection, which is destroyed below.
        let collection = unsafe { rd::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len()) };
        let mut found = BTreeMap::new();
        let operation = rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
        let result = self.admin(
            operation,
            false,
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
                    for index in 0..count {
                        let (name, info) = describe(*descriptions.add(index));
                        found.insert(name, info);
                    }
                }
            },
        );
        // SAFETY: ours, and used by nobody any more.
        unsafe { rd::rd_kafka_TopicCollection_destroy(collection) };
        result?;
        Ok(topics.iter().map(|topic| found.remove(topic).unwrap_or_else(unknown)).collect())
    }

    /// The names of all topics of the cluster.
    pub fn topic_names(&self, timeout: Duration) -> Result<Vec<String>, KafkaError> {
        // SAFETY: the metadata are live, and so are the names in them.
        self.metadata(MetadataOf::Everything, timeout, |metadata| unsafe {
            slice(metadata.topics, metadata.topic_cnt).iter().map(|topic| text(topic.topic)).collect()
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
            KafkaError::check(rd::rd_kafka_metadata(self.rk, of as c_int, none, &raw mut metadata, millis(timeout)))?;
            let value = read(&*metadata);
            rd::rd_kafka_metadata_destroy(metadata);
            Ok(value)
        }
    }

    /// Runs one request of the admin interface and reads its result.
    fn admin(
        &self,
        operation: rd::rd_kafka_admin_op_t,
        committed_only: bool,
        timeout: Duration,
        send: impl FnOnce(*mut rd::rd_kafka_AdminOptions_t, *mut rd::rd_kafka_queue_t),
        read: impl FnOnce(*mut rd::rd_kafka_event_t),
    ) -> Result<(), KafkaError> {
        let mut message = [0 as c_char; 512];
        // SAFETY: options, queue and event are made, used and destroyed here.
        unsafe {
            let options = rd::rd_kafka_AdminOptions_new(self.rk, operation);
            let (buffer, size) = (message.as_mut_ptr(), message.len());
            rd::rd_kafka_AdminOptions_set_request_timeout(options, millis(timeout), buffer, size);
            if committed_only {
                let level = rd::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_COMMITTED;
                let _ = KafkaError::check_object(rd::rd_kafka_AdminOptions_set_isolation_level(options, level));
            }
            let queue = rd::rd_kafka_queue_new(self.rk);
            send(options, queue);
            let patience = timeout.saturating_add(Duration::from_millis(500));
            let event = rd::rd_kafka_queue_poll(queue, millis(patience));
            let result = if event.is_null() {
                Err(KafkaError::from_code(RDKafkaRespErr::RD_KAFKA_RESP_ERR__TIMED_OUT))
            } else {
                KafkaError::check(rd::rd_kafka_event_error(event)).map(|()| read(event))
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

impl Drop for Client {
    /// Leaves the group if that was not done, waits for nothing else, and frees the client. Every [`Message`] must be gone
    /// by then, or this waits for it.
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Release);
        // SAFETY: the last use of both.
        unsafe {
            rd::rd_kafka_consumer_close(self.rk);
            rd::rd_kafka_queue_destroy(self.queue);
            rd::rd_kafka_destroy(self.rk);
        }
    }
}

/// A record or a partition's error, owned.
#[repr(transparent)]
#[derive(Debug)]
pub struct Message(*mut rd::rd_kafka_message_t);

// SAFETY: a message is read-only and reference-counted by librdkafka with atomics.
unsafe impl Send for Message {}

impl Message {
    fn raw(&self) -> &rd::rd_kafka_message_t {
        // SAFETY: live until `drop`.
        unsafe { &*self.0 }
    }

    /// The error in place of a record, if this is one.
    pub fn error(&self) -> Option<KafkaError> {
        let raw = self.raw();
        if raw.err == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return None;
        }
        // SAFETY: the message is live; the string is static or its own.
        Some(KafkaError { code: raw.err.into(), text: unsafe { text(rd::rd_kafka_message_errstr(self.0)) } })
    }

    /// Whether this is a record.
    pub fn is_record(&self) -> bool {
        self.raw().err == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR
    }

    /// Identifies the topic among the messages of one client: equal exactly for equal topics.
    pub fn topic_key(&self) -> usize {
        self.raw().rkt as usize
    }

    /// The topic's name; empty for an error that belongs to none.
    pub fn topic(&self) -> String {
        if self.raw().rkt.is_null() {
            return String::new();
        }
        // SAFETY: the topic lives as long as the message.
        unsafe { text(rd::rd_kafka_topic_name(self.raw().rkt)) }
    }

    /// The partition.
    pub fn partition(&self) -> i32 {
        self.raw().partition
    }

    /// The record's offset; for an end of partition the next offset to read.
    pub fn offset(&self) -> i64 {
        self.raw().offset
    }

    /// The value, read in place; `None` when it is null.
    pub fn value(&self) -> Option<&[u8]> {
        let raw = self.raw();
        // SAFETY: librdkafka gives a pointer to so many bytes, or null.
        (!raw.payload.is_null()).then(|| unsafe { bytes(raw.payload, raw.len) })
    }

    /// The key, read in place; `None` when it is null.
    pub fn key(&self) -> Option<&[u8]> {
        let raw = self.raw();
        // SAFETY: as for the value.
        (!raw.key.is_null()).then(|| unsafe { bytes(raw.key, raw.key_len) })
    }

    /// Bytes of key and value.
    pub fn size(&self) -> usize {
        self.raw().len + self.raw().key_len
    }

    /// The record's timestamp in milliseconds since 1970 UTC, if it has one.
    pub fn timestamp(&self) -> Option<i64> {
        let mut kind = rd::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is live.
        let time = unsafe { rd::rd_kafka_message_timestamp(self.0, &raw mut kind) };
        (kind != rd::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE && time >= 0).then_some(time)
    }

    /// Leader epoch of the record, -1 when unknown.
    pub fn leader_epoch(&self) -> i32 {
        // SAFETY: the message is live.
        unsafe { rd::rd_kafka_message_leader_epoch(self.0) }
    }

    /// The record's headers, copied.
    pub fn headers(&self) -> Vec<(String, Vec<u8>)> {
        let mut headers = ptr::null_mut();
        let mut copied = Vec::new();
        // SAFETY: the headers belong to the message and are copied while it is live.
        unsafe {
            if KafkaError::check(rd::rd_kafka_message_headers(self.0, &raw mut headers)).is_err() {
                return copied;
            }
            for index in 0..rd::rd_kafka_header_cnt(headers) {
                let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
                rd::rd_kafka_header_get_all(headers, index, &raw mut name, &raw mut value, &raw mut size);
                copied.push((text(name), bytes(value, size).to_vec()));
            }
        }
        copied
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        // SAFETY: ours, and the last use.
        unsafe { rd::rd_kafka_message_destroy(self.0) }
    }
}

unsafe extern "C" fn on_rebalance(
    rk: *mut rd::rd_kafka_t,
    err: RDKafkaRespErr,
    partitions: *mut rd::rd_kafka_topic_partition_list_t,
    opaque: *mut c_void,
) {
    // SAFETY: the opaque pointer is the client's `Shared`; the list is live during the callback.
    unsafe {
        let shared = &*opaque.cast::<Shared>();
        if shared.closing.load(Ordering::Acquire) {
            rd::rd_kafka_assign(rk, ptr::null());
            return;
        }
        let list = elements(partitions)
            .iter()
            .map(|element| TopicPartition { topic: text(element.topic).into(), partition: element.partition })
            .collect();
        shared.push(match err {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Event::Assign(list),
            _ => Event::Revoke(list),
        });
        rd::rd_kafka_yield(rk);
    }
}

unsafe extern "C" fn on_error(rk: *mut rd::rd_kafka_t, err: c_int, reason: *const c_char, opaque: *mut c_void) {
    // SAFETY: the opaque pointer is the client's `Shared`; the code is one of librdkafka's.
    unsafe {
        let shared = &*opaque.cast::<Shared>();
        let mut message = [0 as c_char; 512];
        let cause = rd::rd_kafka_fatal_error(rk, message.as_mut_ptr(), message.len());
        let fatal = err == RDKafkaRespErr::RD_KAFKA_RESP_ERR__FATAL as c_int;
        // The code of what is not fatal is any number, and nothing is decided by it.
        let error = if fatal {
            KafkaError { code: cause.into(), text: text(message.as_ptr()) }
        } else {
            KafkaError { code: RDKafkaErrorCode::Unknown, text: text(reason) }
        };
        shared.push(Event::Error { error, fatal });
    }
}

unsafe extern "C" fn on_commit(
    _: *mut rd::rd_kafka_t,
    err: RDKafkaRespErr,
    offsets: *mut rd::rd_kafka_topic_partition_list_t,
    opaque: *mut c_void,
) {
    // SAFETY: the opaque pointer is the client's `Shared`; the list is live during the callback.
    unsafe {
        let shared = &*opaque.cast::<Shared>();
        let failed = elements(offsets).iter().map(|element| element.err).find(|code| KafkaError::check(*code).is_err());
        shared.push(Event::Committed(KafkaError::check(err).and(failed.map_or(Ok(()), KafkaError::check))));
    }
}

unsafe extern "C" fn on_log(_: *const rd::rd_kafka_t, level: c_int, facility: *const c_char, line: *const c_char) {
    // SAFETY: both are strings that live during the callback.
    let (facility, line) = unsafe { (text(facility), text(line)) };
    match level {
        0..=3 => tracing::error!(target: "librdkafka", %facility, "{line}"),
        4 => tracing::warn!(target: "librdkafka", %facility, "{line}"),
        5 | 6 => tracing::info!(target: "librdkafka", %facility, "{line}"),
        _ => tracing::debug!(target: "librdkafka", %facility, "{line}"),
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
            let code: RDKafkaRespErr = rd::rd_kafka_error_code(error);
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

fn positions(partitions: &[(TopicPartition, i64)]) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for (partition, offset) in partitions {
        list.add_partition_offset(&partition.topic, partition.partition, rdkafka::Offset::Offset(*offset))
            .map_err(|error| KafkaError { code: RDKafkaErrorCode::InvalidArgument, text: error.to_string() })?;
    }
    Ok(list)
}

fn names(partitions: &[TopicPartition]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for partition in partitions {
        list.add_partition(&partition.topic, partition.partition);
    }
    list
}

fn commit_list(commits: &[Commit]) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::with_capacity(commits.len());
    for commit in commits {
        let mut element = list.add_partition(&commit.partition.topic, commit.partition.partition);
        element
            .set_offset(rdkafka::Offset::Offset(commit.offset))
            .map_err(|error| KafkaError { code: RDKafkaErrorCode::InvalidArgument, text: error.to_string() })?;
        element.set_metadata(&commit.metadata);
        // SAFETY: the element just added is the last one.
        unsafe {
            let native = list.ptr();
            let last = (*native).elems.add((*native).cnt as usize - 1);
            rd::rd_kafka_topic_partition_set_leader_epoch(last, commit.leader_epoch);
        }
    }
    Ok(list)
}

fn first_error(list: &TopicPartitionList) -> Result<(), KafkaError> {
    // SAFETY: the list is live.
    unsafe { elements(list.ptr()) }.iter().try_for_each(|element| KafkaError::check(element.err))
}

fn millis(duration: Duration) -> c_int {
    c_int::try_from(duration.as_millis()).unwrap_or(c_int::MAX)
}

fn c_string(text: &str) -> Result<CString, KafkaError> {
    CString::new(text).map_err(|_| KafkaError {
        code: RDKafkaErrorCode::InvalidArgument,
        text: format!("topic name `{}` has a NUL byte", text.escape_debug()),
    })
}

/// What plain metadata say of a topic: no id.
///
/// # Safety
/// `topic` is live.
unsafe fn plain(topic: &rd::rd_kafka_metadata_topic) -> (String, Result<TopicInfo, KafkaError>) {
    // SAFETY: by the contract above.
    let name = unsafe { text(topic.topic) };
    let info = TopicInfo { name: name.clone(), id: String::new(), partitions: topic.partition_cnt };
    (name, KafkaError::check(topic.err).map(|()| info))
}

/// # Safety
/// `data` points to `count` values that outlive the slice, or `count` is not positive.
unsafe fn slice<'a, T>(data: *const T, count: c_int) -> &'a [T] {
    match usize::try_from(count) {
        // SAFETY: by the contract above.
        Ok(count) if count > 0 => unsafe { std::slice::from_raw_parts(data, count) },
        _ => &[],
    }
}

/// # Safety
/// `list` is null or a live list, which outlives the slice.
unsafe fn elements<'a>(list: *mut rd::rd_kafka_topic_partition_list_t) -> &'a [rd::rd_kafka_topic_partition_t] {
    // SAFETY: by the contract above.
    unsafe { if list.is_null() { &[] } else { slice((*list).elems, (*list).cnt) } }
}

/// # Safety
/// `data` is null or points to `size` bytes that outlive the slice.
unsafe fn bytes<'a>(data: *const c_void, size: usize) -> &'a [u8] {
    if data.is_null() || size == 0 {
        return &[];
    }
    // SAFETY: by the contract above.
    unsafe { std::slice::from_raw_parts(data.cast(), size) }
}

/// # Safety
/// `string` is null or a NUL-terminated string.
unsafe fn text(string: *const c_char) -> String {
    if string.is_null() {
        return String::new();
    }
    // SAFETY: by the contract above.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned()
}
