//! Disks that fail: the service pauses, says why, tries again, and goes on by itself; nothing is lost, nothing comes twice.
//!
//! Syncs and writes fail below a layer (`harness::disk`) that never puts on the disk what a failed sync should have covered,
//! unless it is written again: so a power cut at the end shows whether the failure was forgotten. What a file system can do
//! by itself is done by a real one.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;

use mtga::control::State;
use mtga::msink::dir::PRIVATE;
use mtga::record::Reason;
use nix::errno::Errno;

use crate::harness::disk::{Layer, Model};
use crate::harness::process::Service;
use crate::harness::{Codec, Home, Mix, Mount, Record, SOON, Topic, holds, wait_until};

/// A home on a disk that fails on command.
struct Rig {
    topic: Topic,
    home: Home,
    layer: Layer,
    produced: Vec<Record>,
}

impl Rig {
    fn new(name: &str, configure: impl FnOnce(&mut Home)) -> Self {
        let topic = Topic::create(name, 2);
        let mut home = Home::new(&topic);
        // A new file now and then, and checkpoints in quick succession.
        home.set("sink.rotate.size", "64KiB").set("store.checkpoint", "200ms");
        configure(&mut home);
        let layer = Layer::below(&home);
        Self { topic, home, layer, produced: Vec::new() }
    }

    /// Produces some more.
    fn fill(&mut self) {
        self.produced.extend(self.topic.fill(Codec::Snappy, Mix::Dirty, self.produced.len() as u64, 1000));
    }

    fn start(&self) -> Service {
        self.home.foreground_with(|command| self.layer.command(command))
    }

    /// Everything that was produced is done; so it is after a power cut at once, and after a stop.
    fn assert_exactly(&self, service: Service) {
        let produced = &self.produced;
        self.home.wait_done(produced);
        self.home.assert_exactly(produced);
        service.kill();
        self.layer.power_cut(Model::Strict);
        let service = self.start();
        self.home.wait_done(produced);
        self.home.assert_exactly(produced);
        service.terminate();
    }

    /// Waits until the service has paused because of something, once more than `before`: by its log, since a pause may be
    /// over in a moment. A store that cannot be written can be opened again, and writes only when a segment of it is full:
    /// so there are more records until it does.
    fn has_paused(&mut self, because_of: &str, before: usize) {
        wait_until(&format!("a pause because of {because_of}"), SOON, || {
            let status = self.home.try_status()?;
            if status.state == State::Consuming && status.counts.consumed == self.produced.len() as u64 {
                self.fill();
            }
            holds(self.pauses(because_of) > before, status)
        });
        let sinks = self.home.status().counts.rejected[Reason::Sink.index()];
        assert_eq!(sinks, 0, "a disk that fails is no record's fault");
    }

    /// How often the log says that consuming pauses because of something.
    fn pauses(&self, because_of: &str) -> usize {
        let log = self.home.log();
        log.lines().filter(|line| line.contains("state=Paused") && line.contains(because_of)).count()
    }
}

/// What happens after a sync has failed.
#[derive(Clone, Copy)]
enum Then {
    /// The service goes on by itself.
    GoesOn,
    /// It is killed at once, and started again.
    Killed,
}

/// Lets a sync fail under load.
fn assert_a_failed_sync_is_not_forgotten(pattern: &str, nth: u32, then: Then, configure: impl FnOnce(&mut Home)) {
    let mut rig = Rig::new("sync", configure);
    let mut service = rig.start();
    rig.fill();
    rig.home.wait_written(100);
    rig.layer.fail_sync(pattern, nth);
    rig.fill();
    rig.fill();
    wait_until("a sync fails", SOON, || holds(rig.layer.has_failed_sync(), "none has"));
    if let Then::Killed = then {
        service.kill();
        service = rig.start();
    }
    rig.fill();
    rig.assert_exactly(service);
}

#[test]
fn a_failed_sync_of_an_event_file_is_not_forgotten() {
    assert_a_failed_sync_is_not_forgotten("data/events", 2, Then::GoesOn, |_| ());
}

#[test]
fn a_failed_sync_of_an_event_file_is_not_forgotten_by_a_kill() {
    assert_a_failed_sync_is_not_forgotten("data/events", 1, Then::Killed, |_| ());
}

#[test]
fn a_failed_sync_of_an_event_file_in_a_group_is_not_forgotten() {
    assert_a_failed_sync_is_not_forgotten("data/events", 1, Then::GoesOn, |home| {
        home.in_group();
    });
}

#[test]
fn a_failed_sync_of_the_journal_is_not_forgotten() {
    assert_a_failed_sync_is_not_forgotten("store/journal/0", 3, Then::GoesOn, |_| ());
}

#[test]
fn a_failed_sync_while_a_file_makes_room_for_another_is_not_forgotten() {
    assert_a_failed_sync_is_not_forgotten("data/", 5, Then::GoesOn, |home| {
        home.set("sink.file", "{partition}/events.{seq}.log").set("sink.max_open_files", 1);
    });
}

/// Whoever makes room for another file is told of the failure, while a checkpoint is about to sync the same open file: the
/// system reports a failure once, so the checkpoint's own sync would succeed.
#[test]
fn a_failed_sync_that_the_delivery_is_told_of_is_no_success_for_the_checkpoint_beside_it() {
    let mut rig = Rig::new("told", |home| {
        home.set("sink.file", "{partition}/events.{seq}.log").set("sink.max_open_files", 1).set("log.level", "debug");
        home.set("sink.batch.linger", "20ms").set("store.checkpoint", "2s");
    });
    let service = rig.home.foreground_with(|command| {
        command.env("FAULT_POINT", "checkpoint.begun:1:6000,checkpoint.begun:2:6000");
        rig.layer.command(command)
    });
    let fill = |rig: &mut Rig, partition, first: u64| {
        let ours = (first..).map(|n| Mix::Clean.record(n, 2)).filter(|record| record.partition == partition);
        let more: Vec<_> = ours.take(10).collect();
        rig.topic.produce(Codec::None, &more);
        rig.produced.extend(more);
    };
    fill(&mut rig, 0, 0);
    wait_until("a checkpoint has these lines", SOON, || {
        let log = rig.home.log();
        let begun = log.lines().rfind(|line| line.contains("checkpoint begins"));
        holds(begun.is_some_and(|line| !line.contains("number=0")), begun.map(str::to_owned))
    });
    // Before there are more lines: a checkpoint that goes on meanwhile is told of it, too.
    rig.layer.fail_sync("data/0/", 1);
    fill(&mut rig, 0, 1000);
    rig.home.wait_written(20);
    fill(&mut rig, 1, 2000);
    wait_until("a sync fails", SOON, || holds(rig.layer.has_failed_sync(), "none has"));
    rig.assert_exactly(service);
}

/// Lets a sync of the start fail.
fn assert_a_start_goes_on_after_a_failed_sync(pattern: &str, nth: u32) {
    let mut rig = Rig::new("first", |home| {
        home.set("sink.file", "{topic}/events.{seq}.log");
    });
    rig.fill();
    rig.layer.fail_sync(pattern, nth);
    let service = rig.start();
    wait_until("a sync fails", SOON, || holds(rig.layer.has_failed_sync(), "none has"));
    rig.assert_exactly(service);
}

#[test]
fn a_failed_sync_of_a_new_directory_is_not_forgotten() {
    assert_a_start_goes_on_after_a_failed_sync("data/", 1);
}

#[test]
fn a_failed_sync_of_the_event_directory_is_not_forgotten() {
    assert_a_start_goes_on_after_a_failed_sync("home/data", 2);
}

#[test]
fn a_failed_sync_of_the_store_is_not_forgotten() {
    assert_a_start_goes_on_after_a_failed_sync("store/sled", 1);
}

#[test]
fn a_failed_sync_of_the_first_journal_segment_is_not_forgotten() {
    assert_a_start_goes_on_after_a_failed_sync("store/journal", 1);
}

/// Lets all writing to some files fail under load, for a while.
fn assert_pauses_while_writes_fail(pattern: &str, error: Errno, reason: &str) {
    let mut rig = Rig::new("writes", |_| ());
    let service = rig.start();
    for _ in 0..2 {
        rig.fill();
        rig.home.wait_done(&rig.produced);
        let before = rig.pauses(reason);
        rig.layer.fail_writes(pattern, error);
        rig.fill();
        rig.has_paused(reason, before);
        assert!(rig.home.integer("kafka_lag") >= 0, "the lag is known while the disk fails");
        rig.layer.heal();
    }
    rig.assert_exactly(service);
}

#[test]
fn an_io_error_of_an_event_file_pauses_the_service() {
    assert_pauses_while_writes_fail("data/events", Errno::EIO, "data");
}

#[test]
fn an_io_error_of_the_journal_pauses_the_service() {
    assert_pauses_while_writes_fail("store/journal", Errno::EIO, "journal");
}

#[test]
fn an_io_error_of_the_store_pauses_the_service() {
    assert_pauses_while_writes_fail("store/sled", Errno::EIO, "store");
}

#[test]
fn a_store_that_is_read_only_pauses_the_service() {
    assert_pauses_while_writes_fail("tmp/store", Errno::EROFS, "store");
}

#[test]
fn a_service_that_pauses_can_be_stopped_and_goes_on_at_the_next_start() {
    let mut rig = Rig::new("stopped", |_| ());
    let service = rig.start();
    rig.fill();
    rig.home.wait_written(100);
    rig.layer.fail_writes("store/journal", Errno::EIO);
    rig.fill();
    rig.has_paused("journal", 0);
    rig.home.wait_for(State::Paused);
    let refused = rig.home.mtga(["clear_failure_queue"]).code(69);
    assert!(refused.stderr.contains("journal"), "it says why: {}", refused.stderr);
    service.terminate();
    rig.layer.heal();
    let service = rig.start();
    rig.assert_exactly(service);
}

#[test]
fn a_start_on_a_full_disk_says_so_and_waits_for_room() {
    let topic = Topic::create("start", 2);
    let home = Home::new(&topic);
    let disk = Mount::new(home.path("tmp/store"), "64m");
    fs::write(disk.path().join("ballast"), vec![0; 65 << 20]).expect_err("no room is left");
    let produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, 2000);
    let started = home.mtga(["start"]).success();
    assert!(started.contains("paused") && started.contains("store"), "the command says what is the matter: {started}");
    fs::remove_file(disk.path().join("ballast")).expect("the ballast");
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    home.stop();
}

#[test]
fn a_directory_that_is_read_only_for_a_while_pauses_the_service() {
    let topic = Topic::create("readonly", 2);
    let mut home = Home::new(&topic);
    home.set("sink.rotate.idle", "1s");
    let disk = Mount::new(home.path("data"), "64m");
    let mut produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, 1000);
    home.start();
    home.wait_done(&produced);
    // No file system becomes read-only by command while a file is open for writing.
    wait_until("the disk is read-only", SOON, || holds(disk.remount("ro"), "a file is open"));
    produced.extend(topic.fill(Codec::Snappy, Mix::Dirty, 1000, 1000));
    home.wait_for(State::Paused);
    assert!(disk.remount("rw"));
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    home.stop();
}

#[test]
fn a_permission_that_is_lost_and_regained_pauses_the_service() {
    const NOBODY: u32 = 65534;
    let topic = Topic::create("permission", 2);
    let mut home = Home::new(&topic);
    home.set("sink.rotate.size", "64KiB");
    home.give_to(NOBODY);
    let load = topic.load(Codec::Snappy, Mix::Dirty);
    let service = home.foreground_with(|command| command.uid(NOBODY).gid(NOBODY));
    home.wait_written(1000);
    fs::set_permissions(home.path("data"), Permissions::from_mode(0o555)).expect("ours");
    home.wait_for(State::Paused);
    let reason = home.status().reason.unwrap_or_default();
    assert!(reason.contains("ermission denied"), "it says why: {reason}");
    fs::set_permissions(home.path("data"), Permissions::from_mode(0o750)).expect("ours");
    let before = home.status().counts.written;
    home.wait_written(before + 1000);
    let produced = load.stop();
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    service.terminate();
}

#[test]
fn a_directory_that_is_taken_away_is_waited_for() {
    let topic = Topic::create("away", 2);
    let mut home = Home::new(&topic);
    home.set("sink.rotate.size", "64KiB");
    let load = topic.load(Codec::Snappy, Mix::Dirty);
    let service = home.foreground();
    let (data, away) = (home.path("data"), home.path("away"));
    // Once the same comes back, once another one.
    for time in 1..=2 {
        home.wait_written(time * 1500);
        fs::rename(&data, &away).expect("ours");
        home.wait_for(State::Paused);
        assert_eq!(data.try_exists().ok(), Some(false), "no directory is made where a mount may be missing");
        if time == 1 {
            fs::rename(&away, &data).expect("ours");
        } else {
            fs::create_dir(&data).expect("ours");
        }
    }
    let before = home.status().counts.written;
    home.wait_written(before + 1500);
    let produced = load.stop();
    home.wait_done(&produced);
    // Both directories have what is the service's alone.
    fs::remove_dir_all(away.join(PRIVATE)).expect("ours");
    for entry in fs::read_dir(&away).expect("a directory").flatten() {
        fs::rename(entry.path(), data.join(entry.file_name())).expect("ours");
    }
    home.assert_exactly(&produced);
    service.terminate();
}

#[test]
fn an_event_directory_that_is_empty_after_a_crash_is_waited_for() {
    let topic = Topic::create("bare", 1);
    let home = Home::new(&topic);
    home.start();
    let produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, 500);
    home.wait_done(&produced);
    home.kill9();
    let (data, away) = (home.path("data"), home.path("away"));
    fs::rename(&data, &away).expect("ours");
    let started = home.mtga(["start"]).success();
    assert!(started.contains("paused") && started.contains("mount it"), "{started}");
    assert_eq!(data.try_exists().ok(), Some(false), "no directory is made where a mount may be missing");
    fs::rename(&away, &data).expect("ours");
    home.wait_for(State::Consuming);
    home.assert_exactly(&produced);
    home.stop();
}

#[test]
fn a_removed_or_shortened_file_is_told_and_the_next_line_goes_to_another() {
    let topic = Topic::create("foreign", 1);
    let mut home = Home::new(&topic);
    home.set("store.checkpoint", "200ms");
    home.start();
    let mut produced = Vec::new();
    let harms: [fn(&Path); 2] = [
        |path| fs::remove_file(path).expect("a file"),
        |path| fs::File::options().write(true).open(path).and_then(|file| file.set_len(7)).expect("a file"),
    ];
    for (told_before, harm) in harms.into_iter().enumerate() {
        let from = told_before as u64 * 100;
        produced.extend(topic.fill(Codec::Snappy, Mix::Clean, from, 100));
        home.wait_done(&produced);
        let newest = home.path("data").join(&home.events().last().expect("a file").name);
        harm(&newest);
        wait_until("the file is given up", SOON, || {
            let told = home.log().matches("another process removed, replaced or shortened this file").count();
            holds(told > told_before, told)
        });
        // What was in it is gone; that is whose deed it was.
        drop(fs::remove_file(newest));
    }
    let rest = topic.fill(Codec::Snappy, Mix::Clean, 200, 100);
    produced.extend(rest);
    home.wait_done(&produced);
    let lines: usize = home.events().iter().map(|file| file.lines.len()).sum();
    assert_eq!(lines, 100, "what came after is whole");
    home.stop();
}

#[test]
fn a_foreign_file_in_the_way_of_one_name_rejects_its_records_alone() {
    let topic = Topic::create("blame", 1);
    let record = |n: u64| {
        let name = if n.is_multiple_of(3) { "blocked" } else { "free" };
        let text = format!(
            r#"{{"headers":{{"app_id":24,"log_name":"log_{name}"}},"logs":{{"sn":"0-{n}","role_id":1,"mtime":1608184243}}}}"#
        );
        Record { partition: 0, key: None, value: Some(text.into_bytes()), timestamp: 1_700_000_000_000 }
    };
    let produced: Vec<_> = (0..300).map(record).collect();
    let mut home = Home::new(&topic);
    home.set("sink.file", "{log_name}/events.{seq}.log").set("sink.batch.lines", 50);
    fs::create_dir_all(home.path("data")).expect("a directory");
    let foreign = home.path("data/log_blocked");
    fs::write(&foreign, "another process's").expect("a file");
    topic.produce(Codec::Snappy, &produced);
    let service = home.foreground();
    home.wait_done(&produced);
    let check = |home: &Home| {
        let failures = home.failures();
        let offsets: Vec<_> = failures.iter().map(|entry| entry.offset).collect();
        assert_eq!(offsets, (0..100).map(|n| n * 3).collect::<Vec<_>>(), "in order");
        for entry in &failures {
            assert_eq!(entry.reason, Reason::Sink);
            assert_eq!(entry.size, produced[entry.offset as usize].value.as_ref().map_or(0, Vec::len) as u64);
        }
    };
    check(&home);
    service.kill();
    let service = home.foreground();
    home.wait_done(&produced);
    check(&home);
    home.mtga(["retry_failure_queue"]).success();
    check(&home);
    fs::remove_file(&foreign).expect("a file");
    home.mtga(["retry_failure_queue"]).success();
    assert_eq!(home.integer("failure_queue_count"), 0);
    service.terminate();
    let files: Vec<_> = home.events().iter().map(|file| (file.name.clone(), file.lines.len())).collect();
    let lines = |name: &str| files.iter().filter(|file| file.0.starts_with(name)).map(|file| file.1).sum::<usize>();
    assert_eq!((lines("log_blocked/"), lines("log_free/")), (100, 200), "{files:?}");
}
