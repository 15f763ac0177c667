//! Reads records once more for recovery, and makes their lines again.
//!
//! It needs no group and disturbs none: even when another instance owns the partition now, the records of a block that
//! was cut short here belong here.
//!
//! **Promise.** No record is given up for an answer that may be a passing one: the power cut that took us may have taken a
//! leader, and the next one says for a moment that its log is shorter than it is. What retention took, and a topic of another
//! id, are certain. An end of the log before the end of the block, an offset refused for no reason that shows, and a topic
//! that nobody knows nor has configured are believed after a minute, the first of a partition for its other blocks too. A
//! topic that is named in `kafka.topics` is waited for.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::never;
use rdkafka::types::RDKafkaErrorCode as Code;

use super::TopicPartition;
use super::consumer::{is_damage, now_millis};
use super::journal::{Block, BlockSource, Position};
use super::native::{Client, KafkaError, Message, OffsetSpec};
use super::store::Store;
use super::tracker::Tracker;
use crate::block::{RawBlock, Records, Source};
use crate::delivery::recovery::{RecoveryError, Regenerate, Regenerated};
use crate::fault;
use crate::record::Reason;
use crate::transform::recipe::{Engine, Recipe, RecipeError};
use crate::transform::worker::Worker;

/// Pause between attempts while no broker answers.
const RETRY: Duration = Duration::from_secs(1);

/// How often damaged records are read before they are given up: the network may have damaged them.
const TRIES: u32 = 5;

/// How long brokers may say of a partition what would mean that records are gone. A new leader knows how far its log was
/// acknowledged once its followers have asked it, 30 s at most unless `replica.lag.time.max.ms` is set.
const PATIENCE: Duration = Duration::from_mins(1);

/// Whether and how long recovery waits for brokers.
pub trait Wait {
    /// Called while there is nothing to read, with the reason if there is one; false ends the recovery.
    fn go_on(&mut self, reason: Option<&str>) -> bool;
}

/// See the module.
pub struct Rereader<'a> {
    properties: BTreeMap<String, String>,
    /// `kafka.topics`.
    topics: &'a [String],
    recipes: PathBuf,
    store: &'a dyn Store,
    wait: &'a mut dyn Wait,
    patience: Duration,
    /// Since when there is doubt about what brokers say of a partition.
    doubts: HashMap<TopicPartition, Instant>,
    client: Option<Client>,
    engines: HashMap<String, Arc<Engine>>,
    worker: Worker,
}

impl std::fmt::Debug for Rereader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rereader").finish_non_exhaustive()
    }
}

impl<'a> Rereader<'a> {
    /// A reader that connects when it is first needed. `topics` are those of the configuration.
    pub fn new(
        properties: BTreeMap<String, String>,
        topics: &'a [String],
        recipes: PathBuf,
        store: &'a dyn Store,
        wait: &'a mut dyn Wait,
    ) -> Self {
        let worker = Worker::new(never());
        let mut properties = properties;
        // What is read is there already. A fetch that waits for more, at the end of the log, would hold up the next block.
        properties.insert("fetch.wait.max.ms".into(), "5".into());
        Self {
            properties,
            topics,
            recipes,
            store,
            wait,
            patience: fault::duration("FAULT_REREAD_MS", PATIENCE),
            doubts: HashMap::new(),
            client: None,
            engines: HashMap::new(),
            worker,
        }
    }

    fn engine(&mut self, fingerprint: &str) -> Result<Arc<Engine>, RecipeError> {
        if let Some(engine) = self.engines.get(fingerprint) {
            return Ok(Arc::clone(engine));
        }
        let engine = Arc::new(Recipe::load(&self.recipes, fingerprint)?.engine(fingerprint)?);
        self.engines.insert(fingerprint.to_owned(), Arc::clone(&engine));
        Ok(engine)
    }

    /// The records `[from, to.next)` of a partition, or why they are gone.
    fn records(&mut self, from: i64, to: &Position) -> Result<Result<Vec<Message>, String>, RecoveryError> {
        if self.client.is_none() {
            self.client = Some(Client::new(&self.properties)?);
        }
        let Some(client) = &self.client else { return Ok(Err("no client".into())) };
        let mut damaged = 0;
        loop {
            let read = match topic(client, self.topics, to) {
                Some(without) => without,
                None => read(client, from, to, self.wait)?,
            };
            let why = match read {
                Read::Whole(records) => {
                    self.doubts.remove(&to.partition);
                    return Ok(Ok(records));
                }
                Read::Gone(why) => return Ok(Err(why)),
                Read::Damaged(why) => {
                    damaged += 1;
                    if damaged == TRIES {
                        return Ok(Err(why));
                    }
                    why
                }
                Read::Doubtful(why) => {
                    let since = *self.doubts.entry(to.partition.clone()).or_insert_with(Instant::now);
                    if since.elapsed() >= self.patience {
                        return Ok(Err(why));
                    }
                    why
                }
                Read::NotNow(why) => why,
            };
            pause(self.wait, &why)?;
        }
    }
}

impl From<KafkaError> for RecoveryError {
    fn from(error: KafkaError) -> Self {
        Self::Source(error.to_string())
    }
}

fn pause(wait: &mut dyn Wait, reason: &str) -> Result<(), RecoveryError> {
    let until = Instant::now() + RETRY;
    while Instant::now() < until {
        if !wait.go_on(Some(reason)) {
            return Err(RecoveryError::Stopped);
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
    Ok(())
}

/// What became of reading a range again.
#[derive(Debug)]
enum Read {
    /// All of its records.
    Whole(Vec<Message>),
    /// They are not to be had, for this reason.
    Gone(String),
    /// They cannot be read; another try may find them whole.
    Damaged(String),
    /// The brokers say what would mean that they are gone, which only time can tell.
    Doubtful(String),
    /// Nobody can tell yet.
    NotNow(String),
}

/// What the topic says of records before any is read: nothing when it is there.
fn topic(client: &Client, configured: &[String], to: &Position) -> Option<Read> {
    let name = to.partition.topic.to_string();
    let found = client.describe_topics(std::slice::from_ref(&name), RETRY * 5).map(|mut infos| infos.pop());
    Some(match found {
        Ok(Some(Ok(info))) if !info.id.is_empty() && !to.topic_id.is_empty() && info.id != to.topic_id => {
            Read::Gone("the topic was deleted and created anew".into())
        }
        Ok(Some(Ok(_))) => return None,
        Ok(Some(Err(error))) if error.code == Code::UnknownTopicOrPartition => {
            if configured.contains(&name) {
                let way_out = "take it out of `kafka.topics` to go on without what was cut short of it";
                Read::NotNow(format!("the brokers have no topic {name}: if it was deleted, {way_out}"))
            } else {
                Read::Doubtful(format!("the topic {name} was deleted"))
            }
        }
        Ok(Some(Err(error))) | Err(error) => Read::NotNow(error.to_string()),
        Ok(None) => Read::NotNow("the broker says nothing of the topic".into()),
    })
}

fn read(client: &Client, from: i64, to: &Position, wait: &mut dyn Wait) -> Result<Read, RecoveryError> {
    client.assign(&[(to.partition.clone(), from)])?;
    let read = take(client, from, to, wait);
    client.unassign()?;
    read
}

fn take(client: &Client, from: i64, to: &Position, wait: &mut dyn Wait) -> Result<Read, RecoveryError> {
    let (mut records, mut batch) = (Vec::new(), Vec::new());
    loop {
        client.consume(&mut batch, 1024, Duration::from_millis(50));
        for message in batch.drain(..) {
            match message.error() {
                None if message.offset() >= to.next => return Ok(Read::Whole(records)),
                // Epochs only rise: a record of a later one was not there when the block was read.
                None if to.leader_epoch >= 0 && message.leader_epoch() > to.leader_epoch => {
                    return Ok(Read::Gone("the broker's log was cut off and went on with other records".into()));
                }
                None => {
                    let done = message.offset() + 1 >= to.next;
                    records.push(message);
                    if done {
                        return Ok(Read::Whole(records));
                    }
                }
                Some(error) if error.code == Code::PartitionEOF => {
                    if message.offset() >= to.next {
                        return Ok(Read::Whole(records));
                    }
                    return Ok(Read::Doubtful(format!("the broker's log ends at {}", message.offset())));
                }
                Some(error) if matches!(error.code, Code::AutoOffsetReset | Code::OffsetOutOfRange) => {
                    return Ok(out_of_range(client, from, &to.partition, &error));
                }
                Some(error) if is_damage(error.code) => return Ok(Read::Damaged(error.to_string())),
                Some(error)
                    if matches!(
                        error.code,
                        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition
                    ) =>
                {
                    return Ok(Read::Doubtful(error.to_string()));
                }
                Some(error) => {
                    if !wait.go_on(Some(&error.to_string())) {
                        return Err(RecoveryError::Stopped);
                    }
                }
            }
        }
        while client.next_event().is_some() {}
        if !wait.go_on(None) {
            return Err(RecoveryError::Stopped);
        }
    }
}

/// The broker refuses the offset: retention took the records, or it is behind for a moment.
fn out_of_range(client: &Client, from: i64, partition: &TopicPartition, error: &KafkaError) -> Read {
    let earliest = [(partition.clone(), OffsetSpec::Earliest)];
    let lows = client.list_offsets(&earliest, false, RETRY * 5);
    match lows.and_then(|lows| lows.into_iter().collect::<Result<Vec<_>, _>>()) {
        Ok(lows) if lows.iter().any(|low| *low > from) => Read::Gone("retention took the records".into()),
        Ok(_) => Read::Doubtful(format!("the broker refuses offset {from}, which retention has not reached: {error}")),
        Err(error) => Read::NotNow(error.to_string()),
    }
}

/// The records of a block without those that could have no file, whatever is in the way of it by now.
fn without_file(records: Records, block: &Block) -> Records {
    let refused: Vec<_> = block.rejects.iter().filter(|(_, entry)| entry.reject.reason == Reason::Sink).collect();
    match records {
        Records::Kafka(mut messages) => {
            messages.retain(|message| refused.iter().all(|(_, entry)| entry.offset != message.offset()));
            Records::Kafka(messages)
        }
        Records::Queue(mut entries) => {
            entries.retain(|(key, _)| refused.iter().all(|(refused, _)| refused != key));
            Records::Queue(entries)
        }
    }
}

impl Regenerate for Rereader<'_> {
    fn lines(&mut self, block: &Block) -> Result<Regenerated, RecoveryError> {
        let engine = match self.engine(&block.recipe) {
            Ok(engine) => engine,
            // The disk fails: that passes, a gap does not.
            Err(RecipeError::Read(path, error)) if error.kind() != io::ErrorKind::NotFound => {
                return Err(RecoveryError::File(format!("blocks without their recipe {path}"), error));
            }
            Err(error) => return Ok(Regenerated::Gone(error.to_string())),
        };
        let (source, records) = match &block.source {
            BlockSource::Offsets { from, to } => match self.records(*from, to)? {
                Ok(messages) => {
                    // Nothing of this block is delivered through the tracker: any epoch does.
                    let epoch = Tracker::default().begin(to.partition.clone(), *from);
                    (Source::Partition { epoch, from: *from, to: to.clone() }, Records::Kafka(messages))
                }
                Err(gone) => return Ok(Regenerated::Gone(gone)),
            },
            BlockSource::Queue(taken) => {
                let mut entries = Vec::new();
                for (key, _) in taken {
                    match self.store.entry(*key) {
                        Ok(Some(entry)) => entries.push((*key, entry)),
                        Ok(None) => return Ok(Regenerated::Gone(format!("entry {key} of the failure queue is gone"))),
                        Err(error) => return Err(error.into()),
                    }
                }
                (Source::Queue(taken.clone()), Records::Queue(entries))
            }
        };
        let records = without_file(records, block);
        let done = self.worker.run(RawBlock { ticket: 0, source, records, engine, now: now_millis(), cost: 0 });
        Ok(Regenerated::Lines(done.pieces.into_iter().map(|lines| lines.bytes).collect()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rdkafka::ClientConfig;
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer as _};
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    use super::*;
    use crate::msource::store::SledStore;

    struct Impatient;

    impl Wait for Impatient {
        fn go_on(&mut self, _: Option<&str>) -> bool {
            false
        }
    }

    #[test]
    fn a_recipe_that_cannot_be_read_for_now_makes_no_gap() {
        let scratch = tempfile::TempDir::new().unwrap();
        let store = SledStore::open(&scratch.path().join("sled"), Duration::ZERO).unwrap();
        // A directory in the place of the file gives an I/O error whoever asks.
        fs::create_dir(scratch.path().join("r.json")).unwrap();
        let mut wait = Impatient;
        let mut source = Rereader::new(BTreeMap::new(), &[], scratch.path().to_owned(), &store, &mut wait);
        let block = |recipe: &str| Block {
            number: 1,
            source: BlockSource::Queue(Vec::new()),
            recipe: recipe.into(),
            pieces: Vec::new(),
            records: 0,
            filtered: [0; 3],
            rejects: Vec::new(),
        };
        let error = source.lines(&block("r")).unwrap_err();
        assert_eq!(error.cure(), crate::delivery::Cure::Again, "{error}");
        let gone = source.lines(&block("none")).unwrap();
        assert!(matches!(gone, Regenerated::Gone(_)), "{gone:?}");
    }

    /// Brokers in the process, and what happens to them while recovery waits.
    struct Brokers<'a> {
        cluster: MockCluster<'static, DefaultProducerContext>,
        producer: BaseProducer,
        /// Why it waited.
        reasons: Vec<String>,
        /// Happens at the first wait for a reason.
        then: Option<&'a dyn Fn(&BaseProducer)>,
    }

    impl Brokers<'_> {
        fn new() -> Self {
            let cluster = MockCluster::new(1).expect("brokers");
            cluster.create_topic("t", 1, 1).expect("a topic");
            let mut config = ClientConfig::new();
            let producer = config.set("bootstrap.servers", cluster.bootstrap_servers()).create().expect("a producer");
            Self { cluster, producer, reasons: Vec::new(), then: None }
        }

        /// Reads `[0, 10)` of the only partition of this topic again, with this patience.
        fn reread(&mut self, topic: &str, configured: &[&str], patience: Duration) -> Result<Vec<i64>, String> {
            let properties = [
                ("bootstrap.servers", self.cluster.bootstrap_servers()),
                ("group.id", "g".into()),
                ("auto.offset.reset", "error".into()),
                ("enable.partition.eof", "true".into()),
            ];
            let properties = properties.map(|(key, value)| (key.to_owned(), value)).into();
            let configured: Vec<_> = configured.iter().map(|&name| name.to_owned()).collect();
            let dir = tempfile::tempdir().expect("a directory");
            let store = SledStore::open(dir.path(), Duration::ZERO).expect("a store");
            let mut reader = Rereader::new(properties, &configured, PathBuf::new(), &store, self);
            reader.patience = patience;
            let partition = TopicPartition { topic: topic.into(), partition: 0 };
            let to = Position { partition, topic_id: String::new(), next: 10, leader_epoch: -1 };
            let read = reader.records(0, &to).map_err(|error| error.to_string())?;
            read.map(|records| records.iter().map(Message::offset).collect())
        }
    }

    impl Wait for Brokers<'_> {
        fn go_on(&mut self, reason: Option<&str>) -> bool {
            let Some(reason) = reason else { return true };
            if let Some(then) = self.then.take() {
                then(&self.producer);
            }
            if self.reasons.last().is_none_or(|last| last != reason) {
                self.reasons.push(reason.to_owned());
            }
            !reason.contains("take it out")
        }
    }

    fn produce(producer: &BaseProducer, records: usize, size: usize) {
        for _ in 0..records {
            producer.send(BaseRecord::<[u8], [u8]>::to("t").partition(0).payload(&vec![b'x'; size])).expect("room");
        }
        producer.flush(Duration::from_mins(1)).expect("the brokers take the records");
    }

    const LONG: Duration = Duration::from_mins(1);

    #[test]
    fn a_log_that_is_too_short_for_a_moment_is_no_gap() {
        let mut brokers = Brokers::new();
        produce(&brokers.producer, 4, 10);
        brokers.then = Some(&|producer| produce(producer, 8, 10));
        assert_eq!(brokers.reread("t", &[], LONG), Ok((0..10).collect()));
        assert_eq!(brokers.reasons, ["the broker's log ends at 4"]);
        let mut brokers = Brokers::new();
        produce(&brokers.producer, 4, 10);
        let gone = brokers.reread("t", &[], Duration::ZERO);
        assert_eq!(gone, Err("the broker's log ends at 4".into()), "it stays so");
    }

    #[test]
    fn an_offset_that_is_refused_is_a_gap_only_where_retention_has_reached_it() {
        let mut brokers = Brokers::new();
        produce(&brokers.producer, 12, 10);
        let refused = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE;
        brokers.cluster.request_errors(RDKafkaApiKey::Fetch, &[refused]);
        assert_eq!(brokers.reread("t", &[], LONG), Ok((0..10).collect()));
        assert!(brokers.reasons[0].contains("the broker refuses offset 0"), "{:?}", brokers.reasons);
        // The cluster keeps 5 MB of a partition.
        produce(&brokers.producer, 10, 900_000);
        assert_eq!(brokers.reread("t", &[], LONG), Err("retention took the records".into()));
    }

    #[test]
    fn a_topic_that_nobody_knows_is_waited_for_only_while_it_is_configured() {
        let mut brokers = Brokers::new();
        let told = brokers.reread("gone", &["t", "gone"], Duration::ZERO);
        assert_eq!(told, Err(RecoveryError::Stopped.to_string()));
        assert!(brokers.reasons[0].contains("take it out of `kafka.topics`"), "{:?}", brokers.reasons);
        assert_eq!(brokers.reread("gone", &["t", "^g"], Duration::ZERO), Err("the topic gone was deleted".into()));
    }
}
