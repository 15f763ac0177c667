//! Partitions that are not ours, of which something is hidden here.
//!
//! **Promise.** What was prepared of a topic that is configured no more is given up only when no commit of an earlier run can
//! reach the group. In a classic group none can once this run has joined: the next generation has begun. With KIP-848 a member
//! that joins ends no other one, so the members that may be of an earlier run are waited for.
//!
//! A stop leaves nothing hidden that the group has taken, if the group can be asked: this home may never be started again.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::starts::is_meant;
use super::{Consumer, Error, RETRY};
use crate::config::Assignment;
use crate::delivery::{Finish, Verdict};
use crate::msource::TopicPartition;
use crate::msource::assignment::{Held, Hidden, settle};
use crate::msource::properties::brokers_assign;

/// How long a stop asks what the group has taken of what is hidden.
pub(super) const LAST_LOOK: Duration = Duration::from_secs(5);

impl Consumer {
    /// How partitions are held that are not ours now: they may come to us again while their topics are configured.
    pub(super) fn held_elsewhere(&mut self, partitions: &[TopicPartition]) -> Vec<Held> {
        let topics = &self.parts.config.topics;
        let meant: Vec<_> = partitions.iter().map(|partition| is_meant(topics, &partition.topic)).collect();
        let given_up = if meant.contains(&false) && self.is_alone() { Held::NeverAgain } else { Held::NotByUs };
        meant.into_iter().map(|is_meant| if is_meant { Held::NotByUs } else { given_up }).collect()
    }

    /// Decides, once no partition is ours any more, about what was prepared and is not decided yet. What the group may still
    /// take, or what it cannot be asked about, stays hidden until the next start.
    pub(super) fn look_a_last_time(&mut self) -> Result<(), Error> {
        if self.parts.config.assignment == Assignment::All {
            return Ok(());
        }
        let until = Instant::now() + LAST_LOOK;
        loop {
            let state = self.parts.gauges.durable().state.clone();
            let offsets = state.seals.values().flat_map(|seal| &seal.ranges).filter_map(|range| range.offsets.as_ref());
            let open: BTreeSet<_> = offsets.map(|offsets| offsets.to.partition.clone()).collect();
            if open.is_empty() {
                return Ok(());
            }
            let open: Vec<_> = open.into_iter().collect();
            let answers = self.client.committed(&open, RETRY).unwrap_or_default();
            let told: HashMap<_, _> = open.iter().zip(answers).collect();
            let mut unknown = Vec::new();
            for partition in &open {
                // What nobody can tell at this moment, the next start may: a topic that is away, for example.
                let group = told.get(partition).and_then(|group| group.as_ref().ok());
                let settled =
                    group.map(|group| settle(&state, partition, group.as_ref(), Held::NotByUs, self.parts.visibility));
                match settled {
                    Some(Hidden::Decided(number, verdict @ (Verdict::Committed | Verdict::Refused))) => {
                        tracing::info!(%partition, number, ?verdict, "the group tells what became of a prepared range");
                        self.tell(number, partition.clone(), verdict)?;
                    }
                    _ => unknown.push(partition),
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if unknown.len() < open.len() {
                self.barrier(Finish::No, left)?;
            }
            if until <= Instant::now() {
                if let Some(first) = unknown.first() {
                    tracing::warn!(partition = %first, count = unknown.len(), "stopped before it is known whether the group took what is hidden: the next start finds out, or `adopt` if there is none");
                }
                return Ok(());
            }
            std::thread::park_timeout(left.min(RETRY / 4));
        }
    }

    /// Whether no commit of a run before this one can reach the group any more.
    fn is_alone(&mut self) -> bool {
        let joined = !self.slots.is_empty() || self.parts.desk.without_share.load(Ordering::Relaxed);
        if !joined || !brokers_assign(&self.parts.config) || self.outlast.is_over() {
            return joined;
        }
        match self.coordinator().members_besides(Some(&self.client.member_id()), RETRY * 3) {
            Ok(others) => self.outlast.left(others, Instant::now()).is_none(),
            Err(error) => {
                tracing::debug!(%error, "cannot find out who is in the group");
                // Its session passes all the same.
                self.outlast.left(usize::MAX, Instant::now()).is_none()
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
