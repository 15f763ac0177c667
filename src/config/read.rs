//! From text to typed values, one key at a time, going on after each mistake.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::layer::{Fault, Layer, Origin};
use super::units::{format_duration, format_size, parse_duration, parse_size};
use super::values::{Text, Values};
use super::{Assignment, Compression, Level, Mode, OutOfRange, Payload, Rotation, Validation, Visibility, WhenFull};

/// A value that is one of a few words.
pub(super) trait Choice: Copy + PartialEq + 'static {
    /// The words and what they mean.
    const ALL: &'static [(&'static str, Self)];

    /// The word for this value.
    fn word(self) -> &'static str {
        Self::ALL.iter().find(|(_, value)| *value == self).map_or("", |(word, _)| word)
    }
}

macro_rules! choices {
    ($($type:ty: $($word:literal => $value:expr),+;)+) => {
        $(impl Choice for $type {
            const ALL: &'static [(&'static str, Self)] = &[$(($word, $value)),+];
        })+
    };
}

choices! {
    bool: "true" => true, "false" => false;
    Assignment: "group" => Self::Group, "all" => Self::All;
    OutOfRange: "earliest" => Self::Earliest, "latest" => Self::Latest, "stop" => Self::Stop;
    Payload: "auto" => Self::Auto, "none" => Self::None, "snappy" => Self::Snappy, "gzip" => Self::Gzip,
        "zstd" => Self::Zstd, "lz4" => Self::Lz4;
    WhenFull: "pause" => Self::Pause, "drop_oldest" => Self::DropOldest;
    Validation: "off" => Self::Off, "standard" => Self::Standard, "strict" => Self::Strict;
    Mode: "stream" => Self::Stream, "batch" => Self::Batch;
    Visibility: "live" => Self::Live, "sealed" => Self::Sealed;
    Compression: "none" => Self::None, "gzip" => Self::Gzip, "zstd" => Self::Zstd;
    Level: "trace" => Self::Trace, "debug" => Self::Debug, "info" => Self::Info, "warn" => Self::Warn,
        "error" => Self::Error, "off" => Self::Off;
    Rotation: "never" => Self::Never, "hourly" => Self::Hourly, "daily" => Self::Daily, "size" => Self::Size;
}

/// Reads keys and collects mistakes. After a mistake a key has some value that nobody sees.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    values: &'a Values,
    pub(super) faults: Vec<Fault>,
}

impl<'a> Reader<'a> {
    pub(super) const fn new(values: &'a Values) -> Self {
        Self { values, faults: Vec::new() }
    }

    /// Text as it is.
    pub(super) fn text(&self, key: &str) -> &'a str {
        match self.values.get(key) {
            Some((_, Text::Scalar(text))) => text,
            _ => "",
        }
    }

    /// Text that must not be empty.
    pub(super) fn name(&mut self, key: &str) -> String {
        self.parsed(
            key,
            |text| if text.trim().is_empty() { Err("must not be empty".to_owned()) } else { Ok(text.to_owned()) },
        )
        .unwrap_or_default()
    }

    /// Items of a list.
    pub(super) fn items(&self, key: &str) -> &'a [String] {
        match self.values.get(key) {
            Some((_, Text::List(items))) => items,
            _ => &[],
        }
    }

    /// What `parse` makes of the text.
    pub(super) fn parsed<T>(&mut self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        parse(self.text(key)).map_err(|message| self.fault(key, message)).ok()
    }

    /// What `parse` makes of the text; `None` for the empty one.
    pub(super) fn optional<T>(&mut self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        if self.text(key).is_empty() { None } else { self.parsed(key, parse) }
    }

    /// One of the words of a choice.
    pub(super) fn choice<T: Choice>(&mut self, key: &str) -> T {
        self.parsed(key, |text| {
            T::ALL.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
                let words: Vec<_> = T::ALL.iter().map(|(word, _)| *word).collect();
                format!("`{text}` is not one of {}", words.join(", "))
            })
        })
        .unwrap_or(T::ALL[0].1)
    }

    /// A whole number in a range.
    pub(super) fn number(&mut self, key: &str, range: RangeInclusive<u64>) -> u64 {
        self.parsed(key, |text| parse_number(text, &range)).unwrap_or(*range.start())
    }

    /// Bytes, at least so many.
    pub(super) fn size(&mut self, key: &str, least: u64) -> u64 {
        self.parsed(key, |text| match parse_size(text)? {
            size if size < least => Err(format!("`{text}` is too small, write at least {}", format_size(least))),
            size => Ok(size),
        })
        .unwrap_or(least)
    }

    /// A duration, at least so long.
    pub(super) fn duration(&mut self, key: &str, least: Duration) -> Duration {
        self.parsed(key, |text| match parse_duration(text)? {
            duration if duration < least => {
                Err(format!("`{text}` is too short, write at least {}", format_duration(least)))
            }
            duration => Ok(duration),
        })
        .unwrap_or(least)
    }

    /// A path; a relative one starts from the home.
    pub(super) fn path(&mut self, key: &str, home: &Path) -> PathBuf {
        home.join(self.name(key))
    }

    /// Notes that two keys do not fit together, at the first one if it was set. After a mistake in one of them its
    /// value is made up, and so would be this.
    pub(super) fn conflict(&mut self, key: &str, other: &str, message: impl FnOnce(&str) -> String) {
        let is_set = self.origin(key).layer != Layer::BuiltIn;
        let (key, other) = if is_set { (key, other) } else { (other, key) };
        let origins = [self.origin(key), self.origin(other)];
        if !self.faults.iter().any(|(origin, _)| origins.contains(origin)) {
            self.fault(key, message(other));
        }
    }

    pub(super) fn origin(&self, key: &str) -> Origin {
        match self.values.get(key) {
            Some((origin, _)) => origin.clone(),
            None => Origin { layer: Layer::BuiltIn, line: None, key: key.to_owned() },
        }
    }

    /// Notes a mistake at the place of a key.
    pub(super) fn fault(&mut self, key: &str, message: impl Into<String>) {
        self.faults.push((self.origin(key), message.into()));
    }
}

/// Reads a whole number without sign in a range.
pub(super) fn parse_number(text: &str, range: &RangeInclusive<u64>) -> Result<u64, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| digits && range.contains(number)).ok_or_else(|| {
        let (least, most) = (range.start(), range.end());
        match *most {
            u64::MAX => format!("`{text}` is no whole number of {least} or more"),
            _ => format!("`{text}` is no whole number from {least} to {most}"),
        }
    })
}
