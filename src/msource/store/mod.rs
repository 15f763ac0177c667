//! The store: the state of the last checkpoint and the entries of the failure queue, in sled.
//!
//! **Promise.** [`Store::apply`] takes the state, the new entries and the removed ones over together or not at all.
//!
//! **Not promised.** sled 0.34 does not survive a power cut: its flush writes pages but neither the length of the file nor the
//! disk's cache, and what was synced is moved, overwritten and cut off before what comes in its place is durable. The journal
//! is what makes progress durable; what the store lost is brought back from it, and a store that cannot be opened is set aside
//! and rebuilt. That is why it stays behind this narrow trait.
//!
//! **Damage.** sled is known to answer it with panics: reading turns them into [`StoreError::Damaged`]. `salvage` reads what
//! can be read of a damaged store.
//!
//! **Format.** One tree: `state` holds the [`State`]; `q` and a key (u64, big-endian) hold a row: the entries of the failure
//! queue from that key on, in order, all below the next row's. Each is a byte with the version of the journal's format that it
//! is of and postcard's encoding, of a row that of key and [`QueueEntry`] in turn. A row that is longer than a value may be goes on in further values, under its key and their
//! number (u32, big-endian, from 1).
//!
//! **Readers beside a change.** A change is atomic for sled, a walk is not: it comes from value to value, and what it reads of a
//! row may be of before and after. So each row is looked for and read under a lock that no change is applied under. Between two
//! rows it is free, and whoever is given entries may take any time: a walk gives every entry once that is there all the while,
//! in order, and those that come or go meanwhile or not.
//!
//! **Memory.** Each value costs sled time, memory and room: one for each entry made a million of them take gigabytes. So there
//! are rows. And whatever its cache may have, sled looks for something to evict only at every 64th access to one of its
//! cache's 256 parts: a walk, which accesses each page once, would leave 16,384 of them in memory. So values are short, and
//! whoever reads or writes one accesses it some times more. What stays is a page or two of each part: some 30 MiB.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::journal::{Each, Format, QueueEntry, State};
use crate::{panics, regular};

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

/// Gives every entry of the failure queue to someone who may fail.
pub fn give_entries(store: &dyn Store, each: &mut Each<'_>) -> io::Result<()> {
    let mut outcome = Ok(());
    let walked = store.entries(0, &mut |key, entry| {
        outcome = each(key, entry);
        if outcome.is_ok() { Walk::On } else { Walk::Stop }
    });
    walked.map_err(io::Error::other)?;
    outcome
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
const VERSION: u8 = Format::CURRENT.version() as u8;

/// Behind every key of the queue.
const QUEUE_END: &[u8] = b"r";

/// A row of this length gets no further entry, and one that is longer goes on in another value. sled keeps sixteen values in
/// a page, which it writes again now and then.
const VALUE_BYTES: usize = 8 << 10;

/// How often a value is touched, so that a page of some eight gets the accesses after which sled evicts.
const TOUCHES: usize = 8;

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
    /// Held for reading while a row is read, for writing while a change is applied.
    rows: RwLock<()>,
}

impl SledStore {
    /// Opens or creates the store. While another process holds it, waits up to `patience` for it.
    pub fn open(path: &Path, patience: Duration) -> Result<Self, StoreError> {
        let deadline = Instant::now() + patience;
        loop {
            let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
            // sled is known to panic on damage instead of returning an error.
            let opened = panics::contain(|| config.open());
            let damaged = |text: String| StoreError::Damaged(path.to_owned(), text);
            match opened {
                Err(_) => return Err(damaged("it could not be opened".into())),
                Ok(Ok(db)) => return Ok(Self { path: path.to_owned(), db, rows: RwLock::new(()) }),
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
        panics::contain(read)
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

    /// Has the part of sled's cache that a value belongs to look for something to evict.
    fn touch(&self, key: &[u8]) -> Result<(), StoreError> {
        (0..TOUCHES).try_for_each(|_| self.reading(|| self.db.contains_key(key)).map(drop))
    }

    /// The last row that begins at this key or before it.
    fn row_before(&self, key: u64) -> Result<Option<Row>, StoreError> {
        let _unchanged = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        self.begun_before(key)?.map(|first| self.read_row(first)).transpose()
    }

    /// The first row that has an entry of this key or a later one. `seen` is the one that was read before, if one was.
    fn row_from(&self, key: u64, seen: Option<&First>) -> Result<Option<Row>, StoreError> {
        let _unchanged = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(first) = self.begun_before(key)?.filter(|first| seen != Some(first)) {
            let row = self.read_row(first)?;
            if row.last().is_some_and(|last| last >= key) {
                return Ok(Some(row));
            }
        }
        let Some(behind) = key.checked_add(1) else { return Ok(None) };
        let mut values = self.db.range(value_key(behind, 0)..QUEUE_END.to_vec());
        let Some((key, value)) = self.reading(|| values.next().transpose())? else { return Ok(None) };
        let (start, 0) = self.place(&key)? else { return Err(self.damaged("a row has no beginning")) };
        self.read_row(First { start, value }).map(Some)
    }

    /// The first value of the last row that begins at this key or before it.
    fn begun_before(&self, key: u64) -> Result<Option<First>, StoreError> {
        let end = key.checked_add(1).map_or(QUEUE_END.to_vec(), |behind| value_key(behind, 0));
        let found = self.reading(|| self.db.range(value_key(0, 0)..end).next_back().transpose())?;
        let Some((last, value)) = found else { return Ok(None) };
        match self.place(&last)? {
            (start, 0) => Ok(Some(First { start, value })),
            (start, _) => match self.reading(|| self.db.get(value_key(start, 0)))? {
                Some(value) => Ok(Some(First { start, value })),
                None => Err(self.damaged("a row has no beginning")),
            },
        }
    }

    /// Reads what goes on behind the first value of a row.
    fn read_row(&self, first: First) -> Result<Row, StoreError> {
        let start = first.start;
        self.touch(&value_key(start, 0))?;
        let mut parts = 1;
        let mut whole = Vec::new();
        let mut values = self.db.range(value_key(start, 1)..QUEUE_END.to_vec());
        while let Some((key, part)) = self.reading(|| values.next().transpose())? {
            if self.place(&key)? != (start, parts) {
                break;
            }
            self.touch(&key)?;
            if parts == 1 {
                whole.extend_from_slice(&first.value);
            }
            whole.extend_from_slice(&part);
            parts += 1;
        }
        let entries = self.row_entries(if parts == 1 { &first.value } else { &whole })?;
        Ok(Row { first, parts, entries })
    }

    /// The rows that have entries of this key and later ones, in order, until `each` says to stop.
    fn rows(&self, mut from: u64, each: &mut dyn FnMut(Vec<(u64, QueueEntry)>) -> Walk) -> Result<(), StoreError> {
        let mut seen = None;
        while let Some(row) = self.row_from(from, seen.as_ref())? {
            let next = row.last().unwrap_or(row.first.start).checked_add(1);
            seen = Some(row.first);
            let mut entries = row.entries;
            entries.retain(|(key, _)| *key >= from);
            if each(entries) == Walk::Stop {
                break;
            }
            let Some(next) = next else { break };
            from = next;
        }
        Ok(())
    }

    /// Where the first row behind this key begins.
    fn next_row(&self, key: u64) -> Result<Option<u64>, StoreError> {
        let found = self.reading(|| self.db.range(value_key(key, 0)..QUEUE_END.to_vec()).next().transpose())?;
        found.map(|(key, _)| Ok(self.place(&key)?.0)).transpose()
    }

    /// The row that a value belongs to, and which part of it that is.
    fn place(&self, key: &[u8]) -> Result<(u64, u32), StoreError> {
        let split = key.strip_prefix(b"q").and_then(<[u8]>::split_first_chunk);
        let place = split.and_then(|(start, part)| match part {
            [] => Some((u64::from_be_bytes(*start), 0)),
            part => Some((u64::from_be_bytes(*start), u32::from_be_bytes(part.try_into().ok()?))),
        });
        place.ok_or_else(|| self.damaged("a key of the failure queue is none"))
    }

    fn row_entries(&self, value: &[u8]) -> Result<Vec<(u64, QueueEntry)>, StoreError> {
        let mut entries = Vec::new();
        let (format, mut rest) = self.body(value)?;
        while !rest.is_empty() {
            let (entry, behind) = format.entry(rest).map_err(|error| self.damaged(error))?;
            entries.push(entry);
            rest = behind;
        }
        Ok(entries)
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
                    to.put_row(row.first.start, row.parts, &[]);
                    continue;
                }
                let left = entries.iter().try_fold(vec![VERSION], |row, entry| self.append(row, &entry))?;
                to.put_row(row.first.start, row.parts, &left);
            } else {
                // New ones, up to where the next row begins.
                let end = self.next_row(first)?;
                let mut row: Option<(u64, Vec<u8>)> = None;
                while let Some((key, entry)) = changes.next_if(|(key, _)| end.is_none_or(|end| *key < end)) {
                    let Some(entry) = entry else { continue };
                    if let Some((start, full)) = row.take_if(|(_, bytes)| bytes.len() >= VALUE_BYTES) {
                        to.put_row(start, 0, &full);
                    }
                    let (start, bytes) = row.take().unwrap_or_else(|| (key, vec![VERSION]));
                    row = Some((start, self.append(bytes, &(key, entry))?));
                }
                if let Some((start, bytes)) = row {
                    to.put_row(start, 0, &bytes);
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

    /// The format of a value, and what is behind its version.
    fn body<'a>(&self, value: &'a [u8]) -> Result<(Format, &'a [u8]), StoreError> {
        let Some((&version, body)) = value.split_first() else { return Err(self.damaged("a value has no version")) };
        match Format::of(u32::from(version)) {
            Ok(format) => Ok((format, body)),
            Err(_) if version > VERSION => Err(StoreError::Newer(version)),
            Err(error) => Err(self.damaged(error)),
        }
    }
}

/// The first value of a row.
#[derive(PartialEq)]
struct First {
    /// The key from which on it is.
    start: u64,
    value: sled::IVec,
}

/// See the format.
struct Row {
    first: First,
    /// How many values it is.
    parts: u32,
    entries: Vec<(u64, QueueEntry)>,
}

/// What a change writes.
#[derive(Default)]
struct Values {
    batch: sled::Batch,
    bytes: u64,
    keys: Vec<Vec<u8>>,
}

impl Values {
    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.bytes += value.len() as u64;
        self.keys.push(key.to_vec());
        self.batch.insert(key, value);
    }

    /// Puts a row in place of one of so many values; one without bytes goes.
    fn put_row(&mut self, start: u64, parts: u32, row: &[u8]) {
        let mut part = 0;
        for value in row.chunks(VALUE_BYTES) {
            self.put(&value_key(start, part), value);
            part += 1;
        }
        (part..parts).for_each(|part| self.batch.remove(value_key(start, part)));
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

/// The key of a value: which row it belongs to, and which part of it that is.
fn value_key(start: u64, part: u32) -> Vec<u8> {
    let mut key = b"q".to_vec();
    key.extend(start.to_be_bytes());
    if part > 0 {
        key.extend(part.to_be_bytes());
    }
    key
}

impl Store for SledStore {
    fn state(&self) -> Result<Option<State>, StoreError> {
        let Some(value) = self.reading(|| self.db.get(STATE))? else { return Ok(None) };
        let (format, body) = self.body(&value)?;
        format.state(body).map_err(|error| self.damaged(error)).map(Some)
    }

    fn apply(&self, change: &StoreChange) -> Result<(), StoreError> {
        let mut values = Values::default();
        self.add_rows(change, &mut values)?;
        values.put(STATE, &self.append(vec![VERSION], &change.state)?);
        self.check_room(values.bytes)?;
        {
            let _changing = self.rows.write().unwrap_or_else(PoisonError::into_inner);
            crate::fault::point("store.apply");
            self.db.apply_batch(values.batch).map_err(|error| self.error(error))?;
        }
        values.keys.iter().try_for_each(|key| self.touch(key))
    }

    fn entry(&self, key: u64) -> Result<Option<QueueEntry>, StoreError> {
        let row = self.row_before(key)?;
        Ok(row.and_then(|row| row.entries.into_iter().find(|(found, _)| *found == key)).map(|(_, entry)| entry))
    }

    fn entries(&self, from: u64, each: &mut dyn FnMut(u64, QueueEntry) -> Walk) -> Result<(), StoreError> {
        self.rows(from, &mut |entries| {
            let all = entries.into_iter().all(|(key, entry)| each(key, entry) == Walk::On);
            if all { Walk::On } else { Walk::Stop }
        })
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

/// Fsyncs every file below a directory, and the directories. They become the owner's alone: sled makes them as the umask has
/// it, and there are records in them. Nothing below it is reached through a link: what that leads to is not the store's.
fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        match entry.file_type()? {
            kind if kind.is_dir() => sync_tree(&entry.path())?,
            // sled removes files of its own at any time.
            kind if kind.is_file() => match regular::open(&entry.path()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                file => sync_private(&file?, 0o600)?,
            },
            _ => {}
        }
    }
    sync_private(&File::open(dir)?, 0o700)
}

fn sync_private(file: &File, mode: u32) -> io::Result<()> {
    if file.metadata()?.permissions().mode() & 0o7777 != mode {
        file.set_permissions(Permissions::from_mode(mode))?;
    }
    file.sync_all()
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
