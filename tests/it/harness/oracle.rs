//! What must become of a record, by the plainest means: `serde_json` and `chrono`, one record at a time.
//!
//! It knows what the tests' homes use (app 24, `+08:00`, standard validation, the built-in mapping, a filter that drops
//! `tbllog_*`) and nothing else. Only the names of the outcomes come from the program. Where the rules leave two ways
//! open, [`super::records`] has no such record.

use std::collections::BTreeMap;
use std::fmt;

use chrono::{DateTime, FixedOffset, NaiveDateTime};
use memchr::{memchr, memchr3};
use mtga::control::Counts;
use mtga::record::{Filter, Reason};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::Record;

/// What becomes of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Line(String),
    Filtered(Filter),
    Rejected(Reason),
}

/// What must become of a topic's records: lines in order by partition, and the counts.
#[derive(Debug, Default)]
pub(crate) struct Expectation {
    pub(crate) lines: BTreeMap<i32, Vec<String>>,
    pub(crate) counts: Counts,
}

/// The expectation for records in the order in which they were produced.
pub(crate) fn expect(records: &[Record]) -> Expectation {
    let mut all = Expectation::default();
    for record in records {
        all.counts.consumed += 1;
        match outcome(record) {
            Outcome::Line(line) => {
                all.counts.written += 1;
                all.lines.entry(record.partition).or_default().push(line);
            }
            Outcome::Filtered(filter) => all.counts.filtered[filter.index()] += 1,
            Outcome::Rejected(reason) => all.counts.rejected[reason.index()] += 1,
        }
    }
    all
}

/// What becomes of one record.
pub(crate) fn outcome(record: &Record) -> Outcome {
    try_line(record).unwrap_or_else(|other| other)
}

fn try_line(record: &Record) -> Result<Outcome, Outcome> {
    let reject = Outcome::Rejected;
    let value = record.value.as_ref().ok_or(Outcome::Filtered(Filter::Tombstone))?;
    let bad_json = || reject(Reason::BadJson);
    let text = std::str::from_utf8(value).map_err(|_| bad_json())?;
    let members = Members::parse(text.strip_prefix('\u{feff}').unwrap_or(text)).ok_or_else(bad_json)?;
    let headers = members.get("headers").and_then(Members::parse).ok_or(reject(Reason::NoHeaders))?;
    if headers.get("app_id").is_some() && headers.text("app_id").as_deref() != Some("24") {
        return Err(Outcome::Filtered(Filter::OtherApp));
    }
    let log_name = headers.string("log_name").filter(|name| !name.is_empty()).ok_or(reject(Reason::NoLogName))?;
    let raw_logs = members.get("logs").unwrap_or_default();
    let logs = Members::parse(raw_logs).ok_or(reject(Reason::NoLogs))?;
    if log_name.starts_with("tbllog_") {
        return Err(Outcome::Filtered(Filter::Drop));
    }
    let text = |name| logs.text(name).unwrap_or_default();
    let (account, distinct, ip) = (text("role_id"), text("distinct_id"), text("ip"));
    let time = time(&text("mtime")).unwrap_or_else(|| local(record.timestamp, true));
    let event = format!("t_{log_name}");
    if event.len() > 50 || !event.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Err(reject(Reason::BadEventName));
    }
    if account.is_empty() && distinct.is_empty() {
        return Err(reject(Reason::NoId));
    }
    if account.chars().count() > 128 || distinct.chars().count() > 128 {
        return Err(reject(Reason::BadId));
    }
    let properties = without_space(raw_logs);
    Ok(Outcome::Line(format!(
        concat!(
            r##"{{"#account_id":"{}","#distinct_id":"{}","#event_name":"{}","#ip":"{}","##,
            r##""#time":"{}","#type":"track","properties":{}}}"##
        ),
        account, distinct, event, ip, time, properties
    )))
}

/// Members of an object in order, duplicates included.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Members<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// The last member of this name.
    fn get(&self, name: &str) -> Option<&'a str> {
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.get())
    }

    fn string(&self, name: &str) -> Option<String> {
        serde_json::from_str(self.get(name)?).ok()
    }

    /// As a `#` value: a string as it is, a number by its text, anything else is absent.
    fn text(&self, name: &str) -> Option<String> {
        let raw = self.get(name)?;
        match raw.as_bytes().first()? {
            b'"' => self.string(name),
            b'-' | b'0'..=b'9' => Some(raw.to_owned()),
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Each)
    }
}

/// Drops the white space between tokens.
fn without_space(json: &str) -> String {
    // Most have none at all, and there are millions of them.
    if memchr3(b' ', b'\t', b'\n', json.as_bytes()).or_else(|| memchr(b'\r', json.as_bytes())).is_none() {
        return json.to_owned();
    }
    let (mut in_string, mut escaped) = (false, false);
    json.chars()
        .filter(|c| {
            let keep = in_string || !c.is_ascii_whitespace();
            in_string = if *c == '"' && !escaped { !in_string } else { in_string };
            escaped = *c == '\\' && !escaped;
            keep
        })
        .collect()
}

/// `#time` from the text of a field; `None` when it is no time.
fn time(text: &str) -> Option<String> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return match text.parse().ok()? {
            0 => None,
            n if n < 100_000_000_000 => Some(local(n * 1000, false)),
            n if n < 100_000_000_000_000 => Some(local(n, true)),
            n => Some(local(n / 1000, true)),
        };
    }
    for (form, length) in [("%Y-%m-%d %H:%M:%S", 19), ("%Y-%m-%d %H:%M:%S%.3f", 23)] {
        if text.len() == length && NaiveDateTime::parse_from_str(text, form).is_ok() {
            return Some(text.to_owned());
        }
    }
    let time = DateTime::parse_from_rfc3339(text).ok()?;
    Some(local(time.timestamp_millis(), text.contains('.')))
}

/// Milliseconds since 1970 UTC in the tests' time zone.
fn local(milliseconds: i64, with_milliseconds: bool) -> String {
    let zone = FixedOffset::east_opt(8 * 3600).expect("a zone");
    let form = if with_milliseconds { "%Y-%m-%d %H:%M:%S%.3f" } else { "%Y-%m-%d %H:%M:%S" };
    DateTime::from_timestamp_millis(milliseconds).expect("a time").with_timezone(&zone).format(form).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::Mix;

    /// The record and the line that the program's makers were given.
    const RECORD: &str = r#"{"headers":{"app_id":24,"log_name":"log_item"},"logs":{"account_name":"4866014107","action":2146,"mtime":1608184243,"pid":1608184244000008,"role_id":6001310009300,"via":"36|3100"}}"#;
    const LINE: &str = r##"{"#account_id":"6001310009300","#distinct_id":"","#event_name":"t_log_item","#ip":"","#time":"2020-12-17 13:50:43","#type":"track","properties":{"account_name":"4866014107","action":2146,"mtime":1608184243,"pid":1608184244000008,"role_id":6001310009300,"via":"36|3100"}}"##;

    #[test]
    fn the_oracle_agrees_with_the_golden_pair() {
        let record = Record { partition: 0, key: None, value: Some(RECORD.into()), timestamp: 0 };
        assert_eq!(outcome(&record), Outcome::Line(LINE.to_owned()));
    }

    #[test]
    fn every_case_of_the_dirty_mix_has_the_outcome_that_it_was_made_for() {
        let records: Vec<_> = (0..3 * 48).map(|n| Mix::Dirty.record(n, 4)).collect();
        let all = expect(&records);
        let by_reason = |reason: Reason| all.counts.rejected[reason.index()];
        assert_eq!(all.counts.written, 2 * 48 + 27);
        assert_eq!(all.counts.filtered, [1, 2, 1]);
        assert_eq!(by_reason(Reason::BadJson), 7);
        assert_eq!(by_reason(Reason::NoHeaders), 2);
        assert_eq!(by_reason(Reason::NoLogName), 3);
        assert_eq!(by_reason(Reason::NoLogs), 2);
        for reason in [Reason::BadEventName, Reason::NoId, Reason::BadId] {
            assert_eq!(by_reason(reason), 1, "{reason}");
        }
    }

    #[test]
    fn every_form_of_the_time_is_read() {
        for (text, expected) in [
            ("1608184243", Some("2020-12-17 13:50:43")),
            ("1608184243042", Some("2020-12-17 13:50:43.042")),
            ("1608184243042999", Some("2020-12-17 13:50:43.042")),
            ("2020-12-17 13:50:43.007", Some("2020-12-17 13:50:43.007")),
            ("2020-12-31T23:59:59.250-02:30", Some("2021-01-01 10:29:59.250")),
            ("0", None),
            ("-5", None),
            ("2020-13-17 13:50:43", None),
        ] {
            assert_eq!(time(text).as_deref(), expected, "{text}");
        }
    }
}
