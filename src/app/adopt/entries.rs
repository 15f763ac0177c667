//! The failure queue of another home moves into ours.

use std::collections::HashSet;
use std::sync::Arc;

use crossbeam_channel::bounded;

use super::super::broken::failed;
use super::super::pipeline::Pipeline;
use super::super::queue::{RETRY_BLOCK, RETRY_BYTES, stopping};
use crate::block::{DoneBlock, Place, Rejected, Source};
use crate::control::Failure;
use crate::delivery::Inbox;
use crate::fault;
use crate::msource::TopicPartition;
use crate::msource::journal::{QueueCause, QueueEntry};
use crate::msource::store::Walk;

/// Moves every entry, in order of arrival; returns how many came, and how many were here already.
///
/// What is here is durable before it goes there, and with it how far their queue was taken over. So a repetition after an
/// interruption takes none twice, whatever became of the entries here meanwhile. What we read again ourselves after a takeover is
/// here, too.
pub(super) fn take(ours: &Pipeline, theirs: &Pipeline, progress: &dyn Fn(&str)) -> Result<(u64, u64), Failure> {
    let (_here, _there) = (ours.turn(0, progress)?, theirs.turn(0, progress)?);
    let mut known = HashSet::new();
    ours.entries(0, &mut |_, entry| {
        known.insert(identity(&entry));
        Walk::On
    })?;
    let home = &theirs.home.0;
    let taken = ours.gauges.durable().state.adopted.get(home).copied().unwrap_or(0);
    let (mut from, mut moved, mut seen) = (0, 0, 0);
    loop {
        let (mut fresh, mut removed, mut bytes) = (Vec::new(), Vec::new(), 0);
        theirs.entries(from, &mut |key, entry| {
            removed.push((key, entry.size()));
            if key >= taken && known.insert(identity(&entry)) {
                bytes += entry.size();
                fresh.push(entry);
            }
            if removed.len() >= RETRY_BLOCK || bytes >= RETRY_BYTES { Walk::Stop } else { Walk::On }
        })?;
        let Some((last, _)) = removed.last() else { break };
        from = last + 1;
        moved += fresh.len() as u64;
        seen += (removed.len() - fresh.len()) as u64;
        if from > taken {
            add(ours, (home, from), fresh, progress)?;
        }
        fault::point("adopt.added");
        remove(theirs, removed, progress)?;
        fault::point("adopt.removed");
        progress(&format!("{moved} entries of the failure queue moved"));
    }
    tracing::info!(moved, known = seen, "took the failure queue over");
    Ok((moved, seen))
}

/// A topic that was created anew has other records under the same offsets.
fn identity(entry: &QueueEntry) -> (TopicPartition, String, i64) {
    (entry.partition.clone(), entry.topic_id.clone(), entry.offset)
}

/// Adds entries as they are, and notes that those of that home below `upto` are here: none is also noted, since what was here
/// already may be a line before they have removed it. Durable when this returns.
fn add(
    ours: &Pipeline,
    (home, upto): (&str, u64),
    entries: Vec<QueueEntry>,
    progress: &dyn Fn(&str),
) -> Result<(), Failure> {
    let records = entries.len() as u64;
    ours.gauges.retried(records);
    let block = DoneBlock {
        place: Place::of(ours.tickets.take()),
        is_last: true,
        source: Source::Adopted { home: home.to_owned(), upto },
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
