//! A home of one test: a deploy layout in a temporary directory, configured for the test's topic.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use mtga::control::client::Remote;
use mtga::control::{FailureEntry, FailureKind, PartitionOffsets, Service as _, State, Status};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::disk::Layer;
use super::events::{self, EventFile};
use super::oracle;
use super::process::{Finished, Service};
use super::{Record, SOON, Topic, holds, slow, wait_until};

/// The program under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_mtga");

/// How long a service may take for an answer on its socket, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A deploy layout with its own state. When dropped, its daemon is killed and the directory goes; it stays, and its path
/// is told, when the test has failed.
#[derive(Debug)]
pub(crate) struct Home {
    dir: Option<TempDir>,
    root: PathBuf,
    local: Value,
    env: Vec<(&'static str, PathBuf)>,
    /// What lies below its services, on slow disks.
    disk: Option<Layer>,
}

impl Home {
    /// A home that reads the topic from the start, without the group protocol, into `data/events.{seq}.log`.
    pub(crate) fn new(topic: &Topic) -> Self {
        Self::with_brokers(topic, &topic.brokers)
    }

    /// The same with other brokers.
    pub(crate) fn with_brokers(topic: &Topic, brokers: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("mtga-").tempdir().expect("a directory");
        let root = dir.path().join("home");
        copy_layout(&root);
        fs::write(root.join("settings/mthinkingdata:filter.24.json"), "[\"tbllog_*\"]\n").expect("a file");
        fs::write(root.join("settings/mthinkingdata:metadata.24.json"), "[]\n").expect("a file");
        let local = json!({
            "kafka": {"brokers": brokers, "topics": [topic.name], "group_id": format!("g_{}", topic.name), "assignment": "all"},
            "sink": {"file": "events.{seq}.log"},
        });
        let disk = slow::sync().map(|_| Layer::new(&root, &root.join("logs")));
        let home = Self { dir: Some(dir), root, local, env: Vec::new(), disk };
        home.save();
        home
    }

    /// Sets a key of the configuration by its path, such as `sink.rotate.size`; seen at the next start.
    pub(crate) fn set(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        let mut place = &mut self.local;
        for name in key.split('.') {
            place = &mut place[name];
        }
        *place = value.into();
        self.save();
        self
    }

    /// A copy of everything in it, beside it. Nothing runs on either.
    pub(crate) fn copied(&self) -> Self {
        let dir = tempfile::Builder::new().prefix("mtga-").tempdir().expect("a directory");
        let root = dir.path().join("home");
        let copied = Command::new("cp").arg("--archive").arg(&self.root).arg(&root).status();
        assert!(copied.is_ok_and(|status| status.success()), "the home is copied");
        let disk = slow::sync().map(|_| Layer::new(&root, &root.join("logs")));
        Self { dir: Some(dir), root, local: self.local.clone(), env: self.env.clone(), disk }
    }

    /// The home on another disk: a copy of everything, and the original goes.
    pub(crate) fn moved(self) -> Self {
        self.copied()
    }

    /// Takes part in the group protocol, with static membership and a short session.
    pub(crate) fn in_group(&mut self) -> &mut Self {
        self.set("kafka.assignment", "group").set("kafka.instance_id", "one");
        self.set("kafka.librdkafka", json!({"session.timeout.ms": "6000"}))
    }

    /// JSON is YAML.
    fn save(&self) {
        fs::write(self.root.join("config/mtga.local.yml"), format!("{:#}\n", self.local)).expect("a file");
    }

    /// A path below the home.
    pub(crate) fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    /// `bin/mtga` with its home, ready to run.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(self.path("bin/mtga"));
        command.env_clear().env("PATH", "/usr/bin:/bin").arg("--home").arg(&self.root);
        // Answers of brokers that may pass are believed after a minute.
        command.env("FAULT_DOUBT_MS", "1500").envs(self.env.iter().cloned());
        // How `scripts/sanitize` has misuse of memory told.
        command.envs(std::env::var_os("MTGA_TEST_SANITIZER").map(|options| ("ASAN_OPTIONS", options)));
        command
    }

    /// A zone of the fixtures is the home's, with the rules of this version of the host's tzdata.
    pub(crate) fn with_tzdata(&mut self, version: &str) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tzdata").join(version);
        self.env = vec![("TZDIR", dir)];
        self.set("time_zone", "Fixture/Town");
    }

    /// The same for a service in the foreground, on its disk. A daemon closes what it inherits, and the layer's log with it.
    fn service(&self) -> Command {
        let mut command = self.command();
        if let Some(disk) = &self.disk {
            disk.command(&mut command);
        }
        command
    }

    /// Runs a command to its end.
    pub(crate) fn mtga(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Finished {
        Finished::run(self.command().args(args), SOON)
    }

    /// Starts the daemon, on a disk as it is.
    pub(crate) fn start(&self) {
        self.mtga(["start"]).success();
    }

    /// Stops the daemon.
    pub(crate) fn stop(&self) {
        self.mtga(["stop"]).success();
    }

    /// Starts the service in the foreground. What it prints is added to `logs/foreground.log`.
    pub(crate) fn foreground(&self) -> Service {
        self.foreground_with(|command| command)
    }

    /// The same with something changed about the command, such as a fault point or a layer below it.
    pub(crate) fn foreground_with(&self, change: impl FnOnce(&mut Command) -> &mut Command) -> Service {
        let log = File::options().create(true).append(true).open(self.path("logs/foreground.log")).expect("a file");
        Service::spawn(change(self.service().arg("start_not_daemon")), log)
    }

    /// Runs the service in the foreground until it is killed at this fault point; see `src/fault.rs`.
    pub(crate) fn killed_at(&self, point: &str) {
        let mut command = self.service();
        let log = File::options().create(true).append(true).open(self.path("logs/foreground.log")).expect("a file");
        let service = Service::spawn(command.arg("start_not_daemon").env("FAULT_POINT", point), log);
        service.wait_killed(point);
    }

    /// The daemon's process id, by its pid file.
    pub(crate) fn pid(&self) -> Pid {
        self.running().expect("the pid file names a running daemon of this home")
    }

    fn running(&self) -> Option<Pid> {
        let pid: i32 = fs::read_to_string(self.path("tmp/mtga.pid")).ok()?.trim().parse().ok()?;
        let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        program.starts_with(&self.root).then_some(Pid::from_raw(pid))
    }

    /// Sends the daemon a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("the daemon runs");
    }

    /// Whether its files are hidden until they are complete.
    pub(crate) fn hides(&self) -> bool {
        self.local["sink"]["visibility"] == "sealed"
    }

    /// Where its store is.
    pub(crate) fn store(&self) -> PathBuf {
        self.path(self.local["store"]["path"].as_str().unwrap_or("tmp/store"))
    }

    /// Kills the daemon and waits until it is gone.
    pub(crate) fn kill9(&self) {
        self.signal(Signal::SIGKILL);
        wait_until("the killed daemon is gone", SOON, || holds(self.running().is_none(), "it runs"));
        // Its last thread may still be on its way out, and holds the lock until then.
        wait_until("the killed daemon has let go", SOON, || {
            let lock = File::open(self.store().join("lock")).map_err(|error| error.to_string())?;
            lock.try_lock().map_err(|error| error.to_string())
        });
    }

    /// A connection to the control socket.
    pub(crate) fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path("tmp/mtga.sock")).expect("the control socket takes connections");
        stream.set_read_timeout(Some(SOON)).expect("a socket");
        stream.set_write_timeout(Some(SOON)).expect("a socket");
        stream
    }

    /// `status`, of a service that runs or of a home whose service is stopped.
    pub(crate) fn status(&self) -> Status {
        match self.remote().status() {
            Err(failure) if failure.kind == FailureKind::Unavailable => {}
            answer => return answer.expect("the service answers"),
        }
        let done = self.mtga(["--json", "status"]);
        serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("no status, {error}: {done:?}"))
    }

    /// `status` from the service itself, or what was said instead.
    ///
    /// Tests ask for it many times a second while they wait, so it is asked on the socket: a process each time would take
    /// more of the machine than everything that is tested. For a service that has just been started the command would be
    /// wrong besides: it could be the first to have the home, and repair it without the disk that lies below the service.
    pub(crate) fn try_status(&self) -> Result<Status, String> {
        self.remote().status().map_err(|failure| failure.to_string())
    }

    fn remote(&self) -> Remote {
        Remote::new(self.path("tmp/mtga.sock"), PATIENCE)
    }

    /// `offset_checker`.
    pub(crate) fn offsets(&self) -> Vec<PartitionOffsets> {
        let text = self.mtga(["--json", "offset_checker"]).success();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("no offsets, {error}: {text}"))
    }

    /// `failure_queue_list`.
    pub(crate) fn failures(&self) -> Vec<FailureEntry> {
        let text = self.mtga(["--json", "failure_queue_list", "--limit", "1000000"]).success();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("no failure queue, {error}: {text}"))
    }

    /// A command that prints one integer.
    pub(crate) fn integer(&self, command: &str) -> i64 {
        let text = self.mtga([command]).success();
        text.parse().unwrap_or_else(|error| panic!("{command} printed no integer, {error}: {text}"))
    }

    /// Waits until the service is in this state.
    pub(crate) fn wait_for(&self, state: State) {
        wait_until(&format!("state {state:?}"), SOON, || {
            let status = self.try_status()?;
            holds(status.state == state, status)
        });
    }

    /// Makes what its services write another user's, who may run them then.
    pub(crate) fn give_to(&self, user: u32) {
        let above = self.root.parent().expect("the home lies in a directory");
        fs::set_permissions(above, Permissions::from_mode(0o755)).expect("ours");
        // The binary is a link to one that is everybody's.
        for part in ["tmp", "logs", "data"] {
            fs::create_dir_all(self.path(part)).expect("a directory");
            give_away(&self.path(part), user);
        }
    }

    /// Waits until so many records were written, over the store's life.
    pub(crate) fn wait_written(&self, records: u64) {
        wait_until(&format!("{records} written records"), SOON, || {
            let status = self.try_status()?;
            holds(status.counts.written >= records, status.counts)
        });
    }

    /// Waits until all that was produced is done: no lag, nothing in flight.
    pub(crate) fn wait_done(&self, produced: &[Record]) {
        wait_until(&format!("{} records done", produced.len()), 2 * SOON, || {
            let status = self.try_status()?;
            // Until it consumes, what is hidden is not decided about, and may have to be read again.
            let decided = !matches!(status.state, State::Starting | State::Waiting);
            let done = decided && status.lag == Some(0) && status.counts.in_flight == 0;
            holds(done && status.counts.consumed >= produced.len() as u64, status)?;
            // The lag in `status` may be older than its counts: 0 because a log that was cut off ended before our place.
            let lag = self.lag()?;
            holds(lag == 0, lag)
        });
    }

    /// `kafka_lag`, or what was said instead. It is not known in the middle of a rebalance.
    pub(crate) fn lag(&self) -> Result<i64, String> {
        let done = self.mtga(["kafka_lag"]);
        done.stdout.trim().parse().map_err(|error| format!("no lag, {error}: {done:?}"))
    }

    /// The event files.
    pub(crate) fn events(&self) -> Vec<EventFile> {
        events::read(&self.path("data"))
    }

    /// Demands that files and counts are exactly what must become of these records: each line as the oracle has it, in
    /// partition order, nothing missing, nothing twice.
    pub(crate) fn assert_exactly(&self, produced: &[Record]) {
        let expected = oracle::expect(produced);
        events::assert_exactly(&expected.lines, &self.events());
        let counts = self.status().counts;
        assert_eq!(counts, expected.counts);
        let sum = counts.written + counts.filtered.iter().sum::<u64>() + counts.rejected.iter().sum::<u64>();
        assert_eq!(counts.consumed, sum);
        let rejected: u64 = counts.rejected.iter().sum();
        assert_eq!(self.integer("failure_queue_count"), rejected as i64);
    }

    /// Waits until the service's log has this. A thread of its own writes it, some time after what it tells of.
    pub(crate) fn wait_logged(&self, text: &str) {
        wait_until(&format!("the log says {text:?}"), SOON, || holds(self.log().contains(text), self.try_status()));
    }

    /// Everything in the service's log files.
    pub(crate) fn log(&self) -> String {
        let mut all = String::new();
        for entry in fs::read_dir(self.path("logs")).into_iter().flatten().flatten() {
            all += &String::from_utf8_lossy(&fs::read(entry.path()).unwrap_or_default());
        }
        all
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Some(pid) = self.running() {
            // It may have ended by itself since.
            let _gone = kill(pid, Signal::SIGKILL);
        }
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<_> = log.lines().rev().take(30).collect();
            let tail: Vec<_> = tail.into_iter().rev().collect();
            eprintln!("the home stays in {}; the end of its log:\n{}", self.root.display(), tail.join("\n"));
            self.dir.take().map(TempDir::keep);
        }
    }
}

/// The deploy layout around the binary under test, assembled once by the script that assembles the shipped one.
pub(crate) fn layout() -> &'static Path {
    static LAYOUT: OnceLock<PathBuf> = OnceLock::new();
    LAYOUT.get_or_init(|| {
        let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join("layout");
        let lock = layout_lock();
        lock.lock().expect("a lock");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/build");
        Finished::run(Command::new(script).args(["--binary", BINARY, "--to"]).arg(&to), 2 * SOON).success();
        to
    })
}

/// Held while the layout is made, and shared while it is copied: another test run may be making it too.
fn layout_lock() -> File {
    File::create(Path::new(env!("CARGO_TARGET_TMPDIR")).join("layout.lock")).expect("a file")
}

/// Copies the layout as a deployer does, but without copying the binary's bytes where a link will do.
fn copy_layout(to: &Path) {
    let from = layout();
    let lock = layout_lock();
    lock.lock_shared().expect("a lock");
    for option in ["--link", "--preserve=mode"] {
        let mut cp = Command::new("cp");
        if cp
            .args(["--recursive", option])
            .arg(from)
            .arg(to)
            .stderr(std::process::Stdio::null())
            .status()
            .is_ok_and(|s| s.success())
        {
            break;
        }
        drop(fs::remove_dir_all(to));
    }
    // A link would let one test write into the files of all others.
    for part in ["config", "settings"] {
        fs::remove_dir_all(to.join(part)).expect("a directory");
        let status = Command::new("cp").arg("--recursive").arg(from.join(part)).arg(to.join(part)).status();
        assert!(status.is_ok_and(|s| s.success()), "cannot copy {part}");
    }
}

/// Makes a directory and everything in it another user's.
fn give_away(dir: &Path, user: u32) {
    chown(dir, Some(user), Some(user)).expect("this test needs root");
    for entry in fs::read_dir(dir).expect("a directory").flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            give_away(&entry.path(), user);
        } else {
            chown(entry.path(), Some(user), Some(user)).expect("this test needs root");
        }
    }
}
