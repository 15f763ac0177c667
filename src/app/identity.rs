//! Who a home is: whether its store is the one that it was, or a copy, or an older one.
//!
//! A store that was copied must not go on as the one it was copied from: both would take the group's offsets for their own.
//! The state knows where its directories lie (inode and time of creation); elsewhere it gets another incarnation, and so does
//! one that lost a part. Two incarnations never meet, since the clock is in them. A clone of a whole disk is not told from its
//! origin.
//!
//! **Moves.** Nothing on the disk tells a home that was moved from a copy whose origin goes on. So what lies elsewhere is always
//! given another incarnation, and what it does about positions is right for both: what the group has of the incarnation
//! before, up to the last number that store and journal know, was committed in the past that origin and copy share. Where
//! the event directory has the lines of that past (the note in it is this home's, and not a later one, and its files are as long as
//! they should be), the home goes on behind them, and repeats none. What the origin commits after that has a higher
//! number, and counts as another's. Without those lines (a store that was copied alone) the group's offset counts.
//!
//! | what lies elsewhere | its event directory | goes on | its origin, if it runs after all |
//! |---|---|---|---|
//! | the store | the same | behind its lines | is outdated: the note is of a later segment |
//! | the store and the event files | the copy | behind its lines | as ever; each takes the other for another owner |
//! | the store | another, or an older copy | at the group's offset | the same |

use std::cmp::Ordering;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::broken::Broken;
use super::places::Places;
use crate::delivery::recovery::Trust;
use crate::delivery::witness::Noted;
use crate::msink::dir::{EventDir, blames_name};
use crate::msink::name::hidden;
use crate::msource::journal::{Former, Mark, Place, State};

/// What store and journal have in common after [`super::rebuild::reunite`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Damage {
    /// Both are whole, as far as can be seen.
    None,
    /// The journal is gone, or lost its end.
    Journal,
}

/// Why an incarnation ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Something was lost here. Nobody else goes on with the old one.
    Damage,
    /// The store is a copy: another may go on with the old one.
    Copy,
    /// The home is at another place with its event files. Should it be a copy nevertheless, its origin goes on with higher
    /// numbers.
    Move,
}

/// Begins another incarnation.
pub(super) fn rise(state: &mut State, cause: Cause) {
    let former = state.incarnation;
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
    state.incarnation = clock.max(former + 1);
    match cause {
        Cause::Damage | Cause::Move => state.former.push(former),
        Cause::Copy => state.former.clear(),
    }
    tracing::warn!(former, incarnation = state.incarnation, ?cause, "this home goes on as another incarnation");
}

/// Whether a store is where it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lies {
    /// There is none: a home begins here.
    Nowhere,
    /// As far as is known.
    InPlace,
    /// It was copied or moved, perhaps with the event files.
    Elsewhere,
}

/// Whether the state was made in these directories; notes them where it does not know.
pub(super) fn recognise(places: &Places, state: &mut State, damage: Damage) -> Result<Lies, Broken> {
    let failed = |error: io::Error| Broken::disk(format_args!("cannot look at {}", places.root.display()), &error);
    let place =
        Place { root: identity(&places.root).map_err(failed)?, journal: identity(&places.journal).map_err(failed)? };
    let known = std::mem::replace(&mut state.place, place);
    let moved = !is_same(known.root, place.root) || (damage == Damage::None && !is_same(known.journal, place.journal));
    Ok(if known != Place::default() && moved { Lies::Elsewhere } else { Lies::InPlace })
}

fn identity(dir: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::metadata(dir)?;
    let created = metadata.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    Ok((metadata.ino(), created.map_or(0, |since| since.as_nanos() as u64)))
}

fn is_same(known: (u64, u64), found: (u64, u64)) -> bool {
    known.0 == found.0 && (known.1 == found.1 || known.1 == 0 || found.1 == 0)
}

/// What a home knows of itself, and what is seen of it.
pub(super) struct Known {
    /// Who it was, and the last number that store or journal know.
    pub(super) mark: Mark,
    /// The last segment of its journal.
    pub(super) segment: u64,
    pub(super) lies: Lies,
    pub(super) damage: Damage,
}

impl Known {
    /// Whether the event directory knows of more than the home: its store is older than the event files.
    fn is_behind(&self, noted: &Noted) -> bool {
        let (ours, theirs) = (&self.mark, &noted.mark);
        // A journal that was lost begins with the first segment again.
        let lacks_segment = self.damage == Damage::None && noted.segment > self.segment;
        let is_later = match theirs.incarnation.cmp(&ours.incarnation) {
            Ordering::Less => false,
            Ordering::Equal => theirs.number > ours.number || lacks_segment,
            Ordering::Greater => true,
        };
        theirs.home == ours.home && is_later
    }

    /// Whether the event directory has been this home's last one, as far as the note tells.
    fn is_noted(&self, noted: &Noted) -> bool {
        (&noted.mark.home, noted.mark.incarnation) == (&self.mark.home, self.mark.incarnation)
    }
}

/// What is to be made of a home.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Judged {
    /// How far it can be believed about the event files.
    pub(super) trust: Trust,
    /// Its incarnations that ended with a move, newest first.
    pub(super) moved: Vec<Former>,
}

/// Judges a home by what it says of itself and what the event directory knows of it, and begins another incarnation where that is
/// due. `holds` tells whether the event directory has the lines of a state.
pub(super) fn judge(
    state: &mut State,
    known: &Known,
    noted: Option<Noted>,
    holds: impl FnOnce(&State) -> io::Result<bool>,
) -> io::Result<Judged> {
    let is_noted = noted.as_ref().is_some_and(|noted| known.is_noted(noted));
    if let Some(noted) = noted.as_ref().filter(|noted| known.is_behind(noted)) {
        tracing::error!(
            store = known.mark.number,
            files = noted.mark.number,
            "the store is older than the event files, as one that was put back from a backup: nothing of the files is changed; entries that the failure queue got since are not in it"
        );
        // Where the journal alone was lost, the store still is what goes on.
        let is_damaged = known.damage == Damage::Journal && known.lies == Lies::InPlace;
        rise(state, if is_damaged { Cause::Damage } else { Cause::Copy });
        return Ok(Judged { trust: Trust::Outdated, moved: Vec::new() });
    }
    let mut moved = noted.filter(|noted| noted.mark.home == known.mark.home).map_or_else(Vec::new, |noted| noted.moved);
    let trust = match (known.lies, known.damage) {
        (Lies::Elsewhere, Damage::None) if is_noted && holds(state)? => {
            tracing::warn!(
                number = known.mark.number,
                "this home was moved or copied, and its lines are here: it goes on behind them"
            );
            moved.insert(0, Former { incarnation: known.mark.incarnation, upto: known.mark.number });
            rise(state, Cause::Move);
            Trust::Copied
        }
        (Lies::Elsewhere, _) => {
            tracing::warn!("this store is a copy, or was put back");
            moved.clear();
            rise(state, Cause::Copy);
            Trust::Copied
        }
        (Lies::InPlace, Damage::Journal) => {
            rise(state, Cause::Damage);
            Trust::Own
        }
        (Lies::InPlace | Lies::Nowhere, _) => Trust::Own,
    };
    Ok(Judged { trust, moved })
}

/// Whether an event directory has the lines of a state: every file that may get further ones has those of the last checkpoint, and
/// everything is there that is to be published.
pub(super) fn holds(dir: &EventDir, state: &State) -> io::Result<bool> {
    for file in state.files.values().filter(|file| file.inode != 0) {
        let length = match dir.open_existing(&file.path()) {
            Ok((found, _)) => found.metadata()?.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound || blames_name(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        if length < file.length {
            return Ok(false);
        }
    }
    for file in state.seals.values().flat_map(|seal| &seal.ranges).flat_map(|range| &range.files) {
        if !dir.is_taken(&hidden(&file.name))? && !dir.is_taken(&file.name)? {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(incarnation: u64, number: u64) -> Mark {
        Mark { home: "h".into(), incarnation, number }
    }

    /// A home that is incarnation 5 at number 40 and segment 7, and was incarnation 4 before it was moved.
    fn known(lies: Lies, damage: Damage) -> (Known, State) {
        let state = State { home: "h".into(), incarnation: 5, former: vec![4], number: 30, ..State::default() };
        (Known { mark: mark(5, 40), segment: 7, lies, damage }, state)
    }

    fn noted(incarnation: u64, number: u64, segment: u64) -> Noted {
        let moved = vec![Former { incarnation: 4, upto: 20 }];
        Noted { mark: mark(incarnation, number), segment, moved }
    }

    /// What a home is taken for, and which incarnations are its own then.
    fn judged(lies: Lies, damage: Damage, noted: Option<Noted>, lines: bool) -> (Trust, bool, Vec<Former>) {
        let (known, mut state) = known(lies, damage);
        let Judged { trust, moved } = judge(&mut state, &known, noted, |_| Ok(lines)).unwrap();
        (trust, state.incarnation > 5, state.former(&moved))
    }

    const BEFORE: Former = Former { incarnation: 4, upto: 20 };

    #[test]
    fn a_home_goes_on_behind_its_lines_wherever_it_lies_and_a_copy_without_them_where_the_group_is() {
        let ended = Former { incarnation: 5, upto: 40 };
        let (copy, own) = ((Trust::Copied, true, vec![]), (Trust::Own, false, vec![BEFORE]));
        for (number, segment) in [(40, 7), (35, 7), (30, 3), (30, 0)] {
            let here = || Some(noted(5, number, segment));
            assert_eq!(judged(Lies::InPlace, Damage::None, here(), false), own, "{number} {segment}");
            let moved = (Trust::Copied, true, vec![BEFORE, ended]);
            assert_eq!(judged(Lies::Elsewhere, Damage::None, here(), true), moved, "{number} {segment}");
            assert_eq!(judged(Lies::Elsewhere, Damage::None, here(), false), copy, "the lines are elsewhere");
            assert_eq!(judged(Lies::Elsewhere, Damage::Journal, here(), true), copy, "what it knows is not all");
        }
        let other = Noted { mark: Mark { home: "other".into(), ..mark(5, 90) }, ..noted(5, 90, 9) };
        for of in [None, Some(other)] {
            assert_eq!(judged(Lies::Elsewhere, Damage::None, of.clone(), true), copy);
            let (trust, risen, former) = judged(Lies::InPlace, Damage::None, of, true);
            assert_eq!((trust, risen), (Trust::Own, false));
            assert_eq!(former, [Former { upto: u64::MAX, ..BEFORE }], "where it ended is not known any more");
        }
        assert_eq!(judged(Lies::Elsewhere, Damage::None, Some(noted(4, 20, 5)), true), copy, "of a run long before");
    }

    #[test]
    fn a_store_is_outdated_by_a_later_number_or_segment_or_incarnation() {
        for later in [noted(5, 41, 7), noted(5, 30, 8), noted(6, 1, 1)] {
            for lies in [Lies::InPlace, Lies::Elsewhere] {
                let expected = (Trust::Outdated, true, vec![]);
                assert_eq!(judged(lies, Damage::None, Some(later.clone()), true), expected, "{later:?}");
            }
        }
        assert_eq!(judged(Lies::InPlace, Damage::None, Some(noted(4, 90, 9)), true).0, Trust::Own, "of one before");
        // Without the journal its segments tell nothing, and whoever lost it is the only one who goes on.
        let (trust, risen, former) = judged(Lies::InPlace, Damage::Journal, Some(noted(5, 40, 9)), true);
        assert_eq!((trust, risen), (Trust::Own, true));
        assert_eq!(former, [BEFORE, Former { incarnation: 5, upto: u64::MAX }]);
        let (trust, _, former) = judged(Lies::InPlace, Damage::Journal, Some(noted(5, 41, 9)), true);
        assert_eq!((trust, former.len()), (Trust::Outdated, 2));
    }
}
