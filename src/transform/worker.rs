//! The workers: threads that turn blocks of records into blocks of lines.
//!
//! Blocks come in and leave through bounded channels; their tickets keep the order, so workers need not. A worker reads
//! each value where librdkafka put it, appends its line to the block's buffer, and frees the records as soon as the block
//! is done. What is compressed is compressed here, each piece of a block for itself. Buffers come back from the delivery and are used again.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::{io, thread};

use crossbeam_channel::{Receiver, Sender};

use super::compress::Compressor;
use super::recipe::Engine;
use super::{Record, Scratch};
use crate::block::{DoneBlock, Lines, RawBlock, Records, Rejected, Source};
use crate::config::{Compression, Visibility};
use crate::msink::FileKey;
use crate::msource::TopicPartition;
use crate::msource::payload::Decoder;
use crate::record::{Discard, Reason, Reject};

/// Buffers above this size are not kept for the next block.
pub const SPARE_MAX: usize = 2 << 20;

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
    compressor: Compressor,
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
        Self { spare, scratch: Scratch::default(), line: Vec::new(), compressor: Compressor::default(), decoder: None }
    }

    /// Transforms one block.
    pub fn run(&mut self, block: RawBlock) -> DoneBlock {
        let RawBlock { ticket, source, records, engine, now, cost } = block;
        let mut decoder = match self.decoder.take() {
            Some((of, decoder)) if of == engine.fingerprint => decoder,
            _ => Decoder::new(engine.payload, engine.payload_limit),
        };
        let count = records.len() as u64;
        let mut output = Output::new(&self.spare);
        match records {
            Records::Kafka(messages) => {
                let Source::Partition { to, .. } = &source else { unreachable!("records of Kafka have a partition") };
                let mut one = One { worker: self, decoder: &mut decoder, engine: &engine, output: &mut output };
                for (index, message) in messages.iter().enumerate() {
                    // They lie all over the memory, and were written on another core.
                    if let Some(later) = messages.get(index + 8) {
                        later.prefetch();
                    }
                    if let Some(next) = messages.get(index + 2) {
                        next.prefetch_value();
                    }
                    let origin = Origin {
                        partition: &to.partition,
                        topic_id: &to.topic_id,
                        offset: message.offset(),
                        timestamp: message.timestamp(),
                        value: message.value(),
                    };
                    one.settle(&origin, |reject| Rejected::first(message, to, reject, &engine.fingerprint, now));
                }
            }
            Records::Queue(entries) => {
                output.retries = engine.visibility == Visibility::Sealed;
                let mut one = One { worker: self, decoder: &mut decoder, engine: &engine, output: &mut output };
                for (key, entry) in entries {
                    let origin = Origin {
                        partition: &entry.partition,
                        topic_id: &entry.topic_id,
                        offset: entry.offset,
                        timestamp: entry.timestamp,
                        value: Some(&entry.value),
                    };
                    one.settle(&origin, |reject| Rejected::again(key, entry.clone(), reject, &engine.fingerprint, now));
                }
            }
        }
        self.decoder = Some((Arc::clone(&engine.fingerprint), decoder));
        output.finish(engine.compression, &mut self.compressor);
        let Output { pieces, filtered, rejects, .. } = output;
        let recipe = Arc::clone(&engine.fingerprint);
        DoneBlock { ticket, source, recipe, pieces, records: count, filtered, rejects, cost }
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
    /// Whether the lines are retries that go to files of their own.
    retries: bool,
    spare: Receiver<Vec<u8>>,
}

impl Output {
    fn new(spare: &Receiver<Vec<u8>>) -> Self {
        Self {
            pieces: Vec::new(),
            last: 0,
            filtered: [0; 3],
            rejects: Vec::new(),
            retries: false,
            spare: spare.clone(),
        }
    }

    /// The piece of a record whose file does not depend on its names.
    fn only(&mut self, engine: &Engine, partition: &TopicPartition) -> Result<&mut Lines, Reject> {
        let fits = |piece: &Lines| {
            piece.key.partition.is_none_or(|number| number == partition.partition)
                && piece.key.topic.as_deref().is_none_or(|topic| topic == &*partition.topic)
        };
        let retries = self.retries;
        self.piece(engine, fits, || key(engine, partition, None, retries))
    }

    /// The piece of a record whose file depends on its names.
    fn named(&mut self, engine: &Engine, partition: &TopicPartition, names: &Scratch) -> Result<&mut Lines, Reject> {
        let fits = |piece: &Lines| {
            piece.key.log_name.as_deref().is_none_or(|name| name == names.log_name())
                && piece.key.event_name.as_deref().is_none_or(|name| name == names.event_name())
                && piece.key.partition.is_none_or(|number| number == partition.partition)
                && piece.key.topic.as_deref().is_none_or(|topic| topic == &*partition.topic)
        };
        let retries = self.retries;
        self.piece(engine, fits, || key(engine, partition, Some(names), retries))
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
                engine.template.longest_name(&key)?;
                let mut bytes = self.spare.try_recv().unwrap_or_default();
                bytes.clear();
                self.pieces.push(Lines { key, bytes, lines: 0, crc: 0, rejects: Vec::new() });
                self.pieces.len() - 1
            };
        }
        Ok(&mut self.pieces[self.last])
    }

    /// Compresses the lines; checksums are of the bytes as they will lie in the files.
    fn finish(&mut self, how: Compression, compressor: &mut Compressor) {
        self.pieces.retain(|piece| piece.lines > 0);
        for piece in &mut self.pieces {
            compressor.compress(how, &mut piece.bytes);
            piece.crc = crc32c::crc32c(&piece.bytes);
        }
    }
}

fn key(engine: &Engine, partition: &TopicPartition, names: Option<&Scratch>, retries: bool) -> FileKey {
    let fields = &engine.fields;
    // What the group refuses must go as a whole, and nothing else with it.
    let alone = engine.visibility == Visibility::Sealed && !retries;
    FileKey {
        topic: (fields.topic || alone).then(|| partition.topic.to_string()),
        partition: (fields.partition || alone).then_some(partition.partition),
        log_name: names.filter(|_| fields.log_name).map(|names| names.log_name().to_owned()),
        event_name: names.filter(|_| fields.event_name).map(|names| names.event_name().to_owned()),
        retries,
    }
}

/// Gives a buffer back for the next block.
pub fn recycle(spare: &Sender<Vec<u8>>, buffer: Vec<u8>) {
    if buffer.capacity() <= SPARE_MAX {
        // A full channel means that there are enough of them.
        drop(spare.try_send(buffer));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::config::{Payload, TimeZone, Validation};
    use crate::msource::journal::QueueEntry;
    use crate::record::Reason;
    use crate::transform::recipe::Recipe;

    fn engine(compression: Compression) -> Arc<Engine> {
        let recipe = Recipe {
            transform: 1,
            app_id: 24,
            validation: Validation::Standard,
            uuid: false,
            time_zone: TimeZone::Named(chrono_tz::UTC),
            payload: Payload::None,
            payload_limit: 1 << 20,
            file: "{log_name}.{seq}.log".to_owned(),
            instance: String::new(),
            filter: "[]".to_owned(),
            metadata: "[]".to_owned(),
        };
        Arc::new(Engine { compression, ..recipe.engine("f").unwrap() })
    }

    /// Sixty records of three log names.
    fn block(engine: &Arc<Engine>) -> RawBlock {
        let entry = |n: u64| QueueEntry {
            partition: TopicPartition { topic: "t".into(), partition: 0 },
            topic_id: String::new(),
            offset: n as i64,
            timestamp: Some(1_608_184_243_000),
            key: None,
            headers: Vec::new(),
            value: format!(
                r#"{{"headers":{{"app_id":24,"log_name":"log_{}"}},"logs":{{"role_id":{n},"mtime":1608184243}}}}"#,
                n % 3
            )
            .into_bytes(),
            reject: Reject::new(Reason::NoId, ""),
            attempts: 1,
            first_failure: 0,
            last_failure: 0,
            recipe: "r".into(),
        };
        RawBlock {
            ticket: 0,
            source: Source::Queue(Vec::new()),
            records: Records::Queue((0..60).map(|n| (n, entry(n))).collect()),
            engine: Arc::clone(engine),
            now: 0,
            cost: 0,
        }
    }

    #[test]
    fn each_piece_is_compressed_for_itself_and_the_checksum_is_of_what_lies_in_the_file() {
        let mut worker = Worker::new(crossbeam_channel::never());
        let plain = worker.run(block(&engine(Compression::None))).pieces;
        assert_eq!(plain.len(), 3);
        for how in [Compression::Gzip, Compression::Zstd] {
            let engine = engine(how);
            for _ in 0..2 {
                let done = worker.run(block(&engine));
                assert_eq!((done.records, done.rejects.len(), done.pieces.len()), (60, 0, 3));
                for (piece, plain) in done.pieces.iter().zip(&plain) {
                    let mut text = Vec::new();
                    match how {
                        Compression::Gzip => {
                            flate2::read::GzDecoder::new(&piece.bytes[..]).read_to_end(&mut text).unwrap();
                        }
                        _ => zstd::stream::copy_decode(&piece.bytes[..], &mut text).unwrap(),
                    }
                    assert_eq!((&piece.key, piece.lines, &text), (&plain.key, 20, &plain.bytes));
                    assert_eq!(piece.crc, crc32c::crc32c(&piece.bytes));
                }
            }
        }
    }
}
