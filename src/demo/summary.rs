//! The demo's account: what the records were to become, what the pipeline counted, and what lies in the files.
//!
//! [`Summary::mistakes`] compares the three, so a demo that lost or repeated a record says so.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::time::Duration;

use indicatif::{HumanBytes, HumanCount};
use serde_json::{Value, json};

use super::kafka::{BROKERS, PARTITIONS, TOPIC};
use crate::control::{Counts, PartitionOffsets, total_lag};
use crate::record::{Filter, Reason};

/// Event lines that are shown.
const SHOWN: usize = 3;

/// Lines among which those are looked for.
const LOOKED_AT: usize = 1_000;

/// Longest line that is shown, bytes: some records have 64 KiB.
const SHOWN_BYTES: usize = 1_000;

/// Everything about a demo that has come to its end.
#[derive(Debug)]
pub(crate) struct Summary {
    /// What the generated records must become.
    pub(crate) expected: Counts,
    /// What the pipeline says they became.
    pub(crate) counted: Counts,
    /// Entries in the failure queue.
    pub(crate) queued: u64,
    /// From the first record that was read to the last one that was stored.
    pub(crate) took: Duration,
    /// The rows of `offset_checker` at the end.
    pub(crate) offsets: Vec<PartitionOffsets>,
    /// What lies in the event files.
    pub(crate) files: Files,
}

/// Event files.
#[derive(Debug, Default)]
pub(crate) struct Files {
    pub(crate) number: u64,
    pub(crate) lines: u64,
    pub(crate) bytes: u64,
    /// A few lines, of different events.
    pub(crate) events: Vec<String>,
}

impl Files {
    /// Reads every file of the event directory.
    pub(crate) fn read(dir: &Path) -> io::Result<Self> {
        let mut paths = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        // What begins with a dot is the service's own.
        paths.retain(|path| path.file_name().is_some_and(|name| !name.as_encoded_bytes().starts_with(b".")));
        paths.sort();
        let mut files = Self::default();
        let mut buffer = vec![0; 1 << 20];
        for path in &paths {
            let mut file = File::open(path)?;
            files.number += 1;
            loop {
                let got = file.read(&mut buffer)?;
                if got == 0 {
                    break;
                }
                files.bytes += got as u64;
                files.lines += memchr::memchr_iter(b'\n', &buffer[..got]).count() as u64;
            }
        }
        if let Some(first) = paths.first() {
            files.events = some_events(BufReader::new(File::open(first)?))?;
        }
        Ok(files)
    }
}

/// A few lines of different events.
fn some_events(lines: impl BufRead) -> io::Result<Vec<String>> {
    let (mut names, mut events) = (Vec::new(), Vec::new());
    for line in lines.lines().take(LOOKED_AT) {
        let line = line?;
        let name = serde_json::from_str(&line).map(|event: Value| event["#event_name"].clone());
        if let Ok(name) = name
            && line.len() <= SHOWN_BYTES
            && !names.contains(&name)
            && events.len() < SHOWN
        {
            names.push(name);
            events.push(line);
        }
    }
    Ok(events)
}

impl Summary {
    /// Where expectation, counts and files differ; nothing when every record is accounted for.
    pub(crate) fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        let mut compare = |what: &str, expected: u64, found: u64| {
            if expected != found {
                mistakes.push(format!("{what}: expected {expected}, found {found}"));
            }
        };
        compare("records consumed", self.expected.consumed, self.counted.consumed);
        for ((outcome, reason, expected), (.., counted)) in outcomes(&self.expected).zip(outcomes(&self.counted)) {
            compare(format!("records {outcome} {reason}").trim_end(), expected, counted);
        }
        compare("records in flight", 0, self.counted.in_flight);
        compare("lines in the files", self.expected.written, self.files.lines);
        compare("entries in the failure queue", self.expected.rejected.iter().sum(), self.queued);
        let reached: i64 = self.offsets.iter().filter_map(|row| row.current).sum();
        compare("sum of the offsets", self.expected.consumed, reached.unsigned_abs());
        match total_lag(&self.offsets) {
            Ok(lag) => compare("lag", 0, lag.unsigned_abs()),
            Err(unknown) => mistakes.push(unknown.message),
        }
        mistakes
    }

    fn rate(&self) -> f64 {
        self.counted.consumed as f64 / self.took.as_secs_f64().max(0.001)
    }

    /// As one object. `home` is where everything lies, if it stays.
    pub(crate) fn to_json(&self, home: Option<&Path>) -> Value {
        let by_reason = |outcome: &str| -> Value {
            let of = outcomes(&self.counted).filter(|(of, ..)| *of == outcome);
            of.map(|(_, reason, records)| (reason.to_owned(), Value::from(records)))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        json!({
            "ok": self.mistakes().is_empty(),
            "mistakes": self.mistakes(),
            "records": self.counted.consumed,
            "seconds": (self.took.as_secs_f64() * 1000.0).round() / 1000.0,
            "records_per_second": self.rate().round(),
            "written": self.counted.written,
            "filtered": by_reason("filtered"),
            "rejected": by_reason("rejected"),
            "failure_queue_records": self.queued,
            "files": {"number": self.files.number, "lines": self.files.lines, "bytes": self.files.bytes},
            "offsets": self.offsets,
            "events": self.files.events,
            "home": home,
        })
    }

    /// For people; `table` is that of `offset_checker`.
    pub(crate) fn to_text(&self, table: &str) -> String {
        let mut text = format!("{TOPIC}: {BROKERS} brokers, {PARTITIONS} partitions, consumed to the end\n{table}");
        if self.offsets.iter().any(|row| row.low > Some(0)) {
            text.push_str("(Embedded brokers keep 5 MiB a partition: what is below Low was read before.)\n");
        }
        text.push('\n');
        let bytes = self.files.bytes as f64 / self.took.as_secs_f64().max(0.001);
        let (records, seconds) = (HumanCount(self.counted.consumed), self.took.as_secs_f64());
        let (rate, bytes) = (HumanCount(self.rate() as u64), HumanBytes(bytes as u64));
        let _ = writeln!(text, "{records} records in {seconds:.1} s: {rate} records/s, {bytes}/s of events\n");
        let mut last = "";
        for (outcome, reason, records) in outcomes(&self.counted).filter(|(.., records)| *records > 0) {
            let shown = if outcome == last { "" } else { outcome };
            last = outcome;
            let _ = writeln!(text, "  {shown:8}  {reason:14}  {:>12}", HumanCount(records).to_string());
        }
        let (size, number) = (HumanBytes(self.files.bytes), self.files.number);
        let files = if number == 1 { "file" } else { "files" };
        let (lines, queued) = (HumanCount(self.files.lines), HumanCount(self.queued));
        let _ = writeln!(text, "\n{lines} lines, {size}, in {number} {files}; {queued} records in the failure queue\n");
        if self.mistakes().is_empty() {
            text.push_str("Checked: every outcome came as often as it was generated, every offset is\n");
            text.push_str("stored, and the files have a line for each written record.\n");
        }
        if !self.files.events.is_empty() {
            text.push_str("\nSome of the events:\n");
        }
        for event in &self.files.events {
            let _ = writeln!(text, "\n{event}");
        }
        text
    }
}

/// Every outcome with its reason, in the order of the checks.
fn outcomes(counts: &Counts) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
    let filtered = Filter::ALL.map(|filter| ("filtered", filter.name(), counts.filtered[filter.index()]));
    let rejected = Reason::ALL.map(|reason| ("rejected", reason.name(), counts.rejected[reason.index()]));
    std::iter::once(("written", "", counts.written)).chain(filtered).chain(rejected)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Change = fn(&mut Summary);

    fn summary() -> Summary {
        let mut counts = Counts { consumed: 1_000, written: 990, ..Counts::default() };
        counts.filtered[Filter::Drop.index()] = 4;
        counts.rejected[Reason::BadJson.index()] = 6;
        let (low, high, current, lag) = (Some(0), Some(1_000), Some(1_000), Some(0));
        let row = PartitionOffsets { topic: TOPIC.into(), partition: 0, low, high, current, lag };
        let events = vec![r##"{"#event_name":"t_log_item"}"##.to_owned()];
        Summary {
            expected: counts.clone(),
            counted: counts,
            queued: 6,
            took: Duration::from_millis(500),
            offsets: vec![row],
            files: Files { number: 1, lines: 990, bytes: 1 << 20, events },
        }
    }

    #[test]
    fn people_read_this_account() {
        let expected = "\
mulog_clean_24: 3 brokers, 16 partitions, consumed to the end
[table]

1,000 records in 0.5 s: 2,000 records/s, 2.00 MiB/s of events

  written                            990
  filtered  drop                       4
  rejected  bad_json                   6

990 lines, 1.00 MiB, in 1 file; 6 records in the failure queue

Checked: every outcome came as often as it was generated, every offset is
stored, and the files have a line for each written record.

Some of the events:

{\"#event_name\":\"t_log_item\"}
";
        assert_eq!(summary().to_text("[table]\n"), expected);
    }

    #[test]
    fn programs_read_one_object() {
        let object = summary().to_json(None);
        assert_eq!(object["ok"], true);
        assert_eq!(object["records_per_second"], 2_000.0);
        assert_eq!((&object["filtered"]["drop"], &object["rejected"]["bad_json"]), (&json!(4), &json!(6)));
        assert_eq!(object["home"], Value::Null);
    }

    #[test]
    fn whatever_differs_is_a_mistake() {
        assert_eq!(summary().mistakes(), [""; 0]);
        let changes: [(&str, Change); 7] = [
            ("records consumed: expected 1000, found 999", |summary| summary.counted.consumed -= 1),
            ("records written: expected 990, found 991", |summary| summary.counted.written += 1),
            ("records rejected bad_json: expected 6, found 0", |summary| summary.counted.rejected = [0; 12]),
            ("records in flight: expected 0, found 1", |summary| summary.counted.in_flight = 1),
            ("lines in the files: expected 990, found 989", |summary| summary.files.lines -= 1),
            ("entries in the failure queue: expected 6, found 7", |summary| summary.queued += 1),
            ("lag: expected 0, found 2", |summary| summary.offsets[0].lag = Some(2)),
        ];
        for (mistake, change) in changes {
            let mut summary = summary();
            change(&mut summary);
            assert_eq!(summary.mistakes(), [mistake]);
        }
    }

    #[test]
    fn lines_of_different_events_are_shown_and_none_that_is_very_long() {
        let long = format!(r##"{{"#event_name":"z","a":"{}"}}"##, "x".repeat(SHOWN_BYTES));
        let names = ["a", "a", "b", "c", "d"].map(|name| format!(r##"{{"#event_name":"{name}"}}"##));
        let lines = format!("{long}\nno json\n{}\n", names.join("\n"));
        assert_eq!(some_events(lines.as_bytes()).unwrap(), [names[0].as_str(), &names[2], &names[3]]);
    }
}
