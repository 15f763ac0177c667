//! Reads records once more for recovery, and makes their lines again.
//!
//! It needs no group and disturbs none: even when another instance owns the partition now, the records of a block that
//! was cut short here belong here.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::never;
use rdkafka::types::RDKafkaErrorCode as Code;

use super::consumer::{is_damage, now_millis};
use super::journal::{Block, BlockSource, Position};
use super::native::{Client, KafkaError, Message};
use super::store::Store;
use super::tracker::Tracker;
use crate::block::{RawBlock, Records, Source};
use crate::delivery::recovery::{RecoveryError, Regenerate, Regenerated};
use crate::record::Reason;
use crate::transform::recipe::{Engine, Recipe, RecipeError};
use crate::transform::worker::Worker;

/// Pause between attempts while no broker answers.
const RETRY: Duration = Duration::from_secs(1);

/// How often damaged records are read before they are given up: the network may have damaged them.
const TRIES: u32 = 5;

/// Whether and how long recovery waits for brokers.
pub trait Wait {
    /// Called while there is nothing to read, with the reason if there is one; false ends the recovery.
    fn go_on(&mut self, reason: Option<&str>) -> bool;
}

/// See the module.
pub struct Rereader<'a> {
    properties: BTreeMap<String, String>,
    recipes: PathBuf,
    store: &'a dyn Store,
    wait: &'a mut dyn Wait,
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
    /// A reader that connects when it is first needed.
    pub fn new(
        properties: BTreeMap<String, String>,
        recipes: PathBuf,
        store: &'a dyn Store,
        wait: &'a mut dyn Wait,
    ) -> Self {
        let worker = Worker::new(never());
        let mut properties = properties;
        // What is read is there already. A fetch that waits for more, at the end of the log, would hold up the next block.
        properties.insert("fetch.wait.max.ms".into(), "5".into());
        Self { properties, recipes, store, wait, client: None, engines: HashMap::new(), worker }
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
        let source = |error: KafkaError| RecoveryError::Source(error.to_string());
        if self.client.is_none() {
            self.client = Some(Client::new(&self.properties).map_err(source)?);
        }
        let Some(client) = &self.client else { return Ok(Err("no client".into())) };
        if let Some(gone) = recreated(client, to, self.wait)? {
            return Ok(Err(gone));
        }
        let mut tries = 0;
        loop {
            client.assign(&[(to.partition.clone(), from)]).map_err(source)?;
            let read = read(client, to, self.wait);
            client.unassign().map_err(source)?;
            tries += 1;
            match read? {
                Read::Whole(records) => return Ok(Ok(records)),
                Read::Gone(why) => return Ok(Err(why)),
                Read::Damaged(why) if tries >= TRIES => return Ok(Err(why)),
                Read::Damaged(why) => pause(self.wait, &why)?,
            }
        }
    }
}

/// Waits for the topic's id; tells when it is another topic by now.
fn recreated(client: &Client, to: &Position, wait: &mut dyn Wait) -> Result<Option<String>, RecoveryError> {
    loop {
        let topic = to.partition.topic.to_string();
        let reason = match client.describe_topics(&[topic], RETRY * 5).map(|mut infos| infos.pop()) {
            Ok(Some(Ok(info))) if !info.id.is_empty() && !to.topic_id.is_empty() && info.id != to.topic_id => {
                return Ok(Some("the topic was deleted and created anew".into()));
            }
            Ok(Some(Ok(_))) => return Ok(None),
            Ok(Some(Err(error))) | Err(error) => error.to_string(),
            Ok(None) => "the broker says nothing of the topic".into(),
        };
        pause(wait, &reason)?;
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
enum Read {
    /// All of its records.
    Whole(Vec<Message>),
    /// They are not to be had, for this reason.
    Gone(String),
    /// They cannot be read, perhaps for now.
    Damaged(String),
}

fn read(client: &Client, to: &Position, wait: &mut dyn Wait) -> Result<Read, RecoveryError> {
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
                    return Ok(Read::Gone(format!("the broker's log ends at {}", message.offset())));
                }
                Some(error) if matches!(error.code, Code::AutoOffsetReset | Code::OffsetOutOfRange) => {
                    return Ok(Read::Gone("retention took the records".into()));
                }
                Some(error) if is_damage(error.code) => return Ok(Read::Damaged(error.to_string())),
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
        let mut source = Rereader::new(BTreeMap::new(), scratch.path().to_owned(), &store, &mut wait);
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
}
