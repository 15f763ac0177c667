//! A thread that panics, at each place where a test can make it: the process ends at once, says why, and the next start goes on
//! as after a kill.

use serde_json::json;

use crate::harness::{Codec, Home, Mix, SOON, Topic, holds, wait_until};

/// Where one process each panics; see `src/fault.rs`.
type Places<'a> = &'a [&'a str];

/// Places that every service comes to under load.
const ALWAYS: Places<'_> = &[
    "start.begun:1",
    "journal.named:1",
    "note.start:1",
    "assign.begun:1",
    "kafka.taken:20",
    "transform.block:10",
    "block.framed:10",
    "file.created:1",
    "checkpoint.begun:5",
    "checkpoint.noted:6",
    "store.apply:8",
    "checkpoint.saved:7",
    "retry.step:5",
];

/// Places of the publication of hidden files in a group.
const SEALED: Places<'_> = &[
    "seal.synced:1",
    "seal.prepared:1",
    "seal.commit:1",
    "seal.answered:1",
    "publish.begin:1",
    "publish.renamed:1",
    "publish.done:1",
    "publish.noted:1",
];

/// The threads that come to them.
const THREADS: [&str; 6] = ["start", "kafka", "transform-", "delivery", "checkpoint", "retry"];

/// Panics once at each place, under load, and starts again: every record is there once.
fn assert_ends_at(home: &Home, topic: &Topic, places: &[Places<'_>]) {
    let load = topic.load(Codec::Snappy, Mix::Dirty);
    for place in places.iter().copied().flatten() {
        let (point, _) = place.split_once(':').expect("a place and its passage");
        let service = home.foreground_with(|command| command.env("FAULT_POINT", format!("{place}:panic")));
        service.wait_aborted(place);
        let log = home.log();
        let said = format!("the fault point {point} thread=");
        let mut behind = log.lines().skip_while(|line| !line.contains(&said));
        assert!(behind.next().is_some_and(|line| line.contains(" ERROR panic: ")), "the log tells of {place}");
        let backtrace = behind.take_while(|line| line.starts_with("    "));
        assert!(backtrace.count() > 3, "and of the code that came to {place}");
    }
    let service = home.foreground();
    let produced = load.stop();
    home.wait_done(&produced);
    service.terminate();
    home.assert_exactly(&produced);
    let log = home.log();
    for thread in THREADS {
        assert!(log.contains(&format!("thread=\"{thread}")), "{thread} came to none of the places");
    }
}

fn home(topic: &Topic) -> Home {
    let mut home = Home::new(topic);
    home.set("store.checkpoint", "100ms").set("sink.rotate", json!({"size": "1MiB", "age": "1s", "idle": "300ms"}));
    home
}

#[test]
fn a_panic_of_any_thread_ends_the_service_and_loses_and_repeats_nothing() {
    let topic = Topic::create("panics", 2);
    assert_ends_at(&home(&topic), &topic, &[ALWAYS]);
}

#[test]
fn a_panic_of_any_thread_ends_the_service_and_loses_and_repeats_nothing_in_a_group_with_hidden_files() {
    let topic = Topic::create("panicssealed", 2);
    let mut home = home(&topic);
    home.in_group().set("sink.visibility", "sealed");
    assert_ends_at(&home, &topic, &[ALWAYS, SEALED]);
    home.mtga(["verify"]).code(0);
}

#[test]
fn a_panic_of_the_log_ends_the_service() {
    let topic = Topic::create("paniclog", 1);
    let home = home(&topic);
    let service = home.foreground_with(|command| command.env("FAULT_POINT", "log.line:3:panic"));
    service.wait_aborted("log.line");
    let printed = std::fs::read_to_string(home.path("logs/foreground.log")).expect("what it printed");
    assert!(printed.contains("the fault point log.line"), "{printed}");
    let produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, 500);
    let service = home.foreground();
    home.wait_done(&produced);
    service.terminate();
    home.assert_exactly(&produced);
}

#[test]
fn a_panic_ends_the_service_although_its_log_hangs() {
    let topic = Topic::create("panichangs", 1);
    let home = home(&topic);
    let produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, 500);
    let point = "log.line:2:3600000,kafka.taken:1:panic";
    home.foreground_with(|command| command.env("FAULT_POINT", point)).wait_aborted(point);
    let service = home.foreground();
    home.wait_done(&produced);
    service.terminate();
    home.assert_exactly(&produced);
}

#[test]
fn a_panic_of_a_command_fails_the_command_and_the_service_goes_on() {
    let topic = Topic::create("paniccommand", 1);
    let mut produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, 500);
    let home = home(&topic);
    let service = home.foreground_with(|command| command.env("FAULT_POINT", "queue_exported:1:panic"));
    home.wait_done(&produced);
    let export = home.path("export.jsonl");
    let clear = ["clear_failure_queue", "--export", export.to_str().expect("a path in UTF-8")];
    let failed = home.mtga(clear).code(1);
    assert!(failed.stderr.contains("see the service log"), "{}", failed.stderr);
    wait_until("the log has the panic", SOON, || {
        holds(home.log().contains("the fault point queue_exported"), home.try_status())
    });
    produced.extend(topic.fill(Codec::Snappy, Mix::Dirty, 500, 500));
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    service.terminate();
}
