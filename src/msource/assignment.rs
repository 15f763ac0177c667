//! Where a partition that we were given goes on: a pure decision, and the text that we leave beside the group's offsets.
//!
//! The local position is exact: it moves with the lines. The group's offset is what other instances go by. Whose word
//! counts is told from the metadata beside the group's offset.

use std::fmt;
use std::str::FromStr;

use super::TopicPartition;
use super::journal::{Growth, Mark, MoveCause, PartitionState, Position, SealedOffsets, State};
use super::native::GroupOffset;
use crate::config::Visibility;
use crate::delivery::Verdict;

/// Previous owners that are remembered beside an offset: 4,096 bytes is the brokers' limit on that text.
const PREVIOUS_OWNERS: usize = 16;

/// What is committed beside each offset: whose it is, how far that instance was, and the last commit of each owner before it.
/// `home/incarnation/number/topic id`, then ` partitions=count` if that is known, then ` home/incarnation/number` for each owner
/// before, newest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Who committed, and with which number: of the last block in the checkpoint, or of the seal; 0 for a pinned start.
    pub mark: Mark,
    /// Id of the topic, empty where the broker has none.
    pub topic_id: String,
    /// How many partitions the topic had when the group began to read it; unknown for a group that an older version or a tool
    /// began.
    pub partitions: Option<i32>,
    /// The owners before it.
    pub previous: Vec<Mark>,
}

/// What leads the number of partitions in an owner's text.
const PARTITIONS: &str = "partitions=";

impl Owner {
    /// What an owner with this home and incarnation carries on of a text that it found: everybody's last commit but its own.
    /// Another incarnation is somebody else: a copy of the home may be at work beside it.
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
        let previous = owners.map(mark_alone).collect::<Result<_, _>>()?;
        Ok(Self { mark, topic_id, partitions, previous })
    }
}

/// How many partitions a topic had when the group began to read it, by what its owners left beside its offsets. Each carries
/// that on, so that a partition which nobody got to begin is not taken for one that was added.
pub fn begun_with<'a>(topic_id: &str, offsets: impl Iterator<Item = &'a GroupOffset>) -> Option<i32> {
    let owners = offsets.filter_map(|group| group.metadata.parse::<Owner>().ok());
    // Where two began at once and saw different counts, the first record is the start that loses nothing.
    owners.filter(|owner| owner.topic_id == topic_id).filter_map(|owner| owner.partitions).min()
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
}

/// Whether the group has taken the offsets of a range that we prepared. `base` is what stood beside the group's offset where
/// the range begins.
///
/// Numbers are compared by equality: every owner leaves its own beside the offset and carries on those of the owners before
/// it, so that one which is not there was not committed. But the group forgets all of them with their topic.
pub fn judge(
    prepared: &Mark,
    range: &SealedOffsets,
    base: Option<&Mark>,
    group: Option<&GroupOffset>,
    held: Held,
) -> Verdict {
    let ours = |mark: &Mark| (&mark.home, mark.incarnation) == (&prepared.home, prepared.incarnation);
    let unchanged = match held {
        Held::ByUs => Verdict::Refused,
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
    } else if differ(&found.topic_id, &range.to.topic_id) {
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
fn differ(one: &str, other: &str) -> bool {
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
            // This home is a copy: the one that it was copied from has the same range, and may have published it.
            Verdict::Committed
                if mark.incarnation != state.incarnation && !state.former.contains(&mark.incarnation) =>
            {
                Hidden::Decided(mark.number, Verdict::Undecided)
            }
            Verdict::Refused if held == Held::ByUs && may_ask(state, &mark, offsets, group, visibility) => {
                Hidden::Again(mark.number, offsets.to.clone())
            }
            verdict => Hidden::Decided(mark.number, verdict),
        };
    }
    let Some(growth) = &here.growth else { return Hidden::Stays };
    let hides = visibility == Visibility::Sealed;
    let goes_on = hides && state.is_whole(partition, growth) && may_grow(here, growth, group);
    // While it is not ours, nobody may have read it again yet; and nobody can if the topic is no more, which the brokers tell.
    let may_wait = |group: &GroupOffset| {
        let of_other = |owner: Owner| differ(&owner.topic_id, &here.topic_id);
        group.offset == growth.from || group.metadata.parse().is_ok_and(of_other)
    };
    if goes_on || held == Held::NotByUs && group.is_some_and(may_wait) { Hidden::Stays } else { Hidden::Refused }
}

impl GroupOffset {
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
    pub former: &'a [u64],
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
    /// The topic was deleted and created anew: a `Move` to its first record.
    Recreated,
}

/// Decides. The local position wins while nobody else has read on, also when the group's offsets are gone (they expire
/// some days after the last member left): only so is no record repeated. An operator who wants another place sets it.
pub fn decide(known: &Known<'_>) -> Decision {
    let other = |id: &str| differ(id, known.topic_id);
    let owner = known.group.and_then(|group| group.metadata.parse::<Owner>().ok());
    let is_ours = |Mark { home, incarnation, .. }: &Mark| {
        home == known.home.0 && (*incarnation == known.home.1 || known.former.contains(incarnation))
    };
    let ours = owner.as_ref().is_some_and(|owner| is_ours(&owner.mark));
    let group_recreated = owner.as_ref().is_some_and(|owner| other(&owner.topic_id));
    // What was written live, or without a group, may be past our last commit. Nobody else has read on since that.
    let is_ahead = ours && known.local.zip(known.group).is_some_and(|(local, group)| local.next > group.offset);
    let group_decides = known.visibility == Visibility::Sealed && !is_ahead;
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

#[cfg(test)]
mod tests {
    use super::super::journal::{Frame, Seal, SealedRange};
    use super::*;

    const ID: &str = "aaaaaaaaaaaaaaaaaaaaaa";

    fn partition() -> TopicPartition {
        TopicPartition { topic: "t".into(), partition: 0 }
    }

    fn local(next: i64, topic_id: &str) -> PartitionState {
        PartitionState { topic_id: topic_id.into(), next, leader_epoch: -1, ..PartitionState::default() }
    }

    fn group(offset: i64, metadata: &str) -> GroupOffset {
        GroupOffset { offset, leader_epoch: -1, metadata: metadata.into() }
    }

    #[track_caller]
    fn check(
        local: impl Into<Option<PartitionState>>,
        group: impl Into<Option<GroupOffset>>,
        added: bool,
        expected: &Decision,
    ) {
        let (local, group) = (local.into(), group.into());
        let known = Known {
            home: ("me", 9),
            former: &[7, 8],
            local: local.as_ref(),
            group: group.as_ref(),
            topic_id: ID,
            added,
            visibility: Visibility::Live,
        };
        assert_eq!(decide(&known), *expected);
    }

    #[test]
    fn the_group_has_the_last_word_on_hidden_files_unless_we_are_past_our_own_commit() {
        let decide = |offset, metadata: &str| {
            decide(&Known {
                home: ("me", 9),
                former: &[7, 8],
                local: Some(&local(50, ID)),
                group: Some(&group(offset, metadata)),
                topic_id: ID,
                added: true,
                visibility: Visibility::Sealed,
            })
        };
        let moved = |to| Decision::Move { to, cause: MoveCause::Takeover };
        assert_eq!(decide(40, &format!("me/9/5/{ID}")), Decision::Continue);
        assert_eq!(decide(40, &format!("me/8/7/{ID}")), Decision::Continue, "of an incarnation before this one");
        assert_eq!(decide(60, &format!("me/9/5/{ID}")), moved(60));
        assert_eq!(decide(40, &format!("other/1/5/{ID} me/9/5")), moved(40));
        assert_eq!(decide(40, ""), moved(40), "a tool has set it");
    }

    #[test]
    fn our_own_mark_means_the_local_position() {
        check(Some(local(50, ID)), Some(group(40, &format!("me/9/7/{ID}"))), true, &Decision::Continue);
    }

    #[test]
    fn an_incarnation_that_ended_here_is_ours_and_a_copys_is_not() {
        check(Some(local(50, ID)), Some(group(40, &format!("me/7/7/{ID}"))), true, &Decision::Continue);
        let moved = Decision::Move { to: 40, cause: MoveCause::Takeover };
        check(Some(local(50, ID)), Some(group(40, &format!("me/6/7/{ID}"))), true, &moved);
        check(Some(local(50, ID)), Some(group(40, &format!("you/7/7/{ID}"))), true, &moved);
    }

    #[test]
    fn another_instance_has_read_on() {
        let moved = Decision::Move { to: 90, cause: MoveCause::Takeover };
        check(Some(local(50, ID)), Some(group(90, &format!("you/1/7/{ID}"))), true, &moved);
        check(Some(local(50, ID)), Some(group(90, "")), true, &moved);
        check(Some(local(50, ID)), Some(group(90, &format!("me/2/7/{ID}"))), true, &moved);
    }

    #[test]
    fn offsets_that_the_group_forgot_are_still_known_here() {
        check(Some(local(50, ID)), None, true, &Decision::Continue);
    }

    #[test]
    fn a_recreated_topic_starts_again() {
        check(Some(local(50, "bbbb")), None, true, &Decision::Recreated);
        check(Some(local(50, "bbbb")), Some(group(40, "me/9/7/bbbb")), true, &Decision::Recreated);
        check(None, Some(group(40, "you/1/7/bbbb")), true, &Decision::Recreated);
    }

    #[test]
    fn brokers_without_topic_ids_only_have_offsets() {
        check(Some(local(50, "")), Some(group(40, "me/9/7/")), true, &Decision::Continue);
    }

    #[test]
    fn a_partition_that_nobody_had_is_new_or_was_added() {
        check(None, None, false, &Decision::New);
        check(None, None, true, &Decision::Added);
        check(None, Some(group(40, "")), true, &Decision::Adopt { at: 40 });
    }

    #[test]
    fn a_topic_was_begun_with_the_fewest_partitions_that_one_of_its_owners_tells() {
        let begun = |metadata: &[&str]| {
            let offsets: Vec<_> = metadata.iter().map(|metadata| group(40, metadata)).collect();
            begun_with(ID, offsets.iter())
        };
        let (of_two, of_three) = (format!("x/1/2/{ID} partitions=2 y/1/2"), format!("y/1/2/{ID} partitions=3"));
        let (old, other) = (format!("x/1/2/{ID} y/1/2"), "x/1/2/bbbb partitions=1".to_owned());
        assert_eq!(begun(&[&old, &of_three, &of_two, &other, ""]), Some(2));
        assert_eq!(begun(&[&old, &other, ""]), None, "of an older version, another topic, a tool");
    }

    fn range(from: i64, next: i64) -> SealedOffsets {
        let to = Position { partition: partition(), topic_id: ID.into(), next, leader_epoch: -1 };
        SealedOffsets { growth: Growth { from, ..Growth::default() }, to }
    }

    fn mark(home: &str, number: u64) -> Mark {
        Mark { home: home.into(), incarnation: 1, number }
    }

    #[test]
    fn an_owner_survives_its_text() {
        for previous in [Vec::new(), vec![mark("x", 7)], vec![mark("x", 7), mark("y", 0)]] {
            for partitions in [None, Some(12)] {
                let previous = previous.clone();
                let owner = Owner { mark: mark("h", 9), topic_id: "a/b/+".into(), partitions, previous };
                assert_eq!(owner.to_string().parse(), Ok(owner));
            }
        }
        for text in [
            "anything",
            "",
            "h/1/2/id x/1",
            "h/1/2/id partitions=x",
            "h/1/2/id x/1/2 partitions=3",
            "h/1/2/id x/1/2/3",
            "h/1/2/id  x/1/2",
        ] {
            assert!(text.parse::<Owner>().is_err(), "{text}");
        }
    }

    #[test]
    fn every_owner_before_us_is_carried_on_once_and_as_many_as_fit() {
        let many: Vec<_> = (0..40).map(|number| format!("h{number}/1/5")).collect();
        let text = format!("x/1/9/{ID} me/1/3 {} x/1/2", many.join(" "));
        let carried = Owner::carried(&text, ("me", 1));
        assert_eq!(carried.len(), PREVIOUS_OWNERS);
        assert_eq!(carried[..2], [mark("x", 9), mark("h0", 5)]);
        let owner = Owner {
            mark: mark(&"h".repeat(36), u64::MAX),
            topic_id: ID.into(),
            partitions: Some(i32::MAX),
            previous: carried,
        };
        assert!(owner.to_string().len() < 4096);
        assert!(Owner::carried("an administrator's", ("me", 1)).is_empty());
        let text = format!("me/2/9/{ID} x/1/4 me/1/3");
        assert_eq!(Owner::carried(&text, ("me", 1)), [Mark { incarnation: 2, ..mark("me", 9) }, mark("x", 4)]);
    }

    #[test]
    fn a_prepared_range_is_judged_by_what_every_owner_left_beside_the_offset() {
        use Held::{ByUs, NotByUs};
        let base = mark("x", 4);
        let tell =
            |metadata: &str, held| judge(&mark("me", 9), &range(30, 40), Some(&base), Some(&group(40, metadata)), held);
        // Ours is there.
        assert_eq!(tell(&format!("me/1/9/{ID}"), NotByUs), Verdict::Committed);
        assert_eq!(tell(&format!("y/1/5/{ID} x/1/4 me/1/9"), NotByUs), Verdict::Committed);
        // What was there before still is: our commit may be on its way, unless that was an assignment ago.
        for metadata in [format!("x/1/4/{ID}"), format!("me/1/6/{ID}")] {
            assert_eq!(tell(&metadata, NotByUs), Verdict::Open);
            assert_eq!(tell(&metadata, ByUs), Verdict::Refused);
        }
        // Another has committed after all, and carries no commit of ours, or an older one.
        assert_eq!(tell(&format!("x/1/5/{ID}"), NotByUs), Verdict::Refused);
        assert_eq!(tell(&format!("y/1/5/{ID} x/1/4 me/1/6"), NotByUs), Verdict::Refused);
        // Another incarnation of us is another owner.
        assert_eq!(tell(&format!("me/2/9/{ID} x/1/4"), NotByUs), Verdict::Refused);
        // Whoever had committed last is not there any more: a tool wiped the text, and ours may have been in it.
        for known in [mark("me", 8), base.clone()] {
            let found = group(40, &format!("y/1/5/{ID}"));
            let told = judge(&mark("me", 9), &range(30, 40), Some(&known), Some(&found), ByUs);
            assert_eq!(told, Verdict::Undecided, "{known:?}");
        }
        // Too many came since, or somebody else wrote there.
        let many: Vec<_> = (0..PREVIOUS_OWNERS).map(|number| format!("h{number}/1/5")).collect();
        assert_eq!(tell(&format!("y/1/5/{ID} {}", many.join(" ")), ByUs), Verdict::Undecided);
        assert_eq!(tell("", ByUs), Verdict::Undecided);
        assert_eq!(judge(&mark("me", 9), &range(30, 40), Some(&base), None, ByUs), Verdict::Undecided);
        for (offset, expected) in [(30, Verdict::Refused), (40, Verdict::Undecided)] {
            assert_eq!(judge(&mark("me", 9), &range(30, 40), None, Some(&group(offset, "")), ByUs), expected);
        }
    }

    #[test]
    fn a_start_pinned_once_more_by_who_was_there_before_hides_no_commit_of_ours() {
        let pinned = mark("x", 0);
        for held in [Held::ByUs, Held::NotByUs] {
            let found = group(40, &format!("x/1/0/{ID} me/1/9"));
            let told = judge(&mark("me", 9), &range(30, 40), Some(&pinned), Some(&found), held);
            assert_eq!(told, Verdict::Committed);
        }
    }

    #[test]
    fn nothing_is_decided_by_the_numbers_of_another_topic_of_the_same_name() {
        use Held::{ByUs, NotByUs};
        let here = PartitionState { mark: Some(mark("x", 0)), ..local(40, ID) };
        let seal = |id: &str| {
            let mut of = range(30, 40);
            of.to.topic_id = id.into();
            Seal { number: 9, incarnation: 1, ranges: vec![SealedRange { offsets: Some(of), files: Vec::new() }] }
        };
        let state = |id: &str| State {
            home: "me".into(),
            incarnation: 1,
            partitions: [(partition(), here.clone())].into(),
            seals: [(9, seal(id))].into(),
            ..State::default()
        };
        let tell = |state: &State, metadata: &str, held| {
            settle(state, &partition(), Some(&group(30, metadata)), held, Visibility::Sealed)
        };
        // The owner of before, we ourselves, or somebody new has begun the other topic: what the group had of ours is forgotten.
        for metadata in ["x/1/0/bbbb", "me/1/0/bbbb", "y/1/5/bbbb", "x/1/5/bbbb"] {
            for held in [ByUs, NotByUs] {
                assert_eq!(tell(&state(ID), metadata, held), Hidden::Decided(9, Verdict::Undecided), "{metadata}");
            }
        }
        // That ours was there is certain whoever carries it on.
        let carried = tell(&state(ID), "y/1/5/bbbb me/1/9", NotByUs);
        assert_eq!(carried, Hidden::Decided(9, Verdict::Committed));
        // Brokers without ids tell no topics apart.
        assert_eq!(tell(&state(""), "x/1/0/bbbb", NotByUs), Hidden::Stays);
        assert_eq!(tell(&state(ID), "x/1/0/", NotByUs), Hidden::Stays);
        // What is not prepared waits until the brokers tell, and does not go on with the other topic's offsets.
        let growth = Growth { from: 30, ..Growth::default() };
        let grown = PartitionState { growth: Some(growth), ..here.clone() };
        let growing = State { partitions: [(partition(), grown)].into(), ..State::default() };
        for offset in [30, 50] {
            let of_other = group(offset, "x/1/0/bbbb");
            let tell = |held| settle(&growing, &partition(), Some(&of_other), held, Visibility::Sealed);
            assert_eq!((tell(NotByUs), tell(ByUs)), (Hidden::Stays, Hidden::Refused), "at {offset}");
        }
    }

    #[test]
    fn a_range_is_judged_by_the_incarnation_that_prepared_it() {
        let range = SealedRange { offsets: Some(range(30, 40)), files: Vec::new() };
        let seal = Seal { number: 9, incarnation: 1, ranges: vec![range] };
        let state = State {
            home: "me".into(),
            incarnation: 2,
            former: vec![1],
            partitions: [(partition(), local(40, ID))].into(),
            seals: [(9, seal)].into(),
            ..State::default()
        };
        let tell = |state: &State, metadata: &str| {
            settle(state, &partition(), Some(&group(40, metadata)), Held::ByUs, Visibility::Sealed)
        };
        assert_eq!(tell(&state, &format!("me/1/9/{ID}")), Hidden::Decided(9, Verdict::Committed));
        assert_eq!(tell(&state, &format!("me/2/9/{ID}")), Hidden::Decided(9, Verdict::Refused));
        // A copy has no former incarnation: its origin may have published the same range.
        let copy = State { former: Vec::new(), ..state.clone() };
        assert_eq!(tell(&copy, &format!("me/1/9/{ID}")), Hidden::Decided(9, Verdict::Undecided));
        let mut state = state.clone();
        state.apply(&Frame::Published { number: 9, partition: Some(partition()) });
        assert_eq!(state.partitions[&partition()].mark, Some(mark("me", 9)));
    }

    #[test]
    fn a_prepared_range_is_asked_for_again_only_where_everything_is_as_it_was() {
        let (offsets, to) = (range(30, 40), range(30, 40).to);
        let range = SealedRange { offsets: Some(offsets), files: Vec::new() };
        let seal = Seal { number: 9, incarnation: 1, ranges: vec![range] };
        let here = PartitionState { mark: Some(mark("x", 4)), ..local(40, ID) };
        let state = State {
            home: "me".into(),
            incarnation: 1,
            partitions: [(partition(), here.clone())].into(),
            seals: [(9, seal)].into(),
            ..State::default()
        };
        let tell = |state: &State, offset, metadata: &str, held, visibility| {
            settle(state, &partition(), Some(&group(offset, metadata)), held, visibility)
        };
        let (base, refused) = (format!("x/1/4/{ID}"), Hidden::Decided(9, Verdict::Refused));
        let ours = |state: &State, offset| tell(state, offset, &base, Held::ByUs, Visibility::Sealed);
        assert_eq!(ours(&state, 30), Hidden::Again(9, to));
        assert_eq!(tell(&state, 30, &base, Held::NotByUs, Visibility::Sealed), Hidden::Stays);
        assert_eq!(tell(&state, 30, &base, Held::ByUs, Visibility::Live), refused, "nothing is hidden any more");
        assert_eq!(ours(&state, 31), refused, "somebody moved the offset");
        let other = format!("y/1/2/{ID} x/1/4");
        assert_eq!(tell(&state, 30, &other, Held::ByUs, Visibility::Sealed), refused, "another has committed");
        let moved = PartitionState { next: 50, ..here.clone() };
        assert_eq!(ours(&State { partitions: [(partition(), moved)].into(), ..state.clone() }, 30), refused);
        let later = State { incarnation: 2, former: vec![1], ..state };
        assert_eq!(ours(&later, 30), refused, "a copy may have the same range");
    }

    #[test]
    fn what_is_visible_here_and_unknown_to_the_group_is_not_read_again_into_hidden_files() {
        let tell = |local: &PartitionState, metadata: &str| {
            let group = group(40, metadata);
            let known = Known {
                home: ("me", 1),
                former: &[],
                local: Some(local),
                group: Some(&group),
                topic_id: ID,
                added: true,
                visibility: Visibility::Sealed,
            };
            decide(&known)
        };
        let moved = Decision::Move { to: 40, cause: MoveCause::Takeover };
        let (live, sealed) = (local(50, ID), PartitionState { mark: Some(mark("me", 7)), ..local(50, ID) });
        for number in [0, 6, 7] {
            for local in [&live, &sealed] {
                assert_eq!(tell(local, &format!("me/1/{number}/{ID}")), Decision::Continue);
            }
        }
        for metadata in [format!("x/1/6/{ID}"), String::new()] {
            assert_eq!(tell(&sealed, &metadata), moved, "{metadata}");
        }
        assert_eq!(tell(&live, &format!("x/1/6/{ID}")), moved);
    }

    #[test]
    fn hidden_growth_goes_on_only_where_nobody_has_committed_since() {
        let growth = Growth { from: 40, ..Growth::default() };
        let here = PartitionState { mark: Some(mark("x", 4)), ..local(50, ID) };
        let tell = |offset, metadata: &str| may_grow(&here, &growth, Some(&group(offset, metadata)));
        assert!(tell(40, &format!("x/1/4/{ID}")));
        assert!(!tell(40, &format!("x/1/5/{ID}")));
        assert!(!tell(41, &format!("x/1/4/{ID}")));
        assert!(!tell(40, ""));
        assert!(!may_grow(&here, &growth, None));
    }
}
