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
//! **Format.** One tree: `state` holds the [`State`], `q` and the entry's key (u64, big-endian) hold a [`QueueEntry`]; each
//! value is a version byte and postcard's encoding.

use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::journal::{QueueEntry, State};

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
const VERSION: u8 = 2;

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

    /// Refuses a change for which there may be too little room.
    fn check_room(&self, change: &StoreChange) -> Result<(), StoreError> {
        let failed = |error: nix::errno::Errno| StoreError::Io(self.path.clone(), error.into());
        let disk = nix::sys::statvfs::statvfs(&self.path).map_err(failed)?;
        let free = disk.blocks_available().saturating_mul(disk.fragment_size());
        // An entry is written once, and may be moved once when its page is.
        let wanted = RESERVE_BYTES + 2 * change.insert.iter().map(|(_, entry)| entry.size()).sum::<u64>();
        if free >= wanted { Ok(()) } else { Err(StoreError::NoRoom { path: self.path.clone(), free, wanted }) }
    }

    fn error(&self, error: sled::Error) -> StoreError {
        failure(&self.path, error)
    }

    fn decode<T: DeserializeOwned>(&self, value: &[u8]) -> Result<T, StoreError> {
        match value.split_first() {
            Some((&VERSION, body)) => {
                postcard::from_bytes(body).map_err(|error| StoreError::Damaged(self.path.clone(), error.to_string()))
            }
            Some((&version, _)) if version > VERSION => Err(StoreError::Newer(version)),
            _ => Err(StoreError::Damaged(self.path.clone(), "a value has no version".into())),
        }
    }

    fn encode<T: Serialize>(&self, value: &T) -> Result<Vec<u8>, StoreError> {
        postcard::to_extend(value, vec![VERSION])
            .map_err(|error| StoreError::Damaged(self.path.clone(), error.to_string()))
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
        let value = self.reading(|| self.db.get(STATE))?;
        value.map(|value| self.decode(&value)).transpose()
    }

    fn apply(&self, change: &StoreChange) -> Result<(), StoreError> {
        self.check_room(change)?;
        let mut batch = sled::Batch::default();
        for key in &change.remove {
            batch.remove(&queue_key(*key));
        }
        for (key, entry) in &change.insert {
            batch.insert(&queue_key(*key), self.encode(entry)?);
        }
        batch.insert(STATE, self.encode(&change.state)?);
        self.db.apply_batch(batch).map_err(|error| self.error(error))
    }

    fn entry(&self, key: u64) -> Result<Option<QueueEntry>, StoreError> {
        let value = self.reading(|| self.db.get(queue_key(key)))?;
        value.map(|value| self.decode(&value)).transpose()
    }

    fn entries(&self, from: u64, each: &mut dyn FnMut(u64, QueueEntry) -> Walk) -> Result<(), StoreError> {
        let mut entries = self.db.range(queue_key(from)..=queue_key(u64::MAX));
        while let Some((key, value)) = self.reading(|| entries.next().transpose())? {
            let Some(key) = key.get(1..).and_then(|key| key.try_into().ok()).map(u64::from_be_bytes) else { continue };
            if each(key, self.decode(&value)?) == Walk::Stop {
                break;
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.db.flush().map_err(|error| self.error(error))?;
        sync_tree(&self.path).map_err(|error| StoreError::Io(self.path.clone(), error))
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

/// What [`salvage`] finds.
#[derive(Debug)]
pub enum Found {
    /// The state, if it can be read: first of all.
    State(Option<State>),
    /// An entry; in the order of their keys.
    Entry(u64, QueueEntry),
}

/// How long a damaged store is waited for that gives nothing.
const SALVAGE_PATIENCE: Duration = Duration::from_secs(20);

/// Failures after which no more is looked for.
const SALVAGE_FAILURES: u32 = 1000;

/// Reads what can be read of a damaged store. sled may panic or hang over it, so it works on a thread of its own, which is
/// left alone when it gives nothing any more.
pub fn salvage(path: &Path, mut each: impl FnMut(Found) -> Result<(), StoreError>) -> Result<(), StoreError> {
    let (found, finds) = bounded(1000);
    let path = path.to_owned();
    let read = move || {
        let store = open_damaged(&path);
        let state = store.as_ref().and_then(|store| store.state().ok().flatten());
        if found.send(Found::State(state)).is_ok()
            && let Some(store) = store
        {
            store.send_readable(&found);
        }
    };
    let spawned = thread::Builder::new().name("salvage".into()).spawn(read);
    spawned.map_err(|error| StoreError::Io(PathBuf::from("a thread"), error))?;
    while let Ok(found) = finds.recv_timeout(SALVAGE_PATIENCE) {
        each(found)?;
    }
    Ok(())
}

/// Opens a damaged store, at last without what sled can make anew from its log.
fn open_damaged(path: &Path) -> Option<SledStore> {
    for without in [None, Some("snap."), Some("conf")] {
        if let Some(prefix) = without {
            for entry in fs::read_dir(path).ok()?.flatten() {
                if entry.file_name().to_string_lossy().starts_with(prefix) {
                    let mut aside = std::ffi::OsString::from("damaged-");
                    aside.push(entry.file_name());
                    fs::rename(entry.path(), path.join(aside)).ok()?;
                }
            }
        }
        if let Ok(store) = SledStore::open(path, Duration::ZERO) {
            return Some(store);
        }
    }
    None
}

impl SledStore {
    /// Sends every entry that can be read. Where reading fails it goes on ever further behind, and then looks for the first
    /// readable entry before that.
    fn send_readable(&self, found: &Sender<Found>) {
        let (mut from, mut step) = (0_u64, 0_u64);
        for _ in 0..SALVAGE_FAILURES {
            if step > 0 && self.is_readable(from) {
                let mut bad = from - step;
                while from - bad > 1 {
                    let middle = bad + (from - bad) / 2;
                    *(if self.is_readable(middle) { &mut from } else { &mut bad }) = middle;
                }
                step = 0;
            }
            let mut next = from;
            let read = self.entries(from, &mut |key, entry| {
                next = key.saturating_add(1);
                if found.send(Found::Entry(key, entry)).is_ok() { Walk::On } else { Walk::Stop }
            });
            if read.is_ok() {
                return;
            }
            step = if next > from { 1 } else { (step * 2).max(1) };
            let Some(behind) = next.checked_add(step) else { return };
            from = behind;
        }
    }

    fn is_readable(&self, key: u64) -> bool {
        self.entries(key, &mut |_, _| Walk::Stop).is_ok()
    }
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
