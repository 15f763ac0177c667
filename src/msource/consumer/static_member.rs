//! A static member of a classic group that comes back within its session.
//!
//! The coordinator gives it the partitions that it had, and makes no rebalance: not when it subscribes to other topics by now, nor
//! when partitions have no owner because it died while it was giving them up.
//!
//! **Promise.** What is not as it should be then is noticed, and the group is left and joined again, which gives everybody's
//! partitions out from scratch. A topic that is configured no more is not read. What was being read is given up like in any
//! revocation first.
//!
//! Another process may take the name, which ends this member; it stays away while the other has it. A member that gave itself
//! up sooner than the group did is ended in the same way, because librdkafka goes on to speak for it without its id. Then the
//! group still knows it by the id that it had, and it joins again at once.
//!
//! A member that the group does not know yet was given nothing before, and does not look: while another member gives partitions
//! up, which may take a minute, they have no owner either.
//!
//! **What it does not do.** It looks once after a start. Later on, whatever changes the topics is a rebalance anyway: the
//! group's leader sees to it. With KIP-848 the broker does.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::starts::is_meant;
use super::{Consumer, RETRY, next_question};
use crate::config::{Assignment, Kafka};
use crate::msource::TopicPartition;
use crate::msource::native::{Coordinator, KafkaError};
use crate::msource::properties;

/// How long the revocation may take that follows from leaving the group. After that it is joined whether it came or not.
const LEAVE: Duration = Duration::from_mins(1);

/// Bound on a question about the group, which connects to its coordinator first.
const ASK: Duration = Duration::from_secs(3);

/// How often the group is asked before it is taken as it is.
const LOOKS: u32 = 10;

/// How long partitions must be without an owner: in a cooperative rebalance some are, between its two halves.
const ORPHANED: Duration = Duration::from_secs(3);

/// See the module.
#[derive(Debug)]
pub(super) enum StaticMember {
    /// There is nothing to look at: it is none, or it was looked at.
    Settled,
    /// The group has given it nothing since its start, and may know it from before.
    New,
    /// The group did not know it when it joined.
    Unknown,
    /// The group is to be asked what it has given to whom.
    Look(Look),
    /// It leaves the group, and joins it when what it had is revoked, or at this time.
    Leaves(Instant),
}

/// When the group is asked next, and what was found.
#[derive(Debug)]
pub(super) struct Look {
    at: Instant,
    left: u32,
    /// Partitions without an owner, and since when.
    orphans: Option<(BTreeSet<TopicPartition>, Instant)>,
}

/// What the assignment of a static member leads to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Given {
    /// It is taken.
    Taken,
    /// It is of topics that are not configured any more, such as this one.
    OfOldTopics(TopicPartition),
}

impl StaticMember {
    pub(super) fn of(kafka: &Kafka) -> Self {
        let is_one = kafka.assignment == Assignment::Group && !kafka.instance_id.is_empty();
        if is_one && !properties::brokers_assign(kafka) { Self::New } else { Self::Settled }
    }

    /// The group gives these partitions.
    fn given(&mut self, partitions: &[TopicPartition], topics: &[String], now: Instant) -> Given {
        *self = match self {
            Self::New => Self::Look(Look { at: now + RETRY, left: LOOKS, orphans: None }),
            // Brokers before 2.4 do not name static members: what it is given is looked at all the same.
            Self::Unknown => Self::Settled,
            _ => return Given::Taken,
        };
        let other = partitions.iter().find(|partition| !is_meant(topics, &partition.topic));
        other.map_or(Given::Taken, |other| Given::OfOldTopics(other.clone()))
    }

    /// A new client joins: what the one before it was about to leave may be given to it again.
    pub(super) fn begins_again(&mut self) {
        if let Self::Leaves(_) = self {
            *self = Self::New;
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        matches!(self, Self::Look(look) if now >= look.at)
    }

    /// Takes an answer of the group: partitions of our topics that it has given to nobody, or nothing while it is changing that.
    /// Returns one that is without an owner for good.
    fn looked(
        &mut self,
        orphans: Option<BTreeSet<TopicPartition>>,
        now: Instant,
        next: Instant,
    ) -> Option<TopicPartition> {
        let Self::Look(look) = self else { return None };
        (look.at, look.left) = (next, look.left.saturating_sub(1));
        match orphans {
            Some(orphans) if orphans.is_empty() => *self = Self::Settled,
            Some(orphans) => {
                let before = look.orphans.take().filter(|(before, _)| *before == orphans);
                let since = before.map_or(now, |(_, since)| since);
                if now.duration_since(since) >= ORPHANED {
                    return orphans.into_iter().next();
                }
                look.orphans = Some((orphans, since));
            }
            None => look.orphans = None,
        }
        if let Self::Look(Look { left: 0, .. }) = self {
            tracing::warn!(
                "could not find out whether every partition has an owner since this member was started: taking the group as it is"
            );
            *self = Self::Settled;
        }
        None
    }
}

impl Consumer {
    /// Asks, before it joins the group, whether that knows it still.
    pub(super) fn look_before_joining(&mut self) {
        if matches!(self.static_member, StaticMember::New) && self.member_of_our_name() == Ok(None) {
            self.static_member = StaticMember::Unknown;
        }
    }

    /// Whether another process may have our name in the group. To join would take the name away from it, which would take it
    /// back: both would repeat records.
    pub(super) fn is_name_taken(&mut self) -> bool {
        match self.member_of_our_name() {
            Ok(None) => false,
            Ok(Some(id)) if self.client.had_member_id(&id) => {
                tracing::info!(member = id, "the group still knows this member by its old id: joining again");
                false
            }
            Ok(Some(_)) => {
                let name = &self.parts.config.instance_id;
                self.in_trouble(format!(
                    "another process joined the group as `{name}`: give each its own `kafka.instance_id`; waiting until it has left"
                ));
                true
            }
            Err(error) => {
                let name = &self.parts.config.instance_id;
                let text = format!("cannot find out whether another process has joined the group as `{name}`: {error}");
                self.in_trouble_by(error.code, text);
                true
            }
        }
    }

    fn member_of_our_name(&self) -> Result<Option<String>, KafkaError> {
        self.coordinator().member_named(&self.parts.config.instance_id, ASK)
    }

    pub(super) fn coordinator(&self) -> Coordinator {
        Coordinator::new(properties::asking(&self.parts.config))
    }

    /// Whether an assignment is one of before this start, of topics that are not configured any more. The group is left then.
    pub(super) fn is_of_old_topics(&mut self, partitions: &[TopicPartition]) -> bool {
        let given = self.static_member.given(partitions, &self.parts.config.topics, Instant::now());
        let Given::OfOldTopics(partition) = given else { return false };
        tracing::warn!(%partition, "the group gave partitions of a topic that is not in kafka.topics any more: joining it again");
        self.answer_without();
        self.leave();
        true
    }

    /// Looks, once after a start, whether the group has given every partition of our topics to some member; joins it again when
    /// it has not, or when the time has come to do so.
    pub(super) fn look_at_membership(&mut self) {
        let now = Instant::now();
        // Another client joins in place of one that has failed.
        if self.failed.is_some() {
            return;
        }
        if let StaticMember::Leaves(until) = self.static_member
            && now >= until
        {
            self.join_again();
        }
        if !self.static_member.is_due(now) || self.unanswered.is_waiting() {
            return;
        }
        let orphans = self.orphans();
        let next = next_question(now, RETRY);
        let orphans = orphans.unwrap_or_else(|error| {
            tracing::debug!(%error, "cannot find out what the group has given to whom");
            None
        });
        if let Some(partition) = self.static_member.looked(orphans, Instant::now(), next) {
            tracing::warn!(%partition, "a partition of our topics has no owner since this member was started within its session: joining the group again");
            self.leave();
        }
    }

    /// Partitions of our topics that no member of the group has; `None` while it is changing that.
    fn orphans(&self) -> Result<Option<BTreeSet<TopicPartition>>, KafkaError> {
        let Some(assigned) = self.coordinator().assigned(ASK)? else { return Ok(None) };
        let all = self.partitions_of_topics(RETRY)?;
        Ok(Some(all.into_iter().filter(|partition| !assigned.contains(partition)).collect()))
    }

    fn leave(&mut self) {
        // librdkafka revokes nothing when nothing is assigned.
        let patience = if self.parts.desk.without_share.load(Ordering::Relaxed) { RETRY } else { LEAVE };
        self.static_member = match self.client.unsubscribe() {
            Ok(()) => StaticMember::Leaves(Instant::now() + patience),
            Err(error) => {
                tracing::error!(%error, "cannot leave the group");
                StaticMember::New
            }
        };
    }

    /// What was given up is revoked: the group is joined once more if it was left for that.
    pub(super) fn joins_after_revocation(&mut self) {
        if self.failed.is_none()
            && let StaticMember::Leaves(_) = self.static_member
        {
            self.join_again();
        }
    }

    fn join_again(&mut self) {
        self.static_member = StaticMember::Settled;
        if let Err(error) = self.client.subscribe(&self.parts.config.topics) {
            self.in_trouble_by(error.code, format!("cannot subscribe: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(topic: &str, partition: i32) -> TopicPartition {
        TopicPartition { topic: topic.into(), partition }
    }

    #[test]
    fn the_first_assignment_of_topics_that_are_not_configured_any_more_is_not_taken() {
        let topics = ["a".to_owned(), "^b".to_owned()];
        let now = Instant::now();
        let given = |partitions: &[TopicPartition]| {
            let mut member = StaticMember::New;
            (member.given(partitions, &topics, now), member.given(&[of("c", 0)], &topics, now))
        };
        assert_eq!(given(&[of("a", 0), of("b1", 0)]), (Given::Taken, Given::Taken), "later ones are as the group says");
        assert_eq!(given(&[of("a", 0), of("c", 1)]).0, Given::OfOldTopics(of("c", 1)));
        let mut unknown = StaticMember::Unknown;
        assert_eq!(unknown.given(&[of("c", 0)], &topics, now), Given::OfOldTopics(of("c", 0)));
        assert!(matches!(unknown, StaticMember::Settled));
        assert_eq!(StaticMember::Settled.given(&[of("c", 0)], &topics, now), Given::Taken);
    }

    #[test]
    fn partitions_are_without_an_owner_only_when_that_lasts() {
        let begun = Instant::now();
        let some = |partitions: &[i32]| Some(partitions.iter().map(|partition| of("a", *partition)).collect());
        let look = |answers: &[(u64, Option<BTreeSet<TopicPartition>>)]| {
            let mut member = StaticMember::New;
            member.given(&[], &[], begun);
            let mut found = Vec::new();
            for (at, orphans) in answers {
                let now = begun + Duration::from_secs(*at);
                found.push(member.looked(orphans.clone(), now, now).map(|partition| partition.partition));
            }
            (found, matches!(member, StaticMember::Settled))
        };
        assert_eq!(look(&[(1, some(&[]))]), (vec![None], true));
        assert_eq!(look(&[(1, some(&[2])), (2, some(&[2])), (4, some(&[2]))]), (vec![None, None, Some(2)], false));
        let changes = [(1, some(&[2])), (2, None), (5, some(&[2])), (6, some(&[1, 2])), (8, some(&[1, 2]))];
        assert_eq!(look(&changes), (vec![None; 5], false));
        let never: Vec<_> = (0..u64::from(LOOKS)).map(|at| (at, None)).collect();
        assert!(look(&never).1, "a group that never says it is taken as it is");
    }
}
