//! Topics that end while they are read: deleted, and perhaps created again under the same name.
//!
//! **Promise.** Nothing of the new topic mixes with the old one, and it is read from its first record. What was hidden of the old
//! one is in nobody's reach any more: a running service publishes it while the group still takes its offsets; one that
//! was killed cannot tell whether another owner had it too, since the group forgets its offsets with the topic, and sets
//! the files aside. Neither is silent.
//!
//! **What it does not do.** Brokers before 2.8 have no ids of topics: then a new topic shows only where its offsets do not fit.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use rdkafka::types::RDKafkaErrorCode as Code;

use super::slot::{Fetch, Slot};
use super::topic_ids::{Meaning, Said};
use super::watchdog::Old;
use super::{Consumer, Error, REQUEST_TIMEOUT, Reassigned};
use crate::config::Assignment;
use crate::delivery::{Finish, Inbox, Verdict};
use crate::msource::TopicPartition;
use crate::msource::assignment::{Held, judge};
use crate::msource::journal::State;
use crate::msource::native::{Client, GroupOffset, KafkaError};

/// What has become of the topics of some partitions.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Topics {
    /// They are there.
    There,
    /// Something was set aside: look once more.
    SetAside,
    /// Nobody can tell of these.
    Unknown(Vec<(TopicPartition, KafkaError)>),
}

impl Consumer {
    /// Finds partitions of a topic that was deleted and created again since they were begun. To be called for each batch
    /// that was taken, before any of it is used.
    pub(super) fn notice_new_topics(&mut self) {
        let changes = self.client.id_changes();
        if changes == self.ids_seen {
            return;
        }
        self.ids_seen = changes;
        for slot in &mut self.slots {
            if slot.fetch != Fetch::Stale && is_other(&self.client, &slot.partition, &slot.topic_id) {
                slot.fetch = Fetch::Stale;
                // What was asked for before does not stand for this one.
                (self.standing, self.publishing) = (None, None);
            }
        }
    }

    /// Gives partitions up whose topic was created again. The client is replaced as well: it would hold the new topic's leader
    /// epochs, which begin again, for outdated.
    pub(super) fn leave_old_topics(&mut self) -> Result<(), Error> {
        let is_none = self.slots.iter().all(|slot| slot.fetch != Fetch::Stale);
        if is_none || Instant::now() < self.retry_at || self.reassigned != Reassigned::No {
            return Ok(());
        }
        for number in 0..self.slots.len() {
            self.cut(number)?;
        }
        if self.publishing.is_none() {
            if !self.settled()? {
                return Ok(());
            }
            let gone = self.slots.iter().filter(|slot| slot.fetch == Fetch::Stale);
            let gone: Vec<_> = gone.map(|slot| slot.partition.clone()).collect();
            // Nobody can read again what is hidden of the old topic: it is published while the group still takes its offsets.
            self.publishing = if self.hides() { Some(self.send_barrier(Finish::Hidden(gone))?) } else { None };
        }
        if let Some(published) = self.publishing.take()
            && self.answered_soon(&published)?.is_none()
        {
            self.publishing = Some(published);
            return Ok(());
        }
        let (old, others): (Vec<&Slot>, Vec<&Slot>) = self.slots.iter().partition(|slot| slot.fetch == Fetch::Stale);
        for slot in old {
            tracing::error!(partition = %slot.partition, offset = slot.next, "the topic was deleted and created again while it was read");
        }
        let others: Vec<_> = others.into_iter().map(|slot| slot.partition.clone()).collect();
        if self.parts.config.assignment == Assignment::Group && !others.is_empty() && !self.hides() {
            self.commit_now(&others, REQUEST_TIMEOUT);
        }
        self.renew_client("a topic was deleted and created again", Old::Closed)
    }

    /// Sets files aside that hide lines of a topic that is no more, unless the group has taken them. Nobody can read those
    /// records again.
    pub(super) fn set_aside_of_gone_topics(&mut self, partitions: &[TopicPartition]) -> Result<Topics, Error> {
        if self.parts.config.assignment == Assignment::All {
            return Ok(Topics::There);
        }
        let state = self.parts.gauges.durable().state.clone();
        let hidden: Vec<_> = partitions.iter().filter(|partition| state.is_hidden(partition)).cloned().collect();
        let (found, unknown) = self.of_gone_topics(&state, hidden);
        for partition in &found {
            tracing::error!(%partition, "the topic was deleted before the group took what was hidden of it");
            self.set_aside(&state, partition)?;
        }
        Ok(match (found.is_empty(), unknown.is_empty()) {
            (false, _) => Topics::SetAside,
            (true, true) => Topics::There,
            (true, false) => Topics::Unknown(unknown),
        })
    }

    /// Those of these partitions, of which something is hidden, whose topic is no more; and those of which nobody can tell.
    fn of_gone_topics(
        &mut self,
        state: &State,
        hidden: Vec<TopicPartition>,
    ) -> (Vec<TopicPartition>, Vec<(TopicPartition, KafkaError)>) {
        let names: BTreeSet<String> = hidden.iter().map(|partition| partition.topic.to_string()).collect();
        let names: Vec<_> = names.into_iter().collect();
        let (mut gone, mut unknown) = (Vec::new(), Vec::new());
        if names.is_empty() {
            return (gone, unknown);
        }
        let answers = self.client.describe_topics(&names, REQUEST_TIMEOUT);
        let answers = answers.unwrap_or_else(|error| vec![Err(error); names.len()]);
        let infos: HashMap<String, _> = names.into_iter().zip(answers).collect();
        for partition in hidden {
            let old = state.partitions.get(&partition).map_or("", |here| here.topic_id.as_str());
            if old.is_empty() {
                continue;
            }
            let said = match &infos[&*partition.topic] {
                Ok(info) => Said::Id(info.id.clone()),
                Err(error) if error.code == Code::UnknownTopicOrPartition => Said::NoTopic,
                Err(error) => {
                    unknown.push((partition, error.clone()));
                    continue;
                }
            };
            // Brokers that have no ids any more may still have the topic.
            let is_told = said != Said::Id(String::new());
            match self.topics.hear(&partition, &[old], said, Instant::now()) {
                Meaning::Lasting if is_told => {
                    self.topics.bury(old);
                    gone.push(partition);
                }
                Meaning::Known | Meaning::Lasting => {}
                Meaning::Doubtful(error) => unknown.push((partition, error)),
            }
        }
        if gone.is_empty() {
            return (gone, unknown);
        }
        // What the group has taken after all is published in the ordinary way.
        let offsets = self.client.committed(&gone, REQUEST_TIMEOUT);
        let offsets = offsets.unwrap_or_else(|error| vec![Err(error); gone.len()]);
        let is_taken = |partition: &TopicPartition, group: Option<&GroupOffset>| {
            let base = state.partitions.get(partition).and_then(|here| here.mark.as_ref());
            state
                .prepared(partition)
                .next()
                .is_some_and(|(mark, range)| judge(&mark, range, base, group, Held::ByUs) == Verdict::Committed)
        };
        let mut rest = Vec::new();
        for (partition, group) in gone.into_iter().zip(offsets) {
            match group {
                Ok(group) if is_taken(&partition, group.as_ref()) => {}
                Ok(_) => rest.push(partition),
                Err(error) => unknown.push((partition, error)),
            }
        }
        (rest, unknown)
    }

    /// Sets aside what is hidden of a partition. It is not ours: an assignment that lasts until its files are prepared lets
    /// them be, and [`Consumer::serve_seals`] knows that nobody can decide about them.
    fn set_aside(&mut self, state: &State, partition: &TopicPartition) -> Result<(), Error> {
        let prepared: Vec<u64> = state.prepared(partition).map(|(mark, _)| mark.number).collect();
        for number in prepared {
            let partition = partition.clone();
            let decided = Inbox::Decided { number, partition, verdict: Verdict::Undecided, reply: None };
            self.parts.inbox.send(decided).map_err(|_| Error::Closed)?;
        }
        if !self.barrier(Finish::No, REQUEST_TIMEOUT)? {
            return Ok(());
        }
        let next = state.partitions.get(partition).map_or(0, |here| here.next);
        if self.parts.tracker.begin(partition.clone(), next).is_none() {
            return Ok(());
        }
        let done = self.barrier(Finish::Hidden(vec![partition.clone()]), REQUEST_TIMEOUT);
        self.parts.tracker.end(partition);
        done.map(drop)
    }
}

/// Whether the client fetches another topic of this name.
pub(super) fn is_other(client: &Client, partition: &TopicPartition, topic_id: &str) -> bool {
    !topic_id.is_empty() && client.topic_id(&partition.topic).is_some_and(|id| id != topic_id)
}
