//! One daemon a home: the pid file, detaching from the terminal, and what the starting command hears of it.
//!
//! The pid file `tmp/mtga.pid` is locked (`flock`) for the life of the process. *Held* means running: the lock goes with
//! the process however it dies, so a stale file is told by its free lock, never by the number in it, which another
//! process may carry by now. The file is removed at a graceful end.
//!
//! [`detach`] forks twice and leaves session, terminal, directory and standard streams. It must run before any thread
//! exists. The daemon tells the starting command over a pipe how far it is ([`Reporter`]), so that `start` can say why
//! there is no daemon, or that there is one and what it waits for.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, PipeReader, PipeWriter, Read, Seek, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use daemonize::{Daemonize, Outcome};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::control::{Failure, FailureKind, State};

/// How long a starting service waits for those that only look whether the lock is held.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
/// How long a process that was killed is waited for: it may take a while to give back its memory, and its lock after that.
const DEATH_PATIENCE: Duration = Duration::from_secs(5);
/// Interval between two looks at a lock.
const LOCK_PACE: Duration = Duration::from_millis(20);

/// Who runs on a home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Nobody.
    Nobody,
    /// A process; its id, unless it has not written it yet.
    Process(Option<u32>),
}

/// Where the pid file of a home is.
pub fn pid_path(home: &Path) -> PathBuf {
    home.join("tmp/mtga.pid")
}

/// Looks who runs on a home.
pub fn holder(home: &Path) -> Result<Holder, Failure> {
    let path = pid_path(home);
    let trouble =
        |e: io::Error| Failure::new(FailureKind::Failed, format!("cannot read the pid file {}: {e}", path.display()));
    let mut file = match File::open(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Holder::Nobody),
        opened => opened.map_err(trouble)?,
    };
    // A shared lock, held for a moment: those who only look do not see each other.
    match file.try_lock_shared() {
        Ok(()) => Ok(Holder::Nobody),
        Err(TryLockError::WouldBlock) => Ok(Holder::Process(read_pid(&mut file))),
        Err(TryLockError::Error(e)) => Err(trouble(e)),
    }
}

/// Looks who runs on a home; waits some seconds for one that was killed and still holds the lock.
pub fn living(home: &Path) -> Result<Holder, Failure> {
    let deadline = Instant::now() + DEATH_PATIENCE;
    loop {
        match holder(home)? {
            Holder::Process(Some(pid)) if is_dying(pid) && Instant::now() < deadline => std::thread::sleep(LOCK_PACE),
            found => return Ok(found),
        }
    }
}

/// Whether a process is dead, ends, or has SIGKILL on its way.
fn is_dying(pid: u32) -> bool {
    const PF_EXITING: u64 = 0x4;
    const SIGKILL: u64 = 1 << 8;
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}"));
    let (Ok(stat), Ok(status)) = (read("stat"), read("status")) else {
        // Without /proc nothing can be told.
        return Path::new("/proc/self/stat").try_exists().unwrap_or(false);
    };
    // The name may have anything in it, so fields count from its last parenthesis: the state, and six further the flags.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let flags = fields.get(6).and_then(|flags| flags.parse().ok()).unwrap_or(0);
    let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"));
    let pending = pending.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    matches!(fields.first(), Some(&("Z" | "X"))) || flags & PF_EXITING != 0 || pending & SIGKILL != 0
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok().filter(|pid| *pid != 0)
}

/// Waits until nobody runs on a home; false when somebody still does at the deadline.
pub fn wait_gone(home: &Path, deadline: Instant) -> Result<bool, Failure> {
    loop {
        if holder(home)? == Holder::Nobody {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(LOCK_PACE);
    }
}

/// Sends SIGTERM to the process that holds a pid file.
pub fn terminate(pid: u32) -> Result<(), Failure> {
    let raw = i32::try_from(pid).map_err(|_| Failure::new(FailureKind::Failed, format!("pid {pid} is none")))?;
    kill(Pid::from_raw(raw), Signal::SIGTERM)
        .map_err(|e| Failure::new(FailureKind::Failed, format!("cannot send SIGTERM to pid {pid}: {e}")))
}

/// The right to run on a home, for as long as it lives.
#[derive(Debug)]
pub struct PidFile {
    file: File,
    path: PathBuf,
}

impl PidFile {
    /// Locks the home and writes our process id. Refuses with [`FailureKind::CannotCreate`] when another process has it.
    pub fn acquire(home: &Path) -> Result<Self, Failure> {
        let path = pid_path(home);
        let mut taken = Self::lock(path)?;
        taken.write_pid().map_err(|e| cannot_create(&taken.path, &e))?;
        Ok(taken)
    }

    fn lock(path: PathBuf) -> Result<Self, Failure> {
        let since = Instant::now();
        let trouble = |e: io::Error| cannot_create(&path, &e);
        if let Some(parent) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o750).create(parent).map_err(trouble)?;
        }
        loop {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).mode(0o644);
            let mut file = file.open(&path).map_err(trouble)?;
            match file.try_lock() {
                // Its last holder may have removed the file between our opening and our locking it.
                Ok(()) if is_at(&file, &path) => return Ok(Self { file, path }),
                Ok(()) => {}
                Err(TryLockError::Error(e)) => return Err(trouble(e)),
                Err(TryLockError::WouldBlock) => {
                    let pid = read_pid(&mut file);
                    let patience = if pid.is_some_and(is_dying) { DEATH_PATIENCE } else { LOCK_PATIENCE };
                    if since.elapsed() >= patience {
                        return Err(already_running(pid));
                    }
                    std::thread::sleep(LOCK_PACE);
                }
            }
        }
    }

    fn write_pid(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(format!("{}\n", std::process::id()).as_bytes())
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // While the lock is still held: a successor's file is never removed.
        let _ = fs::remove_file(&self.path);
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

fn cannot_create(path: &Path, error: &io::Error) -> Failure {
    Failure::new(FailureKind::CannotCreate, format!("cannot create the pid file {}: {error}", path.display()))
}

/// The refusal of a second process on a home.
pub fn already_running(pid: Option<u32>) -> Failure {
    let who = pid.map_or_else(|| "another process".to_owned(), |pid| format!("pid {pid}"));
    Failure::new(FailureKind::CannotCreate, format!("mtga already runs on this home as {who}; stop it first"))
}

/// What a daemon tells the command that started it, a JSON line each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Process id of the daemon.
    pub pid: u32,
    /// How far it is.
    pub news: News,
}

/// The news in a [`Report`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum News {
    /// It lives.
    State {
        /// What it does.
        state: State,
        /// Why, where that is not plain.
        reason: Option<String>,
    },
    /// It ends.
    Failed(Failure),
}

/// The daemon's end of the pipe. Says nothing in the foreground, and nothing more once the service consumes.
#[derive(Debug, Default)]
pub struct Reporter(Mutex<Option<PipeWriter>>);

impl Reporter {
    /// Tells a state. [`State::Consuming`] is what the starting command waits for.
    pub fn state(&self, state: State, reason: Option<&str>) {
        self.tell(News::State { state, reason: reason.map(str::to_owned) });
    }

    /// Tells why the daemon ends.
    pub fn failed(&self, failure: &Failure) {
        self.tell(News::Failed(failure.clone()));
    }

    fn tell(&self, news: News) {
        let mut pipe = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = matches!(news, News::Failed(_) | News::State { state: State::Consuming, .. });
        if let Some(writer) = &mut *pipe
            && let Ok(mut line) = serde_json::to_vec(&Report { pid: std::process::id(), news })
        {
            line.push(b'\n');
            // The command may have gone; the daemon goes on.
            if writer.write_all(&line).is_err() || last {
                *pipe = None;
            }
        }
    }
}

/// The starting command's end of the pipe.
#[derive(Debug)]
pub struct Launch(PipeReader);

impl Launch {
    /// Waits until the daemon consumes, or for `patience`. Returns the last thing it told, `None` when it told nothing;
    /// an error when it has ended, with its own failure where it could tell that.
    pub fn wait(self, patience: Duration) -> Result<Option<Report>, Failure> {
        let deadline = Instant::now() + patience;
        let (sender, reports) = mpsc::channel();
        // A thread, because a read of a pipe has no timeout. It ends with the process at the latest.
        std::thread::spawn(move || {
            let lines = BufReader::new(self.0).lines().map_while(Result::ok);
            lines.filter_map(|line| serde_json::from_str(&line).ok()).try_for_each(|report| sender.send(report))
        });
        let mut last = None;
        loop {
            match reports.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Report { news: News::Failed(failure), .. }) => return Err(failure),
                Ok(report @ Report { news: News::State { state: State::Consuming, .. }, .. }) => {
                    return Ok(Some(report));
                }
                Ok(report) => last = Some(report),
                Err(mpsc::RecvTimeoutError::Timeout) => return Ok(last),
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    let message = "the daemon died while it started; see the end of the service log";
                    return Err(Failure::new(FailureKind::Failed, message));
                }
            }
        }
    }
}

/// On which side of the fork we are.
#[derive(Debug)]
pub enum Detached {
    /// In the command.
    Command(Launch),
    /// In the daemon.
    Daemon(Reporter),
}

/// Closes what the caller of the command had open beyond the standard streams: a lock of a cron job or a pipe of a remote
/// shell must not stay held for the life of the daemon. The command itself has opened nothing but the pipe by now.
fn close_inherited(pipe: &PipeWriter) {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<RawFd>().ok());
    let numbers: Vec<RawFd> = names.filter(|fd| *fd > 2 && *fd != pipe.as_raw_fd()).collect();
    for fd in numbers {
        // The listing's own descriptor is among them and closed already.
        let _ = nix::unistd::close(fd);
    }
}

/// Forks a daemon: own session, `home` as directory, umask 027, null as standard streams, nothing else open. The caller
/// holds no file open.
pub fn detach(home: &Path) -> Result<Detached, Failure> {
    let trouble =
        |e: &dyn std::fmt::Display| Failure::new(FailureKind::Failed, format!("cannot start the daemon: {e}"));
    let (reader, writer) = io::pipe().map_err(|e| trouble(&e))?;
    match Daemonize::new().working_directory(home).execute() {
        Outcome::Parent(Err(e)) => Err(trouble(&e)),
        Outcome::Parent(Ok(_)) => Ok(Detached::Command(Launch(reader))),
        Outcome::Child(outcome) => {
            drop(reader);
            close_inherited(&writer);
            let reporter = Reporter(Mutex::new(Some(writer)));
            match outcome {
                Ok(_) => Ok(Detached::Daemon(reporter)),
                Err(e) => {
                    let failure = trouble(&e);
                    reporter.failed(&failure);
                    Err(failure)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe() -> (Launch, Reporter) {
        let (reader, writer) = io::pipe().unwrap();
        (Launch(reader), Reporter(Mutex::new(Some(writer))))
    }

    #[test]
    fn the_lock_and_not_the_number_tells_who_runs() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(holder(home.path()).unwrap(), Holder::Nobody);
        fs::create_dir(home.path().join("tmp")).unwrap();
        // Process 1 lives, but it is not ours.
        fs::write(pid_path(home.path()), "1\n").unwrap();
        assert_eq!(holder(home.path()).unwrap(), Holder::Nobody);
        let ours = PidFile::acquire(home.path()).unwrap();
        assert_eq!(holder(home.path()).unwrap(), Holder::Process(Some(std::process::id())));
        drop(ours);
        assert_eq!(holder(home.path()).unwrap(), Holder::Nobody);
        assert!(!pid_path(home.path()).try_exists().unwrap());
    }

    #[test]
    fn a_second_daemon_is_refused_with_the_pid_of_the_first() {
        let home = tempfile::tempdir().unwrap();
        let _first = PidFile::acquire(home.path()).unwrap();
        let refusal = PidFile::acquire(home.path()).unwrap_err();
        assert_eq!(refusal, already_running(Some(std::process::id())));
        assert_eq!(refusal.kind, FailureKind::CannotCreate);
        assert!(!wait_gone(home.path(), Instant::now()).unwrap());
    }

    #[test]
    fn those_who_look_do_not_keep_a_service_from_starting() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("tmp")).unwrap();
        let looking = File::create(pid_path(home.path())).unwrap();
        looking.lock_shared().unwrap();
        let (sender, started) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| sender.send(PidFile::acquire(home.path()).map(drop)).unwrap());
            drop(looking);
            started.recv().unwrap().unwrap();
        });
    }

    #[test]
    fn a_process_that_was_killed_and_still_holds_the_lock_is_waited_for() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("tmp")).unwrap();
        let mut killed = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        assert!(!is_dying(killed.id()));
        killed.kill().unwrap();
        // It stays a zombie until it is waited for.
        assert!(is_dying(killed.id()));
        fs::write(pid_path(home.path()), format!("{}\n", killed.id())).unwrap();
        let held = File::open(pid_path(home.path())).unwrap();
        held.lock().unwrap();
        let (sender, ended) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| sender.send(living(home.path())).unwrap());
            let patience = LOCK_PATIENCE + Duration::from_millis(200);
            assert!(ended.recv_timeout(patience).is_err(), "it is waited for, longer than for one that only looks");
            drop(held);
            assert_eq!(ended.recv().unwrap().unwrap(), Holder::Nobody);
        });
        killed.wait().unwrap();
        assert!(is_dying(killed.id()), "gone");
    }

    #[test]
    fn rubbish_in_a_held_pid_file_is_no_pid() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("tmp")).unwrap();
        fs::write(pid_path(home.path()), [0xff; 100]).unwrap();
        let file = File::open(pid_path(home.path())).unwrap();
        file.lock().unwrap();
        assert_eq!(holder(home.path()).unwrap(), Holder::Process(None));
    }

    #[test]
    fn the_command_waits_for_consuming() {
        let (launch, reporter) = pipe();
        reporter.state(State::Starting, None);
        reporter.state(State::Consuming, None);
        let report = launch.wait(Duration::from_mins(1)).unwrap().unwrap();
        assert_eq!(report.pid, std::process::id());
        assert_eq!(report.news, News::State { state: State::Consuming, reason: None });
    }

    #[test]
    fn a_daemon_that_still_waits_is_told_with_its_reason() {
        let (launch, reporter) = pipe();
        reporter.state(State::Waiting, Some("no broker answers"));
        // The pipe stays open: the daemon lives.
        let report = launch.wait(Duration::from_millis(200)).unwrap().unwrap();
        assert_eq!(report.news, News::State { state: State::Waiting, reason: Some("no broker answers".to_owned()) });
        drop(reporter);
    }

    #[test]
    fn a_daemon_that_fails_tells_why_and_one_that_is_killed_is_noticed() {
        let failure = Failure::new(FailureKind::CannotCreate, "cannot create the socket");
        let (launch, reporter) = pipe();
        reporter.failed(&failure);
        assert_eq!(launch.wait(Duration::from_mins(1)).unwrap_err(), failure);
        let (launch, reporter) = pipe();
        reporter.state(State::Starting, None);
        drop(reporter);
        assert!(launch.wait(Duration::from_mins(1)).unwrap_err().message.contains("died"));
    }
}
