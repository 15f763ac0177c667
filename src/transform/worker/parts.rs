//! One block at work, within the bound on memory.
//!
//! The producer decides how large a compressed value becomes, and that is known only once it is decompressed. So the lines of
//! such values are counted against the bound while they are appended ([`Room`]). A block whose lines become large is handed
//! on in parts, and one that is larger than what was counted for it goes on only while there is room, or when the delivery
//! waits for it. One worker at a time decompresses a large value, and it gives back every buffer that this took. Plain values
//! need none of this: the bound on a block's bytes bounds its lines.

use std::sync::Arc;

use super::pieces::{Append, Origin, Taken};
use super::{Room, Wanted};
use crate::block::{DoneBlock, Place, Rejected, Source};
use crate::msource::native::Message;
use crate::msource::payload::{Codec, Decoder, Unwrapping};
use crate::record::{Reason, Reject};

/// A part of a block has lines of about this share of the largest value.
const PART_SHARE: usize = 4;

/// A value above this share of the largest is a large one.
const LARGE_SHARE: usize = 8;

/// So many decompressed bytes are appended between two looks at the memory bound.
const STEP: usize = 64 << 10;

/// Where parts of a block go while it is made.
#[derive(Clone, Copy)]
pub(super) struct Handing<'a> {
    pub(super) room: &'a dyn Room,
    /// Takes a part; returns whether anybody wants it.
    pub(super) next: &'a dyn Fn(DoneBlock) -> bool,
}

/// What of a block is not handed on yet.
pub(super) struct Parts<'a> {
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

impl<'a> Parts<'a> {
    /// Of a block for which so many bytes are counted already.
    pub(super) fn new(
        place: Place,
        source: Source,
        messages: &'a [Message],
        counted: u64,
        handing: Option<Handing<'a>>,
    ) -> Self {
        let (first, unwrapped, has_outgrown, wanted) = (0, 0, false, Wanted::Yes);
        Self { place, source, messages, first, counted, unwrapped, has_outgrown, wanted, handing }
    }

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
pub(super) struct Work<'a> {
    decoder: &'a mut Decoder,
    lines: Append<'a>,
    parts: Parts<'a>,
}

impl<'a> Work<'a> {
    pub(super) fn new(decoder: &'a mut Decoder, lines: Append<'a>, parts: Parts<'a>) -> Self {
        Self { decoder, lines, parts }
    }

    /// Transforms a record, and keeps what may be needed of it.
    pub(super) fn settle(&mut self, origin: &Origin<'_>, rejected: impl Fn(Reject) -> Rejected) {
        match self.take(origin) {
            Ok(None) => {}
            Ok(piece) => {
                let reject = Reject::new(Reason::Sink, "its file cannot be made");
                self.lines.keep(piece, rejected(reject));
            }
            Err(reject) => self.lines.keep(None, rejected(reject)),
        }
    }

    /// Returns as [`Append::append`] does.
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
        match self.decoder.unwrap(codec, value, self.lines.engine().payload_limit / LARGE_SHARE) {
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
        self.lines.give_back();
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
        if self.lines.size() >= self.lines.engine().payload_limit / PART_SHARE {
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
        let size = self.lines.size() as u64;
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
        let size = self.lines.size() as u64;
        let part = DoneBlock { is_last: false, cost: size, ..self.part(index, source) };
        self.parts.counted -= size;
        self.parts.place.part += 1;
        if !next(part) {
            self.parts.wanted = Wanted::No;
        }
    }

    /// The last part of a block of so many records.
    pub(super) fn finish(mut self, count: usize) -> (DoneBlock, Wanted) {
        self.count();
        let source = std::mem::replace(&mut self.parts.source, Source::Queue(Vec::new()));
        (self.part(count, source), self.parts.wanted)
    }

    /// The records from the first that is not handed on up to this one.
    fn part(&mut self, index: usize, source: Source) -> DoneBlock {
        let Taken { pieces, filtered, rejects } = self.lines.take();
        DoneBlock {
            place: self.parts.place,
            is_last: true,
            source,
            recipe: Arc::clone(&self.lines.engine().fingerprint),
            pieces,
            records: (index - std::mem::replace(&mut self.parts.first, index)) as u64,
            filtered,
            rejects,
            cost: self.parts.counted,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicU64;
    use std::sync::atomic::Ordering::SeqCst;

    use super::super::testing::{block, engine, swelling};
    use super::super::{Worker, spawn};
    use super::*;
    use crate::block::RawBlock;
    use crate::config::Compression;

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
}
