//! Hidden files (`sealed`): taken out of the sink together, published, set aside, removed.
//!
//! **Promise.** A file gets its name once, durably, and a manifest is whole or not there. Every step may be repeated after any
//! interruption.
//!
//! **Not here.** When they are published and who decides that is the delivery's business.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::FileExt;

use super::{Active, FileSink, Now, RotateReason, SyncFailed};
use crate::config::Visibility;
use crate::fault;
use crate::msink::FileKey;
use crate::msink::manifest;
use crate::msink::name::hidden;
use crate::msource::TopicPartition;
use crate::msource::journal::{FileState, SealedFile};

/// A hidden file is not as it was left: what its partition has grown by is not whole any more. Comes inside an [`io::Error`].
#[derive(Debug, thiserror::Error)]
#[error("somebody removed, replaced or shortened the hidden file {0}")]
pub struct HiddenGone(pub String);

/// Whose hidden files are published together: a partition's, or (`None`) those of retries.
pub type Group = Option<TopicPartition>;

impl FileSink {
    /// The groups with a hidden file that is due. That it got no line lately is no reason: others of its group may have.
    pub fn due_groups(&self, now: Now) -> BTreeMap<Group, RotateReason> {
        let due = |(key, active): (&FileKey, &Active)| match self.due(active, key, now)? {
            RotateReason::Idle => None,
            reason => Some((key.partition(), reason)),
        };
        self.active.iter().filter_map(due).collect()
    }

    /// Takes hidden files with lines out: they get no further ones. Returns the id and group of each.
    pub fn take(&mut self, wanted: &BTreeMap<Group, RotateReason>) -> Vec<(Group, u64)> {
        let (mut taken, complete): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.complete).into_iter().partition(|(group, _)| wanted.contains_key(group));
        self.complete = complete;
        let is_wanted =
            |(key, active): &(&FileKey, &Active)| active.length > 0 && wanted.contains_key(&key.partition());
        let keys: Vec<_> = self.active.iter().filter(is_wanted).map(|(key, _)| key.clone()).collect();
        for key in keys {
            let group = key.partition();
            if let (Some(active), Some(&reason)) = (self.forget(&key), wanted.get(&group)) {
                tracing::info!(file = active.path, bytes = active.length, reason = reason.name(), "finished a file");
                self.rotated[reason as usize] += 1;
                taken.push((group, active.id));
            }
        }
        taken
    }

    /// Forgets the hidden files of a partition, which are about to be removed, and one that was about to be created.
    pub fn forget_partition(&mut self, partition: &TopicPartition) {
        let keys: Vec<_> =
            self.active.keys().filter(|key| key.partition().as_ref() == Some(partition)).cloned().collect();
        for key in keys {
            self.forget(&key);
        }
        self.complete.retain(|(group, _)| group.as_ref() != Some(partition));
        // The ledger forgets it too: a file under its id would belong to nobody.
        self.intended.take_if(|intent| intent.key.partition().as_ref() == Some(partition));
    }

    /// Gives a hidden file its name, durably, and puts its manifest beside it. May be repeated after any interruption.
    pub fn publish(&self, file: &SealedFile, manifest: &[u8]) -> io::Result<()> {
        let path = hidden(&file.name);
        if self.dir.is_taken(&path)? {
            self.dir.rename(&path, &file.name).map_err(|error| {
                let text = format!("cannot give {path} its name, is there another {}? {error}", file.name);
                io::Error::new(error.kind(), text)
            })?;
        } else if !self.dir.is_taken(&file.name)? {
            // A collector may have been faster than the restart after a crash; nobody else should have.
            tracing::error!(file = file.name, lines = file.lines, "a hidden file was removed before it was published");
        }
        fault::point("publish.renamed");
        self.publish_manifest(&manifest::name_for(&file.name), manifest)
    }

    /// Writes a manifest under its own name, whole or not at all.
    pub fn publish_manifest(&self, name: &str, manifest: &[u8]) -> io::Result<()> {
        if self.dir.is_taken(name)? {
            // An attempt before this one may have come to its end in memory only.
            return self.dir.sync(name);
        }
        let path = hidden(name);
        self.dir.remove(&path)?;
        let (file, _) = self.dir.create(&path, self.permissions)?;
        file.write_all_at(manifest, 0)?;
        file.sync_all().map_err(|error| SyncFailed::io("a manifest", error))?;
        fault::point("publish.manifest");
        self.dir.rename(&path, name)
    }

    /// Sets a hidden file aside that nobody can decide about; returns its new name.
    pub fn set_aside(&self, file: &SealedFile) -> io::Result<String> {
        let path = hidden(&file.name);
        let aside = format!("{path}.undecided");
        if self.dir.is_taken(&path)? {
            self.dir.rename(&path, &aside)?;
        } else if self.dir.is_taken(&aside)? {
            self.dir.sync(&aside)?;
        }
        Ok(aside)
    }

    /// Fails with [`HiddenGone`] when a hidden file is not at its place any more, or shorter than it was left.
    pub fn check_hidden(&self, file: &FileState) -> io::Result<()> {
        let path = file.path();
        match self.dir.open_existing(&path) {
            Ok((found, inode)) if inode == file.inode && found.metadata()?.len() >= file.length => Ok(()),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => {
                // What is wrong with the whole directory passes, and is waited for.
                self.dir.check()?;
                Err(io::Error::other(HiddenGone(path)))
            }
        }
    }

    /// Removes a hidden file.
    pub fn remove_hidden(&self, name: &str) -> io::Result<()> {
        self.dir.remove(&hidden(name))
    }

    /// A live file that is gone costs its lines. A hidden one was promised to be published as a whole.
    pub(super) fn refuse_foreign(&self, key: &FileKey) -> io::Result<()> {
        match self.active.get(key) {
            Some(active) if self.visibility == Visibility::Sealed => {
                Err(io::Error::other(HiddenGone(active.path.clone())))
            }
            _ => Ok(()),
        }
    }
}
