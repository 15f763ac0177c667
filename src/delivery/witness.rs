//! What the event directory knows of the home that writes into it: who it is, and its last checkpoint.
//!
//! **Why.** A store that was put back from a backup is older than the event files, and nothing in it says so. Taken for what it
//! was, recovery would cut visible lines off, as bytes that no block covers, and numbers would be given out twice.
//!
//! **Promise.** Where [`read`] gives a mark of a home, all up to its number was durable in that home's journal, and so was the
//! segment beside it. So a store of that home with a smaller number, or whose journal has no such segment, is outdated, whatever
//! else happened: a power cut may take the note back to an older one, never forward. The segment counts starts: a run that
//! ends before its first checkpoint has lines, and no number above that of the run before it.
//!
//! **Moves.** Of two stores with the same past, the one that begins first on an event directory has it: to the other one the note
//! is then that of a later segment. It also keeps where the incarnations ended that a home was before it was moved.
//!
//! **Another directory** that is at the path while the service runs (a disk that is mounted late, or a larger one over it) gets the
//! next note, and the one before is not kept busy.
//!
//! **Not promised.** That it is there. A note that is missing, torn or another home's says nothing.
//!
//! **Format.** A file in the private directory of the event directory: `home/incarnation/number/segment`, for each incarnation
//! that ended with a move ` incarnation/number`, a blank, CRC-32C of all that in hexadecimal, blanks up to a fixed length, and a
//! line feed. Earlier versions wrote no segment. Written in place after each checkpoint, without a sync.

use std::io;

use crate::msink::dir::EventDir;
use crate::msink::private::Current;
use crate::msource::journal::{Former, Mark};

/// Name of the file.
pub const NAME: &str = "checkpoint";

/// Bytes of a note. It fits into a sector, so a disk has the old one or the new one.
const LENGTH: usize = 256;

/// Most incarnations before this one that are kept in it: after so many moves the group has nothing of those before.
const MOVED: usize = 3;

/// What is noted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Noted {
    /// The home, and its last checkpoint.
    pub mark: Mark,
    /// The segment of its journal that it began with; 0 where an earlier version noted it.
    pub segment: u64,
    /// The incarnations that it was before it was moved, newest first.
    pub moved: Vec<Former>,
}

/// Where checkpoints are noted.
#[derive(Debug)]
pub struct Witness {
    files: Current,
    begun: Noted,
}

impl Witness {
    /// Begins to note the checkpoints of a home, with the last one, durably.
    pub fn begin(dir: &EventDir, begun: Noted) -> io::Result<Self> {
        let witness = Self { files: dir.current(), begun };
        witness.files.with(|files| files.make(NAME))?;
        witness.note(witness.begun.mark.number)?;
        witness.files.with(|files| files.sync(NAME))?;
        Ok(witness)
    }

    /// Notes that everything up to a number is durable in the journal.
    pub fn note(&self, number: u64) -> io::Result<()> {
        self.files.with(|files| files.write(NAME, &encode(&self.begun, number)))
    }
}

/// What was noted last, if there is something.
pub fn read(dir: &EventDir) -> Option<Noted> {
    let bytes = dir.private().ok()?.read(NAME).ok()??;
    decode(bytes.get(..LENGTH)?)
}

fn encode(Noted { mark: Mark { home, incarnation, .. }, segment, moved }: &Noted, number: u64) -> Vec<u8> {
    let mut text = format!("{home}/{incarnation}/{number}/{segment}");
    for Former { incarnation, upto } in moved.iter().take(MOVED) {
        text.extend([" ", &incarnation.to_string(), "/", &upto.to_string()]);
    }
    let mut line = format!("{text} {:08x}", crc32c::crc32c(text.as_bytes()));
    line.extend(std::iter::repeat_n(' ', (LENGTH - 1).saturating_sub(line.len())));
    line.push('\n');
    line.into_bytes()
}

fn decode(bytes: &[u8]) -> Option<Noted> {
    let (text, crc) = std::str::from_utf8(bytes).ok()?.trim_end().rsplit_once(' ')?;
    if crc != format!("{:08x}", crc32c::crc32c(text.as_bytes())) {
        return None;
    }
    let mut words = text.split(' ');
    let mut parts = words.next()?.split('/');
    let mark = Mark {
        home: parts.next()?.to_owned(),
        incarnation: parts.next()?.parse().ok()?,
        number: parts.next()?.parse().ok()?,
    };
    let segment = parts.next().map_or(Some(0), |segment| segment.parse().ok())?;
    let former = |word: &str| {
        let (incarnation, upto) = word.split_once('/')?;
        Some(Former { incarnation: incarnation.parse().ok()?, upto: upto.parse().ok()? })
    };
    let moved = words.map(former).collect::<Option<_>>()?;
    parts.next().is_none().then_some(Noted { mark, segment, moved })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::msink::dir::PRIVATE;

    #[test]
    fn a_note_is_read_back_and_nothing_is_made_of_a_damaged_one() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = EventDir::open(&scratch.path().join("data")).unwrap();
        assert_eq!(read(&dir), None);
        let noted = |number, moved: &[(u64, u64)]| Noted {
            mark: Mark { home: "5ae0".into(), incarnation: 3, number },
            segment: 12,
            moved: moved.iter().map(|&(incarnation, upto)| Former { incarnation, upto }).collect(),
        };
        let longest = noted(12_345_678, &[(u64::MAX, 1 << 40), (2, 7), (1, 0)]);
        let mut too_many = longest.clone();
        too_many.moved.push(Former { incarnation: 0, upto: 0 });
        let witness = Witness::begin(&dir, too_many).unwrap();
        assert_eq!(read(&dir), Some(longest));
        witness.note(9).unwrap();
        assert_eq!(read(&dir).map(|noted| noted.mark.number), Some(9), "nothing is left of a longer one");
        let witness = Witness::begin(&dir, noted(7, &[])).unwrap();
        assert_eq!(read(&dir), Some(noted(7, &[])));
        witness.note(8).unwrap();
        assert_eq!(read(&dir), Some(noted(8, &[])));
        let (kept, good) = (noted(9, &[(2, 7)]), encode(&noted(0, &[(2, 7)]), 9));
        assert_eq!(good.len(), LENGTH);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(decode(&bad).is_none_or(|found| found == kept), "{at}");
            assert!(decode(&good[..at]).is_none_or(|found| found == kept), "{at}");
        }
        assert_eq!(decode(&[0xff; LENGTH]), None);
        let text = "5ae0/3/9";
        let earlier = format!("{:255}\n", format!("{text} {:08x}", crc32c::crc32c(text.as_bytes())));
        assert_eq!(decode(earlier.as_bytes()), Some(Noted { segment: 0, ..noted(9, &[]) }), "of an earlier version");
    }

    #[test]
    fn checkpoints_are_noted_where_the_files_are_by_now() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("data");
        let mut dir = EventDir::open(&path).unwrap();
        let begun = Noted { mark: Mark { home: "5ae0".into(), incarnation: 3, number: 7 }, segment: 1, moved: vec![] };
        let witness = Witness::begin(&dir, begun).unwrap();
        let number = |dir: &EventDir| read(dir).map(|noted| noted.mark.number);
        // Another process removes what is ours.
        std::fs::remove_dir_all(path.join(PRIVATE)).unwrap();
        dir.check().unwrap();
        witness.note(8).unwrap();
        assert_eq!(number(&dir), Some(8));
        let old = scratch.path().join("old");
        std::fs::rename(&path, &old).unwrap();
        std::fs::create_dir(&path).unwrap();
        dir.reopen().unwrap();
        witness.note(9).unwrap();
        assert_eq!(number(&dir), Some(9));
        let open = std::fs::read_dir("/proc/self/fd").unwrap();
        let mut links = open.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
        assert!(!links.any(|link| link.starts_with(&old)), "the old directory is kept busy");
    }
}
