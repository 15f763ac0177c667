use std::collections::BTreeMap;
use std::time::Instant;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::msource::TopicPartition;
use crate::msource::journal::{self, Queue};
use crate::record::{Reason, Reject};

fn entry(offset: u64, size: usize) -> QueueEntry {
    QueueEntry {
        partition: TopicPartition { topic: "t".into(), partition: 0 },
        topic_id: String::new(),
        offset: offset as i64,
        timestamp: None,
        key: None,
        headers: vec![("null".into(), None)],
        value: vec![offset as u8; size],
        reject: Reject::new(Reason::NoId, "none"),
        attempts: 1,
        first_failure: 0,
        last_failure: 0,
        recipe: "r".into(),
    }
}

fn open(scratch: &TempDir) -> SledStore {
    // sled lets go of its lock a little after it was dropped.
    SledStore::open(&scratch.path().join("sled"), Duration::from_secs(20)).unwrap()
}

fn walk(store: &SledStore, from: u64) -> Vec<(u64, QueueEntry)> {
    let mut found = Vec::new();
    let mut each = |key, entry| {
        found.push((key, entry));
        Walk::On
    };
    store.entries(from, &mut each).unwrap();
    found
}

/// Keys that are removed, and keys with sizes of entries that are inserted.
type Change = (Vec<u64>, Vec<(u64, usize)>);

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let keys = prop_oneof![0_u64..400, (0_u64..400).prop_map(|key| u64::MAX - key)];
    let sizes = prop_oneof![4 => 0_usize..1000, 1 => 5_000_usize..40_000];
    let new = (0_u64..400, 1_u64..60).prop_map(|(from, count)| (from..from + count).collect::<Vec<_>>());
    let insert = prop_oneof![
        proptest::collection::vec((keys.clone(), sizes), 0..20),
        (new.clone(), 0_usize..1500).prop_map(|(keys, size)| keys.into_iter().map(|key| (key, size)).collect()),
    ];
    let remove = prop_oneof![proptest::collection::vec(keys, 0..20), new];
    proptest::collection::vec((remove, insert), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_queue_is_what_was_inserted_and_not_removed_whatever_the_order(changes in changes(), from in 0_u64..420) {
        let scratch = TempDir::new().unwrap();
        let mut store = open(&scratch);
        let mut model = BTreeMap::new();
        for (number, (remove, insert)) in changes.into_iter().enumerate() {
            let insert: Vec<_> =
                insert.into_iter().map(|(key, size)| (key, entry(key.wrapping_add(number as u64), size))).collect();
            model.retain(|key, _| !remove.contains(key));
            model.extend(insert.iter().cloned());
            store.apply(&StoreChange { state: State { number: number as u64, ..State::default() }, insert, remove }).unwrap();
            prop_assert_eq!(store.state().unwrap().unwrap().number, number as u64);
            prop_assert!(walk(&store, from).into_iter().eq(model.clone().split_off(&from)));
        }
        drop(store);
        store = open(&scratch);
        prop_assert!(walk(&store, 0).into_iter().eq(model.clone()));
        for key in (0..420).chain(u64::MAX - 420..=u64::MAX) {
            let found = store.entry(key).unwrap();
            prop_assert_eq!(found.as_ref(), model.get(&key));
        }
    }
}

#[test]
fn a_walk_beside_changes_gives_every_entry_that_stays_once_and_in_order() {
    let scratch = TempDir::new().unwrap();
    let store = open(&scratch);
    let sizes = [100, 9_000, 30_000, 700, 17_000];
    let size = |key: u64, round: u64| sizes[(key * 3 + round) as usize % sizes.len()];
    let change = |round: u64| {
        // Even ones stay and are replaced by longer and shorter ones, odd ones come and go.
        let insert = (0..40).filter(|key| key % 2 == 0 || (key / 2 + round).is_multiple_of(2));
        let insert = insert.map(|key| (key, entry(key, size(key, round)))).collect();
        let remove = (0..40).filter(|key| key % 2 == 1 && !(key / 2 + round).is_multiple_of(2)).collect();
        StoreChange { insert, remove, ..StoreChange::default() }
    };
    store.apply(&change(0)).unwrap();
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            for round in 1..200 {
                store.apply(&change(round)).unwrap();
            }
            over.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        while !over.load(std::sync::atomic::Ordering::Relaxed) {
            let found = walk(&store, 0);
            assert!(found.is_sorted_by(|(before, _), (behind, _)| before < behind));
            assert!(found.iter().all(|(key, found)| found.value.iter().all(|byte| *byte == *key as u8)));
            let stay = found.iter().map(|(key, _)| *key).filter(|key| key % 2 == 0);
            assert!(stay.eq((0..40).step_by(2)), "{:?}", found.iter().map(|(key, _)| key).collect::<Vec<_>>());
            assert_eq!(store.entry(6).unwrap().unwrap().offset, 6);
        }
    });
}

/// Bytes that a directory takes on the disk.
fn size(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    let sizes =
        entries.map(
            |entry| if entry.path().is_dir() { size(&entry.path()) } else { entry.metadata().unwrap().blocks() * 512 },
        );
    sizes.sum()
}

/// Fills the queue and empties it, a few times; returns the size on disk after each.
fn fill_and_empty(entries: u64, rounds: u64) -> Vec<u64> {
    const CHUNK: u64 = 5_000;
    let scratch = TempDir::new().unwrap();
    let mut store = open(&scratch);
    let mut sizes = Vec::new();
    for round in 0..rounds {
        let keys = round * entries..(round + 1) * entries;
        let since = Instant::now();
        for from in keys.clone().step_by(CHUNK as usize) {
            let insert = (from..keys.end.min(from + CHUNK)).map(|key| (key, entry(key, 300))).collect();
            store.apply(&StoreChange { insert, ..StoreChange::default() }).unwrap();
        }
        let inserted = since.elapsed();
        store.sync().unwrap();
        let full = size(scratch.path());
        drop(store);
        let since = Instant::now();
        store = open(&scratch);
        let opened = since.elapsed();
        let mut found = 0;
        let mut each = |_, _| {
            found += 1;
            Walk::On
        };
        store.entries(0, &mut each).unwrap();
        assert_eq!(found, entries);
        let walked = since.elapsed().saturating_sub(opened);
        let to = TempDir::new().unwrap();
        let since = Instant::now();
        let bytes = entries * entry(0, 300).size();
        journal::copy(to.path(), &Queue { number: 0, bytes, entries: &|each| give_entries(&store, each) }).unwrap();
        let copied = since.elapsed();
        let since = Instant::now();
        for from in keys.clone().step_by(CHUNK as usize) {
            let remove = (from..keys.end.min(from + CHUNK)).collect();
            store.apply(&StoreChange { remove, ..StoreChange::default() }).unwrap();
        }
        let removed = since.elapsed();
        store.sync().unwrap();
        sizes.push(size(scratch.path()));
        println!(
            "{entries} entries: inserted in {inserted:?}, {} MB, opened in {opened:?}, walked in {walked:?}, copied in {copied:?}, removed in {removed:?}, {} MB",
            full >> 20,
            sizes[sizes.len() - 1] >> 20
        );
    }
    sizes
}

#[test]
fn a_queue_that_is_filled_and_emptied_again_and_again_takes_no_more_room_each_time() {
    let sizes = fill_and_empty(20_000, 8);
    let (settled, last) = (sizes[2], sizes[7]);
    assert!(last < settled * 3 / 2, "{sizes:?}");
}

#[test]
#[ignore = "takes minutes: for figures"]
fn a_million_entries_are_filled_in_and_emptied_five_times() {
    fill_and_empty(1_000_000, 5);
}
