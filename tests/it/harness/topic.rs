//! Topics and producers: librdkafka's own, with nothing of the program in between.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
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
use rdkafka::message::{DeliveryResult, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext};

use super::{Mix, Record, SOON, broker, holds, wait_until};

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
    /// `HOST:PORT` of the broker that has it.
    pub(crate) brokers: String,
}

impl Topic {
    /// Creates a topic. `purpose` goes into its name, for people who read the broker's log.
    pub(crate) fn create(purpose: &str, partitions: i32) -> Self {
        Self::with_config(purpose, partitions, &[])
    }

    /// A topic of which every one of so many brokers has a copy.
    pub(crate) fn replicated(brokers: &str, copies: i32, purpose: &str, partitions: i32) -> Self {
        let topic = Self { brokers: brokers.to_owned(), ..Self::unmade(&name_for(purpose), partitions) };
        topic.make(copies, &[]);
        topic
    }

    /// The same with topic configuration, such as `("max.message.bytes", "2097152")`.
    pub(crate) fn with_config(purpose: &str, partitions: i32, config: &[(&str, &str)]) -> Self {
        Self::on(broker::address(), purpose, partitions, config)
    }

    /// The same on another broker.
    pub(crate) fn on(brokers: &str, purpose: &str, partitions: i32, config: &[(&str, &str)]) -> Self {
        let topic = Self { brokers: brokers.to_owned(), ..Self::unmade(&name_for(purpose), partitions) };
        topic.make(1, config);
        topic
    }

    /// A topic of this very name.
    pub(crate) fn named(name: &str, partitions: i32) -> Self {
        let topic = Self { brokers: broker::address().to_owned(), ..Self::unmade(name, partitions) };
        topic.make(1, &[]);
        topic
    }

    /// A topic that is not created, on no broker.
    pub(crate) fn unmade(name: &str, partitions: i32) -> Self {
        Self { name: name.to_owned(), partitions, brokers: "127.0.0.1:1".to_owned() }
    }

    fn make(&self, copies: i32, config: &[(&str, &str)]) {
        let mut topic = NewTopic::new(&self.name, self.partitions, TopicReplication::Fixed(copies));
        for (key, value) in config {
            topic = topic.set(key, value);
        }
        let made = || {
            let done = block_on(self.admin().create_topics([&topic], &AdminOptions::new()));
            let well = done.iter().all(|topics| topics.iter().all(Result::is_ok));
            holds(well, done)
        };
        // A topic that was just deleted is not quite gone at once.
        wait_until(&format!("topic {} is created", self.name), SOON, made);
        self.wait_known();
    }

    /// Waits until brokers tell of every partition. The controller has them a moment before, and who asks then fails.
    fn wait_known(&self) {
        let admin = self.admin();
        wait_until(&format!("{} partitions of {}", self.partitions, self.name), SOON, || {
            let metadata = admin.inner().fetch_metadata(Some(&self.name), SOON).map_err(|error| error.to_string())?;
            let known = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
            holds(known >= self.partitions as usize, known)
        });
    }

    /// Deletes the topic.
    pub(crate) fn delete(&self) {
        let done = block_on(self.admin().delete_topics(&[&self.name], &AdminOptions::new()));
        assert!(done.iter().all(|topics| topics.iter().all(Result::is_ok)), "cannot delete {}: {done:?}", self.name);
    }

    /// Deletes the topic and creates another one of the same name.
    pub(crate) fn recreate(&self) {
        self.delete();
        self.make(1, &[]);
    }

    /// Deletes the records of a partition below an offset, as retention does.
    pub(crate) fn delete_records(&self, partition: i32, below: i64) {
        let mut list = rdkafka::TopicPartitionList::new();
        list.add_partition_offset(&self.name, partition, rdkafka::Offset::Offset(below)).expect("an offset");
        let done = block_on(self.admin().delete_records(&list, &AdminOptions::new())).expect("the broker answers");
        assert!(done.elements().iter().all(|element| element.error().is_ok()), "cannot delete records: {done:?}");
    }

    /// How many partitions each broker leads, by its number; and whether every copy is in sync.
    pub(crate) fn leaders(&self) -> (HashMap<i32, usize>, bool) {
        use rdkafka::consumer::{BaseConsumer, Consumer as _};
        let consumer: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", &self.brokers).create().expect("a consumer");
        let found = consumer.fetch_metadata(Some(&self.name), SOON).expect("metadata");
        let partitions = found.topics()[0].partitions();
        let mut leaders = HashMap::new();
        for partition in partitions {
            *leaders.entry(partition.leader()).or_default() += 1;
        }
        (leaders, partitions.iter().all(|partition| partition.isr().len() == partition.replicas().len()))
    }

    /// Gives the topic more partitions.
    pub(crate) fn grow(&mut self, partitions: i32) {
        let wanted = NewPartitions::new(&self.name, partitions as usize);
        let done = block_on(self.admin().create_partitions([&wanted], &AdminOptions::new()));
        assert!(done.iter().all(|topics| topics.iter().all(Result::is_ok)), "cannot grow {}: {done:?}", self.name);
        self.partitions = partitions;
        self.wait_known();
    }

    /// Makes records of this mix, tells the oracle nothing, and produces them. Numbers start at `first`.
    pub(crate) fn fill(&self, codec: Codec, mix: Mix, first: u64, count: u64) -> Vec<Record> {
        let records: Vec<_> = (first..first + count).map(|n| mix.record(n, self.partitions)).collect();
        self.produce(codec, &records);
        records
    }

    /// How many records the partitions have had so far, by the broker's word; transactions' markers count too.
    pub(crate) fn end(&self) -> i64 {
        use rdkafka::consumer::{BaseConsumer, Consumer as _};
        let consumer: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", &self.brokers).create().expect("a consumer");
        let end = |partition| consumer.fetch_watermarks(&self.name, partition, SOON).expect("watermarks").1;
        (0..self.partitions).map(end).sum()
    }

    /// What the topic holds, by an ordinary consumer: committed records, in order within each partition.
    pub(crate) fn read(&self) -> Vec<Record> {
        use rdkafka::consumer::{BaseConsumer, Consumer as _};
        use rdkafka::message::Message as _;
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers).set("group.id", "reads").set("enable.partition.eof", "true");
        let consumer: BaseConsumer = config.create().expect("a consumer");
        let mut list = rdkafka::TopicPartitionList::new();
        for partition in 0..self.partitions {
            list.add_partition_offset(&self.name, partition, rdkafka::Offset::Beginning).expect("an offset");
        }
        consumer.assign(&list).expect("an assignment");
        let (mut records, mut ended) = (Vec::new(), 0);
        while ended < self.partitions {
            match consumer.poll(SOON).expect("the broker answers") {
                Ok(message) => records.push(Record {
                    partition: message.partition(),
                    key: message.key().map(<[u8]>::to_vec),
                    value: message.payload().map(<[u8]>::to_vec),
                    timestamp: message.timestamp().to_millis().expect("a time"),
                }),
                Err(KafkaError::PartitionEOF(_)) => ended += 1,
                // Brokers that have just come back are looked for again.
                Err(_) => {}
            }
        }
        records
    }

    /// Produces the records and waits until the broker has acknowledged each.
    pub(crate) fn produce(&self, codec: Codec, records: &[Record]) {
        Producer::new(&self.brokers, codec).send(&self.name, records);
    }

    /// Produces the records in one batch for each partition, however large.
    pub(crate) fn produce_one_batch(&self, codec: Codec, records: &[Record]) {
        let further = [("batch.size", "1000000000"), ("message.max.bytes", "1000000000"), ("linger.ms", "60000")];
        Producer::configured(&self.brokers, codec, &further).send(&self.name, records);
    }

    /// Produces the records, each with these headers.
    pub(crate) fn produce_with_headers(&self, headers: &OwnedHeaders, records: &[Record]) {
        Producer::new(&self.brokers, Codec::None).send_with(&self.name, records, Some(headers));
    }

    /// Produces the records within one transaction, and ends it so.
    pub(crate) fn transact(&self, records: &[Record], end: Transaction) -> Option<Open> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let id = format!("{}_{}", self.name, COUNT.fetch_add(1, Ordering::Relaxed));
        let producer = Producer::configured(&self.brokers, Codec::Snappy, &[("transactional.id", &id)]);
        producer.0.init_transactions(SOON).expect("the broker takes transactions");
        producer.0.begin_transaction().expect("a transaction");
        producer.send(&self.name, records);
        match end {
            Transaction::Committed => producer.0.commit_transaction(SOON).expect("it is committed"),
            Transaction::Aborted => producer.0.abort_transaction(SOON).expect("it is aborted"),
            Transaction::Open => return Some(Open(producer)),
        }
        None
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .create()
            .expect("the admin client's configuration is sound")
    }

    /// Produces in the background until told to stop: some thousand records a second.
    pub(crate) fn load(&self, codec: Codec, mix: Mix) -> Load {
        self.load_every(Duration::from_millis(20), codec, mix)
    }

    /// The same with this pause after each 200 records.
    pub(crate) fn load_every(&self, pause: Duration, codec: Codec, mix: Mix) -> Load {
        self.load_at(pause, 200, codec, mix)
    }

    /// The same with so many records at a time.
    pub(crate) fn load_of(&self, batch: u64, codec: Codec, mix: Mix) -> Load {
        self.load_at(Duration::from_millis(10), batch, codec, mix)
    }

    fn load_at(&self, pause: Duration, batch: u64, codec: Codec, mix: Mix) -> Load {
        let (stop, stopped) = channel();
        let topic = self.clone();
        let thread = std::thread::spawn(move || topic.produce_until(pause, batch, codec, mix, &stopped));
        Load { stop, thread }
    }

    fn produce_until(
        &self,
        pause: Duration,
        batch: u64,
        codec: Codec,
        mix: Mix,
        stopped: &Receiver<()>,
    ) -> Vec<Record> {
        let producer = Producer::new(&self.brokers, codec);
        let mut all = Vec::new();
        loop {
            let first = all.len() as u64;
            let some: Vec<_> = (first..first + batch).map(|n| mix.record(n, self.partitions)).collect();
            producer.send(&self.name, &some);
            all.extend(some);
            if stopped.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                return all;
            }
        }
    }
}

/// A name that no other topic has.
fn name_for(purpose: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{purpose}_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
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

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transaction {
    Committed,
    Aborted,
    /// Not yet.
    Open,
}

/// A transaction that is still open.
pub(crate) struct Open(Producer);

impl Open {
    pub(crate) fn commit(self) {
        self.0.0.commit_transaction(SOON).expect("it is committed");
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
    fn new(brokers: &str, codec: Codec) -> Self {
        Self::configured(brokers, codec, &[])
    }

    fn configured(brokers: &str, codec: Codec, further: &[(&str, &str)]) -> Self {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", brokers)
            .set("compression.type", codec.name())
            .set("enable.idempotence", "true")
            .set("linger.ms", "5")
            .set("message.max.bytes", "20971520");
        for (key, value) in further {
            config.set(*key, *value);
        }
        let producer = config.create_with_context(Delivery::default()).expect("the producer's configuration is sound");
        Self(producer)
    }

    fn send(&self, topic: &str, records: &[Record]) {
        self.send_with(topic, records, None);
    }

    fn send_with(&self, topic: &str, records: &[Record], headers: Option<&OwnedHeaders>) {
        for record in records {
            let mut next: BaseRecord<'_, [u8], [u8]> =
                BaseRecord::to(topic).partition(record.partition).timestamp(record.timestamp);
            if let Some(key) = &record.key {
                next = next.key(key);
            }
            if let Some(value) = &record.value {
                next = next.payload(value);
            }
            if let Some(headers) = headers {
                next = next.headers(headers.clone());
            }
            while let Err((error, back)) = self.0.send(next) {
                assert_eq!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::QueueFull), "cannot produce: {error}");
                self.0.poll(Duration::from_millis(50));
                next = back;
            }
        }
        // A broker of its own may be restarting just then, on a busy machine.
        self.0.flush(3 * SOON).expect("the broker takes the records");
        let failed = self.0.context().0.lock().expect("not poisoned");
        assert!(failed.is_empty(), "records that were not delivered: {failed:?}");
    }
}

/// The committed offsets of a group, by partition.
pub(crate) fn committed(group: &str, topic: &Topic) -> HashMap<i32, i64> {
    Group::at(&topic.brokers, group).committed(topic)
}

/// A group, asked from outside.
pub(crate) struct Group(BaseConsumer);

/// `LeaveGroup`, and a version of it that brokers of today take.
const LEAVE_GROUP: [i16; 2] = [13, 3];

impl Group {
    pub(crate) fn new(name: &str) -> Self {
        Self::at(broker::address(), name)
    }

    /// The same on other brokers.
    pub(crate) fn at(brokers: &str, name: &str) -> Self {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers).set("group.id", name);
        Self(config.create().expect("the consumer's configuration is sound"))
    }

    /// The name of a group that this broker coordinates.
    pub(crate) fn coordinated_by(broker: i32, brokers: &str) -> String {
        let asker: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("group.id", "asker")
            .create()
            .expect("the consumer's configuration is sound");
        // Where groups are kept is decided when somebody asks for the first of them.
        let mut leaders = Vec::new();
        wait_until("the broker coordinates some groups", SOON, || {
            drop(asker.committed_offsets(rdkafka::TopicPartitionList::new(), SOON));
            let found = asker.fetch_metadata(Some("__consumer_offsets"), SOON).map_err(|error| error.to_string())?;
            leaders = found.topics()[0].partitions().iter().map(rdkafka::metadata::MetadataPartition::leader).collect();
            holds(leaders.contains(&broker), &leaders)
        });
        // `String.hashCode` of Java.
        let hash = |name: &str| name.bytes().fold(0_i32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
        let mut names = (0..).map(|number| format!("g{number}"));
        names
            .find(|name| leaders[(hash(name) & i32::MAX) as usize % leaders.len()] == broker)
            .expect("there is always one")
    }

    /// Has a guest join it, waits until that has every partition of a topic, and has it leave: nobody else is a member any
    /// more then, unless it has joined again. The guest commits nothing.
    pub(crate) fn visit(brokers: &str, name: &str, topic: &Topic, properties: &[(&str, &str)]) {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers).set("group.id", name).set("enable.auto.commit", "false");
        for (key, value) in properties {
            config.set(*key, *value);
        }
        let guest: BaseConsumer = config.create().expect("the consumer's configuration is sound");
        guest.subscribe(&[&topic.name]).expect("a subscription");
        wait_until("a guest has every partition", SOON, || {
            // What it reads goes nowhere.
            drop(guest.poll(Duration::from_millis(50)));
            let count = guest.assignment().map_err(|error| error.to_string())?.count();
            holds(count == topic.partitions as usize, count)
        });
    }

    /// Removes every member, as an administrator does. Only of a group of the classic protocol.
    pub(crate) fn remove_members(brokers: &str, name: &str) {
        let asker: BaseConsumer = ClientConfig::new().set("bootstrap.servers", brokers).create().expect("a consumer");
        let mut members = Vec::new();
        // One that has lost its session by chance is about to join again.
        wait_until(&format!("the group {name} has a member"), SOON, || {
            let groups = asker.fetch_group_list(Some(name), SOON).map_err(|error| error.to_string())?;
            let found = groups.groups().iter().flat_map(rdkafka::groups::GroupInfo::members);
            members = found.map(|member| member.id().to_owned()).collect();
            holds(!members.is_empty(), "it has none")
        });
        let text = |text: &str| [&(text.len() as u16).to_be_bytes()[..], text.as_bytes()].concat();
        let mut request: Vec<u8> = LEAVE_GROUP.iter().flat_map(|number| number.to_be_bytes()).collect();
        request.extend(7_u32.to_be_bytes());
        request.extend(text("test"));
        request.extend(text(name));
        request.extend((members.len() as u32).to_be_bytes());
        for member in members {
            request.extend(text(&member));
            // No instance id.
            request.extend((-1_i16).to_be_bytes());
        }
        let mut stream = TcpStream::connect(brokers).expect("the broker is there");
        stream.set_read_timeout(Some(SOON)).expect("a socket");
        stream.write_all(&(request.len() as u32).to_be_bytes()).expect("it takes the request");
        stream.write_all(&request).expect("it takes the request");
        // Length, id, throttle time, error.
        let mut answer = [0; 14];
        stream.read_exact(&mut answer).expect("it answers");
        assert_eq!(answer[12..], [0, 0], "the members are removed");
    }

    /// Deletes it with its offsets, once it has no member any more.
    pub(crate) fn delete(brokers: &str, name: &str) {
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", brokers).create().expect("an admin client");
        wait_until(&format!("the group {name} is deleted"), SOON, || {
            let done = block_on(admin.delete_groups(&[name], &AdminOptions::new()));
            let well = done.iter().all(|groups| groups.iter().all(Result::is_ok));
            holds(well && done.is_ok(), done)
        });
    }

    /// Its committed offsets, by partition.
    pub(crate) fn committed(&self, topic: &Topic) -> HashMap<i32, i64> {
        let mut list = rdkafka::TopicPartitionList::new();
        list.add_partition_range(&topic.name, 0, topic.partitions - 1);
        // A broker that has just started is not the coordinator of any group yet.
        let mut found = None;
        wait_until("the group's offsets", SOON, || {
            found = Some(self.0.committed_offsets(list.clone(), SOON).map_err(|error| error.to_string())?);
            Ok(())
        });
        let list = found.expect("just found");
        list.elements().iter().filter_map(|e| Some((e.partition(), e.offset().to_raw().filter(|o| *o >= 0)?))).collect()
    }
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
