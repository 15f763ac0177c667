//! The block journal: the small append-only log that makes progress durable.
//!
//! **Promise.** What was appended before a [`Journal::sync`] that succeeded is read back after any crash, in order. What
//! was appended after it may be missing from some frame on, never from the middle: reading stops at the first bad frame.
//!
//! **Not here.** What the frames mean for files and for Kafka is the business of the `delivery` module; the fold into a
//! [`State`] is all that is known of it here. The entries of the failure queue are looked up in the store; what the journal
//! itself knows of them is in its frames and in a copy of its own, see `copy`.
//!
//! **Format.** A directory of segments named by their number in twenty digits, `.log`. Each is a sequence of frames, see
//! `framing`; the body of each is a [`Frame`] in postcard's encoding, see `format` for those of earlier versions. A segment begins with a `Header`, what was `Dropped` before it if anything was, and an
//! `Image` of the state, all fsynced before anything else is written. Segments are allocated whole in advance, so that a full disk can still be recorded; a
//! length of zero is the end.
//!
//! The newest segment with a good `Image` is the journal; older ones are history. No segment is ever
//! continued by another process: each start begins a new one, whose header names the segment before it and the length
//! up to which that was valid, and all past that is void.
//!
//! **Failure.** Every I/O error goes to the caller and leaves the position where it was, so that the same frame can be
//! written again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use crate::config::Visibility;
use crate::durable::create_private_dirs;
use crate::fault::point;
use crate::regular;
use crate::synced::SyncedFile;

mod copy;
mod format;
mod frame;
mod framing;
mod prune;
mod state;
#[cfg(test)]
mod tests;
mod v3;
mod v4;
mod v5;

pub use copy::{Each, Queue, forget_unfinished};
pub use format::{Format, UnknownFormat};
pub use frame::{
    Begun, Block, BlockSource, FileIntent, Former, Frame, Header, Mark, MoveCause, Piece, Position, QueueCause,
    QueueChange, QueueEntry, Seal, SealedFile, SealedOffsets, SealedRange,
};
pub use prune::{History, copy, prune};
pub use state::{FileState, Growth, PartitionState, Place, State, Totals};

/// Version of the format that is written; see [`Format`].
pub const VERSION: u32 = Format::CURRENT.version();

/// Bytes allocated for a segment, and its usual length: one holds some hundred million records' worth of blocks. Small in
/// tests, so that they see segments follow each other.
const SEGMENT_BYTES: u64 = if cfg!(test) { 16 << 10 } else { 16 << 20 };

/// What a journal holds.
#[derive(Debug, Default)]
pub struct Contents {
    /// What is durable; `None` when there is no journal.
    pub state: Option<State>,
    /// What came after the last checkpoint, in order: blocks whose pieces are to be looked at, and what happened between.
    pub tail: Vec<Frame>,
    /// The segment it was read from and how far that one is valid.
    pub end: Option<(u64, u64)>,
    /// The highest segment number present, valid or not.
    pub last_segment: u64,
}

impl Contents {
    /// Forgets the blocks of files that nobody has seen and that no checkpoint covers: they are cheaper to read again from
    /// Kafka than to complete. Says so in the tail, since their numbers are not used again.
    fn drop_hidden(&mut self) {
        if self.state.as_ref().is_none_or(|state| state.visibility == Visibility::Live) {
            return;
        }
        let mut numbers = self.tail.iter().filter_map(|frame| match frame {
            Frame::Block(block) => Some(block.number),
            _ => None,
        });
        let Some(from) = numbers.next() else { return };
        let to = numbers.next_back().unwrap_or(from);
        self.tail.retain(|frame| !matches!(frame, Frame::Block(_)));
        self.tail.push(Frame::Dropped { from, to });
    }
}

/// Reads a journal without changing anything.
///
/// # Errors
/// I/O errors, and a journal of an unknown format. Damage is not an error: reading ends there.
pub fn read(dir: &Path) -> io::Result<Contents> {
    let mut contents = Contents::default();
    let segments = segments(dir)?;
    contents.last_segment = segments.last().copied().unwrap_or(0);
    for segment in segments.into_iter().rev() {
        let bytes = regular::read(&segment_path(dir, segment))?;
        let Some((_, mut frames)) = Frames::open(dir, segment, &bytes)? else { continue };
        let Some(Beginning { state, .. }) = frames.image() else { continue };
        let mut fold = Fold { state: *state, tail: Vec::new() };
        for frame in frames.by_ref() {
            fold.take(frame);
        }
        contents.state = Some(fold.state);
        contents.tail = fold.tail;
        contents.drop_hidden();
        contents.end = Some((segment, frames.position as u64));
        break;
    }
    Ok(contents)
}

/// Every valid frame with a number above `after` in the kept segments, oldest first: what a store that lost something is made
/// whole from. Segments that have none are not read. Returns whether that is everything that happened.
pub fn history(dir: &Path, after: u64, mut each: impl FnMut(Frame)) -> io::Result<bool> {
    let mut segments = segments(dir)?;
    let mut ends = std::collections::BTreeMap::new();
    let mut dropped = Vec::new();
    for (index, &segment) in segments.iter().enumerate().rev() {
        let bytes = regular::read(&segment_path(dir, segment))?;
        let Some((header, mut frames)) = Frames::open(dir, segment, &bytes)? else { continue };
        ends.extend(header.previous);
        let Some(begun) = frames.image() else { continue };
        dropped.extend(begun.dropped);
        if begun.state.number <= after {
            segments.drain(..index);
            break;
        }
    }
    let happened = |frame: &Frame| match frame {
        Frame::Block(block) => !dropped.iter().any(|range| range.contains(&block.number)),
        _ => true,
    };
    let (mut reached, mut whole) = (after, true);
    for segment in segments {
        let bytes = regular::read(&segment_path(dir, segment))?;
        let Some((_, mut frames)) = Frames::open(dir, segment, &bytes)? else { continue };
        let end = ends.get(&segment).copied().unwrap_or(u64::MAX);
        while let Some(frame) = frames.next() {
            if frames.position as u64 > end {
                break;
            }
            if let Frame::Image(state) = &frame {
                whole &= state.number <= reached;
            }
            // That some were dropped does not tell what they were.
            let Some(number) = frame.number().filter(|_| !matches!(frame, Frame::Dropped { .. })) else { continue };
            reached = reached.max(number);
            if number > after && happened(&frame) {
                each(frame);
            }
        }
    }
    Ok(whole)
}

/// The number from which the journal alone tells what became of the failure queue up to `upto`: what [`copied`] gives, and
/// the [`history`] above it. `None` when something of it is missing.
pub fn told_from(dir: &Path, upto: u64) -> io::Result<Option<u64>> {
    let from = copy::newest(dir)?;
    let told = from <= upto && copied(dir, from, &mut |_, _| Ok(()))? && history(dir, from, |_| ())?;
    Ok(told.then_some(from))
}

/// Gives the entries that the failure queue had at such a number; whether that was all of them.
pub fn copied(dir: &Path, number: u64, each: &mut Each<'_>) -> io::Result<bool> {
    copy::read(dir, number, each)
}

/// The number up to which the blocks are in no kept segment any more; `None` when that cannot be told.
pub fn forgotten(dir: &Path) -> io::Result<Option<u64>> {
    segments(dir)?.first().map_or(Ok(None), |oldest| begins(dir, *oldest))
}

/// The number up to which everything is in the segments before this one; `None` when it does not say.
fn begins(dir: &Path, segment: u64) -> io::Result<Option<u64>> {
    let mut file = regular::open(&segment_path(dir, segment))?;
    let mut bytes = Vec::new();
    // An image is seldom longer.
    for more in [64 << 10, u64::MAX] {
        file.by_ref().take(more).read_to_end(&mut bytes)?;
        let opened = Frames::open(dir, segment, &bytes)?;
        if let Some(begun) = opened.and_then(|(_, mut frames)| frames.image()) {
            return Ok(Some(begun.state.number));
        }
    }
    Ok(None)
}

/// The fold that knows which frames are durable: the numbers of blocks and queue changes rise along the journal, so a
/// checkpoint covers a prefix of what came since the last one.
struct Fold {
    state: State,
    tail: Vec<Frame>,
}

impl Fold {
    fn take(&mut self, frame: Frame) {
        let Frame::Checkpoint { number } = frame else {
            self.tail.push(frame);
            return;
        };
        let beyond = |frame: &Frame| frame.number().is_some_and(|of| of > number);
        let durable = self.tail.iter().position(beyond).unwrap_or(self.tail.len());
        for frame in self.tail.drain(..durable) {
            self.state.apply(&frame);
        }
    }
}

/// Reads the frames of one segment up to the first bad one.
struct Frames<'a> {
    segment: u64,
    format: Format,
    bytes: &'a [u8],
    position: usize,
}

/// Where a segment begins.
struct Beginning {
    /// The blocks before it that did not happen.
    dropped: Option<RangeInclusive<u64>>,
    state: Box<State>,
}

impl<'a> Frames<'a> {
    /// The header of a segment and the frames behind it; `None` when it has no good one.
    fn open(dir: &Path, segment: u64, bytes: &'a [u8]) -> io::Result<Option<(Header, Self)>> {
        let format = framing::decode(segment, bytes).and_then(|(body, _)| Format::of_header(&body));
        let Some(format) = format else { return Ok(None) };
        let format = format.map_err(|error| {
            let text = format!("the journal in {} cannot be read: {error}", dir.display());
            io::Error::new(io::ErrorKind::Unsupported, text)
        })?;
        let mut frames = Self { segment, format, bytes, position: 0 };
        Ok(match frames.next() {
            Some(Frame::Header(header)) => Some((header, frames)),
            _ => None,
        })
    }

    /// What follows the header.
    fn image(&mut self) -> Option<Beginning> {
        match self.next()? {
            Frame::Image(state) => Some(Beginning { dropped: None, state }),
            Frame::Dropped { from, to } => match self.next()? {
                Frame::Image(state) => Some(Beginning { dropped: Some(from..=to), state }),
                _ => None,
            },
            _ => None,
        }
    }
}

impl Iterator for Frames<'_> {
    type Item = Frame;

    fn next(&mut self) -> Option<Frame> {
        let (body, length) = framing::decode(self.segment, self.bytes.get(self.position..)?)?;
        let frame = self.format.frame(&body).ok()?;
        self.position += length;
        Some(frame)
    }
}

fn segment_path(dir: &Path, segment: u64) -> PathBuf {
    dir.join(format!("{segment:020}.log"))
}

fn segments(dir: &Path) -> io::Result<Vec<u64>> {
    numbers(dir, ".log")
}

/// The numbers of the files with such an extension, in order.
fn numbers(dir: &Path, extension: &str) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(numbers),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        if let Some(number) =
            name.to_str().and_then(|name| name.strip_suffix(extension)).and_then(|name| name.parse().ok())
            && *name == *format!("{number:020}{extension}")
        {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// The journal of a running service: appends to one segment.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    segment: u64,
    file: Arc<SyncedFile>,
    position: u64,
}

impl Journal {
    /// Begins a new segment with the image of a state in which everything is durable.
    pub fn begin(dir: &Path, contents: &Contents, image: &State) -> io::Result<Self> {
        create_private_dirs(dir)?;
        if let Some((segment, end)) = contents.end {
            // Its last frames may be in memory only. They are not needed for the image, but for the rejects in them until the
            // store has those for good. They are written once more, since a sync that failed may have lost them to the disk.
            let file = regular::open_with(OpenOptions::new().read(true).write(true), &segment_path(dir, segment))?;
            let mut frames = vec![0; usize::try_from(end).map_err(io::Error::other)?];
            file.read_exact_at(&mut frames, 0)?;
            file.write_all_at(&frames, 0)?;
            file.sync_all()?;
        }
        // Before the image, which makes the segment one: what was dropped must not come back.
        let dropped = contents.tail.iter().rfind(|frame| matches!(frame, Frame::Dropped { .. }));
        let mut first: Vec<_> = dropped.cloned().into_iter().collect();
        first.push(Frame::Image(Box::new(image.clone())));
        // Its numbers are used again: what was lost was no more than the end.
        copy::remove(dir, |number| number > image.number)?;
        let journal = Self::segment(dir, contents.last_segment + 1, contents.end, &first)?;
        journal.trim(contents.end)?;
        Ok(journal)
    }

    /// Gives back the room that was reserved for a segment and is not needed any more.
    fn trim(&self, ended: Option<(u64, u64)>) -> io::Result<()> {
        let Some((segment, end)) = ended else { return Ok(()) };
        regular::open_with(OpenOptions::new().write(true), &segment_path(&self.dir, segment))?.set_len(end)
    }

    /// Makes a segment with these frames behind its header, durably or not at all: half of one would take room, and void what
    /// goes on to be written before it.
    fn segment(dir: &Path, segment: u64, previous: Option<(u64, u64)>, first: &[Frame]) -> io::Result<Self> {
        let path = segment_path(dir, segment);
        Self::write_segment(dir, &path, segment, previous, first).map_err(|error| {
            let gone = match fs::remove_file(&path) {
                Err(left) if left.kind() != io::ErrorKind::NotFound => Err(left),
                _ => File::open(dir).and_then(|dir| dir.sync_all()),
            };
            // What is not gone for good must not be taken for less than it is.
            gone.err().map_or(error, io::Error::other)
        })
    }

    fn write_segment(
        dir: &Path,
        path: &Path,
        segment: u64,
        previous: Option<(u64, u64)>,
        first: &[Frame],
    ) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let file = regular::open_with(&mut options, path)?;
        allocate(&file)?;
        let mut journal = Self { dir: dir.to_owned(), segment, file: Arc::new(SyncedFile::new(file)), position: 0 };
        journal.append(&Frame::Header(Header { version: VERSION, segment, previous }))?;
        first.iter().try_for_each(|frame| journal.append(frame))?;
        point("journal.begun");
        journal.file.sync_all()?;
        point("journal.unnamed");
        File::open(dir)?.sync_all()?;
        point("journal.named");
        Ok(journal)
    }

    /// The number of the segment that it appends to. It rises with each start.
    pub fn current_segment(&self) -> u64 {
        self.segment
    }

    /// Appends a frame. It reaches the page cache, not the disk. On an error nothing was appended, and the same frame may
    /// be tried again.
    pub fn append(&mut self, frame: &Frame) -> io::Result<()> {
        let bytes = framing::encode(self.segment, frame)?;
        self.file.write_all_at(&bytes, self.position)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Makes everything appended so far durable.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// The file behind it, for a sync on another thread.
    pub fn file(&self) -> Arc<SyncedFile> {
        Arc::clone(&self.file)
    }

    /// Whether the segment has had its share.
    pub fn is_full(&self) -> bool {
        self.position >= SEGMENT_BYTES / 8 * 7
    }

    /// Goes on in a new segment. Everything in `image` must be durable and nothing else be pending.
    pub fn turn(&mut self, image: &State) -> io::Result<()> {
        self.sync()?;
        let ended = Some((self.segment, self.position));
        *self = Self::segment(&self.dir, self.segment + 1, ended, &[Frame::Image(Box::new(image.clone()))])?;
        self.trim(ended)
    }

    /// Removes older segments than are to be kept; see `prune`.
    pub fn prune(&self, keep: History, now: SystemTime, queue: &Queue<'_>) -> io::Result<()> {
        prune(&self.dir, self.segment, keep, now, queue)
    }
}

/// Reserves the room of a segment; file systems that cannot do without.
fn allocate(file: &File) -> io::Result<()> {
    use nix::errno::Errno;
    use nix::fcntl::{FallocateFlags, fallocate};
    match fallocate(file.as_fd(), FallocateFlags::empty(), 0, SEGMENT_BYTES as i64) {
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
