//! Lines that recovery makes again and that do not fit into their place: they go behind the last block of their file.
//!
//! **Why this is kept.** No block covers them before the journal has the state after the recovery. A recovery that is killed before
//! that leaves them to be seen, and the next one need not make the same lines: retention or compaction may have taken their
//! records meanwhile. It would cut them off, as bytes that no block covers, or write others over them.
//!
//! **Promise.** What goes behind the last block is noted first, durably: `Spill::lay_down`. A later recovery from the same
//! end of the same journal finds it, completes it, and adds what is new behind it. Its lines stay, and count.
//!
//! **Format.** The file `NAME` in the private directory of the event directory, replaced as a whole: postcard's encoding of
//! `Noted`, and its CRC-32C (u32, little-endian). One that cannot be read, or is of another journal's end, says nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;

use serde::{Deserialize, Serialize};

use super::refit::is_event;
use crate::msink::dir::EventDir;
use crate::msource::journal::Contents;

/// Name of the file.
const NAME: &str = "spill";

/// What is noted.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Noted {
    /// The home.
    home: String,
    /// The segment that its journal ended in, and how far that is valid.
    end: Option<(u64, u64)>,
    /// For each file where its blocks end, and what comes behind.
    files: BTreeMap<u64, (u64, Vec<u8>)>,
}

/// What a recovery has written, or is about to write, behind the last block of files.
#[derive(Debug)]
pub(super) struct Spill {
    noted: Noted,
    /// The lines that this recovery has no place for.
    lines: BTreeMap<u64, Vec<u8>>,
}

/// What comes behind the last block of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Laid {
    /// All of it, also what was there before.
    pub(super) bytes: Vec<u8>,
    /// Lines in it that an earlier recovery has made, and this one has not.
    pub(super) kept: u64,
}

impl Spill {
    /// What an earlier recovery from here has noted.
    pub(super) fn read(dir: &EventDir, contents: &Contents) -> io::Result<Self> {
        let home = contents.state.as_ref().map_or_else(String::new, |state| state.home.clone());
        let from_here = |noted: &Noted| (&noted.home, noted.end) == (&home, contents.end);
        let found = dir.private()?.read(NAME)?.and_then(|bytes| decode(&bytes)).filter(from_here);
        let noted = found.unwrap_or_else(|| Noted { home, end: contents.end, files: BTreeMap::new() });
        Ok(Self { noted, lines: BTreeMap::new() })
    }

    /// Adds lines for which there is no place.
    pub(super) fn add(&mut self, file: u64, lines: &[u8]) {
        self.lines.entry(file).or_default().extend(lines);
    }

    /// Whether something comes behind the last block of a file.
    pub(super) fn has(&self, file: u64) -> bool {
        self.noted.files.contains_key(&file) || self.lines.contains_key(&file)
    }

    /// The files of which that is so.
    pub(super) fn files(&self) -> BTreeSet<u64> {
        self.noted.files.keys().chain(self.lines.keys()).copied().collect()
    }

    /// What comes behind the last block of a file, which ends there: what was noted, and the lines that are not in it. It is noted
    /// when this returns, and nothing of it is written.
    pub(super) fn lay_down(&mut self, dir: &EventDir, file: u64, end: u64) -> io::Result<Laid> {
        let lines = self.lines.remove(&file).unwrap_or_default();
        let before = self.noted.files.get(&file).filter(|(at, _)| *at == end);
        let mut bytes = before.map_or_else(Vec::new, |(_, bytes)| bytes.clone());
        let mut there: HashMap<&[u8], usize> = HashMap::new();
        for line in split(&bytes).filter(|line| is_event(line)) {
            *there.entry(line).or_default() += 1;
        }
        let mut new = Vec::new();
        for line in split(&lines) {
            match there.get_mut(line) {
                Some(count) if *count > 0 => *count -= 1,
                _ => new.extend_from_slice(line),
            }
        }
        let kept = there.values().sum::<usize>() as u64;
        bytes.extend(&new);
        if !new.is_empty() {
            self.noted.files.insert(file, (end, bytes.clone()));
            dir.private()?.replace(NAME, &encode(&self.noted)?)?;
        }
        Ok(Laid { bytes, kept })
    }
}

/// Forgets what was noted: the journal has the state after the recovery.
pub fn forget(dir: &EventDir) -> io::Result<()> {
    dir.private()?.remove(NAME)
}

fn split(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split_inclusive(|byte| *byte == b'\n')
}

fn encode(noted: &Noted) -> io::Result<Vec<u8>> {
    let mut bytes = postcard::to_stdvec(noted).map_err(io::Error::other)?;
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> Option<Noted> {
    let (body, crc) = bytes.split_last_chunk()?;
    (crc32c::crc32c(body) == u32::from_le_bytes(*crc)).then(|| postcard::from_bytes(body).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::msource::journal::State;

    #[test]
    fn what_was_noted_is_found_from_the_same_end_of_the_same_journal_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = EventDir::open(&scratch.path().join("data")).unwrap();
        let contents = |home: &str, end| {
            let state = State { home: home.into(), ..State::default() };
            Contents { state: Some(state), end: Some((1, end)), ..Contents::default() }
        };
        let here = contents("h", 100);
        let (a, b) = (b"{\"a\":1}\n".as_slice(), b"{\"b\":1}\n".as_slice());
        let mut spill = Spill::read(&dir, &here).unwrap();
        assert!(!spill.has(7));
        spill.add(7, a);
        spill.add(7, a);
        let laid = spill.lay_down(&dir, 7, 20).unwrap();
        assert_eq!(laid, Laid { bytes: [a, a].concat(), kept: 0 });
        for other in [contents("other", 100), contents("h", 101)] {
            assert!(!Spill::read(&dir, &other).unwrap().has(7));
        }
        let mut spill = Spill::read(&dir, &here).unwrap();
        assert_eq!(spill.files(), [7].into());
        spill.add(7, &[b, a].concat());
        let laid = spill.lay_down(&dir, 7, 20).unwrap();
        assert_eq!(laid, Laid { bytes: [a, a, b].concat(), kept: 1 });
        let mut spill = Spill::read(&dir, &here).unwrap();
        assert_eq!(spill.lay_down(&dir, 7, 20).unwrap(), Laid { bytes: [a, a, b].concat(), kept: 3 });
        forget(&dir).unwrap();
        forget(&dir).unwrap();
        assert!(!Spill::read(&dir, &here).unwrap().has(7));
    }

    #[test]
    fn a_damaged_note_says_nothing() {
        let noted = Noted { home: "h".into(), end: Some((1, 2)), files: [(1, (2, b"{}\n".to_vec()))].into() };
        let good = encode(&noted).unwrap();
        assert!(decode(&good).is_some());
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(decode(&bad).is_none() && decode(&good[..at]).is_none(), "{at}");
        }
    }
}
