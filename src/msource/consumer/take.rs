//! The way of a record through the thread: taken in a batch, put into the open block of its partition, cut, and sent on.
//!
//! **Promise.** A block begins where the one before it ended. What is of a partition that is not ours, or not to be
//! relied on, is dropped, and no offset moves for it. What is taken is counted before it is sent on.
//!
//! **How it fails.** What librdkafka tells of a partition instead of a record is answered in `gaps`, or shown. Only workers
//! that are gone end the thread.

use std::time::{Duration, Instant};

use super::blocked::Unreadable;
use super::slot::{Fetch, Told};
use super::{BATCH, Code, Consumer, Error, IDLE_WAIT, now_millis};
use crate::block::{RawBlock, Records, Source};
use crate::fault;
use crate::msource::native::Message;
use crate::msource::payload::claimed_size;

impl Consumer {
    pub(super) fn take(&mut self) -> Result<(), Error> {
        if fault::happens("kafka.standstill") {
            tracing::info!("the fault kafka.standstill happens");
            drop(self.client.pause(&self.partitions()));
        }
        let mut batch = std::mem::take(&mut self.batch);
        self.client.consume(&mut batch, BATCH, Duration::ZERO);
        if batch.is_empty() {
            self.client.consume(&mut batch, 1, self.idle_wait());
            if !batch.is_empty() {
                self.client.consume(&mut batch, BATCH - 1, Duration::ZERO);
            }
        }
        if !batch.is_empty() {
            fault::point("kafka.taken");
        }
        self.reassigned.taken(batch.len(), batch.len() < BATCH, self.client.has_event());
        let routed = self.route(&mut batch);
        self.batch = batch;
        routed
    }

    fn idle_wait(&self) -> Duration {
        let linger = self.parts.cut.linger;
        let due = self.slots.iter().filter(|slot| slot.is_open()).map(|slot| slot.since + linger).min();
        let now = Instant::now();
        due.map_or(IDLE_WAIT, |due| due.saturating_duration_since(now).min(IDLE_WAIT))
    }

    /// Puts messages into the open blocks of their partitions; those of partitions that are not ours are dropped.
    pub(super) fn route(&mut self, batch: &mut Vec<Message>) -> Result<(), Error> {
        let now = Instant::now();
        let (mut records, mut cost) = (0, 0);
        self.notice_new_topics();
        let mut current = ((0, -1), None);
        for message in batch.drain(..) {
            let key = (message.topic_key(), message.partition());
            if current.0 != key {
                current = (key, self.slot_of(key, &message));
            }
            let Some(number) = current.1 else {
                if !message.is_record() {
                    self.trouble(&message);
                }
                continue;
            };
            if !message.is_record() {
                self.account(&mut records, &mut cost);
                self.partition_event(number, &message, now)?;
                continue;
            }
            let slot = &mut self.slots[number];
            let offset = message.offset();
            // Within a damaged answer, librdkafka may hand out a record once more.
            if offset < slot.next || slot.fetch != Fetch::On {
                continue;
            }
            if slot.skips(offset) {
                slot.read_again(now);
                continue;
            }
            let claimed = |value: &[u8]| claimed_size(self.parts.config.payload, self.payload_limit, value);
            let headers = message.headers_size() as u64;
            cost += slot.add(message, headers, now, claimed);
            records += 1;
            self.ahead.taken(headers);
            if slot.open.len() >= self.parts.cut.lines || slot.bytes.max(slot.unpacked) >= self.parts.cut.bytes {
                self.account(&mut records, &mut cost);
                self.cut(number)?;
                self.wait_within_batch()?;
            }
        }
        if records > 0 {
            self.trouble.over();
        }
        self.account(&mut records, &mut cost);
        Ok(())
    }

    /// Counts what was taken, before it can be counted as anything else.
    fn account(&self, records: &mut u64, cost: &mut u64) {
        if *records > 0 {
            self.parts.gauges.consumed(std::mem::take(records));
            self.parts.budget.take(std::mem::take(cost));
        }
    }

    fn slot_of(&mut self, key: (usize, i32), message: &Message) -> Option<usize> {
        if let Some(known) = self.index.get(&key) {
            return *known;
        }
        let topic = message.topic();
        let found =
            self.slots.iter().position(|slot| slot.partition.partition == key.1 && *slot.partition.topic == *topic);
        self.index.insert(key, found);
        found
    }

    fn partition_event(&mut self, number: usize, message: &Message, now: Instant) -> Result<(), Error> {
        let Some(error) = message.error() else { return Ok(()) };
        if self.slots[number].fetch != Fetch::On {
            return Ok(());
        }
        match error.code {
            Code::PartitionEOF => {
                self.trouble.over();
                let slot = &mut self.slots[number];
                if slot.skips(message.offset()) {
                    slot.read_again(now);
                    return Ok(());
                }
                slot.told = Told::End;
                if message.offset() > slot.next {
                    if !slot.is_open() {
                        slot.since = now;
                    }
                    slot.next = message.offset();
                }
            }
            Code::AutoOffsetReset | Code::OffsetOutOfRange => self.out_of_range(number, message)?,
            _ => match Unreadable::of(&error) {
                Some(why) => self.unreadable(number, why, &error)?,
                None => self.trouble(message),
            },
        }
        Ok(())
    }

    pub(super) fn cut_due(&mut self, now: Instant) -> Result<(), Error> {
        for number in 0..self.slots.len() {
            let slot = &self.slots[number];
            if slot.is_open() && now >= slot.since + self.parts.cut.linger {
                self.cut(number)?;
            }
        }
        Ok(())
    }

    /// Sends the open block of a partition to the workers.
    pub(super) fn cut(&mut self, number: usize) -> Result<(), Error> {
        let slot = &mut self.slots[number];
        if !slot.is_open() {
            return Ok(());
        }
        let records = std::mem::replace(&mut slot.open, Vec::with_capacity(self.parts.cut.lines.min(BATCH)));
        // Behind offsets without a record nothing is known: a marker of a transaction may be of a later epoch than the last record.
        let before = records.last().filter(|last| last.offset() + 1 == slot.next);
        slot.leader_epoch = before.map_or(-1, Message::leader_epoch);
        let to = slot.position();
        let block = |ticket| RawBlock {
            ticket,
            source: Source::Partition { epoch: slot.epoch, from: slot.from, to },
            records: Records::Kafka(records),
            engine: self.parts.desk.engine(),
            now: now_millis(),
            cost: std::mem::take(&mut slot.cost),
        };
        let sent = self.parts.tickets.issue(|ticket| self.parts.blocks.send(block(ticket)).is_ok());
        (slot.bytes, slot.unpacked) = (0, 0);
        slot.from = slot.next;
        if sent { Ok(()) } else { Err(Error::Closed) }
    }
}
