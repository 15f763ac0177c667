//! Running the program under a deadline.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{SOON, holds, slow, tick, wait_until};

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    what: String,
    status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

impl Finished {
    /// Runs a command to its end.
    ///
    /// # Panics
    /// When it has not ended within `deadline`; it is killed then.
    pub(crate) fn run(command: &mut Command, deadline: Duration) -> Self {
        // Files, since a daemon that keeps a pipe open must not keep us.
        let (mut stdout, mut stderr) = (tempfile::tempfile().expect("a file"), tempfile::tempfile().expect("a file"));
        let started = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(stdout.try_clone().expect("a file"))
            .stderr(stderr.try_clone().expect("a file"))
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        let status = ended(&mut child, deadline);
        let took = started.elapsed();
        let (stdout, stderr) = (text(&mut stdout), text(&mut stderr));
        let what = format!("{:?}", command.get_args().collect::<Vec<_>>());
        let Some(status) = status else {
            panic!("{what} had not ended after {deadline:?}\nstdout: {stdout}\nstderr: {stderr}");
        };
        Self { what, status, stdout, stderr, took }
    }

    /// Demands this exit code.
    pub(crate) fn code(self, code: i32) -> Self {
        let Self { what, status, stdout, stderr, .. } = &self;
        assert_eq!(status.code(), Some(code), "{what} ended with {status}\nstdout: {stdout}\nstderr: {stderr}");
        self
    }

    /// Demands exit code 0; returns what it printed, trimmed.
    pub(crate) fn success(self) -> String {
        self.code(0).stdout.trim().to_owned()
    }
}

fn text(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("a file can be read");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits for a child; kills it at the deadline.
fn ended(child: &mut Child, deadline: Duration) -> Option<ExitStatus> {
    let started = Instant::now();
    let deadline = deadline + slow::longer();
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return Some(status);
        }
        if started.elapsed() > deadline {
            child.kill().and_then(|()| child.wait()).expect("a child can be killed");
            return None;
        }
        tick();
    }
}

/// Has what a process gives free leave it at once, so that its resident memory is what it holds. What the allocator keeps for
/// later varies by 15 MiB from one run to the next.
pub(crate) fn keeping_no_free_memory(command: &mut Command) -> &mut Command {
    command.env("MALLOC_ARENA_MAX", "1").env("MALLOC_MMAP_THRESHOLD_", "65536").env("MALLOC_TRIM_THRESHOLD_", "65536")
}

/// The service in the foreground. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Service(Child);

impl Service {
    /// A field of its memory, such as `VmHWM:`, bytes.
    pub(crate) fn memory(&self, field: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the service runs");
        let line = text.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
    }

    pub(crate) fn spawn(command: &mut Command, log: File) -> Self {
        let err = log.try_clone().expect("a file");
        Self(command.stdin(Stdio::null()).stdout(log).stderr(err).spawn().expect("the service can be started"))
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id() as i32)
    }

    /// SIGTERM, and the drain to its end.
    pub(crate) fn terminate(mut self) {
        self.terminate_in_place();
    }

    /// The same, to start another one in its place.
    pub(crate) fn terminate_in_place(&mut self) {
        self.wait_handles(Signal::SIGTERM);
        kill(self.pid(), Signal::SIGTERM).expect("the service runs");
        let status = ended(&mut self.0, SOON).expect("the drain ends");
        assert_eq!(status.code(), Some(0), "the service ended with {status} after SIGTERM");
    }

    /// Waits until a signal does not end it: a process that has only just been made does nothing about any.
    fn wait_handles(&self, signal: Signal) {
        let path = format!("/proc/{}/status", self.pid());
        wait_until(&format!("the service handles {signal}"), SOON, || {
            let status = fs::read_to_string(&path).map_err(|error| error.to_string())?;
            let bits = |name: &str| {
                let mask = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
                u64::from_str_radix(mask.trim(), 16).unwrap_or(0)
            };
            let handled = (bits("SigBlk:") | bits("SigCgt:")) >> (signal as i32 - 1) & 1 == 1;
            holds(handled || status.contains("State:\tZ"), "it does not")
        });
    }

    /// Waits until it is frozen, by itself at a fault point or by whoever has sent the signal.
    pub(crate) fn wait_frozen(&self) {
        let path = format!("/proc/{}/stat", self.pid());
        wait_until("the service is frozen", SOON, || {
            let stat = fs::read_to_string(&path).map_err(|error| error.to_string())?;
            // `pid (name) state ...`
            let state = stat.rsplit(") ").next().unwrap_or_default().chars().next();
            holds(state == Some('T'), state)
        });
    }

    /// Waits until it is killed by itself, at a fault point.
    pub(crate) fn wait_killed(mut self, point: &str) {
        let status = ended(&mut self.0, SOON).unwrap_or_else(|| panic!("the service came to {point} within {SOON:?}"));
        assert_eq!(status.code(), None, "the service ended with {status} before it came to {point}");
    }

    /// Waits until it has aborted itself.
    pub(crate) fn wait_aborted(mut self, why: &str) {
        let status = ended(&mut self.0, SOON).unwrap_or_else(|| panic!("it ended within {SOON:?} after {why}"));
        assert_eq!(status.signal(), Some(Signal::SIGABRT as i32), "the service ended with {status} after {why}");
    }

    /// Waits until it has ended by itself; its exit code.
    pub(crate) fn ended(mut self) -> Option<i32> {
        ended(&mut self.0, SOON).expect("it ends by itself").code()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("the service runs");
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        assert_eq!(self.0.try_wait().expect("a child"), None, "the service ended by itself");
        self.0.kill().and_then(|()| self.0.wait()).expect("a child can be killed");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            drop(self.0.kill().and_then(|()| self.0.wait()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_command_is_run_to_its_end_with_all_that_it_printed() {
        let done = Finished::run(&mut shell("echo out; echo err >&2; exit 3"), SOON).code(3);
        assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("out\n", "err\n"));
    }

    #[test]
    #[should_panic(expected = "had not ended after")]
    fn a_command_that_hangs_is_ended_at_the_deadline() {
        Finished::run(&mut shell("exec sleep 1000"), Duration::from_millis(100));
    }
}
