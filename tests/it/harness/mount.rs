//! Disks of a chosen size: file systems in memory. This needs root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::SOON;
use super::process::Finished;

/// A file system in memory, for as long as this lives. It must be dropped before the home whose directory it lies in.
#[derive(Debug)]
pub(crate) struct Mount(PathBuf);

impl Mount {
    pub(crate) fn new(at: PathBuf, size: &str) -> Self {
        fs::create_dir_all(&at).expect("a directory");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size},mode=750"), "none"]).arg(&at);
        Finished::run(&mut mount, SOON).success();
        Self(at)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Whether it could be mounted in another way.
    pub(crate) fn remount(&self, how: &str) -> bool {
        let mut mount = Command::new("mount");
        mount.args(["-o", &format!("remount,{how}")]).arg(&self.0);
        mount.status().is_ok_and(|status| status.success())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(&self.0).status());
    }
}
