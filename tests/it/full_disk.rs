//! A disk that is full when the service is stopped, restarted or started.

use std::fs;
use std::path::Path;

use mtga::control::State;

use crate::files::SmallDisk;
use crate::harness::process::Finished;
use crate::harness::{Codec, Home, Mix, Record, SOON, Topic, holds, wait_until};

/// A home whose event directory is full, and a service that waits there for room. It gives a stop up after two seconds.
struct Rig {
    // Dropped before the home, whose directory it lies in.
    disk: SmallDisk,
    home: Home,
    produced: Vec<Record>,
}

impl Rig {
    fn new(name: &str, configure: impl FnOnce(&mut Home)) -> Self {
        let topic = Topic::create(name, 2);
        let mut home = Home::new(&topic);
        configure(&mut home);
        fs::create_dir_all(home.path("data")).expect("a directory");
        let disk = SmallDisk::mount(home.path("data"), "1m");
        let produced = topic.fill(Codec::Snappy, Mix::Dirty, 0, 5000);
        let rig = Self { disk, home, produced };
        rig.begin("start");
        rig.home.wait_for(State::Paused);
        rig
    }

    /// Has this command start a service. On a busy machine it gives up before the service has said anything.
    fn begin(&self, command: &str) {
        let done = self.run(command);
        assert!(done.stderr.is_empty() || done.stderr.contains("has said nothing"), "{done:?}");
    }

    fn run(&self, command: &str) -> Finished {
        let mut mtga = self.home.command();
        // The service does not come to consume: nothing is gained by waiting for that.
        mtga.arg(command).env("FAULT_STOP_MS", "2000").env("FAULT_START_MS", "500");
        Finished::run(&mut mtga, SOON)
    }

    /// Makes room, and demands everything once.
    fn assert_goes_on(&self) {
        let mut mount = std::process::Command::new("mount");
        Finished::run(mount.args(["-o", "remount,size=64m"]).arg(&self.disk.0), SOON).success();
        self.home.wait_done(&self.produced);
        self.home.assert_exactly(&self.produced);
        self.home.stop();
    }
}

fn assert_a_stop_ends(name: &str, configure: impl FnOnce(&mut Home)) {
    let rig = Rig::new(name, configure);
    let pid = rig.home.pid();
    rig.run("stop").success();
    wait_until("it is gone", SOON, || holds(!Path::new(&format!("/proc/{pid}")).try_exists().expect("proc"), pid));
    rig.begin("start");
    rig.assert_goes_on();
}

#[test]
fn a_stop_on_a_full_disk_without_a_group_ends() {
    assert_a_stop_ends("fullstop", |_| ());
}

#[test]
fn a_stop_on_a_full_disk_in_a_group_ends() {
    assert_a_stop_ends("fullstopgroup", |home| {
        home.in_group();
    });
}

/// Everything that the service writes of its own lies on a disk that has no room for a file, nor for a byte.
#[test]
fn a_start_on_a_full_disk_of_tmp_says_so_and_waits_for_room() {
    let topic = Topic::create("fulltmp", 1);
    let home = Home::new(&topic);
    fs::create_dir_all(home.path("tmp")).expect("a directory");
    let disk = SmallDisk::mount(home.path("tmp"), "64m,nr_inodes=500,mode=750");
    let mut produced = topic.fill(Codec::Snappy, Mix::Clean, 0, 100);
    home.start();
    home.wait_done(&produced);
    home.stop();
    let ballast = disk.0.join("ballast");
    fs::create_dir(&ballast).expect("a directory");
    fs::write(ballast.join("bytes"), vec![0; 65 << 20]).expect_err("no room is left");
    (0..500).find(|n| fs::write(ballast.join(n.to_string()), "").is_err()).expect("no room is left");
    produced.extend(topic.fill(Codec::Snappy, Mix::Clean, 100, 100));
    let started = home.mtga(["start"]).success();
    assert!(started.contains("paused") && started.contains("No space left"), "{started}");
    for missing in ["the pid file cannot be written", "there is no control socket until there is room"] {
        home.wait_logged(missing);
    }
    fs::remove_dir_all(&ballast).expect("the ballast");
    home.wait_done(&produced);
    home.assert_exactly(&produced);
    wait_until("there is a pid file", SOON, || {
        let text = fs::read_to_string(home.path("tmp/mtga.pid")).map_err(|error| error.to_string())?;
        holds(text.ends_with('\n'), text)
    });
    home.stop();
}

#[test]
fn a_restart_on_a_full_disk_leaves_a_service() {
    let rig = Rig::new("fullrestart", |home| {
        home.in_group();
    });
    let old = rig.home.pid();
    rig.begin("restart");
    // It may not have come to its pid file yet.
    wait_until("another service runs", SOON, || {
        let pid = rig.home.try_status()?.pid;
        holds(pid.is_some_and(|pid| pid != old.as_raw() as u32), pid)
    });
    rig.assert_goes_on();
}
