//! Where a home lies, and how it is opened.

use std::path::PathBuf;

use crate::config::Config;

/// Where things are below `store.path`.
#[derive(Clone, Debug)]
pub(super) struct Places {
    pub(super) root: PathBuf,
    pub(super) sled: PathBuf,
    pub(super) journal: PathBuf,
    pub(super) recipes: PathBuf,
}

impl Places {
    pub(super) fn of(config: &Config) -> Self {
        Self::below(config.store.path.clone())
    }

    /// Those below such a `store.path`.
    pub(super) fn below(root: PathBuf) -> Self {
        Self { sled: root.join("sled"), journal: root.join("journal"), recipes: root.join("recipes"), root }
    }
}

/// Whether the home was in use by this process before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// The first time: what is not there is made.
    First,
    /// Again, after the disk failed: what was there and is not any more is waited for, since it may be a missing mount.
    Again,
}
