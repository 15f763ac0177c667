//! A disk, directory or permission that fails: which errors are waited out, and how.

use std::io;
use std::time::{Duration, Instant};

use super::Error;
use super::durable::JournalFailed;
use super::writer::Delivery;
use crate::limits;
use crate::msink::file::{HiddenGone, SyncFailed};

/// First and longest pause between attempts while the disk fails.
const STALL_PAUSES: (Duration, Duration) = if cfg!(test) {
    (Duration::from_millis(1), Duration::from_millis(5))
} else {
    (Duration::from_millis(100), Duration::from_secs(5))
};

/// The disk fails.
pub(super) struct Stall {
    since: Instant,
    pause: Duration,
    pub(super) again: Instant,
    /// It fails for want of descriptors, of which open event files have most.
    pub(super) exhausted: bool,
}

impl Delivery {
    /// Whether the disk failed and is left alone for a moment.
    pub(super) fn is_stalled(&self) -> bool {
        self.stall.as_ref().is_some_and(|stall| Instant::now() < stall.again)
    }

    pub(super) fn stalled(&mut self, error: &io::Error) {
        let now = Instant::now();
        let stall = self.stall.get_or_insert_with(|| {
            tracing::error!(%error, "cannot write event files; consuming pauses until it works again");
            Stall { since: now, pause: STALL_PAUSES.0, again: now, exhausted: false }
        });
        stall.again = now + stall.pause;
        stall.exhausted = limits::is_exhausted(error);
        stall.pause = (stall.pause * 2).min(STALL_PAUSES.1);
        self.gauges.set_stalled(Some(format!("cannot write to {}: {error}", self.sink_dir.display())));
    }

    pub(super) fn recovered(&mut self) {
        if let Some(stall) = self.stall.take() {
            tracing::info!(after = ?stall.since.elapsed(), "event files can be written again");
            self.gauges.set_stalled(None);
        }
    }

    /// Tells what is tried again in place from a failed sync, after which nothing can be relied on, and from a journal that
    /// takes no frames.
    pub(super) fn may_pass(&self, error: io::Error) -> Result<io::Error, Error> {
        let error = match error.downcast::<SyncFailed>() {
            Ok(SyncFailed { what, source }) => return Err(Error::Sync(what, source)),
            Err(error) => error,
        };
        let error = match error.downcast::<HiddenGone>() {
            Ok(gone) => return Err(Error::Hidden(gone)),
            Err(error) => error,
        };
        match error.downcast::<JournalFailed>() {
            Ok(JournalFailed(source)) => Err(Error::Journal(self.checkpointer.journal_dir.clone(), source)),
            Err(error) => Ok(error),
        }
    }
}
