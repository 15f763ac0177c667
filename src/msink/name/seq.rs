//! The number in a file name: whether it can be told from what stands beside it, and how it is read.
//!
//! A template leaves no doubt when the number stands at a place that can be found. In all others the number is read out of each
//! name that is made, with the template alone; where that gives another one, the name is made with marks around the number.
//! So whatever the values are, a name tells its number, and two numbers never have one name.
//!
//! Pure, and not for the hot path: a name is made once a file.

use chrono::format::{Item, Numeric, Pad};
use regex_lite::Regex;

use super::value::push_display;
use super::{Part, rendered};

/// What stands around a number that could be read in two ways otherwise. No value of a record has it.
pub(super) const MARK: char = '~';

/// Reads the number out of the names of a template in which other fields could be taken for it.
#[derive(Clone, Debug)]
pub(super) struct SeqReader {
    pattern: Regex,
    /// How many [`MARK`]s the template's own text has: in all, and before the number.
    marks: (usize, usize),
}

impl SeqReader {
    pub(super) fn new(parts: &[Part]) -> Result<Option<Self>, String> {
        if is_plain_seq(parts) {
            return Ok(None);
        }
        let mut pattern = String::from("(?s)^");
        for part in parts {
            match part {
                Part::Text(text) => pattern.push_str(&regex_lite::escape(text)),
                Part::Seq => pattern.push_str("([0-9]+)"),
                Part::Partition | Part::Topic | Part::LogName | Part::EventName => pattern.push_str("[^/]*?"),
                Part::Time(items) => items.iter().for_each(|item| match (Atom::of_time(item), width(item)) {
                    (Atom::Text(text), _) => pattern.push_str(&regex_lite::escape(text)),
                    (_, Some(width)) => push_display(&mut pattern, format_args!(".{{{width}}}")),
                    _ => pattern.push_str(".*?"),
                }),
            }
        }
        pattern.push('$');
        let pattern = Regex::new(&pattern).map_err(|error| format!("it is too long to be read back: {error}"))?;
        let marks = |parts: &[Part]| {
            let text = |part: &Part| match part {
                Part::Text(text) => text.matches(MARK).count(),
                Part::Time(items) => rendered(items, 0).matches(MARK).count(),
                _ => 0,
            };
            parts.iter().map(text).sum()
        };
        let before = parts.iter().position(|part| matches!(part, Part::Seq)).unwrap_or(0);
        Ok(Some(Self { marks: (marks(parts), marks(&parts[..before])), pattern }))
    }

    /// The number in a name, by the name alone: so two names with different numbers are never the same.
    pub(super) fn read(&self, name: &str) -> Option<u64> {
        let (all, before) = self.marks;
        let digits = match name.matches(MARK).count() {
            found if found == all => self.pattern.captures(name)?.get(1)?.as_str(),
            found if found == all + 2 => name.split(MARK).nth(before + 1)?,
            _ => return None,
        };
        digits.parse().ok()
    }
}

/// Whether the number stands at a place that can be found: on one side of it, up to the next `/` or the end, all is of a known
/// length, and on the other side the same, or what follows next is text of the template that begins with no digit.
fn is_plain_seq(parts: &[Part]) -> bool {
    let Some(at) = parts.iter().position(|part| matches!(part, Part::Seq)) else { return true };
    let mut before = Side::default();
    let atoms: Vec<_> = parts[..at].iter().flat_map(Atom::of).collect();
    for atom in atoms.iter().rev() {
        match atom {
            Atom::Text(text) => before.text(text.chars().rev()),
            other => before.field(other),
        }
    }
    let mut after = Side::default();
    for atom in parts[at + 1..].iter().flat_map(Atom::of) {
        match atom {
            Atom::Text(text) => after.text(text.chars()),
            other => after.field(&other),
        }
    }
    match (before.length, after.length) {
        (Length::Known, Length::Known) => true,
        (Length::Known, Length::Open) => after.fenced,
        (Length::Open, Length::Known) => before.fenced,
        (Length::Open, Length::Open) => false,
    }
}

/// A piece of a template, as far as its length goes.
enum Atom<'a> {
    Text(&'a str),
    Known,
    Open,
}

impl<'a> Atom<'a> {
    fn of(part: &'a Part) -> Vec<Self> {
        match part {
            Part::Text(text) => vec![Self::Text(text)],
            Part::Time(items) => items.iter().map(Self::of_time).collect(),
            _ => vec![Self::Open],
        }
    }

    fn of_time(item: &'a Item<'static>) -> Self {
        match item {
            Item::Literal(text) | Item::Space(text) => Self::Text(text),
            Item::OwnedLiteral(text) | Item::OwnedSpace(text) => Self::Text(text),
            item if width(item).is_some() => Self::Known,
            _ => Self::Open,
        }
    }
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Length {
    #[default]
    Known,
    Open,
}

/// What stands beside a number, taken in from there up to the next `/` or the end of the name.
#[derive(Default)]
struct Side {
    length: Length,
    /// Whether the template itself has a character that is no digit right beside the number.
    fenced: bool,
    begun: bool,
    ended: bool,
}

impl Side {
    fn text(&mut self, mut from_here: impl Iterator<Item = char>) {
        let Some(first) = from_here.next() else { return };
        if self.ended {
            return;
        }
        self.fenced |= !self.begun && !first.is_ascii_digit();
        self.begun = true;
        self.ended = first == '/' || from_here.any(|char| char == '/');
    }

    fn field(&mut self, atom: &Atom<'_>) {
        if self.ended {
            return;
        }
        self.begun = true;
        if matches!(atom, Atom::Open) {
            self.length = Length::Open;
        }
    }
}

/// How many characters a part of a time has, if always as many: before the year 10000, when it is longer.
fn width(item: &Item<'_>) -> Option<usize> {
    match item {
        Item::Numeric(field, Pad::Zero) => match field {
            Numeric::Year | Numeric::IsoYear => Some(4),
            Numeric::Ordinal => Some(3),
            Numeric::YearDiv100
            | Numeric::YearMod100
            | Numeric::IsoYearMod100
            | Numeric::Month
            | Numeric::Day
            | Numeric::WeekFromSun
            | Numeric::WeekFromMon
            | Numeric::IsoWeek
            | Numeric::Hour
            | Numeric::Hour12
            | Numeric::Minute
            | Numeric::Second => Some(2),
            _ => None,
        },
        _ => None,
    }
}
