//! What can be read of a damaged store.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};

use super::{SledStore, Store, StoreError, Walk};
use crate::msource::journal::{QueueEntry, State};
use crate::panics;

/// What [`salvage`] finds.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all of them are entries")]
pub enum Found {
    /// The state, if it can be read: first of all.
    State(Option<State>),
    /// An entry; in the order of their keys.
    Entry(u64, QueueEntry),
}

/// How long a damaged store is waited for that gives nothing.
const SALVAGE_PATIENCE: Duration = Duration::from_secs(20);

/// Failures after which no more is looked for.
const SALVAGE_FAILURES: u32 = 1000;

/// Reads what can be read of a damaged store, until `each` says to stop. sled may panic or hang over it, so it works on a
/// thread of its own, which is left alone when it gives nothing any more.
pub fn salvage(path: &Path, mut each: impl FnMut(Found) -> Result<Walk, StoreError>) -> Result<(), StoreError> {
    let (found, finds) = bounded(1000);
    let path = path.to_owned();
    let left_alone = Arc::new(AtomicBool::new(false));
    let is_over = Arc::clone(&left_alone);
    let read = move || {
        let store = open_damaged(&path, &is_over);
        let state = store.as_ref().and_then(|store| store.state().ok().flatten());
        if found.send(Found::State(state)).is_ok()
            && let Some(store) = store
        {
            store.send_readable(&found);
        }
    };
    let spawned = thread::Builder::new().name("salvage".into()).spawn(move || drop(panics::contain(read)));
    spawned.map_err(|error| StoreError::Io(PathBuf::from("a thread"), error))?;
    let mut walk = Ok(Walk::On);
    while let (Ok(Walk::On), Ok(found)) = (&walk, finds.recv_timeout(SALVAGE_PATIENCE)) {
        walk = each(found);
    }
    left_alone.store(true, Ordering::Relaxed);
    walk?;
    Ok(())
}

/// Opens a damaged store, at last without what sled can make again from its log.
fn open_damaged(path: &Path, is_over: &AtomicBool) -> Option<SledStore> {
    for without in [None, Some("snap."), Some("conf")] {
        // Another store may be there by now.
        if is_over.load(Ordering::Relaxed) {
            return None;
        }
        if let Some(prefix) = without {
            for entry in fs::read_dir(path).ok()?.flatten() {
                if entry.file_name().to_string_lossy().starts_with(prefix) {
                    let mut aside = std::ffi::OsString::from("damaged-");
                    aside.push(entry.file_name());
                    fs::rename(entry.path(), path.join(aside)).ok()?;
                }
            }
        }
        if let Ok(store) = SledStore::open(path, Duration::ZERO) {
            return Some(store);
        }
    }
    None
}

impl SledStore {
    /// Sends every entry that can be read. Where reading fails it goes on ever further behind, and then looks for the first
    /// readable entry before that.
    fn send_readable(&self, found: &Sender<Found>) {
        let (mut from, mut step) = (0_u64, 0_u64);
        for _ in 0..SALVAGE_FAILURES {
            if step > 0 && self.is_readable(from) {
                let mut bad = from - step;
                while from - bad > 1 {
                    let middle = bad + (from - bad) / 2;
                    *(if self.is_readable(middle) { &mut from } else { &mut bad }) = middle;
                }
                step = 0;
            }
            let mut next = from;
            let read = self.entries(from, &mut |key, entry| {
                next = key.saturating_add(1);
                if found.send(Found::Entry(key, entry)).is_ok() { Walk::On } else { Walk::Stop }
            });
            if read.is_ok() {
                return;
            }
            step = if next > from { 1 } else { (step * 2).max(1) };
            let Some(behind) = next.checked_add(step) else { return };
            from = behind;
        }
    }

    fn is_readable(&self, key: u64) -> bool {
        self.entries(key, &mut |_, _| Walk::Stop).is_ok()
    }
}
