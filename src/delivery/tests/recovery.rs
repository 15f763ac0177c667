//! Recovery on real files, with a source that makes any lines again.

use std::os::unix::fs::MetadataExt as _;

use super::*;

/// Files with blocks in them, and a journal's tail that tells of them.
struct World {
    scratch: TempDir,
    contents: Contents,
    /// What each block put where.
    blocks: Vec<Vec<(u64, Vec<u8>)>>,
    /// What each file should have.
    expected: BTreeMap<u64, Vec<u8>>,
}

/// Lines that are different in each block and file.
fn lines(block: usize, file: u64, count: usize) -> Vec<u8> {
    (0..count)
        .flat_map(|line| format!("{{\"block\":{block},\"file\":{file},\"line\":{line}}}\n").into_bytes())
        .collect()
}

impl World {
    /// Files 0, 1, ... with 20 bytes that a checkpoint covers, and these blocks after it: for each the files that get lines.
    fn new(files: u64, blocks: &[&[u64]]) -> Self {
        let scratch = TempDir::new().unwrap();
        let dir = EventDir::open(&scratch.path().join("data")).unwrap();
        let mut state = State { home: "h".into(), incarnation: 1, ..State::default() };
        let mut expected = BTreeMap::new();
        for id in 0..files {
            let name = format!("f{id}");
            let (_, inode) = dir.create(&name, 0o640).unwrap();
            state.apply(&Frame::File(FileIntent { id, name: name.clone(), key: key(id), ..FileIntent::default() }));
            state.apply(&Frame::Made { id, inode });
            state.files.get_mut(&id).unwrap().length = 20;
            let durable = b"{\"durable\":\"12345\"}\n".to_vec();
            fs::write(scratch.path().join("data").join(name), &durable).unwrap();
            expected.insert(id, durable);
        }
        let mut world = Self { scratch, contents: Contents::default(), blocks: Vec::new(), expected };
        for (index, files) in blocks.iter().enumerate() {
            let pieces: Vec<_> = files.iter().map(|id| (*id, lines(index, *id, 3))).collect();
            let block = Block {
                number: index as u64 + 1,
                source: BlockSource::Offsets { from: index as i64 * 10, to: position(0, index as i64 * 10 + 10) },
                recipe: "r".into(),
                pieces: pieces.iter().map(|(id, bytes)| world.piece(*id, bytes)).collect(),
                records: 3 * files.len() as u64,
                filtered: [0; 3],
                rejects: Vec::new(),
            };
            world.contents.tail.push(Frame::Block(Box::new(block)));
            for (id, bytes) in &pieces {
                world.expected.get_mut(id).unwrap().extend(bytes);
            }
            world.blocks.push(pieces);
        }
        world.contents.state = Some(state);
        world
    }

    fn piece(&self, file: u64, bytes: &[u8]) -> Piece {
        Piece {
            file,
            position: self.expected[&file].len() as u64,
            length: bytes.len() as u64,
            crc: crc32c::crc32c(bytes),
            lines: memchr::memchr_iter(b'\n', bytes).count() as u64,
        }
    }

    fn path(&self, file: u64) -> PathBuf {
        self.scratch.path().join("data").join(format!("f{file}"))
    }

    fn content(&self, file: u64) -> Vec<u8> {
        fs::read(self.path(file)).unwrap()
    }

    /// Writes what a kill after `bytes` bytes of the blocks would leave.
    fn write(&self, mut bytes: usize) {
        for (file, lines) in self.blocks.iter().flatten() {
            let now = bytes.min(lines.len());
            bytes -= now;
            let mut content = self.content(*file);
            content.extend(&lines[..now]);
            fs::write(self.path(*file), content).unwrap();
        }
    }

    fn write_all(&self) {
        self.write(usize::MAX);
    }

    fn recover(&self, source: &mut dyn Regenerate) -> Recovered {
        let dir = EventDir::open(&self.scratch.path().join("data")).unwrap();
        recover(&self.contents, &dir, source, Trust::Own).unwrap().unwrap()
    }

    /// Every file is as it should be, and the state says so.
    #[track_caller]
    fn check(&self, recovered: &Recovered) {
        for (file, expected) in &self.expected {
            assert_eq!(String::from_utf8_lossy(&self.content(*file)), String::from_utf8_lossy(expected), "file {file}");
            assert_eq!(recovered.state.files[file].length, expected.len() as u64, "file {file}");
        }
        let lines: usize = self.blocks.iter().map(|pieces| 3 * pieces.len()).sum();
        assert_eq!(recovered.state.totals.written, lines as u64);
        assert_eq!(recovered.state.totals.gaps, 0);
        assert_eq!(recovered.state.number, self.blocks.len() as u64);
    }
}

/// Makes the lines of a block as a function says, and counts how often it is asked.
struct Source<F> {
    make: F,
    asked: Vec<u64>,
}

impl<F: FnMut(&Block) -> Regenerated> Regenerate for Source<F> {
    fn lines(&mut self, block: &Block) -> Result<Regenerated, RecoveryError> {
        self.asked.push(block.number);
        Ok((self.make)(block))
    }
}

fn key(file: u64) -> FileKey {
    FileKey { partition: Some(file as i32), ..FileKey::default() }
}

fn all_of(lines: impl Iterator<Item = (u64, Vec<u8>)>) -> Regenerated {
    Regenerated { lines: lines.map(|(file, lines)| (key(file), lines)).collect(), gone: None }
}

/// The lines as they were.
fn same(world: &World) -> Source<impl FnMut(&Block) -> Regenerated> {
    let blocks = world.blocks.clone();
    let make = move |block: &Block| {
        let pieces = &blocks[block.number as usize - 1];
        all_of(pieces.iter().map(|(id, lines)| (*id, lines.clone())))
    };
    Source { make, asked: Vec::new() }
}

fn gone() -> Source<impl FnMut(&Block) -> Regenerated> {
    Source { make: |_: &Block| Regenerated::gone("retention"), asked: Vec::new() }
}

#[test]
fn a_kill_at_any_byte_is_completed_and_only_what_was_cut_short_is_made_again() {
    let blocks: &[&[u64]] = &[&[0], &[1, 0], &[0, 1]];
    let whole = World::new(2, blocks).blocks;
    let sizes: Vec<usize> = whole.iter().map(|pieces| pieces.iter().map(|(_, lines)| lines.len()).sum()).collect();
    let before: usize = sizes[..2].iter().sum();
    for cut in 0..=sizes[2] {
        let world = World::new(2, blocks);
        world.write(before + cut);
        let mut source = same(&world);
        let recovered = world.recover(&mut source);
        world.check(&recovered);
        let asked: &[u64] = if cut == sizes[2] { &[] } else { &[3] };
        assert_eq!(source.asked, asked, "killed after {cut} bytes");
    }
}

#[test]
fn a_recovery_that_was_killed_comes_to_the_same_end_the_next_time() {
    let world = World::new(1, &[&[0], &[0]]);
    world.write(10);
    world.recover(&mut same(&world));
    let mut source = same(&world);
    world.check(&world.recover(&mut source));
    assert_eq!(source.asked, Vec::<u64>::new());
}

#[test]
fn a_hole_in_the_middle_is_filled_in_place() {
    let world = World::new(1, &[&[0], &[0], &[0]]);
    world.write_all();
    let mut content = world.content(0);
    content[60..150].fill(0);
    fs::write(world.path(0), content).unwrap();
    let mut source = same(&world);
    world.check(&world.recover(&mut source));
    assert_eq!(source.asked, [1, 2]);
}

#[test]
fn bytes_that_no_block_covers_are_cut_off() {
    let world = World::new(2, &[&[0]]);
    world.write_all();
    for file in [0, 1] {
        fs::write(world.path(file), [world.content(file), b"stray\n".to_vec()].concat()).unwrap();
    }
    world.check(&world.recover(&mut gone()));
}

#[test]
fn a_file_that_ended_after_its_last_block_is_completed_too() {
    let mut world = World::new(1, &[&[0]]);
    world.contents.tail.push(Frame::End { id: 0 });
    world.write(30);
    let recovered = world.recover(&mut same(&world));
    assert_eq!(world.content(0), world.expected[&0]);
    assert!(recovered.state.files.is_empty());
}

#[test]
fn a_file_that_somebody_touched_is_left_alone_and_another_goes_on() {
    type Harm = fn(&World);
    let harms: [(&str, Harm); 3] = [
        ("removed", |world| fs::remove_file(world.path(0)).unwrap()),
        ("shortened", |world| fs::write(world.path(0), b"short\n").unwrap()),
        ("replaced", |world| {
            fs::rename(world.path(0), world.scratch.path().join("moved")).unwrap();
            fs::write(world.path(0), [b'x'; 500]).unwrap();
        }),
    ];
    for (what, harm) in harms {
        let world = World::new(2, &[&[0, 1]]);
        world.write_all();
        harm(&world);
        let left = fs::read(world.path(0)).ok();
        let recovered = world.recover(&mut same(&world));
        assert_eq!(fs::read(world.path(0)).ok(), left, "{what}");
        assert_eq!(world.content(1), world.expected[&1], "{what}");
        assert_eq!(recovered.state.files.keys().collect::<Vec<_>>(), [&1], "{what}: the file has ended");
        assert_eq!(recovered.state.partitions[&partition(0)].next, 10, "{what}");
        let totals = &recovered.state.totals;
        assert_eq!((totals.written, totals.consumed, totals.gaps), (3, 3, 3), "{what}: it was the last block");
    }
}

/// Puts a file with this content in place of another one.
fn replace(world: &World, file: u64, content: &[u8]) {
    let new = world.scratch.path().join("new");
    fs::write(&new, content).unwrap();
    fs::rename(new, world.path(file)).unwrap();
}

#[test]
fn copies_of_files_are_completed_and_gone_on_with() {
    let blocks: &[&[u64]] = &[&[0], &[1, 0]];
    let size: usize = World::new(2, blocks).blocks.iter().flatten().map(|(_, lines)| lines.len()).sum();
    for cut in 0..=size {
        let world = World::new(2, blocks);
        world.write(cut);
        for file in [0, 1] {
            replace(&world, file, &world.content(file));
        }
        let recovered = world.recover(&mut same(&world));
        world.check(&recovered);
        for file in [0, 1] {
            let inode = fs::metadata(world.path(file)).unwrap().ino();
            assert_eq!(recovered.state.files[&file].inode, inode, "it goes on there");
        }
    }
}

#[test]
fn a_file_that_begins_as_the_one_before_it_and_goes_on_otherwise_is_left_alone() {
    let torn = [b"{\"durable\":\"12345\"}\n".as_slice(), b"{\"other\""].concat();
    let wrong = [b"{\"durable\":\"12345\"}\n".as_slice(), lines(7, 0, 3).as_slice()].concat();
    for content in [torn, wrong] {
        let world = World::new(1, &[&[0]]);
        replace(&world, 0, &content);
        let recovered = world.recover(&mut same(&world));
        assert_eq!(world.content(0), content);
        assert!(recovered.state.files.is_empty(), "it gets no further lines");
        let totals = &recovered.state.totals;
        assert_eq!((totals.written, totals.consumed, totals.gaps), (0, 0, 3));
    }
}

#[test]
fn a_foreign_file_at_a_name_that_was_only_intended_is_not_touched() {
    let mut world = World::new(1, &[]);
    let key = FileKey { partition: Some(7), ..FileKey::default() };
    world.contents.tail.push(Frame::File(FileIntent { id: 7, name: "f7".into(), key, ..FileIntent::default() }));
    fs::write(world.path(7), b"another process's\n").unwrap();
    let recovered = world.recover(&mut gone());
    assert_eq!(world.content(7), b"another process's\n");
    assert!(!recovered.state.files.contains_key(&7));
    assert_eq!(recovered.state.next_file, 8, "the name is not tried again");
}

#[test]
fn a_hidden_file_that_nobody_would_ever_finish_is_removed() {
    let mut world = World::new(0, &[]);
    let dir = EventDir::open(&world.scratch.path().join("data")).unwrap();
    let state = world.contents.state.as_mut().unwrap();
    // The length at the last checkpoint is of a file whose creation was noted.
    let mut hide = |id, name: &str, content: &str, checkpointed: Option<u64>| {
        let intent = FileIntent { id, name: name.into(), visibility: Visibility::Sealed, ..FileIntent::default() };
        let (_, inode) = dir.create(&intent.path(), 0o640).unwrap();
        fs::write(world.scratch.path().join("data").join(intent.path()), content).unwrap();
        state.apply(&Frame::File(intent));
        if let Some(length) = checkpointed {
            state.apply(&Frame::Made { id, inode });
            state.files.get_mut(&id).unwrap().length = length;
        }
    };
    hide(0, "created", "", None);
    hide(1, "foreign", "another process's", None);
    hide(2, "shortened", "short", Some(20));
    hide(3, "whole", "20 bytes, as it was.", Some(20));
    drop(dir);
    let recovered = world.recover(&mut gone());
    let left = files(&world.scratch.path().join("data"));
    let left: Vec<_> = left.iter().map(|path| path.file_name().unwrap()).collect();
    assert_eq!(left, [".foreign", ".whole"]);
    assert_eq!(recovered.state.files.keys().collect::<Vec<_>>(), [&3]);
}

#[test]
fn what_is_gone_keeps_its_whole_lines_and_is_told_as_a_gap() {
    let world = World::new(1, &[&[0]]);
    let line = world.blocks[0][0].1.len() / 3;
    world.write(line + 5);
    let recovered = world.recover(&mut gone());
    let expected = [&world.expected[&0][..20 + line + 5], b"\n".as_slice()].concat();
    assert_eq!(world.content(0), expected);
    let state = &recovered.state;
    assert_eq!((state.totals.written, state.totals.gaps, state.totals.consumed), (1, 2, 1));
    assert_eq!(state.files[&0].length, expected.len() as u64);
}

#[test]
fn what_is_gone_in_the_middle_leaves_the_lines_behind_it_where_they_are() {
    let world = World::new(1, &[&[0], &[0]]);
    world.write_all();
    let block = world.blocks[0][0].1.len();
    let mut content = world.content(0);
    content[25..20 + block].fill(0);
    fs::write(world.path(0), content).unwrap();
    let recovered = world.recover(&mut gone());
    let content = world.content(0);
    assert_eq!(content[20 + block..], world.expected[&0][20 + block..]);
    assert!(!content.contains(&0));
    let blank = content[20..20 + block].trim_ascii();
    assert_eq!((blank, content[20 + block - 1]), (b"".as_slice(), b'\n'));
    assert_eq!((recovered.state.totals.written, recovered.state.totals.gaps), (3, 3));
}

#[test]
fn only_what_is_gone_of_a_block_is_a_gap_and_the_counts_add_up() {
    // The block has three lines in each of two files; the second file begins with a torn line.
    for gone in 0..8_usize {
        let world = World::new(2, &[&[0, 1]]);
        let (first, line) = (world.blocks[0][0].1.len(), world.blocks[0][1].1.len() / 3);
        world.write(first + 5);
        let left = |lines: &[u8]| -> Vec<u8> {
            let lines = lines.chunks(line).enumerate().filter(|(index, _)| gone & (1 << index) == 0);
            lines.flat_map(|(_, line)| line.to_vec()).collect()
        };
        // Of the first file nothing is left in the topic, and the files come in another order.
        let expected = left(&world.blocks[0][1].1);
        let lines = expected.clone();
        let mut source = Source { make: move |_: &Block| all_of([(1, lines.clone())].into_iter()), asked: Vec::new() };
        let recovered = world.recover(&mut source);
        let content = world.content(1);
        let whole: Vec<u8> = content[20..]
            .split_inclusive(|byte| *byte == b'\n')
            .filter(|line| line.ends_with(b"}\n"))
            .flatten()
            .copied()
            .collect();
        assert_eq!(String::from_utf8_lossy(&whole), String::from_utf8_lossy(&expected), "gone {gone:b}");
        assert_eq!(world.content(0), world.expected[&0], "what is there stays");
        let totals = &recovered.state.totals;
        let lost = u64::from(gone.count_ones());
        assert_eq!((totals.gaps, totals.written, totals.consumed), (lost, 6 - lost, 6 - lost), "gone {gone:b}");
        let once_more = world.recover(&mut Source { make: gone_again(&expected), asked: Vec::new() });
        assert_eq!((world.content(1), once_more.state.totals.clone()), (content, totals.clone()), "gone {gone:b}");
    }
}

fn gone_again(lines: &[u8]) -> impl FnMut(&Block) -> Regenerated {
    let lines = lines.to_vec();
    move |_: &Block| all_of([(1, lines.clone())].into_iter())
}

/// Lines that are longer or shorter than they were, one for each record.
fn other(filler: usize) -> impl FnMut(&Block) -> Regenerated {
    move |block: &Block| {
        let line = |line: u64| format!("{{\"b\":{},\"l\":{line},\"x\":\"{}\"}}\n", block.number, "x".repeat(filler));
        all_of(block.pieces.iter().map(|piece| (piece.file, (0..3).map(line).collect::<String>().into_bytes())))
    }
}

#[test]
fn other_lines_keep_to_the_place_of_their_piece_whenever_recovery_is_killed() {
    for filler in [0, 3, 40, 400] {
        let world = World::new(1, &[&[0], &[0], &[0]]);
        world.write_all();
        let block = world.blocks[0][0].1.len();
        let mut content = world.content(0);
        content[20..20 + block].fill(0);
        content.truncate(20 + 2 * block + 7);
        fs::write(world.path(0), &content).unwrap();
        let mut ends = Vec::new();
        for _ in 0..2 {
            let recovered = world.recover(&mut Source { make: other(filler), asked: Vec::new() });
            ends.push((world.content(0), recovered.state));
        }
        let (content, state) = &ends[0];
        assert_eq!(ends[1].0, *content, "filler {filler}");
        assert_eq!(ends[1].1, *state, "filler {filler}");
        assert_eq!(content[20 + block..20 + 2 * block], world.expected[&0][20 + block..20 + 2 * block]);
        assert_eq!(state.files[&0].length, content.len() as u64);
        assert_eq!((state.totals.written, state.totals.gaps), (9, 0));
        let text = String::from_utf8(content.clone()).unwrap();
        for number in [1, 3] {
            for line in 0..3 {
                let wanted = format!("{{\"b\":{number},\"l\":{line},");
                assert_eq!(
                    text.lines().filter(|line| line.starts_with(&wanted)).count(),
                    1,
                    "filler {filler}: {wanted}"
                );
            }
        }
    }
}

#[test]
fn lines_behind_the_last_block_stay_although_their_records_are_gone_when_recovery_begins_again() {
    for left in 0..8_usize {
        for cut in [0, 1, 30, 450, 900] {
            let world = World::new(1, &[&[0], &[0]]);
            // Two blocks of which nothing was written; the lines are longer now.
            let mut make = other(400);
            let first = world.recover(&mut Source { make: other(400), asked: Vec::new() });
            let content = world.content(0);
            assert!(content.len() > world.expected[&0].len() + 2000, "lines are behind the blocks");
            // Killed while it wrote them, or when they were there.
            fs::write(world.path(0), &content[..content.len() - cut]).unwrap();
            // Retention or compaction takes records before the next one.
            let make = move |block: &Block| {
                let made = make(block).lines.into_iter().map(|(_, lines)| {
                    let lines = lines.split_inclusive(|byte| *byte == b'\n').enumerate();
                    (0, lines.filter(|(n, _)| left & (1 << n) != 0).flat_map(|(_, line)| line.to_vec()).collect())
                });
                all_of(made)
            };
            let again = world.recover(&mut Source { make, asked: Vec::new() });
            assert!(world.content(0) == content, "left {left:b}, cut {cut}");
            assert_eq!(again.state, first.state, "left {left:b}, cut {cut}");
        }
    }
}

#[test]
fn rejects_and_removals_of_the_tail_are_brought_along() {
    use crate::delivery::behind::queue_changes;
    use crate::msource::journal::{QueueCause, QueueChange};
    use crate::msource::store::StoreChange;
    let mut world = World::new(1, &[&[0]]);
    let entry = QueueEntry {
        partition: partition(0),
        topic_id: "id".into(),
        offset: 3,
        timestamp: None,
        key: None,
        headers: Vec::new(),
        value: b"bad".to_vec(),
        reject: crate::record::Reject::new(crate::record::Reason::BadJson, "no object"),
        attempts: 1,
        first_failure: 5,
        last_failure: 5,
        recipe: "r".into(),
    };
    let Some(Frame::Block(block)) = world.contents.tail.last_mut() else { unreachable!() };
    block.rejects.push((4, entry.clone()));
    let removal = QueueChange { number: 2, removed: vec![(1, 103)], cause: QueueCause::Cleared };
    world.contents.tail.push(Frame::Queue(removal));
    world.write_all();
    let recovered = world.recover(&mut gone());
    let mut change = StoreChange::default();
    queue_changes(world.contents.tail.iter().cloned(), 0, &mut change);
    assert_eq!(change.insert, [(4, entry)]);
    assert_eq!(change.remove, [1]);
    assert_eq!((recovered.state.number, recovered.state.next_key), (2, 5));
}

#[test]
fn no_journal_is_no_recovery() {
    let scratch = TempDir::new().unwrap();
    let dir = EventDir::open(scratch.path()).unwrap();
    assert!(recover(&Contents::default(), &dir, &mut gone(), Trust::Own).unwrap().is_none());
}
