//! Exit codes, after `sysexits.h`.

use std::process::ExitCode;

use crate::control::FailureKind;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed.
    Failed = 1,
    /// `status`: not running.
    NotRunning = 3,
    /// The command line is wrong.
    Usage = 64,
    /// The broker or the daemon cannot be reached.
    Unavailable = 69,
    /// The pid file, the socket or an output cannot be created.
    CannotCreate = 73,
    /// Timed out.
    TimedOut = 75,
    /// The configuration or the settings are wrong.
    Config = 78,
}

impl From<FailureKind> for Exit {
    fn from(kind: FailureKind) -> Self {
        match kind {
            FailureKind::Failed => Self::Failed,
            FailureKind::Usage => Self::Usage,
            FailureKind::Unavailable => Self::Unavailable,
            FailureKind::CannotCreate => Self::CannotCreate,
            FailureKind::TimedOut => Self::TimedOut,
            FailureKind::Config => Self::Config,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
