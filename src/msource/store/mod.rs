//! The store: the state of the last checkpoint and the entries of the failure queue, in sled.
//!
//! **Promise.** [`Store::apply`] takes the state, the new entries and the removed ones over together or not at all.
//!
//! **Not promised.** sled 0.34 alone does not survive a power cut: its flush writes pages but neither the length of the
//! file nor the disk's cache. The journal is what makes progress durable; what the store lost is brought back from it,
//! and a store that cannot be opened is set aside and rebuilt. That is why it stays behind this narrow trait.
//!
//! **Damage.** sled is known to answer it with panics: reading turns them into [`StoreError::Damaged`]. [`salvage`] reads what
//! can be read of a damaged store.
//!
//! **Format.** One tree: `state` holds the [`State`]; `q` and a key (u64, big-endian) hold a row: the entries of the failure
//! queue from that key on, in order, all below the next row's. Each value is a version byte and postcard's encoding, of a row
//! that of key and [`QueueEntry`] in turn. What costs sled time, memory and room is the number of values, not their size: one
//! value for each entry made a million of them take gigabytes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::journal::{QueueEntry, State};

mod salvage;
#[cfg(test)]
mod tests;

pub use salvage::{Found, salvage};

/// Why the store did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process holds it.
    #[error("the store {} is in use by another process", .0.display())]
    Locked(PathBuf),
    /// It cannot be read.
    #[error("the store {path} is damaged: {text}", path = .0.display(), text = .1)]
    Damaged(PathBuf, String),
    /// It is of a newer format.
    #[error("the store holds a value of format {0}, newer than this program")]
    Newer(u8),
    /// Too little room on its disk to be sure that a change fits; nothing was changed, and it may be tried again.
    #[error("{} has {free} bytes free for the store, which wants {wanted}; make room", .path.display())]
    NoRoom {
        /// Where it lies.
        path: PathBuf,
        /// Bytes free there.
        free: u64,
        /// Bytes that must be free.
        wanted: u64,
    },
    /// The disk failed.
    #[error("the store {} failed", .0.display())]
    Io(PathBuf, #[source] io::Error),
}

/// What a checkpoint changes.
#[derive(Debug, Default)]
pub struct StoreChange {
    /// The state from now on.
    pub state: State,
    /// Entries that are new, or replaced.
    pub insert: Vec<(u64, QueueEntry)>,
    /// Entries that are gone.
    pub remove: Vec<u64>,
}

/// What the rest of the program needs of a store.
pub trait Store: Send + Sync {
    /// The state of the last [`Self::apply`].
    fn state(&self) -> Result<Option<State>, StoreError>;
    /// Takes a change over, whole or not at all.
    fn apply(&self, change: &StoreChange) -> Result<(), StoreError>;
    /// The entry of the failure queue with this key.
    fn entry(&self, key: u64) -> Result<Option<QueueEntry>, StoreError>;
    /// The entries of the failure queue from this key on, in order of arrival, until `each` says to stop.
    fn entries(&self, from: u64, each: &mut dyn FnMut(u64, QueueEntry) -> Walk) -> Result<(), StoreError>;
    /// Makes everything applied so far durable, as far as the disk can.
    fn sync(&self) -> Result<(), StoreError>;
}

/// Whether a walk over the entries goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walk {
    /// To the next one.
    On,
    /// No further.
    Stop,
}

const STATE: &[u8] = b"state";
const VERSION: u8 = 3;

/// A row of this length gets no further entry. sled keeps sixteen in a page, which it writes anew now and then.
const ROW_BYTES: usize = 8 << 10;

/// Room that is left on the disk beyond a change: sled, which writes whole segments of half a megabyte and some of them at
/// a time of its own, is damaged by a write that fails.
const RESERVE_BYTES: u64 = 16 << 20;

/// Bound on sled's cache; its default is 1 GiB.
const CACHE_BYTES: u64 = 8 << 20;

/// The store in sled.
#[derive(Debug)]
pub struct SledStore {
    path: PathBuf,
    db: sled::Db,
}

impl SledStore {
    /// Opens or creates the store. While another process holds it, waits up to `patience` for it.
    pub fn open(path: &Path, patience: Duration) -> Result<Self, StoreError> {
        let deadline = Instant::now() + patience;
        loop {
            let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
            // sled is known to panic on damage instead of returning an error.
            let opened = catch_unwind(AssertUnwindSafe(|| config.open()));
            let damaged = |text: String| StoreError::Damaged(path.to_owned(), text);
            match opened {
                Err(_) => return Err(damaged("it could not be opened".into())),
                Ok(Ok(db)) => return Ok(Self { path: path.to_owned(), db }),
                Ok(Err(sled::Error::Io(error))) if is_lock(&error) => {
                    if Instant::now() >= deadline {
                        return Err(StoreError::Locked(path.to_owned()));
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
                Ok(Err(error)) => return Err(failure(path, error)),
            }
        }
    }

    /// One step of reading, in which sled may panic.
    fn reading<T>(&self, read: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
        catch_unwind(AssertUnwindSafe(read))
            .map_err(|_| StoreError::Damaged(self.path.clone(), "it could not be read".into()))?
            .map_err(|error| self.error(error))
    }

    /// Refuses a change of so many bytes when there may be too little room.
    fn check_room(&self, bytes: u64) -> Result<(), StoreError> {
        let failed = |error: nix::errno::Errno| StoreError::Io(self.path.clone(), error.into());
        let disk = nix::sys::statvfs::statvfs(&self.path).map_err(failed)?;
        let free = disk.blocks_available().saturating_mul(disk.fragment_size());
        // A value is written once, and may be moved once when its page is.
        let wanted = RESERVE_BYTES + 2 * bytes;
        if free >= wanted { Ok(()) } else { Err(StoreError::NoRoom { path: self.path.clone(), free, wanted }) }
    }

    /// The last row that begins at this key or before it.
    fn row_before(&self, key: u64) -> Result<Option<Row>, StoreError> {
        let found = self.reading(|| self.db.range(queue_key(0)..=queue_key(key)).next_back().transpose())?;
        found.map(|(key, value)| self.row(&key, &value)).transpose()
    }

    /// Where the first row behind this key begins.
    fn next_row(&self, key: u64) -> Result<Option<u64>, StoreError> {
        let found = self.reading(|| self.db.range(queue_key(key)..=queue_key(u64::MAX)).next().transpose())?;
        found.map(|(key, _)| self.row_key(&key)).transpose()
    }

    fn row_key(&self, key: &[u8]) -> Result<u64, StoreError> {
        let number = key.strip_prefix(b"q").and_then(|number| number.try_into().ok());
        number.map(u64::from_be_bytes).ok_or_else(|| self.damaged("a key of the failure queue is none"))
    }

    fn row(&self, key: &[u8], value: &[u8]) -> Result<Row, StoreError> {
        let mut row = Row { start: self.row_key(key)?, entries: Vec::new() };
        let mut rest = self.body(value)?;
        while !rest.is_empty() {
            let (entry, behind) = postcard::take_from_bytes(rest).map_err(|error| self.damaged(error))?;
            row.entries.push(entry);
            rest = behind;
        }
        Ok(row)
    }

    /// Adds the rows that a change touches, as they are after it.
    fn add_rows(&self, change: &StoreChange, to: &mut Values) -> Result<(), StoreError> {
        let mut changes: BTreeMap<u64, Option<&QueueEntry>> = change.remove.iter().map(|key| (*key, None)).collect();
        changes.extend(change.insert.iter().map(|(key, entry)| (*key, Some(entry))));
        let mut changes = changes.into_iter().peekable();
        while let Some(&(first, _)) = changes.peek() {
            if let Some(row) = self.row_before(first)?
                && let Some(last) = row.last().filter(|last| *last >= first)
            {
                let mut entries: BTreeMap<_, _> = row.entries.into_iter().collect();
                while let Some((key, entry)) = changes.next_if(|(key, _)| *key <= last) {
                    match entry {
                        Some(entry) => entries.insert(key, entry.clone()),
                        None => entries.remove(&key),
                    };
                }
                if entries.is_empty() {
                    to.batch.remove(&queue_key(row.start));
                    continue;
                }
                let left = entries.iter().try_fold(vec![VERSION], |row, entry| self.append(row, &entry))?;
                to.put(&queue_key(row.start), left);
            } else {
                // New ones, up to where the next row begins.
                let end = self.next_row(first)?;
                let mut row: Option<(u64, Vec<u8>)> = None;
                while let Some((key, entry)) = changes.next_if(|(key, _)| end.is_none_or(|end| *key < end)) {
                    let Some(entry) = entry else { continue };
                    if let Some((start, full)) = row.take_if(|(_, bytes)| bytes.len() >= ROW_BYTES) {
                        to.put(&queue_key(start), full);
                    }
                    let (start, bytes) = row.take().unwrap_or_else(|| (key, vec![VERSION]));
                    row = Some((start, self.append(bytes, &(key, entry))?));
                }
                if let Some((start, bytes)) = row {
                    to.put(&queue_key(start), bytes);
                }
            }
        }
        Ok(())
    }

    fn append(&self, bytes: Vec<u8>, value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
        postcard::to_extend(value, bytes).map_err(|error| self.damaged(error))
    }

    fn damaged(&self, what: impl std::fmt::Display) -> StoreError {
        StoreError::Damaged(self.path.clone(), what.to_string())
    }

    fn error(&self, error: sled::Error) -> StoreError {
        failure(&self.path, error)
    }

    /// What is behind the version of a value.
    fn body<'a>(&self, value: &'a [u8]) -> Result<&'a [u8], StoreError> {
        match value.split_first() {
            Some((&VERSION, body)) => Ok(body),
            Some((&version, _)) if version > VERSION => Err(StoreError::Newer(version)),
            _ => Err(self.damaged("a value has no version")),
        }
    }
}

/// See the format.
struct Row {
    start: u64,
    entries: Vec<(u64, QueueEntry)>,
}

/// What a change writes.
#[derive(Default)]
struct Values {
    batch: sled::Batch,
    bytes: u64,
}

impl Values {
    fn put(&mut self, key: &[u8], value: Vec<u8>) {
        self.bytes += value.len() as u64;
        self.batch.insert(key, value);
    }
}

impl Row {
    fn last(&self) -> Option<u64> {
        self.entries.last().map(|(key, _)| *key)
    }
}

/// What sled's error means: damage is what another disk or more rights would not cure.
fn failure(path: &Path, error: sled::Error) -> StoreError {
    use io::ErrorKind::{InvalidData, InvalidInput, IsADirectory, NotADirectory, UnexpectedEof};
    match error {
        sled::Error::Io(error)
            if matches!(error.kind(), InvalidData | InvalidInput | IsADirectory | NotADirectory | UnexpectedEof) =>
        {
            StoreError::Damaged(path.to_owned(), error.to_string())
        }
        sled::Error::Io(error) => StoreError::Io(path.to_owned(), error),
        // A damaged configuration is taken for an old one; a whole one that names another version is none of our making.
        sled::Error::Unsupported(text) if text.contains("pagecache version") => {
            StoreError::Io(path.to_owned(), io::Error::new(io::ErrorKind::Unsupported, text))
        }
        error => StoreError::Damaged(path.to_owned(), error.to_string()),
    }
}

fn is_lock(error: &io::Error) -> bool {
    // sled 0.34 wraps the failed lock into an error of its own.
    error.kind() == io::ErrorKind::WouldBlock || error.to_string().contains("could not acquire lock")
}

fn queue_key(key: u64) -> [u8; 9] {
    let mut bytes = [b'q'; 9];
    bytes[1..].copy_from_slice(&key.to_be_bytes());
    bytes
}

impl Store for SledStore {
    fn state(&self) -> Result<Option<State>, StoreError> {
        let Some(value) = self.reading(|| self.db.get(STATE))? else { return Ok(None) };
        postcard::from_bytes(self.body(&value)?).map_err(|error| self.damaged(error)).map(Some)
    }

    fn apply(&self, change: &StoreChange) -> Result<(), StoreError> {
        let mut values = Values::default();
        self.add_rows(change, &mut values)?;
        values.put(STATE, self.append(vec![VERSION], &change.state)?);
        self.check_room(values.bytes)?;
        self.db.apply_batch(values.batch).map_err(|error| self.error(error))
    }

    fn entry(&self, key: u64) -> Result<Option<QueueEntry>, StoreError> {
        let row = self.row_before(key)?;
        Ok(row.and_then(|row| row.entries.into_iter().find(|(found, _)| *found == key)).map(|(_, entry)| entry))
    }

    fn entries(&self, from: u64, each: &mut dyn FnMut(u64, QueueEntry) -> Walk) -> Result<(), StoreError> {
        let start = self.row_before(from)?.map_or(from, |row| row.start);
        let mut rows = self.db.range(queue_key(start)..=queue_key(u64::MAX));
        while let Some((key, value)) = self.reading(|| rows.next().transpose())? {
            for (key, entry) in self.row(&key, &value)?.entries {
                if key >= from && each(key, entry) == Walk::Stop {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.db.flush().map_err(|error| self.error(error))?;
        let sync = || {
            sync_tree(&self.path)?;
            // Its own name, which nobody else makes durable.
            self.path.parent().map_or(Ok(()), |above| File::open(above)?.sync_all())
        };
        sync().map_err(|error| StoreError::Io(self.path.clone(), error))
    }
}

/// Fsyncs every file below a directory, and the directories.
fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        match entry.file_type()? {
            kind if kind.is_dir() => sync_tree(&entry.path())?,
            // sled removes files of its own at any time.
            kind if kind.is_file() => match File::open(entry.path()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                file => file?.sync_all()?,
            },
            _ => {}
        }
    }
    File::open(dir)?.sync_all()
}

/// Moves a store that cannot be opened out of the way, so that it can be rebuilt; returns where it is now.
pub fn set_aside(path: &Path, now: i64) -> io::Result<PathBuf> {
    let mut aside = path.to_owned();
    for count in 0.. {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".damaged-{}", now + count));
        aside = path.with_file_name(name);
        if !aside.try_exists()? {
            break;
        }
    }
    fs::rename(path, &aside)?;
    if let Some(parent) = path.parent() {
        File::open(parent)?.sync_all()?;
    }
    Ok(aside)
}

/// Removes all but the newest `keep` of the stores that were set aside; returns their paths.
pub fn forget_old(path: &Path, keep: usize) -> io::Result<Vec<PathBuf>> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Ok(Vec::new()) };
    let prefix = format!("{}.damaged-", name.display());
    let mut aside = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let since = path.file_name().and_then(|name| name.to_str()?.strip_prefix(&prefix)?.parse::<i64>().ok());
        aside.extend(since.map(|since| (since, path)));
    }
    aside.sort();
    aside.truncate(aside.len().saturating_sub(keep));
    aside.iter().try_for_each(|(_, path)| fs::remove_dir_all(path))?;
    Ok(aside.into_iter().map(|(_, path)| path).collect())
}
