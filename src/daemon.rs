//! A daemon: its pid file, detaching from the terminal, and what the starting command hears of it.
//!
//! The pid file `tmp/mtga.pid` is for monitors. It decides nothing: it may be removed by a cleaner, or name a process that is
//! another by now. It is removed at a graceful end. Where it cannot be written, as on a full disk, the service runs without it
//! until it can.
//!
//! [`detach`] forks twice and leaves session, terminal, directory and standard streams. It must run before any thread
//! exists. The daemon tells the starting command over a pipe how far it is ([`Reporter`]), so that `start` can say why
//! there is no daemon, or that there is one and what it waits for.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use daemonize::{Daemonize, Outcome};
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use crate::control::{Failure, FailureKind, State};

/// Where the pid file of a home is.
pub fn pid_path(home: &Path) -> PathBuf {
    home.join("tmp/mtga.pid")
}

/// The pid file, from [`PidFile::keep`] on for as long as this lives. It informs monitors; who runs is known by the lock of the home ([`crate::lock`]).
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    written: AtomicBool,
}

impl PidFile {
    /// That of a home. It is not there yet.
    pub fn new(home: &Path) -> Self {
        Self { path: pid_path(home), written: AtomicBool::new(false) }
    }

    /// Writes our process id, once. The caller holds the lock of the home, so what is there is out of date.
    pub fn keep(&self) -> io::Result<()> {
        if self.written.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.write()?;
        self.written.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn write(&self) -> io::Result<()> {
        let path = &self.path;
        if let Some(parent) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o750).create(parent)?;
        }
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        // A link that another user put there is not followed.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
        let written = file.write_all(format!("{}\n", std::process::id()).as_bytes());
        if written.is_err() {
            // Whoever reads it finds a whole one or none.
            drop(fs::remove_file(path));
        }
        written
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Another one is that of a successor.
        if named(&self.path) == Some(std::process::id()) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The process id in a pid file, whether or not that process runs.
pub fn named(path: &Path) -> Option<u32> {
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits()).open(path).ok()?;
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok().filter(|pid| *pid != 0)
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
    fn the_pid_file_is_replaced_whatever_it_is_and_goes_with_its_process() {
        let home = tempfile::tempdir().unwrap();
        let path = pid_path(home.path());
        fs::create_dir(home.path().join("tmp")).unwrap();
        let outside = home.path().join("outside");
        fs::write(&outside, "untouched").unwrap();
        std::os::unix::fs::symlink(&outside, &path).unwrap();
        let written = || {
            let file = PidFile::new(home.path());
            file.keep().unwrap();
            file
        };
        let ours = written();
        assert_eq!(named(&path), Some(std::process::id()));
        assert_eq!(fs::read_to_string(&outside).unwrap(), "untouched");
        drop(ours);
        assert!(!path.try_exists().unwrap());
        let ours = written();
        fs::write(&path, "1\n").unwrap();
        drop(ours);
        assert_eq!(named(&path), Some(1), "that of another process");
        for rubbish in [&[0xff; 100][..], b"0", b"-7", b""] {
            fs::write(&path, rubbish).unwrap();
            assert_eq!(named(&path), None);
        }
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
        let report = launch.wait(Duration::from_secs(2)).unwrap().unwrap();
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
