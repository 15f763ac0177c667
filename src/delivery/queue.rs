//! How entries leave the failure queue: on command, and as the oldest ones where its bound asks for that.
//!
//! A removal is a synced frame of the journal before it is answered. None is made while a block is half-written, since that
//! has the next number already.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::Error;
use super::writer::Delivery;
use crate::fault;
use crate::msource::journal::{Frame, QueueCause, QueueChange, QueueEntry};
use crate::msource::store::Walk;

/// Entries of the failure queue dropped together: one frame of the journal.
const DROP_MAX: usize = 10_000;

/// What an entry takes in memory beyond its size.
const ENTRY_COST: u64 = 200;

/// Share of the room for blocks that new entries may have before their checkpoint is made.
const HELD_SHARE: u64 = 16;

/// How often the log tells of dropped entries.
const TELL_INTERVAL: Duration = Duration::from_secs(10);

/// See [`Inbox::Queue`](super::Inbox::Queue).
pub(super) type Removal = (Vec<(u64, u64)>, QueueCause, Sender<()>);

impl Delivery {
    /// Takes entries out of the failure queue; when this returns, that is durable.
    pub(super) fn remove_entries(&mut self, removed: Vec<(u64, u64)>, cause: QueueCause) -> Result<(), Error> {
        let keys: Vec<u64> = removed.iter().map(|(key, _)| *key).collect();
        let frame = Frame::Queue(QueueChange { number: self.state.number + 1, removed, cause });
        self.append(&frame)?;
        self.sync_journal()?;
        fault::point("queue_removed");
        self.state.apply(&frame);
        self.remove.extend(keys);
        self.dirty = true;
        self.show_queue();
        Ok(())
    }

    /// Bytes of the failure queue beyond its bound, where the oldest entries may go.
    fn excess(&self) -> u64 {
        self.queue_bound.map_or(0, |bound| self.state.totals.queue_bytes.saturating_sub(bound))
    }

    /// Keeps the failure queue below its bound where the oldest entries may go. Looks only at what the store has, while no
    /// removal is on its way there, and takes nothing that someone works on.
    fn drop_oldest(&mut self) -> Result<(), Error> {
        let mut excess = self.excess();
        if excess == 0 || self.in_checkpoint || !self.remove.is_empty() || self.is_halfway() {
            return Ok(());
        }
        let open = self.state.open();
        if self.all_open.as_ref() == Some(&open) {
            return Ok(());
        }
        let claimed = Arc::clone(&self.claimed);
        let claimed = claimed.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut removed, mut some_open, mut all_open) = (Vec::new(), false, true);
        self.checkpointer.store.entries(0, &mut |key, entry| {
            if excess == 0 || key >= *claimed || removed.len() >= DROP_MAX {
                all_open = false;
                return Walk::Stop;
            }
            if self.state.is_open(key, &entry) {
                some_open = true;
                return Walk::On;
            }
            excess = excess.saturating_sub(entry.size());
            removed.push((key, entry.size()));
            Walk::On
        })?;
        // To find that out again for each message would take all the time there is. The next checkpoint may bring others.
        self.all_open = (some_open && all_open && removed.is_empty()).then_some(open);
        if removed.is_empty() {
            return Ok(());
        }
        let dropped = removed.len() as u64;
        self.remove_entries(removed, QueueCause::Dropped)?;
        fault::point("queue_dropped");
        self.untold += dropped;
        Ok(())
    }

    /// Drops until the queue is within its bound, and makes new entries droppable as fast as the disk lets it.
    pub(super) fn keep_bound(&mut self) -> Result<(), Error> {
        self.drop_oldest()?;
        if self.dirty && self.excess() > 0 && !self.is_seals_turn() {
            self.checkpoint()?;
        }
        if self.untold > 0 && self.told.is_none_or(|told| told.elapsed() >= TELL_INTERVAL) {
            self.told = Some(Instant::now());
            let (dropped, ever) = (std::mem::take(&mut self.untold), self.state.totals.dropped);
            tracing::error!(dropped, ever, "the failure queue is full: its oldest entries were dropped");
        }
        Ok(())
    }

    /// Takes out of the failure queue what was asked for.
    pub(super) fn serve_removals(&mut self) -> Result<(), Error> {
        if self.is_halfway() {
            return Ok(());
        }
        for (removed, cause, reply) in std::mem::take(&mut self.removals) {
            self.remove_entries(removed, cause)?;
            self.answer_after_checkpoint(reply)?;
        }
        Ok(())
    }

    /// Keeps new entries for the next checkpoint.
    pub(super) fn hold(&mut self, entries: Vec<(u64, QueueEntry)>) {
        let bytes: u64 = entries.iter().map(|(_, entry)| entry.size() + ENTRY_COST).sum();
        self.budget.take(bytes);
        self.held += bytes;
        self.insert.extend(entries);
    }

    /// Whether a checkpoint is due for the entries that wait for it. It makes copies of them, so no further block is taken
    /// until they are on their way.
    pub(super) fn holds_enough(&self) -> bool {
        self.held > self.budget.limit() / HELD_SHARE
    }

    /// Begins the checkpoint that is due for entries; returns whether there is room for more now.
    pub(super) fn let_go(&mut self) -> Result<bool, Error> {
        // A seal that is synced takes them with it, and must not wait for one checkpoint after the other.
        if !self.seal.is_synced() {
            self.checkpoint()?;
        }
        Ok(!self.holds_enough())
    }

    pub(super) fn show_queue(&self) {
        self.gauges.queue_bytes.store(self.state.totals.queue_bytes, Ordering::Relaxed);
    }
}
