//! Store and journal brought together, whatever became of either.
//!
//! **Promise.** What [`reunite`] returns has the newest state that store or journal still knows, and the entries of the
//! failure queue that belong to it, as far as the store can be read and kept segments of the journal have them. What is
//! missing is counted, by [`reconcile`]. A damaged store is never written to: a new one is made beside it and takes its
//! place when it is whole, so a kill at any moment leaves one or the other.
//!
//! **How damage shows.** sled refuses to open or to read; or the entries do not add up to what the state says of them, which
//! is why they are counted at each start. The journal simply ends at its first bad frame, so its damage shows when the store
//! is ahead of it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::broken::{Broken, chain, failed};
use super::identity::{Cause, Damage, rise};
use super::places::{Opening, Places};
use crate::msource::consumer::now_millis;
use crate::msource::journal::{self, BlockSource, Contents, Frame, MoveCause, QueueChange, QueueEntry, State};
use crate::msource::store::{
    Found, SledStore, Store, StoreChange, StoreError, Walk, forget_old, give_entries, salvage, set_aside,
};

/// Entries that go into a store together.
const CHUNK: usize = 1000;

/// Damaged stores that are kept for whoever wants to look at them, the newest ones.
const KEPT_DAMAGED: usize = 3;

/// Bytes that go into a store together.
const CHUNK_BYTES: u64 = 4 << 20;

/// What is in a failure queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Queued {
    pub(super) records: u64,
    pub(super) bytes: u64,
}

impl Queued {
    fn of(state: &State) -> Self {
        Self { records: state.totals.queue_records, bytes: state.totals.queue_bytes }
    }

    /// Counts the entries of a store; this reads all of them.
    pub(super) fn count(store: &dyn Store) -> Result<Self, StoreError> {
        let mut queued = Self::default();
        store.entries(0, &mut |_, entry| {
            queued.add(&entry);
            Walk::On
        })?;
        Ok(queued)
    }

    fn add(&mut self, entry: &QueueEntry) {
        self.records += 1;
        self.bytes += entry.size();
    }

    /// What is left after a change.
    fn after(mut self, store: &dyn Store, change: &StoreChange) -> Result<Self, StoreError> {
        for key in change.remove.iter().chain(change.insert.iter().map(|(key, _)| key)) {
            if let Some(entry) = store.entry(*key)? {
                self.records -= 1;
                self.bytes -= entry.size();
            }
        }
        change.insert.iter().for_each(|(_, entry)| self.add(entry));
        Ok(self)
    }
}

/// A store that was read through.
pub(super) struct Checked {
    pub(super) store: SledStore,
    pub(super) state: Option<State>,
    pub(super) queued: Queued,
}

impl Checked {
    /// Has something done with the failure queue as the store has it.
    pub(super) fn with_queue<T>(&self, act: impl FnOnce(&journal::Queue<'_>) -> T) -> T {
        act(&journal::Queue {
            number: self.state.as_ref().map_or(0, |state| state.number),
            bytes: self.queued.bytes,
            entries: &|each| give_entries(&self.store, each),
        })
    }
}

/// Opens the store and reads all of it, so that damage shows: it has what its state says, and the journal tells everything that
/// happened since.
fn check(places: &Places, contents: &Contents, patience: Duration) -> Result<Checked, StoreError> {
    let path = &places.sled;
    let store = SledStore::open(path, patience)?;
    let state = store.state()?;
    let queued = Queued::count(&store)?;
    let expected = state.as_ref().map(Queued::of).unwrap_or_default();
    let number = state.as_ref().map_or(0, |state| state.number);
    let text = if queued != expected {
        format!("it has {} entries of the failure queue, and should have {}", queued.records, expected.records)
    } else if is_behind(contents, number)
        && !journal::history(&places.journal, number, |_| ())
            .map_err(|error| StoreError::Io(places.journal.clone(), error))?
    {
        format!("it is as it was at block {number}, and the journal has not all that came after")
    } else {
        return Ok(Checked { store, state, queued });
    };
    Err(StoreError::Damaged(path.to_owned(), text))
}

fn is_behind(contents: &Contents, number: u64) -> bool {
    contents.state.as_ref().is_some_and(|state| number < state.number)
}

/// Opens the store; a damaged one is rebuilt, from itself and from the journal.
pub(super) fn open_store(
    places: &Places,
    contents: &Contents,
    opening: Opening,
    patience: Duration,
) -> Result<Checked, Broken> {
    let fresh = places.sled.with_extension("new");
    if present(places)? == fresh {
        put_in_place(&fresh, &places.sled)?;
    }
    let why = match check(places, contents, patience) {
        Err(StoreError::Damaged(_, why)) => why,
        // At a start, another process has it.
        Err(error @ StoreError::Locked(_)) if opening == Opening::First => return Err(failed(chain(&error)).into()),
        checked => return Ok(checked?),
    };
    tracing::error!(why, "the store is damaged: rebuilding it from the journal and from what can be read of it");
    remove_all(&fresh).map_err(|error| Broken::disk(format_args!("cannot remove {}", fresh.display()), &error))?;
    let from = rebuild(places, contents, &fresh)?;
    let aside = set_aside(&places.sled, now_millis() / 1000).map_err(|error| {
        Broken::disk(format_args!("cannot set the damaged store {} aside", places.sled.display()), &error)
    })?;
    crate::fault::point("store_aside");
    put_in_place(&fresh, &places.sled)?;
    tracing::warn!(aside = %aside.display(), ?from, "the store is rebuilt; the damaged one was set aside");
    match forget_old(&places.sled, KEPT_DAMAGED) {
        Ok(gone) if gone.is_empty() => {}
        Ok(gone) => tracing::warn!(?gone, kept = KEPT_DAMAGED, "removed the oldest damaged stores"),
        Err(error) => tracing::warn!(%error, "cannot remove the oldest damaged stores"),
    }
    let store = SledStore::open(&places.sled, patience)?;
    let state = store.state()?;
    let queued = Queued::count(&store)?;
    Ok(Checked { store, state, queued })
}

/// Where the store is: under its name, or, when a rebuild was killed after it was whole and before it had that, beside it.
pub(super) fn present(places: &Places) -> Result<PathBuf, Broken> {
    let fresh = places.sled.with_extension("new");
    let is_there = |path: &Path| {
        path.try_exists().map_err(|error| Broken::disk(format_args!("cannot look at {}", path.display()), &error))
    };
    Ok(if !is_there(&places.sled)? && is_there(&fresh)? { fresh } else { places.sled.clone() })
}

fn remove_all(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn put_in_place(fresh: &Path, path: &Path) -> Result<(), Broken> {
    let put = fs::rename(fresh, path).and_then(|()| File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all());
    put.map_err(|error| {
        Broken::disk(format_args!("cannot put the rebuilt store in its place {}", path.display()), &error)
    })
}

/// What a store was rebuilt from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// The journal, which had everything.
    Journal,
    /// What the journal still had, and so many entries that could be read of the damaged store.
    Both {
        /// Their number.
        readable: u64,
    },
}

/// Makes a new store of what the journal tells, or, where that is not all, of that and what can be read of the damaged one.
fn rebuild(places: &Places, contents: &Contents, fresh: &Path) -> Result<Told, Broken> {
    let store = SledStore::open(fresh, Duration::ZERO)?;
    let mut writer =
        Writer { store: &store, state: contents.state.clone().unwrap_or_default(), changes: BTreeMap::new(), bytes: 0 };
    let told = journal::told_from(&places.journal, writer.state.number);
    let mut told = told.map_err(|error| cannot_read(places, &error))?;
    let mut readable = 0;
    let salvaged = salvage(&places.sled, |found| {
        match found {
            Found::State(Some(state)) if state.number > last_number(contents) => {
                writer.state = state;
                told = None;
            }
            Found::State(_) if told.is_some() => return Ok(Walk::Stop),
            Found::State(_) => {}
            // What the journal has no word of any more is read from Kafka again.
            Found::Entry(key, _) if key >= writer.state.next_key => {}
            Found::Entry(key, entry) => {
                readable += 1;
                writer.put(key, Some(entry))?;
            }
        }
        Ok(Walk::On)
    });
    salvaged?;
    let from = told.unwrap_or(0);
    let mut outcome = Ok(());
    let read = journal::copied(&places.journal, from, &mut |key, entry| {
        if outcome.is_ok() {
            outcome = writer.put(key, Some(entry));
        }
        Ok(())
    });
    read.map_err(|error| cannot_read(places, &error))?;
    outcome?;
    writer.replay(places, from)?;
    if contents.state.is_some() || writer.state.number > 0 {
        writer.flush()?;
    }
    store.sync()?;
    if told.is_some() {
        return Ok(Told::Journal);
    }
    // From here on the journal tells everything again.
    let (state, queued) = (store.state()?, Queued::count(&store)?);
    Checked { store, state, queued }.with_queue(|queue| copy_queue(places, queue))?;
    Ok(Told::Both { readable })
}

/// Copies the queue beside the journal if there is room.
pub(super) fn copy_queue(places: &Places, queue: &journal::Queue<'_>) -> Result<(), Broken> {
    let copied = journal::copy(&places.journal, queue).map(drop);
    copied.map_err(|error| Broken::disk(format_args!("cannot copy the queue to {}", places.journal.display()), &error))
}

/// Puts entries into a store, some at a time.
struct Writer<'a> {
    store: &'a SledStore,
    /// The state that goes in with each chunk.
    state: State,
    changes: BTreeMap<u64, Option<QueueEntry>>,
    bytes: u64,
}

impl Writer<'_> {
    fn put(&mut self, key: u64, entry: Option<QueueEntry>) -> Result<(), StoreError> {
        self.bytes += entry.as_ref().map_or(0, QueueEntry::size);
        self.changes.insert(key, entry);
        if self.changes.len() >= CHUNK || self.bytes >= CHUNK_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        self.store.apply(&self.take())
    }

    fn take(&mut self) -> StoreChange {
        let mut change = StoreChange { state: self.state.clone(), ..StoreChange::default() };
        for (key, entry) in std::mem::take(&mut self.changes) {
            match entry {
                Some(entry) => change.insert.push((key, entry)),
                None => change.remove.push(key),
            }
        }
        self.bytes = 0;
        change
    }

    /// Takes over what kept segments say of the queue, of numbers above `from` up to the state's.
    fn replay(&mut self, places: &Places, from: u64) -> Result<(), Broken> {
        let upto = self.state.number;
        let mut outcome = Ok(());
        let read = journal::history(&places.journal, from, |frame| {
            if outcome.is_ok() && frame.number().is_some_and(|number| number <= upto) {
                outcome = self.frame(frame);
            }
        });
        read.map_err(|error| cannot_read(places, &error))?;
        Ok(outcome?)
    }

    fn frame(&mut self, frame: Frame) -> Result<(), StoreError> {
        match frame {
            Frame::Block(block) => {
                // The block before it has taken them, and may have put some back.
                if let (BlockSource::Queue(taken), false) = (&block.source, block.is_rest()) {
                    taken.iter().try_for_each(|(key, _)| self.put(*key, None))?;
                }
                block.rejects.into_iter().try_for_each(|(key, entry)| self.put(key, Some(entry)))
            }
            Frame::Queue(QueueChange { removed, .. }) | Frame::Refused { removed, .. } => {
                removed.iter().try_for_each(|(key, _)| self.put(*key, None))
            }
            _ => Ok(()),
        }
    }
}

fn cannot_read(places: &Places, error: &io::Error) -> Broken {
    Broken::disk(format_args!("cannot read the journal {}", places.journal.display()), error)
}

pub(super) fn read_journal(places: &Places) -> Result<Contents, Broken> {
    journal::read(&places.journal).map_err(|error| cannot_read(places, &error))
}

/// The highest number that the journal knows.
fn last_number(contents: &Contents) -> u64 {
    let state = contents.state.as_ref().map_or(0, |state| state.number);
    contents.tail.iter().filter_map(Frame::number).fold(state, u64::max)
}

/// Decides where the home stands: `contents` becomes the newest of what the journal and the store know.
pub(super) fn reunite(contents: &mut Contents, kept: Option<State>) -> Damage {
    let Some(kept) = kept else { return Damage::None };
    let last = last_number(contents);
    let Some(state) = &contents.state else {
        contents.state = Some(kept);
        return Damage::Journal;
    };
    if kept.number <= state.number {
        return Damage::None;
    }
    if kept.number > last {
        contents.tail.clear();
        contents.state = Some(kept);
        return Damage::Journal;
    }
    // The checkpoint's own frame is bad. What came after its blocks may be in the store's state already.
    let number = kept.number;
    let beyond = contents.tail.iter().position(|frame| frame.number().is_some_and(|it| it > number));
    let mut rest = contents.tail.split_off(beyond.unwrap_or(contents.tail.len()));
    for frame in &mut rest {
        // What the store has was not dropped.
        if let Frame::Dropped { from, .. } = frame {
            *from = (*from).max(number + 1);
        }
    }
    let covered = std::mem::replace(&mut contents.tail, rest);
    let between = covered.iter().rposition(|frame| frame.number().is_some()).map_or(0, |last| last + 1);
    let mut state = kept;
    for frame in covered.into_iter().skip(between) {
        if !is_in(&state, &frame) {
            state.apply(&frame);
        }
    }
    contents.state = Some(state);
    Damage::None
}

/// Whether a frame without a number is in a state already.
fn is_in(state: &State, frame: &Frame) -> bool {
    match frame {
        Frame::File(intent) => intent.id < state.next_file,
        Frame::Move { to, cause: MoveCause::Gap { .. } } => {
            state.partitions.get(&to.partition).is_some_and(|at| at.next == to.next)
        }
        _ => false,
    }
}

/// Brings a store that is behind up to the state of the journal's last checkpoint: recovery makes lines again from the queue's
/// entries in it.
pub(super) fn catch_up(places: &Places, checked: &mut Checked, state: &State) -> Result<(), Broken> {
    let behind = checked.state.as_ref().map_or(0, |kept| kept.number);
    if state.number <= behind {
        return Ok(());
    }
    tracing::warn!(store = behind, journal = state.number, "the store is behind the journal: catching up");
    let mut writer = Writer { store: &checked.store, state: state.clone(), changes: BTreeMap::new(), bytes: 0 };
    writer.replay(places, behind)?;
    // The last chunk alone says that it is done; cut short before it, the count does not fit.
    writer.flush()?;
    checked.queued = Queued::count(&checked.store)?;
    checked.state = Some(state.clone());
    Ok(())
}

/// Compares the queue with what the state says of it; what was lost is counted, and told.
pub(super) fn reconcile(checked: &Checked, change: &StoreChange, state: &mut State) -> Result<(), Broken> {
    let found = checked.queued.after(&checked.store, change)?;
    let expected = Queued::of(state);
    if found == expected {
        return Ok(());
    }
    let lost = expected.records.saturating_sub(found.records);
    if lost > 0 {
        tracing::error!(
            lost,
            left = found.records,
            "entries of the failure queue are lost with the damaged store; their records are in Kafka as long as its retention has them"
        );
        state.totals.lost += lost;
        rise(state, Cause::Damage);
    } else {
        let more = found.records - expected.records;
        tracing::error!(
            more,
            "the damaged store gave more entries of the failure queue than there should be: some may have become lines already"
        );
    }
    (state.totals.queue_records, state.totals.queue_bytes) = (found.records, found.bytes);
    Ok(())
}

#[cfg(test)]
mod tests;
