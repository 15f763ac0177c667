//! The log's files: `mtga.log` is written, finished ones are named by their time, `mtga.2026-01-31.log`.
//!
//! A name that is taken gets a number, `mtga.2026-01-31.2.log`. At most `log.keep` files stay, the one being written
//! included. A file that cannot be rotated goes on being written; one that others moved away or removed (logrotate) is
//! followed by a new `mtga.log` with the next line or flush. What an earlier process left in `mtga.log` is continued when it
//! is of the same period. `mtga.log` is a regular file and no link: a link could lead into a file of another user.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use chrono::{DateTime, Utc};

use crate::config::{self, Rotation, TimeZone};
use crate::regular;

const CURRENT: &str = "mtga.log";

/// Writes lines; each call of `write` is whole lines and goes into one file.
#[derive(Debug)]
pub(super) struct RotatingFile {
    dir: PathBuf,
    rotation: Rotation,
    max_size: u64,
    keep: usize,
    zone: TimeZone,
    now: fn() -> DateTime<Utc>,
    file: File,
    size: u64,
    /// The period that the file's lines are of.
    period: String,
}

impl RotatingFile {
    pub(super) fn open(log: &config::Log, zone: TimeZone, now: fn() -> DateTime<Utc>) -> io::Result<Self> {
        let file = open_current(&log.dir)?;
        let meta = file.metadata()?;
        let written = if meta.len() == 0 { now() } else { meta.modified().map_or_else(|_| now(), DateTime::from) };
        let mut this = Self {
            dir: log.dir.clone(),
            rotation: log.rotation,
            max_size: log.max_size,
            keep: log.keep.max(1),
            zone,
            now,
            file,
            size: meta.len(),
            period: String::new(),
        };
        this.period = this.period_of(written);
        this.prune();
        Ok(this)
    }

    fn period_of(&self, time: DateTime<Utc>) -> String {
        match self.rotation {
            Rotation::Never | Rotation::Size => String::new(),
            Rotation::Hourly => self.format(time, "%Y-%m-%d-%H"),
            Rotation::Daily => self.format(time, "%Y-%m-%d"),
        }
    }

    fn format(&self, time: DateTime<Utc>, format: &str) -> String {
        self.zone.local(time).format(format).to_string()
    }

    /// Begins a new file when the one being written was moved away or removed: nobody would look for its lines there.
    fn follow_name(&mut self) {
        let is_there = match (self.file.metadata(), fs::metadata(self.dir.join(CURRENT))) {
            (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
            (_, found) => !found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound),
        };
        // A file that cannot be opened is tried again with the next line.
        if !is_there && let Ok(file) = open_current(&self.dir) {
            self.size = file.metadata().map_or(0, |metadata| metadata.len());
            self.file = file;
        }
    }

    fn rotate_if_due(&mut self, more: u64) {
        let now = (self.now)();
        let period = self.period_of(now);
        let full = self.rotation == Rotation::Size && self.size > 0 && self.size + more > self.max_size;
        if !full && period == self.period {
            return;
        }
        let stamp = if full { self.format(now, "%Y-%m-%d-%H%M%S") } else { self.period.clone() };
        if self.rotate(&stamp).is_ok() {
            self.period = period;
            self.prune();
        }
    }

    fn rotate(&mut self, stamp: &str) -> io::Result<()> {
        let mut name = self.dir.join(format!("mtga.{stamp}.log"));
        let mut number = 1;
        while name.try_exists()? {
            number += 1;
            name = self.dir.join(format!("mtga.{stamp}.{number}.log"));
        }
        match fs::rename(self.dir.join(CURRENT), name) {
            // Another process has moved it away already.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed?,
        }
        self.file = open_current(&self.dir)?;
        self.size = 0;
        Ok(())
    }

    /// Deletes the oldest finished files beyond `keep`.
    fn prune(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        let mut finished: Vec<(SystemTime, PathBuf)> = entries
            .filter_map(Result::ok)
            .filter(|entry| entry.file_name().to_str().is_some_and(is_finished))
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect();
        finished.sort_unstable();
        let surplus = (finished.len() + 1).saturating_sub(self.keep);
        for (_, path) in finished.iter().take(surplus) {
            let _ = fs::remove_file(path);
        }
    }
}

/// `mtga.<digits, dashes, dots>.log`: nothing that another process may have put there.
fn is_finished(name: &str) -> bool {
    let stamp = name.strip_prefix("mtga.").and_then(|rest| rest.strip_suffix(".log"));
    stamp.is_some_and(|stamp| {
        stamp.starts_with(|c: char| c.is_ascii_digit()) && stamp.chars().all(|c| matches!(c, '0'..='9' | '-' | '.'))
    })
}

fn open_current(dir: &Path) -> io::Result<File> {
    DirBuilder::new().recursive(true).mode(0o750).create(dir)?;
    regular::open_with(OpenOptions::new().append(true).create(true).mode(0o640), &dir.join(CURRENT))
}

impl Write for RotatingFile {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        crate::fault::point("log.line");
        self.follow_name();
        self.rotate_if_due(lines.len() as u64);
        self.file.write_all(lines)?;
        self.size += lines.len() as u64;
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.follow_name();
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::os::unix::fs::PermissionsExt;

    use chrono::{Duration, FixedOffset};

    use super::*;
    use crate::config::Level;

    thread_local! { static NOW: Cell<DateTime<Utc>> = const { Cell::new(DateTime::UNIX_EPOCH) } }

    fn now() -> DateTime<Utc> {
        NOW.get()
    }

    fn set(text: &str) {
        NOW.set(text.parse().unwrap());
    }

    fn log(dir: &Path, rotation: Rotation) -> config::Log {
        config::Log {
            dir: dir.to_owned(),
            level: Level::Info,
            rotation,
            max_size: 10,
            keep: 3,
            stack_level: Level::Off,
        }
    }

    fn zone() -> TimeZone {
        TimeZone::Fixed(FixedOffset::east_opt(8 * 3600).unwrap())
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_day_of_the_configured_zone_is_a_file_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        set("2026-01-30T15:59:59Z");
        let mut file = RotatingFile::open(&log(dir.path(), Rotation::Daily), zone(), now).unwrap();
        file.write_all(b"thirtieth\n").unwrap();
        set("2026-01-30T16:00:00Z");
        file.write_all(b"first\n").unwrap();
        file.write_all(b"second\n").unwrap();
        assert_eq!(names(dir.path()), ["mtga.2026-01-30.log", "mtga.log"]);
        assert_eq!(fs::read_to_string(dir.path().join("mtga.log")).unwrap(), "first\nsecond\n");
        for _ in 0..4 {
            NOW.set(now() + Duration::days(1));
            file.write_all(b"another\n").unwrap();
        }
        assert_eq!(names(dir.path()), ["mtga.2026-02-02.log", "mtga.2026-02-03.log", "mtga.log"]);
    }

    #[test]
    fn a_full_file_is_finished_and_no_name_is_used_twice() {
        let dir = tempfile::tempdir().unwrap();
        set("2026-01-30T00:00:00Z");
        let mut file = RotatingFile::open(&log(dir.path(), Rotation::Size), zone(), now).unwrap();
        for line in [b"1234567\n", b"2345678\n", b"3456789\n"] {
            file.write_all(line).unwrap();
        }
        assert_eq!(names(dir.path()), ["mtga.2026-01-30-080000.2.log", "mtga.2026-01-30-080000.log", "mtga.log"]);
        assert_eq!(fs::read_to_string(dir.path().join("mtga.2026-01-30-080000.log")).unwrap(), "1234567\n");
    }

    #[test]
    fn a_file_that_was_moved_or_removed_is_followed_by_a_new_one_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join(CURRENT), dir.path().join("moved"));
        set("2026-01-30T00:00:00Z");
        let mut file = RotatingFile::open(&log(dir.path(), Rotation::Never), zone(), now).unwrap();
        file.write_all(b"1\n").unwrap();
        fs::rename(&path, &moved).unwrap();
        file.write_all(b"2\n").unwrap();
        assert_eq!(
            (fs::read_to_string(&moved).unwrap(), fs::read_to_string(&path).unwrap()),
            ("1\n".into(), "2\n".into())
        );
        fs::remove_file(&path).unwrap();
        file.write_all(b"3\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "3\n");
        // Another one's file of that name is written to, as at a start.
        fs::write(&moved, "4\n").unwrap();
        fs::rename(&moved, &path).unwrap();
        file.write_all(b"5\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "4\n5\n");
    }

    #[test]
    fn what_an_earlier_process_left_is_continued_or_finished_by_its_period() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(CURRENT);
        fs::write(&path, "before\n").unwrap();
        let left = fs::metadata(&path).unwrap().modified().unwrap();
        NOW.set(left.into());
        RotatingFile::open(&log(dir.path(), Rotation::Hourly), zone(), now).unwrap().write_all(b"same\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "before\nsame\n");
        NOW.set(now() + Duration::hours(2));
        RotatingFile::open(&log(dir.path(), Rotation::Hourly), zone(), now).unwrap().write_all(b"later\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "later\n");
        assert_eq!(names(dir.path()).len(), 2);
    }

    #[test]
    fn files_of_others_are_never_deleted_and_ours_are_private() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["mtga.old.log", "other.2026-01-01.log", "mtga.1.log", "mtga.2.log", "mtga.3.log"] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        RotatingFile::open(&log(dir.path(), Rotation::Never), zone(), now).unwrap();
        let left = names(dir.path());
        assert!(left.contains(&"mtga.old.log".to_owned()) && left.contains(&"other.2026-01-01.log".to_owned()));
        assert_eq!(left.len(), 5, "{left:?}");
        let mode = fs::metadata(dir.path().join(CURRENT)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777 & !0o640, 0);
    }
}
