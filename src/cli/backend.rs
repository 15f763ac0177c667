//! What the commands need of the pipeline. The application implements [`Backend`]; everything else about a command is here.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::path::PathBuf;

use crossbeam_channel::Receiver;

use crate::config::Config;
use crate::control::{Failure, PartitionOffsets, Service};
use crate::daemon::Reporter;
use crate::logging::LevelHandle;
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
}

/// What a running service gets of its process.
#[derive(Debug)]
pub struct Process<'a> {
    /// Where a reload reads the configuration from.
    pub place: Place,
    /// Drain and reload requests.
    pub signals: Receiver<Signal>,
    /// Changes the log level at a reload.
    pub log: LevelHandle,
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

/// The options of `demo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DemoOptions {
    /// Records to generate.
    pub records: u64,
    /// Where files stay; `None` for a directory that goes with the demo.
    pub keep: Option<PathBuf>,
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
    /// The store of a stopped service.
    fn local(&self, config: &Config) -> Result<Box<dyn Service>, Failure>;
    /// Moves positions, locally and in the group. The home is locked.
    fn set_offset(&self, config: &Config, what: &Selection, to: OffsetTarget) -> Result<Moved, Failure>;
    /// Records, one a line, into events and rejects.
    fn transform(
        &self,
        config: &Config,
        records: &mut dyn BufRead,
        events: &mut dyn Write,
        rejects: &mut dyn Write,
    ) -> Result<(), Failure>;
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
