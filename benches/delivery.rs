//! What delivering costs apart from the lines themselves, and what the file sink and the failure queue cost, each alone.
//!
//! - `tracker`: a thousand blocks of 1,000 records admitted, put into the journal and folded into the state, by the number
//!   of partitions; and the copy of the state that a checkpoint saves.
//! - `writer`: blocks of lines into files, all into one or by log name, and with the sync that a checkpoint adds. The files
//!   lie below TMPDIR: set it to a directory of the disk that is to be measured.
//! - `failure queue`: a thousand entries into a queue of 100,000 (as many of the oldest go, so that it stays as long), how
//!   many there are, and a list of the first fifty or of all.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mtga::config::{self, TimeZone};
use mtga::msink::FileKey;
use mtga::msink::dir::EventDir;
use mtga::msink::file::{FileSink, Ledger, Now, Written};
use mtga::msink::name::NameTemplate;
use mtga::msource::TopicPartition;
use mtga::msource::journal::{
    Block, BlockSource, Contents, FileIntent, FileState, Frame, Journal, Piece, Position, QueueEntry, State,
};
use mtga::msource::store::{SledStore, Store as _, StoreChange, Walk};
use mtga::msource::tracker::Tracker;
use mtga::record::{Reason, Reject};
use tempfile::TempDir;

const BLOCK_RECORDS: u64 = 1_000;
const BLOCKS: u64 = 1_000;

fn partition(number: i32) -> TopicPartition {
    TopicPartition { topic: "mulog_clean_24".into(), partition: number }
}

fn block(number: u64, partition: &TopicPartition, from: i64) -> Block {
    let to = Position {
        partition: partition.clone(),
        topic_id: "AAAAAAAAAAAAAAAAAAAAAA".into(),
        next: from + BLOCK_RECORDS as i64,
        leader_epoch: 7,
    };
    Block {
        number,
        source: BlockSource::Offsets { from, to },
        recipe: "5fd924625f6ab16a19cc9807c7c506ae1813490e4ba675f843d5a10e0baacdb8".into(),
        pieces: vec![Piece { file: 1, position: from as u64 * 500, length: 500_000, crc: 1, lines: BLOCK_RECORDS }],
        records: BLOCK_RECORDS,
        filtered: [0; 3],
        rejects: Vec::new(),
    }
}

fn tracker(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("tracker");
    for count in [4, 64, 256] {
        let dir = TempDir::new().expect("a temporary directory");
        let mut state = State { files: BTreeMap::from([(1, FileState::default())]), ..State::default() };
        let mut journal = Journal::begin(dir.path(), &Contents::default(), &state).expect("a journal");
        let tracker = Tracker::default();
        let mut heads: Vec<_> = (0..count)
            .map(|number| {
                let partition = partition(number);
                let epoch = tracker.begin(partition.clone(), 0).expect("nothing is prepared");
                (partition, epoch, 0_i64)
            })
            .collect();
        let mut round = || {
            if journal.is_full() {
                journal.turn(&state).expect("a further segment");
            }
            let blocks: Vec<_> = (0..BLOCKS)
                .map(|index| {
                    let head = index as usize % heads.len();
                    let (partition, epoch, next) = &mut heads[head];
                    let block = block(state.number + index + 1, partition, *next);
                    *next += BLOCK_RECORDS as i64;
                    (partition.clone(), *epoch, Frame::Block(Box::new(block)))
                })
                .collect();
            let started = Instant::now();
            for (partition, epoch, frame) in &blocks {
                let Frame::Block(block) = frame else { continue };
                let BlockSource::Offsets { from, to } = &block.source else { continue };
                let admitted = tracker.admit(partition, *epoch, *from, to.next, || journal.append(frame));
                admitted.expect("the next block").expect("a frame");
                state.apply(frame);
            }
            started.elapsed()
        };
        group.throughput(Throughput::Elements(BLOCKS));
        group.bench_function(BenchmarkId::new("blocks", count), |bencher| {
            bencher.iter_custom(|times| (0..times).map(|_| round()).sum());
        });
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::new("state of a checkpoint", count), |bencher| {
            bencher.iter(|| postcard::to_allocvec(&black_box(&state).clone()).expect("a state can be written").len());
        });
    }
    group.finish();
}

/// Keeps no account: what that costs is measured by `tracker`.
struct Nobody;

impl Ledger for Nobody {
    fn intend(&mut self, _: &FileIntent) -> io::Result<()> {
        Ok(())
    }

    fn made(&mut self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn end(&mut self, _: u64) -> io::Result<()> {
        Ok(())
    }
}

fn sink(dir: &TempDir, file: &str, now: Now) -> FileSink {
    let config = config::Sink {
        mode: config::Mode::Batch,
        dir: dir.path().into(),
        file: file.into(),
        batch: config::Batch { lines: 1_000, bytes: 1 << 20, linger: Duration::from_millis(200) },
        rotate: config::Rotate { size: 256 << 20, age: Duration::from_hours(1), idle: Duration::from_mins(1) },
        fsync: true,
        visibility: config::Visibility::Live,
        compression: config::Compression::None,
        keep_age: None,
        keep_bytes: None,
        max_open_files: 256,
        permissions: 0o640,
    };
    let zone = TimeZone::UTC;
    let template = NameTemplate::parse(file, 24, "here", zone).expect("the template is good");
    let dir = EventDir::open(dir.path()).expect("a directory for the files");
    FileSink::new(dir, template, &config, &BTreeMap::new(), 0, now)
}

#[derive(Clone, Copy, PartialEq)]
enum Sync {
    No,
    Once,
}

/// Writes 64 blocks of 1,000 lines of 500 bytes, 32 MB, in pieces of which each goes to the next key.
fn write(sink: &mut FileSink, keys: &[FileKey], now: Now, sync: Sync) {
    let piece = vec![b'x'; 500_000 / keys.len()];
    for _ in 0..64 {
        for key in keys {
            let (id, position) = sink.target(key, now, &mut Nobody).expect("a file");
            let written = sink.write(id, position, &piece, &mut 0, now).expect("room on the disk");
            assert_eq!(written, Written::All);
        }
    }
    if sync == Sync::Once {
        sink.take_dirty().iter().try_for_each(|file| file.sync_data()).expect("a sync");
    }
}

fn writer(criterion: &mut Criterion) {
    let one = [FileKey::default()];
    let named: Vec<_> =
        (0..20).map(|name| FileKey { log_name: Some(format!("log_{name}")), ..FileKey::default() }).collect();
    let mut group = criterion.benchmark_group("writer");
    group.sample_size(10).throughput(Throughput::Bytes(32_000_000));
    for (name, template, keys) in [
        ("one file", "ta.{app_id}.%Y-%m-%d-%H.{seq}.log", &one[..]),
        ("by log name", "{log_name}/ta.%Y-%m-%d-%H.{seq}.log", &named),
    ] {
        for (suffix, sync) in [("", Sync::No), (", synced", Sync::Once)] {
            group.bench_function(format!("{name}{suffix}"), |bencher| {
                let fresh = || {
                    let dir = TempDir::new().expect("a temporary directory");
                    let now = Now::current();
                    (sink(&dir, template, now), dir, now)
                };
                let work = |(mut sink, dir, now): (FileSink, TempDir, Now)| {
                    write(&mut sink, keys, now, sync);
                    (sink, dir) // removed when the clock has stopped
                };
                bencher.iter_batched(fresh, work, BatchSize::PerIteration);
            });
        }
    }
    group.finish();
}

const QUEUE: u64 = 100_000;
const STEP: u64 = 1_000;

fn entry(offset: u64) -> QueueEntry {
    QueueEntry {
        partition: partition(0),
        topic_id: "AAAAAAAAAAAAAAAAAAAAAA".into(),
        offset: offset as i64,
        timestamp: Some(1_608_184_243_000),
        key: None,
        headers: Vec::new(),
        value: vec![b'x'; 532],
        reject: Reject::new(Reason::NoId, "neither #account_id nor #distinct_id has a value"),
        attempts: 1,
        first_failure: 1_608_184_243_000,
        last_failure: 1_608_184_243_000,
        recipe: Arc::from("5fd924625f6ab16a19cc9807c7c506ae1813490e4ba675f843d5a10e0baacdb8"),
    }
}

/// The change that puts the next thousand entries in, and takes as many of the oldest out of a queue that is full.
fn step(next: &mut u64) -> StoreChange {
    let mut change =
        StoreChange { insert: (*next..*next + STEP).map(|key| (key, entry(key))).collect(), ..StoreChange::default() };
    *next += STEP;
    if let Some(oldest) = next.checked_sub(QUEUE + STEP) {
        change.remove = (oldest..oldest + STEP).collect();
    }
    change.state.totals.queue_records = QUEUE.min(*next);
    change
}

fn walk(store: &SledStore, limit: u64) -> u64 {
    let mut seen = 0;
    let mut each = |_, entry: QueueEntry| {
        seen += u64::from(!entry.value.is_empty());
        if seen < limit { Walk::On } else { Walk::Stop }
    };
    store.entries(0, &mut each).expect("the store can be read");
    seen
}

fn failure_queue(criterion: &mut Criterion) {
    let dir = TempDir::new().expect("a temporary directory");
    let store = SledStore::open(dir.path(), Duration::ZERO).expect("a store");
    let mut next = 0;
    while next < QUEUE {
        store.apply(&step(&mut next)).expect("room on the disk");
    }
    let mut group = criterion.benchmark_group("failure queue");
    group.sample_size(20).throughput(Throughput::Elements(STEP));
    group.bench_function("insert", |bencher| {
        bencher.iter_batched(
            || step(&mut next),
            |change| {
                store.apply(&change).expect("room on the disk");
                change
            },
            BatchSize::PerIteration,
        );
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("count", |bencher| {
        bencher.iter(|| store.state().expect("the store can be read").map(|state| state.totals.queue_records));
    });
    for (name, limit) in [("list of 50", 50), ("list of all", QUEUE)] {
        assert_eq!(walk(&store, limit), limit, "the queue is as long as it should be");
        group.throughput(Throughput::Elements(limit));
        group.bench_function(name, |bencher| bencher.iter(|| walk(&store, limit)));
    }
    group.finish();
}

criterion_group!(benches, tracker, writer, failure_queue);
criterion_main!(benches);
