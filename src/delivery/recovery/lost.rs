//! Lines that recovery cannot bring back, and how they count.

use super::{RecoveryError, Trust, Work};
use crate::config::Visibility;
use crate::msource::journal::{Block, BlockSource, FileState};

impl Work<'_> {
    /// Lines of a block are gone for good.
    pub(super) fn lose(&mut self, block: &mut Block, lost: u64, is_rest: bool) {
        let totals = &mut self.state.totals;
        totals.gaps += lost;
        block.records = block.records.saturating_sub(lost);
        if is_rest {
            // They were counted with the block before it.
            totals.written = totals.written.saturating_sub(lost);
            let taken = match block.source {
                BlockSource::Offsets { .. } => &mut totals.consumed,
                BlockSource::Queue(_) | BlockSource::Adopted { .. } => &mut totals.retried,
            };
            *taken = taken.saturating_sub(lost);
        }
    }

    /// The lines of the block that was being written may not have been in a file that is gone by now: they count as lost.
    pub(super) fn give_up_unwritten(&mut self, block: &mut Block) -> Result<(), RecoveryError> {
        if !self.tail.may_be_unwritten(block) || self.trust == Trust::Outdated {
            return Ok(());
        }
        let (is_rest, mut lost) = (block.is_rest(), 0);
        for piece in &mut block.pieces {
            if !self.tail.has_moved(block.number, piece.file) && self.file(piece.file)?.is_none() {
                lost += std::mem::take(&mut piece.lines);
            }
        }
        self.lose(block, lost, is_rest);
        if lost > 0 {
            tell_lost(&block.source, lost, "their file was removed or replaced, and they may not have been in it");
        }
        Ok(())
    }

    /// The lines of a hidden file of retries that is gone: nobody has seen them, and their entries have left the failure queue.
    pub(super) fn lose_retries(&mut self, id: u64) {
        let is_hidden = |file: &&FileState| file.key.retries && file.visibility == Visibility::Sealed;
        let Some(file) = self.state.files.get(&id).filter(is_hidden) else { return };
        let (name, lost) = (file.path(), file.lines);
        if lost == 0 || self.trust != Trust::Own {
            return;
        }
        let totals = &mut self.state.totals;
        totals.gaps += lost;
        totals.written = totals.written.saturating_sub(lost);
        totals.retried = totals.retried.saturating_sub(lost);
        tracing::error!(file = name, lost, "lines of the failure queue are gone with their hidden file");
    }
}

/// The last so many lines.
pub(super) fn last_lines(lines: &[u8], count: u64) -> &[u8] {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let begin = memchr::memrchr_iter(b'\n', lines).nth(count).map_or(0, |before| before + 1);
    &lines[begin..]
}

pub(super) fn tell_lost(source: &BlockSource, lost: u64, reason: &str) {
    match source {
        BlockSource::Offsets { from, to } => {
            tracing::error!(partition = %to.partition, from, to = to.next, lost, reason, "a gap: records that a crash cut short cannot be read again");
        }
        BlockSource::Queue(_) | BlockSource::Adopted { .. } => {
            tracing::error!(lost, reason, "entries of the failure queue that a crash cut short are gone");
        }
    }
}
