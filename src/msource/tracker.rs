//! The tracker: which partitions are ours, since which assignment, and up to where they are written.
//!
//! **Promise.** A block is admitted only if its assignment is still the partition's current one and it begins exactly
//! where the partition stands. So the offsets of a partition are a contiguous prefix of what was read, whatever order the
//! workers finished in, and work of an assignment that is over never moves an offset.
//!
//! The thread that reads begins and ends assignments; the thread that writes admits. Both go through one lock, and an
//! admission holds it until its block is in the journal.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::TopicPartition;

/// Tells the assignments of a partition apart; never used twice in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(u64);

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
}

#[derive(Debug, Default)]
struct Assignments {
    last_epoch: u64,
    current: HashMap<TopicPartition, (Epoch, i64)>,
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

    /// Begins an assignment of the partition that reads on from `next`. An earlier one is over.
    pub fn begin(&self, partition: TopicPartition, next: i64) -> Epoch {
        let mut assignments = self.lock();
        assignments.last_epoch += 1;
        let epoch = Epoch(assignments.last_epoch);
        assignments.current.insert(partition, (epoch, next));
        epoch
    }

    /// Ends the partition's assignment: blocks of it that come later are stale.
    pub fn end(&self, partition: &TopicPartition) {
        self.lock().current.remove(partition);
    }

    /// Whether this assignment of the partition is the one that lasts.
    pub fn is_current(&self, partition: &TopicPartition, epoch: Epoch) -> bool {
        self.lock().current.get(partition).is_some_and(|(current, _)| *current == epoch)
    }

    /// Admits the offsets `[from, to)` of an assignment, and calls `record` before anyone else can begin or end one. When
    /// `record` fails, the partition stands where it stood.
    pub fn admit<T, E>(
        &self,
        partition: &TopicPartition,
        epoch: Epoch,
        from: i64,
        to: i64,
        record: impl FnOnce() -> Result<T, E>,
    ) -> Result<Result<T, E>, Refusal> {
        let mut assignments = self.lock();
        let Some((_, next)) = assignments.current.get_mut(partition).filter(|(current, _)| *current == epoch) else {
            return Err(Refusal::Stale);
        };
        if *next != from {
            return Err(Refusal::NotNext { expected: *next });
        }
        let recorded = record();
        if recorded.is_ok() {
            *next = to;
        }
        Ok(recorded)
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
        Admit { partition: i32, epoch_back: usize, from: i64, length: i64, fails: bool },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..3, 0..5i64).prop_map(|(partition, next)| Step::Begin(partition, next)),
            (0..3).prop_map(Step::End),
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

    proptest! {
        /// The model keeps, for each partition, every epoch it ever had and the one place where the current one stands.
        #[test]
        fn only_the_contiguous_prefix_of_the_current_assignment_is_admitted(steps in prop::collection::vec(step(), 0..80)) {
            let tracker = Tracker::default();
            let mut epochs: HashMap<i32, Vec<Epoch>> = HashMap::new();
            let mut standing: HashMap<i32, i64> = HashMap::new();
            for step in steps {
                match step {
                    Step::Begin(number, next) => {
                        epochs.entry(number).or_default().push(tracker.begin(partition(number), next));
                        standing.insert(number, next);
                    }
                    Step::End(number) => {
                        tracker.end(&partition(number));
                        standing.remove(&number);
                    }
                    Step::Admit { partition: number, epoch_back, from, length, fails } => {
                        let Some(epoch) = epochs.get(&number).and_then(|all| all.iter().rev().nth(epoch_back)) else { continue };
                        let outcome = tracker.admit(&partition(number), *epoch, from, from + length, || if fails { Err(()) } else { Ok(()) });
                        let expected = match standing.get(&number) {
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
