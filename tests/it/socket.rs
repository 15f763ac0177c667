//! The control socket as foreign programs use it, and misuse it.

use std::fs::{self, Permissions};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use mtga::control::State;
use serde_json::{Value, json};

use crate::harness::process::Finished;
use crate::harness::{Codec, Home, Mix, Proxy, Record, SOON, Topic, holds, wait_until};

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

#[test]
fn two_hundred_clients_that_ask_for_long_lists_and_never_read_cost_bounded_memory() {
    let topic = Topic::create("lists", 1);
    let record =
        |n: u64| Record { partition: 0, key: None, value: Some(format!("no JSON {n}").into_bytes()), timestamp: 0 };
    topic.produce(Codec::None, &(0..10_000).map(record).collect::<Vec<_>>());
    let home = Home::new(&topic);
    let service = home.foreground();
    wait_until("all are rejected", SOON, || {
        let status = home.try_status()?;
        holds(status.failure_queue_records == 10_000, status)
    });
    let before = service.memory("VmRSS:") >> 20;
    let request = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"FailureQueueList\",\"params\":{\"limit\":10000}}\n";
    let clients: Vec<_> = (0..200)
        .map(|_| {
            let mut client = home.connect();
            client.write_all(request.as_bytes()).expect("a request can be sent");
            client
        })
        .collect();
    assert_answered_soon(|| assert_eq!(home.status().state, State::Consuming));
    // One list that is read comes as a whole, whatever the others do.
    let list = home.mtga(["--json", "failure_queue_list", "--limit", "10"]);
    let peak = service.memory("VmHWM:") >> 20;
    eprintln!("{before} MiB before, {peak} MiB at most");
    assert!(peak < before + 160, "{before} MiB before, {peak} MiB at most: {list:?}");
    drop(clients);
    service.terminate();
}

#[test]
fn monitors_keep_no_stop_waiting_while_the_brokers_do_not_answer() {
    let topic = Topic::create("monitors", 1);
    let proxy = Proxy::new(&topic.brokers);
    let produced = topic.fill(Codec::Snappy, Mix::Clean, 0, 100);
    let home = Home::with_brokers(&topic, proxy.address());
    home.start();
    home.wait_done(&produced);
    proxy.stall();
    wait_until("nobody knows the lag", SOON, || {
        let status = home.try_status()?;
        holds(status.lag.is_none() && status.reason.is_some(), status)
    });
    let ask = |method: &str| {
        let mut stream = home.connect();
        writeln!(stream, "{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"{method}\"}}").expect("sent");
        BufReader::new(stream)
    };
    let monitors: Vec<_> = (0..200).map(|_| ask("Status")).collect();
    let begun = Instant::now();
    let answer = line(&mut ask("Stop"));
    let took = begun.elapsed();
    // Behind all that the monitors ask the brokers it would wait for a minute; the machine may stall for some seconds.
    assert!(took < Duration::from_secs(20), "{answer} after {took:?}");
    drop(monitors);
}

#[test]
fn a_member_of_the_group_exports_into_one_directory_and_makes_no_file_anywhere_else() {
    const MEMBER: u32 = 65_534;
    assert!(nix::unistd::geteuid().is_root(), "this test needs root");
    let topic = Topic::create("members", 1);
    topic.produce(Codec::None, &[Record { partition: 0, key: None, value: Some(b"no JSON".to_vec()), timestamp: 0 }]);
    let mut home = Home::new(&topic);
    home.set("rpc.permissions", "0660");
    let group = nix::unistd::Group::from_gid(MEMBER.into()).expect("groups").map(|group| group.name);
    let Some(group) = group else { return };
    home.set("rpc.group", group);
    home.start();
    wait_until("it is rejected", SOON, || {
        let status = home.try_status()?;
        holds(status.failure_queue_records == 1, status)
    });
    for path in ["..", "", "tmp"] {
        fs::set_permissions(home.path(path).canonicalize().expect("a path"), Permissions::from_mode(0o755))
            .expect("ours");
    }
    let clear = |export: &str| {
        let request =
            json!({"jsonrpc": "2.0", "id": 1, "method": "ClearFailureQueue", "params": {"export": home.path(export)}});
        let script = "use IO::Socket::UNIX; my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die $!;
            print $s $ARGV[1], qq(\\n); $s->flush; print scalar <$s>;";
        let socket = home.path("tmp/mtga.sock").display().to_string();
        let ids = [format!("--reuid={MEMBER}"), format!("--regid={MEMBER}"), "--clear-groups".to_owned()];
        let perl = ["/usr/bin/perl", "-e", script, &socket, &request.to_string()];
        let done = Finished::run(Command::new("setpriv").args(ids).args(perl), SOON).success();
        serde_json::from_str::<Value>(done.lines().last().unwrap_or_default()).expect("JSON")
    };
    for export in ["tmp/store/adopted.json", "data/events.9.log", "tmp/exports/../store/adopted.json", "elsewhere"] {
        let answer = clear(export);
        assert_eq!(answer["error"]["data"]["kind"], "cannot_create", "{answer}");
        assert!(!home.path(export).try_exists().expect("a path"), "{export}");
    }
    assert_eq!(clear("tmp/exports/bad.jsonl")["result"], 1);
    let exported = fs::read_to_string(home.path("tmp/exports/bad.jsonl")).expect("a file");
    assert!(exported.contains("no JSON"), "{exported}");
    home.mtga(["clear_failure_queue", "--export", &home.path("data/x").display().to_string()]).code(73);
    home.stop();
    // Whoever made it: an empty file is no mark of an adoption.
    fs::write(home.path("tmp/store/adopted.json"), "").expect("a file");
    home.start();
    home.stop();
    fs::write(home.path("tmp/store/adopted.json"), "{}").expect("a file");
    let refused = home.mtga(["start"]).code(78);
    assert!(refused.stderr.contains("adopted.json is not what `adopt` writes"), "{refused:?}");
}

/// Demands that whoever asks is answered soon, most times of ten: a machine that stalls may make one wait.
fn assert_answered_soon(ask: impl Fn()) {
    let mut times: Vec<_> = (0..10)
        .map(|_| {
            let asked = Instant::now();
            ask();
            asked.elapsed()
        })
        .collect();
    times.sort();
    assert!(times[5] < Duration::from_secs(5), "who asks waits {times:?}");
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
    assert_answered_soon(|| drop(home.mtga(["kafka_lag"]).success()));
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
