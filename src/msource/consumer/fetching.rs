//! What librdkafka is told to fetch, once it is known where a partition goes on: assigned, sought, paused.
//!
//! **Promise.** Nothing is taken of a partition that is to be read again before a seek has worked, which alone drops what was
//! fetched before it.
//!
//! **How it fails.** A seek that does not work is tried again, and shown as the reason why no records come.

use std::time::{Duration, Instant};

use super::slot::{Fetch, Slot};
use super::{Code, Consumer, REQUEST_TIMEOUT, RETRY, Reassigned};
use crate::msource::TopicPartition;
use crate::msource::native::{KafkaError, Protocol};

/// How long an assignment that was made again may take to begin.
const SETTLE: Duration = Duration::from_millis(100);

impl Consumer {
    /// Reads these partitions from where they stand, after they were paused: by us, or by librdkafka, which pauses what we keep
    /// in every rebalance. It would go on at the last place that it handed out, and takes an end of partition for a record in
    /// that: the record that comes there next would never be seen.
    pub(super) fn rewind(&mut self, partitions: &[TopicPartition]) {
        let now = Instant::now();
        for slot in &mut self.slots {
            if slot.fetch == Fetch::On && partitions.contains(&slot.partition) {
                slot.read_again(now);
            }
        }
        self.read_again();
    }

    /// Reads partitions from where they stand that librdkafka was not to be relied on, or has stopped fetching. When that does
    /// not work it fails in the same way again, and is tried again.
    pub(super) fn read_again(&mut self) {
        let now = Instant::now();
        let due = |slot: &Slot| matches!(slot.fetch, Fetch::Seek(at) | Fetch::Check(at, _) if now >= at);
        let places: Vec<_> = self
            .slots
            .iter()
            .filter(|slot| due(slot))
            .map(|slot| match slot.fetch {
                Fetch::Check(..) => (slot.partition.clone(), slot.next, slot.leader_epoch),
                // While the leader is not known, a check waits for the next metadata: it is made once.
                _ => (slot.partition.clone(), slot.next, -1),
            })
            .collect();
        if places.is_empty() {
            return;
        }
        let mut sought = self.client.seek(&places, REQUEST_TIMEOUT);
        if sought.as_ref().is_err_and(|error| error.code == Code::State) {
            // An error like an offset out of range has ended the fetching, and only an assignment begins it again. Nothing is
            // taken before a seek has worked, which alone drops what was fetched before it.
            let again: Vec<_> = self.slots.iter().filter(|slot| due(slot)).map(Slot::assignment).collect();
            self.assign_again(&again);
            self.reassigned = Reassigned::Yes { queued: self.client.queued() };
            sought = self.client.seek(&places, REQUEST_TIMEOUT);
        }
        let again = match &sought {
            Ok(()) => None,
            Err(error) if error.code == Code::State => Some(now + SETTLE),
            Err(_) => Some(now + RETRY),
        };
        for slot in self.slots.iter_mut().filter(|slot| due(slot)) {
            slot.fetch = match (again, slot.fetch) {
                (None, _) => Fetch::On,
                (Some(at), Fetch::Check(_, from)) => Fetch::Check(at, from),
                (Some(at), _) => Fetch::Seek(at),
            };
        }
        if let Err(error) = sought
            && error.code != Code::State
        {
            self.in_trouble(format!("cannot read on: {error}"));
        }
    }

    fn assign_again(&self, assigned: &[(TopicPartition, i64)]) {
        let answer = match self.client.protocol() {
            Protocol::Cooperative => {
                let partitions: Vec<_> = assigned.iter().map(|(partition, _)| partition.clone()).collect();
                let unassigned = self.client.incremental_unassign(&partitions);
                unassigned.and_then(|()| self.client.incremental_assign(assigned))
            }
            Protocol::Eager => self.assign_all(),
        };
        Self::log_answer(answer);
        self.pause_new();
    }

    pub(super) fn assign_all(&self) -> Result<(), KafkaError> {
        let all: Vec<_> = self.slots.iter().map(Slot::assignment).collect();
        self.client.assign(&all)
    }

    /// What was just assigned is paused too, while all are: they are resumed together, when there is room.
    pub(super) fn pause_new(&self) {
        if self.paused
            && let Err(error) = self.client.pause(&self.partitions())
        {
            tracing::warn!(%error, "cannot pause the partitions");
        }
    }
}
