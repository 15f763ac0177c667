//! The block journal: the small append-only log that makes progress durable.
//!
//! **Promise.** What was appended before a [`Journal::sync`] that succeeded is read back after any crash, in order. What
//! was appended after it may be missing from some frame on, never from the middle: reading stops at the first bad frame.
//!
//! **Not here.** What the frames mean for files and for Kafka is the business of the `delivery` module; the fold into a
//! [`State`] is all that is known of it here. The entries of the failure queue are kept by the store.
//!
//! **Format.** A directory of segments named by their number in twenty digits, `.log`. Each is a sequence of frames:
//! length of the body (u32), CRC-32C (u32) of segment number, length and body, body; little-endian; the body is a
//! [`Frame`] in postcard's encoding. A segment begins with a `Header` and an `Image` of the state, both fsynced before
//! anything else is written. Segments are allocated whole in advance, so that a full disk can still be recorded; a
//! length of zero is the end.
//!
//! The newest segment whose first two frames are good is the journal; older ones are history. No segment is ever
//! continued by another process: each start begins a new one, whose header names the segment before it and the length
//! up to which that was valid, and all past that is void.
//!
//! **Failure.** Every I/O error goes to the caller and leaves the position where it was, so that the same frame can be
//! written again.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::config::Visibility;

mod frame;
mod state;
#[cfg(test)]
mod tests;

pub use frame::{
    Block, BlockSource, FileIntent, Frame, Header, Mark, MoveCause, Piece, Position, QueueCause, QueueChange,
    QueueEntry, Seal, SealedFile, SealedOffsets, SealedRange,
};
pub use state::{FileState, Growth, PartitionState, Place, State, Totals};

/// Version of the format.
pub const VERSION: u32 = 2;

/// Bytes allocated for a segment, and its usual length: one holds some hundred million records' worth of blocks. Small in
/// tests, so that they see segments follow each other.
const SEGMENT_BYTES: u64 = if cfg!(test) { 16 << 10 } else { 16 << 20 };

/// A length field above this is damage, not a frame: a block's rejects are bounded by the block.
const FRAME_MAX: usize = 1 << 30;

const PREFIX: usize = 8;

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
/// I/O errors, and a journal of a newer format. Damage is not an error: reading ends there.
pub fn read(dir: &Path) -> io::Result<Contents> {
    let mut contents = Contents::default();
    let segments = segments(dir)?;
    contents.last_segment = segments.last().copied().unwrap_or(0);
    for segment in segments.into_iter().rev() {
        let bytes = fs::read(segment_path(dir, segment))?;
        let mut frames = Frames::new(segment, &bytes);
        let Some(Frame::Header(header)) = frames.next() else { continue };
        if header.version != VERSION {
            let text = format!(
                "the journal in {} has format {}, this program's is {VERSION}: use the program that wrote it",
                dir.display(),
                header.version
            );
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        let Some(Frame::Image(state)) = frames.next() else { continue };
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

/// Every valid frame of every kept segment, oldest first: what a lost store is rebuilt from.
pub fn history(dir: &Path, mut each: impl FnMut(Frame)) -> io::Result<()> {
    let segments = segments(dir)?;
    let mut ends = std::collections::BTreeMap::new();
    let mut dropped = Vec::new();
    for &segment in &segments {
        let bytes = fs::read(segment_path(dir, segment))?;
        let mut frames = Frames::new(segment, &bytes);
        if let Some(Frame::Header(Header { previous: Some((previous, end)), .. })) = frames.next() {
            ends.insert(previous, end);
        }
        if let Some(Frame::Dropped { from, to }) = frames.nth(1) {
            dropped.push(from..=to);
        }
    }
    let happened = |frame: &Frame| match frame {
        Frame::Block(block) => !dropped.iter().any(|range| range.contains(&block.number)),
        _ => true,
    };
    for segment in segments {
        let bytes = fs::read(segment_path(dir, segment))?;
        let mut frames = Frames::new(segment, &bytes);
        let end = ends.get(&segment).copied().unwrap_or(u64::MAX);
        while let Some(frame) = frames.next() {
            if frames.position as u64 > end {
                break;
            }
            if happened(&frame) {
                each(frame);
            }
        }
    }
    Ok(())
}

/// The number up to which the blocks are in no kept segment any more; `None` when that cannot be told.
pub fn forgotten(dir: &Path) -> io::Result<Option<u64>> {
    let Some(oldest) = segments(dir)?.first().copied() else { return Ok(None) };
    let bytes = fs::read(segment_path(dir, oldest))?;
    Ok(match Frames::new(oldest, &bytes).nth(1) {
        Some(Frame::Image(state)) => Some(state.number),
        _ => None,
    })
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
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Frames<'a> {
    fn new(segment: u64, bytes: &'a [u8]) -> Self {
        Self { segment, bytes, position: 0 }
    }
}

impl Iterator for Frames<'_> {
    type Item = Frame;

    fn next(&mut self) -> Option<Frame> {
        let rest = self.bytes.get(self.position..)?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let (crc, rest) = rest.split_first_chunk::<4>()?;
        let size = u32::from_le_bytes(*length) as usize;
        if size == 0 || size > FRAME_MAX {
            return None;
        }
        let body = rest.get(..size)?;
        if checksum(self.segment, *length, body) != u32::from_le_bytes(*crc) {
            return None;
        }
        let frame = postcard::from_bytes(body).ok()?;
        self.position += PREFIX + size;
        Some(frame)
    }
}

fn checksum(segment: u64, length: [u8; 4], body: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&segment.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(crc, &length), body)
}

fn encode(segment: u64, frame: &Frame) -> io::Result<Vec<u8>> {
    let body = postcard::to_stdvec(frame).map_err(io::Error::other)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?.to_le_bytes();
    let mut bytes = Vec::with_capacity(PREFIX + body.len());
    bytes.extend_from_slice(&length);
    bytes.extend_from_slice(&checksum(segment, length, &body).to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

fn segment_path(dir: &Path, segment: u64) -> PathBuf {
    dir.join(format!("{segment:020}.log"))
}

fn segments(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(numbers),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        if let Some(number) =
            name.to_str().and_then(|name| name.strip_suffix(".log")).and_then(|name| name.parse().ok())
            && *name == *segment_path(Path::new(""), number)
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
    file: Arc<File>,
    position: u64,
}

impl Journal {
    /// Begins a new segment with the image of a state in which everything is durable.
    pub fn begin(dir: &Path, contents: &Contents, image: &State) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o750).create(dir)?;
        let dropped = contents.tail.iter().rfind(|frame| matches!(frame, Frame::Dropped { .. }));
        let journal = Self::segment(dir, contents.last_segment + 1, contents.end, image, dropped)?;
        journal.trim(contents.end)?;
        Ok(journal)
    }

    /// Gives back the room that was reserved for a segment and is not needed any more.
    fn trim(&self, ended: Option<(u64, u64)>) -> io::Result<()> {
        let Some((segment, end)) = ended else { return Ok(()) };
        OpenOptions::new().write(true).open(segment_path(&self.dir, segment))?.set_len(end)
    }

    fn segment(
        dir: &Path,
        segment: u64,
        previous: Option<(u64, u64)>,
        image: &State,
        dropped: Option<&Frame>,
    ) -> io::Result<Self> {
        let path = segment_path(dir, segment);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o640).open(&path)?;
        allocate(&file)?;
        let mut journal = Self { dir: dir.to_owned(), segment, file: Arc::new(file), position: 0 };
        journal.append(&Frame::Header(Header { version: VERSION, segment, previous }))?;
        journal.append(&Frame::Image(Box::new(image.clone())))?;
        dropped.map_or(Ok(()), |frame| journal.append(frame))?;
        journal.file.sync_all()?;
        File::open(dir)?.sync_all()?;
        Ok(journal)
    }

    /// Appends a frame. It reaches the page cache, not the disk. On an error nothing was appended, and the same frame may
    /// be tried again.
    pub fn append(&mut self, frame: &Frame) -> io::Result<()> {
        let bytes = encode(self.segment, frame)?;
        self.file.write_all_at(&bytes, self.position)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Makes everything appended so far durable.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// The file behind it, for a sync on another thread.
    pub fn file(&self) -> Arc<File> {
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
        match Self::segment(&self.dir, self.segment + 1, ended, image, None) {
            Ok(next) => *self = next,
            Err(error) => {
                // Half a segment must not void what goes on to be written here.
                fs::remove_file(segment_path(&self.dir, self.segment + 1))
                    .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
                    .map_err(io::Error::other)?;
                return Err(error);
            }
        }
        self.trim(ended)
    }

    /// Removes segments that ended before `now - keep`. The store's own files must have been fsynced since they ended.
    pub fn prune(&self, keep: Duration, now: SystemTime) -> io::Result<()> {
        for segment in segments(&self.dir)?.into_iter().filter(|segment| *segment < self.segment) {
            let path = segment_path(&self.dir, segment);
            if now.duration_since(fs::metadata(&path)?.modified()?).is_ok_and(|age| age > keep) {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
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
