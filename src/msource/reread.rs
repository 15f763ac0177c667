//! Reads records once more for recovery, and makes their lines again.
//!
//! It needs no group and disturbs none: even when another instance owns the partition now, the records of a block that
//! was cut short here belong here.
//!
//! **Promise.** No record is given up for an answer that may be a passing one: the power cut that took us may have taken a
//! leader, and the next one says for a moment that its log is shorter than it is. What retention took is certain. An end of the
//! log before the end of the block, an offset refused for no reason that shows, a topic of another id, and one that nobody
//! knows nor has configured are believed after a minute, the first of a partition for its other blocks too. A
//! topic that is named in `kafka.topics` is waited for.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::never;
use rdkafka::types::RDKafkaErrorCode as Code;

use super::TopicPartition;
use super::consumer::{Unreadable, end_of_damage, now_millis};
use super::doubt::Doubt;
use super::journal::{Block, BlockSource, Position};
use super::native::{Client, KafkaError, Message, OffsetSpec};
use super::store::Store;
use super::tracker::Epoch;
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
    /// What brokers say of a partition that is in doubt.
    doubts: HashMap<TopicPartition, Doubt<Said>>,
    client: Option<(Isolation, Client)>,
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

    /// What is left of the records `[from, to.next)` of a partition.
    fn records(&mut self, isolation: Isolation, from: i64, to: &Position) -> Result<Found, RecoveryError> {
        let client = match self.client.take() {
            Some((of, client)) if of == isolation => client,
            _ => {
                let mut properties = self.properties.clone();
                properties.insert("isolation.level".into(), isolation.name().into());
                Client::new(&properties)?
            }
        };
        let found = self.records_with(&client, from, to);
        self.client = Some((isolation, client));
        found
    }

    fn records_with(&mut self, client: &Client, from: i64, to: &Position) -> Result<Found, RecoveryError> {
        let mut found = Found::default();
        let (mut next, mut damaged) = (from, 0);
        loop {
            let end = match topic(client, self.topics, to) {
                Some(without) => without,
                None => read(client, next, to, &mut found.records, self.wait)?,
            };
            next = found.records.last().map_or(next, |last| next.max(last.offset() + 1));
            let why = match end {
                End::Whole => {
                    self.doubts.remove(&to.partition);
                    return Ok(found);
                }
                End::Gone(why) => return Ok(found.without(why)),
                End::GoneBelow(low, why) => {
                    found.gone = Some(why);
                    if low >= to.next {
                        return Ok(found);
                    }
                    next = low;
                    continue;
                }
                End::Damaged(why) => {
                    damaged += 1;
                    if damaged < TRIES {
                        why
                    } else {
                        match end_of_damage(&self.properties, &to.partition, next, to.next) {
                            Ok(end) => {
                                (next, damaged, found.gone) = (end, 0, Some(why));
                                if next >= to.next {
                                    return Ok(found);
                                }
                                continue;
                            }
                            Err(error) => error.to_string(),
                        }
                    }
                }
                End::Doubtful(said, why) => {
                    let now = Instant::now();
                    let doubt = self.doubts.entry(to.partition.clone()).or_insert_with(|| Doubt::new(said, now));
                    if doubt.lasts(said, now, self.patience) {
                        return Ok(found.without(why));
                    }
                    why
                }
                End::NotNow(why) => why,
            };
            pause(self.wait, &why)?;
        }
    }
}

/// Whether records of aborted transactions are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Isolation {
    Committed,
    Uncommitted,
}

impl Isolation {
    /// librdkafka's `isolation.level`.
    fn name(self) -> &'static str {
        match self {
            Self::Committed => "read_committed",
            Self::Uncommitted => "read_uncommitted",
        }
    }

    /// The levels with which the records of a recipe may have been read, the likelier one last. A recipe of an earlier version
    /// does not say: then what the configuration says now is tried, and taken if it gives the same lines.
    fn of(recipe: &Recipe, properties: &BTreeMap<String, String>) -> &'static [Self] {
        let level = properties.get("isolation.level");
        let configured = level.is_some_and(|level| level.eq_ignore_ascii_case(Self::Uncommitted.name()));
        match (recipe.read_uncommitted, configured) {
            (true, _) => &[Self::Uncommitted],
            (false, true) => &[Self::Uncommitted, Self::Committed],
            (false, false) => &[Self::Committed],
        }
    }
}

/// What is left of some records.
#[derive(Debug, Default)]
struct Found {
    records: Vec<Message>,
    /// Why the others are gone, if any are for a reason that shows.
    gone: Option<String>,
}

impl Found {
    /// What was not found is gone, for this reason.
    fn without(self, why: String) -> Self {
        Self { gone: Some(why), ..self }
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

/// What brokers say that would mean that records are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    /// The topic is another one.
    OtherTopic,
    /// There is no such topic.
    NoTopic,
    /// There is no such partition.
    NoPartition,
    /// The log ends before the end of the range, wherever that is: it may grow meanwhile.
    End,
    /// The offset is refused, for no reason that shows.
    Refused,
}

/// How reading a range again ended.
#[derive(Debug)]
enum End {
    /// At the end of the range.
    Whole,
    /// The rest is not to be had, for this reason.
    Gone(String),
    /// What is below this offset is not to be had.
    GoneBelow(i64, String),
    /// What comes next cannot be read; another try may find it whole.
    Damaged(String),
    /// The brokers say what would mean that the rest is gone, which only time can tell.
    Doubtful(Said, String),
    /// Nobody can tell yet.
    NotNow(String),
}

/// What the topic says of records before any is read: nothing when it is there.
fn topic(client: &Client, configured: &[String], to: &Position) -> Option<End> {
    let name = to.partition.topic.to_string();
    let found = client.describe_topics(std::slice::from_ref(&name), RETRY * 5).map(|mut infos| infos.pop());
    Some(match found {
        Ok(Some(Ok(info))) if !info.id.is_empty() && !to.topic_id.is_empty() && info.id != to.topic_id => {
            End::Doubtful(Said::OtherTopic, "the topic was deleted and created again".into())
        }
        Ok(Some(Ok(_))) => return None,
        Ok(Some(Err(error))) if error.code == Code::UnknownTopicOrPartition => {
            if configured.contains(&name) {
                let way_out = "take it out of `kafka.topics` to go on without what was cut short of it";
                End::NotNow(format!("the brokers have no topic {name}: if it was deleted, {way_out}"))
            } else {
                End::Doubtful(Said::NoTopic, format!("the topic {name} was deleted"))
            }
        }
        Ok(Some(Err(error))) | Err(error) => End::NotNow(error.to_string()),
        Ok(None) => End::NotNow("the broker says nothing of the topic".into()),
    })
}

/// Adds the records `[from, to.next)` to those found, up to the first obstacle.
fn read(
    client: &Client,
    from: i64,
    to: &Position,
    found: &mut Vec<Message>,
    wait: &mut dyn Wait,
) -> Result<End, RecoveryError> {
    client.assign(&[(to.partition.clone(), from)])?;
    let end = take(client, from, to, found, wait);
    client.unassign()?;
    end
}

fn take(
    client: &Client,
    from: i64,
    to: &Position,
    found: &mut Vec<Message>,
    wait: &mut dyn Wait,
) -> Result<End, RecoveryError> {
    let mut batch = Vec::new();
    loop {
        client.consume(&mut batch, 1024, Duration::from_millis(50));
        for message in batch.drain(..) {
            match message.error() {
                None if message.offset() < from => {}
                None if message.offset() >= to.next => return Ok(End::Whole),
                // Epochs only rise: a record of a later one was not there when the block was read.
                None if to.leader_epoch >= 0 && message.leader_epoch() > to.leader_epoch => {
                    return Ok(End::Gone("the broker's log was cut off and went on with other records".into()));
                }
                None => {
                    let done = message.offset() + 1 >= to.next;
                    found.push(message);
                    if done {
                        return Ok(End::Whole);
                    }
                }
                Some(error) if error.code == Code::PartitionEOF => {
                    if message.offset() >= to.next {
                        return Ok(End::Whole);
                    }
                    return Ok(End::Doubtful(Said::End, format!("the broker's log ends at {}", message.offset())));
                }
                Some(error) if matches!(error.code, Code::AutoOffsetReset | Code::OffsetOutOfRange) => {
                    return Ok(out_of_range(client, from, &to.partition, &error));
                }
                Some(error) if Unreadable::of(&error) == Some(Unreadable::Damaged) => {
                    return Ok(End::Damaged(error.to_string()));
                }
                Some(error) if Unreadable::of(&error).is_some() => {
                    return Ok(End::NotNow(format!(
                        "{}: a batch that is not damaged cannot be unpacked: {error}; raise `memory`, or `receive.message.max.bytes` in `kafka.librdkafka`",
                        to.partition
                    )));
                }
                Some(error)
                    if matches!(
                        error.code,
                        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition
                    ) =>
                {
                    return Ok(End::Doubtful(Said::NoPartition, error.to_string()));
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
fn out_of_range(client: &Client, from: i64, partition: &TopicPartition, error: &KafkaError) -> End {
    let earliest = [(partition.clone(), OffsetSpec::Earliest)];
    let lows = client.list_offsets(&earliest, RETRY * 5);
    match lows.into_iter().collect::<Result<Vec<_>, _>>() {
        Ok(lows) if lows.iter().any(|low| *low > from) => {
            End::GoneBelow(lows.into_iter().fold(from, i64::max), "retention took the records".into())
        }
        Ok(_) => End::Doubtful(
            Said::Refused,
            format!("the broker refuses offset {from}, which retention has not reached: {error}"),
        ),
        Err(error) => End::NotNow(error.to_string()),
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
            Err(error) => return Ok(Regenerated::gone(error.to_string())),
        };
        let (last, others) = match &block.source {
            BlockSource::Offsets { .. } => Isolation::of(&engine.recipe, &self.properties),
            BlockSource::Queue(_) | BlockSource::Adopted { .. } => &[Isolation::Committed],
        }
        .split_last()
        .unwrap_or((&Isolation::Committed, &[]));
        for isolation in others {
            let made = self.make(block, &engine, *isolation)?;
            if is_exact(block, &made) {
                return Ok(made);
            }
        }
        self.make(block, &engine, *last)
    }
}

impl Rereader<'_> {
    fn make(
        &mut self,
        block: &Block,
        engine: &Arc<Engine>,
        isolation: Isolation,
    ) -> Result<Regenerated, RecoveryError> {
        let mut gone = None;
        let (source, records) = match &block.source {
            BlockSource::Offsets { from, to } => {
                let found = self.records(isolation, *from, to)?;
                gone = found.gone;
                // Nothing of this block is delivered through the tracker.
                let epoch = Epoch::NONE;
                (Source::Partition { epoch, from: *from, to: to.clone() }, Records::Kafka(found.records))
            }
            // It has no lines, so none of it can be missing.
            BlockSource::Adopted { .. } => return Ok(Regenerated { lines: Vec::new(), gone: None }),
            BlockSource::Queue(taken) => {
                let mut entries = Vec::new();
                for (key, _) in taken {
                    match self.store.entry(*key)? {
                        Some(entry) => entries.push((*key, entry)),
                        None => gone = Some(format!("entry {key} of the failure queue is gone")),
                    }
                }
                (Source::Queue(taken.clone()), Records::Queue(entries))
            }
        };
        let records = without_file(records, block);
        let engine = Arc::clone(engine);
        let done = self.worker.run(RawBlock { ticket: 0, source, records, engine, now: now_millis(), cost: 0 });
        let lines = done.pieces.into_iter().map(|lines| (lines.key, lines.bytes)).collect();
        Ok(Regenerated { lines, gone })
    }
}

/// Whether the lines are those of the block.
fn is_exact(block: &Block, made: &Regenerated) -> bool {
    let mut wanted: Vec<_> = block.pieces.iter().map(|piece| (piece.length, piece.crc)).collect();
    let mut found: Vec<_> = made.lines.iter().map(|(_, lines)| (lines.len() as u64, crc32c::crc32c(lines))).collect();
    wanted.sort_unstable();
    found.sort_unstable();
    wanted == found
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
        assert!(gone.lines.is_empty() && gone.gone.is_some(), "{gone:?}");
    }

    /// Brokers in the process, and what happens to them while recovery waits.
    struct Brokers<'a> {
        cluster: MockCluster<'static, DefaultProducerContext>,
        producer: BaseProducer,
        /// Why it waited.
        reasons: Vec<String>,
        /// Happens at the first wait for a reason.
        then: Option<&'a dyn Fn(&BaseProducer)>,
        /// Whether a record comes with each reason that was not told yet.
        grows: bool,
    }

    impl Brokers<'_> {
        fn new() -> Self {
            let cluster = MockCluster::new(1).expect("brokers");
            cluster.create_topic("t", 1, 1).expect("a topic");
            let mut config = ClientConfig::new();
            let producer = config.set("bootstrap.servers", cluster.bootstrap_servers()).create().expect("a producer");
            Self { cluster, producer, reasons: Vec::new(), then: None, grows: false }
        }

        /// Reads `[0, 10)` of the only partition of this topic again, with this patience.
        fn reread(&mut self, topic: &str, configured: &[&str], patience: Duration) -> Result<Reread, String> {
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
            let found = reader.records(Isolation::Committed, 0, &to).map_err(|error| error.to_string())?;
            Ok((found.records.iter().map(Message::offset).collect(), found.gone))
        }
    }

    /// The offsets of the records that are left, and why the others are gone.
    type Reread = (Vec<i64>, Option<String>);

    impl Wait for Brokers<'_> {
        fn go_on(&mut self, reason: Option<&str>) -> bool {
            let Some(reason) = reason else { return true };
            if let Some(then) = self.then.take() {
                then(&self.producer);
            }
            if self.reasons.last().is_none_or(|last| last != reason) {
                self.reasons.push(reason.to_owned());
                if self.grows {
                    produce(&self.producer, 1, 10);
                }
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
        assert_eq!(brokers.reread("t", &[], LONG), Ok(((0..10).collect(), None)));
        assert_eq!(brokers.reasons, ["the broker's log ends at 4"]);
        let mut brokers = Brokers::new();
        produce(&brokers.producer, 4, 10);
        let gone = brokers.reread("t", &[], Duration::ZERO);
        let left = ((0..4).collect(), Some("the broker's log ends at 4".into()));
        assert_eq!(gone, Ok(left), "it stays so, and the records before it are there");
    }

    #[test]
    fn a_log_that_was_cut_off_and_grows_slowly_is_believed_in_time() {
        let mut brokers = Brokers::new();
        brokers.grows = true;
        let (left, gone) = brokers.reread("t", &[], RETRY * 3 / 2).expect("it ends");
        assert!(gone.is_some() && left.len() < 10, "{} records: {:?}", left.len(), brokers.reasons);
        assert!(brokers.reasons.len() > 1, "it has grown: {:?}", brokers.reasons);
    }

    #[test]
    fn an_offset_that_is_refused_is_a_gap_only_where_retention_has_reached_it() {
        let mut brokers = Brokers::new();
        produce(&brokers.producer, 12, 10);
        let refused = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE;
        brokers.cluster.request_errors(RDKafkaApiKey::Fetch, &[refused]);
        assert_eq!(brokers.reread("t", &[], LONG), Ok(((0..10).collect(), None)));
        assert!(brokers.reasons[0].contains("the broker refuses offset 0"), "{:?}", brokers.reasons);
        // The cluster keeps 5 MB of a partition.
        produce(&brokers.producer, 10, 900_000);
        assert_eq!(brokers.reread("t", &[], LONG), Ok((Vec::new(), Some("retention took the records".into()))));
    }

    #[test]
    fn a_topic_that_nobody_knows_is_waited_for_only_while_it_is_configured() {
        let mut brokers = Brokers::new();
        let told = brokers.reread("gone", &["t", "gone"], Duration::ZERO);
        assert_eq!(told, Err(RecoveryError::Stopped.to_string()));
        assert!(brokers.reasons[0].contains("take it out of `kafka.topics`"), "{:?}", brokers.reasons);
        let gone = (Vec::new(), Some("the topic gone was deleted".into()));
        assert_eq!(brokers.reread("gone", &["t", "^g"], Duration::ZERO), Ok(gone));
    }
}
