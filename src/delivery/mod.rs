//! Delivery: where blocks become durable, each exactly once. The heart of the program.
//!
//! **Promise.** For every record of a block that was admitted, exactly one of: one line in the event files, one filtered
//! count, one entry in the failure queue; through any crash. An offset moves only in a checkpoint, after everything below
//! it is on the disk.
//!
//! **How.** One thread, `delivery`, takes blocks in the order of their tickets. For each it asks the file sink where the
//! lines go, appends the block's frame to the journal (which says exactly that), writes the lines, and takes the block
//! into its [`State`]. So a kill can only leave the one block half-written whose frame is the journal's last.
//!
//! A second thread, `checkpoint`, makes a prefix of blocks durable while the first goes on: it syncs the files, appends
//! `Checkpoint` to the journal and syncs that, and puts the state with the new and removed queue entries into the store in
//! one transaction. Only then the offsets are shown, and committed to the group.
//!
//! **Recovery** ([`recovery`]) looks at the blocks after the last checkpoint and completes what is missing in the files.
//!
//! **How it fails.** A disk, directory or permission that fails stalls the thread: it says so in [`Gauges`], tries again
//! with backoff, and goes on where it stopped; nothing is taken from Kafka meanwhile. A failed sync, a journal or a store
//! that fails, and a broken invariant end both threads with an [`Error`]. [`Error::cure`] says whether a new delivery,
//! which begins with a recovery as after a kill, may do better.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crossbeam_channel::Sender;

use crate::block::DoneBlock;
use crate::control::Counts;
use crate::msink::file::HiddenGone;
use crate::msource::TopicPartition;
use crate::msource::journal::{Block, Frame, Growth, Position, QueueCause, State, Totals};
use crate::msource::store::StoreError;
use crate::msource::tracker::Epoch;
use crate::record::Filter;

pub mod behind;
mod budget;
mod checkpoint;
mod durable;
mod parts;
mod queue;
pub mod recovery;
mod refit;
mod seal;
pub mod spill;
mod stall;
#[cfg(test)]
mod tests;
pub mod witness;
mod writer;
mod writing;

pub use budget::Budget;
pub use parts::Parts;
pub use writer::{Delivery, spawn};

/// Why delivery cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A sync failed: what it covered may be gone although a later sync succeeds.
    #[error("cannot sync {0} to disk")]
    Sync(String, #[source] std::io::Error),
    /// The journal failed.
    #[error("cannot write the journal {}", .0.display())]
    Journal(PathBuf, #[source] std::io::Error),
    /// The store failed.
    #[error("cannot save progress")]
    Store(#[from] StoreError),
    /// A block does not begin where its partition stands.
    #[error(
        "a block of {partition} begins at {from}, but the partition stands at {expected}; this is a bug, nothing was written"
    )]
    NotNext {
        /// The partition.
        partition: TopicPartition,
        /// Where the block begins.
        from: i64,
        /// Where the partition stands.
        expected: i64,
    },
    /// A block comes behind a range that is not decided.
    #[error(
        "a block of {partition} begins at {from}, behind a range that is prepared and not decided; this is a bug, nothing was written"
    )]
    Undecided {
        /// The partition.
        partition: TopicPartition,
        /// Where the block begins.
        from: i64,
    },
    /// A hidden file is gone: what its partition has grown by is not whole, and is read again.
    #[error("cannot publish what is not whole")]
    Hidden(#[source] HiddenGone),
    /// A thread could not be started, or ended too early.
    #[error("{0}")]
    Thread(String),
}

/// What may help after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cure {
    /// To begin again: the disk may do better then.
    Again,
    /// Nothing that the program could do.
    None,
}

impl Error {
    /// What may help.
    pub fn cure(&self) -> Cure {
        match self {
            // A hidden file that is gone is found out by recovery, which lets its partition be read again.
            Self::Sync(..) | Self::Journal(..) | Self::Hidden(_) => Cure::Again,
            Self::Store(error) => error.into(),
            Self::NotNext { .. } | Self::Undecided { .. } | Self::Thread(_) => Cure::None,
        }
    }
}

impl From<&StoreError> for Cure {
    /// A damaged store is rebuilt when it is opened again.
    fn from(error: &StoreError) -> Self {
        match error {
            StoreError::Locked(_) | StoreError::Damaged(..) | StoreError::NoRoom { .. } | StoreError::Io(..) => {
                Self::Again
            }
            StoreError::Newer(_) => Self::None,
        }
    }
}

/// What the delivery thread is sent.
#[derive(Debug)]
pub enum Inbox {
    /// A block from a worker.
    Block(Box<DoneBlock>),
    /// A `Start` or `Move` of a partition, in its place among the blocks. The answer comes when it is durable.
    Note {
        /// Its place in the order.
        ticket: u64,
        /// What is noted.
        frame: Frame,
        /// Gets the answer.
        reply: Sender<()>,
    },
    /// To make everything with a ticket below this one durable. The answer comes when it is.
    Checkpoint {
        /// The first ticket that need not be waited for.
        before: u64,
        /// Whether every file is finished too.
        finish: Finish,
        /// Gets the answer.
        reply: Sender<()>,
    },
    /// To take entries out of the failure queue. The answer comes when that is durable and in the store.
    Queue {
        /// Keys and sizes.
        removed: Vec<(u64, u64)>,
        /// Why.
        cause: QueueCause,
        /// Gets the answer.
        reply: Sender<()>,
    },
    /// What became of a range that was prepared to be published. The answer comes when that is done.
    Decided {
        /// The seal.
        number: u64,
        /// Which range of it.
        partition: TopicPartition,
        /// The group's word.
        verdict: Verdict,
        /// Gets the answer.
        reply: Option<Sender<()>>,
    },
    /// Asks whether the files of a range that was prepared are still what was written, so that its offsets may be committed.
    /// When they are not, the range is refused.
    Check {
        /// The seal.
        number: u64,
        /// Which range of it.
        partition: TopicPartition,
        /// Gets the answer.
        reply: Sender<Prepared>,
    },
    /// Takes back what a partition has grown by since its last commit: another owner reads it again. The answer comes when
    /// that is done.
    Refuse {
        /// The partition. Its assignment is over.
        partition: TopicPartition,
        /// Gets the answer.
        reply: Option<Sender<()>>,
    },
    /// To end the thread. Whoever sends it has made a checkpoint before, or does without.
    End,
    /// From the checkpoint thread.
    Checkpointed(Result<checkpoint::Finished, Error>),
}

impl From<DoneBlock> for Inbox {
    fn from(block: DoneBlock) -> Self {
        Self::Block(Box::new(block))
    }
}

/// Whether a checkpoint also finishes files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// They go on.
    No,
    /// The service stops: no file gets further lines. Hidden ones are published.
    Files,
    /// The group takes these partitions back: hidden files of theirs are published.
    Hidden(Vec<TopicPartition>),
}

/// What the group says of a range that was prepared to be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has taken the offsets: the files are published.
    Committed,
    /// It never will: another owner reads the range again, the files go.
    Refused,
    /// That cannot be found out any more: the files are set aside.
    Undecided,
    /// It may still do either, as long as the partition is not ours.
    Open,
}

/// What is left of a range that was prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prepared {
    /// All of it.
    Whole,
    /// Another process touched its files, or it is decided: it can't be committed.
    Gone,
}

/// What the group is asked to take, so that files can be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealRequest {
    /// Number of the seal.
    pub number: u64,
    /// Its partitions.
    pub asking: Vec<Asking>,
}

/// A partition of a seal. The group is asked only in the assignment in which it was prepared: after that it is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asking {
    /// Where it stands after the seal.
    pub position: Position,
    /// The assignment; `None` where it is judged before one begins.
    pub epoch: Option<Epoch>,
}

/// What decides that hidden files are published.
#[derive(Clone, Debug)]
pub enum CommitPoint {
    /// The group's coordinator, asked by the thread that serves the group.
    Group(Sender<SealRequest>),
    /// The journal alone: this instance has every partition.
    Journal,
}

/// Gives out the tickets that order blocks and notes.
#[derive(Debug, Default)]
pub struct Tickets {
    next: AtomicU64,
    issuing: Mutex<()>,
}

impl Tickets {
    /// The next ticket. Whoever takes one must send something with it.
    pub fn take(&self) -> u64 {
        self.next.fetch_add(1, Ordering::AcqRel)
    }

    /// Takes a ticket for a block and sends the block: blocks must reach the workers in the order of their tickets. Else a
    /// worker could wait for room that only a block behind it in the channel can make.
    pub fn issue<R>(&self, send: impl FnOnce(u64) -> R) -> R {
        let _issuing = self.issuing.lock().unwrap_or_else(PoisonError::into_inner);
        send(self.take())
    }

    /// The ticket that will be given out next.
    pub fn next(&self) -> u64 {
        self.next.load(Ordering::Acquire)
    }
}

/// What is shown of the delivery: written by its threads, read by everyone.
#[derive(Debug)]
pub struct Gauges {
    /// Counts over the store's life; `consumed + retried = written + filtered + rejected + in flight` whenever the lock is free.
    counts: Mutex<Counts>,
    /// The state of the last checkpoint.
    durable: Mutex<Durable>,
    /// What stalls the writing, for people.
    stalled: Mutex<Option<String>>,
    /// What keeps progress from being saved, for people.
    unsaved: Mutex<Option<String>>,
    /// Set once nothing is written any more.
    over: AtomicBool,
    /// Files open for writing.
    pub open_files: AtomicUsize,
    /// Bytes in the failure queue, those not checkpointed yet included.
    pub queue_bytes: AtomicU64,
    /// Entries of the failure queue that were tried again and failed again, since the start.
    pub stayed: AtomicU64,
    /// Bytes written since the start.
    pub written_bytes: AtomicU64,
}

impl From<&Totals> for Counts {
    /// What is written: nothing is in flight.
    fn from(totals: &Totals) -> Self {
        Self {
            consumed: totals.consumed,
            retried: totals.retried,
            written: totals.written,
            filtered: totals.filtered,
            rejected: totals.rejected,
            in_flight: 0,
        }
    }
}

/// See [`Gauges::durable`].
#[derive(Debug)]
pub struct Durable {
    /// What is durable.
    pub state: State,
    /// When it became so.
    pub at: Instant,
    /// Rises with each checkpoint.
    pub version: u64,
}

impl Gauges {
    /// Gauges that begin with the state of the last run.
    pub fn new(state: State) -> Self {
        let counts = Counts::from(&state.totals);
        let queue_bytes = AtomicU64::new(state.totals.queue_bytes);
        Self {
            counts: Mutex::new(counts),
            durable: Mutex::new(Durable { state, at: Instant::now(), version: 0 }),
            stalled: Mutex::default(),
            unsaved: Mutex::default(),
            over: AtomicBool::new(false),
            open_files: AtomicUsize::new(0),
            queue_bytes,
            stayed: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
        }
    }

    fn counts_mut(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The counts at this moment.
    pub fn counts(&self) -> Counts {
        self.counts_mut().clone()
    }

    /// Records were taken from Kafka.
    pub fn consumed(&self, records: u64) {
        let mut counts = self.counts_mut();
        counts.consumed += records;
        counts.in_flight += records;
    }

    /// Records were taken from the failure queue.
    pub fn retried(&self, records: u64) {
        let mut counts = self.counts_mut();
        counts.retried += records;
        counts.in_flight += records;
    }

    /// Records that were taken are given up: they belong to another assignment.
    pub fn returned(&self, records: u64) {
        let mut counts = self.counts_mut();
        counts.consumed = counts.consumed.saturating_sub(records);
        counts.in_flight = counts.in_flight.saturating_sub(records);
    }

    /// What a partition had grown by is taken back.
    fn undone(&self, growth: &Growth) {
        let mut counts = self.counts_mut();
        let take = |sum: &mut u64, count: u64| *sum = sum.saturating_sub(count);
        take(&mut counts.consumed, growth.totals.consumed);
        take(&mut counts.written, growth.totals.written);
        for filter in Filter::ALL {
            take(&mut counts.filtered[filter.index()], growth.totals.filtered[filter.index()]);
        }
        for (sum, count) in counts.rejected.iter_mut().zip(growth.totals.rejected) {
            take(sum, count);
        }
    }

    /// A block is written.
    fn settled(&self, block: &DoneBlock, frame: &Block) {
        let mut counts = self.counts_mut();
        counts.written += block.pieces.iter().map(|piece| piece.lines).sum::<u64>();
        for filter in Filter::ALL {
            counts.filtered[filter.index()] += block.filtered[filter.index()];
        }
        for (_, entry) in &frame.rejects {
            counts.rejected[entry.reject.reason.index()] += 1;
        }
        counts.in_flight = counts.in_flight.saturating_sub(block.records);
    }

    /// The state of the last checkpoint.
    pub fn durable(&self) -> MutexGuard<'_, Durable> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What stalls the writing or the saving, if anything does.
    pub fn stalled(&self) -> Option<String> {
        let stalled = self.stalled.lock().unwrap_or_else(PoisonError::into_inner).clone();
        stalled.or_else(|| self.unsaved.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Whoever works for this delivery is to end: what is in flight is made again by the next one.
    pub fn end(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    fn set_unsaved(&self, what: Option<String>) {
        *self.unsaved.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }

    fn set_stalled(&self, what: Option<String>) {
        *self.stalled.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }
}
