//! Partitions of a seal that the group refuses until someone changes the brokers, as for the lack of a right.
//!
//! **Promise.** They hold up no other partition of the seal. Their ranges stay prepared, and what was read behind them is dropped.
//! They are as if they had just been given to us: the group is asked about each of them alone, and they are read on when it has
//! taken their ranges.

use std::time::Instant;

use super::{Consumer, Reassigned};
use crate::msource::TopicPartition;
use crate::msource::native::Protocol;

impl Consumer {
    /// Takes partitions out of what is read whose ranges were let go of. Not at once, since whoever waited for the seal works
    /// with slots.
    pub(super) fn give_up_refused(&mut self) {
        // What is taken out while librdkafka waits for an answer would be one.
        if self.given_up.is_empty() || self.unanswered.is_waiting() {
            return;
        }
        let refused = std::mem::take(&mut self.given_up);
        let is_read = |partition: &TopicPartition| self.slots.iter().any(|slot| slot.partition == *partition);
        let ours: Vec<_> = refused.into_iter().filter(is_read).collect();
        if ours.is_empty() {
            return;
        }
        self.release(&ours);
        let answer = match self.client.protocol() {
            Protocol::Cooperative => self.client.incremental_unassign(&ours),
            Protocol::Eager => self.assign_all(),
        };
        Self::log_answer(answer);
        self.reassigned = Reassigned::Yes { queued: self.client.queued() };
        self.pending.extend(ours);
        self.retry_at = Instant::now();
    }
}
