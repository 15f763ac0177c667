//! What becomes of a partition whose place the broker refuses: a pure decision.
//!
//! **Promise.** A place that the log still has is never left forward: whatever the broker does not know about it, the records
//! from there on are read. Records that are skipped are a gap with its range. An answer that may pass decides nothing before it
//! has lasted.

use std::time::Duration;

use crate::config::OutOfRange;
use crate::msource::native::CutOff;

/// How often the broker is asked where its log was cut off, before it is taken that it cannot say.
const CHECKS: u32 = 5;

/// What a broker has of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Log {
    /// The first offset.
    pub(super) low: i64,
    /// The end of what a consumer of the configured isolation level can read.
    pub(super) stable: i64,
    /// The end.
    pub(super) high: i64,
}

/// Where a partition stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) offset: i64,
    /// Leader epoch of the record before it, -1 when unknown.
    pub(super) leader_epoch: i32,
    /// Whether the topic has an id, so that another topic of its name would have shown.
    pub(super) has_id: bool,
}

/// What the broker said of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Where its log was cut off, if it said that it was.
    pub(super) cut: Option<CutOff>,
    /// How often it has refused this place.
    pub(super) tries: u32,
    /// Since when.
    pub(super) lasts: Duration,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remedy {
    /// The broker has the place: read on there.
    Again,
    /// It may have it later.
    Wait,
    /// Ask whether it has the record before the place.
    Check,
    /// It has the place, but no record of the epoch that is known of the one before it: read on there, and forget the epoch.
    WithoutEpoch,
    /// Retention took the records `[from, to)` before they were read.
    Gap { from: i64, to: i64 },
    /// The log was cut off, and goes on with other records from here.
    Back { to: i64 },
    /// This is another log, which begins here.
    Recreated { to: i64 },
}

/// Decides. `patience` is how long an end of the log before the place must last to be believed, where no epoch tells.
pub(super) fn remedy(place: &Place, log: &Log, refusal: &Refusal, policy: OutOfRange, patience: Duration) -> Remedy {
    let Place { offset, leader_epoch, has_id } = *place;
    let Log { low, stable, high } = *log;
    let after_retention = || match policy {
        OutOfRange::Latest => stable.max(low),
        OutOfRange::Earliest | OutOfRange::Stop => low,
    };
    // A cut at or behind the place is none, and no reason to leave the place.
    let cut =
        refusal.cut.map(|cut| if matches!(cut, CutOff::At(end) if end >= offset) { CutOff::Somewhere } else { cut });
    let is_new = refusal.tries <= CHECKS;
    match cut {
        // What stood between the cut and the first offset that is left was never read.
        Some(CutOff::At(end)) if end < low => {
            Remedy::Gap { from: end, to: if offset < low { after_retention() } else { low } }
        }
        Some(CutOff::At(end)) => Remedy::Back { to: end.min(high) },
        Some(CutOff::Somewhere) if is_new => Remedy::Check,
        // A broker that was cut off from the others may still take itself for the leader: it knows neither the newest epochs nor
        // the newest records.
        Some(CutOff::Somewhere) if refusal.lasts < patience && (!has_id || offset > high) => Remedy::Check,
        // Epochs only rise within one log, and the broker knows none as high. Where topics have ids, this one is the same, and
        // whoever left the epoch was wrong.
        Some(CutOff::Somewhere) if !has_id => Remedy::Recreated { to: low },
        _ if offset < low => Remedy::Gap { from: offset, to: after_retention() },
        Some(CutOff::Somewhere) if offset <= high => Remedy::WithoutEpoch,
        None if offset <= high => Remedy::Again,
        // The broker knows where its log was cut off, once it is asked with the epoch.
        None if leader_epoch >= 0 && is_new => Remedy::Check,
        None if refusal.lasts < patience => Remedy::Wait,
        Some(CutOff::Somewhere) | None => Remedy::Back { to: high },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PATIENCE: Duration = Duration::from_mins(1);

    fn policy() -> impl Strategy<Value = OutOfRange> {
        prop_oneof![Just(OutOfRange::Earliest), Just(OutOfRange::Latest), Just(OutOfRange::Stop)]
    }

    fn cut() -> impl Strategy<Value = Option<CutOff>> {
        prop_oneof![Just(None), Just(Some(CutOff::Somewhere)), (0..400_i64).prop_map(|end| Some(CutOff::At(end)))]
    }

    proptest! {
        #[test]
        fn no_answer_moves_a_place_that_the_log_has_forward_and_what_is_skipped_is_a_gap(
            offset in 0..500_i64,
            low in 0..300_i64,
            [open, more] in [0..100_i64, 0..100_i64],
            leader_epoch in -1..5_i32,
            has_id: bool,
            cut in cut(),
            tries in 1..10_u32,
            minutes in 0..3_u64,
            policy in policy(),
        ) {
            let place = Place { offset, leader_epoch, has_id };
            let log = Log { low, stable: low + more, high: low + more + open };
            let refusal = Refusal { cut, tries, lasts: Duration::from_mins(minutes) };
            let is_there = (log.low..=log.high).contains(&offset);
            let is_cut_nowhere = match cut {
                Some(CutOff::Somewhere) => true,
                Some(CutOff::At(end)) => end >= offset,
                None => false,
            };
            match remedy(&place, &log, &refusal, policy, PATIENCE) {
                Remedy::Again | Remedy::WithoutEpoch => prop_assert!(is_there),
                Remedy::Wait => prop_assert!(offset > log.high && minutes < 1),
                Remedy::Check => {
                    prop_assert!(tries <= CHECKS || minutes < 1 && is_cut_nowhere && (!has_id || offset > log.high));
                }
                Remedy::Gap { from, to } => {
                    prop_assert!(from <= offset && from < to, "[{from}, {to})");
                    prop_assert!(from == offset && offset < low || cut == Some(CutOff::At(from)) && from < low);
                    prop_assert!(to == low || policy == OutOfRange::Latest && to == log.stable && !is_there);
                }
                Remedy::Back { to } => {
                    prop_assert!(to < offset, "{to}");
                    prop_assert!((log.low..=log.high).contains(&to));
                    prop_assert!(minutes >= 1 || cut.is_some() && !is_cut_nowhere, "believed at once");
                }
                Remedy::Recreated { to } => {
                    prop_assert_eq!((to, has_id), (low, false));
                    prop_assert!(is_cut_nowhere && minutes >= 1, "believed at once");
                }
            }
        }
    }

    #[test]
    fn an_epoch_that_the_broker_does_not_know_skips_nothing() {
        let log = Log { low: 0, stable: 5000, high: 5000 };
        let place = Place { offset: 1000, leader_epoch: 50, has_id: true };
        let said = |tries, lasts| Refusal { cut: Some(CutOff::Somewhere), tries, lasts };
        let decide =
            |place: &Place, tries, lasts| remedy(place, &log, &said(tries, lasts), OutOfRange::Earliest, PATIENCE);
        let now = Duration::ZERO;
        assert_eq!(decide(&place, 1, now), Remedy::Check, "it may say something else a moment later");
        assert_eq!(decide(&place, 6, now), Remedy::WithoutEpoch, "a tool wrote the epoch");
        let place = Place { has_id: false, ..place };
        assert_eq!(
            decide(&place, 6, now),
            Remedy::Check,
            "a leader that is none any more knows neither epoch nor records"
        );
        let recreated = Remedy::Recreated { to: 0 };
        assert_eq!(decide(&place, 6, PATIENCE), recreated, "epochs began again, and so did the records");
        let ahead = Place { offset: 5001, has_id: true, ..place };
        assert_eq!(decide(&ahead, 6, now), Remedy::Check, "the same of the end of its log");
        assert_eq!(decide(&ahead, 6, PATIENCE), Remedy::Back { to: 5000 });
    }

    #[test]
    fn a_cut_at_or_behind_the_place_skips_nothing() {
        let log = Log { low: 0, stable: 5000, high: 5000 };
        let place = Place { offset: 1000, leader_epoch: 3, has_id: true };
        for (end, remedied) in [(999, Remedy::Back { to: 999 }), (1000, Remedy::Check), (4000, Remedy::Check)] {
            let refusal = Refusal { cut: Some(CutOff::At(end)), tries: 1, lasts: Duration::ZERO };
            assert_eq!(remedy(&place, &log, &refusal, OutOfRange::Earliest, PATIENCE), remedied, "cut at {end}");
        }
    }
}
