//! The server and its clients over real sockets.

use std::cell::RefCell;
use std::io::ErrorKind::ConnectionReset;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::client::{Remote, TIMED_OUT};
use super::protocol::MAX_REQUEST;
use super::server::Server;
use super::testing::{self, Fake};
use super::*;
use crate::config::Rpc;

/// A server over a fake service, in a directory of its own.
struct Running {
    server: Option<Server>,
    fake: Arc<Fake>,
    rpc: Rpc,
    _dir: tempfile::TempDir,
}

impl Running {
    fn with_timeout(timeout: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("mtga.sock");
        let rpc = Rpc { socket, permissions: 0o600, group: String::new(), timeout };
        let fake = Arc::new(Fake::default());
        let server = Server::start(&rpc, Arc::clone(&fake) as Arc<dyn Service>).unwrap();
        Self { server: Some(server), fake, rpc, _dir: dir }
    }

    fn start() -> Self {
        Self::with_timeout(Duration::from_secs(10))
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.rpc.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    fn remote(&self) -> Remote {
        Remote::new(self.rpc.socket.clone(), Duration::from_secs(10))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.fake.release();
        self.fake.lists_hang.store(false, SeqCst);
        drop(self.server.take());
    }
}

fn read_line(stream: &UnixStream) -> String {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line
}

fn ask(mut stream: &UnixStream, line: &str) -> String {
    stream.write_all(line.as_bytes()).unwrap();
    stream.write_all(b"\n").unwrap();
    read_line(stream)
}

const LAG: &str = r#"{"jsonrpc":"2.0","id":1,"method":"KafkaLag","params":{}}"#;
const LAG_REPLY: &str = "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":261}\n";

#[test]
fn the_remote_gives_what_the_service_gives() {
    let running = Running::start();
    let remote = running.remote();
    assert_eq!(remote.status().unwrap(), testing::status());
    assert_eq!(remote.offsets().unwrap(), testing::offsets());
    assert_eq!(remote.failure_count().unwrap(), 4);
    let list = remote.failure_list(&ListQuery { limit: Some(2), reason: None }).unwrap();
    assert_eq!(list, [testing::entry(1), testing::entry(2)]);
    assert_eq!(remote.retry_failures(None, &|_| {}).unwrap(), Retried { left: 3, stayed: 1 });
    assert_eq!(remote.clear_failures(&ClearQuery::default(), &|_| {}).unwrap(), 4);
    assert_eq!(remote.reload().unwrap(), "settings reloaded");
    let export = ClearQuery { export: Some(PathBuf::from("/there")), ..ClearQuery::default() };
    assert_eq!(remote.clear_failures(&export, &|_| {}).unwrap_err().kind, FailureKind::CannotCreate);
}

#[test]
fn both_forms_are_answered_on_one_connection() {
    let running = Running::start();
    let stream = running.connect();
    assert_eq!(ask(&stream, LAG), LAG_REPLY);
    assert_eq!(ask(&stream, r#"{"RpcFuncName":"KafkaLag","Params":[]}"#), "261\n");
    assert!(ask(&stream, r#"{"RpcFuncName":"OffsetChecker","Params":[]}"#).starts_with("[{\"topic\":"));
    assert_eq!(ask(&stream, r#"{"RpcFuncName":"Reload","Params":[]}"#), "settings reloaded\n");
    assert!(ask(&stream, r#"{"RpcFuncName":"Nope","Params":[]}"#).starts_with("{\"error\":{\"code\":-32601"));
    assert_eq!(ask(&stream, LAG), LAG_REPLY);
}

#[test]
fn requests_may_come_split_together_or_without_a_last_line_end() {
    let running = Running::start();
    let mut stream = running.connect();
    for byte in LAG.bytes() {
        stream.write_all(&[byte]).unwrap();
    }
    stream.write_all(b"\r\n\n").unwrap();
    assert_eq!(read_line(&stream), LAG_REPLY);
    stream.write_all(format!("{LAG}\n{LAG}\n{LAG}").as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut replies = String::new();
    stream.read_to_string(&mut replies).unwrap();
    assert_eq!(replies, LAG_REPLY.repeat(3));
}

#[test]
fn a_request_of_64_kib_is_taken_and_a_longer_one_is_refused_but_not_the_next() {
    let running = Running::start();
    let mut stream = running.connect();
    let padded = format!("{LAG}{}", " ".repeat(MAX_REQUEST - LAG.len()));
    assert_eq!(ask(&stream, &padded), LAG_REPLY);
    stream.write_all(padded.as_bytes()).unwrap();
    stream.write_all(b" ").unwrap();
    let refusal = read_line(&stream);
    assert!(refusal.contains("-32600") && refusal.contains("longer than 65536 bytes"), "{refusal}");
    stream.write_all(&vec![b'x'; 1 << 20]).unwrap();
    stream.write_all(b"\n").unwrap();
    assert_eq!(ask(&stream, LAG), LAG_REPLY);
}

#[test]
fn hundreds_of_silent_and_noisy_clients_harm_nobody() {
    let running = Running::start();
    let silent: Vec<_> = (0..200).map(|_| running.connect()).collect();
    let noisy: Vec<_> = (0..200)
        .map(|i: usize| {
            let mut stream = running.connect();
            let _ = stream.write_all(&vec![if i.is_multiple_of(2) { b'x' } else { b'\n' }; 60_000]);
            stream
        })
        .collect();
    assert_eq!(running.remote().failure_count().unwrap(), 4);
    for stream in &silent {
        assert_eq!(ask(stream, LAG), LAG_REPLY);
    }
    drop(noisy);
}

#[test]
fn a_client_that_reads_nothing_harms_nobody() {
    let running = Running::start();
    let mut greedy = running.connect();
    greedy.set_nonblocking(true).unwrap();
    let request = "{\"RpcFuncName\":\"FailureQueueList\",\"Params\":[]}\n".repeat(1000);
    // Until the server, which waits for its reply to be read, takes no more.
    while greedy.write_all(request.as_bytes()).is_ok() {}
    assert_eq!(running.remote().failure_count().unwrap(), 4);
}

#[test]
fn beyond_the_cap_the_connection_idle_longest_makes_room() {
    let running = Running::start();
    let first = running.connect();
    assert_eq!(ask(&first, LAG), LAG_REPLY);
    let others: Vec<_> = (0..511).map(|_| running.connect()).collect();
    for stream in &others {
        assert_eq!(ask(stream, LAG), LAG_REPLY);
    }
    let newest = running.connect();
    assert_eq!(ask(&newest, LAG), LAG_REPLY);
    assert_eq!(read_line(&first), "");
    assert_eq!(ask(&others[0], LAG), LAG_REPLY);
}

#[test]
fn a_silent_connection_is_closed_after_the_timeout() {
    let running = Running::with_timeout(Duration::from_millis(50));
    assert_eq!(read_line(&running.connect()), "");
    let mut half = running.connect();
    // On a busy machine it may be closed before that is sent, or before it is taken.
    drop(half.write_all(b"{\"jsonrpc\""));
    let end = half.read(&mut [0]).or_else(|error| if error.kind() == ConnectionReset { Ok(0) } else { Err(error) });
    assert_eq!(end.unwrap(), 0);
}

#[test]
fn many_askers_share_one_question_to_the_brokers() {
    let running = Running::start();
    let streams: Vec<_> = (0..50).map(|_| running.connect()).collect();
    let started = Instant::now();
    for mut stream in &streams {
        stream.write_all(format!("{LAG}\n").as_bytes()).unwrap();
    }
    for stream in &streams {
        assert_eq!(read_line(stream), LAG_REPLY);
    }
    // A busy machine may take longer for them than an answer is used again.
    let most = 1 + started.elapsed().as_millis() as u64 / 250;
    assert!(running.fake.offset_calls.load(SeqCst) <= most, "{most} at most");
}

#[test]
fn a_hung_call_leaves_the_others_alone_and_times_its_client_out() {
    let running = Running::start();
    running.fake.hang();
    let impatient = Remote::new(running.rpc.socket.clone(), Duration::from_millis(100));
    let failure = impatient.status().unwrap_err();
    assert_eq!(failure, Failure::new(FailureKind::TimedOut, TIMED_OUT));
    assert_eq!(running.remote().failure_count().unwrap(), 4);
}

#[test]
fn progress_comes_before_the_reply_also_for_those_that_wait_their_turn() {
    let running = Running::start();
    running.fake.hang();
    let request = r#"{"jsonrpc":"2.0","id":"c","method":"ClearFailureQueue"}"#;
    let first = running.connect();
    let progress = ask(&first, request);
    assert_eq!(
        progress,
        "{\"jsonrpc\":\"2.0\",\"method\":\"Progress\",\"params\":{\"id\":\"c\",\"message\":\"4 to go\"}}\n"
    );
    let mut second = running.connect();
    second.write_all(b"{\"RpcFuncName\":\"RetryFailureQueue\"}\n").unwrap();
    running.fake.release();
    assert_eq!(read_line(&first), "{\"jsonrpc\":\"2.0\",\"id\":\"c\",\"result\":4}\n");
    assert_eq!(read_line(&second), "{\"left\":3,\"stayed\":1}\n");
}

#[test]
fn stop_tells_what_is_in_flight_until_nothing_is() {
    let running = Running::start();
    running.fake.stop_polls.store(3, SeqCst);
    let heard = RefCell::new(Vec::new());
    let later = Instant::now() + Duration::from_mins(1);
    let left = running.remote().drain(later, &|message| heard.borrow_mut().push(message.to_owned())).unwrap();
    assert_eq!(left, None);
    assert_eq!(heard.borrow().first().unwrap(), "3 records in flight");
}

const LIST: &str = r#"{"jsonrpc":"2.0","id":1,"method":"FailureQueueList","params":{"limit":10000}}"#;

#[test]
fn lists_that_many_ask_for_are_made_one_after_the_other_and_keep_nothing_else_waiting() {
    let running = Running::start();
    running.fake.lists_hang.store(true, SeqCst);
    let clients: Vec<_> = (0..60).map(|_| running.connect()).collect();
    for mut client in &clients {
        client.write_all(format!("{LIST}\n").as_bytes()).unwrap();
    }
    let remote = running.remote();
    for _ in 0..3 {
        assert_eq!(remote.status().unwrap(), testing::status());
        assert_eq!(remote.failure_count().unwrap(), 4);
        assert_eq!(remote.offsets().unwrap(), testing::offsets());
    }
    running.fake.stop_polls.store(1, SeqCst);
    running.fake.lists_hang.store(false, SeqCst);
    for client in &clients {
        assert!(read_line(client).contains(r#""result":[{"position":1,"#));
    }
    assert!(running.fake.most_listing.load(SeqCst) <= 2, "so many at a time");
}

#[test]
fn clients_that_do_not_take_their_lists_have_a_bounded_share_of_memory() {
    let running = Running::with_timeout(Duration::from_secs(3));
    running.fake.entries.store(10_000, SeqCst);
    let clients: Vec<_> = (0..40).map(|_| running.connect()).collect();
    for mut client in &clients {
        client.write_all(format!("{LIST}\n").as_bytes()).unwrap();
    }
    // One that reads gets its list all the same, once the others are given up.
    let reader = running.connect();
    let mut reader = &reader;
    reader.set_read_timeout(Some(Duration::from_mins(2))).unwrap();
    reader.write_all(format!("{LIST}\n").as_bytes()).unwrap();
    let line = read_line(reader);
    assert!(line.len() > 2_000_000 && line.ends_with("]}\n"), "{} bytes", line.len());
    assert_eq!(running.remote().failure_count().unwrap(), 4);
}

#[test]
fn a_drain_that_takes_too_long_is_left_alone_and_told() {
    let running = Running::start();
    running.fake.stop_polls.store(u64::MAX, SeqCst);
    let left = running.remote().drain(Instant::now(), &|_| {}).unwrap().unwrap();
    assert!(left.ends_with("records in flight"), "{left}");
}

#[test]
fn closing_finishes_the_reply_under_way_and_removes_the_socket() {
    let mut running = Running::start();
    running.fake.hang();
    let idle = running.connect();
    let mut busy = running.connect();
    busy.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ClearFailureQueue\"}\n").unwrap();
    assert!(read_line(&busy).contains("4 to go"));
    let server = running.server.take().unwrap();
    let closing = std::thread::spawn(move || server.close());
    assert_eq!(read_line(&idle), "");
    running.fake.release();
    assert_eq!(read_line(&busy), "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":4}\n");
    closing.join().unwrap();
    assert!(!running.rpc.socket.try_exists().unwrap());
}

#[test]
fn a_listener_that_never_accepts_times_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mtga.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    let remote = Remote::new(path, Duration::from_millis(100));
    let started = Instant::now();
    assert_eq!(remote.status().unwrap_err(), Failure::new(FailureKind::TimedOut, TIMED_OUT));
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_socket_that_is_not_there_is_unavailable() {
    let dir = tempfile::tempdir().unwrap();
    let remote = Remote::new(dir.path().join("mtga.sock"), Duration::from_secs(1));
    let failure = remote.status().unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unavailable);
    assert!(failure.message.contains("cannot connect to the service at"), "{failure}");
}

#[test]
fn a_lag_that_is_not_known_of_one_partition_is_not_known_of_all() {
    let mut rows = testing::offsets();
    assert_eq!(super::total_lag(&rows), Ok(261));
    rows.push(PartitionOffsets { partition: 1, lag: None, high: None, ..rows[0].clone() });
    let failure = super::total_lag(&rows).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unavailable);
    assert!(failure.message.contains("mulog_clean_24[1]"), "{}", failure.message);
}
