//! The members of `logs`: stepped over, with the wanted values noted.
//!
//! Records of one log name have the same members in the same order, nearly always. So a [`Shape`] remembers those of the
//! last record that was looked at closely, and the next record is compared with it, sixteen bytes at a time, up to the
//! value: no end of a key is searched, no name is looked up, and where the next value starts does not depend on what
//! the key says. A key that is not the expected one is read in the plain way and the shape is picked up behind it.
//!
//! A value is expected to be as long as the last one of its member. That is checked, not believed; but where the next member
//! starts is then known before the value was read, so the processor is at several members at once, where else it
//! would wait for the end of each. Members whose lengths change too often are read in the plain way.

use super::lanes::{self, Job, Lanes};
use super::route::Route;
use super::scan::{Cursor, Fault, Kind, Step, Value};
use super::text;

/// `logs` lies inside the record's object, its members one deeper.
const DEPTH: u32 = 2;

/// What a member is to a route; by default nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Role {
    /// Where its value is noted.
    pub(super) slot: u32,
    /// Whether it is left out of `properties`.
    pub(super) omit: bool,
}

impl Role {
    /// The slot of the members that nobody asks for: what is noted there is never read.
    pub(super) const UNWANTED: u32 = 0;

    /// Notes a member that begins at `begin` with its separator.
    #[inline]
    fn note(self, noted: &mut Noted, begin: usize, value: Value) {
        if self.slot != Self::UNWANTED {
            noted.values[self.slot as usize] = value;
        }
        if self.omit {
            noted.omitted.push((begin, value.end + usize::from(value.is_string())));
        }
    }
}

/// What was noted of the `logs` of one record.
#[derive(Debug, Default)]
pub(super) struct Noted {
    /// The last value of each wanted member, by slot.
    pub(super) values: Vec<Value>,
    /// Where the members lie that are left out: from the separator before to the end of the value.
    pub(super) omitted: Vec<(usize, usize)>,
}

/// What the value of a member is expected to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guess {
    /// A string without escapes.
    Text,
    /// Digits, without a leading zero.
    Digits,
    /// Anything: it is read in the plain way.
    Nothing,
}

/// One member that is expected: `,"name":`, or with `{` for the first, and what value. It fills a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Expected {
    text: [u8; 32],
    /// The bits of the bytes that `text` does not use.
    unused: u32,
    /// The bits of the value and of the byte behind it,
    within: u32,
    /// and which of them must be set in what the lanes answer.
    answer: u32,
    len: u8,
    guess: Guess,
    /// Bytes of the value, of a string between its quotes.
    value: u8,
    /// How often the value was another than expected.
    wrong: u16,
    role: Role,
}

/// What is looked at to foretell a member: its key, the quotes around a value, and the lanes behind.
type Window = [u8; Expected::LONGEST + Expected::LONGEST_VALUE + 4];

impl Expected {
    /// Longer keys, separator, quotes and colon included, are read in the plain way,
    const LONGEST: usize = 31;
    /// and so are longer values: the byte behind must be among the lanes.
    const LONGEST_VALUE: usize = 31;

    fn new(separator: u8, key: &[u8], role: Role) -> Option<Self> {
        let len = key.len() + 4;
        if len > Self::LONGEST {
            return None;
        }
        let mut text = [0; 32];
        text[..2].copy_from_slice(&[separator, b'"']);
        text[2..len - 2].copy_from_slice(key);
        text[len - 2..len].copy_from_slice(b"\":");
        let guess = Guess::Nothing;
        Some(Self {
            text,
            unused: u32::MAX << len,
            within: 0,
            answer: 0,
            len: len as u8,
            guess,
            value: 0,
            wrong: 0,
            role,
        })
    }

    /// Expects a value like this one next time.
    fn expect(&mut self, value: Value) {
        let len = value.end - value.start;
        let behind = 1_u32.checked_shl(len as u32).unwrap_or(0);
        self.value = len as u8;
        self.within = behind | behind.wrapping_sub(1);
        (self.guess, self.answer) = match value.kind {
            Kind::Plain if behind != 0 => (Guess::Text, behind),
            Kind::Number if behind != 0 => (Guess::Digits, behind - 1),
            _ => (Guess::Nothing, 0),
        };
    }

    /// Another value came than was expected, in one of so many records.
    #[cold]
    fn wrong(&mut self, value: Value, records: u32) {
        self.wrong = self.wrong.saturating_add(1);
        if u32::from(self.wrong) > Shape::TRIALS + records / Shape::SELDOM {
            self.guess = Guess::Nothing;
        } else {
            self.expect(value);
        }
    }

    /// Whether the member is in the window with a value as expected: where the value begins, and what and how long it is.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the kernel's inner loop: a call here costs more than the work")]
    fn is_at<L: Lanes>(&self, window: &Window) -> Option<(usize, Step)> {
        let (len, value) = (usize::from(self.len) & 31, usize::from(self.value) & 31);
        let key = window.first_chunk().map_or(0, |there| L::equal(there, &self.text));
        if (key | self.unused) != u32::MAX || value >= L::WIDTH {
            return None;
        }
        let (good, end, kind) = match self.guess {
            Guess::Text => {
                let good = lanes::special::<L>(window, len + 1) & self.within == self.answer
                    && window[len] == b'"'
                    && window[len + 1 + value] == b'"';
                (good, len + 1 + value + 1, Kind::Plain)
            }
            Guess::Digits => {
                let good = lanes::digits::<L>(window, len) & self.within == self.answer
                    && matches!(window[len + value], b',' | b'}')
                    && (value == 1 || window[len] != b'0');
                (good, len + value, Kind::Number)
            }
            Guess::Nothing => (false, 0, Kind::Absent),
        };
        good.then_some((len, Step { end, kind }))
    }

    /// What stands before the value.
    fn text(&self) -> &[u8] {
        &self.text[..usize::from(self.len) & 31]
    }

    /// Whether it is the member of this key, as it stands in the record.
    fn is_key(&self, key: &str) -> bool {
        self.text[2..usize::from(self.len) - 2] == *key.as_bytes()
    }
}

/// The members that a record of one log name is expected to have.
#[derive(Debug, Default)]
pub(super) struct Shape {
    expected: Vec<Expected>,
    /// Keys that were not the expected ones since the shape was learned.
    misses: usize,
    /// Records that were read by it.
    records: u32,
    learned: bool,
}

impl Shape {
    /// Bounds the memory of a shape; further members are read in the plain way.
    const LONGEST: usize = 256;
    /// So many unexpected keys pay for learning anew.
    const PATIENCE: usize = 256;
    /// How many members that are left out of a record are looked over.
    const REACH: usize = 16;
    /// So many values may be other than expected at first,
    const TRIALS: u32 = 16;
    /// and later one in so many: a wrong guess costs as much as this many right ones save.
    const SELDOM: u32 = 4;

    /// Counts a key that is not the expected one at `next`, and returns the position to go on with: behind the same key
    /// when the record leaves out a few of the expected ones, else unchanged. Never the first one, whose `{` must not match
    /// again. Members that a full shape has no room for do not count: learning anew would not help.
    fn miss(&mut self, next: usize, key: &str) -> usize {
        let rest = self.expected.get(next..).unwrap_or_default();
        if !rest.is_empty() || self.expected.len() < Self::LONGEST {
            self.misses += 1;
        }
        let found = rest.iter().take(Self::REACH).position(|expected| expected.is_key(key));
        found.map_or(next.max(1), |skipped| next + skipped + 1)
    }
}

/// Steps over `logs`, at whose opening brace the cursor stands.
pub(super) fn scan(cursor: &mut Cursor<'_>, json: &str, route: &mut Route, noted: &mut Noted) -> Result<(), Fault> {
    noted.values.clear();
    noted.values.resize(route.slots(), Value::default());
    noted.omitted.clear();
    // Taken out while it is read, so that the route can be asked for roles.
    let mut shape = std::mem::take(&mut route.shape);
    if !shape.learned || shape.misses > Shape::PATIENCE {
        shape = Shape { learned: true, ..learn(Cursor { ..*cursor }, json, route) };
    }
    shape.records = shape.records.saturating_add(1);
    let scanned = follow(cursor, json, route, noted, &mut shape);
    route.shape = shape;
    scanned
}

/// The shape of `logs` as far as it is valid and free of white space and escaped keys.
fn learn(mut cursor: Cursor<'_>, json: &str, route: &Route) -> Shape {
    let mut shape = Shape::default();
    let mut separator = b'{';
    while let Ok(Some(key)) = cursor.key(separator)
        && shape.expected.len() < Shape::LONGEST
    {
        let name = text::decoded(json, key);
        let mut expected = Expected::new(separator, key.of(json).as_bytes(), route.role(&name));
        separator = b',';
        let Ok(value) = cursor.value(DEPTH) else { break };
        if let Some(expected) = &mut expected {
            expected.expect(value);
        }
        shape.expected.extend(expected);
    }
    shape
}

/// The members that are as the shape foretells them, one after the other: see [`run_ahead`].
struct Ahead<'a> {
    expected: &'a [Expected],
    bytes: &'a [u8],
    /// Where `bytes` begins in the record.
    base: usize,
    at: usize,
    noted: &'a mut Noted,
}

impl Job for Ahead<'_> {
    /// How many members that was, and where they end in the record.
    type Out = (usize, usize);

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "it must be compiled for the lanes it runs with")]
    fn run<L: Lanes>(self) -> (usize, usize) {
        let Ahead { expected, bytes, base, at, noted } = self;
        let mut from = at - base;
        for (count, expected) in expected.iter().enumerate() {
            let Some((value, step)) = bytes.get(from..).and_then(|rest| expected.is_at::<L>(rest.first_chunk()?))
            else {
                return (count, base + from);
            };
            if expected.role != Role::default() {
                expected.role.note(noted, base + from, Value::stepped(base + from + value, step.behind(base + from)));
            }
            from += step.end;
        }
        (expected.len(), base + from)
    }
}

/// Steps over members from `at` on while they are as expected; returns how many they are, and where they end.
fn run_ahead(expected: &[Expected], bytes: &[u8], at: usize, noted: &mut Noted) -> (usize, usize) {
    let (count, at) = lanes::dispatch(Ahead { expected, bytes, base: 0, at, noted });
    let rest = bytes.get(at..).unwrap_or_default();
    if count == expected.len() || rest.len() >= size_of::<Window>() {
        return (count, at);
    }
    // The last members, with room behind them for a whole window.
    let mut last = [0; 2 * size_of::<Window>()];
    last[..rest.len()].copy_from_slice(rest);
    let (more, at) = lanes::dispatch(Ahead { expected: &expected[count..], bytes: &last, base: at, at, noted });
    (count + more, at)
}

fn follow(
    cursor: &mut Cursor<'_>,
    json: &str,
    route: &Route,
    noted: &mut Noted,
    shape: &mut Shape,
) -> Result<(), Fault> {
    let mut next = 0;
    loop {
        let (count, at) = run_ahead(shape.expected.get(next..).unwrap_or_default(), cursor.bytes, cursor.at, noted);
        (next, cursor.at) = (next + count, at);
        // Most often it is the value that is another, or none that can be foretold.
        if let Some(expected) = shape.expected.get_mut(next)
            && cursor.bytes.get(at..).is_some_and(|rest| rest.starts_with(expected.text()))
        {
            cursor.at = at + expected.text().len();
            let value = cursor.value(DEPTH)?;
            if expected.guess != Guess::Nothing {
                expected.wrong(value, shape.records);
            }
            expected.role.note(noted, at, value);
            next += 1;
            continue;
        }
        let separator = if next == 0 { b'{' } else { b',' };
        let Some(key) = cursor.key(separator)? else { return Ok(()) };
        let value = cursor.value(DEPTH)?;
        match shape.expected.get(next) {
            // With white space in it.
            Some(expected) if expected.is_key(key.of(json)) => {
                expected.role.note(noted, at, value);
                next += 1;
            }
            _ => {
                route.role(&text::decoded(json, key)).note(noted, at, value);
                next = shape.miss(next, key.of(json));
            }
        }
    }
}

/// Appends the members of `logs`, which has no white space between its tokens, without those that were noted as left out.
pub(super) fn write_between(json: &str, logs: Value, noted: &Noted, out: &mut Vec<u8>) {
    out.push(b'{');
    let begin = out.len();
    let mut from = logs.start + 1;
    for &(to, behind) in noted.omitted.iter().chain([&(logs.end, logs.end)]) {
        // The first member that stays has no comma before it; the first of all may be one that goes.
        let kept = json.as_bytes().get(from..to).unwrap_or_default();
        let comma = usize::from(out.len() == begin && kept.first() == Some(&b','));
        out.extend_from_slice(&kept[comma..]);
        from = behind;
    }
}

/// The same for `logs` with white space between its tokens, which is valid.
pub(super) fn write_kept(logs: &str, route: &Route, out: &mut Vec<u8>) -> Result<(), Fault> {
    let mut cursor = Cursor::new(logs, 0);
    let mut separator = b'{';
    out.push(b'{');
    let begin = out.len();
    while let Some(key) = cursor.key(separator)? {
        separator = b',';
        let value = cursor.at;
        cursor.white = false;
        cursor.value(DEPTH)?;
        if route.omits(&text::decoded(logs, key)) {
            continue;
        }
        if out.len() > begin {
            out.push(b',');
        }
        out.extend_from_slice(&logs.as_bytes()[key.start - 1..=key.end]);
        out.push(b':');
        if cursor.white {
            super::scan::compact(&logs[value..cursor.at], out);
        } else {
            out.extend_from_slice(&logs.as_bytes()[value..cursor.at]);
        }
    }
    out.push(b'}');
    Ok(())
}
