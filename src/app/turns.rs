//! Whose turn it is to work on the failure queue, and which of its keys are worked on.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

/// Lets one at a time work on the queue.
#[derive(Debug)]
pub(super) struct Turns {
    taken: Mutex<()>,
    waiting: AtomicUsize,
    claimed: Arc<Mutex<u64>>,
}

/// A command that waits for its turn, for as long as this lives.
#[derive(Debug)]
pub(super) struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Turns {
    pub(super) fn new() -> Self {
        Self { taken: Mutex::default(), waiting: AtomicUsize::default(), claimed: Arc::new(Mutex::new(u64::MAX)) }
    }

    /// The first key that is worked on; see [`crate::delivery::Parts`].
    pub(super) fn claimed(&self) -> Arc<Mutex<u64>> {
        Arc::clone(&self.claimed)
    }

    /// Begins to wait for the turn.
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        Waiting(&self.waiting)
    }

    /// The turn, if nobody has it.
    pub(super) fn try_take(&self) -> Option<MutexGuard<'_, ()>> {
        match self.taken.try_lock() {
            Ok(taken) => Some(taken),
            Err(TryLockError::Poisoned(taken)) => Some(taken.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Whether a command waits for its turn.
    pub(super) fn are_wanted(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    /// Says from which key on the queue is worked on.
    pub(super) fn claim(&self, from: u64) {
        *self.claimed.lock().unwrap_or_else(PoisonError::into_inner) = from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_has_the_turn_and_others_are_seen_to_wait() {
        let turns = Turns::new();
        let taken = turns.try_take().unwrap();
        assert!(turns.try_take().is_none() && !turns.are_wanted());
        let waiting = turns.wait();
        assert!(turns.are_wanted());
        drop(taken);
        assert!(turns.try_take().is_some());
        drop(waiting);
        assert!(!turns.are_wanted());
        let claimed = turns.claimed();
        turns.claim(7);
        assert_eq!(*claimed.lock().unwrap(), 7);
    }
}
