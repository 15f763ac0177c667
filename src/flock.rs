//! Advisory locks (`flock`) on files and directories that only their owner can open.
//!
//! **Promise.** A lock ends with [`Flock`], or with the process however that ends. It is given up by `LOCK_UN` and not by
//! closing alone: a child that another thread forks has a copy of every descriptor until it calls `exec`, and would keep
//! the lock that long.
//!
//! **Not promised.** A process that is killed just after such a fork keeps its locks until the child has called `exec`. So
//! whoever wants one tries for a while: see [`PATIENCE`].
//!
//! **What to lock.** Whoever may open a file may lock it, read-only or not. So nothing is locked that a group may read:
//! a file of mode 0600, or a directory of mode 0700.

use std::fs::{File, TryLockError};
use std::io;
use std::time::{Duration, Instant};

/// How long a lock is tried for that nobody should have.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// Interval between two attempts.
pub const PACE: Duration = Duration::from_millis(20);

/// A lock, as long as it lives.
#[derive(Debug)]
pub struct Flock(File);

impl Flock {
    /// The lock of a file, for us alone; `None` while another process has it.
    pub fn exclusive(file: &File) -> io::Result<Option<Self>> {
        Self::of(file, File::try_lock)
    }

    /// The lock of a file beside others that have it shared; `None` while another process has it for itself.
    pub fn shared(file: &File) -> io::Result<Option<Self>> {
        Self::of(file, File::try_lock_shared)
    }

    /// The lock of a file, for us alone, when it is free within `patience`.
    pub fn exclusive_within(file: &File, patience: Duration) -> io::Result<Option<Self>> {
        let deadline = Instant::now() + patience;
        loop {
            let taken = Self::exclusive(file)?;
            if taken.is_some() || Instant::now() >= deadline {
                return Ok(taken);
            }
            std::thread::sleep(PACE);
        }
    }

    fn of(file: &File, take: impl FnOnce(&File) -> Result<(), TryLockError>) -> io::Result<Option<Self>> {
        let file = file.try_clone()?;
        match take(&file) {
            Ok(()) => Ok(Some(Self(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// The file that is locked.
    pub fn file(&self) -> &File {
        &self.0
    }
}

impl Drop for Flock {
    fn drop(&mut self) {
        // Closing does the same, unless a child has a copy.
        drop(self.0.unlock());
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_lock_ends_with_its_owner_although_a_child_has_a_copy_of_the_descriptor() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("lock");
        let open = || File::options().create(true).truncate(false).write(true).open(&path).unwrap();
        let held = Flock::exclusive(&open()).unwrap().expect("it is free");
        // A child between fork and exec has the descriptor; this one has it for longer, as its standard input.
        let copy = held.file().try_clone().unwrap();
        assert!(copy.as_raw_fd() > 2);
        let mut child = Command::new("sleep").arg("600").stdin(Stdio::from(copy)).spawn().unwrap();
        assert!(Flock::exclusive(&open()).unwrap().is_none());
        drop(held);
        assert!(Flock::exclusive(&open()).unwrap().is_some(), "the child has it still");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn those_who_share_a_lock_keep_out_who_wants_it_alone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::open(file.path()).unwrap();
        let one = Flock::shared(&open()).unwrap().expect("it is free");
        let other = Flock::shared(&open()).unwrap().expect("it is shared");
        assert!(Flock::exclusive(&open()).unwrap().is_none());
        drop(one);
        assert!(Flock::exclusive_within(&open(), Duration::from_millis(50)).unwrap().is_none());
        drop(other);
        let alone = Flock::exclusive_within(&open(), PATIENCE).unwrap().expect("it is free");
        assert!(Flock::shared(&open()).unwrap().is_none());
        drop(alone);
    }
}
