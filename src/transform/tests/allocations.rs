//! Counts what the allocator is asked for by the thread of a test.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use super::{Options, Scratch, Settings, Transform, options, record};

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, with a count.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

#[expect(unsafe_code, reason = "an allocator is an unsafe trait; every call goes to the system's with what came in")]
// SAFETY: `System` keeps the contract, and counting touches no memory of its own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract, which is that of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; the pointer came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: as above; the pointer came from `System`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[test]
fn nothing_is_allocated_for_a_record_of_a_known_kind() {
    let value = include_bytes!("../../../tests/golden/transform/golden_record/records.jsonl");
    let transform = Transform::new(&Settings::default(), Options { uuid: true, ..options() });
    let (mut scratch, mut out) = (Scratch::default(), Vec::with_capacity(1 << 16));
    transform.apply(&mut scratch, &record(value), &mut out).unwrap();
    let before = COUNT.get();
    assert!(before > 0, "the allocator is not counted");
    for _ in 0..10 {
        transform.apply(&mut scratch, &record(value), &mut out).unwrap();
    }
    assert_eq!(COUNT.get(), before);
}
