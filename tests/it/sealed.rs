//! Hidden files: nothing is seen before it is complete, and what is seen was taken by the group.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::harness::process::Service;
use crate::harness::tail::Tail;
use crate::harness::{Codec, Home, Mix, Record, SOON, Topic, events, holds, wait_until};

/// A home that hides its files until they are complete, which is soon.
fn sealed(topic: &Topic) -> Home {
    let mut home = Home::new(topic);
    hide(&mut home);
    home
}

/// Has a home hide its files for a moment.
pub(crate) fn hide(home: &mut Home) -> &mut Home {
    home.set("sink.visibility", "sealed").set("sink.rotate", serde_json::json!({"age": "2s", "idle": "500ms"}))
}

/// Every manifest has its file, every file its manifest, and the ranges fit together.
fn assert_verified(home: &Home) {
    let done = home.mtga(["--json", "verify"]).code(0);
    let report: Value = serde_json::from_str(&done.stdout).expect("verify prints JSON");
    assert!(report.to_string().contains("files"), "{report}");
}

/// Waits until everything produced can be seen.
fn wait_seen(home: &Home, produced: &[Record]) {
    home.wait_done(produced);
    wait_nothing_hidden(home);
}

fn wait_nothing_hidden(home: &Home) {
    wait_until("everything is published", SOON, || {
        let hidden = events::hidden(&home.path("data"));
        holds(hidden.is_empty(), hidden)
    });
}

/// Waits until everything that a home has written is published and verified, if it hides its files.
pub(crate) fn wait_verified(home: &Home) {
    if home.hides() {
        wait_nothing_hidden(home);
        assert_verified(home);
    }
}

/// Waits until a service, whose files are hidden or not, has done all of this, demands that every record is there once, and
/// ends it.
pub(crate) fn assert_exactly_once(home: &Home, service: Service, produced: &[Record]) {
    home.wait_done(produced);
    wait_verified(home);
    home.assert_exactly(produced);
    service.terminate();
}

fn assert_published(prepare: impl Fn(&mut Home)) {
    let topic = Topic::create("sealed", 4);
    let produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, 12_000);
    let mut home = sealed(&topic);
    prepare(&mut home);
    let service = home.foreground();
    wait_seen(&home, &produced);
    home.assert_exactly(&produced);
    assert_verified(&home);
    service.terminate();
    home.assert_exactly(&produced);
    assert_verified(&home);
}

#[test]
fn records_become_exactly_their_lines_in_files_that_are_published() {
    assert_published(|_| ());
}

#[test]
fn records_of_a_group_become_exactly_their_lines_in_files_that_are_published() {
    assert_published(|home| {
        home.in_group();
    });
}

#[test]
fn nothing_is_seen_before_it_is_complete_and_a_stop_publishes_it() {
    let topic = Topic::create("hidden", 2);
    let mut home = sealed(&topic);
    home.in_group().set("sink.rotate", serde_json::json!({"age": "1h", "idle": "1h"}));
    let service = home.foreground();
    let produced = topic.fill(Codec::Snappy, Mix::Clean, 0, 3000);
    home.wait_done(&produced);
    assert_eq!(events::paths(&home.path("data")), Vec::<PathBuf>::new());
    assert_eq!(events::hidden(&home.path("data")).len(), 2, "a file for each partition");
    service.terminate();
    assert_eq!(events::hidden(&home.path("data")), Vec::<PathBuf>::new());
    home.assert_exactly(&produced);
    assert_verified(&home);
}

#[test]
fn files_are_published_although_a_checkpoint_takes_longer_than_the_time_between_two() {
    let topic = Topic::create("behind", 2);
    let mut home = sealed(&topic);
    home.set("store.checkpoint", "100ms");
    let load = topic.load_every(Duration::from_millis(20), Codec::Snappy, Mix::Dirty);
    let service = home.foreground_with(|command| command.env("FAULT_POINT", "checkpoint.begun:*:300"));
    wait_until("files are published under load", SOON, || {
        let published = events::paths(&home.path("data")).len();
        holds(published >= 4, published)
    });
    let produced = load.stop();
    wait_seen(&home, &produced);
    service.terminate();
    home.assert_exactly(&produced);
    assert_verified(&home);
}

#[test]
fn files_that_are_hidden_after_a_kill_of_live_ones_repeat_nothing() {
    let topic = Topic::create("turned", 2);
    let mut home = sealed(&topic);
    // The group hears of nothing that is written: its offsets stay where the partitions began.
    home.in_group().set("sink.visibility", "live").set("store.checkpoint", "10m");
    let mut produced = topic.fill(Codec::Snappy, Mix::Clean, 0, 2000);
    let service = home.foreground();
    home.wait_written(2000);
    service.kill();
    home.set("sink.visibility", "sealed").set("store.checkpoint", "1s");
    produced.extend(topic.fill(Codec::Snappy, Mix::Clean, 2000, 500));
    let service = home.foreground();
    wait_seen(&home, &produced);
    home.assert_exactly(&produced);
    service.terminate();
    home.assert_exactly(&produced);
}

#[test]
fn compressed_files_are_published_with_their_ending() {
    for (compression, ending, tool) in [("gzip", "log.gz", "gzip"), ("zstd", "log.zst", "zstd")] {
        let topic = Topic::create("packed", 2);
        let produced = topic.fill(Codec::Snappy, Mix::Clean, 0, 2000);
        let mut home = sealed(&topic);
        home.in_group().set("sink.compression", compression);
        let service = home.foreground();
        wait_seen(&home, &produced);
        service.terminate();
        assert_verified(&home);
        let paths = events::paths(&home.path("data"));
        assert!(!paths.is_empty());
        let mut lines = 0;
        for path in paths {
            assert!(path.to_string_lossy().ends_with(ending), "{path:?}");
            lines += mtga_lines(tool, &path);
        }
        assert_eq!(lines, produced.len());
    }
}

/// Lines of a file, unpacked by other means than ours.
fn mtga_lines(tool: &str, path: &Path) -> usize {
    use std::io::Read as _;
    let file = std::fs::File::open(path).expect("a file");
    let mut text = String::new();
    if tool == "gzip" {
        flate2::read::MultiGzDecoder::new(file).read_to_string(&mut text).expect("gzip members");
    } else {
        zstd::Decoder::new(file).expect("a decoder").read_to_string(&mut text).expect("zstd frames");
    }
    text.lines().count()
}

/// Lets something happen to a home under load, starts it, and demands that everything is published once.
fn assert_exactly_once_under_load(configure: impl Fn(&mut Home), happen: impl FnOnce(&Home)) {
    let topic = Topic::create("sealload", 4);
    let mut home = sealed(&topic);
    configure(&mut home);
    let tail = Tail::follow(&home.path("data"));
    let load = topic.load(Codec::Snappy, Mix::Dirty);
    happen(&home);
    let produced = load.stop();
    let service = home.foreground();
    wait_seen(&home, &produced);
    service.terminate();
    home.assert_exactly(&produced);
    assert_verified(&home);
    tail.assert_nothing_was_taken_back();
}

/// Kills the service again and again under load, each time after it has taken something more.
fn assert_exactly_once_through_kills(kills: u64, configure: impl Fn(&mut Home)) {
    assert_exactly_once_under_load(configure, |home| {
        for kill in 1..=kills {
            let service = home.foreground();
            home.wait_written(kill * 1713);
            service.kill();
        }
    });
}

#[test]
fn kill_9_under_load_publishes_every_record_once() {
    assert_exactly_once_through_kills(5, |home| {
        home.set("sink.rotate", serde_json::json!({"size": "300KiB", "age": "1s", "idle": "500ms"}));
    });
}

#[test]
fn kill_9_in_a_group_publishes_every_record_once() {
    assert_exactly_once_through_kills(4, |home| {
        home.in_group().set("sink.rotate", serde_json::json!({"size": "300KiB", "age": "1s", "idle": "500ms"}));
    });
}

/// The steps of publication, in their order.
pub(crate) const STEPS: [&str; 9] = [
    "seal.synced",
    "seal.prepared",
    "seal.commit",
    "seal.answered",
    "publish.begin",
    "publish.renamed",
    "publish.manifest",
    "publish.done",
    "publish.noted",
];

/// Those of a service without a group.
pub(crate) fn steps_alone() -> Vec<&'static str> {
    STEPS.into_iter().filter(|step| !matches!(*step, "seal.commit" | "seal.answered")).collect()
}

/// Kills the service between each two steps, three times at different seals.
fn assert_exactly_once_through_every_step(configure: impl Fn(&mut Home), steps: &[&str]) {
    assert_exactly_once_under_load(configure, |home| {
        for (index, step) in steps.iter().enumerate() {
            home.killed_at(&format!("{step}:{}", 1 + index % 3));
        }
    });
}

#[test]
fn a_kill_between_any_two_steps_of_publication_publishes_every_record_once() {
    assert_exactly_once_through_every_step(|_| (), &steps_alone());
}

#[test]
fn a_kill_between_any_two_steps_of_the_commit_in_a_group_publishes_every_record_once() {
    assert_exactly_once_through_every_step(
        |home| {
            home.in_group();
        },
        &STEPS,
    );
}
