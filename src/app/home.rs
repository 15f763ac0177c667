//! What a home keeps between runs: store, journal, recipes. Opens them, and brings what a crash left apart together again.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use uuid::Uuid;

use super::broken::{Broken, chain, failed};
use super::identity::{self, Damage, Known, Lies};
use super::places::{Opening, Places};
use super::rebuild::{self, Checked};
use crate::config::Config;
use crate::control::{Failure, FailureKind};
use crate::delivery::behind::queue_changes;
use crate::durable::create_private_dirs;
use crate::lock::{HomeLock, ReadLock};
use crate::msource::journal::{self, Contents, Frame, History, Mark, QueueEntry, State};
use crate::msource::store::{SledStore, Store, StoreChange, StoreError, Walk};
use crate::transform::recipe::{Engine, Recipe};

/// How long another process is waited for that holds the store: a command that reads it is done sooner.
const STORE_PATIENCE: Duration = Duration::from_secs(5);

/// The same for the service: a monitor may ask again and again, on a machine that is busy.
const SERVICE_PATIENCE: Duration = Duration::from_secs(30);

/// Store and journal, opened and brought together; the journal's tail is not looked at yet.
pub(super) struct Opened {
    pub(super) checked: Checked,
    pub(super) contents: Contents,
    pub(super) known: Known,
}

/// Whether there is neither journal nor store, as below a mount point whose disk is missing.
pub(super) fn is_blank(places: &Places) -> Result<bool, Broken> {
    let path = rebuild::present(places)?;
    let is_there =
        path.try_exists().map_err(|error| Broken::disk(format_args!("cannot look at {}", path.display()), &error))?;
    Ok(!is_there && rebuild::read_journal(places)?.state.is_none())
}

/// Opens the home of a service that is about to run, whatever became of store and journal; see [`super::rebuild`].
pub(super) fn open(places: &Places, opening: Opening, history: History) -> Result<Opened, Broken> {
    let patience = match opening {
        Opening::First => {
            for dir in [&places.root, &places.journal] {
                create_private_dirs(dir)
                    .map_err(|error| Broken::disk(format_args!("cannot create {}", dir.display()), &error))?;
            }
            SERVICE_PATIENCE
        }
        Opening::Again => {
            fs::metadata(&places.journal).map_err(|error| {
                Broken::disk(format_args!("cannot find the journal {}", places.journal.display()), &error)
            })?;
            STORE_PATIENCE
        }
    };
    let (mut contents, mut checked) =
        read_together(places, opening, |contents| rebuild::open_store(places, contents, opening, patience))?;
    make_room(places, &checked, &contents, history)?;
    let damage = rebuild::reunite(&mut contents, checked.state.clone());
    let begins = contents.state.is_none();
    let mut state = contents.state.take().unwrap_or_else(first_state);
    if damage == Damage::Journal {
        tracing::error!(journal = %places.journal.display(), number = state.number, "the journal is gone, or lost its end: going on with what the store has");
        // From here on the journal tells everything again.
        checked.with_queue(|queue| rebuild::copy_queue(places, queue))?;
    }
    rebuild::catch_up(places, &mut checked, &state)?;
    let number = contents.tail.iter().filter_map(Frame::number).fold(state.number, u64::max);
    let mark = Mark { home: state.home.clone(), incarnation: state.incarnation, number };
    let lies = match identity::recognise(places, &mut state, damage)? {
        _ if begins => Lies::Nowhere,
        lies => lies,
    };
    contents.state = Some(state);
    let known = Known { mark, segment: contents.last_segment, lies, damage };
    Ok(Opened { checked, contents, known })
}

/// Reads the journal and opens the store, so that nothing comes to the journal that was not read: an earlier program, which
/// knows no lock of the home, may have the store while we wait for it, and go on meanwhile.
fn read_together<T>(
    places: &Places,
    opening: Opening,
    mut open_store: impl FnMut(&Contents) -> Result<T, Broken>,
) -> Result<(Contents, T), Broken> {
    loop {
        let contents = rebuild::read_journal(places)?;
        if opening == Opening::Again && contents.state.is_none() {
            let text = format!("the journal {} is gone; bring it back", places.journal.display());
            return Err(Broken::Passing(failed(text)));
        }
        let opened = open_store(&contents)?;
        if rebuild::read_journal(places)?.end == contents.end {
            return Ok((contents, opened));
        }
    }
}

/// Removes what is not needed of the journal before anything needs room: it may be what fills the disk.
fn make_room(places: &Places, checked: &Checked, contents: &Contents, history: History) -> Result<(), Broken> {
    let removed = journal::forget_unfinished(&places.journal).and_then(|()| {
        let Some((segment, _)) = contents.end else { return Ok(()) };
        checked.with_queue(|queue| journal::prune(&places.journal, segment, history, SystemTime::now(), queue))
    });
    removed.map_err(|error| {
        Broken::disk(format_args!("cannot remove old segments from {}", places.journal.display()), &error)
    })
}

/// Keeps an engine's recipe in the home: before its first block.
pub(super) fn keep(engine: &Engine, recipes: &Path) -> Result<(), Broken> {
    let kept = engine.recipe.keep(recipes);
    kept.map(drop)
        .map_err(|error| Broken::disk(format_args!("cannot keep the settings in {}", recipes.display()), &error))
}

/// Removes kept recipes that neither the journal nor the one in force needs. For a moment when nothing is in flight.
pub(super) fn prune_recipes(places: &Places, state: &mut State, current: &str) -> io::Result<()> {
    if let Some(forgotten) = journal::forgotten(&places.journal)? {
        state.recipes.retain(|_, last| *last > forgotten);
        Recipe::prune(&places.recipes, |recipe| recipe == current || state.recipes.contains_key(recipe))?;
    }
    Ok(())
}

/// The state of a home that begins.
fn first_state() -> State {
    State { home: Uuid::new_v4().simple().to_string(), incarnation: 1, ..State::default() }
}

/// The blocks and queue changes above a number that kept segments have: some segments at most are above what a store has.
fn numbered(places: &Places, after: u64) -> Result<Vec<Frame>, Broken> {
    let mut frames = Vec::new();
    journal::history(&places.journal, after, |frame| frames.push(frame))
        .map_err(|error| Broken::disk(format_args!("cannot read the journal {}", places.journal.display()), &error))?;
    Ok(frames)
}

/// Opens a store and reads from it, so that damage shows.
fn open_store(path: &Path, patience: Duration) -> Result<SledStore, StoreError> {
    let store = SledStore::open(path, patience)?;
    store.state()?;
    store.entries(0, &mut |_, _| Walk::Stop)?;
    Ok(store)
}

/// What brings the store's queue up to the journal's end.
pub(super) fn behind(opened: &Opened) -> StoreChange {
    let mut change = StoreChange::default();
    let durable = opened.contents.state.as_ref().map_or(0, |state| state.number);
    queue_changes(opened.contents.tail.iter().cloned(), durable, &mut change);
    change
}

/// Why a stopped home cannot be read, and what to do: those who only look mend nothing.
fn unreadable(error: &StoreError) -> Failure {
    let text = chain(error);
    failed(match error {
        StoreError::Damaged(..) => format!("{text}; `mtga start` sets it aside and rebuilds it from the journal"),
        _ => text,
    })
}

/// A stopped home, to be read: the store with what the journal has beyond it.
pub(super) struct View {
    pub(super) state: State,
    store: Option<SledStore>,
    overlay: BTreeMap<u64, Option<QueueEntry>>,
    /// Keeps others from changing it; for as long as the store is open.
    _lock: Option<ReadLock>,
}

impl View {
    /// Reads a stopped home without changing what it says.
    pub(super) fn open(config: &Config) -> Result<Self, Failure> {
        let places = Places::of(config);
        if !places.root.try_exists().map_err(failed)? {
            return Ok(Self { state: State::default(), store: None, overlay: BTreeMap::new(), _lock: None });
        }
        let lock = ReadLock::acquire(&places.root)?;
        Self::read(&places, Some(lock))
    }

    /// Reads a home that is locked for us.
    pub(super) fn of_locked(config: &Config, _lock: &HomeLock) -> Result<Self, Failure> {
        Self::read(&Places::of(config), None)
    }

    fn read(places: &Places, lock: Option<ReadLock>) -> Result<Self, Failure> {
        // Under its name an empty one would be made, and taken for the store at the next start.
        let store = open_store(&rebuild::present(places)?, STORE_PATIENCE).map_err(|error| match &error {
            StoreError::Locked(_) => Failure::new(FailureKind::Unavailable, chain(&error)),
            _ => unreadable(&error),
        })?;
        let kept = store.state().map_err(|error| unreadable(&error))?;
        let number = kept.as_ref().map_or(0, |state| state.number);
        let mut contents = rebuild::read_journal(places)?;
        rebuild::reunite(&mut contents, kept);
        let mut state = contents.state.unwrap_or_default();
        let mut change = StoreChange::default();
        if number >= state.number {
            queue_changes(contents.tail.iter().cloned(), number, &mut change);
        } else {
            queue_changes(numbered(places, number)?, number, &mut change);
        }
        for frame in &contents.tail {
            state.apply(frame);
        }
        state.forget_unknown();
        let mut overlay: BTreeMap<u64, Option<QueueEntry>> = change.remove.into_iter().map(|key| (key, None)).collect();
        overlay.extend(change.insert.into_iter().map(|(key, entry)| (key, Some(entry))));
        Ok(Self { state, store: Some(store), overlay, _lock: lock })
    }

    /// The entries of the failure queue in order of arrival.
    pub(super) fn entries(&self, each: &mut dyn FnMut(u64, QueueEntry) -> Walk) -> Result<(), Failure> {
        let Some(store) = &self.store else { return Ok(()) };
        let mut overlay = self.overlay.iter().peekable();
        let mut walk = Walk::On;
        store
            .entries(0, &mut |key, entry| {
                while let Some((earlier, newer)) = overlay.next_if(|(newer, _)| **newer < key) {
                    if let Some(newer) = newer
                        && walk == Walk::On
                    {
                        walk = each(*earlier, newer.clone());
                    }
                }
                if walk == Walk::On {
                    walk = match overlay.next_if(|(newer, _)| **newer == key) {
                        Some((_, None)) => Walk::On,
                        Some((_, Some(newer))) => each(key, newer.clone()),
                        None => each(key, entry),
                    };
                }
                walk
            })
            .map_err(|error| unreadable(&error))?;
        for (key, newer) in overlay {
            if let (Some(newer), Walk::On) = (newer, walk) {
                walk = each(*key, newer.clone());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::msource::TopicPartition;
    use crate::msource::journal::{Block, BlockSource, Journal, Position};
    use crate::record::{Reason, Reject};

    fn reject(number: u64, key: u64, partition: &TopicPartition) -> Frame {
        let entry = QueueEntry {
            partition: partition.clone(),
            topic_id: String::new(),
            offset: number as i64,
            timestamp: None,
            key: None,
            headers: Vec::new(),
            value: b"{}".to_vec(),
            reject: Reject::new(Reason::NoHeaders, "none"),
            attempts: 1,
            first_failure: 0,
            last_failure: 0,
            recipe: "r".into(),
        };
        let to = Position {
            partition: partition.clone(),
            topic_id: String::new(),
            next: number as i64 + 1,
            leader_epoch: -1,
        };
        Frame::Block(Box::new(Block {
            number,
            source: BlockSource::Offsets { from: number as i64, to },
            recipe: String::new(),
            pieces: Vec::new(),
            records: 1,
            filtered: [0; 3],
            rejects: vec![(key, entry)],
        }))
    }

    fn scratch() -> (tempfile::TempDir, Places) {
        let scratch = tempfile::TempDir::new().unwrap();
        let places = Places::below(scratch.path().to_owned());
        (scratch, places)
    }

    #[test]
    fn what_the_store_was_waited_for_is_not_missing_in_the_journal() {
        let (_scratch, places) = scratch();
        let partition = TopicPartition { topic: "t".into(), partition: 0 };
        let mut journal = Journal::begin(&places.journal, &Contents::default(), &State::default()).unwrap();
        // A program of before the lock of the home, which has the store alone, and goes on until it gives that up.
        let mut other = Some(SledStore::open(&places.sled, Duration::ZERO).unwrap());
        let mut tails = Vec::new();
        let read = read_together(&places, Opening::First, |contents| {
            tails.push(contents.tail.len());
            if let Some(store) = other.take() {
                journal.append(&reject(1, 0, &partition)).unwrap();
                drop(store);
            }
            rebuild::open_store(&places, contents, Opening::First, Duration::ZERO)
        });
        assert_eq!(read.map(|(contents, _)| contents.tail.len()).ok(), Some(1));
        assert_eq!(tails, [0, 1], "it was read again");
    }

    #[test]
    fn what_the_store_lost_of_the_queue_is_there_before_recovery_begins() {
        let (_scratch, places) = scratch();
        let partition = TopicPartition { topic: "t".into(), partition: 0 };
        let mut journal = Journal::begin(&places.journal, &Contents::default(), &State::default()).unwrap();
        journal.append(&reject(1, 0, &partition)).unwrap();
        journal.append(&Frame::Checkpoint { number: 1 }).unwrap();
        journal.append(&reject(2, 1, &partition)).unwrap();
        let keep = History { age: Duration::MAX, bytes: u64::MAX };
        let opened = open(&places, Opening::First, keep).unwrap();
        let store = &opened.checked.store;
        assert_eq!(store.state().unwrap().unwrap().number, 1);
        assert!(store.entry(0).unwrap().is_some(), "covered by the checkpoint");
        assert!(store.entry(1).unwrap().is_none(), "not covered: for the recovery to judge");
        let rest = behind(&opened);
        assert_eq!(rest.insert.iter().map(|(key, _)| *key).collect::<Vec<_>>(), [1]);
    }
}
