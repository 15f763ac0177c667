//! The commands: what an operator types, and what is printed and returned for it.
//!
//! Results go to standard output, everything else to standard error; [`Exit`] has the exit codes. While a service runs,
//! commands ask it over its socket; otherwise they use the store themselves, through [`Backend`]. No command hangs: when
//! the service stays silent for `rpc.timeout` they say so and exit with 75, the integer commands after printing `-1`.
//! A reader that closes the pipe ends a command quietly.
//!
//! Stopping and asking work although the config has been broken since the service started: then the default socket in the
//! home is used, with a warning.

mod args;
mod backend;
mod context;
mod exit;
mod lifecycle;
mod queries;
pub(crate) mod table;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, BufRead, Write};
use std::path::PathBuf;

use clap::Parser;
use clap::error::ErrorKind;

use self::args::{Command, Line};
pub use self::backend::{
    AdoptedFile, AdoptedPosition, Adoption, Backend, DemoOptions, Fault, FaultKind, FileOutcome, Format, Loaded,
    Missing, Moved, OffsetTarget, Place, Plain, PositionOutcome, Process, Scope, Selection, Summary, Unknown,
    UnknownKind, Verification, VerifyOptions,
};
use self::context::Context;
pub use self::exit::Exit;
use crate::control::Failure;
use crate::privileges;
use crate::{signals, terminal};

/// What the process was started with. The environment enters here and nowhere else.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// The arguments, the program's name first.
    pub args: Vec<OsString>,
    /// The environment. A variable that is not UTF-8 has U+FFFD in place of what is not.
    pub env: BTreeMap<String, String>,
    /// The path of the binary.
    pub binary: Option<PathBuf>,
    /// The current directory.
    pub directory: PathBuf,
}

/// The standard streams.
pub struct Streams<'a> {
    /// Standard input.
    pub input: &'a mut dyn BufRead,
    /// Standard output.
    pub output: &'a mut dyn Write,
    /// Where standard output goes.
    pub destination: Destination,
    /// Standard error.
    pub errors: &'a mut dyn Write,
}

/// Where output goes: a terminal acts on some characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A terminal: hidden characters are escaped.
    Terminal,
    /// A pipe or a file: data stay as they are, byte for byte.
    Elsewhere,
}

impl std::fmt::Debug for Streams<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streams").finish_non_exhaustive()
    }
}

/// Runs one command to its end. Call it before the process has a second thread: `start` forks.
pub fn run(invocation: &Invocation, streams: Streams<'_>, backend: &dyn Backend) -> Exit {
    let Streams { input, output, destination, errors } = streams;
    let line = match Line::try_parse_from(&invocation.args) {
        Ok(line) => line,
        Err(error) => return explain(&error, output, errors),
    };
    if !matches!(line.command, Command::Start | Command::StartNotDaemon) {
        signals::release();
    }
    let mut output = Output { inner: output, closed: Closed::No };
    let format = if line.json { Format::Json } else { Format::People };
    let outcome = context::find_place(invocation, &line).and_then(|place| {
        if line.command.works_on_home() {
            privileges::become_owner(&place.home)?;
        }
        let directory = invocation.directory.clone();
        let mut context = Context { place, directory, backend, format, output: &mut output, destination, errors };
        context.dispatch(line.command, input)
    });
    let outcome = outcome.and_then(|exit| output.flush().map(|()| exit).map_err(|e| cannot_print(&e)));
    match outcome {
        _ if output.closed == Closed::ByReader => Exit::Done,
        Ok(exit) => exit,
        Err(failure) => {
            complain(errors, &failure.message);
            failure.kind.into()
        }
    }
}

/// Prints help and version, or what is wrong with the command line.
fn explain(error: &clap::Error, output: &mut dyn Write, errors: &mut dyn Write) -> Exit {
    let text = error.render();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = write!(output, "{text}");
            Exit::Done
        }
        _ => {
            let _ = write!(errors, "{text}");
            Exit::Usage
        }
    }
}

/// Writes a message for the operator, each of its lines marked as ours. There is nobody to tell when that fails.
fn complain(errors: &mut dyn Write, message: &str) {
    for line in message.lines() {
        let _ = writeln!(errors, "mtga: {}", printable(line));
    }
}

/// Text for a terminal: control and format characters, which a terminal would obey, are escaped. Some of it comes from topics, from brokers
/// and from whoever answers on a socket.
fn printable(text: &str) -> Cow<'_, str> {
    let obeyed = |character: char| terminal::is_hidden(character) && !matches!(character, '\n' | '\t');
    if !text.contains(obeyed) {
        return Cow::Borrowed(text);
    }
    let escaped = text.chars().fold(String::with_capacity(text.len()), |mut escaped, character| {
        if obeyed(character) {
            escaped.extend(character.escape_default());
        } else {
            escaped.push(character);
        }
        escaped
    });
    Cow::Owned(escaped)
}

fn cannot_print(error: &io::Error) -> Failure {
    Failure::new(crate::control::FailureKind::Failed, format!("cannot write to standard output: {error}"))
}

/// Standard output that remembers whether its reader has gone.
struct Output<'a> {
    inner: &'a mut dyn Write,
    closed: Closed,
}

#[derive(PartialEq, Eq)]
enum Closed {
    No,
    ByReader,
}

impl Output<'_> {
    fn note<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        if result.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::BrokenPipe) {
            self.closed = Closed::ByReader;
        }
        result
    }
}

impl Write for Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let result = self.inner.write_all(bytes).map(|()| bytes.len());
        self.note(result)
    }

    fn flush(&mut self) -> io::Result<()> {
        let result = self.inner.flush();
        self.note(result)
    }
}

impl Context<'_> {
    fn dispatch(&mut self, command: Command, input: &mut dyn BufRead) -> Result<Exit, Failure> {
        match command {
            Command::Start => self.start(),
            Command::StartNotDaemon => self.start_not_daemon(),
            Command::Stop(patience) => self.stop(patience.timeout),
            Command::Restart(patience) => self.restart(patience.timeout),
            Command::Status => self.status(),
            Command::Reload => self.reload(),
            Command::OffsetChecker => self.offset_checker(),
            Command::KafkaLag => self.kafka_lag(),
            Command::FailureQueueCount => self.failure_queue_count(),
            Command::FailureQueueList { limit, only } => self.failure_queue_list(limit, only.reason),
            Command::RetryFailureQueue(only) => self.retry_failure_queue(only.reason),
            Command::ClearFailureQueue { older_than, only, export } => {
                self.clear_failure_queue(older_than, only.reason, export)
            }
            Command::SetOffset { partitions, position } => self.set_offset(&partitions, position),
            Command::Adopt { dir } => self.adopt(&dir),
            Command::Check { offline } => self.check(if offline { Scope::Offline } else { Scope::Online }),
            Command::Config => self.show_config(),
            Command::Transform => self.transform(input),
            Command::Verify { dirs, allow_missing } => {
                self.verify(&dirs, if allow_missing { Missing::Allowed } else { Missing::Fault })
            }
            Command::Demo(demo) => self.demo(&demo.into()),
        }
    }
}
