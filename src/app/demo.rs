//! `mtga demo`: the whole pipeline on brokers inside the process, from generated logs to event files, and the account of it.
//!
//! It is the pipeline of the service, with a configuration read from a home that the demo writes. What is not there: the
//! control socket, the pid file, and a Kafka that outlives the demo.
//!
//! The home is temporary and goes with the demo, also when it is interrupted; it stays when `--keep` says so, and when
//! something went wrong other than a disk without room, so that it can be looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use indicatif::HumanCount;

use super::asker::Asker;
use super::broken::{chain, failed};
use super::pipeline::{Pipeline, engine};
use super::places::Opening;
use super::ready::Feed;
use super::retry;
use super::{TICK, load};
use crate::cli::{DemoOptions, Format, Place, table};
use crate::config::Config;
use crate::control::{Counts, Failure, FailureKind};
use crate::demo::home::Home;
use crate::demo::kafka::{self, BROKERS, Brokers, Offsets, PARTITIONS, TOPIC};
use crate::demo::progress::{Progress, line};
use crate::demo::summary::{Files, Summary};
use crate::lock::{HomeLock, Purpose};
use crate::logging::{self, Console};
use crate::msource::TopicPartition;
use crate::msource::consumer::Desk;
use crate::signals::{self, Signal};

/// Without a record for so long, something is wrong that will not pass.
const PATIENCE: Duration = Duration::from_mins(1);

/// How long the embedded brokers let a new group wait for members, with some to spare.
const JOINING: Duration = Duration::from_secs(5);

/// Runs the demo. Signals and log are the process's, so it runs once in a process.
pub(super) fn run(options: &DemoOptions, format: Format, out: &mut dyn Write) -> Result<(), Failure> {
    let signals = signals::install().map_err(|error| failed(format!("cannot listen for signals: {error}")))?;
    let brokers = Brokers::start().map_err(|error| failed(chain(&error)))?;
    let (mut home, config) = furnish(options.keep.as_deref(), &brokers)?;
    let log = logging::init(&config.log, config.time_zone, Console::Silent)?;
    line(format_args!(
        "{} records, compressed with snappy, go through {BROKERS} brokers in this process",
        HumanCount(options.records)
    ));
    let mut progress = Progress::new(options.records);
    let played = play(&brokers, &config, options.records, &signals, &mut progress);
    progress.clear();
    drop(log);
    let summary = match played {
        Ok(Some(summary)) => summary,
        Ok(None) => return Err(failed("the demo was interrupted")),
        // What cannot be written, for want of room above all, is no better for what is left behind.
        Err(failure) if failure.kind == FailureKind::CannotCreate => return Err(failure),
        Err(failure) => return Err(left(&mut home, &failure.message)),
    };
    report(&summary, &home, format, out).map_err(|error| failed(format!("cannot write the summary: {error}")))?;
    let mistakes = summary.mistakes();
    if mistakes.is_empty() {
        return Ok(());
    }
    Err(left(&mut home, &format!("the demo did not come out as it must\n{}", mistakes.join("\n"))))
}

/// A failure that leaves the home behind.
fn left(home: &mut Home, message: &str) -> Failure {
    home.keep();
    failed(format!("{message}\neverything is left in {}; the service log is in its logs/", home.root().display()))
}

/// Makes a home for a topic on these brokers, and reads its configuration as the service does.
fn furnish(keep: Option<&Path>, brokers: &Brokers) -> Result<(Home, Config), Failure> {
    let home = Home::create(keep).map_err(|error| {
        let place = keep.map_or_else(|| "in the temporary directory".to_owned(), |keep| keep.display().to_string());
        Failure::new(FailureKind::CannotCreate, format!("cannot make a home for the demo, {place}: {error}"))
    })?;
    home.furnish(&brokers.addresses()).map_err(|error| {
        let text = format!("cannot write the demo's config into {}: {error}", home.root().display());
        Failure::new(FailureKind::CannotCreate, text)
    })?;
    // Whatever is set in the environment is for the service.
    let (root, env) = (home.root().to_owned(), BTreeMap::new());
    let loaded = load(&Place { config: root.join("config"), home: root, env })
        .map_err(|mistakes| Failure::new(FailureKind::Config, mistakes.join("\n")))?;
    Ok((home, loaded.config))
}

/// Runs the pipeline until it has every record, and looks at what came of it; `None` when it was interrupted.
fn play(
    brokers: &Brokers,
    config: &Config,
    records: u64,
    signals: &Receiver<Signal>,
    progress: &mut Progress,
) -> Result<Option<Summary>, Failure> {
    let desk = Arc::new(Desk::new(engine(config)?));
    let lock = HomeLock::acquire(&config.store.path, Purpose::Service)?;
    let pipeline = Pipeline::start(config, &lock, &desk, Feed::Kafka, Opening::First)?;
    retry::begin(&pipeline, &config.failure_queue)?;
    let partitions =
        (0..PARTITIONS).map(|partition| TopicPartition { topic: TOPIC.into(), partition: partition as i32 });
    let stage = Stage { pipeline: &pipeline, partitions: partitions.collect(), records };
    let addresses = brokers.addresses();
    let watched = thread::scope(|scope| {
        let producing = thread::Builder::new()
            .name("producer".into())
            .spawn_scoped(scope, || kafka::produce(&addresses, records, &stage))
            .map_err(failed)?;
        let watched = stage.watch(signals, progress, || producing.is_finished());
        if !matches!(watched, Ok(Some(_))) {
            desk.stop();
        }
        let produced = producing.join().map_err(|_| failed("the producer panicked"))?;
        let expected = produced.map_err(|error| failed(chain(&error)))?;
        watched.map(|watched| (watched, expected))
    });
    let offsets = match &watched {
        Ok((Some(_), _)) => Asker::new(config, config.rpc.timeout).and_then(|asker| {
            let state = pipeline.gauges.durable().state.clone();
            asker.running_rows(config, &state, &stage.partitions, &BTreeSet::new())
        }),
        _ => Ok(Vec::new()),
    };
    desk.stop();
    // What ended the pipeline is the cause of everything else.
    pipeline.end()?;
    let (Some(took), expected) = watched? else { return Ok(None) };
    let files = Files::read(&config.sink.dir)
        .map_err(|error| failed(format!("cannot read the events in {}: {error}", config.sink.dir.display())))?;
    let queued = pipeline.gauges.durable().state.totals.queue_records;
    let counted = pipeline.gauges.counts();
    Ok(Some(Summary { expected, counted, queued, took, offsets: offsets?, files }))
}

/// The pipeline with everything it is to do.
struct Stage<'a> {
    pipeline: &'a Pipeline,
    partitions: Vec<TopicPartition>,
    records: u64,
}

impl kafka::Consumer for Stage<'_> {
    fn stored(&self) -> Offsets {
        let durable = self.pipeline.gauges.durable();
        let next = |number: usize| durable.state.partitions.get(&self.partitions[number]).map_or(0, |at| at.next);
        std::array::from_fn(next)
    }

    fn is_over(&self) -> bool {
        self.pipeline.desk.stopping()
    }
}

impl Stage<'_> {
    /// Waits until every record is stored, and returns the time since the first one was read; `None` when interrupted.
    fn watch(
        &self,
        signals: &Receiver<Signal>,
        progress: &mut Progress,
        produced: impl Fn() -> bool,
    ) -> Result<Option<Duration>, Failure> {
        let begun = Instant::now();
        let (mut first, mut moved) = (None, (begun, 0));
        loop {
            if signals.recv_timeout(TICK) == Ok(Signal::Drain) {
                return Ok(None);
            }
            let stored = kafka::Consumer::stored(self).iter().sum::<i64>().unsigned_abs();
            if produced() && stored >= self.records {
                return Ok(Some(first.map_or(Duration::ZERO, |first: Instant| first.elapsed())));
            }
            if self.pipeline.has_ended() {
                return Err(failed("the pipeline ended"));
            }
            if let Some(stalled) = self.pipeline.gauges.stalled() {
                let text = format!("the events cannot be written: {stalled}; try --keep DIR or fewer --records");
                return Err(Failure::new(FailureKind::CannotCreate, text));
            }
            let counts = self.pipeline.gauges.counts();
            if counts.consumed > 0 {
                first.get_or_insert_with(Instant::now);
            }
            if moved.1 != stored {
                moved = (Instant::now(), stored);
            } else if moved.0.elapsed() > PATIENCE {
                return Err(failed(format!("nothing happened for a minute: {}", self.note(&counts, begun, first))));
            }
            progress.show(counts.consumed - counts.in_flight, &self.note(&counts, begun, first));
        }
    }

    /// What goes on: the rate, or what is waited for.
    fn note(&self, counts: &Counts, begun: Instant, first: Option<Instant>) -> String {
        if let Some(first) = first {
            let rate = counts.consumed as f64 / first.elapsed().as_secs_f64().max(0.1);
            return format!("{}/s", HumanCount(rate as u64));
        }
        let reason = self.pipeline.desk.state().1.filter(|_| begun.elapsed() > JOINING);
        reason.unwrap_or_else(|| "joining the consumer group".to_owned())
    }
}

/// Prints the summary and where everything lies.
fn report(summary: &Summary, home: &Home, format: Format, out: &mut dyn Write) -> std::io::Result<()> {
    let root = home.is_kept().then(|| home.root());
    if format == Format::Json {
        return writeln!(out, "{}", summary.to_json(root));
    }
    out.write_all(summary.to_text(&table::offsets(&summary.offsets)).as_bytes())?;
    let Some(root) = root else {
        return writeln!(out, "\nThe files were temporary and are gone. `--keep DIR` keeps them in a new directory.");
    };
    let (mtga, root) = (program(), root.display());
    writeln!(out, "\nEverything lies in {root}:")?;
    writeln!(out, "  data/               the events")?;
    writeln!(out, "  tmp/store           offsets, failure queue, journal")?;
    writeln!(out, "  logs/               the service log")?;
    writeln!(out, "  config/, settings/  what it ran with")?;
    writeln!(out, "\nLook at it:")?;
    writeln!(out, "  {mtga} --home {root} status")?;
    writeln!(out, "  {mtga} --home {root} failure_queue_list")
}

/// This program, as it can be typed here.
fn program() -> String {
    let path = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("mtga"));
    let here = std::env::current_dir().ok();
    let short = here.and_then(|here| path.strip_prefix(here).ok().map(|short| Path::new(".").join(short)));
    short.unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_of_a_small_demo_is_accounted_for() {
        let brokers = Brokers::start().unwrap();
        let outer = tempfile::tempdir().unwrap();
        let (home, config) = furnish(Some(&outer.path().join("home")), &brokers).unwrap();
        let played = play(&brokers, &config, 5_000, &crossbeam_channel::never(), &mut Progress::Silent).unwrap();
        let summary = played.unwrap();
        assert_eq!(summary.mistakes(), [""; 0]);
        assert_eq!(summary.counted.consumed, 5_000);
        assert!(summary.expected.rejected.iter().filter(|count| **count > 0).count() >= 7, "{:?}", summary.expected);
        assert_eq!(summary.files.events.len(), 3);

        let mut out = Vec::new();
        report(&summary, &home, Format::People, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("| 15 | mulog_clean_24 | 15 "), "{text}");
        assert!(text.contains(&format!("Everything lies in {}", home.root().display())), "{text}");
        let narrow = |line: &&str| !line.starts_with('{') && !line.contains("--home");
        assert!(text.lines().filter(narrow).all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn an_interrupted_demo_ends_at_once() {
        let brokers = Brokers::start().unwrap();
        let (_home, config) = furnish(None, &brokers).unwrap();
        let (sender, signals) = crossbeam_channel::bounded(1);
        sender.send(Signal::Drain).unwrap();
        let played = play(&brokers, &config, 1_000_000, &signals, &mut Progress::Silent).unwrap();
        assert!(played.is_none());
    }
}
