//! What operators do about a disk: free it, mount another one over it, copy its files to a larger one, take it away for a while.

use std::fs::{self, Permissions};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use mtga::control::State;
use nix::errno::Errno;

use crate::harness::disk::Layer;
use crate::harness::process::Finished;
use crate::harness::{Codec, Home, Mix, Mount, Record, SOON, Topic, holds, wait_until};

/// A service whose disk is full in the middle of a block of these records.
fn full(name: &str) -> (Home, Mount, Vec<Record>) {
    let topic = Topic::create(name, 1);
    let home = Home::new(&topic);
    let disk = Mount::new(home.path("data"), "1m");
    let produced = topic.fill(Codec::None, Mix::Clean, 0, 2000);
    home.start();
    home.wait_for(State::Paused);
    (home, disk, produced)
}

/// The whole lines of its first file: what a collector has read.
fn whole_lines(home: &Home) -> usize {
    let bytes = fs::read(home.path("data/events.0.log")).expect("a file");
    bytes.split(|byte| *byte == b'\n').count() - 1
}

/// Waits until nothing is left to be written; stops, and counts the lines that are there.
fn lines_in_the_end(home: &Home, produced: &[Record]) -> usize {
    home.wait_done(produced);
    assert_eq!(home.status().counts.written, produced.len() as u64);
    home.stop();
    home.events().iter().map(|file| file.lines.len()).sum()
}

/// Waits until there is nothing that another checkpoint would cover: the service waits for room alone.
fn wait_idle(home: &Home) {
    wait_until("no checkpoint is due", SOON, || {
        let seconds = home.status().last_checkpoint_seconds;
        holds(seconds.is_some_and(|seconds| seconds > 2.0), seconds)
    });
}

/// Lines that were not written yet are in no file that anybody could have removed.
#[test]
fn lines_that_were_not_written_yet_do_not_go_with_a_file_that_is_removed() {
    let (home, _disk, produced) = full("freed");
    let read = whole_lines(&home);
    wait_idle(&home);
    fs::remove_file(home.path("data/events.0.log")).expect("a file");
    assert_eq!(read + lines_in_the_end(&home, &produced), produced.len(), "read by a collector, and there");
}

/// What is removed is free only when nobody has it open.
#[test]
fn a_full_disk_has_room_again_when_another_open_file_is_removed() {
    let topic = Topic::create("other", 2);
    let mut home = Home::new(&topic);
    home.set("sink.file", "{partition}.{seq}.log").set("sink.rotate.idle", "30m");
    let _disk = Mount::new(home.path("data"), "1m");
    let fill = |partition, numbers: Range<u64>| -> Vec<_> {
        let records = numbers.map(|n| Record { partition, ..Mix::Clean.record(n, 1) });
        let records: Vec<_> = records.collect();
        topic.produce(Codec::None, &records);
        records
    };
    let first = fill(0, 0..1000);
    home.start();
    home.wait_done(&first);
    let written = home.events().iter().map(|file| file.lines.len()).sum::<usize>();
    assert_eq!(written, first.len());
    let rest = fill(1, 1000..2000);
    home.wait_for(State::Paused);
    wait_idle(&home);
    fs::remove_file(home.path("data/0.0.log")).expect("a file");
    let produced = [first, rest].concat();
    assert_eq!(written + lines_in_the_end(&home, &produced), produced.len(), "read by a collector, and there");
}

#[test]
fn an_event_directory_that_is_made_again_gets_what_the_old_one_had_no_room_for() {
    let (home, disk, produced) = full("again");
    let read = whole_lines(&home);
    let _larger = Mount::new(disk.path().to_owned(), "64m");
    assert_eq!(read + lines_in_the_end(&home, &produced), produced.len(), "on both disks");
}

#[test]
fn event_files_that_are_copied_to_a_larger_disk_are_gone_on_with() {
    let (home, disk, produced) = full("larger");
    home.kill9();
    let copy = |from: &Path, to: &Path| {
        Finished::run(Command::new("cp").args(["-a", "-T"]).arg(from).arg(to), SOON).success();
    };
    let kept = home.path("kept");
    copy(&home.path("data"), &kept);
    let larger = Mount::new(disk.path().to_owned(), "64m");
    // The files have other inodes than on the old one.
    (0..9).for_each(|n| fs::write(larger.path().join(format!(".{n}")), "").expect("a file"));
    copy(&kept, larger.path());
    home.start();
    home.wait_done(&produced);
    home.stop();
    home.assert_exactly(&produced);
}

#[test]
fn a_permission_on_the_store_that_is_lost_and_regained_pauses_the_service() {
    const NOBODY: u32 = 65534;
    let topic = Topic::create("storeright", 2);
    let home = Home::new(&topic);
    home.give_to(NOBODY);
    let mut produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, 500);
    let service = home.foreground_with(|command| command.uid(NOBODY).gid(NOBODY));
    home.wait_done(&produced);
    let store = home.path("tmp/store");
    fs::set_permissions(&store, Permissions::from_mode(0o000)).expect("ours");
    produced.extend(topic.fill(Codec::Snappy, Mix::Dirty, 500, 500));
    wait_until("it has begun again in vain", SOON, || {
        let log = home.log();
        holds(log.contains("adopted.json: Permission denied"), log)
    });
    home.wait_for(State::Paused);
    fs::set_permissions(&store, Permissions::from_mode(0o700)).expect("ours");
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    service.terminate();
}

#[test]
fn an_event_directory_that_is_empty_when_the_pipeline_begins_again_is_waited_for() {
    let topic = Topic::create("bareagain", 1);
    let home = Home::new(&topic);
    let layer = Layer::below(&home);
    let service = home.foreground_with(|command| layer.command(command));
    let mut produced = topic.fill(Codec::None, Mix::Dirty, 0, 500);
    home.wait_done(&produced);
    layer.fail_writes("store/journal", Errno::EIO);
    produced.extend(topic.fill(Codec::None, Mix::Dirty, 500, 500));
    wait_until("the pipeline ends", SOON, || holds(home.log().contains("the disk fails"), home.log()));
    let (data, away) = (home.path("data"), home.path("away"));
    fs::rename(&data, &away).and_then(|()| fs::create_dir(&data)).expect("ours");
    layer.heal();
    wait_until("it says what to do", SOON, || {
        let status = home.try_status()?;
        holds(status.reason.as_ref().is_some_and(|reason| reason.contains("mount it")), status)
    });
    fs::remove_dir_all(&data).and_then(|()| fs::rename(&away, &data)).expect("ours");
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    service.terminate();
}
