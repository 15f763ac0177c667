//! The answer to an assignment: given with its partitions once it is known where they begin, and without them when that takes
//! long.
//!
//! librdkafka waits for the answer. Until then it takes part in no rebalance, and does not join again when the group has
//! forgotten this member. So whatever an assignment waits for, the disk or the group itself, it is answered soon. What is
//! not known by then stays pending, and is assigned later of our own accord: until it is revoked it is ours.

use std::time::Instant;

use super::group::is_member;
use super::{Consumer, PATIENCE};
use crate::msource::native::{KafkaError, Protocol};

/// Since when librdkafka waits for the answer to an assignment, if it does.
#[derive(Debug, Default)]
pub(super) struct Unanswered(Option<Instant>);

impl Unanswered {
    /// An assignment was told.
    pub(super) fn told(&mut self, now: Instant) {
        self.0 = Some(now);
    }

    /// It is answered, or over.
    pub(super) fn end(&mut self) {
        self.0 = None;
    }

    /// Whether librdkafka waits.
    pub(super) fn is_waiting(&self) -> bool {
        self.0.is_some()
    }

    fn is_due(&self, now: Instant) -> bool {
        self.0.is_some_and(|told| now >= told + PATIENCE)
    }
}

impl Consumer {
    /// Answers an assignment without partitions when librdkafka has waited long enough.
    pub(super) fn answer_late(&mut self) {
        if self.unanswered.is_due(Instant::now()) {
            tracing::warn!(
                pending = self.pending.len(),
                "answered the group before it is known where its partitions begin"
            );
            self.answer_without();
        }
    }

    /// The group has refused a request. When that says that it knows this member no more, an assignment that waits is
    /// answered: librdkafka finds the same out then, revokes it, and joins again.
    pub(super) fn note_refusal(&mut self, error: &KafkaError) {
        self.note_right(error.code);
        if self.unanswered.is_waiting() && !is_member(error) {
            tracing::warn!(%error, "the group knows this member no more: joining again");
            self.answer_without();
        }
    }

    /// Answers an assignment with what is read already.
    pub(super) fn answer_without(&mut self) {
        self.unanswered.end();
        let answer = match self.client.protocol() {
            Protocol::Cooperative => self.client.incremental_assign(&[]),
            Protocol::Eager => self.assign_all(),
        };
        Self::log_answer(answer);
        let kept = self.partitions();
        self.rewind(&kept);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_assignment_is_answered_in_time_whatever_it_waits_for() {
        let mut unanswered = Unanswered::default();
        let now = Instant::now();
        assert!(!unanswered.is_due(now), "nothing waits");
        unanswered.told(now);
        assert!(!unanswered.is_due(now + PATIENCE / 2));
        assert!(unanswered.is_due(now + PATIENCE));
        unanswered.end();
        assert!(!unanswered.is_due(now + PATIENCE + Duration::from_mins(1)));
    }
}
