//! The lock of a home: one process at a time changes what the home has.
//!
//! **Promise.** Whoever may change anything of a home (the service, and each command that works on a stopped one) holds the
//! lock from before its first look at journal and store to its end: [`HomeLock`]. So nothing that it has read is changed by
//! another process meanwhile, and a process that waited for the lock has read nothing yet. Those that only read a stopped home
//! share the lock ([`ReadLock`]): nobody changes a home that is being read.
//!
//! **The file** is `lock` in `store.path`, of mode 0600 in a directory of mode 0700: only the owner of the home and root can
//! open it, so nobody else can hold it (see [`crate::flock`]). It lies with what it protects, and not in a directory that is
//! cleaned. Its content is the process id of the holder and whether that is the service or a command. It is written under the
//! lock and emptied at a graceful end; without an exclusive holder it says nothing.
//!
//! **How it fails.** Removed while it is held, the file is made and locked again within a second ([`HomeLock::keep`]). On a
//! disk that is full or read-only, a file that is there is locked all the same; the content follows when there is room.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use nix::fcntl::OFlag;

use crate::control::{Failure, FailureKind};
use crate::durable::create_private_dirs;
use crate::fault::{self, point};
use crate::flock::{self, Flock};

/// How long a process that was killed is waited for: it may take a while to give back its memory, and its lock after that.
const DEATH_PATIENCE: Duration = Duration::from_secs(5);

/// How long a command waits for another one.
const COMMAND_PATIENCE: Duration = Duration::from_secs(5);

/// The same for a starting service: a monitor may ask again and again, on a machine that is busy.
const SERVICE_PATIENCE: Duration = Duration::from_secs(30);

/// How long a holder is given to write who it is.
const NOTE_PATIENCE: Duration = Duration::from_millis(500);

const FILE_MODE: u32 = 0o600;

/// What a process does with a home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It is the service.
    Service,
    /// It changes a home on which no service runs.
    Command,
}

impl Purpose {
    fn name(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Command => "command",
        }
    }
}

/// Who holds a home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Nobody, or processes that only read it.
    Nobody,
    /// A service; its process id, unless it is not known.
    Service(Option<u32>),
    /// A command that changes it; its process id.
    Command(u32),
}

/// Where the lock of a home is.
pub fn path(store: &Path) -> PathBuf {
    store.join("lock")
}

/// Looks who holds the home that keeps its state in `store`.
pub fn holder(store: &Path) -> Result<Holder, Failure> {
    let path = path(store);
    let trouble = |e: io::Error| Failure::new(FailureKind::Failed, format!("cannot look at {}: {e}", path.display()));
    let file = match options().open(&path) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Holder::Nobody);
        }
        opened => opened.map_err(trouble)?,
    };
    let deadline = Instant::now() + NOTE_PATIENCE;
    loop {
        // Shared, and for a moment: those who only look do not see each other.
        if Flock::shared(&file).map_err(trouble)?.is_some() {
            return Ok(Holder::Nobody);
        }
        match read_holder(&file) {
            Some(holder) => return Ok(holder),
            None if Instant::now() >= deadline => return Ok(Holder::Service(None)),
            None => std::thread::sleep(flock::PACE),
        }
    }
}

/// Looks who holds a home; waits some seconds for a process that was killed and still has the lock.
pub fn living(store: &Path) -> Result<Holder, Failure> {
    let deadline = Instant::now() + DEATH_PATIENCE;
    loop {
        match holder(store)? {
            Holder::Service(Some(pid)) | Holder::Command(pid) if is_dying(pid) && Instant::now() < deadline => {
                std::thread::sleep(flock::PACE);
            }
            found => return Ok(found),
        }
    }
}

/// Waits until no service runs on a home; false when one still does at the deadline.
pub fn wait_gone(store: &Path, deadline: Instant) -> Result<bool, Failure> {
    loop {
        if !matches!(holder(store)?, Holder::Service(_)) {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(flock::PACE);
    }
}

/// What an exclusive holder has written; `None` when there is nothing: it has locked the file just now, is about to give it
/// up, or could not write.
fn read_holder(file: &File) -> Option<Holder> {
    let mut bytes = [0; 32];
    let length = file.read_at(&mut bytes, 0).unwrap_or(0);
    let text = String::from_utf8_lossy(&bytes[..length]);
    let (pid, purpose) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    let pid = pid.parse().ok().filter(|pid| *pid != 0)?;
    Some(if purpose == Purpose::Command.name() { Holder::Command(pid) } else { Holder::Service(Some(pid)) })
}

/// Whether a process is dead, ends, or has SIGKILL on its way.
fn is_dying(pid: u32) -> bool {
    const PF_EXITING: u64 = 0x4;
    const SIGKILL: u64 = 1 << 8;
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}"));
    let (Ok(stat), Ok(status)) = (read("stat"), read("status")) else {
        // Without /proc nothing can be known.
        return Path::new("/proc/self/stat").try_exists().unwrap_or(false);
    };
    // The name may have anything in it, so fields count from its last parenthesis: the state, and six further the flags.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let flags = fields.get(6).and_then(|flags| flags.parse().ok()).unwrap_or(0);
    let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"));
    let pending = pending.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    matches!(fields.first(), Some(&("Z" | "X"))) || flags & PF_EXITING != 0 || pending & SIGKILL != 0
}

/// The refusal of a second process on a home.
pub fn already_running(pid: Option<u32>) -> Failure {
    let who = pid.map_or_else(|| "another process".to_owned(), |pid| format!("pid {pid}"));
    Failure::new(FailureKind::CannotCreate, format!("mtga already runs on this home as {who}; stop it first"))
}

/// Why a lock was not to be had, once its holder was waited for.
fn refusal(holder: Holder, store: &Path) -> Failure {
    let store = store.display();
    match holder {
        Holder::Service(pid) => already_running(pid),
        Holder::Command(pid) => Failure::new(
            FailureKind::Unavailable,
            format!("a command works on the home with the store {store}, as pid {pid}: try again when it is done"),
        ),
        Holder::Nobody => Failure::new(
            FailureKind::Unavailable,
            format!("other commands read the home with the store {store}: try again when they are done"),
        ),
    }
}

/// The right to change a home, for as long as it lives. Whatever was read of the home before is out of date.
#[derive(Debug)]
pub struct HomeLock {
    held: Mutex<Flock>,
    store: PathBuf,
    purpose: Purpose,
}

impl HomeLock {
    /// Locks the home that keeps its state in `store`, which is made if it is not there.
    ///
    /// # Errors
    /// [`FailureKind::CannotCreate`] when a service runs on it, [`FailureKind::Unavailable`] when a command works on it for
    /// longer than it is waited for.
    pub fn acquire(store: &Path, purpose: Purpose) -> Result<Self, Failure> {
        Self::acquire_telling(store, purpose, |_| {})
    }

    /// The same; `waits_for` hears of each holder that has to be waited for.
    pub fn acquire_telling(store: &Path, purpose: Purpose, waits_for: impl Fn(Holder)) -> Result<Self, Failure> {
        let since = Instant::now();
        let mut known = since;
        let mut told = None;
        let path = path(store);
        let trouble =
            |e: io::Error| Failure::new(FailureKind::CannotCreate, format!("cannot lock {}: {e}", path.display()));
        create_private_dirs(store).map_err(trouble)?;
        loop {
            let file = open(&path).map_err(trouble)?;
            if let Some(held) = Flock::exclusive(&file).map_err(trouble)? {
                // Its last holder may have removed the file between our opening and our locking it.
                if is_at(&file, &path) {
                    write_holder(held.file(), purpose);
                    point("home.locked");
                    return Ok(Self { held: Mutex::new(held), store: store.to_owned(), purpose });
                }
                continue;
            }
            // Held by readers alone, the file says who held it before.
            let readers = Flock::shared(&file).map_err(trouble)?.is_some();
            let holder = match read_holder(&file) {
                _ if readers => Holder::Nobody,
                Some(holder) => holder,
                None if known.elapsed() < NOTE_PATIENCE => {
                    std::thread::sleep(flock::PACE);
                    continue;
                }
                None => Holder::Service(None),
            };
            known = Instant::now();
            let patience = match (holder, purpose) {
                (Holder::Service(Some(pid)) | Holder::Command(pid), Purpose::Command) if is_dying(pid) => {
                    DEATH_PATIENCE
                }
                (Holder::Service(Some(pid)), Purpose::Service) if is_dying(pid) => DEATH_PATIENCE,
                (Holder::Service(_), _) => flock::PATIENCE,
                (Holder::Nobody | Holder::Command(_), Purpose::Command) => COMMAND_PATIENCE,
                (Holder::Nobody | Holder::Command(_), Purpose::Service) => {
                    fault::duration("FAULT_LOCK_MS", SERVICE_PATIENCE)
                }
            };
            if since.elapsed() >= patience {
                return Err(refusal(holder, store));
            }
            if told.replace(holder) != Some(holder) {
                waits_for(holder);
            }
            std::thread::sleep(flock::PACE);
        }
    }

    /// Whether this is the lock of the home that keeps its state in `store`.
    pub fn covers(&self, store: &Path) -> bool {
        self.store == store
    }

    /// Looks after a lock that is held for long: its file is never so old that a cleaner of old files takes it, and one that
    /// was removed is made and locked again.
    pub fn keep(&self) -> io::Result<()> {
        let path = path(&self.store);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if is_at(held.file(), &path) {
            if read_holder(held.file()).is_none() {
                // There was no room for it.
                write_holder(held.file(), self.purpose);
            }
            return held.file().set_modified(SystemTime::now());
        }
        let file = open(&path)?;
        match Flock::exclusive(&file)? {
            Some(again) => *held = again,
            None => return Err(io::Error::other("the file was replaced, and another process has locked it")),
        }
        write_holder(held.file(), self.purpose);
        tracing::warn!(file = %path.display(), "the lock of this home was removed by another process; locked again");
        Ok(())
    }
}

/// Says who we are. Without that, others know only that a process has it.
fn write_holder(file: &File, purpose: Purpose) {
    let text = format!("{} {}\n", std::process::id(), purpose.name());
    drop(file.set_len(0).and_then(|()| file.write_all_at(text.as_bytes(), 0)));
}

impl Drop for HomeLock {
    fn drop(&mut self) {
        drop(self.held.get_mut().unwrap_or_else(PoisonError::into_inner).file().set_len(0));
    }
}

/// The right to read a home on which nobody works, for as long as it lives.
#[derive(Debug)]
pub struct ReadLock {
    _held: Flock,
}

impl ReadLock {
    /// Locks the home that keeps its state in `store`, beside others that read it. The directory must be there.
    ///
    /// # Errors
    /// [`FailureKind::Unavailable`] when another process changes it for longer than it is waited for.
    pub fn acquire(store: &Path) -> Result<Self, Failure> {
        let path = path(store);
        let trouble = |e: io::Error| Failure::new(FailureKind::Failed, format!("cannot lock {}: {e}", path.display()));
        let deadline = Instant::now() + COMMAND_PATIENCE;
        loop {
            let file = open(&path).map_err(trouble)?;
            match Flock::shared(&file).map_err(trouble)? {
                Some(held) if is_at(&file, &path) => return Ok(Self { _held: held }),
                Some(_) => {}
                None if Instant::now() >= deadline => {
                    let refused = refusal(read_holder(&file).unwrap_or(Holder::Service(None)), store);
                    return Err(Failure::new(FailureKind::Unavailable, refused.message));
                }
                None => std::thread::sleep(flock::PACE),
            }
        }
    }
}

/// How the file of a lock is opened: no link is followed, and nothing else of that name can hold us.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits());
    options
}

/// Opens the file of the lock, and makes it where it is not there, with the owner of its directory.
fn open(path: &Path) -> io::Result<File> {
    let file = match options().write(true).create(true).mode(FILE_MODE).open(path) {
        // It can be locked although it cannot be written.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            ) =>
        {
            options().open(path).map_err(|_| error)?
        }
        opened => opened?,
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file; remove it"));
    }
    let above = fs::metadata(path.parent().unwrap_or(Path::new(".")))?;
    if nix::unistd::geteuid().is_root() && metadata.uid() != above.uid() {
        // Root works on the home of a user, who must be able to open it afterwards.
        std::os::unix::fs::fchown(&file, Some(above.uid()), Some(above.gid()))?;
    }
    if metadata.permissions().mode() & 0o7777 != FILE_MODE {
        drop(file.set_permissions(Permissions::from_mode(FILE_MODE)));
    }
    Ok(file)
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn store() -> (tempfile::TempDir, PathBuf) {
        let scratch = tempfile::tempdir().unwrap();
        let store = scratch.path().join("tmp/store");
        (scratch, store)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn the_lock_and_not_its_content_says_who_runs() {
        let (_scratch, store) = store();
        assert_eq!(holder(&store).unwrap(), Holder::Nobody);
        fs::create_dir_all(&store).unwrap();
        // Process 1 lives, but it is not ours.
        fs::write(path(&store), "1 service\n").unwrap();
        assert_eq!(holder(&store).unwrap(), Holder::Nobody);
        let ours = HomeLock::acquire(&store, Purpose::Service).unwrap();
        assert_eq!(holder(&store).unwrap(), Holder::Service(Some(std::process::id())));
        drop(ours);
        assert_eq!(holder(&store).unwrap(), Holder::Nobody);
        let ours = HomeLock::acquire(&store, Purpose::Command).unwrap();
        assert_eq!(holder(&store).unwrap(), Holder::Command(std::process::id()));
        assert!(wait_gone(&store, Instant::now()).unwrap(), "a command is no service");
        drop(ours);
    }

    #[test]
    fn a_command_that_begins_or_ends_is_taken_for_no_service() {
        let (_scratch, store) = store();
        let commands = std::thread::spawn({
            let store = store.clone();
            move || {
                for _ in 0..2000 {
                    drop(HomeLock::acquire(&store, Purpose::Command).unwrap());
                }
            }
        });
        while !commands.is_finished() {
            let found = holder(&store).unwrap();
            assert!(!matches!(found, Holder::Service(_)), "{found:?}");
        }
        commands.join().unwrap();
    }

    #[test]
    fn nobody_but_the_owner_can_open_the_lock_whatever_was_there() {
        let (_scratch, store) = store();
        fs::create_dir_all(&store).unwrap();
        fs::set_permissions(&store, Permissions::from_mode(0o777)).unwrap();
        fs::write(path(&store), "").unwrap();
        fs::set_permissions(path(&store), Permissions::from_mode(0o666)).unwrap();
        let _lock = HomeLock::acquire(&store, Purpose::Service).unwrap();
        assert_eq!((mode(&store), mode(&path(&store))), (0o700, FILE_MODE));
    }

    #[test]
    fn a_second_process_is_refused_with_the_pid_of_the_first() {
        let (_scratch, store) = store();
        let first = HomeLock::acquire(&store, Purpose::Service).unwrap();
        for purpose in [Purpose::Service, Purpose::Command] {
            let refusal = HomeLock::acquire(&store, purpose).unwrap_err();
            assert_eq!(refusal, already_running(Some(std::process::id())));
            assert_eq!(refusal.kind, FailureKind::CannotCreate);
        }
        assert!(!wait_gone(&store, Instant::now()).unwrap());
        drop(first);
        HomeLock::acquire(&store, Purpose::Service).unwrap();
    }

    #[test]
    fn a_service_waits_for_those_that_only_read_and_for_a_command() {
        let (_scratch, store) = store();
        fs::create_dir_all(&store).unwrap();
        // What a process that was killed has left.
        fs::write(path(&store), "1 service\n").unwrap();
        let reading = ReadLock::acquire(&store).unwrap();
        let other = ReadLock::acquire(&store).unwrap();
        drop(other);
        let (sender, started) = mpsc::channel();
        std::thread::scope(|scope| {
            let acquire = || sender.send(HomeLock::acquire(&store, Purpose::Service).map(drop)).unwrap();
            scope.spawn(acquire);
            let longer = flock::PATIENCE + Duration::from_millis(200);
            assert!(started.recv_timeout(longer).is_err(), "the number in the file is not that of a holder");
            drop(reading);
            started.recv().unwrap().unwrap();
            let command = HomeLock::acquire(&store, Purpose::Command).unwrap();
            scope.spawn(acquire);
            assert!(started.recv_timeout(longer).is_err(), "it is waited for");
            drop(command);
            started.recv().unwrap().unwrap();
        });
    }

    #[test]
    fn a_process_that_was_killed_and_still_holds_the_lock_is_waited_for() {
        let (_scratch, store) = store();
        fs::create_dir_all(&store).unwrap();
        let mut killed = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        assert!(!is_dying(killed.id()));
        killed.kill().unwrap();
        // It stays a zombie until it is waited for.
        assert!(is_dying(killed.id()));
        fs::write(path(&store), format!("{} service\n", killed.id())).unwrap();
        let held = Flock::exclusive(&File::open(path(&store)).unwrap()).unwrap().expect("it is free");
        let (sender, ended) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| sender.send(living(&store)).unwrap());
            let longer = flock::PATIENCE + Duration::from_millis(200);
            assert!(ended.recv_timeout(longer).is_err(), "it is waited for, longer than for one that only looks");
            drop(held);
            assert_eq!(ended.recv().unwrap().unwrap(), Holder::Nobody);
        });
        killed.wait().unwrap();
        assert!(is_dying(killed.id()), "gone");
    }

    #[test]
    fn a_lock_that_is_removed_is_taken_again() {
        let (_scratch, store) = store();
        let lock = HomeLock::acquire(&store, Purpose::Service).unwrap();
        fs::remove_file(path(&store)).unwrap();
        assert_eq!(holder(&store).unwrap(), Holder::Nobody);
        lock.keep().unwrap();
        assert_eq!(holder(&store).unwrap(), Holder::Service(Some(std::process::id())));
        let old = SystemTime::now() - Duration::from_hours(1000);
        File::options().write(true).open(path(&store)).unwrap().set_modified(old).unwrap();
        lock.keep().unwrap();
        let age = fs::metadata(path(&store)).unwrap().modified().unwrap().elapsed().unwrap_or_default();
        assert!(age < Duration::from_hours(1), "{age:?}");
    }

    #[test]
    fn rubbish_in_a_lock_that_is_held_is_no_pid() {
        let (_scratch, store) = store();
        fs::create_dir_all(&store).unwrap();
        for rubbish in [&[0xff; 100][..], b"0 command", b"-1 service", b"99999999999 service", b""] {
            fs::write(path(&store), rubbish).unwrap();
            let _held = Flock::exclusive(&File::open(path(&store)).unwrap()).unwrap().expect("it is free");
            assert_eq!(holder(&store).unwrap(), Holder::Service(None));
        }
    }
}
