//! What the operating system's signals ask of the service.
//!
//! The first SIGTERM or SIGINT asks for the drain; a second one ends the process at once with exit code 1, straight from
//! the signal handler, so that it works however stuck the process is. SIGHUP asks for a reload. SIGPIPE is ignored, as
//! Rust's runtime has it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crossbeam_channel::Receiver;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;

/// Exit code of a second SIGTERM or SIGINT.
const ABANDONED: i32 = 1;

/// A request that came as a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Finish what is in flight, then end.
    Drain,
    /// Read settings and log level again.
    Reload,
}

/// Takes over the process's signals, once, and gives them out. Call it after the daemon has detached: it starts a thread.
pub fn install() -> io::Result<Receiver<Signal>> {
    let draining = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // The order matters: at the first signal the flag is not yet set when the shutdown looks at it.
        flag::register_conditional_shutdown(signal, ABANDONED, Arc::clone(&draining))?;
        flag::register(signal, Arc::clone(&draining))?;
    }
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    // The handler's pipe is drained at once; a receiver that lags needs to see neither signal twice.
    let (sender, receiver) = crossbeam_channel::bounded(16);
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            let _ = sender.try_send(if signal == SIGHUP { Signal::Reload } else { Signal::Drain });
        }
    })?;
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::sys::signal::{Signal as Os, raise};

    use super::*;

    #[test]
    fn each_signal_asks_for_its_thing() {
        let signals = install().unwrap();
        raise(Os::SIGHUP).unwrap();
        assert_eq!(signals.recv_timeout(Duration::from_secs(10)), Ok(Signal::Reload));
        raise(Os::SIGTERM).unwrap();
        assert_eq!(signals.recv_timeout(Duration::from_secs(10)), Ok(Signal::Drain));
    }
}
