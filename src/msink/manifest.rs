//! Manifests: what stands beside each published file of `sealed` mode, so that its reader can check it alone.
//!
//! A manifest is one JSON object in a file `<name>.manifest.json` beside the event file `<name>`. It has lines, bytes and
//! CRC-32C of the file as it lies on the disk (compressed, when it is), and where its lines come from: one partition's
//! offsets `[from, to)`, or the failure queue. A *seal* is everything of one partition between two commits; its files
//! have the same range and the same number. A seal without a line publishes a manifest alone, so that ranges tile:
//!
//! ```json
//! {
//!   "version": 1,
//!   "file": "ta.24.2020-12-17-13.7.log",
//!   "lines": 1000,
//!   "bytes": 506000,
//!   "crc32c": "1badcafe",
//!   "compression": "none",
//!   "source": {
//!     "topic": "mulog_clean_24",
//!     "topic_id": "AAAAAAAAAAAAAAAAAAAAAA",
//!     "partition": 0,
//!     "from": 6197510494,
//!     "to": 6197511494
//!   },
//!   "home": "5f0c7a1e-6f0d-4d2b-9b61-0c1f2a3b4c5d",
//!   "incarnation": 1,
//!   "number": 77,
//!   "seal": {
//!     "consumed": 1000,
//!     "written": 1000,
//!     "filtered": 0,
//!     "rejected": 0,
//!     "after": {
//!       "home": "5f0c7a1e-6f0d-4d2b-9b61-0c1f2a3b4c5d",
//!       "incarnation": 1,
//!       "number": 70
//!     },
//!     "begun": 0
//!   }
//! }
//! ```
//!
//! `seal` is the same in each manifest of a seal: what became of its records, which commit it follows, and where its partition
//! was begun. So a range in which every record was filtered is told from one whose lines are gone, and a range that begins where
//! its partition was begun from one before which others are missing. Manifests of earlier programs and those of retries have no
//! `seal`. It has no `begun` where the home does not know it: others have read before it, or the partition was moved.
//!
//! Of records that were retried from the failure queue, `source` is `{"retries": true}`. Without a file, `file` is `null`
//! and the figures are 0. Readers ignore members that they do not know; what an older reader would misunderstand raises
//! `version`, and a version that is not known is refused.
//!
//! This module is pure: it reads and writes no file. It fails with a message that says what is wrong in the bytes; foreign
//! bytes never make it panic, and more than [`MAX_SIZE`] of them are refused unread.

use serde::{Deserialize, Serialize};

use super::name::value::sanitised;
use crate::config::Compression;

/// What a manifest's name ends with. The name of an event file must leave room for it.
pub const SUFFIX: &str = ".manifest.json";

/// What stands before [`SUFFIX`] in the name of the manifest of a seal without a line. No event file's name ends like that.
pub const EMPTY: &str = ".empty";

/// The largest manifest, bytes: several times what the longest names need.
pub const MAX_SIZE: usize = 16 << 10;

/// The version that this program writes, and the only one that it reads.
const VERSION: u64 = 1;

/// The longest name that an event file can have beside its manifest, bytes: Linux takes 255, of which both need one for the
/// dot of a name that is still hidden. With the suffix of its compression.
pub const MAX_FILE_NAME: usize = MAX_NAME - SUFFIX.len();

/// The longest name of a visible file, bytes.
const MAX_NAME: usize = 254;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Name of the event file, which lies in the same directory; `None` for a seal without a line.
    pub file: Option<String>,
    /// Lines in it.
    pub lines: u64,
    /// Its length as it lies on the disk.
    pub bytes: u64,
    /// CRC-32C of it as it lies on the disk.
    #[serde(with = "hex")]
    pub crc32c: u32,
    /// How it is compressed.
    pub compression: Compression,
    /// Where its lines come from.
    pub source: Source,
    /// The home that wrote it.
    pub home: String,
    /// The incarnation of that home.
    pub incarnation: u64,
    /// Number of its seal. All files of a seal have the same one, and no other seal of the partition has it.
    pub number: u64,
    /// What the whole seal amounts to; `None` for retries, and from programs that did not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<Seal>,
}

/// What a seal amounts to, over all of its files.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Seal {
    /// Records in its range. Other offsets of it have none of their own: control records, aborted and compacted-away ones.
    pub consumed: u64,
    /// Those that became lines.
    pub written: u64,
    /// Those that were dropped on purpose.
    pub filtered: u64,
    /// Those that went into the failure queue.
    pub rejected: u64,
    /// The commit that it follows: a seal, or with number 0 a place of which the group was told: a start, or a move. `None`: no
    /// commit is known.
    pub after: Option<After>,
    /// Where the partition was begun by this home: nothing before that was to be read, and everything since then is in its
    /// seals, but for gaps. `None` where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun: Option<i64>,
}

/// A commit that a seal follows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct After {
    /// The home that made it.
    pub home: String,
    /// The incarnation of that home.
    pub incarnation: u64,
    /// Number of its seal; 0 for a place of which the group was told.
    pub number: u64,
}

/// Where the lines of a file come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Written", try_from = "Written")]
pub enum Source {
    /// A range of one partition: each of its records is a line in a file of the seal, filtered, or in the failure queue.
    Range(Range),
    /// Records that were retried from the failure queue.
    Retries,
}

/// A range of offsets of one partition.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Range {
    /// The topic's name.
    pub topic: String,
    /// The topic's id; empty for brokers before 2.8.
    pub topic_id: String,
    /// The partition's number.
    pub partition: i32,
    /// The first offset.
    pub from: i64,
    /// The offset after the last one.
    pub to: i64,
}

/// [`Source`] as it is written.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "`source` must have topic, topic_id, partition, from and to, or be {\"retries\": true}")]
enum Written {
    Range(Range),
    Retries { retries: bool },
}

impl From<Source> for Written {
    fn from(source: Source) -> Self {
        match source {
            Source::Range(range) => Self::Range(range),
            Source::Retries => Self::Retries { retries: true },
        }
    }
}

impl TryFrom<Written> for Source {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::Retries { retries: true } => Ok(Self::Retries),
            Written::Retries { retries: false } => Err("`source` has no range and is no retry".to_owned()),
            Written::Range(range) => {
                let Range { topic, partition, from, to, .. } = &range;
                if topic.is_empty() || *partition < 0 || *from < 0 || to < from {
                    return Err(format!("`{topic}` partition {partition} cannot have the range [{from}, {to})"));
                }
                Ok(Self::Range(range))
            }
        }
    }
}

impl Manifest {
    /// The bytes of the file: one object, a member a line, with a final newline.
    pub fn to_json(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Whole<'a> {
            version: u64,
            #[serde(flatten)]
            manifest: &'a Manifest,
        }
        // Neither strings nor numbers can fail to be written into memory.
        let mut json = serde_json::to_vec_pretty(&Whole { version: VERSION, manifest: self }).unwrap_or_default();
        json.push(b'\n');
        json
    }

    /// Reads the bytes of a file. The error says what is wrong in it.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u64,
        }
        if bytes.len() > MAX_SIZE {
            return Err(format!("it has {} bytes, a manifest has at most {MAX_SIZE}", bytes.len()));
        }
        let wrong = |error: serde_json::Error| error.to_string();
        let Versioned { version } = serde_json::from_slice(bytes).map_err(wrong)?;
        if version != VERSION {
            return Err(format!("it has version {version}, this program knows {VERSION}: use a program that knows it"));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(wrong)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Whether this is the manifest of the same publication as the other one: another program may have written other members.
    pub fn is_of(&self, other: &Self) -> bool {
        let publication = |one: &Self| {
            (one.file.clone(), one.source.clone(), one.home.clone(), one.incarnation, one.number, one.bytes, one.crc32c)
        };
        publication(self) == publication(other)
    }

    /// What the types do not say.
    fn check(&self) -> Result<(), String> {
        match &self.file {
            // Whoever opens it must not be led elsewhere.
            Some(name) if !is_base_name(name) => {
                Err(format!("`file` is `{}`, no name of an event file", name.escape_debug()))
            }
            None if (self.lines, self.bytes, self.crc32c) != (0, 0, 0) => {
                Err("it tells of lines although `file` is null".to_owned())
            }
            None if self.source == Source::Retries => Err("`file` is null for retries".to_owned()),
            _ => Ok(()),
        }
    }
}

/// Whether this is the name of a visible file in a directory.
fn is_base_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']) && name.len() <= MAX_FILE_NAME
}

/// The name of the manifest of an event file; with or without directories before it.
pub fn name_for(file: &str) -> String {
    format!("{file}{SUFFIX}")
}

/// The name of the manifest of a seal without a line, in the event directory itself. The number keeps a range that was
/// read twice (a recreated topic, a rewind) from replacing the first manifest, and [`EMPTY`] keeps it from the name that the
/// manifest of an event file may have, whatever the template and the values of the records are.
pub fn name_of_empty(range: &Range, number: u64) -> String {
    let Range { topic, partition, from, to, .. } = range;
    let rest = format!("-{partition}-{from}-{to}.{number}{EMPTY}{SUFFIX}");
    let mut topic = sanitised(topic);
    // Kafka allows 249 bytes.
    if topic.len() + rest.len() > MAX_NAME {
        let digest = format!("~{:08x}", crc32c::crc32c(topic.as_bytes()));
        topic.truncate(topic.floor_char_boundary(MAX_NAME - rest.len() - digest.len()));
        topic.push_str(&digest);
    }
    topic + &rest
}

/// A checksum as eight hexadecimal digits.
mod hex {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
    pub(super) fn serialize<S: Serializer>(crc: &u32, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{crc:08x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
        let text = String::deserialize(from)?;
        let digits = text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let wrong = || D::Error::custom("`crc32c` must be 8 hexadecimal digits");
        if digits { u32::from_str_radix(&text, 16).map_err(|_| wrong()) } else { Err(wrong()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            file: Some("ta.24.2020-12-17-13.7.log".to_owned()),
            lines: 1000,
            bytes: 506_000,
            crc32c: 0x0bad_cafe,
            compression: Compression::None,
            source: Source::Range(range()),
            home: "5f0c7a1e-6f0d-4d2b-9b61-0c1f2a3b4c5d".to_owned(),
            incarnation: 1,
            number: 77,
            seal: Some(Seal {
                consumed: 1003,
                written: 1000,
                filtered: 2,
                rejected: 1,
                after: Some(After {
                    home: "5f0c7a1e-6f0d-4d2b-9b61-0c1f2a3b4c5d".to_owned(),
                    incarnation: 1,
                    number: 70,
                }),
                begun: Some(6_197_000_000),
            }),
        }
    }

    fn range() -> Range {
        Range {
            topic: "mulog_clean_24".to_owned(),
            topic_id: "AAAAAAAAAAAAAAAAAAAAAA".to_owned(),
            partition: 0,
            from: 6_197_510_494,
            to: 6_197_511_494,
        }
    }

    const GOLDEN: &str = r#"{
  "version": 1,
  "file": "ta.24.2020-12-17-13.7.log",
  "lines": 1000,
  "bytes": 506000,
  "crc32c": "0badcafe",
  "compression": "none",
  "source": {
    "topic": "mulog_clean_24",
    "topic_id": "AAAAAAAAAAAAAAAAAAAAAA",
    "partition": 0,
    "from": 6197510494,
    "to": 6197511494
  },
  "home": "5f0c7a1e-6f0d-4d2b-9b61-0c1f2a3b4c5d",
  "incarnation": 1,
  "number": 77,
  "seal": {
    "consumed": 1003,
    "written": 1000,
    "filtered": 2,
    "rejected": 1,
    "after": {
      "home": "5f0c7a1e-6f0d-4d2b-9b61-0c1f2a3b4c5d",
      "incarnation": 1,
      "number": 70
    },
    "begun": 6197000000
  }
}
"#;

    #[test]
    fn the_bytes_of_a_manifest_stay_as_they_are() {
        assert_eq!(String::from_utf8(manifest().to_json()).unwrap(), GOLDEN);
        assert_eq!(Manifest::parse(GOLDEN.as_bytes()), Ok(manifest()));
    }

    #[test]
    fn retries_and_seals_without_a_line_are_written_and_read() {
        let retries = Manifest { source: Source::Retries, compression: Compression::Zstd, ..manifest() };
        let text = String::from_utf8(retries.to_json()).unwrap();
        assert!(text.contains("\"source\": {\n    \"retries\": true\n  }") && text.contains("\"zstd\""), "{text}");
        assert_eq!(Manifest::parse(text.as_bytes()), Ok(retries));
        let empty = Manifest { file: None, lines: 0, bytes: 0, crc32c: 0, ..manifest() };
        assert_eq!(Manifest::parse(&empty.to_json()), Ok(empty));
    }

    #[test]
    fn manifests_of_earlier_programs_tell_nothing_of_their_seal() {
        let (before, _) = GOLDEN.split_once(",\n  \"seal\"").unwrap();
        let earlier = format!("{before}\n}}\n");
        assert_eq!(Manifest::parse(earlier.as_bytes()), Ok(Manifest { seal: None, ..manifest() }));
        assert_eq!(String::from_utf8(Manifest { seal: None, ..manifest() }.to_json()).unwrap(), earlier);
        assert!(
            manifest().is_of(&Manifest { seal: None, ..manifest() })
                && !manifest().is_of(&Manifest { number: 1, ..manifest() })
        );
    }

    #[test]
    fn manifests_of_earlier_programs_do_not_tell_where_their_partition_was_begun() {
        let earlier = GOLDEN.replace(",\n    \"begun\": 6197000000", "");
        let seal = manifest().seal.map(|seal| Seal { begun: None, ..seal });
        assert_eq!(Manifest::parse(earlier.as_bytes()), Ok(Manifest { seal, ..manifest() }));
    }

    #[test]
    fn a_member_that_is_not_known_is_ignored() {
        let more = GOLDEN.replace("\"version\": 1,", "\"version\": 1, \"more\": [{}],");
        assert_eq!(Manifest::parse(more.as_bytes()), Ok(manifest()));
    }

    #[test]
    fn what_is_no_manifest_is_told() {
        let with = |from: &str, to: &str| {
            assert!(GOLDEN.contains(from), "{from}");
            Manifest::parse(GOLDEN.replace(from, to).as_bytes()).unwrap_err()
        };
        let long = format!("\"{}\"", "x".repeat(MAX_FILE_NAME + 1));
        for (from, to, message) in [
            ("\"version\": 1", "\"version\": 2", "it has version 2, this program knows 1: use a program that knows it"),
            ("\"version\": 1,", "", "missing field `version`"),
            ("\"lines\": 1000", "\"lines\": -1", "invalid value: integer `-1`, expected u64"),
            ("\"lines\": 1000,", "\"lines\": 1, \"lines\": 1,", "duplicate field `lines`"),
            ("0badcafe", "badcafe", "`crc32c` must be 8 hexadecimal digits"),
            ("0badcafe", "+badcafe", "`crc32c` must be 8 hexadecimal digits"),
            ("\"none\"", "\"lzma\"", "unknown variant `lzma`"),
            ("\"partition\": 0", "\"part\": 0", "`source` must have topic, topic_id, partition, from and to, or be"),
            ("\"to\": 6197511494", "\"to\": 1", "`mulog_clean_24` partition 0 cannot have the range [6197510494, 1)"),
            ("\"partition\": 0", "\"partition\": -1", "`mulog_clean_24` partition -1 cannot have"),
            ("\"ta.24.2020-12-17-13.7.log\"", "\"../passwd\"", "`file` is `../passwd`, no name of an event file"),
            ("\"ta.24.2020-12-17-13.7.log\"", "\".hidden\"", "`file` is `.hidden`, no name of an event file"),
            ("\"ta.24.2020-12-17-13.7.log\"", &long, "no name of an event file"),
            ("\"ta.24.2020-12-17-13.7.log\"", "null", "it tells of lines although `file` is null"),
            ("\n}\n", "\n} x", "trailing characters"),
        ] {
            let found = with(from, to);
            assert!(found.contains(message), "{from} as {to}: {found}");
        }
        let none = Manifest { file: None, lines: 0, bytes: 0, crc32c: 0, source: Source::Retries, ..manifest() };
        assert_eq!(Manifest::parse(&none.to_json()).unwrap_err(), "`file` is null for retries");
        assert!(Manifest::parse(&vec![b' '; MAX_SIZE + 1]).unwrap_err().contains("at most 16384"));
        assert!(Manifest::parse(&vec![b'['; MAX_SIZE]).is_err());
    }

    #[test]
    fn names_say_what_they_belong_to() {
        assert_eq!(name_for("a/b.7.log.gz"), "a/b.7.log.gz.manifest.json");
        assert_eq!(name_of_empty(&range(), 77), "mulog_clean_24-0-6197510494-6197511494.77.empty.manifest.json");
        let hidden = Range { topic: ".hidden".to_owned(), ..range() };
        assert_eq!(name_of_empty(&hidden, 1), "%2Ehidden-0-6197510494-6197511494.1.empty.manifest.json");
    }

    #[test]
    fn the_longest_topics_have_names_of_their_own_that_fit() {
        let name = |last: char| {
            let topic = "t".repeat(248) + &last.to_string();
            name_of_empty(&Range { topic, partition: i32::MAX, from: 0, to: i64::MAX, ..range() }, u64::MAX)
        };
        assert_eq!(name('a').len(), MAX_NAME);
        assert_ne!(name('a'), name('b'));
        let wide = Range { topic: "志".repeat(80) + "ab", ..range() };
        assert!(name_of_empty(&wide, 1).len() <= MAX_NAME);
    }

    prop_compose! {
        fn any_manifest()(
            file in "[^./\0][^/\0]{0,40}",
            figures in any::<(u64, u64, u32)>(),
            compression in prop::sample::select(vec![Compression::None, Compression::Gzip, Compression::Zstd]),
            range in prop::option::of(("\\PC{1,30}", "\\PC{0,22}", 0..i32::MAX, 0..i64::MAX / 2, 0..i64::MAX / 2)),
            home in "\\PC{0,36}",
            seal in any::<(u64, u64)>(),
            counts in prop::option::of((
                any::<[u64; 4]>(),
                prop::option::of(("\\PC{0,36}", any::<u64>(), any::<u64>())),
                any::<Option<i64>>(),
            )),
        ) -> Manifest {
            let (lines, bytes, crc32c) = figures;
            let source = range.map_or(Source::Retries, |(topic, topic_id, partition, from, length)| {
                Source::Range(Range { topic, topic_id, partition, from, to: from + length })
            });
            let (incarnation, number) = seal;
            let seal = counts.map(|([consumed, written, filtered, rejected], after, begun)| Seal {
                consumed,
                written,
                filtered,
                rejected,
                after: after.map(|(home, incarnation, number)| After { home, incarnation, number }),
                begun,
            });
            Manifest { file: Some(file), lines, bytes, crc32c, compression, source, home, incarnation, number, seal }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(manifest in any_manifest()) {
            let json = manifest.to_json();
            prop_assert_eq!(json.last(), Some(&b'\n'));
            prop_assert_eq!(Manifest::parse(&json), Ok(manifest));
        }

        #[test]
        fn damaged_bytes_give_an_answer(at in 0..GOLDEN.len(), byte in any::<u8>(), cut in 0..GOLDEN.len()) {
            let mut bytes = GOLDEN.as_bytes().to_vec();
            bytes[at] = byte;
            let _ = Manifest::parse(&bytes);
            let torn = Manifest::parse(&bytes[..cut]);
            prop_assert!(torn.is_err() || cut + 1 == GOLDEN.len());
        }
    }
}
