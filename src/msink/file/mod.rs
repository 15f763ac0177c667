//! The event files: opened, written at a known position, rotated, and closed when too many are open.
//!
//! **Promise.** A file's name and id are in the [`Ledger`] before the file exists, and no name is ever used twice. Bytes
//! go to exactly the position that the caller was given for them; a write that fails halfway can be repeated and goes on
//! where it stopped. A file that is finished gets no further line. Closing a file because too many are open does not
//! finish it.
//!
//! **Not here.** When lines are durable and what that means for offsets is the delivery's business: it takes the files
//! that have unsynced lines with [`FileSink::take_dirty`].
//!
//! **Hidden files** (`sealed`) have a dot before their name until they are published. They are not finished one by one: all of a
//! partition are taken out together (`hidden`).
//!
//! **Rotation** of live files is judged where a line comes and where a timer calls (`rotate`): size, age, idle, a changed name.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::FileKey;
use super::dir::{EventDir, blames_name};
use super::manifest;
use super::name::NameTemplate;
use crate::config::{self, Compression, Visibility};
use crate::msource::journal::{FileIntent, FileState};
use crate::synced::SyncedFile;
use crate::{fault, limits};

mod hidden;
mod open_limit;
mod rotate;

pub use hidden::{Group, HiddenGone, Remains, leftover};
use open_limit::OpenLimit;
pub use rotate::RotateReason;

/// Who keeps account of files; the delivery's journal.
pub trait Ledger {
    /// A file is about to be created. When this returns, that is durable.
    fn intend(&mut self, intent: &FileIntent) -> io::Result<()>;
    /// It was created. When this returns, that is durable: so no line is ever in a file whose inode is unknown.
    fn made(&mut self, id: u64, inode: u64) -> io::Result<()>;
    /// It gets no further lines.
    fn end(&mut self, id: u64) -> io::Result<()>;
}

/// A sync failed: what it covered may be gone although a later one succeeds. Comes inside an [`io::Error`].
#[derive(Debug, thiserror::Error)]
#[error("cannot sync {what} to disk")]
pub struct SyncFailed {
    /// What was synced.
    pub what: String,
    /// The system's error.
    pub source: io::Error,
}

impl SyncFailed {
    /// The error that carries it.
    pub fn io(what: &str, source: io::Error) -> io::Error {
        io::Error::other(Self { what: what.to_owned(), source })
    }
}

/// The present moment, as the caller sees it.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Wall clock, seconds since 1970 UTC: for names and ages.
    pub wall: i64,
    /// For idleness.
    pub tick: Instant,
}

impl Now {
    /// This moment.
    pub fn current() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        Self { wall, tick: Instant::now() }
    }
}

/// How a write ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Written {
    /// All is in the file.
    All,
    /// The file is removed, replaced or shortened. What of the bytes is not written needs another [target](FileSink::target).
    Gone,
}

/// Bytes of the whole lines that these begin with.
pub fn whole_lines(bytes: &[u8]) -> usize {
    memchr::memrchr(b'\n', bytes).map_or(0, |last| last + 1)
}

struct Active {
    id: u64,
    /// The name it has now: that of a hidden file begins with a dot.
    path: String,
    stem: String,
    opened: i64,
    /// How long it took after that until it was there, seconds: its age counts from then on. On a slow disk each file would be
    /// too old for a second block otherwise.
    took: i64,
    last_line: Instant,
    inode: u64,
    length: u64,
    /// `None` while closed for `max_open_files`.
    file: Option<Arc<SyncedFile>>,
    dirty: bool,
    /// Counts uses, for closing the one that was not used the longest.
    used: u64,
}

impl Active {
    /// Whether another process removed the open file, or shortened it.
    fn is_foreign(&self) -> bool {
        let metadata = self.file.as_ref().and_then(|file| file.metadata().ok());
        metadata.is_some_and(|metadata| metadata.nlink() == 0 || metadata.len() < self.length)
    }

    fn is_removed(&self) -> bool {
        self.file.as_ref().is_some_and(|file| is_removed(file))
    }
}

/// Whether an open file has no name any more.
fn is_removed(file: &SyncedFile) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.nlink() == 0)
}

/// See the module.
pub struct FileSink {
    dir: EventDir,
    template: NameTemplate,
    permissions: u32,
    limit: OpenLimit,
    rotate: config::Rotate,
    visibility: Visibility,
    compression: Compression,
    active: HashMap<FileKey, Active>,
    keys: BTreeMap<u64, FileKey>,
    /// Hidden files that get no further lines, and wait for the others of their group.
    complete: Vec<(Group, u64)>,
    /// Finished files whose last lines are not synced yet.
    unsynced: Vec<Arc<SyncedFile>>,
    /// A file that is in the ledger and could not be created yet.
    intended: Option<FileIntent>,
    next_id: u64,
    uses: u64,
    /// Files finished, by reason.
    pub rotated: [u64; 7],
    /// Bytes until the disk is full.
    #[cfg(test)]
    pub(crate) room: Arc<std::sync::atomic::AtomicU64>,
}

impl std::fmt::Debug for FileSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileSink").field("active", &self.active.len()).finish_non_exhaustive()
    }
}

impl FileSink {
    /// A sink in an open directory that goes on with these files.
    pub fn new(
        dir: EventDir,
        template: NameTemplate,
        config: &config::Sink,
        files: &BTreeMap<u64, FileState>,
        next_id: u64,
        now: Now,
    ) -> Self {
        let mut sink = Self {
            dir,
            template,
            permissions: config.permissions,
            limit: OpenLimit::new(config.max_open_files),
            rotate: config.rotate.clone(),
            visibility: config.visibility,
            compression: config.compression,
            active: HashMap::new(),
            keys: BTreeMap::new(),
            complete: Vec::new(),
            unsynced: Vec::new(),
            intended: None,
            next_id,
            uses: 0,
            rotated: [0; 7],
            #[cfg(test)]
            room: Arc::new(u64::MAX.into()),
        };
        for (id, state) in files {
            if (state.visibility, state.compression) != (sink.visibility, sink.compression) {
                // What another configuration left hidden gets no further lines; it waits to be published or refused.
                sink.complete.push((state.key.partition(), *id));
                continue;
            }
            // Two files of one key are left behind only by a crash between an intent and the end of the file before it: the
            // later one goes on, the earlier one has its lines.
            sink.keys.insert(*id, state.key.clone());
            // A name of another template is not the right one any more.
            let named = sink.template.name(&state.key, state.opened, *id).is_ok_and(|name| name == state.name);
            let stem = if named { sink.template.stem(&state.key, state.opened) } else { String::new() };
            sink.active.insert(
                state.key.clone(),
                Active {
                    id: *id,
                    path: state.path(),
                    stem,
                    opened: state.opened,
                    took: 0,
                    last_line: now.tick,
                    inode: state.inode,
                    length: state.length,
                    file: None,
                    dirty: false,
                    used: 0,
                },
            );
        }
        sink
    }

    /// The file for the lines of a key and the position where the next of them go. Opens, reopens or rotates as needed. Fails
    /// while the directory is gone: open files would still take lines, but nobody would find them.
    pub fn target(&mut self, key: &FileKey, now: Now, ledger: &mut dyn Ledger) -> io::Result<(u64, u64)> {
        self.dir.check()?;
        loop {
            match self.find(key, now, ledger) {
                Err(error) if self.relieve(&error, now)? => {}
                found => return found.map_err(|error| self.blame(error, now)),
            }
        }
    }

    /// An error that is the fault of one name, unless it comes of a directory that all names have.
    fn blame(&self, error: io::Error, now: Now) -> io::Error {
        let dirs = self.template.fixed_dirs(now.wall);
        match self.dir.is_taken(&format!("{dirs}_")) {
            Err(found) if blames_name(&error) => {
                io::Error::other(format!("cannot use the directory `{dirs}`: {found}"))
            }
            _ => error,
        }
    }

    fn find(&mut self, key: &FileKey, now: Now, ledger: &mut dyn Ledger) -> io::Result<(u64, u64)> {
        if self.visibility == Visibility::Live
            && let Some(reason) = self.active.get(key).and_then(|active| self.due(active, key, now))
        {
            self.finish(key, reason, ledger)?;
        }
        if !self.active.contains_key(key) {
            self.create(key, now, ledger)?;
        }
        if self.open(key)?.is_none() {
            self.refuse_foreign(key)?;
            self.finish(key, RotateReason::Foreign, ledger)?;
            self.create(key, now, ledger)?;
        }
        let active = &self.active[key];
        Ok((active.id, active.length))
    }

    /// Writes bytes of a piece that begins at `position` of the file, all but the first `done`, and counts in `done` what
    /// was written: on an error, call again with the same.
    pub fn write(&mut self, id: u64, position: u64, bytes: &[u8], done: &mut usize, now: Now) -> io::Result<Written> {
        let key = self.keys.get(&id).cloned().ok_or_else(|| io::Error::other(format!("file {id} is finished")))?;
        let opened = loop {
            match self.open(&key) {
                Err(error) if self.relieve(&error, now)? => {}
                opened => break opened?,
            }
        };
        let Some(file) = opened else {
            self.refuse_foreign(&key)?;
            // Waiting for the file to come back would hold up everything for ever.
            return Ok(Written::Gone);
        };
        if let Some(active) = self.active.get_mut(&key) {
            active.dirty = true;
            active.last_line = now.tick;
        }
        while *done < bytes.len() {
            match self.write_some(&file, &bytes[*done..], position + *done as u64) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => *done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if let Some(active) = self.active.get_mut(&key) {
            active.length = position + bytes.len() as u64;
        }
        Ok(Written::All)
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "tests have a disk that fills")]
    fn write_some(&self, file: &SyncedFile, bytes: &[u8], position: u64) -> io::Result<usize> {
        file.write_at(bytes, position)
    }

    #[cfg(test)]
    fn write_some(&self, file: &SyncedFile, bytes: &[u8], position: u64) -> io::Result<usize> {
        use std::sync::atomic::Ordering;
        let room = self.room.load(Ordering::SeqCst);
        let count = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
        if count == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        file.write_all_at(&bytes[..count], position)?;
        if room < u64::MAX {
            self.room.fetch_sub(count as u64, Ordering::SeqCst);
        }
        Ok(count)
    }

    fn forget(&mut self, key: &FileKey) -> Option<Active> {
        let active = self.active.remove(key)?;
        self.keys.remove(&active.id);
        Some(active)
    }

    /// The files with lines that were not synced since the last call.
    pub fn take_dirty(&mut self) -> Vec<Arc<SyncedFile>> {
        let mut files = std::mem::take(&mut self.unsynced);
        for active in self.active.values_mut() {
            if std::mem::take(&mut active.dirty) {
                files.extend(active.file.clone());
            }
        }
        files
    }

    /// Closes what another process removed: on a full disk its room is free only when nobody has it open. Whoever has lines for
    /// it finds that it is gone.
    pub fn close_removed(&mut self) {
        for active in self.active.values_mut().filter(|active| active.is_removed()) {
            (active.file, active.dirty) = (None, false);
        }
        self.unsynced.retain(|file| !is_removed(file));
    }

    /// Looks for the directory again, after something failed: it may have been removed and made again meanwhile.
    pub fn reopen_dir(&mut self) -> io::Result<()> {
        let same = self.dir.check().is_ok();
        self.dir.reopen()?;
        if !same {
            // What is open lies in the directory that is gone.
            for active in self.active.values_mut() {
                let file = active.file.take();
                if std::mem::take(&mut active.dirty) {
                    self.unsynced.extend(file);
                }
            }
        }
        Ok(())
    }

    /// Files open for writing.
    pub fn open_files(&self) -> usize {
        self.active.values().filter(|active| active.file.is_some()).count()
    }

    fn create(&mut self, key: &FileKey, now: Now, ledger: &mut dyn Ledger) -> io::Result<()> {
        self.make_room()?;
        let (FileIntent { id, opened, .. }, path, file, inode) = loop {
            let intent = self.intend(key, now, ledger)?;
            let path = intent.path();
            match self.create_free(&intent.name, &path) {
                Ok((file, inode)) => break (intent, path, file, inode),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    tracing::warn!(
                        file = intent.name,
                        "a file or a manifest of this name is there already, taking the next one"
                    );
                    self.intended = None;
                    ledger.end(intent.id)?;
                }
                // The next attempt is for the same file: each that is intended costs room in the journal.
                Err(error) => return Err(error),
            }
        };
        fault::point("file.created");
        ledger.made(id, inode)?;
        fault::point("file.made");
        self.intended = None;
        let stem = self.template.stem(key, opened);
        self.uses += 1;
        let active = Active {
            id,
            path,
            stem,
            opened,
            took: now.tick.elapsed().as_secs_f64().round() as i64,
            last_line: now.tick,
            inode,
            length: 0,
            file: Some(Arc::new(SyncedFile::new(file))),
            dirty: false,
            used: self.uses,
        };
        self.keys.insert(id, key.clone());
        self.active.insert(key.clone(), active);
        Ok(())
    }

    /// Creates a file at `path` whose final name must be free too, and have no manifest: it would be that of an earlier file.
    fn create_free(&self, name: &str, path: &str) -> io::Result<(File, u64)> {
        if name != path && self.dir.is_taken(name)? || self.dir.is_taken(&manifest::name_for(name))? {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.dir.create(path, self.permissions)
    }

    /// What is in the ledger for the next file of a key.
    fn intend(&mut self, key: &FileKey, now: Now, ledger: &mut dyn Ledger) -> io::Result<FileIntent> {
        let name = |id| self.template.name(key, now.wall, id).map_err(|reject| io::Error::other(reject.detail));
        if let Some(intent) = &self.intended {
            if intent.key == *key && intent.name == name(intent.id)? {
                return Ok(intent.clone());
            }
            ledger.end(intent.id)?;
            self.intended = None;
        }
        let id = self.next_id;
        let intent = FileIntent {
            id,
            name: name(id)?,
            key: key.clone(),
            opened: now.wall,
            visibility: self.visibility,
            compression: self.compression,
        };
        ledger.intend(&intent)?;
        fault::point("file.intended");
        self.next_id += 1;
        self.intended = Some(intent.clone());
        Ok(intent)
    }

    /// The open file of a key, reopened if it was closed; `None` when it is not what it was left as.
    fn open(&mut self, key: &FileKey) -> io::Result<Option<Arc<SyncedFile>>> {
        self.uses += 1;
        let uses = self.uses;
        let Some(active) = self.active.get_mut(key) else { return Ok(None) };
        active.used = uses;
        let (path, inode, length) = (active.path.clone(), active.inode, active.length);
        if let Some(file) = &active.file {
            if !active.is_foreign() {
                return Ok(Some(Arc::clone(file)));
            }
            foreign(&path);
            return Ok(None);
        }
        self.make_room()?;
        match self.dir.open_existing(&path) {
            Ok((file, found)) if found == inode && file.metadata()?.len() >= length => {
                let file = Arc::new(SyncedFile::new(file));
                if let Some(active) = self.active.get_mut(key) {
                    active.file = Some(Arc::clone(&file));
                }
                Ok(Some(file))
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => {
                foreign(&path);
                Ok(None)
            }
        }
    }

    /// Closes files when `error` says that no descriptor is left; returns whether that made room, so that what failed is to
    /// be tried again.
    fn relieve(&mut self, error: &io::Error, now: Now) -> io::Result<bool> {
        if limits::is_exhausted(error) { self.close_some(now) } else { Ok(false) }
    }

    /// Closes a quarter of the open files, since the process has no descriptor left; returns whether there were any.
    pub fn close_some(&mut self, now: Now) -> io::Result<bool> {
        let open = self.open_files();
        let Some(stay) = self.limit.shrink(open, now.tick) else { return Ok(false) };
        tracing::warn!(open, stay, "no descriptor is left: closing event files until their next lines");
        self.close_down_to(stay)?;
        Ok(true)
    }

    fn make_room(&mut self) -> io::Result<()> {
        self.close_down_to(self.limit.most().saturating_sub(1))
    }

    /// Closes the files that were not used the longest until so many are open. Each is synced first: nobody would do it later.
    fn close_down_to(&mut self, stay: usize) -> io::Result<()> {
        while self.open_files() > stay {
            let oldest =
                self.active.values_mut().filter(|active| active.file.is_some()).min_by_key(|active| active.used);
            let Some(active) = oldest else { break };
            if active.dirty
                && let Some(file) = &active.file
            {
                file.sync_data().map_err(|error| SyncFailed::io("an event file", error))?;
                active.dirty = false;
            }
            active.file = None;
        }
        Ok(())
    }
}

fn foreign(path: &str) {
    tracing::error!(file = path, "another process removed, replaced or shortened this file; going on in a new one");
}
