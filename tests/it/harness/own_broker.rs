//! A broker that one test has for itself: to kill it, to stop it, and to damage what is on its disk.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::broker::JVM;
use super::process::Finished;
use super::{SOON, Topic};

/// A running broker with its directory. Ports and data stay over [`OwnBroker::kill`] and [`OwnBroker::start`].
#[derive(Debug)]
pub(crate) struct OwnBroker {
    dir: TempDir,
    address: String,
    /// Kills the broker when this process is gone, however it went: it reads the end of its standard input then.
    keeper: Child,
}

impl OwnBroker {
    /// Starts a broker; `properties` are further lines of its `server.properties`.
    pub(crate) fn new(properties: &str) -> Self {
        Self::begun(properties, None)
    }

    /// Starts a second broker of this one's cluster, whose controller stays with this one.
    pub(crate) fn second(&self, properties: &str) -> Self {
        Self::begun(properties, Some(self))
    }

    fn begun(properties: &str, first: Option<&Self>) -> Self {
        let dir = tempfile::Builder::new().prefix("mtga-broker-").tempdir().expect("a directory");
        let keeper = Command::new("sh")
            .args(["-c", "cat >/dev/null; \"$0\" kill \"$1\"; rm -rf \"$1\""])
            .arg(script())
            .arg(dir.path())
            .stdin(Stdio::piped())
            // Not among the processes that a signal to this one's group ends.
            .process_group(0)
            .spawn()
            .expect("a shell");
        let mut broker = Self { dir, address: String::new(), keeper };
        broker.run_with("start", properties, first);
        let env = fs::read_to_string(broker.dir.path().join("env")).expect("the script tells the address");
        let address = env.lines().find_map(|line| line.strip_prefix("KAFKA_BROKERS="));
        address.expect("the address is told").clone_into(&mut broker.address);
        broker
    }

    fn run(&self, command: &str) {
        self.run_with(command, "", None);
    }

    fn run_with(&self, command: &str, properties: &str, first: Option<&Self>) {
        let mut script = Command::new(script());
        script.arg(command).arg(self.dir.path()).env("MTGA_KAFKA_HEAP", "400m").env("JAVA_TOOL_OPTIONS", JVM);
        script.args(first.map(|first| first.dir.path()));
        Finished::run(script.env("MTGA_KAFKA_PROPERTIES", properties), 2 * SOON).success();
    }

    /// `HOST:PORT`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// SIGKILL.
    pub(crate) fn kill(&self) {
        self.run("kill");
    }

    /// In good order.
    pub(crate) fn stop(&self) {
        self.run("stop");
    }

    /// Starts it again, on its ports and its data.
    pub(crate) fn start(&self) {
        self.run("start");
    }

    /// The directory with the segments of a partition.
    pub(crate) fn log(&self, topic: &Topic, partition: i32) -> PathBuf {
        self.dir.path().join("data").join(format!("{}-{partition}", topic.name))
    }

    /// Cuts the log of the first partition off at an offset, as an unclean leader election does. The broker does not run.
    pub(crate) fn keep_batches(&self, topic: &Topic, below: i64) {
        let log = self.log(topic, 0);
        let segment = log.join("00000000000000000000.log");
        let bytes = fs::read(&segment).expect("a segment");
        let kept = batches(&bytes).into_iter().take_while(|batch| batch.next <= below).last().expect("some are kept");
        assert_eq!(kept.next, below, "a batch ends there");
        fs::write(&segment, &bytes[..kept.position + kept.length]).expect("the segment");
        for index in ["index", "timeindex"] {
            fs::remove_file(log.join(format!("00000000000000000000.{index}"))).expect("an index");
        }
    }
}

impl Drop for OwnBroker {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        drop(self.keeper.wait());
    }
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kafka")
}

/// A record batch as it lies in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    /// Where it begins in the file.
    pub(crate) position: usize,
    /// Its bytes, header included.
    pub(crate) length: usize,
    /// Its first offset.
    pub(crate) first: i64,
    /// The first offset behind it.
    pub(crate) next: i64,
}

/// The batches of a segment, in order.
pub(crate) fn batches(segment: &[u8]) -> Vec<Batch> {
    let mut found = Vec::new();
    let mut position = 0;
    // Base offset (8), length of the rest (4), ..., offset of the last record relative to the first (4, at 23).
    while let Some(header) = segment.get(position..position + 61) {
        let length = 12 + i32::from_be_bytes(header[8..12].try_into().expect("four bytes")) as usize;
        let first = i64::from_be_bytes(header[..8].try_into().expect("eight bytes"));
        let last = i32::from_be_bytes(header[23..27].try_into().expect("four bytes"));
        if length <= 61 {
            break;
        }
        found.push(Batch { position, length, first, next: first + i64::from(last) + 1 });
        position += length;
    }
    found
}
