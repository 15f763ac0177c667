//! The group's side of the consumer: assignments, revocations and commits.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};

use super::outcome::Leaving;
use super::seals::Rejoin;
use super::slot::Slot;
use super::watchdog::Old;
use super::{Code, Consumer, Error, Failed, InFlight, REQUEST_TIMEOUT, RETRY, Reassigned, Said};
use crate::config::Assignment;
use crate::delivery::{Finish, Inbox};
use crate::fault;
use crate::msource::TopicPartition;
use crate::msource::assignment::{Carried, Owner};
use crate::msource::journal::{Mark, PartitionState, Position, State};
use crate::msource::native::{Client, Commit, Event, GroupOffset, KafkaError, Protocol};
use crate::msource::properties::brokers_assign;

/// Longest pause before a client that failed is replaced.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// How long a revoked partition's blocks may take; less when `max.poll.interval.ms` is below its default of five minutes.
const REVOKE_DEADLINE: Duration = Duration::from_mins(1);

impl Consumer {
    pub(super) fn events(&mut self) -> Result<(), Error> {
        // Before this pass's events: an assignment that librdkafka only passes on its way into the next generation is over by then.
        let without = self.share.is_nothing(self.client.group_step());
        self.parts.desk.without_share.store(without, Ordering::Relaxed);
        while let Some(event) = self.client.next_event() {
            match event {
                // What librdkafka has assigned since it failed it takes for revoked.
                Event::Assign(_) if self.failed.is_some() => {}
                Event::Assign(partitions) => self.assigned(partitions),
                Event::Revoke(partitions) => self.revoked(&partitions)?,
                Event::Error(error) => self.in_trouble_by(error.code, error.text),
            }
        }
        while let Some(answer) = self.client.commit_answer(Duration::ZERO) {
            let sent = std::mem::replace(&mut self.commit_in_flight, InFlight::No);
            match answer {
                Ok(()) => (self.unanswered_since, self.stranger_since) = (None, None),
                Err(error) => {
                    tracing::debug!(%error, "the group refused a commit; it is sent again");
                    self.commit_refused(sent, &error);
                    for slot in &mut self.slots {
                        slot.committed = -1;
                    }
                    self.commit_at = Instant::now() + RETRY;
                }
            }
        }
        if let Some(error) = self.client.fatal_error() {
            self.client_failed(&error);
        }
        if !self.parts.desk.stopping() {
            self.replace_client()?;
        }
        if self.failed.is_none() && Instant::now() >= self.discover_at {
            match self.parts.config.assignment {
                Assignment::All => self.discover(),
                Assignment::Group if self.subscription.is_by_name() => self.subscribe_by_name(),
                Assignment::Group => {}
            }
        }
        Ok(())
    }

    pub(super) fn assigned(&mut self, partitions: Vec<TopicPartition>) {
        tracing::info!(count = partitions.len(), "the group assigned partitions");
        (self.retry_pause, self.stranger_since) = (RETRY, None);
        if self.commit_in_flight == InFlight::Yes {
            self.commit_in_flight = InFlight::Outdated;
        }
        if self.is_of_old_topics(&partitions) {
            return;
        }
        let none = partitions.is_empty();
        self.pending.extend(partitions);
        self.retry_at = Instant::now();
        // What was sent before now is part of what they stand for.
        self.settling = None;
        if !none {
            fault::point("assign.told");
        }
        if none || brokers_assign(&self.parts.config) {
            // In the new protocol they are not ours before the group has heard that they are taken.
            self.answer_without();
        } else {
            self.unanswered.told(Instant::now());
        }
        if self.slots.is_empty() && self.pending.is_empty() {
            self.share.leaves_nothing();
            self.trouble.over();
        } else {
            self.not_without_share();
        }
    }

    /// Gives partitions back: finished, checkpointed and committed, unless they were lost already.
    fn revoked(&mut self, partitions: &[TopicPartition]) -> Result<(), Error> {
        let lost = self.may_be_lost();
        tracing::info!(count = partitions.len(), lost, "the group revoked partitions");
        self.stranger_since = None;
        self.not_without_share();
        self.pending.retain(|partition| !partitions.contains(partition));
        self.unanswered.end();
        let ours: Vec<_> = self.partitions().into_iter().filter(|partition| partitions.contains(partition)).collect();
        if lost {
            fault::point("revoke.lost");
        } else if !ours.is_empty() {
            fault::point("revoke.told");
            self.hand_over(&ours)?;
        }
        self.release(&ours);
        if !lost && !ours.is_empty() {
            fault::point("revoke.released");
        }
        let answer = match self.client.protocol() {
            Protocol::Cooperative => self.client.incremental_unassign(&ours),
            Protocol::Eager => self.client.unassign(),
        };
        Self::log_answer(answer);
        if !lost && !ours.is_empty() {
            fault::point("revoke.answered");
        }
        let kept = self.partitions();
        self.rewind(&kept);
        self.joins_after_revocation();
        Ok(())
    }

    /// Finishes what was taken of these partitions and commits it. What cannot be written in time is left to the next owner.
    fn hand_over(&mut self, ours: &[TopicPartition]) -> Result<(), Error> {
        for number in 0..self.slots.len() {
            if ours.contains(&self.slots[number].partition) {
                self.cut(number)?;
            }
        }
        fault::point("revoke.cut");
        // The group replaces a member that takes longer than this to answer.
        let most = self.parts.max_poll_interval;
        let patience = REVOKE_DEADLINE.min(most / 3);
        if self.hides() {
            self.leaving = Leaving::Yes;
            let published = self.barrier(Finish::Hidden(ours.to_vec()), patience)?;
            self.leaving = Leaving::No;
            if !published {
                tracing::warn!(
                    ?patience,
                    "could not publish the revoked partitions in time; the next owner reads them again"
                );
            }
            fault::point("revoke.committed");
            return Ok(());
        }
        if !self.barrier(Finish::No, patience)? {
            for partition in ours {
                self.parts.tracker.end(partition);
            }
            // Blocks that are not begun are dropped now; what is in the files has to be durable before it is committed.
            if self.barrier(Finish::No, patience / 4)? {
                tracing::warn!(
                    ?patience,
                    "could not write all blocks of the revoked partitions in time; the next owner reads the rest"
                );
            } else {
                tracing::error!(
                    ?patience,
                    "could not save the revoked partitions in time; the next owner may repeat what was written last"
                );
            }
        }
        fault::point("revoke.durable");
        self.commit_now(ours, REQUEST_TIMEOUT.min(most / 6));
        fault::point("revoke.committed");
        Ok(())
    }

    /// Nobody knows who has the partitions that are not ours.
    fn not_without_share(&mut self) {
        self.share.is_unknown();
        self.parts.desk.without_share.store(false, Ordering::Relaxed);
    }

    pub(super) fn log_answer(answer: Result<(), KafkaError>) {
        if let Err(error) = answer {
            tracing::error!(%error, "librdkafka refused the answer to a rebalance");
        }
    }

    /// Ends the assignment of partitions; what is open of them is dropped.
    pub(super) fn release(&mut self, partitions: &[TopicPartition]) {
        (self.settling, self.standing, self.publishing) = (None, None, None);
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
        if self.slots.is_empty() {
            self.unanswered_since = None;
        }
        self.parts.desk.partitions.store(self.slots.len(), Ordering::Relaxed);
    }

    /// Waits until everything sent so far is durable; returns whether it became so in time.
    pub(super) fn barrier(&mut self, finish: Finish, deadline: Duration) -> Result<bool, Error> {
        let answered = self.send_barrier(finish)?;
        Ok(self.answered(&answered, deadline)?.is_some())
    }

    /// Asks for everything sent so far to become durable.
    pub(super) fn send_barrier(&self, finish: Finish) -> Result<Receiver<()>, Error> {
        let (reply, answered) = bounded(1);
        let before = self.parts.tickets.next();
        self.parts.inbox.send(Inbox::Checkpoint { before, finish, reply }).map_err(|_| Error::Closed)?;
        Ok(answered)
    }

    /// Replaces the client at once. What was taken from it and not sent on is dropped, and read again. One that has failed is
    /// replaced when that is due, and not before: it may not take its name back from another process.
    pub(super) fn renew_client(&mut self, reason: &str, old: Old) -> Result<(), Error> {
        if self.failed.is_some() || self.client.fatal_error().is_some() {
            return Ok(());
        }
        self.trouble.over();
        self.in_trouble_quietly(reason.to_owned());
        self.renew(old)
    }

    fn renew(&mut self, old: Old) -> Result<(), Error> {
        let ours = self.partitions();
        self.release(&ours);
        self.pending.clear();
        self.paused = false;
        self.failed = None;
        (self.unanswered_since, self.stranger_since, self.disagreed_since) = (None, None, None);
        self.commit_in_flight = InFlight::No;
        self.rejoin = Rejoin::No;
        self.reassigned = Reassigned::No;
        self.unanswered.end();
        self.static_member.begins_again();
        self.not_without_share();
        self.watchdog.excuse();
        self.check_left()?;
        let new = Client::new(&self.parts.properties).map_err(Error::Client)?;
        let replaced = std::mem::replace(&mut self.client, new);
        self.ids_seen = 0;
        self.left.push(replaced.remains());
        match old {
            Old::Closed => drop(replaced),
            Old::Abandoned => replaced.abandon(),
        }
        self.count_left();
        self.subscribe()
    }

    /// The client can do nothing any more: nothing is ours, and it is replaced after a pause.
    fn client_failed(&mut self, error: &KafkaError) {
        if self.failed.is_some() {
            return;
        }
        self.note_right(error.code);
        let ours = self.partitions();
        self.release(&ours);
        self.pending.clear();
        self.unanswered.end();
        self.paused = false;
        // To join again is decided by what the client failed of, and not by a commit that it refused for that.
        self.rejoin = Rejoin::No;
        self.not_without_share();
        let name = &self.parts.config.instance_id;
        self.in_trouble(match error.code {
            Code::FencedInstanceId => format!("the group says that another process joined it as `{name}`: asking it whether that is so"),
            Code::UnreleasedInstanceId => format!(
                "the group still has a member `{name}`: waiting until its session ends, or until a process of the same `kafka.instance_id` has left"
            ),
            _ => format!("the Kafka client failed for good, making a new one: {error}"),
        });
        let pause = if error.code == Code::FencedInstanceId { Duration::ZERO } else { self.retry_pause };
        self.failed = Some(Failed { code: error.code, again: Instant::now() + pause });
        self.retry_pause = match error.code {
            Code::UnreleasedInstanceId => RETRY,
            _ => (self.retry_pause * 2).min(LONGEST_RETRY),
        };
    }

    /// Makes a new client in place of one that failed, when it is time.
    fn replace_client(&mut self) -> Result<(), Error> {
        let Some(Failed { code, .. }) = self.failed.filter(|failed| Instant::now() >= failed.again) else {
            return Ok(());
        };
        if code == Code::FencedInstanceId && self.is_name_taken() {
            self.failed = Some(Failed { code, again: Instant::now() + RETRY });
            return Ok(());
        }
        self.renew(Old::Closed)
    }

    /// Tells the group what became durable since the last time.
    pub(super) fn commit_durable(&mut self) {
        if self.hides() {
            // No other commit may go to the group where it decides about files.
            return;
        }
        self.say_unanswered();
        // One at a time: of two, the older one could arrive last. And librdkafka stamps a commit with the membership that it
        // has when it sends it: what was lost must not be committed as if it were of the next one.
        let waits = self.commit_in_flight != InFlight::No || Instant::now() < self.commit_at;
        if waits || self.may_be_lost() {
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
        // Together with a topic that may not be read, librdkafka would report all others as refused, too.
        self.slots
            .iter()
            .filter(|slot| !self.rights.denies(&slot.partition.topic))
            .filter_map(|slot| {
                let durable = state.partitions.get(&slot.partition)?;
                let PartitionState { topic_id, next, leader_epoch, .. } = durable.clone();
                let partition = slot.partition.clone();
                let at = Position { partition, topic_id, next, leader_epoch };
                wanted(slot, durable.next).then(|| self.commit_of(&at, state.number))
            })
            .collect()
    }

    /// Remembers what stands beside the group's offset, to be carried on in every commit: the owners before us, and how many
    /// partitions the topic was begun with, until all of its partitions were looked at.
    pub(super) fn carry_on(&mut self, partition: &TopicPartition, topic_id: &str, group: Option<&GroupOffset>) {
        let owner = group.and_then(|group| group.metadata.parse::<Owner>().ok());
        if let Some(count) = owner.and_then(|owner| owner.partitions) {
            self.begun_with.entry(Arc::clone(&partition.topic)).or_insert(count);
        }
        let carried = Carried::of(group, topic_id, (&self.parts.home.0, self.parts.home.1));
        self.carried.insert(partition.clone(), carried);
    }

    /// The commit of a place from which on everything is read.
    pub(super) fn commit_from(&mut self, at: &Position) -> Commit {
        self.carried.entry(at.partition.clone()).or_default().begins_at(at.next);
        self.commit_of(at, 0)
    }

    /// Our own mark with this number.
    pub(super) fn mark(&self, number: u64) -> Mark {
        let (home, incarnation) = self.parts.home.clone();
        Mark { home, incarnation, number }
    }

    pub(super) fn commit_of(&self, at: &Position, number: u64) -> Commit {
        let Carried { previous, since } = self.carried.get(&at.partition).cloned().unwrap_or_default();
        let owner = Owner {
            mark: self.mark(number),
            topic_id: at.topic_id.clone(),
            partitions: self.begun_with.get(&at.partition.topic).copied(),
            since,
            previous,
        };
        Commit {
            partition: at.partition.clone(),
            offset: at.next,
            leader_epoch: at.leader_epoch,
            metadata: owner.to_string(),
        }
    }

    /// Commits the durable offsets of these partitions and waits for the answer; asks again until there is no time left, or
    /// we are a member no more.
    pub(super) fn commit_now(&mut self, partitions: &[TopicPartition], patience: Duration) {
        let commits = {
            let durable = self.parts.gauges.durable();
            self.commits(&durable.state, |slot, _| partitions.contains(&slot.partition))
        };
        let deadline = Instant::now() + patience;
        // One that is still on its way could arrive after this one, and take it back.
        while self.commit_in_flight != InFlight::No && Instant::now() < deadline {
            if self.client.commit_answer(deadline.saturating_duration_since(Instant::now())).is_some() {
                self.commit_in_flight = InFlight::No;
            }
        }
        while !commits.is_empty() && !self.may_be_lost() {
            let left = deadline.saturating_duration_since(Instant::now());
            let answers = self.client.commit(&commits, left);
            let Err(error) = answers.and_then(|answers| answers.into_iter().collect::<Result<Vec<_>, _>>()) else {
                return;
            };
            if left.is_zero() || !is_member(&error) {
                tracing::warn!(%error, "the group did not take the last commit; the next owner may repeat what was written since");
                return;
            }
            tracing::debug!(%error, "the group did not take a commit");
            std::thread::park_timeout(left.min(Duration::from_millis(200)));
        }
    }
}

/// Whether the group may still take a commit after this answer, in the generation that this member knows.
pub(super) fn is_member(error: &KafkaError) -> bool {
    let over = [Code::UnknownMemberId, Code::FencedInstanceId, Code::FencedMemberEpoch, Code::IllegalGeneration];
    !over.contains(&error.code)
}
