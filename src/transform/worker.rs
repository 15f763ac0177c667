//! The workers: threads that turn blocks of records into blocks of lines.
//!
//! Blocks come in and leave through bounded channels; their tickets keep the order, so workers need not. A worker reads
//! each value where librdkafka put it, appends its line to the block's buffer, and frees the records as soon as the block
//! is done. What is compressed is compressed here, each piece of a block for itself. Buffers come back from the delivery and are used again.
//!
//! **Memory.** The producer decides how large a compressed value becomes, and that is known only once it is decompressed. So
//! the lines of such values are counted against the memory bound while they are appended ([`Room`]). A block whose lines
//! become large is handed on in parts, and one that is larger than what was counted for it goes on only while there is
//! room, or when the delivery waits for it. One worker at a time decompresses a large value, and it gives back every
//! buffer that this took. Plain values need none of this: the bound on a block's bytes bounds its lines.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::{fmt, io, thread};

use crossbeam_channel::{Receiver, Sender};
use xxhash_rust::xxh3::xxh3_64;

use super::compress::Compressor;
use super::recipe::Engine;
use super::{Record, Scratch};
use crate::block::{DoneBlock, Lines, Made, Place, RawBlock, Records, Rejected, Source};
use crate::config::{Compression, Visibility};
use crate::msink::FileKey;
use crate::msource::TopicPartition;
use crate::msource::native::Message;
use crate::msource::payload::{Codec, Decoder, Unwrapping};
use crate::record::{Discard, Reason, Reject};

/// Buffers above this size are not kept for the next block.
pub const SPARE_MAX: usize = 2 << 20;

/// A part of a block has lines of about this share of the largest value.
const PART_SHARE: usize = 4;

/// A value above this share of the largest is a large one.
const LARGE_SHARE: usize = 8;

/// So many decompressed bytes are appended between two looks at the memory bound.
const STEP: usize = 64 << 10;

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

/// Files of which names were made, where names in records decide them.
#[derive(Default)]
struct Names(HashMap<FileKey, Made>);

impl Names {
    /// So many names are remembered; records of others are copied in case that their file cannot be made.
    const MOST: usize = 4096;

    fn made(&mut self, key: &FileKey) -> Made {
        if let Some(made) = self.0.get(key) {
            return made.clone();
        }
        let made = Made::default();
        if self.0.len() < Self::MOST {
            self.0.insert(key.clone(), made.clone());
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

    /// Gives back the buffers that a large value needed.
    fn give_back(&mut self) {
        if self.line.capacity() > SPARE_MAX {
            self.line = Vec::new();
        }
        self.scratch.give_back();
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
        let parts = Parts {
            place: Place::of(ticket),
            source,
            messages: &messages,
            first: 0,
            counted: cost,
            unwrapped: 0,
            has_outgrown: false,
            wanted: Wanted::Yes,
            handing,
        };
        let output = Output::new(&self.spare, retries);
        let lines = Append { worker: self, names: &mut bound.names, engine: &engine, output };
        let mut work = Work { decoder: &mut bound.decoder, lines, parts };
        if let Source::Partition { to, .. } = work.parts.source.clone() {
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

/// A record without regard to where it is kept.
struct Origin<'a> {
    /// Its place in the block.
    index: usize,
    partition: &'a TopicPartition,
    topic_id: &'a str,
    offset: i64,
    timestamp: Option<i64>,
    value: Option<&'a [u8]>,
}

/// Where parts of a block go while it is made.
#[derive(Clone, Copy)]
struct Handing<'a> {
    room: &'a dyn Room,
    /// Takes a part; returns whether anybody wants it.
    next: &'a dyn Fn(DoneBlock) -> bool,
}

/// What of a block is not handed on yet.
struct Parts<'a> {
    place: Place,
    source: Source,
    /// The records of the whole block, when they are from Kafka.
    messages: &'a [Message],
    /// The first record that is not handed on.
    first: usize,
    /// Bytes that are counted against the memory bound for it.
    counted: u64,
    /// Bytes that were decompressed since the last look at the memory bound.
    unwrapped: usize,
    /// Whether its lines became larger than what was counted for them.
    has_outgrown: bool,
    wanted: Wanted,
    /// Nowhere when the block stays whole.
    handing: Option<Handing<'a>>,
}

impl Parts<'_> {
    /// Takes the records before this one out of the source.
    fn split(&mut self, index: usize) -> Source {
        match &mut self.source {
            Source::Partition { epoch, from, to } => {
                let mut middle = to.clone();
                if let Some(last) = index.checked_sub(1).and_then(|last| self.messages.get(last)) {
                    (middle.next, middle.leader_epoch) = (last.offset() + 1, last.leader_epoch());
                }
                let begin = std::mem::replace(from, middle.next);
                Source::Partition { epoch: *epoch, from: begin, to: middle }
            }
            Source::Queue(keys) => {
                let rest = keys.split_off(index - self.first);
                Source::Queue(std::mem::replace(keys, rest))
            }
            // No worker has them.
            adopted @ Source::Adopted { .. } => adopted.clone(),
        }
    }
}

/// One block at work.
struct Work<'a> {
    decoder: &'a mut Decoder,
    lines: Append<'a>,
    parts: Parts<'a>,
}

impl Work<'_> {
    /// Transforms a record, and keeps what may be needed of it.
    fn settle(&mut self, origin: &Origin<'_>, rejected: impl Fn(Reject) -> Rejected) {
        match self.take(origin) {
            Ok(None) => {}
            Ok(Some(piece)) => {
                let reject = Reject::new(Reason::Sink, "its file cannot be made");
                self.lines.output.pieces[piece].rejects.push(rejected(reject));
            }
            Err(reject) => self.lines.output.rejects.push(rejected(reject)),
        }
    }

    /// Returns the piece of the line when its names decide the file and no file may be able to have it.
    fn take(&mut self, origin: &Origin<'_>) -> Result<Option<usize>, Reject> {
        match origin.value.and_then(|value| Some((value, self.decoder.codec(value)?))) {
            None => self.lines.append(origin, origin.value),
            Some((value, codec)) => self.unwrap(origin, value, codec),
        }
    }

    #[inline(never)]
    fn unwrap(&mut self, origin: &Origin<'_>, value: &[u8], codec: Codec) -> Result<Option<usize>, Reject> {
        if self.parts.unwrapped >= STEP {
            self.keep_bound(origin.index);
        }
        if self.parts.wanted == Wanted::No {
            return Ok(None);
        }
        match self.decoder.unwrap(codec, value, self.lines.engine.payload_limit / LARGE_SHARE) {
            Ok(()) => {
                let value = self.decoder.unwrapped();
                self.parts.unwrapped += value.len();
                self.lines.append(origin, Some(value))
            }
            Err(Unwrapping::Larger(_)) => self.unwrap_large(origin, value, codec),
            Err(Unwrapping::Bad(reject)) => Err(reject),
        }
    }

    fn unwrap_large(&mut self, origin: &Origin<'_>, value: &[u8], codec: Codec) -> Result<Option<usize>, Reject> {
        // Whatever lines are there already need not wait for this one.
        self.hand_on(origin.index);
        if let Some(Handing { room, .. }) = self.parts.handing {
            self.parts.wanted = room.enter_large(self.parts.place);
            if self.parts.wanted == Wanted::No {
                return Ok(None);
            }
        }
        let taken = match self.decoder.unwrap(codec, value, usize::MAX) {
            Ok(()) => self.lines.append(origin, Some(self.decoder.unwrapped())),
            Err(Unwrapping::Larger(reject) | Unwrapping::Bad(reject)) => Err(reject),
        };
        self.decoder.forget();
        self.lines.worker.give_back();
        self.count();
        self.parts.unwrapped = STEP;
        if let Some(Handing { room, .. }) = self.parts.handing {
            room.leave_large();
        }
        taken
    }

    /// Keeps the memory bound before this record is taken.
    fn keep_bound(&mut self, index: usize) {
        self.parts.unwrapped = 0;
        self.count();
        if self.lines.output.size() >= self.lines.engine.payload_limit / PART_SHARE {
            self.hand_on(index);
        }
        if let Some(Handing { room, .. }) = self.parts.handing
            && self.parts.has_outgrown
            && self.parts.wanted == Wanted::Yes
        {
            self.parts.wanted = room.wait(self.parts.place);
        }
    }

    /// Counts the lines for what they are.
    fn count(&mut self) {
        let size = self.lines.output.size() as u64;
        let Some(grown) = size.checked_sub(self.parts.counted).filter(|grown| *grown > 0) else { return };
        self.parts.counted = size;
        if let Some(Handing { room, .. }) = self.parts.handing {
            self.parts.has_outgrown = true;
            room.take(grown);
        }
    }

    /// Hands on the records before this one.
    fn hand_on(&mut self, index: usize) {
        let Some(Handing { next, .. }) = self.parts.handing else { return };
        if index == self.parts.first || self.parts.wanted == Wanted::No {
            return;
        }
        self.count();
        let source = self.parts.split(index);
        let size = self.lines.output.size() as u64;
        let part = DoneBlock { is_last: false, cost: size, ..self.part(index, source) };
        self.parts.counted -= size;
        self.parts.place.part += 1;
        if !next(part) {
            self.parts.wanted = Wanted::No;
        }
    }

    /// The last part of a block of so many records.
    fn finish(mut self, count: usize) -> (DoneBlock, Wanted) {
        self.count();
        let source = std::mem::replace(&mut self.parts.source, Source::Queue(Vec::new()));
        (self.part(count, source), self.parts.wanted)
    }

    /// The records from the first that is not handed on up to this one.
    fn part(&mut self, index: usize, source: Source) -> DoneBlock {
        let Append { worker, engine, output, .. } = &mut self.lines;
        output.finish(engine.compression, &mut worker.compressor);
        let next = Output::new(&worker.spare, output.retries);
        let Output { pieces, filtered, rejects, .. } = std::mem::replace(output, next);
        DoneBlock {
            place: self.parts.place,
            is_last: true,
            source,
            recipe: Arc::clone(&engine.fingerprint),
            pieces,
            records: (index - std::mem::replace(&mut self.parts.first, index)) as u64,
            filtered,
            rejects,
            cost: self.parts.counted,
        }
    }
}

/// Appends lines to the pieces of a block.
struct Append<'a> {
    worker: &'a mut Worker,
    names: &'a mut Names,
    engine: &'a Engine,
    output: Output,
}

impl Append<'_> {
    /// Appends the line of a record, of which this is the JSON. Returns as [`Work::take`] does.
    #[inline]
    fn append(&mut self, origin: &Origin<'_>, value: Option<&[u8]>) -> Result<Option<usize>, Reject> {
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
                let piece = self.output.named(engine, origin.partition, &worker.scratch, self.names)?;
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
    fn new(spare: &Receiver<Vec<u8>>, retries: bool) -> Self {
        Self {
            pieces: Vec::new(),
            is_made: Vec::new(),
            last: 0,
            by_names: HashMap::new(),
            filtered: [0; 3],
            rejects: Vec::new(),
            retries,
            spare: spare.clone(),
        }
    }

    /// Bytes of its lines.
    fn size(&self) -> usize {
        self.pieces.iter().map(|piece| piece.bytes.len()).sum()
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
                self.begin(engine, key(engine, partition, None, self.retries), None)?
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
        known: &mut Names,
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
            let begun = self.by_names.get(&hash).copied().filter(|piece| fits(&self.pieces[*piece]));
            self.last = if let Some(begun) = begun.or_else(|| self.pieces.iter().position(fits)) {
                begun
            } else {
                self.begin(engine, key(engine, partition, Some(names), self.retries), Some(known))?
            };
            self.by_names.insert(hash, self.last);
        }
        Ok(self.last)
    }

    fn begin(&mut self, engine: &Engine, key: FileKey, known: Option<&mut Names>) -> Result<usize, Reject> {
        engine.template.longest_name(&key)?;
        let made = known.map(|names| names.made(&key)).unwrap_or_default();
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
    use std::sync::Mutex;
    use std::sync::atomic::AtomicU64;
    use std::sync::atomic::Ordering::SeqCst;

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
            zone: TimeZone::UTC.kept(),
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

    /// A bound on memory that lets a worker go on for so many looks at it, and knows what was counted.
    #[derive(Debug)]
    struct Counting {
        taken: AtomicU64,
        large: AtomicU64,
        looks: AtomicU64,
        /// Where workers waited.
        waited: Mutex<Vec<Place>>,
    }

    impl Counting {
        fn new(looks: u64) -> Arc<Self> {
            let (taken, large, waited) = Default::default();
            Arc::new(Self { taken, large, looks: AtomicU64::new(looks), waited })
        }

        fn look(&self, place: Place) -> Wanted {
            self.waited.lock().unwrap().push(place);
            let looked = self.looks.fetch_update(SeqCst, SeqCst, |looks| looks.checked_sub(1));
            if looked.is_ok() { Wanted::Yes } else { Wanted::No }
        }
    }

    impl Room for Counting {
        fn take(&self, bytes: u64) {
            self.taken.fetch_add(bytes, SeqCst);
        }

        fn wait(&self, place: Place) -> Wanted {
            assert_eq!(self.large.load(SeqCst), 0, "nobody waits for room with a large value at hand");
            self.look(place)
        }

        fn enter_large(&self, place: Place) -> Wanted {
            assert_eq!(self.large.fetch_add(1, SeqCst), 0);
            self.look(place)
        }

        fn leave_large(&self) {
            self.large.fetch_sub(1, SeqCst);
        }
    }

    /// What comes out of these blocks, in the order of their places.
    fn worked(blocks: Vec<RawBlock>, room: &Arc<Counting>) -> Vec<DoneBlock> {
        let (sender, to_do) = crossbeam_channel::unbounded();
        let (done, finished) = crossbeam_channel::unbounded::<DoneBlock>();
        let room: Arc<dyn Room> = Arc::<Counting>::clone(room);
        let workers = spawn(1, &to_do, &done, &crossbeam_channel::never(), &room).unwrap();
        drop(done);
        for block in blocks {
            sender.send(block).unwrap();
        }
        drop(sender);
        for worker in workers {
            worker.join().unwrap();
        }
        let mut finished: Vec<_> = finished.iter().collect();
        finished.sort_by_key(|block| block.place);
        finished
    }

    fn bytes(block: &DoneBlock) -> u64 {
        block.pieces.iter().map(|piece| piece.bytes.len() as u64).sum()
    }

    #[test]
    fn a_block_that_comes_out_larger_than_it_was_counted_is_counted_for_what_it_is() {
        let (engine, room) = (engine(Compression::None), Counting::new(0));
        let blocks = [100, 1 << 20].map(|cost| RawBlock { cost, ticket: cost, ..block(&engine) });
        let finished = worked(blocks.into(), &room);
        let bytes = bytes(&finished[0]);
        assert_eq!((finished[0].cost, finished[1].cost), (bytes, 1 << 20));
        assert_eq!(room.taken.load(SeqCst), bytes - 100);
        assert!(finished.iter().all(|block| block.is_last), "plain values do not become larger than they are");
    }

    /// A block with these sizes of decompressed values, each sound and compressed without a word about its size.
    fn swelling(sizes: &[usize]) -> (Arc<Engine>, RawBlock) {
        let recipe = Recipe { payload: Payload::Auto, ..engine(Compression::None).recipe.clone() };
        let engine = Arc::new(recipe.engine("z").unwrap());
        let whole = block(&engine);
        let Records::Queue(entries) = whole.records else { unreachable!() };
        let records: Vec<_> = sizes
            .iter()
            .zip(entries)
            .map(|(size, (key, mut entry))| {
                let value = format!(
                    r#"{{"headers":{{"app_id":24,"log_name":"l"}},"logs":{{"role_id":1,"mtime":1608184243,"t":"{}"}}}}"#,
                    "x".repeat(*size)
                );
                entry.value = zstd::stream::encode_all(value.as_bytes(), 1).unwrap();
                (key, entry)
            })
            .collect();
        let source = Source::Queue(records.iter().map(|(key, entry)| (*key, entry.size())).collect());
        (engine, RawBlock { source, records: Records::Queue(records), cost: 500, ticket: 7, ..whole })
    }

    #[test]
    fn lines_of_values_that_become_large_are_counted_and_handed_on_while_they_are_made() {
        // 1 MiB is the most: above 128 KiB a value is a large one, above 256 KiB lines are a part.
        let sizes = [0, 100_000, 100_000, 100_000, 100_000, 500_000, 10, 900_000, 2_000_000, 10, 100_000];
        let room = Counting::new(u64::MAX);
        let (_, block) = swelling(&sizes);
        let parts = worked(vec![block], &room);
        let places: Vec<_> = parts.iter().map(|part| (part.place, part.is_last)).collect();
        let expected =
            (0..parts.len() as u32).map(|part| (Place { ticket: 7, part }, part as usize == parts.len() - 1));
        assert_eq!(places, expected.collect::<Vec<_>>());
        assert!(parts.len() >= 5, "{} parts", parts.len());
        let keys = parts.iter().flat_map(|part| match &part.source {
            Source::Queue(keys) => keys.iter().map(|(key, _)| *key),
            Source::Partition { .. } | Source::Adopted { .. } => unreachable!(),
        });
        assert_eq!(keys.collect::<Vec<_>>(), (0..sizes.len() as u64).collect::<Vec<_>>());
        let records: Vec<_> = parts.iter().map(|part| part.records).collect();
        assert_eq!(records.iter().sum::<u64>(), sizes.len() as u64);
        assert_eq!(parts.iter().map(|part| part.rejects.len()).sum::<usize>(), 1, "the one above the limit");
        for part in &parts {
            let Source::Queue(keys) = &part.source else { unreachable!() };
            assert_eq!(part.records, keys.len() as u64);
            assert!(part.cost >= bytes(part), "each part gives back what was counted for it");
            assert!(bytes(part) < 1_300_000, "a part is a largest value and a quarter of one at most");
        }
        let costs: u64 = parts.iter().map(|part| part.cost).sum();
        assert_eq!(costs, 500 + room.taken.load(SeqCst));
        let lines = parts.iter().flat_map(|part| part.pieces.iter().flat_map(|piece| piece.bytes.clone()));
        let whole = Worker::new(crossbeam_channel::never()).run(swelling(&sizes).1);
        assert_eq!(lines.collect::<Vec<_>>(), whole.pieces[0].bytes, "the same lines as of the whole block");
        let waited = room.waited.lock().unwrap();
        assert!(waited.is_sorted() && waited.len() > 4, "it waited for room at the part that it made: {waited:?}");
        assert_eq!(room.large.load(SeqCst), 0);
    }

    #[test]
    fn a_block_that_is_given_up_is_never_handed_on_as_a_whole() {
        let sizes = [100_000; 12];
        for looks in 0..4 {
            let parts = worked(vec![swelling(&sizes).1, swelling(&sizes).1], &Counting::new(looks));
            assert!(parts.iter().all(|part| !part.is_last), "after {looks} looks");
        }
    }

    #[test]
    fn a_large_value_leaves_no_large_buffer_behind() {
        let mut worker = Worker::new(crossbeam_channel::never());
        let (_, mut block) = swelling(&[900_000]);
        let recipe =
            Recipe { payload: Payload::Auto, payload_limit: 16 << 20, ..engine(Compression::None).recipe.clone() };
        block.engine = Arc::new(recipe.engine("z").unwrap());
        let Records::Queue(entries) = &mut block.records else { unreachable!() };
        let name = "n".repeat(3 << 20);
        let value =
            format!(r#"{{"headers":{{"app_id":24,"log_name":"{name}"}},"logs":{{"role_id":1,"mtime":1608184243}}}}"#);
        entries[0].1.value = zstd::stream::encode_all(value.as_bytes(), 1).unwrap();
        let done = worker.run(block);
        assert_eq!(done.rejects.len(), 1);
        assert!(worker.line.capacity() <= SPARE_MAX);
        let bound = worker.bound.as_ref().unwrap();
        assert!(bound.names.0.is_empty(), "no name is remembered that no file can have");
        assert!(worker.scratch.log_name().is_empty(), "nor the way of a name that is too long");
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
