//! How long a commit of an instance that died can still reach the group.
//!
//! The coordinator takes a commit that was on its way when its sender died, as long as the sender is a member: for its session.
//! A classic group ends that with the next generation. With KIP-848 it does not: there a member that joins leaves the epochs
//! of the others as they are.
//!
//! **Promise.** Nothing is decided by what the group has not taken before there is no such member: the group has no members but
//! known ones, or its longest session has passed since the instance was dead for certain.

use std::time::{Duration, Instant};

/// How much later than its session a coordinator may notice that a member is gone.
const MARGIN: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Outlast {
    until: Instant,
    over: bool,
}

impl Outlast {
    /// Of instances that are dead at `begun`, in a group with this session.
    pub fn since(begun: Instant, session: Duration) -> Self {
        Self { until: begun + session + MARGIN, over: false }
    }

    /// Takes how many members the group has that may be such an instance. Returns how long a commit of one may still come:
    /// `None` when none can, which stays so.
    pub fn left(&mut self, members: usize, now: Instant) -> Option<Duration> {
        let left = self.until.saturating_duration_since(now);
        self.over |= members == 0 || left.is_zero();
        (!self.over).then_some(left)
    }

    /// Whether it is known already that no commit can come any more.
    pub fn is_over(&self) -> bool {
        self.over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_can_come_while_there_are_members_and_their_session_lasts() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let since = || Outlast::since(begun, Duration::from_secs(10));
        let mut outlast = since();
        assert_eq!(outlast.left(2, at(3)), Some(Duration::from_secs(9)));
        assert_eq!(outlast.left(0, at(4)), None);
        assert_eq!((outlast.left(2, at(5)), outlast.is_over()), (None, true), "who joins later is alive");
        assert_eq!(since().left(2, at(12)), None);
    }
}
