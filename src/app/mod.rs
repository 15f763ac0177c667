//! The application: puts the parts together. The only module that knows them all.
//!
//! [`App`] is what the commands work with. A running service is a `Pipeline` (the data plane's threads), seen by the control
//! socket through `Live`. Commands on a stopped service read its home (`View`), or, when they change something, run a
//! pipeline that is fed by nothing: so there is one way in which anything changes.

use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::cli::{
    Adoption, Backend, DemoOptions, Format, Loaded, Moved, OffsetTarget, Place, Process, Scope, Selection,
    Verification, VerifyOptions,
};
use crate::config::{self, Config};
use crate::control::server::Server;
use crate::control::{
    ClearQuery, Counts, Failure, FailureEntry, FailureKind, ListQuery, PartitionOffsets, Removed, Retried, Service,
    State, Status,
};
use crate::lock::HomeLock;
use crate::msource::consumer::Desk;
use crate::msource::journal::Totals;
use crate::record::{Discard, Reason};
use crate::terminal;
use crate::transform::{Record, Scratch};

mod adopt;
mod asker;
mod broken;
mod check;
mod demo;
mod export;
mod home;
mod identity;
mod live;
mod offsets;
mod pipeline;
mod places;
mod queue;
mod ready;
mod rebuild;
mod retry;
mod supervise;
mod turns;
mod verify;

use asker::Asker;
use broken::failed;
use export::Exports;
use home::View;
use live::Live;
use pipeline::{Pipeline, engine};
use ready::Feed;

/// How often the main thread looks after the others.
const TICK: Duration = Duration::from_millis(100);

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
        Ok(loaded) => Ok(Loaded { config: loaded.config, warnings: loaded.warnings, exposed: loaded.exposed }),
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
        let desk = Arc::new(Desk::new(engine(&config)?));
        let live = Arc::new(Live::new(config, process.place.clone(), Arc::clone(&desk), process.log.clone()));
        let server = Server::start(&live.config.rpc, Arc::clone(&live) as Arc<dyn Service>)?;
        let outcome = supervise::serve(&live, &process);
        if let Err(failure) = &outcome {
            tracing::error!("{failure}");
        }
        live.set_drained();
        server.close();
        outcome
    }

    fn local(&self, config: &Config) -> Result<Box<dyn Service>, Failure> {
        Ok(Box::new(Stopped { config: config.clone(), lock: None }))
    }

    fn stopped(&self, config: &Config, lock: HomeLock) -> Result<Box<dyn Service>, Failure> {
        Ok(Box::new(Stopped { config: config.clone(), lock: Some(lock) }))
    }

    fn set_offset(
        &self,
        config: &Config,
        lock: HomeLock,
        what: &Selection,
        to: OffsetTarget,
        progress: &dyn Fn(&str),
    ) -> Result<Moved, Failure> {
        let stopped = Stopped { config: config.clone(), lock: Some(lock) };
        stopped.with_pipeline(|pipeline| offsets::set(config, pipeline, what, to, progress))
    }

    fn adopt(
        &self,
        place: &Place,
        config: &Config,
        lock: HomeLock,
        dir: &Path,
        progress: &dyn Fn(&str),
    ) -> Result<Adoption, Failure> {
        adopt::adopt(place, (config, &lock), dir, progress)
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

impl From<&Totals> for Removed {
    fn from(totals: &Totals) -> Self {
        Self { cleared: totals.cleared, dropped: totals.dropped, lost: totals.lost }
    }
}

/// A service that does not run.
struct Stopped {
    config: Config,
    /// Where it is to be changed.
    lock: Option<HomeLock>,
}

impl Stopped {
    /// Runs a pipeline that is fed by nothing.
    fn with_pipeline<T>(&self, act: impl FnOnce(&Pipeline) -> Result<T, Failure>) -> Result<T, Failure> {
        let Some(lock) = &self.lock else { return Err(failed("this home is not locked; this is a bug")) };
        Pipeline::run((&self.config, lock), Feed::Nothing, act)
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
            reason_seconds: None,
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
            removed: Removed::from(totals),
            client_restarts: 0,
            clients_left: 0,
            time_zone: self.config.time_zone.into(),
        })
    }

    fn offsets(&self) -> Result<Vec<PartitionOffsets>, Failure> {
        let state = View::open(&self.config)?.state;
        let time = self.config.rpc.timeout;
        Asker::new(&self.config, time)?.within(time).stopped_rows(&self.config, &state)
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
        let exports = Exports::of(&self.config, None);
        self.with_pipeline(|pipeline| pipeline.clear(query, &exports, progress))
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
                let detail = terminal::shown(&reject.detail);
                writeln!(rejects, "line {number}: {}: {detail}", reject.reason).map_err(broken)?;
            }
        }
    }
}
