//! Hidden files that are not what they were, names that come again or that records choose, topics that are not configured any
//! more: nothing is published that is not whole, and no record loses its line to a file name.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use mtga::control::State;
use mtga::msink::manifest::{self, Manifest};
use mtga::msource::journal;
use serde_json::{Value, json};

use crate::harness::{Codec, Home, Mix, Record, SOON, Topic, events, holds, oracle, wait_until};
use crate::wiped;

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
fn state(home: &Home) -> Result<journal::State, String> {
    let contents = journal::read(&home.path("tmp/store/journal")).map_err(|error| error.to_string())?;
    let mut state = contents.state.unwrap_or_default();
    contents.tail.iter().for_each(|frame| state.apply(frame));
    Ok(state)
}

/// Waits until a checkpoint covers so many records.
pub(crate) fn wait_durable(home: &Home, records: usize) {
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
    home.wait_logged("hidden lines are missing");
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
    let refused = home.mtga(["set_offset", &topic.name, "latest"]).code(1);
    assert!(refused.stderr.contains("records from offset 0 on are gone"), "{}", refused.stderr);
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

    // A reader may take the manifest with it, also before the journal has that it was published.
    produced.extend(topic.fill(Codec::Snappy, Mix::Dirty, produced.len() as u64, 100));
    let visible =
        || -> BTreeSet<_> { events::paths(&data(&home)).into_iter().chain(events::manifests(&data(&home))).collect() };
    let before = visible();
    home.killed_at("publish.done");
    let taken = home.path("taken");
    let new = &visible() - &before;
    for path in &new {
        fs::rename(path, taken.join(path.file_name().expect("a name"))).expect("a file");
    }
    let service = home.foreground();
    home.wait_done(&produced);
    wait_decided(&home);
    service.terminate();
    for path in &new {
        fs::rename(taken.join(path.file_name().expect("a name")), path).expect("a file");
    }
    assert_published(&home, &produced);
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
    // For good: another home begins.
    fs::remove_file(home.path("data/.mtga/checkpoint")).expect("a note");
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

/// Runs `verify`; what it says, without faults.
fn verified(home: &Home) -> Value {
    serde_json::from_str(&home.mtga(["verify", "--json"]).code(0).stdout).expect("JSON")
}

#[test]
fn manifests_tell_what_became_of_every_record() {
    for assignment in ["all", "group"] {
        let topic = Topic::create("told", 1);
        let mut home = sealed(&topic);
        if assignment == "group" {
            home.in_group();
        }
        let mut produced = Vec::new();
        for _ in 0..2 {
            produced.extend(topic.fill(Codec::Snappy, Mix::Dirty, produced.len() as u64, 100));
            assert_published(&home, &produced);
            assert_eq!(verified(&home)["unknown"], json!([]), "the start was pinned at the first record");
        }
        let mut seals: Vec<Manifest> = events::manifests(&data(&home))
            .iter()
            .map(|path| Manifest::parse(&fs::read(path).expect("a file")).expect("a manifest"))
            .collect();
        seals.sort_by_key(|manifest| manifest.number);
        let told: Vec<_> = seals.iter().map(|manifest| manifest.seal.clone().expect("what became of it")).collect();
        let counts = oracle::expect(&produced).counts;
        assert_eq!(told.iter().map(|seal| seal.consumed).sum::<u64>(), 200);
        assert_eq!(told.iter().map(|seal| seal.written).sum::<u64>(), counts.written);
        assert_eq!(told.iter().map(|seal| seal.filtered).sum::<u64>(), counts.filtered.iter().sum::<u64>());
        assert_eq!(told.iter().map(|seal| seal.rejected).sum::<u64>(), counts.rejected.iter().sum::<u64>());
        let [first, second] = &told[..] else { panic!("two seals: {seals:?}") };
        assert_eq!(first.after.as_ref().map(|after| after.number), (assignment == "group").then_some(0));
        assert_eq!(second.after.as_ref().map(|after| after.number), Some(seals[0].number));

        // Without the first seal nobody can tell by the manifests whether something came before.
        for path in [&seals[0].file].into_iter().flatten().map(|file| data(&home).join(file)) {
            fs::remove_file(&path).expect("a file");
            fs::remove_file(
                path.with_file_name(manifest::name_for(&path.file_name().expect("a name").to_string_lossy())),
            )
            .expect("a manifest");
        }
        assert_eq!(verified(&home)["unknown"][0]["kind"], "beginning");
    }
}

/// Removes every event file, and every manifest.
fn remove_published(home: &Home) {
    let published = [events::paths(&data(home)), events::manifests(&data(home))].concat();
    for path in &published {
        fs::remove_file(path).expect("a file");
    }
}

/// What `verify` does not know of offsets before the first seal: kinds and places.
fn unknown_before(home: &Home) -> Vec<(String, String)> {
    let found = verified(home);
    let text = |row: &Value, name: &str| row[name].as_str().expect("a text").to_owned();
    let rows = found["unknown"].as_array().expect("a list").iter();
    rows.map(|row| (text(row, "kind"), text(row, "place"))).collect()
}

#[test]
fn verify_takes_no_place_for_a_pinned_start_because_nothing_is_known_of_a_commit_before_it() {
    let topic = Topic::create("pinned", 1);
    let mut produced = topic.fill(Codec::Snappy, Mix::Clean, 0, 100);
    let before = |to| vec![("beginning".to_owned(), format!("{}[0] before {to}", topic.name))];
    // A tool wipes what stood beside the group's offset.
    let mut wiped = sealed(&topic);
    wiped.in_group();
    assert_published(&wiped, &produced);
    wiped::set(&topic, 100);
    // An operator moves back, with and without a group.
    let mut moved = [sealed(&topic), sealed(&topic)];
    moved[0].set("kafka.group_id", format!("alone_{}", topic.name));
    moved[1].in_group().set("kafka.group_id", format!("moved_{}", topic.name));
    for home in &moved {
        assert_published(home, &produced);
        remove_published(home);
        home.mtga(["set_offset", &topic.name, "60"]).success();
    }
    // One that is begun here has nothing before it.
    let mut later = sealed(&topic);
    later.set("kafka.start", "latest").set("kafka.group_id", format!("later_{}", topic.name));
    let service = later.foreground();
    later.wait_done(&[]);
    produced.extend(topic.fill(Codec::Snappy, Mix::Clean, 100, 50));
    later.wait_done(&produced[100..]);
    service.terminate();
    assert_eq!(unknown_before(&later), []);
    remove_published(&wiped);
    assert_published_alone(&wiped, &produced[100..]);
    assert_eq!(unknown_before(&wiped), before(100));
    for home in &moved {
        assert_published_alone(home, &produced[60..]);
        assert_eq!(unknown_before(home), before(60));
    }
}

/// Publishes what is left, of which these lines are all that is there then.
fn assert_published_alone(home: &Home, produced: &[Record]) {
    let service = home.foreground();
    home.wait_done(produced);
    service.terminate();
    events::assert_exactly(&oracle::expect(produced).lines, &home.events());
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

/// A record without ids under the built-in mapping; its name is in `nick`.
fn nameless(partition: i32, n: u64) -> Record {
    let text = format!(
        r#"{{"headers":{{"app_id":24,"log_name":"log_chat"}},"logs":{{"sn":"{partition}-{n}","nick":"p{n}","mtime":1608184243}}}}"#
    );
    Record { partition, key: None, value: Some(text.into_bytes()), timestamp: 1_700_000_000_000 }
}

/// Settings under which they have one.
fn mend(home: &Home) {
    let mapping = r##"[{"log_name": "log_chat", "event_name": "t_{log_name}", "event_type": "track", "metadata": {
        "#account_id": {"field": "nick", "default": ""}, "#time": {"field": "mtime", "default": ""}}}]"##;
    fs::write(home.path("settings/mthinkingdata:metadata.24.json"), mapping).expect("a file");
}

#[test]
fn an_entry_that_is_not_decided_yet_holds_up_no_later_entry() {
    let topic = Topic::create("open", 2);
    let mut home = sealed(&topic);
    home.set("sink.rotate.size", "64KiB");
    topic.produce(Codec::None, &[nameless(0, 0)]);
    let service = home.foreground();
    wait_durable(&home, 1);
    // The other partition is published for its size.
    let long = "x".repeat(70_000);
    let large = format!(
        r#"{{"headers":{{"app_id":24,"log_name":"log_chat"}},"logs":{{"sn":"1-1","role_id":"r","nick":"{long}","mtime":1608184243}}}}"#
    );
    let large = Record { partition: 1, key: None, value: Some(large.into_bytes()), timestamp: 1_700_000_000_000 };
    topic.produce(Codec::None, &[nameless(1, 0), large]);
    wait_until("the large record is published", SOON, || holds(!events::paths(&data(&home)).is_empty(), ()));
    assert_eq!(home.integer("failure_queue_count"), 2);
    mend(&home);
    home.mtga(["reload"]).success();
    wait_until("the later entry is tried by itself", SOON, || {
        let count = home.integer("failure_queue_count");
        holds(count == 1, count)
    });
    let [left] = &home.failures()[..] else { panic!("one entry is left") };
    assert_eq!(left.partition, 0, "what is not decided is left alone");
    service.terminate();
    let service = home.foreground();
    home.wait_for(State::Consuming);
    wait_until("the first one follows when it is decided", SOON, || {
        let count = home.integer("failure_queue_count");
        holds(count == 0, count)
    });
    service.terminate();
    home.mtga(["verify"]).code(0);
}

#[test]
fn what_is_hidden_of_a_topic_that_is_not_configured_any_more_is_decided() {
    for (assignment, point, instance) in
        [("group", "", ""), ("group", "seal.prepared", ""), ("group", "", "one"), ("all", "", "")]
    {
        let (kept, dropped) = (Topic::create("kept", 1), Topic::create("dropped", 1));
        let mut home = sealed(&kept);
        home.set("kafka.assignment", assignment).set("kafka.librdkafka", json!({"session.timeout.ms": "6000"}));
        // A static member is given the partition back at first.
        home.set("kafka.instance_id", instance);
        let both = json!([kept.name, dropped.name]);
        home.set("kafka.topics", both.clone());
        dropped.produce(Codec::None, &[nameless(0, 0), of_log("log_item", 1), of_log("log_item", 2)]);
        if point.is_empty() {
            hide(&home, 3);
        } else {
            rotate(&mut home, BY_ITSELF);
            home.killed_at(point);
        }
        home.set("kafka.topics", json!([kept.name]));
        rotate(&mut home, BY_ITSELF);
        kept.produce(Codec::None, &[nameless(0, 3), of_log("log_item", 4)]);
        let service = home.foreground();
        let undone = assignment == "group";
        wait_until("both topics are decided", SOON, || {
            let counts = home.try_status()?.counts;
            let expected = if undone { (2, 1) } else { (5, 3) };
            holds(counts.in_flight == 0 && (counts.consumed, counts.written) == expected, counts)
        });
        wait_decided(&home);
        wait_until("the queue has what was not taken back", SOON, || {
            let count = home.integer("failure_queue_count");
            holds(count == if undone { 1 } else { 2 }, count)
        });
        let said = "is not in kafka.topics any more";
        if undone {
            home.wait_logged(said);
        } else {
            assert!(!home.log().contains(said), "{}", home.log());
        }
        service.terminate();
        assert_eq!(events::hidden(&data(&home)), Vec::<PathBuf>::new());
        // Configured again, it goes on where the group or the journal has it.
        home.set("kafka.topics", both);
        let service = home.foreground();
        home.wait_for(State::Consuming);
        wait_until("everything is read", SOON, || {
            let counts = home.try_status()?.counts;
            holds(counts.consumed == 5 && counts.in_flight == 0, counts)
        });
        service.terminate();
        let lines: BTreeSet<_> =
            home.events().into_iter().flat_map(|file| file.lines).map(|line| events::origin(&line).1).collect();
        assert_eq!(lines, BTreeSet::from([1, 2, 4]));
        assert_eq!(home.events().iter().map(|file| file.lines.len()).sum::<usize>(), 3);
        home.mtga(["verify"]).code(0);
    }
}
