//! The workers: threads that turn blocks of records into blocks of lines.
//!
//! Blocks come in and leave through bounded channels; their tickets keep the order, so workers need not. A worker reads
//! each value where librdkafka put it, appends its line to the block's buffer (`pieces`), and frees the records as soon as the
//! block is done. What is compressed is compressed here, each piece of a block for itself. Buffers come back from the delivery
//! and are used again. A block whose compressed values become large leaves in parts (`parts`).

mod parts;
mod pieces;
#[cfg(test)]
mod testing;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::{fmt, io, thread};

use crossbeam_channel::{Receiver, Sender};

use self::parts::{Handing, Parts, Work};
use self::pieces::{Append, Names, Origin, Tools};
use super::recipe::Engine;
use crate::block::{DoneBlock, Place, RawBlock, Records, Rejected, Source};
use crate::config::Visibility;
use crate::fault;
use crate::msource::payload::Decoder;

/// Buffers above this size are not kept for the next block.
pub const SPARE_MAX: usize = 2 << 20;

/// Whether a block is still wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// It is.
    Yes,
    /// The delivery has ended.
    No,
}

/// The bound on memory, as a worker sees it.
pub trait Room: Send + Sync + fmt::Debug {
    /// Counts bytes by which a block has become larger than what was counted for it.
    fn take(&self, bytes: u64);
    /// Waits until there is room, or until the delivery takes next what is made for this place.
    fn wait(&self, place: Place) -> Wanted;
    /// Waits likewise, and until no other worker has a large value at hand.
    fn enter_large(&self, place: Place) -> Wanted;
    /// Ends what [`Self::enter_large`] began.
    fn leave_large(&self);
}

/// Starts `count` workers. They end when the sender of `blocks` is gone.
pub fn spawn<T: From<DoneBlock> + Send + 'static>(
    count: usize,
    blocks: &Receiver<RawBlock>,
    done: &Sender<T>,
    spare: &Receiver<Vec<u8>>,
    room: &Arc<dyn Room>,
) -> io::Result<Vec<JoinHandle<()>>> {
    (0..count)
        .map(|number| {
            let (blocks, done, spare, room) = (blocks.clone(), done.clone(), spare.clone(), Arc::clone(room));
            thread::Builder::new().name(format!("transform-{number}")).spawn(move || {
                let mut worker = Worker::new(spare);
                for block in &blocks {
                    fault::point("transform.block");
                    if worker.hand_on(block, &*room, &|part| done.send(part.into()).is_ok()) == Wanted::No {
                        // Nobody wants them any more. They are freed all the same: the client of Kafka waits for its records.
                        blocks.iter().for_each(drop);
                    }
                }
            })
        })
        .collect()
}

/// What one worker keeps from block to block.
pub struct Worker {
    tools: Tools,
    /// What belongs to one engine: made again when that changes.
    bound: Option<Bound>,
}

/// What a worker keeps for one engine.
struct Bound {
    fingerprint: Arc<str>,
    decoder: Decoder,
    names: Names,
}

impl Bound {
    fn new(engine: &Engine) -> Self {
        Self {
            fingerprint: Arc::clone(&engine.fingerprint),
            decoder: Decoder::new(engine.payload, engine.payload_limit),
            names: Names::default(),
        }
    }
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").finish_non_exhaustive()
    }
}

impl Worker {
    /// A worker that takes its buffers from `spare` while there are some.
    pub fn new(spare: Receiver<Vec<u8>>) -> Self {
        Self { tools: Tools::new(spare), bound: None }
    }

    /// Transforms one block, however large its lines become.
    pub fn run(&mut self, block: RawBlock) -> DoneBlock {
        let (done, _) = self.work(block, None);
        done
    }

    /// Transforms one block and hands it on, in parts if its lines become large.
    fn hand_on(&mut self, block: RawBlock, room: &dyn Room, next: &dyn Fn(DoneBlock) -> bool) -> Wanted {
        let (last, wanted) = self.work(block, Some(Handing { room, next }));
        // A block that was given up is not whole, and must never be taken for a whole one.
        if wanted == Wanted::Yes && next(last) { Wanted::Yes } else { Wanted::No }
    }

    /// Transforms one block; returns its last part.
    fn work(&mut self, block: RawBlock, handing: Option<Handing<'_>>) -> (DoneBlock, Wanted) {
        let RawBlock { ticket, source, records, engine, now, cost } = block;
        let bound = self.bound.take().filter(|bound| bound.fingerprint == engine.fingerprint);
        let mut bound = bound.unwrap_or_else(|| Bound::new(&engine));
        let count = records.len();
        let (messages, entries) = match records {
            Records::Kafka(messages) => (messages, Vec::new()),
            Records::Queue(entries) => (Vec::new(), entries),
        };
        let retries = engine.visibility == Visibility::Sealed && !entries.is_empty();
        let lines = Append::new(&mut self.tools, &mut bound.names, &engine, retries);
        let parts = Parts::new(Place::of(ticket), source.clone(), &messages, cost, handing);
        let mut work = Work::new(&mut bound.decoder, lines, parts);
        if let Source::Partition { to, .. } = source {
            for (index, message) in messages.iter().enumerate() {
                let origin = Origin {
                    index,
                    partition: &to.partition,
                    topic_id: &to.topic_id,
                    offset: message.offset(),
                    timestamp: message.timestamp(),
                    value: message.value(),
                };
                work.settle(&origin, |reject| Rejected::first(message, &to, reject, &engine.fingerprint, now));
            }
        }
        for (index, (key, entry)) in entries.into_iter().enumerate() {
            let origin = Origin {
                index,
                partition: &entry.partition,
                topic_id: &entry.topic_id,
                offset: entry.offset,
                timestamp: entry.timestamp,
                value: Some(&entry.value),
            };
            work.settle(&origin, |reject| Rejected::again(key, entry.clone(), reject, &engine.fingerprint, now));
        }
        let done = work.finish(count);
        self.bound = Some(bound);
        done
    }
}

/// Gives a buffer back for the next block.
pub fn recycle(spare: &Sender<Vec<u8>>, buffer: Vec<u8>) {
    if buffer.capacity() <= SPARE_MAX {
        // A full channel means that there are enough of them.
        drop(spare.try_send(buffer));
    }
}
