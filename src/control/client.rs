//! The client of the control socket: [`Remote`] is a running service as the commands see it.
//!
//! Promise: no call hangs. `timeout` bounds the time to connect, to send, and each silence while waiting; a service that
//! reports progress may take as long as it needs. It does not try again and does not start anything.
//! Failures: [`FailureKind::TimedOut`] with [`TIMED_OUT`], [`FailureKind::Unavailable`] when nobody listens or the
//! connection breaks, and whatever the service answers.

use std::cell::RefCell;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::protocol::{Call, Line, parse_reply};
use super::socket::connect;
use super::{ClearQuery, Failure, FailureEntry, FailureKind, ListQuery, PartitionOffsets, Retried, Service, Status};
use crate::record::Reason;

/// What a command says when the service stays silent.
pub const TIMED_OUT: &str = "操作超时, 请检查服务状态! (operation timed out, check the service)";

/// Longest line that is read from a service; its own bound on lists keeps replies far below.
const MAX_REPLY: u64 = 256 * 1024 * 1024;

/// A service behind its control socket. Each call is a connection of its own.
#[derive(Clone, Debug)]
pub struct Remote {
    socket: PathBuf,
    timeout: Duration,
}

impl Remote {
    /// The service that listens on `socket`; `timeout` bounds every silence.
    pub fn new(socket: PathBuf, timeout: Duration) -> Self {
        Self { socket, timeout }
    }

    /// The same service, with silences bounded by `timeout` as well.
    #[must_use]
    pub fn bounded(self, timeout: Duration) -> Self {
        // A timeout of zero would mean none.
        Self { timeout: self.timeout.min(timeout).max(Duration::from_millis(1)), ..self }
    }

    /// The bound on every silence.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The process that listens. A full backlog is [`FailureKind::TimedOut`].
    pub fn peer(&self) -> Result<u32, Failure> {
        let stream = connect(&self.socket, self.timeout).map_err(|e| self.failure("connect to", &e))?;
        let peer = getsockopt(&stream, PeerCredentials).map_err(|e| self.failure("connect to", &e.into()))?;
        Ok(peer.pid().cast_unsigned())
    }

    /// Asks for the drain and waits until it is over. At the deadline it gives up waiting, not the drain, and returns
    /// what was still in flight.
    pub fn drain(&self, deadline: Instant, progress: &dyn Fn(&str)) -> Result<Option<String>, Failure> {
        let last = RefCell::new(None);
        let outcome = self.call(&Call::Stop, &|message| {
            progress(message);
            last.replace(Some(message.to_owned()));
            if Instant::now() < deadline { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        match (outcome, last.into_inner()) {
            (Err(failure), Some(in_flight)) if failure.kind == FailureKind::TimedOut && Instant::now() >= deadline => {
                Ok(Some(in_flight))
            }
            (outcome, _) => outcome.map(|_| None),
        }
    }

    fn call(&self, call: &Call, progress: &dyn Fn(&str) -> ControlFlow<()>) -> Result<Value, Failure> {
        let mut stream = connect(&self.socket, self.timeout).map_err(|e| self.failure("connect to", &e))?;
        self.exchange(&mut stream, call, progress).map_err(|e| self.failure("ask", &e))?
    }

    fn exchange(
        &self,
        stream: &mut UnixStream,
        call: &Call,
        progress: &dyn Fn(&str) -> ControlFlow<()>,
    ) -> io::Result<Result<Value, Failure>> {
        stream.set_write_timeout(Some(self.timeout))?;
        stream.set_read_timeout(Some(self.timeout))?;
        // A server that refuses the connection answers without reading: what it says is worth more than the broken pipe.
        let sent = stream.write_all(&call.to_line(1));
        let mut replies = BufReader::new(stream);
        loop {
            let mut line = Vec::new();
            replies.by_ref().take(MAX_REPLY).read_until(b'\n', &mut line)?;
            if line.last() != Some(&b'\n') {
                sent?;
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match parse_reply(&line) {
                Some(Line::Progress(message)) if progress(&message).is_continue() => {}
                Some(Line::Progress(_)) => return Err(io::ErrorKind::TimedOut.into()),
                Some(Line::Reply(reply)) => return Ok(reply),
                None => return Err(io::Error::new(io::ErrorKind::InvalidData, "the reply is no JSON-RPC")),
            }
        }
    }

    fn ask<T: DeserializeOwned>(&self, call: &Call, progress: &dyn Fn(&str)) -> Result<T, Failure> {
        let reply = self.call(call, &|message| {
            progress(message);
            ControlFlow::Continue(())
        })?;
        serde_json::from_value(reply).map_err(|e| {
            Failure::new(
                FailureKind::Failed,
                format!("cannot read the service's answer ({e}); the service may be of another version, restart it"),
            )
        })
    }

    fn failure(&self, doing: &str, error: &io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Failure::new(FailureKind::TimedOut, TIMED_OUT),
            io::ErrorKind::UnexpectedEof => Failure::new(
                FailureKind::Unavailable,
                format!("the service at {} closed the connection without an answer, try again", self.socket.display()),
            ),
            kind => Failure::new(
                if kind == io::ErrorKind::PermissionDenied { FailureKind::Failed } else { FailureKind::Unavailable },
                format!("cannot {doing} the service at {}: {error}", self.socket.display()),
            ),
        }
    }
}

/// Progress of a call that nobody watches.
fn silent(_: &str) {}

impl Service for Remote {
    fn status(&self) -> Result<Status, Failure> {
        self.ask(&Call::Status, &silent)
    }

    fn offsets(&self) -> Result<Vec<PartitionOffsets>, Failure> {
        self.ask(&Call::OffsetChecker, &silent)
    }

    fn failure_count(&self) -> Result<u64, Failure> {
        self.ask(&Call::FailureQueueCount, &silent)
    }

    fn failure_list(&self, query: &ListQuery) -> Result<Vec<FailureEntry>, Failure> {
        self.ask(&Call::FailureQueueList(query.clone()), &silent)
    }

    fn retry_failures(&self, reason: Option<Reason>, progress: &dyn Fn(&str)) -> Result<Retried, Failure> {
        self.ask(&Call::RetryFailureQueue(reason), progress)
    }

    fn clear_failures(&self, query: &ClearQuery, progress: &dyn Fn(&str)) -> Result<u64, Failure> {
        self.ask(&Call::ClearFailureQueue(query.clone()), progress)
    }

    fn reload(&self) -> Result<String, Failure> {
        self.ask(&Call::Reload, &silent)
    }

    /// Waits for at most `timeout`; [`Remote::drain`] takes a deadline and tells the progress.
    fn stop(&self) -> Result<Option<String>, Failure> {
        self.drain(Instant::now() + self.timeout, &silent)
    }
}
