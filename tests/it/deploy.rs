//! A copy of the assembled `_build` somewhere else, driven by `mctl` alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use mtga::control::{State, Status};
use serde_json::json;

use crate::harness::home::layout;
use crate::harness::process::Finished;
use crate::harness::{Codec, Home, Mix, SOON, Topic, broker, events, holds, oracle, wait_until};

/// A deployment and its `mctl`, called from a directory that has nothing to do with it. Stopped when dropped.
struct Deployment {
    root: PathBuf,
    mctl: PathBuf,
}

impl Deployment {
    fn new(root: PathBuf, topic: &Topic) -> Self {
        let copied = Command::new("cp").arg("-a").arg(layout()).arg(&root).status();
        assert!(copied.is_ok_and(|status| status.success()), "cannot copy the layout");
        // The address comes the way it does on a host: through common.env.
        fs::write(root.join("config/common.env"), format!("KAFKA_BROKERS={}\n", broker::address())).expect("a file");
        let local = json!({
            "kafka": {"topics": [topic.name], "group_id": format!("g_{}", topic.name), "assignment": "all"},
            "sink": {"file": "events.{seq}.log"},
        });
        fs::write(root.join("config/mtga.local.yml"), local.to_string()).expect("a file");
        fs::write(root.join("settings/mthinkingdata:filter.24.json"), "[\"tbllog_*\"]").expect("a file");
        fs::write(root.join("settings/mthinkingdata:metadata.24.json"), "[]").expect("a file");
        let mctl = root.join("mctl");
        Self { root, mctl }
    }

    fn mctl(&self, args: &[&str]) -> Finished {
        Finished::run(Command::new(&self.mctl).args(args).current_dir("/"), SOON)
    }

    fn status(&self) -> Status {
        let done = self.mctl(&["--json", "status"]).code(0);
        serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("no status, {error}: {done:?}"))
    }

    fn wait_written(&self, records: u64) {
        wait_until(&format!("{records} written records"), SOON, || {
            let counts = self.status().counts;
            holds(counts.written >= records, counts)
        });
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        drop(
            Command::new(&self.mctl)
                .args(["stop", "--timeout", "5s"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status(),
        );
    }
}

/// Start, look, restart under load, stop: twice over.
fn assert_full_life(deployment: &Deployment, topic: &Topic) {
    deployment.mctl(&["check"]).success();
    let mut produced = Vec::new();
    for round in 1..=2_u64 {
        deployment.mctl(&["start"]).success();
        let load = topic.load(Codec::Snappy, Mix::Clean);
        let already = produced.len() as u64;
        deployment.wait_written(already + 500);
        let before = deployment.status().pid;
        deployment.mctl(&["restart"]).success();
        assert_ne!(deployment.status().pid, before, "round {round}: another process runs after a restart");
        deployment.wait_written(already + 2000);
        produced.extend(load.stop());
        wait_until("no lag", SOON, || {
            let lag = deployment.mctl(&["kafka_lag"]).success();
            holds(lag == "0", lag)
        });
        let table = deployment.mctl(&["offset_checker"]).success();
        let rows: Vec<_> = table.lines().filter(|line| line.contains(&topic.name)).collect();
        assert_eq!(rows.len(), topic.partitions as usize, "a row for each partition:\n{table}");
        for row in rows {
            let cells: Vec<_> = row.split('|').map(str::trim).collect();
            assert_eq!((cells[5], cells[7]), (cells[6], "0"), "High is Current, and Lag is 0: {row}");
        }
        deployment.mctl(&["stop"]).success();
        deployment.mctl(&["stop"]).success();
        deployment.mctl(&["status"]).code(3);
    }
    events::assert_exactly(&oracle::expect(&produced).lines, &events::read(&deployment.root.join("data")));
}

#[test]
fn a_copy_of_the_layout_lives_its_life_in_another_directory() {
    let dir = tempfile::tempdir().expect("a directory");
    let topic = Topic::create("deploy", 4);
    let deployment = Deployment::new(dir.path().join("somewhere else"), &topic);
    assert_full_life(&deployment, &topic);
}

#[test]
fn mctl_works_through_symbolic_links() {
    let dir = tempfile::tempdir().expect("a directory");
    let topic = Topic::create("links", 4);
    let mut deployment = Deployment::new(dir.path().join("real"), &topic);
    let link = |target: &Path, name: &str| {
        let link = dir.path().join(name);
        std::os::unix::fs::symlink(target, &link).expect("a link");
        link
    };
    let tree = link(&deployment.root, "current");
    deployment.mctl = link(&tree.join("mctl"), "mtga-of-this-host");
    assert_full_life(&deployment, &topic);
}

#[test]
fn a_daemon_keeps_no_stream_of_its_starter_open() {
    let topic = Topic::create("streams", 1);
    let home = Home::new(&topic);
    // `cat` ends only when every writer of the pipe is gone.
    let script = format!("'{}' start 2>&1 | cat", home.path("mctl").display());
    Finished::run(Command::new("sh").args(["-c", &script]), SOON).success();
    home.wait_for(State::Consuming);
    for stream in 0..3 {
        let target = fs::read_link(format!("/proc/{}/fd/{stream}", home.pid())).expect("an open stream");
        assert_eq!(target, Path::new("/dev/null"), "standard stream {stream}");
    }
    home.stop();
}

#[test]
fn restart_leaves_the_service_alone_when_the_new_configuration_is_bad() {
    let topic = Topic::create("badrestart", 1);
    let mut home = Home::new(&topic);
    home.start();
    let pid = home.pid();
    home.set("workers", "many");
    let done = home.mtga(["restart"]).code(78);
    assert!(done.stderr.contains("workers"), "the mistake is named: {}", done.stderr);
    assert_eq!(home.pid(), pid, "the old process still runs");
    home.stop();
}

#[test]
fn the_first_deployment_script_says_what_it_does_and_can_be_run_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path().join("home");
    let copied = Command::new("cp").arg("-a").arg(layout()).arg(&root).status();
    assert!(copied.is_ok_and(|status| status.success()), "cannot copy the layout");
    let init = || Finished::run(&mut Command::new(root.join("scripts/init.sh")), SOON).success();
    let first = init();
    assert_eq!(first, init(), "a second run says the same");
    for dir in ["tmp", "logs", "data"] {
        assert!(first.contains(&format!("{}/{dir}", root.display())), "{dir} is told: {first}");
    }
    let mode =
        fs::metadata(root.join("tmp")).map(|meta| std::os::unix::fs::MetadataExt::mode(&meta) & 0o777).expect("a mode");
    assert_eq!(mode, 0o750);
}
