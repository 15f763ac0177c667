//! Whether the group has given every partition to others, so that there is nothing to read and no lag.
//!
//! **Promise.** Only an assignment says so, and only while this instance is a member in the generation of that assignment. After
//! a loss, a revocation, with another client, and while the group is joined again or cannot be reached, nobody may have the
//! partitions: what is behind is not known then.

use crate::msource::native::GroupStep;

/// See the module.
#[derive(Debug, Default)]
pub(super) enum Share {
    /// There are partitions, or it is not known who has them.
    #[default]
    Unknown,
    /// The last assignment left nothing.
    Nothing,
}

impl Share {
    /// An assignment left nothing for this instance.
    pub(super) fn leaves_nothing(&mut self) {
        *self = Self::Nothing;
    }

    /// Whatever an assignment has said is over.
    pub(super) fn is_unknown(&mut self) {
        *self = Self::Unknown;
    }

    /// Whether others have everything. A member without partitions is told of no revocation: that the group rebalances, or is out
    /// of reach, shows in the step that librdkafka is at.
    pub(super) fn is_nothing(&self, step: Option<GroupStep>) -> bool {
        matches!(self, Self::Nothing) && step == Some(GroupStep::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_have_everything_only_while_an_assignment_without_partitions_lasts() {
        let mut share = Share::default();
        assert!(!share.is_nothing(Some(GroupStep::Done)), "nothing was assigned yet");
        share.leaves_nothing();
        assert!(share.is_nothing(Some(GroupStep::Done)));
        for step in [None, Some(GroupStep::FindCoordinator), Some(GroupStep::Join), Some(GroupStep::JoinAnswer)] {
            assert!(!share.is_nothing(step), "{step:?}");
        }
        share.is_unknown();
        assert!(!share.is_nothing(Some(GroupStep::Done)));
    }
}
