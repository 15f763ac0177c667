//! `#time`: reads what logs call a time and writes it as `yyyy-MM-dd HH:mm:ss`, or with `.SSS` where the source has milliseconds.
//!
//! Read are
//! - integers and digit strings: seconds below 10^11, milliseconds below 10^14, microseconds from there on (cut to
//!   milliseconds); zero and negative ones are no times, nor are fractions and exponents;
//! - the two forms of the receiver, `yyyy-MM-dd HH:mm:ss` and `yyyy-MM-dd HH:mm:ss.SSS`: they carry no zone, are taken as
//!   wall-clock time of the configured one and come out as they are, also when a change to summer time skips that hour;
//! - RFC 3339 (`T`, `t` or a space between date and time; a fraction of any length is cut to milliseconds; second 60 is
//!   the start of the next minute).
//!
//! Years are 1 to 9999, before and after the zone is applied. There is no other time here: no clock is read.

use chrono::{DateTime, Datelike, NaiveDate, Timelike};

use crate::config::TimeZone;

/// A time as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// A point in time: seconds since 1970 UTC, and milliseconds of it where the source has them.
    Instant { second: i64, millis: Option<u16> },
    /// Wall-clock time of the configured zone: seconds since 1970 on that clock.
    Local { second: i64, millis: Option<u16> },
}

impl Moment {
    /// Kafka's record timestamp, milliseconds since 1970 UTC; zero and negative ones stand for none.
    pub(super) fn from_millis(millis: i64) -> Option<Self> {
        (millis > 0).then_some(Self::Instant { second: millis / 1000, millis: Some((millis % 1000) as u16) })
    }

    /// Reads any of the accepted forms.
    pub(super) fn read(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        if bytes.iter().all(u8::is_ascii_digit) { Self::from_digits(bytes) } else { Self::from_date(bytes) }
    }

    fn from_digits(digits: &[u8]) -> Option<Self> {
        const LEAST_MILLIS: u64 = 100_000_000_000;
        const LEAST_MICROS: u64 = 100_000_000_000_000;
        let number = digits
            .iter()
            .try_fold(0_u64, |number, digit| number.checked_mul(10)?.checked_add(u64::from(digit - b'0')))?;
        match number {
            0 => None,
            1..LEAST_MILLIS => Some(Self::Instant { second: number as i64, millis: None }),
            LEAST_MILLIS..LEAST_MICROS => Self::from_millis(number as i64),
            _ => Self::from_millis((number / 1000) as i64),
        }
    }

    /// The forms that start with `yyyy-MM-dd HH:mm:ss`.
    fn from_date(text: &[u8]) -> Option<Self> {
        let (head, tail) = text.split_at_checked(19)?;
        let number = |from: usize, to: usize| digits(&head[from..to]);
        if [head[4], head[7], head[13], head[16]] != *b"--::" {
            return None;
        }
        let date = NaiveDate::from_ymd_opt(number(0, 4)? as i32, number(5, 7)?, number(8, 10)?)?;
        let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
        if date.year() == 0 || hour > 23 || minute > 59 || second > 60 {
            return None;
        }
        let at = date.and_hms_opt(hour, minute, 0)?.and_utc().timestamp() + i64::from(second);
        let (millis, zone) = fraction(tail)?;
        match (head[10], zone) {
            (b' ', b"") if second < 60 && matches!(tail.len(), 0 | 4) => Some(Self::Local { second: at, millis }),
            (b'T' | b't' | b' ', zone) => Some(Self::Instant { second: at - offset(zone)?, millis }),
            _ => None,
        }
    }
}

/// A number of decimal digits only.
fn digits(text: &[u8]) -> Option<u32> {
    text.iter().try_fold(0, |number, byte| byte.is_ascii_digit().then(|| number * 10 + u32::from(byte - b'0')))
}

/// Splits `.SSS…` from what follows it; digits beyond milliseconds are cut.
fn fraction(text: &[u8]) -> Option<(Option<u16>, &[u8])> {
    let Some(rest) = text.strip_prefix(b".") else { return Some((None, text)) };
    let count = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (fraction, rest) = rest.split_at(count);
    let digit = |i: usize| fraction.get(i).map_or(0, |byte| u16::from(byte - b'0'));
    (count > 0).then(|| (Some(digit(0) * 100 + digit(1) * 10 + digit(2)), rest))
}

/// Seconds east of UTC of `Z` or `±hh:mm`.
fn offset(text: &[u8]) -> Option<i64> {
    match text {
        b"Z" | b"z" => Some(0),
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let (hours, minutes) = (digits(&[*h1, *h2])?, digits(&[*m1, *m2])?);
            let seconds = i64::from(hours * 3600 + minutes * 60);
            (hours < 24 && minutes < 60).then_some(if *sign == b'-' { -seconds } else { seconds })
        }
        _ => None,
    }
}

/// Written `yyyy-MM-dd HH:mm:ss`.
type Second = [u8; 19];

/// What `#time` becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Text {
    pub(super) bytes: [u8; 23],
    /// So many of them are it.
    pub(super) len: usize,
}

impl Text {
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Seconds written lately: the same one comes thousands of times in a row. Direct-mapped, and tied to one zone.
#[derive(Debug)]
pub(super) struct Cache {
    seconds: Box<[(i64, Second); Self::SIZE]>,
    /// The last text that was read, and what it became.
    last: ([u8; Self::LONGEST], usize, Text),
}

impl Cache {
    const SIZE: usize = 64;
    /// Longer texts are read again each time.
    const LONGEST: usize = 24;
}

impl Default for Cache {
    fn default() -> Self {
        // No instant that can be written has this second.
        let seconds = Box::new([(i64::MIN, [0; 19]); Self::SIZE]);
        // Nor is an empty text a time.
        Self { seconds, last: ([0; Self::LONGEST], 0, Text { bytes: [0; 23], len: 0 }) }
    }
}

impl Cache {
    /// Reads a time as [`Moment::read`] does and writes it in the zone.
    pub(super) fn read(&mut self, text: &str, zone: TimeZone) -> Option<Text> {
        let (bytes, len, written) = &self.last;
        if *len > 0 && bytes[..*len] == *text.as_bytes() {
            return Some(*written);
        }
        let written = self.write(Moment::read(text)?, zone)?;
        if let Some(bytes) = self.last.0.get_mut(..text.len()) {
            bytes.copy_from_slice(text.as_bytes());
            (self.last.1, self.last.2) = (text.len(), written);
        }
        Some(written)
    }

    /// Writes a moment in the zone; `None` when its year has not four digits there.
    pub(super) fn write(&mut self, moment: Moment, zone: TimeZone) -> Option<Text> {
        let (head, millis) = match moment {
            Moment::Local { second, millis } => (civil(second)?, millis),
            Moment::Instant { second, millis } => {
                let entry = &mut self.seconds[second as usize % Self::SIZE];
                if entry.0 != second {
                    *entry = (second, civil(second.checked_add(i64::from(zone.east(second)))?)?);
                }
                (entry.1, millis)
            }
        };
        let mut bytes = [0; 23];
        bytes[..19].copy_from_slice(&head);
        let Some(millis) = millis else { return Some(Text { bytes, len: 19 }) };
        bytes[19] = b'.';
        put(&mut bytes[20..], u32::from(millis));
        Some(Text { bytes, len: 23 })
    }
}

/// Writes seconds since 1970 on the zone's own clock.
fn civil(second: i64) -> Option<Second> {
    let time = DateTime::from_timestamp(second, 0)?.naive_utc();
    if !(1..=9999).contains(&time.year()) {
        return None;
    }
    let mut text = *b"0000-00-00 00:00:00";
    put(&mut text[0..4], time.year().unsigned_abs());
    for (at, number) in
        [(5, time.month()), (8, time.day()), (11, time.hour()), (14, time.minute()), (17, time.second())]
    {
        put(&mut text[at..at + 2], number);
    }
    Some(text)
}

/// Writes a number right-aligned over the whole of `digits`.
fn put(digits: &mut [u8], mut number: u32) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

#[cfg(test)]
mod tests {
    use chrono::FixedOffset;
    use proptest::prelude::*;

    use super::*;

    const EAST_8: i32 = 8 * 3600;

    fn fixed(seconds: i32) -> TimeZone {
        TimeZone::Fixed(FixedOffset::east_opt(seconds).unwrap())
    }

    fn write(text: &str, zone: TimeZone) -> Option<String> {
        let text = Cache::default().write(Moment::read(text)?, zone)?;
        Some(String::from_utf8(text.as_bytes().to_vec()).unwrap())
    }

    #[track_caller]
    fn becomes(text: &str, expected: impl Into<Option<&'static str>>) {
        assert_eq!(write(text, fixed(EAST_8)).as_deref(), expected.into(), "{text}");
    }

    #[test]
    fn integers_are_seconds_milliseconds_or_microseconds_by_size() {
        becomes("1608184243", "2020-12-17 13:50:43");
        becomes("1", "1970-01-01 08:00:01");
        becomes("0001608184243", "2020-12-17 13:50:43");
        becomes("99999999999", "5138-11-16 17:46:39");
        becomes("100000000000", "1973-03-03 17:46:40.000");
        becomes("1608184243007", "2020-12-17 13:50:43.007");
        becomes("99999999999999", "5138-11-16 17:46:39.999");
        becomes("100000000000000", "1973-03-03 17:46:40.000");
        becomes("1608184244000008", "2020-12-17 13:50:44.000");
        becomes("1608184244999999", "2020-12-17 13:50:44.999");
    }

    #[test]
    fn integers_that_are_no_time_are_unreadable() {
        for text in [
            "",
            "0",
            "000",
            "-1",
            "-1608184243",
            "+1608184243",
            "1608184243.5",
            "1608184243.0",
            "1.6e9",
            " 1608184243",
            "1608184243 ",
            "0x5fdb",
        ] {
            becomes(text, None);
        }
    }

    #[test]
    fn a_year_beyond_9999_is_unreadable_and_so_is_a_number_beyond_64_bits() {
        becomes("253402271999999999", "9999-12-31 23:59:59.999");
        becomes("253402272000000000", None);
        becomes("18446744073709551615", None);
        becomes("18446744073709551616", None);
        becomes("9999999999999999999999999999", None);
    }

    #[test]
    fn the_receivers_own_forms_come_out_as_they_are() {
        becomes("2020-12-17 13:50:43", "2020-12-17 13:50:43");
        becomes("2020-12-17 13:50:43.000", "2020-12-17 13:50:43.000");
        becomes("2020-02-29 23:59:59.999", "2020-02-29 23:59:59.999");
        becomes("0001-01-01 00:00:00", "0001-01-01 00:00:00");
        becomes("9999-12-31 23:59:59", "9999-12-31 23:59:59");
    }

    #[test]
    fn dates_that_the_calendar_does_not_have_are_unreadable() {
        for text in [
            "0000-00-00 00:00:00",
            "0000-01-01 00:00:00",
            "2021-02-29 00:00:00",
            "2020-13-01 00:00:00",
            "2020-00-10 00:00:00",
            "2020-12-32 00:00:00",
            "2020-12-17 24:00:00",
            "2020-12-17 00:60:00",
            "2020-12-17 00:00:60",
            "2020-12-17 00:00:61Z",
        ] {
            becomes(text, None);
        }
    }

    #[test]
    fn near_misses_of_the_forms_are_unreadable() {
        for text in [
            "2020-12-17",
            "2020-12-17 13:50",
            "2020-12-17 13:50:43.",
            "2020-12-17 13:50:43.1",
            "2020-12-17 13:50:43.12",
            "2020-12-17 13:50:43.1234",
            "2020-12-17T13:50:43",
            "2020-12-17T13:50:43.123",
            "2020/12/17 13:50:43",
            "2020-12-17 13-50-43",
            "2020-12-17 13:50:43 ",
            " 2020-12-17 13:50:43",
            "20-12-17 13:50:43",
            "2020-1-17 13:50:43",
            "+020-12-17 13:50:43",
            "2020-12-17X13:50:43Z",
            "2020-12-17T13:50:43+8",
            "2020-12-17T13:50:43+0800",
            "2020-12-17T13:50:43+24:00",
            "2020-12-17T13:50:43+08:60",
            "2020-12-17T13:50:43.Z",
            "2020-12-17T13:50:43ZZ",
            "2020-12-17T13:50:43UTC",
            "2020-12-17 13:50:4汉",
            "汉汉汉汉汉汉汉汉",
        ] {
            becomes(text, None);
        }
    }

    #[test]
    fn rfc_3339_is_moved_to_the_zone() {
        becomes("2020-12-17T05:50:43Z", "2020-12-17 13:50:43");
        becomes("2020-12-17t05:50:43z", "2020-12-17 13:50:43");
        becomes("2020-12-17 05:50:43Z", "2020-12-17 13:50:43");
        becomes("2020-12-17T13:50:43+08:00", "2020-12-17 13:50:43");
        becomes("2020-12-16T22:20:43-07:30", "2020-12-17 13:50:43");
        becomes("2020-12-17T05:50:43-00:00", "2020-12-17 13:50:43");
        becomes("2020-12-17T05:50:43.5Z", "2020-12-17 13:50:43.500");
        becomes("2020-12-17T05:50:43.000000Z", "2020-12-17 13:50:43.000");
        becomes("2020-12-17T05:50:43.123999999Z", "2020-12-17 13:50:43.123");
        becomes("2016-12-31T23:59:60Z", "2017-01-01 08:00:00");
        becomes("1969-12-31T15:59:59.250Z", "1969-12-31 23:59:59.250");
        becomes("9999-12-31T23:59:59Z", None);
        assert_eq!(write("0001-01-01T00:00:00Z", fixed(-3600)), None);
    }

    #[test]
    fn a_named_zone_jumps_over_the_gap_and_repeats_the_hour_in_the_fold() {
        let zone = TimeZone::built_in("Europe/Berlin").unwrap();
        let berlin = |second: i64| write(&second.to_string(), zone).unwrap();
        assert_eq!(berlin(1_616_893_199), "2021-03-28 01:59:59");
        assert_eq!(berlin(1_616_893_200), "2021-03-28 03:00:00");
        assert_eq!(berlin(1_635_641_999), "2021-10-31 02:59:59");
        assert_eq!(berlin(1_635_642_000), "2021-10-31 02:00:00");
        assert_eq!(
            write("2021-03-28 02:30:00", zone).unwrap(),
            "2021-03-28 02:30:00",
            "an hour that the clock skipped"
        );
    }

    #[test]
    fn kafka_timestamps_always_have_milliseconds_and_need_to_be_positive() {
        let write = |millis| {
            let text = Cache::default().write(Moment::from_millis(millis)?, fixed(EAST_8))?;
            Some(String::from_utf8(text.as_bytes().to_vec()).unwrap())
        };
        assert_eq!(write(1_608_184_243_000).as_deref(), Some("2020-12-17 13:50:43.000"));
        assert_eq!(write(1).as_deref(), Some("1970-01-01 08:00:00.001"));
        assert_eq!(write(0), None);
        assert_eq!(write(-1), None);
        assert_eq!(write(i64::MAX), None);
        assert_eq!(write(i64::MIN), None);
    }

    proptest! {
        #[test]
        fn seconds_are_written_as_chrono_writes_them(second in 1_i64..99_999_999_999, east in -86_399..86_400_i32) {
            let expected = DateTime::from_timestamp(second, 0).unwrap().with_timezone(&FixedOffset::east_opt(east).unwrap());
            prop_assert_eq!(write(&second.to_string(), fixed(east)).unwrap(), expected.format("%Y-%m-%d %H:%M:%S").to_string());
        }

        #[test]
        fn rfc_3339_is_read_as_chrono_reads_it(millis in -62_135_000_000_000_i64..253_402_000_000_000, east in -1439..1440_i32) {
            let time = DateTime::from_timestamp_millis(millis).unwrap().with_timezone(&FixedOffset::east_opt(east * 60).unwrap());
            let text = time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
            prop_assert_eq!(write(&text, fixed(0)).unwrap(), time.to_utc().format("%Y-%m-%d %H:%M:%S%.3f").to_string());
        }

        #[test]
        fn a_warm_cache_writes_what_a_cold_one_writes(seconds in prop::collection::vec(1_i64..200, 1..50)) {
            let mut cache = Cache::default();
            let zone = TimeZone::built_in("Asia/Shanghai").unwrap();
            for second in seconds {
                let moment = Moment::Instant { second, millis: None };
                prop_assert_eq!(cache.write(moment, zone), Cache::default().write(moment, zone));
            }
        }

        #[test]
        fn reading_never_panics(text: String, near in "[0-9]{0,5}[-: TZ.+0-9]{0,30}") {
            for text in [text, near] {
                if let Some(moment) = Moment::read(&text) {
                    Cache::default().write(moment, TimeZone::built_in("America/New_York").unwrap());
                }
            }
        }
    }
}
