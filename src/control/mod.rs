//! The control plane: what a running service can be asked, and the shapes of its answers.
//!
//! [`Service`] is the one interface behind the Unix socket and the commands: the running pipeline implements it, and so
//! does the store of a stopped one. Tables, JSON and the socket's replies are all made from the types here.

pub mod client;
pub mod protocol;
pub mod server;
mod socket;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::record::Reason;
use crate::zone::{Source, TimeZone};

/// How long `stop` and `restart` wait for a drain unless they are told otherwise: a service that cannot drain, on a full disk for
/// example, has given up by itself and is gone before that.
pub const STOP_PATIENCE: Duration = Duration::from_secs(90);

/// What the commands ask of a service, running or stopped. Calls block; none may take the data plane's locks for long.
pub trait Service: Send + Sync {
    /// How the service is doing, with the lag as it was last asked for. Asks nobody.
    fn status(&self) -> Result<Status, Failure>;
    /// Asks the brokers for the lag that [`Self::status`] shows, unless that was done just now. Takes as long as they do.
    fn ask_lag(&self) {}
    /// Every partition with its watermarks and position, sorted by topic and partition.
    fn offsets(&self) -> Result<Vec<PartitionOffsets>, Failure>;
    /// Records in the failure queue.
    fn failure_count(&self) -> Result<u64, Failure>;
    /// The first entries of the queue in order of arrival.
    fn failure_list(&self, query: &ListQuery) -> Result<Vec<FailureEntry>, Failure>;
    /// Tries the queue again now. `progress` is called at least every second while it works.
    fn retry_failures(&self, reason: Option<Reason>, progress: &dyn Fn(&str)) -> Result<Retried, Failure>;
    /// Removes entries; returns how many. `progress` is called at least every second while it works.
    fn clear_failures(&self, query: &ClearQuery, progress: &dyn Fn(&str)) -> Result<u64, Failure>;
    /// Reads settings and log level again; returns a line for the operator.
    fn reload(&self) -> Result<String, Failure>;
    /// Begins the drain, once, and tells what is still in flight; `None` when the drain is over. The caller asks again
    /// until then; the process ends soon after.
    fn stop(&self) -> Result<Option<String>, Failure>;
}

/// Why a service did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Failure {
    /// What kind of trouble; decides the exit code.
    pub kind: FailureKind,
    /// For people: names the operation and its object, says what to do.
    pub message: String,
}

impl Failure {
    /// A failure with its message.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// The kinds of [`Failure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// Failed: exit 1.
    Failed,
    /// The caller's words are wrong: exit 64.
    Usage,
    /// The broker or the daemon cannot be reached: exit 69.
    Unavailable,
    /// An output cannot be created: exit 73.
    CannotCreate,
    /// Timed out: exit 75.
    TimedOut,
    /// The configuration or the settings are wrong: exit 78.
    Config,
}

/// What the service is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// No daemon runs; the rest of the status is what the store holds.
    Stopped,
    /// Opening store and journal, recovering.
    Starting,
    /// Waiting for a broker, a topic or a coordinator.
    Waiting,
    /// Partitions are assigned and read.
    Consuming,
    /// Waiting for a disk or for room in the failure queue.
    Paused,
    /// Draining.
    Stopping,
}

/// The answer of `status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// What it is doing.
    pub state: State,
    /// Why, where that is not plain: which broker or topic is waited for, which directory is full.
    pub reason: Option<String>,
    /// For how many seconds that has been the reason.
    #[serde(default)]
    pub reason_seconds: Option<u64>,
    /// Process id; `None` when stopped.
    pub pid: Option<u32>,
    /// Version of the program.
    pub version: String,
    /// Seconds since the start; `None` when stopped.
    pub uptime_seconds: Option<u64>,
    /// The identity of this home in the journal and in the group's metadata; empty while the store is not open yet, when
    /// nothing below it is known.
    pub home_id: String,
    /// Records a second over the last ten seconds: consumed.
    pub consumed_per_second: f64,
    /// Records a second over the last ten seconds: written.
    pub written_per_second: f64,
    /// Counts over the store's life.
    pub counts: Counts,
    /// Total lag; `None` while it is not known of every partition.
    pub lag: Option<u64>,
    /// Records in the failure queue.
    pub failure_queue_records: u64,
    /// Bytes in the failure queue.
    pub failure_queue_bytes: u64,
    /// Assigned partitions.
    pub partitions: u64,
    /// Files open for writing.
    pub open_files: u64,
    /// Seconds since the last checkpoint; `None` before the first one.
    pub last_checkpoint_seconds: Option<f64>,
    /// Number of the last durable block.
    pub last_checkpoint_block: u64,
    /// Records lost to retention or truncation before they were read.
    pub gap_records: u64,
    /// Entries that left the failure queue without an outcome, over the store's life.
    #[serde(default)]
    pub removed: Removed,
    /// How often, since the start, the Kafka client stood still and was replaced.
    #[serde(default)]
    pub client_restarts: u64,
    /// How many Kafka clients that were replaced have not ended yet.
    #[serde(default)]
    pub clients_left: u64,
    /// The time zone, and where its rules are from.
    #[serde(default)]
    pub time_zone: ZoneInfo,
}

/// See [`Status::time_zone`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneInfo {
    /// As configured; empty from a program that does not say it.
    pub name: String,
    /// Version of the tzdata; `None` when it is not known, and for an offset, which needs no rules.
    pub tzdata: Option<String>,
    /// The directory of the host's tzdata, or `built-in`; `None` for an offset.
    pub source: Option<String>,
}

impl From<TimeZone> for ZoneInfo {
    fn from(zone: TimeZone) -> Self {
        let source = zone.source();
        Self {
            name: zone.name(),
            tzdata: source.and_then(Source::version).map(str::to_owned),
            source: source.map(ToString::to_string),
        }
    }
}

/// Entries that left the failure queue and became nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// Cleared by an operator.
    pub cleared: u64,
    /// The oldest, dropped for room (`failure_queue.when_full: drop_oldest`).
    pub dropped: u64,
    /// Lost with a damaged store.
    pub lost: u64,
}

/// Counts of records. `consumed + retried = written + filtered + rejected + in_flight`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Taken from Kafka.
    pub consumed: u64,
    /// Taken from the failure queue.
    pub retried: u64,
    /// Became a line.
    pub written: u64,
    /// Dropped on purpose, by reason.
    pub filtered: [u64; 3],
    /// Put into the failure queue, by reason.
    pub rejected: [u64; 12],
    /// Taken and not yet one of the others.
    pub in_flight: u64,
}

/// A row of `offset_checker`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionOffsets {
    /// Topic name.
    pub topic: String,
    /// Partition number.
    pub partition: i32,
    /// Low watermark: the oldest offset that the broker has; `None` while that is not known.
    pub low: Option<i64>,
    /// High watermark: the next offset that a consumer of the configured isolation level can reach; `None` while that is not
    /// known.
    pub high: Option<i64>,
    /// The next offset to be stored as done; without a stored one, where the partition would start. `None` while that is not
    /// known.
    pub current: Option<i64>,
    /// `max(0, high - current)`; `None` while one of them is not known.
    pub lag: Option<i64>,
}

/// The total lag: the sum of the partitions'. What is not known of one of them is not known of the sum.
pub fn total_lag(partitions: &[PartitionOffsets]) -> Result<i64, Failure> {
    let sum = |sum: i64, partition: &PartitionOffsets| Some(sum.saturating_add(partition.lag?));
    match partitions.iter().try_fold(0, sum) {
        Some(lag) => Ok(lag),
        None => Err(unknown_lag(partitions)),
    }
}

/// Says of which partitions the lag is not known.
pub fn unknown_lag(partitions: &[PartitionOffsets]) -> Failure {
    let unknown: Vec<_> = partitions.iter().filter(|partition| partition.lag.is_none()).collect();
    let first = unknown.first().map_or(String::new(), |first| format!("{}[{}]", first.topic, first.partition));
    let others = match unknown.len() {
        0 | 1 => String::new(),
        count => format!(" and {} other partitions", count - 1),
    };
    let text = format!("the lag of {first}{others} is not known: the leader does not answer, ask again");
    Failure::new(FailureKind::Unavailable, text)
}

/// What `failure_queue_list` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListQuery {
    /// At most so many entries.
    pub limit: Option<u64>,
    /// Only entries of this reason.
    pub reason: Option<Reason>,
}

/// Who asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Peer {
    /// The service's own user, or root: could do by himself whatever the service can.
    Owner,
    /// Any other user whom `rpc.permissions` lets ask.
    #[default]
    Member,
}

/// What `clear_failure_queue` removes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClearQuery {
    /// Only entries whose first failure is at least this long ago.
    pub older_than: Option<Duration>,
    /// Only entries of this reason.
    pub reason: Option<Reason>,
    /// Each removed record is first written to this new file as a JSON line; absolute.
    pub export: Option<PathBuf>,
    /// Who asks. Not in the request: the server knows it from the socket.
    #[serde(default)]
    pub peer: Peer,
}

/// An entry of the failure queue, as people see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureEntry {
    /// Position in the queue; rises with arrival and is never used again.
    pub position: u64,
    /// Topic it came from.
    pub topic: String,
    /// Partition it came from.
    pub partition: i32,
    /// Offset it came from.
    pub offset: i64,
    /// Why it was rejected.
    pub reason: Reason,
    /// What exactly was found.
    pub detail: String,
    /// Attempts so far, the first one included.
    pub attempts: u32,
    /// Whether only a command tries it again.
    pub parked: bool,
    /// Seconds since the first failure.
    pub age_seconds: u64,
    /// Bytes of the payload.
    pub size: u64,
    /// The first bytes of the payload; what is not printable is escaped.
    pub head: String,
}

/// The answer of `retry_failure_queue`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retried {
    /// Entries that became a line or were filtered.
    pub left: u64,
    /// Entries that failed again.
    pub stayed: u64,
}
