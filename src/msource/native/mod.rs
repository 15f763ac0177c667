//! The thin safe layer over librdkafka's C interface: all of the project's C is behind it.
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

mod asking;
mod borrowed;
mod brokers;
mod close;
mod code;
mod coordinator;
mod list;
mod message;
mod offsets;
mod rights;
mod step;

pub use close::{PATIENCE as CLOSE_PATIENCE, Remains};
pub use coordinator::Coordinator;
pub use message::{CutOff, Message};
pub use rights::Reading;
pub use step::GroupStep;
use step::Target;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::{CString, c_char, c_int, c_void};
use std::fmt;
use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::bindings as rd;
use rdkafka::types::{RDKafkaErrorCode, RDKafkaRespErr};
use rdkafka::{ClientConfig, TopicPartitionList};

use super::TopicPartition;
use borrowed::{bytes, text};
use brokers::Brokers;
use code::raw;
use list::{
    NOT_ANSWERED, c_string, commit_list, elements, first_error, millis, names, places_list, positions, unanswered,
};

/// What librdkafka logs for us to read.
const LISTENED: &str = "metadata,cgrp";

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

/// What librdkafka tells besides records.
#[derive(Clone, Debug)]
pub enum Event {
    /// The group gives us these partitions; to be answered with one of the `assign` calls.
    Assign(Vec<TopicPartition>),
    /// The group takes these partitions back; to be answered with one of the `unassign` calls.
    Revoke(Vec<TopicPartition>),
    /// A client-level error, such as an unreachable broker, for people: its code says how much it explains.
    Error(KafkaError),
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
    /// Leader epoch of the record before it, -1 when unknown.
    pub leader_epoch: i32,
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

/// The code for each partition.
type Answers = BTreeMap<(String, i32), c_int>;

struct Shared {
    events: Mutex<VecDeque<Event>>,
    /// Answers to asynchronous commits.
    answers: Mutex<VecDeque<Result<(), KafkaError>>>,
    /// Commits whose answers are waited for, by number, and what was answered for each partition.
    awaited: Mutex<HashMap<usize, Option<Answers>>>,
    next_commit: AtomicUsize,
    closing: AtomicBool,
    /// Whether a rebalance was told and not answered yet. librdkafka would wait for the answer when it is closed.
    unanswered: AtomicBool,
    /// The ids by which topics are fetched, and how often one of them changed.
    topic_ids: Mutex<HashMap<String, String>>,
    id_changes: AtomicU64,
    /// Whether librdkafka knows brokers.
    brokers: Mutex<Brokers>,
    /// How far it is on its way into the group.
    step: Mutex<Option<GroupStep>>,
    /// What the group gives it, and whether the group knows that it took it.
    target: Mutex<Target>,
    /// The last id that the group gave it. librdkafka forgets it when it gives a membership up.
    member_id: Mutex<String>,
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
    /// Where answers to asynchronous commits arrive, so that they can be waited for without taking records.
    answers: *mut rd::rd_kafka_queue_t,
    /// How long whoever drops it waits until it is gone.
    patience: Duration,
    /// The brokers that it was configured with.
    configured: CString,
    /// The brokers that lead partitions whose offsets were asked for, as far as the cluster has said.
    leaders: Mutex<HashMap<TopicPartition, i32>>,
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

/// Why librdkafka does not take a property, without its value: that of a misspelt name may be a password, and librdkafka
/// repeats some values in its descriptions.
fn refused_property(error: &rdkafka::error::KafkaError) -> String {
    let rdkafka::error::KafkaError::ClientConfig(_, description, key, value) = error else { return error.to_string() };
    let is_number = value.bytes().all(|byte| byte.is_ascii_digit());
    let description = if is_number { description.clone() } else { description.replace(value.as_str(), "***") };
    format!("{key}: {}", description.trim_end())
}

impl Client {
    /// Makes a consumer. It connects in the background: an absent broker is no error here.
    pub fn new(properties: &BTreeMap<String, String>) -> Result<Self, KafkaError> {
        let mut config = ClientConfig::new();
        for (key, value) in properties {
            config.set(key, value);
        }
        // Tells the ids of topics, the brokers and the steps into the group: see `on_log`.
        let debug = properties.get("debug").filter(|contexts| !contexts.is_empty());
        config.set("debug", debug.map_or(LISTENED.to_owned(), |contexts| format!("{contexts},{LISTENED}")));
        let invalid = |text: String| KafkaError { code: RDKafkaErrorCode::InvalidArgument, text };
        let configured = c_string(properties.get("bootstrap.servers").map_or("", String::as_str))?;
        let native = config.create_native_config().map_err(|error| invalid(refused_property(&error)))?;
        let shared = Arc::new(Shared {
            events: Mutex::default(),
            answers: Mutex::default(),
            awaited: Mutex::default(),
            next_commit: AtomicUsize::new(0),
            closing: AtomicBool::new(false),
            unanswered: AtomicBool::new(false),
            topic_ids: Mutex::default(),
            id_changes: AtomicU64::new(0),
            brokers: Mutex::default(),
            step: Mutex::default(),
            target: Mutex::default(),
            member_id: Mutex::default(),
        });
        let mut message = [0 as c_char; 512];
        // SAFETY: the configuration is valid and, on success, owned by the client, which is why it is not dropped then. The
        // opaque pointer stays valid until the client is destroyed, since `self.shared` is dropped after that.
        let rk = unsafe {
            rd::rd_kafka_conf_set_opaque(native.ptr(), Arc::as_ptr(&shared).cast_mut().cast());
            rd::rd_kafka_conf_set_rebalance_cb(native.ptr(), Some(on_rebalance));
            rd::rd_kafka_conf_set_error_cb(native.ptr(), Some(on_error));
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
        // SAFETY: `rk` is a live consumer; both queues are released in `drop`.
        let (queue, answers) = unsafe {
            rd::rd_kafka_poll_set_consumer(rk);
            (rd::rd_kafka_queue_get_consumer(rk), rd::rd_kafka_queue_new(rk))
        };
        Ok(Self { rk, queue, answers, patience: close::PATIENCE, configured, leaders: Mutex::default(), shared })
    }

    /// Joins the group for these topics (names, or regular expressions with a leading `^`).
    pub fn subscribe(&self, topics: &[String]) -> Result<(), KafkaError> {
        let mut list = TopicPartitionList::new();
        for topic in topics {
            list.add_topic_unassigned(topic);
        }
        // SAFETY: both are live; the list is copied.
        KafkaError::check(unsafe { rd::rd_kafka_subscribe(self.rk, list.ptr()) } as c_int)
    }

    /// Leaves the group, also as a static member: the group forgets it. What was assigned is revoked first.
    pub fn unsubscribe(&self) -> Result<(), KafkaError> {
        // SAFETY: the client is live.
        KafkaError::check(unsafe { rd::rd_kafka_unsubscribe(self.rk) } as c_int)
    }

    /// Takes up to `most` messages, waiting up to `wait` for as many: a zero wait takes what is there. Records and
    /// partition errors both come as messages, in order within a partition. Serves callbacks, which become events.
    pub fn consume(&self, into: &mut Vec<Message>, most: usize, wait: Duration) {
        // SAFETY: the queue is live.
        unsafe { consume(self.queue, into, most, wait) }
    }

    /// How many messages and callbacks wait to be taken.
    pub fn queued(&self) -> usize {
        // SAFETY: the queue is live.
        unsafe { rd::rd_kafka_queue_length(self.queue) }
    }

    /// The next event, if any.
    pub fn next_event(&self) -> Option<Event> {
        self.keep_brokers();
        self.shared.events.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// Whether an event waits.
    pub fn has_event(&self) -> bool {
        !self.shared.events.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// How far the client is on its way into the group; `None` without one, or before the first step.
    pub fn group_step(&self) -> Option<GroupStep> {
        *self.shared.step.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The errors of connections since this was last asked, for a client that only asks: nothing else takes its events.
    pub fn connection_errors(&self) -> Vec<KafkaError> {
        self.consume(&mut Vec::new(), 1, Duration::ZERO);
        let events = std::iter::from_fn(|| self.next_event());
        events.filter_map(|event| if let Event::Error(error) = event { Some(error) } else { None }).collect()
    }

    /// Whether the group agrees with what was assigned and answered last. Only the new protocol (KIP-848) has a time in which it
    /// does not.
    pub fn is_agreed(&self) -> bool {
        self.shared.target.lock().unwrap_or_else(PoisonError::into_inner).is_agreed()
    }

    /// Why this client can do nothing any more and has to be replaced, if so.
    pub fn fatal_error(&self) -> Option<KafkaError> {
        let mut message = [0 as c_char; 512];
        // SAFETY: the client is live; the text is NUL-terminated within the buffer.
        unsafe {
            let code = code::rd_kafka_fatal_error(self.rk, message.as_mut_ptr(), message.len());
            let text = || text(message.as_ptr());
            KafkaError::check(code).err().map(|error| KafkaError { text: text(), ..error })
        }
    }

    /// How often the id by which a topic is fetched was learned or has changed. What was taken before this number rose is of
    /// the topic that it was before; what is taken after may be of another one.
    pub fn id_changes(&self) -> u64 {
        self.shared.id_changes.load(Ordering::Acquire)
    }

    /// The id by which a topic is fetched, in base64; `None` until it was learned.
    pub fn topic_id(&self, topic: &str) -> Option<String> {
        self.shared.topic_ids.lock().unwrap_or_else(PoisonError::into_inner).get(topic).cloned()
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
        self.answered();
        // SAFETY: both are live; the list is copied.
        KafkaError::check(unsafe { rd::rd_kafka_assign(self.rk, list.ptr()) } as c_int)
    }

    /// Gives up the whole assignment.
    pub fn unassign(&self) -> Result<(), KafkaError> {
        self.answered();
        // SAFETY: a null list means none.
        KafkaError::check(unsafe { rd::rd_kafka_assign(self.rk, ptr::null()) } as c_int)
    }

    /// Adds partitions to the assignment; each is read from its offset.
    pub fn incremental_assign(&self, partitions: &[(TopicPartition, i64)]) -> Result<(), KafkaError> {
        let list = positions(partitions)?;
        self.answered();
        // SAFETY: both are live; the list is copied; the error object is ours.
        unsafe { KafkaError::check_object(rd::rd_kafka_incremental_assign(self.rk, list.ptr())) }
    }

    /// Takes partitions out of the assignment.
    pub fn incremental_unassign(&self, partitions: &[TopicPartition]) -> Result<(), KafkaError> {
        let list = names(partitions);
        self.answered();
        // SAFETY: both are live; the list is copied; the error object is ours.
        unsafe { KafkaError::check_object(rd::rd_kafka_incremental_unassign(self.rk, list.ptr())) }
    }

    fn answered(&self) {
        self.shared.unanswered.store(false, Ordering::Release);
    }

    /// Stops fetching these partitions; what was fetched but not taken is dropped.
    pub fn pause(&self, partitions: &[TopicPartition]) -> Result<(), KafkaError> {
        let list = names(partitions);
        // SAFETY: both are live.
        KafkaError::check(unsafe { rd::rd_kafka_pause_partitions(self.rk, list.ptr()) } as c_int)
    }

    /// Fetches them again, from the first record that was not taken.
    pub fn resume(&self, partitions: &[TopicPartition]) -> Result<(), KafkaError> {
        let list = names(partitions);
        // SAFETY: both are live.
        KafkaError::check(unsafe { rd::rd_kafka_resume_partitions(self.rk, list.ptr()) } as c_int)
    }

    /// Reads assigned partitions from other offsets; nothing that was fetched before is handed out after this. With the
    /// leader epoch of the record before the offset (else -1), the broker is asked first whether it still has that record:
    /// see [`Message::truncated_at`].
    pub fn seek(&self, places: &[(TopicPartition, i64, i32)], timeout: Duration) -> Result<(), KafkaError> {
        let list = places_list(places)?;
        // SAFETY: both are live; the error object is ours; results are in the list.
        unsafe { KafkaError::check_object(rd::rd_kafka_seek_partitions(self.rk, list.ptr(), millis(timeout)))? };
        first_error(&list)
    }

    /// Sends a commit; the answer is given by [`Client::commit_answer`]. A commit that got none is sent again by librdkafka, also
    /// after later ones: with two on their way, the older one may win.
    pub fn commit_async(&self, commits: &[Commit]) -> Result<(), KafkaError> {
        let list = unanswered(commit_list(commits)?);
        let opaque = Arc::as_ptr(&self.shared).cast_mut().cast();
        // SAFETY: all are live; the list is copied. The callback is called from `commit_answer` alone, which borrows the client.
        let sent = unsafe { code::rd_kafka_commit_queue(self.rk, list.ptr(), self.answers, Some(on_commit), opaque) };
        KafkaError::check(sent)
    }

    /// The answer to an asynchronous commit, waiting for it so long.
    pub fn commit_answer(&self, wait: Duration) -> Option<Result<(), KafkaError>> {
        // SAFETY: the queue is live, and only commits answer into it.
        unsafe { rd::rd_kafka_queue_poll_callback(self.answers, millis(wait)) };
        self.shared.answers.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// Commits and waits for the group's answer, which is given for each partition in the order asked.
    pub fn commit(&self, commits: &[Commit], timeout: Duration) -> Result<Vec<Result<(), KafkaError>>, KafkaError> {
        let list = unanswered(commit_list(commits)?);
        let deadline = Instant::now() + timeout;
        let awaited = || self.shared.awaited.lock().unwrap_or_else(PoisonError::into_inner);
        let number = self.shared.next_commit.fetch_add(1, Ordering::Relaxed);
        awaited().insert(number, None);
        // SAFETY: all are live, and the list is copied. The callback comes from polling below, and looks its number up.
        let sent = unsafe {
            let queue = rd::rd_kafka_queue_new(self.rk);
            let opaque = ptr::without_provenance_mut(number);
            let sent =
                KafkaError::check(code::rd_kafka_commit_queue(self.rk, list.ptr(), queue, Some(on_awaited), opaque));
            while sent.is_ok() && awaited().get(&number).is_some_and(Option::is_none) && Instant::now() < deadline {
                rd::rd_kafka_queue_poll_callback(queue, millis(deadline.saturating_duration_since(Instant::now())));
            }
            rd::rd_kafka_queue_destroy(queue);
            sent
        };
        let answers = awaited().remove(&number).flatten();
        sent?;
        let answers = answers.ok_or_else(|| KafkaError::of(RDKafkaRespErr::RD_KAFKA_RESP_ERR__TIMED_OUT))?;
        let answer = |commit: &Commit| {
            let key = (commit.partition.topic.to_string(), commit.partition.partition);
            let missing = RDKafkaRespErr::RD_KAFKA_RESP_ERR__NO_OFFSET as c_int;
            KafkaError::check(answers.get(&key).copied().unwrap_or(missing))
        };
        Ok(commits.iter().map(answer).collect())
    }

    /// The group's offsets, in the order asked; `None` where it has none, an error where it cannot tell.
    pub fn committed(
        &self,
        partitions: &[TopicPartition],
        timeout: Duration,
    ) -> Result<Vec<Result<Option<GroupOffset>, KafkaError>>, KafkaError> {
        let list = unanswered(names(partitions));
        // SAFETY: both are live; results are put into the list.
        KafkaError::check(unsafe { code::rd_kafka_committed(self.rk, list.ptr(), millis(timeout)) })?;
        let read = |element: &rd::rd_kafka_topic_partition_t| {
            // SAFETY: the element is live.
            KafkaError::check(unsafe { raw(&raw const element.err) })?;
            // SAFETY: librdkafka gives a pointer to so many bytes, or null.
            let metadata = unsafe { bytes(element.metadata, element.metadata_size) };
            let metadata = String::from_utf8_lossy(metadata).into_owned();
            // SAFETY: the element is live.
            let leader_epoch = unsafe { rd::rd_kafka_topic_partition_get_leader_epoch(element) };
            Ok((element.offset >= 0).then_some(GroupOffset { offset: element.offset, leader_epoch, metadata }))
        };
        // SAFETY: the list is live.
        Ok(unsafe { elements(list.ptr()) }.iter().map(read).collect())
    }
}

/// Takes up to `most` messages from a queue.
///
/// # Safety
/// The queue is live.
unsafe fn consume(queue: *mut rd::rd_kafka_queue_t, into: &mut Vec<Message>, most: usize, wait: Duration) {
    into.reserve(most);
    let spare = into.spare_capacity_mut();
    let wait = c_int::try_from(wait.as_millis()).unwrap_or(c_int::MAX);
    // SAFETY: `Message` is a transparent wrapper of the message pointer, there is room for `most` of them, and exactly the
    // returned number has been written, each owned by us.
    unsafe {
        let got = rd::rd_kafka_consume_batch_queue(queue, wait, spare.as_mut_ptr().cast(), most.min(spare.len()));
        into.set_len(into.len() + usize::try_from(got).unwrap_or(0));
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
        shared.unanswered.store(true, Ordering::Release);
        shared.push(match err {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Event::Assign(list),
            _ => Event::Revoke(list),
        });
        // Not followed by `rd_kafka_yield`: `rd_kafka_consume_batch_queue` then drops the message that is next in its queue.
    }
}

unsafe extern "C" fn on_error(_: *mut rd::rd_kafka_t, code: c_int, reason: *const c_char, opaque: *mut c_void) {
    // SAFETY: the opaque pointer is the client's `Shared`; the reason is a string that lives during the callback.
    unsafe {
        let shared = &*opaque.cast::<Shared>();
        shared.push(Event::Error(KafkaError { code: client_error(code), text: text(reason) }));
    }
}

/// The code of an error of the client; those that explain nothing further are one.
fn client_error(code: c_int) -> RDKafkaErrorCode {
    use RDKafkaRespErr as Raw;
    let known = [
        Raw::RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN,
        Raw::RD_KAFKA_RESP_ERR__TRANSPORT,
        Raw::RD_KAFKA_RESP_ERR__TIMED_OUT,
        Raw::RD_KAFKA_RESP_ERR__DESTROY,
        Raw::RD_KAFKA_RESP_ERR__RESOLVE,
        Raw::RD_KAFKA_RESP_ERR__SSL,
        Raw::RD_KAFKA_RESP_ERR__AUTHENTICATION,
        Raw::RD_KAFKA_RESP_ERR__BAD_MSG,
        Raw::RD_KAFKA_RESP_ERR__FATAL,
    ];
    known.into_iter().find(|known| *known as c_int == code).map_or(RDKafkaErrorCode::Unknown, Into::into)
}

unsafe extern "C" fn on_commit(
    _: *mut rd::rd_kafka_t,
    err: c_int,
    offsets: *mut rd::rd_kafka_topic_partition_list_t,
    opaque: *mut c_void,
) {
    // SAFETY: the opaque pointer is the client's `Shared`; the list is live during the callback.
    unsafe {
        let shared = &*opaque.cast::<Shared>();
        let failed = elements(offsets).iter().map(|element| raw(&raw const element.err)).find(|code| *code != 0);
        let answer = KafkaError::check(err).and(failed.map_or(Ok(()), KafkaError::check));
        shared.answers.lock().unwrap_or_else(PoisonError::into_inner).push_back(answer);
    }
}

/// Answers a commit that is waited for.
unsafe extern "C" fn on_awaited(
    rk: *mut rd::rd_kafka_t,
    err: c_int,
    offsets: *mut rd::rd_kafka_topic_partition_list_t,
    number: *mut c_void,
) {
    // SAFETY: the client's opaque pointer is its `Shared`; the list is live during the callback.
    unsafe {
        let shared = &*rd::rd_kafka_opaque(rk).cast::<Shared>();
        // An error of the whole request stands beside the list, whose elements then have no answer of their own, or, where
        // librdkafka itself gave up, what a broker answered to an earlier attempt.
        let of_all = |own| if err < 0 || (own == NOT_ANSWERED as c_int && err != 0) { err } else { own };
        let found = elements(offsets)
            .iter()
            .map(|element| ((text(element.topic), element.partition), of_all(raw(&raw const element.err))))
            .collect();
        if let Some(place) = shared.awaited.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&number.addr()) {
            *place = Some(found);
        }
    }
}

/// Besides passing lines on, learns by which id each topic is fetched, by which id the group knows this member, how far it is on
/// its way into the group, and whether there are brokers.
///
/// When a topic was deleted and another one of its name made, librdkafka goes on at the old offset in the new topic and
/// tells nobody, but it logs the new id just before it uses it, on the thread that would use it.
unsafe extern "C" fn on_log(rk: *const rd::rd_kafka_t, level: c_int, facility: *const c_char, line: *const c_char) {
    // SAFETY: both are strings that live during the callback.
    let (facility, line) = unsafe { (text(facility), text(line)) };
    // SAFETY: the opaque pointer is the client's `Shared`. What is read of it below is logged by a client that is there.
    let shared = || unsafe { &*rd::rd_kafka_opaque(rk).cast::<Shared>() };
    match facility.as_str() {
        "METADATA" | "BLACKLIST" => {
            if let Some((topic, id)) = changed_id(&line) {
                let mut ids = shared().topic_ids.lock().unwrap_or_else(PoisonError::into_inner);
                ids.insert(topic.to_owned(), id.to_owned());
                shared().id_changes.fetch_add(1, Ordering::Release);
            }
            shared().brokers.lock().unwrap_or_else(PoisonError::into_inner).read(&facility, &line);
        }
        "MEMBERID" => {
            if let Some(id) = given_id(&line) {
                id.clone_into(&mut shared().member_id.lock().unwrap_or_else(PoisonError::into_inner));
            }
        }
        "HEARTBEAT" => shared().target.lock().unwrap_or_else(PoisonError::into_inner).read(&line),
        _ => {
            if let Some(step) = GroupStep::read(&facility, &line) {
                *shared().step.lock().unwrap_or_else(PoisonError::into_inner) = Some(step);
            }
        }
    }
    // Whoever asked is told that no answer came.
    let level = if facility == "REQTMOUT" { level.max(6) } else { level };
    match level {
        0..=2 => tracing::error!(target: "librdkafka", %facility, "{line}"),
        // A refused connection is one of its errors, and nothing that is lost by it.
        3 | 4 => tracing::warn!(target: "librdkafka", %facility, "{line}"),
        5 | 6 => tracing::info!(target: "librdkafka", %facility, "{line}"),
        _ => tracing::debug!(target: "librdkafka", %facility, "{line}"),
    }
}

/// Topic and new id in librdkafka's line `Topic NAME changed id from OLD to NEW`.
fn changed_id(line: &str) -> Option<(&str, &str)> {
    let (head, ids) = line.rsplit_once(" changed id from ")?;
    let (_, topic) = head.rsplit_once("Topic ")?;
    let (_, new) = ids.split_once(" to ")?;
    Some((topic, new))
}

/// The new id in librdkafka's line `Group "NAME": updating member id "OLD" -> "NEW"`, if it is one.
fn given_id(line: &str) -> Option<&str> {
    let (_, new) = line.rsplit_once("-> \"")?;
    new.strip_suffix('"').filter(|id| !id.is_empty() && *id != "(not-set)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_that_the_group_gives_is_read_from_librdkafkas_line() {
        let line = |old, new| format!("[thrd:main]: Group \"a -> b\": updating member id \"{old}\" -> \"{new}\"");
        assert_eq!(given_id(&line("(not-set)", "one-1")), Some("one-1"));
        assert_eq!(given_id(&line("one-1", "")), None);
        assert_eq!(given_id(&line("one-1", "(not-set)")), None);
        assert_eq!(given_id("no id at all"), None);
    }

    #[test]
    fn patterns_that_are_taken_mean_the_same_to_both_engines() {
        use std::ffi::CString;

        use nix::libc::{REG_EXTENDED, REG_NOSUB, regcomp, regex_t, regexec, regfree};
        use proptest::prelude::*;

        const PIECES: [&str; 18] = [
            "a", "b", "_", "-", r"\.", ".", "[ab]", "[^a]", "[a-b._-]", "(", ")", "|", "*", "+", "?", "{2}", "{1,2}",
            "$",
        ];
        let pattern = prop::collection::vec(prop::sample::select(&PIECES[..]), 1..8).prop_map(|pieces| pieces.concat());
        let runner = proptest::test_runner::Config::with_cases(4000);
        proptest!(runner, |(pattern in pattern, names in prop::collection::vec("[ab._-]{0,6}", 8))| {
            let pattern = format!("^{pattern}");
            if crate::config::check_pattern(&pattern).is_err() {
                return Ok(());
            }
            let ours = regex_lite::Regex::new(&pattern).map_err(|error| TestCaseError::fail(error.to_string()))?;
            let text = CString::new(pattern.clone()).expect("no zero in it");
            // SAFETY: all zeros is a valid value of the plain structure, and `regcomp` overwrites it.
            let mut theirs: regex_t = unsafe { std::mem::zeroed() };
            // SAFETY: both are live, and the text ends with a zero.
            let compiled = unsafe { regcomp(&raw mut theirs, text.as_ptr(), REG_EXTENDED | REG_NOSUB) };
            prop_assert_eq!(compiled, 0, "{}", &pattern);
            for name in names {
                let text = CString::new(name.clone()).expect("no zero in it");
                // SAFETY: the expression was compiled, the text ends with a zero, and nothing is written without a place.
                let found = unsafe { regexec(&raw const theirs, text.as_ptr(), 0, ptr::null_mut(), 0) };
                prop_assert_eq!(found == 0, ours.is_match(&name), "{} on {}", &pattern, name);
            }
            // SAFETY: it was compiled, and is used no more.
            unsafe { regfree(&raw mut theirs) };
        });
    }

    /// librdkafka sends it again by itself when the coordinator is loading, and keeps in the list what was answered then.
    #[test]
    fn a_commit_whose_last_attempt_was_lost_is_not_known_whatever_an_earlier_one_was_told() {
        use rdkafka::mocking::MockCluster;
        use rdkafka::types::RDKafkaApiKey;

        let brokers = MockCluster::new(1).expect("brokers");
        brokers.create_topic("t", 1, 1).expect("a topic");
        let properties = [
            ("bootstrap.servers", brokers.bootstrap_servers()),
            ("group.id", "g".to_owned()),
            ("retry.backoff.ms", "10".to_owned()),
            ("reconnect.backoff.ms", "10".to_owned()),
        ];
        let client = Client::new(&properties.map(|(key, value)| (key.to_owned(), value)).into()).expect("a client");
        let partition = TopicPartition { topic: "t".into(), partition: 0 };
        let commit = Commit { partition, offset: 5, leader_epoch: -1, metadata: String::new() };
        let commits = std::slice::from_ref(&commit);
        assert_eq!(client.commit(commits, Duration::from_mins(1)), Ok(vec![Ok(())]));
        let told = RDKafkaRespErr::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS;
        let lost = RDKafkaRespErr::RD_KAFKA_RESP_ERR__TRANSPORT;
        brokers.request_errors(RDKafkaApiKey::OffsetCommit, &[&[told][..], &[lost; 9]].concat());
        let answer = client.commit(commits, Duration::from_secs(5));
        let error = answer.and_then(|mut answers| answers.remove(0)).expect_err("the last attempt was lost");
        assert!((error.code as i32) < 0, "{error:?} is taken for an answer");
    }

    #[test]
    fn the_new_id_of_a_topic_is_found_in_its_line() {
        let line = "[thrd:main]: Topic Topic.a changed id from AAAAAAAAAAAAAAAAAAAAAA to kQ1-aB_xTkGzO0bb1q1zAA";
        assert_eq!(changed_id(line), Some(("Topic.a", "kQ1-aB_xTkGzO0bb1q1zAA")));
        assert_eq!(changed_id("[thrd:main]: Topic t [0] Leader 1 Epoch 0"), None);
    }
}
