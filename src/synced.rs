//! A file that several threads sync.
//!
//! **Why.** The system reports a failed write-back once for each open file. Of two threads that sync the same one, the second would
//! succeed although what both wait for may be gone.
//!
//! **Promise.** Once a sync of the file has failed, every later one fails too. Whoever is told of a success can rely on it,
//! whichever other thread was told of a failure before. What was lost must be written again to the file as it is opened next.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Mutex, PoisonError};

/// See the module.
#[derive(Debug)]
pub struct SyncedFile {
    file: File,
    /// The first error of a sync. Held during each, so that no other one begins between a failure and its note.
    failed: Mutex<Option<(io::ErrorKind, String)>>,
}

impl SyncedFile {
    /// A file that was just opened.
    pub fn new(file: File) -> Self {
        Self { file, failed: Mutex::default() }
    }

    /// Makes what was written durable, and as much of the metadata as is needed to read it.
    pub fn sync_data(&self) -> io::Result<()> {
        self.sync(File::sync_data)
    }

    /// Makes what was written durable with all metadata.
    pub fn sync_all(&self) -> io::Result<()> {
        self.sync(File::sync_all)
    }

    fn sync(&self, sync: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((kind, error)) = &*failed {
            return Err(io::Error::new(*kind, format!("an earlier sync failed: {error}")));
        }
        sync(&self.file).inspect_err(|error| *failed = Some((error.kind(), error.to_string())))
    }

    /// Writes some of the bytes at a position; returns how many.
    pub fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<usize> {
        self.file.write_at(bytes, position)
    }

    /// Writes all of the bytes at a position.
    pub fn write_all_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, position)
    }

    /// What the system knows of the file.
    pub fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_that_failed_fails_for_ever() {
        let file = SyncedFile::new(tempfile::tempfile().unwrap());
        file.sync_data().unwrap();
        let failing = |_: &File| Err(io::Error::from_raw_os_error(nix::libc::EIO));
        file.sync(failing).unwrap_err();
        for error in [file.sync_data(), file.sync_all()] {
            assert!(error.unwrap_err().to_string().starts_with("an earlier sync failed: "));
        }
    }
}
