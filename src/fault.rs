//! Fault points: named places at which a test can end or freeze the process, between two steps of the protocol.
//!
//! Compiled out without the feature `faults`, which only tests turn on: [`point`] is then an empty function. With it, the
//! variable `FAULT_POINT` chooses places, separated by commas. Each is `name`, `name:3` for the third time it is passed,
//! or `name:*` for every time; the process dies there by SIGKILL. `name:1:stop` freezes it with SIGSTOP instead, and
//! `name:1:500` delays the thread that passes by 500 ms. Nothing is flushed or dropped on the way out: what a kill leaves
//! is what a crash at that instruction leaves. With `name:1:panic` the thread that passes panics, as by a bug of ours.

/// The place `name` is passed.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn point(_name: &'static str) {}

/// The place `name` is passed.
#[cfg(feature = "faults")]
pub fn point(name: &'static str) {
    match chosen(name) {
        // Without a process to signal there would be nothing to test.
        Some(Action::Signal(signal)) => drop(nix::sys::signal::raise(signal)),
        Some(Action::Delay(pause)) => std::thread::sleep(pause),
        Some(Action::Panic) => panic!("the fault point {name}"),
        None => {}
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

/// What happens at a place that was chosen.
#[cfg(feature = "faults")]
#[derive(Clone, Copy)]
enum Action {
    Signal(nix::sys::signal::Signal),
    Delay(std::time::Duration),
    Panic,
}

/// One place of `FAULT_POINT`.
#[cfg(feature = "faults")]
struct Place {
    name: String,
    /// Which passage it is; every one without.
    time: Option<u64>,
    action: Action,
    passed: std::sync::atomic::AtomicU64,
}

#[cfg(feature = "faults")]
impl Place {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let name = parts.next().filter(|name| !name.is_empty())?.to_owned();
        let time = match parts.next() {
            None => Some(1),
            Some("*") => None,
            Some(time) => Some(time.parse().ok()?),
        };
        let action = match parts.next() {
            None => Action::Signal(nix::sys::signal::Signal::SIGKILL),
            Some("stop") => Action::Signal(nix::sys::signal::Signal::SIGSTOP),
            Some("panic") => Action::Panic,
            Some(millis) => Action::Delay(std::time::Duration::from_millis(millis.parse().ok()?)),
        };
        Some(Self { name, time, action, passed: 0.into() })
    }
}

/// Counts the passage of `name`; what happens when this is one that was chosen. A text that cannot be read chooses nothing.
#[cfg(feature = "faults")]
fn chosen(name: &'static str) -> Option<Action> {
    use std::sync::OnceLock;
    use std::sync::atomic::Ordering;

    static PLACES: OnceLock<Vec<Place>> = OnceLock::new();

    let places = PLACES.get_or_init(|| {
        #[expect(clippy::disallowed_methods, reason = "for tests alone, so that no interface carries it")]
        let text = std::env::var("FAULT_POINT").unwrap_or_default();
        text.split(',').filter_map(Place::parse).collect()
    });
    let of_name = places.iter().filter(|place| place.name == name);
    // Every place of this name counts the passage.
    of_name.fold(None, |found, place| {
        let passage = place.passed.fetch_add(1, Ordering::SeqCst) + 1;
        found.or_else(|| place.time.is_none_or(|time| time == passage).then_some(place.action))
    })
}

#[cfg(all(test, feature = "faults"))]
mod tests {
    use super::Place;

    #[test]
    fn a_text_that_cannot_be_read_chooses_nothing() {
        for text in ["", ":1", "seal.commit:first", "seal.commit:1:soon"] {
            assert!(Place::parse(text).is_none(), "{text}");
        }
        for text in ["seal.commit", "seal.commit:3", "seal.commit:*:stop", "seal.commit:1:500", "seal.commit:2:panic"] {
            assert!(Place::parse(text).is_some(), "{text}");
        }
    }
}
