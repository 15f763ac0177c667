//! What the integration tests stand on: broker, topics, records, homes, and the expectation.

pub(crate) mod acl;
pub(crate) mod broker;
pub(crate) mod cases;
pub(crate) mod disk;
pub(crate) mod events;
pub(crate) mod fleet;
pub(crate) mod home;
pub(crate) mod mount;
pub(crate) mod oracle;
pub(crate) mod own_broker;
pub(crate) mod payload;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod records;
pub(crate) mod slow;
pub(crate) mod tail;
pub(crate) mod tally;
pub(crate) mod topic;

pub(crate) use home::Home;
pub(crate) use mount::Mount;
pub(crate) use own_broker::OwnBroker;
pub(crate) use proxy::Proxy;
pub(crate) use records::{Mix, Record};
pub(crate) use topic::{Codec, Topic};

use std::time::{Duration, Instant};

/// How long a test waits for something that should come soon, on a busy machine.
pub(crate) const SOON: Duration = Duration::from_mins(1);

/// Waits until the condition holds.
///
/// # Panics
/// At the deadline, with `what` and the last answer.
pub(crate) fn wait_until(what: &str, deadline: Duration, mut holds: impl FnMut() -> Result<(), String>) {
    let started = Instant::now();
    let deadline = deadline + slow::longer();
    while let Err(answer) = holds() {
        assert!(started.elapsed() < deadline, "waited {deadline:?} for: {what}; last seen: {answer}");
        tick();
    }
}

/// A pause between two looks at a condition.
pub(crate) fn tick() {
    std::thread::park_timeout(Duration::from_millis(20));
}

/// `Ok` when the condition holds; else `seen`, for [`wait_until`].
pub(crate) fn holds(condition: bool, seen: impl std::fmt::Debug) -> Result<(), String> {
    if condition { Ok(()) } else { Err(format!("{seen:?}")) }
}
