//! Why something of the application failed: for good, or until the disk works again.

use std::io;

use crate::control::{Failure, FailureKind};
use crate::delivery::Cure;
use crate::msource::store::StoreError;

/// Why there is no pipeline.
#[derive(Debug)]
pub(super) enum Broken {
    /// The disk failed: to begin again may do better.
    Passing(Failure),
    /// Nothing that the program could do helps.
    Lasting(Failure),
}

impl Broken {
    /// An error with its causes, by what may help.
    pub(super) fn new(cure: Cure, error: &dyn std::error::Error) -> Self {
        match cure {
            Cure::Again => Self::Passing(failed(chain(error))),
            Cure::None => Self::Lasting(failed(chain(error))),
        }
    }

    /// An operation on the disk that failed. Only a format that is too new stays as it is.
    pub(super) fn disk(what: impl std::fmt::Display, error: &io::Error) -> Self {
        let failure = failed(format!("{what}: {error}"));
        if error.kind() == io::ErrorKind::Unsupported { Self::Lasting(failure) } else { Self::Passing(failure) }
    }
}

impl From<StoreError> for Broken {
    fn from(error: StoreError) -> Self {
        Self::new(Cure::from(&error), &error)
    }
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        Self::Lasting(failure)
    }
}

impl From<Broken> for Failure {
    /// For whoever does not try again.
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Passing(failure) | Broken::Lasting(failure) => failure,
        }
    }
}

pub(super) fn failed(what: impl std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Failed, what.to_string())
}

/// An error with its causes, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
