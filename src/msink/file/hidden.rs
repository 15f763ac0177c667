//! Hidden files (`sealed`): taken out of the sink together, published, set aside, removed.
//!
//! **Promise.** A file gets its name once, durably, and a manifest is whole or not there. Every step may be repeated after any
//! interruption. Nothing is removed or replaced but hidden files of a range that is refused and manifests under temporary names,
//! which no event file can have (on some file systems with an exception, see [`crate::msink::dir::EventDir::rename`]). The order of files is that of their ids.
//!
//! **Not here.** When they are published and who decides that is the delivery's business.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt;

use super::{Active, FileSink, Now, RotateReason, SyncFailed};
use crate::config::Visibility;
use crate::fault;
use crate::msink::FileKey;
use crate::msink::dir::blames_name;
use crate::msink::manifest::{self, Manifest};
use crate::msink::name::{UNDECIDED, hidden, temporary};
use crate::msource::TopicPartition;
use crate::msource::journal::{FileState, SealedFile};

/// A hidden file is not as it was left: what its partition has grown by is not whole any more. Comes inside an [`io::Error`].
#[derive(Debug, thiserror::Error)]
#[error("another process removed, replaced or shortened the hidden file {0}")]
pub struct HiddenGone(pub String);

/// What is there of a hidden file whose publication is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remains {
    /// All of it, hidden.
    Hidden,
    /// It has its name, or had it when a reader took it. Its manifest may be missing.
    Named,
    /// It is hidden, and shorter than it was left.
    Short,
    /// Nothing: another process removed it while it was hidden.
    Gone,
}

/// Whose hidden files are published together: a partition's, or (`None`) those of retries.
pub type Group = Option<TopicPartition>;

/// What the publication of a file leaves behind, to be removed once the journal has what became of it.
pub fn leftover(name: &str) -> String {
    temporary(&manifest::name_for(name))
}

impl FileSink {
    /// The groups with a hidden file that is due. That it got no line lately is no reason: others of its group may have.
    pub fn due_groups(&self, now: Now) -> BTreeMap<Group, RotateReason> {
        let due = |(key, active): (&FileKey, &Active)| match self.due(active, key, now)? {
            RotateReason::Idle => None,
            reason => Some((key.partition(), reason)),
        };
        let in_order = self.keys.values().filter_map(|key| self.active.get_key_value(key));
        in_order.filter_map(due).collect()
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
        taken.sort_unstable_by_key(|(_, id)| *id);
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

    /// What is there of a hidden file whose publication is decided. `manifest` is what its manifest will be.
    pub fn remains(&self, file: &SealedFile, manifest: &Manifest) -> io::Result<Remains> {
        match self.dir.open_existing(&hidden(&file.name)) {
            Ok((found, _)) if found.metadata()?.len() >= file.bytes => return Ok(Remains::Hidden),
            Ok(_) => return Ok(Remains::Short),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            // What is wrong with the whole directory passes, and is waited for.
            Err(_) => self.dir.check()?,
        }
        let name = manifest::name_for(&file.name);
        let begun = self.dir.is_taken(&file.name)?
            || self.has_manifest(&temporary(&name), manifest)?
            || self.has_manifest(&name, manifest)?;
        Ok(if begun { Remains::Named } else { Remains::Gone })
    }

    /// Gives a hidden file its name, durably, and puts its manifest beside it. May be repeated after any interruption.
    ///
    /// The manifest is written before the file has its name, under a temporary one, and keeps that until the journal has that
    /// the range is published (see [`leftover`]): so a file that is neither hidden nor published any more was taken
    /// by a reader if a manifest of it is there, and was removed before if there is none. A reader may take the manifest under
    /// the other name with the file.
    pub fn publish(&self, file: &SealedFile, manifest: &Manifest) -> io::Result<()> {
        let name = manifest::name_for(&file.name);
        let path = hidden(&file.name);
        if !self.prepare_manifest(&name, manifest)? {
            // An attempt before this one may have come to its end in memory only.
            return self.dir.sync(&name);
        }
        if self.dir.is_taken(&path)? {
            self.dir.rename(&path, &file.name).map_err(|error| {
                let text = format!("cannot give {path} its name, is there another {}? {error}", file.name);
                io::Error::new(error.kind(), text)
            })?;
        }
        fault::point("publish.renamed");
        self.dir.link(&temporary(&name), &name)
    }

    /// Writes a manifest under its own name, whole or not at all.
    pub fn publish_manifest(&self, name: &str, manifest: &Manifest) -> io::Result<()> {
        if self.prepare_manifest(name, manifest)? {
            self.dir.rename(&temporary(name), name)
        } else {
            self.dir.sync(name)
        }
    }

    /// Writes a manifest under its temporary name; false when it has its own already. Another one under that name is of a file
    /// before this one, and is nobody's to be removed but the operator's.
    fn prepare_manifest(&self, name: &str, manifest: &Manifest) -> io::Result<bool> {
        if self.dir.is_taken(name)? {
            if self.has_manifest(name, manifest)? {
                return Ok(false);
            }
            let text = format!("cannot publish beside {name}, the manifest of another file: move it away");
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        let path = temporary(name);
        let file = if let Some((file, bytes)) = self.manifest(&path, manifest)? {
            // It may be all that tells that the file was published. A sync that failed may have lost it to the disk.
            file.write_all_at(&bytes, 0)?;
            file
        } else {
            self.dir.remove(&path)?;
            let (file, _) = self.dir.create(&path, self.permissions)?;
            file.write_all_at(&manifest.to_json(), 0)?;
            file
        };
        file.sync_all().map_err(|error| SyncFailed::io("a manifest", error))?;
        fault::point("publish.manifest");
        Ok(true)
    }

    /// Whether a file is a manifest that says the same as this one.
    fn has_manifest(&self, path: &str, manifest: &Manifest) -> io::Result<bool> {
        Ok(self.manifest(path, manifest)?.is_some())
    }

    /// A file and what is in it, if that is a manifest that says the same as this one.
    fn manifest(&self, path: &str, manifest: &Manifest) -> io::Result<Option<(File, Vec<u8>)>> {
        let (file, _) = match self.dir.open_existing(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound || blames_name(&error) => return Ok(None),
            opened => opened?,
        };
        let mut bytes = Vec::new();
        (&file).take(manifest::MAX_SIZE as u64 + 1).read_to_end(&mut bytes)?;
        Ok(Manifest::parse(&bytes).is_ok_and(|found| found.is_of(manifest)).then_some((file, bytes)))
    }

    /// Sets a hidden file aside that nobody can decide about; returns its new name.
    pub fn set_aside(&self, file: &SealedFile) -> io::Result<String> {
        let path = hidden(&file.name);
        let aside = format!("{path}{UNDECIDED}");
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

    /// Removes a file that no reader takes: a hidden one, or one under a temporary name.
    pub fn remove_hidden(&self, path: &str) -> io::Result<()> {
        self.dir.remove(path)
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
