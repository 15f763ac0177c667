//! The commands that ask, that work on the failure queue, and that try things out.

use std::io::{self, BufRead};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use super::context::{Context, Reach, Running, in_utf8, show_progress};
use super::{
    DemoOptions, Destination, Exit, Missing, Moved, OffsetTarget, Plain, Scope, Selection, VerifyOptions, complain,
    table,
};
use crate::config::Visibility;
use crate::control::{ClearQuery, Failure, FailureKind, ListQuery, Peer, Service, State, total_lag};
use crate::privileges;
use crate::record::Reason;
use crate::terminal::JsonLines;

impl Context<'_> {
    pub(super) fn status(&mut self) -> Result<Exit, Failure> {
        let asked = self.ask(|service| service.status());
        match asked {
            Ok(status) => {
                self.print(&status, || table::status(&status))?;
                Ok(if status.state == State::Stopped { Exit::NotRunning } else { Exit::Done })
            }
            // Whatever else is wrong, this much is known.
            Err(failure) if matches!(self.reach(), Ok(Reach::Stopped)) => {
                complain(self.errors, &format!("mtga is not running, and its store cannot be read\n{failure}"));
                Ok(Exit::NotRunning)
            }
            Err(failure) => Err(failure),
        }
    }

    pub(super) fn offset_checker(&mut self) -> Result<Exit, Failure> {
        let partitions = self.ask(|service| service.offsets())?;
        self.print(&partitions, || table::offsets(&partitions))?;
        // What is known is shown all the same.
        total_lag(&partitions).map(|_| Exit::Done)
    }

    pub(super) fn kafka_lag(&mut self) -> Result<Exit, Failure> {
        let lag = self.ask(|service| service.offsets());
        self.integer(lag.and_then(|partitions| total_lag(&partitions)))
    }

    pub(super) fn failure_queue_count(&mut self) -> Result<Exit, Failure> {
        let count = self.ask(|service| service.failure_count());
        self.integer(count)
    }

    /// Prints the result of an integer command: scripts that read it get `-1` on a timeout.
    fn integer(&mut self, result: Result<impl std::fmt::Display, Failure>) -> Result<Exit, Failure> {
        match result {
            Ok(number) => self.print_integer(number)?,
            Err(failure) => {
                if failure.kind == FailureKind::TimedOut {
                    self.print_integer(-1)?;
                }
                return Err(failure);
            }
        }
        Ok(Exit::Done)
    }

    pub(super) fn failure_queue_list(&mut self, limit: u64, reason: Option<Reason>) -> Result<Exit, Failure> {
        let entries = self.ask(|service| service.failure_list(&ListQuery { limit: Some(limit), reason }))?;
        self.print(&entries, || table::failures(&entries))?;
        Ok(Exit::Done)
    }

    pub(super) fn retry_failure_queue(&mut self, reason: Option<Reason>) -> Result<Exit, Failure> {
        let retried = self.working_service()?.retry_failures(reason, &show_progress)?;
        self.print(&retried, || format!("{} left the failure queue, {} stay\n", retried.left, retried.stayed))?;
        Ok(Exit::Done)
    }

    pub(super) fn clear_failure_queue(
        &mut self,
        older_than: Option<Duration>,
        reason: Option<Reason>,
        export: Option<PathBuf>,
    ) -> Result<Exit, Failure> {
        // The service has another directory than the operator.
        let export = export.map(|file| self.directory.join(file));
        if let Some(file) = &export {
            in_utf8(file)?;
            check_new(file)?;
        }
        let query = ClearQuery { older_than, reason, export, peer: Peer::Owner };
        let removed = self.working_service().and_then(|service| service.clear_failures(&query, &show_progress));
        self.integer(removed)
    }

    pub(super) fn reload(&mut self) -> Result<Exit, Failure> {
        let Reach::Running(Running { remote, .. }) = self.reach()? else {
            let message = "mtga is not running; it reads its settings when it starts";
            return Err(Failure::new(FailureKind::Unavailable, message));
        };
        let told = remote.reload()?;
        self.print(&told, || format!("{told}\n"))?;
        Ok(Exit::Done)
    }

    pub(super) fn set_offset(&mut self, what: &Selection, to: OffsetTarget) -> Result<Exit, Failure> {
        // Keeps a service from starting meanwhile, and refuses when one runs.
        let (config, lock) = self.lock_stopped()?;
        let moved = self.backend.set_offset(&config, lock, what, to, &show_progress)?;
        let Moved { before, after } = &moved;
        self.print(&moved, || format!("before\n{}after\n{}", table::offsets(before), table::offsets(after)))?;
        Ok(Exit::Done)
    }

    pub(super) fn adopt(&mut self, dir: &Path) -> Result<Exit, Failure> {
        in_utf8(&self.directory.join(dir))?;
        // Keeps our service from starting meanwhile, and refuses when it runs.
        let (config, lock) = self.lock_stopped()?;
        let adoption = self.backend.adopt(&self.place, &config, lock, &self.directory.join(dir), &show_progress)?;
        self.print(&adoption, || table::adoption(&adoption))?;
        Ok(Exit::Done)
    }

    pub(super) fn check(&mut self, scope: Scope) -> Result<Exit, Failure> {
        let failures = match self.config_and_exposed() {
            Ok((config, exposed)) => {
                let exposed = exposed.into_iter().map(|secret| Failure::new(FailureKind::Config, secret));
                let found = match privileges::become_owner_of_store(&config.store.path) {
                    Ok(()) => self.backend.check(&config, scope),
                    Err(failure) => vec![failure],
                };
                exposed.chain(found).collect()
            }
            Err(failure) => vec![failure],
        };
        let mistakes: Vec<&str> = failures.iter().flat_map(|failure| failure.message.lines()).collect();
        for mistake in &mistakes {
            complain(self.errors, mistake);
        }
        let verdict = json!({"ok": mistakes.is_empty(), "mistakes": mistakes});
        let people = if mistakes.is_empty() { "ok\n" } else { "" };
        self.print(&verdict, || people.to_owned())?;
        // A mistake that the operator has to mend counts more than a broker that is away.
        let worst = failures.iter().find(|failure| failure.kind == FailureKind::Config).or_else(|| failures.first());
        Ok(worst.map_or(Exit::Done, |failure| failure.kind.into()))
    }

    pub(super) fn show_config(&mut self) -> Result<Exit, Failure> {
        let config = self.config()?;
        let yaml = self.backend.render(&config);
        self.print(&yaml, || yaml.clone())?;
        Ok(Exit::Done)
    }

    pub(super) fn transform(&mut self, records: &mut dyn BufRead) -> Result<Exit, Failure> {
        let config = self.config()?;
        match self.destination {
            Destination::Terminal => {
                let mut events = JsonLines::new(&mut self.output);
                self.backend.transform(&config, records, &mut events, &mut self.errors)?;
            }
            Destination::Elsewhere => self.backend.transform(&config, records, &mut self.output, &mut self.errors)?,
        }
        Ok(Exit::Done)
    }

    pub(super) fn verify(&mut self, dirs: &[PathBuf], missing: Missing) -> Result<Exit, Failure> {
        let (dirs, plain) = if dirs.is_empty() {
            let sink = self.config()?.sink;
            let plain = if sink.visibility == Visibility::Live { Plain::Live } else { Plain::Fault };
            (vec![sink.dir], plain)
        } else {
            (dirs.iter().map(|dir| self.directory.join(dir)).collect(), Plain::Fault)
        };
        let found = self.backend.verify(&VerifyOptions { dirs, plain, missing }, &show_progress)?;
        self.print(&found, || table::verification(&found))?;
        Ok(if found.faults.is_empty() { Exit::Done } else { Exit::Failed })
    }

    pub(super) fn demo(&mut self, options: &DemoOptions) -> Result<Exit, Failure> {
        let options =
            DemoOptions { keep: options.keep.as_ref().map(|dir| self.directory.join(dir)), ..options.clone() };
        self.backend.demo(&options, self.format, &mut self.output)?;
        Ok(Exit::Done)
    }
}

/// Refuses a file that is there, before the service is asked; the service itself creates it exclusively.
fn check_new(file: &Path) -> Result<(), Failure> {
    let trouble = match std::fs::symlink_metadata(file) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => e.to_string(),
        Ok(_) => "it is there already, name a new file".to_owned(),
    };
    Err(Failure::new(FailureKind::CannotCreate, format!("cannot export to {}: {trouble}", file.display())))
}
