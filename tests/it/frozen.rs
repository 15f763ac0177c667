//! A service that does not answer: stopped with SIGSTOP, it keeps its socket, and the kernel still takes connections.

use std::time::Duration;

use mtga::control::State;
use nix::sys::signal::Signal;

use crate::harness::{Codec, Home, Mix, Topic};

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
        let done = home.mtga(args).code(75);
        assert!(done.took < TIMEOUT + MARGIN, "{args:?} took {:?}", done.took);
        assert_eq!(done.stdout, stdout, "{args:?}");
        assert!(done.stderr.contains(MESSAGE), "{args:?} says so: {}", done.stderr);
    }

    home.signal(Signal::SIGCONT);
    home.wait_for(State::Consuming);
    home.assert_exactly(&produced);
    home.stop();
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
