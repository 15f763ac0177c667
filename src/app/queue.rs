//! The failure queue: listed, tried again, cleared.
//!
//! Whatever changes the queue takes a [`Turn`] first: one at a time, from keys that are claimed, so that an entry is never in
//! two blocks at once and `drop_oldest` takes none that is being worked on. Work goes in rounds of a bounded size; each ends
//! when it is durable and in the store. Nothing here holds more than a round in memory.

use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, bounded};

use super::broken::{chain, failed};
use super::export::Exports;
use super::pipeline::Pipeline;
use crate::block::{RawBlock, Records, Source};
use crate::control::{ClearQuery, Failure, FailureEntry, FailureKind, ListQuery, Retried};
use crate::delivery::{Finish, Inbox};
use crate::msource::consumer::now_millis;
use crate::msource::journal::{QueueCause, QueueEntry};
use crate::msource::payload::claimed_size;
use crate::msource::store::Walk;
use crate::record::Reason;
use crate::terminal;

/// Entries tried again together.
pub(super) const RETRY_BLOCK: usize = 500;

/// Bytes tried again together.
pub(super) const RETRY_BYTES: u64 = 1 << 20;

/// Blocks between two checkpoints of a long retry: what it may have in flight beside the records from Kafka.
const ROUND: usize = 16;

/// Entries removed together: one frame of the journal.
const CLEAR_CHUNK: usize = 10_000;

/// Bytes of a payload that a list shows.
const HEAD: usize = 60;

/// How often a long command says that it goes on.
const PROGRESS: Duration = Duration::from_millis(500);

/// Entries that are looked at between two signs of progress.
const LOOKS: u64 = 10_000;

/// Entries without a limit in a list.
const LIST_DEFAULT: u64 = 1000;

/// Entries in a list, whatever the limit: it is one answer in memory.
const LIST_MAX: u64 = 100_000;

/// Walks over entries in order of arrival.
pub(super) type Entries<'a> = dyn Fn(&mut dyn FnMut(u64, QueueEntry) -> Walk) -> Result<(), Failure> + 'a;

/// The answer of `failure_queue_list`.
pub(super) fn list(query: &ListQuery, max_attempts: u32, entries: &Entries<'_>) -> Result<Vec<FailureEntry>, Failure> {
    let now = now_millis();
    let limit = query.limit.unwrap_or(LIST_DEFAULT).min(LIST_MAX) as usize;
    let mut rows = Vec::new();
    if limit == 0 {
        return Ok(rows);
    }
    entries(&mut |position, entry| {
        if query.reason.is_none_or(|reason| reason == entry.reject.reason) {
            rows.push(row(position, &entry, max_attempts, now));
        }
        if rows.len() >= limit { Walk::Stop } else { Walk::On }
    })?;
    Ok(rows)
}

/// Whether an entry waits for a command or for another recipe: only what is wrong with a file's name is tried by itself,
/// `max_attempts` times after the first failure.
pub(super) fn is_parked(entry: &QueueEntry, max_attempts: u32) -> bool {
    entry.reject.reason != Reason::Sink || entry.attempts > max_attempts
}

fn row(position: u64, entry: &QueueEntry, max_attempts: u32, now: i64) -> FailureEntry {
    let head = &entry.value[..entry.value.len().min(HEAD)];
    FailureEntry {
        position,
        topic: entry.partition.topic.to_string(),
        partition: entry.partition.partition,
        offset: entry.offset,
        reason: entry.reject.reason,
        detail: terminal::shown(&entry.reject.detail).into_owned(),
        attempts: entry.attempts,
        parked: is_parked(entry, max_attempts),
        age_seconds: u64::try_from((now - entry.first_failure) / 1000).unwrap_or(0),
        size: entry.value.len() as u64,
        head: printable(head),
    }
}

/// Text with what is not printable escaped.
fn printable(bytes: &[u8]) -> String {
    terminal::shown(&String::from_utf8_lossy(bytes)).into_owned()
}

/// A turn at the queue, with everything before it in the store.
pub(super) struct Turn<'a> {
    pipeline: &'a Pipeline,
    progress: &'a dyn Fn(&str),
    /// Whether blocks were sent that may not be durable yet.
    open: bool,
    _taken: MutexGuard<'a, ()>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // What is in flight stays claimed for ever if the service ends before it is settled.
        if !self.open || self.settle().is_ok() {
            self.pipeline.turns.claim(u64::MAX);
        }
    }
}

impl Turn<'_> {
    /// Waits until everything sent so far is durable and in the store.
    pub(super) fn settle(&mut self) -> Result<(), Failure> {
        self.pipeline.barrier(self.progress)?;
        self.open = false;
        Ok(())
    }

    /// Sends a block of entries; they must be claimed.
    pub(super) fn submit(&mut self, entries: Vec<(u64, QueueEntry)>) -> Result<(), Failure> {
        let pipeline = self.pipeline;
        while !pipeline.budget.wait_for_room(PROGRESS) {
            pipeline.refuse_stop()?;
            (self.progress)("waiting for room: the disk or the topic is ahead");
        }
        pipeline.refuse_stop()?;
        let sender = pipeline.blocks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(sender) = sender else { return Err(stopping()) };
        let bytes = entries.iter().map(|(_, entry)| pipeline.cost(entry)).sum();
        pipeline.gauges.retried(entries.len() as u64);
        pipeline.budget.take(bytes);
        self.open = true;
        let block = |ticket| RawBlock {
            ticket,
            source: Source::Queue(entries.iter().map(|(key, entry)| (*key, entry.size())).collect()),
            records: Records::Queue(entries),
            engine: pipeline.desk.engine(),
            now: now_millis(),
            cost: bytes,
        };
        pipeline.tickets.issue(|ticket| {
            let mut block = block(ticket);
            // Its ticket is taken, so there is no way back: everything waits for it.
            loop {
                match sender.send_timeout(block, PROGRESS) {
                    Ok(()) => return Ok(()),
                    Err(SendTimeoutError::Timeout(again)) => block = again,
                    Err(SendTimeoutError::Disconnected(_)) => return Err(stopping()),
                }
                (self.progress)("waiting for the transform");
            }
        })
    }

    /// Tries the wanted entries with keys in `from..end` again, as many as one round takes; returns how many, and where to go
    /// on. Everything from `from` on is claimed.
    pub(super) fn round(
        &mut self,
        from: u64,
        end: u64,
        wanted: &dyn Fn(u64, &QueueEntry) -> bool,
    ) -> Result<(u64, Option<u64>), Failure> {
        self.pipeline.turns.claim(from);
        let (mut tried, mut next) = (0, from);
        for _ in 0..ROUND {
            let (mut block, mut bytes, mut looks, mut over) = (Vec::new(), 0, 0, true);
            self.pipeline.entries(next, &mut |key, entry| {
                if key >= end {
                    return Walk::Stop;
                }
                next = key + 1;
                looks += 1;
                if looks % LOOKS == 0 {
                    (self.progress)("looking for entries");
                }
                if wanted(key, &entry) {
                    bytes += self.pipeline.cost(&entry);
                    block.push((key, entry));
                }
                over = block.len() < RETRY_BLOCK && bytes < RETRY_BYTES;
                if over { Walk::On } else { Walk::Stop }
            })?;
            tried += block.len() as u64;
            if !block.is_empty() {
                self.submit(block)?;
            }
            if over {
                self.settle()?;
                return Ok((tried, None));
            }
        }
        self.settle()?;
        Ok((tried, Some(next)))
    }

    /// Removes entries for good.
    fn remove(&self, removed: Vec<(u64, u64)>) -> Result<(), Failure> {
        let (reply, answered) = bounded(1);
        let removal = Inbox::Queue { removed, cause: QueueCause::Cleared, reply };
        self.pipeline.inbox.send(removal).map_err(|_| stopping())?;
        self.pipeline.wait(&answered, self.progress)
    }
}

impl Pipeline {
    pub(super) fn entries(&self, from: u64, each: &mut dyn FnMut(u64, QueueEntry) -> Walk) -> Result<(), Failure> {
        self.store.entries(from, each).map_err(|error| failed(chain(&error)))
    }

    pub(super) fn entry(&self, key: u64) -> Result<Option<QueueEntry>, Failure> {
        self.store.entry(key).map_err(|error| failed(chain(&error)))
    }

    /// What an entry counts against the memory bound while it is tried again.
    fn cost(&self, entry: &QueueEntry) -> u64 {
        let engine = self.desk.engine();
        entry.size() + claimed_size(engine.payload, engine.payload_limit, &entry.value)
    }

    /// Waits for a turn at the queue, with the keys from `from` on claimed.
    pub(super) fn turn<'a>(&'a self, from: u64, progress: &'a dyn Fn(&str)) -> Result<Turn<'a>, Failure> {
        let waiting = self.turns.wait();
        let mut looks = 0;
        let taken = loop {
            self.refuse_stop()?;
            if let Some(taken) = self.turns.try_take() {
                break taken;
            }
            looks += 1;
            if looks % 25 == 0 {
                progress("waiting for other work on the queue");
            }
            std::thread::park_timeout(PROGRESS / 25);
        };
        drop(waiting);
        let mut turn = Turn { pipeline: self, progress, open: false, _taken: taken };
        // From here on nothing is dropped from there; what was dropped before is out of the store after this.
        self.turns.claim(from);
        turn.settle()?;
        Ok(turn)
    }

    pub(super) fn failure_list(&self, query: &ListQuery, max_attempts: u32) -> Result<Vec<FailureEntry>, Failure> {
        list(query, max_attempts, &|each| self.entries(0, each))
    }

    /// Tries the queue again, parked entries too.
    pub(super) fn retry(&self, reason: Option<Reason>, progress: &dyn Fn(&str)) -> Result<Retried, Failure> {
        let mut turn = self.turn(0, progress)?;
        let stayed_before = self.gauges.stayed.load(Ordering::Relaxed);
        let state = self.gauges.durable().state.clone();
        let end = state.next_key;
        let wanted = |key: u64, entry: &QueueEntry| {
            reason.is_none_or(|reason| reason == entry.reject.reason) && !state.is_open(key, entry)
        };
        let (mut next, mut tried) = (Some(0), 0);
        while let Some(from) = next {
            let round = turn.round(from, end, &wanted)?;
            tried += round.0;
            next = round.1;
            progress(&format!("{tried} entries tried"));
        }
        let stayed = self.gauges.stayed.load(Ordering::Relaxed) - stayed_before;
        tracing::info!(tried, stayed, "tried the failure queue again");
        Ok(Retried { left: tried.saturating_sub(stayed), stayed })
    }

    /// Waits until everything sent so far is durable.
    pub(super) fn barrier(&self, progress: &dyn Fn(&str)) -> Result<(), Failure> {
        self.wait(&self.ask_checkpoint(Finish::No).ok_or_else(stopping)?, progress)
    }

    pub(super) fn wait(&self, answered: &Receiver<()>, progress: &dyn Fn(&str)) -> Result<(), Failure> {
        loop {
            match answered.recv_timeout(PROGRESS) {
                Ok(()) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => return Err(stopping()),
                Err(RecvTimeoutError::Timeout) => match self.gauges.stalled() {
                    Some(stalled) => progress(&stalled),
                    None => progress("waiting for the checkpoint"),
                },
            }
        }
    }

    fn refuse_stop(&self) -> Result<(), Failure> {
        if self.is_ending() { Err(stopping()) } else { Ok(()) }
    }

    /// Removes entries, each after it is safely in the export file if there is one.
    pub(super) fn clear(&self, query: &ClearQuery, exports: &Exports, progress: &dyn Fn(&str)) -> Result<u64, Failure> {
        let turn = self.turn(0, progress)?;
        let state = self.gauges.durable().state.clone();
        let end = state.next_key;
        let oldest =
            query.older_than.map(|age| now_millis().saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX)));
        let wanted = |key: u64, entry: &QueueEntry| {
            query.reason.is_none_or(|reason| reason == entry.reject.reason)
                && oldest.is_none_or(|oldest| entry.first_failure <= oldest)
                && !state.is_open(key, entry)
        };
        let mut export = query.export.as_deref().map(|path| exports.create(path, query.peer)).transpose()?;
        let (mut next, mut removed) = (0, 0);
        loop {
            let mut chunk = Vec::new();
            let mut written = Ok(());
            let mut looks = 0;
            self.entries(next, &mut |key, entry| {
                if key >= end {
                    return Walk::Stop;
                }
                next = key + 1;
                looks += 1;
                if looks % LOOKS == 0 {
                    progress(&format!("{removed} entries removed"));
                }
                if wanted(key, &entry) {
                    chunk.push((key, entry.size()));
                    written = export.as_mut().map_or(Ok(()), |export| export.write(key, &entry));
                }
                if chunk.len() < CLEAR_CHUNK && written.is_ok() { Walk::On } else { Walk::Stop }
            })?;
            if let Some(export) = &mut export {
                written.and_then(|()| export.save()).map_err(|error| export.failed(&error, removed))?;
                crate::fault::point("queue_exported");
            }
            if chunk.is_empty() {
                break;
            }
            self.refuse_stop()?;
            removed += chunk.len() as u64;
            turn.remove(chunk)?;
        }
        tracing::info!(removed, "cleared the failure queue");
        Ok(removed)
    }
}

pub(super) fn stopping() -> Failure {
    Failure::new(FailureKind::Unavailable, "the service is stopping, or begins again after its disk failed; see status")
}
