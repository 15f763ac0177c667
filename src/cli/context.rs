//! What every command needs: the home, the config, the service to ask, and a way to print.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::args::Line;
use super::{Backend, Destination, Format, Invocation, Loaded, Place, cannot_print, complain, printable};
use crate::config::Config;
use crate::control::client::Remote;
use crate::control::{Failure, FailureKind, Service};
use crate::daemon;
use crate::fault::point;
use crate::lock::{self, Holder, HomeLock, Purpose};
use crate::{privileges, terminal};

/// `rpc.timeout` when the config cannot be read.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// `rpc.socket` when the config cannot be read.
const DEFAULT_SOCKET: &str = "tmp/mtga.sock";
/// `store.path` when the config cannot be read.
const DEFAULT_STORE: &str = "tmp/store";
/// Interval between two tries to reach a service that is just starting.
const RETRY_PACE: Duration = Duration::from_millis(50);

/// A command at work.
pub(super) struct Context<'a> {
    pub(super) place: Place,
    pub(super) directory: PathBuf,
    pub(super) backend: &'a dyn Backend,
    pub(super) format: Format,
    pub(super) output: &'a mut dyn Write,
    pub(super) destination: Destination,
    pub(super) errors: &'a mut dyn Write,
}

/// A service that runs.
pub(super) struct Running {
    pub(super) remote: Remote,
    /// Its process, where that is known.
    pub(super) pid: Option<u32>,
    /// Where its lock is.
    pub(super) store: PathBuf,
}

/// Where a home has what tells of its service.
pub(super) struct Whereabouts {
    pub(super) store: PathBuf,
    remote: Remote,
    /// The socket, when these are the defaults for want of a config.
    assumed: Option<PathBuf>,
}

/// Whom the commands ask.
pub(super) enum Reach {
    /// A running service.
    Running(Running),
    /// None runs.
    Stopped,
}

/// Finds out where the service lives.
pub(super) fn find_place(invocation: &Invocation, line: &Line) -> Result<Place, Failure> {
    let directory = &invocation.directory;
    let named = line
        .home
        .clone()
        .or_else(|| invocation.env.get("MTGA_HOME").filter(|home| !home.is_empty()).map(PathBuf::from));
    let home = match named {
        Some(home) => directory.join(home),
        None => installed_home(invocation.binary.as_deref()).unwrap_or_else(|| directory.clone()),
    };
    in_utf8(&home)?;
    if !home.is_dir() {
        let message = format!("the home {} is no directory; see --home and MTGA_HOME", home.display());
        return Err(Failure::new(FailureKind::Config, message));
    }
    let config = line.config.as_ref().map_or_else(|| home.join("config"), |config| directory.join(config));
    in_utf8(&config)?;
    Ok(Place { home, config, env: invocation.env.clone() })
}

/// Refuses a path that no message, no JSON and no configuration could name.
pub(super) fn in_utf8(path: &Path) -> Result<(), Failure> {
    match path.to_str() {
        Some(text) if !text.contains(char::REPLACEMENT_CHARACTER) => Ok(()),
        _ => Err(Failure::new(FailureKind::Usage, format!("the path {} is not UTF-8, rename it", path.display()))),
    }
}

/// The parent of the binary's directory, when it looks like a home.
fn installed_home(binary: Option<&Path>) -> Option<PathBuf> {
    let home = binary?.parent()?.parent()?;
    home.join("config").is_dir().then(|| home.to_owned())
}

impl Context<'_> {
    /// Reads the config and shows its warnings.
    pub(super) fn config(&mut self) -> Result<Config, Failure> {
        let (config, exposed) = self.config_and_exposed()?;
        for secret in exposed {
            complain(self.errors, &format!("warning: {secret}"));
        }
        Ok(config)
    }

    /// The same for a command that opens the home: as the owner of its store from here on, when root asks.
    pub(super) fn own_config(&mut self) -> Result<Config, Failure> {
        let config = self.config()?;
        privileges::become_owner_of_store(&config.store.path)?;
        Ok(config)
    }

    /// Reads the config and shows its warnings, but for secrets that every user can read, which are returned.
    pub(super) fn config_and_exposed(&mut self) -> Result<(Config, Vec<String>), Failure> {
        match self.backend.load(&self.place) {
            Ok(loaded) => {
                for warning in &loaded.warnings {
                    complain(self.errors, &format!("warning: {warning}"));
                }
                Ok((loaded.config, loaded.exposed))
            }
            Err(mistakes) => Err(Failure::new(FailureKind::Config, mistakes.join("\n"))),
        }
    }

    /// Where lock and socket of the home are: by the config, or by the defaults when the config is broken.
    pub(super) fn whereabouts(&self) -> Whereabouts {
        if let Ok(Loaded { config, .. }) = self.backend.load(&self.place) {
            let remote = Remote::new(config.rpc.socket, config.rpc.timeout);
            return Whereabouts { store: config.store.path, remote, assumed: None };
        }
        let socket = self.place.home.join(DEFAULT_SOCKET);
        let remote = Remote::new(socket.clone(), DEFAULT_TIMEOUT);
        Whereabouts { store: self.place.home.join(DEFAULT_STORE), remote, assumed: Some(socket) }
    }

    /// Finds out whether a service runs, and waits for one that is just opening its socket.
    pub(super) fn reach(&mut self) -> Result<Reach, Failure> {
        let places = self.whereabouts();
        let deadline = Instant::now() + places.remote.timeout();
        loop {
            let pid = match lock::holder(&places.store) {
                Ok(Holder::Service(pid)) => pid,
                found => {
                    // The store may have another place in the config since the service was started, and who may only ask
                    // a service may not look at its lock.
                    return match places.remote.peer() {
                        Ok(pid) if self.is_ours(&places.remote, pid) => Ok(self.running(places, Some(pid))),
                        _ => found.map(|_| Reach::Stopped),
                    };
                }
            };
            match places.remote.peer() {
                Ok(peer) => return Ok(self.running(places, pid.or(Some(peer)))),
                Err(failure) if failure.kind != FailureKind::Unavailable => return Err(failure),
                Err(_) if Instant::now() < deadline => std::thread::sleep(RETRY_PACE),
                Err(failure) => return Err(failure),
            }
        }
    }

    fn running(&mut self, places: Whereabouts, pid: Option<u32>) -> Reach {
        Reach::Running(Running { remote: self.remote(&places), pid, store: places.store })
    }

    /// The client of a service that runs.
    pub(super) fn remote(&mut self, places: &Whereabouts) -> Remote {
        if let Some(socket) = &places.assumed {
            let message = format!("warning: the config has mistakes (see mtga check), using {}", socket.display());
            complain(self.errors, &message);
        }
        places.remote.clone()
    }

    /// Whether the service that listens on our socket is that of this home, although another store is configured by now. A socket
    /// outside of the home may be another home's, by a mistake in one of their configs.
    fn is_ours(&self, remote: &Remote, pid: u32) -> bool {
        remote.socket().starts_with(&self.place.home) || daemon::named(&daemon::pid_path(&self.place.home)) == Some(pid)
    }

    /// Asks the service: the running one, or the store of the stopped one.
    pub(super) fn ask<T>(&mut self, ask: impl Fn(&dyn Service) -> Result<T, Failure>) -> Result<T, Failure> {
        loop {
            if let Reach::Running(running) = self.reach()? {
                return ask(&running.remote);
            }
            let config = self.own_config()?;
            point("ask.stopped");
            match self.backend.local(&config).and_then(|service| ask(&*service)) {
                // It was started just now.
                Err(_) if matches!(lock::holder(&config.store.path), Ok(Holder::Service(_))) => {}
                asked => return asked,
            }
        }
    }

    /// The service that changes something: the running one, or, while none runs, a home that is locked for us.
    pub(super) fn working_service(&mut self) -> Result<Box<dyn Service>, Failure> {
        loop {
            if let Reach::Running(running) = self.reach()? {
                return Ok(Box::new(running.remote));
            }
            let config = self.own_config()?;
            match HomeLock::acquire(&config.store.path, Purpose::Command) {
                Ok(lock) => return self.backend.stopped(&config, lock),
                // It was started just now.
                Err(failure) if matches!(lock::holder(&config.store.path)?, Holder::Service(_)) => {
                    drop(failure);
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Locks the home for a command that needs it stopped; returns the config that says where it is.
    pub(super) fn lock_stopped(&mut self) -> Result<(Config, HomeLock), Failure> {
        let config = self.own_config()?;
        let lock = HomeLock::acquire(&config.store.path, Purpose::Command)
            .map_err(|failure| Failure::new(FailureKind::Failed, failure.message))?;
        Ok((config, lock))
    }

    /// Prints a result: as a line of JSON, or as `people` has it, which ends its own lines.
    pub(super) fn print(&mut self, json: &impl Serialize, people: impl FnOnce() -> String) -> Result<(), Failure> {
        match self.format {
            Format::People => self.output.write_all(printable(&people()).as_bytes()),
            Format::Json => serde_json::to_string(json).map_err(io::Error::from).and_then(|text| {
                let text =
                    if self.destination == Destination::Terminal { terminal::shown_json(&text) } else { text.into() };
                writeln!(self.output, "{text}")
            }),
        }
        .map_err(|e| cannot_print(&e))
    }

    /// Prints an integer, which is the same in both formats.
    pub(super) fn print_integer(&mut self, number: impl Display) -> Result<(), Failure> {
        writeln!(self.output, "{number}").map_err(|e| cannot_print(&e))
    }
}

/// Shows the progress of a long command to someone who watches; a cron job's mail stays short.
pub(super) fn show_progress(message: &str) {
    let mut errors = io::stderr();
    if errors.is_terminal() {
        let _ = writeln!(errors, "mtga: {}", printable(message));
    }
}
