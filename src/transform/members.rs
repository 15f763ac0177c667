//! The members of `logs`: stepped over, with the wanted values noted.
//!
//! Records of one log name have the same members in the same order, nearly always. So a [`Shape`] remembers those of the
//! last record that was looked at closely, and the next record is compared with it, sixteen bytes at a time, up to the
//! value: no end of a key is searched, no name is looked up, and where the next value starts does not depend on what
//! the key says. A key that is not the expected one is read in the plain way and the shape is picked up behind it.

use super::lanes::Lanes;
use super::route::Route;
use super::scan::{Cursor, Fault, Kind, Value};
use super::text;

/// `logs` lies inside the record's object, its members one deeper.
const DEPTH: u32 = 2;

/// What a member is to a route; by default nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Role {
    /// Where its value is noted.
    pub(super) slot: usize,
    /// Whether it is left out of `properties`.
    pub(super) omit: bool,
}

impl Role {
    /// The slot of the members that nobody asks for: what is noted there is never read.
    pub(super) const UNWANTED: usize = 0;
}

/// What was noted of the `logs` of one record.
#[derive(Debug, Default)]
pub(super) struct Noted {
    /// The last value of each wanted member, by slot.
    pub(super) values: Vec<Value>,
    /// Where the members lie that are left out: from the separator before to the end of the value.
    pub(super) omitted: Vec<(usize, usize)>,
}

/// One member that is expected: `,"name":`, or with `{` for the first. It fills a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Expected {
    text: [u8; Self::LONGEST],
    /// The bits of the bytes that `text` does not use.
    unused: u32,
    len: u8,
    role: Role,
}

impl Expected {
    const LONGEST: usize = 32;

    fn new(separator: u8, key: &[u8], role: Role) -> Option<Self> {
        let len = key.len() + 4;
        if len > Self::LONGEST {
            return None;
        }
        let mut text = [0; Self::LONGEST];
        text[..2].copy_from_slice(&[separator, b'"']);
        text[2..len - 2].copy_from_slice(key);
        text[len - 2..len].copy_from_slice(b"\":");
        Some(Self { text, unused: u32::MAX.checked_shl(len as u32).unwrap_or(0), len: len as u8, role })
    }

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "the kernel's inner loop: a call here costs more than the work")]
    fn is_at(&self, bytes: &[u8], at: usize) -> bool {
        let Some(there) = bytes.get(at..).and_then(|rest| rest.first_chunk::<{ Self::LONGEST }>()) else {
            return self.is_at_end(bytes, at);
        };
        let half = |step| Lanes::at(there, step).equal(Lanes::at(&self.text, step));
        (half(0) | (half(16) << 16) | self.unused) == u32::MAX
    }

    /// The same for the last bytes of a record.
    #[cold]
    fn is_at_end(&self, bytes: &[u8], at: usize) -> bool {
        bytes.get(at..).is_some_and(|rest| rest.starts_with(&self.text[..usize::from(self.len)]))
    }

    /// Whether it is the same member, first or not.
    fn is_same(&self, other: &Self) -> bool {
        self.len == other.len && self.text[1..] == other.text[1..]
    }
}

/// The members that a record of one log name is expected to have.
#[derive(Debug, Default)]
pub(super) struct Shape {
    expected: Vec<Expected>,
    /// Keys that were not the expected ones since the shape was learned.
    misses: usize,
    learned: bool,
}

impl Shape {
    /// Bounds the memory of a shape; further members are read in the plain way.
    const LONGEST: usize = 256;
    /// So many unexpected keys pay for learning anew.
    const PATIENCE: usize = 256;
    /// How many members that are left out of a record are looked over.
    const REACH: usize = 16;

    /// Counts a key that is not the expected one at `next`, and returns the position to go on with: behind the same key
    /// when the record leaves out a few of the expected ones, else unchanged. Never the first one, whose `{` must not match
    /// again. Members that a full shape has no room for do not count: learning anew would not help.
    fn miss(&mut self, next: usize, separator: u8, key: &str) -> usize {
        let rest = self.expected.get(next..).unwrap_or_default();
        if !rest.is_empty() || self.expected.len() < Self::LONGEST {
            self.misses += 1;
        }
        let mut reach = rest.iter().take(Self::REACH);
        let found = (!rest.is_empty()).then(|| Expected::new(separator, key.as_bytes(), Role::default())).flatten();
        found
            .and_then(|key| reach.position(|expected| key.is_same(expected)))
            .map_or(next.max(1), |skipped| next + skipped + 1)
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
        shape.expected.extend(Expected::new(separator, key.of(json).as_bytes(), route.role(&name)));
        separator = b',';
        if cursor.value(DEPTH).is_err() {
            break;
        }
    }
    shape
}

fn follow(
    cursor: &mut Cursor<'_>,
    json: &str,
    route: &Route,
    noted: &mut Noted,
    shape: &mut Shape,
) -> Result<(), Fault> {
    // What the usual way needs stays in registers.
    let (bytes, mut at) = (cursor.bytes, cursor.at);
    let values = &mut noted.values[..];
    let mut next = 0;
    let mut separator = b'{';
    loop {
        let begin = at;
        let role = match shape.expected.get(next) {
            Some(expected) if expected.is_at(bytes, at) => {
                at += usize::from(expected.len);
                next += 1;
                expected.role
            }
            _ => {
                cursor.at = at;
                let Some(key) = cursor.key(separator)? else { return Ok(()) };
                at = cursor.at;
                let role = route.role(&text::decoded(json, key));
                next = shape.miss(next, separator, key.of(json));
                role
            }
        };
        separator = b',';
        let mut step = cursor.step(at, DEPTH);
        while step.kind == Kind::White {
            at = step.end;
            step = cursor.step(at, DEPTH);
        }
        if step.kind == Kind::Invalid {
            return Err(cursor.fault(step));
        }
        if let Some(slot) = values.get_mut(role.slot) {
            *slot = Value::stepped(at, step);
        }
        at = step.end;
        if role.omit {
            noted.omitted.push((begin, at));
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
