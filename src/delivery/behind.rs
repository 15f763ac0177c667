//! What the journal has of the failure queue, and a store that is behind it has not.

use std::collections::BTreeMap;

use crate::msource::journal::{BlockSource, Frame, QueueEntry};
use crate::msource::store::StoreChange;

/// The queue entries and removals of numbered frames above `number`, for a store that is behind the journal.
pub fn queue_changes(frames: impl IntoIterator<Item = Frame>, number: u64, change: &mut StoreChange) {
    let mut entries: BTreeMap<u64, Option<QueueEntry>> = BTreeMap::new();
    for frame in frames {
        match frame {
            Frame::Block(block) if block.number > number => {
                // The block before it has taken them, and may have put some back.
                if let (BlockSource::Queue(taken), false) = (&block.source, block.is_rest()) {
                    entries.extend(taken.iter().map(|(key, _)| (*key, None)));
                }
                entries.extend(block.rejects.into_iter().map(|(key, entry)| (key, Some(entry))));
            }
            Frame::Queue(removal) if removal.number > number => {
                entries.extend(removal.removed.iter().map(|(key, _)| (*key, None)));
            }
            Frame::Refused { number: of, removed, .. } if of > number => {
                entries.extend(removed.iter().map(|(key, _)| (*key, None)));
            }
            _ => {}
        }
    }
    for (key, entry) in entries {
        match entry {
            Some(entry) => change.insert.push((key, entry)),
            None => change.remove.push(key),
        }
    }
}
