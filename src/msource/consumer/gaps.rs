//! Records that cannot be had: taken by retention, cut off with the broker's log, or damaged.
//!
//! **Promise.** A partition goes on behind them only after that is durable, as a `Move`, and said at ERROR with its range. What
//! was lost before it was read is counted. A group knows of a move back before the partition is read on. Damage is tried again
//! for some seconds first, since the network may have done it. A batch with a right checksum is never given up.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crossbeam_channel::TryRecvError;

use super::blocked::{Unreadable, pause};
use super::outcome::is_answer;
use super::refusal::{Log, Place, Refusal, Remedy, remedy};
use super::seals::Rejoin;
use super::slot::{Fetch, Moving, Slot};
use super::{Consumer, Error, InFlight, PATIENCE, REQUEST_TIMEOUT, RETRY, Reassigned};
use crate::config::{Assignment, OutOfRange};
use crate::delivery::Finish;
use crate::msource::TopicPartition;
use crate::msource::journal::{Frame, MoveCause, Position};
use crate::msource::native::{Client, CutOff, KafkaError, Message, OffsetSpec};
use crate::msource::properties;
use rdkafka::types::RDKafkaErrorCode as Code;

/// How often a damaged batch is fetched again before it is given up, after [`FIRST_PAUSE`] and twice as long each time.
const TRIES: u32 = 5;

/// Pause before the first of them.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// Bound on one fetch that looks for the end of the damage.
const PROBE: Duration = Duration::from_secs(5);

impl Consumer {
    /// The broker does not have the offset at which a partition is to be read, or not the record before it.
    pub(super) fn out_of_range(&mut self, number: usize, message: &Message) -> Result<(), Error> {
        self.cut(number)?;
        let slot = &self.slots[number];
        let (partition, offset) = (slot.partition.clone(), slot.next);
        let cut = message.truncated_at();
        let end = if let Some(CutOff::At(end)) = cut { end } else { offset };
        let log = match self.log_of(&partition, offset.max(end)) {
            Ok(log) => log,
            Err(error) => {
                self.in_trouble(format!(
                    "{partition}: offset {offset} is out of range, and the watermarks are unknown: {error}"
                ));
                self.read_again_after(number, RETRY);
                return Ok(());
            }
        };
        let Log { low, high, .. } = log;
        let slot = &mut self.slots[number];
        let place = Place { offset, leader_epoch: slot.leader_epoch, has_id: !slot.topic_id.is_empty() };
        let attempts = slot.attempt(Instant::now());
        let refusal = Refusal { cut, tries: attempts.tries, lasts: attempts.since.elapsed() };
        let policy = self.parts.config.out_of_range;
        let remedy = remedy(&place, &log, &refusal, policy, self.patience);
        match remedy {
            Remedy::Again => {
                // The broker that answered was behind for a moment: nothing is lost.
                tracing::warn!(%partition, offset, low, high, "the broker refused an offset that it has: reading it again");
                self.read_again_after(number, RETRY);
                Ok(())
            }
            Remedy::Wait => {
                // As below.
                self.watchdog.forget(&partition);
                self.in_trouble(format!(
                    "{partition}: the broker's log ends at {high}, before the stored offset {offset}: waiting to see whether that lasts"
                ));
                self.read_again_after(number, RETRY);
                Ok(())
            }
            Remedy::Check => {
                // A fetch from where nothing is would end the asking, so the partition waits within the log meanwhile.
                let at = offset.max(low).min(high);
                let is_new = attempts.since.elapsed() < RETRY * 2;
                self.slots[number].fetch = Fetch::Check(Instant::now() + if is_new { FIRST_PAUSE } else { RETRY }, at);
                // Another client would be told the same, and the doubt would begin again with it.
                self.watchdog.forget(&partition);
                if !is_new {
                    self.in_trouble(format!(
                        "{partition}: the broker does not know the leader epoch {} that is stored beside the offset {offset}: waiting to see whether that lasts",
                        place.leader_epoch
                    ));
                }
                Ok(())
            }
            Remedy::WithoutEpoch => {
                tracing::warn!(%partition, offset, low, high, leader_epoch = place.leader_epoch, "the broker knows no such leader epoch as is stored beside the offset: reading on there without it");
                self.slots[number].leader_epoch = -1;
                self.read_again_after(number, Duration::ZERO);
                Ok(())
            }
            Remedy::Gap { .. } | Remedy::Back { .. } | Remedy::Recreated { .. } if policy == OutOfRange::Stop => {
                self.stop_out_of_range(number, &log, remedy)
            }
            Remedy::Gap { from, to } => {
                tracing::error!(%partition, from, to, lost = to - from, "a gap: retention took records before they were read");
                self.go_on_at(number, to, MoveCause::Gap { from })
            }
            Remedy::Back { to } => {
                // Where the records go on that we do not have, not the whole retention again.
                tracing::error!(%partition, from = offset, to, "the broker's log was cut off before the stored offset, as by an unclean leader election; going on where it was cut off");
                self.go_on_at(number, to, MoveCause::Reset)
            }
            Remedy::Recreated { to } => {
                tracing::error!(%partition, from = offset, to, "the leader epochs of the partition began again, as in a topic that was deleted and created again: going on at its first record");
                self.go_on_at(number, to, MoveCause::Recreated)
            }
        }
    }

    /// Ends the service as `out_of_range: stop` demands. What is hidden is published first: it ends here in any case, and a
    /// `set_offset` past it would be refused.
    fn stop_out_of_range(&mut self, number: usize, log: &Log, remedy: Remedy) -> Result<(), Error> {
        let slot = &self.slots[number];
        let (partition, offset, epoch) = (slot.partition.clone(), slot.next, slot.epoch);
        if !self.is_published(&partition)? {
            self.read_again_after(number, RETRY);
            return Ok(());
        }
        if !self.parts.tracker.is_current(&partition, epoch) {
            return Ok(());
        }
        Err(match remedy {
            Remedy::Back { to: end } | Remedy::Recreated { to: end } => Error::Truncated { partition, offset, end },
            _ => Error::OutOfRange { partition, offset, low: log.low, high: log.high },
        })
    }

    /// A batch cannot be read. What librdkafka hands out after that is not to be relied on, so it is dropped.
    pub(super) fn unreadable(&mut self, number: usize, why: Unreadable, error: &KafkaError) -> Result<(), Error> {
        match why {
            Unreadable::Damaged => self.damaged(number, error),
            Unreadable::Packed => self.stand_still(number, error),
        }
    }

    /// A batch is as it was sent, and cannot be unpacked. None of it is given up.
    fn stand_still(&mut self, number: usize, error: &KafkaError) -> Result<(), Error> {
        self.cut(number)?;
        let slot = &mut self.slots[number];
        let tries = slot.attempt(Instant::now()).tries;
        let (partition, offset) = (slot.partition.clone(), slot.next);
        let bound = self.parts.properties.get("receive.message.max.bytes").map_or("", String::as_str);
        let reason = format!(
            "{partition}: the batch at {offset} is not damaged, and cannot be unpacked: {error}; it may become larger than {bound} bytes: raise `memory`, or `receive.message.max.bytes` in `kafka.librdkafka`, or go past it with `set_offset`"
        );
        if self.blocked.block(partition.clone(), offset, reason) {
            tracing::error!(%partition, offset, bound, %error, "a batch cannot be unpacked: standing still before it");
        }
        self.read_again_after(number, pause(FIRST_PAUSE, tries));
        Ok(())
    }

    /// The checksum of a batch is wrong.
    fn damaged(&mut self, number: usize, error: &KafkaError) -> Result<(), Error> {
        self.cut(number)?;
        let slot = &mut self.slots[number];
        let tries = slot.attempt(Instant::now()).tries;
        let (partition, from) = (slot.partition.clone(), slot.next);
        if tries <= TRIES {
            tracing::warn!(%partition, offset = from, tries, %error, "a damaged batch: fetching it again");
            self.read_again_after(number, FIRST_PAUSE * 2_u32.pow(tries - 1));
            return Ok(());
        }
        let end = self
            .log_of(&partition, i64::MAX)
            .and_then(|log| end_of_damage(&self.parts.properties, &partition, from, log.high));
        match end {
            Ok(to) if to > from => {
                tracing::error!(%partition, from, to, lost = to - from, %error, "a gap: the broker has these records, but they are damaged");
                self.go_on_at(number, to, MoveCause::Gap { from })
            }
            Ok(_) => {
                self.read_again_after(number, Duration::ZERO);
                Ok(())
            }
            Err(error) => {
                self.in_trouble(format!(
                    "{partition}: the batch at {from} is damaged, and its end is unknown: {error}"
                ));
                self.read_again_after(number, RETRY);
                Ok(())
            }
        }
    }

    /// What the broker has of a partition. The end of what is not committed yet is asked for when it decides: when what can be read
    /// ends before `place`.
    fn log_of(&self, partition: &TopicPartition, place: i64) -> Result<Log, KafkaError> {
        let ask = |client: &Client, end| {
            let mut found = client.list_offsets(&[(partition.clone(), end)], REQUEST_TIMEOUT);
            found.pop().unwrap_or_else(|| Err(KafkaError::not_answered()))
        };
        let low = ask(&self.client, OffsetSpec::Earliest)?;
        let stable = ask(&self.client, OffsetSpec::Latest)?;
        let config = &self.parts.config;
        if place <= stable || !properties::committed_only(config) {
            return Ok(Log { low, stable, high: stable });
        }
        // A client is told the end for its own isolation level only.
        let mut all = properties::asking(config);
        all.insert("isolation.level".into(), "read_uncommitted".into());
        let client = Client::new(&all)?;
        let high = ask(&client, OffsetSpec::Latest);
        client.abandon();
        Ok(Log { low, stable, high: high? })
    }

    /// Has what is hidden of a partition published; returns whether that is done. While the group is not asked, nobody waits.
    fn is_published(&mut self, partition: &TopicPartition) -> Result<bool, Error> {
        if !self.hides() {
            return Ok(true);
        }
        let is_asked = self.reassigned == Reassigned::No;
        Ok(is_asked && self.barrier(Finish::Hidden(vec![partition.clone()]), PATIENCE)?)
    }

    /// Makes it durable that a partition goes on elsewhere, and reads it from there.
    pub(super) fn go_on_at(&mut self, number: usize, to: i64, cause: MoveCause) -> Result<(), Error> {
        let partition = self.slots[number].partition.clone();
        if !self.is_published(&partition)? {
            // What is hidden ends where the gap begins: no manifest may say that it covers it.
            self.read_again_after(number, RETRY);
            return Ok(());
        }
        let slot = &self.slots[number];
        if !self.parts.tracker.is_current(&partition, slot.epoch) {
            // Whether the group has taken what was hidden is not known, or the partition is lost. If those files are taken
            // back, it stands before them and not behind the gap: whoever has it next goes on from what the group has, and
            // finds the gap there.
            return Ok(());
        }
        let position =
            Position { partition: partition.clone(), topic_id: slot.topic_id.clone(), next: to, leader_epoch: -1 };
        let noted = self.note(Frame::Move { to: position, cause })?;
        if self.answered_soon(&noted)?.is_some() {
            self.moved(number, to);
        } else {
            // A disk that is slow or fails must not keep the group waiting.
            let slot = &mut self.slots[number];
            (slot.fetch, slot.moving) = (Fetch::Moving, Some(Moving { to, noted }));
        }
        Ok(())
    }

    /// Reads partitions on elsewhere for which that has become durable.
    pub(super) fn finish_moves(&mut self) -> Result<(), Error> {
        for number in 0..self.slots.len() {
            let Some(Moving { to, noted }) = &self.slots[number].moving else { continue };
            match noted.try_recv() {
                Ok(()) => {
                    let to = *to;
                    self.moved(number, to);
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return Err(Error::Closed),
            }
        }
        Ok(())
    }

    fn moved(&mut self, number: usize, to: i64) {
        crate::fault::point("gap.noted");
        let slot = &mut self.slots[number];
        slot.moving = None;
        let Some(epoch) = self.parts.tracker.begin(slot.partition.clone(), to) else {
            // A range of it is to be judged first, which is done when it is given to us.
            self.rejoin = Rejoin::Due;
            return;
        };
        let is_back = to < slot.next;
        (slot.epoch, slot.next, slot.from, slot.leader_epoch) = (epoch, to, to, -1);
        if is_back && self.parts.config.assignment == Assignment::Group {
            // The group is past it, and so would be the next owner.
            self.slots[number].fetch = Fetch::Tell(Instant::now());
            // What was asked for before does not stand for this move.
            self.standing = None;
        } else {
            self.read_again_after(number, Duration::ZERO);
        }
    }

    /// Has the group know of partitions that went back, before they are read on.
    pub(super) fn tell_moves(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        let is_due = |slot: &Slot| matches!(slot.fetch, Fetch::Tell(at) if now >= at);
        if !self.slots.iter().any(is_due) {
            return Ok(());
        }
        // One that is still on its way could arrive after this one, and take it back; and librdkafka stamps a commit with the
        // membership that it has when it sends it.
        if self.commit_in_flight != InFlight::No || self.may_be_lost() {
            return Ok(());
        }
        // The commits that follow come from the checkpoint: one from before the move would take this one back.
        if !self.settled()? {
            return Ok(());
        }
        let due = self.slots.iter().filter(|slot| is_due(slot));
        let places: Vec<_> = due.map(Slot::position).collect();
        let commits: Vec<_> = places.iter().map(|place| self.commit_from(place)).collect();
        let answers = self.client.commit(&commits, REQUEST_TIMEOUT);
        let answers = answers.unwrap_or_else(|error| vec![Err(error); commits.len()]);
        for (place, answer) in places.into_iter().zip(answers) {
            let partition = &place.partition;
            match answer {
                Ok(()) => {
                    if self.hides() {
                        // In its place before whatever is read of it from now on: nobody need wait for it.
                        let mark = Some(self.mark(0));
                        let _noted = self.note(Frame::Base { partition: partition.clone(), mark })?;
                    }
                    if let Some(slot) = self.slots.iter_mut().find(|slot| slot.partition == *partition) {
                        slot.committed = place.next;
                        slot.read_again(now);
                    }
                }
                Err(error) => {
                    self.note_refusal(&error);
                    if self.hides() && !is_answer(&error) {
                        // It could arrive after the commit of a seal, and take that back.
                        self.rejoin = Rejoin::Due;
                    }
                    self.in_trouble(format!(
                        "{partition}: the group was not told that it went back to {}: {error}",
                        place.next
                    ));
                    if let Some(slot) = self.slots.iter_mut().find(|slot| slot.partition == *partition) {
                        slot.fetch = Fetch::Tell(now + RETRY);
                    }
                }
            }
        }
        Ok(())
    }

    fn read_again_after(&mut self, number: usize, pause: Duration) {
        self.slots[number].read_again(Instant::now() + pause);
    }
}

/// What a fetch from an offset begins with.
enum Found {
    /// A record, the end, or a batch that is as it was sent.
    Sound,
    /// A batch with a wrong checksum.
    Damage,
}

/// The first offset behind the damage at `from` at which something can be read again, `high` if there is none. A client of its
/// own asks for it: a fetch from within the damaged batch gives that batch, one from behind it does not.
pub(in crate::msource) fn end_of_damage(
    properties: &BTreeMap<String, String>,
    partition: &TopicPartition,
    from: i64,
    high: i64,
) -> Result<i64, KafkaError> {
    let client = Client::new(properties)?;
    search(from, high, |offset| probe(&client, partition, offset))
}

/// Steps that double find something sound, and halves of the last step the first of it: few fetches for any length.
fn search(from: i64, high: i64, mut fetch: impl FnMut(i64) -> Result<Found, KafkaError>) -> Result<i64, KafkaError> {
    if let Found::Sound = fetch(from)? {
        return Ok(from);
    }
    let (mut damaged, mut sound, mut step) = (from, high, 1);
    while damaged + step < high {
        match fetch(damaged + step)? {
            Found::Damage => damaged += step,
            Found::Sound => {
                sound = damaged + step;
                break;
            }
        }
        step *= 2;
    }
    while damaged + 1 < sound {
        let middle = damaged + (sound - damaged) / 2;
        match fetch(middle)? {
            Found::Damage => damaged = middle,
            Found::Sound => sound = middle,
        }
    }
    Ok(sound)
}

fn probe(client: &Client, partition: &TopicPartition, offset: i64) -> Result<Found, KafkaError> {
    let from_there = [(partition.clone(), offset)];
    client.assign(&from_there)?;
    let deadline = Instant::now() + PROBE;
    let mut batch = Vec::new();
    let mut last = KafkaError { code: Code::OperationTimedOut, text: format!("no answer to a fetch at {offset}") };
    let mut found = None;
    while found.is_none() && Instant::now() < deadline {
        client.consume(&mut batch, 1, Duration::from_millis(100));
        while client.next_event().is_some() {}
        for message in batch.drain(..) {
            match message.error() {
                None => found = Some(Found::Sound),
                Some(error) if error.code == Code::PartitionEOF => found = Some(Found::Sound),
                Some(error) if Unreadable::of(&error) == Some(Unreadable::Damaged) => found = Some(Found::Damage),
                // It stands still there, then.
                Some(error) if Unreadable::of(&error).is_some() => found = Some(Found::Sound),
                Some(error) => {
                    // librdkafka goes on inside of a damaged batch, takes what lies there for the next offset, and fetches nothing
                    // more once the broker has refused that.
                    last = error;
                    client.unassign()?;
                    client.assign(&from_there)?;
                }
            }
        }
    }
    client.unassign()?;
    found.ok_or(last)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_end_of_damage_is_found_with_few_fetches(from in 0..1000_i64, length in 0..100_000_i64, behind in 0..100_000_i64) {
            let (end, high) = (from + length, from + length + behind);
            let mut fetches = 0;
            let found = search(from, high, |offset| {
                fetches += 1;
                assert!((from..=high).contains(&offset), "{offset} is asked for");
                Ok(if offset < end { Found::Damage } else { Found::Sound })
            });
            prop_assert_eq!(found, Ok(end));
            prop_assert!(fetches <= 40, "{} fetches", fetches);
        }
    }
}
