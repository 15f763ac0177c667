//! Many cases of one test. Most of their time they wait, so they run beside each other.

use std::any::Any;
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

/// Runs every case, so many at a time.
///
/// # Panics
/// When all have ended, with each that failed and its message: the end of a test's output is what is seen first,
/// and may be all that is kept.
pub(crate) fn for_each<T: Debug + Sync>(at_once: usize, cases: &[T], run: impl Fn(&T) + Sync) {
    assert!(!cases.is_empty(), "there are cases");
    let (next, failed) = (Mutex::new(cases.iter()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..at_once.min(cases.len()) {
            scope.spawn(|| {
                while let Some(case) = { next.lock().unwrap_or_else(PoisonError::into_inner).next() } {
                    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(case))) {
                        let told = format!("{case:?}: {}", message(&*panic));
                        failed.lock().unwrap_or_else(PoisonError::into_inner).push(told);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    assert!(failed.is_empty(), "{} of {} cases failed:\n{}", failed.len(), cases.len(), failed.join("\n"));
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "2 of 5 cases failed:\n1: no odd number\n3: no odd number")]
    fn all_that_fail_are_told() {
        for_each(1, &[0, 1, 2, 3, 4], |case| assert!(case % 2 == 0, "no odd number"));
    }
}
