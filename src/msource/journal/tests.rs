//! The journal's bytes: torn, damaged, continued and pruned; and the fold over its frames.

use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::framing::encode;
use super::*;
use crate::msource::TopicPartition;

fn position(partition: i32, next: i64) -> Position {
    let partition = TopicPartition { topic: "t".into(), partition };
    Position { partition, topic_id: "id".into(), next, leader_epoch: -1 }
}

fn block(number: u64, to: i64) -> Frame {
    Frame::Block(Box::new(Block {
        number,
        source: BlockSource::Offsets { from: 0, to: position(0, to) },
        recipe: "r".into(),
        pieces: vec![Piece { file: 0, position: number * 10, length: 10, crc: 1, lines: 2 }],
        records: 3,
        filtered: [1, 0, 0],
        rejects: Vec::new(),
    }))
}

fn state() -> State {
    State { home: "h".into(), incarnation: 1, ..State::default() }
}

/// A journal with these frames; returns where each of them ends.
fn write(dir: &Path, frames: &[Frame]) -> (Journal, Vec<u64>) {
    let mut journal = Journal::begin(dir, &read(dir).unwrap(), &state()).unwrap();
    let mut ends = vec![journal.position];
    for frame in frames {
        journal.append(frame).unwrap();
        ends.push(journal.position);
    }
    (journal, ends)
}

fn some_frames() -> Vec<Frame> {
    vec![
        Frame::Start(position(0, 5)),
        block(1, 10),
        block(2, 20),
        Frame::Checkpoint { number: 1 },
        Frame::Move { to: position(1, 7), cause: MoveCause::Gap { from: 3 } },
        block(3, 30),
        Frame::Checkpoint { number: 3 },
        long_block(4, 40),
        block(5, 50),
    ]
}

/// What a reader should make of frames: independent of the order in which it goes about it.
fn model(frames: &[Frame]) -> (State, Vec<Frame>) {
    let number = |frame: &Frame| match frame {
        Frame::Block(block) => block.number,
        Frame::Queue(change) => change.number,
        _ => 0,
    };
    let mut durable = 0;
    for (index, frame) in frames.iter().enumerate() {
        if let Frame::Checkpoint { number: covered } = frame {
            let prefix = frames[..index].iter().take_while(|frame| number(frame) <= *covered).count();
            durable = durable.max(prefix);
        }
    }
    let mut folded = state();
    frames[..durable].iter().for_each(|frame| folded.apply(frame));
    let tail = frames[durable..].iter().filter(|frame| !matches!(frame, Frame::Checkpoint { .. })).cloned().collect();
    (folded, tail)
}

#[test]
fn a_journal_torn_at_any_byte_is_read_up_to_there() {
    let scratch = TempDir::new().unwrap();
    let frames = some_frames();
    let (_, ends) = write(scratch.path(), &frames);
    let path = segment_path(scratch.path(), 1);
    let whole = fs::read(&path).unwrap();
    for cut in 0..=whole.len().min(*ends.last().unwrap() as usize + 20) {
        let mut torn = whole.clone();
        torn.truncate(cut);
        for filled in [false, true] {
            if filled {
                torn.resize(whole.len(), 0);
            }
            fs::write(&path, &torn).unwrap();
            let contents = read(scratch.path()).unwrap();
            // A frame of which only zeros are missing is whole when zeros follow.
            let there = |end: &u64| torn.get(..*end as usize) == Some(&whole[..*end as usize]);
            match ends.iter().rposition(there) {
                None => assert_eq!(contents.state, None, "cut at {cut}"),
                Some(count) => {
                    let (state, tail) = model(&frames[..count]);
                    assert_eq!((contents.state, contents.tail), (Some(state), tail), "cut at {cut}");
                    assert_eq!(contents.end, Some((1, ends[count])), "cut at {cut}");
                }
            }
        }
    }
}

/// A frame of several parts: a block whose rejects are longer than one may be.
fn long_block(number: u64, to: i64) -> Frame {
    let Frame::Block(block) = block(number, to) else { unreachable!() };
    let rejected = QueueEntry { value: vec![7; 3 * framing::PART_MAX], ..entry() };
    Frame::Block(Box::new(Block { rejects: vec![(number, rejected)], ..*block }))
}

#[test]
fn a_damaged_byte_ends_the_journal_at_its_frame() {
    let scratch = TempDir::new().unwrap();
    let frames = some_frames();
    let (_, ends) = write(scratch.path(), &frames);
    let path = segment_path(scratch.path(), 1);
    let whole = fs::read(&path).unwrap();
    for at in ends[0]..*ends.last().unwrap() {
        let mut damaged = whole.clone();
        damaged[at as usize] ^= 1 << (at % 8);
        fs::write(&path, &damaged).unwrap();
        let count = ends.iter().rposition(|end| *end <= at).unwrap();
        assert_eq!(read(scratch.path()).unwrap().end, Some((1, ends[count])), "damaged at {at}");
    }
}

#[test]
fn what_lies_behind_the_end_that_the_next_segment_names_is_void() {
    let scratch = TempDir::new().unwrap();
    let (_, ends) = write(scratch.path(), &[block(1, 10), block(2, 20)]);
    // The second block is not in the file when it is read, and comes back later: pages of a disk do that.
    let path = segment_path(scratch.path(), 1);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..ends[1] as usize]).unwrap();
    let mut image = state();
    image.apply(&block(1, 10));
    let mut journal = Journal::begin(scratch.path(), &read(scratch.path()).unwrap(), &image).unwrap();
    journal.append(&block(2, 15)).unwrap();
    fs::write(&path, &whole).unwrap();
    journal.append(&Frame::Checkpoint { number: 2 }).unwrap();
    assert_eq!(read(scratch.path()).unwrap().end.unwrap().0, 2);
    let mut blocks = Vec::new();
    history(scratch.path(), 0, |frame| blocks.extend(Some(frame).filter(|frame| matches!(frame, Frame::Block(_)))))
        .unwrap();
    assert_eq!(blocks, [block(1, 10), block(2, 15)]);
}

#[test]
fn a_segment_of_another_number_is_no_segment() {
    let scratch = TempDir::new().unwrap();
    write(scratch.path(), &[block(1, 10)]);
    fs::rename(segment_path(scratch.path(), 1), segment_path(scratch.path(), 2)).unwrap();
    let contents = read(scratch.path()).unwrap();
    assert_eq!((contents.state, contents.last_segment), (None, 2));
}

#[test]
fn a_turn_that_was_cut_short_leaves_the_segment_before_it() {
    let scratch = TempDir::new().unwrap();
    let (mut journal, _) = write(scratch.path(), &[block(1, 10)]);
    let mut image = state();
    image.apply(&block(1, 10));
    journal.turn(&image).unwrap();
    let path = segment_path(scratch.path(), 2);
    let (whole, end) = (fs::read(&path).unwrap(), journal.position as usize);
    for cut in 0..=end {
        fs::write(&path, &whole[..cut]).unwrap();
        let contents = read(scratch.path()).unwrap();
        assert_eq!(contents.end.unwrap().0, if cut == end { 2 } else { 1 }, "cut at {cut}");
        assert_eq!(contents.last_segment, 2, "its number is not used again");
    }
    let contents = read(scratch.path()).unwrap();
    assert_eq!((contents.state, contents.tail), (Some(image), Vec::new()));
}

/// A queue without entries, which nothing hinders from being copied.
fn empty(number: u64) -> Queue<'static> {
    Queue { number, bytes: 0, entries: &|_| Ok(()) }
}

#[test]
fn old_segments_are_pruned_and_the_current_one_never_is() {
    let scratch = TempDir::new().unwrap();
    let (mut journal, _) = write(scratch.path(), &[]);
    journal.turn(&state()).unwrap();
    journal.turn(&state()).unwrap();
    let later = SystemTime::now() + Duration::from_secs(100);
    let keep = |seconds| History { age: Duration::from_secs(seconds), bytes: u64::MAX };
    journal.prune(keep(200), later, &empty(0)).unwrap();
    assert_eq!(segments(scratch.path()).unwrap(), [1, 2, 3]);
    let bytes = fs::metadata(segment_path(scratch.path(), 2)).unwrap().len();
    journal.prune(History { bytes, ..keep(200) }, later, &empty(0)).unwrap();
    assert_eq!(segments(scratch.path()).unwrap(), [2, 3], "no more than so many bytes beside the current one");
    journal.prune(keep(50), later, &empty(0)).unwrap();
    assert_eq!(segments(scratch.path()).unwrap(), [3]);
}

const NONE: History = History { age: Duration::MAX, bytes: 0 };

#[test]
fn before_the_journal_begins_only_what_the_store_and_a_copy_have_goes() {
    for number in [0, 1, 2] {
        let scratch = TempDir::new().unwrap();
        let (mut journal, _) = write(scratch.path(), &[block(1, 10)]);
        let mut image = state();
        for number in 1..=2 {
            image.apply(&block(number, 10));
            journal.turn(&image).unwrap();
        }
        let now = SystemTime::now();
        prune(scratch.path(), 3, History { bytes: u64::MAX, ..NONE }, now, &empty(number)).unwrap();
        assert_eq!(segments(scratch.path()).unwrap(), [1, 2, 3], "none is too much");
        // A junk segment is in nobody's way.
        fs::write(segment_path(scratch.path(), 2), "junk").unwrap();
        prune(scratch.path(), 3, NONE, now, &empty(number)).unwrap();
        let kept: &[u64] = if number < 2 { &[1, 2, 3] } else { &[3] };
        assert_eq!(segments(scratch.path()).unwrap(), kept, "the store is at {number}");
        assert_eq!(copy::newest(scratch.path()).unwrap(), number);
    }
}

fn entry_of(key: u64) -> QueueEntry {
    QueueEntry { offset: key as i64, value: vec![key as u8; 100], ..entry() }
}

/// The entries of a copy; `None` when it is not whole.
fn copied_keys(dir: &Path, number: u64) -> Option<Vec<u64>> {
    let mut keys = Vec::new();
    let whole = copied(dir, number, &mut |key, found| {
        assert_eq!(found, entry_of(key));
        keys.push(key);
        Ok(())
    });
    whole.unwrap().then_some(keys)
}

#[test]
fn segments_with_entries_of_the_queue_go_when_it_is_copied_which_waits_until_there_are_as_many_bytes() {
    let scratch = TempDir::new().unwrap();
    let dir = scratch.path();
    let (mut journal, _) = write(dir, &[block(1, 10)]);
    let mut image = state();
    image.apply(&block(1, 10));
    journal.turn(&image).unwrap();
    let bytes = fs::metadata(segment_path(dir, 1)).unwrap().len();
    let size = entry_of(0).size();
    let count = std::cell::Cell::new(0);
    let prune = |journal: &Journal, keys: u64| {
        let entries = &|each: &mut Each<'_>| {
            count.set(count.get() + 1);
            (0..keys).try_for_each(|key| each(key, entry_of(key)))
        };
        journal.prune(NONE, SystemTime::now(), &Queue { number: 1, bytes: keys * size, entries }).unwrap();
        (segments(dir).unwrap(), count.get())
    };
    assert_eq!(prune(&journal, bytes / size + 1), (vec![1, 2], 0), "the queue is larger than what would go");
    assert_eq!(told_from(dir, 1).unwrap(), Some(0), "the segments tell everything");
    let some = bytes / size;
    assert_eq!(prune(&journal, some), (vec![2], 1));
    assert_eq!(copied_keys(dir, 1), Some((0..some).collect()));
    assert_eq!(told_from(dir, 1).unwrap(), Some(1));
    journal.turn(&image).unwrap();
    assert_eq!(prune(&journal, u64::MAX / size), (vec![3], 1), "the copy has what was in it already");
}

#[test]
fn a_copy_that_is_torn_or_damaged_anywhere_is_none() {
    let scratch = TempDir::new().unwrap();
    let dir = scratch.path();
    let entries = &|each: &mut Each<'_>| (0..25).try_for_each(|key| each(key, entry_of(key)));
    copy(dir, &Queue { number: 0, bytes: 25 * entry_of(0).size(), entries }).unwrap();
    let path = dir.join(format!("{:020}.queue", 0));
    let whole = fs::read(&path).unwrap();
    assert_eq!(copied_keys(dir, 0), Some((0..25).collect()));
    for at in 0..whole.len() {
        fs::write(&path, &whole[..at]).unwrap();
        assert_eq!(copied_keys(dir, 0), None, "cut at {at}");
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        fs::write(&path, flipped).unwrap();
        assert!(!copied(dir, 0, &mut |_, _| Ok(())).unwrap(), "flipped at {at}");
    }
}

#[test]
fn a_copy_that_cannot_be_written_leaves_the_one_before_it() {
    let scratch = TempDir::new().unwrap();
    let dir = scratch.path();
    let one = |each: &mut Each<'_>| each(7, entry_of(7));
    let full = |each: &mut Each<'_>| {
        each(1, entry_of(1))?;
        Err(io::ErrorKind::StorageFull.into())
    };
    let bytes = entry_of(0).size();
    assert!(copy(dir, &Queue { number: 1, bytes, entries: &one }).unwrap());
    assert!(!copy(dir, &Queue { number: 2, bytes, entries: &full }).unwrap());
    assert!(!copy(dir, &Queue { number: 2, bytes: 1 << 60, entries: &one }).unwrap(), "there is no such room");
    let short = copy(dir, &Queue { number: 2, bytes: bytes + 1, entries: &one }).unwrap_err();
    assert_eq!(short.kind(), io::ErrorKind::InvalidData, "the store lost some");
    assert_eq!(copy::newest(dir).unwrap(), 1);
    assert_eq!(copied_keys(dir, 1), Some(vec![7]));
    assert!(!dir.join("queue.new").try_exists().unwrap());
}

#[test]
fn what_was_dropped_stays_so_wherever_the_next_segment_is_cut() {
    let scratch = TempDir::new().unwrap();
    let dir = scratch.path();
    let sealed = State { visibility: Visibility::Sealed, ..state() };
    let mut journal = Journal::begin(dir, &Contents::default(), &sealed).unwrap();
    for number in 1..=3 {
        journal.append(&block(number, 10)).unwrap();
        if number == 1 {
            journal.append(&Frame::Checkpoint { number }).unwrap();
        }
    }
    drop(journal);
    let contents = read(dir).unwrap();
    assert_eq!(contents.tail, [Frame::Dropped { from: 2, to: 3 }]);
    let mut image = contents.state.clone().unwrap();
    contents.tail.iter().for_each(|frame| image.apply(frame));
    let journal = Journal::begin(dir, &contents, &image).unwrap();
    let (path, end) = (segment_path(dir, 2), journal.position as usize);
    let whole = fs::read(&path).unwrap();
    for cut in 0..=end {
        fs::write(&path, &whole[..cut]).unwrap();
        let found = read(dir).unwrap();
        let mut numbers = Vec::new();
        history(dir, 0, |frame| numbers.extend(frame.number())).unwrap();
        let begun = found.end.is_some_and(|(segment, _)| segment == 2);
        assert_eq!(begun, cut == end, "cut at {cut}");
        // Either the tail still drops them, or the segment has.
        let expected: &[u64] = if begun { &[1] } else { &[1, 2, 3] };
        assert_eq!(numbers, expected, "cut at {cut}");
    }
}

#[test]
fn a_journal_that_lost_a_part_does_not_tell_everything() {
    let scratch = TempDir::new().unwrap();
    let dir = scratch.path();
    let (mut journal, mut image) = (write(dir, &[]).0, state());
    for number in 1..=3 {
        journal.append(&block(number, 10)).unwrap();
        image.apply(&block(number, 10));
        journal.turn(&image).unwrap();
    }
    assert_eq!(told_from(dir, 3).unwrap(), Some(0));
    assert_eq!(segments(dir).unwrap(), [1, 2, 3, 4]);
    let second = fs::read(segment_path(dir, 2)).unwrap();
    fs::remove_file(segment_path(dir, 2)).unwrap();
    assert_eq!(told_from(dir, 3).unwrap(), None, "one is missing");
    fs::write(segment_path(dir, 2), &second[..second.len() - 1]).unwrap();
    assert_eq!(told_from(dir, 3).unwrap(), None, "the end of one is missing");
    copy(dir, &empty(2)).unwrap();
    assert_eq!(told_from(dir, 3).unwrap(), Some(2), "it was before the copy");
    assert_eq!(told_from(dir, 1).unwrap(), None, "the copy is of later");
    // The state fell back: what the copy says of later numbers is not what they will be.
    drop(Journal::begin(dir, &read(dir).unwrap(), &State { number: 1, ..state() }).unwrap());
    assert_eq!(copy::newest(dir).unwrap(), 0);
}

#[test]
fn what_is_above_a_number_is_read_whatever_segment_it_is_in() {
    let scratch = TempDir::new().unwrap();
    let (mut journal, mut image) = (write(scratch.path(), &[]).0, state());
    for number in 1..=6 {
        journal.append(&block(number, 10)).unwrap();
        image.apply(&block(number, 10));
        if number % 2 == 0 {
            journal.turn(&image).unwrap();
        }
    }
    for after in 0..=7 {
        let mut numbers = Vec::new();
        history(scratch.path(), after, |frame| numbers.extend(frame.number())).unwrap();
        assert_eq!(numbers, (after + 1..=6).collect::<Vec<_>>());
    }
    // What the store has is not even looked at.
    fs::write(segment_path(scratch.path(), 1), "damaged").unwrap();
    let mut numbers = Vec::new();
    history(scratch.path(), 3, |frame| numbers.extend(frame.number())).unwrap();
    assert_eq!(numbers, [4, 5, 6]);
}

#[test]
fn a_format_that_is_not_known_is_refused_by_its_version_and_other_files_are_none_of_ours() {
    let scratch = TempDir::new().unwrap();
    for name in ["7.log", "notes.txt", "x.log", "0000000000000000000x.log"] {
        fs::write(scratch.path().join(name), "?").unwrap();
    }
    assert_eq!(read(scratch.path()).unwrap().last_segment, 0);
    for version in [2, VERSION + 1] {
        let header = Header { version, segment: 1, previous: None };
        fs::write(segment_path(scratch.path(), 1), encode(1, &Frame::Header(header)).unwrap()).unwrap();
        let error = read(scratch.path()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        assert!(error.to_string().contains(&format!("it is of format {version}")), "{error}");
    }
}

/// An entry as format 3 had it, where every header had a value. Tuples, structs and variants with fields are all written as
/// their parts, one behind the other.
fn entry_v3(entry: &QueueEntry) -> impl serde::Serialize + use<> {
    let QueueEntry { partition, topic_id, offset, timestamp, key, headers, value, .. } = entry.clone();
    let QueueEntry { reject, attempts, first_failure, last_failure, recipe, .. } = entry.clone();
    let headers: Vec<_> = headers.into_iter().map(|(name, value)| (name, value.unwrap_or_default())).collect();
    let record = (partition, topic_id, offset, timestamp, key, headers, value);
    (record, (reject, attempts, first_failure, last_failure, recipe))
}

/// A frame as format 3 had it.
fn frame_v3(segment: u64, frame: &Frame) -> Vec<u8> {
    match frame {
        Frame::Block(block) => {
            let Block { number, source, recipe, pieces, records, filtered, rejects } = (**block).clone();
            let rejects: Vec<_> = rejects.iter().map(|(key, entry)| (*key, entry_v3(entry))).collect();
            encode(segment, &(6_u32, number, source, recipe, pieces, records, filtered, rejects)).unwrap()
        }
        Frame::Header(header) => encode(segment, &Frame::Header(Header { version: 3, ..header.clone() })).unwrap(),
        frame => encode(segment, frame).unwrap(),
    }
}

#[test]
fn a_journal_of_format_3_is_read_and_goes_on_in_the_current_one_wherever_its_next_segment_is_cut() {
    let scratch = TempDir::new().unwrap();
    let dir = scratch.path();
    // No header of a record lacked a value then.
    let old = |key| QueueEntry { headers: vec![("h".into(), Some(b"v".to_vec()))], ..entry_of(key) };
    let rejecting = |number: u64| {
        let Frame::Block(block) = block(number, number as i64 * 10) else { unreachable!() };
        Frame::Block(Box::new(Block { rejects: vec![(number, old(number)), (number + 100, old(number))], ..*block }))
    };
    let header = Frame::Header(Header { version: 3, segment: 1, previous: None });
    let frames = [header, Frame::Image(Box::new(state())), rejecting(1), Frame::Checkpoint { number: 1 }, rejecting(2)];
    let bytes: Vec<u8> = frames.iter().flat_map(|frame| frame_v3(1, frame)).collect();
    fs::create_dir_all(dir).unwrap();
    fs::write(segment_path(dir, 1), &bytes).unwrap();

    let contents = read(dir).unwrap();
    let (mut image, tail) = model(&[rejecting(1), Frame::Checkpoint { number: 1 }, rejecting(2)]);
    assert_eq!((contents.state.as_ref(), &contents.tail), (Some(&image), &tail));
    image.apply(&tail[0]);
    let mut journal = Journal::begin(dir, &contents, &image).unwrap();
    let begun = journal.position as usize;
    let null = QueueEntry { headers: vec![("null".into(), None)], ..entry_of(9) };
    let Frame::Block(next) = block(3, 30) else { unreachable!() };
    let next = Frame::Block(Box::new(Block { rejects: vec![(9, null)], ..*next }));
    journal.append(&next).unwrap();
    let path = segment_path(dir, 2);
    let whole = fs::read(&path).unwrap();
    for cut in 0..journal.position as usize {
        fs::write(&path, &whole[..cut]).unwrap();
        let contents = read(dir).unwrap();
        if cut < begun {
            assert_eq!(contents.tail, tail, "cut at {cut}: that of format 3 still is the journal");
        } else {
            assert_eq!((contents.state.as_ref(), contents.tail.len()), (Some(&image), 0), "cut at {cut}");
        }
    }
    fs::write(&path, &whole).unwrap();
    assert_eq!(read(dir).unwrap().tail, std::slice::from_ref(&next));
    let mut told = Vec::new();
    assert!(history(dir, 0, |frame| told.extend(Some(frame).filter(|frame| frame.number().is_some()))).unwrap());
    assert_eq!(told, [rejecting(1), rejecting(2), next], "each segment by its own format");
}

#[test]
fn a_journal_of_format_4_is_read_and_nothing_is_known_of_how_its_topics_were_begun() {
    let scratch = TempDir::new().unwrap();
    let dir = scratch.path();
    let header = encode(1, &Frame::Header(Header { version: 4, segment: 1, previous: None })).unwrap();
    let image = state();
    // The list of topics, of which there are none, is the last part of an image.
    let mut body = postcard::to_stdvec(&Frame::Image(Box::new(image.clone()))).unwrap();
    assert_eq!(body.pop(), Some(0));
    fs::create_dir_all(dir).unwrap();
    fs::write(segment_path(dir, 1), [header, framing::in_parts(1, &body), encode(1, &block(1, 10)).unwrap()].concat())
        .unwrap();
    let contents = read(dir).unwrap();
    assert_eq!((contents.state, contents.tail), (Some(image.clone()), vec![block(1, 10)]));
    assert_eq!(Format::V4.state(&postcard::to_stdvec(&image).unwrap()).unwrap(), image, "a value of the store");
}

#[test]
fn a_journal_of_format_5_is_read_and_nothing_is_known_of_where_its_partitions_were_begun() {
    let scratch = TempDir::new().unwrap();
    let dir = scratch.path();
    let header = encode(1, &Frame::Header(Header { version: 5, segment: 1, previous: None })).unwrap();
    let mut image = state();
    image.apply(&Frame::Start(position(0, 5)));
    // Neither a mark nor growth, and the place where it was begun is not known.
    let partition = [&b"\x02id\x0a\x01"[..], &[0; 3]].concat();
    let old = |mut bytes: Vec<u8>| {
        let at = bytes.windows(partition.len()).position(|window| window == partition).unwrap();
        bytes.remove(at + partition.len() - 1);
        bytes
    };
    let body = old(postcard::to_stdvec(&Frame::Image(Box::new(image.clone()))).unwrap());
    fs::create_dir_all(dir).unwrap();
    fs::write(segment_path(dir, 1), [header, framing::in_parts(1, &body), encode(1, &block(1, 10)).unwrap()].concat())
        .unwrap();
    let contents = read(dir).unwrap();
    assert_eq!((contents.state, contents.tail), (Some(image.clone()), vec![block(1, 10)]));
    assert_eq!(Format::V5.state(&old(postcard::to_stdvec(&image).unwrap())).unwrap(), image, "a value of the store");
}

#[test]
fn where_a_partition_was_begun_is_known_until_it_is_moved() {
    let begun = |frames: &[Frame]| {
        let mut state = state();
        for frame in frames {
            state.apply(frame);
        }
        state.partitions[&position(0, 0).partition].begun
    };
    let start = [Frame::Start(position(0, 5)), Frame::Begun { partition: position(0, 5).partition }];
    let moved = |next, cause| [&start[..], &[block(1, 10), Frame::Move { to: position(0, next), cause }]].concat();
    assert_eq!(begun(&start[..1]), None, "others have read before");
    assert_eq!(begun(&[&start[..], &[block(1, 10)]].concat()), Some(5));
    assert_eq!(begun(&moved(20, MoveCause::Gap { from: 10 })), Some(5));
    assert_eq!(begun(&moved(7, MoveCause::Reset)), Some(5));
    assert_eq!(begun(&moved(3, MoveCause::Reset)), None, "behind a log that was cut off before that");
    assert_eq!(begun(&moved(0, MoveCause::Recreated)), Some(0));
    for cause in [MoveCause::Operator, MoveCause::Takeover] {
        assert_eq!(begun(&moved(5, cause)), None);
    }
}

#[test]
fn a_copy_of_format_3_is_read_and_one_of_an_unknown_format_is_refused() {
    let scratch = TempDir::new().unwrap();
    let path = scratch.path().join(format!("{:020}.queue", 5));
    let old = QueueEntry { headers: vec![("h".into(), Some(b"v".to_vec()))], ..entry_of(1) };
    let list = encode(5, &vec![(1_u64, entry_v3(&old))]).unwrap();
    fs::write(&path, [list, framing::in_parts(5, &[0])].concat()).unwrap();
    let mut found = Vec::new();
    let mut each = |key, entry| {
        found.push((key, entry));
        Ok(())
    };
    assert!(copied(scratch.path(), 5, &mut each).unwrap());
    assert_eq!(found, [(1, old)]);
    fs::write(&path, framing::in_parts(5, b"queue\xc8")).unwrap();
    let error = copied(scratch.path(), 5, &mut |_, _| Ok(())).unwrap_err();
    assert!(error.to_string().contains("format 200"), "{error}");
}

#[test]
fn the_bytes_of_a_frame_never_change() {
    let hex =
        |frame: &Frame| encode(3, frame).unwrap().iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    let header = Frame::Header(Header { version: 1, segment: 3, previous: Some((2, 300)) });
    assert_eq!(hex(&header), GOLDEN[0]);
    assert_eq!(hex(&block(1, 10)), GOLDEN[1]);
    assert_eq!(hex(&Frame::Checkpoint { number: 300 }), GOLDEN[2]);
    let begun = Begun { topic_id: "id".into(), partitions: 3 };
    assert_eq!(hex(&Frame::Topic { name: "t".into(), begun }), GOLDEN[3]);
    assert_eq!(hex(&Frame::Begun { partition: position(3, 0).partition }), GOLDEN[4]);
}

const GOLDEN: [&str; 5] = [
    "07000000e17897120001030102ac02",
    "190000009392eb74060100000174000269641401017201000a0a01020301000000",
    "0300000098c1656809ac02",
    "070000003156474d10017402696406",
    "040000003ca3873611017406",
];

#[derive(Clone, Debug)]
enum Step {
    Place(i32, i64),
    Gap(i32, i64, i64),
    File,
    Made(u64),
    End(u64),
    Block(i32, u64, u64),
    Retry(u64, u64),
    Clear(u64),
    Checkpoint(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..3, 0..99i64).prop_map(|(partition, next)| Step::Place(partition, next)),
        (0..3, 0..50i64, 0..50i64).prop_map(|(partition, from, lost)| Step::Gap(partition, from, lost)),
        Just(Step::File),
        (0..6u64).prop_map(Step::Made),
        (0..6u64).prop_map(Step::End),
        (0..3, 0..6u64, 0..4u64).prop_map(|(partition, file, rejects)| Step::Block(partition, file, rejects)),
        (0..4u64, 0..4u64).prop_map(|(taken, again)| Step::Retry(taken, again)),
        (0..4u64).prop_map(Step::Clear),
        (0..4u64).prop_map(Step::Checkpoint),
    ]
}

fn entry() -> QueueEntry {
    QueueEntry {
        partition: position(0, 0).partition,
        topic_id: String::new(),
        offset: 1,
        timestamp: None,
        key: Some(b"k".to_vec()),
        headers: vec![("h".into(), Some(b"v".to_vec())), ("null".into(), None)],
        value: b"value".to_vec(),
        reject: crate::record::Reject::new(crate::record::Reason::NoTime, "none"),
        attempts: 1,
        first_failure: 0,
        last_failure: 0,
        recipe: "r".into(),
    }
}

/// Turns steps into frames as the delivery would number them, and keeps the sums in the simplest way.
#[derive(Default)]
struct Simple {
    frames: Vec<Frame>,
    number: u64,
    covered: u64,
    next_file: u64,
    offsets: std::collections::BTreeMap<i32, i64>,
    lengths: std::collections::BTreeMap<u64, u64>,
    /// Written, consumed, retried, rejected, lost, in the queue, cleared.
    sums: [i64; 7],
}

impl Simple {
    fn take(&mut self, step: &Step) {
        let entries = |count: u64| (0..count).map(|key| (key, entry())).collect::<Vec<_>>();
        let taken = |count: u64| (0..count).map(|key| (key, entry().size())).collect::<Vec<_>>();
        let queued = self.sums[5] as u64;
        let frame = match *step {
            Step::Place(partition, next) => {
                self.offsets.insert(partition, next);
                Frame::Start(position(partition, next))
            }
            Step::Gap(partition, from, lost) => {
                self.offsets.insert(partition, from + lost);
                self.sums[4] += lost;
                Frame::Move { to: position(partition, from + lost), cause: MoveCause::Gap { from } }
            }
            Step::File => {
                self.next_file += 1;
                self.lengths.insert(self.next_file - 1, 0);
                let id = self.next_file - 1;
                Frame::File(FileIntent { id, name: format!("f{id}"), opened: 9, ..FileIntent::default() })
            }
            Step::Made(id) => Frame::Made { id, inode: id + 100 },
            Step::End(id) => {
                self.lengths.remove(&id);
                Frame::End { id }
            }
            Step::Block(partition, file, rejects) => {
                self.number += 1;
                let from = self.offsets.get(&partition).copied().unwrap_or(0);
                self.offsets.insert(partition, from + 10);
                let begin = self.lengths.get(&file).copied().unwrap_or(0);
                self.lengths.entry(file).and_modify(|length| *length += 7);
                for (sum, count) in [(0, 10 - rejects), (1, 10), (3, rejects), (5, rejects)] {
                    self.sums[sum] += count as i64;
                }
                Frame::Block(Box::new(Block {
                    number: self.number,
                    source: BlockSource::Offsets { from, to: position(partition, from + 10) },
                    recipe: String::new(),
                    pieces: vec![Piece { file, position: begin, length: 7, crc: 0, lines: 10 - rejects }],
                    records: 10,
                    filtered: [0; 3],
                    rejects: entries(rejects),
                }))
            }
            Step::Retry(count, again) => {
                self.number += 1;
                let count = count.min(queued);
                let again = again.min(count);
                for (sum, change) in [(0, count - again), (2, count), (3, again)] {
                    self.sums[sum] += change as i64;
                }
                self.sums[5] -= (count - again) as i64;
                Frame::Block(Box::new(Block {
                    number: self.number,
                    source: BlockSource::Queue(taken(count)),
                    recipe: String::new(),
                    pieces: vec![Piece { file: 99, position: 0, length: 1, crc: 0, lines: count - again }],
                    records: count,
                    filtered: [0; 3],
                    rejects: entries(again),
                }))
            }
            Step::Clear(count) => {
                self.number += 1;
                let count = count.min(queued);
                self.sums[5] -= count as i64;
                self.sums[6] += count as i64;
                Frame::Queue(QueueChange { number: self.number, removed: taken(count), cause: QueueCause::Cleared })
            }
            Step::Checkpoint(behind) => {
                self.covered = self.covered.max(self.number.saturating_sub(behind));
                Frame::Checkpoint { number: self.covered }
            }
        };
        self.frames.push(frame);
    }
}

proptest! {
    /// The sums of the fold are those of a model that adds up steps, and what is read back is cut where checkpoints say.
    #[test]
    fn the_fold_adds_up_and_a_checkpoint_covers_a_prefix(steps in prop::collection::vec(step(), 0..60)) {
        let mut simple = Simple::default();
        for step in &steps {
            simple.take(step);
        }
        let mut all = state();
        simple.frames.iter().for_each(|frame| all.apply(frame));
        let totals = &all.totals;
        let sums = [totals.written, totals.consumed, totals.retried, totals.rejected.iter().sum(), totals.gaps, totals.queue_records, totals.cleared];
        prop_assert_eq!(sums.map(|sum| sum as i64), simple.sums);
        prop_assert_eq!(totals.queue_bytes, totals.queue_records * entry().size());
        prop_assert_eq!(all.number, simple.number);
        prop_assert_eq!(all.next_file, simple.next_file);
        let offsets: Vec<_> = all.partitions.iter().map(|(of, state)| (of.partition, state.next)).collect();
        prop_assert_eq!(offsets, simple.offsets.into_iter().collect::<Vec<_>>());
        let lengths: Vec<_> = all.files.iter().map(|(id, file)| (*id, file.length)).collect();
        prop_assert_eq!(lengths, simple.lengths.into_iter().collect::<Vec<_>>());

        let mut fold = Fold { state: state(), tail: Vec::new() };
        simple.frames.iter().for_each(|frame| fold.take(frame.clone()));
        let (durable, tail) = model(&simple.frames);
        prop_assert_eq!(&fold.state, &durable);
        prop_assert_eq!(&fold.tail, &tail);
        fold.tail.iter().for_each(|frame| fold.state.apply(frame));
        prop_assert_eq!(fold.state, all);
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), valid in any::<bool>()) {
        let mut segment = if valid { encode(1, &block(1, 2)).unwrap() } else { Vec::new() };
        segment.extend(bytes);
        for format in [Format::V3, Format::V4, Format::V5, Format::CURRENT] {
            let frames = Frames { segment: 1, format, bytes: &segment, position: 0 };
            prop_assert!(frames.count() <= segment.len());
        }
        prop_assert!(Frames::open(Path::new("j"), 1, &segment).unwrap().is_none(), "no header");
    }
}

#[test]
fn an_entry_is_open_while_its_own_growth_is_and_not_that_of_another_topic_of_the_name() {
    let entry = |offset| QueueEntry {
        partition: position(0, 0).partition,
        topic_id: "id".into(),
        offset,
        timestamp: None,
        key: None,
        headers: Vec::new(),
        value: Vec::new(),
        reject: crate::record::Reject::new(crate::record::Reason::NoId, "none"),
        attempts: 1,
        first_failure: 0,
        last_failure: 0,
        recipe: "r".into(),
    };
    let mut state = State { visibility: Visibility::Sealed, next_key: 7, ..state() };
    state.apply(&block(1, 10));
    assert!(state.is_open(7, &entry(3)));
    assert!(!state.is_open(6, &entry(3)), "it was there before: left by a topic that was deleted");
    let open = state.open();
    let growth = state.partitions[&position(0, 0).partition].growth.clone().unwrap();
    let range = SealedRange { offsets: Some(SealedOffsets { growth, to: position(0, 10) }), files: Vec::new() };
    state.apply(&Frame::Prepared(Box::new(Seal { number: 2, incarnation: 1, ranges: vec![range] })));
    assert_eq!(state.open(), open, "prepared is not decided");
    assert!(state.is_open(7, &entry(3)) && !state.is_open(7, &entry(10)) && !state.is_open(6, &entry(3)));
    state.apply(&Frame::Published { number: 2, partition: Some(position(0, 0).partition) });
    assert!(!state.is_open(7, &entry(3)) && state.open().is_empty());
}
