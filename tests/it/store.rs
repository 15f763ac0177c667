//! The store: damaged, lost, or copied, under the real program. What becomes of it in detail is tested beside the code.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use mtga::control::State;

use crate::harness::{Codec, Home, Mix, Record, SOON, Topic, events, holds, oracle, wait_until};

/// Gives the store a snapshot that is none: sled refuses to open it, although everything else is whole.
fn confuse(home: &Home) {
    fs::write(home.path("tmp/store/sled/snap.0000000000ffffff"), [7; 100]).expect("a file");
}

/// Overwrites many places of the store's log: sled opens it as if it were new.
fn scribble(home: &Home) {
    let path = home.path("tmp/store/sled/db");
    let length = fs::metadata(&path).expect("a store").len();
    let file = fs::File::options().write(true).open(&path).expect("a file");
    for place in 0..200 {
        file.write_all_at(&[0xa5; 16], length * place / 200 + 100).expect("a write");
    }
}

fn remove(home: &Home, path: &str) {
    fs::remove_dir_all(home.path(path)).expect("a directory");
}

/// What is in the failure queue, without what changes with time.
fn queue(home: &Home) -> Vec<(u64, i32, i64, String)> {
    home.failures().into_iter().map(|entry| (entry.position, entry.partition, entry.offset, entry.head)).collect()
}

/// Runs the service until everything is done, lets something happen to its store while it is down, and demands that
/// nothing is missing and nothing is there twice.
#[track_caller]
fn survives(purpose: &str, end: fn(&Home), happens: impl Fn(&Home), said: &str) {
    let topic = Topic::create(purpose, 2);
    let mut produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, 2000);
    let mut home = Home::new(&topic);
    home.in_group();
    home.start();
    home.wait_done(&produced);
    let before = queue(&home);
    end(&home);
    happens(&home);
    home.start();
    produced.extend(topic.fill(Codec::Snappy, Mix::Dirty, 2000, 500));
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    let after = queue(&home);
    assert!(after.starts_with(&before), "{} entries before, {} after", before.len(), after.len());
    home.wait_logged(said);
    home.stop();
    home.start();
    home.assert_exactly(&produced);
    home.stop();
}

#[test]
fn a_damaged_store_is_rebuilt_with_nothing_missing() {
    let looked_at = |home: &Home| {
        confuse(home);
        let told = home.mtga(["failure_queue_count"]);
        let told = told.code(1).stderr;
        assert!(told.contains("`mtga start` sets it aside"), "{told}");
        home.mtga(["status"]).code(3);
    };
    survives("damaged", Home::stop, looked_at, "the store is damaged: rebuilding it");
}

#[test]
fn a_store_that_forgot_everything_is_filled_again_with_nothing_missing() {
    survives("scribbled", Home::stop, scribble, "the store is behind the journal");
}

#[test]
fn a_store_that_is_gone_is_rebuilt_with_nothing_missing() {
    survives("storeless", Home::kill9, |home| remove(home, "tmp/store/sled"), "the store is behind the journal");
}

#[test]
fn without_its_journal_a_home_goes_on_with_what_its_store_has() {
    survives(
        "journalless",
        Home::stop,
        |home| remove(home, "tmp/store/journal"),
        "the journal is gone, or lost its end",
    );
}

#[test]
fn without_its_recipes_a_home_goes_on() {
    survives("recipeless", Home::kill9, |home| remove(home, "tmp/store/recipes"), "state=Consuming");
}

#[test]
fn a_kill_while_the_store_is_rebuilt_leaves_one_to_go_on_with() {
    let killed = |home: &Home| {
        confuse(home);
        home.killed_at("store_aside");
        assert!(!home.path("tmp/store/sled").try_exists().expect("a path"), "it was killed in time");
    };
    survives("aside", Home::stop, killed, "the store is damaged: rebuilding it");
}

fn copy_of(home: &Home, topic: &Topic) -> Home {
    let copy = Home::new(topic);
    let copied = Command::new("cp").arg("-a").arg(home.path("tmp/store")).arg(copy.path("tmp")).status();
    assert!(copied.is_ok_and(|status| status.success()), "the store is copied");
    copy
}

/// The lines of both homes together.
fn lines(homes: [&Home; 2]) -> Vec<String> {
    let mut lines: Vec<String> = homes.iter().flat_map(|home| home.events()).flat_map(|file| file.lines).collect();
    lines.sort();
    lines
}

#[test]
fn a_copy_in_the_same_group_takes_turns_with_its_origin_and_loses_nothing() {
    let topic = Topic::create("copied", 2);
    let mut produced: Vec<Record> = Vec::new();
    let mut origin = Home::new(&topic);
    origin.in_group();
    origin.start();
    let more = |produced: &mut Vec<Record>, home: &Home| {
        produced.extend(topic.fill(Codec::Snappy, Mix::Clean, produced.len() as u64, 500));
        wait_until("no lag", SOON, || {
            let status = home.try_status()?;
            holds(status.state == State::Consuming && status.lag == Some(0) && status.counts.in_flight == 0, status)
        });
        home.stop();
    };
    more(&mut produced, &origin);
    let mut copy = copy_of(&origin, &topic);
    copy.in_group();
    for _ in 0..2 {
        copy.start();
        more(&mut produced, &copy);
        origin.start();
        more(&mut produced, &origin);
    }
    assert!(copy.log().contains("this store is a copy"), "it knows");
    assert!(!origin.log().contains("this store is a copy"), "and the origin is none");
    let mut expected: Vec<_> = oracle::expect(&produced).lines.into_values().flatten().collect();
    expected.sort();
    events::assert_same("both homes", &expected, &lines([&origin, &copy]));
}

#[test]
fn a_store_of_a_newer_format_is_refused_and_left_alone() {
    let topic = Topic::create("newer", 1);
    let home = Home::new(&topic);
    home.start();
    home.stop();
    let sled = home.path("tmp/store/sled");
    {
        let store = sled::Config::new().path(&sled).open().expect("the store");
        store.insert("state", &[9_u8, 1, 2][..]).expect("a write");
        store.flush().expect("a write");
    }
    let refused = home.mtga(["start"]).code(1);
    assert!(refused.stderr.contains("format 9, newer than this program"), "{refused:?}");
    assert_eq!(entries_of(&home.path("tmp/store")), ["journal", "lock", "recipes", "sled"], "nothing was set aside");
}

#[test]
fn recipes_that_nothing_names_any_more_go() {
    let topic = Topic::create("recipes", 1);
    let mut home = Home::new(&topic);
    home.set("store.history", "1s");
    let mut produced = Vec::new();
    for round in 0..3 {
        fs::write(home.path("settings/mthinkingdata:filter.24.json"), format!("[\"tbllog_*\", \"no_{round}\"]\n"))
            .expect("a file");
        home.start();
        produced.extend(topic.fill(Codec::None, Mix::Clean, round * 10, 10));
        home.wait_done(&produced);
        home.stop();
        let last = produced.len();
        assert_eq!(last as u64, (round + 1) * 10);
        age(&home.path("tmp/store/journal"));
    }
    home.start();
    // The last one, which is in force, and none of the two before.
    assert_eq!(entries_of(&home.path("tmp/store/recipes")).len(), 1);
    home.stop();
    home.start();
    home.assert_exactly(&produced);
    home.stop();
}

fn entries_of(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Makes every file below a directory an hour older.
fn age(dir: &Path) {
    for name in entries_of(dir) {
        let file = fs::File::options().write(true).open(dir.join(name)).expect("a file");
        let then = std::time::SystemTime::now() - std::time::Duration::from_hours(1);
        file.set_modified(then).expect("a file's time");
    }
}

#[test]
fn a_topic_that_was_deleted_after_a_crash_does_not_keep_the_others_waiting() {
    let (topic, gone) = (Topic::create("stays", 1), Topic::create("goes", 1));
    let mut home = Home::new(&topic);
    home.set("store.checkpoint", "1h").set("kafka.topics", vec![topic.name.clone(), gone.name.clone()]);
    let service = home.foreground();
    home.wait_for(State::Consuming);
    topic.fill(Codec::None, Mix::Clean, 0, 200);
    home.wait_written(200);
    gone.fill(Codec::None, Mix::Clean, 1000, 200);
    home.wait_written(400);
    service.kill();
    // What a kill in the middle of a write leaves.
    let path = events::paths(&home.path("data")).pop().expect("an event file");
    let file = fs::File::options().write(true).open(path).expect("a file");
    file.set_len(file.metadata().expect("a file").len() - 40).expect("a file");
    gone.delete();
    let again = |home: &Home| home.foreground_with(|command| command.env("FAULT_REREAD_MS", "1000"));
    let service = again(&home);
    wait_until("the way out is shown", SOON, || {
        let status = home.try_status()?;
        holds(status.reason.as_ref().is_some_and(|reason| reason.contains("take it out of `kafka.topics`")), status)
    });
    service.terminate();
    home.set("kafka.topics", vec![topic.name.clone()]);
    let service = again(&home);
    home.wait_for(State::Consuming);
    topic.fill(Codec::None, Mix::Clean, 200, 100);
    let written = || {
        // The line that was torn stays, ended: collectors may have seen it.
        let whole = home.events().into_iter().flat_map(|file| file.lines).filter(|line| line.trim_end().ends_with('}'));
        whole.map(|line| events::origin(&line).1).collect::<Vec<_>>()
    };
    wait_until("the other one is read on", SOON, || holds(written().contains(&299), home.try_status()));
    let (stays, went): (Vec<_>, Vec<_>) = written().into_iter().partition(|number| *number < 1000);
    assert_eq!(stays, (0..300).collect::<Vec<_>>());
    let status = home.status();
    assert_eq!(status.gap_records, 200 - went.len() as u64);
    assert!(status.gap_records > 0, "{status:?}");
    home.wait_logged("a gap: records that a crash cut short cannot be read again");
    service.terminate();
}

/// Takes the last bytes of the last event file away: what a kill in the middle of a write leaves.
fn tear(home: &Home) {
    let path = events::paths(&home.path("data")).pop().expect("an event file");
    let file = fs::File::options().write(true).open(path).expect("a file");
    let length = file.metadata().expect("a file").len();
    file.set_len(length - 40).expect("a file");
}

#[test]
fn a_copy_of_a_home_that_was_killed_loses_no_record() {
    let topic = Topic::create("copied", 1);
    let mut home = Home::new(&topic);
    home.set("store.checkpoint", "1h");
    home.start();
    let produced = topic.fill(Codec::None, Mix::Clean, 0, 500);
    home.wait_written(500);
    home.kill9();
    tear(&home);
    let copy = {
        let mut copy = Home::new(&topic);
        copy.set("store.checkpoint", "1h");
        for part in ["tmp", "data"] {
            let from = home.path(part);
            let to = copy.path("");
            let status = Command::new("cp").arg("-a").arg(&from).arg(&to).status();
            assert!(status.is_ok_and(|status| status.success()), "{part} is copied");
        }
        drop(fs::remove_file(copy.path("tmp/mtga.sock")));
        copy
    };
    copy.start();
    copy.wait_done(&produced);
    copy.assert_exactly(&produced);
}

#[test]
fn a_command_between_a_rebuild_that_was_killed_and_the_next_start_costs_no_entry() {
    let topic = Topic::create("asked", 1);
    let mut home = Home::new(&topic);
    home.set("store.history", "1s");
    home.start();
    let produced = topic.fill(Codec::None, Mix::Dirty, 0, 500);
    home.wait_done(&produced);
    let before = home.integer("failure_queue_count");
    assert!(before > 0);
    for _ in 0..2 {
        home.stop();
        age(&home.path("tmp/store/journal"));
        home.start();
    }
    home.stop();
    fs::write(home.path("tmp/store/sled/snap.0000000000ffffff"), [7; 100]).expect("a file");
    home.killed_at("store_aside");
    // A monitor asks, whatever it is told.
    home.mtga(["failure_queue_count"]);
    home.start();
    assert_eq!(home.integer("failure_queue_count"), before);
    home.assert_exactly(&produced);
}
