//! The file sink: names, rotation, files that are closed and opened again, and what others do to its files.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use std::{fs, io};

use tempfile::TempDir;

use super::FileKey;
use super::dir::{EventDir, blames_name};
use super::file::{FileSink, Ledger, Now, Remains, RotateReason, Written, leftover};
use super::manifest::{self, Manifest, Source};
use super::name::NameTemplate;
use crate::config;
use crate::msource::journal::{FileIntent, FileState, SealedFile};

/// Remembers what it was told.
#[derive(Default)]
struct Notes(Vec<String>);

impl Ledger for Notes {
    fn intend(&mut self, intent: &FileIntent) -> io::Result<()> {
        self.0.push(format!("intend {} {}", intent.id, intent.name));
        Ok(())
    }

    fn made(&mut self, id: u64, inode: u64) -> io::Result<()> {
        assert_ne!(inode, 0);
        self.0.push(format!("made {id}"));
        Ok(())
    }

    fn end(&mut self, id: u64) -> io::Result<()> {
        self.0.push(format!("end {id}"));
        Ok(())
    }
}

struct World {
    scratch: TempDir,
    config: config::Sink,
    sink: FileSink,
    notes: Notes,
    now: Now,
}

const TEMPLATE: &str = "{log_name}.%H.{seq}";

impl World {
    fn new(max_open_files: usize) -> Self {
        let scratch = TempDir::new().unwrap();
        let config = config::Sink {
            mode: config::Mode::Batch,
            dir: scratch.path().join("data"),
            file: TEMPLATE.into(),
            batch: config::Batch { lines: 1, bytes: 1, linger: Duration::ZERO },
            rotate: config::Rotate { size: 30, age: Duration::from_mins(10), idle: Duration::from_mins(1) },
            fsync: true,
            visibility: config::Visibility::Live,
            compression: config::Compression::None,
            keep_age: None,
            keep_bytes: None,
            max_open_files,
            permissions: 0o640,
        };
        let now = Now { wall: 0, tick: Instant::now() };
        let sink = Self::sink(&config, TEMPLATE, &BTreeMap::new(), now);
        Self { scratch, config, sink, notes: Notes::default(), now }
    }

    fn sink(config: &config::Sink, template: &str, files: &BTreeMap<u64, FileState>, now: Now) -> FileSink {
        let dir = EventDir::open(&config.dir).unwrap();
        let template = NameTemplate::parse(template, 1, "", config::TimeZone::UTC).unwrap();
        let next = files.keys().last().map_or(0, |last| last + 1);
        FileSink::new(dir, template, config, files, next, now)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join("data").join(name)
    }

    fn target(&mut self, log: &str) -> io::Result<(u64, u64)> {
        self.sink.target(&key(log), self.now, &mut self.notes)
    }

    fn append(&mut self, log: &str, text: &str) -> (u64, u64) {
        let (id, position) = self.target(log).unwrap();
        let written = self.sink.write(id, position, text.as_bytes(), &mut 0, self.now).unwrap();
        assert_eq!(written, Written::All);
        (id, position)
    }

    fn pass(&mut self, seconds: u64) {
        self.now = Now { wall: self.now.wall + seconds as i64, tick: self.now.tick + Duration::from_secs(seconds) };
    }

    fn rotate(&mut self) -> Option<RotateReason> {
        let before = self.sink.rotated;
        self.sink.rotate_due(self.now, &mut self.notes).unwrap();
        RotateReason::ALL.into_iter().find(|reason| self.sink.rotated[*reason as usize] > before[*reason as usize])
    }
}

fn key(log: &str) -> FileKey {
    FileKey { log_name: Some(log.into()), ..FileKey::default() }
}

#[test]
fn a_file_is_in_the_ledger_before_it_exists_and_lines_go_where_they_were_told() {
    let mut world = World::new(9);
    assert_eq!(world.append("a", "one\n"), (0, 0));
    assert_eq!(world.append("a", "two\n"), (0, 4));
    assert_eq!(world.append("b", "three\n"), (1, 0));
    assert_eq!(world.notes.0, ["intend 0 a.00.0", "made 0", "intend 1 b.00.1", "made 1"]);
    assert_eq!(fs::read(world.path("a.00.0")).unwrap(), b"one\ntwo\n");
    assert_eq!(fs::read(world.path("b.00.1")).unwrap(), b"three\n");
    assert_eq!(world.sink.take_dirty().len(), 2);
    assert_eq!(world.sink.take_dirty().len(), 0);
}

#[test]
fn the_age_of_a_file_counts_from_when_it_is_there() {
    let mut world = World::new(9);
    // Since then the disk is at work on it.
    world.now.tick -= Duration::from_secs(3);
    let (first, _) = world.append("a", "\n");
    for seconds in [57; 10].into_iter().chain([32]) {
        world.pass(seconds);
        assert_eq!(world.append("a", "\n").0, first, "it is not idle");
    }
    assert_eq!(world.rotate(), None, "2 s more than its age since it was begun");
    world.pass(1);
    assert_eq!(world.rotate(), Some(RotateReason::Age));
}

#[test]
fn each_bound_finishes_a_file_by_the_timer() {
    let mut world = World::new(9);
    let long = "x".repeat(30) + "\n";
    for (text, seconds, reason) in [
        ("short\n", 59, None),
        ("short\n", 60, Some(RotateReason::Idle)),
        (&long, 0, Some(RotateReason::Size)),
        ("short\n", 3600, Some(RotateReason::Name)),
    ] {
        world.append("a", text);
        world.pass(seconds);
        assert_eq!(world.rotate(), reason, "{text:?} and {seconds} seconds");
    }
    for _ in 0..20 {
        world.append("old", "\n");
        world.pass(29);
        assert_eq!(world.rotate(), None);
    }
    world.append("old", "\n");
    world.pass(20);
    assert_eq!(world.rotate(), Some(RotateReason::Age));
    assert_eq!(world.sink.take_dirty().len(), 4, "the last lines of a finished file are synced too");
}

#[test]
fn a_finished_file_gets_no_line_and_its_name_never_comes_again() {
    let mut world = World::new(9);
    world.append("a", "one\n");
    world.sink.finish_all(RotateReason::Stop, &mut world.notes).unwrap();
    assert!(world.sink.write(0, 4, b"late\n", &mut 0, world.now).is_err());
    assert_eq!(world.append("a", "two\n"), (1, 0));
    assert_eq!(fs::read(world.path("a.00.0")).unwrap(), b"one\n");
    assert_eq!(world.notes.0[2..], ["end 0", "intend 1 a.00.1", "made 1"]);
}

#[test]
fn files_that_are_closed_for_others_go_on_afterwards() {
    let mut world = World::new(2);
    for round in 0..3 {
        for log in ["a", "b", "c"] {
            assert_eq!(world.append(log, "line\n").1, round * 5);
            assert!(world.sink.open_files() <= 2);
        }
    }
    assert_eq!(fs::read(world.path("a.00.0")).unwrap(), b"line\nline\nline\n");
    assert_eq!(world.notes.0.len(), 6, "none was finished: {:?}", world.notes.0);
}

#[test]
fn a_foreign_file_is_left_and_the_next_name_taken() {
    let mut world = World::new(9);
    fs::write(world.path("a.00.0"), "another process's").unwrap();
    assert_eq!(world.append("a", "one\n"), (1, 0));
    assert_eq!(fs::read(world.path("a.00.0")).unwrap(), b"another process's");
    assert_eq!(world.notes.0, ["intend 0 a.00.0", "end 0", "intend 1 a.00.1", "made 1"]);
}

#[test]
fn what_others_do_to_a_file_ends_it_whether_it_is_open_or_closed() {
    type Harm = fn(&World);
    let harms: [Harm; 2] = [
        |world| fs::remove_file(world.path("a.00.0")).unwrap(),
        |world| fs::File::options().write(true).open(world.path("a.00.0")).unwrap().set_len(1).unwrap(),
    ];
    for harm in harms {
        for max_open in [9, 1] {
            let mut world = World::new(max_open);
            world.append("a", "one\n");
            world.append("b", "one\n");
            harm(&world);
            assert_eq!(world.append("a", "two\n"), (2, 0));
            assert_eq!(fs::read(world.path("a.00.2")).unwrap(), b"two\n");
            assert_eq!(world.sink.rotated[RotateReason::Foreign as usize], 1);
        }
    }
}

#[test]
fn a_file_that_is_removed_while_it_is_written_holds_up_nothing() {
    let mut world = World::new(9);
    let (id, position) = world.target("a").unwrap();
    fs::remove_file(world.path("a.00.0")).unwrap();
    let mut done = 0;
    let written = world.sink.write(id, position, b"one\n", &mut done, world.now).unwrap();
    assert_eq!((written, done), (Written::Gone, 0));
    assert_eq!(world.append("a", "one\n"), (1, 0));
}

#[test]
fn a_full_disk_is_an_error_and_the_rest_follows_when_there_is_room() {
    let mut world = World::new(9);
    let (id, position) = world.target("a").unwrap();
    world.sink.room.store(5, Ordering::SeqCst);
    let mut done = 0;
    let error = world.sink.write(id, position, b"one\ntwo\n", &mut done, world.now).unwrap_err();
    assert_eq!((error.kind(), done), (io::ErrorKind::StorageFull, 5));
    world.sink.room.store(u64::MAX, Ordering::SeqCst);
    let written = world.sink.write(id, position, b"one\ntwo\n", &mut done, world.now).unwrap();
    assert_eq!((written, done), (Written::All, 8));
    assert_eq!(fs::read(world.path("a.00.0")).unwrap(), b"one\ntwo\n");
    assert_eq!(world.target("a").unwrap(), (0, 8));
}

#[test]
fn nothing_is_written_while_the_directory_is_gone_and_a_new_one_gets_new_files() {
    let mut world = World::new(9);
    world.append("a", "one\n");
    let (data, moved) = (world.scratch.path().join("data"), world.scratch.path().join("moved"));
    fs::rename(&data, &moved).unwrap();
    world.target("a").unwrap_err();
    assert!(world.sink.reopen_dir().is_err());
    fs::create_dir(&data).unwrap();
    world.target("a").unwrap_err();
    world.sink.reopen_dir().unwrap();
    assert_eq!(world.append("a", "two\n"), (1, 0));
    assert_eq!(fs::read(world.path("a.00.1")).unwrap(), b"two\n");
    assert_eq!(fs::read(moved.join("a.00.0")).unwrap(), b"one\n");
    assert_eq!(world.sink.take_dirty().len(), 2, "what was written before is still synced");
}

#[test]
fn a_file_that_cannot_be_created_is_intended_once() {
    let mut world = World::new(9);
    // A directory in the way of nothing: the name itself is what fails.
    fs::remove_dir_all(world.scratch.path().join("data")).unwrap();
    let mut sink = World::sink(&world.config, "{log_name}/%H.{seq}", &BTreeMap::new(), world.now);
    fs::write(world.path("a"), "a file where a directory should be").unwrap();
    for _ in 0..3 {
        sink.target(&key("a"), world.now, &mut world.notes).unwrap_err();
    }
    assert_eq!(world.notes.0, ["intend 0 a/00.0"]);
    fs::remove_file(world.path("a")).unwrap();
    assert_eq!(sink.target(&key("a"), world.now, &mut world.notes).unwrap(), (0, 0));
    assert_eq!(world.notes.0, ["intend 0 a/00.0", "made 0"]);
}

#[test]
fn a_stranger_in_place_of_a_directory_of_all_names_is_the_fault_of_no_record() {
    let mut world = World::new(10);
    drop(world.sink);
    world.sink = World::sink(&world.config, "all/{log_name}/x.{seq}", &BTreeMap::new(), world.now);
    world.append("b", "b1\n");
    fs::write(world.path("all/a"), "another process's").unwrap();
    assert!(blames_name(&world.target("a").unwrap_err()));
    fs::rename(world.path("all"), world.path("moved")).unwrap();
    fs::write(world.path("all"), "another process's").unwrap();
    let error = world.target("a").unwrap_err();
    assert!(!blames_name(&error), "{error}");
    assert!(error.to_string().starts_with("cannot use the directory `all/`: "), "{error}");
}

#[test]
fn an_intent_that_is_no_longer_right_is_given_up() {
    let mut world = World::new(9);
    fs::remove_dir_all(world.scratch.path().join("data")).unwrap();
    let mut sink = World::sink(&world.config, "{log_name}/%H.{seq}", &BTreeMap::new(), world.now);
    fs::write(world.path("a"), "a file where a directory should be").unwrap();
    sink.target(&key("a"), world.now, &mut world.notes).unwrap_err();
    assert_eq!(sink.target(&key("b"), world.now, &mut world.notes).unwrap(), (1, 0));
    assert_eq!(world.notes.0, ["intend 0 a/00.0", "end 0", "intend 1 b/00.1", "made 1"]);
}

#[test]
fn an_intent_goes_with_its_partition_from_sink_and_ledger() {
    let mut world = World::new(9);
    world.config.visibility = config::Visibility::Sealed;
    fs::remove_dir_all(world.scratch.path().join("data")).unwrap();
    let mut sink = World::sink(&world.config, "{log_name}/%H.{seq}", &BTreeMap::new(), world.now);
    fs::write(world.path("a"), "a file where a directory should be").unwrap();
    let key = FileKey { topic: Some("t".into()), partition: Some(3), ..key("a") };
    sink.target(&key, world.now, &mut world.notes).unwrap_err();
    sink.forget_partition(&key.partition().unwrap());
    fs::remove_file(world.path("a")).unwrap();
    assert_eq!(sink.target(&key, world.now, &mut world.notes).unwrap(), (1, 0));
    assert_eq!(world.notes.0, ["intend 0 a/00.0", "intend 1 a/00.1", "made 1"]);
}

#[test]
fn files_of_the_last_run_go_on_unless_the_template_is_another() {
    for (template, position) in [(TEMPLATE, Some(4)), ("{log_name}.%H.{seq}.log", None)] {
        let mut world = World::new(9);
        world.append("a", "one\n");
        let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(world.path("a.00.0")).unwrap());
        let state = FileState { name: "a.00.0".into(), key: key("a"), inode, length: 4, ..FileState::default() };
        let World { scratch: _scratch, config, sink, mut notes, now } = world;
        drop(sink);
        let mut sink = World::sink(&config, template, &BTreeMap::from([(0, state)]), now);
        let target = sink.target(&key("a"), now, &mut notes).unwrap();
        assert_eq!(target, position.map_or((1, 0), |position| (0, position)), "{template}");
    }
}

/// A world whose files are hidden, with one of them written.
fn hidden() -> (World, SealedFile, Manifest) {
    let mut world = World::new(9);
    world.config.visibility = config::Visibility::Sealed;
    world.config.dir = world.scratch.path().join("hidden");
    world.sink = World::sink(&world.config, TEMPLATE, &BTreeMap::new(), world.now);
    let (id, _) = world.append("a", "one\n");
    let name = "a.00.0".to_owned();
    let (bytes, crc) = (4, crc32c::crc32c(b"one\n"));
    let manifest = Manifest {
        file: Some(name.clone()),
        lines: 1,
        bytes,
        crc32c: crc,
        compression: config::Compression::None,
        source: Source::Retries,
        home: "h".into(),
        incarnation: 1,
        number: 7,
        seal: None,
    };
    let file = SealedFile { id, name, inode: 0, lines: 1, bytes, crc, compression: config::Compression::None };
    (world, file, manifest)
}

fn names(world: &World) -> Vec<String> {
    let entries = fs::read_dir(&world.config.dir).unwrap().map(|entry| entry.unwrap().file_name());
    let names = entries.map(|name| name.into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name != super::dir::PRIVATE).collect();
    names.sort();
    names
}

#[test]
fn a_name_with_the_manifest_of_an_earlier_file_is_not_given_again() {
    for visibility in [config::Visibility::Live, config::Visibility::Sealed] {
        let mut world = World::new(9);
        world.config.visibility = visibility;
        world.config.dir = world.scratch.path().join("other");
        world.sink = World::sink(&world.config, TEMPLATE, &BTreeMap::new(), world.now);
        fs::write(world.config.dir.join("a.00.0.manifest.json"), "{}").unwrap();
        assert_eq!(world.append("a", "one\n"), (1, 0));
        assert_eq!(world.notes.0, ["intend 0 a.00.0", "end 0", "intend 1 a.00.1", "made 1"]);
    }
}

#[test]
fn a_file_is_not_published_beside_the_manifest_of_another() {
    let (world, file, manifest) = hidden();
    let earlier = Manifest { number: 3, ..manifest.clone() }.to_json();
    let path = world.config.dir.join("a.00.0.manifest.json");
    fs::write(&path, &earlier).unwrap();
    assert_eq!(world.sink.remains(&file, &manifest).unwrap(), Remains::Hidden);
    let error = world.sink.publish(&file, &manifest).unwrap_err();
    assert!(error.to_string().contains("the manifest of another file: move it away"), "{error}");
    assert_eq!(
        (names(&world), fs::read(&path).unwrap()),
        (vec![".a.00.0".into(), "a.00.0.manifest.json".into()], earlier)
    );
    fs::remove_file(&path).unwrap();
    world.sink.publish(&file, &manifest).unwrap();
    // An attempt that is repeated finds its own, also one that another program wrote.
    world.sink.publish(&file, &manifest).unwrap();
    let (told, more) = (manifest.to_json(), "{\"more\": 1, ");
    fs::write(&path, String::from_utf8(told).unwrap().replacen('{', more, 1)).unwrap();
    world.sink.publish(&file, &manifest).unwrap();
    assert!(fs::read_to_string(&path).unwrap().starts_with(more));
    world.sink.remove_hidden(&leftover("a.00.0")).unwrap();
    assert_eq!(names(&world), ["a.00.0", "a.00.0.manifest.json"]);
}

#[test]
fn no_record_makes_the_name_of_a_manifest_without_a_file() {
    let zone = crate::config::TimeZone::UTC;
    let range = manifest::Range { topic: "t".to_owned(), topic_id: String::new(), partition: 0, from: 5, to: 9 };
    let empty = manifest::name_of_empty(&range, 7);
    for text in
        ["{topic}-{partition}-{log_name}.{seq}", "{topic}-{partition}-{log_name}.{seq}.empty", "{seq}/t-0-5-9.7.empty"]
    {
        let template = NameTemplate::parse(text, 1, "", zone).unwrap();
        let key = FileKey {
            topic: Some("t".to_owned()),
            partition: Some(0),
            log_name: Some("5-9".to_owned()),
            ..FileKey::default()
        };
        for ending in ["", ".gz"] {
            let file = template.clone().hidden(ending).name(&key, 0, 7).unwrap();
            assert_ne!(manifest::name_for(&file).rsplit('/').next(), Some(empty.as_str()));
        }
    }
}

#[test]
fn what_is_left_of_a_hidden_file_is_told_before_it_is_published() {
    let (world, file, manifest) = hidden();
    let remains = || world.sink.remains(&file, &manifest).unwrap();
    let path = |name: &str| world.config.dir.join(name);
    fs::File::options().write(true).open(path(".a.00.0")).unwrap().set_len(3).unwrap();
    assert_eq!(remains(), Remains::Short);
    fs::remove_file(path(".a.00.0")).unwrap();
    assert_eq!(remains(), Remains::Gone);
    // A manifest of another file tells nothing of this one.
    let temporary = super::name::temporary("a.00.0.manifest.json");
    fs::write(path(&temporary), Manifest { number: 3, ..manifest.clone() }.to_json()).unwrap();
    assert_eq!(remains(), Remains::Gone);
    fs::write(path(&temporary), manifest.to_json()).unwrap();
    assert_eq!(remains(), Remains::Named);
    // It is all that tells that the file was published: it is never removed to be written again, also when a reader has taken
    // the file with its manifest.
    let inode = |name: &str| fs::metadata(path(name)).unwrap().ino();
    let before = inode(&temporary);
    for _ in 0..2 {
        world.sink.publish(&file, &manifest).unwrap();
        assert_eq!((inode(&temporary), inode("a.00.0.manifest.json"), remains()), (before, before, Remains::Named));
        fs::remove_file(path("a.00.0.manifest.json")).unwrap();
        assert_eq!(remains(), Remains::Named);
    }
    world.sink.remove_hidden(&leftover("a.00.0")).unwrap();
    assert_eq!((names(&world), remains()), (Vec::new(), Remains::Gone));
}
