//! A home that lies elsewhere than it did, or is as it was earlier: moved to another disk, copied, or with a backup of its store.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use mtga::control::State;

use crate::harness::cases::for_each;
use crate::harness::tail::Tail;
use crate::harness::{Codec, Home, Mix, Record, SOON, Topic, events, holds, oracle, wait_until};
use crate::sealed_files::wait_durable;

/// Every file below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.expect("an entry").path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.is_ok_and(|status| status.success()), "{} is copied", from.display());
}

/// Puts a backup of the store back: as another directory, or into the same files.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Back {
    Copied,
    InPlace,
}

/// Makes `to` what `from` is, in the same inodes as far as they are there.
fn overwrite(from: &Path, to: &Path) {
    let there = |dir: &Path| -> Vec<PathBuf> {
        files(dir).iter().map(|path| path.strip_prefix(dir).expect("it is below").to_owned()).collect()
    };
    for gone in there(to).into_iter().filter(|path| !from.join(path).is_file()) {
        fs::remove_file(to.join(gone)).expect("a file");
    }
    for path in there(from) {
        fs::create_dir_all(to.join(&path).parent().expect("a directory")).expect("a directory");
        fs::write(to.join(&path), fs::read(from.join(&path)).expect("a file")).expect("a file");
    }
}

/// What runs on a home, and how.
#[derive(Clone, Copy, Debug)]
struct Kind {
    in_group: bool,
    sealed: bool,
}

const KINDS: [Kind; 4] = [
    Kind { in_group: true, sealed: false },
    Kind { in_group: false, sealed: false },
    Kind { in_group: true, sealed: true },
    Kind { in_group: false, sealed: true },
];

impl Kind {
    fn home(self, topic: &Topic) -> Home {
        let mut home = Home::new(topic);
        if self.in_group {
            home.in_group();
        }
        if self.sealed {
            home.set("sink.visibility", "sealed");
        }
        home
    }
}

/// Does the same with every kind of home, beside each other.
fn for_each_kind(kinds: &[Kind], act: impl Fn(Kind) + Sync) {
    for_each(kinds.len(), kinds, |kind| act(*kind));
}

/// Waits until nothing is left to read. The counts may be of records that come twice.
fn wait_no_lag(home: &Home) {
    wait_until("no lag", 2 * SOON, || {
        let status = home.try_status()?;
        let done = status.state == State::Consuming && status.counts.in_flight == 0 && status.lag == Some(0);
        holds(done && home.lag()? == 0, status)
    });
}

/// How the run ends that comes after a backup, and before it is put back.
#[derive(Clone, Copy, PartialEq)]
enum Run {
    /// In order, with checkpoints.
    Stopped,
    /// By a kill before its first checkpoint.
    Killed,
}

/// 100 records, 200 more and a kill, a backup of the store, a run with 300 more, and the backup is put back. Every line that was
/// there stays. Returns the home, stopped, with what was produced.
fn put_back(kind: Kind, back: Back, run: Run) -> (Home, Vec<Record>) {
    let topic = Topic::create("putback", 1);
    let mut home = kind.home(&topic);
    let (store, backup) = (home.path("tmp/store"), home.path("../backup"));
    home.start();
    let mut produced = topic.fill(Codec::None, Mix::Clean, 0, 100);
    home.wait_done(&produced);
    home.stop();
    // What is hidden is in a backup only when a checkpoint covers it; what is visible need not be.
    home.set("store.checkpoint", if kind.sealed { "100ms" } else { "1h" });
    home.start();
    produced.extend(topic.fill(Codec::None, Mix::Clean, 100, 200));
    home.wait_written(300);
    if kind.sealed {
        wait_durable(&home, produced.len());
    }
    home.kill9();
    if run == Run::Killed {
        // So that the run after the backup begins with nothing to complete.
        home.start();
        home.wait_done(&produced);
        home.stop();
    }
    copy(&store, &backup);
    home.set("store.checkpoint", if run == Run::Killed { "1h" } else { "100ms" });
    home.start();
    produced.extend(topic.fill(Codec::None, Mix::Clean, 300, 300));
    match run {
        // In order, so that the group has been told.
        Run::Stopped => {
            home.wait_done(&produced);
            home.stop();
        }
        Run::Killed => {
            home.wait_written(600);
            home.kill9();
        }
    }
    let tail = Tail::follow(&home.path("data"));
    match back {
        Back::InPlace => overwrite(&backup, &store),
        Back::Copied => {
            fs::remove_dir_all(&store).expect("the store");
            copy(&backup, &store);
        }
    }
    home.set("store.checkpoint", "100ms");
    home.start();
    produced.extend(topic.fill(Codec::None, Mix::Clean, 600, 50));
    wait_no_lag(&home);
    home.stop();
    tail.assert_nothing_was_taken_back();
    assert!(home.log().contains("the store is older than the event files"), "it is logged");
    (home, produced)
}

/// Demands every record once, and those of `again` twice.
fn assert_repeated(home: &Home, produced: &[Record], again: std::ops::Range<usize>) {
    let mut found: Vec<_> = home.events().into_iter().flat_map(|file| file.lines).collect();
    let mut expected: Vec<_> = oracle::expect(produced).lines.into_values().flatten().collect();
    expected.extend(expected[again].to_vec());
    found.sort();
    expected.sort();
    events::assert_same("the event files", &expected, &found);
}

fn assert_put_back(kinds: &[Kind], run: Run, again: fn(Kind) -> std::ops::Range<usize>) {
    let put_back = |kind, back| {
        let (home, produced) = put_back(kind, back, run);
        assert_repeated(&home, &produced, again(kind));
        if !kind.in_group && !again(kind).is_empty() {
            let from = format!("from={}", again(kind).start);
            let log = home.log();
            let told = log.lines().find(|line| line.contains("that have lines or entries already are repeated"));
            assert!(told.is_some_and(|line| line.contains(&from)), "the range is logged: {told:?}");
        }
    };
    for_each_kind(kinds, |kind| {
        for_each(2, &[Back::Copied, Back::InPlace], |back| put_back(kind, *back));
    });
}

#[test]
fn a_backup_of_the_store_that_is_put_back_goes_on_where_the_group_is() {
    assert_put_back(&[KINDS[0], KINDS[2]], Run::Stopped, |_| 0..0);
}

#[test]
fn a_backup_of_the_store_that_is_put_back_without_a_group_repeats_what_came_since_and_takes_nothing_back() {
    // What was hidden when the backup was made was published since.
    assert_put_back(&[KINDS[1], KINDS[3]], Run::Stopped, |kind| if kind.sealed { 100..600 } else { 300..600 });
}

#[test]
fn a_backup_of_the_store_that_is_put_back_after_a_run_without_a_checkpoint_takes_nothing_back() {
    // Nobody but the event files knows of what came since.
    assert_put_back(&KINDS, Run::Killed, |kind| if kind.sealed { 0..0 } else { 300..600 });
}

/// Puts the store on another disk, and leaves the old one where it is.
fn move_store(home: &mut Home, to: &str) {
    let from = home.store();
    copy(&from, &home.path(to));
    home.set("store.path", to);
}

/// What the log says at each start at another place.
const MOVED: &str = "this home was moved or copied";

/// Runs a home under load and kills it, again and again. In between it is moved, with its event files or without them.
fn assert_moves(kind: Kind, checkpoint: &str, with_its_files: bool) {
    let topic = Topic::create("moves", 2);
    let mut home = kind.home(&topic);
    home.set("store.checkpoint", checkpoint);
    let load = topic.load_every(Duration::from_millis(100), Codec::None, Mix::Dirty);
    let mut before = 0;
    for round in 1..=4 {
        home.start();
        wait_until("more records, and a word of each move", SOON, || {
            let status = home.try_status()?;
            let told = home.log().matches(MOVED).count();
            holds(status.counts.consumed >= before + 300 && told == round - 1, (&status.counts, told))?;
            before = status.counts.consumed;
            Ok(())
        });
        home.kill9();
        if with_its_files {
            home = home.moved();
        } else {
            move_store(&mut home, &format!("tmp/store-{round}"));
        }
    }
    let produced = load.stop();
    home.set("store.checkpoint", "100ms");
    home.start();
    home.wait_done(&produced);
    home.stop();
    assert_eq!(events::hidden(&home.path("data")), Vec::<PathBuf>::new());
    home.assert_exactly(&produced);
    assert_eq!(home.log().matches(MOVED).count(), 4);
    if !with_its_files {
        let mut produced = produced;
        let tail = Tail::follow(&home.path("data"));
        // A store that stayed behind has the same past, and is not taken for the home.
        home.set("store.path", "tmp/store-1");
        home.start();
        produced.extend(topic.fill(Codec::None, Mix::Clean, produced.len() as u64, 50));
        wait_no_lag(&home);
        home.stop();
        tail.assert_nothing_was_taken_back();
        assert!(home.log().contains("the store is older than the event files"), "it is logged");
        if kind.in_group {
            // Its names are those of before, so the order of files is not that of their lines.
            assert_repeated(&home, &produced, 0..0);
        }
    }
}

#[test]
fn a_home_that_is_moved_with_its_event_files_after_a_kill_goes_on_where_it_was() {
    for_each_kind(&KINDS[..3], |kind| assert_moves(kind, "300ms", true));
}

#[test]
fn a_home_that_is_moved_before_the_group_knows_of_its_lines_repeats_none() {
    for_each_kind(&KINDS[..1], |kind| assert_moves(kind, "1h", true));
}

#[test]
fn a_store_that_is_moved_away_from_its_event_files_after_a_kill_goes_on_where_it_was() {
    for_each_kind(&KINDS[..3], |kind| assert_moves(kind, "300ms", false));
}

#[test]
fn a_home_and_its_copy_in_turn_lose_nothing_and_repeat_nothing_after_the_copy() {
    for_each_kind(&[KINDS[0], KINDS[2]], |kind| {
        let topic = Topic::create("both", 2);
        let mut origin = kind.home(&topic);
        // The group knows of nothing when the copy is made.
        origin.set("store.checkpoint", "1h");
        origin.start();
        let mut produced = topic.fill(Codec::None, Mix::Clean, 0, 300);
        origin.wait_written(300);
        origin.kill9();
        origin.set("store.checkpoint", "100ms");
        let copy = origin.copied();
        for home in [&copy, &origin, &copy, &origin] {
            home.start();
            produced.extend(topic.fill(Codec::None, Mix::Clean, produced.len() as u64, 200));
            wait_no_lag(home);
            home.stop();
        }
        let lines_of = |home: &Home| -> Vec<String> {
            let mut lines: Vec<_> = home.events().into_iter().flat_map(|file| file.lines).collect();
            lines.sort();
            lines
        };
        let mut all = Vec::new();
        for home in [&origin, &copy] {
            let lines = lines_of(home);
            assert!(lines.is_sorted_by(|one, next| one < next), "no line is there twice");
            all.extend(lines);
        }
        all.sort();
        let mut expected: Vec<_> = oracle::expect(&produced).lines.into_values().flatten().collect();
        // What was copied with the event files is in both.
        let copied = oracle::expect(&produced[..if kind.sealed { 0 } else { 300 }]);
        expected.extend(copied.lines.into_values().flatten());
        expected.sort();
        events::assert_same("both homes", &expected, &all);
    });
}
