//! The socket in the file system: its name, its rights, and who may speak on it.
//!
//! Promises: the socket never stands under its name with wider rights than configured, because it is made in a private
//! directory beside it and renamed; a socket that nobody listens on is replaced, one that someone listens on and
//! anything that is no socket are not. Paths longer than the 107 bytes that the system takes work as well.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, setsockopt, sockopt};
use nix::sys::time::TimeVal;
use nix::unistd::{self, Gid, Group, Uid, User};

use super::{Failure, FailureKind, Peer};
use crate::config;

/// How often a socket is tried again for which there was no room.
const PACE: Duration = Duration::from_secs(1);

/// Why there is no socket.
#[derive(Debug)]
struct Refusal {
    failure: Failure,
    /// Whether the disk is full, which passes.
    is_full: bool,
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self { failure, is_full: false }
    }
}

/// A socket that listens, or will once there is room for it.
#[derive(Debug)]
pub(super) enum Binding {
    Bound(Socket),
    NoRoom(config::Rpc),
}

impl Binding {
    /// Listens at `rpc.socket`. A disk that is full is waited for by [`Self::bound`].
    pub(super) fn begin(rpc: &config::Rpc) -> Result<Self, Failure> {
        match Socket::bind(rpc) {
            Ok(socket) => Ok(Self::Bound(socket)),
            Err(Refusal { failure, is_full: true }) => {
                tracing::warn!(%failure, "there is no control socket until there is room");
                Ok(Self::NoRoom(rpc.clone()))
            }
            Err(Refusal { failure, .. }) => Err(failure),
        }
    }

    /// The socket, as soon as it listens.
    pub(super) async fn bound(self) -> Socket {
        let rpc = match self {
            Self::Bound(socket) => return socket,
            Self::NoRoom(rpc) => rpc,
        };
        loop {
            tokio::time::sleep(PACE).await;
            match Socket::bind(&rpc) {
                Ok(socket) => {
                    tracing::info!("there is a control socket");
                    return socket;
                }
                Err(Refusal { failure, .. }) => tracing::debug!(%failure, "there is no control socket yet"),
            }
        }
    }
}

/// A listening socket and its name; [`Self::remove`] takes the name away.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Socket {
    /// Listens at `rpc.socket`. The caller holds the lock of the home.
    fn bind(rpc: &config::Rpc) -> Result<Self, Refusal> {
        let path = &rpc.socket;
        let trouble = |error: &dyn std::fmt::Display| {
            Failure::new(FailureKind::CannotCreate, format!("cannot create the socket {}: {error}", path.display()))
        };
        check_free(path).map_err(|e| trouble(&e))?;
        let group = find_group(&rpc.group)?;
        let staging = staging_of(path).ok_or_else(|| trouble(&"rpc.socket names no file"))?;
        let made = Self::stage(path, &staging, rpc.permissions, group);
        let _ = fs::remove_dir_all(&staging);
        made.map_err(|error| {
            let is_full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
            Refusal { failure: trouble(&error), is_full }
        })
    }

    fn stage(path: &Path, staging: &Path, permissions: u32, group: Option<Gid>) -> io::Result<Self> {
        if let Some(parent) = staging.parent() {
            DirBuilder::new().recursive(true).mode(0o750).create(parent)?;
        }
        match fs::remove_dir_all(staging) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => DirBuilder::new().mode(0o700).create(staging)?,
        }
        let staged = staging.join("socket");
        let name = ShortName::of(&staged)?;
        let listener = UnixListener::bind(name.path())?;
        listener.set_nonblocking(true)?;
        unistd::chown(&staged, None, group)?;
        fs::set_permissions(&staged, Permissions::from_mode(permissions))?;
        let inode = fs::symlink_metadata(&staged)?.ino();
        fs::rename(&staged, path)?;
        Ok(Self { listener, path: path.to_owned(), inode })
    }

    /// Removes the name, unless another service has taken it meanwhile.
    pub(super) fn remove(&self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The private directory, beside the socket, in which it is made.
fn staging_of(path: &Path) -> Option<PathBuf> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name()?);
    name.push(".new");
    Some(path.with_file_name(name))
}

/// Only a socket without a listener may be replaced.
fn check_free(path: &Path) -> Result<(), String> {
    let meta = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e.to_string()),
        Ok(meta) => meta,
    };
    if !meta.file_type().is_socket() {
        return Err("the name is taken by something that is no socket; move it away or change rpc.socket".to_owned());
    }
    // A full backlog is a listener too.
    match connect(path, Duration::from_millis(200)) {
        Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => Ok(()),
        _ => Err("another service listens on it; stop that one or change rpc.socket".to_owned()),
    }
}

/// Connects within `timeout`, also when the listener is frozen and its backlog is full. It tries at least once, however late it
/// is: whether there is a listener is known at once.
pub(super) fn connect(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let deadline = Instant::now() + timeout;
    let name = ShortName::of(path)?;
    let address = UnixAddr::new(name.path())?;
    let fd: OwnedFd = socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // The send timeout bounds `connect` as well. Zero would mean for ever.
        let micros = i64::try_from(left.as_micros()).unwrap_or(i64::MAX).max(1);
        setsockopt(&fd, sockopt::SendTimeout, &TimeVal::new(micros / 1_000_000, micros % 1_000_000))?;
        match socket::connect(fd.as_raw_fd(), &address) {
            Ok(()) => return Ok(UnixStream::from(fd)),
            Err(Errno::EINTR) if Instant::now() < deadline => {}
            Err(Errno::EINTR | Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            Err(e) => return Err(e.into()),
        }
    }
}

/// A name of a socket that fits into an address: the path, or a path through an open descriptor of its directory.
struct ShortName {
    path: PathBuf,
    /// Keeps the descriptor in `path` open.
    _directory: Option<File>,
}

impl ShortName {
    fn of(path: &Path) -> io::Result<Self> {
        // `sun_path` has 108 bytes, the last one for the end.
        if path.as_os_str().as_bytes().len() < 108 {
            return Ok(Self { path: path.to_owned(), _directory: None });
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let directory = File::open(parent)?;
        let path = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
        Ok(Self { path, _directory: Some(directory) })
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

fn find_group(name: &str) -> Result<Option<Gid>, Failure> {
    if name.is_empty() {
        return Ok(None);
    }
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(Some(group.gid)),
        Ok(None) => Err(Failure::new(FailureKind::Config, format!("rpc.group: there is no group `{name}`"))),
        Err(e) => Err(Failure::new(FailureKind::Failed, format!("cannot look up the group `{name}`: {e}"))),
    }
}

/// Who may speak: root and our own user always, others as the socket's mode bits say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Access {
    permissions: u32,
    own: Uid,
    group: Gid,
}

impl Access {
    /// The access that a configuration gives.
    pub(super) fn of(rpc: &config::Rpc) -> Result<Self, Failure> {
        let group = find_group(&rpc.group)?.unwrap_or_else(unistd::getegid);
        Ok(Self { permissions: rpc.permissions, own: unistd::geteuid(), group })
    }

    /// Who a peer is, as far as its id tells.
    pub(super) fn peer(&self, uid: u32) -> Peer {
        let uid = Uid::from_raw(uid);
        if uid.is_root() || uid == self.own { Peer::Owner } else { Peer::Member }
    }

    /// Whether a peer may speak. Reads the user database.
    pub(super) fn allows(&self, uid: u32, gid: u32) -> bool {
        let uid = Uid::from_raw(uid);
        self.peer(uid.as_raw()) == Peer::Owner
            || self.permissions & 0o002 != 0
            || (self.permissions & 0o020 != 0 && self.is_member(uid, Gid::from_raw(gid)))
    }

    fn is_member(&self, uid: Uid, gid: Gid) -> bool {
        if gid == self.group {
            return true;
        }
        let Ok(Some(user)) = User::from_uid(uid) else { return false };
        let Ok(name) = std::ffi::CString::new(user.name) else { return false };
        unistd::getgrouplist(&name, user.gid).is_ok_and(|groups| groups.contains(&self.group))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rpc(socket: PathBuf) -> config::Rpc {
        config::Rpc { socket, permissions: 0o600, group: String::new(), timeout: Duration::from_secs(5) }
    }

    #[test]
    fn the_socket_has_exactly_the_configured_mode_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tmp/mtga.sock");
        let socket = Socket::bind(&config::Rpc { permissions: 0o660, ..rpc(path.clone()) }).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        socket.remove();
        assert!(!path.try_exists().unwrap());
    }

    #[test]
    fn a_stale_socket_is_replaced_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mtga.sock");
        drop(UnixListener::bind(&path).unwrap());
        let late = connect(&path, Duration::ZERO).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::ConnectionRefused, "nobody listens, however late it is");
        let first = Socket::bind(&rpc(path.clone())).unwrap();
        let refused = Socket::bind(&rpc(path.clone())).unwrap_err().failure;
        assert_eq!(refused.kind, FailureKind::CannotCreate);
        assert!(refused.message.contains("another service listens"), "{refused}");
        drop(first);
        Socket::bind(&rpc(path)).unwrap();
    }

    #[test]
    fn a_file_in_the_socket_s_place_is_never_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mtga.sock");
        fs::write(&path, "precious").unwrap();
        assert_eq!(Socket::bind(&rpc(path.clone())).unwrap_err().failure.kind, FailureKind::CannotCreate);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn removing_leaves_the_socket_of_a_successor_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mtga.sock");
        let old = Socket::bind(&rpc(path.clone())).unwrap();
        fs::rename(&path, dir.path().join("gone")).unwrap();
        let _new = Socket::bind(&rpc(path.clone())).unwrap();
        old.remove();
        assert!(path.try_exists().unwrap());
    }

    #[test]
    fn a_path_beyond_the_system_s_limit_works() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d".repeat(120)).join("mtga.sock");
        let _socket = Socket::bind(&rpc(path.clone())).unwrap();
        connect(&path, Duration::from_secs(1)).unwrap();
    }

    #[test]
    fn connecting_to_a_full_backlog_ends_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mtga.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        let started = Instant::now();
        // The listener never accepts, so that at last the backlog is full.
        let mut held = Vec::new();
        let error = loop {
            match connect(&path, Duration::from_millis(50)) {
                Ok(stream) => held.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn strangers_speak_only_when_the_mode_lets_them() {
        let access = |permissions| Access { permissions, own: Uid::from_raw(1000), group: Gid::from_raw(77) };
        let foreign = 4_000_000_000;
        assert!(access(0o600).allows(0, 0));
        assert!(access(0o600).allows(1000, 5));
        assert!(!access(0o600).allows(foreign, 77));
        assert!(access(0o660).allows(foreign, 77));
        assert!(!access(0o660).allows(foreign, 78));
        assert!(access(0o666).allows(foreign, 78));
    }
}
