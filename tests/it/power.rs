//! Power cuts: everything that a home keeps lies on a disk that forgets what was not synced (`harness::disk`).
//!
//! A file that is open at a cut may be shorter afterwards, but never below its length at the last checkpoint; no byte below that ever
//! changes. At the end every record is where the oracle wants it, once, and so is every entry of the failure queue.
//!
//! `scripts/kill-loop` runs [`the_long_loop`] with hundreds of cuts.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use mtga::msource::journal;
use mtga::record::Reason;
use xxhash_rust::xxh3::xxh3_128;

use crate::harness::disk::{Layer, Model};
use crate::harness::oracle::{self, Outcome};
use crate::harness::process::Service;
use crate::harness::records::Random;
use crate::harness::{Codec, Home, Mix, Record, Topic};

/// A home on a disk that loses power.
struct Rig {
    home: Home,
    layer: Layer,
    checkpointed: Checkpointed,
}

impl Rig {
    fn new(topic: &Topic, configure: impl FnOnce(&mut Home)) -> Self {
        let mut home = Home::new(topic);
        configure(&mut home);
        let layer = Layer::below(&home);
        Self { home, layer, checkpointed: Checkpointed::default() }
    }

    /// Starts the service; it dies at the fault point, if one is named.
    fn start(&self, point: Option<&str>) -> Service {
        self.home.foreground_with(|command| {
            if let Some(point) = point {
                command.env("FAULT_POINT", point);
            }
            self.layer.command(command)
        })
    }

    /// Cuts the power below a service that is dead.
    fn cut(&mut self, model: Model) {
        self.layer.power_cut(model);
        self.checkpointed.look(&self.home);
    }

    /// Runs the service to the end of its work, twice: the second time with what is on the disk alone.
    fn assert_exactly(mut self, produced: &[Record]) {
        for time in 1..=2 {
            let service = self.start(None);
            self.home.wait_done(produced);
            self.home.assert_exactly(produced);
            assert_eq!(queue(&self.home), expected_queue(produced), "the failure queue");
            if time == 1 {
                service.kill();
                self.cut(Model::Strict);
            } else {
                service.terminate();
            }
        }
        self.checkpointed.look(&self.home);
    }
}

/// The bytes of event files that a checkpoint covered at some cut, as length and hash: they must stay as they are.
#[derive(Default)]
struct Checkpointed {
    files: BTreeMap<String, (u64, u128)>,
    /// Files that went on at the last look.
    going_on: Vec<String>,
}

impl Checkpointed {
    /// Compares the files with what was there, and remembers what is there by now.
    fn look(&mut self, home: &Home) {
        let read =
            |name: &str| fs::read(home.path("data").join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        for (name, (length, hash)) in &self.files {
            let bytes = read(name);
            let kept = bytes.get(..*length as usize).map(xxh3_128);
            assert_eq!(
                kept,
                Some(*hash),
                "{name}: the first {length} bytes were checkpointed, and {} are left",
                bytes.len()
            );
        }
        let contents = journal::read(&home.path("tmp/store/journal")).expect("the journal can be read");
        let Some(state) = contents.state else { return };
        let lengths: BTreeMap<_, _> = state.files.into_values().map(|file| (file.name, file.length)).collect();
        // One that went on before and does not any more is finished: all of it is checkpointed.
        let finished = self.going_on.iter().filter(|name| !lengths.contains_key(*name));
        let lengths_of_finished = finished.map(|name| (name.clone(), u64::MAX)).collect::<Vec<_>>();
        for (name, length) in lengths.iter().map(|(name, length)| (name.clone(), *length)).chain(lengths_of_finished) {
            if length > 0 {
                let bytes = read(&name);
                let length = if length == u64::MAX { bytes.len() as u64 } else { length };
                let there = bytes.get(..length as usize);
                let there =
                    there.unwrap_or_else(|| panic!("{name}: {length} bytes checkpointed, {} left", bytes.len()));
                self.files.insert(name, (length, xxh3_128(there)));
            }
        }
        self.going_on = lengths.into_keys().collect();
    }
}

/// Partition, offset, reason and size of each entry of the failure queue.
type Queue = Vec<(i32, i64, Reason, u64)>;

fn queue(home: &Home) -> Queue {
    let failures = home.failures();
    let mut queue: Queue = failures.iter().map(|e| (e.partition, e.offset, e.reason, e.size)).collect();
    queue.sort_by_key(|(partition, offset, ..)| (*partition, *offset));
    queue
}

fn expected_queue(produced: &[Record]) -> Queue {
    let mut next: BTreeMap<i32, i64> = BTreeMap::new();
    let mut queue = Queue::new();
    for record in produced {
        let offset = next.entry(record.partition).or_default();
        if let Outcome::Rejected(reason) = oracle::outcome(record) {
            queue.push((
                record.partition,
                *offset,
                reason,
                record.value.as_ref().map_or(0, |value| value.len() as u64),
            ));
        }
        *offset += 1;
    }
    queue.sort_by_key(|(partition, offset, ..)| (*partition, *offset));
    queue
}

/// Strict and lucky cuts in turn, each different.
fn model(seed: u64, cut: u64) -> Model {
    if cut.is_multiple_of(3) { Model::Strict } else { Model::Random(seed.wrapping_add(cut)) }
}

/// Cuts the power again and again under load, at random moments.
fn assert_exactly_once_through_cuts(cuts: u64, seed: u64, configure: impl FnOnce(&mut Home)) {
    let topic = Topic::create("power", 4);
    let mut rig = Rig::new(&topic, configure);
    let load = topic.load_of(25, Codec::Snappy, Mix::Dirty);
    let mut random = Random(seed);
    for cut in 1..=cuts {
        let service = rig.start(None);
        rig.home.wait_written(cut * 1511);
        // Not waited for: the moment is to be any one.
        std::thread::park_timeout(Duration::from_millis(random.below(300)));
        service.kill();
        rig.cut(model(seed, cut));
    }
    rig.assert_exactly(&load.stop());
}

#[test]
fn power_cuts_under_load_lose_and_repeat_nothing() {
    assert_exactly_once_through_cuts(6, 1, |_| ());
}

#[test]
fn power_cuts_in_stream_mode_lose_and_repeat_nothing() {
    assert_exactly_once_through_cuts(4, 2, |home| {
        home.set("sink.mode", "stream");
    });
}

#[test]
fn power_cuts_in_a_group_lose_and_repeat_nothing() {
    assert_exactly_once_through_cuts(3, 3, |home| {
        home.in_group();
    });
}
