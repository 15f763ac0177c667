//! Which entries of another home's failure queue are here already, by what [`State::adopted`] has noted.
//!
//! **Promise.** An entry that was taken over is not taken again, and one that was not is never passed for one. Keys count up in
//! each copy of a home by themselves: under the same key, a copy that went on has other entries than its origin. So what was
//! taken is noted for the incarnation that it was taken from, and of the keys that were taken from another one nobody can tell
//! by the key: see [`Fate::Doubtful`].
//!
//! A note is `home/incarnation/first key`, with the first key after those that were taken. Earlier versions noted the home alone.
//!
//! [`State::adopted`]: crate::msource::journal::State::adopted

use std::collections::BTreeMap;

/// What becomes of an entry, apart from what our own queue has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It was not taken yet.
    New,
    /// It was taken from this incarnation.
    Taken,
    /// An entry was taken under its key from another incarnation: it may be this one.
    Doubtful,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Taken {
    /// Of this incarnation: first keys, and the first keys after.
    ranges: Vec<(u64, u64)>,
    /// The first key that was taken from no other incarnation.
    others: u64,
    /// What is noted from now on.
    note: String,
}

impl Taken {
    /// What was noted of a home, for one of its incarnations.
    pub(super) fn of(adopted: &BTreeMap<String, u64>, (home, incarnation): (&str, u64)) -> Self {
        let (mut ranges, mut others) = (Vec::new(), 0);
        let of_home = adopted.iter().filter_map(|(note, upto)| Some((note.strip_prefix(home)?, *upto)));
        for (rest, upto) in of_home {
            let mut parts = rest.split('/').skip(1).map(|part| part.parse::<u64>().ok());
            match (parts.next().flatten(), parts.next().flatten()) {
                (Some(of), Some(from)) if of == incarnation => ranges.push((from, upto)),
                _ => others = others.max(upto),
            }
        }
        let last = ranges.iter().copied().max_by_key(|(_, upto)| *upto);
        let from = match last {
            Some((from, upto)) if upto >= others => from,
            _ => others,
        };
        Self { ranges, others, note: format!("{home}/{incarnation}/{from}") }
    }

    /// What becomes of the entry with this key.
    pub(super) fn fate(&self, key: u64) -> Fate {
        if self.ranges.iter().any(|(from, upto)| (*from..*upto).contains(&key)) {
            Fate::Taken
        } else if key < self.others {
            Fate::Doubtful
        } else {
            Fate::New
        }
    }

    /// Under which name it is noted how far the queue was taken over, and that it has come to this key; `None` while nothing but
    /// what is taken or doubtful lies below it.
    pub(super) fn note(&self, upto: u64) -> Option<(&str, u64)> {
        let known = self.ranges.iter().map(|(_, upto)| *upto).max().unwrap_or(0).max(self.others);
        (upto > known).then_some((self.note.as_str(), upto))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: &str = "a1";

    fn of(notes: &[(&str, u64)], incarnation: u64) -> Taken {
        let adopted = notes.iter().map(|(note, upto)| ((*note).to_owned(), *upto)).collect();
        Taken::of(&adopted, (HOME, incarnation))
    }

    #[test]
    fn what_was_taken_of_this_incarnation_is_taken_and_of_another_one_doubtful() {
        let taken = of(&[("a1/1/0", 10), ("b2/1/0", 99)], 1);
        assert_eq!([0, 9, 10].map(|key| taken.fate(key)), [Fate::Taken, Fate::Taken, Fate::New]);
        assert_eq!((taken.note(10), taken.note(12)), (None, Some(("a1/1/0", 12))));
        let copy = of(&[("a1/1/0", 10)], 7);
        assert_eq!([9, 10].map(|key| copy.fate(key)), [Fate::Doubtful, Fate::New]);
        assert_eq!((copy.note(10), copy.note(12)), (None, Some(("a1/7/10", 12))));
    }

    #[test]
    fn what_is_noted_behind_doubtful_keys_does_not_cover_them() {
        let taken = of(&[("a1/1/0", 10), ("a1/7/10", 15)], 7);
        assert_eq!([9, 10, 14, 15].map(|key| taken.fate(key)), [Fate::Doubtful, Fate::Taken, Fate::Taken, Fate::New]);
        assert_eq!(taken.note(16), Some(("a1/7/10", 16)));
        let origin = of(&[("a1/1/0", 10), ("a1/7/10", 15)], 1);
        assert_eq!([9, 10, 15].map(|key| origin.fate(key)), [Fate::Taken, Fate::Doubtful, Fate::New]);
        assert_eq!(origin.note(16), Some(("a1/1/15", 16)));
    }

    #[test]
    fn the_note_of_an_earlier_version_is_doubtful_for_every_incarnation() {
        let taken = of(&[("a1", 10)], 1);
        assert_eq!([9, 10].map(|key| taken.fate(key)), [Fate::Doubtful, Fate::New]);
    }
}
