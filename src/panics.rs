//! Which panics end the process: all but those that somebody takes for an answer.
//!
//! A panic is a bug, and what a thread leaves behind that is gone is unknown. So the hook that comes with the service log
//! (`logging`) logs it and aborts, before the thread unwinds: nothing is given back or written behind the panic, and what is left
//! is what a kill leaves. The next start goes on from that.
//!
//! A panic within [`contain`] is only logged. sled answers damage with panics, and a bug in a command fails that command.
//!
//! Commands on a stopped home have no service log: a panic of theirs fails them when their threads are waited for.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

/// What the names of sled's own threads begin with. A damaged store makes them panic as it does whoever opens it, who is told.
const SLED: &str = "sled";

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`, of which a panic is an answer.
pub fn contain<T>(work: impl FnOnce() -> T) -> thread::Result<T> {
    let outer = CONTAINED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    CONTAINED.set(outer);
    outcome
}

/// Whether a panic of this thread ends the process.
pub(crate) fn is_end() -> bool {
    let is_sled = thread::current().name().is_some_and(|name| name.starts_with(SLED));
    !is_sled && !CONTAINED.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_contained_only_within_its_own_scope() {
        assert!(is_end());
        let contained = contain(|| (is_end(), contain(is_end).unwrap(), is_end())).unwrap();
        assert_eq!(contained, (false, false, false));
        assert!(contain(|| panic!("an answer")).is_err());
        assert!(is_end());
        let elsewhere = contain(|| thread::spawn(is_end).join().unwrap()).unwrap();
        assert!(elsewhere, "another thread is not within it");
    }
}
