//! Every kind of fault, in directories made by hand.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use tempfile::TempDir;

use super::*;
use crate::cli::Summary;
use crate::config::Compression;
use crate::msink::manifest::Source;
use crate::msink::name::temporary;

/// A directory with sealed files.
struct Sealed {
    root: TempDir,
    plain: Plain,
    missing: Missing,
}

fn range(partition: i32, from: i64, to: i64) -> Source {
    Source::Range(Range { topic: "t".to_owned(), topic_id: "i".to_owned(), partition, from, to })
}

impl Sealed {
    fn new() -> Self {
        Self { root: TempDir::new().unwrap(), plain: Plain::Fault, missing: Missing::Fault }
    }

    /// Two partitions, three seals, one of them of two files and one without a line; and a file of retries.
    fn filled() -> Self {
        let sealed = Self::new();
        sealed.publish("a/t.1.log", "a1\na2\n", range(0, 0, 5), 1);
        sealed.publish("b/t.2.log", "b1\n", range(0, 0, 5), 1);
        sealed.publish("a/t.3.log", "a3\n", range(0, 5, 6), 2);
        sealed.publish_nothing(0, 6, 9, 3);
        sealed.publish("a/t.4.log", "a4\na5\n", range(1, 100, 102), 4);
        sealed.publish("t.5.log", "r1\n", Source::Retries, 5);
        sealed
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn manifest(&self, name: &str, bytes: &[u8], lines: u64, source: Source, number: u64) -> Manifest {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let compression = match path.extension().and_then(|extension| extension.to_str()) {
            Some("gz") => Compression::Gzip,
            Some("zst") => Compression::Zstd,
            _ => Compression::None,
        };
        Manifest {
            file: Some(path.file_name().unwrap().to_str().unwrap().to_owned()),
            lines,
            bytes: bytes.len() as u64,
            crc32c: crc32c::crc32c(bytes),
            compression,
            source,
            home: "h".to_owned(),
            incarnation: 1,
            number,
            seal: None,
        }
    }

    fn put(&self, name: &str, bytes: &[u8], manifest: &Manifest) {
        fs::write(self.path(name), bytes).unwrap();
        fs::write(self.path(&manifest::name_for(name)), manifest.to_json()).unwrap();
    }

    fn publish(&self, name: &str, text: &str, source: Source, number: u64) {
        let manifest = self.manifest(name, text.as_bytes(), text.lines().count() as u64, source, number);
        self.put(name, text.as_bytes(), &manifest);
    }

    fn publish_nothing(&self, partition: i32, from: i64, to: i64, number: u64) {
        let Source::Range(range) = range(partition, from, to) else { unreachable!() };
        let mut manifest = self.manifest("none", b"", 0, Source::Range(range.clone()), number);
        manifest.file = None;
        fs::write(self.path(&manifest::name_of_empty(&range, number)), manifest.to_json()).unwrap();
    }

    fn verify_with(&self, others: &[&Self]) -> Verification {
        let dirs = std::iter::once(self).chain(others.iter().copied()).map(|one| one.root.path().to_owned()).collect();
        verify(&VerifyOptions { dirs, plain: self.plain, missing: self.missing }, &|_| {}).unwrap()
    }

    fn verify(&self) -> Verification {
        self.verify_with(&[])
    }

    /// The only fault: its kind, its place below the directory, and what was found.
    #[track_caller]
    fn fault(&self) -> (FaultKind, String, String) {
        let found = self.verify();
        assert_eq!(found.summary.faults, 1, "{found:#?}");
        let [fault] = &found.faults[..] else { panic!("{found:#?}") };
        let root = format!("{}/", self.root.path().canonicalize().unwrap().display());
        (fault.kind, fault.place.replace(&root, ""), fault.detail.replace(&root, ""))
    }

    #[track_caller]
    fn assert_fault(&self, kind: FaultKind, place: &str, detail: &str) {
        let fault = self.fault();
        assert_eq!((fault.0, fault.1.as_str()), (kind, place));
        assert!(fault.2.contains(detail), "{}", fault.2);
    }
}

#[test]
fn a_directory_as_it_was_published_has_no_faults() {
    let found = Sealed::filled().verify();
    let summary = Summary { files: 5, lines: 7, bytes: 21, partitions: 2, ranges: 4, unknown: 2, ..Summary::default() };
    assert_eq!((found.faults, found.summary), (Vec::new(), summary));
    assert_eq!(Sealed::new().verify(), Verification::default());
}

#[test]
fn compressed_files_are_checked_as_they_lie_and_counted_as_they_read() {
    let sealed = Sealed::new();
    let zstd = [zstd::encode_all(&b"1\n2\n"[..], 1).unwrap(), zstd::encode_all(&b"3\n"[..], 1).unwrap()].concat();
    sealed.put("t.1.log.zst", &zstd, &sealed.manifest("t.1.log.zst", &zstd, 3, range(0, 0, 3), 1));
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::Write::write_all(&mut gzip, b"4\n").unwrap();
    let gzip = gzip.finish().unwrap();
    sealed.put("t.2.log.gz", &gzip, &sealed.manifest("t.2.log.gz", &gzip, 1, range(0, 3, 4), 2));
    let bytes = (zstd.len() + gzip.len()) as u64;
    let summary = Summary { files: 2, lines: 4, bytes, partitions: 1, ranges: 2, ..Summary::default() };
    assert_eq!(sealed.verify(), Verification { summary, ..Verification::default() });
    // Right bytes of the wrong thing.
    let plain = b"4\n";
    let manifest =
        Manifest { compression: Compression::Gzip, ..sealed.manifest("t.2.log.gz", plain, 1, range(0, 3, 4), 2) };
    sealed.put("t.2.log.gz", plain, &manifest);
    sealed.assert_fault(FaultKind::Lines, "t.2.log.gz", "cannot be decompressed: ");
}

#[test]
fn every_flipped_bit_is_found() {
    for bit in 0..48 {
        let sealed = Sealed::filled();
        let mut bytes = b"a1\na2\n".to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs::write(sealed.path("a/t.1.log"), bytes).unwrap();
        sealed.assert_fault(FaultKind::Checksum, "a/t.1.log", ", its manifest says ");
    }
}

#[test]
fn other_lengths_and_other_numbers_of_lines_are_found() {
    let sealed = Sealed::filled();
    fs::write(sealed.path("a/t.1.log"), "a1\n").unwrap();
    sealed.assert_fault(FaultKind::Length, "a/t.1.log", "it has 3 bytes, its manifest says 6");
    for (lines, told) in [(1, "it has 2 lines, its manifest says 1 lines"), (3, "it has 2 lines")] {
        let manifest = sealed.manifest("a/t.1.log", b"a1\na2\n", lines, range(0, 0, 5), 1);
        sealed.put("a/t.1.log", b"a1\na2\n", &manifest);
        sealed.assert_fault(FaultKind::Lines, "a/t.1.log", told);
    }
    let torn = b"a1\na2";
    sealed.put("a/t.1.log", torn, &sealed.manifest("a/t.1.log", torn, 2, range(0, 0, 5), 1));
    sealed.assert_fault(FaultKind::Lines, "a/t.1.log", "its last line is torn, its manifest says 2 lines");
}

#[test]
fn a_missing_file_is_a_fault_unless_collectors_delete() {
    let mut sealed = Sealed::filled();
    fs::remove_file(sealed.path("b/t.2.log")).unwrap();
    sealed.assert_fault(FaultKind::Missing, "b/t.2.log", "its manifest is there");
    sealed.missing = Missing::Allowed;
    let found = sealed.verify();
    assert!(found.faults.is_empty(), "{found:#?}");
    assert_eq!((found.summary.missing, found.summary.files), (1, 4));
}

#[test]
fn a_file_without_a_manifest_is_a_fault_unless_it_is_live() {
    let mut sealed = Sealed::filled();
    fs::write(sealed.path("a/t.9.log"), "x\n").unwrap();
    sealed.assert_fault(FaultKind::NoManifest, "a/t.9.log", "it has no manifest");
    sealed.plain = Plain::Live;
    let found = sealed.verify();
    assert!(found.faults.is_empty(), "{found:#?}");
    assert_eq!((found.summary.live, found.summary.files), (1, 5));
}

/// The first of two files of a seal is published, the manifest of the second one has its temporary name.
fn half_published() -> (Sealed, PathBuf) {
    let sealed = Sealed::new();
    let told = manifest::Seal { consumed: 5, written: 3, filtered: 2, rejected: 0, after: None, begun: None };
    for (name, text) in [("t.1.log", "1\n2\n"), ("t.2.log", "3\n")] {
        let lines = text.lines().count() as u64;
        let whole = sealed.manifest(name, text.as_bytes(), lines, range(0, 0, 5), 7);
        let whole = Manifest { seal: Some(told.clone()), ..whole };
        sealed.put(name, text.as_bytes(), &whole);
        let temporary = sealed.path(&temporary(&manifest::name_for(name)));
        fs::hard_link(sealed.path(&manifest::name_for(name)), temporary).unwrap();
    }
    let second = sealed.path("t.2.log");
    fs::remove_file(sealed.path("t.2.log.manifest.json")).unwrap();
    (sealed, second)
}

fn publishing(found: &Verification) -> usize {
    found.unknown.iter().filter(|unknown| unknown.kind == UnknownKind::Publishing).count()
}

#[test]
fn a_publication_that_was_cut_short_is_no_fault_while_all_of_it_is_there() {
    let (sealed, second) = half_published();
    let found = sealed.verify();
    assert_eq!((&found.faults, publishing(&found)), (&Vec::new(), 2), "the file has its name, its manifest has not");
    fs::rename(&second, sealed.path(".t.2.log")).unwrap();
    let found = sealed.verify();
    assert_eq!((&found.faults, publishing(&found)), (&Vec::new(), 1), "the file is hidden");
}

#[test]
fn what_is_missing_of_a_publication_that_was_cut_short_is_a_fault() {
    let (sealed, second) = half_published();
    fs::write(&second, "4\n").unwrap();
    sealed.assert_fault(FaultKind::Checksum, "t.2.log", ", its manifest says ");
    let place = "t[0] from 0 to 5";
    fs::write(sealed.path(".t.2.log"), "").unwrap();
    fs::remove_file(&second).unwrap();
    sealed.assert_fault(FaultKind::Records, place, "the manifests of its files have 2");
    fs::remove_file(sealed.path(".t.2.log")).unwrap();
    sealed.assert_fault(FaultKind::Records, place, "the manifests of its files have 2");
    // While someone works there, the lines may be in a file whose manifest is not written yet.
    let owner = crate::msink::dir::EventDir::open(sealed.root.path()).unwrap();
    assert_eq!(sealed.verify().faults, Vec::new());
    fs::remove_file(sealed.path(&temporary("t.1.log.manifest.json"))).unwrap();
    fs::remove_file(sealed.path(&temporary("t.2.log.manifest.json"))).unwrap();
    sealed.assert_fault(FaultKind::Records, place, "the manifests of its files have 2");
    drop(owner);
}

#[test]
fn a_manifest_that_is_damaged_renamed_or_too_large_is_found() {
    let path = "t.5.log.manifest.json";
    let sealed = Sealed::filled();
    let later = fs::read_to_string(sealed.path(path)).unwrap().replace("\"version\": 1", "\"version\": 9");
    for (bytes, told) in [
        (&b"{"[..], "EOF while parsing"),
        (b"\xff", "expected value"),
        (b"", "EOF while parsing"),
        (later.as_bytes(), "version 9"),
        (&vec![b' '; 1 << 20], "a manifest has at most"),
    ] {
        fs::write(sealed.path(path), bytes).unwrap();
        sealed.assert_fault(FaultKind::BadManifest, path, told);
    }
    let sealed = Sealed::filled();
    fs::rename(sealed.path("t.5.log"), sealed.path("t.6.log")).unwrap();
    fs::rename(sealed.path(path), sealed.path("t.6.log.manifest.json")).unwrap();
    sealed.assert_fault(FaultKind::BadManifest, "t.6.log.manifest.json", "it is the manifest of `t.5.log`");
}

/// What a seal amounts to that follows a commit of this number, if any.
fn told(consumed: u64, written: u64, filtered: u64, rejected: u64, after: Option<u64>) -> manifest::Seal {
    let after = after.map(|number| manifest::After { home: "h".to_owned(), incarnation: 1, number });
    manifest::Seal { consumed, written, filtered, rejected, after, begun: None }
}

impl Sealed {
    fn publish_told(
        &self,
        name: &str,
        text: &str,
        source: Source,
        number: u64,
        seal: impl Into<Option<manifest::Seal>>,
    ) {
        let lines = text.lines().count() as u64;
        let manifest = Manifest { seal: seal.into(), ..self.manifest(name, text.as_bytes(), lines, source, number) };
        self.put(name, text.as_bytes(), &manifest);
    }

    fn publish_empty(&self, from: i64, to: i64, number: u64, seal: impl Into<Option<manifest::Seal>>) {
        let Source::Range(range) = range(0, from, to) else { unreachable!() };
        let none = self.manifest("none", b"", 0, Source::Range(range.clone()), number);
        let manifest = Manifest { file: None, seal: seal.into(), ..none };
        fs::write(self.path(&manifest::name_of_empty(&range, number)), manifest.to_json()).unwrap();
    }

    /// What cannot be known: kinds and places.
    fn unknown(&self) -> Vec<(&'static str, String)> {
        let found = self.verify();
        assert_eq!(found.faults, [], "{found:#?}");
        assert_eq!(found.summary.unknown, found.unknown.len() as u64);
        found.unknown.into_iter().map(|unknown| (unknown.kind.name(), unknown.place)).collect()
    }
}

#[test]
fn a_range_without_its_lines_is_found_and_one_that_was_filtered_is_not() {
    let sealed = Sealed::new();
    sealed.publish_empty(0, 5, 1, told(5, 0, 4, 1, None));
    assert_eq!(sealed.unknown(), []);
    sealed.publish_empty(5, 5000, 2, told(4995, 4995, 0, 0, Some(1)));
    sealed.assert_fault(
        FaultKind::Records,
        "t[0] from 5 to 5000",
        "it has 4995 lines, the manifests of its files have 0",
    );

    // A file that went with its manifest, while another one of its seal is left.
    let sealed = Sealed::new();
    for name in ["a.1.log", "b.2.log"] {
        sealed.publish_told(name, "1\n2\n", range(0, 0, 4), 1, told(4, 4, 0, 0, Some(0)));
    }
    assert_eq!(sealed.unknown(), []);
    fs::remove_file(sealed.path("b.2.log")).unwrap();
    fs::remove_file(sealed.path("b.2.log.manifest.json")).unwrap();
    sealed.assert_fault(FaultKind::Records, "t[0] from 0 to 4", "it has 4 lines, the manifests of its files have 2");

    let sealed = Sealed::new();
    sealed.publish_told("a.1.log", "1\n", range(0, 0, 4), 1, told(4, 1, 2, 0, None));
    sealed.assert_fault(
        FaultKind::Records,
        "t[0] from 0 to 4",
        "4 records in 4 offsets: 1 lines, 2 filtered, 0 rejected",
    );
    let sealed = Sealed::new();
    sealed.publish_told("a.1.log", "1\n", range(0, 0, 4), 1, told(5, 1, 4, 0, None));
    sealed.assert_fault(FaultKind::Records, "t[0] from 0 to 4", "5 records in 4 offsets");
}

#[test]
fn what_manifests_do_not_tell_is_said_and_is_no_fault() {
    // A manifest of an earlier program over a range without a file.
    let sealed = Sealed::new();
    sealed.publish_empty(0, 5, 1, None);
    assert_eq!(sealed.unknown(), [("empty", "t[0] from 0 to 5".to_owned())]);
    // That nothing is known of a commit before it, or that the group was told of the place, says nothing of what was before.
    for (after, begun, unknown) in [
        (None, None, Some("t[0] before 100")),
        (Some(0), None, Some("t[0] before 100")),
        (Some(70), None, Some("t[0] before 100")),
        (None, Some(90), Some("t[0] from 90 to 100")),
        (Some(0), Some(90), Some("t[0] from 90 to 100")),
        (Some(70), Some(0), Some("t[0] before 100")),
        (None, Some(100), None),
        (Some(0), Some(100), None),
    ] {
        let sealed = Sealed::new();
        let seal = manifest::Seal { begun, ..told(1, 1, 0, 0, after) };
        sealed.publish_told("a.1.log", "1\n", range(0, 100, 101), 71, seal);
        let expected: Vec<_> = unknown.map(|place| ("beginning", place.to_owned())).into_iter().collect();
        assert_eq!(sealed.unknown(), expected, "{after:?}, {begun:?}");
        // With what it follows, it is known.
        sealed.publish_told("a.0.log", "1\n", range(0, 0, 100), 70, told(100, 1, 99, 0, None));
        assert_eq!(sealed.unknown(), []);
    }
    let sealed = Sealed::new();
    sealed.publish("a.1.log", "1\n", range(0, 100, 101), 71);
    assert_eq!(sealed.unknown(), [("beginning", "t[0] before 100".to_owned())]);

    // Markers of transactions, or what compaction took.
    let sealed = Sealed::new();
    sealed.publish_told("a.1.log", "1\n", range(0, 0, 3), 1, told(1, 1, 0, 0, None));
    sealed.publish_told("a.2.log", "1\n", range(0, 3, 5), 2, told(1, 1, 0, 0, Some(1)));
    sealed.publish_empty(5, 9, 3, told(0, 0, 0, 0, Some(2)));
    sealed.publish_told("a.4.log", "1\n", range(0, 9, 10), 4, told(1, 1, 0, 0, Some(3)));
    let found = sealed.verify();
    let told: Vec<_> = found.unknown.iter().map(|unknown| (unknown.kind.name(), unknown.place.as_str())).collect();
    let expected = ["t[0] from 0 to 3", "t[0] from 3 to 5", "t[0] from 5 to 9"].map(|place| ("no_record", place));
    assert_eq!(told, expected, "each seal by itself");
    for (unknown, detail) in
        found.unknown.iter().zip(["2 of its 3 offsets", "1 of its 2 offsets", "4 of its 4 offsets"])
    {
        assert!(unknown.detail.starts_with(detail), "{}", unknown.detail);
        assert!(unknown.detail.contains("only the brokers know"), "{}", unknown.detail);
    }
}

#[test]
fn a_file_that_is_later_than_a_manifest_of_other_contents_is_told() {
    let sealed = Sealed::new();
    sealed.publish_told("a.1.log", "1\n", range(0, 0, 1), 1, told(1, 1, 0, 0, None));
    let (file, manifest) = (sealed.path("a.1.log"), sealed.path("a.1.log.manifest.json"));
    fs::write(&file, "1\n2\n").unwrap();
    let now = std::time::SystemTime::now();
    let set = |path: &Path, ago| {
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(now - Duration::from_secs(ago)).unwrap();
    };
    set(&manifest, 100);
    set(&file, 50);
    sealed.assert_fault(FaultKind::Length, "a.1.log", "it was written after its manifest");
    // A copy may have any times: what it contains decides.
    fs::write(&file, "1\n").unwrap();
    assert_eq!(sealed.unknown(), []);
}

#[test]
fn gaps_and_overlaps_are_found_across_directories() {
    let (one, other) = (Sealed::filled(), Sealed::new());
    other.publish("t.1.log", "x\n", range(1, 105, 107), 9);
    let found = one.verify_with(&[&other]);
    let [gap] = &found.faults[..] else { panic!("{found:#?}") };
    assert_eq!((gap.kind, gap.place.as_str()), (FaultKind::Gap, "t[1] from 102 to 105"));
    assert!(gap.detail.starts_with("3 offsets: no file covers them"), "{}", gap.detail);
    assert_eq!(gap.range.as_ref().map(|range| (range.partition, range.from, range.to)), Some((1, 102, 105)));

    other.publish("t.1.log", "x\n", range(1, 101, 107), 9);
    let found = one.verify_with(&[&other]);
    let [overlap] = &found.faults[..] else { panic!("{found:#?}") };
    assert_eq!((overlap.kind, overlap.place.as_str()), (FaultKind::Overlap, "t[1] from 101 to 102"));
    for name in ["t.4.log.manifest.json", "t.1.log.manifest.json"] {
        assert!(overlap.detail.contains(name), "{}", overlap.detail);
    }
    assert_eq!(found.summary.ranges, 5);
}

#[test]
fn the_same_file_in_two_directories_is_found_but_not_the_same_directory_named_twice() {
    let (one, other) = (Sealed::filled(), Sealed::new());
    other.publish("kept/t.3.log", "a3\n", range(0, 5, 6), 2);
    let found = one.verify_with(&[&other]);
    let kinds: Vec<_> = found.faults.iter().map(|fault| fault.kind).collect();
    assert_eq!(kinds, [FaultKind::Duplicate], "{found:#?}");
    let below = VerifyOptions {
        dirs: vec![one.path("a"), one.path("."), one.root.path().to_owned()],
        plain: Plain::Fault,
        missing: Missing::Fault,
    };
    assert_eq!(verify(&below, &|_| {}).unwrap(), one.verify());
}

#[test]
fn hidden_files_are_counted_and_undecided_ones_are_faults() {
    let sealed = Sealed::filled();
    fs::create_dir(sealed.path(".snapshot")).unwrap();
    for name in [".t.7.log", "a/.t.8.log", "a/.t.8.log.manifest.json", ".snapshot/t.9.log"] {
        fs::write(sealed.path(name), "half a li").unwrap();
    }
    let found = sealed.verify();
    assert!(found.faults.is_empty(), "{found:#?}");
    assert_eq!(found.summary.hidden, 3);
    fs::write(sealed.path("a/.t.6.log.undecided"), "x\n").unwrap();
    sealed.assert_fault(FaultKind::Undecided, "a/.t.6.log.undecided", "set aside");
}

#[test]
fn links_are_not_followed() {
    let (sealed, elsewhere) = (Sealed::filled(), Sealed::filled());
    symlink(elsewhere.path("a"), sealed.path("c")).unwrap();
    symlink(elsewhere.path("t.5.log"), sealed.path("link.log")).unwrap();
    assert!(sealed.verify().faults.is_empty());
    fs::remove_file(sealed.path("t.5.log")).unwrap();
    symlink(elsewhere.path("t.5.log"), sealed.path("t.5.log")).unwrap();
    sealed.assert_fault(FaultKind::Unreadable, "t.5.log", "");
    fs::remove_file(sealed.path("t.5.log")).unwrap();
    nix::unistd::mkfifo(&sealed.path("t.5.log"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    sealed.assert_fault(FaultKind::Unreadable, "t.5.log", "it is no regular file");
}

#[test]
fn what_cannot_be_read_is_told() {
    let sealed = Sealed::filled();
    let options = |dir| VerifyOptions { dirs: vec![dir], plain: Plain::Fault, missing: Missing::Fault };
    for name in ["nowhere", "t.5.log"] {
        let failure = verify(&options(sealed.path(name)), &|_| {}).unwrap_err();
        assert_eq!(failure.kind, FailureKind::CannotCreate);
        assert!(failure.message.contains(name), "{failure}");
    }
    if !nix::unistd::geteuid().is_root() {
        fs::set_permissions(sealed.path("b"), Permissions::from_mode(0o000)).unwrap();
        assert_eq!(sealed.fault().0, FaultKind::Unreadable);
    }
}
