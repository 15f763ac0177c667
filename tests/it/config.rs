//! What is wrong with a home is said at once, with its place; what will come is waited for.

use std::fs;
use std::net::TcpListener;

use mtga::control::State;

use crate::harness::{Codec, Home, Mix, SOON, Topic, holds, wait_until};

/// A home that needs no broker.
fn unconnected() -> Home {
    Home::with_brokers(&Topic::unmade("none", 1), "127.0.0.1:1")
}

#[test]
fn all_mistakes_are_reported_at_once_with_file_key_and_line() {
    let home = unconnected();
    fs::remove_file(home.path("config/mtga.local.yml")).expect("a file");
    fs::write(home.path("config/msource.yml"), "kafka:\n  topics: [t]\n  brokerz: nowhere:9092\nmemory: lots\n")
        .expect("a file");
    fs::write(home.path("config/mtga.yml"), "app_id: 24\nworkers: [1]\nsink:\n  fsync: perhaps\n").expect("a file");
    fs::write(home.path("settings/mthinkingdata:metadata.24.json"), "[\n  {\"log_name\": 7}\n]\n").expect("a file");
    for command in ["check", "start", "start_not_daemon"] {
        let done = home.mtga(if command == "check" { vec![command, "--offline"] } else { vec![command] }).code(78);
        for (file, line, key) in [
            ("msource.yml", 3, "brokerz"),
            ("msource.yml", 4, "memory"),
            ("mtga.yml", 2, "workers"),
            ("mtga.yml", 4, "fsync"),
        ] {
            let place = format!("{file}:{line}:");
            let told = done.stderr.lines().any(|text| text.contains(&place) && text.contains(key));
            assert!(told, "{command} tells of {key} at {place}\n{}", done.stderr);
        }
        assert!(!home.path("tmp/mtga.sock").try_exists().expect("a path"), "{command} started nothing");
    }
}

#[test]
fn a_broken_settings_file_is_reported_with_its_place() {
    let home = unconnected();
    fs::write(home.path("settings/mthinkingdata:metadata.24.json"), "[\n  // fine\n  {\"log_name\": 7}\n]\n")
        .expect("a file");
    fs::write(home.path("settings/mthinkingdata:filter.24.json"), "[\"a\",\n \"b\" \"c\"]").expect("a file");
    let done = home.mtga(["check", "--offline"]).code(78);
    for place in ["mthinkingdata:metadata.24.json:3:", "mthinkingdata:filter.24.json:2:"] {
        assert!(done.stderr.contains(place), "{place} is told\n{}", done.stderr);
    }
}

#[test]
fn a_missing_directory_of_settings_or_configuration_is_reported() {
    let mut home = unconnected();
    home.set("settings", "nowhere");
    let done = home.mtga(["check", "--offline"]).code(78);
    assert!(done.stderr.contains("nowhere"), "{}", done.stderr);
    let done = home.mtga(["--config", "/does/not/exist", "check", "--offline"]).code(78);
    assert!(done.stderr.contains("/does/not/exist"), "{}", done.stderr);
}

#[test]
fn wrong_usage_is_64() {
    let home = unconnected();
    home.mtga(["make_coffee"]).code(64);
    home.mtga(["failure_queue_list", "--limit", "many"]).code(64);
    home.mtga(["--help"]).code(0);
}

#[test]
fn the_environment_wins_over_the_files() {
    let home = unconnected();
    let mut command = home.command();
    command.env("MTGA_SINK__MODE", "stream").env("MTGA_KAFKA__GROUP_ID", "from_environment").arg("config");
    let done = crate::harness::process::Finished::run(&mut command, SOON).code(0);
    for text in ["mode: stream", "from_environment"] {
        assert!(done.stdout.contains(text), "{text}\n{}", done.stdout);
    }
}

#[test]
fn secrets_are_masked() {
    let mut home = unconnected();
    home.set("kafka.librdkafka", serde_json::json!({"sasl.password": "hunter2"}));
    let done = home.mtga(["config"]).code(0);
    assert!(!done.stdout.contains("hunter2") && done.stdout.contains("sasl.password"), "{}", done.stdout);
}

#[test]
fn a_secret_under_a_name_that_librdkafka_does_not_know_is_shown_nowhere() {
    let mut home = unconnected();
    for name in ["sasl.pasword", "sasl.passwd", "ssl.key.pasword", "slas.pwd", "passwd"] {
        home.set("kafka.librdkafka", serde_json::json!({name: "hunter2"}));
        let shown = home.mtga(["config"]).code(0).stdout;
        assert!(shown.contains(&format!("\"{name}\": \"***\"")), "{shown}");
        for args in [&["check", "--offline"][..], &["check"], &["kafka_lag"], &["start"], &["start_not_daemon"]] {
            let refused = home.mtga(args).code(78);
            assert!(refused.stderr.contains(name), "{args:?}: {refused:?}");
            assert!(!format!("{refused:?}").contains("hunter2"), "{args:?}: {refused:?}");
        }
        let log = home.log();
        assert!(log.contains(name) && !log.contains("hunter2"), "{log}");
        fs::remove_file(home.path("logs/mtga.log")).expect("a log");
    }
}

#[test]
fn an_absent_broker_is_waited_for_and_status_says_so() {
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
    let brokers = format!("127.0.0.1:{port}");
    let home = Home::with_brokers(&Topic::unmade("none", 1), &brokers);
    home.start();
    let status = home.status();
    assert_eq!(status.state, State::Waiting, "{status:?}");
    assert!(status.reason.as_ref().is_some_and(|reason| reason.contains(&brokers)), "{status:?}");
    home.stop();
}

#[test]
fn a_second_daemon_on_the_same_home_is_refused() {
    let home = unconnected();
    home.start();
    let pid = home.pid();
    for command in ["start", "start_not_daemon"] {
        let done = home.mtga([command]).code(73);
        assert!(done.stderr.contains(&pid.to_string()), "{command} names the other: {}", done.stderr);
    }
    assert_eq!(home.pid(), pid);
    home.stop();
}

#[test]
fn what_a_killed_daemon_left_is_recognised_and_replaced() {
    let topic = Topic::create("stale", 1);
    let home = Home::new(&topic);
    home.start();
    home.kill9();
    assert!(home.path("tmp/mtga.sock").try_exists().expect("a path"), "the dead daemon's socket is there");
    home.mtga(["status"]).code(3);
    home.stop();
    // The number in the stale file is another process's by now.
    fs::write(home.path("tmp/mtga.pid"), format!("{}\n", std::process::id())).expect("a file");
    home.mtga(["status"]).code(3);
    home.start();
    let produced = topic.fill(Codec::Snappy, Mix::Clean, 0, 100);
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    home.stop();
}

#[test]
fn read_commands_work_without_a_service() {
    let topic = Topic::create("offline", 3);
    let produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, 900);
    let home = Home::new(&topic);
    assert_eq!(home.integer("kafka_lag"), 900, "before the first start: all that there is");
    home.start();
    home.wait_done(&produced);
    let (running, failures) = (home.offsets(), home.failures().len());
    home.stop();
    assert_eq!(home.offsets(), running);
    assert_eq!(home.failures().len(), failures);
    topic.fill(Codec::Snappy, Mix::Clean, 900, 50);
    wait_until("the new records show as lag", SOON, || {
        let lag = home.lag()?;
        holds(lag == 50, lag)
    });
}
