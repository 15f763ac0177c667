//! Event files as a collector reads them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};

/// One event file.
#[derive(Debug)]
pub(crate) struct EventFile {
    /// Relative to the event directory.
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) lines: Vec<String>,
}

/// Every file that a collector would see, in the order of their sequence numbers (as numbers, not as text).
///
/// # Panics
/// When a file does not consist of whole lines of UTF-8.
pub(crate) fn read(dir: &Path) -> Vec<EventFile> {
    let mut files: Vec<_> = paths(dir)
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(dir).expect("below the directory").display().to_string();
            let bytes = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
            let text = unpacked(&path).unwrap_or_else(|error| panic!("cannot read {name}: {error}"));
            let text = String::from_utf8(text).unwrap_or_else(|error| panic!("{name} is not UTF-8: {error}"));
            assert!(text.is_empty() || text.ends_with('\n'), "{name} ends with a torn line");
            EventFile { lines: text.lines().map(str::to_owned).collect(), bytes, name }
        })
        .collect();
    files.sort_by_cached_key(|file| natural(&file.name));
    files
}

/// What is in a file, unpacked if its name says so.
fn unpacked(path: &Path) -> std::io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mut text = Vec::new();
    match path.extension().and_then(OsStr::to_str) {
        Some("gz") => flate2::read::MultiGzDecoder::new(file).read_to_end(&mut text)?,
        Some("zst") => zstd::Decoder::new(file)?.read_to_end(&mut text)?,
        _ => BufReader::new(file).read_to_end(&mut text)?,
    };
    Ok(text)
}

/// The files that a collector would see: below the directory, not hidden, and no manifests.
pub(crate) fn paths(dir: &Path) -> Vec<PathBuf> {
    named(dir, |name| !name.starts_with('.') && !name.ends_with(MANIFEST))
}

/// The manifests that a collector would see.
pub(crate) fn manifests(dir: &Path) -> Vec<PathBuf> {
    named(dir, |name| !name.starts_with('.') && name.ends_with(MANIFEST))
}

/// The files that no collector would see.
pub(crate) fn hidden(dir: &Path) -> Vec<PathBuf> {
    named(dir, |name| name.starts_with('.'))
}

const MANIFEST: &str = ".manifest.json";

fn named(dir: &Path, wanted: impl Fn(&str) -> bool + Copy) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let entry = entry.expect("a directory entry");
        if entry.file_type().expect("a file type").is_dir() {
            // What is the service's own is no event file.
            if entry.file_name() != ".mtga" {
                found.extend(named(&entry.path(), wanted));
            }
        } else if wanted(&entry.file_name().to_string_lossy()) {
            found.push(entry.path());
        }
    }
    found
}

/// Demands that two sequences of lines are the same; tells the first place where they are not.
pub(crate) fn assert_same(what: &str, expected: &[impl AsRef<str>], found: &[impl AsRef<str>]) {
    let longer = expected.len().max(found.len());
    let differs = |at: &usize| expected.get(*at).map(AsRef::as_ref) != found.get(*at).map(AsRef::as_ref);
    if let Some(at) = (0..longer).find(differs) {
        panic!(
            "{what}: {} lines instead of {}; the first that differs is number {at}\nexpected {:?}\nfound    {:?}",
            found.len(),
            expected.len(),
            expected.get(at).map(AsRef::as_ref),
            found.get(at).map(AsRef::as_ref),
        );
    }
}

/// Demands that each partition's lines are exactly the expected ones, in order, and that there are no others.
pub(crate) fn assert_exactly(expected: &BTreeMap<i32, Vec<String>>, files: &[EventFile]) {
    let found = by_partition(files);
    for (partition, lines) in expected {
        assert_same(&format!("partition {partition}"), lines, found.get(partition).map_or(&[][..], Vec::as_slice));
    }
    for (partition, lines) in found {
        assert!(expected.contains_key(&partition), "partition {partition}: {} lines instead of none", lines.len());
    }
}

/// Text and numbers in turn, so that `2` sorts before `10`.
fn natural(name: &str) -> Vec<(String, u64)> {
    let mut parts = vec![(String::new(), 0_u64)];
    for (at, c) in name.char_indices() {
        let last = parts.last_mut().expect("never empty");
        if let Some(digit) = c.to_digit(10) {
            last.1 = last.1.saturating_mul(10).saturating_add(u64::from(digit));
        } else if at > 0 && name.as_bytes()[at - 1].is_ascii_digit() {
            parts.push((c.to_string(), 0));
        } else {
            last.0.push(c);
        }
    }
    parts
}

#[derive(serde::Deserialize)]
struct Event {
    properties: Properties,
}

#[derive(serde::Deserialize)]
struct Properties {
    sn: String,
}

/// The lines of each partition in the order in which they stand in the files, told by their `sn` (see
/// [`super::records`]).
fn by_partition(files: &[EventFile]) -> BTreeMap<i32, Vec<&str>> {
    let mut partitions: BTreeMap<i32, Vec<&str>> = BTreeMap::new();
    for line in files.iter().flat_map(|file| &file.lines) {
        partitions.entry(origin(line).0).or_default().push(line);
    }
    partitions
}

/// The partition and number of the record that a line was made of.
pub(crate) fn origin(line: &str) -> (i32, u64) {
    // Numbers that no type of ours holds are part of the test, so only what is wanted is taken.
    let event: Event =
        serde_json::from_str(line).unwrap_or_else(|error| panic!("a line that is no JSON, {error}: {line}"));
    let sn = event.properties.sn.split_once('-');
    sn.and_then(|(partition, number)| Some((partition.parse().ok()?, number.parse().ok()?)))
        .unwrap_or_else(|| panic!("a line of no test: {line}"))
}

#[test]
fn sequence_numbers_sort_as_numbers() {
    let mut names = ["events.10.log", "events.9.log", "a/events.1.log"];
    names.sort_by_cached_key(|name| natural(name));
    assert_eq!(names, ["a/events.1.log", "events.9.log", "events.10.log"]);
}
