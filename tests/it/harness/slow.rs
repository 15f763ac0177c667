//! Slow disks below everything that a test does.
//!
//! `MTGA_TEST_SLOW_SYNCS=MILLIS` puts them below every test of the process (`scripts/slow-disks`), [`on_slow_disks`] below a part
//! of one test. Each home that is made there has a [`Layer`](super::disk::Layer) whose every sync takes that long, and everything
//! that is waited for may take as much longer.

use std::cell::Cell;
use std::sync::OnceLock;
use std::time::Duration;

thread_local! {
    static SYNC: Cell<Option<Duration>> = const { Cell::new(None) };
}

/// A partition that changes hands costs a dozen syncs, and a test waits for a few partitions at once.
const SYNCS: u32 = 120;

/// How long each sync of the homes that are made now takes, on slow disks.
pub(crate) fn sync() -> Option<Duration> {
    SYNC.get().or_else(of_the_process)
}

fn of_the_process() -> Option<Duration> {
    static ALL: OnceLock<Option<Duration>> = OnceLock::new();
    *ALL.get_or_init(|| {
        #[expect(clippy::disallowed_methods, reason = "a test has no main through which the environment could enter")]
        let text = std::env::var("MTGA_TEST_SLOW_SYNCS").ok()?;
        Some(Duration::from_millis(text.parse().expect("MTGA_TEST_SLOW_SYNCS is a number of milliseconds")))
    })
}

/// What everything may take longer here.
pub(crate) fn longer() -> Duration {
    sync().unwrap_or_default() * SYNCS
}

/// A time in which a home also waits for so many syncs, in milliseconds, for librdkafka.
pub(crate) fn millis(time: Duration, syncs: u32) -> String {
    (time + sync().unwrap_or_default() * syncs).as_millis().to_string()
}

/// Runs a test, or a part of it, on disks whose every sync takes this long.
pub(crate) fn on_slow_disks<T>(sync: Duration, test: impl FnOnce() -> T) -> T {
    let before = SYNC.replace(Some(sync));
    let outcome = test();
    SYNC.set(before);
    outcome
}
