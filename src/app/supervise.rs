//! The main thread of a service: starts the pipeline, looks after it, and begins again when the disk failed it.
//!
//! A sync that failed, a journal or a store that cannot be written end the pipeline, as a kill would: in order, and without
//! a drain. It is then started again from the home, recovery included, with backoff until that works or the service is told
//! to stop. The process, its lock, socket and log stay meanwhile, and `status` says why it pauses. Everything else that ends
//! the pipeline ends the process: nothing is gained by meeting the same bug again and again.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;

use super::TICK;
use super::broken::{Broken, failed};
use super::live::Live;
use super::pipeline::Pipeline;
use super::places::Opening;
use super::ready::Feed;
use super::retry;
use crate::cli::Process;
use crate::control::{Failure, Service, State};
use crate::signals::Signal;

/// How often rates are sampled.
const SAMPLE: Duration = Duration::from_secs(1);

/// First and longest pause before the pipeline is started again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// What the disk failed of, since it last worked.
struct Trouble {
    message: String,
    since: Instant,
    pause: Duration,
}

/// Runs the pipeline, again and again if need be, until the service is told to stop or fails for good.
pub(super) fn serve(live: &Arc<Live>, process: &Process<'_>) -> Result<(), Failure> {
    let mut opening = Opening::First;
    let mut trouble: Option<Trouble> = None;
    loop {
        let failure = match run(live, process, opening, &mut trouble) {
            Ok(()) => return Ok(()),
            Err(Broken::Lasting(failure)) => return Err(failure),
            Err(Broken::Passing(failure)) => failure,
        };
        if live.has_run() {
            opening = Opening::Again;
        }
        let pause = tell(&mut trouble, &failure);
        live.desk.show(State::Paused, Some(failure.message));
        let until = Instant::now() + pause;
        watch(live, process, || live.desk.stopping() || Instant::now() >= until);
        if live.desk.stopping() {
            tracing::warn!("stopped while the disk fails: what is in flight is completed at the next start");
            return Ok(());
        }
    }
}

/// Starts the pipeline and looks after it until it ends.
fn run(live: &Arc<Live>, process: &Process<'_>, opening: Opening, trouble: &mut Option<Trouble>) -> Result<(), Broken> {
    let starting = {
        let (live, lock) = (Arc::clone(live), Arc::clone(&process.lock));
        let start = move || {
            let pipeline = Pipeline::start(&live.config, &lock, &live.desk, Feed::Kafka, opening)?;
            retry::begin(&pipeline, &live.config.failure_queue)?;
            Ok::<_, Broken>(live.begin(pipeline))
        };
        // On a thread of its own: recovery may wait for brokers, and signals are to be heard meanwhile.
        thread::Builder::new().name("start".into()).spawn(start).map_err(failed)?
    };
    watch(live, process, || starting.is_finished());
    let pipeline = match starting.join().map_err(|_| failed("the start panicked; see the service log"))? {
        // Told to stop while recovery waited, for a broker for example: nothing is in flight, the next start goes on with it.
        Err(_) if live.desk.stopping() => return Ok(()),
        started => started?,
    };
    watch(live, process, || {
        if pipeline.has_saved()
            && let Some(trouble) = trouble.take()
        {
            tracing::info!(after = ?trouble.since.elapsed(), "the disk works again");
        }
        pipeline.has_ended()
    });
    live.end();
    if let Some(stalled) = pipeline.gauges.stalled() {
        live.desk.show(State::Paused, Some(stalled));
    }
    let ended = pipeline.end();
    if ended.is_ok() && !live.desk.stopping() {
        return Err(failed("the pipeline ended by itself; this is a bug").into());
    }
    ended
}

/// Logs a failure unless it is the same one still; returns how long to wait now.
fn tell(trouble: &mut Option<Trouble>, failure: &Failure) -> Duration {
    let known = trouble.as_ref().is_some_and(|trouble| trouble.message == failure.message);
    if !known {
        tracing::error!(%failure, "the disk fails; consuming pauses until it works again");
    }
    let (since, pause) = match trouble {
        Some(trouble) => (trouble.since, (trouble.pause * 2).min(PAUSES.1)),
        None => (Instant::now(), PAUSES.0),
    };
    *trouble = Some(Trouble { message: failure.message.clone(), since, pause });
    pause
}

/// Looks after the lock of the home and the pid file. A disk that fails is the pipeline's business, which says so.
fn keep(process: &Process<'_>) {
    if let Err(error) = process.lock.keep() {
        tracing::debug!(%error, "cannot look after the lock of this home");
    }
    if let Err(error) = process.pid_file.keep() {
        tracing::debug!(%error, "the pid file cannot be written yet");
    }
}

/// Serves signals, tells the starting command, and samples rates, until `over`.
fn watch(live: &Live, process: &Process<'_>, mut over: impl FnMut() -> bool) {
    let mut sampled = Instant::now();
    let mut told = None;
    loop {
        match process.signals.recv_timeout(TICK) {
            Ok(Signal::Drain) => {
                tracing::info!("draining");
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
            keep(process);
        }
    }
}
