//! The bound on bytes between the source and the files.
//!
//! **Promise.** The source asks for room before it takes records, and a worker before it adds to a block that is larger than
//! what was counted for it. So the bound is exceeded by what the workers have at hand and by one large value at most,
//! whatever values claim about their size.
//!
//! **No deadlock.** Room comes when blocks are delivered, and they are delivered in order. Therefore the worker that makes
//! what the delivery waits for never waits for room, and blocks reach the workers in the order of their tickets
//! ([`Tickets::issue`](super::Tickets::issue)). Nobody waits while he holds the right to a large value.
//!
//! **How it fails.** When nothing is delivered any more, the budget is closed, and whoever waits for it gives up.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::block::Place;
use crate::transform::worker::{Room, Wanted};

/// See the module.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    used: u64,
    /// What the delivery takes next.
    next: Place,
    /// Whether a worker holds a large value.
    has_large: bool,
    closed: bool,
}

impl Budget {
    /// A bound of `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self { limit, inner: Mutex::default(), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts bytes in.
    pub fn take(&self, bytes: u64) {
        self.lock().used += bytes;
    }

    /// Counts bytes out.
    pub fn give_back(&self, bytes: u64) {
        let mut inner = self.lock();
        inner.used = inner.used.saturating_sub(bytes);
        self.changed.notify_all();
    }

    /// Waits until there is room, at most so long; returns whether there is.
    pub fn wait_for_room(&self, patience: Duration) -> bool {
        let (inner, _) = self
            .changed
            .wait_timeout_while(self.lock(), patience, |inner| inner.used >= self.limit)
            .unwrap_or_else(PoisonError::into_inner);
        inner.used < self.limit
    }

    /// Notes what the delivery takes next.
    pub(super) fn reached(&self, next: Place) {
        let mut inner = self.lock();
        inner.next = next;
        self.changed.notify_all();
    }

    /// Nothing is delivered any more.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// The bound.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes in flight.
    pub fn used(&self) -> u64 {
        self.lock().used
    }

    /// Waits until what is made for this place may become larger, and as long as `is_busy` says.
    fn wait(&self, place: Place, is_busy: impl Fn(&Inner) -> bool) -> MutexGuard<'_, Inner> {
        let must_wait = |inner: &mut Inner| {
            let may_grow = inner.used < self.limit || place <= inner.next;
            !inner.closed && (!may_grow || is_busy(inner))
        };
        self.changed.wait_while(self.lock(), must_wait).unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn wanted(&self) -> Wanted {
        if self.closed { Wanted::No } else { Wanted::Yes }
    }
}

impl Room for Budget {
    fn take(&self, bytes: u64) {
        Self::take(self, bytes);
    }

    fn wait(&self, place: Place) -> Wanted {
        self.wait(place, |_| false).wanted()
    }

    fn enter_large(&self, place: Place) -> Wanted {
        let mut inner = self.wait(place, |inner| inner.has_large);
        inner.has_large = true;
        inner.wanted()
    }

    fn leave_large(&self) {
        self.lock().has_large = false;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, channel};
    use std::thread;

    use super::*;

    const FIRST: Place = Place { ticket: 3, part: 0 };
    const SECOND: Place = Place { ticket: 3, part: 1 };

    /// A worker that waits; answers when it goes on.
    fn waiting(budget: &Arc<Budget>, wait: impl FnOnce(&Budget) -> Wanted + Send + 'static) -> Receiver<Wanted> {
        let (sender, answer) = channel();
        let budget = Arc::clone(budget);
        thread::spawn(move || {
            let _ = sender.send(wait(&budget));
        });
        answer
    }

    fn answer(answer: &Receiver<Wanted>) -> Option<Wanted> {
        answer.recv_timeout(Duration::from_mins(1)).ok()
    }

    #[test]
    fn without_room_only_the_worker_goes_on_whose_part_the_delivery_takes_next() {
        let budget = Arc::new(Budget::new(10));
        budget.take(10);
        budget.reached(FIRST);
        assert_eq!(answer(&waiting(&budget, |budget| Room::wait(budget, FIRST))), Some(Wanted::Yes));
        let second = waiting(&budget, |budget| Room::wait(budget, SECOND));
        assert!(second.recv_timeout(Duration::from_millis(20)).is_err());
        budget.reached(SECOND);
        assert_eq!(answer(&second), Some(Wanted::Yes));
        let room = waiting(&budget, |budget| Room::wait(budget, Place { ticket: 9, part: 0 }));
        assert!(room.recv_timeout(Duration::from_millis(20)).is_err());
        budget.give_back(1);
        assert_eq!(answer(&room), Some(Wanted::Yes));
    }

    #[test]
    fn one_worker_at_a_time_holds_a_large_value_and_none_waits_for_a_delivery_that_is_over() {
        let budget = Arc::new(Budget::new(10));
        budget.reached(FIRST);
        budget.enter_large(SECOND);
        let other = waiting(&budget, |budget| budget.enter_large(FIRST));
        assert!(other.recv_timeout(Duration::from_millis(20)).is_err());
        budget.leave_large();
        assert_eq!(answer(&other), Some(Wanted::Yes));
        budget.take(10);
        let last = waiting(&budget, |budget| budget.enter_large(SECOND));
        assert!(last.recv_timeout(Duration::from_millis(20)).is_err());
        budget.close();
        assert_eq!(answer(&last), Some(Wanted::No));
    }
}
