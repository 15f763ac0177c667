//! The members of `logs`: stepped over, with the wanted values noted.
//!
//! A [`Shape`] remembers the members of the last record of a log name that was looked at closely, and the next record is
//! compared with its layout: no end of a key or value is searched and no name is looked up while they are alike. A value
//! or key that is not the expected one is read in the plain way, and the shape is picked up behind it.

use super::lanes::{self, Job, Lanes};
use super::layout::Layout;
use super::route::{Roles, Route};
use super::scan::{Cursor, Fault, Value};
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
    pub(super) fn note(self, noted: &mut Noted, begin: usize, value: Value) {
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

/// The members that a record of one log name is expected to have.
#[derive(Debug, Default)]
pub(super) struct Shape {
    layout: Layout,
    /// Whether the record that it was learned of had more members than it has room for.
    is_full: bool,
    /// Keys that were not the expected ones since the shape was learned.
    misses: usize,
    /// Records that were read by it.
    records: u32,
    learned: bool,
}

impl Shape {
    /// So many unexpected keys pay for learning again.
    const PATIENCE: usize = 256;
    /// How many members that are left out of a record are looked over.
    const REACH: usize = 16;
}

/// Steps over `logs`, at whose opening brace the cursor stands.
pub(super) fn scan(cursor: &mut Cursor<'_>, json: &str, route: &mut Route, noted: &mut Noted) -> Result<(), Fault> {
    let Route { shape, roles, .. } = route;
    noted.values.clear();
    noted.values.resize(roles.slots(), Value::default());
    noted.omitted.clear();
    if !shape.learned || shape.misses > Shape::PATIENCE {
        *shape = learn(Cursor { ..*cursor }, json, roles);
    }
    shape.records = shape.records.saturating_add(1);
    lanes::dispatch(Follow { cursor, json, roles, noted, shape })
}

/// The shape of `logs` as far as it is valid.
fn learn(mut cursor: Cursor<'_>, json: &str, roles: &Roles) -> Shape {
    let mut shape = Shape { learned: true, ..Shape::default() };
    let mut separator = b'{';
    while let Ok(Some(key)) = cursor.key(separator) {
        let begin = cursor.at;
        let Ok(value) = cursor.value(DEPTH) else { break };
        let (name, value_text) = (key.of(json), &json[begin..cursor.at]);
        if !shape.layout.add(separator, name, value_text, value.kind, roles.of(&text::decoded(json, key))) {
            shape.is_full = true;
            break;
        }
        separator = b',';
    }
    shape
}

/// Steps over members along a shape.
struct Follow<'a, 'b> {
    cursor: &'a mut Cursor<'b>,
    json: &'a str,
    roles: &'a Roles,
    noted: &'a mut Noted,
    shape: &'a mut Shape,
}

impl Job for Follow<'_, '_> {
    type Out = Result<(), Fault>;

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "it must be compiled for the lanes it runs with")]
    fn run<L: Lanes>(self) -> Result<(), Fault> {
        let Follow { cursor, json, roles, noted, shape } = self;
        let mut next = 0;
        loop {
            let stop = shape.layout.follow::<L>(next, cursor.bytes, cursor.at, noted);
            (next, cursor.at) = (stop.member, stop.begin);
            // Most often it is the value that is another, or none that can be predicted.
            if let Some(begin) = stop.value {
                cursor.at = begin;
                let value = cursor.value(DEPTH)?;
                if !shape.layout.is_open(next) {
                    shape.layout.differs(next, &json[begin..cursor.at], value.kind, shape.records);
                }
                shape.layout.role(next).note(noted, stop.begin, value);
                next += 1;
                continue;
            }
            // Behind a whole member, as most often.
            if next > 0 && cursor.bytes.get(cursor.at) == Some(&b'}') {
                cursor.at += 1;
                return Ok(());
            }
            if let Some(member) = shape.layout.resume(next, Shape::REACH, cursor.bytes, cursor.at) {
                next = member;
                continue;
            }
            let separator = if next == 0 { b'{' } else { b',' };
            let Some(key) = cursor.key(separator)? else { return Ok(()) };
            let value = cursor.value(DEPTH)?;
            if let Some(member) = shape.layout.find(next, Shape::REACH, key.of(json)) {
                // With white space in it, or the first in place of another.
                shape.layout.role(member).note(noted, stop.begin, value);
                next = member + 1;
            } else {
                roles.of(&text::decoded(json, key)).note(noted, stop.begin, value);
                // Members that a full shape has no room for do not count: learning again would not help.
                shape.misses += usize::from(next < shape.layout.len() || !shape.is_full);
                // Never the first one, whose `{` must not match again.
                next = next.max(1);
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
        if route.roles.omits(&text::decoded(logs, key)) {
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
