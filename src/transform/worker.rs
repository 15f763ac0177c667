//! The workers: threads that turn blocks of records into blocks of lines.
//!
//! Blocks come in and leave through bounded channels; their tickets keep the order, so workers need not. A worker reads
//! each value where librdkafka put it, appends its line to the block's buffer, and frees the records as soon as the block
//! is done. What is compressed is compressed here, each piece of a block for itself. Buffers come back from the delivery and are used again.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::{io, thread};

use crossbeam_channel::{Receiver, Sender};
use xxhash_rust::xxh3::xxh3_64;

use super::compress::Compressor;
use super::recipe::Engine;
use super::{Record, Scratch};
use crate::block::{DoneBlock, Lines, Made, RawBlock, Records, Rejected, Source};
use crate::config::{Compression, Visibility};
use crate::msink::FileKey;
use crate::msource::TopicPartition;
use crate::msource::payload::Decoder;
use crate::record::{Discard, Reason, Reject};

/// Buffers above this size are not kept for the next block.
pub const SPARE_MAX: usize = 2 << 20;

/// Starts `count` workers. They end when the sender of `blocks` is gone. `grown` is told of bytes by which a block came out
/// larger than it was counted: its cost has risen by them.
pub fn spawn<T: From<DoneBlock> + Send + 'static>(
    count: usize,
    blocks: &Receiver<RawBlock>,
    done: &Sender<T>,
    spare: &Receiver<Vec<u8>>,
    grown: impl Fn(u64) + Clone + Send + 'static,
) -> io::Result<Vec<JoinHandle<()>>> {
    (0..count)
        .map(|number| {
            let (blocks, done, spare, grown) = (blocks.clone(), done.clone(), spare.clone(), grown.clone());
            thread::Builder::new().name(format!("transform-{number}")).spawn(move || {
                let mut worker = Worker::new(spare);
                for block in &blocks {
                    let counted = block.cost;
                    let block = worker.run(block);
                    if block.cost > counted {
                        grown(block.cost - counted);
                    }
                    if done.send(block.into()).is_err() {
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
    /// What belongs to one engine: made anew when that changes.
    bound: Option<Bound>,
}

/// What a worker keeps for one engine.
struct Bound {
    fingerprint: Arc<str>,
    decoder: Decoder,
    /// Files of which names were made, where names in records decide them.
    made: HashMap<FileKey, Made>,
}

impl Bound {
    /// So many names are remembered; records of others are copied in case that their file cannot be made.
    const NAMES: usize = 4096;

    fn new(engine: &Engine) -> Self {
        Self {
            fingerprint: Arc::clone(&engine.fingerprint),
            decoder: Decoder::new(engine.payload, engine.payload_limit),
            made: HashMap::new(),
        }
    }

    fn made(&mut self, key: &FileKey) -> Made {
        if let Some(made) = self.made.get(key) {
            return made.clone();
        }
        let made = Made::default();
        if self.made.len() < Self::NAMES {
            self.made.insert(key.clone(), made.clone());
        }
        made
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
        Self { spare, scratch: Scratch::default(), line: Vec::new(), compressor: Compressor::default(), bound: None }
    }

    /// Transforms one block.
    pub fn run(&mut self, block: RawBlock) -> DoneBlock {
        let RawBlock { ticket, source, records, engine, now, cost } = block;
        let bound = self.bound.take().filter(|bound| bound.fingerprint == engine.fingerprint);
        let mut bound = bound.unwrap_or_else(|| Bound::new(&engine));
        let count = records.len() as u64;
        let mut output = Output::new(&self.spare);
        match records {
            Records::Kafka(messages) => {
                let Source::Partition { to, .. } = &source else { unreachable!("records of Kafka have a partition") };
                let mut one = One { worker: self, bound: &mut bound, engine: &engine, output: &mut output };
                for message in &messages {
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
                let mut one = One { worker: self, bound: &mut bound, engine: &engine, output: &mut output };
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
        self.bound = Some(bound);
        output.finish(engine.compression, &mut self.compressor);
        let Output { pieces, filtered, rejects, .. } = output;
        let recipe = Arc::clone(&engine.fingerprint);
        // What values say of their size, if anything, need not be true.
        let cost = cost.max(pieces.iter().map(|piece| piece.bytes.len() as u64).sum());
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
    bound: &'a mut Bound,
    engine: &'a Engine,
    output: &'a mut Output,
}

impl One<'_> {
    /// Transforms a record, and keeps what may be needed of it.
    fn settle(&mut self, origin: &Origin<'_>, rejected: impl Fn(Reject) -> Rejected) {
        match self.take(origin) {
            Ok(None) => {}
            Ok(Some(piece)) => {
                let reject = Reject::new(Reason::Sink, "its file cannot be made");
                self.output.pieces[piece].rejects.push(rejected(reject));
            }
            Err(reject) => self.output.rejects.push(rejected(reject)),
        }
    }

    /// Returns the piece of the line when its names decide the file and no file may be able to have it.
    fn take(&mut self, origin: &Origin<'_>) -> Result<Option<usize>, Reject> {
        let value = match origin.value {
            Some(value) => Some(self.bound.decoder.decode(value)?),
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
            let piece = self.output.only(engine, origin.partition)?;
            engine.transform.apply(&mut worker.scratch, &record, &mut self.output.pieces[piece].bytes)
        };
        match applied {
            Err(Discard::Filtered(filter)) => self.output.filtered[filter.index()] += 1,
            Err(Discard::Rejected(reject)) => return Err(reject),
            Ok(()) if by_name => {
                let piece = self.output.named(engine, origin.partition, &worker.scratch, self.bound)?;
                let lines = &mut self.output.pieces[piece];
                lines.bytes.extend_from_slice(&worker.line);
                lines.lines += 1;
                return Ok((!self.output.is_made[piece]).then_some(piece));
            }
            Ok(()) => self.output.pieces[self.output.last].lines += 1,
        }
        Ok(None)
    }
}

/// The block that comes out.
struct Output {
    pieces: Vec<Lines>,
    /// Of each piece whether its file was made when the block was begun.
    is_made: Vec<bool>,
    /// The piece of the last line: the next one mostly goes there too.
    last: usize,
    /// Where the piece of names is, by their hash.
    by_names: HashMap<u64, usize>,
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
            is_made: Vec::new(),
            last: 0,
            by_names: HashMap::new(),
            filtered: [0; 3],
            rejects: Vec::new(),
            retries: false,
            spare: spare.clone(),
        }
    }

    /// The piece of a record whose file does not depend on its names: a block is of one partition, and so it is the only one,
    /// but for retries.
    fn only(&mut self, engine: &Engine, partition: &TopicPartition) -> Result<usize, Reject> {
        let fits = |piece: &Lines| {
            piece.key.partition.is_none_or(|number| number == partition.partition)
                && piece.key.topic.as_deref().is_none_or(|topic| topic == &*partition.topic)
        };
        if !self.pieces.get(self.last).is_some_and(&fits) {
            self.last = if let Some(known) = self.pieces.iter().position(fits) {
                known
            } else {
                self.begin(engine, key(engine, partition, None, self.retries), Made::default())?
            };
        }
        Ok(self.last)
    }

    /// The piece of a record whose file depends on its names.
    fn named(
        &mut self,
        engine: &Engine,
        partition: &TopicPartition,
        names: &Scratch,
        bound: &mut Bound,
    ) -> Result<usize, Reject> {
        let fits = |piece: &Lines| {
            piece.key.log_name.as_deref().is_none_or(|name| name == names.log_name())
                && piece.key.event_name.as_deref().is_none_or(|name| name == names.event_name())
                && piece.key.partition.is_none_or(|number| number == partition.partition)
                && piece.key.topic.as_deref().is_none_or(|topic| topic == &*partition.topic)
        };
        if !self.pieces.get(self.last).is_some_and(&fits) {
            let of = |used: bool, name: &str| if used { xxh3_64(name.as_bytes()) } else { 0 };
            let hash = of(engine.fields.log_name, names.log_name())
                ^ of(engine.fields.event_name, names.event_name()).rotate_left(1);
            let known = self.by_names.get(&hash).copied().filter(|piece| fits(&self.pieces[*piece]));
            self.last = if let Some(known) = known.or_else(|| self.pieces.iter().position(fits)) {
                known
            } else {
                let key = key(engine, partition, Some(names), self.retries);
                let made = bound.made(&key);
                self.begin(engine, key, made)?
            };
            self.by_names.insert(hash, self.last);
        }
        Ok(self.last)
    }

    fn begin(&mut self, engine: &Engine, key: FileKey, made: Made) -> Result<usize, Reject> {
        engine.template.longest_name(&key)?;
        let mut bytes = self.spare.try_recv().unwrap_or_default();
        bytes.clear();
        self.is_made.push(made.get());
        self.pieces.push(Lines { key, bytes, lines: 0, crc: 0, rejects: Vec::new(), made });
        Ok(self.pieces.len() - 1)
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
            read_uncommitted: false,
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
    fn a_block_that_comes_out_larger_than_it_was_counted_is_counted_for_what_it_is() {
        let engine = engine(Compression::None);
        let (blocks, to_do) = crossbeam_channel::unbounded();
        let (done, finished) = crossbeam_channel::unbounded::<DoneBlock>();
        let (grown, growth) = crossbeam_channel::unbounded();
        let spare = crossbeam_channel::never();
        let workers = spawn(1, &to_do, &done, &spare, move |bytes| grown.send(bytes).unwrap()).unwrap();
        for cost in [100, 1 << 20] {
            blocks.send(RawBlock { cost, ..block(&engine) }).unwrap();
        }
        drop(blocks);
        for worker in workers {
            worker.join().unwrap();
        }
        let finished: Vec<_> = [finished.recv().unwrap(), finished.recv().unwrap()].into();
        let bytes: u64 = finished[0].pieces.iter().map(|piece| piece.bytes.len() as u64).sum();
        assert_eq!((finished[0].cost, finished[1].cost), (bytes, 1 << 20));
        assert_eq!(growth.iter().collect::<Vec<_>>(), [bytes - 100]);
    }

    #[test]
    fn records_are_copied_only_until_a_file_of_their_name_was_made() {
        let mut worker = Worker::new(crossbeam_channel::never());
        let (engine, other) = (engine(Compression::None), engine(Compression::None));
        let copies = |done: &DoneBlock| done.pieces.iter().map(|piece| piece.rejects.len()).collect::<Vec<_>>();
        let first = worker.run(block(&engine));
        assert_eq!(copies(&first), [20, 20, 20]);
        first.pieces[1].made.set();
        assert_eq!(copies(&worker.run(block(&engine))), [20, 0, 20]);
        let other = Arc::new(Engine { fingerprint: "other".into(), ..Arc::into_inner(other).unwrap() });
        assert_eq!(copies(&worker.run(block(&other))), [20, 20, 20], "another recipe may give other names");
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
