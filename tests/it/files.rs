//! Event files: rotation by each rule, names, open files, and a disk that is full for a while.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use mtga::control::State;

use crate::harness::process::Service;
use crate::harness::{Codec, Home, Mix, Record, SOON, Topic, holds, wait_until};

#[test]
fn files_rotate_by_size() {
    let topic = Topic::create("size", 2);
    let produced = topic.fill(Codec::Snappy, Mix::Clean, 0, 2000);
    let mut home = Home::new(&topic);
    home.set("sink.rotate.size", "100KiB").set("sink.batch.lines", 20);
    home.start();
    home.wait_done(&produced);
    home.stop();
    let files = home.events();
    assert!(files.len() >= 8, "about 1.1 MB in files of 100 KiB: {}", files.len());
    for file in &files {
        assert!(file.bytes <= 150 * 1024, "{} has {} bytes", file.name, file.bytes);
    }
    assert!(home.log().contains("size"), "the reason is logged");
    home.start();
    home.assert_exactly(&produced);
    home.stop();
}

/// Produces twice, waiting in between until the file is finished by a rule; the second half goes to another file.
fn assert_finished_by(rule: &str, time: &str) {
    let topic = Topic::create(rule, 1);
    let mut home = Home::new(&topic);
    home.set(&format!("sink.rotate.{rule}"), time);
    home.start();
    // In one batch: no file is finished between two of them.
    let fill = |first: u64| {
        let records: Vec<_> = (first..first + 10).map(|n| Mix::Clean.record(n, 1)).collect();
        topic.produce_one_batch(Codec::None, &records);
        records
    };
    let mut produced = fill(0);
    home.wait_done(&produced);
    // No record comes: it is the timer that ends the file.
    wait_until("the file is finished", SOON, || {
        let open = home.status().open_files;
        holds(open == 0, open)
    });
    home.wait_logged(rule);
    produced.extend(fill(10));
    home.wait_done(&produced);
    let counts: Vec<_> = home.events().iter().map(|file| file.lines.len()).collect();
    assert_eq!(counts, [10, 10]);
    home.assert_exactly(&produced);
    home.stop();
}

#[test]
fn an_idle_file_is_finished_by_the_timer() {
    assert_finished_by("idle", "1s");
}

#[test]
fn an_old_file_is_finished_by_the_timer() {
    assert_finished_by("age", "2s");
}

/// Open event files of a process below a directory. Directories do not count, each is open for the moment of its sync; nor
/// does the note of the last checkpoint, which is open for the moment of its writing.
fn open_below(pid: impl std::fmt::Display, dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("a running process");
    entries
        .flatten()
        .filter_map(|fd| fs::read_link(fd.path()).ok())
        .filter(|path| path.starts_with(dir) && !path.starts_with(dir.join(".mtga")) && !path.is_dir())
        .collect()
}

#[test]
fn more_log_names_than_open_files_still_give_one_file_each() {
    const NAMES: u64 = 20;
    let topic = Topic::create("names", 1);
    let produced: Vec<_> = (0..2000)
        .map(|n| {
            let text = format!(
                r#"{{"headers":{{"app_id":24,"log_name":"log_{}"}},"logs":{{"sn":"0-{n}","role_id":1,"mtime":1608184243}}}}"#,
                n % NAMES
            );
            Record { partition: 0, key: None, value: Some(text.into_bytes()), timestamp: 1_700_000_000_000 }
        })
        .collect();
    let mut home = Home::new(&topic);
    home.set("sink.file", "{log_name}/events.{seq}.log").set("sink.max_open_files", 4).set("sink.batch.lines", 100);
    // It keeps files open until it has synced them.
    home.set("store.checkpoint", "1h");
    home.start();
    let data = fs::canonicalize(home.path("data")).expect("a directory");
    for some in produced.chunks(100) {
        topic.produce(Codec::Snappy, some);
        let open = open_below(home.pid(), &data);
        assert!(open.len() <= 4, "at most four are open: {open:?}");
    }
    home.wait_written(produced.len() as u64);
    let mut by_name: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for file in home.events() {
        let (name, _) = file.name.split_once('/').expect("a directory of the log name");
        for (line, number) in file.lines.iter().zip(0_u64..) {
            let log = name.strip_prefix("log_").expect("our name");
            let expected = format!("\"sn\":\"0-{}\"", number * NAMES + log.parse::<u64>().expect("a number"));
            assert!(line.contains(&expected), "{}, line {number}: {line}", file.name);
        }
        by_name.entry(name.to_owned()).or_default().push(file.lines.len());
    }
    assert_eq!(by_name.len() as u64, NAMES);
    assert!(by_name.values().all(|files| files == &[100]), "one file each, with all of its lines: {by_name:?}");
    home.stop();
}

#[test]
fn two_homes_never_write_into_one_directory() {
    let topic = Topic::create("shared", 1);
    let one = Home::new(&topic);
    let mut other = Home::new(&topic);
    other.set("sink.dir", one.path("data").to_str().expect("a path in UTF-8"));
    one.start();
    let refused = other.mtga(["start"]);
    assert!(refused.stderr.contains("data"), "the directory is named: {}", refused.stderr);
    refused.code(73);
    one.stop();
    // Nor one after the other: the files of the first would have to be taken for those of the second.
    let refused = other.mtga(["start"]);
    assert!(refused.stderr.contains("has worked in the event directory"), "{}", refused.stderr);
    refused.code(78);
}

/// A small file system in memory, for as long as this lives.
pub(crate) struct SmallDisk(pub(crate) PathBuf);

impl SmallDisk {
    pub(crate) fn mount(at: PathBuf, size: &str) -> Self {
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "none"]).arg(&at).status();
        assert!(
            done.is_ok_and(|status| status.success()),
            "cannot mount a small disk at {}: this test needs root",
            at.display()
        );
        Self(at)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(&self.0).status());
    }
}

#[test]
fn a_full_disk_pauses_the_service_which_goes_on_by_itself() {
    let topic = Topic::create("full", 2);
    let home = Home::new(&topic);
    // Dropped before the home, whose directory it lies in.
    let disk = SmallDisk::mount(home.path("data"), "4m");
    // Takes most of the room. Hidden: no event file.
    fs::write(disk.0.join(".ballast"), vec![0; 3 << 20]).expect("room for the ballast");
    home.start();
    let produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, 5000);
    home.wait_for(State::Paused);
    let status = home.status();
    assert!(
        status.reason.as_ref().is_some_and(|reason| reason.contains("data")),
        "the reason names the directory: {status:?}"
    );
    assert!(home.integer("kafka_lag") > 0);
    let sinks = status.counts.rejected[mtga::record::Reason::Sink.index()];
    assert_eq!(sinks, 0, "a full disk is no record's fault");
    fs::remove_file(disk.0.join(".ballast")).expect("the ballast");
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    home.stop();
}

#[test]
fn no_record_is_skipped_that_comes_while_a_full_disk_pauses_the_partitions() {
    let topic = Topic::create("paused", 4);
    let home = Home::new(&topic);
    // Dropped before the home, whose directory it lies in.
    let disk = SmallDisk::mount(home.path("data"), "32m");
    home.start();
    // So slowly that the ends of the partitions are reached again and again.
    let load = topic.load_every(Duration::from_millis(100), Codec::Snappy, Mix::Dirty);
    home.wait_written(500);
    fs::write(disk.0.join(".ballast"), vec![0; 32 << 20]).expect_err("no room is left");
    home.wait_for(State::Paused);
    // Partitions are paused after five seconds, in which half of this comes.
    wait_until("20,000 records wait", SOON, || {
        let lag = home.lag()?;
        holds(lag >= 20_000, lag)
    });
    fs::remove_file(disk.0.join(".ballast")).expect("the ballast");
    let produced = load.stop();
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    home.stop();
}

#[test]
fn a_full_disk_below_the_store_pauses_the_service_which_goes_on_by_itself() {
    let topic = Topic::create("unsaved", 2);
    let home = Home::new(&topic);
    fs::create_dir_all(home.path("tmp/store")).expect("a directory");
    // Dropped before the home, whose directory it lies in.
    let disk = SmallDisk::mount(home.path("tmp/store"), "64m");
    home.start();
    home.wait_for(State::Consuming);
    fs::write(disk.0.join("ballast"), vec![0; 64 << 20]).expect_err("no room is left");
    // Rejects go into the store with their payloads.
    let produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, 60_000);
    home.wait_for(State::Paused);
    let status = home.status();
    assert!(status.reason.as_ref().is_some_and(|reason| reason.contains("store")), "it says where: {status:?}");
    fs::remove_file(disk.0.join("ballast")).expect("the ballast");
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    home.stop();
    // What was saved since is whole.
    home.start();
    home.assert_exactly(&produced);
    home.stop();
}

/// A record of a log name of its own.
fn named(n: u32) -> Record {
    let value = format!(
        r#"{{"headers":{{"app_id":24,"log_name":"log_{n}"}},"logs":{{"sn":"0-{n}","role_id":7,"mtime":1608184243}}}}"#
    );
    Record { partition: 0, key: None, value: Some(value.into_bytes()), timestamp: 1_700_000_000_000 }
}

/// A service that may open so many files.
fn limited(home: &Home, files: u32) -> Service {
    let log = fs::File::options().create(true).append(true).open(home.path("logs/foreground.log")).expect("a file");
    let mut command = Command::new("sh");
    let script = format!("ulimit -n {files}; exec {0}/bin/mtga --home {0} start_not_daemon", home.path("").display());
    Service::spawn(command.env_clear().env("PATH", "/usr/bin:/bin").args(["-c", &script]), log)
}

#[test]
fn many_unfinished_files_are_recovered_with_the_usual_limit_of_open_files() {
    let topic = Topic::create("manyfiles", 1);
    let mut home = Home::new(&topic);
    home.set("sink.file", "{log_name}.{seq}.log").set("sink.rotate.idle", "30m");
    let produced: Vec<_> = (0..1100).map(named).collect();
    topic.produce(Codec::None, &produced);
    let service = limited(&home, 1024);
    wait_until("all written", 3 * SOON, || {
        let status = home.try_status()?;
        holds(status.counts.written == 1100 && status.counts.in_flight == 0, status)
    });
    service.kill();
    let service = limited(&home, 1024);
    home.wait_for(State::Consuming);
    home.assert_exactly(&produced);
    service.terminate();
}
