//! What the bytes of `logs` are expected to be.
//!
//! Records of one log name have the same members in the same order, nearly always, and most of their values are as long as
//! those of the record before. So a [`Layout`] says of each byte what may stand there: in a key the one that always does,
//! in a number any digit, in a string anything that needs no second look. The next record is compared with that, many
//! bytes at a time and without regard to where members begin, as far as it is alike.
//!
//! **Promise.** What fits is valid JSON without white space between its tokens and without escapes in its values: it was
//! made of such a record, and digits may stand for digits and plain characters for plain characters. A member counts as
//! stepped over only when the byte behind its value ends it. What does not fit is the general reader's to read: it may be valid
//! all the same.

use super::lanes::{self, Lanes};
use super::members::{Noted, Role};
use super::scan::{Kind, Step, Value};

/// What the members of a record are expected to be, byte by byte.
#[derive(Debug, Default)]
pub(super) struct Layout {
    /// The least byte that may stand at each place,
    least: Vec<u8>,
    /// and the greatest; behind the end [`Self::NOTHING`], so that whole steps are left there.
    most: Vec<u8>,
    /// Which member each place belongs to.
    owners: Vec<u16>,
    members: Vec<Member>,
    /// Which of the members someone asks for.
    wanted: Vec<usize>,
}

/// A member and the separator before it: `,"name":value`, or with `{` for the first.
#[derive(Debug)]
struct Member {
    /// Where its separator is,
    begin: usize,
    /// where its value is,
    value: usize,
    /// and where that ends.
    end: usize,
    kind: Kind,
    role: Role,
    /// How many of the members before are wanted.
    wanted: usize,
    /// How often the value was another than expected.
    wrong: u32,
    /// How long it was the last time that it was, in which record, and how many times more often so than as expected lately.
    other: usize,
    last: u32,
    score: u32,
}

/// Where the likeness ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stop {
    /// The member that is not as expected, or how many there are.
    pub(super) member: usize,
    /// Where that should begin in the record.
    pub(super) begin: usize,
    /// Where its value begins, when the key is as expected.
    pub(super) value: Option<usize>,
}

impl Layout {
    /// Bounds the memory of a layout: members behind that are not predicted.
    const LONGEST: usize = 5 << 10;
    /// Longer values are not predicted.
    const LONGEST_VALUE: usize = 256;
    /// What a byte may be of which nothing is predicted: none of UTF-8 fits.
    const NOTHING: (u8, u8) = (u8::MAX, 0);
    /// So many values of a member may be other than expected at first,
    const TRIALS: u32 = 16;
    /// and later one in so many: finding out costs about as much as this many members that are.
    const SELDOM: u32 = 4;

    /// How many members are predicted.
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    fn end(&self) -> usize {
        self.members.last().map_or(0, |member| member.end)
    }

    /// Expects one more member, with the value `value` as it stands in a record; `false` without room for it.
    pub(super) fn add(&mut self, separator: u8, key: &str, value: &str, kind: Kind, role: Role) -> bool {
        let begin = self.end();
        if begin + key.len() + Self::LONGEST_VALUE > Self::LONGEST {
            return false;
        }
        self.least.truncate(begin);
        self.least.extend_from_slice(&[separator, b'"']);
        self.least.extend_from_slice(key.as_bytes());
        self.least.extend_from_slice(b"\":");
        self.most.truncate(begin);
        self.most.extend_from_slice(&self.least[begin..]);
        let start = self.least.len();
        let number = self.members.len();
        self.owners.resize(start, number as u16);
        self.least.resize(start + lanes::WIDEST, Self::NOTHING.0);
        self.most.resize(start + lanes::WIDEST, Self::NOTHING.1);
        let (end, wanted) = (start, self.wanted.len());
        if role != Role::default() {
            self.wanted.push(number);
        }
        self.members.push(Member {
            begin,
            value: start,
            end,
            kind,
            role,
            wanted,
            wrong: 0,
            other: 0,
            last: 0,
            score: 0,
        });
        let like = self.likeness(number, value).unwrap_or_else(|| vec![Self::NOTHING]);
        self.expect(number, like, kind);
        true
    }

    /// What values like this one of a member may be, when there is room for it.
    fn likeness(&self, member: usize, value: &str) -> Option<Vec<(u8, u8)>> {
        let old = &self.members[member];
        let room = Self::LONGEST - self.end() + old.end - old.value;
        if value.len() <= Self::LONGEST_VALUE.min(room) { like(value) } else { None }
    }

    /// Expects values of a member to be like this.
    fn expect(&mut self, member: usize, like: Vec<(u8, u8)>, kind: Kind) {
        let old = self.members[member].value..self.members[member].end;
        let (least, most): (Vec<_>, Vec<_>) = like.into_iter().unzip();
        let end = old.start + least.len();
        for later in &mut self.members[member + 1..] {
            for place in [&mut later.begin, &mut later.value, &mut later.end] {
                *place = *place + end - old.end;
            }
        }
        self.owners.splice(old.clone(), least.iter().map(|_| member as u16));
        self.least.splice(old.clone(), least);
        self.most.splice(old, most);
        (self.members[member].end, self.members[member].kind) = (end, kind);
    }

    /// Steps over members from `next` on, the first of which should begin at `at` in `bytes`, while they are as expected.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "it must be compiled for the lanes it runs with")]
    pub(super) fn follow<L: Lanes>(&self, next: usize, bytes: &[u8], at: usize, noted: &mut Noted) -> Stop {
        let Some(first) = self.members.get(next) else { return Stop { member: next, begin: at, value: None } };
        let from = first.begin;
        let stop = from + lanes::fitting::<L>((bytes, at), (&self.least, &self.most, from));
        let there = |place: usize| place - from + at;
        let owner = self.owners.get(stop).map_or(self.members.len(), |owner| usize::from(*owner));
        let begin = self.members.get(owner).map_or(stop, |member| member.begin);
        // What could be the whole value may be but the beginning of another.
        let is_ended = stop != begin || owner == next || matches!(bytes.get(there(stop)), Some(b',' | b'}'));
        let member = if is_ended { owner } else { owner - 1 };
        let Some(unlike) = self.members.get(member) else {
            self.note(first.wanted, self.wanted.len(), there, noted);
            return Stop { member, begin: there(stop), value: None };
        };
        self.note(first.wanted, unlike.wanted, there, noted);
        let value = (unlike.value <= stop).then(|| there(unlike.value));
        Stop { member, begin: there(unlike.begin), value }
    }

    /// Notes those of the wanted members.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "there are mostly none")]
    fn note(&self, from: usize, to: usize, there: impl Fn(usize) -> usize, noted: &mut Noted) {
        if from >= to {
            return;
        }
        for &wanted in &self.wanted[from..to] {
            let Member { begin, value, end, kind, role, .. } = self.members[wanted];
            role.note(noted, there(begin), Value::stepped(there(value), Step { end: there(end), kind }));
        }
    }

    /// Learns from a value that was another than expected, which `value` is as it stands in the `records`th record.
    #[cold]
    pub(super) fn differs(&mut self, member: usize, value: &str, kind: Kind, records: u32) {
        let expected = &mut self.members[member];
        expected.wrong = expected.wrong.saturating_add(1);
        let between = records.saturating_sub(expected.last).saturating_sub(1);
        let again = if expected.other == value.len() { expected.score.saturating_sub(between) } else { 0 };
        (expected.other, expected.last, expected.score) = (value.len(), records, again + 1);
        if expected.wrong > Self::TRIALS + records / Self::SELDOM {
            self.expect(member, vec![Self::NOTHING], kind);
        } else if expected.score > 1 {
            expected.score = 0;
            // One that cannot be predicted is no reason to predict no other.
            if let Some(like) = self.likeness(member, value) {
                self.expect(member, like, kind);
            }
        }
    }

    /// Whether nothing is predicted of the value of a member.
    pub(super) fn is_open(&self, member: usize) -> bool {
        self.least[self.members[member].value] == Self::NOTHING.0
    }

    /// What a member is to the route.
    pub(super) fn role(&self, member: usize) -> Role {
        self.members[member].role
    }

    /// The first member behind `next`, within `reach`, whose key is the one at `at`: records leave members out.
    pub(super) fn resume(&self, next: usize, reach: usize, bytes: &[u8], at: usize) -> Option<usize> {
        let rest = bytes.get(at..).filter(|rest| rest.first() == Some(&b','))?;
        let is_there = |member: &Member| rest.starts_with(&self.least[member.begin..member.value]);
        let found = self.members.get(next + 1..)?.iter().take(reach).position(is_there);
        found.map(|skipped| next + 1 + skipped)
    }

    /// The first member from `next` on, of `reach`, that has this key as it stands in the record.
    pub(super) fn find(&self, next: usize, reach: usize, key: &str) -> Option<usize> {
        let is_key = |member: &Member| self.least[member.begin + 2..member.value - 2] == *key.as_bytes();
        let found = self.members.get(next..)?.iter().take(reach).position(is_key);
        found.map(|skipped| next + skipped)
    }
}

/// What may stand at each byte of a value like this one; `None` for one that has white space between tokens, or escapes.
fn like(value: &str) -> Option<Vec<(u8, u8)>> {
    let mut like = Vec::with_capacity(value.len());
    let bytes = value.as_bytes();
    let mut is_text = false;
    for (at, &byte) in bytes.iter().enumerate() {
        like.push(match byte {
            b'"' => {
                is_text = !is_text;
                (byte, byte)
            }
            b'\\' => return None,
            _ if is_text => (b' ', u8::MAX),
            b' ' | b'\n' | b'\r' | b'\t' => return None,
            b'1'..=b'9' => {
                let is_digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
                let first = !is_digit(at.wrapping_sub(1)) && is_digit(at + 1);
                (if first { b'1' } else { b'0' }, b'9')
            }
            b'0' => (b'0', b'9'),
            _ => (byte, byte),
        });
    }
    Some(like)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The layout of these members, of which each third one is wanted, in slots from 1 on.
    fn layout(members: &[(&str, &str, Kind)]) -> Layout {
        let mut layout = Layout::default();
        for (number, (key, value, kind)) in members.iter().enumerate() {
            let slot = if number % 3 == 0 { number as u32 / 3 + 1 } else { Role::UNWANTED };
            assert!(layout.add(if number == 0 { b'{' } else { b',' }, key, value, *kind, Role { slot, omit: false }));
        }
        layout
    }

    /// Where the likeness ends, as (member, what should begin with it, its value).
    fn stop<'a>(layout: &Layout, next: usize, record: &'a str) -> (usize, &'a str, Option<&'a str>) {
        let mut noted = Noted { values: vec![Value::default(); 9], omitted: Vec::new() };
        let Stop { member, begin, value } = layout.follow::<lanes::Narrow>(next, record.as_bytes(), 0, &mut noted);
        (member, &record[begin..], value.map(|value| &record[value..]))
    }

    const THREE: [(&str, &str, Kind); 3] =
        [("a", "12", Kind::Number), ("b", r#""xyz""#, Kind::Plain), ("c", "[1,{\"d\":-20.5}]", Kind::Array)];

    #[test]
    fn other_digits_and_characters_fit_and_nothing_else_does() {
        let layout = layout(&THREE);
        for record in [r#"{"a":12,"b":"xyz","c":[1,{"d":-20.5}]}"#, r#"{"a":90,"b":" é","c":[0,{"e":-99.0}],"more":1}"#]
        {
            assert_eq!(stop(&layout, 0, record).0, 3, "{record}");
        }
        for (record, member) in [
            (r#"{"a":1"#, 0),
            (r#"{"a":1,"b":"xyz""#, 0),
            (r#"{"a":02,"b":"xyz""#, 0),
            (r#"{"a":1.,"b":"xyz""#, 0),
            (r#"{"a":123,"b":"xyz""#, 0),
            (r#"{"a":12 ,"b":"xyz""#, 0),
            (r#"{"a":12,"b":"xy","c""#, 1),
            (r#"{"a":12,"b":"xyzz","c""#, 1),
            (r#"{"a":12,"b":"x\\z","c""#, 1),
            (r#"{"a":12,"b":"x"z","c""#, 1),
            ("{\"a\":12,\"b\":\"x\u{1f}z\",\"c\"", 1),
            (r#"{"a":12,"b":"xyz","c":[1,{"d":-20.5}"#, 2),
            (r#"{"a":12,"b":"xyz","c":[1,{"d":-20.5}} "#, 2),
            (r#"{"a":12,"b":"xyz","c":[1,{"d":-00.5}]}"#, 2),
            (r#"{"a":12,"b":"xyz","c":[1,{"d":-20.5}]1"#, 2),
        ] {
            let (stopped, _, value) = stop(&layout, 0, record);
            assert_eq!((stopped, value.is_some()), (member, true), "{record}");
        }
    }

    #[test]
    fn it_is_told_where_the_unexpected_is_and_what_is_wanted_is_noted() {
        let layout = layout(&[&THREE[..], &[("d", "7", Kind::Number)]].concat());
        let record = r#"{"a":34,"x":"xyz"}"#;
        assert_eq!(stop(&layout, 0, record), (1, r#","x":"xyz"}"#, None));
        assert_eq!(stop(&layout, 1, r#","b":"long","c":"#), (1, r#","b":"long","c":"#, Some(r#""long","c":"#)));
        assert_eq!(stop(&layout, 4, "}"), (4, "}", None));
        let record = r#"..{"a":34,"b":"xyz","c":[1,{"d":-20.5}],"d":8}"#;
        let mut noted = Noted { values: vec![Value::default(); 3], omitted: Vec::new() };
        assert_eq!(layout.follow::<lanes::Narrow>(0, record.as_bytes(), 2, &mut noted).member, 4);
        assert_eq!([1, 2].map(|slot| noted.values[slot].of(record)), ["34", "8"]);
        assert_eq!(noted.values[1].kind, Kind::Number);
    }

    #[test]
    fn a_length_is_expected_once_it_came_twice_and_none_when_it_always_changes() {
        let mut layout = layout(&THREE);
        let four = r#"{"a":12,"b":"four","c":[1,{"d":-20.5}]}"#;
        layout.differs(1, r#""four""#, Kind::Plain, 1);
        assert_eq!(stop(&layout, 0, four).0, 1);
        layout.differs(1, r#""five""#, Kind::Plain, 3);
        assert_eq!(stop(&layout, 0, four).0, 1, "one in between was as expected");
        layout.differs(1, r#""nine""#, Kind::Plain, 4);
        assert_eq!(stop(&layout, 0, four).0, 3);
        layout.differs(1, "1.5e-07", Kind::Number, 5);
        layout.differs(1, "2.5e-99", Kind::Number, 6);
        assert_eq!(stop(&layout, 0, r#"{"a":12,"b":0.0e-17,"c":[1,{"d":-20.5}]}"#).0, 3);
        for record in 7..9 {
            layout.differs(1, r#""a\n""#, Kind::Escaped, record);
        }
        assert!(!layout.is_open(1), "escapes are not predicted, but others are still");
        for (record, value) in (9..).zip([r#""a""#, r#""bc""#].into_iter().cycle().take(24)) {
            layout.differs(1, value, Kind::Plain, record);
        }
        assert!(layout.is_open(1) && !layout.is_open(0));
        assert_eq!(stop(&layout, 0, four), (1, &four[7..], Some(&four[12..])));
        assert_eq!(stop(&layout, 2, &four[18..]).0, 3);
    }

    #[test]
    fn escapes_white_space_and_long_values_are_not_foretold() {
        let long = format!("\"{}\"", "x".repeat(Layout::LONGEST_VALUE));
        for value in [r#""a\n""#, "[1, 2]", &long] {
            assert!(layout(&[("a", value, Kind::Array)]).is_open(0), "{value}");
        }
        assert!(!layout(&[("a", r#""a b""#, Kind::Plain)]).is_open(0));
    }

    #[test]
    fn a_key_with_escapes_is_compared_as_it_stands() {
        let layout = layout(&[(r#"a\"b"#, "1", Kind::Number)]);
        assert_eq!([r#"{"a\"b":7}"#, r#"{"a\\b":7}"#].map(|record| stop(&layout, 0, record).0), [1, 0]);
    }

    #[test]
    fn a_layout_has_a_longest() {
        let mut layout = Layout::default();
        let value = format!("\"{}\"", "x".repeat(100));
        while layout.add(b',', "key", &value, Kind::Plain, Role::default()) {}
        assert!(layout.end() > Layout::LONGEST / 2);
        let long = "9".repeat(Layout::LONGEST_VALUE);
        for member in 0..layout.len() {
            for record in 1..3 {
                layout.differs(member, &long, Kind::Number, record);
            }
        }
        assert!(layout.end() <= Layout::LONGEST, "{}", layout.end());
        let expected = |member: &Member| member.end - member.value;
        assert_eq!(layout.members.first().map(expected), Some(long.len()));
        assert_eq!(layout.members.last().map(expected), Some(value.len()), "there was no room left");
    }
}
