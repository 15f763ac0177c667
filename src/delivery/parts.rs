//! What the delivery thread is made of.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::checkpoint::Checkpointer;
use super::seal::Sealing;
use super::witness::Witness;
use super::writer::Delivery;
use super::{Budget, CommitPoint, Error, Gauges, Inbox};
use crate::block::Place;
use crate::config;
use crate::msink::file::FileSink;
use crate::msource::journal::{History, Journal, State};
use crate::msource::store::Store;
use crate::msource::tracker::{Left, Tracker};

/// What the delivery is made of.
#[expect(missing_debug_implementations, reason = "the store is a trait object")]
pub struct Parts {
    /// Where everything arrives.
    pub inbox: Receiver<Inbox>,
    /// The other end of it, for the checkpoint thread.
    pub inbox_sender: Sender<Inbox>,
    /// The journal, begun with `state`.
    pub journal: Journal,
    /// Its directory, for messages.
    pub journal_dir: PathBuf,
    /// The store.
    pub store: Arc<dyn Store>,
    /// The event files, going on with those of `state`.
    pub sink: FileSink,
    /// Where recovery ended: everything in it is durable.
    pub state: State,
    /// Who may write what.
    pub tracker: Arc<Tracker>,
    /// What is shown.
    pub gauges: Arc<Gauges>,
    /// The memory bound.
    pub budget: Arc<Budget>,
    /// Takes used buffers back to the workers.
    pub spare: Sender<Vec<u8>>,
    /// Interval of checkpoints.
    pub interval: Duration,
    /// Whether event files are synced.
    pub fsync: bool,
    /// How much is kept of old segments of the journal.
    pub history: History,
    /// The directory of the event files, for messages.
    pub sink_dir: PathBuf,
    /// When files are finished.
    pub rotate: config::Rotate,
    /// What decides that hidden files are published.
    pub commit_point: CommitPoint,
    /// Keys of the failure queue from this one on are worked on; [`u64::MAX`] when none is. Nothing is dropped from there.
    pub claimed: Arc<Mutex<u64>>,
    /// Bytes of the failure queue above which its oldest entries are dropped, if they are.
    pub queue_bound: Option<u64>,
    /// Where checkpoints are noted in the event directory, if they can be.
    pub witness: Option<Witness>,
}

impl Delivery {
    /// Puts the parts together and starts the checkpoint thread.
    pub fn new(parts: Parts) -> Result<Self, Error> {
        let checkpointer = Arc::new(Checkpointer {
            journal: Arc::new(Mutex::new(parts.journal)),
            journal_dir: parts.journal_dir,
            store: parts.store,
            gauges: Arc::clone(&parts.gauges),
            witness: parts.witness,
        });
        let (jobs, received) = bounded(1);
        let checkpoints = Arc::clone(&checkpointer)
            .spawn(received, parts.inbox_sender)
            .map_err(|error| Error::Thread(format!("cannot start the checkpoint thread: {error}")))?;
        let ranges = parts.state.seals.values().flat_map(|seal| &seal.ranges);
        for partition in ranges.filter_map(|range| range.partition()) {
            parts.tracker.decided(partition, Left::Prepared);
        }
        let now = Instant::now();
        Ok(Self {
            inbox: parts.inbox,
            checkpointer,
            jobs: Some(jobs),
            checkpoints: Some(checkpoints),
            sink: parts.sink,
            state: parts.state,
            tracker: parts.tracker,
            gauges: parts.gauges,
            budget: parts.budget,
            spare: parts.spare,
            interval: parts.interval,
            fsync: parts.fsync,
            history: parts.history,
            sink_dir: parts.sink_dir,
            rotate: parts.rotate,
            commit_point: parts.commit_point,
            seal: Sealing::default(),
            claimed: parts.claimed,
            queue_bound: parts.queue_bound,
            all_open: None,
            waiting: BTreeMap::new(),
            next: Place::default(),
            writing: None,
            stall: None,
            insert: Vec::new(),
            held: 0,
            remove: Vec::new(),
            dirty: false,
            in_checkpoint: false,
            last_checkpoint: now,
            last_tick: now,
            last_prune: now,
            untold: 0,
            told: None,
            removals: Vec::new(),
            barriers: Vec::new(),
            answers: Vec::new(),
            next_answers: Vec::new(),
        })
    }
}
