//! The answer to an assignment: given with its partitions once it is known where they begin, and without them when that takes
//! long.
//!
//! In the new protocol (KIP-848) every assignment is answered at once and without partitions, because they are not ours before
//! the group has heard the answer: until then it may give them to others, without a word that librdkafka would pass on in time.
//!
//! A group may also know this member no more while librdkafka goes on as if it did: so with a static member of the new protocol
//! whose name another process has taken while it was cut off. Then the group refuses its commits, and it is joined again.
//!
//! librdkafka waits for the answer. Until then it takes part in no rebalance, and does not join again when the group has
//! forgotten this member. So whatever an assignment waits for, the disk or the group itself, it is answered soon. What is
//! not known by then stays pending, and is assigned later of our own accord: until it is revoked it is ours.

use std::time::{Duration, Instant};

use super::group::is_member;
use super::seals::Rejoin;
use super::{Consumer, InFlight, PATIENCE};
use crate::msource::native::{KafkaError, Protocol};

/// How long librdkafka may take to notice that this member is none any more.
const STRANGER: Duration = Duration::from_secs(15);

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

    /// The group has refused a commit that nobody waits for.
    pub(super) fn commit_refused(&mut self, sent: InFlight, error: &KafkaError) {
        if sent == InFlight::Outdated {
            self.note_right(error.code);
        } else {
            self.note_refusal(error);
        }
    }

    /// The group has refused a request. When that says that it knows this member no more, an assignment that waits is
    /// answered: librdkafka finds the same out then, revokes it, and joins again. Where it does not for long, we do.
    pub(super) fn note_refusal(&mut self, error: &KafkaError) {
        self.note_right(error.code);
        if is_member(error) {
            return;
        }
        if self.unanswered.is_waiting() {
            tracing::warn!(%error, "the group knows this member no more: joining again");
            self.answer_without();
            return;
        }
        let since = *self.stranger_since.get_or_insert_with(Instant::now);
        if since.elapsed() > STRANGER && self.rejoin == Rejoin::No {
            tracing::warn!(%error, "the group knows this member no more, and librdkafka takes no notice: joining again");
            self.rejoin = Rejoin::Due;
        }
    }

    /// Pending partitions are not ours before the group agrees. Where nobody can tell for long whether it does, it is joined
    /// again.
    pub(super) fn join_again_for_agreement(&mut self) {
        let since = *self.disagreed_since.get_or_insert_with(Instant::now);
        if since.elapsed() > STRANGER && self.rejoin == Rejoin::No {
            tracing::warn!(
                pending = self.pending.len(),
                "it is not known whether the group agrees with what it gave: joining it again"
            );
            self.rejoin = Rejoin::Due;
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
