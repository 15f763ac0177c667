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
        rig.run("start").success();
        rig.home.wait_for(State::Paused);
        rig
    }

    fn run(&self, command: &str) -> Finished {
        Finished::run(self.home.command().arg(command).env("FAULT_STOP_MS", "2000"), SOON)
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
    rig.run("start").success();
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

#[test]
fn a_restart_on_a_full_disk_leaves_a_service() {
    let rig = Rig::new("fullrestart", |home| {
        home.in_group();
    });
    let old = rig.home.pid();
    rig.run("restart").success();
    wait_until("another service runs", SOON, || holds(rig.home.pid() != old, old));
    rig.assert_goes_on();
}
