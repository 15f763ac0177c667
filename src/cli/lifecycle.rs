//! `start`, `start_not_daemon`, `stop`, `restart`.

use std::time::{Duration, Instant};

use serde_json::json;

use super::context::{Context, show_progress};
use super::{Exit, Process, Scope, table};
use crate::config::Config;
use crate::control::{Failure, FailureKind, State};
use crate::daemon::{self, Detached, Holder, News, PidFile, Report, Reporter};
use crate::fault::point;
use crate::logging::{self, Console};
use crate::signals;

/// How long `start` waits for the daemon to consume.
const START_PATIENCE: Duration = Duration::from_secs(10);

impl Context<'_> {
    pub(super) fn start(&mut self) -> Result<Exit, Failure> {
        let config = self.checked_config()?;
        self.refuse_second()?;
        self.launch(config)
    }

    pub(super) fn start_not_daemon(&mut self) -> Result<Exit, Failure> {
        let config = self.checked_config()?;
        self.serve(config, &Reporter::default(), Console::Terminal)
    }

    pub(super) fn restart(&mut self, patience: Duration) -> Result<Exit, Failure> {
        let config = self.checked_config()?;
        match self.stop(patience)? {
            Exit::Done => self.launch(config),
            exit => Ok(exit),
        }
    }

    /// The config, once everything that can be checked without the brokers is right.
    fn checked_config(&mut self) -> Result<Config, Failure> {
        let config = self.config()?;
        let failures = self.backend.check(&config, Scope::Offline);
        let Some(first) = failures.first() else { return Ok(config) };
        let messages: Vec<_> = failures.iter().map(|failure| failure.message.as_str()).collect();
        Err(Failure::new(first.kind, messages.join("\n")))
    }

    fn refuse_second(&self) -> Result<(), Failure> {
        match daemon::living(&self.place.home)? {
            Holder::Nobody => Ok(()),
            Holder::Process(pid) => Err(daemon::already_running(pid)),
        }
    }

    /// Forks the daemon and, on the command's side, waits for its news.
    fn launch(&mut self, config: Config) -> Result<Exit, Failure> {
        signals::hold();
        match daemon::detach(&self.place.home)? {
            Detached::Daemon(reporter) => self.serve(config, &reporter, Console::Silent),
            Detached::Command(launch) => {
                signals::release();
                let report = launch.wait(START_PATIENCE)?;
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
        let lock = PidFile::acquire(&self.place.home)?;
        let logging = logging::init(&config.log, config.time_zone, console)?;
        point("run.locked");
        let signals = signals::install()
            .map_err(|e| Failure::new(FailureKind::Failed, format!("cannot install signal handlers: {e}")))?;
        reporter.state(State::Starting, None);
        tracing::info!(version = env!("CARGO_PKG_VERSION"), home = %self.place.home.display(), "starting");
        let outcome =
            self.backend.run(config, Process { place: self.place.clone(), signals, log: logging.level(), reporter });
        match &outcome {
            Ok(()) => tracing::info!("stopped"),
            Err(failure) => tracing::error!(kind = ?failure.kind, "{failure}"),
        }
        drop(lock);
        outcome
    }

    pub(super) fn stop(&mut self, patience: Duration) -> Result<Exit, Failure> {
        let deadline = Instant::now() + patience;
        let Holder::Process(pid) = daemon::holder(&self.place.home)? else {
            self.print(&json!({"pid": null, "stopped": true}), || "mtga is not running\n".to_owned())?;
            return Ok(Exit::Done);
        };
        let who = pid.map_or_else(|| "mtga".to_owned(), |pid| format!("mtga (pid {pid})"));
        let late = |what: String| Failure::new(FailureKind::TimedOut, what);
        match self.remote().bounded(patience).drain(deadline, &show_progress) {
            Ok(None) => {}
            Ok(Some(in_flight)) => {
                return Err(late(format!(
                    "{who} has not drained within {patience:?}: {in_flight}; it goes on draining, stop again to wait"
                )));
            }
            // No socket: it is just starting, or somebody has removed it.
            Err(failure) if failure.kind == FailureKind::Unavailable => self.terminate()?,
            Err(failure) if failure.kind == FailureKind::TimedOut => {
                return Err(late(format!(
                    "{failure}\n{who} does not answer; if it stays so, kill -9 ends it and nothing is lost"
                )));
            }
            Err(failure) => return Err(failure),
        }
        if !daemon::wait_gone(&self.place.home, deadline)? {
            return Err(late(format!("{who} still runs after {patience:?}; see the service log")));
        }
        self.print(&json!({"pid": pid, "stopped": true}), || format!("{who} has stopped\n"))?;
        Ok(Exit::Done)
    }

    /// Asks by signal. The process may have ended by itself meanwhile, which is as good.
    fn terminate(&self) -> Result<(), Failure> {
        match daemon::holder(&self.place.home)? {
            Holder::Process(Some(pid)) => match daemon::terminate(pid) {
                Err(_) if daemon::holder(&self.place.home)? == Holder::Nobody => Ok(()),
                sent => sent,
            },
            _ => Ok(()),
        }
    }
}
