//! The consumer thread: takes records from Kafka in batches, cuts them into blocks, and answers the group.
//!
//! **Promise.** No partition is fetched before its start is durable (and, in a group, acknowledged by the group). A block
//! begins where the one before it ended: offsets without a record of their own (control records, aborted and
//! compacted-away ones) belong to the block around them, so that lag reaches 0. When a partition is taken away, its blocks are
//! finished, checkpointed and committed first; when it was lost, what was read of it is dropped.
//!
//! A record goes through `take`, into the open block of its `slot`, while there is `room`. `starts` finds out where a partition
//! begins and `fetching` has it read; `gaps` and `topics` answer what is not there any more;
//! `refusal` and `topic_ids` decide what brokers' answers mean, and `blocked` keeps what cannot be unpacked. `group` and `seals`
//! speak with the group, `outcome` knows its answers, `given_up` takes out of a seal what the group refuses, and `held` shows
//! what waits. `elsewhere` looks at what is not ours, `rights` asks for those that are missing, `answer` sees to it that the
//! group is answered in time, `static_member` looks at what one is given back, `share` knows whether others have everything, and
//! the `watchdog` looks at all of it.
//!
//! **No wait without end.** Whoever needs an answer of the delivery waits for it some seconds at most, and looks again in a
//! later pass: meanwhile the group is served.
//!
//! **Memory.** Records are counted against the `Budget` from the moment they are taken, compressed values also for what
//! they become: when the first one of a block is compressed, each of its values is asked. Without room the thread takes
//! nothing; after five seconds of that it pauses its partitions, so that it can serve the group meanwhile.
//!
//! **How it fails.** What may pass (no broker, no topic yet, a coordinator that is loading) is shown and waited for. A fatal
//! error of the client, one that stands still or is cut off, and a topic made again get another client. Only `out_of_range: stop`, clients
//! that do not end, and a broken delivery end the thread.

mod answer;
mod begun;
mod blocked;
mod elsewhere;
mod fetching;
mod gaps;
mod given_up;
mod group;
mod held;
mod outcome;
mod parts;
mod reassigned;
mod refusal;
mod rights;
mod room;
mod seals;
mod share;
mod slot;
mod starts;
mod static_member;
mod subscription;
mod take;
#[cfg(test)]
mod tests;
mod topic_ids;
mod topics;
mod trouble;
mod watchdog;

pub(super) use blocked::Unreadable;
pub(super) use gaps::end_of_damage;

pub use outcome::is_answer;
pub use parts::{Cut, Desk, Parts};
pub use starts::{Meant, topic_names, unmatched_text};
pub use trouble::Weight;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::Receiver;
use rdkafka::types::RDKafkaErrorCode as Code;

use super::TopicPartition;
use super::assignment::Carried;
use super::doubt::DOUBT;
use super::native::{CLOSE_PATIENCE, Client, GroupOffset, KafkaError, Message, OffsetSpec, Remains};
use super::outlast::Outlast;
use super::properties::session;
use crate::config::Assignment;
use crate::control;
use crate::delivery::Finish;
use crate::fault;
use answer::Unanswered;
use held::Held;
use reassigned::Reassigned;
use share::Share;
use slot::Slot;
use static_member::StaticMember;
use subscription::Subscription;
use trouble::Trouble;
use watchdog::Watchdog;

/// How long the thread waits for room before it pauses its partitions.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest wait for records: how soon an idle thread notices anything else.
const IDLE_WAIT: Duration = Duration::from_millis(200);

/// Messages taken at once.
const BATCH: usize = 2048;

/// Bound on one request to a broker.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a service that stops waits for the group to take its offsets. They are saved here already.
const LAST_COMMIT: Duration = Duration::from_secs(5);

/// How long the end may take besides the drain: what it is doing, what may not be ours any more, the last word with the group, and
/// the end of the client.
pub const LONGEST_END: Duration = {
    let last = if LAST_COMMIT.as_secs() > elsewhere::LAST_LOOK.as_secs() {
        LAST_COMMIT
    } else {
        elsewhere::LAST_LOOK.saturating_add(RETRY)
    };
    REQUEST_TIMEOUT.saturating_add(PATIENCE).saturating_add(last).saturating_add(CLOSE_PATIENCE)
};

/// Pause after a request that failed, and between looks at what is waited for.
const RETRY: Duration = Duration::from_secs(1);

/// Why the consumer cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client cannot be made.
    #[error("cannot make a Kafka client; check `kafka.librdkafka`")]
    Client(#[source] KafkaError),
    /// `out_of_range: stop`.
    #[error(
        "{partition}: the stored offset {offset} is out of the range {low}..{high} that the broker has, and `kafka.out_of_range` is `stop`; move it with `set_offset`"
    )]
    OutOfRange {
        /// The partition.
        partition: TopicPartition,
        /// Where it stands.
        offset: i64,
        /// Low watermark.
        low: i64,
        /// High watermark.
        high: i64,
    },
    /// `out_of_range: stop`, and the log was cut off.
    #[error(
        "{partition}: the broker's log was cut off at {end}, before the stored offset {offset}, and `kafka.out_of_range` is `stop`; move it with `set_offset`"
    )]
    Truncated {
        /// The partition.
        partition: TopicPartition,
        /// Where it stands.
        offset: i64,
        /// Where the log was cut off, as far as the broker knows.
        end: i64,
    },
    /// Clients that were replaced do not end.
    #[error(
        "{0} Kafka clients that stood still hang in their own end and keep what they hold; start the service again, which loses and repeats nothing"
    )]
    Left(usize),
    /// The delivery or the workers are gone; they tell why.
    #[error("the delivery ended")]
    Closed,
}

/// Whether a commit is on its way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum InFlight {
    No,
    Yes,
    /// It was sent before the last assignment was told: that it is refused says nothing about this member's part in that.
    Outdated,
}

/// Whether a warning was given.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Said {
    No,
    Yes,
}

/// A client that can do nothing any more.
#[derive(Clone, Copy)]
struct Failed {
    code: Code,
    /// When it may be replaced.
    again: Instant,
}

/// See the module.
pub struct Consumer {
    parts: Parts,
    /// Bound on a decompressed value, bytes.
    payload_limit: usize,
    slots: Vec<Slot>,
    /// By topic key of the client and partition number; rebuilt when the assignment changes.
    index: HashMap<(usize, i32), Option<usize>>,
    /// Assigned, but their start is not known yet.
    pending: BTreeSet<TopicPartition>,
    held: Held,
    share: Share,
    subscription: Subscription,
    static_member: StaticMember,
    /// Whether librdkafka waits for an answer to the assignment of some of these.
    unanswered: Unanswered,
    /// Answered once everything is durable that was sent before the pending partitions were given to us.
    settling: Option<Receiver<()>>,
    /// Answered once everything is durable that partitions stand for which went back, or whose topic is no more.
    standing: Option<Receiver<()>>,
    /// Answered once what is hidden of topics that are no more is published.
    publishing: Option<Receiver<()>>,
    retry_at: Instant,
    discover_at: Instant,
    batch: Vec<Message>,
    paused: bool,
    no_room_since: Option<Instant>,
    ahead: room::Ahead,
    /// Why there are no records: shown until some come.
    trouble: Trouble,
    rights: rights::Rights,
    probe_at: Instant,
    version: u64,
    /// When commits may be sent again, after one was refused.
    commit_at: Instant,
    commit_in_flight: InFlight,
    /// Since when commits are sent and none is answered, and whether that was told.
    unanswered_since: Option<(Instant, Said)>,
    /// Since when the group refuses commits as those of no member, although it has revoked nothing.
    stranger_since: Option<Instant>,
    /// Since when it is not known whether the group agrees with what it gave.
    disagreed_since: Option<Instant>,
    /// The seal that the group is asked to take.
    asked: Option<seals::Asked>,
    /// Those whose ranges left a seal, since the group does not take them.
    given_up: Vec<TopicPartition>,
    rejoin: seals::Rejoin,
    reassigned: Reassigned,
    /// Whether partitions are being given up: the group is asked no longer than we are a member then.
    leaving: outcome::Leaving,
    /// When to ask again about what is hidden of partitions that are not ours.
    look_at: Instant,
    /// Whether commits of an earlier run can still come.
    outlast: Outlast,
    /// Since when that is not answered, and whether that was told.
    unknown_since: Option<(Instant, Said)>,
    /// What the group had for each partition when it was asked last.
    found: HashMap<TopicPartition, Option<GroupOffset>>,
    /// Ours of which the group has not taken a prepared range. It is told once more where they stand before they are read, so that
    /// our commit loses even if it comes to light later, in a log of the coordinator's that was thought to be cut off.
    refused: BTreeSet<TopicPartition>,
    /// What every commit of each partition carries on of the owners before us.
    carried: HashMap<TopicPartition, Carried>,
    /// How many partitions each topic had when the group began to read it, as far as that is known.
    begun_with: HashMap<Arc<str>, i32>,
    /// Whether the client has to be replaced.
    failed: Option<Failed>,
    /// Pause before the next client that fails is replaced.
    retry_pause: Duration,
    /// How long an answer must last that takes records away, and may be a passing one.
    patience: Duration,
    /// How many changes of topic ids were looked at.
    ids_seen: u64,
    topics: topic_ids::TopicIds,
    /// Those that stand still before a batch that cannot be unpacked.
    blocked: blocked::Blocked,
    watchdog: Watchdog,
    /// Clients before this one that may not have ended yet.
    left: Vec<Remains>,
    /// Last, so that it is dropped last: it waits until every message is gone.
    client: Client,
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer").field("slots", &self.slots.len()).finish_non_exhaustive()
    }
}

impl Consumer {
    /// Makes the client; it connects in the background.
    pub fn new(parts: Parts) -> Result<Self, Error> {
        let client = Client::new(&parts.properties).map_err(Error::Client)?;
        let now = Instant::now();
        // The largest value is as much of the memory bound as librdkafka's queue is.
        let payload_limit = parts.desk.engine().payload_limit;
        let outlast = Outlast::since(now, session(&parts.config));
        Ok(Self {
            payload_limit,
            subscription: Subscription::of(&parts.config),
            static_member: StaticMember::of(&parts.config),
            parts,
            client,
            slots: Vec::new(),
            index: HashMap::new(),
            pending: BTreeSet::new(),
            held: Held::default(),
            share: Share::default(),
            unanswered: Unanswered::default(),
            settling: None,
            standing: None,
            publishing: None,
            retry_at: now,
            discover_at: now,
            batch: Vec::with_capacity(BATCH),
            paused: false,
            no_room_since: None,
            ahead: room::Ahead::new(payload_limit as u64),
            trouble: Trouble::default(),
            rights: rights::Rights::default(),
            probe_at: now,
            version: 0,
            commit_at: now,
            commit_in_flight: InFlight::No,
            unanswered_since: None,
            stranger_since: None,
            disagreed_since: None,
            asked: None,
            given_up: Vec::new(),
            rejoin: seals::Rejoin::No,
            reassigned: Reassigned::No,
            leaving: outcome::Leaving::No,
            look_at: now,
            outlast,
            unknown_since: None,
            found: HashMap::new(),
            refused: BTreeSet::new(),
            carried: HashMap::new(),
            begun_with: HashMap::new(),
            failed: None,
            retry_pause: RETRY,
            patience: fault::duration("FAULT_DOUBT_MS", DOUBT),
            ids_seen: 0,
            topics: topic_ids::TopicIds::new(fault::duration("FAULT_DOUBT_MS", DOUBT)),
            blocked: blocked::Blocked::default(),
            watchdog: Watchdog::new(now),
            left: Vec::new(),
        })
    }

    /// Works until it is told to stop; then finishes every block and file, commits, and leaves the group.
    pub fn run(mut self, stop_deadline: Duration) -> Result<(), Error> {
        self.join()?;
        while !self.parts.desk.stopping() {
            // Asked in this order: a delivery may also be over because the service stops.
            if self.parts.gauges.is_over() && !self.parts.desk.stopping() {
                return Err(Error::Closed);
            }
            self.events()?;
            self.answer_late();
            self.finish_moves()?;
            self.serve_seals()?;
            self.rejoin()?;
            self.give_up_refused();
            self.look_at_hidden()?;
            self.leave_old_topics()?;
            self.look_at_membership();
            self.resolve()?;
            self.tell_moves()?;
            self.read_again();
            self.commit_durable();
            self.look_at_rights();
            self.show();
            if self.has_room() {
                self.watch()?;
                self.take()?;
            } else {
                self.watchdog.excuse();
                self.wait_for_room()?;
            }
            self.cut_due(Instant::now())?;
        }
        self.parts.desk.show(control::State::Stopping, None);
        self.finish(stop_deadline)
    }

    fn join(&mut self) -> Result<(), Error> {
        self.parts.desk.show(control::State::Waiting, Some(format!("connecting to {}", self.parts.config.brokers)));
        self.subscribe()
    }

    fn subscribe(&mut self) -> Result<(), Error> {
        self.look_before_joining();
        self.discover_at = Instant::now();
        self.subscription.forget();
        match self.parts.config.assignment {
            Assignment::Group if !self.subscription.is_by_name() => {
                self.client.subscribe(&self.parts.config.topics).map_err(Error::Client)
            }
            _ => Ok(()),
        }
    }

    /// Subscribes to the topics that patterns mean now, if those are others than before.
    fn subscribe_by_name(&mut self) {
        let asked = Instant::now();
        self.discover_at = asked + self.parts.discovery;
        let meant = topic_names(&self.client, &self.parts.config.topics, REQUEST_TIMEOUT);
        let subscribed = match meant {
            Ok(meant) if meant.names.is_empty() => Err((Code::Unknown, unmatched_text(&meant.unmatched))),
            Ok(meant) => match self.subscription.changed(meant.names) {
                Some(names) => {
                    self.client.subscribe(names).map_err(|error| (error.code, format!("cannot subscribe: {error}")))
                }
                None => Ok(()),
            },
            Err(error) => {
                Err((error.code, format!("cannot ask {} for the topics: {error}", self.parts.config.brokers)))
            }
        };
        if let Err((code, text)) = subscribed {
            self.discover_at = self.resolve_again(asked, RETRY);
            self.in_trouble_by(code, text);
        }
    }

    fn trouble(&mut self, message: &Message) {
        let Some(error) = message.error() else { return };
        // The client is asked for what is fatal. And records come without the group where nobody is a member of it.
        let no_group = error.code == Code::GroupAuthorizationFailed && self.parts.config.assignment == Assignment::All;
        if matches!(error.code, Code::PartitionEOF | Code::Fatal) || no_group {
            return;
        }
        let topic = message.topic();
        let text =
            if topic.is_empty() || error.text.contains(&topic) { error.text } else { format!("{topic}: {error}") };
        self.in_trouble_by(error.code, text);
    }

    /// Shows why no records come: something that we know, and that nothing explains better.
    fn in_trouble(&mut self, text: String) {
        self.in_trouble_by(Code::Unknown, text);
    }

    /// The same of what is no fault of Kafka's.
    fn in_trouble_quietly(&mut self, text: String) {
        self.trouble.tell(text, Weight::Consequence, false, Instant::now());
    }

    /// The same of an error with this code, which may only follow from another one.
    fn in_trouble_by(&mut self, code: Code, text: String) {
        let now = Instant::now();
        self.note_right(code);
        // Such an answer comes again and again, while the broker answers everything else.
        let until_records = code == Code::BadMessage;
        let weight = Weight::of(code, &text);
        if self.trouble.tell(text, weight, until_records, now) {
            tracing::warn!(reason = self.trouble.reason(), "Kafka gives no records");
            self.probe_at = now + RETRY;
        }
    }

    fn partitions(&self) -> Vec<TopicPartition> {
        self.slots.iter().map(|slot| slot.partition.clone()).collect()
    }

    fn show(&mut self) {
        if self.trouble.reason().is_some() && !self.slots.is_empty() && Instant::now() >= self.probe_at {
            // No record comes from an idle topic after the brokers are back: ask them. A question waits behind a fetch on its
            // connection, and ends that connection when it is not answered in time.
            let asked = Instant::now();
            let queries: Vec<_> =
                self.partitions().into_iter().map(|partition| (partition, OffsetSpec::Earliest)).collect();
            if self.client.list_offsets(&queries, RETRY * 3).iter().all(Result::is_ok) {
                self.trouble.answered(Instant::now());
            }
            self.probe_at = next_question(asked, RETRY * 5);
        }
        if self.pending.is_empty() {
            self.held.clear_partitions();
        }
        let (held, denied) = (self.held.reason().map(str::to_owned), self.rights.reason());
        let slots = &self.slots;
        self.blocked
            .retain(|partition, offset| slots.iter().any(|slot| slot.partition == *partition && slot.next == offset));
        let desk = &self.parts.desk;
        desk.set_pending(&self.pending);
        if let Some(stalled) = self.parts.gauges.stalled() {
            desk.show(control::State::Paused, Some(stalled));
        } else if self.queue_is_full() {
            desk.show(control::State::Paused, Some("the failure queue is full: retry or clear it".into()));
        } else if let Some(reason) = self.blocked.reason() {
            desk.show(control::State::Paused, Some(reason.to_owned()));
        } else if denied.is_some() && slots.iter().all(|slot| self.rights.denies(&slot.partition.topic)) {
            desk.show(control::State::Waiting, denied);
        } else if let Some(trouble) = self.trouble.reason() {
            desk.show(control::State::Waiting, Some(trouble.to_owned()));
        } else if !self.slots.is_empty() {
            desk.show(control::State::Consuming, denied.or(held));
        } else if held.is_some() {
            desk.show(control::State::Waiting, held);
        } else if desk.without_share.load(Ordering::Relaxed) {
            desk.show(control::State::Waiting, Some("the group has no partition for this instance".to_owned()));
        } else if let Some(step) = self.client.group_step() {
            desk.show(control::State::Waiting, Some(step.waiting_for(&self.parts.config.group_id)));
        } else if desk.state().0 == control::State::Consuming {
            desk.show(control::State::Waiting, Some("the group has taken the partitions back".into()));
        }
    }

    fn finish(mut self, deadline: Duration) -> Result<(), Error> {
        for number in 0..self.slots.len() {
            self.cut(number)?;
        }
        self.outlast_reassignment()?;
        let ours = self.partitions();
        self.leaving = outcome::Leaving::Yes;
        let drained = self.barrier(Finish::Files, deadline)?;
        if !drained {
            tracing::error!("the drain took too long: what is in flight is completed at the next start");
        } else if !ours.is_empty() && !self.hides() {
            self.commit_now(&ours, LAST_COMMIT);
        }
        self.release(&ours);
        if drained { self.look_a_last_time() } else { Ok(()) }
    }
}

/// When brokers are asked again about what could not be answered at once: each question holds up what is read meanwhile, so most
/// of the time between two of them is left to records, however long the last one, which began at `asked`, has taken.
fn next_question(asked: Instant, least: Duration) -> Instant {
    let now = Instant::now();
    now + least.max(now.duration_since(asked) * 4)
}

/// Wall clock, milliseconds since 1970 UTC.
pub fn now_millis() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}
