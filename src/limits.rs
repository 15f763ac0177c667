//! Open descriptors: how many the process may have, and how they are divided.
//!
//! The soft limit that a process starts with is often 1,024, for the sake of programs that still use `select`; the hard
//! limit behind it is what the operator means. [`raise`] takes all of it at the start.
//!
//! Each large user has a share, so that none takes the last descriptor of another: event files, connections of the
//! control socket, and the rest (brokers, store, journal, log). `check` refuses a `sink.max_open_files` above its share.

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Most connections of the control socket, whatever the limit.
const CONNECTIONS: u64 = 512;
/// Kept for brokers, store, journal, log and the directories on the way to a file.
const REST: u64 = 128;

/// Raises the soft limit of this process to the hard one. Without the right to do so, the soft limit stays in force.
pub fn raise() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        // Refused only where a sandbox forbids the call. What does not fit is noticed then as it comes.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Whether an operation failed because the process, or the whole system, has no descriptor left.
pub fn is_exhausted(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EMFILE | Errno::ENFILE))
}

/// How the descriptors of this process are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// The soft limit in force.
    pub limit: u64,
    /// Most connections of the control socket.
    pub connections: usize,
    /// Most event files that are open at once.
    pub files: usize,
}

impl Shares {
    /// The shares under the limit in force.
    pub fn current() -> Self {
        Self::of(getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft))
    }

    fn of(limit: u64) -> Self {
        let connections = (limit / 4).clamp(1, CONNECTIONS);
        let files = limit.saturating_sub(connections).saturating_sub(REST).max(1);
        Self { limit, connections: connections as usize, files: usize::try_from(files).unwrap_or(usize::MAX) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_fit_into_the_limit_and_the_default_files_into_a_limit_of_512() {
        for limit in [256, 512, 1024, 20_000, 1 << 20] {
            let Shares { connections, files, .. } = Shares::of(limit);
            assert!(connections as u64 + files as u64 + REST <= limit, "{limit}");
        }
        assert_eq!(Shares::of(512).files, 256);
        assert_eq!(Shares::of(1024), Shares { limit: 1024, connections: 256, files: 640 });
        assert_eq!(Shares::of(0), Shares { limit: 0, connections: 1, files: 1 });
    }

    #[test]
    fn a_lack_of_descriptors_is_told_from_other_errors() {
        assert!(is_exhausted(&std::io::Error::from_raw_os_error(Errno::EMFILE as i32)));
        assert!(is_exhausted(&std::io::Error::from_raw_os_error(Errno::ENFILE as i32)));
        assert!(!is_exhausted(&std::io::Error::from_raw_os_error(Errno::ENOSPC as i32)));
    }
}
