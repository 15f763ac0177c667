//! `verify`: whether published event files are what their manifests say, and whether the ranges of all of them tile.
//!
//! Directories are walked without following links; directories that begin with a dot are left out. Each event file is
//! read once, one after the other. What is kept in memory is the names, and a range of offsets a manifest.
//!
//! It may look at a directory that is written to, or emptied by a collector: names are listed until no new manifest comes
//! up, so that a seal that is listed has all seals before it listed too, and what is gone with its manifest was taken.
//!
//! A seal of several files is published one after the other, and each file has its name a moment before its manifest has. Meanwhile
//! it is no fault (`publishing`).
//!
//! What it says has three classes: faults, what is sound, and what manifests alone do not tell: whether offsets before the first
//! range were ever to be covered, where that does not begin where its partition was begun; whether a range of an earlier program that has no
//! file had lines; and why offsets had no record of their own, which only the brokers know.
//!
//! **Not here.** Live files have no manifests. Whether the last range ends where the service stands, `offset_checker` tells.
//!
//! It fails when one of the directories that were named cannot be read; everything else is a fault that it reports.

mod contents;
mod publishing;
mod ranges;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use xxhash_rust::xxh3::xxh3_128;

use self::contents::Contents;
use self::ranges::{Judgement, Misfit, Open, Seals};
use crate::cli::{Fault, FaultKind, Missing, Plain, Unknown, UnknownKind, Verification, VerifyOptions};
use crate::control::{Failure, FailureKind};
use crate::msink::manifest::{self, Manifest, Range};
use crate::msink::name::UNDECIDED;

/// Most times that the directories are listed. Each further time needs a manifest that was published within the time that
/// one listing takes.
const LISTINGS: usize = 10;

/// How often progress is told.
const PROGRESS: Duration = Duration::from_millis(500);

/// Checks the directories.
pub(super) fn verify(options: &VerifyOptions, progress: &dyn Fn(&str)) -> Result<Verification, Failure> {
    let mut verifier = Verifier {
        options,
        found: Verification::default(),
        seals: Seals::default(),
        seen: HashMap::new(),
        unnamed: Vec::new(),
        buffer: vec![0; contents::BUFFER],
    };
    let roots = distinct(&options.dirs)?;
    let listing = verifier.list(&roots)?;
    let total: usize = listing.values().map(BTreeSet::len).sum();
    let (mut done, mut told) = (0, Instant::now());
    for (dir, names) in &listing {
        for name in names {
            if told.elapsed() >= PROGRESS {
                told = Instant::now();
                progress(&format!("{done} of {total} files looked at, {} bytes read", verifier.found.summary.bytes));
            }
            verifier.look_at(dir, name, names);
            done += 1;
        }
    }
    verifier.look_again(&roots, &listing)?;
    Ok(verifier.finish())
}

/// The directories without those that lie in another one, each by its real path.
fn distinct(dirs: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut real = BTreeSet::new();
    for dir in dirs {
        real.insert(fs::canonicalize(dir).map_err(|error| cannot_read(dir, &error))?);
    }
    // In order, so that a directory comes before those below it.
    let mut distinct: Vec<PathBuf> = Vec::new();
    for dir in real {
        if !distinct.iter().any(|above| dir.starts_with(above)) {
            distinct.push(dir);
        }
    }
    Ok(distinct)
}

fn cannot_read(dir: &Path, error: &io::Error) -> Failure {
    Failure::new(FailureKind::CannotCreate, format!("cannot read the event directory {}: {error}", dir.display()))
}

/// Names of files by directory.
type Listing = BTreeMap<PathBuf, BTreeSet<OsString>>;

struct Verifier<'a> {
    options: &'a VerifyOptions,
    found: Verification,
    seals: Seals,
    /// Each manifest, by its hash.
    seen: HashMap<u128, PathBuf>,
    /// Files that had no manifest.
    unnamed: Vec<PathBuf>,
    buffer: Vec<u8>,
}

impl Verifier<'_> {
    /// Lists everything, until a listing has no manifest that the ones before had not.
    fn list(&mut self, roots: &[PathBuf]) -> Result<Listing, Failure> {
        let mut listing = Listing::new();
        let mut closed = BTreeMap::new();
        for _ in 0..LISTINGS {
            let mut news = false;
            for root in roots {
                let found = |dir: &Path, name| {
                    let is_manifest = is_manifest(&name);
                    let names = match listing.get_mut(dir) {
                        Some(names) => names,
                        None => listing.entry(dir.to_owned()).or_default(),
                    };
                    news |= names.insert(name) && is_manifest;
                };
                walk(root, found, &mut closed).map_err(|error| cannot_read(root, &error))?;
            }
            if !news {
                break;
            }
        }
        for (dir, error) in closed {
            self.fault(FaultKind::Unreadable, &dir, error);
        }
        Ok(listing)
    }

    fn fault(&mut self, kind: FaultKind, path: &Path, detail: impl Into<String>) {
        let fault = Fault { kind, place: path.display().to_string(), detail: detail.into(), range: None };
        self.found.faults.push(fault);
    }

    /// Looks at one name of a directory that has these names.
    fn look_at(&mut self, dir: &Path, name: &OsString, names: &BTreeSet<OsString>) {
        let path = dir.join(name);
        let shown = name.to_string_lossy();
        if shown.strip_prefix('.').is_some_and(|name| name.ends_with(UNDECIDED)) {
            let detail = "set aside: the group has forgotten whether its offsets were committed";
            self.fault(FaultKind::Undecided, &path, detail);
        } else if shown.starts_with('.') {
            self.found.summary.hidden += 1;
        } else if is_manifest(name) {
            self.look_at_manifest(&path, &shown);
        } else {
            let manifest = manifest::name_for(&shown);
            // Published since it was listed, or taken away.
            let is_fine = names.contains(manifest.as_ref() as &std::ffi::OsStr)
                || fs::symlink_metadata(dir.join(manifest)).is_ok()
                || is_gone(&path);
            match self.options.plain {
                _ if is_fine => {}
                Plain::Live => self.found.summary.live += 1,
                Plain::Fault => self.unnamed.push(path),
            }
        }
    }

    /// Checks a manifest and the file that it is of.
    fn look_at_manifest(&mut self, path: &Path, name: &str) {
        let manifest = match read_manifest(path) {
            Ok(manifest) => manifest,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) if error.raw_os_error().is_some() => {
                return self.fault(FaultKind::Unreadable, path, error.to_string());
            }
            Err(error) => return self.fault(FaultKind::BadManifest, path, error.to_string()),
        };
        if let Some(file) = &manifest.file
            && manifest::name_for(file) != name
        {
            return self.fault(FaultKind::BadManifest, path, format!("it is the manifest of `{file}`: it was renamed"));
        }
        let first = self.seen.insert(xxh3_128(&manifest.to_json()), path.to_owned());
        if first.is_none() {
            self.seals.add(&manifest, path);
        }
        let Some(file) = &manifest.file else { return };
        if let Some(first) = first {
            self.fault(FaultKind::Duplicate, path, format!("the same as {}", first.display()));
        }
        self.look_at_file(&path.with_file_name(file), path, &manifest);
    }

    /// Checks an event file against its manifest. Of its faults the first that explains the others is told.
    fn look_at_file(&mut self, path: &Path, manifest_path: &Path, manifest: &Manifest) {
        let since = if is_older(manifest_path, path) {
            "; it was written after its manifest: changed since, or that is the manifest of an earlier file"
        } else {
            ""
        };
        let length = |found| format!("it has {found} bytes, its manifest says {}{since}", manifest.bytes);
        match check(path, manifest, &mut self.buffer) {
            Ok(Checked::Fine) => {
                let summary = &mut self.found.summary;
                summary.files += 1;
                summary.lines += manifest.lines;
                summary.bytes += manifest.bytes;
            }
            Ok(Checked::Length(found)) => self.fault(FaultKind::Length, path, length(found)),
            Ok(Checked::Contents(Contents { bytes, .. })) if bytes != manifest.bytes => {
                self.fault(FaultKind::Length, path, length(bytes));
            }
            Ok(Checked::Contents(Contents { crc32c, .. })) if crc32c != manifest.crc32c => {
                let detail = format!("its CRC-32C is {crc32c:08x}, its manifest says {:08x}{since}", manifest.crc32c);
                self.fault(FaultKind::Checksum, path, detail);
            }
            Ok(Checked::Contents(Contents { lines, .. })) => {
                let found = lines.map_or_else(|told| told, |count| format!("it has {count} lines"));
                self.fault(
                    FaultKind::Lines,
                    path,
                    format!("{found}, its manifest says {} lines{since}", manifest.lines),
                );
            }
            // Taken away with its manifest.
            Err(error) if error.kind() == io::ErrorKind::NotFound && is_gone(manifest_path) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => match self.options.missing {
                Missing::Allowed => self.found.summary.missing += 1,
                Missing::Fault => self.fault(FaultKind::Missing, path, "its manifest is there, the file is not"),
            },
            Err(error) => self.fault(FaultKind::Unreadable, path, error.to_string()),
        }
    }

    /// Judges the ranges and sums up.
    fn finish(self) -> Verification {
        let Self { mut found, seals, .. } = self;
        found.faults.sort_by(|one, other| one.place.cmp(&other.place));
        found.summary.partitions = seals.partitions();
        found.unknown.sort_by(|one, other| one.place.cmp(&other.place));
        let Judgement { seals, misfits, open } = seals.judge();
        found.summary.ranges = seals;
        found.faults.extend(misfits.into_iter().map(misfit));
        found.summary.faults = found.faults.len() as u64;
        found.unknown.extend(open.into_iter().map(unknown));
        found.summary.unknown = found.unknown.len() as u64;
        found
    }
}

fn misfit(misfit: Misfit) -> Fault {
    let (kind, range, detail) = match misfit {
        Misfit::Gap(range) => {
            let detail = "no file covers them: lost to retention, or taken away with the manifest".to_owned();
            (FaultKind::Gap, range, detail)
        }
        Misfit::Overlap(range, one, other) => {
            let detail = format!("twice, by {} and {}", one.display(), other.display());
            (FaultKind::Overlap, range, detail)
        }
        Misfit::Records(range, wrong, manifest) => {
            (FaultKind::Records, range, format!("{wrong}, by {}", manifest.display()))
        }
    };
    let Range { topic, partition, from, to, .. } = &range;
    let place = format!("{topic}[{partition}] from {from} to {to}");
    Fault { kind, place, detail: format!("{} offsets: {detail}", to - from), range: Some(range) }
}

fn unknown(open: Open) -> Unknown {
    let (kind, range, detail) = match open {
        Open::Publishing(range, manifest) => {
            let detail = format!("{}, beside {}", publishing::UNFINISHED, manifest.display());
            (UnknownKind::Publishing, range, detail)
        }
        Open::Beginning(range, why) => (UnknownKind::Beginning, range, why),
        Open::Empty(range, manifest) => {
            let detail = format!("{} does not tell whether a record of them became a line", manifest.display());
            (UnknownKind::Empty, range, detail)
        }
        Open::WithoutRecord(range, count, manifest) => {
            let detail = format!(
                "{count} of its {} offsets had no record when they were read, by {}: control records, aborted transactions and compaction leave such, and only the brokers know whether that is all",
                range.to - range.from,
                manifest.display()
            );
            (UnknownKind::NoRecord, range, detail)
        }
    };
    let Range { topic, partition, from, to, .. } = &range;
    let place = match kind {
        UnknownKind::Beginning if *from == 0 => format!("{topic}[{partition}] before {to}"),
        UnknownKind::Beginning | UnknownKind::Empty | UnknownKind::NoRecord | UnknownKind::Publishing => {
            format!("{topic}[{partition}] from {from} to {to}")
        }
    };
    Unknown { kind, place, detail, range: Some(range) }
}

/// Whether one file was written before another one, as far as the system tells.
fn is_older(one: &Path, other: &Path) -> bool {
    let modified = |path: &Path| fs::symlink_metadata(path).and_then(|metadata| metadata.modified()).ok();
    modified(one).zip(modified(other)).is_some_and(|(one, other)| one < other)
}

fn is_manifest(name: &OsString) -> bool {
    let name = name.to_string_lossy();
    name.ends_with(manifest::SUFFIX) && !name.starts_with('.')
}

fn is_gone(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Tells each regular file below a directory. Directories further down that cannot be read are noted.
fn walk(root: &Path, mut found: impl FnMut(&Path, OsString), closed: &mut BTreeMap<PathBuf, String>) -> io::Result<()> {
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        let read = fs::read_dir(&dir).and_then(|entries| {
            for entry in entries {
                let entry = entry?;
                // Of the entry itself: links are neither.
                let kind = entry.file_type()?;
                if kind.is_file() {
                    found(&dir, entry.file_name());
                } else if kind.is_dir() && !entry.file_name().to_string_lossy().starts_with('.') {
                    dirs.push(entry.path());
                }
            }
            Ok(())
        });
        match read {
            Err(error) if dir == root => return Err(error),
            Err(error) if error.kind() != io::ErrorKind::NotFound => drop(closed.insert(dir, error.to_string())),
            _ => {}
        }
    }
    Ok(())
}

/// Opens a regular file; a link is refused, and a pipe that someone put there holds nobody up.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no regular file")) }
}

fn read_manifest(path: &Path) -> io::Result<Manifest> {
    let mut bytes = Vec::new();
    open(path)?.take(manifest::MAX_SIZE as u64 + 1).read_to_end(&mut bytes)?;
    Manifest::parse(&bytes).map_err(io::Error::other)
}

/// What an event file is to its manifest.
enum Checked {
    /// As it says.
    Fine,
    /// So long, and not read for that reason.
    Length(u64),
    /// Different in one thing at least.
    Contents(Contents),
}

fn check(path: &Path, manifest: &Manifest, buffer: &mut [u8]) -> io::Result<Checked> {
    let file = open(path)?;
    let length = file.metadata()?.len();
    if length != manifest.bytes {
        return Ok(Checked::Length(length));
    }
    let contents = contents::read(file, manifest.compression, buffer)?;
    let told = Contents { bytes: manifest.bytes, crc32c: manifest.crc32c, lines: Ok(manifest.lines) };
    Ok(if contents == told { Checked::Fine } else { Checked::Contents(contents) })
}
