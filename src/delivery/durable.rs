//! What the delivery thread makes durable: checkpoints that are asked for and begun, frames that must not wait for one, and the
//! journal's account of files.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use crossbeam_channel::Sender;

use super::checkpoint::Job;
use super::writer::{Delivery, answer};
use super::{Error, Finish};
use crate::msink::file::{FileSink, Ledger, Now, RotateReason, SyncFailed};
use crate::msource::journal::{Each, FileIntent, Frame, Journal, Queue, State};
use crate::msource::store::{self, StoreChange};

impl Delivery {
    pub(super) fn serve_barriers(&mut self) -> Result<(), Error> {
        // Who asked after a decision was made looks at what is durable next, and must find it there.
        if self.seal.has_steps() {
            return Ok(());
        }
        // A block that is stalled was taken from the order, but is not written. Of one with further parts, the ticket is not
        // passed either way.
        let is_open = self.writing.is_some() && self.next.part == 0;
        let passed = self.next.ticket - u64::from(is_open);
        let (reached, waiting): (Vec<_>, Vec<_>) = self.barriers.drain(..).partition(|(before, ..)| *before <= passed);
        self.barriers = waiting;
        for (_, finish, reply) in reached {
            match finish {
                Finish::Files if self.is_sealed() => self.want_all(reply),
                Finish::Hidden(partitions) if self.is_sealed() => self.want_partitions(partitions, reply),
                Finish::Files => {
                    if let Err(error) = self.with_sink(|sink, ledger, _| sink.finish_all(RotateReason::Stop, ledger)) {
                        let error = self.may_pass(error)?;
                        return Err(Error::Journal(self.checkpointer.journal_dir.clone(), error));
                    }
                    self.dirty = true;
                    self.answer_after_checkpoint(reply)?;
                }
                Finish::No | Finish::Hidden(_) => self.answer_after_checkpoint(reply)?,
            }
        }
        Ok(())
    }

    /// Answers once everything that is written now is durable.
    pub(super) fn answer_after_checkpoint(&mut self, reply: Sender<()>) -> Result<(), Error> {
        if !self.dirty && !self.in_checkpoint {
            answer(&reply);
            return Ok(());
        }
        self.next_answers.push(reply);
        self.checkpoint()
    }

    /// Begins a checkpoint of what is written, unless one is being made, or must wait.
    pub(super) fn checkpoint(&mut self) -> Result<(), Error> {
        if self.in_checkpoint || self.seal.is_removing() {
            return Ok(());
        }
        self.in_checkpoint = true;
        self.dirty = false;
        self.last_checkpoint = Instant::now();
        self.answers.append(&mut self.next_answers);
        tracing::debug!(number = self.state.number, "checkpoint begins");
        let job = self.job();
        let sent = self.jobs.as_ref().and_then(|jobs| jobs.send(job).ok());
        sent.ok_or_else(|| Error::Thread("the checkpoint thread ended".into()))
    }

    /// Makes everything durable that is written, here and now. No checkpoint may be under way.
    pub(super) fn checkpoint_now(&mut self) -> Result<(), Error> {
        let job = self.job();
        let held = self.checkpointer.run(job)?.held;
        self.budget.give_back(held);
        self.dirty = false;
        Ok(())
    }

    /// Appends a frame, makes it durable, and takes it in.
    pub(super) fn note_durably(&mut self, frame: &Frame) -> Result<(), Error> {
        self.append(frame)?;
        self.sync_journal()?;
        self.state.apply(frame);
        self.dirty = true;
        Ok(())
    }

    fn job(&mut self) -> Job {
        let files = self.sink.take_dirty();
        let change = StoreChange {
            state: self.state.clone(),
            insert: std::mem::take(&mut self.insert),
            remove: std::mem::take(&mut self.remove),
        };
        Job { files: if self.fsync { files } else { Vec::new() }, change, held: std::mem::take(&mut self.held) }
    }

    /// Begins a new segment of the journal when the old one has had its share. Nothing may be pending then, so this waits for
    /// a checkpoint of its own.
    pub(super) fn turn_journal(&mut self) -> Result<(), Error> {
        if !self.journal().is_full() || self.writing.is_some() {
            return Ok(());
        }
        self.checkpoint_now()?;
        self.checkpointer.store.sync()?;
        let failed = |error| Error::Journal(self.checkpointer.journal_dir.clone(), error);
        // Before it, since it takes room.
        self.prune_journal().map_err(failed)?;
        let mut journal = self.journal();
        match journal.turn(&self.state) {
            // It goes on beyond its reserved room, and is tried again after the next checkpoint.
            Err(error) if lacks_room(&error) => {
                tracing::warn!(%error, "no room for the next segment of the journal yet");
                Ok(())
            }
            turned => turned.map_err(failed),
        }
    }

    /// Removes old segments of the journal. No checkpoint may be under way, and the store was synced when they ended.
    pub(super) fn prune_journal(&self) -> io::Result<()> {
        let (number, bytes) = {
            let state = &self.gauges.durable().state;
            (state.number, state.totals.queue_bytes)
        };
        let entries = &|each: &mut Each<'_>| store::give_entries(&*self.checkpointer.store, each);
        self.journal().prune(self.history, SystemTime::now(), &Queue { number, bytes, entries })
    }

    pub(super) fn journal(&self) -> MutexGuard<'_, Journal> {
        self.checkpointer.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn append(&self, frame: &Frame) -> Result<(), Error> {
        self.journal().append(frame).map_err(|error| Error::Journal(self.checkpointer.journal_dir.clone(), error))
    }

    pub(super) fn sync_journal(&self) -> Result<(), Error> {
        let file = self.journal().file();
        file.sync_data().map_err(|error| Error::Sync("the journal".into(), error))
    }

    pub(super) fn with_sink<T>(
        &mut self,
        act: impl FnOnce(&mut FileSink, &mut dyn Ledger, Now) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut ledger = JournalLedger { journal: &self.checkpointer.journal, state: &mut self.state };
        act(&mut self.sink, &mut ledger, Now::current())
    }
}

/// Whether a disk has no room left for us.
fn lacks_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The journal failed. Comes inside an [`io::Error`].
#[derive(Debug, thiserror::Error)]
#[error("cannot write the journal")]
pub(super) struct JournalFailed(#[source] pub(super) io::Error);

/// Keeps account of files in the journal and the state.
struct JournalLedger<'a> {
    journal: &'a Mutex<Journal>,
    state: &'a mut State,
}

impl JournalLedger<'_> {
    fn note(&mut self, frame: &Frame, durable: bool) -> io::Result<()> {
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        journal.append(frame).map_err(|error| io::Error::other(JournalFailed(error)))?;
        if durable {
            journal.sync().map_err(|error| SyncFailed::io("the journal", error))?;
        }
        self.state.apply(frame);
        Ok(())
    }
}

impl Ledger for JournalLedger<'_> {
    fn intend(&mut self, intent: &FileIntent) -> io::Result<()> {
        self.note(&Frame::File(intent.clone()), true)
    }

    fn made(&mut self, id: u64, inode: u64) -> io::Result<()> {
        self.note(&Frame::Made { id, inode }, true)
    }

    fn end(&mut self, id: u64) -> io::Result<()> {
        self.note(&Frame::End { id }, false)
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    #[test]
    fn a_quota_that_is_used_up_is_a_full_disk_and_an_io_error_is_not() {
        let lacks = |errno: Errno| lacks_room(&errno.into());
        assert!(lacks(Errno::ENOSPC) && lacks(Errno::EDQUOT));
        assert!(!lacks(Errno::EIO) && !lacks(Errno::EROFS));
    }
}
