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
            if since.elapsed() < PATIENCE {
                self.parts.budget.wait_for_room(IDLE_WAIT);
                if self.parts.gauges.stalled().is_some() || self.queue_is_full() {
                    std::thread::park_timeout(IDLE_WAIT);
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
        while !self.parts.budget.wait_for_room(IDLE_WAIT) {
            let now = Instant::now();
            if now >= until || self.parts.desk.stopping() || self.parts.gauges.is_over() {
                self.slots.iter_mut().filter(|slot| slot.fetch == Fetch::On).for_each(|slot| slot.read_again(now));
                break;
            }
            self.serve_seals()?;
        }
        Ok(())
    }
}
