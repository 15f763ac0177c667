//! The log of changes, and how they are taken back.
//!
//! A change is *kept* when it is on the disk: a sync covers it, or luck has it. Changes that are not kept are undone in
//! reverse order, where no kept one was made over them. A failed sync takes the luck away from all that it should have
//! covered.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use memchr::memchr;

use super::Model;
use crate::harness::records::Random;

const HEADER: usize = 56;
const MAGIC: u32 = 0x5455_4350;
const PAGE: u64 = 4096;
/// Marks of bytes, for [`put_back`].
const FREE: u8 = 0;
const KEPT: u8 = 1;

/// A change, or a sync.
#[derive(Debug)]
pub(super) enum Record<'a> {
    Content(Content<'a>),
    Name(Name<'a>),
    Sync { inode: u64 },
    SyncFailed { inode: u64 },
}

/// A change of a file's bytes or length.
#[derive(Debug)]
pub(super) struct Content<'a> {
    inode: u64,
    /// The bytes that it changed.
    range: Range<u64>,
    /// What was there, from the start of the range; zeros and nothing at all are left out.
    old: &'a [u8],
    /// The file's length before and after.
    lengths: (u64, u64),
}

/// A change of a directory.
#[derive(Debug)]
pub(super) enum Name<'a> {
    Create { dir: u64, name: &'a Path },
    Unlink { dir: u64, name: &'a Path, saved: u64 },
    Rename { from: (u64, &'a Path), to: (u64, &'a Path), saved: u64 },
}

impl Name<'_> {
    /// The directory whose sync covers it.
    fn dir(&self) -> u64 {
        match self {
            Self::Create { dir, .. } | Self::Unlink { dir, .. } | Self::Rename { to: (dir, _), .. } => *dir,
        }
    }
}

/// The parts of a record: kind, numbers, and where name, second name and data end.
struct Raw {
    kind: u32,
    numbers: [u64; 4],
    ends: [usize; 3],
}

fn raw(bytes: &[u8]) -> Option<Raw> {
    let header = bytes.get(..HEADER)?;
    let small = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    let large = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
    assert_eq!(small(0), MAGIC, "the log is damaged");
    let name = HEADER + small(40) as usize;
    let second = name + small(44) as usize;
    let data = second + large(48) as usize;
    (data <= bytes.len()).then(|| Raw {
        kind: small(4),
        numbers: [large(8), large(16), large(24), large(32)],
        ends: [name, second, data],
    })
}

/// How many bytes of a log are whole records.
pub(super) fn whole_records(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(record) = raw(&bytes[at..]) {
        at += record.ends[2];
    }
    at
}

/// The records of a log, apart from a torn one at its end.
pub(super) fn parse(bytes: &[u8]) -> Vec<Record<'_>> {
    let (mut records, mut rest) = (Vec::new(), bytes);
    while let Some(Raw { kind, numbers: [a, b, c, d], ends }) = raw(rest) {
        let path = |range: Range<usize>| Path::new(std::ffi::OsStr::from_bytes(&rest[range]));
        let (name, second) = (path(HEADER..ends[0]), path(ends[0]..ends[1]));
        let old = &rest[ends[1]..ends[2]];
        records.push(match kind {
            1 => Record::Content(Content { inode: a, range: b..b + c, old, lengths: (d, d.max(b + c)) }),
            2 => Record::Content(Content { inode: a, range: b.min(c)..b.max(c), old, lengths: (b, c) }),
            3 => Record::Name(Name::Create { dir: a, name }),
            4 => Record::Name(Name::Unlink { dir: a, name, saved: b }),
            5 => Record::Name(Name::Rename { from: (a, name), to: (b, second), saved: c }),
            6 => Record::Sync { inode: a },
            7 => Record::SyncFailed { inode: a },
            _ => panic!("a record of kind {kind}"),
        });
        rest = &rest[ends[2]..];
    }
    records
}

/// What is known of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// A sync covers it.
    Durable,
    /// It may be on the disk.
    Open,
    /// A sync that should have covered it failed.
    Lost,
}

/// The changes of one file, in order.
#[derive(Default)]
struct History<'a> {
    changes: Vec<(&'a Content<'a>, Fate)>,
}

impl History<'_> {
    fn settle(&mut self, fate: Fate) {
        self.changes.iter_mut().filter(|(_, now)| *now == Fate::Open).for_each(|(_, now)| *now = fate);
    }
}

/// Takes back, below `root`, what is not on the disk.
pub(super) fn undo(records: &[Record<'_>], root: &Path, saved: &Path, model: Model) {
    let mut files: HashMap<u64, History<'_>> = HashMap::new();
    let mut names: Vec<&Name<'_>> = Vec::new();
    let mut order = Vec::new();
    for record in records {
        match record {
            Record::Content(change) => {
                let history = files.entry(change.inode).or_default();
                if history.changes.is_empty() {
                    order.push(change.inode);
                }
                history.changes.push((change, Fate::Open));
            }
            Record::Name(change) => names.push(change),
            Record::Sync { inode } => {
                names.retain(|change| change.dir() != *inode);
                files.entry(*inode).or_default().settle(Fate::Durable);
            }
            Record::SyncFailed { inode } => files.entry(*inode).or_default().settle(Fate::Lost),
        }
    }
    let mut random = if let Model::Random(seed) = model { Some(Random(seed)) } else { None };
    undo_names(names, root, saved, random.as_mut());
    let found = inodes(root, &|_| true);
    // In the order of their first change, so that the same seed gives the same disk.
    for inode in order {
        if let Some(path) = found.get(&inode) {
            let file = File::options().read(true).write(true).open(path);
            let file = file.unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()));
            let luck = match (&mut random, model) {
                (Some(random), _) => Luck::of(random),
                (None, Model::Only(part)) if path.to_string_lossy().contains(part) => Luck::All,
                _ => Luck::None,
            };
            files[&inode].undo(&file, |open| match (&luck, &mut random) {
                (Luck::All, _) => open,
                (Luck::Pages, Some(random)) => random.below(open + 1),
                _ => 0,
            });
        }
    }
}

fn undo_names(mut names: Vec<&Name<'_>>, root: &Path, saved: &Path, random: Option<&mut Random>) {
    if let Some(random) = random {
        // A file system writes the changes of a directory in their order.
        let mut kept: HashMap<u64, u64> = HashMap::new();
        let mut counts: HashMap<u64, u64> = HashMap::new();
        for name in &names {
            *counts.entry(name.dir()).or_default() += 1;
        }
        names.retain(|name| {
            let dir = name.dir();
            let left = kept.entry(dir).or_insert_with(|| random.below(counts[&dir] + 1));
            let undone = *left == 0;
            *left = left.saturating_sub(1);
            undone
        });
    }
    for name in names.into_iter().rev() {
        let dirs = inodes(root, &|metadata| metadata.is_dir());
        let path = |dir: u64, name: &Path| dirs.get(&dir).map(|dir| dir.join(name));
        let restore = |number: u64, path: &Path| {
            if number != 0 {
                fs::hard_link(saved.join(number.to_string()), path)
                    .unwrap_or_else(|error| panic!("cannot bring {} back: {error}", path.display()));
            }
        };
        match name {
            Name::Create { dir, name } => path(*dir, name).iter().for_each(|path| remove(path)),
            Name::Unlink { dir, name, saved } => path(*dir, name).iter().for_each(|path| restore(*saved, path)),
            Name::Rename { from, to, saved } => {
                if let (Some(from), Some(to)) = (path(from.0, from.1), path(to.0, to.1)) {
                    fs::rename(&to, &from).unwrap_or_else(|error| panic!("cannot rename {}: {error}", to.display()));
                    restore(*saved, &to);
                }
            }
        }
    }
}

fn remove(path: &Path) {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    // It was about to be created when the process was killed.
    if let Err(error) = removed
        && error.kind() != ErrorKind::NotFound
    {
        panic!("cannot remove {}: {error}", path.display());
    }
}

/// Everything below a directory, and the directory, by inode.
fn inodes(dir: &Path, wanted: &dyn Fn(&fs::Metadata) -> bool) -> HashMap<u64, PathBuf> {
    let mut found = HashMap::new();
    let mut left = vec![dir.to_owned()];
    while let Some(path) = left.pop() {
        let metadata = fs::symlink_metadata(&path).expect("nobody else is at work here");
        if metadata.is_dir() {
            left.extend(fs::read_dir(&path).expect("a directory").map(|entry| entry.expect("an entry").path()));
        }
        if wanted(&metadata) {
            found.insert(metadata.ino(), path);
        }
    }
    found
}

/// What of a file's open changes luck has.
enum Luck {
    None,
    All,
    Pages,
}

impl Luck {
    fn of(random: &mut Random) -> Self {
        match random.below(4) {
            0 => Self::None,
            1 => Self::All,
            _ => Self::Pages,
        }
    }
}

impl History<'_> {
    /// How many changes are open.
    fn open(&self) -> u64 {
        self.changes.iter().filter(|(_, fate)| *fate == Fate::Open).count() as u64
    }

    /// For each change, the least number of open ones that must be kept for it to be kept; none for a lost one.
    fn ranks(&self) -> Vec<Option<u64>> {
        let mut open = 0;
        let rank = |(_, fate): &(&Content<'_>, Fate)| match fate {
            Fate::Durable => Some(0),
            Fate::Open => {
                open += 1;
                Some(open)
            }
            Fate::Lost => None,
        };
        self.changes.iter().map(rank).collect()
    }

    /// From the first to the last byte that may have to be taken back.
    fn span(&self) -> Option<Range<u64>> {
        let open =
            self.changes.iter().filter(|(_, fate)| *fate != Fate::Durable).map(|(change, _)| change.range.clone());
        open.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end))
    }

    /// The length when so many open changes are kept.
    fn length(&self, ranks: &[Option<u64>], kept: u64) -> u64 {
        let kept = self.changes.iter().zip(ranks).filter(|(_, rank)| rank.is_some_and(|rank| rank <= kept));
        kept.fold(self.changes[0].0.lengths.0, |length, ((change, _), _)| match change.lengths {
            (before, after) if after < before => after,
            _ => length.max(change.range.end),
        })
    }

    /// Takes back what is not kept; of each page and of the length the first so many open changes are.
    fn undo(&self, file: &File, mut kept: impl FnMut(u64) -> u64) {
        let (Some(span), ranks) = (self.span(), self.ranks()) else { return };
        let length = self.length(&ranks, kept(self.open()));
        let pages: Vec<u64> = (span.start / PAGE..=span.end / PAGE).map(|_| kept(self.open())).collect();
        let mut content = vec![0; (span.end - span.start) as usize];
        read_there(file, &mut content, span.start);
        // For each byte, whether a kept change is over it.
        let mut over = vec![FREE; content.len()];
        for ((change, _), rank) in self.changes.iter().zip(ranks).rev() {
            let (mut begin, to) = (change.range.start.max(span.start), change.range.end.min(span.end));
            while begin < to {
                let end = to.min((begin / PAGE + 1) * PAGE);
                let here = (begin - span.start) as usize..(end - span.start) as usize;
                if rank.is_some_and(|rank| rank <= pages[(begin / PAGE - span.start / PAGE) as usize]) {
                    over[here].fill(KEPT);
                } else {
                    let old = change.old.get((begin - change.range.start) as usize..).unwrap_or_default();
                    put_back(&mut content[here.clone()], &over[here], old);
                }
                begin = end;
            }
        }
        let there = length.min(span.end).saturating_sub(span.start) as usize;
        let mended = file.write_all_at(&content[..there], span.start).and_then(|()| file.set_len(length));
        mended.expect("a file can be mended");
    }
}

/// Puts the old bytes back where no kept change is over them; zeros behind their end. By runs, not by bytes: nothing else in
/// these tests would need as much of the processor.
fn put_back(content: &mut [u8], over: &[u8], old: &[u8]) {
    let mut at = 0;
    while let Some(run) = memchr(FREE, &over[at..]) {
        let begin = at + run;
        let end = memchr(KEPT, &over[begin..]).map_or(over.len(), |run| begin + run);
        let known = old.len().clamp(begin, end);
        if begin < known {
            content[begin..known].copy_from_slice(&old[begin..known]);
        }
        content[known..end].fill(0);
        at = end;
    }
}

/// Reads what there is; the rest stays as it is.
fn read_there(file: &File, mut content: &mut [u8], mut at: u64) {
    while !content.is_empty() {
        let count = file.read_at(content, at).expect("a file can be read");
        if count == 0 {
            break;
        }
        content = &mut content[count..];
        at += count as u64;
    }
}
