//! What every command needs: the home, the config, the service to ask, and a way to print.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::args::Line;
use super::{Backend, Format, Invocation, Loaded, Place, cannot_print, complain};
use crate::config::Config;
use crate::control::client::Remote;
use crate::control::{Failure, FailureKind, Service};
use crate::daemon::{self, Holder};

/// `rpc.timeout` when the config cannot be read.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// `rpc.socket` when the config cannot be read.
const DEFAULT_SOCKET: &str = "tmp/mtga.sock";
/// Interval between two tries to reach a service that is just starting.
const RETRY_PACE: Duration = Duration::from_millis(50);

/// A command at work.
pub(super) struct Context<'a> {
    pub(super) place: Place,
    pub(super) directory: PathBuf,
    pub(super) backend: &'a dyn Backend,
    pub(super) format: Format,
    pub(super) output: &'a mut dyn Write,
    pub(super) errors: &'a mut dyn Write,
}

/// Whom the commands ask.
pub(super) enum Reach {
    /// A running service.
    Running(Remote),
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
    if !home.is_dir() {
        let message = format!("the home {} is no directory; see --home and MTGA_HOME", home.display());
        return Err(Failure::new(FailureKind::Config, message));
    }
    let config = line.config.as_ref().map_or_else(|| home.join("config"), |config| directory.join(config));
    Ok(Place { home, config, env: invocation.env.clone() })
}

/// The parent of the binary's directory, when it looks like a home.
fn installed_home(binary: Option<&Path>) -> Option<PathBuf> {
    let home = binary?.parent()?.parent()?;
    home.join("config").is_dir().then(|| home.to_owned())
}

impl Context<'_> {
    /// Reads the config and shows its warnings.
    pub(super) fn config(&mut self) -> Result<Config, Failure> {
        match self.backend.load(&self.place) {
            Ok(loaded) => {
                for warning in &loaded.warnings {
                    complain(self.errors, &format!("warning: {warning}"));
                }
                Ok(loaded.config)
            }
            Err(mistakes) => Err(Failure::new(FailureKind::Config, mistakes.join("\n"))),
        }
    }

    /// The client of the service, by the config, or by the defaults when the config is broken.
    pub(super) fn remote(&mut self) -> Remote {
        if let Ok(Loaded { config, .. }) = self.backend.load(&self.place) {
            return Remote::new(config.rpc.socket, config.rpc.timeout);
        }
        let socket = self.place.home.join(DEFAULT_SOCKET);
        let message = format!("warning: the config has mistakes (see mtga check), using {}", socket.display());
        complain(self.errors, &message);
        Remote::new(socket, DEFAULT_TIMEOUT)
    }

    /// Finds out whether a service runs, and waits for one that is just opening its socket.
    pub(super) fn reach(&mut self) -> Result<Reach, Failure> {
        if daemon::holder(&self.place.home)? == Holder::Nobody {
            return Ok(Reach::Stopped);
        }
        let remote = self.remote();
        let deadline = Instant::now() + remote.timeout();
        loop {
            match remote.probe() {
                Ok(()) => return Ok(Reach::Running(remote)),
                Err(failure) if failure.kind != FailureKind::Unavailable => return Err(failure),
                Err(failure) => match daemon::holder(&self.place.home)? {
                    Holder::Nobody => return Ok(Reach::Stopped),
                    Holder::Process(_) if Instant::now() < deadline => std::thread::sleep(RETRY_PACE),
                    Holder::Process(_) => return Err(failure),
                },
            }
        }
    }

    /// The service that answers: the running one, or the store of the stopped one.
    pub(super) fn service(&mut self) -> Result<Box<dyn Service>, Failure> {
        match self.reach()? {
            Reach::Running(remote) => Ok(Box::new(remote)),
            Reach::Stopped => {
                let config = self.config()?;
                self.backend.local(&config)
            }
        }
    }

    /// Prints a result: as a line of JSON, or as `people` has it, which ends its own lines.
    pub(super) fn print(&mut self, json: &impl Serialize, people: impl FnOnce() -> String) -> Result<(), Failure> {
        match self.format {
            Format::People => self.output.write_all(people().as_bytes()),
            Format::Json => serde_json::to_writer(&mut self.output, json)
                .map_err(io::Error::from)
                .and_then(|()| self.output.write_all(b"\n")),
        }
        .map_err(|e| cannot_print(&e))
    }

    /// Prints an integer, which is the same in both formats.
    pub(super) fn print_integer(&mut self, number: impl Display) -> Result<(), Failure> {
        writeln!(self.output, "{number}").map_err(|e| cannot_print(&e))
    }
}

/// Shows the progress of a long command to somebody who watches; a cron job's mail stays short.
pub(super) fn show_progress(message: &str) {
    let mut errors = io::stderr();
    if errors.is_terminal() {
        let _ = writeln!(errors, "mtga: {message}");
    }
}
