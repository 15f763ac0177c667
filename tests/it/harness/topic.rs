//! Topics and producers: librdkafka's own, with nothing of the program in between.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext};

use super::{Mix, Record, SOON, broker};

/// Kafka's own compression, which the producer applies to batches.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Codec {
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

impl Codec {
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// A topic that one test uses alone.
#[derive(Clone, Debug)]
pub(crate) struct Topic {
    pub(crate) name: String,
    pub(crate) partitions: i32,
}

impl Topic {
    /// Creates a topic. `purpose` goes into its name, for people who read the broker's log.
    pub(crate) fn create(purpose: &str, partitions: i32) -> Self {
        Self::with_config(purpose, partitions, &[])
    }

    /// The same with topic configuration, such as `("max.message.bytes", "2097152")`.
    pub(crate) fn with_config(purpose: &str, partitions: i32, config: &[(&str, &str)]) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{purpose}_{}_{count}", std::process::id());
        let mut topic = NewTopic::new(&name, partitions, TopicReplication::Fixed(1));
        for (key, value) in config {
            topic = topic.set(key, value);
        }
        let done = block_on(admin().create_topics([&topic], &AdminOptions::new()));
        assert!(done.iter().all(|topics| topics.iter().all(Result::is_ok)), "cannot create topic {name}: {done:?}");
        Self { name, partitions }
    }

    /// Gives the topic more partitions.
    pub(crate) fn grow(&mut self, partitions: i32) {
        let wanted = NewPartitions::new(&self.name, usize::try_from(partitions).expect("a count"));
        let done = block_on(admin().create_partitions([&wanted], &AdminOptions::new()));
        assert!(done.iter().all(|topics| topics.iter().all(Result::is_ok)), "cannot grow {}: {done:?}", self.name);
        self.partitions = partitions;
    }

    /// Makes records of this mix, tells the oracle nothing, and produces them. Numbers start at `first`.
    pub(crate) fn fill(&self, codec: Codec, mix: Mix, first: u64, count: u64) -> Vec<Record> {
        let records: Vec<_> = (first..first + count).map(|n| mix.record(n, self.partitions)).collect();
        self.produce(codec, &records);
        records
    }

    /// Produces the records and waits until the broker has acknowledged each.
    pub(crate) fn produce(&self, codec: Codec, records: &[Record]) {
        Producer::new(codec).send(&self.name, records);
    }

    /// Produces in the background until told to stop: about 10,000 records a second.
    pub(crate) fn load(&self, codec: Codec, mix: Mix) -> Load {
        self.load_every(Duration::from_millis(10), codec, mix)
    }

    /// The same with this pause after each 200 records.
    pub(crate) fn load_every(&self, pause: Duration, codec: Codec, mix: Mix) -> Load {
        let (stop, stopped) = channel();
        let topic = self.clone();
        let thread = std::thread::spawn(move || topic.produce_until(pause, codec, mix, &stopped));
        Load { stop, thread }
    }

    fn produce_until(&self, pause: Duration, codec: Codec, mix: Mix, stopped: &Receiver<()>) -> Vec<Record> {
        let producer = Producer::new(codec);
        let mut all = Vec::new();
        loop {
            let first = all.len() as u64;
            let some: Vec<_> = (first..first + 200).map(|n| mix.record(n, self.partitions)).collect();
            producer.send(&self.name, &some);
            all.extend(some);
            if stopped.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                return all;
            }
        }
    }
}

/// A producer at work in the background.
#[derive(Debug)]
pub(crate) struct Load {
    stop: Sender<()>,
    thread: JoinHandle<Vec<Record>>,
}

impl Load {
    /// Ends it; returns everything that was produced, in order.
    pub(crate) fn stop(self) -> Vec<Record> {
        let Self { stop, thread } = self;
        drop(stop);
        thread.join().expect("the producer ends well")
    }
}

struct Producer(BaseProducer<Delivery>);

/// Remembers deliveries that failed.
#[derive(Clone, Default)]
struct Delivery(Arc<Mutex<Vec<KafkaError>>>);

impl ClientContext for Delivery {}

impl ProducerContext for Delivery {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.0.lock().expect("not poisoned").push(error.clone());
        }
    }
}

impl Producer {
    fn new(codec: Codec) -> Self {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", broker::address())
            .set("compression.type", codec.name())
            .set("enable.idempotence", "true")
            .set("linger.ms", "5")
            .set("message.max.bytes", "8388608")
            .create_with_context(Delivery::default())
            .expect("the producer's configuration is sound");
        Self(producer)
    }

    fn send(&self, topic: &str, records: &[Record]) {
        for record in records {
            let mut next: BaseRecord<'_, [u8], [u8]> =
                BaseRecord::to(topic).partition(record.partition).timestamp(record.timestamp);
            if let Some(key) = &record.key {
                next = next.key(key);
            }
            if let Some(value) = &record.value {
                next = next.payload(value);
            }
            while let Err((error, back)) = self.0.send(next) {
                assert_eq!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::QueueFull), "cannot produce: {error}");
                self.0.poll(Duration::from_millis(50));
                next = back;
            }
        }
        self.0.flush(SOON).expect("the broker takes the records");
        let failed = self.0.context().0.lock().expect("not poisoned");
        assert!(failed.is_empty(), "records that were not delivered: {failed:?}");
    }
}

/// The committed offsets of a group, by partition.
pub(crate) fn committed(group: &str, topic: &Topic) -> HashMap<i32, i64> {
    Group::new(group).committed(topic)
}

/// A group, asked from outside.
pub(crate) struct Group(BaseConsumer);

impl Group {
    pub(crate) fn new(name: &str) -> Self {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", broker::address()).set("group.id", name);
        Self(config.create().expect("the consumer's configuration is sound"))
    }

    /// Its committed offsets, by partition.
    pub(crate) fn committed(&self, topic: &Topic) -> HashMap<i32, i64> {
        let mut list = rdkafka::TopicPartitionList::new();
        list.add_partition_range(&topic.name, 0, topic.partitions - 1);
        let list = self.0.committed_offsets(list, SOON).expect("the group's offsets");
        list.elements().iter().filter_map(|e| Some((e.partition(), e.offset().to_raw().filter(|o| *o >= 0)?))).collect()
    }
}

fn admin() -> AdminClient<DefaultClientContext> {
    ClientConfig::new()
        .set("bootstrap.servers", broker::address())
        .create()
        .expect("the admin client's configuration is sound")
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_codec_produces_is_on_the_broker_in_its_partition() {
        let mut topic = Topic::create("harness", 2);
        let mut produced = Vec::new();
        for codec in [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd] {
            produced.extend(topic.fill(codec, Mix::Dirty, produced.len() as u64, 500));
        }
        topic.grow(3);
        produced.extend(topic.load(Codec::Snappy, Mix::Clean).stop());
        let consumer: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", broker::address()).create().expect("a consumer");
        for partition in 0..topic.partitions {
            let count = produced.iter().filter(|record| record.partition == partition).count() as i64;
            let found = consumer.fetch_watermarks(&topic.name, partition, SOON).expect("watermarks");
            assert_eq!(found, (0, count), "partition {partition}");
        }
        assert!(committed("nobody", &topic).is_empty());
    }
}
