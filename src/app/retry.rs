//! What the failure queue tries by itself, on the thread `retry`.
//!
//! - Entries that failed with another recipe than the one in force: settings, configuration or program are not what they
//!   were. Each entry says with which recipe it failed last, so a start and a reload need no memory of the last one, and a
//!   pass that a kill cut short goes on where it was.
//! - Entries of reason `sink`, with a growing pause between attempts, until they are parked.
//!
//! An entry that may still be taken back, with the hidden lines of its partition, waits until that is decided and holds up no other.
//!
//! It looks at each entry once for each recipe, some thousand at a time, and keeps of them only when those of reason `sink`
//! are due: a bounded number, the others are looked at when there is room. It works in rounds like a command does, lets
//! commands go first, waits for room in the memory bound, and does nothing while the disk fails. What goes wrong is logged
//! and tried again a minute later; nothing depends on this thread.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use super::broken::failed;
use super::pipeline::Pipeline;
use super::queue::{RETRY_BYTES, is_parked};
use crate::config::FailureQueue;
use crate::control::Failure;
use crate::msource::TopicPartition;
use crate::msource::consumer::now_millis;
use crate::msource::journal::QueueEntry;
use crate::msource::store::Walk;

/// How soon new entries, new settings and due entries are noticed.
const TICK: Duration = Duration::from_millis(250);

/// Pause after a failure.
const PAUSE: Duration = Duration::from_mins(1);

/// Entries looked at in one go.
const LOOK: usize = 2000;

/// Entries of which it is remembered when they are due.
const DUE_MAX: usize = 10_000;

/// Entries tried together when they are due.
const DUE_BLOCK: usize = 200;

/// Starts the thread; it ends with the pipeline.
pub(super) fn begin(pipeline: &Arc<Pipeline>, settings: &FailureQueue) -> Result<(), Failure> {
    let retrier = Retrier {
        pipeline: Arc::clone(pipeline),
        settings: settings.clone(),
        recipe: Arc::clone(&pipeline.desk.engine().fingerprint),
        seen: 0,
        undecided: Undecided::default(),
        again: None,
        due: BTreeMap::new(),
        tried: 0,
        stayed: 0,
    };
    pipeline.keep_retrier(thread::Builder::new().name("retry".into()).spawn(move || retrier.run()).map_err(failed)?);
    Ok(())
}

/// See the module.
struct Retrier {
    pipeline: Arc<Pipeline>,
    settings: FailureQueue,
    /// The recipe with which the queue is looked through.
    recipe: Arc<str>,
    /// Every entry below this key was looked at with it.
    seen: u64,
    /// Those of them that could not be tried yet.
    undecided: Undecided,
    /// Keys of those that are decided by now, and are looked at again.
    again: Option<Range<u64>>,
    /// Keys of entries that are to be tried by themselves, and when: milliseconds since 1970 UTC.
    due: BTreeMap<u64, i64>,
    /// Entries tried since the recipe changed, and those of them that failed again.
    tried: u64,
    stayed: u64,
}

/// Entries that may still be taken back: for each growth, by its partition and the key where its entries begin, the keys that they
/// lie between. They hold up no other entry, and are looked at again when their growth is decided.
#[derive(Default)]
struct Undecided(BTreeMap<(TopicPartition, u64), Range<u64>>);

impl Undecided {
    fn add(&mut self, growth: (TopicPartition, u64), key: u64) {
        let keys = self.0.entry(growth).or_insert(key..key + 1);
        *keys = keys.start.min(key)..keys.end.max(key + 1);
    }

    /// Takes out the keys of one growth that is not open any more.
    fn take_decided(&mut self, open: impl FnOnce() -> Vec<(TopicPartition, u64)>) -> Option<Range<u64>> {
        if self.0.is_empty() {
            return None;
        }
        let open = open();
        let decided = self.0.keys().find(|growth| !open.contains(growth)).cloned()?;
        self.0.remove(&decided)
    }
}

/// Whether there is more to do at once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    More,
    Idle,
}

impl Retrier {
    fn run(mut self) {
        let mut pause = Duration::ZERO;
        while !self.pipeline.is_ending() {
            if !pause.is_zero() {
                thread::park_timeout(TICK);
                pause = pause.saturating_sub(TICK);
                continue;
            }
            crate::fault::point("retry.step");
            pause = match self.step() {
                Ok(Step::More) => Duration::ZERO,
                Ok(Step::Idle) => TICK,
                Err(_) if self.pipeline.is_ending() => return,
                Err(failure) => {
                    tracing::error!(%failure, "cannot try the failure queue again by itself; it is left alone for a minute");
                    PAUSE
                }
            };
        }
    }

    fn step(&mut self) -> Result<Step, Failure> {
        let recipe = Arc::clone(&self.pipeline.desk.engine().fingerprint);
        if recipe != self.recipe {
            (self.recipe, self.seen, self.tried, self.stayed) = (recipe, 0, 0, 0);
            (self.undecided, self.again) = (Undecided::default(), None);
            self.due.clear();
        }
        if self.pipeline.gauges.stalled().is_some() || self.pipeline.turns.are_wanted() {
            return Ok(Step::Idle);
        }
        if self.due.len() < DUE_MAX && self.look_on()? == Step::More {
            return Ok(Step::More);
        }
        let now = now_millis();
        let keys: Vec<u64> =
            self.due.iter().filter(|(_, due)| **due <= now).map(|(key, _)| *key).take(DUE_BLOCK).collect();
        if keys.is_empty() {
            return Ok(Step::Idle);
        }
        self.try_due(&keys)?;
        Ok(Step::More)
    }

    /// Looks at what was not looked at yet, and again at what was not decided and is now.
    fn look_on(&mut self) -> Result<Step, Failure> {
        let end = {
            let state = &self.pipeline.gauges.durable().state;
            self.again = self.again.take().or_else(|| self.undecided.take_decided(|| state.open()));
            state.next_key
        };
        if let Some(keys) = self.again.clone() {
            let seen = self.look(keys.clone())?;
            self.again = (seen < keys.end).then_some(seen..keys.end);
            return Ok(Step::More);
        }
        if self.seen >= end {
            return Ok(Step::Idle);
        }
        self.seen = self.look(self.seen..end)?;
        if self.seen == end && self.tried > 0 {
            let (tried, stayed) = (std::mem::take(&mut self.tried), std::mem::take(&mut self.stayed));
            tracing::info!(tried, stayed, "tried the failure queue again with the recipe in force");
        }
        Ok(Step::More)
    }

    /// Looks at some entries of a range; those that failed with another recipe are tried again, a round of them. Returns where it
    /// came to.
    fn look(&mut self, range: Range<u64>) -> Result<u64, Failure> {
        let (mut looks, mut stale) = (0, false);
        let state = self.pipeline.gauges.durable().state.clone();
        let (mut found, mut open) = (Vec::new(), Vec::new());
        let (recipe, settings) = (&self.recipe, &self.settings);
        let mut seen = range.start;
        self.pipeline.entries(range.start, &mut |key, entry| {
            if key >= range.end {
                return Walk::Stop;
            }
            let growth = state.opened_at(key, &entry);
            stale = growth.is_none() && entry.recipe != *recipe;
            if stale {
                return Walk::Stop;
            }
            seen = key + 1;
            looks += 1;
            match growth {
                // What may still be taken back is left alone until it is decided.
                Some(first_key) => open.push(((entry.partition, first_key), key)),
                None if is_parked(&entry, settings.max_attempts) => {}
                None => found.push((key, due(&entry, settings))),
            }
            if looks < LOOK { Walk::On } else { Walk::Stop }
        })?;
        self.due.extend(found);
        for (growth, key) in open {
            self.undecided.add(growth, key);
        }
        if stale {
            self.try_stale(seen..range.end)?;
            return Ok(seen);
        }
        Ok(if looks < LOOK { range.end } else { seen })
    }

    /// Tries a round of entries that failed with another recipe. They are looked at once more after that: those that fail
    /// again may be due later.
    fn try_stale(&mut self, keys: Range<u64>) -> Result<(), Failure> {
        if self.tried == 0 {
            tracing::info!("settings, configuration or version changed: trying the failure queue again");
        }
        let mut turn = self.pipeline.turn(keys.start, &|_| {})?;
        let before = self.pipeline.gauges.stayed.load(Ordering::Relaxed);
        let state = self.pipeline.gauges.durable().state.clone();
        let wanted = |key: u64, entry: &QueueEntry| entry.recipe != self.recipe && !state.is_open(key, entry);
        let (tried, _) = turn.round(keys.start, keys.end, &wanted)?;
        self.tried += tried;
        self.stayed += self.pipeline.gauges.stayed.load(Ordering::Relaxed) - before;
        Ok(())
    }

    /// Tries entries whose time has come.
    fn try_due(&mut self, keys: &[u64]) -> Result<(), Failure> {
        let (Some(first), now) = (keys.first(), now_millis()) else { return Ok(()) };
        let mut turn = self.pipeline.turn(*first, &|_| {})?;
        let (mut entries, mut bytes, mut looked) = (Vec::new(), 0, 0);
        for key in keys {
            if bytes >= RETRY_BYTES {
                break;
            }
            looked += 1;
            match self.pipeline.entry(*key)? {
                // A command may have tried it meanwhile.
                Some(entry) if !is_parked(&entry, self.settings.max_attempts) => {
                    if due(&entry, &self.settings) <= now {
                        bytes += entry.size();
                        entries.push((*key, entry));
                    }
                }
                _ => drop(self.due.remove(key)),
            }
        }
        if !entries.is_empty() {
            turn.submit(entries)?;
            turn.settle()?;
        }
        let (mut left, mut parked) = (0_u64, 0_u64);
        for key in &keys[..looked] {
            match self.pipeline.entry(*key)? {
                Some(entry) if !is_parked(&entry, self.settings.max_attempts) => {
                    self.due.insert(*key, due(&entry, &self.settings));
                }
                gone => {
                    if self.due.remove(key).is_some() {
                        *(if gone.is_some() { &mut parked } else { &mut left }) += 1;
                    }
                }
            }
        }
        if left > 0 {
            tracing::info!(left, "entries left the failure queue by themselves");
        }
        if parked > 0 {
            tracing::warn!(
                parked,
                "entries of the failure queue are parked: only a command or other settings try them again"
            );
        }
        Ok(())
    }
}

/// When an entry is tried again by itself.
fn due(entry: &QueueEntry, settings: &FailureQueue) -> i64 {
    let (from, to) = (settings.backoff_from, settings.backoff_to);
    let doubled = from.saturating_mul(2_u32.saturating_pow(entry.attempts.saturating_sub(1)));
    entry.last_failure.saturating_add(i64::try_from(doubled.min(to).as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::WhenFull;
    use crate::record::{Reason, Reject};

    #[test]
    fn undecided_entries_come_back_with_the_end_of_their_growth_and_not_before() {
        let growth = |number, first_key| (TopicPartition { topic: "t".into(), partition: number }, first_key);
        let mut undecided = Undecided::default();
        for (number, first_key, key) in [(0, 3, 5), (1, 4, 4), (0, 3, 3), (0, 9, 9)] {
            undecided.add(growth(number, first_key), key);
        }
        let mut decided = |open: &[(i32, u64)]| {
            undecided.take_decided(|| open.iter().map(|(number, first_key)| growth(*number, *first_key)).collect())
        };
        assert_eq!(decided(&[(0, 3), (1, 4), (0, 9), (2, 0)]), None);
        assert_eq!((decided(&[(1, 4), (0, 9)]), decided(&[(1, 4), (0, 9)])), (Some(3..6), None));
        assert_eq!((decided(&[]), decided(&[]), decided(&[])), (Some(9..10), Some(4..5), None));
    }

    #[test]
    fn the_pause_doubles_up_to_its_bound_and_ends_with_the_last_attempt() {
        let settings = FailureQueue {
            max_attempts: 5,
            backoff_from: Duration::from_secs(1),
            backoff_to: Duration::from_secs(6),
            max_bytes: 0,
            when_full: WhenFull::Pause,
        };
        let mut entry = QueueEntry {
            partition: TopicPartition { topic: "t".into(), partition: 0 },
            topic_id: String::new(),
            offset: 0,
            timestamp: None,
            key: None,
            headers: Vec::new(),
            value: Vec::new(),
            reject: Reject::new(Reason::Sink, "too long"),
            attempts: 1,
            first_failure: 0,
            last_failure: 10_000,
            recipe: "r".into(),
        };
        for (attempts, due_at, parked) in [
            (1, 11_000, false),
            (2, 12_000, false),
            (3, 14_000, false),
            (4, 16_000, false),
            (5, 16_000, false),
            (6, 16_000, true),
            (u32::MAX, 16_000, true),
        ] {
            entry.attempts = attempts;
            assert_eq!((due(&entry, &settings), is_parked(&entry, 5)), (due_at, parked), "{attempts}");
        }
        entry.reject.reason = Reason::NoId;
        entry.attempts = 1;
        assert!(is_parked(&entry, 5), "nothing but another recipe can cure it");
    }
}
