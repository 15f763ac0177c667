//! What a host does to a service: limits, signals, terminals, and the hands of operators.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::process::Command;

use mtga::control::State;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::process::{Finished, Service};
use crate::harness::{Codec, Home, Mix, Record, SOON, Topic, holds, wait_until};

/// Sets limits of a running process, as `prlimit` takes them.
fn limit(pid: Pid, limits: &str) {
    let mut command = Command::new("prlimit");
    Finished::run(command.arg(format!("--pid={pid}")).arg(limits), SOON).success();
}

/// `bin/mtga` with its home and these limits, ready to run.
fn limited(home: &Home, limits: &str) -> Command {
    let mut command = Command::new("prlimit");
    command.env_clear().env("PATH", "/usr/bin:/bin").arg(limits).arg("--");
    command.arg(home.path("bin/mtga")).arg("--home").arg(home.path(""));
    command
}

fn in_foreground(home: &Home, mut command: Command) -> Service {
    let log = fs::File::options().create(true).append(true).open(home.path("logs/foreground.log")).expect("a file");
    Service::spawn(command.arg("start_not_daemon"), log)
}

/// Records of so many log names, one each.
fn of_many_names(names: u64) -> Vec<Record> {
    let record = |n| {
        let text = format!(
            r#"{{"headers":{{"app_id":24,"log_name":"log_{n}"}},"logs":{{"role_id":1,"mtime":1608184243,"sn":"0-{n}"}}}}"#
        );
        Record { partition: 0, key: None, value: Some(text.into_bytes()), timestamp: 1_700_000_000_000 }
    };
    (0..names).map(record).collect()
}

#[test]
fn without_descriptors_event_files_are_closed_and_the_socket_still_answers() {
    const NAMES: u64 = 150;
    let topic = Topic::create("descriptors", 1);
    let mut home = Home::new(&topic);
    home.set("sink.file", "{log_name}.{seq}.log").set("sink.max_open_files", 200);
    let refused = Finished::run(limited(&home, "--nofile=300:300").args(["check", "--offline"]), SOON).code(78);
    assert!(refused.stderr.contains("sink.max_open_files: 200 does not fit"), "{}", refused.stderr);

    // A soft limit is raised to the hard one.
    let service = in_foreground(&home, limited(&home, "--nofile=64:4096"));
    home.wait_for(State::Consuming);
    let raised = fs::read_to_string(format!("/proc/{}/limits", service.pid())).expect("the limits of a process");
    let raised = raised.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
    assert_eq!(raised.split_whitespace().nth(3), Some("4096"), "{raised}");

    // Another process has taken what the configuration counts on.
    let open = fs::read_dir(format!("/proc/{}/fd", service.pid())).expect("the descriptors of a process").count();
    limit(service.pid(), &format!("--nofile={}:4096", open + 20));
    let produced = of_many_names(NAMES);
    topic.produce(Codec::Snappy, &produced);
    home.wait_done(&produced);
    let files = home.events();
    assert_eq!(files.len() as u64, NAMES);
    assert!(files.iter().all(|file| file.lines.len() == 1), "one line each");
    home.wait_logged("no descriptor is left: closing event files");

    // Not one descriptor is left but those that were kept back.
    let open = fs::read_dir(format!("/proc/{}/fd", service.pid())).expect("the descriptors of a process").count();
    let idle: Vec<_> = (0..30).map(|_| home.connect()).collect();
    limit(service.pid(), &format!("--nofile={open}:4096"));
    let further: Vec<_> = (0..10).map(|_| home.connect()).collect();
    home.mtga(["status"]).success();
    drop((idle, further));
    service.terminate();
}

#[test]
fn a_limit_on_the_size_of_files_pauses_it_like_a_full_disk() {
    let topic = Topic::create("filesize", 1);
    let produced = topic.fill(Codec::Snappy, Mix::Clean, 0, 200);
    let home = Home::new(&topic);
    let service = in_foreground(&home, limited(&home, "--fsize=32768:unlimited"));
    wait_until("the service pauses", SOON, || {
        let status = home.try_status()?;
        let named = status.reason.as_ref().is_some_and(|reason| reason.contains("File too large"));
        holds(status.state == State::Paused && named, status)
    });
    limit(service.pid(), "--fsize=unlimited:unlimited");
    home.wait_done(&produced);
    // The same while it runs: the event file reaches the limit.
    limit(service.pid(), "--fsize=65536:unlimited");
    let more = topic.fill(Codec::Snappy, Mix::Clean, 200, 200);
    wait_until("the service pauses again", SOON, || {
        let status = home.try_status()?;
        let named = status.reason.as_ref().is_some_and(|reason| reason.contains("File too large"));
        holds(status.state == State::Paused && named, status)
    });
    limit(service.pid(), "--fsize=unlimited:unlimited");
    let all: Vec<_> = produced.into_iter().chain(more).collect();
    home.wait_done(&all);
    home.assert_exactly(&all);
    service.terminate();
}

#[test]
fn no_signal_ends_it_without_a_word_not_even_before_there_is_a_handler() {
    let topic = Topic::create("signals", 1);
    let home = Home::new(&topic);
    let service = home.foreground_with(|command| command.env("FAULT_POINT", "run.locked:1:stop"));
    wait_until("it is held up before it has handlers", SOON, || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", service.pid())).map_err(|error| error.to_string())?;
        holds(stat.contains(") T "), stat)
    });
    let early = [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGALRM, Signal::SIGIO];
    for signal in early {
        kill(service.pid(), signal).expect("the service runs");
    }
    kill(service.pid(), Signal::SIGCONT).expect("the service runs");
    home.wait_for(State::Consuming);
    for signal in [Signal::SIGUSR2, Signal::SIGVTALRM, Signal::SIGPROF, Signal::SIGSTKFLT] {
        kill(service.pid(), signal).expect("the service runs");
    }
    for name in ["SIGUSR1", "SIGALRM", "SIGIO", "SIGUSR2", "SIGVTALRM", "SIGPROF", "SIGSTKFLT"] {
        wait_until(&format!("{name} is logged"), SOON, || {
            holds(home.log().contains(&format!("ignored a signal that asks for nothing signal=\"{name}\"")), "not yet")
        });
    }
    kill(service.pid(), Signal::SIGPWR).expect("the service runs");
    assert_eq!(service.ended(), Some(0), "the power fails: it drains");
    assert!(home.log().contains("SIGPWR"), "and says why");
}

#[test]
fn text_of_others_is_shown_escaped_and_a_log_that_was_moved_away_is_begun_again() {
    let topic = Topic::create("hostile", 1);
    let home = Home::new(&topic);
    home.start();
    let value = Some("{\u{202e}\u{2066}\u{1b}[2J\u{7f} never closed".as_bytes().to_vec());
    let plain = Mix::Clean.record(0, 1).value.expect("a value");
    let marked = Some([b"\xef\xbb\xbf", &plain[..]].concat());
    let record = |value| Record { partition: 0, key: None, value, timestamp: 1_700_000_000_000 };
    let produced = [record(value), record(marked)];
    topic.produce(Codec::None, &produced);
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    for args in [vec!["failure_queue_list"], vec!["--json", "failure_queue_list"]] {
        let text = home.mtga(&args).success();
        assert!(text.contains(r"u{202e}") && text.contains(r"u{1b}"), "{text}");
        assert!(!text.contains(['\u{202e}', '\u{2066}', '\u{1b}', '\u{7f}']), "{text:?}");
    }
    let (log, moved) = (home.path("logs/mtga.log"), home.path("logs/moved"));
    fs::rename(&log, &moved).expect("the log is there");
    home.signal(Signal::SIGHUP);
    wait_until("the log is begun again", SOON, || {
        let text = fs::read_to_string(&log).map_err(|error| error.to_string())?;
        holds(text.contains("reloaded"), text)
    });
    home.stop();

    let mut command = home.command();
    command.arg("config").env("MTGA_LOG__LEVEL", std::ffi::OsStr::from_bytes(&[0xb9, 0xdc]));
    let done = Finished::run(&mut command, SOON).code(78);
    assert!(done.stderr.contains("MTGA_LOG__LEVEL: is not UTF-8"), "{}", done.stderr);
    let mut command = home.command();
    let done = Finished::run(command.args(["config"]).env("MTGA_SINK__MODE", "stream\r"), SOON).code(78);
    assert!(done.stderr.contains(r"carriage return (`\r`)") && !done.stderr.contains('\r'), "{:?}", done.stderr);
    let mut command = home.command();
    let name = std::ffi::OsStr::from_bytes(b"/tmp/\xb9\xdc");
    let done = Finished::run(command.args(["clear_failure_queue", "--export"]).arg(name), SOON).code(64);
    assert!(done.stderr.contains("is not UTF-8"), "{}", done.stderr);
}

#[test]
fn a_reload_begins_a_log_that_was_moved_away_again_although_it_logs_nothing() {
    let topic = Topic::create("quiet", 1);
    let mut home = Home::new(&topic);
    home.set("log.level", "error");
    home.start();
    home.wait_for(State::Consuming);
    let (log, moved) = (home.path("logs/mtga.log"), home.path("logs/moved"));
    for how in ["signal", "command", "command that is refused"] {
        fs::rename(&log, &moved).expect("the log is there");
        match how {
            "signal" => home.signal(Signal::SIGHUP),
            "command" => drop(home.mtga(["reload"]).success()),
            _ => {
                fs::write(home.path("settings/mthinkingdata:filter.24.json"), "[").expect("a file");
                home.mtga(["reload"]).code(78);
            }
        }
        wait_until(&format!("the log is begun again by a {how}"), SOON, || {
            fs::metadata(&log).map(drop).map_err(|error| error.to_string())
        });
        assert_eq!(fs::metadata(&log).expect("a file").len(), 0, "nothing was logged: {how}");
    }
    home.stop();
}

#[test]
fn a_stop_waits_for_the_last_lines_of_a_log_that_is_slow() {
    let topic = Topic::create("slowlog", 1);
    let home = Home::new(&topic);
    let service = home.foreground_with(|command| command.env("FAULT_POINT", "log.line:*:300"));
    home.wait_for(State::Consuming);
    service.terminate();
    let log = home.log();
    assert!(log.lines().last().is_some_and(|line| line.ends_with("stopped")), "{log}");
}

#[test]
fn transform_escapes_for_a_terminal_and_changes_no_byte_elsewhere() {
    let home = Home::with_brokers(&Topic::unmade("none", 1), "127.0.0.1:1");
    let record = "{\"headers\":{\"app_id\":24,\"log_name\":\"log_x\"},\"logs\":{\"role_id\":1,\"mtime\":1608184243,\
                  \"sn\":\"0-1\",\"a\u{e0041}\":\"\u{202e}x\u{7f}\u{9b}2J\u{feff} \u{6c49}\u{e9}\u{1f600}\"}}\n";
    fs::write(home.path("records"), record).expect("a file");
    let quoted = |path: &str| format!("'{}'", home.path(path).display());
    let line = format!("{} --home {} transform <{}", quoted("bin/mtga"), quoted(""), quoted("records"));
    let elsewhere = Finished::run(Command::new("sh").args(["-c", &line]), SOON).success();
    assert!(elsewhere.contains("\u{202e}x\u{7f}\u{9b}2J\u{feff} \u{6c49}\u{e9}\u{1f600}"), "{elsewhere:?}");
    // A terminal of its own, whose output is copied.
    let mut terminal = Command::new("script");
    let shown = Finished::run(terminal.args(["--quiet", "--return", "--command", &line, "/dev/null"]), SOON).success();
    let escaped = "\"\\u202ex\\u007f\\u009b2J\\ufeff \u{6c49}\u{e9}\u{1f600}\"";
    assert!(shown.contains(escaped) && shown.contains("a\\udb40\\udc41"), "{shown:?}");
    let parsed = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
    assert_eq!(parsed(&shown), parsed(&elsewhere), "it is the same line");
}

#[test]
fn status_says_where_the_rules_of_the_time_zone_are_from() {
    let topic = Topic::create("tzdata", 1);
    let mut home = Home::new(&topic);
    home.with_tzdata("2099a");
    let service = home.foreground();
    home.wait_for(State::Consuming);
    let from_host = |text: &str| {
        let zone = &serde_json::from_str::<serde_json::Value>(text).expect("JSON")["time_zone"];
        let source = zone["source"].as_str().expect("a source");
        assert_eq!((zone["name"].as_str(), zone["tzdata"].as_str()), (Some("Fixture/Town"), Some("2099a")));
        assert!(source.ends_with("tests/fixtures/tzdata/2099a"), "{source}");
    };
    from_host(&home.mtga(["--json", "status"]).success());
    // A restart takes the host's new rules, and nothing else does.
    home.with_tzdata("2099b");
    from_host(&home.mtga(["--json", "status"]).success());
    service.terminate();
    let stopped = home.mtga(["status"]).code(3).stdout;
    assert!(stopped.contains("Fixture/Town, tzdata 2099b "), "{stopped}");
    // What the host does not have has the rules of the table.
    home.set("time_zone", "Asia/Tokyo");
    let stopped = home.mtga(["status"]).code(3).stdout;
    assert!(stopped.contains("Asia/Tokyo, tzdata 20") && stopped.contains("(built-in)"), "{stopped}");
    home.set("time_zone", "right/Asia/Tokyo");
    assert!(home.mtga(["check", "--offline"]).code(78).stderr.contains("`right/Asia/Tokyo` is no time zone"));
}
