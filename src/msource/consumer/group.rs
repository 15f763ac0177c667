//! The group's side of the consumer: assignments, revocations and commits.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, bounded};

use super::watchdog::Old;
use super::{Consumer, Error, InFlight, REQUEST_TIMEOUT, RETRY, REVOKE_DEADLINE, Said, Slot};
use crate::config::Assignment;
use crate::delivery::{Finish, Inbox};
use crate::msource::TopicPartition;
use crate::msource::assignment::Owner;
use crate::msource::journal::{PartitionState, State};
use crate::msource::native::{Client, Commit, Event, KafkaError, Protocol};

impl Consumer {
    pub(super) fn events(&mut self) -> Result<(), Error> {
        while let Some(event) = self.client.next_event() {
            match event {
                Event::Assign(partitions) => self.assigned(partitions),
                Event::Revoke(partitions) => self.revoked(&partitions)?,
                Event::Error { error, fatal: true } => self.fatal = Some(error.text),
                Event::Error { error, fatal: false } => self.in_trouble(error.to_string()),
            }
        }
        while let Some(answer) = self.client.answered(Duration::ZERO) {
            self.commit_in_flight = InFlight::No;
            match answer {
                Ok(()) => self.unanswered_since = None,
                Err(error) => {
                    tracing::debug!(%error, "the group refused a commit; it is sent again");
                    for slot in &mut self.slots {
                        slot.committed = -1;
                    }
                    self.commit_at = Instant::now() + RETRY;
                }
            }
        }
        if let Some(reason) = self.fatal.take() {
            tracing::error!(reason, "the Kafka client failed for good; making a new one");
            self.replace_client(&reason, Old::Closed)?;
        }
        if self.parts.config.assignment == Assignment::All && Instant::now() >= self.discover_at {
            self.discover();
        }
        Ok(())
    }

    fn assigned(&mut self, partitions: Vec<TopicPartition>) {
        tracing::info!(count = partitions.len(), "the group assigned partitions");
        let none = partitions.is_empty();
        self.pending.extend(partitions);
        self.retry_at = Instant::now();
        if none {
            let answer = match self.client.protocol() {
                Protocol::Cooperative => self.client.incremental_assign(&[]),
                Protocol::Eager => self.client.assign(&[]),
            };
            Self::log_answer(answer);
            self.trouble = Some("the group has no partition for this instance".into());
        }
    }

    /// Gives partitions back: finished, checkpointed and committed, unless they were lost already.
    fn revoked(&mut self, partitions: &[TopicPartition]) -> Result<(), Error> {
        let lost = self.client.assignment_lost();
        tracing::info!(count = partitions.len(), lost, "the group revoked partitions");
        self.pending.retain(|partition| !partitions.contains(partition));
        let ours: Vec<_> = self.partitions().into_iter().filter(|partition| partitions.contains(partition)).collect();
        if lost {
            self.release(&ours);
        } else if !ours.is_empty() {
            for number in 0..self.slots.len() {
                self.cut(number)?;
            }
            if self.barrier(Finish::No, REVOKE_DEADLINE)? {
                self.commit_now(&ours, REQUEST_TIMEOUT);
            } else {
                tracing::error!(
                    "could not finish the revoked partitions' blocks in time; the next owner may repeat them"
                );
            }
            self.release(&ours);
        }
        let answer = match self.client.protocol() {
            Protocol::Cooperative => self.client.incremental_unassign(&ours),
            Protocol::Eager => self.client.unassign(),
        };
        Self::log_answer(answer);
        Ok(())
    }

    pub(super) fn log_answer(answer: Result<(), KafkaError>) {
        if let Err(error) = answer {
            tracing::error!(%error, "librdkafka refused the answer to a rebalance");
        }
    }

    /// Ends the assignment of partitions; what is open of them is dropped.
    pub(super) fn release(&mut self, partitions: &[TopicPartition]) {
        for partition in partitions {
            self.parts.tracker.end(partition);
        }
        let (gauges, budget) = (&self.parts.gauges, &self.parts.budget);
        self.slots.retain(|slot| {
            let goes = partitions.contains(&slot.partition);
            if goes {
                gauges.returned(slot.open.len() as u64);
                budget.give_back(slot.cost);
            }
            !goes
        });
        self.index.clear();
        self.parts.desk.partitions.store(self.slots.len(), Ordering::Relaxed);
    }

    /// Waits until everything sent so far is durable; returns whether it became so in time.
    pub(super) fn barrier(&mut self, finish: Finish, deadline: Duration) -> Result<bool, Error> {
        let (reply, answered) = bounded(1);
        let before = self.parts.tickets.next();
        self.parts.inbox.send(Inbox::Checkpoint { before, finish, reply }).map_err(|_| Error::Closed)?;
        match answered.recv_timeout(deadline) {
            Ok(()) => Ok(true),
            Err(RecvTimeoutError::Timeout) => Ok(false),
            Err(RecvTimeoutError::Disconnected) => Err(Error::Closed),
        }
    }

    /// Replaces the client. What was taken from it and not sent on is dropped, and read again.
    pub(super) fn replace_client(&mut self, reason: &str, old: Old) -> Result<(), Error> {
        let ours = self.partitions();
        self.release(&ours);
        self.pending.clear();
        self.batch.clear();
        self.paused = false;
        self.unanswered_since = None;
        self.commit_in_flight = InFlight::No;
        self.watchdog.excuse();
        let new = Client::new(&self.parts.properties).map_err(Error::Client)?;
        let replaced = std::mem::replace(&mut self.client, new);
        self.ids_seen = 0;
        match old {
            Old::Closed => drop(replaced),
            Old::Abandoned => drop(std::thread::Builder::new().name("kafka-close".into()).spawn(|| drop(replaced))),
        }
        self.discover_at = Instant::now();
        self.trouble = Some(reason.to_owned());
        self.join()
    }

    /// Tells the group what became durable since the last time.
    pub(super) fn commit_durable(&mut self) {
        self.say_unanswered();
        // One at a time: of two, the older one could arrive last.
        if Instant::now() < self.commit_at || self.commit_in_flight == InFlight::Yes {
            return;
        }
        let commits = {
            let durable = self.parts.gauges.durable();
            if durable.version == self.version && self.slots.iter().all(|slot| slot.committed >= 0) {
                return;
            }
            self.version = durable.version;
            self.commits(&durable.state, |slot, next| slot.committed < next)
        };
        if commits.is_empty() {
            return;
        }
        match self.client.commit_async(&commits) {
            Ok(()) => {
                self.commit_in_flight = InFlight::Yes;
                self.unanswered_since.get_or_insert_with(|| (Instant::now(), Said::No));
                for commit in commits {
                    if let Some(slot) = self.slots.iter_mut().find(|slot| slot.partition == commit.partition) {
                        slot.committed = commit.offset;
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "cannot send a commit; it is sent again"),
        }
    }

    fn say_unanswered(&mut self) {
        if let Some((since, said @ Said::No)) = &mut self.unanswered_since
            && since.elapsed() > Duration::from_mins(1)
        {
            *said = Said::Yes;
            tracing::warn!(
                "the group has acknowledged no commit for a minute; another owner would repeat what was written since"
            );
        }
    }

    fn commits(&self, state: &State, wanted: impl Fn(&Slot, i64) -> bool) -> Vec<Commit> {
        self.slots
            .iter()
            .filter_map(|slot| {
                let durable = state.partitions.get(&slot.partition)?;
                wanted(slot, durable.next).then(|| self.commit_of(&slot.partition, durable, state.number))
            })
            .collect()
    }

    pub(super) fn commit_of(&self, partition: &TopicPartition, durable: &PartitionState, number: u64) -> Commit {
        let (home, incarnation) = self.parts.home.clone();
        let owner = Owner { home, incarnation, number, topic_id: durable.topic_id.clone() };
        Commit {
            partition: partition.clone(),
            offset: durable.next,
            leader_epoch: durable.leader_epoch,
            metadata: owner.to_string(),
        }
    }

    /// Commits the durable offsets of these partitions and waits for the answer; asks again until there is no time left.
    pub(super) fn commit_now(&mut self, partitions: &[TopicPartition], patience: Duration) {
        let commits = {
            let durable = self.parts.gauges.durable();
            self.commits(&durable.state, |slot, _| partitions.contains(&slot.partition))
        };
        let deadline = Instant::now() + patience;
        // One that is still on its way could arrive after this one, and take it back.
        while self.commit_in_flight == InFlight::Yes && Instant::now() < deadline {
            if self.client.answered(deadline.saturating_duration_since(Instant::now())).is_some() {
                self.commit_in_flight = InFlight::No;
            }
        }
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let answers = self.client.commit(&commits, left);
            match answers.and_then(|answers| answers.into_iter().collect::<Result<Vec<_>, _>>()) {
                Ok(_) => return,
                Err(error) if left.is_zero() => {
                    tracing::warn!(%error, "the group did not take the last commit; the next owner may repeat what was written since");
                    return;
                }
                Err(error) => {
                    tracing::debug!(%error, "the group did not take a commit");
                    std::thread::park_timeout(left.min(Duration::from_millis(200)));
                }
            }
        }
    }
}
