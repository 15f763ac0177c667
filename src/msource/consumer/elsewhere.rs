//! Partitions that are not ours, of which something is hidden here.
//!
//! **Promise.** What was prepared of a topic that is configured no more is given up only when no commit of an earlier run can
//! reach the group. In a classic group none can once this run has joined: the next generation has begun. With KIP-848 a member
//! that joins ends no other one, so the members that may be of an earlier run are waited for.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::starts::is_meant;
use super::{Consumer, RETRY};
use crate::msource::TopicPartition;
use crate::msource::assignment::Held;
use crate::msource::properties::brokers_assign;

impl Consumer {
    /// How partitions are held that are not ours now: they may come to us again while their topics are configured.
    pub(super) fn held_elsewhere(&mut self, partitions: &[TopicPartition]) -> Vec<Held> {
        let topics = &self.parts.config.topics;
        let meant: Vec<_> = partitions.iter().map(|partition| is_meant(topics, &partition.topic)).collect();
        let given_up = if meant.contains(&false) && self.is_alone() { Held::NeverAgain } else { Held::NotByUs };
        meant.into_iter().map(|is_meant| if is_meant { Held::NotByUs } else { given_up }).collect()
    }

    /// Whether no commit of a run before this one can reach the group any more.
    fn is_alone(&mut self) -> bool {
        let joined = !self.slots.is_empty() || self.parts.desk.without_share.load(Ordering::Relaxed);
        if !joined || !brokers_assign(&self.parts.config) || self.outlast.is_over() {
            return joined;
        }
        match self.client.other_members(&self.parts.config.group_id, RETRY) {
            Ok(others) => self.outlast.left(others, Instant::now()).is_none(),
            Err(error) => {
                tracing::debug!(%error, "cannot find out who is in the group");
                false
            }
        }
    }
}

/// Says that what was hidden of a topic goes because nobody here consumes it any more.
pub(super) fn said_unconfigured(partition: &TopicPartition, held: Held) {
    if held == Held::NeverAgain {
        tracing::warn!(%partition, "a topic is not in kafka.topics any more: discarded its unpublished records, which the group has not taken; configured again, they are read again");
    }
}
