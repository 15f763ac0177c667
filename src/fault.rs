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
    if let Some(signal) = chosen(name) {
        // Without a process to signal there would be nothing to test.
        let _sent = nix::sys::signal::raise(signal);
    }
}

/// Whether the fault `name` is to happen here, now; how it happens is the caller's matter.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn happens(_name: &'static str) -> bool {
    false
}

/// Whether the fault `name` is to happen here, now; how it happens is the caller's matter.
#[cfg(feature = "faults")]
pub fn happens(name: &'static str) -> bool {
    chosen(name).is_some()
}

/// A time that only tests change.
#[cfg(not(feature = "faults"))]
pub fn duration(_name: &'static str, usual: std::time::Duration) -> std::time::Duration {
    usual
}

/// A time that only tests change: milliseconds in the variable `name`.
#[cfg(feature = "faults")]
pub fn duration(name: &'static str, usual: std::time::Duration) -> std::time::Duration {
    #[expect(clippy::disallowed_methods, reason = "for tests alone, so that no interface carries it")]
    let text = std::env::var(name).ok();
    text.and_then(|text| text.parse().ok()).map_or(usual, std::time::Duration::from_millis)
}

/// Counts the passage of `name`; the signal when this is the one that was chosen.
#[cfg(feature = "faults")]
fn chosen(name: &'static str) -> Option<nix::sys::signal::Signal> {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use nix::sys::signal::Signal;

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
    let (wanted, time, signal) = chosen.as_ref()?;
    (wanted == name && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == *time).then_some(*signal)
}
