//! Who a home is: whether its store is the one that it was, or a copy, or an older one.
//!
//! A store that was copied must not go on as the one it was copied from: both would take the group's offsets for their own.
//! The state knows where its directories lie (inode and time of creation); elsewhere it gets another incarnation, and so does
//! one that lost a part. Two incarnations never meet, since the clock is in them. A clone of a whole disk is not told from its
//! origin.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::broken::Broken;
use super::places::Places;
use crate::delivery::recovery::Trust;
use crate::msource::journal::{Mark, Place, State};

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
}

/// Begins another incarnation.
pub(super) fn rise(state: &mut State, cause: Cause) {
    let former = state.incarnation;
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
    state.incarnation = clock.max(former + 1);
    match cause {
        Cause::Damage => state.former.push(former),
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
    if known != Place::default() && moved {
        tracing::warn!(store = %places.root.display(), "this store is a copy, or was put back");
        rise(state, Cause::Copy);
        return Ok(Lies::Elsewhere);
    }
    if damage == Damage::Journal {
        rise(state, Cause::Damage);
    }
    Ok(Lies::InPlace)
}

fn identity(dir: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::metadata(dir)?;
    let created = metadata.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    Ok((metadata.ino(), created.map_or(0, |since| since.as_nanos() as u64)))
}

fn is_same(known: (u64, u64), found: (u64, u64)) -> bool {
    known.0 == found.0 && (known.1 == found.1 || known.1 == 0 || found.1 == 0)
}

/// How far a home can be believed that says of itself what it is, and of which the event directory knows this checkpoint.
pub(super) fn trust(state: &mut State, known: &Mark, lies: Lies, damage: Damage, noted: Option<&Mark>) -> Trust {
    let is_later = |noted: &&Mark| {
        noted.home == known.home && (noted.incarnation, noted.number) > (known.incarnation, known.number)
    };
    if let Some(noted) = noted.filter(is_later) {
        tracing::error!(
            store = known.number,
            files = noted.number,
            "the store is older than the event files, as one that was put back from a backup: nothing of the files is changed; entries that the failure queue got since are not in it"
        );
        // Where the journal alone was lost, the store still is what goes on.
        if damage == Damage::None && lies == Lies::InPlace {
            rise(state, Cause::Copy);
        }
        return Trust::Outdated;
    }
    match lies {
        Lies::Elsewhere => Trust::Copied,
        Lies::InPlace | Lies::Nowhere => Trust::Own,
    }
}
