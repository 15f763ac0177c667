//! The failure queue: listed, tried again, cleared.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, bounded};
use serde_json::json;

use super::home::{chain, failed};
use super::pipeline::Pipeline;
use crate::block::{RawBlock, Records, Source};
use crate::control::{ClearQuery, Failure, FailureEntry, FailureKind, ListQuery, Retried};
use crate::delivery::{Finish, Inbox};
use crate::msource::consumer::now_millis;
use crate::msource::journal::{QueueCause, QueueEntry};
use crate::msource::store::Walk;
use crate::record::Reason;

/// Entries tried again together.
pub(super) const RETRY_BLOCK: usize = 500;

/// Bytes tried again together.
pub(super) const RETRY_BYTES: u64 = 1 << 20;

/// Entries removed together: one frame of the journal.
const CLEAR_CHUNK: usize = 10_000;

/// Bytes of a payload that a list shows.
const HEAD: usize = 60;

/// How often a long command says that it goes on.
const PROGRESS: Duration = Duration::from_millis(500);

/// Entries without a limit in a list.
const LIST_DEFAULT: u64 = 1000;

/// Walks over entries in order of arrival.
pub(super) type Entries<'a> = dyn Fn(&mut dyn FnMut(u64, QueueEntry) -> Walk) -> Result<(), Failure> + 'a;

/// The answer of `failure_queue_list`.
pub(super) fn list(query: &ListQuery, max_attempts: u32, entries: &Entries<'_>) -> Result<Vec<FailureEntry>, Failure> {
    let now = now_millis();
    let limit = query.limit.unwrap_or(LIST_DEFAULT) as usize;
    let mut rows = Vec::new();
    if limit == 0 {
        return Ok(rows);
    }
    entries(&mut |position, entry| {
        if query.reason.is_none_or(|reason| reason == entry.reject.reason) {
            rows.push(row(position, &entry, max_attempts, now));
        }
        if rows.len() >= limit { Walk::Stop } else { Walk::On }
    })?;
    Ok(rows)
}

fn row(position: u64, entry: &QueueEntry, max_attempts: u32, now: i64) -> FailureEntry {
    let head = &entry.value[..entry.value.len().min(HEAD)];
    // Only what the disk may cure is tried by itself; everything else waits for a command or for other settings.
    let parked = entry.reject.reason != Reason::Sink || entry.attempts >= max_attempts;
    FailureEntry {
        position,
        topic: entry.partition.topic.to_string(),
        partition: entry.partition.partition,
        offset: entry.offset,
        reason: entry.reject.reason,
        detail: entry.reject.detail.to_string(),
        attempts: entry.attempts,
        parked,
        age_seconds: u64::try_from((now - entry.first_failure) / 1000).unwrap_or(0),
        size: entry.value.len() as u64,
        head: printable(head),
    }
}

/// Text with what is not printable escaped.
fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for letter in String::from_utf8_lossy(bytes).chars() {
        if letter.is_control() { text.extend(letter.escape_default()) } else { text.push(letter) }
    }
    text
}

impl Pipeline {
    pub(super) fn entries(&self, from: u64, each: &mut dyn FnMut(u64, QueueEntry) -> Walk) -> Result<(), Failure> {
        self.store.entries(from, each).map_err(|error| failed(chain(&error)))
    }

    /// Waits until nobody else works on the queue and the store has what they did.
    pub(super) fn alone(&self, progress: &dyn Fn(&str)) -> Result<MutexGuard<'_, ()>, Failure> {
        let alone = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        self.barrier(progress)?;
        Ok(alone)
    }

    pub(super) fn failure_list(&self, query: &ListQuery, max_attempts: u32) -> Result<Vec<FailureEntry>, Failure> {
        list(query, max_attempts, &|each| self.entries(0, each))
    }

    /// Tries the queue again.
    pub(super) fn retry(&self, reason: Option<Reason>, progress: &dyn Fn(&str)) -> Result<Retried, Failure> {
        let _alone = self.alone(progress)?;
        let stayed_before = self.gauges.stayed.load(Ordering::Relaxed);
        let state = self.gauges.durable().state.clone();
        let end = state.next_key;
        let (mut from, mut tried) = (0, 0);
        loop {
            let mut chunk = Vec::new();
            let mut bytes = 0;
            let mut last = None;
            self.entries(from, &mut |key, entry| {
                if key >= end {
                    return Walk::Stop;
                }
                last = Some(key);
                let wanted = reason.is_none_or(|reason| reason == entry.reject.reason);
                if wanted && !state.is_open(&entry.partition, entry.offset) {
                    bytes += entry.size();
                    chunk.push((key, entry));
                }
                if chunk.len() >= RETRY_BLOCK || bytes >= RETRY_BYTES { Walk::Stop } else { Walk::On }
            })?;
            tried += chunk.len() as u64;
            if !chunk.is_empty() {
                self.submit(chunk, bytes, progress)?;
            }
            match last {
                Some(last) => from = last + 1,
                None => break,
            }
        }
        self.barrier(progress)?;
        let stayed = self.gauges.stayed.load(Ordering::Relaxed) - stayed_before;
        tracing::info!(tried, stayed, "tried the failure queue again");
        Ok(Retried { left: tried.saturating_sub(stayed), stayed })
    }

    fn submit(&self, entries: Vec<(u64, QueueEntry)>, bytes: u64, progress: &dyn Fn(&str)) -> Result<(), Failure> {
        while !self.budget.wait_for_room(PROGRESS) {
            self.refuse_stop()?;
            progress("waiting for room: the disk or the topic is ahead");
        }
        let sender = self.blocks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(sender) = sender else { return Err(stopping()) };
        self.gauges.retried(entries.len() as u64);
        self.budget.take(bytes);
        let block = RawBlock {
            ticket: self.tickets.take(),
            source: Source::Queue(entries.iter().map(|(key, entry)| (*key, entry.size())).collect()),
            records: Records::Queue(entries),
            engine: self.desk.engine(),
            now: now_millis(),
            cost: bytes,
        };
        sender.send(block).map_err(|_| stopping())
    }

    /// Waits until everything sent so far is durable.
    pub(super) fn barrier(&self, progress: &dyn Fn(&str)) -> Result<(), Failure> {
        let (reply, answered) = bounded(1);
        let before = self.tickets.next();
        self.inbox.send(Inbox::Checkpoint { before, finish: Finish::No, reply }).map_err(|_| stopping())?;
        self.wait(&answered, progress)
    }

    pub(super) fn wait(
        &self,
        answered: &crossbeam_channel::Receiver<()>,
        progress: &dyn Fn(&str),
    ) -> Result<(), Failure> {
        loop {
            match answered.recv_timeout(PROGRESS) {
                Ok(()) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => return Err(stopping()),
                Err(RecvTimeoutError::Timeout) => match self.gauges.stalled() {
                    Some(stalled) => progress(&stalled),
                    None => progress("waiting for the checkpoint"),
                },
            }
        }
    }

    fn refuse_stop(&self) -> Result<(), Failure> {
        if self.desk.stopping() { Err(stopping()) } else { Ok(()) }
    }

    /// Removes entries, after they are safely in the export file if there is one.
    pub(super) fn clear(&self, query: &ClearQuery, progress: &dyn Fn(&str)) -> Result<u64, Failure> {
        let _alone = self.alone(progress)?;
        let state = self.gauges.durable().state.clone();
        let end = state.next_key;
        let oldest =
            query.older_than.map(|age| now_millis().saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX)));
        let wanted = |entry: &QueueEntry| {
            query.reason.is_none_or(|reason| reason == entry.reject.reason)
                && oldest.is_none_or(|oldest| entry.first_failure <= oldest)
                && !state.is_open(&entry.partition, entry.offset)
        };
        let mut export = query.export.as_deref().map(Export::create).transpose()?;
        let mut removed = Vec::new();
        let mut trouble = None;
        self.entries(0, &mut |key, entry| {
            if key >= end {
                return Walk::Stop;
            }
            if wanted(&entry) {
                if let Some(Err(error)) = export.as_mut().map(|export| export.write(key, &entry)) {
                    trouble = Some(error);
                    return Walk::Stop;
                }
                removed.push((key, entry.size()));
                if removed.len() % CLEAR_CHUNK == 0 {
                    progress(&format!("{} entries found", removed.len()));
                }
            }
            Walk::On
        })?;
        if let Some(export) = export {
            match trouble {
                Some(error) => return Err(export.failed(&error)),
                None => export.finish()?,
            }
        }
        for chunk in removed.chunks(CLEAR_CHUNK) {
            let (reply, answered) = bounded(1);
            let removal = Inbox::Queue { removed: chunk.to_vec(), cause: QueueCause::Cleared, reply };
            self.inbox.send(removal).map_err(|_| stopping())?;
            self.wait(&answered, progress)?;
        }
        tracing::info!(removed = removed.len(), "cleared the failure queue");
        Ok(removed.len() as u64)
    }
}

pub(super) fn stopping() -> Failure {
    Failure::new(FailureKind::Unavailable, "the service is stopping")
}

/// A file that gets each removed record as a JSON line.
struct Export {
    path: std::path::PathBuf,
    file: BufWriter<File>,
}

impl Export {
    fn create(path: &Path) -> Result<Self, Failure> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o640).open(path).map_err(|error| {
            let why =
                if error.kind() == io::ErrorKind::AlreadyExists { "it exists".to_owned() } else { error.to_string() };
            Failure::new(FailureKind::CannotCreate, format!("cannot create the export file {}: {why}", path.display()))
        })?;
        Ok(Self { path: path.to_owned(), file: BufWriter::new(file) })
    }

    fn write(&mut self, position: u64, entry: &QueueEntry) -> io::Result<()> {
        serde_json::to_writer(&mut self.file, &exported(position, entry))?;
        self.file.write_all(b"\n")
    }

    fn failed(&self, error: &io::Error) -> Failure {
        let text = format!("cannot write the export file {}: {error}; nothing was removed", self.path.display());
        Failure::new(FailureKind::CannotCreate, text)
    }

    fn finish(self) -> Result<(), Failure> {
        let Self { path, file } = self;
        let saved =
            file.into_inner().map_err(io::IntoInnerError::into_error).and_then(|file| file.sync_all()).and_then(|()| {
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
                File::open(parent)?.sync_all()
            });
        saved.map_err(|error| {
            let text = format!("cannot save the export file {}: {error}; nothing was removed", path.display());
            Failure::new(FailureKind::CannotCreate, text)
        })
    }
}

/// A removed record as a JSON value. Bytes that are not UTF-8 are hexadecimal under another name.
fn exported(position: u64, entry: &QueueEntry) -> serde_json::Value {
    let mut value = json!({
        "position": position,
        "topic": &*entry.partition.topic,
        "partition": entry.partition.partition,
        "offset": entry.offset,
        "timestamp": entry.timestamp,
        "reason": entry.reject.reason.name(),
        "detail": entry.reject.detail,
        "attempts": entry.attempts,
        "first_failure": entry.first_failure,
        "last_failure": entry.last_failure,
    });
    let mut put = |name: &str, bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => value[name] = text.into(),
        Err(_) => value[format!("{name}_hex")] = hex(bytes).into(),
    };
    if let Some(key) = &entry.key {
        put("key", key);
    }
    put("value", &entry.value);
    let headers: Vec<_> = entry
        .headers
        .iter()
        .map(|(name, value)| match std::str::from_utf8(value) {
            Ok(text) => json!({"name": name, "value": text}),
            Err(_) => json!({"name": name, "value_hex": hex(value)}),
        })
        .collect();
    if !headers.is_empty() {
        value["headers"] = headers.into();
    }
    value
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
