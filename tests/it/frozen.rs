//! A service that is stopped with SIGSTOP: it does not answer, but it keeps its socket, and the kernel still takes connections.
//! When it goes on, nothing is lost or repeated.

use std::time::Duration;

use mtga::control::State;
use nix::sys::signal::Signal;

use crate::harness::{Codec, Home, Mix, SOON, Topic, holds, wait_until};
use crate::sealed;

const TIMEOUT: Duration = Duration::from_secs(1);
/// What a command may take on top: to start, to read its configuration, on a busy machine.
const MARGIN: Duration = Duration::from_secs(5);
const MESSAGE: &str = "操作超时, 请检查服务状态! (operation timed out, check the service)";

#[test]
fn every_command_to_a_frozen_service_ends_within_its_timeout() {
    let topic = Topic::create("frozen", 2);
    let produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, 300);
    let mut home = Home::new(&topic);
    home.set("rpc.timeout", "1s");
    home.start();
    home.wait_done(&produced);
    home.signal(Signal::SIGSTOP);

    let commands: [(&[&str], &str); 8] = [
        (&["kafka_lag"], "-1\n"),
        (&["failure_queue_count"], "-1\n"),
        (&["clear_failure_queue"], "-1\n"),
        (&["status"], ""),
        (&["offset_checker"], ""),
        (&["failure_queue_list"], ""),
        (&["retry_failure_queue"], ""),
        (&["stop", "--timeout", "1s"], ""),
    ];
    for (args, stdout) in commands {
        // A machine that stalls for some seconds makes one of three runs longer, and not the next one too.
        let mut runs = (0..3).map(|_| home.mtga(args).code(75));
        let in_time = runs.find(|done| done.took < TIMEOUT + MARGIN);
        let done = in_time.unwrap_or_else(|| panic!("{args:?} takes longer than {:?}", TIMEOUT + MARGIN));
        assert_eq!(done.stdout, stdout, "{args:?}");
        assert!(done.stderr.contains(MESSAGE), "{args:?} says so: {}", done.stderr);
    }

    home.signal(Signal::SIGCONT);
    // What goes on may take its time.
    home.set("rpc.timeout", "20s");
    home.wait_for(State::Consuming);
    home.assert_exactly(&produced);
    home.stop();
}

/// Steps of the thread that makes checkpoints, for files that are seen at once, and of the one that publishes, for hidden ones.
const FROZEN: [&[&str]; 2] = [
    &["checkpoint.begun", "checkpoint.synced", "checkpoint.noted", "checkpoint.durable", "checkpoint.saved"],
    &[
        "seal.synced",
        "seal.prepared",
        "file.made",
        "publish.renamed",
        "publish.manifest",
        "publish.done",
        "publish.noted",
    ],
];

#[test]
fn a_service_that_is_frozen_at_each_step_and_at_any_moment_under_load_loses_and_repeats_nothing() {
    let topic = Topic::create("frozenload", 4);
    let mut homes = [Home::new(&topic), Home::new(&topic)];
    sealed::hide(&mut homes[1]).set("sink.rotate.age", "1s");
    let frozen = |points: &[&str]| {
        let numbered = points.iter().zip(1..).map(|(point, time)| format!("{point}:{}:stop", 2 * time));
        numbered.collect::<Vec<_>>().join(",")
    };
    let load = topic.load_every(Duration::from_millis(100), Codec::Snappy, Mix::Dirty);
    let services: Vec<_> = homes
        .iter()
        .zip(FROZEN)
        .map(|(home, points)| home.foreground_with(|command| command.env("FAULT_POINT", frozen(points))))
        .collect();
    let wait_behind = || {
        let end = topic.end();
        wait_until("500 records wait", SOON, || holds(topic.end() > end + 500, topic.end()));
    };
    for (service, points) in services.iter().zip(FROZEN) {
        for _ in points {
            service.wait_frozen();
            wait_behind();
            service.signal(Signal::SIGCONT);
        }
    }
    for _ in 0..3 {
        for home in &homes {
            let written = home.status().counts.written;
            home.wait_written(written + 500);
        }
        for service in &services {
            service.signal(Signal::SIGSTOP);
        }
        wait_behind();
        for service in &services {
            service.signal(Signal::SIGCONT);
        }
    }
    let produced = load.stop();
    for (home, service) in homes.iter().zip(services) {
        sealed::assert_exactly_once(home, service, &produced);
    }
}

#[test]
fn commands_wait_for_a_frozen_service_that_comes_back_in_time() {
    let topic = Topic::create("thawed", 1);
    let home = Home::new(&topic);
    home.start();
    home.signal(Signal::SIGSTOP);
    let mut waiting = home.command().arg("kafka_lag").stdout(std::process::Stdio::piped()).spawn().expect("a command");
    // Whether it has asked already or is about to: the answer must be the same.
    crate::harness::tick();
    home.signal(Signal::SIGCONT);
    let status = waiting.wait().expect("a command ends");
    assert!(status.success(), "{status}");
    home.stop();
}
