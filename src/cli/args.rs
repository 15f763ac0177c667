//! The command line as it is typed: clap's types and the readers of their values. Nothing here looks at the world.

use std::path::PathBuf;
use std::time::Duration;

use chrono::DateTime;
use clap::{Args, Parser, Subcommand};

use super::backend::{DemoOptions, OffsetTarget, Selection};
use crate::record::Reason;

const ABOUT: &str = "Moves JSON logs from Kafka into files of ThinkingData events: every record exactly once";
const HOME: &str = "Directory that relative paths start from [default: $MTGA_HOME, else where the binary is installed, \
                    else here]";

const VERIFY: &str = "Check published event files against their manifests: lines, bytes and checksum of each, and \
                      whether the offsets of all of them together have gaps or overlaps, and every range its \
                      lines. What manifests alone do not tell is said apart and is no fault. Only sealed files have \
                      manifests; what is written live cannot be checked. Exits with 1 when there are faults.";

const ADOPT: &str = "Finish and take over the home of an instance whose host is gone: its event files are completed, \
                     published or removed, where it stood is made known to whoever goes on, and its failure queue \
                     moves into ours. Its files stay where they are: point a collector there. Only while our own \
                     service is stopped and the other one is gone for good. May be repeated after any interruption.";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "mtga", version, about = ABOUT, max_term_width = 80, subcommand_required = true, arg_required_else_help = true)]
pub(super) struct Line {
    #[arg(long, global = true, value_name = "DIR", help = HOME)]
    pub(super) home: Option<PathBuf>,
    /// Directory of the config files [default: config in the home]
    #[arg(long, global = true, value_name = "DIR")]
    pub(super) config: Option<PathBuf>,
    /// Print JSON in place of tables and text
    #[arg(long, global = true)]
    pub(super) json: bool,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
#[command(rename_all = "snake_case")]
pub(super) enum Command {
    /// Check the config, start the daemon and wait until it consumes (at most 10 s)
    Start,
    /// Run the service in the foreground (systemd, Docker)
    #[command(alias = "start-not-daemon")]
    StartNotDaemon,
    /// Drain and stop the daemon
    Stop(Patience),
    /// Check the config, then stop and start the daemon
    Restart(Patience),
    /// Show how the service is doing; exits with 3 when it does not run
    Status,
    /// Show watermarks, position and lag of every partition
    #[command(alias = "offset-checker")]
    OffsetChecker,
    /// Print the total lag
    #[command(alias = "kafka-lag")]
    KafkaLag,
    /// Print how many records are in the failure queue
    #[command(alias = "failure-queue-count")]
    FailureQueueCount,
    /// Show the failure queue
    #[command(alias = "failure-queue-list")]
    FailureQueueList {
        /// At most so many records
        #[arg(long, value_name = "N", default_value_t = 20)]
        limit: u64,
        #[command(flatten)]
        only: OnlyReason,
    },
    /// Try the failure queue again now
    #[command(alias = "retry-failure-queue")]
    RetryFailureQueue(OnlyReason),
    /// Empty the failure queue and print how many records were removed
    #[command(alias = "clear-failure-queue")]
    ClearFailureQueue {
        /// Only records whose first failure is at least so long ago, as 7d or 12h
        #[arg(long = "older-than", value_name = "AGE", value_parser = duration)]
        older_than: Option<Duration>,
        #[command(flatten)]
        only: OnlyReason,
        /// Write each removed record to this new file first, as a JSON line
        #[arg(long, value_name = "FILE")]
        export: Option<PathBuf>,
    },
    /// Move the position of partitions; only while stopped
    #[command(alias = "set-offset")]
    SetOffset {
        /// TOPIC, TOPIC:PARTITION, or `all` for every partition of every topic
        #[arg(value_name = "PARTITIONS", value_parser = selection)]
        partitions: Selection,
        /// `earliest`, `latest`, an offset, or a time as 2026-01-31T00:00:00+08:00
        #[arg(value_name = "POSITION", value_parser = offset_target)]
        position: OffsetTarget,
    },
    /// Finish and take over the home of an instance whose host is gone
    #[command(long_about = ADOPT)]
    Adopt {
        /// The home of the other instance, mounted or copied here
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
    /// Check config, settings, directories and topics, and show every mistake
    Check {
        /// Do not ask the brokers for the topics
        #[arg(long)]
        offline: bool,
    },
    /// Print the effective config as YAML, secrets masked
    Config,
    /// Try the settings: records on stdin become events on stdout, rejects on stderr
    Transform,
    /// Check published event files against their manifests
    #[command(long_about = VERIFY)]
    Verify {
        /// Event directories, one of each instance [default: sink.dir]
        #[arg(value_name = "DIR")]
        dirs: Vec<PathBuf>,
        /// An event file whose manifest is still there may be gone
        #[arg(long = "allow-missing")]
        allow_missing: bool,
    },
    /// Run the whole pipeline on an embedded Kafka and show what it does
    Demo(Demo),
    /// Have the running service read its settings and log level again
    Reload,
}

impl Command {
    /// Whether it works on the home: `demo` makes its own, and `verify` may be told of directories of anybody, which it reads.
    pub(super) fn works_on_home(&self) -> bool {
        !matches!(self, Self::Demo(_) | Self::Verify { .. })
    }
}

#[derive(Debug, Args)]
pub(super) struct Patience {
    /// How long to wait for the drain
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = duration)]
    pub(super) timeout: Duration,
}

#[derive(Debug, Args)]
pub(super) struct OnlyReason {
    #[arg(long, help = "Only records of this reason, as bad_json")]
    pub(super) reason: Option<Reason>,
}

#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Records to generate
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    records: u64,
    /// Keep the files in this directory
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

impl From<Demo> for DemoOptions {
    fn from(demo: Demo) -> Self {
        Self { records: demo.records, keep: demo.keep }
    }
}

/// A whole number with its unit: `200ms 10s 5m 12h 7d`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no time, write it as 200ms, 10s, 5m, 12h or 7d");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "ms" => return Ok(Duration::from_millis(number)),
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return Err(wrong()),
    };
    // Longer than the clock can count back is longer than anything has been in the queue.
    Ok(Duration::from_secs(number.saturating_mul(seconds).min(u64::from(u32::MAX))))
}

fn selection(text: &str) -> Result<Selection, String> {
    if text == "all" {
        return Ok(Selection { topic: None, partition: None });
    }
    let (topic, partition) = match text.split_once(':') {
        None => (text, None),
        Some((topic, number)) => match number.parse::<i32>() {
            Ok(number) if number >= 0 => (topic, Some(number)),
            _ => return Err(format!("`{number}` is no partition number")),
        },
    };
    if topic.is_empty() {
        return Err("the topic is empty, write TOPIC, TOPIC:PARTITION or all".to_owned());
    }
    Ok(Selection { topic: Some(topic.to_owned()), partition })
}

fn offset_target(text: &str) -> Result<OffsetTarget, String> {
    match text {
        "earliest" => return Ok(OffsetTarget::Earliest),
        "latest" => return Ok(OffsetTarget::Latest),
        _ => {}
    }
    if let Ok(offset) = text.parse::<i64>()
        && offset >= 0
    {
        return Ok(OffsetTarget::Offset(offset));
    }
    let time = DateTime::parse_from_rfc3339(text).map_err(|_| {
        format!("`{text}` is no position, write earliest, latest, an offset, or a time as 2026-01-31T00:00:00+08:00")
    })?;
    Ok(OffsetTarget::Time(time.timestamp_millis()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Line::command().debug_assert();
    }

    #[test]
    fn times_are_read_with_their_units() {
        assert_eq!(duration("200ms"), Ok(Duration::from_millis(200)));
        assert_eq!(duration("7d"), Ok(Duration::from_hours(7 * 24)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert_eq!(duration("18446744073709551615d"), Ok(Duration::from_secs(u64::from(u32::MAX))));
        for wrong in ["", "7", "d", "-1s", "1.5s", "7 d", "99999999999999999999s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_drain_is_waited_for_until_the_service_has_given_up_by_itself() {
        for command in ["stop", "restart"] {
            let line = Line::try_parse_from(["mtga", command]).expect("a command");
            let (Command::Stop(patience) | Command::Restart(patience)) = line.command else { panic!("{line:?}") };
            assert_eq!(patience.timeout, crate::control::STOP_PATIENCE);
        }
    }

    #[test]
    fn positions_and_partitions_are_read() {
        assert_eq!(offset_target("17"), Ok(OffsetTarget::Offset(17)));
        assert_eq!(offset_target("1970-01-01T08:00:01+08:00"), Ok(OffsetTarget::Time(1000)));
        assert!(offset_target("-1").is_err());
        assert!(offset_target("yesterday").is_err());
        assert_eq!(selection("all"), Ok(Selection { topic: None, partition: None }));
        assert_eq!(selection("a:3"), Ok(Selection { topic: Some("a".to_owned()), partition: Some(3) }));
        assert!(selection("a:-3").is_err());
        assert!(selection(":3").is_err());
    }

    proptest! {
        #[test]
        fn no_argument_makes_a_reader_panic(text in "\\PC{0,30}") {
            let _ = (duration(&text), selection(&text), offset_target(&text));
        }
    }
}
