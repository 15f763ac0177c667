//! A home and the processes that may change it: commands on a stopped one, starts, and what another process does to its files
//! meanwhile. One at a time works on it, and each takes what the one before has left.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mtga::control::State;
use mtga::lock::{self, Holder};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::cases::for_each;
use crate::harness::process::{Finished, Service};
use crate::harness::{Codec, Home, Mix, Record, SOON, Topic, events, holds, oracle, tick, wait_until};

fn holder(home: &Home) -> Holder {
    lock::holder(&home.path("tmp/store")).expect("the lock can be looked at")
}

/// A home that saves nothing by itself, so that what it has written since its start is in the journal alone.
fn unsaved(topic: &Topic) -> Home {
    let mut home = Home::new(topic);
    home.set("store.checkpoint", "1h");
    home
}

fn spawn(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it can be started")
}

/// Demands of a stopped home that nothing is missing, nothing is there twice, and nothing comes.
fn assert_exactly_after_all(home: &Home, produced: &[Record]) {
    home.start();
    home.wait_done(produced);
    home.assert_exactly(produced);
    home.stop();
}

#[test]
fn a_command_that_waits_for_the_store_lets_no_service_change_the_home_meanwhile() {
    let topic = Topic::create("waits", 1);
    let home = unsaved(&topic);
    home.start();
    let mut produced = topic.fill(Codec::None, Mix::Clean, 0, 200);
    home.wait_written(200);
    home.stop();
    for end in [Signal::SIGKILL, Signal::SIGCONT] {
        // As a monitor does that looks at the store for long.
        let monitor = fs::File::open(home.path("tmp/store/sled/db")).expect("a file");
        monitor.try_lock().expect("nobody has it");
        let mut command = spawn(home.command().arg("retry_failure_queue"));
        let works = Holder::Command(command.id());
        wait_until("the command waits for the store", SOON, || holds(holder(&home) == works, "not yet"));
        let frozen = Pid::from_raw(command.id() as i32);
        kill(frozen, Signal::SIGSTOP).expect("it waits");
        drop(monitor);
        let mut start = spawn(home.command().arg("start"));
        // It does not come beyond the lock; without one it would be here in a moment.
        let seen = Instant::now();
        while holder(&home) == works && seen.elapsed() < Duration::from_millis(500) {
            tick();
        }
        produced.extend(topic.fill(Codec::None, Mix::Clean, produced.len() as u64, 200));
        if matches!(holder(&home), Holder::Nobody | Holder::Service(_)) {
            home.wait_written(produced.len() as u64);
            home.kill9();
        }
        kill(frozen, end).expect("it is there");
        assert_eq!(command.wait().expect("a child").success(), end == Signal::SIGCONT);
        assert!(start.wait().expect("a child").success());
        home.wait_written(produced.len() as u64);
        home.kill9();
        home.start();
        home.stop();
    }
    assert_exactly_after_all(&home, &produced);
}

#[test]
fn a_running_service_is_found_whatever_a_cleaner_takes_or_the_configuration_says() {
    let topic = Topic::create("found", 1);
    let mut home = Home::new(&topic);
    let runs = |home: &Home| {
        home.mtga(["status"]).code(0);
        let second = home.mtga(["start"]).code(73);
        assert!(second.stderr.contains("already runs on this home"), "{second:?}");
        assert!(matches!(holder(home), Holder::Service(Some(_))));
    };
    home.start();
    let pid = home.pid();
    fs::remove_file(home.path("tmp/mtga.pid")).expect("a pid file");
    runs(&home);
    fs::remove_file(home.path("tmp/store/lock")).expect("a lock");
    wait_until("it is locked again", SOON, || holds(holder(&home) != Holder::Nobody, "not yet"));
    fs::remove_file(home.path("tmp/mtga.sock")).expect("a socket");
    let stopped = home.mtga(["stop"]).success();
    assert_eq!(stopped, format!("mtga (pid {pid}) has stopped"), "by a signal");
    home.mtga(["status"]).code(3);
    // Without a moment in between, again and again.
    for _ in 0..3 {
        home.start();
        home.stop();
    }
    home.start();
    let pid = home.pid();
    home.set("store.path", "tmp/other");
    home.mtga(["status"]).code(0);
    let stopped = home.mtga(["stop"]).success();
    assert_eq!(stopped, format!("mtga (pid {pid}) has stopped"), "the socket knows");
    assert!(fs::metadata(format!("/proc/{pid}")).is_err(), "it has ended");
}

#[test]
fn who_may_only_read_keeps_no_service_from_its_home() {
    let topic = Topic::create("readers", 1);
    let home = Home::new(&topic);
    home.start();
    home.stop();
    fs::write(home.path("tmp/mtga.pid"), "1\n").expect("a file");
    // A member of the group can open and so lock these.
    let held: Vec<_> =
        ["data", "tmp/mtga.pid", "tmp"].map(|path| fs::File::open(home.path(path)).expect("a path")).into();
    for file in &held {
        file.try_lock().expect("nobody has it");
    }
    home.start();
    home.stop();
    for private in ["tmp/store", "data/.mtga"] {
        let mode = fs::metadata(home.path(private)).expect("a directory").permissions().mode();
        assert_eq!(mode & 0o7777, 0o700, "{private}");
    }
}

/// Everything below a directory, itself included.
fn below(path: &Path) -> Vec<std::path::PathBuf> {
    let mut all = vec![path.to_owned()];
    for entry in fs::read_dir(path).into_iter().flatten() {
        let entry = entry.expect("an entry").path();
        if entry.is_dir() { all.extend(below(&entry)) } else { all.push(entry) }
    }
    all
}

#[test]
fn the_store_is_its_owners_alone_whatever_the_umask() {
    let topic = Topic::create("umask", 1);
    let home = Home::new(&topic);
    let produced = topic.fill(Codec::None, Mix::Dirty, 0, 200);
    let mut shell = Command::new("sh");
    shell.args(["-c", "umask 0; exec \"$0\" --home \"$1\" start_not_daemon"]);
    let mut service = spawn(shell.arg(home.path("bin/mtga")).arg(home.path("")));
    home.wait_for(State::Consuming);
    home.wait_done(&produced);
    let stopped = Finished::run(home.command().arg("stop"), SOON);
    stopped.code(0);
    service.wait().expect("a child");
    // What sled makes by itself until the next start is in a directory that nobody else can enter.
    home.start();
    home.stop();
    for path in below(&home.path("tmp/store")) {
        let metadata = fs::metadata(&path).expect("a path");
        let (mode, wanted) = (metadata.permissions().mode() & 0o7777, if metadata.is_dir() { 0o700 } else { 0o600 });
        let of_sled = path.starts_with(home.path("tmp/store/sled")) && metadata.is_file();
        assert!(mode == wanted || of_sled && mode & 0o027 == 0, "{}: {mode:o}", path.display());
    }
    for path in ["tmp", "data", "logs"].iter().flat_map(|part| below(&home.path(part))).filter(|path| path.is_file()) {
        let mode = fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o007, 0, "{}: {mode:o}", path.display());
    }
}

/// What a collector finds in the event directory.
fn lines_of(home: &Home) -> Vec<String> {
    home.events().into_iter().flat_map(|file| file.lines).collect()
}

/// Runs a home, takes its store away, which may be a disk that is not mounted, and demands that no other home begins there
/// before that is said to be wanted.
fn assert_no_other_home_begins(configure: fn(&mut Home)) {
    let topic = Topic::create("missing", 1);
    let mut home = Home::new(&topic);
    configure(&mut home);
    let (store, away) = (home.path("tmp/store"), home.path("away"));
    let mut produced = topic.fill(Codec::None, Mix::Dirty, 0, 300);
    home.start();
    home.wait_done(&produced);
    let id = home.status().home_id;
    home.kill9();
    fs::rename(&store, &away).expect("the store");
    let before = lines_of(&home);
    // What is below a mount point: nothing, or nothing that a home can read.
    for below in [[].as_slice(), &["journal", "sled"]] {
        for name in below {
            fs::create_dir_all(store.join(name)).expect("a directory");
        }
        for command in ["start", "retry_failure_queue"] {
            let refused = home.mtga([command]).code(78);
            let text = &refused.stderr;
            assert!(text.contains(&format!("the store {} is empty", store.display())), "{refused:?}");
            assert!(text.contains("mount the disk of store.path") && text.contains(&id), "{refused:?}");
        }
    }
    assert_eq!(lines_of(&home), before);
    fs::remove_dir_all(&store).expect("a directory");
    fs::rename(&away, &store).expect("the store");
    home.start();
    assert_eq!(home.status().home_id, id);
    produced.extend(topic.fill(Codec::None, Mix::Dirty, 300, 100));
    home.wait_done(&produced);
    home.stop();
    events::assert_exactly(&oracle::expect(&produced).lines, &home.events());
    fs::rename(&store, &away).expect("the store");
    home.mtga(["start"]).code(78);
    // Lost for good.
    fs::remove_file(home.path("data/.mtga/checkpoint")).expect("a note");
    home.start();
    wait_until("no lag", SOON, || holds(home.lag()? == 0, home.try_status()));
    assert_ne!(home.status().home_id, id);
    home.stop();
}

/// How a home is, and what that is called.
type Kind = (&'static str, fn(&mut Home));

#[test]
fn a_store_that_is_not_there_is_no_new_home_unless_that_is_wanted() {
    let cases: [Kind; 4] = [
        ("live", |_| ()),
        ("sealed", |home| {
            home.set("sink.visibility", "sealed");
        }),
        ("in a group", |home| {
            home.in_group();
        }),
        ("sealed in a group", |home| {
            home.in_group().set("sink.visibility", "sealed");
        }),
    ];
    for_each(4, &cases, |(_, configure)| assert_no_other_home_begins(*configure));
}

#[test]
fn a_start_that_gives_up_behind_a_command_leaves_a_word() {
    let topic = Topic::create("silent", 1);
    let home = Home::new(&topic);
    home.start();
    home.wait_for(State::Consuming);
    home.stop();
    let log = fs::File::options().create(true).append(true).open(home.path("logs/command.log")).expect("a file");
    let mut command = home.command();
    let command = Service::spawn(command.arg("retry_failure_queue").env("FAULT_POINT", "home.locked:1:60000"), log);
    wait_until("the command has the home", SOON, || {
        let holder = holder(&home);
        holds(matches!(holder, Holder::Command(_)), holder)
    });
    let mut start = home.command();
    // The daemon says what it waits for within the first, however busy the machine is, and gives up only after it.
    let start = start.arg("start").env("FAULT_START_MS", "8000").env("FAULT_LOCK_MS", "16000");
    let started = Finished::run(start, SOON).success();
    let waits = format!("waiting for the command with pid {}", command.pid());
    assert!(started.contains(&waits), "the command says what the daemon waits for: {started}");
    wait_until("the log says why it gave up", SOON, || {
        let log = home.log();
        holds(log.contains("not started: a command works on the home"), log)
    });
    command.kill();
}

/// A monitor asks while nothing runs, and the service is started before it has looked at the home.
#[test]
fn what_is_asked_while_a_service_starts_is_answered_by_it() {
    let topic = Topic::create("askedearly", 1);
    let home = Home::new(&topic);
    home.start();
    home.stop();
    let asking: Vec<_> = [&["--json", "status"][..], &["kafka_lag"], &["failure_queue_count"]]
        .into_iter()
        .map(|args| home.command().args(args).env("FAULT_POINT", "ask.stopped:1:stop").stdout(Stdio::piped()).spawn())
        .map(|child| child.expect("it can be started"))
        .collect();
    for child in &asking {
        let path = format!("/proc/{}/stat", child.id());
        wait_until("it is about to look at the home", SOON, || {
            let stat = fs::read_to_string(&path).map_err(|error| error.to_string())?;
            holds(stat.contains(") T "), stat)
        });
    }
    let service = home.foreground();
    home.wait_for(State::Consuming);
    for child in &asking {
        kill(Pid::from_raw(child.id() as i32), Signal::SIGCONT).expect("it is stopped");
    }
    for child in asking {
        let done = child.wait_with_output().expect("it ends");
        let told = String::from_utf8_lossy(&done.stdout).into_owned();
        assert!(done.status.success(), "{done:?}");
        assert!(told.contains(r#""state":"consuming""#) || told == "0\n", "{told}");
    }
    service.terminate();
}
