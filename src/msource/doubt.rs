//! An answer of the brokers that is believed once it has lasted.
//!
//! **Promise.** An answer lasts from the first time that it is given until another one is, or until nobody has given it for
//! [`SILENCE`]: two answers with brokers that were away in between are two that may pass. What was believed once is believed
//! again, as long as nothing else is said.

use std::time::{Duration, Instant};

/// How long an answer must last that takes records away, and may be a passing one. A new leader knows how far its log was
/// acknowledged once its followers have asked it, 30 s at most unless `replica.lag.time.max.ms` is set.
pub const DOUBT: Duration = Duration::from_mins(1);

/// How long an answer may stay out without beginning again.
pub const SILENCE: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Doubt<T> {
    said: T,
    since: Instant,
    last: Instant,
}

impl<T: PartialEq> Doubt<T> {
    /// An answer that is given for the first time.
    pub fn new(said: T, now: Instant) -> Self {
        Self { said, since: now, last: now }
    }

    /// Takes an answer; returns whether it has lasted.
    pub fn lasts(&mut self, said: T, now: Instant, patience: Duration) -> bool {
        let is_believed = !patience.is_zero() && self.last.duration_since(self.since) >= patience;
        let is_silent = now.duration_since(self.last) > SILENCE && !is_believed;
        if self.said != said || is_silent {
            *self = Self::new(said, now);
        }
        self.last = now;
        now.duration_since(self.since) >= patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_mins(1);

    /// Answers in turn, each so many seconds after the first, and whether each has lasted.
    fn assert_lasts(answers: &[(u64, char, bool)]) {
        let begun = Instant::now();
        let mut doubt = Doubt::new(answers[0].1, begun);
        for (at, said, lasts) in answers {
            let found = doubt.lasts(*said, begun + Duration::from_secs(*at), PATIENCE);
            assert_eq!(found, *lasts, "{said} at {at} of {answers:?}");
        }
    }

    #[test]
    fn an_answer_lasts_only_while_it_is_given_and_nothing_else_is() {
        assert_lasts(&[(0, 'a', false), (20, 'a', false), (40, 'a', false), (60, 'a', true)]);
        assert_lasts(&[(0, 'a', false), (20, 'a', false), (600, 'a', false), (630, 'a', false), (660, 'a', true)]);
        assert_lasts(&[(0, 'a', false), (30, 'b', false), (60, 'a', false), (90, 'a', false), (120, 'a', true)]);
    }

    #[test]
    fn what_was_believed_is_believed_again_unless_something_else_was_said() {
        assert_lasts(&[(0, 'a', false), (30, 'a', false), (60, 'a', true), (600, 'a', true)]);
        assert_lasts(&[(0, 'a', false), (30, 'a', false), (60, 'a', true), (61, 'b', false), (600, 'a', false)]);
    }
}
