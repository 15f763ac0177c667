//! How quantities are written: sizes, durations, permissions, times.
//!
//! Each parser takes the text without white space around it and fails with a message for the operator that shows the
//! right form. Quantities are whole numbers with a unit; there is no sign, no fraction and no default unit.

use std::time::Duration;

use chrono::DateTime;

use super::Start;

const SIZES: [(&str, u64); 10] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1_000),
    ("kB", 1_000),
    ("B", 1),
];

const DURATIONS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Longest duration, in milliseconds: a hundred years. Beyond it, adding one to a clock could overflow.
const LONGEST: u64 = 36_500 * 86_400_000;

/// Why a text is no quantity.
enum Misfit {
    Form,
    TooLarge,
}

/// Reads a size such as `64KiB`, `1MiB`, `2GiB` or, in powers of ten, `1MB`: bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    quantity(text, &SIZES, i64::MAX as u64).map_err(|misfit| match misfit {
        Misfit::Form => format!("`{text}` is no size, write a whole number and a unit: 512B, 64KiB, 1MiB, 2GiB"),
        Misfit::TooLarge => format!("`{text}` is more than any file can hold"),
    })
}

/// Reads a duration such as `200ms`, `10s`, `5m`, `1h` or `7d`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    quantity(text, &DURATIONS, LONGEST).map(Duration::from_millis).map_err(|misfit| match misfit {
        Misfit::Form => format!("`{text}` is no duration, write a whole number and a unit: 200ms, 10s, 5m, 1h, 7d"),
        Misfit::TooLarge => format!("`{text}` is longer than 36500d"),
    })
}

/// The quantity in its smallest unit.
fn quantity(text: &str, units: &[(&str, u64)], most: u64) -> Result<u64, Misfit> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit).filter(|_| digits > 0).ok_or(Misfit::Form)?;
    let quantity = number.parse::<u64>().ok().and_then(|number| number.checked_mul(*factor));
    quantity.filter(|&quantity| quantity <= most).ok_or(Misfit::TooLarge)
}

/// Writes a size in the largest binary unit that keeps it exact.
pub fn format_size(bytes: u64) -> String {
    format_quantity(bytes, SIZES.iter().filter(|(name, _)| name.len() != 2))
}

/// Writes a duration in the largest unit that keeps it exact; what is below a millisecond is cut.
pub fn format_duration(duration: Duration) -> String {
    format_quantity(duration.as_millis() as u64, DURATIONS.iter())
}

fn format_quantity<'a>(value: u64, mut units: impl Iterator<Item = &'a (&'a str, u64)>) -> String {
    match units.find(|(_, factor)| *factor == 1 || value > 0 && value.is_multiple_of(*factor)) {
        Some((name, factor)) => format!("{}{name}", value / factor),
        None => value.to_string(),
    }
}

/// Reads permission bits in octal, such as `0640`. They must let the owner read and write.
pub(super) fn parse_permissions(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix('0').unwrap_or(text);
    let octal = digits.len() == 3 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    let bits = u32::from_str_radix(digits, 8).ok().filter(|_| octal);
    let bits = bits.ok_or_else(|| format!("`{text}` are no permissions, write three octal digits: \"0640\""))?;
    if bits & 0o600 != 0o600 {
        return Err(format!("`{text}` does not let the owner read and write, write 0600 or more"));
    }
    Ok(bits)
}

/// Writes permission bits as they are read.
pub(super) fn format_permissions(bits: u32) -> String {
    format!("{bits:04o}")
}

/// Reads `earliest`, `latest` or a time after RFC 3339.
pub(super) fn parse_start(text: &str) -> Result<Start, String> {
    match text {
        "earliest" => Ok(Start::Earliest),
        "latest" => Ok(Start::Latest),
        _ => match DateTime::parse_from_rfc3339(text) {
            Ok(time) => Ok(Start::Time(time.timestamp_millis())),
            Err(_) => {
                Err(format!("`{text}` is no start, write earliest, latest or a time such as 2026-01-31T00:00:00+08:00"))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_read_in_bytes() {
        let sizes = [
            ("0B", 0),
            ("512B", 512),
            ("64KiB", 65_536),
            ("1MiB", 1_048_576),
            ("2GiB", 2_147_483_648),
            ("1TiB", 1_099_511_627_776),
            ("1KB", 1_000),
            ("1kB", 1_000),
            ("3MB", 3_000_000),
            ("1GB", 1_000_000_000),
            ("9223372036854775807B", i64::MAX as u64),
        ];
        for (text, bytes) in sizes {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_told_how_to_write_one() {
        for text in ["", "64", "0", "KiB", "-1MiB", "+1MiB", "1.5GiB", "1 MiB", "1mib", "1M", "1MiBs", "٣MiB", "0x1B"]
        {
            assert!(parse_size(text).unwrap_err().starts_with(&format!("`{text}` is no size, write")), "{text}");
        }
        for text in ["9223372036854775808B", "8388608TiB", "99999999999999999999999B", "18446744073709551615GiB"] {
            assert_eq!(parse_size(text), Err(format!("`{text}` is more than any file can hold")));
        }
    }

    #[test]
    fn durations_are_read_in_milliseconds() {
        let durations =
            [("0s", 0), ("200ms", 200), ("10s", 10_000), ("5m", 300_000), ("1h", 3_600_000), ("7d", 604_800_000)];
        for (text, millis) in durations {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(parse_duration("36500d"), Ok(Duration::from_millis(LONGEST)));
    }

    #[test]
    fn what_is_no_duration_is_told_how_to_write_one() {
        for text in ["", "5", "s", "-5s", "1.5h", "5 s", "5S", "1w", "1m30s", "5min"] {
            assert!(
                parse_duration(text).unwrap_err().starts_with(&format!("`{text}` is no duration, write")),
                "{text}"
            );
        }
        for text in ["36501d", "18446744073709551615d", "99999999999999999999999ms"] {
            assert_eq!(parse_duration(text), Err(format!("`{text}` is longer than 36500d")));
        }
    }

    #[test]
    fn quantities_are_written_in_their_largest_exact_unit() {
        let sizes = [0, 1023, 1 << 10, 1536, 128 << 20, 1 << 30].map(format_size);
        assert_eq!(sizes, ["0B", "1023B", "1KiB", "1536B", "128MiB", "1GiB"]);
        let durations =
            [0, 200, 1_500, 60_000, 86_400_000].map(|millis| format_duration(Duration::from_millis(millis)));
        assert_eq!(durations, ["0ms", "200ms", "1500ms", "1m", "1d"]);
    }

    #[test]
    fn permissions_are_octal_and_let_the_owner_in() {
        assert_eq!(
            [parse_permissions("0640"), parse_permissions("600"), parse_permissions("0777")],
            [Ok(0o640), Ok(0o600), Ok(0o777)]
        );
        for text in ["", "0", "0680", "1640", "00640", "0o640", "rw-r-----", "-640", "+640", "640 "] {
            assert!(parse_permissions(text).unwrap_err().contains("are no permissions"), "{text}");
        }
        assert!(parse_permissions("0440").unwrap_err().contains("does not let the owner"));
    }

    #[test]
    fn a_start_is_a_word_or_a_time_with_its_zone() {
        assert_eq!(parse_start("latest"), Ok(Start::Latest));
        assert_eq!(parse_start("2020-12-17T13:50:43.5+08:00"), Ok(Start::Time(1_608_184_243_500)));
        for text in ["", "Earliest", "2020-12-17", "2020-12-17T13:50:43", "1608184243"] {
            assert!(parse_start(text).unwrap_err().contains("is no start"), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_written_quantity_is_read_back(value in 0..=i64::MAX as u64, millis in 0..=LONGEST) {
            prop_assert_eq!(parse_size(&format_size(value)), Ok(value));
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in any::<String>()) {
            let _ = (parse_size(&text), parse_duration(&text), parse_permissions(&text), parse_start(&text));
        }
    }
}
