//! The control socket as foreign programs use it, and misuse it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Codec, Home, Mix, Topic};

/// Sends bytes on a connection of its own; returns the first line of the answer.
fn ask(home: &Home, request: &[u8]) -> String {
    let mut stream = home.connect();
    stream.write_all(request).expect("a request can be sent");
    line(&mut BufReader::new(stream))
}

fn line(stream: &mut BufReader<UnixStream>) -> String {
    let mut line = String::new();
    stream.read_line(&mut line).expect("an answer");
    assert!(line.ends_with('\n'), "an answer is a whole line: {line:?}");
    line
}

/// The JSON-RPC answer to a request.
fn call(home: &Home, request: &str) -> Value {
    let answer = ask(home, format!("{request}\n").as_bytes());
    let answer: Value = serde_json::from_str(&answer).unwrap_or_else(|error| panic!("no JSON, {error}: {answer}"));
    assert_eq!(answer["jsonrpc"], "2.0", "{answer}");
    answer
}

fn service(topic: &Topic) -> Home {
    let home = Home::new(topic);
    home.start();
    home
}

#[test]
fn the_socket_speaks_json_rpc() {
    let topic = Topic::create("rpc", 2);
    let produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, 300);
    let home = service(&topic);
    home.wait_done(&produced);
    let lag = call(&home, r#"{"jsonrpc":"2.0","id":1,"method":"KafkaLag","params":{}}"#);
    assert_eq!((&lag["id"], &lag["result"]), (&json!(1), &json!(0)));
    let offsets = call(&home, r#"{"jsonrpc":"2.0","id":"two","method":"OffsetChecker","params":{}}"#);
    assert_eq!((&offsets["id"], offsets["result"].as_array().map(Vec::len)), (&json!("two"), Some(2)));
    let status = call(&home, r#"{"jsonrpc":"2.0","id":3,"method":"Status"}"#);
    assert_eq!(status["result"]["state"], "consuming");
    let count = call(&home, r#"{"jsonrpc":"2.0","id":4,"method":"FailureQueueCount","params":{}}"#);
    assert_eq!(count["result"], home.integer("failure_queue_count"));
}

#[test]
fn requests_on_one_connection_are_answered_in_turn() {
    let home = service(&Topic::create("turn", 1));
    let stream = home.connect();
    let mut reader = BufReader::new(stream.try_clone().expect("a socket"));
    // The last request comes in three pieces.
    let mut writer = &stream;
    writer
        .write_all(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"KafkaLag\"}\n{\"jsonrpc\":\"2.0\",\"id\":2,")
        .expect("sent");
    let first: Value = serde_json::from_str(&line(&mut reader)).expect("JSON");
    writer.write_all(b"\"method\":\"Kafka").expect("sent");
    writer.write_all(b"Lag\"}\n").expect("sent");
    let second: Value = serde_json::from_str(&line(&mut reader)).expect("JSON");
    assert_eq!((&first["id"], &second["id"]), (&json!(1), &json!(2)));
}

#[test]
fn monitors_of_the_older_form_get_bare_lines() {
    let topic = Topic::create("older", 3);
    let produced = topic.fill(Codec::Snappy, Mix::Clean, 0, 300);
    let home = service(&topic);
    home.wait_done(&produced);
    assert_eq!(ask(&home, b"{\"RpcFuncName\":\"KafkaLag\",\"Params\":[]}\n"), "0\n");
    assert_eq!(ask(&home, b"{\"RpcFuncName\":\"FailureQueueCount\",\"Params\":[]}\n"), "0\n");
    let offsets: Value =
        serde_json::from_str(&ask(&home, b"{\"RpcFuncName\":\"OffsetChecker\",\"Params\":[]}\n")).expect("JSON");
    assert_eq!(offsets.as_array().map(Vec::len), Some(3), "{offsets}");
}

#[test]
fn bad_requests_get_error_replies() {
    let home = service(&Topic::create("badrequests", 1));
    for (request, code) in [
        ("not json", -32700),
        (r#"{"jsonrpc":"2.0","id":1}"#, -32600),
        (r#"{"jsonrpc":"2.0","id":1,"method":"MakeCoffee","params":{}}"#, -32601),
        (r#"{"jsonrpc":"2.0","id":1,"method":"FailureQueueList","params":{"limit":"many"}}"#, -32602),
        (r#"{"jsonrpc":"2.0","id":1,"method":"ClearFailureQueue","params":{"unknown":1}}"#, -32602),
    ] {
        assert_eq!(call(&home, request)["error"]["code"], code, "{request}");
    }
    assert_eq!(home.integer("kafka_lag"), 0);
}

#[test]
fn a_request_over_64_kib_is_refused() {
    let home = service(&Topic::create("big", 1));
    let small = format!(r#"{{"jsonrpc":"2.0","id":"{}","method":"KafkaLag"}}"#, "x".repeat(60 * 1024));
    assert_eq!(call(&home, &small)["result"], 0, "60 KiB are within the bound");
    let mut stream = home.connect();
    // The service may close while we still send; what counts is the answer.
    drop(stream.write_all(&vec![b'x'; 65 * 1024]));
    let answer = line(&mut BufReader::new(stream));
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    assert!(answer["error"]["code"].is_i64(), "{answer}");
}

#[test]
fn two_hundred_silent_clients_harm_nobody() {
    assert_nobody_is_harmed_by(|_, _| ());
}

#[test]
fn two_hundred_noisy_clients_harm_nobody() {
    assert_nobody_is_harmed_by(|client, number| {
        client.set_nonblocking(true).expect("a socket");
        let noise: Vec<_> = (0..200_000_u32).map(|i| (i.wrapping_mul(31 + number) >> 3) as u8).collect();
        drop(client.write_all(&noise));
    });
}

#[test]
fn two_hundred_clients_that_ask_and_never_read_harm_nobody() {
    assert_nobody_is_harmed_by(|client, _| {
        client.set_nonblocking(true).expect("a socket");
        let requests = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"Status\"}\n".repeat(3000);
        drop(client.write_all(requests.as_bytes()));
    });
}

fn assert_nobody_is_harmed_by(behave: impl Fn(&mut UnixStream, u32)) {
    let topic = Topic::create("clients", 4);
    let home = service(&topic);
    let load = topic.load(Codec::Snappy, Mix::Clean);
    let mut clients: Vec<_> = (0..200).map(|_| home.connect()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        behave(client, number as u32);
    }
    home.wait_written(5000);
    for _ in 0..10 {
        let started = Instant::now();
        home.mtga(["kafka_lag"]).success();
        assert!(started.elapsed() < Duration::from_secs(5), "a monitor waited {:?}", started.elapsed());
    }
    let produced = load.stop();
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    drop(clients);
    home.stop();
}

#[test]
fn the_socket_belongs_to_its_owner_and_goes_with_the_service() {
    let home = service(&Topic::create("owner", 1));
    let socket = home.path("tmp/mtga.sock");
    assert_eq!(std::fs::metadata(&socket).expect("a socket").mode() & 0o777, 0o600);
    let mut open = home.connect();
    home.stop();
    assert!(!socket.try_exists().expect("a path"), "the socket is gone");
    let mut rest = Vec::new();
    assert_eq!(open.read_to_end(&mut rest).ok(), Some(0), "open connections are closed");
}
