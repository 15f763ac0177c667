//! What a consumer is made of, and what it shows.
//!
//! [`Parts`] are given to it once, by the pipeline. The [`Desk`] is shared with the control plane: it may be read and written
//! from any thread, and nothing of it waits for the consumer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use crate::block::RawBlock;
use crate::config::{Kafka, Visibility, WhenFull};
use crate::control;
use crate::delivery::{Budget, Gauges, Inbox, SealRequest, Tickets};
use crate::msource::TopicPartition;
use crate::msource::journal::Former;
use crate::msource::tracker::Tracker;
use crate::transform::recipe::Engine;

/// How blocks are cut.
#[derive(Clone, Debug)]
pub struct Cut {
    /// Most records in a block.
    pub lines: usize,
    /// Most bytes in a block, of compressed values as they are decompressed; one record may be larger.
    pub bytes: u64,
    /// How long a block waits for company.
    pub linger: Duration,
}

/// What the thread shows and is told; shared with the control plane.
#[derive(Debug)]
pub struct Desk {
    /// What it is doing, why it waits, and since when.
    state: Mutex<(control::State, Option<String>, Instant)>,
    /// Assigned partitions that are read.
    pub partitions: AtomicUsize,
    /// Assigned partitions that are not read yet.
    pending: Mutex<BTreeSet<TopicPartition>>,
    /// Whether the group has given every partition to others.
    pub without_share: AtomicBool,
    /// How often the client stood still and was replaced.
    pub client_restarts: AtomicU64,
    /// How many clients that were replaced have not ended yet.
    pub clients_left: AtomicUsize,
    /// Set once: to finish and end.
    stop: AtomicBool,
    /// What turns records into lines from now on.
    engine: RwLock<Arc<Engine>>,
}

impl Desk {
    /// A desk for a thread that is about to start.
    pub fn new(engine: Arc<Engine>) -> Self {
        Self {
            state: Mutex::new((control::State::Starting, None, Instant::now())),
            partitions: AtomicUsize::new(0),
            pending: Mutex::default(),
            without_share: AtomicBool::new(false),
            client_restarts: AtomicU64::new(0),
            clients_left: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            engine: RwLock::new(engine),
        }
    }

    /// What the thread is doing, and why it waits.
    pub fn state(&self) -> (control::State, Option<String>) {
        let shown = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (shown.0, shown.1.clone())
    }

    /// How long the same has been shown.
    pub fn shown_for(&self) -> Duration {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).2.elapsed()
    }

    /// Shows what is being done.
    pub fn show(&self, state: control::State, reason: Option<String>) {
        let mut shown = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.0 != state || shown.1 != reason {
            tracing::info!(?state, reason = reason.as_deref().unwrap_or(""), "state");
            *shown = (state, reason, Instant::now());
        }
    }

    /// Assigned partitions that are not read yet: it is being found out where they start.
    pub fn pending(&self) -> BTreeSet<TopicPartition> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Shows which partitions are not read yet.
    pub fn set_pending(&self, pending: &BTreeSet<TopicPartition>) {
        let mut shown = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if *shown != *pending {
            shown.clone_from(pending);
        }
    }

    /// Asks the thread to finish and end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// Whether it was asked to.
    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// What turns records into lines now.
    pub fn engine(&self) -> Arc<Engine> {
        Arc::clone(&self.engine.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Blocks from now on are made by this engine.
    pub fn set_engine(&self, engine: Arc<Engine>) {
        *self.engine.write().unwrap_or_else(PoisonError::into_inner) = engine;
    }
}

/// What the thread works with.
#[derive(Debug)]
pub struct Parts {
    /// `kafka` of the configuration.
    pub config: Kafka,
    /// librdkafka's properties, complete.
    pub properties: BTreeMap<String, String>,
    /// How often `assignment: all` looks for new partitions.
    pub discovery: Duration,
    /// How long the group waits for a member that gives partitions up.
    pub max_poll_interval: Duration,
    /// How blocks are cut.
    pub cut: Cut,
    /// `failure_queue.max_bytes` and `when_full`.
    pub queue: (u64, WhenFull),
    /// Takes blocks to the workers.
    pub blocks: Sender<RawBlock>,
    /// Takes notes and barriers to the delivery.
    pub inbox: Sender<Inbox>,
    /// Brings the offsets that the group must take before files can be published.
    pub seals: Receiver<SealRequest>,
    /// Whether files are hidden until the group has taken their offsets.
    pub visibility: Visibility,
    /// Order of blocks and notes.
    pub tickets: Arc<Tickets>,
    /// Whose partitions are whose.
    pub tracker: Arc<Tracker>,
    /// The memory bound.
    pub budget: Arc<Budget>,
    /// What the delivery shows.
    pub gauges: Arc<Gauges>,
    /// What we show.
    pub desk: Arc<Desk>,
    /// Our home and incarnation.
    pub home: (String, u64),
    /// Incarnations of ours that ended here.
    pub former: Vec<Former>,
}
