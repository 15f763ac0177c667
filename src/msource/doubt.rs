//! An answer of the brokers that is believed once it has lasted.
//!
//! **Promise.** An answer lasts from the first time that it is given until another one is, or until nobody has given it for
//! [`SILENCE`]: two answers with brokers that were away in between are two that may pass. A time in which nobody meant to ask is
//! no silence, and counts for no more than [`SILENCE`]. What was believed once is believed again, as long as nothing else is said.

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
    /// When it was to be asked again after that.
    due: Instant,
}

impl<T: PartialEq> Doubt<T> {
    /// An answer that is given for the first time.
    pub fn new(said: T, now: Instant) -> Self {
        Self { said, since: now, last: now, due: now }
    }

    /// Takes an answer; returns whether it has lasted.
    pub fn lasts(&mut self, said: T, now: Instant, patience: Duration) -> bool {
        let is_believed = !patience.is_zero() && self.last.duration_since(self.since) >= patience;
        let is_silent = now.saturating_duration_since(self.due) > SILENCE && !is_believed;
        if self.said != said || is_silent {
            *self = Self::new(said, now);
        }
        self.since += now.duration_since(self.last).saturating_sub(SILENCE);
        (self.last, self.due) = (now, now);
        now.duration_since(self.since) >= patience
    }

    /// It is asked again at this time, if it was answered since the question at `asked`: until then there is no silence.
    pub fn asks_next(&mut self, asked: Instant, at: Instant) {
        if self.last >= asked {
            self.due = self.due.max(at);
        }
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

    #[test]
    fn a_time_in_which_nobody_meant_to_ask_is_no_silence_and_counts_for_little() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let lasts = |answers: &[(u64, bool)], is_planned: bool| {
            let mut doubt = Doubt::new('a', begun);
            for (seconds, lasts) in answers {
                assert_eq!(doubt.lasts('a', at(*seconds), PATIENCE), *lasts, "at {seconds} of {answers:?}");
                if is_planned {
                    doubt.asks_next(at(*seconds), at(seconds + 40));
                    // A question that got no answer puts nothing off.
                    doubt.asks_next(at(seconds + 1), at(seconds + 1000));
                }
            }
        };
        // Each question takes ten seconds, and most of the time is left to others.
        lasts(&[(0, false), (50, false), (100, true), (150, true)], true);
        lasts(&[(0, false), (50, false), (100, false), (150, false)], false);
        lasts(&[(0, false), (50, false), (121, false), (171, false), (221, true)], true);
    }
}
