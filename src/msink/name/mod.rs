//! File names: the template `sink.file`, filled in from what a record is, the wall clock and a number.
//!
//! A template is a relative path with `/` between directories. `%` fields are strftime's, of the wall clock in
//! `time_zone`. `{seq}` stands in it exactly once; `{app_id}` and `{instance}` never change; `{topic}`, `{partition}`,
//! `{log_name}` and `{event_name}` come from the records and decide how many files are open at once.
//!
//! Promises: a name is relative, has no empty component and none that begins with a dot, so that nothing leaves the
//! event directory and nothing is hidden. Values from records keep letters and digits of every script, `-`, `_` and
//! `.`; every other byte, and a leading dot, is written as `%2F` like in a URL. An absent or empty value is `_`, and
//! the value `_` is `%5F`. So two different values never give the same text.
//!
//! Two numbers never give the same name, whatever the values beside them: since a home gives each number once, no name is
//! used twice. Where the number could be read in two ways, as in `{log_name}{seq}` for `a1` and 0 or `a` and 10, it stands
//! between two `~`, which no value has: `a1~0~`. Names in which it can be read in one way only are as the template has them
//! (`a10`). No name ends like those that stand beside event files ([`RESERVED`]): the dot of such an ending is written as `%2E`.
//!
//! It does not promise that different *sets* of values differ under one number: `{topic}{log_name}` without anything between
//! them may give one text for two. It opens nothing and reads no clock.
//!
//! A mistake in the template is told when it is read. After that, the only failure is a component over 255 bytes, a
//! reject of the record ([`Reason::Sink`]).

mod seq;
pub(super) mod value;

use chrono::format::{Item, StrftimeItems};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use self::seq::{MARK, SeqReader};
use self::value::{push_display, push_sanitised, sanitised};
use super::manifest;
use crate::config::TimeZone;
use crate::msource::TopicPartition;
use crate::record::{Reason, Reject};

/// The longest component that Linux's file systems take, bytes.
const MAX_COMPONENT: usize = 255;

/// What names end with that stand beside event files: a manifest's, that of a file which was set aside, and what a manifest
/// without a file seems to be of.
pub const RESERVED: [&str; 3] = [manifest::SUFFIX, UNDECIDED, manifest::EMPTY];

/// What the name of a hidden file ends with that was set aside.
pub const UNDECIDED: &str = ".undecided";

/// What the names around a hidden file need beyond its own: the dot in front and the longest ending.
const HIDDEN_ROOM: usize = ".".len() + ".manifest.json".len();

/// A template, read and checked.
#[derive(Clone, Debug)]
pub struct NameTemplate {
    parts: Vec<Part>,
    zone: TimeZone,
    /// What stands behind every name.
    ending: &'static str,
    /// Reads the number out of a name; `None` where the template leaves no doubt about it.
    reader: Option<SeqReader>,
    max_component: usize,
    /// A time whose fields are as long as they get, seconds since 1970 UTC.
    longest: i64,
}

/// Hours since 1970 UTC: in any time zone it is Wednesday, the 23rd of September 2026 in some of them, and past ten. Names and
/// numbers of days, months and hours are as long as they get then.
const LONGEST: std::ops::Range<i64> = 497_262..497_310;

#[derive(Clone, Debug)]
enum Part {
    Text(String),
    Time(Vec<Item<'static>>),
    Topic,
    Partition,
    LogName,
    EventName,
    Seq,
}

/// The number in a name.
#[derive(Clone, Copy)]
enum Seq {
    /// As it is.
    Plain(u64),
    /// Between two marks.
    Marked(u64),
    /// Any: `{seq}` stands there.
    Open,
}

/// The values that a name needs from a record: only those that the template uses are set, the others are `None`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
pub struct FileKey {
    /// Topic name.
    pub topic: Option<String>,
    /// Partition number.
    pub partition: Option<i32>,
    /// `headers.log_name`.
    pub log_name: Option<String>,
    /// `#event_name`; also `None` for events that have none.
    pub event_name: Option<String>,
    /// Whether the lines are retries, which have hidden files of their own. Part of no name.
    pub retries: bool,
}

impl FileKey {
    /// The partition whose lines alone go into the files of this key, if it is a hidden file's; `None` for retries.
    pub fn partition(&self) -> Option<TopicPartition> {
        if self.retries {
            return None;
        }
        Some(TopicPartition { topic: self.topic.as_deref()?.into(), partition: self.partition? })
    }
}

/// The name of a file while it is hidden: a dot before its last component.
pub fn hidden(name: &str) -> String {
    match name.rsplit_once('/') {
        Some((directory, file)) => format!("{directory}/.{file}"),
        None => format!(".{name}"),
    }
}

/// The name of a manifest until it is whole, in the directory of the one it gets. It begins with two dots: an event file's name
/// begins with none, and with one while it is hidden.
pub fn temporary(name: &str) -> String {
    let directory = name.rfind('/').map_or("", |last| &name[..=last]);
    format!("{directory}..{:032x}.manifest.json", xxh3_128(name.as_bytes()))
}

/// Whether this is such a name, without directories.
pub fn is_temporary(name: &str) -> bool {
    name.starts_with("..") && name.ends_with(manifest::SUFFIX)
}

/// Which members of [`FileKey`] a template uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[expect(clippy::struct_excessive_bools, reason = "one question a member of `FileKey`, each independent of the others")]
pub struct Fields {
    /// `{topic}` occurs.
    pub topic: bool,
    /// `{partition}` occurs.
    pub partition: bool,
    /// `{log_name}` occurs.
    pub log_name: bool,
    /// `{event_name}` occurs.
    pub event_name: bool,
}

impl NameTemplate {
    /// Reads a template. The error is for the operator: it says what is wrong in `text` and what to write.
    pub fn parse(text: &str, app_id: u64, instance: &str, zone: TimeZone) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find(['{', '}']) {
            push_time(&mut parts, &rest[..open])?;
            let Some((name, after)) = rest[open..].strip_prefix('{').and_then(|field| field.split_once('}')) else {
                return Err("unbalanced braces, expected `{name}`".into());
            };
            parts.push(match name {
                "app_id" => Part::Text(app_id.to_string()),
                "instance" => Part::Text(sanitised(instance)),
                "topic" => Part::Topic,
                "partition" => Part::Partition,
                "log_name" => Part::LogName,
                "event_name" => Part::EventName,
                "seq" => Part::Seq,
                _ => {
                    return Err(format!(
                        "unknown `{{{name}}}`, expected one of {{app_id}} {{topic}} {{partition}} {{log_name}} \
                         {{event_name}} {{instance}} {{seq}}"
                    ));
                }
            });
            rest = after;
        }
        push_time(&mut parts, rest)?;
        let reader = SeqReader::new(&parts)?;
        let mut template = Self { parts, zone, ending: "", reader, max_component: MAX_COMPONENT, longest: 0 };
        let length = |at: &i64| template.stem(&FileKey::default(), *at).len();
        template.longest = LONGEST.map(|hour| hour * 3600 + 59 * 60).max_by_key(length).unwrap_or(0);
        template.check()?;
        Ok(template)
    }

    /// The same for files that are hidden until complete, with this ending.
    #[must_use]
    pub fn hidden(self, ending: &'static str) -> Self {
        Self { ending, max_component: MAX_COMPONENT - HIDDEN_ROOM, ..self }
    }

    /// Which values of a record the template uses.
    pub fn fields(&self) -> Fields {
        let has = |wanted: fn(&Part) -> bool| self.parts.iter().any(wanted);
        Fields {
            topic: has(|part| matches!(part, Part::Topic)),
            partition: has(|part| matches!(part, Part::Partition)),
            log_name: has(|part| matches!(part, Part::LogName)),
            event_name: has(|part| matches!(part, Part::EventName)),
        }
    }

    /// What decides whether a file is still the right one: the name with everything but `{seq}` filled in.
    pub fn stem(&self, key: &FileKey, now_seconds: i64) -> String {
        self.fill(key, now_seconds, Seq::Open)
    }

    /// The path of a file below the event directory. `now_seconds` is the wall clock, seconds since 1970 UTC.
    pub fn name(&self, key: &FileKey, now_seconds: i64, seq: u64) -> Result<String, Reject> {
        let mut name = self.rendered(key, now_seconds, Seq::Plain(seq));
        if let Some(reader) = &self.reader
            && reader.read(&name) != Some(seq)
        {
            name = self.rendered(key, now_seconds, Seq::Marked(seq));
        }
        self.fits(name)
    }

    /// The name with its ending, unless a component is too long.
    fn fits(&self, mut name: String) -> Result<String, Reject> {
        name.push_str(self.ending);
        let most = self.max_component;
        match name.split('/').find(|component| component.len() > most) {
            None => Ok(name),
            Some(component) => Err(Reject::new(
                Reason::Sink,
                format!("its file name has {} bytes in one component, at most {most} are possible", component.len()),
            )),
        }
    }

    /// The longest name that a file of this key may ever get; an error when it is too long, whenever that would show.
    pub fn longest_name(&self, key: &FileKey) -> Result<String, Reject> {
        let seq = if self.reader.is_some() { Seq::Marked(u64::MAX) } else { Seq::Plain(u64::MAX) };
        self.fits(self.rendered(key, self.longest, seq))
    }

    /// The name without its ending. Where no ending comes behind it, it does not end like names that stand beside event files.
    fn rendered(&self, key: &FileKey, now_seconds: i64, seq: Seq) -> String {
        let mut name = self.fill(key, now_seconds, seq);
        let reserved = |name: &str| RESERVED.iter().find(|ending| name.ends_with(**ending)).map(|ending| ending.len());
        if self.ending.is_empty()
            && let Some(length) = reserved(&name)
        {
            let dot = name.len() - length;
            name.replace_range(dot..=dot, "%2E");
        }
        name
    }

    /// The directories that every name begins with, whatever the record: empty, or with `/` at the end.
    pub fn fixed_dirs(&self, now_seconds: i64) -> String {
        let of_record = |part: &Part| !matches!(part, Part::Text(_) | Part::Time(_));
        let fixed = self.parts.iter().position(of_record).unwrap_or(self.parts.len());
        let fixed = Self { parts: self.parts[..fixed].to_vec(), ..self.clone() };
        let mut dirs = fixed.fill(&FileKey::default(), now_seconds, Seq::Open);
        dirs.truncate(dirs.rfind('/').map_or(0, |last| last + 1));
        dirs
    }

    fn fill(&self, key: &FileKey, now_seconds: i64, seq: Seq) -> String {
        let mut name = String::with_capacity(64);
        for part in &self.parts {
            match part {
                Part::Text(text) => name.push_str(text),
                Part::Time(items) => push_rendered(&mut name, items, now_seconds, self.zone),
                Part::Topic => push_sanitised(&mut name, key.topic.as_deref()),
                Part::Partition => match key.partition {
                    Some(partition) => push_display(&mut name, partition),
                    None => push_sanitised(&mut name, None),
                },
                Part::LogName => push_sanitised(&mut name, key.log_name.as_deref()),
                Part::EventName => push_sanitised(&mut name, key.event_name.as_deref()),
                Part::Seq => match seq {
                    Seq::Plain(seq) => push_display(&mut name, seq),
                    Seq::Marked(seq) => push_display(&mut name, format_args!("{MARK}{seq}{MARK}")),
                    Seq::Open => name.push_str("{seq}"),
                },
            }
        }
        name
    }

    /// The rules that hold for every name if they hold for one, since a value has neither a leading dot nor a slash.
    fn check(&self) -> Result<(), String> {
        match self.parts.iter().filter(|part| matches!(part, Part::Seq)).count() {
            1 => {}
            0 => return Err("`{seq}` is missing; it keeps names from being used twice, add it".into()),
            count => return Err(format!("`{{seq}}` stands in it {count} times, expected once")),
        }
        let sample = self.fill(&FileKey::default(), 0, Seq::Plain(0));
        if sample.starts_with('/') {
            return Err("an absolute path, expected one below `sink.dir`".into());
        }
        for component in sample.split('/') {
            if component.is_empty() {
                return Err("an empty component (`//` or a `/` at the end)".into());
            }
            if component.starts_with('.') {
                return Err(format!(
                    "`{component}` begins with a dot: collectors skip such files, and `..` is refused"
                ));
            }
        }
        let longest = self.fill(&FileKey::default(), self.longest, Seq::Plain(u64::MAX));
        let most = longest.split('/').map(str::len).max().unwrap_or(0);
        if most > MAX_COMPONENT {
            return Err(format!("a component gets {most} bytes, at most {MAX_COMPONENT} are possible"));
        }
        if sample.contains(char::is_control) {
            return Err("a control character".into());
        }
        Ok(())
    }
}

/// Reads text that may have `%` fields.
fn push_time(parts: &mut Vec<Part>, text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Ok(());
    }
    let items = StrftimeItems::new(text)
        .parse_to_owned()
        .map_err(|_| format!("`{text}` has a `%` that is no strftime field; a percent sign itself is `%%`"))?;
    let fixed = |item: &Item<'_>| {
        matches!(item, Item::Literal(_) | Item::OwnedLiteral(_) | Item::Space(_) | Item::OwnedSpace(_))
    };
    let rendered = rendered(&items, 0);
    if items.iter().all(fixed) {
        parts.push(Part::Text(rendered));
    } else {
        if rendered.matches('/').count() > text.matches('/').count() {
            return Err(format!("`{text}` has a `%` field that puts `/` into names; write for example %Y-%m-%d"));
        }
        parts.push(Part::Time(items));
    }
    Ok(())
}

/// What the parts of a time are at this moment, in UTC.
fn rendered(items: &[Item<'static>], now_seconds: i64) -> String {
    let mut text = String::new();
    push_rendered(&mut text, items, now_seconds, TimeZone::UTC);
    text
}

fn push_rendered(name: &mut String, items: &[Item<'static>], now_seconds: i64, zone: TimeZone) {
    // A clock beyond the year 262142 is taken for 1970.
    let now: DateTime<Utc> = DateTime::from_timestamp(now_seconds, 0).unwrap_or_default();
    push_display(name, zone.format(now, items.iter()));
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use chrono::FixedOffset;
    use proptest::prelude::*;

    use super::*;

    /// 2020-12-17 13:50:43 at +08:00.
    const NOW: i64 = 1_608_184_243;

    fn shanghai() -> TimeZone {
        TimeZone::Fixed(FixedOffset::east_opt(8 * 3600).unwrap())
    }

    fn template(text: &str) -> NameTemplate {
        NameTemplate::parse(text, 24, "host/1", shanghai()).unwrap()
    }

    fn mistake(text: &str) -> String {
        NameTemplate::parse(text, 24, "", shanghai()).unwrap_err()
    }

    fn log(name: &str) -> FileKey {
        FileKey { log_name: Some(name.into()), ..FileKey::default() }
    }

    #[test]
    fn a_name_that_gets_too_long_with_the_time_is_told_before_that_time() {
        let long = "x".repeat(MAX_COMPONENT - "Wednesday23September2212.".len() - 20 + 1);
        let text = "{log_name}%A%-d%B%-H%-I.{seq}";
        for zone in ["Asia/Shanghai", "Pacific/Kiritimati", "Etc/GMT+12"] {
            let zone = TimeZone::built_in(zone).unwrap();
            let template = NameTemplate::parse(text, 24, "", zone).unwrap();
            assert!(template.name(&log(&long), 0, u64::MAX).is_ok());
            assert!(template.longest_name(&log(&long)).is_err(), "too long on a Wednesday in September");
            assert!(template.longest_name(&log(&long[1..])).is_ok());
            let constant = text.replace("{log_name}", &long);
            assert!(NameTemplate::parse(&constant, 24, "", zone).unwrap_err().contains("256 bytes"));
        }
    }

    #[test]
    fn fixed_directories_are_those_before_the_first_value_of_a_record() {
        for (text, dirs) in [
            ("{seq}.log", ""),
            ("{log_name}/x.{seq}.log", ""),
            ("events/{log_name}/x.{seq}.log", "events/"),
            ("{app_id}/%Y/of-{log_name}/{seq}.log", "24/2020/"),
            ("a/b/{seq}/{log_name}", "a/b/"),
        ] {
            assert_eq!(template(text).fixed_dirs(NOW), dirs, "{text}");
        }
    }

    #[test]
    fn the_default_template_gives_the_name_of_the_contract() {
        let template = template("ta.{app_id}.%Y-%m-%d-%H.{seq}.log");
        let key = FileKey::default();
        assert_eq!(template.name(&key, NOW, 7).unwrap(), "ta.24.2020-12-17-13.7.log");
        assert_eq!(template.stem(&key, NOW), "ta.24.2020-12-17-13.{seq}.log");
        assert_eq!(template.stem(&key, NOW + 556), template.stem(&key, NOW));
        assert_ne!(template.stem(&key, NOW + 557), template.stem(&key, NOW));
        assert_eq!(template.fields(), Fields::default());
    }

    #[test]
    fn every_field_is_filled_in() {
        let template = template("{topic}/p{partition}/{log_name}-{event_name}.{instance}.%%.{seq}");
        assert_eq!(template.fields(), Fields { topic: true, partition: true, log_name: true, event_name: true });
        let key = FileKey {
            topic: Some("mulog_clean_24".into()),
            partition: Some(3),
            log_name: Some("log_item".into()),
            event_name: Some("t_log_item".into()),
            ..FileKey::default()
        };
        assert_eq!(template.name(&key, NOW, 0).unwrap(), "mulog_clean_24/p3/log_item-t_log_item.host%2F1.%.0");
        assert_eq!(template.name(&FileKey::default(), NOW, 0).unwrap(), "_/p_/_-_.host%2F1.%.0");
    }

    #[test]
    fn time_is_of_the_named_zone_across_its_changes() {
        let zone = TimeZone::built_in("Europe/Berlin").unwrap();
        let template = NameTemplate::parse("%Y-%m-%dT%H%M.{seq}", 24, "", zone).unwrap();
        let name = |now| template.name(&FileKey::default(), now, 1).unwrap();
        assert_eq!(name(1_616_893_199), "2021-03-28T0159.1");
        assert_eq!(name(1_616_893_200), "2021-03-28T0300.1");
        assert_eq!(name(i64::MAX), "1970-01-01T0100.1");
    }

    #[test]
    fn hostile_values_stay_in_one_visible_component() {
        let template = template("{log_name}.{seq}");
        for (value, expected) in [
            ("../../etc/passwd", "%2E.%2F..%2Fetc%2Fpasswd.0"),
            ("..", "%2E..0"),
            (".hidden", "%2Ehidden.0"),
            ("a\0b\nc\x7f", "a%00b%0Ac%7F.0"),
            ("100%", "100%25.0"),
            ("100%25", "100%2525.0"),
            ("*?[x] $(rm)`\\'\"", "%2A%3F%5Bx%5D%20%24%28rm%29%60%5C%27%22.0"),
            ("日志_chat", "日志_chat.0"),
            ("\u{202e}gol\u{200b}", "%E2%80%AEgol%E2%80%8B.0"),
            ("", "_.0"),
            ("_", "%5F.0"),
            ("{seq}", "%7Bseq%7D.0"),
        ] {
            assert_eq!(template.name(&log(value), NOW, 0).unwrap(), expected);
        }
    }

    #[test]
    fn a_number_that_could_be_read_in_two_ways_is_marked_and_no_other() {
        let name = |text: &str, log_name: &str, event_name: &str, seq| {
            let key = FileKey {
                event_name: Some(event_name.into()),
                topic: Some("t.1".into()),
                partition: Some(1),
                ..log(log_name)
            };
            template(text).name(&key, NOW, seq).unwrap()
        };
        for (text, log_name, event_name, seq, expected) in [
            ("{log_name}{seq}.log", "a", "", 10, "a10.log"),
            ("{log_name}{seq}.log", "a1", "", 0, "a1~0~.log"),
            ("{log_name}{seq}.log", "a ", "", 5, "a%20~5~.log"),
            ("{seq}{log_name}", "a", "", 10, "10a"),
            ("{seq}{log_name}", "0a", "", 1, "~1~0a"),
            ("{log_name}.{seq}.{event_name}", "log_item", "t_log_item.2", 7, "log_item.7.t_log_item.2"),
            ("{log_name}.{seq}.{event_name}", "a.1", "b", 2, "a.1.~2~.b"),
            ("{log_name}.{seq}.{event_name}", "a", "2.b", 1, "a.1.2.b"),
            ("{partition}{seq}", "", "", 7, "1~7~"),
            ("%-H{seq}", "", "", 7, "13~7~"),
            ("a~{log_name}{seq}", "1", "", 0, "a~1~0~"),
            // As they were.
            ("{log_name}.{seq}.log", "a.1", "", 2, "a.1.2.log"),
            ("{log_name}-{seq}", "9", "", 2, "9-2"),
            ("{seq}.{log_name}", "9.9", "", 2, "2.9.9"),
            ("%Y%m%d%H{seq}.log", "", "", 2, "20201217132.log"),
            ("{app_id}{seq}", "", "", 2, "242"),
            ("{log_name}/%Y-%m-%d/{seq}", "9", "", 2, "9/2020-12-17/2"),
            ("{log_name}/{seq}/{event_name}", "9", "9", 2, "9/2/9"),
            ("{topic}/{partition}/%H.{seq}.log", "", "", 2, "t.1/1/13.2.log"),
        ] {
            assert_eq!(name(text, log_name, event_name, seq), expected, "{text}");
        }
        for sound in [
            "ta.{app_id}.%Y-%m-%d-%H.{seq}.log",
            "{log_name}.{seq}",
            "{topic}/%Y/{seq}.log",
            "%Y%m{seq}",
            "{seq}-{log_name}",
        ] {
            assert!(template(sound).reader.is_none(), "{sound}");
        }
    }

    #[test]
    fn no_name_ends_like_those_beside_event_files() {
        for (text, log_name, expected) in [
            ("{seq}{log_name}", "a.manifest.json", "7a%2Emanifest.json"),
            ("{seq}.{log_name}", "manifest.json", "7%2Emanifest.json"),
            ("{seq}{log_name}", ".manifest.json", "7%2Emanifest.json"),
            ("{seq}/{log_name}", "x.undecided", "7/x%2Eundecided"),
            ("{log_name}.{seq}.manifest.json", "a", "a.7%2Emanifest.json"),
            ("{seq}/{log_name}", "manifest.json", "7/manifest.json"),
            ("{log_name}/{seq}", "x.manifest.json", "x.manifest.json/7"),
        ] {
            assert_eq!(template(text).name(&log(log_name), NOW, 7).unwrap(), expected, "{text} of {log_name}");
        }
        let compressed = template("{seq}{log_name}").hidden(".gz");
        assert_eq!(compressed.name(&log("a.manifest.json"), NOW, 7).unwrap(), "7a.manifest.json.gz");
    }

    #[test]
    fn a_manifest_has_a_temporary_name_that_no_file_can_have() {
        assert_eq!(temporary("a/b.manifest.json").rsplit_once('/').unwrap().0, "a");
        let name = temporary("b.manifest.json");
        assert!(name.starts_with("..") && name.ends_with(manifest::SUFFIX) && name.len() < 100, "{name}");
        assert_ne!(temporary("a.manifest.json"), name);
    }

    #[test]
    fn a_component_over_255_bytes_is_a_reject() {
        let template = template("{log_name}/{seq}");
        assert!(template.name(&log(&"x".repeat(255)), NOW, 0).is_ok());
        let reject = template.name(&log(&"志".repeat(86)), NOW, 0).unwrap_err();
        assert_eq!(reject.reason, Reason::Sink);
        assert_eq!(reject.detail, "its file name has 258 bytes in one component, at most 255 are possible");
    }

    #[test]
    fn mistakes_in_the_template_are_told() {
        for (text, expected) in [
            ("ta.log", "`{seq}` is missing; it keeps names from being used twice, add it"),
            ("{seq}.{seq}", "`{seq}` stands in it 2 times, expected once"),
            ("/data/{seq}", "an absolute path, expected one below `sink.dir`"),
            ("../{seq}", "`..` begins with a dot: collectors skip such files, and `..` is refused"),
            ("a/./{seq}", "`.` begins with a dot: collectors skip such files, and `..` is refused"),
            (".ta.{seq}", "`.ta.0` begins with a dot: collectors skip such files, and `..` is refused"),
            ("a//{seq}", "an empty component (`//` or a `/` at the end)"),
            ("{seq}/", "an empty component (`//` or a `/` at the end)"),
            ("{seq}.%", "`.%` has a `%` that is no strftime field; a percent sign itself is `%%`"),
            ("{seq}.%!", "`.%!` has a `%` that is no strftime field; a percent sign itself is `%%`"),
            ("%{seq}", "`%` has a `%` that is no strftime field; a percent sign itself is `%%`"),
            ("%D.{seq}", "`%D.` has a `%` field that puts `/` into names; write for example %Y-%m-%d"),
            ("a%n{seq}", "a control character"),
            ("a\0{seq}", "a control character"),
            ("{seq", "unbalanced braces, expected `{name}`"),
            ("seq}", "unbalanced braces, expected `{name}`"),
            ("", "`{seq}` is missing; it keeps names from being used twice, add it"),
        ] {
            assert_eq!(mistake(text), expected, "{text}");
        }
        assert!(mistake("{host}.{seq}").starts_with("unknown `{host}`, expected one of {app_id} {topic}"));
        assert!(mistake(&format!("{}{{seq}}", "x".repeat(255))).starts_with("a component gets 275 bytes"));
    }

    /// A template of pieces that are easily taken for each other.
    fn confusing() -> impl Strategy<Value = String> {
        let pieces = prop::sample::select(vec![
            "{log_name}",
            "{topic}",
            "{partition}",
            "{event_name}",
            "{app_id}",
            "%H",
            "%-H",
            "%Y",
            "%b",
            "x",
            "1",
            ".",
            "-",
            "~",
            "_",
            "/",
            "%%",
            ".manifest.json",
            ".undecided",
        ]);
        let side = || prop::collection::vec(pieces.clone(), 0..4).prop_map(|pieces| pieces.concat());
        (side(), side()).prop_map(|(before, after)| format!("{before}{{seq}}{after}"))
    }

    fn confusing_key() -> impl Strategy<Value = FileKey> {
        let value = || prop::option::of("[01a.~%/_-]{0,3}|1|a[.]1[.]a|[.]manifest[.]json|a[.]undecided");
        (value(), value(), value(), prop::option::of(0..120)).prop_map(|(topic, log_name, event_name, partition)| {
            FileKey { topic, log_name, event_name, partition, retries: false }
        })
    }

    proptest! {
        #[test]
        fn two_numbers_never_give_one_name(
            text in confusing(),
            files in prop::collection::vec((confusing_key(), prop_oneof![0..3_u64, 0..130_u64], 0..40_i64), 2..20),
        ) {
            let Ok(template) = NameTemplate::parse(&text, 1, "", shanghai()) else { return Ok(()) };
            let mut seen = HashMap::new();
            for (key, seq, hours) in files {
                let name = template.name(&key, NOW + hours * 3600, seq).unwrap();
                prop_assert_eq!(*seen.entry(name.clone()).or_insert(seq), seq, "{}: {}", text, name);
                prop_assert!(RESERVED.iter().all(|ending| !name.ends_with(ending)), "{}: {}", text, name);
                prop_assert!(name.len() <= template.longest_name(&key).unwrap().len(), "{}: {}", text, name);
                prop_assert!(name.split('/').all(|component| !component.is_empty() && !component.starts_with('.')));
            }
        }

        #[test]
        fn different_values_never_share_a_name(values in prop::collection::hash_set("[._/%a志\u{0}\\PC]{0,3}", 2..20)) {
            let template = template("{log_name}.{seq}");
            let mut seen = HashMap::new();
            for value in values {
                let name = template.name(&log(&value), NOW, 0).unwrap();
                prop_assert_eq!(seen.insert(name, value), None);
            }
        }

        #[test]
        fn no_name_leaves_its_directory_or_hides(value in any::<String>(), topic in any::<String>()) {
            let template = template("{topic}/%H/{log_name}/x.{seq}");
            let key = FileKey { topic: Some(topic), ..log(&value) };
            if let Ok(name) = template.name(&key, NOW, 0) {
                prop_assert_eq!(name.split('/').count(), 4);
                for component in name.split('/') {
                    prop_assert!(!component.is_empty() && !component.starts_with('.'));
                    prop_assert!(!component.contains(char::is_control));
                }
            }
        }

        #[test]
        fn any_template_is_read_or_refused(text in "[a-zA-Z%{}/. ]{0,30}") {
            if let Ok(template) = NameTemplate::parse(&text, 24, "i", shanghai()) {
                prop_assert!(template.name(&FileKey::default(), NOW, 1).is_ok());
            }
        }
    }
}
