//! Where a partition that we were given goes on: a pure decision, and the text that we leave beside the group's offsets.
//!
//! The local position is exact: it moves with the lines. The group's offset is what other instances go by. Whose word
//! counts is told from the metadata beside the group's offset.

use std::fmt;
use std::str::FromStr;

use super::TopicPartition;
use super::journal::{Begun, Former, Growth, Mark, MoveCause, PartitionState, Position, SealedOffsets, State};
use super::native::GroupOffset;
use crate::config::Visibility;
use crate::delivery::Verdict;

#[cfg(test)]
mod tests;

/// Previous owners that are remembered beside an offset: 4,096 bytes is the brokers' limit on that text.
const PREVIOUS_OWNERS: usize = 16;

/// What is committed beside each offset: whose it is, how far that instance was, and the last commit of each owner before it.
/// `home/incarnation/number/topic id`, then ` partitions=count` and ` since=offset` if that is known, then
/// ` home/incarnation/number` for each owner before, newest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Who committed, and with which number: of the last block in the checkpoint, or of the seal; 0 for a pinned start.
    pub mark: Mark,
    /// Id of the topic, empty where the broker has none.
    pub topic_id: String,
    /// How many partitions the topic had when the group began to read it; unknown for a group that an older version or a tool
    /// began.
    pub partitions: Option<i32>,
    /// Where the first of these owners began that found no owner's text, as after a tool had set the offset: whatever was committed
    /// before that is not in here. Unknown where an older version began.
    pub since: Option<i64>,
    /// The owners before it.
    pub previous: Vec<Mark>,
}

/// What leads the offset in an owner's text from which on it is complete.
const SINCE: &str = "since=";

/// What leads the number of partitions in an owner's text.
const PARTITIONS: &str = "partitions=";

impl Owner {
    /// What an owner with this home and incarnation carries on of a text that it found: everybody's last commit but its own.
    /// Another incarnation is another owner: a copy of the home may be at work beside it.
    pub fn carried(metadata: &str, home: (&str, u64)) -> Vec<Mark> {
        let Ok(found) = metadata.parse::<Self>() else { return Vec::new() };
        let mut carried: Vec<Mark> = Vec::new();
        for mark in std::iter::once(found.mark).chain(found.previous) {
            let is_of = |home: (&str, u64)| (mark.home.as_str(), mark.incarnation) == home;
            if !is_of(home) && carried.iter().all(|known| !is_of((&known.home, known.incarnation))) {
                carried.push(mark);
            }
        }
        carried.truncate(PREVIOUS_OWNERS);
        carried
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mark { home, incarnation, number } = &self.mark;
        write!(f, "{home}/{incarnation}/{number}/{}", self.topic_id)?;
        self.partitions.map_or(Ok(()), |count| write!(f, " {PARTITIONS}{count}"))?;
        self.since.map_or(Ok(()), |offset| write!(f, " {SINCE}{offset}"))?;
        self.previous
            .iter()
            .try_for_each(|Mark { home, incarnation, number }| write!(f, " {home}/{incarnation}/{number}"))
    }
}

impl FromStr for Owner {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut owners = text.split(' ').peekable();
        // Topic ids are base64 and may hold a slash.
        let mut parts = owners.next().ok_or(())?.splitn(4, '/');
        let mark = mark(&mut parts)?;
        let topic_id = parts.next().ok_or(())?.to_owned();
        let partitions = owners.next_if(|part| part.starts_with(PARTITIONS));
        let partitions = partitions.map(|part| part[PARTITIONS.len()..].parse().map_err(drop)).transpose()?;
        let since = owners.next_if(|part| part.starts_with(SINCE));
        let since = since.map(|part| part[SINCE.len()..].parse().map_err(drop)).transpose()?;
        let previous = owners.map(mark_alone).collect::<Result<_, _>>()?;
        Ok(Self { mark, topic_id, partitions, since, previous })
    }
}

/// What a commit carries on of what was found beside the group's offset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// See [`Owner::previous`].
    pub previous: Vec<Mark>,
    /// See [`Owner::since`].
    pub since: Option<i64>,
}

impl Carried {
    /// Of what the group has, for an owner with this home and incarnation that reads the topic with this id.
    pub fn of(group: Option<&GroupOffset>, topic_id: &str, home: (&str, u64)) -> Self {
        let metadata = group.map_or("", |group| group.metadata.as_str());
        let since = match (metadata.parse::<Owner>(), group) {
            (Ok(owner), _) if !differ(&owner.topic_id, topic_id) => owner.since,
            (Err(()), Some(group)) => Some(group.offset),
            // Wherever it begins: see below.
            _ => Some(i64::MAX),
        };
        Self { previous: Owner::carried(metadata, home), since }
    }

    /// The owner begins at this place, and has everything behind it read, again if need be.
    pub fn begins_at(&mut self, next: i64) {
        self.since = self.since.map(|since| since.min(next));
    }
}

/// How many partitions a topic had when it was begun, by what is noted `here` and what its owners left beside the group's offsets.
/// Each carries that on, so that a partition which nobody got to begin is not taken for one that was added.
pub fn begun_with<'a>(
    topic_id: &str,
    here: Option<&Begun>,
    offsets: impl Iterator<Item = &'a GroupOffset>,
) -> Option<i32> {
    let here = here.filter(|begun| !differ(&begun.topic_id, topic_id)).map(|begun| begun.partitions);
    let owners = offsets.filter_map(|group| group.metadata.parse::<Owner>().ok());
    let owners = owners.filter(|owner| !differ(&owner.topic_id, topic_id)).filter_map(|owner| owner.partitions);
    // Where two began at once and saw different counts, the first record is the start that loses nothing.
    owners.chain(here).min()
}

fn mark<'a>(parts: &mut impl Iterator<Item = &'a str>) -> Result<Mark, ()> {
    let mut next = || parts.next().ok_or(());
    Ok(Mark {
        home: next()?.to_owned(),
        incarnation: next()?.parse().map_err(drop)?,
        number: next()?.parse().map_err(drop)?,
    })
}

fn mark_alone(text: &str) -> Result<Mark, ()> {
    let mut parts = text.split('/');
    let mark = mark(&mut parts)?;
    if parts.next().is_none() { Ok(mark) } else { Err(()) }
}

/// Whose partition it is while a prepared range is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Ours, given to us after the range was prepared: no commit of an assignment before can come any more.
    ByUs,
    /// Another's or nobody's: our commit may still be on its way.
    NotByUs,
    /// Another's or nobody's, and never ours again: its topic is not consumed any more, and no commit of an assignment before can
    /// come. In a classic group that is so once we have joined it; with KIP-848 only when the members of before are gone.
    NeverAgain,
}

/// Whether the group has taken the offsets of a range that we prepared. `base` is what stood beside the group's offset where
/// the range begins.
///
/// Numbers are compared by equality: every owner leaves its own beside the offset and carries on those of the owners before
/// it, so that one which is not there was not committed. But the group forgets all of them with their topic, and with a text that a
/// tool has put in place of theirs: the owner that comes after it says where it began, so that nobody takes a range from before for
/// one that was not committed.
pub fn judge(
    prepared: &Mark,
    range: &SealedOffsets,
    base: Option<&Mark>,
    group: Option<&GroupOffset>,
    held: Held,
) -> Verdict {
    let ours = |mark: &Mark| (&mark.home, mark.incarnation) == (&prepared.home, prepared.incarnation);
    let unchanged = match held {
        Held::ByUs | Held::NeverAgain => Verdict::Refused,
        Held::NotByUs => Verdict::Open,
    };
    let Some(found) = group.and_then(|group| group.metadata.parse::<Owner>().ok()) else {
        // A tool may have set the offset where the range begins; nobody has committed since, then.
        let untouched = group.is_some_and(|group| (group.offset, None) == (range.growth.from, base));
        return if untouched { unchanged } else { Verdict::Undecided };
    };
    // Looked for first: who was there where the range begins may be there again, and starts are pinned with the same number.
    if found.mark == *prepared || found.previous.contains(prepared) {
        Verdict::Committed
    } else if differ(&found.topic_id, &range.to.topic_id) || found.since.is_some_and(|since| range.growth.from < since)
    {
        // Our commit may have been in a text that is gone.
        Verdict::Undecided
    } else if ours(&found.mark) || Some(&found.mark) == base {
        unchanged
    } else {
        let is_pushed_out = found.previous.len() >= PREVIOUS_OWNERS && !found.previous.iter().any(ours);
        // Whoever comes later carries on who was there where the range begins, unless a tool wiped that text in between: our
        // commit may have been in it.
        let is_wiped = base.is_some_and(|base| !names(&found, base));
        if is_pushed_out || is_wiped { Verdict::Undecided } else { Verdict::Refused }
    }
}

/// Whether the owner of a mark is one of those that a text tells of.
fn names(found: &Owner, of: &Mark) -> bool {
    let is_of = |mark: &Mark| (&mark.home, mark.incarnation) == (&of.home, of.incarnation);
    is_of(&found.mark) || found.previous.iter().any(is_of)
}

/// Whether two ids are those of two topics of the same name, as far as both are known.
pub fn differ(one: &str, other: &str) -> bool {
    !one.is_empty() && !other.is_empty() && one != other
}

/// Whether what a partition has grown by may go on: nobody has committed since where it began.
pub fn may_grow(partition: &PartitionState, growth: &Growth, group: Option<&GroupOffset>) -> bool {
    let Some(group) = group else { return false };
    let found = group.metadata.parse::<Owner>().ok();
    let is_same = found.as_ref().is_none_or(|owner| !differ(&owner.topic_id, &partition.topic_id));
    is_same && group.offset == growth.from && found.map(|owner| owner.mark) == partition.mark
}

/// Whether a prepared range that the group has not taken may be committed now. The same commit, should one of before arrive
/// after all, says the same.
fn may_ask(
    state: &State,
    prepared: &Mark,
    range: &SealedOffsets,
    group: Option<&GroupOffset>,
    visibility: Visibility,
) -> bool {
    // What another incarnation prepared may be in a copy of this home, too.
    let is_ours = visibility == Visibility::Sealed && prepared.incarnation == state.incarnation;
    let stands = |here: &&PartitionState| here.next == range.to.next && here.topic_id == range.to.topic_id;
    let here = state.partitions.get(&range.to.partition).filter(stands);
    is_ours && here.is_some_and(|here| may_grow(here, &range.growth, group))
}

/// Whether the home that prepared a range is the one that this home was copied from: it has the same range, and may have
/// published it.
pub fn is_copied(state: &State, prepared: &Mark) -> bool {
    prepared.incarnation != state.incarnation && !state.former.contains(&prepared.incarnation)
}

/// What becomes of what a partition has hidden.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hidden {
    /// There is nothing, or it goes on, or it waits.
    Stays,
    /// The group's word on the range that was prepared.
    Decided(u64, Verdict),
    /// Nobody has committed since this seal was prepared, which ends here: the group is asked once more.
    Again(u64, Position),
    /// What was not prepared is taken back.
    Refused,
}

/// Decides about what a partition has hidden. What was prepared comes first: ask again once that is carried out.
pub fn settle(
    state: &State,
    partition: &TopicPartition,
    group: Option<&GroupOffset>,
    held: Held,
    visibility: Visibility,
) -> Hidden {
    let Some(here) = state.partitions.get(partition) else { return Hidden::Stays };
    if let Some((mark, offsets)) = state.prepared(partition).next() {
        return match judge(&mark, offsets, here.mark.as_ref(), group, held) {
            Verdict::Open => Hidden::Stays,
            Verdict::Committed if is_copied(state, &mark) => Hidden::Decided(mark.number, Verdict::Undecided),
            Verdict::Refused if held == Held::ByUs && may_ask(state, &mark, offsets, group, visibility) => {
                Hidden::Again(mark.number, offsets.to.clone())
            }
            verdict => Hidden::Decided(mark.number, verdict),
        };
    }
    let Some(growth) = &here.growth else { return Hidden::Stays };
    let hides = visibility == Visibility::Sealed;
    let may_go_on = hides && held != Held::NeverAgain;
    let goes_on = may_go_on && state.is_whole(partition, growth) && may_grow(here, growth, group);
    // While it is not ours, nobody may have read it again yet; and nobody can if the topic is no more, which the brokers tell.
    let may_wait = |group: &GroupOffset| {
        let of_other = |owner: Owner| differ(&owner.topic_id, &here.topic_id);
        group.offset == growth.from || group.metadata.parse().is_ok_and(of_other)
    };
    if goes_on || held == Held::NotByUs && group.is_some_and(may_wait) { Hidden::Stays } else { Hidden::Refused }
}

impl GroupOffset {
    /// Id of the topic that whoever left it has read; `None` where a tool left it.
    pub fn topic_id(&self) -> Option<String> {
        self.metadata.parse::<Owner>().ok().map(|owner| owner.topic_id)
    }

    /// Whether an instance left it, and no tool.
    pub fn has_owner(&self) -> bool {
        self.metadata.parse::<Owner>().is_ok()
    }
}

/// What is known of a partition when it is given to us.
#[derive(Clone, Debug)]
pub struct Known<'a> {
    /// Our home and incarnation.
    pub home: (&'a str, u64),
    /// Incarnations of ours that ended here.
    pub former: &'a [Former],
    /// Number of the last change that the local positions have.
    pub number: u64,
    /// Where we stood.
    pub local: Option<&'a PartitionState>,
    /// The group's offset; `None` also when no group is asked.
    pub group: Option<&'a GroupOffset>,
    /// The topic's id as the broker tells it now, empty where it has none.
    pub topic_id: &'a str,
    /// Whether the partition was added after its topic was begun, as far as that is known: see [`begun_with`].
    pub added: bool,
    /// Whether files are hidden until the group has taken their offsets: then its word is the last one.
    pub visibility: Visibility,
}

/// Where the partition goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Where we stood.
    Continue,
    /// Elsewhere, for this reason: a `Move`.
    Move {
        /// The offset.
        to: i64,
        /// The reason.
        cause: MoveCause,
    },
    /// We never had it, the group did: a `Start` there.
    Adopt {
        /// The offset.
        at: i64,
    },
    /// Nobody ever had it: a `Start` where the configuration says.
    New,
    /// Nobody ever had it, but other partitions of its topic: it was added later, a `Start` at its first record.
    Added,
    /// The topic was deleted and created again: a `Move` to its first record.
    Recreated,
}

/// Decides. The local position wins while nobody else has read on, also when the group's offsets are gone (they expire
/// some days after the last member left): only so is no record repeated. An operator who wants another place sets it.
pub fn decide(known: &Known<'_>) -> Decision {
    let other = |id: &str| differ(id, known.topic_id);
    let owner = known.group.and_then(|group| group.metadata.parse::<Owner>().ok());
    // A number of ours that we never gave out is that of a later time: our store was put back from a backup. Where files are
    // hidden, the group has the last word anyhow.
    let is_ours = |Mark { home, incarnation, number }: &Mark| {
        let is_known = known.visibility == Visibility::Sealed || *number <= known.number;
        let is_this = *incarnation == known.home.1 && is_known;
        let has_ended = |former: &Former| former.incarnation == *incarnation && *number <= former.upto;
        home == known.home.0 && (is_this || known.former.iter().any(has_ended))
    };
    let ours = owner.as_ref().is_some_and(|owner| is_ours(&owner.mark));
    let group_recreated = owner.as_ref().is_some_and(|owner| other(&owner.topic_id));
    // What was written live, or without a group, may be past our last commit. Nobody else has read on since that.
    let is_ahead = known.local.zip(known.group).is_some_and(|(local, group)| local.next > group.offset);
    // What we committed before our last change is past us only when that was a move back, or a refusal.
    let is_known = owner
        .as_ref()
        .is_some_and(|Owner { mark, .. }| mark.incarnation == known.home.1 && mark.number <= known.number);
    let group_decides = known.visibility == Visibility::Sealed && !(ours && (is_ahead || is_known));
    match (known.local, known.group) {
        // Whoever asks has made sure that it may go on.
        (Some(local), _) if local.growth.is_some() && !other(&local.topic_id) => Decision::Continue,
        (Some(local), Some(group)) if (!ours || group_decides) && !group_recreated => {
            if group.offset == local.next && !other(&local.topic_id) {
                Decision::Continue
            } else {
                Decision::Move { to: group.offset, cause: MoveCause::Takeover }
            }
        }
        (Some(local), _) if other(&local.topic_id) => Decision::Recreated,
        (Some(_), _) => Decision::Continue,
        (None, Some(_)) if group_recreated => Decision::Recreated,
        (None, Some(group)) => Decision::Adopt { at: group.offset },
        (None, None) if known.added => Decision::Added,
        (None, None) => Decision::New,
    }
}
