//! The application: puts the parts together. The only module that knows them all.
//!
//! [`App`] is what the commands work with. A running service is a `Pipeline` (the data plane's threads), seen by the control
//! socket through `Live`. Commands on a stopped service read its home (`View`), or, when they change something, run a
//! pipeline that is fed by nothing: so there is one way in which anything changes.

use std::io::{BufRead, Write};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;

use crate::cli::{
    Backend, DemoOptions, Format, Loaded, Moved, OffsetTarget, Place, Process, Scope, Selection, Verification,
    VerifyOptions,
};
use crate::config::{self, Config};
use crate::control::server::Server;
use crate::control::{
    ClearQuery, Counts, Failure, FailureEntry, FailureKind, ListQuery, PartitionOffsets, Retried, Service, State,
    Status,
};
use crate::msource::consumer::Desk;
use crate::record::{Discard, Reason};
use crate::signals::Signal;
use crate::transform::{Record, Scratch};

mod check;
mod demo;
mod export;
mod home;
mod live;
mod offsets;
mod pipeline;
mod queue;
mod rebuild;
mod retry;
mod verify;

use home::{Places, View, failed};
use live::Live;
use offsets::Asker;
use pipeline::{Feed, Pipeline, engine};

/// How often the main thread looks after the others.
const TICK: Duration = Duration::from_millis(100);

/// How often rates are sampled.
const SAMPLE: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub struct App;

/// Reads the configuration.
fn load(place: &Place) -> Result<Loaded, Vec<String>> {
    let sources = config::Sources {
        home: place.home.clone(),
        dir: place.config.clone(),
        env: place.env.clone(),
        flags: Vec::new(),
        cpus: thread::available_parallelism().map_or(1, std::num::NonZero::get),
    };
    match config::load(&sources) {
        Ok(loaded) => Ok(Loaded { config: loaded.config, warnings: loaded.warnings }),
        Err(mistakes) => Err(mistakes.iter().map(ToString::to_string).collect()),
    }
}

impl Backend for App {
    fn load(&self, place: &Place) -> Result<Loaded, Vec<String>> {
        load(place)
    }

    fn render(&self, config: &Config) -> String {
        config.to_yaml()
    }

    fn check(&self, config: &Config, scope: Scope) -> Vec<Failure> {
        check::check(config, scope)
    }

    fn run(&self, config: Config, process: Process<'_>) -> Result<(), Failure> {
        let desk = Arc::new(Desk::new(engine(&config, &Places::of(&config).recipes)?));
        let live = Arc::new(Live::new(config, process.place.clone(), Arc::clone(&desk), process.log.clone()));
        let server = Server::start(&live.config.rpc, Arc::clone(&live) as Arc<dyn Service>)?;
        let outcome = serve(&live, &process);
        if let Err(failure) = &outcome {
            tracing::error!("{failure}");
        }
        live.set_drained();
        server.close();
        outcome
    }

    fn local(&self, config: &Config) -> Result<Box<dyn Service>, Failure> {
        home::become_owner(config)?;
        Ok(Box::new(Stopped { config: config.clone() }))
    }

    fn set_offset(&self, config: &Config, what: &Selection, to: OffsetTarget) -> Result<Moved, Failure> {
        home::become_owner(config)?;
        Stopped { config: config.clone() }.with_pipeline(|pipeline| offsets::set(config, pipeline, what, to))
    }

    fn transform(
        &self,
        config: &Config,
        records: &mut dyn BufRead,
        events: &mut dyn Write,
        rejects: &mut dyn Write,
    ) -> Result<(), Failure> {
        transform(config, records, events, rejects)
    }

    fn verify(&self, options: &VerifyOptions, progress: &dyn Fn(&str)) -> Result<Verification, Failure> {
        verify::verify(options, progress)
    }

    fn demo(&self, options: &DemoOptions, format: Format, out: &mut dyn Write) -> Result<(), Failure> {
        demo::run(options, format, out)
    }
}

/// Starts the pipeline, looks after it until it is told to stop or fails, and ends it.
fn serve(live: &Arc<Live>, process: &Process<'_>) -> Result<(), Failure> {
    let starting = {
        let live = Arc::clone(live);
        let start =
            move || Pipeline::start(&live.config, &live.desk, Feed::Kafka).map(|pipeline| live.pipeline.set(pipeline));
        // On a thread of its own: recovery may wait for brokers, and signals are to be heard meanwhile.
        thread::Builder::new().name("start".into()).spawn(start).map_err(failed)?
    };
    watch(live, process, || starting.is_finished());
    let started = starting.join().map_err(|_| failed("the start panicked; see the service log"))?;
    if let Err(failure) = started {
        // Told to stop while recovery waited for a broker: nothing is in flight, the next start goes on with it.
        return if live.desk.stopping() { Ok(()) } else { Err(failure) };
    }
    let Some(pipeline) = live.pipeline.get() else { return Err(failed("the pipeline did not start")) };
    watch(live, process, || pipeline.has_ended());
    live.desk.stop();
    pipeline.end()
}

/// Serves signals, tells the starting command, and samples rates, until `over`.
fn watch(live: &Live, process: &Process<'_>, over: impl Fn() -> bool) {
    let mut sampled = Instant::now();
    let mut told = None;
    loop {
        match process.signals.recv_timeout(TICK) {
            Ok(Signal::Drain) => {
                tracing::info!("asked to stop: draining");
                live.desk.stop();
            }
            Ok(Signal::Reload) => {
                if let Err(failure) = live.reload() {
                    tracing::error!(%failure, "could not reload; the old settings stay");
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => thread::park_timeout(TICK),
        }
        if over() {
            return;
        }
        let state = live.desk.state();
        if told.as_ref() != Some(&state) {
            process.reporter.state(state.0, state.1.as_deref());
            told = Some(state);
        }
        if sampled.elapsed() >= SAMPLE {
            sampled = Instant::now();
            live.sample();
        }
    }
}

/// A service that does not run.
struct Stopped {
    config: Config,
}

impl Stopped {
    /// Runs a pipeline that is fed by nothing.
    fn with_pipeline<T>(&self, act: impl FnOnce(&Pipeline) -> Result<T, Failure>) -> Result<T, Failure> {
        let desk = Arc::new(Desk::new(engine(&self.config, &Places::of(&self.config).recipes)?));
        let pipeline = Pipeline::start(&self.config, &desk, Feed::Nothing)?;
        let outcome = act(&pipeline);
        let ended = pipeline.end();
        outcome.and_then(|value| ended.map(|()| value))
    }

    fn not_running() -> Failure {
        Failure::new(FailureKind::Unavailable, "mtga is not running")
    }
}

impl Service for Stopped {
    fn status(&self) -> Result<Status, Failure> {
        let view = View::open(&self.config)?;
        let totals = &view.state.totals;
        Ok(Status {
            state: State::Stopped,
            reason: None,
            pid: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: None,
            home_id: view.state.home.clone(),
            consumed_per_second: 0.0,
            written_per_second: 0.0,
            counts: Counts::from(totals),
            lag: None,
            failure_queue_records: totals.queue_records,
            failure_queue_bytes: totals.queue_bytes,
            partitions: 0,
            open_files: 0,
            last_checkpoint_seconds: None,
            last_checkpoint_block: view.state.number,
            gap_records: totals.gaps,
        })
    }

    fn offsets(&self) -> Result<Vec<PartitionOffsets>, Failure> {
        let state = View::open(&self.config)?.state;
        Asker::new(&self.config, self.config.rpc.timeout / 4)?.stopped_rows(&self.config, &state)
    }

    fn failure_count(&self) -> Result<u64, Failure> {
        Ok(View::open(&self.config)?.state.totals.queue_records)
    }

    fn failure_list(&self, query: &ListQuery) -> Result<Vec<FailureEntry>, Failure> {
        let view = View::open(&self.config)?;
        queue::list(query, self.config.failure_queue.max_attempts, &|each| view.entries(each))
    }

    fn retry_failures(&self, reason: Option<Reason>, progress: &dyn Fn(&str)) -> Result<Retried, Failure> {
        self.with_pipeline(|pipeline| pipeline.retry(reason, progress))
    }

    fn clear_failures(&self, query: &ClearQuery, progress: &dyn Fn(&str)) -> Result<u64, Failure> {
        self.with_pipeline(|pipeline| pipeline.clear(query, progress))
    }

    fn reload(&self) -> Result<String, Failure> {
        Err(Self::not_running())
    }

    fn stop(&self) -> Result<Option<String>, Failure> {
        Ok(None)
    }
}

/// Records, one a line, into events and rejects. What is left out is told beside the rejects.
fn transform(
    config: &Config,
    records: &mut dyn BufRead,
    events: &mut dyn Write,
    rejects: &mut dyn Write,
) -> Result<(), Failure> {
    let loaded = crate::settings::Settings::load(&config.settings, config.app_id).map_err(|mistakes| {
        let lines: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
        Failure::new(FailureKind::Config, lines.join("\n"))
    })?;
    let options = crate::transform::Options {
        app_id: config.app_id,
        validation: config.validation,
        uuid: config.uuid,
        time_zone: config.time_zone,
    };
    let transform = crate::transform::Transform::new(&loaded.settings, options);
    let topic = config.kafka.topics.first().map_or("", String::as_str);
    let (mut scratch, mut line, mut event) = (Scratch::default(), Vec::new(), Vec::new());
    let mut number = 0;
    loop {
        line.clear();
        let broken = |error: std::io::Error| failed(format!("cannot read or write: {error}"));
        if records.read_until(b'\n', &mut line).map_err(broken)? == 0 {
            return events.flush().map_err(broken);
        }
        let value = line.strip_suffix(b"\n").unwrap_or(&line);
        let value = value.strip_suffix(b"\r").unwrap_or(value);
        number += 1;
        if value.is_empty() {
            continue;
        }
        event.clear();
        let record =
            Record { topic, topic_id: "", partition: 0, offset: number - 1, timestamp: None, value: Some(value) };
        match transform.apply(&mut scratch, &record, &mut event) {
            Ok(()) => events.write_all(&event).map_err(broken)?,
            Err(Discard::Filtered(filter)) => writeln!(rejects, "line {number}: filtered: {filter}").map_err(broken)?,
            Err(Discard::Rejected(reject)) => {
                writeln!(rejects, "line {number}: {}: {}", reject.reason, reject.detail).map_err(broken)?;
            }
        }
    }
}
