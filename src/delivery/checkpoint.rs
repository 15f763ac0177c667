//! The checkpoint thread: makes a prefix of the blocks durable while the next ones are written.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::witness::Witness;
use super::{Error, Gauges, Inbox};
use crate::fault::point;
use crate::msource::journal::{Frame, Journal};
use crate::msource::store::{Store, StoreChange, StoreError};
use crate::synced::SyncedFile;

/// First and longest pause between attempts while the store's disk is full.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// A checkpoint to be made: everything in the change's state is written, and nothing more is in it.
#[derive(Debug)]
pub(super) struct Job {
    /// The files with lines that are not synced; none when `sink.fsync` is off.
    pub(super) files: Vec<Arc<SyncedFile>>,
    /// What goes into the store.
    pub(super) change: StoreChange,
    /// What the change counts against the memory bound, bytes.
    pub(super) held: u64,
}

/// A checkpoint that was made.
#[derive(Debug)]
pub struct Finished {
    /// Number of the last block in it.
    pub number: u64,
    /// How long it took.
    pub took: Duration,
    /// What it counts against the memory bound no more, bytes.
    pub held: u64,
}

/// What checkpoints work with.
pub(super) struct Checkpointer {
    pub(super) journal: Arc<Mutex<Journal>>,
    pub(super) journal_dir: PathBuf,
    pub(super) store: Arc<dyn Store>,
    pub(super) gauges: Arc<Gauges>,
    /// Where the event directory can have a note.
    pub(super) witness: Option<Witness>,
}

impl Checkpointer {
    /// Makes a checkpoint.
    pub(super) fn run(&self, job: Job) -> Result<Finished, Error> {
        let begun = Instant::now();
        point("checkpoint.begun");
        for file in &job.files {
            file.sync_data().map_err(|error| Error::Sync("an event file".into(), error))?;
        }
        point("checkpoint.synced");
        let number = job.change.state.number;
        let file = {
            let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
            let frame = Frame::Checkpoint { number };
            journal.append(&frame).map_err(|error| Error::Journal(self.journal_dir.clone(), error))?;
            journal.file()
        };
        point("checkpoint.noted");
        file.sync_data().map_err(|error| Error::Sync("the journal".into(), error))?;
        point("checkpoint.durable");
        if let Some(Err(error)) = self.witness.as_ref().map(|witness| witness.note(number)) {
            // Without it a backup that is put back is not recognised; nothing else needs it.
            tracing::debug!(%error, "cannot note the checkpoint in the event directory");
        }
        if !job.change.remove.is_empty() {
            point("queue_checkpointed");
        }
        self.save(&job.change)?;
        point("checkpoint.saved");
        let mut durable = self.gauges.durable();
        durable.state = job.change.state;
        durable.at = Instant::now();
        durable.version += 1;
        Ok(Finished { number, took: begun.elapsed(), held: job.held })
    }

    /// Puts the change into the store. While its disk is full, tries again: everything is in the journal, so nothing is lost,
    /// and nothing is taken from Kafka meanwhile.
    fn save(&self, change: &StoreChange) -> Result<(), Error> {
        let mut pause = PAUSES.0;
        loop {
            match self.store.apply(change) {
                Err(error @ StoreError::NoRoom { .. }) => {
                    if pause == PAUSES.0 {
                        tracing::error!(%error, "cannot save progress; consuming pauses until it works again");
                    }
                    self.gauges.set_unsaved(Some(format!("cannot save progress: {error}")));
                }
                saved => {
                    self.gauges.set_unsaved(None);
                    return Ok(saved?);
                }
            }
            if self.gauges.is_over() {
                return Ok(self.store.apply(change)?);
            }
            thread::park_timeout(pause);
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Starts the thread. It ends when the sender of `jobs` is gone.
    pub(super) fn spawn(self: Arc<Self>, jobs: Receiver<Job>, inbox: Sender<Inbox>) -> std::io::Result<JoinHandle<()>> {
        thread::Builder::new().name("checkpoint".into()).spawn(move || {
            for job in jobs {
                // The store is known to panic, which ends a service at once (`logging`). Elsewhere the delivery would wait for this
                // checkpoint for ever without an answer.
                let outcome = catch_unwind(AssertUnwindSafe(|| self.run(job)));
                let panicked = |_| Err(Error::Thread("the checkpoint thread panicked; see the service log".into()));
                if inbox.send(Inbox::Checkpointed(outcome.unwrap_or_else(panicked))).is_err() {
                    break;
                }
            }
        })
    }
}
