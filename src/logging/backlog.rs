//! Lines that wait for the writing thread, counted at both ends, so that an end of the process can wait until none is left.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tracing_appender::non_blocking::NonBlocking;

/// How often it is looked whether lines are left.
const PACE: Duration = Duration::from_millis(5);

/// Takes lines for the writing thread.
#[derive(Clone, Debug)]
pub(super) struct Backlog {
    lines: NonBlocking,
    sent: Arc<AtomicU64>,
    written: Arc<AtomicU64>,
}

impl Backlog {
    /// Lines to the thread that counts those it has written.
    pub(super) fn new(lines: NonBlocking, written: Arc<AtomicU64>) -> Self {
        Self { lines, sent: Arc::default(), written }
    }

    /// Waits until every line that was sent is written, or could not be, for so long at most.
    pub(super) fn wait_written(&self, patience: Duration) {
        let begun = Instant::now();
        while self.written.load(Ordering::Acquire) < self.sent.load(Ordering::Acquire) && begun.elapsed() < patience {
            thread::park_timeout(PACE);
        }
    }
}

impl Write for Backlog {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.write_all(line).map(|()| line.len())
    }

    /// One line; nothing is one, too.
    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        // Before the thread can have written it.
        self.sent.fetch_add(1, Ordering::AcqRel);
        let sent = self.lines.write_all(line);
        if sent.is_err() {
            self.sent.fetch_sub(1, Ordering::AcqRel);
        }
        sent
    }

    fn flush(&mut self) -> io::Result<()> {
        self.lines.flush()
    }
}

/// The writing thread's end.
#[derive(Debug)]
pub(super) struct Written<W> {
    to: W,
    count: Arc<AtomicU64>,
}

impl<W> Written<W> {
    /// Counts the lines that are written there.
    pub(super) fn new(to: W) -> Self {
        Self { to, count: Arc::default() }
    }

    /// How many there were.
    pub(super) fn count(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.count)
    }
}

impl<W: Write> Write for Written<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.write_all(line).map(|()| line.len())
    }

    /// One line. What cannot be written is lost.
    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        let outcome = self.to.write_all(line);
        self.count.fetch_add(1, Ordering::AcqRel);
        outcome
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
