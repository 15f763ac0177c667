//! What became of the records of a long loop, in three figures.

use std::collections::HashMap;
use std::fmt;

use super::{Home, Record, oracle};

/// Lines of all homes together, compared with those that the records must give. Every record must give another line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tally {
    records: usize,
    /// Lines that should be there and are not.
    pub(crate) lost: u64,
    /// Lines that are there too often.
    pub(crate) repeated: u64,
    /// Lines that no record gives.
    pub(crate) changed: u64,
}

impl Tally {
    pub(crate) fn new<'a>(homes: impl IntoIterator<Item = &'a Home>, produced: &[Record]) -> Self {
        let mut lines: HashMap<String, i64> = HashMap::new();
        for line in oracle::expect(produced).lines.into_values().flatten() {
            lines.insert(line, 1);
        }
        let mut changed = 0;
        for line in homes.into_iter().flat_map(Home::events).flat_map(|file| file.lines) {
            match lines.get_mut(&line) {
                Some(missing) => *missing -= 1,
                None => changed += 1,
            }
        }
        let lost = lines.values().filter(|missing| **missing > 0).count() as u64;
        let repeated = lines.values().map(|missing| (-*missing).max(0) as u64).sum();
        Self { records: produced.len(), lost, repeated, changed }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { records, lost, repeated, changed } = self;
        write!(f, "records={records} lost={lost} repeated={repeated} changed={changed}")
    }
}
