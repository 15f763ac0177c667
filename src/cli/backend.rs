//! What the commands need of the pipeline. The application implements [`Backend`]; everything else about a command is here.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crossbeam_channel::Receiver;

use crate::config::Config;
use crate::control::{Failure, PartitionOffsets, Service};
use crate::daemon::{PidFile, Reporter};
use crate::lock::HomeLock;
use crate::logging::LogHandle;
use crate::msink::manifest::Range;
use crate::signals::Signal;

/// Where the configuration comes from.
#[derive(Clone, Debug)]
pub struct Place {
    /// The home, absolute.
    pub home: PathBuf,
    /// The directory of the config files, absolute.
    pub config: PathBuf,
    /// The environment.
    pub env: BTreeMap<String, String>,
}

/// A configuration and what is odd about it.
#[derive(Debug)]
pub struct Loaded {
    /// The validated configuration.
    pub config: Config,
    /// For people, each with its place.
    pub warnings: Vec<String>,
    /// Secrets that every user of this host can read, each with its place: a warning, and a mistake to `check`.
    pub exposed: Vec<String>,
}

/// What a running service gets of its process.
#[derive(Debug)]
pub struct Process<'a> {
    /// Where a reload reads the configuration from.
    pub place: Place,
    /// The lock of the home.
    pub lock: Arc<HomeLock>,
    /// To be kept there.
    pub pid_file: Arc<PidFile>,
    /// Drain and reload requests.
    pub signals: Receiver<Signal>,
    /// Changes the log at a reload.
    pub log: LogHandle,
    /// Hears each state of the service from the start until it consumes; says nothing in the foreground.
    pub reporter: &'a Reporter,
}

/// How far `check` goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Settings and directories.
    Offline,
    /// Also whether the brokers have the topics.
    Online,
}

/// Which partitions `set_offset` moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// One topic; `None` for all.
    pub topic: Option<String>,
    /// One partition; `None` for all.
    pub partition: Option<i32>,
}

/// Where `set_offset` moves them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetTarget {
    /// The low watermark.
    Earliest,
    /// The high watermark.
    Latest,
    /// This offset.
    Offset(i64),
    /// The first record at or after this time, milliseconds since 1970 UTC.
    Time(i64),
}

/// What `set_offset` did: the moved partitions, sorted by topic and partition.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Moved {
    /// As they were.
    pub before: Vec<PartitionOffsets>,
    /// As they are.
    pub after: Vec<PartitionOffsets>,
}

/// What `adopt` did.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Adoption {
    /// The UUID of the home that was adopted.
    pub home: String,
    /// Its event directory: its files stay there.
    pub dir: PathBuf,
    /// Set when it was adopted before, and nothing was done: by whom and when, for people.
    pub before: Option<String>,
    /// Those of its event files that were not finished, by path.
    pub files: Vec<AdoptedFile>,
    /// Where its partitions stood, sorted by topic and partition.
    pub positions: Vec<AdoptedPosition>,
    /// Entries of its failure queue that are in ours now.
    pub entries: u64,
    /// Entries of its failure queue that were in ours already.
    pub known_entries: u64,
    /// Entries that stay in its failure queue, since they may have come from another copy of it.
    pub left_entries: u64,
}

/// An event file of an adopted home.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct AdoptedFile {
    /// The path that it has now, or had before it was removed.
    pub path: PathBuf,
    /// What became of it.
    pub outcome: FileOutcome,
}

/// What became of a file that was not finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FileOutcome {
    /// It was in sight, and is whole now.
    Completed,
    /// It was hidden, and has its name now.
    Published,
    /// It was hidden; its records are read again by whoever has the partition.
    Removed,
    /// It was hidden, and nobody can tell whether its records were published elsewhere.
    SetAside,
}

/// Where a partition of an adopted home stood.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct AdoptedPosition {
    /// Topic name.
    pub topic: String,
    /// Partition number.
    pub partition: i32,
    /// The next offset that the adopted home would have read.
    pub offset: i64,
    /// Who goes on there.
    pub outcome: PositionOutcome,
}

/// What became of a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PositionOutcome {
    /// The group had an older one, and has this one now.
    Committed,
    /// Whoever goes on does so from there anyway.
    Current,
    /// Our home has it now.
    TakenOver,
    /// Another instance, or ours, has read on already, or was moved elsewhere.
    Elsewhere,
    /// The topic is gone, or was created again.
    Gone,
    /// Our home is a member of a group, the adopted one was not.
    NotOurs,
}

/// The options of `demo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DemoOptions {
    /// Records to generate.
    pub records: u64,
    /// Where files stay; `None` for a directory that goes with the demo.
    pub keep: Option<PathBuf>,
}

/// What `verify` looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyOptions {
    /// Event directories, one of each instance.
    pub dirs: Vec<PathBuf>,
    /// What an event file without a manifest is.
    pub plain: Plain,
    /// What a manifest without its event file is.
    pub missing: Missing,
}

/// What an event file without a manifest is to `verify`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plain {
    /// Written live: there is nothing to check it against.
    Live,
    /// A fault.
    Fault,
}

/// What a manifest without its event file is to `verify`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The collector deletes what it has read.
    Allowed,
    /// A fault.
    Fault,
}

/// What `verify` found.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Verification {
    /// The faults: those of files by path, then those of ranges.
    pub faults: Vec<Fault>,
    /// What the manifests do not tell, and nobody can know by them alone. No faults.
    pub unknown: Vec<Unknown>,
    /// Everything that was looked at.
    pub summary: Summary,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Fault {
    /// What kind of fault.
    pub kind: FaultKind,
    /// The file, or the partition, that has it.
    pub place: String,
    /// For people: what exactly was found.
    pub detail: String,
    /// The offsets that it is about, of a gap or an overlap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<Range>,
}

/// One thing that cannot be known.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Unknown {
    /// What kind of thing.
    pub kind: UnknownKind,
    /// The partition, with its offsets, or the file.
    pub place: String,
    /// For people: what exactly, and why.
    pub detail: String,
    /// The offsets that it is about, unless it is a file of retries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<Range>,
}

/// The kinds of [`Unknown`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownKind {
    /// Whether offsets before the first range here were ever to be covered.
    Beginning,
    /// Whether a range without a file had lines.
    Empty,
    /// Why offsets of a range had no record.
    NoRecord,
    /// Whether a publication that is under way, or was cut short, comes to its end.
    Publishing,
}

impl UnknownKind {
    /// The name in tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Beginning => "beginning",
            Self::Empty => "empty",
            Self::NoRecord => "no_record",
            Self::Publishing => "publishing",
        }
    }
}

/// The kinds of [`Fault`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// The bytes are others: a flipped bit.
    Checksum,
    /// The file is longer or shorter.
    Length,
    /// The bytes are right, but are no lines, or not so many.
    Lines,
    /// The file is not there; its manifest is.
    Missing,
    /// The file is there; its manifest is not.
    NoManifest,
    /// The manifest cannot be understood, or is another file's.
    BadManifest,
    /// The system does not let it be read.
    Unreadable,
    /// The same file with the same manifest is there twice.
    Duplicate,
    /// A hidden file of which nobody can tell whether it was to be published.
    Undecided,
    /// Offsets that no seal has.
    Gap,
    /// Offsets that two seals have.
    Overlap,
    /// A range with other lines than its files have, or whose counts do not add up.
    Records,
}

impl FaultKind {
    /// The name in tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Checksum => "checksum",
            Self::Length => "length",
            Self::Lines => "lines",
            Self::Missing => "missing",
            Self::NoManifest => "no_manifest",
            Self::BadManifest => "bad_manifest",
            Self::Unreadable => "unreadable",
            Self::Duplicate => "duplicate",
            Self::Undecided => "undecided",
            Self::Gap => "gap",
            Self::Overlap => "overlap",
            Self::Records => "records",
        }
    }
}

/// What `verify` looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// Event files that are as their manifests say.
    pub files: u64,
    /// Lines in them.
    pub lines: u64,
    /// Bytes in them, as they lie on the disk.
    pub bytes: u64,
    /// Partitions that the manifests name.
    pub partitions: u64,
    /// Seals that the manifests name: ranges of offsets, each counted once.
    pub ranges: u64,
    /// Faults.
    pub faults: u64,
    /// Things that cannot be known.
    pub unknown: u64,
    /// Event files that are gone, where that is allowed.
    pub missing: u64,
    /// Hidden files: not published yet, or left behind by a crash.
    pub hidden: u64,
    /// Event files without a manifest, where they are live.
    pub live: u64,
}

/// The pipeline, as the commands use it.
pub trait Backend {
    /// Reads the configuration; every mistake at once, each with its place.
    fn load(&self, place: &Place) -> Result<Loaded, Vec<String>>;
    /// The effective configuration as YAML, secrets masked.
    fn render(&self, config: &Config) -> String;
    /// Looks at everything that the configuration names; all failures at once. Starts no thread when offline.
    fn check(&self, config: &Config, scope: Scope) -> Vec<Failure>;
    /// Runs the service, its control socket included, until it has drained. The home is locked, the log runs.
    fn run(&self, config: Config, process: Process<'_>) -> Result<(), Failure>;
    /// The store of a stopped service, to be read.
    fn local(&self, config: &Config) -> Result<Box<dyn Service>, Failure>;
    /// The store of a stopped service, to be changed; the lock of the home is held until then.
    fn stopped(&self, config: &Config, lock: HomeLock) -> Result<Box<dyn Service>, Failure>;
    /// Moves positions, locally and in the group.
    fn set_offset(
        &self,
        config: &Config,
        lock: HomeLock,
        what: &Selection,
        to: OffsetTarget,
        progress: &dyn Fn(&str),
    ) -> Result<Moved, Failure>;
    /// Finishes and takes over the home of an instance whose host is gone: `dir`, absolute. The lock is that of our own home.
    fn adopt(
        &self,
        place: &Place,
        config: &Config,
        lock: HomeLock,
        dir: &Path,
        progress: &dyn Fn(&str),
    ) -> Result<Adoption, Failure>;
    /// Records, one a line, into events and rejects.
    fn transform(
        &self,
        config: &Config,
        records: &mut dyn BufRead,
        events: &mut dyn Write,
        rejects: &mut dyn Write,
    ) -> Result<(), Failure>;
    /// Checks event files against their manifests. `progress` is called between files, at most twice a second.
    fn verify(&self, options: &VerifyOptions, progress: &dyn Fn(&str)) -> Result<Verification, Failure>;
    /// Runs the demonstration; needs no configuration. `out` gets its summary, as JSON or for people.
    fn demo(&self, options: &DemoOptions, format: Format, out: &mut dyn Write) -> Result<(), Failure>;
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Tables and sentences.
    People,
    /// One line of JSON.
    Json,
}
