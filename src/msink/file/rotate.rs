//! Rotation: which files get no further lines, and why.
//!
//! **Promise.** A live file is finished as soon as it is due and a line comes for it, or a timer calls; its end is in the
//! [`Ledger`] before the file is let go, and its last lines are still synced. Hidden files are only judged here: all of a
//! partition are taken out together (`hidden`).
//!
//! **How it fails.** With the ledger's error; the file goes on then.

use std::io;

use super::{Active, FileSink, Ledger, Now, foreign};
use crate::config::Visibility;
use crate::fault;
use crate::msink::FileKey;

/// Why a file was finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RotateReason {
    /// It reached `rotate.size`.
    Size,
    /// It reached `rotate.age`.
    Age,
    /// It got no line for `rotate.idle`.
    Idle,
    /// The template gives another name by now.
    Name,
    /// The service stops.
    Stop,
    /// It is gone, or not as it was left: another process touched it.
    Foreign,
    /// The group takes the partition of a hidden file back.
    Revoke,
}

impl RotateReason {
    /// Every reason, in the order of their indices.
    pub const ALL: [Self; 7] = [Self::Size, Self::Age, Self::Idle, Self::Name, Self::Stop, Self::Foreign, Self::Revoke];

    /// The name used in logs and counters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Size => "size",
            Self::Age => "age",
            Self::Idle => "idle",
            Self::Name => "name",
            Self::Stop => "stop",
            Self::Foreign => "foreign",
            Self::Revoke => "revoke",
        }
    }
}

impl FileSink {
    /// Whether a file of this length is to be finished.
    pub fn is_over(&self, length: u64) -> bool {
        length >= self.rotate.size
    }

    /// Finishes every file that is due.
    pub fn rotate_due(&mut self, now: Now, ledger: &mut dyn Ledger) -> io::Result<()> {
        self.limit.recover(now.tick);
        if self.visibility == Visibility::Sealed {
            return Ok(());
        }
        let due: Vec<_> =
            self.active.iter().filter_map(|(key, active)| Some((key.clone(), self.due(active, key, now)?))).collect();
        due.into_iter().try_for_each(|(key, reason)| self.finish(&key, reason, ledger))
    }

    /// Finishes every file.
    pub fn finish_all(&mut self, reason: RotateReason, ledger: &mut dyn Ledger) -> io::Result<()> {
        let keys: Vec<_> = self.active.keys().cloned().collect();
        keys.into_iter().try_for_each(|key| self.finish(&key, reason, ledger))
    }

    pub(super) fn due(&self, active: &Active, key: &FileKey, now: Now) -> Option<RotateReason> {
        if active.length == 0 {
            return None;
        }
        let age = u64::try_from(now.wall - active.opened - active.took).unwrap_or(0);
        if self.visibility == Visibility::Live && active.is_foreign() {
            foreign(&active.path);
            Some(RotateReason::Foreign)
        } else if active.length >= self.rotate.size {
            Some(RotateReason::Size)
        } else if self.template.stem(key, now.wall) != active.stem {
            Some(RotateReason::Name)
        } else if age >= self.rotate.age.as_secs().max(1) {
            Some(RotateReason::Age)
        } else if now.tick.duration_since(active.last_line) >= self.rotate.idle {
            Some(RotateReason::Idle)
        } else {
            None
        }
    }

    pub(super) fn finish(&mut self, key: &FileKey, reason: RotateReason, ledger: &mut dyn Ledger) -> io::Result<()> {
        let Some(active) = self.active.get(key) else { return Ok(()) };
        ledger.end(active.id)?;
        fault::point("file.ended");
        tracing::info!(file = active.path, bytes = active.length, reason = reason.name(), "finished a file");
        self.rotated[reason as usize] += 1;
        // Nothing of a removed file is to be synced, and its room is free only when nobody has it open.
        if let Some(active) = self.forget(key)
            && active.dirty
            && !active.is_removed()
        {
            self.unsynced.extend(active.file);
        }
        Ok(())
    }
}
