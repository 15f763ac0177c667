//! The file sink on its own: for programs that bring lines and want to know when each is safely written.
//!
//! **Promise.** Each line that [`Writer::write`] took is reported exactly once to the callback: [`Delivered::Safe`] after a
//! [`Writer::sync`] that covered it, [`Delivered::Unknown`] when that sync failed. Lines of one key reach their files in the
//! order in which they came. After an error nothing is lost: what could not be written stays, and the next call goes on.
//!
//! In [`Mode::Stream`] a line is written at once, in [`Mode::Batch`] with its company; visible is not yet safe. The caller's
//! timer calls [`Writer::tick`] for batches that have waited long enough and for rotation.
//!
//! **Not here.** The service itself does not use it: its blocks are batches already, and its journal tells what is where.
//! Without a journal a crash can leave a torn last line, and names are unique only among the files that are still there.

use std::collections::BTreeMap;
use std::io;
use std::time::Instant;

use super::FileKey;
use super::dir::EventDir;
use super::file::{FileSink, Ledger, Now, RotateReason, Written, whole_lines};
use super::name::NameTemplate;
use crate::config::{self, Mode};
use crate::msource::journal::FileIntent;

/// Tells one line from another, in the order in which they were taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteId(u64);

/// What became of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// It is on the disk.
    Safe,
    /// The sync that was to cover it failed: it may be there or not.
    Unknown,
}

/// Lines of one key that are not written yet.
#[derive(Debug)]
struct Waiting {
    bytes: Vec<u8>,
    ids: Vec<WriteId>,
    since: Instant,
    /// Where the bytes go and how many of them are there, once writing has begun.
    begun: Option<(u64, u64, usize)>,
}

/// See the module.
#[derive(Debug)]
pub struct Writer<F> {
    sink: FileSink,
    mode: Mode,
    batch: config::Batch,
    waiting: BTreeMap<FileKey, Waiting>,
    written: Vec<WriteId>,
    next: u64,
    callback: F,
}

impl<F: FnMut(WriteId, Delivered)> Writer<F> {
    /// A writer into a directory of its own. `callback` hears of every line.
    pub fn new(dir: EventDir, template: NameTemplate, config: &config::Sink, now: Now, callback: F) -> Self {
        Self {
            sink: FileSink::new(dir, template, config, &BTreeMap::new(), 0, now),
            mode: config.mode,
            batch: config.batch.clone(),
            waiting: BTreeMap::new(),
            written: Vec::new(),
            next: 0,
            callback,
        }
    }

    /// Takes a line, without its `\n`. Whether it could be written so far, [`Self::flush`] tells.
    pub fn write(&mut self, key: &FileKey, line: &[u8], now: Now) -> WriteId {
        let id = WriteId(self.next);
        self.next += 1;
        let fresh = || Waiting { bytes: Vec::new(), ids: Vec::new(), since: now.tick, begun: None };
        let waiting = self.waiting.entry(key.clone()).or_insert_with(fresh);
        waiting.bytes.extend_from_slice(line);
        waiting.bytes.push(b'\n');
        waiting.ids.push(id);
        let full = waiting.ids.len() >= self.batch.lines || waiting.bytes.len() as u64 >= self.batch.bytes;
        if self.mode == Mode::Stream || full {
            // What fails stays, and is told by the next call that can tell.
            let _ = self.write_key(key, now);
        }
        id
    }

    /// Writes everything that waits.
    pub fn flush(&mut self, now: Now) -> io::Result<()> {
        let keys: Vec<_> = self.waiting.keys().cloned().collect();
        keys.iter().try_for_each(|key| self.write_key(key, now))
    }

    /// Writes what has waited long enough, and finishes files that are due.
    pub fn tick(&mut self, now: Now) -> io::Result<()> {
        let linger = self.batch.linger;
        let due = |waiting: &Waiting| waiting.begun.is_some() || now.tick.duration_since(waiting.since) >= linger;
        let keys: Vec<_> =
            self.waiting.iter().filter(|(_, waiting)| due(waiting)).map(|(key, _)| key.clone()).collect();
        keys.iter().try_for_each(|key| self.write_key(key, now))?;
        self.sink.rotate_due(now, &mut Nobody)
    }

    /// Writes everything that waits, makes it durable, and reports every line that is.
    pub fn sync(&mut self, now: Now) -> io::Result<()> {
        let flushed = self.flush(now);
        let synced = self.sink.take_dirty().iter().try_for_each(|file| file.sync_data());
        let delivered = if synced.is_ok() { Delivered::Safe } else { Delivered::Unknown };
        for id in self.written.drain(..) {
            (self.callback)(id, delivered);
        }
        flushed.and(synced)
    }

    /// Syncs and finishes every file. On an error nothing is finished, and it can be called again.
    pub fn close(&mut self, now: Now) -> io::Result<()> {
        self.sync(now)?;
        self.sink.finish_all(RotateReason::Stop, &mut Nobody)
    }

    fn write_key(&mut self, key: &FileKey, now: Now) -> io::Result<()> {
        let Some(waiting) = self.waiting.get_mut(key) else { return Ok(()) };
        loop {
            let (id, position, mut done) = if let Some(begun) = waiting.begun {
                begun
            } else {
                self.sink.reopen_dir()?;
                let (id, position) = self.sink.target(key, now, &mut Nobody)?;
                (id, position, 0)
            };
            let written = self.sink.write(id, position, &waiting.bytes, &mut done, now);
            waiting.begun = Some((id, position, done));
            if written? == Written::All {
                break;
            }
            // Whole lines went with the file. Whose lines they were is kept, since they were written.
            waiting.bytes.drain(..whole_lines(&waiting.bytes[..done]));
            waiting.begun = None;
        }
        if let Some(waiting) = self.waiting.remove(key) {
            self.written.extend(waiting.ids);
        }
        Ok(())
    }
}

/// Keeps no account: a writer on its own has no journal.
struct Nobody;

impl Ledger for Nobody {
    fn intend(&mut self, _: &FileIntent) -> io::Result<()> {
        Ok(())
    }

    fn made(&mut self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn end(&mut self, _: u64) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::fs;
    use std::path::Path;
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    use super::*;

    fn config(mode: Mode) -> config::Sink {
        config::Sink {
            mode,
            dir: "data".into(),
            file: "a.{seq}.log".into(),
            batch: config::Batch { lines: 3, bytes: 1 << 20, linger: Duration::from_millis(200) },
            rotate: config::Rotate { size: 1 << 30, age: Duration::from_hours(1), idle: Duration::from_mins(1) },
            fsync: true,
            visibility: config::Visibility::Live,
            compression: config::Compression::None,
            keep_age: None,
            keep_bytes: None,
            max_open_files: 4,
            permissions: 0o640,
        }
    }

    fn writer<F: FnMut(WriteId, Delivered)>(dir: &Path, mode: Mode, now: Now, callback: F) -> Writer<F> {
        let config = config(mode);
        let zone = config::TimeZone::UTC;
        let template = NameTemplate::parse(&config.file, 24, "here", zone).unwrap();
        Writer::new(EventDir::open(dir).unwrap(), template, &config, now, callback)
    }

    fn lines(dir: &Path) -> String {
        fs::read_to_string(dir.join("a.0.log")).unwrap_or_default()
    }

    #[test]
    fn a_streamed_line_is_visible_at_once_and_safe_after_a_sync() {
        let dir = tempfile::TempDir::new().unwrap();
        let heard = RefCell::new(Vec::new());
        let now = Now::current();
        let mut writer = writer(dir.path(), Mode::Stream, now, |id, what| heard.borrow_mut().push((id, what)));
        let first = writer.write(&FileKey::default(), b"one", now);
        assert_eq!(lines(dir.path()), "one\n");
        assert!(heard.borrow().is_empty(), "visible is not safe");
        let second = writer.write(&FileKey::default(), b"two", now);
        writer.sync(now).unwrap();
        assert_eq!(*heard.borrow(), [(first, Delivered::Safe), (second, Delivered::Safe)]);
        writer.close(now).unwrap();
        assert_eq!(heard.borrow().len(), 2, "each is told once");
        assert_eq!(lines(dir.path()), "one\ntwo\n");
    }

    #[test]
    fn a_batch_waits_for_its_lines_or_for_its_time() {
        let dir = tempfile::TempDir::new().unwrap();
        let mut now = Now::current();
        let mut writer = writer(dir.path(), Mode::Batch, now, |_, _| ());
        writer.write(&FileKey::default(), b"1", now);
        writer.write(&FileKey::default(), b"2", now);
        assert_eq!(lines(dir.path()), "");
        writer.write(&FileKey::default(), b"3", now);
        assert_eq!(lines(dir.path()), "1\n2\n3\n", "three are a batch");
        writer.write(&FileKey::default(), b"4", now);
        writer.tick(now).unwrap();
        assert_eq!(lines(dir.path()), "1\n2\n3\n");
        now.tick += Duration::from_millis(200);
        writer.tick(now).unwrap();
        assert_eq!(lines(dir.path()), "1\n2\n3\n4\n", "it has waited long enough");
    }

    #[test]
    fn what_a_full_disk_refused_follows_when_there_is_room() {
        let dir = tempfile::TempDir::new().unwrap();
        let heard = RefCell::new(Vec::new());
        let now = Now::current();
        let mut writer = writer(dir.path(), Mode::Stream, now, |id, what| heard.borrow_mut().push((id, what)));
        writer.sink.room.store(6, Ordering::SeqCst);
        let first = writer.write(&FileKey::default(), b"one", now);
        let second = writer.write(&FileKey::default(), b"two", now);
        assert_eq!(writer.sync(now).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(*heard.borrow(), [(first, Delivered::Safe)]);
        let third = writer.write(&FileKey::default(), b"three", now);
        writer.sink.room.store(u64::MAX, Ordering::SeqCst);
        writer.sync(now).unwrap();
        assert_eq!(lines(dir.path()), "one\ntwo\nthree\n");
        assert_eq!(heard.borrow()[1..], [(second, Delivered::Safe), (third, Delivered::Safe)]);
    }
}
