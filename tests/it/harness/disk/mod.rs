//! A disk that loses power and fails on command: what a process changes below a directory goes through a library
//! (`tests/powercut/powercut.c`) that keeps a log of it; [`undo`] takes back what no sync covers.
//!
//! Files are rewritten in place and keep their inodes. [`Model::Strict`] leaves exactly what was synced. With
//! [`Model::Random`] any part of the rest may have reached the disk too, always the same part for the same seed.

mod undo;

use std::fs::{self, File};
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use nix::errno::Errno;
use tempfile::TempDir;

use super::process::Finished;
use super::{Home, SOON, slow};

/// What a power cut leaves of what no sync covers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Model {
    /// Nothing.
    Strict,
    /// All bytes of files whose path contains this, nothing else.
    Only(&'static str),
    /// A part that this seed decides: of each file any pages, each as it was at any moment since the last sync, and any
    /// length in between; of the names in a directory the first so many changes.
    Random(u64),
}

/// The layer below one directory.
#[derive(Debug)]
pub(crate) struct Layer {
    root: PathBuf,
    except: PathBuf,
    state: TempDir,
    /// How long each sync takes when nothing is wrong, on slow disks.
    usual: Option<Duration>,
}

impl Layer {
    /// A layer below a home. Its service log is left alone, for those who want to know what happened.
    pub(crate) fn below(home: &Home) -> Self {
        Self::new(&home.path(""), &home.path("logs"))
    }

    /// A layer below `root`, apart from what is below `except`. What is there now is on the disk.
    pub(crate) fn new(root: &Path, except: &Path) -> Self {
        let root = root.canonicalize().expect("the directory is there");
        // Beside it: files are linked from the one into the other.
        let beside = root.parent().expect("the directory is not the root of everything");
        let state = tempfile::Builder::new().prefix("disk-").tempdir_in(beside).expect("a directory");
        fs::create_dir(state.path().join("saved")).expect("a directory");
        let layer = Self { root, except: except.to_owned(), state, usual: slow::sync() };
        layer.be_as_usual();
        layer
    }

    fn be_as_usual(&self) {
        if let Some(sync) = self.usual {
            self.slow_syncs("/", sync..sync);
        }
    }

    fn state(&self, name: &str) -> PathBuf {
        self.state.path().join(name)
    }

    /// Puts a command that was not started yet above the layer. No other one may be running there.
    pub(crate) fn command<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        self.cut_torn_record();
        command
            .env("LD_PRELOAD", library())
            .env("POWERCUT_ROOT", &self.root)
            .env("POWERCUT_EXCEPT", &self.except)
            .env("POWERCUT_STATE", self.state.path())
    }

    /// A kill can leave half a record; its change was not made.
    fn cut_torn_record(&self) {
        match File::options().write(true).open(self.state("log")) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            log => {
                let whole = undo::whole_records(&fs::read(self.state("log")).expect("the log can be read"));
                log.and_then(|log| log.set_len(whole as u64)).expect("the log can be cut");
            }
        }
    }

    /// Cuts the power: what no sync covers is gone, or a part of it. Every process above the layer is dead already.
    pub(crate) fn power_cut(&self, model: Model) {
        self.undo(model);
        drop(fs::remove_file(self.state("log")));
        fs::remove_dir_all(self.state("saved"))
            .and_then(|()| fs::create_dir(self.state("saved")))
            .expect("a directory");
    }

    fn undo(&self, model: Model) {
        let bytes = match fs::read(self.state("log")) {
            Err(error) if error.kind() == ErrorKind::NotFound => return,
            bytes => bytes.expect("the log can be read"),
        };
        undo::undo(&undo::parse(&bytes), &self.root, &self.state("saved"), model);
    }

    /// Lets the `nth` sync from now on of a path that contains `pattern` fail with EIO, once. What it should have covered is
    /// never on the disk unless it is written again, even if a later sync succeeds.
    pub(crate) fn fail_sync(&self, pattern: &str, nth: u32) {
        drop(fs::remove_file(self.state("sync-failed")));
        self.tell("fail-sync", &format!("{nth} {pattern}"));
    }

    /// Whether the sync that was to fail has failed.
    pub(crate) fn has_failed_sync(&self) -> bool {
        self.state("sync-failed").try_exists().expect("the directory can be read")
    }

    /// Lets every change of a path that contains `pattern` fail with this error.
    pub(crate) fn fail_writes(&self, pattern: &str, error: Errno) {
        self.tell("fail-write", &format!("{} {pattern}", error as i32));
    }

    /// Lets every sync of a path that contains `pattern` take a time of this range. A process that is running follows at once.
    pub(crate) fn slow_syncs(&self, pattern: &str, times: Range<Duration>) {
        self.tell("slow-sync", &format!("{} {} {pattern}", times.start.as_millis(), times.end.as_millis()));
    }

    /// Makes it a file system without exclusive renames, such as NFS.
    pub(crate) fn without_exclusive_renames(&self) {
        self.tell("no-exclusive", "1");
    }

    /// Ends all failing and all delays; a disk that is slow as [`slow`] says stays so.
    pub(crate) fn heal(&self) {
        for name in ["fail-sync", "fail-write", "slow-sync"] {
            drop(fs::remove_file(self.state(name)));
        }
        self.be_as_usual();
    }

    /// The whole text is there at once.
    fn tell(&self, name: &str, text: &str) {
        let new = self.state("new");
        fs::write(&new, text).and_then(|()| fs::rename(&new, self.state(name))).expect("a file");
    }
}

/// The library, compiled once.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join("libpowercut.so");
        // Another test run may be compiling it, or using it.
        let new = to.with_extension(std::process::id().to_string());
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/powercut/powercut.c");
        let mut cc = Command::new("cc");
        cc.args(["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"]).arg(&new).arg(source);
        Finished::run(&mut cc, SOON).success();
        fs::rename(&new, &to).expect("the library can be moved");
        to
    })
}

#[cfg(test)]
mod tests;
