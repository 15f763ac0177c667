//! A home made ready for a pipeline: opened, and everything completed that a crash cut short.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::adopt::other::{refuse_adopted, take_copies};
use super::broken::{Broken, failed};
use super::home::{self, Opened};
use super::identity::{self, Judged, Lies};
use super::places::{Opening, Places};
use super::rebuild;
use crate::config::{Assignment, Config, Visibility};
use crate::control::{Failure, FailureKind, State as Phase};
use crate::delivery::recovery::{Trust, recover};
use crate::delivery::spill;
use crate::delivery::witness::{self, NAME, Noted, Witness};
use crate::fault::point;
use crate::msink::dir::{EventDir, PRIVATE, is_bare};
use crate::msource::consumer::Desk;
use crate::msource::journal::{Contents, FileState, Former, History, Journal, Mark, Queue, State};
use crate::msource::properties;
use crate::msource::reread::{Rereader, Wait};
use crate::msource::store::{self, Store, StoreChange};

/// Whether the pipeline reads from Kafka.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Feed {
    /// It consumes.
    Kafka,
    /// It only works on what the home has: for commands on a stopped service.
    Nothing,
    /// The same on the home of an instance whose host is gone, which may be a copy: see [`super::adopt`].
    Adopted,
}

/// Lets recovery wait for brokers, showing why, until the service is told to stop.
struct Patience<'a> {
    desk: &'a Desk,
    feed: Feed,
    until: Instant,
}

impl Wait for Patience<'_> {
    fn go_on(&mut self, reason: Option<&str>) -> bool {
        if let Some(reason) = reason {
            let text = format!("completing what a crash cut short, which needs the broker: {reason}");
            self.desk.show(Phase::Waiting, Some(text));
        }
        !self.desk.stopping() && (self.feed == Feed::Kafka || Instant::now() < self.until)
    }
}

/// A home that is recovered: everything in its state is durable.
pub(super) struct Ready {
    pub(super) store: Arc<dyn Store>,
    pub(super) journal: Journal,
    pub(super) journal_dir: PathBuf,
    pub(super) dir: EventDir,
    pub(super) state: State,
    /// Its incarnations that ended here.
    pub(super) former: Vec<Former>,
    pub(super) witness: Option<Witness>,
}

impl Ready {
    /// Opens the home and completes what a crash cut short.
    pub(super) fn new(config: &Config, desk: &Desk, feed: Feed, opening: Opening) -> Result<Self, Broken> {
        let places = Places::of(config);
        let mut found = Found::new(config, &places, feed, opening)?;
        home::keep(&desk.engine(), &places.recipes)?;
        let change = home::behind(&found.opened);
        let mut patience = Patience { desk, feed, until: Instant::now() + config.rpc.timeout };
        let state = found.complete(config, &places, &change, &mut patience)?;
        point("start.recovered");
        found.begin(config, (places, &desk.engine().fingerprint), opening, state, change)
    }
}

/// A home and its event directory as they were found.
struct Found {
    opened: Opened,
    dir: EventDir,
    trust: Trust,
    /// Incarnations that ended with a move.
    moved: Vec<Former>,
}

impl Found {
    fn new(config: &Config, places: &Places, feed: Feed, opening: Opening) -> Result<Self, Broken> {
        if feed != Feed::Adopted {
            refuse_adopted(places)?;
        }
        // Before anything is made in what may be a mount point.
        if opening == Opening::First
            && home::is_blank(places)?
            && let Ok(dir) = EventDir::open_present(&config.sink.dir)
        {
            refuse_to_begin(config, &dir)?;
        }
        let mut opened = home::open(places, opening, history(config))?;
        if opened.known.lies == Lies::InPlace {
            refuse_bare_dir(&config.sink.dir, &opened.contents)?;
        }
        let dir = event_dir(config, opening)?;
        if opened.known.lies == Lies::Nowhere {
            refuse_to_begin(config, &dir)?;
        }
        if feed == Feed::Adopted || opened.known.lies == Lies::Elsewhere {
            take_copies(&mut opened.contents, &dir)
                .map_err(|error| Broken::disk("cannot look at the event files", &error))?;
        }
        let Opened { contents, known, .. } = &mut opened;
        let Some(state) = &mut contents.state else { return Err(failed("the journal holds no state").into()) };
        let judged = identity::judge(state, known, witness::read(&dir), |state| identity::holds(&dir, state))
            .map_err(|error| Broken::disk("cannot look at the event files", &error))?;
        let Judged { trust, moved } = judged;
        Ok(Self { opened, dir, trust, moved })
    }

    /// Completes what a crash cut short; returns the state after it.
    fn complete(
        &mut self,
        config: &Config,
        places: &Places,
        change: &StoreChange,
        patience: &mut Patience<'_>,
    ) -> Result<State, Broken> {
        let mut source = Rereader::new(
            properties::consuming(config),
            &config.kafka.topics,
            places.recipes.clone(),
            &self.opened.checked.store,
            patience,
        );
        let recovered = recover(&self.opened.contents, &self.dir, &mut source, self.trust);
        drop(source);
        let Some(recovered) = recovered.map_err(|error| Broken::new(error.cure(), &error))? else {
            return Err(failed("the journal holds no state").into());
        };
        if recovered.blocks > 0 {
            tracing::info!(blocks = recovered.blocks, repaired = recovered.repaired, "recovered from a crash");
        }
        let mut state = recovered.state;
        rebuild::reconcile(&self.opened.checked, change, &mut state)?;
        state.visibility = config.sink.visibility;
        if state.visibility == Visibility::Sealed {
            // Live files of an earlier configuration are complete now, and get no further lines.
            state.files.retain(|_, file| file.visibility == Visibility::Sealed);
        }
        for (partition, position) in state.forget_unknown() {
            tracing::error!(%partition, position, "the stored position is no offset, left by a version that took a lost answer of the brokers for one: the partition starts as if it had never been read");
        }
        if self.trust == Trust::Outdated && config.kafka.assignment == Assignment::All {
            for (partition, at) in &state.partitions {
                // What it had hidden has been published since, or is gone: it is read again.
                let lost = at.growth.as_ref().filter(|growth| !state.is_whole(partition, growth));
                let from = lost.map_or(at.next, |growth| growth.from);
                tracing::warn!(%partition, from, "records from here on that have lines or entries already are repeated");
            }
        }
        Ok(state)
    }

    /// Begins a segment of the journal with this state, and brings the store up to it.
    fn begin(
        self,
        config: &Config,
        (places, recipe): (Places, &str),
        opening: Opening,
        mut state: State,
        mut change: StoreChange,
    ) -> Result<Ready, Broken> {
        let Self { opened, dir, moved, .. } = self;
        let journal = Journal::begin(&places.journal, &opened.contents, &state).map_err(|error| {
            Broken::disk(format_args!("cannot begin the journal in {}", places.journal.display()), &error)
        })?;
        point("start.begun");
        if let Err(error) = spill::forget(&dir) {
            // It is of an end of the journal that is none any more.
            tracing::debug!(%error, "cannot remove the note of what recovery wrote behind blocks");
        }
        change.state = state.clone();
        let store = opened.checked.store;
        store.apply(&change)?;
        point("start.applied");
        // Old segments are what a lost store is rebuilt from: they go when the store has everything, and a copy of the queue too.
        store.sync()?;
        let queue = Queue {
            number: state.number,
            bytes: state.totals.queue_bytes,
            entries: &|each| store::give_entries(&store, each),
        };
        journal.prune(history(config), SystemTime::now(), &queue).map_err(|error| {
            Broken::disk(format_args!("cannot remove old segments from {}", places.journal.display()), &error)
        })?;
        // Not when it begins again: a reload may have kept a recipe just now that is not in force yet.
        if opening == Opening::First
            && let Err(error) = home::prune_recipes(&places, &mut state, recipe)
        {
            tracing::warn!(%error, "cannot remove recipes that nothing needs any more");
        }
        let mark = Mark { home: state.home.clone(), incarnation: state.incarnation, number: state.number };
        let former = state.former(&moved);
        let noted = Noted { mark, segment: journal.current_segment(), moved };
        let witness = Witness::begin(&dir, noted)
            .inspect_err(|error| tracing::warn!(%error, "cannot note checkpoints in the event directory"));
        point("start.noted");
        Ok(Ready {
            store: Arc::new(store),
            journal,
            journal_dir: places.journal,
            dir,
            state,
            former,
            witness: witness.ok(),
        })
    }
}

/// How much is kept of the journal.
pub(super) fn history(config: &Config) -> History {
    History { age: config.store.history, bytes: config.store.history_bytes }
}

/// Waits for the event directory where a crash left files in it whose lines nothing else has, and there is nothing at all: it is
/// a mount that is missing. Those are live files, with every torn line, prepared ones, which the group may have taken already,
/// and hidden ones with lines of retries, whose entries have left the failure queue. What else is hidden is read again.
fn refuse_bare_dir(dir: &Path, contents: &Contents) -> Result<(), Broken> {
    let mut state = contents.state.clone().unwrap_or_default();
    contents.tail.iter().for_each(|frame| state.apply(frame));
    let is_alone = |file: &FileState| file.inode != 0 && (file.visibility == Visibility::Live || file.key.retries);
    let unfinished = state.files.values().any(is_alone);
    let prepared = state.seals.values().flat_map(|seal| &seal.ranges).any(|range| !range.files.is_empty());
    if !(unfinished || prepared) || !is_bare(dir) {
        return Ok(());
    }
    Err(Broken::Passing(failed(format!(
        "the event directory {} is empty, and should have unfinished files: mount it; if sink.dir was changed, start and stop once with the old one; if they are gone for good, make any file in it",
        dir.display()
    ))))
}

/// Refuses to begin a home in an event directory where one has worked. Its store is lost, or its disk is not mounted: with another
/// one lines would be repeated, and the failure queue be gone without a word. This does not wait: the lock that we hold would
/// be below the mount.
fn refuse_to_begin(config: &Config, dir: &EventDir) -> Result<(), Failure> {
    let Some(noted) = witness::read(dir) else { return Ok(()) };
    let text = format!(
        "the store {} is empty, and the home {} has worked in the event directory {dir}: mount the disk of store.path, correct \
         store.path, or bring the store back; if it is lost for good, remove {dir}/{PRIVATE}/{NAME}: another home begins then, at \
         the offsets of the group or at kafka.start",
        config.store.path.display(),
        noted.mark.home,
        dir = config.sink.dir.display(),
    );
    Err(Failure::new(FailureKind::Config, text))
}

fn event_dir(config: &Config, opening: Opening) -> Result<EventDir, Broken> {
    let dir = match opening {
        Opening::First => EventDir::open(&config.sink.dir),
        Opening::Again => EventDir::open_present(&config.sink.dir),
    };
    dir.map_err(|error| {
        let failure = Failure::new(FailureKind::CannotCreate, format!("cannot use the event directory: {error}"));
        match (opening, error.kind()) {
            (Opening::First, io::ErrorKind::ResourceBusy) => Broken::Lasting(failure),
            _ => Broken::Passing(failure),
        }
    })
}
