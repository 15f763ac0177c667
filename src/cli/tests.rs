//! Commands from their arguments to their output and exit code, against a fake pipeline and real sockets.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use chrono::FixedOffset;

use super::*;
use crate::config::{self, Config, Level};
use crate::control::client::TIMED_OUT;
use crate::control::server::Server;
use crate::control::testing::{self, Fake};
use crate::control::{Failure, FailureKind, Service, State, Status};
use crate::lock::{HomeLock, Purpose};

/// A pipeline of which only the answers matter.
struct FakePipeline {
    timeout: Duration,
    mistakes: Vec<String>,
    failures: Vec<Failure>,
}

/// The store of a stopped service.
struct Stopped(Fake);

impl Service for Stopped {
    fn status(&self) -> Result<Status, Failure> {
        Ok(Status { state: State::Stopped, pid: None, ..testing::status() })
    }
    fn offsets(&self) -> Result<Vec<crate::control::PartitionOffsets>, Failure> {
        Err(Failure::new(FailureKind::Unavailable, "no broker answers"))
    }
    fn failure_count(&self) -> Result<u64, Failure> {
        self.0.failure_count()
    }
    fn failure_list(&self, query: &crate::control::ListQuery) -> Result<Vec<crate::control::FailureEntry>, Failure> {
        self.0.failure_list(query)
    }
    fn retry_failures(
        &self,
        reason: Option<crate::record::Reason>,
        progress: &dyn Fn(&str),
    ) -> Result<crate::control::Retried, Failure> {
        self.0.retry_failures(reason, progress)
    }
    fn clear_failures(&self, query: &crate::control::ClearQuery, progress: &dyn Fn(&str)) -> Result<u64, Failure> {
        self.0.clear_failures(query, progress)
    }
    fn reload(&self) -> Result<String, Failure> {
        self.0.reload()
    }
    fn stop(&self) -> Result<Option<String>, Failure> {
        self.0.stop()
    }
}

impl Backend for FakePipeline {
    fn load(&self, place: &Place) -> Result<Loaded, Vec<String>> {
        if !self.mistakes.is_empty() {
            return Err(self.mistakes.clone());
        }
        let mut config = config(place);
        config.rpc.timeout = self.timeout;
        Ok(Loaded { config, warnings: vec!["MTGA_LGO is no key".to_owned()], exposed: Vec::new() })
    }
    fn render(&self, config: &Config) -> String {
        format!("app_id: {}\n", config.app_id)
    }
    fn check(&self, _: &Config, scope: Scope) -> Vec<Failure> {
        if scope == Scope::Offline { Vec::new() } else { self.failures.clone() }
    }
    fn run(&self, _: Config, _: Process<'_>) -> Result<(), Failure> {
        unreachable!("no test forks")
    }
    fn local(&self, _: &Config) -> Result<Box<dyn Service>, Failure> {
        Ok(Box::new(Stopped(Fake::default())))
    }
    fn stopped(&self, config: &Config, _: HomeLock) -> Result<Box<dyn Service>, Failure> {
        self.local(config)
    }
    fn set_offset(
        &self,
        _: &Config,
        _: HomeLock,
        _: &Selection,
        to: OffsetTarget,
        _: &dyn Fn(&str),
    ) -> Result<Moved, Failure> {
        let before = testing::offsets();
        let mut after = before.clone();
        if let OffsetTarget::Offset(offset) = to {
            after[0].current = Some(offset);
        }
        Ok(Moved { before, after })
    }
    fn adopt(&self, _: &Place, _: &Config, _: HomeLock, dir: &Path, _: &dyn Fn(&str)) -> Result<Adoption, Failure> {
        Ok(Adoption { dir: dir.to_owned(), ..Adoption::default() })
    }
    fn transform(
        &self,
        _: &Config,
        records: &mut dyn BufRead,
        events: &mut dyn Write,
        _: &mut dyn Write,
    ) -> Result<(), Failure> {
        io::copy(records, events).map(drop).map_err(|e| Failure::new(FailureKind::Failed, e.to_string()))
    }
    fn verify(&self, options: &VerifyOptions, _: &dyn Fn(&str)) -> Result<Verification, Failure> {
        // One fault for each directory, so that the test sees what was asked.
        let fault = |dir: &PathBuf| Fault {
            kind: FaultKind::Missing,
            place: dir.display().to_string(),
            detail: format!("{:?} {:?}", options.plain, options.missing),
            range: None,
        };
        let dirs = if options.missing == Missing::Allowed { &[][..] } else { &options.dirs[..] };
        let faults: Vec<_> = dirs.iter().map(fault).collect();
        let summary = Summary { faults: faults.len() as u64, ..Summary::default() };
        Ok(Verification { faults, unknown: Vec::new(), summary })
    }
    fn demo(&self, options: &DemoOptions, _: Format, out: &mut dyn Write) -> Result<(), Failure> {
        writeln!(out, "{options:?}").map_err(|e| Failure::new(FailureKind::Failed, e.to_string()))
    }
}

fn config(place: &Place) -> Config {
    let home = &place.home;
    Config {
        home: home.clone(),
        kafka: config::Kafka {
            brokers: "127.0.0.1:9092".to_owned(),
            topics: vec!["mulog_clean_24".to_owned()],
            group_id: "mtga_24".to_owned(),
            assignment: config::Assignment::Group,
            start: config::Start::Earliest,
            out_of_range: config::OutOfRange::Earliest,
            instance_id: String::new(),
            payload: config::Payload::Auto,
            librdkafka: BTreeMap::new(),
        },
        store: config::Store {
            path: home.join("tmp/store"),
            history: Duration::from_hours(24),
            history_bytes: 2 << 30,
            checkpoint: Duration::from_secs(1),
        },
        failure_queue: config::FailureQueue {
            max_attempts: 5,
            backoff_from: Duration::from_secs(1),
            backoff_to: Duration::from_mins(5),
            max_bytes: 1 << 30,
            when_full: config::WhenFull::Pause,
        },
        rpc: config::Rpc {
            socket: home.join("tmp/mtga.sock"),
            permissions: 0o600,
            group: String::new(),
            timeout: Duration::from_secs(30),
        },
        memory: 1 << 27,
        app_id: 24,
        workers: 1,
        time_zone: config::TimeZone::Fixed(FixedOffset::east_opt(0).unwrap()),
        settings: home.join("settings"),
        validation: config::Validation::Standard,
        uuid: false,
        sink: config::Sink {
            mode: config::Mode::Batch,
            dir: home.join("data"),
            file: "ta.{seq}.log".to_owned(),
            batch: config::Batch { lines: 1, bytes: 1, linger: Duration::ZERO },
            rotate: config::Rotate { size: 1, age: Duration::ZERO, idle: Duration::ZERO },
            fsync: true,
            visibility: config::Visibility::Live,
            compression: config::Compression::None,
            keep_age: None,
            keep_bytes: None,
            max_open_files: 256,
            permissions: 0o640,
        },
        http: config::Http { listen: String::new(), hosts: Vec::new(), token: String::new() },
        log: config::Log {
            dir: home.join("logs"),
            level: Level::Info,
            rotation: config::Rotation::Never,
            max_size: 1 << 20,
            keep: 2,
            stack_level: Level::Error,
        },
        reporter: config::Reporter {
            url: String::new(),
            format: "json".to_owned(),
            level: Level::Error,
            min_interval: Duration::from_mins(1),
        },
    }
}

struct Home {
    dir: tempfile::TempDir,
    pipeline: FakePipeline,
}

struct Ended {
    exit: Exit,
    output: String,
    errors: String,
}

impl Home {
    fn new() -> Self {
        let timeout = Duration::from_secs(30);
        let pipeline = FakePipeline { timeout, mistakes: Vec::new(), failures: Vec::new() };
        Self { dir: tempfile::tempdir().unwrap(), pipeline }
    }

    fn invocation(&self, args: &[&str]) -> Invocation {
        Invocation {
            args: std::iter::once("mtga").chain(args.iter().copied()).map(OsString::from).collect(),
            env: BTreeMap::new(),
            binary: None,
            directory: self.dir.path().to_owned(),
        }
    }

    fn run(&self, args: &[&str]) -> Ended {
        let (mut output, mut errors) = (Vec::new(), Vec::new());
        let streams = Streams {
            input: &mut &b"a record\n"[..],
            output: &mut output,
            destination: Destination::Elsewhere,
            errors: &mut errors,
        };
        let exit = run(&self.invocation(args), streams, &self.pipeline);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ended { exit, output: text(output), errors: text(errors) }
    }

    fn lock(&self) -> HomeLock {
        fs::create_dir_all(self.dir.path().join("tmp")).unwrap();
        HomeLock::acquire(&self.dir.path().join("tmp/store"), Purpose::Service).unwrap()
    }

    fn serve(&self) -> (Server, Arc<Fake>) {
        let fake = Arc::new(Fake::default());
        let place = Place { home: self.dir.path().to_owned(), config: PathBuf::new(), env: BTreeMap::new() };
        (Server::start(&config(&place).rpc, Arc::clone(&fake) as Arc<dyn Service>).unwrap(), fake)
    }
}

#[track_caller]
fn check_golden(name: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/cli").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
    }
    assert_eq!(text, fs::read_to_string(&path).unwrap(), "{name} differs; UPDATE_GOLDEN=1 rewrites it");
}

#[test]
fn help_stays_as_it_is_and_fits_into_80_columns() {
    let home = Home::new();
    for (name, args) in [
        ("help.txt", &["--help"][..]),
        ("clear_failure_queue.txt", &["clear_failure_queue", "--help"]),
        ("set_offset.txt", &["set_offset", "--help"]),
        ("verify.txt", &["verify", "--help"]),
    ] {
        let ended = home.run(args);
        assert_eq!(ended.exit, Exit::Done);
        assert!(ended.output.lines().all(|line| line.chars().count() <= 80), "{}", ended.output);
        check_golden(name, &ended.output);
    }
    assert_eq!(home.run(&["--version"]).output, concat!("mtga ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn a_wrong_command_line_exits_with_64() {
    let home = Home::new();
    for args in [&["nope"][..], &[], &["set_offset", "a"], &["stop", "--timeout", "soon"], &["status", "--nope"]] {
        let ended = home.run(args);
        assert_eq!(ended.exit, Exit::Usage, "{args:?}");
        assert!(ended.output.is_empty() && !ended.errors.is_empty(), "{args:?}");
    }
}

#[test]
fn a_running_service_is_asked_over_its_socket() {
    let home = Home::new();
    let _lock = home.lock();
    let _server = home.serve();
    assert_eq!(home.run(&["kafka_lag"]).output, "261\n");
    assert_eq!(home.run(&["kafka-lag", "--json"]).output, "261\n");
    assert_eq!(home.run(&["failure_queue_count"]).output, "4\n");
    assert_eq!(home.run(&["clear_failure_queue", "--older-than", "7d"]).output, "4\n");
    assert_eq!(home.run(&["retry_failure_queue"]).output, "3 left the failure queue, 1 stay\n");
    assert_eq!(home.run(&["retry_failure_queue", "--json"]).output, "{\"left\":3,\"stayed\":1}\n");
    assert_eq!(home.run(&["reload"]).output, "settings reloaded\n");
    assert!(home.run(&["offset_checker"]).output.contains("| mulog_clean_24 |"));
    let json = home.run(&["--json", "offset_checker"]).output;
    assert!(json.starts_with("[{\"topic\":\"mulog_clean_24\",\"partition\":0,") && json.lines().count() == 1, "{json}");
    let status = home.run(&["status"]);
    assert_eq!(status.exit, Exit::Done);
    assert!(status.output.contains("consuming"));
    let list = home.run(&["failure_queue_list", "--limit", "1", "--reason", "bad_json"]);
    assert_eq!(list.output.lines().count(), 5);
}

#[test]
fn a_frozen_service_is_told_in_time_and_integers_are_minus_one() {
    let mut home = Home::new();
    home.pipeline.timeout = Duration::from_millis(200);
    let _lock = home.lock();
    let _frozen = UnixListener::bind(home.dir.path().join("tmp/mtga.sock")).unwrap();
    for command in ["kafka_lag", "failure_queue_count", "clear_failure_queue"] {
        let started = Instant::now();
        let ended = home.run(&[command]);
        assert_eq!((ended.exit, ended.output.as_str()), (Exit::TimedOut, "-1\n"), "{command}");
        assert!(ended.errors.contains(TIMED_OUT), "{}", ended.errors);
        assert!(started.elapsed() < Duration::from_secs(10));
    }
    for command in ["status", "offset_checker", "stop", "reload"] {
        let ended = home.run(&[command]);
        assert_eq!((ended.exit, ended.output.as_str()), (Exit::TimedOut, ""), "{command}");
        assert!(ended.errors.contains(TIMED_OUT), "{}", ended.errors);
    }
}

#[test]
fn a_stopped_service_answers_from_its_store() {
    let home = Home::new();
    let status = home.run(&["status"]);
    assert_eq!(status.exit, Exit::NotRunning);
    assert!(status.output.contains("| stopped "), "{}", status.output);
    assert_eq!(home.run(&["failure_queue_count"]).output, "4\n");
    let lag = home.run(&["kafka_lag"]);
    assert_eq!((lag.exit, lag.output.as_str()), (Exit::Unavailable, ""));
    assert!(lag.errors.ends_with("mtga: no broker answers\n"), "{}", lag.errors);
    assert_eq!(home.run(&["reload"]).exit, Exit::Unavailable);
    assert_eq!(home.run(&["stop"]).exit, Exit::Done);
}

#[test]
fn a_broken_config_is_told_whole_but_a_running_service_can_still_be_asked() {
    let mut home = Home::new();
    home.pipeline.mistakes = vec!["config/mtga.yml:3: first".to_owned(), "config/mtga.yml:9: second".to_owned()];
    for command in ["kafka_lag", "start", "restart", "check", "config"] {
        let ended = home.run(&[command]);
        assert_eq!((ended.exit, ended.output.as_str()), (Exit::Config, ""), "{command}");
        assert_eq!(ended.errors, "mtga: config/mtga.yml:3: first\nmtga: config/mtga.yml:9: second\n", "{command}");
    }
    let _lock = home.lock();
    let _server = home.serve();
    let ended = home.run(&["kafka_lag"]);
    assert_eq!((ended.exit, ended.output.as_str()), (Exit::Done, "261\n"));
    assert!(ended.errors.starts_with("mtga: warning: the config has mistakes"), "{}", ended.errors);
}

#[test]
fn a_second_service_is_refused_with_the_pid_of_the_first() {
    let home = Home::new();
    let _lock = home.lock();
    let refused = [
        (&["start"][..], Exit::CannotCreate),
        (&["start_not_daemon"], Exit::CannotCreate),
        (&["set_offset", "all", "latest"], Exit::Failed),
    ];
    for (args, exit) in refused {
        let ended = home.run(args);
        assert_eq!(ended.exit, exit, "{args:?}");
        assert!(ended.errors.contains(&format!("as pid {}", std::process::id())), "{}", ended.errors);
    }
}

#[test]
fn stop_waits_until_the_process_has_gone() {
    let home = Home::new();
    let lock = home.lock();
    let (_server, fake) = home.serve();
    fake.stop_polls.store(2, SeqCst);
    std::thread::scope(|scope| {
        let stopping = scope.spawn(|| home.run(&["stop"]));
        let deadline = Instant::now() + Duration::from_secs(30);
        while fake.stop_polls.load(SeqCst) > 0 && Instant::now() < deadline {
            std::thread::yield_now();
        }
        drop(lock);
        let ended = stopping.join().unwrap();
        assert_eq!(ended.exit, Exit::Done, "{}", ended.errors);
        assert!(ended.output.ends_with("has stopped\n"), "{}", ended.output);
    });
}

#[test]
fn stop_tells_what_is_in_flight_when_it_waits_no_longer() {
    let home = Home::new();
    let _lock = home.lock();
    let (_server, fake) = home.serve();
    fake.stop_polls.store(u64::MAX, SeqCst);
    let ended = home.run(&["stop", "--timeout", "200ms"]);
    assert_eq!(ended.exit, Exit::TimedOut);
    assert!(ended.errors.contains("records in flight; it goes on draining"), "{}", ended.errors);
    fake.stop_polls.store(0, SeqCst);
    let ended = home.run(&["stop", "--timeout", "200ms"]);
    assert_eq!(ended.exit, Exit::TimedOut);
    assert!(ended.errors.contains("still runs after 200ms"), "{}", ended.errors);
}

#[test]
fn an_export_goes_to_a_new_file_named_from_the_operator_s_directory() {
    let home = Home::new();
    fs::write(home.dir.path().join("old"), "").unwrap();
    let refused = home.run(&["clear_failure_queue", "--export", "old"]);
    assert_eq!(refused.exit, Exit::CannotCreate);
    assert!(refused.errors.contains("name a new file"), "{}", refused.errors);
    let asked = home.run(&["clear_failure_queue", "--export", "new"]);
    let absolute = home.dir.path().join("new");
    assert!(asked.errors.contains(&absolute.display().to_string()), "{}", asked.errors);
}

#[test]
fn set_offset_shows_both_tables() {
    let ended = Home::new().run(&["set_offset", "mulog_clean_24:0", "6197511000"]);
    assert_eq!(ended.exit, Exit::Done);
    assert!(ended.output.starts_with("before\n.---") && ended.output.contains("| 6197511000 |"), "{}", ended.output);
}

#[test]
fn verify_looks_at_the_directories_that_are_named_or_at_the_configured_one_and_exits_with_1_for_faults() {
    let home = Home::new();
    let named = home.run(&["verify", "a", "/b", "--json"]);
    assert_eq!(named.exit, Exit::Failed);
    let place = home.dir.path().join("a");
    let expected = format!(
        r#"{{"faults":[{{"kind":"missing","place":"{}","detail":"Fault Fault"}},{{"kind":"missing","place":"/b","#,
        place.display()
    );
    assert!(named.output.starts_with(&expected), "{}", named.output);
    let configured = home.run(&["verify", "--json"]);
    let place = home.dir.path().join("data");
    let expected = format!(r#""place":"{}","detail":"Live Fault""#, place.display());
    assert!(configured.output.contains(&expected), "{}", configured.output);
    let fine = home.run(&["verify", "--allow-missing"]);
    assert_eq!((fine.exit, fine.output.lines().last()), (Exit::Done, Some("no faults")));
}

#[test]
fn check_shows_every_mistake_and_a_config_mistake_decides() {
    let mut home = Home::new();
    assert_eq!(home.run(&["check"]).output, "ok\n");
    home.pipeline.failures = vec![
        Failure::new(FailureKind::Unavailable, "no broker answers"),
        Failure::new(FailureKind::Config, "settings/x.json:1:2: bad"),
    ];
    let ended = home.run(&["check", "--json"]);
    assert_eq!(ended.exit, Exit::Config);
    assert_eq!(ended.output, "{\"ok\":false,\"mistakes\":[\"no broker answers\",\"settings/x.json:1:2: bad\"]}\n");
    assert_eq!(home.run(&["check", "--offline"]).exit, Exit::Done);
}

#[test]
fn the_home_is_found_by_flag_environment_binary_and_directory() {
    let home = Home::new();
    let root = home.dir.path();
    fs::create_dir_all(root.join("installed/config")).unwrap();
    fs::create_dir_all(root.join("env")).unwrap();
    let found = |invocation: &Invocation| {
        let line = Line::try_parse_from(&invocation.args).unwrap();
        context::find_place(invocation, &line).map(|place| place.home)
    };
    let mut invocation = home.invocation(&["status"]);
    assert_eq!(found(&invocation).unwrap(), root);
    invocation.binary = Some(root.join("bin/mtga"));
    assert_eq!(found(&invocation).unwrap(), root);
    invocation.binary = Some(root.join("installed/bin/mtga"));
    assert_eq!(found(&invocation).unwrap(), root.join("installed"));
    invocation.env.insert("MTGA_HOME".to_owned(), "env".to_owned());
    assert_eq!(found(&invocation).unwrap(), root.join("env"));
    invocation.args.extend(["--home".into(), "installed".into()]);
    assert_eq!(found(&invocation).unwrap(), root.join("installed"));
    invocation.args = ["mtga", "--home", "nowhere", "status"].map(OsString::from).to_vec();
    assert_eq!(found(&invocation).unwrap_err().kind, FailureKind::Config);
}

#[test]
fn a_reader_that_goes_away_ends_a_command_quietly() {
    struct Gone;
    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let home = Home::new();
    for command in ["config", "transform", "failure_queue_list"] {
        let mut errors = Vec::new();
        let streams = Streams {
            input: &mut &b"a record\n"[..],
            output: &mut Gone,
            destination: Destination::Elsewhere,
            errors: &mut errors,
        };
        let exit = run(&home.invocation(&[command]), streams, &home.pipeline);
        assert_eq!(exit, Exit::Done, "{command}");
        assert!(!String::from_utf8(errors).unwrap().contains("cannot"), "{command}");
    }
}

#[test]
fn what_a_terminal_would_obey_is_escaped() {
    assert_eq!(super::printable("a\u{1b}]0;x\u{7}b\r\u{9b}2J\n\t日本"), "a\\u{1b}]0;x\\u{7}b\\r\\u{9b}2J\n\t日本");
    assert!(matches!(super::printable("plain\n"), std::borrow::Cow::Borrowed(_)));
    let mut errors = Vec::new();
    super::complain(&mut errors, "one\u{1b}[2J\ntwo");
    assert_eq!(errors, b"mtga: one\\u{1b}[2J\nmtga: two\n");
}
