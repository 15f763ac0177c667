//! The service log: files under `log.dir`, and the terminal when the service runs in its foreground.
//!
//! One event a line, `time level target: message field=value …`, the time with the offset of the configured time zone;
//! line ends inside a message are escaped, so that foreign text cannot forge a line. From `log.stack_level` on, and
//! always for a panic, the backtrace follows in indented lines.
//! Lines are written by a thread of their own and none is dropped; the [`Logging`] that `main` keeps waits for the rest when
//! it goes, for three seconds at most. A panic that nobody contains (`panics`) is written too, and then ends the process. The
//! log never stops the service: what cannot be written (no space) is lost.

mod backlog;
mod line;
mod rotation;

use std::io::{IsTerminal, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use self::backlog::{Backlog, Written};
use self::line::{LineFormat, PANIC};
use self::rotation::RotatingFile;
use crate::config::{self, Level, TimeZone};
use crate::control::{Failure, FailureKind};
use crate::panics;

/// Lines that wait for the writing thread; beyond that, whoever logs waits.
const BUFFERED_LINES: usize = 16 * 1024;

/// The name of that thread.
const THREAD: &str = "log";

/// How long an end waits for lines that are not written yet: a disk may be slow, and may hang.
pub const LAST_LINES: Duration = Duration::from_secs(3);

/// How long a panic may take to be written before it ends the process.
const LAST_WORDS: Duration = Duration::from_secs(30);

/// Whether the log goes to the terminal as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Console {
    /// Files only: a daemon.
    Silent,
    /// Also standard error, if that is a terminal: the foreground.
    Terminal,
}

/// The running log. What is still buffered is written when it is dropped.
#[derive(Debug)]
pub struct Logging {
    handle: LogHandle,
    /// Ends the writing thread when it is dropped.
    writer: Arc<Mutex<Option<WorkerGuard>>>,
}

impl Drop for Logging {
    fn drop(&mut self) {
        // The guard gives the thread no more than a second.
        self.handle.backlog.wait_written(LAST_LINES);
        drop(self.writer.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl Logging {
    /// What changes it while it runs.
    pub fn handle(&self) -> LogHandle {
        self.handle.clone()
    }
}

/// Changes the running log.
#[derive(Clone, Debug)]
pub struct LogHandle {
    level: reload::Handle<LevelFilter, Registry>,
    backlog: Backlog,
}

impl LogHandle {
    /// From now on, events below `level` are not logged.
    pub fn set_level(&self, level: Level) {
        // Fails only when the log is gone, and then nobody misses the level.
        let _ = self.level.reload(filter(level));
    }

    /// Has the writing thread begin a new file if that of the log was moved away, although there is no line for it.
    pub fn reopen(&self) {
        // Even nothing is sent to it. It flushes the file after that, and a flush looks where the file is.
        let _ = self.backlog.clone().write_all(b"");
    }
}

/// Starts the log of this process, once, and has panics logged. One that nobody contains ends the process.
pub fn init(log: &config::Log, zone: TimeZone, console: Console) -> Result<Logging, Failure> {
    let (subscriber, logging) = build(log, zone, console)?;
    subscriber.try_init().map_err(|e| Failure::new(FailureKind::Failed, format!("cannot start the log: {e}")))?;
    let previous = std::panic::take_hook();
    let writer = Arc::clone(&logging.writer);
    std::panic::set_hook(Box::new(move |panic| {
        let is_end = panics::is_end();
        if is_end {
            // A log that hangs keeps nothing alive. Without this thread it may.
            drop(thread::Builder::new().spawn(|| {
                thread::sleep(LAST_WORDS);
                std::process::abort();
            }));
        }
        // First, since the backtrace in the log takes a while on a busy machine.
        previous(panic);
        let current = thread::current();
        // Who writes the log would wait for itself when the buffer is full.
        if current.name() != Some(THREAD) {
            tracing::error!(target: PANIC, thread = current.name().unwrap_or("?"), "{panic}");
        }
        if is_end {
            // Held to the end: another thread that panics meanwhile must not cut this short.
            let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
            drop(writer.take());
            std::process::abort();
        }
    }));
    Ok(logging)
}

fn build(
    log: &config::Log,
    zone: TimeZone,
    console: Console,
) -> Result<(impl tracing::Subscriber + Send + Sync + 'static, Logging), Failure> {
    let file = RotatingFile::open(log, zone, chrono::Utc::now).map_err(|e| {
        Failure::new(FailureKind::CannotCreate, format!("cannot open the service log in {}: {e}", log.dir.display()))
    })?;
    let written = Written::new(file);
    let count = written.count();
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(false)
        .buffered_lines_limit(BUFFERED_LINES)
        .thread_name(THREAD)
        .finish(written);
    let backlog = Backlog::new(writer, count);
    let (filtered, level) = reload::Layer::new(filter(log.level));
    let format = LineFormat::new(zone, log.stack_level);
    let to_terminal = console == Console::Terminal && std::io::stderr().is_terminal();
    let terminal = to_terminal.then(|| fmt::layer().event_format(format).with_writer(std::io::stderr).boxed());
    let handle = LogHandle { level, backlog: backlog.clone() };
    let subscriber = tracing_subscriber::registry()
        .with(filtered)
        .with(fmt::layer().event_format(format).with_ansi(false).with_writer(move || backlog.clone()))
        .with(terminal);
    Ok((subscriber, Logging { handle, writer: Arc::new(Mutex::new(Some(guard))) }))
}

fn filter(level: Level) -> LevelFilter {
    match level {
        Level::Trace => LevelFilter::TRACE,
        Level::Debug => LevelFilter::DEBUG,
        Level::Info => LevelFilter::INFO,
        Level::Warn => LevelFilter::WARN,
        Level::Error => LevelFilter::ERROR,
        Level::Off => LevelFilter::OFF,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use chrono::{DateTime, FixedOffset};

    use super::*;
    use crate::config::Rotation;

    fn logged(level: Level, stack_level: Level, work: impl FnOnce(&LogHandle)) -> String {
        let dir = tempfile::tempdir().unwrap();
        let dir_path = dir.path().join("logs");
        let log =
            config::Log { dir: dir_path, level, rotation: Rotation::Never, max_size: 1 << 20, keep: 3, stack_level };
        let zone = TimeZone::Fixed(FixedOffset::east_opt(8 * 3600).unwrap());
        let (subscriber, logging) = build(&log, zone, Console::Silent).unwrap();
        tracing::subscriber::with_default(subscriber, || work(&logging.handle()));
        drop(logging);
        fs::read_to_string(log.dir.join("mtga.log")).unwrap()
    }

    #[test]
    fn a_line_has_time_level_target_message_and_fields() {
        let text = logged(Level::Info, Level::Off, |_| {
            tracing::info!(target: "sink", path = %"data/a.log", lines = 3, "opened a file");
            tracing::debug!("not this one");
        });
        let (time, rest) = text.split_once(' ').unwrap();
        assert_eq!(DateTime::parse_from_rfc3339(time).unwrap().offset().local_minus_utc(), 8 * 3600);
        assert_eq!(rest, "INFO  sink: opened a file path=data/a.log lines=3\n");
    }

    #[test]
    fn the_level_changes_while_it_runs() {
        let text = logged(Level::Error, Level::Off, |log| {
            tracing::info!("before");
            log.set_level(Level::Info);
            tracing::info!("after");
        });
        assert!(!text.contains("before") && text.contains("after"), "{text}");
    }

    #[test]
    fn foreign_text_cannot_forge_a_line() {
        let text = logged(Level::Info, Level::Off, |_| tracing::info!("one\r\n2026-01-01 ERROR forged\u{1b}[2J"));
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn a_backtrace_follows_from_the_stack_level_on() {
        let text = logged(Level::Info, Level::Error, |_| {
            tracing::warn!("small trouble");
            tracing::error!("big trouble");
        });
        let (before, after) = text.split_once("big trouble").unwrap();
        assert_eq!(before.lines().count(), 2, "{text}");
        let first_place = after.lines().nth(2).unwrap();
        assert!(first_place.contains("src/logging/mod.rs"), "{text}");
    }
}
