//! Hidden files on disks that fail, and under the hands of others: what is published is every record exactly once, and nothing
//! hidden is left.
//!
//! Syncs and writes fail below a layer (`harness::disk`), so a power cut shows whether a failure was forgotten. What others do
//! to hidden files is done to the real ones.

use std::fs;
use std::path::{Path, PathBuf};

use mtga::control::State;
use mtga::msource::journal;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use crate::harness::disk::{Layer, Model};
use crate::harness::process::Service;
use crate::harness::{Codec, Home, Mix, Mount, Record, SOON, Topic, events, holds, oracle, wait_until};

/// How the partitions are had.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    All,
    Group,
}

/// When files are published: size, age, idle.
const SOON_PUBLISHED: [&str; 3] = ["64KiB", "1s", "300ms"];
const NOT_BY_ITSELF: [&str; 3] = ["1GiB", "1h", "1h"];

fn rotate(home: &mut Home, [size, age, idle]: [&str; 3]) {
    home.set("sink.rotate", json!({"size": size, "age": age, "idle": idle}));
}

/// A sealed home with its topic and what was produced into it.
struct Rig {
    topic: Topic,
    home: Home,
    produced: Vec<Record>,
}

impl Rig {
    fn new(name: &str, mode: Mode, partitions: i32) -> Self {
        let topic = Topic::create(name, partitions);
        let mut home = Home::new(&topic);
        if mode == Mode::Group {
            home.in_group();
        }
        home.set("sink.visibility", "sealed").set("store.checkpoint", "100ms");
        rotate(&mut home, SOON_PUBLISHED);
        Self { topic, home, produced: Vec::new() }
    }

    fn fill(&mut self, count: u64) {
        self.produced.extend(self.topic.fill(Codec::Snappy, Mix::Dirty, self.produced.len() as u64, count));
    }

    fn data(&self) -> PathBuf {
        self.home.path("data")
    }

    /// Waits until everything produced is in hidden or published files, and durable.
    fn wait_durable(&self) {
        wait_until("a checkpoint covers everything", SOON, || {
            let state = journal::read(&self.home.path("tmp/store/journal")).map_err(|error| error.to_string())?.state;
            let consumed = state.map_or(0, |state| state.totals.consumed);
            holds(consumed == self.produced.len() as u64, consumed)
        });
    }

    /// Waits until everything produced is published, and nothing else is there.
    fn wait_seen(&self) {
        self.home.wait_done(&self.produced);
        wait_until("everything is published", SOON, || {
            let hidden = events::hidden(&self.data());
            holds(hidden.is_empty(), hidden)
        });
        self.home.assert_exactly(&self.produced);
        self.home.mtga(["verify"]).code(0);
    }

    fn pauses(&self, because_of: &str) {
        wait_until(&format!("a pause because of {because_of}"), SOON, || {
            let status = self.home.try_status()?;
            let told = status.reason.as_ref().is_some_and(|reason| reason.contains(because_of));
            holds(status.state == State::Paused && told, status)
        });
    }
}

fn start(home: &Home, layer: &Layer) -> Service {
    home.foreground_with(|command| layer.command(command))
}

/// Lets one sync after the other fail, and the power go at the end.
fn assert_failed_syncs_are_not_forgotten(mode: Mode) {
    let mut rig = Rig::new("sealsync", mode, 2);
    let layer = Layer::below(&rig.home);
    let service = start(&rig.home, &layer);
    let syncs = [
        ("data/.events", 1),
        ("data/.events", 2),
        ("manifest.json", 1),
        ("store/journal/0", 2),
        ("store/journal/0", 5),
    ];
    for (pattern, nth) in syncs.into_iter().chain((1..=6).map(|nth| ("home/data", nth))) {
        layer.fail_sync(pattern, nth);
        rig.fill(150);
        wait_until("a sync fails", SOON, || holds(layer.has_failed_sync(), pattern));
    }
    rig.wait_seen();
    service.kill();
    layer.power_cut(Model::Strict);
    let service = start(&rig.home, &layer);
    rig.wait_seen();
    service.terminate();
    rig.wait_terminated();
}

impl Rig {
    /// After a stop too.
    fn wait_terminated(&self) {
        assert_eq!(events::hidden(&self.data()), Vec::<PathBuf>::new());
        events::assert_exactly(&oracle::expect(&self.produced).lines, &self.home.events());
        self.home.mtga(["verify"]).code(0);
    }
}

#[test]
fn failed_syncs_while_files_are_published_are_not_forgotten() {
    assert_failed_syncs_are_not_forgotten(Mode::All);
}

#[test]
fn failed_syncs_while_files_are_published_in_a_group_are_not_forgotten() {
    assert_failed_syncs_are_not_forgotten(Mode::Group);
}

#[test]
fn a_publication_whose_sync_failed_is_not_noted_before_its_names_are_on_the_disk() {
    let mut rig = Rig::new("sealname", Mode::All, 1);
    let layer = Layer::below(&rig.home);
    // Of the directory: when the hidden file is made, when it and its manifest are named; and what lies between.
    for nth in 1..=7 {
        rig.fill(20);
        layer.fail_sync("home/data", nth);
        let service = rig.home.foreground_with(|command| layer.command(command.env("FAULT_POINT", "publish.noted")));
        service.wait_killed("publish.noted");
        layer.heal();
        layer.power_cut(Model::Strict);
    }
    let service = start(&rig.home, &layer);
    rig.wait_seen();
    service.terminate();
}

#[test]
fn names_manifests_and_a_journal_that_cannot_be_written_are_waited_for() {
    let mut rig = Rig::new("sealeio", Mode::Group, 2);
    let layer = Layer::below(&rig.home);
    let service = start(&rig.home, &layer);
    let faults = [
        (".manifest.json", Errno::ENOSPC, "data"),
        ("data/events", Errno::EIO, "data"),
        ("data/.events", Errno::EIO, "data"),
        ("store/journal", Errno::ENOSPC, "journal"),
    ];
    for (pattern, error, reason) in faults {
        rig.fill(200);
        layer.fail_writes(pattern, error);
        rig.fill(200);
        rig.pauses(reason);
        layer.heal();
    }
    rig.wait_seen();
    service.kill();
    layer.power_cut(Model::Strict);
    let service = start(&rig.home, &layer);
    rig.wait_seen();
    service.terminate();
}

fn remove(path: &Path) {
    fs::remove_file(path).expect("a hidden file");
}

fn shorten(path: &Path) {
    fs::File::options().write(true).open(path).and_then(|file| file.set_len(7)).expect("a hidden file");
}

/// What someone does to a hidden file.
type Harm = fn(&Path);

/// When a hidden file is harmed.
#[derive(Clone, Copy)]
enum Moment {
    /// Further lines come.
    BeforeLines,
    /// It is to be published next.
    BeforePublication,
    Stopped,
}

fn assert_harm_is_read_again(mode: Mode) {
    let mut rig = Rig::new("sealharm", mode, 2);
    let harms: [(Moment, Harm); 6] = [
        (Moment::BeforeLines, remove),
        (Moment::BeforePublication, shorten),
        (Moment::Stopped, remove),
        (Moment::BeforeLines, shorten),
        (Moment::BeforePublication, remove),
        (Moment::Stopped, shorten),
    ];
    for (moment, harm) in harms {
        rotate(&mut rig.home, NOT_BY_ITSELF);
        let service = rig.home.foreground();
        rig.fill(200);
        rig.wait_durable();
        if let Moment::Stopped = moment {
            service.kill();
            harm(&events::hidden(&rig.data())[0]);
            continue;
        }
        harm(&events::hidden(&rig.data())[0]);
        if let Moment::BeforeLines = moment {
            rig.fill(200);
            rig.home.wait_done(&rig.produced);
        }
        // It may have to begin again for that, which is the next start's then.
        service.terminate();
    }
    rotate(&mut rig.home, SOON_PUBLISHED);
    let service = rig.home.foreground();
    rig.wait_seen();
    service.terminate();
    assert!(rig.home.log().contains("another process removed, replaced or shortened the hidden file"));
    rig.wait_terminated();
}

#[test]
fn a_hidden_file_that_is_removed_or_shortened_is_read_again() {
    assert_harm_is_read_again(Mode::All);
}

#[test]
fn a_hidden_file_that_is_removed_or_shortened_in_a_group_is_read_again() {
    assert_harm_is_read_again(Mode::Group);
}

#[test]
fn refused_files_that_cannot_be_removed_at_once_are_removed_after_a_kill() {
    let mut rig = Rig::new("sealstay", Mode::All, 1);
    rig.home.set("sink.file", "{log_name}.{seq}.log");
    rotate(&mut rig.home, NOT_BY_ITSELF);
    let layer = Layer::below(&rig.home);
    let service = start(&rig.home, &layer);
    rig.fill(200);
    rig.wait_durable();
    service.kill();
    let mut hidden = events::hidden(&rig.data());
    hidden.sort();
    let [first, _, ..] = &hidden[..] else { panic!("several files in one partition: {hidden:?}") };
    remove(first);
    let service = rig.home.foreground_with(|command| layer.command(command.env("FAULT_POINT", "refuse.noted:1:stop")));
    wait_until("it is frozen between the note and the removal", SOON, || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", service.pid())).map_err(|error| error.to_string())?;
        holds(stat.contains(") T "), stat)
    });
    layer.fail_writes("data/.", Errno::EIO);
    kill(service.pid(), Signal::SIGCONT).expect("it is there");
    rig.pauses("data");
    let up = |home: &Home| home.status().uptime_seconds.unwrap_or(0);
    let paused_at = up(&rig.home);
    wait_until("a checkpoint would have been made long ago", SOON, || holds(up(&rig.home) > paused_at + 1, ()));
    service.kill();
    layer.heal();
    rotate(&mut rig.home, SOON_PUBLISHED);
    let service = start(&rig.home, &layer);
    rig.home.wait_done(&rig.produced);
    service.terminate();
    assert_eq!(events::hidden(&rig.data()), Vec::<PathBuf>::new());
    // The lines of a partition are in several files, so their order is none.
    let mut expected: Vec<_> = oracle::expect(&rig.produced).lines.into_values().flatten().collect();
    let mut found: Vec<_> = rig.home.events().into_iter().flat_map(|file| file.lines).collect();
    expected.sort();
    found.sort();
    events::assert_same("all partitions", &expected, &found);
}

#[test]
fn a_foreign_file_with_the_final_name_is_told_and_publication_goes_on_when_it_is_gone() {
    let mut rig = Rig::new("foreign", Mode::Group, 1);
    rotate(&mut rig.home, NOT_BY_ITSELF);
    rig.fill(200);
    let service = rig.home.foreground();
    rig.wait_durable();
    service.kill();
    let hidden = events::hidden(&rig.data()).pop().expect("a hidden file");
    let name = hidden.file_name().expect("a name").to_string_lossy()[1..].to_owned();
    let (foreign, elsewhere) = (rig.data().join(&name), rig.home.path("foreign"));
    fs::write(&foreign, "another process's\n").expect("a file");
    rotate(&mut rig.home, SOON_PUBLISHED);
    let service = rig.home.foreground();
    rig.pauses(&name);
    assert_eq!(fs::read_to_string(&foreign).expect("a file"), "another process's\n", "it is left alone");
    fs::rename(&foreign, &elsewhere).expect("a file");
    rig.wait_seen();
    service.terminate();
}

/// NFS, 9p, FUSE and older ZFS have no renames that fail when the new name is taken.
#[test]
fn a_file_system_without_exclusive_renames_publishes() {
    let mut rig = Rig::new("norename", Mode::All, 1);
    let layer = Layer::below(&rig.home);
    layer.without_exclusive_renames();
    rotate(&mut rig.home, NOT_BY_ITSELF);
    rig.fill(200);
    let service = start(&rig.home, &layer);
    rig.wait_durable();
    service.kill();
    // The name is taken all the same.
    let hidden = events::hidden(&rig.data()).pop().expect("a hidden file");
    let name = hidden.file_name().expect("a name").to_string_lossy()[1..].to_owned();
    let other = rig.data().join(&name);
    fs::write(&other, "another process's\n").expect("a file");
    rotate(&mut rig.home, SOON_PUBLISHED);
    let service = start(&rig.home, &layer);
    rig.pauses(&name);
    assert_eq!(fs::read_to_string(&other).expect("a file"), "another process's\n", "it is left alone");
    service.kill();
    fs::remove_file(&other).expect("a file");
    let at = "publish.renamed";
    rig.home.foreground_with(|command| layer.command(command).env("FAULT_POINT", at)).wait_killed(at);
    layer.power_cut(Model::Strict);
    let service = start(&rig.home, &layer);
    rig.wait_seen();
    service.terminate();
    rig.home.mtga(["verify"]).success();
}

#[test]
fn an_event_directory_that_is_taken_away_and_made_again_gets_what_was_hidden_in_the_old_one() {
    for mode in [Mode::All, Mode::Group] {
        let mut rig = Rig::new("sealaway", mode, 2);
        let load = rig.topic.load(Codec::Snappy, Mix::Dirty);
        let service = rig.home.foreground();
        let (data, away) = (rig.data(), rig.home.path("away"));
        rig.home.wait_written(1500);
        fs::rename(&data, &away).expect("ours");
        rig.home.wait_for(State::Paused);
        fs::rename(&away, &data).expect("ours");
        rig.home.wait_written(3000);
        service.terminate();
        // Another directory has nothing of the old one: what was committed there must have its name already.
        rotate(&mut rig.home, NOT_BY_ITSELF);
        let service = rig.home.foreground();
        wait_until("something is hidden", SOON, || holds(!events::hidden(&data).is_empty(), ()));
        fs::rename(&data, &away).expect("ours");
        rig.home.wait_for(State::Paused);
        fs::create_dir(&data).expect("ours");
        rig.produced = load.stop();
        rig.home.wait_done(&rig.produced);
        service.terminate();
        for path in events::paths(&away).into_iter().chain(events::manifests(&away)) {
            fs::rename(&path, data.join(path.file_name().expect("a name"))).expect("ours");
        }
        rig.wait_terminated();
    }
}

#[test]
fn a_disk_that_is_full_while_files_are_hidden_is_waited_for() {
    let mut rig = Rig::new("sealfull", Mode::Group, 2);
    let disk = Mount::new(rig.data(), "8m");
    let ballast = disk.path().join("ballast");
    fs::write(&ballast, vec![0; 9 << 20]).expect_err("no room is left");
    fs::File::options()
        .write(true)
        .open(&ballast)
        .and_then(|file| file.set_len((8 << 20) - (200 << 10)))
        .expect("a file");
    rig.fill(2000);
    let service = rig.home.foreground();
    rig.home.wait_for(State::Paused);
    fs::remove_file(ballast).expect("the ballast");
    rig.wait_seen();
    service.terminate();
    rig.wait_terminated();
}

/// Runs `verify`; the faults that it finds.
fn faults(home: &Home) -> Vec<Value> {
    let done = home.mtga(["verify", "--json"]).code(1);
    let report: Value = serde_json::from_str(&done.stdout).expect("JSON");
    report["faults"].as_array().expect("faults").clone()
}

#[test]
fn a_gap_behind_what_is_hidden_is_in_no_manifest() {
    for mode in [Mode::All, Mode::Group] {
        let mut rig = Rig::new("sealgap", mode, 1);
        rotate(&mut rig.home, NOT_BY_ITSELF);
        rig.fill(300);
        let service = rig.home.foreground();
        rig.wait_durable();
        service.kill();
        // Records 300 to 400 go before they are read.
        rig.fill(200);
        rig.topic.delete_records(0, 400);
        rotate(&mut rig.home, SOON_PUBLISHED);
        let service = rig.home.foreground();
        wait_until("all is done", SOON, || {
            let status = rig.home.try_status()?;
            holds(status.lag == Some(0) && status.counts.in_flight == 0 && status.counts.consumed == 400, status)
        });
        wait_until("everything is published", SOON, || {
            let hidden = events::hidden(&rig.data());
            holds(hidden.is_empty(), hidden)
        });
        service.terminate();
        let found = faults(&rig.home);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0]["kind"], "gap");
        assert!(found[0].to_string().contains("300") && found[0].to_string().contains("400"), "{found:?}");
        rig.produced.drain(300..400);
        events::assert_exactly(&oracle::expect(&rig.produced).lines, &rig.home.events());
    }
}
