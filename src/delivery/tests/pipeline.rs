//! The delivery thread, its checkpoints and its recovery together, fed by a source that never ends and crashed at random.
//!
//! The model knows what each record becomes. Whatever the crashes were, below the offset where a partition stands each record is
//! one line in the files, one filtered count or one entry of the failure queue, and above it there is none.

use std::sync::Arc;

use crossbeam_channel::{Receiver, bounded};
use proptest::prelude::*;

use super::home::{Home, Work};
use super::model::{Fate, Made, PATIENCE, fate, line, wait_until};
use super::*;
use crate::delivery::{CommitPoint, Error, Finish, Inbox};
use crate::msink::file::whole_lines;
use crate::msource::journal;

const PARTITIONS: i32 = 3;

fn home() -> Home {
    Home::new("h", Visibility::Live)
}

/// Starts it with every partition where it stands.
fn start(home: &Home) -> Work {
    let mut work = home.start(CommitPoint::Journal);
    let state = work.state();
    for number in 0..PARTITIONS {
        work.begin(number, state.partitions.get(&partition(number)).map_or(0, |state| state.next));
    }
    work
}

#[track_caller]
fn answered(reply: &Receiver<()>) {
    reply.recv_timeout(PATIENCE).expect("an answer");
}

#[track_caller]
fn barrier(work: &mut Work, finish: Finish) {
    answered(&work.checkpoint(finish));
}

/// Takes back what was not synced: bytes of files become holes or are missing, the journal ends earlier.
fn cut_power(home: &Home, random: u64) {
    let Some(path) = home.last_segment() else { return };
    let whole = fs::read(&path).unwrap();
    let contents = journal::read(&home.journal()).unwrap();
    let synced = |contents: &Contents| {
        let state = contents.state.clone();
        let last = contents.tail.iter().rposition(|frame| !matches!(frame, Frame::Block(_) | Frame::End { .. }));
        (state, contents.tail[..last.map_or(0, |last| last + 1)].to_vec())
    };
    let durable = contents.state.as_ref().map(|state| state.files.clone()).unwrap_or_default();
    let (_, end) = contents.end.unwrap();
    let mut cut = whole.clone();
    cut[(end - random % end.min(700)) as usize..].fill(0);
    fs::write(&path, &cut).unwrap();
    if synced(&journal::read(&home.journal()).unwrap()) != synced(&contents) {
        fs::write(&path, &whole).unwrap();
    }
    for frame in &contents.tail {
        let Frame::Block(block) = frame else { continue };
        for (index, piece) in block.pieces.iter().enumerate() {
            let name = contents.tail.iter().find_map(|frame| match frame {
                Frame::File(intent) if intent.id == piece.file => Some(intent.name.clone()),
                _ => None,
            });
            let Some(name) = durable.get(&piece.file).map(|file| file.name.clone()).or(name) else { continue };
            let mut content = fs::read(home.data().join(&name)).unwrap();
            let (from, to) = (piece.position as usize, (piece.position + piece.length) as usize);
            match (random >> ((block.number + index as u64) % 60)) % 4 {
                0 => content.truncate(from + (random % piece.length) as usize),
                1 if content.len() >= to => content[from + (random % piece.length) as usize..to].fill(0),
                _ => {}
            }
            fs::write(home.data().join(name), content).unwrap();
        }
    }
}

/// Every record below where its partition stands is accounted for once, and nothing else is there.
fn check(home: &Home) {
    let (state, ..) = home.recover();
    let mut lines: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
    for path in files(&home.data()) {
        let content = fs::read(path).unwrap();
        for line in content.split_inclusive(|byte| *byte == b'\n') {
            *lines.entry(line.to_vec()).or_default() += 1;
        }
    }
    let mut queued: BTreeMap<(i32, i64), u32> = BTreeMap::new();
    let entries = home.store.last().entries;
    for entry in entries.values() {
        *queued.entry((entry.partition.partition, entry.offset)).or_default() += 1;
    }
    let (mut written, mut filtered, mut consumed) = (0, 0, 0);
    for (of, standing) in &state.partitions {
        for offset in 0..standing.next {
            let record = (of.partition, offset);
            let times = lines.remove(&line(of.partition, offset)).unwrap_or(0);
            let waiting = queued.remove(&record).unwrap_or(0);
            let cleared = u32::from(home.cleared.contains(&record));
            let outcome = (times, waiting + cleared);
            let right = match fate(of.partition, offset) {
                Fate::Line(_) => outcome == (1, 0),
                Fate::Filtered => outcome == (0, 0),
                Fate::Rejected { cured: true } => outcome == (1, 0) || outcome == (0, 1),
                Fate::Rejected { cured: false } => outcome == (0, 1),
            };
            assert!(right, "{record:?}: {times} lines, {waiting} times in the queue, {cleared} times cleared");
            written += u64::from(times);
            filtered += u64::from(fate(of.partition, offset) == Fate::Filtered);
            consumed += 1;
        }
    }
    let text: Vec<_> = lines.keys().map(|line| String::from_utf8_lossy(line).into_owned()).collect();
    assert!(lines.is_empty(), "lines of nowhere: {text:?}");
    assert!(queued.is_empty(), "entries of nowhere: {queued:?}");
    let totals = &state.totals;
    assert_eq!((totals.written, totals.filtered[0], totals.consumed), (written, filtered, consumed));
    assert_eq!(totals.queue_records, entries.len() as u64);
    assert_eq!(totals.queue_bytes, entries.values().map(QueueEntry::size).sum::<u64>());
    assert_eq!(totals.cleared, home.cleared.len() as u64);
    for file in state.files.values() {
        assert_eq!(fs::metadata(home.data().join(&file.name)).unwrap().len(), file.length);
    }
}

fn play(home: &mut Home, work: &mut Work, step: &Step) {
    match *step {
        Step::Block(number, records) => work.block(number, records),
        Step::Send(random) => work.send(random),
        Step::Full(room) => work.fill_disk(room),
        Step::Barrier => barrier(work, Finish::No),
        Step::Finish => barrier(work, Finish::Files),
        Step::Lose(number) => {
            // What is in flight belongs to an assignment that is over; the next one begins where it is durable.
            work.tracker.end(&partition(number));
            barrier(work, Finish::No);
            let next = work.state().partitions.get(&partition(number)).map_or(0, |state| state.next);
            work.begin(number, next);
        }
        Step::Retry(count) => {
            barrier(work, Finish::No);
            work.retry(&home.entries(&work.state(), count));
        }
        Step::Clear(count) => {
            barrier(work, Finish::No);
            let entries = home.entries(&work.state(), count);
            answered(&work.remove(entries.iter().map(|(key, entry)| (*key, entry.size())).collect()));
            home.clear(&entries);
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Block(i32, i64),
    Send(u64),
    Full(u64),
    Barrier,
    Finish,
    Lose(i32),
    Retry(usize),
    Clear(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0..PARTITIONS, 1..30i64).prop_map(|(number, records)| Step::Block(number, records)),
        4 => any::<u64>().prop_map(Step::Send),
        2 => (0..600u64).prop_map(Step::Full),
        1 => Just(Step::Barrier),
        1 => Just(Step::Finish),
        1 => (0..PARTITIONS).prop_map(Step::Lose),
        2 => (1..6usize).prop_map(Step::Retry),
        1 => (1..3usize).prop_map(Step::Clear),
    ]
}

#[derive(Clone, Debug)]
enum Crash {
    Kill,
    /// With this much chance, and so many changes of the store taken back.
    Power(u64, usize),
}

fn crash() -> impl Strategy<Value = Crash> {
    prop_oneof![
        Just(Crash::Kill),
        (any::<u64>(), 0..4usize).prop_map(|(random, changes)| Crash::Power(random, changes))
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn every_record_is_accounted_for_once_whatever_crashes(
        lives in prop::collection::vec((prop::collection::vec(step(), 0..25), crash()), 1..5)
    ) {
        let mut home = home();
        for (steps, crash) in lives {
            let mut run = start(&home);
            for step in &steps {
                play(&mut home, &mut run, step);
            }
            home.kill(run);
            if let Crash::Power(random, changes) = crash {
                home.store.forget(changes);
                cut_power(&home, random);
            }
            check(&home);
        }
    }
}

/// A home with some entries in its failure queue, whose disk is full in the middle of a block.
fn stalled() -> (Home, Work, Vec<(u64, u64)>) {
    stalled_after(30)
}

/// The same after so many bytes of the block.
fn stalled_after(room: u64) -> (Home, Work, Vec<(u64, u64)>) {
    let home = home();
    let mut run = start(&home);
    run.block(0, 20);
    barrier(&mut run, Finish::No);
    let entries = home.store.last().entries.iter().map(|(key, entry)| (*key, entry.size())).collect();
    run.fill_disk(room);
    run.block(0, 20);
    run.block(1, 20);
    run.send(0);
    wait_until("the delivery stalls", || run.gauges.stalled().is_some());
    (home, run, entries)
}

#[test]
fn a_removal_does_not_make_a_half_written_block_durable() {
    let (home, run, removed) = stalled();
    let removal = run.remove(removed);
    home.kill(run);
    assert!(removal.try_recv().is_err(), "nobody was told that they are removed");
    check(&home);
}

#[test]
fn a_removal_during_a_stall_is_answered_when_the_disk_has_room_again() {
    let (mut home, run, removed) = stalled();
    let entries = home.store.last().entries;
    home.cleared.extend(entries.values().map(|entry| (entry.partition.partition, entry.offset)));
    let removal = run.remove(removed);
    run.fill_disk(u64::MAX);
    answered(&removal);
    assert_eq!(run.gauges.stalled(), None);
    home.kill(run);
    check(&home);
}

#[test]
fn a_note_and_a_barrier_wait_for_the_blocks_before_them() {
    let (home, mut run, _) = stalled();
    let (reply, halfway) = bounded(1);
    run.inbox.send(Inbox::Checkpoint { before: run.ticket - 1, finish: Finish::No, reply }).unwrap();
    let noted = run.note(Frame::Start(position(7, 5)));
    let (reply, durable) = bounded(1);
    run.inbox.send(Inbox::Checkpoint { before: run.ticket, finish: Finish::Files, reply }).unwrap();
    // An answer to a later message shows that the earlier ones were looked at.
    let (reply, early) = bounded(1);
    run.inbox.send(Inbox::Checkpoint { before: 0, finish: Finish::No, reply }).unwrap();
    answered(&early);
    let unanswered = [&halfway, &noted, &durable].iter().all(|answer| answer.try_recv().is_err());
    assert!(unanswered, "the block before them is half-written");
    run.fill_disk(u64::MAX);
    for answer in [&halfway, &noted, &durable] {
        answered(answer);
    }
    let state = run.gauges.durable().state.clone();
    assert_eq!((state.partitions[&partition(0)].next, state.partitions[&partition(7)].next), (40, 5));
    assert!(state.files.is_empty(), "every file was finished");
    let counts = run.gauges.counts();
    assert_eq!((counts.in_flight, run.budget.used()), (0, 0));
    assert_eq!(counts.consumed, counts.written + counts.filtered[0] + counts.rejected.iter().sum::<u64>());
    home.kill(run);
}

#[test]
fn new_entries_count_against_the_memory_bound_and_hold_further_blocks_until_they_are_saved() {
    let home = home();
    let mut run = start(&home);
    {
        let _busy = home.store.0.lock().unwrap();
        (0..PARTITIONS).for_each(|number| run.block(number, 20));
        run.send(0);
        run.looked();
        // Both parts of the first block.
        let taken = Made::records(0, 0, 20).rejects;
        assert_eq!(
            run.gauges.counts().rejected.iter().sum::<u64>(),
            taken.len() as u64,
            "one checkpoint, and the next"
        );
        assert!(run.budget.used() > taken.iter().map(|rejected| rejected.entry.size()).sum());
    }
    barrier(&mut run, Finish::No);
    assert_eq!((run.gauges.counts().in_flight, run.budget.used()), (0, 0));
    home.kill(run);
    check(&home);
}

#[test]
fn work_of_an_assignment_that_is_over_is_dropped_and_given_back() {
    let home = home();
    let mut run = start(&home);
    run.block(0, 20);
    run.tracker.end(&partition(0));
    barrier(&mut run, Finish::No);
    let counts = run.gauges.counts();
    assert_eq!((counts.consumed, counts.in_flight, run.budget.used()), (0, 0, 0));
    assert!(!run.gauges.durable().state.partitions.contains_key(&partition(0)));
    home.kill(run);
    check(&home);
}

#[test]
fn a_block_that_leaves_a_hole_ends_the_delivery_before_anything_is_written() {
    let home = home();
    let mut run = start(&home);
    run.begin(0, 5);
    run.slots.get_mut(&0).unwrap().1 = 6;
    run.block(0, 3);
    run.send(0);
    let error = run.ended.recv_timeout(PATIENCE).unwrap().unwrap_err();
    assert!(matches!(error, Error::NotNext { from: 6, expected: 5, .. }), "{error}");
    drop(run);
    wait_until("the checkpoint thread ends", || Arc::strong_count(&home.store) == 1);
    check(&home);
}

/// Takes files away, as a collector does that has read their whole lines: those that end in the middle of a line, or all.
fn take_away(home: &Home, all: bool) {
    for path in files(&home.data()) {
        let content = fs::read(&path).unwrap();
        if !all && whole_lines(&content) == content.len() {
            continue;
        }
        let read = path.with_file_name(format!("read-{}", path.file_name().unwrap().to_string_lossy()));
        fs::write(read, &content[..whole_lines(&content)]).unwrap();
        fs::remove_file(path).unwrap();
    }
}

/// Files are taken away while a block is half-written, and the disk has room for so many bytes then.
fn assert_the_rest_is_elsewhere(home: &Home, mut run: Work, room: u64) {
    let before = files(&home.data());
    take_away(home, room == u64::MAX);
    let read = files(&home.data());
    run.fill_disk(room);
    wait_until("it goes on elsewhere", || {
        let mut new = files(&home.data());
        new.retain(|path| !before.contains(path) && !read.contains(path));
        let bytes = |path: &PathBuf| fs::metadata(path).unwrap().len();
        !new.is_empty() && new.iter().map(bytes).sum::<u64>() >= room.min(10)
    });
    if room == u64::MAX {
        barrier(&mut run, Finish::No);
        let counts = run.gauges.counts();
        assert_eq!((counts.in_flight, run.budget.used()), (0, 0));
    }
    home.kill(run);
    check(home);
}

#[test]
fn what_a_file_had_no_line_of_when_it_went_is_in_another_one_after_any_crash() {
    for room in [0, 20, 47, u64::MAX] {
        let (home, run, _) = stalled_after(37);
        assert_the_rest_is_elsewhere(&home, run, room);
    }
}

#[test]
fn what_a_file_had_no_line_of_a_retry_when_it_went_is_in_another_one_after_any_crash() {
    for room in [0, 20, u64::MAX] {
        let home = home();
        let mut run = start(&home);
        run.block(0, 20);
        barrier(&mut run, Finish::No);
        run.fill_disk(15);
        run.retry(&home.entries(&run.state(), 20));
        run.send(0);
        wait_until("the delivery stalls", || run.gauges.stalled().is_some());
        assert_the_rest_is_elsewhere(&home, run, room);
    }
}
