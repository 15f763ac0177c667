//! Fault points: named places at which a test can end or freeze the process, between two steps of the protocol.
//!
//! Compiled out without the feature `faults`, which only tests turn on: [`point`] is then an empty function. With it, the
//! variable `FAULT_POINT` chooses one place, as `name`, `name:3` for the third time it is passed, or `name:1:stop` to
//! freeze with SIGSTOP instead of dying by SIGKILL. Nothing is flushed or dropped on the way out: what a kill leaves is
//! what a crash at that instruction leaves.

/// The place `name` is passed.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn point(_name: &'static str) {}

/// The place `name` is passed.
#[cfg(feature = "faults")]
pub fn point(name: &'static str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use nix::sys::signal::{Signal, raise};

    static CHOSEN: OnceLock<Option<(String, u64, Signal)>> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);

    let chosen = CHOSEN.get_or_init(|| {
        #[expect(clippy::disallowed_methods, reason = "for tests alone, so that no interface carries it")]
        let text = std::env::var("FAULT_POINT").ok()?;
        let mut parts = text.split(':');
        let name = parts.next()?.to_owned();
        let time = parts.next().map_or(Some(1), |time| time.parse().ok())?;
        let signal = if parts.next() == Some("stop") { Signal::SIGSTOP } else { Signal::SIGKILL };
        Some((name, time, signal))
    });
    if let Some((wanted, time, signal)) = chosen
        && wanted == name
        && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == *time
    {
        // Without a process to signal there would be nothing to test.
        let _sent = raise(*signal);
    }
}
