//! Whether an assignment may be lost although librdkafka does not say so.
//!
//! **Promise.** Nothing is committed, and nothing begins, in a generation in which the partitions may be another's. What waits
//! for that is done some passes later: an assignment of our own accord is soon behind everything that was queued before it.

use std::time::{Duration, Instant};

use super::{BATCH, Consumer, Error, IDLE_WAIT, PATIENCE};

/// Whether partitions were assigned again of our own accord.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reassigned {
    No,
    /// A revocation that comes now may be older than that: librdkafka takes the assignment for our answer to it, forgets that
    /// the old one is lost, and joins the next generation. What we commit may carry that one then, in which the partitions
    /// are another's. It is so until the queue was empty, or as many messages were taken as it had then: one that comes
    /// later is younger.
    Yes {
        queued: usize,
    },
}

impl Reassigned {
    /// So many messages were taken, after which the queue was empty or not. An event among them is answered first.
    pub(super) fn taken(&mut self, count: usize, is_empty: bool, has_event: bool) {
        if let Self::Yes { queued } = self {
            *queued = queued.saturating_sub(count);
            if !has_event && (is_empty || *queued == 0) {
                *self = Self::No;
            }
        }
    }
}

impl Consumer {
    /// Whether what is assigned may be another's by now: its revocation is on its way, or may be older than an assignment of our
    /// own accord, or the client has failed.
    pub(super) fn may_be_lost(&self) -> bool {
        self.reassigned != Reassigned::No || self.client.assignment_lost() || self.client.fatal_error().is_some()
    }

    /// Finds out, before a stop, what was queued before an assignment of our own accord. Records that are taken for that are
    /// read again at the next start.
    pub(super) fn outlast_reassignment(&mut self) -> Result<(), Error> {
        let until = Instant::now() + PATIENCE;
        while self.reassigned != Reassigned::No && Instant::now() < until {
            let mut batch = Vec::with_capacity(BATCH);
            self.client.consume(&mut batch, BATCH, Duration::ZERO);
            if batch.is_empty() {
                self.client.consume(&mut batch, 1, IDLE_WAIT);
            }
            self.reassigned.taken(batch.len(), batch.is_empty(), self.client.has_event());
            self.events()?;
        }
        Ok(())
    }
}
