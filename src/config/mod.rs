//! The configuration: every key, its type and its meaning once they are validated.
//!
//! [`load()`] reads `msource.yml` and `mtga.yml`, lays `mtga.local.yml`, the environment and flags over them, checks all of
//! it and gives a [`Config`], or every mistake at once, each with file, line and key ([`Mistake`]). Both files must be
//! there, so that a wrong directory is told; any key may be absent. [`Config::to_yaml`] writes what is in force.
//!
//! - `${NAME}` and `${NAME:-default}` in the values of files are replaced from the environment after the YAML is read:
//!   no value can bring structure in. `$${` is how `${` itself is written.
//! - A variable `MTGA_` + path in capitals joined by `__` sets any key; lists and properties are written as YAML. One
//!   librdkafka property is set by its name with `_` for `.`: `MTGA_KAFKA__LIBRDKAFKA__SASL_PASSWORD`.
//! - A later layer replaces a list as a whole, and single properties of `kafka.librdkafka`.
//! - Scalars are text in the files and get their types here, so `24` and `"24"` are the same.
//!
//! Environment and CPU count are parameters; nothing but the three files and the rules of the time zone is read. It does not look whether directories,
//! brokers or topics are there. Secrets are masked in [`Config::to_yaml`] and in `Debug`, and no message shows one.

mod build;
mod dump;
mod kafka;
mod layer;
mod load;
mod pattern;
mod read;
mod schema;
mod secret;
#[cfg(test)]
mod tests;
mod units;
mod values;
mod yaml;

pub use crate::zone::TimeZone;
pub use kafka::property_running_code;
pub use load::{Loaded, Mistake, Sources, load};
#[cfg(test)]
pub(crate) use pattern::check_pattern;
pub use units::{format_duration, format_size, parse_duration, parse_size};

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The whole configuration, validated. Relative paths are already joined to the home.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The directory that relative paths start from.
    pub home: PathBuf,
    /// `msource.yml`: `kafka`.
    pub kafka: Kafka,
    /// `msource.yml`: `store`.
    pub store: Store,
    /// `msource.yml`: `failure_queue`.
    pub failure_queue: FailureQueue,
    /// `msource.yml`: `rpc`.
    pub rpc: Rpc,
    /// `msource.yml`: `memory`, bytes.
    pub memory: u64,
    /// The app whose records are taken.
    pub app_id: u64,
    /// Transform threads; `auto` is resolved.
    pub workers: usize,
    /// Time zone of `#time` and of file names.
    pub time_zone: TimeZone,
    /// The directory of the two settings files.
    pub settings: PathBuf,
    /// How much is checked of each event.
    pub validation: Validation,
    /// Whether events carry a deterministic `#uuid`.
    pub uuid: bool,
    /// `mtga.yml`: `sink`.
    pub sink: Sink,
    /// `mtga.yml`: `http`.
    pub http: Http,
    /// `mtga.yml`: `log`.
    pub log: Log,
    /// `mtga.yml`: `reporter`.
    pub reporter: Reporter,
}

/// Where records come from.
#[derive(Clone, PartialEq)]
pub struct Kafka {
    /// Bootstrap brokers, comma-separated.
    pub brokers: String,
    /// Topic names; a leading `^` makes one a regular expression.
    pub topics: Vec<String>,
    /// The consumer group.
    pub group_id: String,
    /// Whether Kafka divides the partitions among instances.
    pub assignment: Assignment,
    /// Where a topic that is new to store and group starts.
    pub start: Start,
    /// What to do when a stored offset is below the low watermark.
    pub out_of_range: OutOfRange,
    /// Static membership; empty for none.
    pub instance_id: String,
    /// Codec of each value, on top of Kafka's own.
    pub payload: Payload,
    /// librdkafka properties set by the operator; none that mtga owns.
    pub librdkafka: BTreeMap<String, String>,
}

/// `kafka.assignment`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assignment {
    /// The consumer-group protocol.
    Group,
    /// This instance takes every partition.
    All,
}

/// `kafka.start`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The low watermark.
    Earliest,
    /// The high watermark.
    Latest,
    /// The first record at or after this time, milliseconds since 1970 UTC.
    Time(i64),
}

/// `kafka.out_of_range`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutOfRange {
    /// Go on at the low watermark.
    Earliest,
    /// Go on at the high watermark.
    Latest,
    /// Stop with exit code 1.
    Stop,
}

/// `kafka.payload`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Payload {
    /// Told from each value's first bytes.
    Auto,
    /// Plain JSON.
    None,
    /// Raw or framed snappy.
    Snappy,
    /// gzip.
    Gzip,
    /// zstd frames.
    Zstd,
    /// LZ4 frames.
    Lz4,
}

/// Where progress is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Store {
    /// The directory of sled and the journal.
    pub path: PathBuf,
    /// How long the journal keeps block frames.
    pub history: Duration,
    /// How many bytes of them it keeps at most.
    pub history_bytes: u64,
    /// Interval of checkpoints.
    pub checkpoint: Duration,
}

/// Limits of the failure queue.
#[derive(Clone, Debug, PartialEq)]
pub struct FailureQueue {
    /// Automatic attempts before an entry is parked.
    pub max_attempts: u32,
    /// First pause between attempts.
    pub backoff_from: Duration,
    /// Longest pause between attempts.
    pub backoff_to: Duration,
    /// Bound on the bytes of all entries.
    pub max_bytes: u64,
    /// What happens at the bound.
    pub when_full: WhenFull,
}

/// `failure_queue.when_full`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// Stop consuming until there is room.
    Pause,
    /// Drop the oldest entries, counted and logged.
    DropOldest,
}

/// The control socket.
#[derive(Clone, Debug, PartialEq)]
pub struct Rpc {
    /// Path of the socket.
    pub socket: PathBuf,
    /// Mode bits of the socket.
    pub permissions: u32,
    /// Group of the socket; empty for the process's own.
    pub group: String,
    /// Longest silence that a command bears.
    pub timeout: Duration,
}

/// `validation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Validation {
    /// Only that the event can be built.
    Off,
    /// What the receiver would refuse whole.
    Standard,
    /// Also what the receiver would silently drop.
    Strict,
}

/// Where lines go.
#[derive(Clone, Debug, PartialEq)]
pub struct Sink {
    /// Whether lines wait for company.
    pub mode: Mode,
    /// Directory of the event files.
    pub dir: PathBuf,
    /// Template of file names.
    pub file: String,
    /// Bounds of a batch.
    pub batch: Batch,
    /// When a file is finished.
    pub rotate: Rotate,
    /// Whether data reaches the disk before the offset is saved.
    pub fsync: bool,
    /// Whether files are visible while they grow.
    pub visibility: Visibility,
    /// Compression of sealed files.
    pub compression: Compression,
    /// Age beyond which finished files are deleted.
    pub keep_age: Option<Duration>,
    /// Bytes beyond which the oldest finished files are deleted.
    pub keep_bytes: Option<u64>,
    /// Bound on open files.
    pub max_open_files: usize,
    /// Mode bits of event files.
    pub permissions: u32,
}

/// `sink.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Whatever has arrived is written at once.
    Stream,
    /// Lines are collected up to the bounds of [`Batch`].
    Batch,
}

/// `sink.batch`: whichever bound is met first ends a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Records.
    pub lines: usize,
    /// Bytes of payload.
    pub bytes: u64,
    /// Time since the batch's first record.
    pub linger: Duration,
}

/// `sink.rotate`: whichever bound is met first finishes a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotate {
    /// Bytes in the file.
    pub size: u64,
    /// Time since it was opened; `auto` is resolved.
    pub age: Duration,
    /// Time since its last line.
    pub idle: Duration,
}

/// `sink.visibility`. Part of the journal's format: the order stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Visibility {
    /// Files are tailed while they are written.
    #[default]
    Live,
    /// Files are hidden until complete.
    Sealed,
}

/// `sink.compression`. Part of the journal's format: the order stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// Plain lines.
    #[default]
    None,
    /// gzip members.
    Gzip,
    /// zstd frames.
    Zstd,
}

impl Compression {
    /// What it adds to the name of a file.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Gzip => ".gz",
            Self::Zstd => ".zst",
        }
    }
}

/// The HTTP server.
#[derive(Clone, PartialEq)]
pub struct Http {
    /// Address; empty turns it off.
    pub listen: String,
    /// Further host names that are served.
    pub hosts: Vec<String>,
    /// Bearer token; empty for none.
    pub token: String,
}

/// The service log.
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// Directory of the log files.
    pub dir: PathBuf,
    /// Least severe level that is logged.
    pub level: Level,
    /// When a log file is finished.
    pub rotation: Rotation,
    /// Bound of one file with [`Rotation::Size`], bytes.
    pub max_size: u64,
    /// How many log files are kept.
    pub keep: usize,
    /// From this level on a backtrace is logged.
    pub stack_level: Level,
}

/// A level of the service log or of the reporter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// `trace`
    Trace,
    /// `debug`
    Debug,
    /// `info`
    Info,
    /// `warn`
    Warn,
    /// `error`
    Error,
    /// `off`: nothing.
    Off,
}

/// `log.rotation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// One file for ever.
    Never,
    /// A file an hour.
    Hourly,
    /// A file a day.
    Daily,
    /// A new file when [`Log::max_size`] is reached.
    Size,
}

/// The alarm webhook.
#[derive(Clone, PartialEq)]
pub struct Reporter {
    /// Where alarms are posted; empty turns it off.
    pub url: String,
    /// Shape of the body: `json dingtalk feishu wecom slack`.
    pub format: String,
    /// Least severe level that is reported.
    pub level: Level,
    /// The same alarm at most this often.
    pub min_interval: Duration,
}
