//! A collector that tails the event files while they are written, and tells on whoever takes back what it has read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, TryRecvError, channel};
use std::thread::JoinHandle;

use super::{events, tick};

/// Reads in the background until it is told to end.
#[derive(Debug)]
pub(crate) struct Tail {
    end: Sender<()>,
    thread: JoinHandle<Seen>,
}

/// What was read of each file, by path.
#[derive(Debug, Default)]
struct Seen(BTreeMap<PathBuf, Vec<u8>>);

impl Tail {
    /// Follows every event file below the directory.
    pub(crate) fn follow(dir: &Path) -> Self {
        let (end, ended) = channel();
        let dir = dir.to_owned();
        let thread = std::thread::spawn(move || {
            let mut seen = Seen::default();
            while ended.try_recv() == Err(TryRecvError::Empty) {
                seen.read_on(&dir);
                tick();
            }
            seen
        });
        Self { end, thread }
    }

    /// Ends it and demands that every byte that it has ever read is still there, in its place.
    pub(crate) fn assert_nothing_was_taken_back(self) {
        let Self { end, thread } = self;
        drop(end);
        let seen = thread.join().expect("no file shrank or went while it was read");
        assert!(!seen.0.is_empty(), "the reader saw no file at all");
        seen.compare();
    }
}

impl Seen {
    /// Takes in what was added to the files since the last time.
    fn read_on(&mut self, dir: &Path) {
        for path in events::paths(dir) {
            let bytes = self.0.entry(path.clone()).or_default();
            let mut file = File::open(&path).unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()));
            let length = file.metadata().expect("an open file").len();
            assert!(length >= bytes.len() as u64, "{} shrank from {} to {length} bytes", path.display(), bytes.len());
            file.seek(SeekFrom::Start(bytes.len() as u64)).expect("a file");
            file.read_to_end(bytes).expect("a file can be read");
        }
    }

    fn compare(&self) {
        for (path, seen) in &self.0 {
            let now = std::fs::read(path).unwrap_or_else(|error| panic!("{} is gone: {error}", path.display()));
            if !now.starts_with(seen) {
                let same = now.iter().zip(seen).take_while(|(now, seen)| now == seen).count();
                panic!("{}: byte {same} of {} that were read has changed", path.display(), seen.len());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// What the reader has after the first look at a file of this content.
    fn seen(dir: &Path, content: &str) -> Seen {
        fs::write(dir.join("events.1.log"), content).expect("a file");
        let mut seen = Seen::default();
        seen.read_on(dir);
        seen
    }

    #[test]
    fn appending_takes_nothing_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut seen = seen(dir.path(), "one\ntw");
        fs::write(dir.path().join("events.1.log"), "one\ntwo\n").expect("a file");
        seen.read_on(dir.path());
        seen.compare();
    }

    #[test]
    #[should_panic(expected = "byte 2 of 4 that were read has changed")]
    fn a_changed_line_is_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let seen = seen(dir.path(), "one\n");
        fs::write(dir.path().join("events.1.log"), "onE\n").expect("a file");
        seen.compare();
    }

    #[test]
    #[should_panic(expected = "shrank from 4 to 2 bytes")]
    fn a_shorter_file_is_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut seen = seen(dir.path(), "one\n");
        fs::write(dir.path().join("events.1.log"), "on").expect("a file");
        seen.read_on(dir.path());
    }
}
