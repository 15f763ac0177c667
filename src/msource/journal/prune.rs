//! Which old segments go, and when the failure queue is copied for that.
//!
//! **Promise.** A segment stays as long as it may tell of an entry that nothing else beside the store does. The current one,
//! and what [`History`] keeps, stay anyhow.
//!
//! **Failure.** Without room for a copy they stay. Every other I/O error goes to the caller; what was removed before it was
//! not needed.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::copy::{self, Queue};
use super::{begins, segment_path, segments};

/// How much is kept of what is not needed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct History {
    /// How long after a segment's last frame.
    pub age: Duration,
    /// How many bytes of segments.
    pub bytes: u64,
}

/// The segments before this one that need not be kept, oldest first.
fn expired(dir: &Path, before: u64, keep: History, now: SystemTime) -> io::Result<Vec<u64>> {
    let mut older = segments(dir)?;
    older.retain(|segment| *segment < before);
    let (mut kept, mut bytes) = (0, 0);
    for segment in older.iter().rev() {
        let metadata = fs::metadata(segment_path(dir, *segment))?;
        bytes += metadata.len();
        if bytes > keep.bytes || now.duration_since(metadata.modified()?).is_ok_and(|age| age > keep.age) {
            break;
        }
        kept += 1;
    }
    older.truncate(older.len() - kept);
    Ok(older)
}

/// Removes older segments than are to be kept, of those before this one. Those that nothing else tells the entries of are copied
/// first, once there are as many bytes of them as the queue has, or stay while there is no room for that. Nothing may change
/// in the queue meanwhile.
pub fn prune(dir: &Path, before: u64, keep: History, now: SystemTime, queue: &Queue<'_>) -> io::Result<()> {
    let mut old = expired(dir, before, keep, now)?;
    let mut covered = covered(dir, &old, copy::newest(dir)?.min(queue.number))?;
    if covered < old.len() {
        let bytes = old.iter().map(|segment| Ok(fs::metadata(segment_path(dir, *segment))?.len()));
        if bytes.sum::<io::Result<u64>>()? >= queue.bytes && copy(dir, queue)? {
            covered = self::covered(dir, &old, queue.number)?;
        }
    }
    old.truncate(covered);
    if !old.is_empty() {
        // A copy may be there of which a kill kept the name from being durable.
        File::open(dir)?.sync_all()?;
    }
    old.into_iter().try_for_each(|segment| fs::remove_file(segment_path(dir, segment)))
}

/// How many of the oldest segments have nothing above a number.
fn covered(dir: &Path, old: &[u64], number: u64) -> io::Result<usize> {
    let (mut count, all) = (0, segments(dir)?);
    for (index, segment) in old.iter().enumerate() {
        let Some(next) = all.iter().find(|next| *next > segment) else { break };
        match begins(dir, *next)? {
            Some(begins) if begins > number => break,
            Some(_) => count = index + 1,
            None => {}
        }
    }
    Ok(count)
}

/// Copies the queue, as it is; `false` when there is no room.
pub fn copy(dir: &Path, queue: &Queue<'_>) -> io::Result<bool> {
    match copy::write(dir, queue) {
        Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
            tracing::warn!(%error, bytes = queue.bytes, "cannot copy the failure queue: old segments of the journal stay");
            Ok(false)
        }
        copied => copied.map(|()| true),
    }
}
