//! How many event files may be open: as configured, fewer while the process runs out of descriptors.
//!
//! Others may have taken descriptors that the configuration counts on: a cluster of many brokers, or the whole machine.
//! A file that stays closed costs an `open` for its next lines; a descriptor that is missing would stop everything.

use std::time::{Duration, Instant};

/// How long after a shortage more files are tried again.
const CALM: Duration = Duration::from_mins(1);

#[derive(Debug)]
pub(super) struct OpenLimit {
    configured: usize,
    current: usize,
    raised: Option<Instant>,
}

impl OpenLimit {
    pub(super) fn new(configured: usize) -> Self {
        Self { configured, current: configured, raised: None }
    }

    pub(super) fn most(&self) -> usize {
        self.current
    }

    /// A descriptor was missing while so many files were open. Returns how many may stay open, `None` when there is
    /// none to close.
    pub(super) fn shrink(&mut self, open: usize, now: Instant) -> Option<usize> {
        let stay = open.checked_sub(open.div_ceil(4).max(1))?;
        self.current = stay.clamp(1, self.configured);
        self.raised = Some(now);
        Some(stay)
    }

    /// Lets more files be open again when the last shortage is a while ago.
    pub(super) fn recover(&mut self, now: Instant) {
        if self.raised.is_some_and(|raised| now.duration_since(raised) >= CALM) {
            self.current = (self.current * 2).min(self.configured);
            self.raised = (self.current < self.configured).then_some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_closes_a_quarter_and_the_bound_comes_back_in_calm() {
        let start = Instant::now();
        let mut limit = OpenLimit::new(100);
        assert_eq!(limit.shrink(80, start), Some(60));
        assert_eq!(limit.most(), 60);
        limit.recover(start + CALM / 2);
        assert_eq!(limit.most(), 60);
        limit.recover(start + CALM);
        assert_eq!(limit.most(), 100);
        limit.recover(start + CALM * 9);
        assert_eq!(limit.most(), 100);
    }

    #[test]
    fn the_last_file_is_closed_too_and_then_there_is_none() {
        let mut limit = OpenLimit::new(8);
        assert_eq!(limit.shrink(1, Instant::now()), Some(0));
        assert_eq!(limit.most(), 1);
        assert_eq!(limit.shrink(0, Instant::now()), None);
    }
}
