//! Privileges: whose rights a command has, and which process it may signal.
//!
//! **Promise.** What root does on a home of another user, it does as that user: [`become_owner`] gives root's rights up
//! before anything in the home is opened, since that user can put links there, and files that a shell or librdkafka would
//! run. Only a process that is proved to be the service is signalled ([`terminate`]): a pid in a file may be that of any.
//!
//! **The owner** of a home is the owner of its directory, or, where that is root's, the owner of `tmp` in it: a deployment
//! whose programs and configuration are root's runs under a user of its own all the same. A home that is root's runs as
//! root, as in a container, unless its store lies elsewhere and is another user's: [`become_owner_of_store`].

use std::ffi::CString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::sys::{prctl, stat};
use nix::unistd::{Gid, Uid, User, geteuid, initgroups, setgroups, setresgid, setresuid};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::control::{Failure, FailureKind};

/// Becomes the owner of a home for good, when root asks. Call it before the process has a second thread.
pub fn become_owner(home: &Path) -> Result<(), Failure> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let look = |path: &Path| fs::metadata(path);
    let trouble = |error: io::Error| {
        Failure::new(FailureKind::Failed, format!("cannot find out whose home {} is: {error}", home.display()))
    };
    let mut owner = look(home).map_err(trouble)?;
    if owner.uid() == 0 {
        owner = match look(&home.join("tmp")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            owner => owner.map_err(trouble)?,
        };
    }
    become_owner_of(&owner, home)
}

/// Becomes the owner of a home's store for good, when root asks: it may lie elsewhere, and be another user's than the home. No
/// file of another owner may be left in it, not even the lock, or the service could not go on. A store that is not there yet
/// will be root's. A link in its place is followed only if it is root's: whoever else made it could lead root anywhere.
pub fn become_owner_of_store(store: &Path) -> Result<(), Failure> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let look = || match fs::symlink_metadata(store)? {
        link if link.is_symlink() && link.uid() == 0 => fs::metadata(store),
        found => Ok(found),
    };
    match look() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::new(FailureKind::Failed, format!("cannot look at {}: {error}", store.display()))),
        Ok(owner) => become_owner_of(&owner, store),
    }
}

/// Becomes the owner of this file or directory for good; `home` is what it belongs to, for the message.
fn become_owner_of(owner: &Metadata, home: &Path) -> Result<(), Failure> {
    if !geteuid().is_root() || owner.uid() == 0 {
        return Ok(());
    }
    let uid = Uid::from_raw(owner.uid());
    let user = User::from_uid(uid).ok().flatten();
    let gid = user.as_ref().map_or(Gid::from_raw(owner.gid()), |user| user.gid);
    let name = user.and_then(|user| CString::new(user.name).ok());
    let groups = || match &name {
        Some(name) => initgroups(name, gid),
        None => setgroups(&[gid]),
    };
    let changed = groups().and_then(|()| setresgid(gid, gid, gid)).and_then(|()| setresuid(uid, uid, uid));
    // The kernel hides a process that changed its user from that user, and `stop` must find out what it is.
    changed.and_then(|()| prctl::set_dumpable(true)).map_err(|error| {
        let who = name.map_or_else(|| uid.to_string(), |name| name.to_string_lossy().into_owned());
        let text = format!(
            "{} belongs to the user {who}, and root cannot become that user here ({}): run the command as {who}, \
             as with `setpriv --reuid={uid} --regid={gid} --clear-groups COMMAND`",
            home.display(),
            error.desc()
        );
        Failure::new(FailureKind::Config, text)
    })
}

/// Sends SIGTERM to the service with this process id, which is to hold the lock of the file `lock`. Any other process, and
/// one that has ended meanwhile, is left alone.
pub fn terminate(pid: u32, lock: &Path) -> Result<(), Failure> {
    let refused = |why: String| {
        Failure::new(FailureKind::Failed, format!("no signal was sent to pid {pid}: {why}; stop the service by hand"))
    };
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| refused("it is no process id".into()))?;
    // Whatever is found out about the number below is about this process, or this process has ended.
    let process = pidfd_open(raw, PidfdFlags::empty()).map_err(|error| refused(io::Error::from(error).to_string()))?;
    is_ours(pid).and_then(|()| holds(pid, lock)).map_err(refused)?;
    pidfd_send_signal(process, Signal::TERM).map_err(|error| refused(io::Error::from(error).to_string()))
}

/// Whether a process runs this program under our user.
fn is_ours(pid: u32) -> Result<(), String> {
    let about = |what: &str| format!("/proc/{pid}/{what}");
    let unknown = |error: io::Error| format!("cannot find out what it is: {error}");
    let status = fs::read_to_string(about("status")).map_err(unknown)?;
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()?.parse::<u32>().ok());
    if uid != Some(geteuid().as_raw()) {
        return Err("it belongs to another user".to_owned());
    }
    let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
    let theirs = fs::metadata(about("exe")).map(identity).map_err(unknown)?;
    if fs::metadata("/proc/self/exe").is_ok_and(|ours| identity(ours) == theirs) {
        return Ok(());
    }
    // Another version of the program; one that was replaced is shown as deleted.
    let path = fs::read_link(about("exe")).map_err(unknown)?;
    match path.file_name().and_then(|name| name.to_str()) {
        Some(name) if name.trim_end_matches(" (deleted)") == "mtga" => Ok(()),
        _ => Err(format!("it runs {}", path.display())),
    }
}

/// Whether the lock of a file is a process's. Where the kernel does not tell, as of a process in another namespace, that is
/// left open.
fn holds(pid: u32, lock: &Path) -> Result<(), String> {
    let (Ok(locks), Ok(metadata)) = (fs::read_to_string("/proc/locks"), fs::symlink_metadata(lock)) else {
        return Ok(());
    };
    match holder_in(&locks, metadata.ino(), metadata.dev(), pid) {
        Some(holder) if holder != pid => Err(format!("pid {holder} holds the lock {}", lock.display())),
        _ => Ok(()),
    }
}

/// The process that `/proc/locks` says has the exclusive lock of the file with this inode on this device. Some file systems
/// without a device of their own (btrfs, overlayfs) show another one there: then it is `pid` if that has the lock of a file with
/// this inode, or else any that has.
fn holder_in(locks: &str, inode: u64, device: u64, pid: u32) -> Option<u32> {
    let (major, minor) = (stat::major(device), stat::minor(device));
    let device = format!("{major:02x}:{minor:02x}");
    let holders = locks.lines().filter_map(|line| {
        // `1: FLOCK  ADVISORY  WRITE 1234 fd:01:5678 0 EOF`; those who wait have a `->` behind the number.
        let fields: Vec<_> = line.split_whitespace().collect();
        let [_, "FLOCK", _, "WRITE", pid, file, ..] = fields[..] else { return None };
        let (of, number) = file.rsplit_once(':')?;
        let pid = pid.parse::<u32>().ok().filter(|pid| *pid != 0)?;
        (number.parse() == Ok(inode)).then_some((of, pid))
    });
    let holders: Vec<_> = holders.collect();
    let there = holders.iter().find(|(of, _)| *of == device);
    let shown_as_another = || holders.iter().find(|(_, holder)| *holder == pid).or(holders.first());
    there.or_else(|| if major == 0 { shown_as_another() } else { None }).map(|(_, holder)| *holder)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Child, Command};

    use super::*;

    /// A process that sleeps, under this name.
    fn sleeping(dir: &Path, name: &str) -> Child {
        let program = dir.join(name);
        fs::copy("/bin/sleep", &program).unwrap();
        Command::new(&program).arg("600").spawn().unwrap()
    }

    fn end(mut child: Child) -> Option<i32> {
        child.kill().unwrap();
        child.wait().unwrap().signal()
    }

    #[test]
    fn only_a_process_that_is_the_service_is_signalled() {
        let dir = tempfile::tempdir().unwrap();
        let lock = dir.path().join("lock");
        let other = sleeping(dir.path(), "other");
        let refusal = terminate(other.id(), &lock).unwrap_err();
        assert!(refusal.message.contains("it runs"), "{refusal}");
        assert_eq!(end(other), Some(9), "it lived until now");
        let service = sleeping(dir.path(), "mtga");
        let held = File::create(&lock).unwrap();
        held.lock().unwrap();
        let refusal = terminate(service.id(), &lock).unwrap_err();
        let holder = format!("pid {} holds the lock", std::process::id());
        assert!(refusal.message.contains(&holder), "{refusal}");
        drop(held);
        terminate(service.id(), &lock).unwrap();
        let mut service = service;
        assert_eq!(service.wait().unwrap().signal(), Some(15));
        assert!(terminate(service.id(), &lock).is_err(), "it has ended");
        assert!(terminate(0, &lock).is_err() && terminate(u32::MAX, &lock).is_err());
    }

    #[test]
    fn the_holder_of_a_lock_is_the_one_that_has_it_alone() {
        let locks = "1: POSIX  ADVISORY  WRITE 7 fd:01:42 0 EOF\n2: FLOCK  ADVISORY  READ 8 fd:01:42 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 9 fd:01:421 0 EOF\n4: FLOCK  ADVISORY  WRITE 10 fd:01:42 0 EOF\n\
                     4: -> FLOCK  ADVISORY  WRITE 11 fd:01:42 0 EOF\nrubbish\n";
        let device = stat::makedev(0xfd, 1);
        assert_eq!(holder_in(locks, 42, device, 7), Some(10));
        assert_eq!(holder_in(locks, 4, device, 7), None);
        assert_eq!(holder_in("", 42, device, 7), None);
    }

    #[test]
    fn a_lock_of_the_same_inode_number_on_another_disk_is_another_one() {
        // The process that is found first has a file of a disk in memory, whose numbers are small.
        let locks = "1: FLOCK  ADVISORY  WRITE 7 00:2a:42 0 EOF\n2: FLOCK  ADVISORY  WRITE 9 fd:01:42 0 EOF\n";
        let disk = stat::makedev(0xfd, 1);
        assert_eq!(holder_in(locks, 42, disk, 7), Some(9), "the file on fd:01 is the lock of the home");
        assert_eq!(holder_in(locks, 42, stat::makedev(0xfd, 2), 7), None);
        assert_eq!(holder_in(locks, 42, stat::makedev(0, 0x2a), 9), Some(7));
        let shown_as_another = stat::makedev(0, 0x30);
        assert_eq!(holder_in(locks, 42, shown_as_another, 9), Some(9));
        assert_eq!(holder_in(locks, 42, shown_as_another, 8), Some(7), "neither of the two is pid 8");
    }
}
