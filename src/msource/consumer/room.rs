//! Room for records: what the thread does while there is none.
//!
//! **Promise.** Records wait while the memory bound is reached, the disk fails, or the failure queue is full and is to pause
//! us. When that lasts, the partitions are paused, so that the group can be served, and read on from where they stand
//! afterwards.
//!
//! **How it fails.** A pause that librdkafka refuses is tried again. A partition that it does not resume is noticed by the
//! watchdog.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::slot::Fetch;
use super::{Consumer, Error, IDLE_WAIT, PATIENCE};
use crate::config::WhenFull;

/// Longest wait for room while much may be fetched meanwhile.
const SHORT_WAIT: Duration = Duration::from_millis(20);

/// What librdkafka has fetched ahead. It stops fetching when keys and values are many, and does not count headers. That these
/// may be far larger is seen here, by the records that were taken lately.
#[derive(Debug)]
pub(super) struct Ahead {
    /// Bytes of headers that may lie in its queue.
    most: u64,
    /// Bytes of headers that a record may have: the most lately, which a smaller one lowers by a sixteenth of the difference.
    each: u64,
}

impl Ahead {
    pub(super) const fn new(most: u64) -> Self {
        Self { most, each: 0 }
    }

    /// A record with so many bytes of headers was taken.
    #[inline]
    pub(super) fn taken(&mut self, headers: u64) {
        self.each = headers.max((self.each * 15 + headers) / 16);
    }

    /// Whether so many records ahead are too many.
    fn is_too_far(&self, queued: usize) -> bool {
        self.each.saturating_mul(queued as u64) > self.most
    }

    /// How long a wait may be in which records are fetched.
    fn wait(&self) -> Duration {
        if self.each == 0 { IDLE_WAIT } else { SHORT_WAIT }
    }
}

impl Consumer {
    /// Whether records may be taken now.
    pub(super) fn has_room(&mut self) -> bool {
        let blocked = self.parts.gauges.stalled().is_some() || self.queue_is_full();
        let room = !blocked && self.parts.budget.wait_for_room(Duration::ZERO);
        if room {
            self.no_room_since = None;
            if std::mem::take(&mut self.paused) {
                let partitions = self.partitions();
                if let Err(error) = self.client.resume(&partitions) {
                    tracing::warn!(%error, "cannot resume the partitions");
                }
                self.rewind(&partitions);
            }
        }
        room
    }

    pub(super) fn queue_is_full(&self) -> bool {
        let (most, when_full) = self.parts.queue;
        when_full == WhenFull::Pause && self.parts.gauges.queue_bytes.load(Ordering::Relaxed) >= most
    }

    /// Waits a moment for room. When that lasts, the partitions are paused, and the group is served by taking nothing.
    pub(super) fn wait_for_room(&mut self) -> Result<(), Error> {
        let since = *self.no_room_since.get_or_insert_with(Instant::now);
        if !self.paused {
            // Blocks that wait for company would be the ones that are waited for.
            for number in 0..self.slots.len() {
                self.cut(number)?;
            }
            if since.elapsed() < PATIENCE && !self.ahead.is_too_far(self.client.queued()) {
                let wait = self.ahead.wait();
                self.parts.budget.wait_for_room(wait);
                if self.parts.gauges.stalled().is_some() || self.queue_is_full() {
                    std::thread::park_timeout(wait);
                }
                return Ok(());
            }
            let partitions = self.partitions();
            match self.client.pause(&partitions) {
                Ok(()) => self.paused = true,
                Err(error) => tracing::warn!(%error, "cannot pause the partitions"),
            }
        }
        let mut batch = std::mem::take(&mut self.batch);
        self.client.consume(&mut batch, 1, IDLE_WAIT);
        self.reassigned.taken(batch.len(), batch.is_empty(), self.client.has_event());
        let routed = self.route(&mut batch);
        self.batch = batch;
        routed
    }

    /// Waits for room before more of a batch is taken, since it may be many times the bound when it is decompressed. When that
    /// lasts, the rest of it is dropped, and read again when there is room.
    pub(super) fn wait_within_batch(&mut self) -> Result<(), Error> {
        if self.paused || self.parts.budget.wait_for_room(Duration::ZERO) {
            return Ok(());
        }
        for number in 0..self.slots.len() {
            self.cut(number)?;
        }
        let until = Instant::now() + PATIENCE;
        while !self.parts.budget.wait_for_room(self.ahead.wait()) {
            let now = Instant::now();
            let too_far = self.ahead.is_too_far(self.client.queued());
            if now >= until || too_far || self.parts.desk.stopping() || self.parts.gauges.is_over() {
                self.slots.iter_mut().filter(|slot| slot.fetch == Fetch::On).for_each(|slot| slot.read_again(now));
                break;
            }
            self.serve_seals()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_ahead_are_too_many_by_the_headers_of_those_before_and_only_while_these_have_some() {
        let mut ahead = Ahead::new(8 << 20);
        ahead.taken(0);
        assert!(!ahead.is_too_far(1_000_000));
        ahead.taken(800 << 10);
        assert!(ahead.is_too_far(11) && !ahead.is_too_far(10));
        assert!(ahead.wait() < IDLE_WAIT);
        (0..200).for_each(|_| ahead.taken(100));
        assert!(!ahead.is_too_far(50_000) && ahead.is_too_far(90_000), "{ahead:?}");
        (0..200).for_each(|_| ahead.taken(0));
        assert!(!ahead.is_too_far(1_000_000) && ahead.wait() == IDLE_WAIT, "{ahead:?}");
    }
}
