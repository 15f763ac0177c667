//! Publications that have not come to their end: they are under way, or a crash has cut them short and the next start goes on.
//!
//! A manifest is written under a temporary name before its file has its own, and keeps that until the journal has that the whole
//! seal is published (on file systems without second names, until it has its own). So a seal that lacks lines, or a file without
//! a manifest, is no fault while such a manifest says so. It hides no loss:
//! - A file that has its name is checked against the temporary manifest as against any other.
//! - What a seal lacks must be there: in files, hidden or not, with temporary manifests. Only while someone works in the event
//!   directory may it be in files that have none yet, and who works there reports a file that is gone, and ends the publication.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use super::ranges::Rest;
use super::{Listing, Verifier, is_gone, is_manifest, read_manifest};
use crate::cli::{FaultKind, Unknown, UnknownKind};
use crate::control::Failure;
use crate::flock::Flock;
use crate::msink::dir::PRIVATE;
use crate::msink::manifest::{self, Manifest, Source};
use crate::msink::name::is_temporary;

/// What is said of one.
pub(super) const UNFINISHED: &str =
    "its publication has not come to its end: it goes on while the service runs, and with the next start after a crash";

/// A manifest under its temporary name.
struct Begun {
    path: PathBuf,
    manifest: Manifest,
}

impl Begun {
    /// The event file that it is of.
    fn file(&self) -> Option<PathBuf> {
        self.manifest.file.as_ref().map(|name| self.path.with_file_name(name))
    }

    /// The lines of its file that no other manifest tells.
    fn lines(&self) -> u64 {
        let Some(file) = self.file() else { return 0 };
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_told = !is_gone(&file.with_file_name(manifest::name_for(&name)));
        let is_there = |path: &Path| {
            fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.len() >= self.manifest.bytes)
        };
        let is_whole = is_there(&file) || is_there(&file.with_file_name(format!(".{name}")));
        if is_whole && !is_told { self.manifest.lines } else { 0 }
    }
}

impl Verifier<'_> {
    /// Looks at what may be in the middle of its publication once more.
    pub(super) fn look_again(&mut self, roots: &[PathBuf], listing: &Listing) -> Result<(), Failure> {
        if self.unnamed.is_empty() && !self.seals.lack_lines() {
            return Ok(());
        }
        let begun: Vec<_> = listing.keys().flat_map(|dir| read(dir)).collect();
        // What has come to its end before that has all of its manifests by now.
        let nothing = BTreeSet::new();
        for (dir, names) in self.list(roots)? {
            let known = listing.get(&dir).unwrap_or(&nothing);
            for name in names.difference(known).filter(|name| is_manifest(name)) {
                let path = dir.join(name);
                if read_manifest(&path).is_ok_and(|manifest| self.seals.knows(&manifest)) {
                    self.look_at_manifest(&path, &name.to_string_lossy());
                }
            }
        }
        let rest = roots.iter().any(|root| is_in_use(root)).then_some(Rest::Open);
        for begun in &begun {
            self.seals.begun(&begun.manifest, &begun.path, rest.unwrap_or_else(|| Rest::Lines(begun.lines())));
        }
        for path in std::mem::take(&mut self.unnamed) {
            self.look_at_unnamed(&path, &begun);
        }
        Ok(())
    }

    /// Looks at a file that had no manifest.
    fn look_at_unnamed(&mut self, path: &Path, begun: &[Begun]) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if is_gone(path) || !is_gone(&path.with_file_name(manifest::name_for(&name))) {
            return;
        }
        let Some(begun) = begun.iter().find(|begun| begun.file().as_deref() == Some(path)) else {
            return self.fault(FaultKind::NoManifest, path, "it has no manifest: nothing tells what it should be");
        };
        self.look_at_file(path, &begun.path, &begun.manifest);
        let range = match &begun.manifest.source {
            Source::Range(range) => Some(range.clone()),
            Source::Retries => None,
        };
        let (place, detail) = (path.display().to_string(), format!("its manifest has a temporary name: {UNFINISHED}"));
        self.found.unknown.push(Unknown { kind: UnknownKind::Publishing, place, detail, range });
    }
}

/// Whether another process works in an event directory; who may not look is told so too. The lock is taken for a moment, shared:
/// who wants it meanwhile tries again.
fn is_in_use(dir: &Path) -> bool {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    match OpenOptions::new().read(true).custom_flags(flags.bits()).open(dir.join(PRIVATE)) {
        Ok(private) => Flock::shared(&private).is_ok_and(|held| held.is_none()),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// The manifests in a directory that have their temporary names.
fn read(dir: &Path) -> Vec<Begun> {
    let names = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let temporary = names.filter(|name| name.to_str().is_some_and(is_temporary));
    // One that cannot be read says nothing.
    temporary
        .filter_map(|name| {
            let path = dir.join(name);
            Some(Begun { manifest: read_manifest(&path).ok()?, path })
        })
        .collect()
}
