//! Commands and starts beside each other on one home with a filled failure queue, killed at each of their steps: whoever waits
//! goes on with what the killed one has left, and all of it is repeated to its end.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use mtga::control::State;
use nix::libc::SYS_clock_nanosleep;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::commands::{self, in_group, numbers, read_to_the_end};
use crate::harness::cases::for_each;
use crate::harness::process::Service;
use crate::harness::{Codec, Home, Mix, Record, SOON, Topic, events, holds, wait_until};
use crate::sequences::{MENDED, broken, map, nameless, tear};

/// How many cases run beside each other.
const BESIDE: usize = 6;

const RETRY: &[&str] = &["retry_failure_queue"];
const CLEAR_OLD: &[&str] = &["clear_failure_queue", "--older-than", "365d"];
const SET: &[&str] = &["set_offset", "all", "latest"];

/// Commands that leave the home as it is, or do what the service does by itself.
const OTHERS: [&[&str]; 3] = [RETRY, CLEAR_OLD, SET];

/// How the files and the group of a home are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    LiveAlone,
    SealedInGroup,
}

/// Which command is killed, beside a start and another command.
#[derive(Clone, Copy, Debug)]
enum Killed {
    Retry,
    Clear,
    Set,
}

fn spawn(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it can be started")
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id() as i32)
}

/// Has it freeze as soon as it has locked the home, and die at this place when it goes on.
fn to_die_at(point: &str) -> String {
    format!("home.locked:1:stop,{point}")
}

fn wait_frozen(pid: Pid) {
    let path = format!("/proc/{pid}/stat");
    wait_until("it has locked the home", SOON, || {
        let stat = fs::read_to_string(&path).map_err(|error| error.to_string())?;
        holds(stat.contains(") T "), stat)
    });
}

/// Has a frozen process go on to where it dies: there at once, if that is where it is.
fn go_on(pid: Pid, point: &str) {
    let signal = if point == "home.locked" { Signal::SIGKILL } else { Signal::SIGCONT };
    kill(pid, signal).expect("it is there");
}

fn ended(child: &mut Child) -> ExitStatus {
    let mut status = None;
    wait_until("the command ends", 2 * SOON, || {
        status = child.try_wait().expect("a child");
        holds(status.is_some(), "it runs")
    });
    status.expect("it has ended")
}

/// Demands an end that is told, whatever it is: who comes too late is refused or asks the service.
fn assert_told(child: &mut Child) {
    let status = ended(child);
    assert!(matches!(status.code(), Some(0 | 1 | 69 | 73 | 75)), "{status}");
}

/// Waits until a process tries to lock the home, or has given up.
fn wait_contends(home: &Home, pid: Pid) {
    let lock = home.path("tmp/store/lock");
    wait_until("it waits for the home", SOON, || {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let contends = files.filter_map(|file| fs::read_link(file.path()).ok()).any(|path| path == lock);
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        holds(contends || stat.is_empty() || stat.contains(") Z "), stat)
    });
}

/// A home, and what was produced for it.
struct Scene {
    kind: Kind,
    topic: Topic,
    home: Home,
    /// Records so far; their numbers are their offsets.
    count: u64,
    /// Those that are to be lines by now.
    lines: BTreeSet<u64>,
    /// Those that are to be entries of the failure queue.
    entries: BTreeSet<u64>,
    /// Those of the entries of which a mended mapping makes lines.
    mendable: BTreeSet<u64>,
}

impl Scene {
    fn new(kind: Kind) -> Self {
        let topic = Topic::create("beside", 1);
        let mut home = Home::new(&topic);
        match kind {
            Kind::LiveAlone => {}
            Kind::SealedInGroup => {
                in_group(&mut home);
                home.set("sink.visibility", "sealed");
                home.set("sink.rotate", json!({"age": "1s", "idle": "300ms", "size": "1MiB"}));
            }
        }
        let [lines, entries, mendable] = [const { BTreeSet::new() }; 3];
        Self { kind, topic, home, count: 0, lines, entries, mendable }
    }

    fn produce(&mut self, count: u64, record: impl Fn(u64) -> Record) -> std::ops::Range<u64> {
        let numbers = self.count..self.count + count;
        self.topic.produce(Codec::None, &numbers.clone().map(record).collect::<Vec<_>>());
        self.count = numbers.end;
        numbers
    }

    fn produce_good(&mut self) {
        let good = self.produce(20, |n| Mix::Clean.record(n, 1));
        self.lines.extend(good);
    }

    /// Waits until everything is read, and so many entries are left, if that is told.
    fn wait_settled(&self, left: Option<usize>) {
        let count = self.count;
        wait_until(&format!("{count} records and {left:?} entries"), SOON, || {
            let status = self.home.try_status()?;
            let all = status.counts.consumed == count && status.counts.in_flight == 0;
            let is_left = left.is_none_or(|left| status.failure_queue_records == left as u64);
            // Published by itself: a session that ends while it stops would leave that to the next start.
            let hidden = events::hidden(&self.home.path("data"));
            holds(status.state == State::Consuming && all && is_left && hidden.is_empty(), (status, hidden))
        });
    }

    /// Has the service read lines and new entries, and die: while it writes, or before the group has what it hides.
    fn fill(&mut self) {
        map(&self.home, "[]");
        let mendable = self.produce(10, nameless);
        self.mendable.extend(mendable.clone());
        let broken = self.produce(5, broken);
        self.entries.extend(mendable.chain(broken));
        self.produce_good();
        // Then what it has written is in the journal alone.
        self.home.set("store.checkpoint", if self.kind == Kind::LiveAlone { "1h" } else { "100ms" });
        let service = self.home.foreground();
        self.wait_settled(None);
        self.home.set("store.checkpoint", "100ms");
        match self.kind {
            Kind::LiveAlone => {
                service.kill();
                tear(&self.home);
            }
            Kind::SealedInGroup => {
                service.terminate();
                self.produce_good();
                self.home.killed_at("seal.prepared");
            }
        }
    }

    /// The mapping makes lines of some entries from here on.
    fn mend(&mut self) {
        map(&self.home, MENDED);
        self.entries.retain(|entry| !self.mendable.contains(entry));
        self.lines.append(&mut self.mendable);
    }

    fn freeze(&self, args: &[&str], point: &str) -> Child {
        let killed = spawn(self.home.command().args(args).env("FAULT_POINT", to_die_at(point)));
        wait_frozen(pid(&killed));
        killed
    }

    /// Has a command die at a step, while a start and another command wait for the home; the service that follows stays.
    fn die_beside(&self, args: &[&str], point: &str, other: &[&str]) -> Service {
        die_beside(&self.home, self.freeze(args, point), point, other)
    }

    /// Demands of the stopped home that every record is what it is to be.
    fn assert_exactly(&self, what: &str) {
        assert_eq!(numbers(&self.home), self.lines.iter().copied().collect::<Vec<_>>(), "{what}: lines");
        let entries: BTreeSet<_> = self.home.failures().iter().map(|entry| entry.offset as u64).collect();
        assert_eq!(entries, self.entries, "{what}: entries");
        assert_eq!(events::hidden(&self.home.path("data")), Vec::<PathBuf>::new(), "{what}");
        let counts = self.home.status().counts;
        let sum = counts.written + counts.filtered.iter().sum::<u64>() + counts.rejected.iter().sum::<u64>();
        assert_eq!(counts.consumed, self.count, "{what}");
        assert_eq!(counts.consumed + counts.retried, sum, "{what}");
    }

    /// Reads more, and demands that nothing is missing and nothing is there twice.
    fn go_on_reading(&mut self, what: &str) {
        self.produce_good();
        let service = self.home.foreground();
        self.wait_settled(Some(self.entries.len()));
        service.terminate();
        self.assert_exactly(what);
    }

    fn retry_dies(&mut self, point: &str, other: &[&str]) {
        self.fill();
        self.mend();
        let service = self.die_beside(RETRY, point, other);
        self.wait_settled(Some(self.entries.len()));
        self.home.mtga(RETRY).success();
        service.terminate();
    }

    fn clear_dies(&mut self, point: &str, other: &[&str]) {
        self.fill();
        let exports = ["first", "second"].map(|turn| self.home.path(format!("{point}.{turn}.jsonl")));
        let args = exports.each_ref().map(|path| ["clear_failure_queue", "--export", path.to_str().expect("a path")]);
        let service = self.die_beside(&args[0], point, other);
        self.wait_settled(None);
        self.home.mtga(args[1]).success();
        service.terminate();
        let texts = exports.map(|path| fs::read_to_string(path).unwrap_or_default());
        let offset = |line: &str| {
            serde_json::from_str::<serde_json::Value>(line).expect("JSON")["offset"].as_u64().expect("one")
        };
        let exported: BTreeSet<_> = texts.iter().flat_map(|text| text.lines()).map(offset).collect();
        assert_eq!(exported, std::mem::take(&mut self.entries), "{point}: each is in a file");
        self.mendable.clear();
    }

    fn set_dies(&mut self, point: &str, other: &[&str]) {
        self.fill();
        if self.kind == Kind::SealedInGroup {
            // A move past what is hidden would be refused.
            read_to_the_end(&self.home);
        }
        let service = self.die_beside(SET, point, other);
        self.wait_settled(Some(self.entries.len()));
        service.terminate();
        self.home.mtga(SET).success();
    }
}

/// Has a frozen command die at a step, while a start and another command wait for the home; the service that follows stays.
fn die_beside(home: &Home, mut killed: Child, point: &str, other: &[&str]) -> Service {
    // On a busy machine, the command may take longer than a start waits.
    let service = home.foreground_with(|command| command.env("FAULT_LOCK_MS", "120000"));
    wait_contends(home, service.pid());
    let mut other = spawn(home.command().args(other));
    wait_contends(home, pid(&other));
    go_on(pid(&killed), point);
    assert_eq!(ended(&mut killed).signal(), Some(9), "it comes to {point}");
    assert_told(&mut other);
    service
}

fn assert_commands_die_beside(kind: Kind, cases: &[(Killed, &[&str])]) {
    for_each(BESIDE, cases, |(killed, points)| {
        let mut scene = Scene::new(kind);
        for (point, other) in points.iter().zip(OTHERS.iter().cycle()) {
            match killed {
                Killed::Retry => scene.retry_dies(point, other),
                Killed::Clear => scene.clear_dies(point, other),
                Killed::Set => scene.set_dies(point, other),
            }
            scene.go_on_reading(&format!("{killed:?} at {point} beside {other:?}"));
        }
    });
}

#[test]
fn commands_and_starts_beside_each_other_killed_at_each_step_lose_and_repeat_nothing() {
    assert_commands_die_beside(
        Kind::LiveAlone,
        &[
            (Killed::Retry, &["home.locked", "start.recovered", "journal.begun", "journal.named"]),
            (Killed::Retry, &["start.applied", "queue_framed", "queue_written", "queue_checkpointed"]),
            (Killed::Clear, &["start.begun", "queue_exported", "queue_removed"]),
            (Killed::Set, &["set.settled", "set.committed", "set.noted", "set.saved"]),
        ],
    );
}

#[test]
fn commands_and_starts_beside_each_other_killed_at_each_step_in_a_group_with_hidden_files_lose_and_repeat_nothing() {
    assert_commands_die_beside(
        Kind::SealedInGroup,
        &[
            (Killed::Retry, &["start.recovered", "start.applied", "queue_framed"]),
            (Killed::Retry, &["queue_written", "queue_checkpointed"]),
            (Killed::Clear, &["queue_exported", "queue_removed"]),
            (Killed::Set, &["set.settled", "set.committed", "set.noted"]),
        ],
    );
}

#[test]
fn starts_killed_at_each_step_beside_commands_that_wait_lose_and_repeat_nothing() {
    let alone = ["home.locked", "run.locked", "recovery.mended", "start.recovered"];
    let later = ["journal.begun", "journal.named", "start.begun", "start.applied", "start.noted"];
    let in_group = ["run.locked", "start.recovered", "start.applied", "start.noted"];
    let cases: [(Kind, &[&str]); 3] =
        [(Kind::LiveAlone, &alone), (Kind::LiveAlone, &later), (Kind::SealedInGroup, &in_group)];
    for_each(BESIDE, &cases, |(kind, points)| {
        let mut scene = Scene::new(*kind);
        for (point, command) in points.iter().zip(OTHERS.iter().cycle()) {
            scene.fill();
            scene.mend();
            let start = scene.home.foreground_with(|command| command.env("FAULT_POINT", to_die_at(point)));
            wait_frozen(start.pid());
            let mut waits = spawn(scene.home.command().args(*command));
            // Asks for the socket of the service that has locked the home.
            wait_asleep(pid(&waits));
            go_on(start.pid(), point);
            start.wait_killed(point);
            assert_told(&mut waits);
            scene.go_on_reading(&format!("a start at {point} beside {command:?}"));
            scene.home.mtga(*command).success();
            scene.assert_exactly(&format!("{command:?} behind a start at {point}"));
        }
    });
}

/// Waits until a process sleeps between two looks, or has ended.
fn wait_asleep(pid: Pid) {
    let sleep = format!("{SYS_clock_nanosleep} ");
    wait_until("it waits", SOON, || {
        let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        holds(call.starts_with(&sleep) || stat.is_empty() || stat.contains(") Z "), (call, stat))
    });
}

/// `adopt` dies at a step, while a start of the home that adopts and another command wait for it.
#[test]
fn adoptions_killed_at_each_step_beside_a_start_and_a_command_lose_and_repeat_nothing() {
    // Where records are not read yet, `set_offset` would skip them.
    let cases = [
        ("live", "adopt.recovered", RETRY),
        ("live", "adopt.settled", CLEAR_OLD),
        ("live", "adopt.added", SET),
        ("live", "adopt.removed", RETRY),
        ("live", "adopt.moved", CLEAR_OLD),
        ("live", "adopt.done", SET),
        ("sealed", "adopt.recovered", RETRY),
        ("sealed", "adopt.settled", CLEAR_OLD),
        ("sealed", "adopt.added", RETRY),
        ("sealed", "adopt.removed", CLEAR_OLD),
        ("sealed", "adopt.done", RETRY),
    ];
    for_each(BESIDE, &cases, |(kind, point, other)| adoption_dies(kind, point, other));
}

/// Live homes are alone, each with a topic of its own until the adoption is done; those with hidden files are in one group.
fn adoption_dies(kind: &str, point: &str, other: &[&str]) {
    let (topic, second) = (Topic::create("adoptbeside", 1), Topic::create("adoptbesideours", 1));
    let (mut lost, mut ours) = (Home::new(&topic), Home::new(&topic));
    let is_sealed = kind == "sealed";
    for home in [&mut lost, &mut ours] {
        if is_sealed {
            commands::sealed_in_group(home);
        } else {
            home.set("store.checkpoint", "100ms");
        }
    }
    let both = vec![topic.name.clone(), second.name.clone()];
    ours.set("kafka.instance_id", "two");
    ours.set("kafka.topics", if is_sealed { both.clone() } else { vec![second.name.clone()] });
    let mut produced = commands::lose(&mut lost, &topic, kind);
    produced.extend(second.fill(Codec::None, Mix::Dirty, 1000, 100));
    if !is_sealed {
        // With a failure queue of its own.
        read_to_the_end(&ours);
    }
    let killed = spawn(ours.command().arg("adopt").arg(lost.path("")).env("FAULT_POINT", to_die_at(point)));
    wait_frozen(pid(&killed));
    let service = die_beside(&ours, killed, point, other);
    produced.extend(second.fill(Codec::None, Mix::Dirty, 1100, 100));
    ours.wait_for(State::Consuming);
    service.terminate();
    commands::adopt(&ours, &lost);
    ours.set("kafka.topics", both);
    produced.extend(topic.fill(Codec::None, Mix::Dirty, 600, 100));
    read_to_the_end(&ours);
    commands::assert_each_once(&format!("{kind}, {point}"), [&lost, &ours], &produced);
}
