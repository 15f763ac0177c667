//! A small home with a known history, damaged in every way; what comes back is compared with a fold over that history.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::app::home;
use crate::app::identity::{judge, recognise};
use crate::msource::TopicPartition;
use crate::msource::journal::{Block, History, Journal, Position, QueueCause, QueueChange};
use crate::record::{Reason, Reject};

/// Number of the last checkpoint that the store has.
const SAVED: u64 = 300;

/// Number of the last block in the journal.
const LAST: u64 = 310;

/// splitmix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

fn places(root: &Path) -> Places {
    Places::below(root.to_owned())
}

fn entry(offset: u64) -> QueueEntry {
    QueueEntry {
        partition: TopicPartition { topic: "t".into(), partition: 0 },
        topic_id: String::new(),
        offset: offset as i64,
        timestamp: Some(1),
        key: None,
        headers: Vec::new(),
        value: offset.to_string().repeat(60).into_bytes(),
        reject: Reject::new(Reason::NoHeaders, "none"),
        attempts: 1,
        first_failure: 0,
        last_failure: 0,
        recipe: "r".into(),
    }
}

/// Each block rejects two records; every fifth number is a removal, every seventh a retry of which one entry stays.
fn frame(number: u64, entries: &BTreeMap<u64, QueueEntry>) -> Frame {
    let block = |source, rejects: Vec<(u64, QueueEntry)>, records| {
        let (recipe, pieces, filtered) = ("r".to_owned(), Vec::new(), [0; 3]);
        Frame::Block(Box::new(Block { number, source, recipe, pieces, records, filtered, rejects }))
    };
    let some = |skip: usize, count: usize| {
        entries.iter().skip(skip).take(count).map(|(key, entry)| (*key, entry.size())).collect::<Vec<_>>()
    };
    if number > 5 && number.is_multiple_of(5) {
        return Frame::Queue(QueueChange { number, removed: some(3, 1), cause: QueueCause::Cleared });
    }
    if number > 7 && number.is_multiple_of(7) {
        let taken = some(5, 2);
        let again = QueueEntry { attempts: 2, ..entries[&taken[1].0].clone() };
        return block(BlockSource::Queue(taken.clone()), vec![(taken[1].0, again)], 2);
    }
    let next = number as i64 * 10;
    let to = Position { partition: entry(0).partition, topic_id: String::new(), next, leader_epoch: -1 };
    let rejects = [number * 2, number * 2 + 1].map(|key| (key, entry(key)));
    block(BlockSource::Offsets { from: next - 10, to }, rejects.into(), 2)
}

/// What the history up to a number amounts to, by the simplest means.
fn model(number: u64) -> (State, BTreeMap<u64, QueueEntry>) {
    let mut state = State { home: "h".into(), incarnation: 1, ..State::default() };
    let mut entries = BTreeMap::new();
    for number in 1..=number {
        let frame = frame(number, &entries);
        state.apply(&frame);
        match frame {
            Frame::Block(block) => {
                if let BlockSource::Queue(taken) = &block.source {
                    entries.retain(|key, _| !taken.iter().any(|(taken, _)| taken == key));
                }
                entries.extend(block.rejects);
            }
            Frame::Queue(change) => entries.retain(|key, _| !change.removed.iter().any(|(gone, _)| gone == key)),
            _ => {}
        }
    }
    (state, entries)
}

/// A home whose journal begins with `first` (0: it has everything), whose store has [`SAVED`] and whose journal has [`LAST`].
fn world(root: &Path, first: u64) -> Places {
    let places = places(root);
    let store = SledStore::open(&places.sled, Duration::ZERO).unwrap();
    let mut begun = model(first).0;
    fs::create_dir_all(&places.journal).unwrap();
    recognise(&places, &mut begun, Damage::None).unwrap();
    let place = begun.place;
    let mut journal = Journal::begin(&places.journal, &Contents::default(), &begun).unwrap();
    let mut kept = BTreeMap::new();
    for number in 1..=LAST {
        if number > first {
            journal.append(&frame(number, &model(number - 1).1)).unwrap();
        }
        if number % 50 == 0 && number <= SAVED {
            let (state, entries) = model(number);
            if number > first {
                journal.append(&Frame::Checkpoint { number }).unwrap();
            }
            let remove = kept.keys().filter(|key| !entries.contains_key(key)).copied().collect();
            let insert = entries.iter().filter(|(key, entry)| kept.get(*key) != Some(*entry));
            let insert = insert.map(|(key, entry)| (*key, entry.clone())).collect();
            store.apply(&StoreChange { state: State { place, ..state }, insert, remove }).unwrap();
            kept = entries;
            if number == 150 && number > first {
                let contents = journal::read(&places.journal).unwrap();
                journal = Journal::begin(&places.journal, &contents, &State { place, ..model(number).0 }).unwrap();
            }
        }
    }
    journal.sync().unwrap();
    store.sync().unwrap();
    places
}

fn entries(store: &dyn Store) -> BTreeMap<u64, QueueEntry> {
    let mut found = BTreeMap::new();
    store
        .entries(0, &mut |key, entry| {
            found.insert(key, entry);
            Walk::On
        })
        .unwrap();
    found
}

/// Opens the home, and takes the journal's tail over as the recovery does when every line is there.
fn reopen(places: &Places) -> (State, BTreeMap<u64, QueueEntry>) {
    let keep = History { age: Duration::MAX, bytes: u64::MAX };
    let opened = home::open(places, Opening::First, keep).unwrap();
    let mut change = home::behind(&opened);
    let mut state = opened.contents.state.clone().unwrap();
    judge(&mut state, &opened.known, None, |_| Ok(false)).unwrap();
    opened.contents.tail.iter().for_each(|frame| state.apply(frame));
    reconcile(&opened.checked, &change, &mut state).unwrap();
    change.state = state.clone();
    opened.checked.store.apply(&change).unwrap();
    (state, entries(&opened.checked.store))
}

/// Demands that everything is as it was at this number.
#[track_caller]
fn assert_is(found: &(State, BTreeMap<u64, QueueEntry>), number: u64, what: &str) {
    let (state, entries) = model(number);
    assert_eq!(found.0.number, number, "{what}");
    assert_eq!(found.0.partitions, state.partitions, "{what}");
    assert_eq!(found.0.totals, state.totals, "{what}");
    assert_eq!(found.0.next_key, state.next_key, "{what}");
    assert!(found.1 == entries, "{what}: {} entries instead of {}", found.1.len(), entries.len());
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            assert!(fs::copy(entry.path(), &to).is_ok());
        }
    }
}

/// Damages one file below a directory; says how.
fn damage(random: &mut Random, dir: &Path) -> String {
    let files = files(dir);
    let path = &files[random.below(files.len() as u64) as usize];
    let length = fs::metadata(path).unwrap().len();
    // What is written lies at the beginning; the rest of a file is room.
    let used = fs::read(path).unwrap().iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
    let file = File::options().write(true).open(path).unwrap();
    let what = match random.below(5) {
        0 => {
            fs::remove_file(path).unwrap();
            "removed".to_owned()
        }
        1 => {
            file.set_len(0).unwrap();
            "emptied".to_owned()
        }
        2 => {
            let at = random.below(used.max(1));
            file.set_len(at).unwrap();
            format!("cut at {at} of {used} used, {length}")
        }
        3 if used > 0 => {
            let at = random.below(used);
            file.write_all_at(&[0; 512], at).unwrap();
            format!("a hole at {at} of {used}")
        }
        _ => {
            let mut places = Vec::new();
            for _ in 0..=random.below(20) {
                let at = random.below(used.max(1));
                file.write_all_at(&[random.below(256) as u8], at).unwrap();
                places.push(at);
            }
            format!("flipped at {places:?} of {used}")
        }
    };
    format!("{}: {what}", path.display())
}

/// Damages a part of a copy in sixty ways, and has each looked at.
fn each_damage(whole: &Path, part: impl Fn(&Places) -> &PathBuf, mut look: impl FnMut(&Places, &str)) {
    for seed in 0..60 {
        let places = places(&whole.with_extension(seed.to_string()));
        copy(whole, &places.root);
        let what = damage(&mut Random(seed), part(&places));
        look(&places, &what);
        fs::remove_dir_all(&places.root).unwrap();
    }
}

#[test]
fn a_home_that_nothing_happened_to_opens_as_it_is() {
    let scratch = TempDir::new().unwrap();
    let places = world(&scratch.path().join("store"), 0);
    let found = reopen(&places);
    assert_is(&found, LAST, "whole");
    assert_eq!((found.0.incarnation, found.0.former.len()), (1, 0));
}

#[test]
fn whatever_happens_to_the_store_all_comes_back_while_the_journal_has_it() {
    let scratch = TempDir::new().unwrap();
    let whole = scratch.path().join("whole");
    world(&whole, 0);
    each_damage(
        &whole,
        |places| &places.sled,
        |places, what| {
            assert_is(&reopen(places), LAST, what);
            assert_is(&reopen(places), LAST, &format!("{what}, opened again"));
        },
    );
    let root = scratch.path().join("none");
    copy(&whole, &root);
    fs::remove_dir_all(places(&root).sled).unwrap();
    assert_is(&reopen(&places(&root)), LAST, "no store");
}

#[test]
fn whatever_happens_to_the_journal_the_home_stands_where_the_store_or_a_later_block_is() {
    let scratch = TempDir::new().unwrap();
    let whole = scratch.path().join("whole");
    world(&whole, 0);
    each_damage(
        &whole,
        |places| &places.journal,
        |places, what| {
            let found = reopen(places);
            assert!((SAVED..=LAST).contains(&found.0.number), "{what}: {}", found.0.number);
            assert_is(&found, found.0.number, what);
        },
    );
}

#[test]
fn without_old_segments_what_can_be_read_of_the_store_is_kept_and_the_rest_counted() {
    let scratch = TempDir::new().unwrap();
    let whole = scratch.path().join("whole");
    world(&whole, 290);
    let (state, expected) = model(LAST);
    let mut kept = 0;
    each_damage(
        &whole,
        |places| &places.sled,
        |places, what| {
            let (found, entries) = reopen(places);
            assert_eq!((found.number, &found.partitions), (LAST, &state.partitions), "{what}");
            assert_eq!(found.totals.queue_records, entries.len() as u64, "{what}");
            // sled may come back as it was some time ago; what left the queue since then cannot be told.
            assert_eq!(found.totals.lost, expected.len().saturating_sub(entries.len()) as u64, "{what}");
            assert!(entries.values().all(|found| found.value == entry(found.offset as u64).value), "{what}");
            kept += u64::from(found.totals.lost == 0);
        },
    );
    assert!(kept > 0, "some damage takes nothing");
}

/// Copies the queue beside the journal, as the store has it.
fn copy_beside(places: &Places) {
    let store = SledStore::open(&places.sled, Duration::from_secs(20)).unwrap();
    let (state, queued) = (store.state().unwrap(), Queued::count(&store).unwrap());
    Checked { store, state, queued }.with_queue(|queue| copy_queue(places, queue)).unwrap();
}

/// Puts a store in place that is as it was at a number.
fn put_older_store(places: &Places, number: u64) {
    fs::remove_dir_all(&places.sled).unwrap();
    let (state, entries) = model(number);
    let store = SledStore::open(&places.sled, Duration::ZERO).unwrap();
    store.apply(&StoreChange { state, insert: entries.into_iter().collect(), remove: Vec::new() }).unwrap();
}

#[test]
fn without_old_segments_a_copy_of_the_queue_tells_the_same() {
    let scratch = TempDir::new().unwrap();
    let whole = scratch.path().join("whole");
    let places = world(&whole, 290);
    copy_beside(&places);
    each_damage(&whole, |places| &places.sled, |places, what| assert_is(&reopen(places), LAST, what));
    put_older_store(&places, 100);
    assert_is(&reopen(&places), LAST, "the store is as it was long ago");
}

#[test]
fn a_store_that_is_behind_a_journal_with_a_hole_is_made_again_of_the_copy() {
    let scratch = TempDir::new().unwrap();
    let places = world(&scratch.path().join("store"), 0);
    copy_beside(&places);
    let first = places.journal.join(format!("{:020}.log", 1));
    let cut = fs::read(&first).unwrap().iter().rposition(|byte| *byte != 0).unwrap() / 10 * 9;
    File::options().write(true).open(first).unwrap().set_len(cut as u64).unwrap();
    put_older_store(&places, 100);
    assert_is(&reopen(&places), LAST, "what the segment had is in the copy");
}

#[test]
fn what_a_kill_left_of_a_copy_goes() {
    let scratch = TempDir::new().unwrap();
    let places = world(&scratch.path().join("store"), 0);
    let left = places.journal.join("queue.new");
    fs::write(&left, "half").unwrap();
    assert_is(&reopen(&places), LAST, "it is in nobody's way");
    assert!(!left.try_exists().unwrap());
}

#[test]
fn a_journal_that_is_gone_begins_another_incarnation_that_is_still_ours() {
    let scratch = TempDir::new().unwrap();
    for (name, whole_directory) in [("emptied", false), ("removed", true)] {
        let root = scratch.path().join(name);
        let places = world(&root, 0);
        fs::remove_dir_all(&places.journal).unwrap();
        if !whole_directory {
            fs::create_dir(&places.journal).unwrap();
        }
        let found = reopen(&places);
        assert_is(&found, SAVED, name);
        assert!(found.0.incarnation > 1);
        assert_eq!(found.0.former, [1], "{name}");
    }
}

#[test]
fn a_copy_is_another_incarnation_and_no_two_are_the_same() {
    let scratch = TempDir::new().unwrap();
    let origin = world(&scratch.path().join("origin"), 0);
    let mut seen = Vec::new();
    for name in ["one", "two"] {
        let root = scratch.path().join(name);
        copy(&origin.root, &root);
        let found = reopen(&places(&root)).0;
        assert!(found.former.is_empty(), "the origin may go on");
        seen.push(found.incarnation);
    }
    fs::rename(&origin.root, scratch.path().join("moved")).unwrap();
    let moved = reopen(&places(&scratch.path().join("moved"))).0;
    assert_eq!(moved.incarnation, 1, "what was only renamed is no copy");
    seen.push(moved.incarnation);
    seen.dedup();
    assert_eq!(seen.len(), 3, "{seen:?}");
}

#[test]
fn of_the_stores_that_were_set_aside_the_newest_are_kept() {
    let scratch = TempDir::new().unwrap();
    let places = world(&scratch.path().join("store"), 0);
    for since in [1, 2, 10, 11] {
        fs::create_dir_all(places.sled.with_extension(format!("damaged-{since}")).join("blobs")).unwrap();
    }
    fs::write(places.sled.join("snap.0000000000ffffff"), [7; 100]).unwrap();
    assert_is(&reopen(&places), LAST, "rebuilt");
    let is_there = |since: u32| places.sled.with_extension(format!("damaged-{since}")).try_exists().unwrap();
    assert_eq!([1, 2, 10, 11].map(is_there), [false, false, true, true]);
    let aside = fs::read_dir(&places.root).unwrap().filter(|entry| {
        entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("sled.damaged-"))
    });
    assert_eq!(aside.count(), KEPT_DAMAGED);
}

#[test]
fn a_rebuilt_store_whose_last_step_was_cut_short_takes_its_place() {
    let scratch = TempDir::new().unwrap();
    let places = world(&scratch.path().join("store"), 0);
    let fresh = places.sled.with_extension("new");
    rebuild(&places, &read_journal(&places).unwrap(), &fresh).unwrap();
    fs::rename(&places.sled, places.sled.with_extension("damaged-1")).unwrap();
    assert_is(&reopen(&places), LAST, "renamed at last");
    assert!(!fresh.try_exists().unwrap(), "it has its name");
}
