//! `start`, `start_not_daemon`, `stop`, `restart`.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::context::{Context, Reach, Running, show_progress};
use super::{Exit, Process, Scope, table};
use crate::config::Config;
use crate::control::{Failure, FailureKind, State};
use crate::daemon::{self, Detached, News, PidFile, Report, Reporter};
use crate::fault::{self, point};
use crate::flock;
use crate::lock::{self, Holder, HomeLock, Purpose};
use crate::logging::{self, Console};
use crate::privileges;
use crate::signals;

/// How long `start` waits for the daemon to consume.
const START_PATIENCE: Duration = Duration::from_secs(10);

impl Context<'_> {
    pub(super) fn start(&mut self) -> Result<Exit, Failure> {
        let config = self.checked_config()?;
        refuse_second(&config)?;
        self.launch(config)
    }

    pub(super) fn start_not_daemon(&mut self) -> Result<Exit, Failure> {
        let config = self.checked_config()?;
        self.serve(config, &Reporter::default(), Console::Terminal)
    }

    pub(super) fn restart(&mut self, patience: Duration) -> Result<Exit, Failure> {
        let config = self.checked_config()?;
        let stopped = self.stop(patience).map_err(|mut late| {
            if late.kind == FailureKind::TimedOut {
                late.message += "\nno other one was started: when it is gone, start it";
            }
            late
        });
        match stopped? {
            Exit::Done => self.launch(config),
            exit => Ok(exit),
        }
    }

    /// The config, once everything that can be checked without the brokers is right.
    fn checked_config(&mut self) -> Result<Config, Failure> {
        let config = self.own_config()?;
        let failures = self.backend.check(&config, Scope::Offline);
        let Some(first) = failures.first() else { return Ok(config) };
        let messages: Vec<_> = failures.iter().map(|failure| failure.message.as_str()).collect();
        Err(Failure::new(first.kind, messages.join("\n")))
    }

    /// Forks the daemon and, on the command's side, waits for its news.
    fn launch(&mut self, config: Config) -> Result<Exit, Failure> {
        signals::hold();
        match daemon::detach(&self.place.home)? {
            Detached::Daemon(reporter) => self.serve(config, &reporter, Console::Silent),
            Detached::Command(launch) => {
                signals::release();
                let report = launch.wait(fault::duration("FAULT_START_MS", START_PATIENCE))?;
                self.tell_started(report)
            }
        }
    }

    fn tell_started(&mut self, report: Option<Report>) -> Result<Exit, Failure> {
        let Some(Report { pid, news: News::State { state, reason } }) = report else {
            let message = "the daemon has said nothing for 10 s; see the service log and mtga status";
            return Err(Failure::new(FailureKind::TimedOut, message));
        };
        let why = reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        self.print(&json!({"pid": pid, "state": state, "reason": reason}), || {
            format!("mtga runs as pid {pid}, {}{why}\n", table::state(state))
        })?;
        Ok(Exit::Done)
    }

    /// Is the service, until it has drained.
    fn serve(&self, config: Config, reporter: &Reporter, console: Console) -> Result<Exit, Failure> {
        let outcome = self.run(config, reporter, console);
        outcome.inspect_err(|failure| reporter.failed(failure)).map(|()| Exit::Done)
    }

    fn run(&self, config: Config, reporter: &Reporter, console: Console) -> Result<(), Failure> {
        // The log outlives the lock, so that the end of the service is in it; a second process never gets as far as the log.
        let lock = Arc::new(lock_home(&config, reporter)?);
        let pid_file = Arc::new(PidFile::new(&self.place.home));
        let noted = pid_file.keep();
        let logging = logging::init(&config.log, config.time_zone, console)?;
        point("run.locked");
        let signals = signals::install()
            .map_err(|e| Failure::new(FailureKind::Failed, format!("cannot install signal handlers: {e}")))?;
        reporter.state(State::Starting, None);
        tracing::info!(version = env!("CARGO_PKG_VERSION"), home = %self.place.home.display(), "starting");
        if let Err(error) = noted {
            tracing::warn!(%error, "the pid file cannot be written: tried again until there is one");
        }
        if let Some(source) = config.time_zone.source() {
            tracing::info!(name = config.time_zone.name(), tzdata = source.version(), %source, "rules of the time zone");
        }
        let process = Process {
            place: self.place.clone(),
            lock: Arc::clone(&lock),
            pid_file: Arc::clone(&pid_file),
            signals,
            log: logging.handle(),
            reporter,
        };
        let outcome = self.backend.run(config, process);
        match &outcome {
            Ok(()) => tracing::info!("stopped"),
            Err(failure) => tracing::error!(kind = ?failure.kind, "{failure}"),
        }
        // While the home is still locked: it is ours.
        drop(pid_file);
        drop(lock);
        outcome
    }

    pub(super) fn stop(&mut self, patience: Duration) -> Result<Exit, Failure> {
        let deadline = Instant::now() + patience;
        let Some(Running { remote, pid, store }) = self.find_service()? else {
            self.print(&json!({"pid": null, "stopped": true}), || "mtga is not running\n".to_owned())?;
            return Ok(Exit::Done);
        };
        let locked = matches!(lock::holder(&store)?, Holder::Service(_));
        let who = pid.map_or_else(|| "mtga".to_owned(), |pid| format!("mtga (pid {pid})"));
        let late = |what: String| Failure::new(FailureKind::TimedOut, what);
        match remote.bounded(patience).drain(deadline, &show_progress) {
            Ok(None) => {}
            Ok(Some(in_flight)) => {
                return Err(late(format!(
                    "{who} has not drained within {patience:?}: {in_flight}; it goes on draining, stop again to wait"
                )));
            }
            // No socket: it is just starting, or another process has removed it.
            Err(failure) if failure.kind == FailureKind::Unavailable => terminate(&store)?,
            Err(failure) if failure.kind == FailureKind::TimedOut => {
                return Err(late(format!(
                    "{failure}\n{who} does not answer; if it stays so, kill -9 ends it and nothing is lost"
                )));
            }
            Err(failure) => return Err(failure),
        }
        let gone = match pid {
            // It holds the lock of another store: the config names this one since it was started.
            Some(pid) if !locked => {
                wait_until(deadline, || !Path::new(&format!("/proc/{pid}")).try_exists().unwrap_or(true))
            }
            _ => lock::wait_gone(&store, deadline)?,
        };
        if !gone {
            return Err(late(format!("{who} still runs after {patience:?}; see the service log")));
        }
        self.print(&json!({"pid": pid, "stopped": true}), || format!("{who} has stopped\n"))?;
        Ok(Exit::Done)
    }

    /// The service that is to be stopped, whether or not it has its socket.
    fn find_service(&mut self) -> Result<Option<Running>, Failure> {
        let places = self.whereabouts();
        if let Holder::Service(pid) = lock::holder(&places.store)? {
            return Ok(Some(Running { remote: self.remote(&places), pid, store: places.store }));
        }
        Ok(match self.reach()? {
            Reach::Running(running) => Some(running),
            Reach::Stopped => None,
        })
    }
}

/// Locks the home for the service. The command that started it hears whom it waits for.
fn lock_home(config: &Config, reporter: &Reporter) -> Result<HomeLock, Failure> {
    let waits_for = |holder| {
        let who = match holder {
            Holder::Command(pid) => format!("the command with pid {pid}, which works on the home"),
            Holder::Service(Some(pid)) => format!("the service with pid {pid} to end"),
            Holder::Service(None) => "another service to end".to_owned(),
            Holder::Nobody => "commands that read the home".to_owned(),
        };
        reporter.state(State::Starting, Some(&format!("waiting for {who}")));
    };
    HomeLock::acquire_telling(&config.store.path, Purpose::Service, waits_for).inspect_err(|failure| {
        // Whoever started it has gone by then. A service that runs all the same is word enough, and the log is that one's.
        if failure.kind == FailureKind::Unavailable
            && let Ok(_logging) = logging::init(&config.log, config.time_zone, Console::Silent)
        {
            tracing::error!(kind = ?failure.kind, "not started: {failure}");
        }
    })
}

fn refuse_second(config: &Config) -> Result<(), Failure> {
    match lock::living(&config.store.path)? {
        Holder::Service(pid) => Err(lock::already_running(pid)),
        // The daemon waits for a command.
        Holder::Nobody | Holder::Command(_) => Ok(()),
    }
}

/// Asks by signal. The process may have ended by itself meanwhile, which is as good.
fn terminate(store: &Path) -> Result<(), Failure> {
    match lock::holder(store)? {
        Holder::Service(Some(pid)) => match privileges::terminate(pid, &lock::path(store)) {
            Err(_) if !matches!(lock::holder(store)?, Holder::Service(_)) => Ok(()),
            sent => sent,
        },
        _ => Ok(()),
    }
}

/// Waits until this holds; false when it does not at the deadline.
fn wait_until(deadline: Instant, holds: impl Fn() -> bool) -> bool {
    loop {
        if holds() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(flock::PACE);
    }
}
