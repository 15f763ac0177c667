//! `adopt`: the home of an instance that is gone, finished and taken over.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use mtga::control::FailureEntry;
use nix::sys::stat::Mode;
use serde_json::{Value, json};

use crate::harness::broker;
use crate::harness::cases::for_each;
use crate::harness::process::Finished;
use crate::harness::tail::Tail;
use crate::harness::topic::Load;
use crate::harness::{Codec, Home, Mix, Record, SOON, Topic, events, holds, oracle, wait_until};

/// Two instances of one group, the first of which is about to be lost.
fn two_in_group(topic: &Topic) -> (Home, Home) {
    let (mut lost, mut ours) = (Home::new(topic), Home::new(topic));
    lost.in_group();
    ours.in_group().set("kafka.instance_id", "two");
    (lost, ours)
}

fn seal(home: &mut Home) {
    home.set("sink.visibility", "sealed").set("sink.rotate", json!({"age": "1s", "idle": "500ms", "size": "300KiB"}));
}

/// Adopts, and demands that it works.
fn adopt(ours: &Home, lost: &Home) -> Value {
    let done = Finished::run(ours.command().args(["--json", "adopt"]).arg(lost.path("")), 2 * SOON);
    serde_json::from_str(&done.success()).expect("adopt prints JSON")
}

/// Adopts and is killed at this place.
fn adopt_killed_at(ours: &Home, lost: &Home, place: &str) {
    use std::os::unix::process::ExitStatusExt as _;
    let status = ours.command().env("FAULT_POINT", place).arg("adopt").arg(lost.path("")).status().expect("it runs");
    assert_eq!(status.signal(), Some(9), "{place}: {status}");
}

fn outcomes(report: &Value, list: &str) -> Vec<String> {
    let mut outcomes: Vec<_> = report[list]
        .as_array()
        .expect("a list")
        .iter()
        .map(|row| row["outcome"].as_str().expect("an outcome").to_owned())
        .collect();
    outcomes.sort();
    outcomes.dedup();
    outcomes
}

/// Demands that the files and queues of both homes together are exactly what must become of these records.
fn assert_exactly_together(homes: [&Home; 2], produced: &[Record]) {
    let expected = oracle::expect(produced);
    let files: Vec<_> = homes.iter().flat_map(|home| home.events()).collect();
    // An instance that goes on somewhere else begins a file of its own: only the order within each is promised.
    let mut found: Vec<&String> = files.iter().flat_map(|file| &file.lines).collect();
    let mut lines: Vec<&String> = expected.lines.values().flatten().collect();
    found.sort();
    lines.sort();
    events::assert_same("both homes", &lines, &found);
    for file in &files {
        assert_in_order(&expected.lines, &file.lines);
    }
    let counts = homes.map(|home| home.status().counts);
    let rejected: u64 = expected.counts.rejected.iter().sum();
    let waiting: i64 = homes.iter().map(|home| home.integer("failure_queue_count")).sum();
    assert_eq!(waiting, rejected as i64);
    let sum = |of: fn(&mtga::control::Counts) -> u64| counts.iter().map(of).sum::<u64>();
    assert_eq!(sum(|counts| counts.consumed), produced.len() as u64);
    assert_eq!(sum(|counts| counts.written), expected.counts.written);
    assert_balanced(&homes);
}

fn assert_in_order(expected: &std::collections::BTreeMap<i32, Vec<String>>, lines: &[String]) {
    for all in expected.values() {
        let place: std::collections::HashMap<&String, usize> = all.iter().enumerate().map(|(at, l)| (l, at)).collect();
        let places: Vec<_> = lines.iter().filter_map(|line| place.get(line)).collect();
        assert!(places.is_sorted(), "lines of one partition stand in a file in another order");
    }
}

fn assert_balanced(homes: &[&Home]) {
    for home in homes {
        let counts = home.status().counts;
        let outcomes = counts.written + counts.filtered.iter().sum::<u64>() + counts.rejected.iter().sum::<u64>();
        assert_eq!(counts.consumed + counts.retried, outcomes + counts.in_flight, "{counts:?}");
    }
}

fn assert_verified(homes: [&Home; 2]) {
    let done = Finished::run(homes[0].command().arg("verify").args(homes.map(|home| home.path("data"))), SOON);
    assert!(done.stdout.contains("no faults"), "{done:?}");
    done.code(0);
}

fn wait_no_lag(home: &Home) {
    wait_until("no lag", 2 * SOON, || {
        let status = home.try_status()?;
        holds(status.lag == Some(0) && status.partitions > 0 && status.counts.in_flight == 0, status)
    });
}

/// Waits until nothing is hidden any more.
fn wait_published(home: &Home) {
    wait_until("everything is published", SOON, || {
        let hidden = events::hidden(&home.path("data"));
        holds(hidden.is_empty(), hidden)
    });
}

/// The first instance is killed at this step of a seal, the second one takes over, and then adopts the home of the first, in
/// which it is killed at `kill` before.
fn assert_published_once_after_takeover(step: &str, kill: Option<&str>, outcome: &str) {
    let topic = Topic::create("adopt", 3);
    let (mut lost, mut ours) = two_in_group(&topic);
    seal(&mut lost);
    seal(&mut ours);
    let load = topic.load(Codec::Snappy, Mix::Dirty);
    lost.killed_at(&format!("{step}:2"));
    let mut produced = load.stop();
    let tail = Tail::follow(&lost.path("data"));
    let service = ours.foreground();
    wait_no_lag(&ours);
    wait_published(&ours);
    service.terminate();
    if let Some(kill) = kill {
        adopt_killed_at(&ours, &lost, kill);
    }
    let report = adopt(&ours, &lost);
    if kill.is_none() {
        assert!(outcomes(&report, "files").contains(&outcome.to_owned()), "{report}");
    }
    let service = ours.foreground();
    produced.extend(topic.fill(Codec::Snappy, Mix::Dirty, produced.len() as u64, 900));
    wait_no_lag(&ours);
    wait_published(&ours);
    service.terminate();
    assert_exactly_together([&lost, &ours], &produced);
    assert_verified([&lost, &ours]);
    tail.assert_nothing_was_taken_back();
}

/// Several of them side by side: most of their time is the session of the lost member.
fn assert_each_published_once(cases: &[(&str, Option<&str>, &str)]) {
    for_each(cases.len(), cases, |(step, kill, outcome)| {
        assert_published_once_after_takeover(step, *kill, outcome);
    });
}

#[test]
fn what_was_prepared_and_not_committed_is_read_by_the_next_owner_alone() {
    assert_each_published_once(&[("seal.prepared", None, "removed"), ("seal.commit", Some("refuse.noted"), "removed")]);
}

#[test]
fn what_was_committed_is_published_by_whoever_adopts_it() {
    assert_each_published_once(&[
        ("seal.answered", None, "published"),
        ("publish.begin", Some("publish.renamed"), "published"),
        ("publish.renamed", Some("adopt.settled"), "published"),
    ]);
}

/// Lets an instance work under load until it has written something, and kills it. Nobody else knows how far it came,
/// however late that is.
fn lose(lost: &mut Home, load: Load) -> Vec<Record> {
    lost.set("store.checkpoint", "1h");
    let service = lost.foreground();
    lost.wait_written(3000);
    service.kill();
    load.stop()
}

#[test]
fn positions_of_a_live_home_reach_the_group_before_anybody_takes_over() {
    let topic = Topic::create("adoptlive", 3);
    let (mut lost, ours) = two_in_group(&topic);
    let produced = lose(&mut lost, topic.load(Codec::Snappy, Mix::Dirty));
    for place in ["adopt.commit", "adopt.committed"] {
        adopt_killed_at(&ours, &lost, place);
    }
    let report = adopt(&ours, &lost);
    assert_eq!(outcomes(&report, "positions"), ["current"], "the killed one has committed them: {report}");
    let service = ours.foreground();
    wait_no_lag(&ours);
    service.terminate();
    assert_exactly_together([&lost, &ours], &produced);
}

#[test]
fn positions_of_a_live_home_are_left_to_whoever_has_taken_over() {
    let topic = Topic::create("adoptlate", 2);
    let (mut lost, ours) = two_in_group(&topic);
    lose(&mut lost, topic.load(Codec::Snappy, Mix::Clean));
    // In each partition there is something to go on with.
    topic.fill(Codec::Snappy, Mix::Clean, 1_000_000, 100);
    let service = ours.foreground();
    wait_no_lag(&ours);
    service.terminate();
    let before = ours.offsets();
    let report = adopt(&ours, &lost);
    assert_eq!(outcomes(&report, "positions"), ["elsewhere"], "{report}");
    assert_eq!(ours.offsets(), before);
    // At least once, and each file whole.
    lost.events();
}

#[test]
fn an_adoption_waits_until_a_running_member_has_the_partitions() {
    let topic = Topic::create("adoptbusy", 2);
    let (lost, mut other) = two_in_group(&topic);
    other.set("kafka.instance_id", "three");
    let (_, ours) = two_in_group(&topic);
    let load = topic.load(Codec::Snappy, Mix::Clean);
    let service = lost.foreground();
    lost.wait_written(1000);
    let running = other.foreground();
    other.wait_written(1000);
    service.kill();
    load.stop();
    // The group takes nothing from outside all the while, and gives the partition of the lost one to the other one.
    let report = adopt(&ours, &lost);
    let outcomes = outcomes(&report, "positions");
    assert!(outcomes.contains(&"elsewhere".to_owned()) && !outcomes.contains(&"committed".to_owned()), "{report}");
    wait_until("the other one has both partitions", SOON, || {
        let status = other.try_status()?;
        holds(status.partitions == 2, status)
    });
    running.terminate();
}

/// Sets the group's offsets as a tool does: with nothing beside them. Waits until the group has no members.
fn set_by_a_tool(topic: &Topic, offset: i64) {
    use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
    let consumer: BaseConsumer = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", broker::address())
        .set("group.id", format!("g_{}", topic.name))
        .create()
        .expect("the consumer's configuration is sound");
    let mut list = rdkafka::TopicPartitionList::new();
    for partition in 0..topic.partitions {
        list.add_partition_offset(&topic.name, partition, rdkafka::Offset::Offset(offset)).expect("an offset");
    }
    wait_until("the group takes offsets from outside", SOON, || {
        consumer.commit(&list, CommitMode::Sync).map_err(|error| error.to_string())
    });
}

#[test]
fn files_of_which_the_group_does_not_tell_are_set_aside() {
    let topic = Topic::create("adoptaside", 1);
    let (mut lost, ours) = two_in_group(&topic);
    seal(&mut lost);
    topic.fill(Codec::Snappy, Mix::Clean, 0, 500);
    lost.killed_at("seal.answered");
    set_by_a_tool(&topic, 7);
    let report = adopt(&ours, &lost);
    assert_eq!(outcomes(&report, "files"), ["set_aside"], "{report}");
    for file in report["files"].as_array().expect("a list") {
        let path = file["path"].as_str().expect("a path");
        assert!(fs::metadata(path).is_ok_and(|file| file.len() > 0), "{path}");
    }
    assert_eq!(lost.events().len(), 0);
    assert_eq!(outcomes(&report, "positions"), ["elsewhere"], "{report}");
}

/// Without a group: our home goes on where the lost one ended. The adoption is killed at each of these places before.
fn assert_goes_on_alone(configure: impl Fn(&mut Home), lose: impl Fn(&mut Home, Load) -> Vec<Record>, kills: &[&str]) {
    let topic = Topic::create("adoptall", 3);
    let (mut lost, mut ours) = (Home::new(&topic), Home::new(&topic));
    configure(&mut lost);
    configure(&mut ours);
    let tail = Tail::follow(&lost.path("data"));
    let produced = lose(&mut lost, topic.load(Codec::Snappy, Mix::Dirty));
    for place in kills {
        adopt_killed_at(&ours, &lost, place);
    }
    let report = adopt(&ours, &lost);
    assert!(!report["positions"].as_array().expect("a list").is_empty(), "{report}");
    let service = ours.foreground();
    wait_no_lag(&ours);
    service.terminate();
    assert_exactly_together([&lost, &ours], &produced);
    tail.assert_nothing_was_taken_back();
}

/// The steps of an adoption without a group.
const STEPS: [&str; 6] =
    ["adopt.recovered", "adopt.settled", "adopt.added", "adopt.removed", "adopt.moved:2", "adopt.done"];

#[test]
fn our_home_goes_on_where_the_lost_one_ended_however_often_the_adoption_is_killed() {
    assert_goes_on_alone(|_| (), lose, &STEPS);
}

#[test]
fn our_home_goes_on_where_the_lost_one_ended_with_hidden_files() {
    let lose = |lost: &mut Home, load: Load| {
        lost.killed_at("seal.prepared:2");
        load.stop()
    };
    assert_goes_on_alone(seal, lose, &["publish.begin", "publish.renamed", "adopt.settled", "adopt.moved"]);
}

#[test]
fn a_copied_home_is_completed_like_a_mounted_one() {
    let topic = Topic::create("adoptcopy", 2);
    let (mut lost, ours) = (Home::new(&topic), Home::new(&topic));
    let produced = lose(&mut lost, topic.load(Codec::Snappy, Mix::Dirty));
    // What a kill between the journal and the file leaves.
    let open = events::paths(&lost.path("data")).pop().expect("a file");
    let length = open.metadata().expect("a file").len();
    fs::File::options().write(true).open(&open).and_then(|file| file.set_len(length - 1)).expect("a file");
    let copy = lost.path("../copy");
    let copied = Command::new("cp").arg("--archive").arg(lost.path("")).arg(&copy).status().expect("cp runs");
    assert!(copied.success());
    let done = Finished::run(ours.command().args(["--json", "adopt"]).arg(&copy), 2 * SOON);
    let report: Value = serde_json::from_str(&done.success()).expect("JSON");
    assert_eq!(outcomes(&report, "files"), ["completed"], "{report}");
    let service = ours.foreground();
    wait_no_lag(&ours);
    service.terminate();
    let expected = oracle::expect(&produced);
    let files = [events::read(&copy.join("data")), ours.events()];
    let mut found: Vec<_> = files.iter().flatten().flat_map(|file| &file.lines).collect();
    let mut lines: Vec<_> = expected.lines.values().flatten().collect();
    found.sort();
    lines.sort();
    events::assert_same("both homes", &lines, &found);
}

#[test]
fn a_home_that_was_killed_itself_and_taken_over_adopts_every_entry_of_the_queue() {
    let topic = Topic::create("adoptopen", 2);
    let (mut lost, mut ours) = two_in_group(&topic);
    seal(&mut lost);
    seal(&mut ours);
    ours.set("sink.rotate", json!({"age": "1h", "idle": "1h"})).set("store.checkpoint", "100ms");
    let produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, 2000);
    let service = ours.foreground();
    wait_no_lag(&ours);
    wait_until("a checkpoint covers everything", SOON, || {
        let state = mtga::msource::journal::read(&ours.path("tmp/store/journal")).map_err(|error| error.to_string())?;
        let consumed = state.state.map_or(0, |state| state.totals.consumed);
        holds(consumed == 2000, consumed)
    });
    service.kill();
    // Whoever takes over reads the same records, and is lost too.
    let service = lost.foreground();
    wait_no_lag(&lost);
    wait_published(&lost);
    service.kill();
    adopt(&ours, &lost);
    let service = ours.foreground();
    wait_no_lag(&ours);
    wait_published(&ours);
    service.terminate();
    assert_exactly_together([&lost, &ours], &produced);
    assert_verified([&lost, &ours]);
}

/// What an entry is, apart from its place in a queue and its age.
fn contents(entries: Vec<FailureEntry>) -> Vec<(i32, i64, mtga::record::Reason, String, u32, u64, String)> {
    entries.into_iter().map(|e| (e.partition, e.offset, e.reason, e.detail, e.attempts, e.size, e.head)).collect()
}

#[test]
fn the_failure_queue_moves_once_and_in_order_however_often_the_adoption_is_killed() {
    let topic = Topic::create("adoptqueue", 2);
    let (lost, ours) = (Home::new(&topic), Home::new(&topic));
    let produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, 6000);
    lost.start();
    lost.wait_done(&produced);
    lost.mtga(["retry_failure_queue"]).code(0);
    lost.stop();
    let before = contents(lost.failures());
    assert!(before.len() > 500, "more than one chunk: {}", before.len());
    for place in ["adopt.added", "adopt.added:2", "adopt.removed", "adopt.done"] {
        adopt_killed_at(&ours, &lost, place);
    }
    adopt(&ours, &lost);
    assert_eq!(contents(ours.failures()), before);
    assert_eq!(lost.integer("failure_queue_count"), 0);
    assert_balanced(&[&lost, &ours]);
    let cleared = ours.mtga(["clear_failure_queue"]).success();
    assert_eq!(cleared, before.len().to_string());
}

#[test]
fn an_adopted_home_runs_no_more_and_a_second_adoption_does_nothing() {
    let topic = Topic::create("adopted", 1);
    let produced = topic.fill(Codec::None, Mix::Clean, 0, 100);
    let (lost, ours) = (Home::new(&topic), Home::new(&topic));
    lost.start();
    lost.wait_done(&produced);
    let place = lost.path("");
    let refused = Finished::run(ours.command().arg("adopt").arg(&place), SOON);
    assert!(refused.stderr.contains("a home whose instance lives is not adopted"), "{refused:?}");
    refused.code(73);
    lost.stop();
    ours.start();
    let refused = Finished::run(ours.command().arg("adopt").arg(&place), SOON);
    assert!(refused.stderr.contains("already runs on this home"), "{refused:?}");
    refused.code(1);
    ours.stop();
    let done = Finished::run(ours.command().arg("adopt").arg(&place), SOON);
    assert!(done.stdout.lines().all(|line| line.len() <= 80 || line.contains("point a collector")), "{}", done.stdout);
    done.code(0);
    for command in [["start"].as_slice(), &["start_not_daemon"], &["check", "--offline"], &["clear_failure_queue"]] {
        let refused = lost.mtga(command);
        assert!(refused.stderr.contains("this home was adopted at"), "{refused:?}");
        refused.code(78);
    }
    lost.mtga(["status"]).code(3);
    let again = Finished::run(ours.command().arg("adopt").arg(&place), SOON);
    assert!(again.stdout.contains("nothing left to do"), "{again:?}");
    again.code(0);
}

#[test]
fn what_is_no_home_of_another_instance_is_refused() {
    let topic = Topic::create("adoptno", 1);
    let produced = topic.fill(Codec::None, Mix::Clean, 0, 10);
    let (mut lost, ours) = (Home::new(&topic), Home::new(&topic));
    let refuse = |dir: &Path, code: i32, text: &str| {
        let refused = Finished::run(ours.command().arg("adopt").arg(dir), SOON);
        assert!(refused.stderr.contains(text), "{text}: {refused:?}");
        refused.code(code);
    };
    refuse(&ours.path(""), 64, "is this home itself");
    refuse(&ours.path("nowhere"), 64, "cannot find the home");
    refuse(&ours.path("bin"), 64, "is no home");
    refuse(&lost.path(""), 73, "store.path of the other home");
    lost.start();
    lost.wait_done(&produced);
    lost.stop();
    lost.set("sink.dir", "/var/lib/elsewhere");
    refuse(&lost.path(""), 73, "a directory of this host");
    fs::rename(lost.path("data"), lost.path("../away")).expect("a directory");
    std::os::unix::fs::symlink(lost.path("../away"), lost.path("data")).expect("a link");
    lost.set("sink.dir", "data");
    refuse(&lost.path(""), 73, "a directory of this host");
    fs::remove_file(lost.path("data")).expect("a link");
    fs::rename(lost.path("../away"), lost.path("data")).expect("a directory");
    lost.set("app_id", 25);
    refuse(&lost.path(""), 64, "of its own app");
    lost.set("app_id", 24);
    fs::write(lost.path("config/common.env"), "export MTGA_SINK__DIR=$(pwd)\n").expect("a file");
    refuse(&lost.path(""), 78, "config/common.env:1");
    fs::write(lost.path("config/common.env"), "").expect("a file");
    // Our own variables mean our home.
    let done =
        Finished::run(ours.command().env("MTGA_SINK__DIR", ours.path("data")).arg("adopt").arg(lost.path("")), SOON);
    done.code(0);
    assert_eq!(lost.events().iter().map(|file| file.lines.len()).sum::<usize>(), 10);
}

/// What is below a directory, the modes of all of it, and what is in its files.
fn listed(dir: &Path) -> Vec<(PathBuf, u32, Vec<u8>)> {
    let mode = |path: &Path| fs::symlink_metadata(path).expect("an entry").permissions().mode();
    let mut found = vec![(dir.to_owned(), mode(dir), Vec::new())];
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(listed(&path));
        } else {
            found.push((path.clone(), mode(&path), fs::read(&path).expect("a file")));
        }
    }
    found.sort();
    found
}

#[test]
fn links_and_pipes_in_the_home_of_another_instance_lead_nowhere() {
    let topic = Topic::unmade("none", 1);
    let brokers = "127.0.0.1:1";
    let (lost, ours) = (Home::with_brokers(&topic, brokers), Home::with_brokers(&topic, brokers));
    for home in [&lost, &ours] {
        home.start();
        home.stop();
    }
    let host = lost.path("").parent().expect("a parent").join("host");
    fs::create_dir_all(host.join("below")).expect("a directory");
    fs::write(host.join("file"), "secret: of the host\n").expect("a file");
    for path in ["", "below", "file"] {
        fs::set_permissions(host.join(path), Permissions::from_mode(0o755)).expect("permissions");
    }
    let kept = lost.path("").parent().expect("a parent").join("kept");
    // Links, and pipes where nothing is named.
    let cases = [
        ("tmp/store/sled", Some(host.clone())),
        ("tmp/store/sled", Some(ours.path("data"))),
        // Within the home it could lead out of it by another name.
        ("tmp/store/sled", Some(PathBuf::from("journal"))),
        ("tmp/store/sled.new", Some(host.clone())),
        ("tmp/store/sled/db", Some(host.join("file"))),
        ("tmp/store/sled/other", None),
        ("tmp/store/journal", Some(host.clone())),
        ("tmp/store/recipes", Some(host.clone())),
        ("tmp/store/lock", Some(host.join("file"))),
        ("config", Some(host.clone())),
        ("config/mtga.local.yml", Some(host.join("file"))),
        ("config/msource.yml", None),
        ("settings", Some(host.clone())),
        ("settings/mthinkingdata:filter.24.json", None),
    ];
    let before = (listed(&host), listed(&ours.path("data")));
    for (place, to) in cases {
        let entry = lost.path(place);
        let was_there = fs::rename(&entry, &kept).is_ok();
        match to {
            Some(to) => symlink(to, &entry).expect("a link"),
            None => nix::unistd::mkfifo(&entry, Mode::from_bits_truncate(0o600)).expect("a pipe"),
        }
        let refused = Finished::run(ours.command().arg("adopt").arg(lost.path("")), SOON);
        assert!(refused.stderr.contains(&format!("/{place} ")), "{place}: {refused:?}");
        assert!(!refused.stderr.contains("secret"), "{place}: {refused:?}");
        refused.code(73);
        assert_eq!((listed(&host), listed(&ours.path("data"))), before, "{place}");
        fs::remove_file(&entry).expect("a link or a pipe");
        if was_there {
            fs::rename(&kept, &entry).expect("what was there");
        }
    }
    // As it was, nothing but the broker is missing.
    let refused = Finished::run(ours.command().arg("adopt").arg(lost.path("")), SOON);
    assert!(!refused.stderr.contains(" is a "), "{refused:?}");
}

/// A record that has no id until the settings say where it is.
fn nameless(n: u64) -> Record {
    let text = format!(
        r#"{{"headers":{{"app_id":24,"log_name":"log_chat"}},"logs":{{"sn":"0-{n}","nick":"p{n}","mtime":1608184243}}}}"#
    );
    Record { partition: 0, key: None, value: Some(text.into_bytes()), timestamp: 1_700_000_000_000 }
}

#[test]
fn entries_that_became_lines_between_two_adoptions_are_not_taken_over_again() {
    let (topic, other) = (Topic::create("adoptagain", 1), Topic::create("adoptother", 1));
    let produced: Vec<_> = (0..20).map(nameless).collect();
    let (lost, mut ours) = (Home::new(&topic), Home::new(&topic));
    ours.set("kafka.topics", vec![other.name.clone()]);
    topic.produce(Codec::None, &produced);
    lost.start();
    lost.wait_done(&produced);
    lost.stop();
    let mapping = r##"[{"log_name": "log_chat", "event_name": "t_{log_name}", "event_type": "track", "metadata": {
        "#account_id": {"field": "nick", "default": ""}, "#time": {"field": "mtime", "default": ""}}}]"##;
    let mended = ours.path("settings/mthinkingdata:metadata.24.json");
    adopt_killed_at(&ours, &lost, "adopt.added");
    assert_eq!((ours.integer("failure_queue_count"), lost.integer("failure_queue_count")), (20, 20));
    fs::write(&mended, mapping).expect("a file");
    // With other settings they are tried again by themselves.
    ours.start();
    ours.wait_written(20);
    ours.stop();
    let report = adopt(&ours, &lost);
    assert_eq!((&report["entries"], &report["known_entries"]), (&Value::from(0), &Value::from(20)), "{report}");
    assert_eq!((ours.integer("failure_queue_count"), lost.integer("failure_queue_count")), (0, 0));
    ours.start();
    ours.mtga(["retry_failure_queue"]).success();
    let mut lines: Vec<_> = ours.events().into_iter().flat_map(|file| file.lines).collect();
    assert_eq!(lines.len(), 20);
    lines.sort();
    lines.dedup();
    assert_eq!(lines.len(), 20, "each once");
    ours.stop();
    assert_balanced(&[&lost, &ours]);
}
