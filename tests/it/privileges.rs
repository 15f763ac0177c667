//! What root does on a home that belongs to another user: nothing with root's rights. These tests need root.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use nix::unistd::Uid;

use crate::harness::process::Finished;
use crate::harness::{Home, SOON, Topic};

/// Whoever that is, it is not root.
const USER: u32 = 65_534;

/// A home without brokers that belongs to another user as a whole, below a directory that user may enter.
fn home() -> Home {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root");
    let home = Home::with_brokers(&Topic::unmade("none", 1), "127.0.0.1:1");
    let above = home.path("").parent().expect("a parent").to_owned();
    fs::set_permissions(above, Permissions::from_mode(0o711)).expect("permissions");
    for dir in ["tmp", "logs", "data"] {
        fs::create_dir_all(home.path(dir)).expect("a directory");
    }
    // The program may be one file with that of other tests.
    give(&home.path(""), &home.path("bin"));
    home
}

fn give(path: &Path, but: &Path) {
    std::os::unix::fs::lchown(path, Some(USER), Some(USER)).expect("root may give files away");
    if path != but && path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path).expect("a directory") {
            give(&entry.expect("an entry").path(), but);
        }
    }
}

/// A file of root's that nobody else may touch, and links to it in the places of the home that commands open.
fn trap(home: &Home, places: &[&str]) -> PathBuf {
    let victim = home.path("").parent().expect("a parent").join("victim");
    fs::write(&victim, "root's own\n").expect("a file");
    fs::set_permissions(&victim, Permissions::from_mode(0o600)).expect("permissions");
    for place in places {
        symlink(&victim, home.path(place)).expect("a link");
    }
    victim
}

fn mctl(home: &Home, args: &[&str]) -> Finished {
    Finished::run(
        Command::new(home.path("mctl")).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").args(args),
        SOON,
    )
}

/// Makes a home root's, into which everybody may write what a service does.
fn make_roots(home: &Home) {
    for dir in ["", "config", "settings", "scripts", "mctl", "tmp", "logs", "data"] {
        std::os::unix::fs::chown(home.path(dir), Some(0), Some(0)).expect("root may");
    }
    for dir in ["tmp", "logs", "data"] {
        fs::set_permissions(home.path(dir), Permissions::from_mode(0o777)).expect("permissions");
    }
}

#[test]
fn what_a_user_put_into_his_home_runs_and_writes_with_no_rights_of_roots() {
    let home = home();
    let victim = trap(&home, &["tmp/mtga.pid", "logs/mtga.log"]);
    let who = home.path("data/who");
    fs::write(home.path("config/common.env"), format!("id -u >> '{}'\n", who.display())).expect("a file");
    for args in [&["status"][..], &["check", "--offline"], &["set_offset", "all", "1"], &["start"], &["stop"]] {
        // What becomes of the command is not the point here.
        let _: Finished = mctl(&home, args);
        let _: Finished = home.mtga(args);
        assert_eq!(fs::read_to_string(&victim).expect("a file"), "root's own\n", "{args:?}");
    }
    let ran_as = fs::read_to_string(&who).expect("it was run");
    assert!(ran_as.lines().all(|line| line == USER.to_string()), "{ran_as}");
}

#[test]
fn a_service_that_root_starts_runs_as_the_owner_of_its_home_and_is_stopped_by_both() {
    let home = home();
    for dir in ["", "config", "settings", "scripts", "mctl"] {
        // Only what the service writes is its user's, as after `init.sh --user`.
        std::os::unix::fs::chown(home.path(dir), Some(0), Some(0)).expect("root may");
    }
    mctl(&home, &["start"]).success();
    let status = fs::read_to_string(format!("/proc/{}/status", home.pid())).expect("it runs");
    let ids = |field: &str| status.lines().find_map(|line| line.strip_prefix(field)).expect("a field").to_owned();
    for field in ["Uid:", "Gid:"] {
        assert!(ids(field).split_whitespace().all(|id| id == USER.to_string()), "{status}");
    }
    assert_eq!(ids("CapEff:").trim(), "0000000000000000");
    // Without the socket, it is stopped by a signal.
    fs::remove_file(home.path("tmp/mtga.sock")).expect("a socket");
    mctl(&home, &["stop"]).success();
    assert_eq!(fs::metadata(home.path("logs/mtga.log")).expect("a log").uid(), USER);
    home.start();
    let setpriv = |args: &[&str]| {
        let ids = [format!("--reuid={USER}"), format!("--regid={USER}"), "--clear-groups".to_owned()];
        Finished::run(Command::new("setpriv").args(ids).arg(home.path("mctl")).args(args), SOON)
    };
    setpriv(&["stop"]).success();
}

/// Everything below a directory with another owner than our user.
fn not_ours(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        let metadata = fs::symlink_metadata(&path).expect("a file");
        if metadata.is_dir() {
            found.extend(not_ours(&path));
        }
        if metadata.uid() != USER {
            found.push(path);
        }
    }
    found
}

#[test]
fn a_store_of_another_user_than_the_home_is_left_to_that_user_by_every_command() {
    let mut home = home();
    let store = home.path("").parent().expect("a parent").join("store");
    fs::create_dir(&store).expect("a directory");
    std::os::unix::fs::chown(&store, Some(USER), Some(USER)).expect("root may");
    fs::set_permissions(&store, Permissions::from_mode(0o700)).expect("permissions");
    home.set("store.path", store.to_str().expect("a path"));
    make_roots(&home);
    for args in [&["check", "--offline"][..], &["set_offset", "all", "1"], &["status"], &["start"]] {
        // What becomes of the command is not the point here.
        let _: Finished = home.mtga(args);
        assert_eq!(not_ours(&store), Vec::<PathBuf>::new(), "{args:?}");
    }
    let status = fs::read_to_string(format!("/proc/{}/status", home.pid())).expect("it runs");
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:")).expect("a field");
    assert!(ids.split_whitespace().all(|id| id == USER.to_string()), "{status}");
    home.stop();
    home.start();
    home.mtga(["restart"]).success();
    home.stop();
    assert_eq!(not_ours(&store), Vec::<PathBuf>::new());
}

#[test]
fn a_link_that_another_user_put_in_the_place_of_the_store_gets_no_rights_of_roots() {
    let mut home = home();
    let above = home.path("").parent().expect("a parent").to_owned();
    let (theirs, victim) = (above.join("theirs"), above.join("victim"));
    for dir in [&theirs, &victim] {
        fs::create_dir(dir).expect("a directory");
        fs::set_permissions(dir, Permissions::from_mode(0o755)).expect("permissions");
    }
    let store = theirs.join("store");
    symlink(&victim, &store).expect("a link");
    give(&theirs, Path::new(""));
    home.set("store.path", store.to_str().expect("a path"));
    make_roots(&home);
    for args in [&["check", "--offline"][..], &["set_offset", "all", "1"], &["status"], &["start"]] {
        // What becomes of the command is not the point here.
        let _: Finished = home.mtga(args);
        let mode = fs::metadata(&victim).expect("a directory").permissions().mode() & 0o7777;
        assert_eq!((mode, fs::read_dir(&victim).expect("a directory").count()), (0o755, 0), "{args:?}");
    }
}

/// A process of root's. Killed when dropped.
struct Bystander(Child);

impl Drop for Bystander {
    fn drop(&mut self) {
        drop(self.0.kill().and_then(|()| self.0.wait()));
    }
}

#[test]
fn stop_signals_no_process_that_is_not_the_service() {
    let home = home();
    let mut bystander = Bystander(Command::new("sleep").arg("600").spawn().expect("a process"));
    // The lock is held, and its file names another process.
    let store = home.path("tmp/store");
    fs::create_dir(&store).expect("a directory");
    let lock = store.join("lock");
    fs::write(&lock, format!("{} service\n", bystander.0.id())).expect("a file");
    for path in [&store, &lock] {
        std::os::unix::fs::chown(path, Some(USER), Some(USER)).expect("root may");
        fs::set_permissions(path, Permissions::from_mode(0o700)).expect("root may");
    }
    let held = fs::File::open(&lock).expect("a file");
    held.lock().expect("a lock");
    let refused = home.mtga(["stop", "--timeout", "1s"]);
    assert!(bystander.0.try_wait().expect("a child").is_none(), "it lives: {refused:?}");
    assert!(refused.stderr.contains("no signal was sent"), "{refused:?}");
}

#[test]
fn a_cron_entry_of_root_is_of_the_user_whose_home_it_is() {
    let home = home();
    let script = home.path("scripts/init.sh");
    let entries = || fs::read_dir("/etc/cron.d").map(Iterator::count).unwrap_or_default();
    let before = entries();
    // No entry of ours is left on this machine: the script is to write it elsewhere.
    let cron = home.path("").parent().expect("a parent").join("cron.d");
    let text = fs::read_to_string(&script).expect("a script").replace("/etc/cron.d", &cron.display().to_string());
    fs::write(&script, text).expect("a script");
    let user = nix::unistd::User::from_uid(Uid::from_raw(USER)).expect("users").map(|user| user.name);
    let done = Finished::run(Command::new(&script).arg("--cron"), SOON);
    assert_eq!(entries(), before);
    let Some(user) = user else {
        done.code(1);
        return;
    };
    done.success();
    let entry = fs::read_dir(&cron).expect("a directory").next().expect("an entry").expect("an entry").path();
    let text = fs::read_to_string(entry).expect("a file");
    assert!(text.contains(&format!("17 4 * * * {user} ")), "{text}");
    assert_eq!(fs::metadata(home.path("tmp")).map(|tmp| (tmp.uid(), tmp.gid())).ok(), Some((USER, USER)));
}

#[test]
fn an_adoption_runs_no_code_that_the_other_disk_names() {
    let ours = Home::with_brokers(&Topic::unmade("none", 1), "127.0.0.1:1");
    let mut lost = Home::with_brokers(&Topic::unmade("none", 1), "127.0.0.1:1");
    for name in ["plugin.paths", "ssl.engine.location", "ssl.providers", "sasl.kerberos.kinit.cmd"] {
        lost.set("kafka.librdkafka", serde_json::json!({name: "/tmp/evil.so"}));
        let lost = lost.path("").canonicalize().expect("a path");
        let refused = ours.mtga(["adopt".as_ref(), lost.as_os_str()]).code(78);
        assert!(refused.stderr.contains(&format!("kafka.librdkafka.{name} would run code")), "{refused:?}");
    }
}
