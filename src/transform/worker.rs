//! The workers: threads that turn blocks of records into blocks of lines.
//!
//! Blocks come in and leave through bounded channels; their tickets keep the order, so workers need not. A worker reads
//! each value where librdkafka put it, appends its line to the block's buffer, and frees the records as soon as the block
//! is done. Buffers come back from the delivery and are used again.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::{io, thread};

use crossbeam_channel::{Receiver, Sender};

use super::recipe::Engine;
use super::{Record, Scratch};
use crate::block::{DoneBlock, Lines, RawBlock, Records, Rejected, Source};
use crate::msink::FileKey;
use crate::msource::TopicPartition;
use crate::msource::payload::Decoder;
use crate::record::{Discard, Reason, Reject};

/// Buffers above this size are not kept for the next block.
const SPARE_MAX: usize = 8 << 20;

/// Starts `count` workers. They end when the sender of `blocks` is gone.
pub fn spawn<T: From<DoneBlock> + Send + 'static>(
    count: usize,
    blocks: &Receiver<RawBlock>,
    done: &Sender<T>,
    spare: &Receiver<Vec<u8>>,
) -> io::Result<Vec<JoinHandle<()>>> {
    (0..count)
        .map(|number| {
            let (blocks, done, spare) = (blocks.clone(), done.clone(), spare.clone());
            thread::Builder::new().name(format!("transform-{number}")).spawn(move || {
                let mut worker = Worker::new(spare);
                for block in &blocks {
                    if done.send(worker.run(block).into()).is_err() {
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
    spare: Receiver<Vec<u8>>,
    scratch: Scratch,
    line: Vec<u8>,
    /// The codec and its bound are the engine's: made anew when that changes.
    decoder: Option<(Arc<str>, Decoder)>,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").finish_non_exhaustive()
    }
}

impl Worker {
    /// A worker that takes its buffers from `spare` while there are some.
    pub fn new(spare: Receiver<Vec<u8>>) -> Self {
        Self { spare, scratch: Scratch::default(), line: Vec::new(), decoder: None }
    }

    /// Transforms one block.
    pub fn run(&mut self, block: RawBlock) -> DoneBlock {
        let RawBlock { ticket, source, records, engine, now, cost } = block;
        let mut decoder = match self.decoder.take() {
            Some((of, decoder)) if of == engine.fingerprint => decoder,
            _ => Decoder::new(engine.payload, engine.payload_limit),
        };
        let count = records.len() as u64;
        let mut output = Output::new(&engine, &self.spare);
        match records {
            Records::Kafka(messages) => {
                let Source::Partition { to, .. } = &source else { unreachable!("records of Kafka have a partition") };
                let mut one = One { worker: self, decoder: &mut decoder, engine: &engine, output: &mut output };
                for message in &messages {
                    let origin = Origin {
                        partition: &to.partition,
                        topic_id: &to.topic_id,
                        offset: message.offset(),
                        timestamp: message.timestamp(),
                        value: message.value(),
                    };
                    let rejected = |reject| {
                        let (partition, topic_id) = (to.partition.clone(), to.topic_id.clone());
                        Rejected::first(message, partition, topic_id, reject, now)
                    };
                    one.settle(&origin, rejected);
                }
            }
            Records::Queue(entries) => {
                let mut one = One { worker: self, decoder: &mut decoder, engine: &engine, output: &mut output };
                for (key, entry) in entries {
                    let origin = Origin {
                        partition: &entry.partition,
                        topic_id: &entry.topic_id,
                        offset: entry.offset,
                        timestamp: entry.timestamp,
                        value: Some(&entry.value),
                    };
                    one.settle(&origin, |reject| Rejected::again(key, entry.clone(), reject, now));
                }
            }
        }
        self.decoder = Some((Arc::clone(&engine.fingerprint), decoder));
        output.finish(ticket, source, count, &engine, cost)
    }
}

/// A record without regard to where it is kept.
struct Origin<'a> {
    partition: &'a TopicPartition,
    topic_id: &'a str,
    offset: i64,
    timestamp: Option<i64>,
    value: Option<&'a [u8]>,
}

/// One block at work.
struct One<'a> {
    worker: &'a mut Worker,
    decoder: &'a mut Decoder,
    engine: &'a Engine,
    output: &'a mut Output,
}

/// What became of a record that is not rejected.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taken {
    /// It is filtered, or a line of a file that names in records have no part in.
    Done,
    /// It is a line of a file that its own names decide: no file may be able to have it.
    Named,
}

impl One<'_> {
    /// Transforms a record, and keeps what may be needed of it.
    fn settle(&mut self, origin: &Origin<'_>, rejected: impl Fn(Reject) -> Rejected) {
        match self.take(origin) {
            Ok(Taken::Done) => {}
            Ok(Taken::Named) => {
                let reject = Reject::new(Reason::Sink, "its file cannot be made");
                self.output.pieces[self.output.last].rejects.push(rejected(reject));
            }
            Err(reject) => self.output.rejects.push(rejected(reject)),
        }
    }

    fn take(&mut self, origin: &Origin<'_>) -> Result<Taken, Reject> {
        let value = match origin.value {
            Some(value) => Some(self.decoder.decode(value)?),
            None => None,
        };
        let record = Record {
            topic: &origin.partition.topic,
            topic_id: origin.topic_id,
            partition: origin.partition.partition,
            offset: origin.offset,
            timestamp: origin.timestamp,
            value,
        };
        let (worker, engine) = (&mut *self.worker, self.engine);
        let by_name = engine.fields.log_name || engine.fields.event_name;
        let applied = if by_name {
            worker.line.clear();
            engine.transform.apply(&mut worker.scratch, &record, &mut worker.line)
        } else {
            let lines = self.output.only(engine, origin.partition)?;
            engine.transform.apply(&mut worker.scratch, &record, &mut lines.bytes)
        };
        match applied {
            Err(Discard::Filtered(filter)) => self.output.filtered[filter.index()] += 1,
            Err(Discard::Rejected(reject)) => return Err(reject),
            Ok(()) if by_name => {
                let lines = self.output.named(engine, origin.partition, &worker.scratch)?;
                lines.bytes.extend_from_slice(&worker.line);
                lines.lines += 1;
                return Ok(Taken::Named);
            }
            Ok(()) => self.output.pieces[self.output.last].lines += 1,
        }
        Ok(Taken::Done)
    }
}

/// The block that comes out.
struct Output {
    pieces: Vec<Lines>,
    /// The piece of the last line: the next one mostly goes there too.
    last: usize,
    filtered: [u64; 3],
    rejects: Vec<Rejected>,
    spare: Receiver<Vec<u8>>,
}

impl Output {
    fn new(_: &Engine, spare: &Receiver<Vec<u8>>) -> Self {
        Self { pieces: Vec::new(), last: 0, filtered: [0; 3], rejects: Vec::new(), spare: spare.clone() }
    }

    /// The piece of a record whose file does not depend on its names.
    fn only(&mut self, engine: &Engine, partition: &TopicPartition) -> Result<&mut Lines, Reject> {
        let fits = |piece: &Lines| {
            piece.key.partition.is_none_or(|number| number == partition.partition)
                && piece.key.topic.as_deref().is_none_or(|topic| topic == &*partition.topic)
        };
        self.piece(engine, fits, || key(engine, partition, None))
    }

    /// The piece of a record whose file depends on its names.
    fn named(&mut self, engine: &Engine, partition: &TopicPartition, names: &Scratch) -> Result<&mut Lines, Reject> {
        let fits = |piece: &Lines| {
            piece.key.log_name.as_deref().is_none_or(|name| name == names.log_name())
                && piece.key.event_name.as_deref().is_none_or(|name| name == names.event_name())
                && piece.key.partition.is_none_or(|number| number == partition.partition)
                && piece.key.topic.as_deref().is_none_or(|topic| topic == &*partition.topic)
        };
        self.piece(engine, fits, || key(engine, partition, Some(names)))
    }

    fn piece(
        &mut self,
        engine: &Engine,
        fits: impl Fn(&Lines) -> bool,
        key: impl FnOnce() -> FileKey,
    ) -> Result<&mut Lines, Reject> {
        if !self.pieces.get(self.last).is_some_and(&fits) {
            self.last = if let Some(known) = self.pieces.iter().position(fits) {
                known
            } else {
                let key = key();
                // Whether a name is too long does not depend on the time in it: fields are of fixed width.
                engine.template.name(&key, 0, u64::MAX)?;
                let mut bytes = self.spare.try_recv().unwrap_or_default();
                bytes.clear();
                self.pieces.push(Lines { key, bytes, lines: 0, crc: 0, rejects: Vec::new() });
                self.pieces.len() - 1
            };
        }
        Ok(&mut self.pieces[self.last])
    }

    fn finish(mut self, ticket: u64, source: Source, records: u64, engine: &Engine, cost: u64) -> DoneBlock {
        self.pieces.retain(|piece| piece.lines > 0);
        for piece in &mut self.pieces {
            piece.crc = crc32c::crc32c(&piece.bytes);
        }
        let recipe = Arc::clone(&engine.fingerprint);
        DoneBlock {
            ticket,
            source,
            recipe,
            pieces: self.pieces,
            records,
            filtered: self.filtered,
            rejects: self.rejects,
            cost,
        }
    }
}

fn key(engine: &Engine, partition: &TopicPartition, names: Option<&Scratch>) -> FileKey {
    let fields = &engine.fields;
    FileKey {
        topic: fields.topic.then(|| partition.topic.to_string()),
        partition: fields.partition.then_some(partition.partition),
        log_name: names.filter(|_| fields.log_name).map(|names| names.log_name().to_owned()),
        event_name: names.filter(|_| fields.event_name).map(|names| names.event_name().to_owned()),
    }
}

/// Gives a buffer back for the next block.
pub fn recycle(spare: &Sender<Vec<u8>>, buffer: Vec<u8>) {
    if buffer.capacity() <= SPARE_MAX {
        // A full channel means that there are enough of them.
        drop(spare.try_send(buffer));
    }
}
