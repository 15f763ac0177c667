//! The commit of hidden files: sent by the thread that serves the group, and judged when its answer was lost.
//!
//! librdkafka stamps a commit with the generation that it knows when it sends. It is sent here, between two looks at the
//! group's events, after a check that the assignment is not lost: so a generation in which the partition is another's never
//! carries our offsets. What the group refuses while the partition is ours is sent again until it is taken. An answer that
//! is *not known* (none in time, a connection that was cut) is neither: the request may still arrive, after other commits
//! even. So the client is given up with it and joins again. In that later generation no request of before is taken any more,
//! and the group's own word counts. Where it has not moved, the same commit is sent again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, select_biased};

use super::elsewhere::said_unconfigured;
use super::held::lasts;
use super::outcome::Outcome;
use super::topics::Topics;
use super::watchdog::Old;
use super::{Consumer, Error, IDLE_WAIT, PATIENCE, REQUEST_TIMEOUT, RETRY, Reassigned, Said, next_question};
use crate::config::{Assignment, Visibility};
use crate::delivery::{Asking, Inbox, Prepared, SealRequest, Verdict};
use crate::fault;
use crate::msource::TopicPartition;
use crate::msource::assignment::{Held, Hidden, settle};
use crate::msource::journal::{Mark, PartitionState, Position, State};
use crate::msource::native::{GroupOffset, KafkaError};

/// Bound on one commit. An answer that takes longer is not known.
const COMMIT_TIMEOUT: Duration = if cfg!(test) { Duration::from_secs(2) } else { Duration::from_secs(5) };

/// How often the group is asked about ranges of partitions that are not ours.
const LOOK: Duration = Duration::from_secs(5);

/// How long that may not be answered before it is said.
const TOO_LONG: Duration = Duration::from_mins(3);

/// A seal that the group is asked to take.
pub(super) struct Asked {
    number: u64,
    /// What it has not taken yet.
    open: Vec<Asking>,
    again: Instant,
}

/// Whether some of these may have been taken: librdkafka gives the error of one partition to those without one as well.
pub(super) fn is_hiding<T>(refused: &[(T, KafkaError)]) -> bool {
    refused.len() > 1 && refused.iter().any(|(_, error)| lasts(error))
}

/// What became of the judgement of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Judged {
    /// There is nothing to be done.
    Same,
    /// Something was taken back or published, so that where the partition stands is to be looked at again.
    Changed,
    /// It is not carried out yet: what comes next waits for that first.
    Waits,
    /// The group refuses its prepared range until the brokers are changed. It holds back no other partition.
    Held(KafkaError),
}

/// What became of the judgement of all partitions that are pending.
#[derive(Debug, Default)]
pub(super) struct PendingJudged {
    /// Whether something was taken back or published, so that where they stand is to be looked at again.
    pub(super) has_changed: bool,
    /// The group did not say what it has of these, or has refused what was prepared of them. They wait, and hold back no other.
    pub(super) held: Vec<(TopicPartition, KafkaError)>,
}

/// Whether the group is to be joined again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Rejoin {
    No,
    Due,
}

impl Consumer {
    /// Takes up a request and sends it, again if need be.
    pub(super) fn serve_seals(&mut self) -> Result<(), Error> {
        if self.asked.is_none() {
            let Ok(SealRequest { number, asking }) = self.parts.seals.try_recv() else { return Ok(()) };
            self.asked = Some(Asked { number, open: asking, again: Instant::now() });
        }
        let Some(mut asked) = self.asked.take() else { return Ok(()) };
        let lost = self.rejoin == Rejoin::Due || self.client.assignment_lost();
        // Another assignment of the same partition does not count: what was prepared before it is judged before it begins.
        let is_ours = |asking: &Asking| !lost && self.slots.iter().any(|slot| slot.is_of(asking));
        let (ours, gone): (Vec<_>, Vec<_>) = asked.open.drain(..).partition(is_ours);
        for asking in gone {
            let is_gone = self.topics.is_gone(&asking.position.topic_id);
            let verdict = if is_gone { Verdict::Undecided } else { Verdict::Open };
            self.let_go(asked.number, asking, verdict)?;
        }
        if ours.is_empty() {
            return Ok(());
        }
        // What is gone is let go of at once: were it given to us again before the next attempt, it would be sent after it
        // was judged.
        let may_be_lost = self.reassigned != Reassigned::No;
        if Instant::now() < asked.again || may_be_lost {
            asked.open = ours;
            self.asked = Some(asked);
            return Ok(());
        }
        let mut refused = self.commit_seal(asked.number, ours)?;
        if is_hiding(&refused) {
            refused = self.commit_each_topic(asked.number, refused)?;
        }
        for (asking, error) in refused {
            if lasts(&error) {
                // The others would wait with it: it stays prepared, and is asked about alone.
                self.given_up.push(asking.position.partition.clone());
                self.let_go(asked.number, asking, Verdict::Open)?;
            } else {
                asked.open.push(asking);
            }
        }
        if !asked.open.is_empty() {
            asked.again = Instant::now() + RETRY / 4;
            self.asked = Some(asked);
        }
        Ok(())
    }

    /// Sends the commit; returns what the group has refused, and why. When the answer is not known, the group is joined again.
    fn commit_seal(&mut self, number: u64, open: Vec<Asking>) -> Result<Vec<(Asking, KafkaError)>, Error> {
        let commits: Vec<_> = open.iter().map(|asking| self.commit_of(&asking.position, number)).collect();
        fault::point("seal.commit");
        let answers = self.client.commit(&commits, COMMIT_TIMEOUT);
        fault::point("seal.answered");
        let answers = answers.unwrap_or_else(|error| vec![Err(error); open.len()]);
        // Who gives some partitions up, and is no member any more, has lost the others too: it learns that only when it has
        // answered the revocation.
        let leaving = self.leaving;
        let (mut refused, mut unknown) = (Vec::new(), None);
        for (asking, answer) in open.into_iter().zip(answers) {
            match (Outcome::of(answer.as_ref().copied(), leaving), answer) {
                (Outcome::Taken, _) => self.tell(number, asking.position.partition, Verdict::Committed)?,
                (Outcome::Again, Err(error)) => {
                    self.note_refusal(&error);
                    self.said_unanswered(&asking.position.partition, number, &error);
                    refused.push((asking, error));
                }
                (outcome, answer) => {
                    if outcome == Outcome::Unknown {
                        unknown = answer.err();
                    }
                    // What came behind the seal ends with it.
                    self.let_go(number, asking, Verdict::Open)?;
                }
            }
        }
        if let Some(error) = unknown {
            tracing::warn!(number, %error, "it is not known whether the group took these offsets: joining it again to find out");
            for (asking, _) in refused.drain(..) {
                self.let_go(number, asking, Verdict::Open)?;
            }
            self.rejoin = Rejoin::Due;
        }
        if refused.is_empty() {
            (self.unanswered_since, self.stranger_since) = (None, None);
        }
        Ok(refused)
    }

    /// Sends it once more, topic by topic.
    fn commit_each_topic(
        &mut self,
        number: u64,
        refused: Vec<(Asking, KafkaError)>,
    ) -> Result<Vec<(Asking, KafkaError)>, Error> {
        let mut topics: BTreeMap<Arc<str>, Vec<Asking>> = BTreeMap::new();
        for (asking, _) in refused {
            topics.entry(Arc::clone(&asking.position.partition.topic)).or_default().push(asking);
        }
        let mut refused = Vec::new();
        for of_topic in topics.into_values() {
            if self.rejoin == Rejoin::No && !self.client.assignment_lost() {
                refused.append(&mut self.commit_seal(number, of_topic)?);
                continue;
            }
            for asking in of_topic {
                self.let_go(number, asking, Verdict::Open)?;
            }
        }
        Ok(refused)
    }

    fn said_unanswered(&mut self, partition: &TopicPartition, number: u64, error: &KafkaError) {
        let (since, said) = self.unanswered_since.get_or_insert_with(|| (Instant::now(), Said::No));
        tracing::debug!(%partition, number, %error, "the group has not taken the offsets of a seal yet");
        if *said == Said::No && since.elapsed() > Duration::from_secs(10) {
            *said = Said::Yes;
            tracing::warn!(%partition, number, %error, "the group does not take offsets: files stay hidden, and nothing is written until it does");
        }
    }

    /// Joins the group again when an answer was lost, or when the group knows this member no more. Not at once, since whoever
    /// waited for the answer works with slots and messages of the old client.
    pub(super) fn rejoin(&mut self) -> Result<(), Error> {
        if self.rejoin == Rejoin::Due {
            self.renew_client("joining the group again", Old::Closed)?;
        }
        Ok(())
    }

    /// Leaves a range prepared whose partition is not ours any more, or not for certain, or of whose topic nobody can
    /// tell. Its assignment ends first: what came behind the seal must not be written before the seal is decided.
    fn let_go(&self, number: u64, asking: Asking, verdict: Verdict) -> Result<(), Error> {
        let Asking { position, epoch } = asking;
        if let Some(epoch) = epoch {
            self.parts.tracker.end_of(&position.partition, epoch);
        }
        self.tell(number, position.partition, verdict)
    }

    pub(super) fn tell(&self, number: u64, partition: TopicPartition, verdict: Verdict) -> Result<(), Error> {
        self.send(Inbox::Decided { number, partition, verdict, reply: None })
    }

    fn send(&self, message: Inbox) -> Result<(), Error> {
        self.parts.inbox.send(message).map_err(|_| Error::Closed)
    }

    /// Waits for an answer of the delivery, which may need the group's word before it can give it.
    pub(super) fn answered<T>(&mut self, answered: &Receiver<T>, patience: Duration) -> Result<Option<T>, Error> {
        let deadline = Instant::now() + patience;
        // Without a group nobody sends requests: the channel is closed, and a closed channel is always ready.
        let asks_group = self.parts.config.assignment == Assignment::Group;
        loop {
            self.serve_seals()?;
            let left = deadline.saturating_duration_since(Instant::now()).min(IDLE_WAIT);
            let is_free = asks_group && self.asked.is_none();
            let requests = if is_free { self.parts.seals.clone() } else { crossbeam_channel::never() };
            select_biased! {
                recv(answered) -> answer => return answer.map(Some).map_err(|_| Error::Closed),
                recv(requests) -> request => {
                    let SealRequest { number, asking } = request.map_err(|_| Error::Closed)?;
                    self.asked = Some(Asked { number, open: asking, again: Instant::now() });
                },
                default(left) => {},
            }
            // Whatever was ready, so that requests without an end do not outlast the deadline.
            if Instant::now() >= deadline {
                return Ok(None);
            }
        }
    }

    /// Decides about what these partitions have hidden, which were given to us: goes on with it, or takes it back.
    pub(super) fn judge_pending(&mut self, pending: &[TopicPartition]) -> Result<PendingJudged, Error> {
        if self.parts.config.assignment == Assignment::All {
            return Ok(PendingJudged { has_changed: self.judge_alone(pending)?, held: Vec::new() });
        }
        let state = self.parts.gauges.durable().state.clone();
        let partitions: Vec<_> = pending.iter().filter(|partition| state.is_hidden(partition)).cloned().collect();
        let mut judged = PendingJudged::default();
        if partitions.is_empty() {
            return Ok(judged);
        }
        let answers = self.client.committed(&partitions, REQUEST_TIMEOUT);
        let answers = answers.unwrap_or_else(|error| vec![Err(error); partitions.len()]);
        // Many partitions on a slow disk take long. The rest is judged in the next pass.
        let until = Instant::now() + PATIENCE;
        for (partition, answer) in partitions.into_iter().zip(answers) {
            let of_it = match answer {
                Ok(group) => self.judge_one(&state, &partition, group.as_ref(), Held::ByUs)?,
                Err(error) => Judged::Held(error),
            };
            judged.has_changed |= matches!(of_it, Judged::Changed | Judged::Waits);
            let waits = of_it == Judged::Waits;
            if let Judged::Held(error) = of_it {
                judged.held.push((partition, error));
            }
            if waits || judged.has_changed && Instant::now() >= until {
                break;
            }
        }
        Ok(judged)
    }

    /// The same where the journal decides: only what is not whole any more is taken back, or what another configuration hid.
    fn judge_alone(&mut self, pending: &[TopicPartition]) -> Result<bool, Error> {
        let state = self.parts.gauges.durable().state.clone();
        let until = Instant::now() + PATIENCE;
        let mut changed = false;
        for partition in pending {
            let growth = state.partitions.get(partition).and_then(|state| state.growth.as_ref());
            if growth.is_some_and(|growth| !self.hides() || !state.is_whole(partition, growth)) {
                changed = true;
                if self.refuse(partition.clone())? == Judged::Waits || Instant::now() >= until {
                    break;
                }
            }
        }
        Ok(changed)
    }

    pub(super) fn judge_one(
        &mut self,
        state: &State,
        partition: &TopicPartition,
        group: Option<&GroupOffset>,
        held: Held,
    ) -> Result<Judged, Error> {
        match settle(state, partition, group, held, self.parts.visibility) {
            Hidden::Stays => Ok(Judged::Same),
            Hidden::Refused => {
                said_unconfigured(partition, held);
                self.refuse(partition.clone())
            }
            Hidden::Decided(number, verdict) => {
                if (verdict, held) == (Verdict::Refused, Held::ByUs) {
                    self.refused.insert(partition.clone());
                }
                tracing::info!(%partition, number, ?verdict, "the group tells what became of a prepared range");
                if verdict == Verdict::Refused {
                    said_unconfigured(partition, held);
                }
                let (reply, answered) = bounded(1);
                self.send(Inbox::Decided { number, partition: partition.clone(), verdict, reply: Some(reply) })?;
                self.carried_out(&answered)
            }
            Hidden::Again(number, position) => self.ask_again(number, position, group),
        }
    }

    /// Whether files are hidden until the group has taken their offsets.
    pub(super) fn hides(&self) -> bool {
        self.parts.visibility == Visibility::Sealed
    }

    /// Takes back what a partition has grown by. Its assignment must be over.
    fn refuse(&mut self, partition: TopicPartition) -> Result<Judged, Error> {
        let (reply, answered) = bounded(1);
        self.send(Inbox::Refuse { partition, reply: Some(reply) })?;
        self.carried_out(&answered)
    }

    /// Waits a while until a decision is carried out. When it takes longer, whoever judges the partition next comes behind it.
    fn carried_out(&mut self, answered: &Receiver<()>) -> Result<Judged, Error> {
        Ok(if self.answered_soon(answered)?.is_some() { Judged::Changed } else { Judged::Waits })
    }

    /// Has the group take what it was asked to take in an assignment before this one. Until it does, it is judged again.
    fn ask_again(&mut self, number: u64, position: Position, group: Option<&GroupOffset>) -> Result<Judged, Error> {
        let (reply, answered) = bounded(1);
        self.send(Inbox::Check { number, partition: position.partition.clone(), reply })?;
        let Some(prepared) = self.answered_soon(&answered)? else { return Ok(Judged::Waits) };
        if prepared == Prepared::Gone {
            self.refused.insert(position.partition.clone());
        }
        if prepared == Prepared::Whole && self.rejoin == Rejoin::No && !self.may_be_lost() {
            self.carry_on(&position.partition, &position.topic_id, group);
            tracing::info!(partition = %position.partition, number, "the group has not taken a prepared range yet: asking again");
            if let Some((_, error)) = self.commit_seal(number, vec![Asking { position, epoch: None }])?.pop() {
                return Ok(Judged::Held(error));
            }
        }
        Ok(Judged::Changed)
    }

    /// Waits a while until it is answered; `None` when that takes longer, or the service stops before. A disk that is slow or
    /// fails must not keep the group waiting.
    pub(super) fn answered_soon<T>(&mut self, done: &Receiver<T>) -> Result<Option<T>, Error> {
        self.answered_by(done, Instant::now() + PATIENCE)
    }

    /// The same until a deadline.
    pub(super) fn answered_by<T>(&mut self, done: &Receiver<T>, deadline: Instant) -> Result<Option<T>, Error> {
        loop {
            let answer = self.answered(done, IDLE_WAIT)?;
            if answer.is_some() || self.parts.desk.stopping() || Instant::now() >= deadline {
                return Ok(answer);
            }
        }
    }

    /// Asks about what is hidden of partitions that are not ours, from time to time.
    pub(super) fn look_at_hidden(&mut self) -> Result<(), Error> {
        let can_wait = self.parts.config.assignment == Assignment::All || self.parts.gauges.stalled().is_some();
        if can_wait || Instant::now() < self.look_at {
            return Ok(());
        }
        let asked = Instant::now();
        let looked = self.decide_hidden_elsewhere();
        self.look_at = next_question(asked, LOOK);
        self.topics.asks_next(asked, self.look_at);
        looked
    }

    fn decide_hidden_elsewhere(&mut self) -> Result<(), Error> {
        let state = self.parts.gauges.durable().state.clone();
        let mut partitions: Vec<_> = state
            .partitions
            .keys()
            .filter(|partition| state.is_hidden(partition))
            .filter(|partition| !self.pending.contains(*partition))
            .filter(|partition| self.slots.iter().all(|slot| slot.partition != **partition))
            .cloned()
            .collect();
        let mut unknown = match self.set_aside_of_gone_topics(&partitions)? {
            Topics::There => Vec::new(),
            Topics::SetAside => return Ok(()),
            Topics::Unknown(unknown) => unknown,
        };
        partitions.retain(|partition| unknown.iter().all(|(without, _)| without != partition));
        if !partitions.is_empty() {
            // Before the group is asked: what it has not taken by then, it never will.
            let held = self.held_elsewhere(&partitions);
            let answers = self.client.committed(&partitions, RETRY);
            let answers = answers.unwrap_or_else(|error| vec![Err(error); partitions.len()]);
            let until = Instant::now() + PATIENCE;
            for ((partition, group), held) in partitions.into_iter().zip(answers).zip(held) {
                match group {
                    Ok(group) => {
                        let judged = self.judge_one(&state, &partition, group.as_ref(), held)?;
                        if judged == Judged::Waits || Instant::now() >= until {
                            return Ok(());
                        }
                    }
                    Err(error) => unknown.push((partition, error)),
                }
            }
        }
        self.said_unknown(&unknown);
        Ok(())
    }

    /// Tells, once, when it cannot be found out for minutes what the group has taken.
    fn said_unknown(&mut self, unknown: &[(TopicPartition, KafkaError)]) {
        let Some((partition, error)) = unknown.first() else {
            self.unknown_since = None;
            return;
        };
        let (since, said) = self.unknown_since.get_or_insert_with(|| (Instant::now(), Said::No));
        tracing::debug!(%partition, %error, "cannot find out what the group has taken");
        if *said == Said::No && since.elapsed() > TOO_LONG {
            *said = Said::Yes;
            let count = unknown.len();
            tracing::warn!(%partition, count, %error, "cannot find out for minutes whether the group has taken what is hidden of partitions that are not ours: it stays hidden until then");
        }
    }

    /// Whether it is known already what stands beside the group's offset of a partition that is about to be read, where files
    /// are hidden.
    pub(super) fn has_base(&self, partition: &TopicPartition, mark: Option<&Mark>) -> bool {
        let known = |here: &PartitionState| here.growth.is_some() || here.mark.as_ref() == mark;
        self.parts.gauges.durable().state.partitions.get(partition).is_some_and(known)
    }
}
