//! The tracker: which partitions are ours, since which assignment, and up to where they are written.
//!
//! **Promise.** A block is admitted only if its assignment is still the partition's current one and it begins exactly
//! where the partition stands. So the offsets of a partition are a contiguous prefix of what was read, whatever order the
//! workers finished in, and work of an assignment that is over never moves an offset.
//!
//! A range that is prepared to be published and not decided yet bars its partition: no assignment of it begins, since what
//! comes behind the range would have to be undone with it. A range is prepared only of a partition whose assignment lasts.
//!
//! The thread that reads begins and ends assignments; the thread that writes admits and prepares. Both go through one lock,
//! which nobody holds while the disk is at work: who serves the group never waits for it here. An admission or a preparation
//! takes effect when it is looked at under the lock, and its frame follows. So nothing begins at the writing thread once the
//! reading thread has ended an assignment, and a barrier behind that shows all that had begun. A partition begins after such a
//! barrier only; that one is not begun whose range is just being prepared is seen to here.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::TopicPartition;

/// Tells the assignments of a partition apart; never used twice in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(u64);

impl Epoch {
    /// Of work that is not admitted by a tracker. No assignment has it.
    pub const NONE: Self = Self(0);
}

/// Why a block was not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Its assignment is over: the records belong to whoever has the partition now.
    Stale,
    /// It does not begin where the partition stands, which a correct program never lets happen.
    NotNext {
        /// Where the partition stands.
        expected: i64,
    },
    /// A range before it is not decided, which a correct program never lets happen.
    Undecided,
}

#[derive(Debug, Default)]
struct Assignments {
    last_epoch: u64,
    current: HashMap<TopicPartition, (Epoch, i64)>,
    /// Partitions of which a range is prepared and not decided.
    undecided: HashSet<TopicPartition>,
}

/// The assignments that last, while nobody can begin or end one: see [`Tracker::prepare`].
#[derive(Debug)]
pub struct Lasting<'a>(&'a HashMap<TopicPartition, (Epoch, i64)>);

impl Lasting<'_> {
    /// The partition's assignment, if it has one.
    pub fn epoch(&self, partition: &TopicPartition) -> Option<Epoch> {
        self.0.get(partition).map(|(epoch, _)| *epoch)
    }
}

/// What is left of a partition after one of its ranges was decided, or after a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// No range that is not decided.
    Nothing,
    /// A range that is prepared.
    Prepared,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Tracker {
    assignments: Mutex<Assignments>,
}

impl Tracker {
    fn lock(&self) -> MutexGuard<'_, Assignments> {
        self.assignments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an assignment of the partition that reads on from `next`. An earlier one is over. `None` while a range of the
    /// partition is not decided: then it has no assignment.
    pub fn begin(&self, partition: TopicPartition, next: i64) -> Option<Epoch> {
        let mut assignments = self.lock();
        if assignments.undecided.contains(&partition) {
            assignments.current.remove(&partition);
            return None;
        }
        assignments.last_epoch += 1;
        let epoch = Epoch(assignments.last_epoch);
        assignments.current.insert(partition, (epoch, next));
        Some(epoch)
    }

    /// Ends the partition's assignment: blocks of it that come later are stale.
    pub fn end(&self, partition: &TopicPartition) {
        self.lock().current.remove(partition);
    }

    /// Ends this assignment of the partition, unless it is over already.
    pub fn end_of(&self, partition: &TopicPartition, epoch: Epoch) {
        let mut assignments = self.lock();
        if assignments.current.get(partition).is_some_and(|(current, _)| *current == epoch) {
            assignments.current.remove(partition);
        }
    }

    /// Whether this assignment of the partition is the one that lasts.
    pub fn is_current(&self, partition: &TopicPartition, epoch: Epoch) -> bool {
        self.lock().current.get(partition).is_some_and(|(current, _)| *current == epoch)
    }

    /// Admits the offsets `[from, to)` of an assignment, and calls `record`. When that fails, the partition stands where it
    /// stood.
    pub fn admit<T, E>(
        &self,
        partition: &TopicPartition,
        epoch: Epoch,
        from: i64,
        to: i64,
        record: impl FnOnce() -> Result<T, E>,
    ) -> Result<Result<T, E>, Refusal> {
        {
            let assignments = self.lock();
            let Some((_, next)) = assignments.current.get(partition).filter(|(current, _)| *current == epoch) else {
                return Err(Refusal::Stale);
            };
            if *next != from {
                return Err(Refusal::NotNext { expected: *next });
            }
            if assignments.undecided.contains(partition) {
                return Err(Refusal::Undecided);
            }
        }
        let recorded = record();
        if recorded.is_ok()
            && let Some((current, next)) = self.lock().current.get_mut(partition)
            && *current == epoch
        {
            *next = to;
        }
        Ok(recorded)
    }

    /// Prepares ranges: `choose` sees which assignments last, before anyone can begin or end one, and names the partitions;
    /// `record` puts ranges of them into the journal, and names those that have one. These are not begun again before they are
    /// [decided](Self::decided), and none of the others while `record` is at work.
    pub fn prepare<C, T, E>(
        &self,
        choose: impl FnOnce(&Lasting<'_>) -> (C, Vec<TopicPartition>),
        record: impl FnOnce(C) -> Result<(T, Vec<TopicPartition>), E>,
    ) -> Result<T, E> {
        let (chosen, mut marked) = {
            let mut assignments = self.lock();
            let (chosen, named) = choose(&Lasting(&assignments.current));
            let marked: Vec<_> =
                named.into_iter().filter(|partition| assignments.undecided.insert(partition.clone())).collect();
            (chosen, marked)
        };
        let recorded = record(chosen);
        if let Ok((_, prepared)) = &recorded {
            marked.retain(|partition| !prepared.contains(partition));
        }
        let mut assignments = self.lock();
        for partition in &marked {
            assignments.undecided.remove(partition);
        }
        recorded.map(|(recorded, _)| recorded)
    }

    /// Whether a range of the partition is still not decided, as its journal says it.
    pub fn decided(&self, partition: &TopicPartition, left: Left) {
        let mut assignments = self.lock();
        match left {
            Left::Nothing => assignments.undecided.remove(partition),
            Left::Prepared => assignments.undecided.insert(partition.clone()),
        };
    }

    /// The partitions that are assigned now, in no order.
    pub fn partitions(&self) -> Vec<TopicPartition> {
        self.lock().current.keys().cloned().collect()
    }

    /// How many partitions are assigned now.
    pub fn count(&self) -> usize {
        self.lock().current.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn partition(number: i32) -> TopicPartition {
        TopicPartition { topic: "t".into(), partition: number }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Begin(i32, i64),
        End(i32),
        Prepare(i32),
        Decide(i32),
        Admit { partition: i32, epoch_back: usize, from: i64, length: i64, fails: bool },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..3, 0..5i64).prop_map(|(partition, next)| Step::Begin(partition, next)),
            (0..3).prop_map(Step::End),
            (0..3).prop_map(Step::Prepare),
            (0..3).prop_map(Step::Decide),
            (0..3, 0..3usize, 0..8i64, 0..4i64, any::<bool>()).prop_map(
                |(partition, epoch_back, from, length, fails)| Step::Admit {
                    partition,
                    epoch_back,
                    from,
                    length,
                    fails
                }
            ),
        ]
    }

    #[test]
    fn nobody_waits_for_the_disk_and_nothing_begins_beside_a_range_that_is_being_prepared() {
        let tracker = Tracker::default();
        let [of, other] = [0, 1].map(partition);
        let epoch = tracker.begin(of.clone(), 0).expect("nothing is prepared");
        // As if another thread came meanwhile.
        let admitted = tracker.admit(&of, epoch, 0, 5, || {
            assert!(tracker.assignments.try_lock().is_ok(), "it is at work on the disk");
            tracker.end(&of);
            Ok::<_, ()>(())
        });
        assert_eq!(admitted, Ok(Ok(())), "it was admitted before that");
        assert_eq!(tracker.admit(&of, epoch, 5, 6, || Ok::<_, ()>(())), Err(Refusal::Stale));
        let record = |prepared: Result<Vec<TopicPartition>, ()>| {
            let begun = tracker.begin(of.clone(), 5).expect("nothing is prepared");
            let named = vec![of.clone(), other.clone()];
            let lasts = tracker.prepare(
                |lasting| (lasting.epoch(&of), named),
                |lasts| {
                    assert!(tracker.assignments.try_lock().is_ok(), "it is at work on the disk");
                    tracker.end(&of);
                    assert_eq!((tracker.begin(of.clone(), 5), tracker.begin(other.clone(), 5)), (None, None));
                    prepared.map(|prepared| (lasts, prepared))
                },
            );
            assert_eq!(lasts.unwrap_or(Some(begun)), Some(begun));
            [of.clone(), other.clone()].map(|partition| tracker.begin(partition, 5).is_some())
        };
        assert_eq!(record(Err(())), [true, true], "nothing is prepared");
        assert_eq!(record(Ok(vec![of.clone()])), [false, true]);
    }

    proptest! {
        /// The model keeps, for each partition, every epoch it ever had, the one place where the current one stands, and
        /// whether a range of it is not decided.
        #[test]
        fn only_the_contiguous_prefix_of_the_current_assignment_is_admitted(steps in prop::collection::vec(step(), 0..80)) {
            let tracker = Tracker::default();
            let mut undecided: HashSet<i32> = HashSet::new();
            let mut epochs: HashMap<i32, Vec<Epoch>> = HashMap::new();
            let mut standing: HashMap<i32, i64> = HashMap::new();
            for step in steps {
                match step {
                    Step::Begin(number, next) => {
                        let begun = tracker.begin(partition(number), next);
                        prop_assert_eq!(begun.is_none(), undecided.contains(&number));
                        standing.remove(&number);
                        if let Some(epoch) = begun {
                            epochs.entry(number).or_default().push(epoch);
                            standing.insert(number, next);
                        }
                    }
                    Step::Prepare(number) => {
                        let lasts = tracker.prepare(
                            |lasting| (lasting.epoch(&partition(number)).is_some(), vec![partition(number)]),
                            |lasts| Ok::<_, ()>((lasts, lasts.then(|| partition(number)).into_iter().collect())),
                        );
                        prop_assert_eq!(lasts, Ok(standing.contains_key(&number)));
                        if lasts == Ok(true) {
                            undecided.insert(number);
                        }
                    }
                    Step::Decide(number) => {
                        tracker.decided(&partition(number), Left::Nothing);
                        undecided.remove(&number);
                    }
                    Step::End(number) => {
                        tracker.end(&partition(number));
                        standing.remove(&number);
                    }
                    Step::Admit { partition: number, epoch_back, from, length, fails } => {
                        let Some(epoch) = epochs.get(&number).and_then(|all| all.iter().rev().nth(epoch_back)) else { continue };
                        let outcome = tracker.admit(&partition(number), *epoch, from, from + length, || if fails { Err(()) } else { Ok(()) });
                        let expected = match standing.get(&number) {
                            Some(next) if epoch_back == 0 && *next == from && undecided.contains(&number) => {
                                Err(Refusal::Undecided)
                            }
                            Some(next) if epoch_back == 0 && *next == from => Ok(if fails { Err(()) } else { Ok(()) }),
                            Some(next) if epoch_back == 0 => Err(Refusal::NotNext { expected: *next }),
                            _ => Err(Refusal::Stale),
                        };
                        prop_assert_eq!(outcome, expected);
                        if outcome == Ok(Ok(())) {
                            standing.insert(number, from + length);
                        }
                    }
                }
                prop_assert_eq!(tracker.count(), standing.len());
            }
        }
    }
}
