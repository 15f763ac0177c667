//! Hidden files that a crash left for nobody: what a decision gave up, and what has no line.

use std::io;

use super::{RecoveryError, Work};
use crate::msink::dir::blames_name;
use crate::msink::file::leftover;
use crate::msink::name::hidden;
use crate::msource::journal::{FileState, Frame};

impl Work<'_> {
    /// Removes a hidden file without a line: its partition may be another's by now, and then nobody would ever publish it.
    pub(super) fn remove_empty(&mut self, id: u64) -> Result<(), RecoveryError> {
        let Some(state) = self.state.files.get(&id) else { return Ok(()) };
        let path = state.path();
        let removed = self.dir.open_existing(&path).and_then(|(file, inode)| {
            // Without a note of its creation it is empty, or another process's.
            let ours = if state.inode == 0 { file.metadata()?.len() == 0 } else { inode == state.inode };
            if ours { self.dir.remove(&path) } else { Ok(()) }
        });
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound && !blames_name(&error) => {
                return Err(RecoveryError::File(path, error));
            }
            _ => self.state.apply(&Frame::End { id }),
        }
        Ok(())
    }

    /// Remembers what a decision left to be removed, since a crash may have come before it was.
    pub(super) fn note_leftovers(&mut self, frame: &Frame) {
        let ranges = |number| self.state.seals.get(number).into_iter().flat_map(|seal| &seal.ranges);
        match frame {
            Frame::Refused { seal: None, partition, .. } => {
                let files = self.state.files.values().filter(|file| file.partition().as_ref() == Some(partition));
                self.leftovers.extend(files.map(FileState::path));
            }
            Frame::Refused { seal: Some(number), partition, .. } => {
                let files =
                    ranges(number).filter(|range| range.partition() == Some(partition)).flat_map(|range| &range.files);
                self.leftovers.extend(files.flat_map(|file| [hidden(&file.name), leftover(&file.name)]));
            }
            Frame::Published { number, partition } => {
                let files = ranges(number).filter(|range| range.partition() == partition.as_ref());
                self.leftovers.extend(files.flat_map(|range| &range.files).map(|file| leftover(&file.name)));
            }
            _ => {}
        }
    }

    pub(super) fn remove_leftovers(&self) -> Result<(), RecoveryError> {
        let remove = |path: &String| self.dir.remove(path).map_err(|error| RecoveryError::File(path.clone(), error));
        self.leftovers.iter().try_for_each(remove)
    }
}
