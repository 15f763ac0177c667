//! Hidden files that are not what they were, names that come again, and names that records choose: nothing is published that is
//! not whole, and no record loses its line to a file name.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use mtga::msource::journal::{self, State};
use serde_json::{Value, json};

use crate::harness::{Codec, Home, Mix, Record, SOON, Topic, events, holds, oracle, wait_until};

const BY_ITSELF: [&str; 2] = ["1s", "200ms"];
const AT_A_STOP: [&str; 2] = ["1h", "1h"];

fn rotate(home: &mut Home, [age, idle]: [&str; 2]) {
    home.set("sink.rotate", json!({"size": "1MiB", "age": age, "idle": idle}));
}

/// A sealed home, without a group, that publishes only when it is told to stop.
fn sealed(topic: &Topic) -> Home {
    let mut home = Home::new(topic);
    home.set("sink.visibility", "sealed").set("store.checkpoint", "100ms");
    rotate(&mut home, AT_A_STOP);
    home
}

fn data(home: &Home) -> PathBuf {
    home.path("data")
}

/// What the journal amounts to.
fn state(home: &Home) -> Result<State, String> {
    let contents = journal::read(&home.path("tmp/store/journal")).map_err(|error| error.to_string())?;
    let mut state = contents.state.unwrap_or_default();
    contents.tail.iter().for_each(|frame| state.apply(frame));
    Ok(state)
}

/// Waits until a checkpoint covers so many records.
fn wait_durable(home: &Home, records: usize) {
    wait_until("a checkpoint covers everything", SOON, || {
        let state = journal::read(&home.path("tmp/store/journal")).map_err(|error| error.to_string())?.state;
        let consumed = state.map_or(0, |state| state.totals.consumed);
        holds(consumed == records as u64, consumed)
    });
}

/// Hides these records, and kills the service when all of it is durable.
fn hide(home: &Home, records: usize) {
    let service = home.foreground();
    wait_durable(home, records);
    service.kill();
    assert_ne!(events::hidden(&data(home)), Vec::<PathBuf>::new());
}

fn remove_hidden(home: &Home) {
    for path in events::hidden(&data(home)) {
        fs::remove_file(path).expect("a hidden file");
    }
}

/// Publishes what is left, and demands that every record is there once.
fn assert_published(home: &Home, produced: &[Record]) {
    let service = home.foreground();
    home.wait_done(produced);
    service.terminate();
    assert_eq!(events::hidden(&data(home)), Vec::<PathBuf>::new());
    events::assert_exactly(&oracle::expect(produced).lines, &home.events());
    home.mtga(["verify"]).code(0);
}

/// Waits until nothing is growing and nothing is prepared.
fn wait_decided(home: &Home) {
    wait_until("what was hidden is decided", SOON, || {
        let state = state(home)?;
        let grows = state.partitions.values().any(|here| here.growth.is_some());
        holds(!grows && state.seals.is_empty(), &state.partitions)
    });
}

#[test]
fn a_range_whose_hidden_file_is_gone_is_never_published_and_is_read_again() {
    let topic = Topic::create("whole", 1);
    let mut home = sealed(&topic);
    let produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, 200);
    hide(&home, produced.len());
    remove_hidden(&home);
    // To move past them would skip them: nobody would read them again.
    let refused = home.mtga(["set_offset", &topic.name, "latest"]).code(1);
    assert!(refused.stderr.contains("records from offset 0 on are gone"), "{}", refused.stderr);

    // The timers call while no broker is there, so that the partition is nobody's yet.
    let brokers = topic.brokers.clone();
    home.set("kafka.brokers", "127.0.0.1:1");
    rotate(&mut home, BY_ITSELF);
    let service = home.foreground();
    wait_decided(&home);
    assert_eq!(events::manifests(&data(&home)), Vec::<PathBuf>::new(), "no manifest says that there was nothing");
    assert_eq!(state(&home).expect("a journal").totals.consumed, 0, "the counts are taken back");
    assert!(home.log().contains("hidden lines are missing"), "an ERROR tells of it");
    service.terminate();
    home.set("kafka.brokers", brokers);
    assert_published(&home, &produced);
}

#[test]
fn a_prepared_range_whose_hidden_file_is_gone_is_read_again_unless_a_reader_took_the_published_file() {
    let topic = Topic::create("prepared", 1);
    let mut home = sealed(&topic);
    let mut produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, 200);
    rotate(&mut home, BY_ITSELF);
    home.killed_at("publish.begin");
    remove_hidden(&home);
    fs::write(home.path("data/other"), "").expect("a file");
    let service = home.foreground();
    home.wait_done(&produced);
    wait_decided(&home);
    service.terminate();
    fs::remove_file(home.path("data/other")).expect("a file");
    assert_published(&home, &produced);

    // From when it has its name on, a file is its reader's, whether its manifest is there or not.
    for point in ["publish.renamed", "publish.done"] {
        produced.extend(topic.fill(Codec::Snappy, Mix::Dirty, produced.len() as u64, 100));
        home.killed_at(point);
        let taken = home.path("taken");
        fs::create_dir_all(&taken).expect("a directory");
        for path in events::paths(&data(&home)) {
            fs::rename(&path, taken.join(path.file_name().expect("a name"))).expect("a file");
        }
        let service = home.foreground();
        home.wait_done(&produced);
        wait_decided(&home);
        service.terminate();
        home.mtga(["verify", "--allow-missing"]).code(0);
        for path in events::paths(&taken) {
            fs::rename(&path, data(&home).join(path.file_name().expect("a name"))).expect("a file");
        }
        assert_published(&home, &produced);
    }
}

#[test]
fn a_name_that_comes_again_gets_no_manifest_of_the_file_before() {
    let topic = Topic::create("again", 1);
    let mut home = sealed(&topic);
    let mut produced = topic.fill(Codec::Snappy, Mix::Clean, 0, 150);
    assert_published(&home, &produced);
    // A collector takes event files and leaves manifests, and the store is lost.
    for path in events::paths(&data(&home)) {
        fs::remove_file(path).expect("an event file");
    }
    fs::remove_dir_all(home.path("tmp/store")).expect("the store");
    produced.extend(topic.fill(Codec::Snappy, Mix::Clean, 150, 50));
    rotate(&mut home, AT_A_STOP);
    let service = home.foreground();
    home.wait_done(&produced);
    service.terminate();
    events::assert_exactly(&oracle::expect(&produced).lines, &home.events());
    let told = home.mtga(["verify", "--json", "--allow-missing"]).code(1);
    let report: Value = serde_json::from_str(&told.stdout).expect("JSON");
    let faults = report["faults"].as_array().expect("faults");
    let kinds: BTreeSet<_> = faults.iter().filter_map(|fault| fault["kind"].as_str()).collect();
    assert_eq!(kinds, BTreeSet::from(["overlap"]), "with its store a home forgets what it published: {report}");
}

/// A record of this log name that becomes a line.
fn of_log(log_name: &str, n: usize) -> Record {
    let text = format!(
        r#"{{"headers":{{"app_id":24,"log_name":"{log_name}"}},"logs":{{"sn":"0-{n}","role_id":"r","mtime":1608184243}}}}"#
    );
    Record { partition: 0, key: None, value: Some(text.into_bytes()), timestamp: 1_700_000_000_000 }
}

/// Publishes a record of each of these log names in one seal; the names of the files, in the order of their lines.
fn published(file: &str, logs: &[&str]) -> Vec<String> {
    let topic = Topic::create("names", 1);
    let mut home = sealed(&topic);
    home.set("sink.file", file).set("validation", "off");
    let produced: Vec<_> = logs.iter().enumerate().map(|(n, log)| of_log(log, n)).collect();
    topic.produce(Codec::None, &produced);
    let service = home.foreground();
    home.wait_done(&produced);
    service.terminate();
    home.mtga(["verify"]).code(0);
    let mut names = vec![String::new(); logs.len()];
    for file in home.events() {
        let [line] = &file.lines[..] else { panic!("one line in {}", file.name) };
        let base = file.name.rsplit('/').next().expect("a name");
        names[events::origin(line).1 as usize] = base.replace(&topic.name, "TOPIC");
    }
    names
}

#[test]
fn records_choose_no_name_of_ours() {
    // The number 1 and `0a.manifest.json` beside the number 10 and `a`.
    let logs = ["l0", "0a.manifest.json", "l2", "l3", "l4", "l5", "l6", "l7", "l8", "l9", "a"];
    let names = published("{partition}-{topic}/{seq}{log_name}", &logs);
    assert_eq!(names[0], "0l0");
    assert_eq!(names[1], "~1~0a%2Emanifest.json");
    assert_eq!(names[10], "10a");
    let names = published("{partition}/{topic}.{seq}.{log_name}", &["x.manifest.json", "x.undecided", "y"]);
    assert_eq!(names, ["TOPIC.0.x%2Emanifest.json", "TOPIC.1.x%2Eundecided", "TOPIC.2.y"]);
}
