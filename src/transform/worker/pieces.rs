//! The lines of a block, in pieces: one for each file that they go to.
//!
//! A line belongs to the piece of its file, which is told by what of the record the file's name uses. A piece is compressed for
//! itself, so that the file can be cut at any block. A record whose own names decide its file is kept beside its line until
//! some file of these names was made: it may turn out that none can be.

use std::collections::HashMap;
use std::sync::Arc;

use crossbeam_channel::Receiver;
use xxhash_rust::xxh3::xxh3_64;

use super::SPARE_MAX;
use crate::block::{Lines, Made, Rejected};
use crate::config::{Compression, Visibility};
use crate::msink::FileKey;
use crate::msource::TopicPartition;
use crate::record::{Discard, Reject};
use crate::transform::compress::Compressor;
use crate::transform::recipe::Engine;
use crate::transform::{Record, Scratch};

/// What is used for every line, from block to block.
pub(super) struct Tools {
    spare: Receiver<Vec<u8>>,
    scratch: Scratch,
    line: Vec<u8>,
    compressor: Compressor,
}

impl Tools {
    /// They take buffers from `spare` while there are some.
    pub(super) fn new(spare: Receiver<Vec<u8>>) -> Self {
        Self { spare, scratch: Scratch::default(), line: Vec::new(), compressor: Compressor::default() }
    }

    /// Gives back the buffers that a large value needed.
    pub(super) fn give_back(&mut self) {
        if self.line.capacity() > SPARE_MAX {
            self.line = Vec::new();
        }
        self.scratch.give_back();
    }
}

/// Files of which names were made, where names in records decide them.
#[derive(Default)]
pub(super) struct Names(HashMap<FileKey, Made>);

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

/// A record without regard to where it is kept.
pub(super) struct Origin<'a> {
    /// Its place in the block.
    pub(super) index: usize,
    pub(super) partition: &'a TopicPartition,
    pub(super) topic_id: &'a str,
    pub(super) offset: i64,
    pub(super) timestamp: Option<i64>,
    pub(super) value: Option<&'a [u8]>,
}

/// Appends lines to the pieces of a block.
pub(super) struct Append<'a> {
    tools: &'a mut Tools,
    names: &'a mut Names,
    engine: &'a Arc<Engine>,
    output: Output,
}

impl<'a> Append<'a> {
    /// `retries` go to hidden files of their own.
    pub(super) fn new(tools: &'a mut Tools, names: &'a mut Names, engine: &'a Arc<Engine>, retries: bool) -> Self {
        let output = Output::new(&tools.spare, retries);
        Self { tools, names, engine, output }
    }

    pub(super) fn engine(&self) -> &'a Arc<Engine> {
        self.engine
    }

    /// Appends the line of a record, of which this is the JSON. Returns the piece of the line when its names decide the file and
    /// no file may be able to have it.
    #[inline]
    pub(super) fn append(&mut self, origin: &Origin<'_>, value: Option<&[u8]>) -> Result<Option<usize>, Reject> {
        let record = Record {
            topic: &origin.partition.topic,
            topic_id: origin.topic_id,
            partition: origin.partition.partition,
            offset: origin.offset,
            timestamp: origin.timestamp,
            value,
        };
        let (tools, engine) = (&mut *self.tools, self.engine);
        let by_name = engine.fields.log_name || engine.fields.event_name;
        let applied = if by_name {
            tools.line.clear();
            engine.transform.apply(&mut tools.scratch, &record, &mut tools.line)
        } else {
            let piece = self.output.only(engine, origin.partition)?;
            engine.transform.apply(&mut tools.scratch, &record, &mut self.output.pieces[piece].bytes)
        };
        match applied {
            Err(Discard::Filtered(filter)) => self.output.filtered[filter.index()] += 1,
            Err(Discard::Rejected(reject)) => return Err(reject),
            Ok(()) if by_name => {
                let piece = self.output.named(engine, origin.partition, &tools.scratch, self.names)?;
                let lines = &mut self.output.pieces[piece];
                lines.bytes.extend_from_slice(&tools.line);
                lines.lines += 1;
                return Ok((!self.output.is_made[piece]).then_some(piece));
            }
            Ok(()) => self.output.pieces[self.output.last].lines += 1,
        }
        Ok(None)
    }

    /// Keeps a record: of a line of this piece, in case that its file cannot be made, or without a line.
    pub(super) fn keep(&mut self, piece: Option<usize>, rejected: Rejected) {
        match piece {
            Some(piece) => self.output.pieces[piece].rejects.push(rejected),
            None => self.output.rejects.push(rejected),
        }
    }

    /// Bytes of the lines that were appended and not taken.
    pub(super) fn size(&self) -> usize {
        self.output.pieces.iter().map(|piece| piece.bytes.len()).sum()
    }

    /// Gives back the buffers that a large value needed.
    pub(super) fn give_back(&mut self) {
        self.tools.give_back();
    }

    /// Takes what was appended, and begins again.
    pub(super) fn take(&mut self) -> Taken {
        let next = Output::new(&self.tools.spare, self.output.retries);
        let Output { mut pieces, filtered, rejects, .. } = std::mem::replace(&mut self.output, next);
        finish(&mut pieces, self.engine.compression, &mut self.tools.compressor);
        Taken { pieces, filtered, rejects }
    }
}

/// What became of the records of a part of a block.
pub(super) struct Taken {
    pub(super) pieces: Vec<Lines>,
    pub(super) filtered: [u64; 3],
    pub(super) rejects: Vec<Rejected>,
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
}

/// Compresses the lines; checksums are of the bytes as they will lie in the files.
fn finish(pieces: &mut Vec<Lines>, how: Compression, compressor: &mut Compressor) {
    pieces.retain(|piece| piece.lines > 0);
    for piece in pieces {
        compressor.compress(how, &mut piece.bytes);
        piece.crc = crc32c::crc32c(&piece.bytes);
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

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::super::Worker;
    use super::super::testing::{block, engine, swelling};
    use super::*;
    use crate::block::{DoneBlock, Records};
    use crate::config::Payload;
    use crate::transform::recipe::Recipe;

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
        assert!(worker.tools.line.capacity() <= SPARE_MAX);
        let bound = worker.bound.as_ref().unwrap();
        assert!(bound.names.0.is_empty(), "no name is remembered that no file can have");
        assert!(worker.tools.scratch.log_name().is_empty(), "nor the way of a name that is too long");
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
