//! The running service, as the control plane sees it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::asker::Asker;
use super::export::Exports;
use super::home::keep;
use super::pipeline::{Pipeline, engine};
use super::places::Places;
use crate::cli::Place;
use crate::config::Config;
use crate::control::{
    ClearQuery, Counts, Failure, FailureEntry, FailureKind, ListQuery, PartitionOffsets, Removed, Retried, Service,
    State, Status, total_lag,
};
use crate::delivery::Gauges;
use crate::fault::{duration, point};
use crate::logging::LogHandle;
use crate::msource::TopicPartition;
use crate::msource::consumer::Desk;
use crate::record::Reason;

/// How far back the rates look.
const RATE_WINDOW: Duration = Duration::from_secs(10);

/// How old a lag may be that `status` shows without asking again. A failure lasts half as long as it took, if that is longer: no
/// more than two thirds of the time go into questions that are not answered.
const LAG_FRESH: Duration = Duration::from_millis(250);

/// How long the brokers may give one client no answer before another one asks them.
const ASKER_PATIENCE: Duration = Duration::from_mins(1);

/// How long `status` waits for the brokers.
const LAG_TIMEOUT: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Live {
    pub(super) config: Config,
    pub(super) place: Place,
    pub(super) desk: Arc<Desk>,
    /// None while it starts, and while the disk fails.
    pipeline: Mutex<Option<Arc<Pipeline>>>,
    /// What the last pipeline showed: it is shown until there is another.
    gauges: Mutex<Option<Arc<Gauges>>>,
    log: LogHandle,
    started: Instant,
    samples: Mutex<VecDeque<(Instant, u64, u64)>>,
    /// Who asks the brokers, and when they answered it last.
    asker: Mutex<Option<(Asker, Instant)>>,
    lag: Mutex<Option<Lag>>,
    /// Set when everything is finished and committed.
    drained: AtomicBool,
}

/// What the brokers said last of the lag, or why that is not known.
struct Lag {
    fresh_until: Instant,
    answer: Result<u64, String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Live {
    pub(super) fn new(config: Config, place: Place, desk: Arc<Desk>, log: LogHandle) -> Self {
        Self {
            config,
            place,
            desk,
            pipeline: Mutex::new(None),
            gauges: Mutex::new(None),
            log,
            started: Instant::now(),
            samples: Mutex::default(),
            asker: Mutex::new(None),
            lag: Mutex::new(None),
            drained: AtomicBool::new(false),
        }
    }

    /// A pipeline is there.
    pub(super) fn begin(&self, pipeline: Arc<Pipeline>) -> Arc<Pipeline> {
        lock(&self.samples).clear();
        *lock(&self.gauges) = Some(Arc::clone(&pipeline.gauges));
        *lock(&self.pipeline) = Some(Arc::clone(&pipeline));
        pipeline
    }

    /// The pipeline ends: nobody finds it any more, and whoever works with it still will soon be done.
    pub(super) fn end(&self) {
        *lock(&self.pipeline) = None;
        lock(&self.samples).clear();
        self.desk.partitions.store(0, Ordering::Relaxed);
    }

    /// Whether there has been a pipeline.
    pub(super) fn has_run(&self) -> bool {
        lock(&self.gauges).is_some()
    }

    fn shown(&self) -> Option<Arc<Gauges>> {
        lock(&self.gauges).clone()
    }

    /// Takes a sample for the rates; called every second.
    pub(super) fn sample(&self) {
        let Some(gauges) = self.shown() else { return };
        let counts = gauges.counts();
        let mut samples = lock(&self.samples);
        samples.push_back((Instant::now(), counts.consumed, counts.written));
        while samples.front().is_some_and(|(at, ..)| at.elapsed() > RATE_WINDOW) {
            samples.pop_front();
        }
    }

    pub(super) fn set_drained(&self) {
        self.drained.store(true, Ordering::Release);
    }

    fn running(&self) -> Result<Arc<Pipeline>, Failure> {
        lock(&self.pipeline).clone().ok_or_else(|| self.absent())
    }

    /// Why there is no pipeline.
    fn absent(&self) -> Failure {
        let (state, reason) = self.desk.state();
        let why = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
        let what = if state == State::Paused { "the service pauses" } else { "the service is still starting" };
        Failure::new(FailureKind::Unavailable, format!("{what}{why}"))
    }

    fn rates(&self, counts: &Counts) -> (f64, f64) {
        let samples = lock(&self.samples);
        let Some((at, consumed, written)) = samples.front() else { return (0.0, 0.0) };
        let seconds = at.elapsed().as_secs_f64();
        if seconds < 0.5 {
            return (0.0, 0.0);
        }
        let rate = |now: u64, then: u64| (now.saturating_sub(then) as f64 / seconds * 10.0).round() / 10.0;
        (rate(counts.consumed, *consumed), rate(counts.written, *written))
    }

    fn rows(&self, timeout: Duration) -> Result<Vec<PartitionOffsets>, Failure> {
        let gauges = self.shown().ok_or_else(|| self.absent())?;
        let pipeline = lock(&self.pipeline).clone();
        // Taken out, so that no second caller waits behind this one's timeout with the lock held.
        let asker = lock(&self.asker).take();
        let (asker, answered) = match asker {
            Some(asker) => asker,
            None => (Asker::new(&self.config, timeout)?, Instant::now()),
        };
        let state = gauges.durable().state.clone();
        let asker = asker.within(timeout);
        let ours = pipeline.as_ref().map(|pipeline| pipeline.tracker.partitions());
        let rows = match &ours {
            Some(ours) if !self.has_none(ours) => asker.running_rows(&self.config, &state, ours, &self.desk.pending()),
            _ => asker.stopped_rows(&self.config, &state),
        };
        if let Some(lag) = rows.as_ref().ok().and_then(|rows| total_lag(rows).ok()) {
            *lock(&self.lag) = Some(Lag { fresh_until: Instant::now() + LAG_FRESH, answer: Ok(lag.unsigned_abs()) });
        }
        if rows.is_ok() {
            *lock(&self.asker) = Some((asker, Instant::now()));
        } else if answered.elapsed() < duration("FAULT_WATCHDOG_MS", ASKER_PATIENCE) {
            *lock(&self.asker) = Some((asker, answered));
        } else {
            // Its client may be cut off from brokers that another one reaches.
            asker.abandon();
        }
        rows
    }

    /// Whether no partition is ours, and the group has not given them all to others either: nobody here knows what is behind then.
    fn has_none(&self, ours: &[TopicPartition]) -> bool {
        let waits = self.desk.state().0 == State::Waiting || self.desk.pending().is_empty();
        ours.is_empty() && waits && !self.without_share()
    }

    fn without_share(&self) -> bool {
        self.desk.without_share.load(Ordering::Relaxed)
    }

    /// Whether there are partitions that could have a lag.
    fn has_lag(&self) -> bool {
        let ours = lock(&self.pipeline).as_ref().map(|pipeline| pipeline.tracker.partitions());
        let waits = self.desk.state().0 == State::Waiting && !self.without_share();
        self.has_run() && !waits && !ours.is_some_and(|ours| self.has_none(&ours))
    }

    /// The lag as it was last asked for; `None` when it is not known of every partition, with the reason if there is one.
    fn lag(&self) -> (Option<u64>, Option<String>) {
        if !self.has_lag() {
            return (None, None);
        }
        match &*lock(&self.lag) {
            Some(Lag { answer: Ok(lag), .. }) => (Some(*lag), None),
            Some(Lag { answer: Err(why), .. }) => (None, Some(why.clone())),
            None => (None, None),
        }
    }
}

impl Service for Live {
    fn status(&self) -> Result<Status, Failure> {
        let (mut state, reason) = self.desk.state();
        if self.desk.stopping() {
            state = State::Stopping;
        }
        let mut status = Status {
            state,
            reason_seconds: reason.is_some().then(|| self.desk.shown_for().as_secs()),
            reason,
            pid: Some(std::process::id()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: Some(self.started.elapsed().as_secs()),
            home_id: String::new(),
            consumed_per_second: 0.0,
            written_per_second: 0.0,
            counts: Counts::default(),
            lag: None,
            failure_queue_records: 0,
            failure_queue_bytes: 0,
            partitions: 0,
            open_files: 0,
            last_checkpoint_seconds: None,
            last_checkpoint_block: 0,
            gap_records: 0,
            removed: Removed::default(),
            client_restarts: 0,
            clients_left: 0,
            time_zone: self.config.time_zone.into(),
        };
        let Some(gauges) = self.shown() else { return Ok(status) };
        let (lag, unknown) = self.lag();
        status.lag = lag;
        // Whoever reads "consuming" is told at once when the brokers are away: the consumer itself may find out a minute later.
        status.reason = status.reason.or(unknown);
        status.counts = gauges.counts();
        (status.consumed_per_second, status.written_per_second) = self.rates(&status.counts);
        status.partitions = self.desk.partitions.load(Ordering::Relaxed) as u64;
        status.client_restarts = self.desk.client_restarts.load(Ordering::Relaxed);
        status.clients_left = self.desk.clients_left.load(Ordering::Relaxed) as u64;
        status.open_files = gauges.open_files.load(Ordering::Relaxed) as u64;
        let durable = gauges.durable();
        status.home_id.clone_from(&durable.state.home);
        status.failure_queue_records = durable.state.totals.queue_records;
        status.failure_queue_bytes = durable.state.totals.queue_bytes;
        status.gap_records = durable.state.totals.gaps;
        status.removed = Removed::from(&durable.state.totals);
        status.last_checkpoint_block = durable.state.number;
        status.last_checkpoint_seconds = Some(durable.at.elapsed().as_secs_f64());
        Ok(status)
    }

    fn ask_lag(&self) {
        let begun = Instant::now();
        if lock(&self.lag).as_ref().is_some_and(|lag| begun < lag.fresh_until) {
            return;
        }
        if !self.has_lag() {
            *lock(&self.lag) = None;
        } else if let Err(failure) = self.rows(LAG_TIMEOUT).and_then(|rows| total_lag(&rows)) {
            let fresh_until = Instant::now() + LAG_FRESH.max(begun.elapsed() / 2);
            *lock(&self.lag) = Some(Lag { fresh_until, answer: Err(failure.message) });
        }
    }

    fn offsets(&self) -> Result<Vec<PartitionOffsets>, Failure> {
        // The rest is for the reason, when brokers do not answer.
        self.rows(self.config.rpc.timeout / 8 * 5)
    }

    fn failure_count(&self) -> Result<u64, Failure> {
        let gauges = self.shown().ok_or_else(|| self.absent())?;
        let records = gauges.durable().state.totals.queue_records;
        Ok(records)
    }

    fn failure_list(&self, query: &ListQuery) -> Result<Vec<FailureEntry>, Failure> {
        self.running()?.failure_list(query, self.config.failure_queue.max_attempts)
    }

    fn retry_failures(&self, reason: Option<Reason>, progress: &dyn Fn(&str)) -> Result<Retried, Failure> {
        self.running()?.retry(reason, progress)
    }

    fn clear_failures(&self, query: &ClearQuery, progress: &dyn Fn(&str)) -> Result<u64, Failure> {
        self.running()?.clear(query, &Exports::of(&self.config, Some(&self.place.home)), progress)
    }

    fn reload(&self) -> Result<String, Failure> {
        // Whatever comes of the rest: whoever moved the log away waits for a new one.
        self.log.reopen();
        self.running()?;
        let loaded =
            super::load(&self.place).map_err(|mistakes| Failure::new(FailureKind::Config, mistakes.join("\n")))?;
        // Everything else of the configuration needs a restart: only the two settings files and the level are taken over.
        let engine = engine(&self.config)?;
        keep(&engine, &Places::of(&self.config).recipes)?;
        point("reload.kept");
        let changed = engine.fingerprint != self.desk.engine().fingerprint;
        self.desk.set_engine(engine);
        point("reload.set");
        self.log.set_level(loaded.config.log.level);
        let line = if changed { "the new settings are in force" } else { "the settings are unchanged" };
        tracing::info!(changed, level = ?loaded.config.log.level, "reloaded");
        Ok(line.to_owned())
    }

    fn stop(&self) -> Result<Option<String>, Failure> {
        self.desk.stop();
        if self.drained.load(Ordering::Acquire) {
            return Ok(None);
        }
        let Ok(pipeline) = self.running() else { return Ok(Some(self.absent().message)) };
        let in_flight = pipeline.gauges.counts().in_flight;
        let stalled = pipeline.gauges.stalled().map(|stalled| format!(", {stalled}")).unwrap_or_default();
        Ok(Some(format!("{in_flight} records in flight{stalled}")))
    }
}
