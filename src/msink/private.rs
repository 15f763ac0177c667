//! What lies in the directory of the event directory that is ours alone: small files about the home that works there.
//!
//! They are open only while they are read or written, so that they keep no disk from being made read-only.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, fsync, unlinkat};

const FLAGS: OFlag = OFlag::O_NOFOLLOW.union(OFlag::O_NONBLOCK).union(OFlag::O_CLOEXEC);

/// See the module.
#[derive(Debug)]
pub struct Private {
    dir: File,
    /// The event directory.
    above: File,
}

/// The files of whatever event directory is held by now: another thread than the one that holds it writes to them.
#[derive(Clone, Debug, Default)]
pub struct Current(Arc<Mutex<Option<Private>>>);

impl Current {
    /// Another directory is held.
    pub(super) fn set(&self, private: io::Result<Private>) {
        // The one that is held no more is not kept busy either.
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = private.ok();
    }

    /// Works on them. Fails where they could not be opened.
    pub fn with<T>(&self, work: impl FnOnce(&Private) -> io::Result<T>) -> io::Result<T> {
        let private = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        private.as_ref().map_or_else(|| Err(io::ErrorKind::NotFound.into()), work)
    }
}

impl Private {
    /// The files in this directory. It must be a descriptor of its own: a copy of one that is locked would share the lock.
    pub(super) fn new(dir: File, above: File) -> Self {
        Self { dir, above }
    }

    fn open(&self, name: &str, flags: OFlag) -> io::Result<File> {
        let file = File::from(openat(&self.dir, name, FLAGS | flags, Mode::from_bits_truncate(0o600))?);
        if file.metadata()?.is_file() {
            return Ok(file);
        }
        Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name} is no regular file")))
    }

    /// Makes a file, if it is not there, with its name durable.
    pub fn make(&self, name: &str) -> io::Result<()> {
        self.open(name, OFlag::O_RDWR | OFlag::O_CREAT)?;
        self.sync_names()
    }

    /// Writes over the beginning of a file, without a sync.
    pub fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.open(name, OFlag::O_RDWR | OFlag::O_CREAT)?.write_all_at(bytes, 0)
    }

    /// Makes what was written durable.
    pub fn sync(&self, name: &str) -> io::Result<()> {
        self.open(name, OFlag::O_RDWR)?.sync_all()
    }

    /// Reads a file; `None` when there is none.
    pub fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        match self.open(name, OFlag::O_RDONLY) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?.read_to_end(&mut bytes)?,
        };
        Ok(Some(bytes))
    }

    /// Makes a file what it is to be, durably: whatever happens, it is as it was or as it is to be.
    pub fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let new = format!("{name}.new");
        let mut file = self.open(&new, OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_TRUNC)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        renameat(&self.dir, new.as_str(), &self.dir, name)?;
        self.sync_names()
    }

    fn sync_names(&self) -> io::Result<()> {
        fsync(&self.dir)?;
        Ok(fsync(&self.above)?)
    }

    /// Removes a file; one that is not there is fine.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match unlinkat(&self.dir, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::ENOENT) => Ok(()),
            removed => Ok(removed?),
        }
    }
}
