//! The copy of the failure queue: what lets old segments go although the queue still has entries of theirs.
//!
//! **Promise.** A copy and the frames above its number tell every entry, so that the store is but an index of what the journal
//! knows, and may be lost. A copy is there whole or not at all.
//!
//! **Format.** A file beside the segments, `.queue`, named as they are by the number of the last block or change in it. Its
//! frames are framed like a segment's, with that number for the segment's. The first says which format the others are of,
//! and is missing in format 3; the body of each is a list of keys and entries, in order, and an empty one is the end.
//!
//! **Failure.** One that cannot be read to its end is none. One that could not be written leaves the one before it.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::{Format, QueueEntry, SEGMENT_BYTES, framing, numbers, point};
use crate::regular;

const EXTENSION: &str = ".queue";

/// The name of a copy that is being written.
const UNFINISHED: &str = "queue.new";

/// Room that a copy leaves: for segments of the journal, and for what the store writes at a time of its own.
const RESERVE_BYTES: u64 = 2 * SEGMENT_BYTES + (16 << 20);

/// A frame of so many bytes of entries gets no more.
const FRAME_BYTES: u64 = if cfg!(test) { 1 << 10 } else { 256 << 10 };

/// The first frame: this, and the version of the format in one byte. No list of entries is as short that begins so.
const MAGIC: &[u8] = b"queue";

/// What is done with each entry.
pub type Each<'a> = dyn FnMut(u64, QueueEntry) -> io::Result<()> + 'a;

/// The failure queue as a store has it.
pub struct Queue<'a> {
    /// Of the last block or change in it.
    pub number: u64,
    /// The sizes of its entries, bytes.
    pub bytes: u64,
    /// Gives every entry, in order.
    pub entries: &'a dyn Fn(&mut Each<'_>) -> io::Result<()>,
}

impl fmt::Debug for Queue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("number", &self.number).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

fn path_of(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:020}{EXTENSION}"))
}

/// The number of the newest copy; 0 when there is none, since an empty queue needs none.
pub(super) fn newest(dir: &Path) -> io::Result<u64> {
    Ok(numbers(dir, EXTENSION)?.last().copied().unwrap_or(0))
}

/// Makes a copy durable, and removes those before it.
pub(super) fn write(dir: &Path, queue: &Queue<'_>) -> io::Result<()> {
    check_room(dir, queue.bytes)?;
    let fresh = dir.join(UNFINISHED);
    let written = write_file(&fresh, queue);
    point("copy.written");
    if let Err(error) = written.and_then(|()| fs::rename(&fresh, path_of(dir, queue.number))) {
        drop(fs::remove_file(&fresh));
        return Err(error);
    }
    File::open(dir)?.sync_all()?;
    point("copy.named");
    remove(dir, |number| number != queue.number)
}

/// A disk that is filled up keeps the service from starting, and a write that fails damages the store.
fn check_room(dir: &Path, bytes: u64) -> io::Result<()> {
    let disk = nix::sys::statvfs::statvfs(dir)?;
    let free = disk.blocks_available().saturating_mul(disk.fragment_size());
    let wanted = bytes + bytes / 4 + RESERVE_BYTES;
    if free >= wanted {
        return Ok(());
    }
    let text = format!("{} has {free} bytes free, and a copy wants {wanted}", dir.display());
    Err(io::Error::new(io::ErrorKind::StorageFull, text))
}

/// Removes what a kill left of a copy.
pub fn forget_unfinished(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join(UNFINISHED)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Removes the copies of some numbers.
pub(super) fn remove(dir: &Path, which: impl Fn(u64) -> bool) -> io::Result<()> {
    let mut gone = numbers(dir, EXTENSION)?;
    gone.retain(|number| which(*number));
    gone.into_iter().try_for_each(|number| fs::remove_file(path_of(dir, number)))
}

fn write_file(path: &Path, queue: &Queue<'_>) -> io::Result<()> {
    let file = regular::open_with(File::options().write(true).create(true).truncate(true).mode(0o600), path)?;
    let mut file = BufWriter::with_capacity(1 << 20, file);
    file.write_all(&framing::in_parts(queue.number, &[MAGIC, &[Format::CURRENT.version() as u8]].concat()))?;
    let (mut some, mut bytes, mut all) = (Vec::new(), 0, 0);
    (queue.entries)(&mut |key, entry| {
        bytes += entry.size();
        all += entry.size();
        some.push((key, entry));
        if bytes >= FRAME_BYTES {
            bytes = 0;
            file.write_all(&framing::encode(queue.number, &std::mem::take(&mut some))?)?;
        }
        Ok(())
    })?;
    if all != queue.bytes {
        let text =
            format!("the store has {all} bytes of entries of the failure queue, and should have {}", queue.bytes);
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    if !some.is_empty() {
        file.write_all(&framing::encode(queue.number, &std::mem::take(&mut some))?)?;
    }
    file.write_all(&framing::encode(queue.number, &some)?)?;
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

/// Gives the entries of a copy. Whether it was whole; there is none of number 0, and that is whole.
pub(super) fn read(dir: &Path, number: u64, each: &mut Each<'_>) -> io::Result<bool> {
    let file = match regular::open(&path_of(dir, number)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(number == 0),
        file => file?,
    };
    let mut file = BufReader::with_capacity(1 << 20, file);
    let mut format = Format::V3;
    loop {
        let Some(body) = framing::read(number, &mut file)? else { return Ok(false) };
        if let Some([version]) = body.strip_prefix(MAGIC) {
            format = Format::of(u32::from(*version)).map_err(|error| {
                let text = format!("the copy of the failure queue in {} cannot be read: {error}", dir.display());
                io::Error::new(io::ErrorKind::Unsupported, text)
            })?;
            continue;
        }
        match format.entries(&body) {
            Err(_) => return Ok(false),
            Ok(some) if some.is_empty() => return Ok(true),
            Ok(some) => some.into_iter().try_for_each(|(key, entry)| each(key, entry))?,
        }
    }
}
