//! The failure queue of another home moves into ours.

use std::collections::HashSet;
use std::sync::Arc;

use crossbeam_channel::bounded;

use super::super::broken::failed;
use super::super::pipeline::Pipeline;
use super::super::queue::{RETRY_BLOCK, RETRY_BYTES, stopping};
use super::taken::{Fate, Taken};
use crate::block::{DoneBlock, Place, Rejected, Source};
use crate::control::Failure;
use crate::delivery::Inbox;
use crate::fault;
use crate::msource::TopicPartition;
use crate::msource::journal::{QueueCause, QueueEntry};
use crate::msource::store::Walk;

/// How many entries of a failure queue moved, and what became of the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moved {
    /// They came into ours.
    pub(super) entries: u64,
    /// They were here already.
    pub(super) known: u64,
    /// They stay where they are: whether they were here nobody can tell.
    pub(super) left: u64,
}

/// Moves every entry, in order of arrival.
///
/// What is here is durable before it goes there, and with it how far their queue was taken over. So a repetition after an
/// interruption takes none twice, whatever became of the entries here meanwhile. What we read again ourselves after a takeover is
/// here, too.
pub(super) fn take(ours: &Pipeline, theirs: &Pipeline, progress: &dyn Fn(&str)) -> Result<Moved, Failure> {
    let (_here, _there) = (ours.turn(0, progress)?, theirs.turn(0, progress)?);
    let mut known = HashSet::new();
    ours.entries(0, &mut |_, entry| {
        known.insert(identity(&entry));
        Walk::On
    })?;
    let taken = Taken::of(&ours.gauges.durable().state.adopted, (&theirs.home.0, theirs.home.1));
    let (mut next, mut moved) = (0, Moved::default());
    loop {
        let (mut fresh, mut removed, mut bytes, mut last) = (Vec::new(), Vec::new(), 0, None);
        theirs.entries(next, &mut |key, entry| {
            last = Some(key);
            let size = entry.size();
            let is_here = taken.fate(key) == Fate::Taken || known.contains(&identity(&entry));
            if !is_here && taken.fate(key) == Fate::Doubtful {
                moved.left += 1;
                return Walk::On;
            }
            removed.push((key, size));
            if !is_here {
                known.insert(identity(&entry));
                bytes += size;
                fresh.push(entry);
            }
            if removed.len() >= RETRY_BLOCK || bytes >= RETRY_BYTES { Walk::Stop } else { Walk::On }
        })?;
        let Some(last) = last else { break };
        next = last + 1;
        moved.entries += fresh.len() as u64;
        moved.known += (removed.len() - fresh.len()) as u64;
        if let Some(note) = taken.note(next) {
            add(ours, note, fresh, progress)?;
        }
        fault::point("adopt.added");
        if !removed.is_empty() {
            remove(theirs, removed, progress)?;
        }
        fault::point("adopt.removed");
        progress(&format!("{} entries of the failure queue moved", moved.entries));
    }
    let Moved { entries, known, left } = moved;
    tracing::info!(entries, known, "took the failure queue over");
    if left > 0 {
        tracing::error!(
            left,
            "entries stay in the failure queue of the adopted home: entries of another copy of it were taken over under their numbers, and may be the same"
        );
    }
    Ok(moved)
}

/// A topic that was created again has other records under the same offsets.
fn identity(entry: &QueueEntry) -> (TopicPartition, String, i64) {
    (entry.partition.clone(), entry.topic_id.clone(), entry.offset)
}

/// Adds entries as they are, and notes how far that queue was taken over; see [`Taken::note`]. None is also noted, since what was here
/// already may be a line before they have removed it. Durable when this returns.
fn add(
    ours: &Pipeline,
    (note, upto): (&str, u64),
    entries: Vec<QueueEntry>,
    progress: &dyn Fn(&str),
) -> Result<(), Failure> {
    let records = entries.len() as u64;
    ours.gauges.retried(records);
    let block = DoneBlock {
        place: Place::of(ours.tickets.take()),
        is_last: true,
        source: Source::Adopted { home: note.to_owned(), upto },
        recipe: Arc::clone(&ours.desk.engine().fingerprint),
        pieces: Vec::new(),
        records,
        filtered: [0; 3],
        rejects: entries.into_iter().map(|entry| Rejected { key: None, entry }).collect(),
        cost: 0,
    };
    ours.inbox.send(block.into()).map_err(|_| stopping())?;
    ours.barrier(progress)
}

fn remove(theirs: &Pipeline, removed: Vec<(u64, u64)>, progress: &dyn Fn(&str)) -> Result<(), Failure> {
    let (reply, answered) = bounded(1);
    let removal = Inbox::Queue { removed, cause: QueueCause::Adopted, reply };
    theirs.inbox.send(removal).map_err(failed)?;
    theirs.wait(&answered, progress)
}
