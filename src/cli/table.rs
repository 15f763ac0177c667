//! Tables for people, at most 80 columns where their content lets them.
//!
//! Control characters in foreign text are replaced, so that a payload cannot command the terminal.

use std::fmt::Write as _;

use cli_table::format::{Border, HorizontalLine, Separator, VerticalLine};
use cli_table::{Cell, CellStruct, Table};

use super::{
    AdoptedFile, AdoptedPosition, Adoption, Fault, FileOutcome, PositionOutcome, Summary, Unknown, Verification,
};
use crate::control::{FailureEntry, PartitionOffsets, Removed, State, Status, ZoneInfo};
use crate::record::{Filter, Reason};
use crate::terminal;

/// Columns of the head of a payload: what the other columns leave of 80.
const HEAD_WIDTH: usize = 28;
/// Columns of the place of a fault, and of what was found there.
const FAULT_WIDTH: usize = 29;
/// Columns of each half of what `adopt` did.
const ADOPTED_WIDTH: usize = 36;
/// Columns of a value in the status table.
const VALUE_WIDTH: usize = 56;

/// A table with its title row and the lines around it.
fn draw(title: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let line = |end: char, junction: char| HorizontalLine::new(end, end, junction, '-');
    let border = Border::builder()
        .top(line('.', '.'))
        .bottom(line('\'', '\''))
        .left(VerticalLine::new('|'))
        .right(VerticalLine::new('|'))
        .build();
    let separator =
        Separator::builder().title(Some(line('+', '+'))).column(Some(VerticalLine::new('|'))).row(None).build();
    let rows: Vec<Vec<CellStruct>> = rows.into_iter().map(|row| row.into_iter().map(Cell::cell).collect()).collect();
    let is_empty = rows.is_empty();
    let table = rows
        .table()
        .title(title.iter().map(Cell::cell).collect::<Vec<_>>())
        .border(border)
        .separator(separator)
        .color_choice(cli_table::ColorChoice::Never);
    let mut text = table.display().map(|table| table.to_string()).unwrap_or_default();
    if !text.ends_with('\n') {
        text.push('\n');
    }
    // The bottom line comes with the last row.
    if is_empty && let Some(top) = text.lines().next() {
        let bottom = top.replace('.', "'");
        text = format!("{text}{bottom}\n");
    }
    text
}

/// The table of `offset_checker`.
pub(crate) fn offsets(partitions: &[PartitionOffsets]) -> String {
    let shown = |offset: Option<i64>| offset.map_or_else(|| "unknown".to_owned(), |offset| offset.to_string());
    let row = |(number, partition): (usize, &PartitionOffsets)| {
        vec![
            number.to_string(),
            clean(&partition.topic),
            partition.partition.to_string(),
            shown(partition.low),
            shown(partition.high),
            shown(partition.current),
            shown(partition.lag),
        ]
    };
    draw(&["#", "Topic", "Partition", "Low", "High", "Current", "Lag"], partitions.iter().enumerate().map(row))
}

/// The table of `failure_queue_list`.
pub(super) fn failures(entries: &[FailureEntry]) -> String {
    let row = |entry: &FailureEntry| {
        let attempts = if entry.parked { format!("{} parked", entry.attempts) } else { entry.attempts.to_string() };
        vec![
            entry.position.to_string(),
            entry.reason.to_string(),
            attempts,
            duration(entry.age_seconds),
            cut(&clean(&entry.head), HEAD_WIDTH),
        ]
    };
    draw(&["Position", "Reason", "Attempts", "Age", "Head"], entries.iter().map(row))
}

/// The row of the time zone, if the program says which one it is.
fn time_zone(zone: &ZoneInfo) -> Option<(&'static str, String)> {
    let rules = zone.source.as_ref().map_or_else(String::new, |source| {
        let version = zone.tzdata.as_ref().map_or_else(|| "of an unknown version".to_owned(), |version| clean(version));
        format!(", tzdata {version} ({})", clean(source))
    });
    (!zone.name.is_empty()).then(|| ("Time zone", format!("{}{rules}", clean(&zone.name))))
}

/// The table of `status`.
pub(super) fn status(status: &Status) -> String {
    let mut rows: Vec<(&str, String)> = vec![("State", state(status.state).to_owned())];
    rows.extend(status.reason.as_ref().map(|reason| {
        let since = status.reason_seconds.filter(|seconds| *seconds > 0);
        let since = since.map_or_else(String::new, |seconds| format!(" (for {})", duration(seconds)));
        ("Reason", format!("{}{since}", clean(reason)))
    }));
    rows.extend(status.pid.map(|pid| ("Pid", pid.to_string())));
    rows.extend(status.uptime_seconds.map(|seconds| ("Uptime", duration(seconds))));
    rows.push(("Version", clean(&status.version)));
    rows.extend(time_zone(&status.time_zone));
    if status.pid.is_some() && status.home_id.is_empty() {
        // It has not opened its store yet, which may take long: that nothing is known must not look like nothing there.
        return draw(&["Status", ""], rows.into_iter().map(status_row));
    }
    rows.push(("Home id", clean(&status.home_id)));
    if status.pid.is_some() {
        let (consumed, written) = (status.consumed_per_second, status.written_per_second);
        rows.push(("Rates", format!("{consumed:.0} consumed/s, {written:.0} written/s")));
    }
    rows.push(("Partitions", status.partitions.to_string()));
    rows.push(("Lag", status.lag.map_or_else(|| "unknown".to_owned(), |lag| lag.to_string())));
    let counts = &status.counts;
    rows.push(("Consumed", counts.consumed.to_string()));
    rows.push(("Retried", counts.retried.to_string()));
    rows.push(("Written", counts.written.to_string()));
    rows.push(("Filtered", by_reason(&counts.filtered, |index| Filter::ALL[index].name())));
    rows.push(("Rejected", by_reason(&counts.rejected, |index| Reason::ALL[index].name())));
    rows.push(("In flight", counts.in_flight.to_string()));
    rows.push(("Lost before read", status.gap_records.to_string()));
    if status.client_restarts > 0 {
        rows.push((
            "Kafka client",
            format!("replaced {} times since it stood still or was cut off", status.client_restarts),
        ));
    }
    if status.clients_left > 0 {
        rows.push(("Old Kafka clients", format!("{} have not ended", status.clients_left)));
    }
    let queue = (status.failure_queue_records, bytes(status.failure_queue_bytes));
    rows.push(("Failure queue", format!("{} records, {}", queue.0, queue.1)));
    let Removed { cleared, dropped, lost } = status.removed;
    rows.push(("Removed from it", format!("{cleared} cleared, {dropped} dropped for room, {lost} lost")));
    rows.push(("Open files", status.open_files.to_string()));
    let block = status.last_checkpoint_block;
    let checkpoint = status.last_checkpoint_seconds.map(|ago| format!("{ago:.1} s ago, block {block}"));
    rows.push(("Last checkpoint", checkpoint.unwrap_or_else(|| "none yet".to_owned())));
    draw(&["Status", ""], rows.into_iter().map(status_row))
}

fn status_row((name, value): (&str, String)) -> Vec<String> {
    vec![name.to_owned(), wrap(&value, VALUE_WIDTH)]
}

/// The table of `verify`, when there are faults, and what was looked at.
pub(super) fn verification(found: &Verification) -> String {
    let row = |fault: &Fault| {
        vec![
            fault.kind.name().to_owned(),
            wrap(&clean(&fault.place), FAULT_WIDTH),
            wrap(&clean(&fault.detail), FAULT_WIDTH),
        ]
    };
    let open = |unknown: &Unknown| {
        vec![
            unknown.kind.name().to_owned(),
            wrap(&clean(&unknown.place), FAULT_WIDTH),
            wrap(&clean(&unknown.detail), FAULT_WIDTH),
        ]
    };
    let Summary { files, lines, bytes, partitions, ranges, faults, unknown, missing, hidden, live } = found.summary;
    let mut table =
        if faults == 0 { String::new() } else { draw(&["Fault", "Where", "What"], found.faults.iter().map(row)) };
    if unknown > 0 {
        table += &draw(&["Not known", "Where", "What"], found.unknown.iter().map(open));
    }
    let size = self::bytes(bytes);
    let mut text = format!(
        "{table}{} as their manifests say: {}, {size}, {} of {}\n",
        counted(files, "file"),
        counted(lines, "line"),
        counted(ranges, "range"),
        counted(partitions, "partition"),
    );
    let notes = [
        (missing, "file", "gone with the manifest left, which is allowed"),
        (hidden, "hidden file", "not published, or left behind by a crash"),
        (live, "live file", "without a manifest, so not checked"),
    ];
    for (count, what, note) in notes.iter().filter(|(count, ..)| *count > 0) {
        let _ = writeln!(text, "{}: {note}", counted(*count, what));
    }
    if unknown > 0 {
        let _ = writeln!(text, "{} that manifests alone do not tell", counted(unknown, "thing"));
    }
    let _ = writeln!(text, "{}", if faults == 0 { "no faults".to_owned() } else { counted(faults, "fault") });
    text
}

/// The table of `adopt`, and what is left to be done.
pub(super) fn adoption(adoption: &Adoption) -> String {
    if let Some(before) = &adoption.before {
        return format!("{}; there is nothing left to do\n", clean(before));
    }
    let file = |file: &AdoptedFile| {
        let outcome = match file.outcome {
            FileOutcome::Completed => "completed",
            FileOutcome::Published => "published",
            FileOutcome::Removed => "removed, its records are read again",
            FileOutcome::SetAside => "set aside: published elsewhere or not, nobody can tell",
        };
        [file.path.display().to_string(), outcome.to_owned()]
    };
    let position = |position: &AdoptedPosition| {
        let outcome = match position.outcome {
            PositionOutcome::Committed => "committed to the group",
            PositionOutcome::Current => "known already",
            PositionOutcome::TakenOver => "taken over by this home",
            PositionOutcome::Elsewhere => "left: another instance has gone on",
            PositionOutcome::Gone => "left: the topic is gone or another",
            PositionOutcome::NotOurs => "left: this home is in a group",
        };
        [format!("{}[{}] at {}", position.topic, position.partition, position.offset), outcome.to_owned()]
    };
    let rows: Vec<_> = adoption.files.iter().map(file).chain(adoption.positions.iter().map(position)).collect();
    let wrapped = |row: [String; 2]| row.iter().map(|text| wrap(&clean(text), ADOPTED_WIDTH)).collect();
    let mut text = draw(&["File or partition", "What became of it"], rows.into_iter().map(wrapped));
    let known = adoption.known_entries;
    let already = if known == 0 { String::new() } else { format!(", {known} more were in it already") };
    let _ = writeln!(
        text,
        "{} of its failure queue moved into this home's{already}",
        if adoption.entries == 1 { "1 entry".to_owned() } else { format!("{} entries", adoption.entries) }
    );
    if adoption.left_entries > 0 {
        let left = counted(adoption.left_entries, "entry").replace("entrys", "entries");
        let _ = writeln!(text, "{left} of it stay there: they may have come from another copy of that home");
    }
    let _ = writeln!(text, "its files stay in {}: point a collector there", clean(&adoption.dir.display().to_string()));
    text
}

fn counted(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// The name of a state.
pub(super) fn state(state: State) -> &'static str {
    match state {
        State::Stopped => "stopped",
        State::Starting => "starting",
        State::Waiting => "waiting",
        State::Consuming => "consuming",
        State::Paused => "paused",
        State::Stopping => "stopping",
    }
}

/// The sum, and what it is made of.
fn by_reason(counts: &[u64], name: impl Fn(usize) -> &'static str) -> String {
    let mut text = counts.iter().sum::<u64>().to_string();
    let parts: Vec<_> = counts.iter().enumerate().filter(|(_, count)| **count > 0).collect();
    for (position, (index, count)) in parts.iter().enumerate() {
        let start = if position == 0 { " (" } else { ", " };
        let end = if position + 1 == parts.len() { ")" } else { "" };
        let _ = write!(text, "{start}{} {count}{end}", name(*index));
    }
    text
}

/// A span in its two largest units: `1d 2h`, `4m 5s`.
fn duration(seconds: u64) -> String {
    let units = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let first = units.iter().position(|(size, _)| seconds >= *size).unwrap_or(units.len() - 1);
    let mut left = seconds;
    let mut parts = Vec::new();
    for (size, name) in units.iter().skip(first).take(2) {
        if left >= *size || parts.is_empty() {
            parts.push(format!("{}{name}", left / size));
        }
        left %= size;
    }
    parts.join(" ")
}

fn bytes(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut size = bytes as f64;
    let mut unit = "B";
    for larger in units {
        if size < 1024.0 {
            break;
        }
        size /= 1024.0;
        unit = larger;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{size:.1} {unit}") }
}

fn clean(text: &str) -> String {
    terminal::shown(text).into_owned()
}

/// Columns of a character; beyond ASCII two are reckoned, so that a line is rather too short than too long.
fn width(c: char) -> usize {
    if c.is_ascii() { 1 } else { 2 }
}

fn cut(text: &str, columns: usize) -> String {
    if text.chars().map(width).sum::<usize>() <= columns {
        return text.to_owned();
    }
    let mut used = 3;
    let kept = text.chars().take_while(|c| {
        used += width(*c);
        used <= columns
    });
    kept.chain("...".chars()).collect()
}

/// Breaks at spaces, and within words that are longer than a line.
fn wrap(text: &str, columns: usize) -> String {
    let mut lines = String::new();
    let mut used = 0;
    for word in text.split(' ') {
        let size: usize = word.chars().map(width).sum();
        if used > 0 && used + 1 + size > columns {
            lines.push('\n');
            used = 0;
        } else if used > 0 {
            lines.push(' ');
            used += 1;
        }
        for c in word.chars() {
            if used + width(c) > columns {
                lines.push('\n');
                used = 0;
            }
            lines.push(c);
            used += width(c);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cli::FaultKind;
    use crate::control::testing;

    #[test]
    fn offset_checker_prints_exactly_this_table() {
        let expected = "\
.---.----------------.-----------.------------.------------.------------.-----.
| # | Topic          | Partition | Low        | High       | Current    | Lag |
+---+----------------+-----------+------------+------------+------------+-----+
| 0 | mulog_clean_24 | 0         | 6171720626 | 6197511755 | 6197511494 | 261 |
'---'----------------'-----------'------------'------------'------------'-----'
";
        assert_eq!(offsets(&testing::offsets()), expected);
    }

    #[test]
    fn what_is_not_known_of_a_partition_is_said_to_be_unknown() {
        let row = PartitionOffsets { low: None, high: None, lag: None, ..testing::offsets().remove(0) };
        let cells: Vec<String> = offsets(&[row])
            .lines()
            .nth(3)
            .map(|line| line.split('|').map(|cell| cell.trim().to_owned()).collect())
            .expect("a row");
        assert_eq!(cells[4..8], ["unknown", "unknown", "6197511494", "unknown"]);
    }

    #[test]
    fn a_table_without_rows_is_closed() {
        let expected = "\
.---.-------.-----------.-----.------.---------.-----.
| # | Topic | Partition | Low | High | Current | Lag |
+---+-------+-----------+-----+------+---------+-----+
'---'-------'-----------'-----'------'---------'-----'
";
        assert_eq!(offsets(&[]), expected);
    }

    #[test]
    fn the_failure_queue_fits_into_80_columns() {
        let mut entries = vec![testing::entry(1), testing::entry(20_000_000)];
        entries[1].parked = true;
        entries[1].attempts = 5;
        entries[1].reason = Reason::BadEventName;
        entries[1].head = "你好\u{1b}[2J世界".repeat(10);
        let text = failures(&entries);
        let expected = "\
.----------.----------------.----------.-------.------------------------------.
| Position | Reason         | Attempts | Age   | Head                         |
+----------+----------------+----------+-------+------------------------------+
| 1        | bad_json       | 1        | 2h 1m | {\"headers\":{\"app_id\":24,\"... |
| 20000000 | bad_event_name | 5 parked | 2h 1m | 你好\\u{1b}[2J世界你好\\u{1... |
'----------'----------------'----------'-------'------------------------------'
";
        assert_eq!(text, expected);
    }

    #[test]
    fn the_status_of_a_running_service() {
        let mut running = testing::status();
        running.reason = Some("no broker of kafka-1.example.org:9092,kafka-2.example.org:9092 answers".to_owned());
        let expected = "\
.------------------.---------------------------------------------------.
| Status           |                                                   |
+------------------+---------------------------------------------------+
| State            | consuming                                         |
| Reason           | no broker of                                      |
|                  | kafka-1.example.org:9092,kafka-2.example.org:9092 |
|                  | answers                                           |
| Pid              | 4242                                              |
| Uptime           | 1d 2h                                             |
| Version          | 0.1.0                                             |
| Time zone        | Asia/Shanghai, tzdata 2026f (/usr/share/zoneinfo) |
| Home id          | 5f0c7a                                            |
| Rates            | 1235 consumed/s, 1200 written/s                   |
| Partitions       | 1                                                 |
| Lag              | 261                                               |
| Consumed         | 100                                               |
| Retried          | 2                                                 |
| Written          | 90                                                |
| Filtered         | 5 (tombstone 1, drop 4)                           |
| Rejected         | 4 (bad_json 3, no_time 1)                         |
| In flight        | 3                                                 |
| Lost before read | 0                                                 |
| Failure queue    | 4 records, 4.9 KiB                                |
| Removed from it  | 3 cleared, 0 dropped for room, 0 lost             |
| Open files       | 2                                                 |
| Last checkpoint  | 0.4 s ago, block 77                               |
'------------------'---------------------------------------------------'
";
        assert_eq!(status(&running), expected);
    }

    #[test]
    fn the_status_of_a_service_that_has_not_opened_its_store_shows_no_zeros() {
        let mut starting = testing::status();
        (starting.state, starting.home_id) = (State::Starting, String::new());
        let shown = status(&starting);
        assert!(shown.contains("| Pid ") && !shown.contains("| Failure queue"), "{shown}");
    }

    #[test]
    fn what_verify_found_fits_into_80_columns() {
        let fault = |kind, place: &str, detail: &str| Fault {
            kind,
            place: place.to_owned(),
            detail: detail.to_owned(),
            range: None,
        };
        let mut found = Verification {
            faults: vec![
                fault(
                    FaultKind::BadManifest,
                    "/srv/mtga/data/ta.24.2020-12-17-13.7.log",
                    "its CRC-32C is 1badcafe, its manifest says 0badcafe",
                ),
                fault(FaultKind::Gap, "mulog_clean_24[0] from 5 to 9", "4 offsets: no file covers them"),
            ],
            unknown: vec![Unknown {
                kind: crate::cli::UnknownKind::Beginning,
                place: "mulog_clean_24[0] before 3".to_owned(),
                detail: "its first manifest does not tell where the partition began".to_owned(),
                range: Some(crate::msink::manifest::Range {
                    topic: "mulog_clean_24".into(),
                    topic_id: String::new(),
                    partition: 0,
                    from: 0,
                    to: 3,
                }),
            }],
            summary: Summary {
                files: 1,
                lines: 1000,
                bytes: 1 << 20,
                partitions: 1,
                ranges: 2,
                faults: 2,
                unknown: 1,
                hidden: 3,
                ..Summary::default()
            },
        };
        let expected = "\
.--------------.-------------------------------.------------------------------.
| Fault        | Where                         | What                         |
+--------------+-------------------------------+------------------------------+
| bad_manifest | /srv/mtga/data/ta.24.2020-12- | its CRC-32C is 1badcafe, its |
|              | 17-13.7.log                   | manifest says 0badcafe       |
| gap          | mulog_clean_24[0] from 5 to 9 | 4 offsets: no file covers    |
|              |                               | them                         |
'--------------'-------------------------------'------------------------------'
.-----------.----------------------------.-----------------------------.
| Not known | Where                      | What                        |
+-----------+----------------------------+-----------------------------+
| beginning | mulog_clean_24[0] before 3 | its first manifest does not |
|           |                            | tell where the partition    |
|           |                            | began                       |
'-----------'----------------------------'-----------------------------'
1 file as their manifests say: 1000 lines, 1.0 MiB, 2 ranges of 1 partition
3 hidden files: not published, or left behind by a crash
1 thing that manifests alone do not tell
2 faults
";
        assert_eq!(verification(&found), expected);
        found.faults.clear();
        found.unknown.clear();
        found.summary = Summary::default();
        let expected = "0 files as their manifests say: 0 lines, 0 B, 0 ranges of 0 partitions\nno faults\n";
        assert_eq!(verification(&found), expected);
    }

    #[test]
    fn what_adopt_did_fits_into_80_columns() {
        let file = |path: &str, outcome| AdoptedFile { path: path.into(), outcome };
        let position = |partition, outcome| AdoptedPosition {
            topic: "mulog_clean_24".into(),
            partition,
            offset: 6_197_511_000,
            outcome,
        };
        let mut adoption = Adoption {
            dir: "/mnt/old/data".into(),
            files: vec![
                file("/mnt/old/data/.ta.24.2020-12-17-13.8.log.undecided", FileOutcome::SetAside),
                file("/mnt/old/data/ta.24.2020-12-17-13.7.log", FileOutcome::Published),
            ],
            positions: vec![position(0, PositionOutcome::TakenOver), position(1, PositionOutcome::Elsewhere)],
            entries: 1,
            known_entries: 2,
            ..Adoption::default()
        };
        let expected = "\
.--------------------------------------.------------------------------------.
| File or partition                    | What became of it                  |
+--------------------------------------+------------------------------------+
| /mnt/old/data/.ta.24.2020-12-17-13.8 | set aside: published elsewhere or  |
| .log.undecided                       | not, nobody can tell               |
| /mnt/old/data/ta.24.2020-12-17-13.7. | published                          |
| log                                  |                                    |
| mulog_clean_24[0] at 6197511000      | taken over by this home            |
| mulog_clean_24[1] at 6197511000      | left: another instance has gone on |
'--------------------------------------'------------------------------------'
1 entry of its failure queue moved into this home's, 2 more were in it already
its files stay in /mnt/old/data: point a collector there
";
        assert_eq!(super::adoption(&adoption), expected);
        adoption.before = Some("this home was adopted at noon".into());
        assert_eq!(super::adoption(&adoption), "this home was adopted at noon; there is nothing left to do\n");
    }

    #[test]
    fn spans_and_sizes_are_short() {
        assert_eq!(duration(0), "0s");
        assert_eq!(duration(59), "59s");
        assert_eq!(duration(3_600), "1h");
        assert_eq!(duration(86_399), "23h 59m");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1 << 30), "1.0 GiB");
    }

    proptest! {
        #[test]
        fn wrapping_loses_nothing_and_no_line_is_too_long(text in "[a-z é世]{0,80}") {
            let wrapped = wrap(&text, 12);
            for line in wrapped.lines() {
                prop_assert!(line.chars().map(width).sum::<usize>() <= 12);
            }
            let kept = |text: &str| text.replace([' ', '\n'], "");
            prop_assert_eq!(kept(&wrapped), kept(&text));
        }
    }
}
