//! What the event directory knows of the home that writes into it: its last checkpoint.
//!
//! **Why.** A store that was put back from a backup is older than the event files, and nothing in it says so. Taken for what it
//! was, recovery would cut visible lines off, as bytes that no block covers, and numbers would be given out twice.
//!
//! **Promise.** Where [`read`] gives a mark of a home, all up to its number was durable in that home's journal. So a store
//! of that home with a smaller number is outdated, whatever else happened: a power cut may take the note back to an older one,
//! never forward.
//!
//! **Not promised.** That it is there. A note that is missing, torn or another home's says nothing.
//!
//! **Format.** A file in the private directory of the event directory: `home/incarnation/number`, a blank, CRC-32C of that in
//! hexadecimal, blanks up to a fixed length, and a line feed. Written in place after each checkpoint, without a sync.

use std::io;

use crate::msink::dir::{EventDir, Note};
use crate::msource::journal::Mark;

/// Bytes of a note. It fits into a sector, so a disk has the old one or the new one.
const LENGTH: usize = 256;

/// Where checkpoints are noted.
#[derive(Debug)]
pub struct Witness {
    note: Note,
    home: String,
    incarnation: u64,
}

impl Witness {
    /// Begins to note the checkpoints of a home, with the last one, durably.
    pub fn begin(dir: &EventDir, mark: &Mark) -> io::Result<Self> {
        let witness = Self { note: dir.note(true)?, home: mark.home.clone(), incarnation: mark.incarnation };
        witness.note(mark.number)?;
        witness.note.sync()?;
        Ok(witness)
    }

    /// Notes that everything up to a number is durable in the journal.
    pub fn note(&self, number: u64) -> io::Result<()> {
        let mark = Mark { home: self.home.clone(), incarnation: self.incarnation, number };
        self.note.write(&encode(&mark))
    }
}

/// The mark that was noted last, if there is one.
pub fn read(dir: &EventDir) -> Option<Mark> {
    let mut bytes = [0; LENGTH];
    dir.note(false).ok()?.read(&mut bytes).ok()?;
    decode(&bytes)
}

fn encode(Mark { home, incarnation, number }: &Mark) -> Vec<u8> {
    let text = format!("{home}/{incarnation}/{number}");
    let mut line = format!("{text} {:08x}", crc32c::crc32c(text.as_bytes()));
    line.extend(std::iter::repeat_n(' ', (LENGTH - 1).saturating_sub(line.len())));
    line.push('\n');
    line.into_bytes()
}

fn decode(bytes: &[u8]) -> Option<Mark> {
    let (text, crc) = std::str::from_utf8(bytes).ok()?.trim_end().split_once(' ')?;
    if crc != format!("{:08x}", crc32c::crc32c(text.as_bytes())) {
        return None;
    }
    let mut parts = text.split('/');
    let mark = Mark {
        home: parts.next()?.to_owned(),
        incarnation: parts.next()?.parse().ok()?,
        number: parts.next()?.parse().ok()?,
    };
    parts.next().is_none().then_some(mark)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_back_and_nothing_is_made_of_a_damaged_one() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = EventDir::open(&scratch.path().join("data")).unwrap();
        assert_eq!(read(&dir), None);
        let mark = |number| Mark { home: "5ae0".into(), incarnation: 3, number };
        let witness = Witness::begin(&dir, &mark(7)).unwrap();
        assert_eq!(read(&dir), Some(mark(7)));
        witness.note(12_345_678).unwrap();
        assert_eq!(read(&dir), Some(mark(12_345_678)));
        witness.note(9).unwrap();
        assert_eq!(read(&dir), Some(mark(9)), "nothing is left of a longer one");
        let good = encode(&mark(9));
        assert_eq!(good.len(), LENGTH);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(decode(&bad).is_none_or(|found| found == mark(9)), "{at}");
            assert!(decode(&good[..at]).is_none_or(|found| found == mark(9)), "{at}");
        }
        assert_eq!(decode(&[0xff; LENGTH]), None);
    }
}
