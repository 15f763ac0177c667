//! The event directory: the only way to files below `sink.dir`.
//!
//! Promises: one owner at a time, by a `flock` on the directory [`PRIVATE`] in it. That is a directory, so that no file is
//! there for a collector's glob to find, and nobody but its owner can open it: who may only read the event files cannot
//! keep us from them. The lock ends with the process however it ends. Every path is walked one component at a time from the
//! held directory, no symbolic link is followed (the directory itself may be one), and `..` is refused: nothing outside
//! is ever opened, created or removed. A file that was created is there after a power cut, with every directory on the
//! way to it. Files get exactly the mode asked for, whatever the umask; directories made here get 0750.
//!
//! When the directory itself is removed, renamed or covered by a mount, every operation fails until [`EventDir::reopen`]
//! finds one at the path again; it never makes a new one, since behind a missing mount lies another disk.
//!
//! It does not write, sync the contents of files, or know names that were used before. A lock on a directory says nothing about the
//! directories in it: two homes, one inside the other's `sink.dir`, are not noticed.
//!
//! How it fails: with the system's error. [`blames_name`] tells what is wrong with one name from what is wrong with the
//! disk. A name that is taken is [`io::ErrorKind::AlreadyExists`].

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, renameat, renameat2};
use nix::sys::stat::{Mode, fchmod, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, fsync, geteuid, linkat, unlinkat};

use crate::durable::create_dirs;
use crate::flock::{self, Flock};
use crate::msink::private::{Current, Private};

/// Mode of directories that are made here.
const DIRECTORY_MODE: u32 = 0o750;

/// The directory in the event directory that is ours alone: its lock says whose the event directory is.
pub const PRIVATE: &str = ".mtga";
const PRIVATE_MODE: u32 = 0o700;
const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);
const EVENT_FILE: OFlag = OFlag::O_RDWR.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// The event directory, open and locked. Dropping it gives it free.
#[derive(Debug)]
pub struct EventDir {
    path: PathBuf,
    root: File,
    /// The lock of [`PRIVATE`].
    held: Mutex<Flock>,
    /// The files in it, for those who do not hold this.
    current: Current,
}

/// What to do about directories on the way to a file that are not there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Make,
    Fail,
}

impl EventDir {
    /// Opens and locks the directory; makes it, and those above it, if it is not there. A directory that another owner
    /// holds is [`io::ErrorKind::ResourceBusy`].
    pub fn open(path: &Path) -> io::Result<Self> {
        let make = || {
            create_dirs(path)?
                .iter()
                .try_for_each(|made| fs::set_permissions(made, Permissions::from_mode(DIRECTORY_MODE)))
        };
        make().map_err(|error| about(path, "create", &error))?;
        Self::open_present(path)
    }

    /// Opens and locks a directory that must be there: one that was in use and is gone may be a mount that is missing.
    pub fn open_present(path: &Path) -> io::Result<Self> {
        let (root, held) = lock(path)?;
        let dir = Self { path: path.to_owned(), root, held: Mutex::new(held), current: Current::default() };
        dir.current.set(dir.private());
        Ok(dir)
    }

    /// Takes whatever directory is at the path now, when it is another than the held one. Files that are open stay
    /// with the old one.
    pub fn reopen(&mut self) -> io::Result<()> {
        if !self.is_current()? {
            let (root, held) = lock(&self.path)?;
            (self.root, self.held) = (root, Mutex::new(held));
            self.current.set(self.private());
        }
        Ok(())
    }

    /// Fails when the path no longer leads to the held directory: what is written there, no collector would find. Fails also
    /// when the lock was removed, and another owner has it by now.
    pub fn check(&self) -> io::Result<()> {
        if self.is_current()? {
            return self.keep_lock();
        }
        Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("event directory {} was removed or replaced while it was in use", self.path.display()),
        ))
    }

    /// The files in [`PRIVATE`].
    pub fn private(&self) -> io::Result<Private> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let own = File::from(openat(held.file(), ".", flags, Mode::empty())?);
        Ok(Private::new(own, self.root.try_clone()?))
    }

    /// The same of whatever directory is held by then.
    pub fn current(&self) -> Current {
        self.current.clone()
    }

    /// Locks again where another process removed what was locked.
    fn keep_lock(&self) -> io::Result<()> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let metadata = held.file().metadata()?;
        match fstatat(&self.root, PRIVATE, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) if (found.st_dev, found.st_ino) == (metadata.dev(), metadata.ino()) => Ok(()),
            Ok(_) | Err(Errno::ENOENT) => {
                *held = lock_private(&self.path, &self.root)?;
                drop(held);
                self.current.set(self.private());
                tracing::warn!(dir = %self.path.display(), "the lock of the event directory was removed by another process; locked again");
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn is_current(&self) -> io::Result<bool> {
        let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let found = fs::metadata(&self.path).map_err(|error| about(&self.path, "find", &error))?;
        Ok(identity(found) == identity(self.root.metadata()?))
    }

    /// Creates the file `name` (relative, `/` between components) with exactly this mode, and its directories; returns
    /// it, open for reading and writing, with its inode. All of it is durable, apart from what is written to it later.
    pub fn create(&self, name: &str, mode: u32) -> io::Result<(File, u64)> {
        let (parents, file_name) = self.walk(name, Missing::Make)?;
        let parent = self.innermost(&parents);
        let flags = EVENT_FILE | OFlag::O_CREAT | OFlag::O_EXCL;
        let file = File::from(openat(parent, file_name, flags, Mode::from_bits_truncate(mode))?);
        let finish = || -> io::Result<u64> {
            file.set_permissions(Permissions::from_mode(mode))?;
            self.sync_all(&parents)?;
            Ok(file.metadata()?.ino())
        };
        match finish() {
            Ok(inode) => Ok((file, inode)),
            Err(error) => {
                // Nobody knows the file yet. Left behind, it would only make the next attempt skip its name. The directories that
                // are empty then go too: after a sync that failed, only what is made again is sure to be synced by the next one.
                unlinkat(parent, file_name, UnlinkatFlags::NoRemoveDir).ok();
                self.remove_empty(name, &parents);
                Err(error)
            }
        }
    }

    /// Opens a file that exists, for reading and writing; returns it with its inode. Anything but a regular file is
    /// refused.
    pub fn open_existing(&self, name: &str) -> io::Result<(File, u64)> {
        let (parents, file_name) = self.walk(name, Missing::Fail)?;
        let parent = self.innermost(&parents);
        // Without O_NONBLOCK a device or pipe that someone put there could hold us.
        let file = File::from(openat(parent, file_name, EVENT_FILE | OFlag::O_NONBLOCK, Mode::empty())?);
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("`{name}` is not a regular file")));
        }
        Ok((file, metadata.ino()))
    }

    /// Whether anything has this name.
    pub fn is_taken(&self, name: &str) -> io::Result<bool> {
        match self.walk(name, Missing::Fail) {
            Ok((parents, file_name)) => {
                match fstatat(self.innermost(&parents), file_name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                    Ok(_) => Ok(true),
                    Err(Errno::ENOENT) => Ok(false),
                    Err(error) => Err(error.into()),
                }
            }
            // Without its directory there is no file.
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.is_current()? => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Gives a file another name in the same directory, durably. A name that is taken is an error.
    ///
    /// Where the file system has no exclusive renames (NFS, 9p, FUSE, ZFS before 2.2), the name is looked for before the rename:
    /// a file that another process puts there in between is replaced. A link to the new name and the removal of the old one
    /// would be exclusive, and two steps: after a kill between them, and once a reader has taken the file under its new name,
    /// nothing tells that it had one, and it would get it again.
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (parents, old) = self.walk(from, Missing::Fail)?;
        let parent = self.innermost(&parents);
        let new = to.rsplit('/').next().unwrap_or(to);
        match renameat2(parent, old, parent, new, RenameFlags::RENAME_NOREPLACE) {
            Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {
                match fstatat(parent, new, AtFlags::AT_SYMLINK_NOFOLLOW) {
                    Ok(_) => return Err(Errno::EEXIST.into()),
                    Err(Errno::ENOENT) => renameat(parent, old, parent, new)?,
                    Err(error) => return Err(error.into()),
                }
            }
            renamed => renamed?,
        }
        self.sync_all(&parents)
    }

    /// Gives a file a second name in the same directory, durably. A name that is taken is an error. A file system without such
    /// names gives it the name instead of its own.
    pub fn link(&self, from: &str, to: &str) -> io::Result<()> {
        let (parents, old) = self.walk(from, Missing::Fail)?;
        let parent = self.innermost(&parents);
        let new = to.rsplit('/').next().unwrap_or(to);
        match linkat(parent, old, parent, new, AtFlags::empty()) {
            Err(Errno::EPERM | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EMLINK) => return self.rename(from, to),
            linked => linked?,
        }
        self.sync_all(&parents)
    }

    /// Makes the names in the directory of `name` durable, as they are now: what failed, or was killed, between a change and its
    /// sync.
    pub fn sync(&self, name: &str) -> io::Result<()> {
        let (parents, _) = self.walk(name, Missing::Fail)?;
        self.sync_all(&parents)
    }

    /// Removes a file, durably; one that is not there is fine.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        let (parents, file_name) = match self.walk(name, Missing::Fail) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.is_current()? => return Ok(()),
            walked => walked?,
        };
        match unlinkat(self.innermost(&parents), file_name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => self.sync_all(&parents),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens the directories on the way to `name`, outermost first; returns them with the file's own name.
    fn walk<'a>(&self, name: &'a str, missing: Missing) -> io::Result<(Vec<OwnedFd>, &'a str)> {
        self.check()?;
        if name.split('/').any(|component| matches!(component, "" | "." | "..")) || name.contains('\0') {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("`{}` is not a path below the event directory", name.escape_debug()),
            ));
        }
        let mut directories = name.split('/');
        let file_name = directories.next_back().unwrap_or(name);
        let mut parents: Vec<OwnedFd> = Vec::new();
        for component in directories {
            let parent = self.innermost(&parents);
            let directory = match openat(parent, component, DIRECTORY, Mode::empty()) {
                Err(Errno::ENOENT) if missing == Missing::Make => make(parent, component)?,
                other => other?,
            };
            parents.push(directory);
        }
        Ok((parents, file_name))
    }

    /// Removes the directories on the way to `name` that have nothing in them.
    fn remove_empty(&self, name: &str, parents: &[OwnedFd]) {
        let components: Vec<&str> = name.split('/').collect();
        for depth in (0..parents.len()).rev() {
            let above = self.innermost(&parents[..depth]);
            if unlinkat(above, components[depth], UnlinkatFlags::RemoveDir).is_err() {
                break;
            }
        }
    }

    fn innermost<'a>(&'a self, parents: &'a [OwnedFd]) -> BorrowedFd<'a> {
        parents.last().map_or(self.root.as_fd(), AsFd::as_fd)
    }

    /// Syncs each directory, the event directory included. One that has nothing to sync costs next to nothing, and one
    /// that was made just before a crash is synced now.
    fn sync_all(&self, parents: &[OwnedFd]) -> io::Result<()> {
        for parent in parents.iter().rev() {
            fsync(parent)?;
        }
        Ok(fsync(&self.root)?)
    }
}

/// Whether an error of this module is the fault of one record's own name (too long, a link or a file of another process in the
/// way of a directory), so that the record is to be rejected. Everything else is the disk's or the directory's.
pub fn blames_name(error: &io::Error) -> bool {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(errno) => {
            matches!(errno, Errno::ENAMETOOLONG | Errno::ELOOP | Errno::ENOTDIR | Errno::EISDIR | Errno::EILSEQ)
        }
        None => error.kind() == io::ErrorKind::InvalidInput,
    }
}

/// Whether there is nothing in an event directory, apart from what is ours alone. One that is not there is bare.
pub fn is_bare(path: &Path) -> bool {
    match fs::read_dir(path) {
        Ok(mut entries) => entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == PRIVATE)),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Opens and locks the event directory.
fn lock(path: &Path) -> io::Result<(File, Flock)> {
    let flags = OFlag::O_DIRECTORY.bits();
    let root =
        OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|error| about(path, "open", &error))?;
    let held = lock_private(path, &root)?;
    Ok((root, held))
}

/// Makes [`PRIVATE`] if it is not there, and locks it.
fn lock_private(path: &Path, root: &File) -> io::Result<Flock> {
    let failed = |error: io::Error| about(path, "lock", &error);
    let take = || -> io::Result<Option<Flock>> {
        let mode = Mode::from_bits_truncate(PRIVATE_MODE);
        match mkdirat(root, PRIVATE, mode) {
            // On a disk that takes nothing it may be there all the same; opening it tells.
            Ok(()) | Err(Errno::EEXIST | Errno::EROFS | Errno::ENOSPC | Errno::EDQUOT) => {}
            Err(error) => return Err(error.into()),
        }
        let private = File::from(openat(root, PRIVATE, DIRECTORY, Mode::empty())?);
        let (owner, above) = (private.metadata()?, root.metadata()?);
        if geteuid().is_root() && owner.uid() != above.uid() {
            // Root works on the home of a user, who must be able to open it afterwards.
            std::os::unix::fs::fchown(&private, Some(above.uid()), Some(above.gid()))?;
        }
        if owner.permissions().mode() & 0o7777 != PRIVATE_MODE {
            fchmod(&private, mode)?;
        }
        Flock::exclusive_within(&private, flock::PATIENCE)
    };
    take().map_err(failed)?.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::ResourceBusy,
            format!(
                "event directory {} is locked by another process, and two must not write into one: stop it or change \
                 sink.dir",
                path.display()
            ),
        )
    })
}

/// Makes one directory and opens it. Its entry is synced with the file that it is made for.
fn make(parent: BorrowedFd<'_>, name: &str) -> nix::Result<OwnedFd> {
    let mode = Mode::from_bits_truncate(DIRECTORY_MODE);
    let made = match mkdirat(parent, name, mode) {
        Ok(()) => true,
        // Another process was faster; what it is, opening it tells.
        Err(Errno::EEXIST) => false,
        Err(error) => return Err(error),
    };
    let directory = openat(parent, name, DIRECTORY, Mode::empty())?;
    if made {
        fchmod(&directory, mode)?;
    }
    Ok(directory)
}

/// An error that says what was tried on which directory.
fn about(path: &Path, operation: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {operation} event directory {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::os::unix::fs::{FileExt as _, symlink};
    use std::process::{Command, Stdio};

    use tempfile::TempDir;

    use super::*;

    fn scratch() -> (TempDir, EventDir) {
        let scratch = TempDir::new().unwrap();
        let dir = EventDir::open(&scratch.path().join("data")).unwrap();
        (scratch, dir)
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_missing_directory_is_made_with_those_above_it() {
        let scratch = TempDir::new().unwrap();
        let path = scratch.path().join("a/b/data");
        let _dir = EventDir::open(&path).unwrap();
        assert_eq!(mode(&path), 0o750);
        assert_eq!(mode(&scratch.path().join("a")), 0o750);
    }

    #[test]
    fn a_directory_that_exists_keeps_its_mode_and_may_be_a_link() {
        let scratch = TempDir::new().unwrap();
        let disk = scratch.path().join("disk");
        fs::create_dir(&disk).unwrap();
        fs::set_permissions(&disk, Permissions::from_mode(0o705)).unwrap();
        symlink(&disk, scratch.path().join("data")).unwrap();
        let dir = EventDir::open(&scratch.path().join("data")).unwrap();
        dir.create("x", 0o640).unwrap();
        assert!(disk.join("x").is_file());
        assert_eq!(mode(&disk), 0o705);
    }

    #[test]
    fn a_file_where_the_directory_should_be_is_an_error_that_names_it() {
        let scratch = TempDir::new().unwrap();
        let path = scratch.path().join("data");
        fs::write(&path, "").unwrap();
        let error = EventDir::open(&path).unwrap_err();
        assert!(error.to_string().starts_with(&format!("cannot open event directory {}: ", path.display())), "{error}");
    }

    #[test]
    fn a_dangling_link_on_the_way_to_the_directory_is_an_error() {
        let scratch = TempDir::new().unwrap();
        symlink("nowhere", scratch.path().join("link")).unwrap();
        for path in ["link", "link/data", "link/a/data"] {
            let error = EventDir::open(&scratch.path().join(path)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
        }
    }

    #[test]
    fn a_second_owner_is_refused_until_the_first_is_gone() {
        let (scratch, dir) = scratch();
        symlink(scratch.path().join("data"), scratch.path().join("link")).unwrap();
        for path in ["data", "link", "./data"] {
            let path = scratch.path().join(path);
            let error = EventDir::open(&path).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
            assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        }
        drop(dir);
        EventDir::open(&scratch.path().join("data")).unwrap();
    }

    #[test]
    fn the_lock_holds_between_processes_and_leaves_no_file() {
        let (scratch, dir) = scratch();
        let path = scratch.path().join("data").join(PRIVATE);
        let other = |path: &Path| Command::new("flock").arg("-n").arg(path).args(["-c", "true"]).status().unwrap();
        assert!(!other(&path).success());
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
        drop(dir);
        assert!(other(&path).success());

        let mut holder = Command::new("flock")
            .arg(&path)
            .args(["-c", "echo held; read line"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let path = scratch.path().join("data");
        assert_eq!(EventDir::open(&path).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        drop(holder.stdin.take());
        holder.wait().unwrap();
        EventDir::open(&path).unwrap();
    }

    #[test]
    fn who_may_only_read_the_event_files_cannot_keep_us_from_them() {
        let scratch = TempDir::new().unwrap();
        let path = scratch.path().join("data");
        fs::create_dir(&path).unwrap();
        // What a group may open, it may lock.
        let reader = File::open(&path).unwrap();
        reader.lock().unwrap();
        let _dir = EventDir::open(&path).unwrap();
        assert_eq!(mode(&path.join(PRIVATE)), PRIVATE_MODE);
    }

    #[test]
    fn a_lock_that_is_removed_is_taken_again_unless_another_owner_has_it() {
        let (scratch, dir) = scratch();
        let path = scratch.path().join("data");
        fs::remove_dir(path.join(PRIVATE)).unwrap();
        dir.create("x", 0o640).unwrap();
        assert_eq!(EventDir::open(&path).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        fs::remove_dir(path.join(PRIVATE)).unwrap();
        let _other = EventDir::open(&path).unwrap();
        assert_eq!(dir.create("y", 0o640).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
    }

    #[test]
    fn files_are_created_readable_and_writable_with_exactly_their_mode() {
        let (scratch, dir) = scratch();
        for wanted in [0o640, 0o666, 0o600, 0o777] {
            let name = format!("sub/{wanted:o}/x.log");
            let (mut file, inode) = dir.create(&name, wanted).unwrap();
            let path = scratch.path().join("data").join(&name);
            assert_eq!(mode(&path), wanted);
            assert_eq!(mode(path.parent().unwrap()), 0o750);
            assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
            file.write_all(b"line\n").unwrap();
            let mut back = [0; 5];
            file.read_exact_at(&mut back, 0).unwrap();
            assert_eq!(&back, b"line\n");
        }
    }

    #[test]
    fn a_taken_name_is_never_opened() {
        let (scratch, dir) = scratch();
        let data = scratch.path().join("data");
        fs::write(data.join("file"), "another process's").unwrap();
        fs::create_dir(data.join("directory")).unwrap();
        symlink("/etc/passwd", data.join("link")).unwrap();
        symlink(scratch.path().join("nothing"), data.join("dangling")).unwrap();
        for name in ["file", "directory", "link", "dangling"] {
            let error = dir.create(name, 0o640).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{name}");
            assert!(!blames_name(&error));
        }
        assert_eq!(fs::read(data.join("file")).unwrap(), b"another process's");
        assert!(!scratch.path().join("nothing").try_exists().unwrap());
    }

    #[test]
    fn links_and_foreign_files_on_the_way_are_the_names_fault() {
        let (scratch, dir) = scratch();
        let data = scratch.path().join("data");
        let outside = scratch.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("x"), "outside").unwrap();
        symlink(&outside, data.join("absolute")).unwrap();
        symlink("../outside", data.join("relative")).unwrap();
        symlink("loop", data.join("loop")).unwrap();
        symlink(outside.join("x"), data.join("final")).unwrap();
        fs::write(data.join("file"), "").unwrap();
        let long = "x".repeat(256);
        for name in [
            "absolute/x",
            "relative/x",
            "loop/x",
            "file/x",
            "sub/../../outside/x",
            "../outside/x",
            "/x",
            "",
            "a//b",
            "a\0b",
            &long,
            &format!("{long}/x"),
        ] {
            assert!(blames_name(&dir.create(name, 0o640).unwrap_err()), "{name}");
            assert!(blames_name(&dir.open_existing(name).unwrap_err()), "{name}");
        }
        assert!(blames_name(&dir.open_existing("final").unwrap_err()));
        assert_eq!(fs::read(outside.join("x")).unwrap(), b"outside");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    }

    #[test]
    fn only_regular_files_are_opened_again() {
        let (scratch, dir) = scratch();
        let (mut file, inode) = dir.create("a/x", 0o640).unwrap();
        file.write_all(b"line\n").unwrap();
        let (mut again, same) = dir.open_existing("a/x").unwrap();
        assert_eq!(same, inode);
        let mut text = String::new();
        again.read_to_string(&mut text).unwrap();
        assert_eq!(text, "line\n");

        assert!(blames_name(&dir.open_existing("a").unwrap_err()));
        let pipe = scratch.path().join("data/pipe");
        nix::unistd::mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        assert_eq!(dir.open_existing("pipe").unwrap_err().to_string(), "`pipe` is not a regular file");
        let error = dir.open_existing("b/x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(!blames_name(&error));
        assert!(!scratch.path().join("data/b").try_exists().unwrap(), "looking for a file made its directory");
    }

    #[test]
    fn a_removed_or_replaced_directory_is_noticed_and_found_again() {
        let (scratch, mut dir) = scratch();
        let data = scratch.path().join("data");
        fs::rename(&data, scratch.path().join("old")).unwrap();
        let error = dir.create("x", 0o640).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(!blames_name(&error));
        assert!(dir.reopen().is_err());
        assert!(!data.try_exists().unwrap(), "a directory was made where a mount may be missing");

        fs::create_dir(&data).unwrap();
        assert!(dir.create("x", 0o640).unwrap_err().to_string().contains("was removed or replaced"));
        dir.reopen().unwrap();
        dir.create("x", 0o640).unwrap();
        assert!(data.join("x").is_file());
        assert_eq!(EventDir::open(&data).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        EventDir::open(&scratch.path().join("old")).unwrap();
    }

    #[test]
    fn no_record_is_blamed_for_a_file_in_place_of_the_directory() {
        let scratch = TempDir::new().unwrap();
        let above = scratch.path().join("above");
        let dir = EventDir::open(&above.join("data")).unwrap();
        for gone in [above.join("data"), above] {
            fs::remove_dir_all(&gone).unwrap();
            fs::write(&gone, "").unwrap();
            assert!(!blames_name(&dir.create("x", 0o640).unwrap_err()), "{}", gone.display());
            fs::remove_file(&gone).unwrap();
        }
    }
}
