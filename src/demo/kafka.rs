//! The demo's Kafka: brokers inside the process (librdkafka's mock cluster) and the producer that fills their topic.
//!
//! A mock broker keeps 5 MiB a partition and drops the oldest batches beyond that, read or not. So the producer never has
//! more than [`ROOM`] bytes in a partition whose offsets the consumer has not stored yet, and waits until it has.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, DeliveryResult, Producer, ProducerContext};

use super::records::{Expected, Generator, Kind};
use crate::control::Counts;
use crate::record::Reason;

/// The topic.
pub(crate) const TOPIC: &str = "mulog_clean_24";

/// Its partitions.
pub(crate) const PARTITIONS: usize = 16;

/// Brokers, each the leader of some partitions.
pub(crate) const BROKERS: i32 = 3;

/// Bytes in a partition, before compression, that are not stored as read. With the batch that is read half, of
/// [`BATCH_BYTES`], they stay below what a mock broker keeps.
const ROOM: u64 = 4 << 20;

/// librdkafka's default `batch.size`.
const BATCH_BYTES: u32 = 1_000_000;

/// Bytes of a record besides its value, at most.
const OVERHEAD: u32 = 64;

/// How long the producer waits before it looks again for what is stored.
const PACE: Duration = Duration::from_millis(10);

/// How long the last records may take to the brokers, which are in this process.
const FLUSH: Duration = Duration::from_secs(30);

/// How many of a hundred records are not ordinary ones.
const DIRTY_PERCENT: u8 = 3;

const SEED: u64 = 24;

/// An offset a partition.
pub(crate) type Offsets = [i64; PARTITIONS];

/// Why there are no records.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The mock cluster does not start.
    #[error("cannot start the embedded brokers")]
    Brokers(#[source] KafkaError),
    /// The producer cannot be made, or cannot take a record.
    #[error("cannot produce to the embedded brokers")]
    Producer(#[source] KafkaError),
    /// The brokers did not take a record.
    #[error("the embedded brokers did not take a record: {0}")]
    Delivery(String),
}

/// Running brokers, which end when this is dropped. They have the topic.
pub(crate) struct Brokers(MockCluster<'static, DefaultProducerContext>);

impl Brokers {
    pub(crate) fn start() -> Result<Self, Error> {
        let cluster = MockCluster::new(BROKERS).map_err(Error::Brokers)?;
        cluster.create_topic(TOPIC, PARTITIONS as i32, BROKERS).map_err(Error::Brokers)?;
        Ok(Self(cluster))
    }

    /// Their addresses.
    pub(crate) fn addresses(&self) -> String {
        self.0.bootstrap_servers()
    }
}

/// What the producer is told of the consumer.
pub(crate) trait Consumer {
    /// The next offset of each partition that is not stored as read.
    fn stored(&self) -> Offsets;
    /// Whether the producer is to end before its last record.
    fn is_over(&self) -> bool;
}

/// Produces so many records, compressed with snappy, in turn into every partition; returns what must become of them.
pub(crate) fn produce(brokers: &str, records: u64, consumer: &dyn Consumer) -> Result<Counts, Error> {
    let producer = connect(brokers)?;
    let generator = Generator::new(SEED).dirty(DIRTY_PERCENT);
    let mut windows: [Window; PARTITIONS] = std::array::from_fn(|_| Window::default());
    let mut expected = Counts::default();
    let mut value = Vec::new();
    for index in 0..records {
        let kind = generator.record(index, &mut value);
        let partition = (index % PARTITIONS as u64) as usize;
        let size = value.len() as u32 + OVERHEAD;
        while !windows[partition].has_room(size) {
            producer.poll(PACE);
            producer.context().check()?;
            if consumer.is_over() {
                return Ok(expected);
            }
            windows.iter_mut().zip(consumer.stored()).for_each(|(window, next)| window.stored(next));
        }
        windows[partition].add(size);
        let stamp = Stamp::of(kind, index);
        send(&producer, partition as i32, (kind != Kind::Tombstone).then_some(&value), stamp)?;
        count(&mut expected, kind, stamp);
    }
    producer.flush(FLUSH).map_err(Error::Producer)?;
    producer.context().check()?;
    Ok(expected)
}

fn connect(brokers: &str) -> Result<BaseProducer<Reports>, Error> {
    ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("client.id", "mtga-demo")
        .set("compression.codec", "snappy")
        .set("batch.size", BATCH_BYTES.to_string())
        .set("linger.ms", "50")
        // A mock broker keeps a batch twice that is sent twice, and the count at the end would be wrong.
        .set("message.send.max.retries", "0")
        .set("delivery.report.only.error", "true")
        .create_with_context(Reports::default())
        .map_err(Error::Producer)
}

fn send(producer: &BaseProducer<Reports>, partition: i32, value: Option<&Vec<u8>>, stamp: Stamp) -> Result<(), Error> {
    let mut record = BaseRecord::<(), [u8]>::to(TOPIC).partition(partition);
    record.payload = value.map(Vec::as_slice);
    record.timestamp = match stamp {
        Stamp::Now => None,
        Stamp::Missing => Some(-1),
    };
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                record = back;
                producer.poll(PACE);
            }
            Err((error, _)) => return Err(Error::Producer(error)),
        }
    }
}

/// The timestamp of a Kafka record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stamp {
    Now,
    Missing,
}

impl Stamp {
    /// Half of the records without a time of their own come from a producer that gives them none either.
    const fn of(kind: Kind, index: u64) -> Self {
        if matches!(kind, Kind::NoTime) && index.is_multiple_of(2) { Self::Missing } else { Self::Now }
    }
}

fn count(expected: &mut Counts, kind: Kind, stamp: Stamp) {
    expected.consumed += 1;
    match kind.expected() {
        Expected::Written if stamp == Stamp::Missing => expected.rejected[Reason::NoTime.index()] += 1,
        Expected::Written => expected.written += 1,
        Expected::Filtered(filter) => expected.filtered[filter.index()] += 1,
        Expected::Rejected(reason) => expected.rejected[reason.index()] += 1,
    }
}

/// What is produced to a partition and not stored as read.
#[derive(Debug, Default)]
struct Window {
    /// Sizes of the records from `next` on.
    sizes: VecDeque<u32>,
    bytes: u64,
    next: i64,
}

impl Window {
    fn has_room(&self, size: u32) -> bool {
        self.sizes.is_empty() || self.bytes + u64::from(size) <= ROOM
    }

    fn add(&mut self, size: u32) {
        self.sizes.push_back(size);
        self.bytes += u64::from(size);
    }

    fn stored(&mut self, next: i64) {
        while self.next < next
            && let Some(size) = self.sizes.pop_front()
        {
            self.bytes -= u64::from(size);
            self.next += 1;
        }
    }
}

/// Remembers the first record that the brokers did not take.
#[derive(Default)]
struct Reports(Mutex<Option<String>>);

impl Reports {
    fn check(&self) -> Result<(), Error> {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            Some(error) => Err(Error::Delivery(error)),
            None => Ok(()),
        }
    }
}

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| error.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_partition_never_holds_more_than_its_room(steps in prop::collection::vec((1..1_000_000u32, 0..20i64), 0..200)) {
            let (mut window, mut all) = (Window::default(), Vec::new());
            for (size, next) in steps {
                if window.has_room(size) {
                    window.add(size);
                    all.push(u64::from(size));
                }
                window.stored(next);
                let outstanding: u64 = all.iter().skip(window.next as usize).sum();
                prop_assert_eq!(window.bytes, outstanding);
                prop_assert!(outstanding <= ROOM);
            }
        }
    }

    #[test]
    fn what_is_outstanding_and_a_batch_fit_into_a_mock_partition() {
        assert!(ROOM + u64::from(BATCH_BYTES) < 5 << 20);
    }

    #[test]
    fn a_record_without_any_time_is_expected_to_be_rejected() {
        let mut counts = Counts::default();
        count(&mut counts, Kind::NoTime, Stamp::of(Kind::NoTime, 2));
        count(&mut counts, Kind::NoTime, Stamp::of(Kind::NoTime, 3));
        count(&mut counts, Kind::Clean, Stamp::of(Kind::Clean, 4));
        assert_eq!((counts.consumed, counts.written, counts.rejected[Reason::NoTime.index()]), (3, 2, 1));
    }
}
