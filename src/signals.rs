//! What the operating system's signals ask of the service. None ends it without a line in the log, but those of a crash.
//!
//! | signal | does |
//! |---|---|
//! | SIGTERM, SIGINT, SIGQUIT | asks for the drain; a second one ends the process at once with exit code 1, straight from the handler, so that it works however stuck the process is |
//! | SIGPWR, SIGXCPU | asks for the drain: the power or the CPU time allowed runs out |
//! | SIGHUP | asks for a reload |
//! | SIGXFSZ | nothing: the write that goes beyond the file size limit fails, like one on a full disk |
//! | SIGPIPE | nothing, as Rust's runtime has it: the write fails |
//! | SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGIO, SIGSTKFLT, real-time signals | a line in the log |
//! | SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP | ends the process, as a crash of its own: the next start recovers |
//!
//! Signals can come before there is a handler: [`hold`] keeps those back that would end the process, [`install`] lets
//! them through.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use nix::sys::signal::{SigSet, Signal as Os};
use signal_hook::consts::{
    SIGALRM, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGVTALRM, SIGXCPU, SIGXFSZ,
};
use signal_hook::flag;
use signal_hook::iterator::Signals;

/// Exit code of a second SIGTERM, SIGINT or SIGQUIT.
const ABANDONED: i32 = 1;

/// Signals that the service has no use for, and that would end it.
const USELESS: [i32; 7] = [SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGIO, Os::SIGSTKFLT as i32];
/// The real-time signals that programs may use.
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;

/// The same useless signal is logged at most this often.
const LOG_PACE: Duration = Duration::from_secs(10);

/// A request that came as a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Finish what is in flight, then end.
    Drain,
    /// Read settings and log level again.
    Reload,
}

/// Has writes beyond the file size limit fail with an error instead of ending the process. For every command.
pub fn survive_file_limit() -> io::Result<()> {
    flag::register(SIGXFSZ, Arc::default()).map(drop)
}

/// Keeps signals back from this thread, and from those that it starts, whose default would end the process although they
/// ask for something else. The service's first act; a command that turns out to be no service lets them go again.
pub fn hold() {
    let _ = held().thread_block();
}

/// Lets what [`hold`] has kept back through.
pub fn release() {
    let _ = held().thread_unblock();
}

fn held() -> SigSet {
    let signals = [Os::SIGHUP, Os::SIGPWR, Os::SIGXCPU, Os::SIGUSR1, Os::SIGUSR2, Os::SIGALRM, Os::SIGVTALRM];
    signals.into_iter().chain([Os::SIGPROF, Os::SIGIO, Os::SIGSTKFLT]).collect()
}

/// Takes over the process's signals, once, gives them out, and ends [`hold`]. Call it after the daemon has detached: it
/// starts a thread.
pub fn install() -> io::Result<Receiver<Signal>> {
    let draining = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT, SIGQUIT] {
        // The order matters: at the first signal the flag is not yet set when the shutdown looks at it.
        flag::register_conditional_shutdown(signal, ABANDONED, Arc::clone(&draining))?;
        flag::register(signal, Arc::clone(&draining))?;
    }
    let asking = [SIGTERM, SIGINT, SIGQUIT, Os::SIGPWR as i32, SIGXCPU, SIGHUP];
    let mut signals = Signals::new(asking.into_iter().chain(USELESS).chain(REAL_TIME))?;
    // The handler's pipe is drained at once; a receiver that lags needs to see neither signal twice.
    let (sender, receiver) = crossbeam_channel::bounded(16);
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let mut useless = Useless::default();
        for signal in signals.forever() {
            match signal {
                SIGHUP => {
                    let _ = sender.try_send(Signal::Reload);
                }
                _ if asking.contains(&signal) => {
                    tracing::info!(signal = name(signal), "asked to stop by a signal");
                    let _ = sender.try_send(Signal::Drain);
                }
                _ if useless.is_new(signal, Instant::now()) => {
                    tracing::warn!(signal = name(signal), "ignored a signal that asks for nothing");
                }
                _ => {}
            }
        }
    })?;
    release();
    Ok(receiver)
}

/// When each useless signal was logged.
#[derive(Default)]
struct Useless(Vec<(i32, Instant)>);

impl Useless {
    /// Whether this one is to be logged now.
    fn is_new(&mut self, signal: i32, now: Instant) -> bool {
        self.0.retain(|(_, logged)| now.duration_since(*logged) < LOG_PACE);
        let known = self.0.iter().any(|(other, _)| *other == signal);
        if !known {
            self.0.push((signal, now));
        }
        !known
    }
}

fn name(signal: i32) -> String {
    match Os::try_from(signal) {
        Ok(signal) => signal.as_str().to_owned(),
        Err(_) => format!("SIGRTMIN+{}", signal - REAL_TIME.start()),
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::raise;

    use super::*;

    #[test]
    fn each_signal_asks_for_its_thing_and_none_of_the_others_ends_the_process() {
        hold();
        for early in [Os::SIGHUP, Os::SIGUSR1, Os::SIGALRM, Os::SIGIO] {
            raise(early).unwrap();
        }
        let signals = install().unwrap();
        let next = || signals.recv_timeout(Duration::from_secs(10));
        assert_eq!(next(), Ok(Signal::Reload));
        for other in [Os::SIGUSR2, Os::SIGVTALRM, Os::SIGPROF, Os::SIGSTKFLT] {
            raise(other).unwrap();
        }
        signal_hook::low_level::raise(*REAL_TIME.end()).unwrap();
        for asks in [Os::SIGXCPU, Os::SIGPWR, Os::SIGTERM] {
            raise(asks).unwrap();
            assert_eq!(next(), Ok(Signal::Drain));
        }
    }

    #[test]
    fn a_flood_of_a_useless_signal_is_one_line() {
        let (mut useless, start) = (Useless::default(), Instant::now());
        assert!(useless.is_new(SIGUSR1, start));
        assert!(!useless.is_new(SIGUSR1, start + LOG_PACE / 2));
        assert!(useless.is_new(SIGUSR2, start + LOG_PACE / 2));
        assert!(useless.is_new(SIGUSR1, start + LOG_PACE));
        assert_eq!((name(SIGUSR1), name(36)), ("SIGUSR1".to_owned(), "SIGRTMIN+2".to_owned()));
    }
}
