//! `verify`: what it prints and how it exits, for directories that the test fills.

use std::fs;

use mtga::config::Compression;
use mtga::msink::manifest::{Manifest, Range, Source, name_for};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{Codec, Home, Mix, Topic, events};

/// A home that needs no broker, since none of these tests starts the service.
fn home() -> Home {
    let home = Home::with_brokers(
        &Topic { name: "none".to_owned(), partitions: 1, brokers: "127.0.0.1:1".to_owned() },
        "127.0.0.1:1",
    );
    fs::create_dir_all(home.path("data")).expect("a directory");
    home
}

/// Publishes one seal of one file, with a line for each offset.
fn publish(home: &Home, dir: &str, name: &str, from: i64, to: i64) {
    let text = (from..to).flat_map(|offset| format!("{{\"n\":{offset}}}\n").into_bytes()).collect::<Vec<_>>();
    let manifest = Manifest {
        file: Some(name.to_owned()),
        lines: (to - from) as u64,
        bytes: text.len() as u64,
        crc32c: crc32c::crc32c(&text),
        compression: Compression::None,
        source: Source::Range(Range { topic: "mulog".to_owned(), topic_id: "id".to_owned(), partition: 0, from, to }),
        home: "5f0c7a1e".to_owned(),
        incarnation: 1,
        number: from as u64,
        seal: None,
    };
    fs::write(home.path(format!("{dir}/{name}")), text).expect("a file");
    fs::write(home.path(format!("{dir}/{}", name_for(name))), manifest.to_json()).expect("a file");
}

#[test]
fn published_files_are_checked_and_each_fault_is_told_with_exit_1() {
    let home = home();
    publish(&home, "data", "t.0.log", 0, 1000);
    publish(&home, "data", "t.1.log", 1000, 1500);
    publish(&home, "data", "t.2.log", 1500, 1501);
    let fine = home.mtga(["verify"]).success();
    assert!(fine.starts_with("3 files as their manifests say: 1501 lines, "), "{fine}");
    assert!(fine.ends_with("\nno faults"), "{fine}");

    let path = home.path("data/t.1.log");
    let mut bytes = fs::read(&path).expect("a file");
    bytes[777] ^= 0x10;
    fs::write(&path, bytes).expect("a file");
    fs::remove_file(home.path("data/t.0.log")).expect("a file");
    fs::remove_file(home.path("data/t.0.log.manifest.json")).expect("a file");
    fs::remove_file(home.path("data/t.2.log")).expect("a file");
    let told = home.mtga(["verify"]).code(1).stdout;
    for text in ["| checksum ", "| missing ", "\n2 faults\n"] {
        assert!(told.contains(text), "{text} in\n{told}");
    }
    assert!(told.lines().all(|line| line.chars().count() <= 80), "{told}");

    let json = home.mtga(["verify", "--json", "--allow-missing"]).code(1).stdout;
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["faults"].as_array().map(Vec::len), Some(1), "{json}");
    assert_eq!(json["faults"][0]["kind"], "checksum");
    assert_eq!((&json["summary"]["missing"], &json["summary"]["ranges"]), (&Value::from(1), &Value::from(2)));
}

#[test]
fn the_files_of_several_instances_tile_together() {
    let home = home();
    fs::create_dir_all(home.path("other")).expect("a directory");
    publish(&home, "data", "t.0.log", 0, 10);
    publish(&home, "other", "t.1.log", 10, 20);
    publish(&home, "data", "t.2.log", 25, 30);
    let dirs = [home.path("data"), home.path("other")];
    let [data, other] = dirs.each_ref().map(|dir| dir.to_str().expect("a path in UTF-8"));
    let alone = home.mtga(["verify", "--json", data]).code(1).stdout;
    assert!(alone.contains(r#""place":"mulog[0] from 10 to 25""#), "{alone}");
    let both = home.mtga(["verify", "--json", data, other]).code(1).stdout;
    assert!(both.contains(r#""place":"mulog[0] from 20 to 25""#), "{both}");
    publish(&home, "other", "t.3.log", 19, 25);
    let both = home.mtga(["verify", data, other]).code(1).stdout;
    assert!(both.contains("| overlap ") && both.contains("\n1 fault\n"), "{both}");
}

/// A home that publishes a file for each log name as soon as it is idle.
fn publishing(topic: &Topic, file: &str) -> Home {
    let mut home = Home::new(topic);
    home.set("sink.visibility", "sealed").set("sink.file", file);
    home.set("sink.rotate", json!({"size": "1MiB", "age": "1h", "idle": "1s"}));
    home
}

/// What `verify` finds while it exits with 0.
fn unknown(home: &Home) -> Vec<Value> {
    let found: Value = serde_json::from_str(&home.mtga(["verify", "--json"]).success()).expect("JSON");
    assert_eq!(found["faults"], json!([]));
    found["unknown"].as_array().expect("a list").clone()
}

fn is_publishing(unknown: &[Value]) -> bool {
    unknown.iter().any(|unknown| unknown["kind"] == "publishing")
}

#[test]
fn a_seal_whose_publication_lasts_is_no_fault() {
    let topic = Topic::create("lasting", 1);
    let home = publishing(&topic, "{log_name}.{seq}.log");
    let produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, 200);
    let service = home.foreground_with(|command| command.env("FAULT_POINT", "publish.manifest:2:stop"));
    service.wait_frozen();
    assert_eq!(events::manifests(&home.path("data")).len(), 1, "the first file is published");
    assert!(is_publishing(&unknown(&home)));
    service.signal(Signal::SIGCONT);
    home.wait_done(&produced);
    service.terminate();
    assert!(!is_publishing(&unknown(&home)));
}

#[test]
fn a_file_whose_manifest_is_being_named_is_no_fault() {
    let topic = Topic::create("naming", 1);
    let home = publishing(&topic, "events.{seq}.log");
    let produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, 200);
    let service = home.foreground_with(|command| command.env("FAULT_POINT", "publish.renamed:1:stop"));
    service.wait_frozen();
    assert_eq!(events::paths(&home.path("data")).len(), 1, "the file has its name");
    assert!(is_publishing(&unknown(&home)));
    service.signal(Signal::SIGCONT);
    home.wait_done(&produced);
    service.terminate();
    assert!(!is_publishing(&unknown(&home)));
}

#[test]
fn what_verify_cannot_do_has_its_exit_code() {
    let home = home();
    let done = home.mtga(["verify", "/does/not/exist"]).code(73);
    assert!(done.stderr.contains("cannot read the event directory /does/not/exist"), "{}", done.stderr);
    home.mtga(["verify", "--allow-everything"]).code(64);
    // Live files are no faults of a home that writes them, and nothing is said of what is in them.
    fs::write(home.path("data/events.1.log"), "no line").expect("a file");
    let told = home.mtga(["verify"]).success();
    assert!(told.contains("1 live file: without a manifest, so not checked"), "{told}");
    home.mtga(["verify", home.path("data").to_str().expect("a path in UTF-8")]).code(1);
}
