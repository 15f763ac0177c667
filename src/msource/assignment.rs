//! Where a partition that we were given goes on: a pure decision, and the text that we leave beside the group's offsets.
//!
//! The local position is exact: it moves with the lines. The group's offset is what other instances go by. Whose word
//! counts is told from the metadata beside the group's offset.

use std::fmt;
use std::str::FromStr;

use super::journal::{MoveCause, PartitionState};
use super::native::GroupOffset;

/// What is committed beside each offset: whose it is and how far that instance was. `home/incarnation/number/topic id`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// UUID of the home.
    pub home: String,
    /// Its incarnation.
    pub incarnation: u64,
    /// Number of the last block in the checkpoint; 0 for a pinned start.
    pub number: u64,
    /// Id of the topic, empty where the broker has none.
    pub topic_id: String,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}", self.home, self.incarnation, self.number, self.topic_id)
    }
}

impl FromStr for Owner {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        // Topic ids are base64 and may hold a slash.
        let mut parts = text.splitn(4, '/');
        let mut next = || parts.next().ok_or(());
        let home = next()?.to_owned();
        let incarnation = next()?.parse().map_err(drop)?;
        let number = next()?.parse().map_err(drop)?;
        Ok(Self { home, incarnation, number, topic_id: next()?.to_owned() })
    }
}

/// What is known of a partition when it is given to us.
#[derive(Clone, Debug)]
pub struct Known<'a> {
    /// Our home and incarnation.
    pub home: (&'a str, u64),
    /// Where we stood.
    pub local: Option<&'a PartitionState>,
    /// The group's offset; `None` also when no group is asked.
    pub group: Option<&'a GroupOffset>,
    /// The topic's id as the broker tells it now, empty where it has none.
    pub topic_id: &'a str,
    /// Whether the store or the group has some partition of this topic.
    pub topic_known: bool,
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
    let other = |id: &str| !id.is_empty() && !known.topic_id.is_empty() && id != known.topic_id;
    let owner = known.group.and_then(|group| group.metadata.parse::<Owner>().ok());
    let ours = owner.as_ref().is_some_and(|owner| (owner.home.as_str(), owner.incarnation) == known.home);
    let group_recreated = owner.as_ref().is_some_and(|owner| other(&owner.topic_id));
    match (known.local, known.group) {
        (Some(local), Some(group)) if !ours && !group_recreated => {
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
        (None, None) if known.topic_known => Decision::Added,
        (None, None) => Decision::New,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "aaaaaaaaaaaaaaaaaaaaaa";

    fn local(next: i64, topic_id: &str) -> PartitionState {
        PartitionState { topic_id: topic_id.into(), next, leader_epoch: -1 }
    }

    fn group(offset: i64, metadata: &str) -> GroupOffset {
        GroupOffset { offset, leader_epoch: -1, metadata: metadata.into() }
    }

    #[track_caller]
    fn check(
        local: impl Into<Option<PartitionState>>,
        group: impl Into<Option<GroupOffset>>,
        topic_known: bool,
        expected: &Decision,
    ) {
        let (local, group) = (local.into(), group.into());
        let known = Known { home: ("me", 1), local: local.as_ref(), group: group.as_ref(), topic_id: ID, topic_known };
        assert_eq!(decide(&known), *expected);
    }

    #[test]
    fn our_own_mark_means_the_local_position() {
        check(Some(local(50, ID)), Some(group(40, &format!("me/1/7/{ID}"))), true, &Decision::Continue);
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
        check(Some(local(50, "bbbb")), Some(group(40, "me/1/7/bbbb")), true, &Decision::Recreated);
        check(None, Some(group(40, "you/1/7/bbbb")), true, &Decision::Recreated);
    }

    #[test]
    fn brokers_without_topic_ids_only_have_offsets() {
        check(Some(local(50, "")), Some(group(40, "me/1/7/")), true, &Decision::Continue);
    }

    #[test]
    fn a_partition_that_nobody_had_is_new_or_was_added() {
        check(None, None, false, &Decision::New);
        check(None, None, true, &Decision::Added);
        check(None, Some(group(40, "")), true, &Decision::Adopt { at: 40 });
    }

    #[test]
    fn an_owner_survives_its_text() {
        let owner = Owner { home: "h".into(), incarnation: 3, number: 9, topic_id: "a/b/+".into() };
        assert_eq!(owner.to_string().parse(), Ok(owner));
        assert!("anything".parse::<Owner>().is_err());
    }
}
